"""One rule for all ways into a graph: which column is the weight, which are attributes, what a column of text is."""

import warnings

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sparse_etrace as se

try:
    import polars as pl
except ImportError:
    pl = None

needs_polars = pytest.mark.skipif(pl is None, reason="polars is not installed: pip install polars")
ENDS = {"pre": ["a", "b", "c"], "post": ["b", "c", "a"]}


def of_graphml(columns, folder, **options):
    nx.write_graphml(networkx_of(columns), folder / "graph.graphml")
    return se.read_graph(folder / "graph.graphml", **options)


def networkx_of(columns):
    G = nx.DiGraph()
    for row in pd.DataFrame(ENDS | columns).to_dict("records"):
        G.add_edge(row.pop("pre"), row.pop("post"), **row)
    return G


def of_parquet(columns, folder, **options):
    pq.write_table(pa.table(ENDS | columns), folder / "graph.parquet")
    return se.read_graph(folder / "graph.parquet", **options)


def of_csv(columns, folder, **options):
    pd.DataFrame(ENDS | columns).to_csv(folder / "graph.csv", index=False)
    return se.read_graph(folder / "graph.csv", **options)


DOORS = {
    "csv": of_csv,
    "parquet": of_parquet,
    "graphml": of_graphml,
    "networkx": lambda columns, folder, **options: se.from_networkx(networkx_of(columns), **options),
    "pandas": lambda columns, folder, **options: se.from_dataframe(pd.DataFrame(ENDS | columns), **options),
    "arrow": lambda columns, folder, **options: se.from_dataframe(pa.table(ENDS | columns), **options),
}
each_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
NUMBERS, WORDS = [0.5, 2.0, 3.5], ["x", "y", "z"]


def weights(graph):
    """By the sending node."""
    return {graph.nodes[i]: w for i, w in zip(graph.connectivity.pre.tolist(), graph.weight.tolist(), strict=True)}


SEEN, ONES = dict(zip("abc", NUMBERS)), dict.fromkeys("abc", 1.0)
# Columns, arguments, the weights, and what is said.
RULE = [
    ({"weight": NUMBERS}, {}, SEEN, None),
    ({"weight": NUMBERS, "count": [1, 2, 3]}, {}, SEEN, None),
    ({"w": NUMBERS, "kind": WORDS}, {}, SEEN, "took 'w' for the weight .to say so: weight='w'"),
    ({"Count": NUMBERS, "length": NUMBERS}, {}, SEEN, "took 'Count' for the weight"),
    (
        {"length": NUMBERS, "kind": WORDS},
        {},
        ONES,
        r"all weights are 1 \(if one of \['length'\] is the weight, pass weight=; if none is, weight=None\)",
    ),
    ({"kind": WORDS}, {}, ONES, None),
    ({}, {}, ONES, None),
    ({"length": NUMBERS}, {"weight": "length"}, SEEN, None),
    ({"w": NUMBERS, "count": NUMBERS}, {"weight": "w"}, SEEN, None),
    ({"weight": NUMBERS}, {"weight": None}, ONES, None),
    ({"w": NUMBERS, "count": NUMBERS}, {"weight": None}, ONES, None),
]


@each_door
@pytest.mark.parametrize("columns, options, expected, said", RULE)
def test_which_column_is_the_weight(door, columns, options, expected, said, tmp_path):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        graph = door(columns, tmp_path, **options)
    assert weights(graph) == expected
    assert len(found) == (said is not None)
    if said is not None:
        with pytest.warns(UserWarning, match=said):
            door(columns, tmp_path, **options)


@each_door
def test_weights_that_are_refused(door, tmp_path):
    several = "weight: expected one column that may be it, got .'.*'."
    with pytest.raises(ValueError, match=several):
        door({"w": NUMBERS, "count": NUMBERS}, tmp_path)
    with pytest.raises(ValueError, match="weight: expected a single column 'weight', got .'kind'."):
        door({"kind": WORDS}, tmp_path, weight="weight")
    for name in ("weight", "w"):
        with pytest.raises(
            (ValueError, TypeError), match="expected (a number|numbers|real numbers)( as weights?.*)?, got"
        ):
            door({name: WORDS}, tmp_path)


