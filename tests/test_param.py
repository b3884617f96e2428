"""Parameters: what they hold, print and refuse, and the boundaries that they leave in a jaxpr."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats

import sparse_etrace as se


def param(**kwargs):
    return se.ETraceParam({"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, se.MatMulOp(), **kwargs)


def marks(fn, *args):
    return [e.params["call"] for e in jax.make_jaxpr(fn)(*args).eqns if e.primitive.name == "etrace_boundary"]


def test_a_parameter_is_a_pytree_of_its_value():
    p = param()
    assert [leaf.shape for leaf in jax.tree.leaves(p)] == [(3,), (2, 3)]
    assert p.grad is se.ETraceGrad.adaptive and p.is_etrace
    doubled = jax.tree.map(lambda a: 2 * a, p)
    assert doubled.op == p.op and doubled(jnp.ones(2)).tolist() == [4.0] * 3
    assert list(se.ETraceGrad) == [se.ETraceGrad.full, se.ETraceGrad.approx, se.ETraceGrad.adaptive]


def test_execute_takes_what_is_an_array():
    assert param()(np.ones(2)).tolist() == param().execute([1.0, 1.0]).tolist() == [2.0] * 3


def test_numpy_values_become_arrays_and_stay_what_they_are():
    memory = np.zeros(128, np.uint8)
    start = -memory.ctypes.data % 64  # jax can share an aligned array instead of copying it
    w = memory[start : start + 24].view(np.float32).reshape(2, 3)
    w[:] = 1
    p = se.ETraceParam({"weight": w}, se.MatMulOp())
    w[:] = 7
    assert isinstance(p.value["weight"], jax.Array)
    assert p(jnp.ones(2)).tolist() == [2.0] * 3


def test_printed_form():
    assert repr(param(grad=se.ETraceGrad.full, is_etrace=False)) == (
        "ETraceParam(\n  value={\n    'bias': ShapedArray(float32[3]),\n    'weight': ShapedArray(float32[2,3])\n  },\n"
        "  gradient=<ETraceGrad.full: 'full'>,\n  op=MatMulOp(is_diagonal=False),\n  is_etrace=False\n)"
    )
    assert "value=ShapedArray(float32[])," in repr(se.ElemWiseParam(1.0))
    assert "op=ElemWiseOp(is_diagonal=True)" in repr(se.ElemWiseParam(1.0))
    assert "'a': {'b': ShapedArray(float32[2])}" in repr(se.ElemWiseParam({"a": {"b": jnp.ones(2)}}))


def test_printed_form_with_something_else_in_the_place_of_arrays():
    assert "'weight': True" in repr(se.trainable(param()))
    assert "'weight': None" in repr(eqx.filter(param(), False))
    assert "'weight': ShapedArray(float32[2,3])" in repr(eqx.filter_eval_shape(param))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: se.ETraceParam(jnp.ones(2), jnp.abs),
            "op: expected an ETraceOp such as MatMulOp(), got PjitFunction.",
        ),
        (lambda: param(grad="full"), "grad: expected ETraceGrad.full, .approx or .adaptive, got 'full'."),
        (
            lambda: se.ElemWiseParam({"a": 1.0, "b": 2}),
            "value['b']: expected floating numbers, got int32, never trained.",
        ),
        (lambda: se.NonTempParam(np.array([True]), se.ElemWiseOp()), "value: expected floating numbers, got bool"),
        (lambda: param()(), "x: expected an input for MatMulOp(is_diagonal=False), got none."),
    ],
)
def test_errors(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


def test_kin():
    elementwise, readout = (
        se.ElemWiseParam(jnp.zeros(2), jnp.exp),
        se.NonTempParam({"weight": jnp.ones((2, 1))}, se.MatMulOp()),
    )
    assert (elementwise.grad, elementwise.is_etrace) == (se.ETraceGrad.full, True)
    assert (readout.grad, readout.is_etrace) == (se.ETraceGrad.adaptive, False)
    fixed = se.Fixed(0.5)
    assert jax.grad(lambda f: f() ** 2)(fixed).value == 0 and not se.trainable(fixed).value


def test_a_call_leaves_one_mark():
    x = jnp.ones(2)
    (call,) = marks(param(), x)
    assert call.traced and call.grad is se.ETraceGrad.adaptive
    (call,) = marks(param(is_etrace=False, grad=se.ETraceGrad.approx), x)
    assert not call.traced and call.grad is se.ETraceGrad.approx
    assert len(marks(jax.vmap(param()), jnp.ones((5, 2)))) == 1
    # Linear algebra after a derivative leaves none of its own.
    assert len(marks(jax.grad(lambda x: param()(x).sum()), x)) == 1


def test_weights_on_synapses_are_a_pure_function_outside_of_the_mark():
    p = se.ETraceParam({"weight": jnp.ones((2, 3))}, se.MatMulOp(weight_fn=jnp.exp))
    arrays, static = eqx.partition(p, eqx.is_array)
    run = lambda arrays, x: eqx.combine(arrays, static)(x)
    names = [e.primitive.name for e in jax.make_jaxpr(run)(arrays, jnp.ones(2)).eqns]
    assert names.index("exp") < names.index("etrace_boundary")


def test_jit_keeps_one_program_for_new_values():
    count = []

    @eqx.filter_jit
    def run(p, x):
        count.append(1)
        return p(x)

    for scale in (1.0, 2.0):
        assert run(jax.tree.map(lambda a, s=scale: s * a, param()), jnp.ones(2)).tolist() == [2 * scale] * 3
    assert len(count) == 1


# --- cut -------------------------------------------------------------------------------------------------------------


def mixing(h, gain=1.0):
    return {"out": gain * (h - jnp.mean(h)), "count": jnp.argmax(h)}


def test_cut_changes_no_value_and_no_gradient(x64):
    h = jnp.array([1.0, 4.0, 2.0])
    bounded = se.cut(mixing)
    assert len(marks(bounded, h)) == 1
    got, expected = bounded(h), mixing(h)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_allclose, got, expected)
    loss = lambda fn: lambda h, gain: jnp.sum(fn(h, gain)["out"] ** 3)
    for fn in (jax.grad, lambda f, **kw: jax.jit(jax.grad(f, **kw)), jax.hessian):
        for a, b in zip(
            *(jax.tree.leaves(fn(loss(m), argnums=(0, 1))(h, 0.5)) for m in (bounded, mixing)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_cut_of_a_function_that_closes_over_what_is_trained():
    h = jnp.array([1.0, 4.0, 2.0])
    grad = jax.grad(lambda w: jnp.sum(se.cut(lambda h: w * h)(h)))(jnp.ones(3))
    assert grad.tolist() == h.tolist()


def test_cut_under_vmap():
    hs, gains = jnp.arange(12.0).reshape(4, 3), jnp.arange(4.0)
    bounded = se.cut(mixing)
    got, expected = jax.vmap(bounded)(hs, gains), jax.vmap(mixing)(hs, gains)
    assert got["out"].tolist() == expected["out"].tolist() and got["count"].tolist() == expected["count"].tolist()
    got = jax.jit(jax.vmap(bounded, in_axes=(1, None)))(hs.T, 2.0)
    assert got["out"].tolist() == jax.vmap(mixing, in_axes=(0, None))(hs, 2.0)["out"].tolist()
    nested = jax.vmap(jax.vmap(bounded, in_axes=(None, 0)), in_axes=(0, None))(hs, gains)
    assert nested["out"].shape == (4, 4, 3) and nested["out"][1, 2].tolist() == mixing(hs[1], gains[2])["out"].tolist()
    assert len(marks(jax.vmap(bounded), hs, gains)) == 1


# --- values to start from --------------------------------------------------------------------------------------------

KEY = jax.random.key(7)
DEGREES = np.repeat([1, 4, 25, 100], [4000, 1000, 160, 40])  # 4,000 synapses onto units of each in-degree


def uneven(rng=0):
    """Units of very different in-degree, whose senders have other out-degrees."""
    post = np.repeat(np.arange(DEGREES.size), DEGREES)
    pre = np.random.default_rng(rng).integers(0, 300, post.size)
    return se.from_edges(pre, post, shape=(300, DEGREES.size))


def is_normal(values, scale=1.0):
    """Whether 1,000 numbers and more are as if drawn with this standard deviation."""
    return scipy.stats.kstest(np.ravel(values) / scale, "norm").pvalue > 1e-3


def test_a_sparse_weight_is_scaled_by_the_in_degree_of_its_own_target():
    graph = uneven()
    param = se.SpMatMulOp(graph, bias=True).param(KEY)
    assert isinstance(param, se.ETraceParam) and not param.value["bias"].any()
    degree = DEGREES[graph.connectivity.post]
    weight = np.asarray(param.value["weight"])
    for fan_in in np.unique(DEGREES):
        assert is_normal(weight[degree == fan_in], fan_in**-0.5)
    y = np.random.default_rng(1).normal(size=(400, 300)) @ graph.to_scipy(param.value["weight"])
    assert all(abs(np.var(y[:, DEGREES == fan_in]) - 1) < 0.1 for fan_in in np.unique(DEGREES)[1:])


def test_a_dense_weight_is_scaled_by_the_inputs_that_a_mask_leaves():
    assert is_normal(se.MatMulOp().param(KEY, 16, 300).value["weight"], 0.25)
    mask = np.arange(100)[:, None] < np.repeat([4, 25, 100], 100)
    weight = se.MatMulOp(mask).param(KEY, 100, 300).value["weight"]
    for fan_in, part in zip((4, 25, 100), np.split(np.asarray(weight), 3, axis=1), strict=True):
        assert is_normal(part, fan_in**-0.5)
    assert is_normal(se.MatMulOp(jnp.full((9, 300), 2.0)).param(KEY, 9, 300).value["weight"], 1 / 6)


def test_a_kernel_is_scaled_by_its_taps():
    image = jax.ShapeDtypeStruct((8, 8, 6), jnp.float32)
    op = se.ConvOp(image, [1, 1], "SAME", feature_group_count=2, bias=True)
    param = op.param(KEY, 3, 60)
    assert param.value["weight"].shape == (3, 3, 3, 60) and param.value["bias"].shape == (60,)
    assert is_normal(param.value["weight"], 27**-0.5)
    assert jax.eval_shape(param, jnp.ones((2, 8, 8, 6))).shape == (2, 8, 8, 60)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])[..., None, None] * np.ones((3, 3, 3, 60))
    masked = se.ConvOp(image, [1, 1], "SAME", feature_group_count=2, weight_mask=cross)
    assert is_normal(masked.param(KEY, (3, 3), 60).value["weight"], 15**-0.5)


def test_low_rank_starts_without_effect_and_units_with_one_each():
    lora = se.LoraOp(bias=True).param(KEY, 25, 7, rank=60)
    assert is_normal(lora.value["B"], 0.2) and lora.value["A"].shape == (60, 7)
    assert lora(jnp.ones(25)).tolist() == [0.0] * 7 and sorted(lora.value) == ["A", "B", "bias"]
    units = se.ElemWiseOp().param(KEY, (20, 60))
    assert is_normal(units()) and units.grad is se.ETraceGrad.full


def test_a_tied_weight_has_the_mean_variance_of_its_synapses():
    graph, dead = uneven(), 100
    weight = np.asarray(se.SpMatMulOp(graph, tie=np.arange(16000) % 8000 + dead).param(KEY).value["weight"])
    assert np.isfinite(weight).all()  # nothing uses the first ones
    assert is_normal(weight[dead : dead + 4000], ((1 + 1 / 25) / 2) ** 0.5)
    assert is_normal(weight[dead + 4000 :], ((1 / 4 + 1 / 100) / 2) ** 0.5)


def test_a_raw_matrix_keeps_the_order_of_its_data():
    matrix = sp.csr_array(uneven().to_scipy())
    weight = np.asarray(se.SpMatMulOp(matrix).param(KEY).value["weight"])
    degree = DEGREES[matrix.indices]
    assert all(is_normal(weight[degree == fan_in], fan_in**-0.5) for fan_in in np.unique(DEGREES))
    given = se.SpMatMulOp(matrix).param(init=matrix.data * 3)
    assert np.array_equal(given.value["weight"], matrix.data * 3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_weight_functions_start_within_their_range(dtype):
    graph = uneven()
    sign = np.where(np.arange(300) % 3, 1, -1)[graph.connectivity.pre]
    lock = se.SpMatMulOp(graph, se.SignLock(sign), bias=True).param(KEY, dtype=dtype)
    assert lock.value["weight"].dtype == lock.value["bias"].dtype == dtype
    v, degree = np.asarray(lock.op.phi(lock.value)["weight"], float), DEGREES[graph.connectivity.post]
    assert (np.sign(v) == sign).all() and (np.sign(np.asarray(lock.value["weight"], float)) == sign).all()
    if dtype != jnp.bfloat16:
        for fan_in in np.unique(DEGREES):
            size = np.abs(v[degree == fan_in]) * fan_in**0.5
            assert scipy.stats.kstest(size, "halfnorm").pvalue > 1e-3
    for lo, hi in ((0.0, 0.5), (-0.25, 1.0), (5.0, 6.0), (-9.0, 9.0)):
        box = se.SpMatMulOp(graph, se.Bounded(lo, hi)).param(KEY, dtype=dtype)
        v = np.asarray(box.op.phi(box.value)["weight"], float)
        assert np.isfinite(np.asarray(box.value["weight"], float)).all() and (v >= lo).all() and (v <= hi).all()
        if dtype != jnp.bfloat16 and hi != 6:
            inside = scipy.stats.truncnorm(lo * 5, hi * 5, scale=0.2)
            assert scipy.stats.kstest(v[degree == 25], inside.cdf).pvalue > 1e-3


def test_a_sign_of_each_sender_and_a_dense_op():
    sign = np.where(np.arange(40)[:, None] < 30, 1, -1)
    lock = se.MatMulOp(weight_fn=se.SignLock(sign)).param(KEY, 40, 50)
    assert (np.sign(np.asarray(lock.value["weight"])) == sign).all()


def test_given_weights_are_those_of_the_synapses():
    worm = se.datasets.worm()
    op = se.SpMatMulOp(worm, bias=True)
    assert np.array_equal(op.param(init=worm).value["weight"], worm.weight)
    sign = np.asarray(worm.node_attrs["sign"])[worm.connectivity.pre]
    locked = se.SpMatMulOp(worm, se.SignLock(sign)).param(init=worm)
    assert np.array_equal(locked.op.phi(locked.value)["weight"], sign * np.abs(worm.weight))
    ends = se.SpMatMulOp(RING, se.Bounded(1, 3)).param(init=RING)
    assert np.isfinite(ends.value["weight"]).all()
    np.testing.assert_allclose(ends.op.phi(ends.value)["weight"], RING.weight, rtol=1e-6)
    bounded = se.SpMatMulOp(worm, se.Bounded(0, 100)).param(init=worm)
    np.testing.assert_allclose(bounded.op.phi(bounded.value)["weight"], worm.weight, rtol=1e-4)
    copy = se.from_networkx(worm.to_networkx())
    assert copy.connectivity is not worm.connectivity
    assert np.array_equal(op.param(init=copy).value["weight"], worm.weight)
    ones = se.MatMulOp(weight_fn=jnp.exp).param(KEY, 2, 3, init=jax.nn.initializers.ones)
    assert ones.value["weight"].tolist() == [[1.0] * 3] * 2
    assert se.ElemWiseOp().param(None, 3, init=[1, 2, 3])().tolist() == [1.0, 2.0, 3.0]


def test_the_key_decides_and_jit_and_vmap_change_nothing():
    op = se.SpMatMulOp(uneven())
    one, same, other = (np.asarray(op.param(key).value["weight"]) for key in (KEY, KEY, jax.random.key(8)))
    assert np.array_equal(one, same) and not np.any(one == other)
    old = jax.random.PRNGKey(7)
    assert np.array_equal(op.param(old).value["weight"], one)
    make = lambda key: se.SpMatMulOp(RING, se.Bounded(-1, 1)).param(key).value["weight"]
    within, alone = jax.jit(jax.vmap(make))(jax.random.split(KEY)), [make(key) for key in jax.random.split(KEY)]
    np.testing.assert_allclose(within, alone, rtol=1e-4)
    assert not np.any(np.asarray(alone[0]) == np.asarray(alone[1]))


def test_types_and_options(x64):
    assert se.MatMulOp(bias=True).param(KEY, 2, 3).value["bias"].dtype == jnp.float64
    param = se.MatMulOp().param(KEY, 2, 3, dtype="float32", grad=se.ETraceGrad.full, is_etrace=False)
    assert (param.value["weight"].dtype, param.grad, param.is_etrace) == (jnp.float32, se.ETraceGrad.full, False)
    weight = np.asarray(se.MatMulOp().param(KEY, 25, 100, dtype=complex).value["weight"])
    assert weight.dtype == complex and is_normal(weight.real, 50**-0.5) and is_normal(weight.imag, 50**-0.5)


class Plain(se.ETraceOp):
    def xw_to_y(self, x, w):
        return x * w

    def yw_to_w(self, y, e):
        return y * e


RING = se.from_edges([0, 1, 2], [1, 2, 0], [1.0, 2.0, 3.0])
LINE = se.ConvOp(jax.ShapeDtypeStruct((8, 4), jnp.float32), [1], "SAME", feature_group_count=2)
REFUSED = [
    (lambda: se.MatMulOp().param(None, 3, 4), TypeError, "key: expected one key to draw from, .* got None"),
    (lambda: se.MatMulOp().param(0, 3, 4), TypeError, "key: .* as of jax.random.key.0., got 0"),
    (lambda: se.MatMulOp().param(jax.random.split(KEY), 3, 4), TypeError, r"key: .*got key<fry>\[2\]"),
    (lambda: se.MatMulOp().param(KEY, True, 4), TypeError, "num_pre: expected a whole number, got True"),
    (lambda: se.MatMulOp().param(KEY, 3, -4), ValueError, "num_post: expected a number of units, got -4"),
    (lambda: se.MatMulOp(np.ones((3, 5))).param(KEY, 3, 4), ValueError, r"weight_mask: expected shape \(3, 4\)"),
    (lambda: se.MatMulOp().param(KEY, 3, 4, init="glorot"), ValueError, "init: expected 'fan_in', .* got 'glorot'"),
    (lambda: se.MatMulOp().param(KEY, 3, 3, init=RING), ValueError, "init: .* a graph is for the SpMatMulOp that is"),
    (lambda: se.MatMulOp().param(KEY, 3, 4, init=np.ones(3)), ValueError, r"init: expected shape \(3, 4\), got \(3,\)"),
    (lambda: se.MatMulOp().param(KEY, 3, 4, dtype=int), ValueError, "dtype: expected floating numbers, got int"),
    (lambda: se.MatMulOp().param(KEY, 3, 4, dtype="float64"), ValueError, "dtype: .* got float64. Call .*x64"),
    (lambda: se.SpMatMulOp(RING).param(), TypeError, "key: .* got None"),
    (
        lambda: se.SpMatMulOp(RING).param(init=uneven()),
        ValueError,
        r"init: expected the graph that the op is on, .*300",
    ),
    (lambda: se.SpMatMulOp(RING, tie=[0, 1, 1]).param(init=RING), ValueError, "init: .* without ties"),
    (lambda: se.SpMatMulOp(RING.to_scipy().tocsr()).param(init=RING), ValueError, "init: .* in the order of the op's"),
    (lambda: se.SpMatMulOp(RING, jnp.exp).param(init=RING), ValueError, "init: expected a weight .* method `inverse`"),
    (
        lambda: se.SpMatMulOp(RING, se.Bounded(0, 2)).param(init=RING),
        ValueError,
        "v: expected weights from 0 to 2, got 3",
    ),
    (lambda: LINE.param(KEY, (3, 3), 4), ValueError, r"window: expected shape \(1,\), got \(2,\). One size for each"),
    (lambda: LINE.param(KEY, 3, 5), ValueError, "value..weight..: .* with c_out a multiple of 2"),
    (lambda: Plain().param(KEY, 3), NotImplementedError, "op: Plain does not say what its parameter starts from. Give"),
    (
        lambda: se.ETraceParam({"weight": jnp.ones((2, 3))}, se.MatMulOp(bias=True))(jnp.ones(2)),
        ValueError,
        "value: expected a 'bias' too, as the op has bias=True, got .'weight'.",
    ),
]


@pytest.mark.parametrize("make, error, message", REFUSED, ids=range(len(REFUSED)))
def test_what_no_parameter_can_start_from(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("low, high", [(1.0, 2.0), (-2.0, -1.0), (0.5, 1.5)])
def test_bounds_far_from_zero(low, high):
    """Where nearly nothing of the normal distribution lies within the bounds, weights are drawn evenly between them."""
    param = se.MatMulOp(weight_fn=se.Bounded(low, high)).param(jax.random.key(0), 300, 40)
    weights = np.asarray(param.op.phi(param.value)["weight"])
    assert abs(weights.mean() - (low + high) / 2) < 0.02 and weights.std() == pytest.approx(
        (high - low) / 12**0.5, rel=0.05
    )
