"""Checkpoints: whole or not there, resumed to the same bits, and refused by name."""

import collections
import contextlib
import enum
import fcntl
import fractions
import functools
import os
import signal
import sys
import threading
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace._train.facts import facts

UNITS, STEPS, BATCH = 5, 6, 2
ADAM = optax.adam(0.02)


def squared(out, y):
    return jnp.mean((out - y) ** 2)


class Noisy(eqx.Module):
    """A cell whose state holds a key and a counter besides."""

    cell: se.cells.LeakyRate

    def init_state(self, *batch):
        return {"h": self.cell.init_state(*batch), "key": jax.random.key(7), "count": jnp.zeros((), jnp.int32)}

    def __call__(self, state, x):
        key, now = jax.random.split(state["key"])
        h, out = self.cell(state["h"], x + 0.1 * jax.random.normal(now, x.shape))
        return {"h": h, "key": key, "count": state["count"] + 1}, out


def net(shift=1, seed=0, **options):
    keys = jax.random.split(jax.random.key(seed), 2)
    inp = se.ETraceParam({"weight": jax.random.normal(keys[0], (3, UNITS)), "bias": jnp.zeros(UNITS)}, se.MatMulOp())
    conn = se.Connectivity.from_edges(np.arange(UNITS), np.roll(np.arange(UNITS), shift), shape=(UNITS, UNITS))
    rec = se.ETraceParam({"weight": jax.random.normal(keys[1], (UNITS,))}, se.SpMatMulOp(conn))
    return Noisy(se.cells.LeakyRate(UNITS, inp, rec, **{"decay": 0.5} | options))


def fresh(model):
    return ADAM.init(eqx.filter(model, se.trainable(model)))


def sequences(count):
    rng = np.random.default_rng(3)
    shapes = (STEPS, BATCH, 3), (STEPS, BATCH, UNITS)
    return [tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes) for _ in range(count)]


def train(data, model=None, learner=None, optimizer=ADAM, **options):
    model, learner = net() if model is None else model, learner or se.D_RTRL()
    state = model.init_state(BATCH)
    return se.fit(learner, squared, optimizer, model, data, state=state, **{"progress": False} | options)


def bits(result):
    """Everything that a run ends with, as bytes."""
    leaves = jax.tree.leaves(eqx.filter((result.model, result.opt_state, result.carry), eqx.is_array))
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    arrays = [np.asarray(jax.random.key_data(leaf) if key else leaf) for leaf, key in zip(leaves, keys)]
    return [(str(a.dtype), a.shape, a.tobytes()) for a in [*arrays, *result.metrics.values()]]


def same(a, b):
    return bits(a) == bits(b)


RULES = [se.D_RTRL(), se.ES_D_RTRL(), se.UORO(jax.random.key(1)), se.SnAp(n=2), se.BPTT()]


@pytest.mark.parametrize("learner", few(RULES, RULES[1:4]), ids=lambda r: type(r).__name__)
def test_stopped_and_resumed_is_never_stopped(tmp_path, learner):
    data = sequences(5)
    options = {"learner": learner, "carry": True, "update": 4}
    whole = train(data, **options)
    parts = train(data, **options, checkpoint=tmp_path / "run", callbacks=lambda now: now.sequences == 2)
    assert parts.stopped == "callback" and not same(parts, whole)
    resumed = train(data, **options, checkpoint=tmp_path / "run")
    assert resumed.losses.shape == (5,) and same(resumed, whole)
    assert resumed.carry.state["key"].dtype == whole.carry.state["key"].dtype
    assert same(train(data, **options, checkpoint=tmp_path / "run"), whole)


