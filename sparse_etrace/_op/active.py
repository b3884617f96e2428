"""Sets of active units, which an op reads in the place of a frame of zeros and ones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact, Int

from .. import _kernels
from .._numbers import positive
from .._sums import joined
from .._varying import has_explicit


class Active(eqx.Module):
    """Which units are active: what an op takes in the place of a frame of ones and zeros.

    `MatMulOp`, `LoraOp` and `SpMatMulOp` add up what leads away from these units, and any other op makes the frame of
    the step that it is at; those of a whole sequence never exist. A unit that is named twice counts twice. No gradient
    goes to what chose the units.

    Args:
        ids: numbers of the active units, `(..., capacity)`; `size` where there are no more.
        size: how many units there are.

    Raises:
        TypeError: ids are no whole numbers, or have no axis.
        ValueError: an id is below 0 or above `size`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> x = se.spikes.Active(jnp.array([2, 0, 4]), size=4)                     # two of four, of at most three
        >>> se.ETraceParam({'weight': jnp.arange(8.0).reshape(4, 2)}, se.MatMulOp())(x).tolist()
        [4.0, 6.0]
    """

    ids: Int[Array, "*front capacity"]
    size: int = eqx.field(static=True)

    def __init__(self, ids: ArrayLike, size: int):
        self.size, self.ids = positive("size", size), jnp.asarray(ids)
        if self.ids.dtype.kind not in "iu" or not self.ids.ndim:
            got = f"{self.ids.dtype}{list(self.ids.shape)}"
            raise TypeError(f"ids: expected whole numbers, (..., capacity), got {got}. Name the active units.")
        if not isinstance(ids, jax.core.Tracer) and np.any((found := np.asarray(ids)) < 0) | np.any(found > size):
            raise ValueError(f"ids: expected from 0 to {size}, got {found.min()} to {found.max()}.")
        if self.ids.dtype.itemsize > 4:  # products take 32 bits
            self.ids = jnp.clip(self.ids, -(self.ids.dtype.kind == "i"), size).astype(jnp.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the frame."""
        return (*self.ids.shape[:-1], self.size)

    @property
    def ndim(self) -> int:
        """Rank of the frame."""
        return self.ids.ndim

    @property
    def dtype(self) -> np.dtype:
        """Type of the frame."""
        return jnp.result_type(float)

    def __jax_array__(self) -> Float[Array, "*front size"]:
        return _kernels.frame(self.ids, self.size)


def times(x: Any, weight: Inexact[Array, "pre post"]) -> Inexact[Array, "*batch post"]:
    """`x @ weight`; of active units the sum of their rows, if there is room for no more than there are rows."""
    if not isinstance(x, Active) or x.ids.size > len(weight):
        return as_frame(x) @ weight
    place = _place(x.ids, weight)
    rows = weight.at[x.ids].get(mode="fill", fill_value=0, wrap_negative_indices=False, out_sharding=place)
    return jnp.sum(rows.astype(joined(weight.dtype, x.dtype)), axis=-2)


def _place(ids: Array, weight: Array) -> NamedSharding | None:
    """Where on a mesh with explicit axes rows of weights lie: as the units that name them, and their columns."""
    ours, theirs = jax.typeof(ids).sharding, jax.typeof(weight).sharding
    mesh = theirs.mesh if ours.mesh.empty else ours.mesh
    return NamedSharding(mesh, P(*ours.spec, theirs.spec[-1])) if has_explicit(mesh) else None


def as_frame(x: Any) -> Any:
    """Active units as a frame, or as the shape of one; anything else as it is."""
    if not isinstance(x, Active):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x.ids, jax.ShapeDtypeStruct) else jnp.asarray(x)
