"""Populations of spiking neurons: receptors, constants, what they refuse, and that they are the cells known before."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparse_etrace as se
from sparse_etrace.cells import spiking

KEY, N = jax.random.key(0), 3
pytestmark = pytest.mark.usefixtures("x64")


def run(cell, xs, batch=()):
    return eqx.filter_jit(lambda c, xs: jax.lax.scan(lambda s, x: (c(s, x)[0], c(s, x)), c.init_state(*batch), xs))(
        cell, jnp.asarray(xs)
    )[1]


def dense(scale=1.0, seed=0, pre=N):
    weight = scale * np.random.default_rng(seed).normal(size=(pre, N))
    return se.ETraceParam({"weight": weight}, se.MatMulOp())


XS = np.random.default_rng(1).normal(size=(40, 2, N)) + 0.5


def test_a_current_held_over_the_step_is_the_cell_of_decays():
    """Of constants as they are and trained, in the same spikes."""
    a, rho, beta = np.exp(-1 / 20), np.exp(-1 / 200), 1.5
    inp, rec = dense(20.0), dense(9.0, 1)
    expected = run(se.cells.ALIF(N, inp, rec, decay=a, adaptation_decay=rho, adaptation=beta), XS, (2,))[1]
    for wrap in (float, lambda c: se.ElemWiseParam(jnp.array(c))):
        neuron = spiking.ALIF(tau=wrap(20.0), adaptation=wrap(beta * (1 - rho) / rho))
        np.testing.assert_array_equal(run(spiking.Population(N, neuron, inp, rec), XS, (2,))[1], expected)
    assert 0.02 < np.mean(expected) < 0.6


def test_constants_for_each_unit_are_those_of_single_neurons():
    taus, refractory = np.array([5.0, 10.0, 20.0]), np.array([0.0, 1.0, 3.0])
    xs = 3 * XS[:, 0]
    together = run(spiking.Population(N, spiking.LIF(tau=taus), refractory=refractory), xs)[1]
    for i in (0, 2):
        alone = run(spiking.Population(1, spiking.LIF(tau=taus[i]), refractory=refractory[i]), xs[:, i : i + 1])[1]
        np.testing.assert_array_equal(together[:, i : i + 1], alone)
    made = eqx.filter_vmap(lambda tau: spiking.Population(1, spiking.LIF(tau=tau)))(jnp.asarray(taus))
    one = lambda cell, x: run(cell, x[:, None])[1][:, 0]
    expected = run(spiking.Population(N, spiking.LIF(tau=taus)), xs)[1]
    np.testing.assert_array_equal(jax.vmap(one, (0, 1), 1)(made, jnp.asarray(xs)), expected)


def test_substeps_are_a_loop():
    """Compiled in a row, two of them and their derivatives took minutes; state and input may have other digits."""
    cells = [spiking.Population(N, spiking.AdEx(), synapses=spiking.Exponential(), substeps=k) for k in (2, 20)]
    state = jax.tree.map(lambda a: a.astype(jnp.float32), cells[0].init_state()._replace(wait=None))
    programs = [str(jax.make_jaxpr(lambda s, x, cell=cell: cell(s, x)[0])(state, XS[0, 0])) for cell in cells]
    assert programs[0].count("\n") == programs[1].count("\n")


def test_influences_pass_through_substeps(x64):
    """Without longer ways influences on the own unit are the traces; the loop's backward pass divides zeros."""
    cell = spiking.AdEx.of(se.from_edges([0, 1, 2], [1, 2, 0]), 2, key=jax.random.key(0), substeps=2)
    xs, ys, found = 2000 * jnp.ones((6, 2)), jnp.ones((6, 3)), []
    for learner in (se.SnAp(1), se.D_RTRL()):
        carry = learner.init(cell, cell.init_state(), xs[0])
        found.append(se.online_grad(learner, lambda v, y: jnp.sum((v - y) ** 2), cell, carry, xs, ys, chunk=3)[1])
    assert all(map(np.any, jax.tree.leaves(found[1])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), *found)


def test_a_number_arrives_at_all_neurons():
    for batch in (), (2,):
        cell = spiking.Population(N, spiking.LIF(), synapses={"drive": spiking.Current()})
        state = cell.init_state(*batch)
        expected = cell(state, {"drive": jnp.full((*batch, N), 11.0)})
        for number in 11.0, np.float64(11.0), jnp.array(11):
            jax.tree.map(np.testing.assert_array_equal, cell(state, {"drive": number}), expected)
    np.testing.assert_array_equal(expected[0].neuron["v"] != state.neuron["v"], True)


