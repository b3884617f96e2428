"""Weight functions whose arrays are never trained."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class SignLock(eqx.Module):
    """Dale's principle: each synapse keeps its sign, `v = sign * |w|`.

    The derivative at `w = 0` is `sign`, so that a synapse of weight zero can still learn. `range` and `inverse` are for
    `op.param`, whose weights start with the right sign.

    Args:
        sign: +1 or -1 for each synapse, or anything that broadcasts against the weights.

    Raises:
        ValueError: a sign is neither +1 nor -1.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.SignLock(jnp.array([1.0, -1.0]))(jnp.array([-2.0, 3.0])).tolist()
        [2.0, -3.0]

    Reference:
        Eccles, Fatt and Koketsu 1954, Journal of Physiology 126:524.
    """

    sign: Array

    def __init__(self, sign: Any):
        if not isinstance(sign, jax.core.Tracer):
            other = np.asarray(sign)[np.abs(sign) != 1]
            if other.size:
                raise ValueError(f"sign: expected +1 or -1 everywhere, got {other[0]}. Use numpy.where(x < 0, -1, 1).")
        self.sign = jnp.array(sign)

    def __call__(self, w: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.sign.astype(w.dtype) * jnp.where(w < 0, -w, w)

    @property
    def range(self) -> tuple[Array, Array]:
        """Lowest and highest weight."""
        return jnp.where(self.sign < 0, -jnp.inf, 0), jnp.where(self.sign < 0, 0, jnp.inf)

    def inverse(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """A value whose weight is `v`, with the sign that is locked."""
        return self(v)


class Bounded(eqx.Module):
    """Weights between two bounds, `v = lo + (hi - lo) / (1 + exp(-w))`.

    `range` and `inverse` are for `op.param`, whose weights start within the bounds.

    Args:
        lo, hi: bounds, numbers or arrays that broadcast against the weights, `lo < hi`.

    Raises:
        ValueError: `lo` is not below `hi`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.Bounded(0.0, 2.0)(jnp.zeros(1)).tolist()
        [1.0]
    """

    lo: Array
    hi: Array

    def __init__(self, lo: object, hi: object):
        is_known = not isinstance(lo, jax.core.Tracer) and not isinstance(hi, jax.core.Tracer)
        if is_known and not np.all(np.asarray(lo) < np.asarray(hi)):
            raise ValueError(f"lo, hi: expected lo < hi everywhere, got lo={lo}, hi={hi}. Swap them there.")
        self.lo, self.hi = jnp.array(lo), jnp.array(hi)

    def __call__(self, w: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        lo, hi = self.lo.astype(w.dtype), self.hi.astype(w.dtype)
        return lo + (hi - lo) * jax.nn.sigmoid(w)

    @property
    def range(self) -> tuple[Array, Array]:
        """Lowest and highest weight."""
        return self.lo, self.hi

    def inverse(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """A value whose weight is `v`.

        Raises:
            ValueError: a weight is out of bounds.
        """
        lo, hi = self.lo.astype(v.dtype), self.hi.astype(v.dtype)
        outside = (v < lo) | (v > hi)
        if not isinstance(outside, jax.core.Tracer) and np.any(outside):
            raise ValueError(
                f"v: expected weights from {self.lo} to {self.hi}, got {np.asarray(v)[np.asarray(outside)][0]}. "
                "Clip them, or widen the bounds."
            )
        eps = jnp.finfo(v.dtype).eps  # a weight on a bound is made of a large number, not of an infinite one
        return jax.scipy.special.logit(jnp.clip((v - lo) / (hi - lo), eps, 1 - eps))