def test_a_carry_from_before_is_resumed(tmp_path):
    """The file knows from which carry its run began."""
    data, path = sequences(5), tmp_path / "run"
    before = train(data[:2], carry=True)
    options = {"carry": before.carry, "update": 4}
    whole = train(data[2:], **options)
    part = train(data[2:], **options, checkpoint=path, callbacks=lambda now: now.sequences == 1)
    assert part.stopped == "callback" and same(train(data[2:], **options, checkpoint=path), whole)
    for carry, words in (
        (train(data[:1], carry=True).carry, "carry of .*, .carry.state"),
        (True, "carry of .*, .carry. as .*Carry, got True"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint: expected the {words}"):
            train(data[2:], **options | {"carry": carry}, checkpoint=path)


def test_each_kind_of_data_goes_on_where_it_was(tmp_path):
    data = sequences(4)
    xs, ys = (np.concatenate(leaves, axis=1) for leaves in zip(*data))
    asked = []

    def since(position):
        asked.append(position)
        return iter(data[position:])

    kinds = {
        "list": lambda: data,
        "stream": lambda: iter(data),
        "function": lambda: since,
        "batches": lambda: se.Batches(xs, ys, BATCH, key=jax.random.key(2), epochs=2),
    }
    for name, make in kinds.items():
        whole = train(make())
        for stop in (1, 3):
            train(make(), checkpoint=tmp_path / f"{name}{stop}", callbacks=lambda now, stop=stop: now.sequences == stop)
            assert same(train(make(), checkpoint=tmp_path / f"{name}{stop}"), whole), name
    assert asked == [0, 0, 1, 0, 3]


def test_more_data_than_before_goes_on(tmp_path):
    data = sequences(4)
    train(data[:2], checkpoint=tmp_path / "run")
    assert same(train(data, checkpoint=tmp_path / "run"), train(data))
    assert same(train(iter(data), checkpoint=tmp_path / "run"), train(data))
    assert same(train(lambda position: data[position:], checkpoint=tmp_path / "run"), train(data))


def test_patience_is_resumed(tmp_path):
    data, aim = sequences(9), sequences(1)
    options = {"validation": se.Validation(aim, patience=2), "optimizer": optax.sgd(3.0)}
    whole = train(data, **options)
    assert whole.stopped == "patience" and len(whole.losses) > 2
    stop = len(whole.losses) - 1
    train(data, **options, checkpoint=tmp_path / "run", callbacks=lambda now: now.sequences == stop)
    for _ in range(2):
        resumed = train(data, **options, checkpoint=tmp_path / "run")
        assert resumed.stopped == "patience" and same(resumed, whole)


def test_half_precision(tmp_path):
    def narrow(tree):
        return jax.tree.map(lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, tree)

    model = narrow(net().cell)
    start, data = narrow(model.init_state(BATCH)), narrow(jax.tree.map(jnp.asarray, sequences(3)))

    def run(**options):
        return se.fit(se.D_RTRL(), squared, ADAM, model, data, state=start, progress=False, **options)

    run(checkpoint=tmp_path / "run", callbacks=lambda now: now.sequences == 1)
    floating = eqx.filter(run().carry.traces, eqx.is_inexact_array)  # beside what rounds them
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(floating)} == {"bfloat16"}
    assert same(run(checkpoint=tmp_path / "run"), run())


def test_numbers_of_updates_stay_exact(tmp_path):
    """Also those that a float32 does not hold."""
    train(sequences(1), checkpoint=tmp_path / "run")
    with np.load(tmp_path / "run") as file:
        arrays = dict(file)
    arrays["table"][0, 0] = 2**24 + 1
    write(tmp_path / "run", **arrays)
    assert train(sequences(1), checkpoint=tmp_path / "run").metrics["updates"].tolist() == [2**24 + 1]


def test_when_it_is_written(tmp_path, monkeypatch):
    times = []
    path = tmp_path / "made" / "run"
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (times.append(len(seen)), real(a, b)))
    seen = []
    train(sequences(5), checkpoint=se.Checkpoint(path, every=2), callbacks=seen.append)
    assert times == [2, 4, 5] and [p.name for p in path.parent.iterdir()] == ["run"]


