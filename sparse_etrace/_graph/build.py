"""From raw edges to a graph: the policies for duplicates and self-loops, and the check of weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .columns import plain_column, taken
from .connectivity import Connectivity, canonical_order, edge_arrays, host_array
from .graph import Graph


@dataclass(frozen=True)
class Policies:
    """What a converter does about parallel synapses and self-loops, and the type of its weight; see `from_edges`."""

    duplicates: str
    self_loops: str
    dtype: Any

    def __post_init__(self) -> None:
        if self.duplicates not in ("keep", "sum", "error"):
            raise ValueError(f"duplicates: got {self.duplicates!r}; choose 'keep', 'sum' or 'error'")
        if self.self_loops not in ("keep", "drop", "add"):
            raise ValueError(f"self_loops: got {self.self_loops!r}; choose 'keep', 'drop' or 'add'")


def build_graph(
    pre: Any,
    post: Any,
    weight: Any,
    shape: Any,
    nodes: Sequence[Any] | None = None,
    node_attrs: Mapping[str, Any] | None = None,
    edge_attrs: Mapping[str, Any] | None = None,
    *,
    policies: Policies,
) -> Graph:
    """Build a graph from edges in any order. `pre` and `post` are indices; `edge_attrs` is aligned with them."""
    duplicates, self_loops, dtype = policies.duplicates, policies.self_loops, check_dtype(policies.dtype)
    pre, post, (num_pre, num_post) = edge_arrays(pre, post, shape)
    size = pre.size
    attrs = {key: plain_column(column, f"edge_attrs: {key!r}") for key, column in (edge_attrs or {}).items()}
    for key, column in attrs.items():
        if column.shape[:1] != (size,):
            raise ValueError(f"edge_attrs: {key!r} has shape {column.shape}; its first axis needs {size} entries")

    def name_of(i: int, j: int) -> str:
        offset = 0 if num_pre == num_post else num_pre
        ends = (i, j + offset) if nodes is None else (nodes[i], nodes[j + offset])
        return f"synapse {ends[0]!r} -> {ends[1]!r}"

    weight = check_weight(weight, size, dtype, lambda k: f"{name_of(int(pre[k]), int(post[k]))} (entry {k})")
    if self_loops != "keep":
        if num_pre != num_post:
            raise ValueError(
                f"self_loops: {self_loops!r} needs a square graph, got shape {(num_pre, num_post)}; use 'keep'"
            )
        loop = pre == post
        if self_loops == "drop":
            pre, post, weight = pre[~loop], post[~loop], weight[~loop]
            attrs = {key: column[~loop] for key, column in attrs.items()}
        else:
            missing = np.setdiff1d(np.arange(num_pre, dtype=np.int32), pre[loop])
            if missing.size and attrs:
                raise ValueError(
                    f"self_loops: 'add' has no value of edge attribute {next(iter(attrs))!r} for the new "
                    f"{name_of(int(missing[0]), int(missing[0]))}; leave it out of `edge_attrs`, or give the self-loops"
                )
            pre, post = np.concatenate([pre, missing]), np.concatenate([post, missing])
            weight = np.concatenate([weight, np.ones(missing.size, dtype)])
    order, connectivity = canonical_order(pre, post, (num_pre, num_post))
    weight, attrs = taken(weight, order), {key: column[order] for key, column in attrs.items()}
    if duplicates != "keep" and order.size:
        pre, post = pre[order], post[order]
        start = np.concatenate([[True], (pre[1:] != pre[:-1]) | (post[1:] != post[:-1])])
        if not start.all():
            k = int(np.argmin(start))
            if duplicates == "error":
                raise ValueError(f"duplicates: {name_of(int(pre[k]), int(post[k]))} exists twice; use 'keep' or 'sum'")
            first, run = np.flatnonzero(start), np.cumsum(start) - 1
            for key, column in attrs.items():
                differs = column != column[first][run]
                if differs.any():
                    k = int(np.argwhere(differs)[0][0])
                    raise ValueError(
                        f"duplicates: 'sum' merges {name_of(int(pre[k]), int(post[k]))}, but edge attribute {key!r} "
                        "differs between the parallel synapses; use 'keep', or leave it out of `edge_attrs`"
                    )
            pre, post = pre[first], post[first]
            attrs = {key: column[first] for key, column in attrs.items()}
            weight = np.add.reduceat(weight.astype(np.float64), first)
            weight = check_weight(
                weight, pre.size, dtype, lambda k: f"the sum over {name_of(int(pre[k]), int(post[k]))}"
            )
            connectivity = Connectivity.from_edges(pre, post, shape=(num_pre, num_post))
    return Graph(connectivity, jnp.array(weight), nodes, node_attrs, attrs)


def check_dtype(dtype: Any) -> np.dtype:
    """Return `dtype` as a floating type that JAX has here; 64 bits are refused, not shortened, where JAX has 32."""
    kind = jnp.dtype(dtype)
    if not jnp.issubdtype(kind, jnp.floating):
        raise ValueError(f"dtype: got {kind}; weights need a floating type, for example 'float32'")
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        raise ValueError(f"dtype: {kind} needs 64-bit JAX; call jax.config.update('jax_enable_x64', True) first")
    return kind


def check_weight(weight: Any, num_synapses: int, dtype: Any, where: Callable[[int], str]) -> np.ndarray:
    """Return weights as a finite numpy array, one per synapse; None is 1 for all.

    Args:
        weight: numbers, `(num_synapses,)`, or None.
        num_synapses: how many are needed.
        dtype: a numpy floating type.
        where: describes synapse `k` in an error.

    Returns:
        `(num_synapses,)`; the given array itself if it needs no conversion.

    Raises:
        TypeError: weights are traced or no real numbers.
        ValueError: wrong length, or a weight that is not finite in `dtype`.
    """
    if weight is None:
        return np.ones(num_synapses, dtype)
    weight = weight if isinstance(weight, jax.Array) else plain_column(weight, "weight: the column")
    array = host_array("weight", weight)
    if array.shape != (num_synapses,):
        raise ValueError(f"weight: got shape {array.shape}; it needs one entry per synapse, ({num_synapses},)")
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"weight: got {array.dtype}; weights are real numbers")
    with np.errstate(over="ignore"):
        result = array.astype(dtype, copy=False)
    finite = np.isfinite(result)
    if not finite.all():
        k = int(np.argmin(finite))
        raise ValueError(f"weight: {where(k)} has {array[k]}, not finite in {result.dtype}; correct or remove it")
    return result
