"""Eligibility traces of the synapses: one step (`roll`) or several at once (`window`)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._connectivity import Connectivity


def roll(
    connectivity: Connectivity,
    hidden_jacobian: Float[Array, "vars vars *batch post"],
    output_jacobian: Float[Array, "vars *batch post"],
    x: Shaped[Array, "*batch pre"],
    trace: Float[Array, "vars *batch synapses"],
) -> Float[Array, "vars *batch synapses"]:
    """One step of a trace, `eps_s[a] <- sum_b D[i,a,b] eps_s[b] + F[i,a] x[j]` for `s = (j -> i)`."""
    carried = jnp.take(hidden_jacobian, connectivity.post, axis=-1, mode="clip")
    entering = jnp.take(output_jacobian, connectivity.post, axis=-1, mode="clip")
    return jnp.sum(carried * trace[None], axis=1) + entering * jnp.take(x, connectivity.pre, axis=-1, mode="clip")


def window(
    connectivity: Connectivity,
    carried: Float[Array, "vars vars *batch post"],
    entering: Float[Array, "steps vars *batch post"],
    signal: Float[Array, "vars *batch post"],
    direct: Float[Array, "steps *batch post"],
    x: Shaped[Array, "steps *batch pre"],
    trace: Float[Array, "vars *batch synapses"],
) -> tuple[Float[Array, "vars *batch synapses"], Float[Array, " synapses"]]:
    """Several steps of a trace and their gradient, each synapse read and written once.

    `eps' = carried eps + sum_k entering[k] x[k]` and `dv = signal . eps + sum_k direct[k] x[k]`, the latter summed
    over the batch axes.
    """
    per_synapse = jnp.sum(jnp.take(signal, connectivity.post, axis=-1, mode="clip") * trace, axis=0)
    at_post = jnp.take(carried, connectivity.post, axis=-1, mode="clip")
    new = jnp.sum(at_post * trace[None], axis=1)
    for k in range(x.shape[0]):
        x_pre = jnp.take(x[k], connectivity.pre, axis=-1, mode="clip")
        new = new + jnp.take(entering[k], connectivity.post, axis=-1, mode="clip") * x_pre
        per_synapse = per_synapse + jnp.take(direct[k], connectivity.post, axis=-1, mode="clip") * x_pre
    return new, jnp.sum(per_synapse, axis=tuple(range(per_synapse.ndim - 1)))
