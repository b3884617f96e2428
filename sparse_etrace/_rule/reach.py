"""Which units a synapse influences within so many steps: the sparse powers of a step's graph."""

import math
from typing import NamedTuple

import jax
import numpy as np
import scipy.sparse as sp

from .._model.call import Call
from .._model.types import Weights
from .._model.unit_links import Node, UnitLinks
from .._op.check import uses_of
from .._op.contract import Uses

CHUNK = 4096


class Edges(NamedTuple):
    """The step as weighted edges between rows: units of hidden variables first, then outputs of op calls.

    The derivative along an edge is `weights[weight] * links[link]`: one of all weights of the carriers, after them a
    one, and one of all values of all links. The first `num_cut` edges pass what the learning signal of `Step` leaves
    out, the old state that recurrent ops read as a constant.
    """

    source: np.ndarray
    sink: np.ndarray
    weight: np.ndarray
    link: np.ndarray
    num_cut: int

    def only(self, kept: np.ndarray) -> "Edges":
        """Those that are `kept`."""
        source, sink, weight, link = (part[kept] for part in (self.source, self.sink, self.weight, self.link))
        return Edges(source, sink, weight, link, int(np.count_nonzero(kept[: self.num_cut])))


class Columns(NamedTuple):
    """What is traced: each use of a trained weight, at the row of its op's output.

    Attributes:
        row: the row.
        weight: entry of all weights of the carriers.
        x: entry of all inputs of the carriers, after them a one.
    """

    row: np.ndarray
    weight: np.ndarray
    x: np.ndarray


