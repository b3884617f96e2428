"""Memory for large arrays: handed out in large pages, and not written to before what belongs there."""

import math
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from .._varying import bind
from . import native

LARGE = 1 << 12  # bytes


def is_large(shape: Sequence[int], dtype: DTypeLike) -> bool:
    return math.prod(shape) * jnp.dtype(dtype).itemsize >= LARGE


def room(shape: tuple[int, ...], dtype: DTypeLike, after: Shaped[Array, "*any"], number: int) -> Shaped[Array, "..."]:
    """An array of any values, for a loop to write all of: zeros where a program is not of compiled kernels.

    XLA makes one of two rooms that are alike, and then a copy, unless their numbers differ or what they come `after`.
    That must be new in each pass of the loops around: what is not XLA makes before them, and copies in each.
    """
    return bind(room_p, after, shape=shape, dtype=np.dtype(dtype), number=number)[0]


def _xla(after: Array, *, shape: tuple[int, ...], dtype: np.dtype, number: int) -> list[Array]:
    return [jnp.zeros(shape, dtype)]


def _native(after: Array, *, shape: tuple[int, ...], dtype: np.dtype, number: int) -> list[Array]:
    results = [jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((0,), dtype)]
    return native.call("room", results, after, number=np.int64(number))


def _types(*avals: jax.core.ShapedArray, **_: Hashable) -> bool:
    return True


def _jvp(primals: Sequence[Array], tangents: Sequence[object], **params: Hashable) -> tuple[list[Array], list[ad.Zero]]:
    made = room_p.bind(*primals, **params)
    return made, [ad.Zero(jax.typeof(part).to_tangent_aval()) for part in made]


room_p = native.primitive("room", _xla, _native, _types, is_split=True)
room_p.def_impl(_xla)  # zeros where each operation is looked at, as `jax_debug_nans` does
ad.primitive_jvps[room_p] = _jvp
batching.primitive_batchers[room_p] = lambda operands, axes, **params: (room_p.bind(*operands, **params), [None])
