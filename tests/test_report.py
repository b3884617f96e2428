"""`explain` and `memory_plan` on models whose answer is known."""

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

N = 5


def dense(pre, post, bias=True, **rest):
    value = {"weight": jnp.ones((pre, post))} | ({"bias": jnp.zeros(post)} if bias else {})
    return se.ETraceParam(value, se.MatMulOp(), **rest)


def ring(count):
    conn = se.Connectivity.from_edges(np.arange(count), np.roll(np.arange(count), 1), shape=(count, count))
    return se.ETraceParam({"weight": jnp.ones(count)}, se.SpMatMulOp(conn))


class Net(eqx.Module):
    """A cell and a readout."""

    cell: eqx.Module
    out: se.ETraceParam

    def init_state(self, *batch):
        return self.cell.init_state(*batch)

    def __call__(self, state, x):
        state, h = self.cell(state, x)
        return state, self.out(h)


def leaky(recurrent=True, out=None, count=N):
    rec = ring(count) if recurrent else None
    return Net(se.cells.LeakyRate(count, dense(3, count), rec, decay=0.5), dense(count, 2) if out is None else out)


def rows(learner, model, batch=()):
    report = se.explain(learner, model, model.init_state(*batch), jnp.ones((*batch, 3)))
    return {row.name: row for row in report.rows}


def rules(learner, model):
    return {name: row.rule for name, row in rows(learner, shapes(model)).items()}


def shapes(model):
    """What needs no numbers is faster without."""
    return eqx.filter_eval_shape(lambda: model)


# --- rules -----------------------------------------------------------------------------------------------------------

READOUT = {"out.value['bias']": "exact", "out.value['weight']": "exact"}


def test_a_layer_without_recurrence():
    exact = {"cell.inp.value['bias']": "exact", "cell.inp.value['weight']": "exact", **READOUT}
    assert rules(se.D_RTRL(), leaky(recurrent=False)) == exact
    factorised = exact | {"cell.inp.value['weight']": "factorised"}
    assert rules(se.ES_D_RTRL(), leaky(recurrent=False)) == factorised


def test_a_recurrent_layer():
    diagonal = dict.fromkeys(
        ("cell.inp.value['bias']", "cell.inp.value['weight']", "cell.rec.value['weight']"), "diagonal"
    )
    assert rules(se.D_RTRL(), leaky()) == diagonal | READOUT
    factorised = dict.fromkeys(("cell.inp.value['weight']", "cell.rec.value['weight']"), "factorised")
    assert rules(se.ES_D_RTRL(), leaky()) == diagonal | factorised | READOUT


def test_hybrid_as_each_parameter_says():
    def model(grad):
        inp = dense(3, N, grad=grad)
        return Net(se.cells.LeakyRate(N, inp, None, decay=0.5), dense(N, 2))

    for grad, rule in [(se.ETraceGrad.full, "exact"), (se.ETraceGrad.approx, "factorised")]:
        found = rules(se.Hybrid(), model(grad))
        assert found["cell.inp.value['weight']"] == rule and found["cell.inp.value['bias']"] == "exact"


def test_the_reset_gate_of_a_gru():
    inp, rec = [dense(3, N) for _ in range(3)], [ring(N) for _ in range(3)]
    found = rules(se.D_RTRL(), Net(se.cells.GRU(N, *inp, *rec), dense(N, 2)))
    assert {name for name, rule in found.items() if rule == "same-step only"} == {
        "cell.inp_r.value['bias']", "cell.inp_r.value['weight']", "cell.rec_r.value['weight']"
    }  # fmt: skip
    assert found["cell.inp_u.value['weight']"] == found["cell.rec_c.value['weight']"] == "diagonal"


class Plain(eqx.Module):
    """Plain arrays: a readout, and a gain of the input to hidden state."""

    cell: se.cells.LeakyRate
    gain: jax.Array
    out: jax.Array

    def init_state(self, *batch):
        return self.cell.init_state(*batch)

    def __call__(self, h, x):
        h, _ = self.cell(h, self.gain * x)
        return h, h @ self.out


