"""Online training through time: a filtered input is the only trace."""

from jax.typing import DTypeLike

from .._model.types import Filter
from .._numbers import number, share
from .._rule.engine import Rule
from .._rule.kept_traces import Traces
from .._rule.traces import per_unit_leaves
from .learner import RuleLearner


class OTTT(RuleLearner):
    """Online training through time: one trace per presynaptic unit, and the learning signal of the same step.

    `xhat <- decay xhat + x`, then `dv_s += xhat[j] n[i]`, with `n` the derivative of the step's loss by the outputs of
    ops. That is D-RTRL where every unit is linear with the leak `decay`. Biases and elementwise parameters keep their
    exact trace, and so does an op whose input is an index.

    Args:
        decay: the leak of the units per step, at least 0 and below 1.
        train, trace_dtype, allow_zero: see `D_RTRL`.

    Raises:
        ValueError: `decay` is out of range.

    Example:
        >>> import sparse_etrace as se
        >>> se.OTTT(decay=0.5).decay
        0.5

    Reference:
        Xiao et al. 2022, Advances in Neural Information Processing Systems 35 (arXiv 2210.04195).
    """

    decay: float = number(share, "decay")
    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()

    def rule(self) -> Rule:
        """Filtered inputs, and the model's own learning signal."""
        return Rule(Traces(per_unit_leaves, self.decay, only_input=True, dtype=self.trace_dtype))
