"""`Graph` of igraph."""

from collections.abc import Hashable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._graph.build import Policies, build_graph
from .._graph.columns import GUESS, plain_column, say_guesses, weight_name
from .._graph.graph import Graph
from .._graph.labels import as_labels
from .others import host, labelled, package, square


def from_igraph(
    G: Any,
    weight: Hashable | None = GUESS,
    *,
    duplicates: str = "keep",
    self_loops: str = "keep",
    dtype: DTypeLike = jnp.float32,
) -> Graph:
    """Return a graph of igraph with its names and attributes.

    An undirected edge becomes one synapse in each direction, an undirected self-loop one.

    Args:
        G: the graph, or any object with its interface: `vcount()`, `get_edgelist()`, `is_directed()`, `vs` and `es`.
        weight: the edge attribute that is the weight; None for weights of 1. Unless given, it is found as in
            `read_graph`, and what is guessed is said in a warning.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A square graph; the vertex attribute `name`, where there is one, are its labels.

    Raises:
        TypeError: `G` is no graph of igraph.
        ValueError: several attributes may be the weight, or as `from_edges`.

    Example:
        >>> import igraph, sparse_etrace as se  # doctest: +SKIP
        >>> se.interchange.from_igraph(igraph.Graph.Ring(3)).connectivity.num_synapses  # doctest: +SKIP
        6
    """
    if not all(hasattr(G, name) for name in ("vcount", "get_edgelist", "is_directed", "vs", "es")):
        raise TypeError(f"G: expected a graph of igraph, got {type(G).__name__}.")
    nodes, edges = _columns("vertex", G.vs), _columns("edge", G.es)
    labels = nodes.pop("name", None)
    guesses: list[str] = []
    name = weight_name(weight, edges, lambda key: edges[key].ndim == 1 and edges[key].dtype.kind in "iuf", guesses)
    values = None if name is None else edges.pop(name)
    pre, post = np.array(G.get_edgelist(), np.int64).reshape(-1, 2).T
    if not G.is_directed():
        back = np.flatnonzero(pre != post)
        twice = np.concatenate([np.arange(pre.size), back])
        pre, post = np.concatenate([pre, post[back]]), np.concatenate([post, pre[back]])
        values = None if values is None else values[twice]
        edges = {key: column[twice] for key, column in edges.items()}
    named = None if labels is None else as_labels(labels)
    policies = Policies(duplicates, self_loops, dtype)
    graph = build_graph(pre, post, values, (G.vcount(),) * 2, named, nodes, edges, policies=policies)
    say_guesses("from_igraph", guesses)
    return graph


def to_igraph(graph: Graph) -> Any:
    """Return a graph as a directed one of igraph.

    Args:
        graph: a square graph.

    Returns:
        An `igraph.Graph` with the edge attribute `weight` and all attributes; labels other than positions are the
        vertex attribute `name`. Edges are in canonical order.

    Raises:
        ImportError: `igraph` is not installed.
        TypeError: `graph` is no graph, or is traced.
        ValueError: the graph is not square, or an attribute is called `weight` or `name`.

    Example:
        >>> import sparse_etrace as se
        >>> G = se.interchange.to_igraph(se.datasets.worm())  # doctest: +SKIP
    """
    graph = square(graph)
    pre, post = (host("graph", end).tolist() for end in (graph.connectivity.pre, graph.connectivity.post))
    if "weight" in graph.edge_attrs or "name" in graph.node_attrs:
        raise ValueError("graph: expected no edge attribute 'weight' and no node attribute 'name', got one. Rename it.")
    both = graph.node_attrs, graph.edge_attrs
    nodes, edges = ({key: column.tolist() for key, column in attrs.items()} for attrs in both)
    nodes |= {"name": list(graph.nodes)} if labelled(graph) else {}
    edges = {"weight": host("graph", graph.weight).tolist()} | edges
    attrs = {"vertex_attrs": nodes, "edge_attrs": edges}
    return package("igraph").Graph(n=len(graph.nodes), edges=list(zip(pre, post)), directed=True, **attrs)


def _columns(what: str, side: Any) -> dict[str, np.ndarray]:
    return {name: plain_column(side[name], f"{what} attribute {name!r}") for name in side.attributes()}
