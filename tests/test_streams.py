"""Streams of snapshots, labels that arrive late, and learning while predicting."""

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import oracles
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace._train.delayed import delayed

NODES, STEPS = 4, 24
ADAM = optax.adam(0.1)  # made once, as what is compiled for it


class Sensors(eqx.Module):
    """A leaky unit for each sensor, read at two horizons."""

    new: se.ETraceParam
    out: se.ETraceParam

    def __call__(self, h, x):
        h = 0.8 * h + jnp.tanh(self.new(x))
        return h, self.out(h)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return Sensors(*(se.ETraceParam({"weight": models.array(rng, *s)}, se.MatMulOp()) for s in [(1, 3), (3, 2)]))


@pytest.fixture(scope="module")
def stream():
    series = np.random.default_rng(1).normal(size=(STEPS + 3, NODES, 1))
    return se.SnapshotStream.ahead(series, (1, 3))


def state():
    return jnp.zeros((NODES, 3))


def trained(model, xs, ys, delay, size=1, update="sequence", **options):
    """By `fit`, in sequences of `size` steps; the mean output of each is a metric."""
    data = [(xs[k : k + size], ys[k : k + size]) for k in range(0, len(xs), size)]
    return se.fit(
        se.D_RTRL(), oracles.loss_fn, ADAM, model, data, state=state(), carry=True, progress=False,
        metrics={"out": mean_out}, label_delay=delay, update=update, **options,
    )  # fmt: skip


def mean_out(out, y):
    return jnp.mean(out)


_by_loss = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(),
    lambda grads, state, params=None, *, value, **rest: (jax.tree.map(lambda g: -0.01 * value * g, grads), state),
)


DELAYS = [(delay, size) for delay in (0, 1, 4, (1, 3)) for size in (1, 2)]


