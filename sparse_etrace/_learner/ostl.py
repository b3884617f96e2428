"""Online spatio-temporal learning: temporal traces within a layer, spatial gradients within a step."""

from jax.typing import DTypeLike

from .._model.types import Filter
from .._rule.engine import Rule
from .._rule.kept_traces import Traces
from .._rule.signal import Signal
from .learner import RuleLearner


class OSTL(RuleLearner):
    """Online spatio-temporal learning: D-RTRL whose spatial gradient passes between layers within one step only.

    `dv_s += sum_a l[i,a] eps_s[a]` with `eps_s` the trace `dh_t/dv_s` of D-RTRL and `l` the derivative of the loss by
    `h_t` through the layers above, in this step. An op that acts on hidden state reads what this step has made of
    another layer live, and what the step before has left of it as a constant. Without such late reads it is D-RTRL.

    Args:
        train, trace_dtype, allow_zero: see `D_RTRL`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LIF(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> learner = se.OSTL()
        >>> carry = learner.init(cell, cell.init_state(), jnp.ones(2))
        >>> carry, out = learner.step(cell, carry, jnp.ones(2))

    Reference:
        Bohnstingl et al. 2022, IEEE Transactions on Neural Networks and Learning Systems (arXiv 2007.12723).
    """

    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()

    def rule(self) -> Rule:
        """A trace for each synapse, and a learning signal that holds late reads."""
        return Rule(Traces(dtype=self.trace_dtype), Signal(is_late_held=True))
