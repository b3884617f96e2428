"""Windows of any length, and calls split anywhere, give the gradients of single steps."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from jax.experimental import io_callback
from models import reference, run, total
from soak import few

import sparse_etrace as se
from sparse_etrace._kernels import native
from sparse_etrace._model.primitives import sub_jaxprs
from sparse_etrace._model.steady import Steady, listened, scan, stacked

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE = 1e-10
D_RTRL, ES_D_RTRL = se.D_RTRL(), se.ES_D_RTRL(decay=models.DECAY)


def expected_of(learner, kind):
    case, expected = reference(kind)
    return case, expected.exact if isinstance(learner, se.D_RTRL) else expected.factored


KINDS = ["alif_v", "fused_gru", "delay_chain", "axis_2", "tied", "conv_1d", "low_rank", "decay"]


@pytest.mark.parametrize("kind", few(KINDS, ["fused_gru", "conv_1d", "decay"]))
def test_d_rtrl(kind):
    """One window longer than the sequence, as the default is; several windows, some with a rest."""
    case, expected = expected_of(D_RTRL, kind)
    assert oracles.relative_error(run(D_RTRL, case, 16)[1], total(expected)) < TOLERANCE
    steps = 6 if kind in KINDS[2:6] else 7
    expected = jax.tree.map(lambda g: g[:steps], expected)
    assert oracles.relative_error(run(D_RTRL, case, 3, steps=slice(steps))[1], total(expected)) < TOLERANCE


FACTORED = [(kind, chunk) for kind in ("alif_v", "two_lif", "sparse_function") for chunk in (3, 16)]


@pytest.mark.parametrize("kind, chunk", few(FACTORED, [("two_lif", 16), ("sparse_function", 3)]))
def test_es_d_rtrl(kind, chunk):
    case, expected = expected_of(ES_D_RTRL, kind)
    assert oracles.relative_error(run(ES_D_RTRL, case, chunk)[1], total(expected)) < TOLERANCE


SPLIT = [D_RTRL, ES_D_RTRL, se.Hybrid(decay=models.DECAY)]


@pytest.mark.parametrize("learner", few(SPLIT, SPLIT[2:]), ids=str)
def test_split_calls(learner):
    """The carry goes on: losses, gradients, state and traces do not depend on where calls and windows end."""
    case, _ = reference("alif_v")
    losses, grads, carry = run(learner, case, 1)
    for chunk, ends in [(3, (7,)), (4, (3, 7))]:
        other, parts, begin = None, [], 0
        for end in ends:
            *part, other = run(learner, case, chunk, other, slice(begin, end))
            parts.append(part)
            begin = end
        assert oracles.relative_error(jnp.concatenate([p[0] for p in parts]), losses) < TOLERANCE
        assert oracles.relative_error(jax.tree.map(lambda *g: sum(g), *(p[1] for p in parts)), grads) < TOLERANCE
        assert oracles.relative_error(other, carry) < TOLERANCE


def test_auxiliary_results_are_stacked():
    case, _ = reference("rate")

    def loss_fn(out, y):
        return oracles.loss_fn(out, y), {"out": out, "error": jnp.max(jnp.abs(out - y))}

    expected = run(D_RTRL, case, 3)[:2]
    carry = models.start(D_RTRL, case)
    losses, grads, _, aux = se.online_grad(D_RTRL, loss_fn, case.model, carry, case.xs, case.ys, chunk=3, has_aux=True)
    assert oracles.relative_error((losses, case.read(grads)), expected) < TOLERANCE
    assert aux["out"].shape == case.ys.shape and aux["error"].shape == losses.shape
    assert oracles.relative_error(losses, jax.vmap(oracles.loss_fn)(aux["out"], case.ys)) < TOLERANCE


def test_bptt_windows_cut_the_carry():
    case, _ = reference("rate")
    _, got, _ = run(se.BPTT(), case, 3)
    state, parts = case.twin.state, []
    for begin in (0, 3, 6):
        now = slice(begin, begin + 3)
        parts.append(oracles.bptt(case.twin._replace(state=state), case.xs[now], case.ys[now]))
        for x in case.xs[now]:
            state, _ = case.model(state, x)
    assert oracles.relative_error(got, jax.tree.map(lambda *g: sum(g), *parts)) < TOLERANCE


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunk_out_of_range(chunk):
    case, _ = reference("rate")
    with pytest.raises(ValueError, match="chunk: expected at least 1"):
        run(D_RTRL, case, chunk)


def test_lengths_differ():
    case, _ = reference("rate")
    carry = models.start(D_RTRL, case)
    with pytest.raises(ValueError, match="xs, ys: expected one common number of steps"):
        se.online_grad(D_RTRL, oracles.loss_fn, case.model, carry, case.xs, case.ys[:3])


@pytest.mark.parametrize("fan_in, expected", [(1, 8), (20, 16)])
def test_windows_are_shorter_where_their_jacobians_need_more_room_than_the_traces(fan_in, expected):
    class Cascade(eqx.Module):
        rec: se.ETraceParam

        def __call__(self, state, x):
            a, b, c = state
            a = 0.9 * a + jnp.tanh(self.rec(a)) + x
            b = 0.9 * b + a
            c = 0.9 * c + b
            return (a, b, c), c

    units = 30
    pre, post = np.arange(units * fan_in) % units, np.arange(units * fan_in) // fan_in
    op = se.SpMatMulOp(se.Connectivity.from_edges(pre, post, shape=(units, units)))
    model = Cascade(se.ETraceParam({"weight": jnp.ones(units * fan_in)}, op))
    carry = se.D_RTRL().init(model, (jnp.zeros(units),) * 3, jnp.zeros(units))
    assert se.D_RTRL().window_steps(model, carry, jnp.zeros((50, units))) == expected
    assert se.BPTT().window_steps(model, carry, None) is None


@pytest.mark.optimized
@pytest.mark.parametrize("learner", [se.D_RTRL(), se.ES_D_RTRL()], ids=str)
def test_windows_need_no_more_room_than_what_lasts(learner):
    """Nodes with features, whose traces are no larger than a step of what is said to them."""
    nodes, features = 10_000, 32

    class Edges(eqx.Module):
        spread: se.ETraceParam

        def __call__(self, h, x):
            h = 0.9 * h + jnp.tanh(self.spread(h) + x)
            return h, h

    pre, post = np.random.default_rng(0).integers(0, nodes, (2, 6 * nodes))
    conn = se.Connectivity.from_edges(pre, post, (nodes, nodes))
    model = Edges(se.ETraceParam({"weight": jnp.ones(6 * nodes)}, se.SpMatMulOp(conn, axis=-2)))
    state = jax.ShapeDtypeStruct((nodes, features), float)
    carry = learner.carry_shapes(model, state, state)
    steps = learner.window_steps(model, carry, jnp.zeros((2, nodes, features)))
    one, chosen, most = (se.memory_plan(learner, model, state, state, k, k).total for k in (1, steps, 16))
    assert chosen <= 2 * one + 2**25 < most / 2


@pytest.mark.parametrize("cell, is_stacked", [(se.cells.LeakyRate, False), (se.cells.GRU, True)])
def test_what_no_step_changes_is_made_once(cell, is_stacked):
    """The leak of a unit is its D in every step; a gate's is another in each."""
    steps, units = 5, 7
    graph = se.generate.fixed_in_degree(units, 3, jax.random.key(0))
    model = cell.of(graph, inputs=2, key=jax.random.key(1))
    xs, ys = jnp.ones((steps, 2)), jnp.zeros((steps, units))
    carry = D_RTRL.init(model, model.init_state(), xs[0])
    grad = jax.make_jaxpr(lambda *data: se.online_grad(D_RTRL, oracles.loss_fn, model, carry, *data))(xs, ys)
    shapes = [v.aval.shape for eqn in scans(grad.jaxpr) for v in eqn.outvars]
    assert ((steps, 1, 1, units) in shapes) == is_stacked


