"""Reference gradients without the library: explicit Jacobians, stop-gradient twins, factor formulas, plain BPTT.

A model is written a second time, by hand, as `forward(op, h, held, x) -> (state, out)` over a dictionary of state.
`held` has the numbers of the old state `h`, for whatever the learning rule reads as a constant: an op whose output
reaches a group takes that group's old state from `held`, everything else comes from `h`. `op(call, x)` runs an op,
`op(name)` gives an elementwise or a plain parameter, `op.cut(name, fn, *args)` is a declared boundary.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# --- ops by hand -----------------------------------------------------------------------------------------------------


class Op(NamedTuple):
    """`v = phi(theta)`, `y = apply(read(x), v)`; without `takes_input` its traces are exact under every learner."""

    phi: Callable
    apply: Callable
    takes_input: bool = True
    read: Callable = lambda x: x


def _bias(y, v, shape=None):
    return y + v["bias"] if "bias" in v else y


def dense(mask=None, fn=None, fn_first=False):
    def phi(theta):
        f, m = fn or (lambda w: w), 1.0 if mask is None else mask
        return {**theta, "weight": f(theta["weight"]) * m if fn_first else f(theta["weight"] * m)}

    return Op(phi, lambda x, v: _bias(jnp.einsum("...j,ji->...i", x, v["weight"]), v))


def sparse(pre, post, shape, fn=None, tie=None, axis=-1):
    """`pre`, `post`, `tie` in the order of the weights."""
    slots = np.arange(len(pre)) if tie is None else np.asarray(tie)

    def phi(theta):
        return {**theta, "weight": (fn or (lambda w: w))(theta["weight"])[slots]}

    def apply(x, v):
        full = jnp.zeros(shape, v["weight"].dtype).at[pre, post].add(v["weight"])
        if axis == -1:
            return _bias(x @ full, v)
        return jnp.einsum("...jf,ji->...if", x, full) + (v["bias"][:, None] if "bias" in v else 0.0)

    return Op(phi, apply)


def gated(pre, post, shape):
    """Called with `(x, gate)`."""
    full = np.zeros((len(post), shape[1]))
    full[np.arange(len(post)), post] = 1

    def apply(z, v):
        return _bias(jnp.einsum("...s,s,si->...i", z, v["weight"], full), v)

    return Op(dict, apply, read=lambda x: x[0][..., pre] * x[1])


def delayed(pre, post, shape, delay, axis=-1, is_trained=False):
    """Called with a line for each synapse, `(..., synapses, steps)`, with features between, the newest first."""
    delay, full = np.asarray(delay), np.zeros((len(post), shape[1]))
    full[np.arange(len(post)), post] = 1
    whole = np.broadcast_to(np.floor(delay).astype(int), post.shape)

    def phi(theta):
        rest = {k: leaf for k, leaf in theta.items() if k == "bias"}
        share = theta["delay"] - whole if is_trained else jnp.zeros(len(post))
        return {"weight": jnp.stack([theta["weight"] * (1 - share), theta["weight"] * share]), **rest}

    def apply(line, v):
        y = 0.0
        for weight, steps in zip(v["weight"], (whole, whole + 1)):
            chosen = (np.arange(line.shape[-1]) == (steps - 1)[:, None]).astype(float)
            read = "...sk,sk->...s" if axis == -1 else "...sfk,sk->...sf"
            to = "...s,s,si->...i" if axis == -1 else "...sf,s,si->...if"
            y = y + jnp.einsum(to, jnp.einsum(read, line, chosen), weight, full)
        return y + (v["bias"] if axis == -1 else v["bias"][:, None])

    return Op(phi, apply)


def graph_conv(supports, kind="fixed"):
    """`supports` as `(pre, post, weight)`, weights in receiver-major order, one support after the other."""
    fixed = np.concatenate([weight for _, _, weight in supports])
    splits = np.cumsum([len(pre) for pre, _, _ in supports])[:-1]

    def gathered(x, coef):
        n, parts = x.shape[-2], jnp.split(coef, splits, -1)
        full = [
            jnp.zeros((*c.shape[:-1], n, n)).at[..., pre, post].add(c) for (pre, post, _), c in zip(supports, parts)
        ]
        return jnp.stack([jnp.einsum("...ji,...jf->...if", a, x) for a in full], -3)

    def apply(z, v):
        z = gathered(z, v["coef"]) if kind == "trained" else z
        return _bias(jnp.einsum("...kif,kfo->...io", z, v["weight"]), v)

    if kind == "trained":
        return Op(dict, apply)
    return Op(dict, apply, read=(lambda x: gathered(x, fixed)) if kind == "fixed" else lambda x: gathered(*x))


def conv(strides, padding, groups=1, mask=None, fn=None):
    """One tap at a time; `padding` a pair for each spatial axis."""

    def phi(theta):
        return {**theta, "weight": (fn or (lambda w: w))(theta["weight"] * (1.0 if mask is None else mask))}

    def apply(x, v):
        w, space = v["weight"], len(strides)
        batch = x.ndim - space - 1
        x = jnp.pad(x, [(0, 0)] * batch + list(padding) + [(0, 0)])
        count = [(x.shape[batch + d] - w.shape[d]) // strides[d] + 1 for d in range(space)]
        y = 0.0
        for tap in np.ndindex(*w.shape[:space]):
            part = x[(..., *(slice(t, t + s * (c - 1) + 1, s) for t, s, c in zip(tap, strides, count)), slice(None))]
            parts = zip(jnp.split(part, groups, -1), jnp.split(w[tap], groups, -1))
            y = y + jnp.concatenate([jnp.einsum("...c,co->...o", p, k) for p, k in parts], -1)
        return _bias(y, v)

    return Op(phi, apply)


def lora(alpha=1.0):
    def phi(theta):
        rest = {k: leaf for k, leaf in theta.items() if k == "bias"}
        return {"weight": alpha * jnp.einsum("jr,ri->ji", theta["B"], theta["A"]), **rest}

    return Op(phi, lambda x, v: _bias(jnp.einsum("...j,ji->...i", x, v["weight"]), v))


def elemwise(fn=lambda w: w):
    return Op(fn, lambda x, v: v, takes_input=False)


def pairs(op):
    """A complex op on real numbers only: real and imaginary parts side by side, on a last axis."""

    def split(tree):
        return jax.tree.map(lambda a: jnp.stack([a.real, a.imag], -1), tree)

    def join(tree):
        return jax.tree.map(lambda a: a[..., 0] + 1j * a[..., 1], tree)

    return Op(lambda theta: split(op.phi(theta)), lambda x, v: split(op.apply(x, join(v))), op.takes_input)


# --- models ----------------------------------------------------------------------------------------------------------


class Twin(NamedTuple):
    """A model by hand.

    values: parameters by name. ops: their ops; a name without one is a plain array.
    calls: name of each op call -> name of its parameter. traced: op call -> the state that it is traced into.
    """

    forward: Callable
    values: dict[str, Any]
    ops: dict[str, Op]
    state: dict[str, Any]
    calls: dict[str, str]
    traced: dict[str, tuple[str, ...]]


def loss_fn(out, target):
    return 0.5 * jnp.sum((out - target) ** 2) + 0.1 * jnp.sum(jnp.sin(out))


class _Ops:
    """What `forward` calls. Outputs of ops are as `given`, or computed with `delta` added; both are recorded."""

    def __init__(self, twin, v, values, given=None, delta=None):
        self.twin, self.v, self.values, self.given, self.delta = twin, v, values, given, delta
        self.x, self.y = {}, {}

    def __call__(self, name, x=None):
        if name not in self.twin.calls:
            return self.values[name]
        op = self.twin.ops[self.twin.calls[name]]
        x = op.read(x)
        return self._boundary(name, lambda: op.apply(x, self.v[name]), x)

    def cut(self, name, fn, *args):
        return self._boundary(name, lambda: fn(*args), None)

    def _boundary(self, name, run, x):
        if self.given is not None:
            return self.given[name]
        y = run()
        y = y if self.delta is None else y + self.delta[name]
        self.x[name], self.y[name] = x, y
        return y


def _floating(state):
    return [k for k in sorted(state) if jax.dtypes.issubdtype(state[k].dtype, np.floating)]


def _pack(state):
    """Floating state as one vector, and back."""
    names = _floating(state)
    sizes = np.cumsum([0, *(math.prod(state[k].shape) for k in names)])

    def unpack(vector):
        parts = {k: vector[a:b].reshape(state[k].shape) for k, a, b in zip(names, sizes, sizes[1:])}
        return {**state, **parts}

    return jnp.concatenate([state[k].ravel() for k in names]), unpack


def _weights(twin, values):
    return {c: twin.ops[w].phi(values[w]) for c, w in twin.calls.items()}


def _plain(twin, values):
    return {name: value for name, value in values.items() if name not in twin.calls.values()}


def _to_values(twin, values, dv, plain, phi_derivative=True):
    """Gradients by weights of op calls as gradients by parameters."""
    total = dict(plain)
    for c, w in twin.calls.items():
        pulled = jax.vjp(twin.ops[w].phi, values[w])[1](dv[c])[0] if phi_derivative else dv[c]
        total[w] = jax.tree.map(jnp.add, total[w], pulled) if w in total else pulled
    return total


# --- (b) explicit Jacobians, (c) factors -----------------------------------------------------------------------------


class Step(NamedTuple):
    """One step, explicitly. With the floating state as one vector of H numbers and an output y for each op call:

    m (H,) = dL/dh_{t-1}, n (*y) = dL/dy, d (H, H) = dh/dh_{t-1} and f (H, *y) = dh/dy of the op-free map, inputs x of
    the calls, dydv (*y, *v), and the gradients of plain arrays.
    """

    loss: Any
    state: Any
    m: Any
    n: Any
    d: Any
    f: Any
    x: Any
    dydv: Any
    plain: Any


def linearise(twin, values, state, x, target):
    h, unpack = _pack(state)
    v, plain = _weights(twin, values), _plain(twin, values)
    seen = _Ops(twin, v, values)
    new, _ = twin.forward(seen, state, state, x)
    delta = {c: jnp.zeros_like(y) for c, y in seen.y.items()}

    def loss(h, delta, plain):
        out = twin.forward(_Ops(twin, v, {**values, **plain}, delta=delta), unpack(h), state, x)[1]
        return loss_fn(out, target)

    def op_free(h, y):
        return _pack(twin.forward(_Ops(twin, v, values, given=y), unpack(h), unpack(h), x)[0])[0]

    value, (m, n, by_plain) = jax.value_and_grad(loss, (0, 1, 2))(h, delta, plain)
    d, f = jax.jacobian(op_free, (0, 1))(h, seen.y)
    dydv = {c: jax.jacobian(lambda v, c=c, w=w: twin.ops[w].apply(seen.x[c], v))(v[c]) for c, w in twin.calls.items()}
    return Step(value, new, m, n, d, f, seen.x, dydv, by_plain)


class Traces(NamedTuple):
    """State, dense traces dh/dv of every call, its factors, steps so far, and the last learning signal."""

    state: Any
    eps: Any
    xhat: Any
    fhat: Any
    t: Any
    signal: Any


class Run(NamedTuple):
    """Losses and gradients of each step (time first): D-RTRL's, and those with factors; and where to go on from."""

    losses: Any
    exact: Any
    factored: Any
    carry: Traces


