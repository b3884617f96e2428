"""What every learner owes whoever uses it, whatever its rule; the gradients themselves are tested rule by rule."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from soak import ONLY, few

import sparse_etrace as se

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE, VISIBLE = 1e-10, 1e-3
# No other axis is as long, so that batch axes are seen.
BATCH, STEPS = 6, 6
KINDS = {"rate": "['h']", "lif_cell": "['z']"}
KEY = jax.random.key(3)

# --- the rules -------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """make: the learner, from the name of the leaf that it teaches. cannot: what its nature forbids, and why."""

    make: Callable[[str], se.Learner]
    cannot: dict[str, str] = {}


TOGETHER = "one number or estimate stands for all batch elements together"
FEEDBACK = "its feedback stands in for the derivative that would pass through the leaf"
LEARNERS = {
    "D_RTRL": Rule(lambda leaf: se.D_RTRL()),
    "ES_D_RTRL": Rule(lambda leaf: se.ES_D_RTRL(decay=0.8)),
    "Hybrid": Rule(lambda leaf: se.Hybrid(decay=0.8)),
    "OSTL": Rule(lambda leaf: se.OSTL()),
    "OTTT": Rule(lambda leaf: se.OTTT(decay=0.7)),
    "EProp symmetric": Rule(lambda leaf: se.EProp(leaf, kappa=0.6)),
    "EProp random": Rule(
        lambda leaf: se.EProp(leaf, feedback="random", key=KEY, kappa=0.6, rate_strength=0.3, rate_target=0.1),
        {"elements": "the regulariser of the rate acts whatever the loss", "input": FEEDBACK},
    ),
    "EProp factors": Rule(lambda leaf: se.EProp(leaf, "random", KEY, kappa=0.6, factor_decay=0.8), {"input": FEEDBACK}),
    "RFLO": Rule(lambda leaf: se.RFLO(leaf, key=KEY), {"input": FEEDBACK}),
    "RFLO factors": Rule(lambda leaf: se.RFLO(leaf, key=KEY, factor_decay=0.8), {"input": FEEDBACK}),
    "ThreeFactor": Rule(
        lambda leaf: se.ThreeFactor(leaf, kappa=0.6),
        {"step": "it needs the value of the loss", "vmap": TOGETHER, "elements": TOGETHER},
    ),
    "ThreeFactor factors": Rule(
        lambda leaf: se.ThreeFactor(leaf, kappa=0.6, factor_decay=0.8),
        {"step": "it needs the value of the loss", "vmap": TOGETHER, "elements": TOGETHER},
    ),
    "TBPTT": Rule(lambda leaf: se.TBPTT(steps=3)),
    "TBPTT passes": Rule(lambda leaf: se.TBPTT(3, every=2), {"windows": "a pass goes through all of a window"}),
    "SnAp": Rule(lambda leaf: se.SnAp(n=2)),
    "SnAp by parameter": Rule(lambda leaf: se.SnAp(n=2, per="parameter")),
    "Bridged": Rule(lambda leaf: se.Bridged(3), {"windows": "it is exact within a window, and a rule between them"}),
    "SnAp random": Rule(
        lambda leaf: se.SnAp(n=3, pattern="random", paths=1, key=KEY), {"dense": "its ways are others"}
    ),
    "RTRL": Rule(lambda leaf: se.RTRL()),
    "UORO": Rule(lambda leaf: se.UORO(key=KEY), {"vmap": TOGETHER, "elements": TOGETHER}),
    "BPTT": Rule(
        lambda leaf: se.BPTT(),
        {
            "windows": "it differentiates through a window and is cut between them",
            "traces": "it has none",
            "carry": "a loss over a scan of `step` is to be differentiated through the carry",
        },
    ),
}
# Two halves of the rules, with each engine and kind of signal in both: each test but that of laws leaves one of them to
# `make soak`. A rule in neither half is in all tests.
HALF = ("D_RTRL", "OTTT", "EProp symmetric", "EProp factors", "TBPTT", "SnAp", "RTRL", "BPTT")
OTHER = ("ES_D_RTRL", "Hybrid", "OSTL", "EProp random", "RFLO", "RFLO factors", "ThreeFactor", "ThreeFactor factors")
OTHER += ("TBPTT passes", "SnAp by parameter", "SnAp random", "Bridged", "UORO")
# Which differ from one of the others in one of two ways only.
MIXED = ("EProp random", "RFLO factors", "ThreeFactor", "TBPTT passes")
kinds = pytest.mark.parametrize("kind", few([*KINDS], ["lif_cell"]))


def able(what, seldom):
    """The rules that can, the seldom ones with `make soak`, and the others skipped with their reason."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(
                name,
                marks=[pytest.mark.skip(rule.cannot.get(what, ""))] * (what in rule.cannot) + [ONLY] * (name in seldom),
            )
            for name, rule in LEARNERS.items()
        ],
    )


