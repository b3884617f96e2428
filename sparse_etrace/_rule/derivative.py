"""The derivative of all state by all that moves it, J: through several steps, by columns or by rows.

    J <- D J + F        D = dh'/dh, F = dh'/dtheta of one step

Columns go forward, one for each parameter: `D j + F e` is the derivative of a step along a change of state and of that
parameter. Rows go backward through all steps at once, one for each number of the state: reverse mode gives its
derivatives by the state in front, which meets J once, and by the parameters. Both go in blocks of what fits.
"""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Inexact, Int, PyTree

from .._model.linear import pushforward
from .._model.primitives import aval, sub_jaxprs
from .._model.program import cast, flatten, is_inexact, is_key, propagate, vjp_jaxpr
from .._model.step import Step
from .._model.trained import is_array_like, struct
from .._model.types import Labels
from .._model.unit_links import UnitLinks
from .._op.active import as_frame
from .._sums import in_full, widened
from .._types import Model
from .black_box import joined
from .signal import leaves_of

Pull = Callable[[Int[Array, " some"]], tuple[Array, Array]]
"""Of some rows after several steps, the derivatives by all rows before, `(batch, some, rows)`, and by what moves them,
`(batch, some, values)`."""


Said = tuple[PyTree[Array], PyTree[Array]]
"""Old states and inputs of several steps."""


def parts_of(z: Array) -> tuple[Array, ...]:
    """The real and the imaginary part of a complex array; another by itself."""
    return (z.real, z.imag) if jnp.iscomplexobj(z) else (z,)


def flat(tree: PyTree[Array]) -> tuple[Inexact[Array, " numbers"], Callable[[Array], PyTree[Array]]]:
    """All numbers in a row, by `parts_of`; and the way back."""
    numbers, apart = ravel_pytree(jax.tree.map(parts_of, tree))

    def back(numbers: Array) -> PyTree[Array]:
        return jax.tree.map(lambda z, p: jax.lax.complex(*p) if jnp.iscomplexobj(z) else p[0], tree, apart(numbers))

    return numbers, back


def values_of(
    model: Model, moving: Sequence[int], params: list[Array] | None = None
) -> tuple[Inexact[Array, " values"], Callable[[Array], Model]]:
    """The numbers of some arrays of a model, or of `params` in their place, in a row; and the model with others."""
    own, build = leaves_of(model)
    params = own if params is None else params
    numbers, back = flat([params[i] for i in moving])

    def with_values(numbers: Array) -> Model:
        new = dict(zip(moving, back(numbers), strict=True))
        return _without_effects(joined(build([new.get(i, leaf) for i, leaf in enumerate(params)])))

    return numbers, with_values