@each_door
def test_attributes_that_differ_are_left_out_to_sum_duplicates(door, tmp_path, monkeypatch):
    monkeypatch.setitem(ENDS, "pre", ["a", "a", "b"])
    monkeypatch.setitem(ENDS, "post", ["b", "b", "a"])
    if door in (DOORS["graphml"], DOORS["networkx"]):
        monkeypatch.setattr(nx, "DiGraph", nx.MultiDiGraph)
    columns = {"weight": NUMBERS, "kind": ["s", "s", "t"], "site": [1, 2, 3]}
    every = ["kind", "site"]
    with pytest.raises(
        ValueError, match="duplicates: expected 'keep' where edge.*, got 'sum', which merges synapse 'a' -> 'b'"
    ):
        door(columns, tmp_path, duplicates="sum", edge_attrs=every)
    graph = door(columns, tmp_path, duplicates="sum", edge_attrs=["kind"])
    assert list(graph.edge_attrs) == ["kind"] and weights(graph) == {"a": 2.5, "b": 3.5}
    assert list(door(columns, tmp_path, edge_attrs=every).edge_attrs) == every
    with pytest.raises(ValueError, match="edge_attrs: expected a single column 'sit', got .'.*'."):
        door(columns, tmp_path, edge_attrs=["sit"])
    with pytest.raises(TypeError, match="edge_attrs: expected a list of names, got the string 'site'"):
        door(columns, tmp_path, edge_attrs="site")


def test_attributes_of_npz_and_none_of_matrices(tmp_path):
    graph = se.from_edges([0, 0], [1, 1], [1.0, 2.0], edge_attrs={"site": [1, 2], "kind": ["s", "s"]})
    se.write_graph(tmp_path / "graph.npz", graph)
    summed = se.read_graph(tmp_path / "graph.npz", duplicates="sum", edge_attrs=["kind"])
    assert summed.weight.tolist() == [3.0] and list(summed.edge_attrs) == ["kind"]
    se.write_graph(tmp_path / "graph.mtx", summed.__class__(summed.connectivity, summed.weight))
    with pytest.raises(ValueError, match="edge_attrs: expected nothing, as Matrix Market has no columns, got .'kind'."):
        se.read_graph(tmp_path / "graph.mtx", edge_attrs=["kind"])


def test_an_attribute_that_some_edges_lack_can_be_left_out(tmp_path):
    G = networkx_of({"weight": NUMBERS})
    G.edges["a", "b"]["site"] = 3
    nx.write_graphml(G, tmp_path / "graph.graphml")
    with pytest.raises(
        ValueError, match="G: expected edge attribute 'site' on every edge or on none, got none on .'b', 'c'."
    ):
        se.from_networkx(G)
    with pytest.raises(ValueError, match="expected the edge attribute 'site' at every edge, got none at edge 2"):
        se.read_graph(tmp_path / "graph.graphml")
    del G.edges["b", "c"]["weight"]
    nx.write_graphml(G, tmp_path / "partial.graphml")
    for door in (lambda: se.from_networkx(G), lambda: se.read_graph(tmp_path / "partial.graphml")):
        with pytest.raises(
            ValueError, match="edge attribute 'weight' .*, got none .*, or pass weight=None for weights of 1"
        ):
            door()
    G.edges["b", "c"]["weight"] = NUMBERS[1]
    for graph in (se.from_networkx(G, edge_attrs=[]), se.read_graph(tmp_path / "graph.graphml", edge_attrs=[])):
        assert weights(graph) == SEEN and graph.edge_attrs == {}


# ------------------------------------------------------------------------------------------------------ columns of text