def test_a_fly_brain():
    """The constants of a published model of the whole fly: one spike through a synapse, and 2.2 ms of silence."""
    neuron = spiking.LIF(tau=20.0, rest=-52.0, threshold=-45.0, reset=-52.0)
    cell = spiking.Population(1, neuron, synapses=spiking.Exponential(5.0), dt=0.1, refractory=2.2)
    xs = np.zeros((400, 1))
    xs[0] = 0.275
    states, _ = run(cell, xs)
    t = 0.1 * np.arange(1, 401)
    right = -52 + 0.275 * 5 / (20 - 5) * (np.exp(-t / 20) - np.exp(-t / 5))
    np.testing.assert_allclose(states.neuron["v"][:, 0], right, rtol=0, atol=1e-12)
    xs[:] = 9.0
    states, z = run(cell, xs)
    first = int(np.argmax(z[:, 0]))
    assert np.all(states.neuron["v"][first : first + 23] == -52.0) and states.neuron["v"][first + 23, 0] > -52.0
    assert np.diff(np.flatnonzero(z[:, 0])).min() > 22


def test_receptors_and_what_arrives_from_outside():
    receptors = {"AMPA": spiking.Exponential(2.0), "GABA": spiking.Alpha(5.0)}
    excite, inhibit, rec = dense(8.0), dense(-3.0, 1), {"GABA": dense(2.0, 2)}
    make = lambda inp: spiking.Population(N, spiking.LIF(), inp, rec, receptors)
    within = make({"AMPA": excite, "GABA": inhibit})
    expected = run(within, XS, (2,))[1]
    assert 0.02 < np.mean(expected) < 0.6

    class Before(eqx.Module):
        cell: spiking.Population

        def init_state(self, *batch):
            return self.cell.init_state(*batch)

        def __call__(self, state, x):
            return self.cell(state, {"AMPA": excite(x), "GABA": inhibit(x)})

    np.testing.assert_array_equal(run(Before(make(None)), XS, (2,))[1], expected)
    by_name = lambda state, x: within(state, {"AMPA": x, "GABA": x})
    np.testing.assert_array_equal(jax.lax.scan(by_name, within.init_state(2), jnp.asarray(XS))[1], expected)
    # A receptor without input of its own is silent, and one cell takes both ways.
    mixed = make({"GABA": inhibit})
    both = lambda state, x: mixed(state, {"AMPA": excite(x), "GABA": x})
    np.testing.assert_array_equal(jax.lax.scan(both, mixed.init_state(2), jnp.asarray(XS))[1], expected)


def test_delays_of_a_receptor():
    """Against spikes that wait in a line of each synapse."""
    delay, weight = np.array([1, 3, 2]), np.array([3.0, 2.0, 4.0])
    graph = se.from_edges([0, 1, 2], [1, 2, 0], weight, edge_attrs={"delay": delay}, dtype=float)
    cell = spiking.LIF.of(graph, 2, key=KEY, init=graph, bias=False, synapses=spiking.Delta(), refractory=2.0)
    xs = np.abs(XS[:, 0, :2])
    _, z = run(cell, xs)
    alone = spiking.Population(N, spiking.LIF(), synapses=spiking.Delta(), refractory=2.0)
    state, sent = alone.init_state(), []
    for t, x in enumerate(xs):
        y = x @ np.asarray(cell.inp["all"].value["weight"])
        for pre, post, d, w in zip([0, 1, 2], [1, 2, 0], delay, weight):
            y[post] += w * sent[t - d][pre] if t >= d else 0
        state, out = alone(state, jnp.asarray(y))
        sent.append(np.asarray(out))
    np.testing.assert_array_equal(z, sent)
    assert 0.1 < np.mean(sent) < 0.5


def test_constants_that_are_exchanged_do_not_pass_silently():
    cell = spiking.Population(N, spiking.AdLIF(), refractory=2.0)
    x = jnp.full(N, 0.1)
    other = eqx.tree_at(lambda c: c.neuron.tau, cell, se.Fixed(5.0))
    assert np.all(np.isnan(other(other.init_state(), x)[0].neuron["v"]))
    lower = eqx.tree_at(lambda c: c.neuron.threshold, cell, se.Fixed(1e-3))
    assert np.all(lower(lower.init_state(), x)[1] == 1) and not np.any(cell(cell.init_state(), x)[1])


def test_double_exponential_of_equal_time_constants_is_alpha():
    xs = np.zeros((30, 1))
    xs[0] = 1.0
    found = [
        run(spiking.Population(1, spiking.LI(), synapses=synapse), xs)[0].synapses["all"]["s"]
        for synapse in (spiking.Alpha(5.0), spiking.DoubleExponential(5.0, 5.0), spiking.DoubleExponential(5.0, 5.001))
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=1e-3)


