"""A stranger's first hour with a whole fly: from FlyWire's two files to a figure of rates by type, in seconds by phase.

The files are made, with rows by neuropil, ids of 64 bits and empty transmitters. The program is as that of
`docs/connectomes.md`: read, give signs, drive the neurons of one type for 0.2 s, average by type, draw.
"""

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from peak import in_process, peak_mb

import sparse_etrace as se

FULL, QUICK = (138_639, 15_091_983), (2_000, 100_000)
STEPS, DT, PIECES, DRIVEN = 2000, 0.1, 4, "sugar GRN"


def make(folder, neurons, pairs):
    """Write connections and types, and return the number of rows."""
    graph, rng = se.generate.fly_brain(jax.random.key(0), neurons, pairs), np.random.default_rng(0)
    count = np.abs(np.asarray(graph.weight)).astype(int)
    kept = np.flatnonzero(count > 3)
    # Connections of many synapses are in two neuropils, with a row for each.
    split = kept[(count[kept] > 6) & (rng.random(kept.size) < 0.5)]
    rows, part = np.append(kept, split), count // 2
    synapses = np.append(np.where(np.isin(kept, split), count[kept] - part[kept], count[kept]), part[split])
    excites = np.where(rng.random(count.size) < 0.25, "", "ACH")
    inhibits = rng.choice(["GABA", "GLUT"], count.size)
    transmitter = np.where(np.asarray(graph.weight) < 0, inhibits, excites)
    ids = 720575940600000000 + np.sort(rng.choice(10**8, neurons, replace=False))
    order, c = rng.permutation(rows.size), graph.connectivity
    columns = {
        "pre_root_id": ids[np.asarray(c.pre)[rows]],
        "post_root_id": ids[np.asarray(c.post)[rows]],
        "neuropil": np.array([f"N{k}" for k in range(78)])[rng.integers(78, size=rows.size)],
        "syn_count": synapses,
        "nt_type": transmitter[rows],
    }
    options = pa.csv.WriteOptions(quoting_style="none")
    with pa.CompressedOutputStream(folder / "connections.csv.gz", "gzip") as packed:
        pa.csv.write_csv(pa.table({name: column[order] for name, column in columns.items()}), packed, options)
    types = np.array([f"type {k:03}" for k in np.minimum(rng.geometric(0.03, neurons) - 1, 199)], "U9")
    types[:20] = DRIVEN
    pa.csv.write_csv(pa.table({"root_id": ids, "primary_type": types}), folder / "types.csv", options)
    return rows.size


def program(folder, out, began):
    """Seconds by the clock and of the processor at the end of each phase."""
    stamps = {}
    stamp = lambda phase: stamps.update({phase: (time.time() - began, time.process_time())})
    stamp("import")
    fly = se.read_graph(folder / "connections.csv.gz", nodes=folder / "types.csv", min_weight=5)
    stamp("read")
    fly = se.transform.with_signs(fly, "nt_type", se.transform.FLY_SIGNS, default=1)
    driven = fly.where(primary_type=DRIVEN)
    cell = se.cells.spiking.whole_fly(fly, driven=driven)
    x = se.spikes.poisson(jax.random.key(0), np.full(len(driven), 100.0), steps=STEPS, dt=DT)
    state, spikes = cell.init_state(), 0
    for piece in np.split(np.asarray(x), PIECES):
        z, state = se.predict(cell, state, piece)
        spikes += np.asarray(z.sum(axis=0))
    stamp("simulate")
    rates = pd.Series(spikes / (STEPS * DT / 1000)).groupby(fly.node_attrs["primary_type"]).mean()
    axes = rates.sort_values().tail(15).plot.barh()
    axes.set_xlabel("mean rate (Hz)")
    axes.figure.savefig(out / "hour.png", bbox_inches="tight")
    stamp("figure")
    at = np.diff([(0.0, 0.0), *stamps.values()], axis=0).tolist()
    size = {"neurons": len(fly.nodes), "connections": fly.connectivity.num_synapses}
    found = {"driven_hz": float(rates[DRIVEN]), "peak_mb": peak_mb(), "seconds": dict(zip(stamps, at))}
    return size | found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for hour.json and hour.png")
    parser.add_argument("--quick", action="store_true", help="a small fly: does it run, not how fast")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        rows = in_process(make, Path(folder), *(QUICK if args.quick else FULL))
        found = {"rows": rows} | in_process(program, Path(folder), args.out, time.time())
    (args.out / "hour.json").write_text(json.dumps(found, indent=1) + "\n")
    print(
        "{rows:,} rows, {neurons:,} neurons, {connections:,} connections, {peak_mb:.0f} MB at the peak".format(**found)
    )
    for phase, (clock, cpu) in found["seconds"].items():
        print(f"{phase:<8} {clock:6.1f} s by the clock, {cpu:6.1f} s of the processor")


if __name__ == "__main__":
    main()
