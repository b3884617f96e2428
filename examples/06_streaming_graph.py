"""A stream on a graph that never ends, and changes on the way.

You learn how to train on a stream that is generated as you go: the state and the traces go on from piece to piece, the
weights change every ten steps, memory does not grow, and when the world changes the network learns the new one.

The graph is a town of 64 crossings. Cars enter at random, move from crossing to crossing and leave; at each crossing a
certain share turns into each street. A noisy sensor counts them, and the network forecasts all counts one step ahead.
Halfway a bridge closes, and everywhere the shares are others. New cars and noise cannot be forecast, so the error that
is printed is the distance to the best forecast possible: that of an observer who knows all cars and all shares.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax

import sparse_etrace as se

STEPS, EVERY, STAY, NOISE = 100, 10, 0.5, 0.1
PIECES = 25 if "--short" in sys.argv else 150  # before the bridge closes, and as many after
TARGET = 0.4 if "--short" in sys.argv else 0.3

graph = se.from_networkx(nx.grid_2d_graph(8, 8).to_directed())
conn, crossings = graph.connectivity, len(graph.nodes)


def turning_shares(rng):
    """Of the cars that move, which share takes each street; one in ten leaves the town instead."""
    drawn = rng.gamma(0.5, size=conn.num_synapses)
    return graph.to_scipy(0.9 * drawn / np.bincount(conn.pre, drawn)[np.asarray(conn.pre)])


def town(rng):
    """Pieces of a stream: what the sensors say; and what they say next, with the best forecast of it."""
    shares = turning_shares(rng)
    cars, seen = np.zeros(crossings), np.zeros(crossings)
    for number in itertools.count():
        if number == PIECES:
            shares = turning_shares(rng)  # the bridge closes
        piece = np.empty((3, STEPS, crossings), np.float32)
        for step in range(STEPS):
            best = STAY * cars + (1 - STAY) * (cars @ shares)
            cars = best + rng.exponential(2.0, crossings) * (rng.random(crossings) < 0.05)
            before, seen = seen, cars + NOISE * rng.standard_normal(crossings)
            piece[:, step] = before, seen, best
        xs, ys, best = piece
        yield xs, (ys, best)


def loss_fn(out, y):
    return jnp.mean((out - y[0]) ** 2)


def error(out, y):
    return jnp.mean((out - y[1]) ** 2)


def watch(progress):
    """Called after each piece: bytes of all arrays that are alive."""
    alive.append(sum(array.nbytes for array in jax.live_arrays()))


# Each unit listens to the sensor of its crossing, and to the neighbours' units of one step before.
itself = se.Connectivity.from_edges(range(crossings), range(crossings), shape=(crossings, crossings))
sensor = se.ETraceParam({"weight": jnp.full(crossings, 0.5)}, se.SpMatMulOp(itself))
streets = {"weight": jnp.full(conn.num_synapses, 0.1), "bias": jnp.zeros(crossings)}
model = se.cells.LeakyRate(
    crossings,
    inp=sensor,
    rec=se.ETraceParam(streets, se.SpMatMulOp(graph)),
    decay=se.ElemWiseParam(jnp.zeros(crossings), jax.nn.sigmoid),
    activation=jax.nn.relu,
)

alive = []
result = se.fit(
    se.D_RTRL(),
    loss_fn,
    optax.adam(0.005),
    model,
    itertools.islice(town(np.random.default_rng(0)), 2 * PIECES),
    state=model.init_state(),
    update=EVERY,
    carry=True,
    metrics={"error": error},
    callbacks=watch,
    progress=False,
)

errors, updates = result.metrics["error"], result.metrics["updates"]
learned, surprised, recovered = errors[PIECES - 5 : PIECES].mean(), errors[PIECES], errors[-5:].mean()
print(f"{updates[-1]:,} updates in {2 * PIECES * STEPS:,} steps of a town of {conn.num_synapses} streets")
print(f"error: {errors[0]:.2f} at first, {learned:.2f} learned, {surprised:.2f} when the bridge closes, ", end="")
print(f"{recovered:.2f} at the end")
print(f"memory: {alive[1] / 1e3:.0f} kB after two pieces, {alive[-1] / 1e3:.0f} kB after {len(alive)}")
assert alive[-1] == alive[1], "memory grew"
assert recovered < TARGET * surprised, f"expected less than {TARGET} of the surprise, got {recovered / surprised:.2f}"
