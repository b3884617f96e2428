"""The same products where everything is connected, for a weight matrix and a bias."""

from types import SimpleNamespace

import jax.numpy as jnp
from jaxtyping import Array, Inexact, Shaped

from .._sums import in_full, sum_steps

Weights = dict[str, Array]


def spread(y: Inexact[Array, "*batch post"], trace: Weights) -> Weights:
    """Multiply every slot of a trace by the value of its target."""
    at_slot = {"weight": y[..., None, :], "bias": y}
    return {key: at_slot[key] * leaf for key, leaf in trace.items()}


def outer(x: Shaped[Array, "*batch pre"], y: Inexact[Array, "*batch post"], v: Weights) -> Weights:
    """`dw[i, j] = x[i] * y[j]` for each batch element."""
    slots = {"weight": x[..., :, None] * y[..., None, :], "bias": y}
    return {key: slots[key] for key in v}


@in_full()
def sum_outer(x: Shaped[Array, "k *batch pre"], y: Inexact[Array, "k *batch post"], v: Weights) -> Weights:
    """The sum of `outer` over the leading time axis, a matrix product for each batch element."""
    slots = {"weight": jnp.einsum("k...i,k...j->...ij", x, y), "bias": sum_steps(y)}
    return {key: slots[key] for key in v}


@in_full()
def total_outer(x: Shaped[Array, "*batch pre"], y: Inexact[Array, "*batch post"], v: Weights) -> Weights:
    """The sum of `outer` over all leading axes."""
    slots = {"weight": jnp.einsum("...i,...j->ij", x, y), "bias": jnp.sum(y, axis=tuple(range(y.ndim - 1)))}
    return {key: slots[key] for key in v}


ALL_TO_ALL = SimpleNamespace(input_ndim=1, yw_to_w=spread, xy_to_dw=outer, sum_dw=sum_outer, total_dw=total_outer)
"""The contract of an op that connects everything."""
