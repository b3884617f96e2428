"""What the cells share."""

import inspect
import operator
from collections.abc import Callable
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PyTree

from .._arrays import blank
from .._graph.connectivity import Connectivity
from .._graph.graph import Graph
from .._op import MatMulOp, SpMatMulOp
from .._op.delays import Ring
from .._op.initial import check_key, size
from .._op.param import ETraceParam, Fixed
from .._op.weights import in_front

Constant = ETraceParam | Fixed
Units = SupportsIndex | tuple[SupportsIndex, ...]


def unit_shape(units: Units) -> tuple[int, ...]:
    return tuple(map(operator.index, units if isinstance(units, tuple) else (units,)))


def cell_of(
    cls: Any,
    graph: object,
    inputs: object,
    *,
    key: object,
    bias: object = True,
    weight_fn: Callable[[Array], Array] | None = None,
    init: object = "fan_in",
    dtype: DTypeLike | None = None,
    **constants: Any,
) -> Any:
    """A cell whose units are connected by a graph, with parameters to start from.

    Args:
        graph: a square `Graph` or `Connectivity`, or the number of units that are connected all to all.
        inputs: number of inputs, each connected to all units; a `Graph` or `Connectivity` from inputs to units; None
            for a cell without input.
        key: where the weights are drawn from, others for each parameter.
        bias: whether the recurrent parameters have a bias, of zeros.
        weight_fn: weight function of the recurrent parameters.
        init: what these start from: `'fan_in'`, `graph` for its own weights, or as in `SpMatMulOp.param`. Input weights
            are always drawn by fan-in.
        dtype: floating type of the parameters.
        **constants: the cell's other arguments.

    Raises:
        TypeError: an argument is of another kind, or the cell does not take it.
        ValueError: the graph has other units.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2], [1, 2, 0])
        >>> se.cells.GRU.of(graph, inputs=3, key=jax.random.key(0)).init_state(5).shape
        (5, 3)
    """
    arguments = inspect.signature(cls).parameters
    made = [name for name in arguments if name.startswith(("inp", "rec"))]
    others = [name for name in arguments if name not in (*made, "units")]
    for name in constants:
        if name not in others:
            raise TypeError(
                f"{name}: expected one of {others} of {cls.__name__}, or an argument of `of`, got another name. "
                "Parameters are made here; to give your own, call the cell itself."
            )
    units = senders("graph", graph)
    params: dict[str, ETraceParam | None] = {}
    for name, one in zip(made, jax.random.split(check_key(key), len(made)), strict=True):
        if name.startswith("rec"):
            params[name] = onto(units, "graph", graph, one, bias=bias, weight_fn=weight_fn, init=init, dtype=dtype)
        elif inputs is None and arguments[name].annotation is not ETraceParam:
            params[name] = None
        else:
            params[name] = onto(units, "inputs", inputs, one, dtype=dtype)
    return cls(units, **params, **constants)


def cell_from_time_constants(
    cls: Any, *args: object, tau: ArrayLike, dt: ArrayLike, tau_adaptation: ArrayLike | None = None, **constants: Any
) -> Any:
    """A cell with the decays `exp(-dt / tau)` of a step.

    Args:
        *args: those of the cell; with `key` those of its `of`.
        tau: time constant of `decay`, a number or an array.
        dt: length of a step, in the same unit.
        tau_adaptation: time constant of `adaptation_decay`; that of the cell unless given.
        **constants: the cell's other arguments, or those of `of`.

    Raises:
        ValueError: a time is not positive.

    Example:
        >>> import jax, sparse_etrace as se
        >>> times = {"tau": 20.0, "tau_adaptation": 200.0, "dt": 1.0}
        >>> cell = se.cells.ALIF.from_time_constants(3, inputs=2, key=jax.random.key(0), **times)
        >>> round(float(cell.decay()), 4), round(float(cell.adaptation_decay()), 4)
        (0.9512, 0.995)
    """
    times = {"decay": ("tau", tau), "adaptation_decay": ("tau_adaptation", tau_adaptation)}
    for name, time in (("dt", dt), *times.values()):
        if time is not None and not np.all(np.asarray(time, float) > 0):
            raise ValueError(
                f"{name}: expected positive times, got {time}. To train a decay, give the cell a parameter."
            )
    decays = {
        name: np.exp(-np.asarray(dt, float) / np.asarray(time, float))
        for name, (_, time) in times.items()
        if time is not None
    }
    return (cls.of if "key" in constants else cls)(*args, **decays, **constants)


