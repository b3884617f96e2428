"""Which way the gradients of rules point beside the exact one, by parameter of each graph cell, before any learning.

A random graph of ten nodes with weights as for a graph convolution, four features, smooth inputs and targets, 60 steps;
means of the cosines over seeds.
"""

import argparse
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sparse_etrace as se
from sparse_etrace.cells.graph import GraphAttention, GraphGRU, GraphRNN

NODES, FEATURES, STEPS, SEEDS = 10, 4, 60, 3
CELLS = {
    "GraphRNN": (GraphRNN.of, {}),
    "TGCN": (GraphGRU.tgcn, {}),
    "GConvGRU": (GraphGRU.gconv_gru, {"order": 3}),
    "GConvGRU, reset before": (GraphGRU.gconv_gru, {"order": 3, "reset": "before"}),
    "DCRNN": (GraphGRU.dcrnn, {"steps": 2}),
    "DCRNN, reset before": (GraphGRU.dcrnn, {"steps": 2, "reset": "before"}),
    "GraphAttention": (GraphAttention.of, {}),
}
RULES = [se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid(), se.SnAp(2), se.Bridged(16)]


def smooth(rng, steps):
    period, phase = rng.uniform(3, 8, (NODES, FEATURES)), rng.uniform(0, 6, (NODES, FEATURES))
    return jnp.asarray(np.sin(np.arange(steps)[:, None, None] / period + phase), jnp.float32)


def measure(rule, make, options, seed, steps):
    """Cosines by parameter."""
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    graph = se.generate.erdos_renyi(NODES, 0.25, key)
    graph = se.transform.normalize(graph.with_weight(jnp.ones_like(graph.weight)))
    cell = make(graph, FEATURES, FEATURES, key=key, **options)
    data = smooth(rng, steps), smooth(rng, steps)
    found = se.gradient_alignment(rule, se.evaluate.mse, cell, cell.init_state(), *data)
    return dict(zip(found.names, found.cosine[-1].tolist(), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, two cells")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    warnings.filterwarnings("ignore", ".*same step only")
    seeds, steps, found = (1, 6, {}) if args.quick else (SEEDS, STEPS, {})
    for name, (make, options) in list(CELLS.items())[: 2 if args.quick else None]:
        for rule in RULES:
            rows = [measure(rule, make, options, seed, steps) for seed in range(seeds)]
            means = {leaf: float(np.mean([row[leaf] for row in rows])) for leaf in rows[0]}
            found[f"{name}, {type(rule).__name__}"] = means
            shown = {leaf.replace(".value", ""): f"{cosine:.2f}" for leaf, cosine in means.items()}
            print(
                f"{name}, {type(rule).__name__}:", *(f"{leaf} {cosine}" for leaf, cosine in shown.items()), flush=True
            )
            (args.out / "aligned.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
