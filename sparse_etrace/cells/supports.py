"""Matrices by which the nodes of a graph hear each other, and the parameters that read them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np
import scipy.sparse as sp
from jax.typing import ArrayLike, DTypeLike

from .._graph.graph import Graph
from .._graph.matrices import from_scipy
from .._op import GraphConvOp, MatMulOp
from .._op.contract import ETraceOp
from .._op.initial import check_key
from .._op.param import ETraceParam


def as_list(supports: Any) -> list[Any]:
    """One support or several."""
    return list(supports) if isinstance(supports, Sequence) else [supports]


def num_nodes(supports: Any) -> int:
    """Of each support."""
    first = as_list(supports)[0]
    return first.connectivity.num_post if isinstance(first, Graph) else first.shape[1]


def convolutions(
    supports: Any,
    features: Any,
    hidden: Any,
    kinds: str,
    key: object,
    dtype: DTypeLike | None,
    spread_state: bool = True,
) -> list[ETraceParam]:
    """Parameters that read the input, `i`, with a bias, or the old state, `r`, in this order.

    Without supports, or of the old state without `spread_state`, each is a matrix on the features of a node.
    """
    found = []
    for kind, one in zip(kinds, jax.random.split(check_key(key), len(kinds)), strict=True):
        is_input = kind == "i"
        is_conv = supports is not None and (is_input or spread_state)
        op: ETraceOp = GraphConvOp(as_list(supports), bias=is_input) if is_conv else MatMulOp(bias=is_input)
        found.append(op.param(one, features if is_input else hidden, hidden, dtype=dtype))
    return found


def arrays(weights: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """A `state_dict` as numpy arrays."""
    return {name: np.asarray(a) for name, a in weights.items()}


def adjacency(edge_index: Any, edge_weight: Any, nodes: SupportsIndex) -> sp.coo_array:
    """The matrix of edges in two rows, senders and receivers."""
    pre, post = np.asarray(edge_index)
    weight = np.ones(len(pre)) if edge_weight is None else np.asarray(edge_weight, float)
    return sp.coo_array((weight, (pre, post)), shape=(int(nodes), int(nodes)))


def gcn(a: Any) -> Graph:
    """`D^-1/2 (A + I) D^-1/2` with D of what comes in; nodes that have a self-loop keep theirs."""
    a = sp.lil_array(a, dtype=float)
    own = a.diagonal()
    a.setdiag(np.where(own == 0, 1, own))
    root = sp.diags_array(_inverse(a.sum(0)) ** 0.5)
    return graph_of(root @ a.tocsr() @ root)


def chebyshev(a: Any, order: int) -> list[Graph]:
    """`T_0 = I, T_1 = 2 L / max - I, T_k = 2 T_1 T_(k-1) - T_(k-2)` of `L = I - D^-1/2 A D^-1/2` without self-loops."""
    a, eye = sp.csr_array(a, dtype=float), sp.eye_array(a.shape[0], format="csr")
    a = a - sp.diags_array(a.diagonal())
    root = sp.diags_array(_inverse(a.sum(1)) ** 0.5)
    laplacian = (eye - root @ a @ root).tocsr()
    scaled = laplacian / max(laplacian.max(), 1e-300) - eye
    return [graph_of(t) for t in series(scaled, order - 1, lambda p, t: 2 * (t[-1] @ p) - t[-2])]


def series(first: sp.csr_array, steps: int, then: Callable[..., sp.sparray]) -> list[sp.sparray]:
    """A matrix of ones on the diagonal, the first, and what follows."""
    found = [sp.eye_array(first.shape[0], format="csr"), first][: steps + 1]
    while len(found) <= steps:
        found.append(then(first, found))
    return found


def by_sender(a: Any) -> sp.csr_array:
    """A random walk, `D^-1 A` with D of what goes out."""
    a = sp.csr_array(a, dtype=float)
    return sp.diags_array(_inverse(a.sum(1))) @ a


def graph_of(matrix: Any) -> Graph:
    """A matrix without its zeros as a graph."""
    matrix = sp.csr_array(matrix)
    matrix.eliminate_zeros()
    return from_scipy(matrix, dtype=jax.dtypes.canonicalize_dtype(float))


def _inverse(degree: np.ndarray) -> np.ndarray:
    """One by the degree, nothing where there is none."""
    return np.divide(1, degree, out=np.zeros(len(degree)), where=degree > 0)
