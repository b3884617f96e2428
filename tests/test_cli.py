"""The command line: its answers, and one clear line with exit code 2 for whatever is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import sparse_etrace as se
from sparse_etrace import cli
from sparse_etrace._graph import sorting
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
    monkeypatch.setattr(cli.demo_events, "run", lambda out, quick, seed: found.append((out, quick, seed)))
    monkeypatch.setattr(cli.demo_traffic, "run", lambda out, data, quick, seed: found.append((out, data, quick, seed)))
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
        (["inspect"], "FILE"),
        (["inspect", "worm", "--batch", "0"], "--batch"),
        (["inspect", "worm", "--batch", "many"], "--batch"),
        (["inspect", "worm", "--devices", "0"], "--devices"),
        (["inspect", "worm", "--learner", "Adam"], "expected one of D_RTRL"),
        (["inspect", "worm", "--learner", "D_RTRL-2"], "SnAp-NUMBER"),
        (
            ["inspect", "worm", "--learner", "SnAp-0"],
            "--learner: expected a whole number from 1 to 2147483647, got '0'",
        ),
        (["inspect", "worm", "--learner", "SnAp-"], "--learner: expected a whole number from 1"),
        (["inspect", "worm", "--learner", "TBPTT-99999999999999999999"], "got '99999999999999999999'"),
        (["inspect", "worm", "--learner", "BPTT-2147483648"], "from 1 to 2147483647, got '2147483648'"),
        (["inspect", "worm", "--batch", "9" * 5000], "--batch: expected a whole number from 1"),
        (["inspect", "nothing.csv"], "nothing.csv"),
        (["inspect", "graph.doc"], "graph.doc"),
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
    assert cli.main(["demo", "events", "--seed", "2", "--out", "a/b"]) == 0
    assert cli.main(["demo", "traffic", "--quick", "--data", "week.npz"]) == 0
    assert runs[2:] == [(Path("a/b"), False, 2), (Path("results"), Path("week.npz"), True, 0)]
    assert (tmp_path / "a/b").is_dir()


def test_version_and_help(capsys):
    assert ends(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2
    assert ends(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert ends(["demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("worm", "--quick", "--out", "--seed"))


@pytest.fixture
def edges(tmp_path):
    file = tmp_path / "edges.csv"
    file.write_text("pre,post,weight\na,b,0.5\nb,a,2\nb,b,1\n")
    return str(file)


def test_inspect(capsys, edges):
    assert cli.main(["inspect", edges, "--batch", "4", "--learner", "D_RTRL", "--learner", "SnAp-1"]) == 0
    graph, costs = capsys.readouterr().out.split("\nto train")
    assert "3, density 0.75" in graph and "b (2)" in graph and "holds; 2 excitatory" in graph
    assert "4 batch elements" in costs
    rows = {line.split()[0]: line.split() for line in costs.splitlines()[1:] if "  " in line}
    assert rows["D_RTRL"][1:5] == ["diagonal", "16", "80", "B"] and "SnAp(n=1)" in rows


def test_inspect_for_several_devices(capsys, edges):
    assert cli.main(["inspect", edges, "--devices", "2", "--learner", "D_RTRL", "--learner", "SnAp-2"]) == 0
    shown = capsys.readouterr().out
    assert "1 batch element, on each of 2 devices" in shown and "exchanged" in shown
    (row,) = se.learner_costs(se.read_graph(edges), 1, [se.D_RTRL()], devices=2).rows
    assert f"{row.exchanged:.0f} B" in shown and row.exchanged > 0
    assert "influences of synapses on units stay on one device" in " ".join(shown.split())


def test_inspect_without_a_choice(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "learner_costs", lambda *given, **rest: asked.append((given, rest)) or "costs")
    assert cli.main(["inspect", "mushroom_body"]) == 0
    ((graph, batch), rest), shown = asked[0], capsys.readouterr().out
    assert (graph.connectivity.num_synapses, batch, rest) == (7425, 1, {"devices": 1})
    assert "Kenyon cell" in shown and shown.endswith("costs\n")


def test_inspect_with_a_table_of_nodes(capsys, tmp_path, edges):
    table = tmp_path / "neurons.csv"
    table.write_text("id,cell_type,nt_type\na,T4a,ACH\nb,Mi1,GABA\nc,Mi1,ACH\n")
    assert cli.main(["inspect", edges, "--nodes", str(table), "--min-weight", "1", "--learner", "BPTT-5"]) == 0
    out, said = capsys.readouterr()
    assert "node attribute cell_type  Mi1 1, T4a 1" in out or "node attribute cell_type  T4a 1, Mi1 1" in out
    assert "ACH 1" in out and "GABA 1" in out and "2, density 0.5" in out
    assert "left out 1 of 3 nodes of the table" in said
    assert cli.main(["inspect", "worm", "--nodes", str(table)]) == 2
    assert "--nodes: expected a file beside it, got the data set 'worm'" in capsys.readouterr().err
    assert cli.main(["inspect", "worm", "--min-weight", "5"]) == 2
    assert "--min-weight: expected a file beside it, got the data set 'worm'" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.LEARNERS)
def test_every_learner_has_a_name(name):
    learner, steps = cli._learner(name)
    assert type(learner) is getattr(se, name) and steps == ((100,) if name == "BPTT" else (16,))
    if name in cli.NUMBERED:
        learner, steps = cli._learner(f"{name}-7")
        assert 7 in (getattr(learner, "n", None), getattr(learner, "steps", None), *steps)


def test_every_learner_is_costed(edges, capsys):
    """Those that need the name of a leaf or a number."""
    names = ("EProp", "RFLO", "ThreeFactor", "OTTT")
    assert cli.main(["inspect", edges, *(word for name in names for word in ("--learner", name))]) == 0
    assert "refused" not in capsys.readouterr().out


def test_inspect_a_table_that_says_little(capsys, tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("who,whom,strength\na,b,0.5\nb,c,2\n")
    argv = ["inspect", str(file), "--learner", "BPTT-5"]
    assert cli.main([*argv, "--pre", "whom", "--post", "who", "--weight", "strength", "--format", "edge_list"]) == 0
    shown = capsys.readouterr()
    assert not shown.err and "0.5 to 2" in shown.out and "hubs, out        b (1)" in shown.out
    file.write_text("source,target\na,b\nb,c\n")
    assert cli.main(argv) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sparse-etrace: ") and "took the columns" in line


def test_inspect_what_is_not_square(capsys, tmp_path):
    se.write_graph(tmp_path / "wide.npz", se.from_edges([0, 1], [2, 0], shape=(2, 3)))
    assert cli.main(["inspect", str(tmp_path / "wide.npz")]) == 0
    assert "not square" in capsys.readouterr().out


def test_as_a_process(tmp_path):
    """Nothing but the line on stderr, whatever is imported."""
    here = str(Path(se.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from sparse_etrace.cli import main; sys.exit(main())", "demo", "fly"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": here}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sparse-etrace demo: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("argv", [["inspect", "mushroom_body", "--learner", "D_RTRL"], ["info"]], ids=str)
def test_nobody_reads_on(argv):
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from sparse_etrace.cli import main; sys.exit(main())", *argv],
            env=os.environ | {"PYTHONPATH": str(Path(se.__file__).parents[1])}, stdout=writes, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")


def test_costs_beyond_any_machine(edges, capsys):
    names = ("BPTT-2147483647", "TBPTT-2147483647")
    argv = ["inspect", edges, "--batch", "2147483647", *(word for name in names for word in ("--learner", name))]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.count("more numbers than XLA can count") == 2


def test_info(capsys):
    assert cli.main(["info"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["jax"] == jax.__version__ and shown["devices"] == ", ".join(map(str, jax.devices()))
    kernels = os.environ.get(native.VARIABLE) or "compiled"
    assert kernels in shown["kernels"] and native.KERNELS in shown["kernels"].lower()
    assert (sorting.REASON or "compiled") in shown["edges"]
