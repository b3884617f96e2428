"""Synapses that change their senders, with all that is kept of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._blocks import in_blocks
from .._graph.connectivity import Connectivity, canonical_order, host_array
from .._model.origin import of_another
from .._op import SpMatMulOp
from .._op.param import ETraceParam
from .._op.sharded import ShardedOp, whole
from .._op.weights import check_shape
from .._rule.derivative import parts_of
from .._rule.engine import Carry
from .._rule.influence import Influences
from .._rule.sensitivity import Derivative
from .._rule.signal import leaves_of
from .._types import Model


class Rewired(NamedTuple):
    """What `rewire` returns.

    Attributes:
        model: with other senders.
        carry, opt_state: what is kept of the synapses, moved with them.
        order: `(num_synapses,)`, which of the old synapses each now is, -1 for a new one.

    Example:
        >>> import sparse_etrace as se
        >>> se.Rewired._fields
        ('model', 'carry', 'opt_state', 'order')
    """

    model: PyTree
    carry: PyTree
    opt_state: PyTree
    order: np.ndarray


def rewire(
    model: Model,
    where: Callable[[PyTree], PyTree],
    pre: ArrayLike,
    carry: Carry | None = None,
    opt_state: PyTree = None,
    *,
    weight: ArrayLike = 0.0,
) -> Rewired:
    """Give synapses other senders, and move weights, traces and optimiser state with those that stay.

    Each target keeps the number of its synapses, so that all shapes stay as they are and nothing compiles again. A new
    synapse starts with `weight`, and with zeros in its trace and in what an optimiser keeps of it. Factors of ES-D-RTRL
    belong to units and stay. `RTRL`, where it keeps one matrix, is moved by its columns. Of a model on several devices
    the host reads the layer whole, and what is kept of it goes back to where it was; all processes must call it alike.

    Args:
        model: a model.
        where: `where(model)` is the parameter of a `SpMatMulOp`, as `lambda model: model.rec`.
        pre: `(num_synapses,)`, the sender of each synapse in the order in which they are now (on several devices, of
            the layer as it is on one): that which it has for one that stays, another for one that is replaced.
            `se.rewiring` has functions that choose them.
        carry: of a learner on this model.
        opt_state: of an optimiser of optax.
        weight: what new synapses start with, a number or `(num_synapses,)` in the order of `pre`.

    Returns:
        A `Rewired`.

    Raises:
        TypeError: `where` leads to no such parameter.
        ValueError: `pre` or `weight` has another shape or a sender that is none; the op ties its weights, is on a raw
            matrix, or has a weight function with an array for each synapse.
        NotImplementedError: the carry keeps influences of pairs of synapse and unit, whose pattern would be another; or
            the op has delays.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2], [1, 2, 0])
        >>> cell = se.cells.LeakyRate.of(graph, 2, key=jax.random.key(0))
        >>> learner = se.D_RTRL()
        >>> carry = learner.init(cell, cell.init_state(), jnp.ones(2))
        >>> new = se.rewire(cell, lambda cell: cell.rec, [2, 1, 1], carry)
        >>> new.model.rec.op.connectivity.pre.tolist(), new.order.tolist()
        ([2, 1, 1], [0, -1, 2])

    Reference:
        Mocanu et al. 2018, Nature Communications 9:2383 (SET).
    """
    param = where(model)
    old = _connectivity(whole(param))
    kept = param.op.blocks.kept if isinstance(param.op, ShardedOp) else slice(None)
    senders = np.asarray(pre)
    check_shape("pre", senders.shape, (old.num_synapses,), "The sender of each synapse, in the order that they have.")
    order, connectivity = canonical_order(senders, old.post, old.shape)
    stays = (senders == np.asarray(old.pre))[order]
    if np.ndim(weight):
        check_shape("weight", np.shape(weight), senders.shape, "One number for each synapse, or one for all.")
    starts = np.broadcast_to(np.asarray(weight), senders.shape)[order]

    def moved(leaf: Array, new: ArrayLike = 0, axis: int = -1) -> Array:
        """What is kept of synapses along an axis, and what new ones have of it."""
        made = np.array(host_array("carry", leaf))
        values = np.moveaxis(made, axis, -1)
        values[..., kept] = np.where(stays, values[..., kept][..., order], np.asarray(new, made.dtype))
        if not isinstance(param.op, ShardedOp) or not isinstance(leaf, jax.Array):
            return jax.device_put(made)
        return jax.make_array_from_callback(made.shape, leaf.sharding, made.__getitem__)

    name, path = _names(model, param)
    paths = [at for at, _ in jax.tree_util.tree_flatten_with_path(model)[0] if at[-1:] == path[-1:]]
    value = {**param.value, "weight": moved(param.value["weight"], starts)}
    new = eqx.tree_at(lambda p: (p.value, p.op), param, (value, _on(param.op, connectivity)))
    made = eqx.tree_at(where, model, new)

    def by_path(tree: PyTree) -> PyTree:
        """Leaves that stand where the weights stand in a model, and not where others do whose path ends alike."""
        leaves, layout = jax.tree_util.tree_flatten_with_path(tree)
        return jax.tree.unflatten(layout, [moved(a) if _owner(at, paths) == path else a for at, a in leaves])

    if carry is not None:
        traces = carry.traces
        if isinstance(traces, Influences) or (isinstance(traces, Derivative) and traces.shared is not None):
            raise NotImplementedError(
                "carry: expected traces, factors or one matrix, got influences on a pattern, which would be another. "
                "Make a new one with the learner's init, or take se.D_RTRL(), se.ES_D_RTRL() or se.Bridged()."
            )
        if isinstance(traces, Derivative):
            traces = _by_columns(model, param.value["weight"], traces, moved)
        elif isinstance(traces, dict):
            traces = _by_call(carry, name, param, moved)
        else:
            traces = by_path(traces)
        origin = None if carry.origin is None else of_another(carry.origin, made)
        carry = eqx.tree_at(lambda c: (c.traces, c.origin), carry, (traces, origin), is_leaf=lambda leaf: leaf is None)
    return Rewired(made, carry, by_path(opt_state), np.where(stays, order, -1))


def _connectivity(param: Any) -> Any:
    """The synapses of a parameter that can be given others."""
    if not isinstance(param, ETraceParam) or not isinstance(param.op, SpMatMulOp):
        got = type(param.op if isinstance(param, ETraceParam) else param).__name__
        raise TypeError(f"where: expected it to lead to the ETraceParam of a SpMatMulOp, got {got}.")
    count, arrays = param.op.connectivity.num_synapses, jax.tree.leaves(eqx.filter(param.op.weight_fn, eqx.is_array))
    if param.op.slot is not None or any(count in a.shape for a in arrays):
        raise ValueError(
            "where: expected a SpMatMulOp on a graph, with a weight for each synapse and a weight function without an "
            "array for each, got ties, a raw matrix or such a function. They say nothing of a new synapse."
        )
    if param.op.delays is not None:
        raise NotImplementedError(
            "where: expected a SpMatMulOp without delays, got one with them, whose traces belong to the steps that its "
            "synapses read. Make the op anew, SpMatMulOp(graph, delay=steps, max_delay=...), and the carry by init."
        )
    return param.op.connectivity


def _on(op: Any, connectivity: Connectivity) -> Any:
    """An op on other synapses, of each target as many."""
    if isinstance(op, ShardedOp):
        blocks, _ = in_blocks(connectivity, op.mesh)
        return eqx.tree_at(lambda o: (o.op.connectivity, o.digest), op, (blocks, connectivity.digest))
    return eqx.tree_at(lambda o: o.connectivity, op, connectivity)


def _names(model: PyTree, param: ETraceParam) -> tuple[str, tuple]:
    """Name and path of the weights of a parameter of a model."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        if leaf is param.value["weight"]:
            return jax.tree_util.keystr(path).lstrip("."), path
    raise TypeError("where: expected it to lead to a parameter in the model, got one that is made of others.")


