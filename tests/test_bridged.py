"""Windows in reverse mode, bridged by the traces of a rule: exact where these are, and by the formula elsewhere."""

import warnings

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
TOLERANCE = 1e-10
ALPHA = 0.8
KINDS = [kind for kind in models.KINDS if kind not in ("memoryless", "no_recurrence")]


def run(learner, case, ends, chunk=None):
    """Gradients of calls that end there, each going on from the one before."""
    carry, found, begin = models.start(learner, case), [], 0
    # Numpy cuts and adds without a program for each shape.
    xs, ys = np.asarray(case.xs), np.asarray(case.ys)
    for end in ends:
        part = slice(begin, end)
        _, grads, carry = se.online_grad(learner, oracles.loss_fn, case.model, carry, xs[part], ys[part], chunk)
        found.append(jax.tree.leaves(grads))
        begin = end
    return found


def total(parts):
    return [np.sum(leaves, 0) for leaves in zip(*parts, strict=True)]


def bptt(case):
    return total(run(se.BPTT(), case, [len(case.xs)]))


@pytest.mark.parametrize("kind", few(KINDS, ["cut", "delay_buffer"]))
def test_one_window_of_all_steps_is_bptt(kind):
    """Also where a rule refuses or warns of what it cannot trace: plain arrays, what is in front of a cut."""
    case = models.build(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (grads,) = run(se.Bridged(len(case.xs)), case, [len(case.xs)])
    assert oracles.relative_error(grads, bptt(case)) < TOLERANCE


EXACT = [(kind, window) for kind in KINDS for window in (1, 2, 3)]


@pytest.mark.parametrize("kind, window", few(EXACT, [("rate", 1), ("alif_v", 2)]))
def test_exact_traces_bridge_exactly(kind, window):
    """In two calls, the first of which ends within a window."""
    case = models.build(kind)
    parts = run(se.Bridged(window, se.RTRL()), case, [3, len(case.xs)])
    assert oracles.relative_error(total(parts), bptt(case)) < TOLERANCE
    forgetful = run(se.BPTT(), case, [3, len(case.xs)], window)
    assert oracles.relative_error(total(forgetful), bptt(case)) > 1e-3


def test_all_influences_bridge_exactly():
    case = models.build("lif_vjp")
    parts = run(se.Bridged(2, se.SnAp(None)), case, [3, len(case.xs)])
    assert oracles.relative_error(total(parts), bptt(case)) < TOLERANCE


# --- what a rule refuses ---------------------------------------------------------------------------------------------


class Refused(eqx.Module):
    """Units mixed in one way or another, and beside them leaky ones that nothing mixes."""

    inp: se.ETraceParam
    side: se.ETraceParam
    mix: jax.Array
    how: str = eqx.field(static=True)

    def __call__(self, state, x):
        h, side = state
        op = se.ETraceParam({"weight": self.mix}, se.MatMulOp())
        match self.how:
            case "plain":
                new = jnp.tanh(0.5 * h + h @ self.mix + self.inp(x))
            case "attention":
                new = jnp.tanh(0.5 * h + jax.nn.softmax(h @ h.T) @ op(h) + self.inp(x))
            case "weights":
                op = se.ETraceParam({"weight": self.mix * jnp.tanh(h[0, :, None])}, se.MatMulOp())
                new = jnp.tanh(0.5 * h + op(h) + self.inp(x))
            case "loop":
                new = jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(0.5 * h + op(h)), h) + self.inp(x)
            case "clip":
                new = 0.5 * h + clipped(op(h) + self.inp(x))
            case "complex":
                new = 0.8j * h + h @ self.mix + self.inp(x)
        side = 0.9 * side + self.side(x)
        return (new, side), (new + side).real


@jax.custom_vjp
def clipped(v):
    return jnp.tanh(v)


clipped.defvjp(lambda v: (jnp.tanh(v), v), lambda v, g: (jnp.clip(g, -0.1, 0.1),))
PARTLY = ["plain", "attention", "clip"]


