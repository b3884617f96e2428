"""What can be told of functions, optimizers and arrays, as text that is the same in each process."""

import dataclasses
import dis
import enum
import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from .._graph.connectivity import host_array
from .._model.program import is_key
from .._model.trained import leaf_names

# Functions of these are known by their name and by what they hold.
KNOWN = {"sparse_etrace", "jax", "jaxlib", "optax", "equinox", "jaxtyping", "numpy", "scipy"} | sys.stdlib_module_names


def raw(leaf: ArrayLike) -> np.ndarray:
    """The numbers of an array in a type that files know."""
    array = host_array("leaf", jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def type_name(leaf: Any) -> str:
    return str(leaf.dtype)


def digest(leaf: Any) -> str:
    """Type, shape and a digest of an array."""
    numbers = np.ascontiguousarray(host_array("leaf", jax.random.key_data(leaf) if is_key(leaf) else leaf))
    code = hashlib.sha256(numbers.reshape(-1).view(np.uint8).data).hexdigest()
    return f"{type_name(leaf)}{list(numbers.shape)} {code[:16]}"


def digests(tree: PyTree) -> dict[str, str]:
    """A digest of each array of a pytree, by its name."""
    arrays = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), tree)
    return {name or "array": digest(leaf) for name, leaf in zip(leaf_names(arrays), jax.tree.leaves(arrays))}


def facts(value: object, name: str) -> dict[str, str]:
    """Names and texts of what a value is made of.

    Numbers and arrays; of containers and dataclasses what they hold; of a function its name, its code, its defaults,
    what it is closed over and which globals it reads. Of another object only its class; modules by name.
    """
    return dict(_walk(value, name, {}))


def _walk(value: object, name: str, seen: dict[int, object]) -> Iterator[tuple[str, str]]:
    """`seen` keeps what was walked alive, so that its id stands for nothing else."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.tolist()
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        is_number = not np.ndim(value) and not is_key(value)
        yield name, f"{np.asarray(value).item()!r} as {value.dtype}" if is_number else digest(value)
    elif value is None or isinstance(value, Number | str | bytes | slice | range | enum.Enum | np.dtype):
        yield name, repr(value)
    elif isinstance(value, set | frozenset):
        yield name, str(sorted(map(repr, value)))
    elif isinstance(value, tuple) or id(value) not in seen:  # equal tuples may be one in some processes only
        seen[id(value)] = value
        title, parts = _open(value)
        yield name, title
        for part, held in parts:
            yield from _walk(held, f"{name}.{part}" if isinstance(part, str) else f"{name}[{part}]", seen)


def _open(value: object) -> tuple[str, Iterable[tuple[str | int, object]]]:
    """What to call a value, and what it holds, by name or number."""
    if isinstance(value, functools.partial):
        return "partial", [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, jax.custom_jvp | jax.custom_vjp):
        rules = ("fun", "jvp", "fwd", "bwd")
        return "custom derivative", [(rule, getattr(value, rule)) for rule in rules if hasattr(value, rule)]
    if isinstance(value, types.FunctionType):
        return _title(value), _parts_of_function(value)
    if isinstance(value, types.MethodType):
        return value.__name__, [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, types.ModuleType):
        return value.__name__, ()
    if isinstance(value, type):
        return _title(value), _own(value)
    if isinstance(value, Mapping):
        return f"{len(value)} entries", [(repr(key), value[key]) for key in sorted(value, key=repr)]
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        return f"{len(value)} entries", zip(names, value, strict=True)
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    parts = [(field.name, getattr(value, field.name, None)) for field in fields]
    if (inner := getattr(value, "__wrapped__", None)) is not None:  # a compiled function, say
        return _title(type(value)), [("wrapped", inner), *parts]
    if hasattr(value, "__qualname__"):
        return _title(value), ()
    if type(value).__module__.split(".")[0] == "optax":  # an optimizer that is an object
        parts = list(vars(value).items())
    return _title(type(value)), [("type", type(value)), *parts]


def _title(value: Any) -> str:
    module = "sparse_etrace" if str(value.__module__).startswith("sparse_etrace.") else value.__module__
    return f"{module}.{value.__qualname__}"


def _is_known(module: object) -> bool:
    return str(module).split(".")[0] in KNOWN


def _is_installed(file: str | None) -> bool:
    """Whether a library has this file: of its functions the code is told, not what they call in turn."""
    return "site-packages" in (file or "")


def _parts_of_function(fn: types.FunctionType) -> Iterator[tuple[str, object]]:
    if not _is_known(fn.__globals__.get("__name__")):  # a decorated one calls its module that of another
        yield "code", _code(fn.__code__)
        if not _is_installed(fn.__code__.co_filename):
            for name in sorted(_globals_read(fn.__code__) & fn.__globals__.keys()):
                yield name, fn.__globals__[name]
    given = (("defaults", fn.__defaults__), ("keyword defaults", fn.__kwdefaults__))
    yield from [(name, value) for name, value in given if value]
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it is not filled yet
            pass


def _own(kind: type) -> Iterator[tuple[str, object]]:
    """Functions and numbers that a class says of its own."""
    for base in kind.__mro__:
        if not _is_known(base.__module__):
            own = vars(base).keys() - getattr(base, "__dataclass_fields__", {}).keys()
            hidden = "" if _is_installed(getattr(sys.modules.get(base.__module__), "__file__", None)) else "__"
            for name in sorted(name for name in own if name == "__call__" or not name.startswith(hidden)):
                part = vars(base)[name]
                for inner in ("method", "__func__", "fget"):  # as equinox and Python wrap it
                    part = getattr(part, inner, part)
                if isinstance(part, types.FunctionType | Number | str | jax.Array | np.ndarray | tuple) or hasattr(
                    part, "__wrapped__"
                ):
                    yield name, part


def _globals_read(code: types.CodeType) -> set[str]:
    found = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*(_globals_read(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _code(code: types.CodeType) -> str:
    """A digest of what a function does, whatever line it stands in."""

    def text(constant: object) -> str:
        if isinstance(constant, types.CodeType):
            return _code(constant)
        return str(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)

    said = [code.co_code.hex(), *map(text, code.co_consts), *code.co_names, *code.co_varnames, *code.co_freevars]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def words(tree: PyTree) -> str:
    """A pytree as text: functions by name, arrays by what they hold."""

    def one(leaf: PyTree) -> object:
        if eqx.is_array(leaf) or isinstance(leaf, np.ndarray):
            return digest(leaf)
        return _title(leaf) if hasattr(leaf, "__qualname__") else leaf

    return re.sub(r"0x[0-9a-f]+", "", str(jax.tree.map(one, tree)))
