"""Chains of elementwise operations on large arrays in one pass, where XLA makes one for each result."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._varying import axes_of
from . import native
from .products import Axes, Tangent

# Smaller arrays stay in a cache between the passes of XLA.
LEAST = 2**15
CALLS = {"jit", "pjit", "custom_jvp_call", "custom_vjp_call"}
SAME = {"broadcast_in_dim", "reshape", "squeeze", "stop_gradient"}
# As in native/elementwise.h, by what they are of: floats (f) or integers (i), and truth values (b).
BOTH = {
    "add": 2,
    "sub": 2,
    "mul": 2,
    "neg": 1,
    "max": 2,
    "min": 2,
    "eq": 2,
    "ne": 2,
    "lt": 2,
    "le": 2,
    "gt": 2,
    "ge": 2,
}
CODES = {(name, kind * count): 2 * i + (kind == "i") for i, (name, count) in enumerate(BOTH.items()) for kind in "fi"}
OTHERS = [("select_n", "bff"), ("and", "bb"), ("or", "bb"), ("not", "b"), ("div", "ff"), ("to f", "i"), ("to f", "b"),
          ("to i", "b")]  # fmt: skip
CODES |= {other: 2 * i for i, other in enumerate(OTHERS, len(BOTH))}
CODES |= {("select_n", kinds): CODES["select_n", "bff"] for kinds in ("bii", "bbb")}


class UnknownOperationError(Exception):
    """A chain that is none of the kernel's."""


def fused(fn: Callable[..., tuple[PyTree, PyTree]], carried: PyTree[Array], *rest: PyTree) -> tuple[PyTree, PyTree]:
    """`fn(carried, *rest)`, whose first result takes the place of what is carried; of large arrays in one pass.

    What is no chain of operations that the compiled kernel knows is left to XLA, as all derivatives are.
    """
    given, tree = jax.tree.flatten((carried, *rest))
    is_small = max(map(jnp.size, given), default=0) < LEAST
    if is_small or not any(isinstance(leaf, jax.core.Tracer) for leaf in given):
        return fn(carried, *rest)
    structs = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in given]
    closed, shapes = jax.make_jaxpr(lambda *flat: fn(*jax.tree.unflatten(tree, flat)), return_shape=True)(*structs)
    if axes_of(*closed.consts, *given):
        return fn(carried, *rest)
    # What it reads beside its arguments becomes one.
    given, run = [*closed.consts, *given], functools.partial(_from, closed.jaxpr, len(closed.consts))
    closed = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in given))
    out = elementwise_p.bind(
        *given, jaxpr=closed, first=len(given) - len(structs), carried=len(jax.tree.leaves(carried))
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), out)


def execute(eqn: jex.JaxprEqn, values: Sequence[ArrayLike]) -> list[Array]:
    """Execute an equation on other values: its outputs."""
    params = eqn.primitive.get_bind_params(eqn.params)
    # Before jax 0.9 the functions among the parameters come apart, as the first arguments.
    functions, params = params if isinstance(params, tuple) else ((), params)
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


class Made(NamedTuple):
    """A value that the kernel makes: its number, and its type."""

    number: int
    dtype: np.dtype


class Row(NamedTuple):
    """A part of an operand, in the step that is at work."""

    place: tuple[int, int, int]  # the operand, the first number, and how many numbers on it is in the next step
    size: int
    dtype: np.dtype


class Chain:
    """What the kernel does: its operands, and numbers for each value that it makes of them.

    What does not depend on such values, or is of another size, is computed before.
    """

    def __init__(self, size: int):
        self.size = size
        self.operands: list[Array | Row] = []
        self.code: dict[tuple[int, ...], int] = {}  # what is done with three numbers, and that of the result
        self.literals: dict[tuple[str, bytes], Array] = {}
        self.float: np.dtype | None = None

    def run(self, jaxpr: jex.Jaxpr, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *given], strict=True))

        def read(var: jex.Var | jex.Literal) -> Any:
            if not isinstance(var, jex.Literal):
                return values[var]
            value = np.asarray(var.val, cast(jax.core.ShapedArray, var.aval).dtype)
            return self.literals.setdefault((value.dtype.name, value.tobytes()), jnp.asarray(value))

        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, self._value(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _value(self, eqn: jex.JaxprEqn, given: list[Any]) -> list[Any]:
        name, out = eqn.primitive.name, cast(jax.core.ShapedArray, eqn.outvars[0].aval)
        if name in CALLS:
            inner = eqn.params["call_jaxpr" if "call_jaxpr" in eqn.params else "jaxpr"]
            return self.run(inner.jaxpr, inner.consts, given)
        if name in SAME and out.size == self.size and (isinstance(given[0], Made | Row) or given[0].size == 1):
            return given
        if name == "convert_element_type":
            name = f"to {_kind(out.dtype)}"
        code = CODES.get((name, "".join(_kind(v.dtype) for v in given)))
        if out.size == self.size and code is not None:
            numbers = [self.number(v) for v in given]
            line = (code, *numbers, *numbers[:1] * (3 - len(numbers)))
            return [Made(self.code.setdefault(line, len(self.code)), out.dtype)]
        if any(isinstance(v, Made | Row) for v in given):
            raise UnknownOperationError
        shapes = [cast(jax.core.ShapedArray, var.aval).shape for var in eqn.invars]
        return execute(eqn, [jnp.broadcast_to(v, shape) for v, shape in zip(given, shapes, strict=True)])

    def number(self, value: Any) -> int:
        """That of an operand, or of a value made, which is below 0 until all operands are known."""
        if _kind(value.dtype) == "f":
            self.float = value.dtype if self.float is None else self.float
            if self.float != value.dtype:
                raise UnknownOperationError
        if isinstance(value, Made):
            return ~value.number
        if value.size not in (1, self.size):
            raise UnknownOperationError
        found = next((i for i, other in enumerate(self.operands) if other is value), None)
        if found is None:
            self.operands.append(value)
        return len(self.operands) - 1 if found is None else found


def _kind(dtype: np.dtype) -> str:
    kinds = {"float32": "f", "float64": "f", "int32": "i", "bool": "b"}
    return kinds.get(dtype.name, "?")


def _from(jaxpr: jex.Jaxpr, count: int, *flat: Array) -> list[Array]:
    return list(jax.core.eval_jaxpr(jaxpr, flat[:count], *flat[count:]))


def _xla(*operands: Array, jaxpr: jex.ClosedJaxpr, first: int, carried: int) -> list[Array]:
    return _from(jaxpr.jaxpr, 0, *operands)


def _chain(operands: Sequence[Array], jaxpr: jex.ClosedJaxpr) -> tuple[Chain, list[Made]]:
    chain = Chain(jaxpr.out_avals[0].size)
    made = chain.run(jaxpr.jaxpr, (), operands)
    if not all(isinstance(value, Made) for value in made) or chain.float is None:
        raise UnknownOperationError
    return chain, made


def _native(*operands: Array, jaxpr: jex.ClosedJaxpr, first: int, carried: int) -> list[Array]:
    chain, made = _chain(operands, jaxpr)
    results = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in jaxpr.out_avals]
    # In place, so that a loop that carries them makes no copies.
    given = operands[first : first + carried]
    aliases = {
        i: k
        for k, value in enumerate(given)
        for i, other in enumerate(chain.operands)
        if other is value and (value.shape, value.dtype) == (results[k].shape, results[k].dtype)
    }
    return run_compiled(chain, made, results, [(k, 0, 0) for k in range(len(results))], chain.operands, aliases)


