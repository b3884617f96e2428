"""The demos of events, of traffic, of spikes and of the eye: very short runs, and their tasks against references."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparse_etrace as se
from sparse_etrace import cli, demo_events, demo_eye, demo_eye_model, demo_spikes, demo_traffic

NODES = 8


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(demo_events, "NODES", NODES)
    monkeypatch.setattr(demo_events, "STEPS", 12)
    monkeypatch.setattr(demo_events, "QUICK_UPDATES", 2)
    monkeypatch.setattr(demo_events, "QUICK_LENGTHS", (1,))
    rules = {name: demo_events.RULES[name] for name in (demo_events.TRUNCATED, demo_events.SNAP, "RTRL", "BPTT")}
    monkeypatch.setattr(demo_events, "RULES", rules)
    monkeypatch.setattr(demo_traffic, "DAY", 24)
    monkeypatch.setattr(demo_traffic, "QUICK_PASSES", 1)
    for name, value in {"CUE": 4, "GAP": 2, "DELAY": 5, "CHOICE": 6, "UNITS": 8, "INPUTS": 8, "BATCH": 3}.items():
        monkeypatch.setattr(demo_spikes, name, value)
    for name, value in {"SHARE": 0.4, "QUICK_UPDATES": 2, "EVERY": 1, "TRIALS": 4}.items():
        monkeypatch.setattr(demo_spikes, name, value)
    for name, value in {"QUICK_SCENES": 2, "SHOWN": 2, "MODES": ("by type",)}.items():
        monkeypatch.setattr(demo_eye, name, value)
    # A rule that is compiled in less time, and plans that are not compiled.
    monkeypatch.setattr(demo_eye, "RULES", {demo_eye.BRIDGED: se.D_RTRL()})
    monkeypatch.setattr(
        demo_eye, "memory_plan", lambda *args, chunk=None: SimpleNamespace(total=1000 if chunk else args[-1])
    )


def test_queues():
    """Each target is what two queues that are walked by hand give out."""
    (pairs, x), targets = demo_events.meetings(np.random.default_rng(0), 3, 200, NODES)
    queues = [[0.0] * 3 for _ in range(NODES)]
    for (one, two), feature, target in zip(pairs, x[:, 0, 0], targets, strict=True):
        assert one != two
        ends = queues[one].pop(), queues[two].pop()
        np.testing.assert_allclose(target, sum(ends), atol=1e-6)
        queues[one].insert(0, ends[1] / 2 + feature / 2)
        queues[two].insert(0, ends[0] / 2 + feature / 2)
    assert np.std(targets) > 0.1


def test_events(tmp_path, capsys):
    assert cli.main(["demo", "events", "--quick", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "events.json").read_text())
    assert saved["updates"] == 2 and set(saved["runs"]) == set(demo_events.RULES)
    for runs in saved["runs"].values():
        assert list(runs) == ["1"] and len(runs["1"][0]["curve"]) == 2
    said = capsys.readouterr().out
    assert (tmp_path / "events.png").stat().st_size > 10_000 and "RTRL" in said
    assert "of the gap of truncated to full BPTT closes" in said


def week(sensors=5):
    """Speeds that swing through a day, on a ring of roads."""
    steps = np.arange(7 * demo_traffic.DAY + 12)[:, None]
    speed = 60 + 5 * np.sin(2 * np.pi * steps / demo_traffic.DAY + np.arange(sensors))
    ring = se.from_edges(range(sensors), np.roll(range(sensors), -1), shape=(sensors, sensors))
    return se.datasets.Traffic(ring, speed.astype(np.float32))


def test_traffic(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_traffic, "traffic", lambda path: week())
    few = {name: demo_traffic.RULES[name] for name in (demo_traffic.NO_GRAPH, "Bridged(12)")}
    monkeypatch.setattr(demo_traffic, "RULES", few)
    assert cli.main(["demo", "traffic", "--quick", "--data", "week.npz", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "traffic.json").read_text())
    assert set(saved["one pass"]) == set(saved["1 passes"]) == set(demo_traffic.RULES)
    assert all(np.shape(found) == (1, 3) for found in saved["one pass"].values())
    assert (tmp_path / "traffic.png").stat().st_size > 10_000 and "historical mean" in capsys.readouterr().out


def test_errors_of_forecasts():
    """Of what is known in the last two days, in miles an hour."""
    task = demo_traffic.Task.of(week())
    stream, first = task.stream, demo_traffic.TRAINED * demo_traffic.DAY
    assert stream.mask is not None and 0.05 < 1 - np.mean(stream.mask) < 0.1
    outs = stream.targets + jnp.where(jnp.arange(len(stream)) < first, 5.0, 1.0)[:, None, None]
    np.testing.assert_allclose(task.errors(outs), task.unit, rtol=1e-5)
    np.testing.assert_allclose(task.errors(outs[first - 3 :], first - 3), task.unit, rtol=1e-5)
    np.testing.assert_allclose(demo_traffic.baselines(task)["historical mean"], 0, atol=0.6)


def test_traffic_needs_its_file(tmp_path, capsys):
    assert cli.main(["demo", "traffic", "--out", str(tmp_path)]) == 2
    assert "--data: expected the file metr_la_week.npz" in capsys.readouterr().err
    assert cli.main(["demo", "traffic", "--data", str(tmp_path / "none.npz"), "--out", str(tmp_path)]) == 2
    assert "which does not come with this library" in capsys.readouterr().err


def test_trials():
    """Cues on the side that they say, the question at the end, noise throughout; the side has more cues."""
    x, side = demo_spikes.trials(np.random.default_rng(0), 2000)
    groups = x.reshape(len(x), 2000, 4, -1).mean(-1)
    cue, gap = groups[2:6], groups[:2]
    assert not gap[..., :3].any() and 0 < groups[..., 3].mean() < groups[-6:, :, 2].mean() < 2 * demo_spikes.FIRES
    on = np.array([groups[6 * k + 2 : 6 * k + 6, :, :2].sum(0) for k in range(7)])
    assert not np.any((on[..., 0] > 0) & (on[..., 1] > 0)) and cue[..., :2].any()
    seen = np.all((on > 0).any(-1), axis=0)
    np.testing.assert_array_equal(side[seen], (on[..., 1] > 0).sum(0)[seen] > 3.5)
    assert 0.4 < side.mean() < 0.6


def test_spikes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_spikes, "QUICK", ("D-RTRL", demo_spikes.READOUT))
    assert cli.main(["demo", "spikes", "--quick", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "spikes.json").read_text())
    assert list(saved) == list(demo_spikes.QUICK)
    assert all(found[0]["updates"] == [1, 2] and len(found[0]["loss"]) == 2 for found in saved.values())
    assert saved[demo_spikes.READOUT][0]["rate"][0] == saved[demo_spikes.READOUT][0]["rate"][1]
    said = capsys.readouterr().out
    assert (tmp_path / "spikes.png").stat().st_size > 10_000 and "updates to 7%" in said and "D-RTRL" in said


@pytest.fixture(scope="module")
def eye():
    return se.datasets.fly_eye(2)


def test_gains_of_pairs_and_weights_of_synapses_begin_alike(eye):
    """Each gain moves the synapses of its pair of types in proportion to their counts; each synapse keeps its sign."""
    by_type, by_synapse = (demo_eye.Eye(eye, jax.random.key(0), by) for by in ("by type", "by synapse"))
    weight = np.asarray(by_synapse.synapses.value["weight"])
    op, gain = by_type.synapses.op, by_type.synapses.value["weight"]
    np.testing.assert_allclose(op.phi({"weight": gain})["weight"], weight, rtol=1e-6)
    np.testing.assert_array_equal(np.sign(weight), np.sign(eye.weight))
    tie, pairs = se.ties(eye, pre="cell_type", post="cell_type")
    k = pairs.index(("Mi9", "T4a"))
    (of_pair,) = np.unique(np.asarray(op.weight_fn.pair)[np.asarray(op.slot)[tie == k]])
    moved = np.asarray(op.phi({"weight": gain.at[of_pair].multiply(3)})["weight"])
    np.testing.assert_allclose(moved, np.where(tie == k, 3 * weight, weight), rtol=1e-6)
    assert len(np.unique(op.weight_fn.pair)) == len(pairs)
    received = np.bincount(eye.connectivity.post, np.abs(weight), len(eye.nodes))
    np.testing.assert_allclose(received[eye.where(cell_type="T4a")].mean(), demo_eye_model.START, rtol=1e-5)


def test_scenes(eye):
    """Keys say all of a scene; the direction counts after a while, and is that of the light."""
    place = demo_eye.lattice(eye)
    light, way = demo_eye.scene(jax.random.key(1), place)
    again, _ = demo_eye.scene(jax.random.key(1), place)
    other, _ = demo_eye.scene(jax.random.key(2), place)
    np.testing.assert_array_equal(light, again)
    assert light.shape == (32, 19) and way.shape == (32, 3) and np.abs(light - other).max() > 0.1
    assert not way[:12].any() and np.all(way[12:, 2] == 1)
    np.testing.assert_allclose(np.hypot(*way[12:, :2].T), 1, rtol=1e-6)


def test_selectivity():
    """One direction alone: 1 and that direction; all alike: 0."""
    rates = np.zeros((8, 3))
    rates[2, 0], rates[:, 1], rates[[0, 1], 2] = 1, 5, (1, 1)
    index, preferred = demo_eye.selectivity(rates)
    np.testing.assert_allclose(index, [1, 0, np.cos(np.pi / 8)], atol=1e-12)
    np.testing.assert_allclose(preferred[[0, 2]], [90, 22.5])
    assert demo_eye.together(rates) == pytest.approx((1 + 2 * np.cos(np.pi / 8)) / 43)
    assert demo_eye.together(np.zeros((8, 2))) == 0


def test_no_weight_changes_its_sign():
    w, change = jnp.array([0.5, -0.5, 0.5, -0.5]), jnp.array([-0.4, 0.4, -0.6, 0.6])
    np.testing.assert_allclose(w + demo_eye._kept(change, w), [0.1, -0.1, 0.25, -0.25], rtol=1e-6)
    for _ in range(200):
        w = w + demo_eye._kept(2 * change, w)
    assert w.dtype == jnp.float32 and np.all(np.sign(w) == [1, -1, 1, -1]) and np.all(np.abs(w) < 1e-7)


def test_eye(tmp_path, capsys):
    assert cli.main(["demo", "eye", "--quick", "--radius", "1", "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "eye.json").read_text())
    assert saved["radius"] == 1 and list(saved["runs"]) == [
        demo_eye.MAIN,
        f"{demo_eye.BRIDGED}, by type, null networks",
    ]
    for (run,) in saved["runs"].values():
        assert len(run["loss"]) == 2 and np.shape(run["before"]) == np.shape(run["after"]) == (8, 8)
        assert run["before"] != run["after"] and 0 <= run["error"] <= 180
    assert saved["memory"] == {demo_eye.BRIDGED: 1000, "BPTT": {"16": 16, "100": 100, "1000": 1000}}
    said = capsys.readouterr().out
    assert (tmp_path / "eye.png").stat().st_size > 10_000 and "selectivity before -> after" in said
