"""Several graphs as one of several parts, and back."""

from collections.abc import Sequence

import numpy as np

from .._graph.graph import Graph
from .._numbers import whole
from .origin import Made, Origin, Parts, at, built, parts_of, squared

OF = "graph"  # the node attribute that says which graph a node is of


def batch_graphs(graphs: Sequence[Graph], *, with_origin: bool = False) -> Made:
    """Put graphs beside one another into one: the block-diagonal matrix of theirs.

    Args:
        graphs: square graphs with the same attributes; they may be empty, and of any size.
        with_origin: return which synapse became which, too.

    Returns:
        The graph: nodes and synapses follow one another graph by graph, each in its order, and the node attribute
        `graph` (int32) says which one a node is of. Its labels are positions, or, where a graph has labels of its own,
        pairs of the graph's number and its label. With `with_origin` a pair of it and a list of an `Origin` for each.

    Raises:
        TypeError: one is no graph, or is traced.
        ValueError: there is none, one is not square, or they differ in attributes or weight types.

    Example:
        >>> import sparse_etrace as se
        >>> both = se.transform.batch_graphs([se.from_edges([0], [1]), se.from_edges([0, 1], [1, 0])])
        >>> both.connectivity.pre.tolist(), both.connectivity.post.tolist(), both.node_attrs["graph"].tolist()
        ([0, 3, 2], [1, 2, 3], [0, 0, 1, 1])
    """
    if not graphs:
        raise ValueError("graphs: expected at least one, got none.")
    every = [parts_of(squared(graph, "that can be a block of a square matrix")) for graph in graphs]
    attrs = _joined("edge", [parts.attrs for parts in every])
    node_attrs = _joined("node", [parts.node_attrs for parts in every])
    if OF in node_attrs:
        raise ValueError(f"graphs: expected no node attribute {OF!r}, which says whose a node is, got one. Rename it.")
    types = {parts.weight.dtype.name for parts in every}
    if len(types) > 1:
        raise ValueError(f"graphs: expected weights of one type, got {sorted(types)}.")
    sizes = [len(graph.nodes) for graph in graphs]
    start = np.cumsum([0, *sizes[:-1]])
    nodes = None
    if any(parts.nodes is not None for parts in every):
        nodes = [(k, label) for k, graph in enumerate(graphs) for label in graph.nodes]
    together = Parts(
        np.concatenate([parts.pre + first for parts, first in zip(every, start)]),
        np.concatenate([parts.post + first for parts, first in zip(every, start)]),
        np.concatenate([parts.weight for parts in every]),
        attrs,
        nodes,
        node_attrs | {OF: np.repeat(np.arange(len(graphs), dtype=np.int32), sizes)},
    )
    made = built(together, (sum(sizes), sum(sizes)))
    if not with_origin:
        return made
    counts = [parts.pre.size for parts in every]
    return made, [Origin.run(count, new=first) for count, first in zip(counts, np.cumsum([0, *counts[:-1]]))]


def unbatch(graph: Graph, number: int | None = None, *, with_origin: bool = False) -> Made:
    """Take apart what `batch_graphs` put together.

    Args:
        graph: a square graph with the node attribute `graph`, ascending; its weights may be others by now.
        number: how many graphs there were; those up to the last one with nodes unless given.
        with_origin: return which synapse became which, too.

    Returns:
        The graphs, a list; or with `with_origin` a pair of it and a list of an `Origin` for each.

    Raises:
        TypeError: `graph` is no graph, or is traced; `number` is no whole number.
        ValueError: the attribute is missing, does not ascend or exceeds `number`, or a synapse joins two graphs.

    Example:
        >>> import sparse_etrace as se
        >>> both = se.transform.batch_graphs([se.from_edges(["a"], ["b"], labels="ab"), se.from_edges([0], [0])])
        >>> [part.nodes for part in se.transform.unbatch(both)]
        [('a', 'b'), range(0, 1)]
    """
    parts = parts_of(squared(graph, "as `batch_graphs` makes them"))
    of = parts.node_attrs.pop(OF, None)
    if of is None or of.dtype.kind not in "iu" or (np.diff(of, prepend=0) < 0).any():
        raise ValueError(f"graph: expected the node attribute {OF!r}, ascending integers from 0, got {of}.")
    number = int(of.max(initial=-1)) + 1 if number is None else whole("number", number)
    if number <= of.max(initial=-1):
        raise ValueError(f"number: expected more than {of.max()}, the last graph of a node, got {number}.")
    mixed = of[parts.pre] != of[parts.post]
    if mixed.any():
        k = int(np.argmax(mixed))
        raise ValueError(
            f"graph: expected no synapse between two graphs, got {graph.nodes[parts.pre[k]]!r} -> "
            f"{graph.nodes[parts.post[k]]!r}. Remove it."
        )
    bounds = np.searchsorted(of, np.arange(number + 1))
    ends = np.searchsorted(of[parts.post], np.arange(number + 1))
    found = []
    for k in range(number):
        first, last = bounds[k], bounds[k + 1]
        part = at(parts, np.arange(ends[k], ends[k + 1]))
        nodes = None if parts.nodes is None else [label for _, label in parts.nodes[first:last]]
        nodes = None if nodes == list(range(last - first)) else nodes
        columns = {key: column[first:last] for key, column in parts.node_attrs.items()}
        part = part._replace(pre=part.pre - first, post=part.post - first, nodes=nodes, node_attrs=columns)
        found.append(built(part, (int(last - first),) * 2))
    if not with_origin:
        return found
    return found, [Origin.run(last - first, old=first) for first, last in zip(ends, ends[1:])]


def _joined(what: str, every: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The attributes of all, one after the other; a column without rows may be of any type."""
    found = {}
    for k, columns in enumerate(every):
        if set(columns) != set(every[0]):
            raise ValueError(
                f"graphs[{k}]: expected the {what} attributes of the first one, {sorted(every[0], key=str)}, got "
                f"{sorted(columns, key=str)}. Give all graphs the same."
            )
    for key, first in every[0].items():
        filled = [columns[key] for columns in every if columns[key].size] or [first]
        kinds = {(column.dtype.kind, column.shape[1:]) for column in filled}
        if len(kinds) > 1:
            raise ValueError(f"graphs: expected {what} attribute {key!r} of one kind and shape, got {sorted(kinds)}.")
        found[key] = np.concatenate(filled)
    return found
