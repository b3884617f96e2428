"""What a stranger writes in the first hour: a CSV of one's own becomes a network that learns, and is stopped.

`python first_hour.py neurons.csv` trains, or goes on where it was stopped, and then draws.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import sparse_etrace as se

graph = se.read_graph(sys.argv[1])
print(se.inspect_graph(graph))
graph = se.scale_spectral_radius(graph, 0.9)
units = graph.connectivity.num_post


class Net(eqx.Module):
    cell: se.cells.LeakyRate
    readout: se.ETraceParam

    def __init__(self, key):
        for_cell, for_readout = jax.random.split(key)
        self.cell = se.cells.LeakyRate.of(graph, inputs=1, key=for_cell, init=graph, decay=0.7)
        self.readout = se.MatMulOp().param(for_readout, units, 1, init=jax.nn.initializers.zeros)

    def __call__(self, state, x):
        state, activity = self.cell(state, x)
        return state, self.readout(activity)


# Say again what came two steps before.
xs = jax.random.normal(jax.random.key(1), (30, 64, 1))
ys = jnp.concatenate([jnp.zeros((2, 64, 1)), xs[:-2]])
model = Net(jax.random.key(0))
result = se.fit(
    se.D_RTRL(),
    lambda out, y: jnp.mean((out - y) ** 2),
    optax.adam(0.01),
    model,
    se.Batches(xs, ys, 16, key=jax.random.key(2), epochs=40),
    state=model.cell.init_state(16),
    checkpoint=se.Checkpoint("run.ckpt", every=5),
)
print(f"loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f} after {len(result.losses)} updates")
learned = result.model.cell.rec.value["weight"]
se.plot.weight_change(graph, graph.weight, learned).savefig("weights.png")
se.plot.learning_curves({"D-RTRL": result.losses[None]}).savefig("learning.png")
se.write_graph("learned.csv", graph.with_weight(learned))
