"""Minimal gated unit."""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._arrays import blank
from .._op.param import ETraceParam
from .cell import Units, cell_of, current, unit_shape


class MGU(eqx.Module):
    """Minimal gated unit: one gate forgets and resets.

    `f = sigmoid(inp_f(x) + rec_f(h))`, `c = tanh(inp_c(x) + rec_c(f h))`, `h_t = (1 - f) h + f c`; the output is `h_t`.

    Args:
        units: number of units, or their shape.
        inp_f, inp_c: input parameters of gate and candidate, with any op.
        rec_f, rec_c: their recurrent parameters.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.MGU.of(3, inputs=2, key=jax.random.key(0))
        >>> cell(cell.init_state(), jnp.ones(2))[1].shape
        (3,)

    Reference:
        Zhou et al. 2016, International Journal of Automation and Computing 13:226.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    inp_f: ETraceParam
    inp_c: ETraceParam
    rec_f: ETraceParam
    rec_c: ETraceParam

    def __init__(
        self,
        units: Units,
        inp_f: ETraceParam,
        inp_c: ETraceParam,
        rec_f: ETraceParam,
        rec_c: ETraceParam,
    ):
        self.shape = unit_shape(units)
        self.inp_f, self.inp_c, self.rec_f, self.rec_c = inp_f, inp_c, rec_f, rec_c

    of = classmethod(cell_of)

    def init_state(self, *batch: SupportsIndex) -> Float[Array, "*batch units"]:
        """Zero activity; `batch` are the sizes of the leading batch axes."""
        return blank((*batch, *self.shape))

    def __call__(self, h: Array, x: PyTree) -> tuple[Array, Array]:
        forget = jax.nn.sigmoid(current(self.inp_f, x, self.rec_f, h))
        candidate = jnp.tanh(current(self.inp_c, x, self.rec_c, forget * h))
        h = (1 - forget) * h + forget * candidate
        return h, h
