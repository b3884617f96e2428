"""What a learner does with a model, in words and bytes, before it runs."""

import math
import os.path
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree

from ._algorithm import Learner
from ._algorithm.base import TraceLearner
from ._analysis import Analysis, closure
from ._filter import struct
from ._influence import Influences
from ._notes import cuts_behind, ends_at, memory_elsewhere, one_step_only, untraced_recurrence
from ._routes import Call
from ._support import reached as reached_entries
from ._table import as_table, data_frame
from ._traces import routes_of

ORDER = (
    "exact", "unbiased", "truncated", "diagonal", "factorised", "feedback", "same-step only", "no gradient"
)  # fmt: skip


class Row(NamedTuple):
    """What `explain` says of one parameter leaf.

    Attributes:
        name, shape: the leaf.
        op_calls: lines of the model where an op uses it, with the op.
        groups: names of the hidden variables that it is traced into, group by group.
        trace_shapes: shape of each of its traces or factors.
        trace_bytes: their bytes.
        rule: `exact`; `diagonal`, exact through each unit's own memory; `factorised`; `feedback`, where something else
            stands in for the learning signal; `truncated` after some steps; `unbiased`, right on average; `same-step
            only`.
        reached: how many of its entries a learning signal can reach, whatever the numbers in the state, the input and
            all that is trained; None where the model holds no numbers, and for rules without a trace per op.
        size: how many entries it has.
    """

    name: str
    shape: tuple[int, ...]
    op_calls: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    trace_shapes: tuple[tuple[int, ...], ...]
    trace_bytes: int
    rule: str
    reached: int | None
    size: int


