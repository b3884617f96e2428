"""Ways of what a trained op puts out to hidden state through ops of fixed weights, and what its input is at their end.

Nodes x features, features through a trained matrix W, and then nodes through a fixed sum A over their neighbours:

    u = A (x W)        u[i, g] = sum_j A[j, i] sum_f x[j, f] W[f, g]        du[i, g] / dW[f, g] = (A x)[i, f]

A trace of W is kept as if it read A x and came last, which is as large as one after W itself. Two ops change places
like that if the axes that they act on are others. What lies between them has to be a factor on each unit that is the
same along the axes of W: the derivative of a sum is one of ones.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import networkx as nx
from jaxtyping import Array

from .call import Call
from .linear import pushforward
from .positions import ELEMENTWISE
from .primitives import PLACED, aval
from .program import Program, vjp_jaxpr
from .reading import Reading
from .types import Known

Ways = dict[int, list[int]]
"""For each trained op call the fixed ones on its ways to hidden state, in the order of the step."""
SUMS = {"add", "add_any", "sub", "neg", "convert_element_type"} | PLACED
Spread = dict[tuple[int, int], tuple[Array, Array]]
"""Of each trained and fixed call: input of the trained op, and ones on its outputs, where the fixed one puts them."""


def find_ways(a: Reading, leaves: Iterable[int], refused: list[str] | None = None) -> Ways:
    """The ways to state leaves by which a trace can be carried; why it cannot by others is put into `refused`.

    Raises:
        NotImplementedError: without `refused`, an op on a way acts on the same axes, or something between them does.
    """
    fixed = {c.number for c in a.calls if c.is_op and not any(a.weight_is_trained(c))}
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(a.calls)))
    graph.add_edges_from((c.number, s[1]) for c in a.calls for s in a.direct[("y", c.number)] if _leads(s, fixed))
    ends = [k for k in fixed if any(("n", i) in a.direct[("y", k)] for i in leaves)]
    graph.add_edges_from((k, "end") for k in ends)
    before = nx.ancestors(graph, "end") if ends else set()
    found = {}
    for call in a.learning:
        way = sorted(nx.descendants(graph, call.number) & before) if call.call.traced else []
        why = next(filter(None, (_obstacle(a, call, way, a.calls[k]) for k in way)), None)
        if why:
            words = (
                f"through_ops: a trace of the op called at {call.node.where} is one number for each weight and unit, "
                f"and cannot be carried further: {why}. Call the op that learns after it (spread, then multiply), "
                "leave it to the same step (is_etrace=False), or use se.SnAp(2) or se.Bridged."
            )
            if refused is None:
                raise NotImplementedError(words)
            refused.append(words)
        if way and not why:
            found[call.number] = way
    return found


def _leads(sink: tuple, fixed: set[int]) -> bool:
    return sink[0] == "x" and sink[1] in fixed


def _obstacle(a: Reading, call: Call, way: Sequence[int], onto: Call) -> str | None:
    """What keeps a trace of one op from being carried through another, in words."""
    own, where = _axes(a.program, call), f"the op called at {onto.node.where}"
    if len(call.x_atoms) + len(onto.x_atoms) != 2:
        return f"{where}, or the op that learns, reads a ring"
    if own & _axes(a.program, onto):
        return f"{where}, to which its output leads, acts on the same axes of it"
    if not all(_is_scaled(a, a.calls[k], onto, own) for k in _sources(a, call, way, onto)):
        return f"{where} reads its output neither as it is nor by one factor along its axes"
    return None


def _sources(a: Reading, call: Call, way: Sequence[int], onto: Call) -> list[int]:
    return [k for k in (call.number, *way) if ("x", onto.number) in a.direct[("y", k)]]


def _axes(program: Program, call: Call) -> set[int]:
    """The axes, from the last, that an op acts on: along all others it does the same everywhere."""
    op, _, x = call.template(program)
    rank = len(call.y(program).shape)
    is_plain = isinstance(x, jax.ShapeDtypeStruct) and len(x.shape) == rank and not op.is_diagonal
    return set(range(-op.input_ndim, -op.carried_ndim)) if is_plain else set(range(-rank, 0))


def _is_scaled(a: Reading, source: Call, onto: Call, axes: set[int]) -> bool:
    """Whether the input of an op is the output of another times a factor that is the same along these axes."""
    fn, rest = a.between.function([source.node.outputs[0]], onto.x_atoms)
    closed, _ = vjp_jaxpr(fn, a.program.shapes(source.node.outputs), *a.program.shapes(rest))
    derivative, alike = {closed.jaxpr.invars[1]}, dict[jex.Var, set[int]]()  # along which axes all other values are

    def same(var: jex.Var | jex.Literal, rank: int) -> set[int]:
        shape = aval(var).shape
        known = set() if isinstance(var, jex.Literal) else alike.get(var, set())
        return known | {k - len(shape) for k, size in enumerate(shape) if size == 1} | set(range(-rank, -len(shape)))

    for eqn in closed.jaxpr.eqns:
        name, out, rank = eqn.primitive.name, eqn.outvars[0], aval(eqn.outvars[0]).ndim
        of_derivative = [v for v in eqn.invars if not isinstance(v, jex.Literal) and v in derivative]
        others = [same(v, rank) for v in eqn.invars if isinstance(v, jex.Literal) or v not in derivative]
        if of_derivative:
            is_factor = name in ("mul", "div") and all(axes <= part for part in others)
            is_moved = any(aval(v).shape != aval(out).shape for v in of_derivative)
            if is_moved or not (is_factor or (name in SUMS and not others)):
                return False
            derivative.add(out)
        elif name == "broadcast_in_dim":
            ends = [end - rank for end in eqn.params["broadcast_dimensions"]]
            kept = {end for k, end in enumerate(ends) if k - len(ends) not in same(eqn.invars[0], len(ends))}
            alike[out] = set(range(-rank, 0)) - kept
        elif name in ELEMENTWISE:
            alike[out] = set.intersection(*others)
    return closed.jaxpr.outvars[0] in derivative


def spread(a: Reading, ways: Ways, known: Known) -> Spread:
    """What passes along all ways in a step, at known inputs and op outputs."""
    found = {}
    for number, way in ways.items():
        call = a.calls[number]
        op, _, _ = call.template(a.program)
        (x,), y = a.program.evaluate(known, call.x_atoms), known[call.node.outputs[0]]
        own = _axes(a.program, call)
        ones = jnp.ones([1 if k - y.ndim in own else n for k, n in enumerate(y.shape)], y.dtype)
        at = {number: (x.astype(y.dtype), ones)}
        for k in way:
            parts = [_scaled(a, a.calls[s], a.calls[k], own, known, at[s]) for s in _sources(a, call, way, a.calls[k])]
            through = _linear(a, a.calls[k], known)
            inputs, ones = (through(sum(part[1:], part[0])) for part in zip(*parts, strict=True))
            at[k] = inputs, ones
            found[number, k] = at[k]
    return found


def _scaled(
    a: Reading, source: Call, onto: Call, axes: set[int], known: Known, values: tuple[Array, ...]
) -> list[Array]:
    """Values in the place of the output of an op, as another one reads them."""
    ((factor,),) = a.between.derivatives(known, [source.node.outputs[0]], onto.x_atoms)
    for k in axes:
        factor = jax.lax.slice_in_dim(factor, 0, 1, axis=factor.ndim + k)
    return [factor * value for value in values]


def _linear(a: Reading, call: Call, known: Known) -> Callable[[Array], Array]:
    """A fixed op without its bias."""
    values, count = a.program.evaluate(known, [*call.op_atoms, *call.weight_atoms]), len(call.op_atoms)
    op, v, _ = call.unflatten(values[:count], values[count:], call.x_atoms)

    def through(x: Array) -> Array:
        out, pull = jax.vjp(lambda x: op.xw_to_y(x, v), jnp.zeros_like(x))
        return pushforward(pull, out)(x)

    return through
