"""The compiled libraries of the package."""

import ctypes
import importlib.metadata
from pathlib import Path


def path_of(name: str) -> Path:
    """Where a library lies: in this folder, or with an editable install among the installed packages."""
    beside = Path(__file__).parent / name
    if beside.is_file():
        return beside
    try:
        installed = importlib.metadata.distribution("sparse-etrace")
    except importlib.metadata.PackageNotFoundError:
        return beside
    return Path(str(installed.locate_file(f"sparse_etrace/{name}")))


def load(name: str, interface: str, expected: int) -> tuple[ctypes.CDLL | None, str]:
    """A library, by its path in the package, whose function `interface` says what it takes; None, and why not."""
    path = path_of(name)
    if not path.is_file():
        return None, "the package was installed without a C++ compiler"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path.name} does not load: {error}"
    if library[interface]() != expected:
        return None, f"{path.name} belongs to another version of the package"
    return library, ""
