"""Graphs from matrices: scipy's, dense ones, JAX's BCOO, BCSR and CSR."""

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.experimental.sparse import BCOO, BCSR, CSR
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from .._arrays import on_device
from .build import Policies, build_graph
from .connectivity import Connectivity, canonical_order, expand_ptr, host_array
from .edges import from_dataframe as from_dataframe, from_edges as from_edges
from .graph import Graph
from .networks import from_networkx as from_networkx

Sparse = TypeVar("Sparse", BCOO, BCSR, CSR)


def matrix_connectivity(M: Any) -> tuple[Connectivity, Int[Array, " num_synapses"]]:
    """Return the connectivity of a sparse matrix, and where in the matrix's own data each synapse is.

    Args:
        M: a two-dimensional scipy matrix or array of any format, `BCOO`, `BCSR` or `CSR`; explicit zeros are synapses.

    Returns:
        The connectivity, and `order` `(num_synapses,)`: the weight of synapse `s` is `data[order[s]]`, where `data` is
        `M.data`, or `M.tocoo().data` for the scipy formats BSR, DIA, DOK and LIL. Padding (in BCOO an index equal to
        the size, in compressed formats whatever follows the last pointer) is in `data` and not in `order`.

    Raises:
        TypeError: `M` is no such matrix, or its indices are traced.
        ValueError: `M` is not two-dimensional, has batch or dense dimensions, or its indices do not fit its shape.

    Example:
        >>> import scipy.sparse as sp
        >>> from sparse_etrace._graph.matrices import matrix_connectivity
        >>> conn, order = matrix_connectivity(sp.csr_array([[1.0, 2.0], [3.0, 0.0]]))
        >>> conn.pre.tolist(), conn.post.tolist(), order.tolist()
        ([0, 1, 0], [0, 0, 1], [0, 2, 1])
    """
    pre, post, _, slot = _entries(M)
    order, connectivity = canonical_order(pre, post, M.shape)
    return connectivity, on_device(order if slot is None else slot[order], jnp.int32)


def from_scipy(A: Any, *, duplicates: str = "keep", self_loops: str = "keep", dtype: DTypeLike = jnp.float32) -> Graph:
    """Return the graph of a scipy sparse matrix or array: a synapse for each stored entry, zeros included.

    Entries of equal indices are parallel synapses in the order in which they are stored. DIA has no explicit zeros.

    Args:
        A: a matrix or array of any format, `(num_pre, num_post)`; `A[i, j]` is the weight of `i -> j`.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A graph of the same shape, nodes labelled by position.

    Raises:
        TypeError: `A` is no scipy sparse matrix.
        ValueError: `A` is not two-dimensional; or as `from_edges`.

    Example:
        >>> import scipy.sparse as sp, sparse_etrace as se
        >>> se.from_scipy(sp.csr_array([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]])).connectivity.shape
        (2, 3)
    """
    if not sp.issparse(A):
        raise TypeError(f"A: expected a scipy sparse matrix, got {type(A).__name__}. `from_dense` takes a dense one.")
    return _from_matrix(A, Policies(duplicates, self_loops, dtype))


def from_dense(
    W: object, *, duplicates: str = "keep", self_loops: str = "keep", dtype: DTypeLike = jnp.float32
) -> Graph:
    """Return the graph of a dense matrix: a synapse for each entry that is not zero.

    Args:
        W: `(num_pre, num_post)`, real numbers; `W[i, j]` is the weight of `i -> j`.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A graph of the same shape, nodes labelled by position.

    Raises:
        TypeError: `W` is traced or holds no real numbers.
        ValueError: `W` is not two-dimensional; or as `from_edges`.

    Example:
        >>> import sparse_etrace as se
        >>> se.from_dense([[0.0, 2.0], [1.0, 0.0]]).weight.tolist()
        [1.0, 2.0]
    """
    dense = host_array("W", W)
    if dense.ndim != 2:
        raise ValueError(f"W: expected two dimensions, (num_pre, num_post), got shape {dense.shape}.")
    pre, post = np.nonzero(dense)
    policies = Policies(duplicates, self_loops, dtype)
    return build_graph(pre, post, dense[pre, post], dense.shape, policies=policies)


def from_bcoo(
    M: object, *, duplicates: str = "keep", self_loops: str = "keep", dtype: DTypeLike = jnp.float32
) -> Graph:
    """Return the graph of a JAX `BCOO`: a synapse for each entry that is no padding, zeros included.

    Args:
        M: `(num_pre, num_post)`, without batch or dense dimensions. An index equal to the size marks padding.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A graph of the same shape, nodes labelled by position.

    Raises:
        TypeError: `M` is no `BCOO`, or is traced.
        ValueError: `M` is not two-dimensional or has batch or dense dimensions; or as `from_edges`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> from jax.experimental.sparse import BCOO
        >>> se.from_bcoo(BCOO.fromdense(jnp.eye(2), nse=5)).connectivity.num_synapses
        2
    """
    return _from_matrix(_of_type(M, BCOO), Policies(duplicates, self_loops, dtype))


