"""The products over synapses against plain numpy."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import sparse_etrace as se
from sparse_etrace import _kernels

BATCHES = [(), (3,), (2, 2)]


@st.composite
def connectivities(draw):
    """Rectangular, with empty rows, parallel synapses, hubs, one synapse or none."""
    num_pre, num_post = draw(st.sampled_from([(1, 1), (6, 3), (2, 6)]))
    kind = draw(st.sampled_from(["any", "in-hub", "out-hub", "one", "none"]))
    size = {"one": 1, "none": 0}.get(kind, draw(st.sampled_from([4, 15])))
    pre = draw(st.lists(st.integers(0, num_pre - 1), min_size=size, max_size=size))
    post = draw(st.lists(st.integers(0, num_post - 1), min_size=size, max_size=size))
    pre = [pre[0]] * size if kind == "out-hub" and size else pre
    post = [post[0]] * size if kind == "in-hub" and size else post
    return se.Connectivity.from_edges(np.array(pre, int), np.array(post, int), shape=(num_pre, num_post))


few = hypothesis.settings(max_examples=12)
cases = hypothesis.given(
    conn=connectivities(),
    batch=st.sampled_from(BATCHES),
    variables=st.integers(1, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)


def normal(seed, dtype):
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.normal(size=shape).astype(dtype)


def same(got, expected, dtype):
    assert got.shape == expected.shape and got.dtype == dtype
    np.testing.assert_allclose(got, expected, atol=1e-5 if dtype == np.float32 else 1e-13)


def ends(conn):
    return list(zip(conn.pre.tolist(), conn.post.tolist()))


@few
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
        weight, x, y = map(jnp.asarray, (weight, x, y))
        same(_kernels.spmv(conn, weight, x), forward, dtype)
        same(_kernels.spmv_t(conn, weight, y), backward, dtype)
        same(_kernels.sampled(conn, x, y), sampled, dtype)
        scale = np.arange(1, 20, dtype=dtype).reshape(-1, *[1] * x.ndim)
        summed = _kernels.sampled_sum(conn, x * scale, jnp.broadcast_to(y, (19, *y.shape)))
        same(summed / 190, sampled, dtype)


@few
@cases
def test_trace_roll(conn, batch, variables, dtype, seed):
    with jax.enable_x64(True):
        new = normal(seed, dtype)
        d, f = new(variables, variables, *batch, conn.num_post), new(variables, *batch, conn.num_post)
        x, trace = new(*batch, conn.num_pre), new(variables, *batch, conn.num_synapses)
        expected = np.zeros_like(trace)
        for s, (j, i) in enumerate(ends(conn)):
            for a in range(variables):
                expected[a, ..., s] = f[a, ..., i] * x[..., j]
                for b in range(variables):
                    expected[a, ..., s] += d[a, b, ..., i] * trace[b, ..., s]
        same(_kernels.trace.roll(conn, *map(jnp.asarray, (d, f, x, trace))), expected, dtype)


@few
@cases
def test_trace_window(conn, batch, variables, dtype, seed):
    with jax.enable_x64(True):
        new, steps = normal(seed, dtype), 1 + seed % 3
        carried, signal = new(variables, variables, *batch, conn.num_post), new(variables, *batch, conn.num_post)
        entering, direct = new(steps, variables, *batch, conn.num_post), new(steps, *batch, conn.num_post)
        x, trace = new(steps, *batch, conn.num_pre), new(variables, *batch, conn.num_synapses)
        expected, gradient = np.zeros_like(trace), np.zeros(conn.num_synapses, dtype)
        for s, (j, i) in enumerate(ends(conn)):
            for a in range(variables):
                gradient[s] += np.sum(signal[a, ..., i] * trace[a, ..., s])
                for b in range(variables):
                    expected[a, ..., s] += carried[a, b, ..., i] * trace[b, ..., s]
                for k in range(steps):
                    expected[a, ..., s] += entering[k, a, ..., i] * x[k, ..., j]
            gradient[s] += np.sum(direct[..., i] * x[..., j])
        args = map(jnp.asarray, (carried, entering, signal, direct, x, trace))
        got = _kernels.trace.window(conn, *args)
        same(got[0], expected, dtype)
        same(got[1], gradient, dtype)


@few
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
        (_kernels.trace.roll, (d, f, x, trace)),
        (_kernels.trace.window, (d, f[None], f, y[None], x[None], trace)),
    ):
        check_grads(jax.jit(lambda *args, fn=fn: fn(conn, *args)), tuple(map(jnp.asarray, args)), order=1)


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
