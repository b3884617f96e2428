"""What a GraphML file says, checked: keys, nodes, edges and their data. No document type is accepted."""

from collections.abc import Iterable
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from .safe import sound

PLAIN = "Save it as plain GraphML."
KINDS: dict[str, Any] = {"int": np.int32, "long": np.int64, "float": np.float32, "double": np.float64}
TYPES = (*KINDS, "boolean", "string")
# What an element may hold; anything else, hyperedges and nested graphs among it, is refused.
INSIDE = {
    "": {"graphml"},
    "graphml": {"key", "graph", "data", "desc"},
    "key": {"default", "desc"},
    "graph": {"node", "edge", "data", "desc"},
    "node": {"data", "desc"},
    "edge": {"data", "desc"},
}


class Key(NamedTuple):
    """Name and type of an attribute, and what has it."""

    name: str
    kind: str
    owner: str
    default: str | None


class Document(NamedTuple):
    """What a file says: keys, nodes and edges with their data, data of the graph."""

    keys: dict[str, Key]
    nodes: dict[str, dict[str, str]]
    edges: list[tuple[str, str, bool, dict[str, str]]]
    data: dict[str, str]


def parse(data: bytes) -> Document:
    """Read and check a file."""
    with sound("sound XML", expat.ExpatError, LookupError):
        _refuse_document_type(data)
        root = ElementTree.fromstring(data)
    _check_inside("", [root])
    graphs = root.findall("graph")
    if not graphs:
        raise ValueError(f"expected a <graph>, got none. {PLAIN}")
    kind = graphs[0].get("edgedefault")
    if len(graphs) > 1 or kind not in ("directed", "undirected"):
        raise ValueError(f"expected one <graph>, edgedefault='directed' or 'undirected', got {len(graphs)}, {kind!r}.")
    keys: dict[str, Key] = {}
    for element in root.iterfind("key"):
        _add_key(keys, element)
    nodes: dict[str, dict[str, str]] = {}
    for node in graphs[0].iterfind("node"):
        label = _attribute(node, "id")
        if label in nodes:
            raise ValueError(f"expected each node once, got {label!r} twice. Drop one.")
        nodes[label] = _data_of(node)
    edges = []
    for edge in graphs[0].iterfind("edge"):
        directed = edge.get("directed", "true" if kind == "directed" else "false")
        if directed not in ("true", "false"):
            raise ValueError(f"expected directed='true' or 'false' at an edge, got {directed!r}.")
        edges.append((_attribute(edge, "source"), _attribute(edge, "target"), directed == "true", _data_of(edge)))
    return Document(keys, nodes, edges, _data_of(root, graphs[0]))


def _refuse_document_type(data: bytes) -> None:
    """Without one there are no entities."""

    def refuse(*_: object) -> None:
        raise ValueError("expected no document type and no entities, got one. Remove its <!DOCTYPE ...>.")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)


def _check_inside(above: str, elements: Iterable[ElementTree.Element]) -> None:
    """Refuse what a graph of this library has not, and drop the namespaces."""
    for element in elements:
        name = element.tag = element.tag.rpartition("}")[2]
        if name not in INSIDE.get(above, ()):
            raise ValueError(f"expected what one graph has, got <{name}> in <{above or 'document'}>. {PLAIN}")
        own = None if name in ("data", "default", "desc") else element.text
        for text, place in ((own, name), (element.tail, above)):
            if text and text.strip():
                raise ValueError(f"expected text in data only, got {text.strip()[:40]!r} in <{place}>. {PLAIN}")
        if len(element):
            _check_inside(name, element)


def _add_key(keys: dict[str, Key], element: ElementTree.Element) -> None:
    id_, name = _attribute(element, "id"), element.get("attr.name")
    kind, owner = element.get("attr.type", "string"), element.get("for", "all")
    if name is None or kind not in TYPES:
        raise ValueError(f"expected a name and a type among {TYPES} of key {id_!r}, got {name!r}, {kind!r}. {PLAIN}")
    if id_ in keys or owner not in ("node", "edge", "graph", "graphml", "all"):
        raise ValueError(f"expected one key {id_!r}, of nodes, edges or graph, got two, or one of {owner!r}. {PLAIN}")
    keys[id_] = Key(name, kind, owner, element.findtext("default"))


def _data_of(*elements: ElementTree.Element) -> dict[str, str]:
    """The text of each key."""
    found: dict[str, str] = {}
    for datum in (datum for element in elements for datum in element if datum.tag == "data"):
        key = _attribute(datum, "key")
        if key in found:
            raise ValueError(f"expected one value of key {key!r} for one {elements[-1].tag}, got two. Drop one.")
        found[key] = datum.text or ""
    return found


def _attribute(element: ElementTree.Element, name: str) -> str:
    if name not in element.attrib:
        raise ValueError(f"expected a <{element.tag}> with {name}, got one without. {PLAIN}")
    return element.attrib[name]
