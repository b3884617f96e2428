"""A model on several devices gives what it gives on one, and none of them has all synapses."""

import itertools
import os
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jax.experimental.sparse import BCOO
from soak import ONLY, few

import sparse_etrace as se
from sparse_etrace import _blocks as blocks, _read_sharded as read_sharded
from sparse_etrace._graph.connectivity import host_array
from sparse_etrace._op.delays import pushed_on
from sparse_etrace._report.exchange import as_mesh, exchanges
from sparse_etrace._train import parted
from sparse_etrace._train.checkpoint import Saved

UNITS, FEATURES, BATCH = 22, 3, 4
LEARNERS = {
    "D-RTRL": se.D_RTRL(), "ES-D-RTRL": se.ES_D_RTRL(0.9), "Bridged": se.Bridged(3), "BPTT": se.BPTT(),
    "e-prop": se.EProp("z", kappa=0.6), "bfloat16": se.D_RTRL(trace_dtype=jnp.bfloat16),
}  # fmt: skip
KINDS = ("rate", "alif", "gru", "features", "delays", "late features", "gates", "gated features", "ties", "late ties")
MESHES = ((4,), (2, 2), (3,))
OPTIMIZER = optax.adamw(0.01)
CASES = [
    (kind, name, shape) for kind, name, shape in itertools.product(KINDS, LEARNERS, MESHES)
    if (name != "e-prop" or kind == "alif") and (kind in KINDS[:4] or shape == (3,))
]  # fmt: skip
QUICK = [("delays", "D-RTRL", (3,))]
KEY = jax.random.key(0)
ALONE = [("alif", "RFLO alif", (2,)), ("rate", "OTTT", (2,)), ("rate", "TBPTT", (2,))]
MORE = {
    "OSTL": se.OSTL(), "OTTT": se.OTTT(0.7), "Hybrid": se.Hybrid(), "TBPTT": se.TBPTT(4, every=2), "UORO": se.UORO(KEY),
    "Bridged factors": se.Bridged(3, se.ES_D_RTRL(0.9)), "RTRL": se.RTRL(),
}  # fmt: skip
TAUGHT = {
    "RFLO": lambda leaf: se.RFLO(leaf, key=KEY), "RFLO factors": lambda leaf: se.RFLO(leaf, key=KEY, factor_decay=0.8),
    "three factors": lambda leaf: se.ThreeFactor(leaf, kappa=0.6),
    "e-prop by loss": lambda leaf: se.EProp(leaf, kappa=0.6),
    "e-prop of rates": lambda leaf: se.EProp(leaf, "random", KEY, rate_strength=0.3, rate_target=0.1),
}  # fmt: skip
LEAVES = {"alif": "z", "rate": "state", "heard": "[1]"}
LEARNERS |= MORE | {f"{name} {kind}": made(leaf) for kind, leaf in LEAVES.items() for name, made in TAUGHT.items()}
OTHERS = [(kind, name, (3,)) for kind, name in [
    *itertools.product(["alif", "rate"], MORE), *((kind, f"{name} {kind}") for kind in LEAVES for name in TAUGHT)]
]  # fmt: skip


def graph(delays=False):
    """A network with a hub, parallel synapses, and a unit that receives nothing."""
    rng = np.random.default_rng(0)
    pre, post = rng.integers(0, UNITS, 90), rng.integers(0, UNITS - 1, 90)
    pre, post = np.append(pre, np.arange(UNITS)), np.append(post, np.full(UNITS, 5))
    weight, steps = rng.normal(size=pre.size), rng.integers(1, 5, pre.size)
    return se.from_edges(pre, post, weight, shape=(UNITS, UNITS), edge_attrs={"delay": steps} if delays else None)


class Spread(eqx.Module):
    """A leaky layer of nodes with features."""

    rec: se.ETraceParam
    inp: se.ETraceParam

    def __call__(self, state, x):
        h, line = state
        sent = (line, gates(self.rec, x)) if self.rec.op.gated else line
        h = 0.8 * h + 0.2 * jnp.tanh(self.rec(sent) + self.inp(x)[..., None])
        return (h, line.push(h) if isinstance(line, se.Ring) else h), h.reshape(*h.shape[:-2], -1)


class Gated(eqx.Module):
    """A leaky layer of which some synapses are silent in each step."""

    rec: se.ETraceParam
    inp: se.ETraceParam

    def __call__(self, h, x):
        h = 0.8 * h + 0.2 * jnp.tanh(self.rec((h, gates(self.rec, x))) + self.inp(x))
        return h, h


def gates(rec, x):
    """For each synapse, as the input says."""
    count = rec.op.length if hasattr(rec.op, "length") else rec.op.connectivity.num_synapses
    return jnp.sin(x[..., :1] * jnp.arange(count)) > 0


class Heard(eqx.Module):
    """Neurons with delays whose spikes of the last step are in the state."""

    cell: eqx.Module
    out: se.ETraceParam

    def __call__(self, state, x):
        state, z = self.cell(state[0], x)
        return (state, z), self.out(z)


class Net(eqx.Module):
    """A cell and its readout."""

    cell: eqx.Module
    out: se.ETraceParam

    def __call__(self, state, x):
        state, y = self.cell(state, x)
        return state, self.out(y)


