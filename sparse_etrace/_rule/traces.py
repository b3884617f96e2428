"""The two ways to keep eligibility traces, full and factorised, over a window of steps."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from .._arrays import blank
from .._model.call import Call
from .._model.grouping import Grouping
from .._model.groups import Route
from .._model.program import cast
from .._model.step import Terms
from .._model.types import Gradients, Input, OpWeights, Weights
from .._op.contract import ETraceOp
from .._op.delays import each, shape_of
from .._sums import dot, is_narrow, joined, matvec, mixed, rounded, sum_steps, wide, widened, zeros
from .adjoint import Adjoint, Landing, adjoints, in_type, on_output, scan_units


class Factors(eqx.Module):
    """Low-pass filtered input and sensitivity of one op call, and the steps since its start.

    Attributes:
        x: shaped like the input.
        f: for each group, `(variables, *y)`; empty where only the input is filtered.
        steps: `(*y[:-1], 1)`, so that it can start again for each batch element.
    """

    x: Array
    f: tuple[Array, ...]
    steps: Array


class CallTrace(NamedTuple):
    """What is kept for one op call.

    Attributes:
        full: for each group a trace per slot (None: not kept).
        factors: or None.
        windows: how many there were, where anything is stored in half precision: each is rounded by other noise.
    """

    full: tuple[PyTree[Array], ...]
    factors: Factors | None
    windows: Array | None = None


CallTraces = dict[int, CallTrace]


def routes_of(grouping: Grouping, call: Call) -> list[tuple[int, Route]]:
    """The groups that an op call is traced into, and how its output lands on their units."""
    return [(g, r) for g, group in enumerate(grouping.groups) for r in group.routes if r.call == call.number]


def per_unit_leaves(grouping: Grouping, call: Call) -> list[bool]:
    """For each weight leaf of a call, whether its slot is the target unit itself."""
    op, v, _ = call.template(grouping.program)
    paths = jax.tree_util.tree_flatten_with_path(v)[0]
    return [op.is_diagonal or (bool(p) and getattr(p[0], "key", None) in op.per_unit) for p, _ in paths]


def can_filter(grouping: Grouping, call: Call) -> bool:
    """Whether the input of a call is a number that can be low-pass filtered, and not an index."""
    _, _, x = call.template(grouping.program)
    if x is None or not jax.dtypes.issubdtype(x.dtype, jnp.integer):
        return True
    y = call.y(grouping.program)
    try:
        given = jax.ShapeDtypeStruct(x.shape, y.dtype)
        call.shapes_of(grouping.program, lambda op, v, x: op.xw_to_y(x, v), given)
    except TypeError:
        return False
    return True


def slot_shapes(grouping: Grouping, call: Call, group: int, route: Route) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the trace of each weight leaf of a call, without the axis of hidden variables."""
    op, _, x = call.template(grouping.program)
    aval = grouping.reading.calls[route.source].y(grouping.program)
    if route.via is not None:
        x, _ = grouping.spread_shapes[call.number, route.via]
    shape = grouping.groups[group].shape if op.is_diagonal else aval.shape
    y = jax.ShapeDtypeStruct(shape, aval.dtype)
    return jax.tree.leaves(call.shapes_of(grouping.program, lambda op, v, x, y: op.xy_to_dw(x, y, v), x, y))


