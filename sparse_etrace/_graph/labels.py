"""Labels of nodes: distinct, found again, and attributes as columns beside them."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real as RealNumber
from typing import Any, TypeVar

import numpy as np

from .._types import Column
from .columns import is_column, plain_column, whole_numbers

SCALARS = (np.number, np.bool_, np.str_, np.bytes_)
MANY = 100_000
Found = TypeVar("Found")


def as_labels(labels: Iterable) -> Sequence:
    """Return labels as a range or a tuple of Python objects; numpy's numbers and strings become Python's."""
    if isinstance(labels, range):
        return labels
    labels = plain_column(labels, "labels") if is_column(labels) else labels
    values = tuple(labels.tolist() if hasattr(labels, "tolist") else labels)
    if {type(label) for label in values} <= {int, str}:
        return values
    return tuple(label.item() if isinstance(label, SCALARS) else label for label in values)


def label_index(labels: Sequence) -> dict[Hashable, int]:
    """Return the position of each label; labels must be hashable and distinct."""
    index: dict[Hashable, int] = {}
    for k, label in enumerate(labels):
        try:
            first = index.setdefault(label, k)
        except TypeError as error:
            raise TypeError(f"labels: expected hashable ones, got {label!r} at entry {k}. Use strings.") from error
        if first != k:
            raise ValueError(
                f"labels: expected distinct ones, got {label!r} at the entries {first} and {k}. Rename one."
            )
    return index


def plain_ids(ids: Column) -> np.ndarray | list:
    """Return ids as an integer array where all are integers, without passing through floats; else as a list."""
    ids = plain_column(ids, "ids") if is_column(ids) else ids
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        return ids
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    whole = whole_numbers(values)
    return values if whole is None else whole


def common_ids(*arrays: np.ndarray | list) -> list[np.ndarray] | None:
    """Return integer arrays in one 64-bit type that holds them all, or None where there is none."""
    whole = [array for array in arrays if isinstance(array, np.ndarray)]
    if len(whole) < len(arrays):
        return None
    filled = [array for array in whole if array.size]
    low, high = min((int(a.min()) for a in filled), default=0), max((int(a.max()) for a in filled), default=0)
    if high < 2**63:
        return [array.astype(np.int64, copy=False) for array in whole]
    return [array.astype(np.uint64, copy=False) for array in whole] if low >= 0 else None


def distinct(ids: np.ndarray) -> np.ndarray:
    """Return the sorted distinct values; numpy's own way is by hashing, which takes ten times as long."""
    ids = np.sort(ids)
    return ids[np.concatenate([[True], ids[1:] != ids[:-1]])] if ids.size else ids


def beside(function: Callable[[Any], Found], columns: Sequence[Any], rows: int) -> list[Found]:
    """Return what a function that lets others run gives for each column; for many rows, all at a time."""
    if rows < MANY:
        return list(map(function, columns))
    with ThreadPoolExecutor(len(columns)) as threads:
        return list(threads.map(function, columns))


def look_up(name: str, ids: Column, labels: Sequence[Hashable]) -> np.ndarray:
    """Return the position of each id in `labels`."""
    ids, keys = plain_ids(ids), plain_ids(labels)
    same = common_ids(ids, keys)
    if same is None:
        found, index = np.zeros(len(ids), np.int64), label_index(labels)
        for k, label in enumerate(ids.tolist() if isinstance(ids, np.ndarray) else ids):
            if isinstance(label, float) and isinstance(keys, np.ndarray):
                raise TypeError(
                    f"{name}: expected integers, as the labels are, got the float {label!r} at entry {k}. "
                    "Pass integer ids."
                )
            try:
                found[k] = index[label]
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{name}: expected one of the {len(labels)} labels, got {label!r} at entry {k}."
                ) from error
        return found
    wanted, keys = same
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    bad = keys[place] != wanted
    if bad.any():
        k = int(np.argmax(bad))
        raise ValueError(f"{name}: expected one of the {len(labels)} labels, got {wanted[k]} at entry {k}.")
    return order[place]


def attribute_columns(what: str, rows: Sequence[Mapping], owners: Sequence, way: str = "") -> dict[str, np.ndarray]:
    """Return each attribute that occurs in `rows` as one array; every row needs it, with values of one kind.

    Real numbers give a number array (integers and floats may be mixed where no digit is lost), strings a string array,
    arrays of one shape a stacked array, everything else an object array. `way` is a further way out of a missing value.
    """
    columns: dict[str, np.ndarray] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = []
        for owner, row in zip(owners, rows, strict=True):
            if key not in row:
                raise ValueError(
                    f"G: expected {what} attribute {key!r} on every {what} or on none, got none "
                    f"on {owner!r}. Set it there{way}."
                )
            values.append(row[key])
            kind, first = _kind(row[key]), _kind(values[0])
            if kind != first:
                raise ValueError(
                    f"G: expected {what} attribute {key!r} of one kind, got {row[key]!r} ({kind}) on {owner!r} and "
                    f"{first} before it. Use one kind throughout."
                )
        columns[key] = _column(f"{what} attribute {key!r}", values, owners)
    return columns


def _kind(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, RealNumber):
        return "number"
    if isinstance(value, str):
        return "str"
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
        except ValueError:
            return type(value).__name__
        if array.dtype.kind in "biuf":
            return f"array of shape {array.shape}"
    return type(value).__name__


def _column(what: str, values: list, owners: Sequence) -> np.ndarray:
    kind = _kind(values[0])
    if kind == "number":
        whole = plain_ids(values)
        if isinstance(whole, np.ndarray):
            return whole
        if any(isinstance(value, (float, np.floating)) for value in values):
            for owner, value in zip(owners, values, strict=True):
                if isinstance(value, Integral) and abs(int(value)) > 2**53:
                    raise ValueError(
                        f"G: expected {what} of one type, got the integer {value} on {owner!r} among floats, which "
                        "lose its digits. Use one type throughout."
                    )
            return np.array(values, np.float64)
    elif kind == "bool" or kind == "str":
        column = np.array(values)
        if column.tolist() == values:
            return column
    elif kind.startswith("array"):
        return np.stack([np.asarray(value) for value in values])
    column = np.empty(len(values), object)
    for k, value in enumerate(values):
        column[k] = value
    return column
