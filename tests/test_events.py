"""Events that touch some nodes of many, learned exactly through every earlier event."""

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import oracles
import pytest
from soak import few

import sparse_etrace as se

pytestmark = pytest.mark.usefixtures("x64")
NODES, FEATURES, EVENTS = 20, 3, 200


class Meeting(eqx.Module):
    """Two nodes meet: each gated by what it was, what the other one was, and the feature of the event."""

    gate: se.ETraceParam
    new: se.ETraceParam
    out: se.ETraceParam
    is_cut: bool = False

    def __call__(self, state, x):
        h, pace = state["h"], state["pace"]
        other = se.cut(lambda h: h[..., ::-1, :])(h) if self.is_cut else h[..., ::-1, :]
        seen = jnp.concatenate([h, other, x], axis=-1)
        g = jax.nn.sigmoid(self.gate(seen))
        h = g * h + (1 - g) * jnp.tanh(pace * self.new(seen))
        return {"clock": state["clock"] + 1, "h": h, "pace": pace}, self.out(h)


class Leaky(eqx.Module):
    """Nodes that forget what they got, and are read together."""

    new: se.ETraceParam

    def __call__(self, state, x):
        h = 0.8 * state["h"] + self.new(x)
        return {**state, "clock": state["clock"] + 1, "h": h}, jnp.tanh(h) * h[..., ::-1, :]


def state(count=NODES):
    """A row for each node, and what all share: a clock, and a number for each feature."""
    return {"clock": jnp.zeros(()), "h": jnp.zeros((count, FEATURES)), "pace": jnp.linspace(0.5, 1.5, FEATURES)}


def param(rng, *shape):
    return se.ETraceParam({"weight": models.array(rng, *shape), "bias": models.array(rng, shape[1])}, se.MatMulOp())


def meetings(rng, *events, nodes=NODES):
    """Events of two different nodes each, several in a step different as well."""
    steps, *at_once = events
    chosen = [rng.permutation(nodes)[: 2 * int(np.prod(at_once, dtype=int))] for _ in range(steps)]
    nodes = jnp.asarray(chosen).reshape(*events, 2)
    return nodes, models.array(rng, *events, 2, 1), models.array(rng, *events, 2, 1)


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = Meeting(*(param(rng, 2 * FEATURES + 1, FEATURES) for _ in range(2)), param(rng, FEATURES, 1))
        return model, *meetings(rng, EVENTS)


def by_bptt(model, nodes, xs, ys):
    """All events at once in reverse mode, with the rows read and written by hand."""

    def total(model):
        def one(h, event):
            who, x, y = event
            new, out = model({**state(0), "h": h[who]}, x)
            return h.at[who].set(new["h"]), oracles.loss_fn(out, y)

        return jnp.sum(jax.lax.scan(one, state()["h"], (nodes, xs, ys))[1])

    return jax.tree.leaves(eqx.filter(jax.grad(total, allow_int=True)(model), eqx.is_inexact_array))


def by_events(rule, stream, *calls, chunk=None, forget=False):
    """Summed gradient over calls of so many events each, and the carry after them."""
    model, nodes, xs, ys = stream
    learner, at, total = se.Events(rule, NODES), 0, []
    carry = start = learner.init(model, state(), (nodes[0], xs[0]))
    for count in calls or (len(ys),):
        part = slice(at, at + count)
        _, grads, carry = se.online_grad(
            learner, oracles.loss_fn, model, carry, (nodes[part], xs[part]), ys[part], chunk=chunk
        )
        total.append(jax.tree.leaves(eqx.filter(grads, eqx.is_inexact_array)))
        at += count
        if forget:
            carry = eqx.tree_at(lambda c: c.traces, carry, start.traces)
    assert carry.state["h"].shape[0] == NODES and carry.state["clock"] == at
    return [sum(leaves) for leaves in zip(*total, strict=True)], carry


EXACT = [se.RTRL(), se.Bridged(5, se.RTRL())]


