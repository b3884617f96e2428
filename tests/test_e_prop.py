"""E-prop on a published task: five losses of an independent program, to all the digits that it gives."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import sparse_etrace as se
from sparse_etrace import surrogate

# The NEST simulator's test of pattern generation, in float64 (Bellec et al. 2020; the weights are redrawn here).
LOSSES = [101.964356999041, 103.466731126205, 103.340607074771, 103.680244037686, 104.412775748752]
NORMS = {"inp": 500.3091259714, "rec": 632.4616726369, "out": 108.0115251501}
SUM_INP = 21858.6442542463
A = K = float(np.exp(-1 / 30))
THETA, STRENGTH, TARGET, RATE, STEPS = 0.03, 300.0, 0.01, 1e-4, 1000


@functools.cache
def task():
    """Weights `(post, pre)`, feedback `(unit, out)`, inputs and target."""
    rng = np.random.RandomState(1)
    w = {
        name: np.float32(rng.randn(100, n).T / 10).astype(float) for name, n in (("inp", 100), ("rec", 100), ("out", 1))
    }
    np.fill_diagonal(w["rec"], 0)
    b = np.float32(rng.randn(100, 1) / 10).astype(float)
    x = (rng.rand(STEPS, 100) < 0.05).astype(float)
    x[0] = 0
    size, phase = rng.uniform(0.5, 2, 4), rng.uniform(0, 2 * np.pi, 4)
    waves = [s * np.sin(np.linspace(p, p + 2 * np.pi * c, STEPS)) for s, p, c in zip(size, phase, (1, 2, 3, 5))]
    target = sum(waves)
    target = target - target[0]
    return w, b, x, target / np.abs(target).max()


def iteration(w, b, x, target):
    """Loss and gradients of one presentation, by the published recipe."""
    v, z, y = np.zeros(100), np.zeros(100), np.zeros(1)
    zx, zr, zo = np.zeros(100), np.zeros(100), np.zeros(100)
    e, bar, total, grad = ({k: np.zeros((100, 100)) for k in ("inp", "rec")} for _ in range(4))
    spikes, by_out, loss = np.zeros(100), np.zeros((1, 100)), 0.0
    for x_t, target_t in zip(x, target):
        zx, zr = A * zx + (1 - A) * x_t, A * zr + (1 - A) * z
        v = A * v + (1 - A) * (w["inp"] @ x_t + w["rec"] @ z) - THETA * z
        z = (v >= THETA).astype(float)
        psi = 0.3 / THETA * np.maximum(0, 1 - np.abs(v - THETA) / THETA)
        zo = K * zo + (1 - K) * z
        y = K * y + (1 - K) * w["out"] @ z
        d = y - target_t
        for k, pre in (("inp", zx), ("rec", zr)):
            e[k] = np.outer(psi, pre)
            bar[k] = K * bar[k] + (1 - K) * e[k]
            total[k] += e[k]
            grad[k] += (b @ d)[:, None] * bar[k]
        by_out += np.outer(d, zo)
        spikes += z
        loss += 0.5 * float(d @ d)
    for k in grad:
        grad[k] += STRENGTH * (spikes / STEPS - TARGET)[:, None] / STEPS * total[k]
    np.fill_diagonal(grad["rec"], 0)
    return loss, {**grad, "out": by_out}


@functools.cache
def published():
    """Losses, and gradients of the first iteration."""
    w, b, x, target = task()
    losses, first = [], None
    for _ in range(5):
        loss, grad = iteration(w, b, x, target)
        losses.append(loss)
        first = first or grad
        w = {k: w[k] - RATE * grad[k] for k in w}
    return losses, first


SPIKE = surrogate.triangle()


class Net(eqx.Module):
    """Its readout filters what it reads, or reads a unit that does."""

    inp: se.ETraceParam
    rec: se.ETraceParam
    out: se.ETraceParam
    filtered_readout: bool = eqx.field(static=True)

    def __call__(self, state, x):
        reset = jax.lax.stop_gradient(state["z"])
        v = A * state["v"] + (1 - A) * (self.inp(x) + self.rec(state["z"])) - THETA * reset
        z = SPIKE((v - THETA) / THETA)
        if self.filtered_readout:
            y = K * state["y"] + (1 - K) * self.out(z)
            return {"v": v, "z": z, "y": y}, y
        s = K * state["s"] + (1 - K) * z
        return {"v": v, "z": z, "s": s}, self.out(s)


def make(filtered_readout):
    """Model, state, inputs, targets, learner, and how to read gradients as `(post, pre)`."""
    w, b, x, target = task()
    pre, post = np.nonzero(~np.eye(100, dtype=bool))
    conn = se.Connectivity.from_edges(pre, post, shape=(100, 100))
    number = lambda a: jnp.asarray(a, float)
    model = Net(
        se.ETraceParam({"weight": number(w["inp"].T)}, se.MatMulOp()),
        se.ETraceParam({"weight": number(w["rec"].T[conn.pre, conn.post])}, se.SpMatMulOp(conn)),
        se.ETraceParam({"weight": number(w["out"].T)}, se.MatMulOp()),
        filtered_readout,
    )
    zero = jnp.zeros(100)
    state = {"v": zero, "z": zero} | ({"y": jnp.zeros(1)} if filtered_readout else {"s": zero})
    rate = {"rate_strength": STRENGTH, "rate_target": TARGET, "rate_leaf": "z"}
    kappa = K if filtered_readout else None
    learner = se.EProp("z" if filtered_readout else "s", feedback=number(b.T), kappa=kappa, **rate)

    def read(grads):
        rec = np.zeros((100, 100))
        rec[conn.post, conn.pre] = grads.rec.value["weight"]
        return {"inp": np.asarray(grads.inp.value["weight"]).T, "rec": rec, "out": grads.out.value["weight"].T}

    return model, state, number(x), number(target)[:, None], learner, read


def loss_fn(out, target):
    return 0.5 * jnp.sum((out - target) ** 2)


def train(filtered_readout, chunk=None, ends=(STEPS,), iterations=5):
    model, state, xs, ys, learner, read = make(filtered_readout)
    start = learner.init(model, state, xs[0])
    losses, first = [], None
    for _ in range(iterations):
        carry, loss, grads, begin = start, 0.0, None, 0
        for end in ends:
            parts = se.online_grad(learner, loss_fn, model, carry, xs[begin:end], ys[begin:end], chunk=chunk)
            carry, begin = parts[2], end
            loss += np.sum(np.asarray(parts[0], np.float64))
            grads = parts[1] if grads is None else jax.tree.map(np.add, grads, parts[1])
        losses.append(loss)
        first = read(grads) if first is None else first
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -RATE * g, grads))
    return losses, first


def test_the_oracle_gives_the_published_numbers():
    losses, first = published()
    np.testing.assert_allclose(losses, LOSSES, rtol=1e-13)
    for name, norm in NORMS.items():
        np.testing.assert_allclose(np.linalg.norm(first[name]), norm, rtol=1e-12)
    np.testing.assert_allclose(first["inp"].sum(), SUM_INP, rtol=1e-12)


both = pytest.mark.parametrize("filtered_readout", [False, True], ids=["filter in the unit", "filter on the trace"])


@both
@pytest.mark.usefixtures("x64")
def test_float64(filtered_readout):
    losses, first = train(filtered_readout)
    np.testing.assert_allclose(losses, LOSSES, rtol=0, atol=1e-8)
    for name, norm in NORMS.items():
        np.testing.assert_allclose(np.linalg.norm(first[name]), norm, rtol=1e-10)
    np.testing.assert_allclose(first["inp"].sum(), SUM_INP, rtol=1e-10)
    assert oracles.relative_error(first, published()[1]) < 1e-10


@both
def test_float32(filtered_readout):
    losses, first = train(filtered_readout)
    np.testing.assert_allclose(losses, LOSSES, rtol=1e-6)
    assert oracles.relative_error(first, published()[1]) < 1e-5


@pytest.mark.usefixtures("x64")
def test_split_calls():
    """The regulariser does not know where the sequence ends."""
    losses, first = train(True, 7, (337, 600, STEPS), iterations=1)
    np.testing.assert_allclose(losses, LOSSES[:1], rtol=0, atol=1e-8)
    assert oracles.relative_error(first, published()[1]) < 1e-10
