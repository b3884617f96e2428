"""The published model of a whole fly, of a connectome's signed counts of synapses."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from ..._graph.connectivity import as_indices, index_array
from ..._graph.graph import Graph, check_graph
from ..._graph.matrices import from_edges
from ..._op.param import ETraceParam, Fixed
from ..._op.spmatmul import SpMatMulOp
from .delta import Delta
from .exponential import Exponential
from .lif import LIF
from .population import Population


def whole_fly(
    graph: Graph,
    driven: ArrayLike | Sequence[int] = (),
    *,
    per_synapse: float = 0.275,
    drive: float = 68.75,
    weight_fn: Callable[[Array], Array] | None = None,
    dt: float = 0.1,
    delay: float = 1.8,
    refractory: float = 2.2,
    tau_synapse: float = 5.0,
    spike: Callable[[Array], Array] | None = None,
    **constants: Any,
) -> Population:
    """Leaky integrate-and-fire neurons with the constants of the published model of the whole fly.

    `20 dv/dt = -52 - v + g`, `5 dg/dt = -g`, in ms and mV. A spike at -45 mV sets `v` to -52 and `g` to 0 for 2.2 ms,
    in which what arrives is lost; after 1.8 ms it adds the weight, `per_synapse` times the count, to the `g` of its
    targets. A `Population` of `LIF` with the receptors `"g"` and `"drive"`, each step exact.

    Args:
        graph: its weights are counts of synapses with the sign of their sender.
        driven: positions of neurons that `x`, `(..., len(driven))`, drives: where it is 1, by an input that makes them
            spike in this step, as a Poisson process in the published model. They are not refractory.
        per_synapse: what one synapse adds to `g`, mV; the weights of the parameter are in mV.
        drive: what `x` adds to `v`, mV; the weight of 250 synapses unless given.
        weight_fn: of the recurrent weights, as of `SpMatMulOp`: `SignLock(jnp.sign(graph.weight))` keeps their signs
            when they are trained.
        dt, delay, refractory, tau_synapse, spike: of the population and of `Exponential`, ms.
        **constants: other ones of `LIF`: `tau`, `rest`, `reset`, `threshold`.

    Returns:
        The population. `x` is None where nothing is driven.

    Raises:
        TypeError: `graph` is no graph, or positions are no integers.
        ValueError: the graph is not square, a position is out of range, or a constant is.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 1], [1, 2], [300.0, 300.0], shape=(3, 3))
        >>> fly = se.cells.spiking.whole_fly(graph, driven=[0])
        >>> once = jnp.zeros((200, 1)).at[0].set(1.0)
        >>> z, _ = se.predict(fly, fly.init_state(), once)
        >>> [int(k) for k in z.argmax(axis=0)]  # steps of 0.1 ms
        [0, 41, 82]

    Reference:
        Shiu, Sterne, Spiller and others 2024, A Drosophila computational brain model reveals sensorimotor processing,
        Nature 634:210.
    """
    num_pre, units = check_graph(graph).connectivity.shape
    if num_pre != units:
        raise ValueError(f"graph: expected one set of units, got a graph of shape {(num_pre, units)}.")
    driven = as_indices("driven", index_array("driven", driven), units)
    silent = np.full(units, refractory)
    inp = None
    if driven.size:
        onto = from_edges(np.arange(driven.size), driven, shape=(driven.size, units))
        # The step of silence is the one in which an input of the moment of the spike would arrive.
        silent[driven] = dt
        inp = {"drive": ETraceParam({"weight": Fixed(drive * onto.weight)}, SpMatMulOp(onto))}
    op = SpMatMulOp(graph, weight_fn)
    neuron = LIF(**{"tau": 20.0, "rest": -52.0, "reset": -52.0, "threshold": -45.0} | constants)
    rec, synapses = {"g": op.param(init=per_synapse * graph.weight)}, {"g": Exponential(tau_synapse), "drive": Delta()}
    return Population(units, neuron, inp, rec, synapses, dt, silent, spike, delay=delay, clears=True)
