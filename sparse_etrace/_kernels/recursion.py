"""Recursions through the steps of a window, unit by unit: on a CPU in one pass, what is carried staying in a cache."""

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching
from jaxtyping import Array, PyTree

from .._varying import bind
from . import native
from .elementwise import Chain, Made, Row, UnknownOperationError, run_compiled
from .products import Axes


def recursion(
    step: Callable[[PyTree, PyTree], tuple[PyTree, list]],
    carried: PyTree[Array],
    xs: PyTree[Array],
    steps: int,
    units: int,
    reverse: bool = False,
) -> tuple[PyTree[Array], list[Array | None]]:
    """`jax.lax.scan` of a step that does the same in each unit.

    Args:
        step: gets and gives arrays of units alone; those that had other axes before these come as lists of lists.
        carried: before the first.
        xs: of all steps, time first; or with a leading axis of 1 what is the same in all of them.
        steps: how many.
        units: how many axes, the last ones, are those of units.
        reverse: from the last step to the first.

    Returns:
        What is carried after them, and a stack of each array or list that a step says.
    """
    firsts, rest = jax.tree.leaves(carried), jax.tree.leaves(xs)
    structs = [_nested(a.shape[: a.ndim - units], a, units) for a in firsts]
    structs += [_nested(a.shape[1 : a.ndim - units], a, units) for a in rest]
    rows, layout = jax.tree.flatten(structs)
    like: list[PyTree] = []

    def flat(*given: Array) -> list[Array]:
        parts = jax.tree.unflatten(layout, given)
        ends = jax.tree.unflatten(jax.tree.structure(carried), parts[: len(firsts)])
        later, said = step(ends, jax.tree.unflatten(jax.tree.structure(xs), parts[len(firsts) :]))
        like[:] = said
        return jax.tree.leaves((later, said))

    jaxpr = jax.make_jaxpr(flat)(*rows)
    counts = tuple(len(jax.tree.leaves(part)) for part in like if part is not None)

    def by_row(a: Array, front: int) -> Array:
        last = a.ndim - units
        return a.reshape(*a.shape[:front], math.prod(a.shape[front:last]), *a.shape[last:])

    begin, stacks = [row for a in firsts for row in by_row(a, 0)], [by_row(a, 1) for a in rest]
    static = {"counts": counts, "steps": steps, "reverse": reverse}
    out = bind(recursion_p, *begin, *stacks, jaxpr=jaxpr, num=len(begin), **static)
    ends, later = np.cumsum([0, *(math.prod(a.shape[: a.ndim - units]) for a in firsts)]), list[Array]()
    for a, i, k in zip(firsts, ends, ends[1:], strict=False):
        later.append(jnp.stack(out[i:k]).reshape(a.shape))
    made = iter(out[len(begin) :])
    said = [None if part is None else next(made) if isinstance(part, list) else next(made)[:, 0] for part in like]
    return jax.tree.unflatten(jax.tree.structure(carried), later), said


def _nested(front: tuple[int, ...], a: Array, units: int) -> PyTree[jax.ShapeDtypeStruct]:
    if front:
        return [_nested(front[1:], a, units) for _ in range(front[0])]
    return jax.ShapeDtypeStruct(a.shape[a.ndim - units :], a.dtype)


def _xla(
    *operands: Array, jaxpr: jex.ClosedJaxpr, num: int, counts: tuple[int, ...], steps: int, reverse: bool
) -> list[Array]:
    stacks, ends = operands[num:], np.cumsum([num, *counts])

    def one(carried: list[Array], now: list[Array | None]) -> tuple[list[Array], list[Array]]:
        parts = [s[0] if part is None else part for part, s in zip(now, stacks, strict=True)]
        out = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *carried, *(row for part in parts for row in part))
        return out[:num], [jnp.stack(out[a:z]) for a, z in zip(ends, ends[1:], strict=False)]

    moving = [s if len(s) == steps else None for s in stacks]
    later, said = jax.lax.scan(one, list(operands[:num]), moving, steps, reverse)
    return [*later, *said]


def _chain(operands: Sequence[Any], jaxpr: jex.ClosedJaxpr, num: int) -> tuple[Chain, list[Made]]:
    """The chain of a step, whose first operands are those that are carried, and what it makes."""
    chain = Chain(size := jaxpr.in_avals[0].size)
    for value in operands[:num]:
        chain.number(value)
    rows = [
        Row((num + i, r * size, s.shape[1] * size if len(s) > 1 else 0), size, s.dtype)
        for i, s in enumerate(operands[num:])
        for r in range(s.shape[1])
    ]
    made = chain.run(jaxpr.jaxpr, jaxpr.consts, [*operands[:num], *rows])
    if not all(isinstance(value, Made) for value in made):
        raise UnknownOperationError
    return chain, made


def _native(
    *operands: Array, jaxpr: jex.ClosedJaxpr, num: int, counts: tuple[int, ...], steps: int, reverse: bool
) -> list[Array]:
    chain, made = _chain(operands, jaxpr, num)
    units = jaxpr.in_avals[0].shape
    results = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands[:num]]
    results += [jax.ShapeDtypeStruct((steps, count, *units), results[0].dtype) for count in counts]
    places = [(k, 0, 0) for k in range(num)]
    for i, count in enumerate(counts):
        places += [(num + i, r * chain.size, count * chain.size) for r in range(count)]
    return run_compiled(chain, made, results, places, operands, steps=steps, carried=num, is_backward=reverse)


def _types(*avals: jax.core.ShapedArray, jaxpr: jex.ClosedJaxpr, num: int, **_: Hashable) -> bool:
    if not num or not jaxpr.in_avals[0].size:
        return False
    try:
        jax.eval_shape(lambda *operands: _chain(operands, jaxpr, num)[0].size, *avals)
    except UnknownOperationError:
        return False
    return True


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], **static: Any) -> tuple[list[Array], list[Array]]:
    given = tuple(map(ad.instantiate_zeros, tangents))
    return bind(recursion_p, *primals, **static), jax.jvp(functools.partial(_xla, **static), tuple(primals), given)[1]


def _batch(operands: Sequence[Array], axes: Axes, **static: Any) -> tuple[list[Array], list[int]]:
    out = jax.vmap(functools.partial(_xla, **static), in_axes=tuple(axes))(*operands)
    return out, [0] * len(out)


recursion_p = native.primitive("recursion", _xla, _native, _types, is_split=True)
ad.primitive_jvps[recursion_p] = _jvp
batching.primitive_batchers[recursion_p] = _batch
