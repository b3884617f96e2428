"""Delays of synapses, against networks in which each synapse has a line of its own."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
import scipy.sparse as sp
from soak import ONLY, few
from test_guarantees import inside_scans

import sparse_etrace as se
from sparse_etrace._op.delays import History

TOLERANCE = 1e-10
STEPS = 9
float64 = pytest.mark.usefixtures("x64")


class Case(NamedTuple):
    """A model by the library and by hand; `state` is that of the library."""

    model: Any
    twin: oracles.Twin
    state: Any
    xs: Any
    ys: Any


def sent(line, z, pre, axis=-1):
    """What is read in the next step: a ring, or by hand for each synapse what its sender sent, the newest first."""
    if isinstance(line, se.Ring):
        return line.push(z)
    return jnp.concatenate([jnp.take(z, pre, axis)[..., None], line[..., :-1]], -1)


def wires(rng, units, count, longest):
    pre, post = np.concatenate([rng.integers(units, size=(2, count)), np.tile(np.arange(units), (2, 1))], 1)
    delay = rng.integers(1, longest + 1, len(pre))
    delay[:2] = 1, longest
    weight, kinds = rng.normal(size=len(pre)), {"edge_attrs": {"delay": delay}, "dtype": float}
    graph = se.from_edges(pre, post, weight, shape=(units, units), **kinds)
    return graph, np.asarray(graph.connectivity.pre), np.asarray(graph.connectivity.post)


def alif_forward(pre):
    def forward(op, h, held, x):
        u = 0.8 * h["v"] + op("inp", x) + op("rec", held["line"])
        z = models.spike(u - 1 - 0.5 * h["b"])
        return {"v": u - z, "b": 0.9 * h["b"] + 0.3 * z, "line": sent(h["line"], z, pre)}, op("out", z)

    return forward


def gru_forward(pre):
    """On nodes x features; the gates read the neighbours of some steps ago, each with other weights."""

    def forward(op, h, held, x):
        line = held["line"]
        z, r = jax.nn.sigmoid(x + op("update", line)), jax.nn.sigmoid(x - op("forget", line))
        new = (1 - z) * h["h"] + z * jnp.tanh(x + r * op("rec", line))
        return {"h": new, "line": sent(h["line"], new, pre, -2)}, new

    return forward


def rate_forward(pre, readout=True):
    def forward(op, h, held, x):
        u = 0.8 * h["v"] + x + op("rec", held["line"])
        z = jnp.tanh(u)
        return {"v": u - 0.3 * z, "line": sent(h["line"], z, pre)}, op("out", z) if readout else z

    return forward


def build(name, delay=None, longest=4, batch=(2,), **options):
    """`delay` instead of that of the graph; for the library it may be another one than by hand."""
    rng = np.random.default_rng(sum(map(ord, name)))
    units, axis = 5, -2 if name == "gru" else -1
    graph, pre, post = wires(rng, units, 8, longest)
    steps = np.asarray(graph.edge_attrs["delay"] if delay is None else delay)
    op = se.SpMatMulOp(graph, axis=axis, delay=delay, **options)
    is_trained, names = bool(options.get("train_delay")), ("rec",) if name != "gru" else ("rec", "update", "forget")
    parts = {}
    for k, key in enumerate(names):
        value = {"weight": 0.5 * graph.weight * (1 - 0.3 * k), "bias": models.array(rng, units)}
        value |= {"delay": jnp.asarray(steps, float)} if is_trained else {}
        parts[key] = models.Part(value, op, oracles.delayed(pre, post, (units, units), steps, axis, is_trained))
    if name != "gru":
        parts["out"] = models.dense(rng, units, 2)
    if name == "alif":
        parts["inp"] = models.dense(rng, 3, units, scale=2.0)
    forward = {"alif": alif_forward, "gru": gru_forward, "rate": rate_forward}[name](pre)
    shape, x = ((units, 2), (units, 2)) if name == "gru" else ((units,), (3,) if name == "alif" else (units,))
    hidden = {"alif": ("v", "b"), "gru": ("h",), "rate": ("v",)}[name]
    state = {k: jnp.zeros((*batch, *shape)) for k in hidden}
    lines = jnp.zeros((*batch, len(pre), *shape[1:], int(np.ceil(steps.max())) + is_trained))
    traced = dict.fromkeys([k for k in parts if k != "out"], hidden)
    made = models.make(
        rng, forward, parts, {**state, "line": lines}, traced, batch=batch, x=x, steps=STEPS,
        out=shape if name == "gru" else (2,),
    )  # fmt: skip
    ring = op.ring(*batch, features=2) if name == "gru" else op.ring(*batch)
    return Case(made.model, made.twin, {**state, "line": ring}, made.xs, made.ys)


CASES = {
    "alif": {},
    "gru": {},
    "rate": {"delay": 3},
    "trained": {"train_delay": True, "max_delay": 5},
}


def case_of(name, **options):
    if name == "trained":
        delay = np.random.default_rng(5).uniform(1, 4.5, 13)
        return build("alif", **{"delay": delay, **CASES["trained"], **options})
    return build(name, **{**CASES[name], **options})


@pytest.fixture(scope="module", params=few([*CASES], ["gru"]))
def case(request):
    with jax.enable_x64(True):
        found = case_of(request.param)
        return found, oracles.online(found.twin, found.xs, found.ys, decay=models.DECAY)


def grads_of(learner, case, chunk, parts=((0, STEPS),), model=None):
    """Gradients of each call, which go on one from the other, by name of parameter."""
    model = case.model if model is None else model
    carry, found, losses = learner.init(model, case.state, case.xs[0]), [], []
    for begin, end in parts:
        xs, ys = case.xs[begin:end], case.ys[begin:end]
        loss, grads, carry = se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys, chunk=chunk)
        grads = getattr(grads, "model", grads)
        found.append({name: part.value for name, part in grads.params.items()})
        losses.append(loss)
    return np.concatenate(losses), jax.tree.map(lambda *g: np.stack(g), *found)


def summed(grads, parts=((0, STEPS),)):
    return jax.tree.map(lambda g: np.stack([np.sum(g[a:b], 0) for a, b in parts]), grads)


BY_STEP = [(t, t + 1) for t in range(STEPS)]
SPLIT = ((0, 2), (2, STEPS))


@float64
def test_forward_and_gradients(case):
    """Step by step, and in windows shorter than the sequence and than the delays, in split calls."""
    case, expected = case
    losses, grads = grads_of(se.D_RTRL(), case, 1, BY_STEP)
    assert oracles.nonzero(grads)
    assert oracles.relative_error(losses, expected.losses) < TOLERANCE
    assert oracles.relative_error_by_step(grads, expected.exact) < TOLERANCE
    _, grads = grads_of(se.D_RTRL(), case, 3, SPLIT)
    assert oracles.relative_error(grads, summed(expected.exact, SPLIT)) < TOLERANCE
    _, grads = grads_of(se.ES_D_RTRL(decay=models.DECAY), case, 3, SPLIT)
    assert oracles.relative_error(grads, summed(expected.factored, SPLIT)) < TOLERANCE


@pytest.mark.parametrize("name", few([*CASES], ["rate"]))
@float64
def test_through_everything(name):
    case = case_of(name)
    expected = jax.tree.map(lambda g: g[None], oracles.bptt(case.twin, case.xs, case.ys))
    for learner, chunk in (se.BPTT(), None), (se.RTRL(), 4), (se.Bridged(window=3, rule=se.RTRL()), 3):
        assert oracles.relative_error(grads_of(learner, case, chunk)[1], expected) < TOLERANCE


class Written(eqx.Module):
    """A model whose ring is no state that each step only pushes to, though it has the same numbers."""

    model: Any

    def __call__(self, state, x):
        state, out = self.model(state, x)
        return state | {"line": eqx.tree_at(lambda r: r.values, state["line"], 1.0 * state["line"].values)}, out


WAYS = {"written": Written, "vmap": lambda m: models.Wrapped(m, jax.vmap), "jit": lambda m: models.Wrapped(m, jax.jit),
        "checkpoint": lambda m: models.Wrapped(m, jax.checkpoint)}  # fmt: skip


@pytest.mark.parametrize("how", few([*WAYS], ["written"]))
@float64
def test_transformed_models(how):
    """As one whose rings say nothing of one another is: each step keeps its own."""
    case = case_of("rate")
    state = case.state
    if how == "vmap":
        state = state | {"line": eqx.tree_at(lambda r: r.pointer, state["line"], jnp.zeros(2, jnp.int32))}
    case = case._replace(model=WAYS[how](case.model), state=state)
    rings = se.D_RTRL().prepare(case.model, case.state, case.xs[0]).run.rings
    assert bool(rings) == (how != "written")
    _, grads = grads_of(se.D_RTRL(), case, 4)
    expected = oracles.stop_gradient_twin(case.twin, case.xs, case.ys)
    assert oracles.relative_error(grads, jax.tree.map(lambda g: g[None], expected)) < TOLERANCE


@ONLY
@float64
def test_worm():
    """Hubs, and delays by distance."""
    rng, steps, batch = np.random.default_rng(0), 6, 2
    worm = se.scale_spectral_radius(se.datasets.worm(), 3.0)
    conn = worm.connectivity
    pre, post, units = np.asarray(conn.pre), np.asarray(conn.post), conn.num_pre
    place = rng.random((units, 2))
    delay = 1 + np.floor(3 * np.linalg.norm(place[pre] - place[post], axis=1)).astype(int)
    value = {"weight": worm.weight.astype(float), "bias": jnp.zeros(units)}
    op = se.SpMatMulOp(worm, delay=delay)
    parts = {"rec": models.Part(value, op, oracles.delayed(pre, post, (units, units), delay))}
    state = {"v": jnp.zeros((batch, units))}
    lines = jnp.zeros((batch, len(pre), delay.max()))
    forward, traced = rate_forward(pre, readout=False), {"rec": ("v",)}
    made = models.make(
        rng, forward, parts, {**state, "line": lines}, traced, x=(units,), out=(units,), steps=steps
    )  # fmt: skip
    case = Case(made.model, made.twin, {**state, "line": op.ring(batch)}, made.xs, made.ys)
    _, grads = grads_of(se.D_RTRL(), case, 4, ((0, steps),))
    expected = oracles.stop_gradient_twin(case.twin, case.xs, case.ys)
    assert oracles.relative_error(grads, jax.tree.map(lambda g: g[None], expected)) < TOLERANCE


# --- what must be noticed --------------------------------------------------------------------------------------------


def stuck(ring, sent):
    """`push` that stays at the last slot."""
    new = push(ring, sent)
    return se.Ring(new.values, jnp.minimum(ring.pointer + 1, ring.slots - 1), ring.axis)


push = se.Ring.push
MISTAKES = ["nothing", "one step late", "not carried", "no wrap-around"]


@pytest.mark.parametrize("wrong", few(MISTAKES, ["one step late", "no wrap-around"]))
@float64
def test_mistakes_show(wrong, monkeypatch):
    case = build("rate")
    expected = oracles.stop_gradient_twin(case.twin, case.xs, case.ys)
    if wrong == "one step late":
        case = build("rate", delay=1 + case.model.params["rec"].op.delays.steps)
    if wrong == "no wrap-around":
        monkeypatch.setattr(se.Ring, "push", stuck)
    learner = se.D_RTRL()
    carry, total = learner.init(case.model, case.state, case.xs[0]), 0.0
    for part in (slice(0, 4), slice(4, STEPS)):
        _, grads, carry = se.online_grad(learner, oracles.loss_fn, case.model, carry, case.xs[part], case.ys[part])
        total = total + grads.params["rec"].value["weight"]
        if wrong == "not carried":
            carry = eqx.tree_at(lambda c: c.state["line"], carry, case.state["line"])
    error = oracles.relative_error(total, expected["rec"]["weight"])
    assert error < TOLERANCE if wrong == "nothing" else error > 1e-2


# --- kernels, rings and what stands in an op -------------------------------------------------------------------------


WINDOWS = [(1, 1, 40), (1, 3, 40), (5, 3, 400), (16, 1, 400), (20, 2, 40)]


@pytest.mark.parametrize("steps, batch, count", few(WINDOWS, [(1, 3, 40), (5, 3, 400)]))
def test_kernels(steps, batch, count):
    """A window of what was sent, and one step of it, as of senders that are all there in each step."""
    rng, units, slots, variables = np.random.default_rng(steps), 7, 5, 2
    graph = se.from_edges(*rng.integers(units, size=(2, count)), shape=(units, units))
    op = se.SpMatMulOp(graph, delay=rng.integers(1, slots + 1, count), max_delay=slots)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    values = array(steps + slots - 1, batch, units)
    units_of = array(variables, variables, batch, units), array(steps, variables, batch, units)
    units_of += array(variables, batch, units), array(steps, batch, units)
    trace, v = {"weight": array(variables, batch, count)}, {"weight": array(count)}
    spikes = (values > 0).astype(np.float32)
    for past in (History(values, slots, -1), History(spikes, slots, -1)):
        for got, expected in zip(op.window(v, trace, *units_of, past), op.window(v, trace, *units_of, past.each)):
            assert oracles.relative_error(got, expected) < 1e-5
    ring, sparse = op.ring(batch, dtype=np.float32), jnp.where(rng.random((units,)) < 0.1, values, 0)
    for sent in (values, sparse):
        for now in sent[:7]:
            ring = ring.push(now)
        assert oracles.relative_error(op.xw_to_y(op.read(ring), v), op.xw_to_y(ring.recent, v)) < 1e-5


def test_many_senders_of_few_synapses():
    """As units in the slots of a ring are: what they send is added up in parts."""
    rng, size, count = np.random.default_rng(0), 40_000, 120_000
    pre, post = rng.integers(size, size=count), rng.integers(50, size=count)
    conn = se.Connectivity.from_edges(pre, post, shape=(size, 50))
    weight, x = rng.normal(size=count), np.where(rng.random(size) < 0.04, rng.normal(size=size), 0)
    assert 4096 <= np.isin(pre, np.flatnonzero(x)).sum() <= count // 16
    y = se.SpMatMulOp(conn).xw_to_y(jnp.asarray(x, jnp.float32), {"weight": jnp.asarray(weight, jnp.float32)})
    expected = np.bincount(conn.post, weight * x[np.asarray(conn.pre)], minlength=50)
    assert oracles.relative_error(y, expected) < 1e-5


@pytest.mark.parametrize("share, graded", [(0.002, True), (0.5, False), (0.5, True)])
@float64
def test_large_rings(share, graded):
    """Forward, through time and over a batch, in which senders of a slot fill no whole words and the ring turns."""
    rng, units, slots, count, steps = np.random.default_rng(0), 4999, 5, 30_000, 8
    pre, post = rng.integers(units, size=(2, count))
    delay, weight = rng.integers(1, slots + 1, count), rng.normal(size=count)
    graph = se.from_edges(pre, post, weight, shape=(units, units), edge_attrs={"delay": delay}, dtype=float)
    op, silent = se.SpMatMulOp(graph), np.zeros((slots, units))
    sent = rng.normal(size=(steps, units)) * (rng.random((steps, units)) < share)
    sent = sent if graded else (sent != 0).astype(float)
    line, signal = np.concatenate([silent, sent]), rng.normal(size=(steps, units))
    expected = [np.bincount(post, weight * line[slots + t + 1 - delay, pre], units) for t in range(steps)]
    taught = np.zeros_like(line)
    for t in range(steps):
        np.add.at(taught, (slots + t + 1 - delay, pre), weight * signal[t, post])

    def step(ring, z):
        ring = ring.push(z)
        return ring, op.xw_to_y(op.read(ring), {"weight": graph.weight})

    run = lambda ring, sent: jax.lax.scan(step, ring, sent)[1]
    y, back = jax.vjp(jax.jit(functools.partial(run, op.ring())), jnp.asarray(sent))
    assert oracles.relative_error(y, np.array(expected)) < TOLERANCE
    assert oracles.relative_error(back(jnp.asarray(signal))[0], taught[slots:]) < TOLERANCE
    many = run(op.ring(2), jnp.asarray(np.stack([sent, sent[::-1]], 1)))
    assert oracles.relative_error(many[:, 0], np.array(expected)) < TOLERANCE
    assert oracles.relative_error(many[:, 1], run(op.ring(), jnp.asarray(sent[::-1]))) < TOLERANCE


def test_order_of_the_weights():
    """Delays follow a matrix's own data, as weights do, and those of tied synapses are their own."""
    weight = sp.coo_array(([2.0, 3.0, 5.0], ([2, 0, 1], [0, 1, 1])), shape=(3, 3))
    op = se.SpMatMulOp(weight, delay=[1, 2, 3])
    tied = se.SpMatMulOp(weight, tie=[0, 0, 1], delay=[1, 2, 3])
    ring = op.ring().push(jnp.array([1.0, 0, 0])).push(jnp.array([0.0, 7, 0])).push(jnp.array([0.0, 0, 0]))
    seen = []
    for _ in range(3):
        both = op.param(init=weight.data)(ring), tied.param(init=[1.0, 10.0])(ring)
        seen.append([y.tolist()[:2] for y in both])
        ring = ring.push(jnp.array([0.0, 0, 11]))
    # 2 -> 0 after one step, 0 -> 1 after two, 1 -> 1 after three
    assert seen == [[[0, 0], [0, 0]], [[22, 35], [11, 70]], [[22, 0], [11, 0]]]


