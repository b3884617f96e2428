import copy
import pickle
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings, strategies as st
from soak import few

import sparse_etrace as se
from sparse_etrace._graph import transforms


def dense_oracle(edges, weights, shape):
    matrix = np.zeros(shape)
    for (pre, post), weight in zip(edges, weights):
        matrix[pre, post] += weight
    return matrix


@st.composite
def weighted_edges(draw, square=False):
    num_pre = draw(st.integers(1, 6))
    shape = (num_pre, num_pre if square else draw(st.integers(1, 6)))
    edge = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    edges = draw(st.lists(edge, max_size=20))
    weights = draw(st.lists(st.integers(-4, 4), min_size=len(edges), max_size=len(edges)))
    return edges, [weight / 2 for weight in weights], shape


def make(drawn):
    edges, weights, shape = drawn
    pairs = np.array(edges, int).reshape(-1, 2)
    return se.from_edges(pairs[:, 0], pairs[:, 1], weights, shape)


# Every new shape compiles.
@settings(max_examples=12)
@given(weighted_edges())
def test_matrices_agree_with_a_loop_over_edges(drawn):
    graph, expected = make(drawn), dense_oracle(*drawn)
    np.testing.assert_array_equal(graph.to_dense(), expected)
    np.testing.assert_array_equal(graph.to_scipy().toarray(), expected)
    np.testing.assert_array_equal(graph.to_bcoo().todense(), expected)
    assert graph.to_scipy().nnz == graph.to_bcoo().nse == len(drawn[0])
    x = jnp.arange(2.0 * expected.shape[0]).reshape(2, -1)
    np.testing.assert_array_equal(x @ graph.to_dense(), x @ graph.to_bcoo())
    other = 2 * np.arange(len(drawn[0]))
    np.testing.assert_array_equal(graph.to_dense(other), graph.to_scipy(other).toarray())
    np.testing.assert_array_equal(graph.to_dense(other), graph.to_bcoo(other).todense())


