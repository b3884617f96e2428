"""What all figures share: colours, sizes at paper, panels, legends, and the checks of what is drawn."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

# Okabe and Ito's colours, apart also for the colour-blind; a marker and dashes of its own tell each curve besides.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
MARKERS = "osD^vP*X<>hd"
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
POSITIVE, NEGATIVE, ZERO, FAINT = "#D55E00", "#0072B2", "#000000", "#999999"
# Amounts, light to dark; and values about zero, as dark in grey as they are far from it.
AMOUNT, ABOUT_ZERO = matplotlib.colormaps["viridis_r"], matplotlib.colormaps["RdBu_r"]
# Share of positive ones, as dark in the middle as at its ends.
SHARE = LinearSegmentedColormap.from_list("share", [NEGATIVE, "#8B4A80", POSITIVE])
# Widths of one and of two columns (inches), and sizes of text (points).
SINGLE, DOUBLE = 3.5, 7.0
SMALL, LARGE = 7, 8


def new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know, at the resolution of print."""
    return Figure(figsize=(width, height), dpi=300, layout="constrained")


def panel(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    """A new figure with one panel, or the given one."""
    if ax is None:
        figure = new_figure(width, height)
        return figure, styled(figure.subplots())
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected a matplotlib Axes, got {type(ax).__name__}. `figure.subplots()` makes one.")
    return ax.figure.figure, styled(ax)


def styled(axes: Axes) -> Axes:
    """Text that is legible at paper size, and no frame where there is no axis."""
    axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)
    axes.title.set_fontsize(LARGE)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(LARGE)
    for line in (axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
        line.set_fontsize(SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)
    return axes


def legend(axes: Axes, handles: Sequence[Artist] | None = None, columns: int = 0, title: str = "") -> None:
    """A legend above the panel, where it hides nothing, in as many columns as its width has room for."""
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    if not handles:
        return
    longest = max(len(str(handle.get_label())) for handle in handles)
    room = 72 * axes.bbox.width / axes.figure.dpi
    columns = columns or max(1, min(len(handles), int(room // (0.56 * SMALL * longest + 4 * SMALL))))
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=SMALL, frameon=False,
        borderaxespad=0.3, borderpad=0.2, handlelength=2.2, columnspacing=1.2, handletextpad=0.5,
        title=title or None, title_fontsize=SMALL, alignment="left",
    )  # fmt: skip


def colourbar(drawn: ScalarMappable, axes: Axes, label: str, **options: Any) -> None:
    """The key of an image beside its panel."""
    bar = axes.figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0.05, 0.04, 0.9)), **options)
    bar.set_label(label, fontsize=LARGE)
    bar.ax.tick_params(labelsize=SMALL, width=0.6, length=2.5)
    bar.outline.set_linewidth(0.6)


def nothing(axes: Axes, words: str) -> None:
    """Say why a panel is empty."""
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=SMALL, color="#555555")


def group_numbers(group: np.ndarray, order: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of groups by their first member along `order`, and for each unit the number of its group."""
    try:
        names, first, number = np.unique(group[order], return_index=True, return_inverse=True)
    except TypeError as error:
        raise TypeError(f"group: expected text or numbers of one kind, got others ({error}).") from error
    rank = np.argsort(np.argsort(first))
    result = np.empty(group.size, np.int64)
    result[order] = rank[number]
    return [str(name) for name in names[np.argsort(first)]], result


def with_room(sizes: np.ndarray, points: float) -> np.ndarray:
    """Which of adjoining bands on an axis of that length have room for a name in their middle; the largest first."""
    middle = (np.cumsum(sizes) - sizes / 2) * points / max(sizes.sum(), 1)
    kept: list[int] = []
    for k in np.argsort(-sizes, kind="stable"):
        if sizes[k] and all(abs(middle[k] - middle[other]) > 1.35 * SMALL for other in kept):
            kept.append(int(k))
    return np.sort(np.array(kept, int))


def times(steps: int, dt: float | None) -> tuple[np.ndarray, str]:
    """Time of each step, and the label of its axis."""
    if dt is None:
        return np.arange(steps), "time (steps)"
    if not (np.ndim(dt) == 0 and np.isfinite(dt) and dt > 0):
        raise ValueError(
            f"dt: expected the length of a step in ms, positive and finite, or None for steps, got {dt!r}."
        )
    return np.arange(steps) * float(dt), "time (ms)"
