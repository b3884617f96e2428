"""Damages graph files and reads them; run as a program by test_fuzz_files.py: FORMATS COUNT SEED FOLDER.

A file that is read must give what the oracle of its format gives: a reader of its own, in plain Python, that shares no
code with the library. Text is parsed here character by character or line by line; GraphML comes from ElementTree, the
arrays of .npz from numpy.load and the columns of Parquet and Feather from pyarrow, and what they mean is worked out
here. A file that is not read must be refused in words that begin with its path.
"""

import base64
import faulthandler
import gzip
import io
import json
import math
import random
import re
import resource
import struct
import sys
import time
import warnings
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import numpy as np

SUFFIX = {
    "npz": ".npz",
    "matrix_market": ".mtx",
    "graphml": ".graphml",
    "parquet": ".parquet",
    "feather": ".feather",
    "edge_list": ".csv",
    "adjacency": ".csv",
}
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE = re.compile(r"-?[1-9]\d*|0", re.ASCII)
SECONDS, MEMORY = 2.0, 2**30


class Refused(Exception):
    pass


def need(condition):
    if not condition:
        raise Refused


def number(cell):
    """A finite number in a text."""
    need(NUMBER.fullmatch(cell))
    return float(cell)


def is_number(cell):
    """Whether a cell is a number, finite or not."""
    return NUMBER.fullmatch(cell) or re.fullmatch(r"[+-]?(nan|inf|infinity)", cell, re.I)


def result(nodes, shape, edges, names=(), node_attrs=()):
    """What a graph holds: edges are (pre, post, weight, attributes), sorted by receiver and sender, stably."""
    nodes = list(range(shape[0] if shape[0] == shape[1] else sum(shape))) if nodes is None else list(nodes)
    need(len(nodes) == (shape[0] if shape[0] == shape[1] else sum(shape)) and len(set(nodes)) == len(nodes))
    found = []
    for pre, post, weight, attrs in sorted(edges, key=lambda edge: (edge[1], edge[0])):
        need(0 <= pre < shape[0] and 0 <= post < shape[1])
        value = np.float32(weight)
        need(np.isfinite(value))
        found.append((int(pre), int(post), struct.pack("f", value), [repr(x) for x in attrs]))
    return (
        [repr(x) for x in nodes],
        tuple(map(int, shape)),
        found,
        list(names),
        {key: [repr(x) for x in column] for key, column in dict(node_attrs).items()},
    )


def of_graph(graph):
    """The same of a graph that was read."""
    conn, attrs = graph.connectivity, graph.edge_attrs
    rows = zip(*(column.tolist() for column in attrs.values())) if attrs else [()] * conn.num_synapses
    edges = list(zip(conn.pre.tolist(), conn.post.tolist(), np.asarray(graph.weight).tolist(), rows))
    return result(
        graph.nodes, conn.shape, edges, attrs, {key: column.tolist() for key, column in graph.node_attrs.items()}
    )


# ---------------------------------------------------------------------------------------------------- Matrix Market


