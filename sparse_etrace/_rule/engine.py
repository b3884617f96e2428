"""A rule on a model that was read once: what every engine does, and what a rule keeps and is taught by."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from .._model.call import Call
from .._model.constant import constant, held
from .._model.grouping import Grouping
from .._model.origin import Origin
from .._model.trained import struct
from .._model.types import Filter, Like
from .._types import Loss, Model
from .signal import Signal


class Carry(eqx.Module):
    """What goes from one step to the next: the state of the model, the traces of the learner, what else it keeps.

    `origin` says of which connectivity; without it nothing is checked.
    """

    state: PyTree[Array]
    traces: PyTree[Array]
    memory: PyTree[Array] = None
    origin: Origin | None = None


def cut(carry: Carry, *inputs: PyTree) -> Carry:
    """A carry after a step, which later steps read as a constant; a loss that reads it is an error."""
    words = (
        "carry: a loss reads what `step` returned for the next one, which has no derivative. Let the model return in "
        "`out` what the loss needs of its state, or read jax.lax.stop_gradient(carry)."
    )
    return constant(held(carry), inputs, words, late=True)


class Window(eqx.Module):
    """Result of several steps.

    Attributes:
        losses: one for each step.
        aux: what `loss_fn` returned besides, stacked.
        grads: the summed gradient, like the model with None where nothing is trained.
        carry: after the last step.
    """

    losses: Array
    aux: PyTree[Array]
    grads: PyTree[Array]
    carry: Carry


class Use(eqx.Module):
    """What `explain` says of one weight leaf of an op call.

    Attributes:
        rule: one of the words of `explain`.
        traces: shapes and types of its traces or factors.
        groups: for each group that it is traced into, the numbers of its hidden variables.
        notes: what the rule leaves out, in words.
    """

    rule: str
    traces: tuple[jax.ShapeDtypeStruct, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()


class Task(NamedTuple):
    """What a learner asks of its storage.

    Attributes:
        train: what is trained.
        allow_zero: names of leaves that may stay without gradient.
        signal: what teaches.
        carry: of a gradient that goes on; None at the start.
        is_all: whether what the storage does not follow has no gradient, so that it is refused or warned of.
    """

    train: Filter
    allow_zero: tuple[str, ...]
    signal: Signal
    carry: Carry | None
    is_all: bool = True


NO_PAST = (
    "rule: expected one whose traces are derivatives of the state and whose learning signal is the model's own, got "
    "another. Take se.D_RTRL(), se.ES_D_RTRL(), se.Hybrid(), se.SnAp() or se.RTRL()."
)


Observed = tuple[PyTree[Array], PyTree[Array], PyTree[Array]]
"""New state and output of a step, and what the traces need to follow it."""


class Part(NamedTuple):
    """What of a carry some steps read.

    Attributes:
        engine, carry, xs: of that alone.
        back: the whole carry, from what the part has become.
    """

    engine: "Engine"
    carry: Carry
    xs: PyTree[Array]
    back: Callable[[Carry], Carry]


class Engine(abc.ABC):
    """What a learner makes of a model by reading it once; every step and window of one gradient asks it.

    Attributes:
        reads_in_place: whether a window takes inputs and targets each as a `Slice` of the whole.
    """

    reads_in_place: bool = False

    @abc.abstractmethod
    def init(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Check the model against the rule, and start."""

    def begin(self, model: Model) -> object:
        """Refuse what only the arrays of a model show."""
        return None

    @abc.abstractmethod
    def step(self, model: Model, carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the traces."""

    @abc.abstractmethod
    def window(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window:
        """Several steps with their summed gradient; `loss_fn` returns `(loss, aux)`."""

    def bridged(self, model: Model, carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Loss) -> Window | None:
        """Steps differentiated together, where there is a quicker way than by `recall` and `follow`."""
        return None

    def carry_shapes(self, model: Model, state: PyTree, x: PyTree) -> Carry:
        """Shapes and types of what `init` returns."""
        return eqx.filter_eval_shape(self.init, model, state, x)

    def window_steps(self, model: Model, carry: Carry, xs: PyTree[Array]) -> int | None:
        """How many steps `online_grad` takes at once unless told; None for all of them."""
        return None

    def seen(self, state: PyTree, x: PyTree) -> tuple[PyTree, PyTree]:
        """What the model gets of a state and an input."""
        return state, x

    def part(self, carry: Carry, xs: PyTree[Array]) -> Part:
        """What of a carry these steps read."""
        return Part(self, carry, xs, lambda carry: carry)

    def recall(self, model: Model, carry: Carry, by_state: list[Array]) -> list[Array | None]:
        """The gradient that the past has in a loss, from its derivative by each leaf of the state that `carry` holds.

        It has an entry for each array of the model, None where there is none.
        """
        raise NotImplementedError(NO_PAST)

    def observed(self, model: Model, state: PyTree[Array], x: PyTree[Array]) -> Observed:
        """One step as the model is written, without any rule: new state, output, and what it says to the traces."""
        raise NotImplementedError(NO_PAST)

    def follow(self, model: Model, carry: Carry, said: PyTree[Array]) -> PyTree[Array]:
        """The traces after steps that said this, one after the other."""
        raise NotImplementedError(NO_PAST)

    @property
    def windows_are_free(self) -> bool:
        """Whether the gradient is the same for each length of windows."""
        return True

    @property
    def of_plain(self) -> str | None:
        """The rule of a plain array that acts on hidden state; None where it is that of all that is trained."""
        return None if self.grouping is None else "same-step only"

    @property
    def grouping(self) -> Grouping | None:
        """The hidden groups by which the rule goes; None where it sees the model from outside."""
        return None

    def use(self, carry: Carry, call: Call, leaf: int) -> Use | None:
        """By which rule a weight leaf of an op call learns; None where it is the same for all leaves."""
        return None

    def notes(self) -> list[str]:
        """What the rule leaves out on this model that no leaf says."""
        return []

    def reached(self, params: list[Array], state: list[Like], x: list[Like]) -> dict[int, int]:
        """Of each trained leaf, how many entries a learning signal can reach; nothing where nobody asks."""
        return {}

    def buffers(self, carry: Carry) -> dict[str, PyTree]:
        """Traces and what else the rule keeps, by names that `memory_plan` shows; traces begin with `trace of `."""
        return {"trace of all parameters": carry.traces}


class Storage(abc.ABC):
    """What a rule keeps from step to step.

    Attributes:
        gradient: what `explain` calls the gradient where nothing of the model makes it less.
        is_differentiable: whether derivatives of what `online_grad` returns are what JAX makes of them.
        grows: whether what is needed grows with the number of steps.
        has_past: whether what is kept is the derivative of the state by what is trained, so that `Engine.recall` knows
            what the past has in a loss.
        max_influences: the most that are kept; None for a rule without influences.
    """

    gradient: str = "exact"
    is_differentiable: bool = False
    grows: bool = False
    has_past: bool = False
    max_influences: int | None = None

    @property
    def has_rows(self) -> bool:
        """Whether what is kept of a batch element goes with its row of the state."""
        return self.has_past

    @abc.abstractmethod
    def read(self, model: Model, state: PyTree, x: PyTree, task: Task) -> Engine:
        """Read a model, once."""

    def around(self, engine: Engine, state: PyTree, x: PyTree, task: Task) -> Engine:
        """An engine as this storage would have it see state and input."""
        return engine

    def by_rows(self, lift: "Callable[[Storage], Storage]") -> "Storage":
        """With `lift` of what has rows.

        Raises:
            NotImplementedError: what is kept does not go with rows of the state.
        """
        if not self.has_rows:
            raise NotImplementedError(NO_PAST)
        return lift(self)

    def restart(self, carry: Carry, where: Array | None, zero: Callable[..., Array]) -> PyTree[Array]:
        """Traces of which some batch elements start again: those that `where` chooses, if it is given.

        `zero(now, number, axis)` is what becomes of an array whose axes from `axis` on are batch axes, if a leaf of the
        state has them: zero where batch elements start again.
        """
        return carry.traces


class Rule(NamedTuple):
    """A learning rule: what is kept, and what teaches it."""

    storage: Storage
    signal: Signal = Signal()


WRONG_TRACES = (
    "carry: its traces are not those of this learner and model. Make it with this learner's init, and again where the "
    "model, its shapes or what is trained has changed."
)


def refuse_traces(expected: PyTree, got: PyTree) -> None:
    """Raise for traces of another shape or type than `expected`, arrays or shapes."""
    if struct(got) != struct(expected):
        raise ValueError(WRONG_TRACES)
