"""Synapses that change their senders: gradients by dense traces and BPTT, what is moved, and nothing that compiles."""

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparse_etrace as se
from sparse_etrace._learner import rtrl

N, DEGREE, INPUTS, LEAK = 12, 4, 2, 0.8
KEY, *KEYS = jax.random.split(jax.random.key(0), 11)
pytestmark = pytest.mark.usefixtures("x64")
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **rest: compiled.append(name) if name.endswith("backend_compile_duration") else None
)


class Net(eqx.Module):
    rec: se.ETraceParam
    inp: se.ETraceParam

    def __call__(self, h, x):
        h = LEAK * h + (1 - LEAK) * jnp.tanh(self.inp(x) + self.rec(h))
        return h, h


def net(tie=None):
    rng = np.random.default_rng(0)
    pre = np.concatenate([np.setdiff1d(rng.permutation(N), [i])[:DEGREE] for i in range(N)])
    graph = se.from_edges(pre, np.repeat(np.arange(N), DEGREE), rng.normal(size=N * DEGREE), dtype=float)
    rec = se.ETraceParam({"weight": graph.weight}, se.SpMatMulOp(graph, tie=tie))
    return Net(rec, se.MatMulOp().param(None, INPUTS, N, init=rng.normal(size=(INPUTS, N))))


def loss_fn(out, y):
    return 0.5 * jnp.sum((out - y) ** 2)


def data(steps):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=(steps, INPUTS))), jnp.asarray(rng.normal(size=(steps, N)))


def ends(model):
    conn = model.rec.op.connectivity
    return np.asarray(conn.pre), np.asarray(conn.post)


class DenseTraces:
    """D-RTRL with a trace for each pair of units, in numpy."""

    def __init__(self):
        self.h, self.eps = np.zeros(N), np.zeros((N, N))

    def gradient(self, model, xs, ys):
        at, w, total = ends(model), np.zeros((N, N)), np.zeros((N, N))
        w[at] = model.rec.value["weight"]
        for x, y in zip(np.asarray(xs), np.asarray(ys), strict=True):
            act = np.tanh(x @ np.asarray(model.inp.value["weight"]) + self.h @ w)
            self.eps = LEAK * self.eps + (1 - LEAK) * (1 - act**2) * self.h[:, None]
            self.h = LEAK * self.h + (1 - LEAK) * act
            total += (self.h - y) * self.eps
        return total[at]


