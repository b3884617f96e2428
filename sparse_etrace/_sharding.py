"""Networks on several devices: each unit with its synapses on one of them."""

from collections.abc import Iterable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ._blocks import Blocks, check_mesh, dealt, in_blocks, sizes_of
from ._graph.connectivity import host_array
from ._graph.graph import Graph
from ._op.contract import ETraceOp
from ._op.delays import Delays
from ._op.matmul import MatMulOp
from ._op.param import ETraceParam, Fixed
from ._op.sharded import ShardedOp, whole
from ._op.spmatmul import SpMatMulOp
from ._op.weights import applied, masked
from .transform import permute

Parted = TypeVar("Parted", bound=PyTree)


def shard(tree: Parted, mesh: Mesh) -> Parted:
    """Part the sparse layers of a model by receiving units, a block of them with their synapses on each device.

    Weights, and what learners and optimizers keep of each, then lie where the receiving unit does, and per step only
    what units send is exchanged. The rest of a model is as it was, and so are its results, to rounding. Where the mesh
    spans processes of `jax.distributed`, each calls it with the same model, and lays out what its own devices need.

    Args:
        tree: a model, of which parameters with a `SpMatMulOp` are parted, those with a `MatMulOp` onto as many units
            as one of these has too, and all others stay; or a square graph, whose nodes are put in another order, so
            that blocks of as many nodes have nearly as many synapses. Do that first where a network has hubs: a layer
            is parted in the order of its units. A layer that is parted already is parted anew for another mesh. Of a
            model of `jax.ShapeDtypeStruct`, the blocks of a layer are taken to have as many synapses.
        mesh: its first axis parts the units; if it has a second one, that parts the first batch axis.

    Returns:
        The model, its layers in a `ShardedOp` and their weights in blocks, or the graph.

    Raises:
        TypeError: `mesh` is no `jax.sharding.Mesh`; the model is traced.
        ValueError: the mesh has devices of some processes only; blocks of equal size of a layer leave a device without
            units; no layer of the model is sparse; a weight function reads more than a weight and its own arrays; or
            the graph is not square.
        NotImplementedError: a layer has trained delays, or is on a raw matrix of which entries are no synapses.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> graph, mesh = se.datasets.worm(), jax.make_mesh((1,), ("units",))
        >>> graph = se.shard(graph, mesh)
        >>> cell = se.shard(se.cells.LeakyRate.of(graph, inputs=2, key=jax.random.key(0)), mesh)
        >>> cell(cell.init_state(), jnp.ones(2))[1].shape
        (279,)
    """
    mesh = check_mesh(mesh)
    count = mesh.shape[mesh.axis_names[0]]
    if isinstance(tree, Graph):
        return permute(tree, dealt(host_array("tree", tree.connectivity.post_ptr), count))

    def is_elsewhere(node: Any) -> bool:
        return _is_layer(node) and isinstance(node.op, ShardedOp) and node.op.mesh != mesh

    tree = jax.tree.map(lambda node: whole(node) if is_elsewhere(node) else node, tree, is_leaf=_is_layer)
    sparse = {units for param in _layers(tree) if (units := _units_of_sparse(param.op))}
    if not sparse:
        raise ValueError(
            f"tree: expected a Graph, or a model with an ETraceParam of a SpMatMulOp, got {type(tree).__name__} "
            "without one. Keep it on one device."
        )

    def one(param: Any) -> Any:
        if _is_layer(param) and isinstance(param.op, SpMatMulOp):
            return _parted(param, mesh, *_sparse(param.op, mesh))
        if _is_layer(param) and isinstance(param.op, MatMulOp) and (num_post := np.shape(_weight(param))[-1]) in sparse:
            size, _ = sizes_of(num_post, count)
            starts = np.minimum(np.arange(count + 1) * size, num_post)
            return _parted(param, mesh, param.op, num_post, Blocks(starts, size))
        return param

    return jax.tree.map(one, tree, is_leaf=_is_layer)


