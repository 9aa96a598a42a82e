"""Second derivatives are exact."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, relative_error
from helpers.modes import run, slow
from helpers.problems import loss

import tfsymadj
from tfsymadj import Backprop, SymplecticAdjoint

HEUN, BOSH3 = (
    dict(method="heun", num_steps=3),
    dict(method="bosh3", rtol=1e-3, max_steps=50, outputs="step"),
)


@pytest.mark.parametrize(
    "mode, options, checkpoints",
    [
        pytest.param("graph", HEUN, "sqrt", id="graph-heun-sqrt"),
        slow("eager", HEUN, "sqrt", id="eager-heun-sqrt"),
        slow("graph", HEUN, "steps", id="graph-heun-steps"),
        slow("graph", HEUN, "stages", id="graph-heun-stages"),
        slow("graph", BOSH3, "sqrt", id="graph-bosh3-sqrt"),
        slow("graph", BOSH3, "stages", id="graph-bosh3-stages"),
    ],
)
def test_second_derivatives(mode, options, checkpoints):
    w = tf.Variable([[0.5, -0.3], [0.2, 0.7]], dtype=tf.float64)
    closed = tf.constant([0.3, -0.2], tf.float64)
    y0 = tf.constant([[1.0, -0.5], [0.2, 0.8]], tf.float64)
    t = tf.constant([0.0, 0.4, 1.0], tf.float64)
    sources = [y0, t, closed, w]

    def dynamics(t, y):
        return tf.tanh(y @ w) + closed * tf.sin(t + y * closed)

    def compute(gradient):
        with tf.GradientTape() as outer:
            outer.watch(sources[:3])
            with tf.GradientTape() as inner:
                inner.watch(sources[:3])
                value = loss(tfsymadj.odeint(dynamics, y0, t, gradient=gradient, **options))
            mixed = loss(inner.gradient(value, sources))
        return outer.gradient(mixed, sources)

    actual = run(lambda: compute(SymplecticAdjoint(checkpoints)), mode)
    # TensorFlow can't compile the gradient of a loop inside of a branch: back-propagate in a graph.
    expected = run(lambda: compute(Backprop()), "graph" if mode == "xla" else mode)
    for i, (a, b) in enumerate(zip(actual, expected)):
        assert a is not None, f"no second derivative for source {i}"
        assert relative_error(a, b) < FLOAT64, i


def test_second_derivative_of_a_known_solution():
    # y = y0 exp(a t): d2y/da2 = t^2 y, d2y/da dt = (1 + a t) y.
    a = tf.Variable(0.7, dtype=tf.float64)
    t = tf.constant([0.0, 1.5], tf.float64)

    @tf.function
    def compute():
        with tf.GradientTape() as outer:
            outer.watch(t)
            with tf.GradientTape() as inner:
                y = tfsymadj.odeint(
                    lambda t, y: a * y, np.ones([1]), t, method="midpoint", num_steps=200
                )[-1, 0]
            da = inner.gradient(y, a)
        return outer.gradient(da, [a, t])

    daa, dat = compute()
    end = np.exp(0.7 * 1.5)
    # A method of order two: (a h)^2 = 3e-5
    np.testing.assert_allclose(daa, 1.5**2 * end, rtol=1e-4)
    np.testing.assert_allclose(dat[1], (1 + 0.7 * 1.5) * end, rtol=1e-4)
