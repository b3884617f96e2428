"""Backward over a window, unit by unit: what enters the traces of an op call, and what meets its input at once."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from .._kernels.recursion import recursion
from .._model.grouping import Grouping
from .._model.groups import Route
from .._model.steady import Steps, at_first, scan, with_time
from .._model.step import Terms
from .._sums import FEW, dot, matmul, matvec, swapped, widened

Adjoint = tuple[Array | None, Array | None, Array | None, Array | None]
"""On the output of an op: P_0 and what enters, lam_0 and what meets the input at once."""


class Landing(NamedTuple):
    """An op call in one group: how it lands there, its F, and its `n` if that meets the input there; in one type.

    Of one that `has_no_input` the sums over the steps will do.
    """

    group: int
    route: Route
    f: Steps
    n: Array | None
    dtype: DTypeLike
    has_no_input: bool

    @property
    def into(self) -> tuple:
        """The same for calls into whose traces the same enters."""
        return self.group, id(self.f), self.dtype, self.route.repeats, id(self.route.ids), self.has_no_input

    @property
    def meeting(self) -> tuple:
        """The same for calls whose inputs meet the same at once."""
        return *self.into, id(self.n)


def in_type(dtype: DTypeLike, parts: PyTree[Array]) -> PyTree[Array]:
    """Arrays of another type."""
    return jax.tree.map(lambda part: part.astype(dtype), parts)


def on_output(route: Route, ndim: int, dtype: DTypeLike, parts: PyTree[Array]) -> PyTree[Array]:
    """Values on the units of a group, the last `ndim` axes, as values of a type on the output of an op."""
    return in_type(dtype, jax.tree.map(lambda part: route.spread(part, ndim), parts))


def scan_units(
    step: Callable[..., tuple],
    first: PyTree[Array],
    xs: PyTree[Steps],
    steps: int,
    ndim: int,
    like: Sequence[jax.ShapeDtypeStruct | None],
    routes: Sequence[Route],
    counts: Sequence[int],
    reverse: bool = False,
    last: PyTree[bool] = False,
) -> tuple:
    """`scan` of a step that does the same in each unit: in one pass where outputs of ops are the units of groups.

    Units are the last `ndim` axes; groups have so many variables. `last` says what of `xs` nothing reads after this.
    """
    is_same = all(route.repeats is not None and max(route.repeats, default=1) == 1 for route in routes)
    # XLA joins a single step with what comes before and after.
    is_plain = steps > 1 and jax.sharding.get_abstract_mesh().empty
    if is_plain and is_same and all(0 < count <= FEW for count in counts):
        return recursion(step, first, with_time(xs), steps, ndim, reverse, last)
    return scan(step, first, xs, steps, like, reverse)


def adjoints(
    grouping: Grouping, terms: Terms, landings: Sequence[Landing], only: str | None = None, is_last: bool = False
) -> list[Adjoint]:
    """`lam_{k-1} = m_k + D_k^T lam_k` and `P_{k-1} = P_k D_k` from the last step of a window to the first.

    What enters is `P_k F_k`, what meets the input at once `lam_k F_k + n_k`. P is not wanted for `"gradients"` only,
    lam not for `"traces"` only; where terms know the first one, `n` holds all that comes later. `is_last`: nothing else
    reads the terms.
    """
    found: dict[int, Adjoint] = {}
    for g in dict.fromkeys(landing.group for landing in landings):
        of = {k: landing for k, landing in enumerate(landings) if landing.group == g}
        found |= zip(
            of, _in_group(len(grouping.groups[g].shape), terms, g, list(of.values()), only, is_last), strict=True
        )
    return [found[k] for k in range(len(landings))]


def _in_group(
    ndim: int, terms: Terms, g: int, landings: list[Landing], only: str | None, is_last: bool
) -> list[Adjoint]:
    m, d = widened(terms.m[g]), widened(terms.hidden_jacobian[g])
    count, has_p, has_lam = len(m), only != "gradients", only != "traces" and terms.first is None
    makers = {a.into: a for a in landings if has_p or has_lam}
    meetings = {a.meeting: a for a in landings if has_lam}

    def on(landing: Landing, parts: PyTree[Array]) -> PyTree[Array]:
        return on_output(landing.route, ndim, landing.dtype, parts)

    def back(later: tuple, now: tuple) -> tuple[tuple, list]:
        (lam, p, sums), (m, d, f, n) = later, now
        f = {into: in_type(a.dtype, of) for (into, a), of in zip(makers.items(), f, strict=True)}
        entering = [matvec(on(a, p), f[into]) for into, a in makers.items() if has_p]
        direct = [dot(on(a, lam), f[a.into]) for a in meetings.values()]
        direct = [a if b is None else a + b.astype(a.dtype) for a, b in zip(direct, n, strict=True)]
        said = [*entering, *direct]
        sums = [None if a is None else jax.tree.map(jnp.add, a, b) for a, b in zip(sums, said, strict=True)]
        lam = lam if lam is None else jax.tree.map(jnp.add, m, matvec(swapped(d), lam))
        p = p if p is None else matmul(p, d)
        return (lam, p, sums), [a if b is None else None for a, b in zip(said, sums, strict=True)]

    last = jnp.zeros_like(m[0]) if terms.last is None or terms.last[g] is None else widened(terms.last[g])
    eye = jnp.eye(size := m.shape[1], dtype=m.dtype).reshape(size, size, *[1] * (m.ndim - 2))
    steps = m if has_lam else None, d, [a.f for a in makers.values()], [a.n for a in meetings.values()]
    like = [(a, at_first(a.f)) for a in makers.values() if has_p] + [(a, at_first(a.f)[0]) for a in meetings.values()]
    sums = [jnp.zeros(part.shape, a.dtype) if a.has_no_input else None for a, part in like]
    first = last if has_lam else None, jnp.broadcast_to(eye, (size, *m.shape[1:])) if has_p else None, sums
    shapes = [None if a.has_no_input else jax.ShapeDtypeStruct(part.shape, a.dtype) for a, part in like]
    routes = [a.route for a in landings]
    run = functools.partial(scan_units, reverse=True, last=is_last)
    (lam, p, sums), said = run(back, first, steps, count, ndim, shapes, routes, [size])
    said = [a if b is None else b[None] for a, b in zip(said, sums, strict=True)]
    entering, direct = dict(zip(makers, said)) if has_p else {}, dict(zip(meetings, said[-len(meetings) :]))
    lam = lam if terms.first is None else widened(terms.first[g])

    def at(landing: Landing) -> Adjoint:
        later = (on(landing, p), entering[landing.into]) if has_p else (None, None)
        if only == "traces":
            return *later, None, None
        lam_0 = on(landing, lam)
        silent = jnp.broadcast_to(jnp.zeros_like(lam_0[0]), (1 if landing.has_no_input else count, *lam_0.shape[1:]))
        met = direct[landing.meeting] if has_lam else silent if landing.n is None else landing.n.astype(landing.dtype)
        return *later, lam_0, met

    return [at(landing) for landing in landings]
