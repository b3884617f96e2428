"""Three-factor learning: traces times one number for all, the loss."""

from jax.typing import DTypeLike

from .._model.types import Filter
from .._numbers import number, real
from .._rule.engine import Rule
from .._rule.kept_traces import traces_or_factors
from .._rule.signal import LOSS, Signal
from .learner import RuleLearner


class ThreeFactor(RuleLearner):
    """Three-factor rule: the loss itself, minus a reward, is the learning signal of every unit of one leaf.

    `dv_s += L_t ebar_s`, with `e_s` the trace `dz/dv` of the leaf and `ebar_s <- kappa ebar_s + (1 - kappa) e_s`. Each
    way from the new `z` to `out` is cut; what follows the leaf keeps the gradient of `L_t`. The gradient needs the
    value of the loss: use `online_grad` or `fit`; that of `step` is refused.

    Args:
        leaf: name of a leaf of the state; `out` must depend on its new value within the step (return it as a part of
            `out` where the reward depends on it in no smooth way).
        kappa: decay of the filter on the trace, from 0 to 1; None for no filter.
        train, trace_dtype, allow_zero: see `D_RTRL`.
        factor_decay: None for a trace of each synapse; otherwise traces are factorised as those of `ES_D_RTRL`, with
            this decay: memory of the order of units.

    Raises:
        ValueError: `kappa` or `factor_decay` is out of range; at `init`, a leaf has another name or no way to `out`.
        NotImplementedError: the gradient of `step` is taken.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LIF(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> learner = se.ThreeFactor('z', kappa=0.9)
        >>> carry, xs = learner.init(cell, cell.init_state(), jnp.ones(2)), jnp.ones((5, 2))
        >>> minus_reward = lambda out, y: -jnp.sum(out)
        >>> losses, grads, carry = se.online_grad(learner, minus_reward, cell, carry, xs, xs)

    Reference:
        Fremaux and Gerstner 2016, Frontiers in Neural Circuits 9:85.
    """

    leaf: str  # type: ignore[misc]
    kappa: float | None = number(real, "kappa", optional=True, default=None)
    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()
    factor_decay: float | None = number(real, "factor_decay", optional=True, default=None)

    def __check_init__(self) -> None:
        self.rule()

    def rule(self) -> Rule:
        """Traces or factors, and the loss as the learning signal of the leaf."""
        return Rule(traces_or_factors(self.factor_decay, self.trace_dtype), Signal(self.leaf, LOSS, None, self.kappa))