def test_where_delays_come_from():
    graph = se.from_edges([0, 1], [1, 0], [3.0, 5.0], edge_attrs={"delay": [1.0, 4.0]})
    assert se.SpMatMulOp(graph).delays.steps.tolist() == [4, 1]
    assert se.SpMatMulOp(graph, delay=2).delays.depth == 2
    assert se.SpMatMulOp(graph, delay=False).delays is None is se.SpMatMulOp(graph.connectivity).delays
    param = se.SpMatMulOp(graph, delay=False).param(init=graph)
    assert param(jnp.ones(2)).tolist() == se.SpMatMulOp(graph, delay=1).param(init=graph)(
        se.SpMatMulOp(graph, delay=1).ring().push(jnp.ones(2))
    ).tolist()  # fmt: skip


@pytest.mark.parametrize("cell", few([se.cells.LIF, se.cells.ALIF], [se.cells.ALIF]))
def test_cells(cell):
    """What a unit hears is what others sent, later."""
    graph = se.from_edges([0, 0], [1, 2], [12.0, 12.0], shape=(3, 3), edge_attrs={"delay": [1, 3]})
    made = cell(3, se.ETraceParam({"weight": jnp.eye(3) * 12}, se.MatMulOp()), se.SpMatMulOp(graph).param(init=graph))
    xs = jnp.zeros((6, 2, 3)).at[1, :, 0].set(1.0)
    out, state = se.predict(made, made.init_state(2), xs)
    assert np.argwhere(out[:, 0]).tolist()[:3] == [[1, 0], [2, 1], [4, 2]]
    assert state.z.newest.shape == (2, 3)


