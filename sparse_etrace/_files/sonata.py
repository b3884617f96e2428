"""SONATA: one population of edges in HDF5, its attributes in its one group. It is read, not written.

K. Dai et al. (2020), The SONATA data format for efficient description of large-scale network models, PLoS Comput Biol.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from .._graph.build import build_graph
from .._graph.columns import strings
from .._graph.graph import Graph
from .._optional import optional
from .columns import the_rest
from .safe import Options, Source, damaged, sound

if TYPE_CHECKING:
    import h5py

ENDS = ("source_node_id", "target_node_id")


def read(source: Source, options: Options) -> Graph:
    """Read one population; nodes are numbered from 0, in one set where both ends name one population of nodes."""
    options.refuse("SONATA has no separator", "separator")
    h5py = optional("h5py", "files of SONATA", "sonata")
    unsound = OSError, KeyError, RuntimeError, AttributeError, IndexError
    with sound("a sound file of edges", *unsound), h5py.File(source.path, "r") as file:
        return _read(source, file, options)


def _read(source: Source, file: "h5py.File", options: Options) -> Graph:
    edges = file["edges"]
    population = edges[_population(list(edges), options)]
    columns = {name: population[name] for name in (*ENDS, "edge_type_id") if name in population}
    groups = [name for name in population if name.isdecimal()]
    place = None
    if len(groups) == 1:
        columns |= {name: x for name, x in population[groups[0]].items() if getattr(x, "ndim", 0) == 1}
        place = _values(source, population["edge_group_index"])
    elif groups:
        options.guesses.append(f"left out the attributes of its {len(groups)} groups of edges")
    names = list(columns)
    weight, kept, policies = the_rest(
        names, (0, 1), options.weight, options, lambda k: columns[names[k]].dtype.kind in "iuf"
    )

    def value(name: str) -> np.ndarray:
        found = _values(source, columns[name])
        return found if place is None or name == "edge_type_id" else found[place]

    pre, post = (_values(source, columns[name]) for name in ENDS)
    sets = [columns[name].attrs.get("node_population") for name in ENDS]
    sizes = _size(population, "source_to_target", pre), _size(population, "target_to_source", post)
    shape = (max(sizes), max(sizes)) if sets[0] == sets[1] else sizes
    if sets[0] != sets[1] and sizes[0] == sizes[1]:
        raise ValueError(
            f"expected populations of different sizes where there are two, as equal ones are one set of nodes, got "
            f"{sets} of {sizes}. Read it with h5py, and give the receivers other ids in `from_edges`."
        )
    source.check_units(*shape)
    attrs = {names[k]: value(names[k]) for k in kept}
    weights = None if weight is None else value(names[weight])
    return build_graph(pre, post, weights, shape, None, None, attrs, policies=policies)


def _population(names: list[str], options: Options) -> str:
    """Return the one population of edges, or the one whose columns the caller names."""
    given = [f"{name}/{end}" for name in names for end in ENDS]
    if options.pre is None and options.post is None and len(names) == 1:
        return names[0]
    for name in names:
        if (options.pre, options.post) == (f"{name}/{ENDS[0]}", f"{name}/{ENDS[1]}"):
            return name
    raise ValueError(
        f"pre and post: expected the two columns of one population, of {given}, got {options.pre!r} and "
        f"{options.post!r}. Name both."
    )


def _values(source: Source, dataset: Any) -> np.ndarray:
    """Return a column that lies in this file, text as strings."""
    if dataset.external or dataset.is_virtual or dataset.file.filename != str(source.path):
        damaged("data in the file itself", f"the column {dataset.name!r} of another")
    source.check_size(dataset.size * dataset.dtype.itemsize)
    return strings(dataset.asstr()[:].tolist()) if dataset.dtype.kind in "OS" else dataset[:]


def _size(population: "h5py.Group", way: str, ids: np.ndarray) -> int:
    """Return how many nodes an index of the file has, or the largest id needs."""
    least = int(ids.max()) + 1 if ids.size else 0
    index = population.get(f"indices/{way}/node_id_to_range")
    return least if index is None else max(least, index.shape[0])
