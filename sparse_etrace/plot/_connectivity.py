"""The matrix of a graph: a dot for each synapse, or how dense its blocks are."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .._graph.graph import Graph
from .checks import graph_weight, per_node
from .style import (
    AMOUNT,
    FAINT,
    NEGATIVE,
    POSITIVE,
    SHARE,
    SINGLE,
    ZERO,
    colourbar,
    group_numbers,
    legend,
    nothing,
    panel,
    styled,
    with_room,
)

MOST_DOTS, BINS = 50_000, 240
SIGNS = ((1, POSITIVE, "positive"), (-1, NEGATIVE, "negative"), (0, ZERO, "zero"))


def connectivity(
    graph: Graph,
    weight: ArrayLike | None = None,
    group: str | ArrayLike | None = None,
    order: str | ArrayLike = "degree",
    ax: Axes | None = None,
) -> Figure:
    """Draw the matrix of a graph: senders downwards, receivers to the right, the sign of each weight as its colour.

    Up to 50,000 synapses are dots. More are counted in 240 x 240 blocks: the more synapses for its pairs the
    darker a block, and its hue says how many of its synapses are positive.

    Args:
        graph: the graph, square or not.
        weight: weights instead of the graph's own, `(num_synapses,)`; only their sign is drawn.
        group: name of a node attribute, or an array with an entry per node. Groups lie together, in the order of their
            first nodes; borders are drawn, and names where there is room for them.
        order: `"degree"`, by falling number of synapses (within groups); `"given"`; or an array of all node positions.
        ax: panel to draw into; a new figure unless given.

    Returns:
        The figure, 3.5 inches wide if it is new.

    Raises:
        TypeError: `graph` is no graph, `ax` no panel, `weight` no numbers, or `group` neither text nor numbers.
        ValueError: an argument does not fit the graph.

    Example:
        >>> import sparse_etrace as se
        >>> figure = se.plot.connectivity(se.datasets.worm(), group="role")
        >>> figure.axes[0].get_xlabel()
        'receiving neuron (post)'
    """
    sign = np.sign(graph_weight(graph, weight)).astype(np.int8)
    conn = graph.connectivity
    pre, post = np.asarray(conn.pre), np.asarray(conn.post)
    degree = [np.bincount(ends, minlength=size) for ends, size in zip((pre, post), conn.shape, strict=True)]
    square = conn.num_pre == conn.num_post
    places, bands = _arrange(graph, degree[0] + degree[1] if square else np.concatenate(degree), group, order, square)
    sizes = conn.shape
    figure, axes = panel(ax, SINGLE, 2.85 if len(sign) > MOST_DOTS else 3.4)
    axes.set(xlabel="receiving neuron (post)", ylabel="sending neuron (pre)")
    axes.set(xlim=(-0.5, max(sizes[1], 1) - 0.5), ylim=(max(sizes[0], 1) - 0.5, -0.5))
    axes.spines[:].set(visible=True, linewidth=0.6)
    if not len(sign):
        nothing(axes, "no synapses")
    elif len(sign) > MOST_DOTS:
        _blocks(axes, places[0][pre], places[1][post], sign > 0, bool(np.any(sign < 0)), sizes)
    else:
        _dots(axes, places[0][pre], places[1][post], sign, max(sizes))
    _bands(axes, bands)
    if ax is None:
        # The key is as wide as the panel says, and the panel as the key leaves it: twice round is enough.
        figure.draw_without_rendering()
    return figure


def _arrange(
    graph: Graph, degree: np.ndarray, group: str | ArrayLike | None, order: str | ArrayLike, square: bool
) -> tuple[list, list | None]:
    """The place of each sender and of each receiver, and names and sizes of the groups of both."""
    count = len(graph.nodes)
    if isinstance(order, str):
        if order not in ("degree", "given"):
            raise ValueError(f"order: expected 'degree', 'given' or an array of all node positions, got {order!r}.")
        sequence, key = np.arange(count), -degree if order == "degree" else np.zeros(count)
    else:
        sequence, key = np.asarray(order), np.zeros(count)
        if sequence.shape != (count,) or not np.array_equal(np.sort(sequence), np.arange(count)):
            raise ValueError(
                f"order: expected each of the node positions 0 to {count - 1} once, got other "
                f"numbers, of shape {sequence.shape}."
            )
    number, names = np.zeros(count, np.int64), None
    if group is not None:
        values = per_node("group", group, graph)
        if values.ndim != 1:
            raise ValueError(f"group: expected one entry per node, {count}, got shape {values.shape}.")
        names, number = group_numbers(values, sequence)
    along = sequence[np.lexsort((key[sequence], number[sequence]))]
    num_pre, num_post = graph.connectivity.shape
    sides = [along, along] if square else [along[along < num_pre], along[along >= num_pre] - num_pre]
    places = []
    for side in sides:
        place = np.empty(side.size, np.int32)
        place[side] = np.arange(side.size, dtype=np.int32)
        places.append(place)
    if names is None:
        return places, None
    numbers = [number, number] if square else [number[:num_pre], number[num_pre:]]
    return places, [(names, np.bincount(side, minlength=len(names))) for side in numbers]


def _dots(axes: Axes, rows: np.ndarray, columns: np.ndarray, sign: np.ndarray, size: int) -> None:
    area = float(np.clip(230 / size, 0.75, 5)) ** 2
    handles = []
    for which, colour, word in SIGNS:
        chosen = sign == which
        if count := np.count_nonzero(chosen):
            label = f"{word} ({count:,})"
            axes.scatter(columns[chosen], rows[chosen], s=area, c=colour, linewidths=0, label=label, rasterized=True)
            handles.append(Line2D([], [], ls="", marker="o", ms=3.5, color=colour, label=label))
    legend(axes, handles, len(handles))


def _blocks(
    axes: Axes, rows: np.ndarray, columns: np.ndarray, positive: np.ndarray, signed: bool, sizes: tuple[int, int]
) -> None:
    bins = [min(BINS, size) for size in sizes]
    edges = [np.arange(n + 1) * size // n for n, size in zip(bins, sizes, strict=True)]
    # The block of each place, from the edges, so that each block knows how many pairs it has.
    of_row, of_column = (np.repeat(np.arange(n, dtype=np.int32), np.diff(e)) for n, e in zip(bins, edges, strict=True))
    cell = of_row[rows] * np.int32(bins[1]) + of_column[columns]
    count = np.bincount(cell, minlength=bins[0] * bins[1]).reshape(bins)
    share = np.bincount(cell[positive], minlength=bins[0] * bins[1]).reshape(bins) / np.maximum(count, 1)
    density = 100 * count / np.outer(*map(np.diff, edges))
    least, most = (float(q) for q in np.quantile(density[count > 0], (0.02, 0.998)))
    limits = least, max(most, 1.01 * least)
    norm = LogNorm(limits[0], limits[1], clip=True)
    extent = (-0.5, sizes[1] - 0.5, sizes[0] - 0.5, -0.5)
    options: dict[str, Any] = {"extent": extent, "aspect": "auto", "interpolation": "nearest"}
    if not signed:
        image = axes.imshow(np.ma.masked_equal(density, 0), cmap=AMOUNT, norm=norm, **options)
        colourbar(image, axes, "synapses per 100 pairs")
        return
    depth = np.where(count > 0, 0.15 + 0.85 * np.asarray(norm(np.where(count > 0, density, 1.0))), 0)
    axes.imshow(_mixed(share, depth), **options)
    _key(axes, limits)


def _mixed(share: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The hue of each share, from white to full."""
    return 1 - depth[..., None] * (1 - SHARE(share)[..., :3])


