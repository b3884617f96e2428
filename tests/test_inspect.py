"""What a graph is, beside networkx; what learners would cost on it, beside their carries; tables."""

import io
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace import _text, cli
from sparse_etrace._report import costs


def random_graph(seed, units=30, synapses=60, loops=True):
    rng = np.random.default_rng(seed)
    pre, post = rng.integers(units, size=(2, synapses))
    keep = slice(None) if loops else pre != post
    return se.from_edges(pre[keep], post[keep], rng.normal(size=synapses)[keep], shape=(units, units))


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_as_networkx_counts(seed):
    graph = random_graph(seed)
    found, right = se.inspect_graph(graph), graph.to_networkx()
    simple = nx.DiGraph(right)
    assert (found.nodes, found.synapses, found.pairs) == (30, 60, simple.number_of_edges())
    assert found.parallel == 60 - found.pairs
    assert found.self_loops == nx.number_of_selfloops(right)
    assert found.isolated == nx.number_of_isolates(right)
    for ours, theirs in (
        (found.weak, list(nx.weakly_connected_components(right))),
        (found.strong, list(nx.strongly_connected_components(right))),
    ):
        assert (ours.number, ours.largest) == (len(theirs), max(map(len, theirs)) / 30)
    simple.remove_edges_from(list(nx.selfloop_edges(simple)))
    assert found.reciprocity == pytest.approx(nx.overall_reciprocity(simple))
    for degrees, theirs in ((found.in_degree, dict(right.in_degree())), (found.out_degree, dict(right.out_degree()))):
        assert degrees[:3] == (np.mean(list(theirs.values())), np.median(list(theirs.values())), max(theirs.values()))
        assert [k for _, k in degrees.hubs] == sorted(theirs.values(), reverse=True)[:5]
        assert all(theirs[label] == k for label, k in degrees.hubs)
    assert found.spectral_radius == pytest.approx(max(abs(np.linalg.eigvals(graph.to_dense()))), rel=1e-5)


def test_a_graph_by_hand():
    """a -> b twice, b -> a, c -> c, c -> a, d alone."""
    ends = ["a", "a", "b", "c", "c"], ["b", "b", "a", "c", "a"]
    graph = se.from_edges(*ends, [1.0, -2.0, 0.0, -3.0, -1.0], labels=["a", "b", "c", "d"])
    found = se.inspect_graph(graph)
    assert (found.synapses, found.pairs, found.parallel, found.self_loops, found.isolated) == (5, 4, 1, 1, 1)
    assert found.reciprocity == pytest.approx(2 / 3) and found.density == 5 / 16
    assert found.weak == (2, 0.75) and found.strong == (3, 0.5)
    assert found.out_degree.hubs == (("a", 2), ("c", 2), ("b", 1)) and found.in_degree.hubs[0] == ("a", 2)
    assert found.weights == (-3, 1, -1, 0.6, 0.2, 0)
    assert found.signs == (0, 1, 1, 2) and not found.signs.dale


def test_a_rectangular_graph():
    found = se.inspect_graph(se.from_edges([0, 0, 1], [1, 1, 0], shape=(3, 2)))
    assert (found.nodes, found.num_pre, found.num_post, found.pairs, found.isolated) == (5, 3, 2, 2, 1)
    assert found.self_loops is found.strong is found.reciprocity is found.spectral_radius is None
    assert found.weak == (3, 0.4) and found.in_degree.hubs == ((4, 2), (3, 1))
    assert "3 sending, 2 receiving" in str(found) and "strong" not in str(found)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (2, 2)])
def test_an_empty_graph(shape):
    found = se.inspect_graph(se.from_edges([], [], shape=shape))
    assert (found.synapses, found.isolated, found.weights) == (0, found.nodes, None)
    assert found.weak.number == found.nodes and found.signs.dale
    assert "units" in str(found)


