"""Lists of events, of times and addresses, as frames or as sets of active units."""

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from .._numbers import positive, real
from .._op.active import Active
from .._optional import optional

Events = tuple[ArrayLike, ArrayLike]
Rows = list[tuple[np.ndarray, np.ndarray]]


def frames(
    events: Events | Sequence[Events],
    size: int,
    dt: float,
    steps: int | None = None,
    *,
    once: bool = False,
    drop: bool = False,
) -> Float[np.ndarray, "steps *sequences size"]:
    """Events of each unit in each step: `z[t, i]` counts those of `i` with `t dt <= time < (t + 1) dt`.

    Args:
        events: a tuple `(times, units)`, or a list of several sequences, which become the second axis.
        size: how many units there are.
        dt: length of a step, in what times are given in.
        steps: how many; None: so many that all events are in them.
        once: count no event of a unit in a step but the first.
        drop: leave out events after the last step, and say in a warning how many; False: they are an error.

    Returns:
        Frames, time first.

    Raises:
        TypeError: units are no whole numbers.
        ValueError: times and units differ in length or are out of range.

    Example:
        >>> import sparse_etrace as se
        >>> se.spikes.frames(([0.1, 1.5, 1.9], [2, 0, 0]), size=3, dt=1.0).tolist()
        [[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]]
    """
    rows, steps = _binned(events, size, dt, steps, once, drop)
    counted = [np.bincount(step * size + unit, minlength=steps * size).reshape(steps, size) for step, unit in rows]
    return (counted[0] if isinstance(events, tuple) else np.stack(counted, axis=1)).astype(np.float32)


def active(
    events: Events | Sequence[Events],
    size: int,
    dt: float,
    steps: int | None = None,
    *,
    capacity: int | None = None,
    once: bool = False,
    drop: bool = False,
) -> Active:
    """The active units of each step, as sets of one capacity, whose gradients are those of `frames`.

    Args:
        events, size, dt, steps, once: as of `frames`.
        capacity: room of each step; None: of the fullest.
        drop: leave out events after the last step and above the capacity, and say in a warning how many; False: they
            are an error.

    Returns:
        `Active` with `ids`, `(steps, *sequences, capacity)`.

    Raises:
        TypeError, ValueError: as of `frames`, or a step has more events than `capacity`.

    Example:
        >>> import sparse_etrace as se
        >>> se.spikes.active(([0.1, 1.5, 1.9], [2, 0, 1]), size=3, dt=1.0).ids.tolist()
        [[2, 3], [0, 1]]
    """
    rows, steps = _binned(events, size, dt, steps, once, drop)
    counts = [np.bincount(step, minlength=steps) for step, _ in rows]
    fullest = max(int(count.max(initial=0)) for count in counts)
    room = fullest if capacity is None else positive("capacity", capacity)
    if fullest > room:
        lost = sum(int(np.maximum(count - room, 0).sum()) for count in counts)
        _leave_out("capacity", f"{fullest}, that of the fullest step", f"{room}, too few for {lost} events", drop)
    ids = np.full((steps, len(rows), room), size, np.int32)
    for k, ((step, unit), count) in enumerate(zip(rows, counts, strict=True)):
        place = np.arange(len(step)) - (np.cumsum(count) - count)[step]
        kept = place < room
        ids[step[kept], k, place[kept]] = unit[kept]
    return Active(ids[:, 0] if isinstance(events, tuple) else ids, size)


