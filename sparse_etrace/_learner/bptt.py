"""Backpropagation through time, the exact and memory-hungry reference."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.types import Filter
from .._rule.black_box import FromOutside, alone, check_reach, in_reverse, joined, split
from .._rule.engine import Carry, Engine, Rule, Task, Window
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
        losses, aux, grads, state, _ = in_reverse(alone, model, self.task.train, lambda _: carry.state, xs, ys, loss_fn)
        return Window(losses, aux, grads, Carry(state, None))
