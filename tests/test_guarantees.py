"""The six guarantees: no silent zero, checked dynamics, no dense array, memory independent of time, same bits."""

import io
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from jax.experimental import io_callback
from models import N, run, start, total
from soak import few

import sparse_etrace as se
from sparse_etrace._model.program import sub_jaxprs

TRACED = [se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid()]
by_name = pytest.mark.parametrize("learner", TRACED, ids=lambda learner: type(learner).__name__)


def rate_with(forward, seed=0, **parts):
    return models.rate(np.random.default_rng(seed), forward=forward, **parts)


def extra_dense(rng_seed=1):
    return models.dense(np.random.default_rng(rng_seed), N, N)


# --- 1. no silent zero -----------------------------------------------------------------------------------------------


def unread_forward(op, h, held, x):
    """`extra` feeds a variable that nothing reads."""
    new, out = models.rate_forward(op, h, held, x)
    return new | {"lost": 0.5 * h["lost"] + op("extra", new["h"])}, out


def cut_off_forward(op, h, held, x):
    """`extra` acts through memory of the group that only a recurrent op reads, which the rule drops."""
    new = 0.5 * h["h"] + jnp.tanh(op("inp", x) + op("rec", held["side"]))
    return {"h": new, "side": jnp.tanh(op("extra", x[..., :1]) + new)}, op("out", new)


EVERY = [*TRACED, se.BPTT()]


@pytest.mark.parametrize("learner", few(EVERY, [EVERY[0], EVERY[3]]), ids=lambda learner: type(learner).__name__)
def test_an_unused_leaf_is_an_error(learner):
    case = rate_with(models.rate_forward, extra=extra_dense())
    with pytest.raises(ValueError, match=r"extra.*would never get a gradient.*train=.*allow_zero"):
        start(learner, case)
    allowing = eqx.tree_at(lambda m: m.allow_zero, learner, ("params['extra']",), is_leaf=lambda x: x == ())
    grads = run(allowing, case)[1]
    assert not np.any(grads["extra"]["weight"]) and np.any(grads["inp"]["weight"])


class Asking(eqx.Module):
    inp: se.ETraceParam
    ask: Callable = eqx.field(static=True)

    def __call__(self, h, x):
        h = jnp.tanh(0.5 * h + self.inp(x) * self.ask())
        return h, h


def asking(learner, ask):
    model, h, x = Asking(se.MatMulOp().param(jax.random.key(0), 2, 3), ask), jnp.zeros(3), jnp.ones(2)
    carry = learner.init(model, h, x)
    return se.online_grad(learner, lambda out, _: jnp.sum(out), model, carry, jnp.ones((3, 2)), None)[1].inp.value


def held():
    ref = jax.new_ref(jnp.ones(()))
    ref[...] = 2 * ref[...]
    return jax.freeze(ref)


ONE = jax.ShapeDtypeStruct((), jnp.float32)
ANEW = {
    "io_callback": lambda: io_callback(lambda: np.float32(2), ONE),
    "rng_uniform": lambda: jax.jit(jax.lax.rng_uniform, static_argnums=2)(1.9999, 2.0, ()),
    "cond": lambda: jax.lax.cond(jnp.ones(()) > 0, ANEW["io_callback"], lambda: jnp.float32(0)),
    "swap": held,
}
RERUN = [se.D_RTRL(), se.RTRL(), se.UORO(jax.random.key(0)), se.TBPTT(2), se.Bridged(2), se.SnAp(2, per="parameter")]


@pytest.mark.parametrize("ask", ANEW)
def test_what_is_made_anew_is_refused_where_a_rule_runs_a_step_twice(ask):
    for learner in RERUN[: None if ask == "rng_uniform" else 1]:
        got = {"cond": "io_callback", "swap": "new_ref"}.get(ask, ask)
        with pytest.raises(NotImplementedError, match=f"model: expected a step .* got `{got}` at .*test_guarantees.py"):
            asking(learner, ANEW[ask])
    want = asking(se.BPTT(), lambda: 2.0)["weight"]
    np.testing.assert_allclose(asking(se.BPTT(), ANEW[ask])["weight"], want, rtol=1e-3)


