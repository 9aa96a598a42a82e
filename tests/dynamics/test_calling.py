"""How dynamics are called."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import partly_slow
from helpers.problems import loss

import tfsymadj
from tfsymadj import Backprop
from tfsymadj.dynamics import calling

FIXED = dict(method="euler", num_steps=4)
Y0 = tf.ones([4, 3])


def solve(dynamics, y0=Y0, **options):
    return tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **(FIXED | options))


class TimeLayer(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def build(self, t_shape, y_shape=None):
        self.dense.build((None, 3))

    def call(self, t, y):
        return t * self.dense(y)


class TrainingLayer(keras.layers.Layer):
    def call(self, y, training=None, mask=None):
        return -y


class ArgsLayer(keras.layers.Layer):
    def call(self, y, gain):
        return gain * y


def functional(inputs):
    tensors = [keras.Input((n,)) for n in inputs]
    joined = keras.layers.Concatenate()(tensors) if len(tensors) > 1 else tensors[0]
    return keras.Model(tensors, keras.layers.Dense(3)(joined))


@pytest.mark.parametrize(
    "make, args, expected",
    [
        (lambda: lambda t, y: y, (), False),
        (lambda: keras.layers.Dense(3), (), True),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), (), True),
        (lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]), (), True),
        (lambda: functional([3]), (), True),
        (lambda: functional([1, 3]), (), False),
        (lambda: functional([3, 2]), (tf.ones([4, 2]),), True),
        (lambda: functional([1, 3, 2]), (tf.ones([4, 2]),), False),
        (TimeLayer, (), False),
        (TrainingLayer, (), True),
        (ArgsLayer, (tf.constant(1.0),), True),
        (ArgsLayer, (), False),
    ],
)
def test_is_autonomous(make, args, expected):
    dynamics = make()
    assert calling.is_autonomous(dynamics, args, None) is expected
    assert calling.is_autonomous(dynamics, args, True) is True
    assert calling.is_autonomous(dynamics, args, False) is False


KERAS = {
    "dense": (lambda: keras.layers.Dense(3), ()),
    "sequential": (lambda: keras.Sequential([keras.layers.Dense(3)]), ()),
    "functional": (lambda: functional([3]), ()),
    "functional_time": (lambda: functional([1, 3]), ()),
    "functional_args": (lambda: functional([1, 3, 2]), (tf.ones([4, 2]),)),
    "time_layer": (TimeLayer, ()),
    "args_layer": (ArgsLayer, (tf.constant(2.0),)),
}


@pytest.mark.parametrize("name", partly_slow(KERAS, "dense", "functional_time", "args_layer"))
def test_keras_dynamics(name):
    """All weights have the gradients of back-propagation, and the first call builds them."""
    make, args = KERAS[name]
    layer = make()
    y = solve(layer, args=args)
    assert y.shape == (2, 4, 3)
    weights = [w.value for w in layer.trainable_variables]
    assert bool(weights) is (name != "args_layer")
    results = []
    for gradient in ("symplectic_adjoint", Backprop()):
        with tf.GradientTape() as tape:
            tape.watch(Y0)
            value = loss(solve(layer, args=args, gradient=gradient))
        results.append(tape.gradient(value, [Y0, *weights]))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_functional_model_gets_the_time_for_each_example():
    time, y = keras.Input((1,)), keras.Input((3,))
    model = keras.Model([time, y], keras.ops.concatenate([time, time, time], -1) + 0.0 * y)
    # Euler: the mean of 0, 1/4, 1/2, 3/4
    np.testing.assert_allclose(solve(model)[1] - Y0, 0.375 * np.ones([4, 3]), rtol=1e-6)


def test_time_layer_gets_the_time():
    layer = TimeLayer()
    layer.build((), (4, 3))
    layer.dense.set_weights([np.zeros([3, 3]), np.ones(3)])
    np.testing.assert_allclose(solve(layer)[1] - Y0, 0.375 * np.ones([4, 3]), rtol=1e-6)


@pytest.mark.parametrize("autonomous", [True, False])
def test_autonomous_overrides(autonomous):
    def dynamics(*inputs):
        assert len(inputs) == (1 if autonomous else 2)
        return -inputs[-1]

    solve(dynamics, autonomous=autonomous)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64])
def test_time_has_the_real_dtype_of_the_state(dtype):
    seen = []

    def dynamics(t, y):
        seen.append((t.dtype, t.shape.rank))
        return -y

    solve(dynamics, tf.ones([2], dtype))
    assert set(seen) == {(dtype.real_dtype, 0)}


def test_module_and_callable_object():
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(2.0)

        def __call__(self, t, y):
            return self.w * y

    module = Module()
    np.testing.assert_allclose(solve(module)[1], 1.5**4 * Y0, rtol=1e-5)
    with tf.GradientTape() as tape:
        y = solve(module)[1, 0, 0]
    np.testing.assert_allclose(tape.gradient(y, module.w), 1.5**3, rtol=1e-5)


def test_autograph():
    """Python control flow on tensors, as in any `tf.function`."""

    def dynamics(t, y):
        if t < 0.5:
            slope = tf.ones_like(y)
        else:
            slope = tf.zeros_like(y)
        for _ in tf.range(2):
            slope = 2.0 * slope
        return slope

    # Euler at 0, 1/4, 1/2, 3/4: the first two with slope 4
    np.testing.assert_allclose(solve(dynamics)[1], Y0 + 2.0)
    compiled = tf.function(lambda: solve(dynamics))
    np.testing.assert_allclose(compiled()[1], Y0 + 2.0)


def test_branch_on_the_state_has_right_gradients():
    w = tf.Variable(0.5)

    def dynamics(t, y):
        if tf.reduce_sum(y) > 13.0:
            return -w * y
        return w * y

    results = []
    for gradient in ("symplectic_adjoint", "backprop"):
        with tf.GradientTape() as tape:
            value = loss(solve(dynamics, gradient=gradient))
        results.append(tape.gradient(value, w))
    np.testing.assert_allclose(*results, rtol=1e-5)
