"""The fly's visual system learns online where patterns move, on the synapses that it has."""

import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from . import stimuli
from ._graph.graph import Graph
from ._learner import BPTT, D_RTRL, Bridged, Carry, Learner
from ._model.trained import trainable
from ._report.memory import memory_plan
from ._train.online import online_grad
from ._types import Json
from .datasets import fly_eye
from .demo_eye_model import BLIND, BY_SYNAPSE, BY_TYPE, CELLS, DT, KNOWN, SCENE, Eye, lattice, scene
from .transform import rewire_degrees

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW, SHOWN, LENGTHS = 16, 20, (16, 100, 1000)
RADIUS, QUICK_RADIUS, SCENES, QUICK_SCENES, SEEDS, NULLS = 15, 4, 400, 60, 3, 5
MODES, DIRECTIONS, SLOW, FAST, WAVELENGTH = (BY_TYPE, BY_SYNAPSE), tuple(range(0, 360, 45)), 7.0, 14.0, 7.0
CONNECTOME, NULL, BRIDGED = "connectome", "null networks", f"Bridged({WINDOW})"
RULES: dict[str, Learner] = {"D-RTRL": D_RTRL(), BRIDGED: Bridged(WINDOW)}
MAIN = f"{BRIDGED}, {BY_TYPE}, {CONNECTOME}"
RATE, LEAST = 0.003, 1e-9


def loss_fn(out: tuple[Array, Array], way: Array) -> Float[Array, ""]:
    """Squared error of cosine and sine, where they count."""
    return way[2] * jnp.sum((out[0] - way[:2]) ** 2)


class Task(NamedTuple):
    """What stays the same while an eye learns; `fixed` is the part of it that is not trained."""

    learner: Learner
    optimizer: optax.GradientTransformation
    fixed: PyTree


@eqx.filter_jit(donate="all-except-first")
def learn(given: tuple[Task, Array, Array], trained: PyTree, opt_state: PyTree, carry: Carry) -> tuple:
    """A window and its update, in the memory of what they replace; the mean loss is last."""
    task, light, way = given
    model = eqx.combine(trained, task.fixed)
    losses, grads, carry = online_grad(task.learner, loss_fn, model, carry, light, way, chunk=WINDOW)
    changes, opt_state = task.optimizer.update(grads, opt_state, trained)
    return eqx.apply_updates(trained, changes), opt_state, carry, jnp.mean(losses)


@cache
def optimizer_of(rate: float) -> optax.GradientTransformation:
    """Adam with a long memory, as directions come one after the other; no weight and no gain changes its sign."""
    synapses = optax.chain(optax.adam(rate, b1=0.98), optax.stateless_with_tree_map(_kept))

    def labels(trained: Eye) -> Eye:
        others = jax.tree.map(lambda _: "others", trained)
        return eqx.tree_at(lambda eye: eye.synapses.value["weight"], others, "synapses")

    return optax.multi_transform({"synapses": synapses, "others": optax.adam(RATE, b1=0.98)}, labels)


def _kept(change: Array, w: Array) -> Array:
    """A change that leaves the sign of each weight: one that would go through zero becomes half of what it was."""
    return jnp.where(jnp.sign(w) * (w + change) > LEAST, change, jnp.where(jnp.abs(w) > 2 * LEAST, -w / 2, 0))


def watch(model: Eye, light: Float[Array, "steps columns"]) -> tuple[Array, Array]:
    """Mean readout and mean rates of T4 and T5 from the time on when a direction counts, from rest."""
    _, (out, rates) = jax.lax.scan(lambda v, now: model(v, now), model.init_state(), light)
    return out[BLIND:].mean(0), rates[BLIND:].mean(0)


@eqx.filter_jit
def tuning(model: Eye, place: Float[Array, "columns 2"]) -> Float[Array, "directions types"]:
    """Rates by direction: means of a slow and a fast grating, and of a bright and a dark edge."""
    now = DT * jnp.arange(2 * SCENE)

    def rates(case: tuple[Array, Array]) -> Array:
        direction, kind = case
        wave = stimuli.grating(place, now, direction, jnp.where(kind == 0, SLOW, FAST), WAVELENGTH)
        step = stimuli.edge(place, now, direction, SLOW, -SLOW * DT * (SCENE + BLIND / 2), kind == 2)
        return watch(model, jnp.where(kind < 2, wave, step))[1]

    directions, kinds = jnp.meshgrid(jnp.array(DIRECTIONS, float), jnp.arange(4), indexing="ij")
    found = jax.lax.map(rates, (directions.ravel(), kinds.ravel()))
    return found.reshape(*kinds.shape, -1).mean(1)


