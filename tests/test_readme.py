"""Every Python block of the README runs as it stands there, and its pictures and files exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


def test_there_is_an_example():
    assert any("se.online_grad(" in block for block in BLOCKS)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile(BLOCKS[number], f"README.md, block {number + 1}", "exec")
    names = {"__name__": "readme"}
    exec(code, names)
    if "losses" in names:
        assert names["losses"].ndim == 1 and bool((names["losses"] == names["losses"]).all())


def test_make_targets():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"demo", "test"} <= set(re.findall(r"\bmake ([a-z]+)\b", TEXT)) <= set(targets)


def test_files_that_are_linked():
    linked = [path for path in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in path]
    assert not [path for path in linked if not (ROOT / path).exists()]
