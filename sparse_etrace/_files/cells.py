"""Cells of text tables as numbers or strings, and back."""

import re
from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._graph.columns import text_cells, text_column
from .._graph.labels import plain_ids
from .safe import is_plain

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,99}").fullmatch
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.I | re.A).fullmatch
# A number that is written as such: "01" is text.
PROPER = re.compile(
    r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.I | re.A
).fullmatch


def integers(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Return cells as integers of this type if all are such, written plainly: "01" and "0x1" are not."""
    if column.type == kind:
        return column
    try:
        found = pc.cast(column, kind)
    except pa.ArrowInvalid:
        return None
    odd = pc.any(pc.and_(pc.starts_with(column, "0"), pc.greater(pc.binary_length(column), 1))).as_py()
    if not odd and (pc.min(found).as_py() or 0) <= 0:
        odd = pc.any(pc.starts_with(column, "-0")).as_py()
    return None if odd else found


def ids(*columns: Sequence[str]) -> list[np.ndarray | list]:
    """Return columns of ids: all as integers if all are, else all as strings; floats are whole and lost no digit."""
    if all(INTEGER(cell) for column in columns for cell in column):
        return [plain_ids([int(cell) for cell in column]) for column in columns]
    if all(PROPER(cell) for column in columns for cell in column):
        return [plain_ids([_whole_id(cell) for cell in column]) for column in columns]
    for column in columns:
        if "" in column:
            raise ValueError(
                f"expected an id in each row, got none in data row {list(column).index('') + 1}. Fill it or drop "
                "the row."
            )
    return [list(column) for column in columns]


def _whole_id(cell: str) -> int:
    if INTEGER(cell):
        return int(cell)
    if re.search("[.e]", cell, re.I) and float(cell).is_integer() and abs(float(cell)) < 2**53:
        return int(float(cell))
    raise ValueError(
        f"expected ids that are integers or names, got {cell!r} among numbers. A float of 2**53 or more was rounded: "
        "write ids as integers, in pandas of type Int64 where some are missing."
    )


def numbers(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return cells as numbers: integers if all are, else float64."""
    found = _whole(column)
    found = floats(column) if found is None else found
    if found is None:
        refuse_cell(name, column, NUMBER, "a number")
    return found


def refuse_cell(name: str, column: pa.ChunkedArray, is_sound: Callable[[str], object], what: str) -> NoReturn:
    """Refuse a column for the first of its cells that is not sound."""
    cells = column.to_pylist()
    k = next((k for k, cell in enumerate(cells) if not is_sound(cell)), 0)
    raise ValueError(f"expected {what} as {name}, got {cells[k]!r} in data row {k + 1}. Correct it.")


def typed(column: pa.ChunkedArray) -> np.ndarray:
    """Return cells as integers, float64 or truth values if all are, else as strings."""
    found = _whole(column)
    if found is None and (found := floats(column)) is not None:
        padded = pc.any(pc.match_substring_regex(column, "^[+-]?0[0-9]")).as_py()
        found = None if padded or all(INTEGER(cell.as_py()) for cell in column) else found
    if found is not None and len(column):
        return found
    if len(column) and pc.all(pc.is_in(column, pa.array(["True", "False"]))).as_py():
        return pc.equal(column, "True").to_numpy()
    return text_column(column)


def _whole(column: pa.ChunkedArray) -> np.ndarray | None:
    found = integers(column, pa.int64())
    found = integers(column, pa.uint64()) if found is None else found
    return None if found is None else found.to_numpy()


def floats(column: pa.ChunkedArray) -> np.ndarray | None:
    try:
        return pc.cast(column, pa.float64(), safe=False).to_numpy()
    except pa.ArrowInvalid:
        return None


def words(column: pa.ChunkedArray) -> list[str]:
    """Return cells as they are written."""
    return column.cast(pa.string()).to_pylist()


def text_of(what: str, holders: str, values: np.ndarray) -> list[str]:
    """Return a column as cells that `typed` reads to the same values; refuse it if there are none."""
    plain, text = values.tolist(), text_cells(values)
    if text is None and not is_plain(values):
        raise ValueError(
            f"graph: expected {what} of a type that a text table holds, got {values.dtype} of shape "
            f"{values.shape}. Write {holders}."
        )
    cells = [repr(value) for value in plain] if text is None else text
    back = typed(column_of(cells)).tolist()
    same = [a == b or (a != a and b != b) for a, b in zip(plain, back, strict=True)]
    if not all(same) or (plain and type(plain[0]) is not type(back[0])):
        raise ValueError(
            f"graph: expected {what} that a text table gives back, got text that reads as numbers, "
            f"{cells[0]!r}. Write {holders}."
        )
    return cells


def column_of(cells: Sequence[str]) -> pa.ChunkedArray:
    """Return cells as a column; those that are no Unicode are refused."""
    for cell in cells:
        if "\0" in cell or any("\ud800" <= letter <= "\udfff" for letter in cell):
            raise ValueError(f"graph: expected characters that a text table holds, got {cell!r}. Write .npz.")
    return pa.chunked_array([cells], pa.string())
