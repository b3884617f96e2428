"""Leaves of a state and their means beside the output, and losses on them."""

from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from .._numbers import share
from .._types import Model
from .named import values_of

NAMES = "values, means"


class Mean(NamedTuple):
    """The mean of a leaf, with the new value and without it.

    Attributes:
        now, before: shaped like the leaf.
    """

    now: Array
    before: Array


class WatchedState(NamedTuple):
    """The state of the model, means of its leaves, and over how many steps."""

    state: PyTree[Array]
    means: dict[str, Array]
    steps: dict[str, Int[Array, "*leaf"]]


class Watched(eqx.Module):
    """A model with leaves of its state beside its output; see `watched`."""

    model: Model
    values: tuple[str, ...] = eqx.field(static=True)
    means: tuple[str, ...] = eqx.field(static=True)
    decay: float | None = eqx.field(static=True)

    def init_state(self, *batch: SupportsIndex) -> WatchedState:
        """The initial state of a cell that has one, and means of zero; `batch` as of the cell."""
        return self.start(self.model.init_state(*batch))  # type: ignore[attr-defined]

    def start(self, state: PyTree[Array]) -> WatchedState:
        """A state of the model, and means of zero."""
        state = jax.tree.map(jnp.asarray, state)
        means = {name: jnp.zeros_like(leaf) for name, leaf in values_of(state, self.means, NAMES).items()}
        steps = {} if self.decay is not None else {k: jnp.zeros(v.shape, jnp.int32) for k, v in means.items()}
        return WatchedState(state, means, steps)

    def __call__(self, state: WatchedState, x: PyTree[Array]) -> tuple[WatchedState, tuple[PyTree, dict, dict]]:
        new, out = self.model(state.state, x)
        steps, means = {name: count + 1 for name, count in state.steps.items()}, {}
        leaves = values_of(new, self.means, NAMES, out)
        for name, before in state.means.items():
            part = 1 / steps[name].astype(before.dtype) if self.decay is None else 1 - self.decay
            means[name] = Mean(before + part * (leaves[name] - before), before)
        now = {name: mean.now for name, mean in means.items()}
        return WatchedState(new, now, steps), (out, values_of(new, self.values, NAMES, out), means)


def watched(
    model: Model, values: str | Sequence[str] = (), means: str | Sequence[str] = (), decay: float | None = None
) -> Watched:
    """A model that also gives leaves of its new state and their means, for losses on them by any rule.

    `mean_t = mean_{t-1} + (leaf_t - mean_{t-1}) / t`, the mean over the steps since the start; with `decay`,
    `mean_t = decay mean_{t-1} + (1 - decay) leaf_t`. A mean is a hidden variable like others: a rule that keeps traces
    keeps one of it.

    Args:
        model: a cell, or any `state, out = model(state, x)`.
        values, means: names of leaves of its state, in full or by their last part; a ring of what was sent stands for
            what is sent, the output of a cell.
        decay: from 0 to 1, for streams without an end; None: the mean over all steps.

    Returns:
        A model whose output is `(out, values, means)`: dictionaries by name, of leaves, and of pairs `(now, before)`.
        Its `init_state` or `start` makes the state.

    Raises:
        TypeError, ValueError: `decay` is out of range, or, at the start, a name is not that of one leaf, or that of
            a ring of a network, whose output is another.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.spikes.watched(se.cells.LIF.of(3, inputs=2, key=jax.random.key(0)), values="v", means="z")
        >>> def loss(out, y):
        ...     out, values, means = out
        ...     calm = se.spikes.rate_loss(means["z"], target=0.02) + se.spikes.bound_loss(values["v"], high=1.0)
        ...     return jnp.mean((out - y) ** 2) + 0.1 * calm
        >>> xs, learner = jnp.ones((50, 2)), se.D_RTRL()
        >>> carry = learner.init(cell, cell.init_state(), xs[0])
        >>> losses, grads, carry = se.online_grad(learner, loss, cell, carry, xs, jnp.zeros((50, 3)))
    """
    shown, averaged = ((part,) if isinstance(part, str) else tuple(part) for part in (values, means))
    return Watched(model, shown, averaged, None if decay is None else share("decay", decay))


def rate_loss(mean: Mean, target: ArrayLike, strength: ArrayLike = 1.0) -> Float[Array, ""]:
    """How far rates are from a target, as a loss of each step.

    `L_t = R(mean_t) - R(mean_{t-1})` with `R(r) = sum_i strength_i (r_i - target_i)^2 / 2`, over units and batch. The
    sum of a sequence is `R(mean_T) - R(0)`: the gradient is that of the rates of the whole sequence, by steps.

    Args:
        mean: of a leaf, from `watched`.
        target: in the leaf's units per step, broadcast against it: 0.01 for 10 Hz in steps of 1 ms.
        strength: likewise; 0 for units that are left alone.

    Returns:
        A scalar.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.spikes.rate_loss((jnp.array([0.5, 0.0]), jnp.array([0.0, 0.0])), target=0.25, strength=8.0).tolist()
        0.0

    Reference:
        Bellec et al. 2020, Nature Communications 11:3625.
    """
    now, before = mean
    return jnp.sum(jnp.asarray(strength, now.dtype) / 2 * ((now - target) ** 2 - (before - target) ** 2))


def bound_loss(
    values: Array, low: ArrayLike = -jnp.inf, high: ArrayLike = jnp.inf, strength: ArrayLike = 1.0
) -> Float[Array, ""]:
    """How far values, potentials say, are out of bounds.

    `L_t = sum_i strength_i (max(v_i - high_i, 0)^2 + max(low_i - v_i, 0)^2) / 2`, over units and batch.

    Args:
        values: of a leaf, from `watched`.
        low, high: bounds in its units, broadcast against it.
        strength: likewise.

    Returns:
        A scalar.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> se.spikes.bound_loss(jnp.array([-3.0, 0.5, 2.0]), low=-1.0, high=1.0).tolist()
        2.5

    Reference:
        Bellec et al. 2018, Advances in Neural Information Processing Systems 31 (arXiv 1803.09574).
    """
    over = jnp.maximum(values - jnp.asarray(high, values.dtype), 0)
    under = jnp.maximum(jnp.asarray(low, values.dtype) - values, 0)
    return jnp.sum(jnp.asarray(strength, values.dtype) / 2 * (over**2 + under**2))
