"""Encoders, lists of events, records, statistics of spike trains, losses and limits on populations."""

import operator
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace import spikes

KEY = jax.random.key(0)
ENDS = [0, 1, 2, 3, 3, 1], [1, 2, 0, 3, 0, 0]
GRAPH, DELAYED = se.from_edges(*ENDS), se.from_edges(*ENDS, edge_attrs={"delay": [1, 2, 1, 3, 2, 1]})
EVENTS = ([0.1, 3.1, 1.5, 1.9, 1.2], [2, 3, 0, 0, 1])


# --- encoders ------------------------------------------------------------------------------------------------------


def test_poisson_trains():
    z = spikes.poisson(KEY, np.array([[0.0, 50.0], [500.0, 1000.0]]), steps=4000)
    assert z.shape == (4000, 2, 2) and np.array_equal(z, spikes.poisson(KEY, np.array([[0, 50.0], [500, 1000]]), 4000))
    np.testing.assert_allclose(z.mean(0), [[0, 0.05], [0.5, 1]], atol=0.02)
    assert z[:, 0, 0].sum() == 0 and z[:, 1, 1].all()
    changing = jnp.array([[0.0, 2000.0]] * 3 + [[2000.0, 0.0]] * 2)
    assert spikes.poisson(KEY, changing, dt=0.5).tolist() == [[0, 1]] * 3 + [[1, 0]] * 2
    traced = jax.jit(lambda values: spikes.rate(KEY, values, 4000, high=50.0, low=10.0))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(traced.mean(0), [0.01, 0.05], atol=0.01)


