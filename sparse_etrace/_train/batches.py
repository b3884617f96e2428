"""Batches of sequences from arrays, and where in its data a training run is."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from .online import read_stream

Pair = tuple[PyTree, PyTree]


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
        self, xs: PyTree, ys: PyTree, size: int, key: Array | None = None, epochs: int = 1, drop_last: bool = False
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
                f"size: expected a divisor of {self.num_sequences} sequences, got {size}. Choose another, or "
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

    def _permutation(self, epoch: int) -> np.ndarray:
        if self.key is None:
            return np.arange(self.num_sequences)
        if self._order is None or self._order[0] != epoch:
            order = jax.random.permutation(jax.random.fold_in(self.key, epoch), self.num_sequences)
            self._order = epoch, np.asarray(order)
        return self._order[1]

    def __repr__(self) -> str:
        key = self.key if self.key is None else np.asarray(jax.random.key_data(self.key)).tolist()
        return f"Batches({self.num_sequences} sequences, size={self.size}, key={key})"


def as_pair(pair: object, argument: str = "data") -> Pair:
    """One `(xs, ys)` as arrays, or an error in words."""
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        got = f"{len(pair)} of them" if isinstance(pair, tuple | list) else type(pair).__name__
        raise ValueError(f"{argument}: expected pairs (xs, ys), got {got}.")
    return read_stream(*pair)


class Start(NamedTuple):
    """Where a run begins in its data.

    Attributes:
        first: a pair, by whose shapes the others are known; None without any.
        is_first: whether it is the first of all.
        before: the pair before those that follow; None where it is not known, or where there is none.
        rest: the pairs that follow.
    """

    first: Pair | None
    is_first: bool
    before: Pair | None
    rest: Iterator[Pair]


def start_at(data: Iterable[Pair] | Callable[[int], Iterable[Pair]], position: int) -> Start:
    """Begin with the pair `position`.

    Raises:
        ValueError: there are fewer.
    """
    rest: Iterator[Pair]
    if isinstance(data, Sequence):
        first, before = (data[k] if 0 <= k < len(data) else None for k in (0, position - 1))
        rest = (data[k] for k in range(position, len(data)))
    elif callable(data):
        rest = iter(data(position))
        following = next(rest, None)
        if following is None:
            return Start(next(iter(data(0)), None), True, None, rest)
        return Start(following, position == 0, None, itertools.chain([following], rest))
    else:
        rest = iter(data)
        first = before = next(rest, None)
        for _ in range(position - 1):
            before = next(rest, None)
        if position == 0 and first is not None:
            rest = itertools.chain([first], rest)
    if position and before is None:
        raise ValueError(
            f"data: expected at least the {position} sequences that the checkpoint has seen, got fewer. Go "
            "on with the same data, or name another checkpoint."
        )
    return Start(first, True, before, rest)
