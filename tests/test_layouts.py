"""State and parameters that lie in another order than one another; and what one unit reads or drives more than once."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from models import INPUTS, OUTPUTS, A, N, run, start
from soak import few

import sparse_etrace as se

TOLERANCE, VISIBLE, BATCH = 1e-10, 1e-3, 2
float64 = pytest.mark.usefixtures("x64")


def case(forward, state, inputs=N, units=N, traced=("inp", "rec"), **parts):
    """A layer of `units` whose recurrent op reads `inputs`, six steps."""
    rng = np.random.default_rng(0)
    parts = {
        "inp": models.dense(rng, INPUTS, units),
        "rec": models.dense(rng, inputs, units),
        "out": models.dense(rng, units, OUTPUTS),
        **{name: models.elemwise(models.array(rng, *shape), jax.nn.sigmoid) for name, shape in parts.items()},
    }
    state = {k: models.array(rng, *shape) for k, shape in state.items()}
    live = dict.fromkeys([*traced, *(name for name in parts if name not in ("inp", "rec", "out"))], tuple(state))
    return models.make(rng, forward, parts, state, live, batch=(BATCH,), steps=6)


def stored(turn, back):
    """State is kept as `back` makes it of what the parameters act on."""

    def forward(op, h, held, x):
        drive = op("inp", x) + op("rec", turn(held["h"]).reshape(BATCH, -1))
        old = turn(h["h"])
        new = op("decay") * old + jnp.tanh(drive).reshape(old.shape)
        return {"h": back(new)}, op("out", new.reshape(BATCH, -1))

    return forward


def halves(op, h, held, x):
    """One parameter for two groups."""
    decay = op("decay")
    a = decay[:N] * h["a"] + jnp.tanh(op("inp", x))
    b = decay[N:][::-1] * h["b"] + jnp.tanh(op("rec", a))
    return {"a": a, "b": b}, op("out", b)


def swap(a):
    return jnp.swapaxes(a, -1, -2)


TURNED = {
    "reversed": lambda: case(stored(lambda a: a[:, ::-1], lambda a: a[:, ::-1]), {"h": (BATCH, N)}, decay=(N,)),
    "transposed": lambda: case(stored(swap, swap), {"h": (BATCH, 2, N)}, 2 * N, 2 * N, decay=(N, 2)),
    "square": lambda: case(stored(swap, swap), {"h": (BATCH, 3, 3)}, 9, 9, decay=(3, 3)),
    "batch last": lambda: case(stored(jnp.transpose, jnp.transpose), {"h": (N, BATCH)}, decay=(N,)),
    "one value": lambda: case(stored(lambda a: a[:, ::-1], lambda a: a[:, ::-1]), {"h": (BATCH, N)}, decay=()),
}


def calls(learner, case):
    """Gradients of two calls of three steps, one window each; traces go on."""
    _, first, carry = run(learner, case, 3, steps=slice(3))
    return first, run(learner, case, 3, carry, slice(3, 6))[1]


def of_calls(exact):
    return [jax.tree.map(lambda g, at=at: g[at].sum(0), exact) for at in (slice(3), slice(3, 6))]


@pytest.mark.parametrize("kind", few([*TURNED], ["reversed", "batch last"]))
@float64
def test_elementwise_parameter_on_turned_state(kind):
    turned = TURNED[kind]()
    expected = oracles.online(turned.twin, turned.xs, turned.ys)
    for got, right in zip(calls(se.D_RTRL(), turned), of_calls(expected.exact), strict=True):
        assert oracles.relative_error(got, right) < TOLERANCE
        wrong = {**right, "decay": right["decay"][::-1] if right["decay"].ndim else -right["decay"]}
        assert oracles.relative_error(got, wrong) > VISIBLE


@pytest.mark.parametrize("kind", few([*TURNED][:3], ["transposed"]))
@float64
def test_influences_of_an_elementwise_parameter_on_turned_state(kind):
    turned = TURNED[kind]()
    got = jax.tree.map(jnp.add, *calls(se.SnAp(n=None), turned))
    assert oracles.relative_error(got, oracles.bptt(turned.twin, turned.xs, turned.ys)) < TOLERANCE


@float64
def test_es_d_rtrl_on_turned_state():
    turned = TURNED["transposed"]()
    expected = oracles.online(turned.twin, turned.xs, turned.ys, models.DECAY).factored
    for got, right in zip(calls(se.ES_D_RTRL(decay=models.DECAY), turned), of_calls(expected), strict=True):
        assert oracles.relative_error(got, right) < TOLERANCE


@float64
def test_slices_of_one_elementwise_parameter():
    """One half for each of two groups; `explain` counts those that a signal reaches."""
    shared = case(halves, {"a": (BATCH, N), "b": (BATCH, N)}, decay=(2 * N,))
    twin = shared.twin._replace(traced={"inp": ("a",), "rec": ("b",), "decay": ("a", "b")})
    # What passes from one group to the other goes through an op, and D is without it.
    expected = oracles.online(twin, shared.xs, shared.ys).exact
    for got, right in zip(calls(se.D_RTRL(), shared), of_calls(expected), strict=True):
        assert oracles.relative_error(got, right) < TOLERANCE
    report = se.explain(se.D_RTRL(), shared.model, twin.state, shared.xs[0])
    assert [row.reached for row in report.rows if "decay" in row.name] == [2 * N]


def test_several_values_on_one_unit():
    def called_twice(op, h, held, x):
        new = op("decay") * h["a"] + jnp.tanh(op("inp", x) + op("rec", held["a"])) - h["b"]
        return {"a": new, "b": op("decay")[::-1] * h["b"] + 0.1 * h["a"]}, op("out", new)

    def at_once(op, h, held, x):
        decay = op("decay")
        new = decay * h["a"] + jnp.tanh(op("inp", x) + op("rec", held["a"])) + decay[::-1]
        return {"a": new}, op("out", new)

    def of_two(op, h, held, x):
        decay = op("decay")
        a = decay * h["a"] + jnp.tanh(op("inp", x) + op("rec", held["a"])) - h["b"]
        return {"a": a, "b": decay[::-1] * h["b"] + 0.1 * h["a"]}, op("out", a)

    a, b = {"a": (BATCH, N)}, {"a": (BATCH, N), "b": (BATCH, N)}
    start(se.D_RTRL(), case(called_twice, b, decay=(N,)))
    words = "several values of the elementwise parameter called at .* act on one unit of "
    with pytest.raises(ValueError, match=rf"{words}.*'a'.* as its entries .* one parameter for each role"):
        start(se.D_RTRL(), case(at_once, a, decay=(N,)))
    with pytest.raises(ValueError, match=rf"{words}.*'b'.*, each on another variable .* one parameter for each role"):
        start(se.D_RTRL(), case(of_two, b, decay=(N,)))


# --- one source, several sinks ---------------------------------------------------------------------------------------


def doubled(op, h, held, x):
    both = jnp.concatenate([held["h"], held["h"][:, ::-1]], axis=-1)
    new = A * h["h"] + jnp.tanh(op("inp", x) + op("rec", both))
    return {"h": new}, op("out", new)


def doubled_output(op, h, held, x):
    """The output of an op twice, as the input of another."""
    y = op("inp", x)
    new = A * h["h"] + jnp.tanh(op("rec", jnp.concatenate([y, 0.5 * y * held["h"]], axis=-1)))
    return {"h": new}, op("out", new)


def without_batch(op, h, held, x):
    """One output for all batch elements."""
    new = A * h["h"] + jnp.tanh(op("inp", x)) + jnp.sin(h["h"]) * op("rec", x[0])[None]
    return {"h": new}, op("out", new)


def wide(op, h, held, x):
    """One unit drives two others, whose sum is read."""
    a = A * h["a"] + jnp.tanh(op("inp", x) + op("rec", held["b"].reshape(BATCH, -1)))
    b = 0.5 * h["b"] + jnp.stack([a, jnp.sin(h["a"])], axis=-1) * jnp.array([0.3, -0.6])
    return {"a": a, "b": b}, op("out", b.sum(-1))


def to_itself(op, h, held, x):
    at = jnp.array([0, 0, 2])
    old = h["h"].at[:, at].add(0.2 * jnp.sin(h["h"][:, at]))
    new = 0.6 * old + jnp.tanh(op("inp", x) + op("rec", held["h"]))
    return {"h": new}, op("out", new)


SEVERAL = {
    "doubled": lambda: case(doubled, {"h": (BATCH, N)}, 2 * N),
    "output": lambda: case(doubled_output, {"h": (BATCH, N)}, 2 * N, traced=("rec",)),
    "without batch": lambda: case(without_batch, {"h": (BATCH, N)}, INPUTS),
    "wide": lambda: case(wide, {"a": (BATCH, N), "b": (BATCH, N, 2)}, 2 * N),
    "to itself": lambda: case(to_itself, {"h": (BATCH, N)}),
}


@pytest.mark.parametrize("kind", few([*SEVERAL], ["output", "without batch", "wide"]))
@float64
def test_a_unit_on_several_units(kind):
    several = SEVERAL[kind]()
    assert type(start(se.SnAp(n=None), several).traces).__name__ == "Influences"
    got = jax.tree.map(jnp.add, *calls(se.SnAp(n=None), several))
    assert oracles.relative_error(got, oracles.bptt(several.twin, several.xs, several.ys)) < TOLERANCE


@float64
def test_a_unit_added_to_itself():
    itself = SEVERAL["to itself"]()
    expected = oracles.online(itself.twin, itself.xs, itself.ys).exact
    for got, right in zip(calls(se.D_RTRL(), itself), of_calls(expected), strict=True):
        assert oracles.relative_error(got, right) < TOLERANCE


def test_a_unit_added_to_others():
    def forward(op, h, held, x):
        old = h["h"].at[:, jnp.array([1, 1])].add(h["h"][:, jnp.array([0, 1])])
        new = 0.6 * old + jnp.tanh(op("inp", x) + op("rec", held["h"]))
        return {"h": new}, op("out", new)

    with pytest.raises(ValueError, match="mixed across units or batch"):
        start(se.D_RTRL(), case(forward, {"h": (BATCH, N)}))


# --- variables of a group in different orders ------------------------------------------------------------------------


def two_orders(op, h, held, x):
    v = 0.8 * h["v"] + jnp.tanh(op("inp", x) + op("rec", held["v"])) - 0.2 * h["a"].T
    return {"v": v, "a": 0.9 * h["a"] + 0.3 * jnp.tanh(v).T}, op("out", v)


def test_variables_in_different_orders():
    words = "'a'.* and .*'v'.* have to match one by one as they lie. Store both in one shape and order"
    with pytest.raises(ValueError, match=words):
        start(se.D_RTRL(), case(two_orders, {"v": (BATCH, N), "a": (N, BATCH)}))


def test_variables_in_different_orders_of_one_shape():
    rng = np.random.default_rng(0)
    parts = {"inp": models.dense(rng, INPUTS, N), "rec": models.dense(rng, N, N), "out": models.dense(rng, N, OUTPUTS)}
    state = {"v": models.array(rng, N, N), "a": models.array(rng, N, N)}
    square = models.make(rng, two_orders, parts, state, {}, batch=(N,))
    with pytest.raises(ValueError, match=r"'a'.* as .*'v'.* lies in another order \(if .* store both in one\)"):
        start(se.D_RTRL(), square)
    with pytest.raises(ValueError, match=r"across batch elements \(4,\)\. .*put the batch axes first"):
        start(se.SnAp(), square)
