"""Rules that change the learning signal or the trace of D-RTRL: against oracles by hand, and where they coincide."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from models import INPUTS, OUTPUTS, A, N, reference, run, run_by_step, start, total
from soak import few

import sparse_etrace as se

TOLERANCE = 1e-10
KAPPA, RATE = 0.6, (0.7, 0.2)
float64 = pytest.mark.usefixtures("x64")

# --- models: `op.leaf` marks the value that is taught -----------------------------------------------------------------


class _Library(models._Library):
    def leaf(self, value):
        return value


class Net(models.Net):
    def __call__(self, state, x):
        return self.forward(_Library(self.params, dict(self.calls)), state, state, x)


def rate_forward(op, h, held, x):
    new = op.leaf(A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["h"])))
    return {"h": new}, op("out", new)


def decay_forward(op, h, held, x):
    """The readout sees the leaf, its old value, and the drive itself; an offset is a plain array."""
    a = op("decay")
    new = a * h["h"] + (1 - a) * jnp.tanh(op("inp", x) + op("rec", held["h"]) + op("drive"))
    return {"h": new}, op("out", op.leaf(new) + 0.3 * h["h"] + 0.1 * op("drive")) + op("offset")


def lif_forward(op, h, held, x):
    u = A * h["v"] + (1 - A) * (op("inp", x) + op("rec", held["z"]))
    z = models.spike(u - 1)
    return {"v": u - z, "z": z}, op("out", op.leaf(z))


def alif_forward(op, h, held, x):
    u = A * h["v"] + (1 - A) * (op("inp", x) + op("rec", held["z"]))
    z = models.spike(u - 1 - h["b"])
    return {"v": u - z, "b": 0.98 * h["b"] + 0.02 * z, "z": z}, op("out", op.leaf(z))


def gain_forward(op, h, held, x):
    """An op and a whole group act on the leaf only; nothing reads its old value but the recurrence."""
    v = A * h["v"] + (1 - A) * jnp.tanh(op("inp", x))
    w = 0.5 * h["w"] + op("rec", held["z"])
    z = jnp.tanh(v * w + op("side", x))
    return {"v": v, "w": w, "z": z}, op("out", op.leaf(z))


def memoryless_forward(op, h, held, x):
    """The leaf is its own whole group."""
    z = jnp.tanh(op("inp", x) + op("rec", held["z"]))
    return {"z": z}, op("out", op.leaf(z))


def conv_forward(op, h, held, x):
    new = op.leaf(A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["h"])))
    return {"h": new}, op("out", new.reshape(*x.shape[:1], -1))


def lower_forward(op, h, held, x):
    """The taught layer lies below another one."""
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    seen = op.leaf(a)
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", seen) + op("rec2", held["b"]))
    return {"a": a, "b": b}, op("out", b)


def upper_forward(op, h, held, x):
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = op.leaf(A * h["b"] + (1 - A) * jnp.tanh(op("between", a) + op("rec2", held["b"])))
    return {"a": a, "b": b}, op("out", b)


def _cell(kind):
    def model(p):
        cell = kind(N, p["inp"], p["rec"], decay=A, spike=models.spike)
        return models.CellNet(cell, p["out"], type(cell.init_state()))

    return model


def _layer(rng, **rest):
    return models._layer(rng, **rest) | {"out": models.dense(rng, N, OUTPUTS)}


def build(kind, learned=False, batch=(2,)):
    """The case, the name of the leaf, and the op calls traced into its group."""
    rng = np.random.default_rng([7, *kind.encode()])
    parts, own, leaf, names, rest = _layer(rng), ("inp", "rec"), "h", ("h",), {"batch": batch}
    forward = {"lif_cell": lif_forward, "alif_cell": alif_forward}.get(kind) or globals()[f"{kind}_forward"]
    groups, traced = ("h",), {}
    if kind == "decay":
        parts |= {"decay": models.elemwise(models.array(rng, N), jax.nn.sigmoid)}
        parts |= {"drive": models.elemwise(models.array(rng, N)), "offset": models.plain(models.array(rng, OUTPUTS))}
        own = ("inp", "rec", "decay", "drive")
    elif "lif" in kind:
        parts = _layer(rng, scale=3.0)
        leaf, names, groups = "z", ("v", "b", "z") if "alif" in kind else ("v", "z"), ("v", "b")
        if "cell" in kind:
            rest["model"] = _cell(se.cells.ALIF if "alif" in kind else se.cells.LIF)
    elif kind == "gain":
        parts |= {"side": models.dense(rng, INPUTS, N)}
        leaf, names, own, traced = "z", ("v", "w", "z"), ("inp", "rec", "side"), {"inp": ("v",), "rec": ("w",)}
    elif kind == "memoryless":
        leaf, names = "z", ("z",)
    elif kind == "conv":
        parts = {
            "inp": models.conv(rng, (6,), 2, 4, (3,), (2,), ((1, 1),)),
            "rec": models.conv(rng, (3,), 4, 4, (3,), (1,), ((1, 1),), groups=2, bias=False),
            "out": models.dense(rng, 12, OUTPUTS),
        }
        rest |= {"x": (6, 2), "steps": 5}
    elif kind in ("lower", "upper"):
        parts |= {"between": models.dense(rng, N, N), "rec2": models.sparse(rng, N, N, bias=False)}
        leaf, names = ("a", ("a", "b")) if kind == "lower" else ("b", ("a", "b"))
        own = ("inp", "rec") if kind == "lower" else ("between", "rec2")
        traced = dict.fromkeys(("inp", "rec"), ("a",)) | dict.fromkeys(("between", "rec2"), ("b",))
    if learned:
        parts |= {"B": models.plain(models.array(rng, OUTPUTS, N))}
    calls = {name: name for name, p in parts.items() if p.op is not None}
    if "model" not in rest:
        rest["model"] = lambda params: Net(params, forward, tuple(calls.items()))
    shape = (3, 4) if kind == "conv" else (N,)
    state = models._state(rng, batch, *names, shape=shape)
    return models.make(rng, forward, parts, state, traced or dict.fromkeys(own, groups), calls, **rest), leaf, own


# --- the oracle -------------------------------------------------------------------------------------------------------


class _Ops(oracles._Ops):
    """`held_leaf` stands in for the leaf where it is read for the output."""

    held_leaf = None

    def leaf(self, value):
        self.value = value
        return value if self.held_leaf is None else self.held_leaf


def oracle(case, own, how, b=None, kappa=None, rate=(0.0, 0.0), wrong=None):
    """`(state, xs, ys) -> losses, gradients of each step by name`: dense traces, filtered, times `l`.

    own: op calls traced into the group of the leaf. how: "own", "loss", or "b" for `l = B dL/dout`.
    """
    twin = case.twin
    v, plain = oracles._weights(twin, twin.values), oracles._plain(twin, twin.values)
    gain = 1.0 if kappa is None or how == "own" else 1 - kappa
    kappa = 0.0 if kappa is None else kappa
    memory = 0.0 if wrong == "no filter" else kappa

    def ops(delta=None, given=None, plain=plain, leaf=None):
        found = _Ops(twin, v, {**twin.values, **plain}, given=given, delta=delta)
        found.held_leaf = leaf
        return found

    @jax.jit
    def step(state, eps, bar, q, count, x, target):
        h, unpack = oracles._pack(state)
        seen = ops()
        new, out = twin.forward(seen, state, state, x)
        delta, z = {c: jnp.zeros_like(y) for c, y in seen.y.items()}, seen.value

        def loss(h, delta, plain, z):
            out = twin.forward(ops(delta, plain=plain, leaf=z), unpack(h), state, x)[1]
            return oracles.loss_fn(out, target)

        def leaf(h, delta, plain):
            found = ops(delta, plain=plain)
            twin.forward(found, unpack(h), state, x)
            return found.value

        def op_free(h, y):
            found = ops(given=y)
            new = twin.forward(found, unpack(h), unpack(h), x)[0]
            return oracles._pack(new)[0], found.value.ravel()

        value, (m, n, by_plain, signal) = jax.value_and_grad(loss, (0, 1, 2, 3))(h, delta, plain, z)
        by_out = jax.grad(oracles.loss_fn)(out, target)
        if how == "b":
            signal = jnp.tensordot(by_out, b, b.ndim - (z.ndim - 1))
        elif how == "loss":
            signal = jnp.full(z.shape, value)
        by_leaf = jax.vjp(leaf, h, delta, plain)[1](gain * signal)
        by_plain = jax.tree.map(jnp.add, by_plain, by_leaf[2])
        (d, f), (row_h, row_y) = jax.jacobian(op_free, (0, 1))(h, seen.y)
        dydv = {
            c: jax.jacobian(lambda v, c=c, w=w: twin.ops[w].apply(seen.x[c], v))(v[c]) for c, w in twin.calls.items()
        }
        dv, later, later_bar, later_q = {}, {}, {}, {}

        def dot(a, b, axes=1):
            return jax.tree.map(lambda leaf: jnp.tensordot(a, leaf, axes), b)

        add = functools.partial(jax.tree.map, lambda *parts: sum(parts))
        for c in twin.calls:
            dv[c] = dot(n[c], dydv[c], n[c].ndim)
            e = eps.get(c)
            if c in twin.traced or c in own:
                dv[c] = add(dv[c], dot(m, e))
                later[c] = add(dot(d, e), dot(f[c], dydv[c], n[c].ndim))
            if c not in own:
                dv[c] = add(dv[c], dot(by_leaf[1][c], dydv[c], n[c].ndim))
                if c in twin.traced:
                    dv[c] = add(dv[c], dot(by_leaf[0], e))
                continue
            now = add(dot(row_h, e), dot(row_y[c], dydv[c], n[c].ndim))
            if wrong == "no trace":
                now = dot(row_y[c], dydv[c], n[c].ndim)
            later_bar[c] = jax.tree.map(lambda old, new: memory * old + gain * new, bar[c], now)
            later_q[c] = add(q[c], now)
            dv[c] = add(dv[c], dot(signal.ravel(), later_bar[c]))

        mean, steps = count

        def slope(total, steps):
            return jnp.where(steps > 0, rate[0] * (total / jnp.maximum(steps, 1) - rate[1]) / jnp.maximum(steps, 1), 0)

        total = mean + z.ravel()
        if wrong != "no rate":
            for c in own:
                old, new_q = dot(slope(mean, steps), q[c]), dot(slope(total, steps + 1), later_q[c])
                dv[c] = jax.tree.map(lambda g, new, old: g + new - old, dv[c], new_q, old)
        grads = oracles._to_values(twin, twin.values, dv, by_plain)
        return value, grads, (new, later, later_bar, later_q, (total, steps + 1)), by_out, z

    def probe(state, x):
        seen = ops()
        twin.forward(seen, state, state, x)
        return oracles._pack(state)[0], seen.value

    sizes = [a.size for a in jax.eval_shape(probe, twin.state, case.xs[0])]
    zeros = lambda count, calls: {c: jax.tree.map(lambda a: np.zeros((count, *a.shape)), v[c]) for c in calls}

    def run(state, xs, ys):
        traces = zeros(sizes[0], set(twin.traced) | set(own)), zeros(sizes[1], own), zeros(sizes[1], own)
        carry = (state, *traces, (np.zeros(sizes[1]), 0))
        losses, grads, filtered = [], [], 0.0
        for x, y in zip(xs, ys):
            value, g, carry, by_out, z = step(*carry, x, y)
            filtered = kappa * filtered + (1 - kappa) * np.asarray(z) if kappa else z
            if "B" in g:
                g["B"] = np.einsum("bo,bh->oh", by_out, filtered)
            losses.append(value)
            grads.append(g)
        return np.stack(losses), jax.tree.map(lambda *g: np.stack(g), *grads)

    return run


def taught(case, *args, **options):
    return oracle(case, *args, **options)(case.twin.state, case.xs, case.ys)


def feedback_of(case, leaf):
    rng = np.random.default_rng(5)
    return models.array(rng, OUTPUTS, *case.twin.state[leaf].shape[1:])


def by_gradient_of_step(learner, case):
    """Gradients of each step from `equinox.filter_grad` of `step`."""

    @eqx.filter_jit
    @functools.partial(eqx.filter_value_and_grad, has_aux=True)
    def loss(model, carry, x, y):
        carry, out = learner.step(model, carry, x)
        return oracles.loss_fn(out, y), carry

    carry, grads = start(learner, case), []
    for x, y in zip(np.asarray(case.xs), np.asarray(case.ys), strict=True):
        (_, carry), g = loss(case.model, carry, x, y)
        grads.append(case.read(g))
    return jax.tree.map(lambda *g: np.stack(g), *grads)


def check(learner, case, expected, ways=("window",)):
    """Step by step in split calls; in windows with a rest, in two calls of one program; as the gradient of `step`."""
    losses, grads = expected
    assert oracles.nonzero(grads)
    got_losses, got = run_by_step(learner, case)
    assert oracles.relative_error(got_losses, losses) < TOLERANCE
    assert oracles.relative_error_by_step(got, grads) < TOLERANCE
    if "window" in ways:
        half = len(case.xs) // 2
        _, first, carry = run(learner, case, 2, steps=slice(half))
        _, second, _ = run(learner, case, 2, carry, steps=slice(half, 2 * half))
        expected = jax.tree.map(lambda g: np.sum(g[: 2 * half], 0), grads)
        assert oracles.relative_error(jax.tree.map(np.add, first, second), expected) < TOLERANCE
    if "step" in ways:
        assert oracles.relative_error_by_step(by_gradient_of_step(learner, case), grads) < TOLERANCE


# --- e-prop -----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "kappa": {"kappa": KAPPA},
    "b": {"b": True},
    "b kappa": {"b": True, "kappa": KAPPA},
    "rate": {"rate": RATE},
    "all": {"b": True, "kappa": KAPPA, "rate": RATE},
}
EVERYTHING = [("rate", "b"), ("lif", "kappa"), ("decay", "rate")] + [
    (kind, "all") for kind in ("rate", "decay", "lif_cell", "alif_cell", "gain", "memoryless", "conv", "lower", "upper")
]


@functools.cache
def e_prop(kind, option):
    """Case, learner and what the oracle says, in float64."""
    with jax.enable_x64(True):
        case, leaf, own = build(kind)
        given = dict(OPTIONS[option])
        b = feedback_of(case, leaf) if given.pop("b", False) else None
        expected = taught(case, own, "own" if b is None else "b", b, **given)
        strength, target = given.get("rate", (0.0, 0.0))
        feedback = "symmetric" if b is None else b
        learner = se.EProp(leaf, feedback, None, given.get("kappa"), strength, target)
        return case, learner, expected


# Both feedbacks, filter and rate; one variable and two; ops with and without index arrays; two layers.
SOME = [("decay", "rate"), ("alif_cell", "all"), ("lower", "all")]


@pytest.mark.parametrize("kind, option", few(EVERYTHING, SOME))
@float64
def test_e_prop(kind, option):
    case, learner, expected = e_prop(kind, option)
    check(learner, case, expected, ("window", "step") if kind == "decay" else ("window",))


@pytest.mark.parametrize("wrong", ["no trace", "no filter", "no rate"])
@float64
def test_a_wrong_rule_is_seen(wrong):
    case, learner, (_, right) = e_prop("alif_cell", "all")
    _, leaf, own = build("alif_cell")
    mistaken = taught(case, own, "b", feedback_of(case, leaf), KAPPA, RATE, wrong)[1]
    assert oracles.relative_error(mistaken["rec"], right["rec"]) > 1e-3
    assert oracles.relative_error(run_by_step(learner, case)[1]["rec"], mistaken["rec"]) > 1e-3


@pytest.mark.parametrize("batch", few([((),), ((2, 3),)], [((2, 3),)]), ids=str)
@float64
def test_batch_axes(batch):
    """One more or less, the leaf and `out` flattened for the oracle, which counts one."""
    case, leaf, own = build("lif", batch=(6,))
    b = feedback_of(case, leaf)
    learner = se.EProp(leaf, b, kappa=KAPPA, rate_strength=RATE[0], rate_target=RATE[1])

    def part(tree, where):
        return jax.tree.map(lambda a: a[where].reshape(*batch, *a.shape[1:]) if batch else a[where][0], tree)

    parts = [slice(i, i + 1) for i in range(6)] if not batch else [slice(None)]
    shape = lambda a, where: jax.vmap(lambda a: part(a, where))(a)
    found = [
        run(
            learner,
            case._replace(
                twin=case.twin._replace(state=part(case.twin.state, w)), xs=shape(case.xs, w), ys=shape(case.ys, w)
            ),
            3,
        )[1]
        for w in parts
    ]
    expected = total(taught(case, own, "b", b, KAPPA, RATE)[1])
    assert oracles.relative_error(jax.tree.map(lambda *g: sum(g), *found), expected) < TOLERANCE


@pytest.mark.parametrize("kappa", few([None, KAPPA], [KAPPA]))
@float64
def test_learned_feedback(kappa):
    """B gets the gradient of the readout, transposed, also through a function of the model."""
    case, leaf, own = build("lif", learned=True)
    learner = se.EProp(leaf, lambda model: jnp.sin(model.params["B"]), kappa=kappa)
    b = case.twin.values["B"]
    losses, grads = taught(case, own, "b", jnp.sin(b), kappa)
    check(learner, case, (losses, {**grads, "B": grads["B"] * jnp.cos(b)}))
    if kappa is None:
        assert oracles.relative_error(grads["B"], grads["out"]["weight"].mT) < TOLERANCE


@float64
def test_feedback_through_weights_in_use_does_not_train_them():
    case, expected = reference("lif")
    learner = se.EProp("z", lambda model: model.params["out"].value["weight"].T)
    assert oracles.relative_error(run(learner, case, 3)[1], total(expected.exact)) < TOLERANCE


@float64
def test_random_feedback():
    case, leaf, own = build("rate")
    key = jax.random.key(3)
    learner = se.EProp(leaf, "random", key)
    b = jax.random.normal(key, (OUTPUTS, N)) / np.sqrt(N)
    check(learner, case, taught(case, own, "b", b), ())


@float64
def test_rates_of_another_leaf():
    """The regulariser alone: what it adds is the same, wherever the learning signal acts."""
    case, expected = reference("alif_v")
    learners = [se.EProp(leaf, rate_strength=RATE[0], rate_target=RATE[1], rate_leaf="z") for leaf in "zb"]
    parts = [jax.tree.map(jnp.subtract, run(learner, case, 3)[1], total(expected.exact)) for learner in learners]
    assert oracles.relative_error(parts[1]["inp"], parts[0]["inp"]) < TOLERANCE
    assert np.abs(parts[0]["inp"]["weight"]).max() > 1e-3 and np.abs(parts[0]["out"]["weight"]).max() < TOLERANCE


def slow_forward(op, h, held, x):
    """Behind the unit two filters that nothing reads."""
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x))
    return {"h": new, "c": 0.9 * h["c"] + new, "d": 0.8 * h["d"] + h["c"]}, op("out", new)


@pytest.mark.parametrize("leaf", few(["h", "d"], ["d"]))
@float64
def test_rate_regularisation_is_the_gradient_of_a_penalty(leaf):
    """Of strength / 2 (mean - target)^2, for units without recurrence."""
    rng, (strength, target) = np.random.default_rng(0), RATE
    parts = {"inp": models.dense(rng, INPUTS, N), "out": models.dense(rng, N, OUTPUTS)}
    case = models.make(rng, slow_forward, parts, models._state(rng, (2,), "h", "c", "d"), {"inp": ("h",)})

    def penalty(model):
        state, seen = case.twin.state, []
        for x in case.xs:
            state, _ = model(state, x)
            seen.append(state[leaf])
        return 0.5 * strength * jnp.sum((jnp.mean(jnp.stack(seen), 0) - target) ** 2)

    expected = case.read(eqx.filter_grad(penalty)(case.model))["inp"]
    rate = {"rate_strength": strength, "rate_target": target, "rate_leaf": leaf}
    _, grads, _ = run(se.EProp("h", **rate), case, 3)
    got = jax.tree.map(jnp.subtract, grads, oracles.bptt(case.twin, case.xs, case.ys))["inp"]
    assert oracles.relative_error(got, expected) < TOLERANCE


@float64
def test_reset_of_some_batch_elements():
    """Element 1 of two starts again after three steps, so it is as if it had been two sequences."""
    case, learner, _ = e_prop("lif_cell", "all")
    _, leaf, own = build("lif_cell")

    first = jax.tree.map(lambda s: s[:1], case.twin.state)
    one = case._replace(twin=case.twin._replace(state=first), xs=case.xs[:, :1])
    rule = oracle(one, own, "b", feedback_of(case, leaf), KAPPA, RATE)

    def element(b, steps):
        state = jax.tree.map(lambda s: s[b : b + 1], case.twin.state)
        return total(rule(state, case.xs[steps, b : b + 1], case.ys[steps, b : b + 1])[1])

    parts = element(0, slice(None)), element(1, slice(3)), element(1, slice(3, None))
    expected = jax.tree.map(lambda *g: sum(g), *parts)
    _, before, carry = run(learner, case, 4, steps=slice(3))
    carry = learner.reset(carry, jnp.array([False, True]), case.twin.state)
    _, after, _ = run(learner, case, 4, carry, slice(3, None))
    assert oracles.relative_error(jax.tree.map(np.add, before, after), expected) < TOLERANCE


@pytest.mark.parametrize(
    "kind, count", [("lif_cell", 3), ("alif_cell", 4), ("rate", 3), ("memoryless", 2), ("gain", 4)]
)
def test_traces_that_are_kept(kind, count):
    """One for each hidden variable that acts on the next step, one for the filter, one for the rate."""
    case, leaf, _ = build(kind)
    learner = se.EProp(leaf, kappa=KAPPA, rate_strength=1.0)
    shapes = {leaf.shape[0] for leaf in jax.tree.leaves([trace.full for trace in start(learner, case).traces.values()])}
    assert shapes == {count}


@pytest.mark.parametrize("dtype", few([None, jnp.bfloat16], [jnp.bfloat16]))
def test_types(dtype):
    case, leaf, _ = build("alif_cell")
    given = {"feedback": "random", "key": jax.random.key(0), "kappa": KAPPA, "rate_strength": 0.1}
    _, expected, _ = run(se.EProp(leaf, **given), case)
    losses, grads, carry = run(se.EProp(leaf, **given, trace_dtype=dtype), case, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves((losses, grads))} == {jnp.dtype("float32")}
    kept = {leaf.dtype for leaf in jax.tree.leaves(carry.traces) if jnp.issubdtype(leaf.dtype, jnp.floating)}
    assert kept == {jnp.dtype(dtype or "float32")}
    assert oracles.relative_error(grads, expected) < (1e-5 if dtype is None else 0.05)


def test_a_second_call_does_not_compile():
    traced = []

    def forward(op, h, held, x):
        traced.append(1)
        return models.rate_forward(op, h, held, x)

    case = models.rate(np.random.default_rng(0), forward=forward)
    made = [se.EProp("h", "random", jax.random.key(seed), kappa=KAPPA) for seed in (0, 1)]
    _, _, carry = run(made[0], case)
    carry, _ = made[0].step(case.model, carry, case.xs[0])
    before = len(traced)
    _, _, carry = run(made[1], case._replace(xs=case.xs + 1), carry=carry)
    made[1].step(case.model, carry, case.xs[0])
    assert len(traced) == before


# --- where rules coincide ---------------------------------------------------------------------------------------------


SYMMETRIC = [("alif_v", "z"), ("two_lif", "z2"), ("delay_chain", "b")]


@pytest.mark.parametrize("kind, leaf", few(SYMMETRIC, SYMMETRIC[1:2]))
@float64
def test_symmetric_e_prop_is_d_rtrl(kind, leaf):
    case, expected = reference(kind)
    assert oracles.relative_error(run(se.EProp(leaf), case, 3)[1], total(expected.exact)) < TOLERANCE


class Filtered(eqx.Module):
    """Two layers of spiking units and a filtered readout: the filter is a unit, or the readout itself remembers."""

    params: dict
    is_unit: bool = eqx.field(static=True)

    def __call__(self, state, x):
        p, reset = self.params, jax.lax.stop_gradient
        u = A * state["v"] + (1 - A) * (p["inp"](x) + p["rec"](state["z"]))
        z = models.spike(u - 1)
        u2 = A * state["v2"] + (1 - A) * (p["between"](z) + p["rec2"](state["z2"]))
        z2 = models.spike(u2 - 0.2)
        new = {"v": u - reset(z), "z": z, "v2": u2 - reset(z2), "z2": z2}
        if self.is_unit:
            s = KAPPA * state["s"] + (1 - KAPPA) * z2
            return {**new, "s": s}, p["out"](s)
        y = KAPPA * state["s"] + (1 - KAPPA) * p["out"](z2)
        return {**new, "s": y}, y


@pytest.mark.parametrize("symmetric", few([True, False], [False]))
@float64
def test_a_filter_on_the_trace_is_a_filter_in_the_model(symmetric):
    rng = np.random.default_rng(2)
    case = models.build("two_lif")
    parts = models._layer(rng, scale=3.0) | {"out": models.dense(rng, N, OUTPUTS, bias=False)}
    parts |= {"between": models.dense(rng, N, N, scale=3.0), "rec2": models.sparse(rng, N, N, bias=False)}
    params = {name: part.param() for name, part in parts.items()}
    b = feedback_of(case, "z")
    unit = se.D_RTRL() if symmetric else se.EProp("s", b)
    trace = se.EProp("z2", "symmetric" if symmetric else b, kappa=KAPPA)
    grads = []
    for learner, is_unit, shape in (unit, True, N), (trace, False, OUTPUTS):
        model, state = Filtered(params, is_unit), case.twin.state | {"s": jnp.zeros((2, shape))}
        carry = learner.init(model, state, case.xs[0])
        losses, grad, _ = se.online_grad(learner, oracles.loss_fn, model, carry, case.xs, case.ys, chunk=3)
        grads.append((losses, grad.params))
    expected, got = ([g[0], {k: p.value for k, p in g[1].items()}] for g in grads)
    assert oracles.nonzero(expected)
    assert oracles.relative_error(got, expected) < TOLERANCE


@pytest.mark.parametrize("kind, leaf", [("rate", "h"), ("conv_1d", "h")])
@float64
def test_rflo_with_the_readout_transposed_is_d_rtrl(kind, leaf):
    case, expected = reference(kind)
    shape = case.twin.state[leaf].shape[1:]
    b = case.twin.values["out"]["weight"].T.reshape(OUTPUTS, *shape)
    _, grads = run_by_step(se.RFLO(leaf, b), case)
    assert oracles.relative_error_by_step(grads, expected.exact) < TOLERANCE


@float64
def test_rflo():
    case, leaf, own = build("rate")
    b = jax.random.normal(jax.random.key(1), (OUTPUTS, N)) / np.sqrt(N)
    check(se.RFLO(leaf, key=jax.random.key(1)), case, taught(case, own, "b", b))


TIMELY = ["alif_v", "fused_gru", "two_lif", "feedback", "two_groups", "old_readout"]


@pytest.mark.parametrize("kind", few(TIMELY, ["two_lif", "old_readout"]))
@float64
def test_ostl_without_late_reads_is_d_rtrl(kind):
    case, expected = reference(kind)
    assert oracles.relative_error_by_step(run_by_step(se.OSTL(), case)[1], expected.exact) < TOLERANCE


def late_held(op, h, held, x):
    """`models.late_forward` with all that is old held."""
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", held["a"]) + op("rec2", held["b"]))
    return {"a": a, "b": b}, op("out", b)


def three_held(op, h, held, x):
    """`models.three_forward` with what is read late held, and what the step has made of it not."""
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", a) + op("late", held["a"]))
    c = A * h["c"] + (1 - A) * jnp.tanh(op("top", b) + op("top_both", a * held["b"]))
    return {"a": a, "b": b, "c": c}, op("out", c)


def unstored(op, h, held, x):
    """The second layer reads of the first what is no state itself: a new value, times an old one that both use."""
    seen = jnp.sin(h["a"])
    u = 0.5 * seen + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", jnp.cos(u) * seen) + op("rec2", held["b"]))
    return {"a": 0.9 * u, "b": b}, op("out", b)


def unstored_held(op, h, held, x):
    u = 0.5 * jnp.sin(h["a"]) + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", jnp.cos(u) * jnp.sin(held["a"])) + op("rec2", held["b"]))
    return {"a": 0.9 * u, "b": b}, op("out", b)


LATE = [("late", late_held), ("three", three_held), ("unstored", unstored_held)]


@pytest.mark.parametrize("kind, forward", few(LATE, [LATE[0], LATE[2]]))
@float64
def test_ostl_drops_late_reads(kind, forward):
    if kind == "unstored":
        case = models.layers(np.random.default_rng(3), unstored, ("a",), ("b",))
        d_rtrl = oracles.online(case.twin, case.xs, case.ys)
    else:
        case, d_rtrl = reference(kind)
    expected = oracles.online(case.twin._replace(forward=forward), case.xs, case.ys).exact
    dead = ("inp", "rec") if kind == "late" else ()
    if dead:
        with pytest.raises(ValueError, match=r"params\['inp'\].* would never get a gradient"):
            start(se.OSTL(), case)
    learner = se.OSTL(allow_zero=tuple(f"params['{name}']" for name in dead))
    _, grads = run_by_step(learner, case)
    for name in grads:
        if name in dead:
            assert not any(np.any(g) for g in jax.tree.leaves(grads[name]))
        else:
            assert oracles.relative_error_by_step(grads[name], expected[name]) < TOLERANCE
    assert oracles.relative_error(d_rtrl.exact["inp"], expected["inp"]) > 0.01


# --- three factors, and the input alone -------------------------------------------------------------------------------


THREE = [("lif", None), ("alif_cell", KAPPA), ("upper", KAPPA)]


@pytest.mark.parametrize("kind, kappa", few(THREE, [("upper", KAPPA)]))
@float64
def test_three_factor(kind, kappa):
    case, leaf, own = build(kind)
    check(se.ThreeFactor(leaf, kappa), case, taught(case, own, "loss", None, kappa))


def test_three_factor_needs_the_loss():
    case, leaf, _ = build("lif")
    learner = se.ThreeFactor(leaf)
    carry, _ = learner.step(case.model, start(learner, case), case.xs[0])
    with pytest.raises(NotImplementedError, match="the gradient of `step` does not know .* Use se.online_grad"):
        by_gradient_of_step(learner, case._replace(xs=case.xs[:1], ys=case.ys[:1]))


@functools.cache
def ottt(kind, decay=0.8):
    """By its formula; exact where a weight is a unit's own."""
    with jax.enable_x64(True):
        case, exact = reference(kind)
        twin = case.twin

        def step(carry, now):
            state, xhat = carry
            s, dv = oracles.linearise(twin, twin.values, state, *now), {}
            for c, w in twin.calls.items():
                v = twin.ops[w].phi(twin.values[w])
                traced = c in twin.traced and twin.ops[w].takes_input
                x = xhat[c] = decay * xhat[c] + s.x[c] if traced else s.x[c]
                dv[c] = jax.vjp(lambda v, x=x, w=w: twin.ops[w].apply(x, v), v)[1](s.n[c])[0]
            return (s.state, xhat), oracles._to_values(twin, twin.values, dv, s.plain)

        inputs = jax.eval_shape(
            lambda x, y: oracles.linearise(twin, twin.values, twin.state, x, y).x, case.xs[0], case.ys[0]
        )
        start = twin.state, jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), inputs)
        grads = jax.jit(lambda *args: jax.lax.scan(step, *args)[1])(start, (case.xs, case.ys))
        for c in twin.traced:
            name = twin.calls[c]
            if not twin.ops[name].takes_input:
                grads[name] = exact.exact[name]
            elif "bias" in grads[name]:
                grads[name]["bias"] = exact.exact[name]["bias"]
        return case, (exact.losses, grads)