# --- one stream ------------------------------------------------------------------------------------------------------


class Counter:
    count = 0


class Counted(eqx.Module):
    """A model that counts how often jax looks at it."""

    model: Any
    seen: Counter = eqx.field(static=True)

    def __call__(self, state, x):
        self.seen.count += 1
        return self.model(state, x)


def each_loss(out, y):
    """The loss of each batch element."""
    return jnp.sum(0.5 * (out - y) ** 2 + 0.1 * jnp.sin(out), axis=-1)


def loss_fn(out, target):
    """Each batch element counts as much as its weight says."""
    y, weight = target
    return jnp.sum(weight * each_loss(out, y))


class Stream(NamedTuple):
    """A learner on a model, and the pieces of a stream."""

    learner: se.Learner
    model: Any
    state: Any
    xs: Any
    ys: Any
    fresh: Any = None

    def start(self):
        """With a fresh carry."""
        return self._replace(fresh=self.learner.init(self.model, self.state, self.xs[0]))

    def run(self, carry, steps=slice(None), chunk=1, weight=1.0):
        """Losses, gradients as a list of leaves, and carry."""
        xs, ys = self.xs[steps], self.ys[steps]
        target = (ys, jnp.broadcast_to(jnp.asarray(weight, ys.dtype), ys.shape[:-1]))
        losses, grads, carry = se.online_grad(self.learner, loss_fn, self.model, carry, xs, target, chunk)
        return losses, jax.tree.leaves(grads), carry

    def steps(self, carry, first=0, last=STEPS, weight=1.0):
        """Step by step, in a call for each: losses, gradients `(steps, ...)`, and the carry after each step."""
        losses, grads, carries = [], [], []
        for t in range(first, last):
            loss, grad, carry = self.run(carry, slice(t, t + 1), weight=weight)
            losses.append(np.asarray(loss)[0])
            grads.append(grad)
            carries.append(carry)
        return np.stack(losses), [np.stack(g) for g in zip(*grads, strict=True)], carries


def build(name, kind, batch=(BATCH,)):
    case = models.build(kind, batch=batch)
    learner = LEARNERS[name].make(KINDS[kind])
    return Stream(learner, Counted(case.model, Counter()), case.twin.state, case.xs[:STEPS], case.ys[:STEPS]).start()


@functools.cache
def reference(name, kind):
    """A stream, and its losses, gradients and carries step by step."""
    stream = build(name, kind)
    return stream, *stream.steps(stream.fresh)


@functools.cache
def plain(kind):
    """Losses and last state of the model by itself."""
    stream = build("D_RTRL", kind)
    state, out = jax.lax.scan(lambda state, x: stream.model(state, x), stream.state, stream.xs)
    return jax.vmap(loss_fn)(out, (stream.ys, jnp.ones(STEPS))), state


def total(grads):
    return [g.sum(0) for g in grads]


