"""Truncated backpropagation through time: every loss through the last few steps."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._arrays import blank
from .._model.batch_axes import axes_of, restarted
from .._model.origin import origin_of
from .._model.program import is_inexact, is_key
from .._model.types import Filter
from .._numbers import number, positive, whole
from .._rule.black_box import FromOutside, by_step, check_reach, in_reverse, joined, split
from .._rule.engine import Carry, Engine, Rule, Task, Window, cut, refuse_traces
from .._sums import narrowed, widened
from .._types import Loss, Model
from .learner import RuleLearner


class History(NamedTuple):
    """The last `steps - 1` states and inputs, oldest first.

    `count` says for each entry of the floating state through how many of them a derivative may go.
    """

    states: PyTree[Array]
    inputs: PyTree[Array]
    count: PyTree[Array]


class TBPTT(RuleLearner):
    """Truncated BPTT: each loss is differentiated through the last `steps` steps, or `every` of them together.

    `g_t = sum over r = t - steps + 1 .. t of  dL_t/dh_r  dh_r/dtheta` with `h_(t-steps)` constant, whatever the windows
    and calls of `online_grad`. `steps=1` is the same-step gradient, `steps` of at least the sequence's length BPTT. A
    step of the stream costs `steps` steps of the model and their backward pass; the carry holds `steps - 1` states
    and inputs. Where parameters change on the way, old steps are differentiated at the state that they had and at
    the current parameters.

    With `every=m` one backward pass serves m losses, and a step of the stream costs `(steps + m - 1) / m` of those. The
    first loss of a pass goes through `steps` steps, each one after it through one more, the last through
    `steps + m - 1`, which is BPTT(h; h') of the source with `h = steps + m - 1` and `h' = m`. Windows without overlap,
    with the state detached in between, are `steps=1`.

    Args:
        steps: how many steps each loss is differentiated through at least, its own included; at least 1.
        every: m, any number from 1 on; `chunk` of `online_grad` takes its place if it is above 1. A call of fewer steps
            is a pass of its own, and so is `step`, whose gradient goes through `steps` steps.
        train, allow_zero: see `D_RTRL`.

    Raises:
        TypeError: `steps` or `every` is no whole number.
        ValueError: `steps` or `every` is below 1.

    Example:
        >>> import sparse_etrace as se
        >>> se.TBPTT(steps=8, every=4).steps
        8

    Reference:
        Williams and Peng 1990, Neural Computation 2:490.
    """

    steps: int = number(whole, "steps")
    every: int = number(positive, "every", default=1)
    train: Filter = None
    allow_zero: tuple[str, ...] = ()

    def __check_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}. The step of the loss itself counts.")

    def rule(self) -> Rule:
        """The last states and inputs."""
        return Rule(FromOutside(partial(Sliding, self.steps, self.every), "truncated", again=_again))


def _again(carry: Carry, where: Array, zero: Callable[..., Array]) -> History:
    """No derivative goes back past a start."""
    return carry.traces._replace(count=restarted(carry.state, carry.traces.count, zero))


class Sliding(Engine):
    """Reverse mode through the last steps, for each loss or for several."""

    def __init__(self, steps: int, every: int, task: Task):
        self.steps, self.every, self.task = steps, every, task

    @property
    def windows_are_free(self) -> bool:
        """Where each loss has a pass of its own."""
        return self.every == 1

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int | None:
        """The losses of a pass."""
        return None if self.every == 1 else self.every

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check that every trained leaf reaches the output within `steps` steps."""
        check_reach(model, state, x, self.task.train, self.task.allow_zero, self.steps)
        state = jax.tree.map(jnp.asarray, state)
        origin = origin_of(model, *axes_of(model, state, x, self.task.train))
        return Carry(state, self._start(state, x), origin=origin)

    def _start(self, state: PyTree, x: PyTree) -> History:
        def room(leaf: ArrayLike | jax.ShapeDtypeStruct) -> Array:
            leaf = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
            shape = (self.steps - 1, *leaf.shape)
            return jax.random.split(jax.random.key(0), shape) if is_key(leaf) else blank(shape, leaf.dtype)

        count = jax.tree.map(lambda s: blank(s.shape, jnp.int32), eqx.filter(state, is_inexact))
        return History(jax.tree.map(room, state), jax.tree.map(room, x), count)

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model, whose output has a derivative through the steps before."""
        given, (trained, fixed) = (model, carry, x), split(model, self.task.train)
        carry, held = jax.lax.stop_gradient((carry, x))
        new, out = joined(trained, fixed)(self._remembered(model, carry, held), x)
        passed = jax.tree.map(lambda leaf: leaf[None], (carry.state, held))
        return cut(Carry(new, self._after(carry.traces, 1, *passed)), *given), out

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """A pass for all losses, or for each."""
        if self.every == 1:
            return Window(*by_step(self.step, self.task.train, model, carry, xs, ys, loss_fn))
        first = jax.tree.map(lambda leaf: leaf[0], xs)
        start = partial(self._remembered, carry=carry, x=first)

        def step(model: Model, state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree, PyTree, PyTree]:
            return *joined(model)(state, x), state

        losses, aux, grads, state, before = in_reverse(step, model, self.task.train, start, xs, ys, loss_fn)
        return Window(losses, aux, grads, Carry(state, self._after(carry.traces, len(losses), before, xs)))

    def _remembered(self, model: Model, carry: Carry, x: PyTree[Array]) -> PyTree[Array]:
        """The state of a carry, with its derivative through the steps before `x`."""
        refuse_traces(jax.eval_shape(self._start, carry.state, x), carry.traces)
        trained, fixed = split(model, self.task.train)
        summed = widened(trained)
        past, count = carry.traces, carry.traces.count
        old, now = (past.states, past.inputs), (carry.state, x)
        path, inputs = jax.tree.map(lambda old, now: jnp.concatenate([old, now[None]]), old, now)
        # Slots that were never filled stand for steps like this one, so that no model meets an input that never was.
        ages = jnp.arange(self.steps - 1, -1, -1)
        filled = jnp.max(jnp.stack([jnp.max(c, initial=0) for c in jax.tree.leaves(count)] or [jnp.zeros((), int)]))
        path, inputs = jax.tree.map(lambda leaf: _where(ages > filled, leaf[-1], leaf), (path, inputs))

        def again(state: PyTree[Array], now: tuple) -> tuple[PyTree[Array], None]:
            x, then, age = now
            new, _ = joined(narrowed(summed, trained), fixed)(state, x)

            def link(c: Array | None, then: Array, new: Array) -> Array:
                if c is None:
                    return then
                return jnp.where(c >= age, then + (new - jax.lax.stop_gradient(new)), then)

            return jax.tree.map(link, count, then, new, is_leaf=lambda c: c is None), None

        first, after = jax.tree.map(lambda leaf: leaf[0], path), jax.tree.map(lambda leaf: leaf[1:], path)
        return jax.lax.scan(again, first, (jax.tree.map(lambda leaf: leaf[:-1], inputs), after, ages[:-1]))[0]

    def _after(self, past: History, steps: int, states: PyTree[Array], inputs: PyTree[Array]) -> History:
        """The last of what there was and of so many steps more."""

        def last(old: Array, now: Array) -> Array:
            return jnp.concatenate([old, now])[steps:]

        count = jax.tree.map(lambda c: jnp.minimum(c + steps, self.steps - 1), past.count)
        return History(jax.tree.map(last, past.states, states), jax.tree.map(last, past.inputs, inputs), count)


def _where(chosen: Array, a: Array, b: Array) -> Array:
    """`jnp.where` by the first axis of `b`."""
    return jnp.where(chosen.reshape(-1, *[1] * (b.ndim - 1)), a, b)
