"""What the rules share that see a model only from outside: no ops, no groups."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.linear import refuse_bent
from .._model.program import is_inexact, propagate, vjp_jaxpr
from .._model.refusals import check_names, refuse_made_anew, refuse_unread, refuse_zero
from .._model.trained import check_state, leaf_names, struct, trained_filter
from .._model.types import Filter, Labels
from .._op.sharded import stepped
from .._sums import narrowed, widened, zeros
from .._types import Loss, Model
from .engine import Carry, Engine, Storage, Task, Window


@dataclass(frozen=True)
class FromOutside(Storage):
    """What is kept of a model that is seen from outside.

    Attributes:
        engine: what steps the model.
        gradient, is_differentiable, grows: see `Storage`.
        again: the traces of which some batch elements start again, as `restart`; None: they stay.
    """

    engine: Callable[[Task], Engine]
    gradient: str = "exact"
    is_differentiable: bool = False
    grows: bool = False
    again: Callable[[Carry, Array, Callable[..., Array]], PyTree[Array]] | None = None

    @property
    def has_rows(self) -> bool:
        """Where nothing is kept but the state."""
        return self.grows

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> Engine:
        """Nothing is read."""
        return self.engine(task)

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> PyTree[Array]:
        """As `again` says."""
        return carry.traces if self.again is None or where is None else self.again(carry, where, zero)


def check_reach(
    model: Model,
    state: PyTree,
    x: PyTree,
    train: Filter,
    allow_zero: tuple[str, ...],
    steps: int | None = None,
    is_run_once: bool = False,
) -> None:
    """Raise for a trained leaf without any way to the output, at once or through the state, within so many steps.

    Also for a step of which no part can run once more, unless it `is_run_once`.
    """
    arrays, static = eqx.partition(model, eqx.is_array)
    names, old = leaf_names(arrays), struct(state)

    def floating(tree: PyTree) -> list[Array]:
        return [leaf for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]

    def floating_step(sources: tuple, rest: tuple) -> tuple[list[Array], list[Array]]:
        model, state = (eqx.combine(a, b) for a, b in zip(sources, rest[:2], strict=True))
        new, out = joined(model, static)(state, rest[2])
        check_state(old, new)
        return floating(new), floating(out)

    inputs, before = jax.tree.leaves(struct(x)), len(jax.tree.leaves((arrays, old)))
    primal = jax.make_jaxpr(lambda arrays, state, x: eqx.filter(eqx.combine(arrays, static)(state, x), eqx.is_array))
    whole = primal(struct(arrays), old, struct(x)).jaxpr
    if not is_run_once:
        refuse_made_anew(whole)
    refuse_unread(inputs, any(propagate(whole, [Labels()] * before + [Labels(["x"])] * len(inputs))))
    sources, others = eqx.partition((struct(arrays), old), is_inexact)
    jaxpr, (new, out) = vjp_jaxpr(floating_step, sources, (*others, struct(x)))
    count = len(jax.tree.leaves(sources))
    sinks = [Labels([k]) for k in range(len(new))] + [Labels(["out"])] * len(out)
    rest = len(jaxpr.jaxpr.invars) - count - len(sinks)
    found = propagate(jaxpr.jaxpr, [Labels()] * count + sinks + [Labels()] * rest)
    by_state = found[count - len(new) :]
    read: set[int] = set()
    for _ in range(len(new) if steps is None else min(steps - 1, len(new))):
        read = {k for k, sink in enumerate(by_state) if "out" in sink or sink & read}
    trained = set(leaf_names(eqx.filter(model, trained_filter(model, train))))
    inexact = [(name, leaf) for name, leaf in zip(names, jax.tree.leaves(arrays), strict=True) if is_inexact(leaf)]
    check_names(allow_zero, names)
    for (name, leaf), sink in zip(inexact, found[: count - len(new)], strict=True):
        if name in trained and leaf.size and "out" not in sink and not sink & read:
            refuse_zero(name, allow_zero, used=bool(sink))


def check_linear(model: Model, state: PyTree, x: PyTree, train: Filter) -> None:
    """Raise where the new state's derivative by the old one and by what is trained is not linear backward."""
    trained, fixed = eqx.filter_eval_shape(lambda model: split(model, train), model)
    live, rest = eqx.partition(struct(state), is_inexact)

    def live_step(sources: tuple, *others: PyTree) -> list[Array]:
        trained, live = sources
        fixed_arrays, rest, x = others
        new, _ = eqx.combine(trained, fixed_arrays, static)(eqx.combine(live, rest), x)
        return [leaf for leaf in jax.tree.leaves(new) if is_inexact(leaf)]

    arrays, static = eqx.partition(fixed, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    refuse_bent("the new state", live_step, (trained, live), arrays, rest, struct(x))


def split(model: PyTree, train: Filter) -> tuple[PyTree, PyTree]:
    """What is trained, and everything else as constants."""
    trained, fixed = eqx.partition(model, trained_filter(model, train))
    return trained, eqx.combine(jax.lax.stop_gradient(eqx.filter(fixed, eqx.is_array)), fixed)


def joined(*parts: PyTree) -> Model:
    """A model of its parts, whose numbers are arrays."""
    return lambda state, x: stepped(eqx.combine(*parts), state, x)


def alone(model: Model, state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array], None]:
    """A step of which nobody is told."""
    return *joined(model)(state, x), None


