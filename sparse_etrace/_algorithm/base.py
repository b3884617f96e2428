"""What every learner has: `init`, `step`, `reset`, and a window of steps with its gradient."""

import abc
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._analysis import Analysis
from .._batch_axes import as_long_as_a_batch
from .._constant import constant, held
from .._feedback import Feedback, Memory, Teacher, leaves_of
from .._filter import check_names, nbytes, struct, structure
from .._notes import one_step_only, untraced_recurrence, without_memory
from .._origin import Origin, compiled, origin_of
from .._program import is_inexact, is_key
from .._routes import Call
from .._step import Signals, Step
from .._sums import widened, zeros
from .._traces import CallTrace, advance, bytes_of_step, can_filter, init_trace, routes_of

WINDOW = 16
ROOM = 2**25


class Carry(eqx.Module):
    """What goes from one step to the next: the state of the model, the traces of the learner, what else it keeps.

    `origin` says of which connectivity; without it nothing is checked.
    """

    state: PyTree[Array]
    traces: PyTree[Array]
    memory: PyTree[Array] = None
    origin: Origin | None = None


def cut(carry: Carry, *inputs: PyTree[Any]) -> Carry:
    """A carry behind a step, which later steps read as a constant; a loss that reads it is an error."""
    words = (
        "carry: a loss reads what `step` returned for the next one, which has no derivative. Let the model return in "
        "`out` what the loss needs of its state, or read jax.lax.stop_gradient(carry)."
    )
    return constant(held(carry), inputs, words, late=True)


class Window(eqx.Module):
    """Result of several steps: the losses, what `loss_fn` returned besides, the gradients, and the carry."""

    losses: Array
    aux: PyTree[Array]
    grads: PyTree[Array]
    carry: Carry


