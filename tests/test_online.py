"""`online_grad`: what goes in, what comes out, and what it may be wrapped in."""

from contextlib import nullcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
from oracles import relative_error
from soak import few

import sparse_etrace as se
from sparse_etrace._graph import sorting
from sparse_etrace._rule.term_engine import TermEngine
from sparse_etrace._train.online import read_stream

LEARNERS = [se.D_RTRL(), se.ES_D_RTRL(decay=0.8), se.BPTT()]
UNITS = 4


def name(learner):
    return type(learner).__name__


def squared(out, y):
    return jnp.sum((out - y) ** 2)


def net(key=0):
    """Recurrent leaky units with a bias."""
    keys = jax.random.split(jax.random.key(key), 2)
    inp = se.ETraceParam({"weight": jax.random.normal(keys[0], (3, UNITS)), "bias": jnp.zeros(UNITS)}, se.MatMulOp())
    pre, post = np.nonzero(1 - np.eye(UNITS))
    conn = se.Connectivity.from_edges(pre, post, shape=(UNITS, UNITS))
    rec = se.ETraceParam({"weight": jax.random.normal(keys[1], (conn.num_synapses,))}, se.SpMatMulOp(conn))
    return se.cells.LeakyRate(UNITS, inp, rec, decay=0.7)


def stream(steps=7, key=9):
    keys = jax.random.split(jax.random.key(key), 2)
    return jax.random.normal(keys[0], (steps, 3)), jax.random.normal(keys[1], (steps, UNITS))


def start(learner, model, xs, state=None):
    state = model.init_state() if state is None else state
    return learner.init(model, state, jax.tree.map(lambda a: a[0], xs))


def gradient(learner, model, xs, ys, **options):
    return se.online_grad(learner, squared, model, start(learner, model, xs), xs, ys, **options)


# --- errors ----------------------------------------------------------------------------------------------------------


EVERY = [
    *LEARNERS, se.Hybrid(), se.OSTL(), se.OTTT(decay=0.7), se.EProp("state"), se.RFLO("state", key=jax.random.key(1)),
    se.ThreeFactor("state"), se.TBPTT(2), se.SnAp(2), se.RTRL(), se.UORO(key=jax.random.key(1)),
]  # fmt: skip


WRONG = [(learner, dtype) for learner in EVERY for dtype in ("int32", "bool", "complex64")]


@pytest.mark.parametrize("learner, dtype", few(WRONG, [*WRONG[:3], *WRONG[6:-6:6], *WRONG[-1:]]), ids=str)
def test_a_loss_without_a_real_derivative_is_refused(learner, dtype):
    model, (xs, ys) = net(), stream(3)
    losses = {"int32": lambda out, y: jnp.sum(out > y), "bool": lambda out, y: jnp.all(out > y)}
    loss = losses.get(dtype, lambda out, y: jnp.sum(out - y) * (1 + 1j))
    carry = start(learner, model, xs)
    message = f"loss_fn: expected a floating number, got {dtype}.*has_aux=True.*modulus"
    with pytest.raises(TypeError, match=message):
        se.online_grad(learner, loss, model, carry, xs, ys)
    with pytest.raises(TypeError, match="[Gg]rad.* requires real-"):
        eqx.filter_grad(lambda model: loss(learner.step(model, carry, xs[0])[1], ys[0]))(model)


def test_everything_that_learns_refuses_such_a_loss():
    model, (xs, ys), loss = net(), stream(3), lambda out, y: jnp.sum(out > y)
    with pytest.raises(TypeError, match="loss_fn: expected a floating number, got int32"):
        se.gradient_alignment(se.D_RTRL(), loss, model, model.init_state(), xs, ys)
    with pytest.raises(TypeError, match="loss_fn: expected a floating number, got int32"):
        se.fit(se.D_RTRL(), loss, optax.sgd(0.1), model, [(xs, ys)], state=model.init_state(), progress=False)


