"""A rule on events: the model sees the rows of some nodes, the carry holds those of all."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Integer, PyTree

from .._model.call import Call
from .._model.grouping import Grouping
from .._model.program import is_inexact
from .._model.trained import struct, trained_filter
from .._model.types import Like
from .._sums import narrowed, widened, zeros
from .._types import Loss, Model
from . import past
from .engine import Carry, Engine, Observed, Part, Storage, Task, Use, Window
from .rows import Rows


def parted(x: PyTree) -> tuple[Integer[Array, "*event"], PyTree]:
    """The nodes of an event and what the model gets of it.

    Raises:
        TypeError: it is no such pair.
    """
    nodes: Any = x[0] if isinstance(x, tuple | list) and len(x) == 2 else None
    if not jnp.issubdtype(getattr(nodes, "dtype", float), jnp.integer) or not nodes.shape:
        got = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", struct(x))
        raise TypeError(
            f"x: expected a pair (nodes, x) of the numbers of the nodes of an event, whole numbers of shape (k,), and "
            f"what the model gets, got {got}."
        )
    return nodes, x[1]


def collides(nodes: Integer[Array, "*steps event"], num_nodes: int) -> Bool[Array, "*steps"]:
    """Whether a step has a node twice or one that there is not; `num_nodes` itself is nobody."""
    flat = jnp.sort(nodes, axis=-1)
    again = (flat[..., 1:] == flat[..., :-1]) & (flat[..., 1:] < num_nodes)
    return jnp.any(again, -1) | jnp.any((flat < 0) | (flat > num_nodes), -1)


def refuse_collisions(nodes: Integer[Array, "steps *event"], num_nodes: int) -> None:
    """Raise for events, time first, that have a node twice or one that there is not."""
    flat = nodes.reshape(len(nodes), -1)
    wrong = np.asarray(collides(flat, num_nodes))
    if wrong.any():
        first = int(np.argmax(wrong))
        got = flat[first].tolist()
        raise ValueError(
            f"nodes: expected numbers below {num_nodes}, each at most once in a step (or {num_nodes} for nobody), got "
            f"{got} in step {first}. Give events that share a node one step after the other."
        )


@dataclass(frozen=True)
class ByEvent(Storage):
    """What another storage keeps, for each node a row.

    Attributes:
        inner: keeps it.
        num_nodes: how many rows.
    """

    inner: Storage
    num_nodes: int

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """As the rows have it."""
        return self.inner.gradient

    @property
    def grows(self) -> bool:  # type: ignore[override]
        """As the rows."""
        return self.inner.grows

    @property
    def max_influences(self) -> int | None:  # type: ignore[override]
        """Of all rows together."""
        return self.inner.max_influences

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> "Events":
        """Read the model of an event."""
        nodes, given = parted(x)
        rows = Rows.of(state, self.num_nodes, self.inner)
        if task.carry is not None:
            task = task._replace(carry=rows.gather(task.carry, nodes))
        return Events(self.inner.read(model, rows.shapes(state, nodes.shape), given, task), rows, nodes.shape, task)

    def around(self, engine: Engine, state: PyTree, x: PyTree, task: Task) -> Engine:
        """On the rows of an event."""
        return Events(engine, Rows.of(state, self.num_nodes, self.inner), parted(x)[0].shape, task)

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> PyTree[Array]:
        """Of some nodes."""
        return self.inner.restart(carry, where, zero)


class Events(Engine):
    """The engine of an event of this shape on the rows of its nodes."""

    def __init__(self, inner: Engine, rows: Rows, event: tuple[int, ...], task: Task):
        self.inner, self.rows, self.event, self.task = inner, rows, event, task

    def seen(self, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        """Shapes of the rows of an event, and of what the model gets of it."""
        return self.rows.shapes(state, self.event), struct(parted(x)[1])

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Start with zeros for all nodes.

        Raises:
            ValueError: there are too many influences.
        """
        state = jax.tree.map(jnp.asarray, state)
        part = self.inner.init(model, self.rows.of_state(state, self._block(0)), parted(x)[1])
        whole = jax.eval_shape(lambda: self.rows.spread(part, state, self.event))
        limit = self.rows.storage.max_influences
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(whole.traces) if is_inexact(leaf))
        if limit is not None and size > limit:
            raise ValueError(
                f"num_nodes: the influences of what is trained on {self.rows.num_nodes:,} rows have {size:,} entries, "
                f"more than max_influences={limit:,}. Raise max_influences, train less, or take se.D_RTRL()."
            )
        return self.rows.spread(part, state, self.event)

    def _block(self, number: ArrayLike) -> Integer[Array, "*event"]:
        """Nodes by their numbers, as many as an event has."""
        size = math.prod(self.event)
        return (jnp.asarray(number) * size + jnp.arange(size)).reshape(self.event)

    def carry_shapes(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Shapes and types of what `init` returns."""
        part = self.inner.carry_shapes(model, *self.seen(state, x))
        return jax.eval_shape(lambda part, state: self.rows.spread(part, state, self.event), part, struct(state))

    def begin(self, model: Model) -> object:
        """By the engine of an event."""
        return self.inner.begin(model)

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One event."""
        nodes, given = parted(x)
        part, out = self.inner.step(model, self._gathered(carry, nodes), given)
        return self.rows.scatter(carry, nodes, part), out

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Events one after the other; in reverse mode through all of them where nothing is kept of what came before."""
        if self.rows.storage.grows:
            return past.window(self, self.task.train, model, carry, xs, ys, loss_fn)
        like = eqx.filter(model, trained_filter(model, self.task.train))

        def one(before: tuple[Carry, PyTree], now: tuple[PyTree, PyTree]) -> tuple[tuple, tuple]:
            carry, total = before
            (nodes, x), y = parted(now[0]), now[1]
            x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
            found = self.inner.window(model, self._gathered(carry, nodes), x, y, loss_fn)
            carry = self.rows.scatter(carry, nodes, found.carry)
            total = jax.tree.map(jnp.add, total, widened(found.grads))
            return (carry, total), jax.tree.map(lambda leaf: leaf[0], (found.losses, found.aux))

        start = dataclasses.replace(carry, origin=None), zeros(like)
        (carry, grads), (losses, aux) = jax.lax.scan(one, start, (xs, ys))
        return Window(losses, aux, narrowed(grads, like), carry)

    def _gathered(self, carry: Carry, nodes: Integer[Array, "*event"]) -> Carry:
        part = self.rows.gather(carry, nodes)
        return Carry(self._told(part.state, nodes), part.traces, part.memory)

    def _told(self, state: PyTree[Array], nodes: Integer[Array, "*event"]) -> PyTree[Array]:
        """A state that is NaN where nobody could say in front that an event is impossible."""
        wrong = collides(nodes.ravel(), self.rows.num_nodes)
        return jax.tree.map(lambda leaf: jnp.where(wrong, jnp.nan, leaf) if is_inexact(leaf) else leaf, state)

    # --- windows in reverse mode ------------------------------------------------------------------------------------

    def part(self, carry: Carry, xs: PyTree[Array]) -> Part:
        """The rows of all nodes of a window, by new numbers."""
        (nodes, given), rows = parted(xs), self.rows
        if nodes.size >= rows.num_nodes:
            return Part(self, carry, xs, lambda part: part)
        known = jnp.unique(nodes, size=nodes.size, fill_value=rows.num_nodes)
        here = jnp.where(nodes < rows.num_nodes, jnp.searchsorted(known, nodes), nodes.size)
        here = jnp.where(nodes < 0, nodes, jnp.where(nodes > rows.num_nodes, nodes.size + 1, here))
        inner = Events(self.inner, rows._replace(num_nodes=nodes.size), self.event, self.task)
        xs = type(xs)((here.astype(nodes.dtype), given))
        return Part(inner, rows.gather(carry, known), xs, lambda part: rows.scatter(carry, known, part))

    def observed(self, model: Model, state: PyTree[Array], x: PyTree[Array]) -> Observed:
        """One event."""
        nodes, given = parted(x)
        new, out, said = self.inner.observed(model, self._told(self.rows.of_state(state, nodes), nodes), given)
        return self.rows.put_into(state, nodes, new), out, (nodes, said)

    def recall(self, model: Model, carry: Carry, by_state: list[Array]) -> list[Array | None]:
        """The signals of all rows on what is kept of them, as many at once as an event has."""
        layout = jax.tree.structure(carry.state)
        count = -(-self.rows.num_nodes // math.prod(self.event))

        def one(number: Array) -> list[Array | None]:
            nodes = self._block(number)
            signals = self.rows.of_state(jax.tree.unflatten(layout, by_state), nodes)
            signals = [
                s if has_rows or s.dtype == jax.dtypes.float0 else jnp.where(number == 0, s, 0)
                for s, has_rows in zip(jax.tree.leaves(signals), self.rows.leaves, strict=True)
            ]
            return self.inner.recall(model, self.rows.gather(carry, nodes), signals)

        found = jax.lax.map(one, jnp.arange(count))
        return [None if leaf is None else jnp.sum(leaf, 0) for leaf in found]

    def follow(self, model: Model, carry: Carry, said: PyTree[Array]) -> PyTree[Array]:
        """What is kept of the rows of each event, one after the other."""

        def one(carry: Carry, now: tuple) -> tuple[Carry, None]:
            nodes, said = now
            part = self.rows.gather(carry, nodes)
            traces = self.inner.follow(model, part, jax.tree.map(lambda leaf: leaf[None], said))
            return self.rows.scatter(carry, nodes, Carry(part.state, traces, part.memory)), None

        return jax.lax.scan(one, carry, said)[0].traces

    # --- what it is, in words ---------------------------------------------------------------------------------------

    @property
    def windows_are_free(self) -> bool:
        """Each event is a step by itself, but in reverse mode."""
        return not self.rows.storage.grows

    @property
    def of_plain(self) -> str | None:
        """As in an event."""
        return self.inner.of_plain

    @property
    def grouping(self) -> Grouping | None:
        """Of an event."""
        return self.inner.grouping

    def use(self, carry: Carry, call: Call, leaf: int) -> Use | None:
        """As in an event."""
        return self.inner.use(carry, call, leaf)

    def notes(self) -> list[str]:
        """As in an event."""
        return self.inner.notes()

    def reached(self, params: list[Array], state: list[Like], x: list[Like]) -> dict[int, int]:
        """By an event."""
        return self.inner.reached(params, state, x)

    def buffers(self, carry: Carry) -> dict[str, PyTree]:
        """Of all rows."""
        return self.inner.buffers(carry)
