"""What all formats share: bounded reading, atomic writing, and labels."""

import gzip
import json
import os
import secrets
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from .._graph.build import Policies
from .._graph.columns import GUESS, kept_names
from .._graph.graph import Graph

BYTES_PER_UNIT = 24
CHUNK = 1 << 20
AGAIN = "Fetch the file again, or write it anew."
UNSOUND = (pa.ArrowException, OSError, MemoryError, OverflowError, UnicodeDecodeError)


def damaged(expected: str, got: str) -> NoReturn:
    """Refuse what a file says."""
    raise ValueError(f"expected {expected}, got {got}. {AGAIN}")


@contextmanager
def sound(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Say in words what a reader says of a file that it does not read."""
    try:
        yield
    except errors as error:
        raise ValueError(f"expected {what}, got one that does not read ({error}). {AGAIN}") from error


@dataclass(frozen=True)
class Source:
    """A file to read: where it is, and how many bytes it may unpack to."""

    path: Path
    limit: int

    @classmethod
    def of(cls, path: Path, max_bytes: int | None, what: str = "path") -> "Source":
        """Return the file that argument `what` names; by itself the limit is 50 times its size, at least 64 MiB."""
        if not path.exists():
            raise FileNotFoundError(f"{what}: expected a file, got none at {path}. Check its name.")
        if not path.is_file():
            raise ValueError(f"{what}: expected a file, got {path}, which is none. Name the file of one graph.")
        return cls(path, max(50 * path.stat().st_size, 2**26) if max_bytes is None else max_bytes)

    def read(self) -> bytes:
        """Return all bytes, unpacked where the name ends in .gz."""
        with self.unpacked() as pieces:
            return b"".join(iter(pieces.read, b""))

    @contextmanager
    def unpacked(self) -> Iterator["Pieces"]:
        """The bytes, piece by piece."""
        with open(self.path, "rb") as raw:
            if not is_packed(self.path):
                yield Pieces(raw.read, lambda size: None)
                return
            with sound("a sound gzip file", OSError):
                yield Pieces(pa.CompressedInputStream(raw, "gzip").read, self.check_size)

    def check_size(self, size: int) -> None:
        """Refuse to take more bytes than the limit."""
        if size > self.limit:
            raise ValueError(
                f"expected at most {self.limit} bytes when unpacked, got more. Pass `max_bytes` if you trust it."
            )

    def check_units(self, num_pre: int, num_post: int) -> None:
        """Refuse numbers of units whose index arrays alone would be larger than the limit."""
        if min(num_pre, num_post) < 0 or BYTES_PER_UNIT * (num_pre + num_post) > self.limit:
            raise ValueError(
                f"expected units that `max_bytes` = {self.limit} bytes can index, got {num_pre} x {num_post}. "
                "Raise it if you trust the file."
            )


@dataclass
class Pieces:
    """Bytes on their way in."""

    take: Callable[[int], bytes]
    check_size: Callable[[int], None]
    size: int = 0

    def read(self, size: int = CHUNK) -> bytes:
        """Return the next bytes, none at the end."""
        piece = self.take(size)
        self.size += len(piece)
        self.check_size(self.size)
        return piece


@dataclass(frozen=True)
class Options:
    """What the caller of `read_graph` said: columns and policies; and what was guessed beyond it."""

    pre: Hashable | None
    post: Hashable | None
    weight: Hashable | None
    separator: str | None
    edge_attrs: Iterable[Hashable] | None
    policies: Policies
    duplicates: str | None = None
    guesses: list[str] = field(default_factory=list)

    def refuse(self, what: str, *names: str) -> None:
        """Refuse arguments that mean nothing to a format."""
        for name in names:
            if getattr(self, name) != (GUESS if name == "weight" else None):
                raise ValueError(f"{name}: expected nothing, as {what}, got {getattr(self, name)!r}. Leave it out.")

    def kept(self, names: Sequence[str]) -> list[str]:
        """Return the columns to keep as edge attributes, of all but those of the ends and the weight."""
        return kept_names(self.edge_attrs, names)


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is packed by gzip."""
    return path.suffix.lower() == ".gz"


@contextmanager
def written(path: Path) -> Iterator[BufferedIOBase]:
    """A binary file that takes the place of `path` only when it is complete; packed where the name ends in .gz."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a folder for {path.name}, got none at {path.parent}. Make it first.")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(beside, "xb") as raw:
            if is_packed(path):
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                    yield packed
            else:
                yield raw
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def host_weight(graph: Graph) -> np.ndarray:
    """Return the weight as float32 or float64; narrower types widen, which loses nothing."""
    weight = np.asarray(graph.weight)
    return weight if weight.dtype in (np.float32, np.float64) else weight.astype(np.float32)


def host_ends(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Return pre and post of each synapse."""
    return np.asarray(graph.connectivity.pre), np.asarray(graph.connectivity.post)


def numbered(labels: Sequence[Hashable]) -> bool:
    """Whether labels are the positions 0, 1, 2, ..."""
    if isinstance(labels, range):
        return labels == range(len(labels))
    return all(type(x) is int and x == k for k, x in enumerate(labels))


def as_nodes(labels: Sequence[Hashable]) -> Sequence[Hashable] | None:
    """Return labels, or None where they are the positions."""
    return None if numbered(labels) else labels


def one_kind(what: str, labels: Sequence[Hashable]) -> type:
    """Return int or str, the type of all labels; others are refused."""
    kinds = {type(label) for label in labels}
    if kinds <= {int}:
        return int
    if kinds == {str}:
        return str
    odd = next(label for label in labels if type(label) is not (str if str in kinds else int))
    raise ValueError(f"graph: expected labels that are all integers or all strings in {what}, got {odd!r}. Write .npz.")


def only_strings(what: str, names: Iterable[object]) -> None:
    """Refuse attributes whose names are no strings."""
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"graph: expected attributes with strings as names in {what}, got {name!r}. Rename it.")


def to_json(value: object) -> str:
    """Return plain data as JSON in ASCII, on one line."""
    return json.dumps(value, ensure_ascii=True, allow_nan=True, separators=(",", ":"))


def from_json(text: str | bytes, check: Callable[[Any], bool]) -> Any:
    """Return what JSON says, if it has the expected form."""
    with sound("a description in JSON", ValueError, RecursionError):
        value = json.loads(text)
    if not check(value):
        damaged("a description of the form that `write_graph` gives it", "another")
    return value


def is_shape(value: object) -> bool:
    """Whether JSON gave two sizes."""
    return isinstance(value, list) and len(value) == 2 and all(type(size) is int and size >= 0 for size in value)


def is_plain(values: np.ndarray) -> bool:
    """Whether a column is of truth values, integers or floats of 64 bits at most."""
    return values.ndim == 1 and values.dtype.kind in "biuf" and values.dtype.itemsize <= 8


def refuse_attributes(what: str, holders: str, attrs: Iterable[str]) -> None:
    """Refuse to lose attributes."""
    for name in attrs:
        raise ValueError(f"graph: expected no attributes that {what} loses, got {name!r}. Write {holders}.")
