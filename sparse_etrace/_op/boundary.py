"""The marks that ops and cuts leave in a model's jaxpr, by which its analysis finds them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree, PyTreeDef

from .._varying import axes_of, cast, types
from .contract import ETraceOp


class OpCall(eqx.Module):
    """One execution of an op as a function of flat arrays: the op's own, its weights, its input."""

    statics: tuple = eqx.field(static=True)
    structure: PyTreeDef = eqx.field(static=True)
    num_op: int = eqx.field(static=True)
    num_weights: int = eqx.field(static=True)
    traced: bool = eqx.field(static=True)
    grad: Any = eqx.field(static=True)

    def unflatten(self, flat: list) -> tuple[ETraceOp, PyTree, Any]:
        """Op, weights and input; anything may stand in the arrays' places."""
        arrays, v, x = jax.tree.unflatten(self.structure, flat)
        leaves, treedef = self.statics
        return eqx.combine(arrays, jax.tree.unflatten(treedef, leaves)), v, x

    def __call__(self, *flat: ArrayLike) -> list[Array]:
        op, v, x = self.unflatten(list(flat))
        return [op.xw_to_y(x, v)]


class CutCall(eqx.Module):
    """One execution of a function that is declared a boundary."""

    jaxpr: jex.ClosedJaxpr = eqx.field(static=True)

    def __call__(self, *flat: ArrayLike) -> list[Array]:
        return jex.jaxpr_as_fun(self.jaxpr)(*flat)


class VmappedCall(eqx.Module):
    """A call mapped over its weights (or, for a cut, over anything)."""

    call: Callable[..., list[Array]] = eqx.field(static=True)
    axes: tuple = eqx.field(static=True)

    def __call__(self, *flat: ArrayLike) -> list[Array]:
        return jax.vmap(self.call, in_axes=self.axes)(*flat)


boundary_p = jex.Primitive("etrace_boundary")
boundary_p.multiple_results = True


def _evaluate(*flat: ArrayLike, call: Callable[..., list[Array]]) -> list[Array]:
    return call(*flat)


def _abstract(*flat: jax.core.ShapedArray, call: Callable[..., list[Array]]) -> list[jax.core.ShapedArray]:
    return types(jax.eval_shape(call, *flat), flat)


def _jvp(primals: tuple, tangents: tuple, call: Callable[..., list[Array]]) -> tuple[list[Array], list[ArrayLike]]:
    moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def along(*values: Array) -> list[Array]:
        flat = list(primals)
        for i, value in zip(moving, values, strict=True):
            flat[i] = value
        return call(*flat)

    _, out = jax.jvp(along, tuple(primals[i] for i in moving), tuple(tangents[i] for i in moving))
    return boundary_p.bind(*primals, call=call), [cast(t, axes_of(*primals)) for t in out]


def _batch(flat: tuple, axes: tuple, call: Callable[..., list[Array]]) -> tuple[list[Array], list[int]]:
    if isinstance(call, OpCall) and all(axis is None for axis in axes[: call.num_op + call.num_weights]):
        first = call.num_op + call.num_weights
        size = next(v.shape[axis] for v, axis in zip(flat, axes, strict=True) if axis is not None)
        mapped = [_in_front(v, axis, size) for v, axis in zip(flat[first:], axes[first:], strict=True)]
        return boundary_p.bind(*flat[:first], *mapped, call=call), [0]
    out = boundary_p.bind(*flat, call=VmappedCall(call, tuple(axes)))
    return out, [0] * len(out)


def _in_front(part: ArrayLike, axis: int | None, size: int) -> ArrayLike:
    """A part of an input with the new axis in front; a number that is the same for all stays one."""
    if axis is None:
        return jnp.broadcast_to(part, (size, *jnp.shape(part))) if jnp.ndim(part) else part
    return jnp.moveaxis(part, axis, 0)


boundary_p.def_impl(_evaluate)
boundary_p.def_abstract_eval(_abstract)
ad.primitive_jvps[boundary_p] = _jvp
batching.primitive_batchers[boundary_p] = _batch
mlir.register_lowering(boundary_p, mlir.lower_fun(_evaluate, multiple_results=True))


def call_op(op: ETraceOp, theta: PyTree[Array], x: PyTree, traced: bool, grad: Any) -> Array:
    """Execute an op and leave a mark that the analysis of a model finds. The op's own arrays are constants."""
    arrays, rest = eqx.partition(op, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))
    arrays = jax.lax.stop_gradient(arrays)
    v = eqx.combine(arrays, rest).phi(theta)
    flat, structure = jax.tree.flatten((arrays, v, x))
    leaves, treedef = jax.tree.flatten(rest)
    num_op, num_weights = len(jax.tree.leaves(arrays)), len(jax.tree.leaves(v))
    call = OpCall((tuple(leaves), treedef), structure, num_op, num_weights, traced, grad)
    return boundary_p.bind(*flat, call=call)[0]
