"""Any connectivity: the op at the centre, of which the others are special cases."""

from collections.abc import Callable
from typing import Any, ClassVar, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact, PyTree, Shaped

from .. import _kernels
from .._graph.connectivity import Connectivity, from_synapses, onto_synapses
from .._graph.graph import Graph
from .._graph.matrices import matrix_connectivity
from .._numbers import whole
from .._sums import sum_steps, widened
from .active import Active, as_frame
from .boundary import call_op
from .contract import ETraceOp, Uses
from .delays import Delays, History, Ring, delays_of, given_delays
from .initial import parameter
from .param import ETraceParam
from .weights import (
    applied,
    check_bias,
    check_input,
    check_shape,
    read_weights,
    window_of_weights,
    with_bias,
    with_gate,
)

Weights = dict[str, Array]
Traces = dict[str, Array | None]
Sent = Shaped[Array, "*batch_x"] | Active | Ring | History


class SpMatMulOp(ETraceOp):
    """Sparse layer, `y[post] = sum over s = (pre -> post) of f(w)[tie[s]] * x[pre] + bias[post]`.

    Executes on `{'weight': (num_synapses,), 'bias'?: (num_post,)}`. On a `Connectivity` or a `Graph` the weights are in
    canonical order; on a BCOO, BCSR, CSR or scipy matrix `M` they follow the order of that matrix's own data (that of
    `M.tocoo()` for scipy formats without one), so `{'weight': M.data}` fits.

    Args:
        connectivity: what is connected.
        weight_fn: elementwise function `f` of the weights; it never touches the bias.
        tie: `(num_synapses,)`, the entry of `weight` that each synapse uses; None for one weight each.
        axis: axis of `x` that holds the presynaptic units: -1, or -2 for `x` of shape `(..., num_pre, features)`, where
            every feature passes through the same synapses and has a trace of its own.
        bias: whether a `'bias'` is needed, and made by `param`; False takes values with and without.
        gated: called with `(x, gate)`, where `gate`, `(..., num_synapses)` in canonical order, multiplies what each
            synapse reads in this step, untrained: 0 for one that is not there, which sends nothing and whose trace goes
            with its target as that of a silent sender does.
        delay: steps from sending to being read, `(num_synapses,)` in the order of the weights, or one for all: whole
            numbers from 1 on, where 1 is what was sent in the step before, as ordinary recurrence reads it. The op is
            then called with a `Ring`. None takes `edge_attrs["delay"]` of a graph that has it, False takes none.
        train_delay: the delays are a parameter as well, `'delay'`, real numbers, of which a synapse reads two steps:
            `weight * (1 - frac)` of what was sent `floor(delay)` steps ago and `weight * frac` of the step before that.
            Whole steps stand in the op until `se.refloor` moves them.
        max_delay: the longest delay that a ring has room for; the longest of `delay` unless given.

    Raises:
        TypeError: `connectivity` is nothing that can be read as one.
        ValueError: `tie`, `axis`, `weight`, `bias`, `delay` or `x` has another shape, `tie` or `delay` is out of range,
            the bias is missing, or gates meet delays.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> conn = se.Connectivity.from_edges([0, 1], [1, 0], shape=(2, 2))
        >>> se.ETraceParam({'weight': jnp.array([3.0, 5.0])}, se.SpMatMulOp(conn))(jnp.array([1.0, 2.0])).tolist()
        [6.0, 5.0]
    """

    connectivity: Connectivity
    weight_fn: Callable[[Array], Array] | None
    slot: Array | None
    num_weights: int = eqx.field(static=True)
    axis: int = eqx.field(static=True)
    bias: bool = eqx.field(static=True)
    gated: bool = eqx.field(static=True)
    delays: Delays | None
    per_unit: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(
        self,
        connectivity: object,
        weight_fn: Callable[[Array], Array] | None = None,
        tie: Any = None,
        axis: SupportsIndex = -1,
        *,
        bias: object = False,
        gated: object = False,
        delay: object = None,
        train_delay: object = False,
        max_delay: SupportsIndex | None = None,
    ):
        axis = whole("axis", axis)
        if axis not in (-1, -2):
            raise ValueError(f"axis: expected -1 or -2, got {axis}. Move the presynaptic axis of x there.")
        slot, delay = None, given_delays(delay, connectivity)
        if isinstance(connectivity, Graph):
            connectivity = connectivity.connectivity
        if isinstance(connectivity, Connectivity):
            num_weights = connectivity.num_synapses
        else:
            num_weights = _num_data(connectivity)
            connectivity, slot = matrix_connectivity(connectivity)
        order, count = slot, num_weights
        if tie is not None:
            tie = np.asarray(tie)
            check_shape("tie", tie.shape, (num_weights,), "One index into value['weight'] for each synapse.")
            if tie.dtype.kind not in "iu" or tie.min(initial=0) < 0:
                raise ValueError(
                    f"tie: expected integers >= 0, got {tie.dtype} from {tie.min(initial=0)}. "
                    "Count the entries of value['weight'] from 0."
                )
            num_weights = int(tie.max(initial=-1)) + 1
            slot = tie if slot is None else tie[np.asarray(slot)]
        self.connectivity, self.weight_fn, self.num_weights, self.axis = connectivity, weight_fn, num_weights, axis
        self.slot = None if slot is None else jnp.array(slot, jnp.int32)
        self.bias, self.gated, self.delays = bool(bias), bool(gated), None
        if delay is not None and self.gated:
            raise ValueError(
                "delay: expected none with gated=True, got some. Give delay=False, or gates of the senders: push what "
                "they let through."
            )
        if delay is not None:
            self.delays = delays_of(connectivity, delay, count, order, max_delay, bool(train_delay))
        elif train_delay or max_delay is not None:
            raise ValueError("delay: expected delays with train_delay or max_delay, got none. Give initial ones.")

    def param(
        self, key: object = None, *, init: object = "fan_in", dtype: DTypeLike | None = None, **options: Any
    ) -> ETraceParam:
        """A parameter with weights to start from, and a bias of zeros where the op has one.

        Args:
            key: where the weights are drawn from; None if `init` gives them.
            init: `'fan_in'` draws normal weights with a variance of one by the number of synapses onto the target of
                each (the mean of it over the synapses of a tied weight); a function `init(key, shape, dtype)`, as of
                `jax.nn.initializers`; the graph that the op is on, whose weights are taken; or the weights. A weight
                function with an `inverse` makes these weights, any other what it makes of them.
            dtype: floating type; the default one, or that of given weights.
            **options: `grad` and `is_etrace` of `ETraceParam`.

        Raises:
            TypeError: `key` is no key.
            ValueError: `init` or `dtype` cannot be used.

        Example:
            >>> import jax, sparse_etrace as se
            >>> graph = se.from_edges([0, 1], [1, 0], [3.0, 5.0])
            >>> op = se.SpMatMulOp(graph, bias=True)
            >>> op.param(jax.random.key(0)).value["weight"].shape
            (2,)
            >>> op.param(init=graph).value["weight"].tolist()
            [5.0, 3.0]
        """
        conn = self.connectivity
        if isinstance(init, Graph):
            given = init.connectivity
            same = (given.pre is conn.pre and given.post is conn.post) or eqx.tree_equal(given, conn)
            if not same or self.slot is not None:
                raise ValueError(
                    f"init: expected the graph that the op is on, without ties, got another of shape "
                    f"{given.shape}. Give the weights, ({self.num_weights},), in the order of the op's."
                )
            init = init.weight
        each = 1 / jnp.diff(conn.post_ptr)[conn.post]
        if self.slot is not None:
            count = jnp.bincount(self.slot, length=self.num_weights)
            total = jnp.bincount(self.slot, each, length=self.num_weights)
            each = jnp.where(count == 0, 1, total / jnp.maximum(count, 1))
        start = None if self.delays is None else self.delays.start
        others = None if start is None else {"delay": start}
        return parameter(self, conn.num_post, key, (self.num_weights,), 1 / each, init, dtype, options, others)

    def ring(self, *batch: SupportsIndex, features: SupportsIndex | None = None, dtype: DTypeLike = float) -> Ring:
        """Silence, for an op with delays to read.

        Args:
            *batch: sizes of leading batch axes.
            features: how many there are after the units, with `axis=-2`.
            dtype: type of what is sent.

        Raises:
            ValueError: the op has no delays, or features do not fit its axis.

        Example:
            >>> import sparse_etrace as se
            >>> op = se.SpMatMulOp(se.from_edges([0, 1], [1, 0]), delay=[2, 4])
            >>> op.ring(5).shape, op.ring(5).depth
            ((5, 8), 4)
        """
        if self.delays is None:
            raise ValueError("delay: expected an op with delays, got one without. Give SpMatMulOp(graph, delay=steps).")
        if (features is None) != (self.axis == -1):
            raise ValueError(
                f"features: expected {'none' if self.axis == -1 else 'their number'} with axis={self.axis}, got "
                f"{features}. They are what axis=-2 carries along."
            )
        inner = *(() if features is None else (features,)), self.delays.depth, self.connectivity.num_pre
        return Ring(jnp.zeros((*batch, *inner), dtype), jnp.zeros((), jnp.int32), self.axis)

    @property
    def input_ndim(self) -> int:
        """Rank of `x` without batch axes."""
        return -self.axis

    @property
    def carried_ndim(self) -> int:
        """The features after the presynaptic units."""
        return -1 - self.axis

    @property
    def wires(self) -> Connectivity:
        """From what each synapse reads: senders, slots of a ring of them, or each synapse where that is gated."""
        if self.delays is not None:
            return self.delays.wires
        return from_synapses(self.connectivity) if self.gated else self.connectivity

    def read(self, x: Any) -> Array | Active | Ring:
        """`x`; the ring of an op with delays; or what each synapse sends of `(x, gate)`."""
        if self.delays is not None:
            units, depth = self.connectivity.num_pre, self.delays.depth
            if not isinstance(x, Ring) or (x.axis, x.values.shape[-1]) != (self.axis, units) or x.slots < depth:
                is_ring = isinstance(x, Ring)
                got = f"{x.slots} steps of {x.values.shape[-1]}, axis={x.axis}" if is_ring else repr(type(x))
                raise ValueError(
                    f"x: expected a Ring of {depth} steps or more of {units} units, axis={self.axis}, got {got}. The "
                    "op has delays: keep op.ring(*batch) in the state and push what is sent, or give delay=False."
                )
            return Ring(x.values, x.pointer, x.axis, depth)
        if not self.gated:
            is_active = isinstance(x, Active) and self.axis == -1
            return x.before(1) if isinstance(x, Ring) else x if is_active else jnp.asarray(x)
        count = self.connectivity.num_synapses
        x, gate = with_gate(x, count)
        gather = SpMatMulOp(onto_synapses(self.connectivity), axis=self.axis)
        sent = call_op(gather, {"weight": jnp.ones(count, jnp.result_type(x, float))}, x, True, None)
        return sent * jax.lax.stop_gradient(gate if self.axis == -1 else gate[..., None]).astype(sent.dtype)

    def phi(self, theta: PyTree[Array]) -> Weights:
        start = None if self.delays is None else self.delays.start
        weight = read_weights(theta, 1, f"({self.num_weights},)", () if start is None else ("delay",))["weight"]
        hint = "One for each synapse of the op's connectivity, or for each index in tie."
        check_shape("value['weight']", weight.shape, (self.num_weights,), hint)
        check_bias(theta, self.connectivity.num_post, self.bias)
        weight = applied(self.weight_fn, weight)
        weight = weight if self.slot is None else self._tied(weight)
        if self.delays is not None and start is not None:
            check_shape("value['delay']", jnp.shape(theta["delay"]), start.shape, "One for each synapse.")
            weight = self.delays.weights(weight, theta["delay"])
        return {key: leaf for key, leaf in theta.items() if key != "delay"} | {"weight": weight}

    def xw_to_y(self, x: Sent, w: Weights) -> Inexact[Array, "*batch_y"]:
        if isinstance(x, Ring) and x.pointer.ndim == 0:
            y = _kernels.spmv_ring(self.wires, w["weight"], x.values, x.first)
        elif isinstance(x, Active):
            check_input(x, -1, self.wires.num_pre)
            y = _kernels.spmv_ids(self.wires, w["weight"], x.ids)
        else:
            y = _kernels.spmv(self.wires, w["weight"], self._sent(x))
        return self._last(with_bias(y, w))

    def yw_to_w(self, y: Inexact[Array, "*batch_y"], e: Weights) -> Weights:
        y = self._last(y)
        spread = {"weight": jnp.take(y, self.wires.post, axis=-1, mode="clip"), "bias": y}
        return {key: spread[key] * leaf for key, leaf in e.items()}

    def xy_to_dw(self, x: Sent, y: Inexact[Array, "*batch_y"], v: Weights) -> Weights:
        x, y = self._sent(x), self._last(y)
        slots = {"weight": _kernels.sampled(self.wires, x, y), "bias": y}
        return {key: slots[key] for key in v}

    def sum_dw(self, x: Sent, y: Inexact[Array, "k *batch_y"], v: Weights) -> Weights:
        x, y = self._sent(x), self._last(y)
        slots = {"weight": _kernels.sampled_sum(self.wires, x, y), "bias": sum_steps(y)}
        return {key: slots[key] for key in v}

    def total_dw(self, x: Sent, y: Inexact[Array, "*batch_y"], v: Weights) -> Weights:
        x, y = _kernels.as_steps(self._sent(x)), _kernels.as_steps(self._last(y))
        slots = {"weight": _kernels.sampled_sum(self.wires, x, y), "bias": sum_steps(y)}
        return {key: slots[key] for key in v}

    def window(
        self,
        v: Weights,
        trace: Traces,
        carried: Array | None,
        entering: Array | None,
        signal: Array | None,
        direct: Array | None,
        x: Sent,
        noise: Array | None = None,
    ) -> tuple[Traces, Traces]:
        parts = (None if part is None else self._last(part) for part in (carried, entering, signal, direct))
        carried, entering, signal, direct = parts
        slots: dict[str, Any] = {}
        if isinstance(x, History) and self.delays is not None:
            slots = {"lag": self.delays.lag, "slots": self.delays.depth}
        sent = x.values if isinstance(x, History) else self._sent(x)
        return window_of_weights(self, v, trace, carried, entering, signal, direct, sent, noise, self.wires, **slots)

    def synapses(self, v: PyTree, x: PyTree) -> list[Uses]:
        """The synapses of the connectivity, once for each feature."""
        if self.delays is not None:
            raise NotImplementedError(
                "op: a synapse of a SpMatMulOp with delays leads from another slot of a ring in each step, and has no "
                "sender of its own. Take se.RTRL(), se.Bridged() or se.D_RTRL(), which do not ask."
            )
        features = np.arange(1 if self.axis == -1 else x.shape[-1])

        def at(ids: Any) -> np.ndarray:
            return (np.asarray(ids)[:, None] * len(features) + features).ravel()

        def slots(count: int) -> np.ndarray:
            return np.repeat(np.arange(count), len(features))

        pre, post, units = self.wires.pre, self.connectivity.post, self.connectivity.num_post
        uses = {"weight": Uses(at(pre), at(post), slots(len(pre)))}
        uses["bias"] = Uses(None, at(np.arange(units)), slots(units))
        return [uses[key] for key in sorted(v)]

    def _tied(self, weight: Array) -> Array:
        # Wide, because the derivative sums over the synapses of a weight.
        return widened(weight)[self.slot].astype(weight.dtype)

    def _sent(self, x: Sent) -> Array:
        """What senders send, on the last axis; of a window with the time in front."""
        x = x.recent if isinstance(x, Ring) else x.each if isinstance(x, History) else as_frame(x)
        check_input(x, self.axis, self.wires.num_pre)
        return self._last(x)

    def _last(self, x: Array) -> Array:
        """Move the axis of the units after all others, or back."""
        return x if self.axis == -1 else jnp.swapaxes(x, -1, -2)


def _num_data(matrix: Any) -> int:
    """Number of entries in a matrix's own data, padding included."""
    if sp.issparse(matrix) and matrix.format not in ("coo", "csr", "csc"):
        return matrix.tocoo().nnz
    return len(matrix.data) if hasattr(matrix, "data") else 0
