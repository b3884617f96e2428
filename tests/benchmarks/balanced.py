"""A balanced network of 10,000 units and a million synapses with delays, here and in Brian2: rates and seconds.

Leaky units at -60 mV with a constant drive to -49 mV, a threshold at -50 mV, exponential synapses of 5 ms
(excitatory) and 10 ms (inhibitory), delays of 1.5 ms, steps of 0.1 ms; the same weights and first potentials in both.
`--brian PYTHON` names an interpreter that has Brian2.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

UNITS, EXCITATORY, DEGREE, DT, DELAY = 10_000, 8_000, 100, 0.1, 1.5
TO_EXCITE, TO_INHIBIT, WARM = 1.3, -7.2, 200.0  # mV, mV, ms
CHUNK = 500


def network(units):
    """Senders, targets, weights in mV, first potentials in mV."""
    rng = np.random.default_rng(0)
    pre, post = rng.integers(0, units, units * DEGREE), np.repeat(np.arange(units), DEGREE)
    weight = np.where(pre < units * EXCITATORY // UNITS, TO_EXCITE, TO_INHIBIT).astype(np.float32)
    return pre, post, weight, rng.uniform(-60, -50, units).astype(np.float32)


def by_brian(units, ms):
    """Spikes as times in ms and units, and seconds for a second of the network."""
    import brian2 as b

    pre, post, weight, v = network(units)
    b.defaultclock.dt = DT * b.ms
    equations = """dv/dt = (ge + gi - (v + 49 * mV)) / (20 * ms) : volt (unless refractory)
    dge/dt = -ge / (5 * ms) : volt
    dgi/dt = -gi / (10 * ms) : volt"""
    reset = {"threshold": "v > -50 * mV", "reset": "v = -60 * mV", "refractory": 5 * b.ms, "method": "exact"}
    group = b.NeuronGroup(units, equations, **reset)
    group.v = v * b.mV
    kept = []
    for name, is_in in (("ge", weight > 0), ("gi", weight < 0)):
        synapses = b.Synapses(group, group, "w : volt", on_pre=f"{name} += w", delay=DELAY * b.ms)
        synapses.connect(i=pre[is_in], j=post[is_in])
        synapses.w = weight[is_in] * b.mV
        kept.append(synapses)
    spikes = b.SpikeMonitor(group)
    net = b.Network(group, spikes, *kept)
    net.run(10 * b.ms, namespace={})
    begin = time.perf_counter()
    net.run((ms - 10) * b.ms, namespace={})
    seconds = (time.perf_counter() - begin) * 1000 / (ms - 10)
    return np.asarray(spikes.t / b.ms), np.asarray(spikes.i), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--brian", help="an interpreter that has Brian2")
    parser.add_argument("--as-brian", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    units, ms = (500, 300.0) if args.quick else (UNITS, 1000.0)
    if args.as_brian:
        np.savez(args.as_brian, *by_brian(units, ms))
        return
    import balanced_here

    args.out.mkdir(parents=True, exist_ok=True)
    spikes, seconds = balanced_here.times(*network(units), ms, CHUNK)
    both = {"here": balanced_here.rates(spikes, units, ms) | seconds}
    if args.brian:
        file = args.out / "brian.npz"
        quick = ["--quick"] * args.quick
        subprocess.run([args.brian, __file__, "--as-brian", str(file), *quick], check=True)
        *spikes, seconds = np.load(file).values()
        both["Brian2"] = balanced_here.rates(spikes, units, ms) | {"seconds": float(seconds)}
    for name, row in both.items():
        print(name, "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    (args.out / "balanced.json").write_text(json.dumps(both, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
