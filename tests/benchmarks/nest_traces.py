"""Neurons and synapses of docs/from-nest-brian2.md by NEST, 500 steps of each row, beside this library.

Run it where `nest-simulator` is beside this library, as `make bench-nest` does. It prints the largest differences over
all steps, of which the page has those of each row, and makes nest_traces.npz; that of tests is made by `--out tests`.
"""

import ast
import json
import sys
from pathlib import Path

import jax
import nest
import numpy as np
from bench import arguments

sys.path.insert(0, str(Path(__file__).parents[1]))
import test_nest as page

STEPS, UNITS, DT, BEGIN, DELAY = 500, 3, 0.1, 5.0, 1.0  # ms
# Of each family of models: what currents of 5 to 35 are multiplied with, pA, and what a spike brings, pA, mV or nS.
DRIVES = {
    "iaf_psc": (25.0, 500.0, -200.0),
    "iaf_psc_delta": (25.0, 4.0, -3.0),
    "iaf_cond": (16.0, 4.0, 3.0),
    "aeif_psc": (25.0, 500.0, -200.0),
    "aeif_cond": (25.0, 6.0, 4.0),
    "izhikevich": (0.6, 0.0, 0.0),
    "gif_psc": (8.0, 150.0, -60.0),
    "glif_psc": (10.0, 200.0, -80.0),
    "mat2_psc": (25.0, 500.0, -200.0),
}
MORE = {"aeif": ["w"], "izhikevich": ["U_m"]}  # what is recorded beside the potential
EARLY = "iaf_psc_delta", "gif_psc_exp"  # here what arrives acts in the step before the arrival, else after it


def longest(table, name, otherwise=None):
    """The entry whose name is the longest beginning of this one."""
    return table.get(max((key for key in table if name.startswith(key)), key=len, default=None), otherwise)


def inputs():
    """Currents, and how many spikes arrive at two receptors before each step."""
    rng = np.random.default_rng(0)
    current = np.repeat(np.round(rng.uniform(5, 35, (STEPS // 20, UNITS)), 1), 20, axis=0)
    ex, inh = (rng.random((2, STEPS, UNITS)) < np.reshape([0.06, 0.03], (2, 1, 1))).astype(np.int8)
    return {"I": current, "ex": ex, "inh": inh}


def start(resolution=DT):
    nest.ResetKernel()
    nest.verbosity = nest.VerbosityLevel.FATAL
    nest.set(resolution=resolution)


def sent_at(steps):
    """When to send what acts from these steps on."""
    return np.round(BEGIN - DELAY + DT * steps, 1)


def inject(cells, current):
    """Currents of each step, pA."""
    for cell, values in zip(cells, current.T, strict=True):
        by = {"amplitude_times": sent_at(np.arange(STEPS)), "amplitude_values": values}
        nest.Connect(nest.Create("step_current_generator", params=by), cell, syn_spec={"delay": DELAY})


def simulate(cells, names):
    """What there is at the begin of each step and at the end of the last, and spikes in each."""
    meter, recorder = (
        nest.Create("multimeter", params={"interval": DT, "record_from": names}),
        nest.Create("spike_recorder"),
    )
    nest.Connect(meter, cells)
    nest.Connect(cells, recorder)
    nest.Simulate(BEGIN + STEPS * DT + DELAY)
    found, fired, first = meter.get("events"), recorder.get("events"), min(cells.tolist())

    def table(events, values, rows):
        at = np.ceil((np.asarray(events["times"]) - BEGIN) / DT - 1e-6).astype(int)
        out, kept = np.zeros((STEPS + 1, len(cells))), (at >= 0) & (at <= STEPS)
        out[at[kept], np.asarray(events["senders"], int)[kept] - first] = np.broadcast_to(values, at.shape)[kept]
        return out[-rows:]

    traces = {name: table(found, found[name], STEPS + 1) for name in names}
    return traces | {"z": table(fired, 1, STEPS).astype(np.int8)}


def row(model, constants, given, resolution=DT):
    """What NEST records, and the scales of what arrives."""
    scales = longest(DRIVES, model)
    start(resolution)
    cells = nest.Create(model, UNITS, constants)
    inject(cells, scales[0] * given["I"])
    for port, (name, weight) in enumerate(zip(("ex", "inh"), scales[1:], strict=True), 1):
        sign = -1 if "cond" in model and name == "inh" else 1
        to = {"delay": DELAY, "weight": sign * weight} | ({"receptor_type": port} if "tau_syn" in constants else {})
        for cell, arrivals in zip(cells, given[name].T, strict=True):
            times = sent_at(np.nonzero(arrivals)[0] + (model in EARLY))
            nest.Connect(nest.Create("spike_generator", params={"spike_times": times}), cell, syn_spec=to)
    return simulate(cells, ["V_m", *longest(MORE, model, [])]) | {"scales": np.array(scales)}


def network():
    """Neurons with constants of their own, by synapses with delays of their own."""
    rng, units, synapses = np.random.default_rng(1), 8, 30
    made = {"taus": rng.uniform(8, 20, units), "tops": rng.uniform(-58, -52, units)}
    made |= {"S_i": rng.integers(0, units, synapses), "S_j": rng.integers(0, units, synapses)}
    made |= {"S_w": 8.0 * rng.integers(-40, 80, synapses), "S_d": 0.1 * rng.integers(1, 31, synapses)}
    made["current"] = np.repeat(rng.uniform(200, 600, (STEPS // 20, units)), 20, axis=0)
    start()
    A = nest.Create("iaf_psc_exp", units, {"tau_m": made["taus"], "V_th": made["tops"]})
    inject(A, made["current"])
    ends = np.array(A.tolist())
    between = {"weight": made["S_w"], "delay": made["S_d"]}
    nest.Connect(ends[made["S_i"]], ends[made["S_j"]], "one_to_one", between)
    return made | simulate(A, ["V_m"])


def main():
    args = arguments(__doc__)
    given = inputs()
    stored, found = dict(given), {}
    runs = {key: row(key[0], ast.literal_eval(key[1]), given) for key in page.ROWS}
    with jax.enable_x64(True):
        for key, traces in runs.items():
            found[" ".join(key)] = page.differences(key, given, traces)
            if key[0] == "izhikevich":  # by Euler's method
                fine = row(key[0], ast.literal_eval(key[1]), given, 0.001)
                found["izhikevich in steps of 0.001 ms"] = page.differences(key, given, fine)
        runs["network", ""] = traces = network()
        found["network"] = page.of_network(traces)
    for name, differences in found.items():
        print(name, {k: float(f"{a:.2g}") for k, a in differences.items()})
    for key, traces in runs.items():
        stored |= {f"{' '.join(key)}/{k}": a[::5] if k in page.OURS else a for k, a in traces.items()}
    np.savez_compressed(args.out / "nest_traces.npz", **stored)
    (args.out / "nest_traces.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
