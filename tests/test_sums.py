"""Sums over few hidden variables, in half precision, and of very many terms."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace._kernels import native, products, trace
from sparse_etrace._sums import dot, matmul, matvec, mixed, rounded, sum_steps

MANY = 5000
TYPES = [jnp.bfloat16, jnp.float16]
HALF = pytest.mark.parametrize("dtype", few(TYPES, TYPES[:1]), ids=lambda t: t.__name__)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_few_variables_are_summed_like_many(count, x64):
    rng = np.random.default_rng(count)
    a, b = (jnp.asarray(v) for v in rng.normal(size=(2, count, count, 3, 2)))
    for got, form, args in (
        (dot(a[0], b[0]), "axy,axy->xy", (a[0], b[0])),
        (matvec(a, b[0]), "abxy,bxy->axy", (a, b[0])),
        (matmul(a, b), "abxy,bcxy->acxy", (a, b)),
    ):
        np.testing.assert_allclose(got, np.einsum(form, *args), rtol=1e-12, atol=1e-12)


class Adaptive(eqx.Module):
    """A unit of several variables, each driven by the one before, after any parameter."""

    p: se.ETraceParam
    variables: int = eqx.field(static=True)

    def __call__(self, state, x):
        new, drive = [], jnp.tanh(self.p(x) - 0.1 * state[-1])
        for old in state:
            drive = 0.9 * old + 0.1 * drive
            new.append(drive)
        return tuple(new), drive


def dense(pre, post, dtype=jnp.float32):
    return se.ETraceParam({"weight": jnp.full((pre, post), 0.1, dtype), "bias": jnp.zeros(post, dtype)}, se.MatMulOp())


def sparse(pre, post, dtype=jnp.float32):
    conn = se.Connectivity.from_edges(*np.indices((pre, post)).reshape(2, -1), (pre, post))
    return se.ETraceParam(
        {"weight": jnp.full(pre * post, 0.1, dtype), "bias": jnp.zeros(post, dtype)}, se.SpMatMulOp(conn)
    )


def sums_over(jaxpr, sizes):
    """Sizes of the axes that are summed away in a jaxpr, among some."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "reduce_sum":
            found += [s for a in eqn.params["axes"] if (s := eqn.invars[0].aval.shape[a]) in sizes]
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            found += sums_over(inner, sizes) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize("make", [dense, sparse])
@pytest.mark.parametrize("learner", [se.D_RTRL(), se.ES_D_RTRL()], ids=str)
@pytest.mark.parametrize("variables", few([2, 3, 4], [3]))
def test_no_sum_over_an_axis_of_few_variables(make, learner, variables):
    model, state = Adaptive(make(6, 7), variables), (jnp.zeros((5, 7)),) * variables
    xs, ys = jnp.zeros((10, 5, 6)), jnp.zeros((10, 5, 7))
    carry = learner.init(model, state, xs[0])
    arrays, static = eqx.partition((model, carry), eqx.is_array)

    def gradient(arrays):
        model, carry = eqx.combine(arrays, static)
        return se.online_grad(learner, lambda o, y: jnp.sum((o - y) ** 2), model, carry, xs, ys, chunk=5)[1]

    assert sums_over(jax.make_jaxpr(gradient)(arrays).jaxpr, {2, 3, 4}) == []


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["compiled", "xla"])
def kernels(request, monkeypatch):
    """The compiled kernels, or those of XLA."""
    if request.param == "xla":
        monkeypatch.setattr(native, "KERNELS", "xla")
        monkeypatch.setattr(native, "_say_once", lambda: None)
        jax.clear_caches()
    yield request.param
    if request.param == "xla":
        jax.clear_caches()


@HALF
def test_sparse_products_of_many_ones(dtype, kernels):
    ones = jnp.ones(MANY, dtype)
    for shape, ends in (((MANY, 1), (range(MANY), [0] * MANY)), ((1, MANY), ([0] * MANY, range(MANY)))):
        op = se.SpMatMulOp(se.Connectivity.from_edges(*ends, shape), tie=np.zeros(MANY, int))
        x = jnp.ones(shape[0], dtype)

        @jax.jit
        def both_ways(w, x, op=op):
            y, pull = jax.vjp(lambda w, x: se.ETraceParam({"weight": w}, op)(x), w, x)
            return y, *pull(jnp.ones_like(y))

        y, by_weight, by_x = both_ways(np.ones(1, dtype), x)
        assert y.dtype == by_weight.dtype == by_x.dtype == dtype
        first = [np.asarray(a)[0] for a in (y, by_x, by_weight)]
        assert first == [dtype(shape[0]), dtype(shape[1]), dtype(MANY)]
    conn = se.Connectivity.from_edges([0], [0], (1, 1))
    assert products.sampled_sum(conn, ones[:, None], ones[:, None])[0] == dtype(MANY)