def test_magnesium_blocks():
    """By the published factor, at two potentials."""
    for v in (-70.0, -20.0):
        neuron = spiking.LIF(rest=v, threshold=v + 50)
        opened = [
            spiking.Population(1, neuron, synapses=spiking.Conductance(spiking.Current(), 0.0, mg), dt=1e-4)
            for mg in (0.0, 1.0)
        ]
        free, blocked = (cell(cell.init_state(), jnp.ones(1))[0].neuron["v"][0] - v for cell in opened)
        np.testing.assert_allclose(blocked / free, 1 / (1 + np.exp(-0.062 * v) / 3.57), rtol=1e-5)


GRAPH = se.from_edges([0, 1, 2], [1, 2, 0])
TWO = {"E": spiking.Exponential(), "I": spiking.Exponential()}
REFUSED = {
    "reset: expected 'subtract', a potential or None, got 'soft'.": lambda: spiking.LIF(reset="soft"),
    "threshold: expected values above rest, -60.0, got -65.0.": lambda: spiking.LIF(threshold=-65.0, rest=-60.0),
    "peak: expected values above rest, -70.6, got -80.0.": lambda: spiking.AdEx(peak=-80.0),
    "tau: expected values from 1e-12 to inf, got 0.0.": lambda: spiking.GIF(tau=0.0),
    "rec: LI sends no spikes, got": lambda: spiking.Population(N, spiking.LI(), rec=dense()),
    "dt: expected a positive, finite number of ms, got 0.0.": lambda: spiking.Population(N, spiking.LIF(), dt=0.0),
    "refractory: expected times of whole steps of 1.0 ms, got 1.5.": lambda: spiking.Population(
        N, spiking.LIF(), refractory=1.5
    ),
    "refractory: expected times of whole steps of 1.0 ms, got -1.0.": lambda: spiking.Population(
        N, spiking.LIF(), refractory=-1.0
    ),
    "tau: expected an array that fits the units, (3,), got shape (2,).": lambda: spiking.Population(
        N, spiking.LIF(tau=np.ones(2))
    ),
    "tau: expected at least 0.01 ms for a step of 1.0 ms, got 0.005.": lambda: spiking.Population(
        N, spiking.LIF(), synapses=spiking.Exponential(0.005)
    ),
    "tau: expected at least 0.25 ms for a step of 0.5 ms, got 0.2. Give a shorter dt, or substeps": (
        lambda: spiking.Population(N, spiking.Izhikevich(), synapses=spiking.Exponential(0.2), substeps=2)
    ),
    "synapse: expected a synapse with a current, got Delta.": lambda: spiking.Conductance(spiking.Delta(), 0.0),
    "inp: expected a dictionary by receptor, ['E', 'I'], got ETraceParam.": lambda: spiking.Population(
        N, spiking.LIF(), dense(), synapses=TWO
    ),
    "rec: expected receptors out of ['E', 'I'], got ['NMDA'].": lambda: spiking.Population(
        N, spiking.LIF(), rec={"NMDA": dense()}, synapses=TWO
    ),
    "x: expected an entry for each parameter `inp`, got none for ['I'].": lambda: step(
        {"E": dense(), "I": dense()}, {"E": np.ones(N)}
    ),
    "x: expected a dictionary by receptor, ['E', 'I'], got": lambda: step(None, jnp.ones(N)),
    "x['E']: expected an output of the shape of the state, (3,), got (2,).": lambda: step(None, {"E": jnp.ones(2)}),
    "decay: expected one of ['tau', 'threshold',": lambda: spiking.LIF.of(GRAPH, 2, key=KEY, decay=0.9),
    "graph: expected graphs of the same neurons, got [3, 4] of them.": lambda: spiking.LIF.of(
        {"E": GRAPH, "I": 4}, key=KEY, synapses=TWO
    ),
}


def step(inp, x):
    cell = spiking.Population(N, spiking.LIF(), inp, synapses=TWO)
    return cell(cell.init_state(), x)


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises((ValueError, TypeError), match="^" + re.escape(message)):
        REFUSED[message]()


def test_made_on_graphs():
    sign = {"E": se.SignLock(1.0), "I": se.SignLock(-1.0)}
    cell = spiking.ALIF.of(
        {"E": GRAPH, "I": GRAPH}, {"E": 5}, key=KEY, synapses=TWO, weight_fn=sign, dt=0.5, refractory=1.0, tau=10.0
    )
    assert sorted(cell.inp) == ["E"] and sorted(cell.rec) == ["E", "I"] and cell.dt == 0.5
    assert cell.rec["I"].op.weight_fn == sign["I"] and float(cell.neuron.tau()) == 10.0
    assert not np.array_equal(cell.rec["E"].value["weight"], cell.rec["I"].value["weight"])
    readout = spiking.LI.of(2, 5, key=KEY)
    assert readout.rec == {} and readout.inp["all"].value["weight"].shape == (5, 2)
