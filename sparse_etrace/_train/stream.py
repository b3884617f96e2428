"""Streams of snapshots of a graph: what nodes show, what is asked of them, and edges that may change."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._numbers import positive
from .batches import Pair


class SnapshotStream(eqx.Module):
    """Snapshots of a graph, time first.

    What is missing (NaN) in `targets` becomes 0 and is False in `mask`; what is missing in `features` is what the node
    showed last, or 0. Edges that differ by step are arrays of one length, with room for the most that a step has:
    places without an edge have the weight 0 and both ends at the number of nodes, as `se.spread` leaves them out.

    Args:
        features: `(steps, nodes, features)`.
        targets: `(steps, nodes, ...)`, or any shape with time first.
        edges: None where they stay the same; or `(pre, post, weight)`, each with one array for each step.

    Attributes:
        features, targets: as above, without gaps.
        mask: where a target is known; None: everywhere.
        edges: `(pre, post, weight)`, each `(steps, room)`, or None.

    Raises:
        TypeError: `pre` or `post` are no whole numbers.
        ValueError: lengths differ, or an edge leads to a node that there is not.

    Example:
        >>> import numpy as np, sparse_etrace as se
        >>> speed = np.arange(40.0).reshape(10, 4)                              # 10 steps, 4 sensors
        >>> stream = se.SnapshotStream.ahead(speed[..., None], (1, 3))
        >>> len(stream), stream.xs.shape, stream.ys.shape
        (7, (7, 4, 1), (7, 4, 2))
    """

    features: Float[Array, "steps nodes features"]
    targets: Float[Array, "steps *shape"]
    mask: Bool[Array, "steps *shape"] | None
    edges: tuple[Int[Array, "steps room"], Int[Array, "steps room"], Float[Array, "steps room"]] | None

    def __init__(
        self,
        features: ArrayLike,
        targets: ArrayLike,
        edges: tuple[Sequence[ArrayLike], Sequence[ArrayLike], Sequence[ArrayLike]] | None = None,
    ):
        shown, asked = np.asarray(features, np.float32), np.asarray(targets, np.float32)
        if shown.ndim != 3 or len(asked) != len(shown):
            raise ValueError(
                "features, targets: expected (steps, nodes, features) and as many steps, got shapes "
                f"{shown.shape} and {asked.shape}."
            )
        known = np.isfinite(asked)
        self.features, self.targets = jnp.asarray(_filled(shown)), jnp.asarray(np.where(known, asked, 0))
        self.mask = None if known.all() else jnp.asarray(known)
        self.edges = None if edges is None else _padded(edges, *shown.shape[:2])

    @classmethod
    def ahead(
        cls, series: ArrayLike, horizons: Sequence[int], feature: int = 0, edges: tuple | None = None
    ) -> "SnapshotStream":
        """What one feature of each node will be so many steps later, `(steps, nodes, horizons)`.

        Args:
            series: `(steps, nodes, features)`; NaN where something is missing.
            horizons: steps ahead, each at least 1; `label_delay` of `fit` is the same numbers.
            feature: which one is asked for.
            edges: as above, for all steps of the series.
        """
        values, most = np.asarray(series, np.float32), max(horizons, default=0)
        if min(horizons, default=0) < 1 or values.ndim != 3 or len(values) <= most:
            raise ValueError(
                f"horizons: expected steps ahead, at least 1 and fewer than those of a series of (steps, nodes, "
                f"features), got {tuple(horizons)} and shape {values.shape}."
            )
        steps = len(values) - most
        targets = np.stack([values[h : h + steps, :, feature] for h in horizons], -1)
        cut = None if edges is None else tuple(part[:steps] for part in edges)
        return cls(values[:steps], targets, cut)

    @property
    def xs(self) -> PyTree[Array]:
        """Inputs: the features, with edges that change `(features, pre, post, weight)`."""
        return self.features if self.edges is None else (self.features, *self.edges)

    @property
    def ys(self) -> PyTree[Array]:
        """Targets, with gaps `(targets, mask)`."""
        return self.targets if self.mask is None else (self.targets, self.mask)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, part: slice) -> "SnapshotStream":
        """Some steps of it."""
        if not isinstance(part, slice):
            raise TypeError(f"part: expected a slice of steps such as stream[:100], got {part!r}.")
        return jax.tree.map(lambda leaf: leaf[part], self)

    def sequences(self, steps: int) -> list[Pair]:
        """Pairs `(xs, ys)` of so many steps, one after the other, for `fit(carry=True)`; a rest is left out."""
        steps = positive("steps", steps)
        parts = [self[k : k + steps] for k in range(0, len(self) - steps + 1, steps)]
        return [(part.xs, part.ys) for part in parts]


def _filled(values: np.ndarray) -> np.ndarray:
    """With what was seen last where nothing was, or 0."""
    known = np.isfinite(values)
    last = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None, None], 0), axis=0)
    return np.nan_to_num(np.take_along_axis(np.where(known, values, 0), last, axis=0))


def _padded(edges: tuple, steps: int, nodes: int) -> tuple[Array, Array, Array]:
    """Edges of each step in arrays of one length."""
    pre, post, weight = ([np.atleast_1d(np.asarray(part)) for part in several] for several in edges)
    if kinds := [p.dtype for p in (*pre, *post) if p.size and not np.issubdtype(p.dtype, np.integer)]:
        raise TypeError(f"edges: expected pre and post of whole numbers, got {kinds[0]}.")
    counts = [[len(part) for part in several] for several in (pre, post, weight)]
    if any(count != counts[0] for count in counts) or len(pre) != steps:
        raise ValueError(
            f"edges: expected (pre, post, weight) with arrays of one length for each of {steps} steps, got "
            f"{', '.join(str(len(several)) for several in (pre, post, weight))} steps and other lengths."
        )
    room = max(counts[0], default=0)
    for name, several in ("pre", pre), ("post", post):
        for k, part in enumerate(several):
            if part.size and not (part.min() >= 0 and part.max() <= nodes):
                raise ValueError(f"edges: expected nodes below {nodes}, got {name} {part.tolist()} in step {k}.")

    def stacked(several: list[np.ndarray], empty: int, dtype: type) -> Array:
        full: np.ndarray = np.full((steps, room), empty, dtype)
        for row, part in zip(full, several, strict=True):
            row[: len(part)] = part
        return jnp.asarray(full)

    return stacked(pre, nodes, np.int32), stacked(post, nodes, np.int32), stacked(weight, 0, np.float32)
