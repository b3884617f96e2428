"""Gap junctions: the current by its formula, gradients by hand, on the worm with its chemical synapses."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from soak import ONLY

import sparse_etrace as se

STEPS, DECAY, LEAK = 6, 0.8, 0.85
CHEMICAL, ELECTRICAL = se.datasets.worm(), se.transform.remove_self_loops(se.datasets.worm("gap"))


class Worm(eqx.Module):
    rec: Any
    gap: Any
    out: Any

    def __call__(self, state, x):
        v = state["v"]
        v = LEAK * v + 0.1 * (self.rec(jnp.tanh(v)) + self.gap(v)) + x
        return {"v": v}, self.out(v)


def by_hand(op, h, held, x):
    v = h["v"]
    shared = op("gap", held["v"]) - op("leak", jnp.ones_like(v)) * v
    v = LEAK * v + 0.1 * (op("rec", jnp.tanh(held["v"])) + shared) + x
    return {"v": v}, op("out", v)


@pytest.fixture(scope="module")
def case():
    """Units of the worm around a hub, a model of them, its twin and a stream."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        near = se.transform.k_hop(ELECTRICAL, ["AVAL"], 1).nodes
        chemical, electrical = (se.transform.subgraph(graph, near) for graph in (CHEMICAL, ELECTRICAL))
        size = len(near)
        gap = se.GapJunctions(electrical.with_weight(0.2 * np.asarray(electrical.weight, float)))
        # A parameter may be negative: what conducts is its size.
        gap = eqx.tree_at(lambda g: g.param.value["weight"], gap, replace_fn=lambda w: w * rng.choice([-1, 1], w.shape))
        rec = se.SpMatMulOp(chemical).param(init=0.3 * rng.normal(size=chemical.connectivity.num_synapses))
        out = se.ETraceParam({"weight": rng.normal(size=(size, 2)) / np.sqrt(size)}, se.MatMulOp())
        model = Worm(rec, gap, out)
        conn = chemical.connectivity
        ends = np.asarray(conn.pre), np.asarray(conn.post)
        i, j = gap.junctions.T
        junctions = oracles.Op(
            lambda theta: {"weight": jnp.abs(theta["weight"])},
            lambda x, g: x @ jnp.zeros((size, size)).at[[*i, *j], [*j, *i]].add(jnp.tile(g["weight"], 2)),
        )
        values = {"rec": rec.value, "gap": gap.param.value, "out": out.value}
        ops = {"rec": oracles.sparse(*ends, (size, size)), "gap": junctions, "out": oracles.dense()}
        calls, traced = {"rec": "rec", "gap": "gap", "leak": "gap", "out": "out"}, ("v",)
        state = {"v": jnp.asarray(rng.normal(size=(2, size)))}
        twin = oracles.Twin(by_hand, values, ops, state, calls, dict.fromkeys(("rec", "gap", "leak"), traced))
        xs, ys = rng.normal(size=(STEPS, 2, size)), rng.normal(size=(STEPS, 2, 2))
        return model, twin, jnp.asarray(xs), jnp.asarray(ys)


def gradients(learner, case, chunk=2, cut=3):
    """In two calls, the carry going on, and windows of two steps."""
    model, twin, xs, ys = case
    carry, total = learner.init(model, twin.state, xs[0]), []
    for part in slice(cut), slice(cut, None):
        _, grads, carry = se.online_grad(learner, oracles.loss_fn, model, carry, xs[part], ys[part], chunk=chunk)
        total.append({"rec": grads.rec.value, "gap": grads.gap.param.value, "out": grads.out.value})
    return jax.tree.map(np.add, *total)


