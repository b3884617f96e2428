"""Graph convolution: one matrix on the features of each node, after fixed, given or trained sums over neighbours."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact, PyTree, Shaped

from .. import _kernels
from .._graph.connectivity import Connectivity
from .._graph.graph import Graph
from .._graph.matrices import from_scipy
from .._kernels import dense
from .._sums import in_full
from .boundary import call_op
from .contract import ETraceOp, Uses
from .initial import parameter, size
from .param import ETraceParam
from .spmatmul import SpMatMulOp
from .weights import all_to_all, check_bias, check_input, check_shape, window_of_weights, with_bias

Weights = dict[str, Array]
Traces = dict[str, Array | None]
KEYS = {"weight", "coef", "bias"}


class GraphConvOp(ETraceOp):
    """Graph convolution, `y[i] = sum over supports k, synapses s = (j -> i) of k of coef[s] x[j] @ weight[k] + bias`.

    Executes on `{'weight': (supports, f_in, f_out), 'bias'?: (f_out,), 'coef'?: (num_coef,)}`, for `x` of shape
    `(..., num_pre, f_in)`. The matrices are shared by all nodes, and each node has a trace of them. Coefficients are
    those of all supports, one support after the other, each in the canonical order of its synapses.

    With coefficients that are not trained, sums over neighbours come first, as a sparse op of fixed weights, and what
    learns is a matrix on what each node has gathered. Trained ones have traces of their own, `(num_coef, f_out)`.

    Args:
        supports: a `Graph`, a `Connectivity` or a scipy matrix, or several of one shape: what is connected.
        coef: None for the weights of the graphs (1 on a connectivity); an array `(num_coef,)`; `'input'` where they
            come with each input, in calls with `(x, coef)`, `coef` of shape `(..., num_coef)`; `'trained'` where they
            are in the value (in a `Fixed` to keep them there untrained).
        bias: whether a `'bias'` is needed, and made by `param`; False takes values with and without.

    Raises:
        TypeError: a support is none of these.
        ValueError: supports of different shapes or none, or `coef`, a value or `x` does not fit them.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> graph = se.from_edges([0, 1], [1, 1], [1.0, 10.0], shape=(2, 2))
        >>> conv = se.ETraceParam({'weight': jnp.eye(2)[None]}, se.GraphConvOp(graph))
        >>> conv(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [[0.0, 0.0], [31.0, 42.0]]

    Reference:
        Kipf and Welling 2017 (arXiv 1609.02907); with several supports: Defferrard et al. 2016 (arXiv 1606.09375).
    """

    connectivity: Connectivity
    coef: Array
    kind: str = eqx.field(static=True)
    num_supports: int = eqx.field(static=True)
    bias: bool = eqx.field(static=True)
    weight_fn: ClassVar[None] = None
    per_unit: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(self, supports: Any, coef: object = None, *, bias: object = False):
        graphs = [_graph(s) for s in (supports if isinstance(supports, Sequence) else [supports])]
        shapes = {g.connectivity.shape for g in graphs}
        if len(shapes) != 1:
            raise ValueError(f"supports: expected one or more of one shape, got {sorted(shapes)}. Give each all nodes.")
        ((num_pre, num_post),) = shapes
        count = self.num_supports = len(graphs)
        self.kind = coef if isinstance(coef, str) else "fixed"
        if self.kind not in ("fixed", "input", "trained"):
            raise ValueError(f"coef: expected None, an array, 'input' or 'trained', got {coef!r}.")
        # Each support has receivers of its own; and, where sums over neighbours come last, senders of its own.
        apart = num_pre if self.kind == "trained" else 0
        ends = [(g.connectivity.pre + k * apart, g.connectivity.post + k * num_post) for k, g in enumerate(graphs)]
        pre, post = (np.concatenate([np.asarray(end) for end in part]) for part in zip(*ends, strict=True))
        shape = (num_pre + (count - 1) * apart, count * num_post)
        self.connectivity = Connectivity.from_edges(pre, post, shape)
        given = coef is None or isinstance(coef, str)
        self.coef = jnp.concatenate([jnp.asarray(g.weight) for g in graphs]) if given else jnp.asarray(coef)
        self._check_coef("coef", self.coef.shape)
        self.bias = bool(bias)

    def param(
        self,
        key: object,
        f_in: SupportsIndex,
        f_out: SupportsIndex,
        *,
        init: object = "fan_in",
        dtype: DTypeLike | None = None,
        **options: Any,
    ) -> ETraceParam:
        """A parameter with weights to start from, a bias of zeros where the op has one, and trained coefficients.

        Args:
            key: where the weights are drawn from; None if `init` gives them.
            f_in, f_out: numbers of features.
            init: `'fan_in'` draws normal weights with a variance of one by `supports * f_in`; otherwise as for
                `MatMulOp.param`. Trained coefficients start from the weights of the graphs.
            dtype: floating type; the default one, or that of given weights.
            **options: `grad` and `is_etrace` of `ETraceParam`.

        Raises:
            TypeError: `key` is no key.
            ValueError: a size, `init` or `dtype` cannot be used.

        Example:
            >>> import jax, sparse_etrace as se
            >>> op = se.GraphConvOp(se.from_edges([0, 1], [1, 0]), bias=True)
            >>> op.param(jax.random.key(0), 3, 16).value["weight"].shape
            (1, 3, 16)
        """
        shape = (self.num_supports, size("f_in", f_in), size("f_out", f_out))
        extra = {"coef": self.coef} if self.kind == "trained" else {}
        return parameter(self, shape[2], key, shape, shape[0] * shape[1], init, dtype, options, extra)

    @property
    def input_ndim(self) -> int:
        """Rank of `x` without batch axes, as which nodes count where their sums come first."""
        return 2 if self.kind == "trained" else 1

    def read(self, x: Any) -> Array:
        """What each node has gathered, `(..., num_post, supports * f_in)`; `x` where coefficients are trained."""
        if self.kind == "trained":
            return jnp.asarray(x)
        spread, weight = SpMatMulOp(self.connectivity, axis=-2, gated=self.kind == "input"), self.coef
        if self.kind == "input":
            if not isinstance(x, tuple | list) or len(x) != 2:
                got = type(x).__name__
                raise ValueError(f"x: expected a pair, (x, coef), got {got}. The op has coef='input'.")
            self._check_coef("coef", jnp.shape(x[1])[-1:])
            weight = jnp.ones_like(weight)
        features = jnp.asarray(x[0] if self.kind == "input" else x)
        check_input(features, -2, self.connectivity.num_pre)
        weight = weight.astype(jnp.result_type(weight, features) if self.kind == "input" else weight.dtype)
        return self._by_node(call_op(spread, {"weight": weight}, spread.read(x), True, None))

    def phi(self, theta: PyTree[Array]) -> Weights:
        allowed = KEYS if self.kind == "trained" else KEYS - {"coef"}
        needed = allowed - {"bias"}
        if not isinstance(theta, dict) or not needed <= set(theta) <= allowed:
            keys = sorted(theta) if isinstance(theta, dict) else type(theta).__name__
            raise ValueError(f"value: expected a dictionary with {sorted(needed)} and 'bias', if any, got {keys}.")
        weight = theta["weight"]
        if weight.ndim != 3 or len(weight) != self.num_supports:
            raise ValueError(
                f"value['weight']: expected shape ({self.num_supports}, f_in, f_out), got {weight.shape}. One matrix "
                "for each support."
            )
        check_bias(theta, weight.shape[2], self.bias)
        if "coef" in theta:
            self._check_coef("value['coef']", theta["coef"].shape)
            theta = {**theta, "coef": theta["coef"][:, None]}
        return {**theta, "weight": weight.reshape(weight.shape[0] * weight.shape[1], weight.shape[2])}

    @in_full()
    def xw_to_y(self, x: Shaped[Array, "*batch_x"], w: Weights) -> Inexact[Array, "*batch_y"]:
        x = self._gathered(x, w)
        check_input(x, -1, len(w["weight"]))
        return with_bias(x @ w["weight"], w)

    def yw_to_w(self, y: Inexact[Array, "*batch_y"], e: Weights) -> Weights:
        rest, coef = _apart(e)
        at = jnp.take(self._by_coef(y), self.connectivity.post, axis=-2, mode="clip") if coef else 0
        return dense.spread(y, rest) | {key: at * leaf for key, leaf in coef.items()}

    def xy_to_dw(self, x: Shaped[Array, "*batch_x"], y: Inexact[Array, "*batch_y"], v: Weights) -> Weights:
        rest, coef = _apart(v)
        found = dense.outer(self._gathered(x, v), y, rest)
        if coef:
            found["coef"] = self._by_feature(_kernels.sampled, x, y, v)
        return found

    def sum_dw(self, x: Shaped[Array, "k *batch_x"], y: Inexact[Array, "k *batch_y"], v: Weights) -> Weights:
        rest, coef = _apart(v)
        found = dense.sum_outer(self._gathered(x, v), y, rest)
        if coef:
            found["coef"] = self._by_feature(_kernels.sampled_sum, x, y, v)
        return found

    def halfway(self, x: Array, v: Weights) -> Array | None:
        """What each node has gathered, where coefficients are trained."""
        return self._gathered(x, v) if self.kind == "trained" else None

    def window(
        self,
        v: Weights,
        trace: Traces,
        carried: Array | None,
        entering: Array | None,
        signal: Array | None,
        direct: Array | None,
        x: Array,
        noise: Array | None = None,
    ) -> tuple[Traces, Traces]:
        units, (rest, coef) = (carried, entering, signal, direct), _apart(v)
        if isinstance(x, tuple):
            x, gathered = x
        else:  # what the columns of one step gather fits into a cache
            gathered = jax.lax.map(lambda x: self._gathered(x, v), x) if coef else x
        new, taught = window_of_weights(self, rest, trace, *units, gathered, noise)
        if coef:
            new["coef"] = taught["coef"] = None
        if (eps := trace.get("coef")) is not None:
            a, b, c, d = (None if part is None else self._by_coef(part) for part in units)
            found = _kernels.features.advance(self.connectivity, a, b, c, d, self._sent(x, v), eps, noise)
            new["coef"], taught["coef"] = found[0], None if found[1] is None else found[1][:, None]
        return new, taught

    def synapses(self, v: PyTree, x: PyTree) -> list[Uses]:
        """All pairs of a gathered and a new feature, at each node.

        Raises:
            NotImplementedError: coefficients are trained, so that what passes a synapse is a product of two weights.
        """
        if self.kind == "trained":
            raise NotImplementedError(
                "op: GraphConvOp(coef='trained') has products of two weights on a synapse, of which no influence is "
                "kept. Give fixed coefficients, or take se.RTRL(), se.Bridged() or se.D_RTRL()."
            )
        return all_to_all(v)

    def _check_coef(self, name: str, shape: tuple[int, ...]) -> None:
        hint = "One for each synapse of all supports, one support after the other, in canonical order."
        check_shape(name, shape, (self.connectivity.num_synapses,), hint)

    def _by_node(self, z: Array) -> Array:
        """What each support has summed, `(..., supports * num_post, f_in)`, as the features of nodes."""
        *front, rows, f_in = z.shape
        nodes = rows // self.num_supports
        z = jnp.moveaxis(z.reshape(*front, self.num_supports, nodes, f_in), -3, -2)
        return z.reshape(*front, nodes, self.num_supports * f_in)

    def _gathered(self, x: Array, v: Weights) -> Array:
        if self.kind != "trained":
            return x
        check_input(x, -2, self.connectivity.num_pre // self.num_supports)
        sent = jnp.swapaxes(self._by_coef(x), -1, -2)
        return self._by_node(jnp.swapaxes(_kernels.spmv(self.connectivity, v["coef"][:, 0], sent), -1, -2))

    def _sent(self, x: Array, v: Weights) -> Array:
        """What each support's matrix makes of what the nodes send."""
        sent = x[..., None, :, :] @ v["weight"].reshape(self.num_supports, x.shape[-1], v["weight"].shape[1])
        return sent.reshape(*x.shape[:-2], self.num_supports * x.shape[-2], sent.shape[-1])

    def _by_coef(self, y: Array) -> Array:
        """A post-shaped `y` at the receivers of each support."""
        return jnp.tile(y, (self.num_supports, 1)) if self.num_supports > 1 else y

    def _by_feature(self, product: Callable[..., Array], x: Array, y: Array, v: Weights) -> Array:
        """A sampled product of each feature."""
        ends = (jnp.swapaxes(part, -1, -2) for part in (self._sent(x, v), self._by_coef(y)))
        return jnp.swapaxes(product(self.connectivity, *ends), -1, -2)


def _graph(support: object) -> Graph:
    if isinstance(support, Connectivity):
        return Graph(support, jnp.ones(support.num_synapses))
    return support if isinstance(support, Graph) else from_scipy(support)


def _apart(v: Any) -> tuple[Any, Any]:
    """Matrix and bias, and coefficients."""
    return {k: e for k, e in v.items() if k != "coef"}, {k: e for k, e in v.items() if k == "coef"}
