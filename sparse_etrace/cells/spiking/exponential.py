"""Synapses with an exponential current."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import PyTree

from .constants import TINY, Number, Value, Variables, field


class Exponential(eqx.Module):
    """`ds/dt = -s / tau`, `s <- s + y` at the begin of the step; the current is `s`, with its peak `y` at once.

    Args:
        tau: decay of the current, ms.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.LIF(), synapses=spiking.Exponential(tau=2.0))
        >>> round(float(cell(cell.init_state(), jnp.array([1.0]))[0].synapses['all']['s'][0]), 4)  # exp(-1 / 2)
        0.6065

    Reference:
        Rotter and Diesmann 1999, Biological Cybernetics 81:381.
    """

    tau: Value = field("tau", 5.0, TINY)
    variables: ClassVar[tuple[str, ...]] = ("s",)
    is_linear: ClassVar[bool] = True
    has_current: ClassVar[bool] = True

    def arrive(self, v: Number, s: Variables, y: Number) -> tuple[Number, Variables, PyTree]:
        """Potential, filter and current of the step after what arrived, `y`, in pA."""
        return v, {"s": s["s"] + y}, None

    def current(self, s: Variables, held: PyTree, v: Number) -> Number:
        """`I = s`, pA."""
        return s["s"]

    def derivative(self, s: Variables) -> Variables:
        """Per ms."""
        return {"s": -s["s"] / self.tau}
