"""How long `read_graph` takes beside the library that parses the file: scipy for Matrix Market, else pyarrow.

Both are measured in turns in one process; the median of several rounds. `read_graph` also checks the file and sorts the
synapses by receiver and by sender, as `Connectivity.from_edges` does. Parquet is measured as `write_graph` writes it,
in canonical order, and as tables of synapses come, in random order with 64-bit ids; so is packed CSV.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import scipy.io

import sparse_etrace as se


def in_turns(first, second, repeats):
    """Median times of two functions, and the median of the ratios of neighbours."""
    times = []
    for _ in range(repeats):
        pair = []
        for run in (first, second):
            begin = time.perf_counter()
            run()
            pair.append(time.perf_counter() - begin)
        times.append(pair)
    ratio = statistics.median(b / a for a, b in times)
    return {"library": statistics.median(a for a, _ in times), "read_graph": statistics.median(b for _, b in times)} | {
        "ratio": ratio
    }


def measure(folder, num_synapses, num_units, repeats):
    """Times of each kind of file, seconds."""
    random = np.random.default_rng(0)
    pre, post = random.integers(0, num_units, (2, num_synapses))
    count = random.geometric(0.2, num_synapses)
    graph = se.from_edges(pre, post, count, (num_units, num_units))
    paths = {name: folder / f"{name}.parquet" for name in ("parquet, ours", "parquet, positions", "parquet, ids")}
    se.write_graph(folder / "graph.mtx", graph)
    se.write_graph(paths["parquet, ours"], graph)
    ids = np.sort(random.integers(2**59, 2**60, num_units))
    for name, label in (("parquet, positions", np.arange(num_units)), ("parquet, ids", ids)):
        pq.write_table(pa.table({"pre": label[pre], "post": label[post], "weight": count}), paths[name])
    path = folder / "graph.mtx"
    found = {"mtx": in_turns(lambda: scipy.io.mmread(path, spmatrix=False), lambda: se.read_graph(path), repeats)}
    for name, path in paths.items():
        found[name] = in_turns(lambda p=path: pq.read_table(p), lambda p=path: se.read_graph(p), repeats)
    path = folder / "graph.csv.gz"
    with pa.CompressedOutputStream(path, "gzip") as packed:
        pa.csv.write_csv(pq.read_table(paths["parquet, ids"]), packed)
    found["csv.gz, ids"] = in_turns(lambda: pa.csv.read_csv(path), lambda: se.read_graph(path), repeats)
    sort = lambda: se.Connectivity.from_edges(pre, post, (num_units, num_units))
    found["from_edges"] = in_turns(sort, sort, repeats)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synapses", type=int, default=10_000_000)
    parser.add_argument("--units", type=int, default=139_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for files.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.synapses, args.units, args.repeats)
    print(f"{args.synapses:,} synapses, seconds")
    for name, row in found.items():
        print(f"{name:20} library {row['library']:.2f}  read_graph {row['read_graph']:.2f}  ratio {row['ratio']:.2f}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "files.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
