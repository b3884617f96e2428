"""`fit`: when parameters change, which of them, and what goes on from call to call."""

import inspect
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import relative_error
from soak import few

import sparse_etrace as se
from sparse_etrace._train.updates import all_finite

UNITS, STEPS, BATCH = 5, 7, 2
ADAM, STILL = optax.adam(0.02), optax.sgd(0.0)
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


WHEN = [("sequence", STEPS, False), ("step", 1, False), (3, 3, False), (3, 3, True), (99, STEPS, True)]


@pytest.mark.parametrize("update, size, carry_over", few(WHEN, [WHEN[0], WHEN[1], WHEN[3]]))
def test_when_parameters_change(x64, update, size, carry_over):
    data = sequences(2)
    result = train(data, update=update, carry=carry_over)
    model, means = by_hand(data, size, carry_over)
    assert relative_error((trained(result), result.losses), (model, np.array(means))) < 1e-10


def test_losses_are_means_per_step_of_each_sequence():
    result = train(iter(sequences(3)), learner=se.BPTT())
    assert result.losses.shape == (3,) and result.losses.dtype == float
    assert isinstance(result, se.FitResult) and result.carry.state.shape == (BATCH, UNITS)
    still = train(sequences(1), optimizer=STILL)
    xs, ys = sequences(1)[0]
    out = jax.lax.scan(lambda h, x: net()(h, x), net().init_state(BATCH), jnp.asarray(xs))[1]
    np.testing.assert_allclose(still.losses, [np.mean((out - ys) ** 2)], rtol=1e-6)


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[1:2]), ids=lambda learner: type(learner).__name__)
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
    second = train(data[2:], model=first.model, update=se.Update(opt_state=first.opt_state))
    forgetful = train(data[2:], model=first.model)
    assert eqx.tree_equal(second.model, whole.model) and eqx.tree_equal(second.opt_state, whole.opt_state)
    assert np.array_equal(np.concatenate([first.losses, second.losses]), whole.losses)
    assert not eqx.tree_equal(forgetful.model, whole.model)


def test_a_carry_goes_on_from_sequence_to_sequence(x64):
    xs, ys = sequences(1, 12)[0]
    whole = train([(xs, ys)], update=3)
    parts = train([(xs[:6], ys[:6]), (xs[6:], ys[6:])], update=3, carry=True)
    apart = train([(xs[:6], ys[:6]), (xs[6:], ys[6:])], update=3)
    assert relative_error(trained(parts), trained(whole)) < 1e-12
    assert relative_error(parts.carry.traces, whole.carry.traces) < 1e-12
    assert relative_error(trained(apart), trained(whole)) > 1e-6


CARRIES = [*LEARNERS, se.UORO(jax.random.key(1))]


@pytest.mark.parametrize("learner", few(CARRIES, [CARRIES[0], CARRIES[3]]), ids=lambda r: type(r).__name__)
def test_a_carry_goes_on_from_call_to_call(x64, learner):
    """In windows that are shorter than the sequences; without the carry it is another training."""
    data, options = sequences(4), {"learner": learner, "carry": True}
    whole = train(data, update=3, **options)
    first = train(data[:2], update=3, **options)
    again = {"model": first.model, "update": se.Update(3, opt_state=first.opt_state)}
    second = train(data[2:], **again, **options | {"carry": first.carry})
    assert eqx.tree_equal(second[:3], whole[:3])
    assert np.array_equal(np.concatenate([first.losses, second.losses]), whole.losses)
    forgetful = train(data[2:], **again, **options)
    assert relative_error(trained(forgetful), trained(whole)) > 1e-6


def test_a_carry_of_ones_own_loop(x64):
    """`fit` goes on from where a loop of `online_grad` ended."""
    data, learner, model = sequences(2), LEARNERS[0], net()
    carry = learner.init(model, model.init_state(BATCH), jnp.asarray(data[0][0][0]))
    carry = se.online_grad(learner, squared, model, carry, *data[0])[2]
    result = train(data[1:], carry=carry)
    losses, grads, carry = se.online_grad(learner, squared, model, carry, *data[1])
    changes, _ = ADAM.update(grads, ADAM.init(eqx.filter(model, se.trainable(model))))
    expected = eqx.apply_updates(model, changes)
    assert relative_error(trained(result), eqx.filter(expected, se.trainable(expected))) < 1e-12
    assert relative_error((result.losses[0], result.carry.traces), (jnp.mean(losses), carry.traces)) < 1e-12


