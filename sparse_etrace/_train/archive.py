"""Files of arrays: each written as a whole or not at all; several where processes write together."""

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .lock import beside
from .parted import agree


def part_of(path: Path, stamp: str, process: int) -> Path:
    """The file of what a process has."""
    return beside(path, f".{stamp}.{process}")


def parts_beside(path: Path) -> list[Path]:
    whole = beside(path, "")
    pattern = re.compile(re.escape(whole.name) + r"\.[0-9a-f]{8}\.\d+")
    return [file for file in whole.parent.iterdir() if pattern.fullmatch(file.name)]


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a file, which replaces the one that is there at once."""
    partial = beside(path, ".part")  # no longer a name than that of the lock, which is tried first
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, os.path.realpath(path))
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(partial.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def together(write: Callable[[], None]) -> None:
    """Write, and wait for all processes; raise where one could not."""
    error = None
    try:
        write()
    except OSError as caught:
        error = caught
    agree(error)


def arrays_of(path: Path, way_out: str) -> dict[str, np.ndarray]:
    """The arrays in a file of ours."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(part.file_size for part in archive.infolist())
            if unpacked <= size:
                file.seek(0)
                with np.load(file, allow_pickle=False) as read:
                    return {name: read[name] for name in read.files}
        except (
            ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, MemoryError, zipfile.BadZipFile,
            zlib.error,
        ) as error:  # fmt: skip
            raise ValueError(f"checkpoint: expected a whole checkpoint, got {path}. {way_out}") from error
    raise ValueError(
        f"checkpoint: expected a file that is not compressed, got {path} of {size:,} bytes that unpack "
        f"to {unpacked:,}. {way_out}"
    )
