"""Delays of synapses: what was sent lies in one ring, which moves by a pointer and not by a copy.

From the pointer on, and after the last slot from the first one on, lies what was sent, the oldest first. In a ring of
D = 3 slots were sent a, b, c, d in turns; d is read with delay 1, b with delay 3:

    slot       0  1  2
    values     d  b  c
    pointer       ^        next is written to slot 1

A synapse reads unit `pre` of the slot `D - delay` after the pointer: a sender among `D * num_pre`.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Inexact, Int, PyTree

from .._graph.connectivity import MAX_INDEX, Connectivity, from_slots, host_array
from .._graph.graph import Graph
from .._kernels.ring import push, slots_of
from .._numbers import positive
from .._varying import freely
from .weights import check_shape

ATTRIBUTE = "delay"

# The mesh on each device of which all units of what is pushed have to be; None: where they come. Programs traced under
# one mesh are none under another.
pushed_on = jax.make_user_context(None)


class Ring(eqx.Module):
    """What was sent in the last steps, for an op with delays: state of a model, made by `op.ring(*batch)`.

    `op(ring)` reads for each synapse what its sender pushed `delay` pushes ago, and `ring.push(z)` is the ring of the
    next step. No trace follows it, as it reaches the future through the op alone.

    Attributes:
        values: `(*batch, depth, num_pre)`, with features `(*batch, features, depth, num_pre)`.
        pointer: where the next is written, int32, without axes unless `vmap` gives it any.
        axis: that of the op.
        reach: how many steps back an op reads that is given it; None for all.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 0], [0, 1], [1.0, 1.0], shape=(1, 2), edge_attrs={"delay": [1, 3]})
        >>> op = se.SpMatMulOp(graph)
        >>> param, ring = op.param(init=graph), op.ring()
        >>> for z in [5.0, 6.0, 7.0]:
        ...     ring = ring.push(jnp.array([z]))
        >>> param(ring).tolist()
        [7.0, 5.0]
    """

    values: Inexact[Array, "*batch slots pre"]
    pointer: Int[Array, "..."]
    axis: int = eqx.field(static=True, default=-1)
    reach: int | None = eqx.field(static=True, default=None)

    @property
    def slots(self) -> int:
        """How many steps back it holds."""
        return self.values.shape[-2]

    @property
    def depth(self) -> int:
        """How many steps back are read."""
        return self.slots if self.reach is None else self.reach

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `recent`."""
        *front, _, units = self.values.shape
        sent = self.depth * units
        return (*front, sent) if self.axis == -1 else (*front[:-1], sent, front[-1])

    @property
    def ndim(self) -> int:
        """Rank of `recent`."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Type of what is sent."""
        return self.values.dtype

    @property
    def first(self) -> Int[Array, "..."]:
        """The slot from which on those are that are read."""
        return (self.pointer + (self.slots - self.depth)) % self.slots

    def last(self, count: int) -> Inexact[Array, "*batch count pre"]:
        """The last that were sent, the oldest first."""

        def one(values: Array, pointer: Array) -> Array:
            return slots_of(values, (pointer + (self.slots - count)) % self.slots, count)

        return _mapped(one, self.pointer)(self.values, self.pointer)

    @property
    def newest(self) -> Inexact[Array, "..."]:
        """What was sent last, `(*batch, num_pre)`, with features after."""
        return _flat(self.last(1), self.axis)

    def before(self, steps: int) -> "Ring":
        """The ring of which the newest was sent so many steps ago, for an op that reads that alone."""
        return Ring(self.values, (self.pointer + (self.slots - steps + 1)) % self.slots, self.axis, 1)

    @property
    def recent(self) -> Inexact[Array, "..."]:
        """The last that were sent as the senders of an op, `(*batch, depth * num_pre)`, with features after."""
        return _flat(self.last(self.depth), self.axis)

    def push(self, sent: Inexact[Array, "..."]) -> "Ring":
        """The ring after one more step.

        Args:
            sent: `(*batch, num_pre)`, or with features `(*batch, num_pre, features)`.

        Raises:
            ValueError: it has another shape.
        """
        sent = jnp.asarray(sent, self.dtype)
        sent = sent if self.axis == -1 or sent.ndim < 2 else jnp.swapaxes(sent, -1, -2)
        *front, _, units = self.values.shape
        hint = "Make the ring with the batch axes (and features) of what is sent: op.ring(*batch)."
        check_shape("sent", sent.shape, (*front, units), f"{hint} Features come before units here.")
        return freely(Ring._pushed, self, sent, like=lambda: Ring(self.values, self.pointer, self.axis))

    def _pushed(self, sent: Array) -> "Ring":
        if (mesh := pushed_on.value) is not None:
            spec = PartitionSpec(*[PartitionSpec.UNCONSTRAINED] * (sent.ndim - 1), None)
            sent = jax.lax.with_sharding_constraint(sent, NamedSharding(mesh, spec))
        values = _mapped(push, self.pointer)(self.values, sent, self.pointer)
        return Ring(values, (self.pointer + 1) % self.slots, self.axis)


