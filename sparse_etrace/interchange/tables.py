"""Data frames with a row for each synapse; `from_dataframe` reads them."""

from typing import Any

import numpy as np

from .._graph.columns import plain_column
from .._graph.graph import Graph, check_graph
from .._text import DataFrame, data_frame
from .others import host, package


def to_pandas(graph: Graph) -> DataFrame:
    """Return a graph as a data frame of pandas, which `from_dataframe` reads again.

    Args:
        graph: square or rectangular.

    Returns:
        A row for each synapse, in canonical order: `pre` and `post`, the labels, `weight`, and each edge attribute;
        those of several numbers hold lists. Nodes without synapses have no row: give `from_dataframe` the labels.

    Raises:
        ImportError: `pandas` is not installed.
        TypeError: `graph` is no graph, or is traced.
        ValueError: an edge attribute has the name of another column.

    Example:
        >>> import sparse_etrace as se
        >>> se.interchange.to_pandas(se.from_edges(["a"], ["b"], [0.5], labels="ab")).to_dict("list")
        {'pre': ['a'], 'post': ['b'], 'weight': [0.5]}
    """
    return data_frame(_columns(graph))


def to_polars(graph: Graph) -> Any:
    """Return a graph as a data frame of polars, as `to_pandas`.

    Args:
        graph: square or rectangular.

    Returns:
        A `polars.DataFrame`.

    Raises:
        ImportError: `polars` is not installed.
        TypeError, ValueError: as `to_pandas`.

    Example:
        >>> import sparse_etrace as se
        >>> frame = se.interchange.to_polars(se.datasets.worm())  # doctest: +SKIP
    """
    return package("polars").DataFrame(_columns(graph))


def _columns(graph: object) -> dict[str, Any]:
    graph = check_graph(graph)
    conn, columns = graph.connectivity, {}
    for name, index, labels in (("pre", conn.pre, graph.pre_nodes), ("post", conn.post, graph.post_nodes)):
        places = host("graph", index)
        plain = np.asarray(labels) if isinstance(labels, range) else plain_column(list(labels), "labels")
        columns[name] = plain[places] if plain.ndim == 1 else [labels[k] for k in places.tolist()]
    weight = host("graph", graph.weight)
    columns["weight"] = weight if weight.dtype.kind == "f" else weight.astype(np.float32)
    for key, column in graph.edge_attrs.items():
        if key in columns:
            raise ValueError(f"graph: expected edge attributes with names of their own, got {key!r}. Rename it.")
        columns[key] = column if column.ndim == 1 else column.tolist()
    return columns
