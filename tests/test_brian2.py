"""Spiking neurons and synapses of the page on Brian2, beside traces of Brian2 2.9: tests/benchmarks/brian_traces.py."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import few

from sparse_etrace.cells import spiking

STORED = dict(np.load(Path(__file__).with_name("brian_traces.npz")))
# Rows of the page, in order: each model, and of a synapse what an arrival brings.
NEURONS = ("lif", "lif to a value", "lif without reset", "alif", "adlif", "gif", "izhikevich", "adex", "li")
SYNAPSES = {
    "current": None, "delta": 4.0, "exponential": 20.0, "alpha": 20.0, "double exponential": 20.0, "conductance": 0.4,
}  # fmt: skip
PAGE = (Path(__file__).resolve().parents[1] / "docs/from-nest-brian2.md").read_text()
CODE = re.findall(r"^\|.*\| `(spiking\..*)` \|$", PAGE, re.M)
UNIT = {"v": 1e3, "b": 1e3, "theta": 1e3, "w": 1e12, "i1": 1e12, "i2": 1e12, "s": 1e12}


@pytest.mark.parametrize(
    "name", few([*NEURONS, *SYNAPSES], ["gif", "izhikevich", "adex", "delta", "double exponential"])
)
def test_row(name, x64):
    made = dict(zip([*NEURONS, *SYNAPSES], map(eval, CODE), strict=True))
    neuron, synapse = (made[name], None) if name in NEURONS else (made["lif to a value"], made[name])
    refractory = 2.0 if neuron.spikes and name != "delta" else 0.0
    cell = spiking.Population(3, neuron, synapses=synapse, dt=0.1, refractory=refractory)
    weight = SYNAPSES.get(name)
    xs = STORED["current"] if weight is None else STORED["arrivals"] * weight
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