TEXT = ["b", "c", "a"]
AS_TEXT = {
    "pandas": lambda: pd.Series(TEXT),
    "object": lambda: pd.Series(TEXT, dtype=object),
    "string[python]": lambda: pd.Series(TEXT, dtype="string[python]"),
    "string[pyarrow]": lambda: pd.Series(TEXT, dtype="string[pyarrow]"),
    "large_string[pyarrow]": lambda: pd.Series(TEXT, dtype=pd.ArrowDtype(pa.large_string())),
    "category": lambda: pd.Series(TEXT, dtype="category"),
    "index": lambda: pd.Index(TEXT),
    "numpy": lambda: np.array(TEXT),
    "numpy objects": lambda: np.array(TEXT, object),
    "numpy StringDType": lambda: np.array(TEXT, np.dtypes.StringDType()),
    "list": lambda: list(TEXT),
    "arrow": lambda: pa.array(TEXT),
    "arrow large": lambda: pa.array(TEXT, pa.large_string()),
    "arrow view": lambda: pa.array(TEXT, pa.string_view()),
    "arrow dictionary": lambda: pa.array(TEXT).dictionary_encode(),
    "arrow chunks": lambda: pa.chunked_array([TEXT[:1], TEXT[1:]]),
    "polars": lambda: pl.Series(TEXT),
    "polars categorical": lambda: pl.Series(TEXT, dtype=pl.Categorical),
    "polars enum": lambda: pl.Series(TEXT, dtype=pl.Enum(TEXT)),
}
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=needs_polars) if k.startswith("polars") else k for k in AS_TEXT]
)


def through_files(graph, folder):
    for suffix in (".npz", ".csv", ".graphml", ".parquet"):
        written = (
            graph if suffix != ".csv" else se.Graph(graph.connectivity, graph.weight, graph.nodes, {}, graph.edge_attrs)
        )
        se.write_graph(folder / f"graph{suffix}", written)
        yield se.read_graph(folder / f"graph{suffix}")


@each_kind
def test_text_of_any_library_goes_everywhere(kind, tmp_path):
    column = AS_TEXT[kind]()
    graph = se.from_edges(
        AS_TEXT[kind](),
        ["a", "b", "c"],
        labels=AS_TEXT[kind](),
        edge_attrs={"kind": column},
        node_attrs={"role": column},
    )
    assert graph.nodes == tuple(TEXT) and {type(label) for label in graph.nodes} == {str}
    assert graph.node_attrs["role"].dtype == graph.edge_attrs["kind"].dtype == "<U1"
    by_sender = dict(zip(TEXT, TEXT))
    for found in [graph, *through_files(graph, tmp_path)]:
        senders = [found.nodes[i] for i in found.connectivity.pre.tolist()]
        assert dict(zip(senders, found.edge_attrs["kind"].tolist())) == by_sender
        assert found.node_attrs.get("role", np.array(TEXT)).tolist() == TEXT


TABLES = {
    "pandas": pd.DataFrame,
    "arrow": pa.table,
    "polars": lambda columns: pl.DataFrame(
        {k: v.to_pylist() if isinstance(v, pa.DictionaryArray) else np.asarray(v).tolist() for k, v in columns.items()}
    ),
}


@pytest.mark.parametrize("library", [pytest.param("polars", marks=needs_polars), "pandas", "arrow"])
def test_tables_of_any_library(library):
    columns = {
        "pre": TEXT,
        "post": ["a", "b", "c"],
        "weight": [1.0, 2.0, 3.0],
        "n": [2**60 + 1, 2, 3],
        "on": [True, False, True],
    }
    frame = TABLES[library](columns)
    graph = se.from_dataframe(frame, edge_attrs=["n", "on"])
    assert graph.nodes == ("a", "b", "c") and weights(graph) == {"b": 1.0, "c": 2.0, "a": 3.0}
    assert sorted(graph.edge_attrs["n"].tolist()) == [2, 3, 2**60 + 1] and graph.edge_attrs["on"].dtype == bool
    whole = se.from_dataframe(TABLES[library]({"pre": [2**60 + 1, 5], "post": [5, 2**60 + 1]}))
    assert whole.nodes == (5, 2**60 + 1)
    for missing in ({"pre": [1, None], "post": [1, 2]}, {"pre": ["a", None], "post": ["b", "c"]}):
        with pytest.raises(ValueError, match="pre: expected a value in each row of column 'pre', got none in row 1"):
            se.from_dataframe(TABLES[library](missing))
    with pytest.raises(ValueError, match="weight: expected a value in each row of column 'weight', got none in row 0"):
        se.from_dataframe(TABLES[library]({"pre": [1, 2], "post": [2, 1], "weight": [None, 1.0]}))