def test_weights_that_are_not_finite():
    graph = random_graph(0)
    broken = se.Graph(graph.connectivity, graph.weight.at[:6].set(jnp.nan))
    found = se.inspect_graph(broken)
    assert found.weights.not_finite == pytest.approx(0.1) and found.weights.min == graph.weight[6:].min()
    assert found.spectral_radius is None and "10.0% not finite" in str(found)
    none = se.inspect_graph(se.Graph(graph.connectivity, jnp.full(60, jnp.inf)))
    assert np.isnan(none.weights.mean) and none.weights.not_finite == 1
    with pytest.raises(ValueError, match="not finite|finite"):
        se.inspect_graph(broken, spectral_radius=True)


def test_the_radius_of_a_large_graph_is_not_asked_for():
    large = se.from_edges([0, 1], [1, 0], [2.0, 8.0], shape=(2000, 2000))
    assert se.inspect_graph(large).spectral_radius is None
    assert se.inspect_graph(large, spectral_radius=True).spectral_radius == pytest.approx(4)
    assert se.inspect_graph(random_graph(0), spectral_radius=False).spectral_radius is None


def test_a_traced_graph():
    with pytest.raises(TypeError, match="graph: expected an array with values, got a traced one"):
        jax.jit(lambda g: se.inspect_graph(g).synapses)(random_graph(0))


def test_attributes():
    graph = random_graph(0)
    names = np.array(["x", "y", ""])[np.arange(30) % 3]
    attrs = {
        "few": names, "object": names.astype(object), "flag": np.arange(30) < 7, "own": [f"n{i}" for i in range(30)],
        "mixed": np.array([1, "a"] * 15, object), "place": np.zeros((30, 3), np.float32),
    }  # fmt: skip
    many = {"own": np.array([f"s{i}" for i in range(60)]), "kind": ["e"] * 60}
    found = se.inspect_graph(se.Graph(graph.connectivity, graph.weight, node_attrs=attrs, edge_attrs=many))
    assert found.node_attrs["few"].counts == found.node_attrs["object"].counts == {"x": 10, "y": 10, "": 10}
    assert found.node_attrs["flag"].counts == {False: 23, True: 7}
    assert found.node_attrs["own"].counts and found.node_attrs["mixed"].counts is None
    assert found.node_attrs["place"] == ("float32", (3,), None)
    assert found.edge_attrs["kind"].counts == {"e": 60}
    text = str(found)
    assert "(empty) 10" in text and "float32 x 3" in text and "and 24 more" in text
    values = found.to_dataframe().set_index("quantity").value
    assert values["node_attrs.flag.True"] == 7 and values["in_degree.mean"] == 2 and values["synapses"] == 60


def test_types_of_many_cells_are_counted():
    """A type of two cells or more is a category, however many types there are; names are none."""
    types = [f"T{k}" for k in np.arange(400) % 150]
    graph = se.from_edges([0], [1], shape=(400, 400))
    attrs = {"cell_type": types, "name": [f"n{k}" for k in range(400)]}
    found = se.inspect_graph(se.Graph(graph.connectivity, graph.weight, node_attrs=attrs))
    assert len(found.node_attrs["cell_type"].counts) == 150 and found.node_attrs["name"].counts is None
    assert "T0 3, T1 3, T2 3, T3 3, T4 3, T5 3 and 144 more" in str(found)


def test_the_worm_prints():
    text = str(se.inspect_graph(se.datasets.worm()))
    assert max(map(len, text.splitlines())) <= 120
    for said in ("2,194, density 0.0282", "AVAR (49)", "42, the largest with 84.9%", "motor 88", "1 to 37, mean 2.914"):
        assert said in text


@pytest.mark.soak
def test_fifteen_million_synapses_in_seconds(amount):
    graph = se.datasets.fly_eye(amount(15, 47))
    begin = time.perf_counter()
    found = se.inspect_graph(graph)
    assert time.perf_counter() - begin < amount(4, 12)
    assert found.pairs == found.synapses == graph.connectivity.num_synapses


# --- costs -----------------------------------------------------------------------------------------------------------


def reached(graph, steps):
    """Units within `steps - 1` steps of each, by dense powers."""
    step = np.asarray(graph.to_dense(np.ones(graph.connectivity.num_synapses, np.float32))) + np.eye(30) > 0
    return np.linalg.matrix_power(step.astype(float), min(steps or 30, 30) - 1) > 0


