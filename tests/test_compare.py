"""A task on a graph and on its null models: p-values that are known, and a network that needs its wiring."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparse_etrace as se

CHAIN = se.from_edges(range(9), range(1, 10))


def told(scores):
    """A training whose scores are known: that of the graph, then those of the nulls."""
    rest = iter(scores)
    return lambda graph, key: next(rest)


@pytest.mark.parametrize(
    "scores, better, p_value",
    [
        ([1.0, 2, 3, 4, 5], "lower", 1 / 5),
        ([3.0, 2, 3, 4, 5], "lower", 3 / 5),  # an equal one is as good
        ([3.0, 2, 3, 4, 5], "higher", 4 / 5),
        ([6.0, 2, 3, 4, 5], "higher", 1 / 5),
        ([1.0, np.inf, np.inf, 0, 1], "lower", 3 / 5),
        ([np.inf, np.inf, np.inf, 0, 1], "lower", 1.0),
    ],
)
def test_p_values(scores, better, p_value):
    found = se.compare(told(scores), CHAIN, 4, better=better)
    assert found.score == scores[0] and found.controls[0].scores.tolist() == scores[1:]
    assert found.controls[0].p_value == p_value


def test_each_null_model_gets_graphs_and_keys_of_its_own():
    seen = []

    def train(graph, key):
        seen.append((tuple(graph.connectivity.pre.tolist()), tuple(graph.weight.tolist()), int(jax.random.bits(key))))
        return len(seen)

    graph = CHAIN.with_weight(jnp.arange(9.0))
    nulls = {"wiring": se.transform.rewire_degrees, "weights": se.transform.shuffle_weights}
    found = se.compare(train, graph, 3, null=nulls)
    first, seen[:] = list(seen), []
    assert [c.null for c in found.controls] == [*nulls] and found.score == 1 and len(first) == 7
    assert len({key for *_, key in first}) == len({(pre, weight) for pre, weight, _ in first}) == 7
    assert all(pre == first[0][0] for pre, *_ in first[4:]) and all(w == first[0][1] for _, w, _ in first[:1])
    assert all(0 <= kept < 1 for c in found.controls for kept in c.kept)
    se.compare(train, graph, 3, null=nulls)
    assert seen == first
    seen.clear()
    se.compare(train, graph, 3, null=nulls, seed=1)
    assert {pre for pre, *_ in seen[1:4]} != {pre for pre, *_ in first[1:4]}
    table = found.to_dataframe()
    assert table["score"].tolist() == [1, 2, 3, 4, 5, 6, 7] and table["wiring"].tolist()[0] == "graph"
    assert table["p_value"].tolist()[1:] == [0.25] * 6 and np.isnan(table["p_value"][0])
    assert "weights" in str(found) and "0.25" in str(found)


def test_a_chain_learns_what_its_nulls_cannot():
    """A pulse is to leave the last unit nine steps after it came to the first one, twice as large: rewired, the way is
    shorter, and what comes then is an error whatever the weights."""
    learner, start, ys = se.D_RTRL(), jnp.zeros(10).at[0].set(1.0), jnp.zeros(11).at[8].set(2.0)

    def train(graph, key):
        rec = se.SpMatMulOp(graph).param(init=1 + 0.01 * jax.random.normal(key, 9))
        cell = se.cells.LeakyRate(10, None, rec, decay=0.0, activation=same)
        for _ in range(4):
            carry = learner.init(cell, start, None)
            losses, grads, _ = se.online_grad(learner, last, cell, carry, None, ys)
            cell = eqx.apply_updates(cell, jax.tree.map(lambda g: -0.4 * g, grads))
        return losses.sum()

    found = se.compare(train, CHAIN, 4)
    assert found.score < 0.1 and found.controls[0].p_value == 1 / 5
    assert min(found.controls[0].scores) >= 4


def same(y):
    return y


def last(h, y):
    return (h[-1] - y) ** 2


@pytest.mark.parametrize(
    "options, error, said",
    [
        ({"better": "more"}, ValueError, "better: expected 'lower' or 'higher' scores, got 'more'"),
        ({"nulls": 0}, ValueError, "nulls: expected at least 1, got 0"),
        ({"nulls": 2.5}, TypeError, "nulls: expected a whole number"),
        ({"graph": CHAIN.connectivity}, TypeError, "graph: expected a Graph"),
        ({"train": lambda graph, key: np.nan}, ValueError, "train: expected a score, got NaN for the graph"),
        ({"train": told([1.0, np.nan])}, ValueError, "got NaN for graph 0 of 'rewire_degrees'"),
        ({"train": lambda graph, key: graph.weight}, TypeError, "train: expected a number"),
        (
            {"null": functools.partial(se.transform.rewire_degrees, rounds=0)},
            ValueError,
            "null: expected graphs other than the one given, got that itself from 'null'",
        ),
    ],
)
def test_what_is_refused(options, error, said):
    given = {"train": lambda graph, key: 0.0, "graph": CHAIN} | options
    with pytest.raises(error, match=said):
        se.compare(**given)