def numbers(tree):
    """Arrays of a pytree, keys as numbers."""
    return [np.asarray(jax.random.key_data(a) if _is_key(a) else a) for a in jax.tree.leaves(tree)]


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def close(got, expected):
    return oracles.relative_error(numbers(got), numbers(expected)) < TOLERANCE


def far(got, expected):
    return max(map(oracles.relative_error, numbers(got), numbers(expected))) > VISIBLE


# --- interface -------------------------------------------------------------------------------------------------------


SKIPPED = {"step": ("step",), "windows": ("windows",), "vmap": ("batch", "vmap"), "elements": ("reset",)}


LAWS = [(name, kind) for name in LEARNERS for kind in KINDS]
FEW = {*LEARNERS} - {*HALF, *OTHER} | {"D_RTRL", "ThreeFactor factors", "SnAp", "Bridged", "UORO"}


@pytest.mark.parametrize("name, kind", few(LAWS, [(name, "lif_cell") for name in sorted(FEW)]))
def test_laws(name, kind):
    """What `check_learner` asks, on a sparse recurrent network with two hidden variables for each unit."""
    stream = build(name, kind)
    cannot = LEARNERS[name].cannot
    skip = tuple(law for word in SKIPPED if word in cannot for law in SKIPPED[word])
    skip += ("step",) if "carry" in cannot else ()
    given = stream.learner, each_loss, stream.model.model, stream.state, stream.xs, stream.ys
    se.check_learner(*given, skip=tuple(dict.fromkeys(skip)))


def _types(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


@able("step", OTHER)
def test_gradient_of_step(name):
    """By the model it is that of a window of one step, by the carry zero, by the input that of the same step."""
    stream, _, expected, carries = reference(name, "lif_cell")

    @eqx.filter_jit
    @eqx.filter_grad
    def by(given, y):
        model, carry, x = given
        return loss_fn(stream.learner.step(model, carry, x)[1], (y, 1.0))

    model, carry, x = by((stream.model, carries[2], stream.xs[3]), stream.ys[3])
    got = jax.tree.leaves(eqx.filter(model, se.trainable(stream.model)))
    assert close(got, [g[3] for g in expected])
    if "carry" not in LEARNERS[name].cannot:
        assert not any(np.any(g) for g in jax.tree.leaves(carry))
    by_x = jax.grad(lambda x: loss_fn(stream.model(carries[2].state, x)[1], (stream.ys[3], 1.0)))(stream.xs[3])
    assert far(x, by_x) if "input" in LEARNERS[name].cannot else close(x, by_x)


@pytest.mark.parametrize("name", few([*LEARNERS], ["D_RTRL", "SnAp", "TBPTT", "BPTT"]))
@kinds
def test_results_have_no_derivative(name, kind):
    """No result has one by any argument, and none is taken for zero; BPTT has all of them."""
    stream, losses, _, _ = reference(name, kind)
    arrays, rest = eqx.partition((stream.model, stream.fresh, stream.xs[:1], stream.ys[:1]), eqx.is_inexact_array)

    def with_out(out, target):
        return loss_fn(out, target), out

    def results(given):
        model, carry, xs, ys = eqx.combine(given, rest)
        target = ys, jnp.ones(ys.shape[:-1], ys.dtype)
        return se.online_grad(stream.learner, with_out, model, carry, xs, target, 1, True)

    def size(tree):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf))

    for place in range(4):
        for argument in range(4):

            def read(part, place=place, argument=argument):
                return size(results((*arrays[:argument], part, *arrays[argument + 1 :]))[place])

            if name == "BPTT":
                jax.eval_shape(jax.grad(read), arrays[argument])
            else:
                with pytest.raises(TypeError, match="summed losses is its second result, `grads`: add to it"):
                    jax.eval_shape(jax.grad(read), arrays[argument])

    if name != "BPTT":
        with pytest.raises(TypeError, match="summed losses is its second result, `grads`: add to it"):
            jax.jvp(lambda given: results(given)[0], (arrays,), (arrays,))

    def beside(given):
        found = results(given)
        return size(given[0]) + jax.lax.stop_gradient(jnp.sum(found[0])), found

    (_, found), by = jax.value_and_grad(beside, has_aux=True)(arrays)
    assert close(found[0], losses[:1]) and close(by[0], jax.tree.map(lambda leaf: 2 * leaf, arrays[0]))


