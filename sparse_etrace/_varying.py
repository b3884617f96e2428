"""Arrays that differ from device to device, where JAX follows which do: in a `jax.shard_map`, on explicit meshes."""

import contextlib
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree


def varying(aval: jax.core.AbstractValue) -> frozenset[str]:
    """Axes of a mesh along which an array differs from device to device."""
    kind = getattr(aval, "manual_axis_type", aval)  # before jax 0.10 it is in the type itself
    return frozenset(getattr(kind, "varying", getattr(kind, "vma", ())))


def axes_of(*arrays: object) -> frozenset[str]:
    """Axes along which any of these differs."""
    found = (varying(jax.typeof(a)) for a in arrays if isinstance(a, jax.core.Tracer))
    return frozenset().union(*found)


def cast(array: ArrayLike, axes: frozenset[str]) -> ArrayLike:
    """An array as one that may differ along these axes too; its derivative is summed over them."""
    new = tuple(sorted(axes - axes_of(array)))
    if not new:
        return array
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, new, to="varying")
    return jax.lax.pvary(array, new)  # type: ignore[attr-defined] # before jax 0.8.2


def bind(primitive: jex.Primitive, *operands: ArrayLike, **params: Hashable) -> list[Array]:
    """A primitive on operands that all differ along the same axes, so that derivatives know what to sum over."""
    axes = axes_of(*operands)
    return primitive.bind(*(cast(a, axes) for a in operands), **params)


def types(
    results: Sequence[jax.core.ShapedArray | jax.ShapeDtypeStruct], operands: Sequence[jax.core.ShapedArray]
) -> list[jax.core.ShapedArray]:
    """Types of results that differ along all axes along which any operand does."""
    axes = frozenset().union(*map(varying, operands))
    if not axes:
        return [jax.core.ShapedArray(o.shape, o.dtype) for o in results]
    made = jax.make_jaxpr(lambda: [cast(jnp.zeros(o.shape, o.dtype), axes) for o in results])()
    return list(made.out_avals)


def freely(fn: Callable[..., PyTree], *args: PyTree, like: Callable[[], PyTree] | None = None) -> PyTree:
    """`fn(*args)` where XLA places all arrays, though some lie on a mesh with explicit axes, or one is set.

    Results lie there too, as `like()`, a prefix of them, has a `PartitionSpec`. All others lie as XLA placed them, and
    where they are traced, as the array that it has in their place, or whole on each device.
    """
    there, is_set = list(filter(_is_explicit, jax.tree.leaves(args))), has_explicit(jax.sharding.get_abstract_mesh())
    if not there and not is_set:
        return fn(*args)
    given, rest = eqx.partition(args, eqx.is_array)
    within: contextlib.AbstractContextManager = contextlib.nullcontext()
    put = jax.sharding.reshard
    if not is_set:
        try:
            within = jax.set_mesh(there[0].sharding.mesh)
        except (ValueError, AttributeError):  # something is traced: devices are known from arrays that are put on them
            given, put = jax.tree.map(_told, given), _put_traced
            within = jax.sharding.use_abstract_mesh(jax.typeof(there[0]).sharding.mesh)
    with within:
        mesh = jax.sharding.get_abstract_mesh()
        kinds = tuple(AxisType.Auto if kind == AxisType.Explicit else kind for kind in mesh.axis_types)
        with jax.sharding.use_abstract_mesh(mesh.update(axis_types=kinds)):
            given = jax.tree.map(lambda a: jax.sharding.reshard(a, P()) if _is_explicit(a) else a, given)
            found, static = eqx.partition(fn(*eqx.combine(given, rest)), eqx.is_array)
        places = jax.tree.map(_places, like() if like else None, found, is_leaf=lambda node: node is None)
        return eqx.combine(jax.tree.map(put, found, places), static)


def _put_traced(array: Array, place: P) -> Array:
    """What is not traced stays where it lies: a mesh without devices says nothing of it."""
    return jax.sharding.reshard(array, place) if isinstance(array, jax.core.Tracer) else array


