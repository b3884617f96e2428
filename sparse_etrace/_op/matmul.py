"""All-to-all connectivity."""

from collections.abc import Callable
from typing import Any, ClassVar, SupportsIndex

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact, PyTree, Shaped

from .. import _kernels
from .._sums import in_full
from .active import Active, times
from .contract import ETraceOp, Uses
from .initial import masked_fan_in, parameter, size
from .param import ETraceParam
from .weights import all_to_all, check_bias, check_input, masked, read_weights, window_of_weights, with_bias

Weights = dict[str, Array]
Traces = dict[str, Array | None]


class MatMulOp(ETraceOp):
    """Dense layer, `y = x @ f(w * mask) + bias`.

    Executes on `{'weight': (num_pre, num_post), 'bias'?: (num_post,)}`.

    Args:
        weight_mask: `(num_pre, num_post)`, boolean or numbers; None for all ones.
        weight_fn: elementwise function `f` of the weights; it never touches the bias.
        apply_weight_fn_before_mask: `f(w) * mask` instead of `f(w * mask)`.
        bias: whether a `'bias'` is needed, and made by `param`; False takes values with and without.

    Raises:
        ValueError: `weight`, `weight_mask`, `bias` or `x` has another shape, or the bias is missing.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.ETraceParam({'weight': jnp.ones((4, 5))}, se.MatMulOp(weight_fn=jnp.abs))(jnp.ones(4)).tolist()
        [4.0, 4.0, 4.0, 4.0, 4.0]
    """

    weight_mask: Array | None
    weight_fn: Callable[[Array], Array] | None
    apply_weight_fn_before_mask: bool = eqx.field(static=True)
    bias: bool = eqx.field(static=True)
    per_unit: ClassVar[tuple[str, ...]] = ("bias",)
    takes_active: ClassVar[bool] = True

    def __init__(
        self,
        weight_mask: object = None,
        weight_fn: Callable[[Array], Array] | None = None,
        apply_weight_fn_before_mask: object = False,
        *,
        bias: object = False,
    ):
        self.weight_mask = None if weight_mask is None else jnp.array(weight_mask)
        self.weight_fn = weight_fn
        self.apply_weight_fn_before_mask = bool(apply_weight_fn_before_mask)
        self.bias = bool(bias)

    def param(
        self,
        key: object,
        num_pre: SupportsIndex,
        num_post: SupportsIndex,
        *,
        init: object = "fan_in",
        dtype: DTypeLike | None = None,
        **options: Any,
    ) -> ETraceParam:
        """A parameter with weights to start from, and a bias of zeros where the op has one.

        Args:
            key: where the weights are drawn from; None if `init` gives them.
            num_pre, num_post: numbers of units.
            init: `'fan_in'` draws normal weights with a variance of one by the number of inputs of a unit that the
                mask leaves; a function `init(key, shape, dtype)`, as of `jax.nn.initializers`; or the weights.
                A weight function with an `inverse` makes these weights, any other what it makes of them.
            dtype: floating type; the default one, or that of given weights.
            **options: `grad` and `is_etrace` of `ETraceParam`.

        Raises:
            TypeError: `key` is no key.
            ValueError: a size, `init` or `dtype` cannot be used.

        Example:
            >>> import jax, sparse_etrace as se
            >>> se.MatMulOp(bias=True).param(jax.random.key(0), 3, 100).value["weight"].shape
            (3, 100)
        """
        shape = (size("num_pre", num_pre), size("num_post", num_post))
        return parameter(self, shape[1], key, shape, masked_fan_in(self.weight_mask, shape), init, dtype, options)

    def phi(self, theta: PyTree[Array]) -> Weights:
        weight = masked(read_weights(theta, 2, "(num_pre, num_post)")["weight"], self)
        check_bias(theta, weight.shape[1], self.bias)
        return {**theta, "weight": weight}

    @in_full()
    def xw_to_y(self, x: Shaped[Array, "*batch pre"] | Active, w: Weights) -> Inexact[Array, "*batch post"]:
        check_input(x, -1, w["weight"].shape[0])
        return with_bias(times(x, w["weight"]), w)

    def yw_to_w(self, y: Inexact[Array, "*batch post"], e: Weights) -> Weights:
        return _kernels.dense.spread(y, e)

    def xy_to_dw(self, x: Shaped[Array, "*batch pre"], y: Inexact[Array, "*batch post"], v: Weights) -> Weights:
        return _kernels.dense.outer(x, y, v)

    def sum_dw(self, x: Shaped[Array, "k *batch pre"], y: Inexact[Array, "k *batch post"], v: Weights) -> Weights:
        return _kernels.dense.sum_outer(x, y, v)

    window = window_of_weights

    def synapses(self, v: PyTree, x: PyTree) -> list[Uses]:
        """All pairs of units, or those where the mask is not zero, if that makes the weight zero."""
        is_zero = self.weight_fn is None or self.apply_weight_fn_before_mask
        return all_to_all(v, None if self.weight_mask is None or not is_zero else np.asarray(self.weight_mask) != 0)
