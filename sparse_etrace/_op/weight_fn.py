"""Weight functions whose arrays are never trained."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._graph.graph import Graph
from .._graph.signs import synapse_signs


class SignLock(eqx.Module):
    """Dale's principle: each synapse keeps its sign, `v = sign * |w|`.

    The derivative at `w = 0` is `sign`, so that a synapse of weight zero can still learn, but where that is 0: there it
    has no effect and never learns. `range` and `inverse` are for `op.param`, whose weights start with the right sign.

    Args:
        sign: +1, -1 or 0 for each synapse, or anything that broadcasts against the weights.

    Raises:
        ValueError: a sign is none of these.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.SignLock(jnp.array([1.0, -1.0]))(jnp.array([-2.0, 3.0])).tolist()
        [2.0, -3.0]

    Reference:
        Eccles, Fatt and Koketsu 1954, Journal of Physiology 126:524.
    """

    sign: Array

    def __init__(self, sign: ArrayLike | Sequence[float]):
        if not isinstance(sign, jax.core.Tracer):
            other = np.asarray(sign)[~np.isin(sign, (-1, 0, 1))]
            if other.size:
                raise ValueError(f"sign: expected +1, -1 or 0 everywhere, got {other[0]}. Use numpy.sign(x).")
        self.sign = jnp.array(sign)

    @classmethod
    def of(
        cls,
        graph: Graph,
        by: str,
        signs: Mapping[Hashable, int],
        *,
        default: int | None = None,
        tie: ArrayLike | None = None,
    ) -> "SignLock":
        """The sign of each synapse by a label of its sender, as its neurotransmitter, or by one of its own.

        Args:
            graph: square or rectangular.
            by: the node attribute, or one of synapses.
            signs: +1, -1 or 0 for each value of it, as `se.transform.FLY_SIGNS`.
            default: the sign where there is another value, or an empty one; None: these are an error.
            tie: as of `SpMatMulOp`, for weights that synapses share.

        Raises:
            TypeError: `graph` is no graph.
            ValueError: there is no such attribute, no sender has a value of `signs`, one has a value without a sign, a
                sign is none, or synapses that share a weight have several.

        Example:
            >>> import sparse_etrace as se
            >>> worm = se.datasets.worm()
            >>> lock = se.SignLock.of(worm, by="neurotransmitter", signs={"GABA": -1}, default=1)
            >>> int((lock.sign < 0).sum())
            76
        """
        sign = synapse_signs(graph, by, signs, default)
        if tie is not None:
            tie, each = np.asarray(tie), sign
            sign = np.ones(int(tie.max(initial=-1)) + 1)
            sign[tie] = each
            if (mixed := tie[sign[tie] != each]).size:
                raise ValueError(
                    f"tie: expected synapses of one sign for each weight, got several for weight {mixed[0]}. Part them "
                    f"by se.ties(graph, pre={by!r})."
                )
        return cls(sign)

    def __call__(self, w: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.sign.astype(w.dtype) * jnp.where(w < 0, -w, w)

    @property
    def range(self) -> tuple[Array, Array]:
        """Lowest and highest weight."""
        return jnp.where(self.sign < 0, -jnp.inf, 0), jnp.where(self.sign > 0, jnp.inf, 0)

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


class Frozen(eqx.Module):
    """Synapses that are not trained among others that are, `v = weight` where frozen, else `f(w)`.

    No optimizer moves a frozen weight, weight decay included. `range` and `inverse` are those of `f`.

    Args:
        where: True for each synapse that keeps its weight, or indices of these.
        weight: their weights; one entry for each synapse, of which only those are read.
        weight_fn: `f`; None for the weights as they are.

    Raises:
        ValueError: `where` does not fit `weight`.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> worm = se.datasets.worm()
        >>> of_gaba = np.isin(worm.connectivity.pre, worm.where(neurotransmitter="GABA"))
        >>> op = se.SpMatMulOp(worm, weight_fn=se.Frozen(of_gaba, worm.weight))
        >>> int(of_gaba.sum()), op.param(init=worm).value["weight"].shape
        (76, (2194,))
    """

    where: Array
    weight: Array
    weight_fn: Callable[[Array], Array] | None

    def __init__(
        self,
        where: ArrayLike | Sequence[int],
        weight: ArrayLike | Sequence[float],
        weight_fn: Callable[[Array], Array] | None = None,
    ):
        self.weight, self.weight_fn, given = jnp.asarray(weight), weight_fn, np.asarray(where)
        shape = self.weight.shape
        if given.dtype.kind in "iu" and given.ndim == 1 and np.all((given >= 0) & (given < self.weight.size)):
            given = np.isin(np.arange(self.weight.size), given)
        if given.dtype != bool or given.shape != shape:
            raise ValueError(
                f"where: expected booleans, {shape}, or indices below {shape[:1]}, got {given.dtype}"
                f"{list(given.shape)}. One for each entry of weight."
            )
        self.where = jnp.asarray(given)

    def __call__(self, w: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.where(self.where, self.weight.astype(w.dtype), w if self.weight_fn is None else self.weight_fn(w))

    @property
    def range(self) -> tuple[ArrayLike, ArrayLike]:
        """Lowest and highest weight of those that are trained."""
        return getattr(self.weight_fn, "range", (-jnp.inf, jnp.inf))

    def inverse(self, v: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """A value whose weight is `v` where it is trained.

        Raises:
            ValueError: `weight_fn` has no `inverse`.
        """
        if self.weight_fn is None:
            return v
        inverse = getattr(self.weight_fn, "inverse", None)
        if inverse is None:
            raise ValueError(f"weight_fn: expected a function with a method `inverse`, got {self.weight_fn!r}.")
        return inverse(v)
