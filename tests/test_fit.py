"""`fit`: when parameters change, which of them, and what goes on from call to call."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import relative_error

import sparse_etrace as se

UNITS, STEPS, BATCH = 5, 7, 2
ADAM = optax.adam(0.02)
LEARNERS = [se.D_RTRL(), se.ES_D_RTRL(), se.BPTT()]


def squared(out, y):
    return jnp.mean((out - y) ** 2)


def net():
    keys = jax.random.split(jax.random.key(0), 2)
    inp = se.ETraceParam({"weight": jax.random.normal(keys[0], (3, UNITS)), "bias": jnp.zeros(UNITS)}, se.MatMulOp())
    conn = se.Connectivity.from_edges(np.arange(UNITS), np.roll(np.arange(UNITS), 1), shape=(UNITS, UNITS))
    rec = se.ETraceParam({"weight": jax.random.normal(keys[1], (UNITS,))}, se.SpMatMulOp(conn))
    return se.cells.LeakyRate(UNITS, inp, rec, decay=0.5)


def sequences(count, steps=STEPS):
    rng = np.random.default_rng(3)
    return [(rng.normal(size=(steps, BATCH, 3)), rng.normal(size=(steps, BATCH, UNITS))) for _ in range(count)]


def train(data, model=None, learner=LEARNERS[0], optimizer=ADAM, **options):
    model = net() if model is None else model
    state = model.init_state(BATCH)
    return se.fit(learner, squared, optimizer, model, data, state=state, **{"progress": False} | options)


def trained(result):
    return eqx.filter(result.model, se.trainable(result.model))


def by_hand(data, size, carry_over=False):
    """The training loop written out; also the mean loss per step of each sequence."""
    learner, model = se.D_RTRL(), net()
    opt_state = ADAM.init(eqx.filter(model, se.trainable(model)))
    start = carry = learner.init(model, model.init_state(BATCH), jnp.asarray(data[0][0][0]))
    means = []
    for xs, ys in data:
        carry, found = carry if carry_over else start, []
        for t in range(0, len(xs), size):
            losses, grads, carry = se.online_grad(learner, squared, model, carry, xs[t : t + size], ys[t : t + size])
            changes, opt_state = ADAM.update(grads, opt_state, eqx.filter(model, se.trainable(model)))
            model = eqx.apply_updates(model, changes)
            found.append(losses)
        means.append(float(jnp.concatenate(found).mean()))
    return eqx.filter(model, se.trainable(model)), means


@pytest.mark.parametrize(
    "update, size, carry_over",
    [("sequence", STEPS, False), ("step", 1, False), (3, 3, False), (3, 3, True), (99, STEPS, True)],
)
def test_when_parameters_change(x64, update, size, carry_over):
    data = sequences(2)
    result = train(data, update=update, carry_over=carry_over)
    model, means = by_hand(data, size, carry_over)
    assert relative_error((trained(result), result.losses), (model, np.array(means))) < 1e-10


def test_losses_are_means_per_step_of_each_sequence():
    result = train(iter(sequences(3)), learner=se.BPTT())
    assert result.losses.shape == (3,) and result.losses.dtype == float
    assert isinstance(result, se.Fit) and result.carry.state.shape == (BATCH, UNITS)
    still = train(sequences(1), optimizer=optax.sgd(0.0))
    xs, ys = sequences(1)[0]
    out = jax.lax.scan(lambda h, x: net()(h, x), net().init_state(BATCH), jnp.asarray(xs))[1]
    np.testing.assert_allclose(still.losses, [np.mean((out - ys) ** 2)], rtol=1e-6)


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: type(learner).__name__)
def test_learning_reduces_the_loss(learner):
    """Follow a teacher of the same connectivity."""
    rng, teacher = np.random.default_rng(0), net()
    teacher = eqx.tree_at(lambda m: m.rec.value["weight"], teacher, jnp.linspace(-1.0, 1.0, UNITS))
    xs = jnp.asarray(rng.normal(size=(20, 8, 3)), jnp.float32)
    ys = jax.lax.scan(lambda h, x: teacher(h, x), teacher.init_state(8), xs)[1]
    model = net()
    result = se.fit(
        learner, squared, optax.adam(0.05), model, [(xs, ys)] * 60, state=model.init_state(8), progress=False
    )
    assert result.losses[-1] < 0.3 * result.losses[0]


def test_what_is_not_trained_stays():
    model = net()
    only_rec = eqx.tree_at(lambda m: m.rec, jax.tree.map(lambda _: False, model), replace=True)
    for learner in (se.D_RTRL(train=only_rec), se.BPTT(train=only_rec)):
        # Weight decay moves whatever the optimizer is given.
        result = train(sequences(2), learner=learner, optimizer=optax.adamw(0.1, weight_decay=0.5))
        assert not jnp.array_equal(result.model.rec.value["weight"], model.rec.value["weight"])
        for where in (lambda m: m.inp, lambda m: m.decay, lambda m: m.rec.op):
            assert eqx.tree_equal(where(result.model), where(model))
    everything = train(sequences(2), optimizer=optax.adamw(0.1, weight_decay=0.5)).model
    assert not jnp.array_equal(everything.inp.value["weight"], model.inp.value["weight"])
    assert jnp.array_equal(everything.decay.value, model.decay.value)


def test_two_calls_are_one_long_run():
    data = sequences(4)
    whole = train(data)
    first = train(data[:2])
    second = train(data[2:], model=first.model, opt_state=first.opt_state)
    forgetful = train(data[2:], model=first.model)
    assert eqx.tree_equal(second.model, whole.model) and eqx.tree_equal(second.opt_state, whole.opt_state)
    assert np.array_equal(np.concatenate([first.losses, second.losses]), whole.losses)
    assert not eqx.tree_equal(forgetful.model, whole.model)


def test_carry_over_is_one_long_sequence(x64):
    xs, ys = sequences(1, 12)[0]
    whole = train([(xs, ys)], update=3)
    parts = train([(xs[:6], ys[:6]), (xs[6:], ys[6:])], update=3, carry_over=True)
    apart = train([(xs[:6], ys[:6]), (xs[6:], ys[6:])], update=3)
    assert relative_error(trained(parts), trained(whole)) < 1e-12
    assert relative_error(parts.carry.traces, whole.carry.traces) < 1e-12
    assert relative_error(trained(apart), trained(whole)) > 1e-6


def test_a_generator_streams():
    asked = []

    def stream():
        for pair in sequences(3):
            asked.append(1)
            yield pair

    result = train(stream())
    assert len(asked) == len(result.losses) == 3
    assert eqx.tree_equal(result.model, train(sequences(3)).model)


def test_sequences_of_several_lengths():
    data = [*sequences(1), *sequences(1, 4), *sequences(1, 1)]
    assert train(data, update=3).losses.shape == (3,)


@pytest.mark.parametrize("progress", [False, True])
def test_progress_bar(capsys, progress):
    train(sequences(3), progress=progress)
    shown = capsys.readouterr()
    assert not shown.out
    assert ("3/3" in shown.err and "loss=" in shown.err) == progress == bool(shown.err)


@pytest.mark.parametrize("update", ["epoch", 0, -1, 2.5, None])
def test_update_out_of_range(update):
    with pytest.raises(ValueError, match="update: expected 'sequence', 'step' or a number of steps >= 1, got"):
        # The bare function: a type that is not even right shall be told in the library's own words.
        getattr(se.fit, "__wrapped__", se.fit)(
            se.D_RTRL(), squared, ADAM, net(), sequences(1), state=net().init_state(BATCH), update=update
        )


def test_no_data():
    with pytest.raises(ValueError, match=r"data: expected at least one \(xs, ys\), got none"):
        train(iter(()))


@pytest.mark.parametrize("steps", [3, 5, 0])
def test_targets_of_another_length(steps):
    with pytest.raises(ValueError, match="xs, ys: expected one common number of steps"):
        train([(np.ones((4, BATCH, 3)), np.ones((steps, BATCH, UNITS)))], update="step")
