"""What a stranger gets: the wheel, in an empty environment, from a folder that is not the checkout."""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Nothing of the environment that runs the tests may reach the new one.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}


def run(*command, cwd, timeout=600):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def test_content(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names}
    (info,) = tops - {"sparse_etrace"}
    assert re.fullmatch(r"sparse_etrace-[\d.]+\.dist-info", info)
    assert "sparse-etrace = sparse_etrace.cli:main" in entry_points
    data = {name for name in names if name.startswith("sparse_etrace/_data/")}
    expected = {
        f"sparse_etrace/_data/{path.relative_to(ROOT / 'datasets').as_posix()}"
        for path in (ROOT / "datasets").rglob("*")
        if path.is_file()
    }
    assert data == expected
    for folder in ("worm", "mnist1d"):
        assert {f"sparse_etrace/_data/{folder}/{file}" for file in ("README.md", "LICENSE", f"{folder}.npz")} <= data
        assert f"{info}/licenses/datasets/{folder}/LICENSE" in names
    assert {"sparse_etrace/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {path.relative_to(ROOT).as_posix() for path in (ROOT / "sparse_etrace").rglob("*.py")}
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/tests/test_wheel.py") for name in archive.getnames())


def test_quick_demo_from_an_empty_environment(built, tmp_path):
    _, wheel = built
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / "bin"
    run(scripts / "python", "-m", "pip", "install", "--disable-pip-version-check", wheel, cwd=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(scripts / "python", "-c", "import sparse_etrace; print(sparse_etrace.__file__)", cwd=elsewhere).strip()
    assert (tmp_path / "venv").resolve() in Path(where).resolve().parents
    out = tmp_path / "results"
    run(scripts / "sparse-etrace", "demo", "worm", "--quick", "--out", out, cwd=elsewhere)
    results = list(out.glob("*.json"))
    assert results and all(json.loads(path.read_text()) for path in results)
    figures = list(out.glob("*.png"))
    assert figures and all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in figures)
    assert not list(elsewhere.iterdir()), "the demo writes outside --out"
