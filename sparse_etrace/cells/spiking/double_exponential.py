"""Synapses with the current of a difference of two exponentials."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from .constants import TINY, Number, Value, Variables, field


class DoubleExponential(eqx.Module):
    """`dr/dt = -r / tau_rise`, `ds/dt = r - s / tau_decay`, `r <- r + c y` as the step begins; the current is `s`.

    What arrives at t = 0 makes a current that goes with `exp(-t / tau_decay) - exp(-t / tau_rise)` and has its peak
    `y`, by `c`. Of equal time constants it is the alpha function.

    Args:
        tau_rise: time constant of the rise, ms.
        tau_decay: time constant of the decay, ms.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.LIF(), synapses=spiking.DoubleExponential(0.5, 8.0))
        >>> bool(cell(cell.init_state(), jnp.array([1.0]))[0].synapses['all']['s'][0] > 0.9)  # near its peak
        True

    Reference:
        Destexhe, Mainen and Sejnowski 1994, Journal of Computational Neuroscience 1:195.
    """

    tau_rise: Value = field("tau_rise", 1.0, TINY)
    tau_decay: Value = field("tau_decay", 5.0, TINY)
    variables: ClassVar[tuple[str, ...]] = ("r", "s")
    is_linear: ClassVar[bool] = True
    has_current: ClassVar[bool] = True

    def arrive(self, v: Number, s: Variables, y: Number) -> tuple[Number, Variables, PyTree]:
        """Potential, filter and current of the step after what arrived, `y`, in pA."""
        u = jnp.log(self.tau_decay / self.tau_rise)
        far = jnp.abs(u) > 1e-3
        wide = jnp.where(far, u, 1.0)
        power = jnp.where(far, wide / jnp.expm1(wide), 1 - u / 2 + u * u / 12)
        return v, {"r": s["r"] + y * jnp.exp(power) / self.tau_rise, "s": s["s"]}, None

    def current(self, s: Variables, held: PyTree, v: Number) -> Number:
        """`I = s`, pA."""
        return s["s"]

    def derivative(self, s: Variables) -> Variables:
        """Per ms."""
        return {"r": -s["r"] / self.tau_rise, "s": s["r"] - s["s"] / self.tau_decay}