class History(eqx.Module):
    """What was sent before and in the steps of a window: step `k` reads `values[k:k + depth]`, the oldest first.

    Attributes:
        values: `(depth + steps - 1, *batch, pre)`, with features `(..., *batch, features, pre)`.
        depth: how many steps back are read.
        axis: that of the op.
    """

    values: Inexact[Array, "time *batch pre"]
    depth: int = eqx.field(static=True)
    axis: int = eqx.field(static=True)

    @property
    def steps(self) -> int:
        """Length of the window."""
        return len(self.values) - self.depth + 1

    @property
    def each(self) -> Inexact[Array, "steps ..."]:
        """`Ring.recent` of each step."""
        at = np.arange(self.steps)[:, None] + np.arange(self.depth)
        return _flat(jnp.moveaxis(self.values[at], 1, -2), self.axis)


def history(ring: Ring, sent: Inexact[Array, "steps ..."], is_late: bool) -> History:
    """What a window reads from this ring on, to which each step pushes, late if that is before it reads.

    `sent` has features before units.
    """
    values = jnp.concatenate([jnp.moveaxis(ring.last(ring.depth), -2, 0), sent])
    return History(values[1:] if is_late else values[:-1], ring.depth, ring.axis)


def longest(*params: Any) -> int:
    """The longest delay that any of these parameters has room for; 0 if none has delays."""
    delays = [getattr(param.op, "delays", None) for param in params if param is not None]
    return max((d.depth for d in delays if d is not None), default=0)


def sends(silence: Array, *params: Any, depth: int = 0) -> Array | Ring:
    """What parameters read before anything was sent: zeros, or a ring for the longest delay, `depth` at least."""
    depth = max(depth, longest(*params))
    if not depth:
        return silence
    *front, units = silence.shape
    return Ring(jnp.zeros((*front, depth, units), silence.dtype), jnp.zeros((), jnp.int32))


def sent(before: Array | Ring, now: Array) -> Array | Ring:
    """What is read in the next step."""
    return before.push(now) if isinstance(before, Ring) else now


def late(x: Array | Ring, steps: int, param: Any) -> Array | Ring:
    """What a parameter reads so many steps late where it has no delays of its own, and the spikes are in a ring."""
    return x if longest(param) or not isinstance(x, Ring) else x.before(steps)


def each(x: Any) -> Any:
    """What an op read in each step of a window, of a history or as it is."""
    return x.each if isinstance(x, History) else x


