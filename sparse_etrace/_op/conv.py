"""The stencil of a convolution as connectivity."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact, PyTree, Shaped

from .._numbers import whole
from .._sums import in_full
from .contract import ETraceOp, Uses
from .initial import masked_fan_in, parameter, size
from .param import ETraceParam
from .weights import check_bias, check_shape, masked, read_weights, with_bias

Weights = dict[str, Array]
Whole = Sequence[SupportsIndex] | np.ndarray


class ConvOp(ETraceOp):
    """Convolution in one, two or three dimensions, channels last: `y = x (*) f(w * mask) + bias`.

    Executes on `{'weight': (*window, c_in / groups, c_out), 'bias'?: (c_out,)}`. One weight serves at every output
    position, so its trace has the output positions in front.

    Args:
        xinfo: `jax.ShapeDtypeStruct` of one input without batch axes: `(32, 3)` is one-dimensional with three channels,
            `(32, 32, 3)` two-, `(32, 32, 32, 3)` three-dimensional.
        window_strides: one stride for each spatial axis.
        padding: `'SAME'`, `'VALID'`, or a pair `(low, high)` for each spatial axis.
        lhs_dilation, rhs_dilation: dilation of the input and of the kernel, for each spatial axis.
        feature_group_count: number of groups of channels.
        weight_mask: shaped like the weight, or None.
        weight_fn: elementwise function `f` of the weights; it never touches the bias.
        bias: whether a `'bias'` is needed, and made by `param`; False takes values with and without.

    Raises:
        TypeError: `xinfo` has no shape and type.
        ValueError: an argument does not fit `xinfo`; or, on execution, the kernel, mask, bias or `x` has another shape,
            or the bias is missing.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> op = se.ConvOp(jax.ShapeDtypeStruct((8, 1), jnp.float32), window_strides=[1], padding='SAME')
        >>> se.ETraceParam({'weight': jnp.ones((3, 1, 2))}, op)(jnp.ones((8, 1))).shape
        (8, 2)
    """

    xinfo: Any = eqx.field(static=True)
    window_strides: tuple[int, ...] = eqx.field(static=True)
    padding: Any = eqx.field(static=True)
    lhs_dilation: tuple[int, ...] | None = eqx.field(static=True)
    rhs_dilation: tuple[int, ...] | None = eqx.field(static=True)
    feature_group_count: int = eqx.field(static=True)
    weight_mask: Array | None
    weight_fn: Callable[[Array], Array] | None
    bias: bool = eqx.field(static=True)
    apply_weight_fn_before_mask: ClassVar[bool] = False
    per_unit: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(
        self,
        xinfo: object,
        window_strides: Whole,
        padding: str | Sequence[Whole],
        lhs_dilation: Whole | None = None,
        rhs_dilation: Whole | None = None,
        feature_group_count: SupportsIndex = 1,
        weight_mask: object = None,
        weight_fn: Callable[[Array], Array] | None = None,
        *,
        bias: object = False,
    ):
        if not hasattr(xinfo, "shape") or not hasattr(xinfo, "dtype"):
            raise TypeError(
                f"xinfo: expected a shape with a type, got {xinfo!r}. Write jax.ShapeDtypeStruct(shape, type)."
            )
        spatial = len(xinfo.shape) - 1
        if spatial not in (1, 2, 3):
            raise ValueError(
                f"xinfo: expected a shape of 1 to 3 spatial axes and the channels, got {xinfo.shape}. "
                "It describes one input, without batch axes."
            )
        given: dict[str, Any] = {"window_strides": window_strides}
        given |= {"lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation}
        given["padding"] = None if isinstance(padding, str) else padding
        for name, value in given.items():
            if value is not None and len(value) != spatial:
                raise ValueError(f"{name}: expected {spatial} entries, one for each spatial axis, got {value}.")
        strides = _whole("window_strides", window_strides)
        lhs, rhs = _whole("lhs_dilation", lhs_dilation), _whole("rhs_dilation", rhs_dilation)
        groups = whole("feature_group_count", feature_group_count)
        if isinstance(padding, str) and padding not in ("SAME", "VALID"):
            raise ValueError(f"padding: expected 'SAME', 'VALID' or a pair for each spatial axis, got {padding!r}.")
        if isinstance(padding, str) and set(lhs or ()) - {1}:
            raise ValueError(
                f"padding: expected a pair for each spatial axis where lhs_dilation is given, got {padding!r}."
            )
        if groups < 1 or xinfo.shape[-1] % groups:
            raise ValueError(
                f"feature_group_count: expected a divisor of the {xinfo.shape[-1]} input channels, got {groups}."
            )
        self.xinfo = jax.ShapeDtypeStruct(tuple(xinfo.shape), xinfo.dtype)
        self.window_strides = strides
        self.padding = padding if isinstance(padding, str) else tuple(_whole("padding", pair) for pair in padding)
        self.lhs_dilation, self.rhs_dilation, self.feature_group_count = lhs, rhs, groups
        self.weight_mask = None if weight_mask is None else jnp.array(weight_mask)
        self.weight_fn = weight_fn
        self.bias = bool(bias)

    def param(
        self,
        key: object,
        window: SupportsIndex | Whole,
        c_out: SupportsIndex,
        *,
        init: object = "fan_in",
        dtype: DTypeLike | None = None,
        **options: Any,
    ) -> ETraceParam:
        """A parameter with a kernel to start from, and a bias of zeros where the op has one.

        Args:
            key: where the weights are drawn from; None if `init` gives them.
            window: positions that the kernel sees along each spatial axis, or one number for all.
            c_out: number of channels of the output.
            init: `'fan_in'` draws normal weights with a variance of one by the number of taps into a channel of the
                output that the mask leaves; otherwise as for `MatMulOp.param`.
            dtype: floating type; the default one, or that of given weights.
            **options: `grad` and `is_etrace` of `ETraceParam`.

        Raises:
            TypeError: `key` is no key.
            ValueError: a size, `init` or `dtype` cannot be used.

        Example:
            >>> import jax, jax.numpy as jnp, sparse_etrace as se
            >>> op = se.ConvOp(jax.ShapeDtypeStruct((8, 3), jnp.float32), window_strides=[1], padding='SAME')
            >>> op.param(jax.random.key(0), 5, 16).value["weight"].shape
            (5, 3, 16)
        """
        spatial = self.input_ndim - 1
        sizes = tuple(window) if isinstance(window, Sequence | np.ndarray) else (window,) * spatial
        check_shape("window", (len(sizes),), (spatial,), "One size for each spatial axis, or one number for all.")
        c_in = self.xinfo.shape[-1] // self.feature_group_count
        shape = (*(size("window", each) for each in sizes), c_in, size("c_out", c_out))
        return parameter(self, shape[-1], key, shape, masked_fan_in(self.weight_mask, shape), init, dtype, options)

    @property
    def input_ndim(self) -> int:
        """Rank of `x` without batch axes."""
        return len(self.xinfo.shape)

    def phi(self, theta: PyTree[Array]) -> Weights:
        groups = self.feature_group_count
        c_in = self.xinfo.shape[-1] // groups
        what = f"({', '.join(['width', 'height', 'depth'][: self.input_ndim - 1])}, {c_in}, c_out)"
        weight = masked(read_weights(theta, self.input_ndim + 1, what)["weight"], self)
        if weight.shape[-2] != c_in or weight.shape[-1] % groups:
            raise ValueError(
                f"value['weight']: expected shape {what} with c_out a multiple of {groups}, got {weight.shape}. "
                "The channels are those of xinfo, divided by feature_group_count."
            )
        check_bias(theta, weight.shape[-1], self.bias)
        return {**theta, "weight": weight}

    @in_full()
    def xw_to_y(self, x: Shaped[Array, "*batch_space c_in"], w: Weights) -> Inexact[Array, "*batch_position c_out"]:
        batch, dtype = self._batch(x), jnp.result_type(x, w["weight"])
        flat = x.reshape(math.prod(batch), *self.xinfo.shape).astype(dtype)
        options = {"dimension_numbers": self._axes, "feature_group_count": self.feature_group_count, **self._geometry}
        y = jax.lax.conv_general_dilated(flat, w["weight"].astype(dtype), **options)
        return with_bias(y.reshape(*batch, *y.shape[1:]), w)

    def yw_to_w(self, y: Inexact[Array, "*batch_position c_out"], e: Weights) -> Weights:
        between = (None,) * self.input_ndim
        spread = {"weight": y[(..., *between, slice(None))], "bias": y}
        return {key: spread[key] * leaf for key, leaf in e.items()}

    @in_full()
    def xy_to_dw(self, x: Array, y: Array, v: Weights) -> Weights:
        *window, c_in, c_out = v["weight"].shape
        batch, groups = self._batch(x), self.feature_group_count
        flat = x.reshape(math.prod(batch), *self.xinfo.shape).astype(jnp.result_type(x, y))
        options = {"dimension_numbers": self._axes, **self._geometry}
        patches = jax.lax.conv_general_dilated_patches(flat, window, **options)
        patches = patches.reshape(*batch, *patches.shape[1:-1], groups, c_in, math.prod(window))
        grouped = y.reshape(*y.shape[:-1], groups, c_out // groups)
        weight = jnp.einsum("...gcw,...go->...wcgo", patches, grouped).reshape(*y.shape[:-1], *v["weight"].shape)
        slots = {"weight": weight, "bias": y}
        return {key: slots[key] for key in v}

    def synapses(self, v: PyTree, x: PyTree) -> list[Uses]:
        """Each tap of the kernel at each position of the output, apart from padding."""
        *taps, c_out = v["weight"].shape
        number = jnp.arange(1.0, math.prod(self.xinfo.shape) + 1).reshape(self.xinfo.shape)
        uses = []
        for tap, where in enumerate(np.ndindex(*taps)):
            one = jnp.zeros(v["weight"].shape, number.dtype).at[where].set(1)
            seen = np.asarray(self.xw_to_y(number, {"weight": one})).ravel().astype(int)
            post = np.flatnonzero(seen)
            uses.append(Uses(seen[post] - 1, post, tap * c_out + post % c_out))
        pre, post, slot = (np.concatenate(part) for part in zip(*uses, strict=True))
        units = np.arange(len(seen))
        found = {"weight": Uses(pre, post, slot), "bias": Uses(None, units, units % c_out)}
        return [found[key] for key in sorted(v)]

    def _batch(self, x: Array) -> tuple[int, ...]:
        check_shape("x", x.shape[-self.input_ndim :], self.xinfo.shape, "The shape of xinfo, after the batch axes.")
        return x.shape[: -self.input_ndim]

    @property
    def _axes(self) -> tuple[str, str, str]:
        space = "DHW"[3 - self.input_ndim + 1 :]
        return f"N{space}C", f"{space}IO", f"N{space}C"

    @property
    def _geometry(self) -> dict[str, Any]:
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        return {name: getattr(self, name) for name in names}


def _whole(name: str, values: Any) -> Any:
    return None if values is None else tuple(whole(name, value) for value in values)
