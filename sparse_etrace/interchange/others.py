"""What all conversions share: packages that may be there, and arrays of theirs as numpy's."""

from importlib import import_module
from typing import Any

import numpy as np

from .._graph.connectivity import host_array
from .._graph.graph import Graph
from ..transform.origin import squared

LABELS = "node_label"  # what holds labels where a library has no place for them


def package(name: str) -> Any:
    """A package that this library does without.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        raise ImportError(
            f"{top}: expected to be importable here, got {error}. Install it: pip install {top}."
        ) from error


def host(name: str, value: Any) -> np.ndarray:
    """An array or tensor of any library as numpy's."""
    return host_array(name, value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def square(graph: object) -> Graph:
    """The graph, which has one set of nodes, or an error in words."""
    return squared(graph, "whose nodes are one set")


def labelled(graph: Graph) -> bool:
    """Whether labels say more than positions."""
    return graph.nodes != range(len(graph.nodes))


def is_number(column: np.ndarray) -> bool:
    """Whether other libraries' arrays can hold this column."""
    return column.dtype.kind in "biuf"


def as_weight(columns: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    """The first column of these names with one number for each edge, taken out of the columns."""
    for name in names:
        column = columns.get(name)
        if column is not None and column.shape[1:] in ((), (1,)) and is_number(column):
            return columns.pop(name).reshape(len(column))
    return None
