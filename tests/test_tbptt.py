"""Truncated BPTT: a sliding window, whatever the windows and calls of `online_grad`; or a pass for several losses."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from models import run, run_by_step, start
from soak import ONLY, few

import sparse_etrace as se

TOLERANCE = 1e-10
pytestmark = pytest.mark.usefixtures("x64")


def states(case, cuts=None, moved=None):
    """The state before each step; at `cuts`, one step for each batch element, it begins again."""
    path, state = [], case.twin.state
    for t, x in enumerate(case.xs):
        begins = np.zeros(x.shape[0], bool) if cuts is None else np.asarray(cuts) == t
        state = {k: _choose(begins, case.twin.state[k], s) for k, s in state.items()} if begins.any() else state
        path.append(state)
        state, _ = (case.model if moved is None or t < moved[0] else moved[1])(state, x)
    return jax.tree.map(lambda *s: jnp.stack(s), *path)


def _choose(begins, start, now):
    return jnp.where(begins.reshape(-1, *[1] * (now.ndim - 1)), start, now)


def jacobians(case, values, path):
    """For each step derivatives of the loss and of the new state, by old state and by parameters, all as vectors."""
    twin = case.twin
    theta, unflatten = jax.flatten_util.ravel_pytree(values)

    def both(h, theta, state, x, y):
        values = unflatten(theta)
        state = oracles._pack(state)[1](h)
        new, out = twin.forward(oracles._Ops(twin, oracles._weights(twin, values), values), state, state, x)
        return oracles.loss_fn(out, y), oracles._pack(new)[0]

    one = lambda state, x, y: jax.jacrev(both, (0, 1))(oracles._pack(state)[0], theta, state, x, y)
    # XLA's program of this for a GPU is wrong (jax 0.11 on an H200).
    with jax.default_device(jax.devices("cpu")[0]):
        (by_h, by_theta), (d, b) = jax.jit(jax.vmap(one))(*jax.tree.map(np.asarray, (path, case.xs, case.ys)))
    return [np.asarray(a) for a in (by_h, by_theta, d, b)], unflatten


def truncated(case, steps, values=None, path=None, cuts=None):
    """Gradient of each loss through the last `steps` steps: products of explicit Jacobians, in numpy.

    steps: a number, or one for each loss.
    cuts: for each batch element the step before which it began again, which no derivative passes.
    """
    path = states(case) if path is None else path
    (by_h, by_theta, d, b), unflatten = jacobians(case, case.twin.values if values is None else values, path)
    grads, reach = [], np.broadcast_to(steps, len(by_h))
    for t in range(len(by_h)):
        signal, grad = by_h[t], by_theta[t]
        for s in range(t - 1, max(-1, t - reach[t]), -1):
            signal = signal if cuts is None else signal * _goes_on(case, [not s < cut <= t for cut in cuts])
            grad = grad + signal @ b[s]
            signal = signal @ d[s]
        grads.append(grad)
    return jax.vmap(unflatten)(jnp.stack(grads))


def _goes_on(case, onward):
    state = case.twin.state
    marks = {k: _choose(np.array(onward), 1.0, jnp.zeros_like(state[k])) for k in state}
    return np.asarray(oracles._pack(marks)[0])


@pytest.mark.parametrize(
    "kind, steps",
    few(
        [("rate", 1), ("rate", 2), ("alif_v", 4), ("lif_vjp", 3), ("gru_cell", 2), ("delay_buffer", 5), ("clock", 3)],
        [("alif_v", 4), ("delay_buffer", 5)],
    ),
)
def test_each_step(kind, steps):
    case = models.build(kind)
    _, got = run_by_step(se.TBPTT(steps=steps), case)
    assert oracles.relative_error_by_step(got, truncated(case, steps)) < TOLERANCE


@pytest.mark.parametrize("chunk", few([2, None], [2]))
def test_windows_and_split_calls(chunk):
    case = models.build("alif_v")
    case = case._replace(xs=case.xs[:6], ys=case.ys[:6])
    learner, expected = se.TBPTT(steps=3), models.total(truncated(case, 3))
    assert oracles.relative_error(run(learner, case, chunk)[1], expected) < TOLERANCE
    _, before, carry = run(learner, case, chunk, steps=slice(3))
    _, after, _ = run(learner, case, chunk, carry, slice(3, None))
    assert oracles.relative_error(jax.tree.map(np.add, before, after), expected) < TOLERANCE


MANY = [("gru_cell", models.STEPS, 1), ("rate", models.STEPS + 3, 1), ("rate", models.STEPS, 3)]


@pytest.mark.parametrize("kind, steps, every", few(MANY, MANY[1:2]))
def test_many_steps_are_bptt(kind, steps, every):
    case = models.build(kind)
    expected = oracles.bptt(case.twin, case.xs, case.ys)
    assert oracles.relative_error(run(se.TBPTT(steps, every), case, 2)[1], expected) < TOLERANCE
    assert oracles.relative_error(models.total(truncated(case, models.STEPS - 1)), expected) > 1e-6


def test_losses_are_those_of_the_model():
    case = models.build("alif_v")
    losses, _, carry = run(se.TBPTT(steps=3), case)
    expected, _, after = run(se.BPTT(), case)
    assert oracles.relative_error((losses, carry.state), (expected, after.state)) < TOLERANCE


def test_reset_of_some_batch_elements():
    """Element 1 of two starts again after three steps: no derivative passes, for element 0 all goes on."""
    case = models.build("alif_v")
    learner = se.TBPTT(steps=4)
    _, before, carry = run(learner, case, 2, steps=slice(3))
    carry = learner.reset(carry, jnp.array([False, True]), case.twin.state)
    _, after, _ = run(learner, case, 2, carry, slice(3, None))
    got = jax.tree.map(np.add, before, after)
    expected = models.total(truncated(case, 4, path=states(case, [0, 3]), cuts=[0, 3]))
    assert oracles.relative_error(got, expected) < TOLERANCE
    assert oracles.relative_error(got, models.total(truncated(case, 4))) > 1e-4


def test_parameters_that_change_between_calls():
    """Old steps are differentiated at the states that they had, and at the current parameters."""
    case = models.build("sparse_function")
    learner, carry = se.TBPTT(steps=3), start(se.TBPTT(steps=3), case)
    moved = jax.tree.map(lambda p, t: p - 0.1 if t else p, case.model, se.trainable(case.model))
    _, before, carry = run(learner, case, 4, carry, slice(4))
    _, after, _ = run(learner, case._replace(model=moved), 4, carry, slice(4, None))
    path = states(case, moved=(4, moved))
    later = jax.tree.map(lambda p: p - 0.1, case.twin.values)
    first, second = (truncated(case, 3, values, path) for values in (case.twin.values, later))
    expected = jax.tree.map(lambda a, b: a[:4].sum(0) + b[4:].sum(0), first, second)
    assert oracles.relative_error(jax.tree.map(np.add, before, after), expected) < TOLERANCE


def test_slots_that_were_never_filled_harm_nothing():
    """A model that is not defined for an input of zeros."""

    def forward(op, h, held, x):
        return models.rate_forward(op, h, held, x / jnp.linalg.norm(x, axis=-1, keepdims=True))

    case = models.rate(np.random.default_rng(0), forward=forward)
    _, got = run_by_step(se.TBPTT(steps=4), case)
    assert oracles.relative_error_by_step(got, truncated(case, 4)) < TOLERANCE


def test_train():
    case = models.build("rate")
    train = eqx.tree_at(lambda m: m.params["rec"], jax.tree.map(lambda _: False, case.model), True, is_leaf=_is_param)
    some = run(se.TBPTT(steps=3, train=train), case)[1]
    assert oracles.relative_error(some["rec"], models.total(truncated(case, 3))["rec"]) < TOLERANCE
    assert not jax.tree.leaves({name: grad for name, grad in some.items() if name != "rec"})


def _is_param(leaf):
    return isinstance(leaf, se.ETraceParam)


def test_no_silent_zero():
    """What the output shows one step late has no gradient within one step."""
    case = models.build("old_readout")
    with pytest.raises(ValueError, match=r"'inp'.* would never get a gradient: it reaches `out` only by ways"):
        start(se.TBPTT(steps=1), case)
    start(se.TBPTT(steps=1, allow_zero=("params['inp']", "params['rec']")), case)
    grads = run(se.TBPTT(steps=2), case)[1]
    assert oracles.nonzero(grads)


# --- a pass for several losses ---------------------------------------------------------------------------------------


def reach(steps, every, ends):
    """How many steps each loss goes through: those of a pass one more than the one before."""
    return [steps + (t - begin) % every for begin, end in zip([0, *ends], ends) for t in range(begin, end)]


PASSES = [
    ("rate", 3, 2), ("rate", 2, 7), ("alif_v", 2, 4), ("gru_cell", 1, 3), ("delay_buffer", 4, 3), ("clock", 5, 2),
    ("lif_vjp", 3, 3),
]  # fmt: skip


@pytest.mark.parametrize("kind, steps, every", few(PASSES, [("alif_v", 2, 4)]))
def test_one_pass_for_several_losses(kind, steps, every):
    """In two calls, which cut a pass short where they end; a step more is seen, and a pass for each loss."""
    case, ends = models.build(kind), [3, models.STEPS]
    _, before, carry = run(se.TBPTT(steps, every), case, None, steps=slice(3))
    _, after, _ = run(se.TBPTT(steps, every), case, None, carry, slice(3, None))
    got, reached = jax.tree.map(np.add, before, after), np.array(reach(steps, every, ends))
    path = states(case)
    assert oracles.relative_error(got, models.total(truncated(case, reached, path=path))) < TOLERANCE
    for mistake in (reached + 1, steps):
        assert oracles.relative_error(got, models.total(truncated(case, mistake, path=path))) > 1e-6


@pytest.mark.parametrize("steps, every", few([(2, 3), (1, 4), (3, 1)], [(2, 3)]))
def test_windows_from_a_constant_state(steps, every):
    """Explicit loops, each from the state `steps - 1` steps before its first loss; the last one is shorter."""
    case = models.build("rate")
    path = states(case)

    @jax.jit
    @jax.grad
    def loops(values):
        total = 0.0
        for begin in range(0, models.STEPS, every):
            first, end = max(begin - steps + 1, 0), min(begin + every, models.STEPS)
            state = {name: leaf[first] for name, leaf in path.items()}
            for t in range(first, end):
                ops = oracles._Ops(case.twin, oracles._weights(case.twin, values), values)
                state, out = case.twin.forward(ops, state, state, case.xs[t])
                total += oracles.loss_fn(out, case.ys[t]) if t >= begin else 0.0
        return total

    expected = loops(case.twin.values)
    assert oracles.relative_error(run(se.TBPTT(steps, every), case, None)[1], expected) < TOLERANCE
    chunked = run(se.TBPTT(steps, models.STEPS if every > 1 else 1), case, every)[1]
    assert oracles.relative_error(chunked, expected) < TOLERANCE


@ONLY
def test_step_reaches_as_far_as_without():
    case = models.build("alif_v")
    _, got = run_by_step(se.TBPTT(4, every=4), case)
    assert oracles.relative_error_by_step(got, truncated(case, 4)) < TOLERANCE


def test_reset_between_passes():
    """Element 1 of two starts again after three steps, in the middle of what later passes go back to."""
    case, learner, reached = models.build("alif_v"), se.TBPTT(2, every=4), reach(2, 4, [3, models.STEPS])
    _, before, carry = run(learner, case, None, steps=slice(3))
    carry = learner.reset(carry, jnp.array([False, True]), case.twin.state)
    _, after, _ = run(learner, case, None, carry, slice(3, None))
    expected = models.total(truncated(case, reached, path=states(case, [0, 3]), cuts=[0, 3]))
    got = jax.tree.map(np.add, before, after)
    assert oracles.relative_error(got, expected) < TOLERANCE
    assert oracles.relative_error(got, models.total(truncated(case, reached))) > 1e-4


@pytest.mark.parametrize("every, error, message", [
    (0, ValueError, "every: expected at least 1, got 0"), (1.5, TypeError, "every: expected a whole number, got 1.5"),
])  # fmt: skip
def test_what_is_no_number_of_losses(every, error, message):
    with pytest.raises(error, match=message):
        se.TBPTT(2, every=every)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2.5, True])
def test_what_is_no_number_of_steps(steps):
    with pytest.raises(TypeError, match=f"steps: expected a whole number, got {steps}"):
        se.TBPTT(steps=steps)


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match=f"steps: expected at least 1, got {steps}. The step of the loss"):
        se.TBPTT(steps=steps)


@pytest.mark.parametrize("other", [se.TBPTT(steps=2), se.BPTT(), se.D_RTRL()], ids=lambda o: type(o).__name__)
def test_carry_of_another_learner(other):
    case = models.build("rate")
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
        run(se.TBPTT(steps=3), case, carry=start(other, case))
