"""Arrow tables: which columns are wanted, ids as positions among sorted nodes, weights and attributes as numpy's."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa

from .._graph.build import Policies, build_graph
from .._graph.columns import holds_numbers, taken, text_column
from .._graph.graph import Graph
from .._graph.labels import beside, common_ids, distinct, label_index
from .._graph.sorting import positions
from .columns import WAY, ends_by_name, the_rest
from .safe import Options, Source, as_nodes, damaged, numbered

Encoded = tuple[np.ndarray, np.ndarray | list]
Placed = tuple[np.ndarray, np.ndarray, Sequence[Hashable]]


@runtime_checkable
class Names(Protocol):
    """Columns that are chosen."""

    @property
    def names(self) -> list[str]:
        """All of them."""


Wanted = TypeVar("Wanted", bound=Names)


class Chosen(NamedTuple):
    """Names of the columns of the ends, of the weight where there is one, of the edge attributes; and what to sum."""

    pre: str
    post: str
    weight: str | None
    attrs: list[str]
    policies: Policies

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.pre, self.post, *([] if self.weight is None else [self.weight]), *self.attrs]


class Nodes(NamedTuple):
    """What a file says of its nodes; without labels of senders and receivers, its columns hold positions."""

    shape: tuple[int, int]
    labels: Sequence[Hashable] | None
    attrs: dict[str, np.ndarray]
    sides: tuple[Sequence[Hashable], Sequence[Hashable]] | None


def choose(schema: pa.Schema, options: Options) -> Chosen:
    """Return the columns to read, by the names that the caller gave or usual ones."""
    names = schema.names
    ends = ends_by_name(names, options)
    if ends is None:
        raise ValueError(f"expected columns with usual names, got {names}. {WAY}")
    weight, kept, policies = the_rest(names, ends, options.weight, options, lambda k: holds_numbers(schema.field(k)))
    pre, post = ends
    if policies.drops_attrs:
        kept = [names.index(name) for name in plain_columns(schema, [names[k] for k in kept], options.guesses)]
    value = None if weight is None else names[weight]
    return Chosen(names[pre], names[post], value, [names[k] for k in kept], policies)


def graph_of(
    source: Source,
    options: Options,
    chosen: Chosen,
    table: pa.Table,
    nodes: Nodes | None = None,
    found: Placed | None = None,
) -> Graph:
    """Return the graph of a table with one synapse a row; unless its nodes are known, they are the sorted ids.

    `found`: what `in_sorted_ids` does, where the table lacks its ends.
    """
    ends = [] if found else [(name, ids_of(name, table[name], nodes is None)) for name in (chosen.pre, chosen.post)]
    if nodes is None:
        if not found and table.num_rows and len({pa.types.is_integer(column.type) for _, column in ends}) == 2:
            raise ValueError(
                f"expected ids of one kind, got integers and strings in the columns {chosen.pre!r} and "
                f"{chosen.post!r}. Make both columns integers, or both strings."
            )
        pre, post, labels = found or in_sorted_ids(ends[0][1], ends[1][1], options.guesses)
        source.check_units(len(labels), len(labels))
        nodes = Nodes((len(labels), len(labels)), as_nodes(labels), {}, None)
    elif nodes.sides is None:
        pre, post = (positions_of(name, column) for name, column in ends)
    else:
        pre, post = (positions_in(*end, side) for end, side in zip(ends, nodes.sides, strict=True))
    weight = None if chosen.weight is None else numbers_of(chosen.weight, table[chosen.weight])
    attrs = {name: attribute(name, table[name]) for name in chosen.attrs}
    return build_graph(pre, post, weight, nodes.shape, nodes.labels, nodes.attrs, attrs, policies=chosen.policies)


def in_sorted_ids(pre: pa.ChunkedArray, post: pa.ChunkedArray, notes: list[str]) -> Placed:
    """Return the position of each id among the sorted ids of both columns, and these ids; blanks around names go."""
    if pre.type == post.type == pa.int64():
        return _placed(((k, x.to_numpy()) for k in range(2) for x in (pre, post)[k].chunks), len(pre))
    same = common_ids(pre.to_numpy(), post.to_numpy()) if pa.types.is_integer(pre.type) else None
    if same is not None:
        return _placed(enumerate(same), len(pre))
    codes, values = zip(*encoded(pre, post), strict=True)
    return node_positions(*zip(codes, map(partial(_trimmed, notes), values), strict=True))


def in_turn(
    chosen: Chosen, schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int
) -> tuple[Placed, pa.Table] | None:
    """Return what `in_sorted_ids` does of so many rows, and their other columns, of which one batch is read at a time.

    None where ids are not of int64, or values are missing.
    """
    if not schema.field(chosen.pre).type == schema.field(chosen.post).type == pa.int64():
        return None
    name, dtype = chosen.weight, np.dtype(chosen.policies.dtype)
    # Integers are finite in these, so that no error asks which one it was.
    is_cast = name is not None and pa.types.is_integer(schema.field(name).type) and dtype in (np.float32, np.float64)
    weight = np.empty(rows, dtype) if is_cast else None
    kept, rest = chosen.attrs if is_cast else chosen.names[2:], []

    def pieces() -> Iterator[tuple[int, np.ndarray]]:
        start = 0
        for batch in batches:
            yield from ((k, batch[end].to_numpy()) for k, end in enumerate((chosen.pre, chosen.post)))
            if weight is not None:
                weight[start : start + batch.num_rows] = batch[name].to_numpy()
            start += batch.num_rows
            rest.append(batch.select(kept))

    try:
        found = _placed(pieces(), rows)
    except pa.ArrowInvalid:
        return None
    table = pa.Table.from_batches(rest)
    return found, table if weight is None else table.append_column(name, pa.array(weight))


def _placed(pieces: Iterable[tuple[int, np.ndarray]], rows: int) -> Placed:
    (pre, post), found = positions(pieces, rows)
    labels = found.tolist()
    return pre, post, range(len(labels)) if numbered(labels) else tuple(labels)


def encoded(*columns: pa.ChunkedArray) -> list[Encoded]:
    """Return where in its distinct values each entry of a column is, and these, by hashing."""
    return beside(_encoded, columns, len(columns[0]))


def _encoded(column: pa.ChunkedArray) -> Encoded:
    column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    found = column.combine_chunks()
    values = found.dictionary
    return found.indices.to_numpy(), values.to_numpy() if pa.types.is_integer(values.type) else values.to_pylist()


def node_positions(pre: Encoded, post: Encoded) -> tuple[np.ndarray, np.ndarray, Sequence[Hashable]]:
    """Return the position of each id among the sorted ids of both columns, and these ids."""
    values = pre[1], post[1]
    same = common_ids(*values)
    if same is None:
        first, second = (x.tolist() if isinstance(x, np.ndarray) else x for x in values)
        labels: Sequence[Hashable] = sorted({*first, *second})
        index = {label: k for k, label in enumerate(labels)}
        places = [np.fromiter((index[x] for x in side), np.int32, len(side)) for side in (first, second)]
    else:
        found = distinct(np.concatenate(same))
        labels, places = found.tolist(), [np.searchsorted(found, side).astype(np.int32) for side in same]
    labels = range(len(labels)) if numbered(labels) else tuple(labels)
    return taken(places[0], pre[0]), taken(places[1], post[0]), labels


def positions_in(name: str, column: pa.ChunkedArray, labels: Sequence[Hashable], before: int = 0) -> np.ndarray:
    """Return the position of each id in `labels`; so many rows came before them."""
    ((codes, values),), index = encoded(column), label_index(labels)
    values = values.tolist() if isinstance(values, np.ndarray) else values
    place = taken(np.array([index.get(value, -1) for value in values], np.int32), codes)
    if place.size and place.min() < 0:
        row = int(np.argmin(place))
        raise ValueError(
            f"{name}: expected one of the {len(labels)} nodes of the file, got {values[codes[row]]!r} in row "
            f"{before + row + 1}. Add the node, or drop the row."
        )
    return place


def _whole(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without missing values."""
    if column.null_count:
        raise ValueError(
            f"expected a value in each row of column {name!r}, got {column.null_count} rows without one. "
            "Fill or drop them."
        )
    return column


