"""Ops that break the contract are refused: the law and the leaf are named."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import few

import sparse_etrace as se


class Dense(se.ETraceOp):
    """A user's op that keeps the contract; each of the ops below spoils it in one way."""

    def xw_to_y(self, x, w):
        return x @ w["weight"]

    def yw_to_w(self, y, e):
        return {"weight": y[..., None, :] * e["weight"]}


class WithBias(Dense):
    per_unit: ClassVar = ("bias",)

    def xw_to_y(self, x, w):
        return x @ w["weight"] + w["bias"]

    def yw_to_w(self, y, e):
        return {"weight": y[..., None, :] * e["weight"], "bias": y * e["bias"]}


class Unnamed(WithBias):
    per_unit: ClassVar = ()


class WronglyNamed(WithBias):
    per_unit: ClassVar = ("bias", "weight")


class OtherTrace(Dense):
    def xy_to_dw(self, x, y, v):
        return {"w": x[..., None] * y[..., None, :]}


class ListTrace(Dense):
    def yw_to_w(self, y, e):
        return [y[..., None, :] * e["weight"]]


class HalfTrace(Dense):
    def xy_to_dw(self, x, y, v):
        return {"weight": (x[..., None] * y[..., None, :]).astype(jnp.float16)}


class HalfSpread(Dense):
    def yw_to_w(self, y, e):
        return {"weight": (y[..., None, :] * e["weight"]).astype(jnp.float16)}


class Transposed(Dense):
    def xy_to_dw(self, x, y, v):
        return {"weight": y[..., None] * x[..., None, :]}


class Shrunk(Dense):
    def xy_to_dw(self, x, y, v):
        return {"weight": y}


class QuadraticInput(Dense):
    def xw_to_y(self, x, w):
        return x**2 @ w["weight"]


class QuadraticSignal(Dense):
    def xy_to_dw(self, x, y, v):
        return {"weight": x[..., None] * (y**2)[..., None, :]}


class AffineSpread(Dense):
    def yw_to_w(self, y, e):
        return {"weight": (y + 1)[..., None, :] * e["weight"]}


class AffineInTrace(Dense):
    def yw_to_w(self, y, e):
        return {"weight": y[..., None, :] * (e["weight"] + 1)}


class WrongSlots(Dense):
    def yw_to_w(self, y, e):
        return {"weight": jnp.flip(y, -1)[..., None, :] * e["weight"]}


class WrongSum(Dense):
    def xy_to_dw(self, x, y, v):
        return {"weight": 2 * x[..., None] * y[..., None, :]}


class TwoTargets(Dense):
    """Each weight drives two units, so none of its slots has one target."""

    def xw_to_y(self, x, w):
        y = x @ w["weight"]
        return y + jnp.roll(y, 1, axis=-1)


class OneElement(Dense):
    def xw_to_y(self, x, w):
        return jnp.einsum("i,ij->j", x, w["weight"])


class MixedBatch(Dense):
    def xw_to_y(self, x, w):
        return (x - (jnp.mean(x, axis=0) if x.ndim > 1 else 0)) @ w["weight"]

    def xy_to_dw(self, x, y, v):
        return {"weight": x[..., None] * y[..., None, :]}


class MixedProduct(Dense):
    def xy_to_dw(self, x, y, v):
        x = x[::-1] if x.ndim > 1 else x
        return {"weight": x[..., None] * y[..., None, :]}


class MixedSpread(Dense):
    def yw_to_w(self, y, e):
        y = y[::-1] if y.ndim > 1 else y
        return {"weight": y[..., None, :] * e["weight"]}


class WrongSumOverTime(Dense):
    def sum_dw(self, x, y, v):
        return {"weight": jnp.einsum("k...i,k...j->...ij", x, y[::-1])}


class WrongWindow(Dense):
    def window(self, v, trace, carried, entering, signal, direct, x):
        new, taught = super().window(v, trace, jnp.swapaxes(carried, 0, 1), entering, signal, direct, x)
        return new, taught


class Raises(Dense):
    def yw_to_w(self, y, e):
        return {"weight": jnp.dot(y, e["weight"], y)}


class BadPhi(Dense):
    def phi(self, theta):
        return {"weight": theta["w"]}


