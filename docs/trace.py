"""Draw docs/trace.png: one synapse in time, its trace, the learning signal and the window."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch

STEPS, WINDOW, DECAY = 48, 16, 0.9
# Okabe and Ito's colours, for every kind of colour vision.
PRE, POST, TRACE, SIGNAL, GRADIENT = "#0072B2", "#000000", "#E69F00", "#D55E00", "#009E73"

rng = np.random.default_rng(3)
x = np.zeros(STEPS)
x[[4, 6, 19, 30, 33]] = 1
other = (rng.random(STEPS) < 0.25) * rng.normal(0.9, 0.2, STEPS)
h, trace = np.zeros(STEPS), np.zeros(STEPS)
for t in range(STEPS):
    h[t] = DECAY * (h[t - 1] if t else 0) + (1 - DECAY) * (1.6 * x[t] + other[t])
    trace[t] = DECAY * (trace[t - 1] if t else 0) + (1 - DECAY) * x[t]
signal = np.zeros(STEPS)
signal[[12, 25, 40]] = [0.8, -0.6, 1.0]
gradient = np.cumsum(signal * trace)
time = np.arange(STEPS)

plt.rcParams.update(
    {"font.size": 11, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}
)
fig = plt.figure(figsize=(12, 7.2))
left = fig.add_axes((0.01, 0.03, 0.33, 0.94))
left.set(xlim=(0, 10), ylim=(0, 18), xticks=[], yticks=[], aspect="equal")
left.axis("off")


def unit(at, text, colour, name, shift):
    left.add_patch(plt.Circle(at, 1.1, fc="white", ec=colour, lw=2.5))
    left.text(*at, text, ha="center", va="center", fontsize=16, color=colour)
    left.text(at[0] + shift, at[1] - 1.7, name, ha="center", va="center", color=colour)


def arrow(a, b, colour, **kind):
    left.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=18, lw=2.5, color=colour, **kind))


unit((1.5, 10.5), "$x_j$", PRE, "pre j", 0)
unit((7.8, 10.5), "$h_i$", POST, "post i", 1.3)
arrow((2.6, 10.5), (6.75, 10.5), PRE, shrinkA=2, shrinkB=2)
left.text(4.6, 10.8, "weight $v_s$", ha="center", va="bottom", color=PRE)
left.text(4.6, 10.1, "synapse $s = (j \\to i)$", ha="center", va="top", fontsize=10)
left.plot([4.6, 4.6], [8.35, 9.3], color=TRACE, lw=1.5)
left.add_patch(plt.Rectangle((2.9, 6.7), 3.4, 1.6, fc=TRACE, ec="none", alpha=0.35))
left.text(4.6, 7.5, r"$\varepsilon_s = \partial h_i\, /\, \partial v_s$", ha="center", va="center", fontsize=14)
left.text(4.6, 6.4, "trace: how far this weight\nhas made $h_i$ what it is", ha="center", va="top", color="#8a5f00")
arrow((7.2, 11.4), (8.4, 11.4), POST, connectionstyle="arc3,rad=-1.9")
left.text(7.8, 13.3, "own memory\n$D_i = \\partial h_{i,t}\\, /\\, \\partial h_{i,t-1}$", ha="center", va="bottom")
left.text(7.8, 2.9, "loss $L_t$", ha="center", va="center", fontsize=13, color=SIGNAL)
arrow((7.8, 3.3), (7.8, 9.4), SIGNAL, linestyle="--", shrinkB=2)
left.text(8.05, 6.0, "learning\nsignal", ha="left", va="center", color=SIGNAL)
left.text(0.2, 17.2, "One synapse, one trace", fontsize=16, weight="bold", va="top")
left.text(
    0.2, 1.9, "gradient of the weight  +=  learning signal $\\times$ trace", color=GRADIENT, va="top", fontsize=11.5
)

rows = [
    (x, PRE, "$x_j$\n(sent)", "stem", "what the sending unit sends"),
    (h, POST, "$h_i$\n(received)", "line", "the hidden variable of the receiving unit"),
    (
        trace,
        TRACE,
        r"$\varepsilon_s$" + "\n(trace)",
        "fill",
        r"$\varepsilon \leftarrow D\,\varepsilon + F\,x$:  how $h_i$ now depends on $v_s$",
    ),
    (
        signal,
        SIGNAL,
        "$m_i$\n(learning\nsignal)",
        "stem",
        r"how the loss of the step depends on $h_i$ (here: three times only)",
    ),
    (
        gradient,
        GRADIENT,
        "$dv_s$\n(gradient)",
        "step",
        r"$dv \leftarrow dv + m\,\varepsilon$:  nothing is stored about the past but the trace",
    ),
]
axes = [fig.add_axes((0.42, 0.83 - 0.176 * k, 0.565, 0.118)) for k in range(len(rows))]
for axis, (values, colour, name, kind, text) in zip(axes, rows, strict=True):
    if kind == "stem":
        axis.vlines(time[values != 0], 0, values[values != 0], color=colour, lw=3)
        axis.axhline(0, color=colour, lw=1)
    elif kind == "step":
        axis.step(time, values, where="post", color=colour, lw=2.5)
        axis.axhline(0, color="0.7", lw=0.8)
    else:
        axis.plot(time, values, color=colour, lw=2.5)
    if kind == "fill":
        axis.fill_between(time, values, color=colour, alpha=0.3, lw=0)
    axis.set(xlim=(-0.5, STEPS - 0.5), yticks=[], xticks=[])
    axis.set_ylabel(name, rotation=0, ha="right", va="center", color=colour, labelpad=10)
    axis.set_title(text, loc="left", fontsize=10.5, pad=3, color="0.25")
    low, high = min(values.min(), 0), values.max()
    axis.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))
    for edge in range(0, STEPS + 1, WINDOW):
        axis.axvline(edge - 0.5, color="0.75", lw=1, ls=":", zorder=0)
for t in np.flatnonzero(signal):
    for axis in axes[2:]:
        axis.axvline(t, color=SIGNAL, lw=0.9, ls="--", alpha=0.6, zorder=0)
    axes[2].plot(t, trace[t], "o", ms=7, mfc="white", mec=SIGNAL, mew=2)
ends = axes[-1].get_xaxis_transform()
for edge in range(0, STEPS, WINDOW):
    axes[-1].annotate("", (edge - 0.5, -0.16), (edge + WINDOW - 0.5, -0.16), xycoords=ends,
                      arrowprops={"arrowstyle": "<->", "color": "0.3", "shrinkA": 0, "shrinkB": 0})  # fmt: skip
axes[-1].text(-0.5, -0.28, "windows of K = 16 steps: each synapse is read and written once in a window",
              transform=ends, va="top", fontsize=10.5, color="0.25")  # fmt: skip
fig.text(0.985, 0.975, "time $\\to$", ha="right", va="top", color="0.25")
fig.savefig(Path(__file__).with_suffix(".png"), dpi=130)