def test_regular_and_latency_trains():
    z = np.asarray(spikes.regular([100.0, 250.0, 300.0, 0.0], 1000, phase=[0, 0.75, 0, 0]))
    when = [np.flatnonzero(z[:, k]) for k in range(4)]
    assert when[0].tolist() == list(range(9, 1000, 10)) and when[1].tolist() == list(range(0, 1000, 4))
    assert spikes.regular([290.0], 100).sum() == 29  # though 100 * 0.29 is 28.999...
    assert len(when[2]) == 300 and set(np.diff(when[2])) == {3, 4} and not len(when[3])
    z = np.asarray(spikes.latency([[1.0, 0.75], [0.0, 2.0]], 9))
    assert z.shape == (9, 2, 2) and [z[:, i, j].tolist().index(1) for i, j in ((0, 0), (0, 1), (1, 1))] == [0, 2, 0]
    assert z.sum() == 3
    values = np.array([0.2, 0.3, 1.0, 5.0, 0.2001])
    z = np.asarray(spikes.latency(values, 50, tau=20.0, threshold=0.2))
    expected = np.round(20 * np.log(values[1:4] / (values[1:4] - 0.2))).astype(int)
    assert z.argmax(0)[1:4].tolist() == expected.tolist() and z.sum(0).tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: spikes.poisson(KEY, [1001.0], 5), "rate: expected from 0 to 1000 Hz, one spike in each step of 1 ms"),
        (lambda: spikes.regular([-1.0], 5), "rate: expected from 0 to 1000 Hz"),
        (lambda: spikes.poisson(KEY, 5.0), "steps: expected a number of steps where rate is one number"),
        (lambda: spikes.poisson(KEY, [5.0], 5, dt=0), "dt: expected the length of a step in ms, above 0, got 0"),
        (lambda: spikes.regular([5.0], 5, phase=1.0), "phase: expected at least 0 and below 1"),
        (lambda: spikes.latency([0.5], 5, tau=3.0), "tau, threshold: expected tau above 0 with a threshold above 0"),
        (lambda: spikes.latency([0.5], 5, threshold=-1.0), "tau, threshold"),
    ],
)
def test_encoders_refuse(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# --- lists of events -----------------------------------------------------------------------------------------------


def test_events_become_frames():
    expected = np.zeros((4, 4))
    for time, unit in zip(*EVENTS):
        expected[int(time), unit] += 1
    assert np.array_equal(spikes.frames(EVENTS, 4, 1.0), expected)
    assert np.array_equal(spikes.frames(EVENTS, 4, 1.0, once=True), np.minimum(expected, 1))
    both = spikes.frames([EVENTS, ([0.3], [1])], 4, 1.0, steps=5)  # the second axis is that of the sequences
    assert both.shape == (5, 2, 4) and np.array_equal(both[:4, 0], expected) and both[:, 1].sum() == both[0, 1, 1] == 1
    assert spikes.frames(([0.3, 0.6, 0.7], [0, 0, 0]), 1, 0.1).nonzero()[0].tolist() == [3, 6, 7]
    assert spikes.frames(([], []), 2, 1.0).tolist() == [[0, 0]]


@pytest.mark.parametrize("once", [False, True])
def test_sets_say_what_frames_say(once):
    sequences = [EVENTS, ([2.2, 2.3], [1, 2]), ([], [])]
    sets, frames = (make(sequences, 4, 1.0, once=once) for make in (spikes.active, spikes.frames))
    assert sets.ids.shape == (4, 3, 2 if once else 3) and np.array_equal(jnp.asarray(sets), frames)
    silent = spikes.active(([], []), 4, 1.0, steps=5, once=once)
    assert silent.ids.shape == (5, 0) and np.array_equal(jnp.asarray(silent), np.zeros((5, 4)))


def test_what_is_left_out_is_said():
    with pytest.raises(ValueError, match="capacity: expected 3, that of the fullest step, got 1, too few for 2 events"):
        spikes.active(EVENTS, 4, 1.0, capacity=1)
    with pytest.warns(UserWarning, match="got 2, too few for 1 events. These are left out"):
        sets = spikes.active(EVENTS, 4, 1.0, capacity=2, drop=True)
    assert np.asarray(jnp.asarray(sets)).sum() == 4 and sets.ids.shape == (4, 2)
    with pytest.raises(
        ValueError, match="steps: expected 4, up to the last event, got 2, after which there are 1 events"
    ):
        spikes.frames(EVENTS, 4, 1.0, steps=2)
    with pytest.warns(UserWarning, match="after which there are 1 events. These are left out"):
        assert spikes.frames(EVENTS, 4, 1.0, steps=2, drop=True).sum() == 4


@pytest.mark.parametrize(
    "make, error, said",
    [
        (
            lambda: spikes.frames(([0.1], [4]), 4, 1.0),
            ValueError,
            "events: expected times from 0 and units from 0 to 3",
        ),
        (lambda: spikes.frames(([-0.1], [0]), 4, 1.0), ValueError, "events: expected times from 0"),
        (lambda: spikes.frames(([np.nan], [0]), 4, 1.0), ValueError, "events: expected times from 0"),
        (lambda: spikes.frames(([0.1], [0, 1]), 4, 1.0), ValueError, "events: expected a time for each unit"),
        (lambda: spikes.frames(([0.1], [0.5]), 4, 1.0), TypeError, "events: expected units that are whole numbers"),
        (lambda: spikes.frames(EVENTS, 4, 0.0), ValueError, "dt: expected the length of a step, above 0, got 0"),
        (lambda: spikes.frames([], 4, 1.0), ValueError, "events: expected at least one sequence"),
        (lambda: spikes.Active(np.array([5]), 4), ValueError, "ids: expected from 0 to 4, got 5 to 5"),
        (lambda: spikes.Active([0.5], 4), TypeError, r"ids: expected whole numbers, \(..., capacity\), got float.*1"),
        (lambda: spikes.Active(2, 4), TypeError, r"ids: expected whole numbers, \(..., capacity\), got int"),
    ],
)
def test_events_refuse(make, error, said):
    with pytest.raises(error, match=said):
        make()


def _name(value):
    return type(value).__name__ if isinstance(value, se.Learner) else value


def relative(a, b):
    parts = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(p - q)) / jnp.maximum(jnp.max(jnp.abs(q)), 1e-30)) for p, q in parts)


