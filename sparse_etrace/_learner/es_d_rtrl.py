"""D-RTRL with traces factorised into a presynaptic and a postsynaptic part."""

from jax.typing import DTypeLike

from .._model.types import Filter
from .._numbers import number, share
from .._rule.engine import Rule
from .._rule.kept_traces import Traces
from .._rule.traces import per_unit_leaves
from .learner import RuleLearner


class ES_D_RTRL(RuleLearner):
    """D-RTRL with factorised traces, memory of the order of units instead of synapses.

    `xhat <- alpha xhat + x`; `dv_s += xhat[j] (alpha sum_a m[i,a] fhat[i,a] + (1 - alpha) n[i]) / (1 - alpha^(t+1))`;
    `fhat[i,a] <- alpha sum_b D[i,a,b] fhat[i,b] + (1 - alpha) F[i,a]`. Biases and elementwise parameters keep their
    exact trace.

    Args:
        decay: `alpha`, at least 0 and below 1.
        train, trace_dtype, allow_zero: see `D_RTRL`.

    Raises:
        ValueError: `decay` is out of range.

    Example:
        >>> import sparse_etrace as se
        >>> se.ES_D_RTRL(decay=0.95).decay
        0.95

    Reference:
        Wang et al. 2024, bioRxiv 10.1101/2024.09.24.614728 (pp-prop).
    """

    decay: float = number(share, "decay", default=0.9)
    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()

    def rule(self) -> Rule:
        """Factors, and the model's own learning signal."""
        return Rule(Traces(per_unit_leaves, self.decay, dtype=self.trace_dtype))
