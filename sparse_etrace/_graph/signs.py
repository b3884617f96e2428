"""Signs of synapses from labels, as neurotransmitters."""

from collections.abc import Hashable, Mapping

import numpy as np

from .connectivity import host_array
from .graph import Graph, check_graph
from .selection import categories, node_column


def synapse_signs(graph: Graph, by: str, signs: Mapping[Hashable, float], default: float | None) -> np.ndarray:
    """What a table says of each synapse, by an attribute of its sender or of its own."""
    pre = host_array("graph", check_graph(graph).connectivity.pre)
    is_own = by in graph.edge_attrs and by not in graph.node_attrs
    labels, of = categories(graph.edge_attrs[by] if is_own else node_column(graph, by, "by"))
    asked = of if is_own else of[np.flatnonzero(np.diff(host_array("graph", graph.connectivity.pre_ptr)))]
    count = np.bincount(asked, minlength=len(labels)).tolist()
    without = [k for k, label in enumerate(labels) if count[k] and label not in signs]
    values, missing = ", ".join(repr(labels[k]) for k in without), sum(count[k] for k in without)
    if signs and asked.size and missing == asked.size:
        raise ValueError(
            f"signs: expected values of {by!r} that {'synapses have' if is_own else 'nodes have which send'}, got "
            f"{[*signs]}, and theirs are {values}."
        )
    if without and default is None:
        raise ValueError(
            f"signs: expected +1 or -1 for each {by!r} of {'synapses' if is_own else 'nodes that send'}, got none for "
            f"{values}, {missing} of {asked.size} {'synapses' if is_own else 'senders'}. Add them, or pass default=1 "
            "or default=-1."
        )
    table = np.array([signs.get(label, 0 if default is None else default) for label in labels], float)
    return table[of if is_own else of[pre]]