@pytest.mark.parametrize("rule", few([se.D_RTRL(), se.SnAp(2), se.RTRL()], [se.D_RTRL()]))
@pytest.mark.parametrize("how", few([*PARTLY, "weights", "loop", "complex"], ["plain", "clip"]))
def test_no_model_is_refused(how, rule):
    """A window's gradient is exact; from before it comes what the rule can trace, which it says."""
    rng = np.random.default_rng(0)
    inp, side = (se.ETraceParam({"weight": models.array(rng, 3, 4)}, se.MatMulOp()) for _ in range(2))
    model = Refused(inp, side, models.array(rng, 4, 4) / 2, how)
    xs, ys = models.array(rng, 7, 2, 3), models.array(rng, 7, 2, 4)
    state = jnp.zeros((2, 4), complex if how == "complex" else float), jnp.zeros((2, 4))

    case = models.build("rate")
    case = case._replace(model=model, twin=case.twin._replace(state=state), xs=xs, ys=ys)

    def gradient(learner, ends, chunk=None):
        return dict(zip(("inp", "side", "mix"), total(run(learner, case, ends, chunk)), strict=True))

    exact, cut = gradient(se.BPTT(), [7]), gradient(se.BPTT(), [3, 7], 2)
    takes_all = isinstance(rule, se.RTRL) and how != "clip"
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        bridged, whole = gradient(se.Bridged(2, rule), [3, 7]), gradient(se.Bridged(7, rule), [7])
    assert oracles.relative_error(whole, exact) < TOLERANCE
    traced = exact if takes_all else cut | ({"side": exact["side"]} if how in PARTLY and not is_all(rule) else {})
    assert oracles.relative_error(bridged, traced) < TOLERANCE < oracles.relative_error(cut, exact)
    assert takes_all or sum("What came before a window is left out" in str(w.message) for w in found) == 2
    rows = {row.name.partition(".")[0]: row.rule for row in se.explain(se.Bridged(2, rule), model, state, xs[0]).rows}
    assert takes_all or rows["mix"] == "truncated"


class Late(eqx.Module):
    """What leads to `out` only in the step after, by a plain array, and by an op."""

    tau: jax.Array
    inp: se.ETraceParam

    def __call__(self, h, x):
        return self.tau * h + self.inp(x), h


def test_what_has_no_trace_has_to_reach_the_output_within_a_window():
    rng = np.random.default_rng(0)
    model = Late(jnp.asarray(0.5), se.ETraceParam({"weight": models.array(rng, 3, 4)}, se.MatMulOp()))
    h, x = jnp.zeros(4), models.array(rng, 3)
    with pytest.raises(ValueError, match="'tau' would never get a gradient"):
        se.Bridged(1).init(model, h, x)
    se.Bridged(2).init(model, h, x)
    se.Bridged(1, allow_zero=("tau",)).init(model, h, x)
    se.Bridged(1, se.RTRL()).init(model, h, x)


def test_a_carry_of_another_rule_is_refused():
    """Also where neither of them keeps anything."""
    rng = np.random.default_rng(0)
    inp, side = (se.ETraceParam({"weight": models.array(rng, 3, 4)}, se.MatMulOp()) for _ in range(2))
    model, state = Refused(inp, side, models.array(rng, 4, 4), "weights"), (jnp.zeros((2, 4)), jnp.zeros((2, 4)))
    xs, ys = models.array(rng, 4, 2, 3), models.array(rng, 4, 2, 4)
    with pytest.warns(UserWarning, match="What came before a window is left out"):
        untraced = se.Bridged(2).init(model, state, xs[0])
    for learner, carry in (
        (se.Bridged(2, se.RTRL()), se.BPTT().init(model, state, xs[0])),
        (se.Bridged(2, se.SnAp(2)), untraced),
        (se.Bridged(2, se.RTRL()), untraced),
    ):
        with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
            se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys)


