"""Influences of synapses on hidden units, kept on a sparse pattern: how they lie in memory, and a step of them."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array

from ._kernels.influence import MOST_COLUMNS, Blocks, advance
from ._links import Links
from ._reach import Edges, Wiring, spread

MAX_INDEX = np.iinfo(np.int32).max


class Influences(eqx.Module):
    """Influences and where they belong; what goes from step to step.

    Attributes:
        values: block by block, batch axes behind.
        blocks: rows and columns of the blocks.
        edge_weight, edge_link: an edge's entry of all weights of the carriers and a one, and of all values of links.
        column_weight, column_x: likewise a column's entry of all weights, and of all inputs of the carriers and a one.
        sizes: hidden units, rows, weights, values of links and inputs that the numbers fit.
    """

    values: Array
    blocks: Blocks
    edge_weight: Array
    edge_link: Array
    column_weight: Array
    column_x: Array
    sizes: tuple[int, ...] = eqx.field(static=True)


def lay_out(wiring: Wiring, reach: sp.csr_array) -> tuple[Blocks, Edges, np.ndarray]:
    """Blocks for the neurons that each op output reaches, and the columns that have any, in their order."""
    h, count = wiring.num_hidden, wiring.num_rows
    outputs = wiring.columns.row - h
    reached = np.diff(reach.indptr) > 0
    columns = np.flatnonzero(reached[outputs])
    # Outputs that reach the same neurons share a pattern.
    number: dict[bytes, int] = {}
    pattern_of = np.full(count - h, -1)
    for y in np.unique(outputs[columns]):
        key = reach.indices[reach.indptr[y] : reach.indptr[y + 1]].tobytes()
        pattern_of[y] = number.setdefault(key, len(number))
    used = np.flatnonzero(pattern_of >= 0)
    _, first = np.unique(pattern_of[used], return_index=True)
    rows = _rows(wiring, reach[used[first]], _bool(pattern_of[used], used, (len(first), count - h)))
    hidden = np.bincount(_run(rows)[rows.indices < h], minlength=rows.shape[0])

    order = np.argsort(pattern_of[outputs[columns]], kind="stable")
    columns = columns[order]
    of = pattern_of[outputs[columns]]
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    ends = np.append(starts[1:], len(of))
    begin = np.concatenate([np.arange(a, b, MOST_COLUMNS) for a, b in zip(starts, ends, strict=True)] or [starts])
    width = np.diff(begin, append=len(of))
    pattern = of[begin]
    size = int(np.sum(hidden[pattern] * width))
    if size > MAX_INDEX:
        raise ValueError(f"model: {size:,} influences are too many for int32. Take a smaller n or a sparser pattern.")
    first_entry = np.concatenate([[0], np.cumsum(hidden[pattern] * width)[:-1]])
    entry = _local(rows, of, wiring.columns.row[columns])[0]

    sums, sums_of, terms, edges = _terms(wiring, rows, hidden)
    levels = [np.full(h, len(wiring.links.carriers))]
    levels += [np.full(wiring.links.size(("y", c.number)), k) for k, c in enumerate(wiring.links.carriers)]
    ids = (
        hidden, rows.indptr, rows.indices, sums_of, sums, *terms,
        pattern, np.append(begin, len(of)), first_entry, entry, np.concatenate(levels),
    )  # fmt: skip
    of_pattern = sums[sums_of]
    most = (int(np.diff(rows.indptr).max(initial=0)), int(np.diff(of_pattern).max(initial=0)))
    arrays = (jnp.asarray(a, jnp.int32) for a in ids)
    return Blocks(*arrays, wiring.edges.num_cut, size, len(levels) - 1, most), edges, columns


def _rows(wiring: Wiring, reach: sp.csr_array, entering: sp.csr_array) -> sp.csr_array:
    """For each pattern the hidden units that it keeps, and the op outputs on the way to them."""
    within = wiring.within
    kept = reach @ wiring.member.T
    needed = kept @ within["yh"].T
    needed = _close(needed, within["yy"].T, None)
    on_the_way = _and(kept @ within["hy"] + entering, needed)
    on_the_way = _close(on_the_way, within["yy"], needed)
    rows = sp.hstack([kept, on_the_way], format="csr")
    rows.sort_indices()
    return rows


def _close(found: sp.csr_array, edges: sp.csr_array, inside: sp.csr_array | None) -> sp.csr_array:
    size = -1
    while found.nnz > size:
        size = found.nnz
        more = found @ edges
        found = (found + (more if inside is None else _and(more, inside))).tocsr()
    return found


def _and(a: Any, b: Any) -> sp.csr_array:
    return a.tocsr().multiply(b.tocsr()).tocsr().astype(bool)


def _bool(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    return sp.csr_array((np.ones(len(rows), bool), (rows, columns)), shape=shape)


def _run(rows: sp.csr_array) -> np.ndarray:
    return np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))


def _local(rows: sp.csr_array, pattern: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of a row among those of its pattern, and whether it is there."""
    keys = _run(rows) * rows.shape[1] + rows.indices
    key = pattern * rows.shape[1] + row
    at = np.minimum(np.searchsorted(keys, key), max(len(keys) - 1, 0))
    return at - rows.indptr[pattern], keys[at] == key if len(keys) else np.zeros(len(key), bool)


