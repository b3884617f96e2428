"""What a stranger gets: the wheel, in an empty environment, from a folder that is not the checkout."""

import ast
import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# No package of the environment that runs the tests may reach the new one.
CLEAN = {name: v for name, v in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}


def run(*command, cwd, timeout=600, env=CLEAN):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel built from it; `make` has built what it installed already, and says where."""
    folder = Path(os.environ.get("BUILT") or tmp_path_factory.mktemp("built"))
    if "BUILT" not in os.environ:
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
    libraries = {"_kernels/libsparse_etrace.so.1", "_graph/libsparse_etrace_edges.so.1"}
    assert {f"sparse_etrace/{name}" for name in libraries} <= set(names) and "-none-" in wheel.name
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {path.relative_to(ROOT).as_posix() for path in (ROOT / "sparse_etrace").rglob("*.py")}
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "native").iterdir()}
    assert sources | {"tests/test_wheel.py", "examples/01_first_gradient.py", "Makefile"} <= packed


def test_all_that_is_imported_is_required():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["tables"], *extras["events"]]
    imported = set()
    for path in (ROOT / "sparse_etrace").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
    others = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"sparse_etrace"}
    assert others == {re.match(r"\w+", name)[0] for name in asked}


def test_without_a_compiler(tmp_path):
    """The package installs, runs the kernels of XLA, and says so."""
    # With what builds at hand, or in an environment that pip fills with it.
    has_all = shutil.which("cmake") and importlib.util.find_spec("scikit_build_core")
    here = ["--no-build-isolation"] if has_all else []
    command = (sys.executable, "-m", "pip", "wheel", *here, "--no-deps", "--wheel-dir", tmp_path, ROOT)
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


@pytest.mark.soak
def test_the_first_hour_of_a_stranger(built, tmp_path, amount):
    """Install, README's first gradient, a network of one's own from a CSV, a kill, a resumption, figures; the demo."""
    _, wheel = built
    spent = {}

    @contextlib.contextmanager
    def step(name):
        begin = time.monotonic()
        yield
        spent[name] = round(time.monotonic() - begin, 1)

    with step("install"):
        scripts = tmp_path / "venv" / "bin"
        pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--disable-pip-version-check")
        run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
        if amount(False, True):
            run(*pip, "--no-compile", wheel, cwd=tmp_path)
        else:
            run(*pip, "--no-deps", wheel, cwd=tmp_path)
            (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
            (packages / "those_here.pth").write_text(sysconfig.get_path("purelib"))
    here = tmp_path / "elsewhere"
    here.mkdir()
    where = run(scripts / "python", "-c", "import sparse_etrace; print(sparse_etrace.__file__)", cwd=here).strip()
    assert (tmp_path / "venv").resolve() in Path(where).resolve().parents
    with step("first gradient"):
        (block,) = re.findall(r"^```python\n(.*?se\.online_grad.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
        run(scripts / "python", "-c", f"{block}\nassert losses.shape == (1000,)", cwd=here)
    program = shutil.copy(ROOT / "tests" / "first_hour.py", here)
    with step("own graph, trained, killed"):
        draw = random.Random(0)
        ends = [(f"n{i}", f"n{j}") for i in range(40) for j in draw.sample(range(40), 4)]
        rows = "".join(f"{pre},{post},{draw.randint(1, 9)}\n" for pre, post in ends)
        (here / "neurons.csv").write_text(f"source,target,synapses\n{rows}")
        process = subprocess.Popen(
            [scripts / "python", program, "neurons.csv"],
            cwd=here,
            env=CLEAN,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while not (here / "run.ckpt").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        assert b"took the columns 'source' for pre" in said and not (here / "learned.csv").exists()
    with step("resumed, drawn"):
        resumed = run(scripts / "python", program, "neurons.csv", cwd=here)
    assert "units" in resumed and re.search(r"loss 0\.\d+ -> 0\.[0-6]\d+ after 160 updates", resumed)
    kept = {name: (here / name).read_bytes() for name in ("learned.csv", "weights.png", "learning.png")}
    assert all(kept[name].startswith(b"\x89PNG\r\n") for name in ("weights.png", "learning.png"))
    if amount(False, True):
        with step("never killed"):
            (here / "run.ckpt").unlink()
            assert run(scripts / "python", program, "neurons.csv", cwd=here) == resumed
        assert (here / "learned.csv").read_bytes() == kept["learned.csv"]
    with step("commands"):
        before = set(here.iterdir())
        run(scripts / "sparse-etrace", "convert", "learned.csv", tmp_path / "again.csv", cwd=here)
        assert (tmp_path / "again.csv").read_bytes() == kept["learned.csv"]
        if amount(False, True):
            assert "2,194" in run(scripts / "sparse-etrace", "inspect", "worm", "--learner", "D_RTRL", cwd=here)
            run(scripts / "sparse-etrace", "convert", "learned.csv", tmp_path / "learned.graphml.gz", cwd=here)
            run(scripts / "sparse-etrace", "convert", tmp_path / "learned.graphml.gz", tmp_path / "back.csv", cwd=here)
            assert (tmp_path / "back.csv").read_bytes() == kept["learned.csv"]
            out = tmp_path / "results"
            run(scripts / "sparse-etrace", "demo", "worm", "--quick", "--out", out, cwd=here)
            assert json.loads((out / "worm.json").read_text())
            assert (out / "worm.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert set(here.iterdir()) == before, "a command writes where it was not asked to"
    print(spent)
