"""One file that holds a training run: written in one piece or not at all, and read back to the same bits."""

import hashlib
import json
import os
import re
import textwrap
import zipfile
import zlib
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._filter import leaf_names, trained_filter
from ._program import is_key

FORMAT = "sparse_etrace checkpoint 2"


def identity(learner: Any, model: PyTree[Any]) -> dict[str, Any]:
    """What of a learner and a model stays the same while it trains, so that another one can be told by name."""
    fixed = eqx.filter(model, jax.tree.map(lambda t: not t, trained_filter(model, learner.train)))
    arrays, rest = eqx.partition(fixed, eqx.is_array)
    digests = [_digest(leaf) for leaf in jax.tree.leaves(arrays)]
    return {
        "x64": jax.config.read("jax_enable_x64"),
        "learner": _words(learner),
        "model": _words(rest),
        "constants": dict(zip(leaf_names(arrays), digests, strict=True)),
    }


def save(path: Path, header: dict[str, Any], content: PyTree[Any], table: np.ndarray) -> None:
    """Write the arrays of `content`, a header and a table; a file that is there is replaced at once, by a whole one."""
    arrays = eqx.filter(content, eqx.is_array)
    leaves = jax.tree.leaves(arrays)
    about = {"format": FORMAT, "names": leaf_names(arrays), "types": [_type_name(leaf) for leaf in leaves]}
    text = json.dumps(about | {"header": header})
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
        raw: dict[str, Any] = {f"leaf{k:06}": _raw(leaf) for k, leaf in enumerate(leaves)}
        np.savez(file, header=np.frombuffer(text.encode(), np.uint8), table=table, **raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_place(path: Path) -> None:
    """Refuse, before anything is trained, a path where no file can be written.

    Raises:
        ValueError: it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir() or not path.name:
        raise ValueError(f"checkpoint: {path} is a folder. Name a file in it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(path.name + ".partial"), "ab"):
            pass
    except OSError as error:
        raise ValueError(f"checkpoint: {path} cannot be written, {error}. Name another file.") from error
    path.with_name(path.name + ".partial").unlink()


class Checkpoint:
    """A file that `save` wrote.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            try:
                with np.load(file, allow_pickle=False) as read:
                    arrays = {name: read[name] for name in read.files}
                about = json.loads(arrays["header"].tobytes())
                self.format, self.header = about["format"], about["header"]
                self.names, self.types = about["names"], about["types"]
                self.table = arrays["table"]
                self.leaves = [arrays[f"leaf{k:06}"] for k in range(len(self.types))]
            except (
                ValueError, KeyError, TypeError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error
            ) as error:  # fmt: skip
                raise ValueError(
                    f"checkpoint: {path} is no whole checkpoint. Name another file, or remove it."
                ) from error
        if self.format != FORMAT:
            raise ValueError(
                f"checkpoint: {path} is a {self.format!r}, this version reads {FORMAT!r}. "
                "Name another file to start anew."
            )

    def check(self, identity: dict[str, Any], options: dict[str, str]) -> None:
        """Refuse, by name, a checkpoint of something else.

        Raises:
            ValueError: learner, connectivity, model or an option differs.
        """
        there, way_out = self.header["identity"], "Name another file to start anew."
        if there["x64"] != identity["x64"]:
            was, now = (("without", "with")[on] for on in (there["x64"], identity["x64"]))
            raise ValueError(f"checkpoint: {self.path} was written {was} 64-bit JAX, this runs {now} it. {way_out}")
        if there["learner"] != identity["learner"]:
            was, now = (textwrap.shorten(words, 200) for words in (there["learner"], identity["learner"]))
            raise ValueError(f"checkpoint: {self.path} is of another learner, {was}; this is {now}. {way_out}")
        old, new = there["constants"], identity["constants"]
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        # Whatever is derived from a connectivity differs with it.
        changed.sort(key=lambda name: "connectivity" not in name)
        if changed and "connectivity" in changed[0]:
            was, now = (found.get(changed[0], "not there") for found in (old, new))
            raise ValueError(
                f"checkpoint: {self.path} is of another connectivity: {changed[0]!r} was {was}, here it is {now}. "
                f"{way_out}"
            )
        if there["model"] != identity["model"]:
            raise ValueError(f"checkpoint: {self.path} is of a model that is built otherwise. {way_out}")
        if changed:
            raise ValueError(
                f"checkpoint: {self.path} is of another model: {changed[0]!r}, which is not trained, differs. Make the "
                "model with the same key and data as before, or name another file to start anew."
            )
        for name, value in options.items():
            if (was := self.header["options"].get(name)) != value:
                raise ValueError(f"checkpoint: {self.path} was written with {name}={was}, got {value}. {way_out}")

    def restore(self, template: PyTree[Any]) -> PyTree[Any]:
        """The arrays, in the place of those of a pytree of the same structure.

        Raises:
            ValueError: the number of arrays, a shape or a type differs.
        """
        arrays, rest = eqx.partition(template, eqx.is_array)
        names, (leaves, layout) = leaf_names(arrays), jax.tree.flatten(arrays)
        if names != self.names:
            odd = sorted({*names} ^ {*self.names}) or ["their order"]
            raise ValueError(
                f"checkpoint: {self.path} holds other arrays than this run has; they differ in {odd[0]!r}. Take the "
                "optimizer that it was written with, or name another file to start anew."
            )
        found = []
        for name, leaf, data, kind in zip(names, leaves, self.leaves, self.types, strict=True):
            expected = _raw(leaf)
            if kind != _type_name(leaf) or data.shape != expected.shape or data.dtype != expected.dtype:
                raise ValueError(
                    f"checkpoint: in {self.path} {name!r} is {kind}{list(data.shape)}, in this run "
                    f"{_type_name(leaf)}{list(expected.shape)}. Model, batch size and optimizer must be the same."
                )
            if is_key(leaf):
                found.append(jax.random.wrap_key_data(jnp.asarray(data), impl=jax.random.key_impl(leaf)))
            else:
                found.append(jnp.asarray(data.view(leaf.dtype)) if data.dtype != leaf.dtype else jnp.asarray(data))
        return eqx.combine(jax.tree.unflatten(layout, found), rest)


def _raw(leaf: Any) -> np.ndarray:
    """The numbers of an array in a type that files know."""
    array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def _type_name(leaf: Any) -> str:
    return str(leaf.dtype)


def _digest(leaf: Any) -> str:
    raw = np.ascontiguousarray(_raw(leaf))
    return f"{_type_name(leaf)}{list(raw.shape)} {hashlib.sha256(raw.reshape(-1).view(np.uint8).data).hexdigest()[:16]}"


def _words(tree: PyTree[Any]) -> str:
    """A pytree as text that is the same in each process: functions by name, arrays by what they hold."""

    def one(leaf: Any) -> Any:
        if eqx.is_array(leaf) or isinstance(leaf, np.ndarray):
            return _digest(leaf)
        return f"{leaf.__module__}.{leaf.__qualname__}" if hasattr(leaf, "__qualname__") else leaf

    text = str(jax.tree.map(one, tree))
    return re.sub(r"0x[0-9a-f]+", "", text)
