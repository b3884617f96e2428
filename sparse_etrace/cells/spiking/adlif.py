"""Leaky integrate-and-fire neurons with an adaptation current."""

from typing import ClassVar

import equinox as eqx

from .constants import TINY, Number, Subtract, Value, Variables, check_above, field, reset_field, reset_to
from .population import population_of


class AdLIF(eqx.Module):
    """As `LIF`, with a current `w` that follows potential and spikes; a spike at `v >= threshold`.

    `tau dv/dt = rest - v + resistance (I - w)`, `tau_adaptation dw/dt = coupling (v - rest) - w`,
    `w <- w + adaptation` at a spike. Both variables are integrated together, exactly.

    Args:
        tau: membrane time constant, ms.
        threshold: mV, above `rest`.
        rest: mV.
        resistance: GΩ, so that a current in pA gives mV.
        tau_adaptation: time constant of the adaptation, ms.
        coupling: of the adaptation to the potential, nS; with 1 / `resistance` or more, a step lets `v` ring.
        adaptation: what a spike adds to `w`, pA.
        reset: the potential after a spike, mV, a hard reset; `"subtract"` for `threshold - rest` less, a soft one;
            None for none.

    Each is a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained.

    Raises:
        ValueError: a constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.AdLIF(adaptation=0.5, coupling=0.0))
        >>> float(cell(cell.init_state(), jnp.array([100.0]))[0].neuron['w'][0])
        0.5

    Reference:
        Bittar and Garner 2022, Frontiers in Neuroscience 16:865897, who hold each variable while the other moves.
    """

    tau: Value = field("tau", 20.0, TINY)
    threshold: Value = field("threshold", 1.0)
    rest: Value = field("rest", 0.0)
    resistance: Value = field("resistance", 1.0, 0)
    tau_adaptation: Value = field("tau_adaptation", 100.0, TINY)
    coupling: Value = field("coupling", 0.5)
    adaptation: Value = field("adaptation", 0.5)
    reset: Value | Subtract | None = reset_field("subtract")
    is_linear: ClassVar[bool] = True
    is_coupled: ClassVar[bool] = True
    spikes: ClassVar[bool] = True

    of = classmethod(population_of)

    def __check_init__(self) -> None:
        check_above("threshold", self.threshold, self.rest)

    def start(self) -> Variables:
        """Rest, without adaptation."""
        return {"v": self.rest, "w": 0 * self.rest}

    def derivative(self, y: Variables, current: Number) -> Variables:
        """Per ms, of a current in pA."""
        return {
            "v": (self.rest - y["v"] + self.resistance * (current - y["w"])) / self.tau,
            "w": (self.coupling * (y["v"] - self.rest) - y["w"]) / self.tau_adaptation,
        }

    def margin(self, y: Variables) -> Number:
        """Distance to the threshold, relative to that of rest."""
        return (y["v"] - self.threshold) / (self.threshold - self.rest)

    def after(self, y: Variables, z: Number) -> Variables:
        """What spikes `z` leave behind."""
        v = reset_to(y["v"], z, self.reset, self.threshold - self.rest)
        return {"v": v, "w": y["w"] + self.adaptation * z}
