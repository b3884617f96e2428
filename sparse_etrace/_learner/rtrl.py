"""RTRL: the exact gradient, forward in time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Inexact, PyTree

from .._model.batch_axes import axes_of, restarted
from .._model.grouping import Grouping
from .._model.linear import pushforward
from .._model.origin import origin_of
from .._model.program import is_inexact
from .._model.refusals import UntracedError
from .._model.types import Filter
from .._numbers import number, whole
from .._rule.black_box import check_linear, check_reach, joined, split
from .._rule.engine import Carry, Engine, Rule, Storage, Task, Window, cut, refuse_traces
from .._rule.influence import Influences
from .._rule.influence_engine import Pattern, restarted_influences
from .._rule.reach import Wiring
from .._rule.signal import leaves_of
from .._sums import in_full, is_narrow, wide
from .._types import Loss, Model
from .learner import RuleLearner

# Multiply-adds of a product of matrices in the time of one of the influences.
PRODUCTS = 2


class Dense(eqx.Module):
    """Derivative of the floating state by all that is trained: for each leaf of the state `(*leaf, params)`.

    A complex leaf has a row for its real and one for its imaginary part in `matrix`, as in `_flat`.
    """

    jacobian: PyTree[Array]

    @property
    def matrix(self) -> Inexact[Array, "state params"]:
        leaves = [leaf.reshape(math.prod(leaf.shape[:-1]), leaf.shape[-1]) for leaf in jax.tree.leaves(self.jacobian)]
        return jnp.concatenate([part for leaf in leaves for part in _parts(leaf)])

    def with_matrix(self, matrix: Inexact[Array, "state params"]) -> "Dense":
        """Other numbers, cut into leaves of the state."""
        leaves, shape = jax.tree.flatten(self.jacobian)
        rows = [math.prod(leaf.shape[:-1]) for leaf in leaves for _ in _parts(leaf)]
        parts = iter(jnp.split(matrix, np.cumsum(rows)[:-1]))
        own = [[next(parts).reshape(leaf.shape) for _ in _parts(leaf)] for leaf in leaves]
        return Dense(jax.tree.unflatten(shape, [jax.lax.complex(*p) if len(p) == 2 else p[0] for p in own]))


class RTRL(RuleLearner):
    """Real-time recurrent learning: the gradient of BPTT, forward in time, for any model.

    `J <- dh_t/dh_{t-1} J + dh_t/dtheta`, `dtheta += dL_t/dh_{t-1} J + dL_t/dtheta`. Where all that is trained acts
    through ops, and units act on each other through ops only, J is kept on the pairs of synapse and unit that any
    number of steps leads to: `SnAp` without an end. Any other model (a trained array outside of ops that acts on
    hidden state, units mixed by anything else, `se.cut`) is differentiated as a whole, with a full matrix of all state,
    batch included, by all that is trained; so is one of dense ops, where products of matrices are faster. `explain`
    and `memory_plan` say which.

    Args:
        max_influences: the most that are kept, for each batch element or in that matrix; more is an error before
            anything is allocated.
        train, allow_zero: see `D_RTRL`.

    Raises:
        ValueError: at `init`, there are too many influences; or as `BPTT.init`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> learner = se.RTRL()
        >>> carry = learner.init(cell, cell.init_state(), jnp.ones(2))
        >>> carry, out = learner.step(cell, carry, jnp.ones(2))

    Reference:
        Williams and Zipser 1989, Neural Computation 1:270.
    """

    max_influences: int = number(whole, "max_influences", default=100_000_000)
    train: Filter = None
    allow_zero: tuple[str, ...] = ()

    def rule(self) -> Rule:
        """All influences, or the derivative of all state."""
        return Rule(Everything(self.max_influences))


def _all(wiring: Wiring, limit: int) -> sp.csr_array:
    """All neurons that any number of steps leads to.

    Raises:
        UntracedError: nearly all are reached by nearly all ways, so that the whole derivative takes less time.
    """
    reach = wiring.reach(None, None, limit)
    a, units, batch = wiring.links.grouping.reading, wiring.num_hidden, math.prod(wiring.links.batch)
    trained = sum(leaf.size for leaf in a.program.shapes(a.params[i] for i in a.trained))
    kept, full = wiring.count(reach, np.arange(reach.shape[0])), trained * units
    if 0 < full <= 2 * kept and batch * full <= limit:
        along_edges, as_a_whole = kept * len(wiring.edges.sink), full * units * units * batch
        if as_a_whole <= PRODUCTS * along_edges:
            raise UntracedError("model: its units act on each other by nearly all ways that there are.")
    return reach


@dataclass(frozen=True)
class Everything(Storage):
    """All influences: on the pairs of synapse and unit that act on each other, or as one matrix."""

    max_influences: int
    has_past = True

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> Engine:
        """Read a model if its influences are kept one by one, as those of the carry are, or as is less work."""
        whole = Whole(self.max_influences, task)
        if task.carry is not None and isinstance(task.carry.traces, Dense):
            return whole
        pattern = Pattern(lambda w: _all(w, self.max_influences), ("RTRL",), self.max_influences, "exact", True)
        if task.carry is not None:
            return pattern.read(model, state, x, task)
        check_reach(model, state, x, task.train, task.allow_zero)
        try:
            engine = pattern.read(model, state, x, task)
            if _acts_through_ops(engine.grouping):
                engine.begin(model)
                return engine
        except (UntracedError, NotImplementedError):
            pass  # units are mixed, or an op does not say which synapses it has
        check_linear(model, state, x, task.train)
        return whole

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> Dense | Influences:
        """Influences on the units of some batch elements."""
        if isinstance(carry.traces, Dense):
            return Dense(restarted(carry.state, carry.traces.jacobian, zero))
        return restarted_influences(carry.traces, where, zero)


class Whole(Engine):
    """The derivative of all state by all that is trained, as one matrix."""

    def __init__(self, limit: int, task: Task):
        self.limit, self.task = limit, task

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Start with a matrix of zeros.

        Raises:
            ValueError: it is too large.
        """
        shapes = eqx.filter_eval_shape(
            lambda model, state: _zeros(split(model, self.task.train)[0], state), model, state
        )
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        if size > self.limit:
            raise ValueError(
                f"model: the derivative of all state by all that is trained has {size:,} entries, more than "
                f"max_influences={self.limit:,}, and the model is not made of ops so that fewer would do. "
                "Raise max_influences, train less, or take UORO, TBPTT or BPTT."
            )
        traces = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        origin = origin_of(model, *axes_of(model, state, x, self.task.train))
        return Carry(jax.tree.map(jnp.asarray, state), traces, origin=origin)

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Step by step, with one gradient for all."""
        trained, fixed = split(model, self.task.train)
        refuse_traces(jax.eval_shape(_zeros, trained, carry.state), carry.traces)
        values, to_values = _flat(trained)
        by_rows = _by_rows(_flat(eqx.filter(carry.state, is_inexact))[0], values)

        def one(before: tuple[PyTree, Array, Array], now: tuple[PyTree, PyTree]) -> tuple[tuple, tuple]:
            state, matrix, total = before
            x, y = now
            live, run = _as_vectors(to_values, fixed, state, x)

            def loss_of(live: Array, values: Array) -> tuple[Array, tuple[PyTree, PyTree]]:
                new, out = run(live, values)
                loss, aux = loss_fn(out, y)
                return loss, (new, aux)

            loss, pull, (new, aux) = jax.vjp(loss_of, live, values, has_aux=True)
            by_state, by_values = (part.astype(matrix.dtype) for part in pull(jnp.ones_like(loss)))
            with in_full():
                total = total + (by_state @ matrix if by_rows else matrix @ by_state) + by_values
            return (new, _advance(run, live, values, matrix), total), (loss, aux)

        matrix = _turned(carry.traces.matrix, by_rows)
        start = (carry.state, matrix, jnp.zeros(len(values), matrix.dtype))
        (state, matrix, total), (losses, aux) = jax.lax.scan(one, start, (xs, ys))
        (grads,) = jax.vjp(lambda trained: _flat(trained)[0], trained)[1](total.astype(values.dtype))
        return Window(losses, aux, grads, Carry(state, carry.traces.with_matrix(_turned(matrix, by_rows))))

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the matrix."""
        given, (trained, fixed) = (model, carry, x), split(model, self.task.train)
        carry, held = jax.lax.stop_gradient((carry, x))
        refuse_traces(jax.eval_shape(_zeros, trained, carry.state), carry.traces)
        matrix, (values, to_values) = carry.traces.matrix, _flat(trained)
        constant = jax.lax.stop_gradient(values)
        live, run = _as_vectors(to_values, fixed, carry.state, x)
        # Zero, with the derivative of the old state.
        with in_full():
            moved = matrix @ (values - constant).astype(matrix.dtype)
        new, out = run(live + moved.astype(live.dtype), values)
        by_rows = _by_rows(live, values)
        run = _as_vectors(to_values, fixed, carry.state, held)[1]
        later = _advance(run, live, constant, _turned(matrix, by_rows))
        return cut(Carry(new, carry.traces.with_matrix(_turned(later, by_rows))), *given), out

    def recall(self, model: Model, carry: Carry, by_state: list[Array]) -> list[Array | None]:
        """The signals of the state on the matrix."""
        params, build = leaves_of(model)
        values, pull = jax.vjp(lambda params: _flat(split(build(params), self.task.train)[0])[0], params)
        live, to_live = _flat([leaf for leaf in jax.tree.leaves(carry.state) if is_inexact(leaf)])
        (signal,) = jax.vjp(to_live, live)[1]([part for part in by_state if is_inexact(part)])
        matrix = carry.traces.matrix
        with in_full():
            taught = signal.astype(matrix.dtype) @ matrix
        return pull(taught.astype(values.dtype))[0]

    def observed(
        self, model: Model, state: PyTree[Array], x: PyTree[Array]
    ) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array]]:
        """The step, whose state and input say all."""
        return *joined(model)(state, x), jax.lax.stop_gradient((state, x))

    def follow(self, model: Model, carry: Carry, said: PyTree[Array]) -> PyTree[Array]:
        """The matrix through several steps."""
        trained, fixed = split(model, self.task.train)
        refuse_traces(jax.eval_shape(_zeros, trained, carry.state), carry.traces)
        values, to_values = _flat(trained)

        def one(matrix: Array, now: tuple[PyTree[Array], PyTree[Array]]) -> tuple[Array, None]:
            live, run = _as_vectors(to_values, fixed, *now)
            return _advance(run, live, values, matrix), None

        by_rows = _by_rows(_flat(eqx.filter(carry.state, is_inexact))[0], values)
        matrix, _ = jax.lax.scan(one, _turned(carry.traces.matrix, by_rows), said)
        return carry.traces.with_matrix(_turned(matrix, by_rows))


