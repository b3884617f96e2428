"""SnAp: the influence of a synapse on the units that it reaches within a few steps."""

import equinox as eqx
import jax
import numpy as np
import scipy.sparse as sp
from jax.typing import ArrayLike
from jaxtyping import Array

from .._graph.connectivity import Connectivity
from .._graph.graph import Graph
from .._model.program import is_key
from .._model.types import Filter
from .._numbers import number, whole
from .._rule.by_parameter import Near
from .._rule.engine import Rule
from .._rule.influence_engine import Pattern
from .._rule.reach import Wiring
from .learner import RuleLearner

RANDOM = "random"


def _read_pattern(pattern: str | Connectivity | Graph | sp.sparray | ArrayLike | None) -> str | Connectivity | None:
    if pattern is None or isinstance(pattern, str | Connectivity):
        return pattern
    if isinstance(pattern, Graph):
        return pattern.connectivity
    if not sp.issparse(pattern) and np.ndim(pattern) != 2:
        raise ValueError(f"pattern: expected a matrix, neurons by neurons, got shape {np.shape(pattern)}.")
    entries = sp.coo_array(pattern)
    if not np.all(np.isfinite(entries.data)):
        raise ValueError("pattern: expected finite entries, got NaN or infinity. Zero is no influence, all else one.")
    kept = entries.data != 0
    return Connectivity.from_edges(entries.row[kept], entries.col[kept], shape=entries.shape)


def _is_one_key(key: object) -> bool:
    return isinstance(key, jax.Array) and is_key(key) and not key.shape


class SnAp(RuleLearner):
    """Sparse n-step approximation of RTRL: each synapse's influence on the units within `n - 1` steps of its target.

    With P the units that `n - 1` steps of the whole hidden Jacobian, ops included, lead to from the target, all hidden
    variables of each: `Jy <- P o (dy/dx dx/dh J) + x`, `dv += m . J + n . Jy`, `J <- D J + F Jy`. `n = 1` is D-RTRL
    where no unit feeds itself through an op, more steps add the ways through other units, and once P has no more to
    add it is exact. Influences are kept for `variables * sum_i indegree(i) * |P(i)|` pairs of synapse and unit.

    An op that acts through another op within the step reaches what that other one drives with the second step. What an
    op output that leads to `out` alone says to the units it reads counts whole. One number for all units (a scalar
    `ElemWiseParam`) has all units as its targets.

    Args:
        n: steps, at least 1; None for all. Ignored for a given pattern.
        pattern: `"random"` lets influence pass into each unit from `paths` others only, so that n counts these ways;
            a `Connectivity`, or a matrix `(neurons, neurons)` of any scipy
            format or an array, keeps the influence of the synapses onto unit
            i on unit k where entry `[i, k]` is not zero, and always that on i. Neurons are counted through the hidden
            variables in `jax.tree` order, those that are variables of one neuron once.
        paths: for `"random"`: into each unit; at least 1.
        key: for `"random"`: chooses them.
        per: `"use"`, each synapse has influences of its own. `"parameter"`: what is used at many places (a matrix on
            the features of each node, a tie, a convolution) has its total influence on each node, kept on those within
            `n - 1` hops of where it is used; a matrix that all nodes share is then exact for each n, and all is when n
            reaches the diameter. A node is what no op but such a matrix joins.
        workspace: for `"parameter"`: bytes for what is computed at once.
        max_influences: the most that are kept for each batch element; more is an error before anything is allocated.
        train, allow_zero: see `D_RTRL`.

    Raises:
        TypeError: `n` or `paths` is no whole number.
        ValueError: `n` or `paths` is below 1, `pattern` is none of these or has another shape, `key` and `paths` are
            given without `"random"` or not with it, `per` is neither; or as `init`.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> conn = se.Connectivity.from_edges([0, 1, 2], [1, 2, 0], shape=(3, 3))
        >>> cell = se.cells.LeakyRate.of(conn, inputs=2, key=jax.random.key(0), bias=False)
        >>> [se.SnAp(n=n).init(cell, cell.init_state(), jnp.ones(2)).traces.blocks.size for n in (1, 2, 3, 4)]
        [9, 18, 27, 27]

    Reference:
        Menick et al. 2021, International Conference on Learning Representations (arXiv 2006.07232); random paths:
        Shalev-Merin 2026 (arXiv 2603.15195).
    """

    n: int | None = number(whole, "n", optional=True, default=2)
    pattern: str | Connectivity | None = eqx.field(converter=_read_pattern, default=None)
    paths: int | None = number(whole, "paths", optional=True, default=None)
    key: Array | None = None
    per: str = "use"
    workspace: int = number(whole, "workspace", default=30_000_000)
    max_influences: int = number(whole, "max_influences", default=100_000_000)
    train: Filter = None
    allow_zero: tuple[str, ...] = ()

    def __check_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ValueError(f"n: expected at least 1, or None for all steps, got {self.n}. The target itself counts.")
        is_random = isinstance(self.pattern, str)
        if is_random and self.pattern != RANDOM:
            raise ValueError(f"pattern: expected 'random', a matrix or None, got {self.pattern!r}.")
        has = (self.paths is not None, self.key is not None)
        if has != (is_random, is_random) or (is_random and not _is_one_key(self.key)):
            raise ValueError(
                f"paths, key: expected a number and a key of jax.random.key with pattern='random' and none else, got "
                f"{self.paths!r} and {self.key!r}."
            )
        if self.per not in ("use", "parameter"):
            raise ValueError(f"per: expected 'use' or 'parameter', got {self.per!r}.")
        if self.per == "parameter" and self.pattern is not None:
            raise ValueError(f"pattern: expected None with per='parameter', which counts hops, got {self.pattern!r}.")
        if self.paths is not None and self.paths < 1:
            raise ValueError(f"paths: expected at least 1 into each unit, got {self.paths}.")

    def rule(self) -> Rule:
        """Influences on the pattern, and the model's own learning signal."""
        if self.per == "parameter":
            return Rule(Near(None if self.n is None else self.n - 1, self.workspace, self.max_influences))
        named = self.pattern if isinstance(self.pattern, str) else self.pattern is None
        gradient = "exact" if self.n is None and self.pattern is None else "truncated"
        return Rule(Pattern(self._reach, ("SnAp", self.n, named, self.paths), self.max_influences, gradient))

    def _reach(self, wiring: Wiring) -> sp.csr_array:
        """Neurons within `n - 1` steps, or as the pattern says."""
        if self.pattern is None or isinstance(self.pattern, str):
            if self.paths is not None and self.key is not None:
                seed = np.asarray(jax.random.key_data(self.key)).ravel()
                wiring.keep_random_paths(self.paths, np.random.default_rng(seed))
            return wiring.reach(None if self.n is None else self.n - 1, None, self.max_influences)
        given, shape = self.pattern, (wiring.num_neurons,) * 2
        if given.shape != shape:
            raise ValueError(f"pattern: expected shape {shape}, neurons by neurons, got {given.shape}.")
        ends = np.asarray(given.pre), np.asarray(given.post)
        pattern = sp.csr_array((np.ones(given.num_synapses, bool), ends), shape=shape)
        return wiring.reach(None, pattern, self.max_influences)