def gradients(learner, model, state, xs, ys, loss):
    """Of a sequence in two calls, each in windows of two steps; by BPTT at once."""
    carry, calls = learner.init(model, state, jax.tree.map(lambda a: a[0], xs)), 1 if learner == se.BPTT() else 2
    total, cut = None, jax.tree.map(lambda a: a.reshape(calls, -1, *a.shape[1:]), (xs, ys))
    for k in range(calls):
        part = jax.tree.map(operator.itemgetter(k), cut)
        _, grads, carry = se.online_grad(learner, loss, model, carry, *part, chunk=2 if calls > 1 else None)
        total = grads if total is None else jax.tree.map(np.add, total, grads)
    return total, carry


class Own(se.ETraceOp):
    def xw_to_y(self, x, w):
        return x @ w["weight"]

    def yw_to_w(self, y, e):
        return {"weight": y[..., None, :] * e["weight"]}


INPUTS = {
    "all to all": (se.MatMulOp(bias=True), {"weight": (60, 4), "bias": (4,)}),
    "graph": (se.SpMatMulOp(se.from_edges(range(60), [0, 1, 2, 3, 0, 2] * 10, shape=(60, 4))), {"weight": (60,)}),
    "low rank": (se.LoraOp(), {"B": (60, 2), "A": (2, 4)}),
    "one's own": (Own(), {"weight": (60, 4)}),
}
RULES_OF_SETS = se.D_RTRL(), se.ES_D_RTRL(0.8), se.SnAp(2), se.RTRL(), se.BPTT(), se.Bridged(3, se.D_RTRL())
SETS = [(kind, rule) for kind in INPUTS for rule in RULES_OF_SETS if (kind, rule) != ("one's own", se.SnAp(2))]


@pytest.mark.parametrize("kind, learner", few(SETS, [SETS[0], SETS[7]]), ids=_name)
def test_gradients_of_sets_are_those_of_frames(x64, kind, learner):
    """As rows of weights, as outgoing synapses and, of all other ops, as a frame; an event of a unit comes twice."""
    rng, (op, shapes) = np.random.default_rng(0), INPUTS[kind]
    given = se.ETraceParam({name: rng.normal(size=shape) for name, shape in shapes.items()}, op)
    cell = se.cells.LeakyRate(4, given, se.SpMatMulOp(GRAPH).param(KEY))
    events = [(np.sort([*rng.random(30) * 8, 0.5, 0.5]), [*rng.integers(0, 60, 30), 7, 7]) for _ in range(2)]
    results = [
        gradients(learner, cell, cell.init_state(2), xs, jnp.ones((8, 2, 4)), lambda z, y: jnp.sum((z - y) ** 2))[0]
        for xs in (spikes.active(events, 60, 1.0, 8), jnp.asarray(spikes.frames(events, 60, 1.0, 8), float))
    ]
    assert relative(*results) < 1e-12 and all(np.any(leaf) for leaf in jax.tree.leaves(results[1].inp))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_types_of_sets_are_those_of_frames(dtype):
    for op, value in (
        (se.MatMulOp(), {"weight": jnp.ones((60, 4), dtype)}),
        (se.SpMatMulOp(se.from_edges(range(60), [0, 1, 2, 3] * 15, shape=(60, 4))), {"weight": jnp.ones(60, dtype)}),
    ):
        for room in (5, 100):
            sets, param = spikes.Active(jnp.arange(room) % 60, 60), se.ETraceParam(value, op)
            for ids in (sets.ids, np.asarray(sets.ids)):
                found, expected = param(eqx.tree_at(lambda s: s.ids, sets, ids)), param(jnp.asarray(sets))
                assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_event_files(tmp_path):
    h5py = pytest.importorskip("h5py", reason="pip install h5py")
    with h5py.File(tmp_path / "digits.h5", "w") as file:
        for name, rows, kind in (("times", [[0.1, 0.2], [0.3]], "f8"), ("units", [[3, 1], [2]], "u2")):
            made = file.create_dataset(f"spikes/{name}", (2,), h5py.vlen_dtype(np.dtype(kind)))
            for k, row in enumerate(rows):
                made[k] = row
        file["labels"], file["xy"] = [7, 4], np.array([[[1, 0], [2, 2]]] * 2)
        for k, name in enumerate("py"):
            made = file.create_dataset(name, (2,), h5py.vlen_dtype(np.dtype("u1")))
            made[0], made[1] = [[1, 0], [0, 1]][k], [1 - k]
    events, labels = spikes.read_events(tmp_path / "digits.h5")
    assert [[part.tolist() for part in pair] for pair in events] == [[[0.1, 0.2], [3, 1]], [[0.3], [2]]]
    assert labels.tolist() == [7, 4]
    events, labels = spikes.read_events(tmp_path / "digits.h5", units=["p", "y"], labels="none", shape=(2, 5))
    assert [units.tolist() for _, units in events] == [[5, 1], [5]] and labels is None
    with pytest.raises(ValueError, match=r"times, units: expected names of data sets, of \[.*\], got 'events/x'"):
        spikes.read_events(tmp_path / "digits.h5", units="events/x")
    with pytest.raises(ValueError, match=r"shape: expected a size for each of \['p', 'y'\], got None"):
        spikes.read_events(tmp_path / "digits.h5", units=["p", "y"])


