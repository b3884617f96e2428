"""Random feedback local online learning, for rate units."""

from jax.typing import DTypeLike
from jaxtyping import Array

from .._model.types import Filter
from .._numbers import number, real
from .._rule.engine import Rule
from .._rule.kept_traces import traces_or_factors
from .._rule.signal import Signal
from .learner import RuleLearner


class RFLO(RuleLearner):
    """Random-feedback local online learning: traces of rate units, taught through a fixed matrix.

    `dv_s += l[i] p_s`, `l = B dL_t/dout_t`, with the trace `p_s = dh[i]/dv_s` of `h_t = a h_{t-1} + (1 - a) f(u_t)`,
    `p_s <- a p_s + (1 - a) f'(u[i]) x[j]`. Each way from the new `h` to `out` is cut; readouts keep their own gradient.

    Args:
        leaf: name of a leaf of the state; `out` must depend on its new value within the step.
        feedback: `"random"`, or an array of shape `(*out, *hidden)` without batch axes.
        key: draws random feedback, normal with variance 1 / units, the same at every call.
        train, trace_dtype, allow_zero: see `D_RTRL`.
        factor_decay: None for a trace of each synapse; otherwise traces are factorised as those of `ES_D_RTRL`, with
            this decay: memory of the order of units.

    Raises:
        ValueError: `feedback` is something else, `key` is missing, or `factor_decay` is out of range; at `init`, as
            `EProp`.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> learner = se.RFLO('state', key=jax.random.key(0))
        >>> carry = learner.init(cell, cell.init_state(), jnp.ones(2))
        >>> carry, out = learner.step(cell, carry, jnp.ones(2))

    Reference:
        Murray 2019, eLife 8:e43299.
    """

    leaf: str  # type: ignore[misc]
    feedback: str | Array = "random"
    key: Array | None = None
    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()
    factor_decay: float | None = number(real, "factor_decay", optional=True, default=None)

    def __check_init__(self) -> None:
        if self.feedback != "random" if isinstance(self.feedback, str) else not hasattr(self.feedback, "shape"):
            raise ValueError(
                f"feedback: expected 'random' or an array of shape (*out, *hidden), got {self.feedback!r}. Feedback "
                "that is symmetric or learned is EProp's."
            )
        self.rule()

    def rule(self) -> Rule:
        """Traces or factors, and feedback onto the leaf."""
        return Rule(traces_or_factors(self.factor_decay, self.trace_dtype), Signal(self.leaf, self.feedback, self.key))
