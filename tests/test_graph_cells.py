"""Cells on nodes x features: against dense matrices, and their gradients.

And against PyTorch Geometric Temporal: tests/benchmarks/pyg_temporal.py made its numbers.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import sparse_etrace as se
from sparse_etrace.cells.graph import GraphAttention, GraphGRU, GraphRNN

NODES, FEATURES, HIDDEN, STEPS = 5, 2, 3, 4
KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
A = np.where(RNG.random((NODES, NODES)) < 0.4, RNG.integers(4, 12, (NODES, NODES)) / 8, 0)
A[3], A[:, 3] = 0, 0  # a node without edges
GRAPH = se.from_dense(A)


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def conv(param, supports):
    """A parameter by dense matrices."""
    w, b = param.value["weight"], param.value.get("bias", 0.0)
    if w.ndim == 2:
        return lambda x: x @ w + b
    return lambda x: sum(a.T @ x @ w[k] for k, a in enumerate(supports)) + b


def drawn(cell):
    """Other numbers, biases included."""
    leaves, layout = jax.tree.flatten(eqx.filter(cell, se.trainable(cell)))
    new = [jnp.asarray(0.5 * np.random.default_rng(k).normal(size=leaf.shape)) for k, leaf in enumerate(leaves)]
    return eqx.combine(jax.tree.unflatten(layout, new), cell)


def walk(a):
    degree = a.sum(1, keepdims=True)
    return np.where(degree > 0, a / np.where(degree > 0, degree, 1), 0)


def gcn():
    a = A + np.diag(np.where(np.diag(A) == 0, 1, 0))
    root = np.diag(a.sum(0) ** -0.5)
    return [root @ a @ root]


def chebyshev():
    a, eye = A - np.diag(np.diag(A)), np.eye(NODES)
    root = np.diag(np.where(a.sum(1) > 0, np.where(a.sum(1) > 0, a.sum(1), 1) ** -0.5, 0))
    scaled = (eye - root @ a @ root) - eye
    return [eye, scaled, 2 * scaled @ scaled - eye]


def diffusion():
    out, into = walk(A), walk(A.T)
    return [np.eye(NODES), out, out @ out, into, into @ into]


MADE = {
    "rnn": (lambda: GraphRNN.of(GRAPH, FEATURES, HIDDEN, key=KEY, decay=0.7), lambda: [A]),
    "tgcn": (lambda: GraphGRU.tgcn(GRAPH, FEATURES, HIDDEN, key=KEY), gcn),
    "gconv_gru": (lambda: GraphGRU.gconv_gru(GRAPH, FEATURES, HIDDEN, key=KEY, order=3), chebyshev),
    "dcrnn": (lambda: GraphGRU.dcrnn(GRAPH, FEATURES, HIDDEN, key=KEY, steps=2), diffusion),
    "before": (lambda: GraphGRU.of([GRAPH], FEATURES, HIDDEN, key=KEY, reset="before"), lambda: [A]),
    "attention": (lambda: GraphAttention.of(GRAPH, FEATURES, HIDDEN, key=KEY), lambda: None),
}


def step_of(cell, supports, h, x, hold=lambda h: h):
    """The equations; `hold` is what parameters read of the old state."""
    p = {name: conv(part, supports) for name, part in vars(cell).items() if isinstance(part, se.ETraceParam)}
    if isinstance(cell, GraphRNN):
        return 0.7 * h + 0.3 * jnp.tanh(p["inp"](x) + p["rec"](hold(h)))
    if isinstance(cell, GraphAttention):
        score = p["query"](hold(h)) @ p["key"](hold(h)).T / HIDDEN**0.5  # [receiver, sender]
        weight = jnp.where(A.T != 0, jnp.exp(score), 0)
        total = weight.sum(1, keepdims=True)
        m = hold(jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0) @ p["value"](hold(h)))
        u = sigmoid(p["inp_u"](x) + p["rec_u"](m) + p["own_u"](hold(h)))
        return u * h + (1 - u) * jnp.tanh(p["inp_c"](x) + p["rec_c"](m))
    r, u = (sigmoid(p[f"inp_{g}"](x) + p[f"rec_{g}"](hold(h))) for g in "ru")
    heard = r * p["rec_c"](hold(h)) if cell.reset == "after" else p["rec_c"](r * h)
    return u * h + (1 - u) * jnp.tanh(p["inp_c"](x) + heard)


@pytest.mark.parametrize("name", MADE)
def test_equations(name):
    make, supports = MADE[name]
    cell, xs = drawn(make()), jnp.asarray(np.random.default_rng(1).normal(size=(2, NODES, FEATURES)))
    h = jnp.zeros((NODES, HIDDEN))
    assert cell.init_state(7).shape == (7, NODES, HIDDEN)
    for x in xs:
        new, out = cell(jnp.stack([h, 2 * h]), jnp.stack([x, x]))
        h = step_of(cell, supports(), h, x)
        np.testing.assert_allclose(new[0], h, rtol=0, atol=1e-12)
        assert out is new


STORED = dict(np.load(Path(__file__).with_name("pyg_temporal.npz")))


@pytest.mark.parametrize("name", ["tgcn", "gconv_gru", "dcrnn"])
@pytest.mark.parametrize("order", ["", "_shuffled"])
def test_weights_of_pytorch_geometric_temporal(name, order):
    weights = {key.split("/")[1]: w for key, w in STORED.items() if key.startswith(f"{name}/")}
    edges = STORED["shuffled"] if order else slice(None)
    made = getattr(GraphGRU, f"from_{name}")
    cell = made(weights, STORED["edge_index"][:, edges], STORED["edge_weight"][edges], nodes=6)
    h = cell.init_state()
    for x, expected in zip(STORED["xs"], STORED[name + order], strict=True):
        h, _ = cell(h, jnp.asarray(x))
        np.testing.assert_allclose(h, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gconv_gru", "attention"])
@pytest.mark.filterwarnings("ignore:.*same step only")
def test_d_rtrl(name):
    """Parameters with a trace, by reverse mode whose memory passes through no parameter; in windows, in two calls."""
    make, supports = MADE[name]
    cell, rng, stop = drawn(make()), np.random.default_rng(2), jax.lax.stop_gradient
    xs, ys = (jnp.asarray(rng.normal(size=(STEPS, NODES, k))) for k in (FEATURES, HIDDEN))
    learner = se.D_RTRL()
    carry, found = learner.init(cell, cell.init_state(), xs[0]), []
    for part in (slice(2), slice(2, STEPS)):
        _, grads, carry = se.online_grad(learner, oracles.loss_fn, cell, carry, xs[part], ys[part], chunk=2)
        found.append(grads)
    trained, rest = eqx.partition(cell, se.trainable(cell))

    def total(trained):
        h, loss, cell = jnp.zeros((NODES, HIDDEN)), 0.0, eqx.combine(trained, rest)
        for x, y in zip(xs, ys, strict=True):
            h = step_of(cell, supports(), h, x, stop)
            loss += oracles.loss_fn(h, y)
        return loss

    expected = jax.jit(jax.grad(total))(trained)
    for key, part in vars(expected).items():
        if key.startswith(("inp", "rec", "own")):
            got = [getattr(g, key).value for g in found]
            assert oracles.relative_error(jax.tree.map(jnp.add, *got), part.value) < 1e-10, key


def test_refused():
    with pytest.raises(ValueError, match="reset: expected 'after' or 'before'"):
        GraphGRU.of(GRAPH, FEATURES, HIDDEN, key=KEY, reset="never")
    with pytest.raises(ValueError, match=r"graph: expected a square one, .* got shape \(2, 3\)"):
        GraphAttention.of(se.from_edges([0, 1], [1, 2], shape=(2, 3)), FEATURES, HIDDEN, key=KEY)
