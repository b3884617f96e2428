"""Random graphs of up to many millions of synapses, weights 1 but for a fly's; a key of `jax.random` says which."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Array

from ._graph.connectivity import check_shape, host_array, index_array
from ._graph.graph import Graph
from ._graph.labels import distinct
from ._graph.matrices import from_edges
from ._numbers import positive, real, whole
from ._types import Values
from .transform.nulls import generator

__all__ = ["distance_dependent", "erdos_renyi", "fixed_in_degree", "fly_brain", "small_world", "stochastic_block"]


def fixed_in_degree(nodes: Any, degree: int, key: Array, *, self_loops: bool = False) -> Graph:
    """Give each unit synapses from `degree` others, drawn without replacement.

    Args:
        nodes: the number of units, or `(num_pre, num_post)`.
        degree: synapses of each receiving unit.
        key: of `jax.random`.
        self_loops: whether a unit may be drawn for itself, where there is one set of units.

    Returns:
        The graph.

    Raises:
        TypeError: a number is none, or `key` is no key.
        ValueError: `degree` is negative, or above the number of units to draw from.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph = se.generate.fixed_in_degree(1000, 20, jax.random.key(0))
        >>> graph.connectivity.num_synapses, set(jax.numpy.diff(graph.connectivity.post_ptr).tolist())
        (20000, {20})
    """
    (num_pre, num_post), rng = _shape(nodes), generator(key)
    skips = num_pre == num_post and not self_loops
    among = num_pre - skips if num_pre else 0
    if not 0 <= whole("degree", degree) <= among:
        raise ValueError(f"degree: expected 0 to {among}, the units to draw from, got {degree}.")
    if 2 * degree > among or not degree:
        pre = np.argsort(rng.random((num_post, among)), axis=1)[:, :degree].astype(np.int32)
    else:
        pre = rng.integers(among, size=(num_post, degree), dtype=np.int32)
    pre = _distinct_rows(pre, lambda rows, count: rng.integers(among, size=count, dtype=np.int32))
    post = np.repeat(np.arange(num_post, dtype=np.int32), degree)
    pre = pre.ravel()
    return from_edges(pre + (pre >= post) if skips else pre, post, shape=(num_pre, num_post))


def erdos_renyi(nodes: Any, probability: float, key: Array, *, self_loops: bool = False) -> Graph:
    """Let each pair of units have a synapse with one probability, independent of all others.

    Args:
        nodes: the number of units, or `(num_pre, num_post)`.
        probability: of each synapse, 0 to 1.
        key: of `jax.random`.
        self_loops: whether there may be synapses of units on themselves, where there is one set of units.

    Returns:
        The graph; it takes time and memory of its synapses, not of its pairs.

    Raises:
        TypeError: a number is none, or `key` is no key.
        ValueError: `probability` is out of range.

    References:
        Gilbert (1959), Random graphs, Annals of Mathematical Statistics 30:1141-1144.

    Example:
        >>> import jax, sparse_etrace as se
        >>> 9500 < se.generate.erdos_renyi(1000, 0.01, jax.random.key(0)).connectivity.num_synapses < 10500
        True
    """
    (num_pre, num_post), rng = _shape(nodes), generator(key)
    skips = num_pre == num_post and not self_loops
    among = num_pre - skips if num_pre else 0
    codes = _pairs(rng, among * num_post, _probability("probability", probability))
    post, pre = np.divmod(codes, max(among, 1))
    return from_edges(pre + (pre >= post) if skips else pre, post, shape=(num_pre, num_post))


def small_world(nodes: int, degree: int, rewired: float, key: Array) -> Graph:
    """Give each unit synapses from its nearest on a ring, some of which then come from anywhere instead.

    Args:
        nodes: the number of units.
        degree: synapses that each receives, half of them from either side.
        rewired: the probability with which a synapse gets another sender, which is neither the unit nor one of its own.
        key: of `jax.random`.

    Returns:
        The graph, directed; `se.transform.to_undirected` gives each synapse one in the other direction.

    Raises:
        TypeError: a number is none, or `key` is no key.
        ValueError: `degree` does not fit, or `rewired` is out of range.

    References:
        Watts, Strogatz (1998), Collective dynamics of small-world networks, Nature 393:440-442.

    Example:
        >>> import jax, sparse_etrace as se
        >>> se.generate.small_world(5, 2, 0.0, jax.random.key(0)).to_dense()[:, 0].tolist()
        [0.0, 1.0, 0.0, 0.0, 1.0]
    """
    size, rng = positive("nodes", nodes), generator(key)
    if not 0 <= whole("degree", degree) < size:
        raise ValueError(f"degree: expected 0 to {size - 1}, the other units, got {degree}.")
    moved = rng.random((size, degree)) < _probability("rewired", rewired)
    steps = np.arange(1, degree + 1)
    post = np.arange(size)[:, None]
    # What stays is even and comes first of equal ones.
    keys = 2 * ((post + (steps + 1) // 2 * np.where(steps % 2, 1, -1)) % size) + moved

    def draw(rows: np.ndarray, count: int) -> np.ndarray:
        sender = rng.integers(size - 1, size=count)
        return 2 * (sender + (sender >= rows)) + 1

    rows, places = np.nonzero(moved)
    keys[rows, places] = draw(rows, rows.size)
    pre = _distinct_rows(keys, draw, shift=1) >> 1
    return from_edges(pre.ravel(), np.repeat(np.arange(size), degree), shape=(size, size))


def distance_dependent(
    positions: Values, scale: float, key: Array, *, peak: float = 1.0, profile: str = "exponential", cutoff: float = 7.0
) -> Graph:
    """Connect near units more often: with `p = peak * exp(-d / scale)`, or `peak * exp(-d^2 / (2 scale^2))`.

    Args:
        positions: of the units, `(num_nodes, dimensions)`, in any unit of length; 1 to 3 dimensions.
        scale: how fast the probability falls, in that unit, positive.
        key: of `jax.random`.
        peak: the probability at distance 0, 0 to 1.
        profile: "exponential" or "gaussian".
        cutoff: in scales, beyond which there are no synapses; at 7 the exponential has fallen to 0.0009.

    Returns:
        The graph without self-loops, with the node attribute `position` and the edge attribute `distance` (float32).

    Raises:
        TypeError: a number is none, or `key` is no key.
        ValueError: positions are no finite matrix of up to 3 columns, or a number is out of range.

    Example:
        >>> import jax, numpy as np, sparse_etrace as se
        >>> line = np.arange(100.0)[:, None]
        >>> graph = se.generate.distance_dependent(line, 2.0, jax.random.key(0), cutoff=3.0)
        >>> float(graph.edge_attrs["distance"].max()) <= 6.0
        True
    """
    where, rng = np.asarray(host_array("positions", positions), np.float64), generator(key)
    if where.ndim != 2 or not 1 <= where.shape[1] <= 3 or not np.isfinite(where).all():
        raise ValueError(f"positions: expected finite numbers, (nodes, 1 to 3 dimensions), got shape {where.shape}.")
    if profile not in ("exponential", "gaussian"):
        raise ValueError(f"profile: expected 'exponential' or 'gaussian', got {profile!r}.")
    if not (real("scale", scale) > 0 and real("cutoff", cutoff) > 0):
        raise ValueError(f"scale and cutoff: expected positive numbers, got {scale} and {cutoff}.")
    peak, size = _probability("peak", peak), len(where)

    def chance(distance: np.ndarray) -> np.ndarray:
        ratio = distance / scale
        return peak * np.exp(-ratio if profile == "exponential" else -(ratio**2) / 2)

    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for pre, post, most in _near_pairs(rng, where, scale / (1 if where.shape[1] == 3 else 2), scale * cutoff, chance):
        far = np.linalg.norm(where[pre] - where[post], axis=1)
        kept = (rng.random(far.size) * most < chance(far)) & (far <= scale * cutoff) & (pre != post)
        found.append((pre[kept], post[kept], far[kept]))
    pre, post, far = map(np.concatenate, zip(*found))
    attrs = {"distance": far.astype(np.float32)}
    return from_edges(pre, post, shape=(size, size), node_attrs={"position": where}, edge_attrs=attrs)


def stochastic_block(sizes: Values, probability: Values, key: Array, *, self_loops: bool = False) -> Graph:
    """Let each pair of units have a synapse with the probability of their blocks.

    Args:
        sizes: units of each block, `(blocks,)`.
        probability: `p[a, b]` of a synapse from a unit of block a onto one of block b, `(blocks, blocks)`.
        key: of `jax.random`.
        self_loops: whether there may be synapses of units on themselves.

    Returns:
        The graph, with the node attribute `block` (int32).

    Raises:
        TypeError: sizes are no integers, or `key` is no key.
        ValueError: a size is negative, or probabilities are out of range or of another shape.

    References:
        Holland, Laskey, Leinhardt (1983), Stochastic blockmodels: first steps, Social Networks 5:109-137.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph = se.generate.stochastic_block([2, 3], [[0.0, 1.0], [0.0, 0.0]], jax.random.key(0))
        >>> graph.connectivity.num_synapses, graph.node_attrs["block"].tolist()
        (6, [0, 0, 1, 1, 1])
    """
    rng, sizes = generator(key), index_array("sizes", sizes).astype(np.int64)
    chance = np.asarray(host_array("probability", probability), np.float64)
    if (sizes < 0).any():
        raise ValueError(f"sizes: expected 0 or more units in each block, got {sizes}.")
    if chance.shape != (sizes.size, sizes.size) or not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError(f"probability: expected numbers from 0 to 1, {(sizes.size,) * 2}, got {chance}.")
    total, start = int(sizes.sum()), np.cumsum(sizes) - sizes
    check_shape((total, total))
    ends: list[np.ndarray] = [np.zeros((2, 0), np.int64)]
    for b in range(sizes.size):
        for a in range(sizes.size):
            skips = a == b and not self_loops and bool(sizes[a])
            among = sizes[a] - skips
            post, pre = np.divmod(_pairs(rng, int(among * sizes[b]), chance[a, b]), max(among, 1))
            ends.append(np.stack([pre + (pre >= post) * skips + start[a], post + start[b]]))
    pre, post = np.concatenate(ends, axis=1)
    block = np.repeat(np.arange(sizes.size, dtype=np.int32), sizes)
    return from_edges(pre, post, shape=(total, total), node_attrs={"block": block})


def fly_brain(key: Array, nodes: int = 138_639, synapses: int = 15_091_983, *, inhibitory: float = 0.36) -> Graph:
    """A network of the size of a whole fly, with degrees and counts of synapses as spread as in its connectome.

    In- and out-degrees are lognormal (sigma 1.1) and correlated (0.65), so that the largest are a hundred times the
    median; a pair has `ceil(lognormal(-0.05, 1.54))` synapses, the mean 3.7 and 18 % of them five or more, as in the
    connectome. Which pairs there are is random beyond the degrees. A unit is inhibitory with one probability.

    Args:
        key: of `jax.random`.
        nodes: the number of units; that of the connectome's version 783 unless given.
        synapses: of different pairs of different units; likewise.
        inhibitory: the probability of an inhibitory unit.

    Returns:
        The graph, its weights counts with the sign of the sender, with the node attributes `sign` (int8) and
        `neuropil`, one of 78 numbers (int8), drawn at random.

    Raises:
        TypeError: a number is none, or `key` is no key.
        ValueError: there are more synapses than a fifth of the pairs, or `inhibitory` is out of range.

    References:
        Dorkenwald and others (2024), Neuronal wiring diagram of an adult brain, Nature 634:124-138; Lin and others
        (2024), Network statistics of the whole-brain connectome of Drosophila, Nature 634:153-165.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph = se.generate.fly_brain(jax.random.key(0), nodes=1000, synapses=20_000)
        >>> graph.connectivity.num_synapses, int(abs(graph.weight).min())
        (20000, 1)
    """
    (size, _), rng = _shape(whole("nodes", nodes)), generator(key)
    if not 0 <= whole("synapses", synapses) <= size**2 // 5:
        raise ValueError(f"synapses: expected 0 to {size**2 // 5}, a fifth of the pairs, got {synapses}.")
    normal, codes = rng.standard_normal((2, size)), np.zeros(0, np.int64)
    chances = np.exp(1.1 * normal[0]), np.exp(1.1 * (0.75 * normal[0] + np.sqrt(1 - 0.75**2) * normal[1]))
    while codes.size < synapses:
        more = synapses - codes.size + synapses // 50 + 1
        pre, post = (np.repeat(np.arange(size), rng.multinomial(more, chance / chance.sum())) for chance in chances)
        pre = rng.permutation(pre)
        codes = distinct(np.concatenate([codes, (post * size + pre)[post != pre]]))
    post, pre = np.divmod(np.delete(codes, rng.choice(codes.size, codes.size - synapses, replace=False)), max(size, 1))
    sign = np.where(rng.random(size) < _probability("inhibitory", inhibitory), -1, 1).astype(np.int8)
    count = np.ceil(rng.lognormal(-0.05, 1.54, synapses)).astype(np.float32)
    attrs = {"sign": sign, "neuropil": rng.integers(78, size=size, dtype=np.int8)}
    return from_edges(pre, post, count * sign[pre], (size, size), node_attrs=attrs)


def _shape(nodes: Any) -> tuple[int, int]:
    return check_shape(nodes if np.ndim(nodes) else (whole("nodes", nodes),) * 2)


def _probability(name: str, value: object) -> float:
    found = real(name, value)
    if not 0 <= found <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {found}.")
    return found


def _pairs(rng: np.random.Generator, total: int, probability: float) -> np.ndarray:
    """Which of `total` pairs there are, ascending."""
    if probability > 0.2:
        return np.flatnonzero(rng.random(total) < probability)
    count, codes = int(rng.binomial(total, probability)), np.zeros(0, np.int64)
    while codes.size < count:  # no number is drawn more often than another, so that every set is as likely
        codes = distinct(np.concatenate([codes, rng.integers(total, size=count - codes.size)]))
    return codes


def _near_pairs(
    rng: np.random.Generator, where: np.ndarray, width: float, reach: float, chance: Callable
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Pairs of points within `reach`, and some beyond: each with the probability of the nearest in its two cells.

    Points lie in cells of a grid; all pairs of cells with one offset are drawn from at once.
    """
    if not len(where):
        return
    steps, cell = int(np.ceil(reach / width)), np.floor((where - where.min(axis=0)) / width)
    extent = cell.max(axis=0) + 2 * steps + 1
    if extent.prod() > 2**62:
        raise ValueError(f"scale: expected one nearer the extent of the positions, got cells of {width}. Enlarge it.")
    strides = np.cumprod(np.append(1, extent[:-1])).astype(np.int64)
    code = (cell + steps).astype(np.int64) @ strides
    order = np.argsort(code, kind="stable")
    codes, first, count = np.unique(code[order], return_index=True, return_counts=True)
    for offset in itertools.product(range(-steps, steps + 1), repeat=where.shape[1]):
        nearest = width * float(np.linalg.norm(np.maximum(np.abs(offset) - 1, 0)))
        if nearest > reach:
            continue
        wanted = codes + np.dot(offset, strides)
        b = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
        a = np.flatnonzero(codes[b] == wanted)
        b = b[a]
        pairs = count[a] * count[b]
        end = np.cumsum(pairs)
        drawn = _pairs(rng, int(end[-1]) if end.size else 0, chance(nearest))
        which = np.searchsorted(end, drawn, side="right")
        one, two = np.divmod(drawn - (end - pairs)[which], count[b[which]])
        yield order[first[a[which]] + one], order[first[b[which]] + two], chance(nearest)


def _distinct_rows(keys: np.ndarray, draw: Callable, shift: int = 0) -> np.ndarray:
    """Rows of distinct `keys >> shift`, ascending: of equal ones all but the first are drawn again."""
    rows = np.arange(len(keys))
    keys.sort(axis=1)
    while rows.size:
        part = keys[rows]
        again = np.zeros(part.shape, bool)
        again[:, 1:] = part[:, 1:] >> shift == part[:, :-1] >> shift
        which = again.any(axis=1)
        rows, part, again = rows[which], part[which], again[which]
        part[again] = draw(rows[np.nonzero(again)[0]], int(np.count_nonzero(again)))
        part.sort(axis=1)
        keys[rows] = part
    return keys