def test_a_sum_over_devices_is_not_made_anew():
    model = Asking(se.MatMulOp().param(jax.random.key(0), 2, 3), lambda: 1 + 0 * jax.lax.psum(jnp.ones(()), "d"))
    init = jax.vmap(lambda h, x: se.D_RTRL().init(model, h, x).state, axis_name="d")
    assert init(jnp.zeros((4, 3)), jnp.ones((4, 2))).shape == (4, 3)


def test_a_pure_callback_and_a_print_are_run():
    def ask():
        jax.debug.print("asked")
        return jax.pure_callback(lambda: np.float32(2), ONE)

    np.testing.assert_allclose(asking(se.D_RTRL(), ask)["weight"], asking(se.BPTT(), lambda: 2.0)["weight"], rtol=1e-5)


@pytest.mark.parametrize("forward, names", [(unread_forward, "extra"), (cut_off_forward, "extra")])
@by_name
def test_a_leaf_that_the_rule_cuts_is_an_error(learner, forward, names):
    size = N if forward is unread_forward else 1
    case = rate_with(forward, extra=models.dense(np.random.default_rng(1), size, N))
    state = case.twin.state | {"lost" if forward is unread_forward else "side": jnp.zeros((2, N))}
    with pytest.raises(ValueError, match=rf"{names}.*would never get a gradient"):
        learner.init(case.model, state, case.xs[0])
    if forward is cut_off_forward:
        se.BPTT().init(case.model, state, case.xs[0])


@by_name
def test_one_leaf_of_a_parameter(learner):
    """The error names the leaf, not only the parameter."""
    case = rate_with(models.rate_forward)
    value = {"a": jnp.ones(N), "b": jnp.ones(N)}
    decay = se.ElemWiseParam(value, lambda w: jax.nn.sigmoid(w["a"]))

    def forward(op, h, held, x):
        new, out = models.rate_forward(op, h, held, x)
        return {"h": new["h"] * op("gain")}, out

    model = models.Net(case.model.params | {"gain": decay}, forward, (*case.model.calls, ("gain", "gain")))
    with pytest.raises(ValueError, match=r"gain.*'b'"):
        learner.init(model, case.twin.state, case.xs[0])


@by_name
def test_plain_arrays_that_reach_hidden_state_warn(learner):
    def forward(op, h, held, x):
        new = jax.nn.sigmoid(op("tau")) * h["h"] + jnp.tanh(op("inp", x) + op("rec", held["h"]))
        return {"h": new}, op("out", new)

    case = rate_with(forward, tau=models.plain(jnp.ones(N)))
    with pytest.warns(UserWarning, match=r"plain array .*tau.*same step.*ElemWiseParam"):
        start(learner, case)
    start(se.BPTT(), case)


# --- 2. positionwise dynamics ----------------------------------------------------------------------------------------

