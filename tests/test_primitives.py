"""The layouts of jax's primitives, and patterns in plain numbers: the same under each version of jax."""

import functools

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import models
import numpy as np
import pytest
from models import start
from soak import few

import sparse_etrace as se
from sparse_etrace._model import primitives
from sparse_etrace._model.positions import follow
from sparse_etrace._model.program import flatten, propagate


def last(fn, *args, name):
    """A jaxpr, and its last equation of this name."""
    closed = jax.make_jaxpr(fn)(*args)
    return closed, [e for e in closed.jaxpr.eqns if e.primitive.name == name][-1]


def pull(fn, *args):
    return lambda ct: jax.vjp(fn, *args)[1](ct)


def two_carried(h, c):
    return jax.lax.scan(lambda s, x: ((s[1] * c, s[0] + x), s[0]), (h, h), jnp.ones((4, 3)))


def substeps(h, c):
    return jax.lax.fori_loop(0, 5, lambda i, h: 0.9 * h + c, h)


ONES = jnp.ones(3)
SCANS = {
    "two carried": (lambda c: two_carried(2 * c, c), ONES, (1, 2, 4)),
    "nothing carried": (lambda x: jax.lax.map(jnp.sin, x), jnp.ones((4, 3)), (0, 0, 4)),
    "fori": (lambda c: substeps(2 * c, c), ONES, (1, 2, 5)),
    "fori backwards": (pull(functools.partial(substeps, c=ONES), ONES), ONES, (0, 1, 5)),
}


@pytest.mark.parametrize("name", SCANS)
def test_a_scan(name):
    fn, arg, expected = SCANS[name]
    _, eqn = last(fn, arg, name="scan")
    found = primitives.scan(eqn)
    assert (found.consts, found.carry, found.length) == expected
    assert [v.aval.shape for v in found.body.jaxpr.invars][-1] == (3,)


def changed(closed, eqn, drop=(), **params):
    """A jaxpr with one equation whose parameters are laid out otherwise."""
    params = {k: v for k, v in {**eqn.params, **params}.items() if k not in drop}
    eqns = [e.replace(params=params) if e is eqn else e for e in closed.jaxpr.eqns]
    return closed.jaxpr.replace(eqns=eqns)


READERS = {
    "labels": lambda jaxpr: propagate(jaxpr, [frozenset("x")] * len(jaxpr.invars)),
    "units": lambda jaxpr: follow(jaxpr, (), [np.arange(3) if v.aval.ndim else None for v in jaxpr.invars]),
}


@pytest.mark.parametrize("reader", READERS)
def test_an_unknown_scan_is_refused(reader):
    closed, eqn = last(lambda c: substeps(2 * c, c), ONES, name="scan")
    jaxpr = changed(closed, eqn, drop=("num_consts", "ft_in"))
    known = rf"jax {jax.__version__}: `scan` has no parameter 'num_consts', with the parameters .*length"
    with pytest.raises(NotImplementedError, match=known + r".*known for jax 0\.8 to 0\.12"):
        READERS[reader](jaxpr)
    jaxpr = changed(closed, eqn, drop=("ft_in",), num_consts=3, num_carry=2)
    with pytest.raises(NotImplementedError, match="`scan` has 3 constants and 2 carried values"):
        READERS[reader](jaxpr)


@pytest.mark.parametrize("reader", READERS)
def test_unknown_bodies_are_refused(reader):
    other = jax.make_jaxpr(lambda a, b, c: a)(ONES, ONES, ONES)
    closed, eqn = last(lambda i, x: jax.lax.cond(i, jnp.sin, jnp.cos, x), True, ONES, name="cond")
    with pytest.raises(NotImplementedError, match="`cond` has 2 inputs and 1 outputs, what is inside has 3 and 1"):
        READERS[reader](changed(closed, eqn, branches=(other, other)))
    with pytest.raises(NotImplementedError, match="`cond` has no parameter 'branches'"):
        READERS[reader](changed(closed, eqn, drop=("branches",)))


def test_an_unknown_call_is_refused():
    closed, eqn = last(lambda x: jax.checkpoint(jnp.sin)(x), ONES, name="remat2")
    with pytest.raises(NotImplementedError, match="`remat2` has no parameter 'jaxpr'"):
        flatten(jex.ClosedJaxpr(changed(closed, eqn, drop=("jaxpr",)), ()))


