"""Synapses that act at once."""

from typing import Any, ClassVar

import equinox as eqx

from .constants import Variables


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

    def arrive(self, v: Any, s: Variables, y: Any) -> tuple[Any, Variables, Any]:
        """Potential, filter and current of the step after what arrived, `y`, in mV."""
        return v + y, s, None

    def current(self, s: Variables, held: Any, v: Any) -> Any:
        """None."""
        return 0.0

    def derivative(self, s: Variables) -> Variables:
        """Nothing moves."""
        return {}
