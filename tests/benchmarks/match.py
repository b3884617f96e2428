"""Delayed match to sample: units tired by the sample answer weakly to a test that is the same.

A trial, in steps of 1 ms: one of two groups of inputs fires as the sample, only noise for the delay, then one of them
as the test. Generalized integrate-and-fire units hear one group each, and each spike makes their slow current more
negative, which is what lasts over the delay. Of each rule: errors on fresh trials, updates to the mark, seconds an
update, and bytes.
"""

import argparse
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se
from sparse_etrace.cells import spiking

GROUP, NOISE, UNITS, BATCH, EVERY, WRONG, RATE, USUAL = 40, 20, 200, 16, 10, 0.05, 0.003, 0.02
RATES = {"BPTT": 0.002, "e-prop, random": 0.008}  # chosen with a seed that is not reported
FULL = {"shown": 500, "delay": 1000, "asked": 250}, 40, 256
QUICK = {"shown": 20, "delay": 20, "asked": 10}, 2, 16
FIRES, LEAK, FILTER = 0.1, float(np.exp(-1 / 20)), float(np.exp(-1 / 50))
READOUT = "readout alone"
RULES = {
    "D-RTRL": lambda key, model: se.D_RTRL(),
    "ES-D-RTRL(0.98)": lambda key, model: se.ES_D_RTRL(decay=0.98),
    "e-prop, random": lambda key, model: se.EProp("filtered", "random", key=key),
    "Bridged(16)": lambda key, model: se.Bridged(16),
    "BPTT": lambda key, model: se.BPTT(),
    READOUT: lambda key, model: se.D_RTRL(
        train=eqx.tree_at(lambda m: m.out, jax.tree.map(lambda _: False, model), True)
    ),
}


class Net(eqx.Module):
    """Units on random graphs, one synapse in ten of those possible, read through a filter of their spikes."""

    cell: spiking.Population
    out: se.ETraceParam

    def __init__(self, key):
        keys, rng = jax.random.split(key, 3), np.random.default_rng(np.asarray(jax.random.key_data(key)))
        group = np.repeat([0, 1, 2], [GROUP, GROUP, NOISE])[:, None]
        hears = (group == np.arange(UNITS) % 2) | (group == 2)
        inputs = se.from_edges(*np.nonzero(hears & (rng.random(hears.shape) < 0.2)), shape=hears.shape)
        has = (rng.random((UNITS, UNITS)) < 0.1) & ~np.eye(UNITS, dtype=bool)
        units = se.from_edges(*np.nonzero(has), shape=has.shape)
        inp, rec = (se.SpMatMulOp(graph, _per_step) for graph in (inputs, units))
        self.cell = spiking.Population(
            UNITS,
            spiking.GIF(tau_2=2000.0, jump_2=-0.1),
            inp.param(keys[0], init=lambda *of: 0.2 * jnp.abs(jax.random.normal(*of))),
            rec.param(keys[1], init=lambda *of: 0.1 * jax.random.normal(*of)),
            refractory=4.0,
            reset_gradient=False,
        )
        self.out = se.MatMulOp(bias=True).param(keys[2], UNITS, 2)

    def init_state(self, batch):
        """Rest."""
        return {"cell": self.cell.init_state(batch), "filtered": jnp.zeros((batch, UNITS))}

    def __call__(self, state, x):
        cell, z = self.cell(state["cell"], x)
        filtered = FILTER * state["filtered"] + (1 - FILTER) * z
        return {"cell": cell, "filtered": filtered}, self.out(filtered / USUAL - 1)


def _per_step(w):
    return w / (1 - LEAK)


def trials(rng, batch, shown, delay, asked):
    """Spikes `(steps, batch, inputs)`, and of each step the target and how much it counts."""
    sample, test = rng.integers(0, 2, (2, batch))
    chance = np.zeros((2 * shown + delay, batch, 3), np.float32)
    chance[:shown, np.arange(batch), sample] = chance[-shown:, np.arange(batch), test] = FIRES
    chance[..., 2] = FIRES / 4
    likely = np.repeat(chance, (GROUP, GROUP, NOISE), axis=2)
    counts = (np.arange(len(chance)) >= len(chance) - asked).astype(np.float32) / asked
    match = np.broadcast_to((sample == test).astype(np.int32), (len(chance), batch))
    return (rng.random(likely.shape, dtype=np.float32) < likely).astype(np.float32), (match, counts)


def loss_fn(y, target):
    match, counts = target
    return counts * jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, match))


@eqx.filter_jit
def watch(model, x, asked):
    """Mean readout while it is asked for, and the rate, Hz."""

    def step(state, x):
        state, y = model(state, x)
        return state, (y, state["cell"].z.mean())

    y, z = jax.lax.scan(step, model.init_state(x.shape[1]), x)[1]
    return y[-asked:].mean(0), 1000 * z.mean()


def train(name, seed, times, updates, fresh_trials):
    """Errors on fresh trials and rates while a rule learns, the seconds of its updates, and its memory."""
    key = jax.random.key(seed)
    model = Net(key)
    learner, state = RULES[name](jax.random.fold_in(key, 1), model), model.init_state(BATCH)
    fresh, (answers, _) = trials(np.random.default_rng([seed, 1]), fresh_trials, **times)
    plan = se.memory_plan(learner, model, state, fresh[0, :BATCH], len(fresh))
    found = {"updates": [], "error": [], "rate": [], "bytes": plan.total, "traces": plan.traces}
    stamps = []

    def look(progress):
        stamps.append(time.perf_counter())
        if progress.sequences % EVERY == 0 or progress.sequences == updates:
            y, rate = watch(progress.model, fresh, times["asked"])
            found["updates"].append(progress.sequences)
            found["error"].append(float(np.mean(np.argmax(y, -1) != answers[0])))
            found["rate"].append(float(rate))
            stamps.append(np.nan)

    rng = np.random.default_rng(seed)
    data = (trials(rng, BATCH, **times) for _ in range(updates))
    rate = optax.cosine_decay_schedule(RATES.get(name, RATE), updates, 0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    se.fit(learner, loss_fn, optimizer, model, data, state=state, callbacks=look, progress=False)
    return found | {"seconds": float(np.nanmedian(np.diff(stamps)))}


def first(row):
    """Updates after which an error is first at the mark or below, or None."""
    return next((n for n, error in zip(row["updates"], row["error"], strict=True) if error <= WRONG), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for match.json")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="check that everything runs, in seconds")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rules, seeds, settings = (["D-RTRL", "BPTT"], [0], QUICK) if args.quick else (args.rules, args.seeds, FULL)
    found = {}
    for name in rules:
        found[name] = rows = [train(name, seed, *settings) for seed in seeds]
        (args.out / "match.json").write_text(json.dumps(found, indent=1) + "\n")
        wrong = ", ".join(f"{100 * row['error'][-1]:.1f}" for row in rows)
        when = " ".join(str(first(row) or "-") for row in rows)
        size = f"{rows[0]['bytes'] / 1e6:.1f} MB, of these traces {rows[0]['traces'] / 1e6:.1f}"
        seconds, rate = np.mean([(row["seconds"], row["rate"][-1]) for row in rows], axis=0)
        print(f"{name:<16} % wrong {wrong}; {rate:.0f} Hz; updates to {WRONG:.0%}: {when}; {seconds:.2f} s; {size}")


if __name__ == "__main__":
    main()
