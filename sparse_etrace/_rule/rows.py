"""Rows of a carry: the state of some nodes, with what is kept of each, taken out for an event and put back.

Where parameters are shared by all nodes, the derivative of a node's row by them is all that a later event needs of the
past: with influences that are exact, gather, step, scatter is exact.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from .._model.batch_axes import restarted
from .engine import NO_PAST, Carry, Storage

Of = Callable[[Array, int | None], Array]


def spread(storage: Storage, carry: Carry, num_nodes: int) -> Carry:
    """A carry of so many nodes, all at zero, from one of a few."""

    def of(now: Array, axis: int | None) -> Array:
        if axis is None:
            return now
        return jnp.zeros((*now.shape[:axis], num_nodes, *now.shape[axis + 1 :]), now.dtype)

    return _each(storage, carry, of)


def gather(storage: Storage, carry: Carry, nodes: Integer[Array, " rows"]) -> Carry:
    """The rows of some nodes."""
    return _each(storage, carry, lambda now, axis: now if axis is None else jnp.take(now, nodes, axis))


def scatter(storage: Storage, carry: Carry, nodes: Integer[Array, " rows"], rows: Carry) -> Carry:
    """A carry with other rows for some nodes, each named once; what has no rows is that of `rows`."""
    parts: list[Array] = []

    def take(now: Array, axis: int | None) -> Array:
        parts.append(now)
        return now

    _each(storage, rows, take)
    new = iter(parts)

    def put(now: Array, axis: int | None) -> Array:
        part = next(new)
        return part if axis is None else now.at[(slice(None),) * axis + (nodes,)].set(part)

    return _each(storage, carry, put)


def _each(storage: Storage, carry: Carry, of: Of) -> Carry:
    """`of(array, axis)` of all that a carry holds; `axis` counts nodes, None where nothing does."""
    if not storage.has_rows:
        raise NotImplementedError(NO_PAST)
    alone = () if carry.origin is None else carry.origin.alone

    def at(now: Array, number: int | None = None, axis: int = 0) -> Array:
        return of(now, axis if now.ndim > axis and number not in alone else None)

    traces = storage.restart(carry, None, at)
    return Carry(restarted(carry.state, carry.state, at), traces, jax.tree.map(at, carry.memory), carry.origin)
