"""What a graph is: units, synapses, degrees, components, weights."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from .._text import DataFrame, as_table, data_frame, shown
from .connectivity import host_array
from .graph import Graph, check_graph
from .transforms import spectral_radius as radius_of

SMALL = 1000  # units up to which the spectral radius costs next to nothing
HUBS = 5
MOST_CATEGORIES = 100
SHOWN_CATEGORIES = 6
SAMPLE = 10_000


class Degrees(NamedTuple):
    """Synapses of a unit, over all units of one side; `hubs` are the labels with the most, and their degrees."""

    mean: float
    median: float
    max: int
    hubs: tuple[tuple[Hashable, int], ...]


class Components(NamedTuple):
    """How many components, and the largest one's share of the units."""

    number: int
    largest: float


class Weights(NamedTuple):
    """Extremes and mean of the finite weights; shares of all that are negative, zero and not finite."""

    min: float
    max: float
    mean: float
    negative: float
    zero: float
    not_finite: float


class Signs(NamedTuple):
    """Sending units by the signs of their weights; Dale's law holds if none is mixed."""

    excitatory: int
    inhibitory: int
    mixed: int
    silent: int

    @property
    def dale(self) -> bool:
        """Whether each unit's weights have one sign, zeros apart."""
        return self.mixed == 0


class Attribute(NamedTuple):
    """Type, shape of an entry, and how often each value occurs, the most frequent first; None for numbers, and for more
    than 100 values unless each stands for two entries or more."""

    dtype: str
    shape: tuple[int, ...]
    counts: Mapping[Hashable, int] | None


class GraphSummary(NamedTuple):
    """What `inspect_graph` returns; prints as a table.

    Attributes:
        nodes, num_pre, num_post: units; `nodes` counts both sides of a rectangular graph.
        synapses, pairs: parallel synapses singly, and as one pair.
        parallel: synapses beyond the first of their pair.
        self_loops: synapses of a unit on itself; None in a rectangular graph.
        density: synapses by pairs of units that there could be.
        in_degree, out_degree: over the receiving and over the sending units.
        isolated: nodes without a synapse.
        weak, strong: components; `strong` is None in a rectangular graph.
        reciprocity: share of the pairs `i -> j`, self-loops apart, with a synapse `j -> i` as well; None likewise.
        weights: None without synapses.
        signs: of the sending units.
        spectral_radius: None unless computed.
        node_attrs, edge_attrs: attributes by name.
    """

    nodes: int
    num_pre: int
    num_post: int
    synapses: int
    pairs: int
    parallel: int
    self_loops: int | None
    density: float
    in_degree: Degrees
    out_degree: Degrees
    isolated: int
    weak: Components
    strong: Components | None
    reciprocity: float | None
    weights: Weights | None
    signs: Signs
    spectral_radius: float | None
    node_attrs: Mapping[str, Attribute]
    edge_attrs: Mapping[str, Attribute]

    def __str__(self) -> str:
        square = self.strong is not None
        units = f"{self.nodes:,}" if square else f"{self.num_pre:,} sending, {self.num_post:,} receiving"
        rows = [
            ("units", units),
            ("isolated", f"{self.isolated:,}"),
            ("synapses", f"{self.synapses:,}, density {self.density:.3g}"),
            ("parallel synapses", f"{self.parallel:,}"),
        ]
        if square:
            rows += [("self-loops", f"{self.self_loops:,}")]
        for name, d in (("in-degree", self.in_degree), ("out-degree", self.out_degree)):
            rows += [(name, f"mean {d.mean:.4g}, median {d.median:g}, max {d.max:,}")]
            rows += [(f"  hubs, {name[:-7]}", ", ".join(f"{shown(label)} ({k:,})" for label, k in d.hubs) or "-")]
        for name, c in (("weak components", self.weak), ("strong components", self.strong)):
            rows += [(name, f"{c.number:,}, the largest with {c.largest:.1%} of the units")] if c else []
        rows += [("reciprocity", f"{self.reciprocity:.1%} of the pairs")] if self.reciprocity is not None else []
        if self.weights is not None:
            w = self.weights
            rows += [("weights", f"{w.min:.4g} to {w.max:.4g}, mean {w.mean:.4g}")]
            shares = f"{w.negative:.1%} negative, {w.zero:.1%} zero"
            rows += [("", shares + (f", {w.not_finite:.1%} not finite" if w.not_finite else ""))]
        s = self.signs
        found = "holds" if s.dale else f"broken by {s.mixed:,} units"
        counts = f"{s.excitatory:,} excitatory, {s.inhibitory:,} inhibitory, {s.silent:,} without output"
        rows += [("Dale's law", f"{found}; {counts}")]
        rows += [("spectral radius", f"{self.spectral_radius:.4g}")] if self.spectral_radius is not None else []
        for kind, attrs in (("node", self.node_attrs), ("edge", self.edge_attrs)):
            rows += [(f"{kind} attribute {shown(name)}", _describe(a)) for name, a in attrs.items()]
        return as_table(("graph", ""), rows)

    def to_dataframe(self) -> DataFrame:
        """The numbers as a pandas data frame with the columns `quantity` and `value`, such as `in_degree.mean`."""
        found = dict(_flat(self))
        return data_frame({"quantity": list(found), "value": list(found.values())})


