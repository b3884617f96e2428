"""Events on a temporal graph: a step touches some nodes of many."""

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._model.constant import is_traced
from .._model.types import Filter
from .._numbers import positive
from .._rule.by_event import ByEvent, parted, refuse_collisions
from .._rule.engine import Rule
from .._rule.rows import Rows
from .._types import Model
from .learner import RuleLearner


class Events(RuleLearner):
    """A rule on events: each step is one of a few nodes, whose rows alone are read, learned from and changed.

    With all parameters shared by the nodes, what the past says of an event is in the rows of its nodes: their state
    `h_i` and the derivative `J_i = dh_i/dtheta` that the rule keeps of it. An event of the nodes `i` in `N` is

        h_N, J_N <- rows N        (h_N, J_N) <- one step of model and rule        rows N <- h_N, J_N

    With `RTRL` that is the exact gradient through every earlier event of every node; with `D_RTRL`, `ES_D_RTRL`,
    `Hybrid` or `SnAp` what these keep of it; with `Bridged` also all ways between events of a window; with `BPTT` what
    is within a window and nothing before. Time and memory of an event do not depend on the number of nodes or events.

    The model is called with the rows `(k, ...)` of the k nodes of an event, and what the input says besides: `state`
    holds the rows of all nodes `(num_nodes, ...)`, or, in leaves of another length, what all nodes share (a clock);
    each input is a pair `(nodes, x)` with `nodes` `(k,)`. Several events at once are `nodes` `(events, k)`, rows
    `(events, k, ...)`. A node stands at most once in a step; the number `num_nodes` is nobody, any number of times,
    for events of fewer nodes: its row is zero, and what becomes of it is dropped.

    Args:
        learner: `RTRL`, `D_RTRL`, `ES_D_RTRL`, `Hybrid`, `SnAp`, `Bridged` or `BPTT`.
        num_nodes: how many nodes there are.

    Raises:
        TypeError: `num_nodes` is no whole number, `learner` no such learner, or an input no such pair.
        ValueError: `num_nodes` is below 1, no leaf of the state has so many rows, or an event has a node twice or one
            that there is not. Inside a `jit` of your own losses and gradients are NaN then.
        NotImplementedError: what the learner keeps does not go with rows of the state.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.MatMulOp().param(jax.random.key(0), 1, 3), decay=0.9)
        >>> learner, state = se.Events(se.RTRL(), num_nodes=100), cell.init_state(100)
        >>> xs = (jnp.array([[7, 4], [4, 99]]), jnp.ones((2, 2, 1)))
        >>> carry = learner.init(cell, state, (xs[0][0], xs[1][0]))
        >>> loss = lambda out, y: jnp.sum((out - y) ** 2)
        >>> losses, grads, carry = se.online_grad(learner, loss, cell, carry, xs, jnp.zeros((2, 2, 3)))
        >>> carry.state.shape
        (100, 3)

    Reference:
        Rossi et al. 2020, arXiv:2006.10637, for events on temporal graphs; Williams and Zipser 1989, Neural
        Computation 1:270, for the exact rule.
    """

    learner: RuleLearner
    num_nodes: int
    train: Filter
    allow_zero: tuple[str, ...]

    def __init__(self, learner: RuleLearner, num_nodes: int):
        if not isinstance(learner, RuleLearner):
            raise TypeError(f"learner: expected one such as se.RTRL(), got {learner!r}.")
        self.learner, self.num_nodes = learner, positive("num_nodes", num_nodes)
        self.train, self.allow_zero = learner.train, learner.allow_zero
        self.rule()

    def rule(self) -> Rule:
        """What the learner keeps, for each node."""
        storage, signal = self.learner.rule()
        return Rule(storage.by_rows(lambda storage: ByEvent(storage, self.num_nodes)), signal)

    def run(self, model: Model, state: PyTree[Array], x: PyTree[Array]) -> tuple[PyTree[Array], PyTree[Array]]:
        """One step of the model on the rows of an event."""
        nodes, given = parted(x)
        rows = Rows.of(state, self.num_nodes, self.learner.rule().storage)
        part, out = model(rows.of_state(state, nodes), given)
        return rows.put_into(state, nodes, part), out

    def refuse_inputs(self, xs: PyTree[Array]) -> None:
        """Raise for events that have a node twice."""
        if not is_traced(xs):
            refuse_collisions(jnp.asarray(parted(xs)[0]), self.num_nodes)
