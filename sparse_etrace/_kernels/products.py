"""The products of a sparse layer. Leading axes are batch axes.

All are one trilinear form, `sum over s = (pre -> post) and columns c of weight[s] * x[c, pre] * y[c, post]`, with one
of its three arguments left out: a primitive for each, whose derivatives are the other two.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import CSR
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array, Inexact, Shaped

from .._graph.connectivity import Connectivity
from .._sums import wide
from .._varying import bind
from . import native

Tangent = Array | np.ndarray | ad.Zero
Axes = Sequence[Any]  # the mapped axis of each operand, an integer, or None

# XLA fuses the steps of a block into one pass over the synapses; larger blocks share gathers, which costs more.
BLOCK = 8
SLOTS = ("weight", "x", "y")
# Scattering into one of several copies of the result pays while they are small beside the synapses.
MOST_PARTS = 8
# The most terms that XLA adds one by one to a sum: float32 loses a digit more at a hundred times as many.
RUN = 1024
CUSPARSE = ("float32", "float64", "complex64", "complex128")
# A GPU adds up the steps of more synapses by so many at a time.
ROWS = 2**20


def spmv(
    connectivity: Connectivity, weight: Inexact[Array, " synapses"], x: Shaped[Array, "*batch pre"]
) -> Inexact[Array, "*batch post"]:
    """Forward product `y[post] = sum over s = (pre -> post) of weight[s] * x[pre]`.

    Where few inputs are not zero, the others send nothing, also over weights that are not finite.
    """
    y = _bind("y", connectivity, weight[None], as_steps(x)[None])
    return y.reshape(*x.shape[:-1], connectivity.num_post)


def spmv_t(
    connectivity: Connectivity, weight: Inexact[Array, " synapses"], y: Inexact[Array, "*batch post"]
) -> Inexact[Array, "*batch pre"]:
    """Transposed product `x[pre] = sum over s = (pre -> post) of weight[s] * y[post]`."""
    x = _bind("x", connectivity, weight[None], as_steps(y)[None])
    return x.reshape(*y.shape[:-1], connectivity.num_pre)


def sampled(
    connectivity: Connectivity, x: Shaped[Array, "*#batch pre"], y: Inexact[Array, "*#batch post"]
) -> Inexact[Array, "... synapses"]:
    """Outer product on the existing synapses only, `out[s] = x[pre] * y[post]`; leading axes broadcast."""
    return sampled_sum(connectivity, x[None], y[None])


def sampled_sum(
    connectivity: Connectivity, x: Shaped[Array, "steps *#batch pre"], y: Inexact[Array, "steps *#batch post"]
) -> Inexact[Array, "... synapses"]:
    """`sampled` summed over the first axis."""
    batch = jnp.broadcast_shapes(x.shape[1:-1], y.shape[1:-1])
    x, y = (jnp.broadcast_to(a, (len(a), *batch, a.shape[-1])) for a in (x, y))
    x, y = (jnp.moveaxis(a.reshape(len(a), math.prod(batch), a.shape[-1]), 0, 1) for a in (x, y))
    return _bind("weight", connectivity, x, y).reshape(*batch, connectivity.num_synapses)


def as_steps(x: Shaped[Array, "*batch units"]) -> Shaped[Array, "steps units"]:
    """All leading axes as one, also where there are no units."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _bind(missing: str, connectivity: Connectivity, a: Array, b: Array) -> Array:
    """A product in the type of its factors, whose sums are wider."""
    dtype, sizes = jnp.result_type(a, b), connectivity.shape
    a, b = a.astype(wide(dtype)), b.astype(wide(dtype))
    return bind(PRIMITIVES[missing], *connectivity.arrays, a, b, sizes=sizes)[0].astype(dtype)


def connectivity_of(ids: Sequence[Array], sizes: tuple[int, int]) -> Connectivity:
    """The connectivity whose leaves the operands of a primitive begin with."""
    pre, post, post_ptr, pre_ptr, by_pre, post_by_pre = ids
    return Connectivity(pre, post, post_ptr, pre_ptr, by_pre, post_by_pre, *sizes)


# In a primitive, the weights are (w, synapses), the ends (w, columns, units), for each w a product of its own.


def _xla(missing: str, *operands: Array, sizes: tuple[int, int]) -> list[Array]:
    *ids, a, b = operands
    connectivity = connectivity_of(ids, sizes)
    one = functools.partial({"y": _gather, "x": _scatter, "weight": _outer}[missing], connectivity)
    return [one(a[0], b[0])[None] if len(a) == 1 else jax.vmap(one)(a, b)]


def _gather(connectivity: Connectivity, weight: Array, x: Array) -> Array:
    current = weight[:, None] * jnp.take(x.T, connectivity.pre, axis=0, mode="clip")
    return _by_unit(current, connectivity.post, connectivity.post_ptr).T


