"""Reads of state that is one step old, told apart from reads of what this step has made of it."""

from ._analysis import Analysis, closure, components
from ._program import Labels
from ._step import Step


def hold_late_reads(analysis: Analysis) -> None:
    """Let every op whose output reaches hidden state read old state of other clusters as a constant as well.

    What this step has made of it is read live; see `updates_of`. Changes `stops`, `live` and the groups of an analysis
    whose groups are not made yet.
    """
    a = analysis
    clusters = set(a.cluster.values())
    a.stops = [own.union((~k for k in own), (~k for k in clusters)) if own else own for own in a.stops]
    depends = Step(a, updates=updates_of(a))._depends
    read = [Labels().union(*(depends[x] for x in c.x_atoms if isinstance(x, int))) for c in a.calls]

    def reaches_out(i: int) -> bool:
        k = a.cluster[i]
        return ("out",) in a.within_step(("h", i), lambda c: not a.stops[c] or k in read[c] - a.stops[c])

    onward = {i: {j for j in a.cluster if ("n", i) in a.direct[("h", j)]} for i in a.cluster}
    a.live = closure({i for i in a.cluster if reaches_out(i)}, onward)
    groups = components(a.live, {i: a.op_free(i) & a.live for i in a.live})
    a._members = [tuple(sorted(i for i in a.live if groups[i] == g)) for g in sorted(set(groups.values()))]


def updates_of(analysis: Analysis) -> dict[int, set[int]]:
    """For each cluster, values on the way to its new state without an op between that know something of this step.

    Old state that passes one of them has become this step's; `Step` takes them.
    """
    a, nodes = analysis, [n for n in analysis.program.nodes if not n.is_boundary]
    known = {o for c in a.calls if not c.is_op or c.x_atoms for o in c.node.outputs}.union(a.x)
    for node in nodes:
        if any(i in known for i in node.inputs if isinstance(i, int)):
            known.update(node.outputs)
    found = {}
    for k in set(a.cluster.values()):
        ahead = {new for i, new in enumerate(a.new) if a.cluster.get(i) == k and isinstance(new, int)}
        for node in reversed(nodes):
            if ahead.intersection(node.outputs):
                ahead.update(i for i in node.inputs if isinstance(i, int))
        found[k] = ahead & known
    return found
