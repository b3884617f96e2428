"""A training loop: sequences in, a trained model out, stopped and resumed at will."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tqdm import tqdm

from ._algorithm import Carry, Learner
from ._batches import Batches, Pair, as_pair, start_at
from ._checkpoint import Checkpoint, Ending, alone, identity, save
from ._constant import is_traced
from ._facts import digests
from ._filter import structure, trained_filter
from ._non_finite import NonFiniteError, explain_non_finite
from ._table import data_frame
from ._updates import Point, Task, one_sequence, validate

# Seconds between two checkpoints unless told.
PAUSE = 30.0


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
        model: the trained model; with `patience`, that of the best validation so far.
        opt_state: state of the optimizer.
        carry: where the last sequence ended.
        metrics: columns with one entry for each sequence: `updates` up to there, `loss` (mean per step), each metric,
            and the same of the validation (`validation_loss`, ...; NaN where there was none).
        stopped: why it ended: `"end of data"`, `"interrupted"`, `"patience"` or `"callback"`.
    """

    model: Any
    opt_state: Any
    carry: Carry
    metrics: dict[str, np.ndarray]
    stopped: str

    @property
    def losses(self) -> np.ndarray:
        """Mean loss per step of each sequence."""
        return self.metrics["loss"]

    def to_dataframe(self) -> Any:
        """The metrics as a pandas data frame with one row for each sequence."""
        return data_frame(self.metrics)


class Progress(NamedTuple):
    """What a callback of `fit` sees after each sequence.

    Attributes:
        sequences, updates: how many there were so far, those before a resumption included.
        model, opt_state, carry: where they are now.
        metrics: the row of this sequence.
    """

    sequences: int
    updates: int
    model: Any
    opt_state: Any
    carry: Carry
    metrics: dict[str, float]


class _Run(NamedTuple):
    """All that changes from sequence to sequence; replaced as a whole, so that an interruption never splits it."""

    point: Point
    best: Any
    position: int = 0
    updates: int = 0
    best_loss: float = math.inf
    waited: int = 0
    pair: Any = None  # that of the last sequence, which is not saved


COUNTS = ("position", "updates", "best_loss", "waited")


