"""Traces of synapses that have one for each feature of a unit and one weight for all, features last."""

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching
from jaxtyping import Array, Inexact, UInt32

from .._graph.connectivity import Connectivity
from .._sums import joined
from .._varying import bind
from . import native, trace
from .products import Axes, Tangent, batch_by_loop, connectivity_of

IDS = 6


def advance(
    connectivity: Connectivity,
    carried: Inexact[Array, "vars vars *batch post features"] | None,
    entering: Inexact[Array, "steps vars *batch post features"] | None,
    signal: Inexact[Array, "vars *batch post features"] | None,
    direct: Inexact[Array, "steps *batch post features"] | None,
    x: Inexact[Array, "steps *batch pre features"],
    eps: Inexact[Array, "vars *batch synapses features"],
    noise: UInt32[Array, ""] | None = None,
) -> tuple[Inexact[Array, "vars *batch synapses features"] | None, Inexact[Array, " synapses"] | None]:
    """`trace.advance` for each feature, and the gradient summed over them.

    Raises:
        ValueError: one of these has another shape.
    """
    *batch, _, features = x.shape[1:]
    units = {"carried": carried, "entering": entering, "signal": signal, "direct": direct}
    pre, post, synapses = ((size, features) for size in (*connectivity.shape, connectivity.num_synapses))
    trace.check_sizes(units, x, eps, pre, post, synapses)
    dtype = joined(*(part for part in units.values() if part is not None))

    def flat(part: Array | None, front: int) -> Array:
        if part is None:
            return jnp.zeros(0, dtype)
        return part.reshape(*part.shape[:front], math.prod(batch), *part.shape[-2:]).astype(dtype)

    parts = [flat(carried, 2), flat(entering, 2), flat(signal, 1), flat(direct, 1)]
    parts += [jnp.moveaxis(flat(x, 1), 0, 2), jnp.zeros(0, jnp.uint32) if noise is None else noise.reshape(1)]
    new, gradient = bind(features_p, *connectivity.arrays, *parts, eps, sizes=connectivity.shape)
    return None if carried is None else new, None if signal is None else gradient


# In the primitive the batch is one axis, and x is `(batch, pre, steps, features)`: what a synapse reads lies together.
# The trace is as it was given: XLA passes it on in place if it is not reshaped.


def _types(*avals: jax.core.ShapedArray, sizes: tuple[int, int]) -> bool:
    *rest, x, _, eps = avals
    known = eps.shape[0] <= trace.OF_OTHERS and eps.size > 0
    numbers = [a for a in rest[IDS:] if a.size]
    return known and trace._is_compiled(x.dtype, eps.dtype) and native.compiled_types(*rest[:IDS], *numbers, x)


def _xla(*operands: Array, sizes: tuple[int, int]) -> list[Array]:
    """Each feature as an element of the batch."""
    parts, x, noise, eps = operands[IDS:-3], *operands[-3:]
    a, b, c, d = (jnp.swapaxes(part, -1, -2) if part.ndim > 1 else None for part in parts)
    read = jnp.transpose(x, (2, 0, 3, 1))
    old = jnp.swapaxes(eps.reshape(len(eps), len(x), *eps.shape[-2:]), -1, -2)
    bits = noise[0] if noise.size else None
    new, gradient = trace.advance(connectivity_of(operands[:IDS], sizes), a, b, c, d, read, old, bits)
    none = jnp.zeros(0, eps.dtype), jnp.zeros(0, x.dtype)
    return [
        none[0] if new is None else jnp.swapaxes(new, -1, -2).reshape(eps.shape),
        none[1] if gradient is None else gradient,
    ]


def _native(*operands: Array, sizes: tuple[int, int]) -> list[Array]:
    ids, parts = operands[:3], operands[IDS:]
    (carried, _, signal, *_), x, eps = parts, parts[-3], parts[-1]
    results = [
        jax.ShapeDtypeStruct(eps.shape if carried.size else (0,), eps.dtype),
        jax.ShapeDtypeStruct((len(ids[0]) if signal.size else 0,), x.dtype),
        jax.ShapeDtypeStruct((0,), x.dtype),
    ]
    return native.call("features", results, *ids, *parts, aliases={len(ids) + 6: 0} if carried.size else None)


def _jvp(primals: Sequence[Array], tangents: Sequence[Tangent], **static: Any) -> tuple[list[Array], list[Array]]:
    fn = functools.partial(_xla, *primals[:IDS], **static)
    moved = tuple(ad.instantiate_zeros(t) for t in tangents[IDS:])
    return bind(features_p, *primals, **static), jax.jvp(fn, tuple(primals[IDS:]), moved)[1]


def _batch(operands: Sequence[Array], axes: Axes, **static: Hashable) -> tuple[list[Array], list[int]]:
    return batch_by_loop(functools.partial(bind, features_p, **static), operands, axes)


features_p = native.primitive("features", _xla, _native, _types)
ad.primitive_jvps[features_p] = _jvp
batching.primitive_batchers[features_p] = _batch
