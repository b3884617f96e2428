"""What a rule makes of a reading: hidden groups, live state, and the old state that each op reads as a constant.

Two layers, the lower one with an adaptation `b`; ops in capitals read what stands in brackets:

    z  = tanh(v - b)
    v' = 0.9 v + IN[x] + REC[z]         b' = 0.95 b + z         r' = 0.8 r + UP[tanh(v' - b')] + TOP[r]      out = r'

    old to new without an op:   v -> v'   v -> b'   b -> b'   r -> r'
    clusters:                   {v, b} and {r}, each by its first leaf: {0: 0, 1: 0, 2: 2}
    groups:                     (v, b) and (r,): all of them reach `out`
    outputs reach, in a step:   IN, REC -> v' -> UP -> r'       UP, TOP -> r'
    stops:                      IN {0, 2}   REC {0, 2}   UP {2}   TOP {2}

REC reads v and b, its own cluster, as constants: recurrence. UP reads them live, so that the derivative of r' passes to
v and b. An op acts on `b` through `v` only, and yet in the step after: D of their group is 2 x 2 at each unit.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import networkx as nx
import numpy as np

from .groups import Group, Variable, make_group
from .program import Program, is_inexact
from .reading import Reading
from .refusals import UntracedError, refuse_made_anew, refuse_unread, refuse_zero
from .through import Spread, Ways, find_ways, spread
from .types import Labels

OTHER = "anything but old state"


@dataclass(frozen=True, eq=False)
class Grouping:
    """A reading under a rule. Hidden variables go by the numbers of their state leaves.

    Attributes:
        reading: of the model.
        cluster: for each hidden variable the smallest of those that it is joined with by influence that passes no op.
        stops: for each call the clusters whose old state it reads as a constant.
        updates: for each cluster, values after which its old state counts as this step's: as the cluster `k` itself,
            and before them as `~k`. None: old state is `k` everywhere.
        live: hidden variables whose old value reaches `out`, in this step or later, by ways that are not cut.
        members: the variables of each group.
        ways: of traced op calls to hidden state through ops of fixed weights, by which their traces are carried.
        untraced: why live hidden variables are in no group, and traces are not carried through ops.
    """

    reading: Reading
    cluster: dict[int, int]
    stops: list[Labels]
    updates: dict[int, set[int]] | None
    live: set[int]
    members: list[tuple[int, ...]]
    ways: Ways
    untraced: tuple[str, ...] = ()

    @property
    def program(self) -> Program:
        """Of the reading."""
        return self.reading.program

    @cached_property
    def groups(self) -> list[Group]:
        """The hidden groups; raises where one is mixed by anything but an op."""
        return [self.group_of(m) for m in self.members]

    def group_of(self, members: tuple[int, ...]) -> Group:
        a = self.reading
        inner = {c.number for c in a.calls if any(("n", i) in a.direct.get(("y", c.number), ()) for i in members)}
        traced = [c for c in a.learning if c.number in inner and c.call.traced]
        carried = {k: [o for o, way in self.ways.items() if k in way] for k in inner}
        variables = [Variable(a.state_names[i], a.state[i], a.new[i]) for i in members]
        made = make_group(a.between, members, variables, traced + [a.calls[k] for k in sorted(inner) if carried[k]])
        through = [r._replace(call=o, via=r.call) for r in made.routes for o in carried[r.call]]
        return made._replace(routes=(*(r for r in made.routes if not carried[r.call]), *through))

    @cached_property
    def spread_shapes(self) -> Spread:
        """Shapes of what passes along `ways`."""
        given = [*self.program.inputs, *(o for c in self.reading.calls for o in c.node.outputs)]
        values = dict(zip(given, self.program.shapes(given), strict=True))
        return jax.eval_shape(lambda known: spread(self.reading, self.ways, known), values)

    @cached_property
    def depends(self) -> list[Labels]:
        """Clusters whose old state a value depends on, and `OTHER` where it depends on more than old state."""
        return dependence(self.reading, self.cluster, self.stops, self.updates)

    def check_reach(self, allow_zero: tuple[str, ...], traced: set[int] | None = None) -> None:
        """Raise for a trained leaf without gradient; warn of a plain array that acts through hidden state.

        `traced` are the op calls with a trace; None for those that are traced into groups.
        """
        a = self.reading
        refuse_made_anew(a.jaxpr)
        a.check_weights()
        read = a.program.influence({i: Labels(["x"]) for i in a.x})
        refuse_unread(a.program.shapes(a.x), any(read[o] for o in [*a.new, *a.out] if isinstance(o, int)))
        traced = {r.call for g in self.groups for r in g.routes} if traced is None else traced
        for i in a.trained:
            name, sinks = a.param_names[i], a.within_step(("p", i))
            if ("out",) not in sinks and not any(s[0] == "w" and s[1] in traced for s in sinks):
                refuse_zero(name, allow_zero, used=bool(sinks))
            hidden = {s[1] for s in a.outside_ops(i) if s[0] == "n"} & self.live
            if hidden:
                names = ", ".join(repr(a.state_names[j]) for j in sorted(hidden))
                if any(("n", j) in a.direct[("p", i)] for j in hidden):
                    way_out = "Wrap it in se.ElemWiseParam (or another op) to give it a trace."
                else:
                    way_out = (
                        "It acts through an op or a cut, after which no parameter has a trace: take it in front of "
                        "none, or use se.RTRL(), se.TBPTT or se.BPTT()."
                    )
                warnings.warn(
                    f"The plain array {name!r} acts on the hidden state {names}; only its effect within the same "
                    f"step is learned. {way_out}",
                    stacklevel=3,
                )


def group(
    reading: Reading,
    is_late_held: bool = False,
    joined: Sequence[int] = (),
    every: bool = False,
    through_ops: bool = False,
) -> Grouping:
    """Group the hidden variables of a reading.

    Args:
        reading: of the model; it stays as it is.
        is_late_held: whether every op whose output reaches hidden state reads old state of other clusters as a constant
            as well, and live only what this step has made of it.
        joined: state leaves that are members of a group, read or not, with all whose old value acts on them.
        every: whether hidden variables that only recurrent ops read are in groups as well, and those are in none whose
            units are mixed, where that is refused otherwise.
        through_ops: whether traces are carried through ops of fixed weights; unless `every`, ways by which they cannot
            be are refused.
    """
    a = reading
    cluster = _clusters(a)
    reach = [a.within_step(("y", c.number)) for c in a.calls]
    stops = [Labels(cluster[s[1]] for s in r if s[0] == "n" and s[1] in cluster) for r in reach]
    updates: dict[int, set[int]] | None = None
    late: list[Labels] = []
    if is_late_held:
        clusters, updates = set(cluster.values()), _updates(a, cluster)
        stops = [own.union((~k for k in own), (~k for k in clusters)) if own else own for own in stops]
        depends = dependence(a, cluster, stops, updates)
        read = [Labels().union(*(depends[x] for x in c.x_atoms if isinstance(x, int))) for c in a.calls]
        late = [part - stop for part, stop in zip(read, stops, strict=True)]

    def passes(i: int) -> Callable[[int], bool]:
        if is_late_held:
            return lambda c: not stops[c] or cluster[i] in late[c]
        return lambda c: cluster[i] not in stops[c]

    seen = {i for i in cluster if ("out",) in a.within_step(("h", i), passes(i))}
    live = closure(seen, {i: {j for j in cluster if ("n", i) in a.direct[("h", j)]} for i in cluster})

    def grouped(live: set[int]) -> Grouping:
        groups = components(live, {i: a.op_free(i) & live for i in live})
        members = [tuple(sorted(i for i in live if groups[i] == g)) for g in sorted(set(groups.values()))]
        for leaf in joined:
            members = _join(a, members, leaf)
        left: list[str] = []
        ways = find_ways(a, live, left if every else None) if through_ops else {}
        return Grouping(a, cluster, stops, updates, live, members, ways, tuple(left))

    return _made_of_units(grouped(set(cluster)), grouped(live)) if every else grouped(live)


def _made_of_units(wide: Grouping, narrow: Grouping) -> Grouping:
    """The groups of `wide` that act on each unit by itself, and for the others those of `narrow` that do."""
    kept: list[tuple[int, ...]] = []
    refused: dict[tuple[int, ...], str] = {}
    for grouping in (wide, narrow):
        for members in grouping.members:
            if not any(set(members) <= set(other) for other in kept):
                try:
                    grouping.group_of(members)
                    kept.append(members)
                except UntracedError as reason:
                    refused[members] = str(reason)
    traced = {i for members in kept for i in members}
    untraced = tuple(refused[members] for members in narrow.members if not traced.issuperset(members))
    return replace(wide, members=sorted(kept), untraced=(*narrow.untraced, *untraced))


def _clusters(a: Reading) -> dict[int, int]:
    """Leaves that are driven by what is trained and that reach `out`, joined by influence that passes no op."""
    leaves = [i for i, value in enumerate(a.state) if is_inexact(a.program.avals[value])]
    every = {i: a.within_step(("h", i)) for i in leaves}
    driven = {s[1] for c in a.calls for s in a.within_step(("y", c.number)) if s[0] == "n"}
    driven |= {s[1] for i in a.trained for s in a.within_step(("p", i)) if s[0] == "n"}
    driven = closure(driven, {i: {s[1] for s in every[i] if s[0] == "n"} for i in leaves})
    read = {i for i in leaves if ("out",) in every[i]}
    hidden = driven & closure(read, {i: {j for j in leaves if ("n", i) in every[j]} for i in leaves})
    for i in sorted(hidden):
        if not jax.dtypes.issubdtype(a.program.avals[a.state[i]].dtype, np.floating):
            raise UntracedError(
                f"state: the hidden variable {a.state_names[i]!r} is complex, traces are real. "
                "Split it into two leaves, its real and its imaginary part."
            )
    return components(hidden, {i: a.op_free(i) & hidden for i in hidden})


def _join(a: Reading, members: list[tuple[int, ...]], leaf: int) -> list[tuple[int, ...]]:
    """Groups with a leaf in one of them, and with it all whose old value acts on it without passing an op."""
    leaves = range(len(a.state))
    acting = {j: {i for i in leaves if ("n", j) in a.direct.get(("h", i), ())} for j in leaves}
    needed = closure({leaf}, acting)
    touched = [m for m in members if needed.intersection(m)]
    merged = tuple(sorted(needed.union(*touched)))
    return members if merged in members else sorted([*(m for m in members if m not in touched), merged])


def _updates(a: Reading, cluster: dict[int, int]) -> dict[int, set[int]]:
    """For each cluster, values on the way to its new state without an op between that know something of this step.

    Old state that passes one of them has become this step's.
    """
    nodes = [n for n in a.program.nodes if not n.is_boundary]
    known = {o for c in a.calls if not c.is_op or c.x_atoms for o in c.node.outputs}.union(a.x)
    for node in nodes:
        if any(i in known for i in node.inputs if isinstance(i, int)):
            known.update(node.outputs)
    found = {}
    for k in set(cluster.values()):
        ahead = {new for i, new in enumerate(a.new) if cluster.get(i) == k and isinstance(new, int)}
        for node in reversed(nodes):
            if ahead.intersection(node.outputs):
                ahead.update(i for i in node.inputs if isinstance(i, int))
        found[k] = ahead & known
    return found


def dependence(
    a: Reading, cluster: dict[int, int], stops: list[Labels], updates: dict[int, set[int]] | None
) -> list[Labels]:
    """For each value of a step, see `Grouping.depends`."""
    found: list[Labels] = [Labels()] * len(a.program.avals)
    for i in [*a.params, *a.x]:
        found[i] = Labels([OTHER])
    for i, k in cluster.items():
        found[a.state[i]] = Labels([k if updates is None else ~k])
    index = {c.node.outputs: c.number for c in a.calls}
    for node in a.program.nodes:
        union = Labels().union(*(found[v] for v in node.inputs if isinstance(v, int)))
        if node.is_boundary:
            union = (union - stops[index[node.outputs]]) | {OTHER}
        for o in node.outputs:
            late = [k for k, values in (updates or {}).items() if o in values and ~k in union]
            after = (union - {~k for k in late}).union(late)
            found[o] = after if hasattr(a.program.avals[o], "dtype") else Labels()
    return found


def closure(start: set[int], edges: dict[int, set[int]]) -> set[int]:
    """What edges lead to from these, and they themselves."""
    graph = nx.from_dict_of_lists(dict.fromkeys(start, ()) | edges, nx.DiGraph)
    return start.union(*(nx.descendants(graph, i) for i in start))


def components(nodes: set[int], edges: dict[int, set[int]]) -> dict[int, int]:
    """Connected components, each named by its smallest member."""
    graph = nx.from_dict_of_lists(dict.fromkeys(nodes, ()) | edges)
    return {i: min(part) for part in nx.connected_components(graph) for i in part}
