"""A learning signal put onto one hidden leaf, and traces of what follows a leaf: its filter, and its rate."""

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._arrays import blank
from .._model.grouping import group
from .._model.groups import Group
from .._model.program import flatten, is_inexact
from .._model.reading import Reading
from .._model.steady import stacked
from .._model.step import TAP, Tap, Terms
from .._model.trained import leaf_number
from .._model.types import Labels
from .._sums import in_full, wide, widened
from .._types import Model

OWN, LOSS, RANDOM = "symmetric", "loss", "random"


class Signal(eqx.Module):
    """What stands in for the learning signal of one hidden leaf, what is kept after it, and what ops hold constant.

    Attributes:
        leaf: name of the state leaf; None: every learning signal stays as it is.
        source: `"symmetric"`, the derivative of the loss by the leaf; `"loss"`, the loss itself; `"random"`, an array,
            or a function from the model to one: the matrix B of `B dL/dout`.
        key: for a random matrix.
        kappa: decay of the filter on the trace; None for no filter.
        rate_leaf, rate_strength, rate_target: the leaf whose rate is regularised (None: `leaf`), and how.
        is_late_held: whether ops read what the step before has left of other layers as a constant.
    """

    leaf: str | None = None
    source: str | Array | Callable[[PyTree], Array] = OWN
    key: Array | None = None
    kappa: float | None = None
    rate_leaf: str | None = None
    rate_strength: float = 0.0
    rate_target: float = 0.0
    is_late_held: bool = False

    def __check_init__(self) -> None:
        word = self.source if isinstance(self.source, str) else None
        is_matrix = callable(self.source) or hasattr(self.source, "shape")
        if not is_matrix and word not in (OWN, LOSS, RANDOM):
            raise ValueError(
                "feedback: expected 'symmetric', 'random', an array of shape (*out, *hidden), or a function from the "
                f"model to one, got {self.source!r}."
            )
        if (word == RANDOM) != (self.key is not None):
            raise ValueError(
                f"key: expected one for feedback='random' and none else, got {self.key!r}. Make it with jax.random.key."
            )
        if self.kappa is not None and not 0 <= self.kappa < 1:
            raise ValueError(f"kappa: expected 0 <= kappa < 1, got {self.kappa}. It is the share of the old value.")
        for name in ("rate_strength", "rate_target"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)}.")

    @property
    def is_other(self) -> bool:
        """Whether the gradient is not that of D-RTRL."""
        is_own = isinstance(self.source, str) and self.source == OWN
        return self.leaf is not None and (not is_own or self.kappa is not None or bool(self.rate_strength))

    @property
    def has_matrix(self) -> bool:
        return not isinstance(self.source, str) or self.source == RANDOM


class Follower(NamedTuple):
    """A variable that follows a state leaf, `b <- decay b + gain leaf`."""

    leaf: int
    decay: float
    gain: float
    is_rate: bool


class Memory(eqx.Module):
    """What goes from step to step beside the traces, each shaped like its leaf or None.

    Attributes:
        total, steps: sum of the leaf whose rate is regularised, and of how many steps.
        filtered: the leaf as its filter leaves it, where feedback is learned.
    """

    total: Array | None
    steps: Array | None
    filtered: Array | None


def find_leaf(reading: Reading, name: str | None, argument: str) -> int:
    """Number of a floating state leaf by its name, or by the last part of its name where that is unique."""
    floating = [i for i, atom in enumerate(reading.state) if is_inexact(reading.program.avals[atom])]
    return leaf_number(reading.state_names, name, argument, floating)


