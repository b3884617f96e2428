"""The main job: a real nervous system learns a real task online, on the synapses that it has."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from tqdm import tqdm

from ._graph.connectivity import Connectivity
from ._graph.graph import Graph
from ._graph.transforms import scale_spectral_radius
from ._learner import BPTT, D_RTRL, ES_D_RTRL, RTRL, Bridged, Learner, SnAp
from ._model.trained import trainable
from ._op import ElemWiseParam, MatMulOp, SignLock, SpMatMulOp
from ._op.param import ETraceParam, NonTempParam
from ._report.memory import memory_plan
from ._train.fit import fit
from ._train.fit_options import Update
from ._train.fit_result import Progress
from ._types import Json
from .datasets import MNIST1D, mnist1d, worm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, READ, CHUNK, WINDOW, BATCH, HELD_OUT = 40, 20, 20, 10, 50, 500
UPDATES, QUICK_UPDATES = 1500, 300
READOUT_ONLY = "readout only"
BRIDGED = f"Bridged({WINDOW})"
COMPARED = ("BPTT", "ES-D-RTRL", "D-RTRL", BRIDGED, "SnAp-2", READOUT_ONLY, "RTRL")


class WormNet(eqx.Module):
    """Rate model of the worm: each neuron leaks at a pace that its own synaptic current `y` sets.

    `y = W h`, `g = sigmoid(leak + gain y + gate(x))`, `h <- g h + (1 - g) tanh(y + bias + drive(x))`, and a readout of
    all neurons.

    Args:
        graph: neurons and synapses; the sign of a synapse is that of its presynaptic neuron.
        key: random key.
    """

    synapses: ETraceParam
    drive: ETraceParam
    gate: ETraceParam
    gain: ETraceParam
    bias: ETraceParam
    leak: ETraceParam
    readout: ETraceParam

    def __init__(self, graph: Graph, key: Array):
        conn, count = graph.connectivity, graph.connectivity.num_post
        sensory = np.flatnonzero(["sensory" in role for role in graph.node_attrs["role"]])
        inputs = Connectivity.from_edges(np.zeros(len(sensory), int), sensory, shape=(1, count))
        keys = jax.random.split(key, 6)
        sign = jnp.asarray(graph.node_attrs["sign"], jnp.float32)[conn.pre]
        drawn = graph.with_weight(sign * jax.random.uniform(keys[0], (conn.num_synapses,)))
        weight = jnp.abs(scale_spectral_radius(drawn, 1.0).weight)
        self.synapses = ETraceParam({"weight": weight}, SpMatMulOp(graph, weight_fn=SignLock(sign)))
        self.drive = ETraceParam({"weight": jax.random.normal(keys[1], (len(sensory),))}, SpMatMulOp(inputs))
        self.gate = ETraceParam({"weight": jax.random.normal(keys[2], (len(sensory),))}, SpMatMulOp(inputs))
        self.gain = ElemWiseParam(jax.random.normal(keys[3], (count,)))
        self.bias = ElemWiseParam(0.3 * jax.random.normal(keys[4], (count,)))
        tau = jnp.exp(jax.random.uniform(keys[5], (count,), maxval=jnp.log(40.0)))
        self.leak = ElemWiseParam(jax.scipy.special.logit(jnp.exp(-1 / tau)))
        self.readout = NonTempParam({"weight": jnp.zeros((count, 10)), "bias": jnp.zeros(10)}, MatMulOp())

    def init_state(self, *batch: int) -> Float[Array, "*batch neurons"]:
        return jnp.zeros((*batch, self.leak.value.shape[0]))

    def __call__(self, h: Array, x: Array) -> tuple[Array, Array]:
        y = self.synapses(h)
        g = jax.nn.sigmoid(self.leak() + self.gain() * y + self.gate(x))
        h = g * h + (1 - g) * jnp.tanh(y + self.bias() + self.drive(x))
        return h, self.readout(h)


class Rule(NamedTuple):
    """A learner under comparison, its peak learning rate, and the steps of a window; None: as the learner has it."""

    name: str
    learner: Learner
    rate: float
    chunk: int | None = CHUNK


def rules(model: WormNet, exact: bool = False) -> list[Rule]:
    """The rules under comparison; RTRL only where an hour does not matter."""
    nothing = jax.tree.map(lambda _: False, trainable(model))
    only_readout = eqx.tree_at(lambda m: m.readout, nothing, replace=True)
    return [
        Rule(READOUT_ONLY, D_RTRL(train=only_readout), 0.1),
        Rule("ES-D-RTRL", ES_D_RTRL(decay=0.98), 0.02),
        Rule("D-RTRL", D_RTRL(), 0.02),
        Rule(BRIDGED, Bridged(WINDOW), 0.02, None),
        Rule("SnAp-2", SnAp(n=2), 0.02),
        *([Rule("RTRL", RTRL(), 0.02, None)] if exact else []),
        Rule("BPTT", BPTT(), 0.02, None),
    ]


def loss_fn(out: Float[Array, "batch classes"], target: tuple[Array, Array]) -> Array:
    """Cross entropy at the steps that count."""
    label, share = target
    return share * optax.softmax_cross_entropy_with_integer_labels(out, label).mean()


@eqx.filter_jit
def predict(model: WormNet, x: Float[Array, "batch steps"]) -> Array:
    """Class by the mean log-probability over the steps that count."""
    _, out = jax.lax.scan(lambda h, pixel: model(h, pixel), model.init_state(x.shape[0]), x.T[:, :, None])
    return jnp.argmax(jnp.mean(jax.nn.log_softmax(out[-READ:]), axis=0), axis=-1)


def accuracy(model: WormNet, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.asarray(predict(model, jnp.asarray(x))) == y))


def batches(x: np.ndarray, y: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Endless random batches, time first, with the weight of each step in the loss."""
    rng = np.random.default_rng(seed)
    share = np.where(np.arange(STEPS) < STEPS - READ, 0, 1 / READ).astype(np.float32)
    while True:
        order = rng.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield x[chosen].T[:, :, None], (np.broadcast_to(y[chosen], (STEPS, BATCH)), share)


