"""Data sets that come with the library. Each has a card with its source, licence and citation under `datasets/`."""

import importlib.resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._convert import from_edges
from ._graph import Graph

__all__ = ["MNIST1D", "mnist1d", "worm"]


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
        raise ValueError(f"kind: got {kind!r}; the worm has 'chemical' synapses and 'gap' junctions")
    data = _load("worm")
    names = data["name"]
    graph = from_edges(names[data[f"{kind}_pre"]], names[data[f"{kind}_post"]], data[f"{kind}_n_syn"], labels=names)
    attributes = ("role", "neurotransmitter", "sign", "x_um", "y_um", "z_um")
    return Graph(graph.connectivity, graph.weight, graph.nodes, {name: data[name] for name in attributes})


def mnist1d() -> MNIST1D:
    """MNIST-1D: ten classes of one-dimensional curves, 4,000 to train and 1,000 to test.

    Returns:
        Four numpy arrays: `x_train` (4000, 40) and `x_test` (1000, 40), float32, scaled to mean 0 and standard
        deviation 1 over all of them, no unit; `y_train` (4000,) and `y_test` (1000,), int32, the digits 0 to 9.

    Raises:
        FileNotFoundError: the installation lacks the data; likewise for `worm`.

    Example:
        >>> import sparse_etrace as se
        >>> data = se.datasets.mnist1d()
        >>> data.x_train.shape, data.y_train[:5].tolist()
        ((4000, 40), [2, 6, 4, 5, 6])

    Source:
        S. Greydanus, D. Kobak (2024), Scaling down deep learning with MNIST-1D, ICML, arXiv:2011.14439.
    """
    return MNIST1D(**_load("mnist1d"))


def _folder(name: str) -> Traversable:
    package = importlib.resources.files(__package__)
    # The build copies datasets/ into the wheel; a checkout, and an editable install of it, has it beside the package.
    for folder in (package / "_data" / name, Path(__file__).parents[1] / "datasets" / name):
        if (folder / f"{name}.npz").is_file():
            return folder
    raise FileNotFoundError(
        f"{name}.npz: neither in {package}/_data nor in a checkout's datasets/; install the library again"
    )


def _load(name: str) -> dict[str, np.ndarray]:
    with (_folder(name) / f"{name}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)
