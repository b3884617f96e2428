"""A layer on several devices: what belongs to a unit lies where the unit does."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Inexact, Int, PyTree, UInt32

from .._blocks import Blocks
from .._graph.connectivity import Connectivity, host_array, onto_synapses
from .._kernels.windows import window_per_unit
from .._varying import freely
from .active import as_frame
from .boundary import call_op
from .contract import ETraceOp, PartedError, Uses
from .delays import Delays, History, Ring, each, pushed_on
from .matmul import MatMulOp
from .param import ETraceParam, Fixed
from .spmatmul import Sent, SpMatMulOp, Traces, Weights
from .weights import check_bias, check_input, read_weights, with_bias, with_gate


class ShardedOp(ETraceOp):
    """A sparse or dense layer by blocks of receiving units, one on each device of a mesh; `se.shard` makes it.

    What units send is gathered on each device; weights, traces and gradients never leave theirs. All blocks have as
    many units, the last by some that nothing reads; sparse ones are filled up to as many synapses with some onto one
    more unit, which nothing hears. The weights of what fills up start at zero, reach no weight function, and have
    traces and gradients of zero.

    Executes on `{'weight': ..., 'bias'?: (num_post,)}`, the weights in blocks along their last axis.

    Attributes:
        op: the layer of all blocks, one after the other; each device has its part of each array, along the last axis.
        starts: the first weight of each block in the layer as it is on one device, and their number last.
        digest: that of the connectivity of the layer on one device; None for a dense one.
        num_post: receiving units in all.
        length: weights in all along the last axis, without those that fill blocks up.
        bias: that of the layer.
        mesh: its first axis parts the units, and a second one the batch.
        filler: what the weight function gets in the place of weights that fill up; None without one.
    """

    op: SpMatMulOp | MatMulOp
    starts: Int[Array, " blocks_and_1"]
    digest: UInt32[Array, "2"] | None
    num_post: int = eqx.field(static=True)
    length: int = eqx.field(static=True)
    bias: bool = eqx.field(static=True)
    mesh: Mesh = eqx.field(static=True)
    filler: Array | None
    per_unit: ClassVar[tuple[str, ...]] = ("bias",)

    @property
    def axis(self) -> int:
        """The axis of the units."""
        return self.op.axis if isinstance(self.op, SpMatMulOp) else -1

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return self.mesh.shape[self.mesh.axis_names[0]]

    @property
    def input_ndim(self) -> int:
        """Rank of `x` without batch axes."""
        return self.op.input_ndim

    @property
    def carried_ndim(self) -> int:
        """The features after the presynaptic units."""
        return self.op.carried_ndim

    @property
    def blocks(self) -> Blocks:
        """How the weights lie in blocks."""
        units = -(-self.num_post // self.count)
        size = self.op.connectivity.num_synapses // self.count if isinstance(self.op, SpMatMulOp) else units
        return Blocks(host_array("tree", self.starts), size)

    @property
    def delays(self) -> Delays | None:
        """Those of the layer, in blocks."""
        return getattr(self.op, "delays", None)

    @property
    def is_tied(self) -> bool:
        """Whether synapses share weights, which then are no blocks and lie whole on each device."""
        return isinstance(self.op, SpMatMulOp) and self.op.slot is not None

    @property
    def gated(self) -> bool:
        """Whether each synapse is told in each step what it reads."""
        return isinstance(self.op, SpMatMulOp) and self.op.gated

    def read(self, x: Any) -> Any:
        """What the layer reads on one device, all of a ring on each; with gates in blocks, as the weights are."""
        if not self.gated:
            return as_frame(self.op.read(x))
        x, gate = with_gate(x, self.length)
        return freely(self._gated, x, gate, like=lambda: self._spec(x.ndim, self.axis, 0, self._batch(x, 0)))

    def _gated(self, x: Array, gate: Array) -> Array:
        slots = np.arange(cast(SpMatMulOp, self.op).connectivity.num_synapses)
        size = len(slots) // self.count
        at = jnp.take(self.starts, slots // size) + slots % size
        own = jnp.where(at < jnp.take(self.starts, slots // size + 1), jnp.take(gate, at, axis=-1, mode="clip"), 0)
        sent = call_op(Onto(self), {"weight": jnp.ones(len(slots), jnp.result_type(x, float))}, x, True, None)
        return sent * jax.lax.stop_gradient(own if self.axis == -1 else own[..., None]).astype(sent.dtype)

    def place(self, ndim: int) -> NamedSharding:
        """Where an array lies whose last axis is that of the weights."""
        return NamedSharding(self.mesh, self._spec(ndim, -1))

    def entries(self, shape: tuple[int, ...]) -> int:
        """Those of the layer on one device."""
        return math.prod(shape[:-1]) * self.length

    def phi(self, theta: dict[str, Array]) -> Weights:
        read_weights(theta, 1 if isinstance(self.op, SpMatMulOp) else 2, "as se.shard lays it out")
        check_bias(theta, self.num_post, self.bias)
        place = self._spec(theta["weight"].ndim, -1)
        return theta | {"weight": freely(self.weights, theta["weight"], like=lambda: place)}

    def weights(self, weight: Array) -> Array:
        """Those on synapses, of what fills up zero whatever it is."""
        if self.filler is None:
            return self.op.phi({"weight": weight})["weight"]
        if isinstance(self.op, SpMatMulOp):
            is_own = self.op.connectivity.post < self.op.connectivity.num_post - 1
        else:
            is_own = jnp.arange(weight.shape[-1]) < self.num_post
        given = jnp.where(is_own, weight, self.filler)
        return jnp.where(is_own, self.op.phi({"weight": given})["weight"], 0)

    def xw_to_y(self, x: Sent, w: Weights) -> Inexact[Array, "*batch_y"]:
        read: Any = each(x)
        batch, weight = self._batch(read, 0), w["weight"]

        def local(op: ETraceOp, x: Sent, weight: Array) -> Array:
            y = op.xw_to_y(x, {"weight": weight})
            return jax.lax.slice_in_dim(y, 0, -(-self.num_post // self.count), axis=y.ndim + self.axis)

        if not isinstance(read, Ring):
            check_input(read, self.axis, self.op.wires.num_pre if isinstance(self.op, SpMatMulOp) else len(weight))
        specs = self._sent(read, 0, batch), self._spec(weight.ndim, -1)
        of_units, whole = self._spec(read.ndim, self.axis, 0, batch), self._spec(read.ndim, None, 0, batch)
        y = self._run(local, specs, of_units, read, weight, outside=whole)
        y = jax.lax.slice_in_dim(y, 0, self.num_post, axis=y.ndim + self.axis)
        return self._last(with_bias(self._last(y), w))

    def yw_to_w(self, y: Inexact[Array, "*batch_y"], e: Weights) -> Weights:
        batch, ends = self._batch(y, 0), self._filled(y)

        def local(op: ETraceOp, y: Array, weight: Array) -> Array:
            return op.yw_to_w(self._with_deaf(y), {"weight": weight})["weight"]

        def one(key: str, leaf: Array) -> Array:
            if key == "bias":
                return self._last(y) * leaf
            slots = self._spec(leaf.ndim, -1, 0, batch)
            return self._run(local, (self._spec(y.ndim, self.axis, 0, batch), slots), slots, ends, leaf)

        return {key: one(key, leaf) for key, leaf in e.items()}

    def xy_to_dw(self, x: Sent, y: Inexact[Array, "*batch_y"], v: Weights) -> Weights:
        x = each(x)
        batch, weight = self._batch(x, 0), v["weight"]

        def local(op: ETraceOp, x: Sent, y: Array, weight: Array) -> Array:
            return op.xy_to_dw(x, self._with_deaf(y), {"weight": weight})["weight"]

        units, slots = self._spec(y.ndim, self.axis, 0, batch), self._spec(y.ndim + weight.ndim - 1, -1, 0, batch)
        specs = self._sent(x, 0, batch), units, self._spec(weight.ndim, -1)
        found = {"weight": self._run(local, specs, slots, x, self._filled(y), weight), "bias": self._last(y)}
        return {key: found[key] for key in v}

    def synapses(self, v: PyTree, x: PyTree) -> list[Uses]:
        raise PartedError("op: ShardedOp does not say which unit each weight leads from and to. Take se.RTRL().")

    def window(
        self,
        v: Weights,
        trace: Traces,
        carried: Array | None,
        entering: Array | None,
        signal: Array | None,
        direct: Array | None,
        x: Sent,
        noise: UInt32[Array, ""] | None = None,
    ) -> tuple[Traces, Traces]:
        first = x.values if isinstance(x, History) else x
        batch, units, weight = self._batch(first, 1), (carried, entering, signal, direct), trace["weight"]
        new: Traces = dict.fromkeys(v)
        taught: Traces = dict.fromkeys(v)

        def local(op: ETraceOp, v: Array, trace: Array, units: tuple, x: Sent, noise: Array | None) -> tuple:
            carried, entering, signal, direct = (None if part is None else self._with_deaf(part) for part in units)
            new, taught = op.window({"weight": v}, {"weight": trace}, carried, entering, signal, direct, x, noise)
            total = taught["weight"]
            return new["weight"], total if total is None or batch is None else jax.lax.psum(total, batch)

        if weight is not None:
            ends = tuple(None if part is None else self._filled(part) for part in units)
            fronts = zip(ends, (2, 2, 1, 1), strict=True)
            of_units = tuple(None if part is None else self._spec(part.ndim, self.axis, k, batch) for part, k in fronts)
            of_weight, of_trace = self._spec(v["weight"].ndim, -1), self._spec(weight.ndim, -1, 1, batch)
            specs = of_weight, of_trace, of_units, self._sent(x, 1, batch), None if noise is None else P()
            results = None if carried is None else of_trace, None if signal is None else of_weight
            given = v["weight"], weight, ends, x, noise
            new["weight"], taught["weight"] = self._run(local, specs, results, *given)
        if (bias := trace.get("bias")) is not None:
            carried, entering, signal, direct = (None if part is None else self._last(part) for part in units)
            new["bias"], taught["bias"] = window_per_unit(v["bias"], bias, carried, entering, signal, direct, noise)
        return new, taught

    def _run(self, fn: Callable[..., Any], specs: tuple, results: Any, *args: Any, outside: Any = None) -> Any:
        """A function of each device's layer and of what lies there; `outside`: how results lie on explicit axes."""
        return freely(self._on_devices, fn, specs, results, *args, like=lambda: results if outside is None else outside)

    def _on_devices(self, fn: Callable[..., Any], specs: tuple, results: Any, *args: Any) -> Any:
        own, now = self.mesh.abstract_mesh, jax.sharding.get_abstract_mesh()
        if not now.empty and now != own:
            raise ValueError(
                f"mesh: a layer on several devices, {own}, cannot run under another mesh, {now}. Call the model "
                "outside jax.shard_map, and set no other mesh and put data on no other."
            )
        arrays, rest = eqx.partition(_for_blocks(self.op), eqx.is_array)

        def local(arrays: PyTree[Array], *args: Any) -> Any:
            return fn(eqx.combine(arrays, rest), *args)

        parts = jax.tree.map(lambda a: self._spec(a.ndim, -1), arrays)
        run = jax.shard_map(local, mesh=self.mesh, in_specs=(parts, *specs), out_specs=results, check_vma=False)
        return run(arrays, *args)

    def _spec(self, ndim: int, units: int | None, front: int = 0, batch: str | None = None) -> P:
        """How an array is parted: on the axis of receiving units or of their weights, and on its first batch axis."""
        axes: list[str | None] = [None] * ndim
        if units is not None:
            axes[units] = self.mesh.axis_names[0]
        if batch is not None:
            axes[front] = batch
        return P(*axes)

    def _sent(self, x: Sent, front: int, batch: str | None) -> PyTree[P]:
        """How what is read is parted: on its first batch axis, and with gates on that of the synapses."""
        units = self.axis if self.gated else None
        return jax.tree.map(lambda a: self._spec(a.ndim, units, front, batch) if a.ndim else P(), x)

    def _batch(self, a: Any, front: int) -> str | None:
        """The axis of the mesh that parts the batch of an input or output with so many axes in front of it."""
        names, has_batch = self.mesh.axis_names[1:2], a.ndim - front > self.input_ndim
        return next((name for name in names if has_batch and a.shape[front] % self.mesh.shape[name] == 0), None)

    def _with_deaf(self, y: Array) -> Array:
        """A post-shaped array of a block with the unit that synapses lead to which fill it up."""
        return self._longer(y, 1) if isinstance(self.op, SpMatMulOp) else y

    def _filled(self, y: Array) -> Array:
        """A post-shaped array on as many units in each block."""
        return self._longer(y, -self.num_post % self.count)

    def _longer(self, y: Array, by: int) -> Array:
        return jnp.pad(y, [(0, by * (k == y.ndim + self.axis)) for k in range(y.ndim)])

    def _last(self, x: Array) -> Array:
        """Move the axis of the units after all others."""
        return x if self.axis == -1 else jnp.swapaxes(x, -1, -2)