class NaN(Dense):
    def yw_to_w(self, y, e):
        return {"weight": y[..., None, :] * e["weight"] * jnp.nan}


WRONG = {
    OtherTrace: r"xy_to_dw has the structure of v: got PyTreeDef\(\{'w': \*\}\), expected .*weight",
    HalfTrace: r"xy_to_dw has the types of v, .*: it fails at \['weight'\]: \(4, 5\) float16 against \(4, 5\) float32",
    Transposed: r"its shapes after batch and positions: it fails at \['weight'\]: \(5, 4\) float32 against \(4, 5\)",
    Shrunk: r"and its shapes after batch and positions: it fails at \['weight'\]: \(5,\) float32 against \(4, 5\)",
    ListTrace: r"yw_to_w keeps structure, shapes and types: got PyTreeDef\(\[\*\]\), expected",
    HalfSpread: r"yw_to_w keeps structure, shapes and types: it fails at \['weight'\]: \(4, 5\) float16",
    AffineSpread: r"yw_to_w is linear in y: it fails at \['weight'\], with a relative error of",
    AffineInTrace: r"yw_to_w is linear in e: it fails at \['weight'\], with a relative error of",
    NaN: r"yw_to_w is linear in y: it fails at \['weight'\], with a relative error of nan",
    QuadraticInput: r"xy_to_dw is linear in x .*: it fails at \['weight'\]",
    QuadraticSignal: r"xy_to_dw is linear in y: it fails at \['weight'\]",
    WrongSlots: r"xy_to_dw\(x, d \* y, v\) == yw_to_w\(d, xy_to_dw\(x, y, v\)\): it fails at \['weight'\]",
    TwoTargets: r"xy_to_dw\(x, d \* y, v\) == yw_to_w\(d, xy_to_dw\(x, y, v\)\): it fails at \['weight'\]",
    WrongSum: r"the sum of xy_to_dw over batch and positions is the VJP of xw_to_y: it fails at \['weight'\]",
    OneElement: r"xw_to_y: it raises on shapes \(2, 4\), .*'weight': \(4, 5\)",
    MixedBatch: r"a leading batch axis changes nothing in xw_to_y: it fails at the only leaf",
    MixedProduct: r"a leading batch axis changes nothing in xy_to_dw: it fails at \['weight'\]",
    MixedSpread: r"a leading batch axis changes nothing in yw_to_w: it fails at \['weight'\]",
    WrongSumOverTime: r"sum_dw is that of ETraceOp: it fails at \['weight'\]",
    WrongWindow: r"window is that of ETraceOp: it fails at \[0\]\['weight'\]",
    Raises: r"yw_to_w: it raises on shapes \(5,\), \{'weight': \(4, 5\)\}",
    BadPhi: r"phi: it raises on shapes \{'weight': \(4, 5\)\}: 'w'",
    Unnamed: r"xy_to_dw is linear in x \(name the leaf in per_unit .*\): it fails at \['bias'\]",
    WronglyNamed: r"per_unit leaves of xy_to_dw do not depend on x: it fails at \['weight'\]",
}


def value(op):
    w = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    return {"weight": jnp.asarray(w)} | ({"bias": jnp.ones(5)} if isinstance(op, WithBias) else {})


@pytest.mark.parametrize("op", WRONG, ids=lambda op: op.__name__)
def test_wrong_ops_are_refused(op):
    with pytest.raises(ValueError, match=WRONG[op]):
        se.check_op(op(), value(op()), jnp.ones(4))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("op", [Dense(), WithBias()])
def test_right_ops_are_accepted(op, batch):
    se.check_op(op, value(op), jnp.ones((*batch, 4)))


def test_a_batch_in_the_example_finds_it_too():
    with pytest.raises(ValueError, match=r"xw_to_y: it raises on shapes \(3, 4\)"):
        se.check_op(OneElement(), value(OneElement()), jnp.ones((3, 4)))


class Gain(se.ETraceOp):
    """The example of the base class: one weight for each line, one array instead of a dictionary."""

    def xw_to_y(self, x, w):
        return x * w

    def yw_to_w(self, y, e):
        return y * e


