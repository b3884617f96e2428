"""Excitation and inhibition in balance: irregular spikes without noise, and training that keeps signs.

You learn how to build a population in ms and mV with two receptors, delays, and signs that training cannot change
(Dale's law), to describe what it does in a table, and to train its rates.

A constant drive takes every unit above its threshold. What they send each other, eighty percent excitatory and the rest
inhibitory and stronger, makes them fire irregularly nevertheless.
"""

import sys

import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se
from sparse_etrace.cells import spiking

UNITS, DEGREE, DT = 1000, 50, 0.1
MS = 100 if "--short" in sys.argv else 1000
ROUNDS, CLOSER = (4, 0.95) if "--short" in sys.argv else (30, 0.5)

rng = np.random.default_rng(0)
kind = np.repeat(["excitatory", "inhibitory"], [UNITS * 4 // 5, UNITS // 5])
pre, post = rng.integers(0, UNITS, UNITS * DEGREE), np.repeat(np.arange(UNITS), DEGREE)
weight = np.where(kind[pre] == "excitatory", 2.5, -13.0)  # mV
delay = rng.integers(10, 21, pre.size)  # 1 to 2 ms, in steps
graph = se.from_edges(pre, post, weight, shape=(UNITS, UNITS), edge_attrs={"delay": delay}, node_attrs={"kind": kind})


def only(sign):
    """The synapses of one sign."""
    is_in = np.asarray(graph.weight) * sign > 0
    conn, attrs = graph.connectivity, {"delay": graph.edge_attrs["delay"][is_in]}
    ends = np.asarray(conn.pre)[is_in], np.asarray(conn.post)[is_in]
    return se.from_edges(*ends, np.asarray(graph.weight)[is_in], shape=conn.shape, edge_attrs=attrs)


rec = {}
for name, sign in (("E", 1), ("I", -1)):
    part = only(sign)
    lock = se.SignLock(jnp.full(part.connectivity.num_synapses, sign))
    rec[name] = se.SpMatMulOp(part, lock).param(init=part)
synapses = {"drive": spiking.Current(), "E": spiking.Exponential(tau=5.0), "I": spiking.Exponential(tau=10.0)}
neuron = spiking.LIF(tau=20.0, threshold=-50.0, rest=-60.0, reset=-60.0)
cell = spiking.Population(UNITS, neuron, rec=rec, synapses=synapses, dt=DT, refractory=5.0)
model = se.spikes.watched(cell, values="v", means="z")


def first():
    """Potentials between reset and threshold."""
    state = cell.init_state()
    v = jnp.asarray(rng.uniform(-60, -50, UNITS), float)
    return model.start(state._replace(neuron={**state.neuron, "v": v}))


drive = {"drive": jnp.full((round(MS / DT), UNITS), 11.0)}  # mV, as the resistance is 1
(z, *_), _ = se.predict(model, first(), drive)
table = se.spikes.statistics(z[round(50 / DT) :], dt=DT, group=kind)
print(table.to_string(float_format="{:.2f}".format))

# The excitatory units shall fire at 15 Hz: strengths pick whose rates count.
target, counted = 15 * DT / 1000, jnp.asarray(kind == "excitatory", float)


def loss_fn(out, _):
    return 1e4 * se.spikes.rate_loss(out[2]["z"], target, counted)


xs = {"drive": drive["drive"][: round(100 / DT)]}
optimizer, learner = optax.adam(0.1), se.D_RTRL()
data = ((xs, jnp.zeros(round(100 / DT))) for _ in range(ROUNDS))
done = se.fit(learner, loss_fn, optimizer, model, data, state=first(), progress=False)


def miss(model):
    """How far the rate of the excitatory units is from 15 Hz."""
    (_, _, means), _ = se.predict(model, first(), xs)
    return abs(float(jnp.mean(means["z"].now[-1][kind == "excitatory"])) / DT * 1000 - 15)


before, after = miss(model), miss(done.model)
signs = [np.sign(np.asarray(param.op.phi(param.value)["weight"])) for param in done.model.model.rec.values()]
print(f"rate off its target by {before:.1f} Hz before and {after:.1f} Hz after {ROUNDS} rounds of 100 ms")
assert np.all(signs[0] >= 0) and np.all(signs[1] <= 0)
assert after < CLOSER * before
