"""Data sets that do not come with the library: read from a file that the user has."""

import json
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import scipy.sparse as sp

from ._graph.connectivity import as_indices
from ._graph.graph import Graph
from ._graph.matrices import from_edges
from ._numbers import whole
from .interchange.temporal import Snapshots


class Cora(NamedTuple):
    """The citations of Cora, what the papers say and are about, and who is in which part.

    Attributes:
        graph: 2,708 papers, 10,556 synapses: each citation in both directions.
        x: which of 1,433 words a paper has, `(2708, 1433)`, float32, 0 or 1.
        y: its class, `(2708,)`, int32, 0 to 6.
        train, val, test: positions of 140, 500 and 1,000 papers.
    """

    graph: Graph
    x: np.ndarray
    y: np.ndarray
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


class Traffic(NamedTuple):
    """A week of speeds at the sensors of a city's roads.

    Attributes:
        graph: 207 sensors, labelled by their ids, and 2,833 weighted synapses, one of each sensor on itself; node
            attributes `latitude` and `longitude` (float32, degrees).
        speed: `(2016, 207)`, float32, miles an hour, every five minutes; gaps were filled at the source.
    """

    graph: Graph
    speed: np.ndarray


PYG_TEMPORAL = "from the folder dataset of the repository pytorch_geometric_temporal"
SOURCES = {
    "chickenpox": ("chickenpox.json", PYG_TEMPORAL),
    "tennis": ("twitter_tennis_rg17.json or twitter_tennis_uo17.json", PYG_TEMPORAL),
    "cora": ("cora.npz", "made from the repository planetoid, with src, dst, y, train, val, test and x in CSR"),
    "fly_brain": (
        "*[Cc]ompleteness*.csv and *[Cc]onnectivity*.parquet, one of each,",
        "from the repository Drosophila_brain_model",
    ),
    "traffic": ("metr_la_week.npz", "a week of METR-LA from the repositories DCRNN and T-GCN"),
}
Where = str | PathLike[str]


def chickenpox(path: Where, lags: int = 4) -> Snapshots:
    """Weekly cases of chickenpox in the 20 counties of Hungary over ten years, and which counties are neighbours.

    Args:
        path: the file `chickenpox.json` of PyTorch Geometric Temporal, which does not come with this library.
        lags: how many weeks before a step are its features.

    Returns:
        `Snapshots` of one graph, labelled by county, 102 synapses with each county's own: features
        `(521 - lags, 20, lags)`, the oldest week first; targets `(521 - lags, 20)`, the cases of the next week. Both
        are standardised at the source.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `lags` is no whole number.
        ValueError: it is another file, or `lags` is not 1 to 520.

    Example:
        >>> import sparse_etrace as se
        >>> data = se.datasets.chickenpox("chickenpox.json")  # doctest: +SKIP

    Source:
        B. Rozemberczki, P. Scherer, O. Kiss, R. Sarkar, T. Ferenci (2021), Chickenpox cases in Hungary: a benchmark
        dataset for spatiotemporal signal processing with graph neural networks, arXiv:2102.08100.
    """
    data = _read_json(path, "chickenpox", ("edges", "node_ids", "FX"))
    cases, labels = np.asarray(data["FX"], np.float32), sorted(data["node_ids"], key=data["node_ids"].get)
    if not 1 <= whole("lags", lags) < len(cases):
        raise ValueError(f"lags: expected 1 to {len(cases) - 1} weeks, got {lags}.")
    pre, post = np.asarray(data["edges"]).T
    graph = from_edges(pre, post, shape=(len(labels),) * 2)
    graph = Graph(graph.connectivity, graph.weight, labels)
    steps = len(cases) - lags
    return Snapshots(graph, np.stack([cases[k : k + steps] for k in range(lags)], axis=-1), cases[lags:])


