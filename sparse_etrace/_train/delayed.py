"""Gradients that wait until their labels have come."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._numbers import whole


class Waiting(NamedTuple):
    """State of an optimizer whose gradients wait: its own, those that wait in a ring, and how many came."""

    inner: optax.OptState
    grads: PyTree[Array]
    came: Int[Array, ""]


def delays_of(label_delay: int | Sequence[int], name: str = "label_delay") -> list[int]:
    """After how many steps each label of a step is known."""
    several = list(label_delay) if isinstance(label_delay, tuple | list) else [label_delay]
    delays = [whole(name, delay) for delay in several]
    if not delays or min(delays) < 0:
        raise ValueError(f"{name}: expected numbers of steps, at least 0, got {label_delay!r}.")
    return delays


def updates_until(delay: int, size: int) -> int:
    """How many updates of `size` steps a gradient waits, so that a prediction knows no label that is still to come.

    The label of step t is there at the prediction of step t + delay.
    """
    return -(-max(delay - 1, 0) // size)


def delayed(optimizer: optax.GradientTransformation, count: int) -> optax.GradientTransformation:
    """An optimizer that is told each gradient `count` updates later, and does nothing before the first."""
    if not count:
        return optimizer

    def init(params: PyTree) -> Waiting:
        grads = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), params)
        return Waiting(optimizer.init(params), grads, jnp.zeros((), jnp.int32))

    def update(grads: PyTree, state: Waiting, params: PyTree = None) -> tuple[PyTree, Waiting]:
        slot, has_come = state.came % count, state.came >= count
        due = jax.tree.map(lambda ring: ring[slot], state.grads)
        ring = jax.tree.map(lambda ring, now: ring.at[slot].set(now.astype(ring.dtype)), state.grads, grads)
        try:
            changes, inner = optimizer.update(due, state.inner, params)
        except TypeError as error:
            if "required keyword-only argument" not in str(error):
                raise
            raise TypeError(
                "optimizer: expected one of gradients alone, as they wait for labels, got one that asks for the loss "
                "as well, which is no longer theirs. Take another, as optax.adam."
            ) from error
        changes = jax.tree.map(lambda change: jnp.where(has_come, change, 0).astype(change.dtype), changes)
        inner = jax.tree.map(lambda new, old: jnp.where(has_come, new, old), inner, state.inner)
        return changes, Waiting(inner, ring, state.came + 1)

    return optax.GradientTransformation(init, update)
