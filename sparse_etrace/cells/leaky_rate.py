"""Leaky rate units."""

from collections.abc import Callable
from typing import SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._arrays import blank
from .._op.param import ETraceParam
from .cell import Constant, Units, cell_from_time_constants, cell_of, constant, current, on_units, unit_shape


class LeakyRate(eqx.Module):
    """Rate units with a leak, `h_t = a h_{t-1} + (1 - a) f(inp(x_t) + rec(h_{t-1}))`; the output is `h_t`.

    Args:
        units: number of units, or their shape.
        inp: input parameter, with any op; None for a layer without input, whose `x` is None.
        rec: recurrent parameter, with any op; None for a layer without recurrence.
        decay: `a` from 0 to 1, `exp(-dt / tau)`: a number, an array of the shape of the units (neither is trained), or
            an `ElemWiseParam`, which is.
        activation: `f`.

    Raises:
        ValueError: `decay` is out of range.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.5)
        >>> state, out = cell(cell.init_state(), jnp.ones(2))
        >>> out.shape
        (3,)

    Reference:
        Sompolinsky, Crisanti and Sommers 1988, Physical Review Letters 61:259.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    inp: ETraceParam | None
    rec: ETraceParam | None
    decay: Constant
    activation: Callable[[Array], Array]

    def __init__(
        self,
        units: Units,
        inp: ETraceParam | None,
        rec: ETraceParam | None = None,
        decay: object = 0.9,
        activation: Callable[[Array], Array] = jnp.tanh,
    ):
        self.shape, self.inp, self.rec, self.activation = unit_shape(units), inp, rec, activation
        self.decay = constant(decay, "decay", 0, 1, self.shape)

    of = classmethod(cell_of)
    from_time_constants = classmethod(cell_from_time_constants)

    def init_state(self, *batch: SupportsIndex) -> Float[Array, "*batch units"]:
        """Zero activity; `batch` are the sizes of the leading batch axes."""
        return blank((*batch, *self.shape))

    def __call__(self, h: Array, x: PyTree) -> tuple[Array, Array]:
        (decay,) = on_units(h, self.decay)
        h = decay * h + (1 - decay) * self.activation(current(self.inp, x, self.rec, h))
        return h, h
