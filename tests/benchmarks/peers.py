"""This library against its predecessor braintrace (with brainevent and numba): one training step, time and memory.

Both sides train the network of `networks.py` with the same weights, inputs and targets, all in float32. A training step
is the forward step, the traces and the gradient of the recurrent weights, summed over the steps of one compiled call;
its time is that of the call divided by its steps. State and traces go on from call to call.

First, gradients and losses of two calls in a row are compared, on small networks and on each network that is timed.
Then each op and batching of braintrace runs in a process of its own, and the fastest is its side of the comparison:
`CSC` (sorted by target, as here) with numba on all cores or in plain XLA, and, for ES-D-RTRL, `FixedNumPerPost`, which
its D-RTRL cannot use; batches as an axis of the model or through its vmap. Its `CSR` is left out: it folds the index
arrays for minutes while compiling and is not faster then. The two sides take turns in one process; the ratio is taken
within each turn. This library runs twice, as it is called and with `donate=True`. Peak memory is that of a process with
only one side, the set-up of the network included.

Needs `braintrace brainevent numba` beside this package, and a machine that does nothing else.
"""

import argparse
import json
import os
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import brainevent
import brainstate
import braintrace
import jax
import jax.numpy as jnp
import networks
import numpy as np
from peak import in_process, peak_mb

import sparse_etrace as se

