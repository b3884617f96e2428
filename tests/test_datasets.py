import csv
import hashlib
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import sparse_etrace as se
from sparse_etrace import datasets

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "data"


def reference(name):
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"the reference data {name} lies beside the project's folder where it is developed, not here")
    return path


def test_chemical_synapses():
    graph = se.datasets.worm()
    assert isinstance(graph, se.Graph)
    assert graph.connectivity.shape == (279, 279)
    assert graph.connectivity.num_synapses == 2194
    assert graph.weight.dtype == "float32" and float(graph.weight.sum()) == 6394
    pairs = set(zip(np.asarray(graph.connectivity.pre).tolist(), np.asarray(graph.connectivity.post).tolist()))
    assert len(pairs) == 2194


def test_gap_junctions_are_symmetric():
    graph = se.datasets.worm(kind="gap")
    assert graph.connectivity.num_synapses == 1031
    dense = np.asarray(graph.to_dense())
    np.testing.assert_array_equal(dense, dense.T)
    assert np.count_nonzero(np.diag(dense)) == 3


def test_neurons():
    graph = se.datasets.worm()
    attrs = graph.node_attrs
    assert set(attrs) == {"role", "neurotransmitter", "sign", "x_um", "y_um", "z_um"}
    assert list(graph.nodes) == list(se.datasets.worm("gap").nodes)
    assert (attrs["sign"] < 0).sum() == 26 and set(attrs["sign"].tolist()) == {-1, 1}
    assert (attrs["neurotransmitter"] == "").sum() == 54
    np.testing.assert_array_equal(attrs["sign"] < 0, ["GABA" in name for name in attrs["neurotransmitter"]])
    assert {part for role in attrs["role"].tolist() for part in role.split("|")} == {"sensory", "interneuron", "motor"}
    assert all(attrs[axis].dtype == "float32" and np.isfinite(attrs[axis]).all() for axis in ("x_um", "y_um", "z_um"))


