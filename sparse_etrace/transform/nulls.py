"""Random graphs that share something with a given one."""

import jax
import numpy as np
from jaxtyping import Array

from .._graph.graph import Graph
from .._graph.selection import categories, node_column
from .._numbers import whole
from .origin import Made, Origin, Parts, built, parts_of


def generator(key: object) -> np.random.Generator:
    """NumPy's generator of a key of jax; equal keys give equal numbers.

    Raises:
        TypeError: it is no key, or is traced.
    """
    if isinstance(key, jax.core.Tracer):
        raise TypeError("key: expected a key of jax.random outside of jit and vmap, got a traced one.")
    if not isinstance(key, jax.Array) or not (
        jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == np.uint32
    ):
        raise TypeError(f"key: expected one of jax.random, got {key!r}. jax.random.key(0) makes one.")
    data = jax.random.key_data(key) if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    return np.random.default_rng(np.asarray(data).ravel())


def _classes(graph: Graph, parts: Parts, types: str | None, signs: bool) -> np.ndarray:
    """A number for each synapse, the same for those of one pair of types and, if asked, of one sign."""
    found = np.zeros(parts.pre.size, np.int64)
    if types is not None:
        labels, of = categories(node_column(graph, types, "types"))
        found = of[parts.pre] * len(labels) + of[len(of) - graph.connectivity.num_post :][parts.post]
    return found * 3 + np.sign(parts.weight).astype(np.int64) if signs else found


def shuffle_weights(
    graph: Graph,
    key: Array,
    *,
    within: str | None = None,
    types: str | None = None,
    signs: bool = False,
    with_origin: bool = False,
) -> Made:
    """Deal the weights out anew among the synapses, which stay.

    Args:
        graph: square or rectangular.
        key: of `jax.random`; the same one gives the same graph.
        within: None: among all; "pre" or "post": among the synapses of each sending, or receiving, unit, so that its
            sum of weights stays, and by "pre" its sign.
        types: node attribute; weights then stay between the types that they were between.
        signs: whether each synapse keeps its sign.
        with_origin: return whose weight each synapse got, too.

    Returns:
        The graph; attributes stay with the synapses. With `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced; `key` is no key.
        ValueError: `within` is something else, or there is no attribute `types`.

    Example:
        >>> import jax, sparse_etrace as se
        >>> worm = se.datasets.worm()
        >>> null = se.transform.shuffle_weights(worm, jax.random.key(0))
        >>> sorted(null.weight.tolist()) == sorted(worm.weight.tolist()), null.connectivity.pre is worm.connectivity.pre
        (True, True)
    """
    if within not in (None, "pre", "post"):
        raise ValueError(f"within: expected 'pre', 'post' or None, got {within!r}.")
    parts = parts_of(graph)
    unit = {None: np.zeros(parts.pre.size), "pre": parts.pre, "post": parts.post}[within]
    groups = (unit, _classes(graph, parts, types, signs))
    origin, draw = Origin.run(parts.pre.size), generator(key).random(parts.pre.size)
    origin.old[np.lexsort(groups)] = np.lexsort((draw, *groups))
    made = graph.with_weight(parts.weight[origin.old])
    return (made, origin) if with_origin else made


def rewire_degrees(
    graph: Graph,
    key: Array,
    rounds: int = 20,
    *,
    types: str | None = None,
    signs: bool = False,
    with_origin: bool = False,
) -> Made:
    """Wire at random, each unit with as many synapses in and out as before: a Markov chain of swaps.

    In a round all synapses meet in pairs, and `a -> b`, `c -> d` of half of these become `a -> d`, `c -> b`, unless
    that makes a second synapse of a pair of units, or one of a unit on itself. Those on themselves stay. Weights go
    with the sending unit, so that its sign stays.

    Args:
        graph: square or rectangular.
        key: of `jax.random`; the same one gives the same graph.
        rounds: how many; each moves about half of the synapses where the graph is sparse.
        types: node attribute; each unit then keeps how many synapses it has from, and to, units of each type.
        signs: whether each unit keeps how many positive and how many negative ones it receives.
        with_origin: return which synapse became which, too.

    Returns:
        The graph, weights and attributes with the sending unit; or with `with_origin` a pair of it and an `Origin`.

    Raises:
        TypeError: `graph` is no graph, or is traced; `key` is no key; `rounds` is no whole number.
        ValueError: `rounds` is negative, or there is no attribute `types`.

    References:
        Maslov, Sneppen (2002), Specificity and stability in topology of protein networks, Science 296:910-913.

    Example:
        >>> import jax, numpy as np, sparse_etrace as se
        >>> worm = se.datasets.worm()
        >>> null = se.transform.rewire_degrees(worm, jax.random.key(0))
        >>> bool((null.connectivity.post_ptr == worm.connectivity.post_ptr).all())
        True
    """
    if whole("rounds", rounds) < 0:
        raise ValueError(f"rounds: expected 0 or more, got {rounds}.")
    parts, (num_pre, num_post) = parts_of(graph), graph.connectivity.shape
    pre, post, rng = parts.pre, parts.post.copy(), generator(key)
    square = num_pre == num_post
    free = np.flatnonzero(pre != post) if square else np.arange(pre.size)
    _, group, count = np.unique(_classes(graph, parts, types, signs)[free], return_inverse=True, return_counts=True)
    # Synapses of a class lie together, and each of the first half meets one of the second.
    start, half = np.cumsum(count) - count, (count // 2).repeat(count)
    first = np.flatnonzero(np.arange(free.size) - start.repeat(count) < half)
    pairs = np.stack([first, first + half[first]])
    size = np.int64(num_post)
    for _ in range(rounds):
        order = rng.permutation(free.size)
        met = free[order[np.argsort(group[order], kind="stable")]][pairs]
        # Half of the pairs rest, so that any number of swaps can happen.
        one, two = met[:, rng.random(met.shape[1]) < 0.5]
        now = pre * size + post
        wanted = np.stack([pre[one] * size + post[two], pre[two] * size + post[one]])
        _, which, count = np.unique(
            np.concatenate([now[one], now[two], *wanted]), return_inverse=True, return_counts=True
        )
        # Of what one swap takes and makes, another touches nothing: so each way back is as likely.
        there = np.sort(now)  # numpy's `isin` hashes all of them, which takes longer
        is_there = there[np.minimum(np.searchsorted(there, wanted), now.size - 1)] == wanted
        good = (count[which].reshape(4, -1) == 1).all(axis=0) & ~is_there.any(axis=0)
        if square:
            good &= (pre[one] != post[two]) & (pre[two] != post[one])
        one, two = one[good], two[good]
        post[one], post[two] = post[two], post[one]
    return built(parts._replace(post=post), graph.connectivity.shape, np.arange(pre.size), with_origin)
