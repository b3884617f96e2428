"""Spikes from rates and values."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._numbers import positive, real

Spikes = Float[Array, "steps *units"]


def _per_step(rate: ArrayLike, dt: float) -> Array | np.ndarray:
    """Spikes in a step of `dt` ms at a rate in Hz."""
    if real("dt", dt) <= 0:
        raise ValueError(f"dt: expected the length of a step in ms, above 0, got {dt}.")
    if isinstance(rate, jax.core.Tracer):
        return rate * dt / 1000
    share = np.asarray(rate, float) * dt / 1000
    if not np.all((share >= 0) & (share <= 1)):
        raise ValueError(
            f"rate: expected from 0 to {1000 / dt:g} Hz, one spike in each step of {dt:g} ms, got "
            f"{np.min(rate)} to {np.max(rate)}. Shorten dt."
        )
    return share


def poisson(key: Array, rate: ArrayLike, steps: int | None = None, dt: float = 1.0) -> Spikes:
    """Independent spikes, `z_t = [u_t < rate dt / 1000]` with `u_t` uniform.

    Between two spikes lie geometric intervals, whose coefficient of variation is `sqrt(1 - rate dt / 1000)`. May be
    traced; then a rate out of range is not seen.

    Args:
        key: what is drawn depends on it alone.
        rate: in Hz, `(*units,)`, or `(steps, *units)` where it changes.
        steps: how many; None: the first axis of `rate` is time.
        dt: length of a step in ms.

    Returns:
        0 and 1, time first.

    Raises:
        ValueError: a rate is below 0 or above one spike a step, or `dt` or `steps` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> z = se.spikes.poisson(jax.random.key(0), jnp.array([5.0, 50.0]), steps=1000)
        >>> z.shape, z.sum(0).tolist()
        ((1000, 2), [6.0, 61.0])
    """
    share = jnp.asarray(_per_step(rate, dt))
    shape = share.shape if steps is None else (positive("steps", steps), *share.shape)
    if not shape:
        raise ValueError("steps: expected a number of steps where rate is one number, got None.")
    return jax.random.bernoulli(key, share, shape).astype(float)


def rate(key: Array, values: ArrayLike, steps: int, high: float, low: float = 0.0, dt: float = 1.0) -> Spikes:
    """Values from 0 to 1 as independent spikes at the rate `low + (high - low) value`.

    Args:
        key: as of `poisson`.
        values: `(*units,)`.
        steps: how many.
        high, low: rates of 1 and of 0 in Hz.
        dt: length of a step in ms.

    Returns:
        0 and 1, time first.

    Raises:
        ValueError: as of `poisson`.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> se.spikes.rate(jax.random.key(0), jnp.array([0.0, 1.0]), steps=1000, high=50.0).sum(0).tolist()
        [0.0, 61.0]
    """
    values = values if isinstance(values, jax.core.Tracer) else np.asarray(values, float)
    return poisson(key, low + (high - low) * values, steps, dt)


def regular(rate: ArrayLike, steps: int, dt: float = 1.0, phase: ArrayLike = 0.0) -> Spikes:
    """Spikes at equal intervals, `z_t = floor(phase + (t + 1) r) - floor(phase + t r)` with `r = rate dt / 1000`.

    Args:
        rate: in Hz, `(*units,)`; it has to be known.
        steps: how many.
        dt: length of a step in ms.
        phase: how much of an interval has passed at the start, from 0 to 1; broadcast against `rate`.

    Returns:
        0 and 1, time first; intervals of no whole number of steps differ by one.

    Raises:
        ValueError: as of `poisson`, or `phase` is out of range.

    Example:
        >>> import sparse_etrace as se
        >>> se.spikes.regular([100.0], steps=30).nonzero()[0].tolist()
        [9, 19, 29]
    """
    share, phase = np.asarray(_per_step(rate, dt)), np.asarray(phase, float)
    if not np.all((phase >= 0) & (phase < 1)):
        raise ValueError(f"phase: expected at least 0 and below 1, got {phase.min()} to {phase.max()}.")
    at = np.arange(positive("steps", steps) + 1).reshape(-1, *[1] * np.broadcast(share, phase).ndim)
    return jnp.asarray(np.diff(np.floor(phase + at * share + 1e-9), axis=0), float)


def latency(values: ArrayLike, steps: int, tau: float | None = None, threshold: float = 0.0) -> Spikes:
    """One spike for each value above a threshold, the earlier the larger it is. May be traced.

    In step `round((steps - 1) (1 - value))`; or with `tau` when a membrane with a current `value` reaches the
    threshold, in step `round(tau ln(value / (value - threshold)))`, and never if that is not within `steps`.

    Args:
        values: `(*units,)`, without `tau` from 0 to 1; larger ones count as 1.
        steps: how many.
        tau: time constant of the membrane in steps; None: linear.
        threshold: values that are not above it send nothing.

    Returns:
        0 and 1, time first.

    Raises:
        ValueError: `tau` or `threshold` is out of range.

    Example:
        >>> import sparse_etrace as se
        >>> se.spikes.latency([1.0, 0.5, 0.0], steps=5).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]

    Reference:
        Thorpe 1990, Parallel Processing in Neural Systems and Computers; with `tau`, Zenke and Vogels 2021, Neural
        Computation 33:899.
    """
    if threshold < 0 or (tau is not None and not (tau > 0 and threshold > 0)):
        raise ValueError(
            f"tau, threshold: expected tau above 0 with a threshold above 0, or no tau, got {tau} and {threshold}."
        )
    values = jnp.asarray(values, float)
    fires = values > threshold
    if tau is None:
        when = (positive("steps", steps) - 1) * (1 - jnp.minimum(values, 1))
    else:
        above = jnp.where(fires, values, 2 * threshold)
        when = tau * jnp.log(above / (above - threshold))
    at = jnp.arange(positive("steps", steps)).reshape(-1, *[1] * values.ndim)
    return (fires & (at == jnp.round(when))).astype(float)
