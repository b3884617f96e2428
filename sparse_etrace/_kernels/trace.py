"""Eligibility traces of the synapses, through one step or several at once."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact, Int, Shaped, UInt32

from .._graph.connectivity import Connectivity
from .._sums import dot, joined, mixed, rounded
from .._varying import bind
from . import dense, native
from .products import Axes, Tangent, batch_by_loop, connectivity_of, in_front, merged, sampled_sum
from .windows import window_by_blocks

MOST_VARIABLES, OF_OTHERS = 4, 3  # of a trace that is stored as it is computed, and of any other
LAG = 6  # indices of a connectivity, after which the lag comes
UNITS = 4  # coefficients among the operands of a window; after them come x, the noise and the trace


def advance(
    connectivity: Connectivity | None,
    carried: Inexact[Array, "vars vars *batch post"] | None,
    entering: Inexact[Array, "steps vars *batch post"] | None,
    signal: Inexact[Array, "vars *batch post"] | None,
    direct: Inexact[Array, "steps *batch post"] | None,
    x: Shaped[Array, "times *batch pre"],
    trace: Inexact[Array, "vars *batch_and_synapses"],
    noise: UInt32[Array, ""] | None = None,
    lag: Int[Array, " synapses"] | None = None,
    slots: int = 1,
) -> tuple[Inexact[Array, "vars *batch_and_synapses"] | None, Inexact[Array, "*synapses"] | None]:
    """Steps of a trace and their gradient, each synapse read and written once.

    `eps' = carried eps + sum_k entering[k] x[k]` and `dv = signal . eps + sum_k direct[k] x[k]`, the latter summed
    over the batch axes. Without `carried` and `entering` the new trace is not wanted, without `signal` and `direct` the
    gradient is not. A trace may be stored in a narrower type than the coefficients, and keeps it; by other `noise`
    in each window, half precision is rounded without bias. Without a connectivity everything is connected, and for
    `synapses` stand two axes, `(pre, post)`.

    With `lag` senders are units in so many slots, `lag * units + unit`, and step `k` reads the slots from `x[k]` on of
    an `x` that is `(steps + slots - 1, *batch, units)`.

    Raises:
        ValueError: one of these has another shape.
    """
    sizes = trace.shape[-2:] if connectivity is None else connectivity.shape
    synapses = sizes if connectivity is None else (connectivity.num_synapses,)
    units = {"carried": carried, "entering": entering, "signal": signal, "direct": direct}
    check_sizes({**units, "lag": lag}, x, trace, (sizes[0] // slots,), (sizes[1],), synapses, slots)
    dtype = joined(*(part for part in units.values() if part is not None))
    batch = x.shape[1:-1]

    def flat(part: Array | None, front: int) -> Array:
        """Leading axes as they are, batch axes as one, and an axis in front for what is mapped."""
        if part is None:
            return jnp.zeros((1, 0), dtype)
        return part.reshape(1, *part.shape[:front], math.prod(batch), part.shape[-1]).astype(dtype)

    operands = [flat(carried, 2), flat(entering, 2), flat(signal, 1), flat(direct, 1), flat(x, 1)]
    operands.append(jnp.zeros((1, 0), jnp.uint32) if noise is None else noise.reshape(1, 1))
    ids = () if connectivity is None else connectivity.arrays
    ids = ids if lag is None else (*ids, lag)
    new, gradient = bind(trace_p, *ids, *operands, trace, sizes=sizes, variables=len(trace), slots=slots)
    taught = None if signal is None else gradient[0].reshape(sizes if connectivity is None else -1)
    return None if carried is None else new, taught


def check_sizes(
    units: dict[str, Array | None],
    x: Array,
    trace: Array,
    senders: tuple[int, ...],
    receivers: tuple[int, ...],
    synapses: tuple[int, ...],
    slots: int = 1,
) -> None:
    """Raise for sizes that do not belong together, which a compiled kernel would read and write past."""
    count, steps, batch = len(trace), len(x) - slots + 1, x.shape[1 : x.ndim - len(senders)]
    front = {"carried": (count, count), "entering": (steps, count), "signal": (count,), "direct": (steps,)}
    shapes = {"x": (len(x), *batch, *senders), "trace": (count, *batch, *synapses)}
    shapes |= {name: (*sizes, *batch, *receivers) for name, sizes in front.items()} | {"lag": synapses}
    given = units | {"x": x, "trace": trace}
    for one, other in (("carried", "entering"), ("signal", "direct")):
        if (units[one] is None) != (units[other] is None):
            raise ValueError(f"{one}: expected it together with `{other}`, got one of them. Give both or neither.")
    for name, shape in shapes.items():
        if (part := given.get(name)) is not None and part.shape != shape:
            raise ValueError(
                f"{name}: expected shape {shape} in a window of {steps} steps, got {part.shape}. Keep a carry with the "
                "learner and model that made it."
            )


def _is_compiled(dtype: np.dtype, stored: np.dtype) -> bool:
    return dtype == stored or (dtype == jnp.float32 and stored == jnp.bfloat16)


def _types(*avals: jax.core.ShapedArray, sizes: tuple[int, int], variables: int, slots: int) -> bool:
    *rest, x, _, trace = avals
    ids, coefficients = rest[:-UNITS], rest[-UNITS:]
    most = MOST_VARIABLES if x.dtype == trace.dtype else OF_OTHERS
    known = variables <= most and _is_compiled(x.dtype, trace.dtype) and trace.size > 0
    return known and native.compiled_types(*ids, *(a for a in coefficients if a.ndim > 2), x)


# In the primitive, an axis in front of all parts counts what is mapped, and the batch is one axis. After the indices
# comes the lag, if there is one. Only the trace has any shape of as many numbers: XLA passes it on in place if it is
# not reshaped.


def _xla(*operands: Array, sizes: tuple[int, int], variables: int, slots: int) -> list[Array]:
    count = len(operands) - UNITS - 3
    *parts, trace = operands[count:]
    if count > LAG:
        at = np.arange(parts[-2].shape[1] - slots + 1)[:, None] + np.arange(slots)
        read = jnp.moveaxis(parts[-2][:, at], 2, 3)  # (mapped, steps, batch, slots, units)
        parts[-2] = read.reshape(*read.shape[:3], sizes[0])
    num, batch = parts[-2].shape[0], parts[-2].shape[2]
    connectivity = connectivity_of(operands[:LAG], sizes) if count else None
    shape = variables, batch, *(sizes if connectivity is None else (connectivity.num_synapses,))
    run = (
        functools.partial(_all_to_all, sizes) if connectivity is None else functools.partial(_by_element, connectivity)
    )
    if num == 1:
        new, gradient = run(*[*(part[0] for part in parts), trace.reshape(shape)])
        gradient = gradient[None]
    else:
        new, gradient = jax.vmap(run)(*[*parts, trace.reshape(num, *shape)])
    return [new.reshape(trace.shape) if parts[0].ndim > 2 else jnp.zeros((num, 0), trace.dtype), gradient]


def _by_element(
    connectivity: Connectivity,
    carried: Array,
    entering: Array,
    signal: Array,
    direct: Array,
    x: Array,
    noise: Array,
    trace: Array,
) -> tuple[Array, Array]:
    """One batch element after the other, so that no array has synapses and batch but the trace itself."""

    def add(b: ArrayLike, now: tuple[Array, Array]) -> tuple[Array, Array]:
        def pick(part: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(part, b, part.ndim - 2, keepdims=False)

        new, gradient = now
        eps, x_b = pick(trace).astype(x.dtype), pick(x)
        if signal.ndim > 1:
            gradient = gradient + dot(_at_post(connectivity, pick(signal)), eps)
            gradient = gradient + sampled_sum(connectivity, x_b, pick(direct))
        if carried.ndim > 1:
            later = sampled_sum(connectivity, x_b[:, None], pick(entering))
            later = later + jnp.stack([dot(_at_post(connectivity, row), eps) for row in pick(carried)])
            bits = mixed(noise[0], b) if noise.size else None
            new = jax.lax.dynamic_update_index_in_dim(new, rounded(later, new.dtype, bits), b, 1)
        return new, gradient

    # A new array: XLA would copy one that is read and written in turns as often as there are batch elements.
    start = jnp.zeros_like(trace), jnp.zeros(connectivity.num_synapses if signal.ndim > 1 else 0, x.dtype)
    return jax.lax.fori_loop(0, x.shape[1], add, start) if x.shape[1] else start


def _all_to_all(
    sizes: tuple[int, int],
    carried: Array,
    entering: Array,
    signal: Array,
    direct: Array,
    x: Array,
    noise: Array,
    trace: Array,
) -> tuple[Array, Array]:
    later: tuple[Array | None, Array | None] = (carried, entering) if carried.ndim > 1 else (None, None)
    now: tuple[Array | None, Array | None] = (signal, direct) if signal.ndim > 1 else (None, None)
    bits, v = (noise[0] if noise.size else None), {"weight": jnp.zeros(sizes, x.dtype)}
    new, taught = window_by_blocks(dense.ALL_TO_ALL, v, {"weight": trace}, *later, *now, x, bits)
    return trace if new is None else new["weight"], jnp.zeros(0, x.dtype) if taught is None else taught[
        "weight"
    ].ravel()


def _native(*operands: Array, sizes: tuple[int, int], variables: int, slots: int) -> list[Array]:
    count = len(operands) - UNITS - 3
    carried, _, signal, _, x, _, trace = parts = operands[count:]
    steps, batch, none = x.shape[1] - slots + 1, x.shape[2], jnp.zeros(0, jnp.int32)
    # All-to-all is told by having no indices. Others are the senders, the receivers, where those begin, and the lag.
    ids = (*operands[:3], operands[LAG] if count > LAG else none) if count else (none,) * 4
    synapses = len(ids[0]) if count else math.prod(sizes)
    pitch = native.pitch(max(steps, 16))
    pitch = pitch if count <= LAG else -(-(pitch + slots - 1) // 4) * 4  # each synapse reads `pitch` of it
    results = [
        jax.ShapeDtypeStruct(trace.shape if carried.ndim > 2 else (len(x), 0), trace.dtype),
        jax.ShapeDtypeStruct((len(x), synapses if signal.ndim > 2 else 0), x.dtype),
        jax.ShapeDtypeStruct((x.shape[3] * batch if steps > 1 and count else 0, pitch), x.dtype),
    ]
    aliases = {len(ids) + len(parts) - 1: 0} if carried.ndim > 2 else None
    numbers = {"variables": np.int64(variables), "slots": np.int64(slots)}
    return native.call("window", results, *ids, *parts, aliases=aliases, **numbers)


def _jvp(primals: Sequence[Array], tangents: Sequence[Tangent], **static: Any) -> tuple[list[Array], list[Array]]:
    count = len(primals) - UNITS - 3
    tangents = tuple(ad.instantiate_zeros(t) for t in tangents[count:])
    fn = functools.partial(_xla, *primals[:count], **static)
    return bind(trace_p, *primals, **static), jax.jvp(fn, tuple(primals[count:]), tangents)[1]


def _batch(operands: Sequence[Array], axes: Axes, **static: Any) -> tuple[list[Array], list[int]]:
    count = len(operands) - UNITS - 3
    if any(axis is not None for axis in axes[:count]):
        return batch_by_loop(functools.partial(bind, trace_p, **static), operands, axes)
    size = next(v.shape[axis] for v, axis in zip(operands, axes, strict=True) if axis is not None)
    *parts, trace = (in_front(v, axis, size) for v, axis in zip(operands[count:], axes[count:], strict=True))
    new, gradient = bind(trace_p, *operands[:count], *map(merged, parts), trace, **static)
    num = parts[-2].shape[1]
    is_wanted = parts[0].ndim > 3
    return [new if is_wanted else new.reshape(size, num, 0), gradient.reshape(size, num, -1)], [0, 0]


trace_p = native.primitive("trace", _xla, _native, _types)
ad.primitive_jvps[trace_p] = _jvp
batching.primitive_batchers[trace_p] = _batch


def _at_post(connectivity: Connectivity, unit: Inexact[Array, "vars post"]) -> Inexact[Array, "vars synapses"]:
    return jnp.take(unit, connectivity.post, axis=-1, mode="clip")