@pytest.mark.parametrize(
    "xs, ys",
    [
        (jnp.ones((5, 3)), jnp.ones((4, UNITS))),
        (jnp.ones((5, 3)), {"a": jnp.ones((5, UNITS)), "b": jnp.ones((6, 1))}),
        (jnp.ones((5, 3)), jnp.ones(())),
        (jnp.ones((0, 3)), jnp.ones((0, UNITS))),
        (None, None),
    ],
    ids=["two lengths", "in a pytree", "no time axis", "no steps", "no arrays"],
)
def test_lengths_that_do_not_fit(xs, ys):
    learner, model = se.D_RTRL(), net()
    carry = start(learner, model, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="xs, ys: expected one common number of steps >= 1"):
        se.online_grad(learner, squared, model, carry, xs, ys)


@pytest.mark.parametrize("chunk", [0, -3])
def test_chunk_out_of_range(chunk):
    with pytest.raises(ValueError, match=f"chunk: expected at least 1, got {chunk}"):
        gradient(se.D_RTRL(), net(), *stream(), chunk=chunk)


# --- time ------------------------------------------------------------------------------------------------------------


LENGTHS = [(learner, *lengths) for learner in LEARNERS[:2] for lengths in ((7, 3), (7, 16), (1, None), (18, None))]


@pytest.mark.parametrize("learner, steps, chunk", few(LENGTHS, [LENGTHS[k] for k in (0, 3, 5)]), ids=str)
def test_the_window_changes_nothing(x64, learner, steps, chunk):
    model, (xs, ys) = net(), stream(steps)
    losses, grads, carry = gradient(learner, model, xs, ys, chunk=chunk)
    expected = gradient(learner, model, xs, ys, chunk=1)
    assert losses.shape == (steps,)
    assert relative_error((losses, grads, carry.state), (*expected[:2], expected[2].state)) < 1e-12


@pytest.mark.parametrize(
    "steps, chunk, lengths",
    [(40, 16, {10}), (40, None, {20}), (41, 16, {16, 9}), (12, 5, {4}), (7, 3, {3, 1}), (6, 1, {1}), (18, None, {18})],
)
def test_windows_are_of_one_length_where_they_can(monkeypatch, steps, chunk, lengths):
    """Each length is a program of its own, which takes longer to compile than a window takes."""
    seen, model, (xs, ys) = set(), net(), stream(steps)
    real = TermEngine.window
    monkeypatch.setattr(TermEngine, "window", lambda *args: seen.add(len(args[3])) or real(*args))

    carry = se.D_RTRL().init(model, model.init_state(), xs[0])
    jax.eval_shape(lambda xs: se.online_grad(se.D_RTRL(), squared, model, carry, xs, ys, chunk)[0], xs)
    assert seen == lengths


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.ES_D_RTRL(decay=0.8), se.OSTL(), se.SnAp(n=2)], ids=name)
def test_a_gradient_reads_a_model_once(learner):
    """However many windows it has, and whatever their lengths."""
    calls = []

    class Seen(eqx.Module):
        net: eqx.Module

        def __call__(self, state, x):
            calls.append(x)
            return self.net(state, x)

    model, (xs, ys) = Seen(net()), stream(40)
    carry = learner.init(model, model.net.init_state(), xs[0])
    calls.clear()
    se.online_grad(learner, squared, model, carry, xs, ys, chunk=16)
    assert len(calls) == 1


def test_the_window_of_bptt_cuts(x64):
    """Each window of BPTT is a gradient of its own; without `chunk` there is one window."""
    model, (xs, ys) = net(), stream(7)
    whole, split = (gradient(se.BPTT(), model, xs, ys, chunk=chunk)[1] for chunk in (None, 3))
    carry, parts = se.Carry(model.init_state(), None), []
    for part in (slice(0, 3), slice(3, 6), slice(6, 7)):
        _, grads, carry = se.online_grad(se.BPTT(), squared, model, carry, xs[part], ys[part])
        parts.append(grads)
    assert relative_error(split, jax.tree.map(lambda *g: sum(g), *parts)) < 1e-12
    assert relative_error(split, whole) > 1e-3

    def total(model):
        _, out = jax.lax.scan(lambda state, x: model(state, x), model.init_state(), xs)
        return squared(out, ys)

    assert relative_error(whole, eqx.filter(eqx.filter_grad(total)(model), se.trainable(model))) < 1e-12


