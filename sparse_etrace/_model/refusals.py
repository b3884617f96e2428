"""Models whose parameters or input would do nothing: refused, unless that is allowed by name."""

import math
from collections.abc import Iterator, Sequence

import jax
import jax.extend.core as jex
import jax.extend.source_info_util as source_info

from .primitives import sub_jaxprs

DRAWN = "rng_uniform"  # random without a key, and without an effect


class UntracedError(ValueError):
    """What a rule can keep no trace of: units that act on each other by other ways than ops, and their like."""


def check_names(allow_zero: tuple[str, ...], names: list[str]) -> None:
    for allowed in allow_zero:
        if not any(covers(allowed, name) for name in names):
            raise ValueError(f"allow_zero: {allowed!r} is no leaf of the model. Its leaves are {', '.join(names)}.")


def covers(allowed: str, name: str) -> bool:
    """Whether a name is that of a leaf, or of a part of the model that holds it."""
    return name == allowed or name.startswith((allowed + ".", allowed + "["))


def refuse_unread(x: Sequence[jax.ShapeDtypeStruct], is_read: bool) -> None:
    """Raise for an input that no output and no new state depends on, unless it is empty."""
    shapes = [leaf.shape for leaf in x if math.prod(leaf.shape)]
    if shapes and not is_read:
        raise ValueError(
            f"x: the model does not read its input, of shape {' and '.join(map(str, shapes))}. Give it a parameter "
            "that does (`inp` of a cell), or take None as the input, here and for the steps of xs."
        )


def refuse_zero(name: str, allow_zero: tuple[str, ...], used: bool) -> None:
    """Raise for a trained leaf that can never get a gradient, unless it is allowed by name."""
    if not any(covers(allowed, name) for allowed in allow_zero):
        why = "it reaches `out` only by ways that the rule drops, or not at all" if used else "its value is never used"
        raise ValueError(
            f"model: {name!r} would never get a gradient: {why}. Remove it, leave it out with train=..., or allow it "
            f"with allow_zero=({name!r},)."
        )


def made_anew(jaxpr: jex.Jaxpr) -> Iterator[tuple[str, str]]:
    """Primitives, and where they are, whose values may be others when they run once more: of the host, or no key."""
    for eqn in jaxpr.eqns:
        inner = sub_jaxprs(eqn)
        effects = [e for e in eqn.effects if type(e).__name__ != "NamedAxisEffect"]  # of a sum over devices, say
        if eqn.primitive.name == DRAWN or (effects and eqn.outvars and not inner):
            yield eqn.primitive.name, source_info.summarize(eqn.source_info)
        # A kernel writes to memory of its own, and has no effect itself.
        for name, where in (e for one in inner for e in made_anew(one)):
            if effects or name == DRAWN:
                yield name, where or source_info.summarize(eqn.source_info)


def refuse_made_anew(jaxpr: jex.Jaxpr) -> None:
    """Raise for a step of which a rule cannot run a part once more."""
    for name, where in made_anew(jaxpr):
        raise NotImplementedError(
            "model: expected a step that says the same when a part of it runs once more for the derivatives, got "
            f"`{name}` at {where}. Make it part of x, draw with a key "
            "in the state, take jax.pure_callback for a function of its arguments, or take se.BPTT()."
        )
