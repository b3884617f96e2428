import copy

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings, strategies as st
from jax.experimental.sparse import BCOO, BCSR, CSR, bcoo_concatenate

import sparse_etrace as se
from sparse_etrace._graph.matrices import matrix_connectivity

FORMATS = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]
BIG = 2**60


def synapses(graph):
    """What a graph holds, as plain Python, in canonical order."""
    conn = graph.connectivity
    return list(zip(conn.pre.tolist(), conn.post.tolist(), graph.weight.tolist()))


def canonical(edges):
    """The oracle: edges `(pre, post, weight)` in canonical order, parallel ones in input order."""
    return [edges[k] for k in sorted(range(len(edges)), key=lambda k: (edges[k][1], edges[k][0], k))]


def columns(edges):
    return tuple(list(column) for column in zip(*edges)) if edges else ([], [], [])


@st.composite
def edge_lists(draw, square=False):
    num_pre = draw(st.integers(1, 5))
    shape = (num_pre, num_pre if square else draw(st.integers(1, 5)))
    edge = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1), st.integers(-3, 3).map(float))
    return draw(st.lists(edge, max_size=20)), shape


@given(edge_lists())
def test_edges(drawn):
    edges, shape = drawn
    graph = se.from_edges(*columns(edges), shape)
    assert synapses(graph) == canonical(edges)
    assert graph.connectivity.shape == shape and graph.weight.dtype == jnp.float32


@given(edge_lists(square=True), st.sampled_from(["keep", "sum"]), st.sampled_from(["keep", "drop", "add"]))
def test_policies(drawn, duplicates, self_loops):
    edges, shape = drawn
    expected = [edge for edge in edges if self_loops != "drop" or edge[0] != edge[1]]
    if self_loops == "add":
        present = {pre for pre, post, _ in edges if pre == post}
        expected += [(unit, unit, 1.0) for unit in range(shape[0]) if unit not in present]
    if duplicates == "sum":
        summed = {}
        for pre, post, weight in expected:
            summed[pre, post] = summed.get((pre, post), 0.0) + weight
        expected = [(*ends, weight) for ends, weight in summed.items()]
    graph = se.from_edges(*columns(edges), shape, duplicates=duplicates, self_loops=self_loops)
    assert synapses(graph) == canonical(expected)


def test_shape_from_indices_or_labels():
    assert se.from_edges([0, 5], [3, 1]).connectivity.shape == (6, 6)
    assert se.from_edges([], []).connectivity.shape == (0, 0)
    one = se.from_edges([], [], labels=["only"], self_loops="add")
    assert synapses(one) == [(0, 0, 1.0)] and one.nodes == ("only",)
    assert se.from_edges([], [], labels=[]).nodes == ()
    assert se.from_edges(["a"], ["a"], labels=pd.Index(["b", "a"])).index_of("a") == 1


@pytest.mark.parametrize(
    "ids", [[BIG + 1, -4, BIG + 3], [2**63 + 5, 3, 2**63 + 7], [2**70, -(2**70), 0], [-1, 2**63, 1]]
)
@pytest.mark.parametrize("wrap", [list, np.array, lambda ids: np.array(ids, object)])
def test_wide_ids_survive(ids, wrap):
    if wrap is np.array and np.array(ids).dtype.kind not in "iu":
        wrap = list
    graph = se.from_edges(wrap([ids[0], ids[2]]), wrap([ids[1], ids[0]]), [1.0, 2.0], labels=ids)
    assert graph.nodes == tuple(ids) and synapses(graph) == canonical([(0, 1, 1.0), (2, 0, 2.0)])


