"""What a state held, each so many steps, in as much memory as is asked for."""

from collections.abc import Sequence
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._learner import Carry
from .._numbers import positive
from .._types import Model
from .named import values_of


class RecordedState(eqx.Module):
    """The state of the model, what was recorded of it, with rows after batch axes, and how many steps there were."""

    state: PyTree[Array]
    rows: dict[str, Array]
    steps: Int[Array, ""]
    axis: int = eqx.field(static=True)


class Recorder(eqx.Module):
    """A model that records; see `record`."""

    model: Model
    names: tuple[str, ...] = eqx.field(static=True)
    every: int = eqx.field(static=True)
    rows: int = eqx.field(static=True)

    def init_state(self, *batch: SupportsIndex) -> RecordedState:
        """The initial state of a cell that has one, and nothing recorded; `batch` as of the cell."""
        return self.start(self.model.init_state(*batch), len(batch))  # type: ignore[attr-defined]

    def start(self, state: PyTree[Array], batch_axes: int = 0) -> RecordedState:
        """A state of the model with so many batch axes, and nothing recorded."""
        state, n = jax.tree.map(jnp.asarray, state), batch_axes
        empty = {
            name: jnp.zeros((*leaf.shape[:n], self.rows, *leaf.shape[n:]), leaf.dtype)
            for name, leaf in values_of(state, self.names, "names").items()
        }
        return RecordedState(state, empty, jnp.zeros((), jnp.int32), n)

    def __call__(self, state: RecordedState, x: PyTree[Array]) -> tuple[RecordedState, PyTree[Array]]:
        new, out = self.model(state.state, x)
        slot, is_due, rows = state.steps // self.every % self.rows, state.steps % self.every == 0, {}
        axis = state.axis
        for name, leaf in jax.lax.stop_gradient(values_of(new, self.names, "names")).items():
            old = jax.lax.stop_gradient(state.rows[name])
            row = jnp.where(is_due, leaf, jax.lax.dynamic_index_in_dim(old, slot, axis, keepdims=False))
            rows[name] = jax.lax.dynamic_update_index_in_dim(old, row, slot, axis)
        return RecordedState(new, rows, state.steps + 1, axis), out

    def read(self, carry: Carry | RecordedState) -> dict[str, np.ndarray]:
        """The records in the order of time: `"step"`, numbers of steps from 0, and each leaf, `(records, *leaf)`.

        Args:
            carry: of a learner, of a result of `fit`, or a state.
        """
        state: Any = carry.state if isinstance(carry, Carry) else carry
        count = -(-int(state.steps) // self.every)
        kept = np.arange(max(count - self.rows, 0), count)
        found = {
            name: np.moveaxis(np.asarray(part), state.axis, 0)[kept % self.rows] for name, part in state.rows.items()
        }
        return {"step": kept * self.every} | found


def record(model: Model, names: str | Sequence[str], every: int = 1, rows: int = 1000) -> Recorder:
    """A model that also keeps some leaves of its new state at the steps `0, every, 2 every, ...`, the last `rows`.

    It computes what the model computes, and has its gradients: records are constants. They lie in the state, so that
    they pass through `predict`, `online_grad` and `fit`, start again with the state, and take no more memory for more
    steps.

    Args:
        model: a cell, or any `state, out = model(state, x)`.
        names: of leaves of its state, in full or by their last part; of a ring of what was sent, the newest is kept.
        every: steps between two records.
        rows: how many are kept.

    Returns:
        A `Recorder`; its `init_state` or `start` makes the state, its `read` gives the records.

    Raises:
        ValueError: `every` or `rows` is below 1, or, at the start, a name is not that of one leaf.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.record(se.cells.LIF.of(3, inputs=2, key=jax.random.key(0)), ["v", "z"], every=10)
        >>> outs, state = se.predict(cell, cell.init_state(), jnp.ones((100, 2)))
        >>> found = cell.read(state)
        >>> found["step"][:3].tolist(), found["v"].shape
        ([0, 10, 20], (10, 3))
    """
    chosen = (names,) if isinstance(names, str) else tuple(names)
    return Recorder(model, chosen, positive("every", every), positive("rows", rows))
