"""Numbers that a user gives: of Python, NumPy or jax, and what they are from then on."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import equinox as eqx
import jax
import numpy as np


def plain(value: object) -> object:
    """A number of NumPy or jax, or an array without axes, as a number of Python; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer):
        if not value.shape and any(jax.dtypes.issubdtype(value.dtype, kind) for kind in (np.number, np.bool_)):
            return value.item()
    return value


def real(name: str, value: object) -> float:
    """A number of Python.

    Raises:
        TypeError: it is something else.
    """
    return float(_checked(name, plain(value), Real, "a number"))


def whole(name: str, value: object) -> int:
    """A whole number of Python.

    Raises:
        TypeError: it is something else.
    """
    return int(_checked(name, plain(value), Integral, "a whole number"))


def positive(name: str, value: object) -> int:
    """A whole number of Python, at least 1.

    Raises:
        TypeError: it is something else.
        ValueError: it is smaller.
    """
    number = whole(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}.")
    return number


def share(name: str, value: object) -> float:
    """A number of Python, at least 0 and below 1.

    Raises:
        TypeError: it is something else.
        ValueError: it is out of range.
    """
    found = real(name, value)
    if not 0 <= found < 1:
        raise ValueError(f"{name}: expected 0 <= {name} < 1, got {found}. It is the share of the old value in the new.")
    return found


def _checked(name: str, value: object, kind: type, what: str) -> Any:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name}: expected {what}, got one that jit, vmap or grad traces. Make it outside of them.")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name}: expected {what}, got {value!r}.")
    return value


def number(read: Callable[[str, Any], Any], name: str, optional: bool = False, **default: Any) -> Any:
    """A field that holds what `read` makes of the number given, or None where it is optional."""
    return eqx.field(converter=lambda value: None if optional and value is None else read(name, value), **default)
