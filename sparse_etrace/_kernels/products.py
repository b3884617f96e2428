"""The three products of a sparse layer, in XLA. Leading axes are batch axes."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._connectivity import Connectivity


def spmv(
    connectivity: Connectivity, weight: Float[Array, " synapses"], x: Shaped[Array, "*batch pre"]
) -> Float[Array, "*batch post"]:
    """Forward product `y[post] = sum over s = (pre -> post) of weight[s] * x[pre]`."""
    current = weight * jnp.take(x, connectivity.pre, axis=-1, mode="clip")
    y = jnp.zeros((*x.shape[:-1], connectivity.num_post), current.dtype)
    return y.at[..., connectivity.post].add(current, indices_are_sorted=True, mode="promise_in_bounds")


def spmv_t(
    connectivity: Connectivity, weight: Float[Array, " synapses"], y: Float[Array, "*batch post"]
) -> Float[Array, "*batch pre"]:
    """Transposed product `x[pre] = sum over s = (pre -> post) of weight[s] * y[post]`."""
    current = weight * jnp.take(y, connectivity.post, axis=-1, mode="clip")
    x = jnp.zeros((*y.shape[:-1], connectivity.num_pre), current.dtype)
    return x.at[..., connectivity.pre].add(current, mode="promise_in_bounds")


def sampled(
    connectivity: Connectivity, x: Shaped[Array, "*batch pre"], y: Float[Array, "*batch post"]
) -> Float[Array, "*batch synapses"]:
    """Outer product on the existing synapses only, `out[s] = x[pre] * y[post]`."""
    x_pre = jnp.take(x, connectivity.pre, axis=-1, mode="clip")
    return x_pre * jnp.take(y, connectivity.post, axis=-1, mode="clip")
