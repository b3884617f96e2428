"""Influences of synapses on hidden units, kept on a sparse pattern: how they lie in memory, and a step of them.

Four leaky units with five synapses, `h' = 0.9 h + op(h)`, under SnAp-2. Rows of the step: h0 .. h3, then y0 .. y3.

    synapse   0: 0 -> 2    1: 1 -> 2    2: 0 -> 3    3: 1 -> 3    4: 2 -> 3      unit 2 acts on 3, nothing on 0 and 1
    pattern 0   of synapses onto 2, which reach 2 and 3     rows h2 h3 | y2 y3     2 of them hidden
    pattern 1   of synapses onto 3, which reach 3           rows h3 | y3           1

    values:     block 0                        block 1
                h2: s0 s1    h3: s0 s1         h3: s2 s3 s4          first_entry 0 and 4, first_column 0, 2 and 5
        entry    0  1         2  3              4  5  6

Only hidden rows are stored, row by row; those of `y` are made anew in each step. Sums of pattern 0, in this order:
`y2 = x` (no edge from its rows; synapses 0 and 1 enter there), `y3 = v4 h2`, `h2' = 0.9 h2 + y2`, `h3' = 0.9 h3 + y3`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.typing import DTypeLike
from jaxtyping import Array

from .._arrays import blank, on_device
from .._kernels.influence import INDICES, MOST_COLUMNS, Blocks, advance
from .._model.types import Input, Weights
from .._model.unit_links import UnitLinks
from .._sums import joined, wide
from .reach import Wiring, both, entries, grown, spread

MAX_INDEX = np.iinfo(np.int32).max


class Influences(eqx.Module):
    """Influences and where they belong; what goes from step to step.

    Attributes:
        values: block by block, batch axes last.
        blocks: rows and columns of the blocks.
        edge_weight: for each edge, its entry of all weights of the carriers and a one.
        column_weight: for each column likewise.
        counts: how many are kept for each weight leaf of an op call, as `(call, leaf, number)`.
        made_for: the rule, and sizes of hidden units, op outputs and weights that the numbers fit.
    """

    values: Array
    blocks: Blocks
    edge_weight: Array
    column_weight: Array
    counts: tuple[tuple[int, int, int], ...] = eqx.field(static=True)
    made_for: tuple = eqx.field(static=True)


def lay_out(wiring: Wiring, reach: sp.csr_array, limit: int) -> tuple[Blocks, np.ndarray]:
    """Blocks for the neurons that each op output reaches, and the columns that have any, in their order."""
    h, count = wiring.num_hidden, wiring.num_rows
    outputs = wiring.columns.row - h
    reach.sort_indices()
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
    rows = _rows(wiring, reach[used[first]], entries(pattern_of[used], used, (len(first), count - h)))
    hidden = np.bincount(_run(rows)[rows.indices < h], minlength=rows.shape[0])

    order = np.argsort(pattern_of[outputs[columns]], kind="stable")
    columns = columns[order]
    of = pattern_of[outputs[columns]]
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    ends = np.append(starts, len(of))[1:]
    begin = np.concatenate([np.arange(a, b, MOST_COLUMNS) for a, b in zip(starts, ends, strict=True)] or [starts])
    width = np.diff(begin, append=len(of))
    pattern = of[begin]
    sizes = hidden[pattern] * width
    size = int(sizes.sum())
    if size > MAX_INDEX:
        raise ValueError(f"model: {size:,} influences are too many for int32. Take a smaller n or a sparser pattern.")
    first_entry = np.cumsum(sizes) - sizes
    entry = _local(rows, of, wiring.columns.row[columns])[0]

    sums, terms = _terms(wiring, rows, limit)
    levels = [np.full(h, len(wiring.links.carriers))]
    levels += [np.full(wiring.links.size(("y", c.number)), k) for k, c in enumerate(wiring.links.carriers)]
    ids = (
        hidden, rows.indptr, rows.indices, rows.indptr, sums, *terms, pattern, np.append(begin, len(of)),
        first_entry, entry, wiring.columns.x[columns], wiring.edges.link, np.concatenate(levels),
    )  # fmt: skip
    most = (int(np.diff(rows.indptr).max(initial=0)), int(np.diff(sums[rows.indptr]).max(initial=0)))
    if any(np.max(a, initial=0) > MAX_INDEX for a in ids):
        raise ValueError("model: the pattern is too large for int32. Take a smaller n or a sparser pattern.")
    arrays = (on_device(a, jnp.int32) for a in ids)
    named = dict(zip(INDICES, arrays, strict=True))
    return Blocks(**named, num_cut=wiring.edges.num_cut, size=size, levels=len(levels) - 1, most=most), columns


def _rows(wiring: Wiring, reach: sp.csr_array, entering: sp.csr_array) -> sp.csr_array:
    """For each pattern the hidden units that it keeps, and the op outputs on the way to them or at an end of the step.

    At an end, in `out` alone, the learning signal meets what an op reads as a constant.
    """
    within = wiring.within
    kept = reach @ wiring.member.T
    needed = kept @ within["yh"].T
    needed = grown(needed, within["yy"].T)
    on_the_way = both(kept @ within["hy"] + entering, needed)
    on_the_way = grown(on_the_way, within["yy"], inside=needed) + (kept @ wiring.ends).astype(bool)
    rows = sp.hstack([kept, on_the_way], format="csr")
    rows.sort_indices()
    return rows


def _run(rows: sp.csr_array) -> np.ndarray:
    return np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))


def _local(rows: sp.csr_array, pattern: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of a row among those of its pattern, and whether it is there."""
    keys = _run(rows) * rows.shape[1] + rows.indices
    key = pattern * rows.shape[1] + row
    at = np.minimum(np.searchsorted(keys, key), max(len(keys) - 1, 0))
    return at - rows.indptr[pattern], keys[at] == key if len(keys) else np.zeros(len(key), bool)