def init_trace(
    grouping: Grouping, call: Call, full: list[bool], dtype: DTypeLike | None, counts: Sequence[int], only_input: bool
) -> CallTrace:
    """Traces of zero.

    Args:
        full: for each weight leaf, whether it has a trace per slot; the others have factors.
        dtype: type of all traces; None for that of the weights.
        counts: for each group, how many variables have a trace.
        only_input: the input is the only factor.
    """
    op, v, x = call.template(grouping.program)
    routes = routes_of(grouping, call)
    trained = grouping.reading.weight_is_trained(call)
    y = call.y(grouping.program)
    traces, places = [], [(lambda _: None) if own else op.place for own in per_unit_leaves(grouping, call)]
    for g, route in routes:
        leaves = [
            blank((counts[g], *s.shape), _stored(s.dtype, dtype), place(1 + s.ndim)) if keep and f else None
            for s, keep, f, place in zip(slot_shapes(grouping, call, g, route), trained, full, places, strict=True)
        ]
        traces.append(jax.tree.unflatten(jax.tree.structure(v), leaves))
    factors = None
    if routes and any(keep and not f for keep, f in zip(trained, full, strict=True)):
        kept = [] if only_input else routes
        f = tuple(blank((counts[g], *y.shape), _stored(y.dtype, dtype)) for g, _ in kept)
        filtered = blank(x.shape, _stored(joined(x.dtype, y.dtype), dtype))
        factors = Factors(filtered, f, blank((*y.shape[:-1], 1), jnp.int32))
    is_rounded = any(is_narrow(leaf.dtype) for leaf in jax.tree.leaves((traces, factors)))
    return CallTrace(tuple(traces), factors, blank((), jnp.uint32) if is_rounded else None)


def _stored(exact: DTypeLike, wanted: DTypeLike | None) -> DTypeLike:
    """The type of a trace: what is `wanted`, if anything, or for complex numbers a complex type as wide as that."""
    if wanted is None or not jnp.issubdtype(exact, jnp.complexfloating):
        return wanted or exact
    return joined(wanted, jnp.complex64)


def traces_after(
    grouping: Grouping, weights: Weights, traces: CallTraces, terms: Terms, decay: float, only: str | None
) -> tuple[CallTraces, Gradients]:
    """Take every trace through the steps of a window.

    Args:
        only: `"traces"` or `"gradients"` where the other is not wanted, and not computed for full traces.

    Returns:
        The new traces, and for each op call the gradient of its weights (a list of leaves).
    """
    new, gradients, landings = {}, {}, dict[tuple[int, int], Landing]()
    for call in grouping.reading.learning:
        landed = _landings(grouping, call, traces[call.number], terms)
        landings |= {(call.number, number): landing for number, landing in enumerate(landed)}
    is_last = all(trace.factors is None for trace in traces.values())
    found = dict(zip(landings, adjoints(grouping, terms, list(landings.values()), only, is_last), strict=True))
    for call in grouping.reading.learning:
        new[call.number], gradients[call.number] = _advance_call(
            grouping, call, weights[call.number], traces[call.number], terms, found, decay, only
        )
    return new, gradients


def _landings(grouping: Grouping, call: Call, trace: CallTrace, terms: Terms) -> list[Landing]:
    """Of the groups in which a call has full traces; `n` goes with the first that it reaches without another op."""
    op, found, is_met = call.template(grouping.program)[0], list[Landing](), False
    if any(leaf is not None for part in trace.full[:1] for leaf in _leaves(part)):
        n = terms.n[call.number]
        for g, route in routes_of(grouping, call):
            meets = not (op.is_diagonal or is_met or route.via is not None)
            is_met = is_met or meets
            f = terms.output_jacobian[(g, route.source)]
            found.append(Landing(g, route, f, n if meets else None, wide(n.dtype), op.is_diagonal))
    return found


