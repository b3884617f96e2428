"""Every cell of the published tutorial on `ETraceOp` (brainscale 0.1); only the names of the imports are changed."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_etrace
import sparse_etrace as brainscale


class random:
    """In the place of `brainstate.random`."""

    @staticmethod
    def rand(*shape):
        return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


PRINTED = """\
ETraceParam(
  value={
    'bias': ShapedArray(float32[5]),
    'weight': ShapedArray(float32[4,5])
  },
  gradient=<ETraceGrad.adaptive: 'adaptive'>,
  op=MatMulOp(is_diagonal=False),
  is_etrace=True
)"""


def dense_cells():
    yield (
        brainscale.ETraceParam({"weight": random.rand(4, 5), "bias": random.rand(5)}, brainscale.MatMulOp()),
        lambda w, m: w,
    )
    yield (
        brainscale.ETraceParam(
            {"weight": random.rand(4, 5), "bias": random.rand(5)},
            brainscale.MatMulOp(weight_mask=random.rand(4, 5) > 0.5),
        ),
        lambda w, m: w * m,
    )
    yield (
        brainscale.ETraceParam(
            {"weight": random.rand(4, 5), "bias": random.rand(5)}, brainscale.MatMulOp(weight_fn=jnp.abs)
        ),
        lambda w, m: np.abs(w),
    )
    yield (
        brainscale.ETraceParam(
            {"weight": random.rand(4, 5), "bias": random.rand(5)},
            brainscale.MatMulOp(weight_fn=jnp.abs, weight_mask=random.rand(4, 5) > 0.5),
        ),
        lambda w, m: np.abs(w * m),
    )


def conv_cells():
    yield brainscale.ETraceParam(
        {"weight": random.rand(3, 3), "bias": jnp.zeros(16)},
        brainscale.ConvOp(
            xinfo=jax.ShapeDtypeStruct((32, 3, 3), jnp.float32),
            window_strides=[1, 1],
            padding="SAME",
        ),
    )
    yield brainscale.ETraceParam(
        {"weight": random.rand(3, 3), "bias": jnp.zeros(16)},
        brainscale.ConvOp(
            xinfo=jax.ShapeDtypeStruct((32, 3, 3), jnp.float32),
            window_strides=[1, 1],
            padding="SAME",
            weight_mask=random.rand(3, 3) > 0.5,
        ),
    )
    yield brainscale.ETraceParam(
        {"weight": random.rand(3, 3), "bias": jnp.zeros(16)},
        brainscale.ConvOp(
            xinfo=jax.ShapeDtypeStruct((32, 3, 3), jnp.float32),
            window_strides=[1, 1],
            padding="SAME",
            weight_fn=jnp.abs,
        ),
    )
    yield brainscale.ETraceParam(
        {"weight": random.rand(3, 3), "bias": jnp.zeros(16)},
        brainscale.ConvOp(
            xinfo=jax.ShapeDtypeStruct((32, 3, 3), jnp.float32),
            window_strides=[1, 1],
            padding="SAME",
            weight_mask=random.rand(3, 3) > 0.5,
            weight_fn=jnp.abs,
        ),
    )


@pytest.mark.parametrize("form", range(4))
def test_dense(form):
    param, effective = list(dense_cells())[form]
    assert repr(param) == PRINTED
    weight, bias = np.asarray(random.rand(4, 5)), np.asarray(random.rand(5))
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    expected = x @ effective(weight, weight > 0.5) + bias
    np.testing.assert_allclose(param(x), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(param.execute(x[0]), expected[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", range(4))
def test_conv(form):
    param = list(conv_cells())[form]
    assert "'weight': ShapedArray(float32[3,3])" in repr(param) and "op=ConvOp(is_diagonal=False)" in repr(param)
    message = "value['weight']: expected one array of shape (width, height, 3, c_out), got (3, 3)."
    with pytest.raises(ValueError, match=re.escape(message)):
        param(jnp.ones((32, 3, 3)))


@pytest.mark.parametrize("shape", [(32, 3), (32, 32, 3), (32, 32, 32, 3)])
def test_xinfo(shape):
    """Its examples of one, two and three dimensions, with a kernel of the shape that is needed."""
    op = brainscale.ConvOp(jax.ShapeDtypeStruct(shape, jnp.float32), [1] * (len(shape) - 1), "SAME")
    kernel = (*[3] * (len(shape) - 1), 3, 2)
    run = lambda w, b, x: brainscale.ETraceParam({"weight": w, "bias": b}, op)(x)
    assert jax.eval_shape(run, jnp.ones(kernel), jnp.zeros(2), jnp.ones(shape)).shape == (*shape[:-1], 2)


def test_every_name_of_the_tutorial():
    for name in ("ETraceOp", "ETraceParam", "MatMulOp", "ConvOp", "SpMatMulOp", "LoraOp"):
        assert hasattr(sparse_etrace, name)


class Scaled(brainscale.ETraceOp):
    """The tutorial's custom op: `xw_to_y` and `yw_to_w`, nothing else."""

    def xw_to_y(self, x, w):
        return 2.0 * (x @ w["weight"])

    def yw_to_w(self, y, w):
        return {"weight": jnp.expand_dims(y, -2) * w["weight"]}


class Cell(eqx.Module):
    inp: brainscale.ETraceParam
    out: brainscale.ETraceParam

    def __call__(self, h, x):
        h = 0.9 * h + jnp.tanh(self.inp(x))
        return h, self.out(h)


def test_custom_op_is_trained(x64):
    weights = [random.rand(3, 4).astype(float), random.rand(4, 2).astype(float)]
    brainscale.check_op(Scaled(), {"weight": weights[0]}, jnp.ones((2, 3)))
    model = Cell(*(brainscale.ETraceParam({"weight": w}, Scaled()) for w in weights))
    twin = Cell(*(brainscale.ETraceParam({"weight": 2 * w}, brainscale.MatMulOp()) for w in weights))
    xs, ys = jnp.sin(jnp.arange(15.0)).reshape(5, 3), jnp.cos(jnp.arange(10.0)).reshape(5, 2)
    loss_fn = lambda out, y: jnp.sum((out - y) ** 2)

    def learn(model):
        learner = brainscale.D_RTRL()
        carry = learner.init(model, jnp.zeros(4), xs[0])
        losses, grads, _ = brainscale.online_grad(learner, loss_fn, model, carry, xs, ys)
        return jnp.sum(losses), grads

    loss, grads = learn(model)
    expected_loss, expected = learn(twin)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-12)
    # The twin's weight is twice as large, so that its derivative is half of it.
    for got, twice in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, 2 * twice, rtol=1e-10)

    # No op is recurrent, so that the gradient is that of backpropagation through time.
    def through_time(model):
        return jnp.sum(jax.vmap(loss_fn)(jax.lax.scan(lambda h, x: model(h, x), jnp.zeros(4), xs)[1], ys))

    for got, exact in zip(jax.tree.leaves(grads), jax.tree.leaves(eqx.filter_grad(through_time)(model)), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-10)
    optimizer = optax.sgd(1e-4)
    updates, _ = optimizer.update(grads, optimizer.init(eqx.filter(model, sparse_etrace.trainable(model))))
    assert learn(eqx.apply_updates(model, updates))[0] < loss
