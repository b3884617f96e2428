"""UORO: each step of the estimate is right on average over all signs, exactly, and so is the gradient of a stream."""

import functools
import re

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import models
import numpy as np
import optax
import oracles
import pytest
from models import run, start
from soak import few

import sparse_etrace as se

TOLERANCE = 1e-10
SEEDS = 3000
LEARNER = se.UORO(key=jax.random.key(5))
pytestmark = pytest.mark.usefixtures("x64")


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def estimates(case, carry, keys):
    """Behind one more step, for each key: the two vectors of the estimate, parameters by name of the twin."""

    @jax.jit
    @jax.vmap
    def one(key):
        moved = eqx.tree_at(lambda c: c.traces.key, carry, key)
        traces = LEARNER.step(case.model, moved, case.xs[3])[0].traces
        return flat(traces.state), flat(case.read(traces.params))

    return [np.asarray(part) for part in one(keys)]


def explicit(case, state):
    """Jacobians of the step by hand: D, dh/dtheta, dL/dh, dL/dtheta, over flat state and parameters."""
    twin, x, y = case.twin, case.xs[3], case.ys[3]
    h, unpack = oracles._pack(state)
    theta, unflatten = jax.flatten_util.ravel_pytree(twin.values)

    def both(h, theta):
        ops = oracles._Ops(twin, oracles._weights(twin, unflatten(theta)), unflatten(theta))
        new, out = twin.forward(ops, unpack(h), unpack(h), x)
        return oracles._pack(new)[0], oracles.loss_fn(out, y)

    (d, b), (m, n) = jax.jit(jax.jacrev(both, (0, 1)))(h, theta)
    return [np.asarray(a) for a in (d, b, m, n)]


def sign_patterns(case, carry, keys):
    """One key for each pattern of signs, which an estimate that starts at zero shows."""
    fresh = start(LEARNER, case)
    signs = np.sign(estimates(case, eqx.tree_at(lambda c: c.state, fresh, carry.state), keys)[0])
    _, first = np.unique(signs, axis=0, return_index=True)
    return keys[first]


