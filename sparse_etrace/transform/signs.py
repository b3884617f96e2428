"""Signs of weights from neurotransmitters."""

from collections.abc import Hashable, Mapping

import numpy as np

from .._graph.connectivity import host_array
from .._graph.graph import Graph
from .._graph.signs import synapse_signs

FLY_SIGNS: Mapping[str, int] = {
    **dict.fromkeys(["ACH", "acetylcholine", "DA", "dopamine", "OCT", "octopamine", "SER", "serotonin"], 1),
    **dict.fromkeys(["GABA", "gaba", "GLUT", "glutamate", "histamine"], -1),
}
"""Signs of the fly's neurotransmitters as its connectomes spell them, for `with_signs` and `SignLock.of`: acetylcholine
and the amines excite; GABA, glutamate and histamine inhibit."""


def with_signs(graph: Graph, by: str, signs: Mapping[Hashable, int], *, default: int | None = None) -> Graph:
    """Give weights the sign that a table says, `sign * |w|`.

    `FLY_SIGNS` is such a table, a convention of models of the fly's brain, not of other animals; `{**FLY_SIGNS,
    "DA": 0}` changes it.

    Args:
        graph: square or rectangular.
        by: the node attribute of senders, as `"nt_type"`, or an attribute of the synapses.
        signs: for each value of it +1, -1, or 0 for synapses without effect.
        default: the sign where there is another value, or an empty one; None: these are an error.

    Returns:
        The graph with other weights; its synapses stay, in their order.

    Raises:
        TypeError: `graph` is no graph, or is traced.
        ValueError: there is no such attribute, none of its values is in `signs`, one is not, or a sign is none.

    References:
        Shiu and others (2024), A Drosophila computational brain model reveals sensorimotor processing, Nature
        634:210-219, of the signs.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.from_edges([0, 1], [1, 0], [5.0, 7.0])
        >>> graph = se.Graph(graph.connectivity, graph.weight, node_attrs={"nt_type": ["ACH", "GABA"]})
        >>> se.transform.with_signs(graph, "nt_type", se.transform.FLY_SIGNS).weight.tolist()
        [-7.0, 5.0]
    """
    for sign in (*signs.values(), 0 if default is None else default):
        if sign not in (-1, 0, 1):
            raise ValueError(f"signs: expected +1, -1 or 0 for each value, got {sign!r}. Weights have the sizes.")
    of_synapse = synapse_signs(graph, by, signs, default)
    weight = host_array("graph", graph.weight)
    return graph.with_weight(np.abs(weight) * of_synapse.astype(weight.dtype))
