"""Rows of a carry: the state of some nodes, with what is kept of each, taken out for an event and put back.

Where parameters are shared by all nodes, the derivative of a node's row by them is all that a later event needs of the
past: with influences that are exact, gather, step, scatter is exact.

    carry of five nodes        h0  h1  h2  h3  h4      J0  J1  J2  J3  J4
    an event of nodes 3, 1     gather  h3  h1          J3  J1
                               a step of the model and of the rule on two rows
    carry after it             h0  h1' h2  h3' h4      J0  J1' J2  J3' J4
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, PyTree

from .._model.batch_axes import restarted
from .._model.program import is_key
from .._model.trained import struct
from .engine import Carry, Storage


class Rows(NamedTuple):
    """What of a carry has rows.

    Attributes:
        storage: of the rule.
        num_nodes: how many rows there are; a node of this number is nobody, whose row is zero and is not kept.
        leaves: of each leaf of the state whether it has a row for each node; the others are shared by all.
    """

    storage: Storage
    num_nodes: int
    leaves: tuple[bool, ...]

    @classmethod
    def of(cls, state: PyTree, num_nodes: int, storage: Storage) -> "Rows":
        """Those of a state of so many nodes.

        Raises:
            ValueError: no leaf has as many.
        """
        shapes = [leaf.shape for leaf in jax.tree.leaves(struct(state))]
        leaves = tuple(shape[:1] == (num_nodes,) for shape in shapes)
        if not any(leaves):
            raise ValueError(
                f"state: expected leaves with a row for each of the {num_nodes} nodes in front, got shapes "
                f"{', '.join(map(str, shapes)) or 'of nothing'}. Give the state of all nodes, not that of an event."
            )
        return cls(storage, num_nodes, leaves)

    def of_state(self, state: PyTree, nodes: Integer[Array, "*event"]) -> PyTree:
        """The rows of some nodes of a state, and what they share."""
        return restarted(state, state, lambda now, k: _taken(now, nodes, 0) if self.leaves[k] else now)

    def shapes(self, state: PyTree, event: tuple[int, ...]) -> PyTree:
        """Those of an event of this shape."""
        nodes = jax.ShapeDtypeStruct(event, jnp.int32)
        return jax.eval_shape(self.of_state, struct(state), nodes)

    def put_into(self, state: PyTree, nodes: Integer[Array, "*event"], part: PyTree) -> PyTree:
        """A state with other rows for some nodes; what has no rows is that of `part`."""
        new = iter(jax.tree.leaves(part))
        return restarted(state, state, lambda now, k: _put(now, nodes, next(new), 0) if self.leaves[k] else next(new))

    def spread(self, carry: Carry, state: PyTree, event: tuple[int, ...]) -> Carry:
        """The carry of a state of all nodes whose traces are zero, from one of an event of this shape."""

        def of(now: Array, axis: int) -> Array:
            return jnp.zeros((*now.shape[:axis], self.num_nodes, *now.shape[axis + len(event) :]), now.dtype)

        traces = self._each(carry, event, of, lambda now: now)
        return Carry(state, traces.traces, traces.memory, carry.origin)

    def gather(self, carry: Carry, nodes: Integer[Array, "*event"]) -> Carry:
        """The rows of some nodes."""
        return self._each(carry, (self.num_nodes,), lambda now, axis: _taken(now, nodes, axis), lambda now: now)

    def scatter(self, carry: Carry, nodes: Integer[Array, "*event"], part: Carry) -> Carry:
        """A carry with other rows for some nodes, each named once; what has no rows is that of `part`."""
        parts: list[Array] = []

        def keep(now: Array, axis: int = 0) -> Array:
            parts.append(now)
            return now

        self._each(part, nodes.shape, keep, keep)
        new = iter(parts)

        def put(now: Array, axis: int) -> Array:
            return _put(now, nodes, next(new), axis)

        return self._each(carry, (self.num_nodes,), put, lambda now: next(new))

    def _each(
        self, carry: Carry, rows: tuple[int, ...], of: Callable[[Array, int], Array], other: Callable[[Array], Array]
    ) -> Carry:
        """`of(array, axis)` of all that has rows, along axes from `axis` on, and `other(array)` of what has none."""

        def at(now: Array, number: int | None = None, axis: int = 0) -> Array:
            has_rows = now.shape[axis:][: len(rows)] == rows if number is None else self.leaves[number]
            return of(now, axis) if has_rows else other(now)

        state = restarted(carry.state, carry.state, at)
        traces = self.storage.restart(carry, None, at) if jax.tree.leaves(carry.traces) else carry.traces
        return Carry(state, traces, jax.tree.map(at, carry.memory), carry.origin)


def _taken(now: Array, nodes: Integer[Array, "*event"], axis: int) -> Array:
    if is_key(now):
        return jnp.take(now, nodes, axis, mode="clip")
    return jnp.take(now, nodes, axis, mode="fill", fill_value=0)


def _put(now: Array, nodes: Integer[Array, "*event"], new: Array, axis: int) -> Array:
    return now.at[(slice(None),) * axis + (nodes,)].set(new, mode="drop", unique_indices=True)
