"""What acts on what in a step without an op between: which entries on which, and the derivatives along these links.

    old state     ---+---> new state         The outputs of ops are given, so that where a model is made of units the
    outputs of ops --+---> inputs of ops     rest acts on each unit by itself: one entry of a source on one of a sink.

D is the derivative along a link from old state to new, F along one from the output of an op to new state.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .call import Call
from .linear import check_linear, pushforward, refuse_bent
from .positions import Ids, follow
from .program import Program, vjp_jaxpr
from .types import Atom, Known


class Between:
    """A step between its ops. Sources and sinks go by the numbers of their values in the program."""

    def __init__(self, program: Program, calls: Sequence[Call]):
        self.program, self.calls = program, calls

    def function(self, sources: list[int], sinks: Sequence[Atom]) -> tuple[Callable[..., list[Array]], list[int]]:
        """The sinks as a function of the sources, and what else it needs: inputs and the outputs of all calls."""
        given = [*self.program.inputs, *(o for c in self.calls for o in c.node.outputs)]
        rest = [a for a in given if a not in sources]

        def fn(values: list[Array], *others: Array) -> list[Array]:
            known = dict(zip(sources, values, strict=True)) | dict(zip(rest, others, strict=True))
            return self.program.evaluate(known, sinks)

        return fn, rest

    def origins(self, what: str, sources: list[int], sinks: Sequence[Atom]) -> Callable[..., list[Ids]]:
        """For each entry of the sources, the one of the sinks that it acts on: `follow` of these sinks alone.

        Raises:
            ValueError: the backward pass of the sinks, `what` in words, is not linear.
        """
        fn, rest = self.function(sources, sinks)
        shapes = self.program.shapes
        closed, out = vjp_jaxpr(fn, shapes(sources), *shapes(rest), out=shapes(sinks))
        check_linear(what, closed, range(len(sources), len(sources) + len(out)))

        def of(*read: int) -> list[Ids]:
            numbers = [_numbers(sink.shape) if k in read else None for k, sink in enumerate(out)]
            return follow(closed.jaxpr, closed.consts, [None] * len(sources) + numbers + [None] * len(rest))

        return of

    def landings(self, what: str, source: int, sinks: Sequence[Atom]) -> list[Ids]:
        """For each entry of each sink, the one of the source that acts on it; raises as `origins`."""
        fn, rest = self.function([source], sinks)
        (aval,) = self.program.shapes([source])
        refuse_bent(what, fn, [aval], *self.program.shapes(rest))

        def push(tangent: Array, *others: Array) -> list[Array]:
            return _forward(fn, jnp.zeros(aval.shape, aval.dtype), others)(tangent)

        closed = jax.make_jaxpr(push)(aval, *self.program.shapes(rest))
        return follow(closed.jaxpr, closed.consts, [_numbers(aval.shape)] + [None] * len(rest))

    def derivatives(self, known: Known, sources: list[int], sinks: Sequence[Atom]) -> list[list[Array]]:
        """For each sink the derivatives by the sources, whose entries act on no more than one of its entries each."""
        fn, rest = self.function(sources, sinks)
        others = [known[i] for i in rest]
        out, pull = jax.vjp(lambda v: fn(v, *others), [known[i] for i in sources])
        return [pull([jnp.full_like(o, float(i == k)) for i, o in enumerate(out)])[0] for k in range(len(out))]

    def derivatives_forward(self, known: Known, source: int, sinks: Sequence[Atom]) -> list[Array]:
        """For each sink the derivatives by the source, of which no more than one entry acts on each of its entries.

        By a complex source they are those of reverse mode: the change is the real part of `derivative * dy`.
        """
        fn, rest = self.function([source], sinks)
        push, one = _forward(fn, known[source], tuple(known[i] for i in rest)), jnp.ones_like(known[source])
        if not jnp.iscomplexobj(one):
            return push(one)
        return [real - 1j * imaginary for real, imaginary in zip(push(one), push(1j * one), strict=True)]


def _forward(fn: Callable[..., list[Array]], y: Array, others: tuple[Array, ...]) -> Callable[[Array], list[Array]]:
    """Forward derivative of `fn([y], *others)`, which custom VJPs allow as well."""
    out, pull = jax.vjp(lambda y: fn([y], *others), y)
    return pushforward(pull, out)


def _numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(int(np.prod(shape))).reshape(shape)
