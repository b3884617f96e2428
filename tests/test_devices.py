"""Learners where a batch lies on several devices, mapped over them or on an explicit mesh: the gradient of one."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from soak import ONLY, few

import sparse_etrace as se

KEY = jax.random.key(0)
LEARNERS = [
    se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid(), se.OSTL(), se.OTTT(decay=0.7), se.EProp("['h']"), se.TBPTT(3), se.SnAp(2),
    se.RTRL(), se.BPTT(), se.Bridged(2), se.RFLO("['h']", key=KEY),
]  # fmt: skip
WAYS = ("pmap", "shard_map", "shard_map without jit", "followed", "followed without jit", "explicit", "explicit in jit")


def gradient(learner, model, carry, xs, ys):
    return se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys, chunk=2)[1]


def on_devices(learner, case, way, **options):
    """The gradient of a batch that is split over all devices."""
    if way.startswith("explicit"):
        return on_explicit_mesh(learner, case, eqx.filter_jit if way.endswith("jit") else lambda fn: fn)
    count = len(jax.devices())
    state = jax.tree.map(lambda a: a[: len(a) // count], case.twin.state)
    carry = learner.init(case.model, state, case.xs[0, : case.xs.shape[1] // count])
    carry = jax.tree.map(lambda a: jnp.stack([a] * count), carry)
    carry = se.Carry(jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), case.twin.state), *_rest(carry))
    if way == "pmap":
        split = [jnp.stack(jnp.split(a, count, axis=1)) for a in (case.xs, case.ys)]
        mapped = jax.pmap(lambda carry, *data: gradient(learner, case.model, carry, *data))
        return jax.tree.map(lambda g: g.sum(0), mapped(carry, *split))

    def one(carry, xs, ys):
        carry = jax.tree.map(lambda a: a[0], carry)
        return jax.tree.map(lambda g: jax.lax.psum(g, "d"), gradient(learner, case.model, carry, xs, ys))

    mesh, data = Mesh(np.array(jax.devices()), ("d",)), P(None, "d")
    mapped = jax.shard_map(one, mesh=mesh, in_specs=(P("d"), data, data), out_specs=P(), **options)
    return (mapped if way.endswith("without jit") else jax.jit(mapped))(carry, case.xs, case.ys)


def on_explicit_mesh(learner, case, jit):
    """After all have started again, and none."""
    mesh = jax.make_mesh((len(jax.devices()),), ("d",), axis_types=(AxisType.Explicit,))

    def place(tree, *axes):
        return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, P(*axes, "d"))), tree)

    with jax.set_mesh(mesh):
        state, (xs, ys) = place(case.twin.state), place((case.xs, case.ys), None)
        carry = learner.init(case.model, state, xs[0])
        none = jnp.zeros(xs.shape[1], bool)
        carry = jit(learner.reset)(learner.reset(carry, ~none, state), none, state)
        found = jit(gradient)(learner, case.model, carry, xs, ys)
        assert all(AxisType.Explicit in jax.typeof(g).sharding.mesh.axis_types for g in jax.tree.leaves(found))
    return found


def check_closed_over():
    """Arrays on an explicit mesh, none of which is set, that a `jit` or a `vmap` closes over."""
    case, learner = models.build("decay"), se.D_RTRL()
    mesh = jax.make_mesh((len(jax.devices()),), ("d",), axis_types=(AxisType.Explicit,))
    state, x = jax.device_put((case.twin.state, case.xs[0]), NamedSharding(mesh, P("d")))
    xs, ys = (jax.device_put(a[:4], NamedSharding(mesh, P(None, "d"))) for a in (case.xs, case.ys))

    def run():
        carry = learner.init(case.model, state, x)
        return se.predict(case.model, carry, xs), gradient(learner, case.model, carry, xs, ys)

    expected = run()
    assert oracles.relative_error(jax.jit(run)(), expected) < 1e-12
    jax.vmap(lambda k: se.predict(case.model, state, xs)[0])(jnp.ones(2))
    carry = learner.init(case.model, case.twin.state, case.xs[0])
    mapped = jax.vmap(lambda k: gradient(learner, case.model, carry, xs, k * case.ys[:4]))(jnp.ones(2))
    assert oracles.relative_error(jax.tree.map(lambda a: a[1], mapped), expected[1]) < 1e-12
    plans = [se.memory_plan(learner, case.model, *given) for given in ((state, x), (case.twin.state, case.xs[0]))]
    assert plans[0] == plans[1]


def check_active(op):
    """Sets of active units that lie on an explicit mesh."""
    param = op.param(KEY, 3, 2, *[1] if isinstance(op, se.LoraOp) else [])
    mesh = jax.make_mesh((len(jax.devices()),), ("d",), axis_types=(AxisType.Explicit,))
    ids = jnp.tile(jnp.array([[0, 2], [1, 3]]), (len(jax.devices()), 1))
    alone, there = (se.spikes.Active(a, 3) for a in (ids, jax.device_put(ids, NamedSharding(mesh, P("d")))))
    for run in (param, jax.jit(lambda x: param(x))):
        np.testing.assert_allclose(run(there), param(alone), rtol=1e-12)
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(jax.jit(jnp.asarray)(there), jnp.asarray(alone))


def _rest(carry):
    return carry.traces, carry.memory


def check(learner, way):
    case = models.build("decay")
    carry = learner.init(case.model, case.twin.state, case.xs[0])
    expected = gradient(learner, case.model, carry, case.xs, case.ys)
    options = {} if way == "pmap" or way.startswith("explicit") else {"check_vma": way.startswith("followed")}
    assert oracles.relative_error(on_devices(learner, case, way, **options), expected) < 1e-10


GRID = [(learner, way) for learner in LEARNERS for way in WAYS]
# What these make of the whole batch, a reward or signs that are drawn, is another of each part.
GRID += [(learner, way) for learner in (se.ThreeFactor("['h']"), se.UORO(KEY)) for way in WAYS[-2:]]


@pytest.mark.parametrize("learner, way", few(GRID, [GRID[3], GRID[5]]), ids=str)
@pytest.mark.usefixtures("x64")
def test_on_one_device(learner, way):
    check(learner, way)


@ONLY
def test_on_two_devices():
    code = "import jax, test_devices as t\njax.config.update('jax_enable_x64', True)\n"
    code += "assert len(jax.devices()) == 2\n[t.check(*case) for case in t.GRID]\n"
    code += "t.check_closed_over()\nt.check_active(t.se.MatMulOp())\n"
    code += "[t.test_derivatives_are_summed_over_devices(n) for n in t.PRODUCTS]"
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **flags})


@pytest.mark.usefixtures("x64")
def test_arrays_on_explicit_meshes_that_are_closed_over():
    check_closed_over()


@pytest.mark.parametrize("op", [se.MatMulOp(), se.LoraOp()])
@pytest.mark.usefixtures("x64")
def test_active_units_on_explicit_meshes(op):
    check_active(op)


def summed_over_devices(fn, follows):
    """The gradient of a sum over the batch by what all devices share, where JAX follows what differs, or by hand."""

    def one(w, x):
        grad = jax.grad(lambda w: jnp.sum(fn(w, x) ** 2))(w)
        return grad if follows else jax.lax.psum(grad, "d")

    mesh = Mesh(np.array(jax.devices()), ("d",))
    return jax.shard_map(one, mesh=mesh, in_specs=(P(), P("d")), out_specs=P(), check_vma=follows)


def rings(op, w, x):
    ring = op.ring(len(x)).push(x).push(2 * x)
    return op.xw_to_y(op.read(ring), op.phi({"weight": w}))


GRAPH = se.from_edges([0, 1, 2, 0], [1, 2, 0, 0], [1.0, 2.0, 3.0, 4.0])
PRODUCTS = {
    "sparse": lambda w, x: se.ETraceParam({"weight": w}, se.SpMatMulOp(GRAPH))(x),
    "transposed": lambda w, x: jax.grad(lambda x: jnp.sum(se.ETraceParam({"weight": w}, se.SpMatMulOp(GRAPH))(x)))(x),
    "delays": lambda w, x: rings(se.SpMatMulOp(GRAPH, delay=[1, 2, 2, 1]), w, x),
    "mapped": lambda w, x: jax.vmap(lambda w: se.ETraceParam({"weight": w}, se.SpMatMulOp(GRAPH))(x))(w[None] * w),
    "dense": lambda w, x: se.ETraceParam({"weight": w[:3, None] * w[:2]}, se.MatMulOp())(x),
    "each unit": lambda w, x: se.ElemWiseParam(w[:3])() * x,
    "cut": lambda w, x: se.cut(lambda w, x: w[:3] * x)(w, x),
    "cut that reads more": lambda w, x: se.cut(lambda w: w[:3] * x)(w),
}


@pytest.mark.parametrize("name", few([*PRODUCTS], ["sparse", "delays", "cut"]))
@pytest.mark.usefixtures("x64")
def test_derivatives_are_summed_over_devices(name):
    w, x = jnp.arange(1.0, 5.0), jnp.arange(3.0 * 2 * len(jax.devices())).reshape(-1, 3)
    follows, by_hand = (summed_over_devices(PRODUCTS[name], follows) for follows in (True, False))
    assert "psum" in str(jax.make_jaxpr(follows)(w, x))
    expected = jax.grad(lambda w: jnp.sum(PRODUCTS[name](w, x) ** 2))(w)
    for found in (jax.jit(follows)(w, x), jax.jit(by_hand)(w, x)):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_single_steps_are_refused_where_arrays_are_followed():
    case = models.build("decay")
    learner, mesh = se.D_RTRL(), Mesh(np.array(jax.devices()), ("d",))

    def one(state, x):
        return learner.step(case.model, learner.init(case.model, state, x), x)[1]

    with pytest.raises(NotImplementedError, match=r"jax\.shard_map: .* vary over d.*se\.online_grad.*check_vma=False"):
        jax.shard_map(one, mesh=mesh, in_specs=P("d"), out_specs=P("d"))(case.twin.state, case.xs[0])


def test_a_loss_that_reads_what_differs_beside_its_arguments():
    case, learner, mesh = models.build("decay"), se.D_RTRL(), Mesh(np.array(jax.devices()), ("d",))
    carry = learner.init(case.model, case.twin.state, case.xs[0])

    def one(xs, ys):
        def loss(out, y):
            return oracles.loss_fn(out, y) * jnp.sum(xs)

        return se.online_grad(learner, loss, case.model, carry, xs, ys)[1]

    with pytest.raises(NotImplementedError, match=r"reads only its arguments, got .* differs over d\. Give"):
        jax.shard_map(one, mesh=mesh, in_specs=P(None, "d"), out_specs=P("d"))(case.xs, case.ys)


@pytest.mark.usefixtures("x64")
def test_a_gradient_is_mapped_where_arrays_are_followed():
    case, learner, mesh = models.build("decay"), se.D_RTRL(), Mesh(np.array(jax.devices()), ("d",))
    state = jax.tree.map(lambda a: a[0], case.twin.state)

    def each(x, y):
        return gradient(learner, case.model, learner.init(case.model, state, x[0]), x, y)

    def one(xs, ys):
        return jax.tree.map(lambda g: jax.lax.psum(g.sum(0), "d"), jax.vmap(each, in_axes=1)(xs, ys))

    found = jax.shard_map(one, mesh=mesh, in_specs=P(None, "d"), out_specs=P())(case.xs, case.ys)
    expected = jax.tree.map(lambda g: g.sum(0), jax.vmap(each, in_axes=1)(case.xs, case.ys))
    assert oracles.relative_error(found, expected) < 1e-10


def test_derivatives_of_bptt_are_refused_where_arrays_are_followed():
    case, learner, mesh = models.build("decay"), se.BPTT(), Mesh(np.array(jax.devices()), ("d",))
    carry = learner.init(case.model, case.twin.state, case.xs[0])

    def one(xs, ys):
        return jax.grad(lambda xs: se.online_grad(learner, oracles.loss_fn, case.model, carry, xs, ys)[0].sum())(xs)

    with pytest.raises(NotImplementedError, match=r"jax\.shard_map: expected check_vma=False .* BPTT returns"):
        jax.shard_map(one, mesh=mesh, in_specs=P(None, "d"), out_specs=P(None, "d"))(case.xs, case.ys)


def test_a_product_is_exported_as_bytes():
    pytest.importorskip("flatbuffers", reason="jax.export writes bytes by flatbuffers, which jax does not bring")
    param, x = se.ETraceParam({"weight": GRAPH.weight}, se.SpMatMulOp(GRAPH)), jnp.arange(3.0)
    with se.kernels("xla"):
        written = jax.export.export(jax.jit(lambda x: param(x)))(x).serialize()
    np.testing.assert_allclose(jax.export.deserialize(written).call(x), param(x), rtol=1e-6)
