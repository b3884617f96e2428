"""How far the gradients of a rule point where the exact ones do."""

import operator
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._learner import BPTT, Carry, Events, Learner
from .._model.trained import leaf_names
from .._text import DataFrame, as_table, data_frame
from .._train.online import online_grad, read_stream
from .._types import Loss, Model

TOGETHER = "all leaves"


class Alignment(NamedTuple):
    """What `gradient_alignment` returns: a row for each stretch of time, a column for each leaf; prints as a table.

    With several stretches the last row is the whole time; the last column is all leaves together, as one vector.

    Attributes:
        names: the trained leaves, and `all leaves`.
        steps: first step of each stretch, and the first after it, `(rows, 2)`.
        cosine: of the angle between the rule's gradient and the exact one, `(rows, columns)`. 1 where both are zero, 0
            where one of them is.
        norm_ratio: length of the rule's gradient by that of the exact one, likewise. 1 where both are zero, infinite
            where only the exact one is.
    """

    names: tuple[str, ...]
    steps: np.ndarray
    cosine: np.ndarray
    norm_ratio: np.ndarray

    @property
    def total_cosine(self) -> float:
        """Cosine for all leaves together over the whole time."""
        return float(self.cosine[-1, -1])

    @property
    def total_norm_ratio(self) -> float:
        """Norm ratio for all leaves together over the whole time."""
        return float(self.norm_ratio[-1, -1])

    def __str__(self) -> str:
        stretches = [f"steps {first}-{end - 1}" for first, end in self.steps]
        leaves = zip(self.cosine.T, self.norm_ratio.T, strict=True)
        cells = [[f"{c:6.3f} ({r:.3g})" for c, r in zip(*leaf, strict=True)] for leaf in leaves]
        rows = [(name, *row) for name, row in zip(self.names, cells, strict=True)]
        return as_table(("cosine (norm ratio)", *stretches), rows)

    def to_dataframe(self) -> DataFrame:
        """The numbers as a pandas data frame: a row for each leaf and stretch, which ends before `end_step`.

        Raises:
            ImportError: pandas, which is in the extra `tables`, is not installed.
        """
        rows, columns = self.cosine.shape
        first, end = np.repeat(self.steps, columns, axis=0).T
        table = {"leaf": list(self.names) * rows, "first_step": first, "end_step": end}
        return data_frame(table | {"cosine": self.cosine.ravel(), "norm_ratio": self.norm_ratio.ravel()})


class _Weighted(eqx.Module):
    """A loss that counts as much as its target says."""

    loss_fn: Loss

    def __call__(self, out: PyTree[Array], target: tuple[PyTree[Array], Array]) -> Array:
        y, weight = target
        loss = self.loss_fn(out, y)
        return loss * weight.astype(loss.dtype)


