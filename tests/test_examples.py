"""Every example runs in its short mode, from another folder, and asserts its number."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sparse_etrace as se

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
# The package that is under test here, wherever it is.
PACKAGES = str(Path(se.__file__).parents[1])
# They run longer than they compile.
LONG = {"13_evidence_accumulation", "15_balanced_network"}


def test_examples_exist():
    names = {
        "01_first_gradient.py",
        "02_from_networkx.py",
        "03_custom_op.py",
        "04_worm.py",
        "05_sparse_spiking.py",
        "06_streaming_graph.py",
        "07_bring_your_own_connectome.py",
        "08_resume.py",
        "09_traffic.py",
        "10_temporal_graph.py",
        "11_rewire.py",
        "12_two_processes.py",
        "13_evidence_accumulation.py",
        "14_delays.py",
        "15_balanced_network.py",
    }
    assert names <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.optimized] * (p.stem in LONG)) for p in EXAMPLES], ids=lambda p: p.stem
)
def test_example(path, tmp_path, monkeypatch, capsys):
    """In this process, which spares the start of another; what an example starts itself finds the same package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--short"])
    monkeypatch.setenv("PYTHONPATH", PACKAGES, prepend=os.pathsep)
    if path.stem == "08_resume":  # it starts itself again, where XLA optimizes as it does by itself, to the same bits
        said = subprocess.run([sys.executable, str(path), "--short"], check=True, capture_output=True, text=True).stdout
    else:
        runpy.run_path(str(path), run_name="__main__")
        said = capsys.readouterr().out
    assert said.strip() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_what_one_learns_and_asserts(path):
    text = path.read_text()
    assert text.startswith('"""') and "You learn" in text and "\nassert " in text
    assert len(text.splitlines()) <= 110
