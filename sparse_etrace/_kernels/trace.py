"""Eligibility traces of the synapses: one step (`roll`) or several at once (`window`)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from .._connectivity import Connectivity
from .products import as_steps, sampled, sampled_sum


def roll(
    connectivity: Connectivity,
    hidden_jacobian: Float[Array, "vars vars *batch post"],
    output_jacobian: Float[Array, "vars *batch post"],
    x: Shaped[Array, "*batch pre"],
    trace: Float[Array, "vars *batch synapses"],
) -> Float[Array, "vars *batch synapses"]:
    """One step of a trace, `eps_s[a] <- sum_b D[i,a,b] eps_s[b] + F[i,a] x[j]` for `s = (j -> i)`."""
    return _matvec(connectivity, hidden_jacobian, trace) + sampled(connectivity, x[None], output_jacobian)


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
    new = _matvec(connectivity, carried, trace) + sampled_sum(connectivity, x[:, None], entering)
    taught = _matvec(connectivity, signal[None], trace)
    per_synapse = jnp.sum(taught, axis=tuple(range(taught.ndim - 1)))
    return new, per_synapse + sampled_sum(connectivity, as_steps(x), as_steps(direct))


def _matvec(
    connectivity: Connectivity,
    matrix: Float[Array, "rows vars *batch post"],
    trace: Float[Array, "vars *batch synapses"],
) -> Float[Array, "rows *batch synapses"]:
    """`sum_b matrix[a, b, post] eps_s[b]`, term by term so that XLA makes one pass of it."""
    at_post = [[jnp.take(entry, connectivity.post, axis=-1, mode="clip") for entry in row] for row in matrix]
    return jnp.stack([sum(entry * eps for entry, eps in zip(row, trace, strict=True)) for row in at_post])
