"""Influences by parameter: SnAp on nodes against masked dense RTRL, RTRL in blocks, and both under `Bridged`."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from models import run, start
from soak import few
from test_snap import by_window, random_wiring, wired, within

import sparse_etrace as se

TOLERANCE, VISIBLE = 1e-10, 1e-4
float64 = pytest.mark.usefixtures("x64")
NODES, FEATURES = 6, 2
ORDERS = ("matrix, spread", "spread, matrix")


def ring(rng, axis=-2):
    """Each node on the next one and on the one before."""
    i = np.repeat(np.arange(NODES), 2)
    j = (i - np.tile([1, -1], NODES)) % NODES
    j, i = (part[np.lexsort((j, i))] for part in (j, i))
    op = se.SpMatMulOp(se.Connectivity.from_edges(j, i, shape=(NODES, NODES)), axis=axis)
    return models.Part({"weight": models.array(rng, len(i))}, op, oracles.sparse(j, i, (NODES, NODES), axis=axis)), i


def on_graph(order, gates="c", batch=(2,)):
    """Units with features on nodes, whose matrices come before the synapses or after, with gates or a leak; targets."""
    rng = np.random.default_rng(len(order))
    spread, targets = ring(rng)
    calls = {"out": "out"} | {f"{part}_{g}": "spread" if part == "spread" else f"{part}_{g}"
                              for g in gates for part in ("inp", "rec", "spread")}  # fmt: skip

    def forward(op, h, held, x):
        def drive(gate, given):
            first, then = ("rec", "spread") if order == "matrix, spread" else ("spread", "rec")
            return op(f"inp_{gate}", x) + op(f"{then}_{gate}", op(f"{first}_{gate}", given))

        reset, update = 1.0, 0.4
        if gates != "c":
            reset, update = jax.nn.sigmoid(drive("r", h["h"])), jax.nn.sigmoid(drive("u", h["h"]))
        new = (1 - update) * h["h"] + update * jnp.tanh(drive("c", reset * h["h"]))
        return {"h": new}, op("out", new)

    parts = {f"inp_{g}": models.dense(rng, models.INPUTS, FEATURES) for g in gates}
    parts |= {f"rec_{g}": models.dense(rng, FEATURES, FEATURES, bias=False, scale=2.0) for g in gates}
    parts |= {"spread": spread, "out": models.dense(rng, FEATURES, models.OUTPUTS)}
    state, x, out = models._state(rng, batch, "h", shape=(NODES, FEATURES)), models.INPUTS, models.OUTPUTS
    case = models.make(rng, forward, parts, state, {}, calls, batch=batch, x=(NODES, x), out=(NODES, out), steps=6)
    return case, targets


@functools.cache
def shared_case():
    """One without batch axes, so that all tests share its programs."""
    with jax.enable_x64(True):
        return on_graph(ORDERS[0], batch=())


def on_ring(case, targets, hops, batch=2):
    """All of what all nodes share; of a synapse the nodes that are at most so many hops from its target."""
    after = (np.arange(NODES)[:, None] - targets) % NODES
    near = np.minimum(after, NODES - after) <= hops
    kept = jax.tree.map(lambda v: np.ones((batch * NODES * FEATURES, *v.shape), bool), case.twin.values)
    kept["spread"]["weight"] = np.tile(np.repeat(near, FEATURES, 0), (batch, 1))
    return kept


def two_by_two(grads):
    """Of windows of two steps, from those of steps."""
    return jax.tree.map(lambda g: g.reshape(-1, 2, *g.shape[1:]).sum(1), grads)


GRAPHS = [(order, gates, n) for order in ORDERS for gates in ("c", "ruc") for n in (1, 2, 3)]


@pytest.mark.parametrize("order, gates, n", few(GRAPHS, [(ORDERS[0], "c", 2)]))
@float64
def test_nodes_with_features(order, gates, n):
    """Masked dense RTRL, in windows and in split calls; one hop more or less is seen."""
    case, targets = on_graph(order, gates)
    got = by_window(se.SnAp(n=n, per="parameter"), case)
    for hops in (n - 2, n - 1, n):
        expected = oracles.near(case.twin, case.xs, case.ys, on_ring(case, targets, hops))
        error = oracles.relative_error(got, two_by_two(expected))
        assert error < TOLERANCE if hops == n - 1 else error > VISIBLE


@pytest.mark.parametrize("kind, n", few([("rate", 1), ("rate", 2), ("alif_v", 2), ("alif_v", 3)], [("rate", 2)]))
@float64
def test_units(kind, n):
    """Where nothing is shared a node is a unit with all its variables."""
    conn = random_wiring(6, 0.75, seed=2)
    case, units = wired(kind, conn, steps=4), np.arange(6)
    near, numbers = within(conn, n - 1), 2 * len(case.twin.state)
    target = {
        "inp": {"weight": np.tile(units, (models.INPUTS, 1)), "bias": units},
        "rec": {"weight": np.asarray(conn.post)},
        "out": jax.tree.map(lambda v: np.zeros(v.shape, int), case.twin.values["out"]),
    }
    kept = jax.tree.map(lambda post: np.tile(np.moveaxis(near[post], -1, 0), (numbers, *[1] * post.ndim)), target)
    expected = oracles.near(case.twin, case.xs, case.ys, kept)
    got = by_window(se.SnAp(n=n, per="parameter"), case)
    assert oracles.relative_error(got, two_by_two(expected)) < TOLERANCE


# Their units are mixed, or their ops do not say what they connect.
REFUSED = {"cut", "delay_buffer", "recurrent_lru", "synapse", "graph_conv_trained"}


@pytest.mark.parametrize(
    "kind", few([kind for kind in models.CORE + models.ELSEWHERE if kind not in REFUSED], ["tied"])
)
@float64
def test_all_hops_are_bptt(kind):
    case = models.in_float64(kind)
    learner = se.SnAp(n=None, per="parameter")
    _, before, carry = run(learner, case, 3, steps=slice(3))
    _, after, _ = run(learner, case, 3, carry, slice(3, 6))
    expected = oracles.bptt(case.twin, case.xs[:6], case.ys[:6])
    assert oracles.relative_error(jax.tree.map(np.add, before, after), expected) < TOLERANCE


@float64
def test_what_explain_says():
    """A shared matrix is exact at once, a synapse where its influence is complete."""
    case, _ = shared_case()

    def rules(n):
        rows = se.explain(se.SnAp(n=n, per="parameter"), case.model, case.twin.state, case.xs[0]).rows
        return {row.name: row.rule for row in rows}

    assert {name for name, rule in rules(2).items() if rule == "truncated"} == {"params['spread'].value['weight']"}
    assert set(rules(NODES).values()) == {"exact"}


@pytest.mark.parametrize(
    "learner", few([se.RTRL(), se.SnAp(n=NODES, per="parameter")], [se.SnAp(n=NODES, per="parameter")])
)
@float64
def test_bridged(learner):
    """At the diameter exact in windows of each length, and in split calls."""
    case, _ = shared_case()
    bridged = se.Bridged(2, learner)
    _, before, carry = run(bridged, case, 2, steps=slice(4))
    _, after, _ = run(bridged, case, 2, carry, slice(4, 6))
    expected = oracles.bptt(case.twin, case.xs, case.ys)
    assert oracles.relative_error(jax.tree.map(np.add, before, after), expected) < TOLERANCE


@pytest.mark.parametrize("kind", few(["gru_cell", "graph", "cut"], ["graph"]))
@float64
def test_blocks(kind):
    """One row or column at a time, several and all at once are the same: rows of batch elements, columns, rows."""
    case = shared_case()[0] if kind == "graph" else models.in_float64(kind)
    expected = oracles.bptt(case.twin, case.xs[:6], case.ys[:6])
    for workspace in (1, 20_000):
        assert (
            oracles.relative_error(run(se.RTRL(workspace=workspace), case, 2, steps=slice(6))[1], expected) < TOLERANCE
        )


@float64
def test_a_parameter_is_kept_once():
    """What many nodes use has one column, and synapses that no node has in common share one."""
    case, _ = shared_case()
    matrices = sum(leaf.size for name in ("inp_c", "rec_c") for leaf in jax.tree.leaves(case.twin.values[name]))
    assert start(se.RTRL(), case).traces.rows["h"].shape == (NODES, FEATURES, matrices + 2 * NODES)
    for n, columns in ((1, 2 * 2), (NODES, 2 * NODES)):
        traces = start(se.SnAp(n=n, per="parameter"), case).traces
        assert traces.rows["h"].shape[-1] == matrices + columns and (traces.shared is None) == (n == NODES)


@float64
def test_half_precision():
    """Sums over steps do not come to a stop in the type of the state."""
    case, _ = shared_case()
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, case.model)

    def gradient(model, dtype):
        state, xs, ys = jax.tree.map(lambda a: a.astype(dtype), (case.twin.state, case.xs, case.ys))
        learner = se.SnAp(n=2, per="parameter")
        carry = learner.init(model, state, xs[0])
        assert carry.traces.rows["h"].dtype == (jnp.float32 if dtype == jnp.bfloat16 else dtype)
        return case.read(se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys, 6)[1])

    assert oracles.relative_error(gradient(narrow, jnp.bfloat16), gradient(case.model, float)) < 0.1


def test_refusals():
    with pytest.raises(ValueError, match="per: expected 'use' or 'parameter', got 'node'"):
        se.SnAp(per="node")
    with pytest.raises(ValueError, match="pattern: expected None with per='parameter', which counts hops, got"):
        se.SnAp(per="parameter", pattern=np.eye(3))
    with pytest.raises(ValueError, match="model: expected state that acts on state through ops alone, got se.cut at"):
        start(se.SnAp(per="parameter"), models.build("cut"))
    case, few, more = models.build("rate"), *(se.SnAp(n=n, per="parameter") for n in (1, 2))
    with pytest.raises(ValueError, match="model: the derivative of all state by all .* more than max_influences=9"):
        start(se.SnAp(per="parameter", max_influences=9), case)
    for learner in (more, se.RTRL()):
        with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
            run(learner, case, carry=start(few, case))