def _scatter(connectivity: Connectivity, weight: Array, y: Array) -> Array:
    if connectivity.num_synapses <= RUN:
        x = jnp.zeros((connectivity.num_pre, len(y)), y.dtype)
        current = weight[:, None] * jnp.take(y.T, connectivity.post, axis=0, mode="clip")
        return x.at[connectivity.pre].add(current, mode="promise_in_bounds").T
    weight = jnp.take(weight, connectivity.by_pre, mode="clip")
    current = weight[:, None] * jnp.take(y.T, connectivity.post_by_pre, axis=0, mode="clip")
    pre = jnp.take(connectivity.pre, connectivity.by_pre, mode="clip")
    return _by_unit(current, pre, connectivity.pre_ptr).T


def _by_unit(current: Array, unit: Array, ptr: Array) -> Array:
    """Sums of runs of rows, those of each unit; a long one is the sum of sums, each of fewer rows."""
    blocks = -(-len(current) // RUN)

    def summed(rows: Array, to: Array, count: int) -> Array:
        zero = jnp.zeros((count, rows.shape[1]), rows.dtype)
        return zero.at[to].add(rows, indices_are_sorted=True, mode="promise_in_bounds")

    if blocks <= 1:
        return summed(current, unit, len(ptr) - 1)
    # Unit and block together number the parts: from one part to the next either grows.
    count = len(ptr) - 1 + blocks
    parts = summed(current, unit + jnp.arange(len(current), dtype=unit.dtype) // RUN, count)
    first = ptr[:-1] // RUN + jnp.arange(len(ptr) - 1, dtype=ptr.dtype)
    owner = jnp.searchsorted(first, jnp.arange(count, dtype=ptr.dtype), side="right") - 1
    return summed(parts, jnp.maximum(owner, 0), len(ptr) - 1)


def _outer(connectivity: Connectivity, x: Array, y: Array) -> Array:
    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        for x_k, y_k in zip(*block, strict=True):
            x_pre = jnp.take(x_k, connectivity.pre, mode="clip")
            total = total + x_pre * jnp.take(y_k, connectivity.post, mode="clip")
        return total, None

    count, rest = divmod(len(x), BLOCK)
    total = jnp.zeros(connectivity.num_synapses, x.dtype)
    x_blocks, y_blocks = (a[: count * BLOCK].reshape(count, BLOCK, a.shape[-1]) for a in (x, y))
    total = jax.lax.scan(add, total, (x_blocks, y_blocks))[0] if count else total
    return add(total, (x[count * BLOCK :], y[count * BLOCK :]))[0] if rest else total


def _outer_by_rows(connectivity: Connectivity, x: Array, y: Array) -> Array:
    def one(ends: tuple[Array, Array]) -> Array:
        pre, post = (jnp.take(rows, end, axis=0, mode="clip") for rows, end in zip((x.T, y.T), ends, strict=True))
        return jnp.sum(pre * post)

    return jax.lax.map(one, (connectivity.pre, connectivity.post), batch_size=ROWS)


def _native(missing: str, *operands: Array, sizes: tuple[int, int]) -> list[Array]:
    *ids, a, b = operands
    connectivity = connectivity_of(ids, sizes)
    dtype, (count, columns) = a.dtype, b.shape[:2]
    pitch = native.pitch(columns)
    receivers = (connectivity.pre, connectivity.post, connectivity.post_ptr)

    def result(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    if missing == "y":
        results = [result(count, columns, sizes[1]), result(sizes[0] if columns > 1 else 0, pitch)]
        none = jnp.zeros(0, jnp.int32)
        return native.call("spmv", results, *ids, a, b, none, units=np.int64(0))
    if missing == "x":
        parts = min(max(connectivity.num_synapses // max(8 * sizes[0], 1), 1), MOST_PARTS)
        results = [result(count, columns, sizes[0]), result(parts, sizes[0], pitch)]
        return native.call("spmv_t", results, *receivers, a, b)
    # Many columns are a batch of fewer, because what the synapses gather of those may fit into a cache.
    steps = 16 if columns % 16 == 0 else columns
    x, y = (part.reshape(count, steps, columns // steps, part.shape[-1]) for part in (a, b))
    none, bits = jnp.zeros((count, 0), dtype), jnp.zeros((count, 0), jnp.uint32)
    rows = result(sizes[0] * x.shape[2] if steps > 1 else 0, native.pitch(max(steps, 16)))
    results = [result(count, 0), result(count, connectivity.num_synapses), rows]
    numbers = jnp.zeros(0, jnp.int32), none, none, none, y, x, bits, none
    return native.call("window", results, *receivers, *numbers, variables=np.int64(0), slots=np.int64(1))[1:]


def _cuda(missing: str, *operands: Array, sizes: tuple[int, int]) -> list[Array]:
    """One set of weights: sums over synapses by cuSPARSE, sums over steps row by row."""
    *ids, a, b = operands
    connectivity = connectivity_of(ids, sizes)
    if len(a) > 1 or not all(part.size for part in operands):
        return _xla(missing, *operands, sizes=sizes)
    if missing == "weight":
        is_long = connectivity.num_synapses > ROWS and a.shape[1] > 1
        return [(_outer_by_rows if is_long else _outer)(connectivity, a[0], b[0])[None]]
    # cuSPARSE takes no matrix of more entries than places, as many parallel synapses are.
    if a.dtype.name not in CUSPARSE or connectivity.num_synapses > math.prod(sizes):
        return _xla(missing, *operands, sizes=sizes)
    weight, columns = a[0], b[0].T
    index, ptr = connectivity.pre, connectivity.post_ptr
    if missing == "x":
        weight = jnp.take(weight, connectivity.by_pre, mode="clip")
        index, ptr = connectivity.post_by_pre, connectivity.pre_ptr
    matrix = CSR((weight, index, ptr), shape=(len(ptr) - 1, len(columns)))
    out = matrix @ columns if columns.shape[1] > 1 else (matrix @ columns[:, 0])[:, None]
    return [out.T[None]]


def _contract(known: dict[str, Array], ids: Sequence[Array], sizes: tuple[int, int]) -> Array:
    """The form's derivative by the argument that is not among the known two."""
    (missing,) = set(SLOTS) - set(known)
    return bind(PRIMITIVES[missing], *ids, *(known[slot] for slot in SLOTS if slot in known), sizes=sizes)[0]


def _jvp(
    missing: str, primals: Sequence[Array], tangents: Sequence[Tangent], sizes: tuple[int, int]
) -> tuple[list[Array], list[Array]]:
    *ids, a, b = primals
    *_, da, db = tangents
    product = functools.partial(bind, PRIMITIVES[missing], *ids, sizes=sizes)
    out = product(a, b)[0]
    parts = [product(*pair)[0] for d, pair in ((da, (da, b)), (db, (a, db))) if type(d) is not ad.Zero]
    return [out], [functools.reduce(ad.add_jaxvals, parts)]


def _transpose(
    missing: str, cts: Sequence[Array | ad.Zero], *operands: Any, sizes: tuple[int, int]
) -> list[Array | None]:
    *ids, a, b = operands
    first, second = (slot for slot in SLOTS if slot != missing)
    (ct,) = cts
    if isinstance(ct, ad.Zero):
        return [None] * len(operands)
    if ad.is_undefined_primal(a):
        return [*[None] * len(ids), _contract({missing: ct, second: b}, ids, sizes), None]
    return [*[None] * len(ids), None, _contract({missing: ct, first: a}, ids, sizes)]


def _batch(
    missing: str, operands: Sequence[Array], axes: Axes, sizes: tuple[int, int]
) -> tuple[list[Array], list[int]]:
    *ids, a, b = operands
    size = next(v.shape[axis] for v, axis in zip(operands, axes, strict=True) if axis is not None)
    primitive = PRIMITIVES[missing]
    if any(axis is not None for axis in axes[:-2]):
        return batch_by_loop(functools.partial(bind, primitive, sizes=sizes), operands, axes)
    if missing != "weight" and axes[-2] is None:
        # One set of weights: the new axis is so many more columns.
        b = jnp.moveaxis(b, axes[-1], 1)
        columns = b.shape[2]
        out = bind(primitive, *ids, a, b.reshape(len(b), size * columns, b.shape[-1]), sizes=sizes)[0]
        return [out.reshape(len(b), size, columns, out.shape[-1])], [1]
    a, b = (in_front(v, axis, size) for v, axis in ((a, axes[-2]), (b, axes[-1])))
    out = bind(primitive, *ids, *(merged(v) for v in (a, b)), sizes=sizes)[0]
    return [out.reshape(size, len(out) // size, *out.shape[1:])], [0]


def in_front(value: Array, axis: int | None, size: int) -> Array:
    """A mapped operand with its axis in front, or one that is not, repeated."""
    if axis is None:
        return jnp.broadcast_to(value, (size, *value.shape))
    return jnp.moveaxis(value, axis, 0)


def merged(value: Array) -> Array:
    """The first two axes as one."""
    return value.reshape(value.shape[0] * value.shape[1], *value.shape[2:])


def batch_by_loop(fn: native.Product, operands: Sequence[Array], axes: Axes) -> tuple[list[Array], list[int]]:
    """One after the other, where the connectivity itself is mapped over."""
    mapped = [i for i, axis in enumerate(axes) if axis is not None]

    def one(values: list[Array]) -> list[Array]:
        given = list(operands)
        for i, value in zip(mapped, values, strict=True):
            given[i] = value
        return fn(*given)

    out = jax.lax.map(one, [jnp.moveaxis(operands[i], axes[i], 0) for i in mapped])
    return out, [0] * len(out)


def _make(missing: str) -> Primitive:
    new = native.primitive(
        {"y": "spmv", "x": "spmv_t", "weight": "sampled"}[missing],
        functools.partial(_xla, missing),
        functools.partial(_native, missing),
        native.compiled_types,
        functools.partial(_cuda, missing),
    )
    ad.primitive_jvps[new] = functools.partial(_jvp, missing)
    ad.primitive_transposes[new] = functools.partial(_transpose, missing)
    batching.primitive_batchers[new] = functools.partial(_batch, missing)
    return new


PRIMITIVES = {slot: _make(slot) for slot in SLOTS}
