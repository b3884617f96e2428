"""What a model says of inputs, without learning."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._learner import Carry, Learner
from .._types import Model
from .._varying import freely


def predict(
    model: Model, carry: Carry | PyTree[Array], xs: PyTree[Array], learner: Learner | None = None
) -> tuple[PyTree[Array], PyTree[Array]]:
    """Outputs of a model, from where a carry has left it; nothing is learned.

    Args:
        model: `state, out = model(state, x)`.
        carry: of a learner or a result of `fit`, or a state.
        xs: inputs, time first.
        learner: one that lets the model see a part of the state alone, `se.Events`; None: it sees all.

    Returns:
        The outputs, stacked, and the state after the last step, from which another call goes on.

    Raises:
        ValueError: `xs` have no common number of steps.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()))
        >>> outs, state = se.predict(cell, cell.init_state(), jnp.ones((5, 2)))
        >>> outs.shape, state.shape
        ((5, 3), (3,))
    """
    xs = jax.tree.map(jnp.asarray, xs)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(xs)}
    if len(lengths) != 1 or () in lengths:
        raise ValueError(f"xs: expected one common number of steps on the first axis, got {sorted(lengths)}.")
    if learner is not None:
        learner.refuse_inputs(xs)
    state = carry.state if isinstance(carry, Carry) else jax.tree.map(jnp.asarray, carry)
    return freely(_through, model, state, xs, learner, like=lambda: (None, state))


@eqx.filter_jit
def _through(model: Model, state: PyTree[Array], xs: PyTree[Array], learner: Learner | None) -> tuple:
    def one(state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        return model(state, x) if learner is None else learner.run(model, state, x)

    state, outs = jax.lax.scan(one, state, xs)
    return outs, state
