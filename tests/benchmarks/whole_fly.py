"""The published model of a whole fly on a made network of its size: seconds, memory, training, and rates by Brian2.

20 neurons are driven at 100 Hz, in both programs by the same spikes. `--brian PYTHON` names an interpreter that has
Brian2.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DT, RATE, DRIVEN, CHUNK = 0.1, 100.0, 20, 200  # ms, Hz
PER_SYNAPSE, DRIVE = 0.275, 68.75  # mV
BUSY = 100  # neurons whose rates are compared


def by_brian(given):
    """Spikes as steps and units, and seconds for all of it, with the published equations."""
    import brian2 as b

    units, steps, driven, inputs = int(given["units"]), len(given["inputs"]), given["driven"], given["inputs"]

    b.defaultclock.dt = DT * b.ms
    equations = """dv/dt = (-52 * mV - v + g) / (20 * ms) : volt (unless refractory)
    dg/dt = -g / (5 * ms) : volt (unless refractory)
    silence : second"""
    reset = {"threshold": "v > -45 * mV", "reset": "v = -52 * mV; g = 0 * mV", "refractory": "silence"}
    group = b.NeuronGroup(units, equations, method="exact", **reset)
    group.v = -52 * b.mV
    silence = np.full(units, 2.2)
    silence[driven] = 0
    group.silence = silence * b.ms
    synapses = b.Synapses(group, group, "w : volt", on_pre="g += w", delay=1.8 * b.ms)
    synapses.connect(i=given["pre"], j=given["post"])
    synapses.w = given["weight"] * PER_SYNAPSE * b.mV
    at, which = np.nonzero(inputs)
    source = b.SpikeGeneratorGroup(len(driven), which, at * DT * b.ms)
    drive = b.Synapses(source, group, on_pre=f"v += {DRIVE} * mV")
    drive.connect(i=np.arange(len(driven)), j=driven)
    spikes = b.SpikeMonitor(group)
    net = b.Network(group, synapses, source, drive, spikes)
    net.run(DT * b.ms, namespace={})
    begin = time.perf_counter()
    net.run((steps - 1) * DT * b.ms, namespace={})
    seconds = time.perf_counter() - begin
    # An input acts after the step that it is in, here at its begin.
    return np.round(np.asarray(spikes.t / b.ms) / DT).astype(int) - 1, np.asarray(spikes.i), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--brian", help="an interpreter that has Brian2")
    parser.add_argument("--as-brian", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_brian:
        np.savez(args.as_brian.with_suffix(".spikes.npz"), *by_brian(dict(np.load(args.as_brian))))
        return
    import whole_fly_here

    args.out.mkdir(parents=True, exist_ok=True)
    given, spikes, found = whole_fly_here.simulated(args.quick)
    if args.brian:
        file = args.out / "whole_fly.npz"
        np.savez(file, **given)
        subprocess.run([args.brian, __file__, "--as-brian", str(file)], check=True)
        at, who, seconds = np.load(file.with_suffix(".spikes.npz")).values()
        found["Brian2"] = {"seconds": float(seconds), "spikes": len(at)}
        found |= compared(spikes, (at, who), given["units"], given["steps"] * DT / 1000)
    found |= whole_fly_here.trained(args.quick)
    print(json.dumps(found, indent=1))
    (args.out / "whole_fly.json").write_text(json.dumps(found, indent=1) + "\n")


def compared(here, there, units, seconds):
    """How far the rates of the busiest neurons are apart, as a share, and how many spikes are the same."""
    ours, theirs = (np.bincount(who, minlength=units) / seconds for _, who in (here, there))
    busy = np.argsort(-theirs, kind="stable")[:BUSY]
    apart = np.abs(ours[busy] - theirs[busy]) / np.maximum(theirs[busy], 1e-9)
    same = set(zip(*map(np.ndarray.tolist, here))) & set(zip(*map(np.ndarray.tolist, there)))
    return {
        "slowest of the busiest, Hz": float(theirs[busy[-1]]),
        "apart, mean": float(apart.mean()),
        "apart, most": float(apart.max()),
        "of the mean rate": float(abs(ours[busy].mean() / theirs[busy].mean() - 1)),
        "spikes in common": len(same),
    }


if __name__ == "__main__":
    sys.exit(main())
