"""Spiking neurons with their receptors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, PyTree

from ... import surrogate
from ..._kernels.elementwise import fused
from ..._numbers import positive, real
from ..._op.delays import Ring, late, sends, sent
from ..._op.initial import check_key
from ..._op.param import ETraceParam, Fixed
from ..cell import Units, awake, current, fits, fitted, onto, senders, silenced, silent_steps, unit_shape
from .constants import evaluated, is_constant, is_trained, numbers
from .current import Current
from .integrate import FASTEST, MODES, advance, links_of, matters, propagator, runge_kutta, slopes, trained_propagator

ALONE = "all"  # the receptor of a population that has one without a name


class PopulationState(NamedTuple):
    """Variables of the neurons, of each receptor, spikes, and steps that a neuron is still refractory.

    `z` is a ring of the last spikes where synapses have delays, and None of neurons that do not spike; `wait` is None
    where there is no refractoriness.
    """

    neuron: dict[str, Array]
    synapses: dict[str, dict[str, Array]]
    z: Array | Ring | None
    wait: Array | None


class Population(eqx.Module):
    """Neurons of one model with synapses by receptor; the output are their spikes, without a threshold `v`.

    A step of `dt`: what arrives at a receptor, `y_t = inp(x_t) + rec(z_{t-1})`, enters its synapse; the equations of
    synapses and neuron run for `dt`, exactly where they are linear, else by Runge and Kutta's fourth order; neurons at
    their threshold spike, `z_t`, and are reset. A refractory neuron keeps its `v`, and the rest of it goes on.

    Args:
        units: number of neurons, or their shape.
        neuron: their model, as `LIF()`.
        inp: parameter that reads the input, with any op, or a dictionary of them by receptor. Without one, a receptor
            takes what is given as `x`, one value for each neuron or a number for all, as it arrives: a current, or the
            output of an op.
        rec: parameter that reads the spikes of the step before, or a dictionary by receptor; or None.
        synapses: a synapse model, as `Exponential()`, or a dictionary by receptor; a current held over the step unless
            given.
        dt: length of a step, ms.
        refractory: time after a spike in which a neuron is held, ms, whole steps; a number or an array.
        spike: the step function with its surrogate derivative, of the distance to the threshold relative to that of
            rest.
        reset_gradient: whether derivatives pass through the spike that resets. If so, a reset from `v` to `r` has
            `dv_t = (1 - z_t) dv + (r - v) dz_t`, one that subtracts `dv - height dz_t`; else these without `dz_t`.
        substeps: steps of Runge and Kutta within `dt`.
        delay: time from a spike to its arrival at `rec`, ms, whole steps, the same for all synapses whose op has none.
        clears: whether a spike empties the synapses of its own neuron, which miss what arrives while it is refractory.

    `x` is an array, which all parameters `inp` read, or a dictionary by receptor.

    Raises:
        TypeError: `dt` or `substeps` is no number.
        ValueError: a constant is out of range or of another shape, or a receptor is not known.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> from sparse_etrace.cells import spiking
        >>> graph = se.from_edges([0, 1, 2], [1, 2, 0])
        >>> receptors = {"AMPA": spiking.Exponential(tau=2.0), "GABA": spiking.Exponential(tau=8.0)}
        >>> graphs, inputs = {"AMPA": graph, "GABA": graph}, {"AMPA": 4}
        >>> cell = spiking.LIF.of(graphs, inputs, key=jax.random.key(0), synapses=receptors)
        >>> state, z = cell(cell.init_state(), jnp.ones(4))
        >>> z.shape, sorted(state.synapses)
        ((3,), ['AMPA', 'GABA'])

    Reference:
        Morrison, Straube, Plesser and Diesmann 2007, Neural Computation 19:47, of exact integration on a grid.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    neuron: Any
    inp: dict[str, ETraceParam]
    rec: dict[str, ETraceParam]
    synapses: dict[str, Any]
    dt: float = eqx.field(static=True)
    refractory: Fixed | None
    spike: Callable[[Array], Array]
    reset_gradient: bool = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    delay: int = eqx.field(static=True)
    clears: bool = eqx.field(static=True)
    _matter: tuple[bool, ...] = eqx.field(static=True)
    _known: dict[str, Fixed] | None
    _made_of: list[Fixed]

    def __init__(
        self,
        units: Units,
        neuron: Any,
        inp: object = None,
        rec: object = None,
        synapses: object = None,
        dt: object = 1.0,
        refractory: ArrayLike = 0.0,
        spike: Callable[[Array], Array] | None = None,
        reset_gradient: object = True,
        substeps: object = 1,
        delay: object = 0.0,
        clears: object = False,
    ):
        self.shape, self.neuron, self.synapses = unit_shape(units), neuron, _receptors(synapses)
        self.inp, self.rec = (by_receptor(name, p, self.synapses) for name, p in (("inp", inp), ("rec", rec)))
        if self.rec and not neuron.spikes:
            raise ValueError(f"rec: {type(neuron).__name__} sends no spikes, got a parameter that reads them.")
        self.dt = real("dt", dt)
        if not 0 < self.dt < np.inf:
            raise ValueError(f"dt: expected a positive, finite number of ms, got {self.dt}.")
        self.refractory = silent_steps(_steps("refractory", refractory, self.dt), self.shape)
        self.delay, self.clears = int(_steps("delay", real("delay", delay), self.dt)), bool(clears)
        self.spike = surrogate.triangle() if spike is None else spike
        self.reset_gradient, self.substeps = bool(reset_gradient), positive("substeps", substeps)
        self._check()
        self._matter, self._known, self._made_of = (), None, []
        if self._is_linear():
            given = numbers((neuron, self.synapses)), self._layout()
            self._matter = matters(slopes, *given)
            made_of = self._constants()
            if all(isinstance(c, Fixed) for c in made_of):
                made = {mode: propagator(MODES[mode], *given, self.dt) for mode in self._modes()}
                self._known, self._made_of = {name: Fixed(jnp.asarray(by, float)) for name, by in made.items()}, made_of

    def _constants(self) -> list[Any]:
        """Those that a propagator is made of."""
        constants = jax.tree.leaves((self.neuron, self.synapses), is_leaf=is_constant)
        return [c for c, is_needed in zip(constants, self._matter, strict=True) if is_needed]

    def _layout(self) -> PyTree:
        """The tree of variables and of what is held over a step."""
        neuron, synapses = numbers((self.neuron, self.synapses))
        filters = {name: dict.fromkeys(s.variables, 0.0) for name, s in synapses.items()}
        held = {name: s.arrive(0.0, filters[name], 0.0)[2] for name, s in synapses.items()}
        return jax.tree.structure(((neuron.start(), filters), held))

    def _propagator(self, parts: PyTree, name: str) -> Array:
        """Of neurons that are free, or of which `v` is held."""
        if self._known is None:
            leaves, tree = jax.tree.flatten(is_trained((self.neuron, self.synapses)))
            trained = jax.tree.unflatten(tree, [a and b for a, b in zip(leaves, self._matter, strict=True)])
            return trained_propagator(MODES[name], parts, trained, self._layout(), self.dt)
        # Constants that were exchanged since do not fit it.
        pairs = zip(self._constants(), self._made_of, strict=True)
        is_same = jnp.all(jnp.stack([jnp.all(now() == then()) for now, then in pairs]))
        return jnp.where(is_same, self._known[name](), jnp.nan)

    def _check(self) -> None:
        """Shapes of the constants, and time constants that a step is too long for."""
        kept = (self.neuron, self.synapses)
        for path, leaf in jax.tree_util.tree_flatten_with_path(kept, is_leaf=is_constant)[0]:
            value, name = leaf() if is_constant(leaf) else leaf, str(path[-1]).lstrip(".")
            fits(name, value, self.shape)
            if name.startswith("tau") and not isinstance(value, jax.core.Tracer):
                shortest, step = float(np.min(value)), self.dt / self.substeps
                least = step / 2 if not self._is_linear() else self.dt / FASTEST
                if shortest < least:
                    raise ValueError(
                        f"{name}: expected at least {least} ms for a step of {step} ms, got {shortest}. "
                        "Give a shorter dt, or substeps where the equations are not linear."
                    )

    def _is_linear(self) -> bool:
        return all(part.is_linear for part in (self.neuron, *self.synapses.values()))

    def init_state(self, *batch: SupportsIndex) -> PopulationState:
        """Rest, no spikes; `batch` are the sizes of the leading batch axes."""
        shape = (*map(int, batch), *self.shape)
        neuron, depth = evaluated(self.neuron, len(shape)).start(), self.delay + 1 if self.delay else 0
        return PopulationState(
            {name: jnp.broadcast_to(value, shape) for name, value in neuron.items()},
            {name: {part: jnp.zeros(shape) for part in s.variables} for name, s in self.synapses.items()},
            sends(jnp.zeros(shape), *self.rec.values(), depth=depth) if self.neuron.spikes else None,
            awake(shape, self.refractory),
        )

    def __call__(self, state: PopulationState, x: PyTree) -> tuple[PopulationState, Array]:
        parts = evaluated((self.neuron, self.synapses), state.neuron["v"].ndim)
        by = {mode: self._propagator(parts, mode) for mode in self._modes()}
        carried, arrived = (state.neuron, state.synapses, state.wait), self._arrivals(state, x)
        (neuron, filters, wait), z = fused(self._step, carried, arrived, parts, by)
        if not self.neuron.spikes:
            return PopulationState(neuron, filters, None, wait), neuron["v"]
        return PopulationState(neuron, filters, z if state.z is None else sent(state.z, z), wait), z

    def _step(
        self, carried: tuple, arrived: dict[str, Array], parts: PyTree, by: dict[str, Array]
    ) -> tuple[tuple, Array | None]:
        """Variables, and spikes, of a step in which this arrived."""
        (old, synapses, wait), filters, held = carried, {}, {}
        is_held = None if wait is None else wait > 0
        jumped = v = old["v"]
        for name, y in arrived.items():
            y = jnp.where(is_held, 0, y) if self.clears and is_held is not None else y
            jumped, filters[name], held[name] = parts[1][name].arrive(jumped, synapses[name], y)
        jumped = jumped if is_held is None else jnp.where(is_held, v, jumped)
        neuron, filters = self._run(parts, by, ({**old, "v": jumped}, filters), held, is_held)
        if not self.neuron.spikes:
            return (neuron, filters, wait), None
        z, wait = silenced(self.spike(parts[0].margin(neuron)), wait, self.refractory)
        resets = z if self.reset_gradient else jax.lax.stop_gradient(z)
        neuron = parts[0].after(neuron, resets)
        if self.clears:
            filters = jax.tree.map(lambda s: s * (1 - resets), filters)
        return (neuron, filters, wait), z

    def _arrivals(self, state: PopulationState, x: PyTree) -> dict[str, Array]:
        """What arrives at each receptor in this step."""
        v, given = state.neuron["v"], x
        if not isinstance(x, Mapping):
            given = dict.fromkeys(self.inp, x) if self.inp else by_receptor("x", x, self.synapses)
        elif missing := [name for name in self.inp if name not in x]:
            raise ValueError(f"x: expected an entry for each parameter `inp`, got none for {missing}.")
        given = by_receptor("x", given, self.synapses)
        line, found = v if state.z is None else state.z, {}
        for name in self.synapses:
            inp, y, rec = self.inp.get(name), given.get(name), self.rec.get(name)
            found[name] = current(inp, y if inp is not None else None, rec, late(line, self.delay + 1, rec))
            if inp is None and y is not None:
                found[name] = found[name] + fitted(f"x[{name!r}]", jnp.asarray(y), v)
        return found

    def _modes(self) -> tuple[str, ...]:
        """Of which propagators there are."""
        if not self._is_linear():
            return ()
        return ("free", "held") if self.neuron.is_coupled and self.refractory is not None else ("free",)

    def _run(self, parts: PyTree, by: dict[str, Array], y: PyTree, held: PyTree, is_held: Array | None) -> PyTree:
        """The variables after `dt`."""
        if not self._is_linear():
            free = 1.0 if is_held is None else jnp.where(is_held, 0.0, 1.0)
            return runge_kutta(lambda y: slopes(parts, y, held, free), y, self.dt, self.substeps)
        rest = parts[0].start(), jax.tree.map(lambda _: 0.0, y[1])
        links = links_of(slopes, parts, self._layout())
        new = advance(by["free"], links, y, rest, held)
        if is_held is None:
            return new
        own = {**new[0], "v": y[0]["v"]}
        if "held" in by:
            own = advance(by["held"], links, y, rest, held)[0]
        return {k: jnp.where(is_held, own[k], a) for k, a in new[0].items()}, new[1]


