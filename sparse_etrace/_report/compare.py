"""Is it the wiring? A task on a graph, and on random graphs that share something with it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, SupportsFloat, SupportsIndex

import jax
import numpy as np
from jaxtyping import Array

from .._graph.graph import Graph, check_graph
from .._numbers import positive, real, whole
from .._text import DataFrame, as_table, data_frame
from ..transform.nulls import rewire_degrees
from ..transform.origin import parts_of

Null = Callable[[Graph, Array], Graph]


class Controls(NamedTuple):
    """Scores on the graphs of one null model.

    Attributes:
        null: name of the null model.
        scores: one for each graph, `(nulls,)`.
        kept: share of the synapses of each that the graph has as well, of equal weight, `(nulls,)`.
        p_value: `(1 + those at least as good as the graph) / (1 + nulls)`.
    """

    null: str
    scores: np.ndarray
    kept: np.ndarray
    p_value: float


class Comparison(NamedTuple):
    """What `compare` returns; prints as a table.

    Attributes:
        score: that of the graph.
        controls: those of each null model.
    """

    score: float
    controls: tuple[Controls, ...]

    def __str__(self) -> str:
        rows = [("graph", "1", f"{self.score:.4g}", "-", "100 %", "-")]
        for null, scores, kept, p_value in self.controls:
            mean, spread = f"{scores.mean():.4g}", f"{scores.std():.2g}"
            rows.append((null, str(scores.size), mean, spread, f"{100 * kept.mean():.0f} %", f"{p_value:.3g}"))
        return as_table(("wiring", "graphs", "mean score", "spread", "synapses kept", "p"), rows)

    def to_dataframe(self) -> DataFrame:
        """A row for each graph: its wiring, score, synapses kept, and the p-value of its null model."""
        every = [Controls("graph", np.array([self.score]), np.ones(1), np.nan), *self.controls]
        sizes = [c.scores.size for c in every]
        scores, kept = (np.concatenate([getattr(c, name) for c in every]) for name in ("scores", "kept"))
        nulls, p_values = (np.repeat([getattr(c, name) for c in every], sizes) for name in ("null", "p_value"))
        return data_frame({"wiring": nulls, "score": scores, "kept": kept, "p_value": p_values})


def compare(
    train: Callable[[Graph, Array], SupportsFloat],
    graph: Graph,
    nulls: SupportsIndex = 20,
    *,
    null: Null | Mapping[str, Null] = rewire_degrees,
    better: str = "lower",
    seed: SupportsIndex = 0,
) -> Comparison:
    """Train one task on a graph and on null models of it: is the graph better than chance?

    Were the graph a draw of the null model, its score would be as good as the best of `nulls` others, or better, with
    probability `1 / (1 + nulls)`: 20 are the fewest that can tell at 5 %. Each training has a key of its own, so that
    luck with initial weights counts as chance.

    Args:
        train: `train(graph, key) -> score`, from scratch, with a key of `jax.random`; infinite where it failed.
        graph: square or rectangular.
        nulls: how many graphs of each null model.
        null: `null(graph, key) -> graph`, or several by name. Each unit keeps its numbers of synapses unless given;
            `functools.partial(se.transform.rewire_degrees, types="cell_type", signs=True)` keeps those by type and
            sign, `se.transform.shuffle_weights` the wiring.
        better: "lower", as of losses and errors, or "higher" scores.
        seed: the same one gives the same graphs and keys.

    Returns:
        The scores, and a p-value for each null model.

    Raises:
        TypeError: `graph` is no graph, or a score or a number is none.
        ValueError: `better` is unknown, a score is NaN, or a null model changes nothing.

    Example:
        >>> import jax.numpy as jnp, sparse_etrace as se
        >>> def reached(graph, key):                                           # from unit 0, instead of a training
        ...     return (jnp.linalg.matrix_power(graph.to_dense() + jnp.eye(12), 11)[0] > 0).sum()
        >>> ring = se.from_edges(range(12), [*range(1, 12), 0])
        >>> result = se.compare(reached, ring, nulls=4, better="higher")
        >>> result.score, result.controls[0].p_value
        (12.0, 0.2)

    Reference:
        Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9:39, of the p-value.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"better: expected 'lower' or 'higher' scores, got {better!r}.")
    count, key = positive("nulls", nulls), jax.random.key(whole("seed", seed))
    models = null if isinstance(null, Mapping) else {getattr(null, "__name__", "null"): null}

    def score(graph: Graph, key: Array, what: str) -> float:
        found = real("train", train(graph, key))
        if np.isnan(found):
            raise ValueError(f"train: expected a score, got NaN for {what}. Return infinity for what failed.")
        return found

    own, controls = score(check_graph(graph), jax.random.fold_in(key, 0), "the graph"), []
    for m, (name, draw) in enumerate(models.items()):
        scores, kept = np.zeros(count), np.zeros(count)
        for k in range(count):
            of_graph, of_training = jax.random.split(jax.random.fold_in(key, 1 + m * count + k))
            made = draw(graph, of_graph)
            kept[k] = _shared(graph, made)
            if kept[k] == 1:
                raise ValueError(
                    f"null: expected graphs other than the one given, got that itself from {name!r}. Let it keep less: "
                    "fewer types, or more rounds."
                )
            scores[k] = score(made, of_training, f"graph {k} of {name!r}")
        good = scores <= own if better == "lower" else scores >= own
        controls.append(Controls(name, scores, kept, (1 + int(good.sum())) / (1 + count)))
    return Comparison(own, tuple(controls))


def _shared(graph: Graph, made: Graph) -> float:
    """The share of synapses of a graph that another has."""

    def coded(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        parts = parts_of(graph)
        return parts.post.astype(np.int64) * graph.connectivity.num_pre + parts.pre, parts.weight

    (one, weight), (two, other) = coded(graph), coded(made)
    if not two.size or not one.size:
        return float(one.size == two.size)
    place = np.minimum(np.searchsorted(one, two), one.size - 1)
    return float(np.mean((one[place] == two) & (weight[place] == other)))
