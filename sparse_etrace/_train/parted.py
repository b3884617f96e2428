"""Arrays of a run that lie in blocks on several devices, or in parts in several processes, on their way to files."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._blocks import Blocks
from .._graph.connectivity import is_here
from .._model.trained import leaf_names
from .._op.param import ETraceParam
from .._op.sharded import ShardedOp


class Piece(NamedTuple):
    """What one process holds of an array: which process, where it begins, and its shape."""

    process: int
    start: tuple[int, ...]
    shape: tuple[int, ...]

    def name(self, leaf: int) -> str:
        """What it is called in a file."""
        return f"leaf{leaf:06}@{'.'.join(map(str, self.start))}"

    @property
    def at(self) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))


def is_shared(tree: PyTree) -> bool:
    """Whether other processes have a part of a pytree."""
    return not all(map(is_here, jax.tree.leaves(tree)))


def pieces(leaf: jax.Array) -> list[Piece]:
    """All pieces of an array, each of one process, which it has to write."""
    found: dict[tuple, Piece] = {}
    device: Any
    for device, at in leaf.sharding.devices_indices_map(leaf.shape).items():
        ends = [part.indices(n)[:2] for part, n in zip(at, leaf.shape, strict=True)]
        start, shape = tuple(a for a, _ in ends), tuple(b - a for a, b in ends)
        piece = Piece(device.process_index, start, shape)
        found[start] = min(found.get(start, piece), piece)
    return list(found.values())


def own(leaf: jax.Array) -> Iterator[tuple[Piece, Any]]:
    """What this process has to write of an array."""
    here = {tuple(part.start or 0 for part in shard.index): shard.data for shard in leaf.addressable_shards}
    for piece in pieces(leaf):
        if piece.process == jax.process_index():
            yield piece, here[piece.start]


def agree(error: OSError | None = None) -> None:
    """Wait for all processes.

    Raises:
        OSError: one of them came with an error.
    """
    failed = np.ravel(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise error
    if failed.any():
        raise OSError(f"checkpoint: process {int(np.argmax(failed))} could not write its part. Its own error says why.")


def said_by_first(value: bool) -> bool:
    """What the first process says; all must ask."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def mesh_of(model: PyTree) -> Mesh | None:
    """That of the layers of a model that are in blocks."""
    return next((param.op.mesh for _, param in _layers(model)), None)


def blocks_of(model: PyTree) -> dict[str, Blocks]:
    """How the weights of a model that are in blocks lie there, by their names."""
    return {f"{jax.tree_util.keystr(path)}.value['weight']": param.op.blocks for path, param in _layers(model)}


def layouts(run: PyTree, carry: PyTree, blocks: Mapping[str, Blocks]) -> list[Blocks | None]:
    """How each array of a run lies in blocks; None where it does not."""
    arrays, owners = eqx.filter(run, eqx.is_array), owners_of(carry)
    named = zip(leaf_names(arrays), jax.tree.leaves(arrays), strict=True)
    return [layout(name, leaf.shape, blocks, owners) for name, leaf in named]


def layout(name: str, shape: tuple[int, ...], blocks: Mapping[str, Blocks], owners: Mapping[int, str]) -> Blocks | None:
    """How a leaf of a run lies in blocks, by its name; None if it does not.

    Args:
        name, shape: those of the leaf.
        blocks: how the weights of the model lie.
        owners: for each op call that has traces the names of what it traces.
    """
    call = re.search(r"traces\[(\d+)\].*(\['weight'\]|\.factors\.x)$", name)
    full = "." + (owners.get(int(call[1]), "") if call else name)
    names = [ending for ending in blocks if full.endswith(ending)]
    if not names:
        return None
    found = blocks[max(names, key=len)]
    return found if shape[-1:] == (found.size * (found.starts.size - 1),) else None


def owners_of(carry: PyTree) -> dict[int, str]:
    """For each op call that has traces the name of the weight that it traces."""
    given = () if carry.origin is None else carry.origin.owners
    return {call: name for call, leaves in given for names in leaves for name in names if name.endswith("['weight']")}


def relaid(read: Any, base: np.ndarray, at: tuple[slice, ...], old: Blocks, new: Blocks) -> None:
    """Fill the part `at` of an array in new blocks by what is read of one in old blocks; what fills them up stays."""
    low, high = at[-1].start, at[-1].stop
    for j in range(low // new.size, -(-high // new.size)):
        shift = new.starts[j] - j * new.size
        for i in range(old.starts.size - 1):
            first = max(low + shift, new.starts[j], old.starts[i])
            last = min(high + shift, new.starts[j + 1], old.starts[i + 1])
            if first < last:
                there, here = i * old.size - old.starts[i], -shift - low
                base[..., first + here : last + here] = read((*at[:-1], slice(first + there, last + there)))


def whole_of(shape: Sequence[int], at: Sequence[slice] = ()) -> tuple[slice, ...]:
    """A part of an array, or all of it, with ends that are said."""
    given = at or [slice(None)] * len(shape)
    return tuple(slice(*part.indices(n)[:2]) for part, n in zip(given, shape, strict=True))


def spec_of(leaf: object) -> list | None:
    """How an array is parted on the axes of its mesh, as JSON says it."""
    place = getattr(leaf, "sharding", None)
    return list(place.spec) if isinstance(place, NamedSharding) and place.num_devices > 1 else None


def placed(mesh: Mesh, spec: list) -> NamedSharding:
    """The place that `spec_of` said."""
    return NamedSharding(mesh, PartitionSpec(*(tuple(axis) if isinstance(axis, list) else axis for axis in spec)))


def described(model: PyTree) -> PyTree:
    """A model by what its layers in blocks are on one device, so that it is the same for each number of these."""

    def one(param: Any) -> Any:
        if not _is_in_blocks(param):
            return param
        op, sharded = param.op.op, param.op
        said = {f.name: getattr(op, f.name) for f in dataclasses.fields(op) if f.name != "num_weights"}
        said |= {"kind": type(op).__name__, "connectivity": sharded.digest, "bias": sharded.bias}
        if (delays := sharded.delays) is not None:
            said["delays"] = delays.steps, delays.depth
        sizes = sharded.num_post, sharded.length
        return sharded.blocks.whole((param.value, said)), sizes, param.grad, param.is_etrace

    return jax.tree.map(one, model, is_leaf=lambda node: isinstance(node, ETraceParam))


def _is_in_blocks(node: object) -> bool:
    return isinstance(node, ETraceParam) and isinstance(node.op, ShardedOp)


def _layers(model: PyTree) -> list[tuple[Any, Any]]:
    found = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda node: isinstance(node, ETraceParam))[0]
    return [(path, node) for path, node in found if _is_in_blocks(node)]
