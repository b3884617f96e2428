"""Evidence for a choice: spiking units count cues and remember them, by the threshold of those that adapt."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from ._graph.connectivity import Connectivity
from ._learner import BPTT, D_RTRL, ES_D_RTRL, Bridged, EProp, RuleLearner, SnAp
from ._op import MatMulOp, SpMatMulOp
from ._op.param import ETraceParam
from ._train.batches import Pair
from ._train.fit import fit
from ._train.fit_result import Progress
from ._types import Json
from .cells import ALIF
from .surrogate import triangle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Times in steps of 1 ms: seven cues, a delay, and the time in which the choice is asked for.
CUES, CUE, GAP, DELAY, CHOICE = 7, 100, 50, 500, 150
UNITS, INPUTS, SHARE, BATCH = 100, 40, 0.1, 32
SEEDS, UPDATES, QUICK_UPDATES, EVERY, TRIALS = 3, 200, 50, 25, 512
SILENT, FIRES, RATE, WRONG = 4, 0.04, 0.01, 0.07
LEAK, SLOW = float(np.exp(-1 / 20)), float(np.exp(-1 / 2000))
READOUT, RANDOM = "readout alone", "e-prop, random"
QUICK = ("D-RTRL", "BPTT", READOUT)


class Setting(NamedTuple):
    """Strength of the penalty of rates, height of the surrogate derivative, and rate of learning."""

    strength: float = 0.75
    gamma: float = 0.3
    rate: float = 0.01


PLAIN = Setting()
# Chosen with a seed that is not reported. Through 1,700 steps the plain height makes derivatives explode.
SETTINGS = {"BPTT": Setting(2.0, 0.2, 0.0025), RANDOM: Setting(0.2), "Bridged(16)": Setting(1.0)}
RULES: dict[str, Callable[[Array, "Net"], RuleLearner]] = {
    "D-RTRL": lambda key, model: D_RTRL(),
    "ES-D-RTRL": lambda key, model: ES_D_RTRL(decay=0.98),
    "e-prop, symmetric": lambda key, model: EProp(leaf="filtered"),
    RANDOM: lambda key, model: EProp(
        leaf="filtered",
        feedback="random",
        key=key,
        rate_strength=SETTINGS[RANDOM].strength / BATCH,
        rate_target=RATE,
        rate_leaf="z",
    ),
    "Bridged(16)": lambda key, model: Bridged(16),
    "SnAp(2)": lambda key, model: SnAp(n=2),
    "BPTT": lambda key, model: BPTT(),
    READOUT: lambda key, model: D_RTRL(train=eqx.tree_at(lambda m: m.out, jax.tree.map(lambda _: False, model), True)),
}


class Net(eqx.Module):
    """Units on a random graph of one synapse in ten, half of them adaptive, read through a filter.

    Args:
        key: random key.
        is_calm: whether the output holds what the penalty of the rates needs beside the readout.
        gamma: height of the surrogate derivative.
    """

    cell: ALIF
    out: ETraceParam
    is_calm: bool = eqx.field(static=True)

    def __init__(self, key: Array, is_calm: bool = True, gamma: float = PLAIN.gamma):
        keys = jax.random.split(key, 4)
        has = jax.random.bernoulli(keys[0], SHARE, (UNITS, UNITS)) & ~np.eye(UNITS, dtype=bool)
        pre, post = np.nonzero(np.asarray(has))
        graph = Connectivity.from_edges(pre, post, shape=(UNITS, UNITS))
        inp = MatMulOp(weight_fn=_per_step).param(keys[1], INPUTS, UNITS, init=_normal)
        rec = SpMatMulOp(graph, _per_step).param(keys[2], init=_normal)
        half = np.repeat([0.0, 1.7 / (1 - LEAK)], UNITS // 2)
        spike, reset = triangle(gamma), 0.6 / LEAK
        options: dict[str, Any] = {"reset": reset, "reset_gradient": False, "refractory": SILENT}
        self.cell = ALIF(UNITS, inp, rec, LEAK, 0.6, SLOW, half, spike, **options)
        self.out, self.is_calm = MatMulOp().param(keys[3], UNITS, 2), is_calm

    def init_state(self, batch: int) -> dict[str, Any]:
        """Rest."""
        rest = jnp.zeros((batch, UNITS))
        return {"cell": self.cell.init_state(batch), "filtered": rest, "spikes": rest}

    def __call__(self, state: dict[str, Any], x: Array) -> tuple[dict[str, Any], Any]:
        cell, z = self.cell(state["cell"], x)
        filtered = LEAK * state["filtered"] + (1 - LEAK) * z
        spikes, y = state["spikes"] + jax.lax.stop_gradient(z), self.out(filtered)
        return {"cell": cell, "filtered": filtered, "spikes": spikes}, (y, z, spikes) if self.is_calm else y


def _normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Variance 1 by the senders of a unit; a quarter of that for those on the graph."""
    senders = shape[0] if len(shape) == 2 else 4 * SHARE * UNITS
    return jax.random.normal(key, shape, dtype) / np.sqrt(senders)


