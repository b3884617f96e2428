"""Networks on several devices: each unit with its synapses on one of them."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ._graph.connectivity import Connectivity, digest_of, host_array, with_outgoing
from ._graph.graph import Graph
from ._op.contract import ETraceOp
from ._op.matmul import MatMulOp
from ._op.param import ETraceParam, Fixed
from ._op.sharded import ShardedOp
from ._op.spmatmul import SpMatMulOp
from ._op.weights import applied, masked
from .transform import permute

Parted = TypeVar("Parted", bound=PyTree)


def shard(tree: Parted, mesh: Mesh) -> Parted:
    """Part the sparse layers of a model by receiving units, a block of them with their synapses on each device.

    Weights, and what learners and optimizers keep of each, then lie where the receiving unit does, and per step only
    what units send is exchanged. The rest of a model is as it was, and so are its results, to rounding.

    Args:
        tree: a model, of which parameters with a `SpMatMulOp` are parted, those with a `MatMulOp` onto as many units
            as one of these has too, and all others stay; or a square graph, whose nodes are put in another order, so
            that blocks of as many nodes have nearly as many synapses. Do that first where a network has hubs: a layer
            is parted in the order of its units. A model that is parted already is parted anew.
        mesh: its first axis parts the units; if it has a second one, that parts the first batch axis.

    Returns:
        The model, its layers in a `ShardedOp` and their weights in blocks, or the graph.

    Raises:
        TypeError: `mesh` is no `jax.sharding.Mesh`; the model is traced.
        ValueError: a layer has fewer units than there are devices; no layer of the model is sparse; a weight function
            reads more than a weight and its own arrays; or the graph is not square.
        NotImplementedError: a layer has delays, ties or gates.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> graph, mesh = se.datasets.worm(), jax.make_mesh((1,), ("units",))
        >>> graph = se.shard(graph, mesh)
        >>> cell = se.shard(se.cells.LeakyRate.of(graph, inputs=2, key=jax.random.key(0)), mesh)
        >>> cell(cell.init_state(), jnp.ones(2))[1].shape
        (279,)
    """
    if not isinstance(mesh, Mesh) or not 0 < len(mesh.axis_names) < 3:
        raise TypeError(
            f"mesh: expected a jax.sharding.Mesh of one or two axes, got {mesh!r}. jax.make_mesh((8,), ('units',)) "
            "makes one."
        )
    mesh = Mesh(mesh.devices, mesh.axis_names)  # of axes that XLA follows, and not the types of arrays
    count = mesh.shape[mesh.axis_names[0]]
    if isinstance(tree, Graph):
        return permute(tree, _order(host_array("tree", tree.connectivity.post_ptr), count))

    tree = unshard(tree)
    sparse = {param.op.connectivity.num_post for param in _layers(tree) if isinstance(param.op, SpMatMulOp)}
    if not sparse:
        raise ValueError(
            f"tree: expected a Graph, or a model with an ETraceParam of a SpMatMulOp, got {type(tree).__name__} "
            "without one. Keep it on one device."
        )

    def one(param: Any) -> Any:
        if _is_layer(param) and isinstance(param.op, SpMatMulOp):
            return _parted(param, mesh, *_sparse(param.op, count))
        if _is_layer(param) and isinstance(param.op, MatMulOp) and (num_post := np.shape(_weight(param))[-1]) in sparse:
            size, _ = _sizes(num_post, count)
            return _parted(param, mesh, param.op, num_post, size * count, np.arange(num_post))
        return param

    return jax.tree.map(one, tree, is_leaf=_is_layer)


def unshard(tree: Parted) -> Parted:
    """A model as it was before `shard`, with the weights that it has now, on the host's first device.

    Args:
        tree: a model.

    Returns:
        The model with `SpMatMulOp` and `MatMulOp`.

    Raises:
        TypeError: it has no indices, as gradients have none.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph, mesh = se.datasets.worm(), jax.make_mesh((1,), ("units",))
        >>> param = se.SpMatMulOp(graph).param(init=graph)
        >>> bool((se.unshard(se.shard(param, mesh)).value["weight"] == graph.weight).all())
        True
    """

    def one(param: Any) -> Any:
        return _whole(param) if _is_layer(param) and isinstance(param.op, ShardedOp) else param

    return jax.tree.map(one, tree, is_leaf=_is_layer)


def _whole(param: Any) -> ETraceParam:
    op, num_post = param.op.op, param.op.num_post
    if isinstance(op, SpMatMulOp) and op.connectivity.pre is None:
        raise TypeError(
            "tree: expected a model, got one without indices, as gradients are. equinox.combine(grads, model) has them."
        )
    size = np.shape(_weight(param))[-1]
    kept = np.arange(num_post)
    if isinstance(op, SpMatMulOp):
        conn, count = op.connectivity, param.op.count
        pre, num_pre = np.asarray(conn.pre), conn.num_pre - 1
        kept = np.flatnonzero(pre < num_pre)
        post = np.asarray(conn.post) + np.repeat(np.arange(count) * conn.num_post, size // count)

    def taken(leaf: Any) -> Any:
        is_of_weights = eqx.is_array(leaf) and leaf.shape[-1:] == (size,)
        return jnp.asarray(np.asarray(leaf)[..., kept]) if is_of_weights else leaf

    weight_fn = jax.tree.map(taken, op.weight_fn)
    if isinstance(op, SpMatMulOp):
        whole = Connectivity.from_edges(pre[kept], post[kept], (num_pre, num_post))
        made: ETraceOp = SpMatMulOp(whole, weight_fn, axis=op.axis, bias=param.op.bias)
    else:
        mask = None if op.weight_mask is None else taken(op.weight_mask)
        made = MatMulOp(mask, weight_fn, op.apply_weight_fn_before_mask, bias=param.op.bias)
    weight = taken(_weight(param))
    new = Fixed(weight) if isinstance(param.value["weight"], Fixed) else weight
    return ETraceParam({**param.value, "weight": new}, made, param.grad, param.is_etrace)


def _is_layer(node: Any) -> bool:
    return isinstance(node, ETraceParam)


def _layers(tree: PyTree) -> list[ETraceParam]:
    return [node for node in jax.tree.leaves(tree, is_leaf=_is_layer) if _is_layer(node)]


def _weight(param: ETraceParam) -> Array:
    weight = param.value["weight"]
    return weight() if isinstance(weight, Fixed) else weight


def _order(ptr: np.ndarray, count: int) -> np.ndarray:
    """Nodes in blocks of equal size, dealt out by in-degree, to and fro."""
    size, last = _sizes(ptr.size - 1, count)
    ranked = np.argsort(-np.diff(ptr), kind="stable")
    full, rest = ranked[: last * count].reshape(last, count), ranked[last * count :].reshape(size - last, count - 1)
    for rows in (full, rest):
        rows[1::2] = rows[1::2, ::-1]
    blocks = [np.concatenate([full[:, k], rest[:, k : k + 1].ravel()]) for k in range(count)]
    return np.concatenate([np.sort(block) for block in blocks])


def _sizes(units: int, count: int) -> tuple[int, int]:
    """Units of each block but the last, and of that."""
    size = -(-units // count)
    last = units - (count - 1) * size
    if last < 1:
        raise ValueError(f"mesh: expected at most as many devices as units fill, got {count} for {units} units.")
    return size, last


def _parted(param: Any, mesh: Mesh, op: Any, num_post: int, size: int, places: np.ndarray) -> ETraceParam:
    """A layer in blocks: `op` has all of them, `places` says where along the last axis each weight comes to lie."""
    last = np.shape(_weight(param))[-1]
    made = ShardedOp(op, num_post, last, param.op.bias, mesh)

    def placed(whole: Any) -> Array:
        return jax.make_array_from_callback(whole.shape, made.place(whole.ndim), lambda part: whole[part])

    def laid_out(values: Any) -> Any:
        """One for each weight; those that fill a block up are like any of them."""
        if np.shape(values)[-1:] != (last,):
            return values
        host = np.asarray(values)
        whole = np.repeat(host[..., :1], size, axis=-1) if last else np.ones((*host.shape[:-1], size), host.dtype)
        whole[..., places] = host
        return placed(whole)

    def of_op(leaf: Any) -> Any:
        return laid_out(leaf) if isinstance(leaf, jax.Array | np.ndarray) else leaf

    if isinstance(op, SpMatMulOp):
        blocks = eqx.tree_at(lambda c: c.arrays, op.connectivity, tuple(map(placed, op.connectivity.arrays)))
        op = SpMatMulOp(blocks, jax.tree.map(of_op, op.weight_fn), axis=op.axis)
    else:
        op = MatMulOp(None, jax.tree.map(of_op, op.weight_fn), op.apply_weight_fn_before_mask)
        op = eqx.tree_at(lambda o: o.weight_mask, op, of_op(param.op.weight_mask), is_leaf=lambda leaf: leaf is None)
    weight = laid_out(_weight(param))
    new = Fixed(weight) if isinstance(param.value["weight"], Fixed) else weight
    if op.weight_fn is not None:
        _check_weights(param.op, _weight(param), op, weight, places)
    made = ShardedOp(op, num_post, last, param.op.bias, mesh)
    return ETraceParam({**param.value, "weight": new}, made, param.grad, param.is_etrace)


def _check_weights(whole: Any, weight: Array, parted: Any, blocks: Array, places: np.ndarray) -> None:
    """Raise for a weight function that makes other weights of what is laid out in blocks."""

    def made(op: Any, weight: Array) -> np.ndarray:
        found = applied(op.weight_fn, weight) if isinstance(op, SpMatMulOp) else masked(weight, op)
        return np.asarray(found).astype(complex)

    try:
        is_same = np.allclose(made(parted, blocks)[..., places], made(whole, weight), equal_nan=True)
    except (TypeError, ValueError):
        is_same = False
    if not is_same:
        raise ValueError(
            "weight_fn: expected a function of each weight by itself, with leaves of its own for what differs from "
            f"weight to weight, got {whole.weight_fn!r}. Keep the layer on one device, or give an equinox.Module."
        )


def _sparse(op: SpMatMulOp, count: int) -> tuple[SpMatMulOp, int, int, np.ndarray]:
    """The layer in blocks of units, one after the other; its units, its synapses, and where each is in them."""
    if op.delays is not None or op.slot is not None or op.gated:
        raise NotImplementedError(
            f"tree: expected sparse layers with a weight for each synapse, got {op} with delays, ties or gates. Keep "
            "it on one device."
        )
    connectivity = op.connectivity
    pre, ptr = (host_array("tree", a) for a in (connectivity.pre, connectivity.post_ptr))
    (num_pre, num_post), (size, _) = connectivity.shape, _sizes(connectivity.num_post, count)
    ends = np.minimum(np.arange(count + 1) * size, num_post)
    starts = ptr[ends]
    most = int(np.diff(starts).max(initial=1))

    def block(k: int) -> Connectivity:
        kept = starts[k + 1] - starts[k]
        of_units = np.full(size + 1, kept, np.int32)
        of_units[: ends[k + 1] - ends[k] + 1] = ptr[ends[k] : ends[k + 1] + 1] - starts[k]
        of_units[-1] = most
        senders = np.concatenate([pre[starts[k] : starts[k + 1]], np.full(most - kept, num_pre, np.int32)])
        number = np.arange(most, dtype=np.int32)
        return with_outgoing(sp.csc_array((number, senders, of_units), shape=(num_pre + 1, size)))

    arrays = [np.concatenate(part) for part in zip(*(block(k).arrays for k in range(count)), strict=True)]
    digest = jnp.asarray(digest_of(arrays[0], arrays[2], num_pre + 1))
    where = np.arange(pre.size) + np.repeat(np.arange(count) * most - starts[:-1], np.diff(starts))
    a, b, c, d, e, f = map(jnp.asarray, arrays)
    whole = Connectivity(a, b, c, d, e, f, num_pre + 1, size, digest)
    blocks = SpMatMulOp(whole, op.weight_fn, axis=op.axis)
    return blocks, num_post, most * count, where
