"""Random models of every kind, each twice: for the library and, by hand, for the oracles."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles

import sparse_etrace as se

A, N = 0.7, 4
INPUTS, OUTPUTS, STEPS = 3, 2, 7


class Net(eqx.Module):
    """A forward function of `oracles`, on the ops of the library."""

    params: dict[str, Any]
    forward: Callable = eqx.field(static=True)
    calls: tuple = eqx.field(static=True)

    def __call__(self, state, x):
        return self.forward(_Library(self.params, dict(self.calls)), state, state, x)


class _Library:
    def __init__(self, params, calls):
        self.params, self.calls = params, calls

    def __call__(self, name, x=None):
        param = self.params[self.calls.get(name, name)]
        return param(x) if isinstance(param, se.ETraceParam) else param

    def cut(self, name, fn, *args):
        return se.cut(fn)(*args)


class CellNet(eqx.Module):
    """A cell of the library and a readout."""

    cell: Any
    out: se.ETraceParam
    state_type: Callable = eqx.field(static=True)

    def __call__(self, state, x):
        new, h = self.cell(self.state_type(**state) if self.state_type is not dict else state["h"], x)
        kept = {"h": new} if self.state_type is dict else {k: a for k, a in new._asdict().items() if a is not None}
        return kept, self.out(h)


class Wrapped(eqx.Module):
    """A model under a transformation of its step."""

    model: Any
    how: Callable = eqx.field(static=True)

    def __call__(self, state, x):
        return self.how(lambda state, x: self.model(state, x))(state, x)


class Part(NamedTuple):
    """A parameter for both sides; without an op a plain array."""

    value: Any
    op: Any = None
    oracle: Any = None
    is_etrace: bool = True
    grad: se.ETraceGrad = se.ETraceGrad.adaptive

    def param(self):
        if self.op is None:
            return self.value
        return se.ETraceParam(self.value, self.op, grad=self.grad, is_etrace=self.is_etrace)


class Case(NamedTuple):
    model: Any
    twin: oracles.Twin
    xs: Any
    ys: Any

    def read(self, grads):
        """Gradients of the model by name of parameter."""
        grads = grads.model if isinstance(grads, Wrapped) else grads
        found = {}
        for name in self.twin.values:
            part = grads.params[name] if isinstance(grads, Net) else getattr(grads.cell, name, None)
            part = grads.out if part is None and isinstance(grads, CellNet) else part
            found[name] = part.value if isinstance(part, se.ETraceParam) else part
        return found


def make(
    rng, forward, parts, state, traced, calls=None, model=None, batch=(2,), x=(INPUTS,), steps=STEPS, out=(OUTPUTS,)
):
    calls = {name: name for name, p in parts.items() if p.op is not None} if calls is None else calls
    params = {name: part.param() for name, part in parts.items()}
    model = Net(params, forward, tuple(calls.items())) if model is None else model(params)
    values = {name: part.value for name, part in parts.items()}
    twin = oracles.Twin(
        forward, values, {k: p.oracle for k, p in parts.items() if p.op is not None}, state, calls, traced
    )
    return Case(model, twin, array(rng, steps, *batch, *x), array(rng, steps, *batch, *out))


def array(rng, *shape, scale=1.0):
    # As it is: `jnp.array` compiles a program for each shape.
    return jax.device_put(np.asarray(scale * rng.normal(size=shape), jax.dtypes.canonicalize_dtype(float)))


# --- parameters ------------------------------------------------------------------------------------------------------


def dense(rng, pre, post, bias=True, scale=1.0, mask=False, fn=None, fn_first=False, **rest):
    value = {"weight": array(rng, pre, post, scale=scale / math.sqrt(pre))}
    value |= {"bias": array(rng, post, scale=0.3)} if bias else {}
    mask = jnp.asarray(rng.random((pre, post)) < 0.6) if mask else None
    op = se.MatMulOp(weight_mask=mask, weight_fn=fn, apply_weight_fn_before_mask=fn_first)
    return Part(value, op, oracles.dense(mask, fn, fn_first), **rest)


def edges(rng, pre, post, share=0.6):
    """Random synapses in receiver-major order, none of the units without one."""
    m = rng.random((pre, post)) < share
    m[rng.integers(pre, size=post), np.arange(post)] = True
    m[np.arange(pre), rng.integers(post, size=pre)] = True
    i, j = np.nonzero(m.T)
    return j, i


def sparse(rng, pre, post, bias=True, scale=1.0, fn=None, tie=False, axis=-1):
    j, i = edges(rng, pre, post)
    tie = rng.integers(3, size=len(j)) if tie else None
    if tie is not None:
        tie[:3] = [0, 1, 2]
    value = {"weight": array(rng, len(j) if tie is None else 3, scale=scale)}
    value |= {"bias": array(rng, post, scale=0.3)} if bias else {}
    op = se.SpMatMulOp(se.Connectivity.from_edges(j, i, shape=(pre, post)), weight_fn=fn, tie=tie, axis=axis)
    return Part(value, op, oracles.sparse(j, i, (pre, post), fn, tie, axis))


def graph_conv_part(rng, f_in, f_out, coef=None, count=2, nodes=N):
    supports = []
    for _ in range(count):
        j, i = edges(rng, nodes, nodes, 0.3)
        supports.append((j, i, rng.normal(size=len(j))))
    graphs = [se.from_edges(j, i, w, shape=(nodes, nodes), dtype=float) for j, i, w in supports]
    value = {"weight": array(rng, count, f_in, f_out, scale=0.6), "bias": array(rng, f_out, scale=0.3)}
    if coef == "trained":
        value["coef"] = jnp.concatenate([jnp.asarray(w) for _, _, w in supports])
    return Part(value, se.GraphConvOp(graphs, coef), oracles.graph_conv(supports, coef or "fixed"))


def gated_part(rng, pre, post):
    j, i = edges(rng, pre, post)
    value = {"weight": array(rng, len(j)), "bias": array(rng, post, scale=0.3)}
    op = se.SpMatMulOp(se.Connectivity.from_edges(j, i, shape=(pre, post)), gated=True)
    return Part(value, op, oracles.gated(j, i, (pre, post)))


def conv(rng, space, c_in, c_out, window, strides, padding, groups=1, mask=False, fn=None, bias=True):
    value = {"weight": array(rng, *window, c_in // groups, c_out, scale=0.5)}
    value |= {"bias": array(rng, c_out, scale=0.3)} if bias else {}
    mask = jnp.asarray(rng.random(value["weight"].shape) < 0.7) if mask else None
    info = jax.ShapeDtypeStruct((*space, c_in), jnp.zeros(()).dtype)
    op = se.ConvOp(info, strides, padding, feature_group_count=groups, weight_mask=mask, weight_fn=fn)
    return Part(value, op, oracles.conv(strides, padding, groups, mask, fn))


def lora(rng, pre, post, rank=2, alpha=0.7, bias=True):
    value = {"B": array(rng, pre, rank, scale=0.7), "A": array(rng, rank, post, scale=0.7)}
    value |= {"bias": array(rng, post, scale=0.3)} if bias else {}
    return Part(value, se.LoraOp(alpha), oracles.lora(alpha))


def elemwise(value, fn=lambda w: w):
    return Part(value, se.ElemWiseOp(fn), oracles.elemwise(fn))


def plain(value):
    return Part(value)


# --- spikes ----------------------------------------------------------------------------------------------------------


@jax.custom_jvp
def spike(u):
    return (u >= 0).astype(u.dtype)


spike.defjvp(lambda p, t: (spike(p[0]), jnp.maximum(0, 1 - jnp.abs(p[0])) * t[0]))


@jax.custom_vjp
def spike_vjp(u):
    return (u >= 0).astype(u.dtype)


spike_vjp.defvjp(lambda u: (spike_vjp(u), u), lambda u, ct: (ct / (1 + 2 * jnp.abs(u)) ** 2,))


# --- forward functions -----------------------------------------------------------------------------------------------


def rate_forward(op, h, held, x):
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["h"]))
    return {"h": new}, op("out", new)


def feed_forward_in(op, h, held, x):
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x))
    return {"h": new}, op("out", new)


def gated_forward(op, h, held, x):
    """What comes behind the inputs says which of the recurrent weights are there, or how much they count."""
    u, gate = x[..., :INPUTS], x[..., INPUTS:]
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", u) + op("rec", (held["h"], jnp.where(gate > 0, 1.0, 0.0))))
    return {"h": new}, op("out", new)


def coef_forward(op, h, held, x):
    """Coefficients of synapses stand in front of the features of nodes."""
    count = x.shape[-1] - 2 * N
    u, coef = x[..., count:].reshape(*x.shape[:-1], N, 2), x[..., :count]
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", u) + op("rec", (held["h"], coef)))
    return {"h": new}, op("out", new)


def flat_rate_forward(op, h, held, x):
    """The readout sees all axes of the units in one."""
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["h"]))
    return {"h": new}, op("out", new.reshape(*x.shape[:1], -1))


def decay_forward(op, h, held, x):
    a = op("decay")
    new = a * h["h"] + (1 - a) * jnp.tanh(op("inp", x) + op("rec", held["h"]) + op("drive"))
    return {"h": new}, op("out", new)


def plain_readout_forward(op, h, held, x):
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["h"]))
    return {"h": new}, new @ op("out") + op("offset")


def lif_forward(op, h, held, x, spike=spike):
    u = A * h["v"] + (1 - A) * (op("inp", x) + op("rec", held["z"]))
    z = spike(u - 1)
    return {"v": u - z, "z": z}, op("out", z)


def lif_vjp_forward(op, h, held, x):
    return lif_forward(op, h, held, x, spike_vjp)


def alif_forward(op, h, held, x):
    """As `se.cells.ALIF` with its defaults but a decay of A."""
    u = A * h["v"] + (1 - A) * (op("inp", x) + op("rec", held["z"]))
    z = spike(u - 1 - h["b"])
    return {"v": u - z, "b": 0.98 * h["b"] + 0.02 * z, "z": z}, op("out", z)


def alif_v_forward(op, h, held, x):
    """The adaptation reads this step's potential, and the readout both."""
    u = A * h["v"] + (1 - A) * (op("inp", x) + op("rec", held["z"]))
    z = spike(u - 1 - h["b"])
    b = 0.9 * h["b"] + 0.3 * jnp.tanh(u)
    return {"v": u - z, "b": b, "z": z}, op("out", z + 0.5 * b)