CASES = [
    networks.Case(20_000, 100, 1, "D-RTRL"),
    networks.Case(20_000, 100, 1, "ES-D-RTRL"),
    networks.Case(20_000, 100, 16, "D-RTRL"),
    networks.Case(20_000, 100, 16, "ES-D-RTRL"),
    networks.Case(139_000, 108, 1, "D-RTRL", silent=True),
]
SMALL = [case._replace(units=200, in_degree=10) for case in CASES]
QUICK = [case._replace(units=case.units // 10, in_degree=case.in_degree // 10) for case in CASES]
TOLERANCE = 1e-5


class PeerNet(brainstate.nn.Module):
    """The network as a model of braintrace."""

    def __init__(self, case, data, layout):
        super().__init__()
        indices, weight, shape = data.pre, data.weight, (case.units, case.units)
        if layout == "FixedNumPerPost":
            grid = (case.units, case.in_degree)
            self.matrix = brainevent.FixedNumPerPost(weight.reshape(grid), indices.reshape(grid), shape=shape)
        else:
            ptr = np.arange(case.units + 1, dtype=np.int32) * np.int32(case.in_degree)
            self.matrix = brainevent.CSC(jnp.asarray(weight), jnp.asarray(indices), jnp.asarray(ptr), shape=shape)
        self.weight = brainstate.ParamState(jnp.asarray(self.matrix.data))
        self.case, self.start = case, data.start

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros(self.start.shape[-1:] if batch_size is None else self.start.shape))

    def update(self, x):
        h = self.h.value
        current = braintrace.sparse_matmul(networks.read(self.case, h), self.weight.value, sparse_mat=self.matrix)
        self.h.value = networks.advance(h, current, x)
        return self.h.value


def candidates(case):
    """`(layout, backend, batching)` of the ops that braintrace can train this network with."""
    ops = [("CSC", "numba"), ("CSC", "jax_raw")]
    if case.rule == "ES-D-RTRL":
        ops = [("CSC", "numba"), ("FixedNumPerPost", "jax_raw")]
    return [(*op, way) for op in ops for way in (["none"] if case.batch == 1 else ["axis", "vmap"])]


def start_peer(case, data, layout, backend, batching):
    """Return a function that runs all steps once more and returns `(gradient, losses)`."""
    brainevent.config.set_numba_parallel(True, num_threads=os.cpu_count())
    brainevent.config.set_backend("cpu", backend)
    options = {} if case.rule == "D-RTRL" else {"decay_or_rank": networks.FACTOR_DECAY}
    if case.batch > 1:
        options |= {"batch_size": case.batch, "vmap": batching == "vmap"}
    model = PeerNet(case, data, layout)
    learner = braintrace.compile(model, {"D-RTRL": "d_rtrl", "ES-D-RTRL": "pp_prop"}[case.rule], data.xs[0], **options)
    model.h.value = data.start

    @brainstate.transform.jit
    def run(xs, ys):
        grads, losses = learner.etrace_grad(
            xs, ys, step_fn=lambda x, y: networks.loss_fn(learner(x), y), reduction="sum", return_value=True
        )
        return next(iter(grads.values())).reshape(-1), losses

    return lambda: jax.block_until_ready(run(data.xs, data.ys))


def start_ours(case, data, donate=False):
    """The same for this library."""
    learner, model = networks.learner(case), networks.net(case, data)
    carry = learner.init(model, 1 * data.start, data.xs[0])

    def run():
        nonlocal carry
        losses, grads, carry = se.online_grad(learner, networks.loss_fn, model, carry, data.xs, data.ys, donate=donate)
        return jax.block_until_ready((grads.rec.value["weight"], losses, carry))[:2]

    return run


def timed(run, case):
    """Milliseconds a step in the second of two calls: the first takes caches and memory over from another side."""
    run()
    begin = time.perf_counter()
    run()
    return (time.perf_counter() - begin) / case.steps * 1e3


def alone(case, peer):
    """Time and peak memory of one side by itself; `peer` is None for this library."""
    data = networks.make(case)
    run = start_peer(case, data, *peer) if peer else start_ours(case, data)
    setup = peak_mb()
    begin = time.perf_counter()
    run()
    first = time.perf_counter() - begin
    ms = statistics.median(timed(run, case) for _ in range(3))
    return {"ms": ms, "first_call_s": first, "peak_mb": peak_mb(), "setup_mb": setup}


def difference(ours, theirs):
    """Relative differences of the gradients and of the losses."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=True)]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in pairs]


def together(case, peer, repeats):
    """Both sides in turns, after a comparison of their gradients in two calls that follow each other."""
    data = networks.make(case)
    sides = {"ours": start_ours(case, data), "donated": start_ours(case, data, donate=True)}
    sides["theirs"] = start_peer(case, data, *peer)
    calls = [{name: run() for name, run in sides.items()} for _ in range(2)]
    found = [difference(call[name], call["theirs"]) for call in calls for name in ("ours", "donated")]
    times = {name: [] for name in sides}
    for turn in range(repeats):
        for side in list(sides) if turn % 2 else reversed(sides):
            times[side].append(timed(sides[side], case))
    row = {
        "difference_gradient": max(gradient for gradient, _ in found),
        "difference_losses": max(losses for _, losses in found),
        "active": networks.activity(case, data),
        "times_ms": times,
    }
    if repeats:
        row |= {f"{name}_ms": statistics.median(of) for name, of in times.items()}
        for name, key in (("ours", "ratio"), ("donated", "ratio_donated")):
            ratios = [b / a for a, b in zip(times[name], times["theirs"], strict=True)]
            row |= {key: statistics.median(ratios), f"{key}_range": [min(ratios), max(ratios)]}
    return row


def compare(case, repeats):
    ours = in_process(alone, case, None)
    peers = {peer: in_process(alone, case, peer) for peer in candidates(case)}
    best = min(peers, key=lambda peer: peers[peer]["ms"])
    row = in_process(together, case, best, repeats)
    row |= {"ours_alone": ours, "theirs_alone": peers[best], "theirs_op": " ".join(best)}
    row["tried"] = {" ".join(peer): result["ms"] for peer, result in peers.items()}
    for name, key in (("ours", "ratio"), ("donated", "ratio_donated")):
        low, high = row[f"{key}_range"]
        print(
            f"{case.name + ', donated' * (name == 'donated'):<70} {row[f'{name}_ms']:8.2f} {row['theirs_ms']:10.2f}"
            f" {row[key]:6.2f} ({low:.2f} to {high:.2f}) {ours['peak_mb']:7.0f} {peers[best]['peak_mb']:7.0f}"
            f"  {row['difference_gradient']:.0e}  {row['theirs_op']}",
            flush=True,
        )
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/peers.json"), help="where the JSON file goes")
    parser.add_argument("--quick", action="store_true", help="small networks: does it run, not how fast")
    parser.add_argument("--repeats", type=int, default=9, help="turns of the two sides")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    args = parser.parse_args()

    packages = ("braintrace", "brainevent", "numba", "jax")
    result = {
        "versions": {name: version(name) for name in packages},
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "small": {},
        "cases": {},
    }
    for case in SMALL:
        if args.only in case.name:
            for peer in candidates(case):
                name = f"{case.name}, {' '.join(peer)}"
                found = result["small"][name] = in_process(together, case, peer, 0)
                print(f"gradients differ by {found['difference_gradient']:.0e}: {name}", flush=True)
    print(f"\n{'milliseconds a step':<70} {'ours':>8} {'braintrace':>10} {'ratio':>6}{'peak MB':>31}  diff   op")
    for case in QUICK if args.quick else CASES:
        if args.only in case.name:
            result["cases"][case.name] = {**case._asdict(), **compare(case, args.repeats)}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")

    print(f"\nwritten to {args.out}")
    worst = max(row["difference_gradient"] for part in ("small", "cases") for row in result[part].values())
    if not worst < TOLERANCE:
        raise SystemExit(f"The two sides do not compute the same: gradients differ by {worst:.1e}.")


if __name__ == "__main__":
    main()
