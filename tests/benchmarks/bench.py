"""How fast the kernels and a step of training are on this machine: a table, a JSON file and a figure.

Each measurement is the median of several repetitions in one process, after one that compiles; whatever is divided by
something else is measured in turns with it. Kernels run inside one compiled loop, because a single call would mostly
measure the allocation of its result. A step of training is the forward step, the traces and the accumulated gradient;
a forward step is the model and its loss alone, in one compiled scan. The memory is that of a process of its own.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import networks
import numpy as np
import scipy.sparse as sp
from jax.experimental.sparse import BCOO
from peak import peak_mb

import sparse_etrace as se
from sparse_etrace import _kernels
from sparse_etrace._kernels import native

matplotlib.use("Agg")
LOOPS = 10
WINDOW = 16


def seconds(*runs, repeats=7, clock=time.perf_counter):
    """Median time of each of several functions that are called in turns."""
    for run in runs:
        jax.block_until_ready(run())
    times = [[] for _ in runs]
    for _ in range(repeats):
        for run, found in zip(runs, times, strict=True):
            begin = clock()
            jax.block_until_ready(run())
            found.append(clock() - begin)
    return [statistics.median(found) for found in times]


def looped(fn, start, *args):
    """`fn(carry, *args)` several times in one program; the carry keeps XLA from doing it once for all."""
    program = jax.jit(lambda carry, *args: jax.lax.fori_loop(0, LOOPS, lambda _, c: fn(c, *args), carry))
    return lambda: program(start, *args)


def copy_bandwidth(num_bytes):
    """Bytes read and written per second by a copy, on one processor or on all, whichever is faster."""
    cores = os.cpu_count()
    source, target = np.ones(num_bytes // 4, np.float32), np.ones(num_bytes // 4, np.float32)
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores), strict=True))
    with ThreadPoolExecutor(cores) as pool:
        one, all_ = seconds(
            lambda: np.copyto(target, source), lambda: list(pool.map(lambda part: np.copyto(*part), parts))
        )
    return 2 * num_bytes / min(one, all_)


def kernels(units, in_degree):
    rng = np.random.default_rng(0)
    data = networks.make(networks.Case(units, in_degree, 1, "D-RTRL"))
    conn = se.Connectivity.from_edges(data.pre, data.post, (units, units))
    weight, found = jnp.asarray(data.weight), {}
    matrix = sp.csr_array((data.weight, data.pre, np.asarray(conn.post_ptr)), shape=(units, units))
    bcoo = BCOO((weight, jnp.stack([conn.post, conn.pre], axis=1)), shape=(units, units), indices_sorted=True)
    bandwidth = copy_bandwidth(8 * conn.num_synapses)
    found["copy_gb_s"] = bandwidth / 1e9
    for columns in (1, 16):
        shape = (units,) if columns == 1 else (columns, units)
        x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        plain = np.ascontiguousarray(np.asarray(x).T)
        ours = looped(lambda y, conn, w, x: _kernels.spmv(conn, w, x + 1e-20 * y), x * 0, conn, weight, x)
        theirs = looped(lambda y, m, x: m @ (x + 1e-20 * y), x.T * 0, bcoo, x.T)
        np.testing.assert_allclose(_kernels.spmv(conn, weight, x).T, matrix @ plain, rtol=1e-3, atol=1e-3)
        a, b, c = seconds(ours, lambda p=plain: [matrix @ p for _ in range(LOOPS)], theirs, repeats=5)
        found[f"product_{columns}"] = {"ms": a / LOOPS * 1e3, "scipy": b / a, "bcoo": c / a}
    a, b = (found[f"product_{columns}"] for columns in (1, 16))
    a["of_bandwidth"] = 8 * conn.num_synapses / (a["ms"] / 1e3) / bandwidth
    b["of_bandwidth"] = (8 + 64) * conn.num_synapses / (b["ms"] / 1e3) / bandwidth

    def coefficients(*shape):
        return jnp.asarray(0.01 * rng.standard_normal(shape), jnp.float32)

    shapes = [(1, 1, units), (WINDOW, 1, units), (1, units), (WINDOW, units), (WINDOW, units)]
    for name, steps in (("window", WINDOW), ("stepwise", 1)):
        parts = [coefficients(*(steps if size == WINDOW else size for size in shape)) for shape in shapes]

        def both(carry, conn, *parts):
            trace, total = carry
            trace, gradient = _kernels.trace.advance(conn, *parts, trace)
            return trace, total + gradient

        start = jnp.zeros((1, conn.num_synapses)), jnp.zeros(conn.num_synapses)
        (t,) = seconds(looped(both, start, conn, *parts))
        per_synapse = 4 + 8 + 4 + 12 + (64 if steps > 1 else 4)
        of_bandwidth = per_synapse * conn.num_synapses / (t / LOOPS) / bandwidth
        found[name] = {"ms": t / LOOPS * 1e3, "ms_per_step": t / LOOPS / steps * 1e3, "of_bandwidth": of_bandwidth}
    return found


def activities(units, in_degree, shares):
    """Milliseconds of a forward product by the share of inputs that are not zero."""
    data = networks.make(networks.Case(units, in_degree, 1, "D-RTRL"))
    conn, rng = se.Connectivity.from_edges(data.pre, data.post, (units, units)), np.random.default_rng(1)
    weight = jnp.asarray(data.weight)
    runs = []
    for share in shares:
        x = jnp.asarray(rng.standard_normal(units) * (rng.random(units) < share), jnp.float32)
        runs.append(looped(lambda y, conn, w, x: _kernels.spmv(conn, w, x * (1 + 1e-20 * y)), x * 0, conn, weight, x))
    return [t / LOOPS * 1e3 for t in seconds(*runs)]


@jax.jit
def forward(model, h, xs, ys):
    def one(h, xy):
        h, out = model(h, xy[0])
        return h, networks.loss_fn(out, xy[1])

    return jax.lax.scan(one, h, (xs, ys))


def steps(case, rules=("D-RTRL", "ES-D-RTRL"), chunk=None, repeats=5):
    """Milliseconds of a forward step and, by rule, of a step of training."""
    data = networks.make(case)
    model = networks.net(case, data)
    runs = [lambda: forward(model, data.start, data.xs, data.ys)]
    for rule in rules:
        learner = networks.learner(case._replace(rule=rule))
        carry = learner.init(model, data.start, data.xs[0])
        runs.append(
            functools.partial(se.online_grad, learner, networks.loss_fn, model, carry, data.xs, data.ys, chunk=chunk)
        )
    times = [t / case.steps * 1e3 for t in seconds(*runs, repeats=repeats)]
    return dict(zip(("forward", *rules), times, strict=True))


def fly_eye(radius):
    """Peak memory of this process after a few steps of training the fly's eye, and the time to the first step."""
    graph = se.datasets.fly_eye(radius)
    conn, units = graph.connectivity, graph.connectivity.num_pre
    weight = jnp.asarray(np.asarray(graph.weight) / np.abs(np.asarray(graph.weight)).max() / 10)
    del graph
    built = peak_mb()
    case = networks.Case(units, 0, 1, "D-RTRL")
    model = networks.Net(se.ETraceParam({"weight": weight}, se.SpMatMulOp(conn)), case)
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.standard_normal((WINDOW, units), np.float32))
    learner, start = se.D_RTRL(), jnp.zeros(units)

    def train():
        carry = learner.init(model, start, xs[0])
        return jax.block_until_ready(se.online_grad(learner, networks.loss_fn, model, carry, xs, xs))

    first, second = (_timed(train) for _ in range(2))
    return {
        "units": units,
        "synapses": conn.num_synapses,
        "built_mb": built,
        "peak_mb": peak_mb(),
        "first_call_s": first,
        "time_to_first_step_s": first - second,
        "ms_per_step": second / WINDOW * 1e3,
    }