class Wiring:
    """The graph of a step, from its links and the synapses of its ops.

    Args:
        links: of the analysed model.
        weights: own arrays and weights of every op call.
        every: whether parameters without trace are traced as well.

    Attributes:
        num_hidden, num_rows: how many rows are hidden units, and how many there are.
        neuron: for each hidden unit the neuron that it is a variable of.
        seeds: op outputs by neurons that they drive without another op, `through`: by way of other ops.
        graph: neurons by neurons, within one step.
        ends: hidden units by op outputs that read them along cut edges and drive no neuron, by no way.
    """

    def __init__(self, links: UnitLinks, weights: Weights, every: bool = False):
        self.links = links
        self.offset: dict[Node, int] = {}
        total = 0
        for node in [*(("h", i) for i in links.leaves), *(("y", c.number) for c in links.carriers)]:
            self.offset[node] = total
            total += links.size(node)
        self.num_rows = total
        self.num_hidden = sum(links.size(("h", i)) for i in links.leaves)
        self.leaf_sizes: dict[tuple[int, int], int] = {}
        self.uses = self._read_uses(weights)
        self.edges = self._find_edges()
        self.columns = self._find_columns(every)
        self.neuron = self._find_neurons()
        self.find_reach()

    def _read_uses(self, weights: Weights) -> dict[int, list[tuple[Uses, int]]]:
        """For each carrier, the uses of each weight leaf, and where the leaf begins among all weights."""
        found: dict[int, list[tuple[Uses, int]]] = {}
        begin = 0
        for call in self.links.carriers:
            op, v, _ = call.unflatten(*weights[call.number], call.x_atoms)
            _, shapes, x = call.template(self.links.program)
            count, senders = positions(self.links, call), 0
            if x is not None:
                x = jax.ShapeDtypeStruct(x.shape[x.ndim - op.input_ndim :], x.dtype)
                senders = x.size
            units = senders, self.links.size(("y", call.number)) // max(count, 1)
            found[call.number] = []
            for leaf, uses in zip(jax.tree.leaves(shapes), uses_of(op, shapes, x, units[1]), strict=True):
                self.leaf_sizes[(call.number, len(found[call.number]))] = math.prod(leaf.shape)
                found[call.number].append((_at_positions(uses, count, *units), begin))
                begin += math.prod(leaf.shape)
        self.num_weights = begin
        return found

    def _find_edges(self) -> Edges:
        links, number = self.links, 0
        cut: list[tuple[np.ndarray, ...]] = []
        live: list[tuple[np.ndarray, ...]] = []
        for link in links.all:
            source, sink, place = link.pairs
            rows, place = source + self.offset[link.source], place + number
            number += len(link.ids)
            if link.sink[0] == "h":
                one = np.full(len(rows), self.num_weights)
                live.append((rows, sink + self.offset[link.sink], one, place))
                continue
            call = link.sink[1]
            kind, leaf = link.source
            is_cut = kind == "h" and links.grouping.cluster[leaf] in links.grouping.stops[call]
            order = np.argsort(sink, kind="stable")
            for uses, begin in self.uses[call]:
                if uses.pre is not None:
                    first, last = (np.searchsorted(sink[order], uses.pre, side) for side in ("left", "right"))
                    use, pair = spread(first, last - first)
                    pair = order[pair]
                    ends = rows[pair], uses.post[use] + self.offset[("y", call)]
                    (cut if is_cut else live).append((*ends, uses.slot[use] + begin, place[pair]))
        source, sink, weight, where = _joined([*cut, *live], 4)
        return Edges(source, sink, weight, where, sum(len(part[0]) for part in cut))

    def _find_columns(self, every: bool) -> Columns:
        links, begin = self.links, 0
        found: list[tuple[np.ndarray, ...]] = []
        learning = {c.number for c in links.grouping.reading.learning if every or c.call.traced}
        num_inputs = sum(self._input_size(c) for c in links.carriers)
        for call in links.carriers:
            trained = links.grouping.reading.weight_is_trained(call)
            for (uses, first), is_trained in zip(self.uses[call.number], trained, strict=True):
                if is_trained and call.number in learning:
                    x = np.full(len(uses.post), num_inputs) if uses.pre is None else uses.pre + begin
                    found.append((uses.post + self.offset[("y", call.number)], uses.slot + first, x))
            begin += self._input_size(call)
        return Columns(*_joined(found, 3))

    def _input_size(self, call: Call) -> int:
        return 0 if not call.x_atoms else self.links.size(("x", call.number))

    def _find_neurons(self) -> np.ndarray:
        """Hidden units that act on each other without an op between, in either direction, numbered as they come."""
        pairs = (self.edges.source < self.num_hidden) & (self.edges.sink < self.num_hidden)
        joined = entries(self.edges.source[pairs], self.edges.sink[pairs], (self.num_hidden,) * 2)
        labels = sp.csgraph.connected_components(joined, directed=False)[1]
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[inverse]

    @property
    def num_neurons(self) -> int:
        return int(self.neuron.max(initial=-1)) + 1

    def find_reach(self) -> None:
        h = self.num_hidden
        whole = entries(self.edges.source, self.edges.sink, (self.num_rows,) * 2)
        self.within = {"hh": whole[:h, :h], "hy": whole[:h, h:], "yh": whole[h:, :h], "yy": whole[h:, h:]}
        through, longer = self.within["yy"], self.within["yy"]
        while longer.nnz:
            longer = longer @ self.within["yy"]
            through = through + longer
        units = np.arange(h)
        member = entries(units, self.neuron, (h, self.num_neurons))
        direct = self.within["yh"] @ member
        later = through @ direct
        from_old = self.within["hh"] @ member + self.within["hy"] @ (direct + later)
        self.seeds, self.through, self.graph = direct, later, (member.T.tocsr() @ from_old).tocsr()
        self.member = member
        source, sink = self.edges.source[: self.edges.num_cut], self.edges.sink[: self.edges.num_cut] - h
        at_end = np.diff((direct + later).tocsr().indptr)[sink] == 0
        self.ends = entries(source[at_end], sink[at_end], (h, self.num_rows - h))

    def keep_random_paths(self, paths: int, rng: np.random.Generator) -> None:
        """Let influence pass into each neuron from so many others only, chosen at random."""
        ends = self.graph.tocoo()
        source, sink = (part[ends.row != ends.col] for part in (ends.row, ends.col))
        order = np.lexsort((rng.random(len(sink)), sink))
        source, sink = source[order], sink[order]
        chosen = np.arange(len(sink)) - np.searchsorted(sink, sink) < paths
        own = np.arange(self.num_neurons)
        allowed = entries(np.concatenate([source[chosen], own]), np.concatenate([sink[chosen], own]), self.graph.shape)
        e, h = self.edges, self.num_hidden
        through_op = (e.source < h) & (e.sink >= h)
        reached = (self.member @ allowed @ self.seeds.T + self.ends).tocsr()
        passes = np.ones(len(e.source), bool)
        passes[through_op] = np.asarray(reached[e.source[through_op], e.sink[through_op] - h]).ravel()
        self.edges = e.only(passes)
        self.find_reach()

    def reach(self, steps: int | None, given: sp.csr_array | None, limit: int) -> sp.csr_array:
        """Neurons that each op output with columns influences, as a pattern, op outputs by neurons.

        Args:
            steps: within so many steps after the first; None for all.
            given: instead, for each neuron those that its synapses are to influence beside itself.
            limit: of `count`.

        Raises:
            ValueError: there are more influences than `limit`.
        """
        rows = np.unique(self.columns.row) - self.num_hidden
        parts, total = [], 0
        for begin in range(0, len(rows), CHUNK):
            chunk = rows[begin : begin + CHUNK]
            if given is not None:
                found = (self.seeds[chunk] + self.seeds[chunk] @ given).tocsr()
            else:
                found = self.seeds[chunk]
                if steps != 0:
                    found = found + found @ self.graph + self.through[chunk]
                    found = grown(found, self.graph, None if steps is None else steps - 1)
            total += self.count(found, chunk)
            if total > limit:
                share = (begin + len(chunk)) / len(rows)
                raise ValueError(
                    f"model: more than {limit:,} influences would be kept for each batch element ({total:,} for "
                    f"{share:.0%} of the synapses' targets). Raise max_influences, take a smaller n, a sparser "
                    "pattern, or D_RTRL."
                )
            parts.append(found)
        kept = sp.vstack(parts, format="csr") if parts else sp.csr_array((0, self.num_neurons), dtype=bool)
        at = entries(rows, np.arange(len(rows)), (self.num_rows - self.num_hidden, len(rows)))
        return (at @ kept).tocsr()

    def count_all(self) -> int:
        """Influences of the columns on all that any number of steps leads to; nothing as large as they are is made."""
        count, part = sp.csgraph.connected_components(self.graph, connection="strong")
        own = entries(np.arange(self.num_neurons), part, (self.num_neurons, count))
        later = grown(sp.eye_array(count, dtype=bool), own.T @ self.graph @ own)
        reach = (self.seeds + self.through) @ own @ later
        columns = np.bincount(self.columns.row - self.num_hidden, minlength=self.num_rows - self.num_hidden)
        return int(columns @ (reach.astype(np.int64) @ np.bincount(part[self.neuron], minlength=count)))

    def count(self, reach: sp.csr_array, rows: np.ndarray) -> int:
        """Stored influences of the columns at some op outputs."""
        columns = np.bincount(self.columns.row - self.num_hidden, minlength=self.num_rows - self.num_hidden)
        units = np.bincount(self.neuron, minlength=self.num_neurons)
        return int(columns[rows] @ (reach.astype(np.int64) @ units))


