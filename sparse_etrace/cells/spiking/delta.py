"""Synapses that act at once."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import PyTree

from .constants import Number, Variables


class Delta(eqx.Module):
    """What arrives steps the membrane potential at the begin of the step, `v <- v + y`, `y` in mV.

    A neuron that is refractory does not see it.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(1, spiking.LIF(tau=10.0), synapses=spiking.Delta())
        >>> round(float(cell(cell.init_state(), jnp.array([0.5]))[0].neuron['v'][0]), 4)  # 0.5 exp(-1 / 10)
        0.4524

    Reference:
        Stein 1965, Biophysical Journal 5:173.
    """

    variables: ClassVar[tuple[str, ...]] = ()
    is_linear: ClassVar[bool] = True
    has_current: ClassVar[bool] = False

    def arrive(self, v: Number, s: Variables, y: Number) -> tuple[Number, Variables, PyTree]:
        """Potential, filter and current of the step after what arrived, `y`, in mV."""
        return v + y, s, None

    def current(self, s: Variables, held: PyTree, v: Number) -> Number:
        """None."""
        return 0.0

    def derivative(self, s: Variables) -> Variables:
        """Nothing moves."""
        return {}