@pytest.mark.parametrize("delay, size", few(DELAYS, [(0, 2), (4, 1), ((1, 3), 2)]))
def test_a_label_is_learned_from_when_it_has_come(delay, size, model, stream):
    """What is predicted up to the step at which a label is known does not depend on it; what follows does."""
    step, last = 6, max(delay) if isinstance(delay, tuple) else delay
    other = stream.targets.at[step].add(1.0)
    one, two = (trained(model, stream.xs, ys, delay, size).metrics["out"] for ys in (stream.targets, other))
    first = int(np.argmax(one != two)) * size
    # The first prediction after it is one of parameters that change at the end of a sequence.
    ready = max(step // size * size + size - 1 + last, step // size * size + size)
    assert first == -(-ready // size) * size


def test_as_by_hand(model, stream):
    """Gradients by the parameters of their step, three updates late."""
    learner, optimizer = se.D_RTRL(), ADAM
    params, fixed = eqx.partition(model, se.trainable(model))
    opt_state, waiting, carry = optimizer.init(params), [], learner.init(model, state(), stream.xs[0])
    for x, y in zip(stream.xs, stream.targets, strict=True):
        now = eqx.combine(params, fixed)
        _, grads, carry = se.online_grad(learner, oracles.loss_fn, now, carry, x[None], y[None])
        waiting.append(grads)
        if len(waiting) > 3:
            changes, opt_state = optimizer.update(waiting.pop(0), opt_state, params)
            params = eqx.apply_updates(params, changes)
    for update, size in ("step", 12), (1, 4), ("sequence", 1):
        found = trained(model, stream.xs, stream.targets, 4, size, update).model
        assert oracles.relative_error(jax.tree.leaves(found)[:2], jax.tree.leaves(params)) < 1e-5
    result = se.evaluate.prequential(
        learner, oracles.loss_fn, optimizer, model, (stream.xs, stream.ys), state=state(), delay=4
    )
    assert oracles.relative_error(jax.tree.leaves(result.model)[:2], jax.tree.leaves(params)) < 1e-5
    early = trained(model, stream.xs, stream.targets, 1)
    assert oracles.relative_error(jax.tree.leaves(early.model)[:2], jax.tree.leaves(params)) > 1e-2


def test_goes_on_with_what_waits(model, stream, tmp_path):
    whole = trained(model, stream.xs, stream.targets, 3)
    half = trained(model, stream.xs[:10], stream.targets[:10], 3)
    rest = se.fit(
        se.D_RTRL(), oracles.loss_fn, ADAM, half.model,
        [(stream.xs[k : k + 1], stream.targets[k : k + 1]) for k in range(10, STEPS)], state=state(),
        carry=half.carry, update=se.Update(opt_state=half.opt_state), label_delay=3, progress=False,
    )  # fmt: skip
    assert eqx.tree_equal(rest.model, whole.model)
    file = tmp_path / "run.ckpt"
    trained(model, stream.xs[:10], stream.targets[:10], 3, checkpoint=file)
    assert eqx.tree_equal(trained(model, stream.xs, stream.targets, 3, checkpoint=file).model, whole.model)
    with pytest.raises(ValueError, match="checkpoint: .* optimizer"):
        trained(model, stream.xs, stream.targets, 5, checkpoint=file)


def test_refused_delays(model, stream):
    for wrong, error, words in (-1, ValueError, "at least 0"), (1.5, TypeError, "whole number"), ((), ValueError, "0"):
        with pytest.raises(error, match=f"label_delay: expected .*{words}"):
            trained(model, stream.xs, stream.targets, wrong)
    with pytest.raises(ValueError, match="label_delay: expected updates of 3 steps each, .* of 4 steps and updates"):
        trained(model, stream.xs, stream.targets, 3, 4, update=3)
    with pytest.raises(TypeError, match="optimizer: expected one of gradients alone, as they wait for labels"):
        waiting = delayed(_by_loss, 2)
        waiting.update(jnp.ones(3), waiting.init(jnp.ones(3)), jnp.ones(3))


# --- prequential ------------------------------------------------------------------------------------------------------


def naive(target, known, delay, average, period):
    """Baselines step by step."""
    found = {name: np.zeros(target.shape) for name in ("persistence", "moving average", "historical mean")}
    for index in np.ndindex(target.shape):
        step, *place = index
        lag = delay[place[-1]] if len(delay) > 1 else delay[0]
        seen = [k for k in range(step - lag + 1) if known[(k, *place)]]
        if seen:
            found["persistence"][index] = target[(seen[-1], *place)]
        for name, chosen in (
            ("moving average", [k for k in seen if k > step - lag - average]),
            ("historical mean", [k for k in seen if k % period == step % period]),
        ):
            if chosen:
                found[name][index] = np.mean([target[(k, *place)] for k in chosen])
    return found


@hypothesis.given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_baselines(seed, average, period, several):
    rng = np.random.default_rng(seed)
    target, known = rng.normal(size=(9, 2, 2)), rng.random((9, 2, 2)) < 0.7
    delay = (1, 3) if several else (int(rng.integers(1, 5)),)
    found = se.evaluate.guesses(jnp.asarray(target), jnp.asarray(known), delay, average, period)
    for name, expected in naive(target, known, delay, average, period).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_prequential(model, stream):
    gappy = np.where(np.random.default_rng(2).random((STEPS + 3, NODES, 1)) < 0.2, np.nan, 1.0)
    stream = se.SnapshotStream.ahead(gappy, (1, 3))
    assert stream.mask.shape == stream.targets.shape and not stream.mask.all()
    options = {"state": state(), "delay": (1, 3), "metrics": {"mae": se.evaluate.mae}, "skip": 6}
    result = se.evaluate.prequential(se.D_RTRL(), se.evaluate.mse, optax.adam(0.05), model, stream, **options)
    assert list(result.curves) == ["model", "persistence", "moving average", "historical mean"]
    assert result.outs.shape == (STEPS, NODES, 2) and result.curves["model"]["mae"].shape == (STEPS,)
    expected = np.abs(result.outs - 1)[stream.mask].mean()  # of a step all that is known weighs the same
    mean = np.average(result.curves["model"]["mae"], weights=stream.mask.sum((1, 2)))
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert result.table["model"]["loss"] < np.mean(result.curves["model"]["loss"][:6])
    assert "historical mean" in str(result) and list(result.to_dataframe().columns) == ["predictor", "loss", "mae"]
    assert result.table["persistence"]["mae"] < 0.1
    alone = se.evaluate.prequential(
        se.D_RTRL(), lambda out, y: jnp.mean(out["a"] ** 2), optax.sgd(0.1), _Named(model), stream, state=state()
    )
    assert list(alone.curves) == ["model"]
    silent = eqx.tree_at(lambda s: s.mask, stream, stream.mask.at[8:12].set(False))
    result = se.evaluate.prequential(se.D_RTRL(), se.evaluate.mse, _by_loss, model, silent, **{**options, "delay": 1})
    curve = result.curves["model"]["mae"]
    assert not curve[8:12].any() and curve[11] == 0
    np.testing.assert_allclose(result.table["model"]["mae"], np.mean([*curve[6:8], *curve[12:]]), rtol=1e-6)
    for skip in -1, STEPS:
        with pytest.raises(ValueError, match=f"skip: expected 0 or more, with labels after, got {skip} of"):
            se.evaluate.prequential(
                se.D_RTRL(), se.evaluate.mse, optax.sgd(0.1), model, silent, **{**options, "skip": skip}
            )
    with pytest.raises(ValueError, match="delay: expected one number, or one for each entry of the last axis"):
        se.evaluate.prequential(
            se.D_RTRL(), se.evaluate.mse, optax.sgd(0.1), model, stream, state=state(), delay=(1, 2, 3)
        )


class _Named(eqx.Module):
    """A model whose output has a name."""

    inner: Sensors

    def __call__(self, h, x):
        h, out = self.inner(h, x)
        return h, {"a": out}


# --- streams ----------------------------------------------------------------------------------------------------------


def test_gaps_and_horizons():
    series = np.array([[np.nan, 1.0], [2.0, np.nan], [3.0, np.nan], [np.nan, 4.0]])[..., None]
    stream = se.SnapshotStream.ahead(series, (1,))
    np.testing.assert_array_equal(stream.xs[..., 0], [[0, 1], [2, 1], [3, 1]])
    np.testing.assert_array_equal(stream.targets[..., 0], [[2, 0], [3, 0], [0, 4]])
    np.testing.assert_array_equal(stream.mask[..., 0], [[True, False], [True, False], [False, True]])
    assert len(stream[1:]) == 2 and eqx.tree_equal(stream[1:].ys, (stream.targets[1:], stream.mask[1:]))
    assert [len(xs) for xs, _ in stream.sequences(2)] == [2]
    with pytest.raises(TypeError, match="part: expected a slice of steps"):
        stream[1]
    for wrong in (0,), (), (4,):
        with pytest.raises(ValueError, match="horizons: expected steps ahead, at least 1 and fewer than"):
            se.SnapshotStream.ahead(series, wrong)
    with pytest.raises(ValueError, match="features, targets: expected"):
        se.SnapshotStream(series, series[:2])


def test_edges_that_differ_by_step():
    rng = np.random.default_rng(0)
    counts = [3, 0, 5]
    pre, post = ([rng.integers(0, NODES, k) for k in counts] for _ in range(2))
    weight, features = [rng.normal(size=k) for k in counts], rng.normal(size=(3, NODES, 2))
    stream = se.SnapshotStream(features, np.zeros((3, NODES)), (pre, post, weight))
    shown, *edges = stream.xs
    for k in range(3):
        dense = np.zeros((NODES, NODES))
        np.add.at(dense, (pre[k], post[k]), weight[k])
        found = se.spread(shown[k], *(part[k] for part in edges))
        np.testing.assert_allclose(found, dense.T @ features[k], atol=1e-5)
    few = [part.astype(np.uint8) for part in pre]
    many = se.SnapshotStream(np.zeros((3, 300, 1)), np.zeros(3), (few, few, weight))
    assert many.edges[0].tolist() == [[*part.tolist(), *[300] * (5 - len(part))] for part in few]
    with pytest.raises(TypeError, match="edges: expected pre and post of whole numbers, got float64"):
        se.SnapshotStream(features, np.zeros((3, NODES)), ([p + 0.5 for p in pre], post, weight))
    with pytest.raises(ValueError, match="steps: expected at least 1"):
        stream.sequences(0)
    with pytest.raises(ValueError, match=r"edges: expected \(pre, post, weight\) with arrays of one length"):
        se.SnapshotStream(features, np.zeros((3, NODES)), (pre[:2], post, weight))
    with pytest.raises(ValueError, match="edges: expected nodes below 4, got post"):
        se.SnapshotStream(features, np.zeros((3, NODES)), (pre, [p + 4 for p in post], weight))


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predictions_go_on_from_a_carry(model, stream):
    result = trained(model, stream.xs, stream.targets, 0)
    expected, state_ = [], result.carry.state
    for x in stream.xs:
        state_, out = result.model(state_, x)
        expected.append(out)
    first, between = se.predict(result.model, result.carry, stream.xs[:5])
    rest, end = se.predict(result.model, between, stream.xs[5:])
    np.testing.assert_allclose(jnp.concatenate([first, rest]), jnp.stack(expected), rtol=1e-5)
    np.testing.assert_allclose(end, state_, rtol=1e-5)
    learner, nodes = se.Events(se.D_RTRL(), NODES), jnp.array([[0, 1], [1, 2]])
    xs = (nodes, stream.xs[:2, :2])
    carry = learner.init(model, state(), jax.tree.map(lambda leaf: leaf[0], xs))
    outs, end = se.predict(model, carry, xs, learner)
    after = se.online_grad(learner, oracles.loss_fn, model, carry, xs, outs)[2]
    assert outs.shape == (2, 2, 2) and eqx.tree_equal(end, after.state)
    with pytest.raises(ValueError, match="nodes: expected numbers below 4"):
        se.predict(model, carry, (nodes + 3, xs[1]), learner)
    with pytest.raises(ValueError, match="xs: expected one common number of steps"):
        se.predict(model, carry, (nodes[:1], xs[1]))
