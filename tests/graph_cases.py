"""Small graphs of all kinds for hypothesis: parallel synapses, self-loops, isolated nodes, labels, attributes, none."""

import functools
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given, strategies as st

import sparse_etrace as se


@st.composite
def graphs(draw, square=True, sign=True, least=0):
    """Weights are halves; the edge attribute `id` is each synapse's own, `kind` is that of its pair of nodes."""
    num_pre = draw(st.integers(least, 6))
    shape = (num_pre, num_pre if square else draw(st.integers(least, 6)))
    size = num_pre if shape[0] == shape[1] else sum(shape)
    ends = st.tuples(st.integers(0, max(shape[0] - 1, 0)), st.integers(0, max(shape[1] - 1, 0)))
    pairs = draw(st.lists(ends, max_size=16 if min(shape) else 0))
    weight = draw(st.lists(st.integers(-4 if sign else 0, 4), min_size=len(pairs), max_size=len(pairs)))
    labels = [f"n{7 * k % 11}" for k in range(size)] if draw(st.booleans()) else None
    return Drawn(pairs, weight, shape, size, labels)


class Drawn(NamedTuple):
    """A graph to be made after drawing: JAX's arrays look at Python's own random numbers."""

    pairs: list
    weight: list
    shape: tuple
    size: int
    labels: Any

    def make(self):
        pre, post = np.array(self.pairs, int).reshape(-1, 2).T
        graph = se.from_edges(pre, post, np.array(self.weight) / 2, self.shape)
        conn = graph.connectivity
        kind = [f"{i}-{j}" for i, j in zip(conn.pre.tolist(), conn.post.tolist())]
        attrs = {"id": np.arange(len(self.pairs)), "kind": kind}
        return se.Graph(conn, graph.weight, self.labels, {"place": np.arange(self.size) / 4}, attrs)


def each(*strategies):
    """hypothesis' `given`, whose test gets graphs."""

    def made(value):
        if isinstance(value, Drawn):
            return value.make()
        return [made(one) for one in value] if isinstance(value, list) else value

    def decorate(test):
        @functools.wraps(test)
        def run(**drawn):
            test(**{name: made(value) for name, value in drawn.items()})

        return given(*strategies)(run)

    return decorate


def without_attrs(graph, *names):
    kept = {key: column for key, column in graph.edge_attrs.items() if key not in names}
    return se.Graph(graph.connectivity, graph.weight, graph.nodes, graph.node_attrs, kept)


def rows(graph, *attrs):
    """Each synapse as `(pre label, post label, weight, attributes)`, in canonical order."""
    conn, columns = graph.connectivity, [graph.edge_attrs[name].tolist() for name in attrs]
    ends = (
        [side[k] for k in index.tolist()]
        for side, index in ((graph.pre_nodes, conn.pre), (graph.post_nodes, conn.post))
    )
    return list(zip(*ends, graph.weight.tolist(), *columns))


def aligned(graph, made, origin, *attrs):
    """Whether each synapse that went on has the ends and attributes that it had."""
    before, after = rows(graph, *attrs), rows(made, *attrs)
    assert (np.diff(origin.new) >= 0).all() and origin.old.dtype == origin.new.dtype == np.int32
    for old, new in zip(origin.old.tolist(), origin.new.tolist(), strict=True):
        assert before[old] == after[new]
    places = dict(zip(graph.nodes, graph.node_attrs["place"].tolist()))
    assert [places[label] for label in made.nodes] == made.node_attrs["place"].tolist()