def _advance_call(
    grouping: Grouping,
    call: Call,
    weights: OpWeights,
    trace: CallTrace,
    terms: Terms,
    adjoint: dict[tuple[int, int], Adjoint],
    decay: float,
    only: str | None,
) -> tuple[CallTrace, list[Array]]:
    op, given, _ = call.unflatten(*weights, call.x_atoms)
    v, x, n = widened(given), terms.x[call.number], widened(terms.n[call.number])
    noise = None if trace.windows is None else mixed(trace.windows * jnp.uint32(0x85EBCA77), call.number)
    trained, routes = grouping.reading.weight_is_trained(call), routes_of(grouping, call)
    in_full = [f is not None for f in _leaves(trace.full[0])] if routes else [False] * len(trained)
    parts: list[list[Array | None]] = []

    def sampled(x: Input, y: Array, kept: Sequence[bool]) -> None:
        if only != "traces":
            found = [sum_steps(y)] if op.is_diagonal else jax.tree.leaves(op.total_dw(x, y, v))
            parts.append([leaf if keep else None for leaf, keep in zip(found, kept, strict=True)])

    direct_routes = [number for number, (_, route) in enumerate(routes) if route.via is None]
    if not direct_routes or op.is_diagonal:
        sampled(x, n, trained)
    full, total = list[PyTree](), list[Array]()
    for number, (_, route) in enumerate(routes if any(in_full) else []):
        kept = {} if noise is None else {"noise": mixed(noise, number)}
        own = route.at_units(v) if op.is_diagonal else v
        half = terms.halfway.get(call.number)
        read = terms.spread[call.number, route.via] if route.via is not None else x if half is None else (x, half)
        of_units = None if route.via is None else per_unit_leaves(grouping, call)
        eps, gradient = _window(op, of_units, own, trace.full[number], adjoint[call.number, number], read, **kept)
        if only != "gradients":
            full.append(eps)
        if only != "traces":
            parts.append(_leaves(route.total(gradient, v) if op.is_diagonal else gradient))
    if (factors := trace.factors) is not None:
        factors, filtered, taught = _filter(grouping, call, factors, terms, decay, noise, not any(in_full))
        sampled(filtered, taught, [keep and not is_full for keep, is_full in zip(trained, in_full, strict=True)])
    for leaf, *found in zip(jax.tree.leaves(given), *parts, strict=True):
        present = [part for part in found if part is not None]
        total.append(cast(sum(present[1:], present[0]), leaf.dtype) if present else jnp.zeros_like(leaf))
    windows = None if trace.windows is None else trace.windows + 1
    return CallTrace(tuple(full) or trace.full, factors, windows), total


def _window(
    op: ETraceOp,
    of_units: Sequence[bool] | None,
    v: PyTree[Array],
    trace: PyTree[Array],
    units: tuple[Array | None, ...],
    x: PyTree,
    **noise: Array | None,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """`ETraceOp.window`; of a trace that was carried through ops, `x` also holds what leaves `of_units` read for 1."""
    carried, entering, signal, direct = units
    if of_units is None:
        return op.window(v, trace, carried, entering, signal, direct, x, **noise)
    (x, ones), found = x, []
    scaled = None if entering is None else entering * ones[:, None], None if direct is None else direct * ones
    for (into, now), kept in (((entering, direct), False), (scaled, True)):
        leaves = [e if own == kept else None for e, own in zip(_leaves(trace), of_units, strict=True)]
        if jax.tree.leaves(leaves):
            part = jax.tree.unflatten(jax.tree.structure(v), leaves)
            found.append(op.window(v, part, carried, into, signal, now, x, **noise))
    new, taught = (eqx.combine(*parts) for parts in zip(*found, strict=True))
    return new, taught


def recalled(grouping: Grouping, weights: Weights, traces: CallTraces, m: list[Array], decay: float) -> Gradients:
    """For each op call `dv_s = sum_a m[i,a] eps_s[a]`; a factorised trace is `xhat[j] fhat[i,a] / (1 - decay^t)`."""
    gradients = {}
    for call in grouping.reading.learning:
        op, given, _ = call.unflatten(*weights[call.number], call.x_atoms)
        v, trace, total = widened(given), traces[call.number], zeros(jax.tree.leaves(given))
        x, taught = call.template(grouping.program)[2], list[Array]()
        for number, (g, route) in enumerate(routes_of(grouping, call)):
            signal = route.spread(widened(m[g]), len(grouping.groups[g].shape))
            signal = signal.astype(joined(signal.dtype, wide(call.y(grouping.program).dtype)))
            if jax.tree.leaves(trace.full[number]):
                own = route.at_units(v) if op.is_diagonal else v
                silent = jnp.zeros_like(signal[:1])
                read = x if route.via is None else grouping.spread_shapes[call.number, route.via]
                nothing = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), shape_of(read))
                of_units = None if route.via is None else per_unit_leaves(grouping, call)
                _, found = _window(op, of_units, own, trace.full[number], (None, None, signal, silent), nothing)
                found = _leaves(route.total(found, v) if op.is_diagonal else found)
                total = [t if f is None else t + f for t, f in zip(total, found, strict=True)]
            if trace.factors is not None:
                taught.append(dot(signal, trace.factors.f[number].astype(signal.dtype)))
        if trace.factors is not None and taught:
            signal = sum(taught[1:], taught[0])
            steps = trace.factors.steps.astype(signal.dtype)
            signal = signal / jnp.where(steps > 0, 1 - decay**steps, 1)
            found = jax.tree.leaves(op.total_dw(trace.factors.x.astype(signal.dtype), signal, v))
            kept = [leaf is not None for leaf in _leaves(trace.full[0])]
            total = [t if k else t + f for t, f, k in zip(total, found, kept, strict=True)]
        gradients[call.number] = [cast(t, leaf.dtype) for t, leaf in zip(total, jax.tree.leaves(given), strict=True)]
    return gradients