def other_wiring(model):
    conn = se.Connectivity.from_edges(np.arange(UNITS), np.roll(np.arange(UNITS), 2), shape=(UNITS, UNITS))
    return eqx.tree_at(lambda m: m.rec.op, model, se.SpMatMulOp(conn))


OTHERS = {
    "learner": (se.BPTT(), net, BATCH, r"another: .traces.* is None, here float32"),
    "batch": (se.D_RTRL(), net, 1, r"another: 'state' is float32\[1, 5\], here float32\[2, 5\]. Take the carry of"),
    "wiring": (
        se.D_RTRL(),
        lambda: other_wiring(net()),
        BATCH,
        "it is of another connectivity: .* another 'rec.op.conn",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_carry_of_something_else(name):
    learner, make, batch, words = OTHERS[name]
    model = make()
    carry = learner.init(model, model.init_state(batch), jnp.zeros((batch, 3)))
    with pytest.raises(ValueError, match=f"carry: .*{words}"):
        train(sequences(1), carry=carry)


def test_a_carry_that_is_none():
    with pytest.raises(
        TypeError, match="carry: expected True, False or a carry, got FitResult. A result has one, .carry"
    ):
        fit = getattr(se.fit, "__wrapped__", se.fit)
        fit(LEARNERS[0], squared, ADAM, net(), sequences(1), state=net().init_state(BATCH), carry=train(sequences(1)))


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


# --- what is recorded, and what ends it ------------------------------------------------------------------------------


def mean_error(out, y):
    return jnp.mean(jnp.abs(out - y))


def forward(model, xs):
    return jax.lax.scan(lambda h, x: model(h, x), model.init_state(BATCH), jnp.asarray(xs))[1]


def test_metrics_and_validation():
    data, held_out = sequences(4), sequences(2, 4)
    options = {"metrics": {"error": mean_error}, "validation": se.Validation(held_out, every=2)}
    result = train(data, optimizer=STILL, **options)
    names = ["updates", "loss", "error", "validation_loss", "validation_error"]
    assert list(result.metrics) == names and result.stopped == "end of data"
    assert result.metrics["updates"].tolist() == [1, 2, 3, 4]
    outs = [forward(result.model, xs) for xs, _ in data]
    expected = [[fn(out, y) for out, (_, y) in zip(outs, data)] for fn in (squared, mean_error)]
    np.testing.assert_allclose([result.losses, result.metrics["error"]], expected, rtol=1e-5)
    for name, fn in (("validation_loss", squared), ("validation_error", mean_error)):
        want = np.mean([fn(forward(result.model, xs), ys) for xs, ys in held_out])
        np.testing.assert_allclose(result.metrics[name], [np.nan, want, np.nan, want], rtol=1e-5)
    frame = result.to_dataframe()
    assert list(frame.columns) == names and frame.shape == (4, 5)


def test_metrics_in_any_order_of_their_names():
    data = sequences(1)
    metrics = {name: lambda out, y, k=k: jnp.mean(out) + k for k, name in enumerate(("z", "b", "12", "3"))}
    found = train(data, optimizer=STILL, metrics=metrics, validation=data).metrics
    assert list(found) == ["updates", "loss", *metrics, "validation_loss", *(f"validation_{name}" for name in metrics)]
    mean = float(jnp.mean(forward(train(data, optimizer=STILL).model, data[0][0])))
    for prefix in "", "validation_":
        np.testing.assert_allclose([found[prefix + name][0] for name in metrics], mean + np.arange(4), atol=1e-5)


def test_validation_does_not_learn_and_one_pair_will_do():
    alone = train(sequences(3))
    beside = train(sequences(3), validation=sequences(1)[0], metrics={"error": mean_error})
    assert eqx.tree_equal(alone.model, beside.model) and np.array_equal(alone.losses, beside.losses)


def test_patience_returns_the_best_model():
    """The target of the validation is what the untrained model does, so that each update makes it worse."""
    xs = sequences(1)[0][0]
    data = [(xs, np.zeros((STEPS, BATCH, UNITS)))] * 9
    aim = (xs, np.asarray(forward(train(data[:1]).model, xs)))
    seen = []
    result = train(data, validation=se.Validation(aim, patience=3), callbacks=lambda now: seen.append(now.model))
    assert result.stopped == "patience" and len(result.losses) == 4
    assert np.argmin(result.metrics["validation_loss"]) == 0
    assert eqx.tree_equal(result.model, seen[0]) and not eqx.tree_equal(result.model, seen[-1])
    assert train(data[:2], validation=se.Validation(aim, patience=3)).stopped == "end of data"


def test_patience_before_any_validation_returns_what_was_trained():
    data = sequences(2)
    result = train(data, validation=se.Validation(data, every=5, patience=1))
    assert eqx.tree_equal(result.model, train(data).model)


@pytest.mark.parametrize("several", [False, True])
def test_a_callback_ends_it(several):
    seen = []

    def enough(now):
        seen.append(now)
        return now.sequences == 2

    result = train(sequences(4), callbacks=[lambda now: None, enough] if several else enough, update=3)
    assert result.stopped == "callback" and len(result.losses) == 2
    assert [now.updates for now in seen] == [3, 6]
    assert seen[-1].metrics == {"updates": 6, "loss": result.losses[-1]}
    assert eqx.tree_equal((seen[-1].model, seen[-1].opt_state), (result.model, result.opt_state))


@pytest.mark.parametrize("make", [np.bool_, jnp.asarray])
def test_truth_of_other_types_ends_it_as_well(make):
    result = train(sequences(3), callbacks=lambda now: make(now.sequences == 2))
    assert result.stopped == "callback" and len(result.losses) == 2


def test_a_callback_that_returns_something_else():
    with pytest.raises(TypeError, match="callbacks: expected None, a truth value or a text, got 1"):
        train(sequences(1), callbacks=lambda now: 1)


def test_an_optimizer_that_is_none():
    fit = getattr(se.fit, "__wrapped__", se.fit)
    with pytest.raises(TypeError, match=r"optimizer: expected one of optax such as optax.adam\(1e-3\), got <function"):
        fit(LEARNERS[0], squared, optax.adam, net(), sequences(1), state=net().init_state(BATCH))


def test_a_learner_that_is_none():
    fit = getattr(se.fit, "__wrapped__", se.fit)
    with pytest.raises(TypeError, match=r"learner: expected a learner such as se.D_RTRL\(\), got <class"):
        fit(se.D_RTRL, squared, ADAM, net(), sequences(1), state=net().init_state(BATCH))


@pytest.mark.parametrize("name", ["loss", "updates", "validation_error"])
def test_metrics_with_the_name_of_a_column(name):
    with pytest.raises(ValueError, match=f"metrics: expected a name that no other column has, got '{name}'"):
        train(sequences(1), metrics={name: mean_error})


@pytest.mark.parametrize("metric, got", [(lambda out, y: out - y, r"shape \(2, 5\)"), (lambda out, y: None, "None")])
def test_metrics_that_are_no_scalars(metric, got):
    with pytest.raises(
        ValueError, match=f"metrics: expected a scalar of 'odd' for each step, got {got}. Average over batch and units"
    ):
        train(sequences(1), metrics={"odd": metric})


def test_data_that_are_no_pairs():
    fit = getattr(se.fit, "__wrapped__", se.fit)
    for data, got in (([(1, 2, 3)], "3 of them"), ([np.ones(3)], "ndarray")):
        with pytest.raises(ValueError, match=rf"data: expected pairs \(xs, ys\), got {got}"):
            fit(se.D_RTRL(), squared, ADAM, net(), data, state=net().init_state(BATCH))


# --- optimizers that ask for the loss --------------------------------------------------------------------------------


def total(model, pair, start):
    out = jax.lax.scan(lambda h, x: model(h, x), start, jnp.asarray(pair[0]))[1]
    return jnp.sum(jax.vmap(squared)(out, jnp.asarray(pair[1])))


@pytest.mark.parametrize("update", ["sequence", 3])
def test_an_optimizer_that_asks_for_the_value(x64, update):
    """Polyak's step is the loss by the squared gradient; a plateau divides the rate."""
    data = sequences(1)
    got = trained(train(data, optimizer=optax.polyak_sgd(), update=update))
    learner, model = se.D_RTRL(), net()
    carry = learner.init(model, model.init_state(BATCH), jnp.asarray(data[0][0][0]))
    size = STEPS if update == "sequence" else update
    for t in range(0, STEPS, size):
        losses, grads, carry = se.online_grad(learner, squared, model, carry, *(a[t : t + size] for a in data[0]))
        rate = jnp.minimum(jnp.sum(losses) / sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)), 1.0)
        model = eqx.apply_updates(model, jax.tree.map(lambda g, rate=rate: -rate * g, grads))
    assert relative_error(got, eqx.filter(model, se.trainable(model))) < 1e-6


