"""To and from other libraries' graphs: the real ones where they are installed, and small objects of their interface."""

import importlib
import importlib.util
import sys
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import stand_ins
from graph_cases import each, graphs, rows, without_attrs
from hypothesis import strategies as st

import sparse_etrace as se
from sparse_etrace import interchange as ic

LIBRARIES = {
    "pyg": ("torch", "torch_geometric", "torch_geometric.data"),
    "temporal": ("torch_geometric_temporal", "torch_geometric_temporal.signal"),
    "jraph": ("jraph",),
    "igraph": ("igraph",),
}


def real(monkeypatch, name):
    """The library itself; of PyTorch Geometric Temporal the signals, which need nothing that is hard to build."""
    for module in LIBRARIES[name]:
        pytest.importorskip(module.partition(".")[0]) if name != "temporal" else None
    if name == "temporal":
        spec = importlib.util.find_spec("torch_geometric_temporal")
        if spec is None:
            pytest.skip("torch_geometric_temporal is not installed")
        package = ModuleType("torch_geometric_temporal")
        package.__path__ = list(spec.submodule_search_locations)
        monkeypatch.setitem(sys.modules, "torch_geometric_temporal", package)
    for module in LIBRARIES[name]:
        importlib.import_module(module)


@pytest.fixture(params=["stand-in", "real"])
def library(request, monkeypatch):
    """`library(name)` puts a stand-in in a library's place, or skips where the library is to be real and is not."""
    if request.param == "real":
        return lambda name: real(monkeypatch, name)
    return lambda name: stand_ins.put(monkeypatch, *LIBRARIES[name])


ROAD = se.from_edges(
    ["a", "b", "b", "c"],
    ["b", "a", "c", "c"],
    [1.0, 2.0, 4.0, 8.0],
    labels="abcd",
    node_attrs={"lanes": [2, 3, 2, 1], "kind": ["x", "y", "x", "z"], "at": np.arange(8.0).reshape(4, 2)},
    edge_attrs={"edge_length": [1.5, 2.5, 3.5, 4.5], "edge_name": ["p", "q", "r", "s"]},
)
BARE = se.from_edges([0, 1, 1], [1, 2, 2], [0.5, -1.0, 2.0], shape=(4, 4))


def same(one, two):
    assert rows(one, *one.edge_attrs) == rows(two, *one.edge_attrs) and list(one.nodes) == list(two.nodes)
    assert set(one.node_attrs) == set(two.node_attrs) and set(one.edge_attrs) == set(two.edge_attrs)
    for key, column in one.node_attrs.items():
        assert column.tolist() == two.node_attrs[key].tolist()


def test_pyg(library):
    library("pyg")
    for graph in (ROAD, BARE, se.from_edges([], [], shape=(3, 3))):
        data = ic.to_pyg(graph)
        same(graph, ic.from_pyg(data))
    data = ic.to_pyg(ROAD)
    assert data.edge_index.numpy().tolist() == [[1, 0, 1, 2], [0, 1, 2, 2]] and data.num_nodes == 4
    assert data.edge_weight.numpy().tolist() == [2.0, 1.0, 4.0, 8.0] and data.at.shape == (4, 2)
    half = ic.to_pyg(BARE.with_weight(BARE.weight.astype(jnp.bfloat16)))
    assert half.edge_weight.numpy().dtype == np.float32


