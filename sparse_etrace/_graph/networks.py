"""Graphs from networkx."""

from collections.abc import Hashable, Iterable
from numbers import Real as RealNumber

import jax.numpy as jnp
import networkx as nx
import numpy as np
from jax.typing import DTypeLike

from .build import Policies, build_graph
from .columns import GUESS, NO_WEIGHT, is_real, kept_names, say_guesses, weight_name
from .graph import Graph
from .labels import attribute_columns


def from_networkx(
    G: object,
    weight: Hashable | None = GUESS,
    *,
    edge_attrs: Iterable[Hashable] | None = None,
    duplicates: str = "keep",
    self_loops: str = "keep",
    dtype: DTypeLike = jnp.float32,
) -> Graph:
    """Return a networkx graph with its labels and attributes, nodes in their order of insertion.

    An undirected edge becomes one synapse in each direction, an undirected self-loop one; edges of a multigraph
    become parallel synapses. Keys of a multigraph's edges and attributes of the graph itself are not kept.

    Args:
        G: a `Graph`, `DiGraph`, `MultiGraph` or `MultiDiGraph`.
        weight: the edge attribute that is the weight; None for weights of 1. Unless given, it is found as in
            `read_graph`, and what is guessed is said in a warning.
        edge_attrs: the edge attributes to keep; all others unless given.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A square graph. Attributes are in `node_attrs` and `edge_attrs`: numbers, strings and arrays of one shape as
        arrays of these, anything else as object arrays.

    Raises:
        TypeError: `G` is no networkx graph.
        ValueError: an attribute is missing on some nodes or edges, or its values are of mixed kinds (the first
            offender is named), several may be the weight; or as `from_edges`.

    Example:
        >>> import networkx as nx, sparse_etrace as se
        >>> graph = se.from_networkx(nx.path_graph(["a", "b", "c"]))
        >>> graph.nodes, graph.connectivity.num_synapses
        (('a', 'b', 'c'), 4)
    """
    if not isinstance(G, nx.Graph):
        raise TypeError(f"G: expected a networkx graph, got {type(G).__name__}.")
    nodes, index = tuple(G), {label: k for k, label in enumerate(G)}
    edges = list(G.edges(data=True))
    names, rows = [(u, v) for u, v, _ in edges], [row for _, _, row in edges]
    values = None
    guesses: list[str] = []
    found = list(dict.fromkeys(key for row in rows for key in row))

    def is_number(key: Hashable) -> bool:
        return all(is_real(row[key]) for row in rows if key in row)

    weight = weight_name(weight if rows else None, found, is_number, guesses)
    kept = kept_names(edge_attrs, [key for key in found if key != weight])
    if weight is not None:
        weights = [{weight: row[weight]} if weight in row else {} for row in rows]
        for name, row in zip(names, weights, strict=True):
            if row and not isinstance(row[weight], (RealNumber, np.bool_)):
                raise ValueError(
                    f"G: expected real numbers as weights, got {weight}={row[weight]!r} on edge {name!r}. Name "
                    "another attribute, or None for weights of 1."
                )
        values = attribute_columns("edge", weights, names, NO_WEIGHT)[weight]  # type: ignore[index]
    rows = [{key: row[key] for key in kept if key in row} for row in rows]
    pre = np.array([index[u] for u, _ in names], np.int64)
    post = np.array([index[v] for _, v in names], np.int64)
    attrs = attribute_columns("edge", rows, names, ", or leave it out of `edge_attrs`")
    if not G.is_directed():
        twice = np.repeat(np.arange(pre.size), np.where(pre == post, 1, 2))
        back = np.concatenate([[False], twice[1:] == twice[:-1]])[: twice.size]
        pre, post = np.where(back, post[twice], pre[twice]), np.where(back, pre[twice], post[twice])
        values = None if values is None else values[twice]
        attrs = {key: column[twice] for key, column in attrs.items()}
    node_attrs = attribute_columns("node", [row for _, row in G.nodes(data=True)], nodes)
    policies = Policies(duplicates, self_loops, dtype)
    graph = build_graph(pre, post, values, (len(nodes), len(nodes)), nodes, node_attrs, attrs, policies=policies)
    say_guesses("from_networkx", guesses)
    return graph
