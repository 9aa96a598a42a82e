import doctest
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from helpers.modes import MODES, run
from hypothesis import given, settings
from hypothesis import strategies as st

from tfsymadj.bijectors import discrete
from tfsymadj.bijectors.discrete import Logit, bits_per_dimension, dequantize

tfb, tfd = tfp.bijectors, tfp.distributions
ALPHAS = [0.0, 1e-6, 0.05, 0.3]


def test_docstrings():
    results = doctest.testmod(discrete)
    assert results.attempted > 0
    assert results.failed == 0


# Noise.


@settings(max_examples=50, deadline=None)
@given(
    levels=st.integers(2, 2**16),
    seed=st.integers(-(2**63), 2**63 - 1),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_noise_stays_within_its_level(levels, seed, dtype):
    x = np.array([0, 1, levels // 2, levels - 1] * 50)
    y = dequantize(x, levels, seed, dtype).numpy()

    assert y.dtype == dtype
    assert y.shape == x.shape
    assert np.all((0 < y) & (y < 1))
    if levels & (levels - 1) == 0:
        np.testing.assert_array_equal(np.floor(levels * y), x)
    else:
        noise = levels * y.astype("float64") - x
        rounding = 2 * levels * np.finfo(dtype).eps
        assert np.all((-rounding < noise) & (noise < 1 + rounding))


def test_rounding_reaches_neither_end():
    shape, seed = [2**22], (0, 0)
    u = tf.random.stateless_uniform(shape, seed, alg="philox")
    assert tf.reduce_any(u == 0.0)
    assert tf.reduce_any(255.0 + u == 256.0)

    assert tf.reduce_min(dequantize(tf.zeros(shape), 2, seed)) > 0.0
    for levels in (255, 256):
        last = dequantize(tf.fill(shape, levels - 1), levels, seed)
        assert tf.reduce_max(last) < 1.0


def test_noise_is_uniform():
    x = np.tile(np.arange(4, dtype="uint8"), 25_000)
    noise = 4 * dequantize(x, 4, 0, tf.float64).numpy() - x

    for level in range(4):
        assert scipy.stats.kstest(noise[x == level], "uniform").pvalue > 1e-3
    # Neighbours are independent: the correlation has a standard deviation of 1 / sqrt(n).
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 4 / math.sqrt(len(x))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("levels", [2, 5, 255, 256])
@pytest.mark.parametrize("constant", [True, False])
def test_equal_in_all_modes(dtype, levels, constant):
    values = np.random.default_rng(0).integers(levels, size=[500, 200])
    # Graphs move large constants through sums, which changes the rounding.
    x = values if constant else tf.Variable(values)
    eager, graph, xla = (run(lambda: dequantize(x, levels, (1, 2), dtype), mode) for mode in MODES)

    np.testing.assert_array_equal(graph, eager)
    np.testing.assert_array_equal(xla, eager)


def test_seeds():
    x = np.zeros([1000], int)
    first = dequantize(x, 2, 7)

    for seed in (7, (7, 0), tf.constant(7), np.array([7, 0], "uint8"), tf.constant([7, 0])):
        np.testing.assert_array_equal(dequantize(x, 2, seed), first)
    for seed in (8, (7, 1), (0, 7)):
        assert np.mean(dequantize(x, 2, seed) == first) < 0.01


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "bfloat16", "float64"])
def test_types_of_data(dtype):
    x = [[0, 3], [200, 255]]
    expected = dequantize(x, 256, 0)
    np.testing.assert_array_equal(dequantize(tf.cast(x, dtype), 256, 0), expected)


def test_unknown_shapes():
    function = tf.function(
        lambda x, seed: dequantize(x, 3, seed),
        input_signature=[tf.TensorSpec([None, 2], tf.uint8), tf.TensorSpec([2], tf.int32)],
    )
    x = np.array([[0, 1], [2, 2]], "uint8")
    np.testing.assert_array_equal(function(x, [4, 5]), dequantize(x, 3, (4, 5)))


@pytest.mark.parametrize("mode", MODES)
def test_no_level_gives_nan(mode):
    x = tf.constant([0.0, 0.5, 1.0, 2.0, -1.0, math.nan, math.inf])
    y = run(lambda: dequantize(x, 2, 0), mode)
    np.testing.assert_array_equal(np.isnan(y), [False, True, False, True, True, True, True])


@pytest.mark.parametrize("levels", [1, 0, -2, 2.0, True, None, "256"])
def test_wrong_levels(levels):
    with pytest.raises(ValueError, match="`levels` must be .* Received: "):
        dequantize([0, 1], levels, 0)
    if levels is not None:
        with pytest.raises(ValueError, match="`levels` must be .* Received: "):
            bits_per_dimension(0.0, 1, levels)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [True]}, TypeError, "`x` .* Received: bool"),
        ({"x": [1j]}, TypeError, "`x` .* Received: complex128"),
        ({"dtype": tf.int32}, TypeError, "`dtype` .* Received: int32"),
        ({"dtype": tf.float16}, TypeError, "`dtype` .* Received: float16"),
        ({"seed": None}, TypeError, "`seed` .* Received: None"),
        ({"seed": 0.5}, TypeError, "`seed` .* Received: float32"),
        ({"seed": (1, 2, 3)}, ValueError, r"`seed` .* Received: shape \(3,\)"),
    ],
)
def test_wrong_arguments(change, error, message):
    with pytest.raises(error, match=message):
        dequantize(**{"x": [0, 1], "levels": 2, "seed": 0, **change})