def build(kind):
    """A model and its state, from a graph that is in blocks already."""
    keys, on = jax.random.split(jax.random.key(0), 3), graph("late" in kind or kind in ("delays", "heard"))
    if "features" in kind:
        sign = np.where(np.arange(on.connectivity.num_synapses) % 3 == 0, -1, 1)
        op = se.SpMatMulOp(on, axis=-2, weight_fn=se.SignLock(sign), bias=True, gated="gated" in kind)
        cell = Spread(op.param(keys[0]), se.MatMulOp(bias=True).param(keys[2], 2, UNITS, is_etrace=False))
        h = jnp.zeros((BATCH, UNITS, FEATURES))
        state = h, op.ring(BATCH, features=FEATURES) if kind == "late features" else h
    elif "ties" in kind:
        tie = np.random.default_rng(2).integers(0, 7, on.connectivity.num_synapses)
        fn = jnp.tanh if kind == "ties" else None
        rec = se.SpMatMulOp(on, weight_fn=fn, tie=tie, bias=True).param(keys[0])
        cell = se.cells.ALIF(
            UNITS, se.MatMulOp().param(keys[2], 2, UNITS, init=8 * jax.random.normal(keys[2], (2, UNITS))), rec
        )
        state = cell.init_state(BATCH)
    elif kind == "gates":
        op = se.SpMatMulOp(on, gated=True, bias=True)
        cell = Gated(op.param(keys[0]), se.MatMulOp(bias=True).param(keys[2], 2, UNITS))
        state = jnp.zeros((BATCH, UNITS))
    else:
        made = {"rate": se.cells.LeakyRate, "gru": se.cells.GRU}.get(kind, se.cells.ALIF)
        cell = made.of(on, inputs=2, key=keys[0], **{} if made is se.cells.ALIF else {"bias": True})
        if made is se.cells.ALIF:  # loud enough for spikes
            cell = eqx.tree_at(
                lambda c: (c.inp.value["weight"], c.rec.value["weight"]), cell, replace_fn=lambda w: 8 * w
            )
        state = cell.init_state(BATCH)
    size = UNITS * FEATURES if "features" in kind else UNITS
    out = se.MatMulOp().param(keys[1], size, 2)
    return (Heard(cell, out), (state, jnp.zeros((BATCH, UNITS)))) if kind == "heard" else (Net(cell, out), state)


def loss_fn(out, y):
    return jnp.sum((out - y) ** 2)


def trained(learner, model, state, xs, ys):
    """Losses, gradient and last state of two calls, some of the batch starting again between them."""
    carry = learner.init(model, state, xs[0])
    first, before, carry = se.online_grad(learner, loss_fn, model, carry, xs[:6], ys[:6], chunk=3)
    carry = learner.reset(carry, jnp.arange(BATCH) % 2 == 0, state)
    second, after, carry = se.online_grad(learner, loss_fn, model, carry, xs[6:], ys[6:], chunk=3)
    return jnp.concatenate([first, second]), jax.tree.map(jnp.add, before, after), carry.state


def whole(grads, model, rtol=1e-12):
    """Gradients as those of the model on one device; those of what fills blocks up are zero."""
    leaves = eqx.filter(model, se.trainable(model))
    given = eqx.combine(jax.tree.map(lambda g, _: g, grads, leaves), model)
    back = se.unshard(given)
    filled = sum(float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(grads))
    kept = sum(float(jnp.sum(jnp.abs(g))) for g in jax.tree.leaves(eqx.filter(back, se.trainable(back))))
    np.testing.assert_allclose(filled, kept, rtol=rtol)
    return eqx.filter(back, se.trainable(back))


def compare(kind, name, shape, rtol=1e-12):
    mesh = jax.make_mesh(shape, ("units", "batch")[: len(shape)], devices=jax.devices()[: int(np.prod(shape))])
    model, state = build(kind)
    learner = LEARNERS[name]
    rng = np.random.default_rng(1)
    xs, ys = (jnp.asarray(rng.normal(size=(12, BATCH, 2))) for _ in range(2))
    parted = se.shard(model, mesh)
    losses, grads, last = trained(learner, parted, state, xs, ys)
    found = [host_array("found", a) for a in jax.tree.leaves((losses, whole(grads, parted, rtol), last))]
    if jax.process_index():  # which was needed for that, and not for what follows
        return
    expected = jax.tree.leaves(trained(learner, model, state, xs, ys))
    assert len(found) == len(expected) > 3 and all(map(np.any, expected[: -len(jax.tree.leaves(last))]))
    tolerance = 2e-2 if name == "bfloat16" else rtol
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * (1e-30 + float(jnp.max(jnp.abs(a)))), err_msg=kind)


def check_explicit(kind, shape):
    """Where axes are explicit: outputs of a model called by hand, and losses and gradients, of arrays on the mesh."""
    names, axes = ("units", "batch")[: len(shape)], (jax.sharding.AxisType.Explicit,) * len(shape)
    mesh = jax.make_mesh(shape, names, axes, devices=jax.devices()[: int(np.prod(shape))])
    (model, state), learner = build(kind), se.D_RTRL()
    parted, xs = se.shard(model, mesh), jnp.asarray(np.random.default_rng(1).normal(size=(4, BATCH, 2)))

    def run(model, state, xs):
        out = model(model(state, xs[0])[0], xs[1])[1]
        carry = learner.init(model, state, xs[0])
        return out, *se.online_grad(learner, loss_fn, model, carry, xs, xs, chunk=2)[:2]

    def place(leaf, front=0):
        has_batch = leaf.shape[front : front + 1] == (BATCH,)
        return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*[None] * front, *names[1:] if has_batch else ())))

    expected, there = jax.tree.leaves(eqx.filter_jit(run)(model, state, xs)), place(xs, 1)
    out = [run(parted, jax.tree.map(place, state), there)]
    with jax.set_mesh(mesh):
        out.append(eqx.filter_jit(run)(parted, state, there))
        assert se.explain(learner, parted, state, there[0]).rows
    for y, losses, grads in out:
        for a, b in zip(expected, jax.tree.leaves((y, losses, whole(grads, parted))), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * float(jnp.max(jnp.abs(a))), err_msg=kind)


COLLECTIVES = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"


def exchanged(text):
    """Results of the collectives of a compiled program, one for each time that one runs."""
    parts = {head.split()[0 if head[0] == "%" else 1].strip("%"): body for head, body in re.findall(
        r"^((?:ENTRY )?%[^\n]* \{)\n(.*?)^\}", text, re.M | re.S)}  # fmt: skip

    def of(name):
        found = []
        for line in parts[name].splitlines():
            if made := re.search(rf" = (.*) ({COLLECTIVES})\(", line):
                found.append((made[2], ", ".join(re.findall(r"\w+\[[\d,]*\]", made[1]))))
            trips = re.search(r'known_trip_count":\{"n":"(\d+)', line)
            for inner in set(re.findall(r"=\{?%([\w.-]+)", line)) & set(parts):
                found += of(inner) * (int(trips[1]) if trips else 1)
        return found

    return sorted(of(re.search(r"^ENTRY %([\w.-]+)", text, re.M)[1]))


