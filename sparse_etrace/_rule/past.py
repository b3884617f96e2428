"""Reverse mode from a state whose past is in traces: step and window of every engine that can recall and follow."""

from functools import partial

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from .._model.constant import held
from .._model.types import Filter
from .._types import Loss, Model
from .black_box import in_reverse, split
from .engine import Carry, Engine, Window, cut
from .signal import leaves_of


def _remembered(engine: Engine, model: Model, carry: Carry) -> PyTree[Array]:
    """The state of a carry, with the traces as its derivative by the model."""
    params, build = leaves_of(model)
    state, layout = jax.tree.flatten(carry.state)

    @jax.custom_vjp
    def remembered(params: list[Array], state: list[Array], traces: PyTree[Array]) -> list[Array]:
        return state

    def forward(params: list[Array], state: list[Array], traces: PyTree[Array]) -> tuple[list[Array], tuple]:
        return state, (params, state, traces)

    def backward(kept: tuple, by_state: list[Array]) -> tuple:
        params, state, traces = kept
        old = Carry(jax.tree.unflatten(layout, state), traces, carry.memory)
        return engine.recall(build(params), old, by_state), by_state, None

    remembered.defvjp(forward, backward)
    return jax.tree.unflatten(layout, remembered(params, state, carry.traces))


def step(engine: Engine, train: Filter, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
    """A window of one step."""
    given, (constant, carry) = (model, carry, x), held((model, carry))
    model = eqx.combine(*split(model, train))
    engine, carry, xs, back = engine.part(carry, jax.tree.map(lambda part: part[None], x))
    x = jax.tree.map(lambda part: part[0], xs)
    state, out, said = engine.observed(model, _remembered(engine, model, carry), x)
    traces = engine.follow(constant, carry, jax.tree.map(lambda part: part[None], said))
    return cut(back(Carry(state, traces, carry.memory)), *given), out


def window(
    engine: Engine, train: Filter, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss
) -> Window:
    """Steps differentiated together, and the traces after them."""
    engine, carry, xs, back = engine.part(carry, xs)
    start = partial(_remembered, engine, carry=carry)
    losses, aux, grads, state, said = in_reverse(engine.observed, model, train, start, xs, ys, loss_fn)
    return Window(losses, aux, grads, back(Carry(state, engine.follow(model, carry, said), carry.memory)))
