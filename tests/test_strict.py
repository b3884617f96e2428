"""All rules without implicit promotion of types and ranks, and with whatever leaves a state and an `out` have."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import few
from test_conformance import LEARNERS

import sparse_etrace as se
from sparse_etrace import cells

BATCH, STEPS, UNITS = 2, 4, 4
RNG = np.random.default_rng(0)
CONN = se.Connectivity.from_edges([0, 1, 2, 3, 0], [1, 2, 3, 0, 2], shape=(UNITS, UNITS))
every = pytest.mark.parametrize("name", LEARNERS)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def weights(*shape, units=UNITS):
    return {"weight": normal(*shape), "bias": normal(units)}


def dense():
    return se.ETraceParam(weights(3, UNITS), se.MatMulOp(weight_mask=np.ones((3, UNITS), bool)))


def sparse():
    return se.ETraceParam(weights(5), se.SpMatMulOp(CONN, weight_fn=se.SignLock(np.ones(5))))


def low_rank():
    value = {"B": normal(UNITS, 1), "A": normal(1, UNITS), "bias": normal(UNITS)}
    return se.ETraceParam(value, se.LoraOp())


def convolution():
    op = se.ConvOp(jax.ShapeDtypeStruct((UNITS, 3), jnp.float32), [1], "SAME")
    return se.ETraceParam(weights(3, 3, 2, units=2), op)


def units(value):
    return np.full(UNITS, value)


CELLS = {
    "LIF": (lambda: cells.LIF(UNITS, dense(), sparse(), decay=units(0.9), threshold=units(0.1)), (3,), ".z"),
    "LeakyRate": (lambda: cells.LeakyRate(UNITS, dense(), low_rank(), decay=se.ElemWiseParam(units(0.9))), (3,), ""),
    "ALIF": (lambda: cells.ALIF(UNITS, dense(), sparse(), decay=units(0.9), adaptation=units(0.5)), (3,), ".z"),
    "GRU": (lambda: cells.GRU(UNITS, *(dense() for _ in range(3)), sparse(), low_rank(), sparse()), (3,), ""),
    "MGU": (lambda: cells.MGU(UNITS, dense(), dense(), sparse(), sparse()), (3,), ""),
    "LRU": (lambda: cells.LRU(UNITS, dense(), cells.LRU.ring(jax.random.key(0), UNITS, 0.5, 0.9)), (3,), None),
    "convolution": (lambda: cells.LeakyRate((UNITS, 2), convolution(), decay=np.full((UNITS, 2), 0.5)), (UNITS, 3), ""),
    "features": (
        lambda: cells.LeakyRate((UNITS, 3), se.ETraceParam(weights(5), se.SpMatMulOp(CONN, axis=-2))), (UNITS, 3), ""
    ),
}  # fmt: skip


def mean_square(out, y):
    return jnp.mean((out - y) ** 2)


def gradient(learner, model, state, xs, loss_fn=mean_square):
    carry = learner.init(model, state, xs[0])
    losses, grads, _ = se.online_grad(learner, loss_fn, model, carry, xs, jnp.float32(0.5) * jnp.ones(STEPS), chunk=3)
    return losses, eqx.filter(grads, eqx.is_array)


FEEDBACK = [name for name in LEARNERS if name.split()[0] in ("EProp", "RFLO", "ThreeFactor")]
PAIRS = [(name, cell) for name in LEARNERS for cell in CELLS if CELLS[cell][2] is not None or "=" not in name]
CHOSEN = [(name, "LIF") for name in ("RTRL", "EProp random", "UORO", "TBPTT")]
CHOSEN += [("D_RTRL", "convolution"), ("SnAp", "GRU"), ("ES_D_RTRL", "features")]


@pytest.mark.parametrize("name, cell", few(PAIRS, CHOSEN))
def test_without_promotion(name, cell):
    """The same bits as with it."""
    make, shape, leaf = CELLS[cell]
    if leaf is None and name in FEEDBACK:
        pytest.skip("no one leaf of the state is what is read")
    model, learner = make(), LEARNERS[name].make((leaf or "").lstrip(".") or "state")
    xs, state = normal(STEPS, BATCH, *shape), model.init_state(BATCH)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        got = gradient(learner, model, state, xs)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, gradient(learner, model, state, xs)))


@every
def test_a_state_that_changes_its_type_is_refused_in_words(name):
    half = jnp.bfloat16
    cell = cells.LeakyRate(UNITS, se.ETraceParam({"weight": normal(3, UNITS).astype(half)}, se.MatMulOp()))
    state, learner = cell.init_state().astype(half), LEARNERS[name].make("state")
    words = r"model: state leaf 'state' goes in as bfloat16\[4\] and comes out as float32\[4\]\. Give the initial state"
    with pytest.raises(ValueError, match=words):
        learner.init(cell, state, jnp.ones(3, half))


@every
def test_a_state_that_changes_its_structure_is_refused_in_words(name):
    model = lambda h, x: ({"h": h + x.sum()}, h)
    with pytest.raises(ValueError, match=r"model: expected a new state structured like the old one, .*\(state, out\)"):
        LEARNERS[name].make("").init(model, jnp.zeros(UNITS), jnp.ones(3))


class Extra(eqx.Module):
    """A rate layer whose `out` and state have another leaf."""

    param: Any
    out: Any = eqx.field(static=True)

    def __call__(self, state, x):
        h = 0.9 * state["h"] + self.param(x)
        return {"h": h, "k": state["k"]}, {"h": h, "out": self.out}


NUMBERS = {
    "bool": (True, False), "int": (3, 2), "float": (1.5, 2.5), "complex": (1j, 1), "numpy bool": (np.bool_(True), 0),
    "numpy": (np.float32(2), np.int64(3)), "array": (np.ones(2, int), jnp.ones(3, bool)),
}  # fmt: skip
TEACHES_OUT = ("EProp random", "EProp factors", "RFLO", "RFLO factors")


NAMES = [name for name in LEARNERS if name not in TEACHES_OUT]
EACH = ("D_RTRL", "OTTT", "EProp symmetric", "TBPTT", "SnAp", "Bridged", "RTRL", "UORO")


@pytest.mark.parametrize("kind", few([*NUMBERS], ["bool"]))
@pytest.mark.parametrize("name", few(NAMES, EACH))
def test_numbers_in_state_and_out(name, kind):
    """They change nothing."""
    out, k = NUMBERS[kind]
    if name == "UORO" and jnp.issubdtype(jnp.result_type(k), jnp.inexact):
        pytest.skip("each floating leaf of the state draws signs")
    learner = LEARNERS[name].make("['h']")
    xs, param = normal(STEPS, 3), se.ETraceParam({"weight": normal(3, UNITS)}, se.MatMulOp())
    loss = lambda out, y: jnp.mean((out["h"] - y) ** 2)
    state = {"h": jnp.zeros(UNITS), "k": k}
    got = gradient(learner, Extra(param, out), state, xs, loss)
    expected = gradient(learner, Extra(param, None), state | {"k": None}, xs, loss)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(got[1].param.value["weight"], expected[1].param.value["weight"], rtol=1e-5, atol=1e-7)
