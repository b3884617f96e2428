"""A connectivity with weights, and with labels and attributes for its nodes and synapses."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import networkx as nx
import numpy as np
import scipy.sparse as sp
from jax.experimental.sparse import BCOO
from jaxtyping import Array, Float, Real

from .._arrays import on_device
from .._types import Column
from .connectivity import Connectivity, host_array
from .labels import as_labels, label_index
from .selection import Places, categories, ends_at, matches, node_column
from .table import Table, aligned, rows

Values = TypeVar("Values", bound=Array | np.ndarray)


class Graph(eqx.Module):
    """A weighted connectivity whose nodes have labels, and whose nodes and synapses may have attributes.

    `A[i, j]` is the summed weight of the synapses `i -> j`. A square graph has one set of nodes. In a rectangular one,
    sending and receiving units are two sets; `nodes` holds the `num_pre` senders first, then the `num_post` receivers.

    A pytree whose leaves are the connectivity and the weight. Labels and attributes stay on the host and are compared
    by value, so that a graph and its copy are one to `jax.tree.map` and to `jit`.

    Args:
        connectivity: the synapses.
        weight: weight of each synapse, `(num_synapses,)`, in canonical order.
        nodes: a distinct, hashable label for each node; the node's position unless given.
        node_attrs: arrays of any type, the first axis aligned with `nodes`; copied.
        edge_attrs: arrays of any type, the first axis aligned with `weight`; copied.

    Raises:
        TypeError: a label is not hashable.
        ValueError: a length does not fit, or a label appears twice.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.from_edges(["a", "b"], ["b", "c"], labels=["a", "b", "c"])
        >>> graph.index_of("c"), graph.connectivity.shape
        (2, (3, 3))
    """

    connectivity: Connectivity
    weight: Float[Array, " num_synapses"]
    _table: Table = eqx.field(static=True, repr=False)

    def __init__(
        self,
        connectivity: Connectivity,
        weight: Float[Array, " num_synapses"],
        nodes: Iterable | None = None,
        node_attrs: Mapping[str, Column] | None = None,
        edge_attrs: Mapping[str, Column] | None = None,
    ):
        num_pre, num_post = connectivity.shape
        num_nodes = num_pre if num_pre == num_post else num_pre + num_post
        labels = range(num_nodes) if nodes is None else as_labels(nodes)
        if len(labels) != num_nodes:
            raise ValueError(
                f"nodes: expected one label for each of {num_nodes} nodes of a graph of shape "
                f"{(num_pre, num_post)}, got {len(labels)}."
            )
        self.connectivity = connectivity
        self.weight = _fit(weight, connectivity.num_synapses)
        index = None if isinstance(labels, range) else label_index(labels)
        of_nodes = aligned("node_attrs", node_attrs, num_nodes)
        self._table = Table(labels, index, of_nodes, aligned("edge_attrs", edge_attrs, connectivity.num_synapses))

    @property
    def nodes(self) -> Sequence[Hashable]:
        """The label of each node; senders before receivers where they are two sets."""
        return self._table.nodes

    @property
    def pre_nodes(self) -> Sequence[Hashable]:
        """The label of each sending unit, `(num_pre,)`."""
        return self.nodes[: self.connectivity.num_pre]

    @property
    def post_nodes(self) -> Sequence[Hashable]:
        """The label of each receiving unit, `(num_post,)`."""
        return self.nodes[len(self.nodes) - self.connectivity.num_post :]

    @property
    def node_attrs(self) -> dict[str, np.ndarray]:
        """Attributes of the nodes: read-only numpy arrays whose first axis is aligned with `nodes`."""
        return dict(self._table.node_attrs)

    @property
    def edge_attrs(self) -> dict[str, np.ndarray]:
        """Attributes of the synapses: read-only numpy arrays whose first axis is aligned with `weight`."""
        return dict(self._table.edge_attrs)

    def index_of(self, label: object) -> int:
        """Position of a label in `nodes`; in a rectangular graph, a receiving unit's index is this minus `num_pre`.

        Args:
            label: a label of one node.

        Returns:
            Its position.

        Raises:
            ValueError: no node has this label.

        Example:
            >>> import sparse_etrace as se
            >>> se.from_edges([0], [1]).index_of(1)
            1
        """
        try:
            return self.nodes.index(label) if self._table.index is None else self._table.index[label]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"label: expected one of the {len(self.nodes)} labels in it, got {label!r}. `graph.nodes` has them."
            ) from error

    def where(self, **labels: object) -> np.ndarray:
        """Positions in `nodes` of those whose attributes have these values, all of them.

        Args:
            **labels: for each node attribute a value, a list of several, or a function from its column to booleans.

        Returns:
            Positions in ascending order, which `between` and `se.transform.subgraph` take as such, all or a slice of
            them; one that is taken out, and those in a list, are labels to these. In a rectangular graph, a receiving
            unit's index is this minus `num_pre`.

        Raises:
            ValueError: there is no attribute of that name, it has several numbers for a node, no node has a value, or a
                function returns something else.

        Example:
            >>> import sparse_etrace as se
            >>> worm = se.datasets.worm()
            >>> len(worm.where(neurotransmitter="GABA")), len(worm.where(neurotransmitter=["GABA", ""], role="motor"))
            (26, 27)
        """
        chosen = np.ones(len(self.nodes), bool)
        for name, wanted in labels.items():
            chosen &= matches(name, node_column(self, name, "labels"), wanted)
        return np.flatnonzero(chosen).view(Places)

    def between(self, pre: object, post: object) -> np.ndarray:
        """Positions in `weight` of the synapses from some nodes to others.

        Args:
            pre, post: each what `where` returns, a dictionary of attributes for it (an empty one for all nodes), a mask
                of all nodes, one label, or several.

        Returns:
            Positions in ascending order, which index `weight` and `edge_attrs` as well.

        Raises:
            TypeError: the graph is traced.
            ValueError: as `where`, or a node is unknown.

        Example:
            >>> import sparse_etrace as se
            >>> worm = se.datasets.worm()
            >>> worm.between({"role": "sensory"}, ["AVAL", "AVAR"]).size
            32
            >>> worm.weight[worm.between("AVAL", "VA12")].tolist()
            [2.0]
        """
        return np.flatnonzero(ends_at(self, "pre", pre) & ends_at(self, "post", post))

    def by_type(self, name: str) -> "Graph":
        """The small graph of the types of nodes, a synapse for each pair of types that has some.

        Args:
            name: the node attribute, as `"cell_type"`.

        Returns:
            A square graph whose labels are the types, and whose weights are sums of weights. Its node attribute `cells`
            counts nodes, its edge attribute `synapses` counts synapses.

        Raises:
            TypeError: the graph is traced.
            ValueError: there is no node attribute of that name with one value for each node.

        Example:
            >>> import sparse_etrace as se
            >>> types = se.datasets.mushroom_body().by_type("cell_type")
            >>> types.nodes, types.node_attrs["cells"].tolist()
            (('Kenyon cell', 'input neuron', 'output neuron', 'projection neuron'), [101, 21, 29, 58])
            >>> k = types.between("projection neuron", "Kenyon cell")
            >>> types.weight[k].tolist(), types.edge_attrs["synapses"][k].tolist()
            ([2404.0], [437])
        """
        labels, of = categories(node_column(self, name, "name"))
        conn, size = self.connectivity, max(len(labels), 1)
        senders, receivers = of[: conn.num_pre], of[len(of) - conn.num_post :]
        pre, post, weight = (host_array("graph", a) for a in (conn.pre, conn.post, self.weight))
        pairs, which, count = np.unique(receivers[post] * size + senders[pre], return_inverse=True, return_counts=True)
        total = np.bincount(which, weight.astype(np.float64), pairs.size)
        types = Connectivity.from_edges(pairs % size, pairs // size, (len(labels), len(labels)))
        attrs = {"cells": np.bincount(of, minlength=len(labels))}, {"synapses": count}
        return Graph(types, on_device(total, jnp.promote_types(self.weight.dtype, jnp.float32)), labels, *attrs)

    def with_weight(self, weight: Column) -> "Graph":
        """Return this graph with other weights; synapses, labels and attributes stay. May be traced.

        Args:
            weight: weight of each synapse, `(num_synapses,)`, in canonical order; integers get the old type.

        Returns:
            A new graph.

        Raises:
            TypeError: `weight` is no array of real numbers.
            ValueError: `weight` does not fit.

        Example:
            >>> import sparse_etrace as se
            >>> se.from_edges(["a"], ["b"], labels=["a", "b"]).with_weight([0.5]).to_networkx().edges["a", "b"]
            {'weight': 0.5}
        """
        weight = _fit(on_device(weight), self.connectivity.num_synapses)
        if jnp.issubdtype(weight.dtype, jnp.complexfloating):
            raise TypeError(f"weight: expected real numbers, got {weight.dtype}. Convert them first.")
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            weight = weight.astype(self.weight.dtype)
        return eqx.tree_at(lambda graph: graph.weight, self, weight)

    def to_networkx(
        self, weight: Real[Array | np.ndarray, " num_synapses"] | None = None, weight_name: str = "weight"
    ) -> nx.DiGraph:
        """Return a networkx `DiGraph`, or a `MultiDiGraph` if there are parallel synapses.

        Args:
            weight: weights to write instead of the graph's own, `(num_synapses,)`.
            weight_name: the edge attribute that takes the weight.

        Returns:
            A graph with this graph's labels as nodes, in their order, and with all attributes.

        Raises:
            ValueError: an attribute is already called `weight_name`, or `weight` does not fit.

        Example:
            >>> import sparse_etrace as se
            >>> se.from_edges([0], [1], [0.5]).to_networkx().edges[0, 1]
            {'weight': 0.5}
        """
        conn, values = self.connectivity, self._values(weight)
        if weight_name in self._table.edge_attrs:
            raise ValueError(
                f"weight_name: expected a name that no edge attribute has, got {weight_name!r}. Choose another."
            )
        pre, post = np.asarray(conn.pre), np.asarray(conn.post)
        parallel = np.any((pre[1:] == pre[:-1]) & (post[1:] == post[:-1]))
        result = nx.MultiDiGraph() if parallel else nx.DiGraph()
        result.add_nodes_from(zip(self.nodes, rows(self._table.node_attrs, len(self.nodes)), strict=True))
        values_of = rows({weight_name: np.asarray(values)} | self._table.edge_attrs, conn.num_synapses)
        ends = zip(pre.tolist(), post.tolist(), values_of, strict=True)
        result.add_edges_from((self.pre_nodes[i], self.post_nodes[j], row) for i, j, row in ends)
        return result

    def to_scipy(self, weight: Real[Array | np.ndarray, " num_synapses"] | None = None) -> sp.csc_array:
        """Return a scipy `csc_array`, whose data order is the canonical one: `data` is the weight itself.

        Args:
            weight: weights to write instead of the graph's own, `(num_synapses,)`.

        Returns:
            A matrix `(num_pre, num_post)` with an entry for each synapse, zeros and parallel ones included.

        Raises:
            ValueError: `weight` does not fit.

        Example:
            >>> import sparse_etrace as se
            >>> se.from_edges([0, 0], [1, 1], [2.0, 3.0]).to_scipy().data.tolist()
            [2.0, 3.0]
        """
        conn, values = self.connectivity, np.array(self._values(weight))
        if values.dtype.itemsize < 4:  # scipy has no half precision
            values = values.astype(np.float32)
        return sp.csc_array((values, np.array(conn.pre), np.array(conn.post_ptr)), shape=conn.shape)

    def to_bcoo(self, weight: Real[Array | np.ndarray, " num_synapses"] | None = None) -> BCOO:
        """Return a JAX `BCOO`, its data in canonical order. May be traced.

        Args:
            weight: weights to write instead of the graph's own, `(num_synapses,)`.

        Returns:
            A matrix `(num_pre, num_post)` with an entry for each synapse, zeros and parallel ones included.

        Raises:
            ValueError: `weight` does not fit.

        Example:
            >>> import sparse_etrace as se
            >>> se.from_edges([0], [1], [2.0]).to_bcoo().indices.tolist()
            [[0, 1]]
        """
        conn, values = self.connectivity, on_device(self._values(weight))
        return BCOO((values, jnp.stack([conn.pre, conn.post], axis=-1)), shape=conn.shape)

    def to_dense(
        self, weight: Real[Array | np.ndarray, " num_synapses"] | None = None
    ) -> Real[Array, "num_pre num_post"]:
        """Return the matrix `A[i, j] = sum of the weights of the synapses i -> j`. May be traced.

        Args:
            weight: weights to write instead of the graph's own, `(num_synapses,)`.

        Returns:
            A dense array `(num_pre, num_post)`.

        Raises:
            ValueError: `weight` does not fit.

        Example:
            >>> import sparse_etrace as se
            >>> se.from_edges([0, 0], [1, 1], [2.0, 3.0]).to_dense().tolist()
            [[0.0, 5.0], [0.0, 0.0]]
        """
        conn, values = self.connectivity, on_device(self._values(weight))
        return jnp.zeros(conn.shape, values.dtype).at[conn.pre, conn.post].add(values)

    def _values(self, weight: Array | np.ndarray | None) -> Array | np.ndarray:
        return self.weight if weight is None else _fit(weight, self.connectivity.num_synapses)


def _fit(weight: Values, num_synapses: int) -> Values:
    if jnp.shape(weight) != (num_synapses,):
        raise ValueError(f"weight: expected one entry per synapse, ({num_synapses},), got shape {jnp.shape(weight)}.")
    return weight


def check_graph(graph: object) -> Graph:
    """The graph, or an error in words."""
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: expected a Graph, got {type(graph).__name__}. `from_edges` and its kin make one.")
    return graph
