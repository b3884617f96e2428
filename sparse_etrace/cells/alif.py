"""Adaptive leaky integrate-and-fire neurons."""

from collections.abc import Callable
from dataclasses import InitVar
from typing import NamedTuple, SupportsIndex

import equinox as eqx
from jaxtyping import Array, PyTree

from .._arrays import blank
from .._op.delays import Ring, sends, sent
from .._op.param import ETraceParam
from . import cell


class ALIFState(NamedTuple):
    """Membrane potential after the reset, adaptation, spikes (a ring where `rec` has delays), and steps of silence."""

    v: Array
    b: Array
    z: Array | Ring
    wait: Array | None = None


class ALIF(eqx.Module):
    """Integrate-and-fire neurons whose threshold rises with their own spikes.

    `u_t = a v_{t-1} + (1 - a) (inp(x_t) + rec(z_{t-1}))`, `z_t = [u_t >= theta + beta b_{t-1}]`,
    `b_t = rho b_{t-1} + (1 - rho) z_t`, `v_t = u_t - r z_t`; the output is `z_t`.

    Args:
        units: number of neurons, or their shape.
        inp: input parameter, with any op; None for a layer without input, whose `x` is None.
        rec: recurrent parameter, with any op; None for a layer without recurrence.
        decay: `a` from 0 to 1: a number, an array, or an `ElemWiseParam`, which is trained.
        threshold: `theta > 0`, in the units of the potential; likewise.
        adaptation_decay: `rho` from 0 to 1; likewise.
        adaptation: `beta >= 0`, in the units of the potential; likewise.
        spike: the step function with its surrogate derivative, of `(u - theta - beta b) / theta`.
        reset: `r >= 0`, what a spike takes from the potential; likewise; `theta` unless given.
        reset_gradient: whether derivatives pass through the spike that resets; False for e-prop's eligibility, where
            `dv_t/dv_{t-1} = a`.
        refractory: whole steps after a spike in which a unit does not spike, a number or an array of them; its
            potential goes on.

    Raises:
        ValueError: a constant is out of range.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.ALIF(3, se.ETraceParam({'weight': jnp.full((2, 3), 9.0)}, se.MatMulOp()))
        >>> cell(cell.init_state(4), jnp.ones((4, 2)))[1].shape
        (4, 3)

    Reference:
        Bellec et al. 2018, Advances in Neural Information Processing Systems 31 (arXiv 1803.09574).
    """

    units: InitVar[cell.Units]
    inp: ETraceParam | None
    rec: ETraceParam | None = None
    decay: cell.Value = cell.field("decay", 0.9, 0, 1)
    threshold: cell.Value = cell.field("threshold", 1.0, 1e-12)
    adaptation_decay: cell.Value = cell.field("adaptation_decay", 0.98, 0, 1)
    adaptation: cell.Value = cell.field("adaptation", 1.0, 0)
    spike: Callable[[Array], Array] = eqx.field(default=None, converter=cell.spike_or_triangle)
    reset: cell.Value = cell.field("reset", None, 0)
    reset_gradient: bool = eqx.field(static=True, default=True, converter=bool)
    refractory: cell.Value = 0
    shape: tuple[int, ...] = eqx.field(static=True, init=False)

    def __post_init__(self, units: cell.Units) -> None:
        self.shape = cell.unit_shape(units)
        self.refractory = cell.silent_steps(self.refractory, self.shape)

    __check_init__ = cell.check_fit
    of = classmethod(cell.cell_of)
    from_time_constants = classmethod(cell.cell_from_time_constants)

    def init_state(self, *batch: SupportsIndex) -> ALIFState:
        """Rest, no adaptation, no spikes; `batch` are the sizes of the leading batch axes."""
        v, b, z = (blank((*batch, *self.shape)) for _ in range(3))
        return ALIFState(v, b, sends(z, self.rec), cell.awake(v.shape, self.refractory))

    def __call__(self, state: ALIFState, x: PyTree) -> tuple[ALIFState, Array]:
        constants = self.decay, self.threshold, self.adaptation_decay, self.adaptation
        decay, threshold, rho, adaptation = cell.on_units(state.v, *constants)
        (reset,) = [threshold] if self.reset is None else cell.on_units(state.v, self.reset)
        u = decay * state.v + (1 - decay) * cell.current(self.inp, x, self.rec, state.z)
        z = self.spike((u - threshold - adaptation * state.b) / threshold)
        z, wait = cell.silenced(z, state.wait, self.refractory)
        b = rho * state.b + (1 - rho) * z
        return ALIFState(cell.after_reset(u, z, reset, self.reset_gradient), b, sent(state.z, z), wait), z
