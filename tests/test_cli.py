"""The command line: its answers, and one clear line with exit code 2 for whatever is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import sparse_etrace as se
from sparse_etrace import cli
from sparse_etrace._kernels import native


def ends(argv):
    """Exit code of the command, however it ends."""
    try:
        return cli.main(argv)
    except SystemExit as end:
        return end.code


@pytest.fixture
def runs(monkeypatch):
    """The demo is not run; its arguments are kept."""
    found = []
    monkeypatch.setattr(cli.demo, "run", lambda out, quick, seed, exact: found.append((out, quick, seed, exact)))
    return found


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "COMMAND"),
        (["train"], "train"),
        (["demo"], "name"),
        (["demo", "fly"], "fly"),
        (["demo", "worm", "--seed", "one"], "--seed"),
        (["demo", "worm", "--seed", "-1"], "--seed"),
        (["demo", "worm", "--seed", "1.5"], "--seed"),
        (["demo", "worm", "--seed", "99999999999999999999"], "--seed"),
        (["demo", "worm", "--quik"], "--quik"),
        (["demo", "worm", "--out"], "--out"),
    ],
)
def test_wrong_arguments(runs, capsys, argv, said):
    assert ends(argv) == 2
    shown = capsys.readouterr()
    assert not runs and not shown.out
    (line,) = shown.err.splitlines()
    assert line.startswith("sparse-etrace") and said in line


def test_out_is_a_file(runs, capsys, tmp_path):
    file = tmp_path / "results"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert ends(["demo", "worm", "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sparse-etrace: ") and str(file) in line
    assert not runs and file.read_text() == "mine"


def test_out_may_not_be_written(runs, capsys, monkeypatch, tmp_path):
    def refuse(path, *args, **rest):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert ends(["demo", "worm", "--out", str(tmp_path / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line and "results" in line and not runs


def test_disk_that_fills_up(monkeypatch, capsys, tmp_path):
    def run(out, quick, seed, exact):
        raise OSError(28, "No space left on device", str(out / "worm.png"))

    monkeypatch.setattr(cli.demo, "run", run)
    assert ends(["demo", "worm", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and "worm.png" in line


def test_arguments_arrive(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "worm", "--quick", "--seed", "3", "--out", "a/b"]) == 0
    assert cli.main(["demo", "worm", "--exact"]) == 0
    assert runs == [(Path("a/b"), True, 3, False), (Path("results"), False, 0, True)]
    assert (tmp_path / "a/b").is_dir()


def test_version_and_help(capsys):
    assert ends(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2
    assert ends(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert ends(["demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("worm", "--quick", "--out", "--seed"))


def test_as_a_process(tmp_path):
    """Nothing but the line on stderr, whatever is imported."""
    here = str(Path(se.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from sparse_etrace.cli import main; sys.exit(main())", "demo", "fly"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": here}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sparse-etrace demo: ") and done.stderr.count("\n") == 1


def test_info(capsys):
    assert cli.main(["info"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["jax"] == jax.__version__ and shown["devices"] == ", ".join(map(str, jax.devices()))
    kernels = os.environ.get(native.VARIABLE) or "compiled"
    assert kernels in shown["kernels"] and native.KERNELS in shown["kernels"].lower()
