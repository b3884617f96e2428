"""The sort of edges and the numbers of ids, compiled and not, against numpy."""

import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

import sparse_etrace as se
from sparse_etrace._graph import sorting

MANY = 150_000  # enough for several buckets and threads


def hub(rng, size, count):
    return np.where(rng.random(count) < 0.7, size // 2, rng.integers(0, size, count))


def edges_of(case, count, shape):
    rng = np.random.default_rng(len(case))
    ends = [rng.integers(0, size, count) for size in shape]
    if case == "hubs":
        ends = [hub(rng, size, count) for size in shape]
    elif case in ("sorted", "parallel"):
        ends = [end // (1 + 9 * (case == "parallel")) for end in ends]
        order = np.lexsort(ends[::-1]) if case == "sorted" else slice(None)
        ends = [end[order] for end in ends]
    elif case == "backwards":
        ends = [np.sort(end)[::-1] for end in ends]
    types = {"int32": ("i4", "i4"), "mixed": ("i8", "i4"), "swapped": (">i8", "<i8")}.get(case, ("i8", "i8"))
    return [end.astype(kind) for end, kind in zip(ends, types, strict=True)]


def agree(major, minor, shape):
    order = np.lexsort((minor, major))
    found = sorting.sorted_edges(major, minor, shape)
    expected = major[order], minor[order], order, np.searchsorted(major[order], np.arange(shape[0] + 1))
    for array, wanted in zip(found, expected, strict=True):
        assert array.dtype == np.int32 and array.dtype.isnative
        np.testing.assert_array_equal(array, wanted)
    if shape[1] < 2**20:
        carried = np.arange(2 * len(order), dtype=">f4")[::2]
        again = sorting.sorted_edges(found[1], found[0], shape[::-1], carried, is_by_minor=True)
        np.testing.assert_array_equal(again[2], carried[np.lexsort((found[0], found[1]))])


@pytest.mark.parametrize("way", ["compiled", "scipy"])
@pytest.mark.parametrize("case", ["even", "hubs", "sorted", "parallel", "backwards", "int32", "mixed", "swapped"])
def test_equals_lexsort(case, way, monkeypatch):
    if way == "scipy":
        monkeypatch.setattr(sorting, "LIBRARY", None)
    monkeypatch.setattr(sorting, "thread_count", lambda: 3)
    wide = (MANY, (3, 2**31 - 1)) if way == "compiled" else (MANY, (3, 2**20))
    for count, shape in [(0, (0, 0)), (0, (2, 0)), (5, (1, 1)), (40, (7, 3)), (MANY, (5000, 999)), wide]:
        agree(*edges_of(case, count, shape), shape)


@pytest.mark.parametrize("way", ["compiled", "numpy"])
@pytest.mark.parametrize("dtype, low, high", [("i8", -(2**63), 2**63 - 1), ("u8", 0, 2**64 - 1), ("i8", -900, 900)])
def test_numbers_of_ids(dtype, low, high, way, monkeypatch):
    if way == "numpy":
        monkeypatch.setattr(sorting, "LIBRARY", None)
    monkeypatch.setattr(sorting, "thread_count", lambda: 3)
    rng = np.random.default_rng(0)
    for count, known in [(0, 1), (3, 1), (40, 40), (MANY, 3000), (MANY, MANY)]:
        ids = rng.integers(low, high, known, dtype, endpoint=True)[rng.integers(0, known, (2, count))]
        ids[0, :1], ids[1, :1] = low, high
        split = [(0, piece) for piece in np.split(ids[0], [count // 3, count // 3])]
        (pre, post), labels = sorting.positions(iter([split[0], (1, ids[1]), *split[1:]]), count)
        expected, places = np.unique(ids, return_inverse=True)
        assert labels.dtype == dtype and pre.dtype == post.dtype == np.int32
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal([pre, post], places.reshape(2, -1))


@pytest.mark.skipif(sorting.LIBRARY is None, reason="needs the compiled sort")
@pytest.mark.parametrize("case", ["even", "hubs", "parallel"])
def test_pairs_in_blocks(case, monkeypatch):
    monkeypatch.setattr(sorting, "thread_count", lambda: 3)
    ends = edges_of(case, MANY, (5000, 5000))
    graph = se.from_edges(*ends, np.random.default_rng(0).normal(size=MANY), (5000, 5000))
    made = [se.transform.to_undirected(graph, reduce) for reduce in ("sum", "mean", "max", "first")]
    monkeypatch.setattr(sorting, "LIBRARY", None)
    for one, reduce in zip(made, ("sum", "mean", "max", "first"), strict=True):
        two = se.transform.to_undirected(graph, reduce)
        for leaf, wanted in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(leaf, wanted)


@pytest.mark.skipif(sorting.LIBRARY is None, reason="needs the compiled sort")
@pytest.mark.parametrize("case", ["a column", "one for all", "long indices", "short indices"])
def test_pairs_of_arrays_as_they_come(case):
    """Weights and indices that lie in memory otherwise than the compiled code reads them."""
    conn = se.Connectivity.from_edges([0, 0, 1, 2], [1, 2, 0, 2], (3, 3))
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)[:, 1]
    if case == "one for all":
        weight = np.broadcast_to(np.float32(1), 4)
    elif case.endswith("indices"):
        kind = np.int64 if case == "long indices" else np.int16
        parts = ("pre", "post", "post_ptr", "pre_ptr", "by_pre", "post_by_pre")
        moved = [np.asarray(getattr(conn, name), kind) for name in parts]
        conn = eqx.tree_at(lambda c: [getattr(c, name) for name in parts], conn, moved)
    graph = se.Graph(conn, weight)
    two, _ = se.transform.to_undirected(graph, with_origin=True)
    one = se.transform.to_undirected(graph)
    np.testing.assert_array_equal(one.to_dense(), two.to_dense())


@pytest.mark.skipif(sorting.LIBRARY is None, reason="needs the compiled sort")
def test_more_pairs_than_numbers(monkeypatch):
    graph = se.from_edges([0], [1], [1.0], (2, 2))
    monkeypatch.setattr(sorting, "_call", lambda *args: 2**31)
    with pytest.raises(ValueError, match=r"graph: expected fewer than 2\*\*31 synapses in both .*, got 2147483648"):
        se.transform.to_undirected(graph)


@pytest.mark.parametrize("weights", [[1.0, np.nan], [np.nan, 1.0]])
def test_the_largest_of_what_is_no_number(weights):
    conn = se.from_edges([0, 0], [1, 1], [1.0, 2.0], (2, 2)).connectivity
    with pytest.raises(ValueError, match="nan"):
        se.transform.to_undirected(se.Graph(conn, np.array(weights, np.float32)), "max")


@pytest.mark.skipif(sorting.LIBRARY is None, reason="needs the compiled sort")
def test_several_at_a_time(monkeypatch):
    monkeypatch.setattr(sorting, "thread_count", lambda: 2)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda case: agree(*edges_of(case, MANY, (500, 500)), (500, 500)), ["even", "hubs"] * 4))


@pytest.mark.skipif(sorting.LIBRARY is None or sys.platform != "linux", reason="needs the compiled sort, reads /proc")
def test_no_memory_is_said():
    """All synapses of one unit are sorted in one piece, for which there is no room here; nor for so many ids."""
    pre, post = np.arange(2**22)[::-1].copy(), np.zeros(2**22, np.int64)
    sorting.sorted_edges(post, pre, (1, 2**22))  # Arrow has memory for what comes out then
    nothing, weight = [np.zeros(2**24, np.int32)] * 5, np.zeros(2**22, np.float32)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + pre.nbytes, limits[1]))
    try:
        with pytest.raises(MemoryError, match="pre and post: expected memory to sort 4194304 synapses, got none. Free"):
            sorting.sorted_edges(post, pre, (1, 2**22))
        with pytest.raises(MemoryError, match="pre and post: expected memory to number 4194304 ids, got none. Free"):
            sorting.positions([(0, pre[: 2**21]), (1, pre[: 2**21])], 2**21)
        with pytest.raises(MemoryError, match="graph: expected memory to pair 4194304 synapses, got none. Free"):
            sorting.pairs(nothing, weight, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert sorting.sorted_edges(post, pre, (1, 2**22))[1][:2].tolist() == [0, 1]
