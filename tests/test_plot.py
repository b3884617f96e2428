"""Figures: what is drawn is what was given; text is legible, within the figure, and on no other text."""

import itertools
import subprocess
import sys
import time

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import sparse_etrace as se
from sparse_etrace.plot import _connectivity, _in_time, style

RNG = np.random.default_rng(0)
WORM = se.datasets.worm()
SIGNED = np.asarray(WORM.weight) * WORM.node_attrs["sign"][np.asarray(WORM.connectivity.pre)]
SMALL = se.from_edges(["a", "b", "c", "a"], ["b", "c", "c", "c"], [1.0, -2.0, 0.0, 3.0], labels=["a", "b", "c"])
EMPTY = se.from_edges([], [], shape=(3, 3))
NONE = se.from_edges([], [], shape=(0, 0))
ONE = se.from_edges([0], [0], [0.5])
WIDE = se.from_edges([0, 1, 1], [3, 0, 4], [1.0, 1.0, -1.0], shape=(2, 5))
FOUND = se.Alignment(
    ("cell.rec.value['weight']", "readout.value['bias']", "all leaves"),
    np.array([[0, 10], [10, 20], [0, 20]]),
    RNG.random((3, 3)),
    RNG.random((3, 3)) + 0.5,
)


def eye(radius=4):
    return se.datasets.fly_eye(radius)


