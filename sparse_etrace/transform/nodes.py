"""Some of the nodes or synapses of a graph, or all in another order."""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from .._graph.connectivity import as_indices, host_array, index_array
from .._graph.graph import Graph
from .._graph.selection import places_of
from .._numbers import whole
from .origin import Made, at, built, parts_of, squared

WHY = "whose nodes are one set"


def subgraph(graph: Graph, nodes: object, *, with_origin: bool = False) -> Made:
    """Keep some nodes and the synapses between them.

    Args:
        graph: a square graph.
        nodes: labels, each once, which become the nodes in this order; or a mask of all nodes, what `graph.where`
            returns, or a dictionary of attributes for it.
        with_origin: return which synapse became which, too.

    Returns:
        The graph, whose nodes have the labels that they had; or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: the graph is not square, or a node is unknown or there twice.

    Example:
        >>> import sparse_etrace as se
        >>> part = se.transform.subgraph(se.from_edges([0, 1, 2], [1, 2, 0], [1.0, 2.0, 3.0]), [2, 1])
        >>> part.nodes, part.to_dense().tolist()
        ((2, 1), [[0.0, 0.0], [2.0, 0.0]])
    """
    return _of(graph, _places(squared(graph, WHY), nodes), with_origin)


def keep_synapses(graph: Graph, synapses: object, *, with_origin: bool = False) -> Made:
    """Keep some synapses, and all nodes.

    Args:
        graph: square or rectangular.
        synapses: positions in `weight`, each once, as `graph.between` returns them; or a mask, `(num_synapses,)`.
        with_origin: return which synapse became which, too.

    Returns:
        The graph, or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced; `synapses` holds no integers.
        ValueError: a position is out of range or there twice, or the mask has another shape.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> worm = se.datasets.worm()
        >>> cut = np.setdiff1d(np.arange(2194), worm.between("AVAL", {"role": "motor"}))
        >>> se.transform.keep_synapses(worm, cut).connectivity.num_synapses
        2164
    """
    parts = parts_of(graph)
    given, size = host_array("synapses", synapses), parts.pre.size
    if given.dtype == bool and given.shape != (size,):
        raise ValueError(f"synapses: expected a mask of all synapses, ({size},), got shape {given.shape}.")
    kept = np.flatnonzero(given) if given.dtype == bool else np.sort(index_array("synapses", given))
    kept = as_indices("synapses", kept, size)
    if (kept[1:] == kept[:-1]).any():
        raise ValueError(f"synapses: expected each once, got {kept[np.argmax(kept[1:] == kept[:-1])]} twice.")
    return built(at(parts, kept), graph.connectivity.shape, kept, with_origin)


def k_hop(graph: Graph, nodes: object, k: int, direction: str = "in", *, with_origin: bool = False) -> Made:
    """Keep the nodes within `k` synapses of some, and the synapses between them.

    Args:
        graph: a square graph.
        nodes: where to begin, see `subgraph`.
        k: how many synapses, at least 0.
        direction: "in" keeps what reaches these nodes, "out" what they reach, "both" either, synapse by synapse.
        with_origin: see `subgraph`.

    Returns:
        The graph, its nodes in the order that they had; or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced; `k` is no whole number.
        ValueError: as `subgraph`, `k` is negative or `direction` unknown.

    Example:
        >>> import sparse_etrace as se
        >>> chain = se.from_edges([0, 1, 2, 3], [1, 2, 3, 4])
        >>> se.transform.k_hop(chain, [2], 1).nodes, se.transform.k_hop(chain, [2], 1, "both").nodes
        ((1, 2), (1, 2, 3))
    """
    if direction not in ("in", "out", "both"):
        raise ValueError(f"direction: expected 'in', 'out' or 'both', got {direction!r}.")
    if whole("k", k) < 0:
        raise ValueError(f"k: expected 0 or more synapses, got {k}.")
    pre, post, *_ = parts_of(squared(graph, WHY))
    reached = np.zeros(len(graph.nodes), bool)
    reached[_places(graph, nodes)] = True
    for _ in range(k):
        before = reached.copy()
        if direction != "out":
            reached[pre[before[post]]] = True
        if direction != "in":
            reached[post[before[pre]]] = True
        if (before == reached).all():
            break
    return _of(graph, np.flatnonzero(reached), with_origin)


