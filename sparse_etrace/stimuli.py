"""Moving patterns on a hexagonal lattice, as an insect's eye sees them."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = ["edge", "grating", "places"]


def places(u: ArrayLike, v: ArrayLike) -> Float[Array, "columns 2"]:
    """Where the columns of a hexagonal lattice lie, neighbours at a distance of 1: `(sqrt(3)/2 v, -(u + v/2))`.

    Args:
        u, v: integers, one each for a column, as the node attributes of `se.datasets.fly_eye`.

    Returns:
        Positions `(columns, 2)`: to the right and up, in columns.

    Example:
        >>> import sparse_etrace as se
        >>> se.stimuli.places([0, 1], [0, 0]).tolist()
        [[0.0, -0.0], [0.0, -1.0]]
    """
    u, v = jnp.asarray(u, float), jnp.asarray(v, float)
    return jnp.stack([jnp.sqrt(3) / 2 * v, -(u + v / 2)], axis=-1)


def grating(
    place: Float[Array, "columns 2"],
    time: Float[Array, " steps"],
    direction: ArrayLike,
    speed: ArrayLike,
    wavelength: ArrayLike,
    phase: ArrayLike = 0.0,
    contrast: ArrayLike = 1.0,
) -> Float[Array, "steps columns"]:
    """Light of a sine wave that moves, `(1 + contrast sin(2 pi (place . way - speed time) / wavelength + phase)) / 2`.

    `way` is `(cos direction, sin direction)`. All numbers may be traced.

    Args:
        place: of each column, as of `places`.
        time: of each step, in seconds.
        direction: where it moves, in degrees: 0 is right, 90 is up.
        speed: columns a second.
        wavelength: columns from crest to crest.
        phase: in radians.
        contrast: from 0 to 1.

    Returns:
        Light at each step on each column, from 0 to 1.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> row = se.stimuli.places([0, 0, 0], [0, 1, 2])
        >>> se.stimuli.grating(row, jnp.arange(4) / 50, direction=0, speed=10, wavelength=6).shape
        (4, 3)
    """
    wave = 2 * jnp.pi * _ahead(place, time, direction, speed) / wavelength + phase
    return jnp.asarray(1 + contrast * jnp.sin(wave)) / 2


def edge(
    place: Float[Array, "columns 2"],
    time: Float[Array, " steps"],
    direction: ArrayLike,
    speed: ArrayLike,
    start: ArrayLike,
    bright: ArrayLike = True,
    width: float = 1.0,
) -> Float[Array, "steps columns"]:
    """Light of an edge that moves: `1 / (1 + exp(4 (place . way - start - speed time) / width))`, or 1 minus that.

    Args:
        place: of each column, as of `places`.
        time: of each step, in seconds.
        direction: where it moves, in degrees: 0 is right, 90 is up.
        speed: columns a second.
        start: where it is at time 0, in columns from the middle along its way; behind the eye it is negative.
        bright: whether light follows it, or else the dark.
        width: in how many columns light changes from about 0.1 to 0.9.

    Returns:
        Light at each step on each column, from 0 to 1.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> row = se.stimuli.places([0, 0, 0], [0, 1, 2])
        >>> light = se.stimuli.edge(row, jnp.arange(50) / 50, direction=0, speed=10, start=-3)
        >>> light[0].round(2).tolist(), light[-1].round(2).tolist()
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    """
    behind = 1 / (1 + jnp.exp(4 * (_ahead(place, time, direction, speed) - start) / width))
    return jnp.where(bright, behind, 1 - behind)


def _ahead(place: Array, time: Array, direction: ArrayLike, speed: ArrayLike) -> Float[Array, "steps columns"]:
    """How far each column lies along the way of what started at the middle, `(steps, columns)`."""
    angle = jnp.deg2rad(jnp.asarray(direction, float))
    return place @ jnp.stack([jnp.cos(angle), jnp.sin(angle)]) - speed * jnp.asarray(time)[:, None]