def in_reverse(
    step: Callable[..., tuple[PyTree[Array], PyTree[Array], PyTree[Array]]],
    model: Model,
    train: Filter,
    start: Callable[[Model], PyTree[Array]],
    xs: PyTree[Array],
    ys: PyTree[Array],
    loss_fn: Loss,
) -> tuple[Array, PyTree[Array], PyTree[Array], PyTree[Array], PyTree[Array]]:
    """Losses, aux, gradients and state of several steps differentiated together, from the state `start(model)`.

    `step(model, state, x)` gives the new state, the output and what is wanted of each step besides, returned last.
    """
    trained, fixed = eqx.partition(model, trained_filter(model, train))

    @eqx.filter_grad(has_aux=True)
    def total(summed: PyTree[Array]) -> tuple[Array, tuple]:
        def one(state: PyTree[Array], now: tuple[PyTree, PyTree]) -> tuple[PyTree, tuple]:
            x, y = now
            # Narrow within a step, so that the sum over steps is wide.
            state, out, said = step(eqx.combine(narrowed(summed, trained), fixed), state, x)
            return state, (*loss_fn(out, y), said)

        begin = start(eqx.combine(narrowed(summed, trained), fixed))
        state, (losses, aux, said) = jax.lax.scan(one, begin, (xs, ys))
        return jnp.sum(losses), (losses, aux, state, said)

    grads, (losses, aux, state, said) = total(widened(trained))
    return losses, aux, narrowed(eqx.filter(grads, eqx.is_array), trained), state, said


def by_step(
    step: Callable[..., tuple], train: Filter, model: Model, carry: Carry, xs: PyTree, ys: PyTree, loss_fn: Loss
) -> tuple[Array, PyTree[Array], PyTree[Array], Carry]:
    """Losses, aux, summed gradients and carry of several steps, each with a gradient of its own."""
    trained, fixed = eqx.partition(model, trained_filter(model, train))

    @eqx.filter_value_and_grad(has_aux=True)
    def loss_of(trained: PyTree, carry: Carry, x: PyTree, y: PyTree) -> tuple[Array, tuple[PyTree, Carry]]:
        carry, out = step(eqx.combine(trained, fixed), carry, x)
        loss, aux = loss_fn(out, y)
        return loss, (aux, carry)

    def one(before: tuple[Carry, PyTree], now: tuple[PyTree, PyTree]) -> tuple[tuple, tuple]:
        carry, total = before
        (loss, (aux, carry)), grads = loss_of(trained, carry, *now)
        return (carry, jax.tree.map(jnp.add, total, widened(grads))), (loss, aux)

    start = dataclasses.replace(carry, origin=None)  # of which no step says anything
    (carry, grads), (losses, aux) = jax.lax.scan(one, (start, zeros(trained)), (xs, ys))
    return losses, aux, narrowed(grads, trained), carry


class Backward(Engine):
    """Reverse mode through a window."""

    def __init__(self, task: Task, traces: PyTree = None):
        self.task, self.traces = task, traces

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check that every trained leaf reaches the output."""
        check_reach(model, state, x, self.task.train, self.task.allow_zero, is_run_once=True)
        return Carry(jax.tree.map(jnp.asarray, state), self.traces)

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model, differentiable also with respect to `carry`."""
        state, out = joined(*split(model, self.task.train))(carry.state, x)
        return Carry(state, None), out

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Steps differentiated together."""
        losses, aux, grads, state, _ = in_reverse(alone, model, self.task.train, lambda _: carry.state, xs, ys, loss_fn)
        return Window(losses, aux, grads, Carry(state, None))

    observed = staticmethod(alone)

    def recall(self, model: Model, carry: Carry, by_state: list[Array]) -> list[Array | None]:
        """Nothing is known of the past."""
        return [None] * len(jax.tree.leaves(eqx.filter(model, eqx.is_array)))

    def follow(self, model: Model, carry: Carry, said: PyTree[Array]) -> PyTree[Array]:
        """Nothing is kept."""
        return carry.traces
