"""Small objects with the interfaces of other libraries' graphs, for where these are not installed."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np


class Tensor:
    """Not an array: as a tensor on a device, it is read by these three calls alone."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape = self.values.shape

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.values


class Data:
    def __init__(self, **values):
        self.num_nodes = values.pop("num_nodes", None)
        self.store = values
        if self.num_nodes is None:
            self.num_nodes = len(next(v for k, v in values.items() if "edge" not in k).values)

    def __getattr__(self, name):
        return vars(self).get("store", {}).get(name)

    def to_dict(self):
        return self.store | {"num_nodes": self.num_nodes}

    def _length(self, key):
        value = self.to_dict()[key]
        return value.shape[0] if getattr(value, "shape", ()) else len(value) if isinstance(value, list) else None

    def is_node_attr(self, key):
        edges = self.edge_index.shape[1]
        return (
            "edge" not in key
            and self._length(key) == self.num_nodes
            or (self._length(key) == self.num_nodes != edges and key != "edge_index")
        )

    def is_edge_attr(self, key):
        edges = self.edge_index.shape[1]
        return key == "edge_index" or (self._length(key) == edges and not self.is_node_attr(key))


class StaticGraphTemporalSignal:
    def __init__(self, edge_index, edge_weight, features, targets):
        self.edge_index, self.edge_weight, self.features, self.targets = edge_index, edge_weight, features, targets


class DynamicGraphTemporalSignal:
    def __init__(self, edge_indices, edge_weights, features, targets):
        self.edge_indices, self.edge_weights, self.features, self.targets = (
            edge_indices,
            edge_weights,
            features,
            targets,
        )


class GraphsTuple(NamedTuple):
    nodes: Any
    edges: Any
    receivers: Any
    senders: Any
    globals: Any
    n_node: Any
    n_edge: Any


class Sequence:
    def __init__(self, attrs):
        self.attrs = attrs

    def attributes(self):
        return list(self.attrs)

    def __getitem__(self, name):
        return self.attrs[name]


class IGraph:
    def __init__(self, n=0, edges=(), directed=False, vertex_attrs=None, edge_attrs=None):
        self.n, self.edges, self.directed = n, list(edges), directed
        self.vs, self.es = Sequence(vertex_attrs or {}), Sequence(edge_attrs or {})

    def vcount(self):
        return self.n

    def get_edgelist(self):
        return self.edges

    def is_directed(self):
        return self.directed


MODULES = {
    "torch": SimpleNamespace(from_numpy=Tensor, tensor=Tensor),
    "torch_geometric": SimpleNamespace(),
    "torch_geometric.data": SimpleNamespace(Data=Data),
    "torch_geometric_temporal": SimpleNamespace(),
    "torch_geometric_temporal.signal": SimpleNamespace(
        StaticGraphTemporalSignal=StaticGraphTemporalSignal, DynamicGraphTemporalSignal=DynamicGraphTemporalSignal
    ),
    "jraph": SimpleNamespace(GraphsTuple=GraphsTuple),
    "igraph": SimpleNamespace(Graph=IGraph),
}


def put(monkeypatch, *names):
    """Stand-ins in the places of modules."""
    for name in names:
        module = ModuleType(name)
        vars(module).update(vars(MODULES[name]))
        monkeypatch.setitem(sys.modules, name, module)
