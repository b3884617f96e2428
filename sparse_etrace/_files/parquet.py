"""Parquet: columns pre, post, weight and the edge attributes; shape, labels and node attributes in the metadata."""

import base64
import binascii
from collections.abc import Hashable, Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np

from .._build import build_graph
from .._columns import holds_numbers, strings, text_cells
from .._graph import Graph
from .._labels import look_up, plain_ids
from .base import Options, Source, as_nodes, find, host_ends, host_weight, is_plain, node_positions, only_strings
from .columns import WAY, ends_by_name, the_rest
from .npz import arrays_of, bytes_of, unpack

KEY = b"sparse_etrace"


def read(source: Source, options: Options) -> Graph:
    """Read a table with one synapse a row; without the metadata of `write`, the nodes are the sorted ids."""
    options.refuse("Parquet has no separator", "separator")
    if (options.pre is None) != (options.post is None):
        raise ValueError(f"pre and post: got {options.pre!r} and {options.post!r}; give both or none")
    names, columns, mark = _table(source)
    ends_at = ends_by_name(names, options)
    if ends_at is None:
        raise ValueError(f"has columns without usual names, {names}; {WAY}")
    pre, post = ends_at
    weight, kept = the_rest(names, ends_at, options.weight, options, lambda k: holds_numbers(columns[k]))
    if mark is None:
        ends: Any = [_ids(names[k], columns[k]) for k in (pre, post)]
        first, second = map(_strings_or_integers, ends)
        if len(first) and isinstance(first, np.ndarray) is not isinstance(second, np.ndarray):
            raise ValueError(
                f"has integers and strings as ids, in the columns {names[pre]!r} and {names[post]!r}; "
                "make both columns integers, or both strings"
            )
        *ends, labels = node_positions(first, second, _encode)
        shape, nodes = (len(labels), len(labels)), as_nodes(labels)
        node_attrs: dict[str, np.ndarray] = {}
        source.check_units(*shape)
    else:
        arrays = arrays_of(source, mark)
        shape, nodes, node_attrs, _ = unpack(source, arrays)
        halves: Any = (None, None)
        if _labels_in_columns(arrays, nodes):
            halves = tuple(nodes[: shape[0]]), tuple(nodes[len(nodes) - shape[1] :])
        ends = [_positions(names[k], columns[k], half) for k, half in zip((pre, post), halves, strict=True)]
    values = None if weight is None else _numbers(names[weight], columns[weight])
    attrs = {names[k]: _attribute(names[k], columns[k]) for k in kept}
    return build_graph(ends[0], ends[1], values, shape, nodes, node_attrs, attrs, policies=options.policies)


