"""Learning curves with their seeds."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .checks import numbers, reals
from .style import DASHES, MARKERS, PALETTE, SINGLE, legend, panel

MARKS = 5


def learning_curves(
    curves: Mapping[str, ArrayLike],
    x: ArrayLike | None = None,
    xlabel: str = "updates",
    ylabel: str = "loss",
    centre: str = "median",
    log: bool = False,
    ax: Axes | None = None,
) -> Figure:
    """Draw learning curves: for each rule a thick line for all seeds, a band around it, and a thin line for each.

    The band of a median holds the middle half of the seeds, that of a mean one standard deviation on both sides. NaN is
    a gap, as in the validation columns of `fit`: lines go on to the next point, of the seeds that have one there.

    Args:
        curves: `{rule: values}`, values `(seeds, points)`, or `(points,)` for one seed.
        x: where the points lie, `(points,)`; 1, 2, ... unless given.
        xlabel, ylabel: names of the axes; a unit belongs to them, as in "accuracy (%)".
        centre: `"median"` or `"mean"`.
        log: whether the vertical axis is logarithmic.
        ax: panel to draw into; a new figure unless given.

    Returns:
        The figure, 3.5 inches wide if it is new.

    Raises:
        TypeError: `curves` is no mapping, values are no real numbers, or `ax` is no panel.
        ValueError: there are no curves, they differ in their number of points, a value is infinite (or, if `log`, not
            positive), a seed has only gaps, or `centre` is something else.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> figure = se.plot.learning_curves({"D-RTRL": np.ones((3, 20)), "BPTT": np.ones((3, 20))})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['D-RTRL', 'BPTT']
    """
    if not isinstance(curves, Mapping):
        raise TypeError(f"curves: expected {{rule: (seeds, points) array}}, got {type(curves).__name__}.")
    if not curves:
        raise ValueError("curves: expected {rule: (seeds, points) array}, got no rule.")
    if centre not in ("median", "mean"):
        raise ValueError(f"centre: expected 'median' or 'mean', got {centre!r}.")
    found = {str(rule): _seeds(f"curves[{rule!r}]", values) for rule, values in curves.items()}
    lengths = {values.shape[1] for values in found.values()}
    if len(lengths) != 1:
        raise ValueError(f"curves: expected the same number of points for all rules, got {sorted(lengths)}.")
    (points,) = lengths
    if log and any((values <= 0).any() for values in found.values()):
        raise ValueError("curves: expected positive values on a logarithmic axis, got others. Pass log=False.")
    at = np.arange(1, points + 1) if x is None else numbers("x", x, (points,))
    counts = {len(values) for values in found.values()}
    figure, axes = panel(ax, SINGLE, 2.6)
    for number, (rule, values) in enumerate(found.items()):
        colour = PALETTE[number % len(PALETTE)]
        label = rule if len(counts) == 1 else f"{rule} ({len(values)} seed{'s' * (len(values) > 1)})"
        known = ~np.isnan(values)
        if len(values) > 1:
            for seed, there in zip(values, known, strict=True):
                marker = "." if np.count_nonzero(there) == 1 else ""
                axes.plot(at[there], seed[there], color=colour, lw=0.4, alpha=0.5, zorder=2, marker=marker, ms=2)
        there = known.any(axis=0)
        low, middle, high = _band(values[:, there], centre)
        if len(values) > 1:
            axes.fill_between(at[there], low, high, color=colour, alpha=0.2, lw=0, zorder=1)
        # Marks that share the length of a line miss one of a single point.
        marks = None if middle.size == 1 else (0.1 + 0.9 / MARKS * number / len(found) / 2, 0.9 / MARKS)
        axes.plot(
            at[there], middle, color=colour, lw=1.5, zorder=3, ls=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)], ms=3.5, label=label, markevery=marks,
        )  # fmt: skip
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.margins(x=0.02)
    band = "median, middle half" if centre == "median" else "mean, standard deviation"
    of = f"of {max(counts)} seeds" if len(counts) == 1 else "of the seeds"
    legend(axes, title=f"{band} and each {of}" if max(counts) > 1 else "")
    return figure


def _seeds(name: str, values: ArrayLike) -> np.ndarray:
    array = np.atleast_2d(reals(name, values))
    numbers(name, np.where(np.isnan(array), 0, array), ("seeds", "points"))
    if not array.size:
        raise ValueError(f"{name}: expected at least one seed and one point, got shape {array.shape}.")
    if np.isnan(array).all(axis=1).any():
        raise ValueError(f"{name}: expected values of each seed, got only NaN of one. Leave it out.")
    return array


def _band(values: np.ndarray, centre: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle of the seeds at each point, and what is below and above it."""
    if centre == "median":
        low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
        return low, middle, high
    mean = np.nanmean(values, axis=0)
    squares = np.nansum((values - mean) ** 2, axis=0)
    deviation = np.sqrt(squares / np.maximum(np.count_nonzero(~np.isnan(values), axis=0) - 1, 1))
    return mean - deviation, mean, mean + deviation