def _per_step(w: Array) -> Array:
    """The potential has no factor `1 - LEAK` before its current."""
    return w / (1 - LEAK)


def steps() -> int:
    """Length of a trial."""
    return CUES * (CUE + GAP) + DELAY + CHOICE


def trials(rng: np.random.Generator, batch: int) -> Pair:
    """Spikes `(steps, batch, inputs)` of cues on two sides, of the question and of noise; the side with more cues."""
    likely = np.where(rng.integers(0, 2, batch), 0.3, 0.7)
    cues, group = rng.random((CUES, batch)) < likely, INPUTS // 4
    chance = np.zeros((steps(), batch, 4), np.float32)
    for k, cue in enumerate(cues):
        begin = k * (CUE + GAP) + GAP
        chance[begin : begin + CUE, np.arange(batch), cue.astype(int)] = FIRES
    chance[-CHOICE:, :, 2], chance[:, :, 3] = FIRES, FIRES / 4
    x = rng.random((steps(), batch, INPUTS), dtype=np.float32) < np.repeat(chance, group, axis=2)
    return x.astype(np.float32), (cues.sum(0) > CUES / 2).astype(np.int32)


def with_times(pair: Pair) -> Pair:
    """The same with a target for each step: the side, whether it counts, and the number of the step."""
    x, side = pair
    now = np.arange(len(x))
    asked = (now >= len(x) - CHOICE).astype(np.float32)
    return x, (np.broadcast_to(side, (len(x), *side.shape)), asked, now.astype(np.float32))


def loss_fn(out: PyTree, target: tuple[Array, Array, Array], strength: float = PLAIN.strength) -> Float[Array, ""]:
    """Cross-entropy while the choice is asked for, and with spikes in the output a penalty of rates off target."""
    side, asked, now = target
    y, *rates = out if isinstance(out, tuple) else (out,)
    wrong = asked * jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, side)) / CHOICE
    if not rates:
        return wrong
    z, spikes = rates
    excess = (spikes / (now + 1) - RATE) * z
    return wrong + strength * jnp.sum(excess) / (y.shape[0] * steps())


@eqx.filter_jit
def watch(model: Net, x: Array) -> tuple[Array, Array]:
    """Mean readout while the choice is asked for, and spikes `(steps, batch, units)`."""

    def step(state: PyTree, x: Array) -> tuple[PyTree, tuple[Array, Array]]:
        state, out = model(state, x)
        return state, (out[0] if model.is_calm else out, state["cell"].z)

    _, (y, z) = jax.lax.scan(step, model.init_state(x.shape[1]), x)
    return y[-CHOICE:].mean(0), z


def train(name: str, seed: int, updates: int) -> Json:
    """Errors on fresh trials and rates while a rule learns, and the processor's seconds for its updates."""
    setting = SETTINGS.get(name, PLAIN)
    model = Net(jax.random.key(seed), name != RANDOM, setting.gamma)
    learner = RULES[name](jax.random.key(seed + 1000), model)
    rate = optax.cosine_decay_schedule(setting.rate, updates, alpha=0.1)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    fresh = trials(np.random.default_rng([seed, 1]), TRIALS)
    found: Json = {"updates": [], "error": [], "rate": []}
    testing = 0.0

    def look(progress: Progress) -> None:
        nonlocal testing
        if progress.sequences % EVERY == 0 or progress.sequences == updates:
            begin = time.process_time()
            y, z = watch(progress.model, fresh[0])
            found["updates"].append(progress.sequences)
            found["error"].append(float(np.mean(np.argmax(y, -1) != fresh[1])))
            found["rate"].append(float(1000 * z.mean()))
            testing += time.process_time() - begin

    rng, begin = np.random.default_rng(seed), time.process_time()
    data: Iterator[Pair] = (with_times(trials(rng, BATCH)) for _ in range(updates))
    state = model.init_state(BATCH)
    loss = partial(loss_fn, strength=setting.strength)
    result = fit(learner, loss, clipped, model, data, state=state, callbacks=look, progress=False)
    seconds = time.process_time() - begin - testing
    return found | {"seconds": seconds, "loss": result.losses.tolist(), "model": result.model}


