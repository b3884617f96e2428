"""The file of a training run: what it is told by, when it is written, and how a run goes on from it."""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from .batches import Pair, Start, as_pair
from .checkpoint import Identity, Saved, save
from .facts import digests
from .fit_options import Checkpoint
from .parted import blocks_of, is_shared, layouts, mesh_of, said_by_first
from .updates import Point

# Seconds between two times that it is written, unless told.
PAUSE = 30.0
COUNTS = ("position", "updates", "best_loss", "waited")


class Run(NamedTuple):
    """All that changes from sequence to sequence; replaced as a whole, so that an interruption never splits it."""

    point: Point
    best: PyTree
    position: int = 0
    updates: int = 0
    best_loss: float = math.inf
    waited: int = 0
    pair: Pair | None = None  # that of the last sequence, which is not saved


class RunFile:
    """A file that a run may go on from, or none.

    Attributes:
        position: sequences that the run has seen.
        stopped: why it ended; None if it did not.
        is_shared: whether several processes train a model together, and write it together.
    """

    def __init__(self, checkpoint: Checkpoint | None, model: PyTree):
        self.is_shared = is_shared(model)
        self._blocks, self._mesh = blocks_of(model), mesh_of(model)
        self.path = None if checkpoint is None else checkpoint.file
        self.every = None if checkpoint is None else checkpoint.every
        self._saved = None if self.path is None or not self.path.exists() else Saved(self.path)
        self.position: int = 0 if self._saved is None else self._saved.header["position"]
        self.stopped: str | None = None if self._saved is None else self._saved.header["stopped"]
        self._about: dict[str, Any] = {}
        self._last = time.monotonic()

    def belongs_to(self, identity: Identity, options: dict[str, str], given: Start) -> None:
        """Say whose it is from now on.

        Raises:
            ValueError: it is another's.
        """
        first = digests(as_pair(given.first))
        self._about = {"identity": identity, "options": options, "data": {"first": first, "last": {}}}
        if self._saved is not None:
            self._saved.check(identity, options)
            last = None if given.before is None else digests(as_pair(given.before))
            self._about["data"] = self._saved.check_data(first if given.is_first else None, last)

    def restored(self, run: Run) -> tuple[Run, list[list[float]]]:
        """Where the run is by the file, and the rows of its metrics; as it is without one."""
        if self._saved is None:
            return run, []
        counts = {name: self._saved.header[name] for name in COUNTS}
        carry, kept = run.point.carry, _kept(run)
        kept = self._saved.restore(kept, layouts(kept, carry, self._blocks), self._mesh)
        carry = dataclasses.replace(kept.point.carry, origin=carry.origin)
        return kept._replace(**counts, point=kept.point._replace(carry=carry)), self._saved.table.tolist()

    def is_due(self, position: int) -> bool:
        """Whether it is time to write it."""
        if self.every is not None:
            return position % self.every == 0
        is_due = time.monotonic() - self._last > PAUSE
        return said_by_first(is_due) if self.is_shared and self.path is not None else is_due

    def write(self, run: Run, table: np.ndarray, stopped: str | None) -> None:
        """Replace it, if there shall be one.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None:
            return
        if run.pair is not None:
            self._about["data"]["last"] = digests(run.pair)
        counts = {name: getattr(run, name) for name in COUNTS}
        kept = _kept(run)
        found = layouts(kept, run.point.carry, self._blocks)
        save(self.path, self._about | counts | {"stopped": stopped}, kept, table, found)
        self._last = time.monotonic()


def _kept(run: Run) -> Run:
    """What is saved of a run: the connectivity that its carry is of is told by the model."""
    carry = dataclasses.replace(run.point.carry, origin=None)
    return run._replace(point=run.point._replace(carry=carry), pair=None)
