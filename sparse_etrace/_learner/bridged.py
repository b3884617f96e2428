"""Reverse mode within windows, bridged by the traces of another rule."""

from .._model.types import Filter
from .._numbers import whole
from .._rule.bridge import Bridge
from .._rule.engine import NO_PAST, Rule
from .._rule.signal import Signal
from .d_rtrl import D_RTRL
from .learner import RuleLearner


class Bridged(RuleLearner):
    """Exact credit within windows, and the traces of a rule for what came before them.

    For a window of K steps from state `h_0`, with traces `eps_0 = dh_0/dtheta` as the rule keeps them,
    `dtheta += dL/dtheta (h_0 constant) + lam_0 . eps_0`, `L` the losses of the window and `lam_0 = dL/dh_0` through
    everything in it; then the rule's recursion takes `eps` through the window. With all steps in one window that is
    BPTT, with `RTRL` it is exact for each K. A parameter without a trace (a plain array, one in front of a cut) has its
    window's gradient; so have those of hidden state of which the rule refuses to keep traces, because its units are
    mixed by anything but ops or the like, of which a warning at `init` tells. In graph networks that multiply before
    they spread, take `D_RTRL(through_ops=True)`.

    Args:
        window: K, at least 1; `chunk` of `online_grad` takes its place. A call of fewer steps is a window of its own.
        rule: `D_RTRL`, `ES_D_RTRL`, `Hybrid`, `SnAp` or `RTRL`; its own `train` and `allow_zero` are not used.
        train, allow_zero: see `D_RTRL`.

    Raises:
        TypeError: `window` is no whole number, or `rule` no such learner.
        ValueError: `window` is below 1; or, at `init`, a trained leaf can never get a gradient.
        NotImplementedError: the traces of the rule are no derivatives of the state.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> cell = se.cells.LeakyRate(3, se.ETraceParam({'weight': jnp.ones((2, 3))}, se.MatMulOp()), decay=0.9)
        >>> learner, xs, ys = se.Bridged(window=4), jnp.ones((12, 2)), jnp.zeros((12, 3))
        >>> carry = learner.init(cell, cell.init_state(), xs[0])
        >>> losses, grads, carry = se.online_grad(learner, lambda o, y: jnp.sum((o - y) ** 2), cell, carry, xs, ys)

    Reference:
        Schmidhuber 1992, Neural Computation 4:243, for the exact rule.
    """

    steps: int
    before: RuleLearner
    train: Filter
    allow_zero: tuple[str, ...]

    def __init__(
        self, window: int = 16, rule: RuleLearner | None = None, train: Filter = None, allow_zero: tuple[str, ...] = ()
    ):
        self.steps, self.before = whole("window", window), D_RTRL() if rule is None else rule
        self.train, self.allow_zero = train, allow_zero
        if self.steps < 1:
            raise ValueError(f"window: expected at least 1 step, got {self.steps}.")
        if not isinstance(self.before, RuleLearner):
            raise TypeError(f"rule: expected a learner such as se.D_RTRL(), got {self.before!r}.")
        self.rule()

    def __repr__(self) -> str:
        given = {"window": self.steps, "rule": self.before, "train": self.train, "allow_zero": self.allow_zero}
        words = (f"{name}={value!r}" for name, value in given.items() if value is not None and value != ())
        return f"Bridged({', '.join(words)})"

    def rule(self) -> Rule:
        """Windows, bridged by what the rule keeps."""
        storage, signal = self.before.rule()
        if signal != Signal() or not storage.has_past:
            raise NotImplementedError(NO_PAST)
        return Rule(Bridge(storage, self.steps))