def population_of(
    cls: Any,
    graph: object,
    inputs: object = None,
    *,
    key: object,
    bias: object = True,
    weight_fn: Any = None,
    init: object = "fan_in",
    dtype: DTypeLike | None = None,
    **constants: Any,
) -> Population:
    """A population of this model, connected by a graph, with parameters to start from.

    Args:
        graph: a square `Graph` or `Connectivity`, or the number of neurons that are connected all to all; with
            receptors, a dictionary by receptor.
        inputs: number of inputs, each connected to all neurons; a `Graph` or `Connectivity` from inputs to neurons;
            with receptors, a dictionary of them; None without.
        key: where the weights are drawn from, others for each parameter.
        bias: whether the recurrent parameters have a bias, of zeros.
        weight_fn, init: of the recurrent parameters, as in `SpMatMulOp.param`, or dictionaries by receptor. Input
            weights are always drawn by fan-in.
        dtype: floating type of the parameters.
        **constants: arguments of this model and of `Population`.

    Raises:
        TypeError: an argument is of another kind, or is not known.
        ValueError: the graphs have other units, or a receptor is not known.

    Example:
        >>> import jax, sparse_etrace as se
        >>> graph = se.from_edges([0, 1, 2], [1, 2, 0])
        >>> se.cells.spiking.LIF.of(graph, inputs=2, key=jax.random.key(0), tau=10.0, refractory=2.0).shape
        (3,)
    """
    options = {name: constants.pop(name) for name in OPTIONS if name in constants}
    fields = [f for f, field in cls.__dataclass_fields__.items() if field.init]
    for name in constants:
        if name not in fields:
            raise TypeError(f"{name}: expected one of {[*fields, *OPTIONS]}, or an argument of `of`, got another name.")
    synapses = _receptors(options.pop("synapses", None))
    graphs, inputs = by_receptor("graph", graph, synapses), by_receptor("inputs", inputs, synapses)
    units = {senders("graph", one) for one in graphs.values()}
    if len(units) != 1:
        raise ValueError(f"graph: expected graphs of the same neurons, got {sorted(units)} of them.")
    (count,), rec, inp = units, {}, {}
    keys = iter(jax.random.split(check_key(key), len(graphs) + len(inputs)))
    for name, one in graphs.items() if cls.spikes else ():
        weight, start = (each.get(name) if isinstance(each, Mapping) else each for each in (weight_fn, init))
        rec[name] = onto(count, "graph", one, next(keys), bias, weight, start, dtype)
    for name, one in inputs.items():
        inp[name] = onto(count, "inputs", one, next(keys), dtype=dtype)
    return Population(count, cls(**constants), inp, rec, synapses, **options)