def _turned(matrix: Array, by_rows: bool) -> Array:
    """The matrix as it goes through a window, with its columns in front where those are fewer; and back."""
    return matrix if by_rows else matrix.T


def _flat(tree: PyTree[Array]) -> tuple[Inexact[Array, " numbers"], Callable[[Array], PyTree[Array]]]:
    """All numbers in a row, of a complex one the real and the imaginary part; and the way back."""
    parts = jax.tree.map(_parts, tree)
    flat, apart = ravel_pytree(parts)

    def back(flat: Array) -> PyTree[Array]:
        return jax.tree.map(lambda z, p: jax.lax.complex(*p) if jnp.iscomplexobj(z) else p[0], tree, apart(flat))

    return flat, back


def _parts(z: Array) -> tuple[Array, ...]:
    return (z.real, z.imag) if jnp.iscomplexobj(z) else (z,)


def _as_vectors(
    to_values: Callable[[Array], PyTree], fixed: PyTree, state: PyTree[Array], x: PyTree
) -> tuple[Inexact[Array, " state"], Callable[[Array, Array], tuple[PyTree, PyTree]]]:
    """The floating state in a row, and a step as a function of it and of all that is trained."""
    live, rest = eqx.partition(state, is_inexact)
    flat, to_live = _flat(live)
    return flat, lambda live, values: joined(to_values(values), fixed)(eqx.combine(to_live(live), rest), x)


