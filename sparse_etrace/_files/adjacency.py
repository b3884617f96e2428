"""Adjacency matrices in text: a row for each sending unit, a column for each receiving one; 0 is no synapse."""

from collections.abc import Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np

from .._build import build_graph
from .._graph import Graph
from .base import Options, Source, as_nodes, host_ends, host_weight, numbered, one_kind, refuse_attributes
from .cells import NUMBER, Table, ids, numbers, text_of, write_rows

HOLDERS = ".npz, .graphml or .parquet"
FORCE = 'pass format="adjacency" or format="edge_list"'
# Edge lists with more columns than this are rare.
FEW = 8


def looks_like(table: Table, options: Options) -> bool:
    """Whether a table without names of pre and post is a matrix; refuses what may be either, says what it guesses."""
    rows = table.rows
    height, width = len(rows), len(rows[0])
    body = all(NUMBER(cell) for row in rows[1:] for cell in row[1:])
    named = rows[0][1:] == [row[0] for row in rows[1:]] and height > 1
    top = not all(map(NUMBER, rows[0][1:]))
    if body and width > 1 and height > 1 and (rows[0][0] == "" or (named and top)):
        if top and all(NUMBER(row[0]) for row in rows[1:]):
            raise ValueError(f"has numbered rows under the header {rows[0]}: an edge list or a matrix; {FORCE}")
        return True
    all_numbers = all(NUMBER(cell) for row in rows for cell in row)
    header = body and not all(map(NUMBER, rows[0])) and all(NUMBER(row[0]) for row in rows[1:]) and height == width + 1
    stub = all(NUMBER(cell) for row in rows for cell in row[1:]) and not any(NUMBER(row[0]) for row in rows)
    square = (all_numbers and height == width) or header or (stub and height == width - 1)
    if square and width <= FEW:
        raise ValueError(f"has {height} rows of {width} cells: an edge list or a matrix; {FORCE}")
    if square:
        options.guesses.append(
            f'took {height} rows of {width} cells for an adjacency matrix (to say so: format="adjacency")'
        )
    return square


def read(source: Source, table: Table, options: Options) -> Graph:
    """Read a matrix with labels in its first row, in its first column, in both, or without labels."""
    options.refuse("a matrix has no columns of ends or attributes", "pre", "post", "weight", "edge_attrs")
    if table.mark is not None:
        raise ValueError("is an edge list with a comment of `write_graph`, no matrix")
    rows = table.rows
    body = [row[1:] for row in rows[1:]]
    inner = all(NUMBER(cell) for row in body for cell in row)
    labels_agree = rows[0][1:] == [row[0] for row in body] and len(rows) > 1
    top = not all(map(NUMBER, rows[0][1:] or rows[0]))
    first = [bool(NUMBER(row[0])) for row in rows[int(top) :]]
    side = not all(first)
    if rows[0][0] == "" or (inner and labels_agree and not all(map(NUMBER, rows[0]))):
        top = side = True
    elif not top and not first[0] and len(first) > 1 and all(first[1:]):
        raise ValueError(f"has {rows[0][0]!r} before numbers in row 1; leave that cell empty, or drop the labels")
    if not inner:
        _refuse_cell(rows, top, side)
    matrix = [row[int(side) :] for row in rows[int(top) :]]
    if not matrix:
        raise ValueError(f"has a row of labels, {rows[0]}, and no row of weights")
    num_pre, num_post = len(matrix), len(rows[0]) - side
    senders = [row[0] for row in rows[int(top) :]] if side else None
    receivers = rows[0][int(side) :] if top else None
    labels = _labels(senders, receivers, num_pre, num_post)
    cells = [cell for row in matrix for cell in row]
    dense = numbers("weight", cells).reshape(num_pre, num_post)
    pre, post = np.nonzero(dense)
    return build_graph(pre, post, dense[pre, post], dense.shape, labels, policies=options.policies)


def write(target: BufferedIOBase, graph: Graph, separator: str) -> None:
    """Write a matrix with labels in its first row and first column."""
    refuse_attributes("a matrix", HOLDERS, graph.node_attrs | graph.edge_attrs)
    conn, weight = graph.connectivity, host_weight(graph)
    (pre, post), (num_pre, num_post) = host_ends(graph), conn.shape
    if not (num_pre and num_post):
        raise ValueError(f"graph: a matrix of shape {conn.shape} is lost in text; write {HOLDERS}")
    if (weight == 0).any():
        raise ValueError(f"graph: a synapse of weight 0 is lost in a matrix; write {HOLDERS}, or an edge list")
    if ((pre[1:] == pre[:-1]) & (post[1:] == post[:-1])).any():
        raise ValueError(f"graph: parallel synapses are lost in a matrix; write {HOLDERS}, or an edge list")
    one_kind("a matrix", graph.nodes)
    if numbered(graph.nodes):
        senders, receivers = [str(k) for k in range(num_pre)], [str(k) for k in range(num_post)]
    else:
        senders, receivers = [str(x) for x in graph.pre_nodes], [str(x) for x in graph.post_nodes]
        found: Any = ids(senders, receivers)
        if type(graph.nodes[0]) is not type(list(found[0])[0]) and not isinstance(found[0], np.ndarray):
            found = None
        if found is None or isinstance(found[0], np.ndarray) is isinstance(graph.nodes[0], str):
            raise ValueError(f"graph: the labels are text that reads as numbers, {senders[0]!r}; write {HOLDERS}")
    dense = np.zeros(conn.shape, weight.dtype)
    dense[pre, post] = weight
    rows = ([name, *text_of("weight", HOLDERS, row)] for name, row in zip(senders, dense, strict=True))
    target.write(write_rows([["", *receivers], *rows], separator).encode())


def _labels(
    senders: Sequence[str] | None, receivers: Sequence[str] | None, num_pre: int, num_post: int
) -> Sequence[Any] | None:
    if num_pre == num_post:
        if senders is not None and receivers is not None and list(senders) != list(receivers):
            raise ValueError("is square, but its rows and columns have different labels; order them alike")
        either = senders if senders is not None else receivers
        return None if either is None else as_nodes(_plain(ids(either)[0]))
    if senders is None and receivers is None:
        return None
    if senders is None or receivers is None:
        raise ValueError(f"is {num_pre} x {num_post} with labels on one side; give both sides labels, or none")
    first, second = map(_plain, ids(senders, receivers))
    if numbered(first) and numbered(second):
        return None
    return as_nodes([*first, *second])


def _plain(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _refuse_cell(rows: list[list[str]], top: bool, side: bool) -> None:
    for i, row in enumerate(rows[1:], 2):
        for j, cell in enumerate(row[1:], 2):
            if not NUMBER(cell):
                raise ValueError(f"has {cell!r} in row {i}, column {j} of a matrix; write a number, 0 for no synapse")