OPTIONS = ("synapses", "dt", "refractory", "spike", "reset_gradient", "substeps", "delay", "clears")


def _receptors(synapses: object) -> dict[str, Any]:
    if isinstance(synapses, Mapping):
        return dict(synapses)
    return {ALONE: Current() if synapses is None else synapses}


def by_receptor(name: str, given: object, synapses: Mapping[str, object]) -> dict[str, Any]:
    """A dictionary by receptor of what may be given alone where there is one receptor."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(synapses) == 1:
            return dict.fromkeys(synapses, given)
        raise ValueError(f"{name}: expected a dictionary by receptor, {list(synapses)}, got {type(given).__name__}.")
    if unknown := [receptor for receptor in given if receptor not in synapses]:
        raise ValueError(f"{name}: expected receptors out of {list(synapses)}, got {unknown}.")
    return dict(given)


def _steps(name: str, time: ArrayLike, dt: float) -> np.ndarray:
    """Whole steps for a time."""
    steps = np.asarray(time, float) / dt
    whole = np.round(steps)
    if not np.all((steps >= 0) & (np.abs(steps - whole) < 1e-6 * (1 + steps))):
        raise ValueError(f"{name}: expected times of whole steps of {dt} ms, got {time}. Round it, or dt.")
    return np.asarray(whole, int)
