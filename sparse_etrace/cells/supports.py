"""Matrices by which the nodes of a graph hear each other, and the parameters that read them."""

from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import numpy as np
import scipy.sparse as sp
from jax.typing import ArrayLike, DTypeLike

from .._graph.graph import Graph
from .._graph.matrices import from_edges, from_scipy
from .._op import GraphConvOp, MatMulOp
from .._op.contract import ETraceOp
from .._op.initial import check_key
from .._op.param import ETraceParam
from ..transform import add_remaining_self_loops, chebyshev_supports, diffusion_supports, normalize, transpose


def as_list(supports: Any) -> list[Any]:
    """One support or several."""
    return list(supports) if isinstance(supports, Sequence) else [supports]


def num_nodes(supports: Any) -> int:
    """Of each support."""
    first = as_list(supports)[0]
    return first.connectivity.num_post if isinstance(first, Graph) else first.shape[1]


def convolutions(
    supports: Any,
    features: object,
    hidden: object,
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


def edges(edge_index: ArrayLike, edge_weight: Any, nodes: SupportsIndex) -> Graph:
    """The graph of edges in two rows, senders and receivers."""
    pre, post = np.asarray(edge_index)
    return from_edges(pre, post, edge_weight, (int(nodes), int(nodes)), dtype=_float())


def gcn(graph: Graph) -> Graph:
    """`D^-1/2 (A + I) D^-1/2` with D of what comes in; nodes that have a self-loop keep theirs."""
    return normalize(add_remaining_self_loops(_wide(graph)), "gcn")


def chebyshev(graph: Graph, order: Any) -> list[Graph]:
    """`T_0 = I, T_1 = -D^-1/2 A D^-1/2, ...` without self-loops, with D of what goes out."""
    return [transpose(support) for support in chebyshev_supports(transpose(_wide(graph)), order)]


def walks(graph: Graph, steps: Any) -> tuple[Graph, ...]:
    """Random walks along synapses and against them."""
    return diffusion_supports(_wide(graph), steps)


def walk_series(first: sp.csr_array, steps: int) -> list[Graph]:
    """A matrix of ones on the diagonal, the first, and `2 P T - I`."""
    eye = sp.eye_array(first.shape[0], format="csr")
    found = [eye, first][: steps + 1]
    while len(found) <= steps:
        found.append(2 * (found[-1] @ first) - eye)
    return [from_scipy(matrix, dtype=_float()) for matrix in found]


def _wide(graph: Graph) -> Graph:
    """A graph whose weights have as many digits as JAX takes."""
    return graph.with_weight(np.asarray(graph.weight, _float()))


def _float() -> np.dtype:
    return jax.dtypes.canonicalize_dtype(float)
