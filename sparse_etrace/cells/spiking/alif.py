"""Integrate-and-fire neurons whose threshold adapts, in units."""

from typing import ClassVar

import equinox as eqx

from .constants import TINY, Number, Subtract, Value, Variables, check_above, field, reset_field, reset_to
from .population import population_of


class ALIF(eqx.Module):
    """As `LIF`, with a threshold that rises at each spike: a spike at `v >= threshold + b`.

    `tau dv/dt = rest - v + resistance I`, `tau_adaptation db/dt = -b`, `b <- b + adaptation` at a spike.

    `se.cells.ALIF` with the decays `a`, `rho` is this one on a current held over the step, with
    `adaptation = beta (1 - rho) / rho`: there the threshold of a step is that of the step before.

    Args:
        tau: membrane time constant, ms.
        threshold: at rest, mV, above `rest`.
        rest: mV.
        resistance: GΩ, so that a current in pA gives mV.
        tau_adaptation: time constant of the threshold, ms.
        adaptation: what a spike adds to the threshold, mV.
        reset: the potential after a spike, mV, a hard reset; `"subtract"` for `threshold - rest` less, a soft one;
            None for none.

    Each is a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained.

    Raises:
        ValueError: a constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.ALIF(adaptation=0.5))
        >>> float(cell(cell.init_state(), jnp.array([100.0]))[0].neuron['b'][0])
        0.5

    Reference:
        Bellec et al. 2018, Advances in Neural Information Processing Systems 31 (arXiv 1803.09574).
    """

    tau: Value = field("tau", 20.0, TINY)
    threshold: Value = field("threshold", 1.0)
    rest: Value = field("rest", 0.0)
    resistance: Value = field("resistance", 1.0, 0)
    tau_adaptation: Value = field("tau_adaptation", 200.0, TINY)
    adaptation: Value = field("adaptation", 0.1)
    reset: Value | Subtract | None = reset_field("subtract")
    is_linear: ClassVar[bool] = True
    is_coupled: ClassVar[bool] = False
    spikes: ClassVar[bool] = True

    of = classmethod(population_of)

    def __check_init__(self) -> None:
        check_above("threshold", self.threshold, self.rest)

    def start(self) -> Variables:
        """Rest, without adaptation."""
        return {"b": 0 * self.rest, "v": self.rest}

    def derivative(self, y: Variables, current: Number) -> Variables:
        """Per ms, of a current in pA."""
        return {"b": -y["b"] / self.tau_adaptation, "v": (self.rest - y["v"] + self.resistance * current) / self.tau}

    def margin(self, y: Variables) -> Number:
        """Distance to the threshold, relative to that of rest from the threshold at rest."""
        return (y["v"] - self.threshold - y["b"]) / (self.threshold - self.rest)

    def after(self, y: Variables, z: Number) -> Variables:
        """What spikes `z` leave behind."""
        v = reset_to(y["v"], z, self.reset, self.threshold - self.rest)
        return {"b": y["b"] + self.adaptation * z, "v": v}
