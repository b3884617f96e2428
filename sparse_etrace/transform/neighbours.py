"""Some of the neighbours of some nodes, in arrays whose shapes are known before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from .._graph.connectivity import Connectivity
from .._graph.graph import Graph
from .._numbers import positive


class Neighbours(NamedTuple):
    """Senders to some nodes, padded to one number for each.

    Attributes:
        pre: sending units, `(count, fanout)`, int32; 0 where there is none.
        synapse: the synapses that they send by, `(count, fanout)`, int32; 0 where there is none.
        mask: where there is one, `(count, fanout)`, boolean.
    """

    pre: Int[Array, "count fanout"]
    synapse: Int[Array, "count fanout"]
    mask: Bool[Array, "count fanout"]


def sample_neighbours(
    graph: Graph | Connectivity,
    nodes: Int[Array | np.ndarray, " count"],
    fanout: int,
    key: Array,
    mask: Bool[Array | np.ndarray, " count"] | None = None,
) -> Neighbours:
    """Draw up to `fanout` incoming synapses of each node, without replacement; all of them where there are no more.

    Works under `jit`: the shapes depend on `count` and `fanout` alone. For a further layer ask again for
    `found.pre.ravel()`, with `mask=found.mask.ravel()`.

    Args:
        graph: a graph or a connectivity; it may be traced.
        nodes: receiving units, `(count,)`, integers; a unit that occurs twice is drawn for twice. Where
            they are traced, or masked, one out of range has no neighbours.
        fanout: how many to draw for each, at least 1.
        key: of `jax.random`.
        mask: which of the nodes are none, but padding: False there.

    Returns:
        The `Neighbours`.

    Raises:
        TypeError: `graph` is none, or `fanout` no whole number.
        ValueError: `fanout` is below 1, or a node is out of range, where that is known.

    References:
        Bentley, Floyd (1987), A sample of brilliance, Communications of the ACM 30:754-757.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> star = se.from_edges([1, 2, 3, 0], [0, 0, 0, 1])
        >>> found = se.transform.sample_neighbours(star, jnp.array([0, 1, 2]), 2, jax.random.key(0))
        >>> found.mask.tolist()
        [[True, True], [True, False], [False, False]]
    """
    conn = graph.connectivity if isinstance(graph, Graph) else graph
    if not isinstance(conn, Connectivity):
        raise TypeError(f"graph: expected a Graph or a Connectivity, got {type(graph).__name__}.")
    fanout, units = positive("fanout", fanout), jnp.asarray(nodes, jnp.int32)
    here = (units >= 0) & (units < conn.num_post)
    if not isinstance(nodes, jax.core.Tracer) and mask is None and not np.all(here):
        raise ValueError(f"nodes: expected units from 0 and below {conn.num_post}, got {nodes}. Mask padding.")
    start = conn.post_ptr[units]
    degree = jnp.where(here if mask is None else here & mask, conn.post_ptr[units + 1] - start, 0)
    slots = jnp.arange(fanout, dtype=jnp.int32)
    # Floyd's way: slot i draws among the first `degree - fanout + i + 1`, or takes the last of these if drawn before.
    last = degree[:, None] - fanout + slots
    drawn = jax.random.randint(key, last.shape, 0, jnp.maximum(last + 1, 1))
    chosen = jnp.full(last.shape, -1, jnp.int32)
    for i in range(fanout):
        again = (chosen == drawn[:, i, None]).any(axis=1)
        chosen = chosen.at[:, i].set(jnp.where(again, last[:, i], drawn[:, i]))
    few = degree[:, None] <= fanout
    chosen, found = jnp.where(few, slots, chosen), slots < degree[:, None]
    synapse = jnp.where(found, start[:, None] + chosen, 0)
    if not conn.num_synapses:
        return Neighbours(synapse, synapse, found)
    return Neighbours(jnp.where(found, conn.pre[synapse], 0), synapse, found)
