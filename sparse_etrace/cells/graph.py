"""Recurrent units on the nodes of a graph, nodes x features, which act on each other along its edges."""

import math
from collections.abc import Mapping
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from .._arrays import blank
from .._graph.connectivity import Connectivity
from .._graph.graph import Graph
from .._op import GraphConvOp, MatMulOp
from .._op.initial import size
from .._op.param import ETraceParam, cut
from .cell import Constant, constant, on_units
from .supports import arrays, chebyshev, convolutions, edges, gcn, num_nodes, walk_series, walks

__all__ = ["GraphAttention", "GraphGRU", "GraphRNN"]
RESETS = ("after", "before")


class GraphRNN(eqx.Module):
    """Leaky units on nodes: `h_t = a h + (1 - a) tanh(inp(x) + rec(h))`; the output is `h_t`.

    Args:
        nodes, hidden: numbers of nodes, and of features of each.
        inp, rec: parameters that read the input and the old state, usually graph convolutions.
        decay: `a`, a number, or an `ElemWiseParam` to train it.

    Raises:
        ValueError: `decay` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2], [1, 2, 0])
        >>> cell = se.cells.graph.GraphRNN.of(graph, 2, 8, key=jax.random.key(0))
        >>> cell(cell.init_state(), jnp.ones((3, 2)))[1].shape
        (3, 8)

    Reference:
        Seo et al. 2018, International Conference on Neural Information Processing (arXiv 1612.07659).
    """

    shape: tuple[int, int] = eqx.field(static=True)
    inp: ETraceParam
    rec: ETraceParam
    decay: Constant

    def __init__(
        self,
        nodes: SupportsIndex,
        hidden: SupportsIndex,
        inp: ETraceParam,
        rec: ETraceParam,
        decay: object = 0.9,
    ):
        self.shape = (size("nodes", nodes), size("hidden", hidden))
        self.inp, self.rec, self.decay = inp, rec, constant(decay, "decay", 0, 1, self.shape)

    @classmethod
    def of(
        cls,
        supports: Any,
        features: object,
        hidden: SupportsIndex,
        *,
        key: object,
        decay: object = 0.9,
        dtype: DTypeLike | None = None,
    ) -> "GraphRNN":
        """With graph convolutions on these supports, a graph or several, from so many input features."""
        inp, rec = convolutions(supports, features, hidden, "ir", key, dtype)
        return cls(num_nodes(supports), hidden, inp, rec, decay)

    def init_state(self, *batch: SupportsIndex) -> Float[Array, "*batch nodes hidden"]:
        """Zero activity; `batch` are the sizes of the leading batch axes."""
        return blank((*batch, *self.shape))

    def __call__(self, h: Array, x: Array) -> tuple[Array, Array]:
        (a,) = on_units(h, self.decay)
        h = a * h + (1 - a) * jnp.tanh(self.inp(x) + self.rec(h))
        return h, h


