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
from .._numbers import real, whole
from . import adjacency, edge_list, feather, graphml, matrix_market, neurons, npz, parquet, sonata
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
    ".h5": "sonata",
    ".hdf5": "sonata",
    ".csv": "table",
    ".tsv": "table",
    ".txt": "table",
}
FORMATS = ("npz", "matrix_market", "graphml", "parquet", "feather", "sonata", "edge_list", "adjacency")
BINARY = {"npz": npz, "parquet": parquet, "feather": feather, "sonata": sonata}
TEXT = {"matrix_market": matrix_market, "graphml": graphml}
READ_ONLY = {"feather": "Feather", "sonata": "SONATA"}


def read_graph(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    pre: Hashable | None = None,
    post: Hashable | None = None,
    weight: Hashable | None = GUESS,
    edge_attrs: Iterable[Hashable] | None = None,
    separator: str | None = None,
    duplicates: str | None = None,
    self_loops: str = "keep",
    dtype: DTypeLike = jnp.float32,
    min_weight: float | None = None,
    nodes: object = None,
    node_attrs: Iterable[Hashable] | None = None,
    node_set: str = "synapses",
    max_bytes: SupportsIndex | None = None,
) -> Graph:
    """Return the graph in a file, its format said by the suffix; text files may be packed, as `.csv.gz`.

    `.npz` (of `write_graph` or scipy), `.mtx` (Matrix Market; `A[i, j]` is i -> j), `.graphml`, `.parquet`, `.feather`
    or `.arrow`, `.h5` or `.hdf5` (SONATA), and `.csv`, `.tsv` or `.txt`: an edge list, or an adjacency matrix with
    labels in its first row and column and an empty first cell. Columns are named, or found by usual names, which a
    warning says; those of FlyWire, Codex, CAVE, neuPrint, BANC, MaleCNS, the fly brain's model and OpenWorm are known.
    Ids are exact to 64 bits. Nothing is unpickled.

    Args:
        path: the file.
        format: "npz", "matrix_market", "graphml", "parquet", "feather", "sonata", "edge_list" or "adjacency", whatever
            the suffix.
        pre, post: the columns of sending and receiving ids in an edge list, Parquet or Feather: names, or positions
            from 0 where an edge list has no header. The nodes are the sorted ids, unless `write_graph` wrote the file.
            Floats are ids where they are whole and below 2**53. In SONATA, "population/source_node_id" and so on.
        weight: the column of weights, or the edge attribute of GraphML; None for weights of 1. Unless given, it is the
            one called "weight", else the only one with another usual name ("w", "count", ...), else weights are 1.
        edge_attrs: the columns to keep as edge attributes; unless given, all others: integers, floats, truth values
            (`True`, `False`) or strings; a column with empty cells is one of strings. None of the parts of a connection
            that are summed.
        separator: "," or "\\t" or ";" or " " between the cells of a text; the one in its first row unless given.
        duplicates: see `from_edges`. Unless given, "keep"; but "sum" with `min_weight`, and where rows are parts of the
            connection of two cells: those by neuropil or ROI, or with root ids or body ids.
        self_loops, dtype: see `from_edges`.
        min_weight: the least absolute weight of a synapse, after summing; nodes that lose all theirs are left out too.
        nodes: a table with a row for each node, its id and its attributes: a file (`.csv`, `.parquet`, `.feather`), a
            data frame of pandas or polars, or an Arrow table. Ids are in the column called `root_id`, `bodyId`, `id`
            or so. What is missing is an empty string or NaN.
        node_attrs: the columns of `nodes` to keep; unless given, all.
        node_set: which nodes there are: "synapses", the ids in the file; "table", the rows of `nodes`, and the synapses
            between these; "both".
        max_bytes: how many bytes the file may unpack to, and its units may need; unless given, 50 times its size, and
            at least 64 MiB.

    Returns:
        The graph, in canonical order.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: weights are no real numbers, or `max_bytes` is no integer or `min_weight` no number.
        ImportError: a file of SONATA is read without `h5py`, which is in the extra `sonata`.
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
    check_dtype(dtype)
    if separator is not None and separator not in SEPARATORS:
        raise ValueError(f"separator: expected one of {list(SEPARATORS)}, got {separator!r}.")
    if node_set not in neurons.SETS:
        raise ValueError(f"node_set: expected one of {', '.join(neurons.SETS)}, got {node_set!r}.")
    least = None if min_weight is None else real("min_weight", min_weight)
    if least is not None and not least >= 0:
        raise ValueError(f"min_weight: expected 0 or more, got {least}.")
    if nodes is None and (node_attrs is not None or node_set != "synapses"):
        raise ValueError("nodes: expected a table of nodes beside node_attrs and node_set, got none. Give it.")
    if least is not None and self_loops == "add":
        raise ValueError("min_weight: expected self_loops='keep' or 'drop' beside it, got 'add'. Add them afterwards.")
    limit = None if max_bytes is None else whole("max_bytes", max_bytes)
    kept = edge_attrs if edge_attrs is None or isinstance(edge_attrs, str) else list(edge_attrs)
    guesses: list[str] = []
    if duplicates is None and least is not None:
        policies = Policies("sum", self_loops, dtype, guesses, kept is None)
    else:
        policies = Policies("keep" if duplicates is None else duplicates, self_loops, dtype)
    source = Source.of(path, limit)
    options = Options(pre, post, weight, separator, kept, policies, duplicates, guesses)
    try:
        if kind in BINARY or kind in TEXT:
            graph = (BINARY | TEXT)[kind].read(source, options)
        else:
            graph = _read_table(source, options, kind)
        graph = graph if least is None else neurons.strong(graph, least)
        if nodes is not None:
            graph = _with_nodes(graph, nodes, limit, node_attrs, node_set, guesses)
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(
            f"{path}: expected a graph that fits the memory, got one that needs more. Read it on a larger machine."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    say_guesses(f"read_graph: {path}", guesses)
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
    if kind in READ_ONLY:
        raise ValueError(
            f"path: expected a format that is written, got {READ_ONLY[kind]}, which is only read. Write .parquet."
        )
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
        raise ValueError(f"path: expected {kind}, which is packed already, without .gz, got {path.name!r}. Drop .gz.")
    return kind


def _with_nodes(
    graph: Graph, nodes: object, limit: int | None, attrs: Iterable[Hashable] | None, node_set: str, notes: list[str]
) -> Graph:
    """Return the graph with the attributes in a table of nodes."""
    kind, source = None, None
    if isinstance(nodes, str | os.PathLike):
        source, kind = Source.of(Path(nodes), limit, "nodes"), _kind(Path(nodes), None)
        if kind not in ("table", "parquet", "feather"):
            raise ValueError(f"nodes: expected a table, .csv, .parquet or .feather, got {Path(nodes).name!r}.")
    try:
        table = neurons.read(nodes, kind, source, attrs, notes)
    except (ValueError, TypeError) as error:
        raise type(error)(f"nodes: {error}") from error
    return neurons.joined(graph, table, node_set, notes)


def _read_table(source: Source, options: Options, kind: str) -> Graph:
    check = (lambda names: None) if kind == "adjacency" else partial(edge_list.check_names, options)
    table = read_table(source, options.separator, check)
    options.guesses.extend(table.notes)
    said = kind == "edge_list" or table.mark is not None or options.pre is not None or options.post is not None
    if kind == "adjacency" or not (said or usual_ends(table.first)) and adjacency.looks_like(table):
        return adjacency.read(source, table, options)
    return edge_list.read(source, table, options)
