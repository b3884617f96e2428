"""How weights are distributed."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .._graph.graph import Graph
from .checks import graph_weight, numbers, reals
from .style import DASHES, NEGATIVE, PALETTE, POSITIVE, SINGLE, ZERO, legend, nothing, panel

BINS = 50


def weights(
    values: Graph | ArrayLike | Mapping[str, Graph | ArrayLike], log: bool = False, ax: Axes | None = None
) -> Figure:
    """Draw a histogram of weights: one set by sign, or several as lines with the share of negative ones of each.

    Whole numbers have a bar each where they are few; otherwise zero is the border of two bars.

    Args:
        values: a graph, an array of any size, or a mapping from names to these: `{"before": w, "after": v}`.
        log: whether the number of synapses is on a logarithmic axis.
        ax: panel to draw into; a new figure unless given.

    Returns:
        The figure, 3.5 inches wide if it is new.

    Raises:
        TypeError: weights are no real numbers, or `ax` is no panel.
        ValueError: a weight is not finite, or there are no names.

    Example:
        >>> import sparse_etrace as se
        >>> se.plot.weights({"before": [0.1, -0.2], "after": [0.3, -0.1]}).axes[0].get_ylabel()
        'synapses'
    """
    named = values if isinstance(values, Mapping) else {"": values}
    if not named:
        raise ValueError("values: expected weights by name, {'before': w, 'after': v} for example, got no names.")
    sets = {str(name): _flat(f"values[{name!r}]" if name else "values", value) for name, value in named.items()}
    figure, axes = panel(ax, SINGLE, 2.4)
    axes.set(xlabel="weight (a.u.)", ylabel="synapses")
    if not any(value.size for value in sets.values()):
        nothing(axes, "no synapses")
        return figure
    edges = _edges(np.concatenate(list(sets.values())))
    if isinstance(values, Mapping):
        for number, (name, value) in enumerate(sets.items()):
            share = f"{100 * np.mean(value < 0):.3g} % negative" if value.size else "no synapses"
            style = {"color": PALETTE[number % len(PALETTE)], "ls": DASHES[number % len(DASHES)], "lw": 1.3}
            axes.stairs(np.histogram(value, edges)[0], edges, label=f"{name}: {share}", **style)
        axes.axvline(0, color="#999999", lw=0.6, zorder=0)
    else:
        (value,) = sets.values()
        parts = (
            (value > 0, POSITIVE, "positive", ""),
            (value < 0, NEGATIVE, "negative", "////"),
            (value == 0, ZERO, "zero", ""),
        )
        below = np.zeros(len(edges) - 1)
        for chosen, colour, word, hatch in parts:
            if count := np.count_nonzero(chosen):
                bars = np.histogram(value[chosen], edges)[0]
                axes.stairs(
                    below + bars, edges, baseline=below, fill=True, color=colour, label=f"{word} ({count:,})",
                    hatch=hatch, ec="white" if hatch else colour, lw=0.3,
                )  # fmt: skip
                below = below + bars
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    if log:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=0.7)
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    legend(axes, columns=1 if isinstance(values, Mapping) else 0)
    return figure


def _flat(name: str, value: Graph | ArrayLike) -> np.ndarray:
    return graph_weight(value) if isinstance(value, Graph) else numbers(name, reals(name, value).ravel(), ("count",))


def _edges(pooled: np.ndarray) -> np.ndarray:
    least, most = float(pooled.min()), float(pooled.max())
    if most - least < BINS and np.array_equal(pooled, np.round(pooled)):
        return np.arange(least, most + 2) - 0.5
    if least == most:
        return least + np.abs(least) * np.array([-0.1, 0.1])
    width = (max(most, 0) - min(least, 0) if least * most <= 0 else most - least) / BINS
    first, last = np.floor(least / width), np.floor(most / width) + 1
    return width * np.arange(first, last + 1)