@pytest.mark.parametrize("kind", few(["decay", "alif_v", "conv_1d", "two_groups"], ["decay", "conv_1d"]))
@float64
def test_ottt(kind):
    case, expected = ottt(kind)
    check(se.OTTT(0.8), case, expected)
    _, exact = reference(kind)
    assert oracles.relative_error(expected[1]["inp"]["weight"], exact.exact["inp"]["weight"]) > 1e-3


def linear_forward(op, h, held, x):
    new = A * h["h"] + (1 - A) * (op("inp", x) + op("rec", jnp.tanh(held["h"])))
    return {"h": new}, op("out", jnp.tanh(new))


@float64
def test_ottt_of_linear_units_is_d_rtrl():
    rng = np.random.default_rng(0)
    case = models.rate(rng, forward=linear_forward)
    expected = oracles.online(case.twin, case.xs, case.ys).exact
    assert oracles.relative_error_by_step(run_by_step(se.OTTT(A), case)[1], expected) < TOLERANCE


def test_ottt_keeps_one_number_for_each_input():
    case = models.build("rate")
    traces = start(se.OTTT(0.5), case).traces
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(traces) if leaf.dtype == jnp.float32)
    assert shapes == [(1, 2, N), (2, INPUTS), (2, N)]


@float64
def test_reset_of_ottt():
    case, expected = ottt("alif_v")
    learner = se.OTTT(0.8)
    _, _, carry = run(learner, case, 3)
    carry = learner.reset(carry, jnp.array([True, True]), case.twin.state)
    _, grads, _ = run(learner, case, 3, carry)
    assert oracles.relative_error(grads, total(expected[1])) < TOLERANCE


