"""Adaptive exponential integrate-and-fire neurons."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from .constants import TINY, Number, Value, Variables, check_above, field
from .population import population_of


class AdEx(eqx.Module):
    """Integrate-and-fire with an exponential upswing and adaptation; a spike at `v >= peak`.

    `tau dv/dt = rest - v + slope exp((v - threshold) / slope) + resistance (I - w)`,
    `tau_adaptation dw/dt = coupling (v - rest) - w`; at a spike `v <- reset`, `w <- w + adaptation`. The potential is
    cut at `peak`, above which no derivative passes.

    Args:
        tau: membrane time constant, ms.
        threshold: where the upswing begins, mV.
        rest: mV.
        resistance: GΩ, so that a current in pA gives mV.
        slope: sharpness of the upswing, mV.
        tau_adaptation: time constant of the adaptation, ms.
        coupling: of the adaptation to the potential, nS.
        adaptation: what a spike adds to `w`, pA.
        reset: the potential after a spike, mV.
        peak: mV, above `rest`.

    Each is a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained. The defaults are
    those of the paper.

    Raises:
        ValueError: a constant is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.AdEx(), dt=0.1)
        >>> z = jax.lax.scan(lambda s, x: cell(s, x), cell.init_state(), jnp.full((2000, 1), 1000.0))[1]
        >>> int(z.sum())  # spikes in 200 ms
        8

    Reference:
        Brette and Gerstner 2005, Journal of Neurophysiology 94:3637.
    """

    tau: Value = field("tau", 9.37, TINY)
    threshold: Value = field("threshold", -50.4)
    rest: Value = field("rest", -70.6)
    resistance: Value = field("resistance", 1 / 30, 0)
    slope: Value = field("slope", 2.0, TINY)
    tau_adaptation: Value = field("tau_adaptation", 144.0, TINY)
    coupling: Value = field("coupling", 4.0)
    adaptation: Value = field("adaptation", 80.5)
    reset: Value = field("reset", -70.6)
    peak: Value = field("peak", 20.0)
    is_linear: ClassVar[bool] = False
    spikes: ClassVar[bool] = True

    of = classmethod(population_of)

    def __check_init__(self) -> None:
        check_above("peak", self.peak, self.rest)

    def start(self) -> Variables:
        """`v = rest`, without adaptation."""
        return {"v": self.rest, "w": 0 * self.rest}

    def derivative(self, y: Variables, current: Number) -> Variables:
        """Per ms, of a current in pA."""
        v = jnp.minimum(y["v"], self.peak)
        upswing = self.slope * jnp.exp((v - self.threshold) / self.slope)
        return {
            "v": (self.rest - v + upswing + self.resistance * (current - y["w"])) / self.tau,
            "w": (self.coupling * (v - self.rest) - y["w"]) / self.tau_adaptation,
        }

    def margin(self, y: Variables) -> Number:
        """Distance to the peak, relative to that of rest."""
        return (jnp.minimum(y["v"], self.peak) - self.peak) / (self.peak - self.rest)

    def after(self, y: Variables, z: Number) -> Variables:
        """What spikes `z` leave behind."""
        v = (1 - z) * jnp.minimum(y["v"], self.peak) + z * self.reset
        return {"v": v, "w": y["w"] + self.adaptation * z}
