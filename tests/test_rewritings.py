"""A gradient is a property of the function: the same step written otherwise learns the same, to rounding."""

import functools

import jax
import jax.numpy as jnp
import models
import oracles
import pytest
from models import run
from soak import few

import sparse_etrace as se

TOLERANCE, VISIBLE = 1e-12, 1e-3


class Once:
    """Ops that run once; asked again in the same order, they give what they gave."""

    def __init__(self, op):
        self.op, self.kept, self.next = op, [], None

    def again(self):
        self.next = iter(self.kept)
        return self

    def _call(self, make):
        if self.next is not None:
            return next(self.next)
        self.kept.append(make())
        return self.kept[-1]

    def __call__(self, name, x=None):
        return self._call(lambda: self.op(name, x))

    def cut(self, name, fn, *args):
        return self._call(lambda: self.op.cut(name, fn, *args))


REWRITINGS = {
    "scaled": lambda a: 1.0 * a,
    "reshaped": lambda a: a.reshape(-1).reshape(a.shape),
    "gathered": lambda a: a[..., jnp.arange(a.shape[-1])],
    "chosen": lambda a: jnp.where(jnp.isfinite(a), a, 0),
    "recomputed": lambda a: a,
    "twice": lambda a: 0.5 * a + 0.5 * jnp.flip(jnp.flip(a, -1), -1),
}


def rewritten(case, how):
    """A network whose new state passes through some rewritings that change no number."""
    forward = case.model.forward

    def one(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return functools.reduce(lambda a, name: REWRITINGS[name](a), how, leaf)

    def other(op, h, held, x):
        op = Once(op)
        new, out = forward(op, h, held, x)
        if "recomputed" in how:
            new = forward(op.again(), h, held, x)[0]
        return jax.tree.map(one, new), out

    return case._replace(model=models.Net(case.model.params, other, case.model.calls))


KINDS = ("memoryless", "lif_vjp", "alif_v", "lstm", "fused_gru", "two_lif", "feedback", "twice", "synapse", "three")
ALONE = [(kind, (how,)) for kind in ("memoryless", "alif_v", "two_lif") for how in REWRITINGS]
CASES = [(kind, tuple(REWRITINGS)) for kind in KINDS]


@pytest.mark.parametrize("kind, how", few(CASES + ALONE, [CASES[0], CASES[4]]))
@pytest.mark.usefixtures("x64")
def test_the_same_gradient(kind, how):
    case = models.in_float64(kind)
    expected = run(se.D_RTRL(), case, 2)[1]
    assert oracles.relative_error(run(se.D_RTRL(), rewritten(case, how), 2)[1], expected) < TOLERANCE


OTHERS = [se.ES_D_RTRL(), se.SnAp(n=1), se.OSTL()]


@pytest.mark.parametrize("learner", few(OTHERS, OTHERS[1:2]), ids=lambda l: type(l).__name__)
@pytest.mark.usefixtures("x64")
def test_other_rules(learner):
    case = models.in_float64("memoryless")
    expected = run(learner, case, 2)[1]
    assert oracles.relative_error(run(learner, rewritten(case, tuple(REWRITINGS)), 2)[1], expected) < TOLERANCE


@pytest.mark.usefixtures("x64")
def test_another_function_is_seen():
    """The old value of `a` itself enters `b`: now both are one group, and the recurrence reads it as a constant."""

    def forward(op, h, held, x):
        new, out = models.memoryless_forward(op, h, held, x)
        return {**new, "b": new["b"] + 1e-9 * h["a"]}, out

    case = models.in_float64("memoryless")
    other = case._replace(model=models.Net(case.model.params, forward, case.model.calls))
    expected, got = (run(se.D_RTRL(), c, 2)[1] for c in (case, other))
    assert oracles.relative_error(got, expected) > VISIBLE
