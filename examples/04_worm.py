"""A worm's nervous system learns to read digits.

You learn how to take a connectome as the wiring of a network, to lock the sign of each synapse to that of its neuron
while its strength is learned, to feed only the neurons that sense, and to train on batches of sequences.

The network is the chemical connectome of *C. elegans*: 279 neurons and 2,194 synapses, none added and none removed. A
digit of MNIST-1D comes in one pixel at a time; the classes are read from all neurons over the second half of it. Where
the readout alone learns, it reaches 59 % (docs/which-learner.md).
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

STEPS, READ, BATCH = 40, 20, 50
UPDATES = 40 if "--short" in sys.argv else 640
TARGET = 0.25 if "--short" in sys.argv else 0.65


class Worm(eqx.Module):
    """Rate neurons, each with a leak `g` that its own synaptic current sets, and a readout of all of them."""

    synapses: se.ETraceParam
    drive: se.ETraceParam
    gate: se.ETraceParam
    gain: se.ETraceParam
    leak: se.ETraceParam
    readout: se.NonTempParam

    def __init__(self, graph, key):
        conn, units, keys = graph.connectivity, graph.connectivity.num_post, jax.random.split(key, 6)
        # With SignLock no step of learning turns an excitatory neuron into an inhibitory one.
        sign = jnp.asarray(graph.node_attrs["sign"], jnp.float32)[conn.pre]
        signed = graph.with_weight(sign * jax.random.uniform(keys[0], sign.shape))
        weight = jnp.abs(se.scale_spectral_radius(signed, 1.0).weight)
        bias = 0.3 * jax.random.normal(keys[1], (units,))
        self.synapses = se.ETraceParam({"weight": weight}, se.SpMatMulOp(graph, weight_fn=se.SignLock(sign)))
        # The pixel reaches sensory neurons alone.
        sensory = np.flatnonzero(["sensory" in role for role in graph.node_attrs["role"]])
        nerve = se.SpMatMulOp(se.Connectivity.from_edges(np.zeros(sensory.size, int), sensory, shape=(1, units)))
        self.drive = se.ETraceParam({"weight": jax.random.normal(keys[2], sensory.shape), "bias": bias}, nerve)
        self.gate = se.ETraceParam({"weight": jax.random.normal(keys[3], sensory.shape)}, nerve)
        self.gain = se.ElemWiseParam(jax.random.normal(keys[4], (units,)))
        tau = jnp.exp(jax.random.uniform(keys[5], (units,), maxval=jnp.log(STEPS)))
        self.leak = se.ElemWiseParam(jax.scipy.special.logit(jnp.exp(-1 / tau)))
        self.readout = se.NonTempParam({"weight": jnp.zeros((units, 10)), "bias": jnp.zeros(10)}, se.MatMulOp())

    def init_state(self, *batch):
        return jnp.zeros((*batch, self.synapses.op.connectivity.num_post))

    def __call__(self, h, x):
        current = self.synapses(h)
        g = jax.nn.sigmoid(self.leak() + self.gain() * current + self.gate(x))
        h = g * h + (1 - g) * jnp.tanh(current + self.drive(x))
        return h, self.readout(h)


def sequences(x, y):
    """Time first, then sequences: pixels; and at each step the digit, and whether the step counts."""
    counts = np.broadcast_to(np.arange(STEPS)[:, None] >= STEPS - READ, (STEPS, len(y)))
    return x.T[:, :, None], (np.broadcast_to(y, counts.shape), counts.astype(np.float32))


def loss_fn(out, target):
    digit, counts = target
    return jnp.mean(counts * optax.softmax_cross_entropy_with_integer_labels(out, digit)) / READ


@eqx.filter_jit
def predicted(model, x):
    """The class with the largest mean log-probability over the steps that count."""
    _, out = jax.lax.scan(lambda h, pixel: model(h, pixel), model.init_state(len(x)), x.T[:, :, None])
    return jax.nn.log_softmax(out[-READ:]).mean(axis=0).argmax(axis=-1)


def accuracy(model):
    return float(np.mean(predicted(model, data.x_test) == data.y_test))


graph, data = se.datasets.worm(), se.datasets.mnist1d()
model = Worm(graph, jax.random.key(0))
state = model.init_state(BATCH)

# Two factors for each neuron instead of a trace for each synapse.
learner = se.ES_D_RTRL(decay=0.98)
schedule = optax.warmup_cosine_decay_schedule(0.002, 0.02, UPDATES // 10, UPDATES, 0.0004)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
batches = se.Batches(*sequences(data.x_train, data.y_train), BATCH, key=jax.random.key(1), epochs=10)
# Windows of 20 steps divide a sequence of 40, so that one program does for all of them.
update = se.Update(chunk=20)
result = se.fit(learner, loss_fn, optimizer, model, batches[:UPDATES], state=state, update=update, progress=False)

print(f"right answers on 1,000 new digits: {100 * accuracy(model):.1f} % before, ", end="")
found = accuracy(result.model)
print(f"{100 * found:.1f} % after {UPDATES} batches of {BATCH}")
assert found > TARGET, f"expected more than {100 * TARGET:.0f} %, got {100 * found:.1f} %"