def test_event_files_without_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py: expected for files of events.*sparse-etrace\[events\]"):
        spikes.read_events("digits.h5")


# --- records -------------------------------------------------------------------------------------------------------


def test_records_and_means_start_again_with_the_state():
    """For a part of a batch as well; and they take no more room for more steps."""
    cell = spikes.watched(se.cells.LeakyRate.of(4, inputs=2, key=KEY), means="")
    cell = se.record(cell, "means['']", every=3, rows=2)
    learner, state, first = se.D_RTRL(), cell.init_state(2), jnp.array([True, False])
    outs, after = se.predict(cell, state, xs := jax.random.normal(KEY, (10, 2, 2)))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    found = cell.read(after)
    assert found["step"].tolist() == [6, 9]
    np.testing.assert_allclose(found["means['']"], [outs[0][: t + 1].mean(0) for t in (6, 9)], atol=1e-6)
    carry = eqx.tree_at(lambda c: c.state, learner.init(cell, state, xs[0]), after)
    again = learner.reset(carry, first, state).state
    (rows,), (old,) = again.rows.values(), after.rows.values()
    assert not rows[0].any() and np.array_equal(rows[1], old[1])
    (outs, _, means), _ = se.predict(cell, again, xs)
    np.testing.assert_allclose(means[""].now[-1, 0], outs[:, 0].mean(0), atol=1e-6)
    assert cell.read(state)["means['']"].shape == (0, 2, 4)
    each = se.record(cell.model.model, "", rows=2)
    after = each.start(ones := jnp.ones(4))
    for _ in range(3):
        after, out = each(after, ones[:2])
    found = each.read(after)
    assert (
        found["step"].tolist() == [1, 2] and np.array_equal(found[""][1], out) and not np.array_equal(found[""][0], out)
    )
    for argument, names, every in (("every", "v", 0), ("names", "w", 1)):
        with pytest.raises(ValueError, match=f"{argument}: expected"):
            se.record(cell.model, names, every).init_state()
    with pytest.raises(ValueError, match="values, means: expected the name of one floating leaf of the state, got 'z'"):
        spikes.watched(cell.model.model, means="z").init_state()
    filtered = spikes.watched(cell.model.model, means="", decay=0.25)
    state, (out, _, means) = filtered(filtered.start(jnp.ones(4)), jnp.ones(2))
    state, (_, _, means) = filtered(state, jnp.ones(2))
    np.testing.assert_allclose(means[""].now, 0.25 * (0.75 * out) + 0.75 * state.state, atol=1e-6)
    with pytest.raises(ValueError, match="decay: expected"):
        spikes.watched(cell.model.model, means="z", decay=1.0)


# --- statistics ----------------------------------------------------------------------------------------------------