class Teacher:
    """The executable side of a `Signal` on a model that was read, and the groups by which it goes."""

    def __init__(self, feedback: Signal, reading: Reading, every: bool = False, through_ops: bool = False):
        self.feedback, self.reading = feedback, reading
        self.followers: list[Follower] = []
        self.tap: Tap | None = None
        self.gain = 1.0
        if feedback.leaf is not None:
            self._take(feedback)
        self.grouping = group(reading, feedback.is_late_held, [b.leaf for b in self.followers], every, through_ops)

    def _take(self, feedback: Signal) -> None:
        self.leaf = find_leaf(self.reading, feedback.leaf, "leaf")
        self._check()
        own, kappa = not feedback.has_matrix and feedback.source == OWN, feedback.kappa
        if kappa is not None:
            self.gain = 1.0 if own else 1 - kappa
            self.followers.append(Follower(self.leaf, kappa, self.gain, False))
        if feedback.rate_strength:
            self.rate_leaf = find_leaf(self.reading, feedback.rate_leaf or feedback.leaf, "rate_leaf")
            self.followers.append(Follower(self.rate_leaf, 1.0, 1.0, True))
        if not own or kappa is not None:
            self.tap = Tap(self.new, not own)

    def _check(self) -> None:
        a = self.reading
        named = zip(a.state_names, a.new, strict=True)
        taught = [name for name, atom in named if isinstance(atom, int) and ("out",) in a.within_step(("t", atom))]
        new = a.new[self.leaf]
        if a.state_names[self.leaf] not in taught or not isinstance(new, int):
            raise ValueError(
                f"leaf: `out` does not depend on the new value of {self.feedback.leaf!r}, so there is nothing to put a "
                f"learning signal on. It depends on {', '.join(map(repr, taught)) or 'none of the state'}; let the "
                "readout use the very value that becomes the new state."
            )
        self.new = new
        if self.feedback.has_matrix and len(a.out) != 1:
            raise ValueError(
                f"model: feedback onto {self.feedback.leaf!r} takes one array as `out`, got {len(a.out)}. "
                "Concatenate them, or use feedback='symmetric'."
            )

    # --- the feedback matrix ---------------------------------------------------------------------------------------

    def matrix(self, model: Model) -> Array | None:
        """B, `(*out, *hidden)` without batch axes; None for a signal without one."""
        given = self.feedback
        if not given.has_matrix:
            return None
        a = self.reading
        out, leaf = a.program.shapes(atom for atom in (a.out[0], self.new) if isinstance(atom, int))
        fronts = [k for k in range(min(out.ndim, leaf.ndim) + 1) if out.shape[:k] == leaf.shape[:k]]
        shapes = {k: out.shape[k:] + leaf.shape[k:] for k in fronts}
        if given.key is not None:
            batch = self._num_batch()
            if batch not in shapes:
                raise ValueError(
                    f"feedback: cannot tell batch axes from units, with `out` of shape {out.shape} and "
                    f"{given.leaf!r} of shape {leaf.shape}. Give an array."
                )
            units = math.prod(leaf.shape[batch:])
            return jax.random.normal(given.key, shapes[batch], leaf.dtype) / math.sqrt(units)
        b = given.source(model) if callable(given.source) else jnp.asarray(given.source)
        if jnp.shape(b) not in shapes.values():
            raise ValueError(
                f"feedback: expected shape {' or '.join(map(str, shapes.values()))}, (*out, *hidden) without batch "
                f"axes, got {jnp.shape(b)}. It leads from `out` to {given.leaf!r}."
            )
        return jnp.asarray(b, leaf.dtype)

    def _num_batch(self) -> int | None:
        """Batch axes, as the ops count them whose outputs drive the leaf."""
        a, found = self.reading, set()
        for call in a.calls:
            if call.is_op and ("n", self.leaf) in a.direct.get(("y", call.number), ()):
                op, _, x = call.template(a.program)
                found |= set() if x is None else {x.ndim - op.input_ndim}
        return found.pop() if len(found) == 1 else None

    def learned(self, model: Model) -> list[int]:
        """Trained leaves that make B and are otherwise unused."""
        a = self.reading
        if not self.feedback.has_matrix or not callable(self.feedback.source):
            return []
        leaves, build = leaves_of(model)
        program = flatten(jax.make_jaxpr(lambda values: self.matrix(build(values)))(leaves))
        found = program.influence({number: Labels([i]) for i, number in enumerate(program.inputs)})
        used = Labels().union(*(found[o] for o in program.outputs if isinstance(o, int)))
        return [i for i in a.trained if i in used and not a.within_step(("p", i))]

    def by_matrix(self, cts: list[Array], matrix: Array, memory: Memory | None, new: list[Array]) -> Array:
        """Gradient of B: that of a readout of the leaf, transposed."""
        h = new[self.leaf] if memory is None or memory.filtered is None else memory.filtered
        batch = list(range((cts[0].ndim + h.ndim - matrix.ndim) // 2))
        with in_full():
            return jnp.tensordot(cts[0], h, (batch, batch)).astype(matrix.dtype)

    def by_learned(self, model: Model, learned: list[int], by_matrix: Array) -> dict[int, Array]:
        """Gradients of the leaves that make B, from that of B."""
        leaves, build = leaves_of(model)

        def of(values: list[Array]) -> Array | None:
            full = list(leaves)
            for i, value in zip(learned, values, strict=True):
                full[i] = value
            return self.matrix(build(full))

        return dict(zip(learned, jax.vjp(of, [leaves[i] for i in learned])[1](by_matrix)[0], strict=True))

    # --- steps -----------------------------------------------------------------------------------------------------

    def no_memory(self) -> Memory:
        """Memory of zero."""
        a, total, steps, filtered = self.reading, None, None, None
        if any(b.is_rate for b in self.followers):
            (rate,) = a.program.shapes([a.state[self.rate_leaf]])
            total, steps = blank(rate.shape, wide(rate.dtype)), blank(rate.shape, jnp.int32)
        if self.feedback.kappa is not None and callable(self.feedback.source):
            (leaf,) = a.program.shapes([a.state[self.leaf]])
            filtered = blank(leaf.shape, wide(leaf.dtype))
        return Memory(total, steps, filtered)

    def remember(self, memory: Memory | None, new: list[Array]) -> Memory | None:
        """Memory with one more step, whose new state is given."""
        if not self.followers or memory is None:
            return memory
        total, steps, filtered = memory.total, memory.steps, memory.filtered
        if total is not None and steps is not None:
            total, steps = total + new[self.rate_leaf], steps + 1
        if filtered is not None:
            filtered = self.followers[0].decay * filtered + self.gain * new[self.leaf]
        return Memory(total, steps, filtered)

    def pull(
        self, pull: Callable[..., tuple], cts: list[Array], matrix: Array | None, new: list[Array], loss: Array | None
    ) -> tuple[tuple, Array | None]:
        """What `Step.run` says of its `pull`, with the learning signal of the leaf in place; and that signal."""
        if self.tap is None:
            return pull(cts), None
        leaf = new[self.leaf]
        if not self.tap.is_cut:
            m, n, plain, by_x = pull([*cts, jnp.zeros_like(leaf)])
            signal = n.pop(TAP)
        else:
            if matrix is not None:
                size = matrix.ndim - (matrix.ndim + leaf.ndim - cts[0].ndim) // 2
                with in_full():
                    signal = jnp.tensordot(cts[0], matrix, size)
            elif loss is not None:
                signal = jnp.full_like(leaf, loss)
            else:
                raise NotImplementedError(
                    "learner: the gradient of `step` does not know the value of the loss, which is the learning signal "
                    "of this rule. Use se.online_grad; without a gradient `step` may be used."
                )
            signal = signal.astype(leaf.dtype)
            m, n, plain, by_x = pull([*cts, self.gain * signal])
        return (m, n, plain, by_x), signal

    # --- traces of what follows the leaf ----------------------------------------------------------------------------

    @cached_property
    def counts(self) -> list[int]:
        """How many variables of each group have a trace."""
        return [len(kept) + len(own) for kept, own in map(self._layout, self.grouping.groups)]

    def _layout(self, group: Group) -> tuple[list[int], list[Follower]]:
        """Positions of a group's own variables that have a trace, and what follows them.

        A leaf that is in its group for what follows it only, and is not read again, needs no trace of its own.
        """
        a = self.reading

        def acts(i: int) -> bool:
            return any(("n", j) in a.direct.get(("h", i), ()) for j in group.variables)

        kept = [k for k, i in enumerate(group.variables) if i in self.grouping.live or acts(i)]
        return kept, [b for b in self.followers if b.leaf in group.variables]

    def extend(self, terms: Terms, signal: Array | None, before: Memory, after: Memory) -> Terms:
        """Terms of a window to the traces of what follows the leaf as well.

        `b_t = decay b_{t-1} + gain leaf_t` has the rows `gain D[leaf]` and `gain F[leaf]`, and `decay` for itself. The
        loss acts on the old filter by `decay` times the learning signal of the leaf. The rate's part of the gradient is
        `c . b` at the end of the window less that at its start.
        """
        if not self.followers:
            return terms
        d, f = stacked((list(terms.hidden_jacobian), terms.output_jacobian))
        m, d, f, signal = widened((list(terms.m), d, f, signal))
        last: list[Array | None] = [None] * len(m)
        for g, members in enumerate(self.grouping.groups):
            positions, own = self._layout(members)
            if not own:
                continue
            kept, rows = np.array(positions, int), [members.variables.index(b.leaf) for b in own]
            gains = np.array([b.gain for b in own])

            def with_rows(part: Array, kept: np.ndarray = kept, rows: list = rows, gains: np.ndarray = gains) -> Array:
                scale = jnp.asarray(gains, part.dtype).reshape(1, -1, *[1] * (part.ndim - 2))
                return jnp.concatenate([part[:, kept], scale * part[:, np.array(rows)]], axis=1)

            left = with_rows(d[g])[:, :, kept]
            decays = np.diag([0.0] * len(kept) + [b.decay for b in own])[:, len(kept) :]
            spread = jnp.asarray(decays, left.dtype).reshape(*decays.shape, *[1] * len(members.shape))
            right = jnp.broadcast_to(spread, (*left.shape[:2], len(own), *members.shape))
            d[g] = jnp.concatenate([left, right], axis=2)
            f.update({(g, r.call): with_rows(f[(g, r.call)]) for r in members.routes})
            zero = jnp.zeros(m[g][:, 0].shape, m[g].dtype)
            end, of_own = [zero[0]] * len(kept), []
            for b in own:
                if b.is_rate:
                    of_own.append(zero.at[0].set(-self._slope(before)))
                    end.append(self._slope(after).astype(zero.dtype))
                else:
                    of_own.append(zero if signal is None else b.decay * signal)
                    end.append(zero[0])
            m[g] = jnp.concatenate([m[g][:, kept], jnp.stack(of_own, axis=1)], axis=1)
            last[g] = jnp.stack(end)
        return terms._replace(m=m, hidden_jacobian=d, output_jacobian=f, last=last)

    def _slope(self, memory: Memory) -> Array:
        """What the sum of the trace of the rate is multiplied by: `strength (mean rate - target) / steps`."""
        if memory.total is None or memory.steps is None:
            return jnp.zeros(())
        steps = jnp.maximum(memory.steps, 1).astype(memory.total.dtype)
        slope = self.feedback.rate_strength * (memory.total / steps - self.feedback.rate_target) / steps
        return jnp.where(memory.steps > 0, slope, 0)


def leaves_of(model: Model) -> tuple[list[Array], Callable[[list[Array]], Model]]:
    """Arrays of a model, and the model from arrays."""
    arrays, static = eqx.partition(model, eqx.is_array)
    leaves, layout = jax.tree.flatten(arrays)
    return leaves, lambda values: eqx.combine(jax.tree.unflatten(layout, values), static)
