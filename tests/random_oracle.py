"""The gradients of a drawing in NumPy, by explicit Jacobians: nothing of the library, of JAX or of its derivatives.

A `Dual` is a value and its derivative along any number of directions. `linearise` runs the op-free map of a step with
one direction for each old state, op output and plain array; the rest is linear algebra on these matrices.
"""

from typing import Any, NamedTuple

import numpy as np
from random_models import LINEAR, MANY, UNARY, Drawing

# --- values with derivatives -----------------------------------------------------------------------------------------


class Dual(NamedTuple):
    """`tan` is `(directions, *value.shape)`, or None for zero."""

    val: np.ndarray
    tan: np.ndarray | None = None


def _fit(tan, ndim):
    """Axes of one between the directions and the value's, as broadcasting wants them."""
    return tan.reshape(len(tan), *[1] * (ndim - (tan.ndim - 1)), *tan.shape[1:])


def _plus(val, *parts):
    parts = [_fit(p, val.ndim) for p in parts if p is not None]
    return Dual(val, np.broadcast_to(sum(parts), (len(parts[0]), *val.shape)) if parts else None)


def _times(tan, factor):
    return None if tan is None else _fit(tan, max(tan.ndim - 1, np.ndim(factor))) * factor


class Arithmetic:
    """What nodes compute, with derivatives. `dice` in place of derivatives: where they are zero, for any numbers."""

    def __init__(self, dice=None):
        self.dice = dice

    def slope(self, value):
        return value if self.dice is None else self.dice.uniform(0.5, 1.5, np.shape(value))

    def unary(self, a, name):
        _, f, slope = UNARY[name]
        return Dual(f(a.val), _times(a.tan, self.slope(slope(a.val))))

    def add(self, a, b):
        return _plus(a.val + b.val, a.tan, b.tan)

    def scale(self, a, by):
        return Dual(by * a.val, None if a.tan is None else by * a.tan)

    def mul(self, a, b):
        return _plus(a.val * b.val, _times(a.tan, self.slope(b.val)), _times(b.tan, self.slope(a.val)))

    def choose(self, mask, a, b):
        share = self.slope(mask.astype(float))
        rest = 1 - share if self.dice is None else self.slope(share)
        return _plus(np.where(mask, a.val, b.val), _times(a.tan, share), _times(b.tan, rest))

    def product(self, x, w, how="...j,ji->...i"):
        """A bilinear map; `how` as in einsum, without the directions `z`."""
        ends, out = how.split("->")
        left, right = ends.split(",")
        val = np.einsum(how, x.val, w.val)
        slope = self.slope(w.val) * (w.val != 0)
        by_x = None if x.tan is None else np.einsum(f"z{left},{right}->z{out}", x.tan, slope)
        by_w = None if w.tan is None else np.einsum(f"{left},z{right}->z{out}", self.slope(x.val), w.tan)
        return _plus(val, by_x, by_w)

    def linear(self, kind, args, attr):
        fn = LINEAR[kind]
        tans = [a.tan for a in args]
        size = next((len(t) for t in tans if t is not None), None)
        if kind not in MANY:
            return Dual(fn(np, args[0].val, attr), None if size is None else fn(np, tans[0], attr))
        val = fn(np, [a.val for a in args], attr)
        if size is None:
            return Dual(val)
        ndim = max(a.val.ndim for a in args) if kind == "concat" else None
        full = [np.zeros((size, *a.val.shape)) if t is None else t for a, t in zip(args, tans, strict=True)]
        return Dual(val, fn(np, full if ndim is None else [_fit(t, ndim) for t in full], attr))

    def cut_norm(self, a):
        c = self.add(a, self.scale(self.linear("mean", [a], None), -1.0))
        return self.mul(c, self.unary(self.linear("mean", [self.mul(c, c)], None), "root"))

    def cut_mix(self, a, q):
        return self.product(a, q)

    def node(self, n, args):
        if n.kind in LINEAR:
            return self.linear(n.kind, args, n.attr)
        if n.kind == "unary":
            return self.unary(args[0], n.attr)
        if n.kind == "sub":
            return self.add(args[0], self.scale(args[1], -1.0))
        if n.kind == "plus":
            return Dual(args[0].val + n.attr, args[0].tan)
        if n.kind == "stop":
            return Dual(args[0].val)
        if n.kind == "max":
            return self.choose(args[0].val >= args[1].val, *args)
        if n.kind == "where":
            c = args[0].val
            return self.choose(np.broadcast_to(c > c.mean(-1, keepdims=True), args[1].val.shape), *args[1:])
        if n.kind == "cond":
            even = self.unary(args[1], "tanh"), self.scale(self.unary(args[1], "sin"), 0.5)
            return even[int(args[0].val) % 2]
        if n.kind == "substeps":
            (v, i), (count, fn, _), before = args, n.attr, []
            for _ in range(count):
                before.append(v)
                inner = self.unary(self.add(i, self.scale(v, -0.5)), fn)
                v = self.add(self.scale(v, 0.7), self.scale(inner, 0.3))
            for b in before:
                v = self.add(v, self.scale(b, 0.1))
            return v
        return {"add": self.add, "mul": self.mul, "matmul": self.product}[n.kind](*args)

    def phi(self, p, theta):
        """Weights on the synapses."""
        a = p.attr
        if p.kind == "elem":
            inner = self.unary(theta["a"], "sigmoid" if a["fn_of"] == "sigmoid" else "tanh")
            if a["fn_of"] == "sigmoid":
                return inner
            made = self.mul(inner, theta["b"])
            return Dual(made.val + 0.5, made.tan)
        if p.kind == "lora":
            return self.scale(self.product(theta["B"], theta["A"]), a["alpha"])
        if p.kind == "gain":
            return theta["gain"]
        if p.kind == "scaled":
            return self.mul(theta["weight"], theta["gain"])
        w, mask = theta["weight"], a.get("mask")
        if mask is not None and not a.get("first"):
            w = self.mul(w, Dual(mask.astype(float)))
        w = self.weight_fn(w, a.get("fn"), a)
        if mask is not None and a.get("first"):
            w = self.mul(w, Dual(mask.astype(float)))
        return w

    def weight_fn(self, w, name, attr):
        if name is None:
            return w
        if name == "bounded":
            made = self.scale(self.unary(w, "sigmoid"), 2.5)
            return Dual(made.val - 1.0, made.tan)
        if name == "sign":
            slope = attr["sign"] * np.where(w.val < 0, -1.0, 1.0)
            return Dual(slope * w.val, _times(w.tan, slope))
        return self.unary(w, name)

    def op(self, p, x, theta):
        """An op call; `x` is None for a parameter of the units."""
        v, a = self.phi(p, theta), p.attr
        if p.kind == "elem":
            return v
        if p.kind == "gain":
            return self.mul(x, v)
        if p.kind in ("sparse", "axis_2", "over_features"):
            slots = np.arange(len(a["pre"])) if a["tie"] is None else a["tie"]

            def full(w):
                m = np.zeros((*w.shape[:-1], *a["shape"]))
                np.add.at(m, (..., a["pre"], a["post"]), w[..., slots])
                return m

            w = Dual(full(v.val), None if v.tan is None else full(v.tan))
            y = self.product(x, w, "...j,ji->...i" if p.kind == "sparse" else "...jf,ji->...if")
        elif p.kind == "across":
            y = self.product(x, v, "...jf,ji->...if")
        elif p.kind == "conv":
            y = self._conv(x, v, a)
        else:
            y = self.product(x, v)
        if "bias" not in theta:
            return y
        bias = theta["bias"]
        if p.kind in ("axis_2", "over_features", "across"):
            bias = Dual(bias.val[:, None], None if bias.tan is None else bias.tan[..., None])
        return self.add(y, bias)

    def _conv(self, x, v, a):
        length, groups = a["length"], a["groups"]
        width = [(0, 0)] * (x.val.ndim - 2) + [a["pad"], (0, 0)]
        padded = Dual(np.pad(x.val, width), None if x.tan is None else np.pad(x.tan, [(0, 0), *width]))
        total = None
        for tap in range(2):
            part = _at(padded, (..., slice(tap, tap + length), slice(None)))
            kernel = _at(v, (..., tap, slice(None), slice(None)))
            c_in, c_out = kernel.val.shape[0], kernel.val.shape[1] // groups
            blocks = []
            for g in range(groups):
                inp = _at(part, (..., slice(g * c_in, (g + 1) * c_in)))
                blocks.append(self.product(inp, _at(kernel, (..., slice(g * c_out, (g + 1) * c_out)))))
            y = self.linear("concat", blocks, None)
            total = y if total is None else self.add(total, y)
        return total


