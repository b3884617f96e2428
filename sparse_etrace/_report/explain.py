"""What a learner does with a model, in words and bytes, before it runs."""

import math
import os.path
import re
from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._learner import Learner
from .._model.grouping import group
from .._model.reading import Reading
from .._model.refusals import UntracedError
from .._model.trained import is_array_like, leaf_names, struct, trained_filter
from .._rule.engine import Use
from .._text import DataFrame, as_table, data_frame
from .._types import Model
from .._varying import freely

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


class Explanation(NamedTuple):
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

    def to_dataframe(self) -> DataFrame:
        """The rows as a pandas data frame, one column for each field of `Row`."""
        return data_frame({name: [getattr(row, name) for row in self.rows] for name in Row._fields})


def explain(learner: Learner, model: Model, state: PyTree, x: PyTree) -> Explanation:
    """Say for each trained leaf by which rule it learns, what its traces cost, and how much of it can learn at all.

    Args:
        learner: the rule.
        model: `state, out = model(state, x)`.
        state: its state, arrays or `jax.ShapeDtypeStruct`.
        x: one step's input, likewise.

    Returns:
        The explanation.

    Raises:
        ValueError, NotImplementedError: as `learner.init`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> print(se.explain(se.D_RTRL(), cell, cell.init_state(), jnp.ones(2)).rows[0].rule)
        exact
    """
    return freely(_explained, learner, model, state, x)


def _explained(learner: Learner, model: Model, state: PyTree, x: PyTree) -> Explanation:
    engine = learner.prepare(model, state, x)
    carry = engine.carry_shapes(model, state, x)
    by_step = engine.of_plain or learner.gradient
    try:
        state, x = engine.seen(state, x)
        grouping = engine.grouping or group(Reading(model, state, x, learner.train))
    except (UntracedError, NotImplementedError):
        return Explanation(_from_outside(learner, model, by_step), tuple(engine.notes()))
    reading = grouping.reading
    params = jax.tree.leaves(eqx.filter(model, is_array_like))
    is_known = not any(isinstance(p, jax.ShapeDtypeStruct) for p in params)
    reached = engine.reached(params, *map(jax.tree.leaves, (struct(state), struct(x)))) if is_known else {}
    shapes = reading.program.shapes(reading.params)
    rows, notes = [], engine.notes()
    for i in reading.trained:
        calls = reading.leaves_of(i)
        uses = [engine.use(carry, *call) or Use(learner.gradient) for call in calls]
        rules, kept = [use.rule for use in uses], [shape for use in uses for shape in use.traces]
        notes += [note for use in uses for note in use.notes]
        groups = [tuple(reading.state_names[j] for j in group) for use in uses for group in use.groups]
        if i in reading.plain:
            hidden = any(s[0] == "n" and s[1] in grouping.live for s in reading.outside_ops(i))
            rules.append(by_step if hidden else "exact")
        rows.append(
            Row(
                reading.param_names[i],
                shapes[i].shape,
                # A cell of the library that is the model itself has no line of the user's.
                tuple(" at ".join(filter(None, (c.op_name, os.path.basename(c.node.where)))) for c, _ in calls),
                tuple(dict.fromkeys(groups)),
                tuple(k.shape for k in kept),
                sum(math.prod(k.shape) * k.dtype.itemsize for k in kept),
                max(rules, key=ORDER.index, default=ORDER[-1]),
                reached.get(i),
                math.prod(shapes[i].shape),
            )
        )
    return Explanation(tuple(rows), tuple(dict.fromkeys(notes)))


def _from_outside(learner: Learner, model: PyTree, rule: str) -> tuple[Row, ...]:
    """Rows of a model of which nobody can tell what is computed by which op."""
    trained = eqx.filter(model, trained_filter(model, learner.train))
    return tuple(
        Row(name, leaf.shape, (), (), (), 0, rule, None, leaf.size)
        for name, leaf in zip(leaf_names(trained), jax.tree.leaves(trained), strict=True)
    )


def _times(shape: tuple[int, ...]) -> str:
    """A shape as it is read: 2x3."""
    return "x".join(map(str, shape)) or "one"
