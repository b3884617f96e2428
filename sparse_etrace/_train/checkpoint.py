"""One file that holds a training run: written in one piece or not at all, and read back to the same bits."""

import json
import os
import platform
import textwrap
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._learner import Learner
from .._model.program import is_key
from .._model.trained import leaf_names, trained_filter
from .._types import Model
from .facts import digest, facts, raw, type_name, words
from .lock import beside

FORMAT = "sparse_etrace checkpoint 4"


class Identity(TypedDict):
    """What of a training run stays the same, so that another one can be told by name."""

    x64: bool
    learner: str
    model: str
    constants: dict[str, str]
    facts: dict[str, dict[str, str]]
    python: tuple[str, ...]


def identity(learner: Learner, model: Model, **others: object) -> Identity:
    """What of a learner, a model and others stays the same in training, so that another one can be told by name."""
    fixed = eqx.filter(model, jax.tree.map(lambda t: not t, trained_filter(model, learner.train)))
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


def save(path: Path, header: Mapping[str, object], content: PyTree, table: np.ndarray) -> None:
    """Write the arrays of `content`, a header and a table; a file that is there is replaced at once, by a whole one."""
    arrays = eqx.filter(content, eqx.is_array)
    leaves = jax.tree.leaves(arrays)
    about = {"format": FORMAT, "names": leaf_names(arrays), "types": [type_name(leaf) for leaf in leaves]}
    text = json.dumps(about | {"header": header})
    partial = beside(path, ".part")  # no longer a name than that of the lock, which is tried first
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
        numbers: dict[str, Any] = {f"leaf{k:06}": raw(leaf) for k, leaf in enumerate(leaves)}
        np.savez(file, header=np.frombuffer(text.encode(), np.uint8), table=table, **numbers)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, os.path.realpath(path))
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(partial.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Saved:
    """A file that `save` wrote.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                with zipfile.ZipFile(file) as archive:
                    unpacked = sum(part.file_size for part in archive.infolist())
                if unpacked <= size:
                    file.seek(0)
                    self._read(file)
            except (
                ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, MemoryError, zipfile.BadZipFile,
                zlib.error,
            ) as error:  # fmt: skip
                raise ValueError(
                    f"checkpoint: expected a whole checkpoint, got {path}. Name another file, or remove it."
                ) from error
        if unpacked > size:
            raise ValueError(
                f"checkpoint: expected a file that is not compressed, got {path} of {size:,} bytes that unpack "
                f"to {unpacked:,}. Name another file, or remove it."
            )
        if self.format != FORMAT:
            raise ValueError(
                f"checkpoint: expected {FORMAT!r}, got {path} of {self.format!r}. Name another file to start anew."
            )

    def _read(self, file: BinaryIO) -> None:
        with np.load(file, allow_pickle=False) as read:
            arrays = {name: read[name] for name in read.files}
        about = json.loads(arrays["header"].tobytes())
        self.format, self.header = about["format"], about["header"]
        self.names, self.types = about["names"], about["types"]
        self.table = arrays["table"]
        self.leaves = [arrays[f"leaf{k:06}"] for k in range(len(self.types))]

    def check(self, identity: Identity, options: dict[str, str]) -> None:
        """Refuse, by name, a checkpoint of something else.

        Raises:
            ValueError: learner, connectivity, model or an option differs.
        """
        there, way_out = self.header["identity"], "Name another file to start anew."
        if there["x64"] != identity["x64"]:
            was, now = (("without", "with")[on] for on in (there["x64"], identity["x64"]))
            raise ValueError(
                f"checkpoint: expected JAX {was} 64 bits, as {self.path} was written, got it {now}. {way_out}"
            )
        if there["learner"] != identity["learner"]:
            was, now = (textwrap.shorten(words, 200) for words in (there["learner"], identity["learner"]))
            raise ValueError(f"checkpoint: expected the learner of {self.path}, {was}, got {now}. {way_out}")
        old, new = there["constants"], identity["constants"]
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        # Whatever is derived from a connectivity differs with it.
        changed.sort(key=lambda name: "connectivity" not in name)
        if changed and "connectivity" in changed[0]:
            was, now = (found.get(changed[0], "nothing") for found in (old, new))
            raise ValueError(
                f"checkpoint: expected the connectivity of {self.path}, {changed[0]!r} as {was}, got {now}. {way_out}"
            )
        if there["model"] != identity["model"]:
            raise ValueError(
                f"checkpoint: expected the model of {self.path}, got one that is built otherwise. {way_out}"
            )
        if changed:
            raise ValueError(
                f"checkpoint: expected the model of {self.path}, got another: {changed[0]!r}, which is not trained, "
                "differs. Make the model with the same key and data as before, or name another file to start anew."
            )
        for name, value in options.items():
            if (was := self.header["options"].get(name)) != value:
                raise ValueError(f"checkpoint: expected {name}={was}, as in {self.path}, got {value}. {way_out}")
        for name, new in identity["facts"].items():
            old = dict(there["facts"].get(name, {}))
            if there["python"] != list(identity["python"]):  # code looks different there
                old, new = ({k: v for k, v in said.items() if not k.endswith(".code")} for said in (old, new))
            odd = [k for k in {**new, **old} if old.get(k) != new.get(k)]
            odd.sort(key=lambda k: (old | new)[k].endswith(" entries"))  # which says less than what they are
            if odd:
                was, now = (textwrap.shorten(found.get(odd[0], "nothing"), 120) for found in (old, new))
                if odd[0].endswith(".code"):
                    raise ValueError(
                        f"checkpoint: expected the {name} of {self.path}, got another: {odd[0]!r} "
                        f"does something else. {way_out}"
                    )
                raise ValueError(
                    f"checkpoint: expected the {name} of {self.path}, {odd[0]!r} as {was}, got {now}. {way_out}"
                )

    def check_data(self, first: dict[str, str] | None, last: dict[str, str] | None) -> dict[str, dict[str, str]]:
        """Digests of the first pair and of the last one that was trained on; refuse those of others than here.

        Raises:
            ValueError: one that is known, here and there, differs.
        """
        there = self.header["data"]
        for which, old, new in (("first", there["first"], first), ("last", there["last"], last)):
            if old and new and old != new:
                name = next(k for k in {**new, **old} if old.get(k) != new.get(k))
                raise ValueError(
                    f"checkpoint: expected the data of {self.path}, got others: of the {which} sequence that it has "
                    f"seen, {name!r} was {old.get(name)}, here it is {new.get(name)}. Name another file to start anew. "
                    "Data that are drawn anew can come from a function data(position), which is not compared."
                )
        return there

    def restore(self, template: PyTree) -> PyTree:
        """The arrays, in the place of those of a pytree of the same structure.

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
        found = []
        for name, leaf, data, kind in zip(names, leaves, self.leaves, self.types, strict=True):
            expected = raw(leaf)
            if kind != type_name(leaf) or data.shape != expected.shape or data.dtype != expected.dtype:
                raise ValueError(
                    f"checkpoint: expected {name!r} as in {self.path}, {kind}{list(data.shape)}, got "
                    f"{type_name(leaf)}{list(expected.shape)}. Take the same model, batch size and optimizer."
                )
            if is_key(leaf):
                found.append(jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf)))
            else:
                value = jnp.asarray(data.view(leaf.dtype) if data.dtype != leaf.dtype else data)
                place = leaf.sharding if isinstance(leaf, jax.Array) else None
                found.append(value if place is None or place.num_devices == 1 else jax.device_put(value, place))
        return eqx.combine(jax.tree.unflatten(layout, found), rest)
