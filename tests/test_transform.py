"""Transforms beside dense matrices of numpy, and beside scipy and networkx."""

import itertools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from graph_cases import aligned, each, graphs, rows, without_attrs
from hypothesis import settings, strategies as st

import sparse_etrace as se
from sparse_etrace import transform as tf


def dense(graph):
    found = np.zeros(graph.connectivity.shape)
    np.add.at(found, (graph.connectivity.pre, graph.connectivity.post), np.asarray(graph.weight, float))
    return found


def ends(graph):
    return np.asarray(graph.connectivity.pre), np.asarray(graph.connectivity.post)


def weights_of_pairs(pre, post, weight):
    found = {}
    for i, j, w in zip(np.asarray(pre).tolist(), np.asarray(post).tolist(), np.asarray(weight).tolist()):
        found.setdefault((i, j), []).append(w)
    return found


def by_pair(graph):
    return {
        pair: w
        for pair, (w,) in weights_of_pairs(graph.connectivity.pre, graph.connectivity.post, graph.weight).items()
    }


LOOP = {"id": -1, "kind": "loop"}


@each(graphs(), st.sampled_from([0.5, -2.0]))
def test_self_loops(graph, fill):
    size, matrix = len(graph.nodes), dense(graph)
    pre, post = ends(graph)
    has_one = np.isin(np.arange(size), pre[pre == post])
    each = fill * (1 + np.arange(size))
    for made, origin, added in [
        (*tf.add_self_loops(graph, each, edge_attrs=LOOP, with_origin=True), np.diag(each)),
        (*tf.add_self_loops(graph, fill, edge_attrs=LOOP, with_origin=True), fill * np.eye(size)),
        (*tf.add_remaining_self_loops(graph, fill, edge_attrs=LOOP, with_origin=True), np.diag(fill * ~has_one)),
        (*tf.remove_self_loops(graph, with_origin=True), -np.diag(np.diag(matrix))),
    ]:
        np.testing.assert_array_equal(dense(made), matrix + added)
        aligned(graph, made, origin, "id", "kind")
        new = np.setdiff1d(np.arange(made.connectivity.num_synapses), origin.new)
        assert set(made.edge_attrs["kind"][new].tolist()) <= {"loop"}
    kept = rows(tf.remove_self_loops(graph), "id")
    assert kept == [row for row in rows(graph, "id") if row[0] != row[1]]


HOW = {"sum": sum, "mean": lambda w: sum(w) / len(w), "max": max, "first": lambda w: w[0]}


@each(graphs(square=False), st.sampled_from(list(HOW)))
def test_coalesce(graph, reduce):
    conn = graph.connectivity
    made, origin = tf.coalesce(without_attrs(graph, "id"), reduce, with_origin=True)
    pairs = weights_of_pairs(conn.pre, conn.post, graph.weight)
    assert by_pair(made) == {pair: np.float32(HOW[reduce](w)) for pair, w in pairs.items()}
    assert origin.old.tolist() == list(range(conn.num_synapses)) and made.nodes == graph.nodes
    np.testing.assert_array_equal(ends(made)[0][origin.new], conn.pre)
    np.testing.assert_array_equal(made.edge_attrs["kind"][origin.new], graph.edge_attrs["kind"])
    first = tf.coalesce(graph, "first").edge_attrs["id"]
    assert first.tolist() == np.unique(origin.new, return_index=True)[1].tolist()
    if reduce == "sum":
        summed = graph.to_scipy()
        summed.sum_duplicates()
        np.testing.assert_array_equal(made.to_scipy().data, summed.data)
        assert se.from_scipy(summed).connectivity.num_synapses == made.connectivity.num_synapses
    if len(pairs) < conn.num_synapses:
        with pytest.raises(ValueError, match=r"reduce: expected another way.*, got 'error', and \d -> \d twice"):
            tf.coalesce(graph, "error")
        with pytest.raises(ValueError, match="reduce: expected 'first' where edge attribute 'id' differs .* got 'sum'"):
            tf.coalesce(graph)
    else:
        assert rows(tf.coalesce(graph, "error"), "id") == rows(graph, "id")


@each(graphs(), st.sampled_from(list(HOW)))
def test_to_undirected(graph, reduce):
    graph = without_attrs(graph, "id", "kind")
    made, origin = tf.to_undirected(graph, reduce, with_origin=True)
    conn = graph.connectivity
    both = weights_of_pairs(np.r_[conn.pre, conn.post], np.r_[conn.post, conn.pre], np.r_[graph.weight, graph.weight])
    assert by_pair(made) == {pair: np.float32(HOW[reduce](w)) for pair, w in both.items()}
    if reduce == "sum":
        np.testing.assert_array_equal(dense(made), (graph.to_scipy() + graph.to_scipy().T).toarray())
    np.testing.assert_array_equal(np.bincount(origin.old, minlength=conn.num_synapses), 2)
    again = se.Connectivity.from_edges(made.connectivity.pre, made.connectivity.post, conn.shape)
    for same in (se.Graph(again, made.weight), tf.to_undirected(graph, reduce)):
        for one, two in zip(jax.tree.leaves(made), jax.tree.leaves(same), strict=True):
            np.testing.assert_array_equal(one, two)
    for old, new in zip(origin.old.tolist(), origin.new.tolist()):
        before, after = rows(graph)[old][:2], rows(made)[new][:2]
        assert after in (before, before[::-1])


