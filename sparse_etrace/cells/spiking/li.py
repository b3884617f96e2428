"""Leaky integrators without spikes."""

from typing import ClassVar

import equinox as eqx

from .constants import TINY, Number, Value, Variables, field
from .population import population_of


class LI(eqx.Module):
    """A leaky readout, `tau dv/dt = rest - v + resistance I`; the output is `v`.

    `LI.of(10, inputs, key=key)` makes ten; there is no recurrence.

    Args:
        tau: time constant, ms.
        rest: mV.
        resistance: GΩ, so that a current in pA gives mV.

    Each is a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained.

    Raises:
        ValueError: `tau` or `resistance` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> readout = spiking.LI.of(2, inputs=50, key=jax.random.key(0), tau=30.0)
        >>> readout(readout.init_state(), jnp.zeros(50))[1].tolist()
        [0.0, 0.0]

    Reference:
        Bellec et al. 2020, Nature Communications 11:3625.
    """

    tau: Value = field("tau", 20.0, TINY)
    rest: Value = field("rest", 0.0)
    resistance: Value = field("resistance", 1.0, 0)
    is_linear: ClassVar[bool] = True
    is_coupled: ClassVar[bool] = False
    spikes: ClassVar[bool] = False

    of = classmethod(population_of)

    def start(self) -> Variables:
        """Rest."""
        return {"v": self.rest}

    def derivative(self, y: Variables, current: Number) -> Variables:
        """Per ms, of a current in pA."""
        return {"v": (self.rest - y["v"] + self.resistance * current) / self.tau}
