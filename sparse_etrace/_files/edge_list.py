"""Edge lists in text: one synapse a row, its ends and weight in columns, other columns as edge attributes."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from io import BufferedIOBase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._graph.build import build_graph
from .._graph.columns import GUESS
from .._graph.graph import Graph
from .._graph.labels import beside
from .arrow import encoded, in_sorted_ids, node_positions, positions_in
from .cells import INTEGER, NUMBER, column_of, ids, integers, numbers, refuse_cell, text_of, typed
from .columns import WAY, both_or_none, ends_by_name, the_rest, usual_ends
from .safe import (
    Options,
    Source,
    as_nodes,
    damaged,
    host_ends,
    host_weight,
    numbered,
    one_kind,
    only_strings,
    refuse_attributes,
)
from .text import Mark, Table, width_of, write_mark, write_rows

HOLDERS = ".npz, .graphml or .parquet"


def read(source: Source, table: Table, options: Options) -> Graph:
    """Read an edge list."""
    names, columns, pre, post, weight = _columns(table, options)
    for name, column in zip(names, columns, strict=True):
        if name.lower() == "type" and _undirected(column.unique().to_pylist()):
            raise ValueError(
                f"expected directed edges, each row one synapse, got undirected ones in column {name!r}. Write "
                "each such edge as two rows and drop the column, or read it with pandas and pass "
                "`networkx.from_pandas_edgelist(...)` to `from_networkx`."
            )

    def is_number(k: int) -> bool:
        return typed(columns[k]).dtype.kind in "iuf"

    place, kept, policies = the_rest(names, (pre, post), weight, options, is_number)
    reads: list[Callable[[], Any]] = [
        lambda: None if place is None else numbers("weight", columns[place]),
        partial(_nodes, source, table, columns[pre], columns[post]),
        *(partial(typed, columns[k]) for k in kept),
    ]
    values, (ends, shape, labels), *rest = beside(lambda read: read(), reads, len(columns[pre]))
    attrs = dict(zip((names[k] for k in kept), rest, strict=True))
    return build_graph(ends[0], ends[1], values, shape, labels, None, attrs, policies=policies)


def check_names(options: Options, names: list[str]) -> None:
    """Refuse names that a header lacks, before the rows are read."""
    options, names = replace(options, guesses=[]), names[: width_of(names, lambda k: True)]
    if any(type(x) is int for x in (options.pre, options.post, options.weight)):
        return
    ends = ends_by_name(names, options)
    if ends is not None:
        the_rest(names, ends, options.weight, options, lambda k: False)


def write(target: BufferedIOBase, graph: Graph, separator: str) -> None:
    """Write an edge list; a comment before it says what nodes there are, if the rows do not."""
    refuse_attributes("an edge list, which has no rows for nodes", HOLDERS, graph.node_attrs)
    attrs = graph.edge_attrs
    only_strings("an edge list", attrs)
    for name in attrs:
        if name.lower() in ("pre", "post", "weight"):
            raise ValueError(
                "graph: expected an edge attribute with another name than a column of an edge list, got "
                f"{name!r}. Rename it."
            )
        if name.lower() == "type" and _undirected(attrs[name].tolist()):
            raise ValueError(f"graph: expected no edge attribute that reads as undirected edges, got {name!r}. Rename.")
    pre, post = host_ends(graph)
    nodes, shape = graph.nodes, graph.connectivity.shape
    offset = len(nodes) - shape[1]
    text = [str(label) for label in nodes]
    one_kind("an edge list", nodes)
    if "" in text:
        raise ValueError("graph: expected labels that an edge list holds, got ''. Write .npz.")
    mark: Mark = {"shape": list(shape)}
    if numbered(nodes):
        ends = [[str(k) for k in side.tolist()] for side in (pre, post)]
    else:
        ends = [[text[k] for k in pre.tolist()], [text[k + offset] for k in post.tolist()]]
        mark["labels"] = list(nodes)
    as_columns = [column_of(side) for side in (*ends, [*attrs])]
    plain = shape[0] == shape[1] and _same_nodes(as_columns[:2], nodes)
    names = [f"edge attribute {name!r}" for name in attrs]
    columns = [*ends, text_of("weight", HOLDERS, host_weight(graph))]
    columns += [text_of(name, HOLDERS, values) for name, values in zip(names, attrs.values(), strict=True)]
    body = write_rows([["pre", "post", "weight", *attrs], *zip(*columns, strict=True)], separator)
    target.write((("" if plain else write_mark(mark)) + body).encode())


def _undirected(values: Iterable[object]) -> bool:
    """Whether a column says so of a row, as Gephi's does."""
    return any(str(value).lower() == "undirected" for value in values)


