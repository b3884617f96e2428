"""Does a user's op keep the contract?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .base import ETraceOp, sum_to


def check_op(op: ETraceOp, w: PyTree[Array], x: Any) -> None:
    """Test the contract of an op on random numbers, and say which law fails, and where.

    With `v = phi(w)` and a trace `e = xy_to_dw(x, y, v)`:

    - `e` has the structure and types of `v`, and its shapes behind the batch axes (and positions, if any);
    - `yw_to_w` keeps structure, shapes and types, and is linear in `y` and in `e`;
    - `xy_to_dw` is linear in `x` and in `y`; its `per_unit` leaves do not depend on `x` at all;
    - `xy_to_dw(x, d * y, v) == yw_to_w(d, xy_to_dw(x, y, v))`: each slot of a trace drives exactly one unit;
    - summed over batch and positions, `xy_to_dw` equals the vector-Jacobian product of `xw_to_y` in `v`;
    - a leading batch axis changes nothing;
    - where an op has its own `sum_dw` or `window`, it equals that of `ETraceOp`.

    Args:
        op: the op.
        w: a value of its parameter.
        x: an input, with or without batch axes; None for an op without input. Integers (indices, say) are used as they
            are, and no linearity in them is asked for.

    Raises:
        ValueError: a law fails.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.check_op(se.MatMulOp(), {'weight': jnp.ones((2, 3))}, jnp.ones(2))
    """
    rng = np.random.default_rng(0)

    def like(a: Any) -> Array:
        return jnp.asarray(rng.normal(size=a.shape), a.dtype)

    def run(name: str, *args: Any) -> Any:
        try:
            return getattr(op, name)(*args)
        except Exception as error:
            raise ValueError(f"{name}: it raises on {_shapes(args)}: {error}") from error

    v = run("phi", w)
    x = None if x is None else jnp.asarray(x)
    is_real = x is not None and jnp.issubdtype(x.dtype, jnp.inexact)
    x, x2 = (like(x), like(x)) if is_real else (x, x)
    y, d, y2 = (like(run("xw_to_y", x, v)) for _ in range(3))
    e, e2 = run("xy_to_dw", x, y, v), run("xy_to_dw", x2, y2, v)
    other = jax.tree.map(like, e)

    _ends_like(e, v, positions=not op.is_diagonal)
    _same("yw_to_w keeps structure, shapes and types", run("yw_to_w", y, e), e, values=False)
    sum_y = _minus(run("yw_to_w", y, e), run("yw_to_w", d, e))
    _same("yw_to_w is linear in y", run("yw_to_w", y - 2 * d, e), sum_y)
    sum_e = _minus(run("yw_to_w", y, e), run("yw_to_w", y, other))
    _same("yw_to_w is linear in e", run("yw_to_w", y, _minus(e, other)), sum_e)
    sum_dw = _minus(e, run("xy_to_dw", x, d, v))
    _same("xy_to_dw is linear in y", run("xy_to_dw", x, y - 2 * d, v), sum_dw)
    if is_real:
        at_x2 = run("xy_to_dw", x2, y, v)
        _same("per_unit leaves of xy_to_dw do not depend on x", at_x2, e, only=lambda key: key in op.per_unit)
        law = "xy_to_dw is linear in x (name the leaf in per_unit if its slot is the target unit, as that of a bias is)"
        at_sum = run("xy_to_dw", x - 2 * x2, y, v)
        _same(law, at_sum, _minus(e, at_x2), only=lambda key: key not in op.per_unit)
    _same("xy_to_dw(x, d * y, v) == yw_to_w(d, xy_to_dw(x, y, v))", run("xy_to_dw", x, d * y, v), run("yw_to_w", d, e))
    vjp = jax.vjp(lambda v: op.xw_to_y(x, v), v)[1](y)[0]
    _same("the sum of xy_to_dw over batch and positions is the VJP of xw_to_y", sum_to(e, v), vjp)
    if x is None:
        return

    law = "a leading batch axis changes nothing in "
    xs, ys, stacked = jnp.stack([x, x2]), jnp.stack([y, y2]), _stack(e, e2)
    _same(law + "xw_to_y", run("xw_to_y", xs, v), jnp.stack([run("xw_to_y", x, v), run("xw_to_y", x2, v)]))
    _same(law + "xy_to_dw", run("xy_to_dw", xs, ys, v), stacked)
    _same(law + "yw_to_w", run("yw_to_w", ys, stacked), _stack(run("yw_to_w", y, e), run("yw_to_w", y2, e2)))
    _same("sum_dw is that of ETraceOp", run("sum_dw", xs, ys, v), ETraceOp.sum_dw(op, xs, ys, v))
    unit = [np.broadcast_to(y, (*front, *y.shape)) for front in ((2, 2), (2, 2), (2,), (2,))]
    args = (v, _stack(e, other), *map(like, unit), xs)
    _same("window is that of ETraceOp", run("window", *args), ETraceOp.window(op, *args))


def _ends_like(e: PyTree[Array], v: PyTree[Array], positions: bool) -> None:
    _same_structure("xy_to_dw has the structure of v", e, v)
    for _, path, leaf, weight in _leaves(e, v):
        behind = leaf.shape[max(leaf.ndim - weight.ndim, 0) :]
        if leaf.dtype != weight.dtype or (positions and behind != weight.shape):
            raise ValueError(
                f"xy_to_dw has the types of v, and its shapes behind batch and positions: it fails at {path}: "
                f"{leaf.shape} {leaf.dtype} against {weight.shape} {weight.dtype}."
            )


def _minus(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    """`a - 2 * b`, to test linearity."""
    return jax.tree.map(lambda a, b: a - 2 * b, a, b)


def _stack(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), a, b)


def _shapes(args: tuple) -> str:
    return ", ".join(str(jax.tree.map(lambda a: tuple(jnp.shape(a)), arg)) for arg in args)


def _leaves(a: PyTree[Array], b: PyTree[Array]) -> list[tuple[Any, str, Array, Array]]:
    """Top-level key, printed path, and the leaves of two trees of one structure."""
    paths = jax.tree_util.tree_flatten_with_path(a)[0]
    return [
        (getattr(path[0], "key", None) if path else None, jax.tree_util.keystr(path) or "the only leaf", leaf, other)
        for (path, leaf), other in zip(paths, jax.tree.leaves(b), strict=True)
    ]


def _same_structure(law: str, got: Any, expected: Any) -> None:
    a, b = str(jax.tree.structure(got)), str(jax.tree.structure(expected))
    if a != b:
        raise ValueError(f"{law}: got {a}, expected {b}.")


def _same(law: str, got: Any, expected: Any, values: bool = True, only: Any = lambda key: True) -> None:
    _same_structure(law, got, expected)
    for key, path, a, b in _leaves(got, expected):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(f"{law}: it fails at {path}: {a.shape} {a.dtype} against {b.shape} {b.dtype}.")
        if values and only(key):
            scale = float(jnp.max(jnp.abs(b), initial=0)) + 1.0
            error = float(jnp.max(jnp.abs(a - b), initial=0)) / scale
            if not error < min(1e3 * float(jnp.finfo(a.dtype).eps), 0.1):
                raise ValueError(f"{law}: it fails at {path}, with a relative error of {error:.1e}.")