def is_all(rule):
    """Whether it traces all of a model or nothing."""
    return isinstance(rule, se.SnAp | se.RTRL)


# --- by the formula --------------------------------------------------------------------------------------------------


def trace(carry, factorised):
    """`eps` of the input weights, `(batch, inputs, units)`, and of the recurrent ones, `(batch, synapses)`."""
    inp, rec = (carry.traces[k] for k in (0, 1))
    if not factorised:
        return inp.full[0]["weight"][0], rec.full[0]["weight"][0]
    inp, rec = ((t.factors.x, t.factors.f[0][0] / (1 - ALPHA**t.factors.steps)) for t in (inp, rec))
    return jnp.einsum("bi,bj->bij", *inp), rec


FORMULA = [(rule, window) for rule in (se.D_RTRL(), se.ES_D_RTRL(decay=ALPHA)) for window in (1, 3)]


@pytest.mark.parametrize("rule, window", few(FORMULA, [FORMULA[0], FORMULA[3]]), ids=str)
def test_the_formula(rule, window):
    """`dL/dtheta` with the state at the start held, and `lam_0 . eps_0`; three mistakes are seen."""
    case, before = models.build("rate"), 3
    conn = case.model.params["rec"].op.connectivity
    part = slice(before, before + window)
    factorised = isinstance(rule, se.ES_D_RTRL)
    carry = rule.init(case.model, case.twin.state, case.xs[0])
    _, _, carry = se.online_grad(rule, oracles.loss_fn, case.model, carry, case.xs[:before], case.ys[:before])

    def losses(state, model=case.model):
        for x, y in zip(case.xs[part], case.ys[part], strict=True):
            state, out = model(state, x)
            yield oracles.loss_fn(out, y)

    def expected(lam, eps):
        inp, rec = eps
        if factorised:
            x, f = rec
            rec = (x[:, conn.pre] * f[:, conn.post]) if x.ndim == 2 else None
        now = jax.grad(lambda model: sum(losses(carry.state, model)), allow_int=True)(case.model)
        return [
            now.params["inp"].value["weight"] + jnp.einsum("bj,bij->ij", lam, inp),
            now.params["rec"].value["weight"] + jnp.einsum("bs,bs->s", lam[:, conn.post], rec),
        ]

    lam = jax.grad(lambda state: sum(losses(state)))(carry.state)["h"]
    learner = se.Bridged(window, rule)
    _, grads, after = se.online_grad(learner, oracles.loss_fn, case.model, carry, case.xs[part], case.ys[part])
    got = [grads.params[key].value["weight"] for key in ("inp", "rec")]
    assert oracles.relative_error(got, expected(lam, trace(carry, factorised))) < TOLERANCE
    first = jax.grad(lambda state: next(losses(state)))(carry.state)["h"]
    mistakes = [expected(0 * lam, trace(carry, factorised)), expected(lam, trace(after, factorised))]
    if window > 1:
        mistakes.append(expected(first, trace(carry, factorised)))
    assert all(oracles.relative_error(got, mistake) > 1e-3 for mistake in mistakes)


class Written(eqx.Module):
    """The same units with what they send computed where it is read, or kept in the state."""

    inp: se.ETraceParam
    rec: se.ETraceParam
    is_kept: bool = eqx.field(static=True)

    def __call__(self, state, x):
        sent = state["z"] if self.is_kept else jnp.tanh(state["v"])
        v = 0.9 * state["v"] + self.inp(x) + self.rec(sent)
        return {"v": v, "z": jnp.tanh(v)} if self.is_kept else {"v": v}, jnp.tanh(v)


WRITTEN = [se.D_RTRL(), se.ES_D_RTRL(decay=ALPHA), se.SnAp(1)]


