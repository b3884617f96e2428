"""Traces of synapses as a storage: one for each synapse or factors, leaf by leaf."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax.typing import DTypeLike
from jaxtyping import Array

from .._model.call import Call
from .._model.grouping import Grouping
from .._model.step import Terms
from .._model.types import Gradients, Like, Weights
from .engine import Carry
from .trace_engine import ByCall, diagonal
from .traces import CallTrace, CallTraces, Factors, can_filter, init_trace, per_unit_leaves, recalled, traces_after


def every_synapse(grouping: Grouping, call: Call) -> list[bool]:
    """A trace for each weight of a call."""
    return [True] * len(call.weight_atoms)


@dataclass(frozen=True)
class Traces(ByCall):
    """Traces of synapses.

    Attributes:
        full: says for each weight leaf of an op call whether it has one trace per slot rather than factors.
        decay: share of the old factor where traces are factorised.
        only_input: whether the input is the only factor.
        dtype: type in which traces are stored; None for that of the weights.
        through_ops: whether full traces are carried through ops of fixed weights.
    """

    full: Callable[[Grouping, Call], list[bool]] = every_synapse
    decay: float = 0.0
    only_input: bool = False
    dtype: DTypeLike | None = None
    through_ops: bool = False

    @property
    def has_past(self) -> bool:  # type: ignore[override]
        """Not of the input alone."""
        return not self.only_input

    def _full(self, grouping: Grouping, call: Call) -> list[bool]:
        """As `full`, and True throughout where the input is an index, which has no factor."""
        full = self.full(grouping, call)
        return full if all(full) or can_filter(grouping, call) else [True] * len(full)

    def begin(self, grouping: Grouping, call: Call, counts: Sequence[int]) -> CallTrace:
        """One trace for each synapse or factors, leaf by leaf."""
        return init_trace(grouping, call, self._full(grouping, call), self.dtype, counts, self.only_input)

    def advance(
        self, grouping: Grouping, weights: Weights, traces: CallTraces, terms: Terms, only: str | None
    ) -> tuple[CallTraces, Gradients]:
        """Each trace is touched once in a window."""
        return traces_after(grouping, weights, traces, terms, self.decay, only)

    def recalled(self, grouping: Grouping, weights: Weights, traces: CallTraces, m: list[Array]) -> Gradients:
        """Traces, and what factors stand for."""
        return recalled(grouping, weights, traces, m, self.decay)

    def word(self, grouping: Grouping, call: Call, leaf: int) -> str:
        """Exact, diagonal or factorised."""
        return diagonal(grouping, call) if self._full(grouping, call)[leaf] else "factorised"

    def kept(self, trace: CallTrace, leaf: int) -> list[Like]:
        """Traces of the leaf, or the factors that stand for them."""
        full = [jax.tree.leaves(t, is_leaf=lambda e: e is None)[leaf] for t in trace.full]
        if all(e is None for e in full) and trace.factors is not None:
            return [trace.factors.x, *trace.factors.f]
        return [e for e in full if e is not None]

    def entries(self, trace: CallTrace, into: int) -> int:
        """Of full traces."""
        return sum(leaf.size for leaf in jax.tree.leaves(trace.full[into]))

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> CallTraces:
        """Traces of the batch elements of the groups that they lead into."""

        def one(trace: CallTrace, into: Sequence[int | None]) -> CallTrace:
            full = tuple(jax.tree.map(lambda e, k=k: zero(e, k, 1), part) for part, k in zip(trace.full, into))
            old, windows = trace.factors, jax.tree.map(zero, trace.windows)
            if old is None:
                return CallTrace(full, None, windows)
            f = tuple(zero(part, k, 1) for part, k in zip(old.f, into))
            return CallTrace(full, Factors(zero(old.x, into[0]), f, zero(old.steps, into[0])), windows)

        alike = [(None,) * len(trace.full) for trace in carry.traces.values()]
        into = alike if carry.origin is None else carry.origin.into
        return {number: one(trace, k) for (number, trace), k in zip(carry.traces.items(), into, strict=True)}


def traces_or_factors(factor_decay: float | None, dtype: DTypeLike | None) -> Traces:
    """One trace for each synapse, or factors that decay by `factor_decay` where it is given.

    Raises:
        ValueError: `factor_decay` is out of range.
    """
    if factor_decay is None:
        return Traces(dtype=dtype)
    if not 0 <= factor_decay < 1:
        raise ValueError(
            f"factor_decay: expected 0 <= factor_decay < 1, got {factor_decay}. It is the share of the old factor; "
            "None keeps one trace for each synapse."
        )
    return Traces(per_unit_leaves, factor_decay, dtype=dtype)