def shape_of(x: Any) -> Any:
    """The shape of what an op reads in a step: of a ring all its slots once, others as they are."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Ring) else x


def aligned(state: PyTree, like: PyTree) -> PyTree:
    """A state whose rings are turned so that their pointers are those of another state."""

    def one(ring: object, other: object) -> object:
        if not isinstance(ring, Ring) or not isinstance(other, Ring) or ring.values.shape != other.values.shape:
            return ring
        turned = _mapped(lambda values, by: jnp.roll(values, by, axis=-2), other.pointer)
        return Ring(turned(ring.values, other.pointer - ring.pointer), other.pointer, ring.axis)

    return jax.tree.map(one, state, like, is_leaf=lambda leaf: isinstance(leaf, Ring))


class Delays(eqx.Module):
    """Delays of the synapses of an op.

    Attributes:
        wires: from senders in the slots of a ring to the receivers, once for each slot that a synapse reads.
        lag: which slot that is, after the pointer.
        steps: whole steps of each synapse in canonical order; where delays are trained, those below.
        order: which entry of the delays of a parameter is that of each synapse; None: they are in canonical order.
        start: what trained delays start from, in that order.
        depth: the longest delay that there is room for.
    """

    wires: Connectivity
    lag: Int[Array, " reads"]
    steps: Int[Array, " num_synapses"]
    order: Int[Array, " num_synapses"] | None
    start: Inexact[Array, " given"] | None
    depth: int = eqx.field(static=True)

    def weights(self, weight: Array, delay: Array | None) -> Array:
        """Weights of what each synapse reads: a real-valued delay reads two slots."""
        if delay is None:
            return weight
        share = (delay if self.order is None else delay[self.order]) - self.steps
        share = share.astype(weight.dtype)
        return jnp.stack([weight * (1 - share), weight * share], axis=-1).reshape(-1)


def given_delays(delay: object, graph: object) -> Any:
    """What an op is given: its argument, or an attribute of its graph; None without delays."""
    if delay is None and isinstance(graph, Graph):
        return graph.edge_attrs.get(ATTRIBUTE)
    return None if delay is False else delay


def delays_of(
    connectivity: Connectivity, delay: object, count: int, order: Array | None, max_delay: object, is_trained: bool
) -> Delays:
    """Delays for an op.

    Args:
        delay: of each of the `count` weights, or of all.
        order: which of them is that of each synapse.

    Raises:
        TypeError: they are traced.
        ValueError: they have another shape, are below 1 or above `max_delay`, or are not whole where they have to be.
    """
    values = host_array("delay", delay)
    values = np.broadcast_to(values, (count,)) if values.ndim == 0 else values
    check_shape("delay", values.shape, (count,), "One for each synapse, in the order of the weights.")
    if values.dtype.kind not in "iuf":
        raise ValueError(f"delay: expected numbers of steps, got {values.dtype}. Without delays, give delay=False.")
    longest = values[np.isfinite(values)].max(initial=1)
    most = longest if max_delay is None else positive("max_delay", max_delay)
    up_to = "on" if max_delay is None else f"to {most:g}"
    bad = values[~((values >= 1) & (values <= most) & (is_trained | (values == np.floor(values))))]
    if bad.size:
        raise ValueError(
            f"delay: expected {'numbers' if is_trained else 'whole steps'} from 1 {up_to}, got {bad[0]:g}. A delay of "
            "1 reads what was sent in the step before. Divide times by dt, and round them unless they are trained."
        )
    depth = max(math.ceil(most), 1 + is_trained)
    if depth * connectivity.num_pre > MAX_INDEX:
        raise ValueError(
            f"delay: expected at most {MAX_INDEX} senders in all slots of a ring, got {depth} slots of "
            f"{connectivity.num_pre}. Take shorter delays or larger steps."
        )
    each = values if order is None else values[np.asarray(order)]
    steps = np.clip(np.floor(each), 1, depth - is_trained).astype(np.int32)
    lag = (depth - steps)[:, None] - np.arange(1 + is_trained, dtype=np.int32)
    wires, start = from_slots(connectivity, lag, depth), jnp.asarray(values, float) if is_trained else None
    return Delays(wires, jnp.asarray(lag.ravel()), jnp.asarray(steps), order, start, depth)


def _mapped(fn: Callable[..., Array], pointer: Array) -> Callable[..., Array]:
    """A function of arrays and a pointer, over the axes that `vmap` gave this."""
    for _ in range(pointer.ndim):
        fn = jax.vmap(fn)
    return fn


def _flat(slots: Array, axis: int) -> Array:
    """Slots and units as one axis of senders, with features after."""
    sent = slots.reshape(*slots.shape[:-2], slots.shape[-2] * slots.shape[-1])
    return sent if axis == -1 else jnp.swapaxes(sent, -1, -2)
