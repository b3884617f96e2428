"""The fly's visual system as a network of graded units, and the scenes that it sees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import stimuli
from ._graph.graph import Graph
from ._op import ElemWiseParam, MatMulOp, SpMatMulOp
from ._op.param import ETraceParam, NonTempParam

# Steps of 20 ms; a scene has one direction, which counts once it has been seen for a while.
DT, SCENE, BLIND = 0.02, 32, 12
CELLS = tuple(f"{kind}{layer}" for kind in ("T4", "T5") for layer in "abcd")
# Where cells of a layer a, b, c, d prefer motion to: forward to back, back to forward, up, down (degrees).
KNOWN = (180, 0, 90, 270)
BY_TYPE, BY_SYNAPSE = "by type", "by synapse"
START, REST, LIT = 2.5, 0.1, 0.5


class Gains(eqx.Module):
    """Weights of the kinds of synapse that a pair of types has: the share of each times the gain of the pair.

    Args:
        share: of each kind, with its sign, `(kinds,)`.
        pair: for each kind the gain that it has, `(kinds,)`; there are fewer gains than kinds, and they come first.
    """

    share: Array
    pair: Array

    def __call__(self, gain: Array) -> Array:
        return self.share * gain[self.pair]


class OfType(eqx.Module):
    """What each unit has of its type.

    Args:
        number: the type of each unit.
        is_share: whether values become numbers from 0 to 1.
    """

    number: Array
    is_share: bool = eqx.field(static=True)

    def __call__(self, value: Array) -> Array:
        return (jax.nn.sigmoid(value) if self.is_share else value)[self.number]


class Eye(eqx.Module):
    """Graded units, `V <- a V + (1 - a) (W relu(V) + bias + light)`, and a readout of T4 and T5 by their means.

    Args:
        graph: of `se.datasets.fly_eye`, or with its types.
        key: of the time constants.
        by: `BY_TYPE`: a pair of types has one gain; `BY_SYNAPSE`: each synapse has a weight.
    """

    synapses: ETraceParam
    bias: ETraceParam
    leak: ETraceParam
    readout: ETraceParam
    columns: int = eqx.field(static=True)
    first: int = eqx.field(static=True)

    def __init__(self, graph: Graph, key: Array, by: str = BY_TYPE):
        types, number = np.unique(graph.node_attrs["cell_type"], return_inverse=True)
        kind, share, pair = _kinds(graph, number)
        if by == BY_TYPE:
            gains = Gains(jnp.asarray(share), jnp.asarray(pair))
            op, start = SpMatMulOp(graph.connectivity, gains, tie=kind), np.ones_like(share)
        else:
            op, start = SpMatMulOp(graph.connectivity), share[kind]
        self.synapses = ETraceParam({"weight": jnp.asarray(START * start)}, op)
        # At rest and in grey light nothing changes, on average over the units of a type.
        self.columns, self.first = len(graph.where(cell_type="R1")), int(graph.where(cell_type=CELLS[0])[0])
        rest = np.full(len(number), REST, np.float32)
        rest[: 8 * self.columns] = LIT
        bias = np.bincount(number, rest - np.asarray(self.synapses(jnp.asarray(rest)))) / np.bincount(number)
        of_unit = jnp.asarray(number, jnp.int32)
        self.bias = ElemWiseParam(jnp.asarray(bias, jnp.float32), OfType(of_unit, False))
        tau = jnp.exp(jax.random.uniform(key, (len(types),), minval=jnp.log(0.01), maxval=jnp.log(0.1)))
        self.leak = ElemWiseParam(jax.scipy.special.logit(jnp.exp(-DT / tau)), OfType(of_unit, True))
        angles = np.deg2rad(KNOWN * 2)
        ways = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.float32)
        self.readout = NonTempParam({"weight": ways, "bias": jnp.zeros(2)}, MatMulOp())

    def init_state(self) -> Float[Array, " units"]:
        """Rest, in grey light."""
        return jnp.full(self.bias().shape, REST).at[: 8 * self.columns].set(LIT)

    def __call__(self, v: Array, light: Array) -> tuple[Array, tuple[Array, Array]]:
        # Receptors are the first eight types, and T4 and T5 another eight in a row.
        drive = jnp.pad(jnp.tile(light - LIT, 8), (0, len(v) - 8 * self.columns))
        a = self.leak()
        v = a * v + (1 - a) * (self.synapses(jax.nn.relu(v)) + self.bias() + drive)
        seen = v[self.first : self.first + 8 * self.columns].reshape(8, -1)
        return v, (self.readout(jax.nn.leaky_relu(seen, 0.1).mean(-1) / REST), jax.nn.relu(seen).mean(-1))


def _kinds(graph: Graph, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which synapses have the same pair of types and the same count.

    Returns:
        The kind of each synapse; for each kind the count, as a share of all that a unit of the receiving type receives
        on average without signs, and the pair.
    """
    conn, weight, types = graph.connectivity, np.asarray(graph.weight), number.max() + 1
    values, number = np.unique(weight), number.astype(np.int32)
    # In place and in 32 bits: there may be as many synapses as fit into memory.
    key = np.searchsorted(values, weight).astype(np.int32)
    key += (number[conn.pre] * np.int32(types) + number[conn.post]) * np.int32(len(values))
    present = np.zeros(types**2 * len(values), bool)
    present[key] = True
    found = np.flatnonzero(present)
    kind = (np.cumsum(present, dtype=np.int32) - 1)[key]
    pairs, pair = np.unique(found // len(values), return_inverse=True)
    count = values[found % len(values)]
    received = np.bincount(kind, minlength=len(found)) * np.abs(count)
    each = np.bincount(pairs[pair] % types, received, types) / np.bincount(number, minlength=types)
    return kind, (count / each[pairs[pair] % types]).astype(np.float32), pair.astype(np.int32)


def lattice(graph: Graph) -> Float[Array, "columns 2"]:
    """Where the columns lie, in the order of the receptors of each type."""
    first = graph.where(cell_type="R1")
    return stimuli.places(graph.node_attrs["u"][first], graph.node_attrs["v"][first])


@jax.jit
def scene(key: Array, place: Float[Array, "columns 2"]) -> tuple[Array, Array]:
    """A grating or an edge with a direction, speed and phase of its own.

    Returns:
        Light `(steps, columns)`; and for each step cosine and sine of the direction and a 1, or zeros where they do not
        count.
    """
    keys, now = jax.random.split(key, 5), DT * jnp.arange(SCENE)
    direction, phase = jax.random.uniform(keys[0], maxval=360.0), jax.random.uniform(keys[1], maxval=2 * jnp.pi)
    speed = jax.random.uniform(keys[2], minval=5.0, maxval=20.0)
    wavelength = jax.random.uniform(keys[3], minval=5.0, maxval=10.0)
    wave = stimuli.grating(place, now, direction, speed, wavelength, phase)
    # It is in the middle of the eye while it counts.
    start = -speed * DT * (SCENE + BLIND) / 2
    step = stimuli.edge(place, now, direction, speed, start, phase > jnp.pi)
    light = jnp.where(jax.random.bernoulli(keys[4]), wave, step)
    way = jnp.stack([jnp.cos(jnp.deg2rad(direction)), jnp.sin(jnp.deg2rad(direction)), 1.0])
    return light, way * (jnp.arange(SCENE) >= BLIND)[:, None]
