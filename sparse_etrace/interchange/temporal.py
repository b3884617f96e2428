"""Signals on graphs over time, and those of PyTorch Geometric Temporal."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._graph.graph import Graph
from .._graph.matrices import from_edges
from .others import host, package, square


class Snapshots(NamedTuple):
    """What nodes hold at each step, what is to be said of it, and the graph, of all steps or of each.

    Attributes:
        graph: one graph, or a tuple of T graphs of the same nodes.
        features: `(T, num_nodes, features)`.
        targets: `(T, num_nodes, ...)`.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> graphs = se.from_edges([0], [1], shape=(2, 2)), se.from_edges([1], [0], shape=(2, 2))
        >>> snapshots = se.interchange.Snapshots(graphs, np.zeros((2, 2, 3)), np.zeros((2, 2)))
        >>> stream = se.SnapshotStream(snapshots.features, snapshots.targets, snapshots.edges)
        >>> stream.edges[0].tolist()
        [[0], [1]]
    """

    graph: Graph | tuple[Graph, ...]
    features: np.ndarray
    targets: np.ndarray

    @property
    def edges(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] | None:
        """`(pre, post, weight)` of each step, as `SnapshotStream` takes them; None for one graph."""
        if isinstance(self.graph, Graph):
            return None
        every = [[host("graph", a) for a in (g.connectivity.pre, g.connectivity.post, g.weight)] for g in self.graph]
        return [pre for pre, _, _ in every], [post for _, post, _ in every], [weight for _, _, weight in every]


def from_pyg_temporal(signal: Any, *, dtype: DTypeLike = jnp.float32) -> Snapshots:
    """Return a `StaticGraphTemporalSignal` or `DynamicGraphTemporalSignal` as arrays and graphs.

    Args:
        signal: the signal, or any object with its interface: `features` and `targets`, lists of an array for each step,
            and either `edge_index` and `edge_weight` or the lists `edge_indices` and `edge_weights`.
        dtype: type of the weights.

    Returns:
        The `Snapshots`.

    Raises:
        TypeError: `signal` is no such object.
        ValueError: steps differ in shape, or one lacks its array; or as `from_edges`.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> class Signal:
        ...     edge_index, edge_weight = np.array([[0, 1], [1, 0]]), np.array([1.0, 2.0])
        ...     features, targets = [np.zeros((2, 4))] * 3, [np.zeros(2)] * 3
        >>> found = se.interchange.from_pyg_temporal(Signal())
        >>> found.features.shape, found.targets.shape, found.graph.weight.tolist()
        ((3, 2, 4), (3, 2), [2.0, 1.0])
    """
    dynamic = hasattr(signal, "edge_indices")
    if not (hasattr(signal, "features") and hasattr(signal, "targets") and (dynamic or hasattr(signal, "edge_index"))):
        raise TypeError(
            "signal: expected features, targets and edges, as StaticGraphTemporalSignal and DynamicGraphTemporalSignal "
            f"have them, got {type(signal).__name__}."
        )
    features, targets = (_stacked(name, getattr(signal, name)) for name in ("features", "targets"))
    if features.ndim < 2 or targets.shape[:1] != features.shape[:1]:
        raise ValueError(
            "signal: expected features (steps, nodes, ...) and as many targets, got shapes "
            f"{features.shape} and {targets.shape}."
        )
    size = features.shape[1]

    def graph(index: Any, weight: Any) -> Graph:
        pre, post = host("signal.edge_index", index)
        return from_edges(pre, post, None if weight is None else host("weight", weight), (size, size), dtype=dtype)

    if not dynamic:
        return Snapshots(graph(signal.edge_index, signal.edge_weight), features, targets)
    if not len(signal.edge_indices) == len(signal.edge_weights) == len(features):
        raise ValueError(
            f"signal: expected edges for each of {len(features)} steps, got {len(signal.edge_indices)} of indices "
            f"and {len(signal.edge_weights)} of weights."
        )
    return Snapshots(tuple(map(graph, signal.edge_indices, signal.edge_weights)), features, targets)


def to_pyg_temporal(snapshots: Snapshots) -> Any:
    """Return snapshots as a signal of PyTorch Geometric Temporal.

    Args:
        snapshots: of one graph, or of one for each step.

    Returns:
        A `StaticGraphTemporalSignal` or a `DynamicGraphTemporalSignal`, edges in canonical order.

    Raises:
        ImportError: `torch_geometric_temporal` is not installed.
        TypeError: a graph is none, or is traced.
        ValueError: a graph is not square, or their number is not that of the steps.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> snapshots = se.interchange.Snapshots(se.from_edges([0], [1]), np.zeros((3, 2, 4)), np.zeros((3, 2)))
        >>> signal = se.interchange.to_pyg_temporal(snapshots)  # doctest: +SKIP
    """
    graph, features, targets = snapshots
    graphs = list(graph) if isinstance(graph, tuple) else [graph]
    edges = [(_edges(one), host("graph", square(one).weight)) for one in graphs]
    if isinstance(graph, tuple) and len(graphs) != len(features):
        raise ValueError(f"snapshots.graph: expected one for each of {len(features)} steps, got {len(graphs)}.")
    made = package("torch_geometric_temporal.signal")
    steps = list(np.asarray(features)), list(np.asarray(targets))
    if isinstance(graph, tuple):
        return made.DynamicGraphTemporalSignal([index for index, _ in edges], [weight for _, weight in edges], *steps)
    return made.StaticGraphTemporalSignal(*edges[0], *steps)


def _edges(graph: Graph) -> np.ndarray:
    conn = square(graph).connectivity
    return np.stack([host("graph", conn.pre), host("graph", conn.post)]).astype(np.int64)


def _stacked(name: str, steps: Sequence[Any]) -> np.ndarray:
    arrays = []
    for step, value in enumerate(steps):
        if value is None:
            raise ValueError(f"signal: expected {name} for each step, got none at step {step}. Fill it.")
        arrays.append(host(name, value))
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(f"signal: expected {name} of one shape for all steps, got {sorted(shapes)}. Pad smaller ones.")
    return np.stack(arrays) if arrays else np.zeros(0)