def test_rewiring_every_100_steps():
    """No compilation, in-degrees kept, gradients right from the next step on, and Adam's moments moved."""
    model, (xs, ys), learner = net(), data(1000), se.D_RTRL()
    optimizer, oracle = optax.adam(1e-2), DenseTraces()
    opt_state = optimizer.init(eqx.filter(model, se.trainable(model)))
    carry = learner.init(model, jnp.zeros(N), xs[0])

    @eqx.filter_jit
    def update(model, opt_state, grads):
        changes, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(model, changes), opt_state

    for begin in range(0, 1000, 50):
        if begin and begin % 100 == 0:
            if begin == 100:
                assert compiled
                compiled.clear()
            moments, (pre, post) = np.zeros((N, N)), ends(model)
            moments[pre, post] = opt_state[0].mu.rec.value["weight"]
            senders = se.rewiring.sparse_evolution(model.rec, KEYS[begin // 100], share=0.5)
            model, carry, opt_state, order = se.rewire(model, lambda m: m.rec, senders, carry, opt_state)
            now, same = ends(model)
            assert np.array_equal(same, post) and (order < 0).sum() == N * DEGREE // 2
            assert len({*zip(now, post, strict=True)}) == N * DEGREE and not np.any(now == post)
            fresh = np.ones((N, N), bool)
            fresh[now[order >= 0], post[order >= 0]] = False
            oracle.eps[fresh] = moments[fresh] = 0
            assert np.array_equal(opt_state[0].mu.rec.value["weight"], moments[now, post])
            assert not np.any(np.asarray(model.rec.value["weight"])[order < 0])
        for part in (slice(begin, begin + 1), slice(begin + 1, begin + 50)):
            expected = oracle.gradient(model, xs[part], ys[part])
            _, grads, carry = se.online_grad(learner, loss_fn, model, carry, xs[part], ys[part], chunk=7)
            np.testing.assert_allclose(grads.rec.value["weight"], expected, rtol=0, atol=1e-10)
        model, opt_state = update(model, opt_state, grads)
    assert not compiled


def test_influences_go_with_their_columns(monkeypatch):
    """RTRL by one matrix, exact: a synapse that stays has all of its past, a new one has none."""
    monkeypatch.setattr(rtrl, "_acts_through_ops", lambda grouping: False)
    model, (xs, ys) = net(), data(8)
    learner = se.RTRL()
    carry = learner.init(model, jnp.zeros(N), xs[0])
    _, _, carry = se.online_grad(learner, loss_fn, model, carry, xs[:4], ys[:4])
    old = ends(model)
    senders = se.rewiring.sparse_evolution(model.rec, KEY, share=0.5)
    new = se.rewire(model, lambda m: m.rec, senders, carry, weight=np.linspace(0.1, 1, N * DEGREE))
    _, grads, _ = se.online_grad(learner, loss_fn, new.model, new.carry, xs[4:], ys[4:])
    first = jnp.zeros((N, N)).at[old].set(model.rec.value["weight"])
    later = ends(new.model)
    stays = jnp.zeros((N, N)).at[later].set(new.order >= 0)
    weight = new.model.rec.value["weight"]

    def total(change):
        h, loss = jnp.zeros(N), 0.0
        for t, (x, y) in enumerate(zip(xs, ys, strict=True)):
            w = first + stays * change if t < 4 else jnp.zeros((N, N)).at[later].set(weight) + change
            h = LEAK * h + (1 - LEAK) * jnp.tanh(x @ model.inp.value["weight"] + h @ w)
            loss += loss_fn(h, y) if t >= 4 else 0
        return loss

    expected = jax.jit(jax.grad(total))(jnp.zeros((N, N)))[later]
    np.testing.assert_allclose(grads.rec.value["weight"], expected, rtol=0, atol=1e-10)


def test_a_rule_of_factors_keeps_those_of_units():
    model, (xs, ys), learner = net(), data(4), se.ES_D_RTRL(decay=0.5)
    carry = learner.init(model, jnp.zeros(N), xs[0])
    carry = se.online_grad(learner, loss_fn, model, carry, xs, ys)[2]
    new = se.rewire(model, lambda m: m.rec, se.rewiring.sparse_evolution(model.rec, KEY), carry)
    assert eqx.tree_equal(new.carry.traces, carry.traces) and new.opt_state is None
    se.online_grad(learner, loss_fn, new.model, new.carry, xs, ys)
    with pytest.raises(ValueError, match="carry: it is of another connectivity"):
        se.online_grad(learner, loss_fn, new.model, carry, xs, ys)


@pytest.mark.parametrize("size, degree", [(30, 6), (30, 20), (2000, 6)])
def test_drawn_senders_are_new_and_equally_likely(size, degree):
    """Of units with few and with many senders, where none, or where it may not send to itself."""
    targets = 2000
    graph = se.from_edges(
        np.tile(np.arange(degree), targets), np.repeat(np.arange(targets), degree), shape=(size, targets)
    )
    param = se.SpMatMulOp(graph).param(init=graph)
    pre = se.rewiring.sparse_evolution(param, KEY, share=0.5).reshape(targets, degree)
    gone = min(degree // 2, size - degree)
    assert (np.sort(pre)[:, : degree - gone] < degree).all() and (np.diff(np.sort(pre)) > 0).all()
    new = pre[pre >= degree]
    assert new.size == gone * targets and not (size == targets and (pre == np.arange(targets)[:, None])[degree:].any())
    even = new.size / (size - degree)
    assert abs(np.bincount(new, minlength=size)[degree:] - even).max() < 6 * even**0.5


def test_senders_of_the_largest_gradient():
    model = net()
    pre, post = ends(model)
    score = np.random.default_rng(2).normal(size=(N, N))
    new = se.rewiring.rigl(model.rec, score, share=0.25)
    assert np.array_equal(new, se.rewiring.rigl(model.rec, lambda i: score[:, i], share=0.25))
    parted = se.shard(model.rec, jax.make_mesh((1,), ("units",)))
    assert np.array_equal(new, se.rewiring.rigl(parted, score, share=0.25))
    for i in range(N):
        mine = post == i
        smallest = np.argmin(np.abs(np.asarray(model.rec.value["weight"])[mine]))
        absent = np.setdiff1d(np.arange(N), [*pre[mine], i])
        assert new[mine][smallest] == absent[np.argmax(np.abs(score[absent, i]))]
        assert np.array_equal(np.delete(new[mine], smallest), np.delete(pre[mine], smallest))


def test_synapses_of_the_wrong_sign_go():
    model, sign = net(), np.where(np.arange(N) % 3, 1, -1)
    pre, post = ends(model)
    new = se.rewiring.deep_r(model.rec, KEY, sign)
    wrong = np.asarray(model.rec.value["weight"]) * sign[pre] <= 0
    assert np.array_equal(new != pre, wrong) and len({*zip(new, post, strict=True)}) == N * DEGREE


REFUSED = {
    "no parameter": (lambda m: se.rewire(m, lambda m: m.inp, []), TypeError, "of a SpMatMulOp, got MatMulOp"),
    "shape": (lambda m: se.rewire(m, lambda m: m.rec, [0]), ValueError, "pre: expected shape"),
    "weights": (
        lambda m: se.rewire(m, lambda m: m.rec, ends(m)[0], weight=[1, 2]), ValueError, "weight: expected shape"
    ),
    "made": (
        lambda m: se.rewire(m, lambda m: net().rec, ends(m)[0]), TypeError, "where: expected it to lead"
    ),
    "ties": (
        lambda m: se.rewire(net(tie=np.arange(N * DEGREE)), lambda m: m.rec, ends(m)[0]),
        ValueError,
        "where: expected a SpMatMulOp on a graph",
    ),
    "chosen": (
        lambda m: se.rewiring.rigl(m.inp, np.zeros((N, N))),
        TypeError,
        "param: expected that of a SpMatMulOp, got MatMulOp",
    ),
    "share": (lambda m: se.rewiring.sparse_evolution(m.rec, KEY, share=2), ValueError, "share: expected a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        make(net())


def test_of_paths_that_end_alike_each_is_its_own():
    model = net()
    outer = _Twice(model, model.inp, model.rec)
    kept = outer.deep.rec.value["weight"] * 2
    outer = eqx.tree_at(lambda m: m.deep.rec.value["weight"], outer, kept)
    pre = ends(model)[0].copy()
    pre[0] = (pre[0] + 1) % N
    moments = optax.trace(0.9).init(eqx.filter(outer, se.trainable(outer)))._replace(trace=outer)
    new = se.rewire(outer, lambda m: m.rec, pre, opt_state=moments).opt_state.trace
    np.testing.assert_array_equal(new.deep.rec.value["weight"], kept)
    assert np.count_nonzero(new.rec.value["weight"]) == N * DEGREE - 1


class _Twice(eqx.Module):
    """A network in a network, with parameters of the same names."""

    deep: eqx.Module
    inp: se.ETraceParam
    rec: se.ETraceParam


def test_influences_on_a_pattern_are_refused():
    model, (xs, _) = net(), data(1)
    carry = se.SnAp(1).init(model, jnp.zeros(N), xs[0])
    with pytest.raises(NotImplementedError, match="got influences on a pattern, which would be another"):
        se.rewire(model, lambda m: m.rec, ends(model)[0], carry)
