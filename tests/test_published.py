"""Connectomes in files as they are published, each with its traps, beside pandas; tables of nodes beside them."""

import warnings

import h5py
import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest

import sparse_etrace as se

BIG = 720575940600000001  # beyond 2**53, where floats are 128 apart
ROWS = 400


def written(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".feather":
        frame.to_feather(path)
    else:
        frame.to_csv(path, index=False)
    return path


def read(path, **options):
    """The graph, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        graph = se.read_graph(path, **options)
    return graph, " ".join(str(w.message) for w in said)


def as_frame(graph):
    conn = graph.connectivity
    ends = [[graph.nodes[k] for k in side.tolist()] for side in (conn.pre, conn.post)]
    columns = {"pre": ends[0], "post": ends[1], "weight": np.asarray(graph.weight)}
    return pd.DataFrame(columns | graph.edge_attrs).sort_values(["pre", "post"], ignore_index=True)


def as_pandas_has_it(graph, frame, pre, post, weight, least=0):
    """Rows of a pair summed by pandas, then the threshold; nodes are the ids that are left."""
    right = frame.assign(n=frame[weight] if weight else 1).groupby([pre, post], as_index=False)["n"].sum()
    right = right[right["n"].abs() >= least].reset_index(drop=True)
    found = as_frame(graph)
    assert found["pre"].tolist() == right[pre].tolist() and found["post"].tolist() == right[post].tolist()
    np.testing.assert_array_equal(found["weight"], right["n"].astype(np.float32))
    assert list(graph.nodes) == sorted({*right[pre], *right[post]})


def rows(pre, post, count, parts=()):
    """Synapses among 40 cells, whose ids floats confuse; some pairs in several rows."""
    random = np.random.default_rng(0)
    ends = random.integers(0, 40, (2, ROWS)) + BIG
    columns = {pre: ends[0], post: ends[1]}
    columns |= {name: random.choice(["ME_L", "LO_R", "AVLP"], ROWS) for name in parts}
    return pd.DataFrame(columns | ({count: random.integers(1, 9, ROWS)} if count else {}))


PUBLISHED = {
    "FlyWire": ("pre_root_id", "post_root_id", "syn_count", ["neuropil"], ".csv"),
    "FlyWire packed": ("pre_root_id", "post_root_id", "syn_count", ["neuropil"], ".csv.gz"),
    "neuPrint": ("bodyId_pre", "bodyId_post", "weight", ["roi"], ".csv"),
    "CAVE": ("pre_pt_root_id", "post_pt_root_id", None, [], ".parquet"),
    "MaleCNS": ("body_pre", "body_post", "weight", [], ".feather"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_of_a_pair_are_summed_before_the_threshold(tmp_path, name):
    pre, post, count, parts, suffix = PUBLISHED[name]
    frame = rows(pre, post, count, parts)
    if name == "CAVE":  # what each synapse has
        frame = frame.assign(id=range(ROWS), size=7, at=[[1, 2, 3]] * ROWS, made=pd.Timestamp("2020-01-01"))
    path = written(frame, tmp_path / f"edges{suffix}")
    graph, said = read(path)
    as_pandas_has_it(graph, frame, pre, post, count)
    assert f"summed {ROWS} rows into {graph.connectivity.num_synapses} synapses" in said and not graph.edge_attrs
    assert f"took the columns '{pre}' for pre and '{post}' for post" in said
    assert all(f"without ['{part}']" in said for part in parts)
    least = 5 if count else 2
    strong, _ = read(path, min_weight=least)
    as_pandas_has_it(strong, frame, pre, post, count, least)
    assert 0 < strong.connectivity.num_synapses < graph.connectivity.num_synapses
    apart, _ = read(path, duplicates="keep", edge_attrs=parts)
    assert apart.connectivity.num_synapses == ROWS and list(apart.edge_attrs) == parts


def test_attributes_of_summed_rows(tmp_path):
    """Those in which the rows of a pair agree stay; the transmitter of some is unknown."""
    frame = rows("pre_root_id", "post_root_id", "syn_count", ["neuropil"])
    frame["nt_type"] = np.array(["ACH", "GABA", None])[frame["pre_root_id"] % 3]
    for suffix in (".csv", ".parquet", ".feather"):
        graph, _ = read(written(frame, tmp_path / f"edges{suffix}"))
        found = as_frame(graph)
        assert found["nt_type"].tolist() == [["ACH", "GABA", ""][k % 3] for k in found["pre"]]
    with pytest.raises(ValueError, match="expected .* each 'nt_type' of synapses, got none for ''.*pass default=1"):
        se.transform.with_signs(graph, "nt_type", se.transform.FLY_SIGNS)
    signed = as_frame(se.transform.with_signs(graph, "nt_type", se.transform.FLY_SIGNS, default=1))
    assert (signed["weight"] < 0).tolist() == [k % 3 == 1 for k in signed["pre"]]
    twice = pd.concat([frame.assign(score=np.nan)] * 2)
    assert np.isnan(read(written(twice, tmp_path / "edges.parquet"))[0].edge_attrs["score"]).all()
    frame.loc[0, "nt_type"] = "SER"
    first = frame.iloc[[0]].assign(nt_type="DA", syn_count=1)
    graph, said = read(written(pd.concat([frame, first]), tmp_path / "edges.csv"))
    assert not graph.edge_attrs and "without ['nt_type'], which differ among them" in said
    with pytest.raises(ValueError, match="duplicates: expected 'keep' where edge attribute 'nt_type' differs"):
        read(tmp_path / "edges.csv", edge_attrs=["nt_type"])


def test_sizes_of_synapses(tmp_path):
    frame = rows("pre_pt_root_id", "post_pt_root_id", None).assign(size=range(ROWS), at=[[1]] * ROWS)
    graph, said = read(written(frame, tmp_path / "edges.parquet"), weight="size")
    as_pandas_has_it(graph, frame, "pre_pt_root_id", "post_pt_root_id", "size")
    assert "left out the columns ['at'], which hold no numbers, truth values or text" in said


def test_the_whole_fly(tmp_path):
    """Ids rather than positions, and the sign."""
    frame = rows("Presynaptic_ID", "Postsynaptic_ID", "Connectivity").drop_duplicates(
        ["Presynaptic_ID", "Postsynaptic_ID"]
    )
    sign = np.where(frame["Presynaptic_ID"] % 2, 1, -1)
    frame = frame.assign(Presynaptic_Index=frame["Presynaptic_ID"] - BIG, Postsynaptic_Index=0, Excitatory=sign)
    signed = "Excitatory x Connectivity"
    frame[signed] = sign * frame["Connectivity"]
    path = written(frame, tmp_path / "edges.parquet")
    graph, said = read(path, edge_attrs=[])
    as_pandas_has_it(graph, frame, "Presynaptic_ID", "Postsynaptic_ID", signed)
    assert f"took {signed!r} for the weight" in said and "'Presynaptic_ID' for pre" in said
    strong, _ = read(path, min_weight=5)
    as_pandas_has_it(strong, frame, "Presynaptic_ID", "Postsynaptic_ID", signed, 5)
    assert (np.asarray(strong.weight) < 0).any()
    positions, said = read(written(frame.drop(columns=["Presynaptic_ID", "Postsynaptic_ID"]), path), edge_attrs=[])
    assert positions.nodes[0] == 0 and "'Presynaptic_Index' for pre" in said


def test_tables_of_banc(tmp_path):
    frame = rows("pre", "post", "count").drop_duplicates(["pre", "post"]).assign(norm=0.5, total_input=9)
    frame = frame.astype({"pre": str, "post": str})
    graph, said = read(written(frame.reset_index(drop=True), tmp_path / "edges.feather"))
    as_pandas_has_it(graph, frame, "pre", "post", "count")
    assert sorted(graph.edge_attrs) == ["norm", "total_input"] and "took 'count' for the weight" in said


WORM = "\ufeffSource , Target,Weight ,Type,,\nVB01 ,VB02    ,  3,chemical,,\n VB02,VB01,4 ,electrical  ,,\n\n   \n"


def test_tables_of_the_worm(tmp_path):
    """Padded names, columns and rows without anything, zeros before numbers."""
    (tmp_path / "worm.csv").write_text(WORM)
    graph, _ = read(tmp_path / "worm.csv")
    assert graph.nodes == ("VB01", "VB02") and graph.weight.tolist() == [4, 3]
    assert graph.edge_attrs["Type"].tolist() == ["electrical", "chemical"]
    for table, words in (("name,role\nVB2,motor\nVB1 ,\n", "took 2 ids for the same"), ("name,role\nVB02,motor\n", "")):
        (tmp_path / "roles.csv").write_text(table)
        graph, said = read(tmp_path / "worm.csv", nodes=tmp_path / "roles.csv")
        assert graph.node_attrs["role"].tolist() == ["", "motor"] and words in said
    # Two rows may be meant, so that neither is.
    (tmp_path / "roles.csv").write_text("name,role\nVB02,x\nVB1,a\nVB001,b\n")
    assert read(tmp_path / "worm.csv", nodes=tmp_path / "roles.csv")[0].node_attrs["role"].tolist() == ["", "x"]


def test_names_with_blanks_in_arrow(tmp_path):
    for name, write in (("edges.parquet", pq.write_table), ("edges.feather", pf.write_feather)):
        write(pa.table({"pre": ["VB01 ", "VB02"], "post": [" VB02", "VB01"], "weight": [1, 2]}), tmp_path / name)
        graph, said = read(tmp_path / name)
        assert graph.nodes == ("VB01", "VB02") and "took blanks off ids, as of 'VB01 '" in said
        write(pa.table({"pre": ["VB01", " "], "post": ["VB02", "VB01"], "weight": [1, 2]}), tmp_path / name)
        with pytest.raises(ValueError, match="expected an id in each row, got an empty one. Fill it or drop"):
            se.read_graph(tmp_path / name)


# --- ids -------------------------------------------------------------------------------------------------------------

ROUNDED = "was rounded: write ids as integers, in pandas of type Int64"


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".feather"])
def test_ids_that_are_floats(tmp_path, suffix):
    path = tmp_path / f"edges{suffix}"
    frame = pd.DataFrame({"pre": [1.0, 2.0**53 - 1], "post": [2, 1], "weight": [3, 4]})
    assert se.read_graph(written(frame, path)).nodes == (1, 2, 2**53 - 1)
    for bad, said in ((1.5, "got .*1.5"), (2.0**53, ROUNDED), (float(BIG), ROUNDED), (-float(BIG), ROUNDED)):
        with pytest.raises(ValueError, match=said):
            se.read_graph(written(frame.assign(pre=[1.0, bad]), path))
    if suffix != ".csv":
        with pytest.raises(ValueError, match="16777216.0.*was rounded"):
            se.read_graph(written(frame.assign(pre=np.array([1, 2**24], np.float32)), path))
        with pytest.raises(ValueError, match="expected a value in each row of column 'pre', got 1 rows"):
            se.read_graph(written(frame.assign(pre=[1.0, None]), path))


@pytest.mark.parametrize("name, write", [("edges.parquet", pq.write_table), ("edges.feather", pf.write_feather)])
def test_types_of_columns_of_arrow(tmp_path, name, write):
    """Integers and text of all types, categories, and columns that may lack values."""
    ends = [BIG + 1, BIG], [BIG, BIG + 1]
    wide = lambda values: pa.array(values, pa.string()).cast(pa.string_view())
    category = lambda values: pa.array(values).dictionary_encode()
    text = [[str(x) for x in side] for side in ends]
    kinds = [[pa.array(side, pa.int64()) for side in ends], [pa.array(side, pa.uint64()) for side in ends]]
    kinds += [[make(side) for side in sides] for make in (pa.array, category) for sides in (ends, text)]
    kinds += [[wide(side) for side in text], [category(text[0]), wide(text[1])]]
    # Parquet has no dictionary with a missing value in it.
    values = ["a", "b"] if "parquet" in name else [None, "b"]
    other = pa.DictionaryArray.from_arrays(pa.array([1, None], pa.uint32()), pa.array(values))
    for pre, post in kinds:
        columns = {"pre": pre, "post": post, "weight": pa.array([2, 3], pa.int16()), "nt": wide(["a", None])}
        write(pa.table(columns | {"c": other, "x": pa.array([0.5, None])}), tmp_path / name)
        graph = se.read_graph(tmp_path / name)
        assert [int(label) for label in graph.nodes] == [BIG, BIG + 1] and graph.weight.tolist() == [2, 3]
        assert graph.edge_attrs["nt"].tolist() == ["a", ""] and graph.edge_attrs["c"].tolist() == ["b", ""]
        np.testing.assert_array_equal(graph.edge_attrs["x"], [0.5, np.nan])
    for missing in ("weight", "k"):
        columns = {"pre": [1, 2], "post": [2, 1], "weight": [1, 2], missing: pa.array([1, None])}
        write(pa.table(columns), tmp_path / name)
        with pytest.raises(ValueError, match=f"expected a value in each row of column {missing!r}, got 1 rows"):
            se.read_graph(tmp_path / name)


def test_only_columns_that_are_needed_are_read(tmp_path, monkeypatch):
    frame = rows("body_pre", "body_post", "weight").assign(other="x")
    seen = []
    old = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, size, columns: seen.append(columns) or old(self, size, columns=columns),
    )
    read(
        written(frame, tmp_path / "edges.parquet"),
        edge_attrs=[],
        nodes=written(META, tmp_path / "meta.parquet"),
        node_attrs=["side"],
    )
    assert seen == [["body_pre", "body_post", "weight"], ["root_id", "side"]]


# --- tables of nodes -------------------------------------------------------------------------------------------------

META = pd.DataFrame({
    "root_id": [BIG + 2, BIG, BIG + 1, BIG + 9], "cell_type": ["Mi1", "T4a", None, "T5"], "side": ["L", "R", "R", "L"],
    "size_nm": pd.array([None, 5, 2**40, 7], dtype="Int64"), "supervoxel": pd.array([None, BIG, 2, 3], dtype="Int64"),
    "proofread": pd.array([True, False, None, True], dtype="boolean"), "area": [1.5, 2.5, None, 0.5],
})  # fmt: skip
EDGES = pd.DataFrame({"pre": [BIG, BIG + 1, BIG], "post": [BIG + 1, BIG + 2, BIG + 3], "weight": [2, 1, 5]})


@pytest.fixture
def edges(tmp_path):
    return written(EDGES, tmp_path / "edges.csv")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".feather", None])
@pytest.mark.parametrize("node_set", ["synapses", "table", "both"])
def test_a_table_of_nodes_as_pandas_joins_it(tmp_path, edges, suffix, node_set):
    nodes = META if suffix is None else written(META, tmp_path / f"meta{suffix}")
    graph, said = read(edges, nodes=nodes, node_set=node_set)
    of_synapses = {*EDGES["pre"], *EDGES["post"]}
    right = sorted(
        {"synapses": of_synapses, "table": {*META["root_id"]}, "both": {*META["root_id"]} | of_synapses}[node_set]
    )
    kept = EDGES[EDGES["pre"].isin(right) & EDGES["post"].isin(right)]
    assert list(graph.nodes) == right and as_frame(graph).equals(
        kept.sort_values(["pre", "post"], ignore_index=True).astype({"weight": np.float32})
    )
    joined = pd.DataFrame({"root_id": right}).merge(META, on="root_id", how="left")
    for name in ("cell_type", "side"):
        assert graph.node_attrs[name].tolist() == joined[name].fillna("").tolist()
    for name in ("size_nm", "area"):
        np.testing.assert_array_equal(graph.node_attrs[name], joined[name].astype(float))
    text = [["" if pd.isna(x) else str(x) for x in joined[name]] for name in ("supervoxel", "proofread")]
    assert [graph.node_attrs[name].tolist() for name in ("supervoxel", "proofread")] == text
    assert "took 'root_id' for the ids of the table of nodes" in said
    assert ("left out 1 of 4 nodes of the table, which have no synapse" in said) == (node_set == "synapses")
    assert ("found no row for 1 of" in said) == (node_set != "table")
    assert ("left out 1 synapses of nodes that the table lacks" in said) == (node_set == "table")
    assert graph.where(cell_type="T4a", side="R").tolist() == [0]


def test_whole_columns_keep_their_types(edges):
    full = META.assign(supervoxel=BIG, proofread=True, size_nm=[1, 2, 3, 4])
    found = read(edges, nodes=full, node_set="table")[0].node_attrs
    assert [found[name].dtype.kind for name in ("supervoxel", "proofread", "size_nm", "area")] == ["i", "b", "i", "f"]
    assert found["supervoxel"].tolist() == [BIG] * 4


@pytest.mark.parametrize("column", ["bodyId", "pt_root_id", "banc_746_id", "cell_id", "name", "Unnamed"])
def test_names_of_ids(tmp_path, edges, column):
    frame = META.rename(columns={"root_id": "" if column == "Unnamed" else column})
    graph, _ = read(edges, nodes=written(frame, tmp_path / "meta.csv"), node_attrs=["side"])
    assert graph.node_attrs["side"].tolist() == ["R", "R", "L", ""] and list(graph.node_attrs) == ["side"]
    as_text = frame.rename(columns={"": "id"}).astype({"id" if column == "Unnamed" else column: str})
    assert read(edges, nodes=as_text)[0].node_attrs["side"].tolist() == ["R", "R", "L", ""]


def test_other_files_with_tables_of_nodes(tmp_path):
    graph = nx.DiGraph([("a", "b", {"weight": 2.0})])
    nx.write_graphml(graph, tmp_path / "graph.graphml")
    (tmp_path / "matrix.csv").write_text(",a,b\na,0,2\nb,0,0\n")
    nodes = pd.DataFrame({"name": ["b", "c"], "kind": ["x", "y"]})
    for name in ("graph.graphml", "matrix.csv"):
        found, _ = read(tmp_path / name, nodes=nodes)
        assert found.nodes == ("a", "b") and found.node_attrs["kind"].tolist() == ["", "x"]
        assert read(tmp_path / name, nodes=nodes, node_set="both")[0].nodes == ("a", "b", "c")
    se.write_graph(tmp_path / "graph.npz", found)
    with pytest.raises(ValueError, match="node_attrs: expected names that the graph lacks, got 'kind'. Name others"):
        read(tmp_path / "graph.npz", nodes=nodes)
    with pytest.raises(ValueError, match="node_set: expected 'synapses' for a graph with two.* of its own"):
        read(tmp_path / "graph.npz", nodes=nodes, node_set="both")


def test_tables_of_nodes_that_are_refused(tmp_path, edges):
    twice = pd.concat([META, META.iloc[:1]])
    for nodes, said in (
        (META.rename(columns={"root_id": "who"}), "nodes: expected a column of ids with a usual name.*got .'who'"),
        (META.assign(pt_root_id=0), "nodes: expected one column that may hold the ids, got .'root_id', 'pt_root_id'"),
        (twice, f"nodes: expected one row for each node, got several for {BIG + 2}. Keep one"),
        (
            META.assign(root_id=1.5),
            "nodes: expected ids that are integers or strings in column 'root_id'",
        ),
        (
            META.assign(root_id=["a", "b", "c", "d"]),
            f"nodes: expected ids of nodes of.*, as {BIG}, got ids as 'a'. Give the table of the same version",
        ),
        (written(EDGES, tmp_path / "a.csv").with_suffix(".npz"), "nodes: expected a file, got none"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            read(edges, nodes=nodes)
    se.write_graph(tmp_path / "a.npz", se.from_edges([0], [1]))
    with pytest.raises(ValueError, match="nodes: expected a table, .csv, .parquet or .feather, got 'a.npz'"):
        read(edges, nodes=tmp_path / "a.npz")
    with pytest.raises(ValueError, match="node_set: expected one of synapses, table, both, got 'all'"):
        read(edges, nodes=META, node_set="all")
    some = META.astype({"root_id": "Int64"})
    some.loc[0, "root_id"] = None
    for nodes in (some, written(some, tmp_path / "meta.csv"), written(some, tmp_path / "meta.parquet")):
        graph, said = read(edges, nodes=nodes)
        assert (
            graph.node_attrs["side"].tolist() == ["R", "R", "", ""] and "left out 1 rows of nodes without an id" in said
        )
    assert (
        read(edges, nodes=twice.assign(root_id=[*META["root_id"][:3], 0, 0]))[0].node_attrs["side"].tolist()[2] == "L"
    )


def test_nodes_of_two_sets_without_labels(tmp_path):
    """In SONATA each population counts from 0, so that an id is that of a sender and of a receiver."""
    with pytest.raises(ValueError, match="nodes: expected a graph whose nodes are one set, .* got 2 senders and 4 rec"):
        read(
            sonata(tmp_path / "edges.h5", sets=("lgn", "v1")),
            nodes=pd.DataFrame({"node_id": [0, 1], "kind": ["a", "b"]}),
        )
    labels = ["a", "b", "x", "y", "z"]
    se.write_graph(tmp_path / "wide.npz", se.from_edges(["a", "b"], ["y", "x"], shape=(2, 3), labels=labels))
    graph, _ = read(tmp_path / "wide.npz", nodes=pd.DataFrame({"id": labels, "k": range(5)}))
    assert graph.node_attrs["k"].tolist() == [0, 1, 2, 3, 4]


def test_text_without_room_of_its_own(tmp_path, edges):
    """As polars writes it, and Arrow where it is asked to."""
    view = pa.Table.from_pandas(META[["root_id", "cell_type"]])
    view = view.set_column(1, "cell_type", view["cell_type"].cast(pa.string_view()))
    pq.write_table(view, tmp_path / "meta.parquet")
    pf.write_feather(view, tmp_path / "meta.feather")
    for nodes in (view, tmp_path / "meta.parquet", tmp_path / "meta.feather"):
        assert read(edges, nodes=nodes)[0].node_attrs["cell_type"].tolist() == ["T4a", "", "Mi1", ""]
    names = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.uint32()), pa.array(["b", "a"]).cast(pa.string_view()))
    (tmp_path / "named.csv").write_text("pre,post\na,b\n")
    graph, _ = read(tmp_path / "named.csv", nodes=pa.table({"name": names, "k": [1, 2]}))
    assert graph.node_attrs["k"].tolist() == [1, 2]


def test_tables_of_nodes_as_spreadsheets_write_them(tmp_path, edges):
    """Columns without name and cell behind the others, and a row that reads as a comment."""
    (tmp_path / "meta.csv").write_text(f"root_id,side,,\n{BIG},R,,\n#{BIG + 1},L,,\n{BIG + 2},L,,\n")
    graph, said = read(edges, nodes=tmp_path / "meta.csv")
    assert {k: v.tolist() for k, v in graph.node_attrs.items()} == {"side": ["R", "", "L", ""]}
    assert "took 1 lines after the first row for comments" in said
    (tmp_path / "meta.csv").write_text(f"root_id,side,side\n{BIG},R,L\n")
    twice = pa.Table.from_arrays([pa.array([BIG]), pa.array(["R"]), pa.array(["L"])], ["root_id", "side", "side"])
    for nodes in (tmp_path / "meta.csv", twice):
        with pytest.raises(ValueError, match="nodes: expected columns of different names, got .*'side', 'side'"):
            read(edges, nodes=nodes)


def test_attributes_of_no_table(edges):
    for options in ({"node_attrs": ["side"]}, {"node_set": "both"}):
        with pytest.raises(
            ValueError, match="nodes: expected a table of nodes beside node_attrs and node_set, got none"
        ):
            read(edges, **options)
    with pytest.raises(ValueError, match="nodes: node_attrs: expected a single column 'colour', got"):
        read(edges, nodes=META, node_attrs=["colour"])
    with pytest.raises(TypeError, match="nodes: node_attrs: expected a list of names, got the string 'side'"):
        read(edges, nodes=META, node_attrs="side")


# --- the least weight ------------------------------------------------------------------------------------------------


def test_the_least_weight_of_any_file(tmp_path):
    graph = se.from_edges([0, 0, 1, 3], [1, 1, 2, 3], [2.0, 2.0, -3.5, 1.0], (5, 5))
    for name in ("graph.npz", "graph.csv", "graph.mtx"):
        se.write_graph(tmp_path / name, graph)
        found, said = read(tmp_path / name, min_weight=3)
        # Node 3 loses its synapse, 4 never had one.
        assert found.nodes == (0, 1, 2, 4) and found.weight.tolist() == [4, -3.5] and "summed 4 rows into 3" in said
        assert se.read_graph(tmp_path / name, min_weight=2, duplicates="keep").weight.tolist() == [2, 2, -3.5]
        with pytest.raises(ValueError, match="min_weight: expected self_loops='keep' or 'drop' beside it, got 'add'"):
            se.read_graph(tmp_path / name, min_weight=3, self_loops="add")
        for bad in (np.nan, -1):
            with pytest.raises(ValueError, match=f"min_weight: expected 0 or more, got {bad}"):
                se.read_graph(tmp_path / name, min_weight=bad)
    with pytest.raises(TypeError, match="min_weight: expected a number, got '5'"):
        se.read_graph(tmp_path / name, min_weight="5")
    se.write_graph(tmp_path / "wide.npz", se.from_edges([0, 1], [1, 2], [1.0, 2.0], (2, 3)))
    assert se.read_graph(tmp_path / "wide.npz", min_weight=2).connectivity.shape == (2, 3)


# --- SONATA ----------------------------------------------------------------------------------------------------------


def sonata(path, sets=("v1", "v1"), sizes=None, groups=1, names=("v1_to_v1",), target=(1, 0, 3)):
    with h5py.File(path, "w") as file:
        for name in names:
            population = file.create_group(f"edges/{name}")
            for end, ids, nodes in zip(("source", "target"), ([0, 1, 1], target), sets, strict=True):
                population[f"{end}_node_id"] = np.array(ids, np.uint64)
                population[f"{end}_node_id"].attrs["node_population"] = nodes
            population["edge_type_id"] = [100, 100, 101]
            population["edge_group_id"], population["edge_group_index"] = [0, 0, 0], [2, 1, 0]
            for k in range(groups):
                population[f"{k}/syn_weight"] = [0.5, 1.5, 2.5]
                population[f"{k}/model"] = ["a", "b", "c"]
            if sizes:
                population["indices/source_to_target/node_id_to_range"] = np.zeros((sizes, 2), int)
    return path


def test_sonata(tmp_path):
    path = tmp_path / "edges.h5"
    for options, shape in (({}, (4, 4)), ({"sizes": 6}, (6, 6)), ({"sets": ("lgn", "v1")}, (2, 4))):
        graph, said = read(sonata(path, **options))
        assert graph.connectivity.shape == shape and "took 'syn_weight' for the weight" in said
        assert graph.connectivity.pre.tolist() == [1, 0, 1] and graph.connectivity.post.tolist() == [0, 1, 3]
        # Attributes lie in the order of their group.
        assert graph.weight.tolist() == [1.5, 2.5, 0.5] and graph.edge_attrs["model"].tolist() == ["b", "c", "a"]
        assert graph.edge_attrs["edge_type_id"].tolist() == [100, 100, 101]
    graph, said = read(sonata(path, groups=2))
    assert graph.weight.tolist() == [1, 1, 1] and "left out the attributes of its 2 groups of edges" in said
    sonata(path, names=("a", "b"))
    with pytest.raises(ValueError, match="pre and post: expected the two columns of one population, of .'a/s"):
        read(path)
    assert read(path, pre="b/source_node_id", post="b/target_node_id")[0].connectivity.num_synapses == 3


def test_sonata_that_is_refused(tmp_path):
    path = tmp_path / "edges.h5"
    with pytest.raises(ValueError, match="expected populations of different sizes where there are two"):
        read(sonata(path, sets=("lgn", "v1"), sizes=4))
    with pytest.raises(ValueError, match="expected units that `max_bytes` = .* bytes can index"):
        read(sonata(path, target=(1, 0, 2**60)))
    with pytest.raises(ValueError, match="expected at most 10 bytes when unpacked"):
        read(sonata(path), max_bytes=10)
    with pytest.raises(ValueError, match="separator: expected nothing, as SONATA has no separator, got ','"):
        read(path, separator=",")
    with pytest.raises(ValueError, match="path: expected a format that is written, got SONATA"):
        se.write_graph(tmp_path / "other.h5", se.from_edges([0], [1]))
    with h5py.File(path, "a") as file:
        file["edges/v1_to_v1/edge_group_index"][...] = 9
    with pytest.raises(ValueError, match="expected a sound file of edges, got one that does not read"):
        read(path)
    with h5py.File(path, "a") as file:
        del file["edges/v1_to_v1/target_node_id"]
        file["edges/v1_to_v1/target_node_id"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = [1, 2, 3]
    with pytest.raises(ValueError, match="expected data in the file itself, got the column '/x' of another"):
        read(path)
    path.write_text("no HDF5")
    with pytest.raises(ValueError, match="expected a sound file of edges, got one that does not read"):
        read(path)


def test_sonata_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    (tmp_path / "edges.h5").touch()
    with pytest.raises(ImportError, match=r"h5py: expected for files of SONATA, got none.*sparse-etrace\[sonata\]"):
        se.read_graph(tmp_path / "edges.h5")
