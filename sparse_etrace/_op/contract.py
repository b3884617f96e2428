"""The contract of an op."""

import abc
import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PyTree, UInt32

from .._kernels.windows import window_by_blocks
from .active import Active


class Uses(NamedTuple):
    """Where the weights of one leaf of `v` act; one entry for each use of a weight.

    Attributes:
        pre: sending unit, as a number in the flattened input without batch axes; None for a leaf that takes no input.
        post: receiving unit, likewise in the output.
        slot: entry of the flattened leaf.
    """

    pre: np.ndarray | None
    post: np.ndarray
    slot: np.ndarray


class PartedError(NotImplementedError):
    """What a layer on several devices does not say, though on one device it does."""


class ETraceOp(eqx.Module):
    """What is connected to what, and how: the abstract base of all ops.

    `y[post] = sum over synapses s = (pre -> post) of v[s] * x[pre]`, with the weights on the synapses `v = phi(theta)`.
    A subclass gives `xw_to_y` and `yw_to_w`; `check_op` says whether they fit together. `x`, `y` and a trace `e` carry
    the same leading batch axes, `v` none; `e` has the structure of `v`, with further axes after the batch axes where
    one weight serves at several positions, or a longer axis in the place of one of length one.

    Attributes:
        per_unit: keys of `v` whose slot is the target unit itself (a bias). Every learner keeps their exact trace.
        is_diagonal: True for an op without input, one weight per unit.
        takes_active: True if `xw_to_y` takes `Active` units too; else it gets their frame, as all other methods do.
        input_ndim: rank of `x` without batch axes.
        carried_ndim: how many of its last axes `xw_to_y` carries along, each entry of them by the same weights.

    Example:
        >>> class Gain(ETraceOp):
        ...     def xw_to_y(self, x, w):
        ...         return x * w
        ...     def yw_to_w(self, y, e):
        ...         return y * e
    """

    per_unit: ClassVar[tuple[str, ...]] = ()
    is_diagonal: ClassVar[bool] = False
    takes_active: ClassVar[bool] = False

    @property
    def input_ndim(self) -> int:
        """Rank of `x` without batch axes."""
        return 1

    @property
    def carried_ndim(self) -> int:
        """How many of the last axes of `x` and `y` are carried along, each entry of them by the same weights."""
        return 0

    def read(self, x: Any) -> Any:
        """What `xw_to_y` gets of what a call is given: `x` itself, unless an op does something to it first."""
        if x is None or (self.takes_active and isinstance(x, Active)):
            return x
        return jnp.asarray(x)

    def place(self, ndim: int) -> jax.sharding.Sharding | None:
        """Where an array of so many axes lies whose last are those of the weights; None: on one device."""
        return None

    def entries(self, shape: tuple[int, ...]) -> int:
        """How many entries of an array of so many slots are of weights; all, unless an op fills arrays up."""
        return math.prod(shape)

    def phi(self, theta: PyTree[Array]) -> PyTree[Array]:
        """Weights on the synapses, `v = phi(theta)`; the identity unless overridden."""
        return theta

    def param(self, key: object, *args: Any, **kwargs: Any) -> Any:
        """An `ETraceParam` of this op, with values to start from; each op of the library has its own.

        Raises:
            NotImplementedError: the op does not say.
        """
        raise NotImplementedError(
            f"op: {type(self).__name__} does not say what its parameter starts from. Give it a method `param`, or "
            "write ETraceParam(value, op)."
        )

    @abc.abstractmethod
    def xw_to_y(self, x: PyTree, w: PyTree[Array]) -> Array:
        """Postsynaptic input `y` from presynaptic `x` and the weights on the synapses `w = phi(theta)`."""

    @abc.abstractmethod
    def yw_to_w(self, y: Array, e: PyTree[Array]) -> PyTree[Array]:
        """Spread a post-shaped `y` over the slots of a trace `e`, and multiply."""

    def xy_to_dw(self, x: PyTree, y: Array, v: PyTree[Array]) -> PyTree[Array]:
        """Sampled product: what each slot of a trace gains from `x` and a post-shaped `y`.

        `dw[s] = x[pre] * y[post]`. The default is the vector-Jacobian product of `xw_to_y` in `v`, per batch element.
        """

        def one(x: Array, y: Array) -> PyTree[Array]:
            return jax.vjp(lambda v: self.xw_to_y(x, v), v)[1](y)[0]

        for _ in range(x.ndim - self.input_ndim):
            one = jax.vmap(one)
        return one(x, y)

    def sum_dw(self, x: Array, y: Array, v: PyTree[Array]) -> PyTree[Array]:
        """Sum of `xy_to_dw` over a leading time axis of `x` and `y`, the batch axes kept."""
        if len(y) == 1:
            return self.xy_to_dw(x[0], y[0], v)

        def add(total: PyTree[Array], xy: tuple[Array, Array]) -> tuple[PyTree[Array], None]:
            return jax.tree.map(jnp.add, total, self.xy_to_dw(*xy, v)), None

        return jax.lax.scan(add, self.xy_to_dw(x[0], y[0], v), (x[1:], y[1:]))[0]

    def total_dw(self, x: PyTree, y: Array, v: PyTree[Array]) -> PyTree[Array]:
        """Sum of `xy_to_dw` over all leading axes and positions: the vector-Jacobian product of `xw_to_y` in `v`."""
        return jax.vjp(lambda v: self.xw_to_y(x, v), v)[1](y)[0]

    def halfway(self, x: PyTree, v: PyTree[Array]) -> Array | None:
        """What `xw_to_y` makes on its way that `window` would make again, so that a step keeps it; None: nothing."""
        return None

    def synapses(self, v: PyTree, x: PyTree) -> list[Uses]:
        """Where the weights act, for learners that follow influences from unit to unit through the op.

        Args:
            v: weights on the synapses, or their shapes.
            x: shape and type of the input without batch axes.

        Returns:
            A `Uses` for each leaf of `v`, in `jax.tree` order.

        Raises:
            NotImplementedError: the op does not say.
        """
        raise NotImplementedError(
            f"op: {type(self).__name__} does not say which unit each weight leads from and to. Give it a method "
            "`synapses`, or use se.RTRL(), which does not ask."
        )

    def window(
        self,
        v: PyTree[Array],
        trace: PyTree[Array],
        carried: Inexact[Array, "vars vars *y"] | None,
        entering: Inexact[Array, "steps vars *y"] | None,
        signal: Inexact[Array, "vars *y"] | None,
        direct: Inexact[Array, "steps *y"] | None,
        x: PyTree,
        noise: UInt32[Array, ""] | None = None,
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """Several steps of a trace and their gradient at once.

        `eps'[a] = sum_b carried[a,b] eps[b] + sum_k entering[k,a] x[k]`, `dv = signal . eps + sum_k direct[k] x[k]`.

        Args:
            v: weights on the synapses.
            trace: eligibility traces, structured like `v` with a leading axis of hidden variables; None: not traced.
                They may be stored in a narrower type than `v`.
            carried, entering: coefficients of the new trace on post-shaped units; None: it is not wanted.
            signal, direct: coefficients of the gradient on post-shaped units; None: it is not wanted.
            x: presynaptic input, with a leading time axis; a pair with what is kept `halfway`, if anything is.
            noise: other bits in each window, by which a trace in half precision is rounded without bias; None: to the
                nearest.

        Returns:
            The new trace in the type of the old one, and the gradient shaped like `v`; None where not wanted.
        """
        return window_by_blocks(self, v, trace, carried, entering, signal, direct, x, noise)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(is_diagonal={self.is_diagonal})"