@pytest.mark.parametrize("learner", [D_RTRL, se.SnAp(2)], ids=str)
def test_a_window_reads_its_inputs_where_they_lie(learner):
    """What a window would copy of them has the shape of its steps."""
    cell = se.cells.LeakyRate(2, se.ETraceParam({"weight": jnp.ones((7, 2))}, se.MatMulOp()), decay=0.9)
    xs, ys = jnp.ones((15, 7)), jnp.zeros((15, 2))
    carry = learner.init(cell, cell.init_state(), xs[0])
    grad = jax.make_jaxpr(lambda *data: se.online_grad(learner, oracles.loss_fn, cell, carry, *data, chunk=5))(xs, ys)
    shapes = [v.aval.shape for eqn in scans(grad.jaxpr) for v in eqn.params["jaxpr"].jaxpr.invars]
    assert (15, 7) in shapes and (5, 7) not in shapes


@pytest.mark.skipif(native.KERNELS == "xla", reason="no compiled kernels")
@pytest.mark.parametrize("learner", [D_RTRL, se.ES_D_RTRL(0.9)], ids=str)
def test_what_recursions_of_a_window_say_lies_where_they_read(learner, on_cpu):
    """Two values that are carried, and two stacks."""
    graph = se.from_edges([0, 1, 2, 0], [1, 2, 0, 2], jnp.ones(4))
    cell = se.cells.LeakyRate(3, None, se.ETraceParam({"weight": graph.weight}, se.SpMatMulOp(graph)), decay=0.9)
    ys = jnp.zeros((8, 2, 3))
    carry = learner.init(cell, cell.init_state(2), None)
    run = eqx.filter_jit(lambda *given: se.online_grad(learner, oracles.loss_fn, *given, None, ys, chunk=4))
    lines = run.lower(cell, carry).as_text().splitlines()
    assert sum(line.count("output_operand_alias<") for line in lines if "sparse_etrace_elementwise" in line) == 4


