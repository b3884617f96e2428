"""A table of nodes beside a graph: attributes by id, and which nodes there are; and the synapses that are strong."""

import re
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .._graph.columns import kept_names, strings
from .._graph.graph import Graph
from ..transform.nodes import subgraph
from ..transform.origin import at, built, parts_of
from . import feather, parquet
from .arrow import attribute, ids_of, plain_columns
from .cells import ids, typed
from .safe import Source
from .text import read_table, width_of

SETS = ("synapses", "table", "both")
# What a column of ids is called, the surest first; pandas writes an index without a name.
IDS = (
    "(pt_)?root_?id",
    "body(_?id)?",
    "[a-z]+_[0-9]+_id",
    "(neuron_|node_|cell_)?id",
    "label|node|neuron|name|cell",
    "",
)
WAY = "Rename it, or pass the table itself as a data frame with the column 'id'."


class Chosen(NamedTuple):
    """The columns of a table of nodes."""

    id: str
    attrs: list[str]

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [self.id, *self.attrs]


class Neurons(NamedTuple):
    """The id of each row, and for each attribute the values that there are, and which rows have one."""

    ids: list
    attrs: dict[str, tuple[np.ndarray, np.ndarray]]


def read(
    table: object, kind: str | None, source: Source | None, attrs: Iterable[Hashable] | None, notes: list
) -> Neurons:
    """Read a table of nodes; a row without an id is left out."""
    choose = partial(_chosen, attrs=attrs, notes=notes)
    if kind == "table" and source is not None:
        text = read_table(source, None, lambda names: None)
        notes.extend(text.notes)
        width = width_of(text.first, lambda k: not pc.max(pc.binary_length(text.columns[k])).as_py())
        chosen = choose(pa.schema([(name, pa.string()) for name in text.first[:width]]))
        found = pa.table({name: text.below[text.first.index(name)].cast(pa.string()) for name in chosen.names})
        is_text, has_id = True, pc.not_equal(found[chosen.id], "")
    else:
        if kind is None:
            found = pa.table(table)
            chosen = choose(found.schema)
        else:
            chosen, found = (parquet if kind == "parquet" else feather).table_of(source, choose)
        # Arrow cannot choose rows of text of this type.
        kinds = [pa.large_string() if kind == pa.string_view() else kind for kind in found.schema.types]
        found = found.cast(pa.schema(zip(found.schema.names, kinds)))
        is_text, has_id = False, found[chosen.id].is_valid()
    rows = found.num_rows
    found = found.filter(has_id)
    if found.num_rows < rows:
        notes.append(f"left out {rows - found.num_rows} rows of nodes without an id")
    keys = ids(found[chosen.id].to_pylist())[0] if is_text else ids_of(chosen.id, found[chosen.id], True).to_pylist()
    keys = keys.tolist() if isinstance(keys, np.ndarray) else [x.strip() if isinstance(x, str) else x for x in keys]
    return Neurons(keys, {name: _values(name, found[name], is_text) for name in chosen.attrs})


def joined(graph: Graph, neurons: Neurons, node_set: str, notes: list[str]) -> Graph:
    """Return the graph with the attributes of its nodes; see `read_graph` for what `node_set` says."""
    num_pre, num_post = graph.connectivity.shape
    if num_pre != num_post and isinstance(graph.nodes, range):
        raise ValueError(
            f"nodes: expected a graph whose nodes are one set, or have labels, got {num_pre} senders and {num_post} "
            "receivers without any. Give se.Graph their attributes, senders first, as node_attrs."
        )
    keys = _as_labels(neurons.ids, graph.nodes, notes)
    rows, seen = {key: row for row, key in enumerate(keys)}, set(graph.nodes)
    known = [key for key in rows if key in seen]
    if not known and keys and seen:
        raise ValueError(
            f"nodes: expected ids of nodes of the graph, as {graph.nodes[0]!r}, got ids as {keys[0]!r}. "
            "Give the table of the same version of the data."
        )
    if node_set == "synapses":
        if len(known) < len(rows):
            notes.append(
                f"left out {len(rows) - len(known)} of {len(rows)} nodes of the table, which have no synapse"
                " (to keep them: node_set='both')"
            )
    else:
        graph = _on(graph, sorted(rows if node_set == "table" else rows.keys() | seen), notes)
    _refuse_twice(keys, set(graph.nodes))
    place = np.array([rows.get(label, -1) for label in graph.nodes], np.int64)
    if (place < 0).any():
        notes.append(
            f"found no row for {np.sum(place < 0)} of {place.size} nodes, whose attributes are empty "
            "(to leave these nodes out: node_set='table')"
        )
    for name in neurons.attrs:
        if name in graph.node_attrs:
            raise ValueError(f"node_attrs: expected names that the graph lacks, got {name!r}. Name others.")
    attrs = graph.node_attrs | {name: _aligned(*column, place) for name, column in neurons.attrs.items()}
    return Graph(graph.connectivity, graph.weight, parts_of(graph).nodes, attrs, graph.edge_attrs)


