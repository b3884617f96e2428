"""Text tables, split by pyarrow: comments, separator, cells; and columns of cells as numbers or strings."""

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NotRequired, TypedDict

import pyarrow as pa
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

from .._graph.sorting import thread_count
from .cells import floats, integers
from .safe import Pieces, Source, damaged, from_json, is_shape, to_json

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", " ": "space"}
PLAIN = re.compile(r"[^\W_#%][\w.+-]*|-?[0-9.][\w.+-]*", re.A).fullmatch
MARK = "# sparse_etrace "
NO_ROW = re.compile(rb"(?:[#%][^\r\n]*|[ \t]*)(?:[\r\n]+|\Z)").match
HEADER = re.compile(rb"[^\r\n]*")
COMMENT = re.compile(rb"[\r\n][#%][^\r\n]*")
HEAD, PIECE, BLOCK = 1 << 20, 1 << 20, 1 << 24
BYTES_PER_COLUMN = 10_000


class Mark(TypedDict):
    """What a comment of `write_graph` says."""

    shape: list[int]
    labels: NotRequired[Sequence[Hashable]]


@dataclass(frozen=True)
class Table:
    """The first row, the columns below it, what a comment of `write_graph` said, and other comments in rows.

    A column is of int64 where all its cells are integers that are written plainly, else of text.
    """

    first: list[str]
    below: list[pa.ChunkedArray]
    mark: Mark | None
    separator: str
    comments: int

    @cached_property
    def columns(self) -> list[pa.ChunkedArray]:
        """The columns with the first row in them."""
        first = _plain_cells(pa.chunked_array([[cell]], pa.string()) for cell in self.first)
        return [_joined([cell, column]) for cell, column in zip(first, self.below, strict=True)]

    @property
    def notes(self) -> list[str]:
        """What was taken for no row."""
        said = (
            f"took {self.comments} lines after the first row for comments, as they begin with # or % (put ids that "
            "begin so in quotes)"
        )
        return [said] if self.comments else []

    @cached_property
    def are_numbers(self) -> list[bool]:
        """Whether all cells below the first row are numbers, for each column."""
        return [floats(column) is not None for column in self.below]


def width_of(names: Sequence[str], is_empty: Callable[[int], bool]) -> int:
    """Return how many columns there are but for the last ones without a name and a cell."""
    width = len(names)
    while width > 1 and names[width - 1] == "" and is_empty(width - 1):
        width -= 1
    return width


class _Plain:
    """The pieces of a text; refuses what pyarrow takes otherwise than `_table`."""

    def __init__(self, pieces: Pieces):
        self.pieces, self.head = pieces, pieces.read(HEAD)

    def rows(self, size: int) -> Iterator[bytes]:
        """Whole rows, some at a time."""
        rest, piece = b"", self.head
        while piece:
            if len(rest) > BLOCK or any(odd in piece for odd in (b"\0", b'"', b" ", b"#", b"%")):
                raise ValueError("expected a plain table, got another.")
            end = max(piece.rfind(b"\n"), piece.rfind(b"\r")) + 1
            if end:
                yield rest + piece[:end]
                rest = b""
            rest, piece = rest + piece[end:], self.pieces.read(size)
        if rest:
            yield rest + b"\n"


def read_table(source: Source, separator: str | None, check: Callable[[list[str]], None]) -> Table:
    """Split a text in UTF-8 into columns; the separator is the one in the first row unless given.

    `check` may refuse the first row before the others are read.
    """
    with source.unpacked() as pieces:
        text = _Plain(pieces)
        found = _first_row(text.head, separator)
        if found is not None:
            mark, start, separator, names = found
            check(names)
            source.check_size(BYTES_PER_COLUMN * len(names))
            text.head = text.head[start:]
            if all(map(PLAIN, names)):
                text.head = HEADER.sub(lambda row: row[0].replace(b'"', b""), text.head, 1)
            # While pyarrow splits one piece, the next one is unpacked. What is wrong is said below; labels are text.
            if mark is None or "labels" not in mark:
                with suppress(ValueError):
                    return Table(*_split_plain(text, separator, len(names)), mark, separator, 0)
    data = source.read()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8, got other bytes ({error}). Save it as UTF-8.") from error
    if b"\0" in data:
        damaged("text", f"a NUL at byte {data.index(0)}")
    return _table(source, data, separator)


