"""Spiking neurons and synapses: against other integrators, and their gradients, by equations written a second time."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import models
import numpy as np
import oracles
import pytest
from scipy.integrate import solve_ivp
from soak import few

import sparse_etrace as se
from sparse_etrace.cells import spiking

pytestmark = pytest.mark.usefixtures("x64")
N, INPUTS, OUTPUTS, STEPS = 4, 3, 2, 24


class Neuron(NamedTuple):
    """`make(**constants)`, their values, start, `slope(c, y, I)`, `margin(c, y)` and `after(c, y, z)`."""

    make: Callable
    constants: dict[str, Any]
    start: Callable
    slope: Callable
    margin: Callable
    after: Callable
    exact: bool = True
    gain: float = 1.0


def spread(value, by=0.1):
    """One for each unit."""
    return value * (1 + by * np.linspace(-1, 1, N))


def soft(c, y, z):
    return y["v"] - (c["threshold"] - c["rest"]) * z


def hard(c, y, z):
    return y["v"] + (c["reset"] - y["v"]) * z


def leak(c, y, current):
    return (c["rest"] - y["v"] + c["resistance"] * current) / c["tau"]


def relative(c, y):
    return (y["v"] - c["threshold"]) / (c["threshold"] - c["rest"])


def of(a):
    """Numpy does not compile."""
    return np if isinstance(a, np.ndarray) else jnp


def cut_at(c, y):
    return of(y["v"]).minimum(y["v"], c["peak"])


LEAKY = {"tau": spread(10.0), "threshold": spread(-50.0, 0.02), "rest": spread(-65.0, -0.02), "resistance": spread(0.9)}
NEURONS = {
    "lif": Neuron(
        spiking.LIF,
        LEAKY,
        lambda c: {"v": c["rest"]},
        lambda c, y, i: {"v": leak(c, y, i)},
        relative,
        lambda c, y, z: {"v": soft(c, y, z)},
        gain=30.0,
    ),
    "lif to a value": Neuron(
        spiking.LIF,
        LEAKY | {"reset": spread(-60.0, 0.02)},
        lambda c: {"v": c["rest"]},
        lambda c, y, i: {"v": leak(c, y, i)},
        relative,
        lambda c, y, z: {"v": hard(c, y, z)},
        gain=30.0,
    ),
    "lif without reset": Neuron(
        lambda **c: spiking.LIF(reset=None, **c),
        LEAKY,
        lambda c: {"v": c["rest"]},
        lambda c, y, i: {"v": leak(c, y, i)},
        relative,
        lambda c, y, z: {"v": y["v"]},
        gain=30.0,
    ),
    "alif": Neuron(
        spiking.ALIF,
        LEAKY | {"tau_adaptation": spread(30.0), "adaptation": spread(4.0)},
        lambda c: {"b": 0 * c["rest"], "v": c["rest"]},
        lambda c, y, i: {"b": -y["b"] / c["tau_adaptation"], "v": leak(c, y, i)},
        lambda c, y: (y["v"] - c["threshold"] - y["b"]) / (c["threshold"] - c["rest"]),
        lambda c, y, z: {"b": y["b"] + c["adaptation"] * z, "v": soft(c, y, z)},
        gain=30.0,
    ),
    "adlif": Neuron(
        spiking.AdLIF,
        LEAKY
        | {
            "tau_adaptation": spread(20.0),
            "coupling": spread(1.2),
            "adaptation": spread(3.0),
            "reset": np.full(N, -62.0),
        },
        lambda c: {"v": c["rest"], "w": 0 * c["rest"]},
        lambda c, y, i: {
            "v": leak(c, y, i - y["w"]),
            "w": (c["coupling"] * (y["v"] - c["rest"]) - y["w"]) / c["tau_adaptation"],
        },
        relative,
        lambda c, y, z: {"v": hard(c, y, z), "w": y["w"] + c["adaptation"] * z},
        gain=40.0,
    ),
    "gif": Neuron(
        spiking.GIF,
        LEAKY
        | {"tau_1": spread(3.0), "tau_2": spread(30.0), "jump_1": spread(9.0), "jump_2": spread(-4.0)}
        | {"keep_1": spread(0.2), "tau_threshold": spread(25.0), "coupling": spread(0.2)}
        | {"threshold_jump": spread(2.0), "threshold_floor": np.array([-60.0, -50.0, -47.0, -46.0])},
        lambda c: {"i1": 0 * c["rest"], "i2": 0 * c["rest"], "theta": c["threshold"], "v": c["rest"]},
        lambda c, y, i: {
            "i1": -y["i1"] / c["tau_1"],
            "i2": -y["i2"] / c["tau_2"],
            "theta": (c["coupling"] * (y["v"] - c["rest"]) - (y["theta"] - c["threshold"])) / c["tau_threshold"],
            "v": leak(c, y, i + y["i1"] + y["i2"]),
        },
        lambda c, y: (y["v"] - y["theta"]) / (c["threshold"] - c["rest"]),
        lambda c, y, z: {
            "i1": y["i1"] + z * ((c["keep_1"] - 1) * y["i1"] + c["jump_1"]),
            "i2": y["i2"] + z * c["jump_2"],
            "theta": y["theta"]
            + z * (jnp.maximum(y["theta"] + c["threshold_jump"], c["threshold_floor"]) - y["theta"]),
            "v": soft(c, y, z),
        },
        gain=30.0,
    ),
    "izhikevich": Neuron(
        spiking.Izhikevich,
        {"a": spread(0.05), "b": spread(0.2), "c": spread(-60.0, -0.02), "d": spread(6.0), "peak": spread(-30.0)},
        lambda c: {"u": c["b"] * c["c"], "v": c["c"]},
        lambda c, y, i: {
            "u": c["a"] * (c["b"] * cut_at(c, y) - y["u"]),
            "v": (0.04 * cut_at(c, y) + 5) * cut_at(c, y) + 140 - y["u"] + i,
        },
        lambda c, y: (cut_at(c, y) - c["peak"]) / (c["peak"] - c["c"]),
        lambda c, y, z: {"u": y["u"] + c["d"] * z, "v": hard({"reset": c["c"]}, {"v": cut_at(c, y)}, z)},
        exact=False,
        gain=10.0,
    ),
    "adex": Neuron(
        spiking.AdEx,
        LEAKY
        | {"slope": spread(4.0), "tau_adaptation": spread(20.0), "coupling": spread(0.5), "adaptation": spread(3.0)}
        | {"reset": spread(-58.0, 0.02), "peak": spread(-38.0, 0.02)},
        lambda c: {"v": c["rest"], "w": 0 * c["rest"]},
        lambda c, y, i: {
            "v": leak(c, {"v": cut_at(c, y)}, i - y["w"])
            + c["slope"] / c["tau"] * of(y["v"]).exp((cut_at(c, y) - c["threshold"]) / c["slope"]),
            "w": (c["coupling"] * (cut_at(c, y) - c["rest"]) - y["w"]) / c["tau_adaptation"],
        },
        lambda c, y: (cut_at(c, y) - c["peak"]) / (c["peak"] - c["rest"]),
        lambda c, y, z: {"v": hard(c, {"v": cut_at(c, y)}, z), "w": y["w"] + c["adaptation"] * z},
        exact=False,
        gain=30.0,
    ),
    "li": Neuron(
        spiking.LI,
        {k: LEAKY[k] for k in ("tau", "rest", "resistance")},
        lambda c: {"v": c["rest"]},
        lambda c, y, i: {"v": leak(c, y, i)},
        None,
        None,
    ),
}


class Synapse(NamedTuple):
    """`make(**constants)`, their values, variables, `arrive(c, v, s, y)`, `current(c, s, y, v)`, `slope(c, s)`."""

    make: Callable
    constants: dict[str, Any]
    variables: tuple[str, ...]
    arrive: Callable
    current: Callable
    slope: Callable
    exact: bool = True


def cascade(rise, decay):
    return lambda c, s: {"r": -s["r"] / c[rise], "s": s["r"] - s["s"] / c[decay]}


def peak(c):
    """Of `exp(-t / decay) - exp(-t / rise)`."""
    rise, decay = c["tau_rise"], c["tau_decay"]
    at = jnp.log(decay / rise) * rise * decay / (decay - rise)
    return jnp.exp(-at / decay) - jnp.exp(-at / rise)


FILTER = Synapse(
    spiking.Exponential,
    {"tau": spread(3.0)},
    ("s",),
    lambda c, v, s, y: (v, {"s": s["s"] + y}),
    lambda c, s, y, v: s["s"],
    lambda c, s: {"s": -s["s"] / c["tau"]},
)
SYNAPSES = {
    "current": Synapse(spiking.Current, {}, (), lambda c, v, s, y: (v, s), lambda c, s, y, v: y, lambda c, s: {}),
    "delta": Synapse(spiking.Delta, {}, (), lambda c, v, s, y: (v + y, s), lambda c, s, y, v: 0.0, lambda c, s: {}),
    "exponential": FILTER,
    "alpha": Synapse(
        spiking.Alpha,
        {"tau": spread(2.0)},
        ("r", "s"),
        lambda c, v, s, y: (v, s | {"r": s["r"] + y * np.e / c["tau"]}),
        lambda c, s, y, v: s["s"],
        cascade("tau", "tau"),
    ),
    "double exponential": Synapse(
        spiking.DoubleExponential,
        {"tau_rise": spread(0.8), "tau_decay": spread(4.0)},
        ("r", "s"),
        lambda c, v, s, y: (v, s | {"r": s["r"] + y * (1 / c["tau_rise"] - 1 / c["tau_decay"]) / peak(c)}),
        lambda c, s, y, v: s["s"],
        cascade("tau_rise", "tau_decay"),
    ),
    "conductance": Synapse(
        lambda tau, reversal: spiking.Conductance(spiking.Exponential(tau), reversal),
        {"tau": spread(3.0), "reversal": spread(-10.0)},
        ("s",),
        lambda c, v, s, y: (v, {"s": s["s"] + y}),
        lambda c, s, y, v: s["s"] * (c["reversal"] - v),
        FILTER.slope,
        exact=False,
    ),
}


class Case(NamedTuple):
    """A population by the names of its parts; `scale` of what arrives, by receptor."""

    neuron: str
    synapses: dict[str, float]
    refractory: float = 0.0
    reset_gradient: bool = True
    substeps: int = 1
    dt: float = 0.5
    delay: float = 0.0
    clears: bool = False


CASES = {
    "lif": Case("lif", {"current": 1.0}, reset_gradient=False),
    "synapses": Case(
        "lif",
        {"current": 0.4, "delta": 0.1, "exponential": 0.4, "alpha": 0.4, "double exponential": 0.4},
        refractory=1.0,
    ),
    "fly": Case("lif to a value", {"exponential": 1.0, "delta": 0.1}, 1.5, delay=1.0, clears=True),
    "lif without reset": Case("lif without reset", {"delta": 0.2}, 1.5),
    "alif": Case("alif", {"alpha": 0.7}, 1.0),
    "adlif": Case("adlif", {"exponential": 0.7}, 1.0),
    "gif": Case("gif", {"exponential": 0.7}, 1.5),
    "izhikevich": Case("izhikevich", {"exponential": 0.8}, substeps=2, dt=1 / 32),
    "adex": Case("adex", {"exponential": 1.5}, 0.125, substeps=2, dt=1 / 32),
    "li": Case("li", {"double exponential": 0.1}),
    "conductance": Case("lif to a value", {"conductance": 0.04}, 0.125, substeps=2, dt=1 / 32),
}


def drawn(name):
    """Values of all parameters of a case, `{receptor or model/name: array}`."""
    case, rng = CASES[name], np.random.default_rng([*name.encode()])
    neuron = NEURONS[case.neuron]
    values = {f"neuron/{k}": c for k, c in neuron.constants.items()}
    for receptor, scale in case.synapses.items():
        values |= {f"{receptor}/{k}": c for k, c in SYNAPSES[receptor].constants.items()}
        size = scale * neuron.gain
        values[f"{receptor}/inp"] = size * np.abs(rng.normal(size=(INPUTS, N)))
        if neuron.margin is not None:
            values[f"{receptor}/rec"] = size * rng.normal(size=(N, N))
    return values | {"out": rng.normal(size=(N, OUTPUTS))}


def built(name, values, trained=()):
    """The population and a readout; constants with these names are trained."""
    case = CASES[name]
    constant = {
        k: se.ElemWiseParam(v) if k.split("/")[1] in trained else v
        for k, v in values.items()
        if k.split("/")[-1] not in ("inp", "rec", "out")
    }
    dense = {k: se.ETraceParam({"weight": v}, se.MatMulOp()) for k, v in values.items() if k not in constant}
    of = lambda part: {k.split("/")[1]: c for k, c in constant.items() if k.startswith(f"{part}/")}
    params = [{k.split("/")[0]: p for k, p in dense.items() if k.endswith(f"/{sort}")} for sort in ("inp", "rec")]
    cell = spiking.Population(
        N,
        NEURONS[case.neuron].make(**of("neuron")),
        *params,
        {r: SYNAPSES[r].make(**of(r)) for r in case.synapses},
        case.dt,
        case.refractory,
        spike=models.spike,
        reset_gradient=case.reset_gradient,
        substeps=case.substeps,
        delay=case.delay,
        clears=case.clears,
    )
    return Net(cell, dense["out"])


class Net(eqx.Module):
    cell: spiking.Population
    out: se.ETraceParam

    def __call__(self, state, x):
        state, z = self.cell(state, x)
        return state, self.out(z)


def state_of(name, values):
    """By hand, without a batch: variables by name, spikes, and steps to wait."""
    case, neuron = CASES[name], NEURONS[CASES[name].neuron]
    c = {k: values[f"neuron/{k}"] for k in neuron.constants}
    state = neuron.start(c)
    if neuron.margin is not None:  # on the way to the threshold
        state["v"] = state["v"] + np.array([0.9, 0.2, 0.7, 0.5]) * (c.get("peak", c.get("threshold")) - state["v"])
    state |= {f"{r}/{s}": np.zeros(N) for r in case.synapses for s in SYNAPSES[r].variables}
    slots = (round(case.delay / case.dt) + 1,) if case.delay else ()
    return state | {"z": np.zeros((*slots, N)), "wait": np.zeros(N, int)}


def begun(cell, h):
    """A state of the population with the potential of one by hand."""
    state = cell.init_state()
    return state._replace(neuron={**state.neuron, "v": jnp.asarray(h["v"])})


def step(name, value, h, sent, x, integrate):
    """One step by hand; `value(name, x=None)` gives a constant or what an op makes of x."""
    case, neuron = CASES[name], NEURONS[CASES[name].neuron]
    c = {k: value(f"neuron/{k}") for k in neuron.constants}
    s = {r: {k: value(f"{r}/{k}") for k in SYNAPSES[r].constants} for r in case.synapses}
    v, y, filters, free = h["v"], {}, {}, h["wait"] == 0
    sent = sent[-1] if case.delay else sent
    for r in case.synapses:
        y[r] = value(f"{r}/inp", x) + (0.0 if neuron.margin is None else value(f"{r}/rec", sent))
        y[r] = of(v).where(free, y[r], 0) if case.clears else y[r]
        v, filters[r] = SYNAPSES[r].arrive(s[r], v, {k: h[f"{r}/{k}"] for k in SYNAPSES[r].variables}, y[r])
    own = {k: h[k] for k in neuron.start(c)} | {"v": of(v).where(free, v, h["v"])}

    def slope(state):
        own, filters = state
        current = sum(SYNAPSES[r].current(s[r], filters[r], y[r], own["v"]) for r in case.synapses)
        found = neuron.slope(c, own, current)
        return found | {"v": free * found["v"]}, {r: SYNAPSES[r].slope(s[r], filters[r]) for r in case.synapses}

    own, filters = integrate(slope, (own, filters), name)
    new = {f"{r}/{k}": filters[r][k] for r in filters for k in filters[r]}
    if neuron.margin is None:
        return own | new | {"z": h["z"], "wait": h["wait"]}, own["v"]
    z = jnp.where(free, models.spike(neuron.margin(c, own)), 0)
    wait = jnp.where(z > 0, round(case.refractory / case.dt), jnp.maximum(h["wait"] - 1, 0))
    own = neuron.after(c, own, z if case.reset_gradient else jax.lax.stop_gradient(z))
    new = {k: s * (1 - z) for k, s in new.items()} if case.clears else new
    return own | new | {"z": jnp.stack([z, *h["z"][:-1]]) if case.delay else z, "wait": wait}, z


def is_exact(name):
    case = CASES[name]
    return NEURONS[case.neuron].exact and all(SYNAPSES[r].exact for r in case.synapses)


def by_series(slope, state, name):
    """A long Taylor series where the equations are linear, else four slopes."""
    add = lambda a, b, by: jax.tree.map(lambda a, b: a + by * b, a, b)
    if is_exact(name):
        offset, total, term = slope(jax.tree.map(lambda a: 0 * a, state)), state, slope(state)
        for k in range(1, 15):
            total = add(total, term, CASES[name].dt ** k / math.factorial(k))
            term = add(slope(term), offset, -1.0)
        return total
    dt = CASES[name].dt / CASES[name].substeps
    for _ in range(CASES[name].substeps):
        k1 = slope(state)
        k2 = slope(add(state, k1, dt / 2))
        k3 = slope(add(state, k2, dt / 2))
        k4 = slope(add(state, k3, dt))
        state = add(state, add(add(k1, k4, 1.0), add(k2, k3, 1.0), 2.0), dt / 6)
    return state


def by_scipy(slope, state, name):
    """An adaptive integrator."""
    flat, layout = jax.tree.flatten(jax.tree.map(np.asarray, state))
    unflat = lambda v: jax.tree.unflatten(layout, list(v.reshape(len(flat), N)))
    slopes = lambda t, v: np.concatenate(jax.tree.leaves(slope(unflat(v))))
    return unflat(
        solve_ivp(slopes, (0, CASES[name].dt), np.concatenate(flat), "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
    )


def inputs(steps=STEPS, batch=()):
    rng = np.random.default_rng(7)
    return rng.random((steps, *batch, INPUTS)) < 0.5, rng.normal(size=(steps, *batch, OUTPUTS))


@pytest.mark.parametrize("name", CASES)
def test_against_an_adaptive_integrator(name):
    """Each step from where the population stood: by scipy to 1e-6 where none spikes, in any case by its own scheme."""
    values, (xs, _) = drawn(name), inputs()
    cell, value = (
        built(name, values).cell,
        lambda key, x=None: values[key] if x is None else x @ values[key],
    )
    both = lambda state, x: (cell(state, x)[0], cell(state, x))
    start = begun(cell, state_of(name, values))
    states, outs = jax.jit(lambda xs: jax.lax.scan(both, start, xs)[1])(xs)
    got = {**states.neuron, **{f"{r}/{k}": a for r, part in states.synapses.items() for k, a in part.items()}}
    slots = len(state_of(name, values)["z"])
    got |= {"z": states.z.last(slots)[:, ::-1] if CASES[name].delay else states.z, "wait": states.wait}
    h, worst = state_of(name, values), {by_scipy: 0.0} if is_exact(name) else {by_scipy: 0.0, by_series: 0.0}
    now = {k: np.asarray(h[k]) for k in got}
    for t, x in enumerate(xs[:16]):
        now = {k: now[k] if got[k] is None else np.asarray(got[k][t]) for k in got}
        for how in worst:
            new, out = step(name, value, h, h["z"], x, how)
            np.testing.assert_array_equal(new["z"], now["z"])
            np.testing.assert_array_equal(new["wait"], now["wait"])
            smooth = how is by_series or is_exact(name) or out == 0
            apart = [np.abs(np.where(smooth, new[k] - now[k], 0)).max() for k in set(new) - {"z", "wait"}]
            worst[how] = max(worst[how], *apart)
            np.testing.assert_allclose(outs[t], out, atol=1e-6)
        h = now
    assert worst[by_scipy] < (1e-8 if is_exact(name) else 1e-6) and worst.get(by_series, 0) < 1e-10
    assert NEURONS[CASES[name].neuron].margin is None or 0.02 < np.mean(got["z"]) < 0.7


# --- gradients -------------------------------------------------------------------------------------------------------

TRAINED = ("tau", "threshold", "reset", "adaptation", "reversal")


class Many(eqx.Module):
    """Populations side by side."""

    nets: dict[str, Net]

    def __call__(self, state, x):
        found = {name: net(state[name], x) for name, net in self.nets.items()}
        return {name: new for name, (new, _) in found.items()}, sum(out for _, out in found.values())


def twin_of(names, trained):
    """All of them by hand; the state of each is named by its case."""
    values = {f"{name}:{k}": v for name in names for k, v in drawn(name).items()}
    constant = {k for k in values if k.split("/")[-1] not in ("inp", "rec") and not k.endswith(":out")}
    fixed = {k: values.pop(k) for k in constant if k.split("/")[1] not in trained}
    state = {f"{name}:{k}": jnp.asarray(v) for name in names for k, v in state_of(name, drawn(name)).items()}
    live = {
        name: tuple(k for k in state if k.startswith(f"{name}:") and k.split(":")[1] not in ("z", "wait"))
        for name in names
    }

    def forward(op, h, held, x):
        new, total = {}, 0.0
        for name in names:

            def value(key, x=None, name=name):
                key = f"{name}:{key}"
                return fixed[key] if key in fixed else op(key) if x is None else op(key, x)

            own = {k.split(":")[1]: a for k, a in h.items() if k.startswith(f"{name}:")}
            own, out = step(name, value, own, held[f"{name}:z"], x, by_series)
            new |= {f"{name}:{k}": a for k, a in own.items()}
            total = total + op(f"{name}:out", out)
        return new, total

    ops = {k: oracles.elemwise() if k in constant else oracles.dense() for k in values}
    values = {k: jnp.asarray(v) if k in constant else {"weight": jnp.asarray(v)} for k, v in values.items()}
    traced = {k: live[k.split(":")[0]] for k in values if not k.endswith(":out")}
    return oracles.Twin(forward, values, ops, state, {k: k for k in values}, traced)


def read(grads, names):
    found = {}
    for name in names:
        cell, out = grads.nets[name].cell, grads.nets[name].out
        found[f"{name}:out"] = out.value
        found |= {f"{name}:{r}/{sort}": p.value for sort in ("inp", "rec") for r, p in getattr(cell, sort).items()}
        for part, fields in {"neuron": cell.neuron, **cell.synapses}.items():
            fields = {**vars(fields), **vars(fields.synapse)} if hasattr(fields, "synapse") else vars(fields)
            params = {k: p.value for k, p in fields.items() if isinstance(p, se.ETraceParam)}
            found |= {f"{name}:{part}/{k}": v for k, v in params.items()}
    return found


def gradients(learner, names, trained=(), chunk=4):
    """Summed gradients, of two calls."""
    net = Many({name: built(name, drawn(name), trained) for name in names})
    state = {name: begun(net.nets[name].cell, state_of(name, drawn(name))) for name in names}
    xs, ys = (jnp.asarray(a, float) for a in inputs())
    carry, found, half = learner.init(net, state, xs[0]), [], STEPS // 2
    for part in (slice(half), slice(half, STEPS)):
        _, grads, carry = se.online_grad(learner, oracles.loss_fn, net, carry, xs[part], ys[part], chunk=chunk)
        found.append(read(grads, names))
    return jax.tree.map(np.add, *found)


def compared(got, expected):
    assert set(got) == set(expected)
    worst = {k: oracles.relative_error(got[k], expected[k]) for k in expected}
    silent = [k for k in expected if not oracles.nonzero(expected[k])]
    assert not silent
    assert max(worst.values()) < 1e-10, {k: e for k, e in worst.items() if e >= 1e-10}


# Each mechanism once; all of them with constants as they are and trained, with the full counts.
GRADIENTS = [(name, trained) for name in CASES for trained in ((), TRAINED)]
CHOSEN = [("conductance", ()), ("lif", TRAINED)]


@pytest.mark.parametrize("name, trained", few(GRADIENTS, CHOSEN))
def test_d_rtrl(name, trained):
    xs, ys = (jnp.asarray(a, float) for a in inputs())
    compared(gradients(se.D_RTRL(), [name], trained), oracles.stop_gradient_twin(twin_of([name], trained), xs, ys))


@pytest.mark.parametrize("name, trained", few(GRADIENTS, [("fly", ())]))
def test_rtrl(name, trained):
    xs, ys = (jnp.asarray(a, float) for a in inputs())
    compared(gradients(se.RTRL(), [name], trained), oracles.bptt(twin_of([name], trained), xs, ys))
