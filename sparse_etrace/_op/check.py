"""Does a user's op keep the contract?"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._kernels.windows import sum_to
from .contract import ETraceOp, Uses


def check_op(op: ETraceOp, w: PyTree[Array], x: PyTree) -> None:
    """Test the contract of an op on random numbers, and say which law fails, and where.

    The op runs as in a learner, where `jit` knows the shapes of its own arrays, but not what they hold.

    With `v = phi(w)` and a trace `e = xy_to_dw(x, y, v)`:

    - `e` has the structure and types of `v`, and its shapes after the batch axes (and positions, if any);
    - `yw_to_w` keeps structure, shapes and types, and is linear in `y` and in `e`;
    - `xy_to_dw` is linear in `x` and in `y`; its `per_unit` leaves do not depend on `x` at all;
    - `xy_to_dw(x, d * y, v) == yw_to_w(d, xy_to_dw(x, y, v))`: each slot of a trace drives exactly one unit;
    - summed over batch and positions, `xy_to_dw` equals the vector-Jacobian product of `xw_to_y` in `v`;
    - a leading batch axis changes nothing;
    - where an op has `synapses`, `y[post]` is the sum of `v[slot] * x[pre]` over them;
    - along the last `carried_ndim` axes, `xw_to_y` takes each entry by itself, as if there were no other;
    - where an op has its own `sum_dw` or `window`, it equals that of `ETraceOp`.

    Args:
        op: the op.
        w: a value of its parameter.
        x: an input as a call is given it, with or without batch axes; None for an op without input. Integers (indices,
            say) are used as they are, and no linearity in them is asked for.

    Raises:
        ValueError: a law fails.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.check_op(se.MatMulOp(), {'weight': jnp.ones((2, 3))}, jnp.ones(2))
    """
    rng = np.random.default_rng(0)
    arrays, rest = eqx.partition(op, eqx.is_array)

    def like(a: jax.ShapeDtypeStruct | Array, *front: int) -> Array:
        return jnp.asarray(rng.normal(size=(*front, *a.shape)), a.dtype)

    def run(name: str) -> Callable[..., PyTree]:
        return lambda arrays, *args: _run(eqx.combine(arrays, rest), name, *args)

    def shapes_of(name: str, *args: PyTree) -> PyTree:
        return jax.eval_shape(run(name), arrays, *args)

    v = jax.jit(run("phi"))(arrays, w)
    x = op.read(x)
    one = _without_batch(op, x)
    y = shapes_of("xw_to_y", x, v)
    e = shapes_of("xy_to_dw", x, y, v)
    _ends_like(e, v, positions=not op.is_diagonal)
    has_real_x = x is not None and jnp.issubdtype(x.dtype, jnp.inexact)
    xs = [like(x), like(x)] if has_real_x else [x, x]
    ys = [like(y), like(y)]
    es = [jax.tree.map(like, e), jax.tree.map(like, e)]
    coefficients = [like(y, 2, 2), like(y, 2, 2), like(y, 2), like(y, 2)]
    laws: list[tuple[str, float]] = []
    try:
        uses = uses_of(op, v, one, shapes_of("xw_to_y", one, v).size)
    except NotImplementedError:
        uses = None

    def errors(arrays: PyTree, *numbers: PyTree) -> list[Array]:
        laws.clear()
        op = eqx.combine(arrays, rest)
        return [error for law in _laws(op, has_real_x, uses, *numbers) for error in _compare(laws, *law)]

    for error, (law, tolerance) in zip(jax.jit(errors)(arrays, v, xs, ys, es, coefficients), laws, strict=True):
        if not error < tolerance:
            raise ValueError(f"{law}, with a relative error of {error:.1e}.")


def _laws(op: ETraceOp, has_real_x: bool, uses: Sequence[Uses] | None, *given: PyTree) -> Iterator[tuple]:
    """Each law as its name, its two sides, and the keys where it holds (None: everywhere)."""
    run, (v, xs, ys, es, coefficients) = partial(_run, op), given
    (x, x2), (y, d), (e, other) = xs, ys, es
    kept = jax.tree.map(jnp.zeros_like, (run("yw_to_w", y, e), e))
    yield "yw_to_w keeps structure, shapes and types", *kept
    yield "yw_to_w is linear in y", run("yw_to_w", y - 2 * d, e), _minus(run("yw_to_w", y, e), run("yw_to_w", d, e))
    both = _minus(run("yw_to_w", y, e), run("yw_to_w", y, other))
    yield "yw_to_w is linear in e", run("yw_to_w", y, _minus(e, other)), both
    dw = run("xy_to_dw", x, y, v)
    yield "xy_to_dw is linear in y", run("xy_to_dw", x, y - 2 * d, v), _minus(dw, run("xy_to_dw", x, d, v))
    if has_real_x:
        at_x2 = run("xy_to_dw", x2, y, v)
        yield "per_unit leaves of xy_to_dw do not depend on x", at_x2, dw, lambda key: key in op.per_unit
        law = "xy_to_dw is linear in x (name the leaf in per_unit if its slot is the target unit, as that of a bias is)"
        yield law, run("xy_to_dw", x - 2 * x2, y, v), _minus(dw, at_x2), lambda key: key not in op.per_unit
    yield "xy_to_dw(x, d * y, v) == yw_to_w(d, xy_to_dw(x, y, v))", run("xy_to_dw", x, d * y, v), run("yw_to_w", d, dw)
    vjp = jax.vjp(lambda v: op.xw_to_y(x, v), v)[1](y)[0]
    yield "the sum of xy_to_dw over batch and positions is the VJP of xw_to_y", sum_to(dw, v), vjp
    if uses is not None and (has_real_x or x is None):
        one = x if x is None else x.reshape(-1, *x.shape[x.ndim - op.input_ndim :])[0]
        out = run("xw_to_y", one, v)
        yield "synapses: xw_to_y is the sum of v[slot] * x[pre] into post", _summed(uses, v, one, out), out
    if x is None:
        return
    for axis in range(-op.carried_ndim, 0):
        out = run("xw_to_y", x, v)
        alone = [run("xw_to_y", part, v) for part in jnp.split(x, x.shape[axis], axis)]
        yield f"carried_ndim: xw_to_y takes each entry of axis {axis} by itself", jnp.concatenate(alone, axis), out
    law = "a leading batch axis changes nothing in "
    xs, ys, es = jnp.stack(xs), jnp.stack(ys), _stack(*es)
    yield law + "xw_to_y", run("xw_to_y", xs, v), _stack(run("xw_to_y", x, v), run("xw_to_y", x2, v))
    yield law + "xy_to_dw", run("xy_to_dw", xs, ys, v), _stack(dw, run("xy_to_dw", x2, d, v))
    yield law + "yw_to_w", run("yw_to_w", ys, es), _stack(run("yw_to_w", y, e), run("yw_to_w", d, other))
    yield "total_dw is that of ETraceOp", run("total_dw", xs, ys, v), ETraceOp.total_dw(op, xs, ys, v)
    yield "sum_dw is that of ETraceOp", run("sum_dw", xs, ys, v), ETraceOp.sum_dw(op, xs, ys, v)
    args = (v, es, *coefficients, xs)
    yield "window is that of ETraceOp", run("window", *args), ETraceOp.window(op, *args)
    if (half := run("halfway", xs, v)) is not None:
        yield "window is the same of what is kept halfway", run("window", *args[:-1], (xs, half)), run("window", *args)


def _without_batch(op: ETraceOp, x: Array | None) -> jax.ShapeDtypeStruct | None:
    """Shape and type of one input."""
    if x is None:
        return None
    rank = op.input_ndim
    if not hasattr(rank, "__index__") or not 0 <= rank <= x.ndim:
        raise ValueError(
            f"input_ndim: expected the rank of x without batch axes, a number up to {x.ndim} for shape {x.shape}, got "
            f"{'a method' if callable(rank) else rank}. Make it a property, or an attribute of the class."
        )
    return jax.ShapeDtypeStruct(x.shape[x.ndim - rank :], x.dtype)


def uses_of(op: ETraceOp, v: PyTree, x: jax.ShapeDtypeStruct | None, units: int) -> Sequence[Uses]:
    """What `synapses` says of weights `v`, arrays or shapes, onto so many units.

    Raises:
        NotImplementedError: it says nothing.
        ValueError: it is no `Uses` for each leaf, or names units or slots that are not there.
    """
    uses = op.synapses(v, x)
    leaves = _leaves(v, v)
    of_each = isinstance(uses, list | tuple) and len(uses) == len(leaves) and all(isinstance(u, Uses) for u in uses)
    if not of_each:
        raise ValueError(
            f"synapses: expected a list with a Uses for each of the {len(leaves)} leaves of v, got "
            f"{jax.tree.map(type, uses, is_leaf=lambda part: isinstance(part, Uses))}. Give them in jax.tree order."
        )
    for (_, path, leaf, _), use in zip(leaves, uses, strict=True):
        for name, size in (("pre", 0 if x is None else x.size), ("post", units), ("slot", leaf.size)):
            given = getattr(use, name)
            if given is None and name == "pre":
                continue
            a = np.asarray(given)
            if a.shape != np.shape(use.slot) or a.ndim != 1 or not np.issubdtype(a.dtype, np.integer):
                got = f"shape {a.shape} of {a.dtype} with slots of shape {np.shape(use.slot)}"
            elif np.any((a < 0) | (a >= size)):
                got = f"{a[(a < 0) | (a >= size)][0]}"
            else:
                continue
            raise ValueError(
                f"synapses: expected {name} of {path} as one axis of integers from 0 to below {size}, one for each use "
                f"of a weight, got {got}. Units and slots are numbers in the flattened arrays without batch axes."
            )
    return uses


def _summed(uses: Sequence[Uses], v: PyTree[Array], x: PyTree, y: Array) -> Array:
    """`y[post] = sum of v[slot] * x[pre]`, in the shape and type of `y`."""
    total = jnp.zeros(y.size, y.dtype)
    for leaf, use in zip(jax.tree.leaves(v), uses, strict=True):
        given = 1 if use.pre is None else x.ravel()[use.pre]
        total = total.at[use.post].add(leaf.ravel()[use.slot] * given)
    return total.reshape(y.shape)


def _run(op: ETraceOp, name: str, *args: PyTree) -> PyTree:
    try:
        return getattr(op, name)(*args)
    except Exception as error:
        shapes = ", ".join(str(jax.tree.map(lambda a: tuple(a.shape), arg)) for arg in args)
        raise ValueError(f"{name}: it raises on shapes {shapes}: {error}") from error


def _ends_like(e: PyTree, v: PyTree, positions: bool) -> None:
    _same_structure("xy_to_dw has the structure of v", e, v)
    for _, path, leaf, weight in _leaves(e, v):
        own = leaf.shape[max(leaf.ndim - weight.ndim, 0) :]
        fits = len(own) == weight.ndim and all(a in (1, b) for a, b in zip(weight.shape, own, strict=True))
        if leaf.dtype != weight.dtype or (positions and not fits):
            raise ValueError(
                f"xy_to_dw has the types of v, and its shapes after batch and positions: it fails at {path}: "
                f"{leaf.shape} {leaf.dtype} against {weight.shape} {weight.dtype}."
            )


def _compare(
    laws: list, law: str, got: PyTree, expected: PyTree, only: Callable[[str], bool] = lambda key: True
) -> Iterator[Array]:
    """The relative error of each leaf, its law and tolerance noted in `laws`."""
    _same_structure(law, got, expected)
    for key, path, a, b in _leaves(got, expected):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{law}: it fails at {path}: {a.shape} {a.dtype} against {b.shape} {b.dtype}.")
        if only(key):
            laws.append((f"{law}: it fails at {path}", min(1e3 * float(jnp.finfo(a.dtype).eps), 0.1)))
            yield jnp.max(jnp.abs(a - b), initial=0) / (jnp.max(jnp.abs(b), initial=0) + 1)


def _same_structure(law: str, got: PyTree, expected: PyTree) -> None:
    a, b = str(jax.tree.structure(got)), str(jax.tree.structure(expected))
    if a != b:
        raise ValueError(f"{law}: got {a}, expected {b}.")


def _leaves(a: PyTree, b: PyTree) -> list[tuple[Any, str, Any, Any]]:
    """Top-level key, printed path, and the leaves of two trees of one structure."""
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    return [
        (getattr(path[0], "key", None) if path else None, jax.tree_util.keystr(path) or "the only leaf", leaf, other)
        for (path, leaf), other in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def _minus(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """`a - 2 * b`, to test linearity."""
    return jax.tree.map(lambda a, b: a - 2 * b, a, b)


def _stack(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b)
