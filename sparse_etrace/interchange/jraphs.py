"""`GraphsTuple` of jraph."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._graph.build import Policies, build_graph
from .._graph.graph import Graph
from ..transform.batch import OF
from .others import as_weight, host, is_number, package, square


def from_jraph(
    graphs: Any, *, duplicates: str = "keep", self_loops: str = "keep", dtype: DTypeLike = jnp.float32
) -> Graph:
    """Return the graph of a `GraphsTuple` of jraph; of a batch, one graph of several parts.

    Args:
        graphs: the tuple, or any object with its fields. `nodes` and `edges` may be arrays, dictionaries of arrays, or
            None; an array becomes the attribute `nodes` or `edges`. The weight is the edges' `weight`, or `edges`
            itself where that has one number for each edge. `globals` are left out. Padding is a graph: `unpad` before.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A square graph. With several graphs it has the node attribute `graph`, as `se.transform.unbatch` wants it.

    Raises:
        TypeError: `graphs` is no such object, or its nodes or edges are something else.
        ValueError: as `from_edges`.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> from types import SimpleNamespace
        >>> graphs = SimpleNamespace(nodes=None, edges={"weight": np.array([0.5])}, senders=np.array([0]),
        ...     receivers=np.array([1]), n_node=np.array([2]), n_edge=np.array([1]))
        >>> se.interchange.from_jraph(graphs).to_dense().tolist()
        [[0.0, 0.5], [0.0, 0.0]]
    """
    if not all(hasattr(graphs, name) for name in ("nodes", "edges", "senders", "receivers", "n_node")):
        raise TypeError(f"graphs: expected a GraphsTuple of jraph, got {type(graphs).__name__}.")
    sizes = host("graphs.n_node", graphs.n_node)
    nodes, edges = (_columns(name, getattr(graphs, name)) for name in ("nodes", "edges"))
    if sizes.size > 1:
        nodes[OF] = np.repeat(np.arange(sizes.size, dtype=np.int32), sizes)
    pre, post = host("graphs.senders", graphs.senders), host("graphs.receivers", graphs.receivers)
    weight, policies = as_weight(edges, ("weight", "edges")), Policies(duplicates, self_loops, dtype)
    return build_graph(pre, post, weight, (int(sizes.sum()),) * 2, None, nodes, edges, policies=policies)


def to_jraph(graph: Graph) -> Any:
    """Return a graph as a `GraphsTuple` of jraph; one that `batch_graphs` made, as a batch.

    Args:
        graph: a square graph.

    Returns:
        A `GraphsTuple` whose `nodes` and `edges` are dictionaries of the attributes that are numbers, `edges["weight"]`
        with them; labels and other attributes are left out. Edges are in canonical order.

    Raises:
        ImportError: `jraph` is not installed.
        TypeError: `graph` is no graph, or is traced.
        ValueError: the graph is not square, or has an edge attribute `weight`.

    Example:
        >>> import sparse_etrace as se
        >>> graphs = se.interchange.to_jraph(se.datasets.worm())  # doctest: +SKIP
    """
    graph = square(graph)
    pre, post = (host("graph", end) for end in (graph.connectivity.pre, graph.connectivity.post))
    nodes = {key: column for key, column in graph.node_attrs.items() if is_number(column)}
    edges = {key: column for key, column in graph.edge_attrs.items() if is_number(column)}
    if "weight" in edges:
        raise ValueError("graph: expected edge attributes with names of their own, got 'weight'. Rename it.")
    of = nodes.pop(OF, np.zeros(len(graph.nodes), np.int32))
    number = int(of.max(initial=0)) + 1
    return package("jraph").GraphsTuple(
        nodes=nodes,
        edges={"weight": graph.weight} | edges,
        senders=pre,
        receivers=post,
        globals=None,
        n_node=np.bincount(of, minlength=number).astype(np.int32),
        n_edge=np.bincount(of[post], minlength=number).astype(np.int32),
    )


def _columns(name: str, values: Any) -> dict[str, np.ndarray]:
    if values is None:
        return {}
    if hasattr(values, "shape"):
        values = {name: values}
    if not isinstance(values, dict) or not all(hasattr(value, "shape") for value in values.values()):
        raise TypeError(
            f"graphs: expected {name} in an array, a dictionary of arrays or None, got {type(values).__name__}."
        )
    return {key: host(f"graphs.{name}", value) for key, value in values.items()}