def test_plain_arrays():
    model = Plain(leaky().cell, jnp.ones(3), jnp.ones((N, 2)))
    with pytest.warns(UserWarning, match="'gain' acts on the hidden state"):
        found = rows(se.D_RTRL(), model)
    assert (found["gain"].rule, found["out"].rule) == ("same-step only", "exact")
    assert found["out"].op_calls == () and found["out"].trace_bytes == 0
    assert (found["gain"].reached, found["out"].reached) == (3, 2 * N)
    assert set(rules(se.BPTT(), model).values()) == {"exact"}


def test_without_trace():
    model = Net(se.cells.LeakyRate(N, dense(3, N, is_etrace=False), ring(N)), dense(N, 2, is_etrace=False))
    found = rules(se.D_RTRL(), model)
    assert found["cell.inp.value['weight']"] == "same-step only" and found["out.value['weight']"] == "exact"


def test_only_what_is_trained():
    model = leaky()
    only_out = eqx.tree_at(lambda m: m.out, jax.tree.map(lambda _: False, model), replace=True)
    assert rules(se.D_RTRL(train=only_out), model) == READOUT
    assert rules(se.BPTT(train=only_out), model) == READOUT


@pytest.mark.parametrize("kind", ["delay_chain"])
def test_exact_is_exact_and_nothing_else_is(x64, kind):
    case, learner = models.build(kind), se.D_RTRL()
    state = case.twin.state
    report = se.explain(learner, case.model, state, case.xs[0])
    carry = learner.init(case.model, state, case.xs[0])
    online, exact = (
        jax.tree.leaves(se.online_grad(rule, oracles.loss_fn, case.model, start, case.xs, case.ys)[1])
        for rule, start in ((learner, carry), (se.BPTT(), se.Carry(state, None)))
    )
    for row, a, b in zip(report.rows, online, exact, strict=True):
        error = float(jnp.abs(a - b).max() / jnp.abs(b).max())
        assert (error < 1e-10) == (row.rule == "exact"), (row.name, row.rule, error)


# --- traces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "learner", [se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid()], ids=lambda learner: type(learner).__name__
)
def test_traces_are_those_of_the_carry(learner):
    model = leaky()
    carry = learner.init(model, model.init_state(4), jnp.ones((4, 3)))
    real = sorted(leaf.shape for leaf in jax.tree.leaves(carry.traces) if leaf.dtype == jnp.float32)
    found = rows(learner, shapes(model), (4,))
    assert sorted(shape for row in found.values() for shape in row.trace_shapes) == real
    assert sum(row.trace_bytes for row in found.values()) == 4 * sum(int(np.prod(shape)) for shape in real)
    assert found["out.value['weight']"].trace_shapes == ()


def test_traces_of_half_precision():
    row = rows(se.D_RTRL(trace_dtype=jnp.bfloat16), shapes(leaky()))["cell.inp.value['weight']"]
    assert (row.trace_shapes, row.trace_bytes) == (((1, 3, N),), 2 * 3 * N)


def test_op_calls_and_groups():
    row = rows(se.D_RTRL(), shapes(leaky()))["cell.rec.value['weight']"]
    assert row.groups == (("state",),)
    (call,) = row.op_calls
    assert call.startswith("SpMatMulOp at test_report.py:") and "Net.__call__" in call
    assert rows(se.D_RTRL(), leaky().cell)["rec.value['weight']"].op_calls == ("SpMatMulOp",)


# --- what no row says ------------------------------------------------------------------------------------------------


class Step(eqx.Module):
    """Parameters by name, and a step."""

    params: dict
    step: object = eqx.field(static=True)

    def __call__(self, state, x):
        return self.step(self.params, state, x)


def notes(learner, step, state, **params):
    report = se.explain(learner, Step(params, step), state, jnp.ones(3))
    assert all(note in str(report) for note in report.notes)
    return " ".join(report.notes), {row.name: row.rule for row in report.rows}


def through_a_cut(p, h, x):
    h = jnp.tanh(p["inp"](x) + se.cut(jax.nn.softmax)(p["rec"](h)))
    return h, h


