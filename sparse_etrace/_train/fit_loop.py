"""The loop of `fit`: a sequence, what is held out, who looks on, the file."""

import dataclasses
import math
from collections.abc import Iterable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from .._model.constant import is_traced
from .._varying import freely
from .batches import Pair, as_pair
from .fit_file import Run, RunFile
from .fit_options import Update, Validation
from .fit_result import Callback, FitResult, Progress
from .lock import Ending
from .non_finite import NonFiniteError, explain_non_finite
from .updates import Point, Task, one_sequence, validate


@dataclasses.dataclass
class Loop:
    """A training run.

    Attributes:
        initial: the state that validations start from.
        start: the one that sequences start from; None where each goes on from the one before.
        shapes: those of one step of inputs and targets.
        size: steps of each update where gradients wait; None where they may differ.
        columns: names of the metrics.
        run, rows: where it is, and the metrics up to there; all else stays the same.
    """

    task: Task
    update: Update
    validation: Validation | None
    held_out: list[Pair]
    initial: PyTree
    start: PyTree
    shapes: list[tuple[int, ...]]
    size: int | None
    columns: list[str]
    callbacks: list[Callback]
    file: RunFile
    ending: Ending
    run: Run
    rows: list[list[float]]

    def train(self, pairs: Iterable[Pair], bar: tqdm) -> FitResult:
        """Go through all pairs; however that ends, the file is as of the last whole sequence."""
        try:
            stopped = self._go_through(pairs, bar)
            self._save(stopped)
            self.ending.has_begun = True
        except KeyboardInterrupt:
            self.ending.has_begun = True
            stopped = "interrupted"
            if not self.file.is_shared:  # no other process need know
                self._save(stopped)
        except Exception as error:
            self.ending.has_begun = True
            if not hasattr(error, "fit") and not self.file.is_shared:  # which an error of `_save` has
                self._save()
            if isinstance(error, NonFiniteError):
                error.fit = self.result("not finite")
            raise
        return self.result(stopped)

    def result(self, stopped: str) -> FitResult:
        """What is learned up to now."""
        run = self.run
        found = dict(zip(self.columns, self._table().T, strict=True))
        found["updates"] = found["updates"].astype(np.int64)
        trained = run.point.trained if math.isinf(run.best_loss) else run.best
        return FitResult(self._model(trained), run.point.opt_state, run.point.carry, found, stopped)

    def _go_through(self, pairs: Iterable[Pair], bar: tqdm) -> str:
        for pair in pairs:
            self._learn(*as_pair(pair))
            if said := self._tell(bar):
                return said
            if self.ending.has_begun:  # something took the exception of a Ctrl-C, and no other one is heard
                raise KeyboardInterrupt
            if self.run.waited >= self._patience:
                return "patience"
            if self.file.is_due(self.run.position):
                self._save()
        return "end of data"

    def _learn(self, xs: PyTree, ys: PyTree) -> None:
        """One sequence, and the validation that is due after it."""
        task, start, shapes = self.task, self.start, self.shapes
        if (got := [leaf.shape[1:] for leaf in jax.tree.leaves((xs, ys))]) != shapes:
            raise ValueError(
                f"data: expected one step of inputs and targets with the shapes of the first sequence, {shapes}, got "
                f"{got}. Leave out a smaller last batch."
            )
        task.learner.refuse_inputs(xs)
        run, steps = self.run, jax.tree.leaves((xs, ys))[0].shape[0]
        size = self.update.size(steps)
        if self.size is not None and (steps % size or size != self.size):
            raise ValueError(
                f"label_delay: expected updates of {self.size} steps each, as they wait for labels, got a sequence of "
                f"{steps} steps and updates of {size}. Cut sequences to one length, of which update=k is a divisor."
            )
        point, means, finite = freely(one_sequence, task, run.point, start, xs, ys, size)
        refuse_traced(means)
        if not finite:
            why = freely(explain_non_finite, task, run.point, start, xs, ys, size)
            raise NonFiniteError(f"sequence {run.position}: {why}")
        found = self._validate(point)
        row = [run.updates + -(-steps // size), *(float(mean) for mean in means), *found]
        best, best_loss, waited = self._best(point, found)
        del self.rows[run.position :]
        self.rows.append(row)
        self.run = Run(point, best, run.position + 1, int(row[0]), best_loss, waited, (xs, ys))

    def _validate(self, point: Point) -> list[float]:
        """Loss and metrics of what is held out: NaN in a sequence without validation, no number in a run without."""
        if self.validation is None:
            return []
        if (self.run.position + 1) % self.validation.every:
            return [math.nan] * (1 + len(self.task.metrics))
        found = validate(self.task, point.trained, self.initial, self.held_out)
        if not math.isfinite(found[0]):
            raise NonFiniteError(
                f"sequence {self.run.position}: the validation loss after it is {found[0]}, though the training is "
                "finite. Lower the learning rate, or look at the held-out data."
            )
        return found

    def _best(self, point: Point, found: list[float]) -> tuple[PyTree, float, int]:
        """The best of what was trained, its loss, and how many validations there were since."""
        run = self.run
        if not found or math.isnan(found[0]):
            return run.best, run.best_loss, run.waited
        if self._patience < math.inf and found[0] < run.best_loss:
            return point.trained, found[0], 0
        return run.best, run.best_loss, run.waited + 1

    def _tell(self, bar: tqdm) -> str:
        """Show and tell how the last sequence went; why a callback ends it, or nothing."""
        run = self.run
        shown = dict(zip(self.columns, self.rows[-1], strict=True))
        if not bar.disable:
            measures = {name: f"{v:.4g}" for name, v in list(shown.items())[1:] if not math.isnan(v)}
            bar.set_postfix(measures, refresh=False)
        bar.update()
        model = self._model(run.point.trained)
        seen = Progress(run.position, run.updates, model, run.point.opt_state, run.point.carry, shown)
        return next(filter(None, [_ending(call(seen)) for call in self.callbacks]), "")  # each is called

    @property
    def _patience(self) -> float:
        patience = None if self.validation is None else self.validation.patience
        return math.inf if patience is None else patience

    def _save(self, stopped: str | None = None) -> None:
        try:
            self.file.write(self.run, self._table(), stopped)
        except OSError as error:
            error.fit = self.result("not saved")  # type: ignore[attr-defined]
            raise

    def _table(self) -> np.ndarray:
        return np.array(self.rows[: self.run.position], float).reshape(-1, len(self.columns))

    def _model(self, trained: PyTree) -> PyTree:
        return eqx.combine(trained, self.task.fixed)


def _ending(returned: object) -> str:
    """What a callback says of the end, if it wants one."""
    if returned is None or isinstance(returned, str):
        return returned or ""
    if isinstance(returned, bool | np.bool_) or (
        isinstance(returned, jax.Array | np.ndarray) and returned.dtype == bool and not returned.ndim
    ):
        return "callback" if returned else ""
    raise TypeError(f"callbacks: expected None, a truth value or a text, got {returned!r}. True ends the training.")


def refuse_traced(tree: PyTree) -> None:
    """Raise inside a transformation of JAX, where derivatives would be zero."""
    if is_traced(tree):
        raise TypeError(
            "fit: expected arrays with values, got some that a transformation of JAX traces. It is "
            "a loop outside of them and has no derivative: call it as it is. The gradient of a "
            "sequence is `grads` of se.online_grad."
        )