def _at(a, where):
    return Dual(a.val[where], None if a.tan is None else a.tan[where])


# --- one step --------------------------------------------------------------------------------------------------------


class Layout:
    """Where state, op outputs and parameters lie in flat vectors; the boundaries of a step in their order."""

    def __init__(self, d: Drawing, x):
        self.d = d
        self.floating = [k for k, s in d.state.items() if s.dtype.kind == "f"]
        self.state = self._slots({k: d.state[k].shape for k in self.floating})
        shapes = {(name, k): leaf.shape for name, p in d.params.items() for k, leaf in p.value.items()}
        shapes = {key: shape for key, shape in shapes.items() if d.params[key[0]].is_trained}
        self.theta = self._slots(shapes)
        self.plain = [key for key in shapes if d.params[key[0]].kind == "plain"]
        self.calls = [n for n in d.nodes if n.kind in ("op", "cut_norm", "cut_mix")]
        env = evaluate(d, Arithmetic(), {"x": Dual(x)} | {f"h.{k}": Dual(s) for k, s in d.state.items()})
        self.y = self._slots({n.out: env[n.out].val.shape for n in self.calls})
        self.x = {n.out: self._slots({a: env[a].val.shape for a in n.args}) for n in self.calls}

    @staticmethod
    def _slots(shapes):
        ends = np.cumsum([0, *(int(np.prod(s)) for s in shapes.values())]).tolist()
        return {k: slice(a, b) for k, a, b in zip(shapes, ends, ends[1:])}

    def param(self, n):
        return self.d.params[n.attr] if n.kind == "op" else None


