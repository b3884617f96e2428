"""Izhikevich's neurons."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from .constants import Number, Value, Variables, field
from .population import population_of


class Izhikevich(eqx.Module):
    """`dv/dt = 0.04 v^2 + 5 v + 140 - u + I`, `du/dt = a (b v - u)`; at `v >= peak` a spike, `v <- c`, `u <- u + d`.

    The potential is cut at `peak`, above which no derivative passes.

    Args:
        a: rate of the recovery `u`, per ms.
        b: of the recovery by the potential, per ms.
        c: the potential after a spike, mV.
        d: what a spike adds to `u`, mV per ms.
        peak: mV.

    Each is a number, an array of the shape of the units, or an `ElemWiseParam`, which is trained. Currents are in mV
    per ms. The defaults spike regularly; the paper has the constants of other firing patterns.

    Raises:
        ValueError: a constant is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.Izhikevich(), dt=0.5)
        >>> z = jax.lax.scan(lambda s, x: cell(s, x), cell.init_state(), jnp.full((400, 1), 10.0))[1]
        >>> int(z.sum())  # spikes in 200 ms
        5

    Reference:
        Izhikevich 2003, IEEE Transactions on Neural Networks 14:1569.
    """

    a: Value = field("a", 0.02)
    b: Value = field("b", 0.2)
    c: Value = field("c", -65.0)
    d: Value = field("d", 8.0)
    peak: Value = field("peak", 30.0)
    is_linear: ClassVar[bool] = False
    spikes: ClassVar[bool] = True

    of = classmethod(population_of)

    def start(self) -> Variables:
        """`v = c`, `u = b c`."""
        return {"u": self.b * self.c, "v": self.c}

    def derivative(self, y: Variables, current: Number) -> Variables:
        """Per ms, of a current in mV per ms."""
        v = jnp.minimum(y["v"], self.peak)
        return {"u": self.a * (self.b * v - y["u"]), "v": 0.04 * v * v + 5 * v + 140 - y["u"] + current}

    def margin(self, y: Variables) -> Number:
        """Distance to the peak, relative to that of `c`."""
        return (jnp.minimum(y["v"], self.peak) - self.peak) / (self.peak - self.c)

    def after(self, y: Variables, z: Number) -> Variables:
        """What spikes `z` leave behind."""
        return {"u": y["u"] + self.d * z, "v": (1 - z) * jnp.minimum(y["v"], self.peak) + z * self.c}
