"""Numbers of Python, NumPy and jax mean the same in every argument of every learner, op, cell and surrogate."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from models import build, run, start
from soak import few

import sparse_etrace as se
from sparse_etrace._numbers import real, whole

CONN = se.Connectivity.from_edges([0, 1, 2], [1, 2, 0], shape=(3, 3))
DENSE = se.ETraceParam({"weight": jnp.ones((3, 3))}, se.MatMulOp())
KEY = jax.random.key(0)
XINFO = jax.ShapeDtypeStruct((8, 2), jnp.float32)
GRU, MGU = ("inp_r", "inp_u", "inp_c", "rec_r", "rec_u", "rec_c"), ("inp_f", "inp_c", "rec_f", "rec_c")
LRU_INP = se.ETraceParam({"weight": jnp.ones((3, 3), complex)}, se.MatMulOp())

MODELS = [getattr(se.cells.spiking, name) for name in se.cells.spiking.__all__ if name[0].isupper()]
MODELS = [model for model in MODELS if not model.__name__.startswith("Population")]
SPECIAL = {"threshold": 2.0, "peak": 3.0, "synapse": se.cells.spiking.Current()}

# Each public constructor, with a value for each of its numbers; what is left out takes none.
NUMBERS = {
    se.D_RTRL: {"through_ops": True}, se.BPTT: {}, se.OSTL: {}, se.UORO: {"key": KEY},
    se.RFLO: {"leaf": "h", "key": KEY, "factor_decay": 0.5},
    se.ES_D_RTRL: {"decay": 0.5}, se.Hybrid: {"decay": 0.5}, se.OTTT: {"decay": 0.5},
    se.TBPTT: {"steps": 4, "every": 2},
    se.Bridged: {"window": 4},
    se.EProp: {"leaf": "h", "kappa": 0.5, "rate_strength": 0.0, "rate_target": 0.25, "factor_decay": 0.5},
    se.ThreeFactor: {"leaf": "h", "kappa": 0.5, "factor_decay": 0.5},
    se.SnAp: {"n": 2, "paths": 1, "max_influences": 500, "workspace": 1000, "pattern": "random", "key": KEY},
    se.RTRL: {"max_influences": 500, "workspace": 1000},
    se.Events: {"learner": se.D_RTRL(), "num_nodes": 3},
    se.MatMulOp: {"apply_weight_fn_before_mask": True},
    se.SpMatMulOp: {"connectivity": CONN, "axis": -2, "delay": 2, "train_delay": True, "max_delay": 4},
    se.Recorder: {}, se.record: {"model": DENSE, "names": ("v",), "every": 2, "rows": 3},
    se.GraphConvOp: {"supports": CONN},
    se.LoraOp: {"alpha": 0.5},
    se.ElemWiseOp: {},
    se.ConvOp: {"xinfo": XINFO, "window_strides": (2,), "padding": ((1, 1),), "lhs_dilation": (1,),
                "rhs_dilation": (2,), "feature_group_count": 2},
    se.ETraceParam: {"value": {"weight": jnp.ones((3, 3))}, "op": se.MatMulOp(), "is_etrace": False},
    se.Fixed: {"value": 0.5},
    se.SignLock: {"sign": 1.0},
    se.Bounded: {"lo": 0.5, "hi": 2.0},
    se.cells.LeakyRate: {"units": 3, "inp": DENSE, "decay": 0.5},
    se.cells.LIF: {"units": 3, "inp": DENSE, "decay": 0.5, "threshold": 0.5, "reset": 0.5, "reset_gradient": False,
                   "refractory": 2},
    se.cells.ALIF: {"units": (3,), "inp": DENSE, "decay": 0.5, "threshold": 0.5, "adaptation_decay": 0.5,
                    "adaptation": 0.25, "reset": 0.5, "reset_gradient": False, "refractory": 2},
    se.cells.GRU: {"units": 3, **dict.fromkeys(GRU, DENSE)},
    se.cells.MGU: {"units": (3,), **dict.fromkeys(MGU, DENSE)},
    se.cells.LRU: {"units": 3, "inp": LRU_INP, "eigenvalue": 0.5, "scale": 2.0},
    se.cells.LRU.ring: {"key": KEY, "units": 3, "low": 0.25, "high": 0.5, "phase": 2.0},
    se.cells.spiking.Population: {"units": 3, "neuron": se.cells.spiking.LIF(), "dt": 0.5, "refractory": 2.0,
                                  "reset_gradient": False, "substeps": 2, "delay": 1.5, "clears": True},
    se.cells.spiking.whole_fly: {"graph": se.from_edges([0], [1]), "per_synapse": 0.5, "drive": 2.0, "dt": 0.5,
                                 "delay": 2.0, "refractory": 1.5, "tau_synapse": 4.0},
    **{model: {name: SPECIAL.get(name, 0.5) for name in inspect.signature(model).parameters} for model in MODELS},
    **{getattr(se.surrogate, name): {parameter: 0.5} for name, parameter in {
        "arctan": "alpha", "boxcar": "width", "exponential": "beta", "fast_sigmoid": "beta",
        "gaussian": "sigma", "multi_gaussian": "sigma", "sigmoid": "beta",
        "triangle": "gamma"}.items()},
    se.surrogate.Surrogate: {"derivative": jnp.multiply, "params": (0.5, 2)},
}  # fmt: skip
NO_NUMBERS = {
    "per",
    "train", "trace_dtype", "allow_zero", "leaf", "feedback", "rate_leaf", "key", "pattern", "weight_mask", "weight_fn",
    "bias", "connectivity", "tie", "fn", "xinfo", "value", "op", "grad", "inp", "rec", "spike", "activation",
    "derivative", "rule", "coef", "synapses", "gated", "driven", "constants",
    "model", "names", "every", "rows",
    *GRU, *MGU,
}  # fmt: skip
AS = {
    "numpy": lambda v: {bool: np.bool_, int: np.int64, float: np.float64}[type(v)](v),
    "narrow numpy": lambda v: {bool: np.bool_, int: np.int16, float: np.float32}[type(v)](v),
    "an array without axes": np.array,
    "jax": jnp.asarray,
}


def is_number(value):
    return isinstance(value, bool | int | float) or (isinstance(value, tuple) and all(map(is_number, value)))


def otherwise(value, make):
    return tuple(otherwise(v, make) for v in value) if isinstance(value, tuple) else make(value)


def test_no_constructor_is_left_out():
    public = [getattr(place, name) for place in (se, se.cells) for name in dir(place)]
    classes = {c for c in public if inspect.isclass(c) and not inspect.isabstract(c)}
    taken = {c for c in classes if issubclass(c, se.Learner | se.ETraceOp) or hasattr(c, "init_state")}
    assert len(taken) > 20 and not taken - set(NUMBERS)
    for constructor, given in NUMBERS.items():
        names = set(inspect.signature(constructor).parameters)
        assert names - set(given) <= NO_NUMBERS, constructor


def same(a, b):
    """Two pytrees with the same leaves and fields, of the same types."""
    flat, other = jax.tree.leaves(a), jax.tree.leaves(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert hash(jax.tree.structure(a)) == hash(jax.tree.structure(b))
    for x, y in zip(flat, other, strict=True):
        assert type(x) is type(y) and np.array_equal(*(jax.random.key_data(v) if v is KEY else v for v in (x, y)))
        assert getattr(x, "dtype", None) == getattr(y, "dtype", None)


CASES = [
    (constructor, name) for constructor, given in NUMBERS.items() for name, value in given.items() if is_number(value)
]


@pytest.mark.parametrize("constructor, name", CASES, ids=lambda v: getattr(v, "__qualname__", v))
def test_every_kind_of_number_is_the_same(constructor, name):
    given = NUMBERS[constructor]
    expected = constructor(**given)
    for make in AS.values():
        same(constructor(**given | {name: otherwise(given[name], make)}), expected)


@pytest.mark.parametrize("make", AS.values(), ids=AS)
def test_batch_axes_and_windows(make):
    cell = se.cells.LeakyRate(3, DENSE)
    assert cell.init_state(make(2), 4).shape == (2, 4, 3)
    case = build("rate")
    losses = run(se.D_RTRL(), case, make(3))[0]
    assert np.array_equal(losses, run(se.D_RTRL(), case, 3)[0])


LEARNERS = {
    "kappa of e-prop": (se.EProp("['h']", kappa=0.5), lambda n: se.EProp("['h']", kappa=n(0.5))),
    "rate": (
        se.EProp("['h']", rate_strength=0.5, rate_target=0.25),
        lambda n: se.EProp("['h']", rate_strength=n(0.5), rate_target=n(0.25)),
    ),
    "kappa": (se.ThreeFactor("['h']", kappa=0.5), lambda n: se.ThreeFactor("['h']", kappa=n(0.5))),
    "n": (se.SnAp(2), lambda n: se.SnAp(n(2))),
    "steps": (se.TBPTT(4), lambda n: se.TBPTT(n(4))),
    "window": (se.Bridged(4), lambda n: se.Bridged(n(4))),
}


@pytest.mark.parametrize("name", few([*LEARNERS], [*LEARNERS][::2]))
def test_a_learner_learns_the_same(name):
    expected, made = LEARNERS[name]
    case = build("rate")
    grads = run(expected, case, 3)[1]
    for kind in ("numpy", "jax"):
        assert oracles.relative_error(run(made(AS[kind]), case, 3)[1], grads) == 0


@pytest.mark.parametrize("read, what, wrong", [
    (real, "a number", ["0.5", None, True, np.bool_(True), 1j, np.ones(1), KEY]),
    (whole, "a whole number", ["2", None, True, 2.0, np.float32(2), np.ones(1, int), jnp.ones(1, int)]),
])  # fmt: skip
def test_what_is_no_number_is_refused(read, what, wrong):
    for given in wrong:
        with pytest.raises(TypeError, match=rf"decay: expected {what}, got "):
            read("decay", given)


def test_a_traced_number_is_refused():
    with pytest.raises(TypeError, match="kappa: expected a number, got one that jit, vmap or grad traces. Make it out"):
        jax.jit(lambda kappa: start(se.EProp("['h']", kappa=kappa), build("rate")).traces)(0.5)
