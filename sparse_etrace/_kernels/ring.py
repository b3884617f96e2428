"""Rings of what was sent in the last steps, and products with it, whose senders are units in slots."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching
from jaxtyping import Array, Inexact, Int

from .._graph.connectivity import Connectivity
from .._sums import wide
from .._varying import bind
from . import native
from .products import Axes, Tangent, as_steps, connectivity_of, in_front, spmv

# XLA writes fewer numbers to a slot itself, where it makes them.
LEAST = 2**12


def spmv_ring(
    connectivity: Connectivity,
    weight: Inexact[Array, " synapses"],
    ring: Inexact[Array, "*batch slots units"],
    first: Int[Array, ""],
) -> Inexact[Array, "*batch post"]:
    """`spmv` of those senders that lie in the ring from the slot `first` on, without taking them out of it.

    After its last slot comes its first one.
    """
    dtype = jnp.result_type(weight, ring)
    *batch, slots, units = ring.shape
    if not ring.size:
        return spmv(connectivity, weight, jnp.zeros((*batch, connectivity.num_pre), ring.dtype))
    given = weight.astype(wide(dtype)), as_steps(ring.reshape(*batch, slots * units)).astype(wide(dtype))
    y = bind(ring_p, *connectivity.arrays, *given, first, sizes=connectivity.shape, units=units)[0].astype(dtype)
    return y.reshape(*batch, connectivity.num_post)


def slots_of(
    ring: Inexact[Array, "*batch slots units"], first: Int[Array, ""], count: int
) -> Inexact[Array, "*batch count units"]:
    """So many slots of a ring from one on, after the last of which comes its first one."""
    if count == 1:
        return jax.lax.dynamic_slice_in_dim(ring, first, 1, axis=-2)
    return jnp.roll(ring, -first, axis=-2)[..., :count, :]


def push(
    ring: Inexact[Array, "*batch slots units"], sent: Inexact[Array, "*batch units"], pointer: Int[Array, ""]
) -> Inexact[Array, "*batch slots units"]:
    """The ring with this in the slot `pointer`; in a loop that carries it, in place."""
    return bind(push_p, ring, sent, pointer)[0]


def _xla(*operands: Array, sizes: tuple[int, int], units: int) -> list[Array]:
    *ids, weight, ring, first = operands
    recent = slots_of(ring.reshape(len(ring), -1, units), first, sizes[0] // units)
    return [spmv(connectivity_of(ids, sizes), weight, recent.reshape(len(ring), -1))]


def _native(*operands: Array, sizes: tuple[int, int], units: int) -> list[Array]:
    *ids, weight, ring, first = operands
    columns, pitch = len(ring), native.pitch(len(ring))
    shapes = (1, columns, sizes[1]), (sizes[0], pitch)
    results = [jax.ShapeDtypeStruct(shape, ring.dtype) for shape in shapes]
    (y,) = native.call("spmv", results, *ids, weight[None], ring[None], first[None], units=np.int64(units))
    return [y[0]]


def _jvp(
    primals: Sequence[Array], tangents: Sequence[Tangent], sizes: tuple[int, int], units: int
) -> tuple[list[Array], list[Array]]:
    *ids, weight, ring, first = primals
    *_, by_weight, by_ring, _ = tangents
    moved: list[Any] = [(by_weight, (by_weight, ring)), (by_ring, (weight, by_ring))]
    parts = [_xla(*ids, *pair, first, sizes=sizes, units=units)[0] for d, pair in moved if type(d) is not ad.Zero]
    return bind(ring_p, *primals, sizes=sizes, units=units), [sum(parts[1:], parts[0])]


def _batch(operands: Sequence[Array], axes: Axes, sizes: tuple[int, int], units: int) -> tuple[list[Array], list[int]]:
    *others, ring, first = operands
    if any(axis is not None for axis in (*axes[:-2], axes[-1])):
        return jax.vmap(lambda *parts: _xla(*parts, sizes=sizes, units=units), in_axes=tuple(axes))(*operands), [0]
    ring = jnp.moveaxis(ring, axes[-2], 0)
    (y,) = bind(ring_p, *others, as_steps(ring), first, sizes=sizes, units=units)
    return [y.reshape(*ring.shape[:-1], sizes[1])], [0]


ring_p = native.primitive("spmv_ring", _xla, _native, native.compiled_types)
ad.primitive_jvps[ring_p] = _jvp
batching.primitive_batchers[ring_p] = _batch


def _push_xla(ring: Array, sent: Array, pointer: Array) -> list[Array]:
    return [jax.lax.dynamic_update_slice_in_dim(ring, sent[..., None, :], pointer, axis=-2)]


def _push_native(ring: Array, sent: Array, pointer: Array) -> list[Array]:
    result = jax.ShapeDtypeStruct(ring.shape, ring.dtype)
    return [jax.ffi.ffi_call("sparse_etrace_push", result, input_output_aliases={0: 0})(ring, sent, pointer)]


def _push_types(ring: jax.core.ShapedArray, sent: jax.core.ShapedArray, pointer: jax.core.ShapedArray) -> bool:
    return sent.size >= LEAST and pointer.dtype == jnp.int32


def _push_jvp(primals: Sequence[Array], tangents: Sequence[Tangent]) -> tuple[list[Array], list[Array]]:
    ring, sent = (ad.instantiate_zeros(t) for t in tangents[:2])
    return bind(push_p, *primals), _push_xla(ring, sent, primals[2])


def _push_batch(operands: Sequence[Array], axes: Axes) -> tuple[list[Array], list[int]]:
    if axes[2] is not None:
        return jax.vmap(_push_xla, in_axes=tuple(axes))(*operands), [0]
    size = next(v.shape[axis] for v, axis in zip(operands, axes, strict=True) if axis is not None)
    ring, sent = (in_front(v, axis, size) for v, axis in zip(operands[:2], axes[:2], strict=True))
    return bind(push_p, ring, sent, operands[2]), [0]


push_p = native.primitive("push", _push_xla, _push_native, _push_types)
ad.primitive_jvps[push_p] = _push_jvp
batching.primitive_batchers[push_p] = _push_batch