def test_a_failure_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    data, path = sequences(4), tmp_path / "run"
    train(data[:2], checkpoint=path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(np, "savez", fail)
        train(data, checkpoint=path)
    assert path.read_bytes() == before
    assert same(train(data, checkpoint=path), train(data))


def test_a_full_disk_does_not_lose_what_was_learned(tmp_path, monkeypatch):
    def full(path, *rest):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparse_etrace._train.fit_file.save", full)
    with pytest.raises(OSError, match="No space left") as caught:
        train(sequences(2), checkpoint=tmp_path / "run")
    assert caught.value.fit.losses.shape == (2,) and caught.value.fit.stopped == "not saved"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    names = (f"file{os.sep}run", "a\0b", "x" * 300, "x" * 251)
    for name, words in (
        (".", "a file, got the folder"),
        *((name, "a file that can be written, got") for name in names),
    ):
        with pytest.raises(ValueError, match=f"checkpoint: expected {words}"):
            train([], checkpoint=tmp_path / name)
    longest = tmp_path / ("x" * 250)
    assert len(train(sequences(1), checkpoint=longest).losses) == 1 and longest.exists()


def test_ctrl_c_while_the_last_one_is_written(tmp_path, monkeypatch):
    data, real, calls = sequences(2), os.replace, []

    def interrupted(*paths):
        calls.append(paths)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    result = train(data, checkpoint=tmp_path / "run")
    assert result.stopped == "interrupted" and same(result, train(data))
    assert same(train(data, checkpoint=tmp_path / "run"), train(data))


def test_an_error_on_the_way_leaves_a_checkpoint(tmp_path):
    data = sequences(4)

    def fail(now):
        if now.sequences == 3:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(data, checkpoint=tmp_path / "run", callbacks=fail)
    seen = []
    assert same(train(data, checkpoint=tmp_path / "run", callbacks=seen.append), train(data)) and len(seen) == 1
    bad = [*data[:2], (data[2][0] * np.nan, data[2][1])]
    with pytest.raises(se.NonFiniteError) as caught:
        train(bad, checkpoint=tmp_path / "other")
    assert caught.value.fit.losses.shape == (2,)
    assert same(train(data, checkpoint=tmp_path / "other"), train(data))


def test_interrupted_is_written(tmp_path):
    data = sequences(3)

    def stream():
        yield from data[:2]
        raise KeyboardInterrupt

    assert train(stream(), checkpoint=tmp_path / "run").stopped == "interrupted"
    assert same(train(data, checkpoint=tmp_path / "run"), train(data))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": net(shift=2)}, r"the connectivity of .*, 'cell.rec.op.connectivity.p\w+' as int32"),
        ({"learner": se.ES_D_RTRL(decay=0.5)}, r"the learner of .*, D_RTRL\(\), got ES_D_RTRL\(decay=0.5\)"),
        ({"model": net(decay=0.6)}, "the model of .*, got another: 'cell.decay.value', which is not trained, differs"),
        ({"model": net(activation=jax.nn.relu)}, "the model of .*, got one that is built otherwise"),
        ({"optimizer": optax.sgd(0.1)}, "the optimizer of .*, 'optimizer.* as .*scale_by_adam"),
        ({"optimizer": optax.lion(0.1)}, "the optimizer of .*, 'optimizer.* as .*scale_by_adam"),
        ({"update": 2}, "the update of .*, 'update.every' as 'sequence', got 2"),
        ({"carry": True}, "the carry of .*, 'carry' as False, got True"),
        ({"update": se.Update(chunk=3)}, "the update of .*, 'update.chunk' as None, got 3"),
        ({"update": se.Update(opt_state=fresh(net()))}, "the update of .*, 'update.opt_state"),
        ({"metrics": {"e": squared}}, "the metrics of .*, .*e.* as nothing, got .*squared"),
        ({"data": "batches"}, "data=None, as in .*, got Batches"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_of_something_else(tmp_path, change, words):
    train(sequences(1), checkpoint=tmp_path / "run")
    data = sequences(2)
    if change.pop("data", None):
        data = se.Batches(*data[0], size=BATCH)
        words = "data=None, as in .*, got Batches"
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint: expected {words}"):
        train(data, **change, checkpoint=tmp_path / "run")
    assert (tmp_path / "run").read_bytes() == before


SCALE = 2.0


def scaled(out, y):
    return SCALE * squared(out, y)


class Power(eqx.Module):
    """A loss with a number of its own."""

    power: float

    def __call__(self, out, y):
        return self.of(jnp.abs(out - y))

    def of(self, error):
        return jnp.mean(error**self.power)


class Cubed(Power):
    def of(self, error):
        return jnp.mean(error**3 + self.power)


def weighed(much):
    return lambda out, y: much * squared(out, y)


def weighed_by(much):
    return lambda out, y: jnp.mean(much * (out - y) ** 2)


def times(much):
    """A decorator, as `functools.wraps` makes it."""

    def decorate(fn):
        @functools.wraps(fn)
        def call(out, y):
            return much * fn(out, y)

        return call

    return decorate


def closing_over(value):
    return lambda out, y: squared(out, y) * (value is not None)


def calling(wrap, much, amount=1.0):
    """A module with a method that something wraps, a number of its class, and a property."""

    class Loss(eqx.Module):
        factor: float = 1.0
        gain = amount

        @wrap
        def __call__(self, out, y):
            return much * self.gain * squared(out, y)

        @property
        def doubled(self):
            return 2 * much

    return Loss()


class Mode(enum.Enum):
    MEAN = 1
    SUM = 2


# What is told of what `make(1)` and `make(2)` give: of functions that something wraps, and of values they close over.
TOLD = {
    "wraps": lambda n: times(n)(squared),
    "jit of it": lambda n: jax.jit(times(n)(squared)),
    "checkpoint of it": lambda n: jax.checkpoint(times(n)(squared)),
    "cache of it": lambda n: functools.lru_cache(times(n)(squared)),
    "twice": lambda n: times(1)(times(n)(squared)),
    "derivative of its own": lambda n: jax.custom_vjp(times(n)(squared)),
    "vmap": lambda n: jax.vmap(squared, in_axes=(n - 1, 0)),
    "vmap out": lambda n: jax.vmap(squared, out_axes=n),
    "filter_vmap": lambda n: eqx.filter_vmap(squared, in_axes=(n - 1, 0)),
    "filter_jit": lambda n: eqx.filter_jit(Power(n)),
    "filter_jit of it": lambda n: eqx.filter_jit(times(n)(squared)),
    "grad": lambda n: jax.grad(squared, argnums=n - 1),
    "eqx.Partial": lambda n: eqx.Partial(squared, y=n),
    "method": lambda n: Power(n).of,
    "method under jit": lambda n: calling(jax.jit, n),
    "method under filter_jit": lambda n: calling(eqx.filter_jit, n),
    "method under checkpoint": lambda n: calling(jax.checkpoint, n),
    "static method": lambda n: calling(staticmethod, n),
    "number of a class": lambda n: calling(lambda fn: fn, 1.0, amount=n),
    "slice": lambda n: closing_over(slice(n)),
    "range": lambda n: closing_over(range(n)),
    "enumeration": lambda n: closing_over(Mode(n)),
    "fraction": lambda n: closing_over(fractions.Fraction(1, n)),
    "strings": lambda n: closing_over(np.array(["a", "b" * 40 * n])),
    "objects": lambda n: closing_over(np.array(["a", n], object)),
    "records": lambda n: closing_over(np.array([(n, True, 0.5)], [("a", int), ("b", bool), ("c", float)])),
    "named tuple": lambda n: closing_over((Mode, collections.namedtuple("A", "x y"))[n - 1]),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_of_a_function(name):
    one, again, two = (facts(TOLD[name](n), "loss_fn") for n in (1, 1, 2))
    assert one == again != two


def test_installed_libraries_are_not_walked_through():
    """What a loss closes over may be an object of a large library."""
    frame = pandas.DataFrame({"a": [1.0]})
    assert len(facts(closing_over(frame), "loss_fn")) < 20
    assert len(facts(closing_over(Path("a")), "loss_fn")) < 20


def doubled(w):
    return w + w


def warm_up(rate, steps):
    return optax.warmup_cosine_decay_schedule(0.0, rate, steps, 20)


def leaky(fn):
    model = net()
    op = eqx.tree_at(lambda op: op.weight_fn, model.cell.rec.op, fn, is_leaf=lambda leaf: leaf is None)
    return eqx.tree_at(lambda m: m.cell.rec.op, model, op)


def bent(power):
    """An activation with a derivative of its own."""
    fn = jax.custom_jvp(jnp.tanh)
    fn.defjvps(lambda t, ans, x: t / (1 + x**2) ** power)
    return fn


def rates(one, two):
    labels = lambda params: jax.tree.map(lambda p: "one" if p.ndim == 1 else "two", params)
    return optax.multi_transform({"one": optax.sgd(one), "two": optax.sgd(two)}, labels)


def tuned(rate):
    return optax.inject_hyperparams(optax.adam)(learning_rate=rate)


def renamed(scale):
    """Another body under the same name."""
    if scale == 2:
        metric = lambda out, y: 2 * squared(out, y)
    else:
        metric = lambda out, y: squared(out, y) * 2 + 1
    return {"metrics": {"mine": metric}}


def other(pairs, index, change):
    return [change(pair) if k == index else pair for k, pair in enumerate(pairs)]


def moved(pair):
    return pair[0], pair[1] + np.float32(1e-3)


ALIKE = {
    "rate": (lambda n: {"optimizer": optax.adam(n)}, 0.02, 0.03, "optimizer of .*, .*step_size. as -0.02, got -0.03"),
    "beta": (lambda n: {"optimizer": optax.adam(0.02, b2=n)}, 0.99, 0.999, "the optimizer of .*, .*b2. as 0.99, got"),
    "kind": (lambda n: {"optimizer": n(0.02, b1=0.8)}, optax.adam, optax.adamw, "optimizer of .*, got .*add_decayed"),
    "clip": (
        lambda n: {"optimizer": optax.chain(optax.clip_by_global_norm(n), optax.sgd(0.1))}, 1.0, 2.0,
        "the optimizer of .*, '.*max_norm' as 1.0, got 2.0",
    ),
    "schedule": (lambda n: {"optimizer": optax.sgd(warm_up(0.1, n))}, 2, 3, "the optimizer of .*, '.*' as 2, got 3"),
    "body of a schedule": (
        lambda fn: {"optimizer": optax.sgd(fn)}, lambda t: 0.1 / (1 + t), lambda t: 0.1 / (2 + t),
        "the optimizer of .*, got another: '.*learning_rate.code' does something else",
    ),
    "injected": (lambda n: {"optimizer": tuned(n)}, 0.02, 0.03, "the optimizer of .*, .* as 0.02, got 0.03"),
    "labelled": (lambda n: {"optimizer": rates(0.1, n)}, 0.1, 0.2, "the optimizer of .*, .*two.* as -0.1, got -0.2"),
    "by steps": (
        lambda n: {"optimizer": optax.MultiSteps(optax.sgd(n), 2).gradient_transformation()}, 0.1, 0.2,
        "the optimizer of .*, '.*step_size' as -0.1, got -0.2",
    ),
    "loss": (lambda fn: {"loss": fn}, squared, scaled, "the loss_fn of .*, 'loss_fn' as .*squared, got .*scaled"),
    "closure": (lambda n: {"loss": weighed(n)}, 1.0, 2.0, "the loss_fn of .*, 'loss_fn.much' as 1.0, got 2.0"),
    "array": (lambda n: {"loss": weighed_by(jnp.full(3000, n)[:5])}, 1.0, 2.0, "loss_fn of .*much. as float32"),
    "partial": (
        lambda n: {"loss": functools.partial(lambda out, y, n: n * squared(out, y), n=n)}, 1.0, 2.0,
        "the loss_fn of .*, \"loss_fn.keywords.'n'\" as 1.0, got 2.0",
    ),
    "default": (lambda n: {"loss": lambda out, y, n=n: n * squared(out, y)}, 1.0, 2.0, r"loss_fn.defaults\[0\]"),
    "compiled": (lambda n: {"loss": jax.jit(weighed(n))}, 1.0, 2.0, "the loss_fn of .*, 'loss_fn.much' as 1.0"),
    "decorated": (lambda n: {"loss": times(n)(squared)}, 1.0, 2.0, "the loss_fn of .*, 'loss_fn.much' as 1.0, got 2.0"),
    "field": (lambda n: {"loss": Power(n)}, 1.0, 2.0, "the loss_fn of .*, 'loss_fn.power' as 1.0, got 2.0"),
    "method": (lambda kind: {"loss": kind(2.0)}, Power, Cubed, "the loss_fn of .*, 'loss_fn' as .*Power, got .*Cubed"),
    "metric": (renamed, 2, 3, "the metrics of .*, got another: \"metrics.'mine'.code\" does something else"),
    "weight function": (lambda fn: {"model": leaky(fn)}, doubled, lambda w: w * w, "built otherwise"),
    "body of it": (lambda fn: {"model": leaky(fn)}, *(lambda w: w * w, lambda w: w + w), "model of .*: .*code"),
    "closed over by it": (
        lambda n: {"model": leaky(lambda w: n * w)}, 1.0, 2.0, "the model of .*, '.*weight_fn.n' as 1.0, got 2.0",
    ),
    "derivative": (lambda n: {"model": net(activation=bent(n))}, 1, 2, "the model of .*, '.*power' as 1, got 2"),
    "state": (lambda n: {"state_plus": n}, 0.0, 0.5, "the state of .*, .* as float32"),
    "first": (lambda k: {"data": other(sequences(2), k, moved)}, None, 0, "got others: of the first sequence"),
    "last": (lambda k: {"data": other(sequences(2), k, moved)}, None, 1, "got others: of the last sequence"),
    "a stream": (lambda k: {"data": iter(other(sequences(2), k, moved))}, None, 1, "got others: of the last sequence"),
    "time": (
        lambda n: {"data": [tuple(leaf[:n] for leaf in pair) for pair in sequences(2)]}, STEPS, STEPS - 1,
        r"got others: of the first sequence .* was float32\[6, 2, 3\]",
    ),
    "fewer": (lambda n: {"data": sequences(n)}, 2, 1, "data: expected at least the 2 sequences .*, got fewer"),
    "fewer of a stream": (lambda n: {"data": iter(sequences(n))}, 2, 1, "data: expected at least the 2 .*, got fewer"),
    "held out": (lambda k: {"validation": other(sequences(2), k, moved)}, None, 1, "validation of .*, .* as float32"),
    "how often": (
        lambda n: {"validation": se.Validation(sequences(1), n)}, 1, 2, "the validation of .*, .*every. as 1, got 2"
    ),
}  # fmt: skip


def call(path, data=None, loss=squared, state_plus=0.0, model=None, **options):
    model = net() if model is None else model
    state = model.init_state(BATCH)
    state = state | {"h": state["h"] + state_plus}
    given = sequences(2) if data is None else data
    optimizer = options.pop("optimizer", ADAM)
    return se.fit(se.D_RTRL(), loss, optimizer, model, given, state=state, checkpoint=path, progress=False, **options)


FEW = "rate kind injected closure array metric derivative state first last fewer".split()


@pytest.mark.parametrize("name", few([*ALIKE], [*FEW[1:], "body of it"]))
def test_of_something_that_looks_alike(tmp_path, name):
    """One that is made anew and is the same goes on; another one is refused and leaves the file as it was."""
    make, one, two, words = ALIKE[name]
    call(tmp_path / "run", **make(one))
    assert len(call(tmp_path / "run", **make(one)).losses) == 2
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(ValueError, match=words):
        call(tmp_path / "run", **make(two))
    assert (tmp_path / "run").read_bytes() == before


def test_written_under_another_python(tmp_path, monkeypatch):
    """There the code of a function looks different, and what else is known of it does not."""
    call(tmp_path / "run", loss=weighed(1.0))
    monkeypatch.setattr("platform.python_version_tuple", lambda: ("3", "99", "0"))
    monkeypatch.setattr("sparse_etrace._train.facts._code", lambda code: "other")
    call(tmp_path / "run", loss=weighed(1.0))
    with pytest.raises(ValueError, match="the loss_fn of .*, 'loss_fn.much' as 1.0, got 2.0"):
        call(tmp_path / "run", loss=weighed(2.0))


def test_of_another_large_constant_of_numpy(tmp_path):
    class Masked(eqx.Module):
        cell: se.cells.LeakyRate
        mask: np.ndarray

        def __call__(self, state, x):
            state, out = self.cell(state, x)
            return state, out * self.mask.sum()

    def run(entry):
        mask = np.zeros(5000, np.float32)
        mask[entry] = 1
        model = Masked(net().cell, mask.view(np.int32))
        start = model.cell.init_state(BATCH)
        return se.fit(se.D_RTRL(), squared, ADAM, model, sequences(1), state=start, checkpoint=tmp_path / "run")

    run(2500)
    with pytest.raises(ValueError, match="the model of .*, got another: 'mask', which is not trained, differs"):
        run(2501)


def test_of_another_width(tmp_path, x64):
    train(sequences(1), checkpoint=tmp_path / "run")
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="expected JAX with 64 bits, as .* was written, got it without"),
    ):
        train(sequences(1), checkpoint=tmp_path / "run")


def test_of_another_batch_size(tmp_path):
    train(sequences(1), checkpoint=tmp_path / "run")
    data = [tuple(a[:, :1] for a in pair) for pair in sequences(2)]
    model = net()
    with pytest.raises(ValueError, match=r"the state of .*, .* as float32\[2, 5\] .*, got float32\[1, 5\]"):
        se.fit(se.D_RTRL(), squared, ADAM, model, data, state=model.init_state(1), checkpoint=tmp_path / "run")


def test_of_batches_in_another_order(tmp_path):
    def batches(key):
        xs, ys = (np.concatenate(leaves, axis=1) for leaves in zip(*sequences(2)))
        return se.Batches(xs, ys, BATCH, key=jax.random.key(key))

    train(batches(0), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=r"expected data=Batches\(4 sequences, size=2, key=\[0, 0\]\), as in .*, got"):
        train(batches(1), checkpoint=tmp_path / "run")


def write(path, **arrays):
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def test_that_unpacks_to_too_much(tmp_path):
    call(tmp_path / "run")
    with np.load(tmp_path / "run") as file:
        arrays = dict(file)
    with open(tmp_path / "run", "wb") as file:
        np.savez_compressed(file, **arrays | {"leaf000000": np.zeros(10_000_000, np.uint8)})
    with pytest.raises(
        ValueError, match=r"file that is not compressed, got .*run of [\d,]+ bytes that unpack to 10,0[\d,]+"
    ):
        call(tmp_path / "run")


def test_one_run_at_a_time(tmp_path):
    """A second run is refused by name, also through a link, and the first is not harmed; then the path is free."""
    (tmp_path / "link").symlink_to("run")

    def second(now):
        for name in ("run", "link"):
            with pytest.raises(
                ValueError, match=f"checkpoint: expected a file of no other run, got .*{name}, whose run goes on. Wait"
            ):
                call(tmp_path / name)
        return now.sequences == 1

    call(tmp_path / "run", callbacks=second)
    assert {path.name for path in tmp_path.iterdir()} == {"link", "run"}
    resumed, whole = call(tmp_path / "link"), call(tmp_path / "other")
    assert same(resumed, whole) and (tmp_path / "link").is_symlink()
    assert len(call(tmp_path / "run").losses) == 2


def test_a_lock_that_was_removed_under_it(tmp_path, monkeypatch):
    """The run before ends between the opening of its lock and the locking: the next one makes a new one."""
    real, opened = fcntl.flock, []

    def late(file, how):
        if not opened:
            (tmp_path / "run.lock").unlink()
        opened.append(file)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    call(tmp_path / "run")
    assert len(opened) == 2 and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        ValueError, match="checkpoint: expected a file, got .*pipe, a device, a pipe or a socket. Name a file"
    ):
        call(tmp_path / "pipe")


