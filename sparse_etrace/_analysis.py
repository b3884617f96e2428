"""From a model to what its learning needs: op calls, hidden groups, live state, and whether its rules apply."""

import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._filter import check_state, leaf_names, refuse_unread, refuse_zero, struct, trained_filter
from ._linear import refuse_bent
from ._op.base import OpCall, VmappedCall
from ._program import Atom, Labels, Node, flatten, is_inexact, propagate, vjp_jaxpr
from ._routes import Call, Group, Variable, make_group

Label = tuple


class Analysis:
    """The step of a model, taken apart at its ops.

    Values and leaves are numbered as the flattened model, state and input come. Groups hold numbers of state leaves.
    """

    def __init__(self, model: PyTree[Any], state: PyTree[Any], x: PyTree[Any], train: PyTree[bool] | None):
        arrays, static = eqx.partition(model, eqx.is_array)
        self.param_names = leaf_names(arrays)
        of_trained = set(leaf_names(eqx.filter(model, trained_filter(model, train))))
        self.trained = [i for i, name in enumerate(self.param_names) if name in of_trained]
        state, x = struct(state), struct(x)
        self.state_names = [name or "state" for name in leaf_names(state)]

        def step(arrays: Any, state: Any, x: Any) -> Any:
            new, out = eqx.combine(arrays, static)(state, x)
            return jax.tree.map(jnp.asarray, new), jax.tree.map(jnp.asarray, out)

        closed, (new, out) = jax.make_jaxpr(step, return_shape=True)(struct(arrays), state, x)
        check_state(state, new)
        self.out_structure = jax.tree.structure(out)
        self.program = program = flatten(closed)
        sizes = [len(jax.tree.leaves(tree)) for tree in (arrays, state, x)]
        ends = np.cumsum(sizes)
        self.params, self.state, self.x = np.split(np.array(program.inputs, int), ends[:2])
        self.params, self.state, self.x = (part.tolist() for part in (self.params, self.state, self.x))
        self.new, self.out = program.outputs[: sizes[1]], program.outputs[sizes[1] :]
        self.calls = [self._read_call(i, n) for i, n in enumerate(n for n in program.nodes if n.is_boundary)]
        self._refuse_dynamic_weights()
        self._find_direct_influence()
        self._find_groups()

    def _read_call(self, index: int, node: Node) -> Call:
        call = node.eqn.params["call"]
        if isinstance(call, VmappedCall) and isinstance(call.call, OpCall):
            raise NotImplementedError(
                f"model: an op is mapped by vmap over its weights at {node.where}, so one call stands for several "
                "parameters. Call each parameter by itself, or map the whole learner instead."
            )
        if not isinstance(call, OpCall):
            return Call(index, node, (), (), node.inputs)
        a, b = call.num_op, call.num_op + call.num_weights
        return Call(index, node, node.inputs[:a], node.inputs[a:b], node.inputs[b:])

    def _refuse_dynamic_weights(self) -> None:
        given = {i: Labels(["the state"]) for i in self.state} | {i: Labels(["the input x"]) for i in self.x}
        found = self.program.influence(given)
        for call in self.calls:
            for atom in (*call.op_atoms, *call.weight_atoms):
                if isinstance(atom, int) and found[atom]:
                    raise NotImplementedError(
                        f"model: the weights or indices of an op depend on {' and '.join(sorted(found[atom]))} at "
                        f"{call.node.where}, so a synapse has no trace of its own. Make them parameters."
                    )

    def _find_direct_influence(self) -> None:
        """`self.direct[source]`: the sinks whose derivative by that source is not zero, ops taken out.

        Sources: `("h", i)` old state, `("y", c)` output of a call, `("p", i)` model leaf, `("t", value)` new state
        where it arises. Sinks: `("n", i)` new state, `("x", c)` input of a call, `("w", c, i)` its weights, `("out",)`.
        """
        avals, program = self.program.avals, self.program

        def floating(atoms: Iterable[Atom]) -> list[int]:
            return [a for a in atoms if isinstance(a, int) and is_inexact(avals[a])]

        made = {o for node in program.nodes for o in node.outputs}
        sources: list[tuple[Label, Any]] = [
            *((("h", i), a) for i, a in enumerate(self.state) if is_inexact(avals[a])),
            *((("p", i), a) for i, a in enumerate(self.params) if is_inexact(avals[a])),
            *((("y", c.number), a) for c in self.calls for a in floating(c.node.outputs)),
        ]
        taps = sorted({a for a in floating(self.new) if a in made})
        sinks: list[tuple[Label, Any]] = [
            *((("n", i), a) for i, a in enumerate(self.new) if floating([a])),
            *((("x", c.number), a) for c in self.calls for a in floating(c.x_atoms)),
            *((("w", c.number, i), a) for c in self.calls for i, a in enumerate(c.weight_atoms) if floating([a])),
            *((("out",), a) for a in floating(self.out)),
        ]
        rest = [a for a in program.inputs if not is_inexact(avals[a])]
        rest += [a for c in self.calls for a in c.node.outputs if not is_inexact(avals[a])]
        rest += [a for a in self.x if is_inexact(avals[a])]

        def segment(args: tuple, *others: Any) -> list[Any]:
            values, tapped = args
            known = dict(zip([a for _, a in sources], values, strict=True)) | dict(zip(rest, others, strict=True))
            return program.evaluate(known, [a for _, a in sinks], dict(zip(taps, tapped, strict=True)))

        args = (program.shapes(a for _, a in sources), program.shapes(taps))
        jaxpr, _ = vjp_jaxpr(segment, args, *program.shapes(rest))
        empty: list[Labels] = [Labels()] * len(jax.tree.leaves(args))
        labels = [*empty, *(Labels([s]) for s, _ in sinks), *([Labels()] * len(rest))]
        found = propagate(jaxpr.jaxpr, labels)
        self.direct: dict[Label, set[Label]] = {}
        for label, sink in zip([*(s for s, _ in sources), *(("t", a) for a in taps)], found, strict=True):
            self.direct.setdefault(label, set()).update(sink)

    def within_step(self, source: Label, through: Callable[[int], bool] = lambda c: True) -> set[Label]:
        """Sinks that a source reaches in the same step, through those calls that let it `through`."""
        found: set[Label] = set()
        todo = [source]
        while todo:
            for sink in self.direct.get(todo.pop(), ()):
                if sink not in found:
                    found.add(sink)
                    if sink[0] in "xw" and (sink[0] == "w" or through(sink[1])):
                        todo.append(("y", sink[1]))
        return found

    def op_free(self, i: int) -> set[int]:
        """State leaves whose new value the old value of leaf `i` influences without passing an op.

        A new value that enters another one counts by what it carries of old state: how the step is written, and which
        of its intermediate values are given names, is no part of the function.
        """
        return {s[1] for s in self.direct.get(("h", i), ()) if s[0] == "n"}

    def _find_groups(self) -> None:
        leaves = [i for i, a in enumerate(self.state) if is_inexact(self.program.avals[a])]
        every = {i: self.within_step(("h", i)) for i in leaves}
        driven = {s[1] for c in self.calls for s in self.within_step(("y", c.number)) if s[0] == "n"}
        driven |= {s[1] for i in self.trained for s in self.within_step(("p", i)) if s[0] == "n"}
        driven = closure(driven, {i: {s[1] for s in every[i] if s[0] == "n"} for i in leaves})
        read = {i for i in leaves if ("out",) in every[i]}
        back = {i: {j for j in leaves if ("n", i) in every[j]} for i in leaves}
        candidates = driven & closure(read, back)

        for i in sorted(candidates):
            if not jax.dtypes.issubdtype(self.program.avals[self.state[i]].dtype, np.floating):
                raise ValueError(
                    f"state: the hidden variable {self.state_names[i]!r} is complex, traces are real. "
                    "Split it into two leaves, its real and its imaginary part."
                )
        self.cluster = components(candidates, {i: self.op_free(i) & candidates for i in candidates})
        reach = [self.within_step(("y", c.number)) for c in self.calls]
        self.stops = [Labels(self.cluster[s[1]] for s in r if s[0] == "n" and s[1] in candidates) for r in reach]

        def passes(i: int) -> Callable[[int], bool]:
            return lambda c: self.cluster[i] not in self.stops[c]

        seen = {i: self.within_step(("h", i), passes(i)) for i in candidates}
        onward = {i: {j for j in candidates if ("n", i) in self.direct[("h", j)]} for i in candidates}
        self.live = closure({i for i in candidates if ("out",) in seen[i]}, onward)
        groups = components(self.live, {i: self.op_free(i) & self.live for i in self.live})
        self._members = [tuple(sorted(i for i in self.live if groups[i] == g)) for g in sorted(set(groups.values()))]

    @cached_property
    def groups(self) -> list[Group]:
        """The hidden groups; raises where one is mixed by anything but an op."""
        return [self._make_group(m) for m in self._members]

    def weight_is_trained(self, call: Call) -> list[bool]:
        """For each weight leaf of a call, whether anything that is trained moves it."""
        moved = set().union(*(self.within_step(("p", i)) for i in self.trained))
        return [("w", call.number, i) in moved for i in range(len(call.weight_atoms))]

    @cached_property
    def learning(self) -> list[Call]:
        """Op calls with a trained weight, apart from those whose output only makes the weights of another op."""
        return [
            c for c in self.calls if c.is_op and any(self.weight_is_trained(c)) and not self._makes_weights(c.number)
        ]

    def _makes_weights(self, call: int) -> bool:
        sinks = self.direct.get(("y", call), set())
        return bool(sinks) and all(
            s[0] == "w" or (s[0] == "x" and s[1] != call and self._makes_weights(s[1])) for s in sinks
        )

    @cached_property
    def plain(self) -> list[int]:
        """Trained leaves that act outside of every op."""
        return [i for i in self.trained if self._plain_sinks(i)]

    def _plain_sinks(self, i: int) -> set[Label]:
        """Where a leaf acts by itself: neither as a weight nor by making one."""
        return {s for s in self.direct[("p", i)] if s[0] != "w" and not (s[0] == "x" and self._makes_weights(s[1]))}

    def _make_group(self, members: tuple[int, ...]) -> Group:
        inner = {c.number for c in self.calls if any(("n", i) in self.direct.get(("y", c.number), ()) for i in members)}
        traced = [c for c in self.learning if c.number in inner and c.call.traced]
        variables = [Variable(self.state_names[i], self.state[i], self.new[i]) for i in members]
        return make_group(self.program, self.calls, members, variables, traced)

    def check_reach(self, allow_zero: tuple[str, ...], traced: set[int] | None = None) -> None:
        """Raise for a trained leaf without gradient; warn of a plain array that acts through hidden state.

        `traced` are the op calls with a trace; None for those that are traced into groups.
        """
        self._check_weights()
        read = self.program.influence({i: Labels(["x"]) for i in self.x})
        refuse_unread(self.program.shapes(self.x), any(read[o] for o in [*self.new, *self.out] if isinstance(o, int)))
        traced = {r.call for g in self.groups for r in g.routes} if traced is None else traced
        for i in self.trained:
            name, sinks = self.param_names[i], self.within_step(("p", i))
            if ("out",) not in sinks and not any(s[0] == "w" and s[1] in traced for s in sinks):
                refuse_zero(name, allow_zero, used=bool(sinks))
            hidden = {s[1] for s in self.outside_ops(i) if s[0] == "n"} & self.live
            if hidden:
                names = ", ".join(repr(self.state_names[j]) for j in sorted(hidden))
                if any(("n", j) in self.direct[("p", i)] for j in hidden):
                    way_out = "Wrap it in se.ElemWiseParam (or another op) to give it a trace."
                else:
                    way_out = (
                        "It acts through an op or a cut, behind which no parameter has a trace: take it in front of "
                        "none, or use se.RTRL(), se.TBPTT or se.BPTT()."
                    )
                warnings.warn(
                    f"The plain array {name!r} acts on the hidden state {names}; only its effect within the same "
                    f"step is learned. {way_out}",
                    stacklevel=3,
                )

    def _check_weights(self) -> None:
        """Raise where the weights of an op are made of what is trained by something whose derivative is not linear."""
        program = self.program
        floating = [a for a in self.params if is_inexact(program.avals[a])]
        others = [a for a in self.params if a not in floating]
        for call in self.learning:
            wanted = [a for a, moves in zip(call.weight_atoms, self.weight_is_trained(call), strict=True) if moves]

            def weights(values: list[Any], *given: Any, wanted: list[Atom] = wanted) -> list[Any]:
                return program.evaluate(dict(zip([*floating, *others], [*values, *given], strict=True)), wanted)

            what = f"the weights of the op called at {call.node.where}"
            refuse_bent(what, weights, program.shapes(floating), *program.shapes(others))

    def outside_ops(self, i: int) -> set[Label]:
        """Sinks of a model leaf by ways that do not begin as a weight of an op."""
        sinks = self._plain_sinks(i)
        return sinks.union(*(self.within_step(("y", s[1])) for s in sinks if s[0] == "x"))


def closure(start: set[int], edges: dict[int, set[int]]) -> set[int]:
    found, todo = set(start), list(start)
    while todo:
        for j in edges.get(todo.pop(), ()):
            if j not in found:
                found.add(j)
                todo.append(j)
    return found


def components(nodes: set[int], edges: dict[int, set[int]]) -> dict[int, int]:
    """Connected components, each named by its smallest member."""
    both: dict[int, set[int]] = {i: set(edges.get(i, ())) for i in nodes}
    for i, targets in edges.items():
        for j in targets:
            both[j].add(i)
    return {i: min(closure({i}, both)) for i in nodes}
