"""Numpy's .npz: everything but object attributes; also what `scipy.sparse.save_npz` wrote."""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._graph.build import build_graph
from .._graph.columns import strings, text_cells
from .._graph.graph import Graph
from .._graph.matrices import from_scipy
from .safe import Options, Source, as_nodes, damaged, from_json, host_ends, host_weight, only_strings, sound, to_json

VERSION = 1
UNREADABLE = ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, RecursionError, OverflowError
ROWS = ("indices", "indptr")
PARTS = {"bsr": ROWS, "csc": ROWS, "csr": ROWS, "coo": ("row", "col"), "dia": ("offsets",)}
SCIPY = {"bsr": 3, "csc": 3, "csr": 3, "coo": 1, "dia": 1}


def read(source: Source, options: Options) -> Graph:
    """Read a graph of `write`, or a matrix of `scipy.sparse.save_npz`."""
    options.refuse(".npz has no columns", "pre", "post", "weight", "separator")
    arrays = arrays_of(source, source.path.read_bytes())
    if "sparse_etrace" not in arrays:
        return _of_scipy(source, arrays, options)
    if arrays["sparse_etrace"].shape or arrays["sparse_etrace"] != VERSION:
        damaged(f"version {VERSION} of this format", repr(arrays["sparse_etrace"]))
    shape, labels, node_attrs, edge_attrs = unpack(source, arrays)
    pre, post, weight = (_member(arrays, name) for name in ("pre", "post", "weight"))
    kept = {name: edge_attrs[name] for name in options.kept(list(edge_attrs))}
    return build_graph(pre, post, weight, shape, labels, node_attrs, kept, policies=options.policies)


