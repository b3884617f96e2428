"""One execution of an op, or of a cut, inside a step."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from jaxtyping import Array, PyTree

from .._op.active import as_frame
from .._op.boundary import OpCall
from .._op.contract import ETraceOp
from .program import Node, Program
from .types import Atom, Known, Weights

OpParts = tuple[ETraceOp, PyTree, PyTree]
"""An op, its weights and its input."""


class Call(NamedTuple):
    """One execution of an op (or of a cut, then without weights) inside a step."""

    number: int
    node: Node
    op_atoms: tuple[Atom, ...]
    weight_atoms: tuple[Atom, ...]
    x_atoms: tuple[Atom, ...]

    @property
    def call(self) -> OpCall:
        """What an op's call executes."""
        return self.node.eqn.params["call"]

    @property
    def is_op(self) -> bool:
        return isinstance(self.node.eqn.params["call"], OpCall)

    def unflatten(self, op: Iterable[object], weights: Iterable[object], x: Iterable[object]) -> OpParts:
        """Op, weights and input, from the arrays of each."""
        return self.call.unflatten([*op, *weights, *x])

    def template(self, program: Program) -> OpParts:
        """Op, weights and input, with shapes in place of arrays."""
        flat = [program.shapes([a])[0] if isinstance(a, int) else a.val for a in self.node.inputs]
        op, v, x = self.call.unflatten(flat)
        return op, v, as_frame(x)

    def shapes_of(self, program: Program, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """Shapes of `fn(op, v, *args)`; what the op's own arrays hold is as unknown as in a step under `jit`."""
        flat = [program.shapes([a])[0] if isinstance(a, int) else a.val for a in self.node.inputs]
        return jax.eval_shape(lambda flat, *args: fn(*self.call.unflatten(flat)[:2], *args), flat, *args)

    @property
    def op_name(self) -> str:
        """Name of the op's class; of a cut, `cut`."""
        if not self.is_op:
            return "cut"
        nothing = [None] * len(self.node.inputs)
        return type(self.call.unflatten(nothing)[0]).__name__

    def y(self, program: Program) -> jax.ShapeDtypeStruct:
        return program.shapes(self.node.outputs)[0]


def own_arrays(calls: Iterable[Call], weights: Weights) -> Known:
    """What ops and weights hold, once known, so that whatever is made of them in a step is made once."""
    atoms = [atom for c in calls for atom in (*c.op_atoms, *c.weight_atoms)]
    values = [value for c in calls for part in weights[c.number] for value in part]
    return {atom: value for atom, value in zip(atoms, values, strict=True) if isinstance(atom, int)}


def halfway(calls: Iterable[Call], program: Program, known: Known) -> dict[int, Array]:
    """What ops want kept of a step besides their inputs, at known inputs and op outputs."""
    found = {}
    for call in calls:
        if type(call.template(program)[0]).halfway is not ETraceOp.halfway:
            atoms = [*call.op_atoms, *call.weight_atoms, *call.x_atoms]
            op, v, x = call.call.unflatten(program.evaluate(known, atoms))
            if (kept := op.halfway(x, v)) is not None:
                found[call.number] = kept
    return found