def _advance(run: Callable[[Array, Array], tuple[PyTree, PyTree]], live: Array, values: Array, matrix: Array) -> Array:
    """`J <- dh'/dh J + dh'/dtheta`, with rows in front, or with the columns where those are fewer."""

    def floating(live: Array, values: Array) -> Array:
        return _flat(eqx.filter(run(live, values)[0], is_inexact))[0]

    new, pull = jax.vjp(floating, live, values)
    if _by_rows(live, values):
        by_state, by_values = (part.astype(matrix.dtype) for part in jax.vmap(pull)(jnp.eye(len(new), dtype=new.dtype)))
        with in_full():
            return by_state @ matrix + by_values
    push = pushforward(lambda ct: (pull(ct),), new)
    columns = matrix.astype(live.dtype), jnp.eye(len(values), dtype=values.dtype)
    return jax.vmap(push)(columns).astype(matrix.dtype)


def _by_rows(live: Array, values: Array) -> bool:
    """Whether J is advanced row by row, and not column by column."""
    # A sum over steps that is pushed through half precision would come to a stop.
    return len(live) <= len(values) or is_narrow(live.dtype) or is_narrow(values.dtype)


def _zeros(trained: PyTree[Array], state: PyTree[Array]) -> Dense:
    values = _flat(trained)[0]
    live = eqx.filter(jax.tree.map(jnp.asarray, state), is_inexact)

    def zero(leaf: Array) -> Array:
        part = jnp.zeros((*leaf.shape, values.size), wide(values.dtype))
        return jax.lax.complex(part, part) if jnp.iscomplexobj(leaf) else part

    return Dense(jax.tree.map(zero, live))


def _acts_through_ops(grouping: Grouping) -> bool:
    """Whether nothing trained acts on hidden state, and no hidden state on itself, by other ways than ops."""
    a = grouping.reading
    if any(not c.is_op and grouping.stops[c.number] for c in a.calls):
        return False
    return not any(s[0] == "n" and s[1] in grouping.cluster for i in a.plain for s in a.outside_ops(i))
