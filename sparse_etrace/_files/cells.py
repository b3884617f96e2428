"""Text tables: comments, separator, rows; and columns of cells as numbers or strings."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._columns import strings, text_cells
from .._labels import plain_ids
from .base import from_json, is_plain, is_shape, to_json

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", " ": "space"}
MARK = "# sparse_etrace "
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}").fullmatch
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.I | re.A).fullmatch
# A number that is written as such: "01" is text.
PROPER = re.compile(
    r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.I | re.A
).fullmatch
PLAIN = re.compile(r"[^\W_#%][\w.+-]*|-?[0-9.][\w.+-]*", re.A).fullmatch


@dataclass(frozen=True)
class Table:
    """The rows of a text table, all of one width, what a comment of `write_graph` said, and other comments in rows."""

    rows: list[list[str]]
    mark: dict[str, Any] | None
    separator: str
    comments: int


def read_table(text: str, separator: str | None) -> Table:
    """Split a text into rows; the separator is found unless given."""
    mark, lines, comments = None, [], 0
    for line, is_comment in _lines(text):
        if not is_comment:
            lines.append(line)
        elif line.startswith(MARK) and mark is None:
            mark = from_json(line[len(MARK) :], _is_mark)
        elif lines:
            comments += 1
    if not lines:
        raise ValueError("holds no row")
    if separator is None:
        separator = _separator(lines)
    rows = list(_rows(_trimmed(lines, separator), separator))
    for k, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"has {len(row)} cells in row {k + 1}, but {len(rows[0])} in row 1 ({SEPARATORS[separator]}s)"
            )
    return Table(rows, mark, separator, comments)


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Lines that are not empty, and whether each is a comment."""
    quoted = False
    for line in io.StringIO(text, newline=""):
        if not quoted and line.startswith(("#", "%")):
            yield line, True
        elif quoted or line.strip():
            quoted ^= line.count('"') % 2 == 1
            yield line, False


def _trimmed(lines: Sequence[str], separator: str) -> Iterable[str]:
    """Lines without the spaces that end a cell, unless they are in quotes; those that begin one, csv leaves out."""
    ends = (f" {separator}", " \r", " \n")
    if separator == " " or not (lines[-1].endswith(" ") or any(end in line for line in lines for end in ends)):
        return lines
    # A quoted cell is taken whole, so that nothing in it is found by the other half.
    cells = re.compile(rf'((?:^|(?<=\r)|{separator}) *"[^"]*(?:""[^"]*)*")|(?<! ) +(?={separator}|[\r\n]|\Z)', re.M)
    return io.StringIO(cells.sub(lambda found: found[1] or "", "".join(lines)), newline="")


def _rows(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    try:
        for row in csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True):
            if row:
                yield row[:-1] if separator == " " and row[-1] == "" else row
    except csv.Error as error:
        raise ValueError(f"cannot be split at {SEPARATORS[separator]}s: {error}") from error


def _separator(lines: Sequence[str]) -> str:
    even: list[str] = []
    uneven: list[str] = []
    for separator in SEPARATORS:
        if separator == " " and uneven + even:
            break
        try:
            widths = {len(row) for row in itertools.islice(_rows(_trimmed(lines, separator), separator), 50)}
        except ValueError:
            continue
        if max(widths) > 1:
            (even if len(widths) == 1 else uneven).append(separator)
    found = even or uneven
    if len(found) != 1:
        raise ValueError(
            "can be split at " + " as well as at ".join(f"{SEPARATORS[s]}s" for s in found) + "; pass `separator`"
            if found
            else "has one column, or no separator that is a comma, tab, semicolon or space; it needs two columns"
        )
    return found[0]


def ids(*columns: Sequence[str]) -> list[Any]:
    """Return columns of ids: all as integers if all are, else all as strings; floats are refused."""
    if all(INTEGER(cell) for column in columns for cell in column):
        return [plain_ids([int(cell) for cell in column]) for column in columns]
    if all(PROPER(cell) for column in columns for cell in column):
        odd = next(cell for column in columns for cell in column if not INTEGER(cell))
        raise ValueError(f"has the id {odd!r} among numbers; ids are integers written plainly, or names")
    for column in columns:
        for k, cell in enumerate(column):
            if not cell:
                raise ValueError(f"has an empty id in data row {k + 1}; fill it or drop the row")
    return [list(column) for column in columns]


def numbers(name: str, cells: Sequence[str]) -> np.ndarray:
    """Return cells as numbers: integers if all are, else float64."""
    for k, cell in enumerate(cells):
        if not NUMBER(cell):
            raise ValueError(f"has the {name} {cell!r} in data row {k + 1}, which is no number")
    whole = plain_ids([int(cell) for cell in cells]) if cells and all(map(INTEGER, cells)) else None
    return whole if isinstance(whole, np.ndarray) else np.array([float(cell) for cell in cells], np.float64)


def column(cells: Sequence[str]) -> np.ndarray:
    """Return cells as integers, float64 or truth values if all are, else as strings."""
    if cells and all(map(INTEGER, cells)):
        whole = plain_ids([int(cell) for cell in cells])
        return whole if isinstance(whole, np.ndarray) else strings(cells)
    if cells and all(map(PROPER, cells)):
        return np.array([float(cell) for cell in cells], np.float64)
    if cells and set(cells) <= {"True", "False"}:
        return np.array([cell == "True" for cell in cells])
    return strings(cells)


def text_of(what: str, holders: str, values: np.ndarray) -> list[str]:
    """Return a column as cells that `column` reads to the same values; refuse it if there are none."""
    plain, text = values.tolist(), text_cells(values)
    if text is None and not is_plain(values):
        raise ValueError(
            f"graph: {what} has type {values.dtype} and shape {values.shape}, which a text table loses; write {holders}"
        )
    cells = [repr(value) for value in plain] if text is None else text
    back = column(cells).tolist()
    same = [a == b or (a != a and b != b) for a, b in zip(plain, back, strict=True)]
    if not all(same) or (plain and type(plain[0]) is not type(back[0])):
        raise ValueError(
            f"graph: {what} holds text that reads as numbers, {cells[0]!r}; a text table loses that; write {holders}"
        )
    return cells


def write_rows(rows: Iterable[Sequence[str]], separator: str) -> str:
    """Return rows as text; whatever is no plain word or number is in quotes."""
    lines = []
    for row in rows:
        for cell in row:
            if len(cell) > csv.field_size_limit():
                raise ValueError(f"graph: a string of {len(cell)} characters is too long for a text table; write .npz")
            if "\0" in cell or any("\ud800" <= letter <= "\udfff" for letter in cell):
                raise ValueError(f"graph: {cell!r} has characters that a text table loses; write .npz")
        lines.append(separator.join(x if PLAIN(x) else '"' + x.replace('"', '""') + '"' for x in row) + "\n")
    return "".join(lines)


def write_mark(mark: dict[str, Any]) -> str:
    """Return the comment that says what rows alone do not."""
    return MARK + to_json(mark) + "\n"


def _is_mark(value: Any) -> bool:
    if (
        not isinstance(value, dict)
        or not {"shape"} <= set(value) <= {"shape", "labels"}
        or not is_shape(value["shape"])
    ):
        return False
    labels = value.get("labels", [])
    return isinstance(labels, list) and ({type(x) for x in labels} <= {int} or {type(x) for x in labels} <= {str})