def size(slots):
    return max((s.stop for s in slots.values()), default=0)


def evaluate(d, arithmetic, env, given=None, theta=None):
    """Values of all nodes; outputs of boundaries as `given`, plain arrays as in `theta`, where they are."""
    env = dict(env)
    for n in d.nodes:
        if given is not None and n.out in given:
            env[n.out] = given[n.out]
        elif n.kind == "plain":
            env[n.out] = (theta or {}).get(n.attr, Dual(d.params[n.attr].value["value"]))
        else:
            env[n.out] = boundary(d, arithmetic, n, [env[a] for a in n.args])
    return env


def boundary(d, arithmetic, n, args, theta=None):
    if n.kind == "op":
        p = d.params[n.attr]
        theta = {k: Dual(leaf) for k, leaf in p.value.items()} if theta is None else theta
        return arithmetic.op(p, args[0] if args else None, theta)
    if n.kind in ("cut_norm", "cut_mix"):
        return getattr(arithmetic, n.kind)(*args)
    return arithmetic.node(n, args)


class Step(NamedTuple):
    """Derivatives of one step, each by flat (old state, op outputs, parameters): of `new`, `out`, inputs `x` of calls.

    `y_x`, `y_theta`: of each call's output by its inputs and by parameters.
    """

    new: tuple
    out: tuple
    x: dict[str, tuple]
    y_x: dict[str, np.ndarray]
    y_theta: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    out_values: list[np.ndarray]
    state: dict[str, np.ndarray]


