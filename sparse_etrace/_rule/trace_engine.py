"""Traces of op calls as an engine: x, m, n, D and F of each step go to what a rule keeps of each call."""

import abc
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.batch_axes import as_long_as_a_batch
from .._model.call import Call
from .._model.grouping import Grouping, closure
from .._model.origin import origin_of
from .._model.program import is_inexact
from .._model.reading import Reading
from .._model.refusals import check_names
from .._model.rings import histories
from .._model.steady import listened, scan, stacked
from .._model.step import Step, Terms
from .._model.trained import nbytes
from .._model.types import Gradients, Like, Weights
from .._op.delays import shape_of
from .._sums import widened
from .._types import Loss, Model
from .engine import NO_PAST, Carry, Storage, Task, Use, Window, refuse_traces
from .notes import memory_elsewhere, one_step_only, untraced_recurrence, without_memory
from .signal import Memory, Teacher
from .support import reached
from .term_engine import TermEngine
from .traces import routes_of

WINDOW = 16
ROOM = 2**25


class ByCall(Storage):
    """What is kept of each op call by itself, fed with x, m, n, D and F.

    Attributes:
        through_ops: whether it is carried through ops of fixed weights.
    """

    through_ops: bool = False

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> "TraceEngine":
        """Read a model, once."""
        reading = Reading(model, state, x, task.train)
        return TraceEngine(self, Teacher(task.signal, reading, not task.is_all, self.through_ops), task)

    @abc.abstractmethod
    def begin(self, grouping: Grouping, call: Call, counts: Sequence[int]) -> PyTree[Array]:
        """Traces of zero of an op call; of each group so many variables have one."""

    @abc.abstractmethod
    def advance(
        self, grouping: Grouping, weights: Weights, traces: dict[int, PyTree[Array]], terms: Terms, only: str | None
    ) -> tuple[dict[int, PyTree[Array]], Gradients]:
        """See `TermEngine.absorb`."""

    def recalled(
        self, grouping: Grouping, weights: Weights, traces: dict[int, PyTree[Array]], m: list[Array]
    ) -> Gradients:
        """See `TermEngine.recalled`."""
        raise NotImplementedError(NO_PAST)

    @abc.abstractmethod
    def word(self, grouping: Grouping, call: Call, leaf: int) -> str:
        """The rule of a weight leaf that is traced into a group; see `Use`."""

    @abc.abstractmethod
    def kept(self, trace: PyTree[Like], leaf: int) -> list[Like]:
        """What is kept of a weight leaf."""

    @abc.abstractmethod
    def entries(self, trace: PyTree[Like], into: int) -> int:
        """How many numbers are kept of a call for the group that is so many among those that it leads into."""