def test_a_plateau_lowers_the_rate():
    plateau = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    result = train(sequences(1) * 5, optimizer=plateau)
    state = result.opt_state[1]
    assert float(state.scale) == 0.5**4
    np.testing.assert_allclose(float(state.best_value), STEPS * result.losses[0], rtol=1e-5)


@pytest.mark.parametrize("search", few(["lbfgs", "backtracking"], ["backtracking"]))
def test_an_optimizer_that_searches_along_a_line(x64, search):
    """It sees what BPTT says at each point, here with BPTT as the rule; without one it would not move."""
    data, learner = sequences(1), se.BPTT()
    line = optax.scale_by_backtracking_linesearch(20, store_grad=True)
    optimizer = optax.lbfgs() if search == "lbfgs" else optax.chain(optax.sgd(1.0), line)
    result = train(data * 3, learner=learner, optimizer=optimizer)
    model, start = net(), net().init_state(BATCH)
    params, rest = eqx.partition(model, se.trainable(model))
    value_fn = lambda p: total(eqx.combine(p, rest), data[0], start)
    opt_state = optimizer.init(params)

    @jax.jit
    def one(params, opt_state):
        value, grad = jax.value_and_grad(value_fn)(params)
        changes, opt_state = optimizer.update(grad, opt_state, params, value=value, grad=grad, value_fn=value_fn)
        return eqx.apply_updates(params, changes), opt_state

    for _ in range(3):
        params, opt_state = one(params, opt_state)
    assert relative_error(trained(result), params) < 1e-6 and result.losses[2] < result.losses[0]


