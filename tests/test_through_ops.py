"""Traces that are carried through ops of fixed weights, against BPTT that holds what recurrent ops read."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from soak import ONLY, few

import sparse_etrace as se

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE = 1e-10
NODES, FEATURES, INPUTS, BATCH, STEPS = 5, 3, 2, 2, 7


class Net(eqx.Module):
    """`forward(op, h, held, x)`, where `held` is what recurrent ops read."""

    ops: dict
    forward: object = eqx.field(static=True)

    def __call__(self, h, x, held=None):
        return self.forward(self.ops, h, h if held is None else held, x)


class Case:
    """A net whose ops are `dense` or `sparse`, by the numbers of units before and behind; `fixed` or trained."""

    def __init__(self, forward, variables=1, nodes=NODES, **kinds):
        rng = np.random.default_rng(0)
        array = lambda *shape: jnp.asarray(rng.normal(size=shape))

        def make(kind, pre, post, is_fixed):
            value = {"weight": array(pre, post)}
            if kind == "sparse":
                graph = se.from_dense(value["weight"] * (rng.random((pre, post)) < 0.6), dtype=float)
                value = {"weight": jnp.asarray(graph.weight)}
            value["bias"] = array(post)
            op = se.MatMulOp() if kind == "dense" else se.SpMatMulOp(graph, axis=-2)
            return se.ETraceParam({key: se.Fixed(w) if is_fixed else w for key, w in value.items()}, op)

        self.net = Net({name: make(*spec) for name, spec in (OUT | kinds).items()}, forward)
        self.state = tuple(jnp.zeros((BATCH, nodes, FEATURES)) for _ in range(variables))
        self.xs, self.ys = array(STEPS, BATCH, NODES, INPUTS), array(STEPS, BATCH, nodes, 2)

    def by_step(self, is_held=True):
        """Gradients of the loss of each step."""

        def losses(trained):
            def one(h, now):
                new, out = eqx.combine(trained, rest)(h, now[0], jax.lax.stop_gradient(h) if is_held else None)
                return new, oracles.loss_fn(out, now[1])

            return jax.lax.scan(one, self.state, (self.xs, self.ys))[1]

        trained, rest = eqx.partition(self.net, se.trainable(self.net))
        return jax.tree.leaves(jax.jit(jax.jacrev(losses))(trained))

    def run(self, learner, ends, chunk=None):
        """Gradients of calls that end there."""
        carry, begin, found = learner.init(self.net, self.state, self.xs[0]), 0, []
        for end in ends:
            part = self.xs[begin:end], self.ys[begin:end]
            _, grads, carry = se.online_grad(learner, oracles.loss_fn, self.net, carry, *part, chunk=chunk)
            found.append(jax.tree.leaves(grads))
            begin = end
        return found


def leaky(op, h, u):
    new = 0.8 * h[0] + 0.2 * jnp.tanh(u)
    return (new,), op["out"](new)


def plain(op, h, held, x):
    return leaky(op, h, op["spread"](op["rec"](held[0]) + op["inp"](x)))


def hops(op, h, held, x):
    """Two hops that share a matrix, with a factor for each node that depends on the input, and no hop."""
    y = op["rec"](held[0]) + op["inp"](x)
    once = op["spread"](jax.nn.sigmoid(x[..., :1]) * y)
    return leaky(op, h, 0.3 * y + 0.5 * once + op["spread"](2 * once - 0.5 * y))


def turned(op, h, held, x):
    """The sparse op learns, features mix behind it."""
    return leaky(op, h, op["mix"](op["learns"](held[0])) + op["inp"](x))


def adaptive(op, h, held, x):
    """Two hidden variables, and a gate."""
    v, b = h
    y = op["spread"](op["wide"](x) + op["wide_rec"](held[0]))
    z = jax.nn.sigmoid(y[..., :FEATURES])
    v = (1 - z) * v + z * jnp.tanh(y[..., FEATURES:] - b)
    return (v, 0.9 * b + 0.2 * v), op["out"](v)


def pooled(op, h, held, x):
    """More nodes in front than units."""
    return leaky(op, h, op["spread"](op["inp"](x)) + op["rec"](held[0]))


OUT = {"out": ("dense", FEATURES, 2, False)}
INP, REC = ({name: ("dense", pre, FEATURES, False)} for name, pre in (("inp", INPUTS), ("rec", FEATURES)))
SPREAD = {"spread": ("sparse", NODES, NODES, True)}
WIDE = {"wide": ("dense", INPUTS, 2 * FEATURES, False), "wide_rec": ("dense", FEATURES, 2 * FEATURES, False)}
MIX = {"learns": ("sparse", NODES, NODES, False), "mix": ("dense", FEATURES, FEATURES, True)}
CASES = {
    "plain": lambda: Case(plain, **INP, **REC, **SPREAD),
    "hops": lambda: Case(hops, **INP, **REC, **SPREAD),
    "turned": lambda: Case(turned, **INP, **MIX),
    "adaptive": lambda: Case(adaptive, 2, **WIDE, **SPREAD),
    "pooled": lambda: Case(pooled, nodes=3, **INP, **REC, spread=("sparse", NODES, 3, True)),
}


@pytest.mark.parametrize("name", few(CASES, ["hops", "turned"]))
def test_step_by_step_and_in_windows(name):
    """A call for each of three steps, and one with two windows for the others."""
    case = CASES[name]()
    expected = case.by_step()
    *steps, rest = case.run(se.D_RTRL(through_ops=True), [1, 2, 3, STEPS], 2)
    assert oracles.relative_error_by_step([jnp.stack(s) for s in zip(*steps)], [e[:3] for e in expected]) < TOLERANCE
    assert oracles.relative_error(rest, [e[3:].sum(0) for e in expected]) < TOLERANCE


@pytest.mark.parametrize("window", few([1, 2, 3], [2]))
def test_bridged(window):
    """Without recurrence the trace is exact, and so are windows that it bridges."""
    case = Case(lambda op, h, held, x: leaky(op, h, op["spread"](op["inp"](x))), **INP, **SPREAD)
    expected = [e.sum(0) for e in case.by_step()]
    before, after = case.run(se.Bridged(window, se.D_RTRL(through_ops=True)), [3, STEPS])
    assert oracles.relative_error([a + b for a, b in zip(before, after, strict=True)], expected) < TOLERANCE


@ONLY
@pytest.mark.parametrize("name", ["hops", "turned"])
def test_laws(name):
    """What every learner owes, where a trace is carried: batch axes, reset, windows, `step`."""
    case = CASES[name]()

    def each_loss(out, y):
        return jnp.sum((out - y) ** 2, axis=(-1, -2))

    se.check_learner(se.D_RTRL(through_ops=True), each_loss, case.net, case.state, case.xs, case.ys)


def rules(case, learner):
    return {row.name: row.rule for row in se.explain(learner, case.net, case.state, case.xs[0]).rows}


def test_it_is_explained_and_planned():
    case, learner = CASES["plain"](), se.D_RTRL(through_ops=True)
    weight = "ops['rec'].value['weight']"
    assert rules(case, learner)[weight] == "diagonal"
    with pytest.warns(UserWarning, match=r"\(spread, then multiply\), take se.D_RTRL\(through_ops=True\), or use"):
        assert rules(case, se.D_RTRL())[weight] == "same-step only"
    units = BATCH * NODES * FEATURES
    plan = se.memory_plan(learner, case.net, case.state, case.xs[0])
    assert plan.traces == 8 * units * (INPUTS + FEATURES + 2)


def twice(op, h, held, x):
    """The same axes."""
    return leaky(op, h, op["spread"](op["learns"](op["inp"](x))))


def bent(op, h, held, x):
    """Something that is no factor lies between."""
    return leaky(op, h, op["spread"](jnp.tanh(op["inp"](x))))


def each_its_own(op, h, held, x):
    """A factor, of another size for each feature."""
    return leaky(op, h, op["spread"](op["inp"](x) * jnp.arange(FEATURES)))


REFUSED = {
    twice: (SPREAD | {"learns": MIX["learns"]}, "acts on the same axes of it. Call the op that learns after it"),
    bent: (SPREAD, "reads its output neither as it is nor by one factor"),
    each_its_own: (SPREAD, "reads its output neither as it is nor by one factor"),
}


@pytest.mark.parametrize("forward", REFUSED)
def test_what_cannot_be_carried(forward):
    """It is refused in words; bridged windows leave it out."""
    ops, words = REFUSED[forward]
    case, learner = Case(forward, **INP, **ops), se.D_RTRL(through_ops=True)
    with pytest.raises(NotImplementedError, match=f"through_ops: a trace of the op called at .* cannot be .*{words}"):
        case.run(learner, [STEPS])
    assert set(rules(case, se.Bridged(4, learner)).values()) == {"exact", "truncated"}
