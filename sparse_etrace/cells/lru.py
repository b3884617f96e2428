"""Linear recurrent units."""

import math
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from .._arrays import blank
from .._numbers import real
from .._op import ElemWiseParam
from .._op.initial import check_key, size
from .._op.param import ETraceParam, Fixed
from .cell import Constant, Units, constant, current, fits, on_units, onto, unit_shape


class LRUState(NamedTuple):
    """Real and imaginary part of the activity."""

    re: Array
    im: Array


class LRU(eqx.Module):
    """Linear recurrent units, `h_t = lambda h_{t-1} + gamma inp(x_t)`, with a complex `lambda` for each.

    The output is `(Re h_t, Im h_t)`, side by side on the last axis, of which an op with real weights makes `Re(C h_t)`.
    No op acts on old state, so that D-RTRL is exact for one layer.

    Args:
        units: number of units, or their shape.
        inp: input parameter, with any op; its weights may be complex.
        eigenvalue: `lambda`, at most 1 in modulus: a number, an array of the shape of the units (neither is trained),
            or an `ElemWiseParam`, which is; `LRU.ring` makes one.
        scale: `gamma`, likewise; None for `sqrt(1 - |lambda|^2)`, which gives units of all `lambda` the same variance.

    Raises:
        ValueError: `eigenvalue` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> inp = se.ETraceParam({'weight': jnp.ones((2, 3), complex)}, se.MatMulOp())
        >>> cell = se.cells.LRU(3, inp, se.cells.LRU.ring(jax.random.key(0), 3, 0.8, 0.99))
        >>> cell(cell.init_state(4), jnp.ones((4, 2)))[1].shape
        (4, 6)

    Reference:
        Orvieto et al. 2023, International Conference on Machine Learning (arXiv 2303.06349).
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    inp: ETraceParam
    eigenvalue: Constant
    scale: Constant | None

    def __init__(self, units: Units, inp: ETraceParam, eigenvalue: object, scale: object = None):
        self.shape, self.inp = unit_shape(units), inp
        self.eigenvalue = _eigenvalue(eigenvalue, self.shape)
        self.scale = None if scale is None else constant(scale, "scale", -math.inf, math.inf, self.shape)

    @classmethod
    def of(
        cls,
        units: Any,
        inputs: object,
        *,
        key: object,
        bias: object = False,
        dtype: DTypeLike = complex,
        eigenvalue: object = None,
        scale: object = None,
    ) -> "LRU":
        """A cell with parameters to start from.

        Args:
            units: number of units.
            inputs: number of inputs, each connected to all units; or a `Graph` or `Connectivity` from inputs to units.
            key: where the weights, and the eigenvalues unless given, are drawn from.
            bias: whether the input parameter has a bias, of zeros.
            dtype: type of the input parameter, whose weights have a variance of one by the inputs of a unit.
            eigenvalue: `lambda`; `LRU.ring(key, units)` unless given.
            scale: `gamma`.

        Raises:
            TypeError: an argument is of another kind.
            ValueError: `inputs` leads to other units, or `eigenvalue` is out of range.

        Example:
            >>> import jax, sparse_etrace as se
            >>> se.cells.LRU.of(4, inputs=3, key=jax.random.key(0)).inp.value["weight"].dtype.name
            'complex64'
        """
        units = size("units", units)
        for_inp, for_ring = jax.random.split(check_key(key))
        inp = onto(units, "inputs", inputs, for_inp, bias=bias, dtype=dtype)
        return cls(units, inp, cls.ring(for_ring, units) if eigenvalue is None else eigenvalue, scale)

    @staticmethod
    def ring(
        key: Array,
        units: Units,
        low: SupportsFloat = 0.0,
        high: SupportsFloat = 1.0,
        phase: SupportsFloat = 2 * math.pi,
    ) -> ETraceParam:
        """An `eigenvalue` to train, `exp(-exp(nu) + i exp(theta))`: never unstable, at first uniform on a ring.

        Args:
            key: where the numbers come from.
            units: number of units, or their shape.
            low, high: radii of the ring, `0 <= low < high <= 1`.
            phase: largest angle in radians.

        Raises:
            ValueError: the radii are no ring in the unit circle, or `phase` is not positive.
        """
        low, high, phase = real("low", low), real("high", high), real("phase", phase)
        if not (0 <= low < high <= 1 and phase > 0):
            raise ValueError(
                f"low, high, phase: expected 0 <= low < high <= 1 and phase > 0, got {low}, {high} and {phase}."
            )
        area, angle = jax.random.uniform(key, (2, *unit_shape(units)), float, 1e-6)
        nu = jnp.log(-0.5 * jnp.log(low**2 + (high**2 - low**2) * area))
        return ElemWiseParam({"nu": nu, "theta": jnp.log(phase * angle)}, _within_circle)

    def init_state(self, *batch: SupportsIndex) -> LRUState:
        """Zero activity; `batch` are the sizes of the leading batch axes."""
        return LRUState(blank((*batch, *self.shape)), blank((*batch, *self.shape)))

    def __call__(self, state: LRUState, x: Array) -> tuple[LRUState, Array]:
        (eigenvalue,) = on_units(state.re, self.eigenvalue)
        if self.scale is None:
            power = jnp.real(eigenvalue) ** 2 + jnp.imag(eigenvalue) ** 2
            scale = jnp.sqrt(jnp.maximum(1 - power, jnp.finfo(power.dtype).eps))
        else:
            (scale,) = on_units(state.re, self.scale)
        h = eigenvalue * jax.lax.complex(*state) + scale * current(self.inp, x, None, state.re)
        return LRUState(h.real, h.imag), jnp.concatenate([h.real, h.imag], axis=-1)


def _eigenvalue(value: Any, units: tuple[int, ...]) -> Constant:
    is_given = isinstance(value, ETraceParam | Fixed)
    if not is_given and not isinstance(value, jax.core.Tracer) and not np.all(np.abs(np.asarray(value)) <= 1):
        raise ValueError(
            f"eigenvalue: expected numbers of modulus 1 at most, got {value}. To train it, give LRU.ring(key, units)."
        )
    fits("eigenvalue", value() if is_given else value, units)
    return value if is_given else Fixed(jnp.asarray(value, complex))


def _within_circle(w: dict[str, Array]) -> Array:
    return jnp.exp(jax.lax.complex(-jnp.exp(w["nu"]), jnp.exp(w["theta"])))
