"""From raw edges to a graph: the policies for duplicates and self-loops, and the check of weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._types import Column
from .columns import plain_column, taken
from .connectivity import Connectivity, by_receiver, edge_arrays, host_array
from .graph import Graph

SMALLER = "Its weights are finite, their sum is not: make them smaller."


@dataclass(frozen=True)
class Policies:
    """What a converter does about parallel synapses and self-loops, and the type of its weight; see `from_edges`."""

    duplicates: str
    self_loops: str
    dtype: DTypeLike
    notes: list[str] | None = None
    """Takes what "sum" made one of, where the caller did not ask for it."""
    drops_attrs: bool = False
    """Whether "sum" leaves out an attribute that differs between parallel synapses, which is refused otherwise."""

    def __post_init__(self) -> None:
        if self.duplicates not in ("keep", "sum", "error"):
            raise ValueError(f"duplicates: expected 'keep', 'sum' or 'error', got {self.duplicates!r}.")
        if self.self_loops not in ("keep", "drop", "add"):
            raise ValueError(f"self_loops: expected 'keep', 'drop' or 'add', got {self.self_loops!r}.")


class _Edges(NamedTuple):
    """Edges with their weights and attributes, and how errors call one."""

    pre: np.ndarray
    post: np.ndarray
    weight: np.ndarray
    attrs: dict[str, np.ndarray]
    name_of: Callable[[int, int], str]

    def at(self, chosen: np.ndarray) -> "_Edges":
        """Some of them, in this order."""
        attrs = {key: column[chosen] for key, column in self.attrs.items()}
        return _Edges(self.pre[chosen], self.post[chosen], taken(self.weight, chosen), attrs, self.name_of)


def build_graph(
    pre: Any,
    post: Any,
    weight: Any,
    shape: Sequence,
    nodes: Sequence | None = None,
    node_attrs: Mapping[str, Column] | None = None,
    edge_attrs: Mapping[str, Column] | None = None,
    *,
    policies: Policies,
    name: Callable[[int, int], str] | None = None,
) -> Graph:
    """Build a graph from edges in any order. `pre` and `post` are indices; `edge_attrs` is aligned with them.

    `name` is how errors call an edge; None for its indices or `nodes`.
    """
    dtype = check_dtype(policies.dtype)
    pre, post, (num_pre, num_post) = edge_arrays(pre, post, shape)
    attrs = {key: plain_column(column, f"edge_attrs[{key!r}]") for key, column in (edge_attrs or {}).items()}
    for key, column in attrs.items():
        if column.shape[:1] != (pre.size,):
            raise ValueError(
                f"edge_attrs[{key!r}]: expected {pre.size} entries along the first axis, got shape {column.shape}."
            )

    def by_nodes(i: int, j: int) -> str:
        offset = 0 if num_pre == num_post else num_pre
        ends = (i, j + offset) if nodes is None else (nodes[i], nodes[j + offset])
        return f"synapse {ends[0]!r} -> {ends[1]!r}"

    name_of = name or by_nodes
    weight = check_weight(weight, pre.size, dtype, lambda k: f"{name_of(int(pre[k]), int(post[k]))} (entry {k})")
    edges = _Edges(pre, post, weight, attrs, name_of)
    if policies.self_loops != "keep":
        edges = _with_self_loops(edges, policies.self_loops, (num_pre, num_post))
    is_carried = not edges.attrs and edges.weight.itemsize == 4
    found, connectivity = by_receiver(edges.pre, edges.post, (num_pre, num_post), edges.weight if is_carried else None)
    attrs = {key: column[found] for key, column in edges.attrs.items()}
    ends = np.asarray(connectivity.pre), np.asarray(connectivity.post)
    edges = _Edges(*ends, found if is_carried else taken(edges.weight, found), attrs, name_of)
    if policies.duplicates != "keep":
        first = _first_of_parallel(edges, policies.duplicates)
        if first.size < edges.pre.size:
            edges = _summed(edges, first, policies)
            connectivity = Connectivity.from_edges(edges.pre, edges.post, shape=(num_pre, num_post))
    return Graph(connectivity, jax.device_put(edges.weight), nodes, node_attrs, edges.attrs)


def _with_self_loops(edges: _Edges, policy: str, shape: tuple[int, int]) -> _Edges:
    """Without the self-loops, or with one of weight 1 at each node that has none."""
    if shape[0] != shape[1]:
        raise ValueError(
            f"self_loops: expected 'keep' for a graph that is not square, of shape {shape}, got {policy!r}."
        )
    pre, post, weight, attrs, name_of = edges
    if policy == "drop":
        return edges.at(np.flatnonzero(pre != post))
    missing = np.setdiff1d(np.arange(shape[0], dtype=np.int32), pre[pre == post])
    if missing.size and attrs:
        raise ValueError(
            "self_loops: expected 'keep' or 'drop' where there are edge attributes, got 'add', and no value "
            f"of {next(iter(attrs))!r} for the new {name_of(int(missing[0]), int(missing[0]))}. Leave it out "
            "of `edge_attrs`, or give the self-loops."
        )
    weight = np.concatenate([weight, np.ones(missing.size, weight.dtype)])
    return _Edges(np.concatenate([pre, missing]), np.concatenate([post, missing]), weight, attrs, name_of)


def _first_of_parallel(edges: _Edges, policy: str) -> np.ndarray:
    """Of edges in canonical order, the first one of each pair of nodes."""
    pre, post, name_of = edges.pre, edges.post, edges.name_of
    start = np.concatenate([[True], (pre[1:] != pre[:-1]) | (post[1:] != post[:-1])])[: pre.size]
    if policy == "error" and not start.all():
        k = int(np.argmin(start))
        raise ValueError(
            "duplicates: expected 'keep' or 'sum' where synapses are parallel, got 'error', and "
            f"{name_of(int(pre[k]), int(post[k]))} twice."
        )
    return np.flatnonzero(start)


def _summed(edges: _Edges, first: np.ndarray, policies: Policies) -> _Edges:
    """One edge for each pair of nodes, its weight the sum of those of all."""
    one = edges.at(first)

    def name(k: int) -> str:
        return edges.name_of(int(one.pre[k]), int(one.post[k]))

    run = np.repeat(np.arange(first.size), np.diff(first, append=edges.pre.size))
    for key, column in edges.attrs.items():
        same = column[first][run]
        differs = (column != same) & ((column == column) | (same == same))  # a NaN is itself
        if differs.any() and policies.drops_attrs:
            del one.attrs[key]
        elif differs.any():
            raise ValueError(
                f"duplicates: expected 'keep' where edge attribute {key!r} differs between parallel "
                f"synapses, got 'sum', which merges {name(int(run[np.argwhere(differs)[0][0]]))}. Use "
                "'keep', or leave it out of `edge_attrs`."
            )
    if policies.notes is not None:
        lost = [key for key in edges.attrs if key not in one.attrs]
        without = f", without {lost}, which differ among them" if lost else ""
        policies.notes.append(
            f"summed {edges.pre.size} rows into {first.size} synapses{without} (to keep rows apart: duplicates='keep')"
        )
    weight = np.add.reduceat(edges.weight.astype(np.float64), first)
    weight = check_weight(weight, first.size, edges.weight.dtype, lambda k: f"the sum over {name(k)}", SMALLER)
    return one._replace(weight=weight)


def check_dtype(dtype: DTypeLike) -> np.dtype:
    """Return `dtype` as a floating type that JAX has here; 64 bits are refused, not shortened, where JAX has 32."""
    kind = jnp.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"dtype: expected a floating type, for example 'float32', got {kind}.")
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        raise ValueError(
            f"dtype: expected 32 bits at most without 64-bit JAX, got {kind}. Call "
            "jax.config.update('jax_enable_x64', True) first."
        )
    return kind


def check_weight(
    weight: Column | None,
    num_synapses: int,
    dtype: DTypeLike,
    where: Callable[[int], str],
    way_out: str = "Correct or remove it.",
) -> np.ndarray:
    """Return weights as a finite numpy array, one per synapse; None is 1 for all.

    Args:
        weight: numbers, `(num_synapses,)`, or None.
        num_synapses: how many are needed.
        dtype: a numpy floating type.
        where: describes synapse `k` in an error.
        way_out: what to do about it.

    Returns:
        `(num_synapses,)`; the given array itself if it needs no conversion.

    Raises:
        TypeError: weights are traced or no real numbers.
        ValueError: wrong length, or a weight that is not finite in `dtype`.
    """
    if weight is None:
        return np.ones(num_synapses, dtype)
    weight = weight if isinstance(weight, jax.Array) else plain_column(weight, "weight")
    array = host_array("weight", weight)
    if array.shape != (num_synapses,):
        raise ValueError(f"weight: expected one entry per synapse, ({num_synapses},), got shape {array.shape}.")
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"weight: expected real numbers, got {array.dtype}. Convert them first.")
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    finite = np.isfinite(result)
    if not finite.all():
        k = int(np.argmin(finite))
        raise ValueError(
            f"weight: expected numbers that are finite in {result.dtype}, got {array[k]} for {where(k)}. {way_out}"
        )
    return result
