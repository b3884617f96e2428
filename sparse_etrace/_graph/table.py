"""Labels and attributes of a graph, on the host."""

import zlib
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from .._types import Column
from .columns import plain_column


class Table:
    """Labels and attributes, compared by value. Hashed once; tables that were found equal share a key."""

    def __init__(self, nodes: Sequence[Hashable], index: Mapping | None, node_attrs: dict, edge_attrs: dict):
        self.nodes, self.index = nodes, index
        self.node_attrs, self.edge_attrs = node_attrs, edge_attrs
        for column in (*node_attrs.values(), *edge_attrs.values()):
            column.flags.writeable = False
        self._hash: int | None = None
        self._key = object()

    def __reduce__(self) -> tuple:
        # Without the hash, which is another one in the next process.
        return Table, (self.nodes, self.index, self.node_attrs, self.edge_attrs)

    def __hash__(self) -> int:
        if self._hash is None:
            attrs = (self.node_attrs, self.edge_attrs)
            self._hash = hash((self.nodes, *(tuple((k, _digest(column)) for k, column in a.items()) for a in attrs)))
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        if self._key is other._key:
            return True
        if hash(self) != hash(other) or not _same_values(self.nodes, other.nodes):
            return False
        for mine, theirs in ((self.node_attrs, other.node_attrs), (self.edge_attrs, other.edge_attrs)):
            if list(mine) != list(theirs) or not all(map(_same_columns, mine.values(), theirs.values())):
                return False
        other._key = self._key
        return True


def _digest(column: np.ndarray) -> tuple[str, tuple[int, ...], int]:
    return column.dtype.str, column.shape, zlib.crc32(column.tobytes()) if column.dtype != object else 0


def _same_columns(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # Bytes, so that a NaN is itself.
    return _same_values(a.ravel().tolist(), b.ravel().tolist()) if a.dtype == object else a.tobytes() == b.tobytes()


def _same_values(a: Sequence, b: Sequence) -> bool:
    if isinstance(a, range) or isinstance(b, range):
        return a == b
    try:
        return len(a) == len(b) and all(x is y or (type(x) is type(y) and bool(x == y)) for x, y in zip(a, b))
    except ValueError:  # arrays among objects
        return False


def aligned(name: str, attrs: Mapping[str, Column] | None, size: int) -> dict[str, np.ndarray]:
    """Attributes as arrays of their own, an entry for each node or synapse."""
    columns = {key: np.array(plain_column(values, f"{name}[{key!r}]")) for key, values in (attrs or {}).items()}
    for key, column in columns.items():
        if column.shape[:1] != (size,):
            raise ValueError(
                f"{name}[{key!r}]: expected {size} entries along the first axis, got shape {column.shape}."
            )
    return columns


def rows(attrs: Mapping[str, np.ndarray], size: int) -> list[dict[str, object]]:
    """Attributes as a dictionary for each node or synapse."""
    columns = {key: column.tolist() if column.ndim == 1 else list(column.copy()) for key, column in attrs.items()}
    return [{key: column[k] for key, column in columns.items()} for k in range(size)]
