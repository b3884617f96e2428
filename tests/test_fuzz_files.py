"""Damaged graph files are read right or refused in words, within 2 seconds and 1 GB."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_files
import pytest

PROGRAM = Path(__file__).with_name("fuzz_files.py")


@pytest.mark.soak
def test_damaged_files(amount, tmp_path):
    count = amount(80, 10_000)
    command = [sys.executable, PROGRAM, ",".join(fuzz_files.SUFFIX), count, 0, tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["name"] for row in rows] == list(fuzz_files.SUFFIX)
    for row in rows:
        print(*(f"{key} {value}" for key, value in row.items()))
        assert not row["wrong"], "\n".join(row["wrong"])
        assert row["loaded"] + row["refused"] == count and row["loaded"] and row["refused"]


@pytest.mark.filterwarnings("ignore:read_graph")
@pytest.mark.parametrize("name", fuzz_files.SUFFIX)
def test_the_oracle_sees(name, tmp_path, monkeypatch):
    """A reader that changes one weight is found."""
    import sparse_etrace as se

    data = fuzz_files.seeds(name, se, tmp_path)[0]
    path = tmp_path / f"one{fuzz_files.SUFFIX[name]}"
    path.write_bytes(data)
    graph = se.read_graph(path, format=name)
    assert fuzz_files.of_graph(graph) == getattr(fuzz_files, f"oracle_{name}")(data)
    changed = se.Graph(graph.connectivity, graph.weight.at[0].multiply(1.0000001), graph.nodes)
    assert fuzz_files.of_graph(changed) != getattr(fuzz_files, f"oracle_{name}")(data)
