"""Arrays of numbers that are known, without the program that XLA compiles for each shape."""

import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

SMALL = 2**16


def on_device(value: object, dtype: DTypeLike | None = None) -> Array:
    """`jnp.asarray`; an array of numpy is converted there, and copied, as somebody may fill it again."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
        return jnp.asarray(value, dtype)
    kind = jax.dtypes.canonicalize_dtype(value.dtype if dtype is None else dtype)
    return jax.device_put(value.astype(kind))


def blank(
    shape: Sequence[SupportsIndex], dtype: DTypeLike = float, device: jax.sharding.Sharding | None = None
) -> Array:
    """`jnp.zeros`; small ones come from numpy."""
    sizes = tuple(map(operator.index, shape))
    if device is None and math.prod(sizes) <= SMALL:
        made = jax.device_put(np.zeros(sizes, jax.dtypes.canonicalize_dtype(dtype)))
        if not isinstance(made, jax.core.Tracer):
            return made
    return jnp.zeros(sizes, dtype, device=device)