class GraphGRU(eqx.Module):
    """Gated units on nodes: T-GCN, GConvGRU and DCRNN, which are one cell on different supports.

    `r = sigmoid(inp_r(x) + rec_r(h))`, `u = sigmoid(inp_u(x) + rec_u(h))`, `c = tanh(inp_c(x) + r rec_c(h))`,
    `h_t = u h + (1 - u) c`; the output is `h_t`. With `reset="before"` it is `rec_c(r h)`, as published: then no rule
    with traces sees `inp_r` and `rec_r` act through the memory of a node, and they learn from the same step only.

    Args:
        nodes, hidden: numbers of nodes, and of features of each.
        inp_r, inp_u, inp_c: parameters of reset gate, update gate and candidate that read the input.
        rec_r, rec_u, rec_c: those that read the old state.
        reset: `"after"` the recurrent product or `"before"` it.

    Raises:
        ValueError: `reset` is neither.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2], [1, 2, 0])
        >>> cell = se.cells.graph.GraphGRU.gconv_gru(graph, 2, 8, order=3, key=jax.random.key(0))
        >>> cell(cell.init_state(5), jnp.ones((5, 3, 2)))[1].shape
        (5, 3, 8)

    Reference:
        Zhao et al. 2019 (arXiv 1811.05320), Seo et al. 2018 (arXiv 1612.07659), Li et al. 2018 (arXiv 1707.01926).
    """

    shape: tuple[int, int] = eqx.field(static=True)
    inp_r: ETraceParam
    inp_u: ETraceParam
    inp_c: ETraceParam
    rec_r: ETraceParam
    rec_u: ETraceParam
    rec_c: ETraceParam
    reset: str = eqx.field(static=True)

    def __init__(
        self,
        nodes: SupportsIndex,
        hidden: SupportsIndex,
        inp_r: ETraceParam,
        inp_u: ETraceParam,
        inp_c: ETraceParam,
        rec_r: ETraceParam,
        rec_u: ETraceParam,
        rec_c: ETraceParam,
        *,
        reset: str = "after",
    ):
        if reset not in RESETS:
            raise ValueError(f"reset: expected 'after' or 'before' the recurrent product, got {reset!r}.")
        self.shape, self.reset = (size("nodes", nodes), size("hidden", hidden)), reset
        self.inp_r, self.inp_u, self.inp_c = inp_r, inp_u, inp_c
        self.rec_r, self.rec_u, self.rec_c = rec_r, rec_u, rec_c

    @classmethod
    def of(
        cls,
        supports: Any,
        features: object,
        hidden: SupportsIndex,
        *,
        key: object,
        spread_state: bool = True,
        reset: str = "after",
        dtype: DTypeLike | None = None,
    ) -> "GraphGRU":
        """With graph convolutions on these supports, a graph or several, from so many input features.

        Without `spread_state` a node reads of the old state its own only, and neighbours act through the input.
        """
        made = convolutions(supports, features, hidden, "iiirrr", key, dtype, spread_state)
        return cls(num_nodes(supports), hidden, *made, reset=reset)

    @classmethod
    def tgcn(cls, graph: Graph, features: object, hidden: SupportsIndex, *, key: object, **options: Any) -> "GraphGRU":
        """T-GCN: inputs by one normalised convolution with self-loops, each node's own old state."""
        return cls.of(gcn(graph), features, hidden, key=key, spread_state=False, **options)

    @classmethod
    def gconv_gru(
        cls, graph: Graph, features: object, hidden: SupportsIndex, *, key: object, order: object = 2, **options: Any
    ) -> "GraphGRU":
        """GConvGRU: so many Chebyshev polynomials of the graph's Laplacian, of input and state."""
        return cls.of(chebyshev(graph, order), features, hidden, key=key, **options)

    @classmethod
    def dcrnn(
        cls, graph: Graph, features: object, hidden: SupportsIndex, *, key: object, steps: object = 2, **options: Any
    ) -> "GraphGRU":
        """DCRNN: random walks of up to so many steps along the edges and against them, of input and state."""
        return cls.of(walks(graph, steps), features, hidden, key=key, **options)

    @classmethod
    def from_tgcn(
        cls,
        weights: Mapping[str, ArrayLike],
        edge_index: ArrayLike,
        edge_weight: ArrayLike | None,
        nodes: SupportsIndex,
    ) -> "GraphGRU":
        """The `TGCN` of PyTorch Geometric Temporal, with the arrays of its `state_dict`."""
        w, supports = arrays(weights), gcn(edges(edge_index, edge_weight, nodes))
        inp, rec = [], []
        for gate in "rzh":
            linear, bias = w[f"linear_{gate}.weight"].T, w[f"linear_{gate}.bias"]
            count = len(linear) // 2
            one = {"weight": (w[f"conv_{gate}.lin.weight"].T @ linear[:count])[None]}
            one["bias"] = w[f"conv_{gate}.bias"] @ linear[:count] + bias
            inp.append(ETraceParam(one, GraphConvOp(supports)))
            rec.append(ETraceParam({"weight": linear[count:]}, MatMulOp()))
        return cls(nodes, count, *inp, *rec, reset="before")

    @classmethod
    def from_gconv_gru(
        cls,
        weights: Mapping[str, ArrayLike],
        edge_index: ArrayLike,
        edge_weight: ArrayLike | None,
        nodes: SupportsIndex,
    ) -> "GraphGRU":
        """The `GConvGRU` of PyTorch Geometric Temporal with symmetric normalisation, by its `state_dict`."""
        w = arrays(weights)
        order = sum(name.startswith("conv_x_r.lins.") for name in w)
        op = GraphConvOp(chebyshev(edges(edge_index, edge_weight, nodes), order))
        made = []
        for conv in [f"conv_{part}_{gate}" for part in "xh" for gate in "rzh"]:
            value = {"weight": np.stack([w[f"{conv}.lins.{k}.weight"].T for k in range(order)])}
            made.append(ETraceParam(value | ({"bias": w[f"{conv}.bias"]} if f"{conv}.bias" in w else {}), op))
        return cls(nodes, made[0].value["weight"].shape[2], *made, reset="before")

    @classmethod
    def from_dcrnn(
        cls,
        weights: Mapping[str, ArrayLike],
        edge_index: ArrayLike,
        edge_weight: ArrayLike | None,
        nodes: SupportsIndex,
    ) -> "GraphGRU":
        """The `DCRNN` of PyTorch Geometric Temporal, by its `state_dict`, and with the walks as it takes them.

        Those weigh all edges of a sender alike, and go on as `2 P T - I`; against the edges, the k-th of them in the
        order of its receivers has the weight of the sender of the k-th edge in the order given.
        """
        w, a = arrays(weights), edges(edge_index, edge_weight, nodes).to_scipy().tocsr()
        pre, post = np.asarray(edge_index)
        turned = a.T.tocsr().sorted_indices().tocoo()
        with np.errstate(divide="ignore"):
            out, into = 1 / a.sum(1), 1 / a.sum(0)
        along, against = (
            sp.coo_array((out[pre], (pre, post)), a.shape),
            sp.coo_array((into[pre], turned.coords), a.shape),
        )
        count, hidden = w["conv_x_r.weight"].shape[1], w["conv_x_r.weight"].shape[3]
        forth, back = (walk_series(walk.tocsr(), count - 1) for walk in (along, against))
        op = GraphConvOp([*forth, *back[1:]])
        inp, rec = [], []
        for gate in "rzh":
            weight = w[f"conv_x_{gate}.weight"]
            weight = np.concatenate([weight[:, 0].sum(0)[None], weight[0, 1:], weight[1, 1:]])
            bias = {"bias": w[f"conv_x_{gate}.bias"]} if f"conv_x_{gate}.bias" in w else {}
            inp.append(ETraceParam({"weight": weight[:, :-hidden], **bias}, op))
            rec.append(ETraceParam({"weight": weight[:, -hidden:]}, op))
        return cls(nodes, hidden, *inp, *rec, reset="before")

    def init_state(self, *batch: SupportsIndex) -> Float[Array, "*batch nodes hidden"]:
        """Zero activity; `batch` are the sizes of the leading batch axes."""
        return blank((*batch, *self.shape))

    def __call__(self, h: Array, x: Array) -> tuple[Array, Array]:
        reset = jax.nn.sigmoid(self.inp_r(x) + self.rec_r(h))
        update = jax.nn.sigmoid(self.inp_u(x) + self.rec_u(h))
        heard = reset * self.rec_c(h) if self.reset == "after" else self.rec_c(reset * h)
        h = update * h + (1 - update) * jnp.tanh(self.inp_c(x) + heard)
        return h, h


