"""Seconds of the processor and of the clock that the first `online_grad` of a process takes beyond the second.

That is tracing, compiling and loading a program; `init`, which reads the model, is counted by itself. Each time is of
a process of its own, the networks in turns, and medians are printed.
"""

import json
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from bench import arguments
from peak import in_process

import sparse_etrace as se

STEPS, INPUTS = 32, 40


class Two(eqx.Module):
    """A cell that hears another."""

    layers: tuple[se.cells.GRU, se.cells.GRU]

    def init_state(self):
        return tuple(layer.init_state() for layer in self.layers)

    def __call__(self, state, x):
        first, heard = self.layers[0](state[0], x)
        second, out = self.layers[1](state[1], heard)
        return (first, second), out


def two_gru(key):
    return Two(tuple(se.cells.GRU.of(200, inputs=inputs, key=key) for inputs in (INPUTS, 200)))


def worm(key):
    return se.cells.LeakyRate.of(se.datasets.worm(), inputs=INPUTS, key=key)


def alif(key):
    return se.cells.ALIF.of(200, inputs=INPUTS, key=key)


CASES = {
    "two GRU layers of 200 units, D-RTRL": (two_gru, se.D_RTRL()),
    "worm, D-RTRL": (worm, se.D_RTRL()),
    "worm, SnAp-2": (worm, se.SnAp(2)),
    "200 ALIF units, D-RTRL": (alif, se.D_RTRL()),
}


def loss_fn(out, y):
    return jnp.mean((out - y) ** 2)


def measured(name):
    """Seconds of the processor and of the clock: of `init`, and of a first `online_grad` beyond the second."""
    make, learner = CASES[name]
    model, xs = make(jax.random.key(0)), jnp.ones((STEPS, INPUTS))
    state = model.init_state()
    ys = jnp.zeros((STEPS, *jax.eval_shape(model, state, xs[0])[1].shape))
    stamps = []
    stamp = lambda result: (jax.block_until_ready(result), stamps.append((time.process_time(), time.perf_counter())))
    stamp((model, xs, ys))
    carry = learner.init(model, state, xs[0])
    stamp(carry)
    for _ in range(2):
        stamp(se.online_grad(learner, loss_fn, model, carry, xs, ys))
    init, first, second = np.diff(stamps, axis=0)
    return init.tolist(), (first - second).tolist()


def main():
    args = arguments(__doc__)
    repeats = 1 if args.quick else 5
    times = [[in_process(measured, name) for name in CASES] for _ in range(repeats)]
    medians = np.median(times, axis=0).tolist()
    found = {name: {"init": a, "online_grad": b} for name, (a, b) in zip(CASES, medians, strict=True)}
    for name, row in found.items():
        said = "   ".join(f"{what} {cpu:.2f} s ({clock:.2f} by the clock)" for what, (cpu, clock) in row.items())
        print(f"{name:<36} {said}")
    (args.out / "first_call.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