@pytest.mark.parametrize("rule", few(EXACT, EXACT[:1]), ids=["RTRL", "Bridged"])
def test_exact_through_every_earlier_event(rule, stream):
    expected = by_bptt(*stream)
    assert oracles.relative_error(by_events(rule, stream, *[50] * 4)[0], expected) < 1e-10
    assert oracles.relative_error(by_events(rule, stream, *[50] * 4, forget=True)[0], expected) > 1e-2


def test_windows_over_events(stream):
    """BPTT and bridged windows know all ways between the events of a window, D-RTRL's rows what is before it."""
    model, *events = stream
    events = [part[:24] for part in events]
    expected = by_bptt(model, *events)
    for rule in se.BPTT(), se.Bridged(24):
        assert oracles.relative_error(by_events(rule, (model, *events))[0], expected) < 1e-10
    part = oracles.relative_error(by_events(se.Bridged(12), (model, *events))[0], expected)
    assert 1e-3 < part < oracles.relative_error(by_events(se.D_RTRL(), (model, *events))[0], expected)


ROWS = [se.D_RTRL(), se.Bridged(5)]


@pytest.mark.parametrize("rule", few(ROWS, ROWS[1:]), ids=repr)
def test_exact_where_the_rule_of_a_row_is(rule, stream):
    _, nodes, xs, ys = (part if k == 0 else part[:30] for k, part in enumerate(stream))
    stream = (Leaky(param(np.random.default_rng(3), 1, FEATURES)), nodes, xs, jnp.tile(ys, FEATURES))
    assert oracles.relative_error(by_events(rule, stream, 15, 15)[0], by_bptt(*stream)) < 1e-10
    assert oracles.relative_error(by_events(rule, stream, 15, 15, forget=True)[0], by_bptt(*stream)) > 1e-3


@pytest.mark.parametrize("rule", few(EXACT, EXACT[1:]), ids=["RTRL", "Bridged"])
def test_several_events_at_once(rule):
    rng = np.random.default_rng(2)
    model = Meeting(*(param(rng, 2 * FEATURES + 1, FEATURES) for _ in range(2)), param(rng, FEATURES, 1))
    stream = (model, *meetings(rng, 20, 3))
    assert oracles.relative_error(by_events(rule, stream, 10, 10)[0], by_bptt(*stream)) < 1e-10


TRACES = [se.D_RTRL(), se.ES_D_RTRL(0.5), se.SnAp(2)]


@pytest.mark.parametrize("rule", few(TRACES, TRACES[1:]), ids=repr)
def test_traces_of_synapses_go_with_their_rows(rule, stream):
    """Where nodes meet nobody, events in any order are as many sequences as there are nodes."""
    model, _, xs, ys = stream
    model = eqx.tree_at(lambda m: m.is_cut, model, True)
    nodes = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], 8))
    xs, ys, expected = xs[: len(nodes), :1], ys[: len(nodes), :1], None
    for node in range(3):
        carry = rule.init(model, state(1), xs[0])
        grads = se.online_grad(rule, oracles.loss_fn, model, carry, xs[nodes == node], ys[nodes == node])[1]
        expected = grads if expected is None else jax.tree.map(np.add, expected, grads)
    found = by_events(rule, (model, jnp.asarray(nodes)[:, None], xs, ys), 6, 18)[0]
    assert oracles.relative_error(found, jax.tree.leaves(expected)) < 1e-10


def test_nobody(stream):
    """An event with room for more nodes than it has."""
    model, nodes, xs, ys = stream
    wide = jnp.full((EVENTS, 2, 2), NODES).at[:, 0].set(nodes)
    widened = [jnp.stack([part, jnp.ones_like(part)], 1) for part in (xs, ys)]

    def masked(model, state, x):
        new, out = model(state, x)
        return new, out * jnp.array([1.0, 0.0])[:, None, None] + jnp.array([0.0, 1.0])[:, None, None]

    class Masked(eqx.Module):
        inner: Meeting

        def __call__(self, state, x):
            return masked(self.inner, state, x)

    found, carry = by_events(se.Bridged(5, se.RTRL()), (Masked(model), wide, *widened), 100, 100)
    assert oracles.relative_error(found, by_bptt(*stream)) < 1e-10
    assert jnp.all(jnp.isfinite(carry.state["h"]))