def _terms(
    wiring: Wiring, rows: sp.csr_array, hidden: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray], Edges]:
    """First term of each sum, first sum of each pattern, row and edge of each term."""
    h = wiring.num_hidden
    run = _run(rows)
    is_hidden = rows.indices < h
    order = np.lexsort((rows.indices, is_hidden, run))
    pattern, sink = run[order], rows.indices[order]
    edges = wiring.edges
    into = np.argsort(edges.sink, kind="stable")
    ptr = np.searchsorted(edges.sink[into], np.arange(wiring.num_rows + 1))
    total, entry = spread(ptr[sink], ptr[sink + 1] - ptr[sink])
    edge = into[entry]
    row, is_there = _local(rows, pattern[total], edges.source[edge])
    count = np.bincount(total[is_there], minlength=len(sink))
    sums = np.concatenate([[0], np.cumsum(count)])
    return sums, rows.indptr, (row[is_there], edge[is_there]), edges


def start(wiring: Wiring, reach: sp.csr_array, dtype: Any, is_real: bool) -> Influences:
    """Influences of zero; where they are not real, only their shape."""
    blocks, edges, columns = lay_out(wiring, reach)
    shape = (blocks.size, *wiring.links.batch)
    values: Any = jnp.zeros(shape, dtype) if is_real else jax.ShapeDtypeStruct(shape, dtype)
    arrays = (edges.weight, edges.link, wiring.columns.weight[columns], wiring.columns.x[columns])
    return Influences(values, blocks, *(jnp.asarray(a, jnp.int32) for a in arrays), sizes_of(wiring.links))


def sizes_of(links: Links) -> tuple[int, ...]:
    """What the numbers of an `Influences` have to fit."""
    weights = [sum(math.prod(s.shape) for s in jax.tree.leaves(c.template(links.program)[1])) for c in links.carriers]
    outputs = [links.size(("y", c.number)) for c in links.carriers]
    return (*(links.size(("h", i)) for i in links.leaves), *outputs, *weights, *links.batch)


def weights_of(links: Links, weights: dict[int, tuple[tuple, tuple]]) -> Array:
    """All weights of the carriers, and a one."""
    leaves = [jnp.ravel(leaf) for c in links.carriers for leaf in weights[c.number][1]]
    return jnp.concatenate([*leaves, jnp.ones(1, jnp.result_type(*leaves))])


def step(
    links: Links,
    old: Influences,
    weights: Array,
    values: list[Array],
    xs: dict[int, Any],
    m: list[Array],
    n: dict[int, Array],
) -> tuple[Influences, Array]:
    """Influences behind a step, and the gradient of all weights by the old ones.

    Args:
        weights: `weights_of`, taken at the edges.
        values: derivatives along the links.
        xs: inputs of the carriers.
        m: derivative of the loss by the old hidden variables.
        n: by the outputs of the carriers.
    """
    batch = math.prod(links.batch)
    dtype = old.values.dtype

    def behind(part: Array) -> Array:
        """Units first, then the batch."""
        return part.reshape(batch, -1).T.astype(dtype)

    along = jnp.concatenate([behind(v) for v in values]) if values else jnp.zeros((0, batch), dtype)
    edges = weights[:, None].astype(dtype) * along[old.edge_link]
    inputs = [behind(xs[c.number]) for c in links.carriers if xs.get(c.number) is not None]
    x = jnp.concatenate([*inputs, jnp.ones((1, batch), dtype)])[old.column_x]
    by_output = [_of_output(n[c.number], links.size(("y", c.number)), batch).astype(dtype) for c in links.carriers]
    signal = jnp.concatenate([*(behind(part) for part in m), *by_output])
    flat = old.values.reshape(old.blocks.size, batch)
    new, gradient = advance(old.blocks, flat, edges, x, signal)
    return eqx.tree_at(lambda o: o.values, old, new.reshape(old.values.shape)), gradient


def _of_output(n: Array, units: int, batch: int) -> Array:
    return n.reshape(-1, units).T if n.size == units * batch else jnp.broadcast_to(n.reshape(units, 1), (units, batch))
