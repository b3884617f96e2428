"""Columns of tables, of whatever library: as plain numpy, and which of them is the weight."""

import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from numbers import Integral, Real as RealNumber
from typing import Any

import numpy as np
import pyarrow as pa

GUESS = "guess"
NO_WEIGHT = ", or pass weight=None for weights of 1"
SIGNED = "excitatory x connectivity"
USUAL = frozenset(
    "weight weights w wt strength syn_weight count counts synapses synapse_count syn_count n_syn n_synapses num_syn "
    "num_synapses nsyns connectivity".split()
) | {"number of connections", SIGNED}


def weight_name(
    weight: Hashable | None, names: Iterable[Hashable], is_number: Callable[[Any], bool], guesses: list[str]
) -> Any:
    """Return which of a table's columns is the weight, the same way for files, data frames and networkx.

    Args:
        weight: the name that the caller gave; None for weights of 1; "guess" for the column "weight", else the only one
            with another usual name, else weights of 1.
        names: the columns but for the ends.
        is_number: whether the column of this name holds numbers.
        guesses: takes what was guessed beyond the name "weight".

    Returns:
        The name, or None for weights of 1.

    Raises:
        ValueError: there is no single column of the given name, or several may be meant.
    """
    names = list(names)
    if weight is None:
        return None
    if weight != GUESS:
        if names.count(weight) != 1:
            raise ValueError(f"weight: expected a single column {weight!r}, got {names}. Name another, or None.")
        return weight
    if names.count("weight") == 1:
        return "weight"
    usual = [name for name in names if isinstance(name, str) and name.lower() in USUAL]
    usual = [name for name in usual if name.lower() == SIGNED] or usual
    if len(usual) > 1:
        raise ValueError(f"weight: expected one column that may be it, got {usual}. Name one or None for weights of 1.")
    if usual:
        guesses.append(f"took {usual[0]!r} for the weight (to say so: weight={usual[0]!r})")
        return usual[0]
    numbers = [name for name in names if is_number(name)]
    if numbers:
        guesses.append(
            f"found no weight, so all weights are 1 (if one of {numbers} is the weight, pass weight=; "
            "if none is, weight=None)"
        )
    return None


def say_guesses(where: str, guesses: Sequence[str]) -> None:
    """Warn the caller's caller of what was guessed."""
    if guesses:
        warnings.warn(f"{where}: {'; '.join(guesses)}", UserWarning, stacklevel=3)


def kept_names(attrs: Iterable[Hashable] | None, names: Sequence[Hashable], argument: str = "edge_attrs") -> list[Any]:
    """Return the columns to keep as attributes: those that the caller names, or all."""
    if attrs is None:
        return list(names)
    if isinstance(attrs, str):
        raise TypeError(f"{argument}: expected a list of names, got the string {attrs!r}. Put it into a list.")
    kept = list(attrs)
    for name in kept:
        if list(names).count(name) != 1:
            raise ValueError(f"{argument}: expected a single column {name!r}, got {list(names)}. Name some of these.")
    return kept


def is_column(values: object) -> bool:
    """Whether this is a column that may lack values: of pandas, polars or Arrow, or a masked array."""
    return hasattr(values, "isna") or hasattr(values, "is_null") or isinstance(values, np.ma.MaskedArray)


