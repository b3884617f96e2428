"""What of the way back in time a rule leaves out on a model, in words."""

from collections.abc import Iterable

from .._model.call import Call
from .._model.grouping import Grouping, closure
from .._model.through import find_ways


def untraced_recurrence(grouping: Grouping) -> list[Call]:
    """Trained op calls that pass hidden state on to hidden state, where none of them has a trace."""
    a, traced = grouping.reading, {r.call for g in grouping.groups for r in g.routes}

    def reads_state(c: Call) -> bool:
        return any(("x", c.number) in a.within_step(("h", i)) for i in grouping.cluster)

    found = [c for c in a.learning if c.call.traced and grouping.stops[c.number] and reads_state(c)]
    return [] if any(c.number in traced for c in found) else found


def without_memory(grouping: Grouping, calls: list[Call]) -> list[Call]:
    """Those that drive hidden state without another op between, whose own memory is what lacks."""
    return [c for c in calls if any(s[0] == "n" for s in grouping.reading.direct[("y", c.number)])]


def one_step_only(grouping: Grouping, calls: list[Call]) -> str:
    """That a rule with traces learns a recurrent layer from the same step only, and why."""
    if driving := without_memory(grouping, calls):
        why = f"what the op called at {_places(driving)} drives has no memory of its own, from its old value to the new"
        way_out = "Give the units a leak"
    else:
        why = f"what the op called at {_places(calls)} puts out reaches hidden state only through another op"
        way_out = "Let the op that learns come last (spread, then multiply)"
        if not {c.number for c in calls}.isdisjoint(find_ways(grouping.reading, grouping.live, [])):
            way_out += ", take se.D_RTRL(through_ops=True)"
    return (
        f"No recurrent parameter has a trace: {why}. The rule learns from the same step only, as backpropagation "
        f"truncated after one step does. {way_out}, or use se.SnAp(2), se.RTRL() or se.TBPTT."
    )


def memory_elsewhere(grouping: Grouping) -> list[str]:
    """Hidden variables after an op whose own memory no trace follows, and which leads nowhere back."""
    a, cluster, found = grouping.reading, set(grouping.cluster), []
    later = {i: {s[1] for s in a.within_step(("h", i)) if s[0] == "n"} & cluster for i in cluster}
    for j in sorted(grouping.cluster):
        back = closure({j}, later)
        keeps = ("n", j) in a.direct.get(("h", j), ())
        sources = [
            i
            for group in grouping.groups
            if group.routes and j not in group.variables and not back.intersection(group.variables)
            for i in group.variables
            if ("n", j) in a.within_step(("h", i))
        ]
        if keeps and sources:
            found.append(
                f"{_names(grouping, [j])} remembers what an op reads of {_names(grouping, sources)}; the learning "
                "signal that comes back by this memory is dropped. Put it into the unit in front of the op, or use "
                "se.SnAp(2)."
            )
    return found


def cuts_after(grouping: Grouping, call: Call) -> list[Call]:
    """Cuts on the way of what an op call influences, now or later, to hidden state."""
    a = grouping.reading
    later = {i: {s[1] for s in a.within_step(("h", i)) if s[0] == "n"} for i in range(len(a.state))}
    own = {s[1] for s in a.within_step(("y", call.number)) if s[0] == "n"}
    sources = [("y", call.number), *(("h", i) for i in closure(own, later))]
    cuts = [c for c in a.calls if not c.is_op and grouping.stops[c.number]]
    return [c for c in cuts if any(("x", c.number) in a.within_step(s) for s in sources)]


def ends_at(cuts: list[Call]) -> str:
    """That influences end at cuts."""
    return f"Influences end at se.cut, called at {_places(cuts)}, so that the gradient is truncated there."


def _places(calls: Iterable[Call]) -> str:
    return " and ".join(dict.fromkeys(c.node.where for c in calls))


def _names(grouping: Grouping, leaves: Iterable[int]) -> str:
    return ", ".join(repr(grouping.reading.state_names[i]) for i in leaves)