def test_by_steps_and_by_fit(stream):
    model, nodes, xs, ys = (part if k == 0 else part[:4] for k, part in enumerate(stream))
    learner = se.Events(se.RTRL(), NODES)
    carry = start = learner.init(model, state(), (nodes[0], xs[0]))
    total = None
    for event in zip(nodes, xs, ys, strict=True):

        def loss(model, carry, who, x, y):
            carry, out = learner.step(model, carry, (who, x))
            return oracles.loss_fn(out, y), carry

        grads, carry = eqx.filter_grad(loss, has_aux=True)(model, carry, *event)
        total = grads if total is None else jax.tree.map(np.add, total, grads)
    assert oracles.relative_error(jax.tree.leaves(total), by_bptt(model, nodes, xs, ys)) < 1e-10
    options = {"state": state(), "progress": False, "validation": ((nodes, xs), ys), "carry": True}
    result = se.fit(learner, oracles.loss_fn, optax.sgd(0.0), model, [((nodes, xs), ys)], **options)
    again = se.online_grad(learner, oracles.loss_fn, model, start, (nodes, xs), ys)[0]
    np.testing.assert_allclose(result.metrics["loss"][0], jnp.mean(again))
    np.testing.assert_allclose(result.metrics["validation_loss"][0], jnp.mean(again))
    some = learner.reset(carry, jnp.arange(NODES) == nodes[-1, 0], {**state(), "clock": carry.state["clock"]})
    assert not some.state["h"][nodes[-1, 0]].any() and some.state["h"][nodes[-1, 1]].any()
    assert not some.traces.rows["h"][nodes[-1, 0]].any() and some.traces.rows["h"][nodes[-1, 1]].any()


def test_beside_the_exact_gradient():
    model = Leaky(param(np.random.default_rng(3), 1, FEATURES))
    nodes, xs, ys = meetings(np.random.default_rng(4), 4)
    given = model, state(), (nodes, xs), jnp.tile(ys, FEATURES)
    found = se.gradient_alignment(se.Events(se.D_RTRL(), NODES), oracles.loss_fn, *given)
    np.testing.assert_allclose(found.total_cosine, 1)


def test_an_event_that_is_not_finite_is_named():
    cell = se.cells.LeakyRate(3, se.MatMulOp().param(jax.random.key(0), 1, 3), decay=0.5)
    xs = jnp.array([[0, 1], [2, 1], [3, 4]]), jnp.ones((3, 2, 1))
    with pytest.raises(se.NonFiniteError, match="the loss is inf at step 1; .*, the synapse 0 -> unit 0"):
        se.fit(
            se.Events(se.D_RTRL(), 5), lambda out, y: jnp.sum(out) / y, optax.sgd(0.1), cell,
            [(xs, jnp.array([1.0, 0.0, 1.0]))], state=cell.init_state(5), progress=False,
        )  # fmt: skip


def test_time_and_memory_are_those_of_an_event(stream):
    """No array of a step is as long as all nodes but the carry, which is changed in place."""
    model, nodes, xs, ys = stream
    rule, x = se.Bridged(4), (nodes[0], xs[0])
    plans = [se.memory_plan(se.Events(rule, n), model, state(n), x, steps=4) for n in (1000, 11_000)]
    more = {name: plans[1].buffers[name] - plans[0].buffers[name] for name in plans[0].buffers}
    rows = plans[1].buffers["state"] + plans[1].traces - plans[0].buffers["state"] - plans[0].traces
    assert more["new state and traces"] == rows and more["workspace"] <= 0.1 * rows, more
    assert se.explain(se.Events(rule, NODES), model, state(), x).rows


def test_memory_is_the_same_for_any_number_of_events(stream):
    model, *events = stream

    def memory(rule, count):
        learner, (nodes, xs, ys) = se.Events(rule, NODES), (jnp.stack([part[0]] * count) for part in events)
        carry = learner.init(model, state(), (nodes[0], xs[0]))
        grad = jax.jit(lambda *given: se.online_grad(learner, oracles.loss_fn, model, *given))
        return grad.lower(carry, (nodes, xs), ys).compile().memory_analysis().temp_size_in_bytes

    assert memory(se.RTRL(), 64) == memory(se.RTRL(), 1024) < memory(se.BPTT(), 1024) / 5