class OwnArrays(se.ETraceOp):
    """Gains that are an array of the op, and never trained."""

    gain: jax.Array
    numbers: np.ndarray

    def xw_to_y(self, x, w):
        return self.gain * (x @ w["weight"]) + self.numbers * w["bias"]

    def yw_to_w(self, y, e):
        return {"weight": y[..., None, :] * e["weight"], "bias": y * e["bias"]}

    def xy_to_dw(self, x, y, v):
        return {"weight": x[..., :, None] * (self.gain * y)[..., None, :], "bias": self.numbers * y}

    per_unit: ClassVar = ("bias",)


class OwnSynapses(OwnArrays):
    """With gains that `synapses` does not know of: a weight there is all that a synapse does to its input."""

    def synapses(self, v, x):
        return se.MatMulOp().synapses(v, x)


def test_synapses_without_what_the_op_does():
    value = {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    se.check_op(OwnSynapses(jnp.ones(3), np.ones(3)), value, jnp.ones((4, 2)))
    for gain, other in ((2.0, 1.0), (1.0, 2.0)):
        with pytest.raises(ValueError, match=r"synapses: xw_to_y is the sum of v\[slot\] \* x\[pre\] .* error of"):
            se.check_op(OwnSynapses(gain * jnp.ones(3), other * np.ones(3)), value, jnp.ones(2))


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda use: use, r"synapses: expected a list with a Uses for each of the 1 leaves of v, got .*Uses"),
        (lambda use: [use, use], "for each of the 1 leaves of v, got .*Give them in jax.tree order"),
        (lambda use: [use._replace(slot=use.slot + 1)], r"slot of \['weight'\] as .* from 0 to below 20, .* got 20"),
        (lambda use: [use._replace(pre=use.pre - 1)], r"pre of \['weight'\] as .* from 0 to below 4, .* got -1"),
        (lambda use: [se.Uses(*(np.r_[a, 5] for a in use))], r"pre of \['weight'\] as .* from 0 to below 4, .* got 5"),
        (lambda use: [use._replace(post=np.r_[use.post[1:], 5])], "post of .* from 0 to below 5, .* got 5"),
        (lambda use: [use._replace(post=use.post[1:])], r"post of .* got shape \(19,\) .* slots of shape \(20,\)"),
        (lambda use: [use._replace(pre=1.0 * use.pre)], r"pre of .* got shape \(20,\) of float"),
        (lambda use: [se.Uses(*(a.reshape(4, 5) for a in use))], r"pre of .* as one axis .* got shape \(4, 5\)"),
    ],
)
def test_synapses_that_are_none(change, match):
    """Numbers beyond an end would be left out of the sum, or counted from its other end."""

    class Changed(Dense):
        def synapses(self, v, x):
            return change(se.MatMulOp().synapses(v, x)[0])

    for x in (jnp.ones(4), jnp.ones((3, 4))):
        with pytest.raises(ValueError, match=match):
            se.check_op(Changed(), value(Dense()), x)
    cell = se.cells.LeakyRate(5, se.ETraceParam(value(Dense()), Changed()))
    with pytest.raises(ValueError, match=match):
        se.SnAp(n=2).init(cell, cell.init_state(), jnp.ones(4))


def test_ranks_that_are_none():
    class Method(Dense):
        def input_ndim(self):
            return 1

    class Two(Dense):
        input_ndim: ClassVar = 2

    for op, got in ((Method(), "a method"), (Two(), "2")):
        with pytest.raises(
            ValueError, match=rf"input_ndim: expected .* up to 1 for shape \(4,\), got {got}. .* property"
        ):
            se.check_op(op, value(op), jnp.ones(4))


LEARNERS = [se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid(), se.RTRL()]


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[:2]), ids=lambda learner: type(learner).__name__)
def test_arrays_of_an_op_are_known_to_learners(learner, x64):
    """As an op whose gain is folded into its weights."""
    rng = np.random.default_rng(0)
    gain, weight, bias = rng.normal(size=3), rng.normal(size=(2, 3)), rng.normal(size=3)
    own = OwnArrays(jnp.asarray(gain), 2 * np.ones(3))
    value = {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}
    se.check_op(own, value, jnp.ones(2))
    folded = {"weight": jnp.asarray(weight * gain), "bias": jnp.asarray(2 * bias)}
    xs, ys = jnp.asarray(rng.normal(size=(5, 2))), jnp.asarray(rng.normal(size=(5, 3)))

    def gradient(value, op):
        cell = se.cells.LeakyRate(3, se.ETraceParam(value, op))
        carry = learner.init(cell, cell.init_state(), xs[0])
        loss = lambda out, y: jnp.sum((out - y) ** 2)
        return se.online_grad(learner, loss, cell, carry, xs, ys, chunk=2)[1].inp.value

    got, expected = gradient(value, own), gradient(folded, se.MatMulOp())
    np.testing.assert_allclose(got["weight"], expected["weight"] * gain, rtol=1e-10)
    np.testing.assert_allclose(got["bias"], expected["bias"] * 2, rtol=1e-10)


