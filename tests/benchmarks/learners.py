"""What each rule gives for its memory and its time, and how far two of them learn to copy.

Study `alignment`: on small networks and a graph network over traffic sensors, the cosine of each rule's gradient of the
recurrent weights with the exact one, what is carried from one step to the next, and the processor's time for a step in
turns with that for a forward step. Study `copy`: one update per batch of whole sequences; the length to copy grows by
one whenever it is mastered.
"""

import argparse
import functools
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import optax
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

import sparse_etrace as se
from sparse_etrace.plot import MARKERS, PALETTE

matplotlib.use("Agg")
BATCH, STEPS, CHANNELS, FEATURES, SECONDS = 4, 150, 3, 16, 10
SYMBOLS, COPIES, MASTERED, ROUND, BUCKET = 4, 16, 0.15, 10, 4
BLANK, RECALL = 0, 3
FULL = {"units": 64, "density": 0.125, "updates": 2000, "rate": 3e-3, "seeds": (0, 1, 2)}
QUICK = {"units": 16, "density": 0.25, "updates": 20, "rate": 3e-3, "seeds": (0,)}


class Net(eqx.Module):
    """A cell with a readout of its output."""

    cell: Any
    readout: se.ETraceParam

    def __call__(self, state, x):
        state, z = self.cell(state, x)
        return state, self.readout(z)


class GatedUnits(eqx.Module):
    """A gated recurrent unit whose reset gate acts after the recurrent product, so that no op acts through another."""

    inp: list[se.ETraceParam]
    rec: list[se.ETraceParam]

    def __call__(self, h, x):
        (a, b, c), (d, e, f) = ([p(v) for p in part] for part, v in ((self.inp, x), (self.rec, h)))
        update = jax.nn.sigmoid(b + e)
        h = (1 - update) * h + update * jnp.tanh(c + jax.nn.sigmoid(a + d) * f)
        return h, h


class GraphUnits(eqx.Module):
    """A gated recurrent unit at each node of a graph, which reads its neighbours' mean before or after the matrix."""

    inp: list[se.ETraceParam]
    rec: list[se.ETraceParam]
    spread: se.ETraceParam
    spread_first: bool = eqx.field(static=True)

    def __call__(self, h, x):
        def read(matrix, h):
            return matrix(self.spread(h)) if self.spread_first else self.spread(matrix(h))

        (a, b, c), (d, e, f) = ([p(x) for p in self.inp], self.rec)
        update, reset = jax.nn.sigmoid(a + read(d, h)), jax.nn.sigmoid(b + read(e, h))
        h = update * h + (1 - update) * jnp.tanh(c + read(f, reset * h))
        return h, h


def wiring(units, density, radius, seed):
    """A random directed graph with normal weights, and no autapse."""
    graph = se.from_networkx(nx.gnp_random_graph(units, density, seed=seed, directed=True))
    weight = np.random.default_rng(seed).standard_normal(graph.weight.shape).astype(np.float32)
    conn = graph.connectivity
    return se.scale_spectral_radius(se.from_edges(conn.pre, conn.post, weight, conn.shape), radius)


def dense(key, *shape, gain=1.0, bias=0.0):
    weight = gain * jax.random.normal(key, shape) / np.sqrt(shape[0])
    return se.ETraceParam({"weight": weight, "bias": jnp.full(shape[1], bias)}, se.MatMulOp())


def sparse(graph, weight=None):
    return se.ETraceParam({"weight": graph.weight if weight is None else weight}, se.SpMatMulOp(graph))


# --- copy -------------------------------------------------------------------------------------------------------


def sequences(key, length, most):
    """Inputs, and pairs of bit and weight: `length` bits, the recall symbol, and as many blanks, padded for `most`."""
    step = jnp.arange(2 * most + 1)
    bits = jax.random.bernoulli(key, shape=(COPIES, most)).astype(int)
    symbol = jnp.where(step < length, 1 + bits[:, step % most], jnp.where(step == length, RECALL, BLANK))
    recalled = (step > length) & (step <= 2 * length)
    xs = jax.nn.one_hot(symbol.T, SYMBOLS)
    return xs, (bits[:, (step - length - 1) % most].T, jnp.where(recalled, 1 / length, 0.0))


