"""What `fit` returns, and what its callbacks see."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import PyTree

from .._learner import Carry
from .._text import DataFrame, data_frame


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
        model: the trained model; with a `patience`, that of the best validation so far.
        opt_state: state of the optimizer.
        carry: where the last sequence ended.
        metrics: columns with one entry for each sequence: `updates` up to there, `loss` (mean per step), each metric,
            and the same of the validation (`validation_loss`, ...; NaN where there was none).
        stopped: why it ended: `"end of data"`, `"interrupted"`, `"patience"`, `"callback"`, or the text of a callback.
    """

    model: PyTree
    opt_state: optax.OptState
    carry: Carry
    metrics: dict[str, np.ndarray]
    stopped: str

    @property
    def losses(self) -> np.ndarray:
        """Mean loss per step of each sequence."""
        return self.metrics["loss"]

    def to_dataframe(self) -> DataFrame:
        """The metrics as a pandas data frame with one row for each sequence."""
        return data_frame(self.metrics)


class Progress(NamedTuple):
    """What a callback of `fit` sees after each sequence.

    Attributes:
        sequences, updates: how many there were so far, those before a resumption included.
        model, opt_state, carry: where they are now.
        metrics: the row of this sequence.
    """

    sequences: int
    updates: int
    model: PyTree
    opt_state: optax.OptState
    carry: Carry
    metrics: dict[str, float]


Callback = Callable[[Progress], bool | str | None]  # True, or a text that says why, ends the training
