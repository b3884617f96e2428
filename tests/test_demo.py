"""The worm demo: a very short run of it, and its model against references."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from soak import ONLY

import sparse_etrace as se
from sparse_etrace import demo

RULES = {"readout only", "ES-D-RTRL", "D-RTRL", demo.BRIDGED, "SnAp-2", "BPTT"}
SYNAPSES = 2194


@pytest.fixture(scope="module")
def trained(pytestconfig):
    """Each rule takes seconds to compile."""
    return RULES if pytestconfig.getoption("full") else {"readout only", "D-RTRL", "BPTT"}


@pytest.fixture(scope="module")
def short(trained, tmp_path_factory):
    """Two updates: the numbers, the folder, what was drawn, and what was printed."""
    drawn = {}

    def chosen(model, exact=False):
        """Of the planned ones all, of the trained ones some."""
        return [rule for rule in rules(model, exact) if exact or rule.name in trained]

    def keep(results, graph, weight, traces):
        drawn.update(graph=graph, weight=weight, traces=traces, figure=draw(results, graph, weight, traces))
        return drawn["figure"]

    draw, rules, out = demo.draw, demo.rules, tmp_path_factory.mktemp("demo") / "below"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "draw", keep)
        patch.setattr(demo, "rules", chosen)
        patch.setattr(demo, "QUICK_UPDATES", 2)
        results = demo.run(out, quick=True, seed=1)
    return results, out, drawn


def test_files(short):
    results, out, _ = short
    assert {path.name for path in out.iterdir()} == {"worm.json", "worm.png"}
    assert (out / "worm.png").read_bytes().startswith(b"\x89PNG\r\n")
    # What is saved is what is returned, but that JSON has no tuples and no numbers as keys.
    assert json.loads((out / "worm.json").read_text()) == json.loads(json.dumps(results))


def test_numbers(short, trained):
    results = json.loads((short[1] / "worm.json").read_text())
    assert set(results) == {"updates", "seed", "neurons", "synapses", "untrained", "memory", *trained}
    assert [results[key] for key in ("updates", "seed", "neurons", "synapses")] == [2, 1, 279, SYNAPSES]
    for name in trained:
        found = results[name]
        assert set(found) == {"test_accuracy", "held_out_accuracy", "seconds", "curve"}
        assert 0 <= found["test_accuracy"] <= 1 and found["seconds"] > 0
        assert [update for update, _ in found["curve"]] == [0, 1, 2]
        assert found["held_out_accuracy"] == found["curve"][-1][1]
        assert found["curve"][0] == results["BPTT"]["curve"][0]
    memory = results["memory"]
    assert set(memory["bptt_total_bytes"]) == {"40", "1000", "10000"}
    assert memory["trace_bytes"].keys() == memory["total_bytes"].keys() == RULES - {"BPTT"} | {"RTRL"}


def test_memory(short):
    memory, model = short[0]["memory"], demo.WormNet(short[2]["graph"], jax.random.key(0))
    sensory = model.drive.value["weight"].size
    per_unit = 4 * 3 * 279
    assert memory["trace_bytes"]["D-RTRL"] == 4 * (SYNAPSES + 2 * sensory) + per_unit
    plan = se.memory_plan(se.D_RTRL(), model, model.init_state(1), jnp.zeros((1, 1)))
    assert plan.buffers["trace of synapses.value['weight']"] == 4 * SYNAPSES
    bptt = memory["bptt_total_bytes"]
    assert bptt[40] < bptt[1000] < bptt[10000] and 8 < bptt[10000] / bptt[1000] < 12
    assert all(size < bptt[1000] for size in memory["total_bytes"].values())
    # The synapses' own, and those of the other parameters.
    assert memory["trace_bytes"]["SnAp-2"] > 4 * 27_041 and memory["trace_bytes"]["RTRL"] > 4 * 536_422


def test_every_synapse_keeps_its_sign(short):
    _, _, drawn = short
    conn, after = drawn["graph"].connectivity, drawn["weight"]
    before = demo._weights(demo.WormNet(drawn["graph"], jax.random.key(1)))
    sign = drawn["graph"].node_attrs["sign"][np.asarray(conn.pre)]
    assert before.shape == after.shape == (SYNAPSES,) and (sign == -1).sum() == 76
    assert np.all(before * sign >= 0) and np.all(after * sign >= 0)
    assert np.mean(before != after) > 0.9
    assert drawn["traces"].shape == (40, SYNAPSES) and np.abs(drawn["traces"]).max() > 0


def test_the_figure_holds_the_numbers(short):
    results, _, drawn = short
    learning, memory, wiring, traced = drawn["figure"].axes
    heights = [tuple(line.get_ydata()) for line in learning.lines]
    assert heights == [tuple(100 * y for _, y in results[name]["curve"]) for name in demo.COMPARED if name in results]
    assert list(learning.lines[0].get_xdata()) == [0, 1, 2]
    bptt = results["memory"]["bptt_total_bytes"]
    assert list(memory.lines[0].get_xdata()) == list(bptt) and memory.get_xscale() == memory.get_yscale() == "log"
    assert np.allclose(memory.lines[0].get_ydata(), [size / 1e6 for size in bptt.values()])
    assert sum(len(dots.get_offsets()) for dots in wiring.collections) == SYNAPSES
    assert len(traced.lines) == 5 and all(len(line.get_xdata()) == 40 for line in traced.lines)


def test_the_gradient_is_that_of_the_stop_gradient_twin(x64):
    """All memory of the units themselves, and of what comes through synapses only this step."""
    rng, graph = np.random.default_rng(0), se.datasets.worm()
    model = demo.WormNet(graph, jax.random.key(0))
    model = jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, model)
    model = eqx.tree_at(lambda m: m.readout.value["weight"], model, jnp.asarray(rng.normal(size=(279, 10))))
    xs, labels, share = jnp.asarray(rng.normal(size=(6, 3, 1))), rng.integers(10, size=(6, 3)), rng.random(6)
    conn, sensory = graph.connectivity, np.asarray(model.drive.op.connectivity.post)
    sign = graph.node_attrs["sign"][np.asarray(conn.pre)]

    def total(values):
        weight = jnp.zeros((279, 279)).at[conn.pre, conn.post].set(sign * jnp.abs(values["synapses"]["weight"]))

        def one(h, now):
            x, label, part = now
            drive, gate = (jnp.zeros((3, 279)).at[:, sensory].set(x * values[k]["weight"]) for k in ("drive", "gate"))
            y = jax.lax.stop_gradient(h) @ weight
            g = jax.nn.sigmoid(values["leak"] + values["gain"] * y + gate)
            h = g * h + (1 - g) * jnp.tanh(y + values["bias"] + drive)
            out = h @ values["readout"]["weight"] + values["readout"]["bias"]
            return h, -part * jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), label[:, None], 1))

        return jnp.sum(jax.lax.scan(one, jnp.zeros((3, 279)), (xs, jnp.asarray(labels), jnp.asarray(share)))[1])

    names = ("synapses", "drive", "gate", "gain", "bias", "leak", "readout")
    expected = jax.jit(jax.grad(total))({name: getattr(model, name).value for name in names})
    learner = se.D_RTRL()
    carry = learner.init(model, model.init_state(3), xs[0])
    _, grads, _ = se.online_grad(learner, demo.loss_fn, model, carry, xs, (labels, share), chunk=4)
    assert oracles.relative_error({name: getattr(grads, name).value for name in names}, expected) < 1e-10


def test_readout_only_trains_the_readout():
    model = demo.WormNet(se.datasets.worm(), jax.random.key(0))
    (rule,) = (rule for rule in demo.rules(model) if rule.name == demo.READOUT_ONLY)
    report = se.explain(rule.learner, eqx.filter_eval_shape(lambda: model), model.init_state(), jnp.zeros(1))
    assert [row.name for row in report.rows] == ["readout.value['bias']", "readout.value['weight']"]


def test_batches_leave_the_held_out_alone():
    data = se.datasets.mnist1d()
    stream = demo.batches(data.x_train[demo.HELD_OUT :], data.y_train[demo.HELD_OUT :], 0)
    seen = np.concatenate([next(stream)[0][:, :, 0].T for _ in range(70)])
    assert seen.shape == (3500, 40) == np.unique(seen, axis=0).shape
    both = np.concatenate([seen, data.x_train[: demo.HELD_OUT]])
    assert np.unique(both, axis=0).shape == np.unique(data.x_train, axis=0).shape


def test_summary(short, trained):
    text = demo.summary(short[0])
    assert all(name in text for name in (*trained, "untrained", "gap of D-RTRL to BPTT", "BPTT, 10,000 steps"))


def test_rtrl_only_if_asked_for():
    model = demo.WormNet(se.datasets.worm(), jax.random.key(0))
    assert {rule.name for rule in demo.rules(model)} == RULES == set(demo.COMPARED) - {"RTRL"}


@ONLY
def test_rtrl_is_bptt(x64):
    """On the worm, in windows shorter than the sequence; D-RTRL is not."""
    rng = np.random.default_rng(0)
    model = demo.WormNet(se.datasets.worm(), jax.random.key(0))
    model = jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, model)
    model = eqx.tree_at(lambda m: m.readout.value["weight"], model, jnp.asarray(rng.normal(size=(279, 10))))
    xs, ys = jnp.asarray(rng.normal(size=(6, 2, 1))), (rng.integers(10, size=(6, 2)), rng.random(6))

    def grads(learner, chunk):
        carry = learner.init(model, model.init_state(2), xs[0])
        return jax.tree.leaves(se.online_grad(learner, demo.loss_fn, model, carry, xs, ys, chunk=chunk)[1])

    exact = grads(se.BPTT(), None)
    assert oracles.relative_error(grads(se.RTRL(), 4), exact) < 1e-10
    assert oracles.relative_error(grads(se.D_RTRL(), 4), exact) > 1e-2