def copy_loss(out, target):
    bit, weight = target
    return weight * jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, bit))


@eqx.filter_jit
def train_round(learner, optimizer, model, moments, start, key, length, most):
    """Some updates at one length; mean loss in nats per bit."""
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)

    def update(before, key):
        arrays, moments = before
        model = eqx.combine(arrays, rest)
        losses, grads, _ = se.online_grad(learner, copy_loss, model, start, *sequences(key, length, most))
        changes, moments = optimizer.update(grads, moments)
        return (eqx.partition(eqx.apply_updates(model, changes), eqx.is_inexact_array)[0], moments), losses.sum()

    (arrays, moments), losses = jax.lax.scan(update, (arrays, moments), jax.random.split(key, ROUND))
    return eqx.combine(arrays, rest), moments, losses.mean()


def copier(units, density, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    graph = wiring(units, density, 1.0, 0)
    inp = [dense(next(keys), SYMBOLS, units) for _ in range(3)]
    scale = 1 / np.sqrt(density * units)
    weights = [scale * jax.random.normal(next(keys), graph.weight.shape) for _ in range(3)]
    return Net(GatedUnits(inp, [sparse(graph, w) for w in weights]), dense(next(keys), units, 2))


def copy_curve(learner, units, density, seed, updates, rate):
    """The length after each round of updates."""
    model, optimizer = copier(units, density, seed), optax.adam(rate)
    moments = optimizer.init(eqx.filter(model, se.trainable(model)))
    start = learner.init(model, jnp.zeros((COPIES, units)), jnp.zeros((COPIES, SYMBOLS)))
    length, curve, begin = 1, [], time.perf_counter()
    for key in jax.random.split(jax.random.key(1000 + seed), updates // ROUND):
        most = -(-length // BUCKET) * BUCKET
        model, moments, loss = train_round(learner, optimizer, model, moments, start, key, jnp.asarray(length), most)
        length += int(loss < MASTERED)
        curve.append(length)
    return {"lengths": curve, "last_loss": float(loss), "seconds": time.perf_counter() - begin}


# --- alignment --------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A net, its first state for one sequence and for a batch, the leaf that is read, and what is trained."""

    net: Net
    one: Any
    start: Any
    leaf: str
    train: Any
    xs: jax.Array
    ys: jax.Array


def only(net, recurrent):
    """A filter of these weights."""
    nothing = jax.tree.map(lambda _: False, net)
    return eqx.tree_at(lambda m: [p.value["weight"] for p in recurrent(m.cell)], nothing, replace_fn=lambda _: True)


def networks(units):
    """Cases by their names, on inputs and targets that are sums of sines."""
    keys = iter(jax.random.split(jax.random.key(0), 20))
    graph = [wiring(units, 0.1, 1.1, seed) for seed in range(3)]
    xs, ys = smooth(jax.random.key(1), CHANNELS), smooth(jax.random.key(2), 2)

    def inp(gain=1.0, bias=0.0):
        return dense(next(keys), CHANNELS, units, gain=gain, bias=bias)

    strong = sparse(graph[0], 3 * graph[0].weight)
    cells = {
        "rate": (se.cells.LeakyRate(units, inp(), sparse(graph[0]), decay=0.9), "state", lambda c: [c.rec]),
        "ALIF": (se.cells.ALIF(units, inp(3.0, 1.0), strong), "z", lambda c: [c.rec]),
        "GRU": (
            se.cells.GRU(units, *(inp() for _ in range(3)), *map(sparse, graph)),
            "state",
            lambda c: [c.rec_r, c.rec_u, c.rec_c],
        ),
    }
    for name, (cell, leaf, recurrent) in cells.items():
        net = Net(cell, dense(next(keys), units, 2))
        yield name, Case(net, cell.init_state(1), cell.init_state(BATCH), leaf, only(net, recurrent), xs, ys)


def traffic(path):
    """The same for a graph network on a week of traffic sensors, which looks a quarter of an hour ahead."""
    if path is None or not path.is_file():
        print("the graph networks are left out: --traffic names no file of speeds and roads")
        return
    found = np.load(path)
    speed = found["speed"].astype(float)
    speed = (speed - speed.mean()) / speed.std()
    nodes = speed.shape[1]
    roads = se.from_edges(found["src"], found["dst"], found["w"], (nodes, nodes))
    total = np.bincount(roads.connectivity.post, roads.weight, nodes)[roads.connectivity.post]
    means = roads.with_weight(np.asarray(roads.weight / total, np.float32))
    now, ahead = slice(0, STEPS), slice(3, STEPS + 3)
    xs, ys = jnp.asarray(speed[now, :, None], jnp.float32), jnp.asarray(speed[ahead, :, None], jnp.float32)
    for spread_first in (True, False):
        keys = iter(jax.random.split(jax.random.key(0), 7))
        spread = se.ETraceParam({"weight": means.weight}, se.SpMatMulOp(means, axis=-2))
        inp, rec = ([dense(next(keys), size, FEATURES) for _ in range(3)] for size in (1, FEATURES))
        net = Net(GraphUnits(inp, rec, spread, spread_first), dense(next(keys), FEATURES, 1))
        name = "graph GRU, spread first" if spread_first else "graph GRU, matrix first"
        state = jnp.zeros((nodes, FEATURES))
        yield name, Case(net, state, state, "state", only(net, lambda c: c.rec), xs, ys)


def rules(name, leaf, train):
    """All rules by their names, those of graph networks where there is a graph of nodes with features."""
    key, through = jax.random.key(0), se.D_RTRL(through_ops=True, train=train)
    found = {
        "same step": se.TBPTT(1, train=train),
        "OTTT": se.OTTT(0.9, train=train),
        "ES-D-RTRL": se.ES_D_RTRL(0.9, train=train),
        "D-RTRL": se.D_RTRL(train=train),
        "OSTL": se.OSTL(train=train),
        "e-prop, symmetric": se.EProp(leaf, train=train),
        "e-prop, random": se.EProp(leaf, "random", key=key, train=train),
        "three-factor": se.ThreeFactor(leaf, train=train),
        "UORO": se.UORO(key, train=train),
        "RTRL": se.RTRL(train=train),
        "Bridged(16)": se.Bridged(16, train=train),
        "windows of 16": se.TBPTT(1, every=16, train=train),
        "TBPTT(16, every=16)": se.TBPTT(16, every=16, train=train),
        "BPTT": se.BPTT(train=train),
    }
    if name.startswith("graph"):
        # A pattern of uses has 2e7 and 2e8 entries there, as each node uses the matrices by itself.
        by_parameter = se.SnAp(2, per="parameter", train=train)
        found |= {"D-RTRL, through ops": through, "Bridged(16), through ops": se.Bridged(16, through, train=train)}
        return found | {"SnAp-2 by parameter": by_parameter}
    found |= {"SnAp-2": se.SnAp(2, train=train), "SnAp-3": se.SnAp(3, train=train)}
    found["Bridged(16), SnAp-2"] = se.Bridged(16, se.SnAp(2), train=train)
    return found | ({"RFLO": se.RFLO(leaf, key=key, train=train)} if name == "rate" else {})


def smooth(key, channels):
    """Sums of slow sines with random phases, of variance 1."""
    phase, speed = jax.random.uniform(key, (2, 5, BATCH, channels))
    t = jnp.arange(STEPS)[:, None, None, None]
    return jnp.sin(2 * jnp.pi * (phase + t * (0.2 + speed) / 20)).sum(1) * np.sqrt(2 / 5)


def square(out, y):
    return jnp.mean((out - y) ** 2)


def needed(rule, case):
    """Bytes for one sequence: the states that reverse mode goes through, and traces without their indices."""
    state, x = case.one, case.xs[0] if case.start is case.one else case.xs[0, :1]
    through = {se.BPTT: lambda: STEPS, se.Bridged: lambda: rule.steps, se.TBPTT: lambda: rule.steps + rule.every - 1}
    states = through.get(type(rule), lambda: 0)() * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if isinstance(rule, se.BPTT | se.TBPTT):
        return states
    kept = rule.carry_shapes(case.net, state, x)
    traces = kept.traces
    if not isinstance(traces, dict):
        traces = getattr(traces, "values", getattr(traces, "rows", traces))
    leaves = jax.tree.leaves((traces, kept.memory))
    leaves = [leaf for leaf in leaves if hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return states + sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def processor_time(run):
    """Seconds of all cores, which other programs change less than those of a clock."""
    begin = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - begin


def alignment(cases, repeats, write, chosen=None):
    """Of each case the size, and of each rule, or of those chosen, cosine, norm ratio, memory and time.

    A rule takes turns with a forward pass, as often as asked or as fits into some seconds; `write` is given what there
    is after each.
    """
    found = {}
    for name, case in cases:
        net, start, xs, ys = case.net, case.start, case.xs, case.ys

        @jax.jit
        def forward(state, xs, ys, net=net):
            def one(state, xy):
                state, out = net(state, xy[0])
                return state, (square(out, xy[1]), jax.tree.leaves(state)[-1])

            return jax.lax.scan(one, state, (xs, ys))

        weights = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(net, case.train)))
        activity = float(jnp.abs(forward(start, xs, ys)[1][1]).mean())
        found[name] = {"weights": weights, "mean_activity": activity, "repeats": repeats, "rules": {}}
        print(f"{name}: {weights:,} weights, mean activity {activity:.3f}", flush=True)
        for rule, learner in rules(name, case.leaf, case.train).items():
            if chosen and rule not in chosen:
                continue
            begin = time.perf_counter()
            try:
                compared = se.gradient_alignment(learner, square, net, start, xs, ys)
            except ValueError as error:
                print(f"  {rule} is left out: {error}")
                continue
            carry, mid = learner.init(net, start, xs[0]), time.perf_counter()
            both = (
                functools.partial(forward, start, xs, ys),
                functools.partial(se.online_grad, learner, square, net, carry, xs, ys),
            )
            once = [processor_time(run) for run in both]
            times = [list(map(processor_time, both)) for _ in range(max(3, min(repeats, int(SECONDS / sum(once)))))]
            step, took = np.median(times, axis=0)
            row = {
                "cosine": compared.total_cosine,
                "norm_ratio": compared.total_norm_ratio,
                "bytes": needed(learner, case),
                "ms": took / STEPS * 1e3,
                "ratio": float(np.median([t / s for s, t in times])),
                "first_seconds": mid - begin,
            }
            found[name]["rules"][rule] = row
            found[name].setdefault("forward_ms", []).append(step / STEPS * 1e3)
            write(found)
            print(
                f"  {rule:<25} cosine {row['cosine']:6.3f}   norm {row['norm_ratio']:7.3g}   {row['bytes']:>11,} bytes"
                f"   {row['ms']:.4f} ms ({row['ratio']:.1f} x)   compiled in {mid - begin:.0f} s",
                flush=True,
            )
        jax.clear_caches()
    return found


# --- figures ----------------------------------------------------------------------------------------------------


# A colour for each kind of rule, from what is cheap to what is exact.
KINDS = (
    ("reverse mode alone", ("same step", "windows of 16", "TBPTT(16, every=16)", "BPTT")),
    ("bridged windows", ("Bridged(16)", "Bridged(16), through ops", "Bridged(16), SnAp-2")),
    ("traces of units", ("D-RTRL", "D-RTRL, through ops", "OSTL", "ES-D-RTRL", "OTTT")),
    ("influences", ("SnAp-2", "SnAp-2 by parameter", "SnAp-3", "RTRL")),
    ("other signals", ("e-prop, symmetric", "e-prop, random", "RFLO", "three-factor", "UORO")),
)
TICKS = (1, 0.99, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0, -0.2)


def alignment_figure(found, path):
    """Each rule's cosine, spaced as the angle, against memory and time."""
    fig, axes = plt.subplots(2, len(found), figsize=(2.8 * len(found), 8), squeeze=False, sharey=True)
    fig.subplots_adjust(wspace=0.12, hspace=0.25)
    styles = {
        rule: {
            "color": PALETTE[k],
            "marker": MARKERS[j],
            "ms": 8,
            "mfc": "none",
            "mew": 1.7,
            "ls": "",
            "clip_on": False,
        }
        for k, (_, members) in enumerate(KINDS)
        for j, rule in enumerate(members)
    }
    seen = {rule for row in found.values() for rule in row["rules"]}
    for (name, row), column in zip(found.items(), axes.T, strict=True):
        for rule, values in row["rules"].items():
            for ax, what in zip(column, ("bytes", "ratio"), strict=True):
                ax.plot(values[what] or np.nan, values["cosine"], **styles[rule])
        column[0].set_title(f"{name}\n{row['weights']:,} recurrent weights", pad=12)
        column[0].set(xlabel="memory (bytes)")
        column[1].set(xlabel="time (forward steps)")
        for ax in column:
            ax.set_xscale("log")
            ax.set_yscale("function", functions=(lambda c: -np.arccos(np.clip(c, -1, 1)), np.cos))
            ax.set_yticks(TICKS, [f"{t:g}" for t in TICKS])
            ax.set_ylim(-0.3, 1)
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3)
        column[1].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    for ax in axes[:, 0]:
        ax.set(ylabel="cosine with the exact gradient")
    for k, (kind, members) in enumerate(KINDS):
        handles = [plt.Line2D([], [], label=rule, **styles[rule]) for rule in members if rule in seen]
        at = (0.92, 0.92 - 0.17 * k)
        fig.legend(handles=handles, title=kind, loc="upper left", bbox_to_anchor=at, alignment="left", frameon=False)
    fig.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(fig)


def copy_figure(found, path):
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (rule, runs) in enumerate(found["rules"].items()):
        for run, dashes in zip(runs, ("-", "--", ":"), strict=False):
            at = ROUND * np.arange(1, len(run["lengths"]) + 1)
            label = f"{rule}: {', '.join(str(r['lengths'][-1]) for r in runs)}" if run is runs[0] else None
            ax.plot(at, run["lengths"], dashes, color=PALETTE[number], label=label, lw=1.8)
    ax.set(xlabel=f"updates (batches of {COPIES} sequences)", ylabel="bits to copy")
    ax.grid(alpha=0.3)
    ax.legend(title="length reached by each seed", loc="lower right", frameon=False)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="small networks, few updates: does it run, not how well")
    parser.add_argument("--only", choices=("alignment", "copy"), help="one of the two studies")
    parser.add_argument("--traffic", type=Path, help="metr_la_week.npz, for the graph networks")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "learners.json"
    found = {"jax": jax.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if args.only and path.is_file():
        found = json.loads(path.read_text()) | found

    def write(study):
        path.write_text(json.dumps(found | {"alignment": study}, indent=1) + "\n")

    if args.only != "copy":
        cases = itertools.chain(networks(20 if args.quick else 60), traffic(args.traffic))
        cases = itertools.islice(cases, 1 if args.quick else None)
        found["alignment"] = alignment(cases, *((1, write, ("D-RTRL", "BPTT")) if args.quick else (21, write)))
        alignment_figure(found["alignment"], args.out / "learners.png")
    if args.only != "alignment":
        options = dict(QUICK if args.quick else FULL)
        seeds = options.pop("seeds")
        learners = {"SnAp-1": se.SnAp(1), "SnAp-2": se.SnAp(2), "BPTT": se.BPTT()}
        learners |= {"Bridged(16)": se.Bridged(16), "Bridged(16), SnAp-2": se.Bridged(16, se.SnAp(2))}
        learners = {"SnAp-2": se.SnAp(2)} if args.quick else learners
        runs = {rule: [copy_curve(learner, seed=s, **options) for s in seeds] for rule, learner in learners.items()}
        found["copy"] = {"options": options, "rules": runs}
        copy_figure(found["copy"], args.out / "copy.png")
        for rule, each in runs.items():
            print(f"{rule}: copies {', '.join(str(r['lengths'][-1]) for r in each)} bits")
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
