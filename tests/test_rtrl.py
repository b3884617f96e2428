"""RTRL: equal to BPTT on every kind of model, in windows and in split calls, by influences and as a whole."""

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from models import run, start
from soak import few
from test_snap import random_wiring, wired

import sparse_etrace as se
from sparse_etrace._learner import rtrl

TOLERANCE, VISIBLE = 1e-10, 1e-3
# Not made of ops alone: taken as a whole.
WHOLE = {"delay_buffer", "cut", "synapse", "recurrent_lru", "graph_conv_trained"}


def is_whole(carry):
    return type(carry.traces).__name__ == "Derivative"


def in_two_calls(learner, case, between=lambda carry: carry):
    """Six steps, three in a window: what a carry holds is used, and one program does both calls."""
    _, before, carry = run(learner, case, 3, steps=slice(3))
    _, after, carry = run(learner, case, 3, between(carry), slice(3, 6))
    return jax.tree.map(np.add, before, after), carry


def by_bptt(case):
    return oracles.bptt(case.twin, case.xs[:6], case.ys[:6])


SOME = (
    "alif_v", "mgu_cell", "feedback", "shared", "axis_2", "conv_1d", "low_rank", "alif_trained", "cut", "recurrent_lru",
)  # fmt: skip


@pytest.mark.parametrize("kind", few([*models.KINDS], SOME))
@pytest.mark.usefixtures("x64")
def test_equals_bptt(kind, monkeypatch):
    monkeypatch.setattr(rtrl, "PRODUCTS", 0)
    case = models.in_float64(kind)
    got, carry = in_two_calls(se.RTRL(), case)
    expected = by_bptt(case)
    assert oracles.relative_error(got, expected) < TOLERANCE
    assert is_whole(carry) == (kind in WHOLE)


DENSE = [("rate", (), True), ("gru_cell", (), True), ("rate", (16,), True)]


@pytest.mark.parametrize("kind, batch, expected", few(DENSE, DENSE[2:]))
@pytest.mark.usefixtures("x64")
def test_dense_units_are_taken_as_a_whole(kind, batch, expected):
    """Where products of matrices take less time; those of each batch element are its own."""
    case = models.build(kind, batch=batch)
    _, got, carry = run(se.RTRL(), case, 2, steps=slice(6))
    assert is_whole(carry) == expected and oracles.relative_error(got, by_bptt(case)) < TOLERANCE


def test_what_moves_no_state_has_no_column():
    """A readout as large as it likes."""

    class Read(eqx.Module):
        cell: eqx.Module
        out: eqx.Module

        def __call__(self, state, x):
            state, h = self.cell(state, x)
            return state, self.out(h)

    def dense(pre, post):
        return se.ETraceParam({"weight": jnp.ones((pre, post))}, se.MatMulOp())

    cell = se.cells.LeakyRate(9, dense(3, 9), dense(9, 9))
    carry = se.RTRL().init(Read(cell, dense(9, 99)), cell.init_state(), jnp.ones(3))
    assert carry.traces.rows.shape == (9, 3 * 9 + 9 * 9)


@pytest.mark.parametrize("kind", few(["alif_v", "gru_cell", "two", "cut"], ["two"]))
@pytest.mark.usefixtures("x64")
def test_mistakes_are_seen(kind):
    """Influences dropped between the calls, or those of other steps."""
    case = models.in_float64(kind)
    expected = by_bptt(case)
    fresh, late = start(se.RTRL(), case), run(se.RTRL(), case, 3, steps=slice(1, 4))[2]
    for other in (fresh, late):
        got, _ = in_two_calls(se.RTRL(), case, lambda carry, other=other: se.Carry(carry.state, other.traces))
        assert oracles.relative_error(got, expected) > VISIBLE


@pytest.mark.usefixtures("x64")
def test_two_hundred_steps_of_a_hundred_units():
    conn = random_wiring(100, 0.98, seed=1)
    case = wired("rate", conn, steps=200, batch=(1,), scale=0.8)
    carry, grads = None, None
    for first, last in ((0, 77), (77, 150), (150, 200)):
        _, part, carry = run(se.RTRL(), case, 16, carry, slice(first, last))
        grads = part if grads is None else jax.tree.map(np.add, grads, part)
    expected = run(se.BPTT(), case, 200)[1]
    assert oracles.relative_error(grads, expected) < TOLERANCE
    d_rtrl = run(se.D_RTRL(), case, 16)[1]
    assert oracles.relative_error(d_rtrl["rec"], expected["rec"]) > VISIBLE


@pytest.mark.usefixtures("x64")
def test_plain_arrays():
    """A time constant that is no parameter of an op."""

    def forward(op, h, held, x):
        a = jax.nn.sigmoid(op("leak"))
        new = a * h["h"] + (1 - a) * jnp.tanh(op("inp", x) + op("rec", h["h"]) + h["h"] @ op("mix"))
        return {"h": new}, op("out", new)

    rng = np.random.default_rng(2)
    plain = {
        "leak": models.plain(models.array(rng, models.N)),
        "mix": models.plain(models.array(rng, models.N, models.N)),
    }
    case = models.rate(rng, forward=forward, **plain)
    got, carry = in_two_calls(se.RTRL(), case)
    assert is_whole(carry)
    assert oracles.relative_error(got, by_bptt(case)) < TOLERANCE


