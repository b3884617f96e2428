"""Random graphs: what is certain, how often what is not, and that a key says all."""

import jax
import numpy as np
import pytest
from soak import ONLY

import sparse_etrace as se
from sparse_etrace import generate as gen

KEY = jax.random.key(0)


def codes(graph):
    return np.asarray(graph.connectivity.post) * graph.connectivity.num_pre + np.asarray(graph.connectivity.pre)


def loops(graph):
    return int((np.asarray(graph.connectivity.pre) == np.asarray(graph.connectivity.post)).sum())


def fair(counts, expected, spread=5):
    """Whether counts are within `spread` deviations of a binomial of small probability."""
    return (np.abs(counts - expected) < spread * np.sqrt(np.maximum(expected, 1))).all()


def dense(graph):
    return graph.to_scipy().toarray()


LINE = np.arange(60.0)[:, None]
MADE = {
    "fixed_in_degree": lambda key: gen.fixed_in_degree(300, 7, key),
    "fixed_in_degree, dense": lambda key: gen.fixed_in_degree(20, 15, key),
    "erdos_renyi": lambda key: gen.erdos_renyi(300, 0.02, key),
    "erdos_renyi, dense": lambda key: gen.erdos_renyi(40, 0.6, key),
    "small_world": lambda key: gen.small_world(300, 6, 0.3, key),
    "distance_dependent": lambda key: gen.distance_dependent(LINE, 3.0, key),
    "stochastic_block": lambda key: gen.stochastic_block([100, 200], [[0.1, 0.0], [0.01, 0.3]], key),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_key_says_all(make):
    one, two, other = make(KEY), make(jax.random.key(0)), make(jax.random.key(1))
    np.testing.assert_array_equal(codes(one), codes(two))
    assert codes(one).tolist() != codes(other).tolist()
    assert loops(one) == 0 and len(set(codes(one).tolist())) == one.connectivity.num_synapses > 0
    assert (np.asarray(one.weight) == 1).all() and one.weight.dtype == np.float32


@pytest.mark.parametrize("nodes, degree", [(200, 7), (12, 9), ((30, 50), 4), ((5, 8), 5), (3, 0), (0, 0), ((0, 4), 0)])
def test_fixed_in_degree(nodes, degree):
    graph = gen.fixed_in_degree(nodes, degree, KEY)
    assert graph.connectivity.shape == (nodes if np.ndim(nodes) else (nodes, nodes))
    assert set(np.diff(graph.connectivity.post_ptr).tolist()) <= {degree}
    assert len(set(codes(graph).tolist())) == graph.connectivity.num_synapses


def test_every_sender_is_as_likely():
    for degree in (3, 7):
        every = dense(gen.fixed_in_degree((10, 3000), degree, KEY)).sum(1)
        assert every.sum() == 3000 * degree and fair(every, 300 * degree)
    square = gen.fixed_in_degree(1000, 5, KEY)
    assert fair(np.bincount(square.connectivity.pre, minlength=1000), 5, 6)
    assert loops(gen.fixed_in_degree(50, 50, KEY, self_loops=True)) == 50


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("nodes", [200, (100, 300), 0])
def test_erdos_renyi(nodes, probability):
    graph = gen.erdos_renyi(nodes, probability, KEY)
    (num_pre, num_post), square = graph.connectivity.shape, not np.ndim(nodes)
    pairs = num_pre * num_post - square * num_pre
    deviation = np.sqrt(pairs * probability * (1 - probability))
    assert abs(graph.connectivity.num_synapses - pairs * probability) <= 4 * deviation
    assert not square or loops(graph) == 0
    if num_pre:
        assert fair(np.diff(graph.connectivity.post_ptr), (num_pre - square) * probability)
        assert fair(np.diff(graph.connectivity.pre_ptr), (num_post - square) * probability)


def test_self_loops_of_erdos_renyi():
    assert loops(gen.erdos_renyi(30, 1.0, KEY, self_loops=True)) == 30


def test_small_world():
    ring = gen.small_world(9, 4, 0.0, KEY)
    expected = sum(np.roll(np.eye(9), step, axis=1) for step in (1, 2, -1, -2))
    np.testing.assert_array_equal(dense(ring), expected)
    graph = gen.small_world(2000, 6, 0.25, KEY)
    assert set(np.diff(graph.connectivity.post_ptr).tolist()) == {6}
    far = np.abs(np.asarray(graph.connectivity.pre) - np.asarray(graph.connectivity.post))
    assert 0.24 < (np.minimum(far, 2000 - far) > 3).mean() < 0.26
    full = gen.small_world(6, 5, 1.0, KEY)
    np.testing.assert_array_equal(dense(full), 1 - np.eye(6))
    assert gen.small_world(1, 0, 0.5, KEY).connectivity.num_synapses == 0


@pytest.mark.parametrize(
    "profile, dimensions", [("exponential", 2), ("gaussian", 2), ("exponential", 1), ("gaussian", 3)]
)
def test_distance_dependent(profile, dimensions):
    where = np.random.default_rng(0).random((800, dimensions)) * [1.0, 0.5, 0.3][:dimensions] - 0.2
    graph = gen.distance_dependent(where, 0.1, KEY, peak=0.5, profile=profile, cutoff=4.0)
    conn, far = graph.connectivity, np.linalg.norm(where[:, None] - where, axis=-1)
    np.testing.assert_allclose(graph.edge_attrs["distance"], far[conn.pre, conn.post], rtol=1e-5)
    chance = 0.5 * np.exp(-far / 0.1 if profile == "exponential" else -((far / 0.1) ** 2) / 2) * (far <= 0.4)
    np.fill_diagonal(chance, 0)
    bins = np.linspace(0, 0.45, 10)
    found, expected = (np.histogram(far, bins, weights=w)[0] for w in (dense(graph), chance))
    assert found.sum() > 8_000 and found[-1] == 0 and fair(found, expected)
    assert fair(dense(graph).sum(0), chance.sum(0)) and fair(dense(graph).sum(1), chance.sum(1))
    assert len(set(codes(graph).tolist())) == conn.num_synapses
    assert gen.distance_dependent(where[:0], 0.1, KEY).connectivity.shape == (0, 0)


def test_stochastic_block():
    sizes, chance = np.array([0, 80, 150]), np.array([[0.5, 0.5, 0.5], [0.5, 0.3, 0.02], [0.5, 0.0, 1.0]])
    graph = gen.stochastic_block(sizes, chance, KEY)
    block = graph.node_attrs["block"]
    found = np.zeros((3, 3))
    np.add.at(found, (block[graph.connectivity.pre], block[graph.connectivity.post]), 1)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    assert fair(found, pairs * chance, 4) and found[2, 2] == 150 * 149 and found[2, 1] == 0
    assert loops(graph) == 0
    assert loops(gen.stochastic_block([3], [[1.0]], KEY, self_loops=True)) == 3
    assert gen.stochastic_block([], np.zeros((0, 0)), KEY).connectivity.shape == (0, 0)


@ONLY
@pytest.mark.parametrize(
    "make",
    [
        lambda: gen.fixed_in_degree(100_000, 100, KEY),
        lambda: gen.erdos_renyi(100_000, 1e-3, KEY),
        lambda: gen.small_world(100_000, 100, 0.1, KEY),
        lambda: gen.stochastic_block([25_000] * 4, np.full((4, 4), 8e-4) + 8e-4 * np.eye(4), KEY),
        lambda: gen.distance_dependent(np.random.default_rng(0).random((100_000, 2)), 0.0127, KEY),
    ],
    ids=["fixed_in_degree", "erdos_renyi", "small_world", "stochastic_block", "distance_dependent"],
)
def test_ten_million(make):
    graph = make()
    assert 9_000_000 < graph.connectivity.num_synapses < 11_500_000
    one = np.diff(codes(graph))
    assert (one > 0).all() and loops(graph) == 0


def bare(function):
    """Without the check of types that `make soak` puts around it."""
    return getattr(function, "__wrapped__", function)


@pytest.mark.parametrize(
    "name, arguments, error, match",
    [
        ("fixed_in_degree", (5, 5, KEY), ValueError, "degree: expected 0 to 4, the units to draw from, got 5"),
        ("fixed_in_degree", ((5, 2), -1, KEY), ValueError, "degree: expected 0 to 5, the units to draw from, got -1"),
        ("fixed_in_degree", (2.5, 1, KEY), TypeError, "nodes: expected a whole number, got 2.5"),
        ("fixed_in_degree", (-2, 0, KEY), ValueError, "shape: expected sizes from 0"),
        ("fixed_in_degree", (5, 2, 0), TypeError, "key: expected one of jax.random, got 0"),
        ("erdos_renyi", (5, 1.5, KEY), ValueError, "probability: expected a number from 0 to 1, got 1.5"),
        ("small_world", (5, 5, 0.1, KEY), ValueError, "degree: expected 0 to 4, the other units, got 5"),
        ("small_world", (0, 0, 0.1, KEY), ValueError, "nodes: expected at least 1, got 0"),
        ("small_world", (5, 2, -0.1, KEY), ValueError, "rewired: expected a number from 0 to 1, got -0.1"),
        ("distance_dependent", ([1.0], 1.0, KEY), ValueError, r"positions: expected finite numbers, .* shape \(1,\)"),
        ("distance_dependent", ([[np.nan]], 1.0, KEY), ValueError, "positions: expected finite numbers"),
        (
            "distance_dependent",
            (LINE, 0.0, KEY),
            ValueError,
            "scale and cutoff: expected positive numbers, got 0.0 and 7",
        ),
        ("stochastic_block", ([-1], [[0.5]], KEY), ValueError, "sizes: expected 0 or more units in each block, got"),
        ("stochastic_block", ([1.5], [[0.5]], KEY), TypeError, "sizes: expected integers"),
        (
            "stochastic_block",
            ([2], [0.5], KEY),
            ValueError,
            r"probability: expected numbers from 0 to 1, \(1, 1\), got",
        ),
        ("stochastic_block", ([2], [[np.nan]], KEY), ValueError, "probability: expected numbers from 0 to 1"),
    ],
)
def test_errors(name, arguments, error, match):
    with pytest.raises(error, match=match):
        bare(getattr(gen, name))(*arguments)


def test_unknown_profile():
    with pytest.raises(ValueError, match="profile: expected 'exponential' or 'gaussian', got 'box'"):
        se.generate.distance_dependent(LINE, 1.0, KEY, profile="box")
