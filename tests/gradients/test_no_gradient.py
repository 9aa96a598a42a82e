"""Solves without a gradient."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

import tfsymadj

FIXED = dict(method="rk4", num_steps=4)


def test_no_gradient_refuses_to_be_differentiated():
    variable = tf.Variable(0.5)

    def differentiate():
        with tf.GradientTape() as tape:
            y = tfsymadj.odeint(lambda t, y: -variable * y, [1.0], [0.0, 1.0], **FIXED)[-1]
        return y, tape.gradient(y, variable)

    with tfsymadj.no_gradient():
        for function in (differentiate, tf.function(differentiate)):
            with pytest.raises(tf.errors.InvalidArgumentError, match="without a gradient"):
                function()
        y, gradient = tf.function(differentiate, jit_compile=True)()
    np.testing.assert_allclose(y, [np.exp(-0.5)], rtol=1e-4)
    assert np.isnan(gradient)
    assert np.isfinite(differentiate()[1])


@pytest.mark.parametrize(
    "options", [FIXED, dict(method="rk4", step_size=0.1), slow(dict(rtol=1e-5))]
)
@pytest.mark.parametrize("t", [slow((0.0, 1.0)), (1.0, 0.7, -0.5)])
def test_no_gradient_takes_the_same_steps(options, t):
    def dynamics(t, y):
        return tf.cos(3.0 * t) * y

    def solve(gradient):
        y0 = tf.constant([1.0, 2.0])
        return tfsymadj.solve(dynamics, y0, t, gradient=gradient, **options)

    expected = solve("symplectic_adjoint")
    for mode in (lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)):
        solution = mode(lambda: solve(tfsymadj.NoGradient()))()
        np.testing.assert_allclose(solution.y, expected.y, rtol=1e-6)
        assert solution.stats.num_accepted == expected.stats.num_accepted
        assert solution.stats.num_backward_evaluations == 0


def test_no_gradient_keeps_nothing():
    @tf.function
    def solve(y):
        return tfsymadj.odeint(lambda t, y: -y, y, [0.0, 1.0], method="euler", num_steps=400)[-1]

    y = tf.ones([256, 256])
    with tfsymadj.no_gradient():
        solve(y)
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    solve(y)
    peak = tf.config.experimental.get_memory_info("CPU:0")["peak"] - before
    assert peak < 10 * 2**18  # a few states; the checkpoints alone would be forty
