"""Speeds at the sensors of a city's roads 15, 30 and 60 minutes ahead, learned online by a graph network."""

import json
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from . import evaluate
from ._graph.graph import Graph
from ._learner import D_RTRL, TBPTT, Bridged, Learner
from ._op import MatMulOp
from ._op.param import ETraceParam
from ._train.fit import fit
from ._train.predict import predict
from ._train.stream import SnapshotStream
from ._types import Json
from .cells.graph import GraphGRU
from .datasets import Traffic, traffic
from .transform import diffusion_supports

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HORIZONS, DAY, TRAINED, HIDDEN, GAPS = (3, 6, 12), 288, 5, 16, 0.077
PASSES, RATE, STREAM_RATE, EVERY = 12, 0.005, 0.004, 12
SEEDS, QUICK_SEEDS, QUICK_PASSES = 5, 1, 2
NO_GRAPH = "Bridged(12), no graph"
RULES: dict[str, Learner] = {
    NO_GRAPH: Bridged(12),
    "D-RTRL": D_RTRL(),
    "Bridged(12)": Bridged(12),
    "TBPTT(12)": TBPTT(12, every=12),
    "BPTT, 48 steps": TBPTT(48, every=12),
}


class Roads(eqx.Module):
    """A graph GRU on the sensors; the forecast is the speed now and a change for each horizon, at first none.

    Args:
        supports: graphs along which features spread.
        key: random key.
    """

    cell: GraphGRU
    out: ETraceParam

    def __init__(self, supports: list[Graph], key: Array):
        self.cell = GraphGRU.of(supports, 1, HIDDEN, key=key)
        zeros = {"weight": jnp.zeros((HIDDEN, len(HORIZONS))), "bias": jnp.zeros(len(HORIZONS))}
        self.out = ETraceParam(zeros, MatMulOp(bias=True))

    def __call__(self, h: Float[Array, "nodes hidden"], x: Float[Array, "nodes 1"]) -> tuple[Array, Array]:
        h, shown = self.cell(h, x)
        return h, x + self.out(shown)


class Task(NamedTuple):
    """A week with gaps, in units of its standard deviation, and what is spread along.

    Attributes:
        stream: speeds, and those at the horizons.
        unit: miles an hour.
        graphs: supports; the first one is each sensor itself.
    """

    stream: SnapshotStream
    unit: float
    graphs: list[Graph]

    @classmethod
    def of(cls, data: Traffic) -> "Task":
        """With so many readings missing as in the data before their gaps were filled."""
        missing = np.random.default_rng(0).random(data.speed.shape) < GAPS
        speed = np.where(missing, np.nan, data.speed)
        mean, unit = np.nanmean(speed[: TRAINED * DAY]), float(np.nanstd(speed[: TRAINED * DAY]))
        stream = SnapshotStream.ahead(((speed - mean) / unit)[..., None], HORIZONS)
        return cls(stream, unit, list(diffusion_supports(data.graph, 1)))

    def errors(self, outs: Array, first: int = 0) -> np.ndarray:
        """Mean absolute errors at the horizons over the last two days, of forecasts from a step on (mph)."""
        part, y = outs[TRAINED * DAY - first :], self.stream[TRAINED * DAY : first + len(outs)].ys
        return self.unit * np.array([_at(k, part, y) for k in range(len(HORIZONS))])


