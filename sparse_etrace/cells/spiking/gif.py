"""Generalised integrate-and-fire neurons."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .constants import TINY, Number, Subtract, Value, Variables, check_above, field, reset_field, reset_to
from .population import population_of


class GIF(eqx.Module):
    """Integrate-and-fire with two internal currents and a moving threshold; a spike at `v >= theta`.

    `tau dv/dt = rest - v + resistance (I + i1 + i2)`, `tau_k dik/dt = -ik`,
    `tau_threshold dtheta/dt = threshold - theta + coupling (v - rest)`; at a spike `ik <- keep_k ik + jump_k` and
    `theta <- max(theta + threshold_jump, threshold_floor)`.

    Args:
        tau: membrane time constant, ms.
        threshold: where `theta` rests, mV, above `rest`.
        rest: mV.
        resistance: GΩ, so that a current in pA gives mV.
        tau_1, tau_2: time constants of the internal currents, ms.
        jump_1, jump_2: what a spike adds to them, pA.
        keep_1, keep_2: what a spike leaves of them, from 0 to 1.
        tau_threshold: time constant of `theta`, ms.
        coupling: of `theta` to the potential, no unit.
        threshold_jump: what a spike adds to `theta`, mV.
        threshold_floor: the least `theta` after a spike, mV.
        reset: the potential after a spike, mV, a hard reset; `"subtract"` for `threshold - rest` less, a soft one;
            None for none.

    Each is a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained. With the published
    constants of other authors, `tau_k = 1 / k_k`, `tau_threshold = 1 / b` and `coupling = a / b`.

    Raises:
        ValueError: a constant is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.GIF(jump_2=-0.5))
        >>> float(cell(cell.init_state(), jnp.array([100.0]))[0].neuron['i2'][0])
        -0.5

    Reference:
        Mihalas and Niebur 2009, Neural Computation 21:704.
    """

    tau: Value = field("tau", 20.0, TINY)
    threshold: Value = field("threshold", 1.0)
    rest: Value = field("rest", 0.0)
    resistance: Value = field("resistance", 1.0, 0)
    tau_1: Value = field("tau_1", 5.0, TINY)
    tau_2: Value = field("tau_2", 50.0, TINY)
    jump_1: Value = field("jump_1", 0.0)
    jump_2: Value = field("jump_2", -0.1)
    keep_1: Value = field("keep_1", 1.0, 0, 1)
    keep_2: Value = field("keep_2", 1.0, 0, 1)
    tau_threshold: Value = field("tau_threshold", 100.0, TINY)
    coupling: Value = field("coupling", 0.0)
    threshold_jump: Value = field("threshold_jump", 0.0)
    threshold_floor: Value = field("threshold_floor", -np.inf)
    reset: Value | Subtract | None = reset_field("subtract")
    is_linear: ClassVar[bool] = True
    is_coupled: ClassVar[bool] = True
    spikes: ClassVar[bool] = True

    of = classmethod(population_of)

    def __check_init__(self) -> None:
        check_above("threshold", self.threshold, self.rest)

    def start(self) -> Variables:
        """Rest, without internal currents."""
        return {"i1": 0 * self.rest, "i2": 0 * self.rest, "theta": self.threshold, "v": self.rest}

    def derivative(self, y: Variables, current: Number) -> Variables:
        """Per ms, of a current in pA."""
        return {
            "i1": -y["i1"] / self.tau_1,
            "i2": -y["i2"] / self.tau_2,
            "theta": (self.threshold - y["theta"] + self.coupling * (y["v"] - self.rest)) / self.tau_threshold,
            "v": (self.rest - y["v"] + self.resistance * (current + y["i1"] + y["i2"])) / self.tau,
        }

    def margin(self, y: Variables) -> Number:
        """Distance to the threshold, relative to that of rest from where the threshold rests."""
        return (y["v"] - y["theta"]) / (self.threshold - self.rest)

    def after(self, y: Variables, z: Number) -> Variables:
        """What spikes `z` leave behind."""
        raised = jnp.maximum(y["theta"] + self.threshold_jump, self.threshold_floor)
        return {
            "i1": (1 - z) * y["i1"] + z * (self.keep_1 * y["i1"] + self.jump_1),
            "i2": (1 - z) * y["i2"] + z * (self.keep_2 * y["i2"] + self.jump_2),
            "theta": (1 - z) * y["theta"] + z * raised,
            "v": reset_to(y["v"], z, self.reset, self.threshold - self.rest),
        }
