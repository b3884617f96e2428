"""A custom op: a block-diagonal layer, from the tutorial's two methods.

You learn how to give the learners a connectivity of your own. An op says what it computes (`xw_to_y`), and which unit
each entry of its weights drives (`yw_to_w`); every learner works with it from there. `check_op` tests that the two fit
together.

The network has four modules of eight units, each connected all-to-all inside and not at all to the others. Each module
sees one sequence of the input, and must report the sign of its sum over time.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import sparse_etrace as se

BLOCKS, SIZE, STEPS, BATCH = 4, 8, 20, 32
UNITS = BLOCKS * SIZE
UPDATES = 20 if "--short" in sys.argv else 100
TARGET = 0.7 if "--short" in sys.argv else 0.85


class BlockOp(se.ETraceOp):
    """Blocks on the diagonal of a matrix, the zeros around them never stored: the weight is (blocks, pre, post)."""

    def xw_to_y(self, x, w):
        """Postsynaptic input: each block by itself. Any batch axes come first."""
        count, pre, post = w["weight"].shape
        y = jnp.einsum("...bi,bij->...bj", x.reshape(*x.shape[:-1], count, pre), w["weight"])
        return y.reshape(*x.shape[:-1], count * post)

    def yw_to_w(self, y, e):
        """A synapse (block, i, j) drives unit j of its block: the values of units, spread over a trace."""
        count, _, post = e["weight"].shape[-3:]
        return {"weight": y.reshape(*y.shape[:-1], count, 1, post) * e["weight"]}


class Net(eqx.Module):
    """Leaky units of four modules, and a readout that is block-diagonal as well."""

    cell: se.cells.LeakyRate
    readout: se.ETraceParam

    def __init__(self, key):
        for_inp, for_rec = jax.random.split(key)
        inp = se.ETraceParam({"weight": jax.random.normal(for_inp, (BLOCKS, 1, SIZE))}, BlockOp())
        rec = se.ETraceParam({"weight": jax.random.normal(for_rec, (BLOCKS, SIZE, SIZE)) / (2 * SIZE**0.5)}, BlockOp())
        self.cell = se.cells.LeakyRate(UNITS, inp, rec, decay=0.95)
        self.readout = se.ETraceParam({"weight": jnp.zeros((BLOCKS, SIZE, 1))}, BlockOp())

    def __call__(self, state, x):
        state, activity = self.cell(state, x)
        return state, self.readout(activity)


def sequences(key):
    x = jax.random.normal(key, (STEPS, BATCH, BLOCKS))
    return x, (jnp.cumsum(x, axis=0) > 0).astype(jnp.float32)


def loss_fn(out, y):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(out, y))


def accuracy(model, carry, xs, ys):
    """Share of right answers over all steps."""
    right = []
    for x, y in zip(xs, ys, strict=True):
        carry, out = learner.step(model, carry, x)
        right.append(jnp.mean((out > 0) == (y > 0.5)))
    return float(jnp.mean(jnp.stack(right)))


model = Net(jax.random.key(0))
xs, ys = sequences(jax.random.key(1))

# Says in words which law of the contract fails, and where; silent if none does.
se.check_op(model.cell.rec.op, model.cell.rec.value, jnp.ones(UNITS))

learner = se.D_RTRL()
state = model.cell.init_state(BATCH)
print(se.explain(learner, model, state, xs[0]), end="\n\n")

data = (sequences(key) for key in jax.random.split(jax.random.key(2), UPDATES))
result = se.fit(learner, loss_fn, optax.adam(0.01), model, data, state=state, progress=False)
found = accuracy(result.model, learner.init(result.model, state, xs[0]), xs, ys)
print(f"cross entropy: {result.losses[0]:.3f} before, {result.losses[-1]:.3f} after {UPDATES} updates")
print(f"right answers on a new sequence: {100 * found:.1f} %")
assert found > TARGET, f"expected more than {100 * TARGET:.0f} % right answers, got {100 * found:.1f} %"
