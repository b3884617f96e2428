"""What a learner needs on a model in bytes, before it runs."""

from typing import Any, NamedTuple, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array, PyTree

from .._graph.connectivity import Connectivity
from .._learner import Carry, Learner
from .._model.program import is_inexact
from .._model.trained import is_array_like, nbytes, struct, trained_filter
from .._numbers import positive
from .._op.sharded import ShardedOp
from .._sharding import shard, unshard
from .._text import DataFrame, as_table, data_frame, in_bytes
from .._train.online import gradient, window_length
from .._types import Model
from .._varying import freely
from .exchange import Exchange, as_mesh, exchanges


class MemoryPlan(NamedTuple):
    """What `memory_plan` returns; prints as a table.

    Attributes:
        buffers: bytes by buffer, on each device.
        exchanges: what devices exchange in a call of `online_grad` of so many steps; see `Exchange`.
        steps: of that call.
        devices: how many there are.
    """

    buffers: dict[str, int]
    exchanges: tuple[Exchange, ...] = ()
    steps: int = 1
    devices: int = 1

    @property
    def exchanged(self) -> float:
        """Bytes that collectives leave on each device, by step: those of a call over its steps."""
        return sum(one.times * one.bytes for one in self.exchanges) / self.steps

    @property
    def total(self) -> int:
        """Bytes of all buffers together."""
        return sum(self.buffers.values())

    @property
    def traces(self) -> int:
        """Bytes of all traces and factors."""
        return sum(size for name, size in self.buffers.items() if name.startswith("trace "))

    def __str__(self) -> str:
        rows = [*((name, size) for name, size in self.buffers.items() if size), ("total", self.total)]
        text = as_table(("buffer", "bytes", "size"), [(name, f"{size:,}", in_bytes(size)) for name, size in rows])
        if self.devices == 1:
            return text
        said = [(one.kind, one.result, f"{one.times:,}", f"{one.bytes:,}") for one in self.exchanges]
        return (
            f"on each of {self.devices} devices\n\n{text}\n\nexchanged in {self.steps:,} steps, "
            f"{self.exchanged:,.0f} bytes a step\n\n{as_table(('collective', 'result', 'times', 'bytes'), said)}"
        )

    def to_dataframe(self) -> DataFrame:
        """The buffers as a pandas data frame with the columns `buffer` and `bytes`."""
        return data_frame({"buffer": list(self.buffers), "bytes": list(self.buffers.values())})


def memory_plan(
    learner: Learner,
    model: Model,
    state: PyTree,
    x: PyTree,
    steps: int = 16,
    chunk: int | None = None,
    mesh: Mesh | AbstractMesh | SupportsIndex | None = None,
) -> MemoryPlan:
    """Bytes per buffer of `online_grad`, before anything is allocated.

    Parameters, state, traces, gradients and inputs are counted; the workspace is what XLA plans for a compiled window,
    or on several devices for all `steps`.

    Args:
        learner: the rule.
        model: `state, out = model(state, x)`; its arrays may be `jax.ShapeDtypeStruct`.
        state: its state, likewise.
        x: one step's input, likewise.
        steps: steps of the sequence; for `BPTT` without `chunk` those that are differentiated through.
        chunk: steps in a window; None: as `online_grad` chooses.
        mesh: devices onto which `se.shard` parts the model: a mesh of them, or, where they are not there, an abstract
            mesh or their number, for which the program is compiled as for so many CPUs. Of what has a value, only where
            synapses begin decides about sizes; without that, blocks are taken to have as many synapses. None: as the
            model is.

    Returns:
        The plan, of each device.

    Raises:
        TypeError: `steps` or `chunk` is no whole number; `mesh` is neither a mesh nor that.
        ValueError: `steps`, `chunk` or `mesh` is below 1, or as `learner.init` and `se.shard`.
        NotImplementedError: devices exchange something in a loop of unknown length; or as `se.shard`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> se.memory_plan(se.D_RTRL(), cell, cell.init_state(), jnp.ones(2)).traces
        24
        >>> graph = se.datasets.worm()
        >>> cell = se.cells.LeakyRate(graph.connectivity.num_post, None, se.SpMatMulOp(graph).param(init=graph))
        >>> se.memory_plan(se.D_RTRL(), cell, cell.init_state(), None, mesh=9).exchanged  # 279 units send, and a loss
        1120.0
    """
    steps, chunk = positive("steps", steps), None if chunk is None else positive("chunk", chunk)
    if mesh is not None:
        model = shard(_shapes(unshard(model)), as_mesh(mesh))
    return freely(_planned, learner, model, *struct((state, x)), steps, chunk)


