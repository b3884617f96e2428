"""A rule of one's own by what it does with the trace of one op call."""

import abc

from jaxtyping import Array, PyTree

from .._op.contract import ETraceOp
from .._rule.engine import Rule
from .._rule.own_traces import OwnTraces, TraceTerms
from .learner import RuleLearner


class TraceLearner(RuleLearner):
    """A rule that keeps a trace of each op call; the abstract base of rules of one's own.

    A subclass has the fields `train` and `allow_zero` as `D_RTRL`, and says with `trace_like` and `update` what is kept
    and what a step makes of it. The library finds hidden groups and differentiates the step; ops are asked by their
    contract, `xy_to_dw` and `yw_to_w`, so that the rule takes all of them. It goes step by step through a window.

    Example:
        >>> from typing import Any
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> class SameStep(se.TraceLearner):
        ...     train: object = None
        ...     allow_zero: tuple[str, ...] = ()
        ...     def trace_like(self, op, v, terms):
        ...         return ()
        ...     def update(self, op, v, trace, terms):
        ...         return trace, op.total_dw(terms.x, terms.n, v)
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> carry = SameStep().init(cell, cell.init_state(), jnp.ones(2))

    Reference:
        Marschall et al. 2020, Journal of Machine Learning Research 21:135.
    """

    @property
    def gradient(self) -> str:
        """What `explain` calls the gradient: one of its words."""
        return "truncated"

    @abc.abstractmethod
    def trace_like(self, op: ETraceOp, v: PyTree[Array], terms: TraceTerms) -> PyTree[Array]:
        """Anything in the shapes and types of a trace, which starts from zero.

        Args:
            op: of the call.
            v: its weights on the synapses; of an elementwise parameter its value at each unit.
            terms: what a step says. No numbers are known, only shapes and types.

        Returns:
            A pytree of arrays, batch axes in front, so that batch elements can start again.
        """

    @abc.abstractmethod
    def update(
        self, op: ETraceOp, v: PyTree[Array], trace: PyTree[Array], terms: TraceTerms
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """Take a trace through a step.

        Args:
            op: of the call.
            v: its weights on the synapses.
            trace: as the step before left it.
            terms: what the step says.

        Returns:
            The trace after the step, and the gradient of `v`, without batch axes.
        """

    def rule(self) -> Rule:
        """What `trace_like` and `update` say."""
        return Rule(OwnTraces(self, self.gradient))
