"""`check_learner`: silent for rules that keep what they owe, and a word for each law that is broken."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from soak import few

import sparse_etrace as se
from sparse_etrace._learner import LEARNERS


class Own(se.TraceLearner):
    """D-RTRL, from what is public."""

    train: Any = None
    allow_zero: tuple[str, ...] = ()

    def trace_like(self, op, v, terms):
        return [op.xy_to_dw(terms.x, f, v) for f in terms.F]

    def update(self, op, v, eps, terms):
        x, n, m, D, F = terms
        variables = range(len(F))
        taught = add(op.xy_to_dw(x, n, v), *(op.yw_to_w(m[a], eps[a]) for a in variables))
        new = [add(op.xy_to_dw(x, F[a], v), *(op.yw_to_w(D[a, b], eps[b]) for b in variables)) for a in variables]
        return new, jax.tree.map(lambda e, w: e.sum(tuple(range(e.ndim - w.ndim))), taught, v)


def add(*trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


def gradients(learner, case):
    """In calls of three steps, each in windows of two."""
    carry, found = learner.init(case.model, case.twin.state, case.xs[0]), []
    for k in (0, 3):
        part = slice(k, k + 3)
        _, grads, carry = se.online_grad(learner, oracles.loss_fn, case.model, carry, case.xs[part], case.ys[part], 2)
        found.append(jax.tree.leaves(grads))
    return found


OWN = ["two_groups", "channel_decay"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", few([*models.KINDS], OWN))
def test_d_rtrl_in_public_lines(kind):
    """Whatever the op, the hidden variables and the batch axes, it is the built-in rule."""
    case = models.build(kind)
    assert oracles.relative_error(gradients(Own(), case), gradients(se.D_RTRL(), case)) < 1e-12


@pytest.mark.parametrize(
    "change, error, match",
    [
        (lambda new, dv: new, TypeError, "update: expected the trace and the gradient of v, .* got list"),
        (lambda new, dv: (dv, new), ValueError, r"update: expected a trace of shapes \[\{'bias'.*, got \{'bias'"),
        (
            lambda new, dv: (new, jax.tree.map(lambda w: w[None], dv)),
            ValueError,
            r"update: expected a gradient of shapes \{'bias': \(4,\).*, got \{'bias': \(1, 4\).* sum over batch axes",
        ),
    ],
)
def test_updates_that_are_none(change, error, match):
    class Changed(Own):
        def update(self, *given):
            return change(*super().update(*given))

    case = models.build("rate")
    with pytest.raises(error, match=match):
        gradients(Changed(), case)


class Late(Own):
    """A mistake: what enters a trace meets the learning signal of its own step."""

    def update(self, op, v, eps, terms):
        new, _ = super().update(op, v, eps, terms)
        return new, super().update(op, v, new, terms)[1]


@pytest.mark.usefixtures("x64")
def test_a_mistake_in_an_own_rule_is_seen():
    case = models.build("rate")
    assert oracles.relative_error(gradients(Late(), case), gradients(se.D_RTRL(), case)) > 1e-3


# --- wrong learners --------------------------------------------------------------------------------------------------


class Around(se.Learner):
    """D-RTRL with something done to it."""

    train: Any = None
    allow_zero: tuple[str, ...] = ()

    def init(self, model, state, x):
        return se.D_RTRL().init(model, state, x)

    def step(self, model, carry, x):
        return se.D_RTRL().step(model, carry, x)

    def reset(self, carry, where, state):
        return se.D_RTRL().reset(carry, where, state)


class Doubled(Around):
    def step(self, model, carry, x):
        carry, out = se.D_RTRL().step(model, carry, x)
        return carry, 2 * out


class Grows(Around):
    """The traces become those of another type."""

    def step(self, model, carry, x):
        carry, out = se.D_RTRL().step(model, carry, x)
        return eqx.tree_at(lambda c: c.memory, carry, jnp.zeros(3), is_leaf=lambda leaf: leaf is None), out


TICKS = itertools.count(1)


class Clock(eqx.Module):
    """A number that a compiled function is compiled for."""

    time: int = eqx.field(static=True)


class Ticks(Around):
    """A carry whose static part is another one at each look."""

    def init(self, model, state, x):
        carry = se.D_RTRL().init(model, state, x)
        return se.Carry(carry.state, carry.traces, (carry.memory, Clock(0)), carry.origin)

    def window(self, model, carry, xs, ys, loss_fn):
        memory, _ = carry.memory
        model(carry.state, xs[0])
        found = super().window(model, se.Carry(carry.state, carry.traces, memory), xs, ys, loss_fn)
        now = found.carry
        after = se.Carry(now.state, now.traces, (now.memory, Clock(next(TICKS))))
        return se.Window(found.losses, found.aux, found.grads, after)


class Halves(Around):
    """What `step` says is not what a window says."""

    def window(self, model, carry, xs, ys, loss_fn):
        found = super().window(model, carry, xs, ys, loss_fn)
        grads = jax.tree.map(lambda g: 0.5 * g, found.grads)
        return se.Window(found.losses, found.aux, grads, found.carry)


class Forgets(Around):
    """A window of several steps starts from no traces."""

    def window(self, model, carry, xs, ys, loss_fn):
        if len(xs) > 1:
            carry = se.Carry(carry.state, jax.tree.map(jnp.zeros_like, carry.traces), carry.memory)
        return super().window(model, carry, xs, ys, loss_fn)


class Averages(Around):
    """Batch elements are taken for one."""

    def step(self, model, carry, x):
        carry, out = se.D_RTRL().step(model, carry, x)
        axis = 1 if jnp.ndim(carry.state) > 1 else None
        traces = jax.tree.map(lambda e: e if axis is None else 0 * e + e.mean(axis, keepdims=True), carry.traces)
        return eqx.tree_at(lambda c: c.traces, carry, traces), out


class Stays(Around):
    """Traces go on when the state starts again."""

    def reset(self, carry, where, state):
        return se.Learner.reset(self, carry, where, state)


WRONG = {
    "interface": Doubled(), "windows": Forgets(), "compiled": Ticks(), "step": Halves(), "batch": Averages(),
    "reset": Stays(),
}  # fmt: skip


@pytest.mark.parametrize("law", WRONG)
def test_a_broken_law_is_named(law):
    # A carry that makes jax compile again has another structure, which is told first.
    skip = ("interface",) if law == "compiled" else ()
    with pytest.raises(ValueError, match=f"learner: the law '{law}' fails at "):
        se.check_learner(WRONG[law], skip=skip)


def test_a_rule_that_draws_for_a_batch_is_another_under_vmap():
    learner = se.UORO(key=jax.random.key(0))
    with pytest.raises(ValueError, match="learner: the law 'vmap' fails at "):
        se.check_learner(learner, skip=("batch",))
    se.check_learner(learner, skip=("batch", "vmap", "reset"))


def test_a_carry_of_another_structure():
    with pytest.raises((ValueError, TypeError), match="structure"):
        se.check_learner(Grows())


def test_arguments_of_check_learner():
    with pytest.raises(ValueError, match="skip: expected some of interface, .*, got 'speed'"):
        se.check_learner(se.D_RTRL(), skip=("speed",))
    with pytest.raises(ValueError, match="model: expected all of loss_fn, model, state, xs and ys, or none of them"):
        se.check_learner(se.D_RTRL(), xs=np.ones((6, 2)))


def test_every_rule_of_the_list_is_one_of_the_conformance_table():
    import test_conformance

    kinds = {type(rule.make("state")) for rule in test_conformance.LEARNERS.values()}
    assert kinds == {type(make("state")) for make in LEARNERS.values()}
    public = {value for value in vars(se).values() if isinstance(value, type) and issubclass(value, se.Learner)}
    assert kinds == public - {se.Learner, se.TraceLearner, se.Events}  # which is none without another
