"""Forecasts of the speeds on a city's roads, learned while the readings stream by.

You learn how to train a graph network in one pass over a stream whose labels come late: a forecast of an hour ahead can
be learned from an hour later only, so that no error that is printed is of weights that have seen the answer. The same
call measures the simplest forecasts beside it, and a map shows where it is wrong.

    python examples/09_traffic.py metr_la_week.npz --map map.png

The file is a week of METR-LA (`se.datasets.traffic` says where it comes from), which does not come with this project.
Without it the example makes a small city up: a ring road and four roads into the centre, on which jams move against the
traffic.
"""

import argparse

import equinox as eqx
import jax
import numpy as np
import optax

import sparse_etrace as se

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("path", nargs="?", help="metr_la_week.npz")
parser.add_argument("--map", help="where to save the map; traffic_map.png unless --short")
parser.add_argument("--short", action="store_true")
options = parser.parse_args()
HORIZONS, HIDDEN, DAY = (3, 6, 12), 16, 288  # steps of five minutes


def made_up(days, rng):
    """Sensors on a ring and four roads into its centre; a jam moves on to who comes behind."""
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1)
    place = np.concatenate([ring, *(np.outer([0.75, 0.5, 0.25], ring[k]) for k in (0, 3, 6, 9))])
    ahead = [(k, (k + 1) % 12) for k in range(12)]
    for road, first in enumerate((0, 3, 6, 9)):
        ahead += [(first, 12 + 3 * road), (12 + 3 * road, 13 + 3 * road), (13 + 3 * road, 14 + 3 * road)]
    graph = se.from_edges(*np.transpose(ahead), shape=(24, 24))
    behind = graph.to_scipy().T / np.maximum(graph.to_scipy().sum(0), 1)
    jam, speed = np.zeros(24), np.empty((days * DAY, 24), np.float32)
    for step in range(len(speed)):
        rush = np.exp(-(((step % DAY - np.array([96, 204])) / 14) ** 2)).sum()
        jam = 0.86 * jam + 0.09 * (jam @ behind) + (rng.random(24) < 0.004 + 0.03 * rush) * rng.gamma(4, 6, 24)
        speed[step] = np.maximum(65 - jam, 5) + rng.standard_normal(24)
    return graph, speed, 34 + 0.1 * place[:, 1], -118 + 0.1 * place[:, 0]


if options.path:
    week = se.datasets.traffic(options.path)
    graph, speed = week.graph, week.speed
    latitude, longitude = week.graph.node_attrs["latitude"], week.graph.node_attrs["longitude"]
else:
    print("No file given: these are speeds of a city that is made up.")
    graph, speed, latitude, longitude = made_up(2 if options.short else 7, np.random.default_rng(0))


class Roads(eqx.Module):
    """A gated network along the roads and against them; a forecast is the speed now and a change."""

    cell: se.cells.graph.GraphGRU
    change: se.ETraceParam

    def __call__(self, h, x):
        h, shown = self.cell(h, x)
        return h, x + self.change(shown)


cell = se.cells.graph.GraphGRU.dcrnn(graph, 1, HIDDEN, steps=1, key=jax.random.key(0))
change = se.MatMulOp(bias=True).param(None, HIDDEN, len(HORIZONS), init=np.zeros((HIDDEN, len(HORIZONS)), np.float32))
model = Roads(cell, change)

mean, unit = speed[:DAY].mean(), speed[:DAY].std()  # of the first day: later ones are not known yet
stream = se.SnapshotStream.ahead((speed[..., None] - mean) / unit, HORIZONS)
result = se.evaluate.prequential(
    se.D_RTRL(),
    se.evaluate.mae,
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.002)),
    model,
    stream,
    state=cell.init_state(),
    delay=HORIZONS,
    period=DAY,
    skip=len(stream) // 2,
)
table = {name: unit * row["loss"] for name, row in result.table.items()}
print(f"{len(stream):,} steps of {len(latitude)} sensors; mean error 15, 30 and 60 minutes ahead, second half:")
for name, error in table.items():
    print(f"  {name:16} {error:.2f} mph")
missed = unit * np.abs(result.outs - stream.targets)[len(stream) // 2 :].mean((0, 2))  # by sensor
print(f"by sensor from {missed.min():.2f} to {missed.max():.2f} mph")

if options.map or not options.short:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=130, layout="constrained")
    axes, order = figure.subplots(), np.argsort(missed)  # the worst are drawn last
    ends = np.array([graph.connectivity.pre, graph.connectivity.post])
    axes.plot(longitude[ends], latitude[ends], color="0.85", lw=0.5, zorder=0)
    dots = axes.scatter(longitude[order], latitude[order], c=missed[order], s=25, cmap="viridis_r")
    figure.colorbar(dots, shrink=0.6, label="mean absolute error, 15 to 60 minutes ahead (mph)")
    axes.set(xlabel="longitude (°)", ylabel="latitude (°)", aspect=1 / np.cos(np.radians(np.mean(latitude))))
    axes.set_title(f"Where forecasts of speed miss: {len(missed)} sensors\nLines join those that are near by road")
    figure.savefig(options.map or "traffic_map.png")
    print(f"Saved {options.map or 'traffic_map.png'}.")
assert table["model"] < table["persistence"], table
