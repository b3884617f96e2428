"""The products over synapses against plain numpy."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads
from quick import plain_environment
from soak import few

import sparse_etrace as se
from sparse_etrace import _kernels, _library
from sparse_etrace._kernels import native, products, trace

BATCHES = [(), (3,), (2, 3), (20,), (0,)]


@st.composite
def connectivities(draw):
    """Rectangular, with empty rows, parallel synapses, hubs of no round number, one synapse or none."""
    num_pre, num_post = draw(st.sampled_from([(1, 1), (6, 3), (2, 6), (40, 9)]))
    kind = draw(st.sampled_from(["any", "in-hub", "out-hub", "one", "none"]))
    size = {"one": 1, "none": 0}.get(kind, draw(st.sampled_from([4, 15, 85])))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    pre, post = rng.integers(0, num_pre, size), rng.integers(0, num_post, size)
    pre = np.full(size, num_pre - 1) if kind == "out-hub" else pre
    post = np.full(size, num_post // 2) if kind == "in-hub" else post
    return se.Connectivity.from_edges(pre, post, shape=(num_pre, num_post))


cases = hypothesis.given(
    conn=connectivities(),
    batch=st.sampled_from(BATCHES),
    variables=st.integers(1, 4),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)


def normal(seed, dtype):
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.normal(size=shape).astype(dtype)


def same(got, expected, dtype):
    assert got.shape == expected.shape and got.dtype == dtype
    np.testing.assert_allclose(got, expected, atol=5e-5 if dtype == np.float32 else 1e-13)


def ends(conn):
    return list(zip(conn.pre.tolist(), conn.post.tolist()))


@cases
def test_products(conn, batch, variables, dtype, seed):
    with jax.enable_x64(True):
        new = normal(seed, dtype)
        weight, x, y = new(conn.num_synapses), new(*batch, conn.num_pre), new(*batch, conn.num_post)
        forward, backward = np.zeros_like(y), np.zeros_like(x)
        sampled = np.zeros((*batch, conn.num_synapses), dtype)
        for s, (j, i) in enumerate(ends(conn)):
            forward[..., i] += weight[s] * x[..., j]
            backward[..., j] += weight[s] * y[..., i]
            sampled[..., s] = x[..., j] * y[..., i]
        scale = np.arange(1, 1 + (columns := (19, 64)[seed % 2]), dtype=dtype).reshape(-1, *[1] * x.ndim)

        @jax.jit
        def products(conn, weight, x, y, many_x, many_y):
            of_weight = _kernels.spmv(conn, weight, x), _kernels.spmv_t(conn, weight, y)
            return *of_weight, _kernels.sampled(conn, x, y), _kernels.sampled_sum(conn, many_x, many_y)

        *got, summed = products(conn, weight, x, y, x * scale, np.broadcast_to(y, (columns, *y.shape)))
        for one, expected in zip(got, (forward, backward, sampled), strict=True):
            same(one, expected, dtype)
        same(np.asarray(summed) / np.sum(scale), sampled, dtype)


def window_of(conn, batch, variables, steps, new):
    """Coefficients, input and trace of a window, and what plain loops make of them."""
    carried, signal = new(variables, variables, *batch, conn.num_post), new(variables, *batch, conn.num_post)
    entering, direct = new(steps, variables, *batch, conn.num_post), new(steps, *batch, conn.num_post)
    x, trace = new(steps, *batch, conn.num_pre), new(variables, *batch, conn.num_synapses)
    expected, gradient = np.zeros_like(trace), np.zeros(conn.num_synapses, trace.dtype)
    for s, (j, i) in enumerate(ends(conn)):
        for a in range(variables):
            gradient[s] += np.sum(signal[a, ..., i] * trace[a, ..., s])
            for b in range(variables):
                expected[a, ..., s] += carried[a, b, ..., i] * trace[b, ..., s]
            for k in range(steps):
                expected[a, ..., s] += entering[k, a, ..., i] * x[k, ..., j]
        gradient[s] += np.sum(direct[..., i] * x[..., j])
    return (carried, entering, signal, direct, x, trace), expected, gradient


@pytest.mark.optimized
@cases
@hypothesis.example(
    conn=se.Connectivity.from_edges(np.arange(40) % 7, np.arange(40) % 3, shape=(7, 3)),
    batch=(2,),
    variables=5,
    dtype=np.float32,
    seed=0,
)
# Units of many synapses, and more units of few than go through a window together.
@hypothesis.example(
    conn=se.Connectivity.from_edges(np.arange(400) % 7, np.arange(400) % 3, shape=(7, 3)),
    batch=(2,),
    variables=2,
    dtype=np.float32,
    seed=2,
)
@hypothesis.example(
    conn=se.Connectivity.from_edges(np.arange(427) % 19, np.arange(427) ** 2 % 5, shape=(19, 5)),
    batch=(5,),
    variables=1,
    dtype=np.float64,
    seed=2,
)
@hypothesis.example(
    conn=se.Connectivity.from_edges(np.arange(150) % 7, np.arange(150) ** 2 % 71, shape=(7, 71)),
    batch=(2,),
    variables=2,
    dtype=np.float32,
    seed=1,
)
def test_trace_window(conn, batch, variables, dtype, seed):
    with jax.enable_x64(True):
        steps = (1, 3, 16, 18)[seed % 4]
        args, expected, gradient = window_of(conn, batch, variables, steps, normal(seed, dtype))
        args = tuple(map(jnp.asarray, args))
        got = _kernels.trace.advance(conn, *args)
        same(got[0], expected, dtype)
        same(got[1], gradient, dtype)
        carried, entering, signal, direct, x, trace = args
        only, none = _kernels.trace.advance(conn, carried, entering, None, None, x, trace)
        assert none is None and np.array_equal(only, got[0])
        none, only = _kernels.trace.advance(conn, None, None, signal, direct, x, trace)
        assert none is None and np.array_equal(only, got[1])


# Nothing, one feature, ragged ones of several blocks, and one variable more than is compiled.
@pytest.mark.optimized
@pytest.mark.parametrize(
    "size, batch, variables, features, steps, dtype",
    [
        (0, (), 1, 5, 3, np.float32),
        (40, (2, 3), 1, 1, 1, np.float64),
        (40, (), 2, 19, 3, np.float64),
        (400, (2,), 3, 99, 16, np.float32),
        (40, (2,), 4, 5, 3, np.float32),
    ],
)
def test_window_by_feature(size, batch, variables, features, steps, dtype):
    conn = se.Connectivity.from_edges(np.arange(size) % 7, np.arange(size) ** 2 % 3, shape=(7, 3))
    with jax.enable_x64(True):
        args, expected, gradient = window_of(conn, (*batch, features), variables, steps, normal(0, dtype))
        carried, entering, signal, direct, x, eps = (jnp.swapaxes(a, -1, -2) for a in args)
        window = functools.partial(_kernels.features.advance, conn)
        new, taught = window(carried, entering, signal, direct, x, eps)
        same(new, np.swapaxes(expected, -1, -2), dtype)
        np.testing.assert_allclose(taught, gradient, rtol=1e-5, atol=1e-3 if dtype == np.float32 else 1e-11)
        if size < 400:
            return
        only, none = window(carried, entering, None, None, x, eps)
        assert none is None and np.array_equal(only, new)
        none, only = window(None, None, signal, direct, x, eps)
        assert none is None and np.array_equal(only, taught)
        # In half precision, to the nearest and by the bits that XLA draws.
        narrow = eps.astype(jnp.bfloat16)
        _, wide = window(carried, entering, signal, direct, x, narrow.astype(dtype))
        for kept in ({}, {"noise": jnp.uint32(11)}):
            new, taught = window(carried, entering, signal, direct, x, narrow, **kept)
            with se.kernels("xla"):
                other, _ = window(carried, entering, signal, direct, x, narrow, **kept)
            assert new.dtype == other.dtype == jnp.bfloat16 and jnp.sum(new != other) <= 1 + new.size // 100
            np.testing.assert_allclose(new.astype(dtype), other.astype(dtype), rtol=2.0**-7, atol=1e-5)
            np.testing.assert_allclose(taught, wide, rtol=1e-5, atol=1e-3)


def test_windows_by_feature_of_other_sizes_are_refused():
    conn = se.Connectivity.from_edges([0, 2, 1], [1, 1, 0], (3, 2))
    shapes = [(2, 2, 4, 2, 6), (5, 2, 4, 2, 6), (2, 4, 2, 6), (5, 4, 2, 6), (5, 4, 3, 6), (2, 4, 3, 6)]
    # Annotations off, which would see some before.
    advance = getattr(_kernels.features.advance, "__wrapped__", _kernels.features.advance)
    for k, shape in enumerate(shapes):
        for axis in range(len(shape)):
            wrong = [
                jnp.asarray(np.ones([n + (i == k and a == axis) for a, n in enumerate(s)]))
                for i, s in enumerate(shapes)
            ]
            with pytest.raises(ValueError, match="expected shape .* in a window of"):
                advance(conn, *wrong)
    given = [jnp.ones(s) for s in shapes]
    with pytest.raises(ValueError, match=r"trace: expected shape \(2, 4, 3, 6\) in a window of 5 steps, got .* Keep a"):
        _kernels.features.advance(conn, *given[:5], given[5][:, :, :2])


@pytest.mark.parametrize(
    "conn", [se.Connectivity.from_edges([0, 2, 1], [1, 1, 0], (3, 2)), None], ids=["sparse", "all"]
)
def test_windows_of_other_sizes_are_refused(conn):
    """Before a compiled kernel reads or writes past an array."""
    ends = (3, 2) if conn is None else (3,)
    shapes = (2, 2, 4, 2), (5, 2, 4, 2), (2, 4, 2), (5, 4, 2), (5, 4, 3), (2, 4, *ends), ends
    given = [jnp.ones(shape) for shape in shapes]
    # Annotations off, which would see some before.
    advance = getattr(_kernels.trace.advance, "__wrapped__", _kernels.trace.advance)
    advance(conn, *given[:6])
    for k in range(4):
        with pytest.raises(
            ValueError, match="(carried|signal): expected it together with .*(entering|direct)`, got one of them. Give"
        ):
            advance(conn, *given[:k], None, *given[k + 1 : 6])
    for k, shape in enumerate(shapes):
        for axis in range(len(shape)):
            wrong = [jnp.repeat(a, 2, axis) if i == k else a for i, a in enumerate(given)]
            with pytest.raises(ValueError, match=r"\w+: expected shape .* in a window of .* got .* Keep a carry"):
                advance(conn, *wrong[:6], None, wrong[6])
    with pytest.raises(ValueError, match="trace: expected shape"):
        _kernels.trace.advance(conn, *given[:5], given[5][:, :1])


@pytest.mark.optimized
@pytest.mark.parametrize("dtype, stored", [("float32", "float32"), ("float64", "float64"), ("float32", "bfloat16")])
@pytest.mark.parametrize("steps, variables", few([(16, 1), (16, 3), (16, 4), (5, 2), (2, 1)], [(16, 3), (16, 4)]))
def test_window_of_spikes(steps, variables, dtype, stored):
    """Zeros and ones take a kernel of their own, and anything else among them sends them back."""
    rng, batch = np.random.default_rng(steps), 2
    with jax.enable_x64(True):
        conn = se.Connectivity.from_edges(*rng.integers(19, size=(2, 700)), shape=(19, 23))
        pre, post, new = np.asarray(conn.pre), np.asarray(conn.post), normal(0, dtype)
        carried, signal = new(variables, variables, batch, 23), new(variables, batch, 23)
        entering, direct = new(steps, variables, batch, 23), new(steps, batch, 23)
        trace = jnp.asarray(new(variables, batch, 700), stored)
        spikes = np.asarray(rng.random((steps, batch, 19)) < 0.3, dtype)
        for x in (spikes, np.where(np.arange(19) == 18, 0.5, spikes).astype(dtype)):
            units = map(jnp.asarray, (carried, entering, signal, direct, x))
            got = _kernels.trace.advance(conn, *units, trace)
            late = np.einsum("acbs,cbs->abs", carried[..., post], np.asarray(trace, float))
            late += np.einsum("kabs,kbs->abs", entering[..., post], x[..., pre])
            now = np.einsum("abs,abs->s", signal[..., post], np.asarray(trace, float))
            now += np.einsum("kbs,kbs->s", direct[..., post], x[..., pre])
            tolerance = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 2.0**-8}
            for one, expected, kept in ((got[0], late, stored), (got[1], now, dtype)):
                assert np.max(np.abs(np.asarray(one, float) - expected)) < tolerance[kept] * np.max(np.abs(expected))


@pytest.mark.optimized
@pytest.mark.parametrize(
    "sizes, batch, variables, steps, dtype",
    [
        ((43, 21), (3,), 2, 16, np.float32),
        ((43, 21), (2, 3), 3, 18, np.float64),
        ((9, 16), (), 1, 1, np.float32),
        ((43, 21), (3,), 4, 16, np.float32),
        ((5, 2), (3,), 5, 3, np.float32),
        ((0, 3), (0,), 1, 3, np.float64),
    ],
)
def test_window_where_everything_is_connected(sizes, batch, variables, steps, dtype):
    with jax.enable_x64(True):
        pre, post = (part.ravel() for part in np.indices(sizes))
        conn = se.Connectivity.from_edges(pre, post, shape=sizes)
        place = np.asarray(conn.pre) * sizes[1] + np.asarray(conn.post)

        def laid_out(values):
            """From the order of synapses to `(pre, post)`."""
            out = np.empty_like(values)
            out[..., place] = values
            return out.reshape(*values.shape[:-1], *sizes)

        args, expected, gradient = window_of(conn, batch, variables, steps, normal(0, dtype))
        carried, entering, signal, direct, x, trace = map(jnp.asarray, (*args[:-1], laid_out(args[-1])))
        window = functools.partial(_kernels.trace.advance, None)
        new, taught = window(carried, entering, signal, direct, x, trace)
        same(new, laid_out(expected), dtype)
        same(taught, laid_out(gradient), dtype)
        only, none = window(carried, entering, None, None, x, trace)
        assert none is None and np.array_equal(only, new)
        none, only = window(None, None, signal, direct, x, trace)
        assert none is None and np.array_equal(only, taught)
        narrow = trace.astype(jnp.bfloat16)
        rounded, taught = window(carried, entering, signal, direct, x, narrow)
        new, wide = window(carried, entering, signal, direct, x, narrow.astype(dtype))
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(rounded.astype(dtype), new, rtol=2.0**-8, atol=1e-5)
        same(taught, wide, dtype)


@pytest.mark.optimized
@cases
def test_a_narrow_trace_is_rounded_once(conn, batch, variables, dtype, seed):
    with jax.enable_x64(True):
        args, *_ = window_of(conn, batch, variables, (1, 16, 18)[seed % 3], normal(seed, dtype))
        args = tuple(map(jnp.asarray, args))
        narrow = args[-1].astype(jnp.bfloat16)
        new, gradient = _kernels.trace.advance(conn, *args[:-1], narrow)
        expected, wide = _kernels.trace.advance(conn, *args[:-1], narrow.astype(dtype))
        assert new.dtype == jnp.bfloat16
        np.testing.assert_allclose(new.astype(dtype), expected, rtol=2.0**-8, atol=1e-5)
        same(gradient, wide, dtype)


def test_a_narrow_trace_keeps_what_is_no_number():
    conn = se.Connectivity.from_edges([0, 0, 0], [0, 1, 2], shape=(1, 3))
    trace = jnp.array([[1.0, jnp.nan, jnp.inf]], jnp.bfloat16)
    one, zero = jnp.ones((1, 1, 3)), jnp.zeros((1, 1, 3))
    new, _ = _kernels.trace.advance(conn, one, zero, None, None, jnp.zeros((1, 1)), trace)
    np.testing.assert_array_equal(new.astype(jnp.float32), trace.astype(jnp.float32))


@hypothesis.given(
    sizes=st.sampled_from([(1, 1), (4, 2), (0, 3), (3, 0)]),
    batch=st.sampled_from(BATCHES),
    with_bias=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_dense(sizes, batch, with_bias, dtype, seed):
    with jax.enable_x64(True):
        new, steps = normal(seed, dtype), 3
        x, y, weight = new(steps, *batch, sizes[0]), new(steps, *batch, sizes[1]), new(steps, *batch, *sizes)
        v = {"weight": jnp.zeros(sizes, dtype), "bias": jnp.zeros(sizes[1], dtype)}
        trace = {"weight": weight, "bias": y}
        if not with_bias:
            del v["bias"], trace["bias"]
        outer, spread = np.zeros_like(weight), np.zeros_like(weight)
        for i in range(sizes[0]):
            for j in range(sizes[1]):
                outer[..., i, j] = x[..., i] * y[..., j]
                spread[..., i, j] = y[..., j] * weight[..., i, j]
        x, y, trace = jax.tree.map(jnp.asarray, (x, y, trace))
        for got, at_weight, at_bias in (
            (_kernels.dense.outer(x, y, v), outer, y),
            (_kernels.dense.sum_outer(x, y, v), outer.sum(0), y.sum(0)),
            (_kernels.dense.spread(y, trace), spread, y * y),
        ):
            assert got.keys() == v.keys()
            same(got["weight"], at_weight, dtype)
            if with_bias:
                same(got["bias"], at_bias, dtype)


@pytest.mark.parametrize("dtype", [bool, np.int32])
def test_inputs_need_not_be_floats(dtype):
    conn = se.Connectivity.from_edges([0, 1, 1], [1, 0, 1], shape=(2, 2))
    spikes, weight, y = jnp.array([1, 0], dtype), jnp.array([2.0, 3.0, 5.0]), jnp.array([1.0, 2.0])
    assert _kernels.spmv(conn, weight, spikes).tolist() == [0.0, 3.0]
    assert _kernels.sampled(conn, spikes, y).tolist() == [0.0, 2.0, 0.0]
    v = {"weight": jnp.zeros((2, 2))}
    assert _kernels.dense.outer(spikes, y, v)["weight"].tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_derivatives(x64):
    batch = (2,)
    conn = se.Connectivity.from_edges([0, 2, 1, 2, 2], [1, 0, 1, 1, 1], shape=(3, 2))
    new = normal(0, np.float64)
    weight, x, y = new(5), new(*batch, 3), new(*batch, 2)
    trace, d, f = new(2, *batch, 5), new(2, 2, *batch, 2), new(2, *batch, 2)
    for fn, args in (
        (_kernels.spmv, (weight, x)),
        (_kernels.spmv_t, (weight, y)),
        (_kernels.sampled, (x, y)),
        (_kernels.trace.advance, (d, f[None], f, y[None], x[None], trace)),
        (
            lambda _, *given: _kernels.trace.advance(None, *given),
            (d, f[None], f, y[None], x[None], new(2, *batch, 3, 2)),
        ),
        (
            _kernels.features.advance,
            (new(2, 2, 2, 3), new(1, 2, 2, 3), new(2, 2, 3), new(1, 2, 3), new(1, 3, 3), new(2, 5, 3)),
        ),
    ):
        check_grads(jax.jit(lambda *args, fn=fn: fn(conn, *args)), tuple(map(jnp.asarray, args)), order=1)


MAPPED = {
    "spmv": (_kernels.spmv, [(9,), (5,)]),
    "spmv_t": (_kernels.spmv_t, [(9,), (4,)]),
    "sampled": (_kernels.sampled, [(5,), (4,)]),
    "window": (lambda *args: _kernels.trace.advance(*args)[0], [(2, 2, 4), (3, 2, 4), (2, 4), (3, 4), (3, 5), (2, 9)]),
    "gradient": (
        lambda *args: _kernels.trace.advance(*args)[1],
        [(2, 2, 4), (3, 2, 4), (2, 4), (3, 4), (3, 5), (2, 9)],
    ),
}
SHAPES = [(2, 2, 4), (3, 2, 4), (2, 4), (3, 4), (3, 5), (2, 5, 4)]
MAPPED["dense window"] = (lambda _, *args: _kernels.trace.advance(None, *args)[0], SHAPES)
MAPPED["dense gradient"] = (lambda _, *args: _kernels.trace.advance(None, *args)[1], SHAPES)
BY_FEATURE = [(2, 2, 4, 3), (3, 2, 4, 3), (2, 4, 3), (3, 4, 3), (3, 5, 3), (2, 9, 3)]
MAPPED["window by feature"] = (lambda *args: _kernels.features.advance(*args)[0], BY_FEATURE)
MAPPED["gradient by feature"] = (lambda *args: _kernels.features.advance(*args)[1], BY_FEATURE)


EACH = [(name, mapped) for name in MAPPED for mapped in ("all", "first", "last", "connectivity")]


@pytest.mark.parametrize(
    "name, mapped", few(EACH, [*EACH[0:12:3], *EACH[12:24:5], EACH[13], EACH[25], EACH[28], EACH[35]])
)
def test_vmap_is_a_loop(x64, name, mapped):
    rng, new = np.random.default_rng(0), normal(2, np.float64)
    conns = [se.Connectivity.from_edges(rng.integers(0, 5, 9), rng.integers(0, 4, 9), shape=(5, 4)) for _ in range(3)]
    fn, shapes = MAPPED[name]
    picks = {"all": range(len(shapes)), "first": [0], "last": [len(shapes) - 1], "connectivity": []}[mapped]
    args = [jnp.asarray(new(3, *shape) if i in picks else new(*shape)) for i, shape in enumerate(shapes)]
    axes = [0 if i in picks else None for i in range(len(shapes))]
    several = mapped == "connectivity"
    conn = jax.tree.map(lambda *leaves: jnp.stack(leaves), *conns) if several else conns[0]
    got = jax.vmap(fn, in_axes=(0 if several else None, *axes))(conn, *args)
    # Twice, the second time after an axis that is not mapped.
    twice = jax.vmap(
        lambda scale: jax.vmap(fn, in_axes=(0 if several else None, *axes))(conn, args[0] * scale, *args[1:])
    )
    loop = [
        fn(conns[k] if several else conn, *(a[k] if i in picks else a for i, a in enumerate(args))) for k in range(3)
    ]
    np.testing.assert_allclose(got, jnp.stack(loop), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(twice(jnp.array([1.0, 2.0]))[0], got, rtol=1e-13, atol=1e-13)


def test_derivatives_of_derivatives_and_of_maps(x64):
    conn = se.Connectivity.from_edges([0, 2, 1, 2, 2], [1, 0, 1, 1, 1], shape=(3, 2))
    new = normal(3, np.float64)
    weights, x, signs = map(jnp.asarray, (new(4, 5), new(4, 3), new(4, 2)))

    def energy(weights, x):
        y = jax.vmap(lambda w, x: _kernels.spmv(conn, w, jnp.tanh(x)))(weights, x)
        back = jax.vmap(lambda w, y: _kernels.spmv_t(conn, w, y))(weights, jnp.sin(y))
        return jnp.sum(jax.vmap(lambda x, y: _kernels.sampled(conn, x, y))(back, signs) ** 2)

    check_grads(energy, (weights, x), order=2)


def test_the_transposed_product_is_the_derivative_of_the_forward_one(x64):
    conn = se.Connectivity.from_edges([0, 2, 1, 2, 2], [1, 0, 1, 1, 1], shape=(3, 2))
    weight, x, y = map(jnp.asarray, map(normal(1, np.float64), (5, 3, 2)))
    by_weight, by_x = jax.vjp(lambda w, x: _kernels.spmv(conn, w, x), weight, x)[1](y)
    np.testing.assert_allclose(by_x, _kernels.spmv_t(conn, weight, y), rtol=1e-14)
    np.testing.assert_allclose(by_weight, _kernels.sampled(conn, x, y), rtol=1e-14)


def test_nothing_to_send_or_to_receive():
    conn = se.Connectivity.from_edges([], [], shape=(0, 0))
    none = jnp.zeros(0)
    assert _kernels.spmv(conn, none, none).shape == _kernels.spmv_t(conn, none, none).shape == (0,)
    assert _kernels.sampled(conn, none, none).shape == (0,)


@pytest.mark.parametrize("active", [0.0, 0.01, 0.05, 0.5])
def test_spikes_scatter_what_others_gather(x64, active):
    # In no order, and enough for several threads to share what few senders send.
    rng = np.random.default_rng(0)
    pre, post = rng.integers(0, 500, (2, 200_000))
    post[:100_000] = 7
    conn = se.Connectivity.from_edges(pre, post, shape=(500, 600))
    weight = jnp.asarray(rng.normal(size=conn.num_synapses))
    x = np.where(rng.random(500) < active, rng.normal(size=500), 0)
    expected = np.zeros(600)
    np.add.at(expected, np.asarray(conn.post), np.asarray(weight) * x[np.asarray(conn.pre)])
    np.testing.assert_allclose(_kernels.spmv(conn, weight, jnp.asarray(x)), expected, atol=1e-12)


@pytest.mark.parametrize(("units", "slots"), [(4000, 20), (70_000, 1)])
def test_many_senders_are_looked_through_in_parts(x64, units, slots):
    # As units in slots of a ring, which is read over its end, and alone.
    rng = np.random.default_rng(0)
    pre, post = rng.integers(0, units * slots, 400_000), rng.integers(0, units, 400_000)
    conn = se.Connectivity.from_edges(pre, post, shape=(units * slots, units))
    weight, first = rng.normal(size=400_000), slots // 3
    for active in (0.0, 0.001, 0.05, 0.5):
        ring = np.where(rng.random((slots, units)) < active, rng.normal(size=(slots, units)), 0)
        ring[0] *= 10 * (active < 0.05)  # one part has more than the others
        x = np.roll(ring, -first, axis=0).ravel()
        expected = np.bincount(conn.post, weight * x[np.asarray(conn.pre)], units)
        found = _kernels.spmv_ring(conn, jnp.asarray(weight), jnp.asarray(ring), jnp.int32(first))
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("few, columns", [(0, 1), (100, 1), (2, 3), (100, 3)])
def test_ids_are_a_frame(x64, few, columns):
    # Of few synapses and of many, some ids named twice and some out of range; derivatives and other mapped axes too.
    rng = np.random.default_rng(0)
    pre, post = rng.integers(0, 500, 200_000), rng.integers(0, 600, 200_000)
    conn = se.Connectivity.from_edges(np.where(rng.random(200_000) < 0.05, 3, pre), post, shape=(500, 600))
    weight, y = jnp.asarray(rng.normal(size=conn.num_synapses)), jnp.asarray(rng.normal(size=(columns, 600)))
    ids = np.concatenate([rng.integers(0, 500, (columns, few)), [[7, 500, -1, 7]] * columns], axis=1)
    x = np.zeros((columns, 501))
    np.add.at(x, (np.arange(columns)[:, None], np.where(ids < 0, 500, ids)), 1)
    x, expected = jnp.asarray(x[:, :500]), np.zeros((columns, 600))
    np.add.at(expected, (slice(None), np.asarray(conn.post)), np.asarray(weight) * x[:, np.asarray(conn.pre)])
    ids = jnp.asarray(ids)
    assert np.array_equal(_kernels.frame(ids, 500), x)
    found, pull = jax.vjp(lambda w: _kernels.spmv_ids(conn, w, ids), weight)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(pull(y)[0], _kernels.sampled_sum(conn, x, y), atol=1e-12)
    np.testing.assert_allclose(jax.vmap(lambda i: _kernels.spmv_ids(conn, weight, i))(ids), expected, atol=1e-12)
    pair = jax.vmap(lambda w: _kernels.spmv_ids(conn, w, ids[0]))(jnp.stack([weight, 2 * weight]))
    np.testing.assert_allclose(pair, np.stack([expected[0], 2 * expected[0]]), atol=1e-12)
    with se.kernels("xla"):
        np.testing.assert_allclose(jax.jit(lambda i: _kernels.spmv_ids(conn, weight, i))(ids), expected, atol=1e-12)


def test_hubs_are_shared_among_blocks(x64):
    # Large enough for many blocks of work, of which some lie within one unit.
    rng = np.random.default_rng(1)
    post = np.sort(rng.choice([3, 4, 4, 4, 4, 90], 400_000))
    conn = se.Connectivity.from_edges(rng.integers(0, 2000, 400_000), post, shape=(2000, 100))
    weight, x, y = map(jnp.asarray, (rng.normal(size=400_000), rng.normal(size=(5, 2000)), rng.normal(size=(5, 100))))
    dense = np.zeros((2000, 100))
    np.add.at(dense, (np.asarray(conn.pre), np.asarray(conn.post)), np.asarray(weight))
    for part in (0, slice(None)):
        np.testing.assert_allclose(_kernels.spmv(conn, weight, x[part]), x[part] @ dense, atol=1e-9)
        np.testing.assert_allclose(_kernels.spmv_t(conn, weight, y[part]), y[part] @ dense.T, atol=1e-9)
    outer = np.einsum("ki,kj->ij", x, y)[np.asarray(conn.pre), np.asarray(conn.post)]
    np.testing.assert_allclose(_kernels.sampled_sum(conn, x, y), outer, atol=1e-12)


PARALLEL = """
import concurrent.futures, os, sys
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import jax, jax.numpy as jnp, numpy as np, sparse_etrace as se
from sparse_etrace import _kernels
rng = np.random.default_rng(0)
pre, post = rng.integers(0, 1000, (2, 200_000))
conn = se.Connectivity.from_edges(pre, post, shape=(1000, 1000))
weight, x = jnp.asarray(rng.normal(size=200_000)), jnp.asarray(rng.normal(size=(3, 1000)))
slots = se.Connectivity.from_edges(rng.integers(0, 70_000, 200_000), post, shape=(70_000, 1000))
sent = jnp.asarray(rng.random(70_000) < 0.03)

