"""Selections, signs, shared and frozen weights by the labels of nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

import sparse_etrace as se

WORM = se.datasets.worm()
KEY = jax.random.key(0)


def labelled(rectangular=False):
    attrs = {"kind": ["a", "b", "a", ""], "layer": np.array([1, 2, 2, 1]), "place": np.zeros((4, 3))}
    pre, post = ([0, 1, 1], [0, 1, 0]) if rectangular else ([0, 1, 2, 0, 0], [1, 2, 0, 2, 1])
    shape = (2, 2) if rectangular else (4, 4)
    conn = se.Connectivity.from_edges(pre, post, shape=shape if not rectangular else (2, 3))
    attrs = {k: np.concatenate([v, v[:1]]) for k, v in attrs.items()} if rectangular else attrs
    return se.Graph(
        conn, jnp.ones(conn.num_synapses), nodes=[f"n{k}" for k in range(4 + rectangular)], node_attrs=attrs
    )


def test_where_selects_by_labels():
    graph = labelled()
    assert graph.where(kind="a").tolist() == [0, 2] and graph.where(kind=["b", ""]).tolist() == [1, 3]
    assert graph.where(kind="a", layer=2).tolist() == [2] and graph.where(layer=np.array([1, 2])).tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert graph.where(layer=lambda column: column > 5).tolist() == [] and graph.where().tolist() == [0, 1, 2, 3]
    roles = WORM.node_attrs["role"]
    assert [WORM.node_attrs["role"][k] for k in WORM.where(role="motor")] == ["motor"] * int(np.sum(roles == "motor"))


@pytest.mark.parametrize(
    "labels, said",
    [
        ({"color": "a"}, r"labels: expected a node attribute with one value.*\['kind', 'layer'\], got 'color'"),
        ({"place": 0.0}, "got 'place'"),
        ({"kind": "c"}, r"labels\['kind'\]: expected values that nodes have, got 'c'"),
        ({"layer": ["1"]}, "got '1'"),
        ({"layer": lambda column: column}, r"expected a function from a column to booleans, \(4,\), got int64\[4\]"),
    ],
)
def test_where_refuses(labels, said):
    with pytest.raises(ValueError, match=said):
        labelled().where(**labels)


def test_synapses_between_sets():
    graph = labelled()
    conn = graph.connectivity
    ends = list(zip(np.asarray(conn.pre).tolist(), np.asarray(conn.post).tolist()))
    right = [k for k, (i, j) in enumerate(ends) if i in (0, 2) and j == 2]
    ways = ({"kind": "a"}, graph.where(kind="a"), np.array([True, False, True, False]), ["n0", "n2"])
    for pre in ways:
        assert graph.between(pre, "n2").tolist() == graph.between(pre, graph.where(layer=2, kind="a")).tolist() == right
    assert graph.between({}, {}).size == conn.num_synapses and graph.between("n3", {}).size == 0
    assert np.asarray(conn.post)[graph.between({}, {"layer": 2})].tolist() == [1, 1, 2, 2]
    wide = labelled(True)  # senders n0, n1, receivers n2, n3, n4
    assert wide.between("n1", ["n3", "n0"]).size == 1 and wide.between({}, "n0").size == 0


def test_places_are_no_labels():
    """Ids that count from 1: the places 1 and 2 are those of the ids 2 and 3."""
    graph = se.from_edges([1, 2, 3], [2, 3, 1], [5.0, 6.0, 7.0], labels=[1, 2, 3])
    graph = se.Graph(graph.connectivity, graph.weight, graph.nodes, {"kind": ["a", "b", "b"]})
    chosen = graph.where(kind="b")
    assert chosen.tolist() == [1, 2] and graph.weight[graph.between(chosen, chosen)].tolist() == [6.0]
    assert graph.weight[graph.between([1, 2], [1, 2])].tolist() == graph.weight[graph.between(1, 2)].tolist() == [5.0]
    for part in (
        chosen,
        chosen[::-1],
        np.concatenate([chosen[:1], chosen[1:]]),
        np.union1d(chosen, chosen),
        {"kind": "b"},
    ):
        assert sorted(se.transform.subgraph(graph, part).nodes) == [2, 3]
    assert se.transform.subgraph(graph, np.array([1, 2])).nodes == (1, 2)
    assert se.transform.subgraph(WORM, WORM.where(role="motor")).nodes == tuple(
        name for name, role in zip(WORM.nodes, WORM.node_attrs["role"]) if role == "motor"
    )


def test_masks_of_any_kind_are_no_labels():
    """Truth values equal the labels 0 and 1."""
    graph = se.from_edges([0, 1, 5], [1, 5, 0], [5.0, 6.0, 7.0], labels=[0, 1, 5])
    mask = [True, False, True]
    for given in (
        mask,
        tuple(mask),
        pd.Series(mask),
        pd.Series(mask, dtype="boolean"),
        np.array(mask),
        jnp.array(mask),
    ):
        assert graph.weight[graph.between(given, {})].tolist() == [7.0, 5.0]
        assert se.transform.subgraph(graph, given).nodes == (0, 5)


@pytest.mark.parametrize(
    "pre, said",
    [
        ([True], r"pre: expected a mask of all nodes, \(4,\), got shape \(1,\)"),
        (["n9"], r"pre: expected one of the 4 labels, got 'n9'"),
        ({"kind": "c"}, r"labels\['kind'\]: expected values that nodes have"),
        (np.array([True]), r"pre: expected a mask of all nodes, \(4,\), got shape \(1,\)"),
        (WORM.where(role="motor")[-1:], "pre: expected indices from 0 and below 4"),
    ],
)
def test_between_refuses(pre, said):
    with pytest.raises(ValueError, match=said):
        labelled().between(pre, {})


@pytest.mark.parametrize("graph, name", [(WORM, "role"), (labelled(True), "kind"), (labelled(), "layer")])
def test_the_graph_of_types(graph, name):
    types, column = graph.by_type(name), graph.node_attrs[name]
    conn = graph.connectivity
    weight, count = np.zeros((2, len(types.nodes), len(types.nodes)))
    for i, j, w in zip(np.asarray(conn.pre), np.asarray(conn.post), np.asarray(graph.weight)):
        ends = column[i], column[len(graph.nodes) - conn.num_post + j]
        at = tuple(types.nodes.index(end.item()) for end in ends)
        weight[at] += w
        count[at] += 1
    np.testing.assert_array_equal(types.to_dense(), weight)
    np.testing.assert_array_equal(types.to_scipy(types.edge_attrs["synapses"]).toarray(), count)
    assert types.node_attrs["cells"].tolist() == [column.tolist().count(label) for label in types.nodes]
    assert types.weight.dtype == graph.weight.dtype


def test_types_that_are_missing_or_refused():
    graph = se.from_edges([0, 1], [1, 2], [1.0, -1.0], shape=(3, 3))
    graph = se.Graph(graph.connectivity, graph.weight, node_attrs={"layer": [1.0, np.nan, np.nan]})
    assert graph.by_type("layer").nodes == (1.0, None) and len(se.ties(graph, pre="layer").groups) == 2
    assert se.from_edges([], [], shape=(0, 0)).connectivity.num_pre == 0
    with pytest.raises(ValueError, match="name: expected a node attribute with one value"):
        graph.by_type("cell_type")
    with pytest.raises(TypeError, match="graph: expected an array with values, got a traced one"):
        jax.jit(lambda g: g.by_type("layer").weight)(graph)


def test_weights_get_the_signs_of_a_table():
    signs, counts = se.transform.FLY_SIGNS, np.array([5.0, 7.0, 2.0])
    graph = se.from_edges([0, 1, 2], [0, 0, 1], counts)
    graph = se.Graph(graph.connectivity, graph.weight, node_attrs={"nt": ["ACH", "GABA", "DA"]})
    made = se.transform.with_signs(graph, "nt", signs)
    assert made.weight.tolist() == [5, -7, 2] and se.transform.with_signs(made, "nt", signs).weight.tolist() == [
        5,
        -7,
        2,
    ]
    assert se.SignLock.of(graph, "nt", signs).sign.tolist() == [1, -1, 1]
    assert se.transform.with_signs(graph, "nt", {**signs, "DA": 0}).weight.tolist() == [5, -7, 0]
    assert se.transform.with_signs(graph, "nt", {"GABA": -1}, default=1).weight.tolist() == [5, -7, 2]
    # By synapse, where transmitters are told for each.
    own = se.Graph(graph.connectivity, graph.weight, edge_attrs={"nt_type": ["GLUT", "ACH", "GABA"]})
    assert se.transform.with_signs(own, "nt_type", signs).weight.tolist() == [-5, 7, -2]
    worm = se.transform.with_signs(WORM, "sign", {1: 1, -1: -1})
    assert np.array_equal(np.asarray(worm.weight) < 0, WORM.node_attrs["sign"][np.asarray(WORM.connectivity.pre)] < 0)
    for given, said in (
        ({"ACH": 2}, r"signs: expected \+1, -1 or 0 for each value, got 2"),
        (
            {"ACH": 1},
            r"signs: expected \+1 or -1 for each 'nt_type' of synapses, got none for 'GABA', 'GLUT', 2 of 3 syn",
        ),
        ({"ach": 1}, "signs: expected values of 'nt_type' that synapses have, got"),
    ):
        with pytest.raises(ValueError, match=said):
            se.transform.with_signs(own, "nt_type", given)
    with pytest.raises(TypeError, match="graph: expected an array with values, got a traced one"):
        jax.jit(lambda g: se.transform.with_signs(g, "nt", signs))(graph)


def test_a_label_that_is_misspelled():
    with pytest.raises(ValueError, match=r"got 'Motor'. Near it are \['motor'\]"):
        WORM.where(role="Motor")


def test_a_sign_for_each_synapse_by_its_sender():
    lock = se.SignLock.of(WORM, by="neurotransmitter", signs={"GABA": -1}, default=1)
    inhibitory = WORM.node_attrs["neurotransmitter"] == "GABA"
    assert np.array_equal(lock.sign, np.where(inhibitory[np.asarray(WORM.connectivity.pre)], -1, 1))
    graph = labelled()
    assert se.SignLock.of(graph, "kind", {"a": -1, "b": 1}).sign.tolist() == [-1, -1, -1, -1, 1]  # "" sends nothing
    assert se.SignLock.of(labelled(True), "kind", {"a": -1, "b": 1}).sign.tolist() == [-1, 1, 1]


def test_a_sign_of_zero_has_no_effect_and_never_learns():
    graph = labelled()
    lock = se.SignLock.of(graph, "kind", {"a": 0}, default=1)
    param = se.SpMatMulOp(graph, lock).param(jax.random.key(0))
    weight, silent = param.value["weight"], np.asarray(lock.sign) == 0
    gradient = jax.grad(lambda w: jnp.sum(lock(w) ** 2 + lock(w)))(weight)
    assert silent.any() and not silent.all()
    for values in (weight, lock(weight), gradient):
        assert np.array_equal(np.asarray(values) == 0, silent)


def test_signs_that_are_refused():
    with pytest.raises(
        ValueError, match=r"signs: expected \+1 or -1 for each 'kind' of nodes that send, got none for 'b'"
    ):
        se.SignLock.of(labelled(), "kind", {"a": -1})
    with pytest.raises(ValueError, match="got none for '', 'Acetylcholine'.*"):
        se.SignLock.of(WORM, "neurotransmitter", {"GABA": -1})
    with pytest.raises(ValueError, match=r"sign: expected \+1, -1 or 0 everywhere, got 0.5. Use numpy.sign"):
        se.SignLock.of(labelled(), "kind", {"a": -1}, default=0.5)
    with pytest.raises(
        ValueError, match=r"signs: expected values of 'neurotransmitter' that nodes have.* got \['gaba'\]"
    ):
        se.SignLock.of(WORM, "neurotransmitter", {"gaba": -1}, default=1)
    with pytest.raises(ValueError, match="by: expected a node attribute"):
        se.SignLock.of(labelled(), "type", {})
    with pytest.raises(TypeError, match="graph: expected a Graph"):
        se.SignLock.of(labelled().connectivity, "kind", {})


def test_ties_by_type():
    graph = labelled(True)
    tie, groups = se.ties(graph, pre="kind", post="layer")
    conn, kind, layer = graph.connectivity, graph.node_attrs["kind"], graph.node_attrs["layer"]
    ends = [(kind[i], layer[2 + j]) for i, j in zip(np.asarray(conn.pre), np.asarray(conn.post))]
    assert [groups[k] for k in tie] == ends and len(set(groups)) == len(groups)
    assert se.ties(graph)[1] == [(None, None)] and set(se.ties(graph)[0].tolist()) == {0}
    assert se.ties(graph, post="kind").groups == [(None, ""), (None, "a")]
    with pytest.raises(ValueError, match="post: expected a node attribute"):
        se.ties(graph, post="color")


def test_tied_weights_with_signs_learn_together(x64):
    """The gradient of a shared weight is the sum over its synapses, that of a sign times the synapse's."""
    tie, groups = se.ties(WORM, pre="neurotransmitter", post="role")
    signs = {"GABA": -1}
    lock = se.SignLock.of(WORM, "neurotransmitter", signs, default=1, tie=tie)
    assert lock.sign.tolist() == [signs.get(pre, 1) for pre, _ in groups]
    w = jnp.abs(jax.random.normal(KEY, len(groups))) + 0.1

    def gradient(value, op):
        cell = se.cells.LeakyRate(279, None, se.ETraceParam({"weight": value}, op), decay=0.9)
        state, xs = jnp.linspace(-1, 1, 279), None
        carry = se.D_RTRL().init(cell, state, xs)
        ys = jnp.zeros((5, 279))
        return se.online_grad(se.D_RTRL(), lambda h, y: jnp.sum((h - y) ** 2), cell, carry, None, ys)[1].rec.value[
            "weight"
        ]

    tied = gradient(w, se.SpMatMulOp(WORM, lock, tie))
    single = np.asarray(gradient((lock.sign * w)[tie], se.SpMatMulOp(WORM)))
    expected = np.bincount(tie, np.asarray(lock.sign)[tie] * single)
    np.testing.assert_allclose(tied, expected, rtol=1e-10)
    with pytest.raises(ValueError, match="tie: expected synapses of one sign .*, got several for weight 0"):
        se.SignLock.of(WORM, "neurotransmitter", signs, default=1, tie=np.zeros_like(tie))


