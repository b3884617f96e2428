"""Draw docs/inside.png: one gradient on its way through the wings of the library."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Okabe and Ito's colours, for every kind of colour vision.
MODEL, RULE, OP, TRAIN = "#0072B2", "#D55E00", "#009E73", "#555555"
WIDTH, HEIGHT = 3.05, 1.5

plt.rcParams.update({"font.size": 11, "font.family": "DejaVu Sans"})
fig, axes = plt.subplots(figsize=(12, 7.4))
fig.subplots_adjust(0.01, 0.01, 0.99, 0.99)
axes.set(xlim=(0, 15.2), ylim=(0, 9.4))
axes.axis("off")


def room(x, y, wing, name, text, colour):
    axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.08", fc=colour, alpha=0.1, ec="none"))
    axes.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0.08", fc="none", ec=colour, lw=1.5))
    axes.text(x + 0.06, y + HEIGHT - 0.02, name, weight="bold", va="top", color=colour, fontsize=12)
    axes.text(x + WIDTH - 0.04, y + HEIGHT - 0.05, wing, va="top", ha="right", color=colour, fontsize=9.5)
    axes.text(x + 0.06, y + HEIGHT - 0.5, text, va="top", fontsize=10.5, linespacing=1.35)


def arrow(*path):
    for a, b in zip(path, path[1:-1], strict=False):
        axes.plot(*zip(a, b, strict=True), color="#333333", lw=1.6)
    axes.add_patch(FancyArrowPatch(*path[-2:], arrowstyle="-|>", mutation_scale=16, lw=1.6, color="#333333", shrinkA=0))


def row(y, title, how_often):
    axes.text(0.05, y + HEIGHT + 0.62, title, fontsize=13, weight="bold", va="center")
    axes.text(15.0, y + HEIGHT + 0.62, how_often, fontsize=11, va="center", ha="right", color="#555555")
    axes.plot([0.05, 15.05], [y + HEIGHT + 0.35] * 2, color="#bbbbbb", lw=0.8)


COLUMNS, Y = [0.15, 4.05, 7.95, 11.85], [6.85, 3.55, 0.25]
# Each row, how often it is gone through, and its rooms: wing, name, what happens there.
ROWS = [
    ("Read", "once for a gradient, however many windows it has", [
        ("_train", "online_grad", TRAIN,
         "asks the learner for an\n"
         "engine, and the engine\n"
         "for each window"),
        ("_model", "Reading", MODEL,
         "the step as a program:\n"
         "op calls, and who acts\n"
         "on whom between them"),
        ("_model", "Grouping", MODEL,
         "hidden groups; the old\n"
         "state that each op reads\n"
         "as a constant"),
        ("_rule", "Engine", RULE,
         "storage × signal:\n"
         "what is kept, and what\n"
         "teaches it"),
    ]),
    ("Step", "at each step, inside a scan", [
        ("_model", "Step.forward", MODEL,
         "runs the model, each op\n"
         "with its constants; output\n"
         "and new state"),
        ("_model", "Step pull", MODEL,
         "from $dL/dout$ back to\n"
         "$m = dL/dh_{t-1}$ and\n"
         "$n = dL/dy$ of each op"),
        ("_model", "Between", MODEL,
         "derivatives between ops:\n"
         "$D = dh_t/dh_{t-1}$,\n"
         "$F = dh_t/dy$, per unit"),
        ("_rule", "terms", RULE,
         "$x,\\ n,\\ m,\\ D,\\ F$ of the\n"
         "step; a signal may be\n"
         "put in place of $m, n$"),
    ]),
    ("Absorb", "once in a window of K steps", [
        ("_rule", "absorb", RULE,
         "K steps of terms become\n"
         "coefficients of units:\n"
         "$\\lambda, b$ back, $C, a$ forth"),
        ("_op", "ETraceOp.window", OP,
         "lays coefficients on\n"
         "synapses, by the contract\n"
         "of the op"),
        ("_kernels", "trace.advance", OP,
         "$\\varepsilon \\leftarrow C\\varepsilon + \\sum a\\,x$\n"
         "$dv\\ +\\!= \\lambda\\varepsilon + \\sum b\\,x$\n"
         "each synapse once"),
        ("_model", "by_parameter", MODEL,
         "$d\\theta$: $dv$ pulled back\n"
         "through $v = \\varphi(\\theta)$,\n"
         "masks and ties included"),
    ]),
]  # fmt: skip
for y, (title, how_often, rooms) in zip(Y, ROWS, strict=True):
    row(y, title, how_often)
    for x, (wing, name, colour, text) in zip(COLUMNS, rooms, strict=True):
        room(x, y, wing, name, text, colour)
for y in Y:
    for left, right in zip(COLUMNS, COLUMNS[1:], strict=False):
        arrow((left + WIDTH + 0.08, y + HEIGHT / 2), (right - 0.08, y + HEIGHT / 2))
for y, below in zip(Y, Y[1:], strict=False):
    start, end, between = COLUMNS[3] + WIDTH / 2, COLUMNS[0] + 0.85 * WIDTH, y - 0.5
    arrow((start, y - 0.08), (start, between), (end, between), (end, below + HEIGHT + 0.1))
fig.savefig(Path(__file__).with_name("inside.png"), dpi=110)
