"""Backpropagation through time, the exact and memory-hungry reference."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._analysis import closure
from .._filter import check_names, leaf_names, refuse_zero, struct, trained_filter
from .._program import Labels, is_inexact, propagate, vjp_jaxpr
from .base import Carry, Learner, Window


class BPTT(Learner):
    """Reverse-mode differentiation through all steps of a window; exact, with memory that grows with the window.

    `online_grad(..., chunk=K)` differentiates through `K` steps and cuts the carry between windows; `chunk=None`
    through all of them. A loss over a `jax.lax.scan` of `step` differentiates through the whole scan.

    Args:
        train, allow_zero: see `D_RTRL`.

    Example:
        >>> import sparse_etrace as se
        >>> learner = se.BPTT()

    Reference:
        Werbos 1990, Proceedings of the IEEE 78:1550.
    """

    train: Any = None
    allow_zero: tuple[str, ...] = ()

    def init(self, model: Callable[..., Any], state: PyTree[Array], x: PyTree[Any]) -> Carry:
        """Check that every trained leaf reaches the output; see `D_RTRL.init`."""
        arrays, static = eqx.partition(model, eqx.is_array)
        names, old = leaf_names(arrays), struct(state)

        def floating(tree: PyTree[Any]) -> list[Any]:
            return [leaf for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]

        def step(sources: tuple, rest: tuple) -> Any:
            model, state = (eqx.combine(a, b) for a, b in zip(sources, rest[:2], strict=True))
            new, out = eqx.combine(model, static)(state, rest[2])
            return floating(new), floating(out)

        sources, others = eqx.partition((struct(arrays), old), is_inexact)
        jaxpr, (new, out) = vjp_jaxpr(step, sources, (*others, struct(x)))
        count = len(jax.tree.leaves(sources))
        sinks = [Labels([k]) for k in range(len(new))] + [Labels(["out"])] * len(out)
        rest = len(jaxpr.jaxpr.invars) - count - len(sinks)
        found = propagate(jaxpr.jaxpr, [Labels()] * count + sinks + [Labels()] * rest)
        by_state = found[count - len(new) :]
        back = {k: {j for j, sink in enumerate(by_state) if k in sink} for k in range(len(new))}
        read = closure({k for k, sink in enumerate(by_state) if "out" in sink}, back)
        trained = set(leaf_names(eqx.filter(model, trained_filter(model, self.train))))
        inexact = [(name, leaf) for name, leaf in zip(names, jax.tree.leaves(arrays), strict=True) if is_inexact(leaf)]
        check_names(self.allow_zero, names)
        for (name, leaf), sink in zip(inexact, found[: count - len(new)], strict=True):
            if name in trained and leaf.size and "out" not in sink and not sink & read:
                refuse_zero(name, self.allow_zero, used=bool(sink))
        return Carry(jax.tree.map(jnp.asarray, state), None)

    @eqx.filter_jit
    def step(self, model: Callable[..., Any], carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model, differentiable also with respect to `carry`."""
        trained, fixed = eqx.partition(model, trained_filter(model, self.train))
        state, out = eqx.combine(trained, jax.lax.stop_gradient(eqx.filter(fixed, eqx.is_array)), fixed)(carry.state, x)
        return Carry(state, None), out

    def window(
        self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Callable[..., Any]
    ) -> Window:
        trained, fixed = eqx.partition(model, trained_filter(model, self.train))

        @eqx.filter_grad(has_aux=True)
        def total(trained: PyTree[Array]) -> tuple[Array, Any]:
            def one(state: PyTree[Array], now: tuple[Any, Any]) -> Any:
                x, y = now
                state, out = eqx.combine(trained, fixed)(state, x)
                return state, loss_fn(out, y)

            state, (losses, aux) = jax.lax.scan(one, carry.state, (xs, ys))
            return jnp.sum(losses), (losses, aux, state)

        grads, (losses, aux, state) = total(trained)
        return Window(losses, aux, eqx.filter(grads, eqx.is_array), Carry(state, None))
