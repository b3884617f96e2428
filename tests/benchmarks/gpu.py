"""Whether a GPU gives the gradients of the CPU, and how fast it is: a table and a JSON file.

Each rule is asked for its gradients on four small networks, with a batch and without, step by step and in windows
that are shorter than a call, on both devices. More than rounding between them ends the program with 1. The times are
medians, beside a copy within the memory of the device and beside `BCOO`.
"""

import functools
import itertools
import json
import multiprocessing
import os
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

try:
    import bench
    import jax
    import jax.numpy as jnp
    import networks
    import numpy as np
    import units
    from jax.experimental.sparse import BCOO

    import sparse_etrace as se
    from sparse_etrace import _kernels
    from sparse_etrace._kernels import native
except ModuleNotFoundError as missing:
    wheels = (
        "jax[cuda13] equinox jaxtyping optax numpy scipy networkx pyarrow matplotlib tqdm scikit-build-core cmake ninja"
    )
    raise SystemExit(
        f"{missing.name} is not installed. Where there is a network: `pip download --only-binary=:all: "
        f"--python-version 3.12 --platform manylinux_2_28_x86_64 -d wheels {wheels}`; here: `pip install --no-index "
        f"--find-links wheels {wheels} && pip install --no-build-isolation --no-deps .`"
    ) from missing

STEPS, CALL, CHUNK, BATCH = 8, 4, 3, 3
LIMIT = {"float64": 1e-10, "float32": 1e-4}
RULES = {
    "D-RTRL": lambda leaf, key: se.D_RTRL(),
    "ES-D-RTRL": lambda leaf, key: se.ES_D_RTRL(decay=0.8),
    "Hybrid": lambda leaf, key: se.Hybrid(decay=0.8),
    "OSTL": lambda leaf, key: se.OSTL(),
    "OTTT": lambda leaf, key: se.OTTT(decay=0.7),
    "e-prop": lambda leaf, key: se.EProp(leaf, kappa=0.6),
    "e-prop, random": lambda leaf, key: se.EProp(leaf, "random", key=key, rate_strength=0.3, rate_target=0.1),
    "RFLO": lambda leaf, key: se.RFLO(leaf, key=key),
    "three-factor": lambda leaf, key: se.ThreeFactor(leaf, kappa=0.6),
    "TBPTT": lambda leaf, key: se.TBPTT(steps=3),
    "SnAp": lambda leaf, key: se.SnAp(n=2),
    "RTRL": lambda leaf, key: se.RTRL(),
    "UORO": lambda leaf, key: se.UORO(key),
    "BPTT": lambda leaf, key: se.BPTT(),
    "D-RTRL, through ops": lambda leaf, key: se.D_RTRL(through_ops=True),
    "Bridged": lambda leaf, key: se.Bridged(2),
    "Bridged, SnAp": lambda leaf, key: se.Bridged(2, se.SnAp(n=2)),
    "SnAp by parameter": lambda leaf, key: se.SnAp(n=2, per="parameter"),
}
NETWORKS = {"graph GRU": "state", "ALIF": "z", "worm of ALIF": "z", "convolution GRU": "state"}


# --- gradients -------------------------------------------------------------------------------------------------------


def gradients(device, rule, network, batch, dtype):
    """Losses and gradients, one row for each call: calls of one step, and calls of a window and a bit."""
    # Random numbers are others in another type, and round otherwise on another device.
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(False):
        model, shape = next((m, s) for name, m, _, s in units.networks(40) if name == network)
    with jax.default_device(device):
        rng, front = np.random.default_rng(1), (batch,) if batch else ()
        model = jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a), dtype if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype), model
        )
        start = jax.tree.map(lambda a: a.astype(dtype), model.init_state(*front))
        out = jax.eval_shape(model, start, jnp.zeros((*front, *shape), dtype))[1]
        xs, ys = (
            jnp.asarray(rng.standard_normal((STEPS, *front, *s[-len(shape) :]), np.float32), dtype)
            for s in (shape, out.shape)
        )
        learner = RULES[rule](NETWORKS[network], jax.random.key(0))
        found = []
        for call, chunk in ((1, 1), (CALL, CHUNK)):
            carry, rows = learner.init(model, start, xs[0]), []
            for t in range(0, STEPS, call):
                *row, carry = se.online_grad(
                    learner, units.loss_fn, model, carry, xs[t : t + call], ys[t : t + call], chunk
                )
                rows.append([np.asarray(leaf) for leaf in jax.tree.leaves(row)])
            found.append([np.stack(leaf) for leaf in zip(*rows, strict=True)])
    return found


