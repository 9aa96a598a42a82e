"""Dynamics that change between two evaluations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT32, relative_error
from helpers.modes import partly_slow
from helpers.problems import loss

import tfsymadj

FIXED = dict(method="euler", num_steps=4)
Y0 = tf.ones([4, 3])


def solve(dynamics, y0=Y0, **options):
    return tfsymadj.odeint(dynamics, y0, [0.0, 1.0], **(FIXED | options))


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


@pytest.mark.parametrize("name", partly_slow(ALLOWED, "asserts", "gathers", "traced", "noise"))
def test_allowed(name):
    dynamics = ALLOWED[name]()

    def gradient(method):
        with tf.GradientTape() as tape:
            tape.watch([Y0, EMBEDDING])
            value = loss(solve(dynamics, gradient=method))
        return tape.gradient(value, [Y0, EMBEDDING], unconnected_gradients="zero")

    actual, expected = gradient("symplectic_adjoint"), gradient("backprop")
    for a, b in zip(actual, expected):
        assert relative_error(tf.convert_to_tensor(a), tf.convert_to_tensor(b)) < FLOAT32


def test_unused_random_numbers_are_refused_too():
    # A trace does not know what will be used.
    def dynamics(t, y):
        tf.random.normal([])
        return y

    with pytest.raises(ValueError, match="RandomStandardNormal"):
        solve(dynamics)


@pytest.mark.parametrize(
    "gradient, last", [("symplectic_adjoint", 2), (tfsymadj.SymplecticAdjoint("stages"), 3)]
)
def test_variables_that_change_between_calls(gradient, last):
    """Dynamics that read a variable later that the first trace did not."""
    variables = [tf.Variable(1.0), tf.Variable(1.0)]
    calls = []

    def dynamics(t, y):
        calls.append(1)
        return variables[len(calls) > last] * y

    with pytest.raises(ValueError, match="same variables at each call.*Received: "):
        solve(dynamics, method="rk4", gradient=gradient)
