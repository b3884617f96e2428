import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from sparse_etrace import surrogate

POINTS = np.array([-3.0, -1.0, -0.51, -0.2, 0.0, 0.3, 0.49, 1.0, 2.5])


def _logistic(v):
    return 1 / (1 + np.exp(-v))


CASES = {
    "triangle": (surrogate.triangle(0.7), lambda v: 0.7 * np.maximum(0, 1 - np.abs(v))),
    "fast_sigmoid": (surrogate.fast_sigmoid(3.0), lambda v: (1 + 3 * np.abs(v)) ** -2.0),
    "arctan": (surrogate.arctan(1.5), lambda v: 0.75 / (1 + (np.pi / 2 * 1.5 * v) ** 2)),
    "sigmoid": (surrogate.sigmoid(5.0), lambda v: 5 * _logistic(5 * v) * (1 - _logistic(5 * v))),
    "gaussian": (surrogate.gaussian(0.4), lambda v: np.exp(-(v**2) / 0.32) / np.sqrt(2 * np.pi * 0.16)),
    "exponential": (surrogate.exponential(3.0), lambda v: 1.5 * np.exp(-3 * np.abs(v))),
    "multi_gaussian": (
        surrogate.multi_gaussian(0.4),
        lambda v: 1.15 * norm.pdf(v, 0, 0.4) - 0.15 * (norm.pdf(v, 0.4, 2.4) + norm.pdf(v, -0.4, 2.4)),
    ),
    "boxcar": (surrogate.boxcar(2.0), lambda v: np.where(np.abs(v) < 1, 0.5, 0.0)),
}
each = pytest.mark.parametrize("spike, formula", CASES.values(), ids=CASES)
factories = pytest.mark.parametrize("name", CASES)
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])


@each
@dtypes
def test_forward_is_exact_and_keeps_the_type(spike, formula, dtype):
    with jax.enable_x64(True):
        v = jnp.asarray(POINTS, dtype)
        z = spike(v)
        assert z.dtype == v.dtype
        np.testing.assert_array_equal(np.asarray(z, "float64"), POINTS >= 0)


@each
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_spikes_at_exactly_the_threshold(spike, formula, zero):
    assert float(spike(jnp.array(zero))) == 1.0


@each
def test_a_missing_potential_is_no_spike(spike, formula):
    assert float(spike(jnp.array(jnp.nan))) == 0.0


@each
@dtypes
def test_both_modes_give_the_formula(spike, formula, dtype):
    with jax.enable_x64(True):
        v = jnp.asarray(POINTS, dtype)
        expected = formula(np.asarray(v, "float64"))
        tangent = jnp.full_like(v, 2)
        forward = jax.jvp(spike, (v,), (tangent,))[1]
        backward = jax.vjp(spike, v)[1](tangent)[0]
        assert forward.dtype == backward.dtype == v.dtype
        tolerance = {"float64": 1e-14, "float32": 1e-5, "bfloat16": 5e-2}[dtype]
        for got in (forward, backward):
            np.testing.assert_allclose(np.asarray(got, "float64"), 2 * expected, rtol=tolerance, atol=tolerance / 10)


@each
def test_under_jit_and_vmap(spike, formula):
    v = jnp.asarray(POINTS, "float32")
    expected = jax.vjp(spike, v)[1](jnp.ones_like(v))[0]
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(spike)))(v), expected, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(jax.vmap(spike))(v), spike(v))


@each
def test_far_from_the_threshold_nothing_overflows(spike, formula):
    v = jnp.array([-1e30, 1e30], "float32")
    assert np.isfinite(jax.vmap(jax.grad(spike))(v)).all()


@pytest.mark.parametrize("name", ["arctan", "sigmoid", "gaussian", "boxcar", "exponential"])
def test_the_area_of_a_density_is_one(name):
    spike = getattr(surrogate, name)()
    v = jnp.linspace(-400, 400, 2_000_001, dtype="float32")
    area = float(np.trapezoid(np.asarray(spike.derivative(v, *spike.params), "float64"), np.asarray(v, "float64")))
    assert area == pytest.approx(1, abs=2e-3)


@factories
def test_equal_by_value_so_nothing_compiles_twice(name):
    factory = getattr(surrogate, name)
    assert factory() == factory() and hash(factory()) == hash(factory())
    assert factory() != factory(3.5)
    traces = []

    @eqx.filter_jit
    def run(spike, v):
        traces.append(spike)
        return spike(v)

    for _ in range(3):
        run(factory(), jnp.zeros(2))
    assert len(traces) == 1
    run(factory(3.5), jnp.zeros(2))
    assert len(traces) == 2


@factories
@pytest.mark.parametrize("bad", [0.0, -1, float("nan"), float("inf")])
def test_bad_parameter(name, bad):
    with pytest.raises(ValueError, match=r"(gamma|alpha|beta|sigma|width): expected a positive, finite number, got"):
        getattr(surrogate, name)(bad)


@each
def test_integer_potential(spike, formula):
    with pytest.raises(TypeError, match="v: expected a floating type, got int32"):
        spike(jnp.arange(3, dtype="int32"))


def test_a_surrogate_of_ones_own():
    spike = surrogate.Surrogate(lambda v, scale: scale * v, (3.0,))
    assert float(jax.grad(spike)(jnp.array(2.0))) == 6.0
