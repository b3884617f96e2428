"""Spikes in time, and how often a population spikes."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .style import DASHES, DOUBLE, FAINT, PALETTE, SMALL, group_numbers, new_figure, nothing, styled, times, with_room

BINS, HEIGHT = 150, 3.6


def raster(spikes: ArrayLike, dt: float | None = None, group: ArrayLike | None = None) -> Figure:
    """Draw spikes as dots, a row for each unit, and below them the mean rate of the population.

    The rate is counted in bins of whole steps, at most 150; where dots would cover one another they are transparent.

    Args:
        spikes: 0 or 1, or booleans, `(time, units)`.
        dt: length of a step in ms; then the rate is in Hz. Time is in steps, the rate per step, unless given.
        group: name or number of each unit's group, `(units,)`; groups lie together, in the order of their first units,
            and up to eight have colours and rates of their own.

    Returns:
        The figure, 7 inches wide, with two panels.

    Raises:
        TypeError: spikes are no numbers, or groups neither text nor numbers.
        ValueError: spikes are others than 0 and 1, a shape does not fit, or `dt` is not positive.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> spikes = np.random.default_rng(0).random((200, 50)) < 0.02
        >>> dots, rate = se.plot.raster(spikes, dt=1.0).axes
        >>> rate.get_ylabel()
        'rate (Hz)'
    """
    fired = _fired(spikes)
    steps, units = fired.shape
    at, when = times(steps, dt)
    names, number = _groups(group, units)
    coloured = len(names) <= len(PALETTE)
    order = np.argsort(number, kind="stable")
    figure = new_figure(DOUBLE, HEIGHT)
    dots, rate = (styled(axes) for axes in figure.subplots(2, 1, sharex=True, height_ratios=(3, 1)))
    dots.set(ylabel="unit", ylim=(max(units, 1) - 0.5, -0.5))
    dots.tick_params(labelbottom=False)
    dots.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    width = -(-steps // BINS) or 1
    length = at[1] - at[0] if steps > 1 else float(dt or 1)
    rate.set(xlabel=f"{when}; rate in bins of {width * length:g} {when[6:-1]}" if steps else when)
    rate.set(ylabel="rate (per step)" if dt is None else "rate (Hz)")
    if not fired.size:
        nothing(dots, "no units" if not units else "no steps")
        return figure
    step, row = np.nonzero(fired[:, order])
    height = 0.6 * 72 * HEIGHT / units
    size = float(np.clip(height, 0.8, 5))
    # A share of the panel, twice over what the dots cover of it.
    cover = len(step) * size * max(size / 3, 0.5) / (72 * DOUBLE * 0.9 * 0.6 * 72 * HEIGHT)
    starts = np.arange(0, steps, width)
    edges = np.append(starts, steps) * length + (at[0] - length / 2)
    for k in range(len(names) if coloured else 1):
        mine = number == k if coloured else np.ones(units, bool)
        colour = PALETTE[k] if len(names) > 1 and coloured else "#000000"
        chosen = mine[order][row]
        dots.plot(
            at[step[chosen]], row[chosen], ls="", ms=size, color=colour, marker="|" if size > 1.5 else "s",
            mew=0.7 if size > 1.5 else 0, alpha=float(np.clip(0.7 / max(cover, 1e-9), 0.08, 1)), rasterized=True,
        )  # fmt: skip
        per_step = fired[:, mine].mean(axis=1)
        mean = np.add.reduceat(per_step, starts) / np.diff(np.append(starts, steps))
        rate.stairs(mean if dt is None else 1000 * mean / dt, edges, color=colour, lw=1, ls=DASHES[k % len(DASHES)])
    rate.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
    rate.yaxis.set_major_locator(MaxNLocator(3))
    if group is not None:
        sizes = np.bincount(number, minlength=len(names))
        for end in np.cumsum(sizes)[:-1]:
            dots.axhline(end - 0.5, color=FAINT, lw=0.5)
        kept = with_room(sizes, 0.55 * 72 * HEIGHT)
        dots.set_yticks((np.cumsum(sizes) - sizes / 2)[kept] - 0.5, [names[k] for k in kept], fontsize=SMALL)
        dots.set_ylabel("unit, by group")
        dots.tick_params(axis="y", length=0)
    return figure


def _fired(spikes: ArrayLike) -> np.ndarray:
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


def _groups(group: ArrayLike | None, units: int) -> tuple[list[str], np.ndarray]:
    if group is None:
        return [""], np.zeros(units, np.int64)
    values = np.asarray(group)
    if values.shape != (units,):
        raise ValueError(f"group: expected one entry for each of {units} units, got shape {values.shape}.")
    return group_numbers(values, np.arange(units))
