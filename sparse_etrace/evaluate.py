"""Learn from a stream while predicting it, and measures of that beside the simplest predictors."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ._learner import Carry, Learner
from ._model.trained import trained_filter
from ._numbers import positive, whole
from ._text import DataFrame, as_table, data_frame
from ._train.batches import Pair
from ._train.delayed import delayed, delays_of, updates_until
from ._train.online import read_stream
from ._train.stream import SnapshotStream
from ._train.updates import Point, Task, one_update
from ._types import Loss, Metric, Model
from ._varying import freely

__all__ = ["Prequential", "mae", "mse", "prequential"]


def mae(out: Array, y: Array | tuple[Array, Array]) -> Float[Array, ""]:
    """Mean absolute error, of targets `y` or of those of `(targets, mask)` that are known.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> float(se.evaluate.mae(jnp.array([1.0, 5.0]), (jnp.array([2.0, 0.0]), jnp.array([True, False]))))
        1.0
    """
    return _mean(jnp.abs(out - _target(y)), y)


def mse(out: Array, y: Array | tuple[Array, Array]) -> Float[Array, ""]:
    """Mean squared error, of targets `y` or of those of `(targets, mask)` that are known.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> float(se.evaluate.mse(jnp.array([1.0, 5.0]), jnp.array([2.0, 2.0])))
        5.0
    """
    return _mean((out - _target(y)) ** 2, y)


def _target(y: Array | tuple[Array, Array]) -> Array:
    return y[0] if isinstance(y, tuple) else y


def _mean(errors: Array, y: Array | tuple[Array, Array]) -> Array:
    if not isinstance(y, tuple):
        return jnp.mean(errors)
    return jnp.sum(jnp.where(y[1], errors, 0)) / jnp.maximum(jnp.sum(y[1]), 1)


class Prequential(NamedTuple):
    """What `prequential` returns; prints as a table of means over the steps.

    Attributes:
        curves: for each predictor (`"model"` and the baselines), each measure at each step, `(steps,)`.
        outs: predictions of the model, stacked.
        model, opt_state, carry: as they are at the end.
        counted: of each step whether the table takes it, `(steps,)`: it is after those that are skipped, and has a
            label.
    """

    curves: dict[str, dict[str, np.ndarray]]
    outs: PyTree[Array]
    model: Model
    opt_state: optax.OptState
    carry: Carry
    counted: np.ndarray

    @property
    def table(self) -> dict[str, dict[str, float]]:
        """Means of each measure over the steps that count, by predictor."""
        return {
            name: {k: float(np.mean(curve[self.counted])) for k, curve in curves.items()}
            for name, curves in self.curves.items()
        }

    def __str__(self) -> str:
        head = ("predictor", *self.curves["model"])
        return as_table(head, [(name, *(f"{v:.4g}" for v in row.values())) for name, row in self.table.items()])

    def to_dataframe(self) -> DataFrame:
        """The means as a pandas data frame, one row for each predictor."""
        table = self.table
        columns = {name: [row[name] for row in table.values()] for name in self.curves["model"]}
        return data_frame({"predictor": list(table), **columns})


def prequential(
    learner: Learner,
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    model: Model,
    stream: SnapshotStream | Pair,
    *,
    state: PyTree,
    delay: int | Sequence[int] = 1,
    metrics: Mapping[str, Metric] | None = None,
    average: int = 12,
    period: int | None = None,
    skip: int = 0,
) -> Prequential:
    """Predict each step, then learn from it when its label has come; beside it three predictors that learn nothing.

    The label of step t is known at the prediction of step t + delay. *persistence* predicts the last label that is
    known, *moving average* the mean of the last `average` ones, *historical mean* that of all known ones, at the same
    phase of a `period` if there is one; where none is known, 0. They are compared where `out` has the shape of the
    targets.

    Args:
        learner: the rule.
        loss_fn: `(out_t, y_t) -> scalar`; `y_t` is a target, or `(target, mask)` where some are missing.
        optimizer: from optax; it makes an update in each step.
        model: `state, out = model(state, x)`.
        stream: a `SnapshotStream`, or `(xs, ys)`, time first.
        state: the initial state.
        delay: steps until a label is known; several for targets whose last axis has one entry for each.
        metrics: by name, functions `(out_t, y_t) -> scalar`, measured beside the loss.
        average: labels in the moving average.
        period: steps in a day, say; None: the historical mean is of all steps.
        skip: steps at the start that the final table leaves out, as it does steps without any label.

    Returns:
        Curves and table, the predictions, and the model as it is at the end.

    Raises:
        TypeError: a number of steps is no whole number.
        ValueError: a number of steps is out of range, or several delays do not fit the targets; or as `online_grad`.

    Example:
        >>> import jax, numpy as np, optax, sparse_etrace as se
        >>> speed = np.sin(np.arange(200.0))[:, None, None]                     # one sensor
        >>> stream = se.SnapshotStream.ahead(speed, (1,))
        >>> cell = se.cells.LeakyRate(1, se.MatMulOp().param(jax.random.key(0), 1, 1), decay=0.5)
        >>> result = se.evaluate.prequential(se.D_RTRL(), se.evaluate.mse, optax.adam(0.05), cell, stream,
        ...     state=cell.init_state(1), skip=100)
        >>> list(result.table)
        ['model', 'persistence', 'moving average', 'historical mean']

    Reference:
        Dawid 1984, Journal of the Royal Statistical Society A 147:278; Gama et al. 2013, Machine Learning 90:317.
    """
    xs, ys = read_stream(*((stream.xs, stream.ys) if isinstance(stream, SnapshotStream) else stream))
    learner.refuse_inputs(xs)
    steps, skip = len(jax.tree.leaves(xs)[0]), whole("skip", skip)
    average, period = positive("average", average), 1 if period is None else positive("period", period)
    delays = [max(d, 1) for d in delays_of(delay, "delay")]
    waiting = delayed(optimizer, updates_until(max(delays), 1))
    trained, fixed = eqx.partition(model, trained_filter(model, learner.train))
    measures = {"loss": loss_fn, **(metrics or {})}
    first = learner.init(model, state, jax.tree.map(lambda leaf: leaf[0], xs))
    task = Task(learner, loss_fn, tuple(measures.items()), waiting, fixed, None)
    point, outs, found = freely(_learned, task, Point(trained, waiting.init(trained), first), xs, ys)
    curves = {"model": found}
    target, known = ys if isinstance(ys, tuple) else (ys, None)
    counted = np.arange(steps) >= skip
    if isinstance(known, jax.Array) and known.dtype == bool:
        counted &= np.asarray(known).reshape(steps, -1).any(1)
    if skip < 0 or not counted.any():
        raise ValueError(f"skip: expected 0 or more, with labels after, got {skip} of {steps} steps.")
    if isinstance(outs, jax.Array) and isinstance(target, jax.Array) and outs.shape == target.shape:
        if len(delays) > 1 and target.shape[-1:] != (len(delays),):
            raise ValueError(
                f"delay: expected one number, or one for each entry of the last axis of targets of shape "
                f"{target.shape[1:]}, got {len(delays)}."
            )
        known = jnp.ones(target.shape, bool) if known is None else known
        said = guesses(target, known, delays, average, period)
        curves |= {name: _measured(measures, guess, ys) for name, guess in said.items()}
    shown = {name: {k: np.asarray(part[k]) for k in measures} for name, part in curves.items()}
    return Prequential(shown, outs, eqx.combine(point.trained, fixed), point.opt_state, point.carry, counted)


@eqx.filter_jit
def _learned(
    task: Task, point: Point, xs: PyTree[Array], ys: PyTree[Array]
) -> tuple[Point, PyTree[Array], dict[str, Array]]:
    """All steps: where they end, and what was predicted before each was learned from."""

    def one(point: Point, now: Pair) -> tuple[Point, list[PyTree]]:
        x, y = jax.tree.map(lambda leaf: leaf[None], now)
        point, values, _ = one_update(task, point, x, y, with_out=True)
        return point, jax.tree.map(lambda leaf: leaf[0], values[1:])

    point, (outs, *found) = jax.lax.scan(one, point, (xs, ys))
    return point, outs, {name: curve for (name, _), curve in zip(task.metrics, found, strict=True)}


@eqx.filter_jit
def _measured(measures: dict[str, Metric], outs: Array, ys: PyTree[Array]) -> dict[str, Array]:
    return {name: jax.vmap(measure)(outs, ys) for name, measure in measures.items()}


def guesses(target: Array, known: Array, delays: Sequence[int], average: int, period: int) -> dict[str, Array]:
    """What predictors that learn nothing say at each step, from the labels that have come; one delay for each entry of
    the last axis, or one for all."""
    mask = np.asarray(known)
    labels = np.where(mask, np.asarray(target, np.float64), 0)
    steps, names = len(labels), ("persistence", "moving average", "historical mean")
    last = np.maximum.accumulate(np.where(mask, np.arange(steps).reshape(-1, *[1] * (mask.ndim - 1)), 0), axis=0)
    seen = {"persistence": np.take_along_axis(labels, last, 0)}
    for name, lag in ("moving average", average), ("historical mean", None):
        sums = [part if lag is None else part - _later(part, lag) for part in _summed(labels, mask, lag, period)]
        seen[name] = sums[0] / np.maximum(sums[1], 1)
    found: dict[str, Array] = {}
    for name in names:
        back = [-(-d // period) * period if name == "historical mean" else d for d in delays]
        parts = [_later(seen[name] if len(back) == 1 else seen[name][..., k], d) for k, d in enumerate(back)]
        found[name] = jnp.asarray(parts[0] if len(back) == 1 else np.stack(parts, -1), target.dtype)
    return found


def _summed(labels: np.ndarray, mask: np.ndarray, lag: int | None, period: int) -> list[np.ndarray]:
    """Sums of labels and of how many there are up to each step, of steps at the same phase where no lag is given."""
    size, steps = 1 if lag is not None else period, len(labels)
    found = []
    for part in labels, mask.astype(np.float64):
        full = np.concatenate([part, np.zeros((-steps % size, *part.shape[1:]))])
        found.append(np.cumsum(full.reshape(-1, size, *part.shape[1:]), axis=0).reshape(full.shape)[:steps])
    return found


def _later(values: np.ndarray, steps: int) -> np.ndarray:
    """Values so many steps later, 0 before the first."""
    steps = min(steps, len(values))
    return np.concatenate([np.zeros_like(values[:steps]), values[: len(values) - steps]])
