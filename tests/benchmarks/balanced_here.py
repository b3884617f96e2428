"""The network of `balanced.py` in this library: its spikes, and the seconds of a second, simulated and trained."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from balanced import DELAY, DT, EXCITATORY, UNITS, WARM

import sparse_etrace as se
from sparse_etrace.cells import spiking


class Balanced(eqx.Module):
    """Units that send through one ring, to excite and to inhibit."""

    cell: spiking.Population
    excite: se.ETraceParam
    inhibit: se.ETraceParam

    def __call__(self, state, drive):
        cell, ring = state
        current = {"drive": drive, "E": self.excite(ring), "I": self.inhibit(ring)}
        cell, z = self.cell(cell, current)
        return (cell, ring.push(z)), z


def make(pre, post, weight, v):
    """The model and its first state. Brian2 delivers a spike after the step in which its delay ends: one step more."""
    units, steps = len(v), round(DELAY / DT) + 1
    synapses = {"drive": spiking.Current(), "E": spiking.Exponential(tau=5.0), "I": spiking.Exponential(tau=10.0)}
    neuron = spiking.LIF(tau=20.0, threshold=-50.0, rest=-60.0, reset=-60.0)
    cell = spiking.Population(units, neuron, synapses=synapses, dt=DT, refractory=5.0)
    params = []
    for is_in in (weight > 0, weight < 0):
        graph = se.from_edges(pre[is_in], post[is_in], weight[is_in], shape=(units, units))
        op = se.SpMatMulOp(graph, se.SignLock(jnp.sign(graph.weight)), delay=steps)
        params.append(op.param(init=graph))
    state = cell.init_state()
    state = state._replace(neuron={**state.neuron, "v": jnp.asarray(v)})
    return Balanced(cell, *params), (state, params[0].op.ring())


def loss_fn(z, y):
    return jnp.mean((z - y) ** 2)


@eqx.filter_jit
def run(model, state, drive):
    return jax.lax.scan(lambda state, x: model(state, x), state, drive)


def times(pre, post, weight, v, ms, chunk):
    """Spikes as times in ms and units; seconds for a second of the network, forward and by D-RTRL."""
    model, start = make(pre, post, weight, v)
    steps = round(ms / DT)
    drive = jnp.full((chunk, len(v)), 11.0)
    jax.block_until_ready(run(model, start, drive))
    state, found, begin = start, [], time.perf_counter()
    for _ in range(steps // chunk):
        state, z = run(model, state, drive)
        found.append(np.nonzero(np.asarray(z)))
    forward = time.perf_counter() - begin
    learner = se.D_RTRL()
    target = jnp.full_like(drive, 0.001)
    carry = learner.init(model, state, drive[0])
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        done = se.online_grad(learner, loss_fn, model, carry, drive, target)
        carry = jax.block_until_ready(done)[2]
        seconds.append(time.perf_counter() - begin)
    t = np.concatenate([DT * (k * chunk + at) for k, (at, _) in enumerate(found)])
    per = 1000 / ms
    trained = min(seconds[1:]) * 1000 / DT / chunk
    return (t, np.concatenate([who for _, who in found])), {"seconds": forward * per, "seconds by D-RTRL": trained}


def rates(spikes, units, ms):
    """Rates in Hz after the start, and the CV of the intervals, of excitatory and inhibitory units."""
    t, who = spikes
    z = np.zeros((round((ms - WARM) / DT), units), bool)
    at = np.round((t - WARM) / DT).astype(int)
    z[at[at >= 0], who[at >= 0]] = True
    kind = np.where(np.arange(units) < units * EXCITATORY // UNITS, "excitatory", "inhibitory")
    table = se.spikes.statistics(z, DT, kind)
    return {f"{row.group} {what}": float(row[what]) for _, row in table.iterrows() for what in ("rate", "cv")}
