"""Nodes by their attributes and labels."""

import difflib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from .connectivity import as_indices, host_array, index_array
from .labels import as_labels, look_up


class Places(np.ndarray):
    """Positions in `graph.nodes`, told apart from labels that are integers; several joined are positions still."""

    __array_priority__ = 1.0


def node_column(graph: Any, name: str, argument: str) -> np.ndarray:
    """A node attribute with one value for each node, by its name."""
    attrs = graph.node_attrs
    column = attrs.get(name)
    if column is None or column.ndim != 1:
        single = sorted(key for key, values in attrs.items() if values.ndim == 1)
        raise ValueError(f"{argument}: expected a node attribute with one value a node, one of {single}, got {name!r}.")
    return column


def matches(name: str, column: np.ndarray, wanted: object) -> np.ndarray:
    """Which values are among those wanted, or which a function chooses."""
    if callable(wanted):
        found = np.asarray(wanted(column))
        if found.dtype != bool or found.shape != column.shape:
            raise ValueError(
                f"labels[{name!r}]: expected a function from a column to booleans, {column.shape}, got "
                f"{found.dtype}{list(found.shape)} from it."
            )
        return found
    values = as_labels([wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else wanted)
    cells = column.tolist()
    for value in values:
        if value not in cells:
            near = difflib.get_close_matches(str(value), sorted({str(cell) for cell in cells}), cutoff=0.5)
            raise ValueError(
                f"labels[{name!r}]: expected values that nodes have, got {value!r}. Near it are {near}, "
                f"graph.node_attrs[{name!r}] has all. A function of the column may choose none."
            )
    return np.array([cell in values for cell in cells], bool)


def places_of(graph: Any, argument: str, nodes: Any) -> np.ndarray:
    """Positions of nodes given by what `where` returns, attributes for it, a mask, one label, or several."""
    size = len(graph.nodes)
    if isinstance(nodes, Mapping):
        return graph.where(**nodes)
    is_mask = getattr(nodes, "dtype", None) == np.bool_
    if isinstance(nodes, Places) and not is_mask:
        return as_indices(argument, np.asarray(nodes), size)
    labels = (
        nodes if is_mask else as_labels([nodes] if isinstance(nodes, str) or not isinstance(nodes, Iterable) else nodes)
    )
    # Truth values of a list or of pandas, which equal the labels 0 and 1.
    if is_mask or (len(labels) and all(isinstance(label, bool) for label in labels)):
        mask = host_array(argument, labels)
        if mask.shape != (size,):
            raise ValueError(f"{argument}: expected a mask of all nodes, ({size},), got shape {mask.shape}.")
        return np.flatnonzero(mask)
    if graph.nodes == range(size):
        return as_indices(argument, index_array(argument, np.asarray(labels)), size)
    return look_up(argument, labels, graph.nodes)


def categories(column: np.ndarray) -> tuple[list[Hashable], np.ndarray]:
    """The distinct values, in order, and which of them each entry has; NaN is None."""
    cells = [None if cell != cell else cell for cell in column.tolist()]
    place = {label: k for k, label in enumerate(sorted(set(cells), key=repr))}
    return list(place), np.array([place[cell] for cell in cells], np.int64)


def ends_at(graph: Any, side: str, nodes: Any) -> np.ndarray:
    """Whether each synapse has some of the nodes at its end `"pre"`, or `"post"`."""
    conn, chosen = graph.connectivity, np.zeros(len(graph.nodes), bool)
    chosen[places_of(graph, side, nodes)] = True
    if side == "pre":
        return chosen[: conn.num_pre][host_array("graph", conn.pre)]
    return chosen[chosen.size - conn.num_post :][host_array("graph", conn.post)]
