"""Which entries a learning signal can reach: where the gradient of a step may differ from zero, whatever its numbers.

A floating value is followed as an array of booleans, True where it may differ from zero; of integers and booleans the
values are, where they do not depend on state or input. Nothing is compiled but what only XLA knows to move.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .._kernels.elementwise import execute
from .._kernels.windows import sum_to
from .._model.grouping import Grouping
from .._model.positions import moved
from .._model.primitives import CALLS, PLACED, aval, branches, called, interpreted, scan
from .._model.program import is_inexact, is_key
from .._model.step import Step
from .._model.types import Like
from .._op.delays import shape_of
from .traces import routes_of

Value = Any
"""Booleans or known numbers, an array or a scalar of numpy; None for what is not known."""

Axes = tuple[Sequence[int], Sequence[int]]

# Zero where all operands are.
UNION = PLACED | {
    "add", "sub", "add_any", "max", "min", "clamp", "complex", "neg", "abs", "sign", "floor", "ceil", "round", "sqrt",
    "cbrt", "square", "tanh", "sin", "tan", "sinh", "asin", "atan", "asinh", "atanh", "expm1", "log1p", "erf", "real",
    "imag", "conj", "reduce_precision",
}  # fmt: skip
REDUCED = {"reduce_sum", "reduce_max", "reduce_min"}
# Linear in the floating operands: at ones and zeros nothing cancels.
LINEAR = {"gather", "scatter", "scatter-add", "dynamic_slice", "dynamic_update_slice", "pad", "cumsum",
          "conv_general_dilated", "reduce_window_sum"}  # fmt: skip
INTEGER: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum, "neg": np.negative,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "not": np.invert, "clamp": lambda low, x, high: np.clip(x, low, high),
}  # fmt: skip


def support(closed: jex.ClosedJaxpr, given: list[Value]) -> list[Value]:
    """Values of the outputs of a jaxpr, given those of its inputs."""
    values: dict[jex.Var, Value] = dict(zip(closed.jaxpr.invars, given, strict=True))
    values.update((var, known(value)) for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True))
    return interpreted(closed.jaxpr, values, known, _through)


def known(value: ArrayLike) -> Value:
    """What a number or an array says of itself."""
    if is_key(value):
        return None
    array = np.asarray(value)
    return array != 0 if is_inexact(array) else array


def _through(eqn: jex.JaxprEqn, values: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name in CALLS:
        return support(called(eqn), values)
    if name == "cond":
        if values[0] is not None:
            return support(branches(eqn)[int(np.clip(values[0], 0, len(branches(eqn)) - 1))], values[1:])
        return [_either(*parts) for parts in zip(*(support(b, values[1:]) for b in branches(eqn)), strict=True)]
    if name == "scan":
        return _scan(eqn, values)
    floating = [is_inexact(v.aval) for v in eqn.invars]
    if any(is_inexact(v.aval) for v in eqn.outvars):
        return _floating(eqn, values, floating)
    if any(v is None for v in values) or any(floating) or any(is_key(v.aval) for v in eqn.outvars):
        return [None] * len(eqn.outvars)
    if name in INTEGER:
        return [INTEGER[name](*values).astype(aval(eqn.outvars[0]).dtype)]
    found = moved(eqn, values)
    return found if found is not None else _run(eqn, values)


def _floating(eqn: jex.JaxprEqn, values: list[Value], floating: list[bool]) -> list[Value]:
    name, shape = eqn.primitive.name, aval(eqn.outvars[0]).shape
    mine = [v for v, is_one in zip(values, floating, strict=True) if is_one]
    if name in UNION or (name == "integer_pow" and eqn.params["y"] > 0):
        return [np.broadcast_to(np.logical_or.reduce(np.broadcast_arrays(*mine)), shape)] * len(eqn.outvars)
    if name == "mul":
        return [np.broadcast_to(mine[0] & mine[1], shape)]
    if name == "div":
        return [np.broadcast_to(mine[0], shape)]
    if name == "select_n":
        which = values[0]
        return [_either(*mine) if which is None else np.choose(np.broadcast_to(which, shape).astype(int), mine)]
    if name == "convert_element_type":
        source = values[0]
        return [np.ones(shape, bool) if source is None else source != 0]
    if name in REDUCED:
        return [mine[0].any(axis=tuple(eqn.params["axes"]))]
    if name == "dot_general":
        return [_product(*mine, *eqn.params["dimension_numbers"])]
    if all(floating) and (found := moved(eqn, mine)) is not None:
        return found
    if (name in LINEAR or name.startswith("etrace_")) and all(v is not None for v in values):
        return _run(eqn, values)
    return [np.ones(aval(v).shape, bool) if is_inexact(v.aval) else None for v in eqn.outvars]


def _run(eqn: jex.JaxprEqn, values: list[Value]) -> list[Value]:
    """Execute an equation at ones and zeros."""
    with jax.ensure_compile_time_eval():
        out = execute(eqn, [jnp.asarray(v, aval(var).dtype) for v, var in zip(values, eqn.invars, strict=True)])
    return [known(o) for o in out]


def _either(*parts: Value) -> Value:
    """What holds where any of these may be; integers are known where they are the same."""
    if any(p is None for p in parts):
        return None
    if all(p.dtype == bool for p in parts):
        return np.logical_or.reduce(parts)
    return parts[0] if all(np.array_equal(p, parts[0]) for p in parts) else None


def _product(a: np.ndarray, b: np.ndarray, contracted: Axes, batch: Axes) -> np.ndarray:
    axes = [[i for i in range(part.ndim) if i not in (*c, *f)] for part, c, f in zip((a, b), contracted, batch)]
    front, free = [a.shape[i] for i in batch[0]], [[p.shape[i] for i in own] for p, own in zip((a, b), axes)]
    count = math.prod(a.shape[i] for i in contracted[0])
    first = a.transpose(*batch[0], *axes[0], *contracted[0]).reshape(*front, math.prod(free[0]), count)
    second = b.transpose(*batch[1], *contracted[1], *axes[1]).reshape(*front, count, math.prod(free[1]))
    with np.errstate(invalid="ignore"):  # a BLAS may set the flag by lanes beside the numbers
        total = first.astype(np.float32) @ second.astype(np.float32)
    return (total > 0).reshape(*front, *free[0], *free[1])


def _scan(eqn: jex.JaxprEqn, values: list[Value]) -> list[Value]:
    parts = scan(eqn)
    first, last = parts.consts, parts.consts + parts.carry
    carry = values[first:last]
    each = [None if x is None else x.any(0) if x.dtype == bool else _either(*x) for x in values[last:]]
    while True:
        out = support(parts.body, [*values[:first], *carry, *each])
        later = [_either(a, b) for a, b in zip(carry, out[: parts.carry], strict=True)]
        if all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in zip(carry, later)):
            break
        carry = later
    stacked = [None if o is None else np.broadcast_to(o, (parts.length, *o.shape)) for o in out[parts.carry :]]
    return [*carry, *stacked]


def reached(grouping: Grouping, params: list[Array], state: list[Like], x: list[Like]) -> dict[int, int]:
    """Entries of each trained leaf that a derivative of `out` reaches.

    State, input and what is trained may be anything: a readout that starts at zero does not stay there.

    Args:
        params: all arrays of the model.
        state, x: arrays or shapes.
    """
    step = Step(grouping)

    def gradients(params: list[Array], state: list[Array], x: list[Array], cts: list[Array]) -> list[Array]:
        weights = step.reading.weights(params)
        _, _, pull, jacobians = step.run(params, state, x, weights)
        m, n, plain, _ = pull(cts)
        _, d, f, spread, _ = jacobians()
        taught = {}
        for call in grouping.reading.learning:
            op, v, _ = call.unflatten(*weights[call.number], call.x_atoms)
            given = shape_of(call.template(grouping.program)[2])
            y, carried = n[call.number], []
            for g, route in routes_of(grouping, call):
                heard = m[g]
                for _ in range(len(heard)):
                    heard = heard + jnp.sum(d[g] * heard[:, None], axis=0)
                landed = route.spread(heard, len(grouping.groups[g].shape)) * f[(g, route.source)]
                landed = jnp.sum(landed, axis=0).astype(y.dtype)
                if route.via is None:
                    y = y + (route.total(landed, y) if op.is_diagonal else landed)
                else:
                    carried.append((spread[call.number, route.via][0], landed))
            pairs = [(None if op.is_diagonal else jnp.ones_like(x), y) for x, y in [(given, y), *carried]]
            parts = [sum_to(op.xy_to_dw(x, y, v), v) for x, y in pairs]
            taught[call.number] = jax.tree.leaves(jax.tree.map(lambda *leaves: sum(leaves), *parts))
        grads = step.by_parameter(params, taught, plain)
        return [grads[i] for i in grouping.reading.trained]

    program = grouping.program
    cts = [s for s in program.shapes(a for a in grouping.reading.out if isinstance(a, int)) if is_inexact(s)]
    closed = jax.make_jaxpr(gradients)(params, state, x, cts)

    def anything(leaf: Like) -> Value:
        return np.ones(leaf.shape, bool) if is_inexact(leaf) else None

    values = [anything(p) if i in grouping.reading.trained else known(p) for i, p in enumerate(params)]
    found = support(closed, [*values, *map(anything, [*state, *x, *cts])])
    return {i: int(np.sum(leaf)) for i, leaf in zip(grouping.reading.trained, found, strict=True) if leaf is not None}