@pytest.mark.parametrize("kind", ["chemical", "gap"])
def test_worm_equals_its_tables(kind):
    with reference("celegans/varshney2011_edges.csv").open() as file:
        expected = {(r["pre"], r["post"]): float(r["n_syn"]) for r in csv.DictReader(file) if r["kind"] == kind}
    graph = se.datasets.worm(kind)
    edges = graph.to_networkx().edges(data="weight")
    assert {(pre, post): weight for pre, post, weight in edges} == expected
    with reference("celegans/varshney2011_nodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(graph.nodes) == [row["name"] for row in rows]
    for name, column in graph.node_attrs.items():
        np.testing.assert_array_equal(column, np.array([row[name] for row in rows]).astype(column.dtype), err_msg=name)


def test_unknown_kind():
    with pytest.raises(
        ValueError, match="kind: expected 'chemical' for synapses or 'gap' for junctions, got 'electric'."
    ):
        se.datasets.worm("electric")


def synapses_of(graph):
    """{(pre type, u, v, post type, u, v): weight}"""
    ends = list(zip(*(graph.node_attrs[name].tolist() for name in ("cell_type", "u", "v"))))
    conn = graph.connectivity
    rows = zip(np.asarray(conn.pre).tolist(), np.asarray(conn.post).tolist(), np.asarray(graph.weight).tolist())
    found = {(*ends[pre], *ends[post]): weight for pre, post, weight in rows}
    assert len(found) == conn.num_synapses
    return found


def test_fly_eye():
    graph = se.datasets.fly_eye()
    assert isinstance(graph, se.Graph)
    assert graph.connectivity.shape == (45669, 45669) and graph.nodes == range(45669)
    assert graph.connectivity.num_synapses == 1513231 and graph.weight.dtype == "float32"
    attrs = graph.node_attrs
    assert set(attrs) == {"cell_type", "u", "v", "is_input", "is_output"}
    assert all(attrs[name].dtype == "int32" for name in "uv")
    assert max(np.abs(attrs["u"]).max(), np.abs(attrs["v"]).max(), np.abs(attrs["u"] + attrs["v"]).max()) == 15
    types, counts = np.unique(attrs["cell_type"], return_counts=True)
    counts = dict(zip(types.tolist(), counts.tolist()))
    # u in -15, -12, .., 15 and v in -14, -12, .., 14
    sparse = sum(abs(u + v) <= 15 for u in range(-15, 16, 3) for v in range(-14, 15, 2))
    assert counts.pop("Lawf1") == counts.pop("Lawf2") == sparse and set(counts.values()) == {721} and len(counts) == 63
    assert set(attrs["cell_type"][attrs["is_input"]].tolist()) == {f"R{k}" for k in range(1, 9)}
    assert len(set(attrs["cell_type"][attrs["is_output"]].tolist())) == 34


def test_fly_eye_by_hand():
    # Lawf1 is in the central column only, and only the offset (1, 1) from L3 comes from outside radius 1.
    found = {key: weight for key, weight in synapses_of(se.datasets.fly_eye(2)).items() if key[3:] == ("Lawf1", 0, 0)}
    expected = {("L3", -1, -1): 1, ("Tm2", 0, 0): 1.1667, ("Tm3", 0, -1): 1}
    expected |= {("Mi9", 1, 0): -1.5714, ("Mi9", 0, -1): -1, ("Mi9", 1, -1): -1.4286}
    expected |= {("Mi9", -1, 0): -2.3333, ("Mi9", 0, 1): -1.3333, ("Mi9", 0, 0): -2.1667}
    expected |= {("Mi10", 1, 0): -10.6667, ("Mi10", 0, -1): -11.3333, ("Mi10", 1, -1): -9.25}
    expected |= {("Mi10", 0, 1): -6, ("Mi10", 0, 0): -5.25}
    expected |= {("Tm16", 1, 0): 1.25, ("Tm16", 0, -1): 3.25, ("Tm16", 1, -1): 2.5}
    expected |= {("Tm16", 0, 1): 2, ("Tm16", -1, 1): 1, ("Tm16", 0, 0): 2}
    assert {key[:3]: weight for key, weight in found.items()} == pytest.approx(expected)
    small = synapses_of(se.datasets.fly_eye(1))
    lost = {key[:3] for key in found} - {key[:3] for key in small if key[3:] == ("Lawf1", 0, 0)}
    assert lost == {("L3", -1, -1)}
    columns = [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, -1), (-1, 1)]
    r1 = {key: weight for key, weight in small.items() if key[0] == "R1"}
    post = {"L1": -40, "L2": -46, "L3": -11, "Am": -36, "T1": -2}
    assert r1 == {("R1", *column, name, *column): weight for column in columns for name, weight in post.items()}


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("measured_only", [False, True])
def test_fly_eye_offset_by_offset(radius, measured_only):
    data = {name: array.tolist() for name, array in datasets._load("fly_eye").items()}
    axis = range(-radius, radius + 1)
    exists = [
        (name, u, v)
        for name, stride_u, stride_v in zip(data["name"], data["stride_u"], data["stride_v"])
        for u in axis
        for v in axis
        if abs(u + v) <= radius and u % stride_u == 0 and v % stride_v == 0
    ]
    index, expected = {neuron: k for k, neuron in enumerate(exists)}, {}
    offsets = zip(*(data[name] for name in ("pre", "post", "du", "dv", "n_syn", "sign", "measured")))
    for pre, post, du, dv, n_syn, sign, measured in offsets:
        for name, u, v in exists:
            partner = (data["name"][post], u + du, v + dv)
            if name == data["name"][pre] and partner in index and (measured or not measured_only):
                expected[name, u, v, *partner] = sign * n_syn
    graph = se.datasets.fly_eye(radius, measured_only)
    assert synapses_of(graph) == expected
    assert list(zip(*(graph.node_attrs[name].tolist() for name in ("cell_type", "u", "v")))) == exists
    pre, post = [index[key[:3]] for key in expected], [index[key[3:]] for key in expected]
    canonical = se.Connectivity.from_edges(pre, post, shape=(len(exists), len(exists)))
    for name in ("pre", "post", "post_ptr"):
        np.testing.assert_array_equal(getattr(graph.connectivity, name), getattr(canonical, name))
        assert getattr(graph.connectivity, name).dtype == "int32"