def test_statistics_of_made_trains():
    """Closed forms: a clock, Bernoulli trains of probability p, copies of one train, and silence."""
    steps, p = 20_000, 0.05
    clock, poisson = spikes.regular(np.full(30, 1000 * p), steps), spikes.poisson(KEY, np.full(100, 1000 * p), steps)
    z = np.concatenate([clock, poisson, np.repeat(poisson[:, :1], 20, axis=1), np.zeros((steps, 5))], axis=1)
    group = np.repeat(["clock", "poisson", "same", "silent"], [30, 100, 20, 5])
    table = spikes.statistics(z, dt=1.0, group=group, window=100).set_index("group")
    assert table.units.tolist() == [30, 100, 20, 5] and table.silent.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(table.rate, [50, 50, 1000 * poisson[:, 0].mean(), 0], atol=0.5)
    np.testing.assert_allclose(table.cv[:2], [0, np.sqrt(1 - p)], atol=0.01)
    np.testing.assert_allclose(table.fano[:2], [0, 1 - p], atol=0.03)
    np.testing.assert_allclose(table.synchrony[["poisson", "same"]], [1 / np.sqrt(100), 1], atol=0.01)
    assert table.loc["silent", ["cv", "fano", "synchrony"]].isna().all() and np.isnan(table.synchrony["clock"])


def test_statistics_of_one_unit_by_hand():
    z = np.zeros((20, 2), bool)
    z[[1, 3, 9, 12], 0] = z[5, 1] = True
    row, other = spikes.statistics(z, group=np.arange(2), window=5).to_dict("records")
    gaps, counts = np.array([2, 6, 3]), np.array([2, 1, 1, 0])
    assert row["rate"] == 0.2 and row["cv"] == pytest.approx(gaps.std() / gaps.mean())
    assert row["fano"] == pytest.approx(counts.var() / counts.mean()) and row["synchrony"] == pytest.approx(1)
    assert np.isnan(other["cv"]) and other["rate"] == 0.05
    assert spikes.statistics(z)["units"].tolist() == [2] and len(spikes.statistics(np.zeros((5, 0)))) == 0


@pytest.mark.parametrize(
    "options, said",
    [
        ({"dt": 0.0}, "dt: expected"),
        ({"window": 0}, "window: expected"),
        ({"group": ["a"]}, "group: expected one entry"),
    ],
)
def test_statistics_refuse(options, said):
    with pytest.raises(ValueError, match=said):
        spikes.statistics(np.zeros((3, 2)), **options)


# --- losses on recorded variables ----------------------------------------------------------------------------------

TARGET, STRENGTH, LOW, HIGH = 0.3, np.array([2.0, 0.0, 1.0, 3.0]), -0.2, 0.4


class Held(se.ETraceParam):
    """A parameter that reads a constant."""

    def execute(self, x):
        return super().execute(jax.lax.stop_gradient(x))


def by_hand(cell, xs, ys, is_held, decay=None):
    """Gradient of the regularised loss of a sequence by reverse mode, and its states."""

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def total(cell):
        cell = eqx.tree_at(lambda c: c.rec, cell, Held(cell.rec.value, cell.rec.op)) if is_held else cell

        def step(now, given):
            state, filtered = now
            state, z = cell(state, given[0])
            over, under = jnp.maximum(state.v - HIGH, 0), jnp.maximum(LOW - state.v, 0)
            error = jnp.sum((z - given[1]) ** 2) + jnp.sum(over**2 + under**2) / 2
            return (state, 0.7 * filtered + 0.3 * z), (error, state._replace(z=z))

        start = cell.init_state(xs.shape[1])
        (_, filtered), (errors, states) = jax.lax.scan(step, (start, jnp.zeros_like(start.v)), (xs, ys))
        rate = states.z.mean(0) if decay is None else filtered
        return errors.sum() + jnp.sum(STRENGTH / 2 * (rate - TARGET) ** 2), states

    (_, states), grads = total(cell)
    return grads, states


