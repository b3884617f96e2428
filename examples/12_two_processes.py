"""Two processes: a network of which neither has the whole.

You learn how `read_sharded` gives each process its own rows of a file, how the rest of a model is parted with `shard`,
and that `fit` is called as for one device. Start it twice, for example in two terminals, or once without a number:

    python examples/12_two_processes.py 0
    python examples/12_two_processes.py 1

A network of 400 leaky units, 20 synapses onto each, learns to draw a wave. On several machines, give the address of the
first in the place of 127.0.0.1, and a folder that all of them see.
"""

import os
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

import sparse_etrace as se

if sys.argv[1:2] in (["0"], ["1"]):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize("127.0.0.1:12355", num_processes=2, process_id=int(sys.argv[1]))
UNITS, STEPS, BATCH = 400, 40, 2
UPDATES = 10 if "--short" in sys.argv else 100
mesh = jax.make_mesh((len(jax.devices()),), ("units",))
is_first = jax.process_index() == 0


class Net(eqx.Module):
    """Leaky units, and a readout of all of them."""

    cell: se.cells.LeakyRate
    readout: se.ETraceParam

    def __call__(self, state, x):
        state, activity = self.cell(state, x)
        return state, self.readout(activity)


def loss_fn(out, y):
    return jnp.mean((out - y) ** 2)


# A file that is there already would be read as it is; here the first process writes one.
number = int(multihost_utils.broadcast_one_to_all(np.array(os.getpid())))
path = Path(tempfile.gettempdir()) / f"two_processes_{number}.parquet"
if is_first:
    graph = se.generate.fixed_in_degree(UNITS, 20, jax.random.key(0))
    se.write_graph(path, graph.with_weight(jax.random.normal(jax.random.key(1), graph.weight.shape) / 20**0.5))
multihost_utils.sync_global_devices("written")

# All units have as many synapses, so that they may stay in the order of the file.
rec, labels = se.read_sharded(path, mesh, deal=False)
multihost_utils.sync_global_devices("read")
if is_first:
    path.unlink()
here = sum(len(shard.data) for shard in rec.value["weight"].addressable_shards)
print(f"process {jax.process_index()} of {jax.process_count()}: {here:,} of {rec.value['weight'].size:,} synapses")

keys = jax.random.split(jax.random.key(2), 2)
cell = se.cells.LeakyRate(len(labels), se.MatMulOp().param(keys[0], 1, UNITS), rec)
model = se.shard(Net(cell, se.ETraceParam({"weight": jnp.zeros((UNITS, 1))}, se.MatMulOp())), mesh)
speed = jnp.array([0.2, 0.4])[:, None]
xs = jnp.broadcast_to(speed, (STEPS, BATCH, 1))
ys = jnp.sin(jnp.arange(STEPS)[:, None, None] * speed)
result = se.fit(
    se.D_RTRL(),
    loss_fn,
    optax.adam(3e-3),
    model,
    [(xs, ys)] * UPDATES,
    state=cell.init_state(BATCH),
    progress=False,
)
if is_first:
    print(f"mean squared error: {result.losses[0]:.4f} before, {result.losses[-1]:.4f} after {UPDATES} updates")
expected = 0.4830 if UPDATES == 10 else 0.3359
assert abs(result.losses[-1] - expected) < 1e-3, f"expected {expected} on any devices, got {result.losses[-1]}"
