"""Arrays of a layer in blocks of receiving units, one block on each device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ._graph.connectivity import Connectivity, digest_of, digest_of_digests, expand_ptr, host_array, index_arrays


def check_mesh(mesh: object) -> Mesh:
    """A mesh that blocks lie on, its axes followed by XLA and no part of the types of arrays."""
    if not isinstance(mesh, Mesh) or not 0 < len(mesh.axis_names) < 3:
        raise TypeError(f"mesh: expected a jax.sharding.Mesh of one or two axes, got {mesh!r}. jax.make_mesh makes it.")
    some, count = len({device.process_index for device in mesh.devices.flat}), jax.process_count()
    if some not in (1, count):
        raise ValueError(
            f"mesh: expected devices of one process or of all, got those of {some} of {count} processes. Start as many "
            "as have devices in it."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def dealt(ptr: np.ndarray, count: int) -> np.ndarray:
    """Nodes in blocks of equal size, dealt out by in-degree, to and fro."""
    size, last = sizes_of(ptr.size - 1, count)
    ranked = np.argsort(-np.diff(ptr), kind="stable")
    full, rest = ranked[: last * count].reshape(last, count), ranked[last * count :].reshape(size - last, count - 1)
    for rows in (full, rest):
        rows[1::2] = rows[1::2, ::-1]
    blocks = [np.concatenate([full[:, k], rest[:, k : k + 1].ravel()]) for k in range(count)]
    return np.concatenate([np.sort(block) for block in blocks])


def sizes_of(units: int, count: int) -> tuple[int, int]:
    """Units of each block but the last, and of that."""
    size = -(-units // count)
    last = units - (count - 1) * size
    if last < 1:
        raise ValueError(
            f"mesh: expected at most as many devices as blocks of equal size fill, got {count} for {units} units. Take "
            f"a mesh of {-(-units // size)}, of which each has up to {size}."
        )
    return size, last


class Blocks(NamedTuple):
    """How the weights of a layer lie in blocks.

    Attributes:
        starts: the first of each block along the last axis of the whole, and their number last.
        size: weights of a block, those included that fill it up.
    """

    starts: np.ndarray
    size: int

    @property
    def kept(self) -> np.ndarray:
        """Where each weight of the whole is."""
        number = self.starts.size - 1
        ends = np.arange(number) * self.size - self.starts[:-1]
        return np.arange(self.starts[-1]) + np.repeat(ends, np.diff(self.starts))

    def whole(self, tree: PyTree) -> PyTree:
        """A pytree whose leaves with an entry for each weight, in blocks, are as on one device; others stay."""
        kept, size = self.kept, self.size * (self.starts.size - 1)

        def one(leaf: Any) -> Any:
            is_in_blocks = eqx.is_array(leaf) and leaf.shape[-1:] == (size,)
            return jnp.asarray(host_array("tree", leaf)[..., kept]) if is_in_blocks else leaf

        return jax.tree.map(one, tree)

    def laid(self, values: Any, mesh: Mesh, is_zero: bool = False) -> Any:
        """An array with an entry for each weight along its last axis, in blocks; its shape, of a shape."""
        shape = (*values.shape[:-1], self.size * (self.starts.size - 1))
        place = NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 1), mesh.axis_names[0]))
        if isinstance(values, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, values.dtype, sharding=place)
        host = host_array("tree", values)
        return placed(shape, place, lambda k: self.block(host, k, is_zero))

    def block(self, whole: np.ndarray, k: int, is_zero: bool = False) -> np.ndarray:
        """One of them; those that fill it up are like the first of all, or zeros."""
        kept = whole[..., self.starts[k] : self.starts[k + 1]]
        first = np.zeros((*whole.shape[:-1], 1), whole.dtype) if is_zero or not whole.shape[-1] else whole[..., :1]
        return np.concatenate([kept, np.repeat(first, self.size - kept.shape[-1], axis=-1)], axis=-1)


def placed(shape: tuple[int, ...], place: NamedSharding, block: Callable[[int], np.ndarray]) -> Array:
    """An array of blocks along the last axis, of which this process makes those of its devices."""
    size = shape[-1] // place.mesh.shape[place.mesh.axis_names[0]]

    def one(at: Any) -> np.ndarray:
        return block((at[-1].start or 0) // max(size, 1))

    return jax.make_array_from_callback(shape, place, one)


def connectivity_of(
    edges: Callable[[int], tuple[np.ndarray, np.ndarray]], mesh: Mesh, most: int, num_pre: int, size: int
) -> Connectivity:
    """The connectivity of blocks, by the senders of each and where those of its units begin.

    Each process makes the blocks of its devices, of `most` synapses onto `size` units and one more that fills up.
    """
    place = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))

    @functools.cache
    def block(k: int) -> list[np.ndarray]:
        senders, begins = edges(k)
        of_units = np.full(size + 2, senders.size, np.int32)
        of_units[: begins.size] = begins
        of_units[-1] = most
        senders = np.append(senders, np.zeros(most - senders.size, np.int32))
        arrays = index_arrays(senders, expand_ptr(of_units), of_units, num_pre)
        return [*arrays, digest_of(senders, of_units, num_pre)]

    count = mesh.shape[mesh.axis_names[0]]
    *arrays, digests = (
        placed((n * count,), place, lambda k, field=i: block(k)[field])  # type: ignore[misc]
        for i, n in enumerate((*array_sizes(most, num_pre, size), 2))
    )
    digest = jnp.asarray(digest_of_digests(np.split(host_array("tree", digests), count)))
    return of_blocks(arrays, num_pre, size, digest)


def in_blocks(conn: Connectivity, mesh: Mesh) -> tuple[Connectivity, Blocks]:
    """A connectivity in blocks of units, of which each process makes its own, and how its synapses lie there.

    Of shapes that do not say where the synapses of units begin, blocks have as many.
    """
    count, (num_pre, num_post) = mesh.shape[mesh.axis_names[0]], conn.shape
    size, _ = sizes_of(num_post, count)
    ends = np.minimum(np.arange(count + 1) * size, num_post)
    if isinstance(conn.post_ptr, jax.ShapeDtypeStruct):
        starts = -(-conn.num_synapses * np.arange(count + 1) // count)
    else:
        ptr = host_array("tree", conn.post_ptr)
        starts = ptr[ends]
    most = int(np.diff(starts).max())
    if isinstance(conn.pre, jax.ShapeDtypeStruct):
        place = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
        sizes = array_sizes(most, num_pre, size)
        shapes = [jax.ShapeDtypeStruct((n * count,), jnp.int32, sharding=place) for n in sizes]
        return of_blocks(shapes, num_pre, size, jax.ShapeDtypeStruct((2,), jnp.uint32)), Blocks(starts, most)
    pre = host_array("tree", conn.pre)

    def edges(k: int) -> tuple[np.ndarray, np.ndarray]:
        return pre[starts[k] : starts[k + 1]], ptr[ends[k] : ends[k + 1] + 1] - starts[k]

    return connectivity_of(edges, mesh, most, num_pre, size), Blocks(starts, most)


def array_sizes(most: int, num_pre: int, size: int) -> tuple[int, ...]:
    return most, most, size + 2, num_pre + 1, most, most


def of_blocks(arrays: Sequence[Any], num_pre: int, size: int, digest: Any) -> Connectivity:
    """The connectivity of a block, of arrays of all of them; its last unit is what fills up."""
    a, b, c, d, e, f = arrays
    return Connectivity(a, b, c, d, e, f, num_pre, size + 1, digest)
