"""Files that hold a training run: written as a whole or not at all, and read back to the same bits.

One file has all of it. Where arrays lie in several processes, each writes a file of its own with what it has of these;
then the first process replaces the one file, which names them, so that it always names a whole set.
"""

import functools
import hashlib
import json
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from .._blocks import Blocks
from .._graph.connectivity import is_here
from .._learner import Learner
from .._model.program import is_key
from .._model.trained import leaf_names, trained_filter
from .._types import Model
from .archive import arrays_of, part_of, parts_beside, together, write
from .facts import digest, facts, raw, type_name, words
from .parted import Piece, described, own, pieces, placed, relaid, spec_of, whole_of

FORMAT = "sparse_etrace checkpoint 5"


class Identity(TypedDict):
    """What of a training run stays the same, so that another one can be told by name."""

    x64: bool
    learner: str
    model: str
    constants: dict[str, str]
    facts: dict[str, dict[str, str]]
    python: tuple[str, ...]


ANEW = "Name another file to start anew."
DRAWN_ANEW = "Data that are drawn anew can come from a function data(position), which is not compared."


def _refuse(expected: str, got: str, way_out: str = ANEW) -> NoReturn:
    raise ValueError(f"checkpoint: expected {expected}, got {got}. {way_out}")


def identity(learner: Learner, model: Model, **others: object) -> Identity:
    """What of a learner, a model and others stays the same in training, so that another one can be told by name."""
    fixed = described(eqx.filter(model, jax.tree.map(lambda t: not t, trained_filter(model, learner.train))))
    arrays, rest = eqx.partition(fixed, eqx.is_array)
    digests = [digest(leaf) for leaf in jax.tree.leaves(arrays)]
    return {
        "x64": jax.config.read("jax_enable_x64"),
        "learner": words(learner),
        "model": words(rest),
        "constants": dict(zip(leaf_names(arrays), digests, strict=True)),
        "facts": {name: facts(part, name) for name, part in ({"learner": learner, "model": rest} | others).items()},
        "python": platform.python_version_tuple()[:2],
    }


def save(
    path: Path, header: Mapping[str, object], content: PyTree, table: np.ndarray, layouts: Sequence[Blocks | None]
) -> None:
    """Write the arrays of `content`, a header and a table; what is there is replaced at once, by what is whole.

    Args:
        path: the file.
        header: what JSON can say.
        content: a pytree; of arrays that other processes have a part of, each process must write its own.
        table: numbers.
        layouts: how each array lies in blocks.

    Raises:
        OSError: a file cannot be written, by this process or by another.
    """
    arrays = eqx.filter(content, eqx.is_array)
    leaves = jax.tree.leaves(arrays)
    parted = {k: leaf for k, leaf in enumerate(leaves) if not is_here(leaf)}
    about = {
        "format": FORMAT,
        "names": leaf_names(arrays),
        "types": [type_name(leaf) for leaf in leaves],
        "layouts": [blocks and [blocks.starts.tolist(), blocks.size] for blocks in layouts],
        "specs": [spec_of(leaf) for leaf in leaves],
        "meshes": sorted({str(leaf.sharding.mesh.shape) for leaf in leaves if spec_of(leaf) is not None}),
        "pieces": {k: pieces(leaf) for k, leaf in parted.items()},
        "processes": jax.process_count() if parted else 0,
        "header": header,
    }
    text = json.dumps(about)
    stamp = about["stamp"] = hashlib.sha256(text.encode()).hexdigest()[:8]
    if parted:
        mine = {piece.name(k): raw(data) for k, leaf in parted.items() for piece, data in own(leaf)}
        together(lambda: write(part_of(path, stamp, jax.process_index()), {"stamp": np.array(stamp), **mine}))

    def whole() -> None:
        numbers = {f"leaf{k:06}": raw(leaf) for k, leaf in enumerate(leaves) if k not in parted}
        write(path, {"header": np.frombuffer(json.dumps(about).encode(), np.uint8), "table": table, **numbers})
        for old in parts_beside(path):
            if not (parted and old.name.startswith(part_of(path, stamp, 0).name.removesuffix("0"))):
                old.unlink(missing_ok=True)

    if not parted:
        whole()
    else:
        together(whole if not jax.process_index() else lambda: None)


