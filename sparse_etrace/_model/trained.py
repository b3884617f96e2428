"""What of a model is trained, and what its leaves are called."""

import math
import re
from collections.abc import Iterable, Sequence

import equinox as eqx
import jax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree, PyTreeDef

from .._arrays import on_device
from .._op.contract import ETraceOp
from .._op.param import Fixed
from .._varying import axes_of
from .program import is_inexact
from .types import Filter


def struct(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types of a pytree of arrays, numbers or structs."""

    def struct_of(leaf: ArrayLike | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        leaf = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else on_device(leaf)
        refuse_varying(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree.map(struct_of, tree)


def refuse_varying(leaf: Array | jax.ShapeDtypeStruct) -> None:
    """Raise inside a `jax.shard_map` that follows which arrays differ from device to device."""
    if axes := sorted(axes_of(leaf)):
        raise NotImplementedError(
            f"jax.shard_map: it follows how arrays vary over {', '.join(axes)}, and derivatives here do not. Take "
            "se.online_grad, whose gradients are those of each device, or give it check_vma=False."
        )


def nbytes(tree: PyTree) -> int:
    """Bytes of all arrays of a pytree."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def structure(tree: PyTree) -> PyTreeDef:
    return jax.tree.structure(tree)


def check_state(old: PyTree, new: PyTree) -> None:
    """Raise for a new state of another structure, or with a leaf of another shape or type, than the old one."""
    if structure(old) != structure(new):
        raise ValueError(
            f"model: expected a new state structured like the old one, {structure(old)}, got {structure(new)}. A "
            "model returns (state, out)."
        )
    for name, a, b in zip(leaf_names(old), jax.tree.leaves(struct(old)), jax.tree.leaves(struct(new)), strict=True):
        if a != b:
            raise ValueError(
                f"model: state leaf {name or 'state'!r} goes in as {a.dtype}{list(a.shape)} and comes out as "
                f"{b.dtype}{list(b.shape)}. Give the initial state its final shape and type."
            )


def leaf_names(tree: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path).lstrip(".") for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def leaf_number(names: Sequence[str], name: str | None, argument: str, among: Iterable[int] | None = None) -> int:
    """Number of a leaf by its name, or by the last part of its name where that is unique."""
    last = [(re.findall(r"\w+", full) or [full])[-1] for full in names]
    found = [i for i, full in enumerate(names) if full == name] or [i for i, part in enumerate(last) if part == name]
    if len(found) != 1 or (among is not None and found[0] not in among):
        raise ValueError(
            f"{argument}: expected the name of one floating leaf of the state, got {name!r}. Its leaves are "
            f"{', '.join(map(repr, names))}."
        )
    return found[0]


def trainable(model: PyTree) -> PyTree[bool]:
    """Filter specification: True on what is trained.

    That is every floating array that is neither `Fixed` nor inside an op: indices, masks and the arrays of weight
    functions never are.

    Args:
        model: a pytree.

    Returns:
        The same pytree with True and False for leaves.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> param = se.ETraceParam({'weight': jnp.ones((2, 2))}, se.MatMulOp(weight_mask=jnp.ones((2, 2))))
        >>> se.trainable(param).value, se.trainable(param).op.weight_mask
        ({'weight': True}, False)
    """

    def is_apart(leaf: object) -> bool:
        return isinstance(leaf, ETraceOp | Fixed)

    def is_trained(leaf: PyTree) -> PyTree[bool]:
        if is_apart(leaf):
            return jax.tree.map(lambda _: False, leaf)
        return isinstance(leaf, jax.ShapeDtypeStruct | jax.Array) and is_inexact(leaf) or eqx.is_inexact_array(leaf)

    return jax.tree.map(is_trained, model, is_leaf=is_apart)


def trained_filter(model: PyTree, train: Filter) -> PyTree[bool]:
    """Filter specification of what is trainable and, where `train` is given, allowed by it."""
    spec = trainable(model)
    if train is None:
        return spec
    allowed = jax.tree.map(lambda t, part: jax.tree.map(t if callable(t) else lambda _: t, part), train, model)
    return jax.tree.map(lambda a, b: bool(a and b), spec, allowed)


def is_array_like(leaf: object) -> bool:
    """Whether a leaf is an array, or its shape and type."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
