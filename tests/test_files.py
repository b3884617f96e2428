"""Graphs in files: what is written is read again exactly; what cannot be held, read or trusted is refused in words."""

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import fuzz_files
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import example, given, settings, strategies as st

import sparse_etrace as se
from sparse_etrace import cli
from sparse_etrace._files import cells as cells_of_text, parquet, text
from sparse_etrace._files.arrow import in_sorted_ids
from sparse_etrace._files.npz import bytes_of
from sparse_etrace._files.safe import Source, only_strings

SUFFIXES = [".npz", ".graphml", ".parquet", ".csv", ".tsv", ".mtx", ".graphml.gz", ".csv.gz", ".mtx.gz"]
ALL = [".npz", ".graphml", ".parquet"]
ODD = ['a,"b"', "c\nd", " e ", "é\u4e2d\U0001f9e0", "#f", "01", "x;y\tz", "1.5", "True", "\r\n"]


def same(graph, other):
    """Equal to the bit, in order, with types of labels and kinds of attributes."""
    conn, back = graph.connectivity, other.connectivity
    assert conn.shape == back.shape and list(graph.nodes) == list(other.nodes)
    assert [type(x) for x in graph.nodes] == [type(x) for x in other.nodes]
    assert isinstance(other.nodes, range) or not isinstance(graph.nodes, range)
    for a, b in ((conn.pre, back.pre), (conn.post, back.post), (graph.weight, other.weight)):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for attrs, found in ((graph.node_attrs, other.node_attrs), (graph.edge_attrs, other.edge_attrs)):
        assert list(attrs) == list(found)
        for key in attrs:
            assert found[key].dtype.kind == attrs[key].dtype.kind or not attrs[key].size
            np.testing.assert_array_equal(found[key], attrs[key])


def round_trip(graph, path, **options):
    se.write_graph(path, graph)
    same(graph, se.read_graph(path, dtype=graph.weight.dtype, **options))


LABELS = {
    "positions": None,
    "words": ["k", "b", "a", "z", "iso"],
    "odd": ODD[:5],
    "look like numbers": ["01", "1", "1.5", "nan", "True"],
    "wide": [2**60, -3, 5, 2**62, 7],
    "unsigned": [2**63 + 5, 3, 1, 2, 2**64 - 1],
    "beyond": [2**70, 1, 2, 3, 4],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labels", LABELS)
def test_labels_order_and_zeros(tmp_path, suffix, labels):
    """Parallel synapses, a zero, a node without synapses."""
    names = LABELS[labels]
    graph = se.from_edges([3, 0, 0, 1, 0], [0, 1, 1, 2, 1], [0.1, -2.5e-30, 0.0, 3, 1e30], (5, 5))
    graph = se.Graph(graph.connectivity, graph.weight, names)
    if suffix.startswith(".mtx") and names:
        with pytest.raises(
            ValueError, match="graph: expected nodes without labels, as Matrix Market numbers them, got .*"
        ):
            se.write_graph(tmp_path / f"graph{suffix}", graph)
    else:
        round_trip(graph, tmp_path / f"graph{suffix}")


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if ".mtx" not in suffix])
@pytest.mark.parametrize("labels", [np.array([2, 0, 1]), np.array(["c", "a", "b"])])
def test_labels_that_are_numpy_scalars(tmp_path, suffix, labels):
    """Three ways to come by them; the nodes are in no sorted order."""
    x, y, z = labels
    G = nx.DiGraph()
    G.add_nodes_from(labels)
    G.add_weighted_edges_from([(x, y, 1.0), (z, y, 2.0), (y, y, 3.0)])
    edges = ([x, z, y], [y, y, y], [1.0, 2.0, 3.0])
    expected = se.from_edges([0, 2, 1], [1, 1, 1], edges[2])
    expected = se.Graph(expected.connectivity, expected.weight, labels.tolist())
    built = [se.from_networkx(G), se.from_edges(*edges, labels=list(labels))]
    for graph in [*built, se.Graph(expected.connectivity, expected.weight, list(labels))]:
        same(expected, graph)
        round_trip(graph, tmp_path / f"graph{suffix}")


def test_parquet_that_does_not_say_what_its_columns_hold(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_etrace._files.parquet.bytes_of", lambda graph, **_: bytes_of(graph))
    se.write_graph(tmp_path / "graph.parquet", parallel())
    with pytest.raises(ValueError, match="expected a note whether its columns hold labels or positions, got none"):
        se.read_graph(tmp_path / "graph.parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "shape, names", [((2, 4), None), ((0, 0), None), ((3, 3), None), ((0, 2), None), ((2, 1), "abc")]
)
def test_shapes(tmp_path, suffix, shape, names):
    empty = 0 in shape or shape == (3, 3)
    graph = se.from_edges([] if empty else [1, 0, 1], [] if empty else [0] * 3, [] if empty else [1, 2, 3], shape)
    graph = se.Graph(graph.connectivity, graph.weight, None if names is None else list(names))
    if not (suffix.startswith(".mtx") and names):
        round_trip(graph, tmp_path / f"graph{suffix}")


@pytest.mark.parametrize("suffix", ALL)
def test_attributes(tmp_path, suffix):
    graph = se.from_edges(
        ["x", "y", "x"],
        ["y", "x", "y"],
        labels=["x", "y"],
        node_attrs={"a,b": ODD[:2], "f": np.array([0.1, np.nan], np.float32), "n": [1, 2**62], "": [True, False]},
        edge_attrs={"text": ["", "01", "1"], "f": [0.1, -np.inf, 1e300], "n": np.array([1, 2, 3], np.int32)},
    )
    round_trip(graph, tmp_path / f"graph{suffix}")
    back = se.read_graph(tmp_path / f"graph{suffix}")
    assert back.node_attrs["f"].dtype == np.float32 and back.edge_attrs["n"].dtype == np.int32


def test_attributes_of_an_edge_list(tmp_path):
    attrs = {"text": ["", "é,\n", "1"], "f": [0.1, np.nan, 1e300], "n": [1, 2, 2**64 - 1], "on": [True, False, True]}
    graph = se.from_edges([0, 1, 2], [1, 2, 0], edge_attrs={key: np.array(column) for key, column in attrs.items()})
    round_trip(graph, tmp_path / "graph.csv")


def test_npz_holds_nearly_everything(tmp_path):
    nodes = [("a", (1, 2.5)), None, True, "a", 3, -2.5, 2**80]
    attrs = {"2-D": np.arange(21.0).reshape(7, 3), "when": np.arange(7).astype("M8[s]"), "c": np.arange(7) * 1j}
    graph = se.from_edges([0, 6], [6, 0], [1, 2], (7, 7))
    graph = se.Graph(graph.connectivity, graph.weight, nodes, attrs, {"bytes": np.array([b"a", b"\xff"])})
    round_trip(graph, tmp_path / "graph.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_to_the_bit(tmp_path, suffix, dtype, x64):
    bits = np.random.default_rng(0).normal(size=300) * 10.0 ** np.random.default_rng(1).integers(-4, 4, 300)
    graph = se.from_edges(np.arange(300), np.arange(300)[::-1], bits, dtype=dtype)
    round_trip(graph, tmp_path / f"graph{suffix}")


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=4) | st.sampled_from(ODD)


@settings(max_examples=20)
@given(st.data(), st.sampled_from(SUFFIXES[:5]))
def test_round_trips(tmp_path_factory, data, suffix):
    labels = data.draw(st.lists(texts, unique=True, max_size=5) | st.lists(st.integers(), unique=True, max_size=5))
    size, weights = len(labels), st.floats(allow_nan=False, allow_infinity=False, width=32)
    ends = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1), weights)
    edges = data.draw(st.lists(ends, max_size=6)) if size else []
    pre, post, weight = zip(*edges) if edges else ([], [], [])
    graph = se.from_edges(pre, post, weight, (size, size))
    graph = se.Graph(graph.connectivity, graph.weight, labels)
    try:
        round_trip(graph, tmp_path_factory.mktemp("graphs") / f"graph{suffix}")
    except ValueError as error:
        assert "XML cannot hold" in str(error)