class Onto(ETraceOp):
    """What each synapse of a sparse layer in blocks gets from its sender."""

    layer: ShardedOp

    @property
    def input_ndim(self) -> int:
        return self.layer.input_ndim

    def xw_to_y(self, x: Array, w: Weights) -> Array:
        layer, batch, op = self.layer, self.layer._batch(x, 0), cast(SpMatMulOp, self.layer.op)

        def local(op: Any, x: Array, weight: Array) -> Array:
            return SpMatMulOp(onto_synapses(op.connectivity), axis=op.axis).xw_to_y(x, {"weight": weight})

        check_input(x, layer.axis, op.connectivity.num_pre)
        specs = layer._spec(x.ndim, None, 0, batch), layer._spec(1, -1)
        return layer._run(local, specs, layer._spec(x.ndim, layer.axis, 0, batch), x, w["weight"])

    def yw_to_w(self, y: Array, e: Weights) -> Weights:
        return {"weight": (y if self.layer.axis == -1 else jnp.swapaxes(y, -1, -2)) * e["weight"]}


def _for_blocks(op: Any) -> Any:
    """A layer without what makes its weights, or is said of all blocks: no block reads it."""
    is_sparse = isinstance(op, SpMatMulOp)
    has_wires = is_sparse and op.delays is not None

    def parts(op: Any) -> list:
        if not is_sparse:
            return [op.weight_fn, op.weight_mask]
        wires = [op.delays.wires.digest] if has_wires else []
        return [op.weight_fn, op.connectivity.digest, *wires]

    return eqx.tree_at(parts, op, [None] * len(parts(op)), is_leaf=lambda leaf: leaf is None)