def _ends(pre: pa.ChunkedArray, post: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, Sequence[Hashable]]:
    """Return the positions of the ends among the sorted ids, and these: integers if all are, else strings."""
    whole = beside(lambda column: integers(column, pa.int64()), (pre, post), len(pre))
    if whole[0] is not None and whole[1] is not None:
        return in_sorted_ids(whole[0], whole[1], [])
    pre, post = (column.cast(pa.string()) for column in (pre, post))
    for column in (pre, post):
        row = pc.index(column, "").as_py()
        if row >= 0:
            raise ValueError(f"expected an id in each row, got none in data row {row + 1}. Fill it or drop the row.")
    codes, values = zip(*encoded(pre, post), strict=True)
    return node_positions(*zip(codes, ids(*values), strict=True))


def _same_nodes(ends: list[pa.ChunkedArray], nodes: Sequence[Hashable]) -> bool:
    try:
        found = _ends(*ends)[2]
    except ValueError:
        return False
    return list(found) == list(nodes) and [type(x) for x in found] == [type(x) for x in nodes]


def _nodes(
    source: Source, table: Table, pre: pa.ChunkedArray, post: pa.ChunkedArray
) -> tuple[Sequence[np.ndarray], tuple[int, int], Sequence | None]:
    if table.mark is None:
        *ends, found = _ends(pre, post)
        source.check_units(len(found), len(found))
        return ends, (len(found), len(found)), as_nodes(found)
    shape = table.mark["shape"][0], table.mark["shape"][1]
    labels = table.mark.get("labels")
    source.check_units(*shape)
    if labels is None:
        return [_numbers_of_nodes("pre", pre), _numbers_of_nodes("post", post)], shape, None
    if len(labels) != (shape[0] if shape[0] == shape[1] else sum(shape)):
        damaged(f"labels for a graph of shape {shape}, one a node", str(len(labels)))
    text = [str(label) for label in labels]
    pre, post = positions_in("pre", pre, text[: shape[0]]), positions_in("post", post, text[len(text) - shape[1] :])
    return [pre, post], shape, labels


def _numbers_of_nodes(name: str, column: pa.ChunkedArray) -> np.ndarray:
    whole = integers(column, pa.int64())
    if whole is None:
        refuse_cell(name, column, lambda cell: INTEGER(cell) and len(cell) < 19, "the number of a node")
    return whole.to_numpy()


def _columns(table: Table, options: Options) -> tuple[list[str], list[pa.ChunkedArray], int, int, Hashable | None]:
    """Return names, columns, the positions of pre and post, and what is said of the weight: see `weight_name`."""
    both_or_none(options)
    first, weight = table.first, options.weight
    given = [x for x in (options.pre, options.post, weight) if x not in (None, GUESS)]
    if given and all(type(x) is int for x in given):
        if usual_ends(first) is not None:
            raise ValueError(f"expected names of columns, as row 1 is a header, {first}, got positions. Give names.")
        pre, post, *place = _positions(table, given)
        names = [f"column {k}" for k in range(len(first))]
        return names, table.columns, pre, post, names[place[0]] if place else weight
    below = table.below
    width = width_of(first, lambda k: not pc.max(pc.binary_length(table.columns[k])).as_py())
    first, below = first[:width], below[:width]
    ends = ends_by_name(first, options)
    if ends is None:
        raise ValueError(
            f"expected usual names of the ends of a synapse in row 1, got {first}. {WAY} A matrix: pass "
            "format='adjacency'."
        )
    return first, below, *ends, weight


def _positions(table: Table, given: list[Any]) -> list[int]:
    """Return the positions that were given, of columns that exist and have no header."""
    first, width = table.first, len(table.first)
    for k in given:
        if not 0 <= k < width:
            raise ValueError(f"expected positions of columns from 0 to {width - 1}, got {k}. Count from 0.")
        if not NUMBER(first[k]) and len(table.below[k]) and integers(table.below[k], pa.int64()) is not None:
            raise ValueError(f"expected rows without a header, got {first}. {WAY}")
    if len(set(given)) < len(given):
        raise ValueError(f"pre, post, weight: expected different positions, got {given}. Give each once.")
    return given