def test_data_of_pyg(library):
    library("pyg")
    torch, Data = sys.modules["torch"], sys.modules["torch_geometric.data"].Data
    index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    x = torch.tensor(np.arange(6.0).reshape(3, 2))
    plain = ic.from_pyg(Data(edge_index=index, x=x))
    assert rows(plain) == [(2, 0, 1.0), (0, 1, 1.0), (2, 1, 1.0), (1, 2, 1.0)]
    assert plain.node_attrs["x"].tolist() == [[0, 1], [2, 3], [4, 5]]
    one = ic.from_pyg(Data(edge_index=index, x=x, edge_attr=torch.tensor(np.array([[1.0], [2], [3], [4]]))))
    assert one.weight.tolist() == [3.0, 1.0, 4.0, 2.0] and not one.edge_attrs
    several = Data(edge_index=index, x=x, edge_attr=torch.tensor(np.arange(8.0).reshape(4, 2)))
    assert ic.from_pyg(several).edge_attrs["edge_attr"].tolist() == [[4, 5], [0, 1], [6, 7], [2, 3]]
    both = Data(edge_index=index, x=x, edge_attr=several.edge_attr, edge_weight=torch.tensor(np.array([1.0, 2, 3, 4])))
    found = ic.from_pyg(both, self_loops="drop", dtype=jnp.bfloat16)
    assert found.weight.tolist() == [3.0, 1.0, 4.0, 2.0] and found.weight.dtype == jnp.bfloat16
    assert found.edge_attrs["edge_attr"].shape == (4, 2)


def test_gradients_and_undirected_graphs_of_pyg():
    torch, geometric = pytest.importorskip("torch"), pytest.importorskip("torch_geometric")
    x = torch.ones(3, 2, requires_grad=True)
    index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    data = geometric.data.Data(edge_index=index, x=2 * x, edge_weight=torch.tensor([1.0, 2, 3, 4]))
    graph = ic.from_pyg(data)
    assert graph.node_attrs["x"].tolist() == [[2.0, 2.0]] * 3
    both, weight = geometric.utils.to_undirected(index, data.edge_weight)
    theirs = ic.from_pyg(geometric.data.Data(edge_index=both, edge_weight=weight, num_nodes=3))
    same(theirs, se.transform.to_undirected(without_attrs(se.Graph(graph.connectivity, graph.weight))))
    normed = geometric.nn.conv.gcn_conv.gcn_norm(index, data.edge_weight, 3)
    theirs = ic.from_pyg(geometric.data.Data(edge_index=normed[0], edge_weight=normed[1], num_nodes=3))
    ours = se.transform.normalize(se.transform.add_remaining_self_loops(se.Graph(graph.connectivity, graph.weight)))
    np.testing.assert_allclose(ours.to_dense(), theirs.to_dense(), rtol=1e-6)


def test_pyg_temporal(library):
    library("temporal")
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 4))
    other = se.from_edges([3], [0], [2.0], shape=(4, 4))
    for graph in (BARE, (BARE, other, BARE, other, other)):
        signal = ic.to_pyg_temporal(ic.Snapshots(graph, features, targets))
        assert type(signal).__name__.startswith("Dynamic" if isinstance(graph, tuple) else "Static")
        found = ic.from_pyg_temporal(signal)
        np.testing.assert_array_equal(found.features, features)
        np.testing.assert_array_equal(found.targets, targets)
        assert isinstance(found.graph, tuple) == isinstance(graph, tuple)
        for one, two in zip(*(g if isinstance(g, tuple) else (g,) for g in (graph, found.graph)), strict=True):
            same(one, two)
        stream = se.SnapshotStream(found.features, found.targets, found.edges)
        assert stream.features.shape == (5, 4, 3) and (stream.edges is None) == (graph is BARE)
    np.testing.assert_array_equal(stream.edges[2], [[0.5, -1, 2], [2, 0, 0], [0.5, -1, 2], [2, 0, 0], [2, 0, 0]])
    signal = sys.modules["torch_geometric_temporal.signal"].StaticGraphTemporalSignal(
        np.array([[0], [1]]), None, list(features), list(targets)
    )
    assert ic.from_pyg_temporal(signal).graph.weight.tolist() == [1.0]


