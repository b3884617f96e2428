"""SnAp: against masked dense RTRL by hand, against D-RTRL and BPTT at its ends; and what it keeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
import scipy.sparse as sp
from models import N, run, start
from soak import few

import sparse_etrace as se
from sparse_etrace._learner import rtrl
from sparse_etrace._model.program import sub_jaxprs

TOLERANCE, VISIBLE = 1e-10, 1e-4
float64 = pytest.mark.usefixtures("x64")


# --- networks of a given wiring --------------------------------------------------------------------------------------


def gated_forward(op, h, held, x):
    """Half of the outputs of both ops lead to `out` alone."""
    y = op("inp", x) + op("rec", held["h"])
    units = h["h"].shape[-1]
    new = models.A * h["h"] + (1 - models.A) * jnp.tanh(y[..., :units])
    return {"h": new}, op("out", jax.nn.sigmoid(y[..., units:]) * new)


# What the readout makes of the new state and of the op outputs.
READ = {
    "rate": lambda h, y: h["h"],
    "lif": lambda h, y: h["z"],
    "alif_v": lambda h, y: h["z"] + 0.5 * h["b"],
    "gated": lambda h, y: jax.nn.sigmoid(y[..., y.shape[-1] // 2 :]) * h["h"],
}
FORWARD = {
    "rate": models.rate_forward, "lif": models.lif_forward, "alif_v": models.alif_v_forward, "gated": gated_forward,
}  # fmt: skip
VARIABLES = {"rate": ("h",), "lif": ("v", "z"), "alif_v": ("v", "b", "z"), "gated": ("h",)}


def wired(kind, conn, steps=6, batch=(2,), scale=1.5):
    """A recurrent layer with these synapses, and its twin; all but the readout is traced."""
    rng = np.random.default_rng(conn.num_synapses)
    units, pre, post = conn.num_pre, np.asarray(conn.pre), np.asarray(conn.post)
    weight = {"weight": models.array(rng, conn.num_synapses, scale=scale)}
    parts = {
        "inp": models.dense(rng, models.INPUTS, conn.num_post, scale=2.0),
        "rec": models.Part(weight, se.SpMatMulOp(conn), oracles.sparse(pre, post, conn.shape)),
        "out": models.dense(rng, units, models.OUTPUTS),
    }
    state = models._state(rng, batch, *VARIABLES[kind], shape=(units,))
    return models.make(rng, FORWARD[kind], parts, state, {}, batch=batch, steps=steps)


def random_wiring(units, sparsity, seed=0, autapses=True):
    rng = np.random.default_rng(seed)
    kept = rng.random((units, units)) > sparsity
    if not autapses:
        np.fill_diagonal(kept, False)
    return se.Connectivity.from_edges(*np.nonzero(kept), shape=(units, units))


def ring(units):
    return se.Connectivity.from_edges(np.arange(units), (np.arange(units) + 1) % units, shape=(units, units))


def within(conn, steps):
    """`[i, k]`: whether k is at most so many synapses after i, by dense powers."""
    one = np.eye(conn.num_pre, dtype=bool)
    one[conn.pre, conn.post] = True
    found = np.eye(conn.num_pre, dtype=bool)
    for _ in range(steps):
        found = found @ one
    return found


# --- the oracle ------------------------------------------------------------------------------------------------------


def masked_rtrl(kind, case, conn, kept):
    """Gradients of each step by dense RTRL whose influences are zeroed after each step where not `kept[i, k]`.

    The loss acts on the new state, and on the outputs of ops that lead to `out` alone, whose derivative is whole.
    """
    twin = case.twin
    _, unpack = oracles._pack(twin.state)
    batch, names = twin.state[VARIABLES[kind][0]].shape[0], sorted(VARIABLES[kind])
    traced = {k: twin.values[k] for k in ("inp", "rec")}
    targets = {
        "inp": {"weight": np.broadcast_to(np.arange(conn.num_post), twin.values["inp"]["weight"].shape),
                "bias": np.arange(conn.num_post)},
        "rec": {"weight": np.asarray(conn.post)},
    }  # fmt: skip
    # Flat state: variables by name, each (batch, units).
    mask = jax.tree.map(
        lambda post: np.broadcast_to(
            np.moveaxis(kept[post], -1, 0), (len(names), batch, conn.num_pre, *post.shape)
        ).reshape(-1, *post.shape),
        targets,
    )

    def forward(h, traced, x):
        values = {**twin.values, **traced}
        return oracles._pack(
            twin.forward(oracles._Ops(twin, oracles._weights(twin, values), values), unpack(h), unpack(h), x)[0]
        )[0]

    def outputs(h, traced, x):
        v, last = oracles._weights(twin, {**twin.values, **traced}), sorted(VARIABLES[kind])[-1]
        return twin.ops["inp"].apply(x, v["inp"]) + twin.ops["rec"].apply(unpack(h)[last], v["rec"])

    def loss(h, seen, out, y):
        v = twin.ops["out"].phi(out)
        return oracles.loss_fn(twin.ops["out"].apply(READ[kind](unpack(h), seen), v), y)

    @jax.jit
    def step(carry, now):
        h, before = carry
        x, y = now
        by_state, fresh = jax.jacobian(forward, (0, 1))(h, traced, x)
        new = forward(h, traced, x)
        influence = jax.tree.map(lambda j, b, m: m * (jnp.tensordot(by_state, j, 1) + b), before, fresh, mask)
        by_h, by_seen, by_out = jax.grad(loss, (0, 1, 2))(new, outputs(h, traced, x), twin.values["out"], y)
        by_old, at_once = jax.vjp(lambda h, traced: outputs(h, traced, x), h, traced)[1](by_seen)
        grads = jax.tree.map(
            lambda j, old, now: jnp.tensordot(by_h, j, 1) + jnp.tensordot(by_old, old, 1) + now,
            influence, before, at_once,
        )  # fmt: skip
        return (new, influence), {**grads, "out": by_out}

    h = oracles._pack(twin.state)[0]
    zero = jax.tree.map(lambda v: jnp.zeros((len(h), *v.shape)), traced)
    return jax.lax.scan(step, (h, zero), (case.xs, case.ys))[1]


def by_window(learner, case, size=2):
    """Gradients of windows in split calls."""
    carry, grads = None, []
    for first in range(0, len(case.xs), size):
        _, grad, carry = run(learner, case, size, carry, slice(first, first + size))
        grads.append(grad)
    return jax.tree.map(lambda *g: np.stack(g), *grads)


def in_windows(grads, size=2):
    return jax.tree.map(lambda g: np.reshape(g, (len(g) // size, size, *g.shape[1:])).sum(1), grads)


MASKED = [(sparsity, n) for sparsity in (0.8, 0.9, 0.99) for n in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("sparsity, n", few(MASKED, [(0.8, 2), (0.9, 3), (0.99, 5)]))
@float64
def test_masked_dense_rtrl(sparsity, n):
    conn = random_wiring(30, sparsity)
    case = wired("rate", conn)
    expected = masked_rtrl("rate", case, conn, within(conn, n - 1))
    got = by_window(se.SnAp(n=n), case)
    assert oracles.relative_error(got, in_windows(expected)) < TOLERANCE
    if sparsity < 0.99 and n < 3:
        other = masked_rtrl("rate", case, conn, within(conn, n))
        assert oracles.relative_error(got["rec"], in_windows(other)["rec"]) > VISIBLE


@pytest.mark.parametrize("n", few([1, 2, 3, None], [2]))
@float64
def test_outputs_that_lead_to_out_alone(n):
    wide = random_wiring(12, 0.85)
    ends = np.concatenate([wide.pre, wide.post]), np.concatenate([wide.post, wide.pre + 12])
    conn = se.Connectivity.from_edges(*ends, shape=(12, 24))
    case = wired("gated", conn, scale=2.0)
    # Synapses onto the outputs at an end influence no unit later.
    kept = np.concatenate([within(wide, 12 if n is None else n - 1), np.zeros((12, 12), bool)])
    expected = masked_rtrl("gated", case, conn, kept)
    got = by_window(se.SnAp(n=n), case)
    assert oracles.relative_error(got, in_windows(expected)) < TOLERANCE
    if n is None:
        assert oracles.relative_error(models.total(got), oracles.bptt(case.twin, case.xs, case.ys)) < TOLERANCE


SEVERAL = [(kind, n) for kind in ("lif", "alif_v") for n in (1, 2, 3)]


@pytest.mark.parametrize("kind, n", few(SEVERAL, [("alif_v", 3)]))
@float64
def test_several_variables(kind, n):
    conn = random_wiring(12, 0.85)
    case = wired(kind, conn, scale=3.0)
    expected = masked_rtrl(kind, case, conn, within(conn, n - 1))
    assert oracles.relative_error(by_window(se.SnAp(n=n), case), in_windows(expected)) < TOLERANCE


@float64
def test_the_oracle_is_seen_to_fail():
    """Influences masked before they are taken through the step, or those of a transposed pattern."""
    conn = random_wiring(30, 0.9)
    case, kept = wired("rate", conn), within(conn, 1)
    got = by_window(se.SnAp(n=2), case)["rec"]
    for wrong in (kept.T, within(conn, 0)):
        assert oracles.relative_error(got, in_windows(masked_rtrl("rate", case, conn, wrong))["rec"]) > VISIBLE


@float64
def test_a_ring_becomes_exact():
    conn = ring(7)
    case = wired("rate", conn, steps=12)
    exact = oracles.bptt(case.twin, case.xs, case.ys)
    errors = [
        oracles.relative_error(models.total(by_window(se.SnAp(n=n), case, 3)), exact)
        for n in (1, 3, conn.num_pre - 1, conn.num_pre)
    ]
    assert errors[0] > 1e-2 and errors[0] > errors[1] > errors[2] > 1e-9
    assert errors[3] < 1e-13


# --- where it is another rule ----------------------------------------------------------------------------------------

COINCIDE = [
    "rate", "rate_cell", "lif", "lif_cell", "alif_cell", "alif_v", "lstm", "two", "two_lif",
    "late", "shared", "skip", "old_readout", "twice", "axis_2", "decay", "nontemp", "clock", "three",
]  # fmt: skip


@pytest.fixture
def no_autapses(monkeypatch):
    edges = models.edges

    def without(rng, pre, post, share=0.6):
        j, i = edges(rng, pre, post, share)
        kept = (j % models.N != i % models.N) if pre == models.N else np.ones(len(j), bool)
        return j[kept], i[kept]

    monkeypatch.setattr(models, "edges", without)


SOME = ("alif_v", "shared", "axis_2", "clock", "three")


@pytest.mark.parametrize("kind", few(COINCIDE, SOME))
@pytest.mark.usefixtures("x64", "no_autapses")
def test_one_step_without_autapses_is_d_rtrl(kind):
    case = models.build(kind)
    expected, got = by_window(se.D_RTRL(), case, 1), by_window(se.SnAp(n=1), case, 1)
    assert oracles.relative_error(got, expected) < TOLERANCE


@float64
def test_autapses_are_a_difference():
    conn = random_wiring(8, 0.5)
    case = wired("rate", conn)
    grads = [by_window(learner, case)["rec"] for learner in (se.D_RTRL(), se.SnAp(n=1))]
    assert oracles.relative_error(*grads) > VISIBLE


@pytest.mark.parametrize("kind", few(["two", "gru_cell", "lif", "late", "conv_1d", "low_rank", "decay"], ["conv_1d"]))
@float64
def test_all_steps_are_rtrl(kind):
    case = models.build(kind)
    assert oracles.relative_error(run(se.SnAp(n=None), case, 3)[1], run(se.RTRL(), case, 2)[1]) < TOLERANCE


# --- patterns --------------------------------------------------------------------------------------------------------


@float64
def test_a_pattern_of_ones_own():
    conn = random_wiring(12, 0.8)
    case = wired("rate", conn)
    own = sp.random_array((12, 12), density=0.3, rng=np.random.default_rng(1))
    expected = masked_rtrl("rate", case, conn, (own.toarray() != 0) | np.eye(12, dtype=bool))
    assert oracles.relative_error(by_window(se.SnAp(pattern=own.tocsc()), case), in_windows(expected)) < TOLERANCE
    kept = [start(se.SnAp(pattern=pattern), case).traces.blocks for pattern in (own, own.toarray(), own.tocsc())]
    assert all(eqx.tree_equal(blocks, kept[0]) for blocks in kept)
    same = run(se.SnAp(pattern=within(conn, 1)), case)[1]
    assert oracles.relative_error(same, run(se.SnAp(n=2), case)[1]) < TOLERANCE


@float64
def test_random_paths():
    conn = random_wiring(12, 0.6, autapses=False)
    case = wired("rate", conn)
    most = int(np.bincount(np.asarray(conn.post)).max())
    key = jax.random.key(0)
    for n in (2, None):
        everything = se.SnAp(n=n, pattern="random", paths=most, key=key)
        assert oracles.relative_error(run(everything, case)[1], run(se.SnAp(n=n), case)[1]) < TOLERANCE
    few = se.SnAp(n=None, pattern="random", paths=1, key=key)
    grads = run(few, case)[1]
    assert oracles.relative_error(grads, run(few, case, 2)[1]) < TOLERANCE
    assert oracles.relative_error(grads["rec"], run(se.SnAp(n=None), case)[1]["rec"]) > VISIBLE
    other = se.SnAp(n=None, pattern="random", paths=1, key=jax.random.key(1))
    assert oracles.relative_error(grads["rec"], run(other, case)[1]["rec"]) > VISIBLE
    for paths in (1, 2):
        blocks = start(se.SnAp(n=None, pattern="random", paths=paths, key=key), case).traces.blocks
        assert most_terms(blocks) == paths


def most_terms(blocks):
    """The most ways into one output of an op."""
    ptr, rows = np.asarray(blocks.term_ptr), np.asarray(blocks.row_ptr)
    counts = [
        np.diff(ptr)[first : last - hidden].max(initial=0)
        for first, last, hidden in zip(rows[:-1], rows[1:], np.asarray(blocks.hidden), strict=True)
    ]
    return max(counts)


def test_how_many():
    conn = random_wiring(40, 0.9, seed=3)
    case = wired("rate", conn, batch=(3,))
    indegree = np.bincount(np.asarray(conn.post), minlength=40) + models.INPUTS + 1
    for n in (1, 2, 3):
        carry = start(se.SnAp(n=n), case)
        expected = int(indegree @ within(conn, n - 1).sum(1))
        assert carry.traces.blocks.size == expected and carry.traces.values.shape == (expected, 3)
        learner = se.SnAp(n=n)
        plan = se.memory_plan(learner, case.model, case.twin.state, case.xs[0])
        assert expected * 3 * 4 <= plan.traces <= expected * 3 * 4 + 40 * conn.num_synapses * n + 40_000
    with pytest.raises(ValueError, match=rf"more than {expected - 1:,} influences .*Raise max_influences, take a smal"):
        start(se.SnAp(n=3, max_influences=expected - 1), case)
    start(se.SnAp(n=3, max_influences=expected), case)


def test_the_worm():
    from sparse_etrace import demo

    model = demo.WormNet(se.datasets.worm(), jax.random.key(0))
    train = eqx.tree_at(lambda m: m.synapses, jax.tree.map(lambda _: False, se.trainable(model)), replace=True)
    learners = (se.SnAp(n=1, train=train), se.SnAp(n=2, train=train), se.RTRL(train=train))
    carries = [learner.init(model, model.init_state(), jnp.zeros(1)) for learner in learners]
    assert [c.traces.blocks.size for c in carries] == [2_194, 27_041, 536_422]


def test_no_dense_array():
    """No array of units by units or units by synapses, in a step or in a window."""
    units = 300
    conn = random_wiring(units, 0.985, seed=5)
    case = wired("rate", conn, batch=(1,))
    learner = se.SnAp(n=2)
    carry = start(learner, case)
    bound = carry.traces.blocks.size + 20 * (conn.num_synapses + units * 8)
    assert bound < units**2

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
            for inner in sub_jaxprs(eqn):
                yield from sizes(inner)

    arrays, static = eqx.partition((case.model, carry), eqx.is_array)

    def window(arrays, xs, ys):
        model, carry = eqx.combine(arrays, static)
        losses, grads, carry = se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys)
        return losses, eqx.filter(grads, eqx.is_array), carry.state

    jaxpr = jax.make_jaxpr(window)(arrays, case.xs, case.ys)
    assert max(sizes(jaxpr.jaxpr)) <= bound


# --- in words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, what",
    [
        ({"pattern": np.ones(3)}, r"pattern: expected a matrix, neurons by neurons, got shape \(3,\)"),
        ({"pattern": np.full((3, 3), np.nan)}, "pattern: expected finite entries"),
        (
            {"pattern": "random", "paths": 2, "key": jax.random.split(jax.random.key(0))},
            "paths, key: expected a number",
        ),
        ({"n": 0}, "n: expected at least 1, or None for all steps, got 0"),
        ({"pattern": "ring"}, "pattern: expected 'random', a matrix or None, got 'ring'"),
        ({"pattern": "random"}, "paths, key: expected a number and a key"),
        ({"pattern": "random", "paths": 2}, "paths, key: expected a number and a key"),
        ({"paths": 2}, "paths, key: .* with pattern='random' and none else"),
        ({"pattern": "random", "paths": 2, "key": 0}, "paths, key: .* a key of jax.random.key"),
        (
            {"pattern": "random", "paths": 0, "key": jax.random.key(0)},
            "paths: expected at least 1 into each unit, got 0",
        ),
    ],
)
def test_wrong_options(options, what):
    with pytest.raises(ValueError, match=what):
        se.SnAp(**options)


@pytest.mark.parametrize("options, what", [({"n": 1.5}, "n: got 1.5"), ({"paths": True}, "paths: got True")])
def test_what_is_no_number_of_steps(options, what):
    with pytest.raises(TypeError, match=what.replace(": got", ": expected a whole number, got")):
        se.SnAp(**options)


def test_too_many_terms():
    """Few influences, but many ways between the units that one synapse reaches."""
    conn = se.Connectivity.from_edges(*np.nonzero(np.triu(np.ones((40, 40)), 1)), shape=(40, 40))
    case = wired("rate", conn)
    train = jax.tree.map(lambda _: False, se.trainable(case.model))
    train = eqx.tree_at(lambda m: m.params["inp"].value["bias"], train, replace=True)
    with pytest.raises(ValueError, match="model: the pattern needs .* more than max_influences=2,000"):
        start(se.SnAp(n=None, train=train, max_influences=2_000), case)


def test_one_batch_element_at_least():
    case = models.build("rate", batch=(0,))
    with pytest.raises(ValueError, match=r"state: expected at least one batch element, got batch axes \(0,\)"):
        start(se.SnAp(), case)


def test_a_graph_as_a_pattern():
    conn = random_wiring(12, 0.8)
    case = wired("rate", conn)
    graph = se.from_edges(conn.pre, conn.post, shape=(12, 12))
    sizes = [start(se.SnAp(pattern=p), case).traces.blocks.size for p in (graph, conn, within(conn, 1))]
    assert len(set(sizes)) == 1


def test_a_pattern_of_another_shape():
    case = wired("rate", ring(5))
    with pytest.raises(ValueError, match=r"pattern: expected shape \(5, 5\), neurons by neurons, got \(4, 5\)"):
        start(se.SnAp(pattern=np.ones((4, 5))), case)


def test_an_op_that_does_not_say_its_synapses():
    case = models.build("synapse")
    with pytest.raises(NotImplementedError, match="op: Scale does not say which unit .*`synapses`, or use se.RTRL"):
        start(se.SnAp(), case)


def test_a_traced_model():
    case = wired("rate", ring(5))
    with pytest.raises(TypeError, match="model: its arrays are traced or have only shapes.*outside of jit"):
        eqx.filter_jit(lambda model: se.SnAp().init(model, case.twin.state, case.xs[0]))(case.model)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if eqx.is_array(a) else a, case.model)
    with pytest.raises(TypeError, match="model: its arrays are traced or have only shapes"):
        se.memory_plan(se.SnAp(), shapes, case.twin.state, case.xs[0])


def test_units_mixed_by_anything_else():
    case = models.rate(np.random.default_rng(0), forward=lambda op, h, held, x: _mean(op, h, held, x))
    with pytest.raises(ValueError, match="acts on several units of .*make the mixing an op .*or use se.RTRL"):
        start(se.SnAp(), case)


def test_a_delay_of_all_synapses():
    graph = se.from_edges([0, 1, 2], [1, 2, 0])
    cell = se.cells.spiking.LIF.of(graph, 2, key=jax.random.key(0), delay=3.0)
    with pytest.raises(ValueError, match="in the ring of a delay, which traces follow.*or use se.RTRL"):
        se.SnAp().init(cell, cell.init_state(), jnp.ones(2))


def _mean(op, h, held, x):
    new, out = models.rate_forward(op, h, held, x)
    return {"h": new["h"] + 0.1 * h["h"].mean(-1, keepdims=True)}, out


def test_batch_axes_elsewhere():
    case = models.build("delay_buffer")
    with pytest.raises(ValueError, match="state: .* has the batch axes .* elsewhere than in front"):
        start(se.SnAp(), case)


def test_ops_with_different_batch_axes():
    inp, rec = (
        models.dense(np.random.default_rng(1), N, N).param(),
        models.dense(np.random.default_rng(2), 3, 3).param(),
    )

    def op_on_other_axes(h, x):
        h = 0.5 * h + inp(x) + rec(h.reshape(2, 2, 3)).reshape(3, 4)
        return h, h

    with pytest.raises(ValueError, match=r"have batch axes .* Influences are kept for each batch element"):
        se.SnAp().init(op_on_other_axes, jnp.zeros((3, N)), jnp.zeros((3, N)))


class NodesByFeatures(eqx.Module):
    """A matrix on the features of each node, and synapses between nodes."""

    matrix: se.ETraceParam
    synapses: se.ETraceParam

    def __call__(self, h, x):
        h = 0.5 * h + jnp.tanh(self.matrix(x) + self.synapses(h))
        return h, h


@pytest.mark.parametrize("batch", few([((),), ((3,),)], [((3,),)]))
@float64
def test_a_matrix_on_the_features_of_nodes(batch):
    rng = np.random.default_rng(3)
    model = NodesByFeatures(models.dense(rng, 3, 2).param(), models.sparse(rng, N, N, axis=-2).param())
    xs, ys = models.array(rng, 5, *batch, N, 3), models.array(rng, 5, *batch, N, 2)

    def gradient(learner, chunk):
        carry = learner.init(model, jnp.zeros((*batch, N, 2)), xs[0])
        return se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys, chunk=chunk)[1]

    assert oracles.relative_error(gradient(se.SnAp(None), 2), gradient(se.BPTT(), None)) < TOLERANCE


@pytest.mark.parametrize("other", [se.D_RTRL(), se.BPTT()], ids=lambda o: type(o).__name__)
def test_carry_of_another_learner(other):
    case = models.build("rate")
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
        run(se.SnAp(), case, carry=start(other, case))


@pytest.mark.parametrize("other", [se.SnAp(n=1), se.SnAp(pattern=np.eye(N)), se.RTRL()], ids=str)
def test_carry_of_another_pattern(other):
    case = models.build("rate")
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
        run(se.SnAp(n=2), case, carry=start(other, case))


def test_carry_for_other_parameters():
    case = models.build("rate")
    train = jax.tree.map(lambda _: False, se.trainable(case.model))
    train = eqx.tree_at(lambda m: m.params["inp"].value["weight"], train, replace=True)
    with pytest.raises(ValueError, match="carry: its traces are not those of this learner and model"):
        run(se.SnAp(), case, carry=start(se.SnAp(train=train), case))


@float64
def test_nothing_to_keep():
    """A readout alone is trained."""
    case = models.build("rate")
    nothing = jax.tree.map(lambda _: False, se.trainable(case.model))
    train = eqx.tree_at(lambda m: m.params["out"].value["weight"], nothing, replace=True)
    expected = run(se.D_RTRL(train=train), case, 3)[1]
    for learner in (se.SnAp(train=train), se.RTRL(train=train)):
        assert start(learner, case).traces.blocks.size == 0
        assert oracles.relative_error(run(learner, case, 3)[1], expected) < TOLERANCE


@float64
def test_elementwise_parameters_alone():
    """The batch axes are found where no op has an input, so that some elements can start again."""

    def forward(op, h, held, x):
        new = jax.nn.sigmoid(op("leak")) * h["h"] + op("drive") * x[..., :1]
        return {"h": new}, op("out", new)

    rng = np.random.default_rng(0)
    parts = {name: models.elemwise(models.array(rng, N)) for name in ("leak", "drive")}
    parts["out"] = models.dense(rng, N, models.OUTPUTS)
    case = models.make(rng, forward, parts, models._state(rng, (2,), "h"), {})
    where, grads = jnp.array([True, False]), []
    for learner in (se.D_RTRL(), se.SnAp(), se.RTRL()):
        _, _, carry = run(learner, case, steps=slice(3))
        carry = learner.reset(carry, where, case.twin.state)
        grads.append(run(learner, case, 2, carry, slice(3, None))[1])
    assert oracles.relative_error(grads[1], grads[0]) < TOLERANCE > oracles.relative_error(grads[2], grads[0])


RULES = {
    "rate": {se.SnAp(n=1): "truncated", se.SnAp(n=None): "exact", se.RTRL(): "exact"},
    "no_recurrence": {se.SnAp(n=1): "exact"},
}


@pytest.mark.parametrize("kind", RULES)
def test_explain(kind, monkeypatch):
    monkeypatch.setattr(rtrl, "PRODUCTS", 0)
    case = models.build(kind)
    for learner, rule in RULES[kind].items():
        report = se.explain(learner, case.model, case.twin.state, case.xs[0])
        size = start(learner, case).traces.values.nbytes
        assert sum(row.trace_bytes for row in report.rows) == size
        by_name = {row.name: row.rule for row in report.rows}
        assert by_name["params['inp'].value['weight']"] == rule
        assert by_name["params['out'].value['weight']"] == "exact"
        plan = se.memory_plan(learner, case.model, case.twin.state, case.xs[0])
        assert plan.buffers["trace of all parameters"] == plan.traces == size


def test_explain_what_has_no_trace():
    case = models.build("untraced_input")
    (row,) = [
        r
        for r in se.explain(se.SnAp(n=None), case.model, case.twin.state, case.xs[0]).rows
        if "inp" in r.name and "weight" in r.name
    ]
    assert row.rule == "same-step only" and not row.trace_bytes


def test_no_silent_zero():
    case = models.build("rate")
    unused = eqx.tree_at(lambda m: m.params, case.model, {**case.model.params, "spare": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"'spare'.* would never get a gradient: its value is never used"):
        start(se.SnAp(), case._replace(model=unused))