def _seed(value, total, at):
    tan = np.zeros((total, value.size))
    tan[at] = np.eye(value.size)
    return Dual(value, tan.reshape(total, *value.shape))


def _matrix(values, total):
    """Derivatives of several values as one matrix, their elements by directions."""
    parts = [np.zeros((v.val.size, total)) if v.tan is None else v.tan.reshape(total, -1).T for v in values]
    return np.concatenate(parts) if parts else np.zeros((0, total))


def linearise(lay: Layout, state, x, dice=None) -> Step:
    d, a = lay.d, Arithmetic(dice)
    before = {"x": Dual(x)} | {f"h.{k}": Dual(s) for k, s in state.items()}
    env = evaluate(d, Arithmetic(), before)
    h, y = size(lay.state), size(lay.y)
    total = h + y + size(lay.theta)
    shift = lambda s, by: slice(s.start + by, s.stop + by)
    seeded = before | {f"h.{k}": _seed(state[k], total, lay.state[k]) for k in lay.floating}
    given = {n.out: _seed(env[n.out].val, total, shift(lay.y[n.out], h)) for n in lay.calls}
    theta = {n: _seed(d.params[n].value[k], total, shift(lay.theta[n, k], h + y)) for n, k in lay.plain}
    moved = evaluate(d, a, seeded, given, theta)

    def parts(values):
        m = _matrix(values, total)
        return m[:, :h], m[:, h : h + y], m[:, h + y :]

    y_x, y_theta, inputs = {}, {}, {}
    for n in lay.calls:
        args = [env[b] for b in n.args]
        own, count = lay.x[n.out], size(lay.x[n.out])
        y_x[n.out] = _matrix([boundary(d, a, n, [_seed(v.val, count, own[b]) for b, v in zip(n.args, args)])], count)
        inputs[n.out] = args[0].val if args else None
        y_theta[n.out] = by_theta(lay, a, n, args)
    new = {k: moved[d.new[k]] for k in lay.floating}
    return Step(
        parts(new.values()),
        parts([moved[o] for o in d.out]),
        {n.out: parts([moved[b] for b in n.args]) for n in lay.calls},
        y_x,
        y_theta,
        inputs,
        [env[o].val for o in d.out],
        {k: env[d.new[k]].val for k in d.state},
    )


def by_theta(lay, arithmetic, n, args):
    """Derivative of a call's output by all parameters."""
    count, p = size(lay.theta), lay.param(n)
    if p is None or not p.is_trained:
        return np.zeros((lay.y[n.out].stop - lay.y[n.out].start, count))
    theta = {k: _seed(leaf, count, lay.theta[n.attr, k]) for k, leaf in p.value.items()}
    return _matrix([boundary(lay.d, arithmetic, n, args, theta)], count)


# --- who acts on whom ------------------------------------------------------------------------------------------------


class Structure(NamedTuple):
    """Leaves by number of `lay.floating`, calls by name.

    hidden: hidden variables. stops: leaves whose old value a call reads as a constant. live: leaves with a learning
    signal. factored: calls that are traced with factors by ES-D-RTRL. carriers: calls that reach hidden state.
    """

    hidden: set[int]
    stops: dict[str, set[int]]
    live: set[int]
    factored: set[str]
    carriers: set[str]