def again():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("first", ["callback", "last save", "error"])
def test_ctrl_c_again_and_again(tmp_path, monkeypatch, first):
    """At each line of what ends a run, once it has begun: nothing is lost, and what was learned is returned."""
    data, heard, lines, handler = sequences(3), [], [], signal.getsignal(signal.SIGINT)

    def trace(frame, event, arg):
        where = Path(frame.f_code.co_filename)
        if where.parent.name != "_train" or frame.f_code.co_name == "_hear":
            return None
        # An error is on its way for a moment before `train` knows of it.
        is_known = first != "error" or frame.f_code.co_name not in ("train", "_tell")
        if heard and event == "line" and is_known and signal.getsignal(signal.SIGINT) is not handler:
            lines.append(frame.f_lineno)
            again()
        return trace

    def start(*rest):
        heard.append(1)
        if first == "error":
            raise RuntimeError("mine")
        again()

    if first == "last save":
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda *paths: (heard or start(), real(*paths)))
    then = start if first != "last save" else ()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        if first == "error":
            with pytest.raises(RuntimeError, match="mine"):
                train(data, checkpoint=tmp_path / "run", callbacks=then)
        else:
            result = train(data, checkpoint=tmp_path / "run", callbacks=then)
    finally:
        sys.settrace(before)
    assert signal.getsignal(signal.SIGINT) is handler and len(lines) > 30
    count = 3 if first == "last save" else 1
    if first != "error":
        assert result.stopped == "interrupted" and len(result.losses) == count
    seen = []
    assert same(train(data, checkpoint=tmp_path / "run", callbacks=seen.append), train(data)) and len(seen) == 3 - count