def selectivity(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Direction selectivity `|sum r exp(i angle)| / sum r` of each type, from 0 to 1, and its preferred direction."""
    total = np.exp(1j * np.deg2rad(DIRECTIONS)) @ rates
    return np.abs(total) / np.maximum(rates.sum(0), LEAST), np.rad2deg(np.angle(total)) % 360


def together(rates: np.ndarray) -> float:
    """Direction selectivity of all types, each weighed by its rates: those that are nearly silent say nothing."""
    return float(np.average(selectivity(rates)[0], weights=np.maximum(rates.sum(0), LEAST)))


@eqx.filter_jit
def error(model: Eye, place: Float[Array, "columns 2"]) -> Float[Array, ""]:
    """Median angle between what is read out and the direction, of scenes that are never learned (degrees)."""

    def one(key: Array) -> Array:
        light, way = scene(key, place)
        (x, y), (cosine, sine, _) = watch(model, light)[0], way[-1]
        return jnp.abs(jnp.arctan2(y * cosine - x * sine, x * cosine + y * sine))

    return jnp.rad2deg(jnp.median(jax.lax.map(one, jax.random.split(jax.random.key(2**31 - 1), SHOWN))))


def train(graph: Graph, by: str, rule: str, seed: int, scenes: int) -> Json:
    """An eye learns scene after scene, with an update after each window; numbers of before and after."""
    model, place = Eye(graph, jax.random.key(seed), by), lattice(graph)
    # The mean size of what is learned is the unit of its rate.
    rate = RATE * float(jnp.mean(jnp.abs(model.synapses.value["weight"])))
    learner, optimizer = RULES[rule], optimizer_of(round(rate, 6))
    found: Json = {"before": tuning(model, place), "error_before": error(model, place)}
    carry = learner.init(model, model.init_state(), jnp.zeros(len(place)))
    trained, fixed = eqx.partition(model, trainable(model))
    del model
    task, opt_state, losses = Task(learner, optimizer, fixed), optimizer.init(trained), []
    seconds = 0.0
    for k in range(scenes):
        light, way = scene(jax.random.fold_in(jax.random.key(seed), k), place)
        begin = time.perf_counter()
        for now in range(0, SCENE, WINDOW):
            part = (task, light[now : now + WINDOW], way[now : now + WINDOW])
            trained, opt_state, carry, loss = learn(part, trained, opt_state, carry)
            losses.append(loss)
        jax.block_until_ready(trained)
        seconds += (time.perf_counter() - begin) * (k > 0)
    model = eqx.combine(trained, fixed)
    found |= {"after": tuning(model, place), "error": error(model, place)}
    found["loss"] = np.array(losses, float).reshape(scenes, -1).sum(1) * WINDOW / (SCENE - BLIND)
    found = {name: np.asarray(value).tolist() for name, value in found.items()}
    return found | {"steps_a_second": (scenes - 1) * SCENE / seconds if seconds else None}


def memory(graph: Graph) -> Json:
    """Bytes of one gradient by the number of steps: of each rule, which need no more for more, and of BPTT."""
    model, x = Eye(graph, jax.random.key(0), BY_SYNAPSE), jnp.zeros(len(lattice(graph)))
    state = model.init_state()
    found = {rule: memory_plan(learner, model, state, x, chunk=WINDOW).total for rule, learner in RULES.items()}
    return found | {"BPTT": {steps: memory_plan(BPTT(), model, state, x, steps).total for steps in LENGTHS}}


def run(out: Path, quick: bool = False, seed: int = 0, radius: int | None = None) -> Json:
    """Train eyes by types and by synapses, and null networks, save `eye.json` and `eye.png`, and return the numbers.

    A null network has the same units, and each has as many synapses of each count with units of each type, but not with
    the same ones: the lattice is lost.

    Args:
        out: folder for the results; it is made if it does not exist.
        quick: a small eye, one seed, one null network and fewer scenes.
        seed: the first of the seeds.
        radius: columns from the middle to the edge of the eye; 15, or 4 if `quick`.

    Returns:
        The content of `eye.json`: under each name of an eye the runs, one for each seed or null network.
    """
    radius = (QUICK_RADIUS if quick else RADIUS) if radius is None else radius
    scenes, seeds, nulls = (QUICK_SCENES, 1, 1) if quick else (SCENES, SEEDS, NULLS)
    graph = fly_eye(radius)
    jobs = [(rule, by, CONNECTOME, k) for k in range(seeds) for by in MODES for rule in RULES]
    jobs += [(BRIDGED, by, NULL, k) for k in range(nulls) for by in MODES]
    results: Json = {"radius": radius, "scenes": scenes, "runs": {}}
    out.mkdir(parents=True, exist_ok=True)
    for rule, by, network, k in tqdm(jobs, unit="eye"):
        wiring = graph
        if network == NULL:
            wiring = rewire_degrees(graph, jax.random.key(seed + k), types="cell_type", signs=True)
        found = train(wiring, by, rule, seed + k, scenes)
        results["runs"].setdefault(f"{rule}, {by}, {network}", []).append(found)
        (out / "eye.json").write_text(json.dumps(results) + "\n")
    results["memory"] = memory(graph)
    (out / "eye.json").write_text(json.dumps(results) + "\n")
    draw(results).savefig(out / "eye.png")
    print(summary(results))
    print(f"Saved {out / 'eye.json'} and {out / 'eye.png'}.")
    return results


def draw(results: Json) -> "Figure":
    """Tuning before and after, selectivity beside null networks, losses and memory, as one figure."""
    from matplotlib.figure import Figure

    from . import plot
    from .plot.style import LARGE, PALETTE, SMALL, styled

    figure = Figure(figsize=(10, 8), dpi=120, layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    polar, lower = (figure.add_subfigure(grid[k]) for k in range(2))
    shown, angles = results["runs"][MAIN][0], np.deg2rad((*DIRECTIONS, DIRECTIONS[0]))
    for k, axes in enumerate(polar.subplots(2, 4, subplot_kw={"projection": "polar"}).flat):
        for when, colour in (("before", "#999999"), ("after", PALETTE[0])):
            rates = np.array(shown[when])[:, k]
            rates = np.append(rates, rates[0]) / max(rates.max(), LEAST)
            axes.plot(angles, rates, color=colour, lw=1.5, label=f"{when} learning")
        axes.plot([np.deg2rad(KNOWN[k % 4])] * 2, [0, 1], color="black", lw=0.8, ls=":", label="known to prefer")
        axes.set_title(CELLS[k], fontsize=LARGE)
        axes.set(xticks=np.deg2rad(DIRECTIONS), yticks=[], ylim=(0, 1.05))
        axes.tick_params(labelsize=SMALL - 1, pad=-2)
    polar.suptitle(f"Rates by direction of motion, as a share of the largest of each ({MAIN})", fontsize=LARGE)
    polar.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    chosen, losses, bytes_ = lower.subplots(1, 3, width_ratios=(1.2, 1, 0.8))
    _selectivities(styled(chosen), results["runs"])
    curves = {
        name.removesuffix(f", {CONNECTOME}"): _smooth(found)
        for name, found in results["runs"].items()
        if NULL not in name
    }
    points = np.linspace(0, results["scenes"], next(iter(curves.values())).shape[1] + 1)[1:]
    plot.learning_curves(curves, points, "scenes", "squared error of the direction", ax=losses)
    losses.axhline(1, color="grey", ls=":", lw=1)
    used = results["memory"]
    lengths = [int(steps) for steps in used["BPTT"]]
    sizes = {name: np.full(len(lengths), size / 1e6) for name, size in used.items() if name != "BPTT"}
    sizes["BPTT"] = np.array(list(used["BPTT"].values())) / 1e6
    plot.learning_curves(sizes, lengths, "steps", "memory of one gradient (MB)", log=True, ax=bytes_)
    bytes_.set_xscale("log")
    bytes_.tick_params(which="both", labelsize=SMALL)
    return figure


def _selectivities(axes: Any, runs: dict[str, list]) -> None:
    """A dot for each eye."""
    from .plot.style import PALETTE

    names = [f"untrained, {CONNECTOME}", *runs]
    for row, name in enumerate(names):
        found, when = (runs[MAIN], "before") if row == 0 else (runs[name], "after")
        values = [together(np.array(run[when])) for run in found]
        axes.plot(values, [row] * len(values), "o", ms=4, color=PALETTE[5 if NULL in name else 7 if row == 0 else 0])
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, None), xlabel="direction selectivity of T4 and T5")
    axes.invert_yaxis()


def _smooth(found: list[Json]) -> np.ndarray:
    """Mean losses of twenty parts of the training, `(runs, parts)`."""
    return np.array([[part.mean() for part in np.array_split(run["loss"], min(20, len(run["loss"])))] for run in found])


def summary(results: Json) -> str:
    """The numbers in words."""
    lines = [f"{'':42}{'selectivity before -> after':>28}{'error (degrees)':>18}{'as known':>10}{'steps/s':>9}"]
    for name, found in results["runs"].items():
        mean = [np.mean([together(np.array(run[when])) for run in found]) for when in ("before", "after")]
        after = [selectivity(np.array(run["after"])) for run in found]
        turned = np.array([(way - KNOWN * 2 + 180) % 360 - 180 for _, way in after])
        known = np.mean(np.abs(turned) <= 45)
        errors = np.mean([run["error"] for run in found])
        speed = np.median([run["steps_a_second"] for run in found])
        lines.append(f"{name:42}{mean[0]:17.3f} -> {mean[1]:.3f}{errors:18.1f}{100 * known:8.0f} %{speed:9.0f}")
    for name, size in results["memory"].items():
        sizes = size.items() if isinstance(size, dict) else [("any number of", size)]
        lines += [
            f"{name + ', memory of ' + str(steps) + ' steps':42}{number / 1e6:12,.0f} MB" for steps, number in sizes
        ]
    return "\n".join(lines)
