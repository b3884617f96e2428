"""Processor time of a step of training, with an update every step and without, in steps forward.

The networks of `bench.py`, all sides in turns in one process. `fit` updates after each step of a sequence;
`donate=True` hands the carry over from call to call.
"""

import functools
import json
import time

import networks
import optax
from bench import arguments, forward, seconds

import sparse_etrace as se

OPTIMIZERS = {"SGD": optax.sgd(1e-4), "Adam": optax.adam(1e-4)}


def handed_over(grad, carry, data):
    """A call that takes what the one before it left."""
    kept = [carry]

    def run():
        losses, grads, kept[0] = grad(kept[0], data.xs, data.ys, donate=True)
        return losses, grads

    return run


def sides(case):
    """What takes turns, by name."""
    data = networks.make(case)
    model = networks.net(case, data)
    yield "forward", lambda: forward(model, data.start, data.xs, data.ys)
    for rule in ("D-RTRL", "ES-D-RTRL"):
        learner = networks.learner(case._replace(rule=rule))
        grad = functools.partial(se.online_grad, learner, networks.loss_fn, model)
        carries = [learner.init(model, 1 * data.start, data.xs[0]) for _ in range(2)]
        yield rule, functools.partial(grad, carries[0], data.xs, data.ys)
        yield f"{rule}, donate=True", handed_over(grad, carries[1], data)
    if case.batch == 1:
        for name, optimizer in OPTIMIZERS.items():
            given = se.D_RTRL(), networks.loss_fn, optimizer, model, [(data.xs, data.ys)]
            yield f"fit, {name}", functools.partial(se.fit, *given, state=data.start, update="step", progress=False)


def main():
    args = arguments(__doc__)
    units, degree, repeats = (1_000, 20, 1) if args.quick else (20_000, 100, 7)
    found = {}
    for batch, length in ((1, 64), (16, 32)):
        runs = dict(sides(networks.Case(units, degree, batch, "D-RTRL", steps=length)))
        times = seconds(*runs.values(), repeats=repeats, clock=time.process_time)
        found[batch] = {name: t / length * 1e3 for name, t in zip(runs, times, strict=True)}
        for name, ms in found[batch].items():
            print(f"batch {batch:<4} {name:<22} {ms:7.2f} ms a step   {ms / found[batch]['forward']:5.2f} x forward")
    (args.out / "updates.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
