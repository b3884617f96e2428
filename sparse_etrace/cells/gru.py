"""Gated recurrent unit."""

from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._arrays import blank
from .._op.param import ETraceParam
from .cell import Units, cell_of, current, unit_shape


class GRU(eqx.Module):
    """Gated recurrent unit.

    `r = sigmoid(inp_r(x) + rec_r(h))`, `u = sigmoid(inp_u(x) + rec_u(h))`, `c = tanh(inp_c(x) + rec_c(r h))`,
    `h_t = (1 - u) h + u c`; the output is `h_t`.

    Args:
        units: number of units, or their shape.
        inp_r, inp_u, inp_c: input parameters of reset gate, update gate and candidate, with any op.
        rec_r, rec_u, rec_c: their recurrent parameters.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.GRU.of(3, inputs=2, key=jax.random.key(0))
        >>> cell(cell.init_state(5), jnp.ones((5, 2)))[1].shape
        (5, 3)

    Reference:
        Cho et al. 2014, Empirical Methods in Natural Language Processing (arXiv 1406.1078).
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    inp_r: ETraceParam
    inp_u: ETraceParam
    inp_c: ETraceParam
    rec_r: ETraceParam
    rec_u: ETraceParam
    rec_c: ETraceParam

    def __init__(
        self,
        units: Units,
        inp_r: ETraceParam,
        inp_u: ETraceParam,
        inp_c: ETraceParam,
        rec_r: ETraceParam,
        rec_u: ETraceParam,
        rec_c: ETraceParam,
    ):
        self.shape = unit_shape(units)
        self.inp_r, self.inp_u, self.inp_c = inp_r, inp_u, inp_c
        self.rec_r, self.rec_u, self.rec_c = rec_r, rec_u, rec_c

    of = classmethod(cell_of)

    def init_state(self, *batch: SupportsIndex) -> Float[Array, "*batch units"]:
        """Zero activity; `batch` are the sizes of the leading batch axes."""
        return blank((*batch, *self.shape))

    def __call__(self, h: Array, x: PyTree) -> tuple[Array, Array]:
        reset = jax.nn.sigmoid(current(self.inp_r, x, self.rec_r, h))
        update = jax.nn.sigmoid(current(self.inp_u, x, self.rec_u, h))
        candidate = jnp.tanh(current(self.inp_c, x, self.rec_c, reset * h))
        h = (1 - update) * h + update * candidate
        return h, h
