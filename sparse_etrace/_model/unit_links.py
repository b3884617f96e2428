"""One step as a graph of units: those of hidden variables, op inputs and op outputs, and who acts on whom."""

import math
from functools import cached_property
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from .grouping import Grouping
from .positions import Ids, Mixed
from .program import is_inexact
from .refusals import UntracedError
from .types import Known

Node = tuple[str, int]
"""`("h", leaf)` old or new state, `("x", call)` input and `("y", call)` output of an op call."""


class Link(NamedTuple):
    """Which unit of `sink` each unit of `source` acts on within a step, -1 for none; no op between.

    Where `forward`, the ids are those of the source's units, one for each unit of the sink.
    """

    source: Node
    sink: Node
    ids: np.ndarray
    forward: bool

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source unit, sink unit and place among the values of each pair of units."""
        place = np.flatnonzero(self.ids >= 0)
        ends = self.ids[place], place
        return (*ends, place) if self.forward else (*ends[::-1], place)


class UnitLinks:
    """The links of a grouped model, unit by unit. All hidden state is cut into batch axes, in front, and units."""

    def __init__(self, grouping: Grouping):
        self.grouping = grouping
        self.program, self.between = grouping.program, grouping.reading.between
        self.leaves = sorted(grouping.cluster)
        self.carriers = [c for c in grouping.reading.calls if c.is_op and grouping.stops[c.number]]
        mine = {c.number: c for c in [*self.carriers, *grouping.reading.learning]}
        self.watched = [mine[number] for number in sorted(mine)]
        self.batch = self._batch()

    def _batch(self) -> tuple[int, ...]:
        found = {}
        for call in self.carriers:
            op, _, x = call.template(self.program)
            if not op.is_diagonal:
                found[x.shape[: x.ndim - op.input_ndim]] = call
        shortest = min(found, key=len, default=())
        odd = next((b for b in found if b[: len(shortest)] != shortest), None)
        if odd is not None:
            first, second = ((b, found[b]) for b in (shortest, odd))
            raise UntracedError(
                f"model: the ops called at {first[1].node.where} and {second[1].node.where} have batch axes {first[0]} "
                f"and {second[0]}. Influences are kept for each batch element: give both the same, or use se.RTRL()."
            )
        batch = shortest
        if not found:
            # Elementwise parameters only: what is in front of their axes.
            own = max((len(c.y(self.program).shape) for c in self.carriers), default=0)
            hidden = [self.program.avals[self.grouping.reading.state[i]].shape for i in self.leaves[:1]]
            batch = hidden[0][: len(hidden[0]) - own] if hidden and own else ()
        if 0 in batch:
            raise UntracedError(f"state: expected at least one batch element, got batch axes {batch}.")
        for i in self.leaves:
            shape = self.program.avals[self.grouping.reading.state[i]].shape
            if shape[: len(batch)] != batch:
                raise UntracedError(
                    f"state: {self.grouping.reading.state_names[i]!r} of shape {shape} has the batch axes {batch} "
                    "elsewhere than in front. Put them first, or use se.RTRL()."
                )
        return batch

    def size(self, node: Node) -> int:
        """Units of a node, without batch axes."""
        kind, number = node
        if kind == "h":
            shape = self.program.avals[self.grouping.reading.state[number]].shape
        else:
            call = self.grouping.reading.calls[number]
            op, _, x = call.template(self.program)
            if op.is_diagonal:
                return math.prod(call.y(self.program).shape)
            shape = x.shape if kind == "x" else call.y(self.program).shape
        return math.prod(shape[len(self.batch) :])

    def _sinks(self) -> list[tuple[Node, int, list[Node]]]:
        """Each sink with its value, and the nodes that act on it, diagonal calls apart."""
        a = self.grouping.reading
        sinks = [(("h", i), a.new[i], ("n", i)) for i in self.leaves]
        sinks += [(("x", c.number), x, ("x", c.number)) for c in self.carriers for x in c.x_atoms]
        sources: list[Node] = [*(("h", i) for i in self.leaves), *(("y", c.number) for c in self.carriers)]
        return [
            (node, value, [s for s in sources if label in a.direct.get(s, ())])
            for node, value, label in sinks
            if isinstance(value, int) and is_inexact(self.program.avals[value])
        ]

    def _value(self, node: Node) -> int:
        kind, number = node
        a = self.grouping.reading
        return a.state[number] if kind == "h" else a.calls[number].node.outputs[0]

    def _is_diagonal(self, node: Node) -> bool:
        return node[0] == "y" and self.grouping.reading.calls[node[1]].template(self.program)[0].is_diagonal

    @cached_property
    def all(self) -> list[Link]:
        """All links, in the order of `values`.

        Raises:
            ValueError: units are mixed without an op between, or batch elements act on one another.
        """
        return [link for _, links in self._into for link in links]

    @cached_property
    def _into(self) -> list[tuple[int, list[Link]]]:
        """The value of each sink and the links into it; those that are not `forward` come first."""
        found = []
        for sink, value, sources in self._sinks():
            if sink[0] == "x" and sources:
                self._refuse_complex(sink)
            dense = [s for s in sources if not self._is_diagonal(s)]
            pulled, pushed = [], []
            for source, ids in zip(dense, self._origins(dense, sink, value), strict=True):
                if isinstance(ids, Mixed):
                    ids = self._landing(source, sink, value)
                    pushed.append(Link(source, sink, self._by_unit(source, sink, ids, True), True))
                else:
                    pulled.append(Link(source, sink, self._by_unit(source, sink, ids, False), False))
            for source in sources:
                if source not in dense:
                    ids = self._landing(source, sink, value)
                    pushed.append(Link(source, sink, self._by_unit(source, sink, ids, True), True))
            found.append((value, pulled + pushed))
        return found

    def _origins(self, sources: list[Node], sink: Node, value: int) -> list[Ids]:
        values = [self._value(s) for s in sources]
        return self.between.origins(self.name(sink), values, [value])(0) if sources else []

    def _landing(self, source: Node, sink: Node, value: int) -> Ids:
        return self.between.landings(self.name(sink), self._value(source), [value])[0]

    def _refuse_complex(self, sink: Node) -> None:
        """An influence is one number, and what a complex op makes of it would be two."""
        call = self.grouping.reading.calls[sink[1]]
        _, _, x = call.template(self.program)
        if any(jax.dtypes.issubdtype(a.dtype, np.complexfloating) for a in (x, call.y(self.program))):
            raise UntracedError(
                f"model: {self.name(sink)} is driven by hidden state or another op, and input or output of that op are "
                "complex. Influences pass through real ops: split it into two, its real and its imaginary part, or use "
                "se.RTRL()."
            )

    def _by_unit(self, source: Node, sink: Node, ids: Ids, is_forward: bool) -> np.ndarray:
        """Ids without batch axes, which have to be the same for every batch element."""
        here, there = (sink, source) if is_forward else (source, sink)
        count = math.prod(self.batch)
        if ids is None:
            return np.full(self.size(here), -1)
        if isinstance(ids, Mixed):
            raise UntracedError(
                f"model: {self.name(source)} acts on several units of {self.name(sink)} that others of it act on as "
                f"well, or across batch elements {ids.words}. Influences pass from unit to unit through ops: make the "
                "mixing an op (ETraceParam), declare it a boundary with se.cut, or use se.RTRL()."
            )
        ids = np.asarray(ids).reshape(count, self.size(here))
        offset = 0 if self._is_diagonal(source) else self.size(there) * np.arange(count)[:, None]
        by_unit = np.where(ids >= 0, ids - offset, -1)
        if np.any(by_unit != by_unit[:1]):
            raise UntracedError(
                f"model: {self.name(source)} acts on {self.name(sink)} across batch elements {self.batch}. Influences "
                "are kept for each of them: put the batch axes first in all hidden state, declare the exchange a "
                "boundary with se.cut, or use se.RTRL()."
            )
        return by_unit[0]

    def name(self, node: Node) -> str:
        """A node in words."""
        kind, number = node
        if kind == "h":
            return f"the hidden state {self.grouping.reading.state_names[number]!r}"
        what = "the input" if kind == "x" else "the output"
        return f"{what} of the op called at {self.grouping.reading.calls[number].node.where}"

    def together(self, by_leaf: dict[int, Array]) -> list[Array]:
        """What there is by each state leaf, in their order."""
        return [by_leaf[i] for i in self.leaves]

    def jacobians(self, known: Known) -> tuple[list[Array]]:
        """The values of all links."""
        return (self.values(known),)

    def values(self, known: Known) -> list[Array]:
        """Derivatives along each link, `(batch, places)`, at known inputs and op outputs."""
        found = []
        for value, links in self._into:
            values = [self._value(link.source) for link in links if not link.forward]
            found += self.between.derivatives(known, values, [value])[0] if values else []
            for link in links:
                if link.forward:
                    found += self.between.derivatives_forward(known, self._value(link.source), [value])
        return [d.reshape(math.prod(self.batch), -1) for d in found]