# --- factors ----------------------------------------------------------------------------------------------------------

ALPHA = 0.8


def by_hand(case, signal, kappa, wrong=False):
    """Gradients of the weights of `inp` and `rec` at each step, by the formula of factors."""
    ops, kappa = case.model.params, 0.0 if kappa is None else kappa
    conn, state, found = ops["rec"].op.connectivity, case.twin.state, []
    xs_hat, f_h, f_b = [0.0, 0.0], 0.0, 0.0
    for t, (x, y) in enumerate(zip(case.xs, case.ys, strict=True)):
        h = np.asarray(state["h"])
        state, out = case.model(state, x)
        slope = (1 - A) * (1 - ((np.asarray(state["h"]) - A * h) / (1 - A)) ** 2)  # F of a leaky tanh unit
        taught = signal(np.asarray(out), np.asarray(y))
        n, m_h, m_b = (1 - kappa) * taught * slope, (1 - kappa) * taught * A, kappa * taught
        if wrong:
            m_b = taught
        xs_hat = [ALPHA * kept + np.asarray(now) for kept, now in zip(xs_hat, (x, h), strict=True)]
        total = (ALPHA * (m_h * f_h + m_b * f_b) + (1 - ALPHA) * n) / (1 - ALPHA ** (t + 1))
        f_b = ALPHA * (kappa * f_b + (1 - kappa) * A * f_h) + (1 - ALPHA) * (1 - kappa) * slope
        f_h = ALPHA * A * f_h + (1 - ALPHA) * slope
        by_rec = np.einsum("bi,bj->ij", xs_hat[1], total)[np.asarray(conn.pre), np.asarray(conn.post)]
        found.append((np.einsum("bi,bj->ij", xs_hat[0], total), by_rec))
    return [np.stack(parts) for parts in zip(*found, strict=True)]