LEAK = 0.875
RULES = {
    "D_RTRL": se.D_RTRL(),
    "ES_D_RTRL": se.ES_D_RTRL(decay=LEAK),
    "OTTT": se.OTTT(decay=LEAK),
    "EProp": se.EProp("v", kappa=LEAK),
    "rate": se.EProp("v", rate_strength=1.0),
    "SnAp": se.SnAp(1),
    "RTRL": se.RTRL(),
    "whole": se.RTRL(),
    "BPTT": se.BPTT(),
    "TBPTT": se.TBPTT(steps=8),
    "UORO": se.UORO(key=jax.random.key(0)),
}
CASES = [(rule, make, dtype) for rule in RULES for make in (dense, sparse) for dtype in (jnp.bfloat16, jnp.float16)]
CHOSEN = [
    (rule, sparse, jnp.bfloat16) for rule in RULES if rule in ("ES_D_RTRL", "OTTT", "SnAp", "RTRL", "BPTT", "TBPTT")
]
CHOSEN += [("D_RTRL", dense, jnp.float16)]


class Leaky(eqx.Module):
    """Leaky units, with a plain gain where RTRL is to take the model as a whole."""

    p: se.ETraceParam
    gain: jax.Array | None = None

    def __call__(self, state, x):
        v = LEAK * state["v"] + self.p(x) * (1 if self.gain is None else self.gain)
        return {"v": v}, v


@pytest.mark.parametrize("rule, make, dtype", few(CASES, CHOSEN))
def test_gradients_in_half_precision(rule, make, dtype):
    """Sums of one sign over 32 batch elements and 40 steps, which come to a stop in half precision."""
    found = []
    for kind in (jnp.float32, dtype):
        model = Leaky(make(3, 4, kind), jnp.ones(4, kind) if rule == "whole" else None)
        carry = RULES[rule].init(model, {"v": jnp.zeros((32, 4), kind)}, jnp.ones((32, 3), kind))
        xs, ys = jnp.ones((40, 32, 3), kind), jnp.zeros(40)
        _, grads, _ = se.online_grad(RULES[rule], lambda o, y: jnp.sum(o) / 8, model, carry, xs, ys, chunk=4)
        assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(kind)}
        found.append(jax.tree.leaves(grads))
    for expected, got in zip(*found, strict=True):
        np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=0.02 if rule != "UORO" else 0.1)


# --- traces in half precision -----------------------------------------------------------------------------------------


class Slow(eqx.Module):
    p: se.ETraceParam

    def __call__(self, h, x):
        h = 0.999 * h + self.p(x)
        return h, h


def one_unit(make):
    param = make(200, 1)
    return Slow(se.ETraceParam({"weight": param.value["weight"]}, param.op)), jnp.zeros(1)


def kept(carry):
    (trace,) = carry.traces.values()
    values = jax.tree.leaves(trace.full[0])[0] if trace.factors is None else trace.factors.x
    return np.asarray(values.astype(jnp.float32)).ravel()


@pytest.mark.parametrize(
    "make, learner, chunk",
    [(sparse, se.D_RTRL, 1), (sparse, se.D_RTRL, 16), (dense, se.D_RTRL, 1), (sparse, se.ES_D_RTRL, 1)],
)
@HALF
def test_a_narrow_trace_with_a_long_memory_does_not_stop(make, learner, chunk, dtype):
    learner = learner(trace_dtype=dtype) if learner is se.D_RTRL else learner(decay=0.999, trace_dtype=dtype)
    model, state = one_unit(make)
    xs, ys = jnp.ones((1600, 200)), jnp.zeros(1600)
    start = learner.init(model, state, xs[0])

    def run(carry, xs):
        return se.online_grad(learner, lambda o, y: jnp.sum(o), model, carry, xs, ys[: len(xs)], chunk=chunk)[2]

    got = kept(end := run(start, xs))
    expected = (1 - 0.999**1600) / 0.001
    assert abs(got.mean() / expected - 1) < 0.01 and abs(got / expected - 1).max() < 0.15
    assert np.array_equal(kept(run(run(start, xs[:800]), xs[800:])), got)  # resumed: the same bits
    again = learner.reset(end, True, state)
    assert np.array_equal(kept(run(again, xs)), got)


def test_compiled_kernels_round_by_the_same_noise():
    rng = np.random.default_rng(0)
    conn = se.Connectivity.from_edges(*rng.integers(0, 40, (2, 300)), (40, 40))
    carried, entering, x = (jnp.asarray(rng.random(s), jnp.float32) for s in ((2, 2, 3, 40), (5, 2, 3, 40), (5, 3, 40)))
    eps = jnp.zeros((2, 3, 300), jnp.float32)
    noise, narrow = jnp.uint32(9), eps.astype(jnp.bfloat16)
    wide_, _ = trace.advance(conn, carried, entering, None, None, x, eps)
    got, _ = trace.advance(conn, carried, entering, None, None, x, narrow, noise)
    expected = jnp.stack([rounded(wide_[:, b], jnp.bfloat16, mixed(noise, b)) for b in range(3)], axis=1)
    assert got.dtype == jnp.bfloat16 and np.array_equal(got.astype(float), expected.astype(float))
    assert not np.array_equal(got.astype(float), wide_.astype(jnp.bfloat16).astype(float))


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: t.__name__)
def test_noise_rounds_without_bias(dtype):
    value = jnp.full(100_000, 1.001) * jnp.repeat(jnp.array([1.0, -3.0, 1e-6, 60.0]), 25_000)
    nearest, noisy = (rounded(value, dtype, noise).astype(jnp.float32) for noise in (None, jnp.uint32(7)))
    parts = [np.asarray(part / value, np.float64).reshape(4, -1).mean(1) for part in (nearest, noisy)]
    assert abs(parts[1] - 1).max() < 2e-4 < abs(parts[0] - 1).max()
    assert np.all(np.diff(np.sort(np.unique(noisy[:25_000]))) <= 2 * float(jnp.finfo(dtype).eps))
    special = rounded(jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0]), dtype, jnp.uint32(7))
    assert np.array_equal(special.astype(jnp.float32), [np.nan, np.inf, -np.inf, 0], equal_nan=True)
    assert jax.jvp(lambda v: rounded(v, dtype, jnp.uint32(7)), (value[:3],), (value[:3],))[1].dtype == dtype