def fit(
    learner: Learner,
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    model: Callable[..., Any],
    data: Iterable[Pair] | Callable[[int], Iterable[Pair]],
    *,
    state: PyTree[Any],
    update: Any = "sequence",
    chunk: int | None = None,
    opt_state: Any = None,
    carry_over: bool = False,
    progress: bool = True,
    callbacks: Callable[..., Any] | Sequence[Callable[..., Any]] = (),
    validation: Pair | Sequence[Pair] | None = None,
    validate_every: int = 1,
    metrics: Mapping[str, Callable[..., Any]] | None = None,
    patience: int | None = None,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int | None = None,
) -> Fit:
    """Train a model on sequences, one after the other.

    Ctrl-C ends the training and returns what was learned up to the last whole sequence. With a `checkpoint` the same
    call goes on from there, after a crash as well, and ends with the same bits as one that was never stopped.

    Args:
        learner: the rule.
        loss_fn: `(out_t, y_t) -> scalar`.
        optimizer: from optax. One that asks for the loss gets `value`, the sum of the losses of an update, its gradient
            by the rule as `grad`, and both at other parameters by `value_fn`, from the same carry.
        model: `state, out = model(state, x)`.
        data: pairs `(xs, ys)`, time first: `Batches`, a list, any iterable but a tuple (a generator streams), or a
            function that returns an iterable from a given position on. A resumed run asks a list, `Batches` or a
            function for what comes next, and drops from other iterables what it had seen.
        state: the initial state.
        update: `"sequence"`, `"step"`, or a number of steps after which parameters change.
        chunk: see `online_grad`.
        opt_state: to go on from an earlier call; None to start.
        carry_over: state and traces go on from one sequence to the next instead of starting again.
        progress: show a progress bar.
        callbacks: called after each sequence with a `Progress`; the first that returns True ends the training.
        validation: a tuple `(xs, ys)`, or a list of several, of the batch size of `state`. The model runs over them
            from `state`, without learning.
        validate_every: sequences between two validations.
        metrics: by name, functions `(out_t, y_t) -> scalar`; their means over steps are recorded besides the loss, of
            the training and of the validation.
        patience: so many validations without a lower loss end the training, and the best model is returned.
        checkpoint: a file. If it exists, training goes on from it. It holds what is trained, the optimizer's state, the
            carry with its keys, the position in the data and the metrics, and it is never half written. One run has it
            at a time. What differs from the call that wrote it is an error, as far as it can be told.
        checkpoint_every: sequences between two checkpoints; None: every 30 seconds. There is one at the end, too.

    Returns:
        The trained model, the optimizer's state, the carry, the metrics and why it ended.

    Raises:
        ValueError: an argument is out of range, there is no data, a pair differs in shape from the first one, or the
            checkpoint is damaged, another run's, or of another learner, connectivity, model, optimizer, loss, state,
            data or option.
        TypeError: `learner` or `optimizer` is none, a callback returns something else than None or a truth value, the
            optimizer needs what `fit` does not know, or `fit` is called inside a transformation of JAX.
        NonFiniteError: a loss, a gradient, an updated parameter or a validation loss is NaN or infinite; its attribute
            `fit` is what was learned before.
        OSError: the checkpoint could not be written, when the disk is full say; it has the same attribute.

    Example:
        >>> import jax, jax.numpy as jnp, optax, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> batches = se.Batches(jnp.ones((5, 8, 2)), jnp.zeros((5, 8, 3)), size=4, key=jax.random.key(0), epochs=3)
        >>> loss = lambda out, y: jnp.mean((out - y) ** 2)
        >>> options = dict(state=cell.init_state(4), progress=False)
        >>> result = se.fit(se.D_RTRL(), loss, optax.sgd(0.1), cell, batches, **options)
        >>> result.stopped, len(result.losses), bool(result.losses[-1] < result.losses[0])
        ('end of data', 6, True)
    """
    counted = isinstance(update, Integral) and not isinstance(update, bool)
    if not (update >= 1 if counted else update in ("sequence", "step")):
        raise ValueError(f"update: expected 'sequence', 'step' or a number of steps >= 1, got {update!r}.")
    if not isinstance(learner, Learner):
        raise TypeError(f"learner: expected a learner such as se.D_RTRL(), got {learner!r}.")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer: expected one of optax such as optax.adam(1e-3), got {optimizer!r}.")
    for name, number in (
        ("validate_every", validate_every), ("patience", patience), ("checkpoint_every", checkpoint_every),
        ("chunk", chunk),
    ):  # fmt: skip
        if number is not None and not (isinstance(number, Integral) and number >= 1):
            raise ValueError(f"{name}: expected a whole number of at least 1, got {number!r}.")
    if patience is not None and validation is None:
        raise ValueError("patience: there is nothing to wait for without `validation`.")
    if isinstance(data, tuple):
        raise ValueError(
            "data: got a tuple, which is one pair (xs, ys). Pass [(xs, ys)] for one sequence, a list for several, or "
            "se.Batches(xs, ys, size) for batches."
        )
    if validation is not None and not len(validation):
        raise ValueError("validation: expected at least one (xs, ys), got none.")
    pairs = [validation] if isinstance(validation, tuple) else validation
    tests = None if pairs is None else [as_pair(pair, "validation") for pair in pairs]
    measured = dict(metrics or {})
    for name in measured:
        if name in ("updates", "loss") or name.startswith("validation_"):
            raise ValueError(f"metrics: {name!r} is the name of another column. Call the metric something else.")
    columns = ["updates", "loss", *measured]
    if tests is not None:
        columns += [f"validation_{name}" for name in columns[1:]]
    calls = [callbacks] if callable(callbacks) else list(callbacks)
    path = None if checkpoint is None else Path(checkpoint).expanduser()
    _refuse_traced((learner, model, state, opt_state, tests))
    with Ending() as ending, alone(path):
        saved = None if path is None or not path.exists() else Checkpoint(path)
        begin = 0 if saved is None else saved.header["position"]
        given = start_at(data, begin)
        if given.first is None:
            raise ValueError("data: expected at least one (xs, ys), got none. Is the iterator used up?")
        first = as_pair(given.first)
        for pair in tests or ():
            if structure(pair) != structure(first):
                raise ValueError(
                    f"validation: expected (xs, ys) structured like those of data, {structure(first)}, got "
                    f"{structure(pair)}. A tuple is one pair; give several as a list."
                )
        spec = trained_filter(model, learner.train)
        trained, fixed = eqx.partition(model, spec)
        if opt_state is None:
            opt_state = optimizer.init(trained)
        start = learner.init(model, state, jax.tree.map(lambda a: a[0], first[0]))
        run = _strong(_Run(Point(trained, opt_state, start), trained if patience else None))
        task = Task(learner, loss_fn, measured, optimizer, fixed, chunk)
        rows: list[list[float]] = []
        about: dict[str, Any] = {}
        if path is not None:
            options = {"update": repr(update), "chunk": repr(chunk), "carry_over": repr(carry_over)}
            options |= {"metrics": repr(columns), "patience": repr(patience), "validate_every": repr(validate_every)}
            options |= {"data": repr(data)} if isinstance(data, Batches) else {}
            named = {"optimizer": optimizer, "loss_fn": loss_fn, "metrics": measured}
            named |= {"state": state, "validation": tests}
            about = {"identity": identity(learner, model, **named), "options": options}
            about["data"] = {"first": digests(first), "last": {}}
        if saved is not None:
            saved.check(about["identity"], about["options"])
            about["data"] = saved.check_data(
                about["data"]["first"] if given.is_first else None,
                None if given.before is None else digests(as_pair(given.before)),
            )
            counts = {name: saved.header[name] for name in COUNTS}
            run, rows = saved.restore(run)._replace(**counts), saved.table.tolist()

        def table() -> np.ndarray:
            return np.array(rows[: run.position], float).reshape(-1, len(columns))

        def result(stopped: str) -> Fit:
            found = dict(zip(columns, table().T, strict=True))
            found["updates"] = found["updates"].astype(np.int64)
            model = eqx.combine(run.point.trained if math.isinf(run.best_loss) else run.best, fixed)
            return Fit(model, run.point.opt_state, run.point.carry, found, stopped)

        def keep(stopped: str | None = None) -> None:
            if path is not None:
                if run.pair is not None:
                    about["data"]["last"] = digests(run.pair)
                counts = {name: getattr(run, name) for name in COUNTS}
                try:
                    save(path, about | counts | {"stopped": stopped}, run._replace(pair=None), table())
                except OSError as error:
                    error.fit = result("not saved")  # type: ignore[attr-defined]
                    raise

        if saved is not None and saved.header["stopped"] == "patience":
            return result("patience")
        stopped, last = "end of data", time.monotonic()
        shapes = [a.shape[1:] for a in jax.tree.leaves(first)]
        total = len(data) if isinstance(data, Sequence) else None
        with tqdm(total=total, initial=begin, disable=not progress, unit="sequence") as bar:
            try:
                for pair in given.rest:
                    xs, ys = as_pair(pair)
                    if (got := [a.shape[1:] for a in jax.tree.leaves((xs, ys))]) != shapes:
                        raise ValueError(
                            f"data: expected one step of inputs and targets with the shapes of the first sequence, "
                            f"{shapes}, got {got}. Leave out a smaller last batch."
                        )
                    steps = jax.tree.leaves((xs, ys))[0].shape[0]
                    size = min(int(update), steps) if counted else 1 if update == "step" else steps
                    before = None if carry_over else start.state
                    point, means, finite = one_sequence(task, run.point, before, xs, ys, size)
                    _refuse_traced(means)
                    if not finite:
                        raise NonFiniteError(
                            f"sequence {run.position}: {explain_non_finite(task, run.point, before, xs, ys, size)}"
                        )
                    row = [run.updates + -(-steps // size), *(float(mean) for mean in means)]
                    best, best_loss, waited = run.best, run.best_loss, run.waited
                    if tests is not None:
                        row += [math.nan] * (len(columns) - len(row))
                        if (run.position + 1) % validate_every == 0:
                            loss, *others = validate(task, point.trained, state, tests)
                            if not math.isfinite(loss):
                                raise NonFiniteError(
                                    f"sequence {run.position}: the validation loss after it is {loss}, though the "
                                    "training is finite. Lower the learning rate, or look at the held-out data."
                                )
                            row[1 + len(means) :] = [loss, *others]
                            waited += 1
                            if patience and loss < best_loss:
                                best, best_loss, waited = point.trained, loss, 0
                    del rows[run.position :]
                    rows.append(row)
                    run = _Run(point, best, run.position + 1, int(row[0]), best_loss, waited, (xs, ys))
                    shown = dict(zip(columns, row, strict=True))
                    if not bar.disable:
                        measures = {name: f"{v:.4g}" for name, v in list(shown.items())[1:] if not math.isnan(v)}
                        bar.set_postfix(measures, refresh=False)
                    bar.update()
                    model_now = eqx.combine(point.trained, fixed)
                    seen = Progress(run.position, run.updates, model_now, point.opt_state, point.carry, shown)
                    if any([_wants_an_end(call(seen)) for call in calls]):  # noqa: C419, each is called
                        stopped = "callback"
                        break
                    if ending.has_begun:  # something took the exception of a Ctrl-C, and no other one is heard
                        raise KeyboardInterrupt
                    if patience is not None and run.waited >= patience:
                        stopped = "patience"
                        break
                    due = run.position % checkpoint_every == 0 if checkpoint_every else time.monotonic() - last > PAUSE
                    if due:
                        keep()
                        last = time.monotonic()
                keep(stopped)
                ending.has_begun = True
            except KeyboardInterrupt:
                ending.has_begun = True
                stopped = "interrupted"
                keep(stopped)
            except Exception as error:
                ending.has_begun = True
                if not hasattr(error, "fit"):  # which an error of `keep` has
                    keep()
                if isinstance(error, NonFiniteError):
                    error.fit = result("not finite")
                raise
        return result(stopped)


def _wants_an_end(returned: Any) -> bool:
    if returned is None:
        return False
    if isinstance(returned, bool | np.bool_) or (
        eqx.is_array(returned) and returned.dtype == bool and not returned.ndim
    ):
        return bool(returned)
    raise TypeError(f"callbacks: expected None or a truth value, got {returned!r}. True ends the training.")


def _refuse_traced(tree: PyTree[Any]) -> None:
    if is_traced(tree):
        raise TypeError(
            "fit: what it was given is traced by a transformation of JAX, but it is a loop outside of them and has no "
            "derivative. Call it as it is; the gradient of a sequence is `grads` of se.online_grad."
        )


def _strong(tree: PyTree[Any]) -> PyTree[Any]:
    """Arrays of JAX without weak types, which a file does not keep."""

    def one(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
        return jax.lax.convert_element_type(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf

    return jax.tree.map(one, tree)
