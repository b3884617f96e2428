"""Units that are silenced, activated or driven, whatever their cell computes."""

from typing import SupportsIndex

import equinox as eqx
import jax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._op.delays import Ring
from .._op.param import Fixed
from .._types import Model
from .named import leaves_of, number_of, sent_into


class Perturbed(eqx.Module):
    """A cell one of whose leaves is perturbed; see `perturbed`."""

    model: Model
    leaf: str = eqx.field(static=True)
    scale: Fixed
    shift: Fixed

    def init_state(self, *batch: SupportsIndex) -> PyTree[Array]:
        """The initial state of the cell."""
        return self.model.init_state(*batch)  # type: ignore[attr-defined]

    def __call__(self, state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        new, out = self.model(state, x)
        leaves, layout = leaves_of(new)
        number = number_of(new, self.leaf, "leaf")
        old, before = leaves[number], leaves_of(state)[0][number]
        sent = sent_into(old, out, "leaf") if isinstance(old, Ring) else old
        value = self.scale().astype(sent.dtype) * sent + self.shift().astype(sent.dtype)
        leaves[number] = before.push(value) if isinstance(before, Ring) else value
        out = jax.tree.map(lambda given: value if given is sent else given, out)
        return jax.tree.unflatten(layout, leaves), out


def perturbed(cell: Model, leaf: str, scale: ArrayLike = 1.0, shift: ArrayLike = 0.0) -> Perturbed:
    """A cell whose leaf becomes `scale leaf + shift` after each step, in its state and where it is the output.

    On spikes, `scale=1 - mask` silences units, with `shift=mask` they fire in each step; on the potential, `shift` is
    what a current adds to it in a step. `graph.where` finds units by their labels. A network is perturbed in its
    cells, because what it computes of a leaf within the step is of the leaf as it was.

    Args:
        cell: a cell, or any `state, out = cell(state, x)`.
        leaf: name of a leaf of its state, in full or by its last part; of a ring, what the cell sends, its output.
        scale, shift: numbers or arrays that broadcast against the leaf; they are not trained.

    Returns:
        A cell with the same state.

    Raises:
        ValueError: in a step, `leaf` is not the name of one leaf, or that of a ring of a network, whose output is
            another.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, sparse_etrace as se
        >>> worm = se.datasets.worm()
        >>> cell = se.cells.LIF.of(worm, inputs=None, key=jax.random.key(0))
        >>> mask = np.isin(np.arange(279), worm.where(role="motor"))
        >>> active = se.spikes.perturbed(cell, "z", scale=1 - mask, shift=mask)
        >>> state, z = active(active.init_state(), None)
        >>> int(z.sum())
        88
    """
    return Perturbed(cell, leaf, Fixed(scale), Fixed(shift))
