"""E-prop: eligibility traces of D-RTRL, taught by a feedback of the output errors onto one hidden leaf."""

from collections.abc import Callable

from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from .._model.types import Filter
from .._numbers import number, real
from .._rule.engine import Rule
from .._rule.kept_traces import traces_or_factors
from .._rule.signal import Signal
from .learner import RuleLearner


class EProp(RuleLearner):
    """E-prop: traces of D-RTRL, and a broadcast of the output errors in place of the learning signal of one leaf.

    With `z` the new value of the leaf, `e_s` its trace `dz/dv`, and the matrix `B`, `dv_s += l[i] ebar_s`,
    `l = B dL_t/dout_t`, `ebar_s <- kappa ebar_s + (1 - kappa) e_s`. Each way from `z` to `out` is cut; others, and what
    follows the leaf (a readout), keep the derivative of the model. Symmetric feedback is that derivative itself,
    `l = dL_t/dz_t`, and the filter then `ebar_s <- kappa ebar_s + e_s`, as the readout's own gain is in `l`: it is
    exact for a readout `y_t = kappa y_{t-1} + g W z_t`. The published trace of a spiking neuron lets no derivative
    through its reset: `reset_gradient=False` of `cells.LIF` and `cells.ALIF`.

    The regulariser adds `rate_strength sum_i (r_i - rate_target)^2 / 2` to the loss of a sequence, with `r_i` the mean
    of the leaf at each unit over the steps since `init` or `reset`, for each batch element:
    `dv_s += rate_strength (r_i - rate_target) / T sum_t e_s`. Its gradient is emitted step by step so that the sum at
    any time is the one for the sequence so far. A gradient of `step` holds its share whatever the loss.

    Args:
        leaf: name of a leaf of the state; `out` must depend on its new value within the step.
        feedback: `"symmetric"`; `"random"`; an array of shape `(*out, *hidden)` without batch axes; or a function from
            the model to one. A leaf of the model that this function uses and nothing else is trained: `B` gets
            `sum_t dL_t/dout_t z_t`, the gradient of a readout of the leaf, transposed (with `kappa`, of the filtered
            leaf). Other than symmetric feedback takes one floating array as `out`.
        key: draws random feedback, normal with variance 1 / units, the same at every call.
        kappa: memory of the readout per step, from 0 to 1, where the model filters what it reads from the leaf; None
            for a readout without memory. Not for a model whose leaf is such a filter itself.
        rate_strength, rate_target: of the regulariser, the target per step in the units of the leaf.
        rate_leaf: the leaf whose rate is regularised; None for `leaf`.
        train, trace_dtype, allow_zero: see `D_RTRL`.
        factor_decay: None for a trace of each synapse; otherwise traces are factorised as those of `ES_D_RTRL`, with
            this decay: memory of the order of units.

    Raises:
        ValueError: `feedback`, `key`, `kappa`, `factor_decay` or a rate is out of range, or the regulariser is to go
            with factors; at `init`, a leaf has another name or no way
            to `out`, or `feedback` another shape.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LIF(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> learner = se.EProp('z', feedback='random', key=jax.random.key(0), kappa=0.9)
        >>> carry = learner.init(cell, cell.init_state(), jnp.ones(2))
        >>> carry, out = learner.step(cell, carry, jnp.ones(2))

    Reference:
        Bellec et al. 2020, Nature Communications 11:3625.
    """

    leaf: str  # type: ignore[misc]
    feedback: str | Array | Callable[[PyTree], Array] = "symmetric"
    key: Array | None = None
    kappa: float | None = number(real, "kappa", optional=True, default=None)
    rate_strength: float = number(real, "rate_strength", default=0.0)
    rate_target: float = number(real, "rate_target", default=0.0)
    rate_leaf: str | None = None
    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()
    factor_decay: float | None = number(real, "factor_decay", optional=True, default=None)

    def __check_init__(self) -> None:
        self.rule()
        if self.rate_strength and self.factor_decay is not None:
            raise ValueError(
                f"factor_decay: expected None with rate_strength={self.rate_strength}, got {self.factor_decay}. The "
                "regulariser needs the sum of each synapse's trace over all steps, which factors cannot hold."
            )

    def rule(self) -> Rule:
        """Traces or factors, and feedback onto the leaf."""
        rate = (self.rate_leaf, self.rate_strength, self.rate_target)
        signal = Signal(self.leaf, self.feedback, self.key, self.kappa, *rate)
        return Rule(traces_or_factors(self.factor_decay, self.trace_dtype), signal)
