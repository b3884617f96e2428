"""Graphs in files: `read_graph` and `write_graph`."""

import os
from collections.abc import Hashable, Iterable
from functools import partial
from pathlib import Path
from typing import SupportsIndex

import jax.numpy as jnp
from jax.typing import DTypeLike

from .._graph.build import Policies, check_dtype
from .._graph.columns import GUESS, say_guesses
from .._graph.graph import Graph, check_graph
from .._numbers import whole
from . import adjacency, edge_list, feather, graphml, matrix_market, npz, parquet
from .columns import usual_ends
from .safe import Options, Source, is_packed, written
from .text import SEPARATORS, read_table

SUFFIXES = {
    ".npz": "npz",
    ".mtx": "matrix_market",
    ".graphml": "graphml",
    ".parquet": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".csv": "table",
    ".tsv": "table",
    ".txt": "table",
}
FORMATS = ("npz", "matrix_market", "graphml", "parquet", "feather", "edge_list", "adjacency")
BINARY = {"npz": npz, "parquet": parquet, "feather": feather}
TEXT = {"matrix_market": matrix_market, "graphml": graphml}


def read_graph(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    pre: Hashable | None = None,
    post: Hashable | None = None,
    weight: Hashable | None = GUESS,
    edge_attrs: Iterable[Hashable] | None = None,
    separator: str | None = None,
    duplicates: str = "keep",
    self_loops: str = "keep",
    dtype: DTypeLike = jnp.float32,
    max_bytes: SupportsIndex | None = None,
) -> Graph:
    """Return the graph in a file, its format said by the suffix; text files may be packed, as `.csv.gz`.

    `.npz` (of `write_graph` or scipy), `.mtx` (Matrix Market; `A[i, j]` is i -> j), `.graphml`, `.parquet`, `.feather`
    or `.arrow`, and `.csv`, `.tsv` or `.txt`: an edge list, or an adjacency matrix with labels in its first row and
    column and an empty first cell. Columns are named, or found by usual names, which a warning says. Nothing is
    unpickled.

    Args:
        path: the file.
        format: "npz", "matrix_market", "graphml", "parquet", "feather", "edge_list" or "adjacency", whatever the
            suffix.
        pre, post: the columns of sending and receiving ids in an edge list, Parquet or Feather: names, or positions
            from 0 where an edge list has no header. The nodes are the sorted ids, unless `write_graph` wrote the file.
        weight: the column of weights, or the edge attribute of GraphML; None for weights of 1. Unless given, it is the
            one called "weight", else the only one with another usual name ("w", "count", ...), else weights are 1.
        edge_attrs: the columns to keep as edge attributes; unless given, all others: integers, floats, truth values
            (`True`, `False`) or strings; a column with empty cells is one of strings.
        separator: "," or "\\t" or ";" or " " between the cells of a text; the one in its first row unless given.
        duplicates, self_loops, dtype: see `from_edges`.
        max_bytes: how many bytes the file may unpack to, and its units may need; unless given, 50 times its size, and
            at least 64 MiB.

    Returns:
        The graph, in canonical order.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: weights are no real numbers, or `max_bytes` is no integer.
        ValueError: the suffix or format is unknown, the file is damaged, hostile or ambiguous, or as `from_edges`.

    Example:
        >>> import pathlib, tempfile, sparse_etrace as se
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "edges.csv"
        ...     _ = path.write_text("pre,post,weight\\nAVAL,AVBL,0.5\\nAVBL,AVAL,2\\n")
        ...     graph = se.read_graph(path)
        >>> graph.nodes, graph.weight.tolist()
        (('AVAL', 'AVBL'), [2.0, 0.5])
    """
    path = Path(path)
    kind = _kind(path, format)
    policies = Policies(duplicates, self_loops, dtype)
    check_dtype(dtype)
    if separator is not None and separator not in SEPARATORS:
        raise ValueError(f"separator: expected one of {list(SEPARATORS)}, got {separator!r}.")
    limit = None if max_bytes is None else whole("max_bytes", max_bytes)
    kept = edge_attrs if edge_attrs is None or isinstance(edge_attrs, str) else list(edge_attrs)
    source, options = Source.of(path, limit), Options(pre, post, weight, separator, kept, policies)
    try:
        if kind in BINARY or kind in TEXT:
            graph = (BINARY | TEXT)[kind].read(source, options)
        else:
            graph = _read_table(source, options, kind)
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(
            f"{path}: expected a graph that fits the memory, got one that needs more. Read it on a larger machine."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    say_guesses(f"read_graph: {path}", options.guesses)
    return graph


def write_graph(path: str | os.PathLike, graph: Graph, *, format: str | None = None) -> None:
    """Write a graph to a file, its format said by the suffix; text files are packed where it ends in `.gz`.

    What is written is read again exactly: weights to the bit, labels, attributes, order. What a format cannot hold is
    refused, not dropped; `.npz` holds everything but objects. The file appears when it is complete, or not at all.

    Args:
        path: the file; see `read_graph` for the suffixes. One that exists is replaced.
        graph: the graph.
        format: "npz", "matrix_market", "graphml", "parquet", "edge_list" or "adjacency", whatever the suffix; tables
            are edge lists unless it says "adjacency".

    Raises:
        FileNotFoundError: there is no such folder.
        TypeError: `graph` is no graph.
        ValueError: the suffix or format is unknown, or something would be lost; the message says what, and which format
            holds it.

    Example:
        >>> import pathlib, tempfile, sparse_etrace as se
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "graph.npz"
        ...     se.write_graph(path, se.from_edges([0, 0], [1, 1], [0.5, 0.25]))
        ...     se.read_graph(path).weight.tolist()
        [0.5, 0.25]
    """
    path = Path(path)
    kind = _kind(path, format)
    check_graph(graph)
    with written(path) as target:
        if kind in BINARY or kind in TEXT:
            (BINARY | TEXT)[kind].write(target, graph)
        else:
            separator = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]] else ","
            (adjacency if kind == "adjacency" else edge_list).write(target, graph, separator)


def _kind(path: Path, format: str | None) -> str:
    """Return the format of a path, or what the caller says it is."""
    packed = is_packed(path)
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    kind = SUFFIXES.get(suffix) if format is None else format
    if format is not None and format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}.")
    if kind is None:
        raise ValueError(
            f"path: expected a name that ends in one of {', '.join(SUFFIXES)} (texts also in .gz), got "
            f"{path.name!r}. Pass format=, one of {', '.join(FORMATS)}."
        )
    if packed and kind in BINARY:
        raise ValueError(
            f"path: expected {kind}, which is packed already, without .gz, got {path.name!r}. Leave .gz out."
        )
    return kind


def _read_table(source: Source, options: Options, kind: str) -> Graph:
    check = (lambda names: None) if kind == "adjacency" else partial(edge_list.check_names, options)
    table = read_table(source, options.separator, check)
    if table.comments:
        options.guesses.append(
            f"took {table.comments} lines after the first row for comments, as they begin with # or % "
            "(put ids that begin so in quotes)"
        )
    said = kind == "edge_list" or table.mark is not None or options.pre is not None or options.post is not None
    if kind == "adjacency" or not (said or usual_ends(table.first)) and adjacency.looks_like(table):
        return adjacency.read(source, table, options)
    return edge_list.read(source, table, options)
