"""Parameters: what they hold, print and refuse, and the boundaries that they leave in a jaxpr."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