def structure(lay: Layout, s: Step) -> Structure:
    """From a step whose derivatives are zero only where they always are."""
    leaves, calls = range(len(lay.floating)), [n.out for n in lay.calls]
    rows = [lay.state[k] for k in lay.floating]
    touches = lambda m, r, c: bool(np.any(m[r, c]))
    every = slice(None)
    # What acts on what without another op between: sources are leaves, calls and parameters.
    sources: dict[Any, tuple[int, slice]] = {("h", i): (0, rows[i]) for i in leaves}
    sources |= {("y", c): (1, lay.y[c]) for c in calls} | {("p", k): (2, at) for k, at in lay.theta.items()}
    direct: dict[Any, set] = {}
    for source, (part, at) in sources.items():
        found = {("n", i) for i in leaves if touches(s.new[part], rows[i], at)}
        found |= {("x", c) for c in calls if touches(s.x[c][part], every, at)}
        found |= {("x", c) for c in calls if source[0] == "p" and touches(s.y_theta[c], every, at)}
        direct[source] = found | ({("out",)} if touches(s.out[part], every, at) else set())

    def within(source, passes=lambda c: True):
        found, todo = set(), [source]
        while todo:
            for sink in direct[todo.pop()] - found:
                found.add(sink)
                if sink[0] == "x" and passes(sink[1]):
                    todo.append(("y", sink[1]))
        return found

    def close(start, edges):
        found, todo = set(start), list(start)
        while todo:
            for j in edges[todo.pop()] - found:
                found.add(j)
                todo.append(j)
        return found

    hidden = lambda sinks: {t[1] for t in sinks if t[0] == "n"}
    every_way = {i: within(("h", i)) for i in leaves}
    driven = close(
        set().union(*(hidden(within(k)) for k in direct if k[0] != "h")), {i: hidden(every_way[i]) for i in leaves}
    )
    back = {i: {j for j in leaves if i in hidden(every_way[j])} for i in leaves}
    candidates = driven & close({i for i in leaves if ("out",) in every_way[i]}, back)
    # Old value of one influences the new value of the other without an op: one group.
    near = {i: {i} for i in candidates}
    for i in candidates:
        for j in hidden(direct["h", i]) & candidates:
            near[i].add(j)
            near[j].add(i)
    group = {i: frozenset(close({i}, near)) for i in candidates}
    reached = {c: hidden(within(("y", c))) & candidates for c in calls}
    stops = {c: set().union(*(group[i] for i in reached[c])) for c in calls}
    seen = {i: within(("h", i), lambda c, i=i: i not in stops[c]) for i in candidates}
    live = close(
        {i for i in candidates if ("out",) in seen[i]},
        {i: {j for j in candidates if i in hidden(direct["h", j])} for i in candidates},
    )
    inputs = {n.out for n in lay.calls if n.kind == "op" and n.args and lay.param(n).is_etrace}
    factored = {c for c in inputs if hidden(direct["y", c]) & live}
    return Structure(candidates, stops, live, factored, {c for c in calls if reached[c]})


# --- rules -----------------------------------------------------------------------------------------------------------


class Signals(NamedTuple):
    """Derivatives of the loss by old state, op outputs, and, with old state constant, by parameters."""

    loss: float
    m: np.ndarray
    n: dict[str, np.ndarray]
    now: np.ndarray


def signals(lay, s, target, stops) -> Signals:
    outs = [(o, t) for o, t in zip(s.out_values, target, strict=True)]
    loss = sum(0.5 * np.sum((o - t) ** 2) + 0.1 * np.sum(np.sin(o)) for o, t in outs)
    g = np.concatenate([(o - t + 0.1 * np.cos(o)).ravel() for o, t in outs])
    by_y = g @ s.out[1]
    m, now = g @ s.out[0], g @ s.out[2]
    n = {}
    for call in reversed(lay.calls):
        c = call.out
        n[c] = by_y[lay.y[c]]
        now = now + n[c] @ s.y_theta[c]
        by_x = n[c] @ s.y_x[c]
        by_y = by_y + by_x @ s.x[c][1]
        now = now + by_x @ s.x[c][2]
        through = by_x @ s.x[c][0]
        for i in stops[c]:
            through[lay.state[lay.floating[i]]] = 0.0
        m = m + through
    return Signals(loss, m, n, now)


