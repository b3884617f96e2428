"""Classes by graph networks that iterate, learned online over their iterations, beside a two-layer one.

Papers: Cora; each iteration spreads what nodes say, and they say a tenth of it again. Chains: the class is shown at the
head of a directed chain only and comes to the last node after as many iterations as the chain is long; all nodes are
asked in training.
"""

import argparse
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

ITERATIONS, EPOCHS, HIDDEN, SEEDS = 10, 300, 64, 3
LENGTHS, UPDATES, CHAINS, ASKED, WIDTH = (10, 50, 100, 200), 150, 8, 400, 4
RULES = {"RTRL": se.RTRL(), "SnAp-2": se.SnAp(2), "D-RTRL": se.D_RTRL(), "BPTT": se.BPTT()}


class Iterated(eqx.Module):
    """`h_t = a h + (1 - a) act(inp(x) + rec(h))` on nodes, and a readout."""

    inp: se.ETraceParam
    rec: se.ETraceParam
    out: se.ETraceParam
    leak: float = eqx.field(static=True)
    act: object = eqx.field(static=True)

    def __init__(self, graph, sizes, key, leak, act):
        keys, op = jax.random.split(key, 3), se.MatMulOp(bias=True)
        self.inp, self.out = op.param(keys[0], *sizes[:2]), op.param(keys[1], *sizes[1:])
        self.rec = se.GraphConvOp(graph).param(keys[2], sizes[1], sizes[1])
        self.leak, self.act = leak, act

    def __call__(self, h, x):
        h = self.leak * h + (1 - self.leak) * self.act(self.inp(x) + self.rec(h))
        return h, self.out(h)


class Spreading(eqx.Module):
    """`h_t = 0.9 A h + 0.1 f(x)`, f two layers on the words of a node; `x` holds words and what is kept of units."""

    first: se.ETraceParam
    second: se.ETraceParam
    spread: se.SpMatMulOp
    weight: se.Fixed

    def __init__(self, graph, sizes, key):
        keys, op = jax.random.split(key), se.MatMulOp(bias=True)
        self.first, self.second = op.param(keys[0], *sizes[:2]), op.param(keys[1], *sizes[1:])
        self.spread, self.weight = se.SpMatMulOp(graph, axis=-2), se.Fixed(graph.weight)

    def __call__(self, h, x):
        x, drop = x
        said = self.second(drop * jax.nn.relu(self.first(x)))
        h = 0.9 * se.cut(self.spread.xw_to_y)(h, {"weight": self.weight()}) + 0.1 * said
        return h, h


class Layers(eqx.Module):
    """Two graph convolutions, the first of inputs that are gathered already; `drop` acts between them."""

    first: se.ETraceParam
    second: se.ETraceParam

    def __init__(self, graph, sizes, key):
        keys = jax.random.split(key)
        self.first = se.MatMulOp(bias=True).param(keys[0], *sizes[:2])
        self.second = se.GraphConvOp(graph, bias=True).param(keys[1], *sizes[1:])

    def __call__(self, h, x):
        x, drop = x if isinstance(x, tuple) else (x, 1)
        return h, self.second(drop * jax.nn.relu(self.first(x)))


def entropy(out, y):
    """Of the nodes that are asked: others have a class of -1."""
    each = optax.softmax_cross_entropy_with_integer_labels(out, jnp.maximum(y, 0))
    return jnp.sum(jnp.where(y >= 0, each, 0)) / jnp.maximum(jnp.sum(y >= 0), 1)


def steps(tree, count):
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (count, *a.shape)), tree)


@eqx.filter_jit
def learn(learner, optimizer, model, opt_state, carry, x, y, rounds, window):
    """Updates, one after each window of iterations."""

    def one(now, _):
        weights, opt_state, carry = now
        made = eqx.combine(weights, fixed)
        losses, grads, carry = se.online_grad(learner, entropy, made, carry, steps(x, window), y)
        changes, opt_state = optimizer.update(grads, opt_state, weights)
        return (eqx.apply_updates(weights, changes), opt_state, carry), losses

    weights, fixed = eqx.partition(model, se.trainable(model))
    (weights, opt_state, _), losses = jax.lax.scan(one, (weights, opt_state, carry), None, length=rounds)
    return eqx.combine(weights, fixed), opt_state, losses


def kept(key, shape):
    """Dropout of a half."""
    return 2.0 * jax.random.bernoulli(key, 0.5, shape)


