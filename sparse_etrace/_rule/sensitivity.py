"""Influences by parameter: the derivative of all state by all that moves it, for each number of the state a row.

Parameters that no node has in common, now or after the next step, share a column; that of a matrix that all nodes share
is kept by all:

    four nodes in a ring, a matrix `w` on features, a weight `s0 .. s3` on each synapse     SnAp(1, per="parameter")
    node      0     1     2     3
    column 0  w     w     w     w
           1  s3    -     s1    -        s0 sits where s3 has come after one step, so that they have two columns
           2  -     s0    -     s2
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Inexact, Int, PyTree

from .._sums import in_full
from .derivative import Pull, parts_of


class Shared(eqx.Module):
    """Which parameter a column is of at each node.

    Attributes:
        column: of each number that moves the state, -1 for none.
        value: the number that a node keeps in a column, as many as there are for none.
        node: of each number of the state.
    """

    column: Int[Array, " values"]
    value: Int[Array, "nodes columns"]
    node: PyTree[Int[Array, "..."]]


class Derivative(eqx.Module):
    """Derivative of the floating state by all that moves it.

    Attributes:
        rows: for each leaf of the state `(*leaf, columns)`.
        shared: whose the columns are, a `Shared`; None: one for each number that moves the state.
        moving: numbers of the arrays of the model that do.
        reach: what is kept, as a rule says it.
    """

    rows: PyTree[Array]
    shared: PyTree[Array]
    moving: tuple[int, ...] = eqx.field(static=True)
    reach: object = eqx.field(static=True)

    @property
    def matrix(self) -> Inexact[Array, "rows columns"]:
        """All rows, leaf after leaf, of a complex one those of its real part and then of its imaginary part."""
        leaves = [leaf.reshape(math.prod(leaf.shape[:-1]), leaf.shape[-1]) for leaf in jax.tree.leaves(self.rows)]
        return jnp.concatenate([part for leaf in leaves for part in parts_of(leaf)])

    def with_matrix(self, matrix: Inexact[Array, "rows columns"]) -> "Derivative":
        """Other numbers."""
        leaves, layout = jax.tree.flatten(self.rows)
        sizes = [math.prod(leaf.shape[:-1]) for leaf in leaves for _ in parts_of(leaf)]
        parts = iter(jnp.split(matrix, np.cumsum(sizes)[:-1]))
        own = [[next(parts).reshape(leaf.shape) for _ in parts_of(leaf)] for leaf in leaves]
        return self.with_rows(jax.tree.unflatten(layout, [jax.lax.complex(*p) if len(p) == 2 else p[0] for p in own]))

    @property
    def node(self) -> Int[Array, " rows"]:
        """The node of each row."""
        leaves = zip(jax.tree.leaves(self.shared.node), jax.tree.leaves(self.rows), strict=True)
        return jnp.concatenate([jnp.ravel(ids) for ids, leaf in leaves for _ in parts_of(leaf)])

    def kept(self, columns: Array | slice) -> Bool[Array, "columns rows"]:
        """Which rows of some columns are kept."""
        return (self.shared.value[:, columns] < self.shared.column.size)[self.node].T

    def gathered(self, pull: Pull) -> Pull:
        """Derivatives by all values as those by the values of the columns."""

        def of_columns(rows: Array) -> tuple[Array, Array]:
            by_state, by_values = pull(rows)
            value = jnp.minimum(self.shared.value[self.node[rows]], self.shared.column.size - 1)
            return by_state, jnp.take_along_axis(by_values, value[None], -1)

        return of_columns

    def with_rows(self, rows: PyTree[Array]) -> "Derivative":
        """Other rows."""
        return Derivative(rows, self.shared, self.moving, self.reach)

    def taught(self, signal: Inexact[Array, " rows"], values: int) -> Inexact[Array, " values"]:
        """Signals of the state on their rows, by all numbers that move it."""
        matrix = self.matrix
        signal = signal.astype(matrix.dtype)
        if self.shared is None:
            with in_full():
                return signal @ matrix
        by_node = jax.ops.segment_sum(signal[:, None] * matrix, self.node, len(self.shared.value))
        return jnp.zeros(values + 1, matrix.dtype).at[self.shared.value].add(by_node)[:-1]