def _without_effects(model: Model) -> Model:
    """A model of which nothing is seen when it runs once more; in loops, or beside ops in loops, its effects stay."""

    def step(state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        closed, shapes = jax.make_jaxpr(model, return_shape=True)(state, x)
        try:
            program = flatten(closed) if closed.effects else None
        except NotImplementedError:
            program = None
        if program is None:
            return model(state, x)
        known = dict(zip(program.inputs, jax.tree.leaves((state, x)), strict=True))
        return jax.tree.unflatten(jax.tree.structure(shapes), program.evaluate(known, program.outputs))

    return step


def live_of(state: PyTree[Array]) -> tuple[Inexact[Array, " rows"], Callable[[Array], PyTree[Array]]]:
    """The floating numbers of a state in a row, and the state with others."""
    live, rest = eqx.partition(state, is_inexact)
    numbers, back = flat(live)
    return numbers, lambda numbers: eqx.combine(back(numbers), rest)


def find_moving(model: Model, state: PyTree, x: PyTree, trained: PyTree[bool]) -> list[int]:
    """Numbers of the trained arrays of a model that act on its floating state within a step; shapes will do."""
    arrays, static = eqx.partition(model, is_array_like)
    chosen, fixed = eqx.partition(struct(arrays), trained)
    live, rest = eqx.partition(struct(state), is_inexact)

    def step(chosen: PyTree, live: PyTree, rest: PyTree, fixed: PyTree, x: PyTree) -> list[Array]:
        new, _ = eqx.combine(chosen, fixed, static)(eqx.combine(live, rest), x)
        return [jnp.asarray(leaf) for leaf in jax.tree.leaves(new) if is_inexact(leaf)]

    jaxpr, new = vjp_jaxpr(step, chosen, live, rest, fixed, struct(x))
    first = len(jax.tree.leaves(chosen))
    labels = [Labels(["new"] if first <= k < first + len(new) else []) for k in range(len(jaxpr.jaxpr.invars))]
    found = propagate(jaxpr.jaxpr, labels)
    numbers = jax.tree.unflatten(jax.tree.structure(arrays), range(len(jax.tree.leaves(arrays))))
    return [i for i, label in zip(jax.tree.leaves(eqx.filter(numbers, trained)), found, strict=True) if label]


# --- columns ---------------------------------------------------------------------------------------------------------


def by_columns(
    matrix: Inexact[Array, "rows columns"],
    model: Model,
    moving: Sequence[int],
    said: Said,
    workspace: int,
    column: Int[Array, " values"] | None = None,
    keep: Callable[[Array], Array] | None = None,
) -> Inexact[Array, "rows columns"]:
    """J after several steps, in so many bytes.

    Args:
        said: the state in front of each step, and its input.
        column: that of each value, -1 for none; None: each has its own.
        keep: what is kept of some columns by their numbers, `(columns, rows)`; None: all.
    """
    values, with_values = values_of(model, moving)
    column = jnp.arange(values.size) if column is None else column

    def some(first: Array, count: int) -> Array:
        numbers = first + jnp.arange(count)
        tangents = (column == numbers[:, None]).astype(values.dtype)
        kept = None if keep is None else keep(numbers)

        def one(part: Array, now: tuple[PyTree, PyTree]) -> tuple[Array, None]:
            state, x = now
            live, with_live = live_of(state)

            def run(live: Array, values: Array) -> Array:
                return live_of(with_values(values)(with_live(live), x)[0])[0]

            new, pull = jax.vjp(run, live, values)
            push = pushforward(lambda ct: (pull(ct),), new)
            part = jax.vmap(push)((part.astype(live.dtype), tangents)).astype(matrix.dtype)
            return part if kept is None else jnp.where(kept, part, 0), None

        part = jax.lax.dynamic_slice_in_dim(matrix, first, count, 1).T
        return jax.lax.scan(one, part, said)[0].T

    return _in_blocks(some, matrix, workspace)


# --- rows ------------------------------------------------------------------------------------------------------------


def by_rows(
    matrix: Inexact[Array, "batch rows columns"], pull: Pull, workspace: int
) -> Inexact[Array, "batch rows columns"]:
    """J after the steps of `pull`."""

    def some(first: Array, count: int) -> Array:
        by_state, fresh = (part.astype(matrix.dtype) for part in pull(first + jnp.arange(count)))
        with in_full():
            return by_state @ matrix + fresh

    return _in_blocks(some, matrix, workspace)


def pull_together(model: Model, moving: Sequence[int], said: Said) -> Pull:
    """Reverse mode of a model through several steps, all batch elements together."""
    values, with_values = values_of(model, moving)
    live, with_live = live_of(jax.tree.map(lambda a: a[0], said[0]))

    def run(live: Array, values: Array) -> Array:
        model = with_values(values)

        def one(state: PyTree, now: tuple[PyTree, PyTree]) -> tuple[PyTree, None]:
            return model(state, now[1])[0], None

        return live_of(jax.lax.scan(one, with_live(live), said)[0])[0]

    new, back = jax.vjp(run, live, values)

    def pull(rows: Array) -> tuple[Array, Array]:
        by_state, by_values = jax.vmap(back)((jnp.arange(new.size) == rows[:, None]).astype(new.dtype))
        return by_state[None], by_values[None]

    return pull


def pull_apart(links: UnitLinks, model: Model, moving: Sequence[int], said: Said) -> Pull:
    """Reverse mode of a model through several steps by its ops, one row of all batch elements at once.

    Batch elements do not act on one another, so that what comes back to each is its own; the ops say what that is by
    their weights.
    """
    reading, program, batch = links.grouping.reading, links.program, len(links.batch)
    params, states = leaves_of(model)[0], jax.tree.leaves(said[0])
    leaves, steps = [leaf[0] for leaf in states], len(states[0])
    weights, calls = reading.weights(params), [c for c in reading.learning if c in links.carriers]
    outputs, inputs = [c.node.outputs[0] for c in calls], [c.x_atoms for c in calls]
    read = [x for atoms in inputs for x in atoms]

    def run(live: list[Array], deltas: list[Array]) -> tuple[list[Array], list[Array]]:
        old = dict(enumerate(leaves)) | dict(zip(links.leaves, live, strict=True))

        def one(state: list[Array], now: tuple[PyTree, list[Array]]) -> tuple[list[Array], list[Array]]:
            x, delta = now
            given = [*params, *state, *jax.tree.leaves(x)]
            known = dict(zip(program.inputs, given, strict=True))
            found = program.evaluate(known, [*reading.new, *read], dict(zip(outputs, delta, strict=True)))
            return found[: len(state)], found[len(state) :]

        new, xs_of = jax.lax.scan(one, [old[i] for i in range(len(leaves))], (said[1], deltas))
        return [new[i] for i in links.leaves], xs_of

    live, ys = [leaves[i] for i in links.leaves], program.shapes(outputs)
    _, back, xs_of = jax.vjp(run, live, [jnp.zeros((steps, *y.shape), y.dtype) for y in ys], has_aux=True)
    xs_iter = iter(xs_of)
    given = [[next(xs_iter) for _ in atoms] for atoms in inputs]
    shared = Step(links.grouping, links)

    def by_values(signals: list[Array], given: list[list[Array]]) -> Array:
        """Of one row of one batch element, from what comes back to each op, time first."""
        dv = {c.number: [jnp.zeros(w.shape, w.dtype) for w in weights[c.number].v] for c in reading.learning}
        for call, signal, x in zip(calls, signals, given, strict=True):
            op, v, read = call.unflatten(*weights[call.number], x)
            signal = widened(signal)
            now = [jnp.sum(signal, 0)] if op.is_diagonal else op.total_dw(widened(as_frame(read)), signal, widened(v))
            leaves = zip(jax.tree.leaves(now), weights[call.number].v, strict=True)
            dv[call.number] = [cast(part, w.dtype) for part, w in leaves]
        found = shared.by_parameter(params, dv, [jnp.zeros_like(params[i]) for i in reading.plain])
        return flat([found[i] for i in moving])[0]

    def units(array: Array, axis: int) -> Array:
        """Batch axes as one."""
        shape = array.shape
        return array.reshape(*shape[:axis], math.prod(links.batch), *shape[axis + batch :])

    def pull(rows: Array) -> tuple[Array, Array]:
        cts, begin = [], 0
        for leaf in live:
            shape = leaf.shape[batch:]
            ids = begin + jnp.arange(math.prod(shape)).reshape(shape)
            hot = (ids == rows.reshape(-1, *[1] * len(shape))).astype(leaf.dtype)
            cts.append(jnp.broadcast_to(hot.reshape(len(rows), *[1] * batch, *shape), (len(rows), *leaf.shape)))
            begin += ids.size
        by_state, signals = jax.vmap(back)(cts)
        parts = [units(part, 1).reshape(len(rows), math.prod(links.batch), -1) for part in by_state]
        each = jax.vmap(jax.vmap(by_values, (0, None)), (2, 1))  # over batch elements, over rows
        fresh = each([units(s, 2) for s in signals], jax.tree.map(lambda x: units(x, 1), given))
        return jnp.swapaxes(jnp.concatenate(parts, -1), 0, 1), fresh

    return pull


# --- blocks ----------------------------------------------------------------------------------------------------------


def _in_blocks(some: Callable[[Array, int], Array], matrix: Array, workspace: int) -> Array:
    """All `some(first, count)` along an axis, of as many at once as so many bytes hold."""
    count, first = matrix.shape[1], jnp.zeros((), jnp.int32)
    if not matrix.size:
        return matrix
    one, two = (_nbytes(jax.make_jaxpr(lambda first, k=k: some(first, k))(first).jaxpr) for k in (1, 2))
    size = max(1, (workspace - 2 * one + two) // max(two - one, 1))
    if size >= count:
        return some(first, count)

    def put(done: Array, first: Array) -> tuple[Array, None]:
        return jax.lax.dynamic_update_slice_in_dim(done, some(first, size), first, 1), None

    # The last block begins where it is whole.
    starts = jnp.minimum(jnp.arange(0, count, size, dtype=jnp.int32), count - size)
    return jax.lax.scan(put, matrix, starts)[0]


def _nbytes(jaxpr: jex.Jaxpr) -> int:
    """Bytes of all that a jaxpr makes, of a loop once."""
    made = (aval(v) for eqn in jaxpr.eqns for v in eqn.outvars)
    inner = sum(max(map(_nbytes, sub_jaxprs(eqn)), default=0) for eqn in jaxpr.eqns)
    return inner + sum(math.prod(a.shape) * a.dtype.itemsize for a in made if hasattr(a, "dtype") and not is_key(a))