def strong(graph: Graph, least: float) -> Graph:
    """Return the graph without synapses of smaller absolute weight, and without the nodes that this leaves alone."""
    parts, shape = parts_of(graph), graph.connectivity.shape
    part = built(at(parts, np.flatnonzero(np.abs(parts.weight) >= least)), shape)
    if shape[0] != shape[1]:
        return part
    stays = _linked(part) | ~_linked(graph)
    return part if stays.all() else subgraph(part, stays)


def _linked(graph: Graph) -> np.ndarray:
    """Which nodes of a square graph have a synapse."""
    found = np.diff(np.asarray(graph.connectivity.post_ptr)) > 0
    return found | (np.diff(np.asarray(graph.connectivity.pre_ptr)) > 0)


def _chosen(schema: pa.Schema, attrs: Iterable[Hashable] | None, notes: list[str]) -> Chosen:
    names = schema.names
    if len(set(names)) < len(names):
        raise ValueError(f"expected columns of different names, got {names}. Rename one.")
    for pattern in IDS:
        found = [name for name in names if re.fullmatch(pattern, name, re.I)]
        if len(found) == 1:
            break
        if found:
            raise ValueError(f"expected one column that may hold the ids, got {found}. {WAY}")
    else:
        raise ValueError(f"expected a column of ids with a usual name, as 'root_id' or 'bodyId', got {names}. {WAY}")
    rest = [name for name in names if name != found[0]]
    kept = kept_names(attrs, rest, "node_attrs")
    notes.append(f"took {found[0]!r} for the ids of the table of nodes")
    return Chosen(found[0], plain_columns(schema, kept, notes) if attrs is None else kept)


def _values(name: str, column: pa.ChunkedArray, is_text: bool) -> tuple[np.ndarray, np.ndarray]:
    has = pc.not_equal(column, "") if is_text else column.is_valid()
    found = column.filter(has)
    return typed(found) if is_text else attribute(name, found), np.asarray(has)


def _aligned(values: np.ndarray, has: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return the value of each node by its row; where it is missing, text is empty, a number NaN if all fit floats."""
    there = place >= 0
    there[there] = has[place[there]]
    values = values[(np.cumsum(has) - 1)[place[there]]]
    if there.all():
        return values
    whole = values.dtype.kind in "iu" and bool(((values < 2**53) & (values > -(2**53))).all())
    if values.dtype.kind == "f" or whole:
        found = np.full(place.size, np.nan, values.dtype if values.dtype.kind == "f" else np.float64)
    else:
        values = values if values.dtype.kind in "UO" else strings([str(value) for value in values.tolist()])
        found = np.full(place.size, "", values.dtype)
    found[there] = values
    return found


def _as_labels(keys: list, labels: Sequence, notes: list[str]) -> list:
    """Return ids of rows as the graph writes them: as text or integers, and `VB1` as `VB01`."""
    if not labels or not isinstance(labels[0], str):
        return [int(key) if isinstance(key, str) and re.fullmatch("-?[0-9]+", key) else key for key in keys]
    keys = [str(key) for key in keys]
    missing, free = set(labels) - set(keys), set(keys) - set(labels)
    same, rows = _unpadded(missing), _unpadded(free)
    found = {rows[name]: same[name] for name in rows if name in same}
    if found:
        row, label = next(iter(found.items()))
        notes.append(f"took {len(found)} ids for the same but for their zeros, as {row!r} for {label!r}")
    return [found.get(key, key) for key in keys]


def _unpadded(names: Iterable[str]) -> dict[str, str]:
    """Return names by what they are without zeros before their numbers, where that is of one only."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub("(?<![0-9])0+(?=[0-9])", "", name), []).append(name)
    return {plain: one[0] for plain, one in found.items() if len(one) == 1}


def _refuse_twice(keys: list, nodes: set) -> None:
    seen: set = set()
    for key in keys:
        if key in seen and key in nodes:
            raise ValueError(f"nodes: expected one row for each node, got several for {key!r}. Keep one of them.")
        seen.add(key)


def _on(graph: Graph, labels: list, notes: list[str]) -> Graph:
    """Return the graph on other nodes, and the synapses between those."""
    if graph.connectivity.num_pre != graph.connectivity.num_post or graph.node_attrs:
        raise ValueError(
            "node_set: expected 'synapses' for a graph with two sets of nodes, or with attributes of its own, got "
            "another. Leave it out."
        )
    parts, index = parts_of(graph), {label: k for k, label in enumerate(labels)}
    new = np.array([index.get(label, -1) for label in graph.nodes], np.int64)
    chosen = np.flatnonzero((new[parts.pre] >= 0) & (new[parts.post] >= 0))
    if chosen.size < parts.pre.size:
        notes.append(f"left out {parts.pre.size - chosen.size} synapses of nodes that the table lacks")
    parts = at(parts, chosen)
    parts = parts._replace(pre=new[parts.pre], post=new[parts.post], nodes=labels)
    return built(parts, (len(labels), len(labels)))
