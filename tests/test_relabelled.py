"""A relabelled graph, or one of shuffled edges, learns the same: gradients are permuted and otherwise identical."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import few

import sparse_etrace as se

RULES = {"D_RTRL": se.D_RTRL(), "ES_D_RTRL": se.ES_D_RTRL(0.9), "Bridged": se.Bridged(2)}


class GraphGRU(eqx.Module):
    """On nodes x features, gated: the state of neighbours comes through trained synapses."""

    gate: se.ETraceParam
    inp: se.ETraceParam
    spread: se.ETraceParam

    def __call__(self, h, x):
        u = jax.nn.sigmoid(self.gate(x))
        h = u * h + (1 - u) * jnp.tanh(self.inp(x) + self.spread(h))
        return h, h


def graph_gru(graph, arrays, order):
    gate, inp = (se.ETraceParam({"weight": arrays[name]}, se.MatMulOp()) for name in ("gate", "inp"))
    model = GraphGRU(gate, inp, se.SpMatMulOp(graph, axis=-2).param(init=graph.weight))
    return model, jnp.zeros((len(order), 2)), lambda xs: xs[:, order, :2]


def cell(kind):
    def made(graph, arrays, order):
        inp = se.ETraceParam({"weight": arrays["wide"][:, order]}, se.MatMulOp())
        model = kind(len(order), inp, se.SpMatMulOp(graph).param(init=graph.weight))
        return model, model.init_state(2), lambda xs: 3 * xs[:, :2, :3]

    return made


MODELS = {"graph GRU": graph_gru, "ALIF": cell(se.cells.ALIF), "rate": cell(se.cells.LeakyRate)}


def target(out, y):
    return jnp.sum(jnp.sin(out) * y)


def learn(make, graph, arrays, order, learner):
    """The gradient of two calls of two steps each."""
    model, state, inputs = make(graph, arrays, jnp.asarray(order))
    xs, ys = inputs(arrays["x"]), arrays["y"][:, order]
    ys = ys[..., None] if make is graph_gru else ys[:, None]
    carry, grads = learner.init(model, state, xs[0]), []
    for part in (slice(0, 2), slice(2, 4)):
        _, more, carry = se.online_grad(learner, target, model, carry, xs[part], ys[part], chunk=2)
        grads.append(more)
    return jax.tree.map(np.add, *grads)


CASES = list(itertools.product(MODELS, RULES))


@pytest.mark.parametrize("kind, rule", few(CASES, [("graph GRU", "D_RTRL")]))
def test_gradients_are_permuted(kind, rule, x64):
    rng = np.random.default_rng(0)
    worm = se.transform.k_hop(se.datasets.worm(), ["AVAL"], 1)
    size, count = len(worm.nodes), worm.connectivity.num_synapses
    conn = worm.connectivity
    order, mixed = rng.permutation(size), rng.permutation(count)
    weight = jnp.asarray(rng.normal(size=count) / 3)
    arrays = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in {
        "gate": (2, 2), "inp": (2, 2), "wide": (3, size), "x": (4, size, 3), "y": (4, size)}.items()}  # fmt: skip
    plain = se.Graph(conn, weight)
    turned, origin = se.transform.permute(plain, order, with_origin=True)
    shuffled = se.from_edges(
        np.asarray(conn.pre)[mixed], np.asarray(conn.post)[mixed], weight[mixed], conn.shape, dtype=jnp.float64
    )
    make, learner, same = MODELS[kind], RULES[rule], np.arange(size)
    grads = learn(make, plain, arrays, same, learner)
    twin = learn(make, shuffled, arrays, same, learner)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(twin), strict=True):
        np.testing.assert_array_equal(one, two)
    other = learn(make, turned, arrays, order, learner)
    names = ("gate", "inp") if make is graph_gru else ("inp",)
    for name in names:
        one, two = (np.asarray(getattr(g, name).value["weight"]) for g in (grads, other))
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(two, one if make is graph_gru else one[:, order], rtol=1e-10, atol=1e-12)
    recurrent = "spread" if make is graph_gru else "rec"
    one, two = (np.asarray(getattr(g, recurrent).value["weight"]) for g in (grads, other))
    assert np.abs(one).max() > 1e-3 and (np.abs(one) > 0).mean() > 0.05
    np.testing.assert_allclose(two[origin.new], one[origin.old], rtol=1e-10, atol=1e-12)
    assert not np.allclose(two, one)
