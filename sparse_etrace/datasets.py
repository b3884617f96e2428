"""Data sets that come with the library, each with a card under `datasets/`; and some that are read from a path."""

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Array

from ._arrays import on_device
from ._graph.connectivity import MAX_INDEX, Connectivity, canonical_order, expand_ptr
from ._graph.graph import Graph
from ._graph.matrices import from_edges
from ._numbers import whole
from ._outside import Cora, Traffic, chickenpox, cora, fly_brain, tennis, traffic

__all__ = [
    "Cora",
    "MNIST1D",
    "Traffic",
    "chickenpox",
    "cora",
    "fly_brain",
    "fly_eye",
    "mnist1d",
    "mushroom_body",
    "tennis",
    "traffic",
    "worm",
]


class MNIST1D(NamedTuple):
    """MNIST-1D: 4,000 training and 1,000 test sequences of 40 steps, and their digits."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def worm(kind: str = "chemical") -> Graph:
    """The nervous system of C. elegans: 279 neurons and their chemical synapses or gap junctions.

    A synapse of the graph is a directed pair of neurons, its weight the number of synapses of that pair. There are
    2,194 chemical pairs (6,394 synapses), and 1,031 rows of gap junctions, which hold every pair in both directions.

    The node attribute `sign` is a convention, not a measurement: -1 where the neurotransmitter contains GABA (26
    neurons), +1 everywhere else, also for the 54 neurons without a known transmitter.

    Args:
        kind: `"chemical"` or `"gap"`.

    Returns:
        A graph whose nodes are the neurons' names, with the node attributes `role`, `neurotransmitter` (several joined
        by `|`, empty where unknown), `sign` (int8) and `x_um`, `y_um`, `z_um` (float32): the position of the cell body
        in micrometres, right to left, head to tail and ventral to dorsal.

    Raises:
        ValueError: `kind` is something else.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.datasets.worm()
        >>> graph.connectivity.shape, graph.connectivity.num_synapses, int(graph.weight.sum())
        ((279, 279), 2194, 6394)
        >>> graph.node_attrs["role"][graph.index_of("AVAL")].item()
        'interneuron'

    Source:
        L. R. Varshney, B. L. Chen, E. Paniagua, D. H. Hall, D. B. Chklovskii (2011), Structural properties of the
        Caenorhabditis elegans neuronal network, PLoS Computational Biology 7:e1001066.
    """
    if kind not in ("chemical", "gap"):
        raise ValueError(f"kind: expected 'chemical' for synapses or 'gap' for junctions, got {kind!r}.")
    data = _load("worm")
    names = data["name"]
    graph = from_edges(names[data[f"{kind}_pre"]], names[data[f"{kind}_post"]], data[f"{kind}_n_syn"], labels=names)
    attributes = ("role", "neurotransmitter", "sign", "x_um", "y_um", "z_um")
    return Graph(graph.connectivity, graph.weight, graph.nodes, {name: data[name] for name in attributes})


def fly_eye(radius: SupportsIndex = 15, measured_only: bool = False) -> Graph:
    """The visual system of the fly: 65 cell types on hexagonal columns, one measured column repeated over an eye.

    The columns are the integers `(u, v)` with `max(|u|, |v|, |u + v|) <= radius`. Each holds one neuron of every type,
    except that Lawf1 and Lawf2 need a `u` divisible by 3 and a `v` divisible by 2. A table of 2,378 offsets says that
    type `p` at `(u, v)` makes `n_syn` synapses of one sign on type `q` at `(u + du, v + dv)`, wherever both exist. All
    columns are alike, and the graph is not the connectome of one individual.

    A synapse of the graph is a directed pair of neurons, its weight `sign * n_syn`: the mean count of the pair, and the
    sign that the source assigns to the two types. The radii 15, 31 and 47 have 45,669, 188,533 and 428,657 neurons,
    1,513,231, 6,428,506 and 14,751,078 synapses.

    Args:
        radius: columns from the centre to the edge, an integer; 0 is one column, 15 the 721 columns of the source.
        measured_only: leave out the 238 offsets that lie inside the hull of the measured ones but were not measured;
            the source gives them a count of 1. All synapses of a neuron on itself are among them.

    Returns:
        A graph whose nodes are labelled by position: sorted by type, then `u`, then `v`. Its node attributes are
        `cell_type`, `u` and `v` (int32, in columns), `is_input` (the photoreceptors R1 to R8) and `is_output`.

    Raises:
        TypeError: `radius` is no integer.
        ValueError: `radius` is negative, or so large that int32 may not count the synapses.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.datasets.fly_eye(radius=2)
        >>> graph.connectivity.shape, graph.connectivity.num_synapses
        ((1203, 1203), 28904)
        >>> (graph.node_attrs["cell_type"] == "R1").sum().item()
        19

    Source:
        J. K. Lappalainen, F. D. Tschopp, S. Prakhya, M. McGill, A. Nern, K. Shinomiya, S. Takemura, E. Gruntman,
        J. H. Macke, S. C. Turaga (2024), Connectome-constrained networks predict neural activity across the fly visual
        system, Nature 634:1132-1140.
    """
    data = _load("fly_eye")
    size = _check_radius(radius, data["pre"].size)
    cell_type, u, v = _eye_neurons(data, size)
    connectivity, weight = _eye_synapses(data, cell_type, u, v, measured_only)
    attributes = {"cell_type": data["name"], "is_input": data["is_input"], "is_output": data["is_output"]}
    attributes = {name: of_type[cell_type] for name, of_type in attributes.items()}
    return Graph(connectivity, weight, node_attrs=attributes | {"u": u, "v": v})


def mushroom_body(side: str = "left") -> Graph:
    """The mushroom body of a fly's larva, where it learns which odours to seek: 209 or 213 neurons of four types.

    Projection neurons bring odours to Kenyon cells; Kenyon cells reach each other, output neurons and input neurons;
    input neurons bring reinforcement. A synapse of the graph is a directed pair of neurons, its weight the number of
    synapses of that pair: 7,425 pairs (25,322 synapses) left, 7,536 (26,371) right. The source has no signs.

    Args:
        side: `"left"` or `"right"`, of one animal.

    Returns:
        A graph whose nodes are labelled by position, with the node attribute `cell_type`: `"Kenyon cell"`,
        `"projection neuron"`, `"output neuron"` or `"input neuron"`.

    Raises:
        ValueError: `side` is something else.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.datasets.mushroom_body()
        >>> graph.connectivity.shape, graph.connectivity.num_synapses, int(graph.weight.sum())
        ((209, 209), 7425, 25322)
        >>> (graph.node_attrs["cell_type"] == "Kenyon cell").sum().item()
        101

    Source:
        K. Eichler, F. Li, A. Litwin-Kumar and others (2017), The complete connectome of a learning and memory centre in
        an insect brain, Nature 548:175-182.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side: expected 'left' or 'right', got {side!r}.")
    data = _load("mushroom_body")
    cell_type, pre, post, n_syn = (data[f"{side}_{name}"] for name in ("cell_type", "pre", "post", "n_syn"))
    graph = from_edges(pre, post, n_syn, shape=(cell_type.size, cell_type.size))
    return Graph(graph.connectivity, graph.weight, node_attrs={"cell_type": cell_type})


