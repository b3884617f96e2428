"""Diagonal real-time recurrent learning: one trace per synapse and hidden variable."""

import equinox as eqx
from jax.typing import DTypeLike

from .._model.types import Filter
from .._rule.engine import Rule
from .._rule.kept_traces import Traces
from .learner import RuleLearner


class D_RTRL(RuleLearner):
    """Diagonal RTRL: exact through each unit's own memory, blind to memory that passes through ops.

    `dv_s += sum_a m[i,a] eps_s[a] + n[i] x[j]`, then `eps_s[a] <- sum_b D[i,a,b] eps_s[b] + F[i,a] x[j]`, for a synapse
    `s = (j -> i)`, with `m` and `n` the derivatives of the loss by old hidden state and by the outputs of ops.

    Args:
        train: an equinox filter specification of what is trained; None for all of `trainable(model)`.
        trace_dtype: type in which traces are stored; None for that of the weights.
        allow_zero: names of leaves that may stay without gradient.
        through_ops: whether the trace of an op is carried through ops of fixed weights after it (`Fixed`, or left out
            by `train`), which needs that these act on other axes: with `u = A (x W)`, `W` on features and `A` on nodes,
            the trace of `W` reads `A x`. Otherwise what such an op sends has the gradient of its own step only.

    Raises:
        NotImplementedError: at `init`, an op after another acts on the same axes, so that its trace would need more
            than one entry for each weight and unit.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> learner = se.D_RTRL()
        >>> carry = learner.init(cell, cell.init_state(), jnp.ones(2))
        >>> carry, out = learner.step(cell, carry, jnp.ones(2))

    Reference:
        Wang et al. 2024, bioRxiv 10.1101/2024.09.24.614728; Zucchet et al. 2023, NeurIPS.
    """

    train: Filter = None
    trace_dtype: DTypeLike | None = None
    allow_zero: tuple[str, ...] = ()
    through_ops: bool = eqx.field(converter=bool, default=False)

    def rule(self) -> Rule:
        """A trace for each synapse, and the model's own learning signal."""
        return Rule(Traces(dtype=self.trace_dtype, through_ops=self.through_ops))