def matrix():
    return np.random.default_rng(2).normal(size=(OUTPUTS, N))


def errors(out, y):
    return (out - y + 0.1 * np.cos(out)) @ matrix()


def losses(out, y):
    return np.full((2, N), oracles.loss_fn(out, y))


FACTORS = {
    "e-prop": (lambda: se.EProp("h", matrix(), factor_decay=ALPHA), errors, None),
    "e-prop with a filter": (lambda: se.EProp("h", matrix(), kappa=KAPPA, factor_decay=ALPHA), errors, KAPPA),
    "RFLO": (lambda: se.RFLO("h", matrix(), factor_decay=ALPHA), errors, None),
    "three factors": (lambda: se.ThreeFactor("h", kappa=KAPPA, factor_decay=ALPHA), losses, KAPPA),
}


@pytest.mark.parametrize("name", few([*FACTORS], ["e-prop with a filter", "RFLO"]))
@float64
def test_feedback_onto_factors(name):
    """Step by step; and windows of three steps give the same."""
    make, signal, kappa = FACTORS[name]
    case, _, _ = build("rate")
    expected = by_hand(case, signal, kappa)
    _, grads = run_by_step(make(), case)
    got = [grads[key]["weight"] for key in ("inp", "rec")]
    assert oracles.relative_error_by_step(got, expected) < TOLERANCE
    _, sums, _ = run(make(), case, 3)
    assert oracles.relative_error([sums[key]["weight"] for key in ("inp", "rec")], total(expected)) < TOLERANCE
    if kappa is not None:
        assert oracles.relative_error(got, by_hand(case, signal, kappa, wrong=True)) > 0.01