def mnist1d() -> MNIST1D:
    """MNIST-1D: ten classes of one-dimensional curves, 4,000 to train and 1,000 to test.

    Returns:
        Four numpy arrays: `x_train` (4000, 40) and `x_test` (1000, 40), float32, scaled to mean 0 and standard
        deviation 1 over all of them, no unit; `y_train` (4000,) and `y_test` (1000,), int32, the digits 0 to 9.

    Raises:
        FileNotFoundError: the installation lacks the data; likewise for the others.

    Example:
        >>> import sparse_etrace as se
        >>> data = se.datasets.mnist1d()
        >>> data.x_train.shape, data.y_train[:5].tolist()
        ((4000, 40), [2, 6, 4, 5, 6])

    Source:
        S. Greydanus, D. Kobak (2024), Scaling down deep learning with MNIST-1D, ICML, arXiv:2011.14439.
    """
    return MNIST1D(**_load("mnist1d"))


def _check_radius(radius: SupportsIndex, num_offsets: int) -> int:
    size = whole("radius", radius)
    if size < 0:
        raise ValueError(f"radius: expected 0, a single column, or more, got {size}.")
    most = (3 * size * (size + 1) + 1) * num_offsets
    if most > MAX_INDEX:
        raise ValueError(
            f"radius: expected at most {MAX_INDEX} synapses, as int32 counts no more, got {size} with up "
            f"to {most}. Choose a smaller one."
        )
    return size


def _eye_neurons(data: dict[str, np.ndarray], radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the type and the column of each neuron."""
    axis = np.arange(-radius, radius + 1, dtype=np.int32)
    u, v = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    inside = np.abs(u + v) <= radius
    exists = inside & (u % data["stride_u"][:, None] == 0) & (v % data["stride_v"][:, None] == 0)
    cell_type, column = np.nonzero(exists)
    return cell_type, u[column], v[column]


def _eye_synapses(
    data: dict[str, np.ndarray], cell_type: np.ndarray, u: np.ndarray, v: np.ndarray, measured_only: bool
) -> tuple[Connectivity, Array]:
    du, dv, num_types, num_neurons = data["du"], data["dv"], data["name"].size, cell_type.size
    # Which neuron each type has in each column, or -1; no offset leaves the margin.
    centre = u.max() + np.abs([du, dv]).max()
    neuron = np.full((num_types, 2 * centre + 1, 2 * centre + 1), -1, np.int32)
    neuron[cell_type, u + centre, v + centre] = np.arange(num_neurons, dtype=np.int32)
    chosen = data["measured"] | (not measured_only)
    # Room for synapses from outside the eye, too: memory that is never written is never taken.
    room = np.bincount(cell_type)[data["post"][chosen]].sum()
    pre, weight, degree = np.empty(room, np.int32), np.empty(room, np.float32), np.zeros(num_neurons + 1, np.int32)
    end = 0
    for post_type in range(num_types):
        k, post = np.flatnonzero(chosen & (data["post"] == post_type)), np.flatnonzero(cell_type == post_type)
        senders = neuron[data["pre"][k], u[post, None] - du[k] + centre, v[post, None] - dv[k] + centre]
        exists = senders >= 0
        degree[post + 1] = exists.sum(axis=1)
        start, end = end, end + exists.sum()
        pre[start:end] = senders[exists]
        weight[start:end] = np.broadcast_to(data["sign"][k] * data["n_syn"][k], exists.shape)[exists]
    shape = (num_neurons, num_neurons)
    order, connectivity = canonical_order(pre[:end], expand_ptr(degree.cumsum()), shape)
    del pre
    return connectivity, on_device(weight[order])


def _folder(name: str) -> Traversable:
    package = importlib.resources.files(__package__)
    # The build copies datasets/ into the wheel; a checkout, and an editable install of it, has it beside the package.
    for folder in (package / "_data" / name, Path(__file__).parents[1] / "datasets" / name):
        if (folder / f"{name}.npz").is_file():
            return folder
    raise FileNotFoundError(
        f"name: expected a file in {package}/_data or in a checkout's datasets/, got {name}.npz in "
        "neither. Install the library again."
    )


def _load(name: str) -> dict[str, np.ndarray]:
    with (_folder(name) / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
