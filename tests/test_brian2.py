"""Spiking neurons and synapses beside the traces that Brian2 2.9 made, by tests/benchmarks/brian_traces.py."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_etrace.cells import spiking

STORED = dict(np.load(Path(__file__).with_name("brian_traces.npz")))
LEAK = {"tau": 10.0, "rest": -65.0}
LIF = LEAK | {"threshold": -50.0}
# Each row of the page: neuron, synapse, and what an arrival brings.
ROWS = {
    "lif": lambda: (spiking.LIF(**LIF), spiking.Current()),
    "lif to a value": lambda: (spiking.LIF(**LIF, reset=-60.0), spiking.Current()),
    "lif without reset": lambda: (spiking.LIF(**LIF, reset=None), spiking.Current()),
    "alif": lambda: (spiking.ALIF(**LIF, tau_adaptation=30.0, adaptation=2.0), spiking.Current()),
    "adlif": lambda: (
        spiking.AdLIF(**LIF, tau_adaptation=50.0, coupling=0.5, adaptation=3.0, reset=-60.0),
        spiking.Current(),
    ),
    "gif": lambda: (
        spiking.GIF(
            **LIF, jump_1=10.0, keep_1=0.5, jump_2=-4.0, tau_threshold=40.0, coupling=0.1, threshold_jump=1.0,
            threshold_floor=-48.0, reset=-60.0,
        ),
        spiking.Current(),
    ),
    "izhikevich": lambda: (spiking.Izhikevich(), spiking.Current()),
    "adex": lambda: (
        spiking.AdEx(
            **LIF, resistance=1.0, slope=3.0, tau_adaptation=50.0, coupling=0.1, adaptation=1.0, reset=-60.0,
            peak=-30.0,
        ),
        spiking.Current(),
    ),
    "li": lambda: (spiking.LI(**LEAK), spiking.Current()),
    "current": lambda: (spiking.LIF(**LIF, reset=-60.0), spiking.Current()),
    "delta": lambda: (spiking.LIF(**LIF, reset=-60.0), spiking.Delta(), 4.0),
    "exponential": lambda: (spiking.LIF(**LIF, reset=-60.0), spiking.Exponential(3.0), 20.0),
    "alpha": lambda: (spiking.LIF(**LIF, reset=-60.0), spiking.Alpha(3.0), 20.0),
    "double exponential": lambda: (spiking.LIF(**LIF, reset=-60.0), spiking.DoubleExponential(1.0, 6.0), 20.0),
    "conductance": lambda: (spiking.LIF(**LIF, reset=-60.0), spiking.Conductance(spiking.Exponential(3.0), 0.0), 0.4),
}  # fmt: skip
UNIT = {"v": 1e3, "b": 1e3, "theta": 1e3, "w": 1e12, "i1": 1e12, "i2": 1e12, "s": 1e12}


@pytest.mark.parametrize("name", ROWS)
def test_row(name, x64):
    neuron, synapse, *weight = ROWS[name]()
    refractory = 2.0 if neuron.spikes and name != "delta" else 0.0
    cell = spiking.Population(3, neuron, synapses=synapse, dt=0.1, refractory=refractory)
    xs = STORED["arrivals"] * weight[0] if weight else STORED["current"]
    start = cell.init_state()
    start = start._replace(neuron={**start.neuron, "v": jnp.full(3, -65.0)})
    states = jax.lax.scan(lambda s, x: (cell(s, x)[0],) * 2, start, jnp.asarray(xs))[1]
    ours = {**states.neuron, **states.synapses["all"]}
    unit = UNIT | ({"v": 1.0, "u": 1.0} if name == "izhikevich" else {"s": 1e9} if name == "conductance" else {})
    if neuron.spikes:
        np.testing.assert_array_equal(states.z, STORED[f"{name}/z"])
        assert STORED[f"{name}/z"].sum() > 5
    worst = {}
    for key in (k.split("/")[1] for k in STORED if k.startswith(f"{name}/") and not k.endswith("/z")):
        worst[key] = np.abs(ours[key][4::5] - unit[key] * STORED[f"{name}/{key}"]).max()
    print(name, {key: f"{a:.1e}" for key, a in worst.items()})
    assert worst and max(worst.values()) < (1e-6 if name == "adlif" else 1e-9)
