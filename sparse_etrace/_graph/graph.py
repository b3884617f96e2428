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

from .._types import Column
from .columns import plain_column
from .connectivity import Connectivity
from .labels import as_labels, label_index
from .table import Table

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
        self._table = Table(
            labels,
            None if isinstance(labels, range) else label_index(labels),
            _aligned("node_attrs", node_attrs, num_nodes),
            _aligned("edge_attrs", edge_attrs, connectivity.num_synapses),
        )

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
                f"label: expected one of the {len(self.nodes)} labels in `graph.nodes`, got {label!r}."
            ) from error

    def where(self, **labels: object) -> np.ndarray:
        """Positions in `nodes` of those whose attributes have these values, all of them.

        Args:
            **labels: for each node attribute a value, a list of several, or a function from its column to booleans.

        Returns:
            Positions in ascending order. In a rectangular graph, a receiving unit's index is this minus `num_pre`.

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
            chosen &= _matches(name, node_column(self, name, "labels"), wanted)
        return np.flatnonzero(chosen)

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
        weight = _fit(jnp.asarray(weight), self.connectivity.num_synapses)
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
        result.add_nodes_from(zip(self.nodes, _rows(self._table.node_attrs, len(self.nodes)), strict=True))
        rows = _rows({weight_name: np.asarray(values)} | self._table.edge_attrs, conn.num_synapses)
        ends = zip(pre.tolist(), post.tolist(), rows, strict=True)
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
        conn, values = self.connectivity, jnp.asarray(self._values(weight))
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
        conn, values = self.connectivity, jnp.asarray(self._values(weight))
        return jnp.zeros(conn.shape, values.dtype).at[conn.pre, conn.post].add(values)

    def _values(self, weight: Array | np.ndarray | None) -> Array | np.ndarray:
        return self.weight if weight is None else _fit(weight, self.connectivity.num_synapses)


def _fit(weight: Values, num_synapses: int) -> Values:
    if jnp.shape(weight) != (num_synapses,):
        raise ValueError(f"weight: expected one entry per synapse, ({num_synapses},), got shape {jnp.shape(weight)}.")
    return weight


def _aligned(name: str, attrs: Mapping[str, Column] | None, size: int) -> dict[str, np.ndarray]:
    columns = {key: np.array(plain_column(values, f"{name}[{key!r}]")) for key, values in (attrs or {}).items()}
    for key, column in columns.items():
        if column.shape[:1] != (size,):
            raise ValueError(
                f"{name}[{key!r}]: expected {size} entries along the first axis, got shape {column.shape}."
            )
    return columns


def _rows(attrs: Mapping[str, np.ndarray], size: int) -> list[dict[str, object]]:
    columns = {key: column.tolist() if column.ndim == 1 else list(column.copy()) for key, column in attrs.items()}
    return [{key: column[k] for key, column in columns.items()} for k in range(size)]


def node_column(graph: Graph, name: str, argument: str) -> np.ndarray:
    """A node attribute with one value for each node, by its name."""
    column = graph._table.node_attrs.get(name)
    if column is None or column.ndim != 1:
        single = sorted(key for key, values in graph._table.node_attrs.items() if values.ndim == 1)
        raise ValueError(
            f"{argument}: expected a node attribute with one value for each node, one of {single}, got {name!r}."
        )
    return column


def _matches(name: str, column: np.ndarray, wanted: object) -> np.ndarray:
    if callable(wanted):
        found = np.asarray(wanted(column))
        if found.dtype != bool or found.shape != column.shape:
            raise ValueError(
                f"labels[{name!r}]: expected a function from a column to booleans, {column.shape}, got "
                f"{found.dtype}{list(found.shape)} from it."
            )
        return found
    values = as_labels([wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else wanted)
    cells = column.tolist()
    for value in values:
        if value not in cells:
            raise ValueError(
                f"labels[{name!r}]: expected values that nodes have, got {value!r}. graph.node_attrs[{name!r}] has "
                "them. A function of the column may choose none."
            )
    return np.array([cell in values for cell in cells], bool)


def check_graph(graph: object) -> Graph:
    """The graph, or an error in words."""
    if not isinstance(graph, Graph):
        raise TypeError(f"graph: expected a Graph, got {type(graph).__name__}. `from_edges` and its kin make one.")
    return graph