@pytest.mark.parametrize("where", ["rec", "inp"])
def test_a_cut_truncates_snap_of_all_steps(where):
    said, rule = notes(se.SnAp(None), through_a_cut, jnp.zeros(N), inp=dense(3, N), rec=dense(N, N))
    assert rule["params['inp'].value['weight']"] == "truncated" and "Influences end at se.cut, called at" in said
    said, rule = notes(se.RTRL(), through_a_cut, jnp.zeros(N), inp=dense(3, N), rec=dense(N, N))
    assert not said and set(rule.values()) == {"exact"}

    def beside(p, h, x):
        h = jnp.tanh(p["inp"](x) + p["rec"](h))
        return h, se.cut(jax.nn.softmax)(h)

    said, rule = notes(se.SnAp(None), beside, jnp.zeros(N), inp=dense(3, N), rec=dense(N, N))
    assert not said and set(rule.values()) == {"exact"}


def multiplied_first(p, h, x):
    h = 0.5 * h + jnp.tanh(p["inp"](x) + p["spread"](p["rec"](h)))
    return h, h


def spread_first(p, h, x):
    h = 0.5 * h + jnp.tanh(p["inp"](x) + p["rec"](p["spread"](h)))
    return h, h


def without_memory(p, h, x):
    h = jnp.tanh(p["inp"](x) + p["rec"](h))
    return h, p["spread"](h)


@pytest.mark.parametrize("learner", [se.D_RTRL, se.ES_D_RTRL])
def test_recurrence_that_is_learned_from_the_same_step_only(learner):
    params = {"inp": dense(3, N), "rec": dense(N, N), "spread": ring(N)}

    def rule(step):
        every = jax.tree.map(lambda _: True, Step(params, step))
        return learner(train=eqx.tree_at(lambda m: m.params["spread"].value["weight"], every, False))

    with pytest.warns(UserWarning, match="No recurrent parameter has a trace: what the op called at .*test_report"):
        said, found = notes(rule(multiplied_first), multiplied_first, jnp.zeros(N), **params)
    assert "No recurrent parameter has a trace" in said and found["params['rec'].value['weight']"] == "same-step only"
    assert "drives has no memory of its own" in notes(rule(without_memory), without_memory, jnp.zeros(N), **params)[0]
    assert not notes(rule(spread_first), spread_first, jnp.zeros(N), **params)[0]
    for other in (se.SnAp(2), se.RTRL(), se.BPTT()):
        assert not notes(other, multiplied_first, jnp.zeros(N), **params)[0]


def test_a_readout_with_a_memory_of_its_own():
    def leaking(p, s, x):
        h = 0.9 * s["h"] + jnp.tanh(p["inp"](x))
        o = 0.8 * s["o"] + p["out"](h)
        return {"h": h, "o": o}, o

    def filtered(p, s, x):
        h = 0.9 * s["h"] + jnp.tanh(p["inp"](x))
        f = 0.8 * s["f"] + h
        return {"h": h, "f": f}, p["out"](f)

    params = {"inp": dense(3, N), "out": dense(N, 2)}
    said, _ = notes(se.D_RTRL(), leaking, {"h": jnp.zeros(N), "o": jnp.zeros(2)}, **params)
    assert said.startswith("\"['o']\" remembers what an op reads of \"['h']\"; the learning signal")
    assert not notes(se.SnAp(2), leaking, {"h": jnp.zeros(N), "o": jnp.zeros(2)}, **params)[0]
    assert not notes(se.D_RTRL(), filtered, {"h": jnp.zeros(N), "f": jnp.zeros(N)}, **params)[0]
    assert not se.explain(se.D_RTRL(), leaky(), leaky().init_state(), jnp.ones(3)).notes


@pytest.mark.parametrize("how, advice", [("direct", "ElemWiseParam"), ("op", "after which"), ("cut", "after which")])
def test_the_advice_for_a_plain_array(how, advice):
    """A trace helps where nothing stands between the array and hidden state."""

    def step(p, h, x):
        gain = p["gain"]
        x = {"direct": lambda: x, "op": lambda: gain[:3] * x, "cut": lambda: x}[how]()
        y = p["inp"](x)
        y = {"direct": lambda: gain * y, "op": lambda: y, "cut": lambda: se.cut(lambda y: gain * y / y.sum())(y)}[how]()
        h = 0.9 * h + y
        return h, h

    with pytest.warns(UserWarning, match=f"plain array .*gain.* acts on the hidden state.*{advice}"):
        se.D_RTRL().init(Step({"inp": dense(3, N), "gain": jnp.ones(N)}, step), jnp.zeros(N), jnp.ones(3))


