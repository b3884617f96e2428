"""Synapses with the current of an alpha function."""

import math
from typing import ClassVar

import equinox as eqx
from jaxtyping import PyTree

from .constants import TINY, Number, Value, Variables, field


class Alpha(eqx.Module):
    """`dr/dt = -r / tau`, `ds/dt = r - s / tau`, `r <- r + y e / tau` at the begin of the step; the current is `s`.

    What arrives at t = 0 makes the current `y t / tau exp(1 - t / tau)`, which has its peak `y` at `tau`.

    Args:
        tau: rise and decay of the current, ms.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.LIF(), synapses=spiking.Alpha(tau=1.0))
        >>> cell(cell.init_state(), jnp.array([1.0]))[0].synapses['all']['s'].tolist()  # at its peak after 1 ms
        [1.0]

    Reference:
        Rall 1967, Journal of Neurophysiology 30:1138.
    """

    tau: Value = field("tau", 5.0, TINY)
    variables: ClassVar[tuple[str, ...]] = ("r", "s")
    is_linear: ClassVar[bool] = True
    has_current: ClassVar[bool] = True

    def arrive(self, v: Number, s: Variables, y: Number) -> tuple[Number, Variables, PyTree]:
        """Potential, filter and current of the step after what arrived, `y`, in pA."""
        return v, {"r": s["r"] + y * math.e / self.tau, "s": s["s"]}, None

    def current(self, s: Variables, held: PyTree, v: Number) -> Number:
        """`I = s`, pA."""
        return s["s"]

    def derivative(self, s: Variables) -> Variables:
        """Per ms."""
        return {"r": -s["r"] / self.tau, "s": s["r"] - s["s"] / self.tau}