@pytest.mark.parametrize("kind", [k for k in AS_TEXT if k.startswith("arrow") and k != "arrow chunks"])
def test_parquet_of_text_of_any_type(kind, tmp_path):
    column, numbers = AS_TEXT[kind](), pa.array([7, 8, 7]).dictionary_encode()
    table = pa.table({"pre": column, "post": column, "kind": column, "n": numbers, "weight": NUMBERS})
    pq.write_table(table, tmp_path / "graph.parquet")
    graph = se.read_graph(tmp_path / "graph.parquet")
    assert graph.nodes == ("a", "b", "c") and graph.edge_attrs["kind"].tolist() == ["a", "b", "c"]
    assert graph.edge_attrs["n"].tolist() == [7, 7, 8]
    assert se.from_dataframe(table, edge_attrs=["kind"]).edge_attrs["kind"].dtype == "<U1"


def test_strings_of_very_different_lengths_are_written(tmp_path):
    texts = ["x" * 100_000, *map(str, range(200))]
    n = len(texts)
    graph = se.from_edges(range(n), range(n), edge_attrs={"note": texts}, node_attrs={"note": texts})
    assert graph.edge_attrs["note"].dtype == object
    for found in through_files(graph, tmp_path):
        assert found.edge_attrs["note"].tolist() == texts
    ends = se.from_edges([0], [0], edge_attrs={"note": ["a\0"]})
    se.write_graph(tmp_path / "graph.npz", ends)
    assert se.read_graph(tmp_path / "graph.npz").edge_attrs["note"].tolist() == ["a\0"]


def test_objects_become_what_they_hold():
    values = {
        "whole": ([1, 2**60 + 1], np.int64),
        "float": ([0.5, 2], np.float64),
        "truth": ([True, False], np.bool_),
        "wide": ([1, 2**70], object),
        "mixed": (["a", 1], object),
        "digits": ([0.5, 2**60 + 1], object),
        "none": (["a", None], object),
    }
    attrs = {key: np.array(cells, object) for key, (cells, _) in values.items()}
    graph = se.from_edges([0, 1], [0, 1], edge_attrs=attrs)
    for key, (cells, dtype) in values.items():
        assert graph.edge_attrs[key].dtype == dtype and graph.edge_attrs[key].tolist() == cells
    assert attrs["whole"].dtype == object


def test_columns_without_values_are_refused():
    for column in (pd.array([1, None], "Int64"), pa.array([1, None]), np.ma.array([1, 2], mask=[False, True])):
        with pytest.raises(ValueError, match="edge_attrs.'x'.: expected a value in each row, got none in row 1"):
            se.from_edges([0, 1], [0, 1], edge_attrs={"x": column})
        with pytest.raises(ValueError, match="weight: expected a value in each row, got none in row 1"):
            se.from_edges([0, 1], [0, 1], column)
    with pytest.raises(ValueError, match="labels: expected a value in each row, got none in row 0"):
        se.from_edges(["a"], ["a"], labels=pd.Series([None, "a"]))
    nan = se.from_edges([0, 1], [0, 1], edge_attrs={"x": pd.Series([1.0, np.nan])}).edge_attrs["x"]
    assert np.isnan(nan[1])


def test_no_table():
    with pytest.raises(TypeError, match="df: expected a data frame of pandas or polars, or an Arrow table, got list"):
        se.from_dataframe([1])