def gru_forward(op, h, held, x):
    r = jax.nn.sigmoid(op("inp_r", x) + op("rec_r", held["h"]))
    u = jax.nn.sigmoid(op("inp_u", x) + op("rec_u", held["h"]))
    c = jnp.tanh(op("inp_c", x) + op("rec_c", r * held["h"]))
    new = (1 - u) * h["h"] + u * c
    return {"h": new}, op("out", new)


def mgu_forward(op, h, held, x):
    f = jax.nn.sigmoid(op("inp_f", x) + op("rec_f", held["h"]))
    c = jnp.tanh(op("inp_c", x) + op("rec_c", f * held["h"]))
    new = (1 - f) * h["h"] + f * c
    return {"h": new}, op("out", new)


def fused_gru_forward(op, h, held, x):
    """Reset and update gate from one op: half of its output acts through another op only."""
    y = jax.nn.sigmoid(op("inp_ru", x) + op("rec_ru", held["h"]))
    c = jnp.tanh(op("inp_c", x) + op("rec_c", y[..., :N] * held["h"]))
    new = (1 - y[..., N:]) * h["h"] + y[..., N:] * c
    return {"h": new}, op("out", new)


def fused_forward(op, h, held, x):
    """Three slices of one op."""
    y = op("inp", x) + op("rec", held["h"])
    f, i, g = y[..., :N], y[..., N : 2 * N], y[..., 2 * N :]
    new = jax.nn.sigmoid(f) * h["h"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"h": new}, op("out", new)