def largest_component(graph: Graph, connection: str = "weak", *, with_origin: bool = False) -> Made:
    """Keep the largest component; of equal ones that of the first node.

    Args:
        graph: a square graph.
        connection: "weak" follows synapses both ways, "strong" is where each node reaches each.
        with_origin: see `subgraph`.

    Returns:
        The graph, its nodes in the order that they had; or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: the graph is not square, or `connection` is unknown.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2], [1, 0, 1])
        >>> se.transform.largest_component(graph).nodes, se.transform.largest_component(graph, "strong").nodes
        (range(0, 3), (0, 1))
    """
    if connection not in ("weak", "strong"):
        raise ValueError(f"connection: expected 'weak' or 'strong', got {connection!r}.")
    pre, post, *_ = parts_of(squared(graph, WHY))
    size = len(graph.nodes)
    pattern = sp.csr_array((np.ones(pre.size, np.int8), (pre, post)), shape=(size, size))
    _, of = connected_components(pattern, directed=True, connection=connection) if size else (0, np.zeros(0, int))
    sizes = np.bincount(of, minlength=1)[of]
    kept = np.flatnonzero(of == of[np.argmax(sizes)]) if size else of
    return _of(graph, kept, with_origin)


def permute(graph: Graph, order: object, *, with_origin: bool = False) -> Made:
    """Put the nodes in another order: `A[order][:, order]`.

    Args:
        graph: a square graph.
        order: the position that each node had, `(num_nodes,)`: node `k` of the result is node `order[k]`.
        with_origin: see `subgraph`.

    Returns:
        The graph, labels and attributes with their nodes; nodes without labels are labelled by their new position.
        With `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced; `order` holds no integers.
        ValueError: the graph is not square, or `order` is no permutation.

    Example:
        >>> import sparse_etrace as se
        >>> turned = se.transform.permute(se.from_edges(["a"], ["b"], labels="abc"), [2, 0, 1])
        >>> turned.nodes, turned.connectivity.pre.tolist(), turned.connectivity.post.tolist()
        (('c', 'a', 'b'), [1], [2])
    """
    size = len(squared(graph, WHY).nodes)
    places = as_indices("order", index_array("order", order), size)
    if not np.array_equal(np.sort(places), np.arange(size)):
        raise ValueError(f"order: expected each of the {size} positions once, got {places}.")
    return _of(graph, places, with_origin, relabel=True)


def _places(graph: Graph, nodes: object) -> np.ndarray:
    places = places_of(graph, "nodes", nodes)
    counts = np.bincount(places, minlength=len(graph.nodes))
    if (counts > 1).any():
        raise ValueError(f"nodes: expected each once, got {graph.nodes[int(np.argmax(counts > 1))]!r} twice.")
    return places


def _of(graph: Graph, places: np.ndarray, with_origin: bool, relabel: bool = False) -> Made:
    """The nodes at these places, in this order."""
    parts, size = parts_of(graph), len(graph.nodes)
    now = np.full(size, -1, np.int32)
    now[places] = np.arange(places.size)
    pre, post = now[parts.pre], now[parts.post]
    kept = np.flatnonzero((pre >= 0) & (post >= 0))
    nodes = parts.nodes
    if not (relabel and nodes is None) and not np.array_equal(places, np.arange(size)):
        nodes = [graph.nodes[k] for k in places.tolist()]
    node_attrs = {key: column[places] for key, column in parts.node_attrs.items()}
    parts = at(parts, kept)._replace(pre=pre[kept], post=post[kept], nodes=nodes, node_attrs=node_attrs)
    return built(parts, (places.size, places.size), kept, with_origin)