def regularised(out, y):
    out, values, means = out
    calm = spikes.rate_loss(means["z"], TARGET, STRENGTH) + spikes.bound_loss(values["v"], LOW, HIGH)
    return jnp.sum((out - y) ** 2) + calm


RULES = se.D_RTRL(), se.RTRL(), se.BPTT()


def test_ids_beyond_32_bits_name_no_unit(x64):
    sets = jnp.array([2**32 + 1, 2 - 2**32, 1]), jnp.array([2**32 + 1, 2**63, 1], jnp.uint64)
    for param, ids in zip((se.SpMatMulOp(GRAPH).param(KEY), se.MatMulOp().param(KEY, 4, 3)), sets, strict=True):
        found = jax.jit(lambda ids, param=param: param(spikes.Active(ids, 4)))(ids)
        np.testing.assert_array_equal(found, param(spikes.Active([1], 4)))


LOSSES = [(rule, decay, kind) for kind in ("at once", "delayed") for rule in RULES for decay in (None, 0.7)]


@pytest.mark.parametrize("learner, decay, kind", few(LOSSES, LOSSES[6:7]), ids=_name)
def test_losses_on_rates_and_potentials(x64, learner, decay, kind):
    """By reverse mode through all frames; the model has sets in their place, and records, which changes nothing."""
    cell = se.cells.ALIF.of(GRAPH if kind == "at once" else DELAYED, inputs=6, key=KEY, adaptation=0.3)
    cell = eqx.tree_at(lambda c: c.inp.value, cell, {"weight": 12 * cell.inp.value["weight"]})
    sets = spikes.Active(np.random.default_rng(0).integers(0, 7, (8, 3, 4)), 6)
    xs, ys = jnp.asarray(sets), jnp.zeros((8, 3, 4))
    model = se.record(spikes.watched(cell, values="v", means="z", decay=decay), ["state.z", "v", "means['z']"], 2, 3)
    grads, carry = gradients(learner, model, model.init_state(3), sets, ys, regularised)
    expected, states = by_hand(cell, xs, ys, learner == se.D_RTRL(), decay)
    for name in ("inp", "rec"):
        a, b = getattr(grads.model.model, name).value["weight"], getattr(expected, name).value["weight"]
        assert relative(a, b) < 1e-10 and jnp.abs(b).max() > 0.1
    found = model.read(carry)
    assert found["step"].tolist() == [2, 4, 6]
    for name, leaf in (("v", "v"), ("state.z", "z")):
        np.testing.assert_allclose(found[name], getattr(states, leaf)[2::2], atol=1e-14)
    if decay is None:
        np.testing.assert_allclose(found["means['z']"][-1], states.z[:7].mean(0), atol=1e-14)


def test_the_rate_loss_is_the_regulariser_of_e_prop(x64):
    cell = se.cells.LIF.of(GRAPH, inputs=2, key=KEY, reset_gradient=False)
    xs, ys = 4 * jax.random.normal(KEY, (8, 3, 2)), jnp.zeros((8, 3, 4))
    own = se.EProp("z", rate_strength=1.5, rate_target=TARGET)
    expected, _ = gradients(own, cell, cell.init_state(3), xs, ys, lambda z, y: jnp.sum((z - y) ** 2))
    model = spikes.watched(cell, means="z")
    loss = lambda out, y: jnp.sum((out[0] - y) ** 2) + spikes.rate_loss(out[2]["z"], TARGET, 1.5)
    grads, _ = gradients(se.EProp("state.z"), model, model.init_state(3), xs, ys, loss)
    assert relative(grads.model, expected) < 1e-10


# --- limits, and units that are perturbed ---------------------------------------------------------------------------


