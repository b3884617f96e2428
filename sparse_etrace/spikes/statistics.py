"""Rates, regularity and synchrony of populations."""

import numpy as np
from numpy.typing import ArrayLike

from .._numbers import positive
from .._text import DataFrame, data_frame


def statistics(
    spikes: ArrayLike, dt: float | None = None, group: ArrayLike | None = None, window: int | None = None
) -> DataFrame:
    """Statistics of spike trains, a row for each population.

    Args:
        spikes: 0 or 1, or booleans, `(time, units)`.
        dt: length of a step in ms; then rates are in Hz, otherwise per step.
        group: name or number of each unit's population, `(units,)`; `np.arange(units)` for a row of each unit.
        window: steps in which spikes are counted for `fano` and `synchrony`; a tenth of all unless given.

    Returns:
        A data frame with the columns

        * `group` and `units`, how many there are;
        * `rate`: mean over units and steps;
        * `silent`: share of units without a spike;
        * `cv`: coefficient of variation of the intervals between spikes, the mean over units with three spikes or
          more: 0 for a clock, 1 for a Poisson process;
        * `fano`: variance of the counts in windows by their mean, averaged over units that spike: 1 for Poisson;
        * `synchrony`: `sqrt(variance of the mean count / mean variance of the counts)` of the units, over windows: 1
          where all do the same, `1 / sqrt(units)` where they are independent.

        NaN where there is nothing to take it from.

    Raises:
        ImportError: pandas, which is in the extra `tables`, is not installed.
        TypeError, ValueError: spikes are others than 0 and 1, or a shape, `dt` or `window` does not fit.

    Example:
        >>> import jax, numpy as np, sparse_etrace as se
        >>> z = se.spikes.poisson(jax.random.key(0), np.full(200, 20.0), steps=5000)
        >>> se.spikes.statistics(z, dt=1.0, window=50)[["rate", "cv", "fano", "synchrony"]].round(2).values.tolist()
        [[19.91, 0.97, 0.96, 0.06]]

    Reference:
        Golomb and Rinzel 1994, Physica D 72:259, for synchrony.
    """
    z = fired(spikes)
    steps, units = z.shape
    if dt is not None and not dt > 0:
        raise ValueError(f"dt: expected the length of a step in ms, above 0, got {dt}.")
    window = max(steps // 10, 1) if window is None else positive("window", window)
    count = steps // window
    counts = z[: count * window].reshape(count, window, units).sum(1) if count else np.zeros((0, units))
    populations = np.zeros(units, int) if group is None else np.asarray(group)
    if populations.shape != (units,):
        raise ValueError(f"group: expected one entry for each of {units} units, got shape {populations.shape}.")
    total, cv = z.sum(0), _variation(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        fano = counts.var(0) / counts.mean(0) if count else np.full(units, np.nan)
        names = np.unique(populations).tolist()
        rows = [_row(name, populations == name, z, total, cv, fano, counts, dt) for name in names]
    return data_frame({key: [row[key] for row in rows] for key in rows[0]} if rows else {})


def _row(
    name: object, mine: np.ndarray, z: np.ndarray, total: np.ndarray, cv: np.ndarray, fano: np.ndarray,
    counts: np.ndarray, dt: float | None,
) -> dict[str, object]:  # fmt: skip
    rate, own = (total[mine].mean() / len(z) if len(z) else np.nan), counts[:, mine]
    variance = own.var(0).mean() if len(own) else np.nan
    return {
        "group": name,
        "units": int(mine.sum()),
        "rate": rate if dt is None else 1000 * rate / dt,
        "silent": np.mean(total[mine] == 0),
        "cv": _mean(cv[mine]),
        "fano": _mean(fano[mine]),
        "synchrony": np.sqrt(own.mean(1).var() / variance) if variance > 0 else np.nan,
    }


def _mean(values: np.ndarray) -> float:
    """Of those that are numbers."""
    known = values[np.isfinite(values)]
    return known.mean() if known.size else np.nan


def _variation(z: np.ndarray) -> np.ndarray:
    """Coefficient of variation of each unit's intervals; NaN of fewer than two."""
    unit, step = np.nonzero(z.T)
    gap, unit = np.diff(step)[(same := np.diff(unit) == 0)], unit[1:][same]
    count, total, square = (np.bincount(unit, w, z.shape[1]) for w in (None, gap, gap.astype(float) ** 2))
    many = np.where(count >= 2, count, np.nan)
    mean = total / many
    return np.sqrt(np.maximum(square / many - mean**2, 0)) / mean


def fired(spikes: ArrayLike) -> np.ndarray:
    """Spikes as booleans, `(time, units)`."""
    array = np.asarray(spikes)
    if array.ndim != 2:
        raise ValueError(f"spikes: expected (time, units), got shape {array.shape}.")
    if not (array.dtype == bool or np.issubdtype(array.dtype, np.number) or array.dtype.kind == "V"):
        raise TypeError(f"spikes: expected numbers, got {array.dtype}.")
    fired = array.astype(bool)
    strange = array != fired
    if np.any(strange):
        raise ValueError(f"spikes: expected 0 and 1, got {array[strange][0]!s}. Pass `spikes > 0`, for example.")
    return fired