def onto(
    units: int,
    name: str,
    given: object,
    key: object,
    bias: object = False,
    weight_fn: Any = None,
    init: object = "fan_in",
    dtype: DTypeLike | None = None,
) -> ETraceParam:
    """A parameter into so many units: all to all from a number of others, or on a graph."""
    pre = senders(name, given)
    if not isinstance(given, Graph | Connectivity):
        dense = MatMulOp(weight_fn=weight_fn, bias=bias)
        return dense.param(key, pre, units, init=init, dtype=dtype)
    sparse = SpMatMulOp(given, weight_fn, bias=bias)
    if sparse.connectivity.num_post != units:
        raise ValueError(
            f"{name}: expected synapses onto the {units} units, got shape {sparse.connectivity.shape}. "
            "A cell's own graph leads from its units to its units, one of inputs from these to the units."
        )
    return sparse.param(key, init=init, dtype=dtype)


def senders(name: str, given: object) -> int:
    """How many units there are at the sending end."""
    if isinstance(given, Graph | Connectivity):
        return (given.connectivity if isinstance(given, Graph) else given).num_pre
    if not hasattr(given, "__index__"):
        raise TypeError(
            f"{name}: expected a Graph, a Connectivity or a number of units, got {type(given).__name__}. "
            "se.from_networkx, se.from_scipy and their like make graphs."
        )
    return size(name, given)


def fits(name: str, value: Any, units: tuple[int, ...]) -> None:
    """Raise unless a constant is a number, or an array that a state of these units takes without other axes."""
    shape = np.shape(value)
    if len(shape) > len(units) or any(n not in (1, m) for n, m in zip(shape[::-1], units[::-1])):
        raise ValueError(f"{name}: expected an array that fits the units, {units}, got shape {shape}.")


def constant(
    value: Any, name: str, low: float | int, high: float | int, units: tuple[int, ...] | None = None
) -> Constant:
    """A constant of a cell: a parameter as it is, a number or array as `Fixed`, checked against bounds and units."""
    is_given = isinstance(value, ETraceParam | Fixed)
    if not is_given and not isinstance(value, jax.core.Tracer):
        numbers = np.asarray(value, float)
        if not np.all((low <= numbers) & (numbers <= high)):
            raise ValueError(
                f"{name}: expected values from {low} to {high}, got {value}. To train it, give an ElemWiseParam."
            )
    if units is not None:
        fits(name, value() if is_given else value, units)
    return value if is_given else Fixed(jnp.asarray(value, float))


def on_units(h: Array, *constants: Constant) -> list[Array]:
    """The values of constants, with axes of one for the batch axes of a state."""
    return [in_front(param(), h.ndim) for param in constants]


def silent_steps(value: object, units: tuple[int, ...]) -> Fixed | None:
    """Whole steps, a number or an array, in which a unit that has spiked stays silent; None for none."""
    fits("refractory", value, units)
    steps = np.asarray(value)
    if steps.dtype.kind not in "iu" or np.any(steps < 0):
        raise ValueError(f"refractory: expected whole steps, 0 or more, got {value!r}. Divide a time by that of one.")
    return Fixed(jnp.asarray(steps, jnp.int32)) if steps.any() else None


def awake(shape: tuple[int, ...], steps: Fixed | None) -> Array | None:
    """Steps to wait before any spike: zeros, or None where there is no refractoriness."""
    return None if steps is None else blank(shape, jnp.int32)


def silenced(z: Array, wait: Array | None, steps: Fixed | None) -> tuple[Array, Array | None]:
    """Spikes of the units that do not wait after an earlier one, and how long each waits now."""
    if wait is None or steps is None:
        return z, None
    z = jnp.where(wait > 0, 0, z)
    return z, jnp.where(z > 0, in_front(steps(), z.ndim), jnp.maximum(wait - 1, 0))


def after_reset(u: Array, z: Array, reset: Array, gradient: bool) -> Array:
    """The potential that a spike leaves behind; without `gradient`, no derivative passes through the spike."""
    return u - reset * (z if gradient else jax.lax.stop_gradient(z))


def current(inp: ETraceParam | None, x: PyTree, rec: ETraceParam | None, h: Array | Ring) -> Array:
    """Input current of a layer: from outside and from its own old output `h`, which has the shape of the state."""
    ring, h = h, h.newest if isinstance(h, Ring) else h
    if inp is None and x is not None:
        raise ValueError(
            f"x: the cell has no parameter that reads its input, got shape {jnp.shape(x)}. Give it one, `inp`, or call "
            "it with None."
        )
    total = jnp.zeros_like(h)
    op = getattr(rec, "op", None)
    reads_rings = isinstance(getattr(op, "op", op), SpMatMulOp)
    for name, param, given in (("inp", inp, x), ("rec", rec, ring if reads_rings else h)):
        if param is not None:
            total = total + fitted(name, param(given), h)
    return total


def fitted(name: str, y: Array, h: Array) -> Array:
    """An output of an op with axes of one for the batch axes of a state `h`."""
    if y.shape != h.shape[max(h.ndim - y.ndim, 0) :]:
        raise ValueError(
            f"{name}: expected an output of the shape of the state, {h.shape}, got {y.shape}. "
            "Fit the weights to `units`, and the batch axes of `init_state` to those of the input."
        )
    return in_front(y, h.ndim)