def lstm_forward(op, h, held, x):
    """Four parts of one op, two hidden variables."""
    i, f, g, o = jnp.split(op("inp", x) + op("rec", held["h"]), 4, axis=-1)
    c = jax.nn.sigmoid(f) * h["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    new = jax.nn.sigmoid(o) * jnp.tanh(c)
    return {"c": c, "h": new}, op("out", new)


def cell_only_forward(op, h, held, x):
    """An LSTM whose only state is its cell: the output gate leads to `out` alone."""
    i, f, g, o = jnp.split(op("inp", x) + op("rec", held["h"]), 4, axis=-1)
    new = jax.nn.sigmoid(f) * h["h"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"h": new}, op("out", jax.nn.sigmoid(o) * jnp.tanh(new))


def split_forward(op, h, held, x):
    """One half of an op is the output, the other leads to hidden state."""
    y = op("both", jnp.concatenate([x, held["h"]], axis=-1))
    return {"h": A * h["h"] + jnp.tanh(y[..., OUTPUTS:])}, y[..., :OUTPUTS]


def between_forward(op, h, held, x):
    """A readout of what lies between two sparse ops; some of it drives nothing else."""
    z = jnp.tanh(op("inp", x) + op("rec", held["h"]))
    new = A * h["h"] + (1 - A) * jnp.tanh(op("few", z))
    return {"h": new}, op("out", z + 0.3 * new)


def two_forward(op, h, held, x):
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", a) + op("rec2", held["b"]))
    return {"a": a, "b": b}, op("out", b)


def two_lif_forward(op, h, held, x):
    u = A * h["v"] + (1 - A) * (op("inp", x) + op("rec", held["z"]))
    z = spike(u - 1)
    u2 = A * h["v2"] + (1 - A) * (op("between", z) + op("rec2", held["z2"]))
    z2 = spike(u2 - 1)
    return {"v": u - z, "z": z, "v2": u2 - z2, "z2": z2}, op("out", z2)


def late_forward(op, h, held, x):
    """The second layer reads the first one step late."""
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", h["a"]) + op("rec2", held["b"]))
    return {"a": a, "b": b}, op("out", b)


def feedback_forward(op, h, held, x):
    """The first layer reads the second one step late: recurrence through both."""
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["b"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", a))
    return {"a": a, "b": b}, op("out", b)


def memoryless_forward(op, h, held, x):
    """`a` keeps nothing of its old value, so it is a layer of its own, below `b`, that the recurrence reads late."""
    a = jnp.tanh(op("inp", x))
    b = 0.8 * h["b"] + a + op("rec", h["a"])
    return {"a": a, "b": b}, op("out", b)


def three_forward(op, h, held, x):
    """Layers read the ones below in the same step, one step late, and as a product of both."""
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["a"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", a) + op("late", h["a"]))
    c = A * h["c"] + (1 - A) * jnp.tanh(op("top", b) + op("top_both", a * h["b"]))
    return {"a": a, "b": b, "c": c}, op("out", c)


def both_ways_forward(op, h, held, x):
    """One old value is read by the recurrence, as a constant, and by the readout; the model computes it once."""
    seen = jnp.tanh(h["h"])
    constant = seen if h is held else jnp.tanh(held["h"])
    new = A * h["h"] + 0.2 * seen + (1 - A) * jnp.tanh(op("inp", x) + op("rec", constant))
    return {"h": new}, op("out", new + seen)


def skip_forward(op, h, held, x):
    y = op("inp", x)
    new = A * h["h"] + (1 - A) * jnp.tanh(y + op("rec", held["h"]))
    return {"h": new}, op("out", new) + y[..., :OUTPUTS]


def old_readout_forward(op, h, held, x):
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["h"]))
    return {"h": new}, op("out", h["h"])


def twice_forward(op, h, held, x):
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["h"]) + 0.5 * op("again", jnp.sin(held["h"])))
    return {"h": new}, op("out", new)


def delay_buffer_forward(op, h, held, x):
    """The recurrence arrives three steps late, through one leaf."""
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["line"][0]))
    return {"h": new, "line": jnp.concatenate([h["line"][1:], new[None]])}, op("out", new)