def run_compiled(
    chain: Chain,
    made: Sequence[Made],
    results: Sequence[jax.ShapeDtypeStruct],
    places: Sequence[tuple[int, int, int]],
    operands: Sequence[Any],
    aliases: dict[int, int] | None = None,
    steps: int = 1,
    carried: int = 0,
    is_backward: bool = False,
) -> list[Array]:
    """Results of the compiled kernel; `places` are those of what is made, and `operands` what rows are parts of."""
    code, made_at, count = _in_room(chain, made)
    known = {id(value): k for k, value in enumerate(operands)}
    args, read = list(operands), list[tuple[int, int, int]]()
    for value in chain.operands:
        if not isinstance(value, Row) and id(value) not in known:
            known[id(value)] = len(args)
            args.append(value)
        read.append(value.place if isinstance(value, Row) else (known[id(value)], 0, 0))
    run = jax.ffi.ffi_call("sparse_etrace_elementwise", results, input_output_aliases=aliases)
    numbers = {"num_values": count, "units": chain.size, "steps": steps, "num_carried": carried}
    attributes = {name: np.int64(number) for name, number in numbers.items()}
    spans = {"code": code, "made": made_at, "operands": np.ravel(read), "outputs": np.ravel(places)}
    spans = {name: np.array(span, np.int64) for name, span in spans.items()}
    return list(run(*args, **spans, **attributes, is_backward=is_backward))


def _in_room(chain: Chain, made: Sequence[Made]) -> tuple[list[int], list[int], int]:
    """The code with a place for each value, in which another one lies once nothing reads it any more."""
    ends = {~number: k for k, (_, *read) in enumerate(chain.code) for number in read}
    ends |= {value.number: len(chain.code) for value in made}
    count, free, places, code = len(chain.operands), list[int](), list[int](), list[int]()
    for k, (what, *read) in enumerate(chain.code):
        if not free:
            free, count = [count], count + 1
        places.append(free.pop())
        code += [what, places[k], *(number if number >= 0 else places[~number] for number in read)]
        free += {places[~number] for number in read if number < 0 and ends[~number] == k}
    return code, [places[value.number] for value in made], count


def _types(*avals: jax.core.ShapedArray, jaxpr: jex.ClosedJaxpr, **_: int) -> bool:
    if jaxpr.out_avals[0].size < LEAST:
        return False
    try:
        jax.eval_shape(lambda *operands: _chain(operands, jaxpr)[0].operands, *avals)
    except UnknownOperationError:
        return False
    return True


def _jvp(primals: Sequence[Array], tangents: Sequence[Tangent], **static: Any) -> tuple[list[Array], list[Any]]:
    moved = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def run(*some: Array) -> list[Array]:
        given = list(primals)
        for i, value in zip(moved, some, strict=True):
            given[i] = value
        return _xla(*given, **static)

    out, by = jax.jvp(run, [primals[i] for i in moved], [tangents[i] for i in moved])
    zeros = [ad.Zero(jax.core.ShapedArray(a.shape, jax.dtypes.float0)) for a in out]
    return out, [d if jnp.issubdtype(a.dtype, jnp.inexact) else zero for a, d, zero in zip(out, by, zeros, strict=True)]


def _batch(operands: Sequence[Array], axes: Axes, **static: Any) -> tuple[list[Array], list[int]]:
    out = jax.vmap(functools.partial(_xla, **static), in_axes=tuple(axes))(*operands)
    return out, [0] * len(out)


elementwise_p = native.primitive("elementwise", _xla, _native, _types, is_split=True)
elementwise_p.def_impl(_xla)
ad.primitive_jvps[elementwise_p] = _jvp
batching.primitive_batchers[elementwise_p] = _batch
