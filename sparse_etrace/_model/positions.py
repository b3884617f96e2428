"""Which unit does each element of a derivative belong to? The check that dynamics act on each unit by itself.

Numbers of units, one for each element, go through a jaxpr as the elements do:

    u            transpose       slice      broadcast                  sum over axis 0      sum over axis 1
    [0 1 2]      [0 3]           [0 3]      [[0 3]  [1 4]]  twice      [0 3]                0 and 1 meet:
    [3 4 5]      [1 4]           [1 4]                                 [1 4]                Mixed("reduce_sum", line)
                 [2 5]

The sum over axis 0 joins elements of one number and is no mixing. A slice that is pulled back pads with -1, no unit;
a sum of two takes the number of either where the other has none, and is mixed where they differ.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .._kernels.elementwise import execute
from .primitives import CALLS, PLACED, UnknownLayoutError, aval, branches, called, parameter, scan, sub_jaxprs
from .program import is_inexact, line

ELEMENTWISE = {
    "add", "add_any", "sub", "mul", "div", "neg", "select_n", "convert_element_type", "reduce_precision", "real",
    "imag", "complex", "conj", "stop_gradient", "mul_any", "integer_pow", "max", "min", "sign", "abs", "exp", "tanh",
    "logistic", "clamp",
}  # fmt: skip


class Mixed(NamedTuple):
    """A derivative that joins several units, and the equation that joined them."""

    primitive: str
    where: str

    @property
    def words(self) -> str:
        """How units are joined; jax's own sum of what comes back from several readers is no user's word."""
        if self.primitive == "add_any":
            return "as its entries act on one another (of compartments, give each a leaf of its own)"
        if not self.where:
            ring = self.primitive == "dynamic_update_slice"
            return "in the ring of a delay, which traces follow, as of se.D_RTRL" if ring else f"by `{self.primitive}`"
        return f"by `{self.primitive}` at {self.where}"


class Numbers(np.ndarray):
    """Unit numbers that remember the last equation that moved them, also through views and sums."""

    moved: Mixed | None = None

    def __array_finalize__(self, source: np.ndarray | None) -> None:
        self.moved = getattr(source, "moved", None)


Ids = np.ndarray | Mixed | None
"""For each element the number of its unit, -1 for none; None: no derivative passes here at all."""
Unmixed = np.ndarray | None
Values = Sequence[ArrayLike | None]
"""Small integers where they are known."""

MOVERS = {"rev", "transpose", "concatenate", "split", "slice", "pad", "gather", "scatter", "scatter-add", "sort",
          "dynamic_slice", "dynamic_update_slice", "stack", "unstack", "tile", "dot_general"}  # fmt: skip


class _MixingError(Exception):
    pass


def follow(jaxpr: jex.Jaxpr, consts: Sequence[ArrayLike], ids: Sequence[Ids], caller: str = "") -> list[Ids]:
    """Unit numbers of the outputs of a jaxpr that is linear in the inputs that carry numbers.

    `caller` is the line to blame where an equation has none of its own.
    """
    env: dict[jex.Var, Ids] = dict(zip(jaxpr.invars, ids, strict=True))
    values: dict[jex.Var, ArrayLike] = dict(zip(jaxpr.constvars, consts, strict=True))

    def value(var: jex.Var | jex.Literal) -> ArrayLike | None:
        return var.val if isinstance(var, jex.Literal) else values.get(var)

    for eqn in jaxpr.eqns:
        given = [None if isinstance(v, jex.Literal) else env.get(v) for v in eqn.invars]
        if all(g is None for g in given):
            _fold(eqn, [value(v) for v in eqn.invars], values)
            continue
        mixed = next((g for g in given if isinstance(g, Mixed)), None)
        if mixed is not None:
            env.update(dict.fromkeys(eqn.outvars, mixed))
            continue
        where = line(eqn.source_info) or caller
        blame = Mixed(eqn.primitive.name, where)
        try:
            unmixed = [g for g in given if not isinstance(g, Mixed)]
            out = _through(eqn, unmixed, [value(v) for v in eqn.invars], where)
            if any(
                isinstance(o, np.ndarray) and o.shape != aval(v).shape for o, v in zip(out, eqn.outvars, strict=True)
            ):
                raise UnknownLayoutError(eqn, "has an output of another shape than its parameters say")
            if eqn.primitive.name in MOVERS:
                out = [_moved(ids, blame) for ids in out]
        except _MixingError:
            out = [blame] * len(eqn.outvars)
        env.update(zip(eqn.outvars, out, strict=True))
    return [None if isinstance(v, jex.Literal) else env.get(v) for v in jaxpr.outvars]


def _moved(ids: Ids, by: Mixed) -> Ids:
    if isinstance(ids, np.ndarray):
        ids = ids.view(Numbers)
        ids.moved = by
    return ids


def _fold(eqn: jex.JaxprEqn, args: Values, values: dict[jex.Var, ArrayLike]) -> None:
    """Keep small integer constants: they may be the indices of a gather or a slice."""
    if len(eqn.outvars) != 1:
        return
    out = eqn.outvars[0]
    dtype = getattr(out.aval, "dtype", None)
    discrete = dtype is not None and any(jax.dtypes.issubdtype(dtype, kind) for kind in (np.integer, np.bool_))
    known = [a for a in args if a is not None]
    if discrete and aval(out).size <= 1 << 20 and not sub_jaxprs(eqn) and len(known) == len(args):
        with jax.ensure_compile_time_eval():
            (values[out],) = execute(eqn, [jnp.asarray(a) for a in known])


def _through(eqn: jex.JaxprEqn, ids: list[Unmixed], values: Values, where: str) -> list[Ids]:
    name = eqn.primitive.name
    if name in CALLS:
        inner = called(eqn)
        return follow(inner.jaxpr, inner.consts, ids, where)
    if name == "scan":
        return _scan(eqn, ids, where)
    if name == "cond":
        found = [follow(branch.jaxpr, branch.consts, ids[1:], where) for branch in branches(eqn)]
        return [_join(list(parts)) for parts in zip(*found, strict=True)]
    if name in PLACED:
        return list(ids)
    if name in _OF_ONE and ids[0] is not None:
        return list(_OF_ONE[name](eqn, ids[0]))
    if name in _OF_SEVERAL:
        return list(_OF_SEVERAL[name](eqn, ids, values))
    if name in ELEMENTWISE:
        shape = aval(eqn.outvars[0]).shape
        full: list[Ids] = [np.broadcast_to(i, shape) if i is not None and i.shape != shape else i for i in ids]
        return [_join(full)] * len(eqn.outvars)
    if not any(is_inexact(v.aval) for v in eqn.outvars):
        return [None] * len(eqn.outvars)
    raise _MixingError


def _join(parts: list[Ids]) -> Ids:
    """Unit numbers of a sum: where both terms have one they must agree."""
    mixed = next((p for p in parts if isinstance(p, Mixed)), None)
    present = [p for p in parts if isinstance(p, np.ndarray)]
    if mixed is not None or not present:
        return mixed
    total = present[0]
    for part in present[1:]:
        if part is not total:
            if np.any((part != total) & (part >= 0) & (total >= 0)):
                raise _MixingError
            total = np.maximum(part, total)
    return total


def _reduce(ids: np.ndarray, axes: tuple) -> np.ndarray:
    """Unit numbers of a sum over axes, all summands of one unit."""
    top = ids.max(axis=axes, keepdims=True, initial=-1)
    if np.any((ids != top) & (ids >= 0)):
        raise _MixingError
    return top.squeeze(axes)


def _broadcast(ids: np.ndarray, shape: tuple[int, ...], dims: Sequence) -> np.ndarray:
    expanded = [1] * len(shape)
    for axis, dim in enumerate(dims):
        expanded[dim] = ids.shape[axis]
    return np.broadcast_to(ids.reshape(expanded), shape)


def _dot_general(eqn: jex.JaxprEqn, ids: list[Unmixed], values: Values) -> list[np.ndarray]:
    side = 0 if ids[0] is not None else 1
    own = ids[side]
    if own is None or ids[1 - side] is not None:
        raise _MixingError
    contract, batch = (pair[side] for pair in parameter(eqn, "dimension_numbers"))
    reduced = _reduce(own, tuple(contract))
    kept = [axis for axis in range(own.ndim) if axis not in contract]
    order = [kept.index(axis) for axis in (*batch, *(axis for axis in kept if axis not in batch))]
    reduced = reduced.transpose(order)
    shape, free = aval(eqn.outvars[0]).shape, own.ndim - len(contract) - len(batch)
    start = len(batch) if side == 0 else len(shape) - free
    return [_broadcast(reduced, shape, (*range(len(batch)), *range(start, start + free)))]


def _by_binding(eqn: jex.JaxprEqn, ids: list[Unmixed], values: Values) -> list[np.ndarray]:
    """Let the primitive itself move the numbers; its index operands must be known, its other operands are empty."""
    args: list[ArrayLike] = []
    for number, var, value in zip(ids, eqn.invars, values, strict=True):
        if number is None and jax.dtypes.issubdtype(aval(var).dtype, np.integer):
            if value is None:
                raise _MixingError
            args.append(value)
        else:
            args.append(np.zeros(aval(var).shape, np.int32) if number is None else (number + 1).astype(np.int32))
    name = eqn.primitive.name
    with jax.ensure_compile_time_eval():
        if name in _SCATTERS:
            options = {key: parameter(eqn, key) for key in ("unique_indices", "mode")}
            moved = _SCATTERS[name](*map(jnp.asarray, args), parameter(eqn, "dimension_numbers"), **options)
        else:
            (moved,) = execute(eqn, [jnp.asarray(a) for a in args])
        return [np.maximum(np.asarray(moved).astype(int), 0) - 1]


_SCATTERS: dict[str, Callable[..., Array]] = {"scatter": jax.lax.scatter, "scatter-add": jax.lax.scatter_max}


def _scatter_add(eqn: jex.JaxprEqn, ids: list[Unmixed], values: Values) -> list[np.ndarray]:
    """Numbers scatter; where different ones meet, units mix."""
    top = max(int(number.max(initial=-1)) for number in ids if number is not None)
    reverse = [None if number is None else np.where(number < 0, -1, top - number) for number in ids]
    (most,), (least,) = _by_binding(eqn, ids, values), _by_binding(eqn, reverse, values)
    if np.any((most >= 0) & (most + least != top)):
        raise _MixingError
    return [most]


def _scatter_mul(eqn: jex.JaxprEqn, ids: list[Unmixed], values: Values) -> list[np.ndarray]:
    if ids[0] is None or ids[2] is not None:
        raise _MixingError
    return [ids[0]]


def _filled(eqn: jex.JaxprEqn, ids: Sequence[Unmixed]) -> list[np.ndarray]:
    return [np.full(aval(v).shape, -1) if i is None else i for i, v in zip(ids, eqn.invars, strict=True)]


def _concatenate(eqn: jex.JaxprEqn, ids: list[Unmixed], values: Values) -> list[np.ndarray]:
    return [np.concatenate(_filled(eqn, ids), parameter(eqn, "dimension"))]


def _stack(eqn: jex.JaxprEqn, ids: list[Unmixed], values: Values) -> list[np.ndarray]:
    return [np.stack(_filled(eqn, ids), parameter(eqn, "axis"))]


def _split(eqn: jex.JaxprEqn, ids: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(parameter(eqn, "sizes"))[:-1]
    return np.split(ids, ends, parameter(eqn, "axis"))


def _slice(eqn: jex.JaxprEqn, ids: np.ndarray) -> list[np.ndarray]:
    strides = parameter(eqn, "strides") or (1,) * ids.ndim
    return [ids[tuple(map(slice, parameter(eqn, "start_indices"), parameter(eqn, "limit_indices"), strides))]]


def _reshape(eqn: jex.JaxprEqn, ids: np.ndarray) -> list[np.ndarray]:
    return [ids.reshape(aval(eqn.outvars[0]).shape)]


def _pad(eqn: jex.JaxprEqn, ids: np.ndarray) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval():
        numbers = jnp.asarray(ids)
        return [np.asarray(jax.lax.pad(numbers, jnp.asarray(-1, numbers.dtype), parameter(eqn, "padding_config")))]


_OF_ONE: dict[str, Callable[[jex.JaxprEqn, np.ndarray], list[np.ndarray]]] = {
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": lambda e, i: [i.transpose(parameter(e, "permutation"))],
    "broadcast_in_dim": lambda e, i: [_broadcast(i, aval(e.outvars[0]).shape, parameter(e, "broadcast_dimensions"))],
    "rev": lambda e, i: [np.flip(i, parameter(e, "dimensions"))],
    "reduce_sum": lambda e, i: [_reduce(i, tuple(parameter(e, "axes")))],
    "slice": _slice,
    "unstack": lambda e, i: [np.take(i, k, parameter(e, "axis")) for k in range(len(e.outvars))],
    "tile": lambda e, i: [np.tile(i, parameter(e, "reps"))],
    "pad": _pad,
    "split": _split,
}
_OF_SEVERAL: dict[str, Callable[[jex.JaxprEqn, list[Unmixed], Values], list[np.ndarray]]] = {
    "stack": _stack,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "gather": _by_binding,
    "dynamic_slice": _by_binding,
    "dynamic_update_slice": _by_binding,
    "scatter": _by_binding,
    "scatter-add": _scatter_add,
    "scatter-mul": _scatter_mul,
}


def _scan(eqn: jex.JaxprEqn, ids: list[Unmixed], where: str) -> list[Ids]:
    consts, count, length, body = scan(eqn)
    fixed, carry, xs = ids[:consts], list(ids[consts : consts + count]), ids[consts + count :]
    each = []
    for x in xs:
        if x is not None and np.any(x != x[:1]):
            raise _MixingError
        each.append(None if x is None else x[0])
    while True:
        out = follow(body.jaxpr, body.consts, [*fixed, *carry, *each], where)
        joined = [_join([a, b]) for a, b in zip(carry, out[:count], strict=True)]
        unmixed = [j for j in joined if not isinstance(j, Mixed)]
        if len(unmixed) < len(joined):
            raise _MixingError
        if all(a is b or (a is not None and b is not None and np.array_equal(a, b))
               for a, b in zip(joined, carry, strict=True)):  # fmt: skip
            break
        carry = unmixed

    stacked = [o if o is None or isinstance(o, Mixed) else np.broadcast_to(o, (length, *o.shape))
               for o in out[count:]]  # fmt: skip
    return joined + stacked


MOVES = _OF_ONE.keys() - {"reduce_sum", "pad"}


def moved(eqn: jex.JaxprEqn, arrays: Sequence[ArrayLike]) -> list[np.ndarray] | None:
    """The arrays as an equation moves them that does nothing else; None if it is none of these."""
    name = eqn.primitive.name
    if name in MOVES:
        return _OF_ONE[name](eqn, np.asarray(arrays[0]))
    return _OF_SEVERAL[name](eqn, list(map(np.asarray, arrays)), []) if name in ("stack", "concatenate") else None