class Saved:
    """A file that `save` wrote.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, path: Path):
        self.path = path
        arrays = arrays_of(path, "Name another file, or remove it.")
        try:
            about = json.loads(arrays["header"].tobytes())
            self.format, self.header = about["format"], about["header"]
            if self.format == FORMAT:
                self._read(about, arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint: expected a whole checkpoint, got {path}. Name another file, or remove it."
            ) from error
        if self.format != FORMAT:
            _refuse(repr(FORMAT), f"{path} of {self.format!r}")
        for k in range(self.processes):
            if not part_of(path, self.stamp, k).is_file():
                raise ValueError(
                    f"checkpoint: expected the parts of {self.processes} processes beside {path}, got none of process "
                    f"{k}, {part_of(path, self.stamp, k).name}. Bring all files together, or name another file."
                )

    def _read(self, about: dict, arrays: dict[str, np.ndarray]) -> None:
        self.names, self.types = about["names"], about["types"]
        self.specs, self.meshes = about["specs"], about["meshes"]
        self.stamp, self.processes = about["stamp"], about["processes"]
        self.layouts = [found and Blocks(np.array(found[0]), found[1]) for found in about["layouts"]]
        self.pieces = {int(k): [Piece(*piece) for piece in found] for k, found in about["pieces"].items()}
        self.table = arrays["table"]
        self.leaves = {k: arrays[f"leaf{k:06}"] for k in range(len(self.types)) if k not in self.pieces}
        self._parts: dict[int, dict[str, np.ndarray]] = {}

    def check(self, identity: Identity, options: dict[str, str]) -> None:
        """Refuse, by name, a checkpoint of something else.

        Raises:
            ValueError: learner, connectivity, model or an option differs.
        """
        there = self.header["identity"]
        if there["x64"] != identity["x64"]:
            was, now = (("without", "with")[on] for on in (there["x64"], identity["x64"]))
            _refuse(f"JAX {was} 64 bits, as {self.path} was written", f"it {now}")
        if there["learner"] != identity["learner"]:
            was, now = (textwrap.shorten(words, 200) for words in (there["learner"], identity["learner"]))
            _refuse(f"the learner of {self.path}, {was}", now)
        old, new = there["constants"], identity["constants"]
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        # Whatever is derived from a connectivity differs with it.
        changed.sort(key=lambda name: "connectivity" not in name)
        if changed and "connectivity" in changed[0]:
            was, now = (found.get(changed[0], "nothing") for found in (old, new))
            _refuse(f"the connectivity of {self.path}, {changed[0]!r} as {was}", now)
        if there["model"] != identity["model"]:
            _refuse(f"the model of {self.path}", "one that is built otherwise")
        if changed:
            way_out = f"Make the model with the same key and data as before, or {ANEW.lower()}"
            _refuse(f"the model of {self.path}", f"another: {changed[0]!r}, which is not trained, differs", way_out)
        for name, value in options.items():
            if (was := self.header["options"].get(name)) != value:
                _refuse(f"{name}={was}, as in {self.path}", value)
        for name, new in identity["facts"].items():
            old = dict(there["facts"].get(name, {}))
            if there["python"] != list(identity["python"]):  # code looks different there
                old, new = ({k: v for k, v in said.items() if not k.endswith(".code")} for said in (old, new))
            odd = [k for k in {**new, **old} if old.get(k) != new.get(k)]
            odd.sort(key=lambda k: (old | new)[k].endswith(" entries"))  # which says less than what they are
            if odd:
                was, now = (textwrap.shorten(found.get(odd[0], "nothing"), 120) for found in (old, new))
                if odd[0].endswith(".code"):
                    _refuse(f"the {name} of {self.path}", f"another: {odd[0]!r} does something else")
                _refuse(f"the {name} of {self.path}, {odd[0]!r} as {was}", now)

    def check_data(self, first: dict[str, str] | None, last: dict[str, str] | None) -> dict[str, dict[str, str]]:
        """Digests of the first pair and of the last one that was trained on; refuse those of others than here.

        Raises:
            ValueError: one that is known, here and there, differs.
        """
        there = self.header["data"]
        for which, old, new in (("first", there["first"], first), ("last", there["last"], last)):
            if old and new and old != new:
                name = next(k for k in {**new, **old} if old.get(k) != new.get(k))
                got = f"others: of the {which} sequence that it has seen, {name!r} was {old.get(name)}, here it is"
                _refuse(f"the data of {self.path}", f"{got} {new.get(name)}", f"{ANEW} {DRAWN_ANEW}")
        return there

    def restore(self, template: PyTree, layouts: Sequence[Blocks | None], mesh: Mesh | None) -> PyTree:
        """The arrays, in the place of those of a pytree of the same structure.

        They lie on the devices as they lay, where the mesh is as it was, and else as those of the pytree.

        Raises:
            ValueError: the number of arrays, a shape or a type differs.
        """
        arrays, rest = eqx.partition(template, eqx.is_array)
        names, (leaves, layout) = leaf_names(arrays), jax.tree.flatten(arrays)
        if names != self.names:
            odd = sorted({*names} ^ {*self.names}) or ["their order"]
            raise ValueError(
                f"checkpoint: expected the arrays of {self.path}, got others, which differ in {odd[0]!r}. Take the "
                "optimizer that it was written with, or name another file to start anew."
            )
        is_same_mesh = mesh is not None and self.meshes == [str(mesh.shape)]
        given = zip(names, leaves, layouts, strict=True)
        found = [self._restored(k, *one, mesh if is_same_mesh else None) for k, one in enumerate(given)]
        return eqx.combine(jax.tree.unflatten(layout, found), rest)

    def _restored(self, k: int, name: str, leaf: jax.Array, new: Blocks | None, mesh: Mesh | None) -> jax.Array:
        """One array; of a mesh that is as it was, where it was there."""
        old, there = self.layouts[k], self._shape(k)
        here = (jax.random.key_data(leaf) if is_key(leaf) else leaf).shape
        moved = (old, new) if old and new and not np.array_equal(old.starts, new.starts) else None
        is_fit = there == here
        if moved:
            is_fit = there[:-1] == here[:-1] and moved[0].starts[-1] == moved[1].starts[-1]
        if self.types[k] != type_name(leaf) or not is_fit:
            raise ValueError(
                f"checkpoint: expected {name!r} as in {self.path}, {self.types[k]}{list(there)}, got "
                f"{type_name(leaf)}{list(here)}. Take the same model, batch size and optimizer."
            )
        if moved:
            return self._laid_anew(k, leaf, *moved)
        if is_key(leaf):
            data = jnp.asarray(self._region(k, whole_of(here)))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        place: Any = None if mesh is None or self.specs[k] is None else placed(mesh, self.specs[k])
        if mesh is None and leaf.sharding.num_devices > 1:
            place = leaf.sharding

        def part(at: Any) -> np.ndarray:
            return self._region(k, whole_of(here, at)).view(leaf.dtype)

        return jnp.asarray(part(())) if place is None else jax.make_array_from_callback(here, place, part)

    def _shape(self, k: int) -> tuple[int, ...]:
        if k in self.leaves:
            return self.leaves[k].shape
        ends = [[a + n for a, n in zip(piece.start, piece.shape, strict=True)] for piece in self.pieces[k]]
        return tuple(map(max, zip(*ends, strict=True)))

    def _laid_anew(self, k: int, leaf: jax.Array, old: Blocks, new: Blocks) -> jax.Array:
        """An array in other blocks than those of the file; what fills them up is as in `leaf`."""
        data = []
        for shard in leaf.addressable_shards:
            base = np.array(raw(shard.data))
            relaid(functools.partial(self._region, k), base, whole_of(leaf.shape, shard.index), old, new)
            data.append((base.view(leaf.dtype), shard.device))
        if leaf.sharding.num_devices == 1:
            return jnp.asarray(data[0][0])  # bound to no device, as in `leaf`
        parts = [jax.device_put(*part) for part in data]
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

    def _region(self, k: int, at: tuple[slice, ...]) -> np.ndarray:
        """A part of an array, of which only those files are read that have some of it."""
        if k in self.leaves:
            return self.leaves[k][at]
        parts = []
        for piece in self.pieces[k]:
            both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(at, piece.at, strict=True)]
            if all(part.start < part.stop for part in both):
                data = self._part(piece.process)[piece.name(k)]
                parts.append((_within(both, at), data[_within(both, piece.at)]))
        found = np.empty([a.stop - a.start for a in at], parts[0][1].dtype)
        for here, values in parts:
            found[here] = values
        return found

    def _part(self, process: int) -> dict[str, np.ndarray]:
        if process not in self._parts:
            path = part_of(self.path, self.stamp, process)
            self._parts[process] = arrays_of(path, "Bring the file of that process back, or name another checkpoint.")
        return self._parts[process]


def _within(part: Sequence[slice], whole: Sequence[slice]) -> tuple[slice, ...]:
    return tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True))
