"""Does a user's learner keep what every learner owes?"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from .._graph.edges import from_edges
from .._learner import Carry, Learner
from .._model.program import is_key
from .._model.trained import trained_filter
from .._op import MatMulOp, SpMatMulOp
from .._op.param import ETraceParam
from .._types import Loss, Model
from ..cells import LeakyRate
from .online import online_grad

HALF = 3  # steps before the place at which a stream is parted


class _Counter:
    """How often a model was traced in all, and after each of the first steps."""

    def __init__(self) -> None:
        self.count, self.after = 0, list[int]()


class _Counted(eqx.Module):
    """A model that counts how often it is traced."""

    model: Model
    seen: _Counter = eqx.field(static=True)

    def __call__(self, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        self.seen.count += 1
        return self.model(state, x)


class _Weighted(eqx.Module):
    """The sum of the losses of batch elements, each as much as it weighs."""

    loss_fn: Callable[..., Array] = eqx.field(static=True)

    def __call__(self, out: PyTree, given: tuple[PyTree, Array]) -> Array:
        return jnp.sum(given[1] * self.loss_fn(out, given[0]))


class _Stream(NamedTuple):
    """A learner on a model, and what it reads, `2 HALF` steps."""

    learner: Learner
    loss_fn: Callable[..., Array]
    model: _Counted
    state: PyTree[Array]
    xs: PyTree[Array]
    ys: PyTree[Array]

    @property
    def size(self) -> int:
        """Of the batch."""
        return len(jax.tree.leaves(self.state)[0])

    def fresh(self) -> Carry:
        return self.learner.init(self.model, self.state, _at(self.xs, 0))

    def run(
        self, carry: Carry, steps: slice, chunk: int = 1, weight: ArrayLike = 1.0
    ) -> tuple[Array, list[Array], Carry]:
        """Losses, summed gradients and carry; batch elements count by their weight."""
        xs, ys = _at((self.xs, self.ys), steps)
        weights = jnp.asarray(weight, jax.tree.leaves(ys)[0].dtype)[None]
        weights = jnp.broadcast_to(weights, (len(jax.tree.leaves(xs)[0]), *weights.shape[1:]))
        loss_fn = _Weighted(self.loss_fn)
        losses, grads, carry = online_grad(self.learner, loss_fn, self.model, carry, xs, (ys, weights), chunk)
        return losses, jax.tree.leaves(grads), carry

    def alone(self, i: int | slice) -> "_Stream":
        """One batch element, or some."""
        state = jax.tree.map(lambda a: a[i], self.state)
        xs, ys = jax.tree.map(lambda a: a[:, i], (self.xs, self.ys))
        return self._replace(state=state, xs=xs, ys=ys)


def check_learner(
    learner: Learner,
    loss_fn: Loss | None = None,
    model: Model | None = None,
    state: PyTree = None,
    xs: PyTree = None,
    ys: PyTree = None,
    skip: tuple[str, ...] = (),
) -> None:
    """Test what every learner owes whoever uses it, on a stream of six steps, and say which law fails.

    - `interface`: losses and state are those of the model, gradients have the shapes and types of what is trained, and
      a carry keeps its structure.
    - `compiled`: later calls with other numbers do not trace the model again.
    - `step`: the gradient of a loss of what `step` returns is that of a window of one step, by the carry it is zero.
    - `windows`: two calls of `online_grad`, each a window of three steps, give what single steps give.
    - `batch`: the gradient of a batch is the sum of those of its elements.
    - `vmap`: mapped under `jit` over elements without a batch axis it is the same.
    - `reset`: batch elements that start again are as fresh ones, the others go on.

    That the gradient is the right one is another matter: compare it with `gradient_alignment`.

    Args:
        learner: the rule.
        loss_fn: `(out, y) -> (*batch,)`, a loss for each batch element.
        model: `state, out = model(state, x)`; without one a small sparse recurrent network in float64, whose only leaf
            of state is `state`.
        state: its state, one batch axis in front of all leaves.
        xs, ys: at least six steps of inputs and targets, time first, then the batch.
        skip: names of laws that do not hold for this rule by its nature.

    Raises:
        ValueError: a law fails, `skip` has a name that is no law, or only some of `loss_fn`, `model`, `state`, `xs` and
            `ys` are given.

    Example:
        >>> import sparse_etrace as se
        >>> se.check_learner(se.D_RTRL())

    Reference:
        Marschall et al. 2020, Journal of Machine Learning Research 21:135.
    """
    unknown = set(skip) - LAWS.keys()
    if unknown:
        raise ValueError(f"skip: expected some of {', '.join(LAWS)}, got {', '.join(map(repr, sorted(unknown)))}.")
    given = [loss_fn, model, state, xs, ys]
    if 0 < sum(part is None for part in given) < len(given):
        raise ValueError("model: expected all of loss_fn, model, state, xs and ys, or none of them, got some.")
    with jax.enable_x64(model is None or bool(jax.config.read("jax_enable_x64"))):
        parts = _network() if model is None else given
        stream = _Stream(learner, parts[0], _Counted(parts[1], _Counter()), *jax.tree.map(jnp.asarray, parts[2:]))
        by_step = _by_step(stream)
        for name, law in LAWS.items():
            for got, expected in () if name in skip else law(stream, *by_step):
                _compare(name, got, expected)


def _network() -> tuple[PyTree, ...]:
    """A sparse recurrent network with a hub, a batch of five, and six steps."""
    rng = np.random.default_rng(0)
    graph = from_edges([0, 1, 2, 3, 0, 0, 2], [1, 2, 3, 0, 2, 3, 1], rng.normal(size=7), dtype=float)
    inp = ETraceParam({"weight": jnp.asarray(rng.normal(size=(2, 4)))}, MatMulOp())
    rec = ETraceParam({"weight": graph.weight, "bias": jnp.asarray(rng.normal(size=4))}, SpMatMulOp(graph))
    model = LeakyRate(4, inp, rec, decay=0.7)
    xs, ys = rng.normal(size=(2 * HALF, 5, 2)), rng.normal(size=(2 * HALF, 5, 4))
    return lambda out, y: jnp.sum((out - y) ** 2, axis=-1), model, model.init_state(5), xs, ys


def _by_step(stream: _Stream, carry: Carry | None = None, first: int = 0, weight: ArrayLike = 1.0) -> tuple[list, ...]:
    """Losses, gradients and carries of single steps, each in a call of its own."""
    now = stream.fresh() if carry is None else carry
    found = []
    for t in range(first, 2 * HALF):
        losses, grads, now = stream.run(now, slice(t, t + 1), weight=weight)
        found.append((losses[0], grads, now))
        stream.model.seen.after.append(stream.model.seen.count)
    return tuple(map(list, zip(*found, strict=True)))


# --- laws: pairs of what is got and what is expected -----------------------------------------------------------------


def _interface(stream: _Stream, losses: list, grads: list, carries: list) -> Iterator[tuple]:
    fresh = stream.fresh()
    state, expected = stream.state, []
    for t in range(2 * HALF):
        state, out = stream.model(state, _at(stream.xs, t))
        expected.append(jnp.sum(stream.loss_fn(out, _at(stream.ys, t))))
    yield (losses, carries[-1].state), (expected, state)
    trained = jax.tree.leaves(eqx.filter(stream.model, trained_filter(stream.model, stream.learner.train)))
    for got, like in ((grads[-1], trained), (carries[-1], fresh)):
        yield jax.tree.map(_text, got), jax.tree.map(_text, like)


def _compiled(stream: _Stream, losses: list, grads: list, carries: list) -> Iterator[tuple]:
    first, *after = stream.model.seen.after[: 2 * HALF]
    yield after, [first] * len(after)
    seen = stream.model.seen.count
    stream.run(carries[1], slice(HALF, HALF + 1), weight=0.5)
    yield stream.model.seen.count, seen


def _step(stream: _Stream, losses: list, grads: list, carries: list) -> Iterator[tuple]:
    def loss(given: tuple) -> Array:
        model, carry = given
        return jnp.sum(stream.loss_fn(stream.learner.step(model, carry, _at(stream.xs, HALF))[1], _at(stream.ys, HALF)))

    by_model, by_carry = eqx.filter_jit(eqx.filter_grad(loss))((stream.model, carries[HALF - 1]))
    trained = eqx.filter(by_model, trained_filter(stream.model, stream.learner.train))
    yield jax.tree.leaves(trained), grads[HALF]
    yield by_carry, jax.tree.map(jnp.zeros_like, by_carry)


def _windows(stream: _Stream, losses: list, grads: list, carries: list) -> Iterator[tuple]:
    carry = stream.fresh()
    for steps in (slice(0, HALF), slice(HALF, 2 * HALF)):
        found, got, carry = stream.run(carry, steps, chunk=HALF)
        yield (list(found), got, carry), (losses[steps], _total(grads[steps]), carries[steps.stop - 1])


def _batch(stream: _Stream, losses: list, grads: list, carries: list) -> Iterator[tuple]:
    parts = [stream.alone(slice(i, i + 1)) for i in range(stream.size)]
    found = [part.run(part.fresh(), slice(0, 2 * HALF))[1] for part in parts]
    yield _total(found), _total(grads)


def _vmap(stream: _Stream, losses: list, grads: list, carries: list) -> Iterator[tuple]:
    single = stream.alone(0)
    carry = jax.tree.map(lambda a: jnp.broadcast_to(a, (stream.size, *a.shape)), single.fresh())
    carry = eqx.tree_at(lambda c: c.state, carry, stream.state)
    xs, ys = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (stream.xs, stream.ys))

    @jax.jit
    @jax.vmap
    def each(carry: Carry, xs: PyTree, ys: PyTree) -> tuple:
        return single._replace(xs=xs, ys=ys).run(carry, slice(0, 2 * HALF))[:2]

    found, got = each(carry, xs, ys)
    yield (list(jnp.sum(found, axis=0)), [jnp.sum(g, axis=0) for g in got]), (losses, _total(grads))


def _reset(stream: _Stream, losses: list, grads: list, carries: list) -> Iterator[tuple]:
    before, fresh = carries[HALF - 1], stream.fresh()
    some = jnp.arange(stream.size) % 3 == 0
    after = stream.learner.reset(before, some, stream.state)
    yield jax.tree.map(_text, after), jax.tree.map(_text, before)
    for chosen, expected in ((some, fresh), (~some, before)):
        yield _by_step(stream, after, HALF, chosen)[1], _by_step(stream, expected, HALF, chosen)[1]


LAWS: dict[str, Callable[..., Iterator[tuple]]] = {
    "interface": _interface, "compiled": _compiled, "step": _step, "windows": _windows, "batch": _batch,
    "vmap": _vmap, "reset": _reset,
}  # fmt: skip


def _compare(name: str, got: PyTree, expected: PyTree) -> None:
    here, there = (str(jax.tree.structure(tree)) for tree in (got, expected))
    if here != there:
        raise ValueError(
            f"learner: the law {name!r} fails: expected the structure {there}, got {here}. See se.check_learner for "
            "what it says."
        )
    parts = jax.tree_util.tree_leaves_with_path(got)
    for (path, a), b in zip(parts, jax.tree.leaves(expected), strict=True):
        a, b = (_numbers(part) for part in (a, b))
        worst = 0.0
        if a.shape == b.shape and a.dtype.kind in "fc":
            worst = float(np.max(np.abs(a - b), initial=0) / max(float(np.max(np.abs(b), initial=0)), 1e-30))
            exact = worst < 100 * float(np.finfo(a.dtype).eps) ** 0.8
        else:
            exact = np.array_equal(a, b)
        if not exact:
            how = f"by {worst:.1e} of its largest entry" if worst else f"{b} expected, {a} got"
            raise ValueError(
                f"learner: the law {name!r} fails at {jax.tree_util.keystr(path) or 'a number'}: {how}. See "
                "se.check_learner for what it says."
            )


def _numbers(part: ArrayLike) -> np.ndarray:
    return np.asarray(jax.random.key_data(part) if hasattr(part, "dtype") and is_key(part) else part)


def _text(leaf: PyTree) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _at(tree: PyTree, where: PyTree) -> PyTree:
    return jax.tree.map(lambda a: a[where], tree)


def _total(grads: list[list[Array]]) -> list[Array]:
    return [sum(parts[1:], parts[0]) for parts in zip(*grads, strict=True)]