def test_limits_of_what_is_sent_into_a_ring():
    graph = se.from_edges([0, 1], [1, 0], edge_attrs={"delay": [1, 3]})
    cell = se.cells.LIF.of(graph, inputs=2, key=KEY)
    carry = se.D_RTRL().init(cell, cell.init_state(4), jnp.zeros((4, 2)))
    carry = eqx.tree_at(lambda c: c.state.z, carry, carry.state.z.push(jnp.ones((4, 2)) * jnp.array([0.0, 1.0])))
    said = spikes.Limits("z", low=0.5, group=["E", "I"])(se.Progress(0, 0, cell, None, carry, {}))
    assert said.startswith("population 'E' silent: the mean of 'z' is 0,") and "'I'" not in said


def test_training_ends_when_a_population_leaves_its_bounds():
    cell = se.cells.LIF.of(4, inputs=2, key=KEY)
    drive = jnp.array([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 40.0]])
    cell = eqx.tree_at(lambda c: c.inp.value["weight"], cell, drive)
    model, data = spikes.watched(cell, means="z"), [(jnp.ones((20, 2)), jnp.zeros((20, 4)))] * 5
    loss, optimizer = lambda out, y: jnp.mean(out[0] ** 2), optax.sgd(0.0)

    def train(*callbacks):
        options = {"state": model.init_state(), "progress": False, "callbacks": callbacks}
        return se.fit(se.D_RTRL(), loss, optimizer, model, data, **options)

    def limits(**options):
        return spikes.Limits("means['z']", **options)

    kinds = ["I", "I", "E", "E"]
    result = train(limits(low=0.01, group=kinds))
    assert result.stopped == "population 'I' silent: the mean of \"means['z']\" is 0, not 0.01 to inf"
    assert len(result.losses) == 1
    seen = []
    result = train(limits(high=0.5, group=kinds, patience=3), lambda progress: seen.append(progress.sequences))
    assert result.stopped.startswith("population 'E' exploding: the mean") and seen == [1, 2, 3]
    assert "all units exploding" in train(limits(high=0.1)).stopped
    assert train(limits(low=0.01, group=[0] * 4)).stopped == "end of data"
    with pytest.raises(ValueError, match="group: expected a population for each of 4 units"):
        train(limits(group=[0]))
    with pytest.raises(ValueError, match="leaf: expected the name of one floating leaf"):
        train(spikes.Limits("rate"))
    with pytest.raises(ValueError, match="low, high: expected low < high, got 1 and 0"):
        limits(low=1, high=0)


def test_perturbed_units(x64):
    """Silent units send nothing, active ones in each step, and others are as in the network without them."""
    cell, mask = se.cells.ALIF.of(GRAPH, inputs=2, key=KEY), np.array([0.0, 1.0, 0.0, 0.0])
    xs = 20 * jax.random.normal(KEY, (12, 3, 2))

    def outputs(cell):
        return np.asarray(se.predict(cell, cell.init_state(3), xs)[0])

    cut = jnp.where(GRAPH.connectivity.pre == 1, 0, cell.rec.value["weight"])
    apart = outputs(eqx.tree_at(lambda c: c.rec.value["weight"], cell, cut))
    silent, active = (outputs(spikes.perturbed(cell, "z", 1 - mask, shift)) for shift in (0 * mask, mask))
    assert np.array_equal(silent, apart * (1 - mask)) and apart[..., 1].any()
    assert active[..., 1].all() and not np.array_equal(active[..., 0], silent[..., 0])
    late = se.cells.ALIF.of(DELAYED, inputs=2, key=KEY)
    state, z = spikes.perturbed(late, "z", 1 - mask, mask)(late.init_state(), xs[0, 0])
    assert z[1] == 1 and np.array_equal(state.z.newest, z)
    with pytest.raises(ValueError, match="leaf: expected a cell whose output, of shape .4,., is what it sends"):
        spikes.perturbed(lambda state, x: (late(state, x)[0], x), "z")(late.init_state(), xs[0, 0])
    state, _ = spikes.perturbed(cell, "v", shift=mask / 2)(cell.init_state(), jnp.zeros(2))
    assert np.array_equal(state.v, mask / 2)
    with pytest.raises(ValueError, match="leaf: expected the name of one floating leaf"):
        spikes.perturbed(cell, "w")(cell.init_state(), jnp.zeros(2))
