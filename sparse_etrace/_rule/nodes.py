"""Which parameters a node keeps an influence of: those used within so many hops of it, and in which column.

A node is what acts on one another without an op between, or through an op that does the same at each of several places,
as a matrix on the features of each node of a graph. All else is a hop: an op from a synapse's sender to its target.

    h (3 nodes, 2 features)     y = w(h) at each node     z[i] = sum of s[j, i] y[j]     h' = 0.9 h + z

    nodes       {h[0], y[0], z[0]}  {h[1], y[1], z[1]}  {h[2], y[2], z[2]}
    used at     w: all of them; a synapse: at its target
"""

import math

import jax
import numpy as np
import scipy.sparse as sp

from .._model.positions import Mixed
from .reach import Wiring, both, entries, grown, positions


class Kept:
    """What is kept of each number that moves the state.

    Args:
        wiring: of the step; its neurons become these nodes.
        moving: numbers of the arrays of the model that move the state.
        hops: from where a parameter is used, at most; None: any number.

    Attributes:
        nodes: where, values by nodes.
        later: where it is, now or after a step, likewise.
        node: of each hidden unit.
        rules: of each array, by its number, the word of `explain`.
        is_whole: whether every node keeps all.
    """

    def __init__(self, wiring: Wiring, moving: list[int], hops: int | None):
        reading = wiring.links.grouping.reading
        label, home = _labels(wiring)
        used = [_used(wiring, i) for i in moving]
        begin = np.cumsum([0, *(part.shape[0] for part in used)])
        at = sp.vstack([*used, sp.csr_array((0, wiring.num_rows))], format="csr")
        size = home.shape[1]
        between = entries(label[wiring.edges.source], label[wiring.edges.sink], (size, size))
        hidden, wiring.neuron = np.unique(label[: wiring.num_hidden], return_inverse=True)
        wiring.find_reach()
        everywhere = np.zeros(at.shape[0], bool)
        for i, first, last in zip(moving, begin, begin[1:], strict=False):
            everywhere[first:last] = i in reading.plain
        always = entries(np.flatnonzero(everywhere), np.zeros(everywhere.sum(), int), (at.shape[0], 1))
        full = always @ sp.csr_array(np.ones((1, len(hidden)), bool))
        self.nodes = (grown(at @ home, between, hops)[:, hidden] + full).tocsr()
        fresh = at[:, wiring.num_hidden :] @ (wiring.seeds + wiring.through)
        self.later = (self.nodes @ wiring.graph + fresh + full).tocsr()
        is_exact = np.diff(self.later.indptr) == np.diff(both(self.later, self.nodes).indptr)
        self.is_whole = self.nodes.nnz == math.prod(self.nodes.shape)
        self.node = wiring.neuron
        self.rules = {
            i: "exact" if is_exact[first:last].all()
            else "truncated" if self.nodes[first:last].nnz
            else "same-step only"
            for i, first, last in zip(moving, begin, begin[1:], strict=False)
        }  # fmt: skip

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """The column of each value, -1 for none; and the value in each column at each node, and at no node.

        Two values have two columns where a node keeps one of them and the other is there now or after a step.
        """
        count = self.nodes.shape[0]
        groups: dict[tuple[bytes, ...], list[int]] = {}
        for part in (self.nodes, self.later):
            part.sort_indices()
        for k in np.flatnonzero(np.diff(self.nodes.indptr)):
            key = tuple(p.indices[p.indptr[k] : p.indptr[k + 1]].tobytes() for p in (self.nodes, self.later))
            groups.setdefault(key, []).append(int(k))
        members = list(groups.values())
        first = [group[0] for group in members]
        kept, seen = self.nodes[first], (self.nodes + self.later).tocsr()[first]
        meet = (kept @ seen.T).tocsr()
        meet = (meet + meet.T).tocsr()
        taken: dict[int, np.ndarray] = {}
        for g in sorted(range(len(members)), key=lambda g: -len(members[g])):
            others = [taken[h] for h in meet.indices[meet.indptr[g] : meet.indptr[g + 1]] if h in taken]
            busy = np.unique(np.concatenate([np.zeros(0, int), *others]))
            taken[g] = np.setdiff1d(np.arange(len(busy) + len(members[g])), busy)[: len(members[g])]
        column = np.full(count, -1)
        for g, group in enumerate(members):
            column[group] = taken[g]
        value = np.full((self.nodes.shape[1] + 1, int(column.max(initial=-1)) + 1), count)
        place = self.nodes.tocoo()
        value[place.col, column[place.row]] = place.row
        return column, value


def _labels(wiring: Wiring) -> tuple[np.ndarray, sp.csr_array]:
    """The node of each row; and those where each row is at home, rows by nodes."""
    links, offset = wiring.links, dict(wiring.offset)
    total = wiring.num_rows
    for call in links.carriers:
        if call.x_atoms:
            offset["x", call.number] = total
            total += links.size(("x", call.number))
    joined, landed = [np.zeros((2, 0), int)], [np.zeros((2, 0), int)]
    for link in links.all:
        source, sink, _ = link.pairs
        pairs = np.stack([source + offset[link.source], sink + offset[link.sink]])
        (landed if link.forward else joined).append(pairs)
    for call in links.carriers:
        if call.x_atoms and (places := positions(links, call)) > 1:
            for node in (("x", call.number), ("y", call.number)):
                units = offset[node] + np.arange(links.size(node))
                first = offset["x", call.number] + np.arange(places) * (links.size(("x", call.number)) // places)
                joined.append(np.stack([np.repeat(first, len(units) // places), units]))
    ends = np.concatenate(joined, axis=1)
    count, label = sp.csgraph.connected_components(entries(ends[0], ends[1], (total, total)), directed=False)
    source, sink = np.concatenate(landed, axis=1)
    rows = np.concatenate([np.arange(wiring.num_rows), source])
    home = entries(rows, np.concatenate([label[: wiring.num_rows], label[sink]]), (wiring.num_rows, count))
    return label[: wiring.num_rows], home


def _used(wiring: Wiring, param: int) -> sp.csr_array:
    """The rows at which each number of an array is used as a weight, numbers by rows."""
    links, reading = wiring.links, wiring.links.grouping.reading
    (shape,) = reading.program.shapes([reading.params[param]])
    values, rows = [np.zeros(0, int)], [np.zeros(0, int)]
    acts = reading.within_step(("p", param))
    for call in links.carriers:
        for leaf, ((uses, _), atom) in enumerate(zip(wiring.uses[call.number], call.weight_atoms, strict=True)):
            if ("w", call.number, leaf) in acts and isinstance(atom, int):
                ids = reading.between.landings(f"the weights at {call.node.where}", reading.params[param], [atom])[0]
                post = uses.post + wiring.offset["y", call.number]
                if ids is None or isinstance(ids, Mixed):
                    post = np.unique(post)
                    values.append(np.repeat(np.arange(shape.size), len(post)))
                    rows.append(np.tile(post, shape.size))
                    continue
                mine = np.asarray(ids).ravel()[uses.slot]
                values.append(mine[mine >= 0])
                rows.append(post[mine >= 0])
    found = entries(np.concatenate(values), np.concatenate(rows), (shape.size, wiring.num_rows))
    is_complex = jax.dtypes.issubdtype(shape.dtype, np.complexfloating)
    return sp.vstack([found, found], format="csr") if is_complex else found