@pytest.mark.parametrize("place", ["callback", "data"])
def test_ctrl_c_that_somebody_takes_ends_it(place):
    """A library may pass over the exception; since no further Ctrl-C is heard, the run still has to end."""

    def swallowed(*seen):
        with contextlib.suppress(KeyboardInterrupt):
            again()

    def stream():
        for k, pair in enumerate(sequences(3)):
            if k == 1 and place == "data":
                swallowed()
            yield pair

    result = train(stream(), callbacks=swallowed if place == "callback" else ())
    assert result.stopped == "interrupted" and len(result.losses) == 1 + (place == "data")


def test_ctrl_c_in_a_thread_is_none_of_its_business(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(call(tmp_path / "run")))
    thread.start()
    thread.join()
    assert len(found[0].losses) == 2


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "pickle", "other archive", "no header"])
def test_damaged(tmp_path, damage):
    path = tmp_path / "run"
    train(sequences(1), checkpoint=path)
    whole = path.read_bytes()
    if damage == "flipped":
        k = whole.index(b"leaf000002.npy") + 300
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 255]) + whole[k + 1 :])
    elif damage == "pickle":
        with open(path, "wb") as file:
            np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    elif damage == "other archive":
        write(path, a=np.ones(3))
    elif damage == "no header":
        write(path, header=np.frombuffer(b'{"format": 1}', np.uint8), table=np.ones(3))
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(
        ValueError, match="checkpoint: expected a whole checkpoint, got .*run. Name another file, or remove it"
    ):
        train(sequences(1), checkpoint=path)


def test_of_another_format(tmp_path):
    train(sequences(1), checkpoint=tmp_path / "run")
    with np.load(tmp_path / "run") as file:
        arrays = dict(file)
    text = arrays["header"].tobytes().replace(b"checkpoint 5", b"checkpoint 3")
    write(tmp_path / "run", **arrays | {"header": np.frombuffer(text, np.uint8)})
    with pytest.raises(
        ValueError, match="expected 'sparse_etrace checkpoint .', got .* of 'sparse_etrace checkpoint 3'"
    ):
        train(sequences(1), checkpoint=tmp_path / "run")