def test_the_gradient_of_the_rule_at_other_parameters(x64):
    """Also after the first update, where there are traces."""

    def update(grads, state, params=None, *, value_fn, **others):
        value, by = jax.value_and_grad(value_fn)(jax.tree.map(lambda p: 1.1 * p, params))
        return jax.tree.map(jnp.zeros_like, grads), (value, by)

    looking = optax.GradientTransformationExtraArgs(lambda params: (jnp.zeros(()), params), update)
    model, learner, (xs, ys) = net(), se.D_RTRL(), map(jnp.asarray, sequences(1)[0])
    got = train([(xs, ys)], optimizer=looking, update=4).opt_state
    carry = learner.init(model, model.init_state(BATCH), xs[0])
    carry = se.online_grad(learner, squared, model, carry, xs[:4], ys[:4])[2]
    there = jax.tree.map(lambda p, t: 1.1 * p if t else p, model, se.trainable(model))
    losses, grads, _ = se.online_grad(learner, squared, there, carry, xs[4:], ys[4:])
    assert relative_error(got, (jnp.sum(losses), grads)) < 1e-12


OPTIMIZERS = [ADAM, optax.polyak_sgd()]


@pytest.mark.parametrize(
    "optimizer", few([(o,) for o in OPTIMIZERS], [(o,) for o in OPTIMIZERS[1:]]), ids=["adam", "polyak"]
)
def test_strict_promotion_of_types(x64, optimizer):
    options = {"metrics": {"error": mean_error}, "validation": se.Validation(sequences(1), patience=3), "update": 3}
    expected = train(sequences(2), optimizer=optimizer, **options)
    with jax.numpy_dtype_promotion("strict"):
        got = train(sequences(2), optimizer=optimizer, **options)
    assert relative_error((trained(got), got.losses), (trained(expected), expected.losses)) < 1e-12


