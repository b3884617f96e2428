"""What goes from room to room, by one name each."""

from typing import NamedTuple

import jax
import jax.extend.core as jex
from jaxtyping import Array, PyTree

Filter = PyTree | None
"""An equinox filter specification, booleans and functions; None for all that can be trained."""
Aval = jax.core.ShapedArray
"""Shape and type of a value of a jaxpr."""
Atom = int | jex.Literal
"""A value of a program by its number, or a literal."""
Labels = frozenset
"""What a value depends on, by any names."""
Like = Array | jax.ShapeDtypeStruct
"""An array, or its shape and type."""
Known = dict[int, Array]
"""Values of a program by their numbers."""
Input = PyTree[Array]
"""Input of an op; None for one without."""


class OpWeights(NamedTuple):
    """Arrays that an op call has beside its input: the op's own, and its weights `v`."""

    own: tuple[Array, ...]
    v: tuple[Array, ...]


Weights = dict[int, OpWeights]
"""Those of every op call, by its number."""
Gradients = dict[int, list[Array]]
"""Of the weights of op calls, leaf by leaf, by the number of the call."""