def program(learner, mesh, units=400, steps=8, batch=BATCH, delay=None):
    """A compiled gradient of windows of half the steps, and what was planned of it."""
    on = se.generate.fixed_in_degree(units, 100, jax.random.key(0))
    on = (
        on
        if delay is None
        else se.Graph(on.connectivity, on.weight, edge_attrs={"delay": np.full(on.weight.size, delay)})
    )
    made = se.cells.LeakyRate if delay is None else se.cells.ALIF
    cell = made.of(on, inputs=2, key=jax.random.key(1))
    whole = Net(cell, se.MatMulOp().param(jax.random.key(2), units, 2))
    model, state, xs = se.shard(whole, mesh), cell.init_state(batch), jnp.ones((steps, batch, 2))
    carry = learner.init(model, state, xs[0])
    run = eqx.filter_jit(lambda *given: se.online_grad(learner, loss_fn, *given, chunk=steps // 2))
    plan = se.memory_plan(learner, whole, state, xs[0], steps, chunk=steps // 2, mesh=mesh.size)
    return run.lower(model, carry, xs, xs).compile().compiled, plan


def check_plan(learner, mesh, tolerance=0.02):
    made, plan = program(learner, mesh)
    found = exchanged(made.as_text())
    planned = [(one.kind, one.result) for one in plan.exchanges for _ in range(one.times)]
    assert sorted(planned) == found, (planned, found)
    sizes = [shape.split(",") for _, shapes in found for shape in re.findall(r"f32\[(.*?)\]", shapes)]
    assert plan.exchanged == sum(4 * np.prod([int(n) for n in shape if n]) for shape in sizes) / 8, found
    memory = made.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert abs(plan.total / needed - 1) < tolerance, (plan.total, needed)
    return found, made.as_text()


def check_program():
    found, text = check_plan(se.D_RTRL(), jax.make_mesh((2,), ("units",), devices=jax.local_devices()[:2]))
    assert found == 8 * [
        ("all-gather", f"f32[{BATCH},400]"),  # what units send in a step, to the products and to the traces
    ] + 8 * [
        ("all-reduce", f"f32[{BATCH},2]"),  # the readout, a sum over units
    ]  # fmt: skip
    assert largest(text) == BATCH * 400 * 100 // 2  # traces of the synapses of a device


def largest(text):
    """Entries of the largest array of a compiled program."""
    shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", text)
    return max(int(np.prod([*map(int, shape.split(","))])) for shape in shapes)


def check_collectives():
    """Those that the page names, and on no device an array of all synapses."""
    mesh, own = jax.make_mesh((2,), ("units",), devices=jax.local_devices()[:2]), 400 * 100 // 2
    both = [("all-gather", f"f32[{BATCH},400]"), ("all-reduce", f"f32[{BATCH},2]")]
    for learner, back, most in ((se.ES_D_RTRL(), 0, own), (se.Bridged(3), 8, BATCH * own), (se.BPTT(), 8, own)):
        text = program(learner, mesh)[0].as_text()
        assert exchanged(text) == sorted(8 * both + back * [("all-reduce", f"f32[{BATCH},400]")])
        assert largest(text) == most


def check_program_with_delays():
    """Of a ring, which is on each device, what is pushed is exchanged."""
    mesh = jax.make_mesh((2,), ("units",), devices=jax.local_devices()[:2])
    for learner in (se.D_RTRL(), se.ES_D_RTRL(0.9)):
        made, plan = program(learner, mesh, delay=5)
        assert exchanged(made.as_text()) == 8 * [("all-gather", f"f32[{BATCH},400]")] + 8 * [
            ("all-reduce", f"f32[{BATCH},2]")
        ]
        assert plan.exchanged == 4 * BATCH * (400 + 2)


class Restarted(eqx.Module):
    """A layer with delays whose state starts again at some inputs."""

    rec: se.ETraceParam

    def __call__(self, state, x):
        first = jnp.zeros(UNITS), se.Ring(jnp.zeros((4, UNITS)), jnp.array(0))
        h, ring = jax.tree.map(lambda a, b: jnp.where(x > 0.5, a, b), first, state)
        h = 0.8 * h + jnp.tanh(self.rec(ring) + x)
        return (h, ring.push(h)), h


def check_restarts():
    """A step may take a ring from elsewhere than the state."""
    op, xs = se.SpMatMulOp(graph(True)), jnp.array([0.1, 0.2, 0.6, 0.3, 0.4])
    model, state = Restarted(op.param(init=graph(True))), (jnp.zeros(UNITS), op.ring())
    parted, found = se.shard(model, jax.make_mesh((2,), ("units",), devices=jax.local_devices()[:2])), []
    for m in (model, parted):
        carry = se.D_RTRL().init(m, state, xs[0])
        losses, grads, _ = se.online_grad(se.D_RTRL(), loss_fn, m, carry, xs, xs, chunk=2)
        found.append((losses, (grads if m is model else whole(grads, parted)).rec.value["weight"]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-12 * float(jnp.max(jnp.abs(one))))


def check_weight_functions():
    """What is parted differs from what it fills blocks up with; a function that would read both is refused."""
    mesh, one = (jax.make_mesh((count,), ("units",), devices=jax.local_devices()[:count]) for count in (2, 1))
    sign = jnp.sign(graph().weight)
    for fn in (lambda w: w / jnp.linalg.norm(w), lambda w: w * sign):
        param = se.ETraceParam({"weight": graph().weight}, se.SpMatMulOp(graph(), fn))
        with pytest.raises(ValueError, match=r"weight_fn: expected a function of each weight by itself, .*, got"):
            se.shard(param, mesh)
    model, _ = build("rate")
    assert eqx.tree_equal(se.shard(se.shard(model, mesh), one), se.shard(model, one))


def check_gates():
    """Gates follow the synapses into blocks, and so does what they read."""
    mesh, on = jax.make_mesh((2,), ("units",), devices=jax.local_devices()[:2]), graph()
    weight, pre, post = (np.asarray(a) for a in (on.weight, on.connectivity.pre, on.connectivity.post))
    param = se.shard(se.SpMatMulOp(on, gated=True).param(init=on), mesh)
    x, gate = np.linspace(-1, 1, UNITS), np.sin(np.arange(weight.size))

    def both(param, given):
        return param(given), param.op.xy_to_dw(param.op.read(given), given[0], param.value)["weight"]

    y, dw = jax.jit(both)(param, (jnp.asarray(x), jnp.asarray(gate)))
    np.testing.assert_allclose(y, np.bincount(post, weight * gate * x[pre], UNITS), rtol=1e-6)
    np.testing.assert_allclose(dw[param.op.blocks.kept], gate * x[pre] * x[post], rtol=1e-6)


def check_what_is_smaller():
    """`Hybrid` keeps the same of a layer in blocks, though its arrays are filled up."""
    ring, post = np.arange(UNITS), np.append(np.roll(np.arange(UNITS), 1), np.full(15, 5))
    cell = se.cells.LeakyRate.of(se.from_edges(np.append(ring, ring[:15]), post), 2, key=jax.random.key(0))
    parted = se.shard(cell, jax.make_mesh((2,), ("units",), devices=jax.local_devices()[:2]))
    kept = [se.Hybrid().init(m, m.init_state(), jnp.ones(2)).traces for m in (cell, parted)]
    assert jax.tree.structure(kept[0]) == jax.tree.structure(kept[1])


def check_alone():
    """What concerns one process, whose devices are two of the four."""
    for case in ALONE:
        compare(*case)
    check_restarts()
    check_weight_functions()
    check_gates()
    check_what_is_smaller()
    check_what_is_moved()
    jax.config.update("jax_enable_x64", False)
    check_program()


def check_fit():
    mesh, (model, state) = jax.make_mesh((4,), ("units",)), build("rate")
    xs, ys = jnp.ones((12, BATCH, 2)), jnp.zeros((12, BATCH, 2))
    options = {"state": state, "progress": False, "update": se.Update(every=4)}
    one, other = (
        se.fit(se.D_RTRL(), loss_fn, optax.adam(0.01), m, [(xs, ys)] * 3, **options)
        for m in (model, se.shard(model, mesh))
    )
    np.testing.assert_allclose(other.losses, one.losses, rtol=1e-10)
    rec = other.model.cell.rec
    assert rec.value["weight"].sharding.spec == rec.op.place(1).spec
    options["checkpoint"] = os.path.join(tempfile.mkdtemp(), "run.npz")
    for _ in range(2):  # the second time it is read
        read = se.fit(se.D_RTRL(), loss_fn, optax.adam(0.01), se.shard(model, mesh), [(xs, ys)] * 3, **options)
        assert eqx.tree_equal(read.model, other.model)
        assert read.model.cell.rec.value["weight"].sharding.spec == rec.op.place(1).spec
    leaves = [jax.tree.leaves(eqx.filter(m, eqx.is_inexact_array)) for m in (one.model, se.unshard(other.model))]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


TRAINED = []


def fitted(count, sequences, path=None, devices=None, kind="rate", name="D-RTRL"):
    """A run on so many devices; `TRAINED` has the numbers of its sequences but those that a checkpoint has."""
    TRAINED.clear()
    mesh = jax.make_mesh((count,), ("units",), devices=(devices or jax.devices())[:count])
    model, state = build(kind)
    xs, ys = jnp.asarray(np.random.default_rng(1).normal(size=(6, BATCH, 2))), jnp.zeros((6, BATCH, 2))
    return se.fit(
        LEARNERS[name], loss_fn, OPTIMIZER, se.shard(model, mesh), [(xs, ys)] * sequences, state=state, carry=True,
        update=se.Update(every=3), checkpoint=path and se.Checkpoint(path, every=1), progress=False,
        callbacks=lambda now: TRAINED.append(now.sequences),
    )  # fmt: skip


def bits(result):
    """All numbers of a result, read by all processes together."""
    arrays = eqx.filter((result.model, result.opt_state, result.carry), eqx.is_array)
    return [host_array("result", leaf) for leaf in jax.tree.leaves(arrays)]


def check_resumed(path, count=4, first=1, last=2, **which):
    """Stopped and resumed on as many devices, a run has the bits of one that was never stopped."""
    fitted(count, first, path, **which)
    resumed = fitted(count, last, path, **which)
    assert TRAINED == [*range(first + 1, last + 1)]
    for a, b in zip(bits(resumed), bits(fitted(count, last, **which)), strict=True):
        np.testing.assert_array_equal(a, b)


def check_part_missing(path):
    """Without what one process wrote, a checkpoint is none."""
    (part,) = Path(path).parent.glob("*.1")
    part.rename(f"{part}.away")
    with pytest.raises(ValueError, match=r"checkpoint: expected the parts of 2 processes .* got none of process 1"):
        fitted(1, 3, path, jax.local_devices())
    Path(f"{part}.away").rename(part)


def check_moved(path, counts, first, **which):
    """A run that goes on with other numbers of devices is that of one device."""
    for k, count in enumerate(counts, first):
        moved = fitted(count, k, path, jax.local_devices(), **which)
        assert TRAINED == [k]
    alone = fitted(1, k, None, jax.local_devices(), **which)
    np.testing.assert_allclose(moved.losses, alone.losses, rtol=1e-12)
    leaves = [jax.tree.leaves(eqx.filter(se.unshard(r.model), eqx.is_inexact_array)) for r in (moved, alone)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def check_rewired(name, kind, devices=None):
    """A layer that is rewired between calls is as on one device, with what is kept of it."""
    devices, (model, state) = devices or jax.local_devices(), build(kind)
    mesh = jax.make_mesh((len(devices),), ("units",), devices=devices)
    xs, ys = (jnp.asarray(np.random.default_rng(k).normal(size=(6, BATCH, 2))) for k in range(2))
    found = rewired(LEARNERS[name], se.shard(model, mesh), state, xs, ys)
    for a, b in zip(rewired(LEARNERS[name], model, state, xs, ys), found, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * (1e-30 + np.max(np.abs(a))))


def check_what_is_moved():
    """A layer that is rewired in blocks is the rewired layer in blocks, and so is what an optimizer keeps of it."""
    mesh, model = jax.make_mesh((2,), ("units",), devices=jax.local_devices()[:2]), build("rate")[0]
    pre, weight = se.rewiring.sparse_evolution(model.cell.rec, jax.random.key(0), 0.5), np.linspace(0.1, 1, 112)
    parted = se.shard(model, mesh)
    assert np.array_equal(se.rewiring.sparse_evolution(parted.cell.rec, jax.random.key(0), 0.5), pre)
    one, other = (
        se.rewire(m, lambda m: m.cell.rec, pre, opt_state=eqx.filter(m, se.trainable(m)), weight=weight)
        for m in (model, parted)
    )
    assert np.array_equal(one.order, other.order) and (one.order < 0).sum() > 20
    assert eqx.tree_equal(se.shard(one.model, mesh), other.model)
    kept = [eqx.combine(new.opt_state, new.model) for new in (one, other)]
    assert eqx.tree_equal(se.shard(kept[0], mesh), kept[1])


def rewired(learner, model, state, xs, ys):
    """Losses, and gradient, moments, weights and senders as on one device, of calls with rewiring between them."""
    optimizer, found, compiled = optax.adam(0.01), [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **rest: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    carry = learner.init(model, state, xs[0])
    opt_state = optimizer.init(eqx.filter(model, se.trainable(model)))

    @eqx.filter_jit
    def update(model, opt_state, grads):
        changes, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(model, changes), opt_state

    for k in range(3):
        compiled.clear()
        losses, grads, carry = se.online_grad(learner, loss_fn, model, carry, xs, ys, chunk=4)
        model, opt_state = update(model, opt_state, grads)
        assert k < 2 or not compiled  # the second call gets the arrays of the first, which lie elsewhere than at first
        recs = [se.unshard(eqx.combine(tree, model).cell.rec) for tree in (grads, opt_state[0].mu, model)]
        found += [losses, *(rec.value["weight"] for rec in recs), recs[-1].op.connectivity.pre]
        pre = se.rewiring.sparse_evolution(model.cell.rec, jax.random.key(k), share=0.5)
        options = {"weight": np.linspace(0.1, 1, pre.size)}
        model, carry, opt_state, order = se.rewire(model, lambda m: m.cell.rec, pre, carry, opt_state, **options)
        carry = learner.reset(carry, jnp.arange(BATCH) == k, state)
        assert (order < 0).sum() > 20
    return [host_array("found", a) for a in found]


def write_tables(folder):
    """The graph with labels in a file of ours, and with positions in many groups of rows."""
    on = graph()
    se.write_graph(folder / "ours.parquet", se.Graph(on.connectivity, on.weight, [f"n{k}" for k in on.nodes]))
    columns = {"pre": on.connectivity.pre, "post": on.connectivity.post, "weight": on.weight}
    table = pa.table({name: np.asarray(column) for name, column in columns.items()})
    pq.write_table(table, folder / "positions.parquet", row_group_size=10)


def check_read(folder):
    """Layers from files are those of the whole graph, and where rows are in order each process reads its own."""
    mesh, columns = jax.make_mesh((4,), ("units",)), read_sharded._File.columns
    for name, deal in itertools.product(("ours", "positions"), (True, False)):
        given, read = {"nodes": UNITS} if name == "positions" else {}, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read_sharded._File, "columns", lambda *a, read=read: read.append(a[1]) or columns(*a))
            rec, labels = se.read_sharded(folder / f"{name}.parquet", mesh, deal=deal, **given)
        on = se.read_graph(folder / "ours.parquet")
        on = se.shard(on, mesh) if deal else on
        assert labels == (on.nodes if name == "ours" else tuple(int(label[1:]) for label in on.nodes))
        expected = se.shard(se.SpMatMulOp(on).param(init=on), mesh)
        pair = (jax.tree.leaves((param.value, param.op.op)) for param in (expected, rec))
        for one, other in zip(*pair, strict=True):
            np.testing.assert_array_equal(host_array("rec", other), host_array("rec", one))
    assert 3 < len(read) < 9  # of 12
    with pytest.raises(ValueError, match="twice") as error:  # in each process, of units of its own
        se.read_sharded(folder / "positions.parquet", mesh, nodes=UNITS, duplicates="error")
    ends = re.search(r"synapse (\d+) -> (\d+) twice", str(error.value)).groups()
    wires = graph().connectivity
    assert np.sum((host_array("pre", wires.pre) == int(ends[0])) & (host_array("post", wires.post) == int(ends[1]))) > 1
    cell = se.shard(se.cells.LeakyRate(UNITS, se.MatMulOp().param(jax.random.key(0), 2, UNITS), rec), mesh)
    assert cell.rec.op is rec.op and cell.inp.op.mesh == rec.op.mesh


def check_unread(folder):
    """Rows that one of two processes refuses are refused by both; the other says which did."""
    mesh, ends, ones = jax.make_mesh((4,), ("units",)), np.arange(8), np.ones(8)
    for post, weight, deal in ((ends + (ends > 6), ones, True), (ends, np.where(ends > 6, np.inf, ones), False)):
        path = folder / f"refused_{deal}_{jax.process_index()}.parquet"
        pq.write_table(pa.table({"pre": ends, "post": post, "weight": weight}), path, row_group_size=4)
        with pytest.raises(ValueError) as caught:
            se.read_sharded(path, mesh, nodes=8, deal=deal)
        words = str(caught.value)
        assert (
            "an error in process 1. Its own" if jax.process_index() == 0 else "at entry 7" if deal else "inf"
        ) in words


def check_example():
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(False):
        patch.setattr(sys, "argv", ["12_two_processes.py", "--short"])
        runpy.run_path(str(Path(__file__).parents[1] / "examples" / "12_two_processes.py"))


def start(code, count, processes):
    """Start a code where there are so many devices, shared by processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count // processes}",
        "PYTHONPATH": os.pathsep.join(sys.path), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo", "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    started = []
    for rank in range(processes):
        first = "import jax\njax.config.update('jax_enable_x64', True)\n"
        if processes > 1:
            first += f"jax.distributed.initialize('127.0.0.1:{port}', {processes}, {rank})\n"
        command = [sys.executable, "-c", f"{first}import test_sharding as t\n{code}"]
        started.append(subprocess.Popen(command, env=os.environ | flags, stderr=subprocess.PIPE, text=True))
    return started


def on_devices(code, count=4, processes=1):
    """Run a code where there are so many devices, shared by processes."""
    started = start(code, count, processes)
    errors = [process.communicate()[1] for process in started]
    assert not any(process.returncode for process in started), "\n".join(errors)


def test_several_devices_in_two_processes_are_as_one(tmp_path):
    path = str(tmp_path / "run")
    write_tables(tmp_path)
    on_devices(
        f"[t.compare(*case) for case in t.QUICK]\nt.check_example()\nt.check_read(t.Path({path!r}).parent)\n"
        f"t.check_unread(t.Path({path!r}).parent)\n"
        f"t.check_resumed({path!r})\nif not jax.process_index():\n"
        f"    t.check_part_missing({path!r})\n    t.check_moved({path!r}, [2], 3)\n    t.check_alone()", 4, 2
    )  # fmt: skip


def test_a_process_that_could_not_write_is_named(monkeypatch):
    monkeypatch.setattr(parted.multihost_utils, "process_allgather", lambda failed: np.array([bool(failed), True]))
    with pytest.raises(OSError, match=r"checkpoint: process 1 could not write its part. Its own error says why"):
        parted.agree()
    with pytest.raises(OSError, match="full"):
        parted.agree(OSError("full"))


@ONLY
def test_a_run_goes_on_with_other_numbers_of_devices(tmp_path):
    on_devices(f"t.check_moved({str(tmp_path / 'run')!r}, [1, 2, 4, 3], 1)")
    on_devices(f"t.check_resumed({str(tmp_path / 'other')!r}, 3, 2, 4)")


@ONLY
@pytest.mark.parametrize(
    "kind, name",
    [("alif", "D-RTRL"), ("alif", "ES-D-RTRL"), ("alif", "e-prop"), ("delays", "D-RTRL"), ("gates", "ES-D-RTRL")],
)
def test_checkpoints_of_each_rule_are_read_by_other_numbers_of_devices(tmp_path, kind, name):
    which = f"kind={kind!r}, name={name!r}"
    on_devices(f"t.check_moved({str(tmp_path / 'run')!r}, [1, 2, 4, 3], 1, {which})\n"
               f"t.check_resumed({str(tmp_path / 'other')!r}, 3, {which})")  # fmt: skip


@ONLY
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_is_killed(tmp_path, rank):
    """Both start again, and nothing is lost."""
    path = tmp_path / "run"
    code = f"t.fitted(4, 200, {str(path)!r})"
    started = start(code, 4, 2)
    while not path.exists() and all(process.poll() is None for process in started):
        time.sleep(0.01)
    time.sleep(0.3)
    started[rank].kill()
    started[rank].communicate()
    time.sleep(0.5)
    started[1 - rank].kill()  # which waits for the other
    started[1 - rank].communicate()
    position = Saved(path).header["position"]
    assert 0 < position < 200
    on_devices(
        f"a = t.fitted(4, {position + 2}, {str(path)!r})\n"
        f"assert t.TRAINED == [{position + 1}, {position + 2}]\nb = t.fitted(4, {position + 2})\n"
        "[t.np.testing.assert_array_equal(*pair) for pair in zip(t.bits(a), t.bits(b), strict=True)]\n"
        "assert a.losses.tolist() == b.losses.tolist()", 4, 2
    )  # fmt: skip


@ONLY
def test_each_learner_and_network_on_several_devices():
    on_devices("[t.compare(*case) for case in t.CASES + t.OTHERS]\nt.check_fit()")


@pytest.mark.parametrize("kind", few(KINDS, ["late ties"]))
@pytest.mark.usefixtures("x64")
def test_layers_in_blocks_on_explicit_meshes(kind):
    check_explicit(kind, (1,))


@ONLY
def test_layers_in_blocks_on_explicit_meshes_of_several_devices():
    on_devices("[t.check_explicit(*case) for case in t.itertools.product(t.KINDS, t.MESHES)]")


@ONLY
def test_eight_devices_and_single_precision():
    names = "for name in ('D-RTRL', 'ES-D-RTRL', 'e-prop')]"
    on_devices(f"[t.compare('alif', name, (8,)) {names}\njax.config.update('jax_enable_x64', False)\n"
               f"[t.compare('alif', name, shape, 1e-6) for shape in ((2,), (8,)) {names}", 8)  # fmt: skip


@ONLY
def test_rewiring_on_several_devices():
    on_devices("[t.check_rewired(name, 'alif') for name in ('D-RTRL', 'ES-D-RTRL', 'e-prop')]", 3)
    on_devices("t.check_rewired('D-RTRL', 'rate', jax.devices())", 4, 2)


@ONLY
def test_plans_of_several_devices():
    learners = "se.D_RTRL(), se.ES_D_RTRL(0.9), se.Hybrid(), se.Bridged(3), se.BPTT(), se.UORO(key=jax.random.key(0))"
    on_devices("import sparse_etrace as se\njax.config.update('jax_enable_x64', False)\n"
               "[t.check_plan(l, jax.make_mesh((n,), ('units',), devices=jax.devices()[:n])) for n in (2, 4, 8)\n"
               f" for l in ({learners})]\nt.check_program_with_delays()\nt.check_collectives()", 8)  # fmt: skip


@ONLY
def test_each_learner_and_network_in_two_processes():
    on_devices("[t.compare(*case) for case in t.CASES]", 4, 2)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_nodes_are_dealt_into_blocks_of_as_many_synapses(count):
    degrees = np.random.default_rng(0).zipf(1.5, 203).clip(max=10_000)
    order = blocks.dealt(np.append(0, np.cumsum(degrees)), count)
    assert np.array_equal(np.sort(order), np.arange(203))
    size = -(-203 // count)
    sums = np.add.reduceat(degrees[order], np.arange(0, 203, size))
    assert len(sums) == count and sums.max() - sums.min() <= degrees.max()
    assert all(np.all(np.diff(block) > 0) for block in np.split(order, np.arange(size, 203, size)))


def test_a_graph_is_put_in_that_order():
    on, mesh = se.datasets.worm(), jax.make_mesh((1,), ("units",))
    assert se.shard(on, mesh).nodes == on.nodes  # one block


def test_a_push_is_traced_for_its_devices():
    push, ring, mesh = jax.jit(se.Ring.push), se.SpMatMulOp(graph(True)).ring(), jax.make_mesh((1,), ("units",))
    with pushed_on(mesh):
        inside = str(jax.make_jaxpr(push)(ring, jnp.ones(UNITS)))
    assert "sharding_constraint" in inside
    assert "sharding_constraint" not in str(jax.make_jaxpr(push)(ring, jnp.ones(UNITS)))


def test_a_window_keeps_what_is_pushed_to_a_ring_with_features():
    model, state = build("late features")
    parted = se.shard(model, jax.make_mesh((1,), ("units",)))
    assert se.D_RTRL().prepare(parted, state, jnp.zeros((BATCH, 2))).run.rings


@pytest.mark.parametrize("deal", [True, False])
def test_errors_name_rows_and_units_of_the_file(tmp_path, deal):
    path, mesh = tmp_path / "on.parquet", jax.make_mesh((1,), ("units",))
    ends, ones = np.array([0, 4, 2, 1, 3, 2, 1, 2]), np.ones(8)
    bad, label = np.where(ends == 3, np.inf, ones), list("edcba")
    for nodes, columns, words in (
        (5, (ends, ends, bad), "finite in float32, got inf for synapse 3 -> 3 (entry 4). Correct or remove it."),
        (label, (ends, ends, bad), "got inf for synapse 'd' -> 'd' (entry 4). Correct or remove it."),
        (label, (ends, ends // 2, ones), "got 'error', and synapse 'c' -> 'b' twice."),
        (4, (ends % 4, ends, ones), "post: expected indices from 0 and below 4, the number of units, got 4 at entry 1"),
        (4, (ends[::-1], ends % 4, ones), "expected indices from 0 and below 4, the number of units, got 4 at entry 6"),
        (label[1:], (ends[::-1], ends % 4, ones), "pre: expected one of the 4 nodes of the file, got 'e' in row 7."),
    ):  # fmt: skip
        table = dict(zip(("pre", "post", "weight"), columns, strict=True))
        if not isinstance(nodes, int):
            table |= {name: np.array(list("abcde"))[table[name]] for name in ("pre", "post")}
        pq.write_table(pa.table(table), path, row_group_size=3)
        with pytest.raises(ValueError, match=re.escape(words)):
            se.read_sharded(path, mesh, nodes=nodes, duplicates="error" if "twice" in words else None, deal=deal)


def test_files_that_are_not_read_in_blocks(tmp_path):
    mesh = jax.make_mesh((1,), ("units",))
    write_tables(tmp_path)
    se.write_graph(tmp_path / "wide.parquet", se.from_edges([0], [1], shape=(1, 2)))
    (tmp_path / "odd.parquet").write_bytes(b"PAR1")
    for name, nodes, match in (
        ("positions", None, "nodes: expected the ids of all units, or how many .* got None"),
        ("positions", True, "nodes: expected the ids of all units, or how many .* got True"),
        ("positions", 3, "post: expected indices from 0 and below 3"),
        ("wide", None, r"path: expected a square graph, got one of shape \(1, 2\)"),
        ("odd", None, "expected a sound Parquet file"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\.parquet: {match}"):
            se.read_sharded(tmp_path / f"{name}.parquet", mesh, nodes=nodes)
    with pytest.raises(FileNotFoundError):
        se.read_sharded(tmp_path / "none.parquet", mesh)


@pytest.mark.parametrize("kind", few(KINDS, ["late features", "ties"]))
def test_a_model_that_was_in_blocks(kind):
    model, _ = build(kind)
    back = se.unshard(se.shard(model, jax.make_mesh((1,), ("units",))))
    assert eqx.tree_equal(back, model)


class Times(eqx.Module):
    """A weight function with an array of NumPy for all weights."""

    by: np.ndarray

    def __call__(self, w):
        return w * self.by


FUNCTIONS = {
    "bounded": se.Bounded(-1.0, 2.0), "signs": se.SignLock(1.0), "factors": Times(np.arange(112.0)), "tanh": jnp.tanh
}  # fmt: skip


@pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)
def test_weight_functions_of_layers_in_blocks(fn):
    mesh, on = jax.make_mesh((1,), ("units",)), graph()
    inp = se.MatMulOp(weight_fn=None if isinstance(fn, Times) else fn).param(jax.random.key(0), 2, UNITS)
    pair = se.ETraceParam({"weight": on.weight}, se.SpMatMulOp(on, fn)), inp
    for one, other, x in zip(pair, se.shard(pair, mesh), (jnp.arange(1.0, UNITS + 1), jnp.ones(2)), strict=True):
        np.testing.assert_allclose(other(x), one(x), rtol=1e-6)


def norm(a):
    return jnp.linalg.norm(a.ravel())


@pytest.mark.parametrize("layer", ["sparse", "dense"])
def test_what_fills_blocks_up_is_no_weight(layer):
    """Norms, decay and weight functions see the weights of the layer alone, whatever becomes of the others."""
    mesh, x = as_mesh(2), jnp.linspace(-1, 1, UNITS)
    dense = se.ETraceParam(
        {"weight": jnp.linspace(1, 2, 3 * (UNITS - 1)).reshape(3, -1)}, se.MatMulOp(weight_fn=jnp.log)
    )
    uneven = se.Connectivity.from_edges(np.arange(UNITS), np.arange(UNITS) % (UNITS - 1), (UNITS, UNITS - 1))
    sparse = se.ETraceParam({"weight": jnp.linspace(1, 2, UNITS)}, se.SpMatMulOp(uneven, jnp.log))
    whole, parted = (sparse, dense), se.shard((sparse, dense), mesh)
    k, given = (0, x) if layer == "sparse" else (1, x[:3])
    weight = parted[k].value["weight"]
    assert weight.size > whole[k].value["weight"].size
    np.testing.assert_allclose(norm(weight), norm(whole[k].value["weight"]), rtol=1e-6)
    bad = jnp.where(weight == 0, jnp.nan, weight)
    for values in (weight, bad):
        one = eqx.tree_at(lambda p: p.value["weight"], parted[k], values)
        (loss, grads), (expected, found) = (
            jax.jit(
                jax.value_and_grad(
                    lambda w, x, p=p: jnp.sum(eqx.tree_at(lambda p: p.value["weight"], p, w)(x) ** 2), (0, 1)
                )
            )(p.value["weight"], given)
            for p in (one, whole[k])
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(grads[1], found[1], rtol=1e-5)
        assert float(jnp.sum(jnp.abs(grads[0][..., jnp.isnan(bad.reshape(-1, bad.shape[-1])[0])]))) == 0
        np.testing.assert_allclose(norm(grads[0]), norm(found[0]), rtol=1e-5)


@pytest.mark.parametrize("features", [1, 3, UNITS])
def test_a_bias_is_of_units_and_not_of_features(features):
    param = se.ETraceParam({"weight": graph().weight, "bias": jnp.arange(22.0)}, se.SpMatMulOp(graph(), axis=-2))
    x = jnp.linspace(-1, 1, UNITS * features).reshape(UNITS, features)
    parted = se.shard(param, jax.make_mesh((1,), ("units",)))
    np.testing.assert_allclose(parted(x), param(x), rtol=1e-6)
    for one, other in zip(*(m.op.xy_to_dw(x, x, m.op.phi(m.value)).values() for m in (param, parted)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6)


def test_a_plan_of_shapes_is_that_of_a_model():
    cell = se.cells.LeakyRate.of(se.generate.fixed_in_degree(12, 3, jax.random.key(0)), 2, key=jax.random.key(1))
    given = cell.init_state(), jnp.ones(2), 4
    plans = [se.memory_plan(se.D_RTRL(), m, *given, mesh=mesh) for m, mesh in (
        (cell, 2), (eqx.filter_eval_shape(lambda: cell), jax.sharding.AbstractMesh((2,), ("units",))))]  # fmt: skip
    assert plans[0] == plans[1] and plans[0].devices == 2
    assert "on each of 2 devices" in (text := str(plans[0])) and "all-gather" in text
    assert plans[0].exchanged == 12 * 4 + 4  # what units send, and a loss


def test_a_mesh_of_some_processes_is_refused(monkeypatch):
    class Away:
        process_index = 1

    mesh = jax.sharding.Mesh(np.array([jax.devices()[0], Away()], object), ("units",))
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match=r"mesh: expected devices of one process or of all, got those of 2 of 3 pro"):
        se.shard(graph(), mesh)


def test_plans_that_are_refused():
    cell = se.cells.LeakyRate.of(graph(), 2, key=jax.random.key(1))
    for mesh, error, match in (("8", TypeError, "got '8'"), (0, ValueError, "mesh: expected at least 1, got 0")):
        with pytest.raises(error, match=match):
            se.memory_plan(se.D_RTRL(), cell, cell.init_state(), jnp.ones(2), mesh=mesh)
    text = """%inner (x: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%x), to_apply=%add
}

ENTRY %main (x: f32[4]) -> f32[4] {
  ROOT %w = f32[4]{0} while(%x), condition=%test, body=%inner
}
"""
    with pytest.raises(
        NotImplementedError, match=r"model: expected loops of known lengths .* got all-reduce of f32\[4\]"
    ):
        exchanges(text)
    (one,) = exchanges(text.replace("body=%inner", 'body=%inner, backend_config={"known_trip_count":{"n":"3"}}'))
    assert one == ("all-reduce", "f32[4]", 3, 16)


def test_layers_that_are_not_parted():
    mesh, on = jax.make_mesh((1,), ("units",)), graph()
    filled = BCOO((jnp.ones(3), jnp.array([[0, 1], [1, 0], [2, 2]])), shape=(2, 2))
    for op in (se.SpMatMulOp(on, delay=2, train_delay=True), se.SpMatMulOp(filled)):
        with pytest.raises(NotImplementedError, match=r"tree: expected sparse layers without trained delays, of which"):
            se.shard(op.param(jax.random.key(0)), mesh)
    with pytest.raises(TypeError, match=r"mesh: expected a jax.sharding.Mesh of one or two axes, got 4"):
        se.shard(on, 4)
    for tree in (on.connectivity, se.MatMulOp().param(jax.random.key(0), 2, UNITS)):
        with pytest.raises(
            ValueError, match=r"tree: expected a Graph, or a model with .* SpMatMulOp, got .* without one"
        ):
            se.shard(tree, mesh)
    with pytest.raises(
        ValueError, match=r"mesh: expected at most .* got 8 for 17 units\. Take a mesh of 6, .* up to 3\."
    ):
        blocks.sizes_of(17, 8)
    param = se.shard(se.SpMatMulOp(on).param(jax.random.key(0)), mesh)
    with pytest.raises(ValueError, match=r"x: expected 22 presynaptic units"):
        param(jnp.ones(3))
    with pytest.raises(ValueError, match=r"value\['weight'\]: expected"):
        se.ETraceParam({"weight": jnp.ones(3)}, param.op)(jnp.ones(22))
    with pytest.raises(TypeError, match=r"tree: expected a model, got one without indices, as gradients are"):
        se.unshard(eqx.filter(param, se.trainable(param)))
    explicit = jax.make_mesh((1,), ("other",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(jnp.ones(UNITS), jax.NamedSharding(explicit, jax.P()))
    for run, given in (
        (param, x),
        (jax.jit(lambda x: param(x)), x),
        (jax.shard_map(lambda x: param(x), mesh=explicit, in_specs=jax.P(), out_specs=jax.P()), jnp.ones(UNITS)),
    ):
        with pytest.raises(ValueError, match=r"mesh: a layer on several devices, .* and put data on no other"):
            run(given)
    cell = se.cells.LeakyRate(UNITS, None, param)
    for learner in (se.SnAp(2), se.Bridged(3, se.SnAp(2))):
        with pytest.raises(NotImplementedError, match=r"op: ShardedOp does not say which unit .* Take se.RTRL\(\)"):
            learner.init(cell, cell.init_state(), None)
