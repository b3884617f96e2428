"""States and eligibility traces in time."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from .._graph.graph import Graph
from .checks import graph_weight, numbers
from .style import ABOUT_ZERO, AMOUNT, DASHES, PALETTE, SINGLE, colourbar, legend, nothing, panel, times

MOST_LINES, FEW = 8, 5


def states(
    values: ArrayLike,
    units: ArrayLike | None = None,
    names: Sequence | None = None,
    dt: float | None = None,
    label: str = "state (a.u.)",
    ax: Axes | None = None,
) -> Figure:
    """Draw states in time: a line for each of up to 8 units, an image of more.

    Args:
        values: `(time, units)`.
        units: positions of the units to draw; all unless given.
        names: name of each unit of `values`, as `graph.post_nodes`; its position unless given.
        dt: length of a step in ms; time is in steps unless given.
        label: what the values are, with their unit.
        ax: panel to draw into; a new figure unless given.

    Returns:
        The figure, 3.5 inches wide if it is new.

    Raises:
        TypeError: values are no real numbers, or `ax` is no panel.
        ValueError: a shape does not fit, a value is not finite, a position is out of range, or `dt` is not positive.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> figure = se.plot.states(np.ones((50, 3)), names=["a", "b", "c"], dt=0.5, label="potential (mV)")
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('time (ms)', 'potential (mV)')
    """
    array = numbers("values", values, ("time", "units"))
    count = array.shape[1]
    if names is not None and len(names) != count:
        raise ValueError(f"names: expected one for each of {count} units, got {len(names)}.")
    chosen = np.arange(count) if units is None else _positions("units", units, count)
    labels = [f"unit {k}" if names is None else str(names[k]) for k in chosen.tolist()]
    return _draw(array[:, chosen], labels, times(len(array), dt), label, "unit", units is not None, ax)


def traces(
    values: ArrayLike,
    graph: Graph,
    synapses: ArrayLike | None = None,
    dt: float | None = None,
    label: str = "eligibility trace (a.u.)",
    ax: Axes | None = None,
) -> Figure:
    """Draw eligibility traces in time, each named by its synapse, `pre to post`: up to 8 as lines, more as an image.

    Args:
        values: traces of one hidden variable, `(time, num_synapses)`, in the graph's order.
        graph: the graph of the synapses.
        synapses: positions of the synapses to draw; five strong ones that are unlike one another unless given.
        dt: length of a step in ms; time is in steps unless given.
        label: what the values are, with their unit.
        ax: panel to draw into; a new figure unless given.

    Returns:
        The figure, 3.5 inches wide if it is new.

    Raises:
        TypeError: `graph` is no graph, values are no real numbers, or `ax` is no panel.
        ValueError: a shape does not fit, a value is not finite, a position is out of range, or `dt` is not positive.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> graph = se.from_edges(["a", "b"], ["b", "c"], labels=["a", "b", "c"])
        >>> figure = se.plot.traces(np.ones((50, 2)), graph)
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['a to b', 'b to c']
    """
    graph_weight(graph)
    conn = graph.connectivity
    array = numbers("values", values, ("time", conn.num_synapses))
    chosen = _unlike(array) if synapses is None else _positions("synapses", synapses, conn.num_synapses)
    ends = np.asarray(conn.pre)[chosen], np.asarray(conn.post)[chosen]
    names = [f"{graph.pre_nodes[i]} to {graph.post_nodes[j]}" for i, j in zip(*ends, strict=True)]
    return _draw(array[:, chosen], names, times(len(array), dt), label, "synapse", True, ax)


def _positions(name: str, positions: ArrayLike, count: int) -> np.ndarray:
    array = np.asarray(positions)
    if array.ndim != 1 or not (array.size == 0 or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{name}: expected positions, whole numbers in one row, got {array.dtype} {array.shape}.")
    if array.size and not 0 <= array.min() <= array.max() < count:
        raise ValueError(f"{name}: expected positions from 0 to {count - 1}, got {array.min()} to {array.max()}.")
    return array.astype(np.int64)


def _unlike(values: np.ndarray) -> np.ndarray:
    """Of the strongest third first the strongest, and then each time the one least like those before, in shape."""
    strength = np.abs(values).max(axis=0, initial=0)
    if len(strength) <= FEW:
        return np.arange(len(strength))
    strongest = np.argsort(-strength, kind="stable")[: min(max(len(strength) // 3, FEW), 10_000)]
    shapes = values[:, strongest] / np.maximum(strength[strongest], np.finfo(np.float32).tiny)
    chosen, distance = [0], np.full(len(strongest), np.inf)
    while len(chosen) < FEW:
        distance = np.minimum(distance, np.abs(shapes - shapes[:, chosen[-1:]]).mean(axis=0))
        distance[chosen] = -1
        chosen.append(int(np.argmax(distance)))
    return strongest[chosen]


def _draw(
    values: np.ndarray,
    names: list[str],
    time: tuple[np.ndarray, str],
    label: str,
    what: str,
    some: bool,
    ax: Axes | None,
) -> Figure:
    at, when = time
    figure, axes = panel(ax, SINGLE, 2.4)
    axes.set(xlabel=when, ylabel=label)
    if not values.size:
        nothing(axes, f"no {what}s" if not values.shape[1] else "no steps")
    elif len(names) <= MOST_LINES:
        for number, (name, line) in enumerate(zip(names, values.T, strict=True)):
            axes.plot(at, line, color=PALETTE[number], ls=DASHES[number % len(DASHES)], lw=1.1, label=name)
        axes.margins(x=0.02)
        legend(axes)
    else:
        _image(axes, values, at, label)
        axes.set_ylabel(f"{what} (as chosen)" if some else what)
    return figure


def _image(axes: Axes, values: np.ndarray, at: np.ndarray, label: str) -> None:
    low, high = (float(q) for q in np.quantile(values.ravel()[:: -(-values.size // 1_000_000)], (0.001, 0.999)))
    signed = low < 0 < high
    if signed:
        low, high = -max(-low, high), max(-low, high)
    clipped = values.min() < low, values.max() > high
    half = (at[1] - at[0]) / 2 if len(at) > 1 else 0.5
    image = axes.imshow(
        values.T, aspect="auto", cmap=ABOUT_ZERO if signed else AMOUNT, norm=Normalize(low, high),
        extent=(at[0] - half, at[-1] + half, values.shape[1] - 0.5, -0.5), interpolation="auto",
    )  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[clipped]
    colourbar(image, axes, label, extend=extend)
