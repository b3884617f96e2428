"""Adaptive leaky integrate-and-fire neurons."""

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

    shape: tuple[int, ...] = eqx.field(static=True)
    inp: ETraceParam | None
    rec: ETraceParam | None
    decay: Constant
    threshold: Constant
    adaptation_decay: Constant
    adaptation: Constant
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
        adaptation_decay: object = 0.98,
        adaptation: object = 1.0,
        spike: Callable[[Array], Array] | None = None,
        reset: object = None,
        reset_gradient: object = True,
        refractory: object = 0,
    ):
        self.shape, self.inp, self.rec = unit_shape(units), inp, rec
        self.decay = constant(decay, "decay", 0, 1, self.shape)
        self.threshold = constant(threshold, "threshold", 1e-12, jnp.inf, self.shape)
        self.adaptation_decay = constant(adaptation_decay, "adaptation_decay", 0, 1, self.shape)
        self.adaptation = constant(adaptation, "adaptation", 0, jnp.inf, self.shape)
        self.spike = surrogate.triangle() if spike is None else spike
        self.reset = None if reset is None else constant(reset, "reset", 0, jnp.inf, self.shape)
        self.reset_gradient, self.refractory = bool(reset_gradient), silent_steps(refractory, self.shape)

    of = classmethod(cell_of)
    from_time_constants = classmethod(cell_from_time_constants)

    def init_state(self, *batch: SupportsIndex) -> ALIFState:
        """Rest, no adaptation, no spikes; `batch` are the sizes of the leading batch axes."""
        v, b, z = (blank((*batch, *self.shape)) for _ in range(3))
        return ALIFState(v, b, sends(z, self.rec), awake(v.shape, self.refractory))

    def __call__(self, state: ALIFState, x: PyTree) -> tuple[ALIFState, Array]:
        constants = self.decay, self.threshold, self.adaptation_decay, self.adaptation
        decay, threshold, rho, adaptation = on_units(state.v, *constants)
        (reset,) = [threshold] if self.reset is None else on_units(state.v, self.reset)
        u = decay * state.v + (1 - decay) * current(self.inp, x, self.rec, state.z)
        z = self.spike((u - threshold - adaptation * state.b) / threshold)
        z, wait = silenced(z, state.wait, self.refractory)
        b = rho * state.b + (1 - rho) * z
        return ALIFState(after_reset(u, z, reset, self.reset_gradient), b, sent(state.z, z), wait), z
