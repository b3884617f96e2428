"""Edges sorted by their ends, and ids numbered, by compiled code where there is any; with the same bits without."""

import ctypes
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from numpy.typing import DTypeLike

from .._library import load

LIBRARY: Any
LIBRARY, REASON = load("_graph/libsparse_etrace_edges.so.1", "sparse_etrace_edges_interface", 5)


def sorted_edges(
    major: np.ndarray,
    minor: np.ndarray,
    shape: tuple[int, int],
    carried: np.ndarray | None = None,
    is_by_minor: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort edges by `(major, minor)`; equal ones stay in their order.

    Args:
        major: integers from 0 and below `shape[0]`, `(num_edges,)`.
        minor: integers from 0 and below `shape[1]`, likewise.
        shape: sizes that int32 holds.
        carried: what each edge takes along, of a type of 32 bits, likewise; its number unless given.
        is_by_minor: whether edges of one major unit are sorted by their minor units already.

    Returns:
        Both ends of the sorted edges, what each carried, and where the edges of each major unit start, the number of
        edges last; int32, and what was carried as it was.

    Raises:
        MemoryError: there is none to sort in.
    """
    count, sizes = major.size, (major.size, major.size, major.size, shape[0] + 1)
    if LIBRARY is None:
        both = minor.astype(np.int32, copy=False), major.astype(np.int32, copy=False)
        edges = sp.coo_array((np.arange(count, dtype=np.int32), both), shape=shape[::-1])
        edges.has_canonical_format = True  # keeps scipy from summing parallel ones
        edges = edges.tocsr().tocsc()
        units = np.repeat(np.arange(shape[0], dtype=np.int32), np.diff(edges.indptr))
        taken = edges.data if carried is None else carried[edges.data]
        return units, edges.indices, taken, edges.indptr.astype(np.int32, copy=False)
    wide = major.dtype == minor.dtype == np.int64
    ends = [np.ascontiguousarray(end, np.int64 if wide else np.int32) for end in (major, minor)]
    units, others, taken, ptr = map(on_border, sizes)
    carried = carried if carried is None else np.ascontiguousarray(carried)
    if _call("sort_edges", *ends, carried, units, others, taken, ptr, count, wide, *shape, is_by_minor):
        raise MemoryError(f"pre and post: expected memory to sort {count} synapses, got none. Free some, or split it.")
    return units, others, taken if carried is None else taken.view(carried.dtype), ptr


def pairs(both: Sequence[np.ndarray], weight: np.ndarray, reduce: int) -> tuple[np.ndarray, ...]:
    """Return each pair of units once, of the synapses of a square graph and these turned round. Compiled code only.

    Args:
        both: `pre, post_ptr, post_by_pre, pre_ptr, by_pre` of its connectivity.
        weight: of each synapse, float32 or float64.
        reduce: what becomes of the weights of a pair, in float64: 0 sum, 1 mean, 2 the largest, 3 the first.

    Returns:
        `pre, post, post_ptr, pre_ptr, by_pre, post_by_pre` of the pairs, and their weights.

    Raises:
        MemoryError: there is none.
        ValueError: there are more pairs than int32 numbers.
    """
    both, weight = [np.ascontiguousarray(part, np.int32) for part in both], np.ascontiguousarray(weight)
    units, wide = both[1].size - 1, weight.dtype == np.float64
    try:
        ptr = on_border(units + 1)
        count = _call("count_pairs", *both, units, ptr)
        if count < 0:
            raise MemoryError
        if count >= 2**31:
            raise ValueError(f"graph: expected fewer than 2**31 synapses in both directions, got {count}. Split it.")
        pre, post, by_pre, post_by_pre = (on_border(count) for _ in range(4))
        to = pre, post, post_by_pre, by_pre, on_border(count, weight.dtype)
        if _call("fill_pairs", *both, units, ptr, weight, wide, reduce, *to):
            raise MemoryError
    except MemoryError as error:
        raise MemoryError(f"graph: expected memory to pair {weight.size} synapses, got none. Free some.") from error
    return pre, post, ptr, ptr.copy(), by_pre, post_by_pre, to[-1]


def positions(pieces: Iterable[tuple[int, np.ndarray]], rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return where each id of two columns is among the sorted distinct ids of both, int32, and these.

    Args:
        pieces: ids in the order of their columns, each piece with the number of its column, 0 or 1; of one 64-bit type.
        rows: how many ids each column has.

    Raises:
        MemoryError: there is none to number them in.
    """
    if LIBRARY is None:
        columns: tuple[list, list] = ([], [])
        for side, ids in pieces:
            columns[side].append(ids)
        labels, place = np.unique(np.concatenate([*columns[0], *columns[1]] or [np.zeros(0, int)]), return_inverse=True)
        return np.split(place.astype(np.int32), 2), labels
    at, kind, known, count = [0, 0], np.dtype(np.int64), 0, 0
    try:
        places = [on_border(rows), on_border(rows)]
        for side, ids in pieces:
            ids, start = np.ascontiguousarray(ids), at[side]
            to, at[side], kind = places[side][start : start + ids.size], start + ids.size, ids.dtype
            known = _call("number", known, ids, to.size, to)
            if not known:
                raise MemoryError
        labels = np.empty(2 * rows, kind)
        if known:
            count, known = _call("labels", known, labels, -(2**63) if kind.kind == "i" else 0), 0
        if count < 0:
            raise MemoryError
    except MemoryError as error:
        raise MemoryError(f"pre and post: expected memory to number {2 * rows} ids, got none. Free some.") from error
    finally:
        if known:
            _call("labels", known, None, 0)
    return places, labels[:count].copy()


def _call(name: str, *given: np.ndarray | int | None) -> int:
    """Call a function with where arrays lie, with numbers, and with how many threads it may use."""
    function = LIBRARY[f"sparse_etrace_{name}"]
    function.restype = ctypes.c_int64
    plain = (a.ctypes.data if isinstance(a, np.ndarray) else a or 0 for a in given)
    return function(*map(ctypes.c_int64, plain), ctypes.c_int64(thread_count()))


def thread_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_border(size: int, dtype: DTypeLike = np.int32) -> np.ndarray:
    """An empty array that JAX need not copy."""
    return np.frombuffer(pa.allocate_buffer(np.dtype(dtype).itemsize * size), dtype)
