"""A student that knows a teacher's synapses and learns its gains and biases: errors on neurons that nobody recorded.

Teacher and student share the signed synapses of a connectome. The student sees the same inputs as the teacher and the
activity of M of its neurons, and trains one gain and one bias for each of its own, by four rules, and RTRL if asked.
"""

import argparse
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax

import sparse_etrace as se
from sparse_etrace.plot import MARKERS, PALETTE

matplotlib.use("Agg")
DECAY, GAIN, INHIBITORY, SPREAD, CHANNELS, SMOOTH = 0.7, 0.8, 0.4, 0.3, 6, 0.8
TEST, TRIALS = 200, 8
FULL = {"steps": 60, "batch": 2, "updates": 3000, "rate": 0.02, "recorded": (2, 6, 16, 50, 150), "seeds": 3}
DEAR = {("mushroom body", "SnAp-2"): 300}
QUICK = {"steps": 20, "batch": 2, "updates": 20, "rate": 0.02, "recorded": (4, 100), "seeds": 1}
NETWORKS = ("worm", "mushroom body")
RULES = {
    "D-RTRL": se.D_RTRL(),
    "SnAp-2": se.SnAp(2),
    "Bridged(16)": se.Bridged(16),
    "BPTT": se.BPTT(),
    "RTRL": se.RTRL(),
}


class Rates(eqx.Module):
    """`r_t = a r_{t-1} + (1 - a) gain tanh(W r_{t-1} + x_t + bias)`, of which gain and bias are trained."""

    synapses: se.ETraceParam
    inputs: se.ETraceParam
    gain: se.ETraceParam
    bias: se.ETraceParam

    def __call__(self, r, x):
        r = DECAY * r + (1 - DECAY) * self.gain() * jnp.tanh(self.synapses(r) + self.inputs(x) + self.bias())
        return r, r


def connectome(name, rng):
    """The graph with signs and scaled inputs, and the neurons that get input from outside.

    What transmitters do is not known of all: two of five neurons inhibit, by chance.
    """
    graph = se.datasets.worm() if name == "worm" else se.datasets.mushroom_body()
    conn, labels = graph.connectivity, {"role": ["sensory", "motor|sensory"]}
    entry = graph.where(**(labels if name == "worm" else {"cell_type": "projection neuron"}))
    weight = np.asarray(graph.weight) * np.where(rng.random(conn.num_pre) < INHIBITORY, -1, 1)[conn.pre]
    length = np.sqrt(np.bincount(conn.post, weight**2, conn.num_post))
    return graph.with_weight(np.asarray(GAIN * weight / length[conn.post], np.float32)), entry


def network(graph, onto, rng):
    """One with gains and biases of its own."""
    units = graph.connectivity.num_pre
    own = [se.ElemWiseParam(jnp.asarray(m + SPREAD * rng.normal(size=units), jnp.float32)) for m in (1, 0)]
    fixed = (se.Fixed(jnp.asarray(weight, jnp.float32)) for weight in (graph.weight, onto))
    ops = se.SpMatMulOp(graph), se.MatMulOp()
    return Rates(*(se.ETraceParam({"weight": weight}, op) for weight, op in zip(fixed, ops)), *own)


def inputs(key, steps, batch):
    """Smooth noise of variance one."""
    noise = jax.random.normal(key, (steps, batch, CHANNELS)) * np.sqrt(1 - SMOOTH**2)
    return jax.lax.scan(lambda u, n: (SMOOTH * u + n,) * 2, noise[0] / np.sqrt(1 - SMOOTH**2), noise)[1]


def watched(net, xs):
    state = jnp.zeros((xs.shape[1], net.bias.value.shape[0]))
    return jax.lax.scan(lambda r, x: net(r, x), state, xs)[1]


def loss_fn(r, y):
    target, weight = y
    return jnp.mean(jnp.sum(weight * (r - target) ** 2, -1))


@eqx.filter_jit
def trained(learner, teacher, student, carry, weight, keys, steps, rate):
    """The student after an update for each key, and the losses."""
    adam, (batch, _) = optax.adam(optax.cosine_decay_schedule(rate, len(keys))), carry.state.shape
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
    arrays, rest = eqx.partition(student, se.trainable(student))

    def update(before, key):
        arrays, moments = before
        xs = inputs(key, steps, batch)
        ys = watched(teacher, xs), jnp.broadcast_to(weight, (steps, *weight.shape))
        losses, grads, _ = se.online_grad(learner, loss_fn, eqx.combine(arrays, rest), carry, xs, ys)
        changes, moments = optimizer.update(eqx.filter(grads, se.trainable(student)), moments)
        return (eqx.apply_updates(arrays, changes), moments), losses.mean()

    (arrays, _), losses = jax.lax.scan(update, (arrays, optimizer.init(arrays)), keys)
    return eqx.combine(arrays, rest), losses


