"""Parameters: values together with the op that uses them."""

import enum
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .boundary import CutCall, boundary_p, call_op
from .contract import ETraceOp


class ETraceGrad(enum.Enum):
    """How `Hybrid` stores the trace of a parameter.

    `full`: one trace per synapse; `approx`: presynaptic and postsynaptic factors; `adaptive`: the smaller of the two.

    Example:
        >>> import sparse_etrace as se
        >>> se.ETraceGrad.adaptive
        <ETraceGrad.adaptive: 'adaptive'>
    """

    full = "full"
    approx = "approx"
    adaptive = "adaptive"


class ETraceParam(eqx.Module):
    """A value and the op that it feeds, `y = op(x, value)`; a pytree whose value is trained.

    Args:
        value: arrays as the op wants them, usually `{'weight': ..., 'bias': ...}`; one in a `Fixed` is not trained.
        op: the op.
        grad: what `Hybrid` stores.
        is_etrace: False for a parameter without trace, whose gradient is that of the same step.

    Raises:
        TypeError: `op` is no `ETraceOp`, `grad` no `ETraceGrad`, or an array of `value` not floating; or, on execution,
            an op that takes an input gets none.
        ValueError: on execution, where the shapes do not fit the op.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> param = se.ETraceParam({'weight': jnp.ones((2, 3)), 'bias': jnp.ones(3)}, se.MatMulOp())
        >>> param(jnp.ones(2)).tolist()
        [3.0, 3.0, 3.0]
    """

    value: PyTree[Array]
    op: ETraceOp
    grad: ETraceGrad = eqx.field(static=True)
    is_etrace: bool = eqx.field(static=True)

    def __init__(self, value: PyTree, op: object, grad: object = ETraceGrad.adaptive, is_etrace: object = True):
        if not isinstance(op, ETraceOp):
            raise TypeError(f"op: expected an ETraceOp such as MatMulOp(), got {type(op).__name__}.")
        if not isinstance(grad, ETraceGrad):
            raise TypeError(f"grad: expected ETraceGrad.full, .approx or .adaptive, got {grad!r}.")
        self.value = jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jnp.array(a), value)
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.value)[0]:
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise TypeError(
                    f"value{jax.tree_util.keystr(path)}: expected floating numbers, got {leaf.dtype}, never trained. "
                    "Convert them with .astype(float), or keep them in the op."
                )
        self.op = op
        self.grad = grad
        self.is_etrace = bool(is_etrace)

    def execute(self, x: PyTree = None) -> Array:
        """The output of the op; `x` as the op wants it, after any number of batch axes."""
        if x is None and not self.op.is_diagonal:
            raise TypeError(f"x: expected an input for {self.op}, got none. Only an ElemWiseParam is called without.")
        x = self.op.read(x)
        value = jax.tree.map(lambda a: a() if _is_fixed(a) else a, self.value, is_leaf=_is_fixed)
        return call_op(self.op, value, x, self.is_etrace, self.grad)

    def __call__(self, x: PyTree = None) -> Array:
        return self.execute(x)

    def __repr__(self) -> str:
        shapes = jax.tree.map(_shaped, self.value)
        value = repr(shapes)
        if isinstance(shapes, dict):
            inner = ",\n".join(f"    {key!r}: {shapes[key]!r}" for key in sorted(shapes))
            value = "{\n" + inner + "\n  }"
        return (
            f"ETraceParam(\n  value={value},\n  gradient={self.grad!r},\n  op={self.op},\n"
            f"  is_etrace={self.is_etrace}\n)"
        )


def _shaped(leaf: PyTree) -> PyTree:
    return jax.core.ShapedArray(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf


class Fixed(eqx.Module):
    """An array of a model that is never trained: time constants, thresholds, positions.

    Args:
        value: a number or an array.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.Fixed(jnp.array([0.5, 0.9]))().shape
        (2,)
    """

    value: Array

    def __init__(self, value: PyTree):
        self.value = jnp.array(value)

    def __call__(self) -> Array:
        return jax.lax.stop_gradient(self.value)


def _is_fixed(leaf: object) -> bool:
    return isinstance(leaf, Fixed)


def NonTempParam(w: PyTree, op: ETraceOp) -> ETraceParam:
    """A parameter without trace: it learns from the same step only (a readout, say).

    Args:
        w: arrays as the op wants them.
        op: the op.

    Returns:
        An `ETraceParam` with `is_etrace=False`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.NonTempParam({'weight': jnp.ones((2, 1))}, se.MatMulOp())(jnp.ones(2)).tolist()
        [2.0]
    """
    return ETraceParam(w, op, is_etrace=False)


def cut(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Declare a function that mixes units (attention, layer norm) a boundary, like an op.

    Recurrence through it is dropped from the traces; its gradient within the same step is kept.

    Args:
        fn: a function of arrays; it may use trained arrays that it closes over.

    Returns:
        A function of the same arguments and results.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> se.cut(jax.nn.softmax)(jnp.zeros(2)).tolist()
        [0.5, 0.5]
    """

    def bounded(*args: PyTree, **kwargs: PyTree) -> PyTree:
        jaxpr, out = jax.make_jaxpr(partial(fn, **kwargs), return_shape=True)(*args)
        consts, flat = jaxpr.consts, jax.tree.leaves(args)
        opened = jax.make_jaxpr(lambda c, a: jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr.jaxpr, c))(*a))(consts, flat)
        result = boundary_p.bind(*consts, *flat, call=CutCall(opened))
        return jax.tree.unflatten(jax.tree.structure(out), result)

    return bounded