def oracle_matrix_market(data):
    text = data.decode("ascii", "replace")
    lines = text.split("\n")
    banner = lines[0].lower().split()
    need(len(banner) == 5 and banner[:2] == ["%%matrixmarket", "matrix"])
    layout, field, symmetry = banner[2:]
    need(layout in ("coordinate", "array") and field in ("real", "integer", "unsigned-integer", "pattern"))
    need(symmetry in ("general", "symmetric", "skew-symmetric"))
    rest = lines[1:]
    while rest and (not rest[0].strip() or rest[0].strip().startswith("%")):
        rest.pop(0)
    sizes = [int(x) for x in rest.pop(0).split()]
    body = [line.split() for line in rest if line.strip()]
    value = {"pattern": lambda x: 1.0, "real": number}.get(field, lambda x: int(x))
    if layout == "array":
        need(len(sizes) == 2)
        rows, columns = sizes
        square = symmetry != "general"
        places = [
            (i, j) for j in range(columns) for i in range(j + (symmetry == "skew-symmetric") if square else 0, rows)
        ]
        need(len(body) == len(places) and all(len(line) == 1 for line in body))
        entries = [(i, j, value(line[0])) for (i, j), line in zip(places, body)]
    else:
        need(len(sizes) == 3)
        rows, columns, count = sizes
        need(len(body) == count and all(len(line) == (2 if field == "pattern" else 3) for line in body))
        entries = [(int(line[0]) - 1, int(line[1]) - 1, value(line[-1])) for line in body]
    if symmetry != "general":
        need(rows == columns)
        need(not (any(i < j for i, j, _ in entries) and any(i > j for i, j, _ in entries)))
        sign = -1 if symmetry == "skew-symmetric" else 1
        need(sign == 1 or all(w == 0 for i, j, w in entries if i == j))
        entries = entries + [(j, i, sign * w) for i, j, w in entries if i != j]
    if layout == "array":
        entries = [entry for entry in entries if entry[2] != 0]
    return result(None, (rows, columns), [(*entry, ()) for entry in entries])


# ---------------------------------------------------------------------------------------------------- tables


def split(text, separator):
    """The cells of a text: quotes double, spaces around a cell do not count, blank lines and comments are left out."""
    rows, row, cell, state, k = [], [], "", "start of line", 0
    text = text.replace("\r\n", "\n").replace("\r", "\n") if '"' not in text else text
    mark = None
    while k <= len(text):
        letter = text[k] if k < len(text) else "\n"
        if state == "start of line":
            end = min((x for x in (text.find("\n", k), text.find("\r", k)) if x >= 0), default=len(text))
            line = text[k:end]
            if line[:1] in ("#", "%") or not line.strip():
                if line.startswith("# sparse_etrace ") and mark is None:
                    mark = json.loads(line[16:])
                k = end + 1
                continue
            row, state = [], "start of cell"
        elif state == "start of cell":
            if letter == '"':
                cell, state, k = "", "quoted", k + 1
            elif letter == " ":
                k += 1
            else:
                cell, state = "", "plain"
        elif state == "plain":
            if letter in (separator, "\n", "\r"):
                row.append(cell.rstrip(" "))
                state = "start of cell" if letter == separator else "end"
            else:
                cell += letter
            k += letter not in "\n\r"
        elif state == "quoted":
            need(k < len(text))
            if letter == '"' and text[k + 1 : k + 2] == '"':
                cell, k = cell + '"', k + 2
            elif letter == '"':
                state, k = "closed", k + 1
            else:
                cell, k = cell + letter, k + 1
        elif state == "closed":
            after = k
            while text[after : after + 1] == " " != separator:
                after += 1
            if text[after : after + 1] in (separator, "\n", "\r", ""):
                row.append(cell)
                state = "start of cell" if text[after : after + 1] == separator else "end"
                k = after + (state != "end")
            else:  # what follows a closing quote belongs to the cell
                state = "plain"
        if state == "end":
            if separator == " " and row[-1] == "":
                row.pop()
            rows.append(row)
            state, k = "start of line", k + 1
    if row and state not in ("start of line",):
        need(False)
    return rows, mark


def typed(cells):
    """A column of attributes."""
    if cells and all(WHOLE.fullmatch(cell) and len(cell) < 100 for cell in cells):
        values = [int(cell) for cell in cells]
        low, high = min(values), max(values)
        return values if (low >= -(2**63) and high < 2**63) or (low >= 0 and high < 2**64) else list(cells)
    padded = any(re.fullmatch(r"[+-]?0\d.*", cell, re.ASCII) for cell in cells)
    if cells and not padded and all(map(is_number, cells)):
        return [float(cell) for cell in cells]
    if cells and all(cell in ("True", "False") for cell in cells):
        return [cell == "True" for cell in cells]
    return list(cells)