def run(out: Path, quick: bool = False, seed: int = 0) -> Json:
    """Train by all rules, save `spikes.json` and `spikes.png`, and return the numbers.

    Args:
        out: folder for the results; it is made if it does not exist.
        quick: three rules, one seed and fewer updates.
        seed: the first of the seeds.

    Returns:
        The content of `spikes.json`: of each rule the runs, one for each seed.
    """
    names, seeds, updates = (QUICK, 1, QUICK_UPDATES) if quick else (RULES, SEEDS, UPDATES)
    runs: dict[str, list] = {name: [] for name in names}
    out.mkdir(parents=True, exist_ok=True)
    shown = None
    with tqdm([(name, seed + k) for k in range(seeds) for name in names], unit="run") as bar:
        for name, of in bar:
            found = train(name, of, updates)
            model = found.pop("model")
            shown = model if shown is None else shown
            runs[name].append(found)
            (out / "spikes.json").write_text(json.dumps(runs) + "\n")
    draw(runs, shown, trials(np.random.default_rng(seed), 1)).savefig(out / "spikes.png")
    print(summary(runs))
    print(f"Saved {out / 'spikes.json'} and {out / 'spikes.png'}.")
    return runs


def remembered(model: Net, x: Array) -> np.ndarray:
    """Size of the traces onto adaptive units at each step, `(steps, 2)`: of their potential and of their threshold."""
    learner = D_RTRL()
    start = learner.init(model, model.init_state(1), x[0])

    @eqx.filter_jit
    def follow(model: Net, carry: PyTree, x: Array) -> Array:
        def step(carry: PyTree, x: Array) -> tuple[PyTree, Array]:
            carry, _ = learner.step(model, carry, x)
            return carry, jnp.linalg.norm(carry.traces[0].full[0]["weight"][:2, 0, :, UNITS // 2 :], axis=(1, 2))

        return jax.lax.scan(step, carry, x)[1]

    return np.asarray(follow(model, start, x))


def draw(runs: dict[str, list], model: Any, trial: Pair) -> "Figure":
    """A trial after training, what traces remember of it, and the errors of each rule, as one figure."""
    from matplotlib.figure import Figure

    from . import plot
    from .plot.style import PALETTE

    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    panels = figure.subplot_mosaic("ab;dc", height_ratios=(5, 3))
    x, (_, z) = trial[0], watch(model, trial[0])
    for k, (name, spikes) in enumerate((("inputs", x[:, 0]), ("units", np.asarray(z[:, 0])))):
        at, who = np.nonzero(spikes)
        panels["a"].plot(at, who + k * (INPUTS + 5), ".", ms=1.5, color=PALETTE[k], label=name)
    panels["a"].set(ylabel="inputs, then units", xlim=(0, len(x)), yticks=[])
    panels["a"].set_title("A trial after training: cues, delay, choice")
    traces = remembered(model, jnp.asarray(x))
    panels["d"].plot(traces / traces.max(0), lw=1.2, label=["potential", "threshold"])
    panels["d"].set(xlabel="time (ms)", ylabel="size of the traces", xlim=(0, len(x)), ylim=(0, None))
    panels["d"].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    points = next(iter(runs.values()))[0]["updates"]
    for panel, key, label, scale in (("b", "error", "errors on fresh trials (%)", 100), ("c", "rate", "rate (Hz)", 1)):
        curves = {name: scale * np.array([run[key] for run in found]) for name, found in runs.items() if found}
        plot.learning_curves(curves, points, f"updates of {BATCH} trials", label, ax=panels[panel])
    if (again := panels["c"].get_legend()) is not None:
        again.remove()
    panels["b"].axhline(100 * WRONG, color="grey", ls=":", lw=1)
    return figure


def summary(runs: dict[str, list]) -> str:
    """The numbers in words: errors and rates at the end, and when a rule was first below the mark."""
    lines = [
        f"{'':20}{'errors (%)':>24}{'rate (Hz)':>11}{'updates to ' + format(WRONG, '.0%'):>18}{'cpu s an update':>17}"
    ]
    for name, found in runs.items():
        errors = "".join(f"{100 * run['error'][-1]:8.1f}" for run in found)
        first = [next((n for n, e in zip(run["updates"], run["error"]) if e < WRONG), None) for run in found]
        rate = np.mean([run["rate"][-1] for run in found])
        seconds = np.median([run["seconds"] / run["updates"][-1] for run in found])
        when = " ".join("-" if n is None else str(n) for n in first)
        lines.append(f"{name:20}{errors:>24}{rate:11.1f}{when:>18}{seconds:17.2f}")
    return "\n".join(lines)
