"""Graphs from edge lists, data frames and networkx.

Every converter takes `duplicates`, `self_loops` and `dtype`, described at `from_edges`, and never changes its input.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._types import Column
from .build import Policies, build_graph
from .columns import GUESS, first_missing, holds_numbers, kept_names, plain_column, say_guesses, weight_name
from .connectivity import check_shape, index_array
from .graph import Graph
from .labels import as_labels, common_ids, distinct, label_index, look_up, plain_ids


def from_edges(
    pre: Column,
    post: Column,
    weight: Column | None = None,
    shape: Sequence | None = None,
    labels: Iterable | None = None,
    *,
    node_attrs: Mapping[str, Column] | None = None,
    edge_attrs: Mapping[str, Column] | None = None,
    duplicates: str = "keep",
    self_loops: str = "keep",
    dtype: DTypeLike = jnp.float32,
) -> Graph:
    """Return the graph of the edges `pre[k] -> post[k]`.

    Self-loops are dropped or added first, then duplicates are treated.

    Args:
        pre: sending nodes, `(num_synapses,)`: integer indices or, with `labels`, ids that are looked up in them.
        post: receiving nodes, likewise.
        weight: weights, `(num_synapses,)`; 1 for all unless given.
        shape: `(num_pre, num_post)`. Equal sizes are one set of nodes, others are two. Unless given, there is one set
            of nodes: the labels, or indices up to the largest one.
        labels: a distinct, hashable label for each node; for two sets, `num_pre` senders, then `num_post` receivers.
        node_attrs: attributes, the first axis aligned with the nodes.
        edge_attrs: attributes, the first axis aligned with `pre`.
        duplicates: "keep" leaves parallel synapses in input order, "sum" adds their weights into one synapse (their
            attributes must agree), "error" refuses them.
        self_loops: "keep", "drop", or "add": each node without one gets one, of weight 1.
        dtype: floating type of the weight; float64 only where JAX has 64 bits.

    Returns:
        The graph, in canonical order.

    Raises:
        TypeError: indices are no integers, weights no real numbers, labels not hashable, or an argument is traced.
        ValueError: lengths do not fit, an index is out of range or an id is no label, a weight is not finite in
            `dtype`, there are too many synapses for int32, or a policy is unknown or cannot be obeyed.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.from_edges([3, 3], [2**60, 2**60], [0.5, 1.0], labels=[3, 2**60], duplicates="sum")
        >>> graph.nodes, graph.weight.tolist()
        ((3, 1152921504606846976), [1.5])
    """
    nodes = None
    if labels is not None:
        nodes = as_labels(labels)
        label_index(nodes)
        num_pre, num_post = shape = (len(nodes), len(nodes)) if shape is None else check_shape(shape)
        if len(nodes) != (num_pre if num_pre == num_post else num_pre + num_post):
            raise ValueError(f"labels: expected one per node for shape {shape}, senders first, got {len(nodes)}.")
        pre = look_up("pre", pre, nodes[:num_pre])
        post = look_up("post", post, nodes[len(nodes) - num_post :])
    elif shape is None:
        pre, post = index_array("pre", pre), index_array("post", post)
        size = max((int(ends.max()) + 1 for ends in (pre, post) if ends.size), default=0)
        if size >= 2**31:
            raise ValueError(f"pre and post: expected indices that fit int32, got {size - 1}. Pass ids with `labels`.")
        shape = (max(size, 0), max(size, 0))
    policies = Policies(duplicates, self_loops, dtype)
    return build_graph(pre, post, weight, shape, nodes, node_attrs, edge_attrs, policies=policies)


def from_dataframe(
    df: Any,
    pre: Hashable = "pre",
    post: Hashable = "post",
    weight: Hashable | None = GUESS,
    labels: Iterable | None = None,
    *,
    edge_attrs: Iterable[Hashable] = (),
    duplicates: str = "keep",
    self_loops: str = "keep",
    dtype: DTypeLike = jnp.float32,
) -> Graph:
    """Return the graph of a table with one synapse per row. Integer ids keep all their 64 bits.

    Args:
        df: a data frame of pandas or polars, or an Arrow table.
        pre: the column of sending ids: integers (nullable ones too), strings, or other hashable values.
        post: the column of receiving ids.
        weight: the column of weights; None for weights of 1. Unless given, it is found as in `read_graph`, and what is
            guessed is said in a warning.
        labels: all ids, in the order of the nodes; the sorted unique ids of both columns unless given.
        edge_attrs: further columns to keep as edge attributes.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A square graph whose labels are the ids.

    Raises:
        TypeError: `df` is no such table, or ids are floats (which lose digits beyond 2**53), or are not sortable and
            `labels` is not given.
        ValueError: a column does not exist, exists twice or has missing values, several may be the weight; or as
            `from_edges`.

    Example:
        >>> import pandas as pd, sparse_etrace as se
        >>> df = pd.DataFrame({"pre": [7, 5], "post": [5, 9], "size": [0.5, 2.0]})
        >>> se.from_dataframe(df, weight="size").nodes
        (5, 7, 9)
    """
    names = _names_of(df)
    guesses: list[str] = []
    rest = [name for name in names if name not in (pre, post)]
    weight = weight_name(weight, rest, lambda name: rest.count(name) == 1 and holds_numbers(df[name]), guesses)
    ends = [plain_ids(_column_of(df, name, column)) for name, column in (("pre", pre), ("post", post))]
    for name, column, ids in (("pre", pre, ends[0]), ("post", post, ends[1])):
        if any(isinstance(value, float) for value in ids if not isinstance(ids, np.ndarray)):
            raise TypeError(
                f"{name}: expected integers or strings as ids in column {column!r}, got floats, "
                "which lose digits. Convert them."
            )
    if labels is None:
        same = common_ids(*ends)
        try:
            labels = distinct(np.concatenate(same)) if same else sorted({value for ids in ends for value in ids})
        except TypeError as error:
            raise TypeError(
                f"pre and post: expected ids that can be sorted, got those in {pre!r} and {post!r}. Pass `labels`."
            ) from error
    values = None if weight is None else _column_of(df, "weight", weight)
    attrs = {key: _column_of(df, "edge_attrs", key) for key in kept_names(edge_attrs, names)}
    policies: dict[str, Any] = {"duplicates": duplicates, "self_loops": self_loops, "dtype": dtype}
    graph = from_edges(ends[0], ends[1], values, labels=labels, edge_attrs=attrs, **policies)
    say_guesses("from_dataframe", guesses)
    return graph


def _names_of(df: Any) -> list[Hashable]:
    """Return the names of the columns of a data frame or an Arrow table."""
    if hasattr(df, "columns") and hasattr(df, "shape"):
        return list(getattr(df, "column_names", df.columns))
    raise TypeError(
        f"df: expected a data frame of pandas or polars, or an Arrow table, got {type(df).__name__}. "
        "Collect a lazy one first."
    )


def _column_of(df: Any, name: str, column: Hashable) -> np.ndarray:
    columns = _names_of(df)
    if columns.count(column) != 1:
        raise ValueError(f"{name}: expected a single column {column!r}, got {columns}. Name one of these.")
    row = first_missing(df[column])
    if row is not None:
        raise ValueError(
            f"{name}: expected a value in each row of column {column!r}, got none in row "
            f"{row}. Fill it or drop the row."
        )
    return plain_column(df[column], name)