USUAL = "pre post source target from to src dst pre_id post_id pre_root_id post_root_id".split()
USUAL += "pre_pt_root_id post_pt_root_id bodyid_pre bodyid_post".split()
WEIGHT = "weight weights w wt strength syn_weight count counts synapses synapse_count".split()
WEIGHT += "syn_count n_syn n_synapses num_syn num_synapses".split()


def oracle_edge_list(data):
    text = data.decode("utf-8-sig")
    tables = []
    for separator in ",\t; ":
        if separator == " " and tables:
            break
        try:
            rows, mark = split(text, separator)
        except Refused:
            continue
        if rows and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            tables.append((rows, mark))
    ((rows, mark),) = tables
    head = [name.lower() for name in rows[0]]
    names, body = rows[0], rows[1:]
    if "pre" in names and "post" in names:
        pre, post = names.index("pre"), names.index("post")
    else:
        pairs = [pair for pair in zip(USUAL[::2], USUAL[1::2]) if head.count(pair[0]) == head.count(pair[1]) == 1]
        if len(pairs) == 1:
            pre, post = head.index(pairs[0][0]), head.index(pairs[0][1])
        else:
            need(not pairs and names[0] == "")
            return oracle_adjacency(data)
    possible = [k for k, name in enumerate(head) if name in WEIGHT and k not in (pre, post)]
    weight = names.index("weight") if "weight" in names else possible[0] if possible else None
    ends = [[row[k] for row in body] for k in (pre, post)]
    if mark is None:
        cells = ends[0] + ends[1]
        if all(WHOLE.fullmatch(cell) and len(cell) < 100 for cell in cells):
            ends = [[int(cell) for cell in side] for side in ends]
        elif all(is_number(cell) and not re.fullmatch(r"[+-]?0\d.*", cell, re.ASCII) for cell in cells):
            floats = [cell for cell in cells if not WHOLE.fullmatch(cell)]
            need(all(re.search("[.eE]", x) and float(x).is_integer() and abs(float(x)) < 2**53 for x in floats))
            ends = [[int(cell) if WHOLE.fullmatch(cell) else int(float(cell)) for cell in side] for side in ends]
        need(not any(cell == "" for side in ends for cell in side))
        nodes = sorted(set(ends[0]) | set(ends[1]))
        shape, places = (len(nodes), len(nodes)), {label: k for k, label in enumerate(nodes)}
        ends = [[places[cell] for cell in side] for side in ends]
    else:
        shape, nodes = mark["shape"], mark.get("labels")
        if nodes is None:
            ends = [[int(cell) for cell in side] for side in ends]
        else:
            text = [str(label) for label in nodes]
            offset = len(nodes) - shape[1]
            ends = [[text[: shape[0]].index(c) for c in ends[0]], [text[offset:].index(c) for c in ends[1]]]
    values = [1.0 if weight is None else number(row[weight]) for row in body]
    extra = [k for k in range(len(names)) if k not in (pre, post, weight)]
    attrs = list(zip(*(typed([row[k] for row in body]) for k in extra))) if extra else [()] * len(body)
    return result(nodes, shape, list(zip(*ends, values, attrs)), [names[k] for k in extra])