# --- what goes in and comes out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[1:]), ids=name)
def test_has_aux(learner):
    model, (xs, ys) = net(), stream()

    def loss_fn(out, y):
        return squared(out, y), {"right": jnp.sum(out > y), "out": out, "none": jnp.zeros((0, 2))}

    carry = start(learner, model, xs)
    losses, grads, _, aux = se.online_grad(learner, loss_fn, model, carry, xs, ys, chunk=3, has_aux=True)
    assert (aux["right"].shape, aux["right"].dtype, aux["out"].shape) == ((7,), jnp.int32, (7, UNITS))
    assert aux["none"].shape == (7, 0, 2)
    np.testing.assert_allclose(losses, jnp.sum((aux["out"] - ys) ** 2, axis=1), rtol=1e-6)
    assert relative_error(grads, gradient(learner, model, xs, ys, chunk=3)[1]) < 1e-6


class Rich(eqx.Module):
    """Dictionaries everywhere: integers in the input, keys and counters in the state, anything in the output."""

    cell: se.cells.LeakyRate
    table: jax.Array

    def init_state(self):
        return {"h": self.cell.init_state(), "key": jax.random.key(5), "count": jnp.zeros((), jnp.int32)}

    def __call__(self, state, x):
        key, now = jax.random.split(state["key"])
        given = self.table[x["token"]] + x["now"] + 0.1 * jax.random.normal(now, (3,))
        h, out = self.cell(state["h"], given)
        out = {"h": out, "best": jnp.argmax(out), "on": out > 0, "count": state["count"], "none": None}
        return {"h": h, "key": key, "count": state["count"] + 1}, out


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[:1]), ids=name)
def test_pytrees_integers_and_keys(x64, learner):
    cell, (now, target) = net(), stream()
    model = Rich(cell, jax.random.normal(jax.random.key(1), (5, 3)))
    xs = {"token": np.arange(7) % 5, "now": np.asarray(now)}
    ys = (np.asarray(target), {"label": np.arange(7) % UNITS})

    def loss_fn(out, y):
        shift = 0.1 * out["count"] + 0.5 * out["on"].sum() + (out["best"] == y[1]["label"])
        return jnp.sum((out["h"] - y[0]) ** 2) * (1 + shift)

    with nullcontext() if isinstance(learner, se.BPTT) else pytest.warns(UserWarning, match="plain array 'table'"):
        carry = start(learner, model, xs)
    losses, grads, after = se.online_grad(learner, loss_fn, model, carry, xs, ys, chunk=3)
    assert int(after.state["count"]) == 7
    # The same numbers with the randomness and the table worked out by hand.
    key, noise = jax.random.key(5), []
    for _ in range(7):
        key, this = jax.random.split(key)
        noise.append(0.1 * jax.random.normal(this, (3,)))
    given = model.table[xs["token"]] + now + jnp.stack(noise)

    def plain(out, y):
        target, label, count = y
        shift = 0.1 * count + 0.5 * (out > 0).sum() + (jnp.argmax(out) == label)
        return jnp.sum((out - target) ** 2) * (1 + shift)

    expected = se.online_grad(
        learner, plain, cell, start(learner, cell, given), given, (target, ys[1]["label"], np.arange(7.0)), chunk=3
    )
    assert relative_error((losses, grads.cell), expected[:2]) < 1e-12
    assert jnp.array_equal(jax.random.key_data(after.state["key"]), jax.random.key_data(key))
    assert np.abs(grads.table).max() > 0


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[:1]), ids=name)
def test_no_targets(x64, learner):
    model, (xs, _) = net(), stream()
    carry = start(learner, model, xs)
    losses, grads, _ = se.online_grad(learner, lambda out, y: jnp.sum(out**2), model, carry, xs, None)
    expected = gradient(learner, model, xs, jnp.zeros((7, UNITS)))
    assert relative_error((losses, grads), expected[:2]) < 1e-12


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[1:]), ids=name)
def test_gradients_are_structured_like_the_model(learner):
    model, (xs, ys) = net(), stream()
    only_rec = eqx.tree_at(lambda m: m.rec, jax.tree.map(lambda _: False, model), replace=True)
    for train in (None, only_rec):
        chosen = type(learner)(train=train)
        _, grads, _ = gradient(chosen, model, xs, ys)
        expected = eqx.filter(model, se.trainable(model))
        if train is not None:
            expected = eqx.filter(expected, train)
            assert grads.inp.value == {"weight": None, "bias": None}
        assert jax.tree.structure(grads) == jax.tree.structure(expected)
        assert grads.rec.op.connectivity.pre is None and grads.decay.value is None
        for got, leaf in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype) and np.abs(got).max() > 0
        moved = eqx.apply_updates(model, grads)
        assert jnp.array_equal(moved.rec.op.connectivity.pre, model.rec.op.connectivity.pre)


