"""Which leaves of a state have batch axes, and which are only as long as a batch."""

import itertools
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from .._types import Model
from .call import Call
from .grouping import Grouping, group
from .reading import Reading
from .trained import is_array_like, struct
from .types import Filter

# A model that fits no other batch would be tried with every choice of leaves.
TRIES = 64
Axes = tuple[tuple[int, ...], tuple[int, ...]]


def batch_of(grouping: Grouping) -> tuple[int, ...]:
    """Batch axes, as the ops count them that lead to hidden state; the fewest of those that have any."""
    found = []
    for call in grouping.reading.calls:
        if call.is_op and grouping.stops[call.number]:
            op, _, x = call.template(grouping.program)
            if not op.is_diagonal:
                found.append(x.shape[: x.ndim - op.input_ndim])
    return min(filter(None, found), key=len, default=())


def _has_batch(grouping: Grouping, call: Call, batch: tuple[int, ...]) -> bool:
    """Whether the input of an op has the batch axes in front."""
    op, _, x = call.template(grouping.program)
    return not op.is_diagonal and x.shape[: min(len(batch), x.ndim - op.input_ndim)] == batch


def axes_of(model: Model, state: PyTree, x: PyTree, train: Filter) -> Axes:
    """As `as_long_as_a_batch`, for rules that take models whose ops say nothing of a batch; by length there."""
    try:
        return as_long_as_a_batch(model, state, x, group(Reading(model, state, x, train)))
    except (ValueError, NotImplementedError):  # units are mixed, or weights depend on state
        return (), ()


def as_long_as_a_batch(model: Model, state: PyTree, x: PyTree, grouping: Grouping) -> Axes:
    """Leaves of the state that are as long as the batch and have no batch axes, and those that do not say.

    The step is followed with a larger batch: a leaf without batch axes fits as it is, and does not fit if it grows. A
    model that fits no other batch tells nothing, and leaves are taken by their length; so are hidden variables that an
    op with batch axes drives.
    """
    batch = batch_of(grouping)
    given, layout = jax.tree.flatten(struct((state, x)))
    count = len(jax.tree.leaves(state))
    fits = [k for k, leaf in enumerate(given) if batch and leaf.shape[: len(batch)] == batch]
    arrays, static = eqx.partition(model, is_array_like)

    def works(*kept: int) -> bool:
        more = tuple(size + 1 for size in batch)
        sizes = list(given)
        for k in set(fits).difference(kept):
            sizes[k] = jax.ShapeDtypeStruct((*more, *given[k].shape[len(batch) :]), given[k].dtype)
        old, larger = jax.tree.unflatten(layout, sizes)
        try:
            new, _ = jax.eval_shape(lambda a, h, x: eqx.combine(a, static)(h, x), struct(arrays), old, larger)
        except Exception:  # whatever the model raises where shapes do not fit
            return False
        return [leaf.shape for leaf in jax.tree.leaves(new)] == [leaf.shape for leaf in sizes[:count]]

    calls, driven = grouping.reading.calls, set[int]()
    for g in grouping.groups:
        if any(_has_batch(grouping, calls[r.call], batch) for r in g.routes):
            driven.update(g.variables)
    asked = [k for k in fits if k < count and k not in driven]
    chosen = (alone for count in range(len(asked) + 1) for alone in itertools.combinations(asked, count))
    alone = next((kept for kept in itertools.islice(chosen, TRIES) if works(*kept)), None)
    if alone is None:
        return (), ()
    return alone, tuple(k for k in asked if k not in alone and works(*alone, k))


def restarted(state: PyTree, tree: PyTree, zero: Callable[..., Array]) -> PyTree:
    """`zero(leaf, number)` of what has the leaves of a state, by their numbers, or None."""
    leaves, layout = jax.tree.flatten(state)
    numbers = jax.tree.unflatten(layout, range(len(leaves)))
    return jax.tree.map(
        lambda now, k: None if now is None else zero(now, k), tree, numbers, is_leaf=lambda leaf: leaf is None
    )
