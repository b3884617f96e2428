"""Spiking neurons and synapses by Brian2, 500 steps of each: makes tests/brian_traces.npz.

Run it in an environment of its own: `pip install brian2 'numpy<2'`.
"""

from pathlib import Path

import brian2 as b2
import numpy as np
import whole_fly

b2.prefs.codegen.target = "numpy"
STEPS, UNITS, DT = 500, 3, 0.1  # ms
# Each neuron: equations, start, threshold, reset, and what is recorded; `I` is a current that is held over a step.
LEAK = "dv/dt = (-65*mV - v + R*{I}) / (10*ms) : volt (unless refractory)\n"
HARD, SOFT = "v = -60*mV", "v -= 15*mV"
NEURONS = {
    "lif": (LEAK.format(I="I"), {}, "v > -50*mV", SOFT, "v"),
    "lif to a value": (LEAK.format(I="I"), {}, "v > -50*mV", HARD, "v"),
    "lif without reset": (LEAK.format(I="I"), {}, "v > -50*mV", "", "v"),
    "alif": (
        LEAK.format(I="I") + "db/dt = -b / (30*ms) : volt",
        {},
        "v > -50*mV + b",
        f"{SOFT}; b += 2*mV",
        "v b",
    ),
    "adlif": (
        LEAK.format(I="(I - w)") + "dw/dt = (0.5*nS*(v + 65*mV) - w) / (50*ms) : amp",
        {},
        "v > -50*mV",
        f"{HARD}; w += 3*pA",
        "v w",
    ),
    "gif": (
        LEAK.format(I="(I + i1 + i2)")
        + "di1/dt = -i1 / (5*ms) : amp\ndi2/dt = -i2 / (50*ms) : amp\n"
        + "dtheta/dt = (-50*mV - theta + 0.1*(v + 65*mV)) / (40*ms) : volt",
        {"theta": -50 * b2.mV},
        "v > theta",
        f"{HARD}; i1 = 0.5*i1 + 10*pA; i2 -= 4*pA; theta = clip(theta + 1*mV, -48*mV, inf*mV)",
        "v i1 i2 theta",
    ),
    "izhikevich": (
        "cut = clip(v, -inf, 30) : 1\n"
        "dv/dt = (0.04*cut**2 + 5*cut + 140 - u + I/pA) / ms : 1 (unless refractory)\n"
        "du/dt = 0.02*(0.2*cut - u) / ms : 1",
        {"v": -65, "u": -13},
        "v >= 30",
        "v = -65; u += 8",
        "v u",
    ),
    "adex": (
        "cut = clip(v, -inf*mV, -30*mV) : volt\n"
        "dv/dt = (-65*mV - cut + 3*mV*exp((cut + 50*mV) / (3*mV)) + R*(I - w)) / (10*ms) : volt (unless refractory)\n"
        "dw/dt = (0.1*nS*(cut + 65*mV) - w) / (50*ms) : amp",
        {},
        "v >= -30*mV",
        f"{HARD}; w += 1*pA",
        "v w",
    ),
    "li": (LEAK.format(I="I").replace(" (unless refractory)", ""), {}, None, None, "v"),
}
# Each synapse: the current, equations, and what an arrival does.
SYNAPSES = {
    "current": ("held", "", None),
    "delta": ("0*pA", "", "v_post += 4*mV"),
    "exponential": ("s", "ds/dt = -s / (3*ms) : amp", "s_post += 20*pA"),
    "alpha": (
        "s",
        "ds/dt = r - s / (3*ms) : amp\ndr/dt = -r / (3*ms) : amp/second",
        "r_post += 20*pA * exp(1) / (3*ms)",
    ),
    "double exponential": (
        "s",
        "ds/dt = r - s / (6*ms) : amp\ndr/dt = -r / (1*ms) : amp/second",
        "r_post += 20*pA * 6**(1/5.) / ms",
    ),
    "conductance": ("s * (0*mV - v)", "ds/dt = -s / (3*ms) : siemens", "s_post += 0.4*nS"),
}
RUNS = {name: (name, "current") for name in NEURONS} | {name: ("lif to a value", name) for name in SYNAPSES}


