"""Full traces where they are small, factors elsewhere."""

import math

from jax.typing import DTypeLike

from .._model.call import Call
from .._model.grouping import Grouping
from .._model.types import Filter
from .._numbers import number, share
from .._op.param import ETraceGrad
from .._rule.engine import Rule
from .._rule.kept_traces import Traces
from .._rule.traces import per_unit_leaves, routes_of, slot_shapes
from .learner import RuleLearner


class Hybrid(RuleLearner):
    """D-RTRL or ES-D-RTRL, parameter by parameter, as their `ETraceGrad` says.

    `full` keeps one trace per synapse, `approx` factors, `adaptive` the smaller of the two.

    Args:
        decay: see `ES_D_RTRL`.
        train, trace_dtype, allow_zero: see `D_RTRL`.

    Raises:
        ValueError: `decay` is out of range.

    Example:
        >>> import sparse_etrace as se
        >>> learner = se.Hybrid(decay=0.9)

    Reference:
        Wang et al. 2024, bioRxiv 10.1101/2024.09.24.614728.
    """

    decay: float = number(share, "decay", default=0.9)
    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()

    def rule(self) -> Rule:
        """Traces or factors, and the model's own learning signal."""
        return Rule(Traces(smaller, self.decay, dtype=self.trace_dtype))


def smaller(grouping: Grouping, call: Call) -> list[bool]:
    """Which weight leaves of a call have one trace per slot, as its `ETraceGrad` says."""
    per_unit = per_unit_leaves(grouping, call)
    if call.call.grad is ETraceGrad.full or not (routes := routes_of(grouping, call)):
        return [True] * len(per_unit)
    if call.call.grad is ETraceGrad.approx:
        return per_unit
    op, _, x = call.template(grouping.program)
    y = call.y(grouping.program)
    full, factors = 0, 0 if x is None else math.prod(x.shape)
    for g, route in routes:
        count = len(grouping.groups[g].variables)
        full += count * sum(
            op.entries(s.shape) for s, u in zip(slot_shapes(grouping, call, g, route), per_unit, strict=True) if not u
        )
        factors += count * math.prod(y.shape)
    return [u or full <= factors for u in per_unit]