@each(graphs(square=False))
def test_transpose(graph):
    made, origin = tf.transpose(graph, with_origin=True)
    np.testing.assert_array_equal(dense(made), dense(graph).T)
    ends = slice(0 if graph.nodes != range(len(graph.nodes)) else 2, None)  # positions are others now
    expected = [(post, pre, *rest)[ends] for pre, post, *rest in rows(graph, "id")]
    assert [row[ends] for row in rows(made, "id")] == [
        expected[k] for k in origin.old
    ] and origin.new.tolist() == sorted(origin.new.tolist())
    back = tf.transpose(made)
    assert rows(back, "id") == rows(graph, "id") and back.nodes == graph.nodes
    assert back.node_attrs["place"].tolist() == graph.node_attrs["place"].tolist()


@each(graphs(), st.data())
def test_subgraph(graph, data):
    places = data.draw(st.lists(st.sampled_from(range(len(graph.nodes))), unique=True) if graph.nodes else st.just([]))
    labels = [graph.nodes[k] for k in places]
    made, origin = tf.subgraph(graph, labels, with_origin=True)
    assert list(made.nodes) == labels
    np.testing.assert_array_equal(dense(made), dense(graph)[np.ix_(places, places)])
    aligned(graph, made, origin, "id")
    expected = graph.to_networkx().subgraph(labels).edges(data="weight")
    assert sorted(row[:3] for row in rows(made)) == sorted(expected)
    mask = np.isin(np.arange(len(graph.nodes)), places)
    for chosen in (mask, jnp.asarray(mask)):
        assert rows(tf.subgraph(graph, chosen), "id") == rows(
            tf.subgraph(graph, [graph.nodes[k] for k in sorted(places)]), "id"
        )


@each(graphs(), st.randoms())
def test_permute(graph, random):
    order = np.array(random.sample(range(len(graph.nodes)), len(graph.nodes)), int)
    made, origin = tf.permute(graph, order, with_origin=True)
    np.testing.assert_array_equal(dense(made), dense(graph)[np.ix_(order, order)])
    np.testing.assert_array_equal(np.asarray(made.weight)[origin.new], np.asarray(graph.weight)[origin.old])
    assert made.node_attrs["place"].tolist() == graph.node_attrs["place"][order].tolist()
    assert made.nodes == (graph.nodes if graph.nodes == range(order.size) else tuple(graph.nodes[k] for k in order))
    back = tf.permute(made, np.argsort(order))
    assert rows(back, "kind") == rows(graph, "kind") and back.nodes == graph.nodes


@each(graphs(least=2), st.data())
def test_k_hop(graph, data):
    G = graph.to_networkx()
    walks = {"in": G.reverse(), "out": G, "both": G.to_undirected()}
    seeds = data.draw(st.lists(st.sampled_from(list(graph.nodes)), unique=True, max_size=2))
    for (direction, walk), k in itertools.product(walks.items(), range(3)):
        reached = {node for seed in seeds for node in nx.single_source_shortest_path_length(walk, seed, k)}
        made, origin = tf.k_hop(graph, seeds, k, direction, with_origin=True)
        assert list(made.nodes) == [label for label in graph.nodes if label in reached]
        assert sorted(row[:3] for row in rows(made)) == sorted(G.subgraph(reached).edges(data="weight"))
        aligned(graph, made, origin, "id")


def test_k_hop_of_a_chain():
    chain = se.from_edges([0, 1, 2, 3, 5], [1, 2, 3, 4, 5])
    for k, direction, found in [
        (0, "in", {2}),
        (1, "in", {1, 2}),
        (3, "in", {0, 1, 2}),
        (1, "out", {2, 3}),
        (1, "both", {1, 2, 3}),
    ]:
        assert set(tf.k_hop(chain, [2], k, direction).nodes) == found


@each(graphs(least=1), st.sampled_from(["weak", "strong"]))
def test_largest_component(graph, connection):
    G = graph.to_networkx()
    parts = list((nx.weakly_connected_components if connection == "weak" else nx.strongly_connected_components)(G))
    largest = [part for part in parts if len(part) == max(map(len, parts))]
    made, origin = tf.largest_component(graph, connection, with_origin=True)
    assert set(made.nodes) == min(largest, key=lambda part: min(graph.index_of(label) for label in part))
    aligned(graph, made, origin, "id")