def test_jraph(library):
    library("jraph")
    GraphsTuple = sys.modules["jraph"].GraphsTuple
    numbers = se.Graph(
        ROAD.connectivity,
        ROAD.weight,
        node_attrs={"lanes": ROAD.node_attrs["lanes"], "at": ROAD.node_attrs["at"]},
        edge_attrs={"edge_length": ROAD.edge_attrs["edge_length"]},
    )
    assert set(ic.to_jraph(ROAD).nodes) == {"lanes", "at"}
    for graph in (numbers, BARE, se.from_edges([], [], shape=(2, 2))):
        made = ic.to_jraph(graph)
        assert made.n_node.tolist() == [len(graph.nodes)] and made.n_edge.tolist() == [graph.connectivity.num_synapses]
        same(graph, ic.from_jraph(made))
    batch = ic.to_jraph(se.transform.batch_graphs([BARE, se.from_edges([0], [1])]))
    assert batch.n_node.tolist() == [4, 2] and batch.n_edge.tolist() == [3, 1]
    parts = se.transform.unbatch(ic.from_jraph(batch))
    same(BARE, parts[0])
    arrays = GraphsTuple(
        nodes=np.eye(2), edges=np.array([[3.0]]), senders=jnp.array([0]), receivers=jnp.array([1]),
        n_node=np.array([2]), n_edge=np.array([1]), globals=None,
    )  # fmt: skip
    found = ic.from_jraph(arrays)
    assert rows(found) == [(0, 1, 3.0)] and found.node_attrs["nodes"].tolist() == np.eye(2).tolist()
    assert ic.from_jraph(arrays._replace(edges=np.array([[3.0, 4.0]]))).edge_attrs["edges"].tolist() == [[3, 4]]


def test_igraph(library):
    library("igraph")
    Graph = sys.modules["igraph"].Graph
    for graph in (ROAD, BARE, se.from_edges([], [], shape=(2, 2))):
        same(graph, ic.from_igraph(ic.to_igraph(graph)))
    G = Graph(
        n=3, edges=[(0, 1), (1, 2), (2, 2), (0, 1)], directed=False, vertex_attrs={"name": ["a", "b", "c"]},
        edge_attrs={"w": [1.0, 2.0, 3.0, 4.0], "id": [0, 1, 2, 3]},
    )  # fmt: skip
    with pytest.warns(UserWarning, match="from_igraph: took 'w' for the weight"):
        found = ic.from_igraph(G)
    expected = [("a", "b", 1, 0), ("a", "b", 4, 3), ("b", "a", 1, 0), ("b", "a", 4, 3)]
    expected += [("b", "c", 2, 1), ("c", "b", 2, 1), ("c", "c", 3, 2)]
    assert sorted(rows(found, "id")) == sorted(expected)
    assert set(ic.from_igraph(G, None).weight.tolist()) == {1.0}
    assert ic.from_igraph(G, "w", duplicates="keep", self_loops="drop").connectivity.num_synapses == 6


def test_spectra_of_igraph():
    igraph = pytest.importorskip("igraph")
    graph = ic.from_igraph(igraph.Graph.Famous("Zachary"))
    assert graph.connectivity.num_synapses == 156 and graph.nodes == range(34)
    worm = ic.to_igraph(se.datasets.worm())
    assert worm.vs["name"][:2] == ["ADAL", "ADAR"] and max(worm.connected_components("weak").sizes()) == 279


@each(graphs(square=False), st.booleans())
def test_tables(graph, polars):
    made = pytest.importorskip("polars") and ic.to_polars(graph) if polars else ic.to_pandas(graph)
    assert list(made.columns) == ["pre", "post", "weight", "id", "kind"]
    columns = [list(made[name]) for name in ("pre", "post", "weight", "id")]
    assert list(zip(*columns)) == rows(graph, "id")
    if graph.connectivity.num_pre == graph.connectivity.num_post:
        back = se.from_dataframe(made, labels=graph.nodes, edge_attrs=["id", "kind"])
        assert rows(back, "id", "kind") == rows(graph, "id", "kind")


def test_columns_of_tables():
    pairs = se.from_edges([(0, 1)], [(1, 0)], [1.0], labels=[(0, 1), (1, 0)], edge_attrs={"xy": [[1.0, 2.0]]})
    made = ic.to_pandas(pairs.with_weight(pairs.weight.astype(jnp.bfloat16)))
    assert made.to_dict("list") == {"pre": [(0, 1)], "post": [(1, 0)], "weight": [1.0], "xy": [[1.0, 2.0]]}
    assert isinstance(made, pd.DataFrame)