COUNTED = [(steps, synapses) for steps in (1, 2, 3, 5, 40, None) for synapses in (0, 25, 45, 90)]


@pytest.mark.parametrize("steps, synapses", few(COUNTED, COUNTED[1::3]))
def test_influences_are_counted(steps, synapses, monkeypatch):
    graph = random_graph(1, synapses=synapses)
    columns = np.diff(graph.connectivity.post_ptr) + 1
    right = columns @ reached(graph, steps).sum(1)
    assert costs.count_influences(graph, steps) == ("", right)
    monkeypatch.setattr(costs, "CHUNK", 7)
    assert costs.count_influences(graph, steps) == ("", right)
    monkeypatch.setattr(costs, "TRIED", 0)
    monkeypatch.setattr(costs, "CLOSED", 0)
    known, bound = costs.count_influences(graph, steps)
    assert bound >= right if known == "at most" else bound <= right if known == "at least" else bound == right
    assert bool(known) == (steps not in (1, 2))


@pytest.mark.parametrize("cell, variables", [(se.cells.LeakyRate, 1), (se.cells.ALIF, 3)])
def test_costs_are_those_of_the_carry(cell, variables):
    graph, batch = random_graph(2), 3
    learners = [se.D_RTRL(), se.SnAp(n=3)] if variables == 1 else [se.RTRL()]
    table = se.learner_costs(graph, batch, learners, cell=cell)
    rec = se.ETraceParam({"weight": graph.weight, "bias": jnp.zeros(30)}, se.SpMatMulOp(graph))
    model = cell(30, None, rec)
    given = model, model.init_state(batch), None
    for row, learner in zip(table.rows, learners, strict=True):
        traces = learner.init(*given).traces
        leaves = traces if isinstance(learner, se.D_RTRL) else traces.values
        assert row.traces == sum(leaf.nbytes for leaf in jax.tree.leaves(leaves))
    row, steps = table.rows[-1], getattr(learners[-1], "n", None)
    count = variables * costs.count_influences(graph, steps)[1]
    assert row.traces == 4 * batch * count and row.note == f"{count:,} influences for each batch element"
    if variables == 1:
        assert [row.gradient for row in table.rows] == ["diagonal", "truncated"]
        assert table.rows[0].total == se.memory_plan(se.D_RTRL(), *given).total


def test_too_much_is_said_in_words(monkeypatch):
    graph = random_graph(2)
    count = costs.count_influences(graph, 3)[1]
    small = se.SnAp(n=3, max_influences=10)
    (row,) = se.learner_costs(graph, 2, [small]).rows
    assert (row.traces, row.total) == (8 * count, None)
    assert f"{count:,} influences for each batch element" in row.note and "more than max_influences=10" in row.note
    monkeypatch.setattr(costs, "PLANNED", 0)
    (row,) = se.learner_costs(graph, 2, [se.SnAp(n=3)]).rows
    assert (row.traces, row.total) == (8 * count, None) and "not laid out here" in row.note
    monkeypatch.setattr(costs, "CLOSED", 0)
    (row,) = se.learner_costs(graph, 2, [se.RTRL()]).rows
    assert (row.traces, row.total) == (None, None) and row.note.startswith("at least ")


def test_nothing_as_large_as_a_trace_is_made(monkeypatch):
    given = []
    plan = se.memory_plan(se.BPTT(), lambda h, x: (h, h), jnp.zeros(1), None)
    monkeypatch.setattr(costs, "memory_plan", lambda *args, **_: given.append(args[1:4]) or plan)
    se.learner_costs(random_graph(0), 1000, [se.D_RTRL(), se.UORO(key=jax.random.key(0)), se.BPTT()])
    assert len(given) == 4 and all(isinstance(leaf, jax.ShapeDtypeStruct | str) for leaf in arrays(given))
    se.learner_costs(random_graph(0), 1000, [se.RTRL()])
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in arrays(given[-1][1:]))