def _planned(learner: Learner, model: Model, state: PyTree, x: PyTree, steps: int, chunk: int | None) -> MemoryPlan:
    engine = learner.prepare(model, state, x)
    carry = engine.carry_shapes(model, state, x)
    arrays, static = eqx.partition(model, is_array_like)
    carry = eqx.filter(carry, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def stacked(count: int) -> PyTree:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), x)

    size = window_length(engine, model, carry, stacked(1), steps, chunk)
    mesh = next((node.mesh for node in jax.tree.leaves(model, is_leaf=_is_parted) if _is_parted(node)), None)
    count = size if mesh is None else steps
    xs = stacked(count)

    def loss(out: PyTree, y: PyTree) -> Any:
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out) if is_inexact(leaf))

    def run(arrays: PyTree, carry: Carry, xs: PyTree) -> tuple[Array, PyTree, Carry]:
        model, ys = eqx.combine(arrays, static), None if jax.tree.leaves(xs) else jnp.zeros(count)
        if mesh is not None:
            return gradient(learner, loss, model, carry, xs, ys, chunk, False)[:3]
        result = engine.window(model, carry, xs, ys, lambda out, y: (loss(out, y), None))
        return result.losses, result.grads, result.carry

    lowered = jax.jit(run, keep_unused=True).lower(jax.tree.map(_placed, arrays), carry, xs)
    compiled: Any = lowered.compile()

    def lying(trees: PyTree, places: PyTree) -> PyTree:
        """Shapes of what of arrays is on one device."""
        return jax.tree.map(lambda a, at: jax.ShapeDtypeStruct(at.shard_shape(a.shape), a.dtype), trees, places)

    arrays, carry, xs = lying((arrays, carry, xs), compiled.input_shardings[0])
    _, grads, new = lying(lowered.out_info, compiled.output_shardings)
    inputs = nbytes(xs) // count
    trained = eqx.filter(arrays, trained_filter(arrays, learner.train))
    buffers = {
        "parameters": nbytes(trained),
        "indices, masks and constants": nbytes(arrays) - nbytes(trained),
        "state": nbytes(carry.state),
        "inputs of the window": inputs * size,
        "inputs of other windows": inputs * (steps - size),
        "gradients": nbytes(grads),
    }
    buffers |= {name: nbytes(part) for name, part in engine.buffers(carry).items()}
    buffers["new state and traces"] = nbytes(new)
    memory = compiled.memory_analysis()
    counted = sum(buffers.values()) - inputs * (steps - count)
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    buffers["workspace"] = max(planned - counted, 0)
    if mesh is None:
        return MemoryPlan(buffers)
    return MemoryPlan(buffers, exchanges(compiled.as_text()), steps, mesh.size)


def _is_parted(node: object) -> bool:
    return isinstance(node, ShardedOp)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of an array, and where it lies if that is on several devices."""
    place = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place if isinstance(place, NamedSharding) else None)


def _shapes(model: Model) -> Model:
    """A model without its values, but for where the synapses of units begin."""

    def one(node: Any) -> Any:
        if not isinstance(node, Connectivity):
            return struct(node) if is_array_like(node) else node
        return eqx.tree_at(lambda c: c.post_ptr, jax.tree.map(struct, node), node.post_ptr)

    return jax.tree.map(one, model, is_leaf=lambda node: isinstance(node, Connectivity))