@pytest.mark.parametrize("kind, units", few([("rate", 4), ("lif", 8)], [("rate", 4)]))
def test_one_step_is_right_on_average_over_all_signs(kind, units):
    case = models.build(kind, batch=())
    _, _, carry = run(LEARNER, case, 2, steps=slice(3))
    keys = sign_patterns(case, carry, jax.random.split(jax.random.key(0), 40 * 2**units // 2))
    assert len(keys) == 2**units
    s, p = flat(carry.traces.state), flat(case.read(carry.traces.params))
    d, b, m, n = explicit(case, carry.state)
    new_s, new_p = estimates(case, carry, keys)
    average = np.einsum("kh,kp->hp", new_s, new_p) / len(keys)
    expected = d @ np.outer(s, p) + b
    assert oracles.relative_error(average, expected) < TOLERANCE
    assert oracles.relative_error(average, d @ np.outer(s, p)) > 1e-3 < oracles.relative_error(average, b)
    grads = flat(run(LEARNER, case, 1, carry, slice(3, 4))[1])
    assert oracles.relative_error(grads, (m @ s) * p + n) < TOLERANCE
    assert oracles.relative_error(grads, n) > 1e-3


@functools.cache
def samples(kind, chunk):
    """Gradients of a stream in two calls for many keys, `(keys, parameters)`, and the case."""
    case = models.build(kind)

    @jax.jit
    @jax.vmap
    def one(key):
        learner = se.UORO(key=key)
        _, before, carry = run(learner, case, chunk, steps=slice(4))
        _, after, _ = run(learner, case, chunk, carry, slice(4, None))
        return flat(before) + flat(after)

    return np.asarray(one(jax.random.split(jax.random.key(1), SEEDS))), case


def deviation(sampled, expected):
    """Deviations of the mean in standard errors: the mean of their squares is 1 for an unbiased rule."""
    error = sampled.std(0, ddof=1) / np.sqrt(len(sampled))
    return (sampled.mean(0) - np.asarray(flat(expected))) / np.maximum(error, 1e-12)


@pytest.mark.parametrize(
    "kind, chunk", few([("alif_v", 3), ("lif_vjp", 1), ("gru_cell", 4), ("clock", 2)], [("alif_v", 3)])
)
def test_unbiased(kind, chunk):
    sampled, case = samples(kind, chunk)
    z = deviation(sampled, oracles.bptt(case.twin, case.xs, case.ys))
    assert np.abs(z).max() < 4 and np.mean(z**2) < 1.6


def test_a_bias_is_seen():
    sampled, case = samples("alif_v", 3)
    exact = flat(oracles.bptt(case.twin, case.xs, case.ys))
    diagonal = flat(run(se.D_RTRL(), case)[1])
    assert np.mean(deviation(sampled, diagonal) ** 2) > 3
    assert np.mean(deviation(sampled, 1.1 * exact) ** 2) > 3


def test_windows_and_calls_share_their_signs():
    case = models.build("alif_v")
    case = case._replace(xs=case.xs[:6], ys=case.ys[:6])
    losses, expected, end = run(LEARNER, case)
    *before, carry = run(LEARNER, case, 2, steps=slice(3))
    *after, carry = run(LEARNER, case, 2, carry, slice(3, 6))
    assert oracles.relative_error(jnp.concatenate([before[0], after[0]]), losses) < TOLERANCE
    assert oracles.relative_error(jax.tree.map(np.add, before[1], after[1]), expected) < TOLERANCE
    assert jnp.array_equal(jax.random.key_data(carry.traces.key), jax.random.key_data(end.traces.key))
    other = run(se.UORO(key=jax.random.key(6)), case)[1]
    assert oracles.relative_error(other, expected) > 1e-2


def test_losses_and_state_are_those_of_the_model():
    case = models.build("alif_v")
    losses, _, carry = run(LEARNER, case)
    expected, _, after = run(se.BPTT(), case)
    assert oracles.relative_error((losses, carry.state), (expected, after.state)) < TOLERANCE


def test_reset():
    """An element that starts again has no influence left; the parameters' part starts again when all do."""
    case = models.build("alif_v")
    _, _, carry = run(LEARNER, case)
    some = LEARNER.reset(carry, jnp.array([False, True]), case.twin.state)
    for name, s in some.traces.state.items():
        assert not np.any(s[1]) and np.array_equal(s[0], carry.traces.state[name][0]) and np.any(s[0])
    assert eqx.tree_equal(some.traces.params, carry.traces.params)
    every = LEARNER.reset(carry, True, case.twin.state)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((every.traces.state, every.traces.params)))
    for after in (some, every):
        assert jnp.array_equal(jax.random.key_data(after.traces.key), jax.random.key_data(carry.traces.key))


def test_fit_goes_on_with_the_signs():
    """The same sequence twice, without learning: another estimate."""
    case = models.build("rate")
    seen, rate = [], optax.chain(optax.trace(decay=0.0), optax.scale(0.0))
    for sequences in (1, 2):
        data = [(case.xs, case.ys)] * sequences
        fit = se.fit(LEARNER, oracles.loss_fn, rate, case.model, data, state=case.twin.state, progress=False)
        seen.append(case.read(fit.opt_state[0].trace))
    assert oracles.relative_error(*seen) > 1e-2


def test_train():
    case = models.build("rate")
    train = eqx.tree_at(lambda m: m.params["rec"], jax.tree.map(lambda _: False, case.model), True, is_leaf=_is_param)
    learner = se.UORO(key=jax.random.key(0), train=train)
    grads = run(learner, case)[1]
    assert oracles.nonzero(grads["rec"]) and not jax.tree.leaves({k: g for k, g in grads.items() if k != "rec"})
    assert [leaf.shape for leaf in jax.tree.leaves(start(learner, case).traces.params)] == [
        grads["rec"]["weight"].shape
    ]


def _is_param(leaf):
    return isinstance(leaf, se.ETraceParam)


def test_no_silent_zero():
    case = models.build("rate")
    unused = eqx.tree_at(lambda m: m.params, case.model, {**case.model.params, "spare": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'spare'.* would never get a gradient: its value is never used"):
        start(LEARNER, case._replace(model=unused))


@pytest.mark.parametrize(
    "key, got",
    [(0, "0"), (None, "None"), (np.zeros(2, np.uint32), "uint32[2]"), (jax.random.PRNGKey(0), "uint32[2]")],
    ids=["number", "nothing", "numpy", "old style"],
)
def test_what_is_no_key(key, got):
    with pytest.raises(ValueError, match=rf"key: expected one key, as of jax.random.key\(0\), got {re.escape(got)}"):
        se.UORO(key=key)


def test_several_keys():
    with pytest.raises(ValueError, match=r"key: expected one key, .* got key<fry>\[3\]"):
        se.UORO(key=jax.random.split(jax.random.key(0), 3))


def test_complex_state():
    case = models.build("rate")
    state = {"h": case.twin.state["h"] + 0j}

    class Complex(eqx.Module):
        weight: jax.Array

        def __call__(self, state, x):
            new = {"h": 0.5j * state["h"] + self.weight * jnp.sum(x)}
            return new, jnp.real(new["h"])

    with pytest.raises(ValueError, match="state: a complex leaf has no random sign. Split it into two"):
        LEARNER.init(Complex(jnp.ones(models.N)), state, case.xs[0])


@pytest.mark.parametrize("other", [se.BPTT(), se.D_RTRL()], ids=lambda o: type(o).__name__)
def test_carry_of_another_learner(other):
    case = models.build("rate")
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
        run(LEARNER, case, carry=start(other, case))