def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]


def test_costs_print():
    costs = se.learner_costs(random_graph(0), learners=[se.EProp(leaf="nope"), se.BPTT()], steps=(10, 20))
    refused, short, long = costs.rows
    assert refused.gradient == "refused" and "'nope'" in refused.note and refused.total is None
    assert (short.learner, short.steps, long.steps) == ("BPTT", 10, 20) and short.total < long.total
    lines = str(costs).splitlines()
    assert lines[0].split() == ["learner", "gradient", "steps", "traces", "total"] and max(map(len, lines)) <= 120
    frame = costs.to_dataframe()
    assert list(frame.columns) == ["learner", "gradient", "steps", "traces", "total", "note"]
    assert list(frame.total[1:]) == [short.total, long.total]


def test_names_say_the_options():
    key = jax.random.key(0)
    learners = [
        se.SnAp(),
        se.SnAp(n=None),
        se.UORO(key=key),
        se.TBPTT(steps=4),
        se.SnAp(pattern="random", paths=2, key=key),
    ]
    names = ["SnAp(n=2)", "SnAp(n=None)", "UORO", "TBPTT(steps=4)", "SnAp(pattern=random, paths=2)"]
    assert [costs._name(learner) for learner in learners] == names
    assert [costs._name(learner) for learner in costs._choice()][:3] == ["D_RTRL", "ES_D_RTRL", "Hybrid"]


@pytest.mark.parametrize(
    "argument, error, said",
    [
        (
            {"graph": se.from_edges([0], [1], shape=(1, 2))},
            ValueError,
            "graph: expected a square one, whose units can feed each other, got shape .1, 2..",
        ),
        ({"graph": None}, TypeError, "graph: expected a Graph, got NoneType"),
        ({"batch": 0}, ValueError, "batch: expected at least 1, got 0"),
        ({"batch": 1.5}, TypeError, "batch: expected a whole number, got 1.5"),
        ({"steps": (5, 0)}, ValueError, "steps: expected at least 1, got 0"),
        ({"steps": 1e3}, TypeError, "steps: expected a whole number, got 1000.0"),
        ({"learners": se.D_RTRL}, TypeError, "learners: expected learners such as `se.D_RTRL..`, got <class"),
    ],
)
def test_wrong_arguments(argument, error, said):
    learner_costs = getattr(se.learner_costs, "__wrapped__", se.learner_costs)
    with pytest.raises(error, match=said):
        learner_costs(**{"graph": random_graph(0)} | argument)


def test_no_graph():
    inspect_graph = getattr(se.inspect_graph, "__wrapped__", se.inspect_graph)
    with pytest.raises(TypeError, match="graph: expected a Graph, got NoneType"):
        inspect_graph(None)


def test_one_learner_and_one_length():
    graph = random_graph(0)
    assert se.learner_costs(graph, 1, se.D_RTRL()) == se.learner_costs(graph, learners=[se.D_RTRL()])
    (row,) = se.learner_costs(graph, learners=se.BPTT(), steps=100).rows
    assert row.steps == 100


def test_costs_beyond_any_machine():
    for learner, steps in ((se.BPTT(), 2**60), (se.TBPTT(steps=2**60), 1)):
        (row,) = se.learner_costs(random_graph(0), learners=learner, steps=steps).rows
        assert (row.gradient, row.note) == ("refused", "more numbers than XLA can count")


def test_costs_that_take_too_much_to_find(monkeypatch):
    def refuse(*given, **_):
        raise MemoryError("Unable to allocate 4 TiB")

    monkeypatch.setattr(costs, "memory_plan", refuse)
    (row,) = se.learner_costs(random_graph(0), learners=se.D_RTRL()).rows
    assert (row.gradient, row.note) == ("refused", "Unable to allocate 4 TiB")


