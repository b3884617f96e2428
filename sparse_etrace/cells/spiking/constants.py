"""Constants of neurons and synapses, and the jump of the membrane potential at a spike."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ..._op.param import ETraceParam, Fixed
from ..._op.weights import in_front
from ..cell import Constant, constant

TINY = 1e-12
Value = Any  # a constant, `ETraceParam` or `Fixed`; its number or array in models that are `evaluated`
Number = Array | np.ndarray | float | int
Variables = dict[str, Number]


def field(name: str, default: float, low: float | int = -np.inf, high: float | int = np.inf) -> Any:
    """A constant as a field: a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained."""
    return eqx.field(default=default, converter=lambda value: constant(value, name, low, high))


class Subtract(eqx.Module):
    """What `reset="subtract"` becomes."""


def reset_field(default: object) -> Any:
    """`"subtract"`, a potential, or None."""

    def convert(value: object) -> Constant | Subtract | None:
        if value is None or isinstance(value, Subtract):
            return value
        if isinstance(value, str):
            if value != "subtract":
                raise ValueError(f"reset: expected 'subtract', a potential or None, got {value!r}.")
            return Subtract()
        return constant(value, "reset", -np.inf, np.inf)

    return eqx.field(default=default, converter=convert)


def reset_to(v: Number, z: Number, reset: Value | Subtract | None, height: Number) -> Number:
    """The potential that a spike leaves behind."""
    if reset is None:
        return v
    return v - height * z if isinstance(reset, Subtract) else (1 - z) * v + z * reset


def check_above(name: str, high: Constant, rest: Constant) -> None:
    """A threshold lies above rest, so that a margin has its sign."""
    known = [c.value for c in (high, rest) if isinstance(c, Fixed) and not isinstance(c.value, jax.core.Tracer)]
    if len(known) == 2 and not np.all(np.asarray(known[0]) > np.asarray(known[1])):
        raise ValueError(f"{name}: expected values above rest, {rest.value}, got {high.value}.")


def is_constant(leaf: object) -> bool:
    return isinstance(leaf, ETraceParam | Fixed)


def evaluated(parts: PyTree, ndim: int) -> PyTree:
    """Models whose fields are the values of their constants, with axes of one for the batch axes of a state."""
    return jax.tree.map(lambda c: in_front(c(), ndim) if is_constant(c) else c, parts, is_leaf=is_constant)


def is_trained(parts: PyTree) -> PyTree:
    return jax.tree.map(lambda c: isinstance(c, ETraceParam), parts, is_leaf=is_constant)


def numbers(parts: PyTree) -> PyTree:
    """The same with all digits of numpy, where jax does not trace them."""

    def number(c: Constant) -> ArrayLike:
        value = c() if isinstance(c, ETraceParam) else c.value
        return value if isinstance(value, jax.core.Tracer) else np.asarray(value, float)

    return jax.tree.map(lambda c: number(c) if is_constant(c) else c, parts, is_leaf=is_constant)
