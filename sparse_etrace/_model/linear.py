"""Is a backward pass linear in what it pulls back? Traces multiply derivatives of single steps, and need it."""

from collections.abc import Callable, Sequence

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._kernels.elementwise import execute
from .primitives import CALLS, PLACED, aval, branches, called, interpreted, parameter, scan
from .program import is_inexact, is_key, line, vjp_jaxpr
from .refusals import UntracedError

LARGE = 1 << 20
ZERO, CONSTANT, LINEAR = "zero", "constant", "linear"

# Sums of all their floating operands.
JOINT = {"add", "sub", "add_any", "concatenate", "select_n", "pad", "dynamic_update_slice", "scatter", "scatter-add",
         "scatter-sub", "complex", "stack", "custom_linear_solve"}  # fmt: skip
# Linear in each operand, all others given; of others jax itself is asked, which takes longer.
SINGLE = {"neg", "reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "rev", "reduce_sum", "slice",
          "unstack", "tile", "split", "gather", "dynamic_slice", "convert_element_type", "mul", "reduce_precision",
          "real", "imag", "conj", "dot_general", "conv_general_dilated"}  # fmt: skip
# Sums over devices and what carries numbers from one to another, operand by operand as `PLACED`.
ACROSS = {"psum", "psum2", "psum_invariant", "unreduced_psum", "all_gather", "all_gather_invariant", "all_to_all",
          "ppermute", "reduce_scatter"}  # fmt: skip
NESTED = CALLS | {"shard_map"}


def pushforward(pull: Callable[[PyTree], PyTree], out: PyTree) -> Callable[[PyTree], PyTree]:
    """The forward derivative of which `pull` is the vector-Jacobian product, for outputs like `out`.

    A linear function is the transpose of its own vector-Jacobian product, so functions with a backward rule of their
    own and no forward one will do.
    """
    _, push = jax.vjp(lambda ct: pull(ct)[0], jax.tree.map(jnp.zeros_like, out))
    return lambda tangent: push(tangent)[0]


class _BentError(Exception):
    """Carries the equation that is not linear, and its line."""


def refuse_bent(what: str, fn: Callable[..., PyTree], args: PyTree, *rest: PyTree) -> None:
    """Raise where the vector-Jacobian product of `fn(args, *rest)` by `args` is not linear in its vector.

    Args:
        what: the function, in words.
        fn, args, rest: as of `vjp_jaxpr`.

    Raises:
        UntracedError: it is not.
    """
    closed, out = vjp_jaxpr(fn, args, *rest)
    first, count = len(jax.tree.leaves(args)), len(jax.tree.leaves(out))
    check_linear(what, closed, range(first, first + count))


def check_linear(what: str, closed: jex.ClosedJaxpr, vector: Sequence[int]) -> None:
    """As `refuse_bent`, of the jaxpr of a vector-Jacobian product; `vector` are the numbers of its inputs."""
    kinds = [LINEAR if i in vector else CONSTANT for i in range(len(closed.jaxpr.invars))]
    try:
        _follow(closed, kinds, "")
    except _BentError as found:
        name, where = found.args
        raise UntracedError(
            f"model: the backward pass of {what} is not linear, by `{name}` at {where}: it clips, rounds or adds to "
            "the derivative itself. A trace multiplies derivatives of single steps, which gives another gradient then. "
            "Clip the finished gradient instead (optax.clip), or use se.BPTT() or se.TBPTT()."
        ) from None


def _follow(closed: jex.ClosedJaxpr, kinds: Sequence[str], caller: str) -> list[str]:
    values = dict(zip(closed.jaxpr.invars, kinds, strict=True))
    values.update((var, _kind(value)) for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True))

    def through(eqn: jex.JaxprEqn, given: list[str]) -> list[str]:
        return _through(eqn, given, line(eqn.source_info) or caller)

    return interpreted(closed.jaxpr, values, _kind, through)


def _kind(value: ArrayLike) -> str:
    if isinstance(value, jax.core.Tracer) or np.size(value) > LARGE or is_key(value):
        return CONSTANT
    return CONSTANT if np.any(value) else ZERO


