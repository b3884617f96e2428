"""A graph made from another, and which synapse became which."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._graph.build import SMALLER, check_weight
from .._graph.columns import taken
from .._graph.connectivity import canonical_order, host_array
from .._graph.graph import Graph, check_graph
from .._types import Values

Made = Any  # a Graph, or with `with_origin` a pair of it and an Origin; or several of each


class Origin(NamedTuple):
    """Which synapse became which: synapse `old[k]` of the graph given is in synapse `new[k]` of the result.

    Synapses that are new have no entry, those that are gone neither; two that were merged share their `new`. So
    `jnp.zeros(n).at[origin.new].add(w[origin.old])` moves what belongs to synapses (and adds what was merged).

    Attributes:
        old: indices in canonical order of the graph that was given, int32.
        new: indices in canonical order of the result, int32, ascending.
    """

    old: np.ndarray
    new: np.ndarray

    @classmethod
    def run(cls, count: int, old: int = 0, new: int = 0) -> "Origin":
        """As many synapses that lie one after the other in both, from these on."""
        return cls(*(np.arange(first, first + count, dtype=np.int32) for first in (old, new)))


class Parts(NamedTuple):
    """The synapses of a graph, on the host, in canonical order."""

    pre: np.ndarray
    post: np.ndarray
    weight: np.ndarray
    attrs: dict[str, np.ndarray]
    nodes: Sequence | None
    node_attrs: dict[str, np.ndarray]


def parts_of(graph: object) -> Parts:
    """What a graph is made of; labels are None where they are positions."""
    graph = check_graph(graph)
    conn = graph.connectivity
    pre, post, weight = (host_array("graph", array) for array in (conn.pre, conn.post, graph.weight))
    nodes = None if graph.nodes == range(len(graph.nodes)) else graph.nodes
    return Parts(pre, post, weight, graph.edge_attrs, nodes, graph.node_attrs)


def squared(graph: object, why: str) -> Graph:
    """The graph, which has one set of nodes, or an error in words."""
    graph = check_graph(graph)
    if graph.connectivity.num_pre != graph.connectivity.num_post:
        raise ValueError(f"graph: expected a square one, {why}, got shape {graph.connectivity.shape}.")
    return graph


def built(parts: Parts, shape: tuple[int, int], old: np.ndarray | None = None, with_origin: bool = False) -> Made:
    """The graph of synapses in any order; `old`: which each was, -1 for a new one, None if all stay in place."""
    order, connectivity = canonical_order(parts.pre, parts.post, shape)
    attrs = {key: column[order] for key, column in parts.attrs.items()}
    graph = Graph(connectivity, jnp.asarray(taken(parts.weight, order)), parts.nodes, parts.node_attrs, attrs)
    if not with_origin:
        return graph
    old = order if old is None else old[order]
    new = np.flatnonzero(old >= 0)
    return graph, Origin(old[new].astype(np.int32), new.astype(np.int32))


def at(parts: Parts, chosen: np.ndarray) -> Parts:
    """Some of the synapses, in this order."""
    attrs = {key: column[chosen] for key, column in parts.attrs.items()}
    ends = parts.pre[chosen], parts.post[chosen]
    return parts._replace(pre=ends[0], post=ends[1], weight=taken(parts.weight, chosen), attrs=attrs)


def finite(weight: np.ndarray, like: np.ndarray, pre: np.ndarray, post: np.ndarray, merged: bool = False) -> np.ndarray:
    """Weights in the type of others, or an error where one, or what several were `merged` to, is not finite in it."""
    what, way_out = ("what becomes one ", {"way_out": SMALLER}) if merged else ("", {})
    return check_weight(weight, pre.size, like.dtype, lambda k: f"{what}synapse {pre[k]} -> {post[k]}", **way_out)


def filled(attrs: Mapping[str, np.ndarray], given: Mapping[str, Values] | None, count: int) -> dict[str, np.ndarray]:
    """Attributes with `count` more rows, each the value that is given."""
    given = dict(given or {})
    if set(given) != set(attrs):
        raise ValueError(
            f"edge_attrs: expected a value for new synapses of each attribute, {sorted(attrs, key=str)}, got "
            f"{sorted(given, key=str)}. Name all of them, and no others."
        )
    found = {}
    for key, column in attrs.items():
        value = np.asarray(given[key])
        other = column.size > 0 and (value.dtype.kind in "US") != (column.dtype.kind in "US")
        if other or value.shape not in ((), column.shape[1:]):
            raise ValueError(
                f"edge_attrs[{key!r}]: expected a value of {column.dtype} and shape {column.shape[1:]}, got "
                f"{given[key]!r}."
            )
        found[key] = np.concatenate([column, np.broadcast_to(value, (count, *column.shape[1:]))])
    return found