def from_bcsr(
    M: object, *, duplicates: str = "keep", self_loops: str = "keep", dtype: DTypeLike = jnp.float32
) -> Graph:
    """Return the graph of a JAX `BCSR`: a synapse for each entry up to the last pointer, zeros included.

    Args:
        M: `(num_pre, num_post)`, without batch or dense dimensions.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A graph of the same shape, nodes labelled by position.

    Raises:
        TypeError: `M` is no `BCSR`, or is traced.
        ValueError: `M` is not two-dimensional or has batch or dense dimensions; or as `from_edges`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> from jax.experimental.sparse import BCSR
        >>> se.from_bcsr(BCSR.fromdense(jnp.eye(2))).connectivity.post.tolist()
        [0, 1]
    """
    return _from_matrix(_of_type(M, BCSR), Policies(duplicates, self_loops, dtype))


def from_csr(M: object, *, duplicates: str = "keep", self_loops: str = "keep", dtype: DTypeLike = jnp.float32) -> Graph:
    """Return the graph of a JAX `CSR`: a synapse for each entry up to the last pointer, zeros included.

    Args:
        M: `(num_pre, num_post)`.
        duplicates, self_loops, dtype: see `from_edges`.

    Returns:
        A graph of the same shape, nodes labelled by position.

    Raises:
        TypeError: `M` is no `CSR`, or is traced.
        ValueError: as `from_edges`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> from jax.experimental.sparse import CSR
        >>> se.from_csr(CSR.fromdense(jnp.eye(2))).connectivity.post.tolist()
        [0, 1]
    """
    return _from_matrix(_of_type(M, CSR), Policies(duplicates, self_loops, dtype))


def _of_type(M: object, kind: type[Sparse]) -> Sparse:
    if not isinstance(M, kind):
        raise TypeError(f"M: expected a jax.experimental.sparse.{kind.__name__}, got {type(M).__name__}.")
    return M


def _from_matrix(M: Any, policies: Policies) -> Graph:
    pre, post, data, slot = _entries(M)
    weight = host_array("M.data", data)
    return build_graph(pre, post, weight if slot is None else weight[slot], M.shape, policies=policies)


def _entries(M: Any) -> tuple[np.ndarray, np.ndarray, Array | np.ndarray, np.ndarray | None]:
    """Return pre and post of each entry, the data, and each entry's slot in it (None: the first ones, in order)."""
    if not (sp.issparse(M) or isinstance(M, (BCOO, BCSR, CSR))):
        raise TypeError(f"M: expected a scipy sparse matrix, BCOO, BCSR or CSR, got {type(M).__name__}.")
    if M.ndim != 2:
        raise ValueError(f"M: expected two dimensions, (num_pre, num_post), got shape {M.shape}.")
    if isinstance(M, (BCOO, BCSR)) and (M.n_batch or M.n_dense):
        raise ValueError(
            f"M: expected two sparse dimensions, got n_batch={M.n_batch}, n_dense={M.n_dense}. Convert it."
        )
    if isinstance(M, BCOO):
        indices = host_array("M.indices", M.indices)
        alive = np.flatnonzero((indices != M.shape).all(axis=1)).astype(np.int32)
        if alive.size == indices.shape[0]:
            return indices[:, 0], indices[:, 1], M.data, None
        return indices[alive, 0], indices[alive, 1], M.data, alive
    if isinstance(M, (BCSR, CSR)) or M.format in ("csr", "csc"):
        ptr, minor = host_array("M.indptr", M.indptr), host_array("M.indices", M.indices)
        by_post = sp.issparse(M) and M.format == "csc"
        fits = ptr.shape == (M.shape[int(by_post)] + 1,) and ptr[0] == 0 and ptr[-1] <= minor.size
        if not (fits and (np.diff(ptr) >= 0).all()):
            raise ValueError(
                f"M.indptr: expected pointers that ascend from 0 to at most {minor.size} entries, got {ptr}."
            )
        major, minor, data = expand_ptr(ptr), minor[: ptr[-1]], M.data[: ptr[-1]]
        return (minor, major, data, None) if by_post else (major, minor, data, None)
    coo = M.tocoo(copy=False)
    return *coo.coords, coo.data, None