# --- reach -----------------------------------------------------------------------------------------------------------


def reached(learner, model):
    return {name: (row.reached, row.size) for name, row in rows(learner, model).items()}


@pytest.mark.parametrize("recurrent", [False, True])
def test_neurons_that_nothing_reads(recurrent):
    """The readout sees neurons 0 and 2 of five; a recurrent op reads old state, through which D-RTRL hears nothing."""
    conn = se.Connectivity.from_edges([0, 2], [1, 0], shape=(N, 2))
    out = se.ETraceParam({"weight": jnp.zeros(2), "bias": jnp.zeros(2)}, se.SpMatMulOp(conn))
    found = reached(se.D_RTRL(), leaky(recurrent, out))
    assert found["cell.inp.value['weight']"] == (3 * 2, 3 * N)
    assert found["cell.inp.value['bias']"] == (2, N)
    assert found["out.value['weight']"] == found["out.value['bias']"] == (2, 2)
    if recurrent:
        assert found["cell.rec.value['weight']"] == (2, N)


def test_reach_counts_what_a_mask_a_tie_or_a_low_rank_leaves():
    mask = jnp.arange(3 * N).reshape(3, N) % 2 == 0
    conn = se.Connectivity.from_edges(np.arange(N), np.roll(np.arange(N), 1), shape=(N, N))
    inp = se.ETraceParam({"weight": jnp.ones((3, N))}, se.MatMulOp(weight_mask=mask))
    tied = se.ETraceParam({"weight": jnp.ones(2)}, se.SpMatMulOp(conn, tie=[0, 1, 0, 1, 0]))
    low = se.ETraceParam({"B": jnp.ones((N, 1)), "A": jnp.zeros((1, 2))}, se.LoraOp())
    found = reached(se.D_RTRL(), Net(se.cells.LeakyRate(N, inp, tied), low))
    assert found == {
        "cell.inp.value['weight']": (8, 3 * N), "cell.rec.value['weight']": (2, 2),
        "out.value['A']": (2, 2), "out.value['B']": (N, N),
    }  # fmt: skip


def test_reach_of_spikes():
    model = Net(se.cells.LIF(N, dense(3, N), ring(N)), dense(N, 2))
    assert all(a == b for a, b in reached(se.D_RTRL(), model).values())


def test_reach_is_unknown_without_numbers_and_for_bptt():
    model = shapes(leaky())
    state, x = jax.ShapeDtypeStruct((N,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
    report = se.explain(se.D_RTRL(), model, state, x)
    assert {row.reached for row in report.rows} == {None} and " ? " in str(report)
    assert {row.reached for row in rows(se.BPTT(), leaky()).values()} == {None}


def test_report_prints():
    text = str(se.explain(se.D_RTRL(), leaky(), leaky().init_state(), jnp.ones(3)))
    head, line, *body = text.splitlines()
    assert head.split("  ")[0] == "parameter" and set(line) == {"-"} and len(body) == 5
    assert any(row.startswith("cell.rec.value['weight']") and "diagonal" in row and "all" in row for row in body)
    assert any("SpMatMulOp test_report.py:" in row and "Net" not in row for row in body) and len(line) <= 120


def test_a_leaf_that_is_allowed_to_stay_without_gradient():
    model = eqx.tree_at(lambda m: m.cell, leaky(), Spare(leaky().cell, jnp.ones(4)))
    (row,) = (r for n, r in rows(se.D_RTRL(allow_zero=("cell.spare",)), model).items() if n == "cell.spare")
    assert (row.rule, row.reached) == ("no gradient", 0)


class Spare(eqx.Module):
    cell: se.cells.LeakyRate
    spare: jax.Array

    def init_state(self, *batch):
        return self.cell.init_state(*batch)

    def __call__(self, state, x):
        return self.cell(state, x)


# --- memory ----------------------------------------------------------------------------------------------------------


def xla_bytes(learner, model, state, x, steps):
    """What XLA needs for `online_grad` of that many steps with a squared loss."""
    shapes = jax.eval_shape(lambda s, x: model(s, x)[1], state, x)
    xs, ys = (jax.tree.map(lambda a: jnp.zeros((steps, *a.shape), a.dtype), part) for part in (x, shapes))
    carry = learner.init(model, state, x)
    arrays, static = eqx.partition((model, carry), eqx.is_array)

    def run(arrays, xs, ys):
        model, carry = eqx.combine(arrays, static)
        loss = lambda out, y: sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(y)))
        return se.online_grad(learner, loss, model, carry, xs, ys, chunk=steps)

    found = jax.jit(run).lower(arrays, xs, ys).compile().memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def big_gru():
    inp, rec = [dense(8, 40) for _ in range(3)], [ring(40) for _ in range(3)]
    return Net(se.cells.GRU(40, *inp, *rec), dense(40, 2))


