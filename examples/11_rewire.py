"""Synapses that look for better senders, at a fixed budget.

You learn how to rewire while you train: each unit gives its weakest synapses up and draws others (SET). Weights, traces
and the optimiser's moments of those that stay move with them, and nothing compiles again.

A town of 60 units shows its activity; each is driven by noise of its own and by four others, and nobody says by which.
A network with six synapses for each unit forecasts what all units show next. Where its six random senders are the wrong
ones, no training helps. One that replaces two of the six after every 200 steps finds the senders that matter, and keeps
them, since their weights grow.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

UNITS, TRUE, BUDGET, STEPS, EVERY = 60, 4, 6, 200, 10
ROUNDS = 60 if "--short" in sys.argv else 150
LEAK = 0.5


class Forecast(eqx.Module):
    """Leaky units that listen to what others showed: `h_t = a h + (1 - a) wires(x)`."""

    wires: se.ETraceParam

    def __call__(self, h, x):
        h = LEAK * h + (1 - LEAK) * self.wires(x)
        return h, h


def random_senders(rng, count):
    """So many different senders for each unit, none of them itself."""
    pre = [rng.choice(np.delete(np.arange(UNITS), i), count, replace=False) for i in range(UNITS)]
    return np.ravel(pre), np.repeat(np.arange(UNITS), count)


def pairs(conn):
    return set(zip(conn.pre.tolist(), conn.post.tolist(), strict=True))


rng = np.random.default_rng(0)
true = se.from_edges(*random_senders(rng, TRUE), 0.5 * rng.choice([-1, 1], UNITS * TRUE), shape=(UNITS, UNITS))
begin = se.from_edges(*random_senders(rng, BUDGET), np.zeros(UNITS * BUDGET), shape=(UNITS, UNITS))


def town(rng):
    """Pieces of a stream: what the units show, and what they show next."""
    weight, h, x = true.to_scipy(), np.zeros(UNITS), np.zeros(UNITS)
    for _ in range(ROUNDS):
        shown = np.tile(np.float32(x), (STEPS + 1, 1))
        for step in range(STEPS):
            h = LEAK * h + (1 - LEAK) * (x @ weight)
            x = shown[step + 1] = h + rng.standard_normal(UNITS)
        yield shown[:-1], shown[1:]


compiled, learner, optimizer = [], se.D_RTRL(), optax.adam(0.01)


def loss_fn(out, y):
    return jnp.mean((out - y) ** 2)


@eqx.filter_jit
def learn(model, opt_state, carry, xs, ys):
    """An update after every ten steps of a piece."""
    compiled.append("once")  # Python comes by here only where JAX compiles

    def update(now, piece):
        weights, opt_state, carry = now
        losses, grads, carry = se.online_grad(learner, loss_fn, eqx.combine(weights, fixed), carry, *piece)
        changes, opt_state = optimizer.update(grads, opt_state)
        return (eqx.apply_updates(weights, changes), opt_state, carry), jnp.mean(losses)

    weights, fixed = eqx.partition(model, se.trainable(model))
    pieces = jax.tree.map(lambda a: a.reshape(-1, EVERY, UNITS), (xs, ys))
    (weights, opt_state, carry), losses = jax.lax.scan(update, (weights, opt_state, carry), pieces)
    return eqx.combine(weights, fixed), opt_state, carry, jnp.mean(losses)


def train(rewired):
    """Errors beyond the noise, which nobody can forecast, and which of the true senders the network has at the end."""
    model, errors = Forecast(se.SpMatMulOp(begin).param(init=begin)), []
    opt_state = optimizer.init(eqx.filter(model, se.trainable(model)))
    carry = learner.init(model, jnp.zeros(UNITS), jnp.zeros(UNITS))
    for number, (xs, ys) in enumerate(town(np.random.default_rng(1))):
        if rewired and number:
            senders = se.rewiring.sparse_evolution(model.wires, jax.random.key(number), share=0.34)
            model, carry, opt_state, _ = se.rewire(model, lambda m: m.wires, senders, carry, opt_state)
        model, opt_state, carry, error = learn(model, opt_state, carry, xs, ys)
        errors.append(float(error) - 1)
    found = pairs(model.wires.op.connectivity) & pairs(true.connectivity)
    return errors, len(found) / (UNITS * TRUE)


print(f"{UNITS * BUDGET} synapses to find {UNITS * TRUE} among {UNITS * (UNITS - 1)} possible ones")
ends = {}
for name, rewired in ("fixed wiring", False), ("rewired", True):
    errors, share = train(rewired)
    ends[name] = np.mean(errors[-5:])
    print(f"{name:12} error {errors[0]:.2f} at first, {ends[name]:.2f} at the end; {100 * share:.0f} % of true senders")
print(f"compiled {len(compiled)} time, for {2 * ROUNDS} pieces, {ROUNDS - 1} of which began with other synapses")
assert len(compiled) == 1, "compiled again"
assert ends["rewired"] < 0.5 * ends["fixed wiring"], ends
