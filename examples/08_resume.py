"""Stop and resume: a training that may be killed at any moment.

You learn how `fit` keeps a checkpoint, how a run goes on from it after a crash, with the same bits as one that was
never stopped, and how it refuses the checkpoint of another network.

The script starts itself again as a child process, kills the child in the middle of its training, and resumes. The
network of 50 units on a small-world graph learns to oscillate: its input says how fast, its output shall be the wave.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import optax

import sparse_etrace as se

UNITS, STEPS, SEQUENCES, BATCH = 50, 60, 256, 16
EPOCHS = 4 if "--short" in sys.argv else 40


class Net(eqx.Module):
    """Leaky units on a graph, and a readout of all of them."""

    cell: se.cells.LeakyRate
    readout: se.ETraceParam

    def __init__(self, rewired):
        graph = se.from_networkx(nx.watts_strogatz_graph(UNITS, 6, rewired, seed=0))
        keys = jax.random.split(jax.random.key(0), 3)
        graph = graph.with_weight(jax.random.normal(keys[0], graph.weight.shape))
        graph = se.scale_spectral_radius(graph, 1.1)
        inp = se.ETraceParam({"weight": jax.random.normal(keys[1], (2, UNITS))}, se.MatMulOp())
        rec = se.ETraceParam({"weight": graph.weight, "bias": jnp.zeros(UNITS)}, se.SpMatMulOp(graph))
        self.cell = se.cells.LeakyRate(UNITS, inp, rec, decay=jnp.linspace(0.3, 0.9, UNITS))
        self.readout = se.ETraceParam({"weight": jnp.zeros((UNITS, 1))}, se.MatMulOp())

    def __call__(self, state, x):
        state, activity = self.cell(state, x)
        return state, self.readout(activity)


def waves():
    """Inputs (speed, and a pulse at the start) and targets, time first."""
    speed = jax.random.uniform(jax.random.key(1), (SEQUENCES,), minval=0.15, maxval=0.45)
    time_ = jnp.arange(STEPS)[:, None]
    pulse = jnp.broadcast_to(time_ == 0, (STEPS, SEQUENCES)).astype(jnp.float32)
    return jnp.stack([jnp.broadcast_to(speed, pulse.shape), pulse], -1), jnp.sin(time_ * speed)[..., None]


def loss_fn(out, y):
    return jnp.mean((out - y) ** 2)


# Made once: `fit` compiles again for another loss or optimizer.
optimizer = optax.adam(3e-3)


def train(checkpoint=None, rewired=0.2):
    """One call trains, resumes where the file exists, and returns the same bits either way."""
    model = Net(rewired)
    batches = se.Batches(*waves(), BATCH, key=jax.random.key(2), epochs=EPOCHS)
    return se.fit(
        se.D_RTRL(),
        loss_fn,
        optimizer,
        model,
        batches,
        state=model.cell.init_state(BATCH),
        checkpoint=checkpoint and se.Checkpoint(checkpoint, every=5),
        progress=False,
    )


if "--child" in sys.argv:
    train(sys.argv[-1])
    sys.exit()

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "waves.ckpt"
    child = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--child", str(file)])
    while not file.exists() and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    print(f"killed the child: it ended with {child.wait()}, and left a file of {file.stat().st_size:,} bytes")
    resumed = train(file)
    try:
        train(file, rewired=0.5)
    except ValueError as error:
        print(f"refused: {str(error).replace(folder, '')}")

whole = train()
same = eqx.tree_equal((resumed.model, resumed.opt_state, resumed.carry), (whole.model, whole.opt_state, whole.carry))
print(f"mean squared error: {whole.losses[0]:.3f} before, {whole.losses[-1]:.3f} after {len(whole.losses)} updates")
print(f"the resumed run has the bits of the one that was never stopped: {bool(same)}")
assert child.returncode == -signal.SIGKILL, f"the child should have been killed, got {child.returncode}"
assert same, "expected the same bits after a kill"
