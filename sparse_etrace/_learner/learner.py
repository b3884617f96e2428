"""What every learner has: `init`, `step`, `reset`, `window`; the rules of this library say what they keep and heed."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PyTree

from .._model.origin import Origin, compiled
from .._model.program import is_key
from .._model.trained import structure
from .._model.types import Filter
from .._op.delays import aligned
from .._rule.black_box import by_step
from .._rule.engine import Carry, Engine, Rule, Task, Window
from .._types import Loss, Model
from .._varying import apart, freely


class Learner(eqx.Module):
    """A rule that turns a stream of inputs into gradients; the abstract base of all learners."""

    train: eqx.AbstractVar[Filter]
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
    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check the model against the rule, and start: see `D_RTRL`."""

    @abc.abstractmethod
    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the traces."""

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Several steps with their summed gradient, each by `step`; `loss_fn` returns `(loss, aux)`."""
        return Window(*by_step(self.step, self.train, model, carry, xs, ys, loss_fn))

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int | None:
        """How many steps `online_grad` takes at once unless told; None for all of them."""
        return None

    def prepare(self, model: Model, state: PyTree, x: PyTree, carry: Carry | None = None) -> Engine:
        """Read a model, once for all steps and windows of a gradient; `x` is one step's input."""
        return Stepwise(self)

    def run(self, model: Model, state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        """One step of the model alone, on what the rule lets it see."""
        return model(state, x)

    def refuse_inputs(self, xs: PyTree[Array]) -> None:
        """Raise for inputs, time first, that the rule cannot take, where their numbers are known."""

    def carry_shapes(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Shapes and types of what `init` returns, for arguments that may have only these as well."""
        return self.prepare(model, state, x).carry_shapes(model, state, x)

    def restart(self, carry: Carry, where: Array, zero: Callable[..., Array]) -> PyTree[Array]:
        """The traces where some batch elements start again, with `zero(trace)` zero there; as they are unless given."""
        return carry.traces

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
        (new,) = freely(self._reset, carry, jnp.asarray(where, bool), state, like=lambda: (carry,))
        return new

    def _reset(self, carry: Carry, where: Array, state: PyTree[Array]) -> tuple[Carry]:
        expected, got = structure(carry.state), structure(state)
        if got != expected:
            raise ValueError(f"state: expected the structure of carry.state, {expected}, got {got}.")
        state = aligned(state, carry.state)
        origin = carry.origin or Origin(jnp.zeros((0, 2), jnp.uint32))
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(carry.state)]
        in_front = [shape[: where.ndim] == where.shape for shape in shapes]

        def choose(start: ArrayLike, now: Array, has_batch: bool, axis: int = 0) -> Array:
            shape = *[1] * axis, *where.shape, *[1] * (now.ndim - axis - where.ndim)
            chosen = where.reshape(shape) if has_batch else jnp.all(where)
            return jnp.where(chosen, start if is_key(now) else jnp.asarray(start, now.dtype), now)

        def restarted(number: int, start: ArrayLike, now: Array) -> Array:
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
        state = jax.tree.map(restarted, numbers, state, carry.state)
        if shapes and not any(in_front):
            raise ValueError(
                "where: expected a value for each batch element, as in front of a leaf of the state, "
                f"got shape {where.shape} and leaves of {', '.join(map(str, shapes))}."
            )
        traces = self.restart(carry, where, zero)
        return (Carry(state, traces, jax.tree.map(zero, carry.memory), carry.origin),)


class Stepwise(Engine):
    """A learner by its own methods, which may be another for each length of windows."""

    windows_are_free = False

    def __init__(self, learner: Learner):
        self.learner = learner

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """By the learner."""
        return self.learner.init(model, state, x)

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """By the learner."""
        return self.learner.step(model, carry, x)

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """By the learner."""
        return self.learner.window(model, carry, xs, ys, loss_fn)

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int | None:
        """By the learner."""
        return self.learner.window_steps(model, carry, xs)


class RuleLearner(Learner):
    """A learner that is storage and signal; what is left to say is which."""

    @abc.abstractmethod
    def rule(self) -> Rule:
        """What is kept from step to step, and what teaches it."""

    @property
    def gradient(self) -> str:
        """Feedback where something stands in for a learning signal, else as the storage has it."""
        storage, signal = self.rule()
        return "feedback" if signal.is_other else storage.gradient

    @property
    def is_differentiable(self) -> bool:
        """As the storage has it."""
        return self.rule().storage.is_differentiable

    def prepare(self, model: Model, state: PyTree, x: PyTree, carry: Carry | None = None) -> Engine:
        """Read a model, once for all steps and windows of a gradient.

        Args:
            model: `state, out = model(state, x)`.
            state: its state, arrays or `jax.ShapeDtypeStruct`.
            x: one step's input, likewise.
            carry: of a stream that goes on; None for one that starts.

        Returns:
            What the rule is on this model, with `init`, `step` and `window`.

        Raises:
            ValueError, NotImplementedError: the rule cannot take the model.
        """
        storage, signal = self.rule()
        return storage.read(model, state, x, Task(self.train, self.allow_zero, signal, carry))

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
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

        def begun(model: Model, state: PyTree, x: PyTree) -> Carry:
            return self.prepare(model, state, x).init(model, state, x)

        return freely(apart, begun, model, state, x)

    @compiled
    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
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
        return self.prepare(model, carry.state, x, carry).step(model, carry, x)

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Several steps with their summed gradient; `loss_fn` returns `(loss, aux)`."""
        first = jax.tree.map(lambda a: a[0], xs)
        return self.prepare(model, carry.state, first, carry).window(model, carry, xs, ys, loss_fn)

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int | None:
        """How many steps `online_grad` takes at once unless told; None for all of them."""
        first = jax.tree.map(lambda a: a[0], xs)
        return self.prepare(model, carry.state, first, carry).window_steps(model, carry, xs)

    def restart(self, carry: Carry, where: Array, zero: Callable[..., Array]) -> PyTree[Array]:
        """By the storage."""
        return self.rule().storage.restart(carry, where, zero)
