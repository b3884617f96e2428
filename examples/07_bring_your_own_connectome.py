"""Your own connectome: from two tables to a trained network, and back to a file.

You learn how to read a graph from a CSV file, to look at what it is, to give its neurons types and its synapses signs,
to train it on the synapses that it has, and to keep what was learned, as a file and as a figure.

The connectome is the mushroom body of a fly's larva, where a smell is tied to what follows it. Projection neurons bring
an odour to Kenyon cells. One half of the output neurons, taken here as those for approach, must be more active than the
other half if the odour is good, and less if it is bad. The answer counts once the odour has gone.
"""

import csv
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

ODOURS, REPEATS, STEPS, SMELL, NOISE = 24, 4, 16, 8, 0.3
UPDATES = 30 if "--short" in sys.argv else 150
TARGET = 0.75 if "--short" in sys.argv else 0.95


def write_tables(folder):
    """Stand-ins for your own tables: who makes how many synapses on whom, and what each neuron is."""
    body = se.datasets.mushroom_body("left")
    synapses = np.stack([body.connectivity.pre, body.connectivity.post, body.weight.astype(int)], axis=1)
    types = body.node_attrs["cell_type"].tolist()
    for name, rows in (("synapses", [("pre", "post", "n_syn"), *synapses]), ("neurons", enumerate(types))):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


class MushroomBody(eqx.Module):
    """Leaky rate neurons; the answer is the difference between two halves of the output neurons."""

    cell: se.cells.LeakyRate
    answer: jax.Array

    def __init__(self, graph):
        conn, units, types = graph.connectivity, len(graph.nodes), graph.node_attrs["type"]
        # A convention, not a measurement: projection neurons and Kenyon cells excite, the others inhibit.
        sign = jnp.where(np.isin(types, ["projection neuron", "Kenyon cell"]), 1.0, -1.0)[conn.pre]
        initial = {"weight": se.scale_spectral_radius(graph, 0.9).weight, "bias": jnp.zeros(units)}
        rec = se.ETraceParam(initial, se.SpMatMulOp(graph, weight_fn=se.SignLock(sign)))
        # Odours reach projection neurons alone, each by a connection of its own.
        nose = np.flatnonzero(types == "projection neuron")
        conn = se.Connectivity.from_edges(range(nose.size), nose, shape=(nose.size, units))
        inp = se.ETraceParam({"weight": jnp.ones(nose.size)}, se.SpMatMulOp(conn))
        self.cell = se.cells.LeakyRate(units, inp, rec, decay=0.8, activation=jax.nn.relu)
        output = np.flatnonzero(types == "output neuron")
        self.answer = jnp.zeros(units).at[output[::2]].set(1.0).at[output[1::2]].set(-1.0)

    def __call__(self, state, x):
        state, activity = self.cell(state, x)
        return state, activity @ self.answer


def trials(smells, key):
    """Each odour several times, with noise; and whether it is good (the first half), and when the answer counts."""
    odour, counts = jnp.repeat(jnp.arange(ODOURS), REPEATS), jnp.arange(STEPS)[:, None] >= SMELL
    noise = NOISE * jax.random.normal(key, (STEPS, odour.size, smells.shape[1]))
    xs = jnp.where(counts[..., None], 0.0, smells[odour] * (1 + noise))
    return xs, jnp.broadcast_arrays(odour < ODOURS / 2, counts / (STEPS - SMELL) * STEPS)


def loss_fn(answer, y):
    return jnp.mean(y[1] * optax.sigmoid_binary_cross_entropy(answer, y[0]))


def right(answer, y):
    return jnp.mean(y[1] * ((answer > 0) == y[0]))


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)  # everything is gone at the end: take a folder of your own to keep it
    write_tables(folder)
    read = se.read_graph(folder / "synapses.csv", weight="n_syn")
    type_of = dict(csv.reader((folder / "neurons.csv").read_text().splitlines()))
    types = np.array([type_of[str(neuron)] for neuron in read.nodes])
    graph = se.Graph(read.connectivity, read.weight, read.nodes, {"type": types})
    print(se.inspect_graph(graph), end="\n\n")

    model = MushroomBody(graph)
    strength, chance = jax.random.uniform(jax.random.key(0), (2, ODOURS, np.sum(types == "projection neuron")))
    smells = strength * (chance < 0.3)
    nothing = jax.tree.map(lambda _: False, model)
    learner = se.D_RTRL(train=eqx.tree_at(lambda m: m.cell.rec, nothing, replace=se.trainable(model.cell.rec)))
    rounds = (trials(smells, key) for key in jax.random.split(jax.random.key(1), UPDATES))
    options = {"state": model.cell.init_state(ODOURS * REPEATS), "metrics": {"right": right}, "progress": False}
    fit = se.fit(learner, loss_fn, optax.adam(0.02), model, rounds, **options)

    before, after = (m.cell.rec.op.phi(m.cell.rec.value)["weight"] for m in (model, fit.model))
    se.write_graph(folder / "learned.graphml", se.Graph(graph.connectivity, after, graph.nodes, graph.node_attrs))
    se.plot.weight_change(graph, before, after).savefig(folder / "learned.png")

change = np.abs(after - before)
ends = types[graph.connectivity.pre], types[graph.connectivity.post]
chosen = (ends[0] == "Kenyon cell") & (ends[1] == "output neuron")
print(f"Kenyon cells to output neurons: {100 * chosen.mean():.0f} % of the synapses, ", end="")
print(f"{100 * change[chosen].sum() / change.sum():.0f} % of the change")
found = fit.metrics["right"]
print(f"right answers: {100 * found[0]:.0f} % before, {100 * found[-1]:.0f} % after {UPDATES} rounds")
assert found[-1] > TARGET, f"expected more than {100 * TARGET:.0f} %, got {100 * found[-1]:.0f} %"
