"""An end of training for populations that fall silent or explode."""

import dataclasses

import numpy as np
from jax.typing import ArrayLike

from .._numbers import positive
from .._train.fit_result import Progress
from .named import values_of


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
    """A callback of `fit` that ends the training when the mean of a leaf over a population leaves its bounds.

    It looks after each sequence. The result's `stopped` then names the population, and what its mean is.

    Args:
        leaf: name of a leaf of the state, units last, in full or by its last part; `"means['z']"` of a model of
            `watched` is the rate per step of each unit over the sequence. Of a ring of what was sent, the newest.
        low, high: bounds of its mean over batch and population; below is silent, above explodes.
        group: name of each unit's population, `(units,)`; None: all are one.
        patience: so many sequences one after the other out of bounds end the training.

    Raises:
        TypeError, ValueError: a bound or `patience` is out of range; or, in training, `leaf` is not the name of one
            leaf, or `group` does not fit it.

    Example:
        >>> import sparse_etrace as se
        >>> limits = se.spikes.Limits("means['z']", low=0.001, high=0.1, group=["E", "E", "I"])
        >>> # se.fit(..., callbacks=limits).stopped: "population 'I' exploding: ..."
    """

    leaf: str
    low: float = -np.inf
    high: float = np.inf
    group: ArrayLike | None = None
    patience: int = 1
    _out: dict[str, int] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        positive("patience", self.patience)
        if not self.low < self.high:
            raise ValueError(f"low, high: expected low < high, got {self.low} and {self.high}.")

    def __call__(self, progress: Progress) -> str | None:
        """What population is out of bounds, and how; None if none is."""
        values = np.asarray(values_of(progress.carry.state, [self.leaf], "leaf")[self.leaf], float)
        units = values.reshape(-1, values.shape[-1]).mean(0)
        group = np.zeros(len(units), int) if self.group is None else np.asarray(self.group)
        if group.shape != units.shape:
            raise ValueError(f"group: expected a population for each of {len(units)} units, got shape {group.shape}.")
        said = []
        for name in np.unique(group).tolist():
            mean = float(units[group == name].mean())
            who = "all units" if self.group is None else f"population {name!r}"
            word = "silent" if mean < self.low else None if mean <= self.high else "exploding"
            self._out[who] = self._out.get(who, 0) + 1 if word else 0
            if self._out[who] >= self.patience:
                said.append(f"{who} {word}: the mean of {self.leaf!r} is {mean:.3g}, not {self.low:g} to {self.high:g}")
        if said:
            self._out.clear()
        return "; ".join(said) or None