def stepped(model: Callable[..., Any], state: PyTree, x: PyTree) -> tuple[PyTree[Array], PyTree[Array]]:
    """A step of a model. Of rings that layers on several devices read, these exchange only what is pushed."""
    ops = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, ShardedOp))
    mesh = next((op.mesh for op in ops if isinstance(op, ShardedOp)), None)
    with pushed_on(mesh):
        return jax.tree.map(jnp.asarray, model(state, x))


def whole(param: Any) -> Any:
    """A layer on several devices as it is on one, with the weights that it has now; any other as it is.

    Raises:
        TypeError: it has no indices, as gradients have none.
    """
    if not isinstance(getattr(param, "op", None), ShardedOp):
        return param
    op, num_post = param.op.op, param.op.num_post
    if not eqx.is_array(param.op.starts):
        raise TypeError(
            "tree: expected a model, got one without indices, as gradients are. equinox.combine(grads, model) has them."
        )
    blocks, weight = param.op.blocks, param.value["weight"]
    given = op.weight_fn, weight() if isinstance(weight, Fixed) else weight
    weight_fn, values = given if param.op.is_tied else blocks.whole(given)
    if isinstance(op, SpMatMulOp):
        conn = op.connectivity
        pre, post = (host_array("tree", a) for a in (conn.pre, conn.post))
        post = post + np.repeat(np.arange(param.op.count) * (conn.num_post - 1), blocks.size)
        edges = Connectivity.from_edges(pre[blocks.kept], post[blocks.kept], (conn.num_pre, num_post))
        delay = False if op.delays is None else host_array("tree", op.delays.steps)[blocks.kept]
        options: dict[str, Any] = {"delay": delay, "max_delay": None if op.delays is None else op.delays.depth}
        options |= {"gated": op.gated, "tie": blocks.whole(op.slot)}
        made: ETraceOp = SpMatMulOp(edges, weight_fn, axis=op.axis, bias=param.op.bias, **options)
    else:
        made = MatMulOp(blocks.whole(op.weight_mask), weight_fn, op.apply_weight_fn_before_mask, bias=param.op.bias)
    new = Fixed(values) if isinstance(weight, Fixed) else values
    return ETraceParam({**param.value, "weight": new}, made, param.grad, param.is_etrace)