@given(weighted_edges(square=True))
def test_networkx_round_trip(drawn):
    graph = make(drawn)
    written = graph.to_networkx()
    assert written.is_multigraph() == (len(set(drawn[0])) < len(drawn[0]))
    assert sorted((u, v, w) for u, v, w in written.edges(data="weight")) == sorted(
        (*edge, weight) for edge, weight in zip(drawn[0], drawn[1])
    )
    back = se.from_networkx(written)
    assert list(back.nodes) == list(graph.nodes)
    for one, two in zip(jax.tree.leaves(graph), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(one, two)


def test_labels_and_attributes():
    nodes = ["b", ("a", 1), frozenset([2]), 2**60]
    graph = se.Graph(
        se.Connectivity.from_edges([0, 1], [1, 3], shape=(4, 4)),
        jnp.array([1.0, 2.0]),
        nodes,
        {"kind": ["x", "y", "x", "z"], "place": np.arange(8).reshape(4, 2)},
        {"delay": [3, 2**60]},
    )
    assert graph.nodes == tuple(nodes) and [graph.index_of(label) for label in nodes] == [0, 1, 2, 3]
    assert graph.pre_nodes == graph.post_nodes == graph.nodes
    written = graph.to_networkx(weight=jnp.array([5.0, 6.0]), weight_name="size")
    assert written.edges["b", ("a", 1)] == {"size": 5.0, "delay": 3}
    assert written.edges[("a", 1), 2**60]["delay"] == 2**60
    assert written.nodes["b"]["kind"] == "x" and written.nodes[2**60]["place"].tolist() == [6, 7]


def test_rectangular_nodes_are_two_sets():
    graph = se.from_edges(["x", "x"], ["u", "v"], [1.0, 2.0], shape=(1, 2), labels=["x", "u", "v"])
    assert (graph.pre_nodes, graph.post_nodes) == (("x",), ("u", "v"))
    assert graph.to_dense().tolist() == [[1.0, 2.0]]
    assert dict(graph.to_networkx().edges) == {("x", "u"): {"weight": 1.0}, ("x", "v"): {"weight": 2.0}}
    plain = se.from_edges([0], [1], shape=(1, 2))
    assert (list(plain.pre_nodes), list(plain.post_nodes), plain.index_of(2)) == ([0], [1, 2], 2)
    assert list(plain.to_networkx().edges) == [(0, 2)]
    assert se.from_edges([5], [4], labels=range(6)).nodes == range(6)


def test_is_a_pytree_and_inputs_stay_the_callers():
    attrs = np.array([1, 2])
    graph = se.Graph(se.Connectivity.from_edges([0, 1], [1, 0], shape=(2, 2)), jnp.ones(2), edge_attrs={"k": attrs})
    attrs[0] = 9
    assert graph.edge_attrs["k"].tolist() == [1, 2] and len(jax.tree.leaves(graph)) == 8
    doubled = jax.jit(lambda g: eqx.tree_at(lambda h: h.weight, g, 2 * g.weight))(graph)
    assert doubled.weight.tolist() == [2.0, 2.0] and doubled.edge_attrs["k"].tolist() == [1, 2]
    assert jax.jit(lambda g: g.to_dense() + g.to_bcoo().todense())(graph).tolist() == [[0.0, 2.0], [2.0, 0.0]]
    grad = jax.grad(lambda w: graph.to_dense(w)[0, 1])(graph.weight)
    assert grad.tolist() == [0.0, 1.0]
    written = graph.to_scipy()
    written.data[:] = 7
    assert graph.weight.tolist() == [1.0, 1.0]


def test_with_weight_keeps_all_else():
    graph = se.from_edges(["a", "c"], ["b", "a"], [1.0, 2.0], labels="abc", edge_attrs={"delay": [3, 5]})
    other = graph.with_weight(np.array([0.25, 0.5]))
    assert other.weight.tolist() == [0.25, 0.5] and graph.weight.tolist() == [2.0, 1.0]
    assert other.nodes == graph.nodes and other.index_of("c") == 2 and other.edge_attrs["delay"].tolist() == [5, 3]
    assert jax.tree.structure(other) == jax.tree.structure(graph) and other.connectivity.pre is graph.connectivity.pre
    assert other.to_networkx().edges["c", "a"] == {"weight": 0.25, "delay": 5}
    assert graph.with_weight([7, 8]).weight.dtype == graph.weight.dtype
    assert graph.with_weight(jnp.ones(2, jnp.bfloat16)).weight.dtype == jnp.bfloat16
    assert jax.grad(lambda w: graph.with_weight(w).to_dense()[0, 1])(graph.weight).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match=r"weight: expected one entry per synapse, \(2,\), got shape \(3,\)"):
        graph.with_weight(jnp.ones(3))
    with pytest.raises(TypeError, match="weight: expected real numbers, got complex64"):
        graph.with_weight(jnp.ones(2, complex))


def test_half_precision_is_widened_for_scipy():
    graph = se.from_edges([0], [0], [0.5], dtype=jnp.bfloat16)
    assert graph.weight.dtype == jnp.bfloat16 and graph.to_scipy().dtype == np.float32


def test_graph_errors():
    conn = se.Connectivity.from_edges([0, 1], [1, 0], shape=(2, 2))
    with pytest.raises(
        ValueError, match="nodes: expected one label for each of 2 nodes of a graph of shape .2, 2., got 3."
    ):
        se.Graph(conn, jnp.ones(2), "abc")
    with pytest.raises(ValueError, match="labels: expected distinct ones, got 'a' at the entries 0 and 1"):
        se.Graph(conn, jnp.ones(2), ["a", "a"])
    with pytest.raises(TypeError, match=r"labels: expected hashable ones, got \['a'\] at entry 1"):
        se.Graph(conn, jnp.ones(2), ["a", ["a"]])
    with pytest.raises(
        ValueError, match=r"node_attrs\['kind'\]: expected 2 entries along the first axis, got shape \(3,\)"
    ):
        se.Graph(conn, jnp.ones(2), node_attrs={"kind": [1, 2, 3]})
    with pytest.raises(
        ValueError, match=r"edge_attrs\['delay'\]: expected 2 entries along the first axis, got shape \(\)"
    ):
        se.Graph(conn, jnp.ones(2), edge_attrs={"delay": np.array(1)})
    graph = se.Graph(conn, jnp.ones(2), ["a", "b"], edge_attrs={"weight": [1, 2]})
    for label in ("c", ["a"]):
        with pytest.raises(ValueError, match="label: expected one of the . labels in"):
            graph.index_of(label)
    with pytest.raises(ValueError, match="label: expected one of the . labels in .*, got 2"):
        se.from_edges([0], [1]).index_of(2)
    with pytest.raises(ValueError, match=r"weight: expected one entry per synapse, \(2,\), got shape \(3,\)"):
        graph.to_dense(jnp.ones(3))
    with pytest.raises(ValueError, match="weight_name: expected a name that no edge attribute has, got 'weight'"):
        graph.to_networkx()