def delay_chain_forward(op, h, held, x):
    """A second layer reads the first three steps late, through a chain of leaves."""
    a = A * h["a"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", held["d2"]))
    b = A * h["b"] + (1 - A) * jnp.tanh(op("between", h["d2"]))
    return {"a": a, "b": b, "d1": h["a"], "d2": h["d1"]}, op("out", b)


def clock_forward(op, h, held, x):
    """Counter, key, clock and a running mean of the input in the state."""
    key, now = jax.random.split(h["key"])
    noise = 0.1 * jax.random.normal(now, h["h"].shape, h["h"].dtype)
    mean = 0.9 * h["mean"] + 0.1 * x
    gain = 1 + 0.1 * jnp.sin(h["clock"]) + 0.1 * (h["count"] % 2)
    new = A * h["h"] + (1 - A) * gain * jnp.tanh(op("inp", x - mean) + op("rec", held["h"]) + noise)
    return {"h": new, "key": key, "mean": mean, "clock": h["clock"] + 0.5, "count": h["count"] + 1}, op("out", new)


def _norm(a):
    return (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + 1e-3)


def _attend(q, k, v):
    return jax.nn.softmax(jnp.einsum("...i,...j->...ij", q, k), axis=-1) @ v[..., None]


def cut_forward(op, h, held, x):
    normed = op.cut("norm", _norm, held["h"])
    new = A * h["h"] + (1 - A) * jnp.tanh(op("inp", x) + op("rec", normed))
    seen = op.cut("attention", lambda a: _attend(a @ op("query"), a, a)[..., 0], new)
    return {"h": new}, op("out", seen)


def late_lif_forward(op, h, held, x):
    """The second layer reads the spike of the first one step late."""
    u = A * h["v"] + (1 - A) * (op("inp", x) + op("rec", held["z"]))
    z = spike(u - 1)
    u2 = A * h["v2"] + (1 - A) * op("between", h["z"])
    z2 = spike(u2 - 0.2)
    return {"v": u - z, "z": z, "v2": u2 - z2}, op("out", z2)


def alif_trained_forward(op, h, held, x):
    """Every constant of `se.cells.ALIF` is trained."""
    a, threshold, rho, beta = op("decay"), op("threshold"), op("adaptation_decay"), op("adaptation")
    u = a * h["v"] + (1 - a) * (op("inp", x) + op("rec", held["z"]))
    z = spike((u - threshold - beta * h["b"]) / threshold)
    return {"v": u - threshold * z, "b": rho * h["b"] + (1 - rho) * z, "z": z}, op("out", z)


def two_groups_forward(op, h, held, x):
    """One op drives two groups, of which one takes a slice."""
    y = op("inp", x) + op("rec", held["a"])
    a = A * h["a"] + (1 - A) * jnp.tanh(y)
    b = 0.5 * h["b"] + jnp.sin(y[..., 1:])
    return {"a": a, "b": b}, op("out", a) + op("out_b", b)


def synapse_forward(op, h, held, x):
    """The current is a variable of its own, and acts one step late; a user's op scales the input unit by unit.

    So the input weights reach hidden state through another op only.
    """
    current = 0.6 * h["i"] + op("scale", op("inp", x)) + op("rec", held["v"])
    v = A * h["v"] + (1 - A) * jnp.tanh(h["i"])
    return {"i": current, "v": v}, op("out", v + 0.3 * current)


def _parts(y):
    """Real and imaginary part, also of `oracles.pairs`."""
    return (y.real, y.imag) if jnp.iscomplexobj(y) else (y[..., 0], y[..., 1])


def lru_forward(op, h, held, x, current=lambda op, held, x: op("inp", x)):
    a, b = _parts(op("eigenvalue"))
    c, d = _parts(current(op, held, x))
    gain = op("scale")
    new = {"re": a * h["re"] - b * h["im"] + gain * c, "im": b * h["re"] + a * h["im"] + gain * d}
    return new, op("out", jnp.concatenate([new["re"], new["im"]], -1))


def recurrent_lru_forward(op, h, held, x):
    return lru_forward(op, h, held, x, lambda op, held, x: op("inp", x) + op("rec", held["re"] + held["im"] ** 2))


# --- cases -----------------------------------------------------------------------------------------------------------


def _state(rng, batch, *names, shape=(N,)):
    return {name: array(rng, *batch, *shape, scale=0.5) for name in names}


def _layer(rng, scale=1.0, **rest):
    return {"inp": dense(rng, INPUTS, N, scale=scale, **rest), "rec": sparse(rng, N, N, scale=scale, bias=False)}


def rate(rng, batch=(2,), forward=rate_forward, **parts):
    given = _layer(rng) | {"out": dense(rng, N, OUTPUTS)} | parts
    return make(rng, forward, given, _state(rng, batch, "h"), {"inp": ("h",), "rec": ("h",)}, batch=batch)


def rate_cell(rng, batch=(2,)):
    parts = _layer(rng) | {"decay": elemwise(array(rng, N), jax.nn.sigmoid), "out": dense(rng, N, OUTPUTS)}

    def forward(op, h, held, x):
        a = op("decay")
        new = a * h["h"] + (1 - a) * jnp.tanh(op("inp", x) + op("rec", held["h"]))
        return {"h": new}, op("out", new)

    def model(p):
        return CellNet(se.cells.LeakyRate(N, p["inp"], p["rec"], decay=p["decay"]), p["out"], dict)

    traced = dict.fromkeys(("inp", "rec", "decay"), ("h",))
    return make(rng, forward, parts, _state(rng, batch, "h"), traced, model=model, batch=batch)


def lif(rng, batch=(2,), forward=lif_forward):
    parts = _layer(rng, scale=3.0) | {"out": dense(rng, N, OUTPUTS)}
    return make(rng, forward, parts, _state(rng, batch, "v", "z"), dict.fromkeys(("inp", "rec"), ("v",)), batch=batch)


def lif_cell(rng, batch=(2,)):
    def model(p):
        cell = se.cells.LIF(N, p["inp"], p["rec"], decay=A, spike=spike)
        return CellNet(cell, p["out"], type(cell.init_state()))

    parts = _layer(rng, scale=3.0) | {"out": dense(rng, N, OUTPUTS)}
    traced = dict.fromkeys(("inp", "rec"), ("v",))
    return make(rng, lif_forward, parts, _state(rng, batch, "v", "z"), traced, model=model, batch=batch)


def alif_cell(rng, batch=(2,)):
    def model(p):
        cell = se.cells.ALIF(N, p["inp"], p["rec"], decay=A, spike=spike)
        return CellNet(cell, p["out"], type(cell.init_state()))

    parts = _layer(rng, scale=3.0) | {"out": dense(rng, N, OUTPUTS)}
    traced = dict.fromkeys(("inp", "rec"), ("v", "b"))
    return make(rng, alif_forward, parts, _state(rng, batch, "v", "b", "z"), traced, model=model, batch=batch)


def alif_v(rng, batch=(2,)):
    parts = _layer(rng, scale=3.0) | {"out": dense(rng, N, OUTPUTS)}
    traced = dict.fromkeys(("inp", "rec"), ("v", "b"))
    return make(rng, alif_v_forward, parts, _state(rng, batch, "v", "b", "z"), traced, batch=batch)


def gru_cell(rng, batch=(2,)):
    names = ("inp_r", "inp_u", "inp_c", "rec_r", "rec_u", "rec_c")
    parts = {k: dense(rng, INPUTS, N) if k[0] == "i" else sparse(rng, N, N, bias=False) for k in names}
    traced = {k: ("h",) for k in names if k[-1] != "r"}

    def model(p):
        return CellNet(se.cells.GRU(N, *(p[k] for k in names)), p["out"], dict)

    parts |= {"out": dense(rng, N, OUTPUTS)}
    return make(rng, gru_forward, parts, _state(rng, batch, "h"), traced, model=model, batch=batch)


def mgu_cell(rng, batch=(2,)):
    names = ("inp_f", "inp_c", "rec_f", "rec_c")
    parts = {k: dense(rng, INPUTS, N) if k[0] == "i" else dense(rng, N, N, bias=False) for k in names}

    def model(p):
        return CellNet(se.cells.MGU(N, *(p[k] for k in names)), p["out"], dict)

    parts |= {"out": dense(rng, N, OUTPUTS)}
    traced = dict.fromkeys(names, ("h",))
    return make(rng, mgu_forward, parts, _state(rng, batch, "h"), traced, model=model, batch=batch)


def fused_gru(rng, batch=(2,)):
    parts = {
        "inp_ru": dense(rng, INPUTS, 2 * N), "rec_ru": sparse(rng, N, 2 * N, bias=False),
        "inp_c": dense(rng, INPUTS, N), "rec_c": sparse(rng, N, N, bias=False), "out": dense(rng, N, OUTPUTS),
    }  # fmt: skip
    traced = dict.fromkeys(("inp_ru", "rec_ru", "inp_c", "rec_c"), ("h",))
    return make(rng, fused_gru_forward, parts, _state(rng, batch, "h"), traced, batch=batch)


def fused(rng, batch=(2,), forward=fused_forward, gates=3, names=("h",)):
    parts = {
        "inp": dense(rng, INPUTS, gates * N),
        "rec": sparse(rng, N, gates * N, bias=False),
        "out": dense(rng, N, OUTPUTS),
    }
    return make(rng, forward, parts, _state(rng, batch, *names), dict.fromkeys(("inp", "rec"), names), batch=batch)


def lstm(rng, batch=(2,)):
    return fused(rng, batch, lstm_forward, 4, ("c", "h"))


def cell_only(rng):
    return fused(rng, forward=cell_only_forward, gates=4)


def split(rng):
    parts = {"both": dense(rng, INPUTS + N, OUTPUTS + N)}
    return make(rng, split_forward, parts, _state(rng, (2,), "h"), {})


def between(rng):
    j, i = np.repeat(np.arange(N // 2), N), np.tile(np.arange(N), N // 2)
    conn = se.Connectivity.from_edges(j, i, shape=(N, N))
    oracle = oracles.sparse(np.asarray(conn.pre), np.asarray(conn.post), (N, N))
    few = Part({"weight": array(rng, conn.num_synapses)}, se.SpMatMulOp(conn), oracle)
    parts = _layer(rng) | {"few": few, "out": dense(rng, N, OUTPUTS)}
    return make(rng, between_forward, parts, _state(rng, (2,), "h"), {"few": ("h",)})


def layers(rng, forward, first, second, batch=(2,), scale=1.0, state=("a", "b"), rec2=True, calls=None):
    parts = _layer(rng, scale) | {"between": dense(rng, N, N, scale=scale), "out": dense(rng, N, OUTPUTS)}
    parts |= {"rec2": sparse(rng, N, N, bias=False, scale=scale)} if rec2 else {}
    calls = {name: name for name in parts} if calls is None else calls
    traced = dict.fromkeys(("inp", "rec"), first) | dict.fromkeys(
        [c for c in ("between", "rec2") if c in calls], second
    )
    return make(rng, forward, parts, _state(rng, batch, *state), traced, calls, batch=batch)


def two(rng):
    return layers(rng, two_forward, ("a",), ("b",))


def two_lif(rng):
    return layers(rng, two_lif_forward, ("v",), ("v2",), scale=3.0, state=("v", "z", "v2", "z2"))


def late(rng):
    return layers(rng, late_forward, ("a",), ("b",))


def feedback(rng):
    return layers(rng, feedback_forward, ("a",), ("b",), rec2=False)


def delay_chain(rng):
    return layers(rng, delay_chain_forward, ("a", "d1", "d2"), ("b",), rec2=False, state=("a", "b", "d1", "d2"))


def shared(rng):
    """Both layers use one recurrent parameter."""
    calls = {"inp": "inp", "rec": "rec", "between": "between", "rec2": "rec", "out": "out"}
    return layers(rng, two_forward, ("a",), ("b",), rec2=False, calls=calls)


def memoryless(rng):
    traced = {"inp": ("a", "b"), "rec": ("b",)}
    parts = _layer(rng) | {"out": dense(rng, N, OUTPUTS)}
    return make(rng, memoryless_forward, parts, _state(rng, (2,), "a", "b"), traced)


def three(rng):
    names = {"between": ("b",), "late": ("b",), "top": ("c",), "top_both": ("c",)}
    parts = _layer(rng) | {name: dense(rng, N, N) for name in names} | {"out": dense(rng, N, OUTPUTS)}
    traced = {"inp": ("a",), "rec": ("a",), **names}
    return make(rng, three_forward, parts, _state(rng, (2,), "a", "b", "c"), traced)


def both_ways(rng):
    return rate(rng, forward=both_ways_forward)


def skip(rng):
    return rate(rng, forward=skip_forward)


def old_readout(rng):
    return rate(rng, forward=old_readout_forward)


def tied(rng):
    return rate(rng, rec=sparse(rng, N, N, tie=True))


def twice(rng):
    """One parameter in two calls of a step."""
    calls = {"inp": "inp", "rec": "rec", "again": "rec", "out": "out"}
    parts = _layer(rng) | {"out": dense(rng, N, OUTPUTS)}
    traced = dict.fromkeys(("inp", "rec", "again"), ("h",))
    return make(rng, twice_forward, parts, _state(rng, (2,), "h"), traced, calls)


def axis_2(rng):
    """Two features through the same synapses."""
    parts = {
        "inp": sparse(rng, INPUTS, N, axis=-2),
        "rec": sparse(rng, N, N, axis=-2),
        "out": sparse(rng, N, OUTPUTS, axis=-2),
    }
    state = _state(rng, (2,), "h", shape=(N, 2))
    traced = dict.fromkeys(("inp", "rec"), ("h",))
    return make(rng, rate_forward, parts, state, traced, x=(INPUTS, 2), out=(OUTPUTS, 2))


def graph_conv(rng, coef=None):
    """Nodes by features, matrices of features behind sums over neighbours."""
    forward = coef_forward if coef == "input" else rate_forward
    parts = {
        "inp": graph_conv_part(rng, 2, 3),
        "rec": graph_conv_part(rng, 3, 3, coef),
        "out": graph_conv_part(rng, 3, OUTPUTS, count=1),
    }
    state = _state(rng, (2,), "h", shape=(N, 3))
    traced = dict.fromkeys(("inp", "rec"), ("h",))
    x = (N, 2) if coef != "input" else (parts["rec"].op.connectivity.num_synapses + 2 * N,)
    return make(rng, forward, parts, state, traced, x=x, out=(N, OUTPUTS))


def graph_conv_trained(rng):
    return graph_conv(rng, "trained")


def graph_conv_input(rng):
    return graph_conv(rng, "input")


def gated(rng):
    """Recurrent synapses come and go."""
    parts = {"inp": dense(rng, INPUTS, N), "rec": gated_part(rng, N, N), "out": dense(rng, N, OUTPUTS)}
    x = (INPUTS + parts["rec"].op.connectivity.num_synapses,)
    return make(rng, gated_forward, parts, _state(rng, (2,), "h"), dict.fromkeys(("inp", "rec"), ("h",)), x=x)


def conv_1d(rng, **kinds):
    parts = {
        "inp": conv(rng, (6,), 2, 4, (3,), (2,), ((1, 1),), **kinds),
        "rec": conv(rng, (3,), 4, 4, (3,), (1,), ((1, 1),), groups=2, bias=False),
        "out": dense(rng, 12, OUTPUTS),
    }
    state = _state(rng, (2,), "h", shape=(3, 4))
    return make(rng, flat_rate_forward, parts, state, dict.fromkeys(("inp", "rec"), ("h",)), x=(6, 2), steps=5)


def channel_decay_forward(op, h, held, x):
    a = op("decay")
    new = a * h["h"] + (1 - a) * jnp.tanh(op("inp", x))
    return {"h": new}, op("out", new.reshape(*x.shape[:1], -1))


def channel_decay(rng):
    """One decay for each channel, at every position."""
    decay = elemwise({"a": array(rng, 4), "b": array(rng)}, lambda w: jax.nn.sigmoid(w["a"] + w["b"]))
    parts = {"inp": conv(rng, (4,), 2, 4, (2,), (2,), ((0, 0),)), "decay": decay, "out": dense(rng, 8, OUTPUTS)}
    state = _state(rng, (2,), "h", shape=(2, 4))
    return make(rng, channel_decay_forward, parts, state, dict.fromkeys(("inp", "decay"), ("h",)), x=(4, 2), steps=5)


def conv_2d(rng):
    parts = {
        "inp": conv(rng, (4, 3), 2, 2, (2, 2), (2, 1), ((0, 0), (1, 0)), mask=True, fn=jnp.tanh),
        "rec": conv(rng, (2, 3), 2, 2, (2, 3), (1, 1), ((1, 0), (1, 1))),
        "out": dense(rng, 12, OUTPUTS),
    }
    state = _state(rng, (2,), "h", shape=(2, 3, 2))
    return make(rng, flat_rate_forward, parts, state, dict.fromkeys(("inp", "rec"), ("h",)), x=(4, 3, 2), steps=5)


def low_rank(rng):
    return rate(rng, inp=lora(rng, INPUTS, N), rec=lora(rng, N, N, rank=1, alpha=1.3, bias=False))


def masked(rng):
    return rate(rng, inp=dense(rng, INPUTS, N, mask=True, fn=jnp.cos), rec=dense(rng, N, N, mask=True, fn=jnp.tanh))


def function_first(rng):
    inp = dense(rng, INPUTS, N, mask=True, fn=jnp.cos, fn_first=True)
    return rate(rng, inp=inp, rec=dense(rng, N, N, mask=True, fn=jnp.square, fn_first=True))


def sparse_function(rng):
    return rate(rng, inp=sparse(rng, INPUTS, N, fn=jnp.square), rec=sparse(rng, N, N, fn=jnp.tanh, tie=True))


def decay(rng, batch=(2,)):
    """Elementwise parameters: a decay per unit, and a drive made of a dictionary."""
    drive = elemwise({"gain": array(rng, N), "shift": array(rng, N)}, lambda w: jnp.tanh(w["gain"]) * w["shift"])
    parts = _layer(rng) | {
        "decay": elemwise(array(rng, N), jax.nn.sigmoid),
        "drive": drive,
        "out": dense(rng, N, OUTPUTS),
    }
    traced = dict.fromkeys(("inp", "rec", "decay", "drive"), ("h",))
    return make(rng, decay_forward, parts, _state(rng, batch, "h"), traced, batch=batch)


def nontemp(rng):
    """Readout and input without trace."""
    return rate(rng, inp=dense(rng, INPUTS, N), out=dense(rng, N, OUTPUTS, is_etrace=False))


def untraced_input(rng):
    case = rate(rng, inp=dense(rng, INPUTS, N, is_etrace=False))
    return case._replace(twin=case.twin._replace(traced={"rec": ("h",)}))


def plain_readout(rng):
    parts = {"out": plain(array(rng, N, OUTPUTS)), "offset": plain(array(rng, OUTPUTS))}
    return rate(rng, forward=plain_readout_forward, **parts)


def delay_buffer(rng):
    case = rate(rng, forward=delay_buffer_forward)
    return case._replace(twin=case.twin._replace(state=case.twin.state | {"line": array(rng, 3, 2, N)}))


def clock(rng):
    case = rate(rng, forward=clock_forward)
    extra = {
        "key": jax.random.key(3),
        "mean": array(rng, 2, INPUTS),
        "clock": jnp.zeros(()),
        "count": jnp.zeros((), int),
    }
    return case._replace(twin=case.twin._replace(state=case.twin.state | extra))


def cut(rng):
    return rate(rng, forward=cut_forward, query=plain(array(rng, N, N)))


def late_lif(rng):
    return layers(rng, late_lif_forward, ("v", "z"), ("v2",), scale=3.0, state=("v", "z", "v2"), rec2=False)


def alif_trained(rng):
    names = ("decay", "threshold", "adaptation_decay", "adaptation")
    parts = _layer(rng, scale=3.0) | {"out": dense(rng, N, OUTPUTS)}
    parts |= {name: elemwise(array(rng, N), jax.nn.sigmoid) for name in names[:3]}
    parts["adaptation"] = elemwise(array(rng), jnp.exp)

    def model(p):
        cell = se.cells.ALIF(N, p["inp"], p["rec"], spike=spike, **{name: p[name] for name in names})
        return CellNet(cell, p["out"], type(cell.init_state()))

    traced = dict.fromkeys(("inp", "rec", *names), ("v", "b"))
    return make(rng, alif_trained_forward, parts, _state(rng, (2,), "v", "b", "z"), traced, model=model)


def two_groups(rng):
    parts = _layer(rng) | {"out": dense(rng, N, OUTPUTS), "out_b": dense(rng, N - 1, OUTPUTS, bias=False)}
    traced = dict.fromkeys(("inp", "rec"), ("a", "b"))
    state = _state(rng, (2,), "a") | _state(rng, (2,), "b", shape=(N - 1,))
    return make(rng, two_groups_forward, parts, state, traced)


class Scale(se.ETraceOp):
    """A user's op, one to one."""

    def xw_to_y(self, x, w):
        return x * w["gain"]

    def yw_to_w(self, y, e):
        return {"gain": y * e["gain"]}


def synapse(rng):
    gain = Part({"gain": array(rng, N)}, Scale(), oracles.Op(lambda theta: theta, lambda x, v: x * v["gain"]))
    parts = _layer(rng) | {"scale": gain, "out": dense(rng, N, OUTPUTS)}
    return make(rng, synapse_forward, parts, _state(rng, (2,), "i", "v"), dict.fromkeys(("rec", "scale"), ("i", "v")))


def lif_vjp(rng):
    return lif(rng, forward=lif_vjp_forward)


def turned(rng, part):
    """A part whose weights are complex, of another phase each."""
    value = jax.tree.map(lambda w: w * jnp.exp(1j * array(rng, *w.shape)), part.value)
    return part._replace(value=value, oracle=oracles.pairs(part.oracle))


def lru_cell(rng, batch=(2,), forward=lru_forward, rec=False):
    """Complex weights and complex elementwise parameters."""

    def ring(w):
        return jnp.exp(-jnp.exp(w["nu"]) + 1j * jnp.exp(w["theta"]))

    def model(p):
        cell = se.cells.LRU(N, p["inp"], p["eigenvalue"], p["scale"])
        return CellNet(cell, p["out"], type(cell.init_state()))

    eigenvalue = elemwise({"nu": array(rng, N), "theta": array(rng, N)}, ring)
    parts = {
        "inp": turned(rng, dense(rng, INPUTS, N)), "scale": elemwise(array(rng, N), jnp.exp),
        "eigenvalue": eigenvalue._replace(oracle=oracles.pairs(eigenvalue.oracle)),
        "out": dense(rng, 2 * N, OUTPUTS),
    }  # fmt: skip
    if rec:
        parts["rec"] = turned(rng, sparse(rng, N, N, bias=False, scale=0.3))
    traced = dict.fromkeys([name for name in parts if name != "out"], ("re", "im"))
    state = _state(rng, batch, "re", "im")
    return make(rng, forward, parts, state, traced, model=None if rec else model, batch=batch)


def recurrent_lru(rng, batch=(2,)):
    """And a complex op that reads old state."""
    return lru_cell(rng, batch, recurrent_lru_forward, rec=True)


def no_recurrence(rng):
    parts = {"inp": dense(rng, INPUTS, N, fn=jnp.tanh), "out": dense(rng, N, OUTPUTS)}
    return make(rng, feed_forward_in, parts, _state(rng, (2,), "h"), {"inp": ("h",)})


KINDS = {
    f.__name__: f
    for f in (
        rate, rate_cell, lif, lif_cell, lif_vjp, alif_cell, alif_v, gru_cell, mgu_cell, fused, lstm, fused_gru, two,
        two_lif, late, feedback, delay_chain, delay_buffer, shared, skip, old_readout, tied, twice, axis_2, conv_1d,
        conv_2d, low_rank, masked, function_first, sparse_function, decay, nontemp, untraced_input, plain_readout,
        clock, cut, no_recurrence, late_lif, alif_trained, two_groups, synapse, channel_decay,
        graph_conv, graph_conv_trained, graph_conv_input, gated,
        three, both_ways, lru_cell, recurrent_lru, cell_only, split, between, memoryless,
    )
}  # fmt: skip


# One kind for each mechanism: those that D-RTRL is compared on step by step, and those that have a test of their own
# elsewhere. The others combine them otherwise.
CORE = (
    "mgu_cell", "late_lif", "feedback", "delay_chain", "shared", "twice", "old_readout", "axis_2", "alif_trained",
    "channel_decay", "clock", "cut", "two_groups", "synapse", "three", "recurrent_lru", "split", "between",
    "memoryless", "graph_conv_trained", "gated",
)  # fmt: skip
ELSEWHERE = (
    "rate", "lif_vjp", "alif_v", "fused_gru", "two_lif", "delay_buffer", "tied", "conv_1d", "low_rank", "masked",
    "sparse_function", "nontemp", "both_ways",
)  # fmt: skip
# What an op or a state is made of as factors need it: one kind for each.
FACTORED = ("tied", "axis_2", "conv_1d", "low_rank", "shared", "alif_trained", "recurrent_lru", "graph_conv_trained")


def build(kind, seed=0, **options):
    return KINDS[kind](np.random.default_rng([seed, *kind.encode()]), **options)


# --- runs ------------------------------------------------------------------------------------------------------------

DECAY = 0.8


@functools.cache
def in_float64(kind):
    """One case for all tests, so that they share its programs."""
    with jax.enable_x64(True):
        return build(kind)


@functools.cache
def reference(kind, seed=0):
    """A case and what the oracles say of it, in float64; ES-D-RTRL with DECAY."""
    with jax.enable_x64(True):
        case = build(kind, seed)
        return case, oracles.online(case.twin, case.xs, case.ys, decay=DECAY)


def start(learner, case):
    return learner.init(case.model, case.twin.state, jax.ShapeDtypeStruct(case.xs.shape[1:], case.xs.dtype))


def run(learner, case, chunk=STEPS, carry=None, steps=slice(None)):
    """Losses, gradients by name and carry of `online_grad` on some steps of a case."""
    carry = start(learner, case) if carry is None else carry
    # Numpy cuts without a program for each length.
    xs, ys = np.asarray(case.xs)[steps], np.asarray(case.ys)[steps]
    losses, grads, carry = se.online_grad(learner, oracles.loss_fn, case.model, carry, xs, ys, chunk=chunk)
    return losses, case.read(grads), carry


def run_by_step(learner, case):
    """Losses and gradients of each step, from split calls with the carry going on."""
    carry, losses, grads = start(learner, case), [], []
    for t in range(len(case.xs)):
        loss, grad, carry = run(learner, case, 1, carry, slice(t, t + 1))
        losses.append(loss)
        grads.append(grad)
    return np.concatenate(losses), jax.tree.map(lambda *g: np.stack(g), *grads)


def total(grads):
    return jax.tree.map(lambda g: np.sum(g, 0), grads)
