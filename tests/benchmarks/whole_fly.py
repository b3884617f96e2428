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
from peak import peak_mb

DT, RATE, DRIVEN, CHUNK = 0.1, 100.0, 20, 200  # ms, Hz
PER_SYNAPSE, DRIVE = 0.275, 68.75  # mV
BUSY = 100  # neurons whose rates are compared


def by_brian(given):
    """Steps and units of spikes, and seconds of wall and processor, with the published equations."""
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
    begin, cpu = time.perf_counter(), time.process_time()
    net.run((steps - 1) * DT * b.ms, namespace={})
    seconds = time.perf_counter() - begin, time.process_time() - cpu
    # An input acts after the step that it is in, here at its begin.
    return np.round(np.asarray(spikes.t / b.ms) / DT).astype(int) - 1, np.asarray(spikes.i), *seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--brian", help="an interpreter that has Brian2")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part == "Brian2":
        *spikes, seconds, cpu = by_brian(dict(np.load(args.out / "whole_fly.npz")))
        np.savez(args.out / "Brian2.npz", *spikes)
        note(args.out, {"seconds": seconds, "seconds of processor": cpu, "spikes": len(spikes[0])})
        return
    if args.part:
        import whole_fly_here

        note(args.out, whole_fly_here.PARTS[args.part](args.out, args.quick))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    found, interpreters = {}, dict.fromkeys(("network", "here", "ES-D-RTRL", "D-RTRL"), sys.executable)
    # Each in a process of its own, of which the memory is that at its peak.
    for part, python in (interpreters | ({"Brian2": args.brian} if args.brian else {})).items():
        quick = ["--quick"] * args.quick
        subprocess.run([python, __file__, "--part", part, "--out", str(args.out), *quick], check=True)
        found[part] = json.loads((args.out / "part.json").read_text())
        print(part, found[part], flush=True)
    if args.brian:
        spikes = [list(np.load(args.out / f"{part}.npz").values()) for part in ("here", "Brian2")]
        given = np.load(args.out / "whole_fly.npz")
        found |= compared(*spikes, given["units"], len(given["inputs"]) * DT / 1000)
        print({name: value for name, value in found.items() if name not in interpreters})
    (args.out / "whole_fly.json").write_text(json.dumps(found, indent=1) + "\n")


def note(folder, row):
    row["GB"] = peak_mb() / 2**10
    (folder / "part.json").write_text(json.dumps(row))


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