@given(weighted_edges(square=True))
def test_spectral_radius_is_numpys(drawn):
    expected = np.abs(np.linalg.eigvals(dense_oracle(*drawn))).max()
    # An eigenvalue of multiplicity m is only known to eps ** (1 / m).
    assert se.spectral_radius(make(drawn)) == pytest.approx(expected, abs=1e-2, rel=1e-4)


def random_graph(size, degree, signed, seed=0):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(size * degree)
    ends = rng.integers(0, size, (2, size * degree))
    return se.from_edges(*ends, weight if signed else np.abs(weight), (size, size))


@pytest.mark.parametrize(
    "signed, size", few([(s, n) for s in (True, False) for n in (40, 700)], [(True, 700), (False, 40)])
)
def test_spectral_radius_dense_and_iterated(size, signed):
    graph = random_graph(size, 5, signed)
    expected = np.abs(np.linalg.eigvals(np.asarray(graph.to_dense(), np.float64))).max()
    assert se.spectral_radius(graph) == pytest.approx(expected, rel=1e-6)
    assert se.spectral_radius(graph) == se.spectral_radius(graph)
    assert se.spectral_radius(se.scale_spectral_radius(graph, 0.9)) == pytest.approx(0.9, rel=1e-5)


def test_spectral_radius_of_special_graphs():
    assert se.spectral_radius(se.Connectivity.from_edges([], [], shape=(0, 0))) == 0
    assert se.spectral_radius(se.from_edges([0], [0], [-3.0])) == 3
    # Nilpotent: one path through many units, with entries that hide it from rounding.
    assert se.spectral_radius(se.from_edges(np.arange(999), np.arange(1, 1000), np.full(999, 7.0))) == 0
    # Cancelled parallel synapses are no cycle.
    assert se.spectral_radius(se.from_edges([0, 0, 1], [1, 1, 0], [1.0, -1.0, 5.0])) == 0
    conn = se.Connectivity.from_edges([0, 1, 2], [1, 0, 2], shape=(3, 3))
    assert se.spectral_radius(conn) == pytest.approx(1)
    assert se.spectral_radius(conn, np.array([2.0, 8.0, 1.0])) == pytest.approx(4)
    # Every eigenvalue of a ring has the same modulus.
    weight = np.random.default_rng(0).random(400).astype(np.float32) + 0.5
    ring = se.from_edges(np.arange(400), (np.arange(400) + 1) % 400, weight)
    assert se.spectral_radius(ring) == pytest.approx(np.exp(np.log(weight.astype(float)).mean()), rel=1e-4)


def test_largest_of_many_components_wins():
    blocks = [np.random.default_rng(seed).standard_normal((4, 4)) for seed in range(5)]
    matrix = sp.block_diag([sp.coo_array(block) for block in blocks])
    expected = max(np.abs(np.linalg.eigvals(block)).max() for block in blocks)
    assert se.spectral_radius(se.from_scipy(matrix)) == pytest.approx(expected, rel=1e-5)


def test_transform_errors(monkeypatch):
    with pytest.raises(
        ValueError, match="graph: expected a square one, which alone has a spectral radius, got shape .1, 2.."
    ):
        se.spectral_radius(se.from_edges([0], [1], shape=(1, 2)))
    loop = se.from_edges([0], [0])
    for rho in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"rho: expected a positive, finite number, got {rho}"):
            se.scale_spectral_radius(loop, rho)
    with pytest.raises(ValueError, match="graph: expected a cycle of non-zero weights, got none, .* radius is 0"):
        se.scale_spectral_radius(se.from_edges([0], [1]), 1.0)

    def fails(*args, **kwargs):
        raise transforms.ArpackError(-9999)

    monkeypatch.setattr(transforms, "eigs", fails)
    graph = random_graph(500, 5, True)
    dense = np.asarray(graph.to_dense(), np.float64)
    assert se.spectral_radius(graph) == pytest.approx(np.abs(np.linalg.eigvals(dense)).max(), rel=1e-6)
    monkeypatch.setattr(transforms, "_DENSE_FALLBACK", 400)
    with pytest.raises(
        ValueError, match="graph: expected .* the Arnoldi iteration .*, got a component of .* where it did not converge"
    ):
        se.spectral_radius(graph)


