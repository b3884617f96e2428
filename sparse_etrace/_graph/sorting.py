"""Edges sorted by their ends, and ids numbered, by compiled code where there is any; with the same bits without."""

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._library import load

LIBRARY: Any
LIBRARY, REASON = load("_graph/libsparse_etrace_edges.so.1", "sparse_etrace_edges_interface", 2)
LINE = 64  # bytes; JAX takes an array that starts on such a border as it is


def sorted_edges(
    major: np.ndarray, minor: np.ndarray, shape: tuple[int, int], is_by_minor: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort edges by `(major, minor)`; equal ones stay in their order.

    Args:
        major: integers from 0 and below `shape[0]`, `(num_edges,)`.
        minor: integers from 0 and below `shape[1]`, likewise.
        shape: sizes that int32 holds.
        is_by_minor: whether edges of one major unit are sorted by their minor units already.

    Returns:
        Both ends of the sorted edges, which edge each was, and where the edges of each major unit start, the number of
        edges last; int32.

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
        return units, edges.indices, edges.data, edges.indptr.astype(np.int32, copy=False)
    wide = major.dtype == minor.dtype == np.int64
    ends = [np.ascontiguousarray(end, np.int64 if wide else np.int32) for end in (major, minor)]
    units, others, number, ptr = map(on_border, sizes)
    if _call("sort_edges", *ends, units, others, number, ptr, count, wide, *shape, is_by_minor):
        raise MemoryError(
            f"pre and post: expected memory to sort {count} synapses, got none. Free some, or split the layer."
        )
    return units, others, number, ptr


def positions(*columns: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return where each id is among the sorted distinct ids of all columns, int32, and these.

    Args:
        columns: integers of one 64-bit type, each column in pieces; all columns are of one length.

    Raises:
        MemoryError: there is none to number them in.
    """
    pieces = [np.ascontiguousarray(piece) for column in columns for piece in column]
    if LIBRARY is None:
        labels, place = np.unique(np.concatenate(pieces), return_inverse=True)
        return np.split(place.astype(np.int32), len(columns)), labels
    lengths = np.array([piece.size for piece in pieces], np.int64)
    at = np.array([piece.ctypes.data for piece in pieces], np.uint64)
    place, labels = on_border(lengths.sum()), np.empty(lengths.sum(), pieces[0].dtype)
    count = _call("positions", at, lengths, place, labels, len(pieces), labels.dtype.kind == "i")
    if count < 0:
        raise MemoryError(f"pre and post: expected memory to number {place.size} ids, got none. Free some.")
    return np.split(place, len(columns)), labels[:count].copy()


def _call(name: str, *given: np.ndarray | int) -> int:
    """Call a function with where arrays lie, with numbers, and with how many threads it may use."""
    function = LIBRARY[f"sparse_etrace_{name}"]
    function.restype = ctypes.c_int64
    return function(
        *(ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int64(a) for a in given),
        ctypes.c_int64(thread_count()),
    )


def thread_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_border(size: int) -> np.ndarray:
    """An empty array of int32 that JAX need not copy."""
    room = np.empty(4 * size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + 4 * size].view(np.int32)
