"""Parallel synapses and opposite ones as one, and a graph the other way round."""

import jax.numpy as jnp
import numpy as np

from .._graph import sorting
from .._graph.columns import taken
from .._graph.connectivity import expand_ptr, host_array, of_arrays, with_outgoing
from .._graph.graph import Graph
from .origin import Made, Origin, Parts, built, finite, parts_of, squared

REDUCE = ("sum", "mean", "max", "first", "error")


def coalesce(graph: Graph, reduce: str = "sum", *, with_origin: bool = False) -> Made:
    """Merge parallel synapses into one.

    Args:
        graph: square or rectangular.
        reduce: the weight of a merged synapse: "sum", "mean" or "max" of those of all (summed in float64), "first" that
            of the first one; "error" refuses parallel synapses. Edge attributes must agree, but for "first".
        with_origin: return which synapse became which, too.

    Returns:
        The graph, or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: `reduce` is unknown, refuses, or would lose an attribute; a weight is not finite.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.from_edges([0, 0, 1], [1, 1, 0], [1.0, 2.0, 5.0])
        >>> se.transform.coalesce(graph, "mean").weight.tolist()
        [5.0, 1.5]
    """
    _check(reduce)
    parts = parts_of(graph)
    old = np.arange(parts.pre.size, dtype=np.int32)
    merged, new = _merged(parts, old, reduce)
    made = built(merged, graph.connectivity.shape)
    return (made, Origin(old, new)) if with_origin else made


def to_undirected(graph: Graph, reduce: str = "sum", *, with_origin: bool = False) -> Made:
    """Give each synapse one in the other direction, of equal weight: `A + A^T`.

    Parallel synapses are merged; a synapse of a node on itself counts in both directions, so that it doubles.

    Args:
        graph: a square graph.
        reduce: what becomes of the weights that meet in a pair of nodes, see `coalesce`. With "first" the synapse
            `i -> j` has the weight of a synapse `i -> j` where there is one.
        with_origin: return which synapse became which, too: each is in two.

    Returns:
        The graph, or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError, ValueError: as `coalesce`, or the graph is not square.

    Example:
        >>> import sparse_etrace as se
        >>> se.transform.to_undirected(se.from_edges([0, 1], [1, 0], [1.0, 2.0])).to_dense().tolist()
        [[0.0, 3.0], [3.0, 0.0]]
    """
    _check(reduce)
    parts, conn = parts_of(squared(graph, "where a synapse can have one in the other direction")), graph.connectivity
    if sorting.LIBRARY and not with_origin and not parts.attrs and reduce != "error":
        known = (host_array("graph", array) for array in (conn.post_ptr, conn.post_by_pre, conn.pre_ptr, conn.by_pre))
        weight = parts.weight if parts.weight.dtype == np.float32 else parts.weight.astype(np.float64, copy=False)
        *arrays, weight = sorting.pairs((parts.pre, *known), weight, REDUCE.index(reduce))
        weight = finite(weight, parts.weight, arrays[0], arrays[1], merged=True)
        return Graph(of_arrays(*arrays), jnp.asarray(weight), parts.nodes, parts.node_attrs)
    ends = np.concatenate([parts.post, parts.pre]), np.concatenate([parts.pre, parts.post])
    post, pre, old, _ = sorting.sorted_edges(*ends, conn.shape)
    np.subtract(old, parts.pre.size, out=old, where=old >= parts.pre.size)
    merged, new = _merged(parts._replace(pre=pre, post=post), old, reduce)
    ptr = np.searchsorted(merged.post, np.arange(conn.num_post + 1, dtype=np.int32)).astype(np.int32)
    both = with_outgoing(merged.pre, merged.post, ptr, conn.num_pre)
    made = Graph(both, jnp.asarray(merged.weight), parts.nodes, parts.node_attrs, merged.attrs)
    return (made, Origin(old, new)) if with_origin else made


def transpose(graph: Graph, *, with_origin: bool = False) -> Made:
    """Turn each synapse round: `A^T`.

    Args:
        graph: square or rectangular; what received sends then, so that labels and attributes change sides. Where nodes
            have no labels of their own, their positions are others.
        with_origin: return which synapse became which, too.

    Returns:
        The graph, or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced.

    Example:
        >>> import sparse_etrace as se
        >>> se.transform.transpose(se.from_edges([0], [2], [1.0], shape=(1, 3))).to_dense().tolist()
        [[0.0], [0.0], [1.0]]
    """
    parts, conn = parts_of(graph), graph.connectivity
    order = np.asarray(conn.by_pre)
    nodes, node_attrs = parts.nodes, parts.node_attrs
    if conn.num_pre != conn.num_post:
        turned = np.roll(np.arange(len(graph.nodes)), conn.num_post)
        nodes = None if nodes is None else [nodes[k] for k in turned.tolist()]
        node_attrs = {key: column[turned] for key, column in node_attrs.items()}
    attrs = {key: column[order] for key, column in parts.attrs.items()}
    pre, post = np.asarray(conn.post_by_pre), expand_ptr(np.asarray(conn.pre_ptr))
    parts = Parts(pre, post, taken(parts.weight, order), attrs, nodes, node_attrs)
    return built(parts, conn.shape[::-1], order, with_origin)


def _check(reduce: str) -> None:
    if reduce not in REDUCE:
        raise ValueError(f"reduce: expected one of {REDUCE}, got {reduce!r}.")


def _merged(parts: Parts, old: np.ndarray, reduce: str) -> tuple[Parts, np.ndarray]:
    """One synapse for each pair of nodes, and which of these each became.

    `pre` and `post` are in canonical order; `old` says where weights and attributes of each lie.
    """
    pre, post = parts.pre, parts.post
    start = np.concatenate([[True], (pre[1:] != pre[:-1]) | (post[1:] != post[:-1])])[: pre.size]
    first, new = np.flatnonzero(start), np.cumsum(start, dtype=np.int32) - 1
    if reduce == "error" and first.size < pre.size:
        k = int(np.argmin(start))
        raise ValueError(
            f"reduce: expected another way where synapses share a pair of nodes, got 'error', and {pre[k]} -> "
            f"{post[k]} twice. Use one of {REDUCE[:-1]}."
        )
    attrs = {key: column[old[first]] for key, column in parts.attrs.items()}
    for key, column in attrs.items() if reduce != "first" else ():
        differs = parts.attrs[key][old] != column[new]
        if differs.any():
            k = int(np.argwhere(differs)[0][0])
            raise ValueError(
                f"reduce: expected 'first' where edge attribute {key!r} differs between the synapses that become "
                f"{pre[k]} -> {post[k]}, got {reduce!r}."
            )
    reduced: np.ndarray = taken(parts.weight, old).astype(np.float64)
    pre, post = pre[first], post[first]
    if reduce == "max" and first.size:
        reduced = np.maximum.reduceat(reduced, first)
    elif reduce in ("sum", "mean"):
        reduced = np.bincount(new, reduced, first.size)
        if reduce == "mean":
            reduced = reduced / np.bincount(new, minlength=first.size)
    else:
        reduced = reduced[first]
    weight = finite(reduced, parts.weight, pre, post, merged=True)
    return parts._replace(pre=pre, post=post, weight=weight, attrs=attrs), new