# --- sums of very many terms ------------------------------------------------------------------------------------------


@pytest.mark.optimized
def test_four_million_inputs():
    """The sum of XLA's kernels, whose terms one after the other would lose four digits."""
    count = 2**22
    current = np.random.default_rng(0).random((count, 1), np.float32)
    got = jax.jit(products._by_unit)(current, jnp.zeros(count, jnp.int32), jnp.array([0, count], jnp.int32))
    assert abs(float(got[0, 0]) / current.sum(dtype=float) - 1) < 1e-6


def test_runs_in_parts(amount, monkeypatch, x64):
    monkeypatch.setattr(products, "RUN", 4)
    rng = np.random.default_rng(0)
    by_unit = jax.jit(products._by_unit)  # one program for each shape
    for _ in range(amount(40, 500)):
        units, count = [(8, 60), (3, 30), (1, 19), (5, 0)][rng.integers(4)]
        ptr = np.array([0, *np.sort(rng.integers(0, count + 1, units - 1)), count], np.int32)
        unit = np.repeat(np.arange(units, dtype=np.int32), np.diff(ptr))
        current = rng.normal(size=(count, 2))
        expected = [current[a:b].sum(0) for a, b in zip(ptr, ptr[1:])]
        np.testing.assert_allclose(by_unit(*map(jnp.asarray, (current, unit, ptr))), expected, atol=1e-12)


def precisions(fn, *args):
    """Of all matrix products and convolutions in a program."""
    program = str(jax.make_jaxpr(fn)(*args))
    found = re.findall(r"(?:dot_general|conv_general_dilated)\[.*?precision=(None|\(.*?\))", program, re.DOTALL)
    assert len(found) == program.count("dot_general[") + program.count("conv_general_dilated[") > 0
    return set(found)


OPS = {
    "dense": (se.MatMulOp(), {"weight": jnp.ones((3, 2))}, (3,)),
    "low rank": (se.LoraOp(), {"B": jnp.ones((3, 1)), "A": jnp.ones((1, 2))}, (3,)),
    "line": (
        se.ConvOp(jax.ShapeDtypeStruct((4, 3), jnp.float32), (1,), "SAME"),
        {"weight": jnp.ones((2, 3, 2))},
        (4, 3),
    ),
}


@pytest.mark.parametrize("name", OPS)
def test_products_have_all_digits(name):
    """Where JAX would take ten bits of float32 on a GPU, and does if it is told so."""
    op, value, shape = OPS[name]
    units = op.xw_to_y(jnp.ones(shape), op.phi(value)).shape
    cell = se.cells.LeakyRate(units, se.ETraceParam(value, op), decay=0.9)
    xs = jnp.ones((3, *shape))
    for learner in (se.D_RTRL(), se.EProp("state", "random", key=jax.random.key(0))):
        carry = learner.init(cell, cell.init_state(), xs[0])

        def gradient(xs, learner=learner, carry=carry):
            return se.online_grad(learner, lambda out, y: jnp.sum(out), cell, carry, xs, xs)[1].inp

        assert precisions(gradient, xs) == {"(Precision.HIGHEST, Precision.HIGHEST)"}
    with jax.default_matmul_precision("bfloat16"):
        assert precisions(gradient, xs) == {"(Precision.DEFAULT, Precision.DEFAULT)"}


def test_derivatives_of_all_state_have_all_digits():
    def model(w, h, x):
        return (h := jnp.tanh(h * w + x)), h

    model = jax.tree_util.Partial(model, jnp.ones(2))
    learner, h = se.RTRL(), jnp.zeros(2)
    carry = learner.init(model, h, h)

    def gradient(xs):
        return se.online_grad(learner, lambda out, y: jnp.sum(out), model, carry, xs, xs)[1]

    assert precisions(gradient, h[None]) == {"(Precision.HIGHEST, Precision.HIGHEST)"}


def test_sums_of_steps(x64):
    """Of any number, an odd one at any halving included."""
    for steps in (0, 1, 2, 3, 7, 16, 23):
        a = np.random.default_rng(steps).normal(size=(steps, 2, 3))
        np.testing.assert_allclose(sum_steps(jnp.asarray(a)), a.sum(0), rtol=1e-13, atol=1e-14)
