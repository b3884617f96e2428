"""Figures."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ._alignment import Alignment
from ._graph import Graph

COLOURS = {
    "readout only": "#999999", "ES-D-RTRL": "#E69F00", "D-RTRL": "#0072B2", "SnAp-2": "#009E73", "RTRL": "#D55E00",
    "BPTT": "#000000",
}  # fmt: skip

# Okabe and Ito's colours, apart also for the colour-blind; a marker of its own tells each rule besides.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
MARKERS = "osD^vP*X<>hd"
RATIO_TICKS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


def worm_figure(
    path: Path,
    results: dict[str, Any],
    graph: Graph,
    before: np.ndarray,
    after: np.ndarray,
    pixels: np.ndarray,
    traces: np.ndarray,
) -> None:
    """Draw what the worm demo found: learning curves, memory, the connectome with its weights, some traces.

    Args:
        path: the PNG file.
        results: the numbers of the demo.
        graph: the connectome.
        before, after: weights of its synapses, `(num_synapses,)`.
        pixels: one input sequence, `(steps,)`.
        traces: eligibility traces during that sequence, `(steps, num_synapses)`.
    """
    figure = Figure(figsize=(12, 9), layout="constrained")
    ((curves, memory), (wiring, traced)) = figure.subplots(2, 2)
    figure.suptitle(
        f"The {results['neurons']} neurons and {results['synapses']:,} chemical synapses of C. elegans learn MNIST-1D "
        "pixel by pixel"
    )
    _curves(curves, results)
    _memory(memory, results)
    _wiring(wiring, graph, before, after)
    _traces(traced, graph, pixels, traces)
    figure.savefig(path, dpi=120)


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
        cmap="RdBu_r", vmin=-limit, vmax=limit, linewidths=0.3, edgecolors="#999999",
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


def alignment_figure(path: Path | str, alignments: dict[str, Alignment], title: str = "") -> None:
    """Draw how the gradients of several rules compare with the exact ones, leaf by leaf and over time.

    Args:
        path: the PNG file.
        alignments: what `gradient_alignment` found, by name of the rule; all for one model. Where they have several
            stretches of time, two more panels show these. Norm ratios are drawn up to a factor of 100.
        title: heading of the figure.

    Raises:
        ValueError: there are none, or they have different leaves or stretches.
    """
    kinds = {(a.names, str(a.steps.tolist())) for a in alignments.values()}
    if len(kinds) != 1:
        raise ValueError(
            f"alignments: expected one set of leaves and stretches of time, got {len(kinds)}. Draw one model."
        )
    names, steps, *_ = next(iter(alignments.values()))
    ratios = np.clip([a.norm_ratio for a in alignments.values()], RATIO_TICKS[0], RATIO_TICKS[-1])
    least, most = min(0.3, ratios.min()), max(3, ratios.max())
    height = 1.5 + len(names) * max(0.4, 0.13 * len(alignments))
    heights = [height, 3.2] if len(steps) > 1 else [height]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights)
    figure.suptitle(title)
    for number, (rule, found) in enumerate(alignments.items()):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 6, "alpha": 0.9, "label": rule}
        # Rules that agree lie beside one another.
        rows = np.arange(len(names)) + 0.8 * ((number + 0.5) / len(alignments) - 0.5)
        for column, values in zip(panels.T, (found.cosine, ratios[number]), strict=True):
            column[0].plot(values[-1], rows, ls="", **style)
            if len(steps) > 1:
                column[1].plot(steps[:-1].mean(axis=1) - 0.5, values[:-1, -1], lw=1.5, **style)
    for axes in panels[0]:
        axes.set(yticks=range(len(names)), yticklabels=[], ylim=(len(names) - 0.5, -0.5))
        axes.tick_params(axis="y", length=0)
        axes.hlines(np.arange(1, len(names)) - 0.5, 0, 1, transform=axes.get_yaxis_transform(), color="#cccccc", lw=0.8)
    panels[0, 0].set_yticklabels([" ".join(w for w in re.findall(r"\w+", n) if w != "value") for n in names])
    for row, along in zip(panels, "xy"):
        for axes, label in zip(
            row, ("cosine with the exact gradient", "norm ratio to the exact gradient"), strict=True
        ):
            axes.set(**{f"{along}label": label})
            (axes.axvline if along == "x" else axes.axhline)(1, color="grey", ls=":", lw=1, zorder=0)
        ticks = [t for t in RATIO_TICKS if least <= t <= most]
        row[1].set(**{f"{along}scale": "log", f"{along}lim": (0.85 * least, most / 0.85)})
        row[1].set(**{f"{along}ticks": ticks, f"{along}ticklabels": [f"{t:g}" for t in ticks]})
        (row[1].xaxis if along == "x" else row[1].yaxis).set_minor_locator(NullLocator())
        for axes in row:
            axes.set_title("Each leaf, over the whole time" if along == "x" else "All leaves together, as time goes on")
    for axes in panels[1:].flat:
        axes.set(xlabel="time (steps)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)
