"""Leaky integrate-and-fire neurons."""

from collections.abc import Callable
from typing import NamedTuple, SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .. import surrogate
from .._arrays import blank
from .._op.delays import Ring, sends, sent
from .._op.param import ETraceParam, Fixed
from .cell import (
    Constant,
    Units,
    after_reset,
    awake,
    cell_from_time_constants,
    cell_of,
    constant,
    current,
    on_units,
    silenced,
    silent_steps,
    unit_shape,
)


class LIFState(NamedTuple):
    """Membrane potential after the reset, spikes (a ring of them where `rec` has delays), and steps of silence."""

    v: Array
    z: Array | Ring
    wait: Array | None = None


class LIF(eqx.Module):
    """Leaky integrate-and-fire neurons with a soft reset; the spike is read before it.

    `u_t = a v_{t-1} + (1 - a) (inp(x_t) + rec(z_{t-1}))`, `z_t = [u_t >= theta]`, `v_t = u_t - r z_t`; the output
    is `z_t`.

    Args:
        units: number of neurons, or their shape.
        inp: input parameter, with any op; None for a layer without input, whose `x` is None.
        rec: recurrent parameter, with any op; None for a layer without recurrence.
        decay: `a` from 0 to 1, `exp(-dt / tau)`: a number, an array, or an `ElemWiseParam`, which is trained.
        threshold: `theta > 0`, in the units of the potential; likewise.
        spike: the step function with its surrogate derivative, of the potential relative to threshold `u / theta - 1`.
        reset: `r >= 0`, what a spike takes from the potential; likewise; `theta` unless given.
        reset_gradient: whether derivatives pass through the spike that resets; False for e-prop's eligibility, where
            `dv_t/dv_{t-1} = a`.
        refractory: whole steps after a spike in which a unit does not spike, a number or an array of them; its
            potential goes on.

    Raises:
        ValueError: `decay`, `threshold` or `reset` is out of range.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LIF(3, se.ETraceParam({'weight': jnp.full((2, 3), 9.0)}, se.MatMulOp()), decay=0.9)
        >>> cell(cell.init_state(), jnp.ones(2))[1].tolist()
        [1.0, 1.0, 1.0]

    Reference:
        Neftci, Mostafa and Zenke 2019, IEEE Signal Processing Magazine 36:51.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    inp: ETraceParam | None
    rec: ETraceParam | None
    decay: Constant
    threshold: Constant
    spike: Callable[[Array], Array]
    reset: Constant | None
    reset_gradient: bool = eqx.field(static=True)
    refractory: Fixed | None

    def __init__(
        self,
        units: Units,
        inp: ETraceParam | None,
        rec: ETraceParam | None = None,
        decay: object = 0.9,
        threshold: object = 1.0,
        spike: Callable[[Array], Array] | None = None,
        reset: object = None,
        reset_gradient: object = True,
        refractory: object = 0,
    ):
        self.shape, self.inp, self.rec = unit_shape(units), inp, rec
        self.decay = constant(decay, "decay", 0, 1, self.shape)
        self.threshold = constant(threshold, "threshold", 1e-12, jnp.inf, self.shape)
        self.spike = surrogate.triangle() if spike is None else spike
        self.reset = None if reset is None else constant(reset, "reset", 0, jnp.inf, self.shape)
        self.reset_gradient, self.refractory = bool(reset_gradient), silent_steps(refractory, self.shape)

    of = classmethod(cell_of)
    from_time_constants = classmethod(cell_from_time_constants)

    def init_state(self, *batch: SupportsIndex) -> LIFState:
        """Rest, no spikes; `batch` are the sizes of the leading batch axes."""
        v, z = (blank((*batch, *self.shape)) for _ in range(2))
        return LIFState(v, sends(z, self.rec), awake(v.shape, self.refractory))

    def __call__(self, state: LIFState, x: PyTree) -> tuple[LIFState, Array]:
        decay, threshold = on_units(state.v, self.decay, self.threshold)
        (reset,) = [threshold] if self.reset is None else on_units(state.v, self.reset)
        u = decay * state.v + (1 - decay) * current(self.inp, x, self.rec, state.z)
        z = self.spike(u / threshold - 1)
        z, wait = silenced(z, state.wait, self.refractory)
        return LIFState(after_reset(u, z, reset, self.reset_gradient), sent(state.z, z), wait), z
