"""The benchmarks run; how fast is not for a test to say."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from soak import ONLY

FOLDER = Path(__file__).parent / "benchmarks"


def quick(name, folder):
    """What a benchmark writes and what it prints."""
    command = [sys.executable, FOLDER / f"{name}.py", "--quick", "--out", folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=folder, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{name}.json").read_text()), done.stdout


@ONLY
def test_quick_benchmark(tmp_path):
    found, printed = quick("bench", tmp_path)
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert set(found["steps"]) == {"1", "16"} and found["fly_eye"]["synapses"] > 10_000
    assert all(row["D-RTRL"] > row["forward"] > 0 for row in found["steps"].values())
    assert "copy" in printed and "fly eye" in printed


@ONLY
def test_quick_benchmark_of_units(tmp_path):
    found, _ = quick("units", tmp_path)
    assert set(found.pop("worm by RTRL")) == {"forward", "RTRL", "BPTT"}
    assert {"graph GRU", "ALIF", "adLIF", "small GRU", "dense ALIF, 100"} < set(found)
    assert all(set(row) == {"forward", "D-RTRL", "ES-D-RTRL", "BPTT"} for row in found.values())


@ONLY
def test_quick_benchmark_of_activity(tmp_path):
    found, _ = quick("activity", tmp_path)
    assert set(found) == {"1.0", "0.05", "0.01"} and all(set(row) == {"forward", "D-RTRL"} for row in found.values())


@ONLY
def test_quick_benchmark_of_delays(tmp_path):
    found, _ = quick("delays", tmp_path)
    assert set(found) == {"1.0", "0.05", "0.01"}
    assert all(len(ms) == 2 and min(ms) > 0 for row in found.values() for ms in row.values())


@ONLY
def test_quick_benchmark_of_alignment(tmp_path):
    found, _ = quick("aligned", tmp_path)
    assert len(found) == 10 and all(-1 <= cosine <= 1.001 for row in found.values() for cosine in row.values())


@ONLY
def test_quick_benchmark_of_a_graph(tmp_path):
    found, _ = quick("graph", tmp_path)
    assert set(found) == {"forward", "forward, plain", "BPTT-16, plain", "D-RTRL", "ES-D-RTRL", "Bridged(16)"}
    assert all(row["ms"] > 0 for row in found.values())


@ONLY
def test_quick_predictions(tmp_path):
    """On data that are made up, with edges that stay and others that change."""
    found, printed = quick("prequential", tmp_path)
    assert set(found) == {"chickenpox", "tennis"} and "persistence" in printed
    for rows in found.values():
        assert {"D-RTRL", "Bridged", "persistence", "moving average", "historical mean"} == set(rows)
        assert all(0 < error < 2 for errors in rows.values() for error in errors)


@ONLY
def test_quick_classes(tmp_path):
    """Of papers that are made up, and of short chains."""
    found, printed = quick("classes", tmp_path)
    assert {"papers, iterated", "papers, two layers", "5 nodes, RTRL", "5 nodes, two layers"} <= set(found)
    assert all(0 <= score <= 1 for scores in found.values() for score in scores) and "%" in printed


@ONLY
def test_quick_match_to_sample(tmp_path):
    found, printed = quick("match", tmp_path)
    assert set(found) == {"D-RTRL", "BPTT"} and "updates to 5%" in printed
    assert found["D-RTRL"][0]["traces"] > 0 and found["BPTT"][0]["traces"] == 0
    assert all(row["seconds"] > 0 and 0 <= row["error"][-1] <= 1 for (row,) in found.values())


@ONLY
def test_quick_study_of_learners(tmp_path):
    found, printed = quick("learners", tmp_path)
    for name in ("learners.png", "copy.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    compared = found["alignment"]["rate"]["rules"]
    assert all(row["bytes"] > 0 and row["ratio"] > 0 for row in compared.values())
    assert compared["BPTT"]["cosine"] > 0.999
    assert set(found["copy"]["rules"]) == {"SnAp-2"}
    assert "cosine" in printed and "copies" in printed


@ONLY
def test_quick_benchmark_of_a_gpu(tmp_path):
    """On this machine beside itself."""
    found, printed = quick("gpu", tmp_path)
    assert len(found["gradients"]) == 16 and found["worst_float64"] == found["worst_float32"] == 0
    assert "worst difference" in printed
    assert all(ms > 0 for row in found["steps"].values() for ms in row.values())


def test_what_differs_on_a_gpu(monkeypatch):
    """A small gradient of one step counts as much as a large one of another; what is not finite differs."""
    monkeypatch.syspath_prepend(FOLDER)
    difference = importlib.import_module("gpu").difference
    true = [np.array([[1e3, 1.0], [1e-2, 0.0]])]
    assert difference([true[0] * (1 + 1e-12)], true) < 2e-12
    assert difference([true[0] + np.array([[0, 0], [1e-3, 0]])], true) > 0.05
    assert not difference([true[0] * np.nan], true) < 1


@ONLY
def test_quick_benchmark_of_the_whole_fly(tmp_path):
    found, _ = quick("whole_fly", tmp_path)
    assert found["here"]["spikes"] > found["here"]["active"] > 20
    assert all(found[rule]["largest gradient"] > 0 for rule in ("D-RTRL", "ES-D-RTRL"))


@ONLY
def test_quick_hour_of_a_stranger(tmp_path):
    found, printed = quick("hour", tmp_path)
    assert (tmp_path / "hour.png").read_bytes().startswith(b"\x89PNG")
    assert found["rows"] > found["connections"] > 10_000 and 60 < found["driven_hz"] < 140
    assert list(found["seconds"]) == ["import", "read", "simulate", "figure"] and "by the clock" in printed
    assert all(0 < cpu for _, cpu in found["seconds"].values())


@ONLY
def test_quick_benchmark_of_events(tmp_path):
    found, printed = quick("events", tmp_path)
    assert len(found) == 6 and all(us > 0 for row in found.values() for us in row.values())
    assert list(found["D-RTRL"]) == ["4, 100", "4, 300"] and list(found["RTRL"]) == ["4, 100"] and "-" in printed


@ONLY
def test_quick_benchmark_of_a_balanced_network(tmp_path):
    found, _ = quick("balanced", tmp_path)
    assert set(found) == {"here"} and all(value > 0 for value in found["here"].values())


@ONLY
def test_quick_benchmark_of_a_first_call(tmp_path):
    found, _ = quick("first_call", tmp_path)
    assert len(found) == 4 and all(0 < cpu for row in found.values() for cpu, _ in row.values())


@ONLY
def test_quick_benchmark_of_updates(tmp_path):
    found, _ = quick("updates", tmp_path)
    assert {"fit, SGD", "fit, Adam"} == set(found["1"]) - set(found["16"])
    assert all(0 < row["forward"] < row["D-RTRL, donate=True"] for row in found.values())


@ONLY
def test_quick_study_of_students(tmp_path):
    """More recorded neurons leave less error on the others, and RTRL does what BPTT does."""
    found, _ = quick("teacher", tmp_path)
    for (one,) in found.values():
        few, many = one["rules"]["BPTT"].values()
        assert many["unrecorded"] < few["unrecorded"] and many["recorded"] < 1
        by_rtrl = [row["unrecorded"] for row in one["rules"]["RTRL"].values()]
        np.testing.assert_allclose(by_rtrl, [few["unrecorded"], many["unrecorded"]], rtol=1e-2)
    assert (tmp_path / "teacher.png").read_bytes().startswith(b"\x89PNG")


@ONLY
def test_quick_scaling():
    """Half of the memory on each of two devices, planned and counted, and only what units send between them."""
    command = [sys.executable, str(FOLDER / "scale.py"), "--quick"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()]
    plans, rows = rows[1:9], rows[10:]
    assert [row[2] for row in plans] == 2 * ["1", "2", "4", "8"] and 0.5 <= float(plans[1][5]) < 0.65
    assert len(rows) == 16 and [row[4] for row in rows[:4]] == ["0", "6,404", "6,404", "6,404"]
    assert 0.49 <= float(rows[1][3]) / float(rows[0][3]) < 0.6