def inspect_graph(graph: Graph, spectral_radius: bool | None = None) -> GraphSummary:
    """Say what a graph is: sizes, degrees, hubs, components, reciprocity, weights, attributes.

    Args:
        graph: square or rectangular; it may be empty.
        spectral_radius: whether to compute it; None where it costs next to nothing: square, 1,000 units at most, finite
            weights.

    Returns:
        The summary.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: as `spectral_radius`, where that is asked for.

    Example:
        >>> import sparse_etrace as se
        >>> summary = se.inspect_graph(se.datasets.worm())
        >>> summary.synapses, summary.weak.number, summary.signs.dale, summary.out_degree.hubs[0]
        (2194, 1, True, ('AVAR', 49))
    """
    check_graph(graph)
    conn = graph.connectivity
    pre, post = host_array("graph", conn.pre), host_array("graph", conn.post)
    pre_ptr, post_ptr, post_by_pre = (np.asarray(a) for a in (conn.pre_ptr, conn.post_ptr, conn.post_by_pre))
    weight = host_array("graph", graph.weight)
    square = conn.num_pre == conn.num_post
    incoming, outgoing = np.diff(post_ptr), np.diff(pre_ptr)
    if square:
        touched = np.count_nonzero((incoming > 0) | (outgoing > 0))
        pattern = _pattern(pre, post_ptr, conn.shape)
        self_loops = int(np.count_nonzero(pre == post))
        pairs, strong = pattern.nnz, _components(pattern, "strong")
        reciprocity = _reciprocity(pattern, _pattern(post_by_pre, pre_ptr, conn.shape))
    else:
        touched = np.count_nonzero(incoming) + np.count_nonzero(outgoing)
        first = np.ones(pre.size, bool)
        first[1:] = (pre[1:] != pre[:-1]) | (post[1:] != post[:-1])
        pairs, self_loops, strong, reciprocity = int(np.count_nonzero(first)), None, None, None
        ends = pre, post.astype(np.int64) + conn.num_pre
        pattern = sp.csc_array((np.ones(pre.size, np.int8), ends), shape=(sum(conn.shape),) * 2)
    weights = _weights(weight)
    if spectral_radius is None:
        spectral_radius = square and len(graph.nodes) <= SMALL and (weights is None or not weights.not_finite)
    return GraphSummary(
        len(graph.nodes),
        conn.num_pre,
        conn.num_post,
        pre.size,
        pairs,
        pre.size - pairs,
        self_loops,
        conn.density,
        _degrees(incoming, graph.post_nodes),
        _degrees(outgoing, graph.pre_nodes),
        len(graph.nodes) - int(touched),
        _components(pattern, "weak"),
        strong,
        reciprocity,
        weights,
        _signs(weight, pre, conn.num_pre),
        radius_of(graph) if spectral_radius else None,
        {name: _attribute(column) for name, column in graph.node_attrs.items()},
        {name: _attribute(column) for name, column in graph.edge_attrs.items()},
    )


