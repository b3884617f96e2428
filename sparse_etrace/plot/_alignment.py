"""How the gradients of several rules compare with the exact ones."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from .._report.alignment import Alignment
from .style import DOUBLE, FAINT, LARGE, MARKERS, PALETTE, SMALL, new_figure, styled

RATIO_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


def alignment(alignments: dict[str, Alignment], title: str = "") -> Figure:
    """Draw how the gradients of several rules compare with the exact ones, leaf by leaf and over time.

    Args:
        alignments: what `gradient_alignment` found, by name of the rule; all for one model. Where they have several
            stretches of time, two more panels show these. Norm ratios are drawn up to a factor of 100.
        title: heading of the figure.

    Returns:
        The figure, 7 inches wide.

    Raises:
        TypeError: `alignments` is no mapping to `Alignment`.
        ValueError: there are none, or they have different leaves or stretches.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> found = se.Alignment(("w", "all leaves"), np.array([[0, 9]]), np.full((1, 2), 0.9), np.ones((1, 2)))
        >>> [axes.get_xlabel() for axes in se.plot.alignment({"D-RTRL": found}).axes]
        ['cosine with the exact gradient', 'norm ratio to the exact gradient']
    """
    if not isinstance(alignments, Mapping):
        raise TypeError(f"alignments: expected {{rule: Alignment}}, got {type(alignments).__name__}.")
    for rule, found in alignments.items():
        if not isinstance(found, Alignment):
            got = type(found).__name__
            raise TypeError(f"alignments[{rule!r}]: expected what `gradient_alignment` returns, got {got}.")
    kinds = {(a.names, str(a.steps.tolist())) for a in alignments.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"alignments: expected one set of leaves and stretches of time, got {len(kinds)}. Draw one model."
        )
    names, steps, *_ = next(iter(alignments.values()))
    ratios = np.clip([a.norm_ratio for a in alignments.values()], RATIO_TICKS[0], RATIO_TICKS[-1])
    least, most = min(0.3, ratios.min()), max(3, ratios.max())
    heights = [0.8 + len(names) * max(0.24, 0.085 * len(alignments))] + [2.2] * (len(steps) > 1)
    figure = new_figure(DOUBLE, sum(heights) + 0.3)
    panels = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
    figure.suptitle(title, fontsize=LARGE)
    for number, (rule, found) in enumerate(alignments.items()):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4, "alpha": 0.9, "label": rule}
        # Rules that agree lie beside one another.
        rows = np.arange(len(names)) + 0.8 * ((number + 0.5) / len(alignments) - 0.5)
        for column, values in zip(panels.T, (found.cosine, ratios[number]), strict=True):
            column[0].plot(values[-1], rows, ls="", **style)
            if len(steps) > 1:
                column[1].plot(steps[:-1].mean(axis=1) - 0.5, values[:-1, -1], lw=1.1, **style)
    for axes in panels[0]:
        axes.set(yticks=range(len(names)), yticklabels=[], ylim=(len(names) - 0.5, -0.5))
        axes.hlines(np.arange(1, len(names)) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), color="#cccccc", lw=0.5)
    panels[0, 0].set_yticklabels([" ".join(w for w in re.findall(r"\w+", n) if w != "value") for n in names])
    for row, along in zip(panels, "xy"):
        for axes, label in zip(
            row, ("cosine with the exact gradient", "norm ratio to the exact gradient"), strict=True
        ):
            axes.set(**{f"{along}label": label})
            (axes.axvline if along == "x" else axes.axhline)(1, color=FAINT, ls=":", lw=0.8, zorder=0)
            axes.set_title("each leaf, over the whole time" if along == "x" else "all leaves, as time goes on")
            styled(axes)
        ticks = [t for t in RATIO_TICKS if least <= t <= most]
        row[1].set(**{f"{along}scale": "log", f"{along}lim": (0.85 * least, most / 0.85)})
        row[1].set(**{f"{along}ticks": ticks, f"{along}ticklabels": [f"{t:g}" for t in ticks]})
        (row[1].xaxis if along == "x" else row[1].yaxis).set_minor_locator(NullLocator())
    for axes in panels[0]:
        axes.tick_params(axis="y", length=0)
    for axes in panels[1:].flat:
        axes.set(xlabel="time (steps)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=SMALL)
    return figure
