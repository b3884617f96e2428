"""One weight per unit, and no input."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .contract import ETraceOp, Uses, one_to_one
from .windows import window_per_unit


class ElemWiseOp(ETraceOp):
    """One value per unit, `y = f(w)`.

    Executes on any pytree; `f` makes of it one array of the hidden shape (without batch axes), or a number.

    Args:
        fn: the function `f`; None for the identity on a single array.

    Raises:
        ValueError: the value is no single array and `fn` makes none of it, or an input is given.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.ETraceParam(jnp.zeros(3), se.ElemWiseOp(jnp.exp))().tolist()
        [1.0, 1.0, 1.0]
    """

    fn: Callable[[Any], Array] | None = None
    is_diagonal: ClassVar[bool] = True

    def phi(self, theta: PyTree[Array]) -> Array:
        value = theta if self.fn is None else self.fn(theta)
        if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
            raise ValueError(
                f"fn: expected one array of the hidden shape, got {jax.tree.structure(value)}. Make one of it."
            )
        return jnp.asarray(value)

    def xw_to_y(self, x: Any, w: Array) -> Array:
        if x is not None:
            raise ValueError("x: expected no input, got one. An elementwise parameter is called with no argument.")
        return w

    def yw_to_w(self, y: Array, e: Array) -> Array:
        return y * e

    def xy_to_dw(self, x: Any, y: Array, v: Array) -> Array:
        return y

    def window(
        self, v: Array, trace: Array, carried: Any, entering: Any, signal: Any, direct: Any, x: Any, noise: Any = None
    ) -> tuple[Array | None, Array | None]:
        return window_per_unit(v, trace, carried, entering, signal, direct, noise)

    def synapses(self, v: Any, x: Any) -> list[Uses]:
        """Each value acts on its own unit."""
        return [one_to_one(math.prod(v.shape))]
