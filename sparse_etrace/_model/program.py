"""A jaxpr as a flat list of equations: inlined, evaluated piecewise, and followed by labels."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import NamedTuple

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.extend.source_info_util as source_info
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PyTree

from .._kernels.elementwise import execute
from .._op.boundary import boundary_p
from .primitives import INLINED, aval, branches, called, interpreted, scan, sub_jaxprs
from .types import Atom, Aval, Known, Labels

for _module in (os.path.dirname(__file__), eqx.__file__, jaxtyping.__file__):
    source_info.register_exclusion(os.path.dirname(_module))

TRACED_BY = os.path.join("_model", "reading.py")


class Node(NamedTuple):
    """One equation; its inputs and outputs are numbers of values.

    `source` is the line of the user's code; an equation inside a cached call has only that of the call.
    """

    eqn: jex.JaxprEqn
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    source: source_info.SourceInfo

    @property
    def where(self) -> str:
        return line(self.source)

    @property
    def is_boundary(self) -> bool:
        return self.eqn.primitive is boundary_p

    def run(self, values: Sequence[ArrayLike]) -> list[Array]:
        """Execute the equation; an op or a cut without leaving a mark again."""
        if self.is_boundary:
            return list(self.eqn.params["call"](*values))
        with source_info.user_context(self.source.traceback), self.eqn.ctx.manager:
            return execute(self.eqn, values)


def line(source: source_info.SourceInfo) -> str:
    """The line of the user's code inside of the model, or nothing: jax 0.8 also knows who asked for the trace."""
    found = source_info.summarize(source)
    codes: list[CodeType] = source.traceback.raw_frames()[0] if source.traceback else []
    inside = itertools.takewhile(lambda code: not code.co_filename.endswith(TRACED_BY), codes)
    return found if any(found.startswith(f"{code.co_filename}:") for code in inside) else ""


class Program(NamedTuple):
    """Equations in order, with numbered values; `avals[i]` is the type of value `i`."""

    nodes: list[Node]
    inputs: list[int]
    outputs: list[Atom]
    consts: Known
    avals: list[Aval]

    def evaluate(
        self,
        known: Mapping[int, Array],
        wanted: Sequence[Atom],
        added: Mapping[int, Array] | None = None,
        acts: bool = False,
        held: Mapping[int, int] | None = None,
    ) -> list[Array]:
        """Values of `wanted`, running only the equations that they need beyond what is `known`.

        `added` is added to a value where it arises. Where it `acts`, equations with effects run as well. Of an equation
        that makes a value in `held` so many inputs are constants.
        """
        added, held = added or {}, held or {}
        values: Known = {**self.consts, **known}
        values.update((i, known[i] + extra) for i, extra in added.items() if i in known)
        needed = {a for a in wanted if isinstance(a, int)}
        run = []
        for node in reversed(self.nodes):
            if any(o in needed and o not in known for o in node.outputs) or (acts and node.eqn.effects):
                run.append(node)
                needed.update(a for a in node.inputs if isinstance(a, int))
        for node in reversed(run):
            given, first = [read(values, a) for a in node.inputs], held.get(next(iter(node.outputs), -1), 0)
            out = node.run([*jax.lax.stop_gradient(given[:first]), *given[first:]])
            for o, v in zip(node.outputs, out, strict=True):
                if o not in known:
                    values[o] = v + added[o] if o in added else v
        return [values[a] if isinstance(a, int) else constant(a) for a in wanted]

    def shapes(self, atoms: Iterable[Atom]) -> list[jax.ShapeDtypeStruct]:
        avals = (self.avals[a] if isinstance(a, int) else aval(a) for a in atoms)
        return [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]

    def influence(self, labels: Mapping[int, Labels]) -> list[Labels]:
        """For each value, the labels of the inputs that it depends on in any way."""
        found: list[Labels] = [Labels()] * len(self.avals)
        for value, given in labels.items():
            found[value] = given
        for node in self.nodes:
            union = Labels().union(*(found[a] for a in node.inputs if isinstance(a, int)))
            for o in node.outputs:
                found[o] = found[o] | union
        return found


def constant(atom: jex.Literal) -> Array:
    """The array of a literal, which may hold a number."""
    return jnp.asarray(atom.val, aval(atom).dtype)


def read(values: Known, atom: Atom) -> ArrayLike:
    return values[atom] if isinstance(atom, int) else atom.val