def first_missing(values: Any) -> int | None:
    """Return the first row of such a column that has no value."""
    if isinstance(values, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(values)
    else:
        missing = np.asarray(values.isna() if hasattr(values, "isna") else values.is_null(), bool)
    return int(np.argmax(missing)) if missing.any() else None


def holds_numbers(values: Any) -> bool:
    """Whether a column of pandas, polars or Arrow holds integers or floats, values that miss apart."""
    if not hasattr(values, "dtype"):
        return str(values.type).startswith(("int", "uint", "halffloat", "float", "double"))
    if hasattr(values.dtype, "is_numeric"):
        return values.dtype.is_numeric()
    if values.dtype.kind != "O":
        return values.dtype.kind in "iuf"
    found = [value for value in values.tolist() if value is not None]
    return bool(found) and all(map(is_real, found))


def is_real(value: object) -> bool:
    """Whether a value is a real number, and no truth value."""
    return isinstance(value, RealNumber) and not isinstance(value, bool)


def plain_column(values: Any, what: str) -> np.ndarray:
    """Return a column of pandas, polars, Arrow or numpy, or a list, as numpy's.

    Text of any type becomes strings; objects that are all integers, all floats or all truth values become these; what
    numpy has no type for stays as objects.

    Args:
        values: the column; an array of numpy of more dimensions stays as it is.
        what: it, in an error.

    Returns:
        An array, not always a new one.

    Raises:
        ValueError: the column has a row without a value, which is no float of numpy's.
    """
    if is_column(values):
        kind = getattr(values, "dtype", None)
        is_float = isinstance(kind, np.dtype) and kind.kind == "f" and not isinstance(values, np.ma.MaskedArray)
        row = None if is_float else first_missing(values)
        if row is not None:
            raise ValueError(f"{what}: expected a value in each row, got none in row {row}. Fill it or drop the row.")
        values = values.to_numpy() if hasattr(values, "to_numpy") and not hasattr(values, "to_pylist") else values
    if isinstance(values, list | tuple) and values and all(isinstance(value, str) for value in values):
        return strings(values)
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "OT":
        return array
    cells = array.tolist()
    if array.dtype.kind == "T" or (cells and all(isinstance(value, str) for value in cells)):
        return strings(cells)
    if cells and all(isinstance(value, bool | np.bool_) for value in cells):
        return array.astype(bool)
    whole = whole_numbers(cells)
    if whole is None and cells and all(_fits_float(value) for value in cells):
        return np.array(cells, np.float64)
    return array if whole is None else whole


def whole_numbers(values: Sequence) -> np.ndarray | None:
    """Return integers in a type of 64 bits, without passing through floats; None if some are none, or too large."""
    if values and all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        if low >= -(2**63) and high < 2**63:
            return np.array(values, np.int64)
        if low >= 0 and high < 2**64:
            return np.array(values, np.uint64)
    return None


def taken(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return `values[index]`; Arrow's way takes half of numpy's time."""
    return pa.array(values).take(pa.array(index)).to_numpy() if values.dtype.kind in "if" else values[index]


def strings(cells: Sequence[str], index: np.ndarray | None = None) -> np.ndarray:
    """Return strings as numpy's, or as objects where one long string would pad all others to its length.

    Args:
        cells: the strings.
        index: the position in `cells` of each entry of the result; None for all in order.

    Returns:
        A string or object array.
    """
    index = np.arange(len(cells)) if index is None else index
    lengths = np.fromiter(map(len, cells), np.int64, len(cells))[index]
    if lengths.max(initial=0) * lengths.size > max(2**22, 8 * lengths.sum()) or any(
        cell.endswith("\0") for cell in cells
    ):
        found = np.empty(len(cells), object)
        found[:] = cells
        return found[index]
    return np.array(cells, str)[index]


def text_column(column: pa.ChunkedArray) -> np.ndarray:
    """Return Arrow's text of any of its types, with a dictionary or without, as `strings`; what is missing is empty."""
    values, index = [""], [np.zeros(0, np.int64)]
    for chunk in column.chunks:
        found = chunk if pa.types.is_dictionary(chunk.type) else chunk.cast(pa.large_string()).dictionary_encode()
        index.append(found.indices.cast(pa.int64()).fill_null(-len(values)).to_numpy() + len(values))
        values += [value or "" for value in found.dictionary.to_pylist()]
    return strings(values, np.concatenate(index))


def text_cells(column: np.ndarray) -> list[str] | None:
    """Return the strings of a column in either form of `strings`, or None if it holds something else."""
    if column.ndim != 1 or column.dtype.kind not in "UO":
        return None
    cells = column.tolist()
    return [str(cell) for cell in cells] if all(isinstance(cell, str) for cell in cells) else None


def _fits_float(value: object) -> bool:
    if isinstance(value, Integral) and not isinstance(value, bool):
        return abs(int(value)) <= 2**53
    return isinstance(value, float | np.floating)