def _pattern(indices: np.ndarray, ptr: np.ndarray, shape: tuple[int, int]) -> sp.csc_array:
    """A matrix with an entry for each pair of units, sorted."""
    found = sp.csc_array((np.ones(indices.size, bool), indices.copy(), ptr.copy()), shape=shape)
    found.sum_duplicates()
    return found


def _degrees(degree: np.ndarray, labels: Sequence[Hashable]) -> Degrees:
    if not degree.size:
        return Degrees(0.0, 0.0, 0, ())
    first = np.argsort(-degree, kind="stable")[:HUBS]
    hubs = tuple((labels[i], int(degree[i])) for i in first if degree[i])
    return Degrees(float(degree.mean()), float(np.median(degree)), int(degree.max()), hubs)


def _components(pattern: sp.csc_array, connection: str) -> Components:
    if not pattern.shape[0]:
        return Components(0, 0.0)
    # The transpose has the same components, and is of the format that scipy wants.
    count, of = connected_components(pattern.T, directed=True, connection=connection)
    return Components(int(count), float(np.bincount(of).max() / of.size))


def _reciprocity(pattern: sp.csc_array, back: sp.csc_array) -> float:
    loops = int(np.count_nonzero(pattern.diagonal()))
    return (pattern.multiply(back).nnz - loops) / max(pattern.nnz - loops, 1)


def _weights(weight: np.ndarray) -> Weights | None:
    if not weight.size:
        return None
    finite = np.isfinite(weight)
    kept = weight[finite] if not finite.all() else weight
    shares = ((weight < 0).mean(), (weight == 0).mean(), 1 - finite.mean())
    numbers = (kept.min(), kept.max(), kept.mean(dtype=np.float64)) if kept.size else (np.nan,) * 3
    return Weights(*(float(number) for number in (*numbers, *shares)))


def _signs(weight: np.ndarray, pre: np.ndarray, num_pre: int) -> Signs:
    plus, minus = np.zeros(num_pre, bool), np.zeros(num_pre, bool)
    plus[pre[weight > 0]] = True
    minus[pre[weight < 0]] = True
    parts = plus & ~minus, minus & ~plus, plus & minus, ~plus & ~minus
    return Signs(*(int(np.count_nonzero(part)) for part in parts))


def _attribute(column: np.ndarray) -> Attribute:
    kind, counts = column.dtype.kind, None
    if column.ndim == 1 and (kind in "USb" or (kind == "O" and all(isinstance(v, str) for v in column))):
        # A column of names, each its own, is seen from its first entries.
        if _are_few(column[:SAMPLE]):
            counts = dict(Counter(column.tolist()).most_common()) if _are_few(column) else None
    return Attribute("text" if kind in "USO" and counts else str(column.dtype), column.shape[1:], counts)


def _are_few(column: np.ndarray) -> bool:
    return len(set(column.tolist())) <= max(MOST_CATEGORIES, column.size // 2)


def _describe(attribute: Attribute) -> str:
    if not attribute.counts:
        return attribute.dtype + "".join(f" x {size}" for size in attribute.shape)
    found = [f"{shown(value) if value != '' else '(empty)'} {k:,}" for value, k in attribute.counts.items()]
    rest = len(found) - SHOWN_CATEGORIES
    return ", ".join(found[:SHOWN_CATEGORIES]) + (f" and {rest:,} more" if rest > 0 else "")


def _flat(summary: GraphSummary) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in zip(summary._fields, summary, strict=True):
        if isinstance(value, Degrees | Components | Weights | Signs):
            rows += [(f"{name}.{k}", v) for k, v in value._asdict().items() if k != "hubs"]
        elif isinstance(value, dict):
            for key, attribute in value.items():
                rows += [(f"{name}.{key}.{what}", count) for what, count in (attribute.counts or {}).items()]
        else:
            rows.append((name, value))
    return rows