def inputs():
    """Currents, pA, and what arrives at synapses before each step but the first."""
    rng = np.random.default_rng(0)
    current = np.repeat(np.round(rng.uniform(5, 35, (STEPS // 20, UNITS)), 1), 20, axis=0)
    arrivals = (rng.random((STEPS, UNITS)) < 0.07).astype(np.int8)
    arrivals[0] = 0
    return {"current": current, "arrivals": arrivals}


def run(neuron, synapse, given):
    """Variables after each step, and spikes."""
    equations, start, threshold, reset, names = NEURONS[neuron]
    current, more, arrive = SYNAPSES[synapse]
    # Its exact solution divides by zero where a neuron that has two variables is refractory.
    is_exact = neuron not in ("adlif", "izhikevich", "adex") and synapse != "conductance"
    b2.start_scope()
    b2.defaultclock.dt = DT * b2.ms
    # Held for 2 ms: Brian2 counts the step of the spike, so that the time is one step longer.
    # It drops what steps `v` in the last of these steps, and a reset forgets what comes with it: not so for `delta`.
    events = {} if threshold is None else {"threshold": threshold, "reset": reset}
    if threshold is not None and synapse != "delta":
        events["refractory"] = 2.1 * b2.ms
    group = b2.NeuronGroup(
        UNITS,
        f"{equations}\n{more}\nI = {current} : amp\nheld : amp",
        method="exact" if is_exact else "rk4",
        namespace={"R": 1 * b2.Gohm, "drive": b2.TimedArray(given["current"] * b2.pA, dt=DT * b2.ms)},
        **events,
    )
    group.run_regularly("held = drive(t, i)", when="start")  # in the equations, a stage would read the next step's
    for name, value in ({"v": -65 * b2.mV} | start).items():
        setattr(group, name, value)
    names = names.split() + (["s"] if more else [])
    monitor = b2.StateMonitor(group, names, record=True, when="before_synapses")
    parts = [group, monitor]
    if arrive is not None:  # a spike acts after the step in which it is sent
        steps, units = np.nonzero(given["arrivals"])
        source = b2.SpikeGeneratorGroup(UNITS, units, (steps - 1) * DT * b2.ms)
        synapses = b2.Synapses(source, group, on_pre=arrive)
        synapses.connect(j="i")
        parts += [source, synapses]
    if threshold is not None:
        parts.append(b2.SpikeMonitor(group))
    network = b2.Network(*parts)
    network.schedule = ["start", "groups", "thresholds", "resets", "synapses", "end"]
    network.run(STEPS * DT * b2.ms)
    found = {name: np.asarray(getattr(monitor, name)).T for name in names}
    if threshold is not None:
        z = np.zeros((STEPS, UNITS), np.int8)
        z[np.round(np.asarray(parts[-1].t / b2.ms) / DT).astype(int), np.asarray(parts[-1].i)] = 1
        found["z"] = z
    return found


def fly():
    """A small network with the equations of the whole fly, and when which of its neurons spiked."""
    rng, units, driven = np.random.default_rng(1), 60, np.arange(5)
    pre, post = np.divmod(rng.choice(units**2, 900, replace=False), units)
    count = np.ceil(rng.lognormal(3.2, 1.0, pre.size)) * np.where(rng.random(units) < 0.4, -1, 1)[pre]
    given = {"pre": pre, "post": post, "weight": count, "units": np.asarray(units), "driven": driven}
    given["inputs"] = rng.random((3000, driven.size)) < 0.015
    at, who, *_ = whole_fly.by_brian(given)
    return {f"whole fly/{name}": value for name, value in (given | {"at": at, "who": who}).items()}


if __name__ == "__main__":
    given = inputs()
    stored = dict(given) | fly()
    for name, (neuron, synapse) in RUNS.items():
        found = run(neuron, synapse, given)
        print(name, {k: (a.min(), a.max()) for k, a in found.items()}, found["z"].sum(0) if "z" in found else "")
        # Of what arrives by a synapse, the membrane and the filter; all digits of every fifth step.
        stored |= {f"{name}/{k}": a if k == "z" else a[4::5] for k, a in found.items()}
    path = Path(__file__).resolve().parents[1] / "brian_traces.npz"
    np.savez_compressed(path, **stored)
    print(path.stat().st_size)
