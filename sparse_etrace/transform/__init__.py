"""Graphs made from graphs: pure functions that keep labels and attributes aligned."""

from .batch import batch_graphs, unbatch
from .loops import add_remaining_self_loops, add_self_loops, remove_self_loops
from .merge import coalesce, to_undirected, transpose
from .neighbours import Neighbours, sample_neighbours
from .nodes import k_hop, keep_synapses, largest_component, permute, subgraph
from .normalized import normalize
from .nulls import rewire_degrees, shuffle_weights
from .origin import Origin
from .signs import FLY_SIGNS, with_signs
from .supports import chebyshev_supports, diffusion_supports

__all__ = [
    "FLY_SIGNS",
    "Neighbours",
    "Origin",
    "add_remaining_self_loops",
    "add_self_loops",
    "batch_graphs",
    "chebyshev_supports",
    "coalesce",
    "diffusion_supports",
    "k_hop",
    "keep_synapses",
    "largest_component",
    "normalize",
    "permute",
    "remove_self_loops",
    "rewire_degrees",
    "sample_neighbours",
    "shuffle_weights",
    "subgraph",
    "to_undirected",
    "transpose",
    "unbatch",
    "with_signs",
]
