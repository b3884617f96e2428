"""Delayed match to sample by braintrace: the network, weights, trials and optimizer of `match.py`.

Both sides are compared on the same whole trials first: losses, gradients, and the processor's seconds of a gradient, in
turns in one process. Each op of braintrace runs so, and the fastest is its side: `CSC` with numba or in plain XLA, or a
dense product whose weights are masked, with traces of all pairs. Peak memory is that of a process with only one side.
Then braintrace trains, and `match.py` says what this library needs for the same.

Needs `braintrace brainevent numba` beside this package.
"""

import argparse
import json
import statistics
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import brainevent
import brainstate
import braintrace
import equinox as eqx
import jax
import jax.numpy as jnp
import match
import numpy as np
import optax
from peak import in_process, peak_mb
from peers import TOLERANCE, difference

import sparse_etrace as se

RULES = {"D-RTRL": ("d_rtrl", {}), "ES-D-RTRL(0.98)": ("pp_prop", {"decay_or_rank": 0.98})}
OPS = {"CSC numba": "numba", "CSC jax_raw": "jax_raw", "dense": "jax_raw"}
TAU_2 = 2000.0
SLOW = float(np.exp(-1 / TAU_2))
BETWEEN = (SLOW - match.LEAK) * TAU_2 / (TAU_2 - 20)


def spread(net):
    """The parameters that have traces."""
    return net.cell.inp["all"], net.cell.rec["all"]


class PeerNet(brainstate.nn.Module):
    """The network as a model of braintrace."""

    def __init__(self, net, op):
        super().__init__()
        self.spike, self.reads, weights = net.cell.spike, [], []
        for param in spread(net):
            c, weight = param.op.connectivity, param.value["weight"]
            if op == "dense":
                mask, weight = (jnp.zeros(c.shape).at[c.pre, c.post].set(value) for value in (1, weight))
                read = partial(braintrace.matmul, weight_fn=lambda w, mask=mask: match._per_step(w * mask))
            else:
                matrix = brainevent.CSC(weight, jnp.asarray(c.pre), jnp.asarray(c.post_ptr), shape=c.shape)
                read = partial(braintrace.sparse_matmul, sparse_mat=matrix, weight_fn=match._per_step)
            self.reads.append(read)
            weights.append(weight)
        self.inp, self.rec, self.out = map(brainstate.ParamState, (*weights, dict(net.out.value)))

    def init_state(self, batch_size, **kwargs):
        zeros = jnp.zeros((batch_size, match.UNITS))
        self.v, self.slow, self.filtered = (brainstate.HiddenState(zeros) for _ in range(3))
        self.z, self.wait = (brainstate.ShortTermState(a) for a in (zeros, zeros.astype(jnp.int32)))

    def reset_state(self, *args, **kwargs):
        for state in (self.v, self.slow, self.filtered, self.z, self.wait):
            state.value = jnp.zeros_like(state.value)

    def update(self, x):
        v, wait, slow = self.v.value, self.wait.value, self.slow.value
        inp, rec = self.reads
        current = inp(x, self.inp.value) + rec(self.z.value, self.rec.value)
        v = jnp.where(wait > 0, v, match.LEAK * v + (1 - match.LEAK) * current + BETWEEN * slow)
        z = jnp.where(wait > 0, 0, self.spike(v - 1))
        reset = jax.lax.stop_gradient(z)
        self.v.value, self.slow.value = v - reset, SLOW * slow - 0.1 * reset
        self.z.value, self.wait.value = z, jnp.where(reset > 0, 4, jnp.maximum(wait - 1, 0))
        self.filtered.value = match.FILTER * self.filtered.value + (1 - match.FILTER) * z
        return (self.filtered.value / match.USUAL - 1) @ self.out.value["weight"] + self.out.value["bias"]


def start_peer(rule, op, net, x):
    """The parameters, and a function of trials that returns their gradients and the losses."""
    brainevent.config.set_numba_parallel(False)
    brainevent.config.set_backend("cpu", OPS[op])
    name, options = RULES[rule]
    model = PeerNet(net, op)
    learner = braintrace.compile(model, name, x[0], batch_size=x.shape[1], **options)

    @brainstate.transform.jit
    def run(x, y):
        model.reset_state()
        learner.reset_state(x.shape[1])
        grads, losses = learner.etrace_grad(
            x, y, step_fn=lambda x, y: match.loss_fn(learner(x), y), reduction="sum", return_value=True
        )
        return [grads[name,] for name in ("inp", "rec", "out")], losses

    return (model.inp, model.rec, model.out), run


def start_ours(rule, net):
    learner = match.RULES[rule](None, net)

    @eqx.filter_jit
    def run(x, y):
        carry = learner.init(net, net.init_state(x.shape[1]), x[0])
        losses, grads, _ = se.online_grad(learner, match.loss_fn, net, carry, x, y)
        return [*(param.value["weight"] for param in spread(grads)), grads.out.value], losses

    return run


def on_synapses(net, values):
    """Weights of a dense product, as one for each synapse."""
    graphs = [param.op.connectivity for param in spread(net)]
    return [*(v[c.pre, c.post] if v.ndim == 2 else v for v, c in zip(values, graphs, strict=False)), values[2]]


