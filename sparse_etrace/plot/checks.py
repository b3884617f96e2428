"""What figures are given: numbers, and graphs with weights."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .._graph.graph import Graph, check_graph


def reals(name: str, values: ArrayLike) -> np.ndarray:
    """`values` as an array of real numbers."""
    try:
        array = np.asarray(values)
        array = array if array.dtype.kind == "c" or array.dtype == np.float32 else array.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of real numbers, got {type(values).__name__} ({error}).") from error
    if array.dtype.kind == "c":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}. Draw `.real`, `.imag` or `abs`.")
    return array


def numbers(name: str, values: ArrayLike, shape: Sequence[str | int]) -> np.ndarray:
    """`values` as an array of finite real numbers; words in `shape` stand for any size."""
    array = reals(name, values)
    if array.ndim != len(shape) or any(n != m for n, m in zip(array.shape, shape, strict=True) if isinstance(m, int)):
        raise ValueError(f"{name}: expected shape ({', '.join(map(str, shape))}), got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name}: expected finite values, got {np.count_nonzero(~np.isfinite(array))} of {array.size} that are not."
        )
    return array


def graph_weight(graph: Graph, weight: ArrayLike | None = None, name: str = "weight") -> np.ndarray:
    """The graph's own weight, or the given one, `(num_synapses,)`."""
    check_graph(graph)
    return numbers(name, graph.weight if weight is None else weight, (graph.connectivity.num_synapses,))


def per_node(name: str, values: ArrayLike, graph: Graph) -> np.ndarray:
    """An array with a row for each node, or the node attribute of that name."""
    if isinstance(values, str):
        if values not in graph.node_attrs:
            raise ValueError(f"{name}: expected a node attribute, one of {sorted(graph.node_attrs)}, got {values!r}.")
        return graph.node_attrs[values]
    array = np.asarray(values)
    if array.shape[:1] != (len(graph.nodes),):
        raise ValueError(f"{name}: expected one entry per node, {len(graph.nodes)}, got shape {array.shape}.")
    return array