def test_the_page_shows_all_rows():
    page = (Path(__file__).parents[1] / "docs/graphs.md").read_text().splitlines()
    begin = next(k for k, line in enumerate(page) if line.split()[:2] == ["learner", "gradient"])
    shown = [line.split()[:3] for line in page[begin + 2 : page.index("```", begin)]]
    rows = str(se.learner_costs(se.datasets.worm(), batch=16)).splitlines()[2:]
    assert shown == [line.split()[:3] for line in rows]


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9892, "9.89 kB"), (99_949, "99.9 kB"), (999_499, "999 kB"),
     (999_500, "1.00 MB"), (7_290_000_000, "7.29 GB"), (6 * 10**16, "60.0 PB")],
)  # fmt: skip
def test_bytes_with_their_unit(count, text):
    assert _text.in_bytes(count) == text


def test_numbers_to_the_right_and_words_wrapped():
    text = _text.as_table(("name", "n", "what"), [("a", "-1", "x " * 100), ("bb", "100", "y")])
    lines = text.splitlines()
    assert lines[0] == "name    n  what" and lines[2].startswith("a      -1  x x") and lines[-1] == "bb    100  y"
    assert len(lines) == 5 and max(map(len, lines)) <= 120
    assert " ".join(line[11:] for line in lines[2:4]).split() == ["x"] * 100


# --- labels of others -------------------------------------------------------------------------------------------------

EVIL = ["\x1b[2J\x1b[31mred", "a\nb\tc", "bell\a", "\u202eright to left", "\x9b31m", "Zo\u00eb"]


def test_labels_cannot_move_the_terminal():
    graph = se.from_edges(
        EVIL, EVIL, labels=EVIL, node_attrs={"na\x1bme": EVIL}, edge_attrs={"kind": ["\x1b]0;title\a"] * 6}
    )
    shown = str(se.inspect_graph(graph))
    assert all(letter.isprintable() for line in shown.split("\n") for letter in line)
    for part in (
        r"\x1b[2J\x1b[31mred (1)",
        r"a\nb\tc (1)",
        r"\u202eright",
        "node attribute na\\x1bme",
        r"\x1b]0;title\x07 6",
    ):
        assert part in shown
    assert se.inspect_graph(graph).in_degree.hubs[0] == (EVIL[0], 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_labels_that_the_terminal_has_no_letters_for(encoding, tmp_path, monkeypatch):
    names = ["Zo\u00eb", "\u795e\u7d4c"]
    se.write_graph(tmp_path / "graph.csv", se.from_edges(names, names[::-1], labels=names))
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    assert cli.main(["inspect", str(tmp_path / "graph.csv"), "--learner", "BPTT-5"]) == 0
    shown = written.getvalue().decode(encoding)
    for name in names:
        assert name.encode(encoding, "backslashreplace").decode(encoding) + " (1)" in shown


def test_errors_show_what_a_file_holds_in_one_line(tmp_path, capsys):
    path = tmp_path / "a\x1b[2Jb.csv"
    path.write_text("who\x1b[31m,whom\na,b\n")
    assert cli.main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "\x1b" not in said and r"a\x1b[2Jb.csv" in said


def test_what_messages_ask_for_can_be_given(tmp_path, capsys):
    file = tmp_path / "edges.csv"
    file.write_text("pre;post,x;w,length\na;b,c;1,2\n")
    assert cli.main(["convert", str(file), str(tmp_path / "out.npz")]) == 2
    assert "pass `separator`" in capsys.readouterr().err
    out = str(tmp_path / "out.npz")
    assert cli.main(["convert", str(file), out, "--separator", "comma", "--pre", "pre;post", "--post", "x;w"]) == 0
    assert "if none is, weight=None" in capsys.readouterr().err
    ends = ["--separator", "comma", "--pre", "pre;post", "--post", "x;w"]
    assert cli.main(["convert", str(file), out, *ends, "--no-weight"]) == 0
    assert not capsys.readouterr().err and se.read_graph(out).weight.tolist() == [1.0]
    assert cli.main(["convert", str(file), out, *ends, "--weight", "length"]) == 0
    assert se.read_graph(out).weight.tolist() == [2.0]
    assert cli.main(["convert", str(file), out, *ends, "--max-bytes", "10"]) == 2
    assert "`max_bytes`" in capsys.readouterr().err