@able("", HALF + MIXED)
def test_dtype_is_kept(name):
    """A float32 model stays one, also where float64 is on."""
    with jax.enable_x64(False):
        stream = build(name, "rate")
    losses, grads, carry = eqx.filter_eval_shape(stream.run, stream.fresh, slice(0, 1))
    assert {leaf.dtype for leaf in (losses, *grads)} == {jnp.dtype("float32")}
    assert _types(carry) == _types(stream.fresh)


# --- batch axes --------------------------------------------------------------------------------------


@able("dense", HALF + MIXED)
def test_batch_axes_and_dense_weights(name):
    """Two batch axes are one, folded; a dense matrix gives the same on the synapses that exist, and zero elsewhere."""
    stream, losses, expected, carries = reference(name, "rate")
    rec = stream.model.model.params["rec"]
    synapses = (np.asarray(rec.op.connectivity.pre), np.asarray(rec.op.connectivity.post))
    empty = jnp.zeros(rec.op.connectivity.shape)
    mask, full = empty.at[synapses].set(1), empty.at[synapses].set(rec.value["weight"])
    dense = se.ETraceParam({"weight": full}, se.MatMulOp(weight_mask=mask))
    fold = lambda a: a.reshape(*a.shape[: a.ndim - 2], 2, 3, a.shape[-1])
    twin = Stream(
        stream.learner,
        eqx.tree_at(lambda m: m.model.params["rec"], stream.model, dense),
        *jax.tree.map(fold, (stream.state, stream.xs, stream.ys)),
    ).start()
    found, (*others, weight), after = twin.steps(twin.fresh, 0, 3)
    assert close(found, losses[:3]) and close(after[-1].state, jax.tree.map(fold, carries[2].state))
    assert close([*others, weight[:, synapses[0], synapses[1]]], [g[:3] for g in expected])
    assert not np.any(weight[:, np.asarray(mask) == 0])


# --- reset -----------------------------------------------------------------------------------------------------------

SOME = jnp.array([True, False, False, True, True, False])


@pytest.mark.parametrize("name", [name for name, rule in LEARNERS.items() if "elements" in rule.cannot])
@kinds
def test_reset_of_what_elements_share(name, kind):
    """State and traces start again, element by element, where the gradient cannot be told apart."""
    stream, _, _, carries = reference(name, kind)
    some = stream.learner.reset(carries[2], SOME, stream.state)
    assert _types(some) == _types(stream.fresh)
    for now, new, old in zip(*map(numbers, (some, stream.fresh, carries[2])), strict=True):
        assert np.array_equal(now, _choose(new, old))


def _choose(new, old):
    """`new` for SOME along the batch axis; leaves without one start again only when all elements do."""
    axes = [axis for axis, size in enumerate(old.shape) if size == BATCH]
    if not axes:
        return old
    (axis,) = axes
    return jnp.where(SOME.reshape([-1 if k == axis else 1 for k in range(old.ndim)]), new, old)


# --- negative controls -----------------------------------------------------------------------------------------------


@able("traces", OTHER)
@kinds
def test_mistakes_are_seen(name, kind):
    """Traces dropped between calls, and a learning signal that meets the traces of the step before."""
    stream, _, expected, carries = reference(name, kind)
    for t, traces in ((3, stream.fresh), (3, carries[1])):
        mistaken = se.Carry(carries[t - 1].state, traces.traces, traces.memory)
        _, grads, _ = stream.run(mistaken, slice(t, t + 1))
        assert far(grads, [g[t] for g in expected])
