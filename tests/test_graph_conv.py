"""Graph convolutions, gated synapses and edges that come with the input, against dense matrices."""

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
import scipy.sparse as sp
from soak import few

import sparse_etrace as se

NODES, F_IN, F_OUT = 5, 2, 3
pytestmark = pytest.mark.usefixtures("x64")


def matrices(count, rng):
    return [sp.random_array((NODES, NODES), density=0.4, rng=rng) for _ in range(count)]


@pytest.mark.parametrize("coef", few([None, "given", "input", "trained"], ["given", "trained"]))
def test_graph_conv_is_a_sum_of_products(coef):
    rng = np.random.default_rng(0)
    supports = matrices(2, rng)
    graphs = [se.from_scipy(a, dtype=float) for a in supports]
    count = sum(g.connectivity.num_synapses for g in graphs)
    c = np.concatenate([g.weight for g in graphs]) if coef is None else rng.normal(size=count)
    op = se.GraphConvOp(graphs, c if coef == "given" else coef, bias=True)
    param = op.param(jax.random.key(0), F_IN, F_OUT)
    value = {**param.value, "bias": jnp.asarray(rng.normal(size=F_OUT))} | ({"coef": c} if coef == "trained" else {})
    x = jnp.asarray(rng.normal(size=(2, 4, NODES, F_IN)))
    parts = np.split(c, [graphs[0].connectivity.num_synapses])
    dense = [np.asarray(g.to_dense(part)) for g, part in zip(graphs, parts, strict=True)]
    w = value["weight"]
    expected = sum(np.einsum("ji,...jf,fo->...io", a, x, w[k]) for k, a in enumerate(dense)) + value["bias"]
    given = (x, jnp.asarray(c)) if coef == "input" else x
    np.testing.assert_allclose(se.ETraceParam(value, op)(given), expected, rtol=0, atol=1e-12)
    se.check_op(op, jax.tree.map(jnp.asarray, value), given)


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_gate_multiplies_what_a_synapse_reads(axis):
    rng = np.random.default_rng(1)
    graph = se.from_scipy(matrices(1, rng)[0])
    op = se.SpMatMulOp(graph, axis=axis, gated=True)
    w, gate = (jnp.asarray(rng.normal(size=(*batch, op.num_weights))) for batch in ((), (3,)))
    x = jnp.asarray(rng.normal(size=(3, NODES, *[F_IN] * (axis == -2))))
    full = jnp.stack([graph.to_dense(w * g) for g in gate])
    got = se.ETraceParam({"weight": w}, op)((x, gate))
    np.testing.assert_allclose(got, jnp.einsum("bj...,bji->bi...", x, full), rtol=0, atol=1e-12)
    se.check_op(op, {"weight": w}, (x, gate))


def test_a_matrix_is_one_support_and_gates_may_be_for_all():
    a = matrices(1, np.random.default_rng(2))[0]
    x, w = jnp.ones((NODES, F_IN)), jnp.ones((1, F_IN, F_OUT))
    one = se.ETraceParam({"weight": w}, se.GraphConvOp(a))(x)
    assert jnp.array_equal(one, se.ETraceParam({"weight": w}, se.GraphConvOp([se.from_scipy(a)]))(x))
    ones = se.ETraceParam({"weight": w}, se.GraphConvOp(se.from_scipy(a).connectivity))(x)
    np.testing.assert_allclose(ones[:, 0], F_IN * (a.toarray() != 0).sum(0))


GRAPH = se.from_edges([0, 1, 2], [1, 2, 0])
REFUSED = {
    "no supports": (lambda: se.GraphConvOp([]), "supports: expected one or more of one shape"),
    "two shapes": (lambda: se.GraphConvOp([GRAPH, se.from_edges([0], [1])]), "supports: expected one or more"),
    "no word": (lambda: se.GraphConvOp(GRAPH, "learned"), "coef: expected None, an array, 'input' or 'trained'"),
    "coef": (lambda: se.GraphConvOp(GRAPH, np.ones(2)), r"coef: expected shape \(3,\)"),
    "keys": (lambda: call({"weight": jnp.ones((1, 2, 2)), "coef": jnp.ones(3)}), "value: expected a dictionary"),
    "weight": (lambda: call({"weight": jnp.ones((2, 2, 2))}), r"value\['weight'\]: expected shape \(1, f_in, f_out\)"),
    "trained": (lambda: call({"weight": jnp.ones((1, 2, 2)), "coef": jnp.ones(2)}, "trained"), r"value\['coef'\]"),
    "nodes": (lambda: call({"weight": jnp.ones((1, 2, 2))}, x=jnp.ones((4, 2))), "x: expected 3 presynaptic units"),
    "nodes, trained": (
        lambda: call({"weight": jnp.ones((1, 2, 2)), "coef": jnp.ones(3)}, "trained", jnp.ones((4, 2))),
        "x: expected 3 presynaptic units",
    ),
    "no coef": (lambda: call({"weight": jnp.ones((1, 2, 2))}, "input"), r"x: expected a pair, \(x, coef\)"),
    "no gate": (lambda: se.SpMatMulOp(GRAPH, gated=True).param(jax.random.key(0))(jnp.ones(3)), r"\(x, gate\)"),
    "spread": (lambda: se.spread(jnp.ones(3), [0], [1], [1.0]), "x, pre, post, weight: expected"),
    "spread's integers": (lambda: se.spread(jnp.ones((3, 1)), [0.0], [1], [1.0]), "pre and post of integers"),
    "influences": (
        lambda: se.GraphConvOp(GRAPH, "trained").synapses({}, None),
        "products of two weights on a synapse",
    ),
}  # fmt: skip


