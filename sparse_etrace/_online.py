"""Online gradients of a stream, and a plain training loop."""

from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from tqdm import tqdm

from ._algorithm import Carry, Learner
from ._filter import trained_filter


def online_grad(
    learner: Learner,
    loss_fn: Callable[..., Any],
    model: Callable[..., Any],
    carry: Carry,
    xs: PyTree[Any],
    ys: PyTree[Any],
    chunk: int | None = None,
    has_aux: bool = False,
) -> tuple:
    """Gradient of `sum_t loss_fn(out_t, y_t)`, forward in time, with memory independent of the number of steps.

    Args:
        learner: the rule.
        loss_fn: `(out_t, y_t) -> scalar`.
        model: `state, out = model(state, x)`.
        carry: from `learner.init`, or from the call before; it goes on.
        xs: inputs, time first.
        ys: targets, time first.
        chunk: steps in a window, for which traces are touched once; None for 16, or fewer where hidden variables are
            so many that the Jacobians of a window would need more room than traces and inputs. The gradients are the
            same for each. For `BPTT` the steps that are differentiated through; None for all.
        has_aux: `loss_fn` returns `(loss, aux)`.

    Returns:
        `losses` `(T,)`, `grads` like the model with None where nothing is trained, and `carry`; with `has_aux` also the
        stacked `aux`.

    Raises:
        ValueError: `xs` and `ys` differ in length, there are no steps, or `chunk` is below 1.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> xs, ys = jnp.ones((5, 2)), jnp.zeros((5, 3))
        >>> learner = se.D_RTRL()
        >>> carry = learner.init(cell, cell.init_state(), xs[0])
        >>> losses, grads, carry = se.online_grad(learner, lambda o, y: jnp.sum((o - y) ** 2), cell, carry, xs, ys)
        >>> losses.shape
        (5,)
    """
    xs, ys = _read_stream(xs, ys)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: expected at least 1 step, got {chunk}.")
    losses, grads, carry, aux = _online_grad(learner, loss_fn, model, carry, xs, ys, chunk, has_aux)
    return (losses, grads, carry, aux) if has_aux else (losses, grads, carry)


def _read_stream(xs: PyTree[Any], ys: PyTree[Any]) -> tuple[PyTree[Array], PyTree[Array]]:
    xs, ys = jax.tree.map(jnp.asarray, (xs, ys))
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves((xs, ys))}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        raise ValueError(
            f"xs, ys: expected one common number of steps >= 1 on the first axis, got {sorted(map(str, lengths))}. "
            "Time comes first, then the batch."
        )
    return xs, ys


@eqx.filter_jit
def _online_grad(
    learner: Learner, loss_fn: Any, model: Any, carry: Carry, xs: Any, ys: Any, chunk: int | None, has_aux: bool
) -> tuple:
    steps = jax.tree.leaves((xs, ys))[0].shape[0]
    size = min(chunk or learner.window_steps(model, carry, xs) or steps, steps)
    count, rest = divmod(steps, size)

    def paired(out: Any, y: Any) -> tuple[Array, Any]:
        result = loss_fn(out, y)
        loss, aux = result if has_aux else (result, None)
        if isinstance(loss, tuple) or jnp.shape(loss) != ():
            got = "a tuple (has_aux=True takes a pair)" if isinstance(loss, tuple) else f"shape {jnp.shape(loss)}"
            raise ValueError(
                f"loss_fn: expected a scalar for each step, got {got}. Sum or average over batch and units."
            )
        return loss, aux

    def run(carry: Carry, part: tuple[Any, Any]) -> Any:
        result = learner.window(model, carry, part[0], part[1], paired)
        return result.carry, (result.losses, result.aux, result.grads)

    parts = []
    cut = jax.tree.map(lambda a: a[: count * size].reshape(count, size, *a.shape[1:]), (xs, ys))
    if count > 1:

        def add(before: tuple, part: tuple) -> Any:
            carry, total = before
            carry, (losses, aux, grads) = run(carry, part)
            return (carry, jax.tree.map(jnp.add, total, grads)), (losses, aux)

        shapes = jax.eval_shape(run, carry, jax.tree.map(lambda a: a[0], cut))[1][2]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (carry, grads), stacked = jax.lax.scan(add, (carry, zeros), cut)
        parts.append((*jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked), grads))
    else:
        carry, out = run(carry, jax.tree.map(lambda a: a[0], cut))
        parts.append(out)
    if rest:
        carry, out = run(carry, jax.tree.map(lambda a: a[count * size :], (xs, ys)))
        parts.append(out)
    losses, aux = jax.tree.map(lambda *p: jnp.concatenate(p), *[p[:2] for p in parts])
    grads = jax.tree.map(lambda first, *others: sum(others, first), *[p[2] for p in parts])
    return losses, grads, carry, aux


class Fit(NamedTuple):
    """What `fit` returns.

    Attributes:
        model: the trained model.
        opt_state: state of the optimizer.
        carry: where the last sequence ended.
        losses: mean loss per step of each sequence.
    """

    model: Any
    opt_state: Any
    carry: Carry
    losses: np.ndarray


