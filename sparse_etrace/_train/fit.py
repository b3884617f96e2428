"""A training loop: sequences in, a trained model out, stopped and resumed at will."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tqdm import tqdm

from .._learner import Carry, Learner
from .._model.origin import check_origin
from .._model.trained import leaf_names, struct, structure, trained_filter
from .._types import Loss, Metric, Model
from .batches import Batches, Pair, as_pair, start_at
from .checkpoint import Identity, identity
from .delayed import delayed, delays_of, updates_until
from .fit_file import Run, RunFile
from .fit_loop import Loop, refuse_traced
from .fit_options import Checkpoint, Update, Validation, refuse_unknown
from .fit_result import Callback, FitResult
from .lock import Ending, alone
from .parted import is_shared
from .updates import Point, Task


def fit(
    learner: Learner,
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    model: Model,
    data: Iterable[Pair] | Callable[[int], Iterable[Pair]],
    *,
    state: PyTree,
    carry: bool | Carry = False,
    update: int | str | Update = "sequence",
    metrics: Mapping[str, Metric] | None = None,
    validation: Pair | Sequence[Pair] | Validation | None = None,
    label_delay: int | Sequence[int] = 0,
    checkpoint: str | PathLike | Checkpoint | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    progress: bool = True,
    **unknown: object,
) -> FitResult:
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
        carry: False: each sequence starts from `state`; True: state and traces go on from one sequence to the next; a
            carry, that of an earlier result say: they go on from there.
        update: when parameters change: after each `"sequence"`, each `"step"`, or a number of steps; or an `Update`,
            which also takes the optimizer's state from an earlier result.
        metrics: by name, functions `(out_t, y_t) -> scalar`; their means over steps are recorded besides the loss, of
            the training and of the validation.
        validation: a tuple `(xs, ys)`, a list of several, or a `Validation`. The model runs over them from `state`,
            without learning.
        label_delay: after how many steps the target of a step is known: 3 for one that looks three steps ahead; several
            for several in one. A gradient waits for the last of them, so that no loss or metric of the training is of
            parameters that have seen what was still to come.
        checkpoint: a file, or a `Checkpoint`. If it exists, training goes on from it.
        callbacks: called after each sequence with a `Progress`; the first that returns True, or a text that says why,
            ends the training.
        progress: show a progress bar.

    Returns:
        The trained model, the optimizer's state, the carry, the metrics and why it ended.

    Raises:
        ValueError: an argument is out of range, there is no data, a pair differs in shape from the first one, `carry`
            is of another learner, model, connectivity or state, or the checkpoint is damaged, another run's, or of
            another learner, connectivity, model, optimizer, loss, state, data or option.
        TypeError: `learner`, `optimizer` or `carry` is none, a callback returns something else than None, a truth
            value or a text, the optimizer needs what `fit` does not know, or `fit` is called inside a transformation of
            JAX or with an argument that it does not have.
        NonFiniteError: a loss, a gradient, an updated parameter or a validation loss is NaN or infinite; its attribute
            `fit` is what was learned before.
        OSError: the checkpoint could not be written, when the disk is full say; it has the same attribute.

    Example:
        >>> import jax, jax.numpy as jnp, optax, sparse_etrace as se
        >>> cell = se.cells.LeakyRate.of(3, inputs=2, key=jax.random.key(0), decay=0.9)
        >>> batches = se.Batches(jnp.ones((5, 8, 2)), jnp.zeros((5, 8, 3)), size=4, key=jax.random.key(0), epochs=3)
        >>> loss = lambda out, y: jnp.mean((out - y) ** 2)
        >>> options = dict(state=cell.init_state(4), progress=False)
        >>> result = se.fit(se.D_RTRL(), loss, optax.sgd(0.1), cell, batches, **options)
        >>> result.stopped, len(result.losses), bool(result.losses[-1] < result.losses[0])
        ('end of data', 6, True)
    """
    refuse_unknown(unknown)
    _check(learner, optimizer, data, carry)
    update = update if isinstance(update, Update) else Update(update)
    if validation is not None and not isinstance(validation, Validation):
        validation = Validation(validation)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    held_out = [] if validation is None else validation.pairs
    columns = _columns(metrics or {}, validation is not None)
    calls = [callbacks] if callable(callbacks) else list(callbacks)
    refuse_traced((learner, model, state, carry, update.opt_state, held_out))
    is_second = is_shared(model) and jax.process_index() > 0
    with Ending() as ending, alone(None if checkpoint is None or is_second else checkpoint.file):
        file = RunFile(checkpoint, model)
        given = start_at(data, file.position)
        if given.first is None:
            raise ValueError("data: expected at least one (xs, ys), got none. Pass an iterator that is not used up.")
        first = as_pair(given.first)
        _check_held_out(held_out, first)
        trained, fixed = eqx.partition(model, trained_filter(model, learner.train))
        size, delay = update.size(jax.tree.leaves(first)[0].shape[0]), max(delays_of(label_delay))
        optimizer = delayed(optimizer, updates_until(delay, size))
        task = Task(learner, loss_fn, tuple((metrics or {}).items()), optimizer, fixed, update.chunk)
        opt_state = optimizer.init(trained) if update.opt_state is None else update.opt_state
        start = learner.init(model, state, jax.tree.map(lambda a: a[0], first[0]))
        now = start if isinstance(carry, bool) else _checked(carry, start, model)
        run = _strong(Run(Point(trained, opt_state, now), trained if validation and validation.patience else None))
        loop = Loop(
            task, update, validation, held_out, initial=state, start=start.state if carry is False else None,
            shapes=[leaf.shape[1:] for leaf in jax.tree.leaves(first)], size=size if delay > 1 else None,
            columns=columns, callbacks=calls, file=file, ending=ending, run=run, rows=[],
        )  # fmt: skip
        if checkpoint is not None:
            options = {"data": repr(data)} if isinstance(data, Batches) else {}
            file.belongs_to(_identity(loop, model, carry), options, given)
            loop.run, loop.rows = file.restored(run)
        if file.stopped == "patience":
            return loop.result("patience")
        total = len(data) if isinstance(data, Sequence) else None
        with tqdm(total=total, initial=file.position, disable=not progress, unit="sequence") as bar:
            return loop.train(given.rest, bar)