def arrays_of(source: Source, data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays in the bytes of an archive, whose sizes are checked before anything is unpacked."""
    if not data.startswith(b"PK"):
        damaged("an .npz file", "one that begins otherwise")
    unsound = zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, OSError
    with sound("a sound .npz file", *unsound), zipfile.ZipFile(io.BytesIO(data)) as archive:
        return _arrays(source, archive)


def unpack(source: Source, arrays: dict[str, np.ndarray]) -> tuple[tuple[int, int], Any, dict, dict]:
    """Return shape, labels and attributes."""
    sizes = _member(arrays, "shape")
    if sizes.shape != (2,) or sizes.dtype.kind not in "iu":
        damaged("two integers as the shape", repr(sizes.tolist()))
    shape = int(sizes[0]), int(sizes[1])
    source.check_units(*shape)
    labels: Any = arrays.get("labels")
    if labels is not None and labels.dtype == np.uint8:
        labels = [_hashable(value) for value in from_json(labels.tobytes(), lambda value: isinstance(value, list))]
    elif labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        damaged("one integer a node as labels", f"{labels.dtype} of shape {labels.shape}")
    elif labels is not None:
        labels = labels.tolist()
    names = from_json(_member(arrays, "attributes").tobytes(), _are_names)
    attrs = [{key: _attribute(arrays, f"{what}_{k}") for k, key in enumerate(keys)} for what, keys in names.items()]
    return shape, labels, attrs[0], attrs[1]


def write(target: io.BufferedIOBase, graph: Graph) -> None:
    """Write a graph; labels that are no 64-bit integers as JSON."""
    pre, post = host_ends(graph)
    np.savez(target, pre=pre, post=post, weight=host_weight(graph), **_pack(graph))  # type: ignore[arg-type]


def bytes_of(graph: Graph, **more: np.ndarray) -> bytes:
    """Return an archive of everything but the synapses, and of `more`."""
    target = io.BytesIO()
    np.savez_compressed(target, **_pack(graph, edges=False), **more)  # type: ignore[arg-type]
    return target.getvalue()


def _pack(graph: Graph, edges: bool = True) -> dict[str, np.ndarray]:
    """Return what `unpack` reads: shape, labels and attributes."""
    arrays = {"sparse_etrace": np.array(VERSION), "shape": np.array(graph.connectivity.shape, np.int64)}
    labels = as_nodes(graph.nodes)
    if labels is not None:
        whole = _integers(labels)
        arrays["labels"] = _text([_plain(label) for label in labels]) if whole is None else whole
    names = {}
    for what, attrs in (("node", graph.node_attrs), ("edge", graph.edge_attrs if edges else {})):
        only_strings(".npz", attrs)
        names[what] = list(attrs)
        for k, (key, column) in enumerate(attrs.items()):
            text = text_cells(column) if column.dtype.kind == "O" else None
            if text is None and column.dtype.kind not in "biufcSUmM":
                raise ValueError(
                    "graph: expected numbers, strings or arrays of these, which .npz holds without pickling, got "
                    f"{what} attribute {key!r} of type {column.dtype}. Convert it."
                )
            if text is None:
                arrays[f"{what}_{k}"] = column
            else:
                arrays[f"{what}_{k}_text"] = _text(text)
    return arrays | {"attributes": _text(names)}


def _of_scipy(source: Source, arrays: dict[str, np.ndarray], options: Options) -> Graph:
    if not {"format", "shape", "data"} <= set(arrays):
        raise ValueError(
            "expected what `write_graph` or scipy.sparse.save_npz wrote, got the arrays "
            f"{', '.join(sorted(arrays)) or 'of nothing'}. Load it with numpy.load and pass the arrays to "
            "`from_edges`."
        )
    kind = arrays["format"].item() if arrays["format"].shape == () else None
    kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else kind
    if kind not in SCIPY:
        raise ValueError(f"expected a scipy matrix of a format among {', '.join(SCIPY)}, got {kind!r}. Convert it.")
    sizes, data = arrays["shape"], arrays["data"]
    if sizes.shape != (2,) or sizes.dtype.kind not in "iu":
        damaged("two sizes as the shape of a graph", repr(sizes.tolist()))
    shape = int(sizes[0]), int(sizes[1])
    source.check_units(*shape)
    if data.ndim != SCIPY[kind] and not (kind in ("csr", "csc") and data.ndim == 1) and kind != "dia":
        damaged(f"the data of a {kind} matrix", f"shape {data.shape}")
    if data.dtype.kind not in "biuf":
        raise ValueError(f"expected real numbers as weights, got {data.dtype}. Save the real part or the modulus.")
    parts = [_member(arrays, name) for name in PARTS[kind]]
    for name, part in zip(PARTS[kind], parts, strict=True):
        if part.dtype.kind not in "iu" or part.ndim != 1:
            damaged(f"a list of integers as {name}", f"{part.dtype} of shape {part.shape}")
    inputs: Any = (data, *parts) if kind != "coo" else (data, tuple(parts))
    matrix = getattr(sp, f"{kind}_array")(inputs, shape=shape)
    if kind == "dia" and data.shape[0]:
        source.check_size(data.nbytes)
    policies = options.policies
    return from_scipy(matrix, duplicates=policies.duplicates, self_loops=policies.self_loops, dtype=policies.dtype)


def _arrays(source: Source, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    members = archive.infolist()
    source.check_size(sum(member.file_size for member in members))
    arrays: dict[str, np.ndarray] = {}
    for member in members:
        name = member.filename
        if "/" in name or "\\" in name or ".." in name:
            damaged("plain names in the archive", f"{name!r}, a path that leaves it")
        if not name.endswith(".npy") or name[:-4] in arrays:
            what = "twice" if name.endswith(".npy") else "which is no array"
            damaged("arrays of different names", f"{name!r}, {what}")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"expected {name!r} stored or deflated, got it encrypted or packed in another way. Write it anew "
                "with numpy.savez."
            )
        arrays[name[:-4]] = _array(name, archive.read(member))
    return arrays


def _array(name: str, data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    what = f"a sound array as member {name!r}"
    with sound(what, *UNREADABLE):
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version in read_header:
            shape, _, dtype = read_header[version](file)
        else:
            raise ValueError(f"expected version (1, 0) or (2, 0) of .npy, got {version}. Write it with numpy.savez.")
    if dtype.hasobject or dtype.kind not in "biufcSUmM":
        raise ValueError(f"expected numbers or text as member {name!r}, got {dtype}. Nothing is unpickled.")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size != len(data) - file.tell() or min(shape, default=0) < 0:
        damaged(f"{dtype} of shape {shape} as member {name!r}, as its head claims", f"{len(data) - file.tell()} bytes")
    file.seek(0)
    with sound(what, ValueError, TypeError, MemoryError, OverflowError):
        array = np.lib.format.read_array(file, allow_pickle=False)
    letters = np.dtype(np.uint32).newbyteorder(dtype.byteorder)
    if dtype.kind == "U" and (np.frombuffer(array.tobytes(), letters) > 0x10FFFF).any():
        damaged(f"characters that exist in member {name!r}", "others")
    return array


def _member(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        damaged(f"an array {name!r}", ", ".join(sorted(arrays)))
    return arrays[name]


def _attribute(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return an attribute; strings of very different lengths stand as JSON."""
    if f"{name}_text" not in arrays:
        return _member(arrays, name)
    return strings(from_json(arrays[f"{name}_text"].tobytes(), _are_strings))


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(cell, str) for cell in value)


def _are_names(value: object) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == ["node", "edge"]
        and all(isinstance(keys, list) and all(isinstance(key, str) for key in keys) for keys in value.values())
    )


def _text(value: object) -> np.ndarray:
    return np.frombuffer(to_json(value).encode(), np.uint8)


def _integers(labels: Sequence[Hashable]) -> np.ndarray | None:
    if labels and all(type(label) is int for label in labels):
        for kind in (np.int64, np.uint64):
            limits = np.iinfo(kind)
            if all(limits.min <= label <= limits.max for label in labels):  # type: ignore[operator]
                return np.array(labels, kind)
    return None


def _plain(label: object) -> object:
    if isinstance(label, tuple):
        return [_plain(part) for part in label]
    value = label.item() if isinstance(label, np.generic) else label
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise ValueError(
        f"graph: expected labels that are strings, numbers or tuples of these, got {label!r}, a "
        f"{type(label).__name__}. Convert them."
    )


def _hashable(value: object) -> object:
    if isinstance(value, list):
        return tuple(_hashable(part) for part in value)
    if isinstance(value, dict):
        damaged("labels that are strings, numbers or tuples of these", repr(value))
    return value