def online(twin, xs, ys, decay=0.9, factored=None, wrong=None, carry=None):
    """D-RTRL by explicit Jacobians, and ES-D-RTRL by its formula, with exact biases.

    factored: the op calls with factors; None for all that have a trace and an input.
    wrong: "no trace", "diagonal", "late signal", "no weight_fn": mistakes that a comparison must notice.
    """
    many = [c for c in twin.calls if c in twin.traced and twin.ops[twin.calls[c]].takes_input]
    factored = many if factored is None else factored
    carry = _zero_traces(twin, many, xs[0], ys[0]) if carry is None else carry

    def step(carry, now):
        s = linearise(twin, twin.values, carry.state, *now)
        m, n = carry.signal if wrong == "late signal" else (s.m, s.n)
        d = s.d * jnp.eye(len(m), dtype=m.dtype) if wrong == "diagonal" else s.d
        exact, by_factors, eps, xhat, fhat = {}, {}, {}, {}, {}
        for c, w in twin.calls.items():
            exact[c] = jax.tree.map(lambda j, n=n[c]: jnp.tensordot(n, j, n.ndim), s.dydv[c])
            by_factors[c] = exact[c]
            if c not in twin.traced:
                continue
            if wrong != "no trace":
                exact[c] = jax.tree.map(lambda now, e: now + jnp.tensordot(m, e, 1), exact[c], carry.eps[c])
            f = s.f[c]
            fresh = jax.tree.map(lambda j, f=f: jnp.tensordot(f, j, f.ndim - 1), s.dydv[c])
            eps[c] = jax.tree.map(lambda e, g: jnp.tensordot(d, e, 1) + g, carry.eps[c], fresh)
            by_factors[c] = exact[c]
            if c not in many:
                continue
            xhat[c] = decay * carry.xhat[c] + s.x[c]
            signal = decay * jnp.tensordot(m, carry.fhat[c], 1) + (1 - decay) * n[c]
            signal = signal / (1 - decay ** (carry.t + 1))
            fhat[c] = decay * jnp.tensordot(d, carry.fhat[c], 1) + (1 - decay) * f
            if c in factored:
                v = twin.ops[w].phi(twin.values[w])
                taught = jax.vjp(lambda v, c=c, w=w: twin.ops[w].apply(xhat[c], v), v)[1](signal)[0]
                by_factors[c] = {**taught, **{k: g for k, g in exact[c].items() if k == "bias"}}
        grads = (_to_values(twin, twin.values, dv, s.plain, wrong != "no weight_fn") for dv in (exact, by_factors))
        return Traces(s.state, eps, xhat, fhat, carry.t + 1, (s.m, s.n)), (s.loss, *grads)

    carry, (losses, exact, by_factors) = jax.jit(lambda *args: jax.lax.scan(step, *args))(carry, (xs, ys))
    return Run(losses, exact, by_factors, carry)


