"""Run one step of a model that was read, and take its derivatives where the learning rules want them.

A step of three ops, with two layers `a` and `b`, each a cluster of its own:

    a' = 0.9 a + op0(x) + op1(a)        holds constant:  op0  a b      as its output reaches both a' and b'
    u  = a' + b                                          op1  a b
    b' = 0.8 b + op2(u)                                  op2    b
    out = u

What a reader holds constant makes variants of a value, `(number, {clusters})`:

    a  {}     for a' and, without derivative, for op1: all that it says is old state of `a`
    a' {}     for all: it holds no `b` that op2 could ask to be constant
    u  {}     for out
    u  {b}    for op2, computed again with a constant b: u is `a` and `b` and more, so that no stop as a whole will do
    b' {}     for the new state

So `a' + b` is executed twice and all else once, and op2 lets the derivative of b' pass to `a`, but not to `b`.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._sums import widened
from .call import Call, halfway, own_arrays
from .grouping import Grouping
from .groups import Group
from .program import Node, constant, is_inexact
from .rings import kept, rings_of, x_of
from .steady import Steps
from .through import Spread, spread
from .types import Atom, Gradients, Input, Known, Labels, Weights

TAP = -1


class Tap(NamedTuple):
    """A value of the step that is watched: `number` in the program.

    It becomes one more output; and what reads it gets it without derivative where `is_cut`, and else with a derivative
    of its own, which stands as `n[TAP]` among those by the outputs of op calls.
    """

    number: int
    is_cut: bool


class Terms(NamedTuple):
    """What one step says to the traces; over several steps, each with a leading time axis, D and F also `Steady`.

    Attributes:
        x: input of each learning op call, None for one without.
        n: derivative of the loss by the output of each learning op call, through everything later in the step.
        m: for each group, derivative of the loss by its old variables, `(variables, *hidden)`.
        hidden_jacobian: D for each group, `(variables, variables, *hidden)`.
        output_jacobian: F for each (group, op call that acts on it), `(variables, *y)`.
        last: for each group, derivative by its variables after the last step, without time axis; None for zero.
        first: the same before the first step, through everything, as `n` is then.
        spread, halfway: what stands for the input where a trace was carried through ops; what ops keep beside it.
    """

    x: dict[int, Input]
    n: dict[int, Array]
    m: list[Array]
    hidden_jacobian: list[Steps]
    output_jacobian: dict[tuple[int, int], Steps]
    last: list[Array | None] | None = None
    first: list[Array] | None = None
    spread: Spread = {}
    halfway: dict[int, Array] = {}


@runtime_checkable
class Along(Protocol):
    """Which derivatives of a step are wanted."""

    @property
    def leaves(self) -> list[int]:
        """State leaves by whose old value the loss is differentiated."""

    @property
    def watched(self) -> Sequence[Call]:
        """Op calls by whose outputs it is."""

    def together(self, by_leaf: dict[int, Array]) -> list[Array]:
        """The derivatives by state leaves, as they are wanted."""

    def jacobians(self, known: Known) -> tuple:
        """Derivatives of the op-free map, at known inputs and op outputs."""


class ByGroup:
    """D and F of all hidden groups, and the derivatives of the loss by the variables of each."""

    def __init__(self, grouping: Grouping):
        self.grouping, self.reading, self.program = grouping, grouping.reading, grouping.program
        self.watched = self.reading.learning

    @cached_property
    def leaves(self) -> list[int]:
        """Live state leaves."""
        return sorted(i for g in self.grouping.groups for i in g.variables)

    def together(self, by_leaf: dict[int, Array]) -> list[Array]:
        """For each group, what there is by its leaves, `(variables, *hidden)`."""
        return [jnp.stack([by_leaf[i] for i in g.variables]) for g in self.grouping.groups]

    def jacobians(self, known: Known) -> tuple:
        """D and F of all groups, what passes through ops of fixed weights, and what ops keep halfway."""
        d, f = [], {}
        for number, group in enumerate(self.grouping.groups):
            hidden, output = self._jacobian(group, known)
            f.update({(number, c): value for c, value in output.items()})
            d.append(hidden)
        return d, f, spread(self.reading, self.grouping.ways, known), halfway(self.watched, self.program, known)

    def _jacobian(self, group: Group, known: Known) -> tuple[Array, dict[int, Array]]:
        """D and F of one group: one VJP with ones for each of its variables."""
        a = self.reading
        calls = [a.calls[k] for k in dict.fromkeys(r.source for r in group.routes)]
        dense = [c for c in calls if not c.template(self.program)[0].is_diagonal]
        sources = [a.state[i] for i in group.variables] + [c.node.outputs[0] for c in dense]
        new = [a.new[i] for i in group.variables]
        found, count = a.between.derivatives(known, sources, new), len(new)
        hidden = jnp.stack([jnp.stack(row[:count]) for row in found])
        columns = [tuple(row[count + k] for row in found) for k in range(len(dense))]
        # What is added up before it acts has the same derivatives, which are then one array.
        stacked = {key: jnp.stack(column) for key, column in {tuple(map(id, c)): c for c in columns}.items()}
        output = {c.number: stacked[tuple(map(id, column))] for c, column in zip(dense, columns, strict=True)}
        for c in calls:
            if c not in dense:
                output[c.number] = jnp.stack(a.between.derivatives_forward(known, c.node.outputs[0], new))
        return hidden, output


class Step:
    """The executable side of a `Grouping`.

    Args:
        grouping: of the model.
        along: the derivatives that are wanted.
        tap: makes one of its values an output.
    """

    def __init__(self, grouping: Grouping, along: Along | None = None, tap: Tap | None = None):
        self.grouping, self.reading, self.program = grouping, grouping.reading, grouping.program
        self.along, self.tap = along or ByGroup(grouping), tap
        self.rings = rings_of(self.reading, self.along.watched)

    def forward(
        self, params: list[Array], state: list[Array], x: list[Array], weights: Weights, deltas: dict[int, Array]
    ) -> tuple[list[Array], tuple[list[Array], dict[int, Input], list[Array]]]:
        """One step in which each op reads the old state of the groups that it feeds as a constant.

        Returns:
            The outputs, with a tap also its value; and the new state, the input of each learning call and the outputs
            of all calls.
        """
        known = self.program.consts | dict(zip(self.program.inputs, [*params, *state, *x], strict=True))
        values: dict[tuple[int, Labels], Array] = {(i, Labels()): v for i, v in known.items()}
        found: dict[int, Input] = {}
        tapped: list[Array] = []

        def variant_of(number: int, stop: Labels) -> Array:
            stop, is_constant = self._needed(number, stop)
            value = values[(number, stop)]
            return jax.lax.stop_gradient(value) if is_constant else value

        def get(atom: Atom, stop: Labels) -> ArrayLike:
            return variant_of(atom, stop) if isinstance(atom, int) else atom.val

        index = {c.node.outputs: c for c in self.reading.calls}
        for node, stop in self._plan:
            if not node.is_boundary:
                inner = self._inside(node, stop)
                out = node.run([get(a, inner) for a in node.inputs])
            else:
                call = index[node.outputs]
                args = [get(a, stop | self.grouping.stops[call.number]) for a in call.x_atoms]
                if not call.is_op:
                    out = node.run(args)
                else:
                    op, v, given = call.unflatten(*jax.lax.stop_gradient(weights[call.number]), args)
                    y = op.xw_to_y(given, v)
                    out = [y + deltas[call.number] if call.number in deltas else y]
                    found[call.number] = kept(given)
            for o, v in zip(node.outputs, out, strict=True):
                variant = stop & self.grouping.depends[o]
                if self.tap and o == self.tap.number:
                    tapped = tapped if variant else [v]
                    v = jax.lax.stop_gradient(v) if self.tap.is_cut else v + deltas[TAP]
                values[(o, variant)] = v
        everything = [variant_of(a, Labels()) for c in self.reading.calls for a in c.node.outputs]
        ends = self.reading.new, self.reading.out
        new, out = ([variant_of(a, Labels()) if isinstance(a, int) else constant(a) for a in end] for end in ends)
        xs = {c.number: found[c.number] for c in self.along.watched}
        xs |= {number: variant_of(ring.sent, Labels()) for number, ring in self.rings.items()}
        return out + tapped, (new, xs, everything)

    def _needed(self, atom: int, stop: Labels) -> tuple[Labels, bool]:
        """Which variant of a value to take when the old state of the clusters `stop` is constant."""
        stop = stop & self.grouping.depends[atom]
        if stop and self.grouping.depends[atom] <= stop:
            return Labels(), True
        return stop, False

    def _inside(self, node: Node, stop: Labels) -> Labels:
        """What the inputs of an equation take as constant, given what its outputs do."""
        updates = (self.grouping.updates or {}).items()
        return stop.union(~k for k, values in updates if k in stop and values.intersection(node.outputs))

    @cached_property
    def _plan(self) -> list[tuple[Node, Labels]]:
        """Equations to run, each once for every set of clusters that some reader takes as constant."""
        a = self.reading
        wanted: dict[int, set[Labels]] = {}

        def ask(atom: Atom, stop: Labels) -> None:
            if isinstance(atom, int):
                wanted.setdefault(atom, set()).add(self._needed(atom, stop)[0])

        for atom in [*a.out, *a.new, *(o for c in a.calls for o in c.node.outputs)]:
            ask(atom, Labels())
        index = {c.node.outputs: c for c in a.calls}
        plan = []
        for node in reversed(self.program.nodes):
            stops = set().union(*(wanted.get(o, set()) for o in node.outputs))
            if node.eqn.effects:
                stops.add(Labels())
            for stop in sorted(stops, key=sorted):
                call = index.get(node.outputs) if node.is_boundary else None
                inputs = node.inputs if call is None else call.x_atoms
                for atom in inputs:
                    ask(atom, self._inside(node, stop) if call is None else stop | self.grouping.stops[call.number])
                plan.append((node, stop))
        return plan[::-1]

    def run(
        self, params: list[Array], state: list[Array], x: list[Array], weights: Weights
    ) -> tuple[list[Array], list[Array], Callable[..., tuple], Callable[[], tuple]]:
        """One step with its derivatives.

        Returns:
            The outputs, the new state, `pull` from the derivative of the loss by the floating outputs to
            `(m, n, gradients of the plain parameters, gradients by x)`, and a function that gives the inputs of the op
            calls and the Jacobians D and F. With a tap, `pull` takes its derivative as well, after the others.
        """
        a = self.reading
        live = self.along.leaves
        floating_x = [i for i, v in enumerate(x) if is_inexact(v)]

        def loss_part(
            plain: list[Array], old: list[Array], deltas: dict[int, Array], xs: list[Array]
        ) -> tuple[list[Array], tuple]:
            with_plain, with_old, with_x = list(params), list(state), list(x)
            for i, v in zip(a.plain, plain, strict=True):
                with_plain[i] = v
            for i, v in zip(live, old, strict=True):
                with_old[i] = v
            for i, v in zip(floating_x, xs, strict=True):
                with_x[i] = v
            out, aux = self.forward(with_plain, with_old, with_x, weights, deltas)
            return [v for v in out if is_inexact(v)], (out, *aux)

        deltas = self.silence(state)[1]
        if self.tap and not self.tap.is_cut:
            (tapped,) = self.program.shapes([self.tap.number])
            deltas[TAP] = jnp.zeros(tapped.shape, tapped.dtype)
        args = ([params[i] for i in a.plain], [state[i] for i in live], deltas, [x[i] for i in floating_x])
        _, vjp, (out, new, xs, ys) = jax.vjp(loss_part, *args, has_aux=True)

        def jacobians() -> tuple:
            known = own_arrays(a.learning, weights) | dict(zip(self.program.inputs, [*params, *state, *x], strict=True))
            known |= dict(zip([o for c in a.calls for o in c.node.outputs], ys, strict=True))
            return xs, *self.along.jacobians(known)

        return out[: len(a.out)], new, jax.tree_util.Partial(self._pull, vjp), jacobians

    def _pull(self, vjp: Callable[..., tuple], cts: list[Array]) -> tuple:
        plain, old, n, by_x = vjp(cts)
        return self.along.together(dict(zip(self.along.leaves, old, strict=True))), n, plain, by_x

    def written(
        self, params: list[Array], state: list[Array], x: list[Array], deltas: dict[int, Array] | None = None
    ) -> tuple[list[Array], list[Array], tuple]:
        """New state and output of one step with all derivatives, and as constants what `jacobians` of `run` gives.

        Op calls of which `deltas` are given have constant weights, and these added to what they put out.
        """
        a, watched = self.reading, self.along.watched
        known = dict(zip(self.program.inputs, [*params, *state, *x], strict=True))
        made = [o for c in a.calls for o in c.node.outputs]
        atoms = {c.number: (self.rings[c.number].sent,) if c.number in self.rings else c.x_atoms for c in watched}
        read = [i for c in watched for i in atoms[c.number]]
        calls = [(c, c.node.outputs[0]) for c in watched if deltas]
        added = {y: deltas[c.number] for c, y in calls if deltas}
        held = {y: len(c.node.inputs) - len(c.x_atoms) for c, y in calls}
        found = iter(self.program.evaluate(known, [*a.new, *a.out, *made, *read], added, acts=True, held=held))
        new, out, ys, given = ([next(found) for _ in part] for part in (a.new, a.out, made, read))
        known, given = jax.lax.stop_gradient((known | dict(zip(made, ys, strict=True)), given))
        each = iter(given)
        xs = {c.number: x_of(c, self.rings, [next(each) for _ in atoms[c.number]]) for c in watched}
        return new, out, (xs, *self.along.jacobians(known))

    def silence(self, state: list[Array]) -> tuple[list[Array], dict[int, Array]]:
        """Learning signals `m` and `n` of zero."""
        m = self.along.together({i: jnp.zeros_like(state[i]) for i in self.along.leaves})
        shapes = {c.number: c.y(self.program) for c in self.along.watched}
        return m, {number: jnp.zeros(y.shape, y.dtype) for number, y in shapes.items()}

    def by_parameter(self, params: list[Array], dv: Gradients, plain: list[Array]) -> dict[int, Array]:
        """Gradients of the trained leaves: those by the weights on synapses pulled back, those outside of ops added."""
        a = self.reading
        wanted, cts = [], []
        for c in a.learning:
            for atom, ct, is_trained in zip(c.weight_atoms, dv[c.number], a.weight_is_trained(c), strict=True):
                if is_trained:
                    wanted.append(atom)
                    cts.append(ct)

        def phi(values: list[Array]) -> list[Array]:
            known = dict(zip(a.params, params, strict=True))
            known |= {a.params[i]: v for i, v in zip(a.trained, values, strict=True)}
            return self.program.evaluate(known, wanted)

        grads = dict(zip(a.trained, jax.vjp(phi, [params[i] for i in a.trained])[1](cts)[0], strict=True))
        for i, extra in zip(a.plain, plain, strict=True):
            grads[i] = (widened(grads[i]) + extra).astype(grads[i].dtype)
        return grads
