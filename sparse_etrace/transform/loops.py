"""Synapses of nodes on themselves."""

from collections.abc import Mapping

import numpy as np

from .._graph.graph import Graph
from .._types import Values
from .origin import Made, at, built, filled, finite, parts_of, squared

WHY = "where a node can have a synapse on itself"


def add_self_loops(
    graph: Graph,
    weight: Values = 1.0,
    *,
    edge_attrs: Mapping[str, Values] | None = None,
    with_origin: bool = False,
) -> Made:
    """Give each node a synapse on itself, `A + weight * I`; those that are there stay beside it.

    Args:
        graph: a square graph.
        weight: of the new synapses: a number, or one for each node, `(num_nodes,)`.
        edge_attrs: for each edge attribute its value on new synapses.
        with_origin: return which synapse became which, too.

    Returns:
        The graph, or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: the graph is not square, a weight is not finite, or an attribute has no value.

    Example:
        >>> import sparse_etrace as se
        >>> se.transform.add_self_loops(se.from_edges([0, 1], [0, 0], [2.0, 3.0])).to_dense().tolist()
        [[3.0, 0.0], [3.0, 1.0]]
    """
    squared(graph, WHY)
    return _added(graph, np.arange(len(graph.nodes)), weight, edge_attrs, with_origin)


def add_remaining_self_loops(
    graph: Graph, fill: Values = 1.0, *, edge_attrs: Mapping[str, Values] | None = None, with_origin: bool = False
) -> Made:
    """Give each node that has none a synapse on itself.

    Args:
        graph: a square graph.
        fill: weight of the new synapses: a number, or one for each node, `(num_nodes,)`.
        edge_attrs, with_origin: see `add_self_loops`.

    Returns:
        The graph, or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError, ValueError: as `add_self_loops`.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.from_edges([0, 1], [0, 0], [2.0, 3.0])
        >>> se.transform.add_remaining_self_loops(graph, 0.5).to_dense().tolist()
        [[2.0, 0.0], [3.0, 0.5]]
    """
    squared(graph, WHY)
    pre, post, *_ = parts_of(graph)
    return _added(graph, np.setdiff1d(np.arange(len(graph.nodes)), pre[pre == post]), fill, edge_attrs, with_origin)


def remove_self_loops(graph: Graph, *, with_origin: bool = False) -> Made:
    """Take away each synapse of a node on itself.

    Args:
        graph: a square graph.
        with_origin: see `add_self_loops`.

    Returns:
        The graph, or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: the graph is not square.

    Example:
        >>> import sparse_etrace as se
        >>> se.transform.remove_self_loops(se.from_edges([0, 1], [0, 0], [2.0, 3.0])).weight.tolist()
        [3.0]
    """
    parts = parts_of(squared(graph, WHY))
    kept = np.flatnonzero(parts.pre != parts.post)
    return built(at(parts, kept), graph.connectivity.shape, kept, with_origin)


def _added(graph: Graph, units: np.ndarray, weight: Values, attrs: Mapping | None, with_origin: bool) -> Made:
    parts, size = parts_of(graph), len(graph.nodes)
    every = np.asarray(weight, np.float64)
    if every.shape not in ((), (size,)):
        raise ValueError(f"weight: expected a number, or one for each node, ({size},), got shape {every.shape}.")
    new = finite(np.broadcast_to(every, size)[units], parts.weight, units, units)
    attrs = filled(parts.attrs, attrs, units.size) if units.size else parts.attrs
    pre, post = (np.concatenate([end, units.astype(np.int32)]) for end in parts[:2])
    weight = np.concatenate([parts.weight, new])
    parts = parts._replace(pre=pre, post=post, weight=weight, attrs=attrs)
    old = np.concatenate([np.arange(parts.pre.size - units.size), np.full(units.size, -1)])
    return built(parts, graph.connectivity.shape, old, with_origin)
