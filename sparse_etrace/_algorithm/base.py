"""What every learner has: `init`, `step`, `reset`, and a window of steps with its gradient."""

import abc
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .._analysis import Analysis
from .._filter import check_names, struct, structure
from .._program import is_inexact, is_key
from .._routes import Call
from .._step import Signals, Step
from .._traces import CallTrace, advance, can_filter, init_trace, routes_of

WINDOW = 16


class Carry(eqx.Module):
    """What goes from one step to the next: the state of the model and the traces of the learner."""

    state: PyTree[Array]
    traces: PyTree[Array]


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

    @abc.abstractmethod
    def init(self, model: Callable[..., Any], state: PyTree[Array], x: PyTree[Any]) -> Carry:
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
            ValueError: `state` has another structure or shape, or batch axes that are not in front.
        """
        where = jnp.asarray(where, bool)
        expected, got = structure(carry.state), structure(state)
        if got != expected:
            raise ValueError(f"state: expected the structure of carry.state, {expected}, got {got}.")

        def choose(start: Any, now: Array, axis: int = 0) -> Array:
            batch = now.shape[axis : axis + where.ndim]
            if where.ndim and batch != where.shape and where.shape[0] in now.shape[axis + 1 :] and now.ndim > 1:
                raise ValueError(
                    f"state: a leaf of shape {now.shape} has its batch axes, {where.shape}, elsewhere than in front, "
                    "so that it cannot start again for some batch elements only. Put them first."
                )
            chosen = (
                where.reshape(*[1] * axis, *where.shape, *[1] * (now.ndim - axis - where.ndim))
                if (batch == where.shape)
                else jnp.all(where)
            )
            return jnp.where(chosen, start if is_key(now) else jnp.asarray(start, now.dtype), now)

        def restart(start: Any, now: Array) -> Array:
            if jnp.shape(start) != now.shape:
                raise ValueError(f"state: expected a leaf of shape {now.shape}, got {jnp.shape(start)}.")
            return choose(start, now)

        return Carry(jax.tree.map(restart, state, carry.state), self._restart_traces(carry.traces, choose))

    def _restart_traces(self, traces: PyTree[Array], choose: Callable[..., Array]) -> PyTree[Array]:
        return traces


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

    def analyse(self, model: Any, state: PyTree[Any], x: PyTree[Any]) -> Analysis:
        return Analysis(model, state, x, self.train)

    def init(self, model: Callable[..., Any], state: PyTree[Array], x: PyTree[Any]) -> Carry:
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
        analysis = self.analyse(model, state, x)
        check_names(self.allow_zero, analysis.param_names)
        analysis.check_reach(self.allow_zero)
        traces = {c.number: self.init_trace(analysis, c) for c in analysis.learning}
        return Carry(jax.tree.map(jnp.asarray, state), traces)

    def window_steps(self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array]) -> int:
        """How many steps `online_grad` takes at once unless told: 16, halved while their Jacobians need too much room.

        Too much for K steps of a group of A variables are more than `4 A + 2 K` numbers for each synapse and each unit
        at its two ends; the Jacobians are `K A**2` numbers for each unit.
        """
        analysis = self.analyse(model, carry.state, jax.tree.map(lambda a: a[0], xs))
        self._check_carry(analysis, carry)

        def fits(steps: int, number: int) -> bool:
            group = analysis.groups[number]
            count, units = len(group.variables), math.prod(group.shape)
            ends = units
            for route in group.routes:
                traces = carry.traces[route.call].full
                index = [g for g, _ in routes_of(analysis, analysis.calls[route.call])].index(number)
                ends += units + sum(leaf.size // count for leaf in jax.tree.leaves(traces[index]))
            return steps * count**2 * units <= (4 * count + 2 * steps) * ends

        steps = WINDOW
        while steps > 1 and not all(fits(steps, number) for number in range(len(analysis.groups))):
            steps //= 2
        return steps

    def _check_carry(self, analysis: Analysis, carry: Carry) -> None:
        expected = jax.eval_shape(lambda: {c.number: self.init_trace(analysis, c) for c in analysis.learning})
        if struct(carry.traces) != expected:
            raise ValueError(
                "carry: its traces are not those of this learner and model. Make it with this learner's init, and "
                "again where the model, its shapes or what is trained has changed."
            )

    def init_trace(self, analysis: Analysis, call: Call) -> CallTrace:
        return init_trace(analysis, call, self.full_leaves(analysis, call), self.trace_dtype)

    def full_leaves(self, analysis: Analysis, call: Call) -> list[bool]:
        """`is_full`, and True throughout where the input is an index, which has no factor."""
        full = self.is_full(analysis, call)
        return full if all(full) or can_filter(analysis, call) else [True] * len(full)

    def _restart_traces(self, traces: dict[int, CallTrace], choose: Callable[..., Array]) -> dict[int, CallTrace]:
        def one(trace: CallTrace) -> CallTrace:
            full = jax.tree.map(lambda e: choose(0, e, 1), trace.full)
            if trace.factors is None:
                return CallTrace(full, None)
            old = trace.factors
            f = tuple(choose(0, part, 1) for part in old.f)
            return CallTrace(full, type(old)(choose(0, old.x), f, choose(0, old.steps)))

        return {index: one(trace) for index, trace in traces.items()}

    @eqx.filter_jit
    def step(self, model: Callable[..., Any], carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the traces.

        `equinox.filter_grad` of a loss of `out` with respect to `model` is the online gradient; with respect to `x` it
        is the one of the same step, and with respect to `carry` zero.

        Args:
            model: the model.
            carry: from `init` or the step before.
            x: the input.

        Returns:
            The new carry, and the model's output.
        """
        x = jax.tree.map(jnp.asarray, x)
        step = Step(self.analyse(model, carry.state, x))
        analysis = step.analysis
        self._check_carry(analysis, carry)
        floating = [is_inexact(v) for v in jax.tree.leaves(x)]
        num_state = len(jax.tree.leaves(carry.state))

        def absorb(traces: Any, weights: Any, jacobian: Any, m: Any, n: Any, only: str) -> Any:
            xs, d, f = jacobian
            signals = jax.tree.map(lambda s: s[None], Signals(xs, n, m, d, f))
            return advance(analysis, weights, traces, signals, self.factor_decay, only)

        def forward(params: list, state: list, traces: Any, xs: list) -> Any:
            weights = step.weights(params)
            out, new, pull, jacobians = step.run(params, state, xs, weights)
            jacobian = jacobians()
            m = [jnp.zeros(d.shape[1:], d.dtype) for d in jacobian[1]]
            n = {c.number: jnp.zeros(c.y(step.program).shape, c.y(step.program).dtype) for c in analysis.learning}
            later, _ = absorb(traces, weights, jacobian, m, n, "traces")
            return (new, later, out), (params, traces, weights, pull, jacobian)

        @jax.custom_vjp
        def run(params: list, state: list, traces: Any, xs: list) -> Any:
            return forward(params, state, traces, xs)[0]

        def backward(residuals: Any, cts: Any) -> Any:
            params, traces, weights, pull, jacobian = residuals
            m, n, plain, by_x = pull([c for c in cts[2] if c.dtype != jax.dtypes.float0])
            _, dv = absorb(traces, weights, jacobian, m, n, "gradients")
            by_param = step.by_parameter(params, dv, plain)
            grads = [by_param.get(i) for i in range(len(params))]
            moved = iter(by_x)
            return grads, [None] * num_state, None, [next(moved) if f else None for f in floating]

        run.defvjp(forward, backward)
        arrays = eqx.filter(model, eqx.is_array)
        state, shape = jax.tree.flatten(carry.state)
        new, traces, out = run(jax.tree.leaves(arrays), state, carry.traces, jax.tree.leaves(x))
        return Carry(jax.tree.unflatten(shape, new), traces), jax.tree.unflatten(analysis.out_structure, out)

    def window(
        self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Callable[..., Any]
    ) -> Window:
        step = Step(self.analyse(model, carry.state, jax.tree.map(lambda a: a[0], xs)))
        analysis = step.analysis
        self._check_carry(analysis, carry)
        arrays = eqx.filter(model, eqx.is_array)
        params, layout = jax.tree.flatten(arrays)
        weights = step.weights(params)

        def one(before: tuple[list, list], now: tuple[Any, Any]) -> Any:
            state, plain = before
            x, y = now
            out, new, pull, jacobians = step.run(params, state, jax.tree.leaves(x), weights)

            def loss_of(floating: list[Array]) -> tuple[Array, Any]:
                values = iter(floating)
                full = [next(values) if is_inexact(o) else o for o in out]
                return loss_fn(jax.tree.unflatten(analysis.out_structure, full), y)

            loss, vjp, aux = jax.vjp(loss_of, [o for o in out if is_inexact(o)], has_aux=True)
            m, n, by_plain, _ = pull(vjp(jnp.ones_like(loss))[0])
            inputs, d, f = jacobians()
            return (new, [a + b for a, b in zip(plain, by_plain, strict=True)]), (
                loss,
                aux,
                Signals(inputs, n, m, d, f),
            )

        zeros = [jnp.zeros_like(params[i]) for i in analysis.plain]
        state, shape = jax.tree.flatten(carry.state)
        (state, plain), (losses, aux, signals) = jax.lax.scan(one, (state, zeros), (xs, ys))
        traces, dv = advance(analysis, weights, carry.traces, signals, self.factor_decay)
        by_param = step.by_parameter(params, dv, plain)
        grads = jax.tree.unflatten(layout, [by_param.get(i) for i in range(len(params))])
        return Window(losses, aux, grads, Carry(jax.tree.unflatten(shape, state), traces))
