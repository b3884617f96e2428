"""Surrogate derivatives of spikes.

A neuron spikes where its scaled membrane potential is not negative, `z = H(v)`. The derivative of that step is zero
almost everywhere, so learning uses a smooth stand-in `psi(v)` instead:

    forward    z = H(v) = 1 if v >= 0 else 0
    backward   dz/dv := psi(v)

`v` has no unit. For a threshold `theta`, `v = (V - theta) / theta` is usual; the factor `1 / theta` of `dz/dV` then
comes from the chain rule and not from `psi`.
"""

import functools
import math
from collections.abc import Callable
from typing import SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ._numbers import plain, real

__all__ = [
    "Surrogate",
    "arctan",
    "boxcar",
    "exponential",
    "fast_sigmoid",
    "gaussian",
    "multi_gaussian",
    "sigmoid",
    "triangle",
]


class Surrogate(eqx.Module):
    """A spike function with a derivative of its own, `z = H(v)` and `dz/dv := derivative(v, *params)`.

    It works under `jit`, `vmap` and both modes of differentiation. Two surrogates with the same function and the same
    parameters are equal, so that building one again does not compile again.

    Args:
        derivative: a function `(v, *params) -> psi` that works elementwise. It is hashed by identity: define it once.
        params: its parameters, plain numbers that are never trained.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> def bump(v, width):
        ...     return 1 / (1 + (v / width) ** 2)
        >>> spike = surrogate.Surrogate(bump, (0.5,))
        >>> float(spike(jnp.array(-0.5))), float(jax.grad(spike)(jnp.array(-0.5)))
        (0.0, 0.5)
    """

    derivative: Callable[..., Array] = eqx.field(static=True)
    params: tuple[float, ...] = eqx.field(static=True, default=(), converter=lambda given: tuple(map(plain, given)))

    def __call__(self, v: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Spikes, `z = H(v)`.

        Args:
            v: the scaled membrane potential, floating, any shape, no unit.

        Returns:
            1 where `v >= 0` and 0 elsewhere, in the shape and the type of `v`.

        Raises:
            TypeError: where `v` is not floating.
        """
        if not jnp.issubdtype(v.dtype, jnp.floating):
            raise TypeError(f"v: expected a floating type, got {v.dtype}. Convert it first: v.astype('float32').")
        return _spike(self, v)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spike(surrogate: Surrogate, v: Array) -> Array:
    return (v >= 0).astype(v.dtype)


@_spike.defjvp
def _spike_jvp(surrogate: Surrogate, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,), (v_dot,) = primals, tangents
    return _spike(surrogate, v), surrogate.derivative(v, *surrogate.params) * v_dot


def _positive(name: str, given: SupportsFloat) -> float:
    value = real(name, given)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive, finite number, got {value}. Leave it out for the default.")
    return value


def _triangle(v: Array, gamma: float) -> Array:
    return gamma * jnp.maximum(0, 1 - jnp.abs(v))


def triangle(gamma: SupportsFloat = 0.3) -> Surrogate:
    """A triangle of half width 1, `psi(v) = gamma * max(0, 1 - |v|)`.

    Args:
        gamma: height at the threshold; below 1 it dampens the gradient through many steps. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `gamma` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> spike = surrogate.triangle(gamma=0.5)
        >>> spike(jnp.array([-0.5, 0.0, 2.0])).tolist()
        [0.0, 1.0, 1.0]
        >>> jax.vmap(jax.grad(spike))(jnp.array([-0.5, 0.0, 2.0])).tolist()
        [0.25, 0.5, 0.0]

    Source:
        G. Bellec, D. Salaj, A. Subramoney, R. Legenstein, W. Maass (2018), Long short-term memory and
        learning-to-learn in networks of spiking neurons, NeurIPS; G. Bellec et al. (2020), A solution to the learning
        dilemma for recurrent networks of spiking neurons, Nature Communications 11:3625.
    """
    return Surrogate(_triangle, (_positive("gamma", gamma),))


def _fast_sigmoid(v: Array, beta: float) -> Array:
    return 1 / (1 + beta * jnp.abs(v)) ** 2


def fast_sigmoid(beta: SupportsFloat = 10.0) -> Surrogate:
    """The derivative of a fast sigmoid (SuperSpike), `psi(v) = 1 / (1 + beta * |v|)**2`.

    Args:
        beta: steepness; `psi` falls to a quarter at `|v| = 1 / beta`. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `beta` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> float(jax.grad(surrogate.fast_sigmoid(beta=2.0))(jnp.array(0.5)))
        0.25

    Source:
        F. Zenke, S. Ganguli (2018), SuperSpike: supervised learning in multilayer spiking neural networks, Neural
        Computation 30:1514-1541.
    """
    return Surrogate(_fast_sigmoid, (_positive("beta", beta),))


def _arctan(v: Array, alpha: float) -> Array:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * v) ** 2)


def arctan(alpha: SupportsFloat = 2.0) -> Surrogate:
    """The derivative of an arc tangent, `psi(v) = (alpha / 2) / (1 + (pi / 2 * alpha * v)**2)`.

    Args:
        alpha: steepness; `psi` has the height `alpha / 2` and the area 1. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `alpha` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> float(jax.grad(surrogate.arctan(alpha=2.0))(jnp.array(0.0)))
        1.0

    Source:
        W. Fang, Z. Yu, Y. Chen, T. Masquelier, T. Huang, Y. Tian (2021), Incorporating learnable membrane time
        constant to enhance learning of spiking neural networks, ICCV.
    """
    return Surrogate(_arctan, (_positive("alpha", alpha),))


def _sigmoid(v: Array, beta: float) -> Array:
    return beta * jax.nn.sigmoid(beta * v) * jax.nn.sigmoid(-beta * v)


def sigmoid(beta: SupportsFloat = 4.0) -> Surrogate:
    """The derivative of a logistic function, `psi(v) = beta * s * (1 - s)` with `s = 1 / (1 + exp(-beta * v))`.

    Args:
        beta: steepness; `psi` has the height `beta / 4` and the area 1. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `beta` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> float(jax.grad(surrogate.sigmoid(beta=4.0))(jnp.array(0.0)))
        1.0

    Source:
        E. O. Neftci, H. Mostafa, F. Zenke (2019), Surrogate gradient learning in spiking neural networks, IEEE
        Signal Processing Magazine 36(6):51-63.
    """
    return Surrogate(_sigmoid, (_positive("beta", beta),))


def _gaussian(v: Array, sigma: float) -> Array:
    return jnp.exp(-((v / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))


def gaussian(sigma: SupportsFloat = 0.5) -> Surrogate:
    """A normal density, `psi(v) = exp(-v**2 / (2 * sigma**2)) / (sigma * sqrt(2 * pi))`.

    Args:
        sigma: standard deviation; the area is 1. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `sigma` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> round(float(jax.grad(surrogate.gaussian(sigma=0.5))(jnp.array(0.0))), 4)
        0.7979

    Source:
        B. Yin, F. Corradi, S. M. Bohte (2021), Accurate and efficient time-domain classification with adaptive
        spiking recurrent neural networks, Nature Machine Intelligence 3:905-913.
    """
    return Surrogate(_gaussian, (_positive("sigma", sigma),))


def _boxcar(v: Array, width: float) -> Array:
    return jnp.where(jnp.abs(v) < width / 2, 1 / width, 0.0).astype(v.dtype)


def boxcar(width: SupportsFloat = 1.0) -> Surrogate:
    """A rectangle around the threshold, `psi(v) = 1 / width` where `|v| < width / 2` and 0 elsewhere.

    Args:
        width: full width; the area is 1. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `width` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> jax.vmap(jax.grad(surrogate.boxcar(width=2.0)))(jnp.array([-0.9, 0.0, 1.0])).tolist()
        [0.5, 0.5, 0.0]

    Source:
        Y. Wu, L. Deng, G. Li, J. Zhu, L. Shi (2018), Spatio-temporal backpropagation for training
        high-performance spiking neural networks, Frontiers in Neuroscience 12:331.
    """
    return Surrogate(_boxcar, (_positive("width", width),))


def _exponential(v: Array, beta: float) -> Array:
    return beta / 2 * jnp.exp(-beta * jnp.abs(v))


def exponential(beta: SupportsFloat = 5.0) -> Surrogate:
    """An exponential decay on both sides (SLAYER), `psi(v) = beta / 2 * exp(-beta * |v|)`.

    Args:
        beta: steepness; `psi` has the height `beta / 2` and the area 1. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `beta` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> float(jax.grad(surrogate.exponential(beta=2.0))(jnp.array(0.0)))
        1.0

    Source:
        S. B. Shrestha, G. Orchard (2018), SLAYER: spike layer error reassignment in time, NeurIPS.
    """
    return Surrogate(_exponential, (_positive("beta", beta),))


def _multi_gaussian(v: Array, sigma: float) -> Array:
    sides = _gaussian(v - sigma, 6 * sigma) + _gaussian(v + sigma, 6 * sigma)
    return 1.15 * _gaussian(v, sigma) - 0.15 * sides


def multi_gaussian(sigma: SupportsFloat = 0.5) -> Surrogate:
    """A normal density with shallow negative flanks, `psi(v) = 1.15 N(v; 0, s) - 0.15 (N(v; s, 6 s) + N(v; -s, 6 s))`.

    `N(v; m, s)` is the density with the mean `m` and the standard deviation `s`, and `s` is `sigma`.

    Args:
        sigma: standard deviation of the middle; the area is 0.85. No unit.

    Returns:
        A `Surrogate`.

    Raises:
        ValueError: where `sigma` is not positive and finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace import surrogate
        >>> slope = jax.grad(surrogate.multi_gaussian(sigma=0.5))
        >>> bool(slope(jnp.array(0.0)) > 0 > slope(jnp.array(2.0)))
        True

    Source:
        B. Yin, F. Corradi, S. M. Bohte (2021), Accurate and efficient time-domain classification with adaptive
        spiking recurrent neural networks, Nature Machine Intelligence 3:905-913.
    """
    return Surrogate(_multi_gaussian, (_positive("sigma", sigma),))
