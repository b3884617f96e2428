"""Events on a temporal graph, learned through all that came before them.

You learn how to train on events: at each step two nodes of many meet, only their rows are read, learned from and
changed, and the rule's carry remembers for each node how its state depends on the weights. With RTRL that is the exact
gradient through every earlier event of every node, in memory that does not grow; frameworks for temporal graphs cut it
after each event.

Here a node keeps a queue of two numbers. Two nodes that meet say what is at the end of their queues, and each puts half
of what it heard, and of a number that comes with the event, in front. Who is cut off after each event never learns what
the queue is for.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

NODES, HIDDEN, LENGTH = 30, 8, 2
EVENTS, UPDATES = (100, 70) if "--short" in sys.argv else (300, 200)


class Meeting(eqx.Module):
    """Two nodes meet: gated units that read both, and a readout of both as they were before."""

    gates: se.ETraceParam
    new: se.ETraceParam
    out: se.ETraceParam

    def __call__(self, h, x):
        other = h[::-1]
        gate, kept = jnp.split(jax.nn.sigmoid(self.gates(jnp.concatenate([h, other, x], -1))), 2, -1)
        new = jnp.tanh(self.new(jnp.concatenate([kept * h, other, x], -1)))
        return gate * h + (1 - gate) * new, jnp.sum(self.out(h))


def meetings(rng):
    """Who meets whom and with which number; and what they say."""
    queues = np.zeros((NODES, LENGTH))
    pairs, numbers, said = np.empty((EVENTS, 2), int), rng.standard_normal(EVENTS), np.empty(EVENTS)
    for k in range(EVENTS):
        pairs[k] = rng.choice(NODES, 2, replace=False)
        ends = queues[pairs[k], -1]
        said[k] = ends.sum()
        queues[pairs[k], 1:] = queues[pairs[k], :-1]
        queues[pairs[k], 0] = (ends[::-1] + numbers[k]) / 2
    x = np.broadcast_to(numbers[:, None, None], (EVENTS, 2, 1))
    return (jnp.asarray(pairs), jnp.asarray(x, jnp.float32)), jnp.asarray(said, jnp.float32)


def loss_fn(out, y):
    return (out - y) ** 2


def train(learner, chunk=None):
    """Errors while a rule learns, an update after each sequence of events."""
    keys, op, rng = jax.random.split(jax.random.key(0), 3), se.MatMulOp(bias=True), np.random.default_rng(0)
    shapes = (2 * HIDDEN + 1, 2 * HIDDEN), (2 * HIDDEN + 1, HIDDEN), (HIDDEN, 1)
    model = Meeting(*(op.param(key, *shape) for key, shape in zip(keys, shapes, strict=True)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.02, UPDATES)))
    data = (meetings(rng) for _ in range(UPDATES))
    options = {"state": jnp.zeros((NODES, HIDDEN)), "update": se.Update(chunk=chunk), "progress": False}
    result = se.fit(se.Events(learner, NODES), loss_fn, optimizer, model, data, **options)
    return result.model, result.losses


# What the exact rule finds is the gradient of reverse mode through all events, of which it stores none.
model, exact = train(se.RTRL())
(nodes, xs), ys = meetings(np.random.default_rng(1))
grads = {}
for rule in se.RTRL(), se.BPTT():
    learner = se.Events(rule, NODES)
    carry = learner.init(model, jnp.zeros((NODES, HIDDEN)), (nodes[0], xs[0]))
    found = se.online_grad(learner, loss_fn, model, carry, (nodes, xs), ys)[1]
    grads[type(rule).__name__] = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])
apart = jnp.linalg.norm(grads["RTRL"] - grads["BPTT"]) / jnp.linalg.norm(grads["BPTT"])
print(f"gradients of RTRL and BPTT differ by {apart:.0e}")

truncated, full = train(se.BPTT(), chunk=1)[1], train(se.BPTT())[1]
ends = {"truncated": truncated, "RTRL": exact, "BPTT": full}
for name, losses in ends.items():
    print(f"{name:10} error {np.mean(losses[:5]):.3f} at first, {np.mean(losses[-10:]):.3f} at the end")
closed = (np.mean(truncated[-10:]) - np.mean(exact[-10:])) / (np.mean(truncated[-10:]) - np.mean(full[-10:]))
print(f"RTRL closes {100 * closed:.0f} % of the gap between one event and all")
assert apart < 1e-4 and closed > 0.9, (apart, closed)
