"""Tables: as text in a terminal, and as data frames."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows as text, each column as wide as its widest cell; numbers to the right."""
    rows = [head, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    numbers = [all(row[i][:1].isdecimal() or row[i] in ("-", "?") for row in rows[1:]) for i in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numbers, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def data_frame(columns: Mapping[str, Any]) -> Any:
    """Return columns of one length as a pandas data frame.

    Raises:
        ImportError: pandas, which is in the extra `tables`, is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("data frames need pandas: pip install 'sparse-etrace[tables]'") from error
    return pandas.DataFrame(dict(columns))
