"""A sparse layer on several devices from a Parquet file, of which each process keeps its own rows."""

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ._blocks import check_mesh, connectivity_of, dealt, placed, sizes_of
from ._files.arrow import Chosen, choose, ids_of, numbers_of, positions_in, positions_of
from ._files.parquet import KEY, check_groups, nodes_of, sound_file
from ._files.safe import Options, Source
from ._graph.build import Policies, build_graph, check_dtype, check_weight
from ._graph.columns import GUESS, say_guesses
from ._graph.connectivity import as_indices, host_array
from ._graph.graph import Graph
from ._op.param import ETraceParam
from ._op.sharded import ShardedOp
from ._op.spmatmul import SpMatMulOp


class _File(NamedTuple):
    """A file, its columns, the first row of each group, and its units: labels, or None where columns hold positions."""

    file: pq.ParquetFile
    chosen: Chosen
    starts: list[int]
    units: int
    labels: Sequence[Hashable] | None

    def columns(self, group: int, names: Sequence[str]) -> list[np.ndarray]:
        """Of a row group; ends as positions."""
        table, ends = self.file.read_row_group(group, list(dict.fromkeys(names))), self.chosen[:2]
        return [
            self._ends(name, table[name], self.starts[group]) if name in ends else numbers_of(name, table[name])
            for name in names
        ]

    def edges(self, group: int) -> list[np.ndarray]:
        """Ends of a row group and, where there are any, weights."""
        pre, post, *weight = self.columns(group, self.chosen.names)
        dtype = np.dtype(self.chosen.policies.dtype)

        def where(k: int) -> str:
            return f"{self.name_of(pre[k], post[k])} (entry {self.starts[group] + k})"

        return [pre, post, *(check_weight(column, len(column), dtype, where) for column in weight)]

    def name_of(self, pre: int, post: int) -> str:
        """How errors call a synapse."""
        labels = range(self.units) if self.labels is None else self.labels
        return f"synapse {labels[pre]!r} -> {labels[post]!r}"

    def _ends(self, name: str, column: pa.ChunkedArray, before: int) -> np.ndarray:
        column = ids_of(name, column, False)
        if self.labels is not None:
            return positions_in(name, column, self.labels, before)
        return as_indices(name, positions_of(name, column), self.units, before)

    def groups(self, wanted: np.ndarray | None) -> Iterator[int]:
        """Row groups that may have synapses onto some of the units, by what the file says of each; None for all."""
        names = [self.file.schema.column(k).path for k in range(len(self.file.schema))]
        for group in range(self.file.num_row_groups):
            if wanted is not None and self.labels is None:
                said = self.file.metadata.row_group(group).column(names.index(self.chosen.post)).statistics
                if said is not None and said.has_min_max and not wanted[int(said.min) : int(said.max) + 1].any():
                    continue
            yield group


def read_sharded(
    path: str | os.PathLike,
    mesh: Mesh,
    *,
    nodes: int | Sequence[Hashable] | None = None,
    pre: Hashable | None = None,
    post: Hashable | None = None,
    weight: Hashable | None = GUESS,
    duplicates: str | None = None,
    deal: bool = True,
    dtype: DTypeLike = jnp.float32,
) -> tuple[ETraceParam, tuple[Hashable, ...]]:
    """A recurrent layer in blocks of receiving units, as `shard` makes it, from a Parquet file that no process holds.

    Each process reads one row group after the other and keeps the synapses onto units of its own devices. Those that
    hold none, by what the file says of their receivers, it does not read: with `deal=False` each reads only its rows of
    a file that `write_graph` wrote, of a graph that `shard` put in order.

    Args:
        path: the file; all processes must see it. Edge attributes are left out.
        mesh: its first axis parts the units, and a second one the batch.
        nodes: the ids of all units, or how many there are where ids are positions from 0; needed unless `write_graph`
            wrote the file.
        pre, post, weight, duplicates, dtype: see `read_graph`.
        deal: put the units in another order, in which blocks of as many have nearly as many synapses, as `shard` does
            with a graph; False keeps that of the file.

    Returns:
        The layer, its weights those of the file; and the label of each unit, or its position in the file.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `mesh` is no `jax.sharding.Mesh`; weights are no real numbers.
        ValueError: the file is damaged or ambiguous, is not square, does not say its nodes, or has fewer units than
            there are devices; another process could not read its rows.

    Example:
        >>> import jax, pathlib, tempfile, sparse_etrace as se
        >>> mesh = jax.make_mesh((1,), ("units",))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "worm.parquet"
        ...     se.write_graph(path, se.datasets.worm())
        ...     rec, labels = se.read_sharded(path, mesh)
        >>> inp = se.MatMulOp().param(jax.random.key(0), 2, len(labels))
        >>> cell = se.shard(se.cells.LeakyRate(len(labels), inp, rec), mesh)
    """
    mesh, dtype = check_mesh(mesh), check_dtype(dtype)
    guesses: list[str] = []
    policies = Policies("keep" if duplicates is None else duplicates, "keep", dtype)
    options = Options(pre, post, weight, None, [], policies, duplicates, guesses)
    try:
        with ExitStack() as stack:
            with _by_all():
                source = Source.of(Path(path), None)
                file = stack.enter_context(sound_file(source))
                check_groups(source, file)
                opened = _opened(source, file, options, nodes)
                found = _in_degrees(opened) if deal else None
            made = _layer(opened, mesh, found, dtype)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    say_guesses(f"read_sharded: {path}", guesses)
    return made