class Report(NamedTuple):
    """What `explain` returns; prints as a table with the notes below.

    Attributes:
        rows: one for each trained leaf.
        notes: what the rule leaves out on this model that no row says.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ("parameter", "shape", "rule", "traced into", "traces", "bytes", "reached", "op calls")
        table = [
            (
                r.name,
                _times(r.shape),
                r.rule,
                "; ".join(", ".join(g) for g in r.groups) or "-",
                " + ".join(map(_times, r.trace_shapes)) or "-",
                f"{r.trace_bytes:,}",
                "?" if r.reached is None else "all" if r.reached == r.size else f"{r.reached:,} of {r.size:,}",
                "; ".join(re.sub(r" at (\S+?:\d+)\b.*", r" \1", call) for call in r.op_calls) or "outside of ops",
            )
            for r in self.rows
        ]
        return "\n".join([as_table(head, table), *self.notes])

    def to_dataframe(self) -> Any:
        """The rows as a pandas data frame, one column for each field of `Row`."""
        return data_frame({name: [getattr(row, name) for row in self.rows] for name in Row._fields})


def explain(learner: Learner, model: Callable[..., Any], state: PyTree[Any], x: PyTree[Any]) -> Report:
    """Say for each trained leaf by which rule it learns, what its traces cost, and how much of it can learn at all.

    Args:
        learner: the rule.
        model: `state, out = model(state, x)`.
        state: its state, arrays or `jax.ShapeDtypeStruct`.
        x: one step's input, likewise.

    Returns:
        The report.

    Raises:
        ValueError, NotImplementedError: as `learner.init`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> print(se.explain(se.D_RTRL(), cell, cell.init_state(), jnp.ones(2)).rows[0].rule)
        exact
    """
    carry = learner.carry_shapes(model, state, x)
    analysis = analyse(learner, model, state, x)
    traced = isinstance(learner, TraceLearner)
    params = jax.tree.leaves(eqx.filter(model, is_array_like))
    is_known = traced and not any(isinstance(p, jax.ShapeDtypeStruct) for p in params)
    reached = reached_entries(analysis, params, *map(jax.tree.leaves, (struct(state), struct(x)))) if is_known else {}
    dropping = _dropping(analysis)
    shapes = analysis.program.shapes(analysis.params)
    rows = []
    notes = memory_elsewhere(analysis) if traced else []
    if traced and (calls := untraced_recurrence(analysis)):
        notes.append(one_step_only(analysis, calls))
    for i in analysis.trained:
        uses = [
            (call, leaf)
            for call in analysis.learning
            for leaf in range(len(call.weight_atoms))
            if ("w", call.number, leaf) in analysis.within_step(("p", i))
        ]
        rules, kept, groups = [], [], []
        for call, leaf in uses:
            if isinstance(learner, TraceLearner):
                rules.append(_rule(analysis, learner, call, leaf, dropping))
                kept += _kept(carry.traces[call.number], leaf)
                members = [analysis.groups[g].variables for g, _ in routes_of(analysis, call)]
                groups += [tuple(analysis.state_names[j] for j in m) for m in members]
            elif isinstance(carry.traces, Influences):
                (count,) = [k for c, j, k in carry.traces.counts if (c, j) == (call.number, leaf)] or [0]
                if not count:
                    rules.append(_without_trace(analysis, call))
                else:
                    cuts = cuts_behind(analysis, call)
                    notes += [ends_at(cuts)] if cuts else []
                    is_exact = _diagonal(analysis, call, dropping) == "exact"
                    rules.append("exact" if is_exact else "truncated" if cuts else learner.gradient)
                    values = carry.traces.values
                    kept += [jax.ShapeDtypeStruct((count, *values.shape[1:]), values.dtype)]
            else:
                rules.append(learner.gradient)
        if i in analysis.plain:
            hidden = any(s[0] == "n" and s[1] in analysis.live for s in analysis.outside_ops(i))
            by_step = traced or isinstance(carry.traces, Influences)
            rules.append("exact" if not hidden else "same-step only" if by_step else learner.gradient)
        rows.append(
            Row(
                analysis.param_names[i],
                shapes[i].shape,
                # A cell of the library that is the model itself has no line of the user's.
                tuple(" at ".join(filter(None, (c.op_name, os.path.basename(c.node.where)))) for c, _ in uses),
                tuple(dict.fromkeys(groups)),
                tuple(k.shape for k in kept),
                sum(math.prod(k.shape) * k.dtype.itemsize for k in kept),
                max(rules, key=ORDER.index, default=ORDER[-1]),
                reached.get(i),
                math.prod(shapes[i].shape),
            )
        )
    return Report(tuple(rows), tuple(dict.fromkeys(notes)))


def analyse(learner: Learner, model: Any, state: Any, x: Any) -> Analysis:
    """The analysis of a model whose arrays may be `jax.ShapeDtypeStruct`."""
    found: list[Analysis] = []

    def analyse(model: Any) -> None:
        if isinstance(learner, TraceLearner):
            found.append(learner.taught(model, state, x)[0])
        else:
            found.append(Analysis(model, state, x, learner.train))

    eqx.filter_eval_shape(analyse, model)
    return found[0]


def _dropping(analysis: Analysis) -> set[int]:
    """State leaves from which some influence on later outputs is dropped: ops carry it on to hidden state."""
    readers = {i: [s[1] for s in analysis.direct.get(("h", i), ()) if s[0] == "x"] for i in range(len(analysis.state))}
    return {i for i, calls in readers.items() if any(analysis.stops[c] for c in calls)}


def _rule(analysis: Analysis, learner: TraceLearner, call: Call, leaf: int, dropping: set[int]) -> str:
    if routes_of(analysis, call):
        if learner.gradient != "exact":
            return learner.gradient
        if not learner.full_leaves(analysis, call)[leaf]:
            return "factorised"
        return _diagonal(analysis, call, dropping)
    return _without_trace(analysis, call)


def _without_trace(analysis: Analysis, call: Call) -> str:
    hit = {s[1] for s in analysis.within_step(("y", call.number)) if s[0] == "n"} & set(analysis.cluster)
    return "same-step only" if hit else "exact"


def _diagonal(analysis: Analysis, call: Call, dropping: set[int]) -> str:
    hit = {s[1] for s in analysis.within_step(("y", call.number)) if s[0] == "n"} & set(analysis.cluster)
    straight = {s[1] for s in analysis.direct[("y", call.number)] if s[0] == "n"}
    later = closure(hit, {i: analysis.op_free(i) for i in range(len(analysis.state))})
    return "exact" if hit <= straight and not later & dropping else "diagonal"


def _kept(trace: Any, leaf: int) -> list[Any]:
    """Traces of one weight leaf of a call, or the factors that stand for them."""
    full = [jax.tree.leaves(t, is_leaf=lambda e: e is None)[leaf] for t in trace.full]
    if all(e is None for e in full) and trace.factors is not None:
        return [trace.factors.x, *trace.factors.f]
    return [e for e in full if e is not None]


def _times(shape: tuple[int, ...]) -> str:
    """A shape as it is read: 2x3."""
    return "x".join(map(str, shape)) or "one"


def is_array_like(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
