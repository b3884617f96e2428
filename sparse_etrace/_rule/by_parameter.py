"""Influences by parameter as an engine: all of them, or those on what is near."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._arrays import blank, on_device
from .._model.batch_axes import axes_of, restarted
from .._model.call import Call
from .._model.grouping import group
from .._model.origin import origin_of
from .._model.program import is_inexact
from .._model.reading import Reading
from .._model.refusals import UntracedError, refuse_zero
from .._model.trained import trained_filter
from .._model.unit_links import UnitLinks
from .._sums import is_narrow, wide
from .._types import Loss, Model
from . import past
from .black_box import by_step, check_linear, check_reach, joined
from .derivative import by_columns, by_rows, find_moving, live_of, pull_apart, pull_together, values_of
from .engine import WRONG_TRACES, Carry, Engine, Observed, Storage, Task, Use, Window, refuse_traces
from .influence_engine import wired
from .nodes import Kept
from .sensitivity import Derivative, Shared
from .signal import leaves_of

STEPS = 64


class Found(NamedTuple):
    """What there is to keep.

    Attributes:
        moving: numbers of the arrays of the model that move its state.
        shared: whose the columns are; None: one for each number, all of it kept.
        kept: what is dropped; None: nothing is.
        reading: of the model, where anything is.
    """

    moving: list[int]
    shared: Shared | None = None
    kept: Kept | None = None
    reading: Reading | None = None


class ByParameter(Engine):
    """The derivative of all state by all that moves it.

    Attributes:
        limit: the most entries.
        workspace: bytes for what is computed at once.
        task: of the learner.
        links: of a model whose batch elements are known not to act on one another; None: they may.
        near: keeps what is near alone; None: all is kept.
    """

    of_plain = "exact"

    def __init__(self, limit: int, workspace: int, task: Task, links: UnitLinks | None, near: "Near | None" = None):
        self.limit, self.workspace, self.task, self.links, self.near = limit, workspace, task, links, near
        self.reach = None if near is None else ("hops", near.hops)
        self._found: Found | None = None

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Start with zeros.

        Raises:
            ValueError: there are too many.
        """
        moving, shared, *_ = self.find(model, state, x)
        shapes = eqx.filter_eval_shape(_zeros, model, state, moving, shared, self.reach)
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes.rows))
        if size > self.limit:
            raise ValueError(
                f"model: the derivative of all state by all that is trained has {size:,} entries, more than "
                f"max_influences={self.limit:,}. Raise max_influences, train less, or take UORO, TBPTT or BPTT."
            )
        rows = jax.tree.map(lambda leaf: blank(leaf.shape, leaf.dtype), shapes.rows)
        origin = origin_of(model, *axes_of(model, state, x, self.task.train))
        traces = Derivative(rows, shared, tuple(moving), self.reach)
        return Carry(jax.tree.map(jnp.asarray, state), traces, origin=origin)

    def carry_shapes(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Shapes and types of what `init` returns; where only what is near is kept, the model needs its arrays."""
        self.find(model, state, x)
        return eqx.filter_eval_shape(self.init, model, state, x)

    def find(self, model: Model, state: PyTree, x: PyTree) -> Found:
        """What there is to keep; found once."""
        if self._found is None:
            moving, near = self._moving(model, state, x), self.near
            self._found = Found(moving) if near is None else near.find(model, state, x, moving, self.task)
        return self._found

    def _moving(self, model: Model, state: PyTree, x: PyTree) -> list[int]:
        return find_moving(model, state, x, trained_filter(model, self.task.train))

    def use(self, carry: Carry, call: Call, leaf: int) -> Use | None:
        """What is dropped of the arrays that are weights of a call."""
        if self._found is None or self._found.kept is None or self._found.reading is None:
            return None
        rules, within = self._found.kept.rules, self._found.reading.within_step
        mine = {rules[i] for i in self._found.moving if ("w", call.number, leaf) in within(("p", i))}
        return Use(next((rule for rule in ("same-step only", "truncated") if rule in mine), "exact"))

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """A window of one step."""
        return past.step(self, self.task.train, model, carry, x)

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Steps in reverse mode, and J after them; where it is not whole, step by step."""
        if self._checked(model, carry).shared is None:
            return past.window(self, self.task.train, model, carry, xs, ys, loss_fn)
        return Window(*by_step(self.step, self.task.train, model, carry, xs, ys, loss_fn))

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int:
        """64: in so many steps rows meet J once."""
        return STEPS

    def recall(self, model: Model, carry: Carry, by_state: list[Array]) -> list[Array | None]:
        """The signals of the state on J."""
        params, traces = leaves_of(model)[0], self._checked(model, carry)
        values, pull = jax.vjp(lambda params: values_of(model, traces.moving, params)[0], params)
        live, to_live = live_of(jax.tree.leaves(carry.state))
        _, by_live = jax.vjp(lambda live: [a for a in to_live(live) if is_inexact(a)], live)
        (signal,) = by_live([part for part in by_state if is_inexact(part)])
        taught = traces.taught(signal, len(values))
        return pull(taught.astype(values.dtype))[0]

    def _checked(self, model: Model, carry: Carry) -> Derivative:
        """The derivative of a carry, refused where it is another's."""
        traces = carry.traces
        if not isinstance(traces, Derivative) or traces.reach != self.reach:
            raise ValueError(WRONG_TRACES)
        given = model, carry.state, traces.moving, traces.shared, self.reach
        refuse_traces(jax.eval_shape(lambda: _zeros(*given)), traces)
        return traces

    def observed(self, model: Model, state: PyTree[Array], x: PyTree[Array]) -> Observed:
        """The step, whose state and input say all."""
        return *joined(model)(state, x), jax.lax.stop_gradient((state, x))

    def follow(self, model: Model, carry: Carry, said: PyTree[Array]) -> PyTree[Array]:
        """J through several steps, by what is less work."""
        traces = self._checked(model, carry)
        moving, shared, links, space = traces.moving, traces.shared, self.links, self.workspace
        if list(moving) != self._moving(model, *jax.tree.map(lambda a: a[0], said)):
            raise ValueError(WRONG_TRACES)
        values, live = values_of(model, moving)[0], live_of(carry.state)[0]
        is_half, steps = is_narrow(live.dtype) or is_narrow(values.dtype), len(jax.tree.leaves(said)[0])
        rows = live.size // (1 if links is None else math.prod(links.batch))
        # A row goes back once and meets all others once in these steps, a column goes forward in each.
        if not is_half and (shared is not None or rows + rows * rows / (2 * steps) >= values.size):
            of = (None, None) if shared is None else (shared.column, traces.kept)
            return traces.with_matrix(by_columns(traces.matrix, model, moving, said, space, *of))
        if links is not None and not is_half:
            return traces.with_rows(self._apart(links, model, traces, said))

        def one(matrix: Array, said: PyTree[Array]) -> tuple[Array, None]:
            pull = pull_together(model, moving, said)
            new = by_rows(matrix[None], pull if shared is None else traces.gathered(pull), space)[0]
            return new if shared is None else jnp.where(traces.kept(slice(None)).T, new, 0), None

        # A sum over steps that is pulled back in half precision would come to a stop.
        parts = jax.tree.map(lambda a: a[:, None] if is_half else a[None], said)
        return traces.with_matrix(jax.lax.scan(one, traces.matrix, parts)[0])

    def _apart(self, links: UnitLinks, model: Model, traces: Derivative, said: PyTree[Array]) -> PyTree[Array]:
        """Rows after several steps, those of each batch element by themselves."""
        leaves, layout = jax.tree.flatten(traces.rows, is_leaf=lambda leaf: leaf is None)
        mine, batch = [leaves[i] for i in links.leaves], math.prod(links.batch)
        parts = [leaf.reshape(batch, -1, leaf.shape[-1]) for leaf in mine]
        pull = pull_apart(links, model, traces.moving, said)
        new = by_rows(jnp.concatenate(parts, 1), pull, self.workspace)
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        for i, leaf, part in zip(links.leaves, mine, jnp.split(new, ends, 1), strict=True):
            leaves[i] = part.reshape(leaf.shape)
        return jax.tree.unflatten(layout, leaves)


def _zeros(model: Model, state: PyTree, moving: Sequence[int], shared: Shared | None, reach: object) -> Derivative:
    values = values_of(model, moving)[0]
    columns = values.size if shared is None else shared.value.shape[1]
    live = eqx.filter(jax.tree.map(jnp.asarray, state), is_inexact)

    def zero(leaf: Array) -> Array:
        part = jnp.zeros((*leaf.shape, columns), wide(values.dtype))
        return jax.lax.complex(part, part) if jnp.iscomplexobj(leaf) else part

    return Derivative(jax.tree.map(zero, live), shared, tuple(moving), reach)


@dataclass(frozen=True)
class Near(Storage):
    """Of each parameter the influence on nodes within so many hops of where it is used.

    Attributes:
        hops: at most; None: any number.
        workspace: bytes for what is computed at once.
        max_influences: the most that are kept.
    """

    hops: int | None
    workspace: int
    max_influences: int
    has_past = True
    has_rows = False

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Exact with all hops."""
        return "exact" if self.hops is None else "truncated"

    def find(self, model: Model, state: PyTree, x: PyTree, moving: list[int], task: Task) -> Found:
        """What is kept of the arrays that move the state.

        Raises:
            TypeError: the model is traced, so that its synapses are not known.
            UntracedError: units act on each other by other ways than ops.
            ValueError: a trained leaf would have no gradient, or a backward pass of the model is not linear.
            NotImplementedError: an op does not say which unit each weight leads from and to.
        """
        links = UnitLinks(group(Reading(model, state, x, task.train)))
        a, stops = links.grouping.reading, links.grouping.stops
        cuts = [c.node.where for c in a.calls if not c.is_op and stops[c.number]]
        if cuts:
            raise UntracedError(
                f"model: expected state that acts on state through ops alone, got se.cut at {' and '.join(cuts)}, of "
                "which nothing says what acts on what. Take SnAp with per='use', which ends there, or se.RTRL()."
            )
        check_linear(model, state, x, task.train)
        kept = Kept(wired(links, model, True), moving, self.hops)
        if task.is_all:
            check_reach(model, state, x, task.train, task.allow_zero)
            for i in moving:
                if kept.rules[i] == "same-step only" and ("out",) not in a.within_step(("p", i)):
                    refuse_zero(a.param_names[i], task.allow_zero, used=True)
        if kept.is_whole:
            return Found(moving, None, kept, a)
        column, value = kept.columns()
        node, begin = [np.full(np.shape(leaf), len(value) - 1) for leaf in jax.tree.leaves(state)], 0
        for i in links.leaves:
            own = node[i].shape[len(links.batch) :]
            node[i] = np.broadcast_to(kept.node[begin : begin + math.prod(own)].reshape(own), node[i].shape)
            begin += math.prod(own)
        of_state = eqx.filter(state, jax.tree.map(is_inexact, state))
        ids = jax.tree.map(
            lambda leaf, ids: None if leaf is None else on_device(ids, jnp.int32),
            of_state, jax.tree.unflatten(jax.tree.structure(state), node), is_leaf=lambda leaf: leaf is None,
        )  # fmt: skip
        return Found(moving, Shared(on_device(column, jnp.int32), on_device(value, jnp.int32), ids), kept, a)

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> ByParameter:
        """Read a model, once."""
        engine = ByParameter(self.max_influences, self.workspace, task, None, self)
        if task.carry is None:
            engine.find(model, state, x)
        return engine

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> Derivative:
        """Rows of some batch elements."""
        return restarted_rows(carry, zero)


def restarted_rows(carry: Carry, zero: Callable[..., Array]) -> Derivative:
    """A derivative of which some batch elements start again."""
    return carry.traces.with_rows(restarted(carry.state, carry.traces.rows, zero))