def test_an_optimizer_that_asks_for_something_else():
    def update(grads, state, params=None, *, hessian, **others):
        return grads, state

    asking = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(
        TypeError, match="optimizer: expected one that asks for value, .* at most, got another .*'hessian'"
    ):
        train(sequences(1), optimizer=asking)

    def broken(grads, state, params=None, **others):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="^mine"):
        train(sequences(1), optimizer=optax.GradientTransformationExtraArgs(lambda params: (), broken))


def test_inside_a_transformation():
    """No derivative through it, by what it is given or by what the loss holds, is taken for zero."""
    words = "fit: expected arrays with values, got some .* traces. .* The gradient of a sequence is `grads` of"
    model, data = net(), sequences(1)
    weights = model.rec.value["weight"]

    def by_model(w):
        return jnp.sum(train(data, eqx.tree_at(lambda m: m.rec.value["weight"], model, w)).losses)

    def by_loss(scale):
        state = net().init_state(BATCH)
        loss = lambda out, y: scale * squared(out, y)
        return jnp.sum(se.fit(se.D_RTRL(), loss, ADAM, model, data, state=state, progress=False).losses)

    for call in (jax.grad(by_model), jax.jit(by_model), jax.vmap(lambda w: by_model(w))):
        with pytest.raises(TypeError, match=words):
            call(jnp.stack([weights] * 2) if call.__name__ == "<lambda>" else weights)
    with pytest.raises(TypeError, match=words):
        jax.grad(by_loss)(1.0)
    xs, ys = data[0]
    with pytest.raises(TypeError, match=words):
        jax.grad(lambda xs: jnp.sum(train([(xs, ys)]).losses))(jnp.asarray(xs, jnp.float32))


def test_ctrl_c_returns_what_was_learned():
    data = sequences(4)

    def stream():
        yield from data[:2]
        raise KeyboardInterrupt

    result = train(stream())
    assert result.stopped == "interrupted"
    assert eqx.tree_equal(result.model, train(data[:2]).model) and len(result.losses) == 2
    whole = train(data[2:], model=result.model, update=se.Update(opt_state=result.opt_state))
    assert eqx.tree_equal(whole.model, train(data).model)


def test_another_error_of_the_stream_is_not_swallowed():
    def stream():
        yield from sequences(1)
        raise OSError("no more tape")

    with pytest.raises(OSError, match="no more tape"):
        train(stream())


COUNTS = {
    "validation every": lambda n: se.Validation(sequences(1), every=n),
    "patience": lambda n: se.Validation(sequences(1), patience=n),
    "checkpoint every": lambda n: se.Checkpoint("run", every=n),
    "chunk": lambda n: se.Update(chunk=n),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_out_of_range(name):
    for number in (0, 1.5):
        words = f"{name.split()[-1]}: expected a whole number of at least 1, got {number}"
        with pytest.raises(ValueError, match=words):
            COUNTS[name](number)


def test_nothing_held_out():
    with pytest.raises(ValueError, match=r"validation: expected at least one \(xs, ys\), got none"):
        train(sequences(1), validation=[])


def test_few_arguments():
    kinds = [p.kind for p in inspect.signature(inspect.unwrap(se.fit)).parameters.values()]
    assert (
        kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) == 5 and kinds.count(inspect.Parameter.KEYWORD_ONLY) == 9
    )