@contextmanager
def _by_all() -> Iterator[None]:
    """Wait for all processes, none of which goes on where one could not: it would wait for ever for what that sends."""
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = np.ravel(multihost_utils.process_allgather(np.array(error is not None)))
    if error is not None:
        raise error
    if failed.any():
        raise ValueError(
            f"path: expected rows that each process can read, got an error in process {int(np.argmax(failed))}. "
            "Its own error says why."
        )


def _opened(source: Source, file: pq.ParquetFile, options: Options, nodes: int | Sequence[Hashable] | None) -> _File:
    chosen, mark = choose(file.schema_arrow, options), (file.metadata.metadata or {}).get(KEY)
    rows = (file.metadata.row_group(k).num_rows for k in range(file.num_row_groups))
    opened = partial(_File, file, chosen, list(accumulate(rows, initial=0)))
    if mark is not None:
        said = nodes_of(source, mark)
        (units, num_post), labels = said.shape, said.sides and said.sides[1]
        if units != num_post:
            raise ValueError(f"path: expected a square graph, got one of shape {said.shape}. Shard it as a whole.")
        return opened(units, labels)
    if nodes is None or isinstance(nodes, bool):
        raise ValueError(
            "nodes: expected the ids of all units, or how many there are, as the file does not say them, got "
            f"{nodes}. Give them."
        )
    return opened(nodes, None) if isinstance(nodes, int) else opened(len(nodes), nodes)


def _layer(
    file: _File, mesh: Mesh, found: np.ndarray | None, dtype: np.dtype
) -> tuple[ETraceParam, tuple[Hashable, ...]]:
    count, axis = mesh.shape[mesh.axis_names[0]], PartitionSpec(mesh.axis_names[0])
    order, (size, _) = np.arange(file.units), sizes_of(file.units, count)
    if found is not None:
        in_degrees = np.atleast_2d(multihost_utils.process_allgather(found)).sum(0)
        order = dealt(np.append(0, np.cumsum(in_degrees)), count)
    devices = mesh.devices.reshape(count, -1)
    own = [k for k in range(count) if any(d.process_index == jax.process_index() for d in devices[k])]
    with _by_all():
        graphs = _graphs(file, order, size, own, found is not None)

    def edges(k: int) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(graphs[k].connectivity.pre), np.asarray(graphs[k].connectivity.post_ptr)

    def held(k: int) -> np.ndarray:
        return np.array([len(edges(k)[0])], np.int32)

    def weights(k: int) -> np.ndarray:
        return np.append(graphs[k].weight, np.zeros(most - len(edges(k)[0]), dtype))

    numbers = host_array("path", placed((count,), NamedSharding(mesh, axis), held))
    most, starts = int(numbers.max()), np.append(0, np.cumsum(numbers, dtype=np.int64))
    conn = connectivity_of(edges, mesh, most, file.units, size)
    first = jnp.asarray(starts, jnp.int32)
    op = ShardedOp(SpMatMulOp(conn), first, conn.digest, file.units, int(starts[-1]), False, mesh, None)
    weight = placed((most * count,), op.place(1), weights)
    labels = range(file.units) if file.labels is None else file.labels
    return ETraceParam({"weight": weight}, op), tuple(labels[k] for k in order.tolist())


def _in_degrees(file: _File) -> np.ndarray:
    """Of all units, in the row groups that this process counts."""
    found = np.zeros(file.units, np.int32)
    for group in range(jax.process_index(), file.file.num_row_groups, jax.process_count()):
        (post,) = file.columns(group, [file.chosen.post])
        found += np.bincount(post, minlength=file.units).astype(np.int32)
    return found


def _graphs(file: _File, order: np.ndarray, size: int, own: Sequence[int], deal: bool) -> dict[int, Graph]:
    """From all units onto those of each block that is needed here."""
    place = np.empty(file.units, np.int32)
    place[order] = np.arange(file.units, dtype=np.int32)
    is_own = np.isin(place // size, own)
    parts: list[list[np.ndarray]] = []
    for group in file.groups(None if deal else is_own):
        pre, post, *weight = file.edges(group)
        kept = is_own[post]
        parts.append([place[pre[kept]], place[post[kept]], *(a[kept] for a in weight)])
    empty = [np.zeros(0, np.int32)] * 2 + [np.zeros(0)] * (file.chosen.weight is not None)
    pre, post, *weight = (np.concatenate(column) for column in zip(*(parts or [empty]), strict=True))
    graphs = {}
    for k in own:
        here = post // size == k
        shape = file.units, min(size, file.units - k * size)
        given = weight[0][here] if weight else None

        def name(i: int, j: int, first: int = k * size) -> str:
            return file.name_of(order[i], order[j + first])

        ends = pre[here], post[here] - k * size
        graphs[k] = build_graph(*ends, given, shape, policies=file.chosen.policies, name=name)
    return graphs