def study(name, seed, options, rules):
    """The teacher's dimensionality, and for each rule and M the errors after training by those before."""
    rng = np.random.default_rng(seed)
    graph, entry = connectome(name, rng)
    units, key = graph.connectivity.num_pre, jax.random.key(seed)
    onto = np.zeros((CHANNELS, units))
    onto[:, entry] = rng.normal(size=(CHANNELS, len(entry)))
    teacher, student = network(graph, onto, rng), network(graph, onto, rng)
    xs = inputs(jax.random.fold_in(key, 1), TEST, TRIALS)
    right, order = np.asarray(watched(teacher, xs)), rng.permutation(units)
    spectrum = np.linalg.eigvalsh(np.cov(right.reshape(-1, units).T))
    found = {"dimension": float(spectrum.sum() ** 2 / (spectrum**2).sum()), "rules": {}}
    error = lambda net: np.mean((np.asarray(watched(net, xs)) - right) ** 2, axis=(0, 1))
    before = error(student)
    for rule in rules:
        keys = jax.random.split(key, min(options["updates"], DEAR.get((name, rule), options["updates"])))
        carry = RULES[rule].init(student, jnp.zeros((options["batch"], units)), xs[0, : options["batch"]])
        begin, found["rules"][rule] = time.perf_counter(), {}
        for count in options["recorded"]:
            seen = np.isin(np.arange(units), order[:count])
            given = teacher, student, carry, jnp.asarray(seen / count, jnp.float32), keys
            after = error(trained(RULES[rule], *given, options["steps"], options["rate"])[0])
            row = {part: float(after[who].mean() / before[who].mean()) for part, who in parts(seen).items()}
            row["median"] = float(np.median(after[~seen] / before[~seen]))
            found["rules"][rule][count] = row
        seconds = (time.perf_counter() - begin) / len(options["recorded"])
        print(f"{name}, seed {seed}, dimension {found['dimension']:.1f}, {rule}: {seconds:.1f} s a student")
        print("   unrecorded", {m: round(row["unrecorded"], 3) for m, row in found["rules"][rule].items()}, flush=True)
    return found


def parts(seen):
    return {"recorded": seen, "unrecorded": ~seen}


def figure(found, path):
    """Errors on unrecorded neurons against their number, a panel for each network."""
    fig, axes = plt.subplots(1, len(found), figsize=(4.4 * len(found), 3.8), squeeze=False, sharey=True)
    for ax, (name, seeds) in zip(axes[0], found.items()):
        for k, rule in ((k, rule) for k, rule in enumerate(RULES) if rule in seeds[0]["rules"]):
            counts = list(seeds[0]["rules"][rule])
            errors = np.array([[one["rules"][rule][m]["unrecorded"] for m in counts] for one in seeds])
            at = np.array(counts, int)
            style = {"color": PALETTE[k], "marker": MARKERS[k], "mfc": "none", "label": rule}
            ax.errorbar(at, errors.mean(0), np.ptp(errors, 0) / 2, capsize=3, **style)
        dimensions = [one["dimension"] for one in seeds]
        ax.axvspan(min(dimensions), max(dimensions), color="0.85", label="dimension of the teacher")
        ax.set(xscale="log", xlabel="neurons recorded", title=name)
        ax.grid(alpha=0.3)
    axes[0, 0].set(ylabel="error on the others, by that before", ylim=(0, 3))
    named = axes[0, 0].get_legend_handles_labels()
    axes[0, -1].legend(*named, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    fig.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(fig)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="few updates: does it run, not how well")
    parser.add_argument(
        "--rules", nargs="+", choices=RULES, help="all but RTRL unless given; the others stay as they were found"
    )
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--updates", type=int)
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path, options = args.out / "teacher.json", dict(QUICK if args.quick else FULL)
    options |= {name: value for name in ("updates", "seeds") if (value := getattr(args, name))}
    found = json.loads(path.read_text()) if path.is_file() else {}
    for name in args.network:
        new = [
            study(name, seed, options, args.rules or [rule for rule in RULES if args.quick or rule != "RTRL"])
            for seed in range(options["seeds"])
        ]
        for one, old in zip(new, found.get(name, new)):
            one["rules"] = old["rules"] | one["rules"]
        found[name] = new
        path.write_text(json.dumps(found, indent=1) + "\n")
    figure(json.loads(path.read_text()), args.out / "teacher.png")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