FORMER = {
    "chunk": "update=se.Update(chunk=...)",
    "opt_state": "update=se.Update(opt_state=...)",
    "carry_over": "carry=True",
    "validate_every": "validation=se.Validation(data, every=...)",
    "patience": "validation=se.Validation(data, patience=...)",
    "checkpoint_every": "checkpoint=se.Checkpoint(path, every=...)",
}


@pytest.mark.parametrize("name", [*FORMER, "validations"])
def test_arguments_that_it_does_not_have(name):
    now = f"Write {FORMER[name]}." if name in FORMER else "help(se.fit) names those that it has."
    with pytest.raises(TypeError, match=re.escape(f"{name}: expected an argument of fit, got another. {now}")):
        train(sequences(1), **{name: 1})


def test_a_path_and_a_checkpoint_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    once = train(sequences(2), checkpoint="~/run")
    again = train(sequences(2), checkpoint=se.Checkpoint(tmp_path / "run"), callbacks=lambda now: 1)  # never called
    assert eqx.tree_equal(once.model, again.model) and len(again.losses) == 2


def test_one_pair_is_no_data():
    with pytest.raises(
        ValueError, match=r"data: expected pairs \(xs, ys\), got a tuple, which is one pair. Pass \[\(xs, ys\)\]"
    ):
        # The bare function: that one pair is no type that it takes shall be told in the library's own words.
        fit = getattr(se.fit, "__wrapped__", se.fit)
        fit(se.D_RTRL(), squared, ADAM, net(), sequences(1)[0], state=net().init_state(BATCH))


def with_mask(pair):
    """Inputs and targets that are pairs of arrays themselves."""
    return tuple((leaf, np.ones(leaf.shape[:2], np.float32)) for leaf in pair)


class Masked(eqx.Module):
    cell: se.cells.LeakyRate

    def __call__(self, state, x):
        state, out = self.cell(state, x[0] * x[1][:, None])
        return state, out


def masked(out, y):
    return squared(out * y[1][:, None], y[0] * y[1][:, None])


def test_pairs_of_pairs_are_not_taken_for_several():
    """A tuple is one pair whatever it holds, and a list several."""
    data, held_out = sequences(2), sequences(2, 4)
    plain = train(data, validation=held_out[1])
    options = {"state": net().init_state(BATCH), "progress": False}

    def run(pairs, **others):
        return se.fit(se.D_RTRL(), masked, ADAM, Masked(net()), pairs, **options, **others)

    all_of_them = [*map(with_mask, held_out)]
    one, several = (run([*map(with_mask, data)], validation=v) for v in (all_of_them[1], all_of_them))
    assert np.array_equal(one.metrics["validation_loss"], plain.metrics["validation_loss"])
    several_plain = train(data, validation=held_out)
    assert np.array_equal(several.metrics["validation_loss"], several_plain.metrics["validation_loss"])
    for wrong in (tuple(map(with_mask, held_out)), [*with_mask(held_out[0])]):
        with pytest.raises(ValueError, match="validation: expected (.xs, ys. structured|pairs)"):
            run([*map(with_mask, data)], validation=wrong)
    with pytest.raises(ValueError, match=r"data: expected pairs \(xs, ys\), got a tuple, which is one pair. Pass"):
        run(with_mask(data[0]))


# --- what is not finite ----------------------------------------------------------------------------------------------


def test_an_infinite_state_is_found():
    """Units that grow without bound: step, unit and parameter are named, and what was learned before is kept."""
    model = eqx.tree_at(lambda m: m.activation, net(), lambda v: v)
    model = eqx.tree_at(lambda m: m.rec.value["weight"], model, model.rec.value["weight"].at[2].set(1e20))
    still, (xs, ys) = (np.zeros((STEPS, BATCH, 3)), np.zeros((STEPS, BATCH, UNITS))), sequences(1)[0]
    with pytest.raises(se.NonFiniteError) as caught:
        train([still, (xs, ys)], model=model, update=STEPS)
    h, states, losses = model.init_state(BATCH), [], []
    for x, y in zip(xs, ys):
        h, out = model(h, jnp.asarray(x))
        states.append(np.asarray(h))
        losses.append(float(squared(out, y)))
    step = int(np.argmin(np.isfinite(losses)))
    late, batch, unit = np.argwhere(~np.isfinite(states))[0]
    said = str(caught.value)
    assert f"sequence 1: the loss is {losses[step]} at step {step}; " in said
    assert f"state is {states[late][batch, unit]} from step {late} on, unit {unit}, batch element {batch}; " in said
    assert "; the gradient of \"rec.value['weight']\" is " in said or "; the gradient of \"inp.value['" in said
    assert caught.value.fit.losses.shape == (1,) and caught.value.fit.stopped == "not finite"
    assert eqx.tree_equal(caught.value.fit.model, train([still], model=model).model)