def grown(
    found: sp.sparray, graph: sp.sparray, steps: int | None = None, inside: sp.sparray | None = None
) -> sp.csr_array:
    """A pattern, and all that a graph leads to from it, `inside` another, within so many steps; None: any number."""
    size = -1
    while steps != 0 and found.nnz > size:
        size, steps = found.nnz, None if steps is None else steps - 1
        more = found @ graph
        found = found + (more if inside is None else both(more, inside))
    return found.tocsr()


def both(a: sp.sparray, b: sp.sparray) -> sp.csr_array:
    """What is in two patterns."""
    return a.tocsr().multiply(b.tocsr()).tocsr().astype(bool)


def positions(links: UnitLinks, call: Call) -> int:
    """How many times an op call does the same in a step, apart from batch elements."""
    op, _, x = call.template(links.program)
    return 1 if x is None else math.prod(x.shape[len(links.batch) : x.ndim - op.input_ndim])


def _at_positions(uses: Uses, count: int, pre: int, post: int) -> Uses:
    """Uses of an op that acts so many times with the same weights, as a matrix on the features of each node."""
    at = np.repeat(np.arange(count), len(uses.post))
    first = None if uses.pre is None else np.tile(uses.pre, count) + at * pre
    return Uses(first, np.tile(uses.post, count) + at * post, np.tile(uses.slot, count))


def _joined(parts: list[tuple[np.ndarray, ...]], count: int) -> list[np.ndarray]:
    """The arrays of all parts, one after the other."""
    empty = (np.zeros(0, np.int64),) * count
    return [np.concatenate(arrays).astype(np.int64) for arrays in zip(empty, *parts, strict=True)]


def entries(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> sp.csr_array:
    """A matrix that is True at some entries."""
    return sp.csr_array((np.ones(len(rows), bool), (rows, columns)), shape=shape)


def spread(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For runs `first .. first + count`: the number of the run, and the entry, one after the other."""
    run = np.repeat(np.arange(len(count)), count)
    start = np.repeat(first - np.concatenate([[0], np.cumsum(count)[:-1]]), count) if len(count) else run
    return run, start + np.arange(len(run))