class Looks(OwnArrays):
    """What its array holds decides what is computed."""

    def xw_to_y(self, x, w):
        return super().xw_to_y(x, w) if self.gain[0] > 0 else x @ w["weight"]


def test_an_op_that_looks_into_its_arrays_is_refused():
    with pytest.raises(ValueError, match=r"xw_to_y: it raises on shapes .*Attempted boolean conversion of traced"):
        se.check_op(Looks(jnp.ones(3), np.ones(3)), {"weight": jnp.ones((2, 3)), "bias": jnp.ones(3)}, jnp.ones(2))


class Mean(Gain):
    """A single array that misses the sum over what it serves."""

    def yw_to_w(self, y, e):
        return jnp.mean(y, axis=-1, keepdims=True) * e


class Broadcast(se.ETraceOp):
    """A gain for all units: its trace has the units in front, and the sum over them is its gradient."""

    def xw_to_y(self, x, w):
        return x * w

    def yw_to_w(self, y, e):
        return y[..., None] * e

    def xy_to_dw(self, x, y, v):
        return (x * y)[..., None]


class Table(se.ETraceOp):
    """An input of indices: a row for each."""

    @property
    def input_ndim(self):
        return 0

    def xw_to_y(self, x, w):
        return w[x]

    def yw_to_w(self, y, e):
        return y[..., None, :] * e


class ForgetsItsRank(Table):
    input_ndim: ClassVar = 1


class Constant(se.ETraceOp):
    is_diagonal: ClassVar = True

    def xw_to_y(self, x, w):
        return w

    def yw_to_w(self, y, e):
        return y * e

    def xy_to_dw(self, x, y, v):
        return 2 * y


class HalfConstant(Constant):
    """Without input and without `xy_to_dw`: the generic one needs an input."""

    xy_to_dw = se.ETraceOp.xy_to_dw


def test_a_single_array():
    se.check_op(Gain(), jnp.ones(4), jnp.ones((2, 4)))
    se.check_op(Broadcast(), jnp.ones(1), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="it fails at the only leaf"):
        se.check_op(Mean(), jnp.ones(4), jnp.ones(4))


def test_integers_are_no_numbers_to_be_linear_in():
    se.check_op(Table(), jnp.ones((7, 3)), jnp.array([4, 0]))
    se.check_op(Table(), jnp.ones((7, 3)), jnp.array(6))
    with pytest.raises(ValueError, match="it raises on shapes|it fails at the only leaf"):
        se.check_op(ForgetsItsRank(), jnp.ones((7, 3)), jnp.array([4, 0]))


def test_ops_without_input():
    with pytest.raises(ValueError, match="the sum of xy_to_dw over batch and positions is the VJP of xw_to_y"):
        se.check_op(Constant(), jnp.ones(3), None)
    with pytest.raises(ValueError, match="xy_to_dw: it raises on shapes None, "):
        se.check_op(HalfConstant(), jnp.ones(3), None)


@pytest.mark.parametrize("dtype", few([jnp.float64, jnp.bfloat16], [jnp.bfloat16]))
def test_other_types(x64, dtype):
    op = se.MatMulOp(weight_fn=jnp.abs)
    w = {"weight": jnp.ones((4, 5), dtype), "bias": jnp.ones(5, dtype)}
    se.check_op(op, w, jnp.ones((2, 4), dtype))
    for wrong in (WrongSum, WrongSlots):
        with pytest.raises(ValueError, match="it fails at"):
            se.check_op(wrong(), jax.tree.map(lambda a: a.astype(dtype), value(wrong())), jnp.ones(4, dtype))
