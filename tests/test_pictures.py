"""What the pictures at the heads of the hard rooms say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import sparse_etrace as se
from sparse_etrace._model.grouping import group
from sparse_etrace._model.positions import Mixed, follow
from sparse_etrace._model.reading import Reading
from sparse_etrace._model.step import Step


class Stack(eqx.Module):
    """`step(ops, state, x)` as a model of so many dense ops."""

    ops: list
    step: object = eqx.field(static=True)

    def __init__(self, count, step):
        self.ops = [se.ETraceParam({"weight": jnp.ones((3, 3))}, se.MatMulOp()) for _ in range(count)]
        self.step = step

    def __call__(self, state, x):
        return self.step(self.ops, state, x)


def _read(count, step, leaves):
    return Reading(Stack(count, step), (jnp.zeros(3),) * leaves, jnp.ones(3), None)


def test_a_step_of_three_ops():
    def step(ops, state, x):
        a, b = state
        a = 0.9 * a + ops[0](x) + ops[1](a)
        u = a + b
        return (a, 0.8 * b + ops[2](u)), u

    reading = _read(3, step, 2)
    grouping = group(reading)
    a, b = (grouping.cluster[i] for i in range(2))
    assert [set(stop) for stop in grouping.stops] == [{a, b}, {a, b}, {b}]
    variants = [(node.outputs, set(stop)) for node, stop in Step(grouping)._plan]
    (u,) = reading.out
    assert [stop for outputs, stop in variants if u in outputs] == [{b}, set()]
    assert not any(stop for outputs, stop in variants if u not in outputs)


def test_groups_of_two_layers():
    def step(ops, state, x):
        v, b, r = state
        z = jnp.tanh(v - b)
        v, b = 0.9 * v + ops[0](x) + ops[1](z), 0.95 * b + z
        r = 0.8 * r + ops[2](jnp.tanh(v - b)) + ops[3](r)
        return (v, b, r), r

    reading = _read(4, step, 3)
    grouping = group(reading)
    straight = {(i, s[1]) for i in range(3) for s in reading.direct["h", i] if s[0] == "n"}
    assert straight == {(0, 0), (0, 1), (1, 1), (2, 2)}
    assert grouping.cluster == {0: 0, 1: 0, 2: 2}
    assert grouping.members == [(0, 1), (2,)]
    assert [set(stop) for stop in grouping.stops] == [{0, 2}, {0, 2}, {2}, {2}]


def test_unit_numbers_through_a_jaxpr():
    def moved(u):
        both = jnp.broadcast_to(u.T[:2], (2, 2, 2))
        return u.T, u.T[:2], both, jnp.sum(both, 0), jnp.sum(both, 1)

    closed = jax.make_jaxpr(moved)(jnp.zeros((2, 3)))
    *found, last = follow(closed.jaxpr, closed.consts, [np.arange(6).reshape(2, 3)])
    kept = [[0, 3], [1, 4]]
    assert [ids.tolist() for ids in found] == [[*kept, [2, 5]], kept, [kept, kept], kept]
    assert isinstance(last, Mixed) and last.primitive == "reduce_sum"


def test_blocks_of_influences():
    graph = se.from_edges([0, 1, 0, 1, 2], [2, 2, 3, 3, 3], jnp.ones(5), shape=(4, 4))
    param = se.ETraceParam({"weight": graph.weight}, se.SpMatMulOp(graph))

    class Leaky(eqx.Module):
        op: se.ETraceParam

        def __call__(self, h, x):
            h = 0.9 * h + self.op(h) + x
            return h, h

    blocks = se.SnAp(n=2).init(Leaky(param), jnp.zeros(4), jnp.ones(4)).traces.blocks
    hidden, output = range(4), range(4, 8)
    expected = {
        "hidden": [2, 1],
        "rows": [hidden[2], hidden[3], output[2], output[3], hidden[3], output[3]],
        "pattern": [0, 1],
        "first_column": [0, 2, 5],
        "first_entry": [0, 4],
        "entry": [2, 2, 1, 1, 1],
        "term_row": [0, 0, 2, 1, 3, 0, 1],
    }
    assert {name: getattr(blocks, name).tolist() for name in expected} == expected
    assert blocks.size == 7
    assert np.diff(blocks.term_ptr)[:4].tolist() == [0, 1, 2, 2]
