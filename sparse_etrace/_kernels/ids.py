"""The product with zeros and, at the ids of senders, ones, of which no frame is made."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching
from jaxtyping import Array, Float, Inexact, Int

from .._graph.connectivity import Connectivity
from .._sums import joined, wide
from .._varying import bind
from . import native
from .products import Axes, Tangent, as_steps, connectivity_of, spmv


def frame(ids: Int[Array, "*batch capacity"], size: int) -> Float[Array, "*batch size"]:
    """How often each of so many units is named; an id out of range names none."""

    def one(ids: Int[Array, " capacity"]) -> Float[Array, " size"]:
        return jnp.zeros(size).at[ids].add(1, mode="drop", wrap_negative_indices=False)

    return jnp.vectorize(one, signature="(a)->(b)")(ids)


def spmv_ids(
    connectivity: Connectivity, weight: Inexact[Array, " synapses"], ids: Int[Array, "*batch capacity"]
) -> Inexact[Array, "*batch post"]:
    """`spmv` of `frame(ids)`."""
    dtype = joined(weight.dtype, jnp.result_type(float))
    given = weight.astype(wide(dtype)), as_steps(ids.astype(jnp.int32))
    y = bind(ids_p, *connectivity.arrays, *given, sizes=connectivity.shape)[0].astype(dtype)
    return y.reshape(*ids.shape[:-1], connectivity.num_post)


def _xla(*operands: Array, sizes: tuple[int, int]) -> list[Array]:
    *arrays, weight, ids = operands
    return [spmv(connectivity_of(arrays, sizes), weight, frame(ids, sizes[0]).astype(weight.dtype))]


def _native(*operands: Array, sizes: tuple[int, int]) -> list[Array]:
    columns, dtype = len(operands[-1]), operands[-2].dtype
    shapes = (columns, sizes[1]), (sizes[0] if columns > 1 else 0, native.pitch(columns))
    return native.call("spmv_ids", [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes], *operands)


def _jvp(
    primals: Sequence[Array], tangents: Sequence[Tangent], sizes: tuple[int, int]
) -> tuple[list[Array], list[Array]]:
    *arrays, _, ids = primals
    return bind(ids_p, *primals, sizes=sizes), _xla(*arrays, ad.instantiate_zeros(tangents[-2]), ids, sizes=sizes)


def _batch(operands: Sequence[Array], axes: Axes, sizes: tuple[int, int]) -> tuple[list[Array], list[int]]:
    *others, ids = operands
    if any(axis is not None for axis in axes[:-1]):
        return jax.vmap(lambda *parts: _xla(*parts, sizes=sizes), in_axes=tuple(axes))(*operands), [0]
    ids = jnp.moveaxis(ids, axes[-1], 0)
    (y,) = bind(ids_p, *others, as_steps(ids), sizes=sizes)
    return [y.reshape(*ids.shape[:-1], sizes[1])], [0]


ids_p = native.primitive("spmv_ids", _xla, _native, native.compiled_types)
ad.primitive_jvps[ids_p] = _jvp
batching.primitive_batchers[ids_p] = _batch