def test_fly_eye_measured_only():
    everything, measured = synapses_of(se.datasets.fly_eye(4)), synapses_of(se.datasets.fly_eye(4, measured_only=True))
    filled = {key: weight for key, weight in everything.items() if key not in measured}
    assert measured.items() <= everything.items()
    assert set(filled.values()) == {-1.0, 1.0}
    assert {key for key in everything if key[:3] == key[3:]} <= set(filled)
    offsets = {(key[0], key[3], key[4] - key[1], key[5] - key[2]) for key in filled}
    assert ("C3", "T4d", 0, 1) in offsets
    data = datasets._load("fly_eye")
    assert data["measured"].sum() == 2140 and (~data["measured"]).sum() == 238


def test_fly_eye_sign_belongs_to_the_types():
    signs = {}
    for (pre, _, _, post, _, _), weight in synapses_of(se.datasets.fly_eye(6)).items():
        signs.setdefault((pre, post), set()).add(np.sign(weight))
    assert len(signs) == 604 and ("Lawf1", "Lawf1") not in signs  # its only offset, (1, 0), never meets another Lawf1
    assert all(sign in ({-1}, {1}) for sign in signs.values())
    both = {pre for pre, post in signs if {sign for key in signs if key[0] == pre for sign in signs[key]} == {-1, 1}}
    assert both == {"R8", "Am", "C2", "C3"}