def big_lif():
    return Net(se.cells.LIF(100, dense(8, 100), dense(100, 100, bias=False)), dense(100, 2))


def sparse_lif():
    rng = np.random.default_rng(0)
    conn = se.Connectivity.from_edges(rng.integers(500, size=20000), rng.integers(500, size=20000), shape=(500, 500))
    rec = se.ETraceParam({"weight": jnp.ones(20000)}, se.SpMatMulOp(conn))
    return Net(se.cells.ALIF(500, dense(8, 500), rec), dense(500, 2))


MODELS = {
    "dense LIF": (big_lif, se.D_RTRL(), (4,), 16),
    "dense LIF, factors": (big_lif, se.ES_D_RTRL(), (4,), 16),
    "dense LIF, BPTT": (big_lif, se.BPTT(), (4,), 50),
    "sparse ALIF": (sparse_lif, se.D_RTRL(), (), 16),
    "sparse ALIF, batch": (sparse_lif, se.D_RTRL(), (8,), 16),
    "sparse ALIF, one step": (sparse_lif, se.D_RTRL(), (), 1),
    "sparse ALIF, half precision": (sparse_lif, se.D_RTRL(trace_dtype=jnp.bfloat16), (8,), 16),
    "GRU": (big_gru, se.D_RTRL(), (8,), 16),
    "GRU, hybrid": (big_gru, se.Hybrid(), (8,), 16),
    "GRU, BPTT": (big_gru, se.BPTT(), (8,), 100),
}


SOME = ["dense LIF, BPTT", "GRU, hybrid"]