def _leaves(tree: PyTree) -> list[Array | None]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: leaf is None)


def _filter(
    grouping: Grouping, call: Call, factors: Factors, terms: Terms, decay: float, noise: Array | None, is_own: bool
) -> tuple[Factors, Array, Array]:
    """Factors through a window: the filtered input and the signal that it meets, at each step.

    `is_own`: no full trace of the call reads its terms.
    """
    dtype, routes = wide(terms.n[call.number].dtype), routes_of(grouping, call)
    x, n = each(terms.x[call.number]).astype(dtype), widened(terms.n[call.number])

    def filtered(old: Array, x: Array) -> tuple[Array, list[Array]]:
        new = decay * old + x
        return new, [new]

    def sensitivities(before: list[Array], now: tuple) -> tuple[list[Array], list[Array]]:
        n, parts = now
        taught, f = (1 - decay) * n, []
        for (g, route), old, (d, m, f_now) in zip(routes, before, parts, strict=True):
            ndim = len(grouping.groups[g].shape)
            d, m = on_output(route, ndim, dtype, [d, m])
            taught = taught + decay * dot(m, old)
            f.append(jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, matvec(d, old), in_type(dtype, f_now)))
        return f, [taught]

    like = [jax.ShapeDtypeStruct(part.shape[1:], dtype) for part in (x, n)]
    of_x, of_n = (sum(a[call.number] is b for b in a.values()) == 1 for a in (terms.x, terms.n))
    new_x, (read,) = scan_units(filtered, factors.x.astype(dtype), x, len(x), x.ndim - 1, like[:1], [], [], last=of_x)
    later = jnp.arange(1, len(x) + 1, dtype=factors.steps.dtype).reshape(-1, *[1] * factors.steps.ndim)
    new_f, grown = [], factors.steps[None] + later
    if factors.f:
        parts = [(terms.hidden_jacobian[g], terms.m[g], terms.output_jacobian[(g, call.number)]) for g, _ in routes]
        start, (_, through) = [f.astype(dtype) for f in factors.f], zip(*routes, strict=True)
        counts = list(map(len, start))
        run = functools.partial(scan_units, last=(of_n and is_own, False))
        new_f, (taught,) = run(sensitivities, start, (n, parts), len(n), n.ndim - 1, like[1:], through, counts)
        n = taught / (1 - jnp.power(jnp.asarray(decay, dtype), grown.astype(dtype)))
    new = Factors(new_x, tuple(new_f), grown[-1])
    leaves, layout = jax.tree.flatten(factors)
    pairs = enumerate(zip(jax.tree.leaves(new), leaves, strict=True), len(routes))
    found = [rounded(a, b.dtype, mixed(noise, i)) for i, (a, b) in pairs]
    return jax.tree.unflatten(layout, found), read, n
