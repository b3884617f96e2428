"""Which unit does each element of a derivative belong to? The check that dynamics act on each unit by itself."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.extend.source_info_util as source_info
import jax.numpy as jnp
import numpy as np

from .primitives import CALLS, PLACED, UnknownLayoutError, bind, branches, called, parameter, scan, sub_jaxprs
from .program import is_inexact

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
        return f"by `{self.primitive}` at {self.where}"


class Numbers(np.ndarray):
    """Unit numbers that remember the last equation that moved them, also through views and sums."""

    moved: Mixed | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.moved = getattr(source, "moved", None)


Ids = np.ndarray | Mixed | None
"""For each element the number of its unit, -1 for none; None: no derivative passes here at all."""

MOVERS = {"rev", "transpose", "concatenate", "split", "slice", "pad", "gather", "scatter", "scatter-add", "sort",
          "dynamic_slice", "dynamic_update_slice", "stack", "unstack", "tile", "dot_general"}  # fmt: skip


class _MixingError(Exception):
    pass


def follow(jaxpr: Any, consts: Sequence[Any], ids: Sequence[Ids], caller: str = "") -> list[Ids]:
    """Unit numbers of the outputs of a jaxpr that is linear in the inputs that carry numbers.

    `caller` is the line to blame where an equation has none of its own.
    """
    env: dict[Any, Ids] = dict(zip(jaxpr.invars, ids, strict=True))
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))

    def value(var: Any) -> Any:
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
        line = source_info.summarize(eqn.source_info) or caller
        blame = Mixed(eqn.primitive.name, line)
        try:
            out = _through(eqn, given, [value(v) for v in eqn.invars], line)
            if any(
                isinstance(o, np.ndarray) and o.shape != v.aval.shape for o, v in zip(out, eqn.outvars, strict=True)
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


def _fold(eqn: Any, args: list[Any], values: dict[Any, Any]) -> None:
    """Keep small integer constants: they may be the indices of a gather or a slice."""
    if len(eqn.outvars) != 1:
        return
    aval = eqn.outvars[0].aval
    dtype = getattr(aval, "dtype", None)
    discrete = dtype is not None and (
        jax.dtypes.issubdtype(dtype, np.integer) or jax.dtypes.issubdtype(dtype, np.bool_)
    )
    if discrete and aval.size <= 1 << 20:
        if not sub_jaxprs(eqn) and all(a is not None for a in args):
            with jax.ensure_compile_time_eval():
                values[eqn.outvars[0]] = bind(eqn, [jnp.asarray(a) for a in args])


def _through(eqn: Any, ids: list[Any], values: list[Any], line: str) -> list[Any]:
    name = eqn.primitive.name
    if name in CALLS:
        inner = called(eqn)
        return follow(inner.jaxpr, inner.consts, ids, line)
    if name == "scan":
        return _scan(eqn, ids, line)
    if name == "cond":
        found = [follow(branch.jaxpr, branch.consts, ids[1:], line) for branch in branches(eqn)]
        return [_join(list(parts)) for parts in zip(*found, strict=True)]
    if name in PLACED:
        return list(ids)
    if name in _STRUCTURAL:
        return _STRUCTURAL[name](eqn, ids, values)
    if name in ELEMENTWISE:
        shape = eqn.outvars[0].aval.shape
        full = [np.broadcast_to(i, shape) if i is not None and i.shape != shape else i for i in ids]
        return [_join(full)] * len(eqn.outvars)
    if not any(is_inexact(v.aval) for v in eqn.outvars):
        return [None] * len(eqn.outvars)
    raise _MixingError


def _join(parts: list[Any]) -> Any:
    """Unit numbers of a sum: where both terms have one they must agree."""
    present = [p for p in parts if p is not None]
    if not present:
        return None
    total = present[0]
    for part in present[1:]:
        mixed = part if isinstance(part, Mixed) else total if isinstance(total, Mixed) else None
        if mixed is not None:
            return mixed
        if part is not total:
            if np.any((part != total) & (part >= 0) & (total >= 0)):
                raise _MixingError
            total = np.maximum(part, total)
    return total


def _reduce(ids: np.ndarray, axes: tuple[Any, ...]) -> np.ndarray:
    """Unit numbers of a sum over axes, all summands of one unit."""
    top = ids.max(axis=axes, keepdims=True, initial=-1)
    if np.any((ids != top) & (ids >= 0)):
        raise _MixingError
    return top.squeeze(axes)


def _broadcast(ids: np.ndarray, shape: tuple[int, ...], dims: Sequence[Any]) -> np.ndarray:
    expanded = [1] * len(shape)
    for axis, dim in enumerate(dims):
        expanded[dim] = ids.shape[axis]
    return np.broadcast_to(ids.reshape(expanded), shape)


def _dot_general(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    if ids[0] is not None and ids[1] is not None:
        raise _MixingError
    side = 0 if ids[0] is not None else 1
    contract, batch = (pair[side] for pair in parameter(eqn, "dimension_numbers"))
    own = ids[side]
    reduced = _reduce(own, tuple(contract))
    kept = [axis for axis in range(own.ndim) if axis not in contract]
    order = [kept.index(axis) for axis in (*batch, *(axis for axis in kept if axis not in batch))]
    reduced = reduced.transpose(order)
    shape, free = eqn.outvars[0].aval.shape, own.ndim - len(contract) - len(batch)
    start = len(batch) if side == 0 else len(shape) - free
    return [_broadcast(reduced, shape, (*range(len(batch)), *range(start, start + free)))]


def _by_binding(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    """Let the primitive itself move the numbers; its index operands must be known, its other operands are empty."""
    args: list[Any] = []
    for number, var, value in zip(ids, eqn.invars, values, strict=True):
        if number is None and jax.dtypes.issubdtype(var.aval.dtype, np.integer):
            if value is None:
                raise _MixingError
            args.append(value)
        else:
            args.append(np.zeros(var.aval.shape, np.int32) if number is None else (number + 1).astype(np.int32))
    name = eqn.primitive.name
    with jax.ensure_compile_time_eval():
        args = [jnp.asarray(a) for a in args]
        if name in _SCATTERS:
            moved = _SCATTERS[name](
                *args,
                parameter(eqn, "dimension_numbers"),
                unique_indices=parameter(eqn, "unique_indices"),
                mode=parameter(eqn, "mode"),
            )
        else:
            moved = bind(eqn, args)
        return [np.maximum(np.asarray(moved).astype(int), 0) - 1]


_SCATTERS: dict[str, Callable[..., Any]] = {"scatter": jax.lax.scatter, "scatter-add": jax.lax.scatter_max}


def _scatter_add(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    """Numbers scatter; where different ones meet, units mix."""
    top = max(int(number.max(initial=-1)) for number in ids if number is not None)
    reverse = [None if number is None else np.where(number < 0, -1, top - number) for number in ids]
    (most,), (least,) = _by_binding(eqn, ids, values), _by_binding(eqn, reverse, values)
    if np.any((most >= 0) & (most + least != top)):
        raise _MixingError
    return [most]


def _scatter_mul(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    if ids[0] is None or ids[2] is not None:
        raise _MixingError
    return [ids[0]]


def _filled(eqn: Any, ids: list[Any]) -> list[np.ndarray]:
    return [np.full(v.aval.shape, -1) if i is None else i for i, v in zip(ids, eqn.invars, strict=True)]


def _concatenate(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    return [np.concatenate(_filled(eqn, ids), parameter(eqn, "dimension"))]


def _stack(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    return [np.stack(_filled(eqn, ids), parameter(eqn, "axis"))]


def _split(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    ends = np.cumsum(parameter(eqn, "sizes"))[:-1]
    return list(np.split(ids[0], ends, parameter(eqn, "axis")))


def _slice(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    strides = parameter(eqn, "strides") or (1,) * ids[0].ndim
    return [ids[0][tuple(map(slice, parameter(eqn, "start_indices"), parameter(eqn, "limit_indices"), strides))]]


def _pad(eqn: Any, ids: list[Any], values: list[Any]) -> list[Any]:
    with jax.ensure_compile_time_eval():
        numbers = jnp.asarray(ids[0])
        return [np.asarray(jax.lax.pad(numbers, jnp.asarray(-1, numbers.dtype), parameter(eqn, "padding_config")))]


_STRUCTURAL: dict[str, Callable[[Any, list[Any], list[Any]], list[Any]]] = {
    "reshape": lambda e, i, v: [i[0].reshape(e.outvars[0].aval.shape)],
    "squeeze": lambda e, i, v: [i[0].reshape(e.outvars[0].aval.shape)],
    "expand_dims": lambda e, i, v: [i[0].reshape(e.outvars[0].aval.shape)],
    "transpose": lambda e, i, v: [i[0].transpose(parameter(e, "permutation"))],
    "broadcast_in_dim": lambda e, i, v: [
        _broadcast(i[0], e.outvars[0].aval.shape, parameter(e, "broadcast_dimensions"))
    ],
    "rev": lambda e, i, v: [np.flip(i[0], parameter(e, "dimensions"))],
    "reduce_sum": lambda e, i, v: [_reduce(i[0], tuple(parameter(e, "axes")))],
    "slice": _slice,
    "stack": _stack,
    "unstack": lambda e, i, v: [np.take(i[0], k, parameter(e, "axis")) for k in range(len(e.outvars))],
    "tile": lambda e, i, v: [np.tile(i[0], parameter(e, "reps"))],
    "pad": _pad,
    "concatenate": _concatenate,
    "split": _split,
    "dot_general": _dot_general,
    "gather": _by_binding,
    "dynamic_slice": _by_binding,
    "dynamic_update_slice": _by_binding,
    "scatter": _by_binding,
    "scatter-add": _scatter_add,
    "scatter-mul": _scatter_mul,
}  # fmt: skip


def _scan(eqn: Any, ids: list[Any], line: str) -> list[Any]:
    consts, count, length, body = scan(eqn)
    fixed, carry, xs = ids[:consts], list(ids[consts : consts + count]), ids[consts + count :]
    each = []
    for x in xs:
        if x is not None and np.any(x != x[:1]):
            raise _MixingError
        each.append(None if x is None else x[0])
    while True:
        out = follow(body.jaxpr, body.consts, [*fixed, *carry, *each], line)
        joined = [_join([a, b]) for a, b in zip(carry, out[:count], strict=True)]
        if any(isinstance(j, Mixed) for j in joined):
            raise _MixingError
        if all(a is b or (a is not None and b is not None and np.array_equal(a, b))
               for a, b in zip(joined, carry, strict=True)):  # fmt: skip
            break
        carry = joined
    stacked = [o if o is None or isinstance(o, Mixed) else np.broadcast_to(o, (length, *o.shape))
               for o in out[count:]]  # fmt: skip
    return joined + stacked


MOVES = {"reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "rev", "slice", "stack", "unstack",
         "tile", "concatenate", "split"}  # fmt: skip


def moved(eqn: Any, arrays: list[Any]) -> list[Any] | None:
    """The arrays as an equation moves them that does nothing else; None if it is none of these."""
    name = eqn.primitive.name
    return _STRUCTURAL[name](eqn, list(map(np.asarray, arrays)), []) if name in MOVES else None
