"""Ten thousand spiking neurons with a million synapses learn online.

You learn how to build a large sparse spiking network without ever forming a matrix, to train some of its synapses and
leave the others as they are, and to read what it costs: time per step, and memory beside backpropagation through time.

The task is pattern generation. The same spikes come in at every trial, a fixed random readout sums all neurons, and the
output must follow a curve. Only the million recurrent synapses learn, each from one eligibility trace.
"""

import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

UNITS, FAN_IN, CHANNELS, CHANNELS_IN = 10_000, 100, 50, 5
STEPS, DECAY, READOUT_DECAY = 256, 0.95, 0.9
TRIALS = 6 if "--short" in sys.argv else 60
TARGET = 0.3 if "--short" in sys.argv else 0.05


def fixed_in_degree(num_pre, num_post, count, rng):
    """Each receiving unit draws `count` senders."""
    pre, post = rng.integers(0, num_pre, num_post * count), np.repeat(np.arange(num_post), count)
    return se.Connectivity.from_edges(pre, post, shape=(num_pre, num_post))


def normal_weights(conn, scale, key):
    """Weights such that the sum over a unit's synapses does not depend on how many there are."""
    in_degree = conn.num_synapses / conn.num_post
    return {"weight": scale / in_degree**0.5 * jax.random.normal(key, (conn.num_synapses,))}


class Net(eqx.Module):
    """Leaky integrate-and-fire neurons, and a readout that is a filtered sum of their spikes."""

    cell: se.cells.LIF
    readout: se.NonTempParam

    def __init__(self, rng, key):
        keys = jax.random.split(key, 3)
        inp = fixed_in_degree(CHANNELS, UNITS, CHANNELS_IN, rng)
        rec = fixed_in_degree(UNITS, UNITS, FAN_IN, rng)
        self.cell = se.cells.LIF(
            UNITS,
            inp=se.ETraceParam(normal_weights(inp, 60.0, keys[0]), se.SpMatMulOp(inp)),
            rec=se.ETraceParam(normal_weights(rec, 10.0, keys[1]), se.SpMatMulOp(rec)),
            decay=DECAY,
        )
        self.readout = se.NonTempParam({"weight": jax.random.normal(keys[2], (UNITS, 1)) / UNITS**0.5}, se.MatMulOp())

    def init_state(self, *batch):
        return self.cell.init_state(*batch), jnp.zeros((*batch, 1))

    def __call__(self, state, x):
        neurons, y = state
        neurons, spikes = self.cell(neurons, x)
        y = READOUT_DECAY * y + (1 - READOUT_DECAY) * self.readout(spikes)
        return (neurons, y), (y, spikes.mean())


def loss_fn(out, y):
    return jnp.mean((out[0] - y) ** 2)


model = Net(np.random.default_rng(0), jax.random.key(0))
synapses = model.cell.rec.op.connectivity
print(f"{UNITS:,} neurons, {synapses.num_synapses:,} synapses: {100 * synapses.density:.0f} % of all pairs")

xs = jax.random.bernoulli(jax.random.key(1), 0.05, (STEPS, CHANNELS)).astype(jnp.float32)
time_in_trial = 2 * jnp.pi * jnp.arange(STEPS)[:, None] / STEPS
ys = jnp.sin(time_in_trial) + 0.5 * jnp.sin(2 * time_in_trial + 1) + 0.5 * jnp.sin(3 * time_in_trial + 2)

# A filter like the model: True on what is trained. Nothing else gets a trace.
nothing = jax.tree.map(lambda _: False, model)
learner = se.D_RTRL(train=eqx.tree_at(lambda m: m.cell.rec, nothing, replace=se.trainable(model.cell.rec)))

# What a gradient needs, before anything runs: all buffers, weights and gradients included.
state = model.init_state()
online = se.memory_plan(learner, model, state, xs[0])
print(f"D-RTRL: {online.total / 1e6:,.0f} MB for any number of steps, {online.traces / 1e6:.0f} MB of them traces")
for steps in (STEPS, 10_000):
    backward = se.memory_plan(se.BPTT(train=learner.train), model, state, xs[0], steps)
    print(f"backpropagation through {steps:,} steps: {backward.total / 1e6:,.0f} MB")

optimizer = optax.adam(0.03)
first = se.fit(learner, loss_fn, optimizer, model, [(xs, ys)], state=state, progress=False)  # and compilation
start = time.perf_counter()
trials = ((xs, ys) for _ in range(TRIALS - 1))
on = se.Update(opt_state=first.opt_state)
result = se.fit(learner, loss_fn, optimizer, first.model, trials, state=state, update=on, progress=False)
seconds = (time.perf_counter() - start) / (TRIALS - 1) / STEPS
print(f"{1e3 * seconds:.1f} ms for a step of learning, {seconds / synapses.num_synapses * 1e9:.1f} ns for a synapse")

_, (_, activity) = jax.lax.scan(lambda state, x: result.model(state, x), state, xs)
print(f"{100 * activity.mean():.0f} % of the neurons spike in a step")
before, after = first.losses[0] / ys.var(), result.losses[-1] / ys.var()
print(f"squared error relative to the curve's variance: {before:.3f} before, {after:.3f} after {TRIALS} trials")
assert after < TARGET, f"expected a relative error below {TARGET}, got {after:.3f}"
