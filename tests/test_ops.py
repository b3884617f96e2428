"""Every op against loops in numpy, and against the generic contract."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from jax.experimental.sparse import BCOO, BCSR, CSR
from soak import few

import sparse_etrace as se
from sparse_etrace._kernels import trace as kernels_trace

BATCHES = [(), (3,), (2, 3)]
TYPES = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def wide(x64):
    """float64 is allowed in all of this file; arrays say which type they have."""


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def close(got, expected, dtype=np.float64):
    assert got.dtype == dtype and got.shape == np.shape(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 if dtype == np.float32 else 1e-12)


def through(w, mask, fn, before=False):
    """The four forms of the tutorial, and the order of the second flag."""
    f = (lambda w: w) if fn is None else fn
    m = 1 if mask is None else mask
    return f(w) * m if before else f(w * m)


def forms(shape):
    mask = normal(*shape, seed=9) > -0.3
    return [{}, {"weight_mask": mask}, {"weight_fn": jnp.exp}, {"weight_mask": mask, "weight_fn": jnp.exp}]


NUMPY = {None: None, jnp.exp: np.exp}

# --- dense -----------------------------------------------------------------------------------------------------------


DENSE = list(itertools.product(range(4), [False, True], TYPES))


@pytest.mark.parametrize("form, before, dtype", few(DENSE, [DENSE[k] for k in (0, 5, 9, 12, 15)]))
def test_dense(form, before, dtype):
    kwargs = forms((4, 5))[form]
    op = se.MatMulOp(**kwargs, apply_weight_fn_before_mask=before)
    w, b = normal(4, 5, dtype=dtype), normal(5, dtype=dtype)
    v = through(w, kwargs.get("weight_mask"), NUMPY[kwargs.get("weight_fn")], before)
    for batch in BATCHES:
        x = normal(*batch, 4, dtype=dtype)
        close(se.ETraceParam({"weight": w}, op)(x), np.einsum("...i,ij->...j", x, v), dtype)
        close(se.ETraceParam({"weight": w, "bias": b}, op)(x), np.einsum("...i,ij->...j", x, v) + b, dtype)
    if form == 3:
        se.check_op(op, {"weight": jnp.asarray(w), "bias": jnp.asarray(b)}, x)


# --- convolution -----------------------------------------------------------------------------------------------------


def correlate(x, w, strides, padding, lhs_dilation=None, rhs_dilation=None, feature_group_count=1):
    """`y[p, o] = sum over taps t and channels c of x[p * stride + t * rhs_dilation - low, c] * w[t, c, o]`."""
    space = w.ndim - 2
    lhs, rhs = lhs_dilation or (1,) * space, rhs_dilation or (1,) * space
    size = [(n - 1) * d + 1 for n, d in zip(x.shape[-space - 1 : -1], lhs)]
    reach = [(n - 1) * d + 1 for n, d in zip(w.shape[:space], rhs)]
    if padding == "VALID":
        padding = [(0, 0)] * space
    if padding == "SAME":
        total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach)]
        padding = [(t // 2, t - t // 2) for t in total]
    wide = np.zeros(
        (*x.shape[: -space - 1], *(lo + n + hi for n, (lo, hi) in zip(size, padding)), x.shape[-1]), x.dtype
    )
    wide[(..., *(slice(lo, lo + n, d) for (lo, _), n, d in zip(padding, size, lhs)), slice(None))] = x
    places = [(n - r) // s + 1 for n, r, s in zip(wide.shape[-space - 1 : -1], reach, strides)]
    y = np.zeros((*x.shape[: -space - 1], *places, w.shape[-1]), x.dtype)
    c_in, c_out = w.shape[-2], w.shape[-1] // feature_group_count
    for place in itertools.product(*map(range, places)):
        for tap in itertools.product(*map(range, w.shape[:space])):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, rhs))
            for g in range(feature_group_count):
                o = slice(g * c_out, (g + 1) * c_out)
                y[(..., *place, o)] += wide[(..., *at, slice(g * c_in, (g + 1) * c_in))] @ w[tap][:, o]
    return y


CONVOLUTIONS = {
    "1d": ((7, 3), (3, 3, 2), {"window_strides": [1], "padding": "SAME"}),
    "1d-stride": ((8, 2), (3, 2, 4), {"window_strides": [2], "padding": "VALID"}),
    "1d-transposed": ((4, 2), (3, 2, 2), {"window_strides": [1], "padding": [(2, 1)], "lhs_dilation": [2]}),
    "1d-dilated": ((9, 1), (2, 1, 3), {"window_strides": [1], "padding": "SAME", "rhs_dilation": [3]}),
    "1d-depthwise": ((5, 3), (2, 1, 6), {"window_strides": [1], "padding": "VALID", "feature_group_count": 3}),
    "2d": ((5, 4, 3), (3, 2, 3, 2), {"window_strides": [2, 1], "padding": "SAME"}),
    "2d-all": (
        (4, 5, 4),
        (2, 3, 2, 6),
        {
            "window_strides": [1, 2],
            "padding": [(1, 0), (0, 2)],
            "lhs_dilation": [2, 1],
            "rhs_dilation": [1, 2],
            "feature_group_count": 2,
        },
    ),
    "3d": ((3, 4, 2, 2), (2, 3, 2, 2, 3), {"window_strides": [1, 1, 1], "padding": "SAME"}),
    "3d-stride": ((4, 3, 3, 1), (2, 2, 1, 1, 2), {"window_strides": [2, 1, 2], "padding": "VALID"}),
}


@pytest.mark.parametrize("name", few([*CONVOLUTIONS], ["1d-stride", "1d-transposed", "1d-depthwise", "2d-all", "3d"]))
def test_convolution(name):
    space, kernel, geometry = CONVOLUTIONS[name]
    oracle = {**geometry, "strides": geometry["window_strides"]}
    del oracle["window_strides"]
    w, b = normal(*kernel), normal(kernel[-1])
    for form, batch, dtype in zip(forms(kernel), [*BATCHES, (2,)], [*TYPES, *TYPES]):
        x = normal(*batch, *space)
        op = se.ConvOp(jax.ShapeDtypeStruct(space, dtype), **geometry, **form)
        v = through(w, form.get("weight_mask"), NUMPY[form.get("weight_fn")])
        expected = correlate(x, v, **oracle)
        close(se.ETraceParam({"weight": w.astype(dtype)}, op)(x.astype(dtype)), expected, dtype)
        both = se.ETraceParam({"weight": w.astype(dtype), "bias": b.astype(dtype)}, op)
        close(both(x.astype(dtype)), expected + b, dtype)
    se.check_op(op, both.value, x)


def test_same_padding_in_capitals_or_not_at_all():
    xinfo = jax.ShapeDtypeStruct((8, 1), np.float32)
    with pytest.raises(
        ValueError, match="padding: expected 'SAME', 'VALID' or a pair for each spatial axis, got 'same'"
    ):
        se.ConvOp(xinfo, [1], "same")


# --- sparse ----------------------------------------------------------------------------------------------------------

PRE, POST, SHAPE = np.array([2, 0, 2, 1, 2, 2]), np.array([1, 0, 1, 3, 1, 0]), (3, 4)


def connectivity():
    return se.Connectivity.from_edges(PRE, POST, shape=SHAPE)


def dense(conn, v):
    matrix = np.zeros(conn.shape)
    np.add.at(matrix, (np.asarray(conn.pre), np.asarray(conn.post)), np.asarray(v))
    return matrix


SPARSE = list(itertools.product([None, [1, 0, 0, 2, 1, 1]], [None, jnp.exp], [-1, -2], TYPES))


@pytest.mark.parametrize("tie, fn, axis, dtype", few(SPARSE, [SPARSE[k] for k in (1, 2, 4, 7, 8, 11, 13, 14)]))
def test_sparse(tie, fn, axis, dtype):
    conn = connectivity()
    op = se.SpMatMulOp(conn, weight_fn=fn, tie=tie, axis=axis)
    w = normal(6 if tie is None else 3, dtype=dtype)
    b = normal(4, dtype=dtype)
    f = through(w, None, NUMPY[fn])
    v = f if tie is None else f[tie]
    for batch in BATCHES:
        x = normal(*batch, 3, *([] if axis == -1 else [2]), dtype=dtype)
        expected = np.einsum("...i,ij->...j" if axis == -1 else "...if,ij->...jf", x, dense(conn, v))
        close(se.ETraceParam({"weight": w}, op)(x), expected, dtype)
        got = se.ETraceParam({"weight": w, "bias": b}, op)(x)
        close(got, expected + (b if axis == -1 else b[:, None]), dtype)
        if axis == -1:
            bcoo = BCOO((jnp.asarray(v, dtype), jnp.stack([conn.pre, conn.post], axis=1)), shape=SHAPE)
            close(jnp.asarray(x.reshape(-1, 3)) @ bcoo, expected.reshape(-1, 4), dtype)
    if (tie is None) == (fn is None):
        se.check_op(op, {"weight": jnp.asarray(w), "bias": jnp.asarray(b)}, x)


def test_sparse_on_a_graph():
    graph = se.from_edges(PRE, POST, normal(6), shape=SHAPE, dtype=jnp.float64)
    x = normal(3)
    close(se.ETraceParam({"weight": graph.weight}, se.SpMatMulOp(graph))(x), x @ graph.to_dense())


def padded_bcoo():
    """Unsorted, with parallel synapses and two entries of padding, one of them amid the others."""
    pre, post = np.insert(PRE, [2, 6], SHAPE[0]), np.insert(POST, [2, 6], SHAPE[1])
    return BCOO((jnp.asarray(normal(8)), jnp.stack([pre, post], axis=1)), shape=SHAPE)


def padded_bcsr():
    indices, ptr = jnp.array([3, 0, 1, 2, 2, 0, 0]), jnp.array([0, 2, 2, 5])
    return BCSR((jnp.asarray(normal(7)), indices, ptr), shape=SHAPE)


def jax_csr():
    return CSR((jnp.asarray(normal(5)), jnp.array([3, 0, 1, 2, 2]), jnp.array([0, 2, 2, 5])), shape=SHAPE)


MATRICES = {
    "bcoo": padded_bcoo,
    "bcsr": padded_bcsr,
    "csr": jax_csr,
    "scipy-coo": lambda: sp.coo_array((normal(6), (PRE, POST)), shape=SHAPE),
    "scipy-csr-unsorted": lambda: sp.csr_array((normal(5), [3, 0, 1, 2, 2], [0, 2, 2, 5]), shape=SHAPE),
    "scipy-csc-matrix": lambda: sp.csc_matrix((normal(5), [2, 0, 1, 2, 2], [0, 2, 2, 5, 5]), shape=SHAPE),
    "bsr": lambda: sp.bsr_array(np.kron(np.eye(2), normal(2, 3)), blocksize=(2, 3)),
    "dia": lambda: sp.dia_array((normal(2, 4), [0, 1]), shape=SHAPE),
    "dok": lambda: sp.dok_array(np.where(normal(3, 4) > 0, normal(3, 4), 0)),
    "lil": lambda: sp.lil_array(np.where(normal(3, 4) > 0, normal(3, 4), 0)),
}


def by_hand(M, data):
    """The dense matrix that `data` makes of the places of `M`."""
    if isinstance(M, BCSR):
        M = sp.csr_array((np.asarray(M.data[:5]), np.asarray(M.indices[:5]), np.asarray(M.indptr)), shape=M.shape)
    if isinstance(M, CSR):
        M = sp.csr_array((np.asarray(M.data), np.asarray(M.indices), np.asarray(M.indptr)), shape=M.shape)
    found = np.zeros(M.shape)
    pre, post = np.asarray(M.indices).T if isinstance(M, BCOO) else M.tocoo().coords
    for i, j, value in zip(pre, post, data):
        if i < M.shape[0]:
            found[i, j] += value
    return found


@pytest.mark.parametrize("name", MATRICES)
def test_sparse_matrix_in_the_order_of_its_own_data(name):
    M = MATRICES[name]()
    has_data = not sp.issparse(M) or M.format in ("coo", "csr", "csc")
    data = np.asarray(M.data if has_data else M.tocoo().data)
    op = se.SpMatMulOp(M)
    param = se.ETraceParam({"weight": data}, op)
    x, y = normal(2, M.shape[0]), normal(2, M.shape[1])
    close(param(x), x @ by_hand(M, data))
    if isinstance(M, BCOO | BCSR):
        close(param(x), jnp.asarray(x) @ (M if isinstance(M, BCOO) else M.to_bcoo()))
    # The gradient follows the same order, with zeros where there is padding.
    grad = jax.grad(lambda w: jnp.vdot(se.ETraceParam({"weight": w}, op)(x), y))(jnp.asarray(data))
    marks = by_hand(M, np.arange(len(data)) + 1.0)
    for k, g in enumerate(grad):
        unit = by_hand(M, np.eye(len(data))[k])
        np.testing.assert_allclose(g, np.sum(unit * (x.T @ y)), atol=1e-12)
    assert marks.any()
    # A tie also counts in that order.
    tied = se.SpMatMulOp(M, tie=np.arange(len(data)) % 2)
    close(
        se.ETraceParam({"weight": np.array([2.0, 5.0])}, tied)(x),
        x @ by_hand(M, np.where(np.arange(len(data)) % 2, 5.0, 2.0)),
    )


# --- low rank, elementwise -------------------------------------------------------------------------------------------


LOW = [(alpha, dtype) for alpha in (None, 0.25, jnp.array(3.0)) for dtype in TYPES]


@pytest.mark.parametrize("alpha, dtype", few(LOW, [LOW[0], LOW[3], LOW[5]]))
def test_low_rank(alpha, dtype):
    op = se.LoraOp(alpha)
    value = {"B": normal(4, 2, dtype=dtype), "A": normal(2, 5, dtype=dtype), "bias": normal(5, dtype=dtype)}
    scale = 1.0 if alpha is None else float(alpha)
    for batch in BATCHES:
        x = normal(*batch, 4, dtype=dtype)
        expected = scale * np.einsum("...i,ir,rj->...j", x, value["B"], value["A"])
        close(se.ETraceParam({"B": value["B"], "A": value["A"]}, op)(x), expected, dtype)
        close(se.ETraceParam(value, op)(x), expected + value["bias"], dtype)
    if alpha is not None:
        se.check_op(op, jax.tree.map(jnp.asarray, value), x)


def test_elementwise():
    w = {"tau": normal(3), "gain": normal(3, seed=1)}
    param = se.ElemWiseParam(w, lambda w: jnp.exp(w["tau"]) * w["gain"])
    close(param(), np.exp(w["tau"]) * w["gain"])
    close(se.ElemWiseParam(w["tau"])(), w["tau"])
    close(se.ElemWiseParam(2.0, jnp.exp)(), np.exp(2.0))
    assert param.op.is_diagonal and param.grad is se.ETraceGrad.full
    se.check_op(param.op, param.value, None)


@pytest.mark.parametrize("shape, units", [((3,), (3,)), ((), (3,)), ((3,), (2, 3)), ((1, 3), (2, 2, 3))])
def test_elementwise_window(shape, units):
    op, v = se.ElemWiseOp(), jnp.asarray(normal(*shape))
    trace, signal, carried = normal(2, *units), normal(2, *units, seed=1), normal(2, 2, *units, seed=2)
    entering, direct = normal(5, 2, *units, seed=3), normal(5, *units, seed=4)
    new, taught = op.window(v, *map(jnp.asarray, (trace, carried, entering, signal, direct)), None)
    close(new, np.einsum("ab...,b...->a...", carried, trace) + entering.sum(0))
    per_unit = np.einsum("a...,a...->...", signal, trace) + direct.sum(0)
    close(taught, jax.vjp(lambda v: jnp.broadcast_to(v, units), v)[1](jnp.asarray(per_unit))[0])


# --- the contract ----------------------------------------------------------------------------------------------------


def examples():
    """For each op: the op, a value of its parameter, and the shape of an input."""
    w, b = normal(4, 5), normal(5)
    conv = jax.ShapeDtypeStruct((5, 4), np.float64)
    conn = connectivity()
    return {
        "dense": (se.MatMulOp(weight_mask=forms((4, 5))[1]["weight_mask"]), {"weight": w, "bias": b}, (4,)),
        "conv": (
            se.ConvOp(conv, [2], "SAME", feature_group_count=2, weight_fn=jnp.tanh),
            {"weight": normal(3, 2, 2), "bias": normal(2)},
            (5, 4),
        ),
        "conv-2d": (
            se.ConvOp(jax.ShapeDtypeStruct((3, 4, 2), np.float64), [1, 2], "VALID", rhs_dilation=[2, 1]),
            {"weight": normal(2, 2, 2, 3), "bias": normal(3)},
            (3, 4, 2),
        ),
        "sparse": (se.SpMatMulOp(conn), {"weight": normal(6), "bias": normal(4)}, (3,)),
        "tied": (se.SpMatMulOp(conn, jnp.tanh, [1, 0, 0, 2, 1, 1]), {"weight": normal(3), "bias": normal(4)}, (3,)),
        "features": (se.SpMatMulOp(conn, axis=-2), {"weight": normal(6), "bias": normal(4)}, (3, 2)),
        "bcoo": (se.SpMatMulOp(padded_bcoo()), {"weight": normal(8)}, (3,)),
        "low-rank": (se.LoraOp(0.5), {"B": normal(4, 2), "A": normal(2, 5), "bias": b}, (4,)),
    }


NAMES = list(examples())


def setting(name, *batch):
    op, value, shape = examples()[name]
    v = jax.tree.map(jnp.asarray, op.phi(jax.tree.map(jnp.asarray, value)))
    x = jnp.asarray(normal(*batch, *shape))
    y = jnp.asarray(normal(*op.xw_to_y(x, v).shape, seed=1))
    return op, v, x, y


def assert_trees(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(close, got, expected)


@pytest.mark.parametrize("name", few(NAMES, ["conv", "conv-2d", "tied", "features", "low-rank"]))
def test_sampled_product_is_the_generic_one_position_by_position(name):
    op, v, x, y = setting(name, 2, 3)
    generic = se.ETraceOp.xy_to_dw(op, x, y, v)
    own = op.xy_to_dw(x, y, v)
    for key, leaf in own.items():
        between = tuple(range(2, leaf.ndim - v[key].ndim))
        close(jnp.sum(leaf, axis=between), generic[key])
    # Each position drives its own slots: the product with one position alone is that position's part.
    front = np.zeros(y.shape[2:])
    front.flat[0] = 1
    alone, e = op.xy_to_dw(x, y * front, v), op.yw_to_w(jnp.broadcast_to(jnp.asarray(front), y.shape), own)
    assert_trees(alone, e)


SUMMED = [(name, *sizes) for name in NAMES for sizes in ((1, ()), (3, (2,)))]


@pytest.mark.parametrize("name, steps, batch", few(SUMMED, [SUMMED[0], *SUMMED[3:12:2], SUMMED[15]]))
def test_sum_and_window_are_the_generic_ones(name, steps, batch):
    op, v, x, y = setting(name, steps, *batch)
    each = [op.xy_to_dw(x[k], y[k], v) for k in range(steps)]
    expected = jax.tree.map(lambda *parts: sum(parts), *each)
    units, variables = y.shape[1:], 2
    trace = jax.tree.map(lambda e: jnp.asarray(normal(variables, *e.shape, seed=2)), each[0])
    carried, signal = normal(variables, variables, *units, seed=3), normal(variables, *units, seed=4)
    entering = normal(steps, variables, *units, seed=5)
    coefficients = tuple(map(jnp.asarray, (carried, entering, signal, y)))
    partials = [{**trace, key: None} for key in v]  # without a trace for one leaf, the other's is the same

    @jax.jit
    def both(*args):
        traces = [trace, *partials]
        windows = [(op.window(v, e, *args), se.ETraceOp.window(op, v, e, *args)) for e in traces]
        return windows, op.sum_dw(x, y, v), se.ETraceOp.sum_dw(op, x, y, v)

    windows, own, generic = both(*coefficients, x)
    assert_trees(own, expected)
    assert_trees(generic, expected)
    (full, generic), *rest = windows
    assert_trees(full, generic)
    for key, (own, generic) in zip(v, rest):
        assert_trees(own, tuple({**part, key: None} for part in full))
        assert_trees(generic, own)


def test_window_of_a_dense_op_by_hand():
    op, v, x, y = setting("dense", 3, 2)
    trace = {"weight": normal(2, 2, 4, 5), "bias": normal(2, 2, 5)}
    carried, signal, entering = normal(2, 2, 2, 5), normal(2, 2, 5, seed=1), normal(3, 2, 2, 5)
    args = jax.tree.map(jnp.asarray, (trace, carried, entering, signal, y))
    new, taught = se.ETraceOp.window(op, v, *args, x)
    weight = np.einsum("abnj,bnij->anij", carried, trace["weight"]) + np.einsum("kanj,kni->anij", entering, x)
    close(new["weight"], weight)
    close(new["bias"], np.einsum("abnj,bnj->anj", carried, trace["bias"]) + entering.sum(0))
    close(taught["weight"], np.einsum("anj,anij->ij", signal, trace["weight"]) + np.einsum("knj,kni->ij", y, x))
    close(taught["bias"], np.einsum("anj,anj->j", signal, trace["bias"]) + np.sum(y, (0, 1)))


def test_sparse_window_is_the_kernel():
    op, v, x, y = setting("sparse", 3, 2)
    trace = normal(2, 2, 6)
    args = tuple(map(jnp.asarray, (normal(2, 2, 2, 4), normal(3, 2, 2, 4), normal(2, 2, 4), y)))
    new, taught = op.window(v, {"weight": jnp.asarray(trace), "bias": None}, *args, x)
    expected = kernels_trace.advance(op.connectivity, *args, x, jnp.asarray(trace))
    assert_trees((new["weight"], taught["weight"]), expected)


# --- transformations -------------------------------------------------------------------------------------------------


def parameter(name):
    op, value, shape = examples()[name]
    return se.ETraceParam(value, op), shape


MAPPED = ["dense", "conv", "conv-2d", "tied", "features", "low-rank"]


@pytest.mark.parametrize("name", few(MAPPED, ["conv-2d", "tied", "low-rank"]))
def test_vmap_over_inputs_is_a_leading_axis(name):
    param, shape = parameter(name)
    x = jnp.asarray(normal(2, *shape, 3))
    moved = jnp.moveaxis(x, -1, 1)
    expected = param(moved)
    close(jax.vmap(jax.vmap(param))(moved), expected)
    close(jax.vmap(param, in_axes=-1, out_axes=1)(x), expected)
    close(jax.vmap(jax.vmap(param, in_axes=-1))(x), expected)
    close(jax.jit(jax.vmap(param))(moved), expected)
    grad = jax.grad(lambda x: jnp.sum(jax.vmap(param)(x) ** 2))(moved)
    close(grad, jax.grad(lambda x: jnp.sum(param(x) ** 2))(moved))


@pytest.mark.parametrize("name", few(MAPPED, ["dense", "features", "low-rank"]))
def test_vmap_over_models(name):
    param, shape = parameter(name)
    twice = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), param.value)
    xs = jnp.asarray(normal(2, 3, *shape))
    build = lambda value: se.ETraceParam(value, param.op)
    expected = jnp.stack([build(jax.tree.map(lambda a, k=k: a[k], twice))(xs[k]) for k in range(2)])
    run = lambda value, x: build(value)(x)
    close(jax.vmap(run)(twice, xs), expected)
    close(jax.jit(jax.vmap(run))(twice, xs), expected)
    inner = jax.vmap(lambda value, x: jax.vmap(lambda x: run(value, x))(x))
    close(inner(twice, xs), expected)
    outer = jax.vmap(lambda x: jax.vmap(run)(twice, x), in_axes=1, out_axes=1)
    close(outer(xs), expected)
    models = eqx.filter_vmap(build)(twice)
    close(eqx.filter_vmap(lambda m, x: m(x), in_axes=(eqx.if_array(0), 0))(models, xs), expected)


@pytest.mark.parametrize("name", few(MAPPED, ["conv", "tied", "low-rank"]))
def test_derivatives(name):
    op, value, shape = examples()[name]
    value, x = jax.tree.map(jnp.asarray, value), jnp.asarray(normal(2, *shape))
    plain = lambda value, x: op.xw_to_y(x, op.phi(value))
    marked = lambda value, x: se.ETraceParam(value, op)(x)
    loss = lambda fn: lambda value, x: jnp.sum(jnp.sin(fn(value, x)))
    assert_trees(
        jax.jit(jax.grad(loss(marked), argnums=(0, 1)))(value, x), jax.grad(loss(plain), argnums=(0, 1))(value, x)
    )
    along = (jax.tree.map(jnp.cos, value), jnp.cos(x))
    assert_trees(jax.jvp(marked, (value, x), along), jax.jvp(plain, (value, x), along))

    def hessian_product(fn):
        grad = jax.grad(loss(fn), argnums=(0, 1))
        return jax.jit(lambda *at: jax.jvp(grad, at, along))(value, x)

    assert_trees(hessian_product(marked), hessian_product(plain))
    reverse_twice = jax.grad(lambda v: jnp.sum(jax.grad(loss(marked))(v, x)["bias" if "bias" in v else "weight"] ** 2))
    expected = jax.grad(lambda v: jnp.sum(jax.grad(loss(plain))(v, x)["bias" if "bias" in v else "weight"] ** 2))
    assert_trees(jax.jit(reverse_twice)(value), expected(value))


@pytest.mark.parametrize("name", ["dense", "conv", "features"])
def test_integer_and_boolean_inputs(name):
    param, shape = parameter(name)
    spikes = normal(3, *shape) > 0
    expected = param(spikes.astype(float))
    close(param(spikes), expected)
    close(param(spikes.astype(np.int32)), expected)
    grad = jax.grad(lambda value, x: jnp.sum(se.ETraceParam(value, param.op)(x) ** 2))
    assert_trees(grad(param.value, spikes), grad(param.value, spikes.astype(float)))
    close(jax.vmap(param)(spikes), expected)
    y = jnp.asarray(normal(*expected.shape))
    v = param.op.phi(param.value)
    real, dw = jnp.asarray(spikes.astype(float)), param.op.xy_to_dw(jnp.asarray(spikes), y, v)
    assert_trees(dw, param.op.xy_to_dw(real, y, v))


# --- what is never trained -------------------------------------------------------------------------------------------


def test_ops_stop_gradients_into_their_own_arrays():
    conn, x = connectivity(), jnp.asarray(normal(3))
    params = [
        se.ETraceParam({"weight": normal(3, 2)}, se.MatMulOp(weight_mask=normal(3, 2, seed=1))),
        se.ETraceParam({"weight": normal(6)}, se.SpMatMulOp(conn, weight_fn=se.Bounded(jnp.zeros(6), jnp.ones(6)))),
        se.ETraceParam({"weight": normal(6)}, se.SpMatMulOp(conn, weight_fn=se.SignLock(jnp.ones(6)))),
    ]
    for param in params:
        spec = jax.tree.leaves(se.trainable(param.op))
        assert spec and not any(spec)
        grad = eqx.filter_grad(lambda p: jnp.sum(p(x) ** 2))(param)
        own = [leaf for leaf in jax.tree.leaves(grad.op) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        assert own and not any(np.any(leaf) for leaf in own)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(grad.value))
        assert all(jax.tree.leaves(se.trainable(param).value))


def test_sign_lock():
    lock = se.SignLock(np.array([1, -1, 1, -1]))
    w = jnp.array([-2.0, 3.0, 0.0, 0.0])
    assert lock(w).tolist() == [2.0, -3.0, 0.0, 0.0]
    assert jax.grad(lambda w: jnp.sum(lock(w)))(w).tolist() == [-1.0, -1.0, 1.0, -1.0]
    assert lock(w.astype(jnp.float32)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"sign: expected \+1, -1 or 0 everywhere, got 0.5. Use numpy.sign"):
        se.SignLock([1.0, 0.5])
    with pytest.raises(ValueError, match=r"sign: .* got nan"):
        se.SignLock([1.0, np.nan])
    assert jax.jit(lambda s, w: se.SignLock(s)(w))(jnp.array([-1.0]), w[:1]).tolist() == [-2.0]


def test_bounded():
    box = se.Bounded(-1.0, jnp.array([1.0, 3.0]))
    w = jnp.array([0.0, 0.0])
    assert box(w).tolist() == [0.0, 1.0]
    assert jax.grad(lambda w: jnp.sum(box(w)))(w).tolist() == [0.5, 1.0]
    assert box(jnp.array([-50.0, 50.0], jnp.float32)).tolist() == [-1.0, 3.0]
    with pytest.raises(ValueError, match="lo, hi: expected lo < hi everywhere, got lo=1.0, hi=1.0. Swap"):
        se.Bounded(1.0, 1.0)
    assert jax.jit(lambda lo, w: se.Bounded(lo, 1)(w))(-1.0, w).tolist() == [0.0, 0.0]


def test_weight_functions_can_be_made_inside_jit():
    make = lambda w: se.SignLock(np.array([-1.0]))(w) + se.Bounded(0.0, 1.0)(w)
    assert jax.jit(make)(jnp.zeros(1)).tolist() == [0.5]


# --- errors ----------------------------------------------------------------------------------------------------------

XINFO = jax.ShapeDtypeStruct((8, 4), np.float64)


def run(value, op, *x):
    return lambda: se.ETraceParam(value, op)(*map(np.ones, x))


ERRORS = {
    "keys": (
        run({"w": np.ones((2, 3))}, se.MatMulOp(), 2),
        r"value: expected \{'weight'.*got \['w'\]. Name the arrays",
    ),
    "no dict": (run(np.ones((2, 3)), se.MatMulOp(), 2), r"value: expected \{'weight': .*got ArrayImpl. Name"),
    "rank": (
        run({"weight": np.ones(3)}, se.MatMulOp(), 2),
        r"value\['weight'\]: expected one array of shape \(num_pre, num_post\), got \(3,\)",
    ),
    "list": (run({"weight": [1.0]}, se.MatMulOp(), 1), r"value\['weight'\]: expected one array .* got list"),
    "bias": (
        run({"weight": np.ones((2, 3)), "bias": np.ones(1)}, se.MatMulOp(), 2),
        r"value\['bias'\]: expected shape \(3,\), got \(1,\). One value for each postsynaptic unit",
    ),
    "mask": (
        run({"weight": np.ones((2, 3))}, se.MatMulOp(np.ones(3)), 2),
        r"weight_mask: expected shape \(2, 3\), got \(3,\). Give it the shape of value\['weight'\]",
    ),
    "function": (
        run({"weight": np.ones((2, 3))}, se.MatMulOp(weight_fn=jnp.sum), 2),
        r"weight_fn: expected shape \(2, 3\), got \(\). It maps the weights one by one",
    ),
    "sign": (
        lambda: se.ETraceParam({"weight": np.ones(6)}, se.SpMatMulOp(connectivity(), lambda w: w[:1]))(np.ones(3)),
        r"weight_fn: expected shape \(6,\), got \(1,\)",
    ),
    "input": (
        run({"weight": np.ones((2, 3))}, se.MatMulOp(), (2, 3)),
        r"x: expected 2 presynaptic units on axis -1, got shape \(2, 3\). Batch axes come in front",
    ),
    "sparse input": (
        lambda: se.ETraceParam({"weight": np.ones(6)}, se.SpMatMulOp(connectivity(), axis=-2))(np.ones((2, 3))),
        r"x: expected 3 presynaptic units on axis -2, got shape \(2, 3\)",
    ),
    "sparse weight": (
        lambda: se.ETraceParam({"weight": np.ones(5)}, se.SpMatMulOp(connectivity()))(np.ones(3)),
        r"value\['weight'\]: expected shape \(6,\), got \(5,\). One for each synapse",
    ),
    "sparse bias": (
        lambda: se.ETraceParam({"weight": np.ones(6), "bias": np.ones(3)}, se.SpMatMulOp(connectivity()))(np.ones(3)),
        r"value\['bias'\]: expected shape \(4,\), got \(3,\)",
    ),
    "axis": (
        lambda: se.SpMatMulOp(connectivity(), axis=0),
        "axis: expected -1 or -2, got 0. Move the presynaptic axis",
    ),
    "tie shape": (
        lambda: se.SpMatMulOp(connectivity(), tie=[0, 1]),
        r"tie: expected shape \(6,\), got \(2,\). One index into value\['weight'\] for each synapse",
    ),
    "tie type": (lambda: se.SpMatMulOp(connectivity(), tie=np.ones(6)), "tie: expected integers >= 0, got float64"),
    "tie sign": (lambda: se.SpMatMulOp(connectivity(), tie=[-1] * 6), "tie: expected integers >= 0, got int64 from -1"),
    "low rank keys": (
        run({"weight": np.ones((2, 3))}, se.LoraOp(), 2),
        r"value: expected \{'B': ..., 'A': ..., 'bias'\?: ...\}, got \['weight'\]. Use these names",
    ),
    "no low rank": (run(np.ones(2), se.LoraOp(), 2), r"value: expected \{'B'.* got ArrayImpl"),
    "rank of low rank": (
        run({"B": np.ones((2, 1)), "A": np.ones((2, 3))}, se.LoraOp(), 2),
        r"value\['B'\], value\['A'\]: expected \(num_pre, rank\) and \(rank, num_post\), got \(2, 1\) and \(2, 3\).",
    ),
    "elementwise": (run({"a": np.ones(2)}, se.ElemWiseOp()), r"fn: expected one array .* got PyTreeDef\(\{'a': \*\}\)"),
    "elementwise input": (run(np.ones(2), se.ElemWiseOp(), 2), "x: expected no input, got one"),
    "xinfo": (
        lambda: se.ConvOp(jax.ShapeDtypeStruct((4,), np.float32), [], "SAME"),
        r"xinfo: expected a shape of 1 to 3 spatial axes and the channels, got \(4,\)",
    ),
    "strides": (lambda: se.ConvOp(XINFO, [1, 1], "SAME"), r"window_strides: expected 1 entries, .* got \[1, 1\]"),
    "padding": (lambda: se.ConvOp(XINFO, [1], [(0, 0)] * 2), "padding: expected 1 entries, one for each spatial axis"),
    "padding with dilation": (
        lambda: se.ConvOp(XINFO, [1], "SAME", lhs_dilation=[2]),
        r"padding: expected a pair for each spatial axis where lhs_dilation is given, got 'SAME'",
    ),
    "dilation": (lambda: se.ConvOp(XINFO, [1], "SAME", rhs_dilation=[1, 1]), "rhs_dilation: expected 1 entries"),
    "groups": (
        lambda: se.ConvOp(XINFO, [1], "SAME", feature_group_count=3),
        "feature_group_count: expected a divisor of the 4 input channels, got 3",
    ),
    "kernel": (
        run({"weight": np.ones((3, 4))}, se.ConvOp(XINFO, [1], "SAME"), (8, 4)),
        r"value\['weight'\]: expected one array of shape \(width, 4, c_out\), got \(3, 4\)",
    ),
    "channels": (
        run({"weight": np.ones((3, 3, 2))}, se.ConvOp(XINFO, [1], "SAME"), (8, 4)),
        r"value\['weight'\]: expected shape \(width, 4, c_out\) with c_out a multiple of 1, got \(3, 3, 2\)",
    ),
    "channels of groups": (
        run({"weight": np.ones((3, 2, 3))}, se.ConvOp(XINFO, [1], "SAME", feature_group_count=2), (8, 4)),
        r"expected shape \(width, 2, c_out\) with c_out a multiple of 2, got \(3, 2, 3\)",
    ),
    "image": (
        run({"weight": np.ones((3, 4, 2))}, se.ConvOp(XINFO, [1], "SAME"), (2, 7, 4)),
        r"x: expected shape \(8, 4\), got \(7, 4\). The shape of xinfo, after the batch axes",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_matrix():
    with pytest.raises(TypeError, match="M: expected a scipy sparse matrix, BCOO, BCSR or CSR, got ndarray"):
        se.SpMatMulOp(np.ones((2, 2)))


def test_an_op_without_its_methods_is_abstract():
    class Half(se.ETraceOp):
        def xw_to_y(self, x, w):
            return x * w

    with pytest.raises(TypeError, match="abstract method '?yw_to_w"):
        Half()
