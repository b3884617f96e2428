"""What a learner needs on a model in bytes, before it runs."""

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._learner import Carry, Learner
from .._model.program import is_inexact
from .._model.trained import is_array_like, nbytes, struct, trained_filter
from .._numbers import positive
from .._text import as_table, data_frame, in_bytes
from .._train.online import window_length
from .._types import Model

if TYPE_CHECKING:
    import pandas


class MemoryPlan(NamedTuple):
    """What `memory_plan` returns: bytes by buffer, and their sum; prints as a table."""

    buffers: dict[str, int]

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
        return as_table(("buffer", "bytes", "size"), [(name, f"{size:,}", in_bytes(size)) for name, size in rows])

    def to_dataframe(self) -> "pandas.DataFrame":
        """The buffers as a pandas data frame with the columns `buffer` and `bytes`."""
        return data_frame({"buffer": list(self.buffers), "bytes": list(self.buffers.values())})


def memory_plan(
    learner: Learner,
    model: Model,
    state: PyTree,
    x: PyTree,
    steps: int = 16,
    chunk: int | None = None,
) -> MemoryPlan:
    """Bytes per buffer of `online_grad`, before anything is allocated.

    Parameters, state, traces, gradients and inputs are counted; the workspace is what XLA plans for a compiled window.

    Args:
        learner: the rule.
        model: `state, out = model(state, x)`; its arrays may be `jax.ShapeDtypeStruct`.
        state: its state, likewise.
        x: one step's input, likewise.
        steps: steps of the sequence; for `BPTT` without `chunk` those that are differentiated through.
        chunk: steps in a window; None: as `online_grad` chooses.

    Returns:
        The plan.

    Raises:
        TypeError: `steps` or `chunk` is no whole number.
        ValueError: `steps` or `chunk` is below 1, or as `learner.init`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> se.memory_plan(se.D_RTRL(), cell, cell.init_state(), jnp.ones(2)).traces
        24
    """
    steps, chunk = positive("steps", steps), None if chunk is None else positive("chunk", chunk)
    engine = learner.prepare(model, state, x)
    carry = engine.carry_shapes(model, state, x)
    arrays, static = eqx.partition(model, is_array_like)
    arrays, carry_arrays = struct(arrays), eqx.filter(carry, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def stacked(count: int) -> PyTree:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), struct(x))

    size = window_length(engine, model, carry, stacked(1), steps, chunk)
    xs = stacked(size)

    def gradient(arrays: PyTree, carry: Carry, xs: PyTree) -> tuple[Array, PyTree, Carry]:
        ys = None if jax.tree.leaves(xs) else jnp.zeros(size)

        def loss(out: PyTree, y: PyTree) -> tuple[ArrayLike, None]:
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(out) if is_inexact(leaf)), None

        result = engine.window(eqx.combine(arrays, static), carry, xs, ys, loss)
        return result.losses, result.grads, result.carry

    memory: Any = jax.jit(gradient).lower(arrays, carry_arrays, xs).compile().memory_analysis()
    trained = eqx.filter(arrays, trained_filter(arrays, learner.train))
    buffers = {
        "parameters": nbytes(trained),
        "indices, masks and constants": nbytes(arrays) - nbytes(trained),
        "state": nbytes(carry.state),
        "inputs of the window": nbytes(xs),
        "inputs of other windows": nbytes(xs) // size * (steps - size),
        "gradients": nbytes(trained),
    }
    buffers |= {name: nbytes(part) for name, part in engine.buffers(carry).items()}
    buffers["new state and traces"] = nbytes(carry)
    counted = sum(buffers.values()) - buffers["inputs of other windows"]
    planned = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    buffers["workspace"] = max(planned - counted, 0)
    return MemoryPlan(buffers)
