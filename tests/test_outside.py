"""Data sets that are read from a file: made-up ones of their format, and the real ones where they are at hand."""

import json
import re

import numpy as np
import pytest
from test_datasets import reference
from test_docs import DOCS, run

import sparse_etrace as se
from sparse_etrace import datasets as ds


def steps(count, size, edges):
    rng = np.random.default_rng(0)
    made = {"time_periods": count, "node_ids": {}}
    for k in range(count):
        pairs = rng.integers(size, size=(edges, 2)).tolist()
        degree, share = rng.integers(0, 90, size).tolist(), (rng.integers(0, 11, size) / 10).tolist()
        made[str(k)] = {"edges": pairs, "weights": rng.integers(1, 5, edges).tolist(), "X": list(zip(degree, share))}
        made[str(k)]["y"] = rng.integers(0, 200, size).tolist()
    return made


def test_chickenpox(tmp_path):
    cases = np.arange(18.0).reshape(6, 3)
    made = {"edges": [[0, 0], [0, 2], [2, 0]], "node_ids": {"C": 2, "A": 0, "B": 1}, "FX": cases.tolist()}
    (tmp_path / "c.json").write_text(json.dumps(made))
    found = ds.chickenpox(tmp_path / "c.json", lags=2)
    assert found.graph.nodes == ("A", "B", "C") and found.graph.to_dense().tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert found.features.shape == (4, 3, 2) and found.targets.shape == (4, 3) and found.edges is None
    assert found.features[1, 2].tolist() == [5, 8] and found.targets[1].tolist() == [9, 10, 11]
    for lags in (0, 6):
        with pytest.raises(ValueError, match=f"lags: expected 1 to 5 weeks, got {lags}"):
            ds.chickenpox(tmp_path / "c.json", lags)


def test_tennis(tmp_path):
    made = steps(5, 4, 6)
    (tmp_path / "t.json").write_text(json.dumps(made))
    found = ds.tennis(tmp_path / "t.json", ahead=2, encoded=False)
    assert found.features.shape == (3, 4, 2) and found.targets.shape == (3, 4) and len(found.graph) == 3
    np.testing.assert_allclose(found.targets[0], np.log1p(made["2"]["y"]), rtol=1e-6)
    matrix = np.zeros((4, 4))
    np.add.at(matrix, tuple(np.array(made["1"]["edges"]).T), made["1"]["weights"])
    np.testing.assert_array_equal(found.graph[1].to_dense(), matrix)
    encoded = ds.tennis(tmp_path / "t.json", ahead=0).features
    assert encoded.shape == (5, 4, 16) and (encoded.sum(-1) == 2).all()
    for step, node in np.ndindex(5, 4):
        degree, share = made[str(step)]["X"][node]
        assert encoded[step, node].nonzero()[0].tolist() == [
            min(int(np.ceil(np.log1p(degree))), 4),
            5 + int(share * 10),
        ]
    assert se.SnapshotStream(found.features, found.targets, found.edges).edges[0].shape == (3, 6)
    with pytest.raises(ValueError, match="ahead: expected 0 to 4 steps, got 5"):
        ds.tennis(tmp_path / "t.json", 5)


def fly(folder, **changed):
    """Three neurons, 64-bit ids, in the published layout."""
    import pandas as pd

    ids = [720575940596125868, 720575940596125869, 720575940697856265]
    folder.mkdir(exist_ok=True)
    pd.DataFrame({"Completed": True}, index=ids).to_csv(folder / "Completeness_783.csv")
    pre, post, count, sign = [2, 0, 0], [0, 1, 2], [7, 30, 2], [-1, 1, 1]
    columns = {f"{side}synaptic_ID": [ids[k] for k in at] for side, at in (("Pre", pre), ("Post", post))}
    columns |= {"Presynaptic_Index": pre, "Postsynaptic_Index": post, "Connectivity": count, "Excitatory": sign}
    columns |= {"Excitatory x Connectivity": np.multiply(count, sign)} | changed
    table = pd.DataFrame({name: column for name, column in columns.items() if column is not None})
    table.to_parquet(folder / "Connectivity_783.parquet")
    return ids


