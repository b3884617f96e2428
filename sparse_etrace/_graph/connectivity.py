"""Which synapses exist: index arrays in receiver-major order, and the sort that gives it."""

import hashlib
import operator
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import ArrayLike
from jaxtyping import Array, Int, UInt32

from .._types import Column
from .sorting import sorted_edges

MAX_INDEX = np.iinfo(np.int32).max


class Connectivity(eqx.Module):
    """The synapses `pre -> post` of a layer, without their weights.

    Canonical order is receiver-major: synapses are sorted by `(post, pre)`, and parallel synapses stay in input order.
    The incoming synapses of unit `i` are `post_ptr[i]:post_ptr[i + 1]`.

    A pytree: the six index arrays and their digest are leaves, the two sizes are static. Build it with `from_edges`;
    the constructor itself checks nothing, because its leaves may be traced. Replace a connectivity as a whole, and not
    its arrays, of which the digest is.

    Attributes:
        pre: sending unit of each synapse, int32.
        post: receiving unit of each synapse, int32, ascending.
        post_ptr: first synapse of each receiving unit, and the number of synapses last, int32.
        by_pre: the synapses sorted by `(pre, post)`, int32; the outgoing ones of unit `j` are
            `by_pre[pre_ptr[j]:pre_ptr[j + 1]]`.
        post_by_pre: receiving unit of each synapse in that order, int32.
        pre_ptr: first entry in `by_pre` of each sending unit, and the number of synapses last, int32.
        num_pre: number of sending units.
        num_post: number of receiving units.
        digest: what tells it from others, by which a carry knows its connectivity; None: not known.

    Example:
        >>> import sparse_etrace as se
        >>> conn = se.Connectivity.from_edges([2, 0, 1], [1, 1, 0], shape=(3, 2))
        >>> conn.pre.tolist(), conn.post.tolist(), conn.post_ptr.tolist()
        ([1, 0, 2], [0, 1, 1], [0, 1, 3])
    """

    pre: Int[Array, " num_synapses"]
    post: Int[Array, " num_synapses"]
    post_ptr: Int[Array, " num_post_and_1"]
    pre_ptr: Int[Array, " num_pre_and_1"]
    by_pre: Int[Array, " num_synapses"]
    post_by_pre: Int[Array, " num_synapses"]
    num_pre: int = eqx.field(static=True)
    num_post: int = eqx.field(static=True)
    digest: UInt32[Array, "2"] | None = None

    @classmethod
    def from_edges(cls, pre: Column, post: Column, shape: Sequence) -> "Connectivity":
        """Sort the edges `pre[k] -> post[k]` into a connectivity. Parallel edges and autapses are kept.

        Args:
            pre: sending units, `(num_synapses,)`, integers of any type, in any order.
            post: receiving units, `(num_synapses,)`, integers of any type.
            shape: `(num_pre, num_post)`.

        Returns:
            The connectivity, its index arrays in canonical order.

        Raises:
            TypeError: an argument is traced, or holds no integers.
            ValueError: lengths differ, an index is outside `shape`, or there are too many synapses for int32.

        Example:
            >>> import sparse_etrace as se
            >>> se.Connectivity.from_edges([0, 0], [0, 1], shape=(1, 2)).density
            1.0
        """
        return canonical_order(pre, post, shape)[1]

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The six index arrays, in the order of the fields."""
        return self.pre, self.post, self.post_ptr, self.pre_ptr, self.by_pre, self.post_by_pre

    @property
    def num_synapses(self) -> int:
        """Number of synapses, parallel ones counted singly."""
        return self.pre.shape[-1]

    @property
    def shape(self) -> tuple[int, int]:
        """`(num_pre, num_post)`."""
        return self.num_pre, self.num_post

    @property
    def density(self) -> float:
        """Synapses per pair of units, `num_synapses / (num_pre * num_post)`; 0 where there are no pairs."""
        return self.num_synapses / max(self.num_pre * self.num_post, 1)


def onto_synapses(connectivity: Connectivity) -> Connectivity:
    """From each sending unit to its synapses, one onto each."""
    c, each = connectivity, jnp.arange(connectivity.num_synapses + 1, dtype=jnp.int32)
    return Connectivity(c.pre, each[:-1], each, c.pre_ptr, c.by_pre, c.by_pre, c.num_pre, c.num_synapses)


def from_synapses(connectivity: Connectivity) -> Connectivity:
    """From each synapse to its receiving unit, one from each."""
    c, each = connectivity, jnp.arange(connectivity.num_synapses + 1, dtype=jnp.int32)
    return Connectivity(each[:-1], c.post, c.post_ptr, each, each[:-1], c.post, c.num_synapses, c.num_post)


def from_slots(connectivity: Connectivity, lag: np.ndarray, slots: int) -> Connectivity:
    """From each sending unit in each of so many slots, the one with number `lag`, `(num_synapses, copies)`.

    Unit `pre` in a slot is the sender `slot * num_pre + pre`. The copies of a synapse lie side by side.
    """
    c, copies, size = connectivity, lag.shape[1], slots * connectivity.num_pre
    pre = (lag.astype(np.int64) * c.num_pre + np.asarray(c.pre)[:, None]).ravel().astype(np.int32)
    return with_outgoing(pre, np.repeat(np.asarray(c.post), copies), np.asarray(c.post_ptr) * np.int32(copies), size)


def canonical_order(pre: Column, post: Column, shape: Sequence) -> tuple[np.ndarray, Connectivity]:
    """Return `(order, connectivity)` with `connectivity.pre == pre[order]`, and likewise for `post`.

    Args:
        pre: sending units, `(num_synapses,)`, integers of any type, in any order.
        post: receiving units, `(num_synapses,)`, integers of any type.
        shape: `(num_pre, num_post)`.

    Returns:
        `order`, a numpy int32 array `(num_synapses,)` that says which input edge each canonical synapse was, and the
        connectivity.

    Raises:
        TypeError: an argument is traced, or holds no integers.
        ValueError: lengths differ, an index is outside `shape`, or there are too many synapses for int32.
    """
    return by_receiver(*edge_arrays(pre, post, shape))


def by_receiver(
    pre: np.ndarray, post: np.ndarray, shape: tuple[int, int], carried: np.ndarray | None = None
) -> tuple[np.ndarray, Connectivity]:
    """`canonical_order` of indices that fit; in the place of the order, what each edge carries, see `sorted_edges`."""
    post, pre, carried, ptr = sorted_edges(post, pre, shape[::-1], carried)
    return carried, with_outgoing(pre, post, ptr, shape[0])


def with_outgoing(pre: np.ndarray, post: np.ndarray, ptr: np.ndarray, num_pre: int) -> Connectivity:
    """The connectivity of synapses that are sorted by receiver, of which `ptr` has the runs."""
    return of_arrays(*index_arrays(pre, post, ptr, num_pre))


def of_arrays(
    pre: np.ndarray, post: np.ndarray, ptr: np.ndarray, pre_ptr: np.ndarray, *out: np.ndarray
) -> Connectivity:
    """The connectivity of its six index arrays."""
    num_pre, num_post = pre_ptr.size - 1, ptr.size - 1
    digest = jax.device_put(digest_of(pre, ptr, num_pre))
    a, b, c, d, e, f = map(jax.device_put, (pre, post, ptr, pre_ptr, *out))
    return Connectivity(a, b, c, d, e, f, num_pre, num_post, digest)


def index_arrays(
    pre: np.ndarray, post: np.ndarray, ptr: np.ndarray, num_pre: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The six index arrays of synapses that are sorted by receiver, on the host."""
    _, post_by_pre, by_pre, pre_ptr = sorted_edges(pre, post, (num_pre, ptr.size - 1), is_by_minor=True)
    return pre, post, ptr, pre_ptr, by_pre, post_by_pre


