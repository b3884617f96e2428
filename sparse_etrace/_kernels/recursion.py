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
    last: PyTree[bool] = False,
) -> tuple[PyTree[Array], list[Array | None]]:
    """`jax.lax.scan` of a step that does the same in each unit.

    Args:
        step: gets and gives arrays of units alone; those that had other axes before these come as lists of lists.
        carried: before the first.
        xs: of all steps, time first; or with a leading axis of 1 what is the same in all of them.
        steps: how many.
        units: how many axes, the last ones, are those of units.
        reverse: from the last step to the first.
        last: of `xs` or of its parts, whether nothing else reads them: what the step says may lie where they lay.

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

    begin = [row for a in firsts for row in _by_row(a, 0, units)]
    read = jax.tree.leaves(jax.tree.map(lambda is_last, part: jax.tree.map(lambda _: is_last, part), last, xs))
    static = {"counts": counts, "steps": steps, "reverse": reverse, "last": tuple(read)}
    out = bind(recursion_p, *begin, *rest, jaxpr=jaxpr, num=len(begin), **static)
    ends, later = np.cumsum([0, *(math.prod(a.shape[: a.ndim - units]) for a in firsts)]), list[Array]()
    for a, i, k in zip(firsts, ends, ends[1:], strict=False):
        later.append(jnp.stack(out[i:k]).reshape(a.shape))
    made = iter(out[len(begin) :])
    said = [None if part is None else next(made) if isinstance(part, list) else next(made)[:, 0] for part in like]
    return jax.tree.unflatten(jax.tree.structure(carried), later), said


def _by_row(a: Array, front: int, units: int) -> Array:
    last = a.ndim - units
    return a.reshape(*a.shape[:front], math.prod(a.shape[front:last]), *a.shape[last:])


def _nested(front: tuple[int, ...], a: Array, units: int) -> PyTree[jax.ShapeDtypeStruct]:
    if front:
        return [_nested(front[1:], a, units) for _ in range(front[0])]
    return jax.ShapeDtypeStruct(a.shape[a.ndim - units :], a.dtype)


def _xla(
    *operands: Array,
    jaxpr: jex.ClosedJaxpr,
    num: int,
    counts: tuple[int, ...],
    steps: int,
    reverse: bool,
    last: tuple[bool, ...],
) -> list[Array]:
    units, ends = jaxpr.in_avals[0].shape, np.cumsum([num, *counts])
    stacks = [_by_row(s, 1, len(units)) for s in operands[num:]]

    def one(carried: list[Array], now: list[Array | None]) -> tuple[list[Array], list[Array]]:
        parts = [s[0] if part is None else part for part, s in zip(now, stacks, strict=True)]
        out = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *carried, *(row for part in parts for row in part))
        return out[:num], [jnp.stack(out[a:z]) for a, z in zip(ends, ends[1:], strict=False)]

    moving = [s if len(s) == steps else None for s in stacks]
    like = [((steps, count, *units), jaxpr.out_avals[-1].dtype) for count in counts]
    if last == (True,) and [(s.shape, s.dtype) for s in stacks] == like:
        # In place too. With several XLA would copy all of them in each step, as nothing says what is read first.
        def filling(before: tuple, t: Array) -> tuple[tuple, None]:
            carried, stack = before
            later, said = one(carried, [jax.lax.dynamic_index_in_dim(stack, t, keepdims=False)])
            return (later, jax.lax.dynamic_update_index_in_dim(stack, said[0], t, 0)), None

        start = list(operands[:num]), stacks[0]
        (later, only), _ = jax.lax.scan(filling, start, jnp.arange(steps), reverse=reverse)
        return [*later, only]
    later, said = jax.lax.scan(one, list(operands[:num]), moving, steps, reverse)
    return [*later, *said]


def _chain(operands: Sequence[Any], jaxpr: jex.ClosedJaxpr, num: int) -> tuple[Chain, list[Made]]:
    """The chain of a step, whose first operands are those that are carried, and what it makes."""
    chain = Chain(size := jaxpr.in_avals[0].size)
    for value in operands[:num]:
        chain.number(value)
    rows = [
        Row((num + i, first, whole if len(s) > 1 else 0), size, s.dtype)
        for i, s in enumerate(operands[num:])
        for whole in [math.prod(s.shape[1:])]
        for first in range(0, whole, size)
    ]
    made = chain.run(jaxpr.jaxpr, jaxpr.consts, [*operands[:num], *rows])
    if not all(isinstance(value, Made) for value in made):
        raise UnknownOperationError
    return chain, made


def _native(
    *operands: Array,
    jaxpr: jex.ClosedJaxpr,
    num: int,
    counts: tuple[int, ...],
    steps: int,
    reverse: bool,
    last: tuple[bool, ...],
) -> list[Array]:
    chain, made = _chain(operands, jaxpr, num)
    units = jaxpr.in_avals[0].shape
    results = [jax.ShapeDtypeStruct(o.shape, o.dtype) for o in operands[:num]]
    results += [jax.ShapeDtypeStruct((steps, count, *units), results[0].dtype) for count in counts]
    places = [(k, 0, 0) for k in range(num)]
    for i, count in enumerate(counts):
        places += [(num + i, r * chain.size, count * chain.size) for r in range(count)]
    # In place, as each step is read before it is written; XLA copies what is read later all the same.
    aliases = {k: k for k in range(num)}
    moving = [i for i, s in enumerate(operands) if i >= num and last[i - num] and len(s) == steps]
    for k, result in enumerate(results[num:], num):
        like = (i for i in moving if (operands[i].size, operands[i].dtype) == (result.size, result.dtype))
        for i in [i for i in like if i not in aliases][:1]:
            # Of a reshaped one XLA makes a copy.
            aliases[i], results[k] = k, jax.ShapeDtypeStruct(operands[i].shape, result.dtype)
    out = run_compiled(chain, made, results, places, operands, aliases, steps, num, reverse)
    return [*out[:num], *(s.reshape(steps, n, *units) for n, s in zip(counts, out[num:], strict=True))]


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
