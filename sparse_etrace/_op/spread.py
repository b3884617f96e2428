"""Sums over edges that come with the input."""

from typing import SupportsIndex

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .initial import size
from .param import cut


def spread(
    x: ArrayLike, pre: ArrayLike, post: ArrayLike, weight: ArrayLike, num_post: SupportsIndex | None = None
) -> Array:
    """Sum over edges that may be others at every step: `y[post[e]] += weight[e] * x[pre[e]]`, inside a recurrence too.

    The arrays have a fixed capacity, so that nothing compiles again, and are never trained; edges that are not there
    have a weight of 0, or a `pre` or `post` outside of the nodes, as their number. What comes out mixes nodes, so this
    is a boundary as `se.cut` makes one: traces leave recurrence through it out and keep its gradient within the same
    step; `RTRL` is exact, and so is `Bridged` within a window. A matrix that learns on what has been gathered,
    `matrix(se.spread(h, ...))`, has its trace; one before it learns from the same step only.

    Args:
        x: `(..., num_pre, features)`.
        pre, post: sender and receiver of each edge, `(capacity,)`, integers.
        weight: `(capacity,)`.
        num_post: number of receivers; that of senders unless given.

    Returns:
        `(..., num_post, features)`.

    Raises:
        ValueError: the shapes do not fit, or `pre` and `post` are no integers.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> x = jnp.array([[1.0], [10.0]])
        >>> se.spread(x, jnp.array([0, 0]), jnp.array([1, 2]), jnp.array([0.5, 7.0])).tolist()
        [[0.0], [0.5]]
    """
    x, pre, post, weight = map(jnp.asarray, (x, pre, post, weight))
    ends = [a.shape == weight.shape and jnp.issubdtype(a.dtype, jnp.integer) for a in (pre, post)]
    if x.ndim < 2 or weight.ndim != 1 or not all(ends):
        got = ", ".join(f"{a.dtype}{list(a.shape)}" for a in (x, pre, post, weight))
        raise ValueError(
            f"x, pre, post, weight: expected (..., nodes, features), and three arrays of one axis, pre and post of "
            f"integers, got {got}. Arrays that differ for each batch element go through jax.vmap."
        )
    pre, post = pre.astype(jnp.int32), post.astype(jnp.int32)  # 8 bits would not hold the number of nodes
    count = x.shape[-2] if num_post is None else size("num_post", num_post)

    def summed(x: Array, pre: Array, post: Array, weight: Array) -> Array:
        there = (pre >= 0) & (pre < x.shape[-2])
        sent = jnp.where(there[:, None], jnp.take(x, pre, axis=-2, mode="clip") * weight[:, None], 0)
        y = jnp.zeros((*x.shape[:-2], count, x.shape[-1]), sent.dtype)
        # Negative numbers would count from the end.
        return y.at[..., jnp.where(post < 0, count, post), :].add(sent, mode="drop")

    return cut(summed)(x, pre, post, jax.lax.stop_gradient(weight))
