"""Trained delays: the whole steps that stand in an op follow the numbers that are trained."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._graph.connectivity import host_array
from .delays import delays_of
from .param import ETraceParam
from .spmatmul import SpMatMulOp


def refloor(model: PyTree) -> PyTree:
    """A model whose trained delays lie between whole steps again, `floor(delay) <= delay <= floor(delay) + 1`.

    Between sequences, because traces belong to the steps that synapses read: make a new carry with the learner's
    `init`; nothing compiles again. Delays that left 1 to `max_delay` are put back to its ends. Until then a delay that
    has left its two steps extends the line through them.

    Args:
        model: a pytree with parameters of `SpMatMulOp(..., train_delay=True)`; the rest of it stays as it is.

    Raises:
        TypeError: the delays are traced.
        ValueError: a delay is not a number.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> op = se.SpMatMulOp(se.from_edges([0], [0]), delay=[1.5], train_delay=True, max_delay=4)
        >>> param = se.ETraceParam({"weight": jnp.ones(1), "delay": jnp.array([2.75])}, op)
        >>> ring = op.ring().push(jnp.array([1.0])).push(jnp.array([0.0])).push(jnp.array([0.0]))
        >>> param(ring).tolist(), se.refloor(param)(ring).tolist()
        ([0.0], [0.75])

    Reference:
        Hammouamri, Khalfaoui-Hassani and Masquelier 2024, International Conference on Learning Representations (arXiv
        2306.17670), who also train delays through weights of neighbouring steps.
    """

    def one(param: Any) -> Any:
        op = param.op if isinstance(param, ETraceParam) else None
        if not isinstance(op, SpMatMulOp) or op.delays is None or op.delays.start is None:
            return param
        delay = param.value["delay"]
        values = np.clip(host_array("delay", delay), 1, op.delays.depth)
        moved = delays_of(op.connectivity, values, len(values), op.delays.order, op.delays.depth, True)
        new = {**param.value, "delay": jnp.asarray(values, delay.dtype)}
        return eqx.tree_at(lambda p: (p.value, p.op.delays), param, (new, moved))

    return jax.tree.map(one, model, is_leaf=lambda leaf: isinstance(leaf, ETraceParam))
