"""What learning changed, on the graph."""

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .._graph.graph import Graph
from .checks import graph_weight, numbers, per_node
from .style import (
    AMOUNT,
    DOUBLE,
    FAINT,
    NEGATIVE,
    POSITIVE,
    SINGLE,
    ZERO,
    colourbar,
    legend,
    new_figure,
    nothing,
    styled,
)

MOST_NODES, MOST_LINES, MOST_DOTS, BINS = 300, 5_000, 50_000, 120


def weight_change(
    graph: Graph,
    before: ArrayLike,
    after: ArrayLike,
    positions: tuple[str, str] | ArrayLike | None = None,
    strongest: int = 30,
) -> Figure:
    """Draw how weights changed: the strongest changes as arrows on the graph, and all weights before and after.

    The arrows lead from sender to receiver, the wider the larger the change; a ring is a synapse of a unit on itself.
    More than 50,000 synapses are counted in squares instead of drawn as dots.

    Args:
        graph: the graph.
        before, after: weights, `(num_synapses,)`.
        positions: where the nodes are: two names of node attributes, as `("x_um", "z_um")`, or an array
            `(num_nodes, 2)`. Unless given, a spring layout of graphs of up to 300 nodes; larger ones are not drawn.
        strongest: how many changes are drawn as arrows.

    Returns:
        The figure: 7 inches wide with two panels, 3.5 inches with one if the graph is not drawn.

    Raises:
        TypeError: `graph` is no graph, or weights or positions are no real numbers.
        ValueError: a shape does not fit, a number is not finite, a name is unknown, or `strongest` is negative.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.datasets.worm()
        >>> drawing, weights = se.plot.weight_change(graph, graph.weight, 1.1 * graph.weight, ("x_um", "z_um")).axes
        >>> drawing.get_xlabel(), weights.get_xlabel()
        ('x (µm)', 'weight before (a.u.)')
    """
    old, new = (graph_weight(graph, w, name) for w, name in ((before, "before"), (after, "after")))
    if strongest < 0:
        raise ValueError(f"strongest: expected 0 or more arrows, got {strongest}.")
    if positions is None and len(graph.nodes) > MOST_NODES:
        figure = new_figure(SINGLE, 3.0)
        panels = [styled(figure.subplots())]
    else:
        places, labels = _places(graph, positions)
        figure = new_figure(DOUBLE, 3.3)
        panels = [styled(axes) for axes in figure.subplots(1, 2, width_ratios=(1.15, 1))]
        _drawing(panels[0], graph, new - old, places, labels, strongest)
    _scatter(panels[-1], old, new)
    return figure


def _places(graph: Graph, positions: tuple[str, str] | ArrayLike | None) -> tuple[np.ndarray, tuple[str, str] | None]:
    """Where each node is, `(num_nodes, 2)`, and names of the axes where they mean something."""
    if positions is None:
        conn, count = graph.connectivity, len(graph.nodes)
        drawn = nx.empty_graph(count)
        post = np.asarray(conn.post) + (count - conn.num_post)
        drawn.add_edges_from(zip(np.asarray(conn.pre).tolist(), post.tolist(), strict=True))
        layout = nx.spring_layout(drawn, seed=0, method="force")
        return np.array([layout[k] for k in range(count)]).reshape(count, 2), None
    if isinstance(positions, tuple | list) and len(positions) == 2 and all(isinstance(p, str) for p in positions):
        columns = [numbers("positions", per_node("positions", p, graph), ("num_nodes",)) for p in positions]
        unit = ["{} (µm)".format(p.removesuffix("_um")) if p.endswith("_um") else p for p in positions]
        return np.stack(columns, axis=1), (unit[0], unit[1])
    return numbers("positions", positions, (len(graph.nodes), 2)), ("position 1", "position 2")