def oracle_adjacency(data):
    text = data.decode("utf-8-sig")
    for separator in ",\t; ":
        rows, mark = split(text, separator)
        need(mark is None)
        if rows and len(rows[0]) > 1:
            break
    need(len({len(row) for row in rows}) == 1)

    alike = rows[0][1:] == [row[0] for row in rows[1:]] and len(rows) > 1
    top = not all(map(is_number, rows[0][1:] or rows[0]))
    side = not all(is_number(row[0]) for row in rows[top:])
    if rows[0][0] == "" or (alike and not all(map(is_number, rows[0]))):
        top = side = True
    else:
        need(top or is_number(rows[0][0]) or not all(is_number(row[0]) for row in rows[1:]) or len(rows) == 1)
    matrix = [[number(cell) for cell in row[side:]] for row in rows[top:]]
    num_pre, num_post = len(matrix), len(rows[0]) - side
    left, above = [row[0] for row in rows[top:]] if side else None, rows[0][side:] if top else None

    def plain(cells):
        if all(WHOLE.fullmatch(cell) and len(cell) < 100 for cell in cells):
            return [int(cell) for cell in cells]
        need("" not in cells)
        return cells

    if num_pre == num_post:
        need(left is None or above is None or left == above)
        nodes = left or above
        nodes = None if nodes is None else plain(nodes)
    elif left is None and above is None:
        nodes = None
    else:
        both = plain(left + above)
        positions = both == [*range(num_pre), *range(num_post)]
        nodes = None if positions else both
    edges = [(i, j, w, ()) for i, row in enumerate(matrix) for j, w in enumerate(row) if w != 0]
    return result(nodes, (num_pre, num_post), edges)


# ---------------------------------------------------------------------------------------------------- GraphML


def oracle_graphml(data):
    root = ET.fromstring(data)
    plain = lambda element: element.tag.rpartition("}")[2]
    need(plain(root) == "graphml")
    keys = {key.get("id"): key for key in root if plain(key) == "key"}
    (graph,) = [element for element in root if plain(element) == "graph"]
    default = {"directed": True, "undirected": False}[graph.get("edgedefault")]

    def values(elements, what):
        found = {}
        used = {datum.get("key") for element in elements for datum in element if plain(datum) == "data"}
        need(used <= set(keys))
        for id_, key in keys.items():
            fallback = next(((x.text or "") for x in key if plain(x) == "default"), None)
            owner = key.get("for", "all")
            if owner not in (what, "all") or (owner == "all" and id_ not in used):
                continue
            if id_ not in used and fallback is None and elements:
                continue
            column = []
            for element in elements:
                texts = [(x.text or "") for x in element if plain(x) == "data" and x.get("key") == id_]
                need(len(texts) < 2)
                column.append(texts[0] if texts else None)
            found.setdefault(key.get("attr.name"), []).append((key.get("attr.type", "string"), fallback, column))
        return {name: [merged(parts, k) for k in range(len(elements))] for name, parts in found.items()}

    def merged(parts, k):
        need(len(parts) == 1 or not {kind for kind, _, _ in parts} & {"string", "boolean"})
        need(len(parts) == 1 or sum(fallback is not None for _, fallback, _ in parts) < 2)
        given = [(kind, column[k]) for kind, _, column in parts if column[k] is not None]
        ((kind, text),) = given or [(kind, fallback) for kind, fallback, _ in parts if fallback is not None]
        if kind in ("int", "long"):
            bits = 31 if kind == "int" else 63
            need(-(2**bits) <= int(text) < 2**bits)
            return int(text)
        if kind in ("float", "double"):
            with np.errstate(over="ignore"):
                return float(np.float32(float(text))) if kind == "float" else float(text)
        return (
            {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()] if kind == "boolean" else text
        )

    nodes = [element for element in graph if plain(element) == "node"]
    edges = [element for element in graph if plain(element) == "edge"]
    labels = [node.get("id") for node in nodes]
    marks = [
        x.text
        for parent in (root, graph)
        for x in parent
        if plain(x) == "data"
        and keys[x.get("key")].get("attr.name") == "sparse_etrace"
        and keys[x.get("key")].get("for") == "graph"
    ]
    mark = json.loads(marks[0]) if marks else {"labels": "str", "shape": [len(labels)] * 2}
    shape = mark["shape"]
    offset = len(labels) - shape[1]
    attrs, weights = values(edges, "edge"), [1.0] * len(edges)
    if "weight" in attrs:
        weights = attrs.pop("weight")
        need(all(isinstance(x, (int, float)) for x in weights))
    rows = list(zip(*attrs.values())) if attrs else [()] * len(edges)
    found = []
    for edge, weight, row in zip(edges, weights, rows):
        i, j = labels.index(edge.get("source")), labels.index(edge.get("target"))
        directed = {"true": True, "false": False, None: default}[edge.get("directed")]
        found.append((i, j - offset, weight, row))
        if not directed and i != j:
            found.append((j, i - offset, weight, row))
    node_attrs = values(nodes, "node")
    if mark["labels"] == "int":
        labels = [int(label) for label in labels]
    return result(labels, shape, found, attrs, node_attrs)