def test_reset():
    """Some batch elements start from what they had sent before, though the pointers differ."""
    op = se.SpMatMulOp(se.from_edges([0], [0], [1.0]), delay=3)
    model, learner = Echo(op.param(init=[1.0])), se.D_RTRL()
    xs = jnp.arange(1.0, 9.0)[:, None, None] * jnp.ones((8, 2, 1))
    start = (jnp.zeros((2, 1)), op.ring(2))
    early, late = (se.predict(model, start, xs[:n])[1] for n in (2, 4))
    carry = eqx.tree_at(lambda c: c.state, learner.init(model, late, xs[0]), late)
    state = learner.reset(carry, jnp.array([True, False]), early).state
    after = [se.predict(model, s, xs[:3])[0][:, :, 0].T for s in (state, early, late)]
    assert after[0].tolist() == [after[1][0].tolist(), after[2][1].tolist()]


class Echo(eqx.Module):
    rec: Any

    def __call__(self, state, x):
        v, ring = state
        v = 0.5 * v + self.rec(ring)
        return (v, ring.push(x)), v


# --- trained delays --------------------------------------------------------------------------------------------------


@float64
def test_finite_differences_and_refloor():
    """The interpolated network, whose delays move within two steps and, between sequences, to others."""
    graph = se.from_edges([0, 1, 1], [0, 0, 1], [1.0, -2.0, 0.5], dtype=float)
    op = se.SpMatMulOp(graph, delay=[1.25, 2.5, 3.75], train_delay=True, max_delay=5)
    model, learner = Echo(op.param(init=graph)), se.D_RTRL()
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(12, 2)))
    traced = []

    @eqx.filter_jit
    def gradient(model):
        traced.append(model)
        carry = learner.init(model, (jnp.zeros(2), op.ring()), xs[0])
        losses, grads, _ = se.online_grad(learner, oracles.loss_fn, model, carry, xs, xs, chunk=4)
        return jnp.sum(losses), grads.rec.value

    def moved(by):
        return eqx.tree_at(lambda m: m.rec.value["delay"], model, model.rec.value["delay"] + by)

    _, grads = gradient(model)
    for k, direction in enumerate(1e-5 * jnp.eye(3)):
        slope = (gradient(moved(direction))[0] - gradient(moved(-direction))[0]) / 2e-5
        assert abs(slope - grads["delay"][k]) < 1e-6 * abs(slope)
    far = moved(jnp.array([0.5, -4.0, 3.0]))
    new = se.refloor(far)
    assert new.rec.value["delay"].tolist() == [1.75, 1.0, 5.0] and new.rec.op.delays.steps.tolist() == [1, 1, 4]
    whole = Echo(se.SpMatMulOp(graph, delay=[1, 1, 5]).param(init=graph))
    part = moved(jnp.array([-0.25, -1.5, 1.25]))
    ring = (jnp.zeros(2), op.ring())
    expected, _ = se.predict(whole, (jnp.zeros(2), whole.rec.op.ring()), xs)
    assert np.allclose(se.predict(se.refloor(part), ring, xs)[0], expected, rtol=0, atol=1e-14)
    gradient(new)
    assert len(traced) == 1
    with pytest.raises(ValueError, match=r"carry.*connect"):
        carry = learner.init(model, ring, xs[0])
        se.online_grad(learner, oracles.loss_fn, new, carry, xs, xs)


