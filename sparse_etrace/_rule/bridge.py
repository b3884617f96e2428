"""Windows in reverse mode whose start remembers: what came before a window is in the traces of a rule."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import equinox as eqx
from jaxtyping import Array, PyTree

from .._model.call import Call
from .._model.grouping import Grouping
from .._model.refusals import UntracedError
from .._model.trained import leaf_names, trained_filter
from .._op.contract import PartedError
from . import past
from .black_box import Backward, check_reach
from .engine import Carry, Engine, Loss, Model, Storage, Task, Use, Window, refuse_traces


class Untraced(eqx.Module):
    """In place of the traces of a storage that can keep none of a model."""

    storage: str = eqx.field(static=True)


@dataclass(frozen=True)
class Bridge(Storage):
    """The traces of a storage, and reverse mode within so many steps.

    Attributes:
        inner: keeps the traces.
        steps: of a window.
    """

    inner: Storage
    steps: int

    @property
    def gradient(self) -> str:  # type: ignore[override]
        """Exact where the traces are, else truncated at the start of a window."""
        return "exact" if self.inner.gradient == "exact" and self.inner.max_influences else "truncated"

    @property
    def max_influences(self) -> int | None:  # type: ignore[override]
        """Of the traces."""
        return self.inner.max_influences

    @property
    def has_rows(self) -> bool:
        """As the traces."""
        return self.inner.has_rows

    def by_rows(self, lift: Callable[[Storage], Storage]) -> Storage:
        """Windows, bridged by the rows of the traces."""
        return replace(self, inner=self.inner.by_rows(lift))

    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> "Bridged":
        """Read a model for the traces."""
        task = task._replace(is_all=False)
        if task.carry is not None:
            if not isinstance(task.carry.traces, Untraced):
                return Bridged(self.inner.read(model, state, x, task), self, task)
            refuse_traces(self._untraced, task.carry.traces)
            return Bridged(self.inner.around(Backward(task), state, x, task), self, task)
        try:
            inner = self.inner.read(model, state, x, task)
            inner.begin(model)
            return Bridged(inner, self, task, inner.grouping.untraced if inner.grouping else ())
        except PartedError:  # on one device it would have traces
            raise
        except (UntracedError, NotImplementedError) as reason:
            engine = self.inner.around(Backward(task, self._untraced), state, x, task)
            return Bridged(engine, self, task, (str(reason),))

    @property
    def _untraced(self) -> Untraced:
        return Untraced(type(self.inner).__name__)

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> PyTree[Array]:
        """Of the traces."""
        return carry.traces if isinstance(carry.traces, Untraced) else self.inner.restart(carry, where, zero)


class Bridged(Engine):
    """Reverse mode within windows, from a state that is a function of what its traces say."""

    windows_are_free = False

    def __init__(self, inner: Engine, storage: Bridge, task: Task, untraced: tuple[str, ...] = ()):
        self.inner, self.storage, self.task, self.untraced = inner, storage, task, untraced

    @property
    def grouping(self) -> Grouping | None:
        """That of the traces."""
        return self.inner.grouping

    @property
    def of_plain(self) -> str | None:
        """Truncated, unless the traces are of the model as a whole."""
        return "truncated" if self.untraced or self.grouping else None

    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check that every trained leaf reaches the output, say what has no trace, and start with traces of zero."""
        self._check(model, state, x)
        for note in self._without_trace():
            warnings.warn(note, stacklevel=4)
        carry = self.inner.init(model, state, x)
        # What has no trace learns within a window or not at all.
        allowed = (*self.task.allow_zero, *self._traced(model, carry))
        check_reach(model, *self.seen(state, x), self.task.train, allowed, self.storage.steps)
        return carry

    def carry_shapes(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Of the traces."""
        eqx.filter_eval_shape(self._check, model, state, x)
        return self.inner.carry_shapes(model, state, x)

    def _check(self, model: Model, state: PyTree, x: PyTree) -> None:
        check_reach(model, *self.seen(state, x), self.task.train, self.task.allow_zero)

    def seen(self, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        """As the traces."""
        return self.inner.seen(state, x)

    def _traced(self, model: Model, carry: Carry) -> list[str]:
        """Names of the leaves with traces."""
        if self.grouping is None:
            return [] if self.untraced else leaf_names(eqx.filter(model, trained_filter(model, self.task.train)))
        a = self.grouping.reading
        calls = [(c, k) for c in a.learning for k in range(len(c.weight_atoms))]
        kept = {(c.number, k) for c, k in calls if self.use(carry, c, k).rule != "truncated"}
        return [a.param_names[i] for i in a.trained if any(("w", *k) in a.within_step(("p", i)) for k in kept)]

    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """A window of one step."""
        return past.step(self.inner, self.task.train, model, carry, x)

    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Steps differentiated together, and the traces after them."""
        found = self.inner.bridged(model, carry, xs, ys, loss_fn)
        return found or past.window(self.inner, self.task.train, model, carry, xs, ys, loss_fn)

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int:
        """Those of the rule."""
        return self.storage.steps

    # --- what it is, in words ---------------------------------------------------------------------------------------

    def use(self, carry: Carry, call: Call, leaf: int) -> Use:
        """The rule of what came before a window; a leaf without trace is truncated there."""
        use = self.inner.use(carry, call, leaf) or Use(self.of_plain or self.storage.gradient)
        return use if use.rule != "same-step only" else Use("truncated")

    def notes(self) -> list[str]:
        """How far reverse mode reaches."""
        return [
            f"Within a window of {self.storage.steps} steps (or `chunk`) all is exact; the rule of a parameter is that "
            "of what came before it, and 'truncated' where no trace says anything of that.",
            *(self._without_trace() or self._mixed()),
        ]

    def _without_trace(self) -> list[str]:
        """What the rule would have refused by itself."""
        words = "What came before a window is left out where the rule can keep no trace."
        return [f"{words} {why}" for why in self.untraced]

    def _mixed(self) -> list[str]:
        """State that only ops read, which the rule takes for itself, but of which there is no trace."""
        grouping = self.grouping
        left = [] if grouping is None else sorted(set(grouping.cluster) - set(itertools.chain(*grouping.members)))
        names = ", ".join(repr(grouping.reading.state_names[i]) for i in left) if grouping else ""
        return [f"What {names} holds from before a window is left out: only ops read it."] if left else []

    def buffers(self, carry: Carry) -> dict[str, PyTree]:
        """Of the traces."""
        return self.inner.buffers(carry)
