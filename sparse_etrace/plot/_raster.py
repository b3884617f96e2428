"""Spikes in time, and how often a population spikes."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from ..spikes.statistics import fired
from .checks import numbers
from .style import DASHES, DOUBLE, FAINT, PALETTE, SMALL, group_numbers, new_figure, nothing, styled, times, with_room

BINS, HEIGHT = 150, 3.6


def raster(
    spikes: ArrayLike,
    dt: float | None = None,
    group: ArrayLike | None = None,
    traces: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draw spikes as dots, a row for each unit, and below them the mean rate of the population.

    The rate is counted in bins of whole steps, at most 150; where dots would cover one another they are transparent.

    Args:
        spikes: 0 or 1, or booleans, `(time, units)`.
        dt: length of a step in ms; then the rate is in Hz. Time is in steps, the rate per step, unless given.
        group: name or number of each unit's group, `(units,)`; groups lie together, in the order of their first units,
            and up to eight have colours and rates of their own.
        traces: currents or potentials of some units, `(time,)` or `(time, lines)` with at most eight, each in a panel
            of its own below, by what it is: `{"current (pA)": i[:, :3]}`.

    Returns:
        The figure, 7 inches wide, with two panels and one for each of `traces`.

    Raises:
        TypeError: spikes are no numbers, or groups neither text nor numbers.
        ValueError: spikes are others than 0 and 1, a shape does not fit, `dt` is not positive, or a trace has more than
            eight lines or a number that is not finite.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> spikes = np.random.default_rng(0).random((200, 50)) < 0.02
        >>> dots, rate = se.plot.raster(spikes, dt=1.0).axes
        >>> rate.get_ylabel()
        'rate (Hz)'
    """
    z = fired(spikes)
    steps, units = z.shape
    at, when = times(steps, dt)
    names, number = _groups(group, units)
    coloured = len(names) <= len(PALETTE)
    order = np.argsort(number, kind="stable")
    lines = {label: _lines(label, values, steps) for label, values in (traces or {}).items()}
    figure = new_figure(DOUBLE, HEIGHT + len(lines) * HEIGHT / 4)
    panels = figure.subplots(2 + len(lines), 1, sharex=True, height_ratios=(3, *[1] * (1 + len(lines))))
    dots, rate, *below = (styled(axes) for axes in panels)
    for axes, (label, values) in zip(below, lines.items(), strict=True):
        for k, line in enumerate(values.T):
            axes.plot(at, line, color=PALETTE[k], lw=0.8, ls=DASHES[k % len(DASHES)])
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(3))
    dots.set(ylabel="unit", ylim=(max(units, 1) - 0.5, -0.5))
    dots.tick_params(labelbottom=False)
    dots.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    width = -(-steps // BINS) or 1
    length = at[1] - at[0] if steps > 1 else float(dt or 1)
    (below or [rate])[-1].set(xlabel=f"{when}; rate in bins of {width * length:g} {when[6:-1]}" if steps else when)
    rate.set(ylabel="rate (per step)" if dt is None else "rate (Hz)")
    if not z.size:
        nothing(dots, "no units" if not units else "no steps")
        return figure
    step, row = np.nonzero(z[:, order])
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
        per_step = z[:, mine].mean(axis=1)
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


def _lines(label: str, values: ArrayLike, steps: int) -> np.ndarray:
    lines = np.asarray(values)
    lines = numbers(f"traces[{label!r}]", lines[:, None] if lines.ndim == 1 else lines, (steps, "lines"))
    if lines.shape[1] > len(PALETTE):
        raise ValueError(f"traces[{label!r}]: expected at most {len(PALETTE)} lines, got {lines.shape[1]}.")
    return lines


def _groups(group: ArrayLike | None, units: int) -> tuple[list[str], np.ndarray]:
    if group is None:
        return [""], np.zeros(units, np.int64)
    values = np.asarray(group)
    if values.shape != (units,):
        raise ValueError(f"group: expected one entry for each of {units} units, got shape {values.shape}.")
    return group_numbers(values, np.arange(units))
