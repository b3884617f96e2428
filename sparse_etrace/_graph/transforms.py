"""Graphs made from graphs."""

import math

import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Real
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, eigs

from .build import check_weight
from .connectivity import Connectivity
from .graph import Graph

# Blocks up to the first size are solved densely at once, up to the second one if the iteration fails.
_DENSE, _DENSE_FALLBACK = 300, 3000


def spectral_radius(
    graph: Graph | Connectivity, weight: Real[Array | np.ndarray, " num_synapses"] | None = None
) -> float:
    """Return the largest modulus of an eigenvalue of the weight matrix, `max |lambda(A)|`.

    The spectrum of `A` is that of its strongly connected components, so an acyclic graph has radius exactly 0 and
    only components that may exceed the others are solved: small ones densely, large ones by an implicitly restarted
    Arnoldi iteration in float64 from a fixed start vector, to a relative tolerance of 1e-7.

    Args:
        graph: a square graph or connectivity; `A` need not be symmetric.
        weight: weights in canonical order, `(num_synapses,)`; the graph's own, or 1 for a connectivity, unless given.

    Returns:
        The radius; 0 for an empty graph.

    Raises:
        TypeError: weights are traced or no real numbers.
        ValueError: the graph is not square, a weight is not finite, or the iteration does not converge.

    References:
        Lehoucq, Sorensen, Yang, ARPACK Users' Guide, SIAM 1998.

    Example:
        >>> import sparse_etrace as se
        >>> round(se.spectral_radius(se.from_edges([0, 1], [1, 0], [2.0, 8.0])), 6)
        4.0
    """
    conn = graph.connectivity if isinstance(graph, Graph) else graph
    if weight is None and isinstance(graph, Graph):
        weight = graph.weight
    if conn.num_pre != conn.num_post:
        raise ValueError(f"graph: expected a square one, which alone has a spectral radius, got shape {conn.shape}.")
    if conn.num_synapses == 0:
        return 0.0
    pre, post = np.asarray(conn.pre), np.asarray(conn.post)
    weight = check_weight(weight, conn.num_synapses, np.float64, lambda k: f"synapse {pre[k]} -> {post[k]}")
    matrix = sp.csc_array((np.array(weight), pre.copy(), np.array(conn.post_ptr)), shape=conn.shape)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return _largest_radius(matrix.tocoo())


def scale_spectral_radius(graph: Graph, rho: float) -> Graph:
    """Scale all weights by one factor, so that `max |lambda(A)| = rho`.

    Args:
        graph: a square graph.
        rho: the radius wanted, positive.

    Returns:
        The graph with `weight * rho / spectral_radius(graph)`, in the weight's own type.

    Raises:
        ValueError: `rho` is not positive and finite, the graph is not square, or its radius is 0.

    Example:
        >>> import sparse_etrace as se
        >>> se.scale_spectral_radius(se.from_edges([0, 1], [1, 0], [2.0, 8.0]), 0.5).weight.tolist()
        [1.0, 0.25]
    """
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho: expected a positive, finite number, got {rho}.")
    radius = spectral_radius(graph)
    if radius == 0:
        raise ValueError("graph: expected a cycle of non-zero weights, got none, its spectral radius is 0. Add one.")
    return graph.with_weight(graph.weight * (rho / radius))


def _largest_radius(matrix: sp.coo_array) -> float:
    size = matrix.shape[0]
    count, component = connected_components(matrix, directed=True, connection="strong")
    inside = component[matrix.coords[0]] == component[matrix.coords[1]]
    pre, post, weight = matrix.coords[0][inside], matrix.coords[1][inside], matrix.data[inside]
    # Both the largest row sum and the largest column sum of |A| bound the radius; for a single unit both are exact.
    bound = np.full(count, np.inf)
    for ends in (pre, post):
        sums = np.zeros(count)
        np.maximum.at(sums, component, np.bincount(ends, np.abs(weight), size))
        bound = np.minimum(bound, sums)
    sizes = np.bincount(component, minlength=count)
    best = float(bound[sizes == 1].max(initial=0.0))
    units, entries = np.argsort(component, kind="stable"), np.argsort(component[pre], kind="stable")
    local = np.empty(size, np.int64)
    local[units] = np.arange(size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    last = np.cumsum(np.bincount(component[pre], minlength=count))
    for c in np.argsort(-bound, kind="stable"):
        if bound[c] <= best:
            break
        if sizes[c] > 1:
            own = entries[last[c - 1] if c else 0 : last[c]]
            block = sp.csr_array((weight[own], (local[pre[own]], local[post[own]])), shape=(sizes[c], sizes[c]))
            best = max(best, _block_radius(block))
    return best


def _block_radius(block: sp.csr_array) -> float:
    size = block.shape[0]
    if size > _DENSE:
        # The leading eigenvalue of a non-negative matrix is its largest real one, and a positive start contains its
        # vector. Otherwise several are asked for: a search for one alone may settle on a lesser one near by.
        if block.data.min() >= 0:
            search = {"k": 1, "which": "LR", "v0": np.ones(size)}
        else:
            search = {"k": 6, "which": "LM", "v0": np.random.default_rng(0).standard_normal(size)}
        try:
            values = eigs(block, ncv=128, maxiter=60, tol=1e-7, return_eigenvectors=False, **search)
            return float(np.abs(values).max())
        except ArpackError as error:
            if size > _DENSE_FALLBACK:
                raise ValueError(
                    "graph: expected leading eigenvalues that the Arnoldi iteration tells apart, got a component of "
                    f"{size} units where it did not converge. Scale by another norm."
                ) from error
    return float(np.abs(np.linalg.eigvals(block.toarray())).max())
