"""Which columns of a table are pre, post and weight: as said by the caller, by usual names, or refused."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from .base import Options

ENDS = (
    ("pre", "post"),
    ("source", "target"),
    ("from", "to"),
    ("src", "dst"),
    ("pre_id", "post_id"),
    ("pre_root_id", "post_root_id"),
    ("pre_pt_root_id", "post_pt_root_id"),
    ("bodyid_pre", "bodyid_post"),
)
WEIGHTS = frozenset(
    "weight weights w wt strength syn_weight count counts synapses synapse_count syn_count n_syn n_synapses num_syn "
    "num_synapses".split()
)
WAY = "pass pre=, post= (and weight=): names of columns, or positions from 0 where row 1 is no header"


def usual_ends(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the columns that are called as the ends of a synapse usually are, or None; several pairs are refused."""
    found = []
    for pair in ENDS:
        places = [[name for name in names if name.lower() == usual] for usual in pair]
        if all(len(place) == 1 for place in places):
            found.append((places[0][0], places[1][0]))
    if ENDS[0] in found or len(found) == 1:
        return ENDS[0] if ENDS[0] in found else found[0]
    if found:
        raise ValueError(f"has several columns that may be the ends of a synapse, {found}; {WAY}")
    return None


def by_name(names: Sequence[str], options: Options) -> tuple[int, int, int | None] | None:
    """Return the positions of pre, post and weight, or None where no name says them."""
    for name in (options.pre, options.post, options.weight):
        if name is not None and list(names).count(name) != 1:  # type: ignore[arg-type]
            raise ValueError(f"has no single column {name!r}; its columns are {list(names)}; {WAY}")
    usual = usual_ends(names) if options.pre is None else None
    if options.pre is None and usual is None:
        return None
    if len(set(names)) < len(names):
        raise ValueError(f"has two columns of one name, {list(names)}; rename one")
    pre, post = (str(options.pre), str(options.post)) if usual is None else usual
    weight = options.weight
    if weight is None:
        possible = [name for name in names if name.lower() in WEIGHTS and name not in (pre, post)]
        if len(possible) > 1 and "weight" not in possible:
            raise ValueError(f"has several columns that may be the weight, {possible}; pass weight=")
        weight = "weight" if "weight" in possible else possible[0] if possible else None
    if len({pre, post, weight}) < 3:
        raise ValueError(f"pre, post, weight: got {[pre, post, weight]}; name different columns")
    if (usual and usual != ENDS[0]) or (options.weight is None and weight not in (None, "weight")):
        say(options, pre, post, weight)
    where = list(names).index
    return where(pre), where(post), None if weight is None else where(str(weight))


def say(options: Options, pre: Hashable, post: Hashable, weight: Hashable | None) -> None:
    """Note what was guessed, for a warning."""
    shown = "none, so 1 for all" if weight is None else repr(weight)
    way = f"pre={pre!r}, post={post!r}" + ("" if weight is None else f", weight={weight!r}")
    kind = "columns by position" if isinstance(pre, int) else "columns"
    options.guesses.append(
        f"took the {kind} {pre!r} for pre, {post!r} for post, and for weight {shown}; to say so: {way}"
    )


def say_unweighted(options: Options, weight: int | None, attrs: Mapping[str, np.ndarray]) -> None:
    """Note, for a warning, that all weights are 1 although there are columns of numbers."""
    if weight is None and any(values.dtype.kind in "iuf" for values in attrs.values()):
        options.guesses.append(
            f"found no weight, so all weights are 1; the columns {list(attrs)} became edge attributes; "
            "if one of them is the weight, pass weight="
        )
