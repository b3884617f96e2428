"""Random models: a list of nodes, drawn from a seed, and what the library makes of it.

`draw(seed)` gives a `Drawing`; `Net` runs it on the ops of the library, `random_oracle` in NumPy. Values are
`(*batch, *space, width)`; every node acts on the axes after the batch, so that vmap may take the batch away.
"""

import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np

import sparse_etrace as se

STEPS, CALL = 6, 2


class Node(NamedTuple):
    """`out = kind(*args)`; `how` is a transformation that changes nothing (jit, checkpoint, vmap)."""

    kind: str
    args: tuple[str, ...]
    out: str
    attr: Any = None
    how: str = ""


class Param(NamedTuple):
    """Arrays and what makes an op of them; `kind` "plain" is an array of the model itself."""

    kind: str
    value: dict[str, np.ndarray]
    attr: dict[str, Any]
    is_etrace: bool = True
    is_trained: bool = True


@dataclass(eq=False)
class Drawing:
    """A model in words.

    segments: nodes, and the transformation that they run in. new, out: names of values. batched: which have batch axes.
    """

    batch: tuple[int, ...] = ()
    space: tuple[int, ...] = ()
    params: dict[str, Param] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    segments: list[tuple[str, list[Node]]] = field(default_factory=list)
    new: dict[str, str] = field(default_factory=dict)
    out: list[str] = field(default_factory=list)
    batched: dict[str, bool] = field(default_factory=dict)
    traits: set[str] = field(default_factory=set)

    @property
    def nodes(self) -> list[Node]:
        return [node for _, nodes in self.segments for node in nodes]


# --- what nodes compute ----------------------------------------------------------------------------------------------


@jax.custom_jvp
def other_slope(u):
    return jnp.tanh(u)


other_slope.defjvp(lambda p, t: (jnp.tanh(p[0]), t[0] / (1 + p[0] ** 2)))


@jax.custom_vjp
def halved_gradient(u):
    return jnp.sin(u)


halved_gradient.defvjp(lambda u: (jnp.sin(u), u), lambda u, ct: (0.5 * jnp.cos(u) * ct,))


def _sigmoid(u):
    return 1 / (1 + np.exp(-u))


def _step(u):
    return (u >= 0).astype(float)


