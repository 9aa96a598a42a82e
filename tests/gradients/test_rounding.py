"""Rounding errors of long solves."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import run, slow

import tfsymadj
from tfsymadj import Backprop, StepCheckpoint, SymplecticAdjoint


def contractive(dtype):
    """A stable network, whose state and gradients keep their size."""
    random = np.random.default_rng(0)
    w0 = tf.Variable(random.normal(size=[8, 32]) / 8**0.5, dtype=dtype)
    b0 = tf.Variable(random.normal(size=[32]), dtype=dtype)  # or the state would decay to zero
    w1 = tf.Variable(0.5 * random.normal(size=[32, 8]) / 32**0.5, dtype=dtype)
    y0 = tf.constant(random.normal(size=[4, 8]), dtype)
    return (lambda t, y: tf.tanh(y @ w0 + b0) @ w1 - y), y0, (w0, b0, w1)


def long_gradients(dtype, gradient, num_steps, mode):
    dynamics, y0, weights = contractive(dtype)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = tfsymadj.odeint(
                dynamics, y0, [0.0, 10.0], method="rk4", num_steps=num_steps, gradient=gradient
            )
            value = tf.reduce_mean(y[-1] ** 2)
        return tape.gradient(value, [y0, *weights])

    return np.concatenate([np.ravel(g).astype(np.float64) for g in run(compute, mode)])


@pytest.mark.parametrize("mode", ["graph", slow("xla")])
@pytest.mark.parametrize("num_steps", [100, slow(10_000)])
def test_rounding_does_not_grow_with_the_steps(num_steps, mode):
    """Within a few roundings of the exact gradient of the same steps, however many."""
    exact = long_gradients(tf.float64, SymplecticAdjoint("sqrt"), num_steps, mode)
    error = {
        repr(gradient): np.linalg.norm(
            long_gradients(tf.float32, gradient, num_steps, mode) - exact
        )
        / np.linalg.norm(exact)
        for gradient in (SymplecticAdjoint("sqrt"), SymplecticAdjoint("stages"), StepCheckpoint())
    }
    assert max(error.values()) < 5e-7, error
    backprop = long_gradients(tf.float32, Backprop(), num_steps, mode) - exact
    assert error[repr(SymplecticAdjoint("sqrt"))] <= np.linalg.norm(backprop) / np.linalg.norm(
        exact
    )
