"""What the cells share."""

import operator
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._op.contract import in_front
from .._op.param import ETraceParam, Fixed

Constant = ETraceParam | Fixed
Units = SupportsIndex | tuple[SupportsIndex, ...]


def unit_shape(units: Units) -> tuple[int, ...]:
    return tuple(map(operator.index, units if isinstance(units, tuple) else (units,)))


def constant(value: Any, name: str, low: float | int, high: float | int) -> Constant:
    """A constant of a cell: a parameter as it is, a number or array as `Fixed`, checked against its bounds."""
    if isinstance(value, ETraceParam | Fixed):
        return value
    if not isinstance(value, jax.core.Tracer):
        numbers = np.asarray(value, float)
        if not np.all((low <= numbers) & (numbers <= high)):
            raise ValueError(
                f"{name}: expected values from {low} to {high}, got {value}. To train it, give an ElemWiseParam."
            )
    return Fixed(jnp.asarray(value, float))


def on_units(h: Array, *constants: Constant) -> list[Array]:
    """The values of constants, with axes of one for the batch axes of a state."""
    return [in_front(param(), h.ndim) for param in constants]


def behind_reset(u: Array, z: Array, reset: Array, gradient: bool) -> Array:
    """The potential that a spike leaves behind; without `gradient`, no derivative passes through the spike."""
    return u - reset * (z if gradient else jax.lax.stop_gradient(z))


def current(inp: ETraceParam | None, x: Array | None, rec: ETraceParam | None, h: Array) -> Array:
    """Input current of a layer: from outside and from its own old output `h`, which has the shape of the state."""
    if inp is None and x is not None:
        raise ValueError(
            f"x: the cell has no parameter that reads its input, got shape {jnp.shape(x)}. Give it one, `inp`, or call "
            "it with None."
        )
    total = jnp.zeros_like(h)
    for name, param, given in (("inp", inp, x), ("rec", rec, h)):
        if param is not None:
            y = param(given)
            if y.shape != h.shape[max(h.ndim - y.ndim, 0) :]:
                raise ValueError(
                    f"{name}: expected an output of the shape of the state, {h.shape}, got {y.shape}. "
                    "Fit the weights to `units`, and the batch axes of `init_state` to those of the input."
                )
            total = total + in_front(y, h.ndim)
    return total
