"""Online gradients of a stream."""

import dataclasses
from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._arrays import on_device
from .._learner import Carry, Learner
from .._model.constant import constant, held, is_traced
from .._model.origin import check_origin, scaled
from .._model.steady import Slice
from .._model.trained import trained_filter
from .._numbers import positive
from .._rule.engine import Engine
from .._sums import narrowed, widened, zeros
from .._types import Loss, Model
from .._varying import apart, freely

NO_DERIVATIVE = (
    "online_grad: something differentiates its results, which have no derivative. That of the summed losses is its "
    "second result, `grads`: add to it the gradient of what else is to be learned. What is only looked at can be read "
    "through jax.lax.stop_gradient. BPTT has derivatives of every order."
)


def online_grad(
    learner: Learner,
    loss_fn: Loss,
    model: Model,
    carry: Carry,
    xs: PyTree,
    ys: PyTree,
    chunk: SupportsIndex | None = None,
    has_aux: bool = False,
    donate: bool = False,
) -> tuple:
    """Gradient of `sum_t loss_fn(out_t, y_t)`, forward in time, with memory independent of the number of steps.

    Args:
        learner: the rule.
        loss_fn: `(out_t, y_t) -> scalar`.
        model: `state, out = model(state, x)`.
        carry: from `learner.init`, or from the call before; it goes on.
        xs: inputs, time first.
        ys: targets, time first.
        chunk: at most so many steps in a window, for which traces are touched once; None for about 16, or fewer where
            what a window says to the traces would need more room than these. Where windows can be of one length they
            are. The gradients are the same for each. For `BPTT` exactly the steps that are differentiated through;
            None for all.
        has_aux: `loss_fn` returns `(loss, aux)`.
        donate: the carry is changed in place, which saves a copy of it in each call; it must not be used again, nor, in
            the first call, the state that `init` was given, whose arrays it holds; these cannot be `xs` or `ys`.

    Returns:
        `losses` `(T,)`, `grads` like the model with None where nothing is trained, and `carry`; with `has_aux` also the
        stacked `aux`.

    Raises:
        TypeError: `chunk` is no whole number; or a loss is an integer, a boolean or complex.
        ValueError: `xs` and `ys` differ in length, there are no steps, or `chunk` is below 1; or `carry` is of another
            connectivity. Inside a `jit` of your own losses and gradients are NaN then.
        TypeError: a transformation of JAX differentiates the results by the model, the carry, `xs` or `ys`, which only
            `BPTT` allows: `grads` is the gradient.

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
    xs, ys = read_stream(xs, ys)
    learner.refuse_inputs(xs)
    chunk = None if chunk is None else positive("chunk", chunk)

    def like() -> tuple:
        return (None, eqx.filter(model, trained_filter(model, learner.train)), carry, None)[: 3 + has_aux]

    return freely(_online_grad, (learner, loss_fn, chunk, has_aux, donate), model, carry, xs, ys, like=like)


def _online_grad(options: tuple, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array]) -> tuple:
    learner, loss_fn, chunk, has_aux, donate = options
    factor, origin = check_origin(carry.origin, model), carry.origin
    is_constant = is_traced(inputs := (model, carry, xs, ys)) and not learner.is_differentiable
    model, carry, xs, ys = held(inputs) if is_constant else inputs
    if donate:
        given = learner, loss_fn, model, xs, ys, chunk, has_aux, origin
        results = apart(_in_place, given, dataclasses.replace(carry, origin=None))
    else:
        results = apart(gradient, learner, loss_fn, model, carry, xs, ys, chunk, has_aux)
    losses, grads, carry, aux = constant(results, inputs, NO_DERIVATIVE) if is_constant else results
    losses, grads = scaled(losses, factor), scaled(grads, factor)
    carry = dataclasses.replace(carry, origin=origin)
    return (losses, grads, carry, aux) if has_aux else (losses, grads, carry)


def read_stream(xs: PyTree, ys: PyTree) -> tuple[PyTree[Array], PyTree[Array]]:
    """Inputs and targets as arrays with one common first axis, time."""
    xs, ys = jax.tree.map(on_device, (xs, ys))
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves((xs, ys))}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        raise ValueError(
            f"xs, ys: expected one common number of steps >= 1 on the first axis, got {sorted(map(str, lengths))}. "
            "Time comes first, then the batch."
        )
    return xs, ys


def window_length(engine: Engine, model: Model, carry: Carry, xs: PyTree, steps: int, chunk: int | None) -> int:
    """Steps in a window: `chunk` or what the engine takes; a length near that where it parts the steps evenly, as a
    window of another length at the end would be compiled for itself, which takes longer than a window does."""
    own = engine.window_steps(model, carry, xs)
    size = min(chunk or own or steps, steps)
    if own is None or not engine.windows_are_free:
        return size
    most, least = size if chunk else size + size // 4, size - 2 * size // 5
    return next((k for k in range(most, least - 1, -1) if steps % k == 0), size)


@eqx.filter_jit(donate="all-except-first")
def _in_place(given: tuple, carry: Carry) -> tuple:
    learner, loss_fn, model, xs, ys, chunk, has_aux, origin = given
    carry = dataclasses.replace(carry, origin=origin)
    return gradient(learner, loss_fn, model, carry, xs, ys, chunk, has_aux)


@eqx.filter_jit
def gradient(
    learner: Learner,
    loss_fn: Loss,
    model: Model,
    carry: Carry,
    xs: PyTree,
    ys: PyTree,
    chunk: int | None,
    has_aux: bool,
) -> tuple:
    """`online_grad` of arrays that were checked; always with `aux` at the end."""
    steps = jax.tree.leaves((xs, ys))[0].shape[0]
    engine = learner.prepare(model, carry.state, jax.tree.map(lambda a: a[0], xs), carry)
    size = window_length(engine, model, carry, xs, steps, chunk)
    count, rest = divmod(steps, size)

    def paired(out: PyTree, y: PyTree) -> tuple[Array, PyTree]:
        result = loss_fn(out, y)
        loss, aux = result if has_aux else (result, None)
        if isinstance(loss, tuple) or jnp.shape(loss) != ():
            got = "a tuple (has_aux=True takes a pair)" if isinstance(loss, tuple) else f"shape {jnp.shape(loss)}"
            raise ValueError(f"loss_fn: expected a scalar for each step, got {got}. Sum or average batch and units.")
        dtype = jnp.result_type(loss)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"loss_fn: expected a floating number, got {dtype}, which has no derivative to go down. A count of "
                "right answers is no loss: return it beside one, with has_aux=True. Of a complex number take the real "
                "part or the modulus."
            )
        return loss, aux

    def run(carry: Carry, part: tuple[PyTree, PyTree]) -> tuple[Carry, tuple[Array, PyTree, PyTree]]:
        result = engine.window(model, carry, part[0], part[1], paired)
        return dataclasses.replace(result.carry, origin=carry.origin), (result.losses, result.aux, result.grads)

    parts = []
    cut = jax.tree.map(lambda a: a[: count * size].reshape(count, size, *a.shape[1:]), (xs, ys))
    if count > 1:
        in_place = engine.reads_in_place

        def add(before: tuple[Carry, PyTree], now: PyTree[Array]) -> tuple[tuple[Carry, PyTree], tuple[Array, PyTree]]:
            carry, total = before
            part = jax.tree.map(lambda a: Slice(a, now, size), (xs, ys)) if in_place else now
            carry, (losses, aux, grads) = run(carry, part)
            return (carry, jax.tree.map(jnp.add, total, widened(grads))), (losses, aux)

        like = eqx.filter(model, trained_filter(model, learner.train))
        (carry, grads), stacked = jax.lax.scan(add, (carry, zeros(like)), jnp.arange(count) * size if in_place else cut)
        parts.append((*jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:]), stacked), grads))
    else:
        carry, out = run(carry, jax.tree.map(lambda a: a[0], cut))
        parts.append(out)
        like = out[2]
    if rest:
        carry, out = run(carry, jax.tree.map(lambda a: a[count * size :], (xs, ys)))
        parts.append(out)
    losses, aux = jax.tree.map(lambda *p: jnp.concatenate(p), *[p[:2] for p in parts])
    total = jax.tree.map(lambda first, *others: sum(others, first), *(widened(p[2]) for p in parts))
    return losses, narrowed(total, like), carry, aux
