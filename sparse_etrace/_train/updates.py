"""One sequence of training, compiled: its updates, and a validation."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from .._learner import Carry, Learner
from .._model.program import holds, is_inexact
from .._sums import widened
from .._types import Loss, Metric
from .._varying import freely
from .batches import Pair
from .online import gradient


class Task(NamedTuple):
    """What stays the same while a model is trained; `fixed` is the part of the model that is not.

    Metrics are pairs: a dictionary that goes through `jit` comes out in the order of its names.
    """

    learner: Learner
    loss_fn: Loss
    metrics: tuple[tuple[str, Metric], ...]
    optimizer: optax.GradientTransformation
    fixed: PyTree
    chunk: int | None


class Point(NamedTuple):
    """Where training is: what is trained, the optimizer's state, the carry."""

    trained: PyTree
    opt_state: optax.OptState
    carry: Carry


def all_finite(tree: PyTree) -> Array:
    """Whether all floating numbers of a pytree are finite; may be traced."""
    # Zero times a number is zero if that is finite only, and XLA sums faster than it asks each.
    checks = [jnp.sum(leaf * 0) == 0 for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)


def _marked(trained: PyTree, grads: PyTree) -> PyTree:
    """What is trained, NaN where its gradient is not finite, as it stays in later updates.

    A pass that writes weights asks this of a gradient on its way; `all_finite` of it would be one more pass.
    """
    return jax.tree.map(lambda p, g: jnp.where(g * 0 == 0, p, jnp.nan), trained, grads)


def starting(task: Task, point: Point, state: PyTree) -> Point:
    """A sequence that starts from `state`; None where it goes on. What is random goes on in any case."""
    return point if state is None else point._replace(carry=task.learner.reset(point.carry, True, state))


def _measure(task: Task, out: PyTree, y: PyTree) -> list[Array]:
    found = [metric(out, y) for _, metric in task.metrics]
    for (name, _), value in zip(task.metrics, found, strict=True):
        if value is None or jnp.shape(value) != ():
            got = "None" if value is None else f"shape {jnp.shape(value)}"
            raise ValueError(
                f"metrics: expected a scalar of {name!r} for each step, got {got}. Average over batch and units."
            )
    return found


def _objective(task: Task, carry: Carry, xs: PyTree, ys: PyTree) -> Callable[[PyTree], Array]:
    """The sum of the losses of these steps as a function of what is trained, with the rule's gradient as its own."""

    def run(trained: PyTree) -> tuple[Array, PyTree]:
        model = eqx.combine(trained, task.fixed)
        losses, grads, *_ = gradient(task.learner, task.loss_fn, model, carry, xs, ys, task.chunk, False)
        return jnp.sum(losses), grads

    @jax.custom_vjp
    def objective(trained: PyTree) -> Array:
        return run(trained)[0]

    objective.defvjp(run, lambda grads, ct: (jax.tree.map(lambda g: (ct * g).astype(g.dtype), grads),))
    return objective


def one_update(
    task: Task, point: Point, xs: PyTree, ys: PyTree, with_out: bool = False
) -> tuple[Point, list[PyTree], PyTree]:
    """An update: the point after it, the losses, outputs if asked for, and metrics of its steps, and the gradient."""

    def measured(out: PyTree, y: PyTree) -> tuple[PyTree, list[PyTree]]:
        return task.loss_fn(out, y), [out] * with_out + _measure(task, out, y)

    model = eqx.combine(point.trained, task.fixed)
    losses, grads, carry, aux = gradient(task.learner, measured, model, point.carry, xs, ys, task.chunk, True)
    of_loss = {"value": jnp.sum(losses), "grad": grads, "value_fn": _objective(task, point.carry, xs, ys)}
    optimizer = optax.with_extra_args_support(task.optimizer)
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax is not written for any other
            changes, opt_state = optimizer.update(grads, point.opt_state, point.trained, **of_loss)
    except TypeError as error:
        if "required keyword-only argument" not in str(error):
            raise
        raise TypeError(
            f"optimizer: expected one that asks for {', '.join(of_loss)} at most, got another ({error}). "
            "Take another, or write the loop with se.online_grad."
        ) from error
    return Point(eqx.apply_updates(point.trained, changes), opt_state, carry), [losses, *aux], grads


def _has_open_loop(task: Task, point: Point, *data: PyTree) -> bool:
    """Whether a step has a loop that may never end on NaN."""

    def step(trained: PyTree, state: PyTree, x: PyTree, y: PyTree) -> PyTree:
        _, out = task.learner.run(eqx.combine(trained, task.fixed), state, x)
        return task.loss_fn(out, y)

    first = jax.tree.map(lambda a: a[0], data)
    return holds(eqx.filter_make_jaxpr(step)(point.trained, point.carry.state, *first)[0].jaxpr, "while")


@eqx.filter_jit
def one_sequence(
    task: Task, point: Point, state: PyTree, xs: PyTree, ys: PyTree, size: int
) -> tuple[Point, list[Array], Array]:
    """All updates of a sequence, each after `size` steps: the point, means over steps, and whether all was finite."""

    def one(point: Point, part: Pair) -> tuple[Point, tuple[list[Array], Array]]:
        point, values, grads = one_update(task, point, *part)
        point = point._replace(trained=_marked(point.trained, grads))
        return point, ([jnp.sum(v) for v in widened(values)], all_finite(values[0]))

    def while_finite(point: Point, part: Pair) -> tuple[Point, tuple[list[Array], Array]]:
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, point, part)[1])
        return jax.lax.cond(all_finite(point.trained), one, lambda point, _: (point, none), point, part)

    learn = while_finite if _has_open_loop(task, point, xs, ys) else one
    steps = jax.tree.leaves((xs, ys))[0].shape[0]
    count, rest = divmod(steps, size)
    cut = jax.tree.map(lambda a: a[: count * size].reshape(count, size, *a.shape[1:]), (xs, ys))
    point, (sums, finite) = jax.lax.scan(learn, starting(task, point, state), cut)
    sums, finite = [jnp.sum(s) for s in sums], jnp.all(finite)
    if rest:
        point, (more, last) = learn(point, jax.tree.map(lambda a: a[count * size :], (xs, ys)))
        sums, finite = [a + b for a, b in zip(sums, more, strict=True)], finite & last
    return point, [total / steps for total in sums], finite & all_finite(point.trained)


def validate(task: Task, trained: PyTree, state: PyTree, pairs: Iterable[Pair]) -> list[float]:
    """Loss and metrics without learning: means over steps, then over pairs."""
    found = [freely(_run_through, task, trained, state, *pair) for pair in pairs]
    return np.mean(np.array(found, float), axis=0).tolist()


@eqx.filter_jit
def _run_through(task: Task, trained: PyTree, state: PyTree, xs: PyTree, ys: PyTree) -> list[Array]:
    model = eqx.combine(trained, task.fixed)

    def one(state: PyTree, now: Pair) -> tuple[PyTree, list[PyTree]]:
        state, out = task.learner.run(model, state, now[0])
        return state, [task.loss_fn(out, now[1]), *_measure(task, out, now[1])]

    return [jnp.mean(widened(values)) for values in jax.lax.scan(one, jax.tree.map(jnp.asarray, state), (xs, ys))[1]]
