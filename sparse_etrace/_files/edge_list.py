"""Edge lists in text: one synapse a row, its ends and weight in columns, other columns as edge attributes."""

from collections.abc import Hashable, Sequence
from io import BufferedIOBase
from typing import Any

from .._build import build_graph
from .._columns import GUESS
from .._graph import Graph
from .base import (
    Options,
    Source,
    as_nodes,
    find,
    host_ends,
    host_weight,
    node_positions,
    numbered,
    one_kind,
    only_strings,
    refuse_attributes,
)
from .cells import INTEGER, NUMBER, Table, column, ids, numbers, text_of, write_mark, write_rows
from .columns import WAY, ends_by_name, say, the_rest, usual_ends

HOLDERS = ".npz, .graphml or .parquet"


def read(source: Source, table: Table, options: Options) -> Graph:
    """Read an edge list."""
    names, rows, pre, post, weight = _columns(table, options)
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    others = {k: column(cells[k]) for k in range(len(names)) if k not in (pre, post)}
    for k, cells_of in others.items():
        if _undirected(names[k], cells_of):
            raise ValueError(
                f"has undirected edges in column {names[k]!r}, and each row of an edge list is one synapse; "
                "write each such edge as two rows and drop the column, or read it with pandas and pass "
                "`networkx.from_pandas_edgelist(...)` to `from_networkx`"
            )
    place, kept = the_rest(names, (pre, post), weight, options, lambda k: others[k].dtype.kind in "iuf")
    values = None if place is None else numbers("weight", cells[place])
    attrs = {names[k]: others[k] for k in kept}
    ends, shape, labels = _nodes(source, table, cells[pre], cells[post])
    return build_graph(ends[0], ends[1], values, shape, labels, None, attrs, policies=options.policies)


def write(target: BufferedIOBase, graph: Graph, separator: str) -> None:
    """Write an edge list; a comment before it says what nodes there are, if the rows do not."""
    refuse_attributes("an edge list, which has no rows for nodes", HOLDERS, graph.node_attrs)
    attrs = graph.edge_attrs
    only_strings("an edge list", attrs)
    for name in attrs:
        if name.lower() in ("pre", "post", "weight"):
            raise ValueError(f"graph: edge attribute {name!r} is called like a column of an edge list; rename it")
        if _undirected(name, attrs[name]):
            raise ValueError(f"graph: edge attribute {name!r} reads as undirected edges in an edge list; rename it")
    pre, post = host_ends(graph)
    nodes, shape = graph.nodes, graph.connectivity.shape
    offset = len(nodes) - shape[1]
    text = [str(label) for label in nodes]
    one_kind("an edge list", nodes)
    if "" in text:
        raise ValueError("graph: the label '' is lost in an edge list; write .npz")
    mark: dict[str, Any] = {"shape": list(shape)}
    if numbered(nodes):
        ends = [[str(k) for k in side.tolist()] for side in (pre, post)]
    else:
        ends = [[text[k] for k in pre.tolist()], [text[k + offset] for k in post.tolist()]]
        mark["labels"] = list(nodes)
    plain = shape[0] == shape[1] and _same_nodes(ends, nodes)
    names = [f"edge attribute {name!r}" for name in attrs]
    columns = [*ends, text_of("weight", HOLDERS, host_weight(graph))]
    columns += [text_of(name, HOLDERS, values) for name, values in zip(names, attrs.values(), strict=True)]
    body = write_rows([["pre", "post", "weight", *attrs], *zip(*columns, strict=True)], separator)
    target.write((("" if plain else write_mark(mark)) + body).encode())


def _undirected(name: str, values: Any) -> bool:
    """Whether a column says so of a row, as Gephi's does."""
    return name.lower() == "type" and any(str(value).lower() == "undirected" for value in values.tolist())


def _same_nodes(ends: list[list[str]], nodes: Sequence[Hashable]) -> bool:
    try:
        found = node_positions(*ids(*ends))[2]
    except ValueError:
        return False
    return list(found) == list(nodes) and [type(x) for x in found] == [type(x) for x in nodes]


def _nodes(source: Source, table: Table, pre: Sequence[str], post: Sequence[str]) -> tuple[Any, Any, Any]:
    if table.mark is None:
        *ends, found = node_positions(*ids(pre, post))
        source.check_units(len(found), len(found))
        return ends, (len(found), len(found)), as_nodes(found)
    shape, labels = tuple(table.mark["shape"]), table.mark.get("labels")
    source.check_units(*shape)
    if labels is None:
        for name, side in (("pre", pre), ("post", post)):
            for k, cell in enumerate(side):
                if not INTEGER(cell):
                    raise ValueError(f"has the {name} {cell!r} in data row {k + 1}; it needs the number of a node")
        return [[int(cell) for cell in side] for side in (pre, post)], shape, None
    if len(labels) != (shape[0] if shape[0] == shape[1] else sum(shape)):
        raise ValueError(f"has {len(labels)} labels for a graph of shape {shape}")
    text = [str(label) for label in labels]
    ends = [find("pre", pre, text[: shape[0]]), find("post", post, text[len(text) - shape[1] :])]
    return ends, shape, labels


def _columns(table: Table, options: Options) -> tuple[list[str], list[list[str]], int, int, Any]:
    """Return names, data rows, the positions of pre and post, and what is said of the weight: see `weight_name`."""
    if (options.pre is None) != (options.post is None):
        raise ValueError(f"pre and post: got {options.pre!r} and {options.post!r}; give both or none")
    first, weight = table.rows[0], options.weight
    given = [x for x in (options.pre, options.post, weight) if x not in (None, GUESS)]
    if given and all(type(x) is int for x in given):
        if usual_ends(first) is not None:
            raise ValueError(f"has a header, {first}; give the names of its columns, not positions")
        found = None
    else:
        found = ends_by_name(first, options)
    if found is not None:
        return first, table.rows[1:], *found, weight
    pre, post, place = _by_position(table.rows, options)
    names = [f"column {k}" for k in range(len(first))]
    return names, table.rows, pre, post, weight if place is None else names[place]


def _by_position(rows: list[list[str]], options: Options) -> tuple[int, int, int | None]:
    """Return the positions of pre, post, and of the weight where it is given or there are three columns."""
    first, width = rows[0], len(rows[0])
    for k in range(width):
        if len(rows) > 1 and not NUMBER(first[k]) and all(NUMBER(row[k]) for row in rows[1:]):
            raise ValueError(f"seems to have a header, {first}, that names no usual ends of a synapse; {WAY}")
    pre, post, weight = options.pre, options.post, options.weight
    if pre is None:
        if width > 3:
            raise ValueError(f"has {width} columns without usual names, {first}; {WAY}")
        seen = {cell for row in rows[1:] for cell in row[:2]}
        if not all(map(NUMBER, first[:2])) and not {*first[:2]} <= seen:
            raise ValueError(f"has a header or none, row 1 is {first}; {WAY}")
        pre, post = 0, 1
        say(options, pre, post)
        if width == 3 and weight == GUESS:
            weight = 2
            options.guesses.append("took column 2 for the weight (to say so: weight=2)")
    used = [k for k in (pre, post, weight) if isinstance(k, int)]
    for k in used:
        if not 0 <= k < width:
            raise ValueError(f"has {width} columns, none at position {k}; positions start at 0")
    if len(set(used)) < len(used):
        raise ValueError(f"pre, post, weight: got the positions {used}; they need to differ")
    return used[0], used[1], used[2] if len(used) > 2 else None
