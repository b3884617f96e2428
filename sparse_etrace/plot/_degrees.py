"""How many synapses units have."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .._graph.graph import Graph
from .checks import graph_weight
from .style import DASHES, PALETTE, SINGLE, legend, nothing, panel

MOST_BINS, HEAVY = 40, 8


def degrees(graph: Graph, log: bool | None = None, ax: Axes | None = None) -> Figure:
    """Draw the distributions of in-degree and out-degree: how many synapses end, and start, at a unit.

    On linear axes a histogram. On logarithmic ones `P(degree >= k)`, the share of units with at least `k` synapses,
    which shows a heavy tail without bins; units without a synapse are in the share but have no place on the axis.

    Args:
        graph: the graph; in a rectangular one receivers have in-degrees, senders out-degrees.
        log: whether both axes are logarithmic; where the largest degree is above 8 times the mean unless given.
        ax: panel to draw into; a new figure unless given.

    Returns:
        The figure, 3.5 inches wide if it is new.

    Raises:
        TypeError: `graph` is no graph, or `ax` no panel.

    Example:
        >>> import sparse_etrace as se
        >>> se.plot.degrees(se.datasets.worm()).axes[0].get_xlabel()
        'degree k (synapses per unit)'
    """
    graph_weight(graph)
    conn = graph.connectivity
    counts = {
        "in": np.diff(np.asarray(conn.post_ptr)),
        "out": np.bincount(np.asarray(conn.pre), minlength=conn.num_pre),
    }
    figure, axes = panel(ax, SINGLE, 2.4)
    axes.set(xlabel="degree k (synapses per unit)", ylabel="units")
    if conn.num_synapses == 0:
        nothing(axes, "no synapses")
        return figure
    most = max(int(count.max()) for count in counts.values())
    if log is None:
        log = any(count.max() > HEAVY * count.mean() for count in counts.values())
    width = -(-(most + 1) // MOST_BINS)
    edges = np.arange(0, most + width + 1, width) - 0.5
    for (which, count), colour, dashes in zip(counts.items(), PALETTE, DASHES):
        style: dict[str, Any] = {"color": colour, "ls": dashes, "lw": 1.3}
        style["label"] = f"{which}-degree: mean {count.mean():.3g}, most {count.max():,}"
        if log:
            values, first = np.unique(np.sort(count), return_index=True)
            axes.step(values, 1 - first / count.size, where="pre", **style)
        else:
            axes.stairs(np.histogram(count, edges)[0], edges, **style)
    if log:
        axes.set(xscale="log", yscale="log", xlim=(0.9, 1.1 * most + 1), ylabel="share of units with ≥ k")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axis.set_minor_formatter(NullFormatter())
    else:
        axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend(axes, columns=1)
    return figure
