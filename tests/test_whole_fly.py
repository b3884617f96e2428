"""The published model of the whole fly: against Brian2, by label, and trained."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_etrace as se
from sparse_etrace.cells.spiking import whole_fly

FILE = Path(__file__).with_name("brian_traces.npz")


@pytest.fixture(scope="module")
def stored():
    with np.load(FILE) as file:
        return {name.split("/")[1]: value for name, value in file.items() if name.startswith("whole fly/")}


def graph_of(stored):
    units = int(stored["units"])
    return se.from_edges(*(stored[k].astype(int) for k in ("pre", "post", "weight")), shape=(units, units))


def spikes_of(fly, xs):
    return np.asarray(se.predict(fly, fly.init_state(), jnp.asarray(xs, float))[0]) > 0


def test_every_spike_of_brian2(stored, x64):
    """60 neurons for 300 ms, by the equations as published: who spikes in which step."""
    fly, expected = whole_fly(graph_of(stored), stored["driven"]), np.zeros((3000, 60), bool)
    expected[stored["at"], stored["who"]] = True
    # Brian2 would show the spikes of an input in the last step one step later.
    np.testing.assert_array_equal(spikes_of(fly, stored["inputs"])[:-1], expected[:-1])
    assert expected[:, 5:].sum() > 300
    for wrong in ({"delay": 1.7}, {"refractory": 2.1}, {"tau_synapse": 5.1}, {"per_synapse": 0.276}):
        fly = whole_fly(graph_of(stored), stored["driven"], **wrong)
        assert (spikes_of(fly, stored["inputs"]) != expected)[:-1].any(), wrong


def test_silence_and_rates_by_label(stored):
    """A neuron that is silenced is one whose synapses are gone, but for its own spikes."""
    graph, driven = graph_of(stored), stored["driven"].astype(int)
    inputs, mask = stored["inputs"][:1000], np.isin(np.arange(60), driven[:2])
    silent = se.spikes.perturbed(whole_fly(graph, driven), "z", scale=1 - mask)
    cut = graph.with_weight(jnp.where(mask[graph.connectivity.pre], 0, graph.weight))
    got, expected = spikes_of(silent, inputs), spikes_of(whole_fly(cut, driven), inputs)
    np.testing.assert_array_equal(got, expected & ~mask)
    assert (expected != spikes_of(whole_fly(graph, driven), inputs)).any() and got.any()


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.ES_D_RTRL(0.99)])
def test_rates_are_fitted(learner, stored):
    """10 Hz of half of the neurons: the loss falls by a tenth in five updates, and signs stay."""
    graph, driven = graph_of(stored), stored["driven"].astype(int)
    lock, optimizer = se.SignLock(jnp.sign(graph.weight)), optax.adam(1.0)
    fly = se.spikes.watched(whole_fly(graph, driven, weight_fn=lock), means="z")
    xs, wanted = jnp.asarray(stored["inputs"][:500], jnp.float32), 0.01 * (np.arange(60) > 30)
    carry = start = learner.init(fly, fly.init_state(), xs[0])
    moments, losses = optimizer.init(eqx.filter(fly, se.trainable(fly))), []

    def loss_fn(out, y):
        return se.spikes.rate_loss(out[2]["z"], wanted)

    for _ in range(5):
        loss, grads, carry = se.online_grad(learner, loss_fn, fly, start, xs, xs)
        losses.append(float(loss.sum() + np.sum(wanted**2) / 2))
        changes, moments = optimizer.update(grads, moments)
        fly = eqx.apply_updates(fly, changes)
    assert losses[-1] < 0.9 * losses[0] and carry.state.means["z"].max() > 0, losses
    weight = fly.model.rec["g"].op.phi(fly.model.rec["g"].value)["weight"]
    assert (weight * graph.weight >= 0).all()


def test_refusals():
    with pytest.raises(ValueError, match=r"graph: expected one set of units, got a graph of shape \(2, 3\)"):
        whole_fly(se.from_edges([0], [1], shape=(2, 3)))
    graph = se.from_edges([0], [1])
    with pytest.raises(ValueError, match="driven: expected indices from 0 and below 2, the number of units, got 5"):
        whole_fly(graph, [5])
    with pytest.raises(TypeError, match="graph: expected a Graph, got Connectivity"):
        whole_fly(graph.connectivity)
    with pytest.raises(TypeError, match="driven: expected integers"):
        whole_fly(graph, [0.5])
    with pytest.raises(ValueError, match="delay: expected times of whole steps of 0.1 ms, got 0.25"):
        whole_fly(graph, delay=0.25)


def test_a_made_fly():
    """Distinct pairs, Dale's law, and the counts of the connectome: 3.6 to a pair, 18 % with five or more."""
    graph = se.generate.fly_brain(jax.random.key(1), nodes=3000, synapses=200_000)
    conn, sign = graph.connectivity, graph.node_attrs["sign"]
    pre, post, count = np.asarray(conn.pre), np.asarray(conn.post), np.abs(graph.weight)
    assert len(np.unique(pre.astype(int) * 3000 + post)) == 200_000 and (pre != post).all()
    np.testing.assert_array_equal(np.sign(graph.weight), sign[pre])
    assert 3.4 < count.mean() < 3.9 and 0.17 < (count >= 5).mean() < 0.18 and (count == np.round(count)).all()
    degrees = [np.bincount(ends, minlength=3000) for ends in (pre, post)]
    assert all(d.max() > 8 * np.median(d) for d in degrees) and 0.4 < np.corrcoef(degrees)[0, 1] < 0.8
    same = se.generate.fly_brain(jax.random.key(1), nodes=3000, synapses=200_000)
    np.testing.assert_array_equal(same.weight, graph.weight)
    assert se.generate.fly_brain(jax.random.key(0), nodes=50, synapses=500).connectivity.num_synapses == 500
    with pytest.raises(ValueError, match="synapses: expected 0 to 500, a fifth of the pairs, got 501"):
        se.generate.fly_brain(jax.random.key(0), nodes=50, synapses=501)