class GraphAttention(eqx.Module):
    """Gated units on nodes that attend to their neighbours' old state.

    `m_i = sum_j softmax_j(query(h_i) . key(h_j) / sqrt(hidden)) value(h_j)` over the senders j of node i, within a cut;
    `u = sigmoid(inp_u(x) + rec_u(m) + own_u(h))`, `c = tanh(inp_c(x) + rec_c(m))`, `h_t = u h + (1 - u) c`. A rule with
    traces has them of `inp`, `rec` and `own`; `query`, `key` and `value` learn from the same step.

    Args:
        graph: along whose edges nodes attend; a node without any hears zeros.
        hidden: features of a node.
        query, key, value: parameters on the features of a node.
        inp_u, inp_c, rec_u, rec_c, own_u: likewise, of gate and candidate.

    Raises:
        ValueError: the graph has senders that are other nodes than its receivers.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2], [1, 2, 0])
        >>> cell = se.cells.graph.GraphAttention.of(graph, 2, 8, key=jax.random.key(0))
        >>> cell(cell.init_state(), jnp.ones((3, 2)))[1].shape
        (3, 8)

    Reference:
        Zhang et al. 2018, Uncertainty in Artificial Intelligence (arXiv 1803.07294).
    """

    connectivity: Connectivity
    shape: tuple[int, int] = eqx.field(static=True)
    query: ETraceParam
    key: ETraceParam
    value: ETraceParam
    inp_u: ETraceParam
    inp_c: ETraceParam
    rec_u: ETraceParam
    rec_c: ETraceParam
    own_u: ETraceParam

    def __init__(self, graph: Graph, hidden: SupportsIndex, *params: ETraceParam):
        self.connectivity = graph.connectivity
        if len(set(shape := self.connectivity.shape)) != 1:
            raise ValueError(f"graph: expected a square one, whose nodes attend to each other, got shape {shape}.")
        self.shape = (self.connectivity.num_post, size("hidden", hidden))
        self.query, self.key, self.value = params[:3]
        self.inp_u, self.inp_c, self.rec_u, self.rec_c, self.own_u = params[3:]

    @classmethod
    def of(
        cls, graph: Graph, features: object, hidden: SupportsIndex, *, key: object, dtype: DTypeLike | None = None
    ) -> "GraphAttention":
        """With matrices from so many input features."""
        return cls(graph, hidden, *convolutions(None, features, hidden, "rrriirrr", key, dtype))

    def init_state(self, *batch: SupportsIndex) -> Float[Array, "*batch nodes hidden"]:
        """Zero activity; `batch` are the sizes of the leading batch axes."""
        return blank((*batch, *self.shape))

    def _attend(self, query: Array, key: Array, value: Array) -> Array:
        """What each node hears."""
        (nodes, hidden), pre, post = self.shape, self.connectivity.pre, self.connectivity.post
        score = jnp.sum(query[..., post, :] * key[..., pre, :], -1) / math.sqrt(hidden)
        top = jnp.full((*score.shape[:-1], nodes), -jnp.inf, score.dtype).at[..., post].max(score)
        weight = jnp.exp(score - jax.lax.stop_gradient(top)[..., post])
        zero = jnp.zeros((*score.shape[:-1], nodes), score.dtype)
        weight = weight / zero.at[..., post].add(weight)[..., post]
        return jnp.zeros_like(value).at[..., post, :].add(weight[..., None] * value[..., pre, :])

    def __call__(self, h: Array, x: Array) -> tuple[Array, Array]:
        heard = cut(self._attend)(self.query(h), self.key(h), self.value(h))
        update = jax.nn.sigmoid(self.inp_u(x) + self.rec_u(heard) + self.own_u(h))
        h = update * h + (1 - update) * jnp.tanh(self.inp_c(x) + self.rec_c(heard))
        return h, h