@pytest.mark.parametrize(
    "graph", [se.from_edges([0, 1, 2], [1, 1, 0], [0.1, 2, -3]), se.from_edges([1], [2], shape=(2, 3))]
)
@pytest.mark.parametrize("names", [None, "vwxyz"])
def test_adjacency(tmp_path, graph, names):
    if names:
        graph = se.Graph(graph.connectivity, graph.weight, list(names[: len(graph.nodes)]))
    path = tmp_path / "graph.csv"
    se.write_graph(path, graph, format="adjacency")
    same(graph, se.read_graph(path, format="adjacency"))
    same(graph, se.read_graph(path))
    frame = pd.read_csv(path, index_col=0)
    np.testing.assert_array_equal(frame.to_numpy(np.float32), graph.to_dense())


# ---------------------------------------------------------------------------------------------------- other libraries


def test_others_read_what_is_written(tmp_path):
    graph = se.from_edges(["b", "a", "b"], ["a", "c", "a"], [0.1, 2, 3], labels=["b", "a", "c"])
    for name in ("graph.graphml", "graph.parquet", "graph.csv"):
        se.write_graph(tmp_path / name, graph)
    found = nx.read_graphml(tmp_path / "graph.graphml", force_multigraph=True)
    assert sorted(found.edges(data="weight")) == [("a", "c", 2.0), ("b", "a", float(np.float32(0.1))), ("b", "a", 3.0)]
    expected = [("b", "a", np.float32(0.1)), ("b", "a", 3), ("a", "c", 2)]
    for frame in (pd.read_parquet(tmp_path / "graph.parquet"), pd.read_csv(tmp_path / "graph.csv", comment="#")):
        assert [tuple(row) for row in frame.astype({"weight": "float32"}).to_numpy()] == expected
    plain = se.from_edges([0, 0], [1, 2], [0.5, 0])
    se.write_graph(tmp_path / "graph.mtx", plain)
    np.testing.assert_array_equal(scipy.io.mmread(tmp_path / "graph.mtx", spmatrix=False).toarray(), plain.to_dense())


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("directed", [False, True])
def test_graphml_of_networkx(tmp_path, multi, directed):
    kind = {(0, 0): nx.Graph, (0, 1): nx.DiGraph, (1, 0): nx.MultiGraph, (1, 1): nx.MultiDiGraph}[multi, directed]
    G = kind([("a", "b"), ("b", "c"), ("c", "c")])
    nx.set_edge_attributes(G, {edge: 0.5 + k for k, edge in enumerate(G.edges)}, "weight")
    nx.set_node_attributes(G, {"a": 1, "b": 2, "c": 3}, "size")
    nx.write_graphml(G, tmp_path / "graph.graphml")
    same(se.from_networkx(G), se.read_graph(tmp_path / "graph.graphml"))


def test_graphml_of_networkx_with_booleans_and_numbers_of_two_types(tmp_path):
    G = nx.DiGraph()
    G.add_edge("a", "b", weight=1.5, on=True, n=1)
    G.add_edge("b", "c", weight=2, on=False, n=2)
    G.add_edge("c", "a", weight=0.5, on=True, n=3)
    nx.write_graphml(G, tmp_path / "graph.graphml")
    text = (tmp_path / "graph.graphml").read_text()
    assert ">True<" in text and text.count('attr.name="weight"') == 2
    graph, expected = se.read_graph(tmp_path / "graph.graphml"), se.from_networkx(G)
    assert graph.nodes == expected.nodes and graph.weight.tolist() == expected.weight.tolist() == [0.5, 1.5, 2]
    assert graph.edge_attrs["on"].dtype == bool and graph.edge_attrs["on"].tolist() == [True, True, False]
    assert graph.edge_attrs["n"].tolist() == [3, 1, 2]


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
def test_npz_of_scipy(tmp_path, form):
    A = sp.random_array((4, 6), density=0.4, rng=np.random.default_rng(0)).asformat(form)
    sp.save_npz(tmp_path / "matrix.npz", A)
    same(se.from_scipy(A), se.read_graph(tmp_path / "matrix.npz"))


@pytest.mark.parametrize("symmetry", ["general", "symmetric", "skew-symmetric"])
@pytest.mark.parametrize("field", ["real", "integer", "pattern", "array"])
def test_matrix_market(tmp_path, symmetry, field):
    if (field, symmetry) == ("pattern", "skew-symmetric"):
        return
    body = {"general": [(2, 1, 3), (3, 3, 4), (1, 2, 0)], "symmetric": [(2, 1, 3), (3, 3, 4), (3, 1, -1)]}
    body["skew-symmetric"] = [(2, 1, 3), (3, 1, -1)]
    entries = body[symmetry]
    if field == "array":
        inside = {"general": lambda i, j: True, "symmetric": lambda i, j: i >= j, "skew-symmetric": lambda i, j: i > j}
        values = {(i, j): w for i, j, w in entries}
        places = [(i, j) for j in (1, 2, 3) for i in (1, 2, 3) if inside[symmetry](i, j)]
        lines = ["3 3", *(str(values.get(place, 0)) for place in places)]
        entries = [entry for entry in entries if entry[2]]
    else:
        lines = [f"3 3 {len(entries)}", *(f"{i} {j}" + f" {w}" * (field != "pattern") for i, j, w in entries)]
    layout = "array real" if field == "array" else f"coordinate {field}"
    path = tmp_path / "matrix.mtx"
    path.write_text("\n".join([f"%%MatrixMarket matrix {layout} {symmetry}", "% comment", "", *lines]))
    sign = {"general": 0, "symmetric": 1, "skew-symmetric": -1}[symmetry]
    expected = entries + [(j, i, sign * w) for i, j, w in entries if sign and i != j]
    pre, post, weight = zip(*((i - 1, j - 1, 1 if field == "pattern" else w) for i, j, w in expected))
    same(se.from_edges(pre, post, weight, (3, 3)), se.read_graph(path))


def test_policies_and_weights_are_checked(tmp_path):
    path = tmp_path / "graph.csv"
    path.write_text("pre,post,weight\n0,1,0.5\n0,1,1\n1,1,2\n")
    graph = se.read_graph(path, duplicates="sum", self_loops="drop")
    assert graph.weight.tolist() == [1.5] and graph.weight.dtype == jnp.float32
    with pytest.raises(
        ValueError, match="duplicates: expected 'keep' or 'sum' where.*, got 'error', and synapse 0 -> 1 twice."
    ):
        se.read_graph(path, duplicates="error")
    with pytest.raises(ValueError, match="duplicates: expected 'keep', 'sum' or 'error', got 'all'."):
        se.read_graph(path, duplicates="all")
    with pytest.raises(ValueError, match="dtype: expected 32 bits at most without 64-bit JAX, got float64"):
        se.read_graph(path, dtype="float64")
    path.write_text("pre,post,weight\n0,1,nan\n")
    with pytest.raises(ValueError, match=r"graph.csv: weight: expected .*, got nan for synapse 0 -> 1 \(entry 0\)"):
        se.read_graph(path)


# ---------------------------------------------------------------------------------------------------- tables


def table(tmp_path, text, name="edges.csv", **options):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return se.read_graph(path, **options)


