"""Several steps of a trace and their gradient at once, for any op by its contract."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._sums import dot, joined, matvec, mixed, rounded, sum_steps, zeros

# Elements of a batch go through a window together while they have no more slots.
BLOCK = 2**14


def window_by_blocks(
    op: PyTree,
    v: PyTree,
    trace: PyTree,
    carried: PyTree[Array],
    entering: PyTree[Array],
    signal: PyTree[Array],
    direct: PyTree[Array],
    x: PyTree,
    noise: Array | None,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """`ETraceOp.window`, some elements of the batch after the other."""
    axes = x.ndim - 1 - op.input_ndim
    batch = math.prod(x.shape[1 : 1 + axes])
    slots = max((e[0].size // max(batch, 1) for e in jax.tree.leaves(trace)), default=0)
    most = min(batch, max(BLOCK // max(slots, 1), 1))
    size = next(m for m in range(most, 0, -1) if batch % m == 0) if batch else 0

    def flat(part: Array | None, front: int) -> Array | None:
        return None if part is None else part.reshape(*part.shape[:front], batch, *part.shape[front + axes :])

    fronts = (2, 2, 1, 1)
    whole = [flat(part, k) for part, k in zip((carried, entering, signal, x), fronts, strict=True)]
    eps = jax.tree.map(lambda e: flat(e, 1), trace)

    def block(i: ArrayLike) -> tuple[PyTree, PyTree]:
        def cut(part: Array | None, front: int) -> Array | None:
            return None if part is None else jax.lax.dynamic_slice_in_dim(part, i * size, size, front)

        parts = [cut(part, k) for part, k in zip(whole, fronts, strict=True)]
        return _block(op, v, jax.tree.map(lambda e: cut(e, 1), eps), mixed(noise, i), *parts)

    def add(i: ArrayLike, now: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        later, taught = block(i)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=i * size, axis=1)
        return jax.tree.map(put, now[0], later), jax.tree.map(jnp.add, now[1], taught)

    if batch == size:
        new, taught = _block(op, v, eps, noise, *whole)
    else:
        # A block is read and written while it is in a cache, and only traces have both slots and the whole batch.
        like = jax.eval_shape(lambda: block(0))
        start = None if carried is None else jax.tree.map(jnp.zeros_like, eps), zeros(like[1])
        new, taught = jax.lax.fori_loop(0, batch // size, add, start)
    if carried is not None:
        new = jax.tree.map(lambda e, later: later.reshape(e.shape), trace, new)
    if direct is not None:
        now = op.total_dw(x, direct, v)
        taught = jax.tree.map(lambda e, a, b: None if e is None else a + b, trace, taught, now, is_leaf=_none)
    return new, taught


def _block(
    op: PyTree,
    v: PyTree,
    trace: PyTree,
    noise: Array | None,
    carried: PyTree[Array],
    entering: PyTree[Array],
    signal: PyTree[Array],
    x: PyTree,
) -> tuple[PyTree[Array] | None, PyTree[Array] | None]:
    """New trace, and what the signal says of the old one, for some elements of a batch that is one axis."""
    variables = range(next(len(part) for part in (carried, signal) if part is not None))
    like = (entering[0] if signal is None else signal)[0]
    empty = jax.tree.map(jnp.zeros_like, jax.eval_shape(op.xy_to_dw, x[0], like, v))

    def of(a: int) -> PyTree[Array]:
        def one(e: Array | None, zero: Array) -> Array:
            return zero if e is None else e[a].astype(joined(e, zero))

        return jax.tree.map(one, trace, empty, is_leaf=_none)

    def added(*parts: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *parts)

    def kept(tree: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda e, leaf: None if e is None else leaf, trace, tree, is_leaf=_none)

    old = [of(a) for a in variables]
    new = taught = None
    if carried is not None:
        rows = [
            added(op.sum_dw(x, entering[:, a], v), *(op.yw_to_w(carried[a, b], old[b]) for b in variables))
            for a in variables
        ]
        stacked = kept(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))
        new = jax.tree.map(lambda e, leaf: rounded(leaf, e.dtype, noise), trace, stacked)
    if signal is not None:
        taught = kept(added(*(sum_to(op.yw_to_w(signal[a], old[a]), v) for a in variables)))
    return new, taught


def sum_to(trace: PyTree[Array], v: PyTree[Array]) -> PyTree[Array]:
    """Sum batch axes, positions and broadcast axes of a trace away, down to the shapes of `v`."""

    def one(e: Array, w: Array) -> Array:
        front = e.ndim - w.ndim
        axes = tuple(front + i for i, size in enumerate(w.shape) if size == 1 and e.shape[front + i] != 1)
        return jnp.sum(e, axis=(*range(front), *axes)).reshape(w.shape)

    return jax.tree.map(one, trace, v)


def window_per_unit(
    v: Array,
    trace: Array,
    carried: PyTree[Array],
    entering: PyTree[Array],
    signal: PyTree[Array],
    direct: PyTree[Array],
    noise: Array | None = None,
) -> tuple[Array | None, Array | None]:
    """`ETraceOp.window` of a leaf whose slot is the target unit itself."""
    new, taught, eps = None, None, trace.astype(joined(trace, v))
    if carried is not None:
        new = rounded(matvec(carried, eps) + sum_steps(entering), trace.dtype, noise)
    if signal is not None:
        taught = sum_to(dot(signal, eps) + sum_steps(direct), v)
    return new, taught


def _none(leaf: object) -> bool:
    return leaf is None
