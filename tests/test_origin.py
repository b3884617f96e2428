"""A carry belongs to one connectivity, and is refused with another."""

import dataclasses
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from test_conformance import LEARNERS

import sparse_etrace as se
from sparse_etrace._graph.connectivity import digest_of
from sparse_etrace._model import origin
from sparse_etrace._model.origin import check_origin

N, BATCH, STEPS = 4, 2, 3
KEPT = {"BPTT"}  # whose carry is the state alone
OTHER = "another connectivity"


def ring(shift):
    """As many synapses for each shift."""
    return se.Connectivity.from_edges(np.arange(N), (np.arange(N) + shift) % N, shape=(N, N))


class Mine(se.ETraceOp):
    """An op of one's own with an index array."""

    index: Any

    def xw_to_y(self, x, w):
        return jnp.take(x, self.index, axis=-1) * w

    def yw_to_w(self, y, e):
        return y * e

    def synapses(self, v, x):
        from sparse_etrace._op.contract import Uses

        return [Uses(np.asarray(self.index), np.arange(N), np.arange(N))]


def matrix(shift):
    return sp.csr_array((np.ones(N), (np.arange(N), (np.arange(N) + shift) % N)), shape=(N, N))


def mask(shift):
    return np.roll(np.eye(N), shift, axis=1)


OPS = {
    "connectivity": lambda k: (se.SpMatMulOp(ring(k)), N),
    "scipy": lambda k: (se.SpMatMulOp(matrix(k)), N),
    "BCOO": lambda k: (se.SpMatMulOp(jsparse.BCOO.from_scipy_sparse(matrix(k))), N),
    "BCSR": lambda k: (se.SpMatMulOp(jsparse.BCSR.from_scipy_sparse(matrix(k))), N),
    "order of the data": lambda k: (se.SpMatMulOp(
        jsparse.BCOO((jnp.ones(N), jnp.stack([jnp.arange(N)] * 2, 1)[jnp.roll(jnp.arange(N), k)]), shape=(N, N))), N),
    "tie": lambda k: (se.SpMatMulOp(ring(1), tie=np.roll([0, 0, 1, 1], k)), 2),
    "mask": lambda k: (se.MatMulOp(weight_mask=jnp.array(mask(k), bool)), (N, N)),
    "mask of numbers": lambda k: (se.MatMulOp(weight_mask=mask(k)), (N, N)),
    "own": lambda k: (Mine((jnp.arange(N) + k) % N), N),
}  # fmt: skip


def net(shift=1, kind="connectivity"):
    op, shape = OPS[kind](shift)
    w = jnp.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    rec = se.ETraceParam(w if kind == "own" else {"weight": w}, op)
    inp = se.ETraceParam({"weight": jnp.ones((2, N))}, se.MatMulOp())
    return se.cells.LeakyRate(N, inp, rec, decay=0.8)


XS = jnp.sin(jnp.arange(STEPS * BATCH * 2.0)).reshape(STEPS, BATCH, 2)
YS = jnp.zeros((STEPS, BATCH, N))


def loss(out, y):
    return jnp.sum((out - y) ** 2)


def start(learner, model):
    return learner.init(model, model.init_state(BATCH), XS[0])


@pytest.mark.filterwarnings("ignore:The plain array")
@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in KEPT])
def test_every_learner_refuses_a_carry_of_another_connectivity(name):
    learner, model = LEARNERS[name].make("state"), net()
    carry = start(learner, model)
    assert np.any(np.asarray(carry.origin.wiring))
    with pytest.raises(ValueError, match=rf"carry: it is of {OTHER}.*another 'rec.op.connectivity'"):
        se.online_grad(learner, loss, net(2), carry, XS, YS)
    with pytest.raises(ValueError, match=OTHER):
        learner.step(net(2), carry, XS[0])
    later = learner.reset(carry, jnp.array([True, False]), model.init_state(BATCH))
    with pytest.raises(ValueError, match=OTHER):
        learner.step(net(2), later, XS[0])


def test_bptt_goes_on_with_another_connectivity():
    se.online_grad(se.BPTT(), loss, net(2), start(se.BPTT(), net()), XS, YS)


@pytest.mark.parametrize("kind", OPS)
def test_every_array_of_an_op_that_says_what_is_connected(kind):
    carry = start(se.D_RTRL(), net(1, kind))
    with pytest.raises(ValueError, match=OTHER):
        se.D_RTRL().step(net(2, kind), carry, XS[0])
    assert check_origin(carry.origin, net(1, kind)) is None


