"""What ops share: weights and biases in a dictionary, their checks, and where they act."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .. import _kernels
from .._graph.connectivity import Connectivity
from .._kernels.windows import window_per_unit
from .contract import Uses


def read_weights(theta: PyTree, ndim: int, what: str, others: tuple[str, ...] = ()) -> PyTree:
    """The dictionary `{'weight': ..., 'bias'?: ...}` of an op, and `others` that it has, checked."""
    needed = {"weight", *others}
    if not isinstance(theta, dict) or not needed <= set(theta) <= needed | {"bias"}:
        keys = sorted(theta) if isinstance(theta, dict) else type(theta).__name__
        more = "".join(f", {name!r}: ..." for name in others)
        raise ValueError(f"value: expected {{'weight': {what}{more}, 'bias'?: ...}}, got {keys}. Name the arrays so.")
    if getattr(theta["weight"], "ndim", None) != ndim:
        got = getattr(theta["weight"], "shape", type(theta["weight"]).__name__)
        raise ValueError(f"value['weight']: expected one array of shape {what}, got {got}.")
    return theta


def check_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...], hint: str) -> None:
    if tuple(got) != tuple(expected):
        raise ValueError(f"{name}: expected shape {tuple(expected)}, got {tuple(got)}. {hint}")


def masked(weight: Array, op: Any) -> Array:
    """The weight function and mask of a dense or convolutional op, in its order."""
    if op.weight_mask is None:
        return applied(op.weight_fn, weight)
    check_shape("weight_mask", op.weight_mask.shape, weight.shape, "Give it the shape of value['weight'].")
    mask = op.weight_mask.astype(weight.dtype)
    if op.apply_weight_fn_before_mask:
        return applied(op.weight_fn, weight) * mask
    return applied(op.weight_fn, weight * mask)


def applied(weight_fn: Callable[[Array], Array] | None, weight: Array) -> Array:
    """The weights after the weight function."""
    if weight_fn is None:
        return weight
    value = weight_fn(weight)
    check_shape("weight_fn", jnp.shape(value), weight.shape, "It maps the weights one by one and keeps their shape.")
    return value


def check_bias(theta: dict[str, Array], num_post: int, wanted: bool) -> None:
    if wanted and "bias" not in theta:
        raise ValueError(
            f"value: expected a 'bias' too, as the op has bias=True, got {sorted(theta)}. Let op.param(key) make them."
        )
    if "bias" in theta:
        hint = "One value for each postsynaptic unit (for a convolution, each output channel)."
        check_shape("value['bias']", jnp.shape(theta["bias"]), (num_post,), hint)


def check_input(x: PyTree, axis: int, num_pre: int) -> None:
    shape = jnp.shape(x)
    if len(shape) < -axis or shape[axis] != num_pre:
        raise ValueError(
            f"x: expected {num_pre} presynaptic units on axis {axis}, got shape {shape}. Batch axes come in front."
        )


def with_gate(x: PyTree, count: int) -> tuple[Array, Array]:
    """What an op with gates is called with."""
    if not isinstance(x, tuple | list) or len(x) != 2 or jnp.shape(x[1])[-1:] != (count,):
        got = jax.tree.map(jnp.shape, x)
        raise ValueError(
            f"x: expected a pair, (x, gate) with a gate for each of the {count} synapses on its last axis, got "
            f"shapes {got}. The op has gated=True."
        )
    return jnp.asarray(x[0]), jnp.asarray(x[1])


def window_of_weights(
    op: object,
    v: dict[str, Array],
    trace: dict[str, Array | None],
    carried: Array | None,
    entering: Array | None,
    signal: Array | None,
    direct: Array | None,
    x: Array,
    noise: Array | None = None,
    connectivity: Connectivity | None = None,
    **slots: Any,
) -> tuple[dict[str, Array | None], dict[str, Array | None]]:
    """`ETraceOp.window` of weights and biases; without a connectivity everything is connected."""
    new: dict[str, Array | None] = dict.fromkeys(v)
    taught: dict[str, Array | None] = dict.fromkeys(v)
    weight, bias, units = trace["weight"], trace.get("bias"), (carried, entering, signal, direct)
    if weight is not None:
        new["weight"], taught["weight"] = _kernels.trace.advance(connectivity, *units, x, weight, noise, **slots)
    if bias is not None:
        new["bias"], taught["bias"] = window_per_unit(v["bias"], bias, *units, noise)
    return new, taught


def with_bias(y: Array, w: dict[str, Array]) -> Array:
    return y + in_front(w["bias"], y.ndim) if "bias" in w else y


def in_front(a: Array, ndim: int) -> Array:
    """An array with axes of one in front, up to so many in all."""
    return jax.lax.broadcast_to_rank(a, max(ndim, a.ndim))


def all_to_all(v: dict[str, PyTree], kept: np.ndarray | None = None) -> list[Uses]:
    """`ETraceOp.synapses` of a weight matrix and a bias; `kept` is False where there is no synapse."""
    num_pre, num_post = v["weight"].shape
    slot = np.arange(num_pre * num_post) if kept is None else np.flatnonzero(kept)
    uses = {"weight": Uses(slot // num_post, slot % num_post, slot), "bias": one_to_one(num_post)}
    return [uses[key] for key in sorted(v)]


def one_to_one(units: int) -> Uses:
    """A leaf whose slots are the receiving units themselves."""
    return Uses(None, np.arange(units), np.arange(units))
