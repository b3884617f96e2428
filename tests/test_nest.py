"""Neurons and synapses of the page on NEST, beside traces of NEST 3.10: tests/benchmarks/nest_traces.py."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace.cells import spiking

STORED = Path(__file__).with_name("nest_traces.npz")
PAGE = (Path(__file__).resolve().parents[1] / "docs/from-nest-brian2.md").read_text()
ROW = r"^\| `(\w+)`, `(\{.*?\})` \| (.*?) \| `(population\(.*?\))`(?: weights times `(.*?)`)? \|$"
ROWS = {(model, constants): more for model, constants, *more in re.findall(ROW, PAGE, re.M)}
TOLD = re.compile(r"(\S+) mV(?:( until the first spike)(?:, then (\S+) mV)?)?(?:; spikes up to (\S+) ms apart)?")
OURS = {"V_m": "v", "w": "w", "U_m": "u"}
CHOSEN = "iaf_psc_delta", "iaf_cond_alpha", "aeif_psc_exp", "gif_psc_exp", "glif_psc"


def traces_of(name):
    with np.load(STORED) as stored:
        return {k.removeprefix(f"{name}/"): stored[k] for k in stored if k.startswith(f"{name}/") or "/" not in k}


def beside(cell, xs, traces):
    """Largest differences: of potentials until the first spike and in all steps, of adaptation, and of spikes in ms."""
    start = cell.init_state()
    begin = {ours: jnp.asarray(traces[name][0]) for name, ours in OURS.items() if name in traces}
    start = start._replace(neuron={**start.neuron, **begin})
    _, (found, z) = jax.lax.scan(lambda s, x: (lambda s, z: (s, (s.neuron, z)))(*cell(s, x)), start, xs)
    z, theirs, every = np.asarray(z) * cell.neuron.spikes, traces["z"], len(traces["z"]) // (len(traces["V_m"]) - 1)
    seen = lambda a: np.asarray(a)[every - 1 :: every]
    # Of the step of a spike, gif_psc_exp records what comes before the reset.
    off = {
        name: np.where(seen(theirs), 0, np.abs(seen(found[OURS[name]]) - traces[name][1:]))
        for name in OURS
        if name in traces
    }
    silent = seen(np.cumsum(z + theirs, 0) == 0)
    same = (z.sum(0) == theirs.sum(0)).all()
    apart = np.abs(np.nonzero(z.T)[1] - np.nonzero(theirs.T)[1]).max(initial=0) / 10 if same else np.inf
    all_of = {"until": (off["V_m"] * silent).max(), "all": off["V_m"].max(), "w": off.get("w", np.zeros(1)).max()}
    return {k: float(a) for k, a in all_of.items()} | {"apart": float(apart), "spikes": float(theirs.sum())}


def differences(key, given, traces):
    """Of a row of the page."""
    _, code, factor = ROWS[key]
    names = {"np": np, "spiking": spiking, "n": 3}
    exec(re.search(r"^def population.*?(?=^```)", PAGE, re.M | re.S)[0], names)
    scales = dict(zip(("I", "ex", "inh"), traces["scales"], strict=True))
    cell = eval(code, names)
    xs = {
        k: jnp.asarray(scales[k] * given[k] * (eval(factor or "1.0", names) if k != "I" else 1.0))
        for k in cell.synapses
    }
    return beside(cell, xs, traces)


def of_network(traces):
    """Of the network of two rows of the page."""
    names = {"np": np, "se": se, "spiking": spiking, "n": 8, "dt": 0.1, **traces}
    for row in re.findall(r"^\| `nest\.(?:Create\('iaf_psc_exp'|Connect\(A\[S_i\]).*\| (.*) \|$", PAGE, re.M):
        exec("\n".join(re.findall("`(.*?)`", row)), names)
    return beside(names["timed"], {"I": jnp.asarray(traces["current"])}, traces)


@pytest.mark.parametrize("model, constants", few(list(ROWS), [key for key in ROWS if key[0] in CHOSEN]))
def test_row(model, constants, x64):
    traces = traces_of(f"{model} {constants}")
    found = differences((model, constants), traces, traces)
    first, until, then, apart = TOLD.fullmatch(ROWS[model, constants][0]).groups()
    print(found)
    assert found["apart"] <= float(apart or 0) and found["w"] < 0.7
    assert found["until"] <= max(float(first), 1e-10)
    if not until or then:
        assert found["all"] <= max(float(then or first), 1e-10)
    assert found["spikes"] > 1 or "spiking.LI(" in ROWS[model, constants][1]


def test_network(x64):
    found = of_network(traces_of("network "))
    print(found)
    assert found["apart"] == 0 and found["all"] < 1e-10 and found["spikes"] > 20
