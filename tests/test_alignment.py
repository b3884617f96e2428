"""Alignment with exact gradients: against numbers by hand, over time, in `fit`, as a table and as a figure."""

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import oracles
import pytest
from models import run_by_step
from soak import few

import sparse_etrace as se
from sparse_etrace import plot
from sparse_etrace._report.alignment import _compare

TOLERANCE = 1e-10
STEPS = models.STEPS
float64 = pytest.mark.usefixtures("x64")


def align(learner, case, windows=1, loss_fn=oracles.loss_fn):
    return se.gradient_alignment(learner, loss_fn, case.model, case.twin.state, case.xs, case.ys, windows)


def exact_by_step(case):
    """Gradient of each single loss through all steps before, by plain jax."""
    twin = case.twin

    def losses(values):
        def step(state, now):
            state, out = twin.forward(oracles._Ops(twin, oracles._weights(twin, values), values), state, state, now[0])
            return state, oracles.loss_fn(out, now[1])

        return jax.lax.scan(step, twin.state, (case.xs, case.ys))[1]

    return jax.jit(jax.jacrev(losses))(twin.values)


def vectors(case, grads):
    """`(steps, size)` for each leaf, in the order of the model, and for all."""
    model = eqx.tree_at(lambda m: m.params, case.model, _filled(case, grads))
    leaves = jax.tree.leaves(eqx.filter(model, se.trainable(case.model)))
    found = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves]
    return [*found, np.concatenate(found, axis=1)]


def _filled(case, grads):
    return {name: eqx.tree_at(lambda p: p.value, param, grads[name]) for name, param in case.model.params.items()}


RULES = {"D_RTRL": se.D_RTRL(), "TBPTT": se.TBPTT(steps=2)}
CASES = [(rule, windows) for windows in (1, 3, STEPS) for rule in RULES]


@pytest.mark.parametrize("rule, windows", few(CASES, [("TBPTT", 1), ("D_RTRL", 3)]))
@float64
def test_cosines_and_norm_ratios(rule, windows):
    case, learner = models.build("alif_v"), RULES[rule]
    own, exact = vectors(case, run_by_step(learner, case)[1]), vectors(case, exact_by_step(case))
    bounds = np.linspace(0, STEPS, windows + 1).astype(int)
    parts = [slice(a, b) for a, b in zip(bounds, bounds[1:])] + ([slice(0, STEPS)] if windows > 1 else [])
    found = align(learner, case, windows)
    assert found.cosine.shape == found.norm_ratio.shape == (len(parts), len(own))
    assert found.steps.tolist() == [[p.start, p.stop] for p in parts]
    for row, part in enumerate(parts):
        for column, (g, e) in enumerate(zip(own, exact, strict=True)):
            g, e = g[part].sum(0), e[part].sum(0)
            cosine, ratio = g @ e / np.linalg.norm(g) / np.linalg.norm(e), np.linalg.norm(g) / np.linalg.norm(e)
            assert abs(found.cosine[row, column] - cosine) < TOLERANCE
            assert abs(found.norm_ratio[row, column] / ratio - 1) < TOLERANCE
    assert (found.total_cosine, found.total_norm_ratio) == (found.cosine[-1, -1], found.norm_ratio[-1, -1])
    assert found.cosine.min() < 0.99


@float64
def test_names():
    case = models.build("alif_v")
    found = align(se.D_RTRL(), case)
    leaves = [f"params['{n}'].value['{k}']" for n, k in (("inp", "bias"), ("inp", "weight"), ("out", "bias"))]
    assert found.names == (*leaves, "params['out'].value['weight']", "params['rec'].value['weight']", "all leaves")


@float64
def test_exact_rules_align():
    case = models.build("alif_v")
    for found in (align(se.BPTT(), case), align(se.TBPTT(steps=STEPS), case, 3)):
        assert np.abs(found.cosine - 1).max() < TOLERANCE > np.abs(found.norm_ratio - 1).max()


@float64
def test_where_gradients_are_zero():
    """Where both are zero they agree; where one is, they do not."""

    def late(out, y):
        return y[0, 0] * jnp.sum(out)

    case = models.build("old_readout")
    case = case._replace(ys=jnp.zeros_like(case.ys).at[1].set(1))
    found = align(se.D_RTRL(), case, STEPS, late)
    assert np.array_equal(found.cosine[0], np.ones(6)) and np.array_equal(found.norm_ratio[0], np.ones(6))
    assert np.array_equal(found.cosine[STEPS - 1], np.ones(6))
    one_sided = align(se.TBPTT(steps=1, allow_zero=("params",)), case, STEPS, late)
    recurrent = one_sided.names.index("params['rec'].value['weight']")
    assert one_sided.cosine[1, recurrent] == one_sided.norm_ratio[1, recurrent] == 0
    for a in (found, one_sided):
        assert np.isfinite(a.cosine).all() and np.isfinite(a.norm_ratio).all()


