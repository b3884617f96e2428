"""Rows of a carry: events that touch some nodes of many, learned exactly through every earlier event."""

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest

import sparse_etrace as se
from sparse_etrace._rule.rows import Rows

pytestmark = pytest.mark.usefixtures("x64")
NODES, FEATURES, EVENTS = 20, 3, 200


class Meeting(eqx.Module):
    """Two nodes meet: each gated by what it was, what the other one was, and the feature of the event."""

    gate: se.ETraceParam
    new: se.ETraceParam
    out: se.ETraceParam

    def __call__(self, state, x):
        h, pace = state["h"], state["pace"]
        seen = jnp.concatenate([h, h[::-1], x], axis=-1)
        g = jax.nn.sigmoid(self.gate(seen))
        h = g * h + (1 - g) * jnp.tanh(pace * self.new(seen))
        return {"clock": state["clock"] + 1, "h": h, "pace": pace}, self.out(h)


def state(count):
    """A row for each node, and what all share: a clock, and a number for each feature."""
    return {"clock": jnp.zeros(()), "h": jnp.zeros((count, FEATURES)), "pace": jnp.linspace(0.5, 1.5, FEATURES)}


def param(rng, *shape):
    return se.ETraceParam({"weight": models.array(rng, *shape), "bias": models.array(rng, shape[1])}, se.MatMulOp())


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = Meeting(*(param(rng, 2 * FEATURES + 1, FEATURES) for _ in range(2)), param(rng, FEATURES, 1))
        nodes = jnp.asarray([rng.choice(NODES, 2, replace=False) for _ in range(EVENTS)])
        return model, nodes, models.array(rng, EVENTS, 2, 1), models.array(rng, EVENTS, 2, 1)


def by_bptt(stream):
    model, nodes, xs, ys = stream

    def total(model):
        def one(h, event):
            who, x, y = event
            new, out = model({**state(2), "h": h[who]}, x)
            return h.at[who].set(new["h"]), oracles.loss_fn(out, y)

        return jnp.sum(jax.lax.scan(one, jnp.zeros((NODES, FEATURES)), (nodes, xs, ys))[1])

    return jax.tree.leaves(eqx.filter(jax.grad(total, allow_int=True)(model), eqx.is_inexact_array))


def by_events(learner, stream, forget=False):
    model, nodes, xs, ys = stream
    carry = learner.init(model, state(nodes.shape[1]), xs[0])
    rows = Rows.of(learner.rule().storage, carry, nodes.shape[1])

    @jax.jit
    def all_events(carry):
        def one(carry, event):
            who, x, y = event
            part = rows.gather(carry, who)
            _, grads, new = se.online_grad(learner, oracles.loss_fn, model, part, x[None], y[None])
            if forget:
                new = eqx.tree_at(lambda c: c.traces, new, part.traces)
            return rows.scatter(carry, who, new), eqx.filter(grads, eqx.is_inexact_array)

        return jax.lax.scan(one, rows.spread(carry, NODES), (nodes, xs, ys))

    carry, grads = all_events(carry)
    assert carry.state["h"].shape[0] == NODES and carry.state["clock"] == len(nodes)
    return [jnp.sum(leaf, axis=0) for leaf in jax.tree.leaves(grads)]


@pytest.mark.parametrize("learner", [se.RTRL(), se.Bridged(1, se.RTRL())], ids=["RTRL", "Bridged"])
def test_exact_through_every_earlier_event(learner, stream):
    expected = by_bptt(stream)
    assert oracles.relative_error(by_events(learner, stream), expected) < 1e-10
    assert oracles.relative_error(by_events(learner, stream, forget=True), expected) > 1e-2


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.ES_D_RTRL(0.5)], ids=lambda v: type(v).__name__)
def test_traces_of_synapses_go_with_their_rows(learner, stream):
    """Where nodes meet nobody, events in any order are as many sequences as there are nodes."""
    model, _, xs, ys = stream
    nodes = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], 8))
    xs, ys, expected = xs[: len(nodes), :1], ys[: len(nodes), :1], None
    for node in range(3):
        carry = learner.init(model, state(1), xs[0])
        grads = se.online_grad(learner, oracles.loss_fn, model, carry, xs[nodes == node], ys[nodes == node])[1]
        expected = grads if expected is None else jax.tree.map(jnp.add, expected, grads)
    found = by_events(learner, (model, jnp.asarray(nodes)[:, None], xs, ys))
    assert oracles.relative_error(found, jax.tree.leaves(expected)) < 1e-10


def test_refused(stream):
    model, nodes, xs, ys = stream
    learner = se.UORO(key=jax.random.key(0))
    carry = learner.init(model, state(2), xs[0])
    with pytest.raises(NotImplementedError, match="rule: expected one whose traces are derivatives"):
        Rows.of(learner.rule().storage, carry, 2)
    learner = se.D_RTRL()
    with pytest.raises(ValueError, match="state: expected leaves with a row for each of the 5 nodes of an event"):
        Rows.of(learner.rule().storage, learner.init(model, state(2), xs[0]), 5)
