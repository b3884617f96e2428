"""Windows in reverse mode whose start remembers: what came before a window is in the traces of a rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.call import Call
from .._model.grouping import Grouping
from .._model.trained import trained_filter
from .._sums import narrowed, widened
from .black_box import check_reach, split
from .engine import Carry, Engine, Loss, Model, Storage, Task, Use, Window, cut


@dataclass(frozen=True)
class Bridge(Storage):
    """The traces of a storage, and reverse mode within so many steps.

    Attributes:
        inner: keeps the traces.
        steps: of a window.
    """

    inner: Storage
    steps: int

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Exact where the traces are, else truncated at the start of a window."""
        return "exact" if self.inner.gradient == "exact" and self.inner.max_influences else "truncated"

    @property
    def max_influences(self) -> int | None:  # type: ignore[override]
        """Of the traces."""
        return self.inner.max_influences

    def read(self, model: Model, state: PyTree[Any], x: PyTree[Any], task: Task) -> "Bridged":
        """Read a model for the traces."""
        return Bridged(self.inner.read(model, state, x, task._replace(is_all=False)), self, task)

    def restart(self, carry: Carry, where: Array, zero: Callable[..., Array]) -> PyTree[Array]:
        """Of the traces."""
        return self.inner.restart(carry, where, zero)


class Bridged(Engine):
    """Reverse mode within windows, from a state that is a function of what its traces say."""

    windows_are_free = False
    of_plain = "truncated"

    def __init__(self, inner: Engine, storage: Bridge, task: Task):
        self.inner, self.storage, self.task = inner, storage, task

    @property
    def grouping(self) -> Grouping | None:
        """That of the traces."""
        return self.inner.grouping

    def init(self, model: Model, state: PyTree[Any], x: PyTree[Any]) -> Carry:
        """Check that every trained leaf reaches the output, and start with traces of zero."""
        check_reach(model, state, x, self.task.train, self.task.allow_zero)
        return self.inner.init(model, state, x)

    def carry_shapes(self, model: Model, state: PyTree[Any], x: PyTree[Any]) -> Carry:
        """Of the traces."""

        def check(model: Model, state: PyTree, x: PyTree) -> None:
            check_reach(model, state, x, self.task.train, self.task.allow_zero)

        eqx.filter_eval_shape(check, model, state, x)
        return self.inner.carry_shapes(model, state, x)

    def _remembered(self, model: Model, carry: Carry) -> PyTree[Array]:
        """The state of a carry, with the traces as its derivative by the model."""
        arrays, static = eqx.partition(model, eqx.is_array)
        inexact, rest = eqx.partition(arrays, eqx.is_inexact_array)
        leaves, layout = jax.tree.flatten(carry.state)

        @jax.custom_vjp
        def remembered(inexact: PyTree[Array], rest: PyTree[Array], leaves: list[Array], traces: Any) -> list[Array]:
            return leaves

        def forward(inexact: PyTree[Array], rest: PyTree[Array], leaves: list[Array], traces: Any) -> Any:
            return leaves, (inexact, rest, leaves, traces)

        def backward(kept: Any, by_state: list[Array]) -> Any:
            inexact, rest, leaves, traces = kept
            model = eqx.combine(inexact, rest, static)
            old = Carry(jax.tree.unflatten(layout, leaves), traces, carry.memory)
            found = self.inner.recall(model, old, by_state)
            grads = jax.tree.map(
                lambda a, g: None if a is None else jnp.zeros_like(a) if g is None else g.astype(a.dtype),
                inexact, _like(found, inexact), is_leaf=lambda leaf: leaf is None,
            )  # fmt: skip
            return grads, None, by_state, None

        remembered.defvjp(forward, backward)
        return jax.tree.unflatten(layout, remembered(inexact, rest, leaves, carry.traces))

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """A window of one step."""
        given, carry = (model, carry, x), jax.tree.map(jax.lax.stop_gradient, carry)
        model = eqx.combine(*split(model, self.task.train))
        state, out = _numbers(model, self._remembered(model, carry), x)
        first = jax.tree.map(lambda a: a[None], x)
        arrays, static = eqx.partition(model, eqx.is_array)
        held = eqx.combine(jax.lax.stop_gradient(arrays), static)
        traces = self.inner.follow(held, carry, jax.lax.stop_gradient(first), 1)
        return cut(Carry(state, traces, carry.memory), *given), out

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Steps differentiated together, and the traces after them."""
        trained, fixed = eqx.partition(model, trained_filter(model, self.task.train))

        @eqx.filter_grad(has_aux=True)
        def total(summed: PyTree[Array]) -> tuple[Array, Any]:
            def now_narrow() -> Model:
                return eqx.combine(narrowed(summed, trained), fixed)

            def one(state: PyTree[Array], now: tuple[Any, Any]) -> Any:
                x, y = now
                state, out = _numbers(now_narrow(), state, x)  # narrow within a step: sums over steps are wide
                return state, loss_fn(out, y)

            state, (losses, aux) = jax.lax.scan(one, self._remembered(now_narrow(), carry), (xs, ys))
            return jnp.sum(losses), (losses, aux, state)

        grads, (losses, aux, state) = total(widened(trained))
        grads = narrowed(eqx.filter(grads, eqx.is_array), trained)
        traces = self.inner.follow(model, carry, xs, len(losses))
        return Window(losses, aux, grads, Carry(state, traces, carry.memory))

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int:
        """Those of the rule."""
        return self.storage.steps

    # --- what it is, in words ---------------------------------------------------------------------------------------

    def use(self, carry: Carry, call: Call, leaf: int) -> Use | None:
        """The rule of what came before a window; a leaf without trace is truncated there."""
        use = self.inner.use(carry, call, leaf)
        return use if use is None or use.rule != "same-step only" else Use("truncated")

    def notes(self) -> list[str]:
        """How far reverse mode reaches."""
        return [
            f"Within a window of {self.storage.steps} steps (or `chunk`) all is exact; the rule of a parameter is that "
            "of what came before it, and 'truncated' where no trace says anything of that.",
            *self._without_trace(),
        ]

    def _without_trace(self) -> list[str]:
        """State that only recurrent ops read, where it is mixed across units."""
        grouping = self.inner.grouping
        left = [] if grouping is None else sorted(set(grouping.cluster) - grouping.live)
        names = ", ".join(repr(grouping.reading.state_names[i]) for i in left) if grouping else ""
        return [f"What {names} holds from before a window is left out: it is mixed across units."] if left else []

    def buffers(self, carry: Carry) -> dict[str, PyTree[Any]]:
        """Of the traces."""
        return self.inner.buffers(carry)


def _numbers(model: Model, state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
    return jax.tree.map(jnp.asarray, model(state, x))


def _like(tree: PyTree[Any], like: PyTree[Any]) -> PyTree[Any]:
    """The leaves of a gradient at the places of another's, None where it has none."""
    found, places = (jax.tree.leaves(t, is_leaf=lambda leaf: leaf is None) for t in (tree, like))
    return jax.tree.unflatten(jax.tree.structure(like, is_leaf=lambda leaf: leaf is None), found)