def some(w, x):
    y = _kernels.spmv_t(conn, _kernels.sampled_sum(conn, x, _kernels.spmv(conn, w, x)), x)
    return y + _kernels.spmv(slots, w, sent)

one = jax.jit(some)
first = np.asarray(one(weight, x))
with concurrent.futures.ThreadPoolExecutor(50) as pool:
    for other in pool.map(lambda _: np.asarray(one(weight, x)), range(50)):
        if not np.array_equal(first, other):
            raise SystemExit("not the same bits")
print("done")
"""


def test_shapes_are_checked_at_each_call():
    conn = se.Connectivity.from_edges([0], [0], shape=(1, 1))
    with pytest.raises(jaxtyping.TypeCheckError, match="weight"):
        _kernels.spmv(conn, jnp.ones((1, 1)), jnp.ones(1))


@pytest.mark.parametrize("threads", ["1", "2"])
def test_fifty_calls_at_once(threads):
    command = [sys.executable, "-c", PARALLEL, threads]
    # Scatters on a GPU add in any order.
    environment = plain_environment() | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.soak
def test_every_machine_gets_the_same(amount):
    """The kernels of each instruction set of this machine, and those of XLA, under the tests above."""
    if os.environ.get(native.VARIABLE) or not _library.path_of(native.LIBRARY).is_file():
        pytest.skip("one set of kernels is chosen already")
    here = native.CHOICES[native.CHOICES.index(native.KERNELS) :] if native.KERNELS in native.CHOICES else ()
    assert "xla" in here and len(here) > 1
    # The checks of shapes know nothing of instruction sets.
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib --strict-markers"]
    for kernels in amount(here[-2:], here[1:]):
        chains = Path(__file__).with_name("test_elementwise.py")
        command = [Path(sys.executable).with_name("pytest"), __file__, chains, "-q", *options]
        done = subprocess.run(
            [
                *map(str, command),
                "-k",
                amount("products", "products or window or narrow or hubs or spikes or chain"),
            ],
            env={**os.environ, native.VARIABLE: kernels},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{kernels}\n{done.stdout[-3000:]}"


def test_without_compiled_kernels_it_says_so_once(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "path_of", lambda name: tmp_path / "library.so.1")
    monkeypatch.delenv(native.VARIABLE, raising=False)
    assert native._load() == ("xla", "the package was installed without a C++ compiler")
    (tmp_path / "library.so.1").write_text("not a library")
    kernels, reason = native._load()
    assert kernels == "xla" and "does not load" in reason
    monkeypatch.setenv(native.VARIABLE, "plain")
    with pytest.raises(ValueError, match="got 'plain', but .* does not load.*Install the package again"):
        native._load()
    monkeypatch.delenv(native.VARIABLE)
    monkeypatch.setattr(native, "KERNELS", kernels)
    monkeypatch.setattr(native, "REASON", reason)
    native._say_once.cache_clear()
    conn = se.Connectivity.from_edges([0, 1], [1, 0], shape=(2, 2))
    with jax.default_device(jax.devices("cpu")[0]):
        with pytest.warns(RuntimeWarning, match="kernels of XLA, which are slower.*does not load"):
            assert jax.jit(lambda w: _kernels.spmv(conn, w, w))(jnp.ones(2)).tolist() == [1.0, 1.0]
        jax.jit(lambda w: _kernels.spmv_t(conn, w, w))(jnp.ones(2))
    native._say_once.cache_clear()


def test_a_wrong_choice_of_kernels(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "avx1024")
    with pytest.raises(ValueError, match="SPARSE_ETRACE_KERNELS: expected one of avx512, .*got 'avx1024'"):
        native._load()


def test_the_program_for_a_gpu_has_no_compiled_kernels(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "xla")  # what cuSPARSE computes is for the machine that it is on
    conn = se.Connectivity.from_edges([0, 2, 1], [1, 0, 1], shape=(3, 2))

    def all_kernels(conn, weight, x, y, trace):
        new, gradient = _kernels.trace.advance(conn, y[None, :1], y[:, None], y[:1], y, x, trace)
        return new, gradient, _kernels.spmv(conn, weight, x), _kernels.spmv_t(conn, weight, y)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3,), (4, 3), (4, 2), (1, 3))]
    exported = jax.export.export(jax.jit(all_kernels), platforms=["cuda"])(conn, *shapes)
    assert exported.platforms == ("cuda",) and "sparse_etrace_" not in exported.mlir_module()


def test_programs_of_other_kernels_within_a_context(on_cpu):
    conn = se.Connectivity.from_edges([0, 2, 1], [1, 0, 1], shape=(3, 2))
    run = jax.jit(lambda weight, x: _kernels.spmv(conn, weight, x))
    weight, x = jnp.arange(1.0, 4.0), jnp.arange(3.0)

    def has_calls():
        return "sparse_etrace_spmv" in run.lower(weight, x).as_text()

    is_compiled, found = native.KERNELS != "xla", run(weight, x)
    assert has_calls() == is_compiled
    if is_compiled:
        with pytest.raises(ValueError, match="(?s)custom calls .*sparse_etrace_spmv"):
            jax.export.export(run, platforms=["cpu"])(weight, x)
    with se.kernels("xla"):
        assert not has_calls()
        np.testing.assert_allclose(run(weight, x), found, rtol=1e-6)
        exported = jax.export.export(run, platforms=["cpu", "cuda"])(weight, x)
    assert has_calls() == is_compiled
    assert exported.platforms == ("cpu", "cuda") and "sparse_etrace_" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(weight, x), found, rtol=1e-6)
    with pytest.raises(ValueError, match=r"name: expected 'xla', got 'plain'\. SPARSE_ETRACE_KERNELS chooses"):
        se.kernels("plain")


def test_a_gradient_is_exported():
    graph = se.from_edges([0, 1, 2], [1, 2, 0], [0.5, 0.4, 0.3])
    cell = se.cells.LeakyRate.of(graph, inputs=2, key=jax.random.key(0))
    learner, xs, ys = se.D_RTRL(), jnp.ones((6, 2)), jnp.zeros((6, 3))
    carry = learner.init(cell, cell.init_state(), xs[0])

    @jax.jit
    def run(xs, ys):
        losses, grads, _ = se.online_grad(learner, lambda o, y: jnp.sum((o - y) ** 2), cell, carry, xs, ys)
        return losses, jax.tree.leaves(grads)

    with se.kernels("xla"):
        exported = jax.export.export(run)(xs, ys)
    found = exported.call(xs, ys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), list(found), list(run(xs, ys)))


@pytest.mark.parametrize("synapses, columns", [(30, 1), (30, 3), (40, 3)])
def test_products_of_a_gpu(monkeypatch, synapses, columns):
    """What cuSPARSE is given, by the same functions on this machine; parallel synapses may be more than places."""
    monkeypatch.setattr(products, "ROWS", 7)
    rng = np.random.default_rng(synapses + columns)
    conn = se.Connectivity.from_edges(rng.integers(7, size=synapses), rng.integers(5, size=synapses), (7, 5))
    weight, x, y = (
        jnp.asarray(rng.normal(size=(1, *n)), jnp.float32) for n in ((synapses,), (columns, 7), (columns, 5))
    )
    matrix = np.zeros((7, 5))
    np.add.at(matrix, (conn.pre, conn.post), weight[0])
    outer = np.sum(np.asarray(x[0])[:, conn.pre] * np.asarray(y[0])[:, conn.post], axis=0)
    given = {"y": (weight, x), "x": (weight, y), "weight": (x, y)}

    @jax.jit
    def all_products(given):
        return {k: products._cuda(k, *conn.arrays, *pair, sizes=conn.shape)[0][0] for k, pair in given.items()}

    expected = {"y": x[0] @ matrix, "x": y[0] @ matrix.T, "weight": outer}
    for missing, found in all_products(given).items():
        np.testing.assert_allclose(found, expected[missing], rtol=1e-4, atol=1e-5)
    assert ("csr_mat" in str(jax.make_jaxpr(all_products)(given))) == (synapses <= 35)


@pytest.mark.optimized
def test_the_window_of_xla_makes_no_array_of_synapses_and_batch_but_the_trace():
    num, batch, steps = 400, 64, 16
    rng = np.random.default_rng(0)
    conn = se.Connectivity.from_edges(*rng.integers(0, num, (2, 20_000)), shape=(num, num))
    shapes = [(1, 1, batch, num), (steps, 1, batch, num), (1, batch, num), (steps, batch, num), (steps, batch, num)]
    operands = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes]
    operands.append(jax.ShapeDtypeStruct((1, 0), jnp.uint32))
    operands.append(jax.ShapeDtypeStruct((1, batch, conn.num_synapses), jnp.float32))
    fn = jax.jit(functools.partial(trace._xla, sizes=conn.shape, variables=1, slots=1))
    memory = fn.lower(*conn.arrays, *operands).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * conn.num_synapses * batch / 2


@pytest.mark.skipif(native.KERNELS == "xla", reason="needs the compiled kernels")
def test_kernels_of_another_version_are_not_used(monkeypatch):
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    assert native._load() == ("xla", "libsparse_etrace.so.1 belongs to another version of the package")


@pytest.mark.optimized
@pytest.mark.skipif(native.KERNELS == "xla", reason="needs the compiled kernels")
@pytest.mark.parametrize("kernel, batch, features", [("window", (3,), ()), ("features", (), (2,))])
def test_a_trace_goes_through_windows_in_place(kernel, batch, features):
    advance = _kernels.features.advance if features else _kernels.trace.advance
    conn = se.Connectivity.from_edges(np.arange(5000) % 70, np.arange(5000) % 50, shape=(70, 50))
    one, many = jnp.ones((1, 1, *batch, 50, *features)), jnp.ones((4, 1, *batch, 50, *features))
    eps, xs = jnp.ones((1, *batch, 5000, *features)), jnp.ones((9, 4, *batch, 70, *features))

    def through(eps, x):
        return jax.lax.scan(lambda e, x: (advance(conn, one, many, None, None, x, e)[0], None), eps, x)[0]

    with jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(through, donate_argnums=0).lower(eps, xs).compile()
    text = program.as_text()
    assert f"sparse_etrace_{kernel}" in text
    assert not re.findall(r"f32\[[0-9,]*5000(?:,2)?\]\S* (?:copy|fusion)\(", text)


def test_without_jit(x64):
    conn = se.Connectivity.from_edges([0, 1], [1, 0], shape=(2, 2))
    with jax.disable_jit():
        assert _kernels.spmv(conn, jnp.array([2.0, 3.0]), jnp.ones(2)).tolist() == [2.0, 3.0]