def difference(got, true):
    """The worst of any leaf in any call, relative to the leaf then, or to a millionth of its largest."""
    worst = 0.0
    for a, b in zip(got, true, strict=True):
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        size = np.abs(b).max(1)
        scale = np.maximum(np.maximum(size, 1e-6 * size.max()), 1e-30)
        worst = np.fmax(worst, np.max(np.abs(a - b).max(1) / scale, initial=0.0)) if np.isfinite(a).all() else np.inf
    return float(worst)


def check(task):
    """Of one rule on one network, by type: how far the devices are from one another, by steps and in windows.

    What a rule draws is another number in another type.
    """
    rule, network, batch = task
    found, begin = {}, time.perf_counter()
    devices = jax.devices()[0], jax.devices("cpu")[0]
    warnings.simplefilter("ignore")
    for dtype in LIMIT:
        with jax.enable_x64(dtype == "float64"):
            both = [gradients(device, rule, network, batch, dtype) for device in devices]
            found[dtype] = list(map(difference, *both))
    return task, found | {"seconds": time.perf_counter() - begin}


def checked(rules, workers):
    """All rules on all networks, each in one of several processes."""
    tasks = list(itertools.product(rules, NETWORKS, (0, BATCH)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(check, tasks)


# --- times -----------------------------------------------------------------------------------------------------------


def copy_bandwidth(count):
    """Bytes read and written per second within the memory of the device."""
    (t,) = bench.seconds(bench.looped(lambda x: x + 1, jnp.zeros(count)))
    return 8 * count * bench.LOOPS / t


def kernels(case):
    """Milliseconds of each kernel, of BCOO where it has the same, and the share of a copy's bandwidth."""
    data, rng = networks.make(case), np.random.default_rng(0)
    conn = se.Connectivity.from_edges(data.pre, data.post, (case.units, case.units))
    weight, synapses, bandwidth, found = jnp.asarray(data.weight), conn.num_synapses, copy_bandwidth(2**28), {}
    bcoo = BCOO((weight, jnp.stack([conn.post, conn.pre], axis=1)), shape=(case.units,) * 2, indices_sorted=True)
    moved = BCOO((weight, jnp.stack([conn.pre, conn.post], axis=1)), shape=(case.units,) * 2)

    def put(name, num_bytes, *runs, per=1):
        times = [t / bench.LOOPS for t in bench.seconds(*runs)]
        found[name] = {"ms": times[0] * 1e3 / per, "of_bandwidth": num_bytes * synapses / times[0] / bandwidth}
        found[name] |= {"bcoo": times[1] / times[0]} if len(times) > 1 else {}

    def normal(*shape):
        return jnp.asarray(0.01 * rng.standard_normal(shape), jnp.float32)

    for columns in (1, 32):
        x = normal(columns, case.units) if columns > 1 else normal(case.units)
        for name, ours, matrix in (("product", _kernels.spmv, bcoo), ("transposed product", _kernels.spmv_t, moved)):
            own = bench.looped(lambda y, c, w, x, f=ours: f(c, w, x + 1e-20 * y), x * 0, conn, weight, x)
            other = bench.looped(lambda y, m, x: m @ (x + 1e-20 * y), x.T * 0, matrix, x.T)
            np.testing.assert_allclose(ours(conn, weight, x).T, matrix @ x.T, rtol=1e-3, atol=1e-4)
            put(f"{name}, {columns} columns", 8 + (4 * columns if columns > 1 else 0), own, other)
    args = conn, normal(16, case.units), normal(16, case.units)
    put("sampled product, 16 steps", 12, bench.looped(lambda w, *a: w * 0.5 + _kernels.sampled_sum(*a), weight, *args))

    def both(carry, conn, *parts):
        trace, gradient = _kernels.trace.advance(conn, *parts, carry[0])
        return trace, carry[1] + gradient

    for steps, batch in ((16, 1), (1, 1), (16, 32)):
        shapes = [(1, 1), (steps, 1), (1,), (steps,), (steps,)]
        parts = [normal(*shape, batch, case.units) for shape in shapes]
        start = jnp.zeros((1, batch, synapses)), jnp.zeros(synapses)
        put(f"window, {steps} steps, batch {batch}", 20 + 8 * batch, bench.looped(both, start, conn, *parts), per=steps)
    return {"copy_gb_s": bandwidth / 1e9} | found


def main():
    args = bench.arguments(__doc__)
    device, cores = jax.devices()[0], os.cpu_count()
    if device.platform == "cpu" and not args.quick:
        raise SystemExit(
            "No GPU: jax sees only a CPU. Is the wheel jax[cuda12] or jax[cuda13] there, and `nvidia-smi`?"
        )
    found = {"device": device.device_kind, "jax": jax.__version__, "kernels_of_the_cpu": native.KERNELS}
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    rules = ["D-RTRL", "RTRL"] if args.quick else RULES
    found["gradients"], wrong = {}, 0
    for task, row in checked(rules, 1 if args.quick else max(cores - 2, 1)):
        name = "{}, {}, batch {}".format(*task)
        is_wrong = not all(max(row[t]) < most for t, most in LIMIT.items())
        found["gradients"][name], wrong = row, wrong + is_wrong
        said = "   ".join("{} {:.1e} {:.1e}".format(dtype, *row[dtype]) for dtype in LIMIT)
        print(f"{name:<40}{said}{'   WRONG' * is_wrong}", flush=True)
    for dtype in LIMIT:
        found[f"worst_{dtype}"] = worst = max(max(row[dtype]) for row in found["gradients"].values())
        print(f"{dtype}: worst difference {worst:.1e}, of {len(found['gradients'])} programs", flush=True)
    part = 20 if args.quick else 1
    cases = {"1 M": networks.Case(10_000 // part, 100 // part, 1, "", steps=32)}
    cases |= {} if args.quick else {"15 M": networks.Case(139_000, 108, 1, "", steps=32)}
    for name, case in cases.items():
        found[f"kernels {name}"] = rows = kernels(case)
        print(f"{name} synapses, copy {rows['copy_gb_s']:.0f} GB/s")
        for kernel, row in list(rows.items())[1:]:
            beside = f"   BCOO {row['bcoo']:5.1f} x" if "bcoo" in row else ""
            print(f"  {kernel:<32}{row['ms']:9.3f} ms   {row['of_bandwidth']:.2f} of the copy{beside}", flush=True)
    runs = [
        (f"{name}, batch {batch}", functools.partial(bench.steps, case._replace(batch=batch)))
        for name, case in cases.items()
        for batch in (1, 32)
    ]
    for name, model, batch, shape in units.networks(part):
        runs.append((f"{name}, batch {batch}", functools.partial(units.times, model, batch, shape, 64, 5)))
    # The last of them is the worm's.
    influences = {"SnAp": se.SnAp(n=2), "RTRL": se.RTRL()}
    runs += [
        (f"{name}, influences, batch {b}", functools.partial(units.times, model, b, shape, 16, 2, influences))
        for b in ((1,) if args.quick else (1, batch))
    ]
    found["steps"] = {}
    for name, run in runs:
        found["steps"][name] = row = run()
        print(f"{name:<36}" + "   ".join(f"{rule} {ms:.3f}" for rule, ms in row.items()) + " ms a step", flush=True)
        (args.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(f"{wrong} of the gradients are not those of the CPU" if wrong else 0)


if __name__ == "__main__":
    main()