def write(target: BufferedIOBase, graph: Graph) -> None:
    """Write a graph. Labels that are all integers or all strings stand in the columns, of others the positions."""
    pa, pq = _pyarrow()
    pre, post = host_ends(graph)
    only_strings("Parquet", graph.edge_attrs)
    for name in graph.edge_attrs:
        if name in ("pre", "post", "weight"):
            raise ValueError(f"graph: edge attribute {name!r} is called like a column of Parquet; rename it")
    sides = [(graph.pre_nodes, pre), (graph.post_nodes, post)]
    columns = {name: _labelled(pa, graph, *side) for name, side in zip(("pre", "post"), sides, strict=True)}
    columns["weight"] = pa.array(host_weight(graph))
    for name, values in graph.edge_attrs.items():
        columns[name] = _arrow(pa, name, values)
    table = pa.table(columns)
    with pq.ParquetWriter(target, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        # Of the file, not of the schema, of which Parquet keeps a second copy.
        facts = bytes_of(graph, labelled=np.array(_is_labelled(graph)))
        writer.add_key_value_metadata({KEY: base64.b64encode(facts)})


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'sparse-etrace[tables]'") from error
    return pyarrow, pyarrow.parquet


def _table(source: Source) -> tuple[list[str], list[Any], bytes | None]:
    """Return names, columns, and the metadata of `write`."""
    pa, pq = _pyarrow()
    try:
        with pq.ParquetFile(source.path, page_checksum_verification=True) as file:
            facts = file.metadata
            groups = [facts.row_group(k) for k in range(facts.num_row_groups)]
            # Of groups: the facts of a damaged column abort the process in pyarrow.
            sizes = [group.total_byte_size for group in groups]
            rows = sum(group.num_rows for group in groups)
            if min([rows, facts.num_rows, *sizes]) < 0 or rows != facts.num_rows:
                raise ValueError(f"claims {facts.num_rows} rows, its groups {rows}")
            source.check_size(max(sum(sizes), 8 * rows * max(facts.num_columns, 1)))
            table = file.read()
            table.validate(full=True)
        if table.num_rows != rows:
            raise ValueError(f"has {table.num_rows} rows, but claims {rows}")
        mark = (facts.metadata or {}).get(KEY)
        return list(table.column_names), list(table.columns), None if mark is None else _unpacked(mark)
    except (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"is no sound Parquet file: {error}") from error


def _unpacked(mark: bytes) -> bytes:
    try:
        return base64.b64decode(mark, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its description of the nodes is damaged: {error}") from error


def _labelled(pa: Any, graph: Graph, labels: Any, positions: np.ndarray) -> Any:
    """Return a column of labels, strings through a dictionary; positions where labels are no plain ids."""
    if not _is_labelled(graph):
        return pa.array(positions)
    if isinstance(graph.nodes[0], int):
        return pa.array(plain_ids(labels)[positions] if len(labels) else np.zeros(0, np.int64))
    return pa.DictionaryArray.from_arrays(pa.array(positions), pa.array(labels, pa.string()))


def _labels_in_columns(arrays: dict[str, np.ndarray], nodes: Sequence[Hashable] | None) -> bool:
    """Whether the columns hold labels, as `write` noted; else they hold positions."""
    noted = arrays.get("labelled")
    if noted is None or noted.shape or noted.dtype != bool or (noted and nodes is None):
        raise ValueError("does not say whether its columns hold labels or positions; write it anew with `write_graph`")
    return bool(noted)


def _is_labelled(graph: Graph) -> bool:
    """Whether Parquet has a type for all labels, so that they stand in the columns."""
    labels = as_nodes(graph.nodes)
    if labels is None:
        return False
    kinds = {type(label) for label in labels}
    if kinds == {int}:
        return isinstance(plain_ids(labels), np.ndarray)
    return kinds == {str} and not any("\ud800" <= letter <= "\udfff" for label in labels for letter in str(label))


def _arrow(pa: Any, name: str, values: np.ndarray) -> Any:
    text = text_cells(values)
    if text is None and not is_plain(values):
        raise ValueError(
            f"graph: edge attribute {name!r} has type {values.dtype} and shape {values.shape}, which Parquet loses; "
            "write .npz"
        )
    try:
        return pa.array(values) if text is None else pa.array(text, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"graph: edge attribute {name!r} has characters that Parquet loses; write .npz") from error


def _whole(name: str, column: Any) -> Any:
    """Return a column without missing values, and without a dictionary unless that is one of strings."""
    if column.null_count:
        raise ValueError(f"has {column.null_count} rows without a value in column {name!r}; fill or drop them")
    pa, _ = _pyarrow()
    if pa.types.is_dictionary(column.type) and not _is_text(pa, column.type.value_type):
        return column.cast(column.type.value_type)
    return column


def _is_text(pa: Any, kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _ids(name: str, column: Any) -> Any:
    """Return ids as an integer array, a list of strings, or a pair of codes and strings."""
    pa, _ = _pyarrow()
    column = _whole(name, column)
    kind = column.type
    if pa.types.is_integer(kind):
        return column.to_numpy()
    if pa.types.is_dictionary(kind) and _is_text(pa, kind.value_type):
        found = column.combine_chunks() if column.num_chunks else pa.array([], pa.string()).dictionary_encode()
        found = found if isinstance(found, pa.DictionaryArray) else found.unify_dictionaries().chunk(0)
        return found.indices.to_numpy(), found.dictionary.to_pylist()
    if _is_text(pa, kind):
        return column.to_pylist()
    raise ValueError(f"has ids of type {kind} in column {name!r}; they need to be integers or strings")


def _strings_or_integers(ids: Any) -> Any:
    if not isinstance(ids, tuple):
        return ids
    codes, values = ids
    return [values[k] for k in codes.tolist()]


def _encode(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, and where in them each entry is; by hashing, which for many entries is faster than sorting."""
    found = _pyarrow()[0].array(ids).dictionary_encode()
    return found.dictionary.to_numpy(), found.indices.to_numpy()


def _positions(name: str, column: Any, labels: tuple[Hashable, ...] | None) -> np.ndarray:
    """Return the position of each id among the labels of the metadata."""
    ids = _ids(name, column)
    whole = isinstance(ids, np.ndarray)
    if labels is None or not len(column):
        if not whole and len(column):
            raise ValueError(f"has strings in column {name!r}, though its nodes have no such labels")
        return ids if whole else np.zeros(0, np.int64)
    if whole:
        return look_up(name, ids, labels)
    codes, values = ids if isinstance(ids, tuple) else (None, ids)
    found = find(name, values, labels)
    return found if codes is None else found[codes]


def _numbers(name: str, column: Any) -> np.ndarray:
    pa, _ = _pyarrow()
    column = _whole(name, column)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"has weights of type {kind} in column {name!r}; they need to be numbers")
    return column.to_numpy()


def _attribute(name: str, column: Any) -> np.ndarray:
    pa, _ = _pyarrow()
    column = _whole(name, column)
    kind = column.type
    if _is_text(pa, kind) or (pa.types.is_dictionary(kind) and _is_text(pa, kind.value_type)):
        return strings(column.to_pylist())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return column.to_numpy()
    raise ValueError(
        f"has the column {name!r} of type {kind}, which is no attribute of a graph; leave it out of `edge_attrs`"
    )