@pytest.mark.parametrize("optimizer", [ADAM, optax.chain(optax.zero_nans(), optax.clip(1.0), optax.sgd(0.1))])
def test_a_gradient_that_is_not_finite_names_its_synapse(optimizer):
    """The root of a weight of zero: the loss is finite, its derivative is not, also where an update hides that."""
    conn = se.Connectivity.from_edges([0, 1, 2, 3, 4], [3, 4, 0, 1, 2], shape=(UNITS, UNITS))
    weight = jnp.ones(UNITS).at[2].set(0.0)
    rec = se.ETraceParam({"weight": weight}, se.SpMatMulOp(conn, weight_fn=jnp.sqrt))
    model = eqx.tree_at(lambda m: m.rec, net(), rec)
    pre, post = int(conn.pre[2]), int(conn.post[2])
    with pytest.raises(
        se.NonFiniteError,
        match=rf"of \"rec.value\['weight'\]\" is -?(inf|nan) at entry 2, the synapse {pre} -> unit {post}",
    ):
        train(sequences(1), model=model, optimizer=optimizer)


def test_a_loop_without_end_on_nan_is_not_entered():
    """Where an update hides what is not finite, which is marked by NaN."""
    turns = []

    def step(weight, state, x):
        far = jax.lax.while_loop(lambda s: ~(s[0] < 0.1) & (s[1] < 50), lambda s: (s[0] / 2, s[1] + 1), (1 + weight, 0))
        jax.debug.callback(turns.append, far[1])
        return state, jnp.sqrt(weight) * x @ jnp.ones((3, UNITS))

    hiding = optax.chain(optax.zero_nans(), optax.clip(1.0), optax.sgd(0.1))
    model, state = jax.tree_util.Partial(step, jnp.zeros(())), jnp.zeros(())
    with pytest.raises(se.NonFiniteError, match="the gradient of"):
        se.fit(se.BPTT(), squared, hiding, model, sequences(1), state=state, update="step", progress=False)
    jax.effects_barrier()
    assert max(turns) < 50


def test_a_gradient_of_a_bias_names_its_unit():
    model = eqx.tree_at(lambda m: m.inp.value["bias"], net(), jnp.zeros(UNITS).at[3].set(jnp.nan))
    with pytest.raises(
        se.NonFiniteError, match=r"state is nan from step 0 on, unit 3, batch element 0; the gradient of"
    ):
        train(sequences(1), model=model)


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "complex64"])
def test_whether_all_is_finite(dtype):
    """Sums of the largest numbers are not, the numbers are; compiled and not."""
    most = jnp.full(5, jnp.finfo(dtype).max, dtype)
    for find in all_finite, jax.jit(all_finite):
        assert find([most, -most, jnp.arange(3)])
        assert not any(find([most, most.at[3].set(bad)]) for bad in (jnp.inf, -jnp.inf, jnp.nan))


def test_an_update_that_is_not_finite():
    with pytest.raises(
        se.NonFiniteError, match=r"sequence 0: \"inp.value\['bias'\]\" is nan at entry 0 after the update at"
    ):
        train(sequences(1), optimizer=optax.scale(np.nan))


def test_a_validation_that_is_not_finite():
    xs, ys = sequences(1)[0]
    with pytest.raises(se.NonFiniteError, match="sequence 1: the validation loss after it is nan, though the training"):
        train(sequences(3), validation=se.Validation((xs, ys * np.nan), every=2))


