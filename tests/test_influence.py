"""Where ops say that their weights act, and the compiled step of influences against that of XLA."""

import functools
import math

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from models import start
from soak import few

import sparse_etrace as se
from sparse_etrace._kernels import influence, native
from sparse_etrace._kernels.influence import _split, _xla, advance

rng = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(size=shape), dtype)


# --- uses of weights -------------------------------------------------------------------------------------------------

CONN = se.Connectivity.from_edges(rng.integers(5, size=12), rng.integers(4, size=12), shape=(5, 4))


def conv(space, **options):
    options = {"window_strides": (1,) * len(space[:-1]), "padding": "SAME"} | options
    return se.ConvOp(jax.ShapeDtypeStruct(space, jnp.float32), **options)


SAYING = {
    "sparse": (se.SpMatMulOp(CONN), (5,), {"weight": 12, "bias": 4}),
    "features": (se.SpMatMulOp(CONN, axis=-2), (5, 3), {"weight": 12}),
    "tied": (se.SpMatMulOp(CONN, tie=np.arange(12) // 3), (5,), {"weight": 4, "bias": 4}),
    "dense": (se.MatMulOp(), (5,), {"weight": (5, 4), "bias": 4}),
    "masked": (se.MatMulOp(weight_mask=rng.random((5, 4)) < 0.5), (5,), {"weight": (5, 4)}),
    "masked function": (se.MatMulOp(rng.random((5, 4)) < 0.5, jnp.cos), (5,), {"weight": (5, 4)}),
    "function, then mask": (se.MatMulOp(rng.random((5, 4)) < 0.5, jnp.cos, True), (5,), {"weight": (5, 4)}),
    "low rank": (se.LoraOp(0.5), (5,), {"B": (5, 2), "A": (2, 4), "bias": 4}),
    "line": (conv((6, 4), feature_group_count=2), (6, 4), {"weight": (3, 2, 6), "bias": 6}),
    "image": (
        conv((5, 4, 1), window_strides=(2, 1), padding=((1, 0), (0, 2)), rhs_dilation=(1, 2)),
        (5, 4, 1),
        {"weight": (2, 2, 1, 3), "bias": 3},
    ),
}


@pytest.mark.parametrize("name", SAYING)
def test_uses_make_the_output(name):
    op, shape, sizes = SAYING[name]
    v = op.phi({key: normal(*np.atleast_1d(size)) for key, size in sizes.items()})
    x = normal(*shape)
    expected = op.xw_to_y(x, v)
    y = np.zeros(expected.size)
    for leaf, uses in zip(jax.tree.leaves(v), op.synapses(v, jax.ShapeDtypeStruct(shape, x.dtype)), strict=True):
        given = 1.0 if uses.pre is None else np.asarray(x).ravel()[uses.pre]
        np.add.at(y, uses.post, np.asarray(leaf).ravel()[uses.slot] * given)
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


def test_masked_synapses_do_not_exist():
    """Where the weight is zero whatever the parameter; a function of zero need not be."""
    for name, every in (("masked", False), ("masked function", True), ("function, then mask", False)):
        op, shape, sizes = SAYING[name]
        (uses,) = op.synapses({"weight": jnp.zeros((5, 4))}, jax.ShapeDtypeStruct(shape, jnp.float32))
        assert len(uses.slot) == (20 if every else int(np.sum(op.weight_mask)))


def test_elementwise():
    (uses,) = se.ElemWiseOp().synapses(jnp.zeros((2, 3)), None)
    assert uses.pre is None and uses.post.tolist() == uses.slot.tolist() == list(range(6))


# --- the kernel ------------------------------------------------------------------------------------------------------


def numbers(blocks, steps, batch, dtype):
    links, inputs = (int(np.asarray(ids).max(initial=-1)) + 1 for ids in (blocks.link, blocks.column_x))
    return (
        normal(blocks.size, batch, dtype=dtype),
        normal(len(blocks.link), dtype=dtype),
        0.5 * normal(steps, links, batch, dtype=dtype),
        normal(steps, inputs, batch, dtype=dtype),
        normal(steps, len(blocks.level), batch, dtype=dtype),
    )


def blocks_of(kind, n, batch=(2,)):
    case = models.build(kind, batch=batch)
    return start(se.SnAp(n=n), case).traces.blocks


def by_hand(blocks, influence, weight, along, x, signal):
    """Term by term, in numpy."""
    b = jax.tree.map(np.asarray, blocks)
    influence, weight, along, x, signal = (np.array(a, float) for a in (influence, weight, along, x, signal))
    gradient = np.zeros(len(b.entry))
    for t in range(len(along)):
        edges = weight[:, None] * along[t][b.link]
        for k, p in enumerate(b.pattern):
            rows, hidden = b.rows[b.row_ptr[p] : b.row_ptr[p + 1]], b.hidden[p]
            columns = range(b.first_column[k], b.first_column[k + 1])
            for c, column in enumerate(columns):
                places = b.first_entry[k] + np.arange(hidden) * len(columns) + c
                old = influence[places].copy()
                outputs = np.zeros((len(rows) - hidden, old.shape[1]))
                gradient[column] += np.sum(signal[t][rows[:hidden]] * old)
                for o in range(len(rows)):
                    terms = slice(b.term_ptr[b.out_ptr[p] + o], b.term_ptr[b.out_ptr[p] + o + 1])
                    total = np.zeros(old.shape[1])
                    for row, edge in zip(b.term_row[terms], b.term_edge[terms], strict=True):
                        source = old[row] if row < hidden else outputs[row - hidden]
                        total += edges[edge] * source
                        if edge < b.num_cut:
                            gradient[column] += np.sum(signal[t][rows[hidden + o]] * edges[edge] * source)
                    if o < len(outputs):
                        outputs[o] = total + (x[t][b.column_x[column]] if b.entry[column] == hidden + o else 0)
                    else:
                        influence[places[o - len(outputs)]] = total
    return influence, gradient


KINDS = [("rate", 2), ("lif", 1), ("gru_cell", None), ("decay", 2)]
CASES = [(*kind, batch, dtype) for kind in KINDS for batch in (1, 3, 8, 21) for dtype in (jnp.float32, jnp.float64)]
CHOSEN = [(*kind, 21, jnp.float64) for kind in KINDS[1:3]] + [("decay", 2, 21, jnp.float32)]


@pytest.mark.parametrize("kind, n, batch, dtype", few(CASES, CHOSEN))
def test_kernels(kind, n, batch, dtype, x64):
    blocks = blocks_of(kind, n)
    given = numbers(blocks, 3, batch, dtype)
    expected = by_hand(blocks, *given)
    static, ids = _split(blocks)
    xla = [part[0] for part in jax.jit(functools.partial(_xla, **static))(*ids, *(part[None] for part in given))]
    tolerance = 2e-4 if dtype == jnp.float32 else 1e-11
    for got in (xla, jax.jit(advance)(blocks, *given)):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("steps, starts", [(2, 1), (2, 0), (3, 1)], ids=["forward", "from zero", "by rows"])
def test_many_columns_are_several_blocks(steps, starts, x64, monkeypatch):
    """More than a block holds, and a batch that fills no vector; XLA takes three blocks at once, and then the rest.

    Old influences of zero, and windows that are long for the units, go backward by rows where they are compiled.
    """
    conn = se.Connectivity.from_edges(*np.divmod(np.arange(169), 13), shape=(13, 13))
    inp = se.ETraceParam({"weight": normal(2, 13, dtype=float)}, se.MatMulOp())
    cell = se.cells.LeakyRate(13, inp, se.ETraceParam({"weight": normal(169, dtype=float)}, se.SpMatMulOp(conn)))
    blocks = se.SnAp(n=None).init(cell, cell.init_state(3), jnp.zeros((3, 2))).traces.blocks
    assert len(blocks.hidden) == 1 and len(blocks.pattern) == math.ceil(195 / 32)
    old, *numbers_of = numbers(blocks, steps, 3, float)
    given = starts * old, *numbers_of
    monkeypatch.setattr(influence, "TOGETHER", 3 * blocks.most[1] * 32 * 3)
    static, ids = _split(blocks)
    xla = jax.jit(functools.partial(_xla, **static))(*ids, *(part[None] for part in given))
    for a, b, c in zip(jax.jit(advance)(blocks, *given), xla, by_hand(blocks, *given), strict=True):
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-11 * np.abs(c).max())
        np.testing.assert_allclose(b[0], c, rtol=0, atol=1e-11 * np.abs(c).max())


def test_vmap_is_a_loop(x64):
    blocks = blocks_of("rate", 2)
    given = [numbers(blocks, 2, 3, float) for _ in range(4)]
    stacked = [jnp.stack(parts) for parts in zip(*given, strict=True)]
    axes = (None, 0, None, 0, 0, 0)
    got = jax.jit(jax.vmap(advance, in_axes=axes))(blocks, stacked[0], given[0][1], *stacked[2:])
    for i in range(4):
        one = advance(blocks, given[i][0], given[0][1], *given[i][2:])
        for a, b in zip(got, one, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(native.KERNELS == "xla", reason="needs the compiled kernels")
def test_the_compiled_kernel_is_used(on_cpu):
    blocks = blocks_of("rate", 2)
    text = jax.jit(advance).lower(blocks, *numbers(blocks, 2, 3, jnp.float32)).as_text()
    assert "sparse_etrace_influence" in text