@float64
def test_symmetric_feedback_onto_factors_is_es_d_rtrl():
    case, _ = reference("rate")
    learners = se.EProp("h", factor_decay=ALPHA), se.ES_D_RTRL(decay=ALPHA)
    got, expected = (run_by_step(learner, case)[1] for learner in learners)
    assert oracles.relative_error_by_step(got, expected) < TOLERANCE


def test_factors_take_the_memory_of_units():
    case, leaf, _ = build("lif_cell")
    full, factors = (
        se.explain(se.EProp(leaf, factor_decay=decay), case.model, case.twin.state, case.xs[0]) for decay in (None, 0.9)
    )
    rows = [{row.name: row.trace_bytes for row in report.rows} for report in (full, factors)]
    weights = [name for name in rows[0] if "weight" in name and "out" not in name]
    assert weights and all(rows[1][name] < rows[0][name] for name in weights)


# --- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: se.EProp("z", "fixed"), "feedback: expected 'symmetric', 'random', an array .* got 'fixed'"),
        (lambda: se.EProp("z", 1.0), "feedback: expected .* got 1.0"),
        (lambda: se.EProp("z", "random"), "key: expected one for feedback='random' and none else, got None"),
        (lambda: se.EProp("z", key=jax.random.key(0)), "key: expected one for feedback='random' and none else"),
        (lambda: se.EProp("z", kappa=1.0), "kappa: expected 0 <= kappa < 1, got 1.0"),
        (lambda: se.EProp("z", rate_strength=np.inf), "rate_strength: expected a finite number, got inf"),
        (lambda: se.EProp("z", rate_target=np.nan), "rate_target: expected a finite number, got nan"),
        (lambda: se.RFLO("h", "symmetric"), "feedback: expected 'random' or an array .* got 'symmetric'"),
        (lambda: se.RFLO("h"), "key: expected one for feedback='random'"),
        (lambda: se.ThreeFactor("z", kappa=-0.1), "kappa: expected 0 <= kappa < 1, got -0.1"),
        (lambda: se.RFLO("h", key=jax.random.key(0), factor_decay=1.0), "factor_decay: expected 0 <= factor_decay < 1"),
        (
            lambda: se.EProp("z", rate_strength=1.0, factor_decay=0.9),
            "factor_decay: expected None with rate_strength=1.0, got 0.9. .* factors cannot hold",
        ),
        (lambda: se.OTTT(1.0), "decay: expected 0 <= decay < 1, got 1.0"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("lif", {"leaf": "w"}, r"leaf: expected the name of one floating leaf .* got 'w'. Its leaves are .*'v'.*'z'"),
        ("lif", {"leaf": "z", "rate_strength": 1.0, "rate_leaf": "w"}, "rate_leaf: expected the name of one floating"),
        ("lif", {"leaf": "v"}, r"leaf: `out` does not depend on the new value of 'v'.* It depends on .*'z'"),
        ("old_readout", {"leaf": "h"}, "leaf: `out` does not depend on the new value of 'h'.* on none of the state"),
        ("clock", {"leaf": "count"}, "leaf: expected the name of one floating leaf"),
        (
            "lif",
            {"leaf": "z", "feedback": np.ones((N, OUTPUTS))},
            r"feedback: expected shape .*\(2, 4\).* got \(4, 2\)",
        ),
        (
            "lif",
            {"leaf": "z", "feedback": lambda model: model.params["rec"].value["weight"]},
            "feedback: expected shape",
        ),
    ],
)
def test_refused_at_init(kind, options, message):
    case = models.build(kind)
    with pytest.raises(ValueError, match=message):
        start(se.EProp(**options), case)


