"""Models that leave the process: files of Keras, SavedModel, TFLite, ONNX."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

import tfsymadj
from tfsymadj.layers import ConcatSquash, ConcatTime, ODELayer, RescaledTime, TimeSequential

FIXED = dict(method="rk4", num_steps=4)
X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = np.sum(X**2, axis=1, keepdims=True)


def network():
    return ConcatTime(
        keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(4)])
    )


def squashed():
    return TimeSequential([ConcatSquash(8, "tanh"), ConcatSquash(4)])


def model_of(dynamics=network, **options):
    keras.utils.set_random_seed(1)
    layer = ODELayer(dynamics(), **(options or FIXED))
    return keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1)])


def test_clone_and_config():
    model = model_of(
        rtol=1e-4, gradient=tfsymadj.SymplecticAdjoint(24), controller=None, max_steps=64,
        track_stats=True, return_sequences=False,
    )  # fmt: skip
    clone = keras.models.clone_model(model)
    config = clone.layers[0].get_config()
    assert config.pop("dynamics") is not None
    expected = model.layers[0].get_config()
    del expected["dynamics"]
    assert config == expected
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(X), model(X))
    clone.layers[0].set_weights([0 * w for w in clone.layers[0].get_weights()])
    assert np.any(clone(X) != model(X))


def test_weights_file(tmp_path):
    model, other = model_of(), model_of()
    other.set_weights([w + 1.0 for w in other.get_weights()])
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other(X), model(X))


def test_training_goes_on_after_loading(tmp_path):
    """The optimizer's moments are saved too: the losses are those of an uninterrupted run."""

    def compiled():
        model = model_of()
        model.compile(keras.optimizers.Adam(0.01), "mse")
        return model

    def fit(model, epochs):
        history = model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
        return history.history["loss"]

    expected = fit(compiled(), 4)
    model = compiled()
    losses = fit(model, 2)
    model.save(tmp_path / "model.keras")
    losses += fit(keras.models.load_model(tmp_path / "model.keras"), 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Spiral(keras.Layer):
    """Dynamics of complex states, with a condition."""

    def build(self, y_shape, condition_shape=None):
        self.rate = self.add_weight(shape=(), initializer="ones", name="rate")

    def call(self, y, condition):
        return tf.complex(-0.1 * condition, self.rate) * y


def test_complex_states_and_conditions(tmp_path):
    y0 = keras.Input((2,), dtype="complex64")
    condition = keras.Input((1,))
    layer = ODELayer(Spiral(), rtol=1e-5, atol=1e-7)
    model = keras.Model([y0, condition], layer(y0, args=condition))
    x = tf.complex(X[:, :2], X[:, 2:])
    c = tf.constant(X[:, :1])
    y = model([x, c])
    np.testing.assert_allclose(y, x.numpy() * np.exp(1j - 0.1 * c.numpy()), rtol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded([x, c]), y)


def test_rescaled_time_in_a_file(tmp_path):
    inputs, gap = keras.Input((4,)), keras.Input(())
    layer = ODELayer(RescaledTime(network()), **FIXED)
    model = keras.Model([inputs, gap], layer(inputs, args=gap))
    gaps = np.linspace(0.0, 2.0, len(X), dtype="float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded([X, gaps]), model([X, gaps]))


_FINE_TUNE = """
import sys
import keras, numpy as np
folder = sys.argv[1]
saved = np.load(folder + "/data.npz")
layer = keras.layers.TFSMLayer(folder + "/model", call_endpoint="serve")
assert len(layer.trainable_weights) == 6, layer.trainable_weights
inputs = keras.Input((4,))
model = keras.Model(inputs, layer(inputs))
np.testing.assert_allclose(model.predict(saved["x"], verbose=0), saved["y"], rtol=1e-5, atol=1e-6)
# Keras 3.15 gives the variables names that optimizers with moments refuse, of any model.
model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
losses = model.fit(saved["x"], saved["target"], epochs=20, batch_size=16, verbose=0).history["loss"]
assert losses[-1] < 0.5 * losses[0], losses
assert "tfsymadj" not in sys.modules
print("tuned")
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [FIXED, {"rtol": 1e-4, "max_steps": 64}])
def test_fine_tuning_where_the_package_is_not(options, tmp_path):
    model = model_of(**options)
    np.savez(tmp_path / "data.npz", x=X, y=model(X), target=Y)
    model.export(str(tmp_path / "model"), verbose=False)
    result = subprocess.run(
        [sys.executable, "-c", _FINE_TUNE, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    assert result.stdout.strip() == "tuned", result.stderr[-2000:]


CONVERTED = pytest.mark.parametrize(
    "dynamics, sequences",
    [(network, True), slow(squashed, False), slow(network, False), slow(squashed, True)],
)


def run_tflite(content, x):
    interpreter = tf.lite.Interpreter(model_content=content)
    (entry,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@CONVERTED
@pytest.mark.skipif(
    [int(x) for x in keras.__version__.split(".")[:2]] < [3, 13], reason="has no LiteRT export"
)
def test_tflite(dynamics, sequences, tmp_path):
    t = (0.0, 0.5, 2.0) if sequences else (0.0, 1.0)
    model = model_of(dynamics, t=t, return_sequences=sequences, track_stats=True, **FIXED)
    path = tmp_path / "model.tflite"
    with tfsymadj.no_gradient():
        model.export(path, format="litert", verbose=False)
    np.testing.assert_allclose(run_tflite(path.read_bytes(), X), model(X), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@CONVERTED
def test_onnx(dynamics, sequences, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    t = (0.0, 0.5, 2.0) if sequences else (0.0, 1.0)
    model = model_of(dynamics, t=t, return_sequences=sequences, track_stats=True, **FIXED)
    expected = model(X)
    path = str(tmp_path / "model.onnx")
    with tfsymadj.no_gradient():
        model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path)
    (entry,) = session.get_inputs()
    (y,) = session.run(None, {entry.name: X})
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