def gradient_alignment(
    learner: Learner, loss_fn: Loss, model: Model, state: PyTree, xs: PyTree, ys: PyTree, windows: int = 1
) -> Alignment:
    """Cosine and norm ratio of a rule's gradient against the exact one, leaf by leaf and over time.

    `cos = g . g* / (|g| |g*|)`, `ratio = |g| / |g*|`, for the losses of each stretch of time: `g` is what the rule
    gives for them as the stream goes on, `g*` their derivative through all steps before, by BPTT. That takes memory
    that grows with the number of steps: measure on a part of the data. A readout, exact under every rule, can outweigh
    the rest of `all leaves`: leave it out with the learner's `train`. `BPTT` itself is cut between stretches.

    Args:
        learner: the rule.
        loss_fn: `(out_t, y_t) -> scalar`.
        model: `state, out = model(state, x)`.
        state: the initial state.
        xs: inputs, time first.
        ys: targets, time first.
        windows: number of stretches of time, equal to one step.

    Returns:
        The alignment.

    Raises:
        ValueError: `windows` is below 1 or above the number of steps, or as `online_grad`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, sparse_etrace as se
        >>> conn = se.Connectivity.from_edges([0, 1, 2], [1, 2, 0], shape=(3, 3))
        >>> cell = se.cells.LeakyRate.of(conn, inputs=2, key=jax.random.key(0), bias=False, decay=0.5)
        >>> xs, ys = jax.random.normal(jax.random.key(0), (20, 8, 2)), jnp.zeros((20, 8, 3))
        >>> loss = lambda out, y: jnp.mean((out - y) ** 2)
        >>> few = (cell.init_state(2), xs[:, :2], ys[:, :2])
        >>> print(se.gradient_alignment(se.D_RTRL(), loss, cell, *few, windows=2).cosine.shape)
        (3, 3)

        Every ten updates of `fit`:

        >>> found = {}
        >>> def measure(now):
        ...     if now.updates % 10 == 0:
        ...         found[now.updates] = se.gradient_alignment(se.D_RTRL(), loss, now.model, *few).total_cosine
        >>> data = [(xs, ys)] * 20
        >>> options = dict(state=cell.init_state(8), progress=False, callbacks=measure)
        >>> result = se.fit(se.D_RTRL(), loss, optax.sgd(0.01), cell, data, **options)
        >>> list(found)
        [10, 20]

    Reference:
        Marschall, Cho and Savin 2020, Journal of Machine Learning Research 21:135.
    """
    xs, ys = read_stream(xs, ys)
    count = jax.tree.leaves((xs, ys))[0].shape[0]
    if not 1 <= windows <= count:
        raise ValueError(f"windows: expected 1 to {count}, the number of steps, got {windows}.")
    ends = np.linspace(0, count, windows + 1).astype(int)
    reverse = BPTT(train=learner.train, allow_zero=learner.allow_zero)
    exact = Events(reverse, learner.num_nodes) if isinstance(learner, Events) else reverse
    first = jax.tree.map(lambda a: a[0], xs)
    carry = learner.init(model, state, first)
    start = Carry(carry.state, None)
    weighted, pairs = _Weighted(loss_fn), []
    for begin, end in zip(ends, ends[1:]):
        part = jax.tree.map(operator.itemgetter(slice(begin, end)), (xs, ys))
        _, grads, carry = online_grad(learner, loss_fn, model, carry, *part)
        weight = np.zeros(count, np.float32)
        weight[begin:end] = 1
        _, right, _ = online_grad(exact, weighted, model, start, xs, (ys, weight))
        pairs.append([[_real(g) for g in jax.tree.leaves(tree)] for tree in (grads, right)])
    names = (*leaf_names(grads), TOGETHER)
    steps = np.stack([ends[:-1], ends[1:]], axis=1)
    products = np.stack([_products(*pair) for pair in pairs])
    if windows > 1:
        sums = [[sum(leaves) for leaves in zip(*trees, strict=True)] for trees in zip(*pairs, strict=True)]
        products = np.concatenate([products, _products(*sums)[None]])
        steps = np.concatenate([steps, [[0, count]]])
    dot, own, right = np.moveaxis(np.concatenate([products, products.sum(1, keepdims=True)], axis=1), -1, 0)
    return Alignment(names, steps, *_compare(dot, np.sqrt(own), np.sqrt(right)))


def _real(leaf: Array) -> np.ndarray:
    """A gradient in float64; of complex numbers real and imaginary part."""
    wide = np.asarray(leaf, complex if np.iscomplexobj(leaf) else float)
    return wide.view(float) if wide.ndim else np.array([wide.real, wide.imag])


def _products(grads: list[np.ndarray], exact: list[np.ndarray]) -> Float[np.ndarray, "leaves 3"]:
    """For each leaf `g . g*`, `g . g` and `g* . g*`."""
    products = [[np.vdot(a, b), np.vdot(a, a), np.vdot(b, b)] for a, b in zip(grads, exact, strict=True)]
    return np.array(products).reshape(-1, 3)


def _compare(dot: np.ndarray, own: np.ndarray, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    neither = (own == 0) & (exact == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(own * exact > 0, dot / (own * exact), 0)
        ratio = own / exact
    return np.where(neither, 1.0, cosine), np.where(neither, 1.0, ratio)
