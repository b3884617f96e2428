"""Matrix Market: `A[i, j]` is the synapse i -> j. Holds sizes, weights and parallel synapses, no labels or attributes.

R. F. Boisvert, R. Pozo, K. A. Remington (1996), The Matrix Market exchange formats: initial design, NISTIR 5935.
"""

import io
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.io
import scipy.sparse as sp

from .._graph.build import build_graph
from .._graph.graph import Graph
from .safe import CHUNK, Options, Source, as_nodes, damaged, host_ends, host_weight, refuse_attributes, sound

FIELDS = {"real": "[-+0-9.eE]", "integer": "[-0-9]", "unsigned-integer": "[0-9]", "pattern": ""}
SYMMETRIES = ("general", "symmetric", "skew-symmetric")
OTHERS = ".npz, .graphml or .parquet"


def read(source: Source, options: Options) -> Graph:
    """Read a coordinate or array file of real, integer or pattern entries, of any symmetry but Hermitian."""
    options.refuse("Matrix Market has no columns", "pre", "post", "weight", "separator", "edge_attrs")
    data = source.read()
    # Scipy runs over the end of a line that has a NUL, or no end.
    if b"\0" in data:
        damaged("text", f"a NUL at byte {data.index(0)}")
    if not data.endswith(b"\n"):
        data += b"\n"
    layout, field, symmetry, sizes, start = _header(data)
    num_pre, num_post = sizes[:2]
    source.check_units(num_pre, num_post)
    if symmetry != "general" and num_pre != num_post:
        damaged(f"a square matrix, as it is {symmetry}", f"{num_pre} x {num_post}")
    if layout == "coordinate":
        count, columns = sizes[2], 2 + (field != "pattern")
    else:
        count, columns = num_pre * num_post, 1
        if symmetry != "general":
            count = num_pre * (num_pre + (1 if symmetry == "symmetric" else -1)) // 2
    if count * 2 * columns > len(data) - start + 1:
        damaged(f"{count} entries, as its head claims", f"{len(data) - start} bytes of them")
    with ThreadPoolExecutor(1) as beside:
        # scipy passes over whatever follows a value on its line.
        check = beside.submit(_check_body, data, start, layout, field, columns * count)
        if layout == "array" or not count:  # here scipy itself checks little
            check.result()
        with sound("a sound Matrix Market file", ValueError, OverflowError):
            matrix = scipy.io.mmread(io.BytesIO(data), spmatrix=False)
        if matrix.shape != (num_pre, num_post):
            damaged(f"shape {(num_pre, num_post)}, as its head claims", str(matrix.shape))
        if sp.issparse(matrix):
            (pre, post), weight = matrix.coords, matrix.data
            _check_triangle(pre[:count], post[:count], weight, symmetry)
        else:
            pre, post = np.nonzero(matrix)
            weight = matrix[pre, post]
        weight = None if field == "pattern" else weight
        graph = build_graph(pre, post, weight, (num_pre, num_post), policies=options.policies)
        check.result()
    return graph


def write(target: io.BufferedIOBase, graph: Graph) -> None:
    """Write all synapses as real entries, with all digits."""
    refuse_attributes("Matrix Market", OTHERS, graph.node_attrs | graph.edge_attrs)
    labels = as_nodes(graph.nodes)
    if labels is not None:
        raise ValueError(
            f"graph: expected nodes without labels, as Matrix Market numbers them, got {labels[0]!r}. Write {OTHERS}."
        )
    # As float64, so that each weight is read to the bit in either type.
    weight = host_weight(graph).astype(np.float64)
    matrix = sp.coo_array((weight, host_ends(graph)), shape=graph.connectivity.shape)
    scipy.io.mmwrite(target, matrix, field="real", symmetry="general")