def _zero_traces(twin, many, x, y):
    s = jax.eval_shape(lambda x, y: linearise(twin, twin.values, twin.state, x, y), x, y)
    zero = lambda *shape: np.zeros(shape, s.m.dtype)
    size = len(s.m)
    return Traces(
        twin.state,
        {c: jax.tree.map(lambda j, c=c: zero(size, *j.shape[s.n[c].ndim :]), s.dydv[c]) for c in twin.traced},
        {c: zero(*s.x[c].shape) for c in many},
        {c: zero(size, *s.n[c].shape) for c in many},
        np.zeros((), int),
        jax.tree.map(lambda a: zero(*a.shape), (s.m, s.n)),
    )


# --- (a) stop-gradient twin, (d) backpropagation through time --------------------------------------------------------


def stop_gradient_twin(twin, xs, ys):
    """Sum over time of D-RTRL's gradient, by BPTT: each op call sees only the memory of the state it is traced into.

    Right where no op feeds another op of its own group.
    """

    def total(v, plain, live):
        def step(state, now):
            x, y = now
            h = {k: s if k in live or k not in _floating(state) else jax.lax.stop_gradient(s) for k, s in state.items()}
            held = {k: jax.lax.stop_gradient(s) if k in _floating(state) else s for k, s in state.items()}
            new, out = twin.forward(_Ops(twin, v, {**twin.values, **plain}), h, held, x)
            return new, loss_fn(out, y)

        return jnp.sum(jax.lax.scan(step, twin.state, (xs, ys))[1])

    @jax.jit
    def by_values(values):
        v, plain = _weights(twin, values), _plain(twin, values)
        routes = {twin.traced.get(c, ()) for c in twin.calls}
        grads = {live: jax.grad(total)(v, plain, live) for live in routes}
        by_plain = jax.grad(total, 1)(v, plain, ()) if plain else {}
        return _to_values(twin, values, {c: grads[twin.traced.get(c, ())][c] for c in twin.calls}, by_plain)

    return by_values(twin.values)


