"""Chains of elementwise operations in one pass, beside the same functions of XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparse_etrace as se
from sparse_etrace._kernels import elementwise, native, recursion
from sparse_etrace.cells import spiking

UNITS = elementwise.LEAST + 77  # the last block is not whole
COMPILED = pytest.mark.skipif(native.KERNELS == "xla", reason="no compiled kernels")


def everything(carried, y, scale):
    """Each operation of the kernel, on floats, integers, truth values, scalars, and calls."""
    v, wait = carried
    held = (wait > 0) & ~((v >= 1.5) | (y < scale))
    u = jnp.where(held, v, jnp.maximum(v * scale - y / scale, -y) + jnp.minimum(v, y)) + jnp.where(v != y, 1, v)
    later = jnp.where((u <= y) | (v == 2), jnp.maximum(wait - 1, 0), jnp.minimum(-wait * 2, 5) + held)
    z = jax.nn.relu(u) + wait.astype(u.dtype) + held.astype(u.dtype)
    return (u, later), (z, held, jnp.where(held, u > 0, wait != 2))


def given(dtype, seed=0):
    rng = np.random.default_rng(seed)
    v, y = (jnp.asarray(rng.integers(-8, 8, UNITS) / 4, dtype) for _ in range(2))
    v = v.at[jnp.array([0, 5, UNITS - 1])].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf], dtype))
    return (v, jnp.asarray(rng.integers(-3, 4, UNITS), jnp.int32)), y, jnp.asarray(0.5, dtype)


def calls(fn, *args):
    return jax.jit(fn).lower(*args).as_text().count("sparse_etrace_elementwise")


@COMPILED
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chain_is_that_of_xla(on_cpu, dtype):
    with jax.enable_x64(True):
        args = given(dtype)
        run = jax.jit(lambda *args: elementwise.fused(everything, *args))
        assert calls(run, *args) == 1
        got, expected = run(*args), jax.jit(everything)(*args)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)  # no number here is rounded


@COMPILED
def test_what_is_no_such_chain_is_left_to_xla(on_cpu):
    args = given("float32")

    def but(fn):
        return calls(lambda *args: elementwise.fused(fn, *args), *args)

    assert but(everything) == 1
    assert but(lambda c, y, s: ((jnp.tanh(c[0]), c[1]), y)) == 0
    assert but(lambda c, y, s: ((c[0] + (y * 2).mean(), c[1] + 1), y + 1)) == 0
    assert but(lambda c, y, s: ((c[0] + y, c[1] + 1), y)) == 0
    assert but(lambda c, y, s: ((c[0] + (y * 2).astype(jnp.bfloat16), c[1] + 1), y + 1)) == 0
    with se.kernels("xla"):
        assert but(everything) == 0


def test_derivatives_and_batches_are_those_of_the_function():
    (v, wait), y, scale = jax.tree.map(lambda a: a[..., 6:], given("float32")[:2]) + (jnp.float32(0.5),)

    def loss(fn):
        def total(v, y, scale):
            (u, _), (z, *_) = fn((v, wait), y, scale)
            return jnp.sum(u * 0.1) + jnp.sum(z**2)

        return jax.jit(jax.grad(total, (0, 1, 2)))(v[:-1], y[:-1], scale)

    wait = wait[:-1]
    one, other = loss(lambda *args: elementwise.fused(everything, *args)), loss(everything)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    many = jnp.stack([y[:-1], 2 * y[:-1]])
    got, expected = (
        jax.vmap(lambda y, fn=fn: fn((v[:-1], wait), y, scale))(many)
        for fn in (jax.jit(lambda *args: elementwise.fused(everything, *args)), everything)
    )
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def swept(xs, carried, steps, units, reverse=True, last=False):
    """Through some steps: two variables with their matrix, which may be steady, and a sum over the steps."""

    def step(later, now):
        (lam, total), (d, m, y) = later, now
        said = lam[0] * y + m[1]
        lam = [m[a] + sum(d[b][a] * lam[b] for b in range(2)) for a in range(2)]
        return (lam, total + said), [lam, None, said]

    return recursion.recursion(step, carried, xs, steps, units, reverse, last)


def sweep(rng, steps, shape, dtype, is_steady):
    def of(*front):
        return jnp.asarray(rng.normal(size=(*front, *shape)), dtype)

    return (of(1 if is_steady else steps, 2, 2), of(steps, 2), of(steps)), (of(2), of())


def run_in_place(xs, carried, units, reverse):
    lowered = jax.jit(lambda xs, carried: swept(xs, carried, 4, units, reverse, True)).lower(xs, carried)
    assert lowered.as_text().count("output_operand_alias<") == 5
    return lowered.compile()(xs, carried)


@COMPILED
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("is_steady", [False, True])
@pytest.mark.parametrize("shape", [(3, 171), (2049,), (2,)])
def test_chain_backward_through_steps(on_cpu, dtype, is_steady, shape):
    with jax.enable_x64(True):
        # Of a steady matrix there are as many numbers as of a stack of what is said.
        xs, carried = sweep(np.random.default_rng(0), 4, shape, dtype, is_steady)
        run = functools.partial(jax.jit(swept, static_argnums=(2, 3, 4, 5)), xs, carried, 4, len(shape))
        assert calls(run) == 1
        (lam, total), (lams, _, said) = run()
        flipped = jax.tree.map(lambda a: a[::-1], xs)
        # Where what it reads lay, and forward.
        ends, (lams_forward, _, said_forward) = run_in_place(flipped, carried, len(shape), False)
        for got in (ends, lams_forward[::-1], said_forward[::-1]), run_in_place(xs, carried, len(shape), True):
            for a, b in zip(*map(jax.tree.leaves, (got, (lam, total, lams, said))), strict=True):
                np.testing.assert_array_equal(a, b)
        close = {"rtol": 2e-4, "atol": 2e-4} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
        (d, m, y), (last, expected) = jax.tree.map(np.asarray, (xs, carried))
        for t in reversed(range(4)):
            heard = last[0] * y[t] + m[t, 1]
            last = m[t] + np.einsum("ba...,b...->a...", d[0 if is_steady else t], last)
            expected = expected + heard
            np.testing.assert_allclose(said[t], heard, **close)
            np.testing.assert_allclose(lams[t], last, **close)
        np.testing.assert_allclose(lam, last, **close)
        np.testing.assert_allclose(total, expected, **close)


def test_derivatives_and_batches_of_steps_are_those_of_a_scan():
    xs, carried = sweep(np.random.default_rng(1), 5, (4, 3), "float32", False)

    def loss(xs, carried):
        (lam, total), (_, _, said) = swept(xs, carried, 5, 2)
        return jnp.sum(lam**2) + jnp.sum(jnp.sin(total)) + jnp.sum(said**2)

    got = jax.grad(loss, (0, 1))(xs, carried)
    with se.kernels("xla"):
        expected = jax.grad(lambda *args: loss(*args), (0, 1))(xs, carried)
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)
    twice = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), (xs, carried))
    got = jax.vmap(lambda xs, carried: swept(xs, carried, 5, 2))(*twice)
    expected = [swept(*jax.tree.map(lambda a, k=k: a[k], twice), 5, 2) for k in range(2)]
    for a, *b in zip(*map(jax.tree.leaves, (got, *expected)), strict=True):
        np.testing.assert_allclose(a, jnp.stack(b), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_filter_of_xla_lies_where_its_input_lay(reverse):
    def filtered(old, x):
        return 0.9 * old + x, [0.9 * old + x]

    def run(is_last, a):
        return recursion.recursion(filtered, a[0], jnp.sin(a), len(a), 1, reverse, is_last)

    a = jnp.linspace(0, 40, 8 * 1000).reshape(8, 1000)
    with se.kernels("xla"):
        made = [jax.jit(functools.partial(run, is_last)).lower(a).compile() for is_last in (False, True)]
    there, here = (one.memory_analysis().temp_size_in_bytes for one in made)
    assert here + a.nbytes // 2 < there
    for got, expected in zip(*(jax.tree.leaves(one(a)) for one in made), strict=True):
        np.testing.assert_array_equal(got, expected)


@COMPILED
def test_a_large_population_is_as_by_xla(on_cpu):
    """Refractoriness, resets, two receptors and a delay; one chain a step, and no copy of what is carried."""
    rng = np.random.default_rng(1)
    ends = rng.integers(UNITS, size=(2, 4 * UNITS))
    graph = se.from_edges(*ends, rng.choice([-50.0, 60.0], ends.shape[1]), shape=(UNITS, UNITS))
    fly = spiking.whole_fly(graph, np.arange(2000))
    xs = jnp.asarray(rng.random((60, 2000)) < 0.2, jnp.float32)

    @jax.jit
    def run(state, xs):
        return jax.lax.scan(lambda state, x: fly(state, x), state, xs)

    lowered = run.lower(fly.init_state(), xs)
    assert lowered.as_text().count("sparse_etrace_elementwise") == 1
    state, z = run(fly.init_state(), xs)
    with se.kernels("xla"):
        other, expected = jax.jit(lambda *args: run(*args))(fly.init_state(), xs)
    assert z.sum() > 1000
    np.testing.assert_array_equal(z, expected)
    for a, b in zip(*map(jax.tree.leaves, (state, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
