"""The gap that truncation leaves: events on a temporal graph, learned exactly through all earlier ones."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from ._learner import BPTT, D_RTRL, RTRL, Bridged, Events, RuleLearner, SnAp
from ._op import MatMulOp
from ._op.param import ETraceParam, cut
from ._train.batches import Pair
from ._train.fit import fit
from ._train.fit_options import Update
from ._types import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NODES, STEPS, HIDDEN, RATE = 100, 1000, 16, 0.01
LENGTHS, SEEDS, UPDATES = (1, 2, 3, 4, 5), 3, 300
QUICK_LENGTHS, QUICK_SEEDS, QUICK_UPDATES = (1, 2), 1, 60
TRUNCATED = "truncated (1 event)"
SNAP = "SnAp(1), pair cut"
# The learner, and the steps of a window; None: as the learner has it.
RULES: dict[str, tuple[RuleLearner, int | None]] = {
    TRUNCATED: (BPTT(), 1),
    "D-RTRL": (D_RTRL(), None),
    SNAP: (SnAp(1), None),
    "Bridged(16)": (Bridged(16), None),
    "RTRL": (RTRL(), None),
    "BPTT": (BPTT(), None),
}


class Meeting(eqx.Module):
    """A symmetric gated cell on the two nodes of an event, and a readout of both as they were before it.

    Args:
        size: hidden units of a node.
        key: random key.
        is_cut: what the two say to each other is a boundary, as `SnAp` wants it.
    """

    gates: ETraceParam
    new: ETraceParam
    out: ETraceParam
    is_cut: bool

    def __init__(self, size: int, key: Array, is_cut: bool = False):
        keys = jax.random.split(key, 3)
        self.gates = MatMulOp(bias=True).param(keys[0], 2 * size + 1, 2 * size)
        self.new = MatMulOp(bias=True).param(keys[1], 2 * size + 1, size)
        self.out = MatMulOp(bias=True).param(keys[2], size, 1)
        self.is_cut = is_cut

    def __call__(self, h: Float[Array, "2 size"], x: Float[Array, "2 1"]) -> tuple[Array, Array]:
        other = cut(_other)(h) if self.is_cut else _other(h)
        gate, kept = jnp.split(jax.nn.sigmoid(self.gates(jnp.concatenate([h, other, x], -1))), 2, -1)
        new = jnp.tanh(self.new(jnp.concatenate([kept * h, other, x], -1)))
        return gate * h + (1 - gate) * new, jnp.sum(self.out(h))


def _other(h: Array) -> Array:
    return jnp.flip(h, axis=-2)


def loss_fn(out: Array, y: Array) -> Array:
    """Squared error."""
    return (out - y) ** 2


def meetings(rng: np.random.Generator, length: int, steps: int, nodes: int) -> Pair:
    """Random pairs that meet; the target is the sum of what each has at the end of its queue of this length.

    Both queues shift, and each node puts half of the other one's end and of the feature of the event in front.
    """
    queues = np.zeros((nodes, length), np.float32)
    features = rng.standard_normal(steps).astype(np.float32)
    pairs, targets = np.empty((steps, 2), np.int32), np.empty(steps, np.float32)
    for k, feature in enumerate(features):
        pairs[k] = rng.choice(nodes, 2, replace=False)
        ends = queues[pairs[k], -1]
        targets[k] = ends.sum()
        queues[pairs[k], 1:] = queues[pairs[k], :-1]
        queues[pairs[k], 0] = (ends[::-1] + feature) / 2
    return (pairs, np.broadcast_to(features[:, None, None], (steps, 2, 1))), targets


def _sequences(length: int, seed: int, count: int) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    return (meetings(rng, length, STEPS, NODES) for _ in range(count))


def train(name: str, length: int, seed: int, updates: int) -> Json:
    """Errors while a rule learns one length, an update after each sequence."""
    rule, chunk = RULES[name]
    learner = Events(rule, NODES)
    model = Meeting(HIDDEN, jax.random.key(seed), is_cut=name == SNAP)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, updates)))
    data, start = _sequences(length, seed, updates), time.perf_counter()
    options: dict[str, Any] = {"state": jnp.zeros((NODES, HIDDEN)), "update": Update(chunk=chunk), "progress": False}
    curve = fit(learner, loss_fn, optimizer, model, data, **options).losses
    return {"curve": curve.tolist(), "error": float(np.mean(curve[-10:])), "seconds": time.perf_counter() - start}


def run(out: Path, quick: bool = False, seed: int = 0) -> Json:
    """Train by all rules on queues of each length, save `events.json` and `events.png`, and return the numbers.

    Args:
        out: folder for the results; it is made if it does not exist.
        quick: two lengths, one seed and a fifth of the updates.
        seed: the first of the seeds.

    Returns:
        The content of `events.json`: of each rule and length the runs, one for each seed.
    """
    lengths, seeds, updates = (QUICK_LENGTHS, QUICK_SEEDS, QUICK_UPDATES) if quick else (LENGTHS, SEEDS, UPDATES)
    jobs = [(name, length, seed + k) for k in range(seeds) for length in lengths for name in RULES]
    runs: dict[str, dict[int, list]] = {name: {length: [] for length in lengths} for name in RULES}
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(jobs, unit="run") as bar:
        for name, length, of in bar:
            runs[name][length].append(train(name, length, of, updates))
            (out / "events.json").write_text(json.dumps({"updates": updates, "runs": runs}) + "\n")
    draw(runs).savefig(out / "events.png")
    print(summary(runs))
    print(f"Saved {out / 'events.json'} and {out / 'events.png'}.")
    return {"updates": updates, "runs": runs}


def _errors(found: dict[int, list]) -> np.ndarray:
    """Errors at the end, `(seeds, lengths)`."""
    return np.array([[run["error"] for run in runs] for runs in found.values()]).T


def draw(runs: dict[str, dict[int, list]]) -> "Figure":
    """Errors of each rule by the length of the queue, and while the longest is learned, as one figure."""
    from matplotlib.figure import Figure

    from . import plot

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    by_length, by_update = figure.subplots(1, 2)
    lengths = list(next(iter(runs.values())))
    errors = {name: _errors(found) for name, found in runs.items()}
    plot.learning_curves(errors, lengths, "events back, M", "squared error at the end", log=True, ax=by_length)
    by_length.set_xticks(lengths)
    curves = {name: np.array([run["curve"] for run in found[lengths[-1]]]) for name, found in runs.items()}
    label = f"squared error, M = {lengths[-1]}"
    plot.learning_curves(curves, xlabel="updates (1,000 events each)", ylabel=label, log=True, ax=by_update)
    return figure


def summary(runs: dict[str, dict[int, list]]) -> str:
    """The numbers in words: errors, and how much of the gap between truncated and full each rule closes."""
    errors = {name: np.median(_errors(found), axis=0) for name, found in runs.items()}
    lengths, gap = list(runs["BPTT"]), errors[TRUNCATED] - errors["BPTT"]
    lines = [f"{'squared error, M =':22}" + "".join(f"{length:>9}" for length in lengths)]
    lines += [f"{name:22}" + "".join(f"{error:9.4f}" for error in found) for name, found in errors.items()]
    lines.append("of the gap of truncated to full BPTT closes")
    for name, found in errors.items():
        if name not in (TRUNCATED, "BPTT"):
            closed = 100 * (errors[TRUNCATED] - found) / gap
            lines.append(f"{name:22}" + "".join(f"{share:7.1f} %" for share in closed))
    return "\n".join(lines)