def _check(learner: object, optimizer: object, data: object, carry: object) -> None:
    if not isinstance(learner, Learner):
        raise TypeError(f"learner: expected a learner such as se.D_RTRL(), got {learner!r}.")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer: expected one of optax such as optax.adam(1e-3), got {optimizer!r}.")
    if isinstance(data, tuple):
        raise ValueError(
            "data: expected pairs (xs, ys), got a tuple, which is one pair. Pass [(xs, ys)] for one "
            "sequence, a list for several, or se.Batches(xs, ys, size) for batches."
        )
    if not isinstance(carry, bool | Carry):
        raise TypeError(
            f"carry: expected True, False or a carry, got {type(carry).__name__}. A result has one, .carry."
        )


def _columns(metrics: Iterable[str], is_validated: bool) -> list[str]:
    for name in metrics:
        if name in ("updates", "loss") or name.startswith("validation_"):
            raise ValueError(f"metrics: expected a name that no other column has, got {name!r}. Call it otherwise.")
    measures = ["loss", *metrics]
    return ["updates", *measures, *(f"validation_{name}" for name in measures if is_validated)]


def _check_held_out(pairs: list[Pair], first: Pair) -> None:
    for pair in pairs:
        if structure(pair) != structure(first):
            raise ValueError(
                f"validation: expected (xs, ys) structured like those of data, {structure(first)}, got "
                f"{structure(pair)}. A tuple is one pair: give several as a list."
            )


def _checked(carry: Carry, start: Carry, model: Model) -> Carry:
    """A carry from which training goes on, if it is one of this learner, model and state."""
    check_origin(carry.origin, model)
    got, expected = (_shapes(dataclasses.replace(c, origin=None)) for c in (carry, start))
    for name in expected | got:
        if got.get(name) != expected.get(name):
            raise ValueError(
                f"carry: expected one of this learner, model and state, got another: {name!r} is {got.get(name)}, here "
                f"{expected.get(name)}. Take the carry of a result of the same learner and batch size."
            )
    return carry


def _shapes(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree.leaves(struct(tree))
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in zip(leaf_names(tree), leaves, strict=True)}


def _identity(loop: Loop, model: Model, carry: bool | Carry) -> Identity:
    """By what its checkpoint tells this run from others, besides the data."""
    task, validation = loop.task, loop.validation
    others = {"optimizer": task.optimizer, "loss_fn": task.loss_fn}
    others |= {"metrics": dict(task.metrics), "update": loop.update}
    if len(task.metrics) > 1:  # of which the file keeps the order only
        others["columns"] = loop.columns
    others |= {"validation": validation and dataclasses.replace(validation, data=loop.held_out)}
    return identity(task.learner, model, **others, state=loop.initial, carry=carry)


def _strong(tree: PyTree) -> PyTree:
    """Arrays of JAX without weak types, which a file does not keep."""

    def one(leaf: PyTree) -> PyTree:
        leaf = jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
        return jax.lax.convert_element_type(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf

    return jax.tree.map(one, tree)