def train(rule: Rule, model: WormNet, data: MNIST1D, updates: int, seed: int) -> tuple[WormNet, Json]:
    """Train by one rule; the curve is accuracy on the held-out training sequences."""
    every = max(updates // 15, 1)
    first, most, last = rule.rate / 10, rule.rate, rule.rate / 50
    schedule = optax.warmup_cosine_decay_schedule(first, most, min(100, updates // 10), updates, last)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    stream = itertools.islice(batches(data.x_train[HELD_OUT:], data.y_train[HELD_OUT:], seed), updates)
    held_out = data.x_train[:HELD_OUT], data.y_train[:HELD_OUT]
    curve, start = [(0, accuracy(model, *held_out))], time.perf_counter()

    def look(now: Progress) -> None:
        bar.update()
        if now.updates % every == 0 or now.updates == updates:
            curve.append((now.updates, accuracy(now.model, *held_out)))
            bar.set_postfix(held_out=f"{100 * curve[-1][1]:.1f} %")

    options: dict[str, Any] = {"state": model.init_state(BATCH), "update": Update(chunk=rule.chunk), "callbacks": look}
    with tqdm(total=updates, desc=rule.name.ljust(12), unit="update") as bar:
        model = fit(rule.learner, loss_fn, optimizer, model, stream, progress=False, **options).model
    return model, {
        "test_accuracy": accuracy(model, data.x_test, data.y_test),
        "held_out_accuracy": curve[-1][1],
        "seconds": round(time.perf_counter() - start, 1),
        "curve": curve,
    }


def memory(model: WormNet) -> Json:
    """Bytes at batch 1: the traces, whatever the length, and the working memory by the length of a sequence."""
    state, x = model.init_state(1), jnp.zeros((1, 1))
    online = [rule for rule in rules(model, True) if rule.name != "BPTT"]
    forward = {rule.name: memory_plan(rule.learner, model, state, x) for rule in online}
    return {
        "trace_bytes": {name: plan.traces for name, plan in forward.items()},
        "total_bytes": {name: plan.total for name, plan in forward.items()},
        "bptt_total_bytes": {steps: memory_plan(BPTT(), model, state, x, steps).total for steps in (40, 1000, 10000)},
    }


def trace_in_time(model: WormNet, pixels: np.ndarray) -> np.ndarray:
    """Eligibility traces of all synapses while one sequence passes, `(steps, synapses)`."""
    learner, steps = D_RTRL(), []
    carry = learner.init(model, model.init_state(), jnp.zeros(1))
    for pixel in pixels:
        carry, _ = learner.step(model, carry, jnp.asarray([pixel]))
        (trace,) = (e for e in jax.tree.leaves(carry.traces) if e.shape == (1, *model.synapses.value["weight"].shape))
        steps.append(np.asarray(trace[0]))
    return np.stack(steps)


def run(out: Path, quick: bool = False, seed: int = 0, exact: bool = False) -> Json:
    """Train by all rules, save `worm.json` and `worm.png`, and return the numbers.

    Args:
        out: folder for the results; it is made if it does not exist.
        quick: 300 updates instead of 1,500.
        seed: of initial weights and batches.
        exact: train by RTRL as well, which takes about an hour (`quick`: ten minutes).

    Returns:
        The content of `worm.json`.
    """
    updates = QUICK_UPDATES if quick else UPDATES
    graph, data = worm(), mnist1d()
    mean, std = data.x_train.mean(), data.x_train.std()
    data = data._replace(x_train=(data.x_train - mean) / std, x_test=(data.x_test - mean) / std)
    model = WormNet(graph, jax.random.key(seed))
    conn = graph.connectivity
    print(f"C. elegans: {conn.num_post} neurons, {conn.num_synapses:,} chemical synapses. MNIST-1D, pixel by pixel.")
    results: Json = {"updates": updates, "seed": seed, "neurons": conn.num_post, "synapses": conn.num_synapses}
    results["untrained"] = {"test_accuracy": accuracy(model, data.x_test, data.y_test)}
    trained = {}
    for rule in rules(model, exact):
        trained[rule.name], results[rule.name] = train(rule, model, data, updates, seed)
    results["memory"] = memory(model)
    out.mkdir(parents=True, exist_ok=True)
    (out / "worm.json").write_text(json.dumps(results, indent=2) + "\n")
    learned, example = trained["D-RTRL"], data.x_test[0]
    draw(results, graph, _weights(learned), trace_in_time(learned, example)).savefig(out / "worm.png")
    print(summary(results))
    print(f"Saved {out / 'worm.json'} and {out / 'worm.png'}.")
    return results


def draw(results: Json, graph: Graph, weight: np.ndarray, traces: np.ndarray) -> "Figure":
    """Learning, memory, the connectome and some of its traces as one figure.

    Args:
        results: the numbers of `run`.
        graph: the connectome.
        weight: what was learned, `(num_synapses,)`.
        traces: eligibility traces while one sequence passes, `(steps, num_synapses)`.
    """
    from matplotlib.figure import Figure

    from . import plot

    figure = Figure(figsize=(12, 9), dpi=120, layout="constrained")
    ((learning, bytes_), (wiring, traced)) = figure.subplots(2, 2)
    curves = {name: np.array(results[name]["curve"]) for name in COMPARED if name in results}
    updates = next(iter(curves.values()))[:, 0]
    accuracies = {name: 100 * curve[:, 1] for name, curve in curves.items()}
    plot.learning_curves(accuracies, updates, ylabel="accuracy on held-out sequences (%)", ax=learning)
    used = results["memory"]
    lengths = list(used["bptt_total_bytes"])
    sizes = {name: [size] * len(lengths) for name, size in used["total_bytes"].items()}
    sizes["BPTT"] = list(used["bptt_total_bytes"].values())
    megabytes = {name: np.array(sizes[name]) / 1e6 for name in COMPARED}
    plot.learning_curves(megabytes, lengths, "steps in a sequence", "memory of one gradient (MB)", log=True, ax=bytes_)
    bytes_.set_xscale("log")
    plot.connectivity(graph, weight, group="role", ax=wiring)
    plot.traces(traces, graph, ax=traced)
    return figure


def _weights(model: WormNet) -> np.ndarray:
    return np.asarray(model.synapses.op.phi(model.synapses.value)["weight"])


def summary(results: Json) -> str:
    """The numbers in words."""
    lines = [f"{'test accuracy, untrained':32}{100 * results['untrained']['test_accuracy']:6.1f} %"]
    for name in COMPARED:
        if (found := results.get(name)) is None:
            continue
        lines.append(f"{name:32}{100 * found['test_accuracy']:6.1f} %   {found['seconds']:6.1f} s")
    for name in ("D-RTRL", BRIDGED, "SnAp-2", "RTRL"):
        if name in results:
            gap = results["BPTT"]["test_accuracy"] - results[name]["test_accuracy"]
            of = f"gap of {name} to BPTT"
            lines.append(f"{of:32}{100 * gap:6.1f} points, after {results['updates']} updates each")
    used = results["memory"]
    for name, size in used["trace_bytes"].items():
        if name == READOUT_ONLY:
            continue
        lines.append(f"{'traces of ' + name:32}{size / 1e3:10,.1f} kB   for any number of steps")
    for steps, size in used["bptt_total_bytes"].items():
        lines.append(f"{f'BPTT, {steps:,} steps':32}{size / 1e3:10,.1f} kB   (all buffers)")
    return "\n".join(lines)
