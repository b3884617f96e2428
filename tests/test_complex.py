"""Complex weights, elementwise parameters and inputs; and the linear recurrent units made of them."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from models import INPUTS, N, run
from soak import few

import sparse_etrace as se

TOLERANCE = 1e-10
pytestmark = pytest.mark.usefixtures("x64")


def ring(n, **rest):
    return se.cells.LRU.ring(jax.random.key(1), n, **rest)


# --- the cell --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equations(batch, scale):
    rng = np.random.default_rng(3)
    w, lam = rng.normal(size=(2, INPUTS, N)), 0.9 * np.exp(1j * rng.normal(size=N))
    inp = se.ETraceParam({"weight": w[0] + 1j * w[1]}, se.MatMulOp())
    cell = se.cells.LRU(N, inp, lam, scale)
    state, h = cell.init_state(*batch), np.zeros((*batch, N))
    assert [leaf.shape for leaf in state] == [h.shape] * 2 and not any(map(np.any, state))
    for x in rng.normal(size=(5, *batch, INPUTS)):
        state, out = cell(state, jnp.asarray(x))
        h = lam * h + (np.sqrt(1 - 0.81) if scale is None else scale) * (x @ (w[0] + 1j * w[1]))
        np.testing.assert_allclose(out, np.concatenate([h.real, h.imag], -1), atol=1e-12)
        np.testing.assert_allclose(state, (h.real, h.imag), atol=1e-12)
    assert not any(map(np.any, jax.tree.leaves(eqx.filter(se.trainable(cell).eigenvalue, eqx.is_array))))


def test_ring():
    """Moduli are uniform by area, angles up to the phase; a unit at the edge has a finite gradient."""
    lam = np.asarray(ring(100_000, low=0.5, high=0.9, phase=2.0)())
    area = (np.abs(lam) ** 2 - 0.25) / (0.81 - 0.25)
    for share in area, np.angle(lam) / 2.0:
        np.testing.assert_allclose(np.quantile(share, np.linspace(0, 1, 11)), np.linspace(0, 1, 11), atol=0.01)
    edge = eqx.tree_at(lambda p: p.value["nu"], ring(2), jnp.array([-50.0, 0.0]))
    cell = se.cells.LRU(2, se.ETraceParam({"weight": jnp.ones((1, 2))}, se.MatMulOp()), edge)
    grads = eqx.filter_grad(lambda cell: jnp.sum(cell(cell.init_state(), jnp.ones(1))[1]))(cell)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("given", [1.1, [0.5, 0.8 + 0.7j], np.nan])
def test_eigenvalues_out_of_range(given):
    message = f"eigenvalue: expected numbers of modulus 1 at most, got {given}. To train it, give LRU.ring(key, units)."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        se.cells.LRU(2, se.ETraceParam({"weight": jnp.ones((1, 2))}, se.MatMulOp()), given)


@pytest.mark.parametrize("given", [{"low": 0.9, "high": 0.9}, {"high": 1.1}, {"low": -0.1}, {"phase": 0.0}])
def test_no_ring(given):
    with pytest.raises(ValueError, match="low, high, phase: expected 0 <= low < high <= 1 and phase > 0, got"):
        ring(3, **given)


# --- gradients against backpropagation through time ------------------------------------------------------------------


class Layer(eqx.Module):
    cell: se.cells.LRU
    out: se.ETraceParam

    def __call__(self, state, x):
        state, h = self.cell(state, x)
        return state, self.out(h)


class Wave(eqx.Module):
    """Real weights meet a complex input, and what comes out acts by its phase."""

    inp: se.ETraceParam
    gain: se.ETraceParam

    def __call__(self, h, x):
        y = self.inp(x * (1 + 2j)) * jnp.exp(1j * h) * jnp.conj(self.gain())
        h = 0.7 * h + y.real - 0.3 * y.imag**2
        return h, h


OPS = {
    "dense": lambda rng: models.dense(rng, INPUTS, N),
    "sparse": lambda rng: models.sparse(rng, INPUTS, N),
    "tied": lambda rng: models.sparse(rng, INPUTS, N, tie=True),
    "lora": lambda rng: models.lora(rng, INPUTS, N),
    "masked": lambda rng: models.dense(rng, INPUTS, N, mask=True),
}


def complex_values(rng, part):
    return se.ETraceParam(models.turned(rng, part).value, part.op)


def layer(rng, op):
    cell = se.cells.LRU(N, complex_values(rng, OPS[op](rng)), ring(N, low=0.3, high=0.95))
    return Layer(cell, models.dense(rng, 2 * N, 2).param()), cell.init_state(2)


def wave(rng, op):
    gain = se.ElemWiseParam(models.array(rng, N) + 1j * models.array(rng, N), lambda w: w * jnp.abs(w))
    return Wave(OPS[op](rng).param(), gain), models.array(rng, 2, N, scale=0.3)


def gradients(learner, model, state, chunk):
    rng = np.random.default_rng(5)
    xs, ys = models.array(rng, 7, 2, INPUTS), models.array(rng, 7, 2, 1)
    found, carry = [], learner.init(model, state, xs[0])
    for part in (slice(0, 4), slice(4, 7)) if chunk else [slice(0, 7)]:
        *_, grads, carry = se.online_grad(learner, oracles.loss_fn, model, carry, xs[part], ys[part], chunk=chunk)
        found.append(grads)
    return jax.tree.map(lambda *g: sum(g), *found)


GRID = [(make, op, learner) for make in (layer, wave) for op in OPS for learner in (se.D_RTRL(), se.RTRL(), se.SnAp(2))]
CHOSEN = [GRID[15 + 9]]


@pytest.mark.parametrize("make, op, learner", few(GRID, CHOSEN), ids=lambda v: getattr(v, "__name__", str(v)))
def test_one_layer_is_exact(make, op, learner):
    model, state = make(np.random.default_rng(2), op)
    got, expected = gradients(learner, model, state, 3), gradients(se.BPTT(), model, state, None)
    assert oracles.nonzero(expected)
    assert oracles.relative_error(got, expected) < TOLERANCE


def test_narrow_traces_stay_complex():
    model, state = layer(np.random.default_rng(2), "dense")
    for learner in se.D_RTRL, se.ES_D_RTRL:
        for narrow, dtype in (jnp.bfloat16, "complex64"), (jnp.float64, "complex128"):
            carry = learner(trace_dtype=narrow).init(model, state, jnp.ones((2, INPUTS)))
            kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(carry.traces)} - {"int32"}
            assert dtype in kinds and not any(kind.startswith("complex") for kind in kinds - {dtype})
    got, expected = (
        gradients(se.D_RTRL(trace_dtype=jnp.bfloat16), model, state, 3),
        gradients(se.BPTT(), model, state, None),
    )
    assert 0 < oracles.relative_error(got, expected) < 1e-6


def test_influences_through_a_complex_op_are_refused():
    case = models.in_float64("recurrent_lru")
    message = r"the input of the op called at .* complex\. Influences pass through real ops: split it into two"
    with pytest.raises(ValueError, match=message):
        run(se.SnAp(2), case)


def test_alignment_sees_both_parts():
    """The cosine of a complex leaf is that of its real and imaginary parts, one after the other."""
    case = models.in_float64("recurrent_lru")
    fixed = {"model": case.model, "state": case.twin.state, "xs": case.xs, "ys": case.ys}
    found = se.gradient_alignment(se.D_RTRL(), oracles.loss_fn, **fixed)
    own, exact = (run(learner, case)[1]["rec"]["weight"] for learner in (se.D_RTRL(), se.BPTT()))
    a, b = (np.concatenate([np.real(g), np.imag(g)]) for g in (own, exact))
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    at = found.names.index("params['rec'].value['weight']")
    np.testing.assert_allclose(found.cosine[0, at], cosine, rtol=1e-10)
    assert cosine < 0.999