def trials(times):
    return match.trials(np.random.default_rng(0), match.BATCH, **times)


def seconds(run, data):
    """Of the processor, for a gradient."""
    begin = time.process_time()
    jax.block_until_ready(run(*data))
    return time.process_time() - begin


def compare(rule, op, times):
    """The largest relative difference of losses and gradients, in float64: in float32 spikes differ after a while."""
    jax.config.update("jax_enable_x64", True)
    net, (x, (same, counts)) = match.Net(jax.random.key(0)), trials(times)
    data = x.astype(float), (same, counts.astype(float))
    ours, theirs = start_ours(rule, net), start_peer(rule, op, net, data[0])[1]
    (grads, losses), (peer_grads, peer_losses) = ours(*data), theirs(*data)
    flat = [jax.tree.leaves(grads), jax.tree.leaves(on_synapses(net, peer_grads))]
    return max(difference([*flat[0], losses], [*flat[1], peer_losses]))


def together(rule, op, times, turns):
    """What gradients cost, in turns."""
    net, data = match.Net(jax.random.key(0)), trials(times)
    sides = start_ours(rule, net), start_peer(rule, op, net, data[0])[1]
    jax.block_until_ready([run(*data) for run in sides])
    took = [[seconds(run, data) for run in sides] for _ in range(turns)]
    ratio = statistics.median(theirs / ours for ours, theirs in took)
    return {"seconds": [statistics.median(side) for side in zip(*took, strict=True)], "ratio": ratio}


def alone(rule, op, times):
    """Megabytes that one side has at its peak, and at that before it began; `op` is None for this library."""
    net, data, before = match.Net(jax.random.key(0)), trials(times), peak_mb()
    run = start_peer(rule, op, net, data[0])[1] if op else start_ours(rule, net)
    jax.block_until_ready([run(*data) for _ in range(2)])
    return peak_mb(), before


def train(rule, op, seed, times, updates, fresh_trials):
    """Errors of braintrace on fresh trials."""
    net, rng = match.Net(jax.random.key(seed)), np.random.default_rng(seed)
    fresh, (answers, _) = match.trials(np.random.default_rng([seed, 1]), fresh_trials, **times)
    rate = optax.cosine_decay_schedule(match.RATES.get(rule, match.RATE), updates, 0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    states, run = start_peer(rule, op, net, fresh[:, : match.BATCH])
    kept = optimizer.init([state.value for state in states])
    found = {"updates": [], "error": [], "rate": []}
    for update in range(1, updates + 1):
        grads, _ = run(*match.trials(rng, match.BATCH, **times))
        values = [state.value for state in states]
        steps, kept = optimizer.update(grads, kept, values)
        for state, value in zip(states, optax.apply_updates(values, steps), strict=True):
            state.value = value
        if update % match.EVERY == 0 or update == updates:
            *weights, out = on_synapses(net, [state.value for state in states])
            places = lambda net: [*(param.value["weight"] for param in spread(net)), net.out.value]
            y, hertz = match.watch(eqx.tree_at(places, net, [*weights, out]), fresh, times["asked"])
            found["updates"].append(update)
            found["error"].append(float(np.mean(np.argmax(y, -1) != answers[0])))
            found["rate"].append(float(hertz))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for match_peer.json")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--turns", type=int, default=3, help="how often each side is timed")
    parser.add_argument("--quick", action="store_true", help="check that everything runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds, settings = ([0], match.QUICK) if args.quick else (args.seeds, match.FULL)
    result = {"versions": {name: version(name) for name in ("braintrace", "brainevent", "numba", "jax")}}
    worst = 0.0
    for rule in args.rules:
        row = result[rule] = {op: in_process(together, rule, op, settings[0], args.turns) for op in OPS}
        best = min(OPS, key=lambda op: row[op]["seconds"][1])
        row["difference"] = [in_process(compare, rule, op, match.QUICK[0]) for op in OPS]
        row["difference"] += [in_process(compare, rule, best, settings[0])]
        worst = max(worst, *row["difference"])
        print(
            f"{rule}: seconds of the processor for a gradient, here and there; differs by {max(row['difference']):.0e}"
        )
        for op in OPS:
            ours, theirs = row[op]["seconds"]
            print(f"  {op:<12} {ours:.2f} {theirs:.2f} ({row[op]['ratio']:.1f})", flush=True)
        row["peak_mb"] = [in_process(alone, rule, op, settings[0]) for op in (None, best)]
        (ours, start), (theirs, _) = row["peak_mb"]
        print(f"  MB at the peak, here and there: {ours:.0f} {theirs:.0f}, {start:.0f} before; it trains:", flush=True)
        for seed in seeds:
            found = row[f"seed {seed}"] = in_process(train, rule, best, seed, *settings)
            (args.out / "match_peer.json").write_text(json.dumps(result, indent=1) + "\n")
            wrong = ", ".join(f"{100 * error:.1f}" for error in found["error"])
            when, hertz = match.first(found) or "-", found["rate"][-1]
            print(f"  {best}, seed {seed}: % wrong {wrong}; {hertz:.0f} Hz; updates to 95 %: {when}", flush=True)
    if not worst < TOLERANCE:
        raise SystemExit(f"The two sides do not compute the same: they differ by {worst:.1e}.")


if __name__ == "__main__":
    main()