# Logit.


def data(dtype):
    """Points in (0, 1), close to the ends too."""
    tiny = np.logspace(-6, -2, 20)
    return np.concatenate([tiny, np.linspace(0.01, 0.99, 99), 1 - tiny]).astype(dtype)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trips(alpha, dtype):
    eps = np.finfo(dtype).eps
    x = data(dtype)
    y = Logit(alpha).forward(x)
    assert y.dtype == dtype
    # A new object, because the first one remembers where y comes from. An error of y, relative to
    # |y| < 14, is reduced by the slope of the inverse.
    back = Logit(alpha).inverse(tf.identity(y)).numpy()
    np.testing.assert_allclose(back, x, rtol=0, atol=8 * eps)

    y = np.linspace(-6, 6, 50).astype(dtype)
    x = Logit(alpha).inverse(y)
    forth = Logit(alpha).forward(tf.identity(x)).numpy()
    # The slope is up to 2 + 2 cosh(y).
    np.testing.assert_allclose(forth, y, rtol=0, atol=4 * eps * (2 + 2 * math.cosh(6)))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_values(alpha):
    x = data("float64")
    expected = scipy.special.logit(alpha + (1 - 2 * alpha) * x)
    # The reference's p is rounded, which the slope of at most 1 / 1e-6 magnifies.
    np.testing.assert_allclose(Logit(alpha).forward(x), expected, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(Logit(alpha).forward(1 - x), -expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("mode", MODES)
def test_log_determinants(alpha, mode):
    # Those of the transformation and of the tape are equally ill-conditioned close to the ends.
    x = tf.constant(np.linspace(0.01, 0.99, 99))
    y = tf.constant(np.linspace(-20.0, 20.0, 99))

    def compute():
        # New objects, so that nothing comes out of a cache.
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, y])
            forward, inverse = Logit(alpha).forward(x), Logit(alpha).inverse(y)
        slopes = tape.gradient(forward, x), tape.gradient(inverse, y)
        logs = Logit(alpha).forward_log_det_jacobian(x), Logit(alpha).inverse_log_det_jacobian(y)
        there = Logit(alpha).inverse_log_det_jacobian(tf.identity(forward))
        return slopes, logs, there

    (slope, inverse_slope), (fldj, ildj), there = run(compute, mode)
    np.testing.assert_allclose(fldj, np.log(slope), rtol=0, atol=1e-12)
    np.testing.assert_allclose(there, -fldj, rtol=0, atol=1e-12)
    # The derivative of the tape, p (1 - p), loses digits as p comes close to 1.
    inner = np.abs(y) < 7
    expected = np.log(inverse_slope)
    np.testing.assert_allclose(ildj[inner], expected[inner], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ildj, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", ALPHAS[1:])
def test_extreme_data(dtype, alpha):
    logit = Logit(alpha)
    ends = np.array([0, 1], dtype)
    y = logit.forward(ends).numpy()
    expected = math.log1p(-alpha) - math.log(alpha)
    np.testing.assert_allclose(y, [-expected, expected], rtol=4 * np.finfo(dtype).eps)
    assert np.all(np.isfinite(logit.forward_log_det_jacobian(ends)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_extreme_outputs(dtype, alpha):
    logit = Logit(alpha)
    y = np.array([-1e30, -1e3, 1e3, 1e30], dtype)
    x = logit.inverse(y).numpy()
    beyond = alpha / (1 - 2 * alpha)
    expected = [-beyond, -beyond, 1 + beyond, 1 + beyond]
    np.testing.assert_allclose(x, expected, rtol=4 * np.finfo(dtype).eps)
    expected = -np.abs(y) - math.log1p(-2 * alpha)
    np.testing.assert_allclose(logit.inverse_log_det_jacobian(y), expected, rtol=1e-6)


def test_without_alpha():
    assert Logit(0.0).forward([0.0, 1.0]).numpy().tolist() == [-math.inf, math.inf]
    tiny = 1e-30
    np.testing.assert_allclose(Logit(0.0).forward(tiny), math.log(tiny), rtol=1e-6)
    np.testing.assert_allclose(Logit(0.0).inverse(math.log(tiny)), tiny, rtol=1e-5)


def test_beyond_its_domain():
    x = [-0.1, 1.1]
    assert np.all(np.isnan(Logit().forward(x)))
    assert np.all(np.isnan(Logit().forward_log_det_jacobian(x)))


def test_is_a_bijector():
    logit = Logit(0.1, name="squeeze")
    assert logit.parameters["alpha"] == 0.1
    assert logit.name == "squeeze"
    assert logit.copy(alpha=0.2).alpha == 0.2
    assert logit.experimental_batch_shape() == []
    x = np.full([5, 3], 0.3, "float32")
    assert logit.forward_log_det_jacobian(x, event_ndims=1).shape == [5]
    distribution = tfd.TransformedDistribution(tfd.Normal(0.0, 1.0), tfb.Invert(logit))
    np.testing.assert_allclose(distribution.cdf(0.5), 0.5, rtol=1e-6)
    np.testing.assert_allclose(distribution.quantile(0.5), 0.5, rtol=1e-6)


@pytest.mark.parametrize("alpha", [-0.01, 0.5, 1, math.nan, "0.1", None])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match="`alpha` must be .* Received: "):
        Logit(alpha)


# Bits.


def test_uniform_density():
    log_prob = tfd.Uniform(tf.zeros([3, 784]), 1.0).log_prob(dequantize(tf.zeros([3, 784]), 256, 0))
    bits = bits_per_dimension(tf.reduce_sum(log_prob, -1), event_size=784, levels=256)
    assert bits.numpy().tolist() == [8.0, 8.0, 8.0]


def test_scales_agree():
    """The density on the scale of the integers is that on [0, 1]^D divided by levels^D."""
    levels, size = 5, 3
    y = dequantize(np.array([[0, 4, 2], [1, 1, 3]]), levels, 0, tf.float64)
    unit = tfd.Beta(tf.constant(2.0, tf.float64), 3.0)
    scaled = tfd.TransformedDistribution(unit, tfb.Scale(tf.constant(5.0, tf.float64)))
    from_unit = bits_per_dimension(tf.reduce_sum(unit.log_prob(y), -1), size, levels)
    from_integers = bits_per_dimension(tf.reduce_sum(scaled.log_prob(levels * y), -1), size)
    np.testing.assert_allclose(from_unit, from_integers, rtol=1e-14)


@pytest.mark.parametrize("levels", [2, 8, 256])
def test_piecewise_constant_density_needs_the_entropy(levels):
    rng = np.random.default_rng(levels)
    p = rng.dirichlet(np.ones(levels), size=2)
    x = np.stack(np.meshgrid(np.arange(levels), np.arange(levels), indexing="ij"), -1)
    y = dequantize(x, levels, 1, tf.float64).numpy()
    cell = np.floor(levels * y).astype(int)
    density = levels * p[0][cell[..., 0]] * levels * p[1][cell[..., 1]]

    bits = bits_per_dimension(np.log(density), event_size=2, levels=levels)
    mean = np.sum(np.outer(p[0], p[1]) * bits)
    entropy = np.mean([scipy.stats.entropy(q, base=2) for q in p])
    np.testing.assert_allclose(mean, entropy, rtol=1e-13)


def test_bits_of_a_logit_normal():
    """The mean over the noise is an integral; with many levels it is the length of the code."""
    levels, alpha, loc, scale = 256, 0.05, 0.4, 1.3
    base = tfd.Normal(tf.constant(loc, tf.float64), scale)
    model = tfd.TransformedDistribution(base, tfb.Invert(Logit(alpha)))
    u = (np.arange(32) + 0.5) / 32
    y = (np.arange(levels)[:, np.newaxis] + u) / levels
    means = np.mean(bits_per_dimension(model.log_prob(y), 1, levels), axis=1)

    normal = scipy.stats.norm(loc, scale)

    def density(y):
        p = alpha + (1 - 2 * alpha) * y
        return normal.pdf(math.log(p / (1 - p))) * (1 - 2 * alpha) / (p * (1 - p))

    for level in (0, 1, 100, 255):
        integral, _ = scipy.integrate.quad(
            lambda y: -math.log2(density(y) / levels) * levels, level / levels, (level + 1) / levels
        )
        assert abs(means[level] - integral) < 1e-4

    edges = normal.cdf(scipy.special.logit(alpha + (1 - 2 * alpha) * np.linspace(0, 1, levels + 1)))
    code = -np.log2(np.diff(edges))
    # Jensen's inequality; the errors of the means themselves are below 1e-6.
    assert np.all(means > code - 1e-6)
    weights = np.diff(edges) / np.sum(np.diff(edges))
    assert abs(np.sum(weights * (means - code))) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_type_and_shape_of_bits(dtype):
    bits = bits_per_dimension(np.zeros([2, 3], dtype), 4, 16)
    assert bits.dtype == dtype
    assert bits.shape == [2, 3]


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_wrong_event_size(size):
    with pytest.raises(ValueError, match="`event_size` must be .* Received: "):
        bits_per_dimension(0.0, size)


def test_wrong_log_prob():
    with pytest.raises(TypeError, match="`log_prob` must be floating. Received: int32"):
        bits_per_dimension(0, 1)