def leaves_of(lay, kinds):
    """Which entries of the flat parameters are of these kinds."""
    found = np.zeros(size(lay.theta), bool)
    for (name, k), at in lay.theta.items():
        found[at] = kinds(lay.d.params[name], k)
    return found


def d_rtrl(lay, found: Structure, steps, targets, decay=None, wrong=None):
    """Losses and gradients of each step; with a `decay` those of ES-D-RTRL.

    wrong: "no trace", "diagonal" or "late signal", for controls.
    """
    h, count = size(lay.state), size(lay.theta)
    traced = [n for n in lay.calls if n.kind == "op" and lay.param(n).is_etrace]
    per_unit = leaves_of(lay, lambda p, k: k == "bias" or p.kind == "elem")
    eps, t, last = np.zeros((h, count)), 0, None
    xhat = dict.fromkeys(found.factored, 0.0)
    fhat = {c: np.zeros((h, lay.y[c].stop - lay.y[c].start)) for c in found.factored}
    losses, grads = [], []
    for s, target in zip(steps, targets, strict=True):
        d = s.new[0]
        if wrong == "diagonal":
            d = d * np.eye(h)
        signal = signals(lay, s, target, found.stops)
        m = signal.m if wrong != "late signal" else (np.zeros(h) if last is None else last)
        grad = signal.now + (0.0 if wrong == "no trace" else m @ eps)
        if decay is not None:
            # What has factors loses its trace, and its part of this step, to the filtered product.
            for n in (n for n in traced if n.out in found.factored):
                c, own = n.out, ~per_unit
                xhat[c] = decay * xhat[c] + s.inputs[c]
                taught = decay * signal.m @ fhat[c] + (1 - decay) * signal.n[c]
                taught = taught / (1 - decay ** (t + 1))
                filtered = by_theta(lay, Arithmetic(), n, [Dual(xhat[c])])
                grad = grad + own * (taught @ filtered - signal.n[c] @ s.y_theta[c])
                fhat[c] = decay * d @ fhat[c] + (1 - decay) * s.new[1][:, lay.y[c]]
        losses.append(signal.loss)
        grads.append(grad)
        fresh = np.zeros((h, count))
        for n in traced:
            by_call = s.y_theta[n.out]
            if decay is not None and n.out in found.factored:
                by_call = by_call * per_unit
            fresh += s.new[1][:, lay.y[n.out]] @ by_call
        eps, t, last = d @ eps + fresh, t + 1, signal.m
    return np.array(losses), np.array(grads)


def rtrl(lay, found: Structure, steps, targets, whole=True, every=True):
    """Losses and gradients of each step by the derivative of all state by all parameters.

    whole: through cuts and plain arrays as well; else only through ops, as influences do. every: parameters without
    trace too.
    """
    h, count = size(lay.state), size(lay.theta)
    influence = np.zeros((h, count))
    losses, grads = [], []
    stops = {n.out: set() if whole or n.kind == "op" else found.stops[n.out] for n in lay.calls}
    for s, target in zip(steps, targets, strict=True):
        signal = signals(lay, s, target, stops)
        losses.append(signal.loss)
        grads.append(signal.now + signal.m @ influence)
        by_y = np.zeros((size(lay.y), count))
        for n in lay.calls:
            if not whole and n.kind != "op":
                continue
            moved = s.x[n.out][0] @ influence + s.x[n.out][1] @ by_y
            if whole:
                moved = moved + s.x[n.out][2]
            by_y[lay.y[n.out]] = s.y_x[n.out] @ moved
            if every or lay.param(n).is_etrace:
                by_y[lay.y[n.out]] += s.y_theta[n.out]
        influence = s.new[0] @ influence + s.new[1] @ by_y + (s.new[2] if whole else 0.0)
    return np.array(losses), np.array(grads)


