"""What each of 1, 2, 4, 8 devices holds, exchanges and computes, counted from compiled programs: docs/scale.md.

First what `memory_plan` says of two windows, with the kernels of this machine, then one window by XLA's alone. Strong
scaling parts one network, weak scaling one that grows with the devices. Operations are those of XLA's kernels,
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


def network(units, in_degree=IN_DEGREE):
    graph = se.generate.fixed_in_degree(units, in_degree, jax.random.key(0))
    return se.cells.LeakyRate.of(graph, inputs=INPUTS, key=jax.random.key(1))


def planned(learner, cell, chunk, devices):
    """Bytes on a device in two windows of `chunk` steps."""
    given = learner, cell, cell.init_state(), jnp.ones(INPUTS)
    return se.memory_plan(*given, steps=2 * chunk, chunk=chunk, mesh=devices).total


def counted(learner, units, devices):
    """Bytes on a device, exchanged in a step, accessed in a window, and operations in one."""
    mesh = jax.make_mesh((devices,), ("units",), devices=jax.devices()[:devices])
    cell = network(units)
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
    quick = "--quick" in sys.argv
    units = 1_600 if quick else 20_000
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    learners = {"D-RTRL": se.D_RTRL(), "ES-D-RTRL": se.ES_D_RTRL(0.9)}
    print("| synapses onto each | steps in a window | devices | learner | MB planned on each | of one |", flush=True)
    plans = ((IN_DEGREE, STEPS), (IN_DEGREE, STEPS // 4), (4 * IN_DEGREE, STEPS))
    for in_degree, chunk in plans[:1] if quick else plans:
        cell = network(units, in_degree)
        for name, learner in learners.items():
            held = [planned(learner, cell, chunk, devices) for devices in DEVICES]
            for devices, mb in zip(DEVICES, held, strict=True):
                print(f"| {in_degree} | {chunk} | {devices} | {name} | {mb / 1e6:.1f} | {mb / held[0]:.3f} |")
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
