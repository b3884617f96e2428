"""The three products of a sparse layer, in XLA. Leading axes are batch axes."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from .._connectivity import Connectivity

# XLA fuses the steps of a block into one pass over the synapses; larger blocks share gathers, which costs more.
BLOCK = 8


def spmv(
    connectivity: Connectivity, weight: Float[Array, " synapses"], x: Shaped[Array, "*batch pre"]
) -> Float[Array, "*batch post"]:
    """Forward product `y[post] = sum over s = (pre -> post) of weight[s] * x[pre]`."""
    current = _along(weight, x, connectivity.pre)
    y = jnp.zeros((connectivity.num_post, *x.shape[:-1]), current.dtype)
    y = y.at[connectivity.post].add(current, indices_are_sorted=True, mode="promise_in_bounds")
    return jnp.moveaxis(y, 0, -1)


def spmv_t(
    connectivity: Connectivity, weight: Float[Array, " synapses"], y: Float[Array, "*batch post"]
) -> Float[Array, "*batch pre"]:
    """Transposed product `x[pre] = sum over s = (pre -> post) of weight[s] * y[post]`."""
    current = _along(weight, y, connectivity.post)
    x = jnp.zeros((connectivity.num_pre, *y.shape[:-1]), current.dtype)
    return jnp.moveaxis(x.at[connectivity.pre].add(current, mode="promise_in_bounds"), 0, -1)


def _along(
    weight: Float[Array, " synapses"], x: Shaped[Array, "*batch units"], end: Int[Array, " synapses"]
) -> Float[Array, "synapses *batch"]:
    """What each synapse carries from one of its ends; synapses first, so that a batch lies together in memory."""
    return weight.reshape(-1, *[1] * (x.ndim - 1)) * jnp.take(jnp.moveaxis(x, -1, 0), end, axis=0, mode="clip")


def sampled(
    connectivity: Connectivity, x: Shaped[Array, "*#batch pre"], y: Float[Array, "*#batch post"]
) -> Float[Array, "... synapses"]:
    """Outer product on the existing synapses only, `out[s] = x[pre] * y[post]`; leading axes broadcast."""
    x_pre = jnp.take(x, connectivity.pre, axis=-1, mode="clip")
    return x_pre * jnp.take(y, connectivity.post, axis=-1, mode="clip")


def sampled_sum(
    connectivity: Connectivity, x: Shaped[Array, "steps *#batch pre"], y: Float[Array, "steps *#batch post"]
) -> Float[Array, "... synapses"]:
    """`sampled` summed over the first axis."""

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        for x_k, y_k in zip(*block, strict=True):
            total = total + sampled(connectivity, x_k, y_k)
        return total, None

    count, rest = divmod(len(x), BLOCK)
    shape = jnp.broadcast_shapes(x.shape[1:-1], y.shape[1:-1])
    total = jnp.zeros((*shape, connectivity.num_synapses), jnp.result_type(x, y))
    x_blocks, y_blocks = (a[: count * BLOCK].reshape(count, BLOCK, *a.shape[1:]) for a in (x, y))
    total = jax.lax.scan(add, total, (x_blocks, y_blocks))[0] if count else total
    return add(total, (x[count * BLOCK :], y[count * BLOCK :]))[0] if rest else total


def as_steps(x: Shaped[Array, "*batch units"]) -> Shaped[Array, "steps units"]:
    """All leading axes as one, also where there are no units."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