# --- refused ---------------------------------------------------------------------------------------------------------

GRAPH = se.from_edges([0, 1, 2], [1, 2, 0], shape=(3, 3))


def delayed(**options):
    return se.SpMatMulOp(GRAPH, **{"delay": [1, 2, 3], **options})


REFUSED = {
    "below one": (lambda: delayed(delay=[1, 0, 2]), r"delay: expected whole steps from 1 on, got 0\. A"),
    "not whole": (lambda: delayed(delay=1.5), r"delay: expected whole steps.*got 1.5"),
    "too long": (lambda: delayed(max_delay=2), r"delay: expected whole steps from 1 to 2, got 3"),
    "nan": (lambda: delayed(delay=[1, np.nan, 2], train_delay=True), r"delay: expected numbers from 1.*got nan"),
    "shape": (lambda: delayed(delay=[1, 2]), r"delay: expected shape \(3,\), got \(2,\)"),
    "kind": (lambda: delayed(delay=True), r"delay: expected numbers of steps, got bool"),
    "room": (lambda: delayed(delay=10**9), r"delay: expected at most .* senders"),
    "gates": (lambda: delayed(gated=True), r"delay: expected none with gated=True"),
    "no delays": (lambda: delayed(delay=None, train_delay=True), r"delay: expected delays with train_delay"),
    "no ring": (lambda: delayed(delay=False).ring(), r"delay: expected an op with delays"),
    "features": (lambda: delayed().ring(features=2), r"features: expected none with axis=-1, got 2"),
    "array": (lambda: delayed().param(jax.random.key(0))(jnp.ones(3)), r"x: expected a Ring of 3 steps.*delay=False"),
    "short": (
        lambda: delayed().param(jax.random.key(0))(delayed(delay=2).ring()),
        r"x: expected a Ring.*got 2 steps of 3",
    ),
    "pushed": (lambda: delayed().ring(4).push(jnp.ones(3)), r"sent: expected shape \(4, 3\), got \(3,\)"),
    "without": (lambda: delayed(train_delay=True).phi({"weight": jnp.ones(3)}), r"'delay': .*got \['weight'\]"),
    "other": (
        lambda: delayed(train_delay=True).phi({"weight": jnp.ones(3), "delay": jnp.ones(2)}),
        r"value\['delay'\]: expected shape \(3,\)",
    ),
    "rewired": (lambda: se.rewire(delayed().param(jax.random.key(0)), lambda p: p, [0, 1, 2]), r"without delays"),
    "snap": (lambda: start(se.SnAp(2)), r"op: a synapse of a SpMatMulOp with delays leads from another slot"),
}


