"""D-RTRL step by step against explicit Jacobians, for models of every kind, in float64; and what every learner owes."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from hypothesis import given, strategies as st
from models import reference, run, run_by_step, start, total
from soak import ONLY, few

import sparse_etrace as se

TOLERANCE = 1e-10
# One op feeds another of its own group, or reads one of the groups of another's trace for another: BPTT with stopped
# gradients says something else.
NO_TWIN = {"mgu_cell", "fused_gru", "memoryless"}
LEARNERS = [se.D_RTRL(), se.ES_D_RTRL(decay=models.DECAY), se.Hybrid(decay=models.DECAY), se.BPTT()]
float64 = pytest.mark.usefixtures("x64")


def name(value):
    return value if isinstance(value, str) else type(value).__name__


@pytest.fixture(scope="module", params=few([*models.KINDS], models.CORE))
def kind(request):
    """All tests of one kind follow one another, so that they share its oracles."""
    return request.param


@float64
def test_d_rtrl(kind):
    case, expected = reference(kind)
    assert oracles.nonzero(expected.exact)
    losses, grads = run_by_step(se.D_RTRL(), case)
    assert oracles.relative_error(losses, expected.losses) < TOLERANCE
    assert oracles.relative_error_by_step(grads, expected.exact) < TOLERANCE


@pytest.mark.parametrize("kind", few([*models.KINDS], models.FACTORED))
@float64
def test_es_d_rtrl(kind):
    case, expected = reference(kind)
    _, grads = run_by_step(se.ES_D_RTRL(decay=models.DECAY), case)
    assert oracles.relative_error_by_step(grads, expected.factored) < TOLERANCE


@pytest.mark.parametrize("kind", few([*models.KINDS], ["two", "conv_1d", "shared", "mgu_cell", "memoryless"]))
@float64
def test_oracles_agree(kind):
    """Explicit Jacobians and BPTT with stopped gradients are two ways to the same numbers."""
    case, expected = reference(kind)
    error = oracles.relative_error(oracles.stop_gradient_twin(case.twin, case.xs, case.ys), total(expected.exact))
    assert error > 1e-3 if kind in NO_TWIN else error < TOLERANCE


@ONLY
@given(st.sampled_from(["rate", "alif_v", "tied"]), st.integers(1, 2**16))
@float64
def test_random_models(kind, seed):
    case, expected = models.reference(kind, seed)
    assert oracles.relative_error_by_step(run_by_step(se.D_RTRL(), case)[1], expected.exact) < TOLERANCE


BATCHES = [(kind, batch) for kind in ("rate", "decay", "alif_v") for batch in ((), (2, 3))]


@pytest.mark.parametrize("kind, batch", few(BATCHES, [("alif_v", ()), ("decay", (2, 3))]), ids=str)
@float64
def test_batch_axes(kind, batch):
    case = models.build(kind, batch=batch)
    expected = oracles.online(case.twin, case.xs, case.ys, decay=models.DECAY)
    for learner, grads in (se.D_RTRL(), expected.exact), (se.ES_D_RTRL(decay=models.DECAY), expected.factored):
        assert oracles.relative_error_by_step(run_by_step(learner, case)[1], grads) < TOLERANCE


WAYS = {"jit": jax.jit, "vmap": jax.vmap, "checkpoint": jax.checkpoint}
WAYS["all"] = lambda f: jax.jit(jax.vmap(jax.checkpoint(f)))


@pytest.mark.parametrize("how", few([*WAYS], ["all"]))
@pytest.mark.parametrize("kind", ["lif_vjp", "fused"])
@float64
def test_transformed_models(kind, how):
    case, expected = reference(kind)
    case = case._replace(model=models.Wrapped(case.model, WAYS[how]))
    assert oracles.relative_error_by_step(run_by_step(se.D_RTRL(), case)[1], expected.exact) < TOLERANCE


# --- BPTT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", few(["alif_cell", "gru_cell", "conv_2d", "cut"], ["alif_cell", "cut"]))
@float64
def test_bptt(kind):
    case, _ = reference(kind)
    expected = oracles.bptt(case.twin, case.xs, case.ys)
    assert oracles.relative_error(run(se.BPTT(), case)[1], expected) < TOLERANCE


@float64
def test_d_rtrl_without_recurrence_is_bptt():
    case, _ = reference("no_recurrence")
    expected = oracles.bptt(case.twin, case.xs, case.ys)
    assert oracles.relative_error(run(se.D_RTRL(), case)[1], expected) < TOLERANCE


@pytest.mark.parametrize(
    "learner, kind",
    few(
        list(itertools.product(LEARNERS[:3], ["lif", "nontemp", "plain_readout"])),
        [(LEARNERS[0], "lif"), (LEARNERS[1], "nontemp"), (LEARNERS[2], "plain_readout")],
    ),
    ids=name,
)
@float64
def test_readout_is_that_of_bptt(learner, kind):
    case, _ = reference(kind)
    expected, grads = oracles.bptt(case.twin, case.xs, case.ys), run(learner, case)[1]
    names = [name for name in ("out", "offset") if name in expected]
    assert oracles.relative_error({n: grads[n] for n in names}, {n: expected[n] for n in names}) < TOLERANCE


@pytest.mark.parametrize("learner", few(LEARNERS[:3], LEARNERS[:1]), ids=name)
@float64
def test_reset_gate_has_its_same_step_gradient(learner):
    case, _ = reference("gru_cell")
    _, grads = run_by_step(learner, case)
    _, states = jax.lax.scan(lambda state, x: (case.model(state, x)[0], state), case.twin.state, case.xs)
    now = jax.vmap(lambda state, x, y: oracles.bptt(case.twin._replace(state=state), x[None], y[None]))
    expected = now(states, case.xs, case.ys)
    for name in ("inp_r", "rec_r"):
        assert oracles.relative_error_by_step(grads[name], expected[name]) < TOLERANCE


# --- sparse against dense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[:1]), ids=name)
@float64
def test_sparse_equals_its_dense_masked_twin(learner):
    case, _ = reference("rate")
    rec = case.model.params["rec"]
    conn = rec.op.connectivity
    synapses = (np.asarray(conn.pre), np.asarray(conn.post))
    full = jnp.zeros(conn.shape).at[synapses].set(rec.value["weight"])
    mask = jnp.zeros(conn.shape).at[synapses].set(1)
    dense = se.ETraceParam({"weight": full}, se.MatMulOp(weight_mask=mask))
    twin = case._replace(model=eqx.tree_at(lambda m: m.params["rec"], case.model, dense, is_leaf=_is_param))
    got, expected = run(learner, case)[1], run(learner, twin)[1]
    expected["rec"] = {"weight": expected["rec"]["weight"][synapses]}
    assert oracles.relative_error(got, expected) < TOLERANCE


def _is_param(leaf):
    return isinstance(leaf, se.ETraceParam)


# --- step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "learner, kind",
    few(
        list(itertools.product(LEARNERS[:2], ["alif_v", "plain_readout", "decay", "clock"])),
        [(LEARNERS[0], "alif_v"), (LEARNERS[0], "plain_readout"), (LEARNERS[1], "decay"), (LEARNERS[1], "clock")],
    ),
    ids=name,
)
@float64
def test_gradient_of_step(learner, kind):
    """What `filter_grad` of one `step` gives is the gradient of `online_grad` at that step."""
    case, expected = reference(kind)
    expected = expected.exact if isinstance(learner, se.D_RTRL) else expected.factored

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, carry, x, y):
        carry, out = learner.step(model, carry, x)
        return oracles.loss_fn(out, y), carry

    carry, grads = start(learner, case), []
    for x, y in zip(case.xs, case.ys, strict=True):
        (_, carry), g = loss(case.model, carry, x, y)
        grads.append(case.read(g))
    got = jax.tree.map(lambda *g: jnp.stack(g), *grads)
    assert oracles.relative_error_by_step(got, expected) < TOLERANCE


@float64
def test_gradients_of_step_by_carry_and_input():
    case, _ = reference("alif_v")
    learner = se.D_RTRL()
    _, _, carry = run(learner, case)
    x, y = case.xs[0], case.ys[0]

    def loss(given):
        return oracles.loss_fn(learner.step(case.model, given[0], given[1])[1], y)

    by_carry, by_x = eqx.filter_grad(loss)((carry, x))
    assert all(not np.any(g) for g in jax.tree.leaves(by_carry))
    expected = jax.grad(lambda x: oracles.loss_fn(case.model(carry.state, x)[1], y))(x)
    assert oracles.relative_error(by_x, expected) < TOLERANCE


# --- carry -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", few(LEARNERS[:2], LEARNERS[1:2]), ids=name)
@float64
def test_reset_of_some_batch_elements(learner):
    """Element 1 of two starts again after three steps, so it is as if it had been two sequences."""
    case, _ = reference("alif_v")

    def element(b, steps):
        state = {k: s[b] for k, s in case.twin.state.items()}
        xs, ys = case.xs[steps, b], case.ys[steps, b]
        result = oracles.online(case.twin._replace(state=state), xs, ys, decay=models.DECAY)
        return total(result.exact if isinstance(learner, se.D_RTRL) else result.factored)

    parts = element(0, slice(None)), element(1, slice(3)), element(1, slice(3, None))
    expected = jax.tree.map(lambda *g: sum(g), *parts)
    _, before, carry = run(learner, case, 4, steps=slice(3))
    carry = learner.reset(carry, jnp.array([False, True]), case.twin.state)
    _, after, _ = run(learner, case, 4, carry, slice(3, None))
    assert oracles.relative_error(jax.tree.map(np.add, before, after), expected) < TOLERANCE


@pytest.mark.parametrize("kind", few(["sparse_function", "low_rank"], ["sparse_function"]))
@float64
def test_parameters_that_change_between_calls(kind):
    """Traces are of the weights on synapses; the derivative of phi is taken at the current parameter."""
    case, expected = reference(kind)
    first = oracles.online(case.twin, case.xs[:4], case.ys[:4])
    moved = jax.tree.map(lambda g: g - 0.1, case.twin.values)
    second = oracles.online(case.twin._replace(values=moved), case.xs[4:], case.ys[4:], carry=first.carry)
    learner = se.D_RTRL()
    _, _, carry = run(learner, case, 4, steps=slice(4))
    trained = se.trainable(case.model)
    model = jax.tree.map(lambda p, t: p - 0.1 if t else p, case.model, trained)
    _, grads, _ = run(learner, case._replace(model=model), 4, carry, slice(4, None))
    assert oracles.relative_error(grads, total(second.exact)) < TOLERANCE


# --- what is trained, and in which type -------------------------------------------------------------------------------


def _only(*wanted):
    """Filter specification: True for paths that contain all of some `wanted` names."""

    def spec(model):
        def one(path, _):
            return any(all(f"'{part}'" in jax.tree_util.keystr(path) for part in names) for names in wanted)

        return jax.tree_util.tree_map_with_path(one, model)

    return spec


@pytest.mark.parametrize(
    "spec",
    [_only(["weight"]), _only(["bias"]), _only(["rec"]), _only(["inp", "bias"], ["out", "weight"])],
    ids=["weights", "biases", "one parameter", "two leaves"],
)
@pytest.mark.parametrize("make", few([se.D_RTRL, se.BPTT], [se.D_RTRL]))
@float64
def test_train(make, spec):
    case, _ = reference("rate")
    train = spec(case.model)
    everything, some = run(make(), case)[1], run(make(train=train), case)[1]
    kept = case.read(train)
    for name, leaves in everything.items():
        for key, grad in leaves.items():
            if kept[name][key]:
                assert oracles.relative_error(some[name][key], grad) < TOLERANCE
            else:
                assert some[name][key] is None


@pytest.mark.parametrize("learner", few(LEARNERS, LEARNERS[:2]), ids=name)
@pytest.mark.parametrize("kind", few(["decay", "conv_1d"], ["conv_1d"]))
def test_float32_stays(learner, kind):
    case = models.build(kind)
    losses, grads, carry = run(learner, case)
    assert losses.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert jax.tree.map(lambda a: a.dtype, carry) == jax.tree.map(lambda a: a.dtype, start(learner, case))


@pytest.mark.parametrize("make", few([se.D_RTRL, se.ES_D_RTRL, se.Hybrid], [se.D_RTRL, se.ES_D_RTRL]))
def test_trace_dtype(make):
    case = models.build("alif_v")
    _, expected, _ = run(make(), case)
    _, grads, carry = run(make(trace_dtype=jnp.bfloat16), case)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(carry.traces) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kinds == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert oracles.relative_error(grads, expected) < 0.05


def test_a_second_call_does_not_compile():
    traced = []

    def forward(op, h, held, x):
        traced.append(1)
        return models.rate_forward(op, h, held, x)

    case = models.rate(np.random.default_rng(0), forward=forward)
    learner = se.D_RTRL()
    _, _, carry = run(learner, case)
    carry, _ = learner.step(case.model, carry, case.xs[0])
    before = len(traced)
    other = case._replace(model=jax.tree.map(lambda leaf: leaf, case.model), xs=case.xs + 1)
    _, _, carry = run(se.D_RTRL(), other, carry=carry)
    carry, _ = se.D_RTRL().step(other.model, carry, other.xs[1])
    assert len(traced) == before