def _owner(path: tuple, paths: list[tuple]) -> tuple | None:
    """The longest of these paths with which another ends."""
    return max((own for own in paths if path[-len(own) :] == own), key=len, default=None)


def _by_call(carry: Carry, name: str, param: ETraceParam, moved: Callable[..., Array]) -> dict[int, PyTree]:
    """Traces of op calls: of those that the weights act in, what has an entry for each synapse."""
    owners = {} if carry.origin is None else dict(carry.origin.owners)
    op: Any = param.op
    (count,) = param.value["weight"].shape

    def one(number: int, trace: PyTree) -> PyTree:
        if not any(name in names for names in owners.get(number, ())):
            return trace
        leaves, layout = jax.tree_util.tree_flatten_with_path(trace)
        found = []
        for path, a in leaves:
            keys = [getattr(step, "key", getattr(step, "name", None)) for step in path]
            of_input = op.gated and keys[-2:] == ["factors", "x"]
            is_moved = "weight" in keys and a.shape[-1:] == (count,)
            found.append(moved(a, axis=op.axis) if of_input else moved(a) if is_moved else a)
        return jax.tree.unflatten(layout, found)

    return {number: one(number, trace) for number, trace in carry.traces.items()}


def _by_columns(model: Model, weight: Array, traces: Derivative, moved: Callable[..., Array]) -> Derivative:
    """The derivative of all state: the columns of the weights."""
    leaves, _ = leaves_of(model)
    moving = [leaves[i] for i in traces.moving]
    number = next((k for k, leaf in enumerate(moving) if leaf is weight), None)
    if number is None:
        return traces
    begin = sum(len(parts_of(leaf)) * leaf.size for leaf in moving[:number])
    columns = slice(begin, begin + weight.size)

    def placed(rows: Array) -> Array:
        new = np.array(rows)
        new[..., columns] = moved(new[..., columns])
        return jax.device_put(new)

    return traces.with_rows(jax.tree.map(placed, traces.rows))
