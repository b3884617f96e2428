"""A model, read once: its step as a program, its op calls, and who acts on whom without an op between."""

from collections.abc import Callable, Iterable
from functools import cached_property

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._op.boundary import OpCall, VmappedCall
from .._op.sharded import stepped
from .call import Call
from .linear import refuse_bent
from .links import Between
from .program import Node, flatten, is_inexact, propagate, vjp_jaxpr
from .trained import check_state, is_array_like, leaf_names, struct, trained_filter
from .types import Atom, Filter, Labels, OpWeights, Weights

Label = tuple


class Reading:
    """The step of a model, taken apart at its ops; facts that hold under every rule and that nobody changes.

    Values and leaves are numbered as the flattened model, state and input come.
    """

    def __init__(self, model: PyTree, state: PyTree, x: PyTree, train: Filter):
        arrays, static = eqx.partition(model, is_array_like)
        self.param_names = leaf_names(arrays)
        of_trained = set(leaf_names(eqx.filter(model, trained_filter(model, train))))
        self.trained = [i for i, name in enumerate(self.param_names) if name in of_trained]
        state, x = struct(state), struct(x)
        self.state_names = [name or "state" for name in leaf_names(state)]

        def step(arrays: PyTree, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
            return stepped(eqx.combine(arrays, static), state, x)

        closed, (new, out) = jax.make_jaxpr(step, return_shape=True)(struct(arrays), state, x)
        check_state(state, new)
        self.out_structure = jax.tree.structure(out)
        self.jaxpr, self.program = closed.jaxpr, (program := flatten(closed))
        sizes = [len(jax.tree.leaves(tree)) for tree in (arrays, state, x)]
        ends = np.cumsum(sizes)
        self.params, self.state, self.x = np.split(np.array(program.inputs, int), ends[:2])
        self.params, self.state, self.x = (part.tolist() for part in (self.params, self.state, self.x))
        self.new, self.out = program.outputs[: sizes[1]], program.outputs[sizes[1] :]
        self.calls = [self._read_call(i, n) for i, n in enumerate(n for n in program.nodes if n.is_boundary)]
        self.between = Between(program, self.calls)
        self._refuse_dynamic_weights()
        self._find_direct_influence()

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
        sources: list[tuple[Label, int]] = [
            *((("h", i), a) for i, a in enumerate(self.state) if is_inexact(avals[a])),
            *((("p", i), a) for i, a in enumerate(self.params) if is_inexact(avals[a])),
            *((("y", c.number), a) for c in self.calls for a in floating(c.node.outputs)),
        ]
        taps = sorted({a for a in floating(self.new) if a in made})
        sinks: list[tuple[Label, Atom]] = [
            *((("n", i), a) for i, a in enumerate(self.new) if floating([a])),
            *((("x", c.number), a) for c in self.calls for a in floating(c.x_atoms)),
            *((("w", c.number, i), a) for c in self.calls for i, a in enumerate(c.weight_atoms) if floating([a])),
            *((("out",), a) for a in floating(self.out)),
        ]
        rest = [a for a in program.inputs if not is_inexact(avals[a])]
        rest += [a for c in self.calls for a in c.node.outputs if not is_inexact(avals[a])]
        rest += [a for a in self.x if is_inexact(avals[a])]

        def segment(args: tuple[list[Array], list[Array]], *others: Array) -> list[Array]:
            values, tapped = args
            known = dict(zip([a for _, a in sources], values, strict=True)) | dict(zip(rest, others, strict=True))
            return program.evaluate(known, [a for _, a in sinks], dict(zip(taps, tapped, strict=True)))

        args = (program.shapes(a for _, a in sources), program.shapes(taps))
        jaxpr, _ = vjp_jaxpr(segment, args, *program.shapes(rest), out=program.shapes(a for _, a in sinks))
        empty: list[Labels] = [Labels()] * len(jax.tree.leaves(args))
        labels = [*empty, *(Labels([s]) for s, _ in sinks), *([Labels()] * len(rest))]
        found = propagate(jaxpr.jaxpr, labels)
        self.direct: dict[Label, set[Label]] = {}
        for label, sink in zip([*(s for s, _ in sources), *(("t", a) for a in taps)], found, strict=True):
            self.direct.setdefault(label, set()).update(sink)

    def weights(self, params: list[Array]) -> Weights:
        """Own arrays and weights of every op call, computed once from the parameters."""
        calls = [c for c in self.calls if c.is_op]
        wanted = [a for c in calls for a in (*c.op_atoms, *c.weight_atoms)]
        values = iter(self.program.evaluate(dict(zip(self.params, params, strict=True)), wanted))
        return {
            c.number: OpWeights(tuple(next(values) for _ in c.op_atoms), tuple(next(values) for _ in c.weight_atoms))
            for c in calls
        }

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

    def leaves_of(self, param: int) -> list[tuple[Call, int]]:
        """Op calls that learn, and the leaf of their weights that a parameter is part of."""
        sinks = self.within_step(("p", param))
        return [(c, k) for c in self.learning for k in range(len(c.weight_atoms)) if ("w", c.number, k) in sinks]

    def op_free(self, i: int) -> set[int]:
        """State leaves whose new value the old value of leaf `i` influences without passing an op.

        A new value that enters another one counts by what it carries of old state: how the step is written, and which
        of its intermediate values are given names, is no part of the function.
        """
        return {s[1] for s in self.direct.get(("h", i), ()) if s[0] == "n"}

    def weight_is_trained(self, call: Call) -> list[bool]:
        """For each weight leaf of a call, whether anything that is trained moves it."""
        return [("w", call.number, i) in self._moved for i in range(len(call.weight_atoms))]

    @cached_property
    def _moved(self) -> set[Label]:
        return set().union(*(self.within_step(("p", i)) for i in self.trained))

    def owners(self, call: Call) -> tuple[tuple[str, ...], ...]:
        """For each weight leaf of a call the names of what is trained in it."""
        acts = {i: self.within_step(("p", i)) for i in self.trained}
        leaves = range(len(call.weight_atoms))
        return tuple(tuple(self.param_names[i] for i in acts if ("w", call.number, k) in acts[i]) for k in leaves)

    @cached_property
    def learning(self) -> list[Call]:
        """Op calls with a trained weight, apart from those whose output only makes the weights of another op."""
        trained = [c for c in self.calls if c.is_op and any(self.weight_is_trained(c))]
        return [c for c in trained if not self._makes_weights(c.number)]

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

    def check_weights(self) -> None:
        """Raise where the weights of an op are made of what is trained by something whose derivative is not linear."""
        program = self.program
        floating = [a for a in self.params if is_inexact(program.avals[a])]
        others = [a for a in self.params if a not in floating]
        for call in self.learning:
            wanted = [a for a, moves in zip(call.weight_atoms, self.weight_is_trained(call), strict=True) if moves]

            def weights(values: list[Array], *given: Array, wanted: list[Atom] = wanted) -> list[Array]:
                return program.evaluate(dict(zip([*floating, *others], [*values, *given], strict=True)), wanted)

            what = f"the weights of the op called at {call.node.where}"
            refuse_bent(what, weights, program.shapes(floating), *program.shapes(others))

    def outside_ops(self, i: int) -> set[Label]:
        """Sinks of a model leaf by ways that do not begin as a weight of an op."""
        sinks = self._plain_sinks(i)
        return sinks.union(*(self.within_step(("y", s[1])) for s in sinks if s[0] == "x"))