class Nodes(eqx.Module):
    """A complex number and a matrix outside of ops, shared by all nodes; the state is real or complex."""

    turn: jax.Array
    mix: jax.Array

    def __call__(self, h, x):
        new = jnp.tanh(self.turn * (1 + 1j * h) + jnp.roll(h, 1, axis=0) @ self.mix + x)
        return (new if jnp.iscomplexobj(h) else new.real), new.real + new.imag


@pytest.mark.parametrize(
    "nodes, dtype", few([(2, float), (9, float), (2, complex), (9, complex)], [(9, float), (2, complex)])
)
@pytest.mark.usefixtures("x64")
def test_more_parameters_than_state_or_fewer(nodes, dtype):
    rng = np.random.default_rng(nodes)
    model = Nodes(jnp.asarray(0.2 + 0.1j), models.array(rng, 3, 3) / 4)
    xs, ys, h = (models.array(rng, *shape) for shape in ((6, nodes, 3), (6, nodes, 3), (nodes, 3)))
    h = h.astype(dtype)

    def gradient(learner, chunk, *parts):
        carry, total = learner.init(model, h, xs[0]), None
        for part in parts:
            _, grads, carry = se.online_grad(learner, oracles.loss_fn, model, carry, xs[part], ys[part], chunk=chunk)
            total = grads if total is None else jax.tree.map(np.add, total, grads)
        return total

    expected = gradient(se.BPTT(), None, slice(6))
    for learner, chunk in (se.RTRL(), 1), (se.RTRL(), 2), (se.Bridged(3, se.RTRL()), 2):
        got = gradient(learner, chunk, slice(3), slice(3, 6))
        assert oracles.nonzero(expected) and oracles.relative_error(got, expected) < TOLERANCE


@pytest.mark.usefixtures("x64")
def test_reset_of_a_whole_model():
    """Elements that start again have no influence left, the others go on."""
    case = models.build("cut")
    learner = se.RTRL()
    _, _, carry = run(learner, case, steps=slice(4))
    some = learner.reset(carry, jnp.array([False, True]), case.twin.state)
    (leaf,), (before,) = (jax.tree.leaves(c.traces.rows) for c in (some, carry))
    assert not np.any(leaf[1]) and np.array_equal(leaf[0], before[0]) and np.any(leaf[0])


@pytest.mark.usefixtures("x64")
def test_step_of_a_whole_model():
    """The gradient of `step` is that of a window of one step, and by the carry zero."""
    case = models.build("cut")
    learner = se.RTRL()
    _, _, carry = run(learner, case, steps=slice(3))

    @eqx.filter_grad
    def by(both):
        model, carry = both
        return oracles.loss_fn(learner.step(model, carry, case.xs[3])[1], case.ys[3])

    model, by_carry = by((case.model, carry))
    assert oracles.relative_error(case.read(model), run(learner, case, 1, carry, slice(3, 4))[1]) < TOLERANCE
    assert not any(np.any(g) for g in jax.tree.leaves(by_carry))


def test_a_whole_model_of_two_types():
    """float32 parameters and a bfloat16 state, which stays one."""
    case = models.build("cut")
    state = jax.tree.map(lambda a: a.astype(jnp.bfloat16), case.twin.state)

    class Narrow(eqx.Module):
        model: eqx.Module

        def __call__(self, state, x):
            new, out = self.model(jax.tree.map(lambda a: a.astype(jnp.float32), state), x)
            return jax.tree.map(lambda a: a.astype(jnp.bfloat16), new), out

    model, learner = Narrow(case.model), se.RTRL()
    carry = learner.init(model, state, case.xs[0])
    _, grads, carry = se.online_grad(learner, oracles.loss_fn, model, carry, case.xs, case.ys)
    assert carry.state["h"].dtype == jnp.bfloat16
    start_ = se.BPTT().init(model, state, case.xs[0])
    expected = se.online_grad(se.BPTT(), oracles.loss_fn, model, start_, case.xs, case.ys)[1]
    assert oracles.relative_error(case.read(grads.model), case.read(expected.model)) < 0.1


def test_too_many():
    case = models.build("cut")
    size = start(se.RTRL(), case).traces.rows["h"].size
    with pytest.raises(ValueError, match=rf"model: the derivative of all state .* has {size:,} entries, more than"):
        start(se.RTRL(max_influences=size - 1), case)
    start(se.RTRL(max_influences=size), case)
    with pytest.raises(ValueError, match="more than 10 influences would be kept"):
        start(se.RTRL(max_influences=10), models.build("rate"))


@pytest.mark.parametrize("kind", ["rate", "cut"])
def test_carry_of_another_learner(kind):
    case = models.build(kind)
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
        run(se.RTRL(), case, carry=start(se.BPTT(), case))


def test_no_silent_zero():
    case = models.build("rate")
    unused = eqx.tree_at(lambda m: m.params, case.model, {**case.model.params, "spare": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'spare'.* would never get a gradient: its value is never used"):
        start(se.RTRL(), case._replace(model=unused))
