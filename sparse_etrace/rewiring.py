"""Which synapses go, and from where new ones come: senders for `se.rewire`."""

from collections.abc import Callable

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from ._graph.connectivity import Connectivity
from ._numbers import real
from ._op.param import ETraceParam
from ._op.sharded import whole
from ._op.spmatmul import SpMatMulOp

__all__ = ["deep_r", "rigl", "sparse_evolution"]


def sparse_evolution(param: ETraceParam, key: Array, share: float = 0.3) -> np.ndarray:
    """SET: of each target the share of its synapses that are smallest come from others, drawn at random.

    A target gives up `floor(share * in-degree)`, and no more than there are units that do not send to it yet. None
    sends to itself where the two ends are as many.

    Args:
        param: of a `SpMatMulOp`, on one device or on several.
        key: where new senders are drawn from.
        share: from 0 to 1.

    Returns:
        `pre` of `se.rewire`.

    Raises:
        TypeError: `param` is of another op.
        ValueError: `share` is out of range.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2, 3], [1, 1, 0, 0], [1.0, 0.1, 0.2, 2.0], shape=(4, 4))
        >>> param = se.SpMatMulOp(graph).param(init=graph)
        >>> sorted(se.rewiring.sparse_evolution(param, jax.random.key(0), share=0.5)[:2].tolist())
        [1, 3]

    Reference:
        Mocanu et al. 2018, Nature Communications 9:2383.
    """
    param = whole(param)
    return _drawn(param, _smallest(param, share), key)


def deep_r(param: ETraceParam, key: Array, sign: ArrayLike) -> np.ndarray:
    """Deep R: synapses whose weight has left the sign of its sender come from others, drawn at random.

    Args:
        param: of a `SpMatMulOp`, on one device or on several.
        key: where new senders are drawn from.
        sign: of each sender, `(num_pre,)`, or of all.

    Returns:
        `pre` of `se.rewire`; give it a small `weight` with the sign of each.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph = se.from_edges([0, 1], [1, 0], [1.0, -0.1], shape=(3, 3))
        >>> param = se.SpMatMulOp(graph).param(init=graph)
        >>> se.rewiring.deep_r(param, jax.random.key(0), sign=1).tolist()
        [2, 0]

    Reference:
        Bellec et al. 2018, International Conference on Learning Representations (arXiv 1711.05136).
    """
    param = whole(param)
    conn, weight = _connectivity(param), np.asarray(param.op.phi(param.value)["weight"])
    signs = np.broadcast_to(np.asarray(sign), (conn.num_pre,))
    return _drawn(param, weight * signs[np.asarray(conn.pre)] <= 0, key)


def rigl(param: ETraceParam, score: ArrayLike | Callable[[int], ArrayLike], share: float = 0.3) -> np.ndarray:
    """RigL: of each target the share of its synapses that are smallest come from the senders of the largest gradient.

    Args:
        param: of a `SpMatMulOp`, on one device or on several.
        score: the gradient that a synapse between each two units would have, `(num_pre, num_post)`, in any sign; or a
            function of a target that returns a column of it.
        share: from 0 to 1; see `sparse_evolution`.

    Returns:
        `pre` of `se.rewire`.

    Raises:
        TypeError: `param` is of another op.
        ValueError: `share` is out of range.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 1], [1, 1], [1.0, 0.1], shape=(4, 4))
        >>> param = se.SpMatMulOp(graph).param(init=graph)
        >>> se.rewiring.rigl(param, jnp.array([[0.0] * 4] * 3 + [[9.0] * 4]), share=0.5).tolist()
        [0, 3]

    Reference:
        Evci et al. 2020, International Conference on Machine Learning (arXiv 1911.11134).
    """
    param = whole(param)
    column = score if callable(score) else np.asarray(score).T.__getitem__
    return _replaced(param, _smallest(param, share), lambda post, allowed: -np.abs(np.asarray(column(post)))[allowed])


def _connectivity(param: ETraceParam) -> Connectivity:
    if not isinstance(op := getattr(param, "op", None), SpMatMulOp):
        raise TypeError(
            f"param: expected that of a SpMatMulOp, got {type(param if op is None else op).__name__}. Others have no "
            "list of synapses to choose from."
        )
    return op.connectivity


def _smallest(param: ETraceParam, share: float) -> np.ndarray:
    """The smallest of each target, as many as its share."""
    if not 0 <= real("share", share) <= 1:
        raise ValueError(f"share: expected a number from 0 to 1, got {share}.")
    conn, weight = _connectivity(param), np.asarray(param.op.phi(param.value)["weight"])
    ptr, post = np.asarray(conn.post_ptr), np.asarray(conn.post)
    order = np.lexsort((np.abs(weight), post))
    gone = np.zeros(len(post), bool)
    gone[order] = np.arange(len(post)) - ptr[post] < np.floor(share * np.diff(ptr))[post]
    return gone


def _drawn(param: ETraceParam, gone: np.ndarray, key: Array) -> np.ndarray:
    """Senders with others, drawn at random, in the place of what is gone."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    conn = _connectivity(param)
    post, size = np.asarray(conn.post).astype(np.int64), conn.num_pre
    taken = post * size + np.asarray(conn.pre)
    # Where half of all may come to the end, draw until all differ; elsewhere rank those that may.
    is_full = (4 * np.diff(np.asarray(conn.post_ptr)) >= size)[post]
    pre = _replaced(param, gone & is_full, lambda post, allowed: rng.random(len(allowed)))
    if conn.num_pre == conn.num_post:
        taken = np.sort(np.concatenate([taken, np.arange(size) * (size + 1)]))
    places = np.flatnonzero(gone & ~is_full)
    while places.size:
        pairs = post[places] * size + rng.integers(size, size=places.size)
        found = np.zeros(places.size, bool)
        found[np.unique(pairs, return_index=True)[1]] = True
        found &= taken[np.minimum(np.searchsorted(taken, pairs), taken.size - 1)] != pairs
        pre[places[found]] = pairs[found] % size
        taken, places = np.sort(np.concatenate([taken, pairs[found]])), places[~found]
    return pre


def _replaced(param: ETraceParam, gone: np.ndarray, rank: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """Senders with those of the lowest rank, that were none before, in the place of what is gone."""
    conn = _connectivity(param)
    pre, ptr, units = np.array(conn.pre), np.asarray(conn.post_ptr), np.arange(conn.num_pre)
    for post in np.unique(np.asarray(conn.post)[gone]):
        slots = slice(ptr[post], ptr[post + 1])
        own = [post] if conn.num_pre == conn.num_post else []
        allowed = np.setdiff1d(units, [*pre[slots], *own])
        chosen = allowed[np.argsort(rank(int(post), allowed), kind="stable")]
        places = np.arange(slots.start, slots.stop)[gone[slots]][: len(chosen)]
        pre[places] = chosen[: len(places)]
    return pre
