"""What each learner would cost on a graph, before anything is allocated."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, PyTree
from scipy.sparse.csgraph import connected_components

from .._graph.graph import Graph
from .._learner import LEARNERS, Learner, SnAp
from .._learner.learner import RuleLearner
from .._numbers import positive
from .._op import SpMatMulOp
from .._op.param import ETraceParam
from .._rule.reach import CHUNK, entries, grown
from .._text import DataFrame, as_table, data_frame, in_bytes
from .._types import Model
from ..cells import LeakyRate
from ..transform.origin import squared
from .explain import ORDER, explain
from .memory import memory_plan

PLANNED = 20_000_000  # influences up to which their pattern is laid out to be planned
TRIED = 300_000_000  # ways of a power of the graph up to which it is computed
CLOSED = 1500  # strong components up to which all that any number of steps leads to is computed
COUNTABLE = 2**58  # numbers in an array, and far fewer than the bytes that 64 bits count


class Cost(NamedTuple):
    """What one learner would cost.

    Attributes:
        learner: its name and options.
        gradient: the weakest rule by which a parameter of this network learns; see `explain`.
        steps: of the window that is planned.
        traces: bytes of traces and factors; None where they are not known exactly.
        total: bytes of one window of `online_grad`; None where it was not planned.
        exchanged: bytes that devices exchange in each step; None on one device, or where it was not planned.
        note: what else there is to say.
    """

    learner: str
    gradient: str
    steps: int
    traces: int | None
    total: int | None
    note: str
    exchanged: float | None = None


class LearnerCosts(NamedTuple):
    """What `learner_costs` returns: `rows`, one for each learner, for `batch` elements; prints as a table.

    Where there are several `devices`, bytes are of each of them, and of a call of `online_grad`.
    """

    rows: tuple[Cost, ...]
    batch: int
    devices: int = 1

    def __str__(self) -> str:
        is_parted = self.devices > 1
        head = ("learner", "gradient", "steps", "traces", "total", *(["exchanged"] if is_parted else []))
        head = (*head, "" if any(r.note for r in self.rows) else " ")

        def sizes(row: Cost) -> list[str]:
            found = [row.traces, row.total, *([row.exchanged] if is_parted else [])]
            return ["-" if size is None else in_bytes(round(size)) for size in found]

        rows = [(r.learner, r.gradient, f"{r.steps:,}", *sizes(r), r.note) for r in self.rows]
        return as_table(head, rows)

    def to_dataframe(self) -> DataFrame:
        """The rows as a pandas data frame, one column for each field of `Cost`; unknown bytes are missing."""
        names = Cost._fields if self.devices > 1 else Cost._fields[:-1]
        return data_frame({name: [getattr(row, name) for row in self.rows] for name in names})


def learner_costs(
    graph: Graph,
    batch: int = 1,
    learners: Learner | Iterable[Learner] | None = None,
    cell: Callable[..., PyTree] = LeakyRate,
    steps: int | Iterable[int] = (100, 1000),
    devices: int = 1,
) -> LearnerCosts:
    """Say what learners would cost on a plain recurrent network of a graph: each synapse and each bias trained.

    `EProp`, `RFLO`, `ThreeFactor` and `OSTL` keep the traces of `D_RTRL`. What `SnAp` and `RTRL` would keep is counted
    first, `sum_i (indegree(i) + 1) |reach(i)|` for each hidden variable, and where that is too much, it is only said.

    Args:
        graph: square.
        batch: batch elements.
        learners: a learner or several; a choice of them unless given.
        cell: `cell(units, None, rec)` makes the model, which gets None as its input, such as `se.cells.LIF`.
        steps: length or lengths of the sequences that `BPTT` is planned for; the other rules need no more for longer
            ones and are planned in windows of 16.
        devices: parts of the network, as `se.shard` makes them; see `memory_plan`.

    Returns:
        The costs, one row for each learner. One that refuses the model has its words there.

    Raises:
        TypeError: `graph` is no graph, `learners` are others, or `batch`, `devices` or a number of steps is not whole.
        ValueError: the graph is not square, or `batch`, `devices` or a number of steps is below 1.

    Example:
        >>> import sparse_etrace as se
        >>> costs = se.learner_costs(se.datasets.worm(), batch=8, learners=[se.D_RTRL(), se.SnAp(n=None)])
        >>> [(row.learner, row.gradient, row.traces) for row in costs.rows]
        [('D_RTRL', 'diagonal', 79136), ('SnAp(n=None)', 'exact', 19294688)]
    """
    units = squared(graph, "whose units can feed each other").connectivity.num_post
    batch, devices = positive("batch", batch), positive("devices", devices)
    steps = tuple(positive("steps", length) for length in (steps if isinstance(steps, Iterable) else (steps,)))
    if learners is not None:
        learners = tuple(learners) if isinstance(learners, Iterable) else (learners,)
        for learner in learners:
            if not isinstance(learner, Learner):
                raise TypeError(f"learners: expected learners such as `se.D_RTRL()`, got {learner!r}.")

    def build(weight: Array) -> PyTree:
        rec = ETraceParam({"weight": weight, "bias": jnp.zeros(units, weight.dtype)}, SpMatMulOp(graph))
        return cell(units, None, rec)

    mesh = None if devices == 1 else devices
    model = eqx.filter_eval_shape(build, graph.weight) if mesh is None else build(graph.weight)
    state = eqx.filter_eval_shape(lambda: build(graph.weight).init_state(batch))
    rows = []
    for learner in _choice() if learners is None else learners:
        storage = learner.rule().storage if isinstance(learner, RuleLearner) else None
        for length in steps if storage and storage.grows else (16,):
            if storage and storage.max_influences:
                rows.append(_influences(learner, graph, build, state, batch, length, mesh))
            else:
                rows.append(_planned(learner, model, state, batch, length, mesh))
    return LearnerCosts(tuple(rows), batch, devices)


def _choice() -> list[Learner]:
    """Those that keep other things than the ones before them, and SnAp with one step more."""
    made = [make("state", *own) for name, make in LEARNERS.items() for own in ([(), (3,)] if name == "SnAp" else [()])]
    kept = [learner.rule().storage for learner in made]
    return [learner for i, learner in enumerate(made) if kept[i] not in kept[:i]]


def _name(learner: Learner) -> str:
    options = []
    for field in dataclasses.fields(learner):
        value = getattr(learner, field.name)
        is_shown = isinstance(value, int | float | str) and field.name not in ("train", "allow_zero", "max_influences")
        if is_shown and value != field.default:
            options.append(f"{field.name}={value}")
    if isinstance(learner, SnAp) and learner.pattern is None:
        options = [f"n={learner.n}"]
    return type(learner).__name__ + (f"({', '.join(options)})" if options else "")


def _planned(
    learner: Learner,
    model: Model,
    state: PyTree,
    batch: int,
    steps: int,
    mesh: int | None,
    note: str = "",
    gradient: str = "",
) -> Cost:
    sizes = [sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(tree)) for tree in (model, state)]
    if (batch * sizes[0] + sizes[1]) * max(steps, getattr(learner, "steps", 1)) >= COUNTABLE:
        return Cost(_name(learner), "refused", steps, None, None, "more numbers than XLA can count")
    try:
        if not gradient:
            gradient = max((row.rule for row in explain(learner, model, state, None).rows), key=ORDER.index)
        plan = memory_plan(learner, model, state, None, steps, mesh=mesh)
    except (ValueError, TypeError, NotImplementedError, MemoryError) as error:
        return Cost(_name(learner), "refused", steps, None, None, str(error))
    return Cost(_name(learner), gradient, steps, plan.traces, plan.total, note, plan.exchanged if mesh else None)


def _influences(
    learner: Any, graph: Graph, build: Callable[..., PyTree], state: PyTree, batch: int, steps: int, mesh: int | None
) -> Cost:
    """As `_planned`, unless there are too many influences; their number is found first."""
    if mesh is not None:
        return Cost(_name(learner), "refused", steps, None, None, "influences of synapses on units stay on one device")
    if getattr(learner, "pattern", None) is not None:
        return _planned(learner, build(graph.weight), state, batch, steps, mesh, gradient=learner.gradient)
    known, count = count_influences(graph, getattr(learner, "n", None))
    count *= sum(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(state))
    said = f"{known}{' ' if known else ''}{count:,} influences for each batch element"
    if known != "at least" and count <= min(PLANNED, learner.max_influences):
        return _planned(learner, build(graph.weight), state, batch, steps, mesh, said, learner.gradient)
    itemsize = graph.weight.dtype.itemsize
    bound = f", {in_bytes(count * batch * itemsize)} in all"
    if known != "at most" and count > learner.max_influences:
        bound += f": more than max_influences={learner.max_influences:,}"
    else:
        bound += ": not laid out here; memory_plan does"
    exact = None if known else count * batch * itemsize
    return Cost(_name(learner), learner.gradient, steps, exact, None, said + bound)


def count_influences(graph: Graph, steps: int | None) -> tuple[str, int]:
    """Synapses and biases by the units that each reaches within `steps - 1` steps, or any number where that is None.

    Returns:
        `""`, `"at most"` or `"at least"`, and the number.
    """
    conn, units = graph.connectivity, graph.connectivity.num_post
    post, columns = np.asarray(conn.post), np.diff(np.asarray(conn.post_ptr)).astype(np.int64) + 1
    step, sizes = entries(np.asarray(conn.pre), post, conn.shape), np.ones(units, np.int64)
    step = (step + sp.eye_array(units, dtype=bool, format="csr")).tocsr()
    if steps is None or steps > units:
        # Units that reach each other reach the same ones.
        count, of = connected_components(step, connection="strong")
        sizes, columns = np.bincount(of), np.bincount(of, columns).astype(np.int64)
        if count > CLOSED:
            return "at least", int(columns @ sizes)
        member = entries(np.arange(units), of, (units, count))
        step, steps = (member.T.tocsr() @ step @ member).tocsr(), None
    elif steps > 2:
        most = np.diff(step.indptr).astype(np.int64)
        for _ in range(steps - 2):
            most = np.minimum(step.astype(np.int64) @ most, units)
        if most.sum() > TRIED:
            return "at most", int(columns @ most)
    start = sp.eye_array(units, dtype=bool, format="csr") if steps == 1 else step
    total = 0
    for begin in range(0, len(sizes), CHUNK):
        found = grown(start[begin : begin + CHUNK], step, None if steps is None else max(steps - 2, 0))
        total += int(np.repeat(columns[begin : begin + CHUNK], np.diff(found.indptr)) @ sizes[found.indices])
    return "", total