def tennis(path: Where, ahead: int = 1, encoded: bool = True) -> Snapshots:
    """Who mentions whom on Twitter during a tennis tournament: a graph of 1,000 accounts that changes at each step.

    Args:
        path: the file `twitter_tennis_rg17.json` (Roland Garros 2017) or `twitter_tennis_uo17.json` of PyTorch
            Geometric Temporal, which do not come with this library.
        ahead: how many steps later the target is.
        encoded: features as 5 and 11 numbers that are 0 or 1, for classes of degree and transitivity, as in PyTorch
            Geometric Temporal; otherwise the two numbers themselves.

    Returns:
        `Snapshots` of a graph for each step, whose weights count mentions: features `(120 - ahead, 1000, 16 or 2)`;
        targets `(120 - ahead, 1000)`, `log(1 + mentions)` that an account gets. The last steps, which have no target,
        are left out; PyTorch Geometric Temporal gives them their own.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `ahead` is no whole number.
        ValueError: it is another file, or `ahead` is not 0 to 119.

    Example:
        >>> import sparse_etrace as se
        >>> data = se.datasets.tennis("twitter_tennis_rg17.json")  # doctest: +SKIP

    Source:
        F. Béres, R. Pálovics, A. Oláh, A. A. Benczúr (2018), Temporal walk based centrality metric for graph streams,
        Applied Network Science 3:32.
    """
    data = _read_json(path, "tennis", ("time_periods", "0"))
    every = [data[str(k)] for k in range(data["time_periods"])]
    if not 0 <= whole("ahead", ahead) < len(every):
        raise ValueError(f"ahead: expected 0 to {len(every) - 1} steps, got {ahead}.")
    features = np.array([step["X"] for step in every], np.float64)
    if encoded:
        degree = np.minimum(np.ceil(np.log1p(features[..., 0])), 4).astype(int)
        transitivity = np.floor(features[..., 1] * 10).astype(int)
        features = np.concatenate([np.eye(5)[degree], np.eye(11)[transitivity]], axis=-1)
    steps, size = len(every) - ahead, features.shape[1]
    graphs = []
    for step in every[:steps]:
        pre, post = np.asarray(step["edges"]).reshape(-1, 2).T
        graphs.append(from_edges(pre, post, step["weights"], (size, size)))
    mentions = np.array([step["y"] for step in every[ahead:]], np.float32)
    return Snapshots(tuple(graphs), features[:steps].astype(np.float32), np.log1p(mentions))


def cora(path: Where) -> Cora:
    """Cora: 2,708 papers on machine learning, their words, their seven classes, and who cites whom.

    Args:
        path: a file `cora.npz`, which does not come with this library: arrays `src`, `dst` (each citation once), `y`,
            `train`, `val`, `test`, and the words as `x_indptr`, `x_indices`, `x_shape` of a CSR matrix of ones.

    Returns:
        A `Cora`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.

    Example:
        >>> import sparse_etrace as se
        >>> data = se.datasets.cora("cora.npz")  # doctest: +SKIP

    Source:
        P. Sen, G. Namata, M. Bilgic, L. Getoor, B. Gallagher, T. Eliassi-Rad (2008), Collective classification in
        network data, AI Magazine 29(3):93-106; the split: Z. Yang, W. Cohen, R. Salakhutdinov (2016), ICML.
    """
    names = ("src", "dst", "y", "train", "val", "test", "x_indptr", "x_indices", "x_shape")
    data = _read_npz(path, "cora", names)
    indices = data["x_indices"]
    words = sp.csr_array((np.ones(indices.size, np.float32), indices, data["x_indptr"]), shape=tuple(data["x_shape"]))
    ends = np.concatenate([data["src"], data["dst"]]), np.concatenate([data["dst"], data["src"]])
    graph = from_edges(*ends, shape=(words.shape[0],) * 2)
    return Cora(graph, words.toarray(), data["y"].astype(np.int32), *(data[name] for name in ("train", "val", "test")))


def traffic(path: Where) -> Traffic:
    """METR-LA: a week of speeds at 207 sensors on the roads of Los Angeles, and how near these are by road.

    Args:
        path: a file `metr_la_week.npz`, which does not come with this library: arrays `src`, `dst`, `w` (weighted
            edges), `speed`, `sensor_id` and `latlon`.

    Returns:
        A `Traffic`; `se.SnapshotStream.ahead(data.speed[..., None], (3, 6, 12))` asks for 15, 30 and 60 minutes later.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.

    Example:
        >>> import sparse_etrace as se
        >>> data = se.datasets.traffic("metr_la_week.npz")  # doctest: +SKIP

    Source:
        H. V. Jagadish and others (2014), Big data and its technical challenges, Communications of the ACM 57(7):86-94;
        Y. Li, R. Yu, C. Shahabi, Y. Liu (2018), Diffusion convolutional recurrent neural network, ICLR.
    """
    data = _read_npz(path, "traffic", ("src", "dst", "w", "speed", "sensor_id", "latlon"))
    speed = data["speed"].astype(np.float32)
    graph = from_edges(data["src"], data["dst"], data["w"], (speed.shape[1],) * 2)
    place = dict(zip(("latitude", "longitude"), data["latlon"].T, strict=True))
    return Traffic(Graph(graph.connectivity, graph.weight, data["sensor_id"], place), speed)


