"""What a stranger gets: the wheel, in an empty environment, from a folder that is not the checkout."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from quick import plain_environment

ROOT = Path(__file__).resolve().parents[1]
# Nothing of the environment that runs the tests may reach the new one.
CLEAN = {
    name: value
    for name, value in plain_environment().items()
    if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))
}


def run(*command, cwd, timeout=600, env=CLEAN):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
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
    for folder in ("worm", "fly_eye", "mnist1d", "mushroom_body"):
        assert {f"sparse_etrace/_data/{folder}/{file}" for file in ("README.md", "LICENSE", f"{folder}.npz")} <= data
        assert f"{info}/licenses/datasets/{folder}/LICENSE" in names
    assert {"sparse_etrace/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    assert "sparse_etrace/_kernels/libsparse_etrace.so.1" in names and "-none-" in wheel.name
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {path.relative_to(ROOT).as_posix() for path in (ROOT / "sparse_etrace").rglob("*.py")}
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "native").iterdir()}
    assert sources | {"tests/test_wheel.py", "examples/01_first_gradient.py", "Makefile"} <= packed


def test_without_a_compiler(tmp_path):
    """The package installs, runs the kernels of XLA, and says so."""
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    run(*command, cwd=tmp_path, env={**CLEAN, "CXX": str(tmp_path / "no-compiler")})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so.1")]
        archive.extractall(tmp_path / "here")
    program = (
        "import jax.numpy as jnp, sparse_etrace as se; from sparse_etrace import cli; cli.main(['info']);"
        "conn = se.Connectivity.from_edges([0, 1], [1, 0], shape=(2, 2));"
        "print(se.ETraceParam({'weight': jnp.array([3.0, 5.0])}, se.SpMatMulOp(conn))(jnp.array([1.0, 2.0])).tolist())"
    )
    environment = {**CLEAN, "PYTHONPATH": str(tmp_path / "here")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.endswith("[6.0, 5.0]\n") and "installed without a C++ compiler" in done.stdout, done.stderr
    assert done.stderr.count("runs the kernels of XLA, which are slower") == 1


def test_quick_demo_from_an_empty_environment(built, tmp_path):
    _, wheel = built
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / "bin"
    run(scripts / "python", "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", wheel, cwd=tmp_path)
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
