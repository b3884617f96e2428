"""What the steps of a window say: stacked, or once where it is the same in all."""

from collections.abc import Callable, Sequence
from typing import cast

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .._kernels.elementwise import execute
from .._kernels.room import is_large, room
from .program import constant


class Steady(eqx.Module):
    """An array that so many steps have in common."""

    value: Array
    steps: int = eqx.field(static=True)


class Slice(eqx.Module):
    """So many steps of an array from one on, for a loop to read where they lie."""

    whole: Array
    first: Int[Array, ""]
    steps: int = eqx.field(static=True)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, k: int) -> Array:
        return self.at(self.first + k)

    def at(self, place: Int[Array, ""]) -> Array:
        """The value at a place of the whole."""
        return jax.lax.dynamic_index_in_dim(self.whole, place, keepdims=False)


Steps = Array | Steady
"""A value of each step of a window: a leading axis, time, or none."""


def _is_steady(leaf: object) -> bool:
    return isinstance(leaf, Steady)


def _is_slice(leaf: object) -> bool:
    return isinstance(leaf, Slice)


def stacked(tree: PyTree[Steps]) -> PyTree[Array]:
    """A pytree in which all has a leading axis, time."""

    def one(leaf: Steps) -> Array:
        return jnp.broadcast_to(leaf.value, (leaf.steps, *leaf.value.shape)) if isinstance(leaf, Steady) else leaf

    return jax.tree.map(one, tree, is_leaf=_is_steady)


def with_time(tree: PyTree[Steps]) -> PyTree[Array]:
    """A pytree in which all has a leading axis: time, or one of 1 for what is steady."""
    return jax.tree.map(lambda leaf: leaf.value[None] if isinstance(leaf, Steady) else leaf, tree, is_leaf=_is_steady)


def at_first(part: Steps) -> Array:
    """The value of the first step."""
    return part.value if isinstance(part, Steady) else part[0]


def scan(
    step: Callable[..., tuple],
    start: PyTree,
    xs: PyTree[Steps],
    length: int,
    like: Sequence[jax.ShapeDtypeStruct | None] = (),
    reverse: bool = False,
) -> tuple:
    """`jax.lax.scan` that gives every step what is steady.

    `like` is the list that a step says, where nobody differentiates this: what takes much room is written where
    nothing lay before, as XLA would fill it with zeros first.
    """
    leaves, layout = jax.tree.flatten(xs, is_leaf=lambda leaf: isinstance(leaf, Steady | Slice))
    places = jnp.arange(length)
    moving = [None if _is_steady(a) else a.first + places if isinstance(a, Slice) else a for a in leaves]

    def given(leaf: Steps | Slice, now: Array | None) -> Array | None:
        return leaf.value if isinstance(leaf, Steady) else leaf.at(cast(Array, now)) if isinstance(leaf, Slice) else now

    def one(before: PyTree, now: list[Array | None]) -> tuple:
        return step(before, jax.tree.unflatten(layout, map(given, leaves, now)))

    far = {k: a for k, a in enumerate(like) if a is not None and is_large((length, *a.shape), a.dtype)}
    if length == 1 or not far or not jax.sharding.get_abstract_mesh().empty:
        return jax.lax.scan(one, start, moving, length, reverse, unroll=length == 1)
    after = jax.tree.leaves((moving, start))[0]
    rooms = {k: room((length, *a.shape), a.dtype, after, k) for k, a in far.items()}
    (first, way), put = (length - 1, -1) if reverse else (0, 1), jax.lax.dynamic_update_index_in_dim

    def filling(before: tuple, now: list[Array | None]) -> tuple[tuple, list]:
        before, rooms, t = before
        later, said = one(before, now)
        rooms = {k: put(where, said[k], t, 0) for k, where in rooms.items()}
        return (later, rooms, t + way), [None if k in far else part for k, part in enumerate(said)]

    (last, rooms, _), near = jax.lax.scan(filling, (start, rooms, jnp.int32(first)), moving, length, reverse)
    return last, [rooms.get(k, part) for k, part in enumerate(near)]


def listened(step: Callable[..., tuple], start: PyTree, xs: PyTree[Array | Slice]) -> tuple:
    """`jax.lax.scan` that keeps once what a step puts out in several places, and makes once what no step changes."""
    steps = len(jax.tree.leaves(xs, is_leaf=_is_slice)[0])
    first = jax.tree.map(lambda part: part[0], xs, is_leaf=_is_slice)
    closed, like = jax.make_jaxpr(step, return_shape=True)(start, first)
    jaxpr, layout, count = closed.jaxpr, jax.tree.structure(start), len(jax.tree.leaves(start))
    given, told = _moving(jaxpr), [v for v in jaxpr.outvars[count:] if isinstance(v, jex.Var)]
    moving = [v for v in dict.fromkeys(told) if v in given]
    places = [jaxpr.outvars.index(v) for v in moving]

    def one(before: PyTree, now: PyTree) -> tuple[PyTree, list[Array]]:
        out = jax.core.eval_jaxpr(jaxpr, closed.consts, *jax.tree.leaves((before, now)))
        return jax.tree.unflatten(layout, out[:count]), [out[k] for k in places]

    last, kept = scan(one, start, xs, steps, [_like(cast(jax.core.ShapedArray, v.aval)) for v in moving])
    made = _values(closed, {v for v in told if v not in given})
    found = {v: Steady(value, steps) for v, value in made.items()} | dict(zip(moving, kept, strict=True))
    said = [found[v] if isinstance(v, jex.Var) else Steady(constant(v), steps) for v in jaxpr.outvars[count:]]
    return last, jax.tree.unflatten(jax.tree.structure(like[1]), said)


def _moving(jaxpr: jex.Jaxpr) -> set[jex.Var]:
    """What may be new in each step, as what the host says is."""
    found = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if eqn.effects or any(isinstance(v, jex.Var) and v in found for v in eqn.invars):
            found.update(eqn.outvars)
    return found


def _like(aval: jax.core.ShapedArray) -> jax.ShapeDtypeStruct | None:
    """What an array is like; None for one of random keys."""
    is_key = jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)
    return None if is_key else jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _values(closed: jex.ClosedJaxpr, wanted: set[jex.Var]) -> dict[jex.Var, Array]:
    """What of a jaxpr no input is needed for, by running only the equations that it needs."""
    needed, run = set(wanted), list[jex.JaxprEqn]()
    values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    for eqn in reversed(closed.jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            run.append(eqn)
            needed.update(v for v in eqn.invars if isinstance(v, jex.Var))
    for eqn in reversed(run):
        with eqn.ctx.manager:
            out = execute(eqn, [values[v] if isinstance(v, jex.Var) else v.val for v in eqn.invars])
        values.update(zip(eqn.outvars, out, strict=True))
    return {v: values[v] for v in wanted}
