"""What each of 1, 2, 4, 8 devices holds, exchanges and computes, counted from compiled programs: docs/scale.md.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/benchmarks/scale.py

Strong scaling parts one network, weak scaling one that grows with the devices. Operations are those of XLA's kernels,
by `cost_analysis` of the program of a device, which counts the body of a loop once: read them as ratios.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp

import sparse_etrace as se
from sparse_etrace._report.exchange import exchanges

DEVICES = (1, 2, 4, 8)
STEPS, IN_DEGREE, INPUTS = 16, 100, 2


def loss_fn(out, y):
    return jnp.mean((out - y) ** 2)


def counted(learner, units, devices):
    """Bytes on a device, exchanged in a step, accessed in a window, and operations in one."""
    mesh = jax.make_mesh((devices,), ("units",), devices=jax.devices()[:devices])
    graph = se.generate.fixed_in_degree(units, min(IN_DEGREE, units), jax.random.key(0))
    cell = se.cells.LeakyRate.of(graph, inputs=INPUTS, key=jax.random.key(1))
    model, xs = se.shard(cell, mesh), jnp.ones((STEPS, INPUTS))
    carry = learner.init(model, cell.init_state(), xs[0])
    run = eqx.filter_jit(lambda *given: se.online_grad(learner, loss_fn, *given, chunk=STEPS))
    with se.kernels("xla"):
        made = run.lower(model, carry, xs, jnp.zeros((STEPS, units))).compile().compiled
    memory, cost = made.memory_analysis(), made.cost_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    sent = sum(one.bytes * one.times for one in exchanges(made.as_text())) / STEPS
    return held, sent, cost["bytes accessed"], cost["flops"]


def main():
    units = 800 if "--quick" in sys.argv else 20_000
    learners = {"D-RTRL": se.D_RTRL(), "ES-D-RTRL": se.ES_D_RTRL(0.9)}
    print("| devices | units | learner | MB on each | bytes exchanged a step | MB accessed | operations |")
    for kind in ("strong", "weak"):
        for name, learner in learners.items():
            for devices in DEVICES:
                size = units if kind == "strong" else units * devices // max(DEVICES)
                held, sent, accessed, flops = counted(learner, size, devices)
                row = f"{held / 1e6:.1f} | {sent:,.0f} | {accessed / 1e6:.0f} | {flops / 1e6:.1f} M"
                print(f"| {kind} {devices} | {size:,} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