def test_where_only_the_exact_gradient_is_zero():
    cosine, ratio = _compare(np.zeros((1, 1)), np.array([[2.0]]), np.zeros((1, 1)))
    assert cosine == 0 and np.isinf(ratio)


@float64
def test_train():
    case = models.build("alif_v")
    train = eqx.tree_at(
        lambda m: m.params["rec"],
        jax.tree.map(lambda _: False, case.model),
        replace=True,
        is_leaf=lambda leaf: isinstance(leaf, se.ETraceParam),
    )
    some, every = align(se.D_RTRL(train=train), case), align(se.D_RTRL(), case)
    assert some.names == ("params['rec'].value['weight']", "all leaves")
    assert abs(some.total_cosine - every.cosine[0, every.names.index(some.names[0])]) < TOLERANCE


@pytest.mark.parametrize("windows", [0, STEPS + 1])
def test_windows_out_of_range(windows):
    with pytest.raises(ValueError, match=f"windows: expected 1 to {STEPS}, the number of steps, got {windows}"):
        align(se.D_RTRL(), models.build("rate"), windows)


def test_table():
    shown = str(align(se.D_RTRL(), models.build("rate"), 2)).splitlines()
    assert shown[0].split() == "cosine (norm ratio) steps 0-2 steps 3-6 steps 0-6".split()
    assert len(shown) == 2 + 6 and shown[-1].startswith("all leaves")
    assert shown[4].split() == ["params['out'].value['bias']", *["1.000", "(1)"] * 3]


def test_data_frame():
    numbers = np.arange(6.0).reshape(2, 3)
    found = se.Alignment(("a", "b", "all leaves"), np.array([[0, 4], [4, 8]]), numbers, numbers + 10)
    frame = found.to_dataframe()
    assert list(frame.columns) == ["leaf", "first_step", "end_step", "cosine", "norm_ratio"]
    assert frame.values.tolist()[1] == ["b", 0, 4, 1.0, 11.0]
    assert frame.values.tolist()[5] == ["all leaves", 4, 8, 5.0, 15.0]


# --- in fit ----------------------------------------------------------------------------------------------------------


def test_callback_of_fit():
    """It sees the model after each sequence, and the number of updates; every k updates it may measure."""
    case = models.build("rate")
    seen, found = [], {}

    def callback(now):
        seen.append((now.updates, now.model))
        if now.updates % 4 == 0:
            found[now.updates] = align(se.D_RTRL(), case._replace(model=now.model)).total_cosine

    data = [(case.xs, case.ys)] * 4
    options, optimizer = {"state": case.twin.state, "progress": False, "update": 4}, optax.sgd(0.01)
    result = se.fit(se.D_RTRL(), oracles.loss_fn, optimizer, case.model, data, callbacks=callback, **options)
    assert [updates for updates, _ in seen] == [2, 4, 6, 8]
    assert eqx.tree_equal(seen[-1][1], result.model) and not eqx.tree_equal(seen[0][1], result.model)
    assert list(found) == [4, 8] and found[4] != found[8]
    silent = se.fit(se.D_RTRL(), oracles.loss_fn, optimizer, case.model, data, **options)
    assert eqx.tree_equal(silent.model, result.model)


def test_measuring_again_does_not_compile():
    traced = []

    def forward(op, h, held, x):
        traced.append(1)
        return models.rate_forward(op, h, held, x)

    case = models.rate(np.random.default_rng(0), forward=forward)
    align(se.D_RTRL(), case, 2)
    align(se.D_RTRL(), case, 2)
    before = len(traced)
    moved = case._replace(model=jax.tree.map(lambda leaf: leaf, case.model), xs=case.xs + 1)
    align(se.D_RTRL(), moved, 2)
    assert len(traced) - before <= 2, "only init looks at the model again"


# --- figure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", few([1, 3], [3]))
def test_figure(tmp_path, windows):
    case = models.build("rate")
    learners = {"D-RTRL": se.D_RTRL(), "TBPTT(1)": se.TBPTT(steps=1)}
    found = {name: align(learner, case, windows) for name, learner in learners.items()}
    plot.alignment(found, title="A rate network").savefig(tmp_path / "alignment.png", dpi=60)
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_figure_of_two_models():
    found = {str(w): align(se.D_RTRL(), models.build("rate"), w) for w in (1, 2)}
    with pytest.raises(ValueError, match="alignments: expected one set of leaves and stretches of time, got 2"):
        plot.alignment(found)
    with pytest.raises(ValueError, match="alignments: expected one set of leaves and stretches of time, got 0"):
        plot.alignment({})