def backwards(case, held):
    """Backpropagation through the formula, neighbours' potentials as constants or not."""
    model, twin, xs, ys = case
    i, j = model.gap.junctions.T
    pre, post = (np.asarray(a) for a in (model.rec.op.connectivity.pre, model.rec.op.connectivity.post))

    def loss(values):
        def step(v, now):
            x, y = now
            g, sent = jnp.abs(values["gap"]["weight"]), held(v)
            shared = jnp.zeros_like(v).at[:, j].add(g * (sent[:, i] - v[:, j]))
            shared = shared.at[:, i].add(g * (sent[:, j] - v[:, i]))
            chemical = jnp.zeros_like(v).at[:, post].add(values["rec"]["weight"] * jnp.tanh(sent)[:, pre])
            v = LEAK * v + 0.1 * (chemical + shared) + x
            return v, oracles.loss_fn(v @ values["out"]["weight"], y)

        return jnp.sum(jax.lax.scan(step, twin.state["v"], (xs, ys))[1])

    return jax.jit(jax.grad(loss))(twin.values)


def test_d_rtrl_is_backpropagation_that_stops_at_neighbours(x64, case):
    expected = backwards(case, jax.lax.stop_gradient)
    assert oracles.nonzero(expected)
    assert oracles.relative_error(gradients(se.D_RTRL(), case), expected) < 1e-10
    # A junction's leak is a unit's own memory: without it in the Jacobian it is another gradient.
    assert oracles.relative_error(expected, backwards(case, lambda v: v)) > 1e-3


def test_es_d_rtrl_is_its_formula(x64, case):
    model, twin, xs, ys = case
    expected = oracles.online(twin, xs, ys, decay=DECAY)
    found = gradients(se.ES_D_RTRL(decay=DECAY), case)
    assert oracles.relative_error(found, jax.tree.map(lambda g: g.sum(0), expected.factored)) < 1e-10


@ONLY
def test_rtrl_is_backpropagation(x64, case):
    found = gradients(se.RTRL(), case, 3)
    assert oracles.relative_error(found, backwards(case, lambda v: v)) < 1e-10


def test_the_current_is_the_formula():
    run = jax.jit(lambda gap, v: gap(v))
    rng = np.random.default_rng(0)
    v, g = rng.normal(size=(3, 279)), np.asarray(ELECTRICAL.to_dense(), float)
    expected = np.einsum("ij,bij->bj", g, v[:, :, None] - v[:, None, :])
    gap = se.GapJunctions(ELECTRICAL)
    np.testing.assert_allclose(run(gap, v.astype(np.float32)), expected, atol=1e-4)
    assert gap.param.value["weight"].shape == (514,) and len(gap.junctions) == 514
    np.testing.assert_array_equal(g[tuple(gap.junctions.T)], gap.param.value["weight"])
    many = se.from_edges([0, 0, 1, 1], [1, 1, 0, 0], [1.0, 2.0, 1.0, 2.0])  # two junctions of one pair
    assert run(se.GapJunctions(many), np.array([1, 0], np.float32)).tolist() == [-3.0, 3.0]


@pytest.mark.parametrize(
    "graph, said",
    [
        (se.datasets.worm("gap"), "graph: expected junctions between two units, got one of 'RIBL' with itself"),
        (se.from_edges([0], [1]), "graph: expected each junction in both directions"),
        (se.from_edges([0, 1, 2], [1, 2, 0]), "graph: expected each junction in both directions"),
        (se.from_edges([0, 1], [1, 0], [1.0, 2.0]), "and one weight for both, got others"),
        (se.from_edges([0, 1], [1, 0], [-1.0, -1.0]), "graph: expected conductances >= 0 as weights, got -1.0"),
        (se.from_edges([0], [1], shape=(2, 3)), r"graph: expected a square one.*\(2, 3\)"),
    ],
)
def test_graphs_that_are_no_junctions(graph, said):
    with pytest.raises(ValueError, match=said):
        se.GapJunctions(graph)


def test_a_graph_is_asked_for():
    with pytest.raises(TypeError, match="graph: expected a Graph"):
        se.GapJunctions(ELECTRICAL.connectivity)
    with pytest.raises(TypeError, match="graph: expected an array with values, got a traced one"):
        jax.jit(se.GapJunctions)(ELECTRICAL)