def test_fly_brain(tmp_path):
    ids = fly(tmp_path)
    graph = ds.fly_brain(tmp_path)
    assert list(graph.nodes) == ids and graph.to_dense().tolist() == [[0, 30, 2], [0, 0, 0], [-7, 0, 0]]
    changes = {
        "out of bounds": {"Presynaptic_Index": [2, 0, 3]},
        "below 3": {"Presynaptic_Index": [2, 0, -3]},
        "Excitatory x Connectivity": {"Excitatory x Connectivity": None},
        "nulls": {"Excitatory x Connectivity": [-7, None, 2]},
        "got fractions": {"Excitatory x Connectivity": [-7, 0.5, 2]},
        "integer": {"Presynaptic_Index": [2.0, 0.0, 0.0]},
    }
    for match, change in changes.items():
        fly(tmp_path, **change)
        with pytest.raises(ValueError, match=rf"path: expected \*\[Cc\]ompleteness.*repository Drosophila.*{match}"):
            ds.fly_brain(tmp_path)
    fly(tmp_path, Postsynaptic_ID=[ids[0], ids[2], ids[2]])
    with pytest.raises(ValueError, match="path: expected tables of one version, got Connectivity_783.parquet"):
        ds.fly_brain(tmp_path)
    for folder, got in ((tmp_path / "none", "no "), (tmp_path, "A_connectivity.parquet, Connectivity_783.parquet")):
        (tmp_path / "A_connectivity.parquet").touch()
        with pytest.raises(FileNotFoundError, match=f"path: expected a folder.*got .* with {got}.*one of each"):
            ds.fly_brain(folder)


def test_cora(tmp_path):
    words = {"x_indptr": [0, 2, 2, 3], "x_indices": [0, 3, 1], "x_shape": [3, 4]}
    parts = {"y": np.array([2, 0, 1], np.int8), "train": [0], "val": [1], "test": [2]}
    np.savez(tmp_path / "cora.npz", src=[0, 0], dst=[1, 2], **words, **parts)
    found = ds.cora(str(tmp_path / "cora.npz"))
    assert found.x.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]] and found.x.dtype == np.float32
    assert found.graph.to_dense().tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert found.y.tolist() == [2, 0, 1] and found.y.dtype == np.int32 and found.test.tolist() == [2]


def test_traffic(tmp_path):
    arrays = {"src": np.array([0, 0], np.int16), "dst": np.array([0, 1], np.int16), "w": np.array([1, 0.25])}
    arrays |= {
        "speed": np.array([[60.0, 1.5]] * 3, np.float16),
        "sensor_id": ["77", "12"],
        "latlon": [[34, -118], [35, -119]],
    }
    np.savez(tmp_path / "week.npz", **arrays)
    found = ds.traffic(tmp_path / "week.npz")
    assert found.graph.nodes == ("77", "12") and found.graph.to_dense().tolist() == [[1.0, 0.25], [0, 0]]
    assert found.speed.tolist() == [[60.0, 1.5]] * 3 and found.speed.dtype == np.float32
    assert found.graph.node_attrs["longitude"].tolist() == [-118, -119]


@pytest.mark.parametrize("name, file", [("chickenpox", "chickenpox.json"), ("tennis", "twitter_tennis_rg17.json"),
    ("cora", "cora.npz"), ("traffic", "metr_la_week.npz")])  # fmt: skip
def test_what_is_not_there_or_another(name, file, tmp_path):
    read, path = getattr(ds, name), tmp_path / file
    said = (
        f"path: expected the file .*{re.escape(file)}.* repositor.*, which does not come with this library, got .*none"
    )
    with pytest.raises(FileNotFoundError, match=said):
        read(path)
    with pytest.raises(FileNotFoundError, match=said):
        read(tmp_path)
    for content in (b"", b"no file of it", b'{"edges": []}', b"[1]", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"path: expected the file .*{re.escape(file)}.*, .* with .*, got .* with "
        ):
            read(path)
    np.savez(tmp_path / "other.npz", src=[1], objects=np.array([{}], object))
    path.write_bytes((tmp_path / "other.npz").read_bytes())
    with pytest.raises(ValueError, match="path: expected the file"):
        read(path)


