"""Spiking units count cues, remember the count through a delay, and say which side had more.

You learn how to train recurrent spiking units whose threshold adapts, to keep their rates low by a loss on recorded
variables, and to test on fresh trials.

Cues come from the left and from the right as bursts of spikes at two groups of inputs; a third asks for the answer much
later, and a fourth is noise. When it asks, nothing of the cues is left in the potentials, which forget in 20 ms. The
thresholds of units that heard more cues are higher, and the traces of their synapses remember by which input.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

CUES, CUE, GAP, DELAY, CHOICE = 5, 40, 20, 200, 100  # steps of 1 ms
UNITS, INPUTS = 100, 40
BATCH, TRIALS = (16, 64) if "--short" in sys.argv else (32, 256)
STEPS = CUES * (CUE + GAP) + DELAY + CHOICE
UPDATES, WRONG = (20, 0.4) if "--short" in sys.argv else (150, 0.15)
rng = np.random.default_rng(0)


def trials(batch):
    """Rates in Hz by group, spikes from them, and the side with more cues."""
    cues = rng.random((CUES, batch)) < np.where(rng.random(batch) < 0.5, 0.25, 0.75)
    rates = np.zeros((STEPS, batch, 4))
    for k, cue in enumerate(cues):
        begin = k * (CUE + GAP) + GAP
        rates[begin : begin + CUE, np.arange(batch), cue.astype(int)] = 60
    rates[-CHOICE:, :, 2], rates[:, :, 3] = 60, 10
    spikes = se.spikes.poisson(jax.random.key(rng.integers(2**31)), np.repeat(rates, INPUTS // 4, axis=2))
    return spikes, jnp.asarray(cues.sum(0) > CUES / 2, int)


class Net(eqx.Module):
    """Adaptive and plain units on a sparse graph, and a readout that filters their spikes."""

    cell: se.cells.ALIF
    out: se.ETraceParam

    def init_state(self, *batch):
        return self.cell.init_state(*batch), jnp.zeros((*batch, 2))

    def __call__(self, state, x):
        cell, z = self.cell(state[0], x)
        y = 0.95 * state[1] + 0.05 * self.out(z)
        return (cell, y), y


def scaled(w):
    """A potential takes in `1 - decay` of a current."""
    return 20 * w


graph = se.generate.erdos_renyi(UNITS, 0.1, key=jax.random.key(1))
slow = {"adaptation_decay": float(np.exp(-1 / 1000)), "adaptation": np.repeat([0.0, 35.0], UNITS // 2)}
keys = jax.random.split(jax.random.key(0), 3)
inp = se.MatMulOp(weight_fn=scaled).param(keys[0], INPUTS, UNITS)
rec = se.SpMatMulOp(graph, scaled).param(keys[1])
cell = se.cells.ALIF(UNITS, inp, rec, decay=0.95, threshold=0.6, reset_gradient=False, refractory=3, **slow)
model = se.spikes.watched(Net(cell, se.MatMulOp().param(keys[2], UNITS, 2)), means="z")


def loss_fn(out, target):
    """Cross-entropy while the answer is asked for, and rates over the trial that are not 15 Hz."""
    y, _, means = out
    side, asked = target
    wrong = asked * jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, side)) / CHOICE
    return wrong + se.spikes.rate_loss(means["z"], target=0.015, strength=0.1) / BATCH


def errors(model):
    """The share of wrong answers on fresh trials by the mean of the outputs, and the rate in Hz."""
    (y, _, means), _ = se.predict(model, model.init_state(TRIALS), fresh[0])
    wrong = jnp.argmax(y[-CHOICE:].mean(0), -1) != fresh[1]
    return float(wrong.mean()), 1000 * float(means["z"].now[-1].mean())


fresh = trials(TRIALS)
asked = jnp.arange(STEPS) >= STEPS - CHOICE
data = ((x, (jnp.broadcast_to(side, (STEPS, BATCH)), asked)) for x, side in (trials(BATCH) for _ in range(UPDATES)))
limits = se.spikes.Limits("means['z']", low=1e-4, high=0.2)  # ends a training that falls silent or explodes
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
state = model.init_state(BATCH)
done = se.fit(se.D_RTRL(), loss_fn, optimizer, model, data, state=state, callbacks=limits, progress=False)
after, rate = errors(done.model)
print(f"wrong answers after {UPDATES} updates: {100 * after:.0f} %, at {rate:.0f} Hz")
assert after < WRONG and done.stopped == "end of data"
