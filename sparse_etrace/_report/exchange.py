"""What devices exchange, read from a compiled program, and devices to compile for that are not there."""

import functools
import math
import re
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxlib import xla_client

from .._numbers import positive

KINDS = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|collective-broadcast|ragged-all-to-all"
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({KINDS})(-start)?\(")
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
CALLED = re.compile(r"(?:body|condition|calls|to_apply|branch_computations|\w+_computation)=(\{[^}]*\}|[^,\s]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Exchange(NamedTuple):
    """A collective of a program.

    Attributes:
        kind: such as `all-gather`.
        result: type and shape of what it leaves on each device.
        times: how often it is called.
        bytes: of the result, each time.
    """

    kind: str
    result: str
    times: int
    bytes: int


def exchanges(text: str) -> tuple[Exchange, ...]:
    """The collectives of a compiled program, with how often each runs; alike ones are one.

    A branch counts as taken.

    Raises:
        NotImplementedError: one stands in a loop whose length only running tells.
    """
    calls: dict[str, list[tuple[str, int | None]]] = {}
    made: dict[str, list[tuple[str, str, int]]] = {}
    entry = here = ""
    for line in text.splitlines():
        if head := HEAD.match(line):
            here = head[1]
            calls[here], made[here] = [], []
            entry = here if line.startswith("ENTRY") else entry
        elif found := COLLECTIVE.search(line):
            made[here].append(_result(*found.groups()))
        elif here and (names := CALLED.findall(line)):
            trips = TRIPS.search(line)
            times = None if " while(" in line and not trips else int(trips[1]) if trips else 1
            calls[here] += [(name.strip("{% }"), times) for group in names for name in group.split(",")]

    total: dict[tuple[str, str, int], int] = {}

    def walk(name: str, times: int | None) -> None:
        for one in made.get(name, ()):
            if times is None:
                raise NotImplementedError(
                    f"model: expected loops of known lengths where devices exchange something, got {one[0]} of "
                    f"{one[1]} in a while_loop. Take jax.lax.scan, or no mesh."
                )
            total[one] = total.get(one, 0) + times
        for inner, count in calls.get(name, ()):
            walk(inner, None if times is None or count is None else times * count)

    walk(entry, 1)
    return tuple(Exchange(kind, result, times, size) for (kind, result, size), times in total.items())


def _result(types: str, kind: str, start: str | None) -> tuple[str, str, int]:
    arrays = ARRAY.findall(types)
    if start and kind != "all-reduce":  # what goes in, and what comes out
        arrays = arrays[len(arrays) // 2 : len(arrays) // 2 * 2]
    size = sum(math.prod(map(int, shape.split(","))) * int(bits or 8) // 8 if shape else int(bits or 8) // 8
               for _, bits, shape in arrays)  # fmt: skip
    return kind, ", ".join(f"{name}{bits}[{shape}]" for name, bits, shape in arrays), size


def as_mesh(mesh: object) -> Mesh:
    """A mesh of devices that are there, or such as only programs are compiled for: of that many, or of an abstract one.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(mesh, Mesh):
        return mesh
    if isinstance(mesh, AbstractMesh):
        return _absent(tuple(mesh.axis_sizes), tuple(mesh.axis_names))
    return _absent((positive("mesh", mesh),), ("units",))


@functools.cache
def _absent(shape: tuple[int, ...], names: tuple[str, ...]) -> Mesh:
    client: Any = xla_client.make_cpu_client(num_devices=math.prod(shape))
    return Mesh(np.array(client.devices()).reshape(shape), names)
