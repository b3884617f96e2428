"""Delays that are learned: when each synapse has to speak so that a unit hears a pattern in time.

You learn how to train delays. A synapse with a real-valued delay reads two neighbouring steps of the ring of what was
sent; `se.refloor` moves it to others between sequences, and nothing compiles again.

Spikes come in at 16 lines at random. What a unit should do depends on when each line spoke: every line counts after a
delay of its own, 1 to 12 steps. Without delays no weights can do that, since the order in time is lost. With trained
delays, all of which begin at 6.5, the unit finds those of the task.
"""

import sys

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

LINES, LONGEST, STEPS, BATCH = 16, 12, 100, 8
SEQUENCES = 140 if "--short" in sys.argv else 400


class Ear(eqx.Module):
    """Lines whose spikes fade, `s = 0.8 s + x`, and one unit that hears them, `h = 0.5 h + syn(ring of s)`."""

    syn: se.ETraceParam

    def init_state(self):
        return jnp.zeros((BATCH, LINES)), jnp.zeros((BATCH, 1)), self.syn.op.ring(BATCH)

    def __call__(self, state, x):
        s, h, ring = state
        s = 0.8 * s + x
        ring = ring.push(s)
        h = 0.5 * h + self.syn(ring)
        return (s, h, ring), h


rng = np.random.default_rng(0)
lines = se.from_edges(np.arange(LINES), np.zeros(LINES, int), shape=(LINES, 1))
delay = rng.uniform(1, LONGEST, LINES)
weight = jnp.asarray(rng.choice([-0.5, 0.5], LINES))
options = {"train_delay": True, "max_delay": LONGEST + 1}


def ear(weight, delay):
    op = se.SpMatMulOp(lines, delay=delay, **options)
    return Ear(se.ETraceParam({"weight": weight, "delay": jnp.asarray(delay, weight.dtype)}, op))


task = ear(weight, delay)
learner = se.D_RTRL()


def loss_fn(h, y):
    return jnp.mean((h - y) ** 2)


@eqx.filter_jit
def sequence(model, xs):
    ys, _ = se.predict(task, task.init_state(), xs)
    carry = learner.init(model, model.init_state(), xs[0])
    losses, grads, _ = se.online_grad(learner, loss_fn, model, carry, xs, ys)
    return jnp.mean(losses) / jnp.mean(ys**2), grads


def trained(model, rates):
    """The error of the last sequences, in parts of what is to be heard, and the model."""
    optimizer = optax.multi_transform({k: optax.adam(rate) for k, rate in rates.items()}, lambda p: {k: k for k in p})
    state, errors = optimizer.init(model.syn.value), []
    for _ in range(SEQUENCES):
        xs = jnp.asarray(rng.random((STEPS, BATCH, LINES)) < 0.05, jnp.float32)
        error, grads = sequence(model, xs)
        moves, state = optimizer.update(grads.syn.value, state)
        value = optax.apply_updates(model.syn.value, moves)
        model = se.refloor(eqx.tree_at(lambda m: m.syn.value, model, value))
        errors.append(float(error))
    return float(np.mean(errors[-10:])), model


begin = ear(jnp.zeros(LINES), np.full(LINES, 6.5))
weights_only, _ = trained(begin, {"weight": 0.02, "delay": 0.0})
both, model = trained(begin, {"weight": 0.02, "delay": 0.2})
missed = np.abs(np.asarray(model.syn.value["delay"]) - delay).max()
print(
    f"error with one delay {weights_only:.2f}, with trained delays {both:.3f}; the farthest is {missed:.2f} steps off"
)
assert both < 0.1 * weights_only
