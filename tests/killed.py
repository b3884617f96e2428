"""A training run to be killed: `python killed.py FOLDER`. It leaves a line for each sequence, and its end in bits."""

import hashlib
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparse_etrace as se

UNITS, STEPS, BATCH, SEQUENCES = 30, 8, 3, 60


class Noisy(eqx.Module):
    """A cell with a key in its state, so that the randomness must go on as well."""

    cell: se.cells.LeakyRate

    def init_state(self, *batch):
        return {"h": self.cell.init_state(*batch), "key": jax.random.key(7)}

    def __call__(self, state, x):
        key, now = jax.random.split(state["key"])
        h, out = self.cell(state["h"], x + 0.1 * jax.random.normal(now, x.shape))
        return {"h": h, "key": key}, out


def digest(*trees):
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(trees, eqx.is_array)):
        found.update(np.asarray(jax.random.key_data(leaf) if leaf.dtype == jax.random.key(0).dtype else leaf).tobytes())
    return found.hexdigest()


def train(folder: Path, **options):
    rng = np.random.default_rng(0)
    pre, post = rng.integers(0, UNITS, (2, 4 * UNITS))
    graph = se.scale_spectral_radius(se.from_edges(pre, post, rng.normal(size=4 * UNITS), (UNITS, UNITS)), 0.9)
    inp = se.ETraceParam({"weight": jnp.asarray(rng.normal(size=(2, UNITS)), jnp.float32)}, se.MatMulOp())
    model = Noisy(
        se.cells.LeakyRate(UNITS, inp, se.ETraceParam({"weight": graph.weight}, se.SpMatMulOp(graph)), decay=0.8)
    )
    xs, ys = rng.normal(size=(STEPS, 30, 2)), rng.normal(size=(STEPS, 30, UNITS))
    batches = se.Batches(xs, ys, BATCH, key=jax.random.key(1), epochs=SEQUENCES * BATCH // 30)

    def log(now):
        with open(folder / "log", "a") as file:
            file.write(f"{now.sequences} {digest(now.model, now.opt_state, now.carry)}\n")

    result = se.fit(
        se.D_RTRL(), lambda out, y: jnp.mean((out - y) ** 2), optax.adam(0.01), model, batches,
        state=model.init_state(BATCH), update=4, carry=True, progress=False, callbacks=log,
        validation=batches[0], **options,
    )  # fmt: skip
    metrics = [np.asarray(column) for column in result.metrics.values()]
    return digest(result.model, result.opt_state, result.carry, [jnp.asarray(m.copy().view(np.uint8)) for m in metrics])


if __name__ == "__main__":
    where = Path(sys.argv[1])
    (where / "end").write_text(train(where, checkpoint=se.Checkpoint(where / "run.ckpt", every=1)))
