"""Feather, Arrow's own file format: one synapse a row. It is read, not written; Parquet holds more in less."""

import struct
from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa
from pyarrow import ipc

from .._graph.graph import Graph
from .arrow import Wanted, choose, graph_of
from .safe import UNSOUND, Options, Source, damaged, sound

MAGIC = b"ARROW1"


def read(source: Source, options: Options) -> Graph:
    """Read the columns that are wanted; the nodes are the sorted ids."""
    options.refuse("Feather has no separator", "separator")
    return graph_of(source, options, *table_of(source, partial(choose, options=options)))


def table_of(source: Source, choose: Callable[[pa.Schema], Wanted]) -> tuple[Wanted, pa.Table]:
    """Return what was chosen of the columns, and these."""
    with sound("a sound Feather file", *UNSOUND, EOFError):
        with pa.OSFile(str(source.path)) as file:
            if file.read(len(MAGIC)) != MAGIC:
                damaged("a Feather file of version 2", "one that begins otherwise")
            file.seek(max(0, file.size() - len(MAGIC)))
            if file.read(len(MAGIC)) != MAGIC:
                damaged("a whole Feather file", "one that ends otherwise")
            schema = ipc.open_file(file).schema
            chosen = choose(schema)
            file.seek(0)
            data = file.read_buffer()
        source.check_size(sum(map(_unpacked, _messages(data))))
        wanted = [schema.get_field_index(name) for name in chosen.names]
        with ipc.open_file(data, options=ipc.IpcReadOptions(included_fields=wanted)) as batches:
            table = batches.read_all()
        table.validate(full=True)
    return chosen, table


def _messages(data: pa.Buffer) -> Iterator[ipc.Message]:
    """Dictionaries and batches of rows, where the end of the file says that they are: some writers begin otherwise."""
    end = data.size - len(MAGIC) - 4
    facts = _part(data, end - _number("i", data, end), end)
    for kind in (2, 3):
        blocks = _field(facts, _number("I", facts, 0), kind)
        for at in range(blocks + 4, blocks + 4 + 24 * _number("I", facts, blocks), 24) if blocks else ():
            start, size = _number("q", facts, at), _number("i", facts, at + 8) + _number("q", facts, at + 16)
            yield ipc.read_message(_part(data, start, start + size))


def _part(data: pa.Buffer, start: int, end: int) -> pa.Buffer:
    if not 0 <= start < end <= data.size:
        damaged(f"parts within its {data.size} bytes", f"one from {start} to {end}")
    return data.slice(start, end - start)


def _unpacked(message: ipc.Message) -> int:
    """Return how many bytes a message holds when unpacked: each packed buffer begins with its number, or -1."""
    facts, body = message.metadata, message.body
    if message.type not in ("record batch", "dictionary"):
        return 0
    batch = _field(facts, _number("I", facts, 0), 2)
    if message.type == "dictionary":
        batch = _field(facts, batch, 1)
    if not _field(facts, batch, 3):
        return body.size
    buffers = _field(facts, batch, 2)
    size = 0
    for at in range(buffers + 4, buffers + 4 + 16 * _number("I", facts, buffers), 16):
        start, packed = _number("q", facts, at), _number("q", facts, at + 8)
        unpacked = _number("q", body, start) if packed else 0
        size += packed if unpacked < 0 else unpacked
    return size


def _field(facts: pa.Buffer, table: int, k: int) -> int:
    """Return where the table or list is that field k of a table of a flatbuffer points to; 0 where there is none."""
    names = table - _number("i", facts, table)
    offset = _number("H", facts, names + 4 + 2 * k) if 4 + 2 * k < _number("H", facts, names) else 0
    return offset and table + offset + _number("I", facts, table + offset)


def _number(kind: str, data: pa.Buffer, at: int) -> int:
    if not 0 <= at <= data.size - struct.calcsize(kind):
        damaged(f"offsets within its {data.size} bytes", str(at))
    return struct.unpack_from("<" + kind, data, at)[0]
