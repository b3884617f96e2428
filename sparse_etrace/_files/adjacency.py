"""Adjacency matrices in text: a row for each sending unit, a column for each receiving one; 0 is no synapse."""

from collections.abc import Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np

from .._graph.build import build_graph
from .._graph.graph import Graph
from .cells import NUMBER, ids, numbers, text_of, words
from .safe import Options, Source, as_nodes, host_ends, host_weight, numbered, one_kind, refuse_attributes
from .text import Table, write_rows

HOLDERS = ".npz, .graphml or .parquet"


def looks_like(table: Table) -> bool:
    """Whether a table is a matrix with labels on both sides, as its first cell is empty; refuses what may be either."""
    first = table.first
    if first[0] == "" and table.are_numbers[0] and not all(map(NUMBER, first[1:])):
        raise ValueError(
            f"expected an edge list or a matrix, got numbered rows under the header {first}, which may be "
            "either. Pass format='adjacency', or pre= and post=."
        )
    return first[0] == ""


def read(source: Source, table: Table, options: Options) -> Graph:
    """Read a matrix with labels in its first row, in its first column, in both, or without labels."""
    options.refuse("a matrix has no columns of ends or attributes", "pre", "post", "weight", "edge_attrs")
    if table.mark is not None:
        raise ValueError("expected a matrix, got an edge list, by a comment of `write_graph`. Pass format='edge_list'.")
    first = table.first
    inner = all(table.are_numbers[1:])
    top = not all(map(NUMBER, first[1:] or first))
    senders = words(table.columns[0])[int(top) :]
    numbered_rows = [bool(NUMBER(cell)) for cell in senders]
    side = not all(numbered_rows)
    if first[0] == "" or (inner and _named(table) and not all(map(NUMBER, first))):
        top = side = True
        senders = words(table.columns[0])[1:]
    elif not top and not numbered_rows[0] and len(numbered_rows) > 1 and all(numbered_rows[1:]):
        raise ValueError(
            f"expected numbers, or labels, throughout row 1, got {first[0]!r} before numbers. Leave that "
            "cell empty, or drop the labels."
        )
    if not inner:
        _refuse_cell(table)
    if not senders:
        raise ValueError(f"expected rows of weights, got none under the labels {first}. Write a row for each sender.")
    cells = (table.below if top else table.columns)[int(side) :]
    labels = _labels(senders if side else None, first[int(side) :] if top else None, len(senders), len(cells))
    dense = np.stack([numbers("weight", column) for column in cells], axis=1)
    pre, post = np.nonzero(dense)
    return build_graph(pre, post, dense[pre, post], dense.shape, labels, policies=options.policies)


def write(target: BufferedIOBase, graph: Graph, separator: str) -> None:
    """Write a matrix with labels in its first row and first column."""
    refuse_attributes("a matrix", HOLDERS, graph.node_attrs | graph.edge_attrs)
    conn, weight = graph.connectivity, host_weight(graph)
    (pre, post), (num_pre, num_post) = host_ends(graph), conn.shape
    if not (num_pre and num_post):
        raise ValueError(f"graph: expected units on both sides of a matrix, got shape {conn.shape}. Write {HOLDERS}.")
    if (weight == 0).any():
        raise ValueError(f"graph: expected no weights of 0, which are no synapses in a matrix, got one. Use {HOLDERS}.")
    if ((pre[1:] == pre[:-1]) & (post[1:] == post[:-1])).any():
        raise ValueError(f"graph: expected no parallel synapses, which a matrix loses, got some. Write {HOLDERS}.")
    one_kind("a matrix", graph.nodes)
    if numbered(graph.nodes):
        senders, receivers = [str(k) for k in range(num_pre)], [str(k) for k in range(num_post)]
    else:
        senders, receivers = [str(x) for x in graph.pre_nodes], [str(x) for x in graph.post_nodes]
        found: Any = ids(senders, receivers)
        if type(graph.nodes[0]) is not type(list(found[0])[0]) and not isinstance(found[0], np.ndarray):
            found = None
        if found is None or isinstance(found[0], np.ndarray) is isinstance(graph.nodes[0], str):
            raise ValueError(
                f"graph: expected labels that stay text in a matrix, got {senders[0]!r}, which reads as a "
                f"number. Write {HOLDERS}."
            )
    dense = np.zeros(conn.shape, weight.dtype)
    dense[pre, post] = weight
    rows = ([name, *text_of("weight", HOLDERS, row)] for name, row in zip(senders, dense, strict=True))
    target.write(write_rows([["", *receivers], *rows], separator).encode())


def _labels(senders: list[str] | None, receivers: list[str] | None, num_pre: int, num_post: int) -> Sequence | None:
    if num_pre == num_post:
        if senders is not None and receivers is not None and list(senders) != list(receivers):
            raise ValueError(
                "expected the same labels for rows and columns of a square matrix, got different ones. "
                "Order them alike."
            )
        either = senders if senders is not None else receivers
        return None if either is None else as_nodes(_plain(ids(either)[0]))
    if senders is None and receivers is None:
        return None
    if senders is None or receivers is None:
        raise ValueError(
            f"expected labels on both sides or on none, got those of one side for {num_pre} x {num_post}. "
            "Label the other side, or drop them."
        )
    first, second = map(_plain, ids(senders, receivers))
    if numbered(first) and numbered(second):
        return None
    return as_nodes([*first, *second])


def _plain(values: np.ndarray | list) -> list:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _named(table: Table) -> bool:
    """Whether the first row has the same labels as the first column."""
    return len(table.first) == len(table.columns[0]) > 1 and table.first[1:] == words(table.below[0])


def _refuse_cell(table: Table) -> None:
    for i, row in enumerate(zip(*map(words, table.below[1:]), strict=True), 2):
        for j, cell in enumerate(row, 2):
            if not NUMBER(cell):
                raise ValueError(f"expected a number in row {i}, column {j} of a matrix, got {cell!r}. Write 0 there.")
