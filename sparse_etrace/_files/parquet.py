"""Parquet: columns pre, post, weight and the edge attributes; shape, labels and node attributes in the metadata."""

import base64
import binascii
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedIOBase

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .._graph.columns import text_cells
from .._graph.graph import Graph
from .._graph.labels import plain_ids
from .arrow import Nodes, Wanted, choose, graph_of, in_turn
from .npz import arrays_of, bytes_of, unpack
from .safe import UNSOUND, Options, Source, as_nodes, damaged, host_ends, host_weight, is_plain, only_strings, sound

KEY = b"sparse_etrace"
BATCH = 1 << 20  # rows


def read(source: Source, options: Options) -> Graph:
    """Read the columns that are wanted; without the metadata of `write`, the nodes are the sorted ids."""
    options.refuse("Parquet has no separator", "separator")
    chosen, schema, rows, mark = _opened(source, partial(choose, options=options))
    if mark is None and rows:
        found = in_turn(chosen, schema, _batches(source, chosen.names, rows), rows)
        if found is not None:
            return graph_of(source, options, chosen, found[1], found=found[0])
    nodes = None if mark is None else nodes_of(source, mark)
    return graph_of(source, options, chosen, _table(source, chosen.names, schema, rows), nodes)


def table_of(source: Source, choose: Callable[[pa.Schema], Wanted]) -> tuple[Wanted, pa.Table]:
    """Return what was chosen of the columns, and these."""
    chosen, schema, rows, _ = _opened(source, choose)
    return chosen, _table(source, chosen.names, schema, rows)


@contextmanager
def sound_file(source: Source) -> Iterator[pq.ParquetFile]:
    """The file; what pyarrow says of it is said in words."""
    with sound("a sound Parquet file", *UNSOUND), pq.ParquetFile(source.path, page_checksum_verification=True) as file:
        yield file


def _opened(source: Source, choose: Callable[[pa.Schema], Wanted]) -> tuple[Wanted, pa.Schema, int, bytes | None]:
    """Return what was chosen, and what the file says, its sizes checked before it is read."""
    with sound_file(source) as file:
        chosen, mark = choose(file.schema_arrow), (file.metadata.metadata or {}).get(KEY)
        return chosen, file.schema_arrow, check_groups(source, file), mark


def _batches(source: Source, names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of a file, some rows at a time."""
    seen = 0
    with sound_file(source) as file:
        for batch in file.iter_batches(BATCH, columns=names):
            batch.validate(full=True)
            seen += batch.num_rows
            yield batch
    if seen != rows:
        damaged(f"{rows} rows, as it claims", str(seen))


def _table(source: Source, names: list[str], schema: pa.Schema, rows: int) -> pa.Table:
    chosen = pa.schema([schema.field(name) for name in names])
    return pa.Table.from_batches(_batches(source, names, rows), chosen)


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


def check_groups(source: Source, file: pq.ParquetFile) -> int:
    """Raise for groups of rows with other sizes than the file may have; their rows in all."""
    facts = file.metadata
    groups = [facts.row_group(k) for k in range(facts.num_row_groups)]
    # Of groups: the facts of a damaged column abort the process in pyarrow.
    sizes = [group.total_byte_size for group in groups]
    rows = sum(group.num_rows for group in groups)
    if min([rows, facts.num_rows, *sizes]) < 0 or rows != facts.num_rows:
        damaged(f"{rows} rows, as its groups claim", str(facts.num_rows))
    source.check_size(max(sum(sizes), 8 * rows * max(facts.num_columns, 1)))
    return rows


def nodes_of(source: Source, mark: bytes) -> Nodes:
    """Return what `write` said of the nodes."""
    with sound("a sound description of the nodes", binascii.Error):
        arrays = arrays_of(source, base64.b64decode(mark, validate=True))
    shape, labels, attrs, _ = unpack(source, arrays)
    noted = arrays.get("labelled")
    if noted is None or noted.shape or noted.dtype != bool or (noted and labels is None):
        damaged("a note whether its columns hold labels or positions", "none")
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