def test_frozen_synapses_stay_whatever_the_optimizer_does():
    frozen = np.isin(WORM.connectivity.pre, WORM.where(neurotransmitter="GABA"))
    lock = se.SignLock.of(WORM, "neurotransmitter", {"GABA": -1}, default=1)
    rec = se.SpMatMulOp(WORM, se.Frozen(frozen, lock(WORM.weight), lock)).param(init=WORM)
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    grads = jax.grad(lambda value: jnp.sum(rec.op.phi(value)["weight"] ** 2))(rec.value)
    changes, _ = optimizer.update(grads, optimizer.init(rec.value), rec.value)
    before, after = (np.asarray(rec.op.phi(v)["weight"]) for v in (rec.value, optax.apply_updates(rec.value, changes)))
    assert np.array_equal(before, lock(WORM.weight)) and np.array_equal(before[frozen], after[frozen])
    assert np.all(before[~frozen] != after[~frozen])


def test_frozen_weights_by_index_and_refusals():
    fn = se.Frozen([2], jnp.arange(3.0))
    assert fn(jnp.full(3, 9.0)).tolist() == [9, 9, 2] and fn.inverse(jnp.ones(3)).tolist() == [1, 1, 1]
    assert fn.range == (-jnp.inf, jnp.inf) and se.Frozen([0], jnp.ones(1), se.Bounded(0.0, 2.0)).range[1] == 2
    for where in ([3], [-1], [True, False], [[0]], [0.0]):
        with pytest.raises(ValueError, match="where: expected booleans"):
            se.Frozen(where, jnp.ones(3))
    with pytest.raises(ValueError, match=r"where: expected booleans, \(\)"):
        se.Frozen([0], 1.0)
    with pytest.raises(ValueError, match="weight_fn: expected a function with a method `inverse`"):
        se.Frozen([0], jnp.ones(3), jnp.tanh).inverse(jnp.ones(3))