def papers(data, seed, iterated, epochs):
    """Accuracy on the papers of the test, an update an epoch; iterations are a window, asked at its end."""
    graph = se.transform.normalize(se.transform.add_remaining_self_loops(data.graph))
    words, y = data.x / np.maximum(data.x.sum(1, keepdims=True), 1), np.full(len(data.y), -1)
    x = jnp.asarray(words if iterated else graph.to_scipy().T @ words)
    y[data.train] = data.y[data.train]
    sizes, key = (x.shape[1], HIDDEN, int(data.y.max()) + 1), jax.random.key(seed)
    model = (Spreading if iterated else Layers)(graph, sizes, key)
    rounds, learner = (ITERATIONS, se.Bridged(ITERATIONS)) if iterated else (1, se.BPTT())
    asked = jnp.full((rounds, len(y)), -1).at[-1].set(y)
    first_only = jax.tree.map(lambda _: False, se.trainable(model))
    decayed = eqx.tree_at(lambda m: m.first, first_only, jax.tree.map(lambda _: True, se.trainable(model).first))
    decay = optax.masked(optax.add_decayed_weights(5e-3 if iterated else 5e-4), decayed)
    optimizer = optax.chain(decay, optax.adam(0.01))
    opt_state, state = optimizer.init(eqx.filter(model, se.trainable(model))), jnp.zeros((len(x), sizes[2]))
    ones, draws = jnp.ones((len(x), HIDDEN)), jax.random.key(100 + seed, impl="rbg")
    carry = learner.init(model, state, (x, ones))
    for epoch in range(epochs):
        first, second = jax.random.split(jax.random.fold_in(draws, epoch))
        seen = x * kept(first, x.shape), kept(second, ones.shape)
        model, opt_state, _ = learn(learner, optimizer, model, opt_state, carry, seen, asked, 1, rounds)
    said = np.argmax(se.predict(model, state, steps((x, ones), rounds))[0][-1], -1)
    return float(np.mean(said[data.test] == data.y[data.test]))


def chains(rng, count, length):
    """What nodes see and are: the class at the head of each chain, else noise."""
    classes = rng.integers(0, 2, count)
    x = 0.1 * rng.standard_normal((count, length, 2), np.float32)
    x[:, 0, 0] += 2 * classes - 1
    return jnp.asarray(x), jnp.asarray(np.repeat(classes[:, None], length, 1))


def last_of_chain(learner, length, seed, updates, iterated=True):
    """Accuracy at the last node of chains."""
    graph, key = (
        se.from_edges(np.arange(length - 1), np.arange(1, length), shape=(length, length)),
        jax.random.key(seed),
    )
    sizes, rounds = (2, WIDTH, 2), length if iterated else 1
    model = Iterated(graph, sizes, key, 0.0, jnp.tanh) if iterated else Layers(graph, sizes, key)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.02))
    opt_state, rng = optimizer.init(eqx.filter(model, se.trainable(model))), np.random.default_rng(seed)
    carry = learner.init(model, jnp.zeros((CHAINS, length, WIDTH)), chains(rng, CHAINS, length)[0])
    for _ in range(updates):
        x, y = chains(rng, CHAINS, length)
        model, opt_state, _ = learn(learner, optimizer, model, opt_state, carry, x, steps(y, rounds), 1, rounds)
    x, y = chains(np.random.default_rng(1000 + seed), ASKED, length)
    outs, _ = se.predict(model, jnp.zeros((ASKED, length, WIDTH)), steps(x, rounds))
    return float(jnp.mean(jnp.argmax(outs[-1][:, -1], -1) == y[:, -1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few updates, and papers that are made up")
    parser.add_argument("--data", type=Path, help="the file of se.datasets.cora")
    parser.add_argument("--only", choices=["papers", "chains"])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    seeds, epochs, updates, lengths = args.seeds, EPOCHS, UPDATES, args.lengths
    if args.quick:
        seeds, epochs, updates, lengths, rng = 1, 5, 3, (5,), np.random.default_rng(0)
        graph, y, every = se.generate.erdos_renyi(40, 0.1, jax.random.key(0)), rng.integers(0, 2, 40), np.arange(40)
        words = (rng.random((40, 9)) < 0.3).astype(np.float32)
        data = se.datasets.Cora(graph, words, y, every[:20], every[20:30], every[30:])
    elif args.only != "chains":
        data = se.datasets.cora(args.data)
    found = {}

    def note(name, values):
        found[name] = list(values)
        print(f"{name:<30}{100 * np.mean(found[name]):6.1f} % +- {100 * np.std(found[name]):.1f}", flush=True)
        (args.out / "classes.json").write_text(json.dumps(found, indent=1) + "\n")

    if args.only != "chains":
        for name, iterated in ("papers, two layers", False), ("papers, iterated", True):
            note(name, (papers(data, seed, iterated, epochs) for seed in range(seeds)))
    if args.only != "papers":
        for length in lengths:
            for name, rule in RULES.items():
                note(f"{length} nodes, {name}", (last_of_chain(rule, length, seed, updates) for seed in range(seeds)))
            scores = (last_of_chain(se.BPTT(), length, seed, updates, False) for seed in range(seeds))
            note(f"{length} nodes, two layers", scores)


if __name__ == "__main__":
    main()