def _timed(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def alone(name, *args):
    """A function of this file in a process of its own."""
    program = f"import bench, json; print(json.dumps(bench.{name}{args!r}))"
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def slope(x, y):
    """Of the logarithms, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def figure(found, path):
    panels = [
        ("synapses", "synapses, 100 for each unit", "log"),
        ("batch", "batch", "log"),
        ("activity", "inputs that are not zero", "log"),
        ("time", "steps in a call", "log"),
    ]
    fig, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for ax, (name, label, scale) in zip(axes, panels, strict=True):
        curves = found[name]
        for (what, values), style in zip(curves["ms"].items(), ("o-", "s--", "^:"), strict=False):
            ax.plot(curves["at"], values, style, label=what, markersize=4)
        ax.set(xlabel=label, ylabel="milliseconds a step", xscale=scale, yscale="log")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    axes[2].set_ylabel("milliseconds a product")
    axes[3].set_ylim(bottom=min(min(v) for v in found["time"]["ms"].values()) / 3)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def swept(name, at, case_at, rules=("D-RTRL", "ES-D-RTRL")):
    rows = [steps(case_at(value), rules) for value in at]
    return {"at": list(at), "ms": {key: [row[key] for row in rows] for key in rows[0]}}


def arguments(doc):
    """What a benchmark is told: `out`, a folder that is there, and `quick`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="small networks: does it run, not how fast")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def main():
    args = arguments(__doc__)
    part, degree = (20, 20) if args.quick else (1, 100)
    units, many, radius = 20_000 // part, 139_000 // part, 3 if args.quick else 47

    def case(units=units, batch=1, length=64, **kwargs):
        return networks.Case(units, degree, batch, "D-RTRL", steps=length, **kwargs)

    found = {"kernels_in_use": native.KERNELS, "jax": jax.__version__, "cores": os.cpu_count()}
    found["load"] = os.getloadavg()[0]
    for name, size in (("small", units), ("large", many)):
        found[f"kernels_{name}"] = kernels(size, degree if name == "small" else degree + 8)
    found["steps"] = {batch: steps(case(batch=batch)) for batch in (1, 16)}
    found["stepwise"] = {batch: steps(case(batch=batch), ("D-RTRL",), chunk=1) for batch in (1,)}
    found["silent"] = steps(case(many, length=32, silent=True)._replace(in_degree=degree + 8))
    sizes = [10_000 // part, 30_000 // part, 80_000 // part, 200_000 // part]
    found["synapses"] = swept("synapses", sizes, lambda n: case(n, length=32), ("D-RTRL",))
    found["synapses"]["at"] = [n * degree for n in sizes]
    found["slope"] = slope(found["synapses"]["at"], found["synapses"]["ms"]["D-RTRL"])
    found["batch"] = swept("batch", [1, 2, 4, 8, 16, 32], lambda b: case(batch=b, length=32))
    found["time"] = swept("time", [16, 64, 256, 1024], lambda t: case(length=t))
    shares = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    found["activity"] = {"at": shares, "ms": {"forward product": activities(many, degree + 8, shares)}}
    found["fly_eye"] = alone("fly_eye", radius)
    figure(found, args.out / "bench.png")
    (args.out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")

    for size in ("small", "large"):
        k = found[f"kernels_{size}"]
        print(f"{size} network: copy {k['copy_gb_s']:.1f} GB/s")
        for name in ("product_1", "product_16"):
            p = k[name]
            print(
                f"  {name:<12} {p['ms']:8.2f} ms   scipy {p['scipy']:5.1f} x   BCOO {p['bcoo']:5.1f} x   "
                f"{p['of_bandwidth']:.2f} of the copy's bandwidth"
            )
        for name in ("window", "stepwise"):
            w = k[name]
            print(f"  {name:<12} {w['ms']:8.2f} ms, {w['ms_per_step']:.2f} a step   {w['of_bandwidth']:.2f} of it")
    rows = [(f"batch {batch}", row) for batch, row in found["steps"].items()]
    rows += [("update every step, batch 1", found["stepwise"][1]), ("large, 2 % active", found["silent"])]
    for name, row in rows:
        ratios = "".join(f"   {rule} {row[rule]:.2f} ({row[rule] / row['forward']:.2f} x)" for rule in list(row)[1:])
        print(f"{name:<28} forward {row['forward']:.2f} ms{ratios}")
    eye = found["fly_eye"]
    print(
        f"fly eye, {eye['synapses']:,} synapses: peak {eye['peak_mb']:.0f} MB "
        f"({eye['built_mb'] or 0:.0f} to build it), "
        f"{eye['time_to_first_step_s']:.2f} s to the first step, {eye['ms_per_step']:.1f} ms a step"
    )
    print(f"slope of the cost of a D-RTRL step against synapses: {found['slope']:.2f}")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
