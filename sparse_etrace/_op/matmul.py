"""All-to-all connectivity."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PyTree, Shaped

from .. import _kernels
from .contract import ETraceOp, Uses, all_to_all, check_bias, check_input, masked, read_weights, with_bias

Weights = dict[str, Array]


class MatMulOp(ETraceOp):
    """Dense layer, `y = x @ f(w * mask) + bias`.

    Executes on `{'weight': (num_pre, num_post), 'bias'?: (num_post,)}`.

    Args:
        weight_mask: `(num_pre, num_post)`, boolean or numbers; None for all ones.
        weight_fn: elementwise function `f` of the weights; it never touches the bias.
        apply_weight_fn_before_mask: `f(w) * mask` instead of `f(w * mask)`.

    Raises:
        ValueError: `weight`, `weight_mask`, `bias` or `x` has another shape.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.ETraceParam({'weight': jnp.ones((4, 5))}, se.MatMulOp(weight_fn=jnp.abs))(jnp.ones(4)).tolist()
        [4.0, 4.0, 4.0, 4.0, 4.0]
    """

    weight_mask: Array | None
    weight_fn: Callable[[Array], Array] | None
    apply_weight_fn_before_mask: bool = eqx.field(static=True)
    per_unit: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(
        self,
        weight_mask: Any = None,
        weight_fn: Callable[[Array], Array] | None = None,
        apply_weight_fn_before_mask: Any = False,
    ):
        self.weight_mask = None if weight_mask is None else jnp.array(weight_mask)
        self.weight_fn = weight_fn
        self.apply_weight_fn_before_mask = bool(apply_weight_fn_before_mask)

    def phi(self, theta: PyTree[Array]) -> Weights:
        weight = masked(read_weights(theta, 2, "(num_pre, num_post)")["weight"], self)
        check_bias(theta, weight.shape[1])
        return {**theta, "weight": weight}

    def xw_to_y(self, x: Shaped[Array, "*batch pre"], w: Weights) -> Inexact[Array, "*batch post"]:
        check_input(x, -1, w["weight"].shape[0])
        return with_bias(x @ w["weight"], w)

    def yw_to_w(self, y: Inexact[Array, "*batch post"], e: Weights) -> Weights:
        return _kernels.dense.spread(y, e)

    def xy_to_dw(self, x: Shaped[Array, "*batch pre"], y: Inexact[Array, "*batch post"], v: Weights) -> Weights:
        return _kernels.dense.outer(x, y, v)

    def sum_dw(self, x: Shaped[Array, "k *batch pre"], y: Inexact[Array, "k *batch post"], v: Weights) -> Weights:
        return _kernels.dense.sum_outer(x, y, v)

    def synapses(self, v: Any, x: Any) -> list[Uses]:
        """All pairs of units, or those where the mask is not zero, if that makes the weight zero."""
        is_zero = self.weight_fn is None or self.apply_weight_fn_before_mask
        return all_to_all(v, None if self.weight_mask is None or not is_zero else np.asarray(self.weight_mask) != 0)
