"""Weights that synapses share by the labels of their ends."""

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from .._graph.graph import Graph, check_graph
from .._graph.selection import categories, node_column


class Ties(NamedTuple):
    """Which synapses share a weight.

    Attributes:
        tie: the weight of each synapse, `(num_synapses,)`, for `SpMatMulOp(graph, tie=)`.
        groups: for each weight the label of the senders and that of the receivers; None where they do not matter.
    """

    tie: Int[np.ndarray, " num_synapses"]
    groups: list[tuple[Hashable, Hashable]]


def ties(graph: Graph, pre: str | None = None, post: str | None = None) -> Ties:
    """One weight for each type of sender, of receiver, or for each pair of types that has synapses.

    Args:
        graph: square or rectangular.
        pre: node attribute by which senders are told apart; None: they are not.
        post: likewise for receivers.

    Returns:
        `Ties(tie, groups)`.

    Raises:
        TypeError: `graph` is no graph.
        ValueError: there is no node attribute of that name with one value for each node.

    Example:
        >>> import jax, sparse_etrace as se
        >>> eye = se.datasets.fly_eye()
        >>> tie, pairs = se.ties(eye, pre="cell_type", post="cell_type")
        >>> len(pairs), pairs[0]
        (604, ('Am', 'C2'))
        >>> se.SpMatMulOp(eye, tie=tie).param(jax.random.key(0)).value["weight"].shape
        (604,)
    """
    conn = check_graph(graph).connectivity
    first = len(graph.nodes) - conn.num_post
    labels, number = [], np.zeros(conn.num_synapses, np.int64)
    for name, argument, unit in ((pre, "pre", conn.pre), (post, "post", conn.post + first)):
        column = np.full(len(graph.nodes), None) if name is None else node_column(graph, name, argument)
        types, of = categories(column)
        labels.append(types)
        number = number * len(types) + of[np.asarray(unit)]
    found, tie = np.unique(number, return_inverse=True)
    return Ties(tie, [(labels[0][k // len(labels[1])], labels[1][k % len(labels[1])]) for k in found.tolist()])
