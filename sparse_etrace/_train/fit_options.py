"""What `fit` may be told besides what to train on what: updates, held-out data, a file."""

import dataclasses
from collections.abc import Iterable, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path

import optax

from .batches import Pair, as_pair

# What arguments of `fit` were called before, and what says it now.
FORMER = {
    "chunk": "update=se.Update(chunk=...)",
    "opt_state": "update=se.Update(opt_state=...)",
    "carry_over": "carry=True",
    "validate_every": "validation=se.Validation(data, every=...)",
    "patience": "validation=se.Validation(data, patience=...)",
    "checkpoint_every": "checkpoint=se.Checkpoint(path, every=...)",
}


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise for an argument that `fit` does not have; one that it had once is told what says it now."""
    for name in names:
        now = f"Write {FORMER[name]}." if name in FORMER else "help(se.fit) names those that it has."
        raise TypeError(f"{name}: expected an argument of fit, got another. {now}")


def _check_count(name: str, number: object) -> None:
    if not (isinstance(number, Integral) and int(number) >= 1):
        raise ValueError(f"{name}: expected a whole number of at least 1, got {number!r}.")


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """How `fit` changes parameters.

    Args:
        every: after how many steps, or `"step"`, or `"sequence"`.
        chunk: steps in a window of the gradient, as in `online_grad`.
        opt_state: state of the optimizer, to go on from an earlier call; None to start.

    Raises:
        ValueError: `every` or `chunk` is out of range.

    Example:
        >>> import sparse_etrace as se
        >>> se.Update(every=10, chunk=5)
        Update(every=10, chunk=5, opt_state=None)
    """

    every: int | str = "sequence"
    chunk: int | None = None
    opt_state: optax.OptState | None = None

    def __post_init__(self) -> None:
        counted = isinstance(self.every, Integral) and not isinstance(self.every, bool)
        if not (self.every >= 1 if counted else self.every in ("sequence", "step")):  # type: ignore[operator]
            raise ValueError(f"update: expected 'sequence', 'step' or a number of steps >= 1, got {self.every!r}.")
        if self.chunk is not None:
            _check_count("chunk", self.chunk)

    def size(self, steps: int) -> int:
        """Steps between two updates in a sequence of `steps`."""
        if isinstance(self.every, str):
            return 1 if self.every == "step" else steps
        return min(int(self.every), steps)


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """Held-out data of `fit`, over which the model runs without learning.

    Args:
        data: a tuple `(xs, ys)`, or a list of several, of the batch size of the state.
        every: sequences between two validations.
        patience: so many validations without a lower loss end the training, and the best model is returned.

    Raises:
        ValueError: there is no data, or a number is out of range.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> held_out = se.Validation((np.ones((5, 4, 2)), np.zeros((5, 4, 3))), every=10, patience=3)
        >>> len(held_out.pairs)
        1
    """

    data: Pair | Sequence[Pair]
    every: int = 1
    patience: int | None = None

    def __post_init__(self) -> None:
        _check_count("every", self.every)
        if self.patience is not None:
            _check_count("patience", self.patience)
        if not len(self.data):
            raise ValueError("validation: expected at least one (xs, ys), got none.")

    @property
    def pairs(self) -> list[Pair]:
        """All `(xs, ys)`, as arrays."""
        return [as_pair(pair, "validation") for pair in ([self.data] if isinstance(self.data, tuple) else self.data)]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A file of `fit`, from which the same call goes on.

    It holds what is trained, the optimizer's state, the carry with its keys, the position in the data and the metrics,
    and it is never half written. One run has it at a time. What differs from the call that wrote it is an error, as far
    as it can be told.

    A model that `shard` has parted may go on with other numbers of devices or processes. Where several processes train
    together, each writes what it holds into a file beside this one, in a folder that all see; what ends one of them
    writes nothing more.

    Args:
        path: the file. If it exists, training goes on from it.
        every: sequences between two times that it is written; None: every 30 seconds. It is written at the end, too.

    Raises:
        ValueError: `every` is out of range.

    Example:
        >>> import sparse_etrace as se
        >>> se.Checkpoint("run.ckpt", every=100)
        Checkpoint(path='run.ckpt', every=100)
    """

    path: str | PathLike
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            _check_count("every", self.every)

    @property
    def file(self) -> Path:
        """The path, with the home folder for `~`."""
        return Path(self.path).expanduser()
