"""Batches of sequences from arrays, and where in its data a training run is."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

Pair = tuple[PyTree[Any], PyTree[Any]]


class Batches(Sequence):
    """Batches `(xs, ys)` of sequences, in order or shuffled anew for each epoch.

    Batch `k` depends on the arguments and on `k` only, so that a run can go on from any of them.

    Args:
        xs: inputs, a pytree of arrays `(time, sequences, ...)`.
        ys: targets, likewise, of the same sequences.
        size: sequences in a batch.
        key: random key that shuffles the sequences of each epoch; None leaves them in order.
        epochs: how often each sequence comes.
        drop_last: leave out of each epoch the sequences that do not fill a batch.

    Raises:
        ValueError: the arrays differ in time or sequences, `size` is out of range or does not divide the sequences, or
            `epochs` is below 1.

    Example:
        >>> import jax, numpy as np, sparse_etrace as se
        >>> batches = se.Batches(np.ones((5, 40, 2)), np.ones((5, 40, 1)), 8, key=jax.random.key(0), epochs=3)
        >>> len(batches), batches[0][0].shape
        (15, (5, 8, 2))
    """

    def __init__(
        self,
        xs: PyTree[Any],
        ys: PyTree[Any],
        size: int,
        key: Array | None = None,
        epochs: int = 1,
        drop_last: bool = False,
    ):
        self.xs, self.ys = jax.tree.map(np.asarray, (xs, ys))
        shapes = sorted({leaf.shape[:2] for leaf in jax.tree.leaves((self.xs, self.ys))})
        if len(shapes) != 1 or len(shapes[0]) != 2 or 0 in shapes[0]:
            raise ValueError(f"xs, ys: expected arrays (time, sequences, ...) with both in common, got {shapes}.")
        self.num_sequences = shapes[0][1]
        if not 1 <= size <= self.num_sequences:
            raise ValueError(f"size: expected 1 to {self.num_sequences}, the number of sequences, got {size}.")
        if self.num_sequences % size and not drop_last:
            raise ValueError(
                f"size: {self.num_sequences} sequences do not divide into batches of {size}. Choose another size, or "
                f"leave out {self.num_sequences % size} of each epoch with drop_last=True."
            )
        if epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {epochs}.")
        self.size, self.key, self.epochs = size, key, epochs
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.num_sequences // self.size

    def __len__(self) -> int:
        return self.epochs * self.per_epoch

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        if not -len(self) <= k < len(self):
            raise IndexError(f"k: expected a batch from 0 to {len(self) - 1}, got {k}.")
        epoch, part = divmod(k % len(self), self.per_epoch)
        chosen = self._permutation(epoch)[part * self.size : (part + 1) * self.size]
        return jax.tree.map(lambda leaf: leaf[:, chosen], (self.xs, self.ys))

    def _permutation(self, epoch: int) -> Any:
        if self.key is None:
            return np.arange(self.num_sequences)
        if self._order is None or self._order[0] != epoch:
            self._order = (
                epoch,
                np.asarray(jax.random.permutation(jax.random.fold_in(self.key, epoch), self.num_sequences)),
            )
        return self._order[1]

    def __repr__(self) -> str:
        key = self.key if self.key is None else np.asarray(jax.random.key_data(self.key)).tolist()
        return f"Batches({self.num_sequences} sequences, size={self.size}, key={key})"


def is_pair(data: Any) -> bool:
    """Whether this is one `(xs, ys)` rather than two of them."""
    return isinstance(data, tuple) and len(data) == 2 and not all(isinstance(d, tuple) and len(d) == 2 for d in data)


def as_pair(data: Any) -> Pair:
    """One `(xs, ys)`, or an error in words."""
    if not (isinstance(data, tuple | list) and len(data) == 2):
        got = f"{len(data)} of them" if isinstance(data, tuple | list) else type(data).__name__
        raise ValueError(f"data: expected pairs (xs, ys), got {got}.")
    return data[0], data[1]


def start_at(data: Any, position: int) -> tuple[Any, Iterator]:
    """The first pair, or None without any, and an iterator that begins with the pair `position`."""
    if isinstance(data, Sequence):
        return (data[0] if len(data) else None), (data[k] for k in range(position, len(data)))
    if callable(data):
        rest = iter(data(position))
        first = next(rest, None)
        if first is None:
            return next(iter(data(0)), None), rest
        return first, itertools.chain([first], rest)
    rest = iter(data)
    first = next(rest, None)
    if first is None or position == 0:
        return first, itertools.chain([] if first is None else [first], rest)
    return first, itertools.islice(rest, position - 1, None)