def start(learner):
    op = se.SpMatMulOp(GRAPH, delay=2)
    return learner.init(Echo(op.param(jax.random.key(0))), (jnp.zeros(3), op.ring()), jnp.ones(3))


@pytest.mark.parametrize("make, words", REFUSED.values(), ids=REFUSED)
def test_refused(make, words):
    with pytest.raises((ValueError, NotImplementedError), match=words):
        make()


@pytest.mark.parametrize("chunk", few([1, 16], [16]))
def test_no_large_array(chunk):
    """No ring for each step of a window, nor all slots of its synapses."""
    rng, units, count, depth = np.random.default_rng(0), 400, 1200, 100
    pre, post = rng.integers(units, size=(2, count))
    op = se.SpMatMulOp(se.from_edges(pre, post, shape=(units, units)), delay=rng.integers(1, depth + 1, count))
    model, learner = Echo(op.param(jax.random.key(0))), se.D_RTRL()
    state, xs = (jnp.zeros(units), op.ring()), jnp.zeros((32, units))
    carry = learner.init(model, state, xs[0])
    grad = lambda *args: se.online_grad(learner, oracles.loss_fn, *args, chunk=chunk)
    sizes = [v.size for v, _ in inside_scans(jax.make_jaxpr(grad)(model, carry, xs, xs).jaxpr) if hasattr(v, "shape")]
    assert len(sizes) > 100
    assert max(sizes) <= max((4 + 2 * chunk) * (count + 2 * units), 2 * depth * units)