def fly_brain(path: Where) -> Graph:
    """The whole brain of an adult fly as the published model reads it: neurons, pairs with counts of synapses, signs.

    Args:
        path: the folder with a table of neurons, `Completeness_783.csv`, whose first column are their ids, and one of
            pairs, `Connectivity_783.parquet`, with the columns `Presynaptic_ID`, `Postsynaptic_ID`,
            `Presynaptic_Index`, `Postsynaptic_Index` and `Excitatory x Connectivity`; of any version. They do not come
            with this library.

    Returns:
        The graph, in version 783 of 138,639 neurons and 15,091,983 pairs, labelled by id, in the order of the table;
        its weights are counts of synapses, below 0 from inhibitory neurons.

    Raises:
        FileNotFoundError: there is no such folder, or not one file of each kind in it.
        ValueError: a column is missing or has others than whole numbers, or the two tables are of different versions.

    Example:
        >>> import sparse_etrace as se
        >>> graph = se.datasets.fly_brain("Drosophila_brain_model")  # doctest: +SKIP

    Source:
        P. K. Shiu, G. R. Sterne, N. Spiller and others (2024), A Drosophila computational brain model reveals
        sensorimotor processing, Nature 634:210-219; S. Dorkenwald and others (2024), Neuronal wiring diagram of an
        adult brain, Nature 634:124-138.
    """
    table, pairs = (_one_of(path, pattern) for pattern in ("*[Cc]ompleteness*.csv", "*[Cc]onnectivity*.parquet"))
    names = [f"{side}synaptic_{what}" for what in ("Index", "ID") for side in ("Pre", "Post")]
    parts: list[tuple[np.ndarray, ...]] = []
    is_one = True
    try:
        ids = csv.read_csv(table).column(0).cast(pa.int64()).to_numpy()
        with pq.ParquetFile(pairs) as file:
            for rows in file.iter_batches(2**20, columns=[*names, "Excitatory x Connectivity"]):
                pre, post, *named, weight = (rows.column(k).to_numpy() for k in (*names, "Excitatory x Connectivity"))
                is_one &= bool(np.all((ids[pre] == named[0]) & (ids[post] == named[1])))
                if not np.all(weight % 1 == 0):
                    raise ValueError("weight: expected whole numbers, got fractions. Give counts of synapses.")
                ends = [as_indices(name, at, ids.size) for name, at in (("pre", pre), ("post", post))]
                parts.append((*ends, weight.astype(np.float32)))
        starts, stops, weight = map(np.concatenate, zip(*parts, strict=True))
        del parts
        graph = from_edges(starts, stops, weight, (ids.size,) * 2)
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"path: expected {' '.join(SOURCES['fly_brain'])}, got {path} ({error}).") from error
    if not is_one:
        raise ValueError(
            f"path: expected tables of one version, got {pairs.name}, whose indices and ids name different neurons of "
            f"{table.name}. Put two that belong together into a folder."
        )
    return Graph(graph.connectivity, graph.weight, ids)


def _one_of(path: Where, pattern: str) -> Path:
    files = sorted(Path(path).glob(pattern))
    if len(files) != 1:
        file, source = SOURCES["fly_brain"]
        raise FileNotFoundError(
            f"path: expected a folder with {file} {source}, which do not come with this library, got {path} with "
            f"{', '.join(f.name for f in files) or f'no {pattern}'}. Put one of each into a folder of their own."
        )
    return files[0]


def _read_json(path: Where, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        data = json.loads(_found(path, name).read_text(encoding="utf-8"))
    except ValueError:
        data = None
    return _checked(path, name, data if isinstance(data, dict) else {}, keys)


def _read_npz(path: Where, name: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with _found(path, name).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            data = dict(arrays)
    except (ValueError, TypeError, EOFError, BadZipFile):
        data = {}
    return _checked(path, name, data, keys)


def _found(path: Where, name: str) -> Path:
    if not Path(path).is_file():
        file, source = SOURCES[name]
        raise FileNotFoundError(
            f"path: expected the file {file}, {source}, which does not come with this library, got {path}, where "
            "there is none. Get it there and say where it is."
        )
    return Path(path)


def _checked(path: Where, name: str, data: dict, keys: tuple[str, ...]) -> dict:
    if not set(keys) <= set(data):
        file, source = SOURCES[name]
        raise ValueError(
            f"path: expected the file {file}, {source}, with {', '.join(keys)}, got {path} with "
            f"{', '.join(map(str, list(data)[:9])) or 'none of them'}."
        )
    return data