def _terms(wiring: Wiring, rows: sp.csr_array, limit: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """First term of each sum, and row and edge of each term; a pattern has as many sums as rows."""
    run = _run(rows)
    order = np.lexsort((rows.indices, rows.indices < wiring.num_hidden, run))
    pattern, sink = run[order], rows.indices[order]
    edges = wiring.edges
    into = np.argsort(edges.sink, kind="stable")
    ptr = np.searchsorted(edges.sink[into], np.arange(wiring.num_rows + 1))
    ways = ptr[sink + 1] - ptr[sink]
    if ways.sum() > limit:
        raise ValueError(
            f"model: the pattern needs {ways.sum():,} numbers to say what acts on what, more than "
            f"max_influences={limit:,}. Raise it, or take a smaller n, a sparser pattern, or D_RTRL."
        )
    total, entry = spread(ptr[sink], ways)
    edge = into[entry]
    row, is_there = _local(rows, pattern[total], edges.source[edge])
    count = np.bincount(total[is_there], minlength=len(sink))
    sums = np.concatenate([[0], np.cumsum(count)])
    return sums, (row[is_there], edge[is_there])


@jax.ensure_compile_time_eval()
def zero_influences(wiring: Wiring, reach: sp.csr_array, limit: int, rule: tuple) -> Callable[[], Influences]:
    """What makes influences of zero; nothing as large as they are is allocated before."""
    blocks, columns = lay_out(wiring, reach, limit)
    links = wiring.links
    edge_weight = on_device(wiring.edges.weight, jnp.int32)
    column_weight = on_device(wiring.columns.weight[columns], jnp.int32)
    avals = [links.program.avals[links.grouping.reading.state[i]] for i in links.leaves]
    avals += [c.y(links.program) for c in links.carriers]
    dtype = wide(joined(float if not avals else avals[0].dtype, *(a.dtype for a in avals)))
    kept = np.asarray(blocks.hidden)[np.asarray(blocks.pattern)]
    rows = np.repeat(kept, np.diff(np.asarray(blocks.first_column)))
    counts = []
    for call, uses in wiring.uses.items():
        for leaf, (_, begin) in enumerate(uses):
            end = begin + wiring.leaf_sizes[(call, leaf)]
            mine = (wiring.columns.weight[columns] >= begin) & (wiring.columns.weight[columns] < end)
            counts.append((call, leaf, int(rows[mine].sum())))
    shape, made_for = (blocks.size, *links.batch), (rule, sizes_of(links))
    return lambda: Influences(blank(shape, dtype), blocks, edge_weight, column_weight, tuple(counts), made_for)


def sizes_of(links: UnitLinks) -> tuple[int, ...]:
    """What the numbers of an `Influences` have to fit."""
    weights = [sum(math.prod(s.shape) for s in jax.tree.leaves(c.template(links.program)[1])) for c in links.carriers]
    outputs = [links.size(("y", c.number)) for c in links.carriers]
    return (*(links.size(("h", i)) for i in links.leaves), *outputs, *weights, *links.batch)


def weights_of(links: UnitLinks, weights: Weights) -> Array:
    """All weights of the carriers, and a one."""
    leaves = [jnp.ravel(leaf) for c in links.carriers for leaf in weights[c.number].v]
    one = jnp.ones(1, jnp.result_type(*leaves) if leaves else float)
    return jnp.concatenate([*leaves, one])


class InfluenceTerms(NamedTuple):
    """What one step says to the influences, units first and the batch last; over several, with a leading time axis.

    Attributes:
        along: derivatives along the links.
        x: inputs of the carriers, and a one.
        signal: derivative of the loss by the old hidden variables, then by the outputs of the carriers.
    """

    along: Array
    x: Array
    signal: Array


def influence_terms(
    links: UnitLinks, values: list[Array], xs: dict[int, Input], m: list[Array], n: dict[int, Array], dtype: DTypeLike
) -> InfluenceTerms:
    """Signals of a step from the derivatives along its links, the inputs of ops, and the learning signals."""
    batch = math.prod(links.batch)

    def batch_last(part: Array) -> Array:
        return part.reshape(batch, -1).T.astype(dtype)

    def of_output(part: Array, units: int) -> Array:
        # What has no input has no batch axes, and no influence enters there.
        return batch_last(part) if part.size == units * batch else jnp.zeros((units, batch), dtype)

    inputs = [batch_last(xs[c.number]) for c in links.carriers if xs.get(c.number) is not None]
    by_output = [of_output(n[c.number], links.size(("y", c.number))) for c in links.carriers]
    return InfluenceTerms(
        jnp.concatenate([jnp.zeros((0, batch), dtype), *(batch_last(v) for v in values)]),
        jnp.concatenate([*inputs, jnp.ones((1, batch), dtype)]),
        jnp.concatenate([jnp.zeros((0, batch), dtype), *(batch_last(part) for part in m), *by_output]),
    )


def influences_after(old: Influences, weights: Array, said: InfluenceTerms) -> tuple[Influences, Array]:
    """Influences after several steps, and the gradient of all weights of the carriers by the old ones."""
    dtype = old.values.dtype
    if not old.blocks.size:
        return old, jnp.zeros(weights.shape, dtype)
    new, taught = advance(old.blocks, old.values, weights.astype(dtype)[old.edge_weight], *said)
    gradient = jax.ops.segment_sum(taught, old.column_weight, len(weights), mode="promise_in_bounds")
    return eqx.tree_at(lambda o: o.values, old, new), gradient
