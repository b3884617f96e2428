"""A large graph with trained edge weights and a trained matrix on features, beside plain JAX.

`h' = 0.9 h + 0.1 tanh((A h) W + x)` on nodes x features, A with a weight for each edge, loss `0.5 sum (h' - y)^2`.
Times are of one process, rows in turns; memory is that of a process for each row, beyond its model and data.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from peak import peak_mb
from units import arguments, loss_fn, seconds

import sparse_etrace as se

STEPS, LEAK = 16, 0.9
FULL, QUICK = (100_000, 10, 32), (500, 10, 8)  # nodes, edges onto each, features
RULES = {"D-RTRL": se.D_RTRL(), "ES-D-RTRL": se.ES_D_RTRL(decay=0.9), "Bridged(16)": se.Bridged(16)}
ROWS = ("forward", "forward, plain", "BPTT-16, plain", *RULES)


class Net(eqx.Module):
    rec: se.ETraceParam

    def __call__(self, h, x):
        h = LEAK * h + (1 - LEAK) * jnp.tanh(self.rec(h) + x)
        return h, h


def make(nodes, degree, features):
    rng = np.random.default_rng(0)
    pre = np.sort(rng.integers(0, nodes, (nodes, degree)), axis=1).ravel()
    post = np.repeat(np.arange(nodes), degree)
    weight = rng.standard_normal(pre.size, np.float32) / np.float32(degree**0.5)
    graph = se.from_edges(pre, post, weight, shape=(nodes, nodes))
    rec = se.GraphConvOp(graph, "trained").param(jax.random.key(0), features, features)
    data = (jnp.asarray(rng.standard_normal((STEPS, nodes, features), np.float32)) for _ in range(2))
    return Net(rec), jnp.zeros((nodes, features)), *data


def plain(model, start, xs, ys):
    """The same in `segment_sum`: the loss, and the last state."""
    conn, value = model.rec.op.connectivity, model.rec.value

    def step(h, now):
        x, y = now
        heard = jax.ops.segment_sum(value["coef"][:, None] * h[conn.pre], conn.post, len(h), indices_are_sorted=True)
        h = LEAK * h + (1 - LEAK) * jnp.tanh(heard @ value["weight"][0] + x)
        return h, loss_fn(h, y)

    h, losses = jax.lax.scan(step, start, (xs, ys))
    return jnp.sum(losses), h


def run_of(name, model, start, xs, ys):
    """Something to call: `STEPS` steps."""
    if name == "forward, plain":
        return functools.partial(eqx.filter_jit(plain), model, start, xs, ys)
    if name == "BPTT-16, plain":
        return functools.partial(eqx.filter_jit(eqx.filter_value_and_grad(plain, has_aux=True)), model, start, xs, ys)
    if name == "forward":
        step = eqx.filter_jit(lambda model, h, xs: jax.lax.scan(lambda h, x: model(h, x), h, xs))
        return functools.partial(step, model, start, xs)
    learner = RULES[name]
    carry = [learner.init(model, jnp.copy(start), xs[0])]

    def run():
        losses, grads, carry[0] = se.online_grad(learner, loss_fn, model, carry[0], xs, ys, donate=True)
        return losses, grads, carry[0]

    return run


def memory(name, sizes):
    """Bytes that a call holds at most, its carry included."""
    data = jax.block_until_ready(make(*sizes))
    before = peak_mb()
    jax.block_until_ready(run_of(name, *data)())
    return round((peak_mb() - before) * 2**20)


def main():
    if sys.argv[1:2] == ["--memory"]:
        print(memory(*json.loads(sys.argv[2])))
        return
    args = arguments(__doc__)
    sizes = QUICK if args.quick else FULL
    data = make(*sizes)
    times = seconds(*(run_of(name, *data) for name in ROWS), repeats=1 if args.quick else 3)
    found = {}
    for name, time in zip(ROWS, times, strict=True):
        command = [sys.executable, __file__, "--memory", json.dumps([name, sizes])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = {"ms": time / STEPS * 1e3, "bytes": int(done.stdout)}
        by = found[name]["ms"] / found["forward"]["ms"]
        size = found[name]["bytes"] / 1e9
        print(f"{name:<16} {found[name]['ms']:8.1f} ms a step   {by:5.2f} forward steps   {size:6.2f} GB", flush=True)
    (Path(args.out) / "graph.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