def test_the_real_ones():
    cases = ds.chickenpox(reference("temporal_graphs/chickenpox.json"))
    assert cases.features.shape == (517, 20, 4) and cases.graph.connectivity.num_synapses == 102
    assert cases.graph.nodes[:2] == ("BACS", "BARANYA")
    loops = cases.graph.connectivity.pre == cases.graph.connectivity.post
    assert loops.sum() == 20 and abs(cases.targets.mean()) < 0.1
    cora = ds.cora(reference("cora/cora.npz"))
    assert (
        cora.x.sum() == 49216
        and cora.graph.connectivity.num_synapses == 10556
        and set(cora.y.tolist()) == set(range(7))
    )
    assert [part.size for part in (cora.train, cora.val, cora.test)] == [140, 500, 1000]
    week = ds.traffic(reference("traffic_la/metr_la_week.npz"))
    assert week.speed.shape == (2016, 207) and week.graph.connectivity.num_synapses == 2833
    assert len(se.SnapshotStream.ahead(week.speed[..., None], (3, 6, 12))) == 2004


def test_the_real_tournament():
    played = ds.tennis(reference("temporal_graphs/twitter_tennis_rg17.json"))
    assert played.features.shape == (119, 1000, 16) and played.targets.shape == (119, 1000)
    assert len(played.graph) == 119 and max(graph.connectivity.num_synapses for graph in played.graph) == 936


def test_the_programs_of_pytorch_geometric_temporal():
    """As the page has them, on the real files by the lines that it says, with fewer passes."""
    cases, roads = (str(reference(path)) for path in ("temporal_graphs/chickenpox.json", "traffic_la/metr_la_week.npz"))
    page = (DOCS / "from-pyg.md").read_text()
    page = page[: page.index("## Graphs")] + page[page.index("## Two programs") : page.index("## Pitfalls")]
    made_up = "se.datasets.Traffic(data.graph, 50 + 10 * np.sin(np.arange(300)[:, None] / 8 + np.arange(4)))"
    for written, tried in (
        ("se.interchange.from_pyg_temporal(Signal())", f"se.datasets.chickenpox({cases!r})"),
        (made_up, f"se.datasets.traffic({roads!r})"),
        ("(12, 4) True", "(104, 20) True"),
        ("(12,) True", "(12,) ..."),
        ("train.ys)] * 30", "train.ys)] * 5"),
        ("sequences(12) * 10", "sequences(12) * 3"),
    ):
        assert page.count(written) == 1, written
        page = page.replace(written, tried)
    names = run("from-pyg.md", page)
    speeds = [names["scale"] * np.asarray(part) for part in (names["test"].xs, names["test"].ys)]
    assert (names["mph"] < 1.05 * np.abs(speeds[0] - speeds[1]).mean((0, 1))).all()


def test_as_pytorch_geometric_temporal_reads_them(monkeypatch):
    loaders = pytest.importorskip("torch_geometric_temporal.dataset", exc_type=ImportError)
    for name, loader, read in (
        ("chickenpox.json", loaders.ChickenpoxDatasetLoader, ds.chickenpox),
        ("twitter_tennis_rg17.json", loaders.TwitterTennisDatasetLoader, ds.tennis),
    ):
        path = reference(f"temporal_graphs/{name}")
        monkeypatch.setattr(
            loader, "_read_web_data", lambda self, path=path: setattr(self, "_dataset", json.loads(path.read_text()))
        )
        ours, theirs = read(path), se.interchange.from_pyg_temporal(loader().get_dataset())
        count = len(ours.features)
        np.testing.assert_allclose(ours.features, theirs.features[:count], rtol=1e-6)
        np.testing.assert_allclose(ours.targets, theirs.targets[:count], rtol=1e-6)
        for one, two in zip(*(g if isinstance(g, tuple) else (g,) for g in (ours.graph, theirs.graph))):
            np.testing.assert_array_equal(one.connectivity.pre, two.connectivity.pre)
            np.testing.assert_array_equal(one.weight, two.weight)
