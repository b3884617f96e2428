"""Cases of chickenpox, and mentions at a tennis tournament: each step is predicted before it is learned from.

Gated graph networks, an update at each step, a label known one step later, beside predictors that learn nothing. Mean
squared errors over the second half of the steps; the files are those of `se.datasets.chickenpox` and `.tennis`.
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

HIDDEN, SEEDS, RATE = 16, 3, 0.01
RULES = {"D-RTRL": se.D_RTRL(), "Bridged": se.Bridged()}


class Counties(eqx.Module):
    """On edges that stay."""

    cell: se.cells.graph.GraphGRU
    out: se.ETraceParam

    def __init__(self, graph, features, key):
        self.cell = se.cells.graph.GraphGRU.dcrnn(graph, features, HIDDEN, key=key)
        self.out = readout()

    def __call__(self, h, x):
        h, shown = self.cell(h, x)
        return h, self.out(shown)[:, 0]


class Accounts(eqx.Module):
    """On edges of each step: a node reads itself, and what its neighbours show and remember."""

    gate: se.ETraceParam
    new: se.ETraceParam
    out: se.ETraceParam

    def __init__(self, features, key):
        sizes = 2 * (features + HIDDEN), HIDDEN
        self.gate, self.new = (se.MatMulOp(bias=True).param(k, *sizes) for k in jax.random.split(key))
        self.out = readout()

    def __call__(self, h, x):
        features, pre, post, weight = x
        own = jnp.concatenate([features, h], -1)
        seen = jnp.concatenate([own, jnp.tanh(se.spread(own, pre, post, weight))], -1)
        gate = jax.nn.sigmoid(self.gate(seen))
        h = gate * h + (1 - gate) * jnp.tanh(self.new(seen))
        return h, self.out(h)[:, 0]


def readout():
    return se.MatMulOp(bias=True).param(None, HIDDEN, 1, init=np.zeros((HIDDEN, 1), np.float32))


def made_up():
    """A small ring, and the same with edges that turn at each step."""
    rng, graph = np.random.default_rng(0), se.from_edges([0, 1, 2, 3], [1, 2, 3, 0])
    series = np.sin(np.arange(41)[:, None, None] / 3 + np.arange(4)[:, None]) + 0.1 * rng.normal(size=(41, 4, 1))
    still = se.interchange.Snapshots(graph, series[:-1], series[1:, :, 0])
    return still, still._replace(graph=(graph, se.transform.transpose(graph)) * 20)


def measure(data, model, seeds):
    """Errors of each predictor, by seed."""
    stream, found = se.SnapshotStream(data.features, data.targets, data.edges), {}
    for name, rule in RULES.items():
        for seed in range(seeds):
            result = se.evaluate.prequential(
                rule,
                se.evaluate.mse,
                optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE)),
                model(jax.random.key(seed)),
                stream,
                state=jnp.zeros((data.features.shape[1], HIDDEN)),
                skip=len(stream) // 2,
            )
            found.setdefault(name, []).append(result.table["model"]["loss"])
    return found | {name: [row["loss"]] for name, row in result.table.items() if name != "model"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="on data that are made up")
    parser.add_argument("--data", type=Path, help="folder of chickenpox.json and twitter_tennis_rg17.json")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    if args.quick:
        still, moving = made_up()
    else:
        still = se.datasets.chickenpox(args.data / "chickenpox.json")
        moving = se.datasets.tennis(args.data / "twitter_tennis_rg17.json")
    seeds, features = 1 if args.quick else SEEDS, [data.features.shape[2] for data in (still, moving)]
    found = {
        "chickenpox": measure(still, lambda key: Counties(still.graph, features[0], key), seeds),
        "tennis": measure(moving, lambda key: Accounts(features[1], key), seeds),
    }
    for task, rows in found.items():
        for name, errors in rows.items():
            print(f"{task:<12}{name:<18}{np.mean(errors):.4f} +- {np.std(errors):.4f}")
    (args.out / "prequential.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
