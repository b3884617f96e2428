"""Which columns of a table are pre, post and weight: as said by the caller, by usual names, or refused."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from .._graph.build import Policies
from .._graph.columns import weight_name
from .safe import Options

ENDS = (
    ("pre", "post"),
    ("source", "target"),
    ("from", "to"),
    ("src", "dst"),
    ("origin", "target"),
    ("pre_id", "post_id"),
    ("pre_root_id", "post_root_id"),
    ("pre_pt_root_id", "post_pt_root_id"),
    ("bodyid_pre", "bodyid_post"),
    ("body_pre", "body_post"),
    ("presynaptic_id", "postsynaptic_id"),
    ("presynaptic_index", "postsynaptic_index"),
)
# Tables of reconstructed cells have a row for each synapse, or for each part of the brain where two cells meet.
CELLS = ENDS[ENDS.index(("pre_root_id", "post_root_id")) :]
PARTS = ("neuropil", "roi")
WAY = "Pass pre=, post= (and weight=): names of columns, or positions from 0 where row 1 is no header."


def usual_ends(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the columns that are called as the ends of a synapse usually are, or None; several pairs are refused."""
    found = []
    for pair in ENDS:
        places = [[name for name in names if name.lower() == usual] for usual in pair]
        if all(len(place) == 1 for place in places):
            found.append((places[0][0], places[1][0]))
    if len(found) == 2 and [pair[0].lower() for pair in found] == [pair[0] for pair in ENDS[-2:]]:
        found.pop()
    if ENDS[0] in found or len(found) == 1:
        return ENDS[0] if ENDS[0] in found else found[0]
    if found:
        raise ValueError(f"expected one pair of columns that may be the ends of a synapse, got {found}. {WAY}")
    return None


def both_or_none(options: Options) -> None:
    """Refuse one end without the other."""
    if (options.pre is None) != (options.post is None):
        raise ValueError(f"pre and post: expected both or none, got {options.pre!r} and {options.post!r}. Name both.")


def ends_by_name(names: Sequence[str], options: Options) -> tuple[int, int] | None:
    """Return the positions of pre and post, or None where no name says them."""
    both_or_none(options)
    for name in (options.pre, options.post):
        if name is not None and list(names).count(name) != 1:  # type: ignore[arg-type]
            raise ValueError(f"expected a single column {name!r}, got {list(names)}. {WAY}")
    usual = usual_ends(names) if options.pre is None else None
    if options.pre is None and usual is None:
        return None
    if len(set(names)) < len(names):
        raise ValueError(f"expected columns of different names, got {list(names)}. Rename one.")
    pre, post = (str(options.pre), str(options.post)) if usual is None else usual
    if len({pre, post, options.weight}) < 3:
        raise ValueError(
            f"pre, post, weight: expected different columns, got {[pre, post, options.weight]}. Name each once."
        )
    if usual and usual != ENDS[0]:
        options.guesses.append(
            f"took the columns {pre!r} for pre and {post!r} for post (to say so: pre={pre!r}, post={post!r})"
        )
    where = list(names).index
    return where(pre), where(post)


def the_rest(
    names: list[str], ends: tuple[int, int], weight: Hashable | None, options: Options, is_number: Callable[[int], bool]
) -> tuple[int | None, list[int], Policies]:
    """Return the positions of the weight, if there is one, and of the edge attributes to keep, and what to sum.

    Unless the caller says what to do about parallel synapses, rows of the same two cells are parts of one connection:
    their weights are summed, and what belongs to parts is no attribute.
    """
    where = {name: k for k, name in enumerate(names) if k not in ends}
    found = weight_name(weight, where, lambda name: is_number(where[name]), options.guesses)
    kept, policies = options.kept([name for name in where if name != found]), options.policies
    parts = [name for name in where if name.lower() in PARTS]
    if options.duplicates is None and (parts or tuple(names[k].lower() for k in ends) in CELLS):
        policies = replace(policies, duplicates="sum", notes=options.guesses, drops_attrs=options.edge_attrs is None)
        lost = kept if found is None else [name for name in kept if name in parts]
        if lost and options.edge_attrs is None:
            kept = [name for name in kept if name not in lost]
            options.guesses.append(f"took rows for parts of a connection, without {lost} (to keep: edge_attrs={lost})")
    return None if found is None else where[found], [where[name] for name in kept], policies