def test_what_the_host_says_is_new_in_each_step():
    numbers = iter(range(9))

    def step(before, now):
        said = io_callback(lambda: np.float32(next(numbers)), jax.ShapeDtypeStruct((), np.float32), ordered=True)
        return before + now, said

    said = jax.jit(lambda xs: stacked(listened(step, jnp.zeros(()), xs)[1]))(jnp.ones(5))
    np.testing.assert_array_equal(said, np.arange(5))


def test_what_a_call_makes_of_no_step_beside_what_it_makes_of_one():
    call = jax.jit(lambda x: (x + 1, jnp.full(2, 3.0)))
    said = stacked(listened(lambda before, x: (before, call(x)), jnp.zeros(()), jnp.arange(4.0))[1])
    np.testing.assert_array_equal(said[0], np.arange(1, 5))
    np.testing.assert_array_equal(said[1], np.full((4, 2), 3))


def scans(jaxpr):
    for eqn in jaxpr.eqns:
        yield from [eqn] if eqn.primitive.name == "scan" else []
        for inner in sub_jaxprs(eqn):
            yield from scans(inner)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_stack_in_memory_of_its_own(reverse):
    """What takes much room lies where nothing was written before: the same numbers, and no copy in the program."""
    xs, decay = jnp.arange(12.0).reshape(3, 4), Steady(jnp.float64(0.5), 4)
    like = [jax.ShapeDtypeStruct((), xs.dtype), jax.ShapeDtypeStruct((300,), xs.dtype), None]

    def step(before, now):
        x, decay = now
        after = decay * before + x
        return after, [after, jnp.full(300, after).at[0].set(x), jnp.full(200, x)]

    def windows(xs, like):
        return jax.lax.scan(lambda state, x: scan(step, state, (x, decay), 4, like, reverse), 0.0, xs)

    compiled = jax.jit(functools.partial(windows, like=like)).lower(xs).compile()
    for a, b in zip(jax.tree.leaves(compiled(xs)), jax.tree.leaves(windows(xs, ())), strict=True):
        np.testing.assert_array_equal(a, b)
    many = jax.vmap(functools.partial(windows, like=like))(jnp.stack([xs, 2 * xs]))
    np.testing.assert_array_equal(many[1][1][1], windows(2 * xs, ())[1][1])
    if native.KERNELS != "xla":
        assert "sparse_etrace_room" in (text := compiled.as_text())
        assert not re.search(r"\[4,300\]\S* (?:copy|broadcast)\(", text)
