"""Learners inside what maps over devices: a batch that lies on several gives the gradient of one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from jax.sharding import Mesh, PartitionSpec as P
from soak import ONLY, few

import sparse_etrace as se

KEY = jax.random.key(0)
LEARNERS = [
    se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid(), se.OSTL(), se.OTTT(decay=0.7), se.EProp("['h']"), se.TBPTT(3), se.SnAp(2),
    se.RTRL(), se.BPTT(),
]  # fmt: skip
WAYS = ("pmap", "shard_map", "shard_map without jit")


def gradient(learner, model, carry, xs, ys):
    return se.online_grad(learner, oracles.loss_fn, model, carry, xs, ys, chunk=2)[1]


def on_devices(learner, case, way, **options):
    """The gradient of a batch that is split over all devices."""
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
    return (jax.jit(mapped) if way == "shard_map" else mapped)(carry, case.xs, case.ys)


def _rest(carry):
    return carry.traces, carry.memory


def check(learner, way):
    case = models.build("decay")
    carry = learner.init(case.model, case.twin.state, case.xs[0])
    expected = gradient(learner, case.model, carry, case.xs, case.ys)
    options = {} if way == "pmap" else {"check_vma": False}
    assert oracles.relative_error(on_devices(learner, case, way, **options), expected) < 1e-10


GRID = [(learner, way) for learner in LEARNERS for way in WAYS]


@pytest.mark.parametrize("learner, way", few(GRID, [GRID[1]]), ids=str)
@pytest.mark.usefixtures("x64")
def test_on_one_device(learner, way):
    check(learner, way)


@ONLY
def test_on_two_devices():
    code = "import jax, test_devices as t\njax.config.update('jax_enable_x64', True)\n"
    code += "assert len(jax.devices()) == 2\n[t.check(*case) for case in t.GRID]"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **flags})


@pytest.mark.parametrize("learner", [se.D_RTRL(), se.BPTT()], ids=str)
def test_arrays_followed_by_how_they_vary_are_refused(learner):
    with pytest.raises(
        NotImplementedError, match=r"jax\.shard_map: it follows how arrays vary over d.*check_vma=False"
    ):
        on_devices(learner, models.build("decay"), "shard_map", check_vma=True)
