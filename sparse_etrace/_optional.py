"""Packages that come with an extra."""

from importlib import import_module
from typing import Any


def optional(name: str, what: str, extra: str) -> Any:
    """The package of this name.

    Raises:
        ImportError: it is not installed; `extra` brings it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name}: expected for {what}, got none. Install it: pip install 'sparse-etrace[{extra}]'."
        ) from error
