"""A window of steps of the influence of synapses on units, block by block: sparse times dense."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact, Int

from .._varying import bind
from . import native
from .products import Axes, Tangent, batch_by_loop, in_front, merged

MOST_COLUMNS = 32
# Numbers of the terms of so many blocks as XLA takes at once: a GPU would be idle at one after the other.
TOGETHER = 2**24


class Blocks(eqx.Module):
    """Which influences are kept. Columns of one pattern keep the same rows, and form blocks of `rows x columns`.

    A pattern works on a list of rows: its hidden units, then outputs of ops in the order of their execution. The new
    value of each output of an op, then of each hidden unit, is a sum over terms `edge * old or new row`. An output of
    an op also receives the inputs of the columns that enter there.

    Attributes:
        hidden: for each pattern, how many of its rows are hidden units.
        row_ptr, rows: the rows of each pattern, as rows of the whole step.
        out_ptr: for each pattern, its first sum.
        term_ptr: for each sum, its first term.
        term_row, term_edge: row of the pattern, and edge.
        pattern, first_column, first_entry: of each block.
        entry, column_x: for each column, the row of its pattern where its input enters, and which input that is.
        link: for each edge, the derivative that its weight multiplies.
        num_cut: the first so many edges are those along which the learning signal meets the old influences.
        size: number of influences.
        level, levels: number of the op of each row, and how many ops there are.
        most: rows and terms of the largest pattern.
    """

    hidden: Int[Array, " patterns"]
    row_ptr: Int[Array, " patterns_and_1"]
    rows: Int[Array, " rows"]
    out_ptr: Int[Array, " patterns_and_1"]
    term_ptr: Int[Array, " sums_and_1"]
    term_row: Int[Array, " terms"]
    term_edge: Int[Array, " terms"]
    pattern: Int[Array, " blocks"]
    first_column: Int[Array, " blocks_and_1"]
    first_entry: Int[Array, " blocks"]
    entry: Int[Array, " columns"]
    column_x: Int[Array, " columns"]
    link: Int[Array, " edges"]
    level: Int[Array, " all_rows"]
    num_cut: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    levels: int = eqx.field(static=True)
    most: tuple[int, int] = eqx.field(static=True)


INDICES = tuple(field.name for field in dataclasses.fields(Blocks) if not field.metadata.get("static"))


def advance(
    blocks: Blocks,
    influence: Inexact[Array, "*size_and_batch"],
    weight: Inexact[Array, " edges"],
    along: Inexact[Array, "steps links batch"],
    x: Inexact[Array, "steps inputs batch"],
    signal: Inexact[Array, "steps all_rows batch"],
) -> tuple[Inexact[Array, "*size_and_batch"], Inexact[Array, " columns"]]:
    """Take all influences through a window, and let the learning signal of each step meet the old ones.

    `dv[c] = sum over steps and batch of (signal_h . J + signal_y . (cut edges J))[c]`, each before
    `Jy = P o (edges J) + x`, `J <- P o (edges (J, Jy))`. An edge is `weight * along[link]`.

    Args:
        blocks: what is kept.
        influence: J, block by block, in a block row by row, batch last.
        weight: of each edge.
        along: derivatives that they multiply.
        x: all inputs of columns.
        signal: derivative of the loss by old hidden units, then by the outputs of ops.

    Returns:
        The new influences, and the gradient of each column.
    """
    static, ids = _split(blocks)
    parts = (part[None] for part in (weight, along, x, signal))
    new, gradient = bind(influence_p, *ids, influence, *parts, **static)
    return new, gradient[0]


def _split(blocks: Blocks) -> tuple[dict[str, object], list[Array]]:
    static = {"num_cut": blocks.num_cut, "size": blocks.size, "levels": blocks.levels, "most": blocks.most}
    return static, jax.tree.leaves(blocks)


# In the primitive, an axis in front of all numbers counts what is mapped. Only the influences have any shape of as many
# numbers: XLA passes them on in place if they are not reshaped.
NUMBERS = 5
COLUMN_X = 11


def _xla(*operands: Array, num_cut: int, size: int, levels: int, most: tuple[int, int]) -> list[Array]:
    ids = dict(zip(INDICES, operands[:-NUMBERS], strict=True))
    blocks = Blocks(**ids, num_cut=num_cut, size=size, levels=levels, most=most)

    def one(influence: Array, weight: Array, along: Array, x: Array, signal: Array) -> tuple[Array, Array]:
        def step(now: tuple[Array, Array], parts: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            along, x, signal = parts
            new, gradient = _one(blocks, now[0], weight[:, None] * along[blocks.link], x[blocks.column_x], signal)
            return (new, now[1] + gradient), None

        start = influence, jnp.zeros(len(blocks.entry), influence.dtype)
        return jax.lax.scan(step, start, (along, x, signal))[0]

    influence, *numbers = operands[-NUMBERS:]
    signal, count = numbers[-1], len(numbers[-1])
    numbers = [influence.reshape(count, size, signal.shape[-1]), *numbers]
    found = [one(*(part[i] for part in numbers)) for i in range(count)]
    new, gradient = (jnp.stack(part) for part in zip(*found, strict=True))
    return [new.reshape(influence.shape), gradient]


def _one(blocks: Blocks, influence: Array, edges: Array, x: Array, signal: Array) -> tuple[Array, Array]:
    """Some blocks after the others, each padded to the largest."""
    rows, terms = blocks.most
    columns, batch, count = jnp.arange(MOST_COLUMNS), influence.shape[1:], len(blocks.pattern)

    def one(k: Array) -> tuple[Array, ...]:
        """What a block and its columns become, and where these lie."""
        p = blocks.pattern[k]
        hidden, first = blocks.hidden[p], blocks.first_column[k]
        width, outputs = blocks.first_column[k + 1] - first, blocks.row_ptr[p + 1] - blocks.row_ptr[p] - hidden
        row = jnp.arange(rows)
        at = blocks.first_entry[k] + row[:, None] * width + columns[None]
        at = jnp.where((row[:, None] < hidden) & (columns[None] < width), at, blocks.size)
        old = influence.at[at].get(mode="fill", fill_value=0)
        number = blocks.rows.at[blocks.row_ptr[p] + row].get(mode="clip")
        # Sums are numbered outputs first; the row that a sum is about comes from its number.
        term = blocks.term_ptr[blocks.out_ptr[p]] + jnp.arange(terms)
        is_term = term < blocks.term_ptr[blocks.out_ptr[p + 1]]
        total = jnp.searchsorted(blocks.term_ptr, term, side="right") - 1 - blocks.out_ptr[p]
        sink = jnp.where(total < outputs, total + hidden, total - outputs + rows)
        of = blocks.rows.at[blocks.row_ptr[p] + jnp.where(sink < rows, sink, sink - rows)].get(mode="clip")
        source = blocks.term_row.at[term].get(mode="clip")
        edge = blocks.term_edge.at[term].get(mode="clip")
        value = jnp.where(is_term[:, None], edges.at[edge].get(mode="clip"), 0)
        of_signal = jnp.where((row < hidden)[:, None], signal.at[number].get(mode="clip"), 0)
        met = jnp.where((is_term & (edge < blocks.num_cut))[:, None], value * signal.at[of].get(mode="clip"), 0)
        of_signal = of_signal.at[source].add(met, mode="drop")
        taught = jnp.sum(of_signal[:, None] * old, axis=(0, 2))
        here = x.at[first + columns].get(mode="clip")
        enters = blocks.entry.at[first + columns].get(mode="clip")
        scratch = jnp.concatenate([old, jnp.zeros((rows, MOST_COLUMNS, *batch), old.dtype)])
        scratch = scratch.at[enters, columns].add(jnp.where((columns < width)[:, None], here, 0))
        level = jnp.where(sink < rows, blocks.level.at[of].get(mode="clip"), blocks.levels)
        for number_of_level in range(blocks.levels + 1):
            part = jnp.where((level == number_of_level)[:, None], value, 0)
            scratch = scratch.at[sink].add(part[:, None] * scratch.at[source].get(mode="clip"), mode="drop")
        return at, scratch[rows:], jnp.where(columns < width, first + columns, len(blocks.entry)), taught

    together = max(min(count, TOGETHER // max(terms * MOST_COLUMNS * math.prod(batch), 1)), 1)

    def some(i: ArrayLike, now: tuple[Array, Array]) -> tuple[Array, Array]:
        # The last one more often, where there are no more.
        at, new, to, taught = jax.vmap(one)(jnp.minimum(i * together + jnp.arange(together), count - 1))
        return now[0].at[at].set(new, mode="drop"), now[1].at[to].set(taught, mode="drop")

    start = jnp.zeros_like(influence), jnp.zeros(len(blocks.entry), influence.dtype)
    return jax.lax.fori_loop(0, -(-count // together), some, start)


def _native(*operands: Array, num_cut: int, size: int, levels: int, most: tuple[int, int]) -> list[Array]:
    *ids, _ = operands[:-NUMBERS]  # the levels are only for XLA
    influence, weight = operands[-NUMBERS : 2 - NUMBERS]
    results = [
        jax.ShapeDtypeStruct(influence.shape, influence.dtype),
        jax.ShapeDtypeStruct((len(weight), len(ids[COLUMN_X])), influence.dtype),
        jax.ShapeDtypeStruct((0,), influence.dtype),
    ]
    given = (*ids, *operands[-NUMBERS:])
    return native.call("influence", results, *given, aliases={len(ids): 0}, num_cut=np.int64(num_cut))


def _jvp(primals: Sequence[Array], tangents: Sequence[Tangent], **static: Any) -> tuple[list[Array], list[Array]]:
    fn = functools.partial(_xla, *primals[:-NUMBERS], **static)
    moved = tuple(ad.instantiate_zeros(t) for t in tangents[-NUMBERS:])
    return bind(influence_p, *primals, **static), jax.jvp(fn, tuple(primals[-NUMBERS:]), moved)[1]


def _batch(operands: Sequence[Array], axes: Axes, **static: Any) -> tuple[list[Array], list[int]]:
    if any(axis is not None for axis in axes[:-NUMBERS]):
        return batch_by_loop(functools.partial(bind, influence_p, **static), operands, axes)
    size = next(v.shape[axis] for v, axis in zip(operands, axes, strict=True) if axis is not None)
    influence, *parts = (in_front(v, k, size) for v, k in zip(operands[-NUMBERS:], axes[-NUMBERS:], strict=True))
    new, gradient = bind(influence_p, *operands[:-NUMBERS], influence, *map(merged, parts), **static)
    return [new, gradient.reshape(size, -1, gradient.shape[-1])], [0, 0]


influence_p = native.primitive("influence", _xla, _native, native.compiled_types)
ad.primitive_jvps[influence_p] = _jvp
batching.primitive_batchers[influence_p] = _batch
