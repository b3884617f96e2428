"""Leaves of a state by their names; a ring of what was sent is one, whose value is the newest."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, PyTree

from .._model.trained import leaf_number
from .._op.delays import Ring


def _is_ring(leaf: object) -> bool:
    return isinstance(leaf, Ring)


def number_of(state: PyTree, name: str, argument: str) -> int:
    """Number of a leaf among those of `leaves_of`."""
    paths = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_ring)[0]
    return leaf_number([jax.tree_util.keystr(path).lstrip(".") for path, _ in paths], name, argument)


def leaves_of(state: PyTree) -> tuple[list[Array | Ring], jax.tree_util.PyTreeDef]:
    """Arrays and rings, and how they are put together."""
    return jax.tree.flatten(state, is_leaf=_is_ring)


def values_of(state: PyTree, names: Sequence[str], argument: str, out: PyTree = None) -> dict[str, Array]:
    """Arrays by name; of a ring the newest, or where it is given the output, which is what a cell sends."""
    found = {name: leaves_of(state)[0][number_of(state, name, argument)] for name in names}
    return {
        name: leaf if not isinstance(leaf, Ring) else leaf.newest if out is None else sent_into(leaf, out, argument)
        for name, leaf in found.items()
    }


def sent_into(ring: Ring, out: PyTree, argument: str) -> Array:
    """The output of a cell that sends into a ring."""
    expected = jax.eval_shape(lambda: ring.newest).shape
    if not isinstance(out, jax.Array) or out.shape != expected:
        raise ValueError(
            f"{argument}: expected a cell whose output, of shape {expected}, is what it sends into the ring, got "
            f"{jax.tree.map(lambda a: a.shape, out)}. Wrap the cell, not a network around it."
        )
    return out
