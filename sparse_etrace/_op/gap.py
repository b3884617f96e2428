"""Gap junctions, by which units share their potential."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact

from .._graph.connectivity import host_array
from .._graph.graph import Graph, check_graph
from .param import ETraceParam
from .spmatmul import SpMatMulOp
from .weight_fn import SignLock


class GapJunctions(eqx.Module):
    """Electrical coupling, `I[j] = sum over junctions i - j of g (v[i] - v[j])`, with one `g >= 0` for both directions.

    It is a sparse op in two calls, `I = A v - (A 1) * v`: what neighbours send, which is recurrence and which learners
    trace as such, and what leaks to them, which is a unit's own dynamics and part of its hidden Jacobian.

    Args:
        graph: square, each junction in both directions and of one weight, its conductance; see
            `se.transform.to_undirected`.
        dtype: floating type; that of the weights unless given.

    Attributes:
        param: the conductances, `|value['weight']|`, one for each junction.
        junctions: which units each leads between, `(num_junctions, 2)`.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: it is not square, a junction has one direction, or two weights, or leads from a unit to itself; a
            weight is negative.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> gap = se.GapJunctions(se.transform.to_undirected(se.from_edges([0, 1], [1, 2], [0.5, 2.0])))
        >>> gap(jnp.array([1.0, 0.0, 3.0])).tolist()
        [-0.5, 6.5, -6.0]
        >>> gap.junctions.tolist(), gap.param.value["weight"].tolist()
        ([[0, 1], [1, 2]], [0.5, 2.0])
    """

    param: ETraceParam

    def __init__(self, graph: Graph, dtype: DTypeLike | None = None):
        conn = check_graph(graph).connectivity
        pre, post, weight = (host_array("graph", a) for a in (conn.pre, conn.post, graph.weight))
        if conn.num_pre != conn.num_post:
            raise ValueError(f"graph: expected a square one, whose units are one set, got shape {conn.shape}.")
        if np.any(pre == post):
            unit = graph.nodes[int(pre[np.argmax(pre == post)])]
            raise ValueError(
                f"graph: expected junctions between two units, got one of {unit!r} with itself, which carries no "
                "current. Leave them out: se.transform.remove_self_loops(graph)."
            )
        back = np.asarray(conn.by_pre)  # sorted by sender and receiver: each synapse's counterpart
        pairs = ((conn.post_ptr, conn.pre_ptr), (pre, conn.post_by_pre), (weight, weight[back]))
        if not all(np.array_equal(there, and_back) for there, and_back in pairs):
            raise ValueError(
                "graph: expected each junction in both directions, and one weight for both, got others. "
                "se.transform.to_undirected(graph) adds the other direction; reduce='mean' takes the mean of two."
            )
        if not np.all(weight >= 0):
            raise ValueError(f"graph: expected conductances >= 0 as weights, got {weight[~(weight >= 0)][0]}.")
        one = pre < post
        tie = np.empty(pre.size, np.int32)
        tie[one] = np.arange(pre.size // 2)
        tie[~one] = tie[back[~one]]
        self.param = SpMatMulOp(conn, SignLock(1.0), tie).param(init=jnp.asarray(weight[one]), dtype=dtype)

    @property
    def junctions(self) -> np.ndarray:
        """Which units each junction leads between, `(num_junctions, 2)`, the smaller position first."""
        op: Any = self.param.op
        pre, post = np.asarray(op.connectivity.pre), np.asarray(op.connectivity.post)
        return np.stack([pre, post], 1)[pre < post]

    def __call__(self, v: Inexact[Array, "*batch units"]) -> Inexact[Array, "*batch units"]:
        """The current into each unit, in units of weight times potential."""
        return self.param(v) - self.param(jnp.ones_like(v)) * v