# --- derivatives through it ------------------------------------------------------------------------------------------


class Unmarked(eqx.Module):
    """Mixed by a plain array, so that no rule finds its synapses."""

    mix: jax.Array

    def init_state(self):
        return jnp.zeros(UNITS)

    def __call__(self, h, x):
        h = jnp.tanh(self.mix @ h + x[0])
        return h, h


CUT = [*LEARNERS[:2], se.SnAp(n=2), se.TBPTT(2), se.UORO(jax.random.key(0)), se.RTRL()]


@pytest.mark.parametrize("learner", few(CUT, [CUT[0], CUT[3]]), ids=name)
def test_a_loss_of_the_carry_between_steps(x64, learner):
    """A loss over a loop of `step` has the gradient of `online_grad`; one that reads what goes on is an error."""
    model, (xs, ys) = Unmarked(jnp.ones((UNITS, UNITS)) / 3) if isinstance(learner, se.RTRL) else net(), stream(3)
    carry = start(learner, model, xs)
    parts = ("state in the loop", "last state", "last traces")

    @eqx.filter_jit
    @eqx.filter_grad
    def by(model, much):
        def one(carry, now):
            carry, out = learner.step(model, carry, now[0])
            return carry, squared(out, now[1]) + much[parts[0]] * jnp.sum(carry.state)

        last, losses = jax.lax.scan(one, carry, (xs, ys))
        traces = jax.tree.leaves(eqx.filter(last.traces, eqx.is_inexact_array))
        return jnp.sum(losses) + much[parts[1]] * jnp.sum(last.state) + much[parts[2]] * sum(map(jnp.sum, traces))

    nothing = dict.fromkeys(parts, 0.0)
    expected = gradient(learner, model, xs, ys)[1]
    assert relative_error(eqx.filter(by(model, nothing), se.trainable(model)), expected) < 1e-12
    for part in parts:
        with pytest.raises(eqx.EquinoxRuntimeError, match="carry: a loss reads what `step` returned for the next one"):
            by(model, nothing | {part: 1.0})


class Scaled(eqx.Module):
    scale: jax.Array

    def __call__(self, out, y):
        return squared(jnp.sin(self.scale * out), y)


@pytest.mark.parametrize("learner", [se.SnAp(n=2)], ids=name)
def test_derivatives_by_what_the_loss_holds(x64, learner):
    """They are those of what `online_grad` computes, with traces from the call before."""
    model, (xs, ys) = net(), stream()
    carry = gradient(learner, model, xs, ys)[2]

    def read(scale):
        losses, grads, _ = se.online_grad(learner, Scaled(scale), model, carry, xs, ys, 3)
        return jnp.stack([jnp.sum(losses), jnp.sum(grads.rec.value["weight"])])

    step = jnp.array(1e-6)
    expected = (read(1.0 + step) - read(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jacrev(read)(jnp.array(1.0)), expected, rtol=1e-6)


# --- wrapped ---------------------------------------------------------------------------------------------------------

TRACED = []


class Counting(eqx.Module):
    cell: se.cells.LeakyRate

    def init_state(self):
        return self.cell.init_state()

    def __call__(self, state, x):
        TRACED.append(1)
        return self.cell(state, x)


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[1:]), ids=name)
def test_the_second_call_does_not_compile(learner):
    model, (xs, ys) = Counting(net()), stream()
    carry = start(learner, model, xs)
    _, grads, carry = se.online_grad(learner, squared, model, carry, xs, ys)
    before = len(TRACED)
    for key in range(3):
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads))
        _, grads, carry = se.online_grad(type(learner)(), squared, model, carry, *stream(key=key))
    assert len(TRACED) == before if learner == type(learner)() else len(TRACED) > before
    se.online_grad(learner, squared, model, carry, *stream(8))
    assert len(TRACED) > before


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[1:2]), ids=name)
def test_inside_jit(x64, learner):
    model, (xs, ys) = net(), stream()

    @eqx.filter_jit
    def update(model, carry, xs, ys):
        return se.online_grad(learner, squared, model, carry, xs, ys, chunk=3)

    got = update(model, start(learner, model, xs), xs, ys)
    expected = gradient(learner, model, xs, ys, chunk=3)
    assert relative_error((got[0], got[1], got[2].state), (expected[0], expected[1], expected[2].state)) < 1e-12


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[:1]), ids=name)
def test_an_ensemble_by_vmap(x64, learner):
    ensemble = [net(key) for key in range(3)]
    arrays = [eqx.partition(model, eqx.is_array) for model in ensemble]
    stacked = eqx.combine(jax.tree.map(lambda *a: jnp.stack(a), *(a for a, _ in arrays)), arrays[0][1])
    data = [stream(key=key) for key in range(3)]
    xs, ys = (jnp.stack(part) for part in zip(*data))
    losses, grads = eqx.filter_vmap(lambda *args: gradient(learner, *args, chunk=3)[:2])(stacked, xs, ys)
    expected = [gradient(learner, model, *part, chunk=3)[:2] for model, part in zip(ensemble, data)]
    assert relative_error((losses, grads), jax.tree.map(lambda *g: jnp.stack(g), *expected)) < 1e-12


