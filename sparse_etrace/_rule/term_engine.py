"""The one step and the one window of the engines that are fed by terms: traces and influences."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.grouping import Grouping
from .._model.program import is_inexact
from .._model.reading import Reading
from .._model.steady import Steps, listened, stacked
from .._model.step import Step
from .._model.types import Gradients, Weights
from .._sums import widened, zeros
from .._types import Loss, Model
from .engine import Carry, Engine, Observed, Window, cut
from .signal import Memory, Teacher, leaves_of

Absorbed = tuple[PyTree[Array], Gradients]
"""Traces after some steps, and for each op call the gradient of its weights."""


class TermEngine(Engine):
    """An engine whose traces are fed by terms: what one step says to them, stacked over several.

    Attributes:
        run: the step of the model with its derivatives.
        teacher: what is put in place of learning signals.
    """

    run: Step
    teacher: Teacher
    reads_in_place = True

    @abc.abstractmethod
    def check(self, carry: Carry) -> None:
        """Refuse a carry with other traces than those of the rule on this model."""

    @abc.abstractmethod
    def terms(self, jacobians: tuple, m: list[Array], n: dict[int, Array], traces: PyTree[Array]) -> PyTree[Array]:
        """What one step says to the traces: derivatives and inputs, and the learning signals `m` and `n`."""

    @abc.abstractmethod
    def absorb(
        self,
        weights: Weights,
        state: list[Array],
        traces: PyTree,
        terms: PyTree[Steps],
        taught: tuple,
        only: str | None,
    ) -> Absorbed:
        """Traces after the steps whose terms these are, and for each op call the gradient of its weights.

        `state` is that before the steps. `taught` holds the signals that were put in place, and the memory before and
        after. `only` is `"traces"` or `"gradients"` where the other is not wanted.
        """

    @abc.abstractmethod
    def recalled(self, weights: Weights, traces: PyTree[Array], m: list[Array]) -> Gradients:
        """For each op call the gradient of its weights by its traces alone, from the learning signals of old state."""

    def recall(self, model: Model, carry: Carry, by_state: list[Array]) -> list[Array | None]:
        """The signals of the state on the traces."""
        self.check(carry)
        params, _ = leaves_of(model)
        m = self.run.along.together({i: by_state[i] for i in self.run.along.leaves})
        dv = self.recalled(self.reading.weights(params), carry.traces, m)
        found = self.run.by_parameter(params, dv, [jnp.zeros_like(params[i]) for i in self.reading.plain])
        return [found.get(i) for i in range(len(params))]

    def observed(self, model: Model, state: PyTree[Array], x: PyTree[Array]) -> Observed:
        """The program of the step, with D and F where it passes."""
        old, layout = jax.tree.flatten(state)
        new, out, jacobians = self.run.written(leaves_of(model)[0], old, jax.tree.leaves(x))
        return jax.tree.unflatten(layout, new), jax.tree.unflatten(self.reading.out_structure, out), jacobians

    def follow(self, model: Model, carry: Carry, said: PyTree[Array]) -> PyTree[Array]:
        """The recursion of the traces."""
        self.check(carry)
        weights, state = self.reading.weights(leaves_of(model)[0]), jax.tree.leaves(carry.state)
        m, n = self.run.silence(state)
        terms = jax.vmap(lambda said: self.terms(said, m, n, carry.traces))(said)
        return self.absorb(weights, state, carry.traces, terms, (None, carry.memory, carry.memory), "traces")[0]

    @property
    def reading(self) -> Reading:
        """Of the model."""
        return self.run.reading

    @property
    def grouping(self) -> Grouping:
        """Under the rule."""
        return self.run.grouping

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step, whose backward pass is the online gradient."""
        self.check(carry)
        run, teacher = self.run, self.teacher
        leaves, build = leaves_of(model)
        floating = [is_inexact(v) for v in jax.tree.leaves(x)]
        learned = teacher.learned(model)

        def absorb(jacobians: tuple, old: tuple, signals: tuple, taught: tuple, only: str) -> Absorbed:
            weights, state, traces, before = old
            signal, *after = taught
            terms = self.terms(jacobians, signals[0], signals[1], traces)
            terms, signal = jax.tree.map(lambda s: s[None], (terms, signal))
            return self.absorb(weights, state, traces, terms, (signal, before, *after), only)

        def forward(
            params: list, state: list, traces: PyTree, xs: list, memory: Memory | None, matrix: Array | None
        ) -> tuple[tuple, tuple]:
            weights = self.reading.weights(params)
            out, new, pull, jacobians = run.run(params, state, xs, weights)
            found, after, old = jacobians(), teacher.remember(memory, new), (weights, state, traces, memory)
            later, _ = absorb(found, old, run.silence(state), (None, after), "traces")
            return (new, later, out, after), (params, old, pull, found, after, new, matrix)

        @jax.custom_vjp
        def online(
            params: list, state: list, traces: PyTree, xs: list, memory: Memory | None, matrix: Array | None
        ) -> tuple:
            return forward(params, state, traces, xs, memory, matrix)[0]

        def backward(residuals: tuple, cts: tuple) -> tuple:
            params, old, pull, found, after, new, matrix = residuals
            by_out = [c for c in cts[2] if c.dtype != jax.dtypes.float0]
            (m, n, plain, by_x), signal = teacher.pull(pull, by_out, matrix, new, None)
            _, dv = absorb(found, old, (m, n), (signal, after), "gradients")
            by_param = run.by_parameter(params, dv, plain)
            if learned:
                by_matrix = teacher.by_matrix(by_out, matrix, after, new)
                by_param |= teacher.by_learned(build(params), learned, by_matrix)
            moved = iter(by_x)
            by_state = [None] * len(self.reading.state)
            grads = [by_param.get(i) for i in range(len(params))]
            return grads, by_state, None, [next(moved) if f else None for f in floating], None, None

        online.defvjp(forward, backward)
        state, shape = jax.tree.flatten(carry.state)
        given = (leaves, state, carry.traces, jax.tree.leaves(x), carry.memory, teacher.matrix(model))
        new, traces, out, memory = online(*given)
        later = cut(Carry(jax.tree.unflatten(shape, new), traces, memory), model, carry, x)
        return later, jax.tree.unflatten(self.reading.out_structure, out)

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Several steps; each trace is touched once."""
        self.check(carry)
        run, teacher, plain_leaves = self.run, self.teacher, self.reading.plain
        params, layout = jax.tree.flatten(eqx.filter(model, eqx.is_array))
        weights = self.reading.weights(params)
        matrix, learned = teacher.matrix(model), teacher.learned(model)
        moved = [matrix] if learned and matrix is not None else []

        def one(before: tuple, now: tuple[PyTree, PyTree]) -> tuple[tuple, tuple]:
            state, added, memory = before
            x, y = now
            out, new, pull, jacobians = run.run(params, state, jax.tree.leaves(x), weights)
            loss, aux, by_out = _differentiate(loss_fn, self.reading, out, y)
            (m, n, plain, _), signal = teacher.pull(pull, by_out, matrix, new, loss)
            terms, memory = self.terms(jacobians(), m, n, carry.traces), teacher.remember(memory, new)
            by_matrix = [teacher.by_matrix(by_out, b, memory, new) for b in moved]
            added = [a + b for a, b in zip(added, widened([*plain, *by_matrix]), strict=True)]
            return (new, added, memory), (loss, aux, signal, terms)

        state, shape = jax.tree.flatten(carry.state)
        start = (state, zeros([*(params[i] for i in plain_leaves), *moved]), carry.memory)
        (new, added, memory), (*heard, terms) = listened(one, start, (xs, ys))
        losses, aux, signal = stacked(heard)
        traces, dv = self.absorb(weights, state, carry.traces, terms, (signal, carry.memory, memory), None)
        by_param = run.by_parameter(params, dv, added[: len(plain_leaves)])
        if moved:
            by_param |= teacher.by_learned(model, learned, added[-1].astype(moved[0].dtype))
        grads = jax.tree.unflatten(layout, [by_param.get(i) for i in range(len(params))])
        return Window(losses, aux, grads, Carry(jax.tree.unflatten(shape, new), traces, memory))


def _differentiate(loss_fn: Loss, reading: Reading, out: list[Array], y: PyTree) -> tuple[Array, PyTree, list[Array]]:
    """The loss, what is returned besides, and the derivative by the floating outputs."""

    def loss_of(floating: list[Array]) -> tuple[Array, PyTree]:
        values = iter(floating)
        full = [next(values) if is_inexact(o) else o for o in out]
        return loss_fn(jax.tree.unflatten(reading.out_structure, full), y)

    loss, vjp, aux = jax.vjp(loss_of, [o for o in out if is_inexact(o)], has_aux=True)
    return loss, aux, vjp(jnp.ones_like(loss))[0]
