"""Results that have no derivative: who takes it is told, and is not given zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal as Perturbed, SymbolicZero
from jaxtyping import Array, PyTree

from .program import is_inexact


class _About(eqx.Module):
    """What the backward pass knows: the error, when it comes, and what would move the results."""

    words: str = eqx.field(static=True)
    late: bool = eqx.field(static=True)
    inputs: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    is_moved: bool = eqx.field(static=True)


def is_traced(tree: PyTree) -> bool:
    """Whether a transformation of JAX looks at any of the arrays."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def held(tree: PyTree) -> PyTree:
    """The same arrays without derivative."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def constant(results: PyTree, inputs: PyTree, words: str, late: bool = False) -> PyTree:
    """`results`, made of what `inputs` hold, where a derivative by `inputs` is an error in `words`.

    What is differentiated without reading them is not touched, nor what they owe to other things than `inputs`.

    Args:
        late: derivatives whose numbers are all zero are none; others are found when they are computed. For results that
            a loop hands on to itself, where only numbers tell whether anything else reads them.

    Raises:
        TypeError: in the backward pass, something reads the results; or they are differentiated forward.
    """
    moving = [a for a in jax.tree.leaves(inputs) if isinstance(a, jax.core.Tracer) and is_inexact(a)]
    floating, rest = eqx.partition(results, eqx.is_inexact_array)
    if not moving or not jax.tree.leaves(floating):
        return results

    @jax.custom_vjp
    def attach(floating: PyTree, moving: list[Array]) -> PyTree:
        return floating

    def forward(floating: PyTree, moving: list[Perturbed]) -> tuple[PyTree, _About]:
        shapes = tuple(jax.ShapeDtypeStruct(p.value.shape, p.value.dtype) for p in moving)
        about = _About(words, late, shapes, any(p.perturbed for p in moving))
        return jax.tree.map(lambda p: p.value, floating, is_leaf=lambda p: hasattr(p, "perturbed")), about

    attach.defvjp(forward, _backward, symbolic_zeros=True)
    try:
        return eqx.combine(attach(floating, moving), rest)
    except TypeError as error:  # forward mode
        raise TypeError(words) from error
    except NotImplementedError:  # inside a shard_map without jit, where nothing is differentiated
        return results


def _backward(about: _About, cts: PyTree) -> tuple[PyTree, list[Array] | None]:
    read = [ct for ct in jax.tree.leaves(cts, is_leaf=_is_zero) if not _is_zero(ct)]
    if not (about.is_moved and read):
        return cts, None
    if not about.late:
        raise TypeError(about.words)
    wrong = jnp.any(jnp.stack([jnp.any(ct != 0) for ct in read]))
    zero = eqx.error_if(jnp.zeros(()), wrong, about.words)
    return None, [jnp.broadcast_to(zero.astype(s.dtype), s.shape) for s in about.inputs]


def _is_zero(ct: Array | SymbolicZero) -> bool:
    return isinstance(ct, SymbolicZero)