# ---------------------------------------------------------------------------------------------------- binary ones


def tuples(value):
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def nodes_of(arrays):
    """Labels, shape and attributes, as arrays of .npz hold them."""
    labels = arrays.get("labels")
    if labels is not None:
        labels = tuples(json.loads(labels.tobytes())) if labels.dtype == np.uint8 else labels.tolist()
    names = json.loads(arrays["attributes"].tobytes())
    attrs = [{key: arrays[f"{what}_{k}"].tolist() for k, key in enumerate(names[what])} for what in ("node", "edge")]
    return labels, arrays["shape"].tolist(), *attrs


def oracle_npz(data):
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "sparse_etrace" not in arrays:
        import scipy.sparse as sp

        matrix = sp.load_npz(io.BytesIO(data)).tocoo()
        edges = list(zip(matrix.row.tolist(), matrix.col.tolist(), matrix.data.tolist(), [()] * matrix.nnz))
        if arrays["format"].item() in (b"csc", "csc"):
            edges.sort(key=lambda edge: edge[1])
        return result(None, matrix.shape, edges)
    labels, shape, node_attrs, attrs = nodes_of(arrays)
    rows = list(zip(*attrs.values())) if attrs else [()] * len(arrays["pre"])
    edges = zip(arrays["pre"].tolist(), arrays["post"].tolist(), arrays["weight"].tolist(), rows, strict=True)
    return result(labels, shape, list(edges), attrs, node_attrs)


def oracle_feather(data):
    import pyarrow as pa

    need(data.startswith(b"ARROW1") and data.endswith(b"ARROW1"))
    return oracle_table(pa.ipc.open_file(data).read_all(), None)


def oracle_parquet(data):
    import pyarrow.parquet as pq

    facts = pq.read_metadata(io.BytesIO(data)).metadata or {}
    return oracle_table(pq.read_table(io.BytesIO(data)), facts.get(b"sparse_etrace"))


def oracle_table(table, mark):
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    need(len(columns) == table.num_columns and all(x is not None for column in columns.values() for x in column))
    head = [name.lower() for name in columns]
    names = list(columns)
    if "pre" in names and "post" in names:
        pre, post = "pre", "post"
    else:
        ((a, b),) = [x for x in zip(USUAL[::2], USUAL[1::2]) if head.count(x[0]) == head.count(x[1]) == 1]
        pre, post = names[head.index(a)], names[head.index(b)]
    possible = [name for name in names if name.lower() in WEIGHT and name not in (pre, post)]
    weight = "weight" if "weight" in names else possible[0] if possible else None
    node_attrs = {}
    if mark is None:
        for name in (pre, post):
            columns[name] = [x.strip() if isinstance(x, str) else x for x in columns[name]]
        nodes = sorted({*columns[pre], *columns[post]})
        shape, places = (len(nodes), len(nodes)), [{label: k for k, label in enumerate(nodes)}] * 2
    else:
        with np.load(io.BytesIO(base64.b64decode(mark))) as file:
            nodes, shape, node_attrs, _ = nodes_of({name: file[name] for name in file.files})
        places = [None, None]
        if nodes is not None and {type(x) for x in nodes} in ({int}, {str}):
            parts = nodes[: shape[0]], nodes[len(nodes) - shape[1] :]
            places = [{label: k for k, label in enumerate(part)} for part in parts]
    ends = [[k if p is None else p[k] for k in columns[name]] for name, p in zip((pre, post), places)]
    extra = [name for name in names if name not in (pre, post, weight)]
    weights = columns[weight] if weight else [1.0] * table.num_rows
    parts = [name for name in extra if name.lower() in ("neuropil", "roi")]
    if mark is None and (parts or pre.lower() in USUAL[USUAL.index("pre_root_id") :]):
        # Rows of the same cells are parts of one connection.
        extra = [name for name in extra if weight and name not in parts]
        runs = {}
        for row, pair in enumerate(zip(*ends)):
            runs.setdefault(pair, []).append(row)
        extra = [name for name in extra if all(len({columns[name][r] for r in run}) == 1 for run in runs.values())]
        ends = list(zip(*runs)) or ends
        weights = [sum(weights[row] for row in run) for run in runs.values()]
        columns = {name: [columns[name][run[0]] for run in runs.values()] for name in extra}
    rows = list(zip(*(columns[name] for name in extra))) if extra else [()] * len(weights)
    return result(nodes, shape, list(zip(*ends, weights, rows)), extra, node_attrs)


