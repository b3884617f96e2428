"""Where a gradient stopped being finite: the step, the unit, the parameter."""

import operator
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._graph.connectivity import host_array
from .._learner import Learner
from .._model.program import is_inexact
from .._model.reading import Reading
from .._model.trained import leaf_names
from .._types import Model
from .fit_result import FitResult
from .updates import Point, Task, all_finite, one_update, starting


class NonFiniteError(FloatingPointError):
    """A loss or a gradient was NaN or infinite; the message names the step, the unit and the parameter.

    Attributes:
        fit: what `fit` had learned up to the sequence before.
    """

    fit: FitResult


def explain_non_finite(task: Task, point: Point, state: PyTree, xs: PyTree[Array], ys: PyTree[Array], size: int) -> str:
    """Say where in a sequence a gradient is not finite: the sequence is gone through again, update by update.

    Args:
        task, point, state, xs, ys, size: as for `one_sequence`.

    Returns:
        A sentence.
    """
    point, steps = starting(task, point, state), jax.tree.leaves((xs, ys))[0].shape[0]
    update = eqx.filter_jit(one_update)
    for start in range(0, steps, size):
        x, y = jax.tree.map(operator.itemgetter(slice(start, start + size)), (xs, ys))
        after, (losses, *_), grads = update(task, point, x, y)
        if not all_finite((losses, grads)):
            return _explain_update(task, point, x, y, start, np.asarray(losses), grads)
        for name, index, value in _bad_entries(after.trained):
            return (
                f"{name!r} is {value} at entry {_at(index)} after the update at step {start}, though its gradient is "
                "finite. Look at the optimizer and its learning rate."
            )
        point = after
    return "it is finite when the sequence is repeated; the model or the loss is not a function of its arguments."


def _explain_update(
    task: Task, point: Point, xs: PyTree, ys: PyTree, start: int, losses: np.ndarray, grads: PyTree
) -> str:
    for what, tree in (("xs", xs), ("ys", ys)):
        for name, index, value in _bad_entries(tree):
            leaf = f" leaf {name!r}" if name else ""
            return f"{what}{leaf} has {value} at step {start + index[0]}, entry {_at(index[1:])}. Mend the data."
    model, state, said = eqx.combine(point.trained, task.fixed), point.carry.state, []
    if not np.isfinite(losses).all():
        step = int(np.argmin(np.isfinite(losses)))
        said.append(f"the loss is {losses[step]} at step {start + step}")
    said += _first_bad_unit(task.learner, model, state, xs, start)
    bad = list(_bad_entries(grads))
    if bad:
        name, index, value = bad[0]
        where = _synapse(task.learner, model, state, jax.tree.map(lambda a: a[0], xs), name, index)
        others = f", and there is more in that of {', '.join(repr(b[0]) for b in bad[1:])}" if len(bad) > 1 else ""
        said.append(f"the gradient of {name!r} is {value} at entry {_at(index)}{where}{others}")
    return f"{'; '.join(said)}. Lower the learning rate, clip gradients, or bound the weights."


def _bad_entries(tree: PyTree) -> Iterator[tuple[str, tuple[int, ...], np.number]]:
    """For each leaf with entries that are not finite: its name, the first such entry, and what is there."""
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if is_inexact(leaf):
            finite = host_array(name, jnp.isfinite(leaf))
            if not finite.all():
                index = tuple(int(i) for i in np.argwhere(~finite)[0])
                yield name, index, host_array(name, leaf)[index]


def _at(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(index)


def _first_bad_unit(learner: Learner, model: Model, state: PyTree[Array], xs: PyTree[Array], start: int) -> list[str]:
    step = eqx.filter_jit(learner.run)
    for t in range(jax.tree.leaves(xs)[0].shape[0]):
        state, out = step(model, state, jax.tree.map(operator.itemgetter(t), xs))
        for what, tree in (("state", state), ("output", out)):
            for name, index, value in _bad_entries(tree):
                leaf = f" leaf {name!r}" if name else ""
                batch = f", batch element {_at(index[:-1])}" if len(index) > 1 else ""
                unit = f", unit {index[-1]}" if index else ""
                return [f"{what}{leaf} is {value} from step {start + t} on{unit}{batch}"]
    return []


def _synapse(learner: Learner, model: Model, state: PyTree, x: PyTree, name: str, index: tuple[int, ...]) -> str:
    """The synapse or the unit of one entry of a parameter, where the op that uses it says so."""
    reading = Reading(model, *learner.prepare(model, state, x).seen(state, x), learner.train)
    number = reading.param_names.index(name)
    params = jax.tree.leaves(eqx.filter(model, eqx.is_array))
    weights = reading.weights(params)
    for call, leaf in reading.leaves_of(number):
        op, v, _ = call.unflatten(*weights[call.number], call.x_atoms)
        given = call.template(reading.program)[2]
        if (shape := jax.tree.leaves(v)[leaf].shape) != params[number].shape:
            return ""
        if given is not None:
            given = jax.ShapeDtypeStruct(given.shape[given.ndim - op.input_ndim :], given.dtype)
        try:
            uses = op.synapses(v, given)[leaf]
        except NotImplementedError:
            return ""
        found = np.flatnonzero(uses.slot == np.ravel_multi_index(index, shape))
        if found.size:
            post = uses.post[found[0]]
            return f", unit {post}" if uses.pre is None else f", the synapse {uses.pre[found[0]]} -> unit {post}"
    return ""
