"""One weight per unit, and no input."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, SupportsIndex

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from .._kernels.windows import window_per_unit
from .contract import ETraceOp, Uses
from .initial import size, weights
from .param import ETraceGrad, ETraceParam
from .weights import one_to_one


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

    fn: Callable[[PyTree], Array] | None = None
    is_diagonal: ClassVar[bool] = True

    def param(
        self,
        key: object,
        units: SupportsIndex | tuple[SupportsIndex, ...],
        *,
        init: object = "fan_in",
        dtype: DTypeLike | None = None,
        **options: Any,
    ) -> ETraceParam:
        """A parameter of one array to start from; `ElemWiseParam` makes one of any pytree.

        Args:
            key: where the values are drawn from; None if `init` gives them.
            units: number of units, or their shape.
            init: `'fan_in'` draws normal values with a variance of one, as a unit has one; a function
                `init(key, shape, dtype)`, as of `jax.nn.initializers`; or the values. They are those that `fn` gets.
            dtype: floating type; the default one, or that of given values.
            **options: `grad` (`ETraceGrad.full` unless given) and `is_etrace` of `ETraceParam`.

        Raises:
            TypeError: `key` is no key.
            ValueError: a size, `init` or `dtype` cannot be used.

        Example:
            >>> import jax, sparse_etrace as se
            >>> se.ElemWiseOp(jax.nn.sigmoid).param(jax.random.key(0), 3, init=jax.nn.initializers.zeros)().tolist()
            [0.5, 0.5, 0.5]
        """
        shape = tuple(size("units", n) for n in (units if isinstance(units, tuple) else (units,)))
        value = weights(key, shape, 1, init, dtype, None)
        return ETraceParam(value, self, **{"grad": ETraceGrad.full, **options})

    def phi(self, theta: PyTree[Array]) -> Array:
        value = theta if self.fn is None else self.fn(theta)
        if not jax.tree_util.treedef_is_leaf(jax.tree.structure(value)):
            raise ValueError(
                f"fn: expected one array of the hidden shape, got {jax.tree.structure(value)}. Make one of it."
            )
        return jnp.asarray(value)

    def xw_to_y(self, x: PyTree, w: Array) -> Array:
        if x is not None:
            raise ValueError("x: expected no input, got one. An elementwise parameter is called with no argument.")
        return w

    def yw_to_w(self, y: Array, e: Array) -> Array:
        return y * e

    def xy_to_dw(self, x: PyTree, y: Array, v: Array) -> Array:
        return y

    def window(
        self,
        v: Array,
        trace: Array,
        carried: Array | None,
        entering: Array | None,
        signal: Array | None,
        direct: Array | None,
        x: PyTree,
        noise: Array | None = None,
    ) -> tuple[Array | None, Array | None]:
        return window_per_unit(v, trace, carried, entering, signal, direct, noise)

    def synapses(self, v: PyTree, x: PyTree) -> list[Uses]:
        """Each value acts on its own unit."""
        return [one_to_one(math.prod(v.shape))]


def ElemWiseParam(w: PyTree, fn: Callable[[PyTree], Array] | None = None) -> ETraceParam:
    """A parameter of the units themselves, `y = fn(w)`, traced exactly under every learner.

    Args:
        w: any pytree of arrays.
        fn: makes of it an array of the hidden shape, or a number for all units; None for the identity.

    Returns:
        A parameter that is called without input.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.ElemWiseParam(jnp.zeros(2), jnp.exp)().tolist()
        [1.0, 1.0]
    """
    return ETraceParam(w, ElemWiseOp(fn), grad=ETraceGrad.full)
