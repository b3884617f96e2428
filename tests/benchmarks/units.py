"""Milliseconds a step of units with one to three variables, of small and dense networks, and by RTRL on the worm."""

import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from bench import arguments, seconds

import sparse_etrace as se

LEARNERS = {"D-RTRL": se.D_RTRL(), "ES-D-RTRL": se.ES_D_RTRL(), "BPTT": se.BPTT()}
spike = se.surrogate.triangle()


class AdLIF(eqx.Module):
    """Adaptive neurons: synaptic current, potential and adaptation, which also follows the potential."""

    inp: se.ETraceParam
    rec: se.ETraceParam

    def init_state(self, *batch):
        shape = (*batch, self.rec.op.connectivity.num_post)
        return {name: jnp.zeros(shape) for name in ("current", "potential", "adaptation", "spikes")}

    def __call__(self, state, x):
        current = 0.8 * state["current"] + self.inp(x) + self.rec(state["spikes"])
        potential = 0.9 * state["potential"] + 0.1 * (current - state["adaptation"])
        z = spike(potential - 1)
        adaptation = 0.98 * state["adaptation"] + 0.02 * (0.5 * potential + z)
        return {"current": current, "potential": potential - z, "adaptation": adaptation, "spikes": z}, z


class Given(eqx.Module):
    """Inputs of units, as they are."""

    def __call__(self, x):
        return x


class GraphGRU(eqx.Module):
    """A gated unit on nodes and features: each gate reads the neighbours' features by synapses of its own."""

    rec: tuple[se.ETraceParam, se.ETraceParam]
    features: int = eqx.field(static=True)

    def init_state(self, *batch):
        return jnp.zeros((*batch, self.rec[0].op.connectivity.num_post, self.features))

    def __call__(self, h, x):
        gate, new = (rec(h) for rec in self.rec)
        u = jax.nn.sigmoid(gate + x)
        h = (1 - u) * h + u * jnp.tanh(new + x)
        return h, h


def loss_fn(out, y):
    return 0.5 * jnp.sum((out - y) ** 2)


def sparse(rng, units, degree, **rest):
    conn = se.Connectivity.from_edges(
        rng.integers(0, units, units * degree), np.repeat(np.arange(units), degree), (units, units)
    )
    weight = rng.standard_normal(conn.num_synapses, np.float32) / degree**0.5
    return se.ETraceParam({"weight": jnp.asarray(weight)}, se.SpMatMulOp(conn, **rest))


def networks(part):
    """Name, model, batch and shape of an input."""
    rng = np.random.default_rng(0)

    def layer(units, inputs, degree):
        weight = jnp.asarray(rng.standard_normal((inputs, units), np.float32))
        return se.ETraceParam({"weight": weight}, se.MatMulOp()), sparse(rng, units, degree)

    nodes, features = 2_000 // part, 16
    yield "graph GRU", GraphGRU(tuple(sparse(rng, nodes, 8, axis=-2) for _ in range(2)), features), 1, (nodes, features)
    units = 2_000 // part
    yield "ALIF", se.cells.ALIF(units, *layer(units, 10, 50)), 16, (10,)
    yield "ALIF, no batch", se.cells.ALIF(5 * units, *layer(5 * units, 10, 50)), 1, (10,)
    yield "adLIF", AdLIF(*layer(units, 10, 50)), 16, (10,)
    edges = sparse(rng, nodes, 8)
    graph = se.Graph(edges.op.connectivity, edges.value["weight"])
    gru = se.cells.graph.GraphGRU.of(graph, features, features, key=jax.random.key(0))
    yield "convolution GRU", gru, 1, (nodes, features)
    worm = se.datasets.worm()
    rec = se.ETraceParam({"weight": worm.weight / 50}, se.SpMatMulOp(worm))
    yield "worm of ALIF", se.cells.ALIF(279, layer(279, 10, 1)[0], rec), 64, (10,)


def small():
    """The same of 100 units with ten synapses each, and of dense layers."""
    graph, key = se.generate.fixed_in_degree(100, 10, jax.random.key(0)), jax.random.key(1)
    yield "small leaky tanh", se.cells.LeakyRate(100, Given(), se.SpMatMulOp(graph).param(key)), 32, (100,)
    yield "small GRU", se.cells.GRU.of(graph, inputs=40, key=key), 32, (40,)
    yield "small ALIF", se.cells.ALIF.of(graph, inputs=40, key=key), 32, (40,)
    for units in (100, 200):
        layers = (se.MatMulOp().param(jax.random.fold_in(key, pre), pre, units) for pre in (40, units))
        yield f"dense ALIF, {units}", se.cells.ALIF(units, *layers), 64, (40,)


def times(model, batch, shape, steps, repeats, learners=LEARNERS):
    front = () if batch == 1 else (batch,)
    xs = jnp.asarray(np.random.default_rng(1).standard_normal((steps, *front, *shape), np.float32))
    start = model.init_state(*front)
    out = jax.eval_shape(model, start, xs[0])[1]
    ys = jnp.zeros((steps, *out.shape))

    @eqx.filter_jit
    def forward(model, start, xs):
        return jax.lax.scan(lambda state, x: model(state, x), start, xs)

    runs = [lambda: forward(model, start, xs)]
    for learner in learners.values():
        carry = learner.init(model, start, xs[0])
        runs.append(functools.partial(se.online_grad, learner, loss_fn, model, carry, xs, ys))
    return dict(zip(("forward", *learners), [t / steps * 1e3 for t in seconds(*runs, repeats=repeats)], strict=True))


def main():
    args = arguments(__doc__)
    found = {}
    length, repeats = (4, 1) if args.quick else (2000, 7)
    runs = [(*case, length if "small" in case[0] else min(length, 64), LEARNERS) for case in small()]
    runs += [(*case, 16 if args.quick else 64, LEARNERS) for case in networks(20 if args.quick else 1)]
    worm = se.cells.LeakyRate(279, Given(), se.SpMatMulOp(se.datasets.worm()).param(jax.random.key(0)))
    runs.append(("worm by RTRL", worm, 50, (279,), min(length, 40), {"RTRL": se.RTRL(), "BPTT": se.BPTT()}))
    for name, model, batch, shape, steps, learners in runs:
        found[name] = times(model, batch, shape, steps, repeats, learners)
        row = "   ".join(f"{rule} {ms:.3f}" for rule, ms in found[name].items())
        print(f"{name:<16} batch {batch:<4} {row} ms a step")
    (args.out / "units.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
