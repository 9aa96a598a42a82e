"""Tolerances and norms of errors."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.problems import PENDULUM0, pendulum

import tfsymadj
from tfsymadj.steps.tolerance import holds_zero, scaled_norm


@pytest.mark.slow
def test_tolerances_as_nests_and_arrays():
    def dynamics(t, y):
        return {"a": pendulum(t, y["a"]), "b": -y["b"]}

    y0 = {"a": PENDULUM0, "b": np.ones([3, 2])}
    times = [0.0, 3.0]

    def steps(**tolerances):
        return int(tfsymadj.solve(dynamics, y0, times, **tolerances).stats.num_steps)

    scalar = steps(rtol=1e-7, atol=1e-7)
    nest = {"a": 1e-7, "b": 1e-7}
    assert steps(rtol=nest, atol=nest) == scalar
    arrays = {"a": np.full(2, 1e-7), "b": np.full([3, 1], 1e-7)}
    assert steps(rtol=arrays, atol=arrays) == scalar
    # A part that doesn't matter makes the steps longer, a mixed-up one does not.
    assert steps(rtol={"a": 1.0, "b": 1e-7}, atol={"a": 1.0, "b": 1e-7}) < scalar
    only_b = tfsymadj.solve(lambda t, y: -y, y0["b"], times, rtol=1e-7, atol=1e-7)
    assert steps(rtol=0.0, atol={"a": 1e30, "b": 1e-7}) >= int(only_b.stats.num_steps) - 2


def test_tolerance_for_each_entry():
    y0 = np.array([1.0, 1.0])
    rates = np.array([1.0, 30.0])

    def steps(atol):
        solution = tfsymadj.solve(
            lambda t, y: -rates * y, y0, [0.0, 0.5], rtol=0.0, atol=atol, max_steps=4000
        )
        return int(solution.stats.num_steps)

    fast, slow = steps([1e30, 1e-9]), steps([1e-9, 1e30])
    assert fast > 2 * slow


def test_wrong_nest_of_tolerances():
    y0 = {"a": np.ones(2), "b": np.ones(2)}
    with pytest.raises(ValueError, match="`rtol` and `atol`.*Received: "):
        tfsymadj.solve(lambda t, y: y, y0, [0.0, 1.0], rtol={"a": 1e-3})


@pytest.mark.parametrize("atol", [1e-6, [1e-6, 1e-3, 0.1], 0.0], ids=["one", "each", "zero"])
def test_norms_of_lanes_are_those_of_each(atol):
    random = np.random.default_rng(0)
    shapes, dtypes = [(4, 3), (4, 2, 2), (4,)], [tf.float64, tf.float32, tf.float64]
    xs, sizes = (
        [tf.constant(random.normal(size=s), d) for s, d in zip(shapes, dtypes)] for _ in range(2)
    )
    sizes = [tf.abs(x) for x in sizes]
    sizes[0] = tf.concat([tf.zeros([2, 3], tf.float64), sizes[0][2:]], 0)
    may_lack_scale = holds_zero(atol)
    assert may_lack_scale == (atol == 0.0)

    def norm(xs, sizes, lanes):
        return scaled_norm(xs, sizes, 1e-3, atol, may_lack_scale, lanes=lanes)

    found = norm(xs, sizes, 1)
    assert (found.dtype, found.shape) == (tf.float64, (4,))
    for i in range(4):
        alone = norm([x[i : i + 1] for x in xs], [x[i : i + 1] for x in sizes], 0)
        assert alone.shape == ()
        # Squares are summed in the dtype of each tensor.
        np.testing.assert_allclose(found[i], alone, rtol=1e-6)


def test_norm_is_the_root_of_the_mean_square():
    xs = [tf.constant([3.0, -4.0], tf.float64), tf.constant(3.0 + 4.0j, tf.complex128)]
    sizes = [tf.ones([2], tf.float64), tf.constant(2.0, tf.float64)]
    expected = np.sqrt((9 + 16 + 25 / 4) / 3) / 0.1
    np.testing.assert_allclose(scaled_norm(xs, sizes, 0.1, 0.0, True), expected, rtol=1e-15)
    # Each lane counts its own entries, those of no scale included.
    zeros = [tf.zeros([3, 5], tf.float64)]
    np.testing.assert_array_equal(scaled_norm(zeros, zeros, 0.1, 0.0, True, lanes=1), np.zeros(3))
