"""The numbers that a parameter starts from."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from .._graph.graph import Graph
from .._numbers import whole
from .param import ETraceParam
from .weights import check_shape


def parameter(
    op: Any,
    num_post: int,
    key: object,
    shape: tuple[int, ...],
    fan_in: Any,
    init: object,
    dtype: DTypeLike | None,
    options: Any,
    others: dict[str, Array] | None = None,
) -> ETraceParam:
    """The parameter of an op with weights of this shape, a bias of zeros where it wants one, and `others`."""
    value = {"weight": weights(key, shape, fan_in, init, dtype, op.weight_fn)}
    value |= {name: part.astype(value["weight"].dtype) for name, part in (others or {}).items()}
    if op.bias:
        value["bias"] = jnp.zeros(num_post, value["weight"].dtype)
    jax.eval_shape(op.phi, value)  # which says what does not fit
    return ETraceParam(value, op, **options)


def weights(
    key: object,
    shape: tuple[int, ...],
    fan_in: Any,
    init: object,
    dtype: DTypeLike | None,
    weight_fn: Callable[[Array], Array] | None,
) -> Array:
    """What a weight function makes the weights of, that `init` asks for.

    A function with a method `inverse` gets its value by it, and where it has a `range` too, numbers are drawn within;
    any other gets what is drawn as it is.
    """
    inverse = getattr(weight_fn, "inverse", None)
    if isinstance(init, str) and init == "fan_in":
        bounds = None if inverse is None else getattr(weight_fn, "range", None)
        kind = _kind(dtype)
        w = _drawn(check_key(key), shape, fan_in, jnp.promote_types(kind, jnp.float32), bounds)
    elif callable(init):
        kind = _kind(dtype)
        w = jnp.asarray(init(check_key(key), shape, kind))
    elif isinstance(init, str | Graph):
        got = "a graph" if isinstance(init, Graph) else repr(init)
        raise ValueError(
            f"init: expected 'fan_in', weights, or a function of key, shape and dtype, got {got}. Functions are in "
            "jax.nn.initializers; a graph is for the SpMatMulOp that is on it."
        )
    else:
        w = jnp.asarray(init)
        kind = _kind(w.dtype if dtype is None and jnp.issubdtype(w.dtype, jnp.inexact) else dtype)
        if weight_fn is not None and inverse is None:
            raise ValueError(
                f"init: expected a weight function with a method `inverse` where weights are given, got {weight_fn!r}. "
                "Give what it makes them of: ETraceParam({'weight': ...}, op)."
            )
    check_shape("init", w.shape, shape, "It has the shape of value['weight'].")
    w = w.astype(jnp.promote_types(kind, jnp.float32))
    return (w if inverse is None else inverse(w)).astype(kind)


def masked_fan_in(mask: Array | None, shape: tuple[int, ...]) -> Any:
    """Inputs of each receiving unit, the last axis of a weight; those that a mask of numbers scales count squared."""
    if mask is None:
        return math.prod(shape[:-1])
    check_shape("weight_mask", mask.shape, shape, "Give it the shape of value['weight'].")
    return jnp.sum(jnp.square(mask.astype(float)), axis=tuple(range(mask.ndim - 1)))


def size(name: str, value: object) -> int:
    """A number of units."""
    number = whole(name, value)
    if number < 0:
        raise ValueError(f"{name}: expected a number of units, got {number}. Count them from 0.")
    return number


def check_key(key: Any) -> Array:
    is_key = isinstance(key, jax.Array) and (
        key.ndim == 0 if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else key.dtype == jnp.uint32
    )
    if not is_key:
        got = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(f"key: expected one key to draw from, as of jax.random.key(0), got {got}.")
    return key


def _drawn(key: Array, shape: tuple[int, ...], fan_in: Any, kind: Any, bounds: tuple[Any, Any] | None) -> Array:
    """Normal numbers with a variance of one by fan-in; with bounds, of those the ones between."""
    scale = jax.lax.rsqrt(jnp.maximum(jnp.asarray(fan_in, float), 1)).astype(kind)
    if bounds is None:
        return scale * jax.random.normal(key, shape, kind)
    low, high = (jnp.broadcast_to(jnp.asarray(bound, kind), shape) for bound in bounds)
    w = scale * jax.random.truncated_normal(key, low / scale, high / scale, shape, kind)
    # Of a normal distribution that lies outside nothing is left to draw from.
    is_far = (low > 2 * scale) | (high < -2 * scale)
    start, end = jnp.where(is_far, low, 0), jnp.where(is_far, high, 1)
    w = jnp.where(is_far, start + (end - start) * jax.random.uniform(key, shape, kind), w)
    return jnp.clip(w, low, high)


def _kind(dtype: DTypeLike | None) -> Any:
    """A floating type that JAX has here; the default one unless given."""
    kind = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if not jnp.issubdtype(kind, jnp.inexact):
        raise ValueError(f"dtype: expected floating numbers, got {kind}, which are never trained. Write jnp.float32.")
    if not any(dtype is default for default in (None, float, complex)) and kind != jnp.dtype(dtype):
        raise ValueError(
            f"dtype: expected a type that JAX has here, got {jnp.dtype(dtype)}. Call "
            "jax.config.update('jax_enable_x64', True) first."
        )
    return kind
