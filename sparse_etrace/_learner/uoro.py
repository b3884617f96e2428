"""Unbiased online recurrent optimisation: a random rank-one estimate of the influence of parameters on the state."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.batch_axes import axes_of, restarted
from .._model.linear import pushforward
from .._model.origin import origin_of
from .._model.program import is_inexact, is_key
from .._model.types import Filter
from .._rule.black_box import FromOutside, by_step, check_linear, check_reach, joined, split
from .._rule.engine import Carry, Engine, Rule, Task, Window, cut, refuse_traces
from .._types import Loss, Model
from .learner import RuleLearner

TINY = 1e-7


class Estimate(NamedTuple):
    """`state` times `params`, an outer product, is right on average for the derivative of the state by the parameters.

    One for all batch elements together: `state` has the batch axes of the state, `params` none.
    """

    state: PyTree[Array]
    params: PyTree[Array]
    key: Array


class UORO(RuleLearner):
    """Unbiased online recurrent optimisation: right on average for any model, with memory of the state and parameters.

    `dh/dtheta ~ s (x) p`, then `g = (dL/dh_{t-1} . s) p + dL/dtheta`, and for random signs `nu`, new in each step,
    `s <- rho0 (dh_t/dh_{t-1}) s + rho1 nu`, `p <- p / rho0 + (nu . dh_t/dtheta) / rho1`, where
    `rho0^2 = |p| / |(dh_t/dh_{t-1}) s|` and `rho1^2 = |nu . dh_t/dtheta| / |nu|` keep the noise small.

    One estimate serves all batch elements together, so the noise of the gradient grows with their number. The model is
    seen from outside: ops, groups and the ways between units do not matter. `reset` and `fit` go on with the signs.

    Args:
        key: where the signs come from, as of `jax.random.key`; each `init` starts with it.
        train, allow_zero: see `D_RTRL`.

    Raises:
        ValueError: `key` is no single key of `jax.random.key`.

    Example:
        >>> import jax, sparse_etrace as se
        >>> learner = se.UORO(key=jax.random.key(0))

    Reference:
        Tallec and Ollivier 2018, International Conference on Learning Representations (arXiv 1702.05043).
    """

    key: Array  # type: ignore[misc]
    train: Filter = None
    allow_zero: tuple[str, ...] = ()

    def __check_init__(self) -> None:
        if not isinstance(self.key, jax.Array) or not is_key(self.key) or self.key.shape:
            got = f"{self.key.dtype}{list(self.key.shape)}" if hasattr(self.key, "dtype") else repr(self.key)
            raise ValueError(f"key: expected one key, as of jax.random.key(0), got {got}.")

    def rule(self) -> Rule:
        """An estimate of rank one."""
        return Rule(FromOutside(partial(Estimating, self.key), "unbiased", again=_again))


def _again(carry: Carry, where: Array, zero: Callable[..., Array]) -> Estimate:
    """The part of the state, and that of the parameters where all start again; the signs go on."""
    old = carry.traces
    params = jax.tree.map(lambda p: jnp.where(jnp.all(where), jnp.zeros_like(p), p), old.params)
    return Estimate(restarted(carry.state, old.state, zero), params, old.key)


class Estimating(Engine):
    """The estimate, step by step."""

    def __init__(self, key: Array, task: Task):
        self.key, self.task = key, task

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check that every trained leaf reaches the output, and start with an estimate of zero."""
        check_reach(model, state, x, self.task.train, self.task.allow_zero)
        check_linear(model, state, x, self.task.train)
        state = jax.tree.map(jnp.asarray, state)
        estimate = self._start(split(model, self.task.train)[0], state, self.key)
        for what, tree in ("state", estimate.state), ("model", estimate.params):
            if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(tree)):
                raise ValueError(f"{what}: a complex leaf has no random sign. Split it into two real leaves.")
        return Carry(state, estimate, origin=origin_of(model, *axes_of(model, state, x, self.task.train)))

    def _start(self, trained: PyTree[Array], state: PyTree[Array], key: Array) -> Estimate:
        live, params = jax.tree.map(jnp.zeros_like, (eqx.filter(state, is_inexact), trained))
        return Estimate(live, params, key)

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the estimate."""
        given, (trained, fixed) = (model, carry, x), split(model, self.task.train)
        carry, held, values = jax.lax.stop_gradient((carry, x, trained))
        refuse_traces(jax.eval_shape(self._start, trained, carry.state, self.key), carry.traces)
        # Zero, with the derivative of the estimate.
        pairs = jax.tree.map(lambda p, v, c: jnp.sum(p * (v - c)), carry.traces.params, trained, values)
        moved = sum(jax.tree.leaves(pairs), jnp.zeros(()))
        live, rest = eqx.partition(carry.state, is_inexact)
        old = jax.tree.map(lambda h, s: h + s * moved.astype(h.dtype), live, carry.traces.state)
        new, out = joined(trained, fixed)(eqx.combine(old, rest), x)

        def floating(live: PyTree[Array], trained: PyTree[Array]) -> PyTree[Array]:
            new, _ = joined(trained, fixed)(eqx.combine(live, rest), held)
            return eqx.filter(new, is_inexact)

        _, pull = jax.vjp(floating, live, values)
        return cut(Carry(new, _advance(carry.traces, pull)), *given), out

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Step by step."""
        return Window(*by_step(self.step, self.task.train, model, carry, xs, ys, loss_fn))


def _advance(estimate: Estimate, pull: Callable[[PyTree], tuple[PyTree, PyTree]]) -> Estimate:
    """The estimate after a step, whose vector-Jacobian product by state and parameters is `pull`."""
    key, now = jax.random.split(estimate.key)
    leaves, shape = jax.tree.flatten(estimate.state)
    keys = jax.random.split(now, len(leaves))
    signs = jax.tree.unflatten(shape, [jax.random.rademacher(k, s.shape, s.dtype) for k, s in zip(keys, leaves)])
    carried = pushforward(pull, estimate.state)(estimate.state)
    _, fresh = pull(signs)
    first, second = _balance(estimate.params, carried), _balance(fresh, signs)
    state = jax.tree.map(lambda s, sign: first.astype(s.dtype) * s + second.astype(s.dtype) * sign, carried, signs)
    params = jax.tree.map(lambda p, g: p / first.astype(p.dtype) + g / second.astype(p.dtype), estimate.params, fresh)
    return Estimate(state, params, key)


def _balance(over: PyTree[Array], under: PyTree[Array]) -> Array:
    """The factor that gives two vectors one length, taken from the first and put on the second."""
    a, b = (jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))) for tree in (over, under))
    return jnp.sqrt(a / (b + TINY)) + TINY
