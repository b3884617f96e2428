"""All-to-all connectivity of low rank."""

from typing import Any, ClassVar, SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact, PyTree, Shaped

from .. import _kernels
from .._numbers import plain
from .._sums import in_full
from .active import Active, times
from .contract import ETraceOp, Uses
from .initial import size, weights
from .param import ETraceParam
from .weights import all_to_all, check_bias, check_input, window_of_weights, with_bias

Weights = dict[str, Array]
Traces = dict[str, Array | None]


class LoraOp(ETraceOp):
    """Low-rank layer, `y = alpha * x @ B @ A + bias`.

    Executes on `{'B': (num_pre, rank), 'A': (rank, num_post), 'bias'?: (num_post,)}`. Its weights on the synapses are
    `v = alpha * B @ A`.

    Args:
        alpha: scale; None for 1.
        bias: whether a `'bias'` is needed, and made by `param`; False takes values with and without.

    Raises:
        ValueError: the keys are others, the bias is missing, or the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> value = {'B': jnp.ones((4, 1)), 'A': jnp.ones((1, 2))}
        >>> se.ETraceParam(value, se.LoraOp(alpha=0.5))(jnp.ones(4)).tolist()
        [2.0, 2.0]

    Reference:
        Hu et al. 2022, International Conference on Learning Representations (arXiv 2106.09685).
    """

    alpha: Any
    bias: bool = eqx.field(static=True)
    per_unit: ClassVar[tuple[str, ...]] = ("bias",)
    takes_active: ClassVar[bool] = True

    def __init__(self, alpha: object = None, *, bias: object = False):
        self.alpha = 1.0 if alpha is None else plain(alpha)
        self.bias = bool(bias)

    def param(
        self,
        key: object,
        num_pre: SupportsIndex,
        num_post: SupportsIndex,
        rank: SupportsIndex,
        *,
        dtype: DTypeLike | None = None,
        **options: Any,
    ) -> ETraceParam:
        """A parameter that starts without effect: `A` is zero, and `B` normal with a variance of `1 / num_pre`.

        Args:
            key: where `B` is drawn from.
            num_pre, num_post: numbers of units.
            rank: of the weights.
            dtype: floating type; the default one unless given.
            **options: `grad` and `is_etrace` of `ETraceParam`.

        Raises:
            TypeError: `key` is no key.
            ValueError: a size or `dtype` cannot be used.

        Example:
            >>> import jax, sparse_etrace as se
            >>> se.LoraOp().param(jax.random.key(0), 30, 20, rank=2).value["A"].shape
            (2, 20)
        """
        num_pre, num_post, rank = size("num_pre", num_pre), size("num_post", num_post), size("rank", rank)
        b = weights(key, (num_pre, rank), num_pre, "fan_in", dtype, None)
        bias = {"bias": jnp.zeros(num_post, b.dtype)} if self.bias else {}
        return ETraceParam({"B": b, "A": jnp.zeros((rank, num_post), b.dtype), **bias}, self, **options)

    @in_full()
    def phi(self, theta: PyTree[Array]) -> Weights:
        if not isinstance(theta, dict) or not {"A", "B"} <= set(theta) <= {"A", "B", "bias"}:
            got = sorted(theta) if isinstance(theta, dict) else type(theta).__name__
            raise ValueError(f"value: expected {{'B': ..., 'A': ..., 'bias'?: ...}}, got {got}. Use these names.")
        b, a = theta["B"], theta["A"]
        if b.ndim != 2 or a.ndim != 2 or b.shape[1] != a.shape[0]:
            raise ValueError(
                f"value['B'], value['A']: expected (num_pre, rank) and (rank, num_post), got {b.shape} and {a.shape}. "
                "Give both the same rank."
            )
        check_bias(theta, a.shape[1], self.bias)
        rest = {key: leaf for key, leaf in theta.items() if key == "bias"}
        return {"weight": (self.alpha * (b @ a)).astype(b.dtype), **rest}

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
        """All pairs of units."""
        return all_to_all(v)