def digest_of(*arrays: ArrayLike) -> np.ndarray:
    """Two numbers that tell arrays apart by their entries, read as int32."""
    found = hashlib.sha256()
    for array in arrays:
        entries = np.ascontiguousarray(array, np.int32)
        found.update(str(entries.shape).encode())
        found.update(entries.reshape(-1).data)
    return np.frombuffer(found.digest()[:8], np.uint32)


def digest_of_blocks(pre: ArrayLike, ptr: ArrayLike, num_pre: int, num_post: int) -> np.ndarray:
    """The digest of a connectivity, or of several with as many units and synapses, one after the other."""
    pre, ptr = np.asarray(pre), np.asarray(ptr)
    count = ptr.size // (num_post + 1)
    blocks = zip(np.split(pre, count), np.split(ptr, count), strict=True)
    return digest_of_digests([digest_of(*block, num_pre) for block in blocks])


def digest_of_digests(found: Sequence[np.ndarray]) -> np.ndarray:
    """That of several connectivities, one after the other, by theirs; of one its own."""
    return found[0] if len(found) == 1 else digest_of(*found)


def edge_arrays(pre: Column, post: Column, shape: Sequence) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Return edges as two arrays of int32 or int64 that fit `shape`, and the shape as Python integers."""
    num_pre, num_post = check_shape(shape)
    pre, post = index_array("pre", pre), index_array("post", post)
    if pre.size != post.size:
        raise ValueError(f"pre and post: expected one entry each per synapse, got {pre.size} and {post.size}.")
    ends = (_in_range("pre", pre, num_pre), _in_range("post", post, num_post))
    pre, post = (end if end.dtype == np.int64 else end.astype(np.int32, copy=False) for end in ends)
    return pre, post, (num_pre, num_post)


def expand_ptr(ptr: np.ndarray) -> np.ndarray:
    """Return the unit of each synapse, int32, given where each unit's run of synapses starts."""
    return np.repeat(np.arange(ptr.size - 1, dtype=np.int32), np.diff(ptr))


