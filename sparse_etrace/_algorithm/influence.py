"""What SnAp and RTRL share: influences of synapses on a sparse pattern of hidden units."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import scipy.sparse as sp
from jaxtyping import Array, PyTree

from .._analysis import Analysis
from .._batch_axes import axes_of
from .._filter import check_names
from .._influence import Influences, signals, sizes_of, start, weights_of, window
from .._links import Links, LinkStep
from .._origin import compiled, origin_of
from .._program import cast, is_inexact
from .._reach import Wiring
from .._sums import widened, zeros
from .base import Carry, Learner, Window, cut, differentiate


class InfluenceLearner(Learner):
    """A rule that keeps the influence of each synapse on some of the hidden units."""

    max_influences: eqx.AbstractVar[int]

    @abc.abstractmethod
    def reach(self, wiring: Wiring) -> sp.csr_array:
        """Neurons that each op output influences."""

    @property
    @abc.abstractmethod
    def rule(self) -> tuple:
        """What says that a carry is of another rule."""

    @property
    def traces_all(self) -> bool:
        """Whether parameters without trace have influences as well."""
        return False

    def init(self, model: Callable[..., Any], state: PyTree[Any], x: PyTree[Any]) -> Carry:
        """Find the pattern, check the model against the rule, and start with influences of zero; see `D_RTRL.init`.

        Raises:
            TypeError: the model is traced, so that its synapses are not known.
            ValueError: units act on each other by other ways than ops, or there are too many influences.
            NotImplementedError: an op does not say which unit each weight leads from and to.
        """
        traces = self._start(model, state, x)()
        origin = origin_of(model, *axes_of(model, state, x, self.train))
        return Carry(jax.tree.map(jnp.asarray, state), traces, origin=origin)

    def carry_shapes(self, model: Callable[..., Any], state: PyTree[Any], x: PyTree[Any]) -> Carry:
        """Shapes and types of what `init` returns. The model needs its arrays: they hold the synapses."""
        make = self._start(model, state, x)
        return eqx.filter_eval_shape(lambda state: Carry(jax.tree.map(jnp.asarray, state), make()), state)

    def _start(self, model: Callable[..., Any], state: PyTree[Any], x: PyTree[Any]) -> Callable[[], Any]:
        """Check the model, and say what makes the traces."""
        params = jax.tree.leaves(eqx.filter(model, _is_array))
        if any(isinstance(p, jax.core.Tracer | jax.ShapeDtypeStruct) for p in params):
            raise TypeError(
                "model: its arrays are traced or have only shapes, so that its synapses are not known. Call init "
                "outside of jit and vmap, with the arrays themselves."
            )
        analysis = Analysis(model, state, x, self.train)
        check_names(self.allow_zero, analysis.param_names)
        links = Links(analysis)
        weights = LinkStep(links).weights(list(map(jnp.asarray, params)))
        wiring = Wiring(links, weights, self.traces_all)
        reach = self.reach(wiring)
        reached = reach.sum(axis=1)
        begin = {c.number: wiring.offset[("y", c.number)] - wiring.num_hidden for c in links.carriers}
        traced = {
            c.number for c in links.carriers
            if reached[begin[c.number] : begin[c.number] + links.size(("y", c.number))].any()
        }  # fmt: skip
        analysis.check_reach(self.allow_zero, traced)
        return start(wiring, reach, self.max_influences, self._made_for(links))

    def window_steps(self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array]) -> int | None:
        """16: a block of influences is read and written once in so many steps."""
        return 16

    def _restart_traces(self, carry: Carry, where: Array, zero: Callable[..., Array]) -> Any:
        values = carry.traces.values
        if not values.size:
            return carry.traces
        if values.shape[1 : 1 + where.ndim] != where.shape:
            raise ValueError(
                f"where: influences of this model have the batch axes {values.shape[1:]}, which all its ops share, so "
                f"that they cannot start again for some of {where.shape} only. Give every op an input with batch "
                "axes, start all again, or use se.D_RTRL() or se.TBPTT."
            )
        chosen = where.reshape(1, *where.shape, *[1] * (values.ndim - 1 - where.ndim))
        return eqx.tree_at(lambda t: t.values, carry.traces, jnp.where(chosen, 0, values))

    def _made_for(self, links: Links) -> tuple:
        a = links.analysis
        return (*self.rule, tuple((c.number, *a.weight_is_trained(c)) for c in a.learning))

    def _taken_apart(self, model: Any, carry: Carry, x: Any) -> tuple[Links, LinkStep]:
        links = Links(Analysis(model, carry.state, x, self.train))
        expected = self._made_for(links), sizes_of(links)
        if not isinstance(carry.traces, Influences) or carry.traces.made_for != expected:
            raise ValueError(
                "carry: its traces are not those of this learner and model. Make it with this learner's init, and "
                "again where the model, its shapes or what is trained has changed."
            )
        return links, LinkStep(links)

    @compiled
    def step(self, model: Callable[..., Any], carry: Carry, x: PyTree[Array]) -> tuple[Carry, PyTree[Array]]:
        """One step of the model and of the influences; see `D_RTRL.step`."""
        x = jax.tree.map(jnp.asarray, x)
        links, step = self._taken_apart(model, carry, x)
        floating = [is_inexact(v) for v in jax.tree.leaves(x)]
        num_state = len(jax.tree.leaves(carry.state))

        def forward(params: list, state: list, old: Influences, xs: list) -> Any:
            weights = step.weights(params)
            out, new, pull, jacobians = step.run(params, state, xs, weights)
            inputs, values = jacobians()
            m = [jnp.zeros_like(state[i]) for i in links.leaves]
            n = {c.number: jnp.zeros(c.y(step.program).shape, c.y(step.program).dtype) for c in links.carriers}
            later, _ = self._advance(links, old, weights, values, inputs, m, n)
            return (new, later, out), (params, old, weights, pull, inputs, values)

        @jax.custom_vjp
        def run(params: list, state: list, old: Influences, xs: list) -> Any:
            return forward(params, state, old, xs)[0]

        def backward(residuals: Any, cts: Any) -> Any:
            params, old, weights, pull, inputs, values = residuals
            m, n, plain, by_x = pull([c for c in cts[2] if c.dtype != jax.dtypes.float0])
            _, before = self._advance(links, old, weights, values, inputs, m, n)
            dv = self._by_weights(links, weights, before, *jax.tree.map(lambda a: a[None], (inputs, n)))
            by_param = step.by_parameter(params, dv, plain)
            moved = iter(by_x)
            grads = [by_param.get(i) for i in range(len(params))]
            return grads, [None] * num_state, None, [next(moved) if f else None for f in floating]

        run.defvjp(forward, backward)
        params = jax.tree.leaves(eqx.filter(model, eqx.is_array))
        state, shape = jax.tree.flatten(carry.state)
        new, traces, out = run(params, state, carry.traces, jax.tree.leaves(x))
        later = cut(Carry(jax.tree.unflatten(shape, new), traces), model, carry, x)
        return later, jax.tree.unflatten(links.analysis.out_structure, out)

    def window(
        self, model: Callable[..., Any], carry: Carry, xs: PyTree[Array], ys: PyTree[Array], loss_fn: Callable[..., Any]
    ) -> Window:
        links, step = self._taken_apart(model, carry, jax.tree.map(lambda a: a[0], xs))
        analysis, start = links.analysis, carry.traces
        params, layout = jax.tree.flatten(eqx.filter(model, eqx.is_array))
        weights = step.weights(params)

        def one(before: tuple[list, list], now: tuple[Any, Any]) -> Any:
            state, added = before
            x, y = now
            out, new, pull, jacobians = step.run(params, state, jax.tree.leaves(x), weights)
            loss, aux, by_out = differentiate(loss_fn, analysis, out, y)
            m, n, plain, _ = pull(by_out)
            inputs, along = jacobians()
            said = signals(links, along, inputs, m, n, start.values.dtype)
            learning = tuple({c.number: part[c.number] for c in analysis.learning} for part in (inputs, n))
            return (new, [a + b for a, b in zip(added, widened(plain), strict=True)]), (loss, aux, said, *learning)

        state, shape = jax.tree.flatten(carry.state)
        begin = (state, zeros([params[i] for i in analysis.plain]))
        (state, added), (losses, aux, said, inputs, n) = jax.lax.scan(one, begin, (xs, ys))
        traces, before = window(start, weights_of(links, weights), said)
        by_param = step.by_parameter(params, self._by_weights(links, weights, before, inputs, n), added)
        grads = jax.tree.unflatten(layout, [by_param.get(i) for i in range(len(params))])
        return Window(losses, aux, grads, Carry(jax.tree.unflatten(shape, state), traces))

    def _advance(
        self, links: Links, old: Influences, weights: Any, values: list, xs: dict, m: list, n: dict
    ) -> tuple[Influences, Array]:
        said = signals(links, values, xs, m, n, old.values.dtype)
        return window(old, weights_of(links, weights), jax.tree.map(lambda a: a[None], said))

    def _by_weights(
        self,
        links: Links,
        weights: dict[int, tuple[tuple, tuple]],
        before: Array,
        xs: dict[int, Any],
        n: dict[int, Array],
    ) -> dict[int, list[Array]]:
        """Gradient of the weights of each learning call: what they influenced before, and what acts at once."""
        found, begin, total = {}, {}, 0
        for carrier in links.carriers:
            begin[carrier.number] = total
            total += sum(leaf.size for leaf in weights[carrier.number][1])
        for call in links.analysis.learning:
            op, v, _ = call.unflatten(*weights[call.number], call.x_atoms)
            signal, at = widened(n[call.number]), begin.get(call.number)
            now = [jnp.sum(signal, axis=0)] if op.is_diagonal else op.total_dw(xs[call.number], signal, widened(v))
            leaves = []
            for leaf, part in zip(jax.tree.leaves(v), jax.tree.leaves(now), strict=True):
                if at is not None:
                    part = part + before[at : at + leaf.size].reshape(leaf.shape)
                    at += leaf.size
                leaves.append(cast(part, leaf.dtype))
            found[call.number] = leaves
        return found


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