@given(st.data(), st.sampled_from([np.int64, np.uint64, "Int64", "UInt64", object, str, "category", "int64[pyarrow]"]))
def test_dataframe(data, dtype):
    ids = st.integers(BIG, BIG + 6)
    edges = data.draw(st.lists(st.tuples(ids, ids, st.integers(-3, 3).map(float)), min_size=1, max_size=12))
    pre, post, weight = columns(edges)
    cast = str if dtype is str else int
    df = pd.DataFrame({"from": list(map(cast, pre)), "to": list(map(cast, post))}).astype(dtype).assign(w=weight, k=pre)
    before = df.copy()
    graph = se.from_dataframe(df, pre="from", post="to", weight="w", edge_attrs=["k"])
    labels = sorted({*map(cast, pre), *map(cast, post)})
    assert list(graph.nodes) == labels
    place = {label: k for k, label in enumerate(labels)}
    numbered = [(place[cast(i)], place[cast(j)], w) for i, j, w in edges]
    assert synapses(graph) == canonical(numbered)
    assert [graph.nodes[i] for i in graph.connectivity.pre] == list(map(cast, graph.edge_attrs["k"].tolist()))
    pd.testing.assert_frame_equal(df, before)


def test_dataframe_labels_given_and_columns_of_other_width():
    df = pd.DataFrame({"pre": np.array([2**63 + 1, 4], np.uint64), "post": np.array([4, 5], np.int64)})
    assert se.from_dataframe(df).nodes == (4, 5, 2**63 + 1)
    assert se.from_dataframe(df, labels=[5, 9, 2**63 + 1, 4]).connectivity.pre.tolist() == [3, 2]
    assert se.from_dataframe(df.iloc[:0]).nodes == ()


def test_dataframe_errors():
    df = pd.DataFrame({"pre": [1, None], "post": [1, 2], "name": ["a", "b"], "real": [1.0, 2.0], "w": [1.0, np.nan]})
    with pytest.raises(ValueError, match="pre: expected a value in each row of column 'pre', got none in row 1"):
        se.from_dataframe(df)
    with pytest.raises(ValueError, match="weight: expected a value in each row of column 'w', got none in row 1"):
        se.from_dataframe(df, pre="post", weight="w")
    with pytest.raises(ValueError, match="post: expected a single column 'to', got"):
        se.from_dataframe(df, pre="post", post="to")
    with pytest.raises(TypeError, match="pre: expected integers or strings as ids in column 'real', got floats"):
        se.from_dataframe(df, pre="real")
    with pytest.raises(
        TypeError, match="pre and post: expected ids that can be sorted, got those in 'post' and 'name'"
    ):
        se.from_dataframe(df, pre="post", post="name")
    labelled = se.from_dataframe(df, pre="post", post="name", weight=None, labels=[1, 2, "b", "a"])
    assert labelled.connectivity.pre.tolist() == [1, 0]


KINDS = [nx.Graph, nx.DiGraph, nx.MultiGraph, nx.MultiDiGraph]