# ---------------------------------------------------------------------------------------------------- seeds and damage


def graphs(se):
    """Graphs that between them hold all that a file can hold."""
    odd = ['a,"b"', "c\nd", " e ", "é\u4e2d", "#f", "01", "plain"]
    return [
        se.from_edges([0, 0, 2, 1, 1], [1, 1, 2, 0, 3], [0.1, -2.5e-30, 0.0, 3, 7]),
        se.from_edges([0, 1, 1], [4, 0, 2], [1, -2, 0.5], shape=(2, 5)),
        se.from_edges(odd, odd[1:] + odd[:1], range(1, 8), labels=odd),
        se.from_edges([5, 2**60, -3], [2**60, -3, 5], [1, 2, 3], labels=[-3, 5, 2**60]),
        se.from_edges([], [], shape=(3, 3)),
        se.from_edges(
            ["x", "y", "x"],
            ["y", "x", "y"],
            [0.5, 1.5, -1],
            labels=["x", "y"],
            node_attrs={"kind": ["K", "P"], "size": [1.5, float("nan")], "n": [3, 4]},
            edge_attrs={"type": ["chemical", "", "gap"], "n": [1, 2, -9], "on": [True, False, True]},
        ),
        se.from_edges(["x", "y", "x"], ["y", "x", "y"], [0.5, 1.5, -1], labels=["x", "y"], edge_attrs={"n": [1, 2, 3]}),
        se.from_edges(list("klmn"), list("lmnk"), [1, 2, 3, 4], labels=list("klmn")),
    ]


MTX = [
    b"%%MatrixMarket matrix coordinate pattern symmetric\n% c\n4 4 3\n2 1\n3 3\n4 2\n",
    b"%%MatrixMarket matrix coordinate integer skew-symmetric\n4 4 2\n2 1 5\n4 2 -7\n",
    b"%%MatrixMarket matrix coordinate real general\n3 4 4\n1 1 1.5\n2 3 -2e-3\n3 4 1E+2\n1 1 0\n",
    b"%%MatrixMarket matrix array real general\n2 3\n1.5\n0\n-2\n4\n0\n6\n",
    b"%%MatrixMarket matrix array integer symmetric\n3 3\n1\n2\n3\n4\n0\n6\n",
]
TABLES = [
    b"source\ttarget\tweight\tkind\n7\t5\t1.5\ta\n5\t9\t2\tb\n9\t7\t-1e3\ta\n",
    b"# comment\nfrom to weight\n0 1 0.5\n1 2 1.5\n2 0 3\n2 0 4\n",
    b"pre;post;n_syn;ok\na;b;3;True\nb;c;4;False\n",
    b"src,dst\n1,2\n2,3\n3,1\n",
]
MATRICES = [b"0 1 2 0\n3 0 0 1\n0 0 1.5 0\n1 1 1 1\n", b"a,b,c,d\n0,1,0,2\n1,0,0,0\n0,0,0,3\n1,1,1,1\n"]
XML = [
    b"""<?xml version="1.0"?><graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="w" for="edge"
attr.name="weight" attr.type="double"><default>1.5</default></key><key id="c" attr.name="colour" attr.type="string"/>
<graph id="G" edgedefault="undirected"><node id="n0"><data key="c">red</data></node>
<node id="n1"><data key="c">a &lt; b</data></node>
<edge id="e" source="n0" target="n1"><data key="w">2</data></edge><edge source="n1" target="n1"/>
<edge source="n1" target="n0" directed="true"/></graph></graphml>"""
]


