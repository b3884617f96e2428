"""What the equations of a jaxpr hold: the one place that knows how jax 0.8 to 0.12 lay it out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.extend.core as jex

from .._op.boundary import CutCall, VmappedCall
from .types import Aval

INLINED = {"etrace_elementwise", "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
# Where numbers lie, on which devices, and whether these hold the same: no number is changed.
PLACED = {"copy", "copy_p", "device_put", "layout_constraint", "mesh_cast", "name", "optimization_barrier",
          "pbroadcast", "pcast", "preduced", "pvary", "reduced_vary_cast_p", "relayout", "reshard",
          "sharding_constraint", "vary_unreduced_cast_p"}  # fmt: skip
CALLS = INLINED | {"custom_jvp_call", "custom_vjp_call"}
Value = TypeVar("Value")


def aval(var: jex.Var | jex.Literal) -> Aval:
    """Shape and type of a value."""
    return var.aval  # type: ignore[return-value]


class UnknownLayoutError(NotImplementedError):
    """An equation that this version of jax lays out in a way that is not known here."""

    def __init__(self, eqn: jex.JaxprEqn, what: str):
        super().__init__(
            f"jax {jax.__version__}: `{eqn.primitive.name}` {what}, with the parameters {', '.join(eqn.params)}. "
            "Its layout is known for jax 0.8 to 0.12: install one of these."
        )


class Scan(NamedTuple):
    """A scan: its inputs and those of its body are constants, carry and slices, in this order; its outputs begin with
    the carry."""

    consts: int
    carry: int
    length: int
    body: jex.ClosedJaxpr


def parameter(eqn: jex.JaxprEqn, name: str) -> Any:
    """A parameter of an equation.

    Raises:
        NotImplementedError: there is none of this name.
    """
    try:
        return eqn.params[name]
    except KeyError:
        raise UnknownLayoutError(eqn, f"has no parameter {name!r}") from None


def scan(eqn: jex.JaxprEqn) -> Scan:
    """The parts of a scan."""
    if "ft_in" in eqn.params:
        consts, carry, _ = map(len, eqn.params["ft_in"].unpack())
    else:
        consts, carry = parameter(eqn, "num_consts"), parameter(eqn, "num_carry")
    body = called(eqn)
    if consts + carry > len(eqn.invars) or carry > len(eqn.outvars):
        raise UnknownLayoutError(eqn, f"has {consts} constants and {carry} carried values")
    return Scan(consts, carry, parameter(eqn, "length"), body)


def branches(eqn: jex.JaxprEqn) -> list[jex.ClosedJaxpr]:
    """The closed jaxprs of a cond, whose inputs are those of the equation after the first, which chooses."""
    return [_fitting(eqn, branch, 1) for branch in parameter(eqn, "branches")]


def called(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    """The closed jaxpr of an equation that is a call, or of the body of a loop."""
    inner = eqn.params["call_jaxpr"] if "call_jaxpr" in eqn.params else parameter(eqn, "jaxpr")
    return _fitting(eqn, inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, ()), 0)


def _fitting(eqn: jex.JaxprEqn, inner: jex.ClosedJaxpr, skipped: int) -> jex.ClosedJaxpr:
    counts = len(inner.jaxpr.invars), len(inner.jaxpr.outvars)
    if counts != (len(eqn.invars) - skipped, len(eqn.outvars)):
        given = f"{len(eqn.invars)} inputs and {len(eqn.outvars)} outputs"
        raise UnknownLayoutError(eqn, f"has {given}, what is inside has {counts[0]} and {counts[1]}")
    return inner


def sub_jaxprs(eqn: jex.JaxprEqn) -> list[jex.Jaxpr]:
    """Jaxprs inside an equation, as open jaxprs, closed ones in containers included."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            item = item.call if isinstance(item, VmappedCall) else item
            item = item.jaxpr if isinstance(item, CutCall) else item
            if isinstance(item, jex.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, jex.Jaxpr):
                found.append(item)
    return found


def interpreted(
    jaxpr: jex.Jaxpr,
    values: dict[jex.Var, Value],
    literal: Callable[[Any], Value],
    through: Callable[[jex.JaxprEqn, list[Value]], Sequence[Value]],
) -> list[Value]:
    """What a jaxpr puts out, given what each equation makes of its inputs, and `values` of inputs and constants."""

    def read(var: jex.Var | jex.Literal) -> Value:
        return literal(var.val) if isinstance(var, jex.Literal) else values[var]

    for eqn in jaxpr.eqns:
        values.update(zip(eqn.outvars, through(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]
