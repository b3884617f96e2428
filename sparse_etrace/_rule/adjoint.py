"""Backward over a window, unit by unit: what enters the traces of an op call, and what meets its input at once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from .._model.grouping import Grouping
from .._model.groups import Route
from .._model.steady import Steps, at_first, scan
from .._model.step import Terms
from .._sums import dot, matmul, matvec, widened

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


def adjoints(grouping: Grouping, terms: Terms, landings: Sequence[Landing], only: str | None = None) -> list[Adjoint]:
    """`lam_{k-1} = m_k + D_k^T lam_k` and `P_{k-1} = P_k D_k` from the last step of a window to the first.

    What enters is `P_k F_k`, what meets the input at once `lam_k F_k + n_k`. P is not wanted for `"gradients"` only,
    lam not for `"traces"` only; where terms know the first one, `n` holds all that comes later.
    """
    m = {g: widened(terms.m[g]) for g in dict.fromkeys(landing.group for landing in landings)}
    if not m:
        return []
    count, has_p, has_lam = len(next(iter(m.values()))), only != "gradients", only != "traces" and terms.first is None
    makers = {a.into: a for a in landings if has_p or has_lam}
    meetings = {a.meeting: a for a in landings if has_lam}

    def on_output(landing: Landing, parts: dict[int, Array]) -> Array:
        ndim = len(grouping.groups[landing.group].shape)
        return landing.route.spread(parts[landing.group], ndim).astype(landing.dtype)

    def start(part: Array) -> Array:
        eye = jnp.eye(size := part.shape[1], dtype=part.dtype).reshape(size, size, *[1] * (part.ndim - 2))
        return jnp.broadcast_to(eye, (size, *part.shape[1:]))

    def back(later: tuple[dict, dict, list], now: tuple) -> tuple[tuple, list]:
        (lam, p, sums), (d, m, f, n) = later, now
        f = {into: part.astype(a.dtype) for (into, a), part in zip(makers.items(), f, strict=True)}
        entering = [matvec(on_output(a, p), f[into]) for into, a in makers.items() if has_p]
        direct = [dot(on_output(a, lam), f[a.into]) for a in meetings.values()]
        direct = [a if b is None else a + b.astype(a.dtype) for a, b in zip(direct, n, strict=True)]
        said = [*entering, *direct]
        sums = [None if a is None else a + b for a, b in zip(sums, said, strict=True)]
        lam = {g: m[g] + matvec(jnp.swapaxes(d[g], 0, 1), lam[g]) for g in lam}
        p = {g: matmul(p[g], d[g]) for g in p}
        return (lam, p, sums), [a if b is None else None for a, b in zip(said, sums, strict=True)]

    last = {g: None if terms.last is None else terms.last[g] for g in m}
    lam = {g: jnp.zeros_like(m[g][0]) if last[g] is None else widened(last[g]) for g in m if has_lam}
    d, f = widened({g: terms.hidden_jacobian[g] for g in m}), [a.f for a in makers.values()]
    steps = d, m if has_lam else {}, f, [a.n for a in meetings.values()]
    like = [(a, at_first(a.f)) for a in makers.values() if has_p] + [(a, at_first(a.f)[0]) for a in meetings.values()]
    sums = [jnp.zeros(part.shape, a.dtype) if a.has_no_input else None for a, part in like]
    first = lam, {g: start(part) for g, part in m.items() if has_p}, sums
    shapes = [None if a.has_no_input else jax.ShapeDtypeStruct(part.shape, a.dtype) for a, part in like]
    (lam, p, sums), said = scan(back, first, steps, count, shapes, reverse=True)
    said = [a if b is None else b[None] for a, b in zip(said, sums, strict=True)]
    entering, direct = dict(zip(makers, said)) if has_p else {}, dict(zip(meetings, said[-len(meetings) :]))
    lam = lam if terms.first is None else widened(dict(enumerate(terms.first)))

    def at(landing: Landing) -> Adjoint:
        later = (on_output(landing, p), entering[landing.into]) if has_p else (None, None)
        if only == "traces":
            return *later, None, None
        lam_0 = on_output(landing, lam)
        silent = jnp.broadcast_to(jnp.zeros_like(lam_0[0]), (1 if landing.has_no_input else count, *lam_0.shape[1:]))
        met = direct[landing.meeting] if has_lam else silent if landing.n is None else landing.n.astype(landing.dtype)
        return *later, lam_0, met

    return [at(landing) for landing in landings]
