"""What the demo of the worm found."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .._graph.graph import Graph
from .style import ABOUT_ZERO

COLOURS = {
    "readout only": "#999999", "ES-D-RTRL": "#E69F00", "D-RTRL": "#0072B2", "SnAp-2": "#009E73", "RTRL": "#D55E00",
    "BPTT": "#000000",
}  # fmt: skip


def worm(
    results: dict[str, Any],
    graph: Graph,
    before: np.ndarray,
    after: np.ndarray,
    pixels: np.ndarray,
    traces: np.ndarray,
) -> Figure:
    """Draw what the worm demo found: learning curves, memory, the connectome with its weights, some traces.

    Args:
        results: the numbers of the demo.
        graph: the connectome.
        before, after: weights of its synapses, `(num_synapses,)`.
        pixels: one input sequence, `(steps,)`.
        traces: eligibility traces during that sequence, `(steps, num_synapses)`.
    """
    figure = Figure(figsize=(12, 9), dpi=120, layout="constrained")
    ((curves, memory), (wiring, traced)) = figure.subplots(2, 2)
    figure.suptitle(
        f"The {results['neurons']} neurons and {results['synapses']:,} chemical synapses of C. elegans learn MNIST-1D "
        "pixel by pixel"
    )
    _curves(curves, results)
    _memory(memory, results)
    _wiring(wiring, graph, before, after)
    _traces(traced, graph, pixels, traces)
    return figure


def _curves(axes: Any, results: dict[str, Any]) -> None:
    for name in (name for name in COLOURS if name in results):
        colour = COLOURS[name]
        updates, accuracy = np.array(results[name]["curve"]).T
        label = f"{name}: {100 * results[name]['test_accuracy']:.1f} % on the test set"
        axes.plot(updates, 100 * accuracy, color=colour, label=label, lw=2)
    axes.axhline(10, color="grey", ls=":", lw=1)
    axes.annotate("chance", (0, 10), xytext=(2, 3), textcoords="offset points", color="grey")
    axes.set(xlabel="updates (batches of 50 sequences)", ylabel="accuracy on held-out sequences (%)", ylim=(0, 145))
    axes.set_yticks(range(0, 101, 20))
    axes.set_title("Learning")
    axes.legend(loc="upper left", frameon=False)


def _memory(axes: Any, results: dict[str, Any]) -> None:
    used = results["memory"]
    steps, bptt = [int(s) for s in used["bptt_total_bytes"]], [b / 1e6 for b in used["bptt_total_bytes"].values()]
    axes.plot(steps, bptt, "o-", color=COLOURS["BPTT"], label=f"BPTT: {bptt[-1]:,.0f} MB at {steps[-1]:,} steps")
    for name, size in used["total_bytes"].items():
        axes.plot(
            steps, [size / 1e6] * len(steps), "o-", color=COLOURS[name], label=f"{name}: {size / 1e6:.2f} MB always"
        )
    axes.set(xscale="log", yscale="log", xlabel="steps in a sequence", ylabel="memory for one sequence (MB)")
    axes.set_title("Memory: all buffers of one gradient, batch 1")
    axes.legend(frameon=False)


def _wiring(axes: Any, graph: Graph, before: np.ndarray, after: np.ndarray) -> None:
    roles = np.asarray(graph.node_attrs["role"])
    kinds = ["sensory", "interneuron", "motor"]
    rank = np.array([next((k for k, kind in enumerate(kinds) if kind in role), len(kinds)) for role in roles])
    order = np.argsort(rank, kind="stable")
    place = np.argsort(order)
    conn = graph.connectivity
    change = np.abs(after - before)
    limit = np.quantile(np.abs(after), 0.98)
    drawn = axes.scatter(
        place[np.asarray(conn.post)], place[np.asarray(conn.pre)], c=after, s=3 + 25 * change / change.max(),
        cmap=ABOUT_ZERO, vmin=-limit, vmax=limit, linewidths=0.3, edgecolors="#999999",
    )  # fmt: skip
    ends = np.cumsum(np.bincount(rank))
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="grey", lw=0.5)
        axes.axvline(end - 0.5, color="grey", lw=0.5)
    names = [*kinds, "other"][: len(ends)]
    middle = (np.concatenate([[0], ends[:-1]]) + ends) / 2
    axes.set_xticks(middle, names)
    axes.set_yticks(middle, names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set(xlabel="receiving neuron", ylabel="sending neuron", xlim=(-1, len(roles)), ylim=(len(roles), -1))
    axes.set_title("Every synapse after D-RTRL (large dot: changed most)")
    axes.figure.colorbar(drawn, ax=axes, label="weight (red excites, blue inhibits)", extend="both")


def _traces(axes: Any, graph: Graph, pixels: np.ndarray, traces: np.ndarray) -> None:
    conn, names = graph.connectivity, graph.nodes
    strength = np.abs(traces).max(axis=0)
    shapes = traces / np.maximum(strength, 1e-12)
    chosen = _unlike(shapes, np.argsort(-strength)[: len(strength) // 3], 5)
    for s, colour in zip(chosen, ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"], strict=False):
        label = f"{names[int(conn.pre[s])]} to {names[int(conn.post[s])]}"
        axes.plot(shapes[:, s], color=colour, label=label)
    scaled = pixels / np.abs(pixels).max()
    axes.step(np.arange(len(pixels)), scaled, color="grey", lw=1, ls="--", where="mid", label="input pixel")
    axes.set(xlabel="time (steps)", ylabel="eligibility trace (of its maximum)", ylim=(-1.1, 1.65))
    axes.set_title("What five synapses remember of one sequence")
    axes.legend(frameon=False, fontsize="small", ncols=2)


def _unlike(shapes: np.ndarray, candidates: np.ndarray, count: int) -> list[int]:
    """The first candidate, and then each time the one that is least like those already chosen."""
    chosen = [int(candidates[0])]
    while len(chosen) < count:
        distance = np.abs(shapes[:, candidates, None] - shapes[:, None, chosen]).mean(axis=0).min(axis=-1)
        chosen.append(int(candidates[np.argmax(distance)]))
    return chosen