def has_explicit(mesh: Any) -> bool:
    return AxisType.Explicit in mesh.axis_types


def _is_explicit(leaf: object) -> bool:
    """Whether it is an array on a mesh with explicit axes."""
    if isinstance(leaf, jax.core.Tracer):
        return has_explicit(jax.typeof(leaf).sharding.mesh)
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding) and has_explicit(leaf.sharding.mesh)


def _told(leaf: Array) -> Array:
    """An array on a mesh with explicit axes that a `jit` closes over, as one of which this says where it lies."""
    is_known = _is_explicit(leaf) and not isinstance(leaf, jax.core.Tracer)
    return jax.device_put(leaf, leaf.sharding) if is_known else leaf


def _places(like: Array | P | None, found: PyTree[Array]) -> PyTree[P]:
    """Where results are to lie."""

    def one(array: Array) -> P:
        if isinstance(like, P):
            return like
        if not isinstance(array, jax.core.Tracer):
            return getattr(array.sharding, "spec", P())
        return P() if like is None else jax.typeof(like).sharding.spec

    return jax.tree.map(one, found)


def apart(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """A function on each device alone: what it differentiates is not summed over devices.

    Its results differ along all axes along which an argument does.

    Raises:
        NotImplementedError: the function reads arrays that differ from device to device and are no arguments.
    """
    given, rest = eqx.partition(args, eqx.is_array)
    flat, structure = jax.tree.flatten(given)
    axes = axes_of(*flat)
    if not axes:
        return fn(*args)
    static: list[PyTree] = []

    def alone(*flat: Array) -> PyTree[Array]:
        found, other = eqx.partition(fn(*eqx.combine(jax.tree.unflatten(structure, flat), rest)), eqx.is_array)
        static.append(other)
        return found

    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in flat]
    jaxpr, shapes = jax.make_jaxpr(alone, return_shape=True)(*structs)
    if beside := axes_of(*jaxpr.consts):
        raise NotImplementedError(
            "fn: expected a model or loss that reads only its arguments, got one that also reads an array that differs "
            f"over {', '.join(sorted(beside))}. Give that with the inputs or targets, or shard_map check_vma=False."
        )
    flat = bind(apart_p, *jaxpr.consts, *flat, jaxpr=jaxpr)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(shapes), flat), static[0])


def _run(*flat: Array, jaxpr: jex.ClosedJaxpr) -> list[Array]:
    return jax.core.eval_jaxpr(jaxpr.jaxpr, flat[: len(jaxpr.consts)], *flat[len(jaxpr.consts) :])


def _types(*flat: jax.core.ShapedArray, jaxpr: jex.ClosedJaxpr) -> list[jax.core.ShapedArray]:
    return types(jaxpr.out_avals, flat)


def _batch(flat: Sequence[Array], axes: Sequence[int | None], jaxpr: jex.ClosedJaxpr) -> tuple[list[Array], list[int]]:
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in flat]
    mapped = jax.make_jaxpr(jax.vmap(functools.partial(_run, jaxpr=jaxpr), in_axes=tuple(axes)))(*structs)
    return bind(apart_p, *mapped.consts, *flat, jaxpr=mapped), [0] * len(jaxpr.out_avals)


def _jvp(*_: object, **__: Any) -> Any:
    raise NotImplementedError(
        "jax.shard_map: expected check_vma=False where something differentiates what BPTT returns, got one that "
        "follows which arrays differ from device to device. Give it that, and sum derivatives by jax.lax.psum."
    )


apart_p = jex.Primitive("etrace_apart")
apart_p.multiple_results = True
apart_p.def_abstract_eval(_types)
batching.primitive_batchers[apart_p] = _batch
ad.primitive_jvps[apart_p] = _jvp
mlir.register_lowering(apart_p, mlir.lower_fun(_run, multiple_results=True))
