"""The network of `whole_fly.py` in this library: its spikes, and what a second and a step of training take."""

import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from whole_fly import CHUNK, DRIVEN, DT, RATE

import sparse_etrace as se
from sparse_etrace.cells import spiking

WINDOW, TARGET = 16, 0.002


def gigabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def network(quick):
    """The graph, and the neurons with most targets, which are driven."""
    size = {"nodes": 1000, "synapses": 20_000} if quick else {}
    graph = se.generate.fly_brain(jax.random.key(0), **size)
    degree = np.bincount(graph.connectivity.pre, minlength=graph.connectivity.num_pre)
    return graph, np.sort(np.argsort(-degree, kind="stable")[:DRIVEN])


def simulated(quick):
    """What Brian2 needs, spikes as steps and units, and seconds."""
    graph, driven = network(quick)
    built, steps = gigabytes(), 1000 if quick else 10_000
    inputs = np.asarray(se.spikes.poisson(jax.random.key(1), np.full(DRIVEN, RATE), steps, DT), np.float32)
    fly = spiking.whole_fly(graph, driven)
    state = fly.init_state()

    @eqx.filter_jit
    def run(fly, state, xs):
        def step(state, x):
            state, z = fly(state, x)
            return state, z > 0

        return jax.lax.scan(step, state, xs)

    jax.block_until_ready(run(fly, state, inputs[:CHUNK]))
    found, seconds = [], 0.0
    for k in range(0, steps, CHUNK):
        begin = time.perf_counter()
        state, z = jax.block_until_ready(run(fly, state, inputs[k : k + CHUNK]))
        seconds += time.perf_counter() - begin
        at, who = np.nonzero(np.asarray(z))
        found.append((at + k, who))
    spikes = tuple(np.concatenate(part) for part in zip(*found))
    conn = graph.connectivity
    given = {"pre": conn.pre, "post": conn.post, "weight": graph.weight, "units": conn.num_pre, "driven": driven}
    given = {k: np.asarray(v) for k, v in given.items()} | {"inputs": inputs, "steps": np.asarray(steps)}
    row = {"seconds": seconds, "spikes": len(spikes[0]), "active": len(np.unique(spikes[1]))}
    return given, spikes, {"here": row | {"GB to build": built, "GB": gigabytes()}}


def loss_fn(out, y):
    return jnp.sum((out - y) ** 2)


class Neuropils(eqx.Module):
    """The mean rate of each neuropil, low-passed."""

    fly: spiking.Population
    means: se.ETraceParam

    def __call__(self, state, x):
        state, z = self.fly(state, x)
        return state, self.means(z)


def trained(quick):
    """Milliseconds a step and gigabytes, forward and by two rules, of fitting rates of neuropils."""
    graph, driven = network(quick)
    neuropil = graph.node_attrs["neuropil"].astype(int)
    share = 1 / np.bincount(neuropil, minlength=78)[neuropil]
    onto = se.from_edges(np.arange(neuropil.size), neuropil, share, shape=(neuropil.size, 78))
    means = se.ETraceParam({"weight": se.Fixed(onto.weight)}, se.SpMatMulOp(onto))
    model = Neuropils(spiking.whole_fly(graph, driven, weight_fn=se.SignLock(jnp.sign(graph.weight))), means)
    del graph
    inputs = jnp.asarray(se.spikes.poisson(jax.random.key(1), np.full(DRIVEN, RATE), 4 * WINDOW, DT), jnp.float32)
    targets, found = jnp.full((len(inputs), 78), TARGET), {}
    for name, learner in {"ES-D-RTRL": se.ES_D_RTRL(0.99), "D-RTRL": se.D_RTRL()}.items():
        carry = learner.init(model, model.fly.init_state(), inputs[0])
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            done = se.online_grad(learner, loss_fn, model, carry, inputs, targets)
            carry = jax.block_until_ready(done)[2]
            seconds.append(time.perf_counter() - begin)
        moved = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(done[1])]
        found[name] = {"ms a step": 1000 * min(seconds[1:]) / len(inputs), "GB": gigabytes(), "gradient": max(moved)}
        del carry, done
    return found
