"""ODELayer over dynamics that are no Keras layer: their variables are the layer's."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import relative_error
from helpers.modes import slow

from tfsymadj.layers import ODELayer

FIXED = dict(method="rk4", num_steps=4)
X = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
Y = X @ np.array([[0.0, 1.0], [-1.0, 0.0]], "float32")  # a quarter turn


class Module(tf.Module):
    """Weights from the start, one of them not trained."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.zeros([2, 2]), name="kernel")
        self.scale = tf.Variable(1.0, name="scale", trainable=False)

    def __call__(self, t, y):
        return self.scale * (y @ self.kernel)


class Lazy(tf.Module):
    """Weights from the first call on, as with Sonnet."""

    kernel = None

    def __call__(self, t, y):
        if self.kernel is None:
            self.kernel = tf.Variable(tf.zeros([y.shape[-1]] * 2), name="kernel")
        return y @ self.kernel


class Plain:
    """An object that nothing tracks."""

    def __init__(self):
        self.kernel = tf.Variable(tf.zeros([2, 2]), name="kernel")

    def __call__(self, t, y):
        return y @ self.kernel


def function():
    kernel, bias = tf.Variable(tf.zeros([2, 2])), tf.Variable(tf.zeros([2]))
    return lambda t, y: y @ kernel + bias


def over_keras_layer():
    dense = keras.layers.Dense(2, kernel_initializer="zeros")
    return lambda t, y: dense(y)


def over_keras_variables():
    kernel = keras.Variable(np.zeros([2, 2], "float32"), name="kernel")
    bias = keras.Variable(0.0, name="bias")
    return lambda t, y: keras.ops.matmul(y, kernel) + bias


def tf_keras_model():
    tf_keras = pytest.importorskip("tf_keras")
    dense = tf_keras.layers.Dense(2, kernel_initializer="zeros")
    model = tf_keras.Sequential([dense])
    return lambda t, y: model(y)


def tf_keras_layer():
    tf_keras = pytest.importorskip("tf_keras")

    class Linear(tf_keras.layers.Layer):
        def build(self, shapes):
            self.kernel = self.add_weight("kernel", [2, 2], initializer="zeros")

        def call(self, t, y):
            return y @ self.kernel

    return Linear()


KINDS = {
    "module": (Module, 1),
    "lazy": (Lazy, 1),
    "plain": (Plain, 1),
    "function": (function, 2),
    "over_keras_layer": (over_keras_layer, 2),
    "over_keras_variables": (over_keras_variables, 2),
    "tf_keras_model": (tf_keras_model, 2),
    "tf_keras_layer": (tf_keras_layer, 1),
}


@pytest.mark.parametrize("built", [False, True])
def test_variables_of_a_keras_layer_are_its_own(built):
    dense = keras.layers.Dense(2)
    if built:
        dense.build((None, 2))
    layer = ODELayer(lambda t, y: dense(y), **FIXED)
    layer.build((None, 2))
    assert [id(v) for v in layer.trainable_variables] == [id(v) for v in dense.trainable_variables]


@pytest.mark.parametrize(
    "kind, jit",
    [
        slow("module", True),
        *((kind, False) for kind in ("lazy", "function", "over_keras_variables", "tf_keras_model")),
        *(slow(kind, True) for kind in KINDS if kind != "module"),
        *(slow(kind, False) for kind in ("module", "plain", "over_keras_layer", "tf_keras_layer")),
    ],
)
def test_trains(kind, jit):
    make, count = KINDS[kind]
    layer = ODELayer(make(), **FIXED)
    model = keras.Sequential([keras.Input((2,)), layer])
    assert len(layer.trainable_variables) == count
    assert len(layer.non_trainable_variables) == (kind == "module")
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=jit)
    losses = model.fit(X, Y, batch_size=16, epochs=25, verbose=0).history["loss"]
    assert losses[-1] < 1e-2 < losses[0]
    # Nothing trained twice or behind the layer's back: the weights are those of a rotation.
    kernel = layer.trainable_variables[0].numpy()
    np.testing.assert_allclose(kernel, np.pi / 2 * np.array([[0, 1], [-1, 0]]), atol=0.2)
    assert layer.count_params() == sum(v.numpy().size for v in layer.variables)


@pytest.mark.parametrize("kind", ["module", "function", "tf_keras_model"])
def test_weights_files(kind, tmp_path):
    make, _ = KINDS[kind]

    def build():
        return keras.Sequential([keras.Input((2,)), ODELayer(make(), **FIXED)])

    model, other = build(), build()
    model.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in model.get_weights()])
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert np.any(other(X) != X)
    np.testing.assert_array_equal(other(X), model(X))


def test_two_layers_share_their_variables():
    """An optimizer must not see a variable twice."""
    dynamics = function()
    first, second = ODELayer(dynamics, **FIXED), ODELayer(dynamics, t=(1.0, 2.0), **FIXED)
    model = keras.Sequential([keras.Input((2,)), first, second])
    assert len(model.trainable_variables) == 2
    assert first.trainable_variables[0] is second.trainable_variables[0]


def test_frozen_layer_over_a_function():
    layer = ODELayer(function(), **FIXED)
    model = keras.Sequential([keras.Input((2,)), layer, keras.layers.Dense(2)])
    layer.trainable = False
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    before = layer.get_weights()
    model.fit(X, Y, epochs=1, verbose=0)
    for a, b in zip(layer.get_weights(), before):
        np.testing.assert_array_equal(a, b)


def test_gradients_are_those_of_the_variables():
    module = Module()
    module.kernel.assign([[0.1, 0.7], [-0.6, 0.2]])
    layer = ODELayer(module, **FIXED)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(X) ** 2)
    (found,) = tape.gradient(value, [v.value for v in layer.trainable_variables])
    kernel = module.kernel.numpy()
    steps = []
    for i, j in np.ndindex(2, 2):
        for sign in (1, -1):
            shifted = kernel.copy()
            shifted[i, j] += sign * 1e-2
            module.kernel.assign(shifted)
            steps.append(float(tf.reduce_sum(layer(X) ** 2)))
    expected = np.diff(np.reshape(steps, [-1, 2])[:, ::-1])[:, 0].reshape(2, 2) / 2e-2
    assert relative_error(found, expected) < 1e-2  # a central difference in float32


_LOADED = """
import sys
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
x = np.ones((3, 2), "float32")
with tf.GradientTape() as tape:
    value = tf.reduce_sum(loaded.serve(x))
gradients = tape.gradient(value, loaded.trainable_variables)
assert len(gradients) == 2 and all(np.any(g != 0.0) for g in gradients)
assert "tfsymadj" not in sys.modules
"""


@pytest.mark.slow
def test_export(tmp_path):
    model = keras.Sequential([keras.Input((2,)), ODELayer(function(), **FIXED)])
    model.export(str(tmp_path / "model"), verbose=False)
    subprocess.run(
        [sys.executable, "-c", _LOADED, str(tmp_path / "model")],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=True,
    )


@pytest.mark.parametrize(
    "backend, where", [("jax", "environment"), ("torch", "file"), ("numpy", "environment")]
)
def test_other_backends_are_refused(backend, where, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment["KERAS_HOME"] = str(tmp_path)
    if where == "environment":
        environment["KERAS_BACKEND"] = backend
    else:
        (tmp_path / "keras.json").write_text(f'{{"backend": "{backend}"}}')
    result = subprocess.run(
        [sys.executable, "-c", "import tfsymadj"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("ImportError: tfsymadj needs Keras' TensorFlow backend")
    assert f"Received: '{backend}'" in message
