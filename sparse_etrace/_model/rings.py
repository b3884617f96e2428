"""Rings that nothing but `push` moves, so that a window keeps what each step pushes and not a ring for each."""

from collections.abc import Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.extend.core as jex
import numpy as np
from jaxtyping import Array

from .._op.active import as_frame
from .._op.delays import Ring, history
from .call import Call
from .program import Program, flatten
from .reading import Reading
from .types import Atom, Input


class Pushed(NamedTuple):
    """A ring that an op reads, as it is read.

    Attributes:
        ring: its shapes.
        values, pointer: leaves of the state.
        sent: value of the step that is pushed, features before units.
        is_late: whether that is before the op reads.
    """

    ring: Ring
    values: int
    pointer: int
    sent: int
    is_late: bool


def rings_of(a: Reading, calls: Iterable[Call]) -> dict[int, Pushed]:
    """The rings that op calls read and that each step only pushes to."""
    found = {c.number: _pushed(a, c) for c in calls}
    return {number: ring for number, ring in found.items() if ring is not None}


def histories(rings: dict[int, Pushed], state: list[Array], xs: dict[int, Input]) -> dict[int, Input]:
    """What op calls read in the steps of a window, from the state before it and what was kept of each step."""
    found = dict(xs)
    for number, (ring, values, pointer, _, is_late) in rings.items():
        before = eqx.tree_at(lambda r: (r.values, r.pointer), ring, (state[values], state[pointer]))
        found[number] = history(before, xs[number], is_late)
    return found


def kept(x: Input) -> Input:
    """What is kept of what an op reads in a step: of a ring that is no `Pushed` one, all that the op could read."""
    return x.recent if isinstance(x, Ring) else as_frame(x)


def x_of(call: Call, rings: dict[int, Pushed], values: list[Array]) -> Input:
    """The same, of the values that are read or, for a `Pushed` ring, of that which is pushed."""
    if call.number in rings:
        return values[0]
    return kept(call.unflatten(call.op_atoms, call.weight_atoms, values)[2])


def _pushed(a: Reading, call: Call) -> Pushed | None:
    """How the ring moves that an op reads; None if it reads none, or what else moves it."""
    ring = call.template(a.program)[2] if call.is_op else None
    if not isinstance(ring, Ring):
        return None
    *front, _, units = ring.values.shape
    # As it lies in the ring: what turns features to the front, or gathers it from several devices, is not of the push.
    plain = jax.eval_shape(lambda ring: Ring(ring.values, ring.pointer), ring)
    given = plain, jax.ShapeDtypeStruct((*front, units), ring.dtype)
    pattern = flatten(jax.make_jaxpr(lambda ring, sent: jax.tree.leaves(ring.push(sent)))(*given))
    for values in range(len(a.state)):
        for pointer in range(len(a.state)):
            old, new = (a.state[values], a.state[pointer]), (a.new[values], a.new[pointer])
            if call.x_atoms not in (old, new):
                continue
            found: dict[int, Atom] = dict(zip(pattern.inputs, old))
            if all(_is_like(a.program, one, pattern, other, found) for one, other in zip(new, pattern.outputs)):
                value = found[pattern.inputs[2]]
                return Pushed(ring, values, pointer, value, call.x_atoms == new) if isinstance(value, int) else None
    return None


def _is_like(program: Program, atom: Atom, pattern: Program, other: Atom, found: dict[int, Atom]) -> bool:
    """Whether a value is computed as another one is in a pattern, whose inputs are `found`."""
    if not isinstance(other, int):
        return isinstance(atom, jex.Literal) and np.array_equal(atom.val, other.val)
    if other in pattern.inputs:
        return found.setdefault(other, atom) == atom
    makers = [[n for n in p.nodes if value in n.outputs] for p, value in ((program, atom), (pattern, other))]
    if not all(makers):
        return False
    (one,), (like,) = makers
    is_same = one.eqn.primitive is like.eqn.primitive and str(one.eqn.params) == str(like.eqn.params)
    pairs = zip(one.inputs, like.inputs, strict=True)
    return is_same and all(_is_like(program, i, pattern, j, found) for i, j in pairs)
