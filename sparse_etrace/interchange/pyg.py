"""`Data` of PyTorch Geometric."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._graph.build import Policies, build_graph
from .._graph.graph import Graph
from .._graph.labels import as_labels
from .others import LABELS, as_weight, host, is_number, labelled, package, square


def from_pyg(data: Any, *, duplicates: str = "keep", self_loops: str = "keep", dtype: DTypeLike = jnp.float32) -> Graph:
    """Return the graph of a `Data` of PyTorch Geometric; `edge_index[0]` sends, `edge_index[1]` receives.

    The weight is `edge_weight`, or else `edge_attr` where that has one number for each edge. All else that belongs to
    nodes (`x`, `y`, masks) or edges becomes an attribute of the same name; what belongs to the graph as a whole is left
    out. What `to_pyg` wrote as `node_label` are the labels. Where there are as many edges as nodes, PyTorch Geometric
    takes what has no `edge` in its name for nodes'.

    Args:
        data: the `Data`, or any object with its interface: `edge_index`, `num_nodes`, `to_dict()`, `is_node_attr(key)`
            and `is_edge_attr(key)`. Tensors may be on any device.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A square graph.

    Raises:
        TypeError: `data` has no `edge_index`, as `HeteroData` has none.
        ValueError: as `from_edges`.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> class Data:
        ...     edge_index, num_nodes = np.array([[0, 1], [1, 2]]), 3
        ...     def to_dict(self): return {"edge_index": self.edge_index, "x": np.ones((3, 2))}
        ...     def is_node_attr(self, key): return key == "x"
        ...     def is_edge_attr(self, key): return key == "edge_index"
        >>> graph = se.interchange.from_pyg(Data())
        >>> graph.connectivity.post.tolist(), graph.node_attrs["x"].shape
        ([1, 2], (3, 2))
    """
    if getattr(data, "edge_index", None) is None:
        raise TypeError(
            f"data: expected `edge_index`, as Data of PyTorch Geometric has it, got {type(data).__name__} without. "
            "Take one edge type of HeteroData, or leave out ToSparseTensor."
        )
    pre, post = host("data.edge_index", data.edge_index)
    nodes, edges = {}, {}
    for key, value in data.to_dict().items():
        if key == "edge_index" or value is None:
            continue
        named = "edge" in key and np.shape(value)[:1] == pre.shape
        if data.is_node_attr(key) and not named:
            nodes[key] = host(f"data.{key}", value)
        elif data.is_edge_attr(key) or named:
            edges[key] = host(f"data.{key}", value)
    labels = nodes.pop(LABELS, None)
    named = None if labels is None else as_labels(labels)
    weight, shape = as_weight(edges, ("edge_weight", "edge_attr")), (int(data.num_nodes),) * 2
    return build_graph(pre, post, weight, shape, named, nodes, edges, policies=Policies(duplicates, self_loops, dtype))


def to_pyg(graph: Graph) -> Any:
    """Return a graph as a `Data` of PyTorch Geometric.

    Args:
        graph: a square graph.

    Returns:
        `Data` with `edge_index`, `edge_weight`, `num_nodes`, and each attribute under its name: tensors of numbers,
        lists of anything else. Labels other than positions are the list `node_label`. Edges are in canonical order.

    Raises:
        ImportError: `torch_geometric` is not installed.
        TypeError: `graph` is no graph, or is traced.
        ValueError: the graph is not square, or an attribute has the name of one of these.

    Example:
        >>> import sparse_etrace as se
        >>> data = se.interchange.to_pyg(se.datasets.worm())  # doctest: +SKIP
    """
    graph, torch = square(graph), package("torch")
    conn = graph.connectivity
    pre, post, weight = (host("graph", array) for array in (conn.pre, conn.post, graph.weight))
    own = {"edge_index": torch.from_numpy(np.stack([pre, post]).astype(np.int64)), "num_nodes": len(graph.nodes)}
    own["edge_weight"] = tensor(torch, weight)
    own |= {LABELS: list(graph.nodes)} if labelled(graph) else {}
    for attrs in (graph.node_attrs, graph.edge_attrs):
        for key, column in attrs.items():
            if key in own:
                raise ValueError(f"graph: expected attributes with names of their own, got {key!r}. Rename it.")
            own[key] = tensor(torch, column) if is_number(column) else column.tolist()
    return package("torch_geometric.data").Data(**own)


def tensor(torch: Any, array: np.ndarray) -> Any:
    """A tensor that owns its memory; half precision of jax's is widened."""
    return torch.from_numpy(np.array(array) if is_number(array) else array.astype(np.float32))
