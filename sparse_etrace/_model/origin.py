"""What a carry was made with, so that it is refused where it meets another connectivity."""

import dataclasses
import functools
import weakref
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree, UInt32

from .._arrays import on_device
from .._graph.connectivity import Connectivity, digest_of, digest_of_blocks
from .._op.contract import ETraceOp
from .._types import Model
from .._varying import freely
from .program import is_inexact, is_key

UNKNOWN = np.zeros(2, np.uint32)
_digests: dict[int, tuple[weakref.ref[jax.Array], np.ndarray]] = {}  # of the arrays there are, by their id


class Origin(eqx.Module):
    """What a carry was made with.

    Attributes:
        wiring: digests of each connectivity of the model and of each other array of its ops, zeros where not known.
        alone: numbers of the leaves of the state that have no batch axes though they are as long as the batch.
        unsure: those of which the step does not say it.
        into: for each op call with traces, a leaf of each group that it is traced into.
        owners: for each of them its number, and of each leaf of its weights the names of what is trained in it.
    """

    wiring: UInt32[Array, "*batch arrays 2"]
    alone: tuple[int, ...] = eqx.field(static=True, default=())
    unsure: tuple[int, ...] = eqx.field(static=True, default=())
    into: tuple[tuple[int, ...], ...] = eqx.field(static=True, default=())
    owners: tuple[tuple[int, tuple[tuple[str, ...], ...]], ...] = eqx.field(static=True, default=())


def origin_of(model: PyTree, *axes: tuple) -> Origin:
    """What a carry of this model is of.

    Raises:
        ValueError: arrays of a connectivity were replaced, so that its digest is not theirs.
    """
    parts = _parts(model)
    for k, part in enumerate(parts):
        if isinstance(part, Connectivity) and part.digest is not None and _is_here((part.digest, *part.arrays)):
            if not np.array_equal(part.digest, _digest_of_edges(part)):
                raise ValueError(
                    f"model: the index arrays of {_name(model, k)!r} are not those that it was built with. Build it "
                    "anew, with se.Connectivity.from_edges, and replace it as a whole."
                )
    return Origin(on_device(_wiring(parts)), *axes)


def of_another(origin: Origin, model: PyTree) -> Origin:
    """What a carry is of whose model has got other connectivities."""
    return dataclasses.replace(origin, wiring=on_device(_wiring(_parts(model))))


def check_origin(origin: Origin | None, model: PyTree) -> Array | None:
    """Refuse a carry of another connectivity.

    Inside a `jit` of the user's, where the numbers are not known, only a factor can say it: one, or NaN where a
    connectivity is another. Other arrays of ops have no digest there.

    Raises:
        ValueError: it is one of another.
    """
    if origin is None:
        return None
    rows = _wiring(_parts(model))
    if len(rows) != origin.wiring.shape[-2]:
        raise ValueError(_refusal(f"has {len(rows)} arrays that say what is connected, not {origin.wiring.shape[-2]}"))
    was = origin.wiring if isinstance(rows, jax.Array) or not _is_here(origin.wiring) else np.asarray(origin.wiring)
    rows = rows.reshape(*[1] * (was.ndim - rows.ndim), *rows.shape)
    differs = (was != rows).any(-1) & was.any(-1) & rows.any(-1)
    if isinstance(differs, jax.Array):
        return jnp.where(jnp.any(differs), jnp.nan, 1.0)
    if differs.any():
        k = int(np.argmax(differs))
        raise ValueError(_refusal(f"has another {_name(model, k)!r}, {rows[k, 0]:08x} and not {was[k, 0]:08x}"))
    return None


def scaled(tree: PyTree, factor: Float[Array, ""] | None) -> PyTree:
    """The floating numbers of a tree times a factor; None is one."""
    if factor is None:
        return tree
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype) if is_inexact(leaf) else leaf, tree)


def compiled(step: Callable[..., tuple[PyTree, PyTree]]) -> Callable[..., tuple[PyTree, PyTree]]:
    """A `step` that is compiled, and refuses a carry of another connectivity."""
    run = eqx.filter_jit(step)

    def checked(self: PyTree, model: Model, carry: PyTree, x: PyTree[Array]) -> tuple[PyTree, PyTree]:
        factor = check_origin(carry.origin, model)
        new, out = run(self, model, carry, x)
        return dataclasses.replace(new, origin=carry.origin), scaled(out, factor)

    @functools.wraps(step)
    def placed(self: PyTree, model: Model, carry: PyTree, x: PyTree[Array]) -> tuple[PyTree, PyTree]:
        return freely(checked, self, model, carry, x, like=lambda: (carry, None))

    return placed


def _refusal(how: str) -> str:
    return (
        f"carry: it is of another connectivity: the model {how}. Make a carry with this learner's init for each "
        "connectivity, or go on with the model that it was made for."
    )


def _is_part(node: object) -> bool:
    return isinstance(node, ETraceOp | Connectivity)


def _parts(model: PyTree) -> list[Connectivity | Array]:
    """Connectivities, and all other arrays of ops."""
    ops = [node for node in jax.tree.leaves(model, is_leaf=_is_part) if _is_part(node)]
    return [leaf for op in ops for leaf in jax.tree.leaves(op, is_leaf=_is_connectivity) if _says(leaf)]


def _is_connectivity(node: object) -> bool:
    return isinstance(node, Connectivity)


def _says(leaf: object) -> bool:
    return _is_connectivity(leaf) or (hasattr(leaf, "dtype") and not is_key(leaf))


def _name(model: PyTree, k: int) -> str:
    """Name of a part by its number."""
    flat = jax.tree_util.tree_flatten_with_path
    ops = [(path, node) for path, node in flat(model, is_leaf=_is_part)[0] if _is_part(node)]
    paths = [(*a, *b) for a, op in ops for b, leaf in flat(op, is_leaf=_is_connectivity)[0] if _says(leaf)]
    return jax.tree_util.keystr(paths[k]).lstrip(".")


def _wiring(parts: list[Connectivity | Array]) -> Array | np.ndarray:
    """Digests of what says which synapses there are, `(parts, 2)`; zeros where not known."""
    rows: list[Array | np.ndarray] = []
    for part in parts:
        if not isinstance(part, Connectivity):
            rows.append(_digest(part) if _is_here(part) else UNKNOWN)
        elif part.digest is not None:
            rows.append(part.digest if isinstance(part.digest, jax.core.Tracer) else np.asarray(part.digest))
        else:
            rows.append(_digest_of_edges(part) if _is_here(part.arrays) else UNKNOWN)
    if any(isinstance(row, jax.core.Tracer) for row in rows):
        return jnp.stack(rows)
    return np.array(rows, np.uint32).reshape(-1, 2)


def _digest_of_edges(connectivity: Connectivity) -> np.ndarray:
    return digest_of_blocks(connectivity.pre, connectivity.post_ptr, *connectivity.shape)


def _is_here(tree: PyTree) -> bool:
    leaves = jax.tree.leaves(tree)
    is_known = not any(isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) for leaf in leaves)
    return is_known and all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves)


def _digest(array: ArrayLike) -> np.ndarray:
    """Digest of the integers of an array, or of where its numbers are zero."""
    known = _digests.get(id(array))
    if known is not None and known[0]() is array:
        return known[1]
    found = digest_of(np.asarray(array) != 0 if is_inexact(array) else array)
    if isinstance(array, jax.Array):  # others may change
        _digests[id(array)] = weakref.ref(array, functools.partial(_forget, id(array))), found
    return found


def _forget(key: int, _: object) -> None:
    _digests.pop(key, None)
