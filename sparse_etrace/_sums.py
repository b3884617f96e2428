"""Sums that XLA would make slowly or narrowly: over few hidden variables, and of numbers in half precision."""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Inexact, PyTree, UInt32

# XLA makes a slow loop of a sum over an axis of so few; term by term it becomes part of whatever reads it.
FEW = 4


def dot(a: Inexact[Array, "vars *units"], b: Inexact[Array, "vars *units"]) -> Inexact[Array, "*units"]:
    """`sum_a a[a] b[a]` for each unit."""
    if not 0 < len(a) <= FEW:
        return jnp.sum(a * b, axis=0)
    first, *others = (x * y for x, y in zip(a, b, strict=True))
    return sum(others, first)


def matvec(
    matrix: Inexact[Array, "rows vars *units"], vector: Inexact[Array, "vars *units"]
) -> Inexact[Array, "rows *units"]:
    """`sum_b matrix[a, b] vector[b]` for each unit."""
    if not 0 < len(vector) <= FEW:
        return jnp.sum(matrix * vector[None], axis=1)
    made = [dot(row, vector) for row in matrix]
    return made if isinstance(vector, list) else jnp.stack(made)


def matmul(
    a: Inexact[Array, "rows vars *units"], b: Inexact[Array, "vars columns *units"]
) -> Inexact[Array, "rows columns *units"]:
    """`sum_b a[a, b] b[b, c]` for each unit."""
    if not 0 < len(b) <= FEW:
        return jnp.sum(a[:, :, None] * b[None], axis=1)
    made = [matvec(swapped(b), row) for row in a]
    return made if isinstance(b, list) else jnp.stack(made)


def swapped(a: Inexact[Array, "rows vars *units"]) -> Inexact[Array, "vars rows *units"]:
    """The transposed matrix of each unit."""
    return [list(row) for row in zip(*a, strict=True)] if isinstance(a, list) else jnp.swapaxes(a, 0, 1)


def sum_steps(a: Inexact[Array, "steps *shape"]) -> Inexact[Array, "*shape"]:
    """Sum over the first axis, half onto half: the loop that XLA makes of it takes 20 times as long on a CPU."""
    odd, part, one = [], jax.lax.slice_in_dim, jax.lax.index_in_dim  # traced more quickly than indices
    while len(a) > 1:
        half = len(a) // 2
        odd += [one(a, -1, keepdims=False)] * (len(a) % 2)
        a = part(a, 0, half) + part(a, half, 2 * half)
    return sum(odd, one(a, 0, keepdims=False)) if len(a) else jnp.sum(a, axis=0)


@contextlib.contextmanager
def in_full() -> Iterator[None]:
    """Matrix products of all digits of their factors; on a GPU JAX keeps ten bits of float32 unless it is told."""
    told = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    with jax.default_matmul_precision(told or "highest"):
        yield


def wide(dtype: DTypeLike) -> np.dtype:
    """The type in which numbers of a type are summed: at least float32."""
    return joined(dtype, jnp.float32)


def joined(*dtypes: DTypeLike) -> np.dtype:
    """The type that holds numbers of all these, of our choosing: also where JAX promotes no types of a user's."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def widened(tree: PyTree[Array]) -> PyTree[Array]:
    """A pytree whose floating numbers have at least float32."""

    def one(leaf: Array) -> Array:
        return leaf.astype(wide(leaf.dtype)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def narrowed(tree: PyTree[Array], like: PyTree[Array]) -> PyTree[Array]:
    """A pytree in the types of another."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def zeros(tree: PyTree) -> PyTree[Array]:
    """Where sums of a pytree of arrays, or of their shapes and types, begin."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide(leaf.dtype)), tree)


def is_narrow(dtype: DTypeLike) -> bool:
    """Whether a sum that is kept in this type between its terms would come to a stop."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def rounded(value: Array, dtype: DTypeLike, noise: UInt32[Array, ""] | None) -> Array:
    """A value in the type in which it is stored: rounded to the nearest, or right on average where there is `noise`.

    Up or down with the probability that leaves no bias, by a hash of the noise and the place in the array.
    """
    if noise is None or not is_narrow(dtype):
        return value.astype(dtype)
    value = value.astype(jnp.float32)
    bits, drawn = jax.lax.bitcast_convert_type(value, jnp.uint32), hashed(noise, value.shape)
    if dtype == jnp.bfloat16:
        # The compiled kernels do the same.
        bits = jnp.where(jnp.isnan(value), jnp.uint32(0x7FC00000), bits + (drawn >> 16))
        return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
    form = jnp.finfo(dtype)
    power = jax.lax.bitcast_convert_type(bits & jnp.uint32(0x7F800000), jnp.float32)
    step = jnp.maximum(power, float(form.smallest_normal)) * float(form.eps)
    moved = value + ((drawn >> 8).astype(jnp.float32) * 2.0**-24 - 0.5) * step
    return jnp.where(jnp.isfinite(value), moved, value).astype(dtype)


@rounded.defjvp
def _(dtype: DTypeLike, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return rounded(primals[0], dtype, primals[1]), tangents[0].astype(dtype)


def hashed(noise: UInt32[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """32 bits for each place of an array."""
    place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    h = place * jnp.uint32(0x9E3779B1) + noise
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def mixed(noise: UInt32[Array, ""] | None, part: ArrayLike) -> UInt32[Array, ""] | None:
    """Other bits for each part of what is rounded."""
    return None if noise is None else noise + jnp.asarray(part, jnp.uint32) * jnp.uint32(0x27D4EB2F)