def _key(axes: Axes, limits: tuple[float, float]) -> None:
    """What hue and depth mean, beside the panel."""
    key = styled(axes.inset_axes((1.1, 0.15, 0.16, 0.7)))
    share, depth = np.meshgrid((np.arange(32) + 0.5) / 32, (np.arange(64) + 0.5) / 64)
    key.pcolormesh(
        np.linspace(0, 100, 33), np.geomspace(*limits, 65), _mixed(share, 0.15 + 0.85 * depth),
        rasterized=True,
    )  # fmt: skip
    key.set(yscale="log", xlabel="positive (%)", xticks=(0, 100))
    key.set_ylabel("synapses per 100 pairs", labelpad=1)
    key.yaxis.tick_right()
    key.yaxis.set_label_position("right")
    key.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    key.spines[["left", "bottom"]].set_visible(False)


def _bands(axes: Axes, bands: list | None) -> None:
    """Borders and names of the groups, or how many units there are."""
    for side, axis, lines in ((1, axes.xaxis, axes.axvline), (0, axes.yaxis, axes.axhline)):
        if bands is None:
            axis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            continue
        names, sizes = bands[side]
        for end in np.cumsum(sizes)[:-1][sizes[:-1] > 0]:
            lines(end - 0.5, color=FAINT, lw=0.5 if len(names) <= 20 else 0.2, zorder=0.5)
        # What the layout leaves of the panel.
        length = 0.8 * 72 * min(axes.bbox.width, axes.bbox.height) / axes.figure.dpi
        kept = with_room(sizes, length)
        axis.set_ticks((np.cumsum(sizes) - sizes / 2)[kept] - 0.5, [names[k] for k in kept])
        axis.set_tick_params(length=0)
    if bands is not None:
        for label in axes.get_xticklabels():
            label.set(rotation=90)