class TraceEngine(TermEngine):
    """Traces of synapses on a model."""

    def __init__(self, storage: ByCall, teacher: Teacher, task: Task):
        self.storage, self.teacher, self.task = storage, teacher, task
        self.run = Step(teacher.grouping, None, teacher.tap)

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check the model against the rule, and start with traces of zero."""
        grouping, reading = self.grouping, self.reading
        if self.task.is_all:
            self._check_reach(model)
        self.teacher.matrix(model)
        first = [group.variables[0] for group in grouping.groups]
        into = tuple(tuple(first[g] for g, _ in routes_of(grouping, c)) for c in reading.learning)
        owners = tuple((c.number, reading.owners(c)) for c in reading.learning)
        origin = origin_of(model, *as_long_as_a_batch(model, state, x, grouping), into, owners)
        return Carry(jax.tree.map(jnp.asarray, state), *self._start(), origin)

    def _check_reach(self, model: Model) -> None:
        grouping, names = self.grouping, self.reading.param_names
        check_names(self.task.allow_zero, names)
        grouping.check_reach(self.task.allow_zero + tuple(names[i] for i in self.teacher.learned(model)))
        if (calls := untraced_recurrence(grouping)) and not without_memory(grouping, calls):
            warnings.warn(one_step_only(grouping, calls), stacklevel=4)

    def _start(self) -> tuple[dict[int, PyTree[Array]], Memory]:
        counts = self.teacher.counts
        traces = {c.number: self.storage.begin(self.grouping, c, counts) for c in self.reading.learning}
        return traces, self.teacher.no_memory()

    @cached_property
    def _shapes(self) -> tuple:
        return jax.eval_shape(self._start)

    def check(self, carry: Carry) -> None:
        """Refuse other traces."""
        refuse_traces(self._shapes, (carry.traces, carry.memory))

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int:
        """16, halved while they need too much room.

        Too much for what K steps say to the traces are `ROOM` bytes and twice those of traces and weights. Too much for
        the Jacobians of a group of A variables, `K A**2` numbers for each unit, are more than `4 A + 2 K` numbers for
        each synapse and each unit at its two ends.
        """
        self.check(carry)
        groups, counts = self.grouping.groups, self.teacher.counts

        def fits(steps: int, number: int) -> bool:
            group, count = groups[number], counts[number]
            units = ends = math.prod(group.shape)
            for route in group.routes:
                into = [g for g, _ in routes_of(self.grouping, self.reading.calls[route.call])].index(number)
                ends += units + self.storage.entries(carry.traces[route.call], into) // count
            return steps * count**2 * units <= (4 * count + 2 * steps) * ends

        said = _bytes_of_step(self.grouping, counts)
        most = max(ROOM, 2 * (nbytes(carry.traces) + nbytes(eqx.filter(model, eqx.is_array))))
        steps = WINDOW
        while steps > 1 and not (steps * said <= most and all(fits(steps, k) for k in range(len(groups)))):
            steps //= 2
        return steps

    def terms(self, jacobians: tuple, m: list[Array], n: dict[int, Array], traces: PyTree[Array]) -> Terms:
        """Inputs, learning signals, D and F."""
        xs, d, f, spread, halfway = jacobians
        return Terms(xs, n, m, d, f, spread=spread, halfway=halfway)

    def absorb(
        self, weights: Weights, state: list[Array], traces: PyTree[Array], terms: Terms, taught: tuple, only: str | None
    ) -> tuple[dict[int, PyTree[Array]], Gradients]:
        """The recursion of the traces through a window."""
        d, f = terms.hidden_jacobian, terms.output_jacobian
        terms = stacked(terms)._replace(hidden_jacobian=d, output_jacobian=f)
        terms = terms._replace(x=histories(self.run.rings, state, terms.x))
        terms = self.teacher.extend(terms, *taught)
        return self.storage.advance(self.grouping, weights, traces, terms, only)

    def bridged(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window | None:
        """Where all traces are full, reverse mode ends at outputs of ops: weights learn where their traces are made."""
        self.check(carry)
        if any(trace.factors for trace in carry.traces.values()):
            return None
        run, plain, (old, layout) = self.run, self.reading.plain, jax.tree.flatten(carry.state)
        params, param_layout = jax.tree.flatten(eqx.filter(model, eqx.is_array))
        summed, (m, silence) = widened([params[i] for i in plain]), run.silence(old)
        floating, count = [i for i, leaf in enumerate(old) if is_inexact(leaf)], len(jax.tree.leaves((xs, ys))[0])

        def one(state: list[Array], now: tuple) -> tuple[list[Array], tuple]:
            x, y = now

            def forward(summed: list[Array], moving: list[Array], deltas: dict[int, Array]) -> tuple[tuple, tuple]:
                values, before = list(params), list(state)
                for i, value in zip(plain, summed, strict=True):
                    values[i] = value.astype(params[i].dtype)
                for i, value in zip(floating, moving, strict=True):
                    before[i] = value
                new, out, said = run.written(values, before, jax.tree.leaves(x), deltas)
                loss, aux = loss_fn(jax.tree.unflatten(self.reading.out_structure, out), y)
                return ([new[i] for i in floating], loss), (new, loss, aux, said)

            given = summed, [state[i] for i in floating], silence
            _, pull, (new, loss, aux, said) = jax.vjp(forward, *given, has_aux=True)
            return new, (loss, aux, said, pull)

        state, (*heard, said, pulls) = listened(one, old, (xs, ys))
        losses, aux = stacked(heard)

        def back(later: tuple, pull: Callable[[tuple], tuple]) -> tuple[tuple, list[Array]]:
            by_state, by_plain = later
            more, by_state, n = pull((by_state, jnp.ones_like(losses[0])))
            return (by_state, jax.tree.map(jnp.add, by_plain, more)), [n[k] for k in silence]

        none = [jnp.zeros_like(state[i]) for i in floating], jax.tree.map(jnp.zeros_like, summed)
        like = [jax.ShapeDtypeStruct(n.shape, n.dtype) for n in silence.values()]
        (last, by_plain), n = scan(back, none, pulls, count, like, reverse=True)
        by_state = dict(zip(floating, last, strict=True))
        silent = [jnp.broadcast_to(part, (count, *part.shape)) for part in m]
        terms = self.terms(said, silent, dict(zip(silence, n, strict=True)), carry.traces)
        terms = terms._replace(first=run.along.together({i: by_state[i] for i in run.along.leaves}))
        weights = self.reading.weights(params)
        traces, dv = self.absorb(weights, old, carry.traces, terms, (None, carry.memory, carry.memory), None)
        by_param = run.by_parameter(params, dv, by_plain)
        grads = jax.tree.unflatten(param_layout, [by_param.get(i) for i in range(len(params))])
        return Window(losses, aux, grads, Carry(jax.tree.unflatten(layout, state), traces, carry.memory))

    def recalled(self, weights: Weights, traces: dict[int, PyTree[Array]], m: list[Array]) -> Gradients:
        """By the storage."""
        return self.storage.recalled(self.grouping, weights, traces, m)

    # --- what it is, in words ---------------------------------------------------------------------------------------

    def use(self, carry: Carry, call: Call, leaf: int) -> Use:
        """Exact, diagonal, factorised, feedback or of the same step only."""
        routes = routes_of(self.grouping, call)
        kept = self.storage.kept(carry.traces[call.number], leaf)
        shapes = tuple(jax.ShapeDtypeStruct(k.shape, k.dtype) for k in kept)
        groups = tuple(self.grouping.groups[g].variables for g, _ in routes)
        if not routes:
            rule = without_trace(self.grouping, call)
        elif self.teacher.feedback.is_other:
            rule = "feedback"
        else:
            rule = self.storage.word(self.grouping, call, leaf)
        return Use(rule, shapes, groups)

    def notes(self) -> list[str]:
        """Memory that no trace follows, and recurrence that is learned from the same step only."""
        calls = untraced_recurrence(self.grouping)
        return memory_elsewhere(self.grouping) + ([one_step_only(self.grouping, calls)] if calls else [])

    def reached(self, params: list[Array], state: list[Like], x: list[Like]) -> dict[int, int]:
        """By the structure of the step."""
        return reached(self.grouping, params, state, x)

    def buffers(self, carry: Carry) -> dict[str, PyTree]:
        """The traces by the leaves that they are of."""
        a = self.reading
        found: dict[str, PyTree] = {"memory of the rule": carry.memory}
        for call in a.learning:
            name = f"trace of {', '.join(dict.fromkeys(itertools.chain(*a.owners(call))))}"
            found[name] = (found.get(name), carry.traces[call.number])
        return found


def _bytes_of_step(grouping: Grouping, counts: Sequence[int]) -> int:
    """What a step says to the traces: inputs and signals of ops; m and D by group; F and coefficients by route."""
    total = 0
    for call in grouping.reading.learning:
        x = call.template(grouping.program)[2]
        per_unit = 1 + sum(2 * counts[g] + 1 for g, _ in routes_of(grouping, call))
        half = call.shapes_of(grouping.program, lambda op, v, x: op.halfway(x, v), x)
        total += nbytes((shape_of(x), half)) + per_unit * nbytes(call.y(grouping.program))
    for group, count in zip(grouping.groups, counts, strict=True):
        (state,) = grouping.program.shapes([grouping.reading.state[group.variables[0]]])
        total += count * (1 + count) * nbytes(state)
    return total + (nbytes(grouping.spread_shapes) if grouping.ways else 0)


def without_trace(grouping: Grouping, call: Call) -> str:
    """The rule of an op call that has none."""
    return "same-step only" if _hit(grouping, call) else "exact"


def diagonal(grouping: Grouping, call: Call) -> str:
    """Whether what an op call says to hidden state passes on through each unit's own memory alone."""
    a, hit = grouping.reading, _hit(grouping, call)
    ends = [call.number, *grouping.ways.get(call.number, ())]
    straight = {s[1] for k in ends for s in a.direct[("y", k)] if s[0] == "n"}
    later = closure(hit, {i: a.op_free(i) for i in range(len(a.state))})
    readers = {i: [s[1] for s in a.direct.get(("h", i), ()) if s[0] == "x"] for i in later}
    drops = any(grouping.stops[c] for calls in readers.values() for c in calls)
    return "exact" if hit <= straight and not drops else "diagonal"


def _hit(grouping: Grouping, call: Call) -> set[int]:
    return {s[1] for s in grouping.reading.within_step(("y", call.number)) if s[0] == "n"} & set(grouping.cluster)
