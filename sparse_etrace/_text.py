"""Tables: as text in a terminal, and as data frames."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ._optional import optional

if TYPE_CHECKING:
    import pandas

DataFrame: TypeAlias = "pandas.DataFrame"

WIDTH = 120
NARROW = 16
NUMBER = re.compile(r"[-+]?\.?\d|[-?]$")


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as text, numbers to the right; the widest columns of words are wrapped at 120 characters in all."""
    rows = [head, *rows]
    numbers = [all(NUMBER.match(row[i]) for row in rows[1:]) for i in range(len(head))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    excess = sum(widths) + 2 * (len(head) - 1) - WIDTH
    for i in sorted((i for i, n in enumerate(numbers) if not n), key=lambda i: -widths[i]):
        if excess > 0:
            room = max(widths[i] - excess, NARROW)
            wrapped = [textwrap.wrap(row[i], room, break_long_words=False, break_on_hyphens=False) for row in rows]
            rows = [[*row[:i], "\n".join(cell), *row[i + 1 :]] for row, cell in zip(rows, wrapped, strict=True)]
            excess -= widths[i]
            widths[i] = max((len(part) for cell in wrapped for part in cell), default=0)
            excess += widths[i]
    lines = []
    for row in rows:
        cells = [cell.split("\n") for cell in row]
        for k in range(max(map(len, cells))):
            parts = [cell[k] if k < len(cell) else "" for cell in cells]
            aligned = (p.rjust(w) if n else p.ljust(w) for p, w, n in zip(parts, widths, numbers, strict=True))
            lines.append("  ".join(aligned).rstrip())
    height = max(len(cell.split("\n")) for cell in rows[0])
    return "\n".join([*lines[:height], "-" * max(map(len, lines)), *lines[height:]])


def shown(value: object) -> str:
    """Return a value as text on one line, whatever moves a terminal's cursor or colours it escaped."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def in_bytes(count: int) -> str:
    """Return a number of bytes in three digits, with its unit: 9,892 is 9.89 kB."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:#.3g}".rstrip(".") + f" {units[0]}" if units[0] != "B" else f"{count} B"


def data_frame(columns: Mapping[str, Sequence | np.ndarray]) -> DataFrame:
    """Return columns of one length as a pandas data frame.

    Raises:
        ImportError: pandas, which is in the extra `tables`, is not installed.
    """
    return optional("pandas", "data frames", "tables").DataFrame(dict(columns))
