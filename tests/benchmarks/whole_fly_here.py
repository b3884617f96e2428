"""The network of `whole_fly.py` in this library: its spikes, and what a second and a step of training take."""

import functools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from whole_fly import CHUNK, DRIVEN, DT, RATE

import sparse_etrace as se
from sparse_etrace.cells import spiking

STEPS, WINDOW, TARGET = 10_000, 64, 0.001


def built(folder, quick):
    """The graph, with the neurons with most targets as those that are driven, and their spikes."""
    begin, size = time.perf_counter(), {"nodes": 1000, "synapses": 20_000} if quick else {}
    graph = se.generate.fly_brain(jax.random.key(0), **size)
    conn, steps = graph.connectivity, STEPS // 10 if quick else STEPS
    driven = np.sort(np.argsort(-np.bincount(conn.pre, minlength=conn.num_pre), kind="stable")[:DRIVEN])
    inputs = np.asarray(se.spikes.poisson(jax.random.key(1), np.full(DRIVEN, RATE), steps, DT), np.float32)
    given = {"pre": conn.pre, "post": conn.post, "weight": graph.weight, "units": conn.num_pre, "driven": driven}
    np.savez(folder / "whole_fly.npz", **given, inputs=inputs, neuropil=graph.node_attrs["neuropil"])
    return {"seconds": time.perf_counter() - begin}


def read(folder):
    with np.load(folder / "whole_fly.npz") as file:
        given = {name: file[name] for name in ("pre", "post", "weight", "driven", "inputs", "neuropil")}
    units = len(given["neuropil"])
    graph = se.from_edges(*(given.pop(name) for name in ("pre", "post", "weight")), shape=(units, units))
    return graph, *given.values()


@eqx.filter_jit
def run(fly, state, xs):
    def step(state, x):
        state, z = fly(state, x)
        return state, z > 0

    return jax.lax.scan(step, state, xs)


def simulated(folder, quick):
    """Spikes as steps and units in a file; seconds of wall and processor."""
    graph, driven, inputs, _ = read(folder)
    fly = spiking.whole_fly(graph, driven)
    state, found, row = fly.init_state(), [], {"seconds": 0.0, "seconds of processor": 0.0}
    del graph
    jax.block_until_ready(run(fly, state, inputs[:CHUNK]))
    for k in range(0, len(inputs), CHUNK):
        begin, cpu = time.perf_counter(), time.process_time()
        state, z = jax.block_until_ready(run(fly, state, inputs[k : k + CHUNK]))
        row["seconds"] += time.perf_counter() - begin
        row["seconds of processor"] += time.process_time() - cpu
        at, who = np.nonzero(np.asarray(z))
        found.append((at + k, who))
    at, who = (np.concatenate(part) for part in zip(*found))
    np.savez(folder / "here.npz", at, who)
    return row | {"spikes": len(at), "active": len(np.unique(who))}


class Neuropils(eqx.Module):
    """The mean of each neuropil's spikes."""

    fly: spiking.Population
    means: se.ETraceParam

    def __call__(self, state, x):
        state, z = self.fly(state, x)
        return state, self.means(z)


def loss_fn(out, y):
    return jnp.sum((out - y) ** 2)


def trained(learner, folder, quick):
    """Milliseconds a step of fitting the rates of neuropils, of wall and processor."""
    graph, driven, inputs, neuropil = read(folder)
    neuropil = neuropil.astype(int)
    share = 1 / np.bincount(neuropil, minlength=78)[neuropil]
    onto = se.from_edges(np.arange(neuropil.size), neuropil, share, shape=(neuropil.size, 78))
    means = se.ETraceParam({"weight": se.Fixed(onto.weight)}, se.SpMatMulOp(onto))
    model = Neuropils(spiking.whole_fly(graph, driven, weight_fn=se.SignLock(jnp.sign(graph.weight))), means)
    del graph
    inputs = jnp.asarray(inputs[:WINDOW])
    carry, targets = learner.init(model, model.fly.init_state(), inputs[0]), jnp.full((WINDOW, 78), TARGET)
    found = []
    for _ in range(4):
        begin, cpu = time.perf_counter(), time.process_time()
        _, grads, carry = se.online_grad(learner, loss_fn, model, carry, inputs, targets)
        most = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads))
        found.append((time.perf_counter() - begin, time.process_time() - cpu))
        del grads
    wall, cpu = np.min(found[1:], axis=0) * 1000 / WINDOW
    return {"ms a step": wall, "ms of processor": cpu, "largest gradient": most}


PARTS = {
    "network": built,
    "here": simulated,
    "ES-D-RTRL": functools.partial(trained, se.ES_D_RTRL(0.99)),
    "D-RTRL": functools.partial(trained, se.D_RTRL()),
}
