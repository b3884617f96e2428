"""Parquet: columns pre, post, weight and the edge attributes; shape, labels and node attributes in the metadata."""

import base64
import binascii
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from io import BufferedIOBase

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .._graph.columns import text_cells
from .._graph.graph import Graph
from .._graph.labels import plain_ids
from .arrow import Nodes, Wanted, choose, graph_of
from .npz import arrays_of, bytes_of, unpack
from .safe import AGAIN, Options, Source, as_nodes, host_ends, host_weight, is_plain, only_strings

KEY = b"sparse_etrace"
UNSOUND = (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError)


def read(source: Source, options: Options) -> Graph:
    """Read the columns that are wanted; without the metadata of `write`, the nodes are the sorted ids."""
    options.refuse("Parquet has no separator", "separator")
    chosen, table, mark = table_of(source, partial(choose, options=options))
    return graph_of(source, options, chosen, table, None if mark is None else nodes_of(source, mark))


def table_of(source: Source, choose: Callable[[pa.Schema], Wanted]) -> tuple[Wanted, pa.Table, bytes | None]:
    """Return what was chosen of the columns, these, and what `write` said of the nodes."""
    try:
        with pq.ParquetFile(source.path, page_checksum_verification=True) as file:
            chosen = choose(file.schema_arrow)
            return chosen, _table(source, file, chosen.names), (file.metadata.metadata or {}).get(KEY)
    except UNSOUND as error:
        raise ValueError(f"expected a sound Parquet file, got one that does not read ({error}). {AGAIN}") from error


def write(target: BufferedIOBase, graph: Graph) -> None:
    """Write a graph. Labels that are all integers or all strings stand in the columns, of others the positions."""
    pre, post = host_ends(graph)
    only_strings("Parquet", graph.edge_attrs)
    for name in graph.edge_attrs:
        if name in ("pre", "post", "weight"):
            raise ValueError(
                f"graph: expected edge attributes with other names than the columns of Parquet, got {name!r}. "
                "Rename it."
            )
    sides = [(graph.pre_nodes, pre), (graph.post_nodes, post)]
    columns = {name: _labelled(graph, *side) for name, side in zip(("pre", "post"), sides, strict=True)}
    columns["weight"] = pa.array(host_weight(graph))
    for name, values in graph.edge_attrs.items():
        columns[name] = _arrow(name, values)
    table = pa.table(columns)
    with pq.ParquetWriter(target, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        # Of the file, not of the schema, of which Parquet keeps a second copy.
        facts = bytes_of(graph, labelled=np.array(_is_labelled(graph)))
        writer.add_key_value_metadata({KEY: base64.b64encode(facts)})


def _table(source: Source, file: pq.ParquetFile, names: list[str]) -> pa.Table:
    """Return columns of a file, whose sizes are checked before they are read."""
    rows = check_groups(source, file)
    table = file.read(names)
    table.validate(full=True)
    if table.num_rows != rows:
        raise ValueError(f"expected {rows} rows, as it claims, got {table.num_rows}. {AGAIN}")
    return table


def check_groups(source: Source, file: pq.ParquetFile) -> int:
    """Raise for groups of rows with other sizes than the file may have; their rows in all."""
    facts = file.metadata
    groups = [facts.row_group(k) for k in range(facts.num_row_groups)]
    # Of groups: the facts of a damaged column abort the process in pyarrow.
    sizes = [group.total_byte_size for group in groups]
    rows = sum(group.num_rows for group in groups)
    if min([rows, facts.num_rows, *sizes]) < 0 or rows != facts.num_rows:
        raise ValueError(f"expected {rows} rows, as its groups claim, got {facts.num_rows}. {AGAIN}")
    source.check_size(max(sum(sizes), 8 * rows * max(facts.num_columns, 1)))
    return rows


def nodes_of(source: Source, mark: bytes) -> Nodes:
    """Return what `write` said of the nodes."""
    try:
        arrays = arrays_of(source, base64.b64decode(mark, validate=True))
    except binascii.Error as error:
        raise ValueError(
            f"expected a sound description of the nodes, got one that does not read ({error}). {AGAIN}"
        ) from error
    shape, labels, attrs, _ = unpack(source, arrays)
    noted = arrays.get("labelled")
    if noted is None or noted.shape or noted.dtype != bool or (noted and labels is None):
        raise ValueError(
            "expected a note whether its columns hold labels or positions, got none. Write it anew with `write_graph`."
        )
    sides = (tuple(labels[: shape[0]]), tuple(labels[len(labels) - shape[1] :])) if noted else None
    return Nodes(shape, labels, attrs, sides)


def _labelled(graph: Graph, labels: Sequence[Hashable], positions: np.ndarray) -> pa.Array:
    """Return a column of labels, strings through a dictionary; positions where labels are no plain ids."""
    if not _is_labelled(graph):
        return pa.array(positions)
    if isinstance(graph.nodes[0], int):
        return pa.array(plain_ids(labels)[positions] if len(labels) else np.zeros(0, np.int64))
    return pa.DictionaryArray.from_arrays(pa.array(positions), pa.array(labels, pa.string()))


def _is_labelled(graph: Graph) -> bool:
    """Whether Parquet has a type for all labels, so that they stand in the columns."""
    labels = as_nodes(graph.nodes)
    if labels is None:
        return False
    kinds = {type(label) for label in labels}
    if kinds == {int}:
        return isinstance(plain_ids(labels), np.ndarray)
    return kinds == {str} and not any("\ud800" <= letter <= "\udfff" for label in labels for letter in str(label))


def _arrow(name: str, values: np.ndarray) -> pa.Array:
    text = text_cells(values)
    if text is None and not is_plain(values):
        raise ValueError(
            f"graph: expected edge attributes of a type that Parquet holds, got {name!r} of type "
            f"{values.dtype} and shape {values.shape}. Write .npz."
        )
    try:
        return pa.array(values) if text is None else pa.array(text, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"graph: expected characters that Parquet holds, got others in edge attribute {name!r}. Write .npz."
        ) from error
