"""Milliseconds a step with delays of 1 to 20 steps and without, by the share of units that send: forward and D-RTRL."""

import functools
import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from bench import arguments, seconds

import sparse_etrace as se

LONGEST = 20


class Prescribed(eqx.Module):
    """Units of two variables, of which those fire that the input says."""

    rec: Any

    def __call__(self, state, x):
        v, b, sent = state
        u = 0.9 * v + 0.1 * self.rec(sent)
        z = x + (jnp.tanh(u) - jax.lax.stop_gradient(jnp.tanh(u)))  # exactly 0 or 1
        v, b = u - 0.1 * z, 0.98 * b + 0.02 * z
        return (v, b, sent.push(z) if isinstance(sent, se.Ring) else z), v + b


def main():
    args = arguments(__doc__)
    units, degree, steps, repeats = (500, 20, 16, 2) if args.quick else (10_000, 100, 64, 15)
    rng, count, learner = np.random.default_rng(0), units * degree, se.D_RTRL()
    ends, weight, delay = (
        rng.integers(units, size=(2, count)),
        rng.normal(size=count),
        rng.integers(LONGEST, size=count),
    )
    graph = se.from_edges(*ends, 0.01 * weight, shape=(units, units), edge_attrs={"delay": delay + 1})
    silence, models = jnp.zeros(units), []
    for op in (se.SpMatMulOp(graph, delay=False), se.SpMatMulOp(graph)):
        sent = op.ring() if op.delays is not None else silence
        models.append((Prescribed(op.param(init=graph)), (silence, silence, sent)))
    forward = jax.jit(lambda model, state, xs: jax.lax.scan(lambda state, x: model(state, x), state, xs)[0])
    rows = {}
    for share in (0.01, 0.05, 1.0):
        xs, runs = jnp.asarray(rng.random((steps, units)) < share, jnp.float32), []
        for model, state in models:
            train = functools.partial(se.online_grad, learner, lambda out, y: jnp.sum(out**2), model)
            runs.append(functools.partial(forward, model, state, xs))
            runs.append(functools.partial(train, learner.init(model, state, silence), xs, xs))
        found = np.array(seconds(*runs, repeats=repeats)).reshape(2, 2) / steps * 1e3
        rows[str(share)] = dict(zip(("forward", "D-RTRL"), found.T.tolist()))
        for name, (without, with_delays) in zip(rows[str(share)], found.T, strict=True):
            ratio = with_delays / without
            print(f"{share:4.0%} {name}: {without:.3f} ms without delays, {with_delays:.3f} ms with ({ratio:.2f})")
    (args.out / "delays.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