def _binned(
    events: Events | Sequence[Events], size: int, dt: float, steps: int | None, once: bool, drop: bool
) -> tuple[Rows, int]:
    """For each sequence the steps and units of its events, in their order; and how many steps there are."""
    size, found, late = positive("size", size), [], 0
    if real("dt", dt) <= 0:
        raise ValueError(f"dt: expected the length of a step, above 0, got {dt}.")
    for times, units in [events] if isinstance(events, tuple) else events:
        time, unit = np.asarray(times, np.float64), np.asarray(units)
        if unit.dtype.kind not in "iu" and unit.size:
            raise TypeError(f"events: expected units that are whole numbers, got {unit.dtype}.")
        if time.ndim != 1 or time.shape != unit.shape:
            raise ValueError(f"events: expected a time for each unit, got shapes {time.shape} and {unit.shape}.")
        if not np.all((time >= 0) & np.isfinite(time)) or np.any((unit < 0) | (unit >= size)):
            bounds = [(part.min(), part.max()) for part in (time, unit)]
            raise ValueError(f"events: expected times from 0 and units from 0 to {size - 1}, got {bounds}.")
        step = np.floor(time / dt + 1e-9).astype(np.int64)
        flat = step * size + unit.astype(np.int64)
        flat = np.unique(flat) if once else np.sort(flat, kind="stable")
        found.append((flat // size, flat % size))
    most = 1 + max((int(step.max(initial=0)) for step, _ in found), default=0)
    if not found:
        raise ValueError("events: expected at least one sequence, got none.")
    steps = most if steps is None else positive("steps", steps)
    if steps < most:
        late = sum(int(np.sum(step >= steps)) for step, _ in found)
        _leave_out("steps", f"{most}, up to the last event", f"{steps}, after which there are {late} events", drop)
    return [(step[step < steps], unit[step < steps]) for step, unit in found], steps


def _leave_out(name: str, expected: str, got: str, drop: bool) -> None:
    if not drop:
        raise ValueError(f"{name}: expected {expected}, got {got}. Raise it, or leave these out with drop=True.")
    warnings.warn(f"{name}: expected {expected}, got {got}. These are left out.", UserWarning, stacklevel=4)


class EventFile(NamedTuple):
    """What a file of events holds.

    Attributes:
        events: for each sequence `(times, units)`, for `frames` and `active`.
        labels: one for each sequence; None where the file has none of that name.
    """

    events: list[tuple[np.ndarray, np.ndarray]]
    labels: np.ndarray | None


def read_events(
    path: str | PathLike,
    times: str = "spikes/times",
    units: str | Sequence[str] = "spikes/units",
    labels: str = "labels",
    shape: Sequence[int] | None = None,
) -> EventFile:
    """Read an HDF5 file of events with an array for each sequence, as those of the Heidelberg digits.

    Args:
        path: the file.
        times, units, labels: names of its data sets; of several for units, one for each axis of an address: those of
            polarity, row and column, say.
        shape: sizes of these axes; a unit's number is then `(p * rows + y) * columns + x`.

    Returns:
        `EventFile(events, labels)`.

    Raises:
        ImportError: `h5py`, which is in the extra `events`, is not installed.
        ValueError: the file has no data set of that name, or `shape` does not fit.

    Example:
        >>> import sparse_etrace as se
        >>> events, labels = se.spikes.read_events("shd_test.h5")  # doctest: +SKIP
        >>> x = se.spikes.active(events[:32], size=700, dt=0.01, steps=100, drop=True)  # doctest: +SKIP
    """
    h5py = optional("h5py", "files of events", "events")
    names = [units] if isinstance(units, str) else list(units)
    if (len(names) > 1 or shape is not None) and len(names) != len(shape or ()):
        raise ValueError(f"shape: expected a size for each of {names}, got {shape}.")
    with h5py.File(path, "r") as file:
        for name in (times, *names):
            if name not in file:
                raise ValueError(f"times, units: expected names of data sets, of {sorted(file)}, got {name!r}.")
        moments, addresses = list(file[times][:]), zip(*(file[name][:] for name in names), strict=True)
        found = np.asarray(file[labels][:]) if labels in file else None
    flat = [parts[0] if shape is None else np.ravel_multi_index(parts, shape) for parts in addresses]
    return EventFile([(np.asarray(t), np.asarray(u)) for t, u in zip(moments, flat, strict=True)], found)
