"""The cells against their equations in plain numpy."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace import cells

STEPS, INPUTS, UNITS = 6, 3, 4
SPACE = (4, 2)  # a line of positions with two channels


@pytest.fixture(autouse=True)
def wide(x64):
    """Everything in float64."""


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def dense(num_pre, seed):
    w, b = normal(num_pre, UNITS, seed=seed), normal(UNITS, seed=seed)
    return se.ETraceParam({"weight": w, "bias": b}, se.MatMulOp()), lambda x: x @ w + b


def sparse(num_pre, seed):
    w = np.where(normal(num_pre, UNITS, seed=seed) > 0, normal(num_pre, UNITS, seed=seed), 0)
    graph = se.from_dense(w, dtype=jnp.float64)
    return se.ETraceParam({"weight": graph.weight}, se.SpMatMulOp(graph)), lambda x: x @ w


def conv(channels, seed):
    """A window of three positions, `SAME`."""
    w = normal(3, channels, SPACE[1], seed=seed)
    xinfo = jax.ShapeDtypeStruct((SPACE[0], channels), jnp.float64)

    def by_hand(x):
        wide = np.zeros((*x.shape[:-2], SPACE[0] + 2, channels))
        wide[..., 1:-1, :] = x
        return sum(wide[..., t : t + SPACE[0], :] @ w[t] for t in range(3))

    return se.ETraceParam({"weight": w}, se.ConvOp(xinfo, [1], "SAME")), by_hand


# Each kind: a maker of parameters, the shape of an input, of the units, and what the op is told of each.
KINDS = {
    "dense": (dense, (INPUTS,), UNITS, INPUTS, UNITS),
    "sparse": (sparse, (INPUTS,), (UNITS,), INPUTS, UNITS),
    "conv": (conv, (SPACE[0], INPUTS), SPACE, INPUTS, SPACE[1]),
}


def leaky_rate(inp, rec, h, x, decay=0.7):
    h = decay * h + (1 - decay) * np.tanh(inp[0](x) + rec[0](h))
    return h, h


def gru(inp, rec, h, x):
    r, u = sigmoid(inp[0](x) + rec[0](h)), sigmoid(inp[1](x) + rec[1](h))
    c = np.tanh(inp[2](x) + rec[2](r * h))
    h = (1 - u) * h + u * c
    return h, h


def mgu(inp, rec, h, x):
    f = sigmoid(inp[0](x) + rec[0](h))
    h = (1 - f) * h + f * np.tanh(inp[1](x) + rec[1](f * h))
    return h, h


def lif(inp, rec, state, x, decay=0.8, threshold=0.4):
    v, z = state
    u = decay * v + (1 - decay) * (inp[0](x) + rec[0](z))
    z = (u >= threshold).astype(float)
    return (u - threshold * z, z), z


def alif(inp, rec, state, x, decay=0.8, threshold=0.4, rho=0.9, beta=0.5):
    v, b, z = state
    u = decay * v + (1 - decay) * (inp[0](x) + rec[0](z))
    z = (u >= threshold + beta * b).astype(float)
    return (u - threshold * z, rho * b + (1 - rho) * z, z), z


# Each cell: how many parameters of each sort, how it is made, its equations, the number of its variables.
CELLS = {
    "leaky_rate": (1, lambda units, inp, rec: cells.LeakyRate(units, *inp, *rec, decay=0.7), leaky_rate, None),
    "gru": (3, lambda units, inp, rec: cells.GRU(units, *inp, *rec), gru, None),
    "mgu": (2, lambda units, inp, rec: cells.MGU(units, *inp, *rec), mgu, None),
    "lif": (1, lambda units, inp, rec: cells.LIF(units, *inp, *rec, decay=0.8, threshold=0.4), lif, 2),
    "alif": (
        1,
        lambda units, inp, rec: cells.ALIF(
            units, *inp, *rec, decay=0.8, threshold=0.4, adaptation_decay=0.9, adaptation=0.5
        ),
        alif,
        3,
    ),
}


def run(cell, state, xs):
    return eqx.filter_jit(lambda cell, state, xs: jax.lax.scan(lambda s, x: cell(s, x), state, xs))(cell, state, xs)


@pytest.mark.parametrize("batch", [(), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CELLS)
def test_equations(name, kind, batch):
    count, build, equations, variables = CELLS[name]
    make, x_shape, units, of_input, of_units = KINDS[kind]
    inp = [make(of_input, seed) for seed in range(count)]
    rec = [make(of_units, 10 + seed) for seed in range(count)]
    cell = build(units, [p for p, _ in inp], [p for p, _ in rec])
    xs = 4 * normal(STEPS, *batch, *x_shape, seed=5)
    shape = (*batch, *(units if isinstance(units, tuple) else (units,)))
    state = np.zeros(shape) if variables is None else (np.zeros(shape),) * variables
    initial = cell.init_state(*batch)
    assert [leaf.shape for leaf in jax.tree.leaves(initial)] == [shape] * (variables or 1)
    assert not any(leaf.any() for leaf in jax.tree.leaves(initial))
    got_state, got = run(cell, initial, jnp.asarray(xs))
    spikes = 0
    for x, y in zip(xs, got, strict=True):
        state, out = equations([f for _, f in inp], [f for _, f in rec], state, x)
        np.testing.assert_allclose(y, out, atol=1e-12)
        spikes += out.sum()
    for leaf, expected in zip(jax.tree.leaves(got_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=1e-12)
    if variables:
        assert 0 < spikes < got.size


@pytest.mark.parametrize("name", ["leaky_rate", "lif", "alif"])
def test_without_recurrence_or_without_input(name):
    _, build, equations, variables = CELLS[name]
    param, by_hand = dense(UNITS, 0)
    zero = lambda x: np.zeros(UNITS)
    x = 3 * normal(UNITS)
    for (inp, rec), hands in (((param, None), (by_hand, zero)), ((None, param), (zero, by_hand))):
        cell = build(UNITS, [inp], [rec])
        state = jax.tree.map(lambda a: a + 0.3, cell.init_state())
        old = np.asarray(state) if variables is None else tuple(map(np.asarray, jax.tree.leaves(state)))
        given = None if inp is None else jnp.asarray(x)
        np.testing.assert_allclose(cell(state, given)[1], equations([hands[0]], [hands[1]], old, x)[1])


TRAINED = {
    "leaky_rate": lambda p, c: cells.LeakyRate(UNITS, p, decay=c[0]),
    "lif": lambda p, c: cells.LIF(UNITS, p, decay=c[0], threshold=c[1]),
    "alif": lambda p, c: cells.ALIF(UNITS, p, None, c[0], c[1], c[2], c[3]),
}


@pytest.mark.parametrize("name", TRAINED)
def test_constants_are_trained_where_they_are_parameters(name):
    param, _ = dense(INPUTS, 0)
    numbers = [0.8, 0.4, 0.9, 0.5]
    logits = [jnp.full(UNITS, np.log(n / (1 - n))) for n in numbers]
    fixed = TRAINED[name](param, numbers)
    per_unit = TRAINED[name](param, [np.full(UNITS, n) for n in numbers])
    trained = TRAINED[name](param, [se.ElemWiseParam(l, jax.nn.sigmoid) for l in logits])
    xs = jnp.asarray(2 * normal(STEPS, 2, INPUTS, seed=5))
    outs = [run(cell, cell.init_state(2), xs) for cell in (fixed, per_unit, trained)]
    for other in outs[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), outs[0], other)
    assert not se.trainable(fixed).decay.value and not se.trainable(per_unit).decay.value
    loss = lambda cell: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(run(cell, cell.init_state(2), xs)[0]))
    assert np.all(eqx.filter_grad(loss)(trained).decay.value != 0)
    assert not np.any(eqx.filter_grad(loss)(per_unit).decay.value)


def test_the_activation_and_the_spike_can_be_given():
    param, by_hand = dense(INPUTS, 0)
    x = normal(INPUTS)
    relu = cells.LeakyRate(UNITS, param, decay=0.0, activation=jax.nn.relu)
    np.testing.assert_allclose(relu(relu.init_state(), jnp.asarray(x))[1], np.maximum(by_hand(x), 0))
    soft = cells.LIF(UNITS, param, decay=0.0, threshold=2.0, spike=jnp.tanh)
    z = np.tanh(by_hand(x) / 2 - 1)
    state, out = soft(soft.init_state(), jnp.asarray(x))
    np.testing.assert_allclose(out, z)
    np.testing.assert_allclose(state.v, by_hand(x) - 2 * z)
    adaptive = cells.ALIF(UNITS, param, decay=0.0, threshold=2.0, spike=jnp.tanh, adaptation=3.0)
    state = cells.ALIFState(jnp.zeros(UNITS), jnp.full(UNITS, 0.5), jnp.zeros(UNITS))
    np.testing.assert_allclose(adaptive(state, jnp.asarray(x))[1], np.tanh((by_hand(x) - 3.5) / 2))


def test_many_cells_at_once():
    """A cell made inside of jit and vmap, constants and all."""
    make = lambda w: cells.ALIF(UNITS, se.ETraceParam({"weight": w}, se.MatMulOp()), threshold=0.1)
    ws, x = jnp.asarray(normal(5, INPUTS, UNITS)), jnp.asarray(9 * normal(INPUTS))
    step = lambda cell: cell(cell.init_state(), x)[1]
    expected = jnp.stack([step(make(w)) for w in ws])
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda w: step(make(w))))(ws), expected)
    np.testing.assert_array_equal(eqx.filter_vmap(step)(eqx.filter_vmap(make)(ws)), expected)
    assert eqx.filter_eval_shape(make, ws[0]).shape == (UNITS,)


@pytest.mark.parametrize(
    "make, name, low, high, got",
    [
        (lambda c: cells.LeakyRate(UNITS, None, decay=c), "decay", 0, 1, 1.5),
        (lambda c: cells.LeakyRate(UNITS, None, decay=c), "decay", 0, 1, np.nan),
        (lambda c: cells.LIF(UNITS, None, decay=c), "decay", 0, 1, [0.5, -0.1]),
        (lambda c: cells.LIF(UNITS, None, threshold=c), "threshold", 1e-12, np.inf, 0.0),
        (lambda c: cells.ALIF(UNITS, None, decay=c), "decay", 0, 1, 2),
        (lambda c: cells.ALIF(UNITS, None, threshold=c), "threshold", 1e-12, np.inf, -1.0),
        (lambda c: cells.ALIF(UNITS, None, adaptation_decay=c), "adaptation_decay", 0, 1, 1.01),
        (lambda c: cells.ALIF(UNITS, None, adaptation=c), "adaptation", 0, np.inf, -0.5),
        (lambda c: cells.LIF(UNITS, None, reset=c), "reset", 0, np.inf, -0.5),
    ],
)
def test_constants_out_of_range(make, name, low, high, got):
    message = f"{name}: expected values from {low} to {high}, got {got}. To train it, give an ElemWiseParam."
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make(got)


@pytest.mark.parametrize("cell", [cells.LIF, cells.ALIF])
@pytest.mark.parametrize("got", [-1, 1.5, [2, -1]])
def test_refractoriness_in_no_whole_steps(cell, got):
    with pytest.raises(ValueError, match=r"^refractory: expected whole steps, 0 or more, got .*Divide a time by"):
        cell(2, None, refractory=got)


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (cells.LeakyRate, "decay"),
        *[(cells.LIF, name) for name in ("decay", "threshold", "reset", "refractory")],
        *[(cells.ALIF, name) for name in ("decay", "threshold", "adaptation_decay", "adaptation", "reset")],
        (cells.ALIF, "refractory"),
    ],
)
def test_a_constant_that_does_not_fit_the_units(cell, name):
    def value(shape):
        return np.ones(shape, int if name == "refractory" else float)

    cell(3, None, **{name: value(3)}), cell((2, 3), None, **{name: value((2, 1))})
    given = [value(shape) for shape in [(2,), (2, 3), (1, 3)]]
    for wrong in [*given, *([0 * given[0]] if name == "refractory" else [])]:
        with pytest.raises(ValueError, match=re.escape(f"{name}: expected an array that fits the units, (3,), got")):
            cell(3, None, **{name: wrong})
    if name != "refractory":
        with pytest.raises(ValueError, match=re.escape(f"{name}: expected an array that fits the units, (3,), got")):
            cell(3, None, **{name: se.ElemWiseParam(jnp.ones(2))})


@pytest.mark.parametrize("name", ["eigenvalue", "scale"])
def test_a_constant_of_a_linear_cell_that_does_not_fit_the_units(name):
    given = {"eigenvalue": jnp.full(3, 0.5), "scale": jnp.ones(3)} | {name: jnp.ones(2)}
    with pytest.raises(ValueError, match=re.escape(f"{name}: expected an array that fits the units, (3,), got")):
        cells.LRU(3, dense(3, 0)[0], **given)


@pytest.mark.parametrize("name", CELLS)
def test_outputs_that_do_not_fit_the_units(name):
    count, build, _, _ = CELLS[name]
    inp, rec = [dense(INPUTS, 0)[0]] * count, [dense(UNITS, 0)[0]] * count
    wide = build(UNITS + 1, inp, [None] * count) if name not in ("gru", "mgu") else build(UNITS + 1, inp, rec)
    message = r"inp: expected an output of the shape of the state, \(5,\), got \(4,\). Fit the weights to `units`"
    with pytest.raises(ValueError, match=message):
        wide(wide.init_state(), jnp.ones(INPUTS))
    cell = build(UNITS, inp, rec)
    message = (
        r"inp: expected an output of the shape of the state, \(4,\), got \(2, 4\).* the batch axes of `init_state`"
    )
    with pytest.raises(ValueError, match=message):
        cell(cell.init_state(), jnp.ones((2, INPUTS)))
    # One input for the whole batch is broadcast.
    assert cell(cell.init_state(2), jnp.ones(INPUTS))[1].shape == (2, UNITS)
    narrow = se.ETraceParam({"weight": jnp.ones((UNITS, 1))}, se.MatMulOp())
    with pytest.raises(ValueError, match=r"rec: expected an output of the shape of the state, \(4,\), got \(1,\)"):
        bad = build(UNITS, inp, [narrow] * count)
        bad(bad.init_state(), jnp.ones(INPUTS))


# --- the published eligibility of e-prop -----------------------------------------------------------------------------

LEAK, SLOW, THETA, BETA, LONG = np.exp(-1 / 20), np.exp(-1 / 200), 0.6, 1.7 * (1 - np.exp(-1 / 200)), 42


def eprop_task(seed):
    """Weights `(pre, post)`, inputs, and what multiplies each spike in the loss."""
    rng = np.random.default_rng(seed)
    w = {"inp": rng.normal(size=(INPUTS, UNITS)), "rec": 0.5 * rng.normal(size=(UNITS, UNITS))}
    return w, (rng.random((LONG, INPUTS)) < 0.3).astype(float), rng.normal(size=(LONG, UNITS))


def published_eprop(w, xs, signal, beta, silent):
    """Spikes and gradients by the equations of the paper, which take the whole reset at the next step; no (1 - a)."""
    last, v, z, slow = np.full(UNITS, -LONG), np.zeros(UNITS), np.zeros(UNITS), np.zeros(UNITS)
    filtered = {"inp": np.zeros(INPUTS), "rec": np.zeros(UNITS)}
    eps = {k: np.zeros_like(w[k]) for k in w}
    grads, spikes = {k: np.zeros_like(w[k]) for k in w}, []
    for t, (x, c) in enumerate(zip(xs, signal)):
        slow = SLOW * slow + z
        v = LEAK * v + x @ w["inp"] + z @ w["rec"] - THETA * z
        filtered = {"inp": LEAK * filtered["inp"] + x, "rec": LEAK * filtered["rec"] + z}
        high = THETA + beta * slow
        free = t - last > silent
        z = ((v >= high) & free).astype(float)
        last = np.where(z, t, last)
        psi = free * 0.3 / THETA * np.maximum(0, 1 - np.abs(v - high) / THETA)
        for k in w:
            e = psi * (filtered[k][:, None] - beta * eps[k])
            eps[k] = SLOW * eps[k] + e
            grads[k] += c * e
        spikes.append(z)
    return np.array(spikes), grads


def eprop_cell(name, w, **options):
    """The same neurons in a cell: weights by (1 - a), the reset by a, adaptation by (1 - rho)."""
    inp, rec = (se.ETraceParam({"weight": w[k] / (1 - LEAK)}, se.MatMulOp()) for k in ("inp", "rec"))
    options = {"decay": LEAK, "threshold": THETA, "reset": THETA / LEAK} | options
    if name == "lif":
        return cells.LIF(UNITS, inp, rec, **options)
    return cells.ALIF(UNITS, inp, rec, adaptation_decay=SLOW, adaptation=BETA / (1 - SLOW), **options)


def online(learner, cell, xs, signal, chunk):
    carry = learner.init(cell, cell.init_state(), xs[0])
    half, found = LONG // 3, []
    for part in (slice(0, half), slice(half, LONG)):  # the carry goes on
        loss = lambda z, c: jnp.sum(z * c)
        _, grads, carry = se.online_grad(learner, loss, cell, carry, xs[part], signal[part], chunk=chunk)
        found.append(grads)
    return {k: sum(np.asarray(getattr(g, k).value["weight"]) for g in found) / (1 - LEAK) for k in ("inp", "rec")}


SILENT = np.array([0, 1, 2, 4])


@pytest.mark.parametrize(
    "name, learner, silent",
    [("lif", se.D_RTRL(), 0), ("alif", se.EProp("z"), 0), ("lif", se.D_RTRL(), 3), ("alif", se.EProp("z"), SILENT)],
    ids=["lif", "alif", "refractory lif", "refractory alif"],
)
def test_without_the_gradient_of_the_reset_is_the_published_eligibility(name, learner, silent):
    w, xs, signal = eprop_task(0)
    spikes, right = published_eprop(w, xs, signal, BETA if name == "alif" else 0.0, silent)
    assert 0.02 < spikes.mean() < 0.9
    cell = eprop_cell(name, w, reset_gradient=False, refractory=silent)
    xs, signal = jnp.asarray(xs), jnp.asarray(signal)
    np.testing.assert_array_equal(jax.lax.scan(lambda s, x: cell(s, x), cell.init_state(), xs)[1], spikes)
    found = online(learner, cell, xs, signal, chunk=7)
    for k in right:
        np.testing.assert_allclose(found[k], right[k], rtol=1e-9, atol=1e-12)
    with_reset = online(learner, eprop_cell(name, w, refractory=silent), xs, signal, chunk=7)
    assert all(np.linalg.norm(with_reset[k] - right[k]) > 1e-3 * np.linalg.norm(right[k]) for k in right)


@pytest.mark.parametrize("gradient", [True, False])
def test_what_a_spike_takes_can_be_trained(gradient):
    """Its own derivative is there, with the gradient of the spike and without."""
    param, _ = dense(INPUTS, 0)
    x = jnp.asarray(9 * normal(INPUTS))
    make = lambda r: cells.LIF(UNITS, param, reset=r, reset_gradient=gradient)
    state, z = make(1.0).init_state(), make(1.0)(make(1.0).init_state(), x)[1]
    slope = jax.grad(lambda r: make(se.ElemWiseParam(r))(state, x)[0].v.sum())(jnp.zeros(()))
    assert float(slope) == -float(z.sum()) != 0
    default, same = cells.LIF(UNITS, param, threshold=0.5), cells.LIF(UNITS, param, threshold=0.5, reset=0.5)
    np.testing.assert_array_equal(default(default.init_state(), x)[0].v, same(same.init_state(), x)[0].v)


def test_decays_from_time_constants():
    param, _ = dense(INPUTS, 0)
    tau = np.array([5.0, 10.0, 20.0, 40.0])
    cell = cells.ALIF.from_time_constants(UNITS, param, tau=tau, dt=0.5, tau_adaptation=200.0, threshold=2.0)
    np.testing.assert_allclose(cell.decay(), np.exp(-0.5 / tau), rtol=1e-12)
    np.testing.assert_allclose(cell.adaptation_decay(), np.exp(-0.5 / 200), rtol=1e-12)
    assert float(cell.threshold()) == 2 and cell.inp is param
    made = cells.LeakyRate.from_time_constants(WORM, INPUTS, key=KEY, tau=20.0, dt=1.0)
    np.testing.assert_allclose(made.decay(), np.exp(-1 / 20), rtol=1e-12)
    assert made.shape == (279,) and float(cells.LIF.from_time_constants(UNITS, param, tau=1.0, dt=1.0).decay()) < 0.37
    for name, times in (("tau", (0.0, 1.0)), ("dt", (1.0, -1.0))):
        with pytest.raises(ValueError, match=f"{name}: expected positive times, got"):
            cells.LIF.from_time_constants(UNITS, param, tau=times[0], dt=times[1])


# --- input that nothing reads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", few([cells.LIF, cells.ALIF, cells.LeakyRate], [cells.ALIF, cells.LeakyRate]))
def test_a_cell_without_input_refuses_one(make):
    cell = make(UNITS, None, se.ETraceParam({"weight": jnp.ones((UNITS, UNITS))}, se.MatMulOp()))
    with pytest.raises(ValueError, match=r"x: the cell has no parameter that reads its input, got shape \(7,\)"):
        cell(cell.init_state(), jnp.ones(7))
    for learner in (se.D_RTRL(), se.SnAp(), se.BPTT()):
        carry = learner.init(cell, cell.init_state(2), None)
        losses = se.online_grad(learner, lambda out, y: jnp.sum((out - y) ** 2), cell, carry, None, jnp.ones(3))[0]
        assert losses.shape == (3,)


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.SnAp(), se.RTRL(), se.BPTT(), se.UORO(key=jax.random.key(0))])
def test_a_model_that_does_not_read_its_input(learner):
    param = se.ETraceParam({"weight": jnp.ones((UNITS, UNITS))}, se.MatMulOp())

    class Alone(eqx.Module):
        rec: se.ETraceParam

        def __call__(self, h, x):
            h = jax.jit(lambda h, x: 0.9 * h + self.rec(h))(h, x)
            return h, h

    model, state = Alone(param), jnp.zeros(UNITS)
    with pytest.raises(ValueError, match=r"x: the model does not read its input, of shape \(7,\) and \(\)"):
        learner.init(model, state, (jnp.ones(7), 1.0))
    for nothing in (None, (), jnp.ones((0,))):
        learner.init(model, state, nothing)


# --- cells that make their parameters --------------------------------------------------------------------------------

KEY = jax.random.key(3)
WORM = se.datasets.worm()
MADE = [cells.GRU, cells.MGU, cells.LIF, cells.ALIF, cells.LeakyRate]
CONSTANTS = {
    "LIF": {"threshold": 0.1, "decay": 0.5},
    "ALIF": {"threshold": 0.1, "reset": 0.2},
    "LeakyRate": {"decay": 0.3},
}


def parts(cell, start):
    return [getattr(cell, name) for name in vars(cell) if name.startswith(start)]


@pytest.mark.parametrize("make", MADE)
def test_a_cell_on_a_graph_is_the_one_of_its_parameters(make):
    constants = CONSTANTS.get(make.__name__, {})
    cell = make.of(WORM, inputs=INPUTS, key=KEY, **constants)
    inp, rec = parts(cell, "inp"), parts(cell, "rec")
    units = WORM.connectivity.num_post
    assert {type(p.op) for p in inp} == {se.MatMulOp} and {type(p.op) for p in rec} == {se.SpMatMulOp}
    assert all(sorted(p.value) == ["weight"] and p.value["weight"].shape == (INPUTS, units) for p in inp)
    assert all(p.value["bias"].shape == (units,) and not np.any(p.value["bias"]) for p in rec)
    drawn = [np.asarray(p.value["weight"]).ravel()[:10] for p in (*inp, *rec)]
    assert len(np.unique(drawn)) == 10 * len(drawn)
    by_hand = make(units, *inp, *rec, **constants)
    assert jax.tree.structure(cell) == jax.tree.structure(by_hand)
    assert all(map(np.array_equal, jax.tree.leaves(cell), jax.tree.leaves(by_hand)))


@pytest.mark.parametrize("make", MADE)
def test_of_takes_units_graphs_and_options(make):
    dense = make.of(np.int32(5), INPUTS, key=KEY, bias=False, dtype=jnp.float32, init=jax.nn.initializers.ones)
    for p in parts(dense, "rec"):
        assert p.value["weight"].tolist() == [[1.0] * 5] * 5 and sorted(p.value) == ["weight"]
    assert {leaf.dtype for p in parts(dense, "inp") for leaf in jax.tree.leaves(p.value)} == {np.dtype(np.float32)}
    sign = np.asarray(WORM.node_attrs["sign"])[WORM.connectivity.pre]
    senses = se.Connectivity.from_edges([0, 1, 1], [5, 6, 7], shape=(2, 279))
    cell = make.of(WORM, senses, key=KEY, weight_fn=se.SignLock(sign), init=WORM)
    for p in parts(cell, "rec"):
        assert np.array_equal(p.value["weight"], sign * WORM.weight)
    assert all(p.value["weight"].shape == (3,) and np.std(p.value["weight"]) > 0 for p in parts(cell, "inp"))
    assert jax.eval_shape(cell, cell.init_state(), jnp.ones(2))[1].shape == (279,)


@pytest.mark.parametrize("make", [cells.LIF, cells.ALIF, cells.LeakyRate])
def test_of_without_input(make):
    cell = make.of(4, None, key=KEY)
    assert cell.inp is None and jax.eval_shape(lambda: cell(cell.init_state(), None))[1].shape == (4,)


def test_linear_units_make_their_input_and_eigenvalues():
    cell = cells.LRU.of(200, INPUTS, key=KEY)
    weight = np.asarray(cell.inp.value["weight"])
    assert weight.dtype == complex and 0.8 < np.var(weight) * INPUTS < 1.2 and sorted(cell.inp.value) == ["weight"]
    assert cell.eigenvalue().shape == (200,) and isinstance(cell.eigenvalue, se.ETraceParam)
    graph = se.from_edges([0, 1], [1, 2], shape=(2, 3))
    given = cells.LRU.of(3, graph, key=KEY, bias=True, dtype=jnp.float32, eigenvalue=0.5, scale=2.0)
    assert given.inp.value["bias"].dtype == jnp.float32 and given.scale() == 2
    assert jax.eval_shape(given, given.init_state(), jnp.ones(2))[1].shape == (6,)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: cells.GRU.of(WORM, None, key=KEY),
            TypeError,
            "inputs: expected a Graph, .* got NoneType. se.from_net",
        ),
        (lambda: cells.GRU.of(3.0, 2, key=KEY), TypeError, "graph: expected a Graph, .* got float"),
        (lambda: cells.LIF.of(WORM.to_scipy(), 2, key=KEY), TypeError, "graph: .* got csc_array"),
        (lambda: cells.LIF.of(-3, 2, key=KEY), ValueError, "graph: expected a number of units, got -3"),
        (lambda: cells.LIF.of(3, True, key=KEY), TypeError, "inputs: expected a whole number, got True"),
        (lambda: cells.LIF.of(3, 2, key=1), TypeError, "key: expected one key to draw from, .* got 1"),
        (lambda: cells.LIF.of(3, 2, key=KEY, tau=1.0), TypeError, "tau: expected one of .'decay', .* of LIF, or"),
        (lambda: cells.LIF.of(3, 2, key=KEY, rec=None), TypeError, "rec: .* call the cell itself"),
        (lambda: cells.LIF.of(3, 2, key=KEY, decay=2.0), ValueError, "decay: expected values from 0 to 1"),
        (
            lambda: cells.LIF.of(3, WORM, key=KEY),
            ValueError,
            r"inputs: expected synapses onto the 3 units, .*\(279, 279",
        ),
        (
            lambda: cells.MGU.of(se.from_edges([0], [1], shape=(2, 3)), 2, key=KEY),
            ValueError,
            r"graph: expected synapses onto the 2 units, got shape \(2, 3\). A cell's own graph leads",
        ),
        (lambda: cells.LRU.of(WORM, 2, key=KEY), TypeError, "units: expected a whole number"),
        (lambda: cells.LRU.of(3, None, key=KEY), TypeError, "inputs: expected a Graph"),
        (lambda: cells.LRU.of(3, 2, key=None), TypeError, "key: expected one key"),
    ],
)
def test_of_refuses_in_words(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_cell_of_a_cell_has_parameters_of_its_own():
    class Gained(se.cells.LIF):
        gain: se.ETraceParam

        def __init__(self, units, inp):
            super().__init__(units, inp, decay=0.8)
            self.gain = se.MatMulOp().param(jax.random.key(1), 7, 9)

    cell = Gained(4, se.MatMulOp().param(jax.random.key(0), 2, 4))
    assert cell.decay() == pytest.approx(0.8) and cell.gain.value["weight"].shape == (7, 9)
