"""Tests of how dynamics are called, searched and closed: calling, closing, contents."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import loss

import tfsymadj
from tfsymadj import Backprop
from tfsymadj.dynamics import calling, contents

FIXED = dict(method="euler", num_steps=4)
Y0 = tf.ones([4, 3])


def solve(dynamics, y0=Y0, **options):
    return tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **(FIXED | options))


# Dynamics that change between two evaluations


counter = tf.Variable(0.0)


def random_normal(t, y):
    return y * tf.random.normal(tf.shape(y))


def assign_add(t, y):
    counter.assign_add(1.0)
    return y


def py_function(t, y):
    return tf.ensure_shape(tf.py_function(lambda y: 2 * y, [y], tf.float32), y.shape)


def numpy_function(t, y):
    return tf.ensure_shape(tf.numpy_function(lambda y: 2 * y, [y], tf.float32), y.shape)


def keras_random(t, y):
    return y * keras.random.normal(y.shape, seed=_SEED)


_SEED = keras.random.SeedGenerator(1)


def in_training(layer, training=True):
    """The layer in its training mode, as dynamics."""
    return lambda t, y: layer(y, training=training)


class Counting:
    """Python state that ends up in the result, as another constant at each trace."""

    def __init__(self):
        self.calls = 0

    def __call__(self, t, y):
        self.calls += 1
        return y * self.calls


class Branching(Counting):
    """Python state that decides what is computed."""

    def __call__(self, t, y):
        self.calls += 1
        return -y if self.calls % 2 else tf.sin(y)


def numpy_random(t, y):
    return y * np.random.default_rng().normal()


NOT_REPRODUCIBLE = {
    "dropout": (lambda: in_training(keras.layers.Dropout(0.5)), "training=False"),
    "noise": (lambda: in_training(keras.layers.GaussianNoise(0.5)), "training=False"),
    "batch_norm": (lambda: in_training(keras.layers.BatchNormalization()), "training=False"),
    "spectral": (
        lambda: in_training(keras.layers.SpectralNormalization(keras.layers.Dense(3))),
        "training=False",
    ),
    "keras_random": (lambda: keras_random, "`args`"),
    "python_counter": (Counting, "Python counter"),
    "python_branch": (Branching, "Python counter"),
    "numpy_random": (lambda: numpy_random, "`args`"),
    "random_normal": (lambda: random_normal, "`args`"),
    "assign_add": (lambda: assign_add, "write to a variable"),
    "py_function": (lambda: py_function, "Python"),
    "numpy_function": (lambda: numpy_function, "Python"),
    "nested": (lambda: tf.function(random_normal), "`args`"),
    "nested_assign": (lambda: tf.function(assign_add), "write to a variable"),
    "nested_twice": (
        lambda: tf.function(lambda t, y: tf.function(random_normal)(t, y) + y),
        "`args`",
    ),
    "in_a_loop": (
        lambda: (
            lambda t, y: tf.while_loop(
                lambda i, y: i < 2, lambda i, y: (i + 1, random_normal(t, y)), (0, y)
            )[1]
        ),
        "`args`",
    ),
    "in_a_branch": (
        lambda: lambda t, y: tf.cond(t > 0.5, lambda: random_normal(t, y), lambda: y),
        "`args`",
    ),
}


@pytest.mark.parametrize("name", NOT_REPRODUCIBLE)
@pytest.mark.parametrize("gradient", ["symplectic_adjoint", "backprop"])
def test_refused(name, gradient):
    make, remedy = NOT_REPRODUCIBLE[name]
    dynamics = make()
    with pytest.raises(ValueError) as info:
        solve(dynamics, gradient=gradient)
    message = str(info.value)
    assert "`dynamics` must give the same result" in message
    assert remedy in message
    assert "Received: operation" in message


def test_a_first_trace_may_differ():
    """As that of layers that make something at their first call."""
    made = []

    def dynamics(t, y):
        if not made:
            made.append(tf.reduce_sum(tf.eye(2)) * 0.0)
            y = tf.identity(y)
        return -y

    np.testing.assert_allclose(solve(dynamics)[-1], 0.75**4 * Y0, rtol=1e-6)


def test_refused_by_layer_name():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dropout(0.5, name="my_dropout")])
    model.build((None, 3))
    with pytest.raises(ValueError, match="Received: .*my_dropout"):
        solve(in_training(model))


def test_refused_in_a_graph():
    @tf.function
    def compute():
        return solve(random_normal)

    with pytest.raises(ValueError, match="Received: operation"):
        compute()


def stateless(t, y):
    return y * tf.random.stateless_normal(tf.shape(y), seed=[1, 2], alg="philox")


def prints(t, y):
    tf.print("t =", t, output_stream="file:///dev/null")
    return -y


def asserts(t, y):
    tf.debugging.Assert(t >= -1.0, [t])
    tf.debugging.assert_all_finite(y, "y")
    return -y


_TABLE = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer([0, 1], [1.0, 2.0]), default_value=0.0
)


def looks_up(t, y):
    return y * _TABLE.lookup(tf.constant(1))


EMBEDDING = tf.Variable(tf.ones([5, 3]))


def gathers(t, y):
    return y * tf.gather(EMBEDDING, [0, 1, 1, 4])


ALLOWED = {
    "stateless": lambda: stateless,
    "prints": lambda: prints,
    "asserts": lambda: asserts,
    "looks_up": lambda: looks_up,
    "gathers": lambda: gathers,
    "traced": lambda: tf.function(lambda t, y: -y),
    "dropout": lambda: in_training(keras.layers.Dropout(0.5), False),
    "batch_norm": lambda: keras.layers.BatchNormalization(),
    "spectral": lambda: in_training(
        keras.layers.SpectralNormalization(keras.layers.Dense(3)), False
    ),
    "noise": lambda: keras.layers.GaussianNoise(0.5),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name):
    dynamics = ALLOWED[name]()

    def gradient(method):
        with tf.GradientTape() as tape:
            tape.watch([Y0, EMBEDDING])
            value = loss(solve(dynamics, gradient=method))
        return tape.gradient(value, [Y0, EMBEDDING], unconnected_gradients="zero")

    actual, expected = gradient("symplectic_adjoint"), gradient("backprop")
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(tf.convert_to_tensor(a), tf.convert_to_tensor(b), rtol=1e-5)


def test_unused_random_numbers_are_refused_too():
    # A trace does not know what will be used.
    def dynamics(t, y):
        tf.random.normal([])
        return y

    with pytest.raises(ValueError, match="RandomStandardNormal"):
        solve(dynamics)


def test_variables_that_change_between_calls():
    """Dynamics that read a variable later that the first trace did not."""
    variables = [tf.Variable(1.0), tf.Variable(1.0)]
    calls = []

    def dynamics(t, y):
        calls.append(1)
        return variables[len(calls) > 3] * y

    with pytest.raises(ValueError, match="same variables at each call.*Received: "):
        solve(dynamics, method="rk4")


# Kinds of dynamics


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


@pytest.mark.parametrize("name", KERAS)
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


# What they hold


def closing_over(x):
    return lambda t, y: x


def test_frozen_storages():
    layer = keras.layers.Dense(3)
    layer.build((None, 3))
    assert contents.frozen_storages(closing_over(layer)) == set()
    layer.trainable = False
    assert len(contents.frozen_storages(closing_over(layer))) == 2