def flatten(closed: jex.ClosedJaxpr) -> Program:
    """Inline every call of a jaxpr, keeping the equations of control flow and custom derivatives whole.

    Raises:
        NotImplementedError: an op or a cut runs inside control flow or a custom derivative.
    """
    nodes: list[Node] = []
    avals: list[Aval] = []
    consts: Known = {}

    def new(var: jex.Var) -> int:
        avals.append(aval(var))
        return len(avals) - 1

    def walk(
        jaxpr: jex.Jaxpr, inner_consts: Iterable[ArrayLike], args: Sequence[Atom], caller: source_info.SourceInfo | None
    ) -> list[Atom]:
        env: dict[jex.Var, Atom] = dict(zip(jaxpr.invars, args, strict=True))
        for var, value in zip(jaxpr.constvars, inner_consts, strict=True):
            number = new(var)
            env[var], consts[number] = number, value  # type: ignore[assignment]

        def atom(var: jex.Var | jex.Literal) -> Atom:
            return var if isinstance(var, jex.Literal) else env[var]

        for eqn in jaxpr.eqns:
            inputs = tuple(atom(v) for v in eqn.invars)
            source = eqn.source_info if caller is None or line(eqn.source_info) else caller
            if eqn.primitive.name in INLINED:
                inner = called(eqn)
                out = walk(inner.jaxpr, inner.consts, inputs, source)
                env.update(zip(eqn.outvars, out, strict=True))
                continue
            if any(holds(inner, boundary_p.name) for inner in sub_jaxprs(eqn)):
                raise NotImplementedError(
                    f"model: an op or a cut runs inside `{_name(eqn)}` at "
                    f"{source_info.summarize(source)}. Call it outside: the step itself is already the body "
                    "of a loop over time, and a branch can choose between outputs with jnp.where."
                )
            outputs = tuple(new(v) for v in eqn.outvars)
            env.update(zip(eqn.outvars, outputs, strict=True))
            nodes.append(Node(eqn, inputs, outputs, source))
        return [atom(v) for v in jaxpr.outvars]

    inputs = [new(v) for v in closed.jaxpr.invars]
    outputs = walk(closed.jaxpr, closed.consts, inputs, None)
    return Program(nodes, inputs, outputs, consts, avals)


def _name(eqn: jex.JaxprEqn) -> str:
    return "se.cut" if eqn.primitive is boundary_p else eqn.primitive.name


def holds(jaxpr: jex.Jaxpr, name: str) -> bool:
    """Whether a primitive of this name is anywhere in a jaxpr."""
    return any(e.primitive.name == name or any(holds(inner, name) for inner in sub_jaxprs(e)) for e in jaxpr.eqns)


def propagate(jaxpr: jex.Jaxpr, labels: Sequence[Labels]) -> list[Labels]:
    """Labels of the outputs of a jaxpr, given those of its inputs, through calls and control flow."""
    values = dict.fromkeys(jaxpr.constvars, Labels()) | dict(zip(jaxpr.invars, labels, strict=True))
    return interpreted(jaxpr, values, lambda _: Labels(), _through)


def _through(eqn: jex.JaxprEqn, given: list[Labels]) -> list[Labels]:
    name, inner = eqn.primitive.name, sub_jaxprs(eqn)
    if name == "scan":
        consts, count, _, body = scan(eqn)
        return _fixed_point(body.jaxpr, given, slice(consts, consts + count))
    if name == "cond":
        parts = [propagate(branch.jaxpr, given[1:]) for branch in branches(eqn)]
        return [Labels().union(given[0], *found) for found in zip(*parts, strict=True)]
    if len(inner) == 1 and len(inner[0].invars) == len(given) and len(inner[0].outvars) == len(eqn.outvars):
        return propagate(inner[0], given)
    union = Labels().union(*given)
    return [union] * len(eqn.outvars)


def _fixed_point(body: jex.Jaxpr, given: list[Labels], carry: slice) -> list[Labels]:
    while True:
        out = propagate(body, given)
        carried = [a | b for a, b in zip(given[carry], out, strict=False)]
        if carried == given[carry]:
            return [a | b for a, b in zip(carried, out, strict=False)] + out[len(carried) :]
        given[carry] = carried


def vjp_jaxpr(
    fn: Callable[..., PyTree], args: PyTree, *rest: PyTree, out: PyTree | None = None
) -> tuple[jex.ClosedJaxpr, PyTree]:
    """Jaxpr of `(args, cotangents, rest) -> gradients` of `fn(args, *rest)`, and the shapes of the outputs of `fn`.

    They are `out`, where they are known.
    """
    out = jax.eval_shape(fn, args, *rest) if out is None else out
    pull = jax.make_jaxpr(lambda args, cts, *rest: jax.vjp(lambda a: fn(a, *rest), args)[1](cts)[0])
    return pull(args, out, *rest), out


def is_key(value: object) -> bool:
    """Whether an array, or its type, holds keys of random numbers."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def cast(value: Array, dtype: DTypeLike) -> Array:
    """A derivative in the type of what it is by: by real numbers, of a complex one the real part."""
    is_real = not jax.dtypes.issubdtype(dtype, np.complexfloating)
    return (value.real if is_real else value).astype(dtype)


def is_inexact(value: object) -> bool:
    """Whether an array, its type, or a number of Python is floating or complex."""
    dtype = getattr(value, "dtype", None)
    return jax.dtypes.issubdtype(np.result_type(value) if dtype is None else dtype, np.inexact)  # type: ignore[arg-type]
