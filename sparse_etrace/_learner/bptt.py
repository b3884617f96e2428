"""Backpropagation through time, the exact and memory-hungry reference."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.trained import trained_filter
from .._model.types import Filter
from .._rule.black_box import FromOutside, check_reach, joined, split
from .._rule.engine import Carry, Engine, Rule, Task, Window
from .._sums import narrowed, widened
from .._types import Loss, Model
from .learner import RuleLearner


class BPTT(RuleLearner):
    """Reverse-mode differentiation through all steps of a window; exact, with memory that grows with the window.

    `online_grad(..., chunk=K)` differentiates through `K` steps and cuts the carry between windows; `chunk=None`
    through all of them. A loss over a `jax.lax.scan` of `step` differentiates through the whole scan.

    Args:
        train, allow_zero: see `D_RTRL`.

    Example:
        >>> import sparse_etrace as se
        >>> learner = se.BPTT()

    Reference:
        Werbos 1990, Proceedings of the IEEE 78:1550.
    """

    train: Filter = None
    allow_zero: tuple[str, ...] = ()

    def rule(self) -> Rule:
        """Nothing is kept."""
        return Rule(FromOutside(Backward, is_differentiable=True, grows=True))


class Backward(Engine):
    """Reverse mode through a window."""

    def __init__(self, task: Task):
        self.task = task

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check that every trained leaf reaches the output."""
        check_reach(model, state, x, self.task.train, self.task.allow_zero)
        return Carry(jax.tree.map(jnp.asarray, state), None)

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model, differentiable also with respect to `carry`."""
        state, out = joined(*split(model, self.task.train))(carry.state, x)
        return Carry(state, None), out

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Steps differentiated together."""
        trained, fixed = eqx.partition(model, trained_filter(model, self.task.train))

        @eqx.filter_grad(has_aux=True)
        def total(summed: PyTree[Array]) -> tuple[Array, tuple]:
            def one(state: PyTree[Array], now: tuple[PyTree, PyTree]) -> tuple[PyTree, tuple[Array, PyTree]]:
                x, y = now
                state, out = joined(narrowed(summed, trained), fixed)(state, x)
                return state, loss_fn(out, y)

            state, (losses, aux) = jax.lax.scan(one, carry.state, (xs, ys))
            return jnp.sum(losses), (losses, aux, state)

        grads, (losses, aux, state) = total(widened(trained))
        grads = narrowed(eqx.filter(grads, eqx.is_array), trained)
        return Window(losses, aux, grads, Carry(state, None))