def seeds(name, se, folder):
    """Sound files of one format, as bytes."""
    found = []
    for k, graph in enumerate(graphs(se)):
        path = folder / f"seed{k}{SUFFIX[name]}"
        try:
            se.write_graph(path, graph, format=name)
        except ValueError:
            continue
        found.append(path.read_bytes())
    if name == "npz":
        import scipy.sparse as sp

        for kind in ("csr", "csc", "coo"):
            buffer = io.BytesIO()
            sp.save_npz(buffer, sp.random_array((4, 5), density=0.4, format=kind, rng=np.random.default_rng(0)))
            found.append(buffer.getvalue())
    if name in ("parquet", "feather"):
        import polars
        import pyarrow as pa
        import pyarrow.feather as pf
        import pyarrow.parquet as pq

        columns = {"pre_root_id": [2**60, 5, 7], "post_root_id": [5, 7, 5], "syn_count": [3, 1, 2]}
        for extra in ({}, {"region": ["a", "b", "a"]}):
            table = pa.table(columns | extra)
            writers = [
                lambda target, table=table: pq.write_table(table, target, compression="none", use_dictionary=False),
                lambda target, table=table: pq.write_table(table, target, compression="gzip"),
            ]
            if name == "feather":
                writers = [
                    lambda target, table=table, kind=kind: pf.write_feather(table, target, compression=kind)
                    for kind in ("uncompressed", "lz4", "zstd")
                ]
                writers.append(lambda target, table=table: polars.from_arrow(table).write_ipc(target))
            for write in writers:
                buffer = io.BytesIO()
                write(buffer)
                found.append(buffer.getvalue())
    extra = {"matrix_market": MTX, "edge_list": TABLES, "adjacency": MATRICES, "graphml": XML}
    return found + extra.get(name, [])


HUGE = [b"99999999999999999999", b"2147483648", b"4000000000", b"-1", b"0", b"1e999", b"nan", b"1.5", b"9" * 400, b""]