def test_one_model_on_many_streams_by_vmap(x64):
    """The same as a batch axis of the model, summed over the batch."""
    learner, model = se.D_RTRL(), net()
    xs, ys = (jnp.stack(part) for part in zip(*(stream(key=key) for key in range(3))))
    losses, grads = jax.vmap(lambda x, y: gradient(learner, model, x, y)[:2])(xs, ys)
    xs, ys = jnp.swapaxes(xs, 0, 1), jnp.swapaxes(ys, 0, 1)
    carry = start(learner, model, xs, model.init_state(3))
    expected = se.online_grad(learner, squared, model, carry, xs, ys)
    assert relative_error((losses.sum(0), jax.tree.map(lambda g: g.sum(0), grads)), expected[:2]) < 1e-12


@pytest.mark.parametrize("kind", ["clock"])
def test_models_of_the_suite_inside_jit_and_split(x64, kind):
    case = models.build(kind)
    learner = se.D_RTRL()
    carry = learner.init(case.model, case.twin.state, case.xs[0])
    whole = se.online_grad(learner, squared, case.model, carry, case.xs, case.ys)

    @eqx.filter_jit
    def two(model, carry):
        first = se.online_grad(learner, squared, model, carry, case.xs[:4], case.ys[:4])
        second = se.online_grad(learner, squared, model, first[2], case.xs[4:], case.ys[4:])
        return jnp.concatenate([first[0], second[0]]), jax.tree.map(jnp.add, first[1], second[1])

    assert relative_error(two(case.model, carry), whole[:2]) < 1e-12


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.SnAp(2)], ids=["traces", "influences"])
def test_a_start_compiles_nothing(learner, caplog):
    """XLA takes longer for one array of a shape of its own than the rest of `init` does."""
    pre, post = np.random.default_rng(0).integers(0, 23, (2, 71))
    inp = se.ETraceParam({"weight": jax.device_put(np.ones((3, 23), np.float32))}, se.MatMulOp())
    with jax.log_compiles():
        graph = se.from_edges(pre, post, np.ones(71), shape=(23, 23))
    rec = se.ETraceParam({"weight": graph.weight}, se.SpMatMulOp(graph))
    cell = se.cells.LeakyRate(23, inp, rec, decay=0.9)
    with jax.log_compiles():
        learner.init(cell, cell.init_state(), np.ones(3, np.float32))
    assert not [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]


def test_memory_may_be_filled_again():
    """What an array of numpy said stays, also where JAX could read its memory as it is."""
    held = sorting.on_border(UNITS).view(np.float32)
    held[:] = 1
    graph = se.from_edges(range(UNITS), range(UNITS)).with_weight(held)
    (xs, _) = read_stream(held, held)
    held[:] = 2
    assert graph.weight.tolist() == xs.tolist() == [1.0] * UNITS
