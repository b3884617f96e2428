"""Matrices by which a graph network spreads what its nodes hold."""

import numpy as np
import scipy.sparse as sp

from .._graph.graph import Graph
from .._graph.matrices import from_scipy
from .._numbers import positive, real
from .merge import transpose
from .normalized import normalize
from .origin import Made, Origin, parts_of, squared

WHY = "whose nodes send and receive"


def diffusion_supports(
    graph: Graph, steps: int = 2, backward: bool = True, kind: str = "power", *, with_origin: bool = False
) -> Made:
    """Make the matrices of a diffusion convolution: `I, P, ..., P^K` along synapses, `Q, ..., Q^K` against them.

    `P = D_out^-1 A` and `Q = D_in^-1 A^T` are random walks, where nodes without synapses stay empty.

    Args:
        graph: a square graph.
        steps: `K`, how many synapses a walk is long.
        backward: whether to walk against synapses as well.
        kind: "power", or "chebyshev": `2 P T_k - T_(k-1)` in the place of powers, as the code of DCRNN has it.
        with_origin: return which synapse became which, too; walks of several are new ones.

    Returns:
        A tuple of `1 + K` or `1 + 2 K` graphs on the same nodes, parallel synapses merged, without edge attributes; or
        with `with_origin` a pair of it and a tuple of an `Origin` for each.

    Raises:
        TypeError: `graph` is no graph, or is traced; `steps` is no whole number.
        ValueError: the graph is not square, `steps` is below 1, or `kind` unknown.

    References:
        Li, Yu, Shahabi, Liu (2018), Diffusion convolutional recurrent neural network, ICLR.

    Example:
        >>> import sparse_etrace as se
        >>> supports = se.transform.diffusion_supports(se.from_edges([0, 0, 1], [1, 2, 2], [1.0, 3.0, 5.0]))
        >>> [support.weight.tolist() for support in supports]
        [[1.0, 1.0, 1.0], [0.25, 0.75, 1.0], [0.25], [1.0, 0.375, 0.625], [0.625]]
    """
    squared(graph, WHY)
    if kind not in ("power", "chebyshev"):
        raise ValueError(f"kind: expected 'power' or 'chebyshev', got {kind!r}.")
    walks = [graph, transpose(graph)] if backward else [graph]
    found = [_eye(graph)]
    for walk in walks:
        found += _series(_wide(normalize(walk, "row")), positive("steps", steps), kind == "chebyshev")[1:]
    return _made(found, graph, (1, 1 + steps), with_origin)


def chebyshev_supports(graph: Graph, order: int = 2, largest: float = 2.0, *, with_origin: bool = False) -> Made:
    """Make the Chebyshev polynomials of the scaled Laplacian: `T_0 = I, T_1 = L, T_(k+1) = 2 L T_k - T_(k-1)`.

    `L = 2 (I - D^-1/2 A D^-1/2) / largest - I`, which for `largest=2` has no diagonal.

    Args:
        graph: a square graph, of one weight in both directions where the polynomials are to be a spectral filter.
        order: how many matrices, at least 1.
        largest: the largest eigenvalue of the Laplacian, or its bound, 2.
        with_origin: return which synapse became which, too; those of `T_2` and later are new.

    Returns:
        A tuple of `order` graphs on the same nodes, parallel synapses merged, self-loops left out, without edge
        attributes; or with `with_origin` a pair of it and a tuple of an `Origin` for each.

    Raises:
        TypeError: `graph` is no graph, or is traced; `order` is no whole number.
        ValueError: the graph is not square, `order` is below 1, or `largest` is not positive.

    References:
        Defferrard, Bresson, Vandergheynst (2016), Convolutional neural networks on graphs with fast localized spectral
        filtering, NeurIPS.

    Example:
        >>> import sparse_etrace as se
        >>> pair = se.from_edges([0, 1], [1, 0])
        >>> [support.to_dense().tolist() for support in se.transform.chebyshev_supports(pair)]
        [[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [-1.0, 0.0]]]
    """
    squared(graph, WHY)
    if not real("largest", largest) > 0:
        raise ValueError(f"largest: expected a positive number, got {largest}.")
    matrix = _wide(graph)
    matrix.setdiag(0)
    eye = _eye(graph)
    adjacent = _wide(normalize(_graph_of(matrix, graph), "gcn"))
    laplacian = (2 / largest - 1) * eye - (2 / largest) * adjacent
    found = _series(laplacian, positive("order", order) - 1, chebyshev=True)
    return _made(found, graph, (1,), with_origin, loops=False)


def _series(matrix: sp.csr_array, steps: int, chebyshev: bool) -> list[sp.csr_array]:
    """Powers from 0 to `steps`, or polynomials."""
    found = [sp.eye_array(matrix.shape[0], format="csr"), matrix][: steps + 1]
    for _ in range(steps - 1):
        found.append(2 * (matrix @ found[-1]) - found[-2] if chebyshev else matrix @ found[-1])
    return found


def _eye(graph: Graph) -> sp.csr_array:
    return sp.eye_array(len(graph.nodes), format="csr")


def _wide(graph: Graph) -> sp.csr_array:
    return graph.to_scipy().astype(np.float64).tocsr()


def _made(matrices: list, graph: Graph, single: tuple, with_origin: bool, loops: bool = True) -> Made:
    """The graphs; in those numbered `single`, along synapses and against them, each is one that was given."""
    made = tuple(_graph_of(matrix, graph) for matrix in matrices)
    if not with_origin:
        return made
    ends, origins = parts_of(graph)[:2], [Origin.run(0)] * len(made)
    given = np.flatnonzero((ends[0] != ends[1]) | loops)
    for k, (pre, post) in zip(single, (ends, ends[::-1])):
        if k < len(made):
            there, wanted = (_key(*at, len(graph.nodes)) for at in (parts_of(made[k])[:2], (pre[given], post[given])))
            new = np.searchsorted(there, wanted)
            kept = np.flatnonzero(np.isin(wanted, there))
            kept = kept[np.argsort(new[kept], kind="stable")]
            origins[k] = Origin(given[kept].astype(np.int32), new[kept].astype(np.int32))
    return made, tuple(origins)


def _key(pre: np.ndarray, post: np.ndarray, size: int) -> np.ndarray:
    return post.astype(np.int64) * size + pre


def _graph_of(matrix: sp.csr_array, like: Graph) -> Graph:
    matrix.eliminate_zeros()
    made = from_scipy(matrix, dtype=like.weight.dtype)
    return Graph(made.connectivity, made.weight, parts_of(like).nodes, like.node_attrs)