@pytest.mark.parametrize("rule", few(WRITTEN, [WRITTEN[0], WRITTEN[2]]), ids=str)
def test_how_a_model_is_written_changes_nothing(rule):
    """State that only a recurrent op reads has a trace here."""
    case, found = models.build("rate"), []
    params = case.model.params["inp"], case.model.params["rec"]
    for is_kept in (False, True):
        model = Written(*params, is_kept)
        state = {name: jnp.zeros_like(case.twin.state["h"]) for name in ("v", "z")[: 1 + is_kept]}
        other = case._replace(
            model=model, twin=case.twin._replace(state=state), ys=case.xs @ jnp.ones((case.xs.shape[-1], 1))
        )
        found.append(total(run(se.Bridged(3, rule), other, [3, len(case.xs)])))
    assert oracles.relative_error(found[1], found[0]) < TOLERANCE


OPS = [se.MatMulOp(), se.SpMatMulOp(se.Connectivity.from_edges([0, 1, 2], [0, 2, 1], shape=(3, 3)))]


@pytest.mark.parametrize("op", few(OPS, OPS[1:]), ids=["dense", "sparse"])
def test_complex_weights(op):
    """On one layer of linear recurrent units the traces of D-RTRL are exact."""
    rng = np.random.default_rng(0)
    shape = (3, 3) if isinstance(op, se.MatMulOp) else (3,)
    weight = jnp.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    cell = se.cells.LRU(3, se.ETraceParam({"weight": weight}, op), se.cells.LRU.ring(jax.random.key(0), 3, 0.5, 0.9))
    xs, ys = jnp.asarray(rng.normal(size=(7, 2, 3))), jnp.zeros((7, 2, 6))

    def gradient(learner):
        carry = learner.init(cell, cell.init_state(2), xs[0])
        return jax.tree.leaves(se.online_grad(learner, lambda out, y: jnp.sum((out - 1) ** 2), cell, carry, xs, ys)[1])

    assert oracles.relative_error(gradient(se.Bridged(2)), gradient(se.BPTT())) < TOLERANCE


class Halving(eqx.Module):
    op: se.ETraceParam

    def __call__(self, h, x):
        y = self.op(x)
        return 0.5 * h + y, y


def test_half_precision_is_summed_in_single():
    """A sum of 256 in steps of 1 / 8 comes to a stop at 32 in bfloat16."""
    with jax.enable_x64(False):
        model = Halving(se.ETraceParam({"weight": jnp.zeros((1, 2), jnp.bfloat16)}, se.MatMulOp()))
        xs, ys = jnp.ones((2048, 1), jnp.bfloat16), jnp.zeros(2048)
        learner = se.Bridged(2048)
        carry = learner.init(model, jnp.zeros(2, jnp.bfloat16), xs[0])
        loss_fn = lambda out, y: jnp.sum(out.astype(jnp.float32)) / 8
        grads = se.online_grad(learner, loss_fn, model, carry, xs, ys)[1]
    assert np.allclose(np.asarray(grads.op.value["weight"], float), 256)


def test_it_is_shown_as_it_is_made():
    assert repr(se.Bridged(8, se.SnAp(3))) == "Bridged(window=8, rule=SnAp(n=3))"
    assert repr(se.Bridged(allow_zero=("gain",))) == "Bridged(window=16, rule=D_RTRL(), allow_zero=('gain',))"


def test_windows_are_those_that_were_asked_for():
    """Not made of one length, as the windows of other rules are; `chunk` takes their place."""
    case = models.build("rate")
    steps = len(case.xs)
    ends = [*range(3, steps, 3), steps]
    whole, parts = run(se.Bridged(3), case, [steps]), run(se.Bridged(16), case, ends)
    assert oracles.relative_error(total(whole), total(parts)) < TOLERANCE
    assert oracles.relative_error(total(run(se.Bridged(16), case, [steps], 3)), total(parts)) < TOLERANCE


@ONLY
def test_laws():
    """Those of D-RTRL's traces are in the table of conformance."""
    se.check_learner(se.Bridged(3, se.SnAp(2)), skip=("windows",))