def _stays_zero(eqn: jex.JaxprEqn, given: list[str]) -> bool:
    name, floating = eqn.primitive.name, _floating(eqn, given) or given
    if name == "div":
        return floating[0] == ZERO
    return name in JOINT | SINGLE and (ZERO in floating if name == "mul" else set(floating) == {ZERO})


def _floating(eqn: jex.JaxprEqn, given: list[str]) -> list[str]:
    return [kind for kind, v in zip(given, eqn.invars, strict=True) if is_inexact(v.aval)]


def _through(eqn: jex.JaxprEqn, given: list[str], where: str) -> list[str]:
    name = eqn.primitive.name
    if name == "scan":
        first, count, _, body = scan(eqn)
        return _loop(body, given, first, count, where)
    if name == "while":
        test, first = parameter(eqn, "cond_nconsts"), parameter(eqn, "body_nconsts")
        out = _loop(parameter(eqn, "body_jaxpr"), given[test:], first, len(given) - test - first, where)
        _follow(parameter(eqn, "cond_jaxpr"), [*given[:test], *out], where)
        return out
    if name == "cond":
        if given[0] == LINEAR:
            raise _BentError(name, where)
        found = [_follow(branch, given[1:], where) for branch in branches(eqn)]
        return [_joined(list(parts), name, where) for parts in zip(*found, strict=True)]
    if name in NESTED:
        return _follow(called(eqn), given, where)
    if name in PLACED | ACROSS:
        return list(given)
    if LINEAR not in given:
        return [ZERO if _stays_zero(eqn, given) else CONSTANT] * len(eqn.outvars)
    if _is_test_of_finite(eqn):
        return [CONSTANT]
    if not _is_linear(eqn, given):
        raise _BentError(name, where)
    return [LINEAR] * len(eqn.outvars)


def _loop(body: jex.ClosedJaxpr, given: list[str], first: int, count: int, where: str) -> list[str]:
    """Outputs of a loop, whose carry stands after `first` constants."""
    given, carry = list(given), slice(first, first + count)
    while True:
        out = _follow(body, given, where)
        joined = [_joined([a, b], "scan", where) for a, b in zip(given[carry], out, strict=False)]
        if joined == given[carry]:
            return joined + out[count:]
        given[carry] = joined


def _joined(parts: list[str], name: str, where: str) -> str:
    """What is one of these, or their sum."""
    if {CONSTANT, LINEAR} <= set(parts):
        raise _BentError(name, where)
    return next((kind for kind in (LINEAR, CONSTANT) if kind in parts), ZERO)


def _is_test_of_finite(eqn: jex.JaxprEqn) -> bool:
    """Whether something is a number says the same of all numbers."""
    name = eqn.primitive.name
    return name == "is_finite" or (name == "ne" and eqn.invars[0] is eqn.invars[1])


def _is_linear(eqn: jex.JaxprEqn, given: list[str]) -> bool:
    name, count = eqn.primitive.name, given.count(LINEAR)
    if not all(is_inexact(v.aval) for v in eqn.outvars):
        return not eqn.outvars
    if name in JOINT:
        return CONSTANT not in _floating(eqn, given)
    if name in SINGLE:
        return count == 1
    return given[1] != LINEAR if name == "div" else _has_transpose(eqn, given)


def _has_transpose(eqn: jex.JaxprEqn, given: list[str]) -> bool:
    """Ask jax, without running anything."""
    parts = [[aval(v) for v in part] for part in (eqn.invars, eqn.outvars)]
    avals, outs = ([jax.ShapeDtypeStruct(a.shape, a.dtype) for a in part] for part in parts)

    def transposed(values: list[Array], out: list[Array]) -> tuple[Array, ...]:
        def forward(*moved: Array) -> list[Array]:
            moving = iter(moved)
            return execute(eqn, [next(moving) if k == LINEAR else v for k, v in zip(given, values, strict=True)])

        return jax.linear_transpose(forward, *(a for a, k in zip(avals, given, strict=True) if k == LINEAR))(out)

    try:
        jax.eval_shape(transposed, avals, outs)

    except Exception:  # what jax raises differs from primitive to primitive
        return False
    return True
