"""Random models of every kind: the library's gradients beside explicit Jacobians in NumPy."""

import collections
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import random_check as rc
import random_models as rm
import random_oracle as ro
from soak import few

import sparse_etrace as se
from sparse_etrace._model.step import ByGroup

pytestmark = pytest.mark.usefixtures("x64")
VISIBLE = 1e-4
BLOCK, BLOCKS = 100, 20
# Small models that have every kind at least twice.
SMALL = [
    140, 240, 95, 371, 182, 386, 199, 451, 349, 364, 20, 460, 183, 486, 71, 269, 436, 400, 96, 483, 45, 192, 220, 314,
    78, 441, 76, 180, 169, 372, 133, 410, 230, 415, 303, 291, 265, 23, 69, 239, 107, 320, 450, 366, 259, 219, 117, 137,
    412, 406, 355, 309, 129, 17, 347, 388, 439, 272, 84, 305,
]  # fmt: skip
# Some of them for each rule, which have every kind once.
RULES = {
    "D_RTRL": [140, 371, 386, 364, 183], "ES_D_RTRL": [269, 400, 192, 441], "RTRL": [372, 415, 265, 450],
    "SnAp": [259, 117, 412, 366, 17],
}  # fmt: skip


case = functools.lru_cache(60)(rc.case)


def judge(name, seeds):
    """How many of the models the rule takes; none may be wrong, and what it refuses it refuses for a known reason."""
    count = collections.Counter()
    for seed in seeds:
        verdict = rc.compare(case(seed), name)
        assert verdict.error < rc.TOLERANCE, (seed, verdict)
        why = "taken" if verdict.refused is None else rc.reason(verdict.refused, name)
        assert why is not None, (seed, verdict)
        count[why] += 1
    return count


@pytest.mark.parametrize("block, name", few([(k, n) for k in range(BLOCKS) for n in RULES], [(0, n) for n in RULES]))
def test_gradients(block, name, amount):
    """Some models, each under one rule; in full, two thousand under every rule."""
    count = judge(name, amount(RULES[name], range(block * BLOCK, (block + 1) * BLOCK)))
    print(name, block, dict(count))
    assert count["taken"] >= (0.4 if name == "SnAp" else 0.85) * count.total()


@pytest.mark.parametrize("n", few([1, 2, 3], [2]))
def test_masked_influences(n, amount):
    """SnAp with a few steps, beside masked dense RTRL."""
    count = judge(f"SnAp({n})", amount(SMALL[:3], range(300)))
    assert count["taken"] >= 0.4 * count.total()


class Substeps(eqx.Module):
    """Spikes with a `custom_vjp` inside a loop of the step."""

    op: se.ETraceParam

    def __call__(self, h, x):
        current = self.op(x)
        body = lambda v, _: (0.7 * v + 0.3 * models.spike_vjp(current - 0.5 * v), None)
        new = jax.lax.scan(body, h, length=2)[0]
        return new, new


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.SnAp()], ids=str)
def test_an_equation_without_outputs(learner):
    """What the backward pass of the loop leaves of the forward one."""
    model = Substeps(se.ETraceParam({"weight": jnp.ones((2, 3))}, se.MatMulOp()))
    learner.init(model, jnp.zeros(3), jnp.zeros(2))


# --- the oracle ------------------------------------------------------------------------------------------------------


def all_traits(seeds):
    return collections.Counter(t for seed in seeds for t in rm.draw(seed).traits)


def test_every_kind_is_drawn():
    once, short, long = all_traits(itertools.chain(*RULES.values())), all_traits(SMALL), all_traits(range(400))
    kinds = (
        "dense sparse axis_2 over_features across conv lora scaled gain elem plain tie shared frozen nontemp out_alone "
        "op_into_op linked plain_inside cut_norm cut_mix concat shift substeps cond stop jit checkpoint vmap leaky "
        "gated lif lstm turn filter free alif"
    )
    kinds = {*kinds.split(), *rm.CUSTOM}
    assert min(once[k] for k in kinds) >= 1
    assert min(short[k] for k in kinds) >= 2
    assert min(long[k] for k in kinds) >= 4


def test_the_oracle_is_backpropagation():
    """RTRL by Jacobians in NumPy, beside JAX's derivative of the drawing by itself, through all steps."""
    for seed in SMALL[:2]:
        c = case(seed)
        model, spec = rm.net(c.drawing), rm.start(c.drawing)

        def total(params, c=c, state=spec, model=model):
            model, losses = rm.with_values(model, c.drawing, params), 0.0
            for x, target in zip(c.xs, c.targets, strict=True):
                state, out = model(state, jnp.asarray(x))
                losses = losses + rm.loss(out, tuple(target))
            return losses

        grads = jax.jit(jax.grad(total))({n: p.value for n, p in c.drawing.params.items()})
        got = np.concatenate([np.asarray(grads[n][k]).ravel() for n, k in c.layout.theta])
        off, where = rc.deviation(c, got[None], rc.expected(c, "RTRL")[1].sum(0)[None])
        assert off < rc.TOLERANCE, (seed, where)


def test_influences_are_rtrl():
    """All steps of the pattern are RTRL through ops, two ways to compute it."""
    for seed in SMALL[:20]:
        c = case(seed)
        masked = ro.snap(c.layout, c.found, c.generic[0], c.steps, c.targets, None)[1]
        assert rc.deviation(c, masked, rc.expected(c, "SnAp")[1])[0] < rc.TOLERANCE, seed


# --- mistakes --------------------------------------------------------------------------------------------------------

WRONG = {"no trace": 15, "diagonal": 4, "late signal": 15, "no factors": 15, "one step": 10}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rules_are_seen(wrong):
    """In how many of 20 models the gradients of a mistaken rule are told from those of the right one."""
    found = 0
    for seed in SMALL[:20]:
        c = case(seed)
        args, name = (c.layout, c.found, c.steps, c.targets), "D_RTRL"
        if wrong == "no factors":
            mistaken = rc.expected(c, "ES_D_RTRL")
        elif wrong == "one step":
            name, mistaken = "SnAp", ro.snap(*args[:2], c.generic[0], *args[2:], 1)
        else:
            mistaken = ro.d_rtrl(*args, wrong=wrong)
        found += rc.deviation(c, rc.by_call(mistaken[1]), rc.by_call(rc.expected(c, name)[1]))[0] > VISIBLE
    assert found >= WRONG[wrong]


def test_a_mistake_in_the_library_is_seen(monkeypatch):
    """D without what the variables of a unit say to each other, on a model whose gradient needs that."""
    right = ByGroup._jacobian

    def wrong(self, group, known):
        d, f = right(self, group, known)
        return d * jnp.eye(len(d)).reshape(len(d), len(d), *[1] * (d.ndim - 2)), f

    def needs(seed):
        c = case(seed)
        mistaken = ro.d_rtrl(c.layout, c.found, c.steps, c.targets, wrong="diagonal")[1]
        return rc.deviation(c, mistaken, rc.expected(c, "D_RTRL")[1])[0] > VISIBLE

    seed = next(filter(needs, SMALL))
    assert rc.compare(rc.case(seed), "D_RTRL").error < rc.TOLERANCE
    monkeypatch.setattr(ByGroup, "_jacobian", wrong)
    assert rc.compare(rc.case(seed), "D_RTRL").error > VISIBLE
