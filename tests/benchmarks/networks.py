"""The networks that the benchmarks train: leaky tanh units with a random connectivity of fixed in-degree.

`h_t = a h_{t-1} + (1 - a) tanh(read(h_{t-1}) @ W + x_t)`, loss `0.5 sum (h_t - y_t)^2` at each step, where `read` is
the identity, or `relu(h - theta)` in a network whose units are silent most of the time. Only `W` is trained.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import sparse_etrace as se

LEAK = 0.9
FACTOR_DECAY = 0.9
# Standard deviation of h under inputs of standard deviation 1, and its 98th percentile: 2 % of the units are above.
SPREAD = 0.145
THETA = 0.297


class Case(NamedTuple):
    """A network, how many copies of it run at once, and the rule by which it learns."""

    units: int
    in_degree: int
    batch: int
    rule: str
    silent: bool = False
    steps: int = 16

    @property
    def name(self):
        size = f"{self.units:,} units, {self.units * self.in_degree:,} synapses"
        return f"{size}{', 2 % active' if self.silent else ''}, batch {self.batch}, {self.rule}"


class Data(NamedTuple):
    """Synapses sorted by (post, pre), their weights, the first state, and inputs and targets with time first."""

    pre: np.ndarray
    post: np.ndarray
    weight: np.ndarray
    start: jax.Array
    xs: jax.Array
    ys: jax.Array


def make(case):
    rng = np.random.default_rng(0)
    pre = np.sort(rng.integers(0, case.units, (case.units, case.in_degree), dtype=np.int32), axis=1).ravel()
    post = np.repeat(np.arange(case.units, dtype=np.int32), case.in_degree)
    weight = rng.standard_normal(pre.size, dtype=np.float32) / np.float32(np.sqrt(case.in_degree))
    shape = (case.units,) if case.batch == 1 else (case.batch, case.units)
    start = SPREAD * rng.standard_normal(shape, dtype=np.float32)
    xs = rng.standard_normal((case.steps, *shape), dtype=np.float32)
    ys = SPREAD * rng.standard_normal((case.steps, *shape), dtype=np.float32)
    return Data(pre, post, weight, *(jnp.asarray(a, jnp.float32) for a in (start, xs, ys)))


def read(case, h):
    return jax.nn.relu(h - THETA) if case.silent else h


def advance(h, recurrent, x):
    return LEAK * h + (1 - LEAK) * jnp.tanh(recurrent + x)


def loss_fn(h, y):
    return 0.5 * jnp.sum((h - y) ** 2)


class Net(eqx.Module):
    """The network as a model of `sparse_etrace`."""

    rec: se.ETraceParam
    case: Case = eqx.field(static=True)

    def __call__(self, h, x):
        h = advance(h, self.rec(read(self.case, h)), x)
        return h, h


def net(case, data):
    connectivity = se.Connectivity.from_edges(data.pre, data.post, (case.units, case.units))
    return Net(se.ETraceParam({"weight": jnp.asarray(data.weight)}, se.SpMatMulOp(connectivity)), case)


def learner(case):
    return {"D-RTRL": se.D_RTRL(), "ES-D-RTRL": se.ES_D_RTRL(decay=FACTOR_DECAY)}[case.rule]


def activity(case, data):
    """Share of non-zero values among those that the synapses read."""

    @jax.jit
    def mean_active(model, start, xs):
        def one(h, x):
            return model(h, x)[0], jnp.mean(read(case, h) != 0)

        return jnp.mean(jax.lax.scan(one, start, xs)[1])

    return float(mean_active(net(case, data), data.start, data.xs))