def test_feedback_takes_one_output():
    class Two(eqx.Module):
        net: eqx.Module

        def __call__(self, state, x):
            state, out = self.net(state, x)
            return state, (out, 2 * out)

    case = models.build("lif")
    case = case._replace(model=Two(case.model))
    with pytest.raises(ValueError, match="feedback onto 'z' takes one array as `out`, got 2"):
        start(se.EProp("z", "random", jax.random.key(0)), case)
    start(se.EProp("z"), case)
    start(se.ThreeFactor("z"), case)


def test_random_feedback_needs_to_know_the_batch_axes():
    class Units(eqx.Module):
        gain: se.ETraceParam

        def __call__(self, h, x):
            h = 0.9 * h + self.gain() * x
            return h, h[..., :2]

    model = Units(se.ElemWiseParam(jnp.ones(N), lambda w: w))
    with pytest.raises(ValueError, match="feedback: cannot tell batch axes from units"):
        se.EProp("state", "random", jax.random.key(0)).init(model, jnp.zeros((2, N)), jnp.ones((2, N)))


def test_a_carry_of_another_learner():
    case = models.build("lif")
    carry = start(se.EProp("z"), case)
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
        run(se.EProp("z", rate_strength=1.0), case, carry=carry)


def test_a_leaf_may_be_named_by_its_last_part():
    case, leaf, _ = build("lif_cell")
    carry = [start(se.EProp(name), case) for name in ("z", "['z']")]
    assert jax.tree.structure(carry[0]) == jax.tree.structure(carry[1])