def _first_row(data: bytes, separator: str | None) -> tuple[Mark | None, int, str, list[str]] | None:
    """Return mark, place, separator and cells of the first row at a file's head, None where it does not end there."""
    try:
        mark, start = _begin(data)
        found = separator or _separator(data, start)
        return (mark, start, found, _cells(data, start, found)) if re.search(b"[\r\n]", data[start:]) else None
    except ValueError:
        return None


def _table(source: Source, data: bytes, separator: str | None) -> Table:
    mark, start = _begin(data)
    data, start, comments = _without_comments(data, start)
    separator = separator or _separator(data, start)
    data, start = _trimmed(data, start, separator)
    width = len(_cells(data, start, separator))
    source.check_size(BYTES_PER_COLUMN * width)
    # Without threads, pyarrow knows the number of a row that it refuses.
    for threads in (True, False):
        try:
            columns = _split(pa.py_buffer(data).slice(start), separator, width, BLOCK, b'"' in data, threads)
            first, below = [column[0].as_py() for column in columns], [column.slice(1) for column in columns]
            return Table(first, below, mark, separator, comments)
        except pa.ArrowInvalid as error:
            said = error
    raise ValueError(
        f"expected {SEPARATORS[separator]}s between the cells, got rows that do not split ({said}). "
        "Correct them, or pass `separator`."
    )


def _begin(data: bytes) -> tuple[Mark | None, int]:
    """Return what a comment of `write_graph` says, and where the first row begins."""
    mark, start = None, 3 if data.startswith(b"\xef\xbb\xbf") else 0
    while start < len(data) and (found := NO_ROW(data, start)):
        if mark is None and found[0].startswith(MARK.encode()):
            mark = from_json(found[0][len(MARK) :], _is_mark)
        start = found.end()
    if start == len(data):
        raise ValueError("expected rows, got none. Write one for each synapse.")
    return mark, start


def _without_comments(data: bytes, start: int) -> tuple[bytes, int, int]:
    """Return the rows without lines of comments, where they begin, and how many there were; those in quotes stay."""
    if data.find(b"#", start) < 0 and data.find(b"%", start) < 0:
        return data, start, 0
    kept, last, seen, quoted = [], start, start, False
    for found in COMMENT.finditer(data, start):
        quoted ^= data.count(b'"', seen, found.start()) % 2 == 1
        seen = found.start()
        if not quoted:
            kept.append(data[last:seen])
            last = seen = found.end()
    return (b"".join([*kept, data[last:]]), 0, len(kept)) if kept else (data, start, 0)


def _trimmed(data: bytes, start: int, separator: str) -> tuple[bytes, int]:
    """Return the rows without spaces around their cells, unless these are in quotes, and where they begin."""
    at = separator.encode()
    around = [b" \n", b" \r", b"\n ", b" " + at] + [at + b" "] * (at != b" ")
    if b" " not in data or not (
        data[start : start + 1] == b" " or data.endswith(b" ") or any(x in data for x in around)
    ):
        return data, start
    end = rb"[\r\n]|\Z" + (b"|" + at) * (at != b" ")
    # A quoted cell is taken whole, so that nothing in it is found by the other half.
    spaces = re.compile(rb' +(?=%b)|(^|[\r\n%b]) *("[^"]*(?:""[^"]*)*")?' % (end, at))
    return spaces.sub(lambda found: (found[1] or b"") + (found[2] or b""), data[start:]), 0


def _cells(data: bytes, start: int, separator: str) -> list[str]:
    """Return the cells of the row that begins here."""
    with io.TextIOWrapper(io.BytesIO(data), "utf-8", "replace", newline="") as text:
        text.seek(start)
        try:
            return next(csv.reader(text, delimiter=separator, skipinitialspace=True))
        except csv.Error as error:
            raise ValueError(
                f"expected {SEPARATORS[separator]}s between the cells, got rows that do not split ({error}). "
                "Correct them, or pass `separator`."
            ) from error


