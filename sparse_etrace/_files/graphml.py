"""GraphML: labels, and attributes that are truth values, integers, floats or strings.

U. Brandes, M. Eiglsperger, I. Herman, M. Himsolt, M. S. Marshall (2002), GraphML progress report, Graph Drawing 2001.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from io import BufferedIOBase
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from .._graph.build import build_graph
from .._graph.columns import NO_WEIGHT, strings, text_cells, weight_name
from .._graph.graph import Graph
from .cells import INTEGER, NUMBER
from .graphml_document import KINDS, Document, Key, parse
from .safe import (
    Options,
    Source,
    as_nodes,
    damaged,
    from_json,
    host_ends,
    host_weight,
    is_shape,
    one_kind,
    only_strings,
    to_json,
)

NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]").search
TRUTH = {"true": True, "false": False, "1": True, "0": False}


def read(source: Source, options: Options) -> Graph:
    """Read one graph; an undirected edge becomes one synapse in each direction, an undirected self-loop one."""
    options.refuse("GraphML names the ends itself", "pre", "post", "separator")
    document = parse(source.read())
    labels, shape = _nodes(document)
    source.check_units(*shape)
    position, size = {label: k for k, label in enumerate(document.nodes)}, len(document.nodes)
    pre, post, rows = [], [], []
    for source_id, target_id, directed, row in document.edges:
        for end in (source_id, target_id):
            if end not in position:
                raise ValueError(f"expected two nodes for {source_id!r} -> {target_id!r}, got no {end!r}. Add it.")
        for i, j in ((source_id, target_id), (target_id, source_id))[: 1 if directed or source_id == target_id else 2]:
            pre.append(position[i])
            post.append(position[j] - (size - shape[1]))
            rows.append(row)
    if document.edges and min(post, default=0) < 0:
        damaged(f"edges onto receiving nodes of shape {shape}", "one onto a sending one")
    groups = _groups(document, "edge", rows)
    name = weight_name(
        options.weight, groups, lambda name: {key.kind for key in groups[name].values()} <= set(KINDS), options.guesses
    )
    kept = options.kept([other for other in groups if other != name])
    weight = None if name is None else _column(f"edge attribute {name!r}", "edge", groups[name], rows, NO_WEIGHT)
    if weight is not None and weight.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers as weights, got {name!r} of type {weight.dtype}. Name another, or None.")
    way = ", or leave it out of `edge_attrs`"
    edge_attrs = {name: _column(f"edge attribute {name!r}", "edge", groups[name], rows, way) for name in kept}
    owners = list(document.nodes.values())
    of_nodes = _groups(document, "node", owners).items()
    node_attrs = {name: _column(f"node attribute {name!r}", "node", keys, owners) for name, keys in of_nodes}
    return build_graph(pre, post, weight, shape, labels, node_attrs, edge_attrs, policies=options.policies)


def write(target: BufferedIOBase, graph: Graph) -> None:
    """Write a graph; a datum of the graph says whether labels are integers, and its shape."""
    kind, weight = one_kind("GraphML", graph.nodes), host_weight(graph)
    if "weight" in graph.edge_attrs:
        raise ValueError("graph: expected no edge attribute of the weight's name in GraphML, got 'weight'. Rename it.")
    columns = {"node": dict(graph.node_attrs), "edge": {"weight": weight} | graph.edge_attrs}
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<graphml xmlns="{NAMESPACE}">']
    texts: dict[str, list[tuple[str, list[str]]]] = {"node": [], "edge": []}
    for what, attrs in columns.items():
        only_strings("GraphML", attrs)
        for k, (name, values) in enumerate(attrs.items()):
            of_key, cells = _as_text(f"{what} attribute {name!r}", values)
            id_ = f"{what}{k}"
            lines.append(f'<key id="{id_}" for="{what}" attr.name={_quoted(name)} attr.type="{of_key}"/>')
            texts[what].append((id_, cells))
    mark = to_json({"labels": kind.__name__, "shape": list(graph.connectivity.shape)})
    lines.append('<key id="graph" for="graph" attr.name="sparse_etrace" attr.type="string"/>')
    lines.append(f'<graph edgedefault="directed"><data key="graph">{_escaped(mark)}</data>')
    names = [_quoted(str(label)) for label in graph.nodes]
    offset = len(names) - graph.connectivity.num_post
    for k, name in enumerate(names):
        lines.append(f"<node id={name}>{_data(texts['node'], k)}</node>")
    for k, (i, j) in enumerate(zip(*(side.tolist() for side in host_ends(graph)), strict=True)):
        lines.append(f"<edge source={names[i]} target={names[j + offset]}>{_data(texts['edge'], k)}</edge>")
    target.write("\n".join([*lines, "</graph>", "</graphml>", ""]).encode())


def _nodes(document: Document) -> tuple[Sequence[Hashable] | None, tuple[int, int]]:
    """Return labels and shape, as the datum of `write` says, else strings and one set of nodes."""
    size, mark = len(document.nodes), None
    for id_, text in document.data.items():
        key = document.keys.get(id_)
        if key is None:
            raise ValueError(f"expected data of declared keys, got the key {id_!r}. Declare it, or drop its data.")
        if key.name == "sparse_etrace" and key.owner == "graph":
            mark = from_json(text, _is_mark)
    labels: Sequence = list(document.nodes)
    if mark is None:
        return labels, (size, size)
    shape = mark["shape"][0], mark["shape"][1]
    if size != (shape[0] if shape[0] == shape[1] else sum(shape)):
        damaged(f"the nodes of a graph of shape {shape}", str(size))
    if mark["labels"] == "int":
        for label in labels:
            if not INTEGER(label):
                damaged("integers as labels, as the file says", f"the node {label!r}")
        labels = [int(label) for label in labels]
    return as_nodes(labels), shape


def _groups(document: Document, what: str, rows: list[dict[str, str]]) -> dict[str, dict[str, Key]]:
    """Return the keys of each attribute of the nodes or the edges."""
    used = {id_ for row in rows for id_ in row}
    for id_ in used:
        if id_ not in document.keys or document.keys[id_].owner not in (what, "all"):
            raise ValueError(f"expected keys that are declared for a {what}, got {id_!r}. Declare it or drop its data.")
    groups: dict[str, dict[str, Key]] = {}
    for id_, key in document.keys.items():
        if key.owner != what and not (key.owner == "all" and id_ in used):
            continue
        if key.default is None and rows and id_ not in used:
            continue
        groups.setdefault(key.name, {})[id_] = key
    return groups


def _column(what: str, owner: str, keys: dict[str, Key], rows: list[dict[str, str]], way: str = "") -> np.ndarray:
    """Return one attribute; keys of one name, as networkx writes integers among floats, give one column of numbers."""
    kinds = {key.kind for key in keys.values()}
    usual = [id_ for id_, key in keys.items() if key.default is not None]
    if len(keys) > 1 and (len(usual) > 1 or not kinds <= KINDS.keys()):
        raise ValueError(f"expected one key for the {what}, or several of numbers, got {sorted(kinds)}. Keep one.")
    values: dict[str, dict[int, str]] = {id_: {} for id_ in keys}
    for k, row in enumerate(rows):
        found = [id_ for id_ in keys if id_ in row] or usual
        if not found:
            raise ValueError(f"expected the {what} at every {owner}, got none at {owner} {k + 1}. Set it there{way}.")
        if len(found) > 1:
            raise ValueError(f"expected one value of the {what} at {owner} {k + 1}, got two keys. Keep one.")
        values[found[0]][k] = row.get(found[0], keys[found[0]].default or "")
    parts = {id_: _as_array(what, keys[id_].kind, cells) for id_, cells in values.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    kind = np.result_type(*parts.values()) if len(kinds) == 1 else np.int64 if kinds <= {"int", "long"} else np.float64
    column = np.empty(len(rows), kind)
    for id_, part in parts.items():
        for number in part.tolist():
            if column.dtype.kind == "f" and isinstance(number, int) and abs(number) > 2**53:
                raise ValueError(
                    f"expected one type of {what}, got {number} among floats, which would lose digits. "
                    "Write all of one type."
                )
        column[list(values[id_])] = part
    return column


def _as_array(what: str, kind: str, cells: dict[int, str]) -> np.ndarray:
    """Return the cells at some places as an array of one type."""
    values = list(cells.values())
    if kind == "string":
        return strings(values)
    check: Any = {"boolean": TRUTH.get, "int": INTEGER, "long": INTEGER}.get(kind, NUMBER)
    found = [value.strip() for value in values]
    found = [value.lower() for value in found] if kind == "boolean" else found
    for k, value in zip(cells, found, strict=True):
        if check(value) is None:
            raise ValueError(f"expected the {what} to be {kind}, got {value!r} at number {k + 1}. Correct it.")
    if kind == "boolean":
        return np.array([TRUTH[value] for value in found], bool)
    if kind in ("int", "long"):
        limits, whole = np.iinfo(KINDS[kind]), [int(value) for value in found]
        for number in whole:
            if not limits.min <= number <= limits.max:
                raise ValueError(f"expected the {what} to fit the type {kind}, got {number}. Declare a larger type.")
        return np.array(whole, KINDS[kind])
    with np.errstate(over="ignore"):
        return np.array([float(value) for value in found], np.float64).astype(KINDS[kind])


def _as_text(what: str, values: np.ndarray) -> tuple[str, list[str]]:
    """Return the type of GraphML that holds a column, and its cells."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    text = text_cells(values)
    if text is not None:
        return "string", text
    plain = values.tolist()
    if values.ndim == 1 and kind == "b":
        return "boolean", [str(value).lower() for value in plain]
    if values.ndim == 1 and kind in "iu" and (kind == "i" or size < 8 or max(plain, default=0) < 2**63):
        return "int" if size < 4 or (kind, size) == ("i", 4) else "long", [str(value) for value in plain]
    if values.ndim == 1 and kind == "f" and size <= 8:
        # All digits of a float64, so that a float32 is read to the bit in either type.
        return "double" if size == 8 else "float", [repr(float(value)) for value in plain]
    raise ValueError(f"graph: expected {what} of a type of GraphML, got {values.dtype}, {values.shape}. Write .npz.")


def _data(columns: list[tuple[str, list[str]]], k: int) -> str:
    return "".join(f'<data key="{id_}">{_escaped(cells[k])}</data>' for id_, cells in columns)


def _escaped(text: str) -> str:
    _check(text)
    return escape(text, {"\r": "&#13;"})


def _quoted(text: str) -> str:
    _check(text)
    return quoteattr(text, {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"})


def _check(text: str) -> None:
    if ILLEGAL(text):
        raise ValueError(f"graph: expected characters that XML can hold, got {text!r}. Write .npz.")


def _is_mark(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"labels", "shape"}
        and value["labels"] in ("int", "str")
        and is_shape(value["shape"])
    )