def passes(task: Task, count: int, name: str, seed: int) -> np.ndarray:
    """Errors after so many passes over five days, without learning in the other two."""
    model, steps = _model(task, name, seed), (TRAINED * DAY - max(HORIZONS)) // EVERY * EVERY
    part, state = task.stream[:steps], model.cell.init_state()
    rates = optax.cosine_decay_schedule(RATE, count * steps // EVERY)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rates))
    data = [(part.xs, part.ys)] * count
    options: dict[str, Any] = {"state": state, "update": EVERY, "progress": False}
    model = fit(RULES[name], evaluate.mae, optimizer, model, data, **options).model
    return task.errors(predict(model, state, task.stream.xs)[0])


def streamed(task: Task, name: str, seed: int) -> np.ndarray:
    """Errors of one pass, each forecast made before what it learns from has come."""
    model = _model(task, name, seed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(STREAM_RATE))
    miss = {str(h): partial(_at, k) for k, h in enumerate(HORIZONS)}
    options: dict[str, Any] = {"state": model.cell.init_state(), "carry": True, "progress": False}
    found = fit(
        RULES[name], evaluate.mae, optimizer, model, task.stream.sequences(EVERY), metrics=miss,
        label_delay=HORIZONS, **options,
    ).metrics  # fmt: skip
    return task.unit * np.array([found[str(h)][TRAINED * DAY // EVERY :].mean() for h in HORIZONS])


def _at(horizon: int, out: Array, y: tuple[Array, Array]) -> Array:
    """The error at one horizon."""
    return evaluate.mae(out[..., horizon], (y[0][..., horizon], y[1][..., horizon]))


def _model(task: Task, name: str, seed: int) -> Roads:
    return Roads(task.graphs[:1] if name == NO_GRAPH else task.graphs, jax.random.key(seed))


def baselines(task: Task) -> dict[str, np.ndarray]:
    """Errors of the simplest forecasts."""
    target, known = task.stream.ys
    guesses = evaluate.guesses(target, known, HORIZONS, 12, DAY)
    return {name: task.errors(guess) for name, guess in guesses.items()}


def run(out: Path, data: str | PathLike[str], quick: bool = False, seed: int = 0) -> Json:
    """Train by all rules, save `traffic.json` and `traffic.png`, and return the numbers.

    Args:
        out: folder for the results; it is made if it does not exist.
        data: the file of `se.datasets.traffic`.
        quick: one seed and two passes.
        seed: the first of the seeds.

    Returns:
        The content of `traffic.json`: errors at 15, 30 and 60 minutes over the last two days (mph), seed by seed.
    """
    week = traffic(data)
    task, (seeds, count) = Task.of(week), (QUICK_SEEDS, QUICK_PASSES) if quick else (SEEDS, PASSES)
    results: Json = {"baselines": {name: e.tolist() for name, e in baselines(task).items()}, "passes": count}
    out.mkdir(parents=True, exist_ok=True)
    modes = {f"{count} passes": partial(passes, task, count), "one pass": partial(streamed, task)}
    with tqdm(total=len(modes) * len(RULES) * seeds, unit="run") as bar:
        for mode, train in modes.items():
            results[mode] = {name: [] for name in RULES}
            for k in range(seeds):
                for name in RULES:
                    results[mode][name].append(train(name, seed + k).tolist())
                    (out / "traffic.json").write_text(json.dumps(results) + "\n")
                    bar.update()
    print(summary(results))
    draw(results, list(modes)).savefig(out / "traffic.png")
    print(f"Saved {out / 'traffic.json'} and {out / 'traffic.png'}.")
    return results


def draw(results: Json, modes: list[str]) -> "Figure":
    """Errors by horizon and rule as shares of those of persistence, as one figure."""
    from matplotlib.figure import Figure

    from . import plot

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    still, minutes = np.array(results["baselines"]["persistence"]), [5 * h for h in HORIZONS]
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), modes, strict=True):
        errors = {name: 100 * np.array(found) / still for name, found in results[mode].items()}
        labels = f"minutes ahead, after {mode}", "error (% of persistence)"
        plot.learning_curves(errors, minutes, *labels, "mean", ax=axes)
        axes.set_xticks(minutes)
    return figure


def summary(results: Json) -> str:
    """The numbers in words."""
    lines = [f"{'mean absolute error (mph)':28}" + "".join(f"{5 * h:>10} min" for h in HORIZONS)]
    lines += [f"{name:28}" + "".join(f"{e:14.2f}" for e in errors) for name, errors in results["baselines"].items()]
    for mode in [key for key in results if "pass" in key and key != "passes"]:
        lines.append(mode)
        for name, found in results[mode].items():
            means, spread = np.mean(found, axis=0), np.std(found, axis=0)
            lines.append(f"  {name:26}" + "".join(f"{m:7.3f} ({s:.3f})" for m, s in zip(means, spread, strict=True)))
    return "\n".join(lines)