@pytest.mark.parametrize("which", ["xs", "ys"])
def test_data_that_is_not_finite(which):
    xs, ys = sequences(1)[0]
    (xs if which == "xs" else ys)[4, 1, 2] = np.nan
    with pytest.raises(
        se.NonFiniteError, match=rf"sequence 1: {which} has nan at step 4, entry \(1, 2\). Mend the data"
    ):
        train([*sequences(1), (xs, ys)], update=3)


def test_a_loss_that_is_no_function():
    flip = iter([np.float32(np.nan)] + [np.float32(0)] * 1000)

    def loss(out, y):
        value = jax.experimental.io_callback(lambda: next(flip), jax.ShapeDtypeStruct((), jnp.float32))
        return squared(out, y) + jax.lax.stop_gradient(value)

    with pytest.raises(se.NonFiniteError, match="sequence 0: it is finite when the sequence is repeated"):
        se.fit(se.BPTT(), loss, ADAM, net(), sequences(1), state=net().init_state(BATCH), progress=False)


# --- batches ---------------------------------------------------------------------------------------------------------


def numbered(count):
    """Sequence `k` holds the number `k` throughout."""
    xs = np.broadcast_to(np.arange(count, dtype=np.float32)[None, :, None], (3, count, 2))
    return {"a": xs, "b": xs[..., 0]}, xs[..., :1]


def test_batches_in_order():
    batches = se.Batches(*numbered(6), size=2, epochs=2)
    assert len(batches) == 6
    for k, (xs, ys) in enumerate(batches):
        assert ys.shape == (3, 2, 1) and xs["a"].shape == (3, 2, 2) and xs["b"].shape == (3, 2)
        assert ys[0, :, 0].tolist() == [2 * (k % 3), 2 * (k % 3) + 1] == xs["b"][2].tolist()
    assert [pair[1][0, 0, 0] for pair in batches[1:3]] == [2, 4] and batches[-1][1][0, 0, 0] == 4


def test_batches_are_shuffled_anew_each_epoch_and_by_key():
    def order(key, **options):
        batches = se.Batches(*numbered(7), size=3, key=jax.random.key(key), epochs=3, drop_last=True, **options)
        return np.array([ys[0, :, 0] for _, ys in batches]).reshape(3, 6)

    first = order(0)
    assert all(len(set(epoch)) == 6 for epoch in first.tolist()) and not (first[0] == first[1]).all()
    assert np.array_equal(first, order(0)) and not np.array_equal(first, order(1))
    batches = se.Batches(*numbered(7), size=3, key=jax.random.key(0), epochs=3, drop_last=True)
    assert batches[4][1][0, :, 0].tolist() == first[2, :3].tolist()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"size": 4}, "size: expected a divisor of 6 sequences, got 4. Choose another, or leave out 2"),
        ({"size": 0}, "size: expected 1 to 6, the number of sequences, got 0"),
        ({"size": 7}, "size: expected 1 to 6"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"ys": np.ones((3, 5))}, r"xs, ys: expected arrays \(time, sequences, ...\) with both in common"),
        ({"ys": np.ones(3)}, r"xs, ys: expected arrays \(time, sequences, ...\)"),
    ],
)
def test_batches_out_of_range(change, words):
    xs, ys = numbered(6)
    with pytest.raises(ValueError, match=words):
        se.Batches(**{"xs": xs, "ys": ys, "size": 2} | change)
    with pytest.raises(IndexError, match="k: expected a batch from 0 to 2, got 3"):
        se.Batches(xs, ys, size=2)[3]


def test_batches_train():
    xs, ys = (np.concatenate(leaves, axis=1) for leaves in zip(*sequences(3)))
    result = train(se.Batches(xs, ys, BATCH))
    assert eqx.tree_equal(result.model, train(sequences(3)).model)


def test_a_function_of_the_position_is_data():
    data, asked = sequences(3), []

    def since(position):
        asked.append(position)
        return data[position:]

    assert eqx.tree_equal(train(since).model, train(data).model) and asked == [0]
