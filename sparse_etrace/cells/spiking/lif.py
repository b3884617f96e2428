"""Leaky integrate-and-fire neurons in units."""

from typing import ClassVar

import equinox as eqx

from .constants import TINY, Number, Subtract, Value, Variables, check_above, field, reset_field, reset_to
from .population import population_of


class LIF(eqx.Module):
    """Leaky integrate-and-fire: `tau dv/dt = rest - v + resistance I`, a spike at `v >= threshold`.

    Args:
        tau: membrane time constant, ms.
        threshold: mV, above `rest`.
        rest: mV.
        resistance: GΩ, so that a current in pA gives mV.
        reset: the potential after a spike, mV, a hard reset; `"subtract"` for `threshold - rest` less, a soft one;
            None for none.

    Each is a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained.

    Raises:
        ValueError: a constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> neuron = spiking.LIF(tau=20.0, threshold=-50.0, rest=-65.0, reset=-65.0)
        >>> cell = spiking.Population(1, neuron, refractory=2.0)
        >>> round(float(cell(cell.init_state(), jnp.array([10.0]))[0].neuron['v'][0]), 3)  # -65 + 10 (1 - exp(-1 / 20))
        -64.512

    Reference:
        Lapicque 1907, Journal de physiologie et de pathologie générale 9:620; Rotter and Diesmann 1999, Biological
        Cybernetics 81:381, of its exact integration.
    """

    tau: Value = field("tau", 20.0, TINY)
    threshold: Value = field("threshold", 1.0)
    rest: Value = field("rest", 0.0)
    resistance: Value = field("resistance", 1.0, 0)
    reset: Value | Subtract | None = reset_field("subtract")
    is_linear: ClassVar[bool] = True
    is_coupled: ClassVar[bool] = False
    spikes: ClassVar[bool] = True

    of = classmethod(population_of)

    def __check_init__(self) -> None:
        check_above("threshold", self.threshold, self.rest)

    def start(self) -> Variables:
        """Rest."""
        return {"v": self.rest}

    def derivative(self, y: Variables, current: Number) -> Variables:
        """Per ms, of a current in pA."""
        return {"v": (self.rest - y["v"] + self.resistance * current) / self.tau}

    def margin(self, y: Variables) -> Number:
        """Distance to the threshold, relative to that of rest."""
        return (y["v"] - self.threshold) / (self.threshold - self.rest)

    def after(self, y: Variables, z: Number) -> Variables:
        """What spikes `z` leave behind."""
        return {"v": reset_to(y["v"], z, self.reset, self.threshold - self.rest)}