def test_fly_eye_is_the_same_each_time():
    first, second = se.datasets.fly_eye(np.int64(3)), se.datasets.fly_eye(3)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_fly_eye_equals_its_tables():
    data = datasets._load("fly_eye")
    with reference("flyvis_eye/flyvis_types.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, column in zip(data, rows[0], strict=False):
        assert data[name].astype(str).tolist() == [row[column] for row in rows], name
    with reference("flyvis_eye/flyvis_filters.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, column in (("pre", "src_type"), ("post", "dst_type")):
        assert data["name"][data[name]].tolist() == [row[column] for row in rows]
    for name in ("du", "dv", "sign", "measured", "n_syn"):
        expected = np.array([float(row[name]) for row in rows]).astype(data[name].dtype)
        np.testing.assert_array_equal(data[name], expected, err_msg=name)


@pytest.mark.parametrize(
    "radius, error, match",
    [
        (1.5, TypeError, "radius: expected a whole number, got 1.5."),
        ("15", TypeError, "radius: expected a whole number, got '15'."),
        (-1, ValueError, "radius: expected 0, a single column, or more, got -1."),
        (549, ValueError, "radius: expected at most 2147483647 synapses, as int32.*, got 549 with up to 2154113678"),
    ],
)
def test_fly_eye_radius(radius, error, match):
    with pytest.raises(error, match=match):
        se.datasets.fly_eye(radius)


TYPES = {"K": "Kenyon cell", "P": "projection neuron", "O": "output neuron", "I": "input neuron"}
# Directed pairs of neurons, by the types of sender and receiver.
PAIRS = {
    "left": {"PK": 437, "KK": 3585, "KO": 1570, "KI": 927, "IK": 827, "IO": 19, "OO": 40, "OI": 20},
    "right": {"PK": 478, "KK": 3584, "KO": 1434, "KI": 936, "IK": 805, "IO": 73, "OO": 169, "OI": 57},
}


@pytest.mark.parametrize(
    "side, counts, synapses",
    [("left", {"K": 101, "P": 58, "O": 29, "I": 21}, 25322), ("right", {"K": 100, "P": 63, "O": 29, "I": 21}, 26371)],
)
def test_mushroom_body(side, counts, synapses):
    graph = se.datasets.mushroom_body(side)
    conn, cell_type, size = graph.connectivity, graph.node_attrs["cell_type"], sum(counts.values())
    assert isinstance(graph, se.Graph) and conn.shape == (size, size) and graph.nodes == range(size)
    assert (
        graph.weight.dtype == "float32"
        and float(graph.weight.sum()) == synapses
        and set(graph.node_attrs) == {"cell_type"}
    )
    assert {letter: (cell_type == word).sum() for letter, word in TYPES.items()} == counts
    letter = {word: letter for letter, word in TYPES.items()}
    ends = zip(cell_type[np.asarray(conn.pre)].tolist(), cell_type[np.asarray(conn.post)].tolist())
    assert Counter(letter[pre] + letter[post] for pre, post in ends) == PAIRS[side]
    assert not np.any(np.asarray(conn.pre) == np.asarray(conn.post))
    assert len(np.union1d(conn.pre, conn.post)) == size


@pytest.mark.parametrize("side", ["left", "right"])
def test_mushroom_body_equals_its_tables(side):
    graph = se.datasets.mushroom_body(side)
    rows = reference(f"larva_mushroom_body/{side}_adjacency.csv").read_text().splitlines()
    np.testing.assert_array_equal(graph.to_dense(), [[float(entry) for entry in row.split()] for row in rows])
    assert graph.connectivity.num_synapses == np.count_nonzero(graph.to_dense())
    letters = reference(f"larva_mushroom_body/{side}_cell_labels.csv").read_text().split()
    assert graph.node_attrs["cell_type"].tolist() == [TYPES[letter] for letter in letters]


def test_unknown_side():
    with pytest.raises(ValueError, match="side: expected 'left' or 'right', got 'both'."):
        se.datasets.mushroom_body("both")


def test_mnist1d():
    data = se.datasets.mnist1d()
    assert [(a.shape, a.dtype) for a in data] == [
        ((4000, 40), "float32"),
        ((4000,), "int32"),
        ((1000, 40), "float32"),
        ((1000,), "int32"),
    ]
    x = np.concatenate([data.x_train, data.x_test]).astype("float64")
    assert x.mean() == pytest.approx(0, abs=1e-6) and x.std() == pytest.approx(1, abs=1e-6)
    y = np.concatenate([data.y_train, data.y_test])
    np.testing.assert_array_equal(np.bincount(y), np.full(10, 500))


def test_mnist1d_equals_the_reference():
    with np.load(reference("mnist1d/mnist1d.npz"), allow_pickle=False) as expected:
        data = se.datasets.mnist1d()
        np.testing.assert_array_equal(data.x_train, expected["x"])
        np.testing.assert_array_equal(data.y_train, expected["y"])
        np.testing.assert_array_equal(data.x_test, expected["x_test"])
        np.testing.assert_array_equal(data.y_test, expected["y_test"])


@pytest.mark.parametrize("name", ["worm", "fly_eye", "mnist1d", "mushroom_body"])
def test_card(name):
    folder = datasets._folder(name)
    card = (folder / "README.md").read_text()
    assert hashlib.sha256((folder / f"{name}.npz").read_bytes()).hexdigest() in card
    for heading in ("## Source", "## Arrays", "## Cite"):
        assert heading in card
    licence = (folder / "LICENSE").read_text()
    assert re.search(r"MIT License|Apache License", licence)
    for array in datasets._load(name):
        assert f"`{array}`" in card


def test_every_folder_of_the_checkout_is_installed():
    for folder in (Path(__file__).resolve().parents[1] / "datasets").iterdir():
        for path in folder.iterdir():
            assert (datasets._folder(folder.name) / path.name).read_bytes() == path.read_bytes()


def test_missing_data():
    with pytest.raises(
        FileNotFoundError, match="name: expected a file in .* or in a checkout's datasets/, got fly.npz in neither"
    ):
        datasets._load("fly")
