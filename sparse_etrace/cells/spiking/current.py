"""Current that is held over a step."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import PyTree

from .constants import Number, Variables


class Current(eqx.Module):
    """No synapse: what arrives is the current of this step, `I = y`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sparse_etrace.cells import spiking
        >>> cell = spiking.Population(3, spiking.LIF(), synapses=spiking.Current())
        >>> cell(cell.init_state(), jnp.full(3, 100.0))[1].tolist()
        [1.0, 1.0, 1.0]

    Reference:
        Lapicque 1907, Journal de physiologie et de pathologie générale 9:620.
    """

    variables: ClassVar[tuple[str, ...]] = ()
    is_linear: ClassVar[bool] = True
    has_current: ClassVar[bool] = True

    def arrive(self, v: Number, s: Variables, y: Number) -> tuple[Number, Variables, PyTree]:
        """Potential, filter and current of the step after what arrived, `y`, in pA."""
        return v, s, y

    def current(self, s: Variables, held: PyTree, v: Number) -> Number:
        """`I`, pA."""
        return held

    def derivative(self, s: Variables) -> Variables:
        """Nothing moves."""
        return {}