def unshard(tree: Parted) -> Parted:
    """A model as it was before `shard`, with the weights that it has now, on the host's first device.

    Where several processes have parts of it, all must call it, and each gets the whole.

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

    return jax.tree.map(whole, tree, is_leaf=_is_layer)


def _is_layer(node: Any) -> bool:
    return isinstance(node, ETraceParam)


def _layers(tree: PyTree) -> list[ETraceParam]:
    return [node for node in jax.tree.leaves(tree, is_leaf=_is_layer) if _is_layer(node)]


def _units_of_sparse(op: ETraceOp) -> int:
    """Onto how many units a sparse layer leads; 0 for others."""
    if isinstance(op, ShardedOp):
        return op.num_post if isinstance(op.op, SpMatMulOp) else 0
    return op.connectivity.num_post if isinstance(op, SpMatMulOp) else 0


def _weight(param: ETraceParam) -> Array:
    weight = param.value["weight"]
    return weight() if isinstance(weight, Fixed) else weight


def _parted(param: Any, mesh: Mesh, op: Any, num_post: int, blocks: Blocks) -> ETraceParam:
    """A layer in blocks, `op` with index arrays in blocks already."""
    last, count = int(blocks.starts[-1]), blocks.starts.size - 1
    first, filler = _weight(param), None
    given = param.op.weight_fn, param.op.weight_mask if isinstance(op, MatMulOp) else None
    is_shape = isinstance(first, jax.ShapeDtypeStruct)

    is_tied = isinstance(op, SpMatMulOp) and op.slot is not None

    def is_laid_out(values: Any) -> bool:
        is_array = isinstance(values, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
        return is_array and not is_tied and values.shape[-1:] == (last,)

    def laid_out(values: Any, is_zero: bool = False) -> Any:
        """One for each weight."""
        return blocks.laid(values, mesh, is_zero) if is_laid_out(values) else values

    digest = param.op.connectivity.digest if isinstance(op, SpMatMulOp) else None
    starts = jnp.asarray(blocks.starts, jnp.int32)
    if param.op.weight_fn is not None and not is_tied:
        filler = first.ravel()[0] if not is_shape and last else jnp.ones((), first.dtype)
    made = ShardedOp(op, starts, digest, num_post, last, param.op.bias, mesh, filler)
    if filler is not None and not is_shape:
        hosts = jax.tree.map(lambda leaf: np.asarray(leaf) if is_laid_out(leaf) else leaf, (*given, first))

        def of_block(k: int) -> tuple:
            return jax.tree.map(lambda leaf: jnp.asarray(blocks.block(leaf, k)) if is_laid_out(leaf) else leaf, hosts)

        _check_weights(param.op, (*given, first), map(of_block, range(count)), blocks.starts)
    (fn, mask), weight = jax.tree.map(laid_out, given), laid_out(first, is_zero=True)
    if isinstance(op, SpMatMulOp):
        op = eqx.tree_at(lambda o: o.weight_fn, op, fn, is_leaf=lambda leaf: leaf is None)
    else:
        op = MatMulOp(None, fn, op.apply_weight_fn_before_mask)
        op = eqx.tree_at(lambda o: o.weight_mask, op, mask, is_leaf=lambda leaf: leaf is None)
    new = Fixed(weight) if isinstance(param.value["weight"], Fixed) else weight
    made = eqx.tree_at(lambda o: o.op, made, op, is_leaf=lambda leaf: leaf is made.op)
    return eqx.tree_at(lambda p: (p.value, p.op), param, ({**param.value, "weight": new}, made))


def _check_weights(op: Any, whole: tuple, parts: Iterable[tuple], starts: np.ndarray) -> None:
    """Raise for a weight function that makes other weights of a block."""

    def made(fn: Any, mask: Any, weight: Array) -> np.ndarray:
        if isinstance(op, SpMatMulOp):
            return np.asarray(applied(fn, weight)).astype(complex)
        return np.asarray(masked(weight, MatMulOp(mask, fn, op.apply_weight_fn_before_mask))).astype(complex)

    try:
        is_same = all(
            np.allclose(made(*part)[..., : end - start], expected[..., start:end], equal_nan=True)
            for expected in [made(*whole)]
            for part, start, end in zip(parts, starts, starts[1:], strict=False)
        )
    except (TypeError, ValueError):
        is_same = False
    if not is_same:
        raise ValueError(
            "weight_fn: expected a function of each weight by itself, with leaves of its own for what differs from "
            f"weight to weight, got {op.weight_fn!r}. Keep the layer on one device, or give an equinox.Module."
        )


def _sparse(op: SpMatMulOp, mesh: Mesh) -> tuple[SpMatMulOp, int, Blocks]:
    """The layer on index arrays in blocks of units, of which each process makes its own; its units, and the blocks."""
    is_whole = op.slot is None or isinstance(op.slot, jax.ShapeDtypeStruct) or op.num_weights == _used(op.slot)
    if not is_whole or (op.delays is not None and op.delays.start is not None):
        raise NotImplementedError(
            f"tree: expected sparse layers without trained delays, of which synapses use all weights, got {op} that is "
            "another. Keep it on one device."
        )
    conn, blocks = in_blocks(op.connectivity, mesh)
    last = None if op.slot is None else np.full(conn.num_synapses, op.num_weights - 1)
    made = SpMatMulOp(conn, tie=last, axis=op.axis, gated=op.gated)
    if (given := op.delays) is not None:
        wires, _ = in_blocks(given.wires, mesh)
        lag, steps = (blocks.laid(a, mesh, is_zero=True) for a in (given.lag, given.steps))
        delays = Delays(wires, lag, steps, None, None, given.depth)
        made = eqx.tree_at(lambda o: o.delays, made, delays, is_leaf=lambda leaf: leaf is None)
    if op.slot is not None:
        made = eqx.tree_at(lambda o: o.slot, made, blocks.laid(op.slot, mesh, is_zero=True))
    return made, op.connectivity.num_post, blocks


def _used(slot: Any) -> int:
    """The weights up to the last that a synapse uses."""
    return int(host_array("tree", slot).max(initial=-1)) + 1
