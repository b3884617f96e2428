"""Rows of a carry: the state of some nodes, with what is kept of each, taken out for an event and put back.

Where parameters are shared by all nodes, the derivative of a node's row by them is all that a later event needs of the
past: with influences that are exact, gather, step, scatter is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from .._model.batch_axes import restarted
from .engine import NO_PAST, Carry, Storage


@dataclass(frozen=True)
class Rows:
    """What of a carry has rows.

    Attributes:
        storage: of the rule.
        leaves: of each leaf of the state whether it has one for each node; the others are shared by all.
    """

    storage: Storage
    leaves: tuple[bool, ...]

    @classmethod
    def of(cls, storage: Storage, carry: Carry, count: int) -> "Rows":
        """Those of a carry of an event with `count` nodes, which are the batch of the ops of its model.

        Raises:
            NotImplementedError: what the storage keeps does not go with the state.
            ValueError: no leaf of the state has as many rows, or the step does not say whether one has rows.
        """
        if not storage.has_rows:
            raise NotImplementedError(NO_PAST)
        alone, unsure = ((), ()) if carry.origin is None else (carry.origin.alone, carry.origin.unsure)
        shapes = [leaf.shape for leaf in jax.tree.leaves(carry.state)]
        leaves = tuple(shape[:1] == (count,) and k not in alone for k, shape in enumerate(shapes))
        if not any(leaves) or any(leaves[k] for k in unsure):
            raise ValueError(
                f"state: expected leaves with a row for each of the {count} nodes of an event, and others of another "
                f"length, got shapes {', '.join(map(str, shapes))}."
            )
        return cls(storage, leaves)

    def spread(self, carry: Carry, num_nodes: int) -> Carry:
        """A carry of so many nodes, all at zero, from one of an event."""

        def of(now: Array, axis: int) -> Array:
            return jnp.zeros((*now.shape[:axis], num_nodes, *now.shape[axis + 1 :]), now.dtype)

        return self._each(carry, of, lambda now: now)

    def gather(self, carry: Carry, nodes: Integer[Array, " rows"]) -> Carry:
        """The rows of some nodes."""
        return self._each(carry, lambda now, axis: jnp.take(now, nodes, axis), lambda now: now)

    def scatter(self, carry: Carry, nodes: Integer[Array, " rows"], part: Carry) -> Carry:
        """A carry with other rows for some nodes, each named once; what has no rows is that of `part`."""
        parts: list[Array] = []

        def keep(now: Array, axis: int = 0) -> Array:
            parts.append(now)
            return now

        self._each(part, keep, keep)
        new = iter(parts)
        return self._each(
            carry, lambda now, axis: now.at[(slice(None),) * axis + (nodes,)].set(next(new)), lambda now: next(new)
        )

    def _each(self, carry: Carry, of: Callable[[Array, int], Array], other: Callable[[Array], Array]) -> Carry:
        """`of(array, axis)` of all that has rows, along an axis, and `other(array)` of what has none."""

        def at(now: Array, number: int | None = None, axis: int = 0) -> Array:
            has_rows = now.ndim > axis if number is None else self.leaves[number]
            return of(now, axis) if has_rows else other(now)

        traces = self.storage.restart(carry, None, at)
        return Carry(restarted(carry.state, carry.state, at), traces, jax.tree.map(at, carry.memory), carry.origin)
