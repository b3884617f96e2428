"""Influences of synapses on a sparse pattern of hidden units as an engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import scipy.sparse as sp
from jaxtyping import Array, PyTree

from .._model.batch_axes import axes_of
from .._model.call import Call
from .._model.origin import origin_of
from .._model.program import cast
from .._model.reading import Reading
from .._model.refusals import check_names
from .._model.steady import stacked
from .._model.step import Step
from .._model.trained import is_array_like
from .._model.types import Gradients, Input, Weights
from .._model.unit_links import UnitLinks
from .._sums import sum_steps, widened
from .._types import Model
from .engine import WRONG_TRACES, Carry, Storage, Task, Use
from .influence import (
    Influences,
    InfluenceTerms,
    influence_terms,
    influences_after,
    sizes_of,
    weights_of,
    zero_influences,
)
from .notes import cuts_after, ends_at
from .reach import Wiring
from .signal import Teacher
from .term_engine import TermEngine
from .trace_engine import diagonal, without_trace

Make = Callable[[], Influences]


@dataclass(frozen=True)
class Pattern(Storage):
    """Influences.

    Attributes:
        reach: from the graph of a step, the neurons that each op output influences.
        name: what says that a carry is of another rule.
        max_influences: the most that are kept; more is an error before anything is allocated.
        gradient: see `Storage`.
        traces_all: whether parameters without trace have influences as well.
    """

    reach: Callable[[Wiring], sp.csr_array]
    name: tuple
    max_influences: int
    gradient: str
    traces_all: bool = False
    has_past = True

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> "InfluenceEngine":
        """Read a model, once."""
        return InfluenceEngine(self, Teacher(task.signal, Reading(model, state, x, task.train)), task)

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> Influences:
        """Influences on the units of some batch elements."""
        return restarted_influences(carry.traces, where, zero)


def restarted_influences(traces: Influences, where: Array | None, zero: Callable[..., Array]) -> Influences:
    """Influences of which some batch elements start again."""
    values = traces.values
    if not values.size:
        return traces
    if where is not None and values.shape[1 : 1 + where.ndim] != where.shape:
        raise ValueError(
            f"where: influences of this model have the batch axes {values.shape[1:]}, which all its ops share, so that "
            f"they cannot start again for some of {where.shape} only. Give every op an input with batch axes, start "
            "all again, or use se.D_RTRL() or se.TBPTT."
        )
    return eqx.tree_at(lambda t: t.values, traces, zero(values, None, 1))


def wired(links: UnitLinks, model: Model, every: bool) -> Wiring:
    """The graph of a step of a model.

    Raises:
        TypeError: the model is traced, so that its synapses are not known.
    """
    params = jax.tree.leaves(eqx.filter(model, is_array_like))
    if any(isinstance(p, jax.core.Tracer | jax.ShapeDtypeStruct) for p in params):
        raise TypeError(
            "model: its arrays are traced or have only shapes, so that its synapses are not known. Call init "
            "outside of jit and vmap, with the arrays themselves."
        )
    return Wiring(links, links.grouping.reading.weights(list(map(jnp.asarray, params))), every)


class InfluenceEngine(TermEngine):
    """Influences on a model."""

    def __init__(self, storage: Pattern, teacher: Teacher, task: Task):
        self.storage, self.teacher, self.task = storage, teacher, task
        self.links = UnitLinks(teacher.grouping)
        self.run = Step(teacher.grouping, self.links, teacher.tap)
        self._make: Make | None = None

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Find the pattern, check the model against the rule, and start with influences of zero.

        Raises:
            TypeError: the model is traced, so that its synapses are not known.
            ValueError: units act on each other by other ways than ops, or there are too many influences.
            NotImplementedError: an op does not say which unit each weight leads from and to.
        """
        origin = origin_of(model, *axes_of(model, state, x, self.task.train))
        return Carry(jax.tree.map(jnp.asarray, state), self.begin(model)(), origin=origin)

    def carry_shapes(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Shapes and types of what `init` returns. The model needs its arrays: they hold the synapses."""
        make = self.begin(model)
        return eqx.filter_eval_shape(lambda state: Carry(jax.tree.map(jnp.asarray, state), make()), state)

    def begin(self, model: Model) -> Make:
        """Check the model, and say what makes the influences; once."""
        if self._make is None:
            self._make = self._made(model)
        return self._make

    def _made(self, model: Model) -> Make:
        links = self.links
        if self.task.is_all:
            check_names(self.task.allow_zero, self.reading.param_names)
        wiring = wired(links, model, self.storage.traces_all)
        reach = self.storage.reach(wiring)
        reached = reach.sum(axis=1)
        nodes = {c.number: ("y", c.number) for c in links.carriers}
        first = {number: wiring.offset[node] - wiring.num_hidden for number, node in nodes.items()}
        traced = {k for k, node in nodes.items() if reached[first[k] : first[k] + links.size(node)].any()}
        if self.task.is_all:
            self.grouping.check_reach(self.task.allow_zero, traced)
        return zero_influences(wiring, reach, self.storage.max_influences, self._name)

    @property
    def _name(self) -> tuple:
        trained = ((c.number, *self.reading.weight_is_trained(c)) for c in self.reading.learning)
        return (*self.storage.name, tuple(trained))

    def check(self, carry: Carry) -> None:
        """Refuse other influences."""
        expected = self._name, sizes_of(self.links)
        if not isinstance(carry.traces, Influences) or carry.traces.made_for != expected:
            raise ValueError(WRONG_TRACES)

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int:
        """16 to 64: influences are read and written once, and where they are many a unit, longer windows cost less."""
        self.check(carry)
        blocks = carry.traces.blocks
        return min(max(16, blocks.size // max(len(blocks.entry), 1) // 4), 64)

    def terms(
        self, jacobians: tuple, m: list[Array], n: dict[int, Array], traces: Influences
    ) -> tuple[InfluenceTerms, dict[int, Input], dict[int, Array]]:
        """What a step says to the influences, and inputs and learning signals of the calls that learn."""
        inputs, along = jacobians
        said = influence_terms(self.links, along, inputs, m, n, traces.values.dtype)
        xs, heard = ({c.number: part[c.number] for c in self.reading.learning} for part in (inputs, n))
        return said, xs, heard

    def absorb(
        self, weights: Weights, state: list[Array], traces: Influences, terms: tuple, taught: tuple, only: str | None
    ) -> tuple[Influences, Gradients]:
        """The recursion of the influences through a window."""
        said, xs, n = stacked(terms)
        traces, before = influences_after(traces, weights_of(self.links, weights), said)
        return traces, {} if only == "traces" else self._by_weights(weights, before, xs, n)

    def recalled(self, weights: Weights, traces: Influences, m: list[Array]) -> Gradients:
        """The influences of old weights on old state."""
        links, dtype = self.links, traces.values.dtype
        silence = [jnp.zeros((math.prod(links.batch), len(link.ids)), dtype) for link in links.all]
        calls = {c.number: c for c in [*links.carriers, *self.reading.learning]}
        inputs = {k: c.template(links.program)[2] for k, c in calls.items()}
        xs = {k: None if x is None else jnp.zeros(x.shape, x.dtype) for k, x in inputs.items()}
        n = {k: jnp.zeros(c.y(links.program).shape, c.y(links.program).dtype) for k, c in calls.items()}
        said = influence_terms(links, silence, xs, m, n, dtype)
        said, xs, n = jax.tree.map(lambda part: part[None], (said, xs, n))
        _, before = influences_after(traces, weights_of(links, weights), said)
        return self._by_weights(weights, before, xs, n)

    def _by_weights(self, weights: Weights, before: Array, xs: dict[int, Input], n: dict[int, Array]) -> Gradients:
        """Gradient of the weights of each learning call: what they influenced before, and what acts at once."""
        found, begin, total = {}, {}, 0
        for carrier in self.links.carriers:
            begin[carrier.number] = total
            total += sum(leaf.size for leaf in weights[carrier.number][1])
        for call in self.reading.learning:
            op, v, _ = call.unflatten(*weights[call.number], call.x_atoms)
            signal, at = widened(n[call.number]), begin.get(call.number)
            now = [sum_steps(signal)] if op.is_diagonal else op.total_dw(xs[call.number], signal, widened(v))
            leaves = []
            for leaf, part in zip(jax.tree.leaves(v), jax.tree.leaves(now), strict=True):
                if at is not None:
                    part = part + before[at : at + leaf.size].reshape(leaf.shape)
                    at += leaf.size
                leaves.append(cast(part, leaf.dtype))
            found[call.number] = leaves
        return found

    # --- what it is, in words ---------------------------------------------------------------------------------------

    def use(self, carry: Carry, call: Call, leaf: int) -> Use:
        """Exact, truncated or of the same step only."""
        count = next((k for c, j, k in carry.traces.counts if (c, j) == (call.number, leaf)), 0)
        if not count:
            return Use(without_trace(self.grouping, call))
        cuts, values = cuts_after(self.grouping, call), carry.traces.values
        rule = "truncated" if cuts else self.storage.gradient
        if diagonal(self.grouping, call) == "exact":
            rule = "exact"
        shape = jax.ShapeDtypeStruct((count, *values.shape[1:]), values.dtype)
        return Use(rule, (shape,), notes=(ends_at(cuts),) if cuts else ())

    def buffers(self, carry: Carry) -> dict[str, PyTree]:
        """The influences, and where they belong."""
        others = eqx.tree_at(lambda t: t.values, carry.traces, None)
        return {"trace of all parameters": carry.traces.values, "indices of the trace": others}
