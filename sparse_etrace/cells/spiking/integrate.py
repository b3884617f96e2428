"""One step of the equations of a population: exact where they are linear, else by Runge and Kutta's fourth order."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from ..._op.weights import in_front

# Of the exponential of a matrix: its series for a 2**SQUARINGS-th of it. Right to 1e-12 for up to FASTEST per step.
SQUARINGS, TERMS, FASTEST = 6, 6, 100
LARGE = 2.0**30  # beside which a constant of the equations is nothing
Slopes = Callable[[PyTree, PyTree, PyTree], PyTree]  # of constants, variables, and what is held over a step


def runge_kutta(rhs: Callable[[PyTree], PyTree], y: PyTree, dt: float, count: int = 1) -> PyTree:
    """`y` after `dt`, in `count` steps of four slopes."""
    h = dt / count

    def along(y: PyTree, slope: PyTree, step: float) -> PyTree:
        return jax.tree.map(lambda a, b: a + step * b, y, slope)

    def step(y: PyTree) -> PyTree:
        first = rhs(y)
        second = rhs(along(y, first, h / 2))
        third = rhs(along(y, second, h / 2))
        fourth = rhs(along(y, third, h))
        return along(y, jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, first, second, third, fourth), h)

    if count == 1:
        return step(y)
    # A loop: of steps in a row, XLA computes the early ones once for each of their readers.
    y = jax.tree.map(lambda a, s: jnp.broadcast_to(a, s.shape).astype(s.dtype), y, jax.eval_shape(step, y))
    return jax.lax.fori_loop(0, count, lambda _, y: step(y), y)


def propagator(rhs: Slopes, parts: PyTree, layout: PyTree, dt: float) -> Any:
    """`exp(dt A) - 1` of linear slopes, matrices over variables and what is held on the last two axes.

    Args:
        rhs: slopes of the variables.
        parts: the constants, of numpy or of jax.
        layout: the tree of variables and what is held.
        dt: ms.
    """
    size = layout.num_leaves

    def slopes(j: int | None) -> list[Any]:
        return jax.tree.leaves(rhs(parts, *jax.tree.unflatten(layout, [LARGE if i == j else 0.0 for i in range(size)])))

    rest = slopes(None)
    columns = [[(a - b) / LARGE for a, b in zip(slopes(j), rest, strict=True)] for j in range(size)]
    columns = [[*column, *[0.0] * (size - len(column))] for column in columns]
    xp = jnp if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(parts)) else np
    shape = np.broadcast_shapes(*map(np.shape, jax.tree.leaves(columns)))
    a = xp.stack([xp.stack([xp.broadcast_to(entry, shape) for entry in column], -1) for column in columns], -1)
    return _exponential_less_one(xp, dt * a)


def trained_propagator(rhs: Slopes, parts: PyTree, trained: PyTree, layout: PyTree, dt: float) -> Array:
    """The same, with derivatives by the constants that are `trained`, which each act on their own unit."""
    plain = partial(propagator, rhs, layout=layout, dt=dt)
    forward = jax.custom_jvp(plain)

    @forward.defjvp
    def _(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[Array, Array]:
        leaves, tree = jax.tree.flatten(primals[0])
        which = [k for k, is_trained in enumerate(jax.tree.leaves(trained)) if is_trained]
        ones = [jnp.stack([jnp.full_like(leaf, k == c) for c in which]) for k, leaf in enumerate(leaves)]
        by_each = jax.vmap(lambda along: jax.jvp(plain, primals, (along,))[1])(jax.tree.unflatten(tree, ones))
        moves = [jax.tree.leaves(tangents[0])[k][..., None, None] for k in which]
        out = forward(primals[0])
        return out, sum((by * move for by, move in zip(by_each, moves, strict=True)), jnp.zeros_like(out))

    return forward(parts)


def advance(by: Array, links: np.ndarray, y: PyTree, rest: PyTree, held: PyTree) -> PyTree:
    """`y` after a step whose propagator, less one, is `by`."""
    count = len(jax.tree.leaves(y))
    new, rest = jax.tree.leaves(y), jax.tree.leaves(rest)
    moved = [*[a - b for a, b in zip(new, rest, strict=True)], *jax.tree.leaves(held)]
    for i, j in zip(*np.nonzero(links[:count]), strict=True):
        new[i] = new[i] + in_front(by[..., i, j], jnp.ndim(new[i])) * moved[j]
    return jax.tree.unflatten(jax.tree.structure(y), new)


def links_of(rhs: Slopes, parts: PyTree, layout: PyTree) -> np.ndarray:
    """Which variables, after a step, read which at its begin, whatever the constants are."""
    size, ones = layout.num_leaves, jax.tree.map(lambda _: 1.0, parts)
    reads = np.eye(size)
    for j in range(size):
        at = [np.nan if i == j else 0.0 for i in range(size)]
        for i, slope in enumerate(jax.tree.leaves(rhs(ones, *jax.tree.unflatten(layout, at)))):
            reads[i, j] += np.isnan(slope)
    return np.linalg.matrix_power(reads, size) > 0


def matters(rhs: Slopes, parts: PyTree, layout: PyTree) -> tuple[bool, ...]:
    """Which constants a propagator is made of."""
    leaves, tree = jax.tree.flatten(parts)

    def without(k: int) -> Any:
        some = [np.float64(np.nan if i == k else 1.0) for i in range(len(leaves))]
        return propagator(rhs, jax.tree.unflatten(tree, some), layout, 1.0)

    return tuple(bool(np.isnan(without(k)).any()) for k in range(len(leaves)))


def slopes(parts: PyTree, y: PyTree, held: PyTree, free: ArrayLike = 1.0) -> PyTree:
    """Derivatives by time, per ms, of the variables of neurons and synapses; `free` is 0 where `v` is held."""
    (neuron, synapses), (own, filters) = parts, y
    total = sum(s.current(filters[name], held[name], own["v"]) for name, s in synapses.items())
    found = dict(neuron.derivative(own, total))
    found["v"] = free * found["v"]
    return found, {name: s.derivative(filters[name]) for name, s in synapses.items()}


# Of neurons, and of those that are refractory.
MODES: dict[str, Slopes] = {"free": slopes, "held": partial(slopes, free=0.0)}


def _exponential_less_one(xp: Any, a: Any) -> Any:
    """`exp(a) - 1`, to the digits of a small one."""
    precise = {} if xp is np else {"precision": "highest"}
    eye, small = xp.eye(a.shape[-1], dtype=a.dtype), a / 2**SQUARINGS
    series = eye
    for k in range(TERMS, 1, -1):
        series = eye + xp.matmul(small, series, **precise) / k
    less = xp.matmul(small, series, **precise)
    for _ in range(SQUARINGS):
        less = 2 * less + xp.matmul(less, less, **precise)
    return less