def test_another_number_of_connectivities():
    carry = start(se.D_RTRL(), net(1, "tie"))
    with pytest.raises(ValueError, match="has 1 arrays that say what is connected, not 2"):
        se.D_RTRL().step(net(), carry, XS[0])


def test_an_array_is_digested_once_and_forgotten_with_it(monkeypatch):
    array, given, before = jnp.arange(5), np.arange(5), len(origin._digests)
    found = [origin._digest(array), origin._digest(given)]
    given[0] = 9
    assert not np.array_equal(origin._digest(given), found[1])
    monkeypatch.setattr(origin, "digest_of", None)
    np.testing.assert_array_equal(origin._digest(array), found[0])
    assert len(origin._digests) == before + 1
    del array
    assert len(origin._digests) == before


def test_numbers_in_an_op_may_change():
    def bounded(high):
        rec = se.ETraceParam({"weight": jnp.ones(N)}, se.SpMatMulOp(ring(1), weight_fn=se.Bounded(0.0, high)))
        return eqx.tree_at(lambda m: m.rec, net(), rec)

    assert check_origin(start(se.D_RTRL(), bounded(1.0)).origin, bounded(2.0)) is None


@pytest.mark.parametrize("name", ["D_RTRL", "TBPTT"])
def test_inside_a_jit_of_the_user(name):
    """Where the digests are not known the losses say it, at no cost; the right carry gives the same bits."""
    learner = LEARNERS[name].make("state")
    carry = start(learner, net())
    right = se.online_grad(learner, loss, net(), carry, XS, YS)
    assert right[2].origin is carry.origin
    train = eqx.filter_jit(lambda model, carry: se.online_grad(learner, loss, model, carry, XS, YS))
    got = train(net(), carry)
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(right), jax.tree.leaves(got), strict=True))
    losses, grads, _ = train(net(2), carry)
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves((losses, grads)))

    @eqx.filter_jit
    def scanned(model, carry):
        return jax.lax.scan(lambda carry, x: learner.step(model, carry, x), carry, XS)[1]

    assert np.all(np.isnan(scanned(net(2), carry))) and np.all(np.isfinite(scanned(net(), carry)))
    # What was traced for one connectivity serves the next with a carry of its own.
    assert np.all(np.isfinite(scanned(net(2), start(learner, net(2)))))


def test_a_map_over_carries_of_several_connectivities():
    models = [net(1), net(2)]

    def stack(*leaves):
        return jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]

    model = jax.tree.map(stack, *models)
    carry = jax.tree.map(stack, *(start(se.D_RTRL(), m) for m in models))
    losses = eqx.filter_vmap(lambda m, c: se.online_grad(se.D_RTRL(), loss, m, c, XS, YS)[0])
    assert np.all(np.isfinite(losses(model, carry)))
    swapped = jax.tree.map(lambda leaf: leaf[::-1], carry)
    assert np.all(np.isnan(losses(model, swapped)))


def test_arrays_that_were_replaced_one_by_one_are_found_at_init():
    model = eqx.tree_at(lambda m: m.rec.op.connectivity.pre, net(), ring(2).pre)
    with pytest.raises(ValueError, match="index arrays of 'rec.op.connectivity' are not those that it was built with"):
        start(se.D_RTRL(), model)


def test_a_connectivity_without_digest():
    """Built by its constructor, or unpickled from before there were digests."""
    bare = [dataclasses.replace(ring(k), digest=None) for k in (1, 2)]
    models = [eqx.tree_at(lambda m: m.rec.op.connectivity, net(), conn) for conn in bare]
    carry = start(se.D_RTRL(), models[0])
    assert check_origin(carry.origin, net()) is None
    for other in (models[1], net(2)):
        with pytest.raises(ValueError, match=OTHER):
            se.D_RTRL().step(other, carry, XS[0])


def test_a_carry_is_pickled_with_its_origin_and_goes_on_without():
    carry = start(se.D_RTRL(), net())
    back = pickle.loads(pickle.dumps(carry))
    with pytest.raises(ValueError, match=OTHER):
        se.D_RTRL().step(net(2), back, XS[0])
    del back.__dict__["origin"]
    assert back.origin is None
    se.D_RTRL().step(net(), back, XS[0])


def test_digests_differ():
    """Of 2,000 rewirings that keep all sizes, no two that differ are taken for the same."""
    rng, found = np.random.default_rng(0), {}
    for _ in range(2000):
        pre, post = rng.integers(0, 6, (2, 8))
        key = (*pre.tolist(), *post.tolist())
        assert found.setdefault(digest_of(pre, post, 6).tobytes(), key) == key
    assert len(found) > 1900