CASES = {
    "worm by role": lambda: se.plot.connectivity(WORM, SIGNED, group="role"),
    "worm as given": lambda: se.plot.connectivity(WORM, order="given"),
    "eye by type": lambda: se.plot.connectivity(eye(), group="cell_type"),
    "eye, positive": lambda: se.plot.connectivity(eye(), np.abs(eye().weight)),
    "two sets": lambda: se.plot.connectivity(WIDE),
    "degrees": lambda: se.plot.degrees(WORM),
    "degrees, log": lambda: se.plot.degrees(eye(), log=True),
    "weights": lambda: se.plot.weights(SIGNED),
    "weights by name": lambda: se.plot.weights({"before": SIGNED, "after": WORM}, log=True),
    "curves": lambda: se.plot.learning_curves({n: RNG.random((4, 30)) for n in ("D-RTRL", "SnAp-2", "ES-D-RTRL")}),
    "curves, log": lambda: se.plot.learning_curves({"a": RNG.random((1, 9)) + 1}, centre="mean", log=True),
    "states": lambda: se.plot.states(RNG.normal(size=(50, 8)), names=WORM.nodes[:8], dt=0.5),
    "states, image": lambda: se.plot.states(RNG.normal(size=(50, 90))),
    "traces": lambda: se.plot.traces(RNG.normal(size=(20, 2194)), WORM),
    "traces, image": lambda: se.plot.traces(RNG.random((20, 2194)), WORM, synapses=range(100)),
    "raster": lambda: se.plot.raster(RNG.random((300, 40)) < 0.05, dt=0.1),
    "raster with traces": lambda: se.plot.raster(RNG.random((99, 5)) < 0.1, traces={"v (mV)": RNG.random((99, 2))}),
    "raster by group": lambda: se.plot.raster(RNG.random((99, 3000)) < 0.02, group=np.arange(3000) // 100),
    "change": lambda: se.plot.weight_change(WORM, SIGNED, SIGNED + RNG.normal(size=2194), ("x_um", "z_um")),
    "change, spring": lambda: se.plot.weight_change(SMALL, SMALL.weight, 2 * SMALL.weight),
    "change, large": lambda: se.plot.weight_change(eye(), eye().weight, 1.1 * eye().weight),
    "alignment": lambda: se.plot.alignment({"D-RTRL": FOUND, "ES-D-RTRL": FOUND}, title="two rules"),
    "no synapses": lambda: se.plot.connectivity(EMPTY),
    "no units": lambda: se.plot.connectivity(NONE),
    "one unit": lambda: se.plot.connectivity(ONE),
    "no degrees": lambda: se.plot.degrees(EMPTY),
    "degree of one": lambda: se.plot.degrees(ONE),
    "no weights": lambda: se.plot.weights(EMPTY),
    "one weight": lambda: se.plot.weights(ONE),
    "zero weight": lambda: se.plot.weights({"zero": [0.0], "none": []}),
    "one point": lambda: se.plot.learning_curves({"a": [1.0]}),
    "no states": lambda: se.plot.states(np.ones((5, 0))),
    "one step": lambda: se.plot.states(np.ones((1, 20))),
    "no traces": lambda: se.plot.traces(np.ones((5, 0)), EMPTY),
    "no spikes": lambda: se.plot.raster(np.zeros((50, 4)), dt=1),
    "no spiking units": lambda: se.plot.raster(np.zeros((50, 0))),
    "no steps": lambda: se.plot.raster(np.zeros((0, 4)), dt=1),
    "one spike": lambda: se.plot.raster(np.ones((1, 1))),
    "no change": lambda: se.plot.weight_change(WORM, SIGNED, SIGNED),
    "nothing to change": lambda: se.plot.weight_change(EMPTY, [], []),
    "nobody to change": lambda: se.plot.weight_change(NONE, [], []),
    "one to change": lambda: se.plot.weight_change(ONE, [0.0], [1.0]),
}  # fmt: skip


def axes_of(figure):
    return [ax for owner in figure.axes for ax in (owner, *owner.child_axes)]


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def drawn_text(figure):
    """Boxes of all text that is drawn: ticks beyond the limits of an axis are not."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    beyond = set()
    for ax in axes_of(figure):
        for axis in (ax.xaxis, ax.yaxis):
            shown = {id(label) for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
            every = [*axis.majorTicks, *axis.minorTicks]
            beyond |= {id(label) for tick in every for label in (tick.label1, tick.label2)} - shown
    return [(t, t.get_window_extent(renderer)) for t in texts(figure) if id(t) not in beyond]


@pytest.mark.parametrize("name", CASES)
def test_layout(name):
    """All text is 7 points or more, within the figure, and apart from other text; axes have names with units."""
    before = dict(matplotlib.rcParams)
    figure = CASES[name]()
    assert isinstance(figure, Figure) and figure.get_size_inches()[0] in (style.SINGLE, style.DOUBLE)
    figure.set_dpi(100)
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = drawn_text(figure)
    assert boxes
    for text, box in boxes:
        assert text.get_fontsize() >= 6.99 or text.get_text().startswith("$"), text
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, f"{text} leaves the figure"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) < 1, f"{one} lies on {other}"
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()] + figure.legends
    for legend in legends:
        box = legend.get_window_extent()
        for ax in figure.axes:
            panel = ax.get_window_extent()
            assert box.x0 > panel.x1 - 2 or box.x1 < panel.x0 + 2 or box.y0 > panel.y1 - 2 or box.y1 < panel.y0 + 2
    for ax in figure.axes:
        assert ax.get_ylabel() or not ax.get_yticks().size or "alignment" in name, "an axis without a name"
        assert ax.get_xlabel() or not any(t.get_text() and t.get_visible() for t in ax.get_xticklabels())
    assert dict(matplotlib.rcParams) == before


def test_nothing_global():
    """Importing the library leaves matplotlib out, and drawing leaves pyplot out."""
    program = (
        "import sys, sparse_etrace as se; assert 'matplotlib' not in sys.modules;"
        "figure = se.plot.weight_change(se.from_edges([0], [1]), [1.0], [2.0]); figure.draw_without_rendering();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'sparse_etrace' has no attribute 'plots'"):
        getattr(se, "plots")  # noqa: B009
    with pytest.raises(AttributeError, match="no attribute 'Report'; it is 'Explanation' now"):
        getattr(se, "Report")  # noqa: B009


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_colours():
    """Signs stand out on white; the colour maps are as light as they are few."""
    for colour in (style.POSITIVE, style.NEGATIVE, style.ZERO):
        assert 1.05 / (luminance(colour) + 0.05) > 3 and colour in style.PALETTE
    amounts = [luminance(style.AMOUNT(x)[:3]) for x in np.linspace(0, 1, 20)]
    assert np.all(np.diff(amounts) < 0)
    values = [luminance(style.ABOUT_ZERO(x)[:3]) for x in np.linspace(0, 1, 21)]
    assert np.all(np.diff(values[:11]) > 0) and np.all(np.diff(values[10:]) < 0)
    shares = [luminance(style.SHARE(x)[:3]) for x in np.linspace(0, 1, 20)]
    assert max(shares) - min(shares) < 0.11
    assert len(set(map(str, style.DASHES))) == len(style.DASHES)


# --- what is drawn is what was given ---------------------------------------------------------------------------------


def points(axes):
    return {to_hex(c.get_facecolor()[0]).upper(): c.get_offsets().tolist() for c in axes.collections}


def test_dots_of_synapses():
    axes = se.plot.connectivity(SMALL, order="given").axes[0]
    assert points(axes) == {
        style.POSITIVE: [[1, 0], [2, 0]],
        style.NEGATIVE: [[2, 1]],
        style.ZERO: [[2, 2]],
    }
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels == ["positive (2)", "negative (1)", "zero (1)"]
    assert all(c.get_rasterized() for c in axes.collections)
    assert points(se.plot.connectivity(SMALL, [-1, 1, -1, -1], order="given").axes[0])[style.POSITIVE] == [[2, 0]]


def test_order():
    """By degree 2 + 2 autapse ends: c (4), a (2), b (2)."""
    place = {label: k for k, label in enumerate("cab")}
    expected = sorted([place[j], place[i]] for i, j in ("ab", "bc", "cc", "ac"))
    found = points(se.plot.connectivity(SMALL).axes[0])
    assert sorted(sum(found.values(), [])) == expected
    found = points(se.plot.connectivity(SMALL, order=[2, 0, 1]).axes[0])
    assert sorted(sum(found.values(), [])) == expected
    rectangular = points(se.plot.connectivity(WIDE, order=[1, 0, 6, 5, 4, 3, 2]).axes[0])
    assert sorted(sum(rectangular.values(), [])) == [[0, 0], [1, 1], [4, 0]]


def test_groups():
    figure = se.plot.connectivity(SMALL, group=["y", "x", "y"], order="given")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["y", "x"] and list(axes.get_yticks()) == [0.5, 2.0]
    borders = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert borders == [1.5]
    place = {"a": 0, "c": 1, "b": 2}
    expected = sorted([place[j], place[i]] for i, j in ("ab", "bc", "cc", "ac"))
    assert sorted(sum(points(axes).values(), [])) == expected


def test_names_without_room_are_left_out():
    kept = style.with_room(np.array([100, 1, 1, 100]), 100.0)
    assert kept.tolist() == [0, 1, 3]
    assert style.with_room(np.array([10, 0, 10]), 100.0).tolist() == [0, 2]


def test_blocks(monkeypatch):
    """Density and share of each block, against a sum over the dense matrix."""
    monkeypatch.setattr(_connectivity, "MOST_DOTS", 0)
    monkeypatch.setattr(_connectivity, "BINS", 3)
    weight = RNG.normal(size=40)
    graph = se.from_edges(RNG.integers(7, size=40), RNG.integers(7, size=40), weight, shape=(7, 7))
    edges = [0, 2, 4, 7]
    count, positive = (
        np.add.reduceat(np.add.reduceat(np.asarray(graph.to_dense(w)), edges[:-1], 0), edges[:-1], 1)
        for w in (np.ones(40), np.asarray(graph.weight > 0, float))
    )
    density = 100 * count / np.outer(np.diff(edges), np.diff(edges))
    (image,) = se.plot.connectivity(graph, np.ones(40), order="given").axes[0].images
    assert np.allclose(image.get_array().filled(0), density)
    axes = se.plot.connectivity(graph, order="given").axes[0]
    least, most = np.quantile(density[count > 0], (0.02, 0.998))
    depth = np.log(np.clip(density, least, most) / least) / np.log(most / least)
    depth = np.where(count > 0, 0.15 + 0.85 * depth, 0)[..., None]
    expected = 1 - depth * (1 - style.SHARE(positive / np.maximum(count, 1))[..., :3])
    assert np.allclose(axes.images[0].get_array(), expected, atol=1e-6)
    assert axes.child_axes[0].get_xlabel() == "positive (%)"


def test_degrees_drawn():
    axes = se.plot.degrees(SMALL, log=False).axes[0]
    inside, outside = axes.patches
    assert inside.get_data().values.tolist() == [1, 1, 0, 1] and outside.get_data().values.tolist() == [0, 2, 1] + [0]
    assert [t.get_text() for t in axes.get_legend().get_texts()][0] == "in-degree: mean 1.33, most 3"
    inside, outside = se.plot.degrees(SMALL, log=True).axes[0].lines
    assert np.allclose(inside.get_xydata(), [[0, 1], [1, 2 / 3], [3, 1 / 3]])
    hub = se.from_edges(np.arange(30), np.zeros(30, int), shape=(30, 30))
    assert se.plot.degrees(hub).axes[0].get_xscale() == "log"
    assert se.plot.degrees(SMALL).axes[0].get_xscale() == "linear"
    assert se.plot.degrees(WIDE, log=False).axes[0].patches[0].get_data().values.sum() == 5


def test_weights_drawn():
    values = [-1, -1, 0, 2, 2, 2]
    axes = se.plot.weights(values).axes[0]
    heights = {p.get_label(): p.get_data().values - p.get_data().baseline for p in axes.patches}
    assert {k: v.tolist() for k, v in heights.items()} == {
        "positive (3)": [0, 0, 0, 3], "negative (2)": [2, 0, 0, 0], "zero (1)": [0, 1, 0, 0],
    }  # fmt: skip
    assert axes.patches[0].get_data().edges.tolist() == [-1.5, -0.5, 0.5, 1.5, 2.5]
    values = RNG.normal(size=1000)
    axes = se.plot.weights({"w": values, "graph": SMALL}).axes[0]
    for patch, given in zip(axes.patches, (values, np.asarray(SMALL.weight))):
        count, edges, _ = patch.get_data()
        assert np.array_equal(count, np.histogram(given, edges)[0]) and count.sum() == given.size
        assert np.abs(edges).min() < 1e-12
    assert axes.get_legend().get_texts()[1].get_text() == "graph: 25 % negative"
    assert se.plot.weights(jnp.ones(3, jnp.bfloat16)).axes[0].patches[0].get_data().values.sum() == 3


@pytest.mark.parametrize("centre", ["median", "mean"])
def test_curves_drawn(centre):
    values, x = RNG.random((4, 12)), 10 * np.arange(12)
    axes = se.plot.learning_curves({"a": values, "b": values[0]}, x=x, centre=centre).axes[0]
    *seeds, middle, single = axes.lines
    assert np.allclose([line.get_ydata() for line in seeds], values)
    assert np.allclose(middle.get_ydata(), getattr(np, centre)(values, axis=0)) and np.array_equal(
        middle.get_xdata(), x
    )
    assert np.array_equal(single.get_ydata(), values[0])
    low, high = np.quantile(values, (0.25, 0.75), axis=0)
    if centre == "mean":
        low, high = (values.mean(0) + s * values.std(0, ddof=1) for s in (-1, 1))
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert np.isclose(corners[:, 1].min(), low.min()) and np.isclose(corners[:, 1].max(), high.max())
    legend = axes.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["a (4 seeds)", "b (1 seed)"]
    assert centre in legend.get_title().get_text()
    assert axes.get_xlabel() == "updates" and axes.get_ylabel() == "loss"


@pytest.mark.parametrize("centre", ["median", "mean"])
def test_gaps_in_curves(centre):
    """What `fit` leaves out between validations."""
    nan = np.nan
    values = np.array([[nan, 4, nan, 2, 5], [nan, 2, nan, nan, 1]])
    axes = se.plot.learning_curves({"a": values, "b": [nan, 1, nan, 0.5, nan]}, centre=centre).axes[0]
    first, second, middle, single = axes.lines
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]
    assert drawn == [([2, 4, 5], [4, 2, 5]), ([2, 5], [2, 1]), ([2, 4, 5], [3, 2, 3]), ([2, 4], [1, 0.5])]
    corners = axes.collections[0].get_paths()[0].vertices
    spread = 0.5 * 4 if centre == "median" else np.std([5, 1], ddof=1)
    assert np.isclose(corners[:, 1].max(), 3 + (spread / 2 if centre == "median" else spread))
    assert np.isfinite(corners).all()
    se.plot.learning_curves({"a": values}, centre=centre, log=True)


@pytest.mark.parametrize("values", [[1.0], [[1.0], [2.0]], [np.nan, 1.0]])
def test_a_single_point_is_seen(values):
    figure = se.plot.learning_curves({"a": values})
    canvas = FigureCanvasAgg(figure)
    figure.axes[0].get_legend().remove()
    canvas.draw()
    colour = (np.array(to_rgb(se.plot.PALETTE[0])) * 255).round()
    near = np.abs(np.asarray(canvas.buffer_rgba())[..., :3] - colour).max(axis=-1) < 3
    assert np.count_nonzero(near) > 50


def test_states_drawn():
    values = RNG.normal(size=(20, 12))
    axes = se.plot.states(values, units=[3, 0], dt=0.5, label="potential (mV)").axes[0]
    assert [line.get_label() for line in axes.lines] == ["unit 3", "unit 0"]
    assert np.array_equal([line.get_ydata() for line in axes.lines], values[:, [3, 0]].T)
    assert axes.lines[0].get_xdata()[-1] == 9.5
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (ms)", "potential (mV)")
    axes = se.plot.states(values).axes[0]
    assert np.array_equal(axes.images[0].get_array(), values.T) and axes.get_xlabel() == "time (steps)"
    low, high = axes.images[0].get_clim()
    assert low == -high < 0, "zero is in the middle of a map about zero"
    assert axes.child_axes[0].get_ylabel() == "state (a.u.)"


def test_traces_drawn():
    values = RNG.normal(size=(20, 4))
    axes = se.plot.traces(values, SMALL).axes[0]
    assert [line.get_label() for line in axes.lines] == ["a to b", "a to c", "b to c", "c to c"]
    assert np.array_equal([line.get_ydata() for line in axes.lines], values.T)
    axes = se.plot.traces(values, SMALL, synapses=[2]).axes[0]
    assert np.array_equal(axes.lines[0].get_ydata(), values[:, 2])
    pace, strength = [1, 1, 2, 3, 4, 5, 6, 7] + [8] * 16, [9, 8.9] + [8] * 6 + [0.1] * 16
    wave = np.sin(np.arange(30)[:, None] * np.array(pace) / 8) * strength
    chosen = _in_time._unlike(wave)
    assert chosen[0] == 0 and len(set(chosen)) == 5 and 1 not in chosen and max(chosen) < 8


def test_raster_drawn():
    spikes = RNG.random((301, 6)) < 0.1
    group = np.array(["b", "a", "b", "a", "b", "b"])
    dots, rate = se.plot.raster(spikes, dt=2.0, group=group).axes
    order = [0, 2, 4, 5, 1, 3]
    found = np.zeros_like(spikes)
    for line in [line for line in dots.lines if line.get_marker() == "|"]:
        found[(line.get_xdata() / 2).astype(int), line.get_ydata().astype(int)] = True
    assert np.array_equal(found, spikes[:, order])
    assert [t.get_text() for t in dots.get_yticklabels()] == ["b", "a"]
    for patch, mine in zip(rate.patches, (group == "b", group == "a")):
        hz, edges, _ = patch.get_data()
        assert len(hz) <= 150 and edges[0] == -1 and edges[-1] == 601
        seconds = np.diff(edges) / 1000
        assert np.isclose((hz * seconds).sum() * mine.sum(), spikes[:, mine].sum())
    assert rate.get_xlabel() == "time (ms); rate in bins of 6 ms" and rate.get_ylabel() == "rate (Hz)"
    _, rate = se.plot.raster(spikes[:100]).axes
    current = np.arange(200.0).reshape(100, 2)
    *_, low, last = se.plot.raster(spikes[:100], dt=2.0, traces={"v": current[:, 0], "current (pA)": current}).axes
    assert (low.get_ylabel(), last.get_ylabel()) == ("v", "current (pA)") and "time (ms)" in last.get_xlabel()
    assert np.array_equal(last.lines[1].get_xydata(), np.stack([2.0 * np.arange(100), current[:, 1]], axis=1))
    assert np.allclose(rate.patches[0].get_data().values, spikes[:100].mean(1))
    assert rate.get_xlabel() == "time (steps); rate in bins of 1 steps"


def test_change_drawn():
    before, after = np.array([1.0, -2.0, 0.0, 3.0]), np.array([1.5, -4.0, 0.0, 3.1])
    places = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    drawing, scatter = se.plot.weight_change(SMALL, before, after, places, strongest=2).axes
    # Strongest last, so on top: a to b by 0.5, a to c by -2 (canonical order).
    ends = [(p._posA_posB[0].tolist(), p._posA_posB[1].tolist()) for p in drawing.patches]
    assert ends == [([0, 0], [1, 0]), ([0, 0], [1, 1])]
    assert [to_hex(p.get_edgecolor()).upper() for p in drawing.patches] == [style.POSITIVE, style.NEGATIVE]
    assert drawing.patches[1].get_linewidth() == 2 > drawing.patches[0].get_linewidth()
    lines, nodes = drawing.collections
    assert np.array_equal(nodes.get_offsets(), places) and len(lines.get_segments()) == 4
    assert points(scatter) == {style.POSITIVE: [[1, 1.5], [3, 3.1]], style.NEGATIVE: [[-2, -4]], style.ZERO: [[0, 0]]}
    loop, _ = se.plot.weight_change(ONE, [0.0], [1.0], [[2.0, 3.0]]).axes
    assert not loop.patches and loop.collections[-1].get_offsets().tolist() == [[2, 3]]
    one, other = (se.plot.weight_change(WORM, SIGNED, SIGNED).axes[0].collections[-1].get_offsets() for _ in range(2))
    assert np.array_equal(one, other), "the layout has a fixed seed"
    (large,) = se.plot.weight_change(eye(), eye().weight, 2 * eye().weight).axes
    assert large.images[0].get_array().sum() == eye().connectivity.num_synapses
    rectangular, _ = se.plot.weight_change(WIDE, [1, 1, 1], [2, 2, 2], np.arange(14).reshape(7, 2)).axes
    assert len(rectangular.patches) == 3


def test_alignment_drawn():
    panels = se.plot.alignment({"D-RTRL": FOUND, "BPTT": FOUND}).axes
    assert np.array_equal(panels[0].lines[0].get_xdata(), FOUND.cosine[-1])
    assert np.array_equal(panels[1].lines[1].get_xdata(), FOUND.norm_ratio[-1])
    assert np.array_equal(panels[2].lines[0].get_xydata(), np.stack([[4.5, 14.5], FOUND.cosine[:-1, -1]], axis=1))
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["cell rec weight", "readout bias", "all leaves"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: se.plot.connectivity(WORM, SIGNED, ax=ax),
        lambda ax: se.plot.degrees(WORM, ax=ax),
        lambda ax: se.plot.weights(WORM, ax=ax),
        lambda ax: se.plot.learning_curves({"a": [1.0, 2.0]}, ax=ax),
        lambda ax: se.plot.states(np.ones((3, 20)), ax=ax),
        lambda ax: se.plot.traces(np.ones((3, 2194)), WORM, ax=ax),
    ],
)
def test_a_panel_of_ones_own(draw):
    figure = Figure(layout="constrained")
    ax = figure.subfigures(1, 2)[0].subplots()
    assert draw(ax) is figure and ax.get_xlabel() and figure.axes == [ax]
    with pytest.raises(TypeError, match="ax: expected a matplotlib Axes, got Figure"):
        draw(figure)


def test_inputs_stay():
    weight, spikes = SIGNED.copy(), RNG.random((50, 4)).round()
    given = weight.copy(), spikes.copy(), np.asarray(WORM.weight).copy()
    se.plot.connectivity(WORM, weight, group="role")
    se.plot.weights(weight)
    se.plot.states(spikes)
    se.plot.raster(spikes)
    se.plot.weight_change(WORM, weight, weight, ("x_um", "y_um"))
    assert all(map(np.array_equal, given, (weight, spikes, np.asarray(WORM.weight))))


def test_saved(tmp_path):
    figure = se.plot.connectivity(WORM, SIGNED, group="role")
    for ending, start in ((".pdf", b"%PDF"), (".png", b"\x89PNG")):
        figure.savefig(tmp_path / f"worm{ending}")
        assert (tmp_path / f"worm{ending}").read_bytes().startswith(start)
    assert (tmp_path / "worm.pdf").stat().st_size < 100_000, "dots are pixels"


@pytest.mark.soak
def test_many_synapses(amount, tmp_path):
    """A million synapses take a second or two; with --full fifteen."""
    size, units = amount(1_000_000, 15_000_000), 100_000
    pre, post = RNG.integers(units, size=(2, size), dtype=np.int32)
    graph = se.from_edges(pre, post, RNG.normal(size=size).astype(np.float32), shape=(units, units))
    start = time.perf_counter()
    se.plot.connectivity(graph, group=np.arange(units) // 10_000).savefig(tmp_path / "many.png", dpi=100)
    se.plot.degrees(graph).savefig(tmp_path / "many.png", dpi=100)
    se.plot.weights(graph).savefig(tmp_path / "many.png", dpi=100)
    assert time.perf_counter() - start < amount(8, 60)


# --- what is refused -------------------------------------------------------------------------------------------------

CURVE = {"a": np.ones((2, 5))}
UNCHECKED = getattr(se.plot.alignment, "__wrapped__", se.plot.alignment)
REFUSED = [
    (lambda: se.plot.connectivity(np.eye(3)), TypeError, "graph: expected a Graph, got ndarray"),
    (lambda: se.plot.connectivity(SMALL, [1.0]), ValueError, "weight: expected shape .4., got .1,.."),
    (lambda: se.plot.connectivity(SMALL, ["x"] * 4), TypeError, "weight: expected an array of real numbers, got list"),
    (lambda: se.plot.connectivity(SMALL, [1, 2, 3, np.nan]), ValueError, "weight:.*got 1 of 4 that are not."),
    (lambda: se.plot.connectivity(SMALL, group="role"), ValueError, "group: expected a node.*got 'role'."),
    (lambda: se.plot.connectivity(SMALL, group=[1, 2]), ValueError, "group: expected one entry.*got shape .2,.."),
    (lambda: se.plot.connectivity(SMALL, group=np.ones((3, 2))), ValueError, "group: expected one.*got shape .3, 2.."),
    (lambda: se.plot.connectivity(SMALL, order="size"), ValueError, "order: expected 'degree',.*got 'size'."),
    (lambda: se.plot.connectivity(SMALL, order=[0, 0, 1]), ValueError, "order: expected each of the node positions"),
    (lambda: se.plot.weights({}), ValueError, "values: expected weights by name, .'before': w,.*got no names."),
    (lambda: se.plot.weights({"w": [np.inf]}), ValueError, "values.'w'.: expected finite.*got 1 of 1 that are not."),
    (lambda: se.plot.learning_curves([1.0]), TypeError, "curves: expected {rule: .* array}, got list"),
    (lambda: se.plot.learning_curves({}), ValueError, "curves: expected .rule: .seeds, points. array., got no rule."),
    (lambda: se.plot.learning_curves(CURVE, centre="mode"), ValueError, "centre: expected 'median' or.*got 'mode'."),
    (lambda: se.plot.learning_curves(CURVE | {"b": np.ones(4)}), ValueError, "curves: expected the.*got .4, 5.."),
    (lambda: se.plot.learning_curves({"a": [0.0]}, log=True), ValueError, "curves: expected positive.*got others"),
    (lambda: se.plot.learning_curves(CURVE, x=[1, 2]), ValueError, "x: expected shape .5., got .2,.."),
    (lambda: se.plot.learning_curves({"a": np.ones((2, 0))}), ValueError, "at least one seed and one point"),
    (lambda: se.plot.learning_curves({"a": [[1, 2], [1]]}), TypeError, r"curves\['a'\]: expected an array"),
    (lambda: se.plot.states(np.ones(3)), ValueError, "values: expected shape .time, units., got .3,.."),
    (lambda: se.plot.states(np.ones((3, 2)), names=["a"]), ValueError, "names: expected one for each of 2.*got 1."),
    (lambda: se.plot.states(np.ones((3, 2)), units=[2]), ValueError, "units: expected positions from.*got 2 to 2."),
    (lambda: se.plot.states(np.ones((3, 2)), units=[0.5]), ValueError, "units: expected positions, whole numbers"),
    (lambda: se.plot.states(np.ones((3, 2)), dt=0), ValueError, "dt: expected the length of a step in ms,.*got 0."),
    (lambda: se.plot.traces(np.ones((3, 2)), SMALL), ValueError, "values: expected shape .time, 4., got .3, 2.."),
    (lambda: se.plot.raster(np.ones(3)), ValueError, "spikes: expected .time, units., got shape .3,.."),
    (lambda: se.plot.raster(np.full((2, 2), 0.5)), ValueError, "spikes: expected 0 and 1, got 0.5"),
    (lambda: se.plot.raster(np.array([["a"]])), TypeError, "spikes: expected numbers, got <U1"),
    (lambda: se.plot.raster(np.ones((2, 2)), traces={"v": np.ones(3)}), ValueError, "traces..v..: expected shape"),
    (lambda: se.plot.raster(np.ones((2, 2)), traces={"v": np.ones((2, 9))}), ValueError, "at most 8 lines, got 9"),
    (lambda: se.plot.raster(np.ones((2, 2)), group=["a"]), ValueError, "group: expected one entry.*got shape .1,.."),
    (lambda: se.plot.weight_change(SMALL, [0] * 4, [0]), ValueError, "after: expected shape .4., got .1,.."),
    (lambda: se.plot.weight_change(SMALL, [0] * 4, [0] * 4, strongest=-1), ValueError, "strongest:.*got -1."),
    (lambda: se.plot.weight_change(SMALL, [0] * 4, [0] * 4, np.ones((3, 3))), ValueError, "positions:.*got .3, 3.."),
    (lambda: se.plot.weight_change(WORM, SIGNED, SIGNED, ("x", "y")), ValueError, "positions: expected a.*got 'x'."),
    (lambda: se.plot.learning_curves({"a": [1.0, np.inf]}), ValueError, "curves.'a'.:.*got 1 of 2 that are not."),
    (lambda: se.plot.learning_curves({"a": [[1], [np.nan]]}), ValueError, "curves.'a'.:.*got only NaN of one"),
    (lambda: se.plot.weights(np.ones(3) * 1j), TypeError, "values: expected real numbers, got complex128"),
    (lambda: se.plot.raster(np.ones((2, 2)), group=[None] * 2), TypeError, "group: expected text or numbers"),
    (lambda: se.plot.connectivity(SMALL, group=[None] * 3), TypeError, "group: expected text or numbers"),
    (lambda: UNCHECKED([FOUND]), TypeError, "alignments: expected {rule: Alignment}, got list"),
    (lambda: UNCHECKED({"a": 1}), TypeError, r"alignments\['a'\]: expected what .* returns, got int"),
    (lambda: se.plot.alignment({}), ValueError, "alignments: expected one set of leaves"),
]  # fmt: skip


@pytest.mark.parametrize("draw, error, match", REFUSED, ids=[str(k) for k in range(len(REFUSED))])
def test_refused(draw, error, match):
    with pytest.raises(error, match=match):
        draw()