def bptt(twin, xs, ys):
    """Gradient of the sum of losses, through everything."""

    @jax.jit
    @jax.grad
    def total(values):
        def step(state, now):
            state, out = twin.forward(_Ops(twin, _weights(twin, values), values), state, state, now[0])
            return state, loss_fn(out, now[1])

        return jnp.sum(jax.lax.scan(step, twin.state, (xs, ys))[1])

    return total(twin.values)


def near(twin, xs, ys, kept):
    """Gradients of each step by dense RTRL whose derivative of all state by all parameters is zeroed after each step.

    `kept` is structured like the values, each leaf `(H, *leaf)` for a floating state of H numbers.
    """

    def run(h, values, unpack, x, y):
        state = unpack(h)
        new, out = twin.forward(_Ops(twin, _weights(twin, values), values), state, state, x)
        return _pack(new)[0], (loss_fn(out, y), new)

    @jax.jit
    def step(carry, now):
        state, before = carry
        h, unpack = _pack(state)
        by_h, fresh = jax.jacobian(lambda h, values: run(h, values, unpack, *now)[0], (0, 1))(h, twin.values)
        m, at_once = jax.grad(lambda h, values: run(h, values, unpack, *now)[1][0], (0, 1))(h, twin.values)
        grads = jax.tree.map(lambda j, now: jnp.tensordot(m, j, 1) + now, before, at_once)
        after = jax.tree.map(lambda j, f, k: k * (jnp.tensordot(by_h, j, 1) + f), before, fresh, kept)
        return (run(h, twin.values, unpack, *now)[1][1], after), grads

    size = len(_pack(twin.state)[0])
    zero = jax.tree.map(lambda v: jnp.zeros((size, *v.shape)), twin.values)
    return jax.lax.scan(step, (twin.state, zero), (xs, ys))[1]


# --- comparison ------------------------------------------------------------------------------------------------------


def relative_error(got, expected):
    """Largest deviation of any leaf, relative to the largest entry of that leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    worst = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (a.shape, b.shape)
        scale = np.abs(b).max(initial=0.0)
        assert np.isfinite(a).all() and np.isfinite(b).all()
        worst = max(worst, float(np.abs(a - b).max(initial=0.0) / max(scale, 1e-30)))
    return worst


def relative_error_by_step(got, expected):
    """As `relative_error`, and at each step relative to that step (at least to a millionth of the largest)."""
    worst = relative_error(got, expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(g).reshape(len(g), -1) for g in (a, b))
        scale = np.maximum(np.abs(b).max(1), 1e-6 * np.abs(b).max())
        worst = max(worst, float((np.abs(a - b).max(1) / np.maximum(scale, 1e-30)).max()))
    return worst


def nonzero(grads):
    """Whether every leaf has a gradient somewhere, so that a comparison says something."""
    return all(np.abs(np.asarray(g)).max() > 1e-7 for g in jax.tree.leaves(grads))
