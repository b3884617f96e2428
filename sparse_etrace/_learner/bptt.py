"""Backpropagation through time, the exact and memory-hungry reference."""

from .._model.types import Filter
from .._rule.black_box import Backward, FromOutside
from .._rule.engine import Rule
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
