"""D-RTRL and ES-D-RTRL step by step against explicit Jacobians, for models of every kind, in float64."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st

import sparse_etrace as se

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE = 1e-10
# One op feeds another of its own group, so BPTT with stopped gradients says something else.
NO_TWIN = {"mgu_cell", "fused_gru"}


def stack(grads):
    return jax.tree.map(lambda *g: jnp.stack(g), *grads)


def total(grads):
    return jax.tree.map(lambda g: jnp.sum(g, 0), grads)


def start(learner, case):
    return learner.init(case.model, case.twin.state, jax.ShapeDtypeStruct(case.xs.shape[1:], case.xs.dtype))


def by_step(learner, case):
    """Gradients of each step, from split calls with the carry going on."""
    carry, losses, grads = start(learner, case), [], []
    for t in range(len(case.xs)):
        now = slice(t, t + 1)
        loss, g, carry = se.online_grad(
            learner, oracles.loss_fn, case.model, carry, case.xs[now], case.ys[now], chunk=1
        )
        losses.append(loss[0])
        grads.append(case.read(g))
    return jnp.stack(losses), stack(grads)


def in_windows(learner, case, chunk=3):
    carry = start(learner, case)
    return case.read(se.online_grad(learner, oracles.loss_fn, case.model, carry, case.xs, case.ys, chunk=chunk)[1])


@functools.cache
def reference(kind):
    with jax.enable_x64(True):
        case = models.build(kind)
        return case, oracles.online(case.twin, case.xs, case.ys, decay=0.8)


@pytest.mark.parametrize("kind", models.KINDS)
def test_d_rtrl(kind):
    case, expected = reference(kind)
    assert oracles.nonzero(expected.exact)
    losses, grads = by_step(se.D_RTRL(), case)
    assert oracles.relative_error(losses, expected.losses) < TOLERANCE
    assert oracles.relative_error_by_step(grads, expected.exact) < TOLERANCE
    assert oracles.relative_error(in_windows(se.D_RTRL(), case), total(expected.exact)) < TOLERANCE


@pytest.mark.parametrize("kind", [k for k in models.KINDS if k not in NO_TWIN])
def test_oracles_agree(kind):
    """Explicit Jacobians and BPTT with stopped gradients are two ways to the same numbers."""
    case, expected = reference(kind)
    twin = oracles.stop_gradient_twin(case.twin, case.xs, case.ys)
    assert oracles.relative_error(twin, total(expected.exact)) < TOLERANCE


@pytest.mark.parametrize("kind", models.KINDS)
def test_es_d_rtrl(kind):
    case, expected = reference(kind)
    _, grads = by_step(se.ES_D_RTRL(decay=0.8), case)
    assert oracles.relative_error_by_step(grads, expected.factored) < TOLERANCE
