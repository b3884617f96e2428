"""Each comparison must notice its mistake: wrong rules, swapped on purpose, are far from the library's gradients."""

import jax
import jax.numpy as jnp
import models
import oracles
import pytest
from models import reference, run, run_by_step
from soak import few

import sparse_etrace as se

pytestmark = pytest.mark.usefixtures("x64")
VISIBLE = 1e-3


WRONG = [
    ("rate", "no trace"),
    ("lif", "no trace"),
    ("old_readout", "no trace"),
    ("alif_v", "diagonal"),
    ("alif_cell", "diagonal"),
    ("delay_chain", "diagonal"),
    ("rate", "late signal"),
    ("masked", "no weight_fn"),
    ("function_first", "no weight_fn"),
    ("conv_2d", "no weight_fn"),
]


@pytest.mark.parametrize("kind, wrong", few(WRONG, [WRONG[k] for k in (1, 5, 6, 8)]))
def test_wrong_rule(kind, wrong):
    case, _ = reference(kind)
    _, grads = run_by_step(se.D_RTRL(), case)
    mistaken = oracles.online(case.twin, case.xs, case.ys, wrong=wrong).exact
    assert oracles.relative_error(grads, mistaken) > VISIBLE


def test_carry_reset_between_calls():
    case, expected = reference("rate")
    learner = se.D_RTRL()
    carry, grads = models.start(learner, case), []
    for t in range(len(case.xs)):
        _, grad, carry = run(learner, case, 1, carry, slice(t, t + 1))
        grads.append(grad)
        carry = learner.reset(carry, jnp.array([True, True]), carry.state)
    got = jax.tree.map(lambda *g: jnp.stack(g), *grads)
    assert oracles.relative_error_by_step(got, expected.exact) > VISIBLE


def test_swapped_surrogates():
    case, _ = reference("lif")
    swapped = case.twin._replace(forward=models.lif_vjp_forward)
    mistaken = oracles.online(swapped, case.xs, case.ys)
    losses, grads = run_by_step(se.D_RTRL(), case)
    assert oracles.relative_error(losses, mistaken.losses) < 1e-10
    assert oracles.relative_error_by_step(grads, mistaken.exact) > VISIBLE


@pytest.mark.parametrize("kind", few(["rate", "two_lif"], ["rate"]))
def test_factors_are_no_traces(kind):
    case, expected = reference(kind)
    _, grads = run_by_step(se.ES_D_RTRL(decay=models.DECAY), case)
    assert oracles.relative_error_by_step(grads, expected.exact) > VISIBLE


def test_one_window_from_zero_traces_does_not_see_a_dropped_trace():
    """Why comparisons go step by step: the first step is right without any trace."""
    case, _ = reference("rate")
    mistaken = oracles.online(case.twin, case.xs, case.ys, wrong="no trace").exact
    first = jax.tree.map(lambda g: g[0], mistaken)
    assert oracles.relative_error(run(se.D_RTRL(), case, 1, steps=slice(1))[1], first) < 1e-10