def is_here(value: object) -> bool:
    """Whether this process has all of an array."""
    return not isinstance(value, jax.Array) or value.is_fully_addressable or value.is_fully_replicated


def host_array(name: str, value: object) -> np.ndarray:
    """Return `value` as a numpy array, or raise TypeError if its numbers are not known yet.

    Of an array that other processes have a part of: each of them must ask.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name}: expected an array with values, got a traced one. Connectivity is built on the host: "
            "call this outside of jit and vmap."
        )
    if not is_here(value):
        return multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)


def index_array(name: str, value: object) -> np.ndarray:
    """Return `value` as a one-dimensional numpy array of integers, of any integer type."""
    array = host_array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one dimension, (num_synapses,), got shape {array.shape}.")
    if array.size > MAX_INDEX:
        raise ValueError(
            f"{name}: expected at most {MAX_INDEX} synapses, as int32 counts no more, got "
            f"{array.size}. Split the layer in several."
        )
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers as indices, got {array.dtype}. Pass `labels` for other ids.")
    return array


def as_indices(name: str, array: np.ndarray, size: int, before: int = 0) -> np.ndarray:
    """Return integers as int32 indices below `size`; so many entries came before them."""
    return _in_range(name, array, size, before).astype(np.int32, copy=False)


def _in_range(name: str, array: np.ndarray, size: int, before: int = 0) -> np.ndarray:
    # Negative numbers without their sign are above any size, but only from 32 bits on.
    array = array.astype(np.int32) if array.itemsize < 4 else array
    if array.size and array.view(array.dtype.str.replace("i", "u")).max() >= size:
        first = int(np.argmax((array < 0) | (array >= size)))
        raise ValueError(
            f"{name}: expected indices from 0 and below {size}, the number of units, got {array[first]} at "
            f"entry {before + first}. Count from 0, or give `shape` or `labels` that hold it."
        )
    return array


def check_shape(shape: Sequence) -> tuple[int, int]:
    """Return `shape` as two Python integers that int32 can index."""
    try:
        num_pre, num_post = (operator.index(size) for size in shape)
    except (TypeError, ValueError) as error:
        raise TypeError(f"shape: expected two integers, (num_pre, num_post), got {shape!r}.") from error
    if min(num_pre, num_post) < 0 or max(num_pre, num_post) > MAX_INDEX:
        raise ValueError(f"shape: expected sizes from 0 to {MAX_INDEX}, got {(num_pre, num_post)}.")
    return num_pre, num_post
