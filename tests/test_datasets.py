import csv
import hashlib
import re
from pathlib import Path

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
    with pytest.raises(ValueError, match="kind: got 'electric'; the worm has 'chemical' synapses and 'gap' junctions"):
        se.datasets.worm("electric")


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


@pytest.mark.parametrize("name", ["worm", "mnist1d"])
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
    with pytest.raises(FileNotFoundError, match=r"fly\.npz: neither in .*_data nor .*; install the library again"):
        datasets._load("fly")
