"""Weights divided by degrees."""

import numpy as np

from .._graph.graph import Graph, check_graph
from .._graph.transforms import scale_spectral_radius
from .origin import finite, parts_of, squared


def normalize(graph: Graph, kind: str = "gcn") -> Graph:
    """Divide weights by degrees, which are sums of weights: `w / sqrt(d[pre] d[post])`, `w / d[pre]` or `w / d[post]`.

    Where a degree is zero, or for "gcn" negative, the weight becomes 0: never NaN or infinite. Weights of both signs
    may sum to next to nothing; "in" and "out" sum without signs.

    Args:
        graph: a graph; square, but for "row" and "column".
        kind: "gcn" by the root of the in-degrees of both ends (add self-loops before, if wanted); "row" so that what
            each node sends sums to 1, the random walk along synapses; "column" so that what each receives does, a
            mean; "in" and "out" by the strength of what each receives, or sends: the sum of its weights without their
            signs; "spectral" by the spectral radius, see `scale_spectral_radius`.

    Returns:
        The graph with other weights; its synapses stay, in their order.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: `kind` is unknown, the graph is not square, a weight is not finite, or the spectral radius is 0.

    References:
        Kipf, Welling (2017), Semi-supervised classification with graph convolutional networks, ICLR.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.from_edges([0, 0], [1, 2], [1.0, 3.0])
        >>> se.transform.normalize(graph, "row").weight.tolist()
        [0.25, 0.75]
    """
    if kind not in ("gcn", "row", "column", "in", "out", "spectral"):
        raise ValueError(f"kind: expected 'gcn', 'row', 'column', 'in', 'out' or 'spectral', got {kind!r}.")
    if kind == "spectral":
        return scale_spectral_radius(check_graph(graph), 1.0)
    if kind == "gcn":
        squared(graph, "where both ends have an in-degree")
    pre, post, weight, *_ = parts_of(graph)
    wide = finite(weight, np.zeros(0), pre, post)
    size = np.abs(wide) if kind in ("in", "out") else wide
    received = np.bincount(post, size, graph.connectivity.num_post)
    if kind == "gcn":
        factor = np.sqrt(_inverse(np.maximum(received, 0)))
        wide = wide * factor[pre] * factor[post]
    elif kind in ("row", "out"):
        wide = wide * _inverse(np.bincount(pre, size, graph.connectivity.num_pre))[pre]
    else:
        wide = wide * _inverse(received)[post]
    return graph.with_weight(finite(wide, weight, pre, post))


def _inverse(degree: np.ndarray) -> np.ndarray:
    return np.divide(1.0, degree, out=np.zeros(degree.shape), where=degree != 0)