def _drawing(
    axes: Axes, graph: Graph, change: np.ndarray, places: np.ndarray, labels: tuple[str, str] | None, strongest: int
) -> None:
    conn = graph.connectivity
    pre, post = np.asarray(conn.pre), np.asarray(conn.post) + (len(graph.nodes) - conn.num_post)
    if labels is None:
        axes.set(xticks=[], yticks=[], xlabel="spring layout (no unit)")
        axes.spines[:].set_visible(False)
    else:
        axes.set(xlabel=labels[0], ylabel=labels[1])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
    if not len(places):
        nothing(axes, "no units")
        return
    if len(change) <= MOST_LINES:
        lines = np.stack([places[pre], places[post]], axis=1)
        axes.add_collection(LineCollection(list(lines), colors=FAINT, lw=0.25, alpha=0.35, zorder=1, rasterized=True))
    axes.scatter(
        places[:, 0], places[:, 1], s=float(np.clip(600 / len(places), 2, 14)), c=ZERO, lw=0, zorder=2, rasterized=True
    )
    chosen = np.argsort(-np.abs(change), kind="stable")[:strongest]
    chosen = chosen[change[chosen] != 0][::-1]
    most = np.abs(change).max(initial=0)
    for s in chosen:
        colour, width = (POSITIVE if change[s] > 0 else NEGATIVE), 0.5 + 1.5 * abs(change[s]) / most
        ends = places[pre[s]], places[post[s]]
        if np.array_equal(*ends):
            axes.scatter(ends[0][0], ends[0][1], s=45, fc="none", ec=colour, lw=width, zorder=3)
            continue
        axes.add_patch(
            FancyArrowPatch(
                *ends, arrowstyle="-|>", connectionstyle="arc3,rad=0.12", mutation_scale=4 + 2 * width, shrinkA=1,
                shrinkB=1.5,
                color=colour, lw=width, ls="-" if change[s] > 0 else (0, (4, 1)), zorder=3,
            )
        )  # fmt: skip
    extent = np.ptp(places, axis=0)
    if extent.max() < 3 * extent.min():
        axes.set_aspect("equal", adjustable="datalim")
    handles = []
    for colour, word, dashes, up in ((POSITIVE, "rose", "-", True), (NEGATIVE, "fell", (0, (4, 1)), False)):
        if count := np.count_nonzero((change[chosen] > 0) == up):
            handles.append(Line2D([], [], color=colour, ls=dashes, lw=1.5, label=f"{word} most ({count})"))
    legend(axes, handles, len(handles))


def _scatter(axes: Axes, old: np.ndarray, new: np.ndarray) -> None:
    axes.set(xlabel="weight before (a.u.)", ylabel="weight after (a.u.)")
    if not len(old):
        nothing(axes, "no synapses")
        return
    both = np.concatenate([old, new])
    low, high = float(both.min()), float(both.max())
    margin = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    limits = (low - margin, high + margin)
    axes.set(xlim=limits, ylim=limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    if len(old) > MOST_DOTS:
        counts, *_ = np.histogram2d(old, new, BINS, (limits, limits))
        image = axes.imshow(
            np.ma.masked_equal(counts.T, 0), origin="lower", extent=(*limits, *limits), cmap=AMOUNT, aspect="auto",
            norm=LogNorm(1, max(counts.max(), 2)), interpolation="nearest",
        )  # fmt: skip
        colourbar(image, axes, "synapses")
    else:
        handles = []
        for sign, colour, word, marker in (
            (1, POSITIVE, "rose", "^"),
            (-1, NEGATIVE, "fell", "v"),
            (0, ZERO, "same", "o"),
        ):
            chosen = np.sign(new - old) == sign
            if count := np.count_nonzero(chosen):
                axes.scatter(
                    old[chosen], new[chosen], s=float(np.clip(6000 / len(old), 3, 12)), c=colour, marker=marker, lw=0,
                    alpha=0.7, rasterized=True, label=f"{word} ({count:,})",
                )  # fmt: skip
                handles.append(Line2D([], [], ls="", marker=marker, ms=3.5, color=colour, label=f"{word} ({count:,})"))
        legend(axes, handles, len(handles))
    axes.axline((0, 0), slope=1, color=FAINT, lw=0.7, ls="--", zorder=0.5)
