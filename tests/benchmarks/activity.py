"""Milliseconds a step of adaptive neurons by the share of them that fires, in turns: forward and D-RTRL."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from bench import arguments, seconds

import sparse_etrace as se

FALL = 0.99  # of the adaptation in a step


def network(graph, share, rng):
    """Each neuron fires once in `1 / share` steps: by then its adaptation has fallen to where the drive fires it."""
    units = graph.connectivity.num_post
    low = (1 - FALL) * FALL ** (1 / share) / (1 - FALL ** (1 / share))
    value = {"weight": graph.weight, "bias": se.Fixed(jnp.full(units, 20.0))}
    rec = se.ETraceParam(value, se.SpMatMulOp(graph))
    beta = 19 / low if share < 1 else 0.0
    cell = se.cells.ALIF(units, None, rec, decay=0.5, adaptation_decay=FALL, adaptation=beta, reset=0.0)
    b = (low + 1 - FALL) * FALL ** rng.uniform(0, 1 / share, units)
    return cell, cell.init_state()._replace(v=jnp.full(units, 20.0), b=jnp.asarray(b, jnp.float32))


def main():
    args = arguments(__doc__)
    units, degree, steps, repeats = (500, 20, 16, 2) if args.quick else (10_000, 100, 64, 25)
    rng = np.random.default_rng(0)
    ends = rng.integers(0, units, (2, units * degree))
    graph = se.from_edges(*ends, np.full(units * degree, 1e-6), shape=(units, units))
    learner, shares = se.D_RTRL(), (1.0, 0.05, 0.01)

    @jax.jit
    def forward(model, start):
        return jax.lax.scan(lambda state, _: model(state, None), start, None, length=steps)[1].mean(1)

    runs, fired = [], []
    for share in shares:
        model, start = network(graph, share, rng)
        fired.append(float(forward(model, start)[1:].mean()))
        run = functools.partial(se.online_grad, learner, lambda z, y: jnp.mean((z - y) ** 2), model)
        run = functools.partial(run, learner.init(model, start, None), None, jnp.zeros(steps))
        runs += [functools.partial(forward, model, start), run]
    found = np.array(seconds(*runs, repeats=repeats)).reshape(-1, 2) / steps * 1e3
    for z, ms in zip(fired, found, strict=True):
        less = found[0] / ms
        print(f"{z:6.1%} fire: forward {ms[0]:.3f} ms (1 / {less[0]:.1f}), D-RTRL {ms[1]:.3f} ms (1 / {less[1]:.1f})")
    rows = {str(share): dict(zip(("forward", "D-RTRL"), ms.tolist())) for share, ms in zip(shares, found)}
    (args.out / "activity.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
