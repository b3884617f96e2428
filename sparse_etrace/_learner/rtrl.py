"""RTRL: the exact gradient, forward in time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy.sparse as sp
from jaxtyping import Array, PyTree

from .._model.grouping import Grouping
from .._model.refusals import UntracedError
from .._model.types import Filter
from .._model.unit_links import UnitLinks
from .._numbers import number, whole
from .._rule.black_box import check_linear, check_reach
from .._rule.by_parameter import STEPS, ByParameter, restarted_rows
from .._rule.engine import Carry, Engine, Rule, Storage, Task
from .._rule.influence import Influences
from .._rule.influence_engine import Pattern, restarted_influences
from .._rule.reach import Wiring
from .._rule.sensitivity import Derivative
from .._types import Model
from .learner import RuleLearner

# Work of the whole derivative where it is taken, by that of the influences: windows may be shorter than it counts on.
PRODUCTS = 0.5


class RTRL(RuleLearner):
    """Real-time recurrent learning: the gradient of BPTT, forward in time, for any model.

    `J <- dh_t/dh_{t-1} J + dh_t/dtheta`, `dtheta += dL_t/dh_{t-1} J + dL_t/dtheta`. Where all that is trained acts
    through ops, and units act on each other through few synapses only, J is kept on the pairs of synapse and unit that
    any number of steps leads to: `SnAp` without an end. For any other model, and where parameters are shared or ops are
    dense so that it is less work, it is one matrix, of all state by all parameters that act on it. This goes from step
    to step by columns, forward, one for each parameter, or, where those are more than twice the rows, through a window
    at once by rows, in reverse, one for each number of the state of a batch element. `explain` and `memory_plan` say
    which.

    Args:
        max_influences: the most that are kept, for each batch element or in that matrix; more is an error before
            anything is allocated.
        workspace: bytes for columns or rows that are computed at once; at least one of them is.
        train, allow_zero: see `D_RTRL`.

    Raises:
        ValueError: at `init`, there are too many influences; or as `BPTT.init`.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> learner = se.RTRL()
        >>> carry = learner.init(cell, cell.init_state(), jnp.ones(2))
        >>> carry, out = learner.step(cell, carry, jnp.ones(2))

    Reference:
        Williams and Zipser 1989, Neural Computation 1:270; by rows: Schmidhuber 1992, Neural Computation 4:243.
    """

    max_influences: int = number(whole, "max_influences", default=100_000_000)
    workspace: int = number(whole, "workspace", default=30_000_000)
    train: Filter = None
    allow_zero: tuple[str, ...] = ()

    def rule(self) -> Rule:
        """All influences, or the derivative of all state."""
        return Rule(Everything(self.workspace, self.max_influences))


def _all(wiring: Wiring, limit: int) -> sp.csr_array:
    """All neurons that any number of steps leads to.

    Raises:
        UntracedError: to keep the whole derivative takes less time, or to keep each use of a parameter too much memory.
    """
    a, units, edges = wiring.links.grouping.reading, wiring.num_hidden, len(wiring.edges.sink)
    moving = [i for i in a.trained if any(s[0] == "n" for s in a.within_step(("p", i)))]
    values = sum(leaf.size for leaf in a.program.shapes(a.params[i] for i in moving))
    kept, full = wiring.count_all(), values * units
    if 0 < full <= 2 * kept and math.prod(wiring.links.batch) * full <= limit:
        by_columns, by_rows = 2 * values * edges, 2 * units * edges + full * units // STEPS
        if min(by_columns, by_rows) * units <= PRODUCTS * kept * edges or kept > limit:
            raise UntracedError("model: its units act on each other by nearly all ways that there are.")
    return wiring.reach(None, None, limit)


@dataclass(frozen=True)
class Everything(Storage):
    """All influences: on the pairs of synapse and unit that act on each other, or as one matrix."""

    workspace: int
    max_influences: int
    has_past = True

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> Engine:
        """Read a model if its influences are kept one by one, as those of the carry are, or as is less work."""
        pattern = Pattern(lambda w: _all(w, self.max_influences), ("RTRL",), self.max_influences, "exact", True)
        if task.carry is not None and isinstance(task.carry.traces, Influences):
            return pattern.read(model, state, x, task)
        if task.carry is None:
            check_reach(model, state, x, task.train, task.allow_zero)
        links = None
        try:
            engine = pattern.read(model, state, x, task)
            if _acts_through_ops(engine.grouping) and engine.links.all is not None:
                links = engine.links if _has_batch(engine.links) else None
                if task.carry is None:
                    engine.begin(model)
                    return engine
        except (UntracedError, NotImplementedError):
            pass  # units are mixed, or an op does not say which synapses it has
        if task.carry is None:
            check_linear(model, state, x, task.train)
        return ByParameter(self.max_influences, self.workspace, task, links)

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> Derivative | Influences:
        """Influences on the units of some batch elements."""
        if isinstance(carry.traces, Derivative):
            return restarted_rows(carry, zero)
        return restarted_influences(carry.traces, where, zero)


def _acts_through_ops(grouping: Grouping) -> bool:
    """Whether nothing trained acts on hidden state, and no hidden state on itself, by other ways than ops."""
    a = grouping.reading
    if any(not c.is_op and grouping.stops[c.number] for c in a.calls):
        return False
    return not any(s[0] == "n" and s[1] in grouping.cluster for i in a.plain for s in a.outside_ops(i))


def _has_batch(links: UnitLinks) -> bool:
    """Whether all that an op puts out has the batch axes, so that what comes back to it is of one batch element."""
    count = len(links.batch)
    return all(c.y(links.program).shape[:count] == links.batch for c in links.carriers)
