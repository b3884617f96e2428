"""Traces of a rule of one's own as a storage: it says what it keeps of an op call, and what one step makes of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree

from .._arrays import blank
from .._model.call import Call
from .._model.grouping import Grouping
from .._model.groups import Route
from .._model.program import cast
from .._model.steady import stacked
from .._model.step import Terms
from .._model.types import Gradients, Input, Like, Weights
from .._op.contract import ETraceOp
from .._op.delays import each, shape_of
from .._sums import narrowed, sum_steps, widened, zeros
from .engine import Carry
from .trace_engine import ByCall
from .traces import routes_of


class TraceTerms(NamedTuple):
    """What one step says to the trace of an op call.

    All is on the outputs of the op, batch axes in front; of an elementwise parameter on the units that it acts on.

    Attributes:
        x: input of the op; None for an elementwise parameter.
        n: derivative of the loss by the output `y` of the op, through everything later in the step.
        m: derivative of the loss by the old hidden variables of the unit that an output drives.
        D: derivative of the new by the old hidden variables.
        F: derivative of the new hidden variables by `y`.
    """

    x: Input
    n: Inexact[Array, "*y"]
    m: Inexact[Array, "vars *y"]
    D: Inexact[Array, "vars vars *y"]
    F: Inexact[Array, "vars *y"]


Updated = tuple[PyTree[Array], PyTree[Array]]
"""The next trace, and the gradient that this one gives."""


@runtime_checkable
class OwnRule(Protocol):
    """A rule by what it does with the trace of one op call."""

    def trace_like(self, op: ETraceOp, v: PyTree[Array], terms: TraceTerms) -> PyTree[Array]:
        """Anything in the shapes and types of a trace."""

    def update(self, op: ETraceOp, v: PyTree[Array], trace: PyTree[Array], terms: TraceTerms) -> Updated:
        """The trace after a step, and the step's gradient of `v`."""


@dataclass(frozen=True)
class OwnTraces(ByCall):
    """What a rule of one's own keeps: for each group that an op call leads into whatever it says.

    Attributes:
        own: the rule.
        named: what `explain` calls it.
    """

    own: OwnRule
    named: str

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """As the rule is named."""
        return self.named

    def begin(self, grouping: Grouping, call: Call, counts: Sequence[int]) -> tuple[PyTree[Array], ...]:
        """Zeros, group by group."""
        return tuple(self._begin(grouping, call, g, route, counts[g]) for g, route in routes_of(grouping, call))

    def _begin(self, grouping: Grouping, call: Call, g: int, route: Route, count: int) -> PyTree[Array]:
        op, _, x = call.template(grouping.program)
        y = call.y(grouping.program)
        shape = grouping.groups[g].shape if op.is_diagonal else y.shape
        fronts = (), (count,), (count, count), (count,)
        parts: PyTree = [jax.ShapeDtypeStruct((*front, *shape), y.dtype) for front in fronts]

        def like(op: ETraceOp, v: PyTree[Array], terms: TraceTerms) -> PyTree[Array]:
            return self.own.trace_like(op, widened(_at_units(op, route, v)), widened(terms))

        found = call.shapes_of(grouping.program, like, TraceTerms(shape_of(x), *parts))
        return jax.tree.map(lambda leaf: blank(leaf.shape, leaf.dtype), found)

    def advance(
        self, grouping: Grouping, weights: Weights, traces: dict[int, tuple], terms: Terms, only: str | None
    ) -> tuple[dict[int, tuple], Gradients]:
        """Step by step."""
        new, gradients = {}, {}
        for call in grouping.reading.learning:
            op, given, _ = call.unflatten(*weights[call.number], call.x_atoms)
            x, n, v = each(terms.x[call.number]), widened(terms.n[call.number]), widened(given)
            routes, parts, after = routes_of(grouping, call), [], []
            if op.is_diagonal or not routes:
                parts.append([sum_steps(n)] if op.is_diagonal else jax.tree.leaves(op.total_dw(x, n, v)))
            for number, (g, route) in enumerate(routes):
                said = self._said(grouping, call, op, route, g, terms, number == 0)
                own = _at_units(op, route, v)
                later, found = self._through(op, own, traces[call.number][number], said)
                after.append(later)
                parts.append(jax.tree.leaves(route.total(found, v) if op.is_diagonal else found))
            leaves = zip(jax.tree.leaves(given), *parts, strict=True)
            gradients[call.number] = [cast(sum(found[1:], found[0]), leaf.dtype) for leaf, *found in leaves]
            new[call.number] = tuple(after)
        return new, gradients

    def _said(
        self, grouping: Grouping, call: Call, op: ETraceOp, route: Route, g: int, terms: Terms, is_first: bool
    ) -> TraceTerms:
        """The terms of a window on the outputs of a call; what it says within the step goes with its first group."""
        ndim = len(grouping.groups[g].shape)
        n = widened(terms.n[call.number])
        d, f = stacked((terms.hidden_jacobian[g], terms.output_jacobian[(g, call.number)]))
        m, d = (route.spread(widened(part), ndim) for part in (terms.m[g], d))
        at_once = jnp.zeros_like(m[:, 0]) if op.is_diagonal else n if is_first else jnp.zeros_like(n)
        return TraceTerms(each(terms.x[call.number]), at_once, m.astype(n.dtype), d.astype(n.dtype), f.astype(n.dtype))

    def _through(self, op: ETraceOp, v: PyTree[Array], trace: PyTree[Array], said: TraceTerms) -> Updated:
        def one(before: tuple[PyTree, PyTree], now: TraceTerms) -> tuple[tuple[PyTree, PyTree], None]:
            trace, total = before
            later, found = _updated(self.own.update(op, v, trace, now), trace, v)
            return (narrowed(later, trace), jax.tree.map(jnp.add, total, found)), None

        return jax.lax.scan(one, (trace, zeros(v)), said)[0]

    def word(self, grouping: Grouping, call: Call, leaf: int) -> str:
        """As it is named."""
        return self.named

    def kept(self, trace: tuple[PyTree[Like], ...], leaf: int) -> list[Like]:
        """All that is kept of the call."""
        return jax.tree.leaves(trace)

    def entries(self, trace: tuple[PyTree[Like], ...], into: int) -> int:
        """All of it."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trace[into]))

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> PyTree[Array]:
        """Zero, in front of what has the batch axes in front."""
        return jax.tree.map(zero, carry.traces)


def _updated(said: object, trace: PyTree[Array], v: PyTree[Array]) -> Updated:
    """What `update` returned, if it is a trace and a gradient."""
    if not isinstance(said, tuple | list) or len(said) != 2:
        raise TypeError(f"update: expected the trace and the gradient of v, a tuple of two, got {type(said).__name__}.")
    later, found = said
    for name, given, like, hint in (
        ("trace", later, trace, "what trace_like returns"),
        ("gradient", found, v, "v; sum over batch axes and positions"),
    ):
        got, expected = (str(jax.tree.map(jnp.shape, tree)) for tree in (given, like))
        if got != expected:
            raise ValueError(f"update: expected a {name} of shapes {expected}, got {got}. Return those of {hint}.")
    return later, found


def _at_units(op: ETraceOp, route: Route, v: PyTree[Array]) -> PyTree[Array]:
    """Weights as a rule takes them: of an elementwise parameter on its units."""
    return route.at_units(v) if op.is_diagonal else v