def test_it_says_what_comes_from_before():
    case = models.build("gru_cell")
    given = case.model, case.twin.state, case.xs[0]
    alone = {row.name: row.rule for row in se.explain(se.D_RTRL(), *given).rows}
    found = se.explain(se.Bridged(8), *given)
    rules = {row.name: row.rule for row in found.rows}
    assert "Within a window of 8 steps (or `chunk`) all is exact" in str(found)
    changed = {name for name in rules if rules[name] != alone[name]}
    assert changed and all((alone[name], rules[name]) == ("same-step only", "truncated") for name in changed)


def test_it_is_planned_with_influences():
    """Their pattern needs the arrays of a model."""
    case = models.build("rate")
    plan = se.memory_plan(se.Bridged(4, se.SnAp(2)), case.model, case.twin.state, case.xs[0])
    assert plan.traces == se.memory_plan(se.SnAp(2), case.model, case.twin.state, case.xs[0]).traces > 0


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: se.Bridged(0), ValueError, "window: expected at least 1"),
        (lambda: se.Bridged(1.5), TypeError, "window: expected a whole number"),
        (lambda: se.Bridged(4, "D_RTRL"), TypeError, r"rule: expected a learner such as se.D_RTRL\(\), got 'D_RTRL'"),
        (lambda: se.Bridged(4, se.EProp(leaf="h")).rule(), NotImplementedError, "rule: expected one whose traces are"),
        (
            lambda: run(se.Bridged(4, se.OTTT(0.5)), models.build("rate"), [4]),
            NotImplementedError,
            "rule: expected one",
        ),
        (lambda: run(se.Bridged(4, se.TBPTT(3)), models.build("rate"), [4]), NotImplementedError, "rule: expected one"),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_memory_does_not_grow():
    """All but the inputs and losses themselves."""
    case = models.build("rate")
    plans = [se.memory_plan(se.Bridged(4), case.model, case.twin.state, case.xs[0], steps) for steps in (8, 800)]
    short, long = (plan.buffers["workspace"] for plan in plans)
    assert plans[0].traces == plans[1].traces > 0 and long == short


@ONLY
def test_it_points_where_bptt_does():
    """More than windows alone and the rule alone, on leaky units with 10 % of the synapses, over 240 steps."""
    rng = np.random.default_rng(0)
    mask = rng.random((60, 60)) < 0.1
    pre, post = np.nonzero(mask)
    graph = se.from_edges(pre, post, rng.normal(size=pre.size), (60, 60))
    graph = se.scale_spectral_radius(graph, 1.1)
    inp = se.ETraceParam({"weight": jnp.asarray(rng.normal(size=(4, 60)) / 2)}, se.MatMulOp())
    rec = se.ETraceParam({"weight": jnp.asarray(graph.weight, float)}, se.SpMatMulOp(graph))
    cell = se.cells.LeakyRate(60, inp, rec, decay=0.9)
    xs, ys = jnp.asarray(rng.normal(size=(240, 4))), jnp.asarray(0.3 * rng.normal(size=(240, 60)))
    loss_fn = lambda out, y: jnp.sum((out - y) ** 2)

    def gradient(learner, chunk=None):
        carry = learner.init(cell, cell.init_state(), xs[0])
        return se.online_grad(learner, loss_fn, cell, carry, xs, ys, chunk)[1].rec.value["weight"]

    exact = gradient(se.BPTT())
    cosine = lambda g: float(g @ exact / jnp.linalg.norm(g) / jnp.linalg.norm(exact))
    for window in (8, 32):
        bridged, alone = cosine(gradient(se.Bridged(window))), cosine(gradient(se.BPTT(), window))
        print(window, bridged, alone, cosine(gradient(se.D_RTRL())))
        assert bridged > alone and bridged > cosine(gradient(se.D_RTRL()))
