"""The compiled kernels, where there are any, and the primitives that stand for a kernel in a program."""

import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.interpreters import mlir

from .._library import load
from .._varying import bind, types as varying_types

LIBRARY = "_kernels/libsparse_etrace.so.1"
TARGETS = ("spmv", "spmv_ids", "spmv_t", "window", "features", "influence", "elementwise", "push", "room")
VARIABLE = "SPARSE_ETRACE_KERNELS"
CHOICES = ("avx512", "avx2", "plain", "xla")
# The same number in native/ffi.cpp: what the kernels take and give.
INTERFACE = 12

Product = Callable[..., list[jax.Array]]  # of the operands of a primitive


def _load() -> tuple[str, str]:
    """Register the compiled kernels; the name of those in use, and why they are not the compiled ones."""
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", *CHOICES):
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(CHOICES)}, or nothing, got {asked!r}.")
    if asked == "xla":
        return "xla", f"{VARIABLE}=xla"
    library, reason = load(LIBRARY, "sparse_etrace_interface", INTERFACE)
    if reason and asked:
        raise ValueError(
            f"{VARIABLE}: expected kernels that can run, got {asked!r}, but {reason}. Install the "
            "package again, or ask for 'xla'."
        )
    if library is None:
        return "xla", reason
    library.sparse_etrace_kernels.restype = ctypes.c_char_p
    name = library.sparse_etrace_kernels()
    if name is None:
        raise ValueError(
            f"{VARIABLE}: expected kernels of this machine and this build, got {asked!r}. Ask for others, or for 'xla'."
        )
    for target in TARGETS:
        handler = getattr(library, f"sparse_etrace_{target}")
        jax.ffi.register_ffi_target(f"sparse_etrace_{target}", jax.ffi.pycapsule(handler), platform="cpu")
    return name.decode().removesuffix("_table"), ""


KERNELS, REASON = _load()
_asked = jax.make_user_context(default_value=None)  # in the keys of JAX's caches of programs


def kernels(name: str) -> AbstractContextManager:
    """A context whose programs run these kernels, on every device: `with se.kernels("xla"):`.

    Programs for another machine, and those that `jax.export` writes, cannot contain calls of the compiled kernels or of
    cuSPARSE: trace and export them in here. Numbers agree to rounding. A program that was compiled outside is compiled
    anew inside, and both are kept.

    Args:
        name: `"xla"`.

    Raises:
        ValueError: it is something else. Which compiled kernels run is chosen before the import.

    Example:
        >>> import jax, jax.numpy as jnp, sparse_etrace as se
        >>> param = se.SpMatMulOp(se.from_edges([0, 1], [1, 0])).param(jax.random.key(0))
        >>> with se.kernels("xla"):
        ...     exported = jax.export.export(jax.jit(lambda x: param(x)))(jnp.ones(2))
        >>> exported.call(jnp.ones(2)).shape
        (2,)
    """
    if name != "xla":
        raise ValueError(f"name: expected 'xla', got {name!r}. {VARIABLE} chooses others, before the import.")
    return _asked(name)


def _is_xla() -> bool:
    return os.environ.get(VARIABLE) == "xla" or _asked.value == "xla"


@functools.cache
def _say_once() -> None:
    warnings.warn(
        f"sparse_etrace runs the kernels of XLA, which are slower and agree to rounding: {REASON}. Install a C++ "
        "compiler (GCC 12 or later, or Clang) and the package again.",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def has_cuda() -> bool:
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


def primitive(
    name: str,
    xla: Product,
    native: Product,
    types: Callable[..., bool],
    cuda: Product | None = None,
    is_split: bool = False,
) -> jex.Primitive:
    """A primitive that runs `native` on a CPU if it is compiled and `types` of its operands are, and else `xla`.

    On a GPU of NVIDIA it runs `cuda`, where there is one now: a program for another machine is of `xla`. One that
    `is_split` runs that in a program of several devices too, each of which has a part of the operands then.
    """
    new = jex.Primitive(f"etrace_{name}")
    new.multiple_results = True

    @functools.partial(jax.jit, static_argnames="params")
    def run(*args: jax.Array, params: tuple) -> list[jax.Array]:
        return bind(new, *args, **dict(params))

    def evaluate(*args: jax.Array, **params: Hashable) -> list[jax.Array]:
        with jax.disable_jit(False):  # or it would come back here
            return run(*args, params=tuple(params.items()))

    new.def_impl(evaluate)

    def abstract(*args: jax.core.ShapedArray, **params: Hashable) -> list[jax.core.ShapedArray]:
        # The same shapes, but tracing a call of a compiled kernel takes no time.
        either = functools.partial(native if types(*args, **params) else xla, **params)
        structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
        return varying_types(jax.eval_shape(either, *structs), args)

    new.def_abstract_eval(abstract)
    general = mlir.lower_fun(xla, multiple_results=True)
    mlir.register_lowering(new, general)

    def on_cpu(context: mlir.LoweringRuleContext, *args: Any, **params: Hashable) -> Any:
        wanted = not _is_xla()
        if wanted and KERNELS == "xla":
            _say_once()
        parts = getattr(context.module_context.axis_context, "num_devices", 1) if is_split else 1
        compiled = wanted and KERNELS != "xla" and parts == 1 and types(*context.avals_in, **params)
        return (mlir.lower_fun(native, multiple_results=True) if compiled else general)(context, *args, **params)

    mlir.register_lowering(new, on_cpu, platform="cpu")
    if cuda is not None:
        library = mlir.lower_fun(cuda, multiple_results=True)

        def on_cuda(context: mlir.LoweringRuleContext, *args: Any, **params: Hashable) -> Any:
            return (general if _is_xla() or not has_cuda() else library)(context, *args, **params)

        mlir.register_lowering(new, on_cuda, platform="cuda")
    return new


def call(
    target: str,
    results: list[jax.ShapeDtypeStruct],
    *args: jax.Array,
    aliases: dict[int, int] | None = None,
    **attributes: np.int64,
) -> list[jax.Array]:
    """Call a compiled kernel; its last result is its working memory, and dropped."""
    run = jax.ffi.ffi_call(f"sparse_etrace_{target}", results, input_output_aliases=aliases)
    return list(run(*args, **attributes))[:-1]


def compiled_types(*avals: jax.core.ShapedArray, **_: Hashable) -> bool:
    """Whether the compiled kernels know these: some indices of int32, some numbers of one of two types."""
    return all(a.size for a in avals) and {a.dtype.name for a in avals} - {"int32"} in ({"float32"}, {"float64"})


def pitch(columns: int) -> int:
    """Length of the row that the compiled kernels keep for a unit's columns."""
    return next((size for size in (1, 4, 8) if columns <= size), -(-columns // 16) * 16)
