"""Online spatio-temporal learning: temporal traces within a layer, spatial gradients within a step."""

from typing import Any

from jaxtyping import PyTree

from .._analysis import Analysis
from .._feedback import Teacher
from .._late import hold_late_reads, updates_of
from .._routes import Call
from .._step import Step
from .base import TraceLearner


class OSTL(TraceLearner):
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

    train: Any = None
    trace_dtype: Any = None
    allow_zero: tuple[str, ...] = ()

    def analyse(self, model: Any, state: PyTree[Any], x: PyTree[Any]) -> Analysis:
        """The analysis, with late reads held."""
        analysis = Analysis(model, state, x, self.train)
        hold_late_reads(analysis)
        return analysis

    def step_of(self, analysis: Analysis, teacher: Teacher) -> Step:
        """The step that tells late reads apart."""
        return Step(analysis, teacher.tap, updates_of(analysis))

    def is_full(self, analysis: Analysis, call: Call) -> list[bool]:
        return [True] * len(call.weight_atoms)
