"""Hidden groups: units on which the step between ops acts one by one, and how the outputs of ops land on them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._kernels.windows import sum_to
from .call import Call
from .links import Between
from .positions import Ids, Mixed
from .refusals import UntracedError
from .types import Atom


class Route(NamedTuple):
    """How the output of an op call lands on the units of a hidden group.

    `ids` where it is neither equal nor a tile: the unit of each output; of an elementwise op, the value of each unit.
    Where it passes through ops of fixed weights, that is the output of the last of them, `via`.
    """

    call: int
    repeats: tuple[int, ...] | None
    ids: np.ndarray | None
    via: int | None = None

    @property
    def source(self) -> int:
        """The op call whose output acts on the units."""
        return self.call if self.via is None else self.via

    def spread(self, hidden: jax.Array, ndim: int) -> jax.Array:
        """Values on the units of the group, the last `ndim` axes, as values on the output of the op."""
        if self.repeats is not None:
            return jnp.tile(hidden, self.repeats) if max(self.repeats) > 1 else hidden
        flat = hidden.reshape(*hidden.shape[: hidden.ndim - ndim], -1)
        return jnp.take(flat, np.maximum(np.asarray(self.ids), 0), axis=-1)

    def at_units(self, y: jax.Array) -> jax.Array:
        """Values of an elementwise op, as `total` takes them from the units of the group."""
        return y if self.ids is None else jnp.take(y.ravel(), self.ids)

    def total(self, hidden: jax.Array, y: jax.Array) -> jax.Array:
        """Sums over the units on which each value `y` of an elementwise op acts."""
        if self.ids is None:
            return sum_to(hidden, y)
        return jnp.zeros(y.size, hidden.dtype).at[self.ids.ravel()].add(hidden.ravel()).reshape(y.shape)


class Group(NamedTuple):
    """Live hidden variables of one shape that influence each other unit by unit, and the op calls traced into them."""

    variables: tuple[int, ...]
    shape: tuple[int, ...]
    routes: tuple[Route, ...]


class Variable(NamedTuple):
    """One hidden variable: its name, its old and its new value."""

    name: str
    old: int
    new: Atom


def make_group(between: Between, members: tuple[int, ...], variables: Sequence[Variable], traced: list[Call]) -> Group:
    """Check that the step between ops acts on each unit by itself, and find how the `traced` calls reach the units.

    Raises:
        UntracedError: units are mixed, variables differ in shape, or one output of an op drives several units.
    """
    program = between.program
    shape = program.avals[variables[0].old].shape
    for other in variables:
        if program.avals[other.old].shape != shape:
            raise UntracedError(
                f"state: {variables[0].name!r} of shape {shape} and {other.name!r} of shape "
                f"{program.avals[other.old].shape} influence each other without an op between, so their units have to "
                "match one by one as they lie. Store both in one shape and order, or put an op or se.cut between them."
            )
    dense = [c for c in traced if not c.template(program)[0].is_diagonal]
    sources, new = [v.old for v in variables] + [c.node.outputs[0] for c in dense], [v.new for v in variables]
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    what = f"the hidden state {', '.join(repr(v.name) for v in variables)}"
    origins = between.origins(what, sources, new)

    def strays(ids: Ids) -> bool:
        return isinstance(ids, Mixed) or (ids is not None and bool(np.any((ids != numbers) & (ids >= 0))))

    found = origins(*range(len(new)))
    for number, (variable, ids) in enumerate(zip(variables, found)):
        if strays(ids):
            mixed = ids if isinstance(ids, Mixed) else getattr(ids, "moved", None)
            how = mixed.words if mixed else "by a permutation of the units"
            alone = [origins(k)[number] for k in range(len(new))]
            others = [repr(v.name) for v, part in zip(variables, alone, strict=True) if strays(part)]
            if not strays(alone[number]) and not any(isinstance(part, Mixed) for part in alone):
                how = f"as {', '.join(others)} lies in another order (if these are the same units, store both in one)"
            raise UntracedError(
                f"model: the hidden state {variable.name!r} is mixed across units or batch {how}. A trace per "
                "synapse needs dynamics that act on each unit by itself: make the mixing an op (ETraceParam), declare "
                "it a boundary with se.cut, or use a learner without that need, se.RTRL(), se.Bridged or se.BPTT()."
            )
    name = variables[0].name
    routes = [_route(c, ids, numbers, name) for c, ids in zip(dense, found[len(variables) :], strict=True)]
    routes += [_route_diagonal(between, c, variables, shape) for c in traced if c not in dense]
    return Group(members, shape, tuple(routes))


def _route(call: Call, ids: Ids, numbers: np.ndarray, name: str) -> Route:
    if isinstance(ids, Mixed) or ids is None:
        how = "" if ids is None else f" {ids.words}"
        raise UntracedError(
            f"model: one output of the op called at {call.node.where} drives several units of {name!r}{how}. Give each "
            "unit its own output (an input without batch axes has to be broadcast first; an index array that is a leaf "
            "of the model cannot be followed, a slice or a constant can), or declare the mixing with se.cut."
        )
    if ids.ndim == numbers.ndim and all(a % max(b, 1) == 0 for a, b in zip(ids.shape, numbers.shape)):
        repeats = tuple(a // max(b, 1) for a, b in zip(ids.shape, numbers.shape))
        tiled = np.tile(numbers, repeats)
        if tiled.shape == ids.shape and not np.any((tiled != ids) & (ids >= 0)):
            return Route(call.number, repeats, None)
    return Route(call.number, None, ids)


def _route_diagonal(between: Between, call: Call, variables: Sequence[Variable], shape: tuple[int, ...]) -> Route:
    """An elementwise value may serve every batch element, so its derivative is followed forward."""
    y = call.y(between.program)
    what = f"the hidden state {variables[0].name!r}"
    landed = between.landings(what, call.node.outputs[0], [v.new for v in variables])
    numbers = np.arange(int(np.prod(y.shape))).reshape(y.shape)
    value = np.full(shape, -1)
    for variable, ids in zip(variables, landed, strict=True):
        if isinstance(ids, Mixed) or (ids is not None and np.any((ids != value) & (ids >= 0) & (value >= 0))):
            how = f" {ids.words}" if isinstance(ids, Mixed) else ", each on another variable of it"
            raise UntracedError(
                f"model: several values of the elementwise parameter called at {call.node.where} act on one unit of "
                f"{variable.name!r}{how}. A unit has one trace of it: take one parameter for each role, or use "
                "se.RTRL()."
            )
        value = value if ids is None else np.maximum(value, ids)
    fits = len(y.shape) <= len(shape) and all(a in (1, b) for a, b in zip(y.shape[::-1], shape[::-1]))
    if fits and not np.any((value != np.broadcast_to(numbers, shape)) & (value >= 0)):
        return Route(call.number, (1,), None)
    return Route(call.number, (1,), np.maximum(value, 0))
