"""TensorFlow's switches for debugging."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import run, slow
from helpers.problems import ramp

import tfsymadj


def decay(t, y):
    return -y


GRADIENTS = [
    "symplectic_adjoint",
    slow("backprop"),
    slow("baseline"),
    slow("aca"),
    slow("continuous_adjoint"),
]


def solve_with_gradient(options):
    w = tf.Variable([1.0, 0.5])
    y0 = tf.constant([[1.0, 0.0], [2.0, -1.0]])
    t = tf.constant([0.0, 0.3, 1.0], tf.float64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([y0, t])
            y = tfsymadj.odeint(lambda t, y: -w * y + tf.cos(t), y0, t, **options)
            value = tf.reduce_sum(y[1:] ** 2)
        return [y, *tape.gradient(value, [y0, t, w])]

    return compute


@pytest.fixture
def check_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


@pytest.mark.parametrize("mode", ["eager", slow("graph")])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_check_numerics(gradient, mode, check_numerics):
    for x in run(solve_with_gradient(dict(gradient=gradient)), mode):
        assert np.isfinite(x).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(atol=0.0),
        slow(dict(method="rk4", num_steps=5)),
        slow(dict(gradient=tfsymadj.SymplecticAdjoint(16))),
    ],
)
def test_check_numerics_with_options(options, check_numerics):
    for x in run(solve_with_gradient(options), "eager"):
        assert np.isfinite(x).all()


@pytest.mark.slow
def test_check_numerics_in_fit(check_numerics):
    model = keras.Sequential([keras.Input((2,)), tfsymadj.ODELayer(keras.layers.Dense(2))])
    model.compile("sgd", "mse", jit_compile=False)
    history = model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize(
    "dynamics, y0", [(lambda t, y: 0.0 * y, [1.0]), (decay, [0.0]), (ramp, [0.0, 1.0])]
)
def test_check_numerics_of_zero_slopes(dynamics, y0, check_numerics):
    assert np.isfinite(tfsymadj.odeint(dynamics, y0, [0.0, 1.0])).all()


def test_check_numerics_still_finds_what_is_wrong(check_numerics):
    with pytest.raises(tf.errors.InvalidArgumentError):
        tfsymadj.odeint(lambda t, y: tf.math.log(-y), [1.0], [0.0, 1.0])


@pytest.fixture
def functions_run_eagerly():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("mode", ["eager", slow("graph")])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_functions_run_eagerly(gradient, mode, functions_run_eagerly):
    found = run(solve_with_gradient(dict(gradient=gradient)), mode)
    tf.config.run_functions_eagerly(False)
    expected = run(solve_with_gradient(dict(gradient=gradient)), "eager")
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_fit_with_functions_run_eagerly(functions_run_eagerly):
    layer = tfsymadj.ODELayer(keras.layers.Dense(2), method="rk4", num_steps=2)
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse")
    before = [w.copy() for w in model.get_weights()]
    model.fit(np.ones((4, 2)), np.zeros((4, 2)), verbose=0)
    assert all((a != b).any() for a, b in zip(before, model.get_weights()))
