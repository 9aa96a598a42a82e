"""Numerical honesty: long solves, odd scales, and the same bits for the same call."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import relative_error
from helpers.modes import XLA_SLOW, run, slow
from helpers.problems import mlp

import tfsymadj

SINGLE = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("mode", ["xla", slow("graph"), slow("eager")])
def test_a_hundred_thousand_steps_in_single_precision(mode):
    """Against the discrete solution, which is known: y_n = R(-h rate)^n y_0."""
    n = 100_000
    rate, y0 = tf.constant([0.5, 1.0]), tf.constant([3.0, -2.0])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, rate])
            y = tfsymadj.odeint(lambda t, y: -rate * y, y0, [0.0, 2.0], method="heun", num_steps=n)[
                -1
            ]
            value = tf.reduce_sum(y)
        return y, tape.gradient(value, [y0, rate])

    y, (to_y0, to_rate) = run(compute, mode)
    h, r = 2.0 / n, np.array([0.5, 1.0])
    factor = 1.0 - h * r + (h * r) ** 2 / 2
    slope = n * factor ** (n - 1) * (-h + h**2 * r)
    # A few roundings, not a hundred thousand; h r itself is rounded once a step, the same way.
    assert relative_error(y, np.array([3.0, -2.0]) * factor**n) < 8 * SINGLE
    assert relative_error(to_y0, factor**n) < 8 * SINGLE
    assert relative_error(to_rate, np.array([3.0, -2.0]) * slope) < 8 * SINGLE


@pytest.mark.parametrize("options", [dict(num_steps=50), dict(rtol=1e-5, atol=0.0)])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_states(scale, options):
    """A linear system does not know its scale, nor do its steps without an absolute tolerance."""
    matrix = tf.constant([[-0.3, 2.0], [-2.0, -0.1]])

    def solve(scale):
        y0 = scale * tf.constant([[1.0, 0.5]])
        with tf.GradientTape() as tape:
            tape.watch(y0)
            solution = tfsymadj.solve(
                lambda t, y: y @ matrix, y0, [0.0, 3.0], method="bosh3", **options
            )
            value = tf.reduce_sum(solution.y[-1])
        return solution, tape.gradient(value, y0)

    solution, gradient = solve(scale)
    expected, expected_gradient = solve(1.0)
    assert solution.stats.num_accepted == expected.stats.num_accepted
    assert relative_error(solution.y / scale, expected.y) < 100 * SINGLE
    assert relative_error(gradient, expected_gradient) < 100 * SINGLE


@pytest.mark.parametrize("mode", XLA_SLOW)
@pytest.mark.parametrize("options", [dict(method="rk4", num_steps=10), dict(rtol=1e-6)])
def test_the_same_call_gives_the_same_bits(mode, options):
    problem = mlp(dtype=tf.float32, batch=64, size=16, hidden=64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([problem.y0, problem.t])
            y = tfsymadj.odeint(problem.dynamics, problem.y0, problem.t, **options)
            value = tf.reduce_sum(y**2)
        return [y, *tape.gradient(value, [problem.y0, problem.t, *problem.variables])]

    function = compute if mode == "eager" else tf.function(compute, jit_compile=mode == "xla")
    first = [x.numpy().tobytes() for x in function()]
    for _ in range(3):
        assert [x.numpy().tobytes() for x in function()] == first


def test_times_far_from_zero():
    """Times are in double precision, so that steps of 1e-6 at t = 1e6 are what they should be."""
    t0 = 1e6
    start = tf.constant([1.0], tf.float64)

    def dynamics(t, y):
        return tf.cos(1e4 * (t - t0)) * y

    times = t0 + np.array([0.0, 1e-4, 3e-4])
    options = dict(rtol=1e-9, atol=1e-9, outputs="step")
    y = tfsymadj.odeint(dynamics, start, times, **options)[:, 0]
    # Numbers near 1e6 are 1e-10 apart, a millionth of the interval.
    np.testing.assert_allclose(y, np.exp(np.sin(1e4 * (times - t0)) / 1e4), rtol=1e-9)
    single = tfsymadj.odeint(lambda t, y: -1e4 * y, tf.ones([1]), times, method="rk4", num_steps=50)
    np.testing.assert_allclose(single[:, 0], np.exp(-1e4 * (times - t0)), rtol=1e-5)