def damage(data, rng, others):
    """One of several kinds of damage, once or a few times."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        kind, at = rng.randrange(9), rng.randrange(len(data) + 1)
        size = rng.choice([1, 2, 8, 40])
        lines = bytes(data).split(b"\n")
        if kind == 0:
            for _ in range(rng.choice([1, 2, 8])):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at : at + rng.choice([0, size])] = other[start : start + size]
        elif kind == 3:
            line = rng.randrange(len(lines))
            lines.insert(rng.randrange(len(lines) + 1), lines[line])
            data = bytearray(b"\n".join(lines))
        elif kind == 4:
            del lines[rng.randrange(len(lines))]
            data = bytearray(b"\n".join(lines))
        elif kind == 5:
            runs = list(re.finditer(rb"[0-9.]+", data))
            if runs:
                run = rng.choice(runs)
                data[run.start() : run.end()] = rng.choice(HUGE)
        elif kind == 6:
            if data:
                data[rng.randrange(min(len(data), 120))] = rng.choice(b'\x00\xff ,;\t"#%<>&0123456789aepost\n')
        elif kind == 7:
            data[at:at] = bytes(rng.choice(b'\x00\xff ,;\t"#%<>&-+.e0123456789apo\r\n') for _ in range(size))
        else:
            del data[at : at + size]
    return bytes(data)


def damaged(name, rng, files):
    """A damaged file and its suffix; in archives also damage below the checksums, in packed text above the packing."""
    data = rng.choice(files)
    if name == "npz" and rng.random() < 0.8:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        chosen, buffer = rng.choice(list(members)), io.BytesIO()
        with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
            for member, content in members.items():
                if member == chosen and rng.random() < 0.5 and len(content) > 128:
                    content = bytearray(content)  # after the header
                    content[rng.randrange(128, len(content))] ^= 1 << rng.randrange(8)
                    content = bytes(content)
                elif member == chosen:
                    content = damage(content, rng, list(members.values()))
                archive.writestr(member if rng.random() < 0.98 else f"../{member}", content)
        return buffer.getvalue(), SUFFIX[name]
    if name in ("npz", "parquet", "feather") or rng.random() < 0.8:
        return damage(data, rng, files), SUFFIX[name]
    if rng.random() < 0.5:
        return gzip.compress(damage(data, rng, files)), SUFFIX[name] + ".gz"
    return damage(gzip.compress(data), rng, files), SUFFIX[name] + ".gz"


def main(names, count, seed, folder):
    import sparse_etrace as se

    limit = resource.getrlimit(resource.RLIMIT_AS)
    for name in names.split(","):
        resource.setrlimit(resource.RLIMIT_AS, limit)
        try_format(se, name, int(count), random.Random(int(seed)), Path(folder))


def try_format(se, name, count, rng, folder):
    """Damages files of one format, reads them, and prints what happened as one line of JSON."""
    oracle = globals()[f"oracle_{name}"]
    files = seeds(name, se, folder)
    format_ = "adjacency" if name == "adjacency" else None
    found = {"name": name, "loaded": 0, "refused": 0, "wrong": [], "seconds": 0.0, "bytes": 0}
    warnings.simplefilter("ignore")
    for k, data in enumerate(files):  # warm up, and the oracle agrees on sound files
        path = folder / f"sound{SUFFIX[name]}"
        path.write_bytes(data)
        if of_graph(se.read_graph(path, format=format_)) != oracle(data):
            found["wrong"].append(f"sound file {k}: the oracle disagrees, {data[:300]!r}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for _ in range(count):
        data, suffix = damaged(name, rng, files)
        path = folder / f"damaged{suffix}"
        path.write_bytes(data)
        faulthandler.dump_traceback_later(60, exit=True)
        begin = time.process_time()
        problem = None
        try:
            graph = se.read_graph(path, format=format_)
        except (ValueError, TypeError) as error:
            found["refused"] += 1
            if not str(error).startswith(f"{path}: ") or len(str(error).removeprefix(f"{path}: ").split()) < 3:
                problem = f"no words: {error!r}"
        except BaseException as error:
            problem = f"raw {error!r}"
        else:
            found["loaded"] += 1
        used = time.process_time() - begin
        faulthandler.cancel_dump_traceback_later()
        found["seconds"] = max(found["seconds"], used)
        if problem is None and used > SECONDS:
            problem = f"took {used:.1f} s"
        if problem is None and "graph" in locals():
            try:
                plain = gzip.decompress(data) if suffix.endswith(".gz") else data
                if of_graph(graph) != oracle(plain):
                    problem = "the oracle reads another graph"
            except Exception as error:
                problem = f"read, though the oracle refuses it: {error!r}"
            del graph
        if problem:
            found["wrong"].append(f"{problem}: {data[:1500]!r}")
    found["bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if not math.isfinite(found["seconds"]) or found["bytes"] > MEMORY:
        found["wrong"].append(f"took {found['bytes']} bytes")
    found["count"], found["wrong"] = len(found["wrong"]), found["wrong"][:20]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