def _header(data: bytes) -> tuple[str, str, str, list[int], int]:
    """Return layout, field, symmetry, sizes, and where the entries begin."""
    end = data.find(b"\n") + 1
    words = data[: min(end, 1000)].decode("ascii", "replace").lower().split()
    if len(words) != 5 or words[:2] != ["%%matrixmarket", "matrix"]:
        damaged("a first line like '%%MatrixMarket matrix coordinate real general'", "another")
    layout, field, symmetry = words[2:]
    if layout not in ("coordinate", "array"):
        raise ValueError(f"expected the layout 'coordinate' or 'array', got {layout!r}.")
    if field == "complex" or symmetry == "hermitian":
        raise ValueError(f"expected real numbers as weights, got {field} {symmetry} ones. Write the real part.")
    if field not in FIELDS or (field == "pattern" and layout == "array"):
        raise ValueError(f"expected {layout} entries of a kind among {', '.join(FIELDS)}, got {field!r}.")
    if symmetry not in SYMMETRIES or (field == "pattern" and symmetry == "skew-symmetric"):
        raise ValueError(f"expected a symmetry of {field} matrices among {', '.join(SYMMETRIES)}, got {symmetry!r}.")
    while True:
        start, end = end, data.find(b"\n", end) + 1
        line = data[start : end or None].strip()
        if line and not line.startswith(b"%"):
            break
        if not end:
            damaged("a line of sizes", "the end of the file")
    found = line.split()
    if len(found) != (3 if layout == "coordinate" else 2) or not all(re.fullmatch(rb"\d{1,18}", x) for x in found):
        damaged(f"whole numbers as the sizes of a {layout} matrix", repr(line[:60].decode("ascii", "replace")))
    return layout, field, symmetry, [int(x) for x in found], end or len(data)


def _check_body(data: bytes, start: int, layout: str, field: str, tokens: int) -> None:
    """Refuse characters and numbers of words that scipy passes over."""
    found, lines, end = 0, 0, len(data)
    lower = bytes.maketrans(b"E\t\r", b"e  ")
    while start < end:
        stop = end if end - start <= CHUNK else data.rfind(b"\n", start, start + CHUNK) + 1
        if not stop:
            damaged("lines of at most a million characters", "a longer one")
        piece = data[start:stop]
        points = piece.translate(lower, b"0123456789+-")
        codes = np.frombuffer(piece, np.uint8)
        word = codes > 32
        found += int(word[0]) + int(np.count_nonzero(word[1:] > word[:-1]))
        if layout == "array":
            number = np.cumsum(codes == 10)[word]
            lines += int(number.size > 0) + int(np.count_nonzero(np.diff(number)))
        if points.translate(None, b".e \n" if field == "real" else b" \n") or not _sound_words(piece, points, codes):
            raise ValueError(
                f"expected finite {field} numbers as entries, got another one in the {len(piece)} bytes from "
                f"byte {start}. Correct it."
            )
        start = stop
    if found != tokens or (layout == "array" and lines != tokens):
        damaged(f"{tokens} words in the entries, as many in each line as their kind says", str(found))


def _sound_words(piece: bytes, points: bytes, codes: np.ndarray) -> bool:
    """Whether signs, points, exponents stand as in numbers of the last column; `points` is `piece` without digits."""
    if any(pair in points for pair in (b"..", b"e.", b"ee")):
        return False
    # A point before a space: of a last column with spaces after it, or of an index.
    if (b". " in points or b"e " in points) and re.search(rb"[.eE]\S*[ \t\r]+\S", piece):
        return False
    last = codes.size - 1
    signs = np.flatnonzero((codes == 45) | (codes == 43))
    before, after = codes[signs - 1], codes[np.minimum(signs + 1, last)]
    if not (((before <= 32) | (before | 32 == 101) | (signs == 0)) & ((after - 48 < 10) | (after == 46))).all():
        return False
    if b"e" not in points:
        return True
    after = codes[np.minimum(np.flatnonzero(codes | 32 == 101) + 1, last)]
    return bool(((after - 48 < 10) | (after == 45) | (after == 43)).all())


def _check_triangle(pre: np.ndarray, post: np.ndarray, weight: np.ndarray, symmetry: str) -> None:
    if symmetry == "general":
        return
    if (pre < post).any() and (pre > post).any():
        raise ValueError(
            f"expected entries on one side of the diagonal, as it is {symmetry}, got both sides. Leave out one."
        )
    if symmetry == "skew-symmetric" and (weight[: pre.size][pre == post] != 0).any():
        raise ValueError("expected zeros on the diagonal, as it is skew-symmetric, got another number. Leave it out.")
