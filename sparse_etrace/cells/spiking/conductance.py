"""Synapses that open a conductance."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from .constants import Number, Value, Variables, field


class Conductance(eqx.Module):
    """A conductance with a reversal potential, `I = s (reversal - v)`, with `s` of a current synapse, in nS.

    With magnesium it is that of NMDA receptors, `I = s (reversal - v) / (1 + magnesium / 3.57 exp(-0.062 v))`.

    Args:
        synapse: how the conductance follows what arrives; `Delta` cannot be one.
        reversal: mV.
        magnesium: concentration outside of the cell, mM; 0 for receptors that it does not block.

    Raises:
        TypeError: `synapse` is no synapse with a current.
        ValueError: `magnesium` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> inhibition = spiking.Conductance(spiking.Exponential(tau=5.0), reversal=-80.0)
        >>> neuron = spiking.LIF(rest=-70.0, threshold=-50.0, resistance=0.1)
        >>> cell = spiking.Population(1, neuron, synapses=inhibition)
        >>> -72 < float(cell(cell.init_state(), jnp.array([30.0]))[0].neuron['v'][0]) < -71
        True

    Reference:
        Destexhe, Mainen and Sejnowski 1994, Journal of Computational Neuroscience 1:195; Jahr and Stevens 1990,
        Journal of Neuroscience 10:3178, of the block by magnesium.
    """

    synapse: Any
    reversal: Value = field("reversal", 0.0)
    magnesium: Value = field("magnesium", 0.0, 0)
    is_linear: ClassVar[bool] = False
    has_current: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if not getattr(self.synapse, "has_current", False):
            raise TypeError(f"synapse: expected a synapse with a current, got {type(self.synapse).__name__}.")

    @property
    def variables(self) -> tuple[str, ...]:
        """Those of the synapse."""
        return self.synapse.variables

    def arrive(self, v: Number, s: Variables, y: Number) -> tuple[Number, Variables, PyTree]:
        """Potential, filter and conductance of the step after what arrived, `y`, in nS."""
        return self.synapse.arrive(v, s, y)

    def current(self, s: Variables, held: PyTree, v: Number) -> Number:
        """`I`, pA."""
        open_ = 1 / (1 + self.magnesium / 3.57 * jnp.exp(-0.062 * v))
        return self.synapse.current(s, held, v) * (self.reversal - v) * open_

    def derivative(self, s: Variables) -> Variables:
        """Per ms."""
        return self.synapse.derivative(s)
