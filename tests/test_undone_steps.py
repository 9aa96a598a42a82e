"""Steps that fail in `fit` are undone."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

from tfsymadj.callbacks import KeepWeights
from tfsymadj.layers import ODELayer
from tfsymadj.solution import MESSAGES, Status

JIT = pytest.mark.parametrize("jit", [pytest.param(False, id="graph"), slow(True, id="xla")])


def x_and_y(size=2, batch=4):
    x = np.random.default_rng(0).normal(size=(batch, size)).astype("float32")
    return x, 0.5 * x


class Square(keras.layers.Layer):
    """A blow-up where the state is large."""

    def build(self, shape):
        self.w = self.add_weight((2,), "ones")

    def call(self, y):
        return self.w * y * tf.abs(y)


def model_of_squares(optimizer, jit, **options):
    keras.utils.set_random_seed(3)
    layer = ODELayer(Square(), t=(0.0, 0.1), name="ode", on_failure="status", **options)
    inputs = keras.Input((2,))
    x = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(layer(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    model.compile(optimizer, "mse", metrics=["mae"], jit_compile=jit)
    return model


FIXED_STEPS = dict(method="rk4", num_steps=3)


@JIT
@pytest.mark.parametrize("make", [slow(keras.optimizers.SGD), keras.optimizers.Adam])
@pytest.mark.parametrize("batch", [0, slow(1), slow(2)])
def test_steps_of_failed_solves_are_undone(make, batch, jit, caplog):
    x, y = x_and_y(batch=12)
    bad = x.copy()
    bad[4 * batch : 4 * batch + 4] = 1e30
    undone, expected = (
        model_of_squares(make(0.1), jit, **FIXED_STEPS),
        model_of_squares(make(0.1), jit, **FIXED_STEPS),
    )
    keep = KeepWeights()
    options = dict(batch_size=4, shuffle=False, verbose=0, epochs=2)
    history = undone.fit(bad, y, callbacks=[keep], **options).history
    good = np.delete(np.arange(12), np.s_[4 * batch : 4 * batch + 4])
    reference = expected.fit(x[good], y[good], **options).history
    assert history["undone_steps"] == [1, 1]
    for key in ("loss", "mae"):
        np.testing.assert_allclose(history[key], reference[key], rtol=1e-5)
    state = [*undone.variables, *undone.optimizer.variables]
    for a, b in zip(state, [*expected.variables, *expected.optimizer.variables]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    said = [r.getMessage() for r in caplog.records if r.name == "tfsymadj"]
    assert len(said) == 2
    assert f"batch {batch}" in said[0] and "layer 'ode'" in said[0]
    assert MESSAGES[Status.NON_FINITE_DYNAMICS] in said[0] and "NON_FINITE_DYNAMICS" in said[0]


@pytest.mark.slow
def test_undone_steps_of_adaptive_solves_under_xla(caplog):
    model = model_of_squares("adam", True, max_steps=8)
    before = model.get_weights()
    x = np.full((4, 2), 1e6, "float32")
    model.fit(x, x, verbose=0, epochs=3, callbacks=[KeepWeights(patience=2)])
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    assert "Training is stopped after 2" in caplog.text
    assert len(model.history.epoch) == 2


@pytest.mark.slow
def test_what_is_left_of_undoing(tmp_path):
    """Without the callback the model is what it was: it can be trained, exported and saved."""
    model = model_of_squares("sgd", False, **FIXED_STEPS)
    x, y = x_and_y()
    model.fit(x, y, verbose=0, callbacks=[KeepWeights()], validation_data=(x, y))
    before = len(model.weights)
    model.fit(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    model.save(tmp_path / "model.keras")
    assert (
        len(keras.models.load_model(tmp_path / "model.keras", {"Square": Square}).weights) == before
    )


def test_other_failures_are_undone_too(caplog):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    before = model.get_weights()
    x = np.full((4, 2), np.nan, "float32")
    model.fit(x, x, verbose=0, callbacks=[KeepWeights()])
    for a, b in zip(model.get_weights(), before):
        np.testing.assert_array_equal(a, b)
    assert "no `ODELayer` failed" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, None])
def test_undone_steps_in_loops(steps, caplog):
    layer = ODELayer(Square(), t=(0.0, 0.1), name="ode", on_failure="status", **FIXED_STEPS)
    inputs = keras.Input((steps, 2))
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    model.compile("sgd", "mse")
    x = np.full((4, 3, 2), 1e30, "float32")
    model.fit(x, x, verbose=0, callbacks=[KeepWeights()])
    np.testing.assert_array_equal(layer.weights[0], [1.0, 1.0])
    assert "layer 'ode'" in caplog.text


@pytest.mark.slow
def test_undone_steps_of_layers_in_dynamics(caplog):
    inner = ODELayer(Square(), t=(0.0, 0.1), method="euler", num_steps=1, on_failure="status")
    layer = ODELayer(inner, method="euler", num_steps=1, name="outer", on_failure="status")
    model = keras.Sequential([keras.Input((2,)), layer])
    model.compile("sgd", "mse")
    x = np.full((4, 2), 1e30, "float32")
    model.fit(x, x, verbose=0, callbacks=[KeepWeights()])
    np.testing.assert_array_equal(layer.weights[0], [1.0, 1.0])
    assert "layer 'outer'" in caplog.text


@pytest.mark.parametrize("patience", [0, 1.5, True, "often"])
def test_patience_is_checked(patience):
    with pytest.raises(ValueError, match="`patience`.*Received"):
        KeepWeights(patience)


@pytest.mark.parametrize(
    "options", [dict(run_eagerly=True), dict(steps_per_execution=2)], ids=["eager", "many steps"]
)
def test_undone_steps_however_they_run(options, caplog):
    x, y = x_and_y(batch=12)
    x[4:8] = 1e30
    model = model_of_squares("adam", False, **FIXED_STEPS)
    model.compile("adam", "mse", **options)
    keep = KeepWeights()
    history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[keep]).history
    assert history["undone_steps"] == [1]
    assert all(np.all(np.isfinite(w)) for w in model.get_weights())
    assert np.isfinite(history["loss"][0])
    assert "layer 'ode'" in caplog.text


_MIRRORED = """
import keras, numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import tfsymadj

tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0])
x = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
x[20] = np.nan  # in the second of three batches, on one of the devices
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    layer = tfsymadj.ODELayer(keras.layers.Dense(4), method="euler", num_steps=1, name="ode",
                              on_failure="status")
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile("adam", "mse", jit_compile=False)
keep = tfsymadj.callbacks.KeepWeights()
history = model.fit(x, x, batch_size=16, shuffle=False, verbose=0, callbacks=[keep]).history
assert history["undone_steps"] == [1], history
assert all(np.isfinite(w).all() for w in model.get_weights())
assert np.isfinite(history["loss"][0])
"""


@pytest.mark.slow
def test_undone_steps_on_two_devices():
    root = pathlib.Path(__file__).parent.parent
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", _MIRRORED],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "layer 'ode'" in result.stderr
