"""The benchmarks run; how fast is not for a test to say."""

import json
import os
import subprocess
import sys
from pathlib import Path

from soak import ONLY

FOLDER = Path(__file__).parent / "benchmarks"


@ONLY
def test_quick_benchmark(tmp_path):
    command = [sys.executable, FOLDER / "bench.py", "--quick", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert set(found["steps"]) == {"1", "16"} and found["fly_eye"]["synapses"] > 10_000
    assert all(row["D-RTRL"] > row["forward"] > 0 for row in found["steps"].values())
    assert "copy" in done.stdout and "fly eye" in done.stdout


@ONLY
def test_quick_benchmark_of_units(tmp_path):
    command = [sys.executable, FOLDER / "units.py", "--quick", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "units.json").read_text())
    assert {"graph GRU", "ALIF", "adLIF"} < set(found)
    assert all(set(row) == {"forward", "D-RTRL", "ES-D-RTRL", "BPTT"} for row in found.values())


@ONLY
def test_quick_study_of_learners(tmp_path):
    command = [sys.executable, FOLDER / "learners.py", "--quick", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "learners.json").read_text())
    for name in ("learners.png", "copy.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    compared = found["alignment"]["rate"]["rules"]
    assert all(row["bytes"] > 0 and row["ratio"] > 0 for row in compared.values())
    assert compared["BPTT"]["cosine"] > 0.999
    assert set(found["copy"]["rules"]) == {"SnAp-2"}
    assert "cosine" in done.stdout and "copies" in done.stdout