def fit(
    learner: Learner,
    loss_fn: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    model: Callable[..., Any],
    data: Iterable[tuple[PyTree[Any], PyTree[Any]]],
    *,
    state: PyTree[Any],
    update: Any = "sequence",
    chunk: int | None = None,
    opt_state: Any = None,
    carry_over: bool = False,
    progress: bool = True,
    callback: Callable[[int, Any], None] | None = None,
) -> Fit:
    """Train a model on sequences, one after the other.

    Args:
        learner: the rule.
        loss_fn: `(out_t, y_t) -> scalar`.
        optimizer: from optax.
        model: `state, out = model(state, x)`.
        data: pairs `(xs, ys)`, time first; any iterable, so a generator streams.
        state: the initial state.
        update: `"sequence"`, `"step"`, or a number of steps after which parameters change.
        chunk: see `online_grad`.
        opt_state: to go on from an earlier call; None to start.
        carry_over: state and traces go on from one sequence to the next instead of starting again.
        progress: show a progress bar.
        callback: called after each sequence as `callback(updates so far in this call, model)`, to measure something
            on the way: see `gradient_alignment`.

    Returns:
        The trained model, the optimizer's state, the carry and the losses.

    Raises:
        ValueError: `update` is none of the above, there is no data, or a pair differs in length.

    Example:
        >>> import jax.numpy as jnp, optax, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> data = [(jnp.ones((5, 2)), jnp.zeros((5, 3)))] * 4
        >>> loss = lambda out, y: jnp.sum((out - y) ** 2)
        >>> result = se.fit(se.D_RTRL(), loss, optax.sgd(0.1), cell, data, state=cell.init_state(), progress=False)
        >>> bool(result.losses[-1] < result.losses[0])
        True
    """
    counted = isinstance(update, Integral) and not isinstance(update, bool)
    if not (update >= 1 if counted else update in ("sequence", "step")):
        raise ValueError(f"update: expected 'sequence', 'step' or a number of steps >= 1, got {update!r}.")
    if opt_state is None:
        opt_state = optimizer.init(eqx.filter(model, trained_filter(model, learner.train)))
    start, losses, updates = None, [], 0
    bar = tqdm(data, disable=not progress, unit="sequence")
    for xs, ys in bar:
        xs, ys = _read_stream(xs, ys)
        if start is None:
            start = carry = learner.init(model, state, jax.tree.map(lambda a: a[0], xs))
            first = [a.shape[1:] for a in jax.tree.leaves((xs, ys))]
        shapes = [a.shape[1:] for a in jax.tree.leaves((xs, ys))]
        if shapes != first:
            raise ValueError(
                f"data: expected one step of inputs and targets with the shapes of the first sequence, {first}, got "
                f"{shapes}. Leave out a smaller last batch."
            )
        steps = jax.tree.leaves((xs, ys))[0].shape[0]
        size = min(int(update), steps) if counted else 1 if update == "step" else steps
        begin = None if carry_over else start.state
        model, opt_state, carry, found = _fit_sequence(
            learner, loss_fn, optimizer, model, opt_state, carry, begin, xs, ys, size, chunk
        )
        losses.append(found)
        updates += -(-steps // size)
        if callback is not None:
            callback(updates, model)
        if not bar.disable:
            bar.set_postfix(loss=f"{float(found):.4g}")
    if start is None:
        raise ValueError("data: expected at least one (xs, ys), got none. Is the iterator used up?")
    return Fit(model, opt_state, carry, np.array(losses, float))


@eqx.filter_jit
def _fit_sequence(
    learner: Learner,
    loss_fn: Any,
    optimizer: Any,
    model: Any,
    opt_state: Any,
    carry: Carry,
    begin: Any,
    xs: Any,
    ys: Any,
    size: int,
    chunk: int | None,
) -> tuple:
    # A new sequence is a reset, not the first carry again: what is random goes on.
    carry = carry if begin is None else learner.reset(carry, True, begin)
    spec = trained_filter(model, learner.train)
    trained, fixed = eqx.partition(model, spec)

    def one(before: tuple, part: tuple[Any, Any]) -> Any:
        trained, opt_state, carry = before
        model = eqx.combine(trained, fixed)
        losses, grads, carry, _ = _online_grad(learner, loss_fn, model, carry, part[0], part[1], chunk, False)
        changes, opt_state = optimizer.update(grads, opt_state, trained)
        return (eqx.apply_updates(trained, changes), opt_state, carry), losses

    steps = jax.tree.leaves((xs, ys))[0].shape[0]
    count, rest = divmod(steps, size)
    cut = jax.tree.map(lambda a: a[: count * size].reshape(count, size, *a.shape[1:]), (xs, ys))
    after, losses = jax.lax.scan(one, (trained, opt_state, carry), cut)
    total = jnp.sum(losses)
    if rest:
        after, losses = one(after, jax.tree.map(lambda a: a[count * size :], (xs, ys)))
        total = total + jnp.sum(losses)
    trained, opt_state, carry = after
    return eqx.combine(trained, fixed), opt_state, carry, total / steps