class Signal:
    def __init__(self, **values):
        vars(self).update({"edge_index": np.array([[0], [1]]), "edge_weight": None} | values)


WIDE, STEP = se.from_edges([0], [2], shape=(1, 3)), np.zeros((2, 3))
NAMES = {key: se.Graph(BARE.connectivity, BARE.weight, edge_attrs={key: [1, 2, 3]}) for key in ("weight", "pre")}
NUM = se.Graph(BARE.connectivity, BARE.weight, node_attrs={"num_nodes": [1, 2, 3, 4]})


def bare(function):
    """Without the check of types that `make soak` puts around it."""
    return getattr(function, "__wrapped__", function)


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: ic.from_pyg(object()), TypeError, "data: expected `edge_index`, .* got object without"),
        (
            lambda: ic.to_pyg(WIDE),
            ValueError,
            r"graph: expected a square one, whose .*, got shape \(1, 3",
        ),
        (lambda: ic.to_pyg(NUM), ValueError, "graph: expected attributes with names of their own, got 'num_nodes'"),
        (lambda: ic.from_pyg_temporal(3), TypeError, "signal: expected features, targets and edges, .*, got int"),
        (
            lambda: ic.from_pyg_temporal(Signal(features=[STEP, None], targets=[STEP] * 2)),
            ValueError,
            "signal: expected features for each step, got none at step 1",
        ),
        (
            lambda: ic.from_pyg_temporal(Signal(features=[STEP, STEP[:1]], targets=[STEP] * 2)),
            ValueError,
            r"signal: expected features of one shape for all steps, got \[\(1, 3\), \(2, 3\)\]",
        ),
        (
            lambda: ic.from_pyg_temporal(Signal(features=[STEP], targets=[STEP] * 2)),
            ValueError,
            "signal: expected features .steps, nodes, .... and as many targets, got shapes",
        ),
        (
            lambda: ic.from_pyg_temporal(
                Signal(features=[STEP], targets=[STEP], edge_indices=[], edge_weights=[np.ones(1)])
            ),
            ValueError,
            "signal: expected edges for each of 1 steps, got 0 of indices and 1 of weights",
        ),
        (
            lambda: ic.to_pyg_temporal(ic.Snapshots((BARE,), np.zeros((2, 4, 1)), np.zeros((2, 4)))),
            ValueError,
            "snapshots.graph: expected one for each of 2 steps, got 1",
        ),
        (lambda: ic.from_jraph(3), TypeError, "graphs: expected a GraphsTuple of jraph, got int"),
        (
            lambda: ic.from_jraph(stand_ins.GraphsTuple([1], None, STEP, STEP, None, np.ones(1, int), None)),
            TypeError,
            "graphs: expected nodes in an array, a dictionary of arrays or None, got list",
        ),
        (lambda: ic.to_jraph(NAMES["weight"]), ValueError, "graph: expected edge attributes with .*, got 'weight'"),
        (lambda: ic.from_igraph(3), TypeError, "G: expected a graph of igraph, got int"),
        (lambda: ic.to_igraph(NAMES["weight"]), ValueError, "graph: expected no edge attribute 'weight'"),
        (lambda: bare(ic.to_pandas)(3), TypeError, "graph: expected a Graph, got int"),
        (lambda: ic.to_pandas(NAMES["pre"]), ValueError, "graph: expected edge attributes with .*, got 'pre'"),
    ],
)
def test_errors(call, error, match):
    stand = pytest.MonkeyPatch()
    stand_ins.put(stand, *LIBRARIES["pyg"], "jraph", "igraph")
    try:
        with pytest.raises(error, match=match):
            call()
    finally:
        stand.undo()


def test_a_library_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ImportError, match="igraph: expected to be importable here, got .*Install it: pip install"):
        ic.to_igraph(BARE)