def _plain(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without missing values or dictionary."""
    column = _whole(name, column)
    if pa.types.is_dictionary(column.type):
        kind = column.type.value_type
        kind = pa.large_string() if pa.types.is_string_view(kind) else kind  # which Arrow cannot take rows of
        chunks = [chunk.dictionary.cast(kind).take(chunk.indices) for chunk in column.chunks]
        column = _whole(name, pa.chunked_array(chunks, kind))
    return column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def ids_of(name: str, column: pa.ChunkedArray, plain: bool) -> pa.ChunkedArray:
    """Return a column of integers or strings; unless `plain`, strings may have a dictionary."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind):
        return _whole_ids(name, _plain(name, column))
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"expected ids that are integers or strings in column {name!r}, got {kind}. Convert them.")
    column = _whole(name, column) if _is_text(kind) and not plain else _plain(name, column)
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def _whole_ids(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return floats as integers, where they are such and below what their type rounds."""
    numbers = column.to_numpy()
    sound = (np.floor(numbers) == numbers) & (np.abs(numbers) < 2.0 ** (np.finfo(numbers.dtype).nmant + 1))
    if not sound.all():
        raise ValueError(
            f"expected ids that are integers or strings in column {name!r}, got the float "
            f"{float(numbers[np.argmin(sound)])!r}. A large one was rounded: write ids as integers, in pandas of type "
            "Int64 where some are missing."
        )
    return pa.chunked_array([numbers.astype(np.int64)])


def _trimmed(notes: list[str], values: np.ndarray | list) -> np.ndarray | list:
    """Return distinct names without blanks around them."""
    if isinstance(values, np.ndarray):
        return values
    names = [name.strip() for name in values]
    if "" in names:
        raise ValueError("expected an id in each row, got an empty one. Fill it or drop the row.")
    odd = next((name for name, plain in zip(values, names, strict=True) if name != plain), None)
    if odd is not None:
        notes.append(f"took blanks off ids, as of {odd!r}")
    return names


def positions_of(name: str, column: pa.ChunkedArray) -> np.ndarray:
    if len(column) and not pa.types.is_integer(column.type):
        damaged(f"positions of nodes in column {name!r}, which have no labels", "strings")
    return column.to_numpy() if len(column) else np.zeros(0, np.int64)


def numbers_of(name: str, column: pa.ChunkedArray) -> np.ndarray:
    column = _plain(name, column)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"expected numbers as weights in column {name!r}, got {kind}. Name another, or None.")
    return column.to_numpy()


def is_plain_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can be an attribute."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def plain_columns(schema: pa.Schema, names: list[str], notes: list[str]) -> list[str]:
    """Return the columns that can be attributes."""
    odd = [name for name in names if not is_plain_type(schema.field(name).type)]
    if odd:
        notes.append(f"left out the columns {odd}, which hold no numbers, truth values or text")
    return [name for name in names if name not in odd]


def attribute(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as numpy's; text that is missing is empty, a float NaN."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if _is_text(kind):
        return text_column(column)
    if pa.types.is_floating(kind):
        return column.cast(kind).to_numpy()
    if is_plain_type(kind):
        return _plain(name, column).to_numpy()
    raise ValueError(f"expected numbers, truth values or text in column {name!r}, got {kind}. Leave it out.")
