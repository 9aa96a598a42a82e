"""States in half precision."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import XLA_SLOW, run, slow

import tfsymadj

HALF = [tf.float16, tf.bfloat16]
EPSILON = {tf.float16: 2.0**-10, tf.bfloat16: 2.0**-7}


def decay(t, y):
    return -y


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("options", [dict(rtol=1e-2), dict(method="tsit5", rtol=1e-2, atol=0.0)])
def test_half_precision_adaptive(options, dtype, mode):
    y0, rate = tf.ones([2], dtype), tf.constant([1.0, 2.0], dtype)
    times = [0.0, 0.5, 1.0]

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, rate])
            solution = tfsymadj.solve(lambda t, y: -rate * y, y0, times, **options)
            value = tf.reduce_sum(solution.y[-1])
        return solution, tape.gradient(value, [y0, rate])

    solution, (to_y0, to_rate) = run(compute, mode)
    assert solution.y.dtype == to_y0.dtype == to_rate.dtype == dtype
    expected = np.exp(-np.array(times)[:, None] * [1.0, 2.0])
    close = dict(rtol=3e-2 + 6 * EPSILON[dtype])
    np.testing.assert_allclose(tf.cast(solution.y, tf.float64), expected, **close)
    np.testing.assert_allclose(tf.cast(to_y0, tf.float64), expected[-1], **close)
    np.testing.assert_allclose(tf.cast(to_rate, tf.float64), -expected[-1], **close)
    assert int(solution.stats.num_steps) < 50


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "gradient", [slow("backprop"), slow("baseline"), "aca", slow("continuous_adjoint")]
)
def test_half_precision_of_the_other_gradients(gradient, dtype):
    w = tf.Variable([1.0, 0.5], dtype=dtype)
    y0 = tf.ones([2], dtype)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        y = tfsymadj.odeint(lambda t, y: -w * y, y0, [0.0, 1.0], gradient=gradient, rtol=1e-2)
        value = tf.reduce_sum(y[-1])
    expected = np.exp([-1.0, -0.5])
    for found, exact in zip(tape.gradient(value, [y0, w]), (expected, -expected)):
        assert found.dtype == dtype
        np.testing.assert_allclose(
            tf.cast(found, tf.float32), exact, rtol=0.03 + 6 * EPSILON[dtype]
        )


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_sums_are_compensated(dtype):
    """A thousand steps, each of them too small for half precision."""
    y = tfsymadj.odeint(
        lambda t, y: tf.ones_like(y),
        tf.ones([1], dtype),
        [0.0, 1.0],
        method="euler",
        num_steps=1000,
    )
    np.testing.assert_allclose(tf.cast(y[-1], tf.float32), [2.0], rtol=EPSILON[dtype])


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_of_the_dynamics(dtype):
    """The dynamics get the state in its own dtype, also parts of a nest, and must return it."""

    def dynamics(t, y):
        assert (t.dtype, y["a"].dtype, y["b"].dtype) == (dtype, dtype, tf.float32)
        return {"a": -y["a"], "b": -y["b"]}

    y0 = {"a": tf.ones([2], dtype), "b": tf.ones([3])}
    y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], rtol=1e-2)
    assert (y["a"].dtype, y["b"].dtype) == (dtype, tf.float32)
    with pytest.raises(TypeError, match="`dynamics`.*Received: float32"):
        tfsymadj.odeint(lambda t, y: tf.cast(-y, tf.float32), y0["a"], [0.0, 1.0], num_steps=2)


def test_tolerance_below_half_precision():
    with pytest.warns(UserWarning, match="`rtol` is below the precision of bfloat16.*Received"):
        solution = tfsymadj.solve(decay, tf.ones([3], tf.bfloat16), [0.0, 1.0], rtol=1e-9)
    assert int(solution.stats.num_steps) < 20