# Functions of one value: for the library, in NumPy, and their derivative.
UNARY = {
    "tanh": (jnp.tanh, np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "sin": (jnp.sin, np.sin, np.cos),
    "sigmoid": (jax.nn.sigmoid, _sigmoid, lambda u: _sigmoid(u) * (1 - _sigmoid(u))),
    "leaky": (jax.nn.leaky_relu, lambda u: np.where(u >= 0, u, 0.01 * u), lambda u: np.where(u >= 0, 1.0, 0.01)),
    "bump": (lambda u: jnp.exp(-(u**2)), lambda u: np.exp(-(u**2)), lambda u: -2 * u * np.exp(-(u**2))),
    "spike": (models.spike, _step, lambda u: np.maximum(0, 1 - np.abs(u))),
    "spike_vjp": (models.spike_vjp, _step, lambda u: 1 / (1 + 2 * np.abs(u)) ** 2),
    "straight": (lambda u: u + jax.lax.stop_gradient(jnp.tanh(u) - u), np.tanh, np.ones_like),
    "other_slope": (other_slope, np.tanh, lambda u: 1 / (1 + u**2)),
    "halved": (halved_gradient, np.sin, lambda u: 0.5 * np.cos(u)),
    "finite": (lambda u: jnp.where(jnp.isfinite(u), u, 0), lambda u: u, np.ones_like),
    "square": (jnp.square, np.square, lambda u: 2 * u),
    "cos": (jnp.cos, np.cos, lambda u: -np.sin(u)),
    "exp": (jnp.exp, np.exp, np.exp),
    "root": (lambda u: (u + 1e-3) ** -0.5, lambda u: (u + 1e-3) ** -0.5, lambda u: -0.5 * (u + 1e-3) ** -1.5),
}
CUSTOM = ("spike", "spike_vjp", "straight", "other_slope", "halved")

# Linear functions on the last axes, for NumPy, its derivatives and the library alike.
LINEAR = {
    "slice": lambda m, a, attr: a[..., attr[0] : attr[1] : attr[2]],
    "take": lambda m, a, attr: m.take(a, m.asarray(attr), axis=-1),
    "flip": lambda m, a, attr: m.flip(a, -1),
    "scale": lambda m, a, attr: attr * a,
    "there_and_back": lambda m, a, attr: a.reshape(*a.shape[:-1], 1, a.shape[-1])[..., 0, :],
    "flatten": lambda m, a, attr: a.reshape(*a.shape[: a.ndim - attr], -1),
    "first": lambda m, a, attr: a[(..., 0, *[slice(None)] * attr)],
    "mean": lambda m, a, attr: m.mean(a, -1, keepdims=True),
    "shift": lambda m, a, attr: m.concatenate(
        [a[0][(..., slice(1, None), *[slice(None)] * attr)], m.expand_dims(a[1], -1 - attr)], -1 - attr
    ),
    "concat": lambda m, a, attr: m.concatenate(a, -1),
}
MANY = ("concat", "shift")


def _substeps(v, i, attr):
    count, fn, how = attr
    after = lambda v: 0.7 * v + 0.3 * UNARY[fn][0](i - 0.5 * v)
    if how == "scan":
        v, before = jax.lax.scan(lambda v, _: (after(v), v), v, length=count)
        return v + 0.1 * before.sum(0)
    v, before = jax.lax.fori_loop(0, count, lambda _, c: (after(c[0]), c[1] + c[0]), (v, jnp.zeros_like(v)))
    return v + 0.1 * before


def _set(parts):
    shape = jnp.broadcast_shapes(*(p.shape[:-1] for p in parts))
    made, begin = jnp.zeros((*shape, sum(p.shape[-1] for p in parts))), 0
    for p in parts:
        made = made.at[..., begin : begin + p.shape[-1]].set(p)
        begin += p.shape[-1]
    return made


def _normed(a):
    c = a - a.mean(-1, keepdims=True)
    return c * ((c * c).mean(-1, keepdims=True) + 1e-3) ** -0.5


JAX = {
    "unary": lambda args, attr: UNARY[attr][0](args[0]),
    "add": lambda args, attr: args[0] + args[1],
    "sub": lambda args, attr: args[0] - args[1],
    "mul": lambda args, attr: args[0] * args[1],
    "max": lambda args, attr: jnp.maximum(*args),
    "where": lambda args, attr: jnp.where(args[0] > args[0].mean(-1, keepdims=True), args[1], args[2]),
    "plus": lambda args, attr: args[0] + attr,
    "stop": lambda args, attr: jax.lax.stop_gradient(args[0]),
    "substeps": lambda args, attr: _substeps(*args, attr),
    "cond": lambda args, attr: jax.lax.cond(
        args[0] % 2 == 0, lambda a: jnp.tanh(a), lambda a: 0.5 * jnp.sin(a), args[1]
    ),
    "cut_norm": lambda args, attr: se.cut(_normed)(args[0]),
    "cut_mix": lambda args, attr: se.cut(lambda a: a @ args[1])(args[0]),
    "matmul": lambda args, attr: args[0] @ args[1],
}


class Net(eqx.Module):
    """A drawing on the ops of the library."""

    params: dict[str, Any]
    drawing: Drawing = eqx.field(static=True)

    def __call__(self, state, x):
        d = self.drawing
        env = {"x": x} | {f"h.{k}": v for k, v in state.items()}
        for number, (how, nodes) in enumerate(d.segments):
            made = {n.out for n in nodes}
            later = {a for _, rest in d.segments[number + 1 :] for n in rest for a in n.args}
            wanted = sorted(made & (later | set(d.new.values()) | set(d.out)))
            given = {a: env[a] for n in nodes for a in n.args if a not in made}
            run = functools.partial(self._run, nodes, wanted)
            if how == "vmap":
                axes = {a: 0 if d.batched[a] else None for a in given}
                run = jax.vmap(run, (axes,), {a: 0 if d.batched[a] else None for a in wanted})
            else:
                run = _how(run, how)
            env |= run(given)
        return {k: env[v] for k, v in d.new.items()}, tuple(env[v] for v in d.out)

    def _run(self, nodes, wanted, env):
        env, d = dict(env), self.drawing
        for n in nodes:
            args = [env[a] for a in n.args]
            if n.kind == "op":
                env[n.out] = _call(d.params[n.attr].kind, self.params[n.attr], args)
            elif n.kind == "plain":
                env[n.out] = self.params[n.attr]["value"]
            elif n.kind == "slice" and n.how == "dynamic":
                env[n.out] = jax.lax.dynamic_slice_in_dim(args[0], n.attr[0], n.attr[1] - n.attr[0], axis=-1)
            elif n.kind == "slice" and n.how == "split":
                env[n.out] = jnp.split(args[0], n.attr[:2], axis=-1)[1]
            elif n.kind == "concat" and n.how == "set":
                env[n.out] = _set(args)
            elif n.kind in LINEAR:
                env[n.out] = LINEAR[n.kind](jnp, args if n.kind in MANY else args[0], n.attr)
            else:
                fn = functools.partial(JAX[n.kind], attr=n.attr)
                env[n.out] = _how(fn, n.how)(args)
        return {a: env[a] for a in wanted}


def _how(fn, how):
    if how == "vmap":
        return lambda args: jax.vmap(lambda *a: fn(a), -1, -1)(*args)
    return {"jit": jax.jit, "checkpoint": jax.checkpoint, "": lambda fn: fn}[how](fn)


def _call(kind, param, args):
    if kind == "scaled":
        return se.ETraceParam({"weight": param["weight"] * param["gain"]}, se.MatMulOp())(*args)
    if kind == "over_features":
        return jax.vmap(param, -1, -1)(*args)
    if kind == "across":
        return jnp.swapaxes(param(jnp.swapaxes(args[0], -1, -2)), -1, -2)
    return param(*args)


# --- ops -------------------------------------------------------------------------------------------------------------


def weight_fn(name, attr):
    if name == "bounded":
        return se.Bounded(-1.0, 1.5)
    return se.SignLock(attr["sign"]) if name == "sign" else name and UNARY[name][0]


def elementwise(name):
    """Functions of pytrees, for `ElemWiseParam`."""
    return {
        "sigmoid": lambda w: jax.nn.sigmoid(w["a"]),
        "both": lambda w: jnp.tanh(w["a"]) * w["b"] + 0.5,
    }[name]


def make_param(p: Param):
    value = {k: jnp.asarray(v) for k, v in p.value.items()}
    a = p.attr
    if p.kind in ("plain", "scaled"):
        return value
    fn = weight_fn(a.get("fn"), a)
    if p.kind == "elem":
        op = se.ElemWiseOp(elementwise(a["fn_of"]))
    elif p.kind in ("dense", "across"):
        op = se.MatMulOp(a["mask"], fn, a["first"])
    elif p.kind == "lora":
        op = se.LoraOp(a["alpha"])
    elif p.kind == "gain":
        op = models.Scale()
    elif p.kind == "conv":
        xinfo = jax.ShapeDtypeStruct((a["length"], p.value["weight"].shape[1] * a["groups"]), jnp.zeros(()).dtype)
        op = se.ConvOp(xinfo, (1,), (a["pad"],), feature_group_count=a["groups"], weight_mask=a["mask"], weight_fn=fn)
    else:
        conn = se.Connectivity.from_edges(a["pre"], a["post"], shape=a["shape"])
        op = se.SpMatMulOp(conn, weight_fn=fn, tie=a["tie"], axis=-2 if p.kind == "axis_2" else -1)
    return se.ETraceParam(value, op, is_etrace=p.is_etrace)


def net(d: Drawing) -> Net:
    return Net({name: make_param(p) for name, p in d.params.items()}, d)


def with_values(model: Net, d: Drawing, values):
    """The model with other numbers in its parameters."""
    of = lambda m: [getattr(m.params[n], "value", m.params[n]) for n in d.params]
    return eqx.tree_at(of, model, [values[n] for n in d.params])


def trained(d: Drawing, model: Net):
    """What is trained, as a filter."""
    spec = jax.tree.map(lambda _: False, se.trainable(model))
    parts = [n for n, p in d.params.items() if p.is_trained]
    of = lambda m: [getattr(m.params[n], "value", m.params[n]) for n in parts]
    return eqx.tree_at(of, spec, jax.tree.map(lambda _: True, of(spec)))


def start(d: Drawing):
    return {k: jnp.asarray(v) for k, v in d.state.items()}


def loss(out, target):
    return sum(0.5 * jnp.sum((o - t) ** 2) + 0.1 * jnp.sum(jnp.sin(o)) for o, t in zip(out, target, strict=True))


# --- drawing ---------------------------------------------------------------------------------------------------------


class Value(NamedTuple):
    name: str
    width: int


class Drawer:
    """Adds nodes to a drawing, with the dice of one seed."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.d = Drawing()
        self.nodes: list[Node] = []
        self.count = 0
        layout = self.pick(["flat", "flat", "flat", "nodes", "conv"])
        self.layout = layout
        self.d.space = {"flat": (), "nodes": (3,), "conv": (3,)}[layout]
        self.d.batch = self.pick([(), (2,), (2,), (2,), (1,), (2, 1)])
        self.d.batched["x"] = bool(self.d.batch)
        self.x = Value("x", 2)
        self.leaves: dict[str, int] = {}
        self.made: dict[str, Value] = {}
        self.lines: list[Value] = []
        self.ends: list[Value] = []

    # dice

    def pick(self, options):
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p):
        return self.rng.random() < p

    def array(self, *shape, scale=1.0):
        return scale * self.rng.normal(size=shape)

    # nodes

    def add(self, kind, *args, width=None, attr=None, how="", batched=None):
        self.count += 1
        out = f"v{self.count}"
        self.nodes.append(Node(kind, tuple(a.name for a in args), out, attr, how))
        self.d.batched[out] = any(self.d.batched[a.name] for a in args) if batched is None else batched
        if kind not in ("op", "plain"):
            self.d.traits.add(kind if kind != "unary" else attr)
        return Value(out, max(a.width for a in args) if width is None else width)

    def how(self):
        return self.pick(["", "", "", "", "", "", "", "jit", "checkpoint", "vmap"])

    def unary(self, a, *names):
        name = self.pick(names or ["tanh", "tanh", "sin", "sigmoid", "leaky", "bump", *CUSTOM])
        return self.add("unary", a, attr=name, how="" if a.name == "h.clock" else self.how())

    def scaled(self, a, by):
        return self.add("scale", a, attr=float(by))

    def plus(self, a, by):
        return self.add("plus", a, attr=float(by))

    def sum(self, parts):
        return functools.reduce(lambda a, b: self.add("add", a, b), parts)

    def mul(self, a, b):
        return self.add("mul", a, b, how=self.pick(["", "", "", "", "jit"]))

    def slice(self, a, first, last):
        """Some of the units, in one of many ways to write it."""
        width = last - first
        how = self.pick(["slice", "slice", "take", "flip"])
        if how == "take":
            order = first + (self.rng.permutation(width) if self.chance(0.5) else np.arange(width))
            return self.add("take", a, width=width, attr=order.tolist())
        part = self.add("slice", a, width=width, attr=(first, last, 1), how=self.pick(["", "", "dynamic", "split"]))
        return self.add("flip", part) if how == "flip" else part

    def old(self, leaf):
        return Value(f"h.{leaf}", self.leaves[leaf])

    def leaf(self, name, width, shape=None, batched=True):
        self.leaves[name] = width
        shape = (*self.d.batch, *self.d.space, width) if shape is None else shape
        self.d.state[name] = self.array(*shape, scale=0.5)
        self.d.batched[f"h.{name}"] = bool(self.d.batch) and batched

    # parameters

    def param(self, kind, value, **attr):
        name = f"p{len(self.d.params)}"
        is_etrace = not (kind not in ("plain", "elem", "scaled") and self.chance(0.06))
        if not is_etrace:
            self.d.traits.add("nontemp")
        is_trained = not self.chance(0.05)
        self.d.params[name] = Param(kind, value, attr, is_etrace, is_trained)
        self.d.traits.update([kind] if is_trained else [kind, "frozen"])
        return name

    def weights(self, *shape, fan):
        return {"weight": self.array(*shape, scale=1.3 / math.sqrt(fan))}

    def fn(self):
        return self.pick([None, None, None, "tanh", "square", "cos", "bounded", "sign"])

    def edges(self, pre, post):
        m = self.rng.random((pre, post)) < 0.5
        m[self.rng.integers(pre, size=post), np.arange(post)] = True
        i, j = np.nonzero(m.T)
        if self.chance(0.15):
            i, j = np.sort(np.append(i, i[:1])), np.insert(j, 0, j[0])
        return j, i

    def op_param(self, pre, post):
        """A new parameter from `pre` to `post` units."""
        kinds = ["dense", "dense", "dense", "lora", "lora", "scaled"]
        kinds += {
            "flat": ["sparse"] * 6,
            "nodes": ["axis_2"] * 5 + ["over_features", "over_features", "across"] if pre == post else [],
            "conv": ["conv"] * 6,
        }[self.layout]
        kinds += ["gain"] if pre == post and self.chance(0.3) else []
        kind, fn = self.pick(kinds), self.fn()
        bias = {"bias": self.array(post, scale=0.3)} if self.chance(0.5) else {}
        sign = lambda w: np.where(self.rng.random(w["weight"].shape) < 0.5, -1.0, 1.0) if fn == "sign" else None
        if kind == "lora":
            value = {"B": self.array(pre, 2, scale=0.7), "A": self.array(2, post, scale=0.7)}
            return self.param("lora", value | bias, alpha=0.7)
        if kind == "gain":
            return self.param("gain", {"gain": self.array(post)})
        if kind == "scaled":
            value = self.weights(pre, post, fan=pre) | {"gain": self.array(post, scale=0.3) + 1}
            return self.param("scaled", value)
        if kind == "across":
            pre = post = self.d.space[0]
            bias = {"bias": self.array(post, scale=0.3)} if bias else {}
        if kind in ("dense", "across"):
            value = self.weights(pre, post, fan=pre)
            mask = self.rng.random((pre, post)) < 0.7 if self.chance(0.2) else None
            return self.param(kind, value | bias, mask=mask, fn=fn, first=self.chance(0.3), sign=sign(value))
        if kind == "conv":
            groups = 2 if pre % 2 == 0 and post % 2 == 0 and self.chance(0.3) else 1
            value = self.weights(2, pre // groups, post, fan=2 * pre // groups)
            mask = self.rng.random(value["weight"].shape) < 0.7 if self.chance(0.2) else None
            pad = self.pick([(0, 1), (1, 0)])
            length = self.d.space[0]
            return self.param(
                "conv", value | bias, mask=mask, fn=fn, sign=sign(value), groups=groups, pad=pad, length=length
            )
        shape = (pre, post) if kind == "sparse" else (self.d.space[0],) * 2
        j, i = self.edges(*shape)
        tie = self.rng.integers(2, size=len(j)) if self.chance(0.25) else None
        if tie is not None:
            tie[:2] = [0, 1]
            self.d.traits.add("tie")
        value = self.weights(len(j) if tie is None else 2, fan=2)
        bias = {"bias": self.array(shape[1], scale=0.3)} if bias else {}
        return self.param(kind, value | bias, pre=j, post=i, shape=shape, tie=tie, fn=fn, sign=sign(value))

    def call(self, inp, post):
        sizes = lambda p: p.attr.get("ends")
        same = [n for n, p in self.d.params.items() if sizes(p) == (inp.width, post)]
        if same and self.chance(0.25):
            name = self.pick(same)
            self.d.traits.add("shared")
        else:
            name = self.op_param(inp.width, post)
            self.d.params[name].attr["ends"] = (inp.width, post)
        return self.add("op", inp, width=post, attr=name)

    def elem(self, width):
        """A parameter of the units themselves, positive and below one or about a half."""
        if self.chance(0.5):
            shape = (width,) if self.chance(0.7) else ()
            name = self.param("elem", {"a": self.array(*shape)}, fn_of="sigmoid")
        else:
            value = {"a": self.array(width, scale=0.5), "b": self.array(*self.pick([(), (width,)]), scale=0.5)}
            name = self.param("elem", value, fn_of="both")
        return self.add("op", width=width, attr=name, batched=False)

    def plain(self, *shape):
        return self.add(
            "plain", width=shape[-1], attr=self.param("plain", {"value": self.array(*shape)}), batched=False
        )

    # parts of a model

    def source(self):
        """Something that an op may read."""
        old = [self.old(name) for name in self.leaves if name.startswith("g")]
        new = [v for name, v in self.made.items() if name.startswith("g")]
        a = self.pick([self.x, self.x, *old, *old, *new, *self.lines, *self.lines])
        what = self.rng.random()
        if what < 0.2:
            a = self.unary(a)
        elif what < 0.3 and len(old):
            b = self.pick(old)
            if a.width == b.width:
                a = self.mul(a, self.unary(b, "tanh", "sigmoid"))
        elif what < 0.36:
            a = self.slice(a, 0, a.width - 1)
        elif what < 0.42 and a is not self.x:
            a = self.cut(a)
        return a

    def cut(self, a):
        if self.chance(0.5):
            return self.add("cut_norm", a)
        return self.add("cut_mix", a, self.plain(a.width, a.width), width=a.width)

    def input(self):
        a = self.source()
        if self.chance(0.3):
            b = self.source()
            a = self.add("concat", a, b, width=a.width + b.width, how=self.pick(["", "", "set"]))
        return a

    def currents(self, number, width, own):
        """So many values of this width that ops drive; `own` is old state that one of them reads."""
        total = number * width
        extra = self.pick([0, 0, 0, 1, width])
        reads = [self.input() for _ in range(self.pick([1, 1, 1, 2]))]
        if self.chance(0.7):
            reads.append(own)
        ys = (
            [self.call(r, total + extra) for r in reads]
            if self.layout != "nodes" or total + extra != own.width
            else [self.call(r, total) for r in reads]
        )
        y = self.sum(ys)
        parts = [self.slice(y, k * width, (k + 1) * width) for k in range(number)]
        if number == 1 and y.width == width and self.chance(0.5):
            parts = [y]
        if y.width > total:
            self.d.traits.add("out_alone")
            self.ends.append(self.slice(y, total, y.width))
        if self.chance(0.15) and number > 1:
            gate = self.unary(parts[0], "sigmoid")
            inner = self.mul(gate, own) if own.width == width else self.unary(self.input())
            parts[1] = self.add("add", parts[1], self.call(inner, width))
            self.d.traits.add("op_into_op")
        return parts

    def rewritten(self, a):
        """The same value, written otherwise."""
        what = self.pick(["", "", "", "scale", "there_and_back", "take", "finite"])
        if what == "scale":
            return self.scaled(a, 1.0)
        if what == "take":
            return self.add("take", a, attr=list(range(a.width)))
        if what == "finite":
            return self.add("unary", a, attr="finite")
        return self.add(what, a) if what else a

    def leak(self, width):
        """A factor below one: a number or a parameter."""
        return self.elem(width) if self.chance(0.3) else None

    def leaky(self, old, now, factor=None):
        if factor is None:
            return self.add("add", self.scaled(old, self.pick([0.5, 0.7, 0.9])), self.scaled(now, 0.4))
        rest = self.plus(self.scaled(factor, -1.0), 1.0)
        return self.add("add", self.mul(factor, old), self.mul(rest, now))

    def group(self, number):
        width, count = self.pick([2, 3]), self.pick([1, 1, 1, 2, 2, 3])
        names = [f"g{number}{'abc'[k]}" for k in range(count)]
        for name in names:
            self.leaf(name, width)
        old = [self.old(name) for name in names]
        kind = self.pick(
            {
                1: ["leaky", "gated", "substeps", "cond"],
                2: ["lif", "lstm", "turn", "filter", "free"],
                3: ["alif", "free", "free"],
            }[count]
        )
        self.d.traits.add(kind)
        if kind in ("leaky", "substeps", "cond"):
            (c,) = self.currents(1, width, old[0])
            c = self.linked(c, names)
            if kind == "substeps":
                attr = (self.pick([2, 3]), self.pick(["tanh", "sin", "spike_vjp"]), self.pick(["scan", "fori"]))
                new = [self.add("substeps", old[0], c, attr=attr)]
            elif kind == "cond":
                new = [self.leaky(old[0], self.add("cond", self.counter(), c, width=width))]
            else:
                new = [self.leaky(old[0], self.unary(c), self.leak(width))]
        elif kind == "gated":
            f, i, c = self.currents(3, width, old[0])
            gate, rest = self.unary(f, "sigmoid"), self.unary(i, "sigmoid")
            new = [self.add("add", self.mul(gate, old[0]), self.mul(rest, self.unary(c)))]
        elif kind == "lif":
            (c,) = self.currents(1, width, self.pick(old))
            u = self.leaky(old[0], self.linked(self.scaled(c, 3.0), names), self.leak(width))
            z = self.unary(self.plus(u, -0.5), "spike", "spike_vjp")
            reset = self.add("stop", z) if self.chance(0.3) else z
            new = [self.add("sub", u, reset), z]
        elif kind == "lstm":
            i, f, c, o = self.currents(4, width, old[1])
            gates = [self.unary(g, "sigmoid") for g in (i, f, o)]
            cell = self.add("add", self.mul(gates[1], old[0]), self.mul(gates[0], self.unary(c, "tanh")))
            new = [cell, self.mul(gates[2], self.unary(cell, "tanh"))]
        elif kind == "turn":
            (c,) = self.currents(1, width, old[0])
            a, b = old
            new = [
                self.sum([self.scaled(a, 0.7), self.scaled(b, -0.4), self.unary(c)]),
                self.sum([self.scaled(b, 0.7), self.scaled(self.unary(a), 0.4)]),
            ]
        elif kind == "filter":
            (c,) = self.currents(1, width, old[0])
            v = self.leaky(old[0], self.unary(c), self.leak(width))
            new = [v, self.leaky(old[1], v if self.chance(0.5) else old[0])]
        elif kind == "alif":
            (c,) = self.currents(1, width, old[2])
            u = self.leaky(old[0], self.scaled(c, 3.0), self.leak(width))
            z = self.unary(self.add("sub", self.plus(u, -0.5), self.scaled(old[1], 0.6)), "spike", "spike_vjp")
            new = [self.add("sub", u, z), self.leaky(old[1], z, self.leak(width)), z]
        else:
            new = self.free(old, width, names)
        self.made.update({n: self.rewritten(v) for n, v in zip(names, new, strict=True)})

    def free(self, old, width, names):
        """Each variable from currents, old ones and those made before it."""
        number = self.pick([1, len(old)])
        currents = self.currents(number, width, self.pick(old))
        new: list[Value] = []
        for k, own in enumerate(old):
            parts = [self.scaled(own, self.pick([0.3, 0.6]))] if self.chance(0.8) else []
            if k < number:
                parts.append(self.unary(currents[k]))
            for other in [*old, *new]:
                if other is not own and self.chance(0.4):
                    parts.append(self.scaled(self.unary(other), 0.4))
            if len(parts) > 1 and self.chance(0.15):
                parts[:2] = [self.add(self.pick(["max", "mul"]), *parts[:2])]
            if len(parts) > 1 and self.chance(0.15):
                parts[:2] = [self.add("where", currents[0], *parts[:2])]
            if not parts:
                parts.append(self.unary(new[-1] if new else currents[0]))
            new.append(self.sum(parts))
        new[0] = self.linked(new[0], names)
        return new

    def linked(self, current, own):
        """Sometimes something of another group, by the way of no op, or a plain array."""
        others = [v for n, v in self.made.items() if n[0] == "g" and v.width == current.width and n not in own]
        others += [self.old(n) for n, w in self.leaves.items() if n[0] == "g" and n not in own and w == current.width]
        if others and self.chance(0.12):
            self.d.traits.add("linked")
            current = self.add("add", current, self.scaled(self.unary(self.pick(others), "sin"), 0.3))
        if self.chance(0.06):
            self.d.traits.add("plain_inside")
            current = self.mul(current, self.plus(self.scaled(self.plain(current.width), 0.2), 1.0))
        if self.chance(0.1) and "clock" not in self.leaves:
            self.leaf("clock", 1, shape=(), batched=False)
            self.made["clock"] = self.plus(self.old("clock"), 0.5)
        if "clock" in self.leaves and self.chance(0.5):
            gain = self.plus(self.scaled(self.unary(self.old("clock"), "sin"), 0.2), 1.0)
            current = self.add("mul", current, gain, width=current.width)
        return current

    def counter(self):
        if "count" not in self.leaves:
            self.leaf("count", 1, shape=(), batched=False)
            self.d.state["count"] = np.zeros((), int)
            self.made["count"] = self.add("plus", self.old("count"), attr=1)
        return self.old("count")

    def delays(self):
        """A group's variable some steps later: as one leaf, or as a chain of leaves."""
        leaf = self.pick([n for n in self.leaves if n.startswith("g")])
        width = self.leaves[leaf]
        if self.chance(0.5):
            self.leaf("line", width, shape=(*self.d.batch, 2, *self.d.space, width))
            self.lines.append(self.add("first", self.old("line"), attr=len(self.d.space) + 1))
            return lambda: {"line": self.add("shift", self.old("line"), self.made[leaf], attr=len(self.d.space) + 1)}
        for name in ("d1", "d2"):
            self.leaf(name, width)
        self.lines.append(self.old("d2"))
        first = self.old(leaf)
        return lambda: {"d1": first if self.chance(0.5) else self.made[leaf], "d2": self.old("d1")}

    def readout(self, a):
        if self.chance(0.2):
            a = self.unary(a)
        if self.chance(0.1):
            a = self.cut(a)
        if self.d.space and self.chance(0.4):
            a = self.add("flatten", a, width=a.width * self.d.space[0], attr=2)
            layout, self.layout = self.layout, "flat"
            out = self.call(a, 2)
            self.layout = layout
            return out
        what = self.rng.random()
        if what < 0.12:
            return self.unary(a)
        if what < 0.27:
            return self.add("matmul", a, self.plain(a.width, 2), width=2)
        out = self.call(a, 2)
        return self.call(self.unary(out), 2) if self.chance(0.15) else out

    def draw(self):
        number, later = self.pick([1, 1, 1, 2, 2, 3]), None
        for k in range(number):
            if k and later is None and self.chance(0.3):
                later = self.delays()
            self.group(k)
        if later:
            self.made.update(later())
        groups = sorted({n[:2] for n in self.made if n[0] == "g"})
        for g in groups:
            if g == groups[-1] or self.chance(0.6):
                names = [n for n in self.made if n.startswith(g)]
                for name in {self.pick(names) for _ in range(self.pick([1, 1, 2]))}:
                    read = self.made[name] if self.chance(0.7) else self.old(name)
                    self.ends.append(self.readout(read))
        if self.chance(0.15):
            self.ends[-1] = (
                self.sum([self.ends[-1], self.call(self.x, 2)])
                if (self.ends[-1].width == 2 and not (self.d.space and "flatten" in self.d.traits))
                else self.ends[-1]
            )
        if not any("x" in node.args for node in self.nodes):
            self.ends.append(self.call(self.x, 2))
        d = self.d
        d.new = {k: v.name for k, v in self.made.items()}
        d.out = [v.name for v in self.ends]
        d.segments = self.segments()
        return d

    def segments(self):
        options = ["", "", "jit", "checkpoint"] + (["vmap"] * 2 if len(self.d.batch) == 1 else [])
        places = sorted(int(p) for p in self.rng.integers(len(self.nodes), size=self.pick([0, 0, 1, 2])))
        bounds = [0, *places, len(self.nodes)]
        found = [(self.pick(options), self.nodes[a:b]) for a, b in zip(bounds, bounds[1:]) if b > a]
        self.d.traits.update(how for how, _ in found if how)
        return found


def draw(seed):
    return Drawer([seed, 11]).draw()
