"""Moving patterns: their direction and speed, measured between neighbouring columns by correlation."""

import jax.numpy as jnp
import numpy as np
import pytest

import sparse_etrace as se

RADIUS, DT, STEPS = 5, 0.004, 400
U, V = (grid.ravel() for grid in np.meshgrid(*[np.arange(-RADIUS, RADIUS + 1)] * 2, indexing="ij"))
U, V = U[np.abs(U + V) <= RADIUS], V[np.abs(U + V) <= RADIUS]
# The angle at which each of the six neighbours lies.
NEIGHBOURS = {(1, 0): 270, (0, 1): 330, (-1, 1): 30, (-1, 0): 90, (0, -1): 150, (1, -1): 210}
PLACE = se.stimuli.places(U, V)
TIME = jnp.arange(STEPS) * DT


def measured(light, most=60):
    """Direction (degrees) and speed: the delay to a neighbour at an angle is `cos(angle - way) / speed`."""
    change, at = np.diff(np.asarray(light, float), axis=0), {uv: k for k, uv in enumerate(zip(U, V, strict=True))}
    rows, delays = [], []
    for (du, dv), angle in NEIGHBOURS.items():
        pairs = [(k, at[u + du, v + dv]) for (u, v), k in at.items() if (u + du, v + dv) in at]
        one, other = change[:, [k for k, _ in pairs]], change[:, [k for _, k in pairs]]
        lags = np.arange(-most, most + 1)
        fits = [np.sum(one[most:-most] * other[most + lag : len(other) - most + lag]) for lag in lags]
        delays.append(lags[np.argmax(fits)] * DT)
        rows.append([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    x, y = np.linalg.lstsq(np.array(rows), np.array(delays), rcond=None)[0]
    return np.rad2deg(np.arctan2(y, x)) % 360, 1 / np.hypot(x, y)


@pytest.mark.parametrize("direction, speed", [(0, 6), (45, 12), (110, 8), (200, 5), (270, 10), (315, 16)])
def test_direction_and_speed(direction, speed):
    wave = se.stimuli.grating(PLACE, TIME, direction, speed, wavelength=7, phase=1.0)
    bright, dark = (se.stimuli.edge(PLACE, TIME, direction, speed, -4, is_bright) for is_bright in (True, False))
    for light in (wave, bright, dark):
        assert light.shape == (STEPS, len(U)) and light.min() >= 0 and light.max() <= 1
        way, found = measured(light)
        assert abs((way - direction + 180) % 360 - 180) < 2 and abs(found / speed - 1) < 0.04
    np.testing.assert_allclose(bright + dark, 1, atol=1e-6)


def test_neighbours_are_at_a_distance_of_one():
    for (du, dv), angle in NEIGHBOURS.items():
        expected = [np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))]
        np.testing.assert_allclose(se.stimuli.places(du, dv), expected, atol=1e-6)


def test_phase_contrast_and_edges():
    """A crest passes each place at its time, and an edge too; without contrast there is grey."""
    (crest,) = np.flatnonzero((U == 0) & (V == 2))
    x = 2 * np.sqrt(3) / 2
    wave = se.stimuli.grating(PLACE, jnp.array([0.0, x / 8, 0.5]), 0, 8.0, 4.0, np.pi / 2, 0.5)
    np.testing.assert_allclose(wave[1, crest], 0.75, atol=1e-6)
    np.testing.assert_allclose(wave[2, (U == 0) & (V == 0)], 0.75, atol=1e-6)  # 4 columns, one wave, later
    np.testing.assert_allclose(se.stimuli.grating(PLACE, TIME, 30, 8.0, 4.0, 0.0, 0.0), 0.5)
    light = se.stimuli.edge(PLACE, jnp.array([(x + 3 - 0.5) / 8, (x + 3) / 8, (x + 3 + 0.5) / 8]), 0, 8.0, -3)
    np.testing.assert_allclose(light[:, crest], [0.1192, 0.5, 0.8808], atol=1e-4)
