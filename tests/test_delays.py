"""Delays of synapses, against networks in which each synapse has a line of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest

import sparse_etrace as se

TOLERANCE = 1e-10
STEPS = 9
float64 = pytest.mark.usefixtures("x64")


class Case(NamedTuple):
    """A model by the library and by hand; `state` is that of the library."""

    model: Any
    twin: oracles.Twin
    state: Any
    xs: Any
    ys: Any


def sent(line, z, pre, axis=-1):
    """What is read in the next step: a ring, or by hand for each synapse what its sender sent, the newest first."""
    if isinstance(line, se.Ring):
        return line.push(z)
    return jnp.concatenate([jnp.take(z, pre, axis)[..., None], line[..., :-1]], -1)


def wires(rng, units, count, longest):
    pre, post = np.concatenate([rng.integers(units, size=(2, count)), np.tile(np.arange(units), (2, 1))], 1)
    delay = rng.integers(1, longest + 1, len(pre))
    delay[:2] = 1, longest
    weight, kinds = rng.normal(size=len(pre)), {"edge_attrs": {"delay": delay}, "dtype": float}
    graph = se.from_edges(pre, post, weight, shape=(units, units), **kinds)
    return graph, np.asarray(graph.connectivity.pre), np.asarray(graph.connectivity.post)


def alif_forward(pre):
    def forward(op, h, held, x):
        u = 0.8 * h["v"] + op("inp", x) + op("rec", held["line"])
        z = models.spike(u - 1 - 0.5 * h["b"])
        return {"v": u - z, "b": 0.9 * h["b"] + 0.3 * z, "line": sent(h["line"], z, pre)}, op("out", z)

    return forward


def gru_forward(pre):
    """On nodes x features; the gates read the neighbours of some steps ago, each with other weights."""

    def forward(op, h, held, x):
        line = held["line"]
        z, r = jax.nn.sigmoid(x + op("update", line)), jax.nn.sigmoid(x - op("forget", line))
        new = (1 - z) * h["h"] + z * jnp.tanh(x + r * op("rec", line))
        return {"h": new, "line": sent(h["line"], new, pre, -2)}, new

    return forward


def rate_forward(pre, readout=True):
    def forward(op, h, held, x):
        u = 0.8 * h["v"] + x + op("rec", held["line"])
        z = jnp.tanh(u)
        return {"v": u - 0.3 * z, "line": sent(h["line"], z, pre)}, op("out", z) if readout else z

    return forward


def build(name, delay=None, longest=4, batch=(2,), **options):
    """`delay` instead of that of the graph; for the library it may be another one than by hand."""
    rng = np.random.default_rng(sum(map(ord, name)))
    units, axis = 5, -2 if name == "gru" else -1
    graph, pre, post = wires(rng, units, 8, longest)
    steps = np.asarray(graph.edge_attrs["delay"] if delay is None else delay)
    op = se.SpMatMulOp(graph, axis=axis, delay=delay, **options)
    is_trained, names = bool(options.get("train_delay")), ("rec",) if name != "gru" else ("rec", "update", "forget")
    parts = {}
    for k, key in enumerate(names):
        value = {"weight": 0.5 * graph.weight * (1 - 0.3 * k), "bias": models.array(rng, units)}
        value |= {"delay": jnp.asarray(steps, float)} if is_trained else {}
        parts[key] = models.Part(value, op, oracles.delayed(pre, post, (units, units), steps, axis, is_trained))
    if name != "gru":
        parts["out"] = models.dense(rng, units, 2)
    if name == "alif":
        parts["inp"] = models.dense(rng, 3, units, scale=2.0)
    forward = {"alif": alif_forward, "gru": gru_forward, "rate": rate_forward}[name](pre)
    shape, x = ((units, 2), (units, 2)) if name == "gru" else ((units,), (3,) if name == "alif" else (units,))
    hidden = {"alif": ("v", "b"), "gru": ("h",), "rate": ("v",)}[name]
    state = {k: jnp.zeros((*batch, *shape)) for k in hidden}
    lines = jnp.zeros((*batch, len(pre), *shape[1:], int(np.ceil(steps.max())) + is_trained))
    traced = dict.fromkeys([k for k in parts if k != "out"], hidden)
    made = models.make(
        rng, forward, parts, {**state, "line": lines}, traced, batch=batch, x=x, steps=STEPS,
        out=shape if name == "gru" else (2,),
    )  # fmt: skip
    ring = op.ring(*batch, features=2) if name == "gru" else op.ring(*batch)
    return Case(made.model, made.twin, {**state, "line": ring}, made.xs, made.ys)


CASES = {
    "alif": {},
    "gru": {},
    "rate": {"delay": 3},
    "trained": {"train_delay": True, "max_delay": 5},
}


def case_of(name, **options):
    if name == "trained":
        delay = np.random.default_rng(5).uniform(1, 4.5, 13)
        return build("alif", **{"delay": delay, **CASES["trained"], **options})
    return build(name, **{**CASES[name], **options})


@pytest.fixture(scope="module", params=CASES)
def case(request):
    with jax.enable_x64(True):
        found = case_of(request.param)
        return found, oracles.online(found.twin, found.xs, found.ys, decay=models.DECAY)


def grads_of(learner, case, chunk, parts=((0, STEPS),), model=None):
    """Gradients of each call, which go on one from the other, by name of parameter."""
    model = case.model if model is None else model
    carry, found, losses = learner.init(model, case.state, case.xs[0]), [], []
    for begin, end in parts:
        xs, ys = case.xs[begin:end], case.ys[begin:end]
        loss, grads, carry = se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys, chunk=chunk)
        grads = grads.model if isinstance(grads, models.Wrapped) else grads
        found.append({name: part.value for name, part in grads.params.items()})
        losses.append(loss)
    return np.concatenate(losses), jax.tree.map(lambda *g: np.stack(g), *found)


def summed(grads, parts=((0, STEPS),)):
    return jax.tree.map(lambda g: np.stack([np.sum(g[a:b], 0) for a, b in parts]), grads)


BY_STEP = [(t, t + 1) for t in range(STEPS)]
SPLIT = ((0, 2), (2, STEPS))


@float64
def test_forward_and_gradients(case):
    """Step by step, and in windows shorter than the sequence and than the delays, in split calls."""
    case, expected = case
    losses, grads = grads_of(se.D_RTRL(), case, 1, BY_STEP)
    assert oracles.nonzero(grads)
    assert oracles.relative_error(losses, expected.losses) < TOLERANCE
    assert oracles.relative_error_by_step(grads, expected.exact) < TOLERANCE
    _, grads = grads_of(se.D_RTRL(), case, 3, SPLIT)
    assert oracles.relative_error(grads, summed(expected.exact, SPLIT)) < TOLERANCE
    _, grads = grads_of(se.ES_D_RTRL(decay=models.DECAY), case, 3, SPLIT)
    assert oracles.relative_error(grads, summed(expected.factored, SPLIT)) < TOLERANCE


@float64
def test_through_everything(case):
    case, _ = case
    expected = jax.tree.map(lambda g: g[None], oracles.bptt(case.twin, case.xs, case.ys))
    for learner, chunk in (se.BPTT(), None), (se.RTRL(), 4), (se.Bridged(window=3, rule=se.RTRL()), 3):
        assert oracles.relative_error(grads_of(learner, case, chunk)[1], expected) < TOLERANCE