W = np.eye(N, k=1) + 0.5
MIXING = {
    "dot_general": lambda h: h @ W,
    "dot_general batch": lambda h: jnp.ones((2, 2)) @ h,
    "reduce_sum": lambda h: h - h.mean(-1, keepdims=True),
    "reduce_sum batch": lambda h: h - h.mean(0),
    "reduce_sum variance": lambda h: h * h.var(-1, keepdims=True),
    "concatenate": lambda h: jnp.roll(h, 1, axis=-1),
    "rev": lambda h: h[..., ::-1],
    "stack": lambda h: jnp.stack(jnp.unstack(h, axis=-1)[::-1], axis=-1),
    "cumsum": lambda h: jnp.cumsum(h, axis=-1),
    "sort": lambda h: jnp.sort(h, axis=-1),
    "gather": lambda h: h[..., np.array([1, 0, 3, 2])],
    "conv": lambda h: jax.vmap(lambda h: jnp.convolve(h, jnp.ones(3), "same"))(h),
    "scan": lambda h: jax.lax.scan(lambda c, _: (c + c.sum(-1, keepdims=True), None), h, None, length=2)[0],
    "softmax": lambda h: jax.nn.softmax(h),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused(name):
    mix = MIXING[name]

    def forward(op, h, held, x):
        new = 0.5 * mix(h["h"]) + jnp.tanh(op("inp", x) + op("rec", held["h"]))
        return {"h": new}, op("out", new)

    where = rf"`\w[\w-]*` at .*test_guarantees\.py:{mix.__code__.co_firstlineno}\b"
    with pytest.raises(ValueError, match=rf"'h'.* mixed across units or batch by {where}.*se\.cut.*BPTT"):
        start(se.D_RTRL(), rate_with(forward))
    start(se.BPTT(), rate_with(forward))


def test_mixing_of_outputs_is_refused():
    """One output of an op that drives several units."""

    def forward(op, h, held, x):
        y = op("inp", x) + op("rec", held["h"])
        new = 0.5 * h["h"] + jnp.tanh(y - y.mean(-1, keepdims=True))
        return {"h": new}, op("out", new)

    with pytest.raises(ValueError, match=r"drives several units of .*'h'.*`reduce_sum` at .*test_guarantees\.py"):
        start(se.D_RTRL(), rate_with(forward))


def test_an_input_without_batch_axes_is_refused():
    """One output would drive the unit of every batch element."""
    case = rate_with(models.rate_forward)
    with pytest.raises(ValueError, match=r"drives several units of .*'h'.*batch axes has to be broadcast"):
        se.D_RTRL().init(case.model, case.twin.state, case.xs[0, 0])


def test_variables_of_a_group_need_one_shape():
    def forward(op, h, held, x):
        new, _ = models.delay_buffer_forward(op, h, held, x)
        return new, op("out", h["line"][0])

    case = rate_with(forward)
    state = case.twin.state | {"line": jnp.zeros((3, 2, N))}
    with pytest.raises(ValueError, match=r"'h'.* of shape \(2, 4\) and .*'line'.* of shape \(3, 2, 4\).*one shape"):
        se.D_RTRL().init(case.model, state, case.xs[0])


PERMUTATION = np.array([2, 0, 3, 1])
POSITIONWISE = {
    "where": lambda h: jnp.where(h > h.mean(), h, 0.5 * h),
    "cond": lambda h: jax.lax.cond(h.sum() > 0, lambda h: h, lambda h: 0.7 * h, h),
    "reshape": lambda h: jnp.swapaxes(jnp.tanh(jnp.swapaxes(h.reshape(2, 2, N // 2), 1, 2)), 1, 2).reshape(2, N),
    "stack": lambda h: jnp.stack([h, jnp.sin(h), h * h], axis=0).sum(0),
    "concatenate": lambda h: jnp.add(*jnp.split(jnp.concatenate([h, jnp.cos(h)], axis=-1), 2, axis=-1)),
    "substeps": lambda h: jax.lax.scan(lambda c, _: (0.9 * c + 0.1 * jnp.sin(c), None), h, None, length=3)[0],
    "fori": lambda h: jax.lax.fori_loop(0, 3, lambda i, c: 0.9 * c + 0.1 * jnp.sin(c), h),
    "twice reversed": lambda h: jnp.sin(h[..., ::-1])[..., ::-1],
    "permuted and back": lambda h: jnp.sin(h[..., PERMUTATION])[..., np.argsort(PERMUTATION)],
    "vmap over units": lambda h: jax.vmap(jax.vmap(lambda a: jnp.where(a > 0, a, jnp.exp(a) - 1)))(h),
    "max with a constant": lambda h: jnp.maximum(h, 0.1) + jnp.clip(h, -0.5, 0.5),
    "einsum with a vector": lambda h: jnp.einsum("bi,i->bi", h, jnp.arange(1.0, N + 1)),
    "stopped mixing": lambda h: h * jax.lax.stop_gradient(jax.nn.softmax(h)),
    "at set": lambda h: h.at[..., 0].set(0.0).at[..., 2].add(1.0),
    "at multiply": lambda h: h.at[..., 1].multiply(2.0),
}


@pytest.mark.parametrize("name", POSITIONWISE)
def test_positionwise_is_allowed(name, x64):
    def forward(op, h, held, x):
        new = 0.5 * POSITIONWISE[name](h["h"]) + jnp.tanh(op("inp", x) + op("rec", held["h"]))
        return {"h": new}, op("out", new)

    start(se.D_RTRL(), rate_with(forward))


def test_positionwise_is_right(x64):
    """All of them at once, against the oracle."""

    def forward(op, h, held, x):
        new = 0.5 * h["h"] + jnp.tanh(op("inp", x) + op("rec", held["h"]))
        for k, fn in enumerate(POSITIONWISE.values()):
            new = 0.6 * new + 0.3 * fn(new if k % 2 else h["h"])
        return {"h": new}, op("out", jnp.tanh(new))

    case = rate_with(forward)
    expected = oracles.online(case.twin, case.xs[:4], case.ys[:4]).exact
    got = run(se.D_RTRL(), case, 3, steps=slice(4))[1]
    assert oracles.relative_error(got, total(expected)) < 1e-10


@pytest.mark.parametrize("name", ["scan", "while", "cond", "custom_vjp"])
def test_ops_in_control_flow_are_refused_in_words(name):
    ways = {
        "scan": lambda f, x: jax.lax.scan(lambda c, _: (c + f(x), None), f(x), None, length=2)[0],
        "while": lambda f, x: jax.lax.fori_loop(0, x.shape[0] + jnp.int32(x.sum()), lambda i, c: c + f(x), 0 * f(x)),
        "cond": lambda f, x: jax.lax.cond(x.sum() > 0, f, lambda x: 2 * f(x), x),
        "custom_vjp": _ruled,
    }

    def forward(op, h, held, x):
        new = 0.5 * h["h"] + jnp.tanh(ways[name](lambda x: op("inp", x), x) + op("rec", held["h"]))
        return {"h": new}, op("out", new)

    with pytest.raises(NotImplementedError, match=rf"inside `{name}\w*` at .*test_guarantees\.py.*outside"):
        start(se.D_RTRL(), rate_with(forward))


def _ruled(f, x):
    @jax.custom_vjp
    def call(x):
        return f(x)

    call.defvjp(lambda x: (call(x), None), lambda _, ct: (0.0 * x,))
    return call(x)


@pytest.mark.parametrize("source", ["state", "input"])
def test_weights_that_depend_on_state_are_refused(source):
    def forward(op, h, held, x):
        new, out = models.rate_forward(op, h, held, x)
        scale = h["h"].mean() if source == "state" else x.mean()
        weight = se.ETraceParam({"weight": scale * jnp.ones((N, 2))}, se.MatMulOp())
        return new, out + weight(new["h"])

    with pytest.raises(NotImplementedError, match=rf"weights .* of an op depend on the {source}.*test_guarantees\.py"):
        start(se.D_RTRL(), rate_with(forward))


def test_an_op_mapped_over_its_weights_is_refused():
    def forward(op, h, held, x):
        new, out = models.rate_forward(op, h, held, x)
        params = se.ETraceParam({"weight": op("several")}, se.MatMulOp())
        return new, out + jax.vmap(lambda p: p(new["h"]))(params).sum(0)

    case = rate_with(forward, several=models.plain(jnp.ones((3, N, 2))))
    with pytest.raises(NotImplementedError, match=r"mapped by vmap over its weights at .*test_guarantees\.py"):
        start(se.D_RTRL(), case)


# --- 3. no dense array -----------------------------------------------------------------------------------------------

UNITS, SYNAPSES = 400, 800


def big(forward, names, variables, batch=2):
    rng = np.random.default_rng(0)

    def layer(pre, post, size, **rest):
        j, i = rng.integers(pre, size=size), rng.integers(post, size=size)
        op = se.SpMatMulOp(se.Connectivity.from_edges(j, i, shape=(pre, post)))
        return models.Part({"weight": models.array(rng, size)} | rest, op)

    parts = {
        "inp": layer(models.INPUTS, UNITS, SYNAPSES, bias=jnp.zeros(UNITS)),
        "rec": layer(UNITS, UNITS, SYNAPSES),
        "out": layer(UNITS, models.OUTPUTS, SYNAPSES),
    }
    state = {name: jnp.zeros((batch, UNITS)) for name in names}
    return models.make(rng, forward, parts, state, {}, batch=(batch,), steps=32), variables


def inside_scans(jaxpr, inside=False):
    """Every array that arises inside a scan, whatever it is nested in."""
    for eqn in jaxpr.eqns:
        if inside:
            yield from ((var.aval, eqn) for var in eqn.outvars)
        for inner in sub_jaxprs(eqn):
            yield from inside_scans(inner, inside or eqn.primitive.name == "scan")


ARRAYS = [(learner, kind, chunk) for learner in TRACED for kind in ("rate", "alif") for chunk in (1, 16)]


@pytest.mark.parametrize("learner, kind, chunk", few(ARRAYS, [ARRAYS[k] for k in (0, 3, 5, 6, 11)]), ids=str)
def test_no_dense_array(learner, kind, chunk):
    forward, names = (models.rate_forward, "h") if kind == "rate" else (models.alif_v_forward, "vbz")
    case, variables = big(forward, names, 1 if kind == "rate" else 2)
    carry, batch = start(learner, case), case.xs.shape[1]

    def grad(model, carry, xs, ys):
        return se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys, chunk=chunk)

    jaxpr = jax.make_jaxpr(grad)(case.model, carry, case.xs, case.ys)
    limit = (4 * variables + 2 * chunk) * (SYNAPSES + 2 * UNITS)
    assert limit < UNITS**2 or kind == "alif"
    sizes = [(aval.size, eqn) for aval, eqn in inside_scans(jaxpr.jaxpr) if hasattr(aval, "shape")]
    assert len(sizes) > 100
    size, eqn = max(sizes, key=lambda found: found[0])
    assert size <= batch * limit, eqn
    assert size < batch * UNITS**2, eqn


# --- 4. memory and time ----------------------------------------------------------------------------------------------


def working_memory(learner, steps):
    case, _ = big(models.rate_forward, "h", 1, batch=1)
    xs, ys = jnp.zeros((steps, 1, models.INPUTS)), jnp.zeros((steps, 1, models.OUTPUTS))
    carry = start(learner, case)

    def grad(model, carry, xs, ys):
        return se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys)

    compiled = jax.jit(grad).lower(case.model, carry, xs, ys).compile()
    return compiled.memory_analysis().temp_size_in_bytes, xs.nbytes + ys.nbytes


@pytest.mark.optimized
@pytest.mark.parametrize("learner", few(TRACED, TRACED[2:]), ids=lambda learner: type(learner).__name__)
def test_memory_does_not_grow_with_time(learner):
    """Besides a copy of the data cut into windows, and the losses."""
    short, _ = working_memory(learner, 112)
    long, data = working_memory(learner, 10_000)
    assert long - short < 2.5 * data
    state = 10_000 * UNITS * 4
    assert long - short < state / 10


@pytest.mark.optimized
def test_memory_of_bptt_does():
    short, _ = working_memory(se.BPTT(), 112)
    long, _ = working_memory(se.BPTT(), 10_000)
    assert long - short > 9_000 * UNITS * 4


# --- 5. same bits ----------------------------------------------------------------------------------------------------


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.optimized
@pytest.mark.parametrize("learner", few(EVERY, TRACED[2:]), ids=lambda learner: type(learner).__name__)
def test_interrupted_and_resumed(learner):
    case = models.build("clock")
    case = case._replace(twin=case.twin._replace(state=case.twin.state | {"key": jax.random.PRNGKey(3)}))
    steps = slice(0, 4), slice(4, None)
    first = run(learner, case, 2, steps=steps[0])
    assert bits(run(learner, case, 2, steps=steps[0])) == bits(first)
    expected = run(learner, case, 2, first[-1], steps[1])

    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, first[-1])
    file.seek(0)
    resumed = eqx.tree_deserialise_leaves(file, start(learner, case))
    assert bits(resumed) == bits(first[-1])
    assert bits(run(learner, case, 2, resumed, steps[1])) == bits(expected)


@pytest.mark.optimized
@pytest.mark.parametrize("learner", few(TRACED, TRACED[2:]), ids=lambda learner: type(learner).__name__)
def test_one_call_or_several(learner):
    """Calls that end where a window ends leave state and traces bit for bit as one call does."""
    case = models.build("alif_v")
    _, _, whole = run(learner, case, 2, steps=slice(6))
    _, _, carry = run(learner, case, 2, steps=slice(4))
    assert bits(run(learner, case, 2, carry, slice(4, 6))[2]) == bits(whole)