@pytest.mark.optimized
@pytest.mark.parametrize("case", few([*MODELS], SOME))
def test_plan_is_what_xla_needs(case):
    build, learner, batch, steps = MODELS[case]
    model, x = build(), jnp.ones((*batch, 8))
    state = model.init_state(*batch)
    plan = se.memory_plan(learner, model, state, x, steps, chunk=steps)
    expected = xla_bytes(learner, model, state, x, steps)
    assert plan.total == sum(plan.buffers.values()) and min(plan.buffers.values()) >= 0
    assert abs(plan.total / expected - 1) < 0.1, (plan.total, expected)
    carry = learner.init(model, state, x)
    assert plan.traces == sum(leaf.nbytes for leaf in jax.tree.leaves(carry.traces))
    assert plan.buffers["state"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    trained = eqx.filter(model, se.trainable(model))
    assert plan.buffers["parameters"] == sum(leaf.nbytes for leaf in jax.tree.leaves(trained))


KEY = jax.random.key(0)
NEWER = {
    "GRU, UORO": (big_gru, se.UORO(key=KEY), (8,)),
    "GRU, SnAp": (big_gru, se.SnAp(n=2), (8,)),
    "dense LIF, RTRL": (big_lif, se.RTRL(), (4,)),
    "dense LIF, e-prop": (big_lif, se.EProp(leaf="z", feedback="random", key=KEY), (4,)),
    "dense LIF, OTTT": (big_lif, se.OTTT(decay=0.9), (4,)),
    "sparse ALIF, TBPTT": (sparse_lif, se.TBPTT(steps=16), (8,)),
}


@pytest.mark.optimized
@pytest.mark.parametrize("case", few([*NEWER], ["GRU, SnAp"]))
def test_plan_of_other_learners(case):
    build, learner, batch = NEWER[case]
    model, x = build(), jnp.ones((*batch, 8))
    state = model.init_state(*batch)
    expected = xla_bytes(learner, model, state, x, 16)
    assert abs(se.memory_plan(learner, model, state, x, 16, 16).total / expected - 1) < 0.1


def test_plan_of_shapes_only():
    """A model that fits into no memory: 10^9 weights."""
    count = 30000

    def build():
        return Net(se.cells.LeakyRate(count, dense(8, count), dense(count, count)), dense(count, 2))

    model = eqx.filter_eval_shape(build)
    state = jax.ShapeDtypeStruct((count,), jnp.float32)
    plan = se.memory_plan(se.D_RTRL(), model, state, jax.ShapeDtypeStruct((8,), jnp.float32))
    assert plan.traces == 4 * (count**2 + 8 * count + 2 * count)
    assert plan.buffers["trace of cell.rec.value['bias'], cell.rec.value['weight']"] == 4 * (count**2 + count)


def test_plan_of_shapes_equals_plan_of_arrays():
    for learner in (se.D_RTRL(), se.BPTT()):
        plan = se.memory_plan(
            learner, eqx.filter_eval_shape(leaky), jax.ShapeDtypeStruct((N,), jnp.float32),
            jax.ShapeDtypeStruct((3,), jnp.float32),
        )  # fmt: skip
        assert plan.buffers == se.memory_plan(learner, leaky(), jnp.zeros(N), jnp.ones(3)).buffers


@ONLY
@pytest.mark.optimized
def test_only_bptt_grows_with_time():
    model, x = sparse_lif(), jnp.ones(8)
    state = model.init_state()
    bptt = [se.memory_plan(se.BPTT(), model, state, x, steps).total for steps in (10, 100, 1000)]
    assert bptt[1] - bptt[0] > 50 * 500 * 4 and 5 < (bptt[2] - bptt[1]) / (bptt[1] - bptt[0]) < 15
    # D-RTRL goes on in windows, so that its plan is that of one window for any number of steps.
    whole = xla_windows(se.D_RTRL(), model, state, x, 1600) - xla_windows(se.D_RTRL(), model, state, x, 160)
    assert whole < 1.1 * 1440 * 4 * (8 + 2 + 1)


def xla_windows(learner, model, state, x, steps):
    """As `xla_bytes`, in windows of the default size."""
    arrays, static = eqx.partition((model, learner.init(model, state, x)), eqx.is_array)

    def run(arrays, xs, ys):
        model, carry = eqx.combine(arrays, static)
        return se.online_grad(learner, lambda out, y: jnp.sum((out - y) ** 2), model, carry, xs, ys)

    found = jax.jit(run).lower(arrays, jnp.zeros((steps, 8)), jnp.zeros((steps, 2))).compile().memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def test_plan_of_a_model_with_keys_and_counters():
    case = models.build("clock")
    plan = se.memory_plan(se.D_RTRL(), case.model, case.twin.state, case.xs[0])
    assert plan.traces > 0 and plan.total > plan.traces


def test_plan_of_part_of_a_model():
    model = leaky()
    only_out = eqx.tree_at(lambda m: m.out, jax.tree.map(lambda _: False, model), replace=True)
    plan = se.memory_plan(se.D_RTRL(train=only_out), model, model.init_state(), jnp.ones(3))
    assert plan.traces == 0 and plan.buffers["gradients"] == 4 * (2 * N + 2)


def test_plan_prints():
    text = str(se.memory_plan(se.D_RTRL(), leaky(), leaky().init_state(), jnp.ones(3)))
    assert text.startswith("buffer") and "trace of cell.rec.value['weight']" in text
    assert text.splitlines()[-1].startswith("total")


PLANNED = [(se.D_RTRL(), ()), (se.SnAp(), ()), (se.BPTT(), (3,))]


@pytest.mark.parametrize("learner, batch", few(PLANNED, PLANNED[1:]))
def test_plan_tells_the_sequence_from_the_window(learner, batch):
    """A longer sequence needs room for its inputs; only BPTT without `chunk` keeps what is between."""
    model, given = leaky(), (leaky().init_state(*batch), jnp.ones((*batch, 3)))
    short, long = (se.memory_plan(learner, model, *given, steps=steps) for steps in (20, 2000))
    inputs = 1980 * given[1].nbytes
    if isinstance(learner, se.BPTT):
        assert long.total > short.total + 2 * inputs
        long = se.memory_plan(learner, model, *given, steps=2000, chunk=20)
    assert {**short.buffers, "inputs of other windows": inputs} == long.buffers
    assert se.memory_plan(learner, model, *given, steps=8, chunk=99).buffers["inputs of other windows"] == 0


def test_plan_without_input():
    model = se.cells.LeakyRate(N, None, ring(N))
    plans = [se.memory_plan(learner, model, jnp.zeros(N), None) for learner in (se.D_RTRL(), se.BPTT())]
    assert all(plan.buffers["inputs of the window"] == 0 for plan in plans)


@pytest.mark.parametrize("chunk", [0, -1])
def test_plan_of_empty_windows(chunk):
    with pytest.raises(ValueError, match=f"chunk: expected at least 1, got {chunk}"):
        se.memory_plan(se.D_RTRL(), leaky(), leaky().init_state(), jnp.ones(3), chunk=chunk)


@pytest.mark.parametrize("steps", [0, -1])
def test_plan_of_no_steps(steps):
    with pytest.raises(ValueError, match=f"steps: expected at least 1, got {steps}"):
        se.memory_plan(se.D_RTRL(), leaky(), leaky().init_state(), jnp.ones(3), steps)


@pytest.mark.parametrize("report", [se.explain, se.memory_plan], ids=["explain", "memory_plan"])
def test_a_model_that_the_learner_refuses(report):
    class Mixed(eqx.Module):
        cell: se.cells.LeakyRate

        def __call__(self, h, x):
            h, _ = self.cell(h - h.mean(), x)
            return h, h

    with pytest.raises(ValueError, match="'state' is mixed across units"):
        report(se.D_RTRL(), Mixed(leaky().cell), jnp.zeros(N), jnp.ones(3))


SHOWN = ["rate", "alif_v", "tied", "conv_1d", "fused_gru", "between", "channel_decay"]


@pytest.mark.parametrize("kind", few(SHOWN, ["tied", "conv_1d", "between"]))
def test_reach_is_what_gradients_show(kind):
    """Every entry that ever has a gradient is reached, and none else."""
    case = models.build(kind)
    grads = models.run(se.D_RTRL(), case)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = se.explain(se.D_RTRL(), case.model, case.twin.state, case.xs[0]).rows
    shown = {name: np.count_nonzero(leaf) for name, leaf in _by_name(case.model, grads)}
    assert {row.name: row.reached for row in found} == shown


def _by_name(model, grads):
    for name, grad in grads.items():
        part = model.params[name]
        full = eqx.tree_at(lambda p: p.value, part, grad).value if isinstance(part, se.ETraceParam) else grad
        front = f"params['{name}']" + (".value" if isinstance(part, se.ETraceParam) else "")
        for path, leaf in jax.tree_util.tree_flatten_with_path(full)[0]:
            yield front + jax.tree_util.keystr(path), leaf


@pytest.mark.parametrize("potential", [-3.0, 0.0, 1.0])
def test_reach_is_no_matter_of_the_state(potential):
    """A triangle has no derivative far from the threshold; a unit that is there now need not stay."""
    model = Net(se.cells.LIF(N, dense(3, N), ring(N), spike=se.surrogate.triangle()), dense(N, 2))
    state = jax.tree.map(lambda s: jnp.full_like(s, potential), model.init_state())
    rows = se.explain(se.D_RTRL(), model, state, jnp.zeros(3)).rows
    assert all(row.reached == row.size for row in rows)


def test_the_second_explanation_compiles_nothing(caplog):
    model = leaky()
    se.explain(se.D_RTRL(), model, model.init_state(), jnp.ones(3))
    x = jnp.ones(3)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        se.explain(se.D_RTRL(), model, model.init_state(), x)
        assert "Finished XLA compilation" not in caplog.text
        jax.jit(lambda x: jnp.sin(x) + 3.25)(x)
        assert "Finished XLA compilation" in caplog.text
