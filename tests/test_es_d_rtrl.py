"""ES-D-RTRL and Hybrid against the formula in float64; models of every kind are in `test_gradients.py`."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from models import reference, run, run_by_step, start, total
from soak import few

import sparse_etrace as se

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE = 1e-10


@pytest.mark.parametrize("kind", few(["rate", "lstm"], ["rate"]))
def test_first_step_is_exact(kind):
    case, expected = reference(kind)
    first = jax.tree.map(lambda g: g[0], expected.exact)
    for decay in (0.0, 0.5):
        assert oracles.relative_error(run(se.ES_D_RTRL(decay=decay), case, 1, steps=slice(1))[1], first) < TOLERANCE


def test_oracle_is_the_formula_in_loops():
    """A rate layer with its input weights, one number at a time."""
    case, expected = reference("rate")
    alpha, a = models.DECAY, models.A
    values = jax.tree.map(np.asarray, case.twin.values)
    w_in, w_out = values["inp"]["weight"], values["out"]["weight"]
    rec = case.model.params["rec"]
    w_rec = np.zeros((models.N, models.N))
    conn = rec.op.connectivity
    w_rec[np.asarray(conn.pre), np.asarray(conn.post)] = values["rec"]["weight"]
    xs, ys, h = np.asarray(case.xs), np.asarray(case.ys), np.asarray(case.twin.state["h"])
    batch, n = h.shape
    xhat, fhat, eps_bias = np.zeros(xs.shape[1:]), np.zeros((batch, n)), np.zeros((batch, n))
    for t in range(len(xs)):
        u = xs[t] @ w_in + values["inp"]["bias"] + h @ w_rec
        h = a * h + (1 - a) * np.tanh(u)
        out = h @ w_out + values["out"]["bias"]
        by_h = (out - ys[t] + 0.1 * np.cos(out)) @ w_out.T
        weight, bias = np.zeros_like(w_in), np.zeros(n)
        for b in range(batch):
            for j in range(models.INPUTS):
                xhat[b, j] = alpha * xhat[b, j] + xs[t, b, j]
            for i in range(n):
                f = (1 - a) * (1 - np.tanh(u[b, i]) ** 2)
                m_i, n_i = by_h[b, i] * a, by_h[b, i] * f
                signal = (alpha * m_i * fhat[b, i] + (1 - alpha) * n_i) / (1 - alpha ** (t + 1))
                for j in range(models.INPUTS):
                    weight[j, i] += xhat[b, j] * signal
                bias[i] += m_i * eps_bias[b, i] + n_i
                fhat[b, i] = alpha * a * fhat[b, i] + (1 - alpha) * f
                eps_bias[b, i] = a * eps_bias[b, i] + f
        got = jax.tree.map(lambda g, t=t: g[t], expected.factored["inp"])
        assert oracles.relative_error(got, {"weight": weight, "bias": bias}) < TOLERANCE


@pytest.mark.parametrize("kind", few(["rate", "two_lif"], ["two_lif"]))
def test_hybrid_obeys_the_parameter(kind):
    """full: a trace; approx: factors; adaptive: the smaller of both."""
    case, _ = reference(kind)
    traced = [c for c in case.twin.calls if c in case.twin.traced]
    full, approx = traced[::2], traced[1::2]
    choice = dict.fromkeys(full, se.ETraceGrad.full) | dict.fromkeys(approx, se.ETraceGrad.approx)
    params = {
        name: se.ETraceParam(p.value, p.op, grad=choice.get(name, p.grad)) for name, p in case.model.params.items()
    }
    case = case._replace(model=models.Net(params, case.model.forward, case.model.calls))
    expected = oracles.online(case.twin, case.xs, case.ys, decay=models.DECAY, factored=approx)
    _, grads = run_by_step(se.Hybrid(decay=models.DECAY), case)
    assert oracles.relative_error_by_step(grads, expected.factored) < TOLERANCE


def test_hybrid_takes_the_smaller():
    """Per batch element: a trace of 5 inputs by 2 units is larger than factors of 5 and 2; 1 by 2 is not."""
    rng = np.random.default_rng(0)
    parts = {
        "inp": models.dense(rng, 5, 2),
        "rec": models.sparse(rng, 2, 2, bias=False),
        "extra": models.dense(rng, 1, 2, bias=False),
        "out": models.dense(rng, 2, 2),
    }

    def forward(op, h, held, x):
        u = op("inp", x) + op("rec", held["h"]) + op("extra", x[..., :1])
        new = 0.5 * h["h"] + jnp.tanh(u)
        return {"h": new}, op("out", new)

    traced = dict.fromkeys(("inp", "rec", "extra"), ("h",))
    case = models.make(rng, forward, parts, {"h": jnp.zeros((3, 2))}, traced, x=(5,), batch=(3,))
    small = [name for name, size in (("rec", parts["rec"].value["weight"].size), ("extra", 2)) if size <= 4]
    factored = [c for c in traced if c not in small]
    assert "inp" in factored and "extra" not in factored
    expected = oracles.online(case.twin, case.xs, case.ys, decay=models.DECAY, factored=factored)
    got = run(se.Hybrid(decay=models.DECAY), case)[1]
    assert oracles.relative_error(got, total(expected.factored)) < TOLERANCE


def test_factors_are_small():
    case, _ = reference("rate")
    traces = start(se.ES_D_RTRL(), case).traces
    sizes = [leaf.size for leaf in jax.tree.leaves(traces)]
    assert max(sizes) <= 2 * max(models.N, models.INPUTS)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
@pytest.mark.parametrize("make", [se.ES_D_RTRL, se.Hybrid])
def test_decay_out_of_range(make, decay):
    with pytest.raises(ValueError, match="decay: expected 0 <= decay < 1"):
        make(decay=decay)
