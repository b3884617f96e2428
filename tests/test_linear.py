"""Backward passes that are not linear are refused where derivatives of steps are multiplied, and only these."""

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from soak import few

import sparse_etrace as se

UNITS, INPUTS = 4, 3
KEY = jax.random.key(0)
LEARNERS = [
    se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid(), se.OSTL(), se.OTTT(decay=0.7), se.SnAp(2), se.RTRL(), se.UORO(key=KEY),
    se.EProp("state"), se.RFLO("state", key=KEY), se.ThreeFactor("state"),
]  # fmt: skip

BENT = {
    "max": lambda ct, u: jnp.clip(ct, -0.1, 0.1),
    "sign": lambda ct, u: jnp.sign(ct),
    "round": lambda ct, u: jnp.round(ct),
    "mul": lambda ct, u: ct * ct,
    "add": lambda ct, u: ct + 0.1 * u,
    "abs": lambda ct, u: jnp.where(jnp.abs(ct) > 0.1, ct, 0.0),
    "div": lambda ct, u: 1e-3 / ct,
    "convert_element_type": lambda ct, u: ct.astype(int).astype(ct.dtype),
    "select_n": lambda ct, u: jnp.where(jnp.isnan(ct), 1.0, ct),
    "gt": lambda ct, u: jax.lax.cond(ct.sum() > 0, lambda c: c, lambda c: 2 * c, ct),
    "pad": lambda ct, u: jnp.pad(ct[..., 1:], [(0, 0)] * (ct.ndim - 1) + [(0, 1)], constant_values=0.1),
    "cond": lambda ct, u: jax.lax.cond(u.sum() > 0, lambda c: c, lambda c: jnp.full_like(c, 0.1), ct),
    "exp": lambda ct, u: jax.lax.scan(lambda c, _: (jnp.exp(c), None), ct, None, 2)[0],
    "sub": lambda ct, u: jax.lax.fori_loop(0, 2, lambda i, c: c - 0.1, ct),
    "lt": lambda ct, u: jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: 2 * c, ct),
    "min": lambda ct, u: jax.jit(lambda c: jnp.minimum(c, 0.1))(ct),
    "reduce_max": lambda ct, u: ct / jnp.max(ct),
    "sqrt": lambda ct, u: ct / jnp.sqrt(jnp.sum(ct * u)),
}
STRAIGHT = {
    "surrogate": lambda ct, u: ct / (1 + 2 * jnp.abs(u)) ** 2,
    "window": lambda ct, u: jnp.where(jnp.abs(u) < 0.5, ct, 0.0),
    "window of numpy": lambda ct, u: jnp.where(u > 0, ct, np.zeros(u.shape)),
    "guard": lambda ct, u: jnp.where(jnp.isfinite(ct), ct * u, 0.0),
    "guard of nan": lambda ct, u: jnp.where(jnp.isnan(ct), 0.0, ct),
    "scan": lambda ct, u: jax.lax.scan(lambda c, _: (0.5 * c + ct, c), jnp.zeros_like(ct), None, 3)[0],
    "cond": lambda ct, u: jax.lax.cond(u.sum() > 0, lambda c: 0.2 * c, lambda c: 3 * c, ct),
    "loop": lambda ct, u: jax.lax.fori_loop(1, 3, lambda i, c: c * u * i, ct),
    "power": lambda ct, u: ct * jnp.abs(u) ** 2.3,
    "pair": lambda ct, u: jax.lax.complex(ct, 2 * ct).imag * u,
    "own rule inside": lambda ct, u: models.spike_vjp(u - 0.1) * ct + jax.checkpoint(jnp.cos)(u) * ct,
    "checked": lambda ct, u: jax.vjp(lambda u: jax.nn.relu(u) * jax.nn.softplus(u), u)[1](ct)[0],
}
PLACES = ("state", "output", "parameter", "weights")


def bend(backward):
    """tanh, with this factor of its derivative."""

    @jax.custom_vjp
    def fn(u):
        return jnp.tanh(u)

    fn.defvjp(lambda u: (fn(u), u), lambda u, ct: (backward(ct, u),))
    return fn


class Net(eqx.Module):
    """One function of four places is bent."""

    inp: se.ETraceParam
    bias: se.ETraceParam
    fn: object = eqx.field(static=True)
    place: str = eqx.field(static=True)

    def __call__(self, h, x):
        def at(place):
            return self.fn if place == self.place else jnp.tanh

        h = 0.7 * at("state")(h) + at("output")(self.inp(x)) + at("parameter")(self.bias())
        return h, at("out")(h)


def net(backward, place):
    rng, fn = np.random.default_rng(1), bend(backward)
    op = se.MatMulOp(weight_fn=fn if place == "weights" else None)
    inp = se.ETraceParam({"weight": models.array(rng, INPUTS, UNITS)}, op)
    return Net(inp, se.ElemWiseParam(models.array(rng, UNITS)), fn, place)


def start(learner, model):
    return learner.init(model, jnp.full((2, UNITS), 0.3), jnp.ones((2, INPUTS)))


BENDS = [(name, place, learner) for name in BENT for place in PLACES for learner in LEARNERS]
SOME = [BENDS[(k * (4 * len(LEARNERS) + len(LEARNERS) + 1)) % len(BENDS)] for k in range(12)]


@pytest.mark.parametrize("name, place, learner", few(BENDS, SOME), ids=str)
@pytest.mark.filterwarnings("ignore:The plain array")
def test_refused(name, place, learner):
    what = r"the (new state|hidden state 'state'|weights of the op called at .*test_linear\.py:\d+.*)"
    line = r".*test_linear\.py:\d+"
    message = rf"model: the backward pass of {what} is not linear, by `{name}` at {line}.*\n?.*optax\.clip.*TBPTT"
    with pytest.raises(ValueError, match=message):
        start(learner, net(BENT[name], place))


@pytest.mark.parametrize(
    "learner", [se.BPTT(), se.TBPTT(3), *LEARNERS[5:8]], ids=lambda learner: type(learner).__name__
)
def test_where_nothing_is_multiplied_anything_goes(learner):
    """Backpropagation takes it everywhere, the others on the way from state to output."""
    for place in (*PLACES, "out") if "BPTT" in type(learner).__name__ else ("out",):
        start(learner, net(BENT["max"], place))


STRAIGHTS = [(name, place) for name in STRAIGHT for place in PLACES]


@pytest.mark.parametrize("name, place", few(STRAIGHTS, [("guard", "parameter"), ("scan", "state")]))
@pytest.mark.usefixtures("x64")
def test_linear_ones_are_taken_and_right(name, place):
    model, rng = net(STRAIGHT[name], place), np.random.default_rng(2)
    xs, ys = models.array(rng, 5, 2, INPUTS), models.array(rng, 5, 2, UNITS)

    def gradient(learner, chunk):
        return se.online_grad(learner, oracles.loss_fn, model, start(learner, model), xs, ys, chunk=chunk)[1]

    expected = gradient(se.BPTT(), None)
    assert oracles.relative_error(gradient(se.D_RTRL(), 2), expected) < 1e-10


@pytest.mark.parametrize("name, place", few(STRAIGHTS, STRAIGHTS[::5]))
def test_linear_ones_are_taken(name, place):
    for learner in LEARNERS[0], LEARNERS[5], LEARNERS[7]:
        start(learner, net(STRAIGHT[name], place))