@given(edge_lists(square=True), st.sampled_from(KINDS))
def test_networkx(drawn, kind):
    edges, shape = drawn
    names = ["n0", ("n", 1), 2, frozenset([3]), 4.5][: shape[0]][::-1]
    G = kind()
    G.add_nodes_from((name, {"rank": 10 * k}) for k, name in enumerate(names))
    for k, (pre, post, weight) in enumerate(edges):
        G.add_edge(names[pre], names[post], weight=weight, tag=f"t{k}")
    before = copy.deepcopy(G)
    expected = []
    for u, v, row in G.edges(data=True):
        i, j = names.index(u), names.index(v)
        expected.append((i, j, row["weight"], row["tag"]))
        if not G.is_directed() and i != j:
            expected.append((j, i, row["weight"], row["tag"]))
    graph = se.from_networkx(G)
    assert graph.nodes == tuple(names) and graph.node_attrs["rank"].tolist() == [10 * k for k in range(len(names))]
    tags = graph.edge_attrs["tag"].tolist() if edges else []
    assert [(*synapse, tag) for synapse, tag in zip(synapses(graph), tags)] == canonical(expected)
    assert nx.utils.graphs_equal(G, before)
    np.testing.assert_array_equal(graph.to_dense(), nx.to_numpy_array(G, list(G), dtype=np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_networkx_without_edges_or_weights(kind):
    assert se.from_networkx(kind()).connectivity.shape == (0, 0)
    G = kind()
    G.add_node("a")
    assert se.from_networkx(G).nodes == ("a",)
    G.add_edge("a", "a")
    assert synapses(se.from_networkx(G)) == [(0, 0, 1.0)]
    G.add_edge("a", "b")
    assert set(se.from_networkx(G).weight.tolist()) == {1.0}
    assert set(se.from_networkx(G, weight=None, dtype=jnp.float16).weight.tolist()) == {1.0}


def attributes(*values):
    G = nx.DiGraph()
    G.add_nodes_from((k, {} if value is None else {"x": value}) for k, value in enumerate(values))
    return se.from_networkx(G).node_attrs["x"]


def test_attribute_kinds():
    assert attributes(BIG + 1, 3).tolist() == [BIG + 1, 3]
    assert attributes(2**63, 3).dtype == np.uint64
    assert attributes(2**70, 3).tolist() == [2**70, 3]
    assert attributes(1, 2.5).tolist() == [1.0, 2.5]
    assert attributes(True, np.False_).dtype == bool
    assert attributes("a", "bc").dtype.kind == "U"
    assert attributes("a\0", "b").tolist() == ["a\0", "b"]
    assert attributes((1, 2), [3, 4.5]).tolist() == [[1.0, 2.0], [3.0, 4.5]]
    assert attributes(("a", 1), ("b", 2)).tolist() == [("a", 1), ("b", 2)]
    assert attributes([[1], [2, 3]], [4, [5]]).dtype == object
    assert attributes({"k": 1}, {"k": 2}).tolist() == [{"k": 1}, {"k": 2}]


@pytest.mark.parametrize(
    "values, match",
    [
        ((1, None, None), "G: expected node attribute 'x' on every node or on none, got none on 1"),
        ((1, 2, "a"), "G: expected node attribute 'x' of one kind, got 'a' .str. on 2 and number before it"),
        (([1], [1, 2], [1]), "G: expected node attribute 'x' of one kind, got .1, 2. .array of shape .2,.. on 1 and"),
        ((1.5, 2**53 + 1), "G: expected node attribute 'x' of one type, got the integer 9007199254740993 on 1 among"),
    ],
)
def test_attribute_errors(values, match):
    with pytest.raises(ValueError, match=match):
        attributes(*values)


@pytest.mark.parametrize(
    "rows, arguments, match",
    [
        (
            [{"weight": 1}, {}],
            {},
            "G: expected edge attribute 'weight' on every edge or on none, got none on .'b', 'c'.",
        ),
        (
            [{"weight": 1, "d": 1}, {"weight": 1}],
            {},
            "G: expected edge attribute 'd' on every edge or on none, got none on .'b', 'c'.",
        ),
        ([{}, {"d": 1}], {}, "G: expected edge attribute 'd' on every edge or on none, got none on .'a', 'b'."),
        (
            [{"weight": 1}, {"weight": "1"}],
            {},
            "G: expected real numbers as weights, got weight='1' on edge .'b', 'c'.",
        ),
        (
            [{"weight": 1}, {"weight": np.inf}],
            {},
            "weight: expected numbers that are finite in.*, got inf for synapse 'b' -> 'c' .entry 1.",
        ),
        (
            [{"weight": 1}, {"weight": 1}],
            {"weight": "w"},
            "weight: expected a single column 'w', got .'weight'.",
        ),
    ],
)
def test_networkx_edge_errors(rows, arguments, match):
    G = nx.DiGraph([("a", "b", rows[0]), ("b", "c", rows[1])])
    with pytest.raises(ValueError, match=match):
        se.from_networkx(G, **arguments)


def test_wrong_types():
    with pytest.raises(TypeError, match="G: expected a networkx graph, got list."):
        se.from_networkx([])
    with pytest.raises(TypeError, match="A: expected a scipy sparse matrix, got ndarray"):
        se.from_scipy(np.eye(2))
    for convert, name in ((se.from_bcoo, "BCOO"), (se.from_bcsr, "BCSR"), (se.from_csr, "CSR")):
        with pytest.raises(TypeError, match=f"M: expected a jax.experimental.sparse.{name}, got ndarray"):
            convert(np.eye(2))
    with pytest.raises(TypeError, match="M: expected a scipy sparse matrix, BCOO, BCSR or CSR, got ndarray"):
        matrix_connectivity(np.eye(2))


def check_order(matrix, data, edges):
    """`edges` as the matrix stores them: order and converter agree with the oracle, slot by slot."""
    conn, order = matrix_connectivity(matrix)
    assert order.dtype == jnp.int32
    assert list(zip(conn.pre.tolist(), conn.post.tolist(), np.asarray(data)[np.asarray(order)].tolist())) == canonical(
        edges
    )


@given(edge_lists(), st.sampled_from(FORMATS), st.sampled_from(["array", "matrix"]))
def test_scipy_formats(drawn, form, flavour):
    edges, shape = drawn
    pre, post, weight = columns(edges)
    # Explicit zeros are kept by all formats but DIA; BSR, DIA, DOK and LIL have no parallel entries.
    coo = getattr(sp, f"coo_{flavour}")((weight, (np.array(pre, int), np.array(post, int))), shape=shape, dtype=float)
    if form == "coo":
        matrix = coo
    elif form in ("csr", "csc"):
        major, minor = (pre, post) if form == "csr" else (post, pre)
        pick = sorted(range(len(edges)), key=lambda k: major[k])  # minor indices unsorted, duplicates kept
        edges = [edges[k] for k in pick]
        ptr = np.cumsum([0, *(major.count(unit) for unit in range(shape[form == "csc"]))])
        stored = [edge[2] for edge in edges], np.array([minor[k] for k in pick], int), ptr
        matrix = getattr(sp, f"{form}_{flavour}")(stored, shape=shape)
        assert matrix.nnz == len(edges)
    else:
        matrix = coo.asformat(form)
    flat = matrix if form in ("coo", "csr", "csc") else matrix.tocoo()
    if flat is not matrix:
        edges = list(zip(*(ends.tolist() for ends in flat.coords), flat.data.tolist()))
    before = matrix.copy()
    check_order(matrix, flat.data, edges)
    graph = se.from_scipy(matrix)
    assert synapses(graph) == canonical(edges)
    np.testing.assert_array_equal(graph.to_dense(), matrix.toarray())
    assert matrix.nnz == before.nnz and matrix.dtype == before.dtype
    if form in ("coo", "csr", "csc", "bsr"):
        np.testing.assert_array_equal(matrix.data, before.data)
    if form in ("csr", "csc"):
        np.testing.assert_array_equal(matrix.indices, before.indices)
    assert synapses(se.from_scipy(graph.to_scipy())) == synapses(graph)


def test_scipy_spare_room_and_other_dimensions():
    matrix = sp.csr_array((np.arange(1.0, 6.0), np.array([1, 0, 1, 0, 0]), np.array([0, 1, 3])), shape=(2, 2))
    check_order(matrix, matrix.data, [(0, 1, 1.0), (1, 0, 2.0), (1, 1, 3.0)])
    assert len(synapses(se.from_scipy(matrix))) == 3
    with pytest.raises(ValueError, match="M: expected two dimensions, .num_pre, num_post., got shape .3,.."):
        se.from_scipy(sp.coo_array(np.ones(3)))
    matrix.indptr[1] = 4
    with pytest.raises(
        ValueError, match="M.indptr: expected pointers that ascend from 0 to at most 3 entries, got .0 4 3.."
    ):
        se.from_scipy(matrix)


# Every new shape compiles.
@settings(max_examples=12)
@given(edge_lists(), st.integers(0, 3), st.randoms())
def test_bcoo(drawn, padding, random):
    edges, shape = drawn
    slots = [*edges, *[(*shape, np.nan)] * padding]
    random.shuffle(slots)
    pre, post, weight = columns(slots)
    indices = np.array([pre, post], np.int32).T.reshape(-1, 2)
    matrix = BCOO((jnp.array(weight, jnp.float32), jnp.array(indices)), shape=shape)
    alive = [slot for slot in slots if slot[2] == slot[2]]
    check_order(matrix, weight, alive)
    graph = se.from_bcoo(matrix)
    assert synapses(graph) == canonical(alive)
    x = jnp.arange(float(shape[0]))
    finite = BCOO((jnp.nan_to_num(matrix.data), matrix.indices), shape=shape)
    np.testing.assert_allclose(x @ graph.to_dense(), x @ finite, atol=1e-5)
    assert synapses(se.from_bcoo(graph.to_bcoo())) == synapses(graph)


def test_bcoo_padding_that_jax_makes_and_refusals():
    W = jnp.array([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    for axis in (0, 1):
        both = bcoo_concatenate([BCOO.fromdense(W, nse=4)] * 2, dimension=axis)
        np.testing.assert_array_equal(se.from_bcoo(both).to_dense(), jnp.concatenate([W, W], axis))
    with pytest.raises(ValueError, match="M: expected two sparse dimensions, got n_batch=1, n_dense=0"):
        matrix_connectivity(BCOO.fromdense(W, n_batch=1))
    with pytest.raises(ValueError, match="M: expected two sparse dimensions, got n_batch=0, n_dense=1"):
        matrix_connectivity(BCOO.fromdense(W, n_dense=1))
    with pytest.raises(ValueError, match=r"M: expected two dimensions, .*, got shape \(2, 2, 2\)"):
        matrix_connectivity(BCOO.fromdense(jnp.ones((2, 2, 2))))
    with pytest.raises(ValueError, match="pre: expected indices from 0 and below 2, .*, got 7 at entry 0"):
        se.from_bcoo(BCOO((jnp.ones(1), jnp.array([[7, 0]])), shape=(2, 3)))
    with pytest.raises(TypeError, match="M.indices: expected an array with values, got a traced one"):
        jax.jit(lambda matrix: matrix_connectivity(matrix)[1])(BCOO.fromdense(W))
    fixed = BCOO.fromdense(W)
    with pytest.raises(TypeError, match="M.data: expected an array with values, got a traced one"):
        jax.jit(lambda data: se.from_bcoo(BCOO((data, fixed.indices), shape=(2, 3))).weight)(fixed.data)


@given(edge_lists(), st.integers(0, 3), st.sampled_from([BCSR, CSR]))
def test_bcsr_and_csr(drawn, padding, kind):
    edges, shape = drawn
    edges = sorted(edges, key=lambda edge: edge[0])
    pre, post, weight = columns(edges)
    ptr = np.cumsum([0, *(pre.count(unit) for unit in range(shape[0]))])
    stored = [*weight, *[np.nan] * padding], [*post, *[shape[1]] * padding], ptr
    arrays = [jnp.array(part, dtype) for part, dtype in zip(stored, (jnp.float32, jnp.int32, jnp.int32))]
    matrix = kind(tuple(arrays), shape=shape)
    check_order(matrix, stored[0], edges)
    assert synapses((se.from_bcsr if kind is BCSR else se.from_csr)(matrix)) == canonical(edges)


@given(edge_lists())
def test_dense(drawn):
    edges, shape = drawn
    W = np.zeros(shape)
    for pre, post, weight in edges:
        W[pre, post] = weight
    expected = [(i, j, W[i, j]) for j in range(shape[1]) for i in range(shape[0]) if W[i, j] != 0]
    assert (
        synapses(se.from_dense(W))
        == expected
        == synapses(se.from_dense(W.tolist()))
        == synapses(se.from_dense(jnp.array(W)))
    )


def test_input_arrays_stay_the_callers():
    pre, post, weight = np.array([0, 1], np.int32), np.array([0, 1], np.int32), np.ones(2, np.float32)
    graph = se.from_edges(pre, post, weight)
    for array in (pre, post, weight):
        array[:] = 0
    assert synapses(graph) == [(0, 0, 1.0), (1, 1, 1.0)]


def test_float64_only_where_jax_has_it():
    with pytest.raises(ValueError, match="dtype: expected 32 bits at most without 64-bit JAX, got float64"):
        se.from_edges([0], [0], dtype=jnp.float64)
    with jax.enable_x64(True):
        graph = se.from_edges([0], [0], [0.1], dtype=jnp.float64)
        assert graph.weight.dtype == jnp.float64 and graph.weight[0] == 0.1
        assert graph.connectivity.post_ptr.dtype == jnp.int32 and se.from_edges([0], [0]).weight.dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype: expected a floating type, for example 'float32', got int32."):
        se.from_edges([0], [0], dtype=jnp.int32)


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        (
            {"weight": [1.0, np.nan]},
            ValueError,
            "weight: expected numbers that are finite in.*, got nan for synapse 1 -> 2 .entry 1.",
        ),
        (
            {"weight": [1.0, 1e300]},
            ValueError,
            "weight: expected numbers that are finite in.*, got 1e.300 for synapse 1 -> 2 .entry 1.",
        ),
        ({"weight": [1.0]}, ValueError, "weight: expected one entry per synapse, .2,., got shape .1,.."),
        ({"weight": ["a", "b"]}, TypeError, "weight: expected real numbers, got <U1"),
        ({"weight": [1j, 2j]}, TypeError, "weight: expected real numbers, got complex128"),
        ({"duplicates": "merge"}, ValueError, "duplicates: expected 'keep', 'sum' or 'error', got 'merge'."),
        ({"self_loops": "no"}, ValueError, "self_loops: expected 'keep', 'drop' or 'add', got 'no'."),
        (
            {"shape": (2, 3), "self_loops": "add"},
            ValueError,
            "self_loops: expected 'keep' for a graph that is not square, of shape .2, 3., got 'add'.",
        ),
        (
            {"shape": (2, 2)},
            ValueError,
            "post: expected indices from 0 and below 2, the number of units, got 2 at entry 1",
        ),
        ({"labels": [0, 1]}, ValueError, "post: expected one of the 2 labels, got 2 at entry 1."),
        ({"labels": [1, 2]}, ValueError, "pre: expected one of the 2 labels, got 0 at entry 0."),
        ({"labels": ["a", "b"]}, ValueError, "pre: expected one of the 2 labels, got 0 at entry 0."),
        ({"labels": []}, ValueError, "pre: expected one of the 0 labels, got 0 at entry 0."),
        (
            {"labels": [0, 1, 2], "shape": (2, 2)},
            ValueError,
            "labels: expected one per node for shape .2, 2., senders first, got 3.",
        ),
        ({"labels": [0, 1, 0]}, ValueError, "labels: expected distinct ones, got 0 at the entries 0 and 2"),
        (
            {"edge_attrs": {"d": [1]}},
            ValueError,
            "edge_attrs.'d'.: expected 2 entries along the first axis, got shape .1,..",
        ),
        (
            {"edge_attrs": {"d": [1, 2]}, "self_loops": "add"},
            ValueError,
            "self_loops: expected 'keep' or 'drop' where there are edge attributes, got 'add', and",
        ),
    ],
)
def test_edge_errors(arguments, error, match):
    with pytest.raises(error, match=match):
        se.from_edges([0, 1], [0, 2], **arguments)


def test_more_edge_errors():
    with pytest.raises(ValueError, match="pre and post: expected indices that fit int32, got 720575940600000000"):
        se.from_edges([720575940600000000], [1])
    with pytest.raises(TypeError, match="pre: expected integers, as the labels are, got the float 1.0 at entry 0"):
        se.from_edges([1.0], [1], labels=[1])
    with pytest.raises(
        ValueError, match="duplicates: expected 'keep' or 'sum' .*, got 'error', and synapse 'a' -> 'b' twice"
    ):
        se.from_edges(["a", "a"], ["b", "b"], labels=["a", "b"], duplicates="error")
    assert len(synapses(se.from_edges([0, 1], [1, 0], duplicates="error"))) == 2
    with pytest.raises(ValueError, match="weight: expected .*, got 6.0.* for the sum over synapse 0 -> 1"):
        se.from_edges([0, 0], [1, 1], [3e38, 3e38], duplicates="sum")
    with pytest.raises(ValueError, match="edge attribute 'd' differs .*, got 'sum', which merges synapse 1 -> 0"):
        se.from_edges([1, 1], [0, 0], edge_attrs={"d": [1, 2]}, duplicates="sum")
    kept = se.from_edges([1, 1], [0, 0], edge_attrs={"d": [[1, 2]] * 2}, duplicates="sum")
    assert kept.edge_attrs["d"].tolist() == [[1, 2]] and synapses(kept) == [(1, 0, 2.0)]
    with pytest.raises(ValueError, match=r"W: expected two dimensions, .*, got shape \(2,\)"):
        se.from_dense(np.ones(2))
    with pytest.raises(ValueError, match=r"weight: expected .*, got nan for synapse 0 -> 1 \(entry 0\)"):
        se.from_dense([[0.0, np.nan], [0.0, 0.0]])