def call(value, coef=None, x=None):
    return se.ETraceParam(value, se.GraphConvOp(GRAPH, coef))(jnp.ones((3, 2)) if x is None else x)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, match = REFUSED[name]
    with pytest.raises((ValueError, NotImplementedError), match=match):
        make()


def test_spread_reads_no_node_for_padding():
    """Not even one that is not finite, nor beyond what 8 bits count."""
    x = jnp.zeros((300, 1)).at[299].set(jnp.nan).at[7].set(2.0)
    y = se.spread(x, jnp.array([7, -1, 127], jnp.int8), jnp.array([3, 4, -1], jnp.int8), jnp.ones(3))
    assert y.shape == (300, 1) and y[3] == 2 and jnp.sum(jnp.abs(y)) == 2
    assert jnp.sum(jax.grad(lambda x: jnp.sum(se.spread(x, [300], [0], [1.0])))(x)) == 0


def test_spread_drops_padding():
    x = jnp.arange(6.0).reshape(3, 2)
    y = se.spread(x, [0, 1, 2, 1, 1, 3, -1], [1, 3, 0, 1, -1, 0, 1], [2.0, 5.0, 1.0, 0.0, 7.0, 1.0, 1.0])
    assert y.tolist() == [[4.0, 5.0], [0.0, 2.0], [0.0, 0.0]]


class Moving(eqx.Module):
    """Nodes that gather along edges of each step: a matrix before and one behind, and the memory of a unit."""

    before: se.ETraceParam
    behind: se.ETraceParam

    def __call__(self, h, x):
        u, pre, post, weight = x
        near = se.spread(self.before(h), pre, post, weight)
        h = 0.6 * h + 0.4 * jnp.tanh(u + self.behind(near))
        return h, jnp.sin(h)


@pytest.fixture(scope="module")
def moving():
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        before, behind = (se.MatMulOp().param(None, F_IN, F_IN, init=rng.normal(size=(F_IN, F_IN))) for _ in range(2))
        ends = [jnp.asarray(rng.integers(0, NODES + 1, (4, 8))) for _ in range(2)]
        xs = (jnp.asarray(rng.normal(size=(4, NODES, F_IN))), *ends, jnp.asarray(rng.normal(size=(4, 8))))
        return Moving(before, behind), xs, jnp.asarray(rng.normal(size=(4, NODES, F_IN)))


def by_bptt(model, xs, ys, hold=lambda h: h):
    """Dense matrices of each step; `hold` says what of the old state passes through them."""

    def total(before, behind):
        h, loss = jnp.zeros((NODES, F_IN)), 0.0
        for (u, pre, post, weight), y in zip(zip(*xs, strict=True), ys, strict=True):
            a = jnp.zeros((NODES + 1, NODES + 1)).at[pre, post].add(weight)[:-1, :-1]
            near = hold(a.T @ (hold(h) @ before))
            h = 0.6 * h + 0.4 * jnp.tanh(u + near @ behind)
            loss += oracles.loss_fn(jnp.sin(h), y)
        return loss

    return jax.grad(total, (0, 1))(model.before.value["weight"], model.behind.value["weight"])


def learned(learner, model, xs, ys):
    """In two calls of windows of two steps."""
    start = jax.tree.map(lambda a: a[0], xs)
    carry, grads = learner.init(model, jnp.zeros((NODES, F_IN)), start), []
    for part in (slice(2), slice(2, 4)):
        x, y = jax.tree.map(lambda a, part=part: a[part], (xs, ys))
        _, g, carry = se.online_grad(learner, oracles.loss_fn, model, carry, x, y, chunk=2)
        grads.append((g.before.value["weight"], g.behind.value["weight"]))
    return jax.tree.map(jnp.add, *grads)


def test_edges_of_each_step_under_rtrl(moving):
    for a, b in zip(learned(se.RTRL(), *moving), by_bptt(*moving), strict=True):
        assert oracles.relative_error(a, b) < 1e-10


@pytest.mark.filterwarnings("ignore:.*same step only")
def test_edges_of_each_step_under_d_rtrl(moving):
    """A matrix on what was gathered has its trace, what is before it learns within the step."""
    got = learned(se.D_RTRL(), *moving)
    assert oracles.relative_error(got[1], by_bptt(*moving, jax.lax.stop_gradient)[1]) < 1e-10
    report = str(se.explain(se.D_RTRL(), moving[0], jnp.zeros((NODES, F_IN)), jax.tree.map(lambda a: a[0], moving[1])))
    assert "same-step only" in report


@pytest.mark.parametrize("kind", ["graph_conv_input"])
def test_coefficients_of_each_step(kind):
    """The rule's own traces by the dense model with stopped gradients, in windows of three steps."""
    case = models.in_float64(kind)
    expected = oracles.stop_gradient_twin(case.twin, case.xs, case.ys)
    assert oracles.relative_error(models.run(se.D_RTRL(), case, 3)[1], expected) < 1e-10