class Learner(eqx.Module):
    """A rule that turns a stream of inputs into gradients; the abstract base of all learners."""

    train: eqx.AbstractVar[Any]
    allow_zero: eqx.AbstractVar[tuple[str, ...]]

    @property
    def gradient(self) -> str:
        """What `explain` calls the gradient where nothing of the model makes it less."""
        return "exact"

    @property
    def is_differentiable(self) -> bool:
        """Whether derivatives of what `online_grad` returns are what JAX makes of them, and not to be refused."""
        return False

    @abc.abstractmethod
    def init(self, model: Callable[..., Any], state: PyTree[Any], x: PyTree[Any]) -> Carry:
        """Check the model against the rule, and start: see `D_RTRL`."""

    @abc.abstractmethod
    def step(self, model: Callable[..., Any], carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the traces."""

    @abc.abstractmethod
    def window(
        self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Callable[..., Any]
    ) -> Window:
        """Several steps with their summed gradient; `loss_fn` returns `(loss, aux)`."""

    def window_steps(self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array]) -> int | None:
        """How many steps `online_grad` takes at once unless told; None for all of them."""
        return None

    def carry_shapes(self, model: Callable[..., Any], state: PyTree[Any], x: PyTree[Any]) -> Carry:
        """Shapes and types of what `init` returns, for arguments that may have only these as well."""
        return eqx.filter_eval_shape(self.init, model, state, x)

    def reset(self, carry: Carry, where: Bool[Array, "*batch"] | bool, state: PyTree[Array]) -> Carry:
        """Start again at some batch elements: their state, traces and counters.

        Args:
            carry: the carry.
            where: True for each batch element that starts again; a scalar where there is no batch axis.
            state: the state to start from, structured like `carry.state`.

        Returns:
            The new carry. Batch axes come first in every leaf; one without them (a clock, a key) starts again only when
            all batch elements do.

        Raises:
            ValueError: `state` has another structure or shape, batch axes that are not in front, or a leaf of which
                nothing says whether it has them; or `where` has the shape of no batch axes.
        """
        where = jnp.asarray(where, bool)
        expected, got = structure(carry.state), structure(state)
        if got != expected:
            raise ValueError(f"state: expected the structure of carry.state, {expected}, got {got}.")
        origin = carry.origin or Origin(jnp.zeros((0, 2), jnp.uint32))
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(carry.state)]
        in_front = [shape[: where.ndim] == where.shape for shape in shapes]

        def choose(start: Any, now: Array, has_batch: bool, axis: int = 0) -> Array:
            shape = *[1] * axis, *where.shape, *[1] * (now.ndim - axis - where.ndim)
            chosen = where.reshape(shape) if has_batch else jnp.all(where)
            return jnp.where(chosen, start if is_key(now) else jnp.asarray(start, now.dtype), now)

        def restart(number: int, start: Any, now: Array) -> Array:
            if jnp.shape(start) != now.shape:
                raise ValueError(f"state: expected a leaf of shape {now.shape}, got {jnp.shape(start)}.")
            if not in_front[number] and now.ndim > 1 and where.shape[0] in now.shape[1:]:
                raise ValueError(
                    f"state: a leaf of shape {now.shape} has its batch axes, {where.shape}, elsewhere than in front, "
                    "so that it cannot start again for some batch elements only. Put them first."
                )
            if number in origin.unsure and start is not now and in_front[number] and where.ndim:
                raise ValueError(
                    f"state: the step does not say whether a leaf of shape {now.shape} has batch axes or is only as "
                    "long. Give the leaf of carry.state itself to leave it as it is, and change it by hand."
                )
            return choose(start, now, in_front[number] and number not in origin.alone)

        def zero(now: Array, number: int | None = None, axis: int = 0) -> Array:
            fits = now.shape[axis:][: where.ndim] == where.shape if number is None else in_front[number]
            return choose(0, now, fits and number not in origin.alone, axis)

        numbers = jax.tree.unflatten(got, range(got.num_leaves))
        state = jax.tree.map(restart, numbers, state, carry.state)
        if shapes and not any(in_front):
            raise ValueError(
                "where: expected a value for each batch element, as in front of a leaf of the state, "
                f"got shape {where.shape} and leaves of {', '.join(map(str, shapes))}."
            )
        return Carry(state, self._restart_traces(carry, where, zero), jax.tree.map(zero, carry.memory), carry.origin)

    def _restart_traces(self, carry: Carry, where: Array, zero: Callable[..., Array]) -> PyTree[Array]:
        """`zero(now, number, axis)` is zero where batch elements start again that a leaf of the state has."""
        return carry.traces


def differentiate(loss_fn: Callable[..., Any], analysis: Analysis, out: list[Array], y: Any) -> tuple[Array, Any, list]:
    """The loss, what is returned besides, and the derivative by the floating outputs."""

    def loss_of(floating: list[Array]) -> tuple[Array, Any]:
        values = iter(floating)
        full = [next(values) if is_inexact(o) else o for o in out]
        return loss_fn(jax.tree.unflatten(analysis.out_structure, full), y)

    loss, vjp, aux = jax.vjp(loss_of, [o for o in out if is_inexact(o)], has_aux=True)
    return loss, aux, vjp(jnp.ones_like(loss))[0]


class TraceLearner(Learner):
    """A learner whose traces are full or factorised, leaf by leaf; what is left to say is which."""

    trace_dtype: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def is_full(self, analysis: Analysis, call: Call) -> list[bool]:
        """For each weight leaf of a call, whether it has one trace per slot rather than factors."""

    @property
    def factor_decay(self) -> float:
        """Share of the old factor where traces are factorised."""
        return 0.0

    @property
    def only_input(self) -> bool:
        """Whether the input is the only factor of a factorised trace."""
        return False

    @property
    def teaching(self) -> Feedback:
        """What stands in for the learning signal of a hidden leaf; nothing unless the rule says so."""
        return Feedback()

    @property
    def gradient(self) -> str:
        """Feedback where something stands in for a learning signal, else exact."""
        return "feedback" if self.teaching.is_other else "exact"

    def analyse(self, model: Any, state: PyTree[Any], x: PyTree[Any]) -> Analysis:
        return Analysis(model, state, x, self.train)

    def step_of(self, analysis: Analysis, teacher: Teacher) -> Step:
        return Step(analysis, teacher.tap)

    def taught(self, model: Any, state: PyTree[Any], x: PyTree[Any]) -> tuple[Analysis, Teacher]:
        analysis = self.analyse(model, state, x)
        return analysis, Teacher(self.teaching, analysis)

    def init(self, model: Callable[..., Any], state: PyTree[Any], x: PyTree[Any]) -> Carry:
        """Check the model against the rule, and start with traces of zero.

        Args:
            model: `state, out = model(state, x)`.
            state: its initial state.
            x: one step's input, an array or its `jax.ShapeDtypeStruct`.

        Returns:
            The carry; `carry.state` is the state.

        Raises:
            ValueError: hidden state is mixed by anything but an op, a trained leaf can never get a gradient, or a name
                in `allow_zero` is no leaf.
            NotImplementedError: an op runs inside control flow, or its weights depend on the state.
        """
        analysis, teacher = self.taught(model, state, x)
        check_names(self.allow_zero, analysis.param_names)
        learned = tuple(analysis.param_names[i] for i in teacher.learned(model))
        analysis.check_reach(self.allow_zero + learned)
        if (calls := untraced_recurrence(analysis)) and not without_memory(analysis, calls):
            warnings.warn(one_step_only(analysis, calls), stacklevel=2)
        teacher.matrix(model)
        first = [group.variables[0] for group in analysis.groups]
        into = tuple(tuple(first[g] for g, _ in routes_of(analysis, c)) for c in analysis.learning)
        origin = origin_of(model, *as_long_as_a_batch(model, state, x, analysis), into)
        return Carry(jax.tree.map(jnp.asarray, state), *self._start(analysis, teacher), origin)

    def _start(self, analysis: Analysis, teacher: Teacher) -> tuple[dict[int, CallTrace], Memory]:
        def one(call: Call) -> CallTrace:
            full = self.full_leaves(analysis, call)
            return init_trace(analysis, call, full, self.trace_dtype, teacher.counts, self.only_input)

        return {c.number: one(c) for c in analysis.learning}, teacher.start()

    def window_steps(self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array]) -> int:
        """How many steps `online_grad` takes at once unless told: 16, halved while they need too much room.

        Too much for what K steps say to the traces are `ROOM` bytes and twice those of traces and weights. Too much for
        the Jacobians of a group of A variables, `K A**2` numbers for each unit, are more than `4 A + 2 K` numbers for
        each synapse and each unit at its two ends.
        """
        analysis, teacher = self.taught(model, carry.state, jax.tree.map(lambda a: a[0], xs))
        self._check_carry(analysis, teacher, carry)

        def fits(steps: int, number: int) -> bool:
            group = analysis.groups[number]
            count, units = teacher.counts[number], math.prod(group.shape)
            ends = units
            for route in group.routes:
                traces = carry.traces[route.call].full
                index = [g for g, _ in routes_of(analysis, analysis.calls[route.call])].index(number)
                ends += units + sum(leaf.size // count for leaf in jax.tree.leaves(traces[index]))
            return steps * count**2 * units <= (4 * count + 2 * steps) * ends

        said = bytes_of_step(analysis, teacher.counts)
        most = max(ROOM, 2 * (nbytes(carry.traces) + nbytes(eqx.filter(model, eqx.is_array))))
        steps = WINDOW
        while steps > 1 and not (steps * said <= most and all(fits(steps, k) for k in range(len(analysis.groups)))):
            steps //= 2
        return steps

    def _check_carry(self, analysis: Analysis, teacher: Teacher, carry: Carry) -> None:
        expected = jax.eval_shape(lambda: self._start(analysis, teacher))
        if struct((carry.traces, carry.memory)) != struct(expected):
            raise ValueError(
                "carry: its traces are not those of this learner and model. Make it with this learner's init, and "
                "again where the model, its shapes or what is trained has changed."
            )

    def full_leaves(self, analysis: Analysis, call: Call) -> list[bool]:
        """`is_full`, and True throughout where the input is an index, which has no factor."""
        full = self.is_full(analysis, call)
        return full if all(full) or can_filter(analysis, call) else [True] * len(full)

    def _restart_traces(self, carry: Carry, where: Array, zero: Callable[..., Array]) -> dict[int, CallTrace]:
        def one(trace: CallTrace, into: Sequence[int | None]) -> CallTrace:
            full = tuple(jax.tree.map(lambda e, k=k: zero(e, k, 1), part) for part, k in zip(trace.full, into))
            old, windows = trace.factors, jax.tree.map(zero, trace.windows)
            if old is None:
                return CallTrace(full, None, windows)
            f = tuple(zero(part, k, 1) for part, k in zip(old.f, into))
            return CallTrace(full, type(old)(zero(old.x, into[0]), f, zero(old.steps, into[0])), windows)

        alike = [(None,) * len(trace.full) for trace in carry.traces.values()]
        into = alike if carry.origin is None else carry.origin.into
        return {number: one(trace, k) for (number, trace), k in zip(carry.traces.items(), into, strict=True)}

    @compiled
    def step(self, model: Callable[..., Any], carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the traces.

        `equinox.filter_grad` of a loss of `out` with respect to `model` is the online gradient; with respect to `x` it
        is the one of the same step, and with respect to `carry` zero. A loss of the new carry has none: where something
        other than the next step reads it, the gradient is an error when it is computed.

        Args:
            model: the model.
            carry: from `init` or the step before.
            x: the input.

        Returns:
            The new carry, and the model's output.
        """
        x = jax.tree.map(jnp.asarray, x)
        analysis, teacher = self.taught(model, carry.state, x)
        step = self.step_of(analysis, teacher)
        self._check_carry(analysis, teacher, carry)
        floating = [is_inexact(v) for v in jax.tree.leaves(x)]
        num_state = len(jax.tree.leaves(carry.state))
        leaves, build = leaves_of(model)
        learned = teacher.learned(model)

        def absorb(traces: Any, weights: Any, jacobian: Any, m: Any, n: Any, taught: Any, only: str) -> Any:
            xs, d, f = jacobian
            signal, before, after = taught
            signals, signal = jax.tree.map(lambda s: s[None], (Signals(xs, n, m, d, f), signal))
            signals = teacher.extend(signals, signal, before, after)
            return advance(analysis, weights, traces, signals, self.factor_decay, only)

        def forward(params: list, state: list, traces: Any, xs: list, memory: Memory, matrix: Any) -> Any:
            weights = step.weights(params)
            out, new, pull, jacobians = step.run(params, state, xs, weights)
            jacobian = jacobians()
            m = [jnp.zeros(d.shape[1:], d.dtype) for d in jacobian[1]]
            n = {c.number: jnp.zeros(c.y(step.program).shape, c.y(step.program).dtype) for c in analysis.learning}
            after = teacher.remember(memory, new)
            later, _ = absorb(traces, weights, jacobian, m, n, (None, memory, after), "traces")
            return (new, later, out, after), (params, traces, weights, pull, jacobian, memory, after, new, matrix)

        @jax.custom_vjp
        def run(params: list, state: list, traces: Any, xs: list, memory: Memory, matrix: Any) -> Any:
            return forward(params, state, traces, xs, memory, matrix)[0]

        def backward(residuals: Any, cts: Any) -> Any:
            params, traces, weights, pull, jacobian, memory, after, new, matrix = residuals
            by_out = [c for c in cts[2] if c.dtype != jax.dtypes.float0]
            (m, n, plain, by_x), signal = teacher.pull(pull, by_out, matrix, new, None)
            _, dv = absorb(traces, weights, jacobian, m, n, (signal, memory, after), "gradients")
            by_param = step.by_parameter(params, dv, plain)
            if learned:
                by_matrix = teacher.by_matrix(by_out, matrix, after, new)
                by_param |= teacher.by_learned(build(params), learned, by_matrix)
            grads = [by_param.get(i) for i in range(len(params))]
            moved = iter(by_x)
            return grads, [None] * num_state, None, [next(moved) if f else None for f in floating], None, None

        run.defvjp(forward, backward)
        state, shape = jax.tree.flatten(carry.state)
        given = (leaves, state, carry.traces, jax.tree.leaves(x), carry.memory, teacher.matrix(model))
        new, traces, out, memory = run(*given)
        out = jax.tree.unflatten(analysis.out_structure, out)
        return cut(Carry(jax.tree.unflatten(shape, new), traces, memory), model, carry, x), out

    def window(
        self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Callable[..., Any]
    ) -> Window:
        analysis, teacher = self.taught(model, carry.state, jax.tree.map(lambda a: a[0], xs))
        step = self.step_of(analysis, teacher)
        self._check_carry(analysis, teacher, carry)
        params, layout = jax.tree.flatten(eqx.filter(model, eqx.is_array))
        weights = step.weights(params)
        matrix, learned = teacher.matrix(model), teacher.learned(model)
        moved = [matrix] if learned and matrix is not None else []

        def one(before: tuple[list, list, Memory], now: tuple[Any, Any]) -> Any:
            state, added, memory = before
            x, y = now
            out, new, pull, jacobians = step.run(params, state, jax.tree.leaves(x), weights)

            loss, aux, by_out = differentiate(loss_fn, analysis, out, y)
            (m, n, plain, _), signal = teacher.pull(pull, by_out, matrix, new, loss)
            inputs, d, f = jacobians()
            memory = teacher.remember(memory, new)
            by_matrix = [teacher.by_matrix(by_out, b, memory, new) for b in moved]
            added = [a + b for a, b in zip(added, widened([*plain, *by_matrix]), strict=True)]
            return (new, added, memory), (loss, aux, Signals(inputs, n, m, d, f), signal)

        state, shape = jax.tree.flatten(carry.state)
        start = (state, zeros([*(params[i] for i in analysis.plain), *moved]), carry.memory)
        (state, added, memory), (losses, aux, signals, signal) = jax.lax.scan(one, start, (xs, ys))
        signals = teacher.extend(signals, signal, carry.memory, memory)
        traces, dv = advance(analysis, weights, carry.traces, signals, self.factor_decay)
        by_param = step.by_parameter(params, dv, added[: len(analysis.plain)])
        if moved:
            by_param |= teacher.by_learned(model, learned, added[-1].astype(moved[0].dtype))
        grads = jax.tree.unflatten(layout, [by_param.get(i) for i in range(len(params))])
        return Window(losses, aux, grads, Carry(jax.tree.unflatten(shape, state), traces, memory))