def snap(lay, found: Structure, generic: Step, steps, targets, n):
    """Losses and gradients of each step by dense RTRL of each use of a parameter, masked to n steps' pattern."""
    h, y = size(lay.state), size(lay.y)
    ops = [c for c in lay.calls if c.kind == "op" and c.out in found.carriers]
    rows_of = {c.out: np.arange(lay.y[c.out].start, lay.y[c.out].stop) for c in ops}
    hidden = np.zeros(h, bool)
    for i in found.hidden:
        hidden[lay.state[lay.floating[i]]] = True
    # Who acts on whom, unit by unit; what is no unit of a neuron passes nothing.
    hh = (generic.new[0] != 0) & hidden & hidden[:, None]
    yh = (generic.new[1] != 0) & hidden[:, None]
    hy, yy, held = np.zeros((y, h), bool), np.zeros((y, y), bool), np.zeros((y, h), bool)
    carrying = np.zeros(y, bool)
    for c in ops:
        rows = rows_of[c.out]
        carrying[rows] = True
        hy[rows] = (generic.y_x[c.out] @ generic.x[c.out][0] != 0) & hidden
        yy[rows] = generic.y_x[c.out] @ generic.x[c.out][1] != 0
        for i in found.stops[c.out]:
            held[rows, lay.state[lay.floating[i]]] = True
    yy &= carrying
    yh &= carrying
    neuron = _components(hh)
    within = _power(yy, None)
    direct = _product(yh, within) | yh
    seeds = _product(neuron, yh).T
    later = _product(neuron, _product(yh, within)).T
    graph = _product(neuron, hh | _product(direct, hy)).T
    graph = _product(neuron, graph.T).T | np.eye(h, dtype=bool)
    reach = seeds.copy()
    for step in range(h if n is None else n - 1):
        reach = _product(reach, graph) | reach | (later if step == 0 else False)
    at_end = ~direct.any(0)
    # Columns: each use of a parameter, at a row.
    uses = [np.argwhere(generic.y_theta[c.out] != 0) + (lay.y[c.out].start, 0) for c in ops if lay.param(c).is_etrace]
    row, theta = np.concatenate([*uses, np.zeros((0, 2), int)]).T
    kept = reach[row].T
    needed = _product(direct.T, kept)
    ends = at_end[:, None] & _product(hy & held, kept)
    kept_y = needed | ends
    collect = np.zeros((len(theta), size(lay.theta)))
    collect[np.arange(len(theta)), theta] = 1.0
    influence = np.zeros((h, len(theta)))
    losses, grads = [], []
    for s, target in zip(steps, targets, strict=True):
        signal = signals(lay, s, target, found.stops)
        past, by_y = signal.m @ influence, np.zeros((y, len(theta)))
        for c in ops:
            rows = rows_of[c.out]
            old = (s.y_x[c.out] @ s.x[c.out][0] * ~held[rows]) @ influence
            cut = (s.y_x[c.out] @ s.x[c.out][0] * held[rows]) @ influence
            past = past + signal.n[c.out] @ (cut * kept_y[rows])
            by_y[rows] = (old + cut + s.y_x[c.out] @ s.x[c.out][1] @ by_y) * kept_y[rows]
            here = np.isin(row, rows)
            by_y[row[here], here.nonzero()[0]] += s.y_theta[c.out][row[here] - rows[0], theta[here]]
        losses.append(signal.loss)
        grads.append(signal.now + past @ collect)
        influence = (s.new[0] @ influence + s.new[1] @ by_y) * kept
    return np.array(losses), np.array(grads)


def _product(a, b):
    return (a.astype(float) @ b.astype(float)) > 0


def _power(a, steps):
    """Anything that a leads to, in one step or more."""
    found = a
    for _ in range(len(a) if steps is None else steps):
        more = found | _product(found, a)
        if np.array_equal(more, found):
            break
        found = more
    return found


def _components(a):
    return _power(a | a.T | np.eye(len(a), dtype=bool), None)