@pytest.mark.parametrize("separator", [",", "\t", ";", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators(tmp_path, separator, end):
    rows = [["pre", "post", "weight"], ["a", "b c" if separator != " " else "b", "0.5"], ["b", "a", "1e-3"]]
    text = end.join(["% comment", "# more", *(separator.join(row) for row in rows), ""])
    for said in (None, separator):
        graph = table(tmp_path, "\ufeff" + text, separator=said)
        assert graph.connectivity.shape == ((3, 3) if separator != " " else (2, 2))
        assert sorted(graph.weight.tolist()) == [np.float32(1e-3), 0.5]


ROWS = 200


@pytest.mark.parametrize(
    "tail, said",
    [
        ("# note\n7,8,9\n", [(7, 8, 9)]),
        ('"7",8,9\n', [(7, 8, 9)]),
        (" 7, 8 ,9\n", [(7, 8, 9)]),
        ("\n\r\n7,8,9", [(7, 8, 9)]),
        ("7,8,+9\n", [(7, 8, 9)]),
        ("07,8,9\n", [("07", "8", 9)]),
        ("0x7,8,9\n", [("0x7", "8", 9)]),
        ("-0,8,9\n", "expected ids that are integers or names, got '-0' among numbers"),
        ('"a,\n#b",8,9\n', [("a,\n#b", "8", 9)]),
        ("18446744073709551615,8,9\n", [(2**64 - 1, 8, 9)]),
        ("9007199254740993,9007199254740992,9\n", [(2**53 + 1, 2**53, 9)]),
        ("7,8\n", "expected commas between the cells, got rows .*Row #202: Expected 3 columns, got 2: 7,8"),
        ("7,8,9,1\n", "Row #202: Expected 3 columns, got 4"),
        ("7,8,x\n", "expected a number as weight, got 'x' in data row 201"),
        ("7,,9\n", "expected an id in each row, got none in data row 201"),
        ("7,8\xff,9\n", "expected text in UTF-8, got other bytes"),
        ("7,8\0,9\n", "expected text, got a NUL at byte 2419"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.filterwarnings("ignore:read_graph")
def test_what_comes_late_in_a_long_table(tmp_path, monkeypatch, tail, said, suffix):
    """Far after the first piece that is looked at; over several of the blocks that pyarrow splits."""
    monkeypatch.setattr(text, "HEAD", 100)
    monkeypatch.setattr(text, "BLOCK", 500)
    path = tmp_path / f"edges{suffix}"
    data = b"pre,post,weight\n" + b"12345,1,100\n" * ROWS + tail.encode("latin-1")
    path.write_bytes(gzip.compress(data, 1) if suffix.endswith("gz") else data)
    if isinstance(said, str):
        with pytest.raises(ValueError, match=said):
            se.read_graph(path)
        return
    graph = se.read_graph(path)
    pre, post = graph.connectivity.pre, graph.connectivity.post
    ends = [(graph.nodes[i], graph.nodes[j], w) for i, j, w in zip(pre.tolist(), post.tolist(), graph.weight.tolist())]
    kind = type(said[0][0])
    assert Counter(ends) == Counter({(kind(12345), kind(1), 100.0): ROWS, said[0]: 1})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_plain_table_that_is_split_in_pieces(tmp_path, monkeypatch, end):
    for name, size in (("HEAD", 64), ("PIECE", 16), ("BLOCK", 64), ("_table", None)):
        monkeypatch.setattr(text, name, size)
    odd = {7: ["1", "0", "07"], 40: ["2", "-0", "x"], 61: ["3", "1.5", ""]}
    rows = [["pre", "b", "c"], *(odd.get(k, [str(2**60 + k), str(k), "-3"]) for k in range(99))]
    (tmp_path / "graph.csv").write_text(end.join(map(",".join, rows)), newline="")
    found = text.read_table(Source.of(tmp_path / "graph.csv", None), None, lambda names: None)
    assert [found.first, *zip(*map(cells_of_text.words, found.below), strict=True)] == [rows[0], *map(tuple, rows[1:])]
    assert list(zip(*map(cells_of_text.words, found.columns), strict=True)) == list(map(tuple, rows))
    assert [str(column.type) for column in found.below] == ["int64", "string", "string"]
    assert {str(column.type) for column in found.columns} == {"string"}


@pytest.mark.parametrize("first", ['"pre","post","weight"', '\ufeffpre,"post","weight"'])
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_quotes_around_plain_names_cost_nothing(tmp_path, monkeypatch, first, end):
    """As pyarrow and R write them: the rows below are plain."""
    monkeypatch.setattr(text, "_table", None)
    graph = table(tmp_path, f"{first}{end}7,8,9{end}")
    assert graph.nodes == (7, 8) and graph.weight.tolist() == [9]


@pytest.mark.parametrize("before", ["\t\t\n", "\t\n", "# said\n\n", '# sparse_etrace {"shape": [9, 9]}\n'])
def test_what_is_no_row_before_the_first_one(tmp_path, monkeypatch, before):
    monkeypatch.setattr(text, "_table", None)
    graph = table(tmp_path, f"{before}pre\tpost\tweight\n7\t8\t9\n")
    assert graph.weight.tolist() == [9] and graph.connectivity.num_pre == (9 if "shape" in before else 2)


@pytest.mark.parametrize("name", ["p\nre", 'p"re', "p re", "p,re", "#pre"])
def test_quotes_that_matter(tmp_path, name):
    first = '"' + name.replace('"', '""') + '"'
    graph = table(tmp_path, f'{first},"post"\n7,8\n"7","9"\n', pre=name, post="post", weight=None)
    assert graph.nodes == (7, 8, 9) and graph.connectivity.post.tolist() == [1, 2]


CELLS = ["0", "-0", "1", "01", "-1", "+1", "00", "1.5", "01.5", ".5", "1.", "1e5", "1e999", "nan", "-inf", "True"]
CELLS += ["False", "", "x", "0x1", "1_0", "9223372036854775807", "9223372036854775808", "-9223372036854775808"]
CELLS += ["18446744073709551615", "18446744073709551616", "-9223372036854775809", "infinity", "e5", "-", "\u0661"]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(CELLS), min_size=1, max_size=3))
@example(["0", "1"])
def test_types_of_columns(cells):
    """By a rule written anew in plain Python."""
    found, expected = cells_of_text.typed(cells_of_text.column_of(cells)).tolist(), fuzz_files.typed(cells)
    assert list(map(repr, found)) == list(map(repr, expected))


ID = st.integers(0, 3) | st.integers(2**53, 2**53 + 3) | st.integers(2**63 - 2, 2**63 + 1) | st.integers(-2, -1)


@settings(max_examples=50)
@given(st.lists(st.tuples(ID, ID), max_size=6), st.sampled_from([pa.int64(), pa.uint64(), pa.string()]), st.booleans())
def test_positions_of_ids(pairs, kind, chunks):
    convert = str if kind == pa.string() else int
    columns = [[convert(x) for x in side] for side in zip(*pairs)] or [[], []]
    try:
        arrays = [pa.array(side, kind) for side in columns]
    except OverflowError:
        return
    parts = [[array[:2], array[2:]] if chunks else [array] for array in arrays]
    pre, post, labels = in_sorted_ids(*(pa.chunked_array(part, kind) for part in parts), [])
    assert list(labels) == sorted({*columns[0], *columns[1]})
    assert [[labels[k] for k in side.tolist()] for side in (pre, post)] == columns


def test_guesses_are_said(tmp_path):
    with pytest.warns(
        UserWarning, match="'source' for pre and 'target' for post .to say so: pre=.*; took 'syn_count' for the weight"
    ):
        graph = table(tmp_path, "source,target,syn_count,kind\n5,7,2,a\n7,5,3,b\n")
    assert graph.nodes == (5, 7) and graph.edge_attrs["kind"].tolist() == ["b", "a"]
    assert table(tmp_path, "0 1 0.5\n1 2 2\n2 3 1\n3 0 5\n", pre=0, post=1, weight=2).weight.tolist() == [5, 0.5, 2, 1]
    assert table(tmp_path, "a,b\nb,c\nc,a\na,c\n", pre=0, post=1).connectivity.num_synapses == 4
    with pytest.warns(UserWarning, match="took 2 lines after the first row for comments.*in quotes"):
        assert table(tmp_path, "# note\npre,post\na,b\n#1,b\n%b,a\nb,a\n").connectivity.num_synapses == 2
    assert table(tmp_path, '# note\npre,post\n"#1",b\n').nodes == ("#1", "b")
    said = table(tmp_path, "up,down,size\na,b,2\nb,a,3\n", pre="up", post="down", weight="size")
    assert said.weight.tolist() == [3, 2]
    assert table(tmp_path, "2,a,b\n3,b,a\n", pre=1, post=2, weight=0).weight.tolist() == [3, 2]


@pytest.mark.parametrize("name", ["weights", "W", "wt", "strength", "syn_weight", "n_synapses", "Count"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_usual_names_of_the_weight(tmp_path, name, suffix):
    frame = pd.DataFrame({"pre": [0, 1], "post": [1, 0], name: [2.5, 3.5]})
    path = tmp_path / f"edges{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    with pytest.warns(UserWarning, match=f"took '{name}' for the weight .to say so: weight='{name}'"):
        assert se.read_graph(path).weight.tolist() == [3.5, 2.5]
    frame.rename(columns={name: "size"}).assign(kind="x").to_csv(tmp_path / "edges.csv", index=False)
    frame.rename(columns={name: "size"}).assign(kind="x").to_parquet(tmp_path / "edges.parquet")
    with pytest.warns(
        UserWarning, match=r"all weights are 1 .if one of \['size'\] is the weight, pass weight=; if none"
    ):
        assert se.read_graph(path).weight.tolist() == [1, 1]
    assert se.read_graph(path, weight="size").weight.tolist() == [3.5, 2.5]


def test_all_weights_are_1_by_position(tmp_path):
    with pytest.warns(UserWarning, match=r"all weights are 1 .if one of \['column 2'\] is the weight"):
        table(tmp_path, "a,b,2\nb,a,3\n", pre=0, post=1)


def test_spaces_around_cells(tmp_path):
    text = 'pre , post, weight ,kind\n a ,b, 0.5 , x y \n"b ", "a , ""\n c " ,1 ,"u "\nb,a,2,v '
    graph = table(tmp_path, text)
    assert graph.nodes == ("a", 'a , "\n c ', "b", "b ") and graph.weight.tolist() == [2, 1, 0.5]
    assert graph.edge_attrs["kind"].tolist() == ["v", "u ", "x y"]


NO_ENDS = "expected usual names of the ends of a synapse in row 1, got .* Pass pre=, post= .* format='adjacency'"
AMBIGUOUS = [
    ("0 1 0.5\n1 2 2\n2 3 1\n3 0 5\n", {}, NO_ENDS),
    ("a,b\nb,c\nc,a\na,c\n", {}, NO_ENDS),
    ("0,1,0.5,2\n1,2,.3,1\n2,3,.1,1\n3,0,.2,5\n", {}, NO_ENDS),
    ("neuron_a,neuron_b,w,delay\n" + "0,1,2,3\n" * 4, {}, NO_ENDS),
    ("A,1,0.5,2\nB,2,.3,1\nC,0,.1,1\n", {}, NO_ENDS),
    ("0,0,0,0,0,0,0,0,0\n" * 9, {}, NO_ENDS),
    ("x,a,b\na,0,1\nb,1,0\n", {}, NO_ENDS),
    ("x,y\na,b\nb,c\n", {}, NO_ENDS),
    ("x,y,z\n1,2,3\n2,1,4\n", {}, NO_ENDS),
    ("x,y,z\n1,2,3\n2,1,4\n", {"pre": 0, "post": 1}, "expected rows without a header, got .'x', 'y', 'z'."),
    (",neuron_a,neuron_b,w\n0,1,2,.5\n1,2,1,.3\n", {}, "numbered rows under the header"),
    (
        "Source,Target,Type\na,b,Undirected\n",
        {},
        "expected directed edges, each row one synapse, got undirected ones in column 'Type'.*as two rows.*networkx",
    ),
    ("pre,post,source,target\na,b,c,d\n", {"pre": "pre"}, "pre and post: expected both or none, got 'pre' and None"),
    (
        "from,to,source,target\na,b,c,d\n",
        {},
        "expected one pair of columns that may be.*, got ..'source', 'target'., .'from', 'to'..",
    ),
    ("pre,post,count,n_syn\na,b,1,2\n", {}, "weight: expected one column that may be it, got .'count', 'n_syn'."),
    ("pre,post,x,x\na,b,1,2\n", {}, "expected columns of different names, got .'pre', 'post', 'x', 'x'."),
    (
        "pre,post\na,b\n",
        {"pre": "post", "post": "post"},
        "pre, post, weight: expected different columns, got .'post', 'post', 'guess'.",
    ),
    ("pre,post\na,b\n", {"pre": "sender", "post": "post"}, "expected a single column 'sender', got .'pre', 'post'."),
    (
        "pre,post\na,b\n",
        {"pre": 0, "post": 1},
        "expected names of columns, as row 1 is a header, .'pre', 'post'., got positions",
    ),
    ("1,2\n2,1\n3,1\n", {"pre": 0, "post": 2}, "expected positions of columns from 0 to 1, got 2"),
    ("1,2\n2,1\n3,1\n", {"pre": 0, "post": 0}, "pre, post, weight: expected different positions, got .0, 0."),
    ("a;b,c\nd;e,f\n", {}, "commas as well as at semicolons"),
    ("a\nb\n", {}, "one column, or no separator"),
    ("", {}, "expected rows, got none"),
    ("pre,post\na,b\nc\n", {}, "expected commas between the cells, .*Row #3: Expected 2 columns, got 1: c"),
    ('pre,post\n"a,b\n', {"separator": ","}, "expected commas between the cells, got rows that do not split"),
    ("pre,post,weight\na,b,x\n", {}, "expected a number as weight, got 'x' in data row 1"),
    ("pre,post\n1.5,2.0\n", {}, "expected ids that are integers or names, got '1.5' among numbers"),
    ("pre,post\na,\n", {}, "expected an id in each row, got none in data row 1"),
    (
        '# sparse_etrace {"shape":[2,2]}\npre,post\na,b\n',
        {},
        "expected the number of a node as pre, got 'a' in data row 1",
    ),
    (
        '# sparse_etrace {"shape":[2,2],"labels":["a"]}\npre,post\na,a\n',
        {},
        "expected labels for a graph of shape .2, 2., one a node, got 1",
    ),
    (
        '# sparse_etrace {"shape":[1,1],"labels":["a"]}\npre,post\na,b\n',
        {},
        "post: expected one of the 1 nodes of the file, got 'b' in row 1",
    ),
    (
        '# sparse_etrace {"shape":2}\npre,post\na,b\n',
        {},
        "expected a description of the form that `write_graph` gives it, got another",
    ),
    ("# sparse_etrace {\npre,post\na,b\n", {}, "expected a description in JSON, got one that does not read"),
    (
        '# sparse_etrace {"shape":[2,2]}\n0,1\n',
        {"format": "adjacency"},
        "expected a matrix, got an edge list, by a comment of `write_graph`",
    ),
    ("0,1\n1,0\n", {"format": "adjacency", "pre": 0}, "a matrix has no columns of ends"),
    (
        ",a,b\nb,0,1\na,1,0\n",
        {},
        "expected the same labels for rows and columns of a square matrix, got different ones",
    ),
    (",a,b\na,0,1\nb,,0\n", {}, "expected a number in row 3, column 2 of a matrix, got ''"),
    (",a,b\na,0,1\nb,,0\n", {"format": "adjacency"}, "expected a number in row 3, column 2 of a matrix, got ''"),
    (
        "a,b,c,d\n0,1,1,0\n0,1,1,1\n",
        {"format": "adjacency"},
        "expected labels on both sides or on none, got those of one side for 2 x 4",
    ),
    (",a,b\n", {"format": "adjacency"}, "expected rows of weights, got none under the labels .'', 'a', 'b'."),
    (
        "a,0,1\n1,1,0\n2,0,0\n",
        {"format": "adjacency"},
        "expected numbers, or labels, throughout row 1, got 'a' before numbers",
    ),
    ("pre,post\na\0,b\n", {}, "expected text, got a NUL at byte .*"),
    ("pre,post\na,b\n", {"separator": "|"}, "separator: got '|'"),
]


@pytest.mark.parametrize("text, options, said", AMBIGUOUS)
def test_tables_that_are_refused(tmp_path, text, options, said):
    with pytest.raises(ValueError, match=said.replace("|a", "[|]a") if said.startswith("separator") else said):
        table(tmp_path, text, **options)
    with pytest.raises(ValueError, match="expected text in UTF-8, got other bytes"):
        (tmp_path / "bad.csv").write_bytes(b"\xff\xfe")
        se.read_graph(tmp_path / "bad.csv")


def test_matrices(tmp_path):
    square = "0 1 0 2\n0 0 3 0\n0 0 0 1\n4 0 0 0\n"
    said = {"format": "adjacency"}
    assert table(tmp_path, square, **said).weight.tolist() == [4, 1, 3, 2, 1]
    head = table(tmp_path, "a,b,c,d\n" + square.replace(" ", ","), **said)
    assert head.nodes == tuple("abcd")
    rows = square.replace(" ", ",").split()
    side = table(tmp_path, "".join(f"{x},{row}\n" for x, row in zip("abcd", rows)), **said)
    assert side.nodes == tuple("abcd")
    for corner, options in (("", {}), ("x", said)):
        text = f"{corner},a,b,c,d\n" + "".join(f"{x},{row}\n" for x, row in zip("abcd", rows))
        same(side, table(tmp_path, text, **options))


# ---------------------------------------------------------------------------------------------------- refused to write


def parallel():
    return se.from_edges([0, 0], [1, 1])


UNWRITABLE = [
    (".mtx", lambda: se.datasets.worm(), "graph: expected no attributes that Matrix Market loses, got 'role'"),
    (
        ".csv",
        lambda: se.datasets.worm(),
        "graph: expected no attributes that an edge list, which has no rows for.*, got 'role'",
    ),
    (".csv", lambda: se.from_edges([0], [1], edge_attrs={"n": ["01"]}), None),
    (
        ".csv",
        lambda: se.from_edges([0], [1], edge_attrs={"n": ["1"]}),
        "graph: expected edge attribute 'n' that a text table gives back, got text that reads as numbers, '1'",
    ),
    (
        ".csv",
        lambda: se.from_edges([0], [1], edge_attrs={"n": [[1, 2]]}),
        "graph: expected edge attribute 'n' of a type that a text.*, got int64 of shape .1, 2.",
    ),
    (".csv", lambda: se.from_edges([0], [1], edge_attrs={"type": ["undirected"]}), "reads as undirected edges"),
    (
        ".csv",
        lambda: se.from_edges([0], [1], edge_attrs={"Weight": [1]}),
        "graph: expected an edge attribute with another name than a column of an.*, got 'Weight'",
    ),
    (
        ".csv",
        lambda: se.from_edges(["a"], ["a"], labels=["a", 1]),
        "graph: expected labels that are all integers or all strings in an edge list, got 1",
    ),
    (".csv", lambda: se.from_edges([""], [""], labels=[""]), "graph: expected labels that an edge list holds, got ''"),
    (
        ".csv",
        lambda: se.from_edges(["\0"], ["\0"], labels=["\0"]),
        "graph: expected characters that a text table holds, got '.x00'",
    ),
    (
        ".csv",
        lambda: se.from_edges(["a" * 140_000], ["a" * 140_000], labels=["a" * 140_000]),
        "graph: expected strings of at most 131072 characters in a text table, got 140000",
    ),
    (
        ".graphml",
        lambda: se.from_edges(["\x01"], ["\x01"], labels=["\x01"]),
        "graph: expected characters that XML can hold, got '.x01'",
    ),
    (
        ".graphml",
        lambda: se.from_edges([0], [0], edge_attrs={"n": [1j]}),
        "graph: expected edge attribute 'n' of a type of GraphML, got complex128, .1,.",
    ),
    (
        ".graphml",
        lambda: se.from_edges([0], [0], edge_attrs={"n": [2**64 - 1]}),
        "graph: expected edge attribute 'n' of a type of GraphML, got uint64, .1,.",
    ),
    (
        ".graphml",
        lambda: se.from_edges([0], [0], edge_attrs={"weight": [1]}),
        "graph: expected no edge attribute of the weight's name in GraphML, got 'weight'",
    ),
    (
        ".parquet",
        lambda: se.from_edges([0], [0], edge_attrs={"n": [[1]]}),
        "graph: expected edge attributes of a type.*, got 'n' of type int64 and shape .1, 1.",
    ),
    (
        ".parquet",
        lambda: se.from_edges([0], [0], edge_attrs={"n": ["\ud800"]}),
        "graph: expected characters that Parquet holds, got others in edge attribute 'n'",
    ),
    (
        ".parquet",
        lambda: se.from_edges([0], [0], edge_attrs={"pre": [1]}),
        "graph: expected edge attributes with other names than the columns of Parquet, got 'pre'",
    ),
    (
        ".npz",
        lambda: se.from_edges([0], [0], edge_attrs={"n": np.array([{}])}),
        "graph: expected numbers, strings or arrays of.*, got edge attribute 'n' of type object",
    ),
    (
        ".npz",
        lambda: se.from_edges([b"a"], [b"a"], labels=[b"a"]),
        "graph: expected labels that are strings, numbers or tuples of these, got b'a', a bytes",
    ),
    (".feather", parallel, "path: expected a format that is written, got Feather, which is only read"),
    (".xls", parallel, "path: expected a name that ends in one of .npz, .mtx, .graphml,.*, got 'graph.xls'"),
    (".npz.gz", parallel, "which is packed already"),
    (".npz", lambda: "graph", "graph: expected a Graph, got str"),
]


@pytest.mark.parametrize("suffix, make, said", UNWRITABLE)
def test_what_cannot_be_held_is_refused(tmp_path, suffix, make, said):
    path = tmp_path / f"graph{suffix}"
    path.write_text("before")
    if said is None:
        round_trip(make(), path)
        return
    with pytest.raises((ValueError, TypeError), match=said):
        se.write_graph(path, make())
    assert path.read_text() == "before" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    "graph, said",
    [
        (parallel(), "graph: expected no parallel synapses, which a matrix loses, got some"),
        (se.from_edges([0], [1], [0]), "graph: expected no weights of 0, which are no synapses in a matrix, got one"),
        (se.from_edges([], [], shape=(0, 2)), "graph: expected units on both sides of a matrix, got shape .0, 2."),
        (
            se.from_edges(["1"], ["1"], labels=["1"]),
            "graph: expected labels that stay text in a matrix, got '1', which reads as a number",
        ),
        (se.from_edges([0], [1], edge_attrs={"n": [1]}), "graph: expected no attributes that a matrix loses, got 'n'"),
    ],
)
def test_what_a_matrix_cannot_hold(tmp_path, graph, said):
    with pytest.raises(ValueError, match=said):
        se.write_graph(tmp_path / "graph.csv", graph, format="adjacency")


def test_names_of_attributes():
    with pytest.raises(ValueError, match="graph: expected attributes with strings as names in Parquet, got 3"):
        only_strings("Parquet", {3: [1]})


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "graph.npz"
    se.write_graph(path, parallel())
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        se.write_graph(path, se.from_edges([0], [1]))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["graph.npz"]


# ---------------------------------------------------------------------------------------------------- hostile files


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def archive(name, data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, data)
    return buffer.getvalue()


def header(shape, descr="'<f8'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


MARK = {"sparse_etrace": 1, "attributes": np.frombuffer(b'{"node":[],"edge":[]}', np.uint8)}
BOMB = '<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><graphml>&b;</graphml>'
HOSTILE = [
    (".npz", lambda: npz(a=np.array([{}], object)), "expected numbers or text as member 'a.npy', got object"),
    (
        ".npz",
        lambda: archive("../a.npy", b""),
        "expected plain names in the archive, got '../a.npy', a path that leaves it",
    ),
    (
        ".npz",
        lambda: archive("a.npy", header((10**12,))),
        "expected float64 of shape .1000000000000,. as member 'a.npy', as its.*, got 0 bytes",
    ),
    (".npz", lambda: archive("a.npy", bytes(2**27)), "expected at most 67108864 bytes when unpacked, got more"),
    (
        ".npz",
        lambda: archive("a.npy", b"\x93NUMPY\x07\x00"),
        "member 'a.npy', got one that does not read .expected version .1, 0. or .2, 0. of .npy, got .7, 0.",
    ),
    (".npz", lambda: archive("a.npy", b"junk"), "expected a sound array as member 'a.npy', got one that does not read"),
    (".npz", lambda: archive("a.txt", b""), "which is no array"),
    (
        ".npz",
        lambda: npz(a=np.array([2**31], np.uint32).view("<U1")),
        "expected characters that exist in member 'a.npy', got others",
    ),
    (".npz", lambda: b"PK junk", "expected a sound .npz file, got one that does not read"),
    (".npz", lambda: b"junk", "expected an .npz file, got one that begins otherwise"),
    (
        ".npz",
        lambda: npz(src=[0], dst=[1]),
        "expected what `write_graph` or scipy.sparse.save_npz wrote, got the arrays dst, src",
    ),
    (".npz", lambda: npz(sparse_etrace=2), "expected version 1 of this format, got array.2."),
    (".npz", lambda: npz(**MARK), "expected an array 'shape', got attributes, sparse_etrace"),
    (".npz", lambda: npz(**MARK, shape=[1.5]), "expected two integers as the shape, got .1.5."),
    (
        ".npz",
        lambda: npz(**MARK, shape=[10**9, 10**9]),
        "expected units that `max_bytes` = 67108864 bytes can index, got 1000000000 x 1000000000",
    ),
    (
        ".npz",
        lambda: npz(**MARK, shape=[1, 1], labels=[1.5]),
        "expected one integer a node as labels, got float64 of shape .1,.",
    ),
    (
        ".npz",
        lambda: npz(**MARK, shape=[1, 1], labels=np.frombuffer(b"[{}]", np.uint8)),
        "expected labels that are strings, numbers or tuples of these, got ..",
    ),
    (
        ".npz",
        lambda: npz(format="xyz", shape=[1, 1], data=[1]),
        "expected a scipy matrix of a format among bsr, csc, csr, coo, dia, got 'xyz'",
    ),
    (".npz", lambda: npz(format="csr", shape=[1], data=[1]), "expected two sizes as the shape of a graph, got .1."),
    (
        ".npz",
        lambda: npz(format="csr", shape=[1, 1], data=[[1]]),
        "expected the data of a csr matrix, got shape .1, 1.",
    ),
    (".npz", lambda: npz(format="coo", shape=[1, 1], data=[1j]), "expected real numbers as weights, got complex128"),
    (
        ".npz",
        lambda: npz(format="coo", shape=[1, 1], data=[1], row=[0.5], col=[0]),
        "expected a list of integers as row, got float64 of shape .1,.",
    ),
    (
        ".graphml",
        lambda: BOMB.encode(),
        "expected no document type and no entities, got one",
    ),
    (
        ".graphml",
        lambda: b'<!DOCTYPE graphml SYSTEM "file:///etc/passwd"><graphml/>',
        "expected no document type and no entities, got one",
    ),
    (".graphml", lambda: b"<graphml>", "expected sound XML, got one that does not read"),
    (".graphml", lambda: b"<graphml/>", "expected a <graph>, got none"),
    (".csv.gz", lambda: gzip.compress(bytes(2**27)), "expected at most 67108864 bytes when unpacked, got more"),
    (
        ".csv.gz",
        lambda: gzip.compress(b"pre,post\n0,1\n")[:-6],
        "expected a sound gzip file, got one that does not read",
    ),
    (
        ".mtx",
        lambda: b"%%MatrixMarket matrix coordinate real general\n9000000000 9 1\n1 1 1\n",
        "expected units that `max_bytes` = 67108864 bytes can index, got 9000000000 x 9",
    ),
    (
        ".mtx",
        lambda: b"%%MatrixMarket matrix coordinate real general\n9 9 99999999999\n1 1 1\n",
        "expected 99999999999 entries, as its head claims, got 6 bytes of them",
    ),
    (".parquet", lambda: b"PAR1 junk PAR1", "expected a sound Parquet file, got one that does not read"),
    (".feather", lambda: feather()[:-1], "expected a whole Feather file, got one that ends otherwise"),
    (
        ".feather",
        lambda: feather().replace(b"ARROW1", b"ARROW2"),
        "expected a Feather file of version 2, got one that begins otherwise",
    ),
    (".arrow", lambda: feather()[:100] + b"ARROW1", "expected a sound Feather file, got one that does not read"),
    (
        ".feather",
        lambda: feather("zstd", np.zeros(9_000_000)),
        "expected at most 67108864 bytes when unpacked, got more",
    ),
    (
        ".feather",
        lambda: feather("lz4", np.zeros(9_000_000)),
        "expected at most 67108864 bytes when unpacked, got more",
    ),
    (
        ".csv",
        lambda: b"pre,post," + b",".join(b"%d" % k for k in range(10_000)) + b"\n0,",
        "expected at most 67108864 bytes when unpacked, got more",
    ),
]


def feather(compression="uncompressed", ids=(1, 2)):
    buffer = io.BytesIO()
    pf.write_feather(pa.table({"pre": pa.array(ids), "post": pa.array(ids)}), buffer, compression=compression)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix, make, said", HOSTILE)
def test_hostile_files(tmp_path, suffix, make, said):
    path = tmp_path / f"graph{suffix}"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=said) as caught:
        se.read_graph(path)
    assert str(caught.value).startswith(f"{path}: ")


BANNER = "%%MatrixMarket matrix coordinate real general\n"
MATRIX_MARKET = [
    ("junk", "expected a first line like '%%MatrixMarket matrix coordinate real general', got another"),
    (BANNER.replace("coordinate", "dense"), "expected the layout 'coordinate' or 'array', got 'dense'."),
    (BANNER.replace("real", "complex"), "expected real numbers as weights, got complex general ones"),
    (
        BANNER.replace("real general", "complex hermitian"),
        "expected real numbers as weights, got complex hermitian ones",
    ),
    (
        BANNER.replace("real", "quaternion"),
        "expected coordinate entries of a kind among real, integer,.*, got 'quaternion'.",
    ),
    (
        BANNER.replace("general", "round"),
        "expected a symmetry of real matrices among general, symmetric,.*, got 'round'.",
    ),
    (BANNER.replace("general", "symmetric") + "2 3 0\n", "expected a square matrix, as it is symmetric, got 2 x 3"),
    (
        BANNER.replace("general", "symmetric") + "2 2 2\n1 2 1\n2 1 1\n",
        "expected entries on one side of the diagonal, as it is symmetric, got both sides",
    ),
    (
        BANNER.replace("general", "skew-symmetric") + "2 2 1\n1 1 1\n",
        "expected zeros on the diagonal, as it is skew-symmetric, got another number",
    ),
    (BANNER + "% only comments\n", "expected a line of sizes, got the end of the file"),
    (BANNER + "2 2\n", "expected whole numbers as the sizes of a coordinate matrix, got '2 2'"),
    (BANNER + "2 2 1\n1 3 1\n", "expected a sound Matrix Market file, got one that does not read .*out of bounds"),
    (BANNER + "2 2 2\n1 2 1\n\n\n\n\n\n\n", "Truncated"),
    (BANNER + "2 2 1\n1 2 1\0\n", "expected text, got a NUL at byte .*"),
    *(
        (
            BANNER + f"2 2 1\n1 2 {value}\n",
            "expected finite real numbers as entries, got another one in the .* bytes from byte 52",
        )
        for value in ("1x", "1.2.3", "1e5e2", "1e", "1-2", "1nan")
    ),
    (
        BANNER + "2 2 1\n1 2.5 1\n",
        "expected finite real numbers as entries, got another one in the .* bytes from byte 52",
    ),
    (BANNER + "2 2 1\n1 2 1 7\n", "expected 3 words in the entries, as many in each line as their kind says, got 4"),
    (
        BANNER.replace("real", "integer") + "2 2 1\n1 2 1.5\n",
        "expected finite integer numbers as entries, got another one in the 8 bytes from byte 55",
    ),
    (BANNER + "2 2 1\n1 2 " + "1" * 1_100_000 + "\n1 1 1\n", "more than a million characters|no finite|sound"),
    (
        "%%MatrixMarket matrix array real symmetric\n2 2\n1 2\n3\n",
        "expected 3 words in the entries, as many in each line as their kind says, got 3",
    ),
]


@pytest.mark.parametrize("text, said", MATRIX_MARKET)
def test_matrix_market_that_is_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        table(tmp_path, text, "graph.mtx")


def xml(body, keys="", graph='<graph edgedefault="directed">'):
    return f"<graphml>{keys}{graph}{body}</graph></graphml>"


NODES = '<node id="a"/><node id="b"/>'
KEY = '<key id="k" for="{}" attr.name="x" attr.type="{}"/>'.format
GRAPHML = [
    (xml(NODES + "<hyperedge/>"), "<hyperedge> in <graph>"),
    (
        xml(NODES, graph="<graph>"),
        "expected one <graph>, edgedefault='directed' or 'undirected', got 1, None.",
    ),
    (xml('<node id="a"/><node id="a"/>'), "expected each node once, got 'a' twice"),
    (xml("<node/>"), "expected a <node> with id, got one without"),
    (xml(NODES + '<edge source="a" target="c"/>'), "expected two nodes for 'a' -> 'c', got no 'c'"),
    (
        xml(NODES + '<edge source="a" target="b" directed="maybe"/>'),
        "expected directed='true' or 'false' at an edge, got 'maybe'.",
    ),
    (xml("words"), "expected text in data only, got 'words' in <graph>"),
    (
        xml(NODES, '<key id="k" yfiles.type="nodegraphics"/>'),
        "expected a name and a type among .'int', 'long', 'float',.*, got None, 'string'",
    ),
    (
        xml(NODES, KEY("node", "int") * 2),
        "expected one key 'k', of nodes, edges or graph, got two, or one of 'node'",
    ),
    (
        xml('<node id="a"><data key="k">1</data><data key="k">1</data></node>', KEY("node", "int")),
        "expected one value of key 'k' for one node, got two",
    ),
    (
        xml('<node id="a"><data key="k">1</data></node>'),
        "expected keys that are declared for a node, got 'k'",
    ),
    (xml('<data key="k">1</data>'), "expected data of declared keys, got the key 'k'"),
    (
        xml('<node id="a"><data key="k">1.5</data></node>', KEY("node", "int")),
        "expected the node attribute 'x' to be int, got '1.5' at number 1",
    ),
    (
        xml('<node id="a"><data key="k">9999999999</data></node>', KEY("node", "int")),
        "expected the node attribute 'x' to fit the type int, got 9999999999",
    ),
    (
        xml('<node id="a"><data key="k">1</data></node><node id="b"/>', KEY("node", "int")),
        "expected the node attribute 'x' at every node, got none at node 2",
    ),
    (
        xml(
            '<node id="a"><data key="k">1</data><data key="j">1</data></node>',
            KEY("node", "int") + KEY("node", "int").replace('"k"', '"j"'),
        ),
        "expected one value of the node attribute 'x' at node 1, got two keys",
    ),
    (
        xml(
            '<node id="a"><data key="j">w</data><data key="k">1</data></node>',
            KEY("node", "int") + KEY("node", "string").replace('"k"', '"j"'),
        ),
        "expected one key for the node attribute 'x', or several of.*, got .'int', 'string'.",
    ),
    (
        xml(
            '<node id="a"><data key="k">9007199254740993</data></node><node id="b"><data key="j">1.5</data></node>',
            KEY("node", "long") + KEY("node", "double").replace('"k"', '"j"'),
        ),
        "expected one type of node attribute 'x', got 9007199254740993 among floats, which would",
    ),
    (
        xml(
            NODES + '<edge source="a" target="b"><data key="k">w</data></edge>',
            KEY("edge", "string").replace('"x"', '"weight"'),
        ),
        "expected numbers as weights, got 'weight' of type <U1",
    ),
]


@pytest.mark.parametrize("text, said", GRAPHML)
def test_graphml_that_is_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        table(tmp_path, text, "graph.graphml")


def test_graphml_of_another_shape_or_weight(tmp_path):
    mark = '<data key="k">{}</data>'.format
    key = KEY("graph", "string").replace('"x"', '"sparse_etrace"')
    for shape, said in (
        ([3, 3], "expected the nodes of a graph of shape .3, 3., got 2"),
        ([2, 2], "expected integers as labels, as the file says, got the node 'a'"),
    ):
        with pytest.raises(ValueError, match=said):
            table(tmp_path, xml(mark(json.dumps({"labels": "int", "shape": shape})) + NODES, key), "graph.graphml")
    edge = '<edge source="b" target="a"/>'
    with pytest.raises(
        ValueError, match="expected edges onto receiving nodes of shape .1, 2., got one onto a sending one"
    ):
        table(
            tmp_path,
            xml(mark('{"labels":"str","shape":[1,2]}') + '<node id="c"/>' + NODES + edge.replace('"a"', '"c"'), key),
            "g.graphml",
        )
    with pytest.raises(ValueError, match=r"weight: expected a single column 'size', got \[\]"):
        table(tmp_path, xml(NODES + edge), "graph.graphml", weight="size")
    with pytest.raises(ValueError, match="pre: expected nothing, as GraphML names the ends itself, got 'a'"):
        table(tmp_path, xml(NODES), "graph.graphml", pre="a")


@pytest.mark.parametrize("dtype", ["i4", "f4", "f8"])
def test_parquet_in_batches(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(parquet, "BATCH", 3)
    rng = np.random.default_rng(0)
    pre, post = rng.choice([5, -7, 2**60, 2**60 + 1], (2, 20))
    columns = {"pre": pre, "post": post, "weight": np.arange(20).astype(dtype), "name": np.array(list("abcde") * 4)}
    path = tmp_path / "graph.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=8)
    graph = se.read_graph(path)
    order = np.lexsort((pre, post))
    nodes, conn = np.array(graph.nodes), graph.connectivity
    found = nodes[conn.pre], nodes[conn.post], graph.weight, graph.edge_attrs["name"]
    for column, wanted in zip(found, columns.values(), strict=True):
        np.testing.assert_array_equal(column, wanted[order])
    assert se.read_graph(path, weight=None, edge_attrs=[]).connectivity.num_synapses == 20
    for name in ("pre", "post", "weight"):
        some = pa.array(columns[name], mask=np.arange(20) == 13)
        pq.write_table(pa.table(columns | {name: some}), path, row_group_size=8)
        with pytest.raises(ValueError, match=f"in each row of column '{name}', got 1 rows without one"):
            se.read_graph(path)
    monkeypatch.setattr(parquet, "check_groups", lambda source, file: 21)
    with pytest.raises(ValueError, match="expected 21 rows, as it claims, got 20"):
        se.read_graph(path, weight=None)


@pytest.mark.parametrize(
    "columns, options, said",
    [
        ({"a": [1], "b": [2]}, {}, "expected columns with usual names, got .'a', 'b'."),
        ({"pre": [1], "post": [2]}, {"pre": "pre"}, "pre and post: expected both or none, got 'pre' and None"),
        ({"pre": [1.5], "post": [2.5]}, {}, "expected ids that are integers or strings .* 'pre', got the float 1.5"),
        (
            {"pre": [1, None], "post": [2, 3]},
            {},
            "expected a value in each row of column 'pre', got 1 rows without one",
        ),
        ({"pre": [1], "post": [2], "weight": ["a"]}, {}, "expected numbers as weights in column 'weight', got string"),
        (
            {"pre": [1], "post": [2], "x": [[1]]},
            {},
            "expected numbers, truth values or text in column 'x', got list<",
        ),
        (
            {"pre": [1], "post": ["a"]},
            {},
            "expected ids of one kind, got integers and strings in the columns 'pre' and 'post'",
        ),
    ],
)
def test_parquet_that_is_refused(tmp_path, columns, options, said):
    pq.write_table(pa.table(columns), tmp_path / "graph.parquet")
    pf.write_feather(pa.table(columns), tmp_path / "graph.feather")
    for name in ("graph.parquet", "graph.feather"):
        with pytest.raises((ValueError, TypeError), match=said):
            se.read_graph(tmp_path / name, **options)


@pytest.mark.parametrize(
    "name, to", [("synapses.parquet", {}), ("a.feather", {}), ("a.arrow", {"compression": "zstd"})]
)
def test_parquet_and_feather_of_others(tmp_path, name, to):
    path = tmp_path / name
    big = 2**60
    frame = pd.DataFrame({"pre_pt_root_id": [big + 1, big], "post_pt_root_id": [big, big + 1], "syn_count": [2, 3]})
    frame = frame.assign(region=["a", "b"])
    (frame.to_parquet if "parquet" in name else frame.to_feather)(path, **to)
    with pytest.warns(UserWarning, match="'syn_count'"):
        graph = se.read_graph(path)
    assert graph.nodes == (big, big + 1) and graph.weight.tolist() == [2, 3]
    assert graph.edge_attrs["region"].tolist() == ["a", "b"]
    if "parquet" not in name:
        pytest.importorskip("polars").DataFrame(frame).write_ipc(path, **to)
        again = se.read_graph(path, pre="pre_pt_root_id", post="post_pt_root_id", weight="syn_count")
        assert again.nodes == graph.nodes and again.edge_attrs["region"].tolist() == ["a", "b"]
    words = pa.table({"pre": pa.array(["c", "b"]).dictionary_encode(), "post": ["b", "a"], "weight": [1.0, 2.0]})
    words = words.slice(1)
    pq.write_table(words, path) if "parquet" in name else pf.write_feather(words, path, **to)
    assert se.read_graph(path).nodes == ("a", "b")
    with pytest.raises(ValueError, match="separator: expected nothing, as .* has no separator, got ','"):
        se.read_graph(path, separator=",")


def test_columns_that_miss_are_refused_before_rows_are_read(tmp_path, monkeypatch):
    random = np.random.default_rng(0).integers(0, 10**18, (2, 40_000))
    text = "a,b\n" + "".join(f"{i},{j}\n" for i, j in zip(*random.tolist()))
    path = tmp_path / "edges.csv.gz"
    path.write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(ValueError, match="expected a single column 'x', got .'a', 'b'."):
        se.read_graph(path, pre="x", post="b")
    with pytest.raises(ValueError, match="weight: expected a single column 'n', got .."):
        se.read_graph(path, pre="a", post="b", weight="n")
    with pytest.raises(ValueError, match="expected a sound gzip file, got one that does not read"):
        se.read_graph(path, pre="a", post="b")
    frame = pd.DataFrame({"a": random[0], "b": random[1]})
    frame.to_parquet(tmp_path / "edges.parquet")
    frame.to_feather(tmp_path / "edges.feather")
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_: pytest.fail("reads rows"))
    path = tmp_path / "edges.feather"
    path.write_bytes(path.read_bytes()[:5000] + bytes(path.stat().st_size - 10_000) + path.read_bytes()[-5000:])
    for name in ("edges.parquet", "edges.feather"):
        with pytest.raises(ValueError, match="expected columns with usual names, got .'a', 'b'."):
            se.read_graph(tmp_path / name)
    with pytest.raises(ValueError, match="expected a sound Feather file, got one"):
        se.read_graph(path, pre="a", post="b")


@pytest.mark.parametrize("name", ["graph.CSV", "graph.MTX", "graph.GraphML", "graph.CSV.GZ", "graph.NPZ", "graph.Tsv"])
def test_suffixes_in_capitals(tmp_path, name):
    round_trip(parallel(), tmp_path / name)
    packed = (tmp_path / name).read_bytes().startswith(b"\x1f\x8b")
    assert packed is name.endswith("GZ")


def test_paths(tmp_path):
    missing = tmp_path / "none" / "graph.npz"
    with pytest.raises(FileNotFoundError, match="path: expected a folder for graph.npz, got none at .*"):
        se.write_graph(missing, parallel())
    for bad in ("a", 1e9, True):
        with pytest.raises(TypeError, match=f"max_bytes: expected a whole number, got {bad!r}"):
            se.read_graph(missing, max_bytes=bad)
    with pytest.raises(FileNotFoundError, match="path: expected a file, got none at"):
        se.read_graph(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="path: expected a file, got .*, which is none"):
        se.read_graph(tmp_path / "folder.npz")
    with pytest.raises(ValueError, match="format: expected one of npz, .*, got 'csv'"):
        se.read_graph(tmp_path / "none.csv", format="csv")
    for suffix, column in ((".npz", "pre"), (".mtx", "weight"), (".parquet", "separator")):
        se.write_graph(tmp_path / f"graph{suffix}", parallel())
        with pytest.raises(ValueError, match=f"{column}: expected nothing, as .*, got ','"):
            se.read_graph(tmp_path / f"graph{suffix}", **{column: ","})
    se.write_graph(tmp_path / "graph.data", parallel(), format="npz")
    same(parallel(), se.read_graph(tmp_path / "graph.data", format="npz", max_bytes=10_000))
    with pytest.raises(ValueError, match="graph.data: expected at most 10 bytes when unpacked, got more"):
        se.read_graph(tmp_path / "graph.data", format="npz", max_bytes=10)


# ---------------------------------------------------------------------------------------------------- the command


def test_convert(tmp_path, capsys):
    table(tmp_path, "source,target,weight\na,b,0.1\nb,a,2\n", format="edge_list", pre="source", post="target")
    start, middle, end = (str(tmp_path / name) for name in ("edges.csv", "graph.graphml", "matrix.csv"))
    assert cli.main(["convert", start, middle]) == 0
    shown = capsys.readouterr()
    assert "2 x 2 units, 2 synapses" in shown.out and "'source' for pre" in shown.err
    assert cli.main(["convert", middle, end, "--to", "adjacency"]) == 0
    assert "0.1" in Path(end).read_text() and cli.main(["convert", "worm", str(tmp_path / "worm.mtx")]) == 2
    assert "expected no attributes that Matrix Market loses" in capsys.readouterr().err
    assert cli.main(["convert", start, middle, "--pre", "1", "--post", "0"]) == 2
    assert "got positions" in capsys.readouterr().err


def test_benchmark(tmp_path):
    program = Path(__file__).parent / "benchmarks/files.py"
    command = [sys.executable, program, "--synapses", "20000", "--units", "500", "--repeats", "1", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "files.json").read_text())
    assert {"mtx", "parquet, ours"} <= set(found) and all(row["ratio"] > 0 for row in found.values())