def test_units_moved_to_another_shape_are_refused():
    closed, eqn = last(lambda x: jax.lax.slice(x, (0,), (2,)), ONES, name="slice")
    with pytest.raises(NotImplementedError, match="`slice` has no parameter 'limit_indices'"):
        READERS["units"](changed(closed, eqn, drop=("limit_indices",)))
    with pytest.raises(NotImplementedError, match="`slice` has an output of another shape than its parameters say"):
        READERS["units"](changed(closed, eqn, limit_indices=(1,)))


# --- patterns in plain numbers ---------------------------------------------------------------------------------------

# Influences that SnAp keeps for n of 1, 2 and all.
SIZES = {
    "rate": (29, 94, 116), "lif": (56, 198, 224), "lif_vjp": (56, 192, 224), "alif_cell": (81, 216, 324),
    "alif_v": (90, 339, 360), "gru_cell": (57, 312, 340), "fused": (87, 348, 348), "lstm": (228, 912, 912),
    "two": (65, 367, 384), "two_lif": (124, 640, 736), "late": (63, 331, 372), "feedback": (51, 310, 408),
    "delay_chain": (110, 476, 500), "shared": (62, 330, 364), "old_readout": (30, 106, 120), "tied": (34, 119, 136),
    "axis_2": (62, 248, 248), "conv_1d": (132, 632, 792), "conv_2d": (188, 1288, 1608), "low_rank": (32, 128, 128),
    "nontemp": (27, 88, 108), "clock": (30, 104, 120), "cut": (30, 30, 30), "alif_trained": (132, 399, 492),
    "two_groups": (48, 150, 196), "three": (109, 567, 588),
}  # fmt: skip


@pytest.mark.parametrize("kind", few(list(SIZES), ["fused", "delay_chain", "conv_1d"]))
def test_patterns_in_plain_numbers(kind):
    case = models.build(kind)
    assert tuple(start(se.SnAp(n=n), case).traces.blocks.size for n in (1, 2, None)) == SIZES[kind]


WAYS = {
    "scan": lambda h: jax.lax.scan(lambda c, _: (0.9 * c, None), h, None, length=3)[0],
    "fori": lambda h: jax.lax.fori_loop(0, 3, lambda i, c: 0.9 * c, h),
    "nested": lambda h: jax.lax.fori_loop(0, 3, lambda i, c: jax.lax.fori_loop(0, 2, lambda j, d: 0.9 * d, c), h),
    "cond": lambda h: jax.lax.cond(h.sum() > 0, lambda h: h, lambda h: 0.7 * h, h),
    "cond in scan": lambda h: jax.lax.fori_loop(
        0, 3, lambda i, c: jax.lax.cond(i > 1, lambda c: 0.7 * c, jnp.sin, c), h
    ),
    "checkpoint": lambda h: jax.checkpoint(jnp.tanh)(h),
    "jit": lambda h: jax.jit(jnp.tanh)(h),
    "custom_jvp": lambda h: jax.nn.relu(h) + h,
    "vmap": lambda h: jax.vmap(jax.nn.elu)(h),
    "stacked": lambda h: jnp.unstack(jnp.stack([h, jnp.sin(h)]))[1],
    "split": lambda h: sum(jnp.split(jnp.concatenate([h, h * h], -1), 2, -1)),
    "padded": lambda h: jnp.pad(h, ((0, 0), (1, 2)))[:, 1:-2],
    "tiled": lambda h: jnp.tile(h, (1, 2))[:, : models.N],
    "einsum": lambda h: jnp.einsum("bi,i->bi", h, jnp.arange(1.0, models.N + 1)),
    "gathered": lambda h: h[:, jnp.arange(models.N)[::-1]][:, ::-1],
    "added at": lambda h: h.at[:, 1].add(1.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_patterns_do_not_grow_by_how_a_step_is_written(way):
    """Each unit acts on itself, however that is written: as many as for a decay alone."""

    def forward(op, h, held, x):
        new = 0.5 * WAYS[way](h["h"]) + jnp.tanh(op("inp", x) + op("rec", held["h"]))
        return {"h": new}, op("out", new)

    case = models.build("rate", forward=forward)
    assert start(se.SnAp(n=2), case).traces.blocks.size == SIZES["rate"][1]