def _separator(data: bytes, start: int) -> str:
    found = [separator for separator in ",\t;" if len(_cells(data, start, separator)) > 1]
    if not found and len(_cells(data, start, " ")) > 1:
        return " "
    if len(found) != 1:
        raise ValueError(
            "can be split at " + " as well as at ".join(f"{SEPARATORS[s]}s" for s in found) + "; pass `separator`"
            if found
            else "has one column, or no separator that is a comma, tab, semicolon or space; it needs two columns"
        )
    return found[0]


def _split_plain(text: _Plain, separator: str, width: int) -> tuple[list[str], list[pa.ChunkedArray]]:
    """Return the first row, and the columns below it; some rows are split while the next ones are unpacked."""
    pieces = text.rows(min(max(PIECE, width << 16), BLOCK))
    head = _split(first := next(pieces), separator, width, len(first) + 1)

    def cells(rows: bytes) -> list[pa.ChunkedArray]:
        return _plain_cells(_split(rows, separator, width, len(rows) + 1))

    parts, waiting = [_plain_cells(column.slice(1) for column in head)], deque[Future]()
    with ThreadPoolExecutor(cores := thread_count()) as threads:
        for piece in pieces:
            waiting.append(threads.submit(cells, piece))
            if len(waiting) > 2 * cores:  # what is unpacked must not pile up
                parts.append(waiting.popleft().result())
        parts += [one.result() for one in waiting]
    return [column[0].as_py() for column in head], [_joined(chunks) for chunks in zip(*parts, strict=True)]


def _plain_cells(columns: Iterable[pa.ChunkedArray]) -> list[pa.ChunkedArray]:
    """Return columns of text as integers where they are such."""
    return [cells if (found := integers(cells, pa.int64())) is None else found for cells in columns]


def _joined(parts: Iterable[pa.ChunkedArray]) -> pa.ChunkedArray:
    """Return one column of parts that are integers or text."""
    parts = [part for part in parts if len(part)]
    kind = pa.int64() if parts and all(part.type == pa.int64() for part in parts) else pa.string()
    return pa.chunked_array([chunk for part in parts for chunk in part.cast(kind).chunks], kind)


def _split(
    rows: bytes | pa.Buffer, separator: str, width: int, block: int, quoted: bool = False, threads: bool = False
) -> list[pa.ChunkedArray]:
    """Return all cells as text, in columns."""
    table = read_csv(
        pa.BufferReader(rows),
        ReadOptions(use_threads=threads, block_size=block, autogenerate_column_names=True),
        ParseOptions(delimiter=separator, newlines_in_values=quoted),
        ConvertOptions(column_types={f"f{k}": pa.string() for k in range(width)}),
    )
    if table.num_columns != width:
        raise pa.ArrowInvalid(f"Expected {width} columns, got {table.num_columns}")
    return table.columns


def write_rows(rows: Iterable[Sequence[str]], separator: str) -> str:
    """Return rows as text; whatever is no plain word or number is in quotes."""
    lines = []
    for row in rows:
        for cell in row:
            if len(cell) > csv.field_size_limit():
                raise ValueError(
                    f"graph: expected strings of at most {csv.field_size_limit()} characters in a text table, got "
                    f"{len(cell)}. Write .npz."
                )
        lines.append(separator.join(x if PLAIN(x) else '"' + x.replace('"', '""') + '"' for x in row) + "\n")
    return "".join(lines)


def write_mark(mark: Mark) -> str:
    """Return the comment that says what rows alone do not."""
    return MARK + to_json(mark) + "\n"


def _is_mark(value: object) -> bool:
    if (
        not isinstance(value, dict)
        or not {"shape"} <= set(value) <= {"shape", "labels"}
        or not is_shape(value["shape"])
    ):
        return False
    labels = value.get("labels", [])
    return isinstance(labels, list) and ({type(x) for x in labels} <= {int} or {type(x) for x in labels} <= {str})