@each(graphs(square=False), st.sampled_from(["gcn", "row", "column", "in", "out"]))
def test_normalize(graph, kind):
    matrix, (num_pre, num_post) = dense(graph), graph.connectivity.shape
    if kind == "gcn" and num_pre != num_post:
        with pytest.raises(ValueError, match="graph: expected a square one, where both ends have an in-degree, got"):
            tf.normalize(graph)
        return
    made = tf.normalize(graph, kind)
    assert made.connectivity.pre is graph.connectivity.pre and rows(made, "id")[:0] == []
    assert np.isfinite(np.asarray(made.weight)).all() and made.weight.dtype == jnp.float32
    with np.errstate(all="ignore"):
        if kind == "gcn":
            factor = matrix.sum(0) ** -0.5
            factor = np.where(matrix.sum(0) > 0, factor, 0)
            expected = factor[:, None] * matrix * factor
        else:
            sizes = dense(graph.with_weight(abs(graph.weight))) if kind in ("in", "out") else matrix
            degree = sizes.sum(1 if kind in ("row", "out") else 0, keepdims=True)
            expected = np.where(degree == 0, 0, matrix / degree)
    np.testing.assert_allclose(dense(made), expected, rtol=1e-6, atol=1e-6)


def test_normalize_where_degrees_are_negative_or_zero():
    graph = se.from_edges([0, 1, 2, 0, 0, 1], [0, 1, 1, 2, 1, 3], [4.0, -3.0, 2.0, 1.0, 2.0, 9.0], shape=(5, 5))
    degree = np.array([4.0, 1.0, 1.0, 9.0, 0.0])  # received; sent: 7, 6, 2, 0, 0
    np.testing.assert_allclose(dense(tf.normalize(graph))[0, :3], np.array([4, 2, 1]) / np.sqrt(4 * degree[:3]))
    below = graph.with_weight(-graph.weight)
    assert not tf.normalize(below).weight.any() and np.isfinite(tf.normalize(below, "row").weight).all()
    np.testing.assert_allclose(dense(tf.normalize(below, "row")).sum(1), [1, 1, 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(dense(tf.normalize(below, "column")).sum(0), [1, 1, 1, 1, 0], rtol=1e-6)


def test_strengths_do_not_cancel():
    """Where excitation and inhibition are in balance, their sum would divide by next to nothing."""
    graph = se.from_edges([0, 1, 2], [3, 3, 3], [3.0, -2.75, -0.25])
    assert tf.normalize(graph, "column").weight.tolist() == [0, 0, 0]
    assert tf.normalize(graph, "in").weight.tolist() == pytest.approx([0.5, -2.75 / 6, -0.25 / 6])
    assert tf.normalize(graph, "out").weight.tolist() == [1, -1, -1]


def test_normalize_by_spectral_radius():
    graph = se.from_edges([0, 1, 1], [1, 0, 1], [2.0, -8.0, 1.0])
    made = tf.normalize(graph, "spectral")
    assert np.abs(np.linalg.eigvals(dense(made))).max() == pytest.approx(1, rel=1e-6)
    assert made.weight[0] / made.weight[1] == -4
    with pytest.raises(ValueError, match="graph: expected a cycle of non-zero weights, got none"):
        tf.normalize(se.from_edges([0], [1]), "spectral")


def test_what_overflows_is_said():
    graph = se.from_edges([0, 0], [1, 2], [3e38, -2.9999998e38])
    assert np.isfinite(tf.normalize(graph, "row").weight).all()
    tiny = se.from_edges([0, 0, 0], [1, 2, 3], [3e38, -3e38, 1e-38])
    with pytest.raises(ValueError, match="weight: expected numbers that are finite in float32, got .* synapse 0 -> 1"):
        tf.normalize(tiny, "row")
    with pytest.raises(ValueError, match="weight: expected numbers that are finite in float32, got .* synapse 0 -> 1"):
        tf.coalesce(se.from_edges([0, 0], [1, 1], [3e38, 3e38]))
    for kwargs in ({}, {"with_origin": True}):
        with pytest.raises(
            ValueError, match="what becomes one synapse 1 -> 0. Its weights are finite, their sum is not"
        ):
            tf.to_undirected(se.from_edges([0, 1], [1, 0], [3e38, 3e38]), **kwargs)


@each(graphs(), st.integers(1, 3), st.booleans())
def test_diffusion_supports(graph, steps, backward):
    matrix = dense(graph)

    def walk(matrix):
        degree = matrix.sum(1, keepdims=True)
        return np.divide(matrix, degree, out=np.zeros_like(matrix), where=degree != 0)

    for kind in ("power", "chebyshev"):
        expected = [np.eye(len(matrix))]
        for one in [walk(matrix), walk(matrix.T)][: 1 + backward]:
            terms = [np.eye(len(matrix)), one]
            for _ in range(steps - 1):
                terms.append(one @ terms[-1] if kind == "power" else 2 * one @ terms[-1] - terms[-2])
            expected += terms[1:]
        found = tf.diffusion_supports(graph, steps, backward, kind)
        assert len(found) == 1 + steps * (1 + backward)
        for support, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(dense(support), right, rtol=1e-5, atol=1e-5 * (1 + np.abs(right).max(initial=0)))
            assert support.nodes == graph.nodes and "place" in support.node_attrs


@each(graphs(), st.integers(1, 4), st.sampled_from([2.0, 1.5]))
def test_chebyshev_supports(graph, order, largest):
    matrix = dense(graph)
    np.fill_diagonal(matrix, 0)
    with np.errstate(all="ignore"):
        factor = np.where(matrix.sum(0) > 0, matrix.sum(0) ** -0.5, 0)
    eye = np.eye(len(matrix))
    scaled = 2 / largest * (eye - factor[:, None] * matrix * factor) - eye
    expected = [eye, scaled]
    for _ in range(order):
        expected.append(2 * scaled @ expected[-1] - expected[-2])
    found = tf.chebyshev_supports(graph, order, largest)
    assert len(found) == order
    for support, right in zip(found, expected):
        np.testing.assert_allclose(dense(support), right, rtol=1e-5, atol=1e-5 * (1 + np.abs(right).max(initial=0)))


def of_pairs(graph, made, turned=False, loops=True):
    """Which synapse of each pair of nodes, or of the pair turned round, became which, one by one."""
    where = {pair: k for k, pair in enumerate(zip(*(end.tolist() for end in ends(made))))}
    pairs = enumerate(zip(*(end.tolist() for end in ends(graph))))
    found = ((where.get(pair[::-1] if turned else pair), old, pair) for old, pair in pairs)
    return sorted((new, old) for new, old, (i, j) in found if new is not None and (loops or i != j))


def moved(origin):
    assert (np.diff(origin.new) >= 0).all() and {origin.old.dtype, origin.new.dtype} == {np.dtype(np.int32)}
    return list(zip(origin.new.tolist(), origin.old.tolist()))


@pytest.mark.parametrize("steps, backward", [(1, False), (2, True)])
def test_which_synapse_is_in_which_support(steps, backward):
    """With parallel synapses, some on one node, and a pair whose weights cancel."""
    rng = np.random.default_rng(0)
    pre, post = rng.integers(0, 6, (2, 24))
    graph = se.from_edges([*pre, 6, 6], [*post, 0, 0], [*rng.integers(1, 4, 24), 1, -1], (7, 7))
    found, origins = tf.diffusion_supports(graph, steps, backward, with_origin=True)
    expected = {
        1: of_pairs(graph, found[1]),
        1 + backward * steps: of_pairs(graph, found[1 + backward * steps], backward),
    }
    assert [moved(origin) for origin in origins] == [expected.get(k, []) for k in range(len(found))]
    assert {len(pairs) for pairs in expected.values()} == {24}
    found, origins = tf.chebyshev_supports(graph, 1 + steps, 1.5, with_origin=True)
    expected = [of_pairs(graph, made, loops=False) if k == 1 else [] for k, made in enumerate(found)]
    assert [moved(origin) for origin in origins] == expected and 0 < len(expected[1]) < 24


@each(graphs(square=False), st.integers(0, 2**16))
def test_keep_synapses(graph, seed):
    mask = np.random.default_rng(seed).random(graph.connectivity.num_synapses) < 0.5
    made, origin = tf.keep_synapses(graph, mask, with_origin=True)
    aligned(graph, made, origin, "id", "kind")
    assert origin.old.tolist() == np.flatnonzero(mask).tolist() and made.nodes == graph.nodes
    assert rows(tf.keep_synapses(graph, np.flatnonzero(mask)[::-1]), "id") == rows(made, "id")


@each(graphs(square=False), st.integers(0, 9))
def test_shuffle_weights(graph, seed):
    key = jax.random.key(seed)
    for within, unit in ((None, None), ("pre", graph.connectivity.pre), ("post", graph.connectivity.post)):
        made, origin = tf.shuffle_weights(graph, key, within=within, with_origin=True)
        assert origin.new.tolist() == sorted(origin.old.tolist()) == list(range(graph.connectivity.num_synapses))
        np.testing.assert_array_equal(made.weight, np.asarray(graph.weight)[origin.old])
        if unit is not None:
            np.testing.assert_array_equal(np.asarray(unit)[origin.old], unit)
        assert made.connectivity.pre is graph.connectivity.pre
        for one in [None] if unit is None else set(unit.tolist()):
            mine = slice(None) if one is None else np.asarray(unit) == one
            assert sorted(np.asarray(made.weight)[mine]) == sorted(np.asarray(graph.weight)[mine])
        again = tf.shuffle_weights(graph, jax.random.key_data(key), within=within)
        np.testing.assert_array_equal(made.weight, again.weight)


def pairs_of(graph):
    return list(zip(graph.connectivity.pre.tolist(), graph.connectivity.post.tolist()))


@each(graphs(square=False), st.integers(0, 9))
def test_rewire_degrees(graph, seed):
    made, origin = tf.rewire_degrees(graph, jax.random.key(seed), with_origin=True)
    for name in ("post_ptr", "pre_ptr"):
        np.testing.assert_array_equal(getattr(made.connectivity, name), getattr(graph.connectivity, name))
    counts, before = ({pair: found.count(pair) for pair in found} for found in (pairs_of(made), pairs_of(graph)))
    assert all(count <= max(before.get(pair, 0), 1) for pair, count in counts.items())
    if graph.connectivity.num_pre == graph.connectivity.num_post:
        assert [(p, c) for p, c in sorted(counts.items()) if p[0] == p[1]] == [
            (p, c) for p, c in sorted(before.items()) if p[0] == p[1]
        ]
    one, two = rows(graph, "id"), rows(made, "id")
    assert origin.old.size == len(one)
    for old, new in zip(origin.old.tolist(), origin.new.tolist()):
        assert (one[old][0], *one[old][2:]) == (two[new][0], *two[new][2:])
    assert pairs_of(tf.rewire_degrees(graph, jax.random.key(seed))) == pairs_of(made)


def test_rewiring_a_dense_graph_keeps_pairs_single_and_self_loops():
    for seed in range(3):
        graph = se.generate.erdos_renyi(12, 0.4, jax.random.key(seed), self_loops=True)
        made = tf.rewire_degrees(graph, jax.random.key(seed))
        loops = [[i for i, j in pairs_of(one) if i == j] for one in (graph, made)]
        assert len(set(pairs_of(made))) == len(pairs_of(graph)) and loops[0] == loops[1] and loops[0]
        assert pairs_of(made) != pairs_of(graph)


@pytest.mark.soak
def test_rewiring_reaches_all_graphs_of_the_degrees_equally(amount):
    """Four units with one synapse in and out each: nine graphs without self-loops."""
    ring, count = se.from_edges([0, 1, 2, 3], [1, 2, 3, 0]), amount(63, 3600)
    keys = jax.random.split(jax.random.key(0), count)
    found = [tuple(tf.rewire_degrees(ring, key, rounds=40).connectivity.pre.tolist()) for key in keys]
    counts = np.array([found.count(one) for one in set(found)])
    assert counts.size == 9
    # The 99.9 % quantile of chi-square with 8 degrees of freedom.
    assert ((counts - count / 9) ** 2 / (count / 9)).sum() < 26.1


def by_class(graph, kind, signs):
    """How many synapses each unit has from, and to, each type, by sign."""
    found = {}
    for i, j, w in zip(graph.connectivity.pre.tolist(), graph.connectivity.post.tolist(), graph.weight.tolist()):
        sign = np.sign(w) if signs else 0
        for end in (("to", i, kind[len(kind) - graph.connectivity.num_post + j], sign), ("from", j, kind[i], sign)):
            found[end] = found.get(end, 0) + 1
    return found


@pytest.mark.parametrize("shape, signs", [((30, 30), True), ((30, 30), False), ((20, 30), True)])
def test_nulls_that_keep_types_and_signs(shape, signs):
    rng = np.random.default_rng(0)
    pre, post = np.nonzero(rng.random(shape) < 0.2)
    graph = se.from_edges(pre, post, rng.choice([-2.0, -1.0, 1.0, 3.0], pre.size), shape)
    kind = rng.choice(["a", "b", "c"], len(graph.nodes))
    graph = se.Graph(graph.connectivity, graph.weight, node_attrs={"kind": kind})
    made = tf.rewire_degrees(graph, KEY, types="kind", signs=signs)
    assert by_class(made, kind, signs) == by_class(graph, kind, signs)
    assert len(set(pairs_of(made)) & set(pairs_of(graph))) < 0.7 * pre.size
    free = tf.rewire_degrees(graph, KEY)  # which keeps neither
    assert by_class(free, kind, False) != by_class(graph, kind, False)
    dealt = tf.shuffle_weights(graph, KEY, types="kind", signs=signs)
    one, two = np.asarray(graph.weight), np.asarray(dealt.weight)
    blocks = [graph.between({"kind": a}, {"kind": b}) for a in "abc" for b in "abc"]
    assert all(sorted(one[block]) == sorted(two[block]) for block in blocks) and (one != two).mean() > 0.1
    assert not signs or np.array_equal(np.sign(one), np.sign(two))
    both = np.asarray(tf.shuffle_weights(graph, KEY, within="pre", types="kind").weight)
    for unit in range(shape[0]):
        mine = [np.intersect1d(block, np.flatnonzero(np.asarray(graph.connectivity.pre) == unit)) for block in blocks]
        assert all(sorted(one[part]) == sorted(both[part]) for part in mine)


def test_rewiring_the_worm_mixes():
    worm = se.datasets.worm()
    made = tf.rewire_degrees(worm, jax.random.key(1))
    shared = len(set(pairs_of(worm)) & set(pairs_of(made))) / worm.connectivity.num_synapses
    assert shared < 0.2 and made.nodes == worm.nodes
    assert pairs_of(made) != pairs_of(tf.rewire_degrees(worm, jax.random.key(2)))


@each(st.lists(graphs(), min_size=1, max_size=4))
def test_batch(every):
    both, into = tf.batch_graphs(every, with_origin=True)
    blocks = [dense(graph) for graph in every]
    expected = sp.block_diag(list(map(sp.coo_array, blocks))).toarray() if both.nodes else np.zeros((0, 0))
    np.testing.assert_array_equal(dense(both), expected)
    assert both.edge_attrs["id"].tolist() == [i for graph in every for i in graph.edge_attrs["id"].tolist()]
    back, out_of = tf.unbatch(both, len(every), with_origin=True)
    names = [(k, i) for k, graph in enumerate(every) for i in range(graph.connectivity.num_synapses)]
    for k, origin in enumerate(into):
        assert [names[new] for new in origin.new] == [(k, old) for old in origin.old] and moved(origin) == [
            (old, new) for new, old in moved(out_of[k])
        ]
    assert sum(origin.new.size for origin in into) == len(names)
    for one, two in zip(every, back, strict=True):
        assert rows(one, "id", "kind") == rows(two, "id", "kind") and list(one.nodes) == list(two.nodes)
        assert one.node_attrs["place"].tolist() == two.node_attrs["place"].tolist()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(a, b)
    assert len(tf.unbatch(both)) == max((k + 1 for k, graph in enumerate(every) if graph.nodes), default=0)


masked_sample = jax.jit(tf.sample_neighbours, static_argnums=2)
sample = jax.jit(lambda graph, nodes, fanout, key: tf.sample_neighbours(graph, nodes, fanout, key), static_argnums=2)


@settings(max_examples=4)  # every number of synapses compiles
@each(graphs(least=1), st.integers(0, 9))
def test_sample_neighbours(graph, seed):
    conn = graph.connectivity
    # One shape for all graphs, so that programs are shared: units beyond are padding.
    units, real = jnp.arange(8), jnp.arange(8) < 5
    found = masked_sample(conn, units, 3, jax.random.key(seed), real & (units < conn.num_post))
    assert found.pre.shape == found.synapse.shape == found.mask.shape == (8, 3)
    degree = np.append(np.diff(conn.post_ptr), np.zeros(8, int))[:8] * np.asarray(real)
    np.testing.assert_array_equal(found.mask.sum(axis=1), np.minimum(degree, 3))
    for unit, row in enumerate(np.asarray(found.mask)):
        drawn = np.asarray(found.synapse[unit])[row]
        assert len(set(drawn.tolist())) == row.sum() and (np.asarray(conn.post)[drawn] == unit).all()
        np.testing.assert_array_equal(np.asarray(found.pre[unit])[row], np.asarray(conn.pre)[drawn])
    assert not np.where(found.mask, 0, found.pre).any() and not np.where(found.mask, 0, found.synapse).any()


def test_sampling_is_fair_and_under_jit():
    star = se.from_edges(range(1, 7), [0] * 6, shape=(7, 7))
    keys = jax.random.split(jax.random.key(3), 600)
    found = jax.vmap(lambda key: sample(star, jnp.array([0, 3, 99]), 2, key))(keys)
    assert found.pre.shape == (600, 3, 2) and not found.mask[:, 1:].any() and found.mask[:, 0].all()
    pairs = np.sort(np.asarray(found.pre[:, 0]), axis=1)
    counts = np.unique(pairs, axis=0, return_counts=True)[1]
    assert counts.size == 15 and ((counts - 40) ** 2 / 40).sum() < 36.1  # 99.9 %, 14 degrees of freedom
    for units in ([1, 2, 3], [0, 0, 0]):
        sample(star, jnp.array(units), 2, keys[0])
    assert sample._cache_size() == 1


EMPTY = [se.from_edges([], [], shape=(size, size)) for size in (0, 3)]


@pytest.mark.parametrize("graph", EMPTY, ids=["no nodes", "no synapses"])
def test_empty(graph):
    size, key = len(graph.nodes), jax.random.key(0)
    same = [tf.coalesce(graph), tf.to_undirected(graph), tf.transpose(graph), tf.remove_self_loops(graph)]
    same += [tf.normalize(graph, kind) for kind in ("gcn", "row", "column")]
    same += [tf.shuffle_weights(graph, key), tf.rewire_degrees(graph, key), tf.permute(graph, np.arange(size))]
    same += [tf.subgraph(graph, graph.nodes), tf.batch_graphs([graph]), *tf.diffusion_supports(graph)[1:]]
    for made in same:
        assert made.connectivity.shape == (size, size) and made.connectivity.num_synapses == 0
    assert tf.add_self_loops(graph).connectivity.num_synapses == size
    assert len(tf.largest_component(graph).nodes) == min(size, 1)
    assert len(tf.k_hop(graph, graph.nodes[:1], 2).nodes) == min(size, 1)
    assert [len(part.nodes) for part in tf.unbatch(tf.batch_graphs([graph, graph]), 2)] == [size, size]
    if size:
        assert not sample(graph, jnp.arange(3), 2, key).mask.any()


def test_types_of_weights_stay(x64):
    for dtype in (jnp.bfloat16, jnp.float64):
        graph = se.from_edges([0, 0, 1], [1, 1, 2], [1.0, 2.0, 4.0], dtype=dtype)
        made = [tf.add_self_loops(graph), tf.transpose(graph), tf.shuffle_weights(graph, jax.random.key(0))]
        made += [tf.coalesce(graph, reduce) for reduce in HOW] + [tf.normalize(graph), *tf.chebyshev_supports(graph)]
        assert {m.weight.dtype for m in made} == {jnp.dtype(dtype)}


def bare(function):
    """Without the check of types that the suite puts around it."""
    return getattr(function, "__wrapped__", function)


PAIR, WIDE = se.from_edges([0], [1], [1.0], edge_attrs={"kind": ["a"]}), se.from_edges([0], [2], shape=(1, 3))
KEY, NAMED = jax.random.key(0), se.from_edges(["a"], ["b"], labels="ab")
OTHERS = se.Graph(PAIR.connectivity, PAIR.weight, node_attrs={"graph": [1, 0]})
WORDS = se.from_edges(["a"], ["b"], labels="ab", edge_attrs={"kind": [1]})
JOINED = se.Graph(PAIR.connectivity, PAIR.weight, node_attrs={"graph": [0, 1]})


@pytest.mark.parametrize(
    "call, error, match",
    [
        (
            lambda: tf.add_self_loops(WIDE),
            ValueError,
            r"graph: expected a square one, where a node .*, got shape \(1, 3",
        ),
        (lambda: tf.add_self_loops(PAIR), ValueError, r"edge_attrs: expected a value .*, \['kind'\], got \[\]"),
        (
            lambda: tf.add_self_loops(PAIR, edge_attrs={"kind": 1}),
            ValueError,
            r"edge_attrs\['kind'\]: .* <U1 .*, got 1",
        ),
        (
            lambda: tf.add_self_loops(WORDS, edge_attrs={"kind": [1, 2]}),
            ValueError,
            r"edge_attrs\['kind'\]: expected a",
        ),
        (lambda: tf.add_self_loops(NAMED, edge_attrs={"x": 1}), ValueError, r"edge_attrs: .*, \[\], got \['x'\]"),
        (
            lambda: tf.add_self_loops(NAMED, [1.0]),
            ValueError,
            r"weight: expected a number, or one .*, got shape \(1,\)",
        ),
        (lambda: tf.add_self_loops(NAMED, np.nan), ValueError, "weight: expected numbers that are finite"),
        (lambda: tf.coalesce(PAIR, "min"), ValueError, "reduce: expected one of .*, got 'min'"),
        (lambda: bare(tf.coalesce)(PAIR.to_scipy()), TypeError, "graph: expected a Graph, got csc_array"),
        (lambda: tf.to_undirected(WIDE), ValueError, "graph: expected a square one, where a synapse can"),
        (lambda: jax.jit(tf.coalesce)(PAIR), TypeError, "graph: expected an array with values, got a traced one"),
        (lambda: tf.subgraph(WIDE, [0]), ValueError, "graph: expected a square one, whose nodes are one set"),
        (lambda: tf.subgraph(NAMED, ["c"]), ValueError, "nodes: expected one of the 2 labels, got 'c'"),
        (lambda: tf.subgraph(NAMED, ["b", "b"]), ValueError, "nodes: expected each once, got 'b' twice"),
        (lambda: tf.subgraph(PAIR, [2]), ValueError, "nodes: expected indices from 0 and below 2"),
        (lambda: tf.subgraph(PAIR, np.array([True])), ValueError, r"nodes: expected a mask .*, got shape \(1,\)"),
        (lambda: tf.keep_synapses(PAIR, [0, 0]), ValueError, "synapses: expected each once, got 0 twice"),
        (lambda: tf.keep_synapses(PAIR, [9]), ValueError, "synapses: expected indices from 0 and below"),
        (
            lambda: tf.keep_synapses(PAIR, np.ones(9, bool)),
            ValueError,
            r"synapses: expected a mask .* got shape \(9,\)",
        ),
        (lambda: tf.keep_synapses(PAIR, [0.5]), TypeError, "synapses: expected integers"),
        (lambda: tf.k_hop(PAIR, [0], 1, "up"), ValueError, "direction: expected 'in', 'out' or 'both', got 'up'"),
        (lambda: tf.k_hop(PAIR, [0], -1), ValueError, "k: expected 0 or more synapses, got -1"),
        (lambda: bare(tf.k_hop)(PAIR, [0], 1.5), TypeError, "k: expected a whole number, got 1.5"),
        (lambda: tf.largest_component(PAIR, "big"), ValueError, "connection: expected 'weak' or 'strong', got 'big'"),
        (lambda: tf.permute(PAIR, [0, 0]), ValueError, "order: expected each of the 2 positions once, got .0 0."),
        (lambda: tf.normalize(PAIR, "l2"), ValueError, "kind: expected 'gcn', .*, got 'l2'"),
        (
            lambda: tf.diffusion_supports(PAIR, 2, True, "x"),
            ValueError,
            "kind: expected 'power' or 'chebyshev', got 'x'",
        ),
        (lambda: tf.diffusion_supports(WIDE), ValueError, "graph: expected a square one, whose nodes send and receive"),
        (lambda: tf.diffusion_supports(PAIR, 0), ValueError, "steps: expected at least 1, got 0"),
        (lambda: tf.chebyshev_supports(PAIR, 2, 0.0), ValueError, "largest: expected a positive number, got 0.0"),
        (lambda: bare(tf.shuffle_weights)(PAIR, 0), TypeError, "key: expected one of jax.random, got 0"),
        (lambda: tf.shuffle_weights(PAIR, KEY, within="x"), ValueError, "within: expected 'pre', 'post' or None, got"),
        (lambda: jax.jit(lambda k: tf.rewire_degrees(PAIR, k))(KEY), TypeError, "key: .* got a traced one"),
        (lambda: tf.rewire_degrees(PAIR, KEY, types="kind"), ValueError, "types: expected a node attribute with one"),
        (lambda: tf.shuffle_weights(PAIR, KEY, types="kind"), ValueError, "types: expected a node attribute with one"),
        (lambda: tf.rewire_degrees(PAIR, KEY, -1), ValueError, "rounds: expected 0 or more, got -1"),
        (lambda: tf.batch_graphs([]), ValueError, "graphs: expected at least one, got none"),
        (lambda: tf.batch_graphs([PAIR, WIDE]), ValueError, "graph: expected a square one, that can be a block"),
        (lambda: tf.batch_graphs([PAIR, NAMED]), ValueError, r"graphs\[1\]: expected the edge attributes of the first"),
        (lambda: tf.batch_graphs([tf.batch_graphs([PAIR])]), ValueError, "graphs: expected no node attribute 'graph'"),
        (
            lambda: tf.batch_graphs([PAIR, tf.subgraph(WORDS, ["a", "b"])]),
            ValueError,
            "graphs: expected edge attribute 'kind' of",
        ),
        (
            lambda: tf.batch_graphs([NAMED, NAMED.with_weight(jnp.ones(1, jnp.bfloat16))]),
            ValueError,
            r"graphs: expected weights of one type, got \['bfloat16', 'float32'\]",
        ),
        (lambda: tf.unbatch(PAIR), ValueError, "graph: expected the node attribute 'graph', .*, got None"),
        (lambda: tf.unbatch(OTHERS), ValueError, "graph: expected the node attribute 'graph', ascending"),
        (lambda: tf.unbatch(JOINED), ValueError, "graph: expected no synapse between two graphs, got 0 -> 1"),
        (lambda: tf.unbatch(JOINED, 1), ValueError, "number: expected more than 1, the last graph of a node, got 1"),
        (
            lambda: bare(tf.sample_neighbours)(PAIR.to_scipy(), jnp.arange(1), 1, KEY),
            TypeError,
            "graph: expected a Graph or a Connectivity, got csc_array",
        ),
        (
            lambda: tf.sample_neighbours(PAIR, np.array([2]), 1, KEY),
            ValueError,
            "nodes: expected units from 0 and below 2",
        ),
        (lambda: tf.sample_neighbours(PAIR, np.array([0]), 0, KEY), ValueError, "fanout: expected at least 1, got 0"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()
