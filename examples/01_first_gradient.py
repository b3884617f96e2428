"""A first online gradient.

You learn how to turn a networkx graph into a recurrent network, to train it online with one eligibility trace per
synapse (D-RTRL), to read what the learner does with each parameter, and how far its gradient is from the exact one.

The task is delayed recall: the input is a random sequence of +1 and -1, and the output at each step is the input of
three steps before. Without memory the mean squared error cannot fall below 0.94.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import optax

import sparse_etrace as se

UNITS, DELAY, STEPS, BATCH = 60, 3, 50, 16
UPDATES = 30 if "--short" in sys.argv else 150
TARGET = 0.7 if "--short" in sys.argv else 0.1


class Net(eqx.Module):
    """A model is any callable `state, out = model(state, x)`: here leaky units on a graph, and a readout."""

    cell: se.cells.LeakyRate
    readout: se.ETraceParam

    def __init__(self, graph, key):
        for_cell, for_readout = jax.random.split(key)
        # Units from fast to slow: the trace of a synapse is as long as the memory of the unit that it drives.
        decay = jnp.linspace(0.0, 0.8, UNITS)
        self.cell = se.cells.LeakyRate.of(graph, inputs=1, key=for_cell, init=graph, decay=decay)
        self.readout = se.MatMulOp(bias=True).param(for_readout, UNITS, 1)

    def init_state(self, *batch):
        return self.cell.init_state(*batch)

    def __call__(self, state, x):
        state, activity = self.cell(state, x)
        return state, self.readout(activity)


def sequences(key):
    """Inputs and targets, time first, then the batch."""
    x = jax.random.rademacher(key, (STEPS, BATCH, 1), jnp.float32)
    return x, jnp.concatenate([jnp.zeros((DELAY, BATCH, 1)), x[:-DELAY]])


def loss_fn(out, y):
    """The loss of one step; it is summed over time."""
    return jnp.mean((out - y) ** 2)


def cosine(a, b):
    a, b = (jnp.concatenate([g.ravel() for g in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


graph = se.from_networkx(nx.gnp_random_graph(UNITS, 0.1, seed=1, directed=True))
signs = jax.random.rademacher(jax.random.key(1), graph.weight.shape, jnp.float32)
graph = se.scale_spectral_radius(graph.with_weight(signs), 1.0)
model = Net(graph, jax.random.key(0))
xs, ys = sequences(jax.random.key(2))

# The learner checks the model, and starts: the carry holds the state and the traces.
learner = se.D_RTRL()
carry = learner.init(model, model.init_state(BATCH), xs[0])
print(se.explain(learner, model, carry.state, xs[0]), end="\n\n")

# The gradient of the sum of all losses, forward in time, is a pytree like the model.
losses, grads, _ = se.online_grad(learner, loss_fn, model, carry, xs, ys)
exact = se.BPTT()
_, exact_grads, _ = se.online_grad(exact, loss_fn, model, exact.init(model, carry.state, xs[0]), xs, ys)
print(f"cosine between D-RTRL and backpropagation through time: {cosine(grads, exact_grads):.3f}")

# Training is the usual loop around it; any optax optimizer will do.
optimizer = optax.adam(0.01)
opt_state = optimizer.init(eqx.filter(model, se.trainable(model)))


@eqx.filter_jit
def update(model, opt_state, key):
    _, grads, _ = se.online_grad(learner, loss_fn, model, carry, *sequences(key))
    changes, opt_state = optimizer.update(grads, opt_state)
    return eqx.apply_updates(model, changes), opt_state


for key in jax.random.split(jax.random.key(3), UPDATES):
    model, opt_state = update(model, opt_state, key)

before = float(losses.mean())
after = float(se.online_grad(learner, loss_fn, model, carry, xs, ys)[0].mean())
print(f"mean squared error, {UPDATES} updates: {before:.3f} before, {after:.3f} after")
assert after < TARGET, f"expected a mean squared error below {TARGET}, got {after:.3f}"
