"""Products with what was sent in the last steps, which lies in a ring: senders are units in its slots."""

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
from .products import Axes, Tangent, as_steps, connectivity_of, spmv


def spmv_ring(
    connectivity: Connectivity,
    weight: Inexact[Array, " synapses"],
    ring: Inexact[Array, "*batch slots units"],
    first: Int[Array, ""],
) -> Inexact[Array, "*batch post"]:
    """`spmv` of those senders that lie in the ring from the slot `first` on, without taking them out of it."""
    dtype = jnp.result_type(weight, ring)
    given = weight.astype(wide(dtype)), as_steps(ring.reshape(*ring.shape[:-2], -1)).astype(wide(dtype))
    units = ring.shape[-1]
    y = bind(ring_p, *connectivity.arrays, *given, first, sizes=connectivity.shape, units=units)[0].astype(dtype)
    return y.reshape(*ring.shape[:-2], connectivity.num_post)


def _xla(*operands: Array, sizes: tuple[int, int], units: int) -> list[Array]:
    *ids, weight, ring, first = operands
    recent = jax.lax.dynamic_slice_in_dim(ring, first * units, sizes[0], axis=-1)
    return [spmv(connectivity_of(ids, sizes), weight, recent)]


def _native(*operands: Array, sizes: tuple[int, int], units: int) -> list[Array]:
    *ids, weight, ring, first = operands
    columns, pitch = len(ring), native.pitch(len(ring))
    shapes = (1, columns, sizes[1]), (sizes[0] if columns > 1 else 0, pitch)
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
