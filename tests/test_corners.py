"""Models at the edge of what the analysis meets."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from soak import few

import sparse_etrace as se

UNITS = 4


def normal(*shape, seed=0, dtype=None):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)


def loss_fn(out, y):
    return jnp.sum((out - y) ** 2)


class Made(eqx.Module):
    """The weights of one op are made by `make`, from another parameter."""

    made: object
    rec: se.ETraceParam
    make: object = eqx.field(static=True)

    def __call__(self, h, x):
        inp = se.ETraceParam({"weight": self.make(self.made)}, se.MatMulOp())
        h = 0.7 * h + jnp.tanh(inp(x) + self.rec(h))
        return h, h


def stopped(model, weight):
    """The same model with stopped recurrence, by hand."""

    def run(model, xs, ys):
        h, total = jnp.zeros((2, UNITS)), 0.0
        for x, y in zip(xs, ys):
            h = 0.7 * h + jnp.tanh(x @ weight(model) + jax.lax.stop_gradient(h) @ model.rec.value["weight"])
            total += loss_fn(h, y)
        return total

    return eqx.filter_jit(eqx.filter_grad(run))(model, normal(5, 2, 3), normal(5, 2, UNITS, seed=1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", few([1, 2, 5], [2]))
@pytest.mark.parametrize("how", ["op", "cut", "plain"])
def test_weights_that_are_made_learn(how, chunk):
    value = normal(3, UNITS, seed=2)
    param, make, weight = {
        "op": (se.ElemWiseParam(value, jnp.tanh), lambda p: p(), lambda m: jnp.tanh(m.made.value)),
        "cut": (value, se.cut(lambda w: w / jnp.linalg.norm(w)), lambda m: m.made / jnp.linalg.norm(m.made)),
        "plain": (value, lambda w: 2 * w, lambda m: 2 * m.made),
    }[how]
    model = Made(param, se.ETraceParam({"weight": normal(UNITS, UNITS, seed=3) / 2}, se.MatMulOp()), make)
    expected = stopped(model, weight)
    learner, xs = se.D_RTRL(), normal(5, 2, 3)
    carry = learner.init(model, jnp.zeros((2, UNITS)), xs[0])
    _, grads, _ = se.online_grad(learner, loss_fn, model, carry, xs, normal(5, 2, UNITS, seed=1), chunk=chunk)
    got, want = jax.tree.leaves(grads), jax.tree.leaves(eqx.filter(expected, se.trainable(model)))
    assert all(float(jnp.max(jnp.abs(w))) > 0.1 for w in want)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-12)
    first = se.explain(learner, model, jnp.zeros((2, UNITS)), xs[0]).rows[0]
    assert first.rule == "diagonal" and first.reached == 3 * UNITS


class Narrow(eqx.Module):
    """bfloat16 weights drive a float32 state."""

    inp: se.ETraceParam
    rate: se.ETraceParam

    def __call__(self, h, x):
        y = self.inp(x.astype(jnp.bfloat16)).astype(jnp.float32)
        h = self.rate().astype(jnp.float32) * h + y
        return h, h


TRACED = [se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid()]


@pytest.mark.parametrize("learner", few(TRACED, TRACED[:2]), ids=lambda learner: type(learner).__name__)
def test_mixed_precision(learner):
    weight = {"weight": normal(3, UNITS, dtype=jnp.bfloat16), "bias": jnp.zeros(UNITS, jnp.bfloat16)}
    rate = se.ElemWiseParam(jnp.full(UNITS, 0.5, jnp.bfloat16))
    model, xs = Narrow(se.ETraceParam(weight, se.MatMulOp()), rate), normal(6, 2, 3, dtype=jnp.float32)
    ys = normal(6, 2, UNITS, seed=1, dtype=jnp.float32)
    carry = learner.init(model, jnp.zeros((2, UNITS)), xs[0])
    _, grads, _ = se.online_grad(learner, loss_fn, model, carry, xs, ys, chunk=4)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    _, exact, _ = se.online_grad(se.BPTT(), loss_fn, model, se.BPTT().init(model, jnp.zeros((2, UNITS)), xs[0]), xs, ys)
    for name in ("inp", "rate"):
        for g, e in zip(jax.tree.leaves(getattr(grads, name)), jax.tree.leaves(getattr(exact, name)), strict=True):
            g, e = np.ravel(g).astype(float), np.ravel(e).astype(float)
            assert g @ e > 0.9 * np.linalg.norm(g) * np.linalg.norm(e)


class Keyed(eqx.Module):
    inp: se.ETraceParam

    def __call__(self, state, x):
        jax.debug.callback(seen.append, x[..., 0].sum())
        h = 0.5 * state["h"] + self.inp(x)
        return {"key": state["key"], "h": h, "line": jnp.concatenate([h[None], state["line"][:-1]])}, h


seen: list = []


def keyed(line):
    model = Keyed(se.ETraceParam({"weight": normal(3, UNITS, dtype=jnp.float32)}, se.MatMulOp()))
    state = {"key": jax.random.key(1), "h": jnp.ones((2, UNITS)), "line": jnp.ones((line, 2, UNITS))}
    learner = se.D_RTRL()
    return learner, model, learner.init(model, state, jnp.ones((2, 3)))


def test_side_effects_of_a_model_are_kept():
    learner, model, carry = keyed(3)
    seen.clear()
    se.online_grad(learner, lambda out, _: jnp.sum(out), model, carry, jnp.ones((3, 2, 3)), None)
    jax.effects_barrier()
    assert len(seen) == 3


@pytest.mark.parametrize("learner", [se.RTRL(), se.Bridged(2, se.RTRL())], ids=["alone", "bridged"])
def test_side_effects_are_seen_once(learner):
    """Also where a rule runs the model again, for derivatives by columns."""

    def step(pace, state, x):
        jax.debug.callback(seen.append, state.sum())
        state = jnp.tanh(pace * state + x)
        return state, state

    model, xs = jax.tree_util.Partial(step, jnp.full(3, 0.5)), jnp.ones((4, 3))
    carry = learner.init(model, xs[0], xs[0])
    seen.clear()
    se.online_grad(learner, lambda out, _: jnp.sum(out), model, carry, xs, None)
    jax.effects_barrier()
    assert len(seen) == 4


def test_reset_leaves_shared_keys_alone():
    learner, model, carry = keyed(3)
    start = {"key": jax.random.key(7), "h": jnp.zeros((2, UNITS)), "line": jnp.zeros((3, 2, UNITS))}
    with pytest.raises(ValueError, match=r"state: a leaf of shape \(3, 2, 4\) has its batch axes.*Put them first"):
        learner.reset(carry, jnp.array([True, False]), start)
    carry = eqx.tree_at(lambda c: c.state, carry, {k: v for k, v in carry.state.items() if k != "line"})
    del start["line"]
    some = learner.reset(carry, jnp.array([True, False]), start)
    assert jnp.array_equal(jax.random.key_data(some.state["key"]), jax.random.key_data(jax.random.key(1)))
    assert some.state["h"][:, 0].tolist() == [0, 1]
    everything = learner.reset(carry, jnp.array([True, True]), start)
    assert jnp.array_equal(jax.random.key_data(everything.state["key"]), jax.random.key_data(jax.random.key(7)))


class Hidden(eqx.Module):
    rec: se.ETraceParam

    def __call__(self, h, x):
        h = 0.5 * h + x + se.cut(lambda h: self.rec(h))(h)
        return h, h


def test_an_op_inside_a_cut_is_refused():
    model = Hidden(se.ETraceParam({"weight": jnp.eye(UNITS)}, se.MatMulOp()))
    with pytest.raises(NotImplementedError, match=r"an op or a cut runs inside `se\.cut` at .*test_corners\.py"):
        se.D_RTRL().init(model, jnp.zeros(UNITS), jnp.zeros(UNITS))


def linear():
    cell = se.cells.LeakyRate(UNITS, se.ETraceParam({"weight": normal(3, UNITS, dtype=jnp.float32)}, se.MatMulOp()))
    return cell, cell.init_state(2), jnp.ones((4, 2, 3))


@pytest.mark.parametrize("other", [se.ES_D_RTRL(), se.BPTT(), se.D_RTRL(trace_dtype=jnp.bfloat16)], ids=str)
def test_the_carry_of_another_learner_is_refused(other):
    cell, state, xs = linear()
    carry = other.init(cell, state, xs[0])
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner"):
        se.online_grad(se.D_RTRL(), lambda out, _: jnp.sum(out), cell, carry, xs, None)
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner"):
        se.D_RTRL().step(cell, carry, xs[0])


@pytest.mark.parametrize("loss", [lambda out, _: out, lambda out, _: (jnp.sum(out), out)], ids=["array", "pair"])
@pytest.mark.parametrize("learner", [se.D_RTRL(), se.BPTT()], ids=lambda learner: type(learner).__name__)
def test_a_loss_that_is_no_scalar_is_refused(learner, loss):
    cell, state, xs = linear()
    with pytest.raises(ValueError, match=r"loss_fn: expected a scalar for each step, got .*\. Sum or average"):
        se.online_grad(learner, loss, cell, learner.init(cell, state, xs[0]), xs, None)


class Index(se.ETraceOp):
    """Rows of a table, chosen by an integer."""

    @property
    def input_ndim(self):
        return 0

    def xw_to_y(self, x, w):
        return w[x]

    def yw_to_w(self, y, e):
        return y[..., None, :] * e


class Table(eqx.Module):
    table: se.ETraceParam

    def __call__(self, h, x):
        h = 0.5 * h + self.table(x)
        return h, h


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("learner", few(TRACED, TRACED[1:]), ids=lambda learner: type(learner).__name__)
def test_an_index_is_never_low_pass_filtered(learner):
    model, xs = Table(se.ETraceParam(normal(6, UNITS), Index())), jnp.array([[0, 3], [2, 5], [0, 0], [1, 3]])
    ys = normal(4, 2, UNITS, seed=1)
    carry = learner.init(model, jnp.zeros((2, UNITS)), xs[0])
    _, grads, _ = se.online_grad(learner, loss_fn, model, carry, xs, ys, chunk=3)
    _, exact, _ = se.online_grad(se.BPTT(), loss_fn, model, se.BPTT().init(model, jnp.zeros((2, UNITS)), xs[0]), xs, ys)
    np.testing.assert_allclose(grads.table.value, exact.table.value, rtol=1e-10)


@pytest.mark.parametrize("learner", [se.D_RTRL(allow_zero=("imp",)), se.BPTT(allow_zero=("imp",))], ids=["d", "bptt"])
def test_a_name_that_is_no_leaf_is_refused(learner):
    cell, state, xs = linear()
    with pytest.raises(ValueError, match=r"allow_zero: 'imp' is no leaf of the model\. Its leaves are inp\.value"):
        learner.init(cell, state, xs[0])


def test_no_synapses():
    none = se.SpMatMulOp(se.Connectivity.from_edges([], [], shape=(UNITS, UNITS)))
    cell = se.cells.LeakyRate(
        UNITS,
        se.ETraceParam({"weight": normal(3, UNITS, dtype=jnp.float32)}, se.MatMulOp()),
        se.ETraceParam({"weight": jnp.zeros(0)}, none),
    )
    for learner in (se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid(), se.BPTT()):
        carry = learner.init(cell, cell.init_state(), jnp.ones(3))
        _, grads, _ = se.online_grad(learner, lambda out, _: jnp.sum(out), cell, carry, jnp.ones((3, 3)), None)
        assert grads.rec.value["weight"].shape == (0,)


def test_a_smaller_batch_is_refused():
    cell, state, xs = linear()
    data = [(xs, jnp.zeros((4, 2, UNITS))), (xs[:, :1], jnp.zeros((4, 1, UNITS)))]
    with pytest.raises(ValueError, match=r"data: expected one step.*\(2, 3\).*got \[\(1, 3\), \(1, 4\)\]\. Leave out"):
        se.fit(se.D_RTRL(), loss_fn, optax.sgd(0.1), cell, data, state=state, progress=False)


def test_cut_takes_keywords():
    assert se.cut(jnp.sum)(jnp.ones((2, 3)), axis=0).tolist() == [2, 2, 2]


class Turning(eqx.Module):
    inp: se.ETraceParam

    def __call__(self, z, x):
        z = 0.9 * jnp.exp(0.3j) * z + self.inp(x)
        return z, z.real


def test_a_complex_hidden_variable_is_refused():
    model = Turning(se.ETraceParam({"weight": normal(3, UNITS, dtype=jnp.float32)}, se.MatMulOp()))
    with pytest.raises(ValueError, match="state: the hidden variable 'state' is complex.*Split it into two leaves"):
        se.D_RTRL().init(model, jnp.zeros(UNITS, jnp.complex64), jnp.ones(3))


def test_a_convolution_wants_a_shape_with_a_type():
    with pytest.raises(TypeError, match=r"xinfo: expected a shape with a type, got \(8, 1\)\. Write jax\.Shape"):
        se.ConvOp((8, 1), [1], "SAME")


class Compartments(eqx.Module):
    """Two compartments of each unit, on a last axis."""

    inp: se.ETraceParam

    def __call__(self, h, x):
        soma, dendrite = h[..., 0], h[..., 1]
        h = jnp.stack([0.9 * soma + 0.1 * dendrite, 0.2 * soma + 0.8 * dendrite + self.inp(x)], -1)
        return h, h[..., 0]


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.SnAp(2)], ids=str)
def test_compartments_on_an_axis_are_refused_in_words(learner):
    model = Compartments(se.ETraceParam({"weight": normal(3, UNITS, dtype=jnp.float32)}, se.MatMulOp()))
    message = r"the hidden state 'state' .*\(of compartments, give each a leaf of its own\)"
    with pytest.raises(ValueError, match=message) as found:
        learner.init(model, jnp.zeros((2, UNITS, 2)), jnp.ones((2, 3)))
    assert "add_any" not in str(found.value)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("learner", [se.D_RTRL(), se.RTRL()], ids=str)
def test_coefficients_of_an_op_may_be_fixed(learner):
    """As those of a graph convolution; only the bias is trained."""
    conn = se.Connectivity.from_edges([0, 1, 2, 0], [1, 2, 0, 3], shape=(3, UNITS))
    spread = se.ETraceParam({"weight": se.Fixed(normal(4)), "bias": normal(UNITS)}, se.SpMatMulOp(conn))
    cell, xs, ys = se.cells.LeakyRate(UNITS, spread), normal(5, 2, 3), normal(5, 2, UNITS)
    assert not se.trainable(cell).inp.value["weight"].value

    def gradient(rule, chunk):
        carry = rule.init(cell, cell.init_state(2), xs[0])
        return se.online_grad(rule, loss_fn, cell, carry, xs, ys, chunk=chunk)[1].inp.value

    got, expected = gradient(learner, 2), gradient(se.BPTT(), None)
    assert got["weight"].value is None and float(jnp.min(jnp.abs(expected["bias"]))) > 1e-3
    np.testing.assert_allclose(got["bias"], expected["bias"], rtol=1e-10)


class Timed(eqx.Module):
    """Leaves that are as long as the batch, with and without its axes."""

    inp: se.ETraceParam

    def __call__(self, s, x):
        wave = jnp.cos(s["phase"])
        h = 0.9 * s["h"] * wave + self.inp(x) * (s["age"] > 0)[:, None]
        mean = 0.9 * s["mean"] + jax.lax.stop_gradient(h).mean(0)
        key = jax.vmap(jax.random.split)(s["key"])[:, 0]
        noise = jax.vmap(lambda k: jax.random.normal(k, (UNITS,)))(key)
        new = {"h": h, "phase": s["phase"] + 1, "mean": mean, "age": s["age"] + 1, "key": key, "free": s["free"] + 1}
        return new, h + noise - mean


@pytest.mark.parametrize(
    "learner", [se.D_RTRL(), se.SnAp(), se.UORO(jax.random.key(0))], ids=lambda x: type(x).__name__
)
def test_reset_knows_batch_axes_from_leaves_of_the_same_length(learner):
    """A batch of as many elements as there are units."""
    model = Timed(se.ETraceParam({"weight": normal(3, UNITS)}, se.MatMulOp()))
    start = {
        "h": jnp.zeros((UNITS, UNITS)), "phase": jnp.zeros(UNITS), "mean": jnp.zeros(UNITS),
        "age": jnp.zeros(UNITS, int), "key": jax.random.split(jax.random.key(0), UNITS), "free": jnp.zeros(UNITS, int),
    }  # fmt: skip
    carry = learner.init(model, start, jnp.ones((UNITS, 3)))
    for _ in range(2):
        carry, _ = learner.step(model, carry, jnp.ones((UNITS, 3)))
    where = jnp.arange(UNITS) == 1
    with pytest.raises(ValueError, match="does not say whether a leaf of shape .* has batch axes or is only as long"):
        learner.reset(carry, where, start)
    with jax.numpy_rank_promotion("raise"):
        some = learner.reset(carry, where, start | {"free": carry.state["free"]}).state
    for name in ("phase", "mean", "free"):
        assert jnp.array_equal(some[name], carry.state[name])
    for name in ("h", "age", "key"):
        began = [bool(jnp.all(a == b)) for a, b in zip(some[name], start[name], strict=True)]
        went_on = [bool(jnp.all(a == b)) for a, b in zip(some[name], carry.state[name], strict=True)]
        assert began[1] and went_on == [i != 1 for i in range(UNITS)]
    every = learner.reset(carry, jnp.ones(UNITS, bool), start | {"free": carry.state["free"]}).state
    assert jnp.array_equal(every["phase"], start["phase"]) and jnp.array_equal(every["mean"], start["mean"])


class Slow(eqx.Module):
    """A hidden variable without batch axes, as long as the batch, beside one with them."""

    a: se.ETraceParam
    b: se.ETraceParam

    def __call__(self, s, x):
        h, m = 0.7 * s["h"] + self.a(x), 0.9 * s["m"] + self.b(x.mean(0))
        return {"h": h, "m": m}, h * m


SHARING = [(rule, units) for rule in (se.D_RTRL(), se.TBPTT(9), se.RTRL(), se.SnAp()) for units in (4, 5)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("learner, units", few(SHARING, [SHARING[k] for k in (0, 2, 5, 6)]), ids=str)
def test_reset_of_some_keeps_the_traces_of_what_they_share(learner, units):
    """Against backpropagation through the steps, with a batch as long as a shared variable or as its inputs."""
    dense = [se.ETraceParam({"weight": normal(4, units), "bias": normal(units)}, se.MatMulOp()) for _ in range(2)]
    model, xs, where = Slow(*dense), normal(5, 4, 4), jnp.arange(4) == 1
    start = {"h": normal(4, units), "m": normal(units)}

    def loss(out, y):
        return jnp.sum(out**2)

    def through(model):
        state, total = start, 0.0
        for t, x in enumerate(xs):
            h = jnp.where(where[:, None] & (t == 3), start["h"], state["h"])
            state, out = model(state | {"h": h}, x)
            total += loss(out, None) * (t >= 3)
        return total

    carry = learner.init(model, start, xs[0])
    for x in xs[:3]:
        carry, _ = learner.step(model, carry, x)
    given = start if carry.origin.alone else start | {"m": carry.state["m"]}
    if isinstance(learner, se.RTRL | se.SnAp):
        with pytest.raises(ValueError, match=r"where: influences of this model have the batch axes \(\), which all"):
            learner.reset(carry, where, given)
        return
    with jax.numpy_rank_promotion("raise"):
        carry = learner.reset(carry, where, given)
    got = se.online_grad(learner, loss, model, carry, xs[3:], jnp.zeros(2))[1]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(jax.grad(through)(model)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.BPTT()], ids=["D_RTRL", "BPTT"])
def test_reset_refuses_another_batch(learner):
    cell = se.cells.LeakyRate(UNITS, se.ETraceParam({"weight": normal(3, UNITS)}, se.MatMulOp()))
    carry = learner.init(cell, cell.init_state(2), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"where: expected a value for each batch element, .* got shape \(3,\)"):
        learner.reset(carry, jnp.ones(3, bool), cell.init_state(2))


@pytest.mark.parametrize("learner", [se.SnAp(2), se.RTRL()], ids=["SnAp", "RTRL"])
def test_influences_can_start_inside_jit(learner):
    """Where they are kept is known before anything runs, also while a function of the state is traced."""
    rec = se.ETraceParam({"weight": jnp.array([[0.1, 0.5], [-0.3, 0.2]])}, se.MatMulOp())
    cell = se.cells.LeakyRate(2, se.ETraceParam({"weight": jnp.ones((2, 2))}, se.MatMulOp()), rec, decay=0.9)
    xs = jnp.arange(8.0).reshape(4, 2) / 8

    def grads(state):
        carry = learner.init(cell, state, xs[0])
        return se.online_grad(learner, lambda out, y: jnp.sum((out - y) ** 2), cell, carry, xs, 0 * xs, chunk=2)[1]

    outside, inside = grads(cell.init_state()), jax.jit(grads)(cell.init_state())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), outside, inside)