@pytest.mark.usefixtures("x64")
def test_spectral_radius_leaves_double_weights_alone():
    graph = se.from_edges([0, 1, 0], [1, 0, 0], [1.0, 4.0, 0.0], dtype=np.float64)
    assert se.spectral_radius(graph) == pytest.approx(2)
    assert graph.weight.tolist() == [0.0, 4.0, 1.0]


# --- a graph and its copy --------------------------------------------------------------------------------------------


def labelled(**changes):
    parts = {
        "nodes": ["a", ("b", 1), 2.5],
        "node_attrs": {"x": np.array([1.0, np.nan, 3.0]), "kind": ["s", "t", "u"]},
        "edge_attrs": {"when": np.array(["2020-01-01", "2021-01-01"], "M8[D]"), "note": np.array([[1], "x"], object)},
    }
    conn = se.Connectivity.from_edges([0, 1], [1, 2], shape=(3, 3))
    return se.Graph(conn, jnp.array([1.0, 2.0]), **(parts | changes))


OTHERS = [
    {"nodes": ["a", ("b", 1), 3.5]},
    {"nodes": None},
    {"node_attrs": {"x": [1.0, np.nan, 3.0]}},
    {"node_attrs": {"x": np.array([1.0, np.nan, 4.0]), "kind": ["s", "t", "u"]}},
    {"node_attrs": {"x": np.array([1, 0, 3]), "kind": ["s", "t", "u"]}},
    {"node_attrs": {"kind": ["s", "t", "u"], "x": np.array([1.0, np.nan, 3.0])}},
    {"edge_attrs": {"when": np.array(["2020-01-01", "2021-01-02"], "M8[D]"), "note": np.array([[1], "x"], object)}},
    {"edge_attrs": {"when": np.array(["2020-01-01", "2021-01-01"], "M8[D]"), "note": np.array([[1], "y"], object)}},
]


@pytest.mark.parametrize("other", OTHERS)
def test_labels_are_compared_by_value(other):
    graph = labelled()
    for copied in (labelled(), copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        doubled = jax.tree.map(jnp.add, graph, copied)
        assert doubled.weight.tolist() == [2.0, 4.0] and doubled.nodes == graph.nodes
        assert jax.tree.structure(graph) == jax.tree.structure(copied)
        assert hash(jax.tree.structure(graph)) == hash(jax.tree.structure(copied))
    changed = labelled(**other)
    assert jax.tree.structure(graph) != jax.tree.structure(changed)
    with pytest.raises(ValueError):
        jax.tree.map(jnp.add, graph, changed)


def test_numbers_of_another_type_are_other_labels():
    whole, real, truth = (labelled(nodes=[0, one, 2]) for one in (1, 1.0, True))
    assert len({jax.tree.structure(graph) for graph in (whole, real, truth)}) == 3
    ragged = np.empty(2, object)
    ragged[:] = [np.arange(2), np.arange(3)]
    first, second = (labelled(edge_attrs={"r": ragged.copy()}) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_a_graph_that_is_loaded_again_does_not_compile_again(tmp_path):
    se.write_graph(tmp_path / "worm.npz", se.datasets.worm())
    traced = []
    total = jax.jit(lambda graph: traced.append(1) or graph.weight.sum())
    sums = [total(se.read_graph(tmp_path / "worm.npz")) for _ in range(3)]
    assert len(traced) == 1 and len(set(map(float, sums))) == 1


def test_hashes_are_of_one_process():
    graph = labelled()
    hash(graph._table)
    assert graph._table._hash is not None and pickle.loads(pickle.dumps(graph))._table._hash is None


def test_attributes_are_read_only():
    given = np.array([1.0, 2.0, 3.0])
    graph = labelled(node_attrs={"x": given})
    with pytest.raises(ValueError, match="read-only"):
        graph.node_attrs["x"][0] = 5
    given[0] = 7
    assert graph.node_attrs["x"].tolist() == [1.0, 2.0, 3.0]


def test_hashing_and_comparing_are_paid_once():
    labels = [f"n{k}" for k in range(200_000)]
    one, two = (se.from_edges(["n0"], ["n1"], labels=list(labels)) for _ in range(2))
    assert one._table == two._table
    start = time.perf_counter()
    for _ in range(100):
        assert hash(one._table) == hash(two._table) and one._table == two._table
    assert time.perf_counter() - start < 0.1
