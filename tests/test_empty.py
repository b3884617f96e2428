"""Every learner on the empty corners of models: no op, no state, no hidden variable, no units, no batch element."""

import contextlib
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from soak import few
from test_conformance import LEARNERS

import sparse_etrace as se

UNITS, STEPS = 3, 3


class Model(eqx.Module):
    """Parameters, and what to do with them."""

    params: dict[str, Any]
    forward: Any = eqx.field(static=True)

    def __call__(self, state, x):
        return self.forward(self.params, state, x)


def op(pre=UNITS, post=UNITS):
    return se.ETraceParam({"weight": jnp.full((pre, post), 0.1)}, se.MatMulOp())


def read_alone(p, h, x):
    h = 0.9 * h + x
    return h, p["out"](h)


def driven(p, h, x):
    h = 0.9 * h + jnp.tanh(p["inp"](x) + p["rec"](h))
    return h, p["out"](h)


def tick(p, s, x):
    return {"h": 0.5 * s["h"] + p["inp"](x), "t": s["t"] + 1}, s["h"]


def gain(p, h, x):
    h = 0.9 * h + p["gain"] * x
    return h, h


OUT = {"out": op()}
# The model, its state without batch axes, and whether it has them.
CORNERS = {
    "no op into hidden state": (Model(OUT, read_alone), jnp.zeros(UNITS), True),
    "no state": (Model(OUT, lambda p, s, x: (s, p["out"](x))), (), False),
    "a clock": (Model(OUT, lambda p, t, x: (t + 1, p["out"](x))), jnp.zeros((), jnp.int32), False),
    "a clock of floats": (Model(OUT, lambda p, t, x: (t + 1, p["out"](x))), jnp.zeros(()), False),
    "a clock beside": (Model({"inp": op()}, tick), {"h": jnp.zeros(UNITS), "t": jnp.zeros((), int)}, False),
    "what goes in comes back": (Model(OUT, lambda p, h, x: (x, p["out"](h))), jnp.zeros(UNITS), True),
    "no op": (Model({"gain": jnp.ones(UNITS)}, gain), jnp.zeros(UNITS), True),
    "nothing trained": (Model({}, lambda p, h, x: (h + x, h + x)), jnp.zeros(UNITS), True),
    "a frozen reservoir": (Model({"inp": op(), "rec": op(), "out": op()}, driven), jnp.zeros(UNITS), True),
    "no units": (Model({"inp": op(UNITS, 0), "rec": op(0, 0), "out": op(0, 2)}, driven), jnp.zeros(0), True),
}  # fmt: skip
WORDS = (
    "would never get a gradient|expected the name of one floating leaf|at least one batch element|needs the value of "
    "the loss|does not know the value of the loss|`out` does not depend"
)
FEW = [(name, corner, 2) for name in ("SnAp", "RTRL") for corner in ("no op into hidden state", "no state", "a clock")]
FEW += [("SnAp", "a frozen reservoir", 2), ("D_RTRL", "no units", 2), ("RTRL", "no units", 0), ("UORO", "no op", 0)]


def run(name, corner, batch):
    model, state, has_batch = CORNERS[corner]
    learner = LEARNERS[name].make("['h']" if corner == "a clock beside" else "state")
    if corner == "a frozen reservoir":
        only_out = eqx.tree_at(lambda m: m.params["out"], jax.tree.map(lambda _: False, model), replace=True)
        learner = eqx.tree_at(lambda rule: rule.train, learner, only_out, is_leaf=lambda leaf: leaf is None)
    axes = (batch,) if has_batch else ()
    state = jnp.broadcast_to(state, (*axes, *state.shape)) if has_batch else state
    xs = jnp.sin(jnp.arange(STEPS * max(batch, 1) * UNITS * 1.0)).reshape(STEPS, -1, UNITS)[:, :batch]
    xs = xs if has_batch else xs[:, :1].reshape(-1, UNITS)[:STEPS]
    carry = learner.init(model, state, xs[0])
    se.explain(learner, model, state, xs[0])
    losses, grads, carry = se.online_grad(learner, lambda out, _: jnp.sum(out**2), model, carry, xs, jnp.zeros(STEPS))
    learner.reset(carry, jnp.zeros(axes, bool), state)
    learner.step(model, carry, xs[0])
    return model, state, xs, losses, grads


@pytest.mark.filterwarnings("ignore:The plain array")
@pytest.mark.parametrize(
    "name, corner, batch", few([(n, c, b) for n in LEARNERS for c in CORNERS for b in (2, 0)], FEW)
)
def test_every_learner_runs_or_says_why_not(name, corner, batch):
    try:
        model, state, xs, losses, grads = run(name, corner, batch)
    except (ValueError, NotImplementedError) as error:
        assert re.search(WORDS, str(error)), error
        return
    assert losses.shape == (STEPS,) and jnp.all(jnp.isfinite(losses))
    if name == "RTRL":
        carry = se.Carry(state, None)
        right = se.online_grad(se.BPTT(), lambda out, _: jnp.sum(out**2), model, carry, xs, jnp.zeros(STEPS))[1]
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(eqx.filter(right, grads_of(grads))), strict=True):
            assert jnp.allclose(a, b, rtol=1e-5)


def grads_of(grads):
    """Where there is a gradient."""
    return jax.tree.map(lambda leaf: leaf is not None, grads, is_leaf=lambda leaf: leaf is None)


PAIR, ALONE = se.from_edges([0, 1], [1, 0]), se.from_edges([], [], shape=(3, 3))
NO_SENDERS = se.from_edges([], [], shape=(0, 3))
PRODUCTS = {
    "no batch element, delays": (se.SpMatMulOp(PAIR, delay=2), lambda op: op.ring(0), (0, 2)),
    "no feature, delays": (se.SpMatMulOp(PAIR, axis=-2, delay=2), lambda op: op.ring(features=0), (2, 0)),
    "no sender, delays": (se.SpMatMulOp(NO_SENDERS, delay=2), lambda op: op.ring(), (3,)),
    "no batch element, fixed": (se.GraphConvOp(PAIR), lambda op: jnp.zeros((0, 2, 4)), (0, 2, 5)),
    "no batch element, trained": (se.GraphConvOp(PAIR, "trained"), lambda op: jnp.zeros((0, 2, 4)), (0, 2, 5)),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("kernels", [None, "xla"])
def test_products_of_nothing(name, kernels):
    op, of, shape = PRODUCTS[name]
    param = op.param(jax.random.key(0), *([4, 5] if isinstance(op, se.GraphConvOp) else []))
    with se.kernels("xla") if kernels else contextlib.nullcontext():
        y, pull = jax.vjp(lambda param: param(of(param.op)), param)
        (grad,) = pull(y)
    assert y.shape == shape and not y.any() and not grad.value["weight"].any()


def test_a_layer_without_synapses_on_devices():
    param = se.SpMatMulOp(ALONE).param(init=ALONE)
    assert not se.shard(param, jax.make_mesh((1,), ("units",)))(jnp.ones(3)).any()