def test_stopped_and_resumed_is_never_stopped(stream, tmp_path):
    model, *events = stream
    data = [((who, x), y) for who, x, y in zip(*(part[:18].reshape(3, 6, *part.shape[1:]) for part in events))]

    def train(**options):
        optimizer = optax.adam(0.01)
        options = {"state": state(), "update": 4, "carry": True, "progress": False} | options
        result = se.fit(se.Events(se.RTRL(), NODES), oracles.loss_fn, optimizer, model, data, **options)
        return eqx.filter((result.model, result.opt_state, result.carry, result.losses), eqx.is_array_like), result

    whole, _ = train()
    part, stopped = train(checkpoint=tmp_path / "run", callbacks=lambda now: now.sequences == 1)
    assert stopped.stopped == "callback" and stopped.carry.traces.rows["h"].any()
    assert not eqx.tree_equal(part, whole) and eqx.tree_equal(train(checkpoint=tmp_path / "run")[0], whole)


def test_in_place(stream):
    model, nodes, xs, ys = (part if k == 0 else part[:4] for k, part in enumerate(stream))
    learner = se.Events(se.RTRL(), NODES)
    carry = learner.init(model, state(), (nodes[0], xs[0]))
    expected = se.online_grad(learner, oracles.loss_fn, model, carry, (nodes, xs), ys)
    found = se.online_grad(learner, oracles.loss_fn, model, carry, (nodes, xs), ys, donate=True)
    assert eqx.tree_equal(found, expected)
    assert carry.state["h"].is_deleted() and all(leaf.is_deleted() for leaf in jax.tree.leaves(carry.traces))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((model, xs, ys)) if eqx.is_array(leaf))


def test_refused(stream):
    model, nodes, xs, ys = stream
    with pytest.raises(NotImplementedError, match="rule: expected one whose traces are derivatives"):
        se.Events(se.UORO(key=jax.random.key(0)), NODES)
    for around in lambda rule: se.Events(rule, NODES), lambda rule: se.Bridged(3, rule):
        with pytest.raises(NotImplementedError, match="rule: expected one whose traces are derivatives"):
            around(se.Events(se.RTRL(), NODES))
    with pytest.raises(TypeError, match=r"learner: expected one such as se.RTRL\(\)"):
        se.Events(optax.sgd(0.1), NODES)
    with pytest.raises(ValueError, match="num_nodes: expected at least 1, got 0"):
        se.Events(se.RTRL(), 0)
    learner = se.Events(se.RTRL(), NODES)
    with pytest.raises(ValueError, match="state: expected leaves with a row for each of the 20 nodes in front"):
        learner.init(model, state(2), (nodes[0], xs[0]))
    with pytest.raises(TypeError, match=r"x: expected a pair \(nodes, x\) of the numbers of the nodes"):
        learner.init(model, state(), xs[0])
    with pytest.raises(ValueError, match="num_nodes: the influences of what is trained on 20 rows have 3,072 entries"):
        se.Events(se.RTRL(max_influences=1000), NODES).init(model, state(), (nodes[0], xs[0]))
    carry = learner.init(model, state(), (nodes[0], xs[0]))
    wrong = [nodes[:4].at[2].set(jnp.array(pair)) for pair in ([3, 3], [3, NODES + 1], [-1, 3])]
    for bad in wrong:
        with pytest.raises(ValueError, match=r"nodes: expected numbers below 20, each at most once .* in step 2\."):
            se.online_grad(learner, oracles.loss_fn, model, carry, (bad, xs[:4]), ys[:4])
    for rule in learner, se.Events(se.Bridged(2, se.RTRL()), NODES):
        start = rule.init(model, state(), (nodes[0], xs[0]))

        @eqx.filter_jit
        def unseen(bad, rule=rule, start=start):
            return se.online_grad(rule, oracles.loss_fn, model, start, (bad, xs[:4]), ys[:4])[:2]

        for bad in wrong:
            losses, grads = unseen(bad)
            assert jnp.isfinite(losses[:2]).all() and jnp.isnan(losses[2])
            assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(eqx.filter(grads, eqx.is_inexact_array)))
