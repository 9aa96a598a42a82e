"""`ODELayer`: training, files, what it refuses."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import slow

import tfsymadj
from tfsymadj.layers import ConcatSquash, ConcatTime, ODELayer, TimeSequential

FIXED = {"method": "rk4", "num_steps": 4}


@keras.saving.register_keras_serializable(package="tests")
class Field(keras.Layer):
    """Time-dependent dynamics with a condition."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4, activation="tanh")

    def call(self, t, y, condition=None):
        k = self.dense(y) * tf.cos(tf.cast(t, y.dtype))
        return k if condition is None else k * condition


@keras.saving.register_keras_serializable(package="tests")
def decay(t, y):
    return -y


def network():
    return ConcatTime(
        keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(4)])
    )


def squashed():
    return TimeSequential([ConcatSquash(8, "tanh"), ConcatSquash(4)])


def autonomous():
    return keras.layers.Dense(4, activation="tanh")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 4)).astype("float32")
    return x, np.sum(x**2, axis=1, keepdims=True)


def model_of(layer):
    keras.utils.set_random_seed(1)
    model = keras.Sequential()
    model.add(keras.Input((4,)))
    model.add(layer)
    model.add(keras.layers.Dense(1))
    return model


@pytest.mark.parametrize(
    "dynamics, jit",
    [
        (network, False),
        slow(network, True),
        slow(squashed, False),
        slow(squashed, True),
        slow(autonomous, False),
        slow(autonomous, True),
    ],
)
def test_sequential_model_trains(dynamics, jit, data):
    model = model_of(ODELayer(dynamics(), **FIXED))
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=jit)
    history = model.fit(*data, epochs=15, batch_size=16, verbose=0)
    loss = model.evaluate(*data, verbose=0)
    assert loss < 0.6 * history.history["loss"][0]
    assert model.predict(data[0], verbose=0).shape == (48, 1)


@pytest.mark.slow
def test_adaptive_layer_trains_with_xla(data):
    layer = ODELayer(network(), rtol=1e-4, max_steps=64)
    model = model_of(layer)
    model.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=True)
    history = model.fit(*data, epochs=10, batch_size=16, verbose=0)
    assert history.history["loss"][-1] < 0.6 * history.history["loss"][0]


@pytest.mark.slow
def test_same_training_with_both_gradients(data):
    losses = []
    for gradient in ("symplectic_adjoint", "backprop"):
        keras.utils.set_random_seed(1)  # initializers draw their seeds when they are made
        model = model_of(ODELayer(network(), gradient=gradient, **FIXED))
        model.compile("sgd", "mse", jit_compile=False)
        losses.append(model.fit(*data, epochs=3, shuffle=False, verbose=0).history["loss"])
    # float32 rounding over nine updates
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_functional_and_subclassed_models(data):
    x = data[0]
    layer = ODELayer(network(), t=(0.0, 0.5, 1.0), return_sequences=True, **FIXED)
    inputs = keras.Input((4,))
    outputs = layer(inputs)
    assert outputs.shape == (None, 3, 4)
    model = keras.Model(inputs, outputs)
    np.testing.assert_array_equal(model(x)[:, 0], x)

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.ode = ODELayer(network(), **FIXED)

        def call(self, x):
            return self.ode(x)

    assert Subclassed()(x).shape == (48, 4)
    assert len(Subclassed().trainable_variables) == 0
    subclassed = Subclassed()
    subclassed(x)
    assert len(subclassed.trainable_variables) == 4


def test_matches_solve(data):
    layer = ODELayer(network(), **FIXED)
    y = layer(data[0])
    expected = tfsymadj.odeint(layer.dynamics, data[0], (0.0, 1.0), **FIXED)[-1]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_functional_dynamics_of_two_inputs(data):
    time, state = keras.Input((1,)), keras.Input((4,))
    outputs = keras.layers.Dense(4)(keras.layers.Concatenate()([state, time]))
    layer = ODELayer(keras.Model([time, state], outputs), **FIXED)
    kernel, bias = layer.dynamics.get_weights()
    expected = tfsymadj.odeint(
        lambda t, y: y @ kernel[:4] + t * kernel[4] + bias, data[0], (0.0, 1.0), **FIXED
    )[-1]
    np.testing.assert_allclose(layer(data[0]), expected, rtol=1e-6, atol=1e-6)


def test_times_and_args_at_the_call():
    x = tf.ones([2, 4])
    layer = ODELayer(decay, **FIXED)
    t = tf.Variable([0.0, 0.5], dtype=tf.float64)
    with tf.GradientTape() as tape:
        y = layer(x, t=t)
        loss = tf.reduce_sum(y)
    np.testing.assert_allclose(y, np.exp(-0.5) * x, rtol=1e-4)
    assert t.dtype == tf.float64
    # dy/dT = f(T, y)
    np.testing.assert_allclose(tape.gradient(loss, t)[1], -tf.reduce_sum(y), rtol=1e-4)

    conditioned = ODELayer(Field(), autonomous=False, **FIXED)
    condition = tf.constant(0.5)
    with tf.GradientTape() as tape:
        tape.watch(condition)
        loss = tf.reduce_sum(conditioned(x, args=condition))
    assert tape.gradient(loss, condition) is not None


def test_nested_state():
    def rotation(t, y):
        return {"q": y["p"], "p": -y["q"]}

    layer = ODELayer(rotation, rtol=1e-6, atol=1e-8)
    y = layer({"q": tf.ones([2, 1]), "p": tf.zeros([2, 1])})
    np.testing.assert_allclose(y["q"], np.full([2, 1], np.cos(1.0)), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        FIXED,
        slow({"rtol": 1e-4, "gradient": tfsymadj.SymplecticAdjoint("steps"), "max_steps": 64}),
        {"method": tfsymadj.METHODS["ralston"], "step_size": 0.25, "gradient": "backprop"},
        slow({"controller": tfsymadj.PIController(1e-4, 1e-6, integral=1.0), "t": (1.0, 0.5, 0.0)}),
        slow({"method": "trbdf2", "num_steps": 2, "newton": tfsymadj.Newton(max_iterations=20)}),
    ],
)
@pytest.mark.parametrize("dynamics", [network, slow(squashed), slow(lambda: decay)])
def test_keras_file_round_trip(options, dynamics, data, tmp_path):
    model = model_of(ODELayer(dynamics(), **options))
    expected = model.predict(data[0], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(data[0], verbose=0), expected)
    configs = [m.layers[0].get_config() for m in (loaded, model)]
    for config in configs:
        del config["dynamics"]  # Keras itself saves a built Sequential with one layer more
    assert configs[0] == configs[1]


_FRESH = """
import sys
import numpy as np, tensorflow as tf
folder, kind = sys.argv[1:]
saved = np.load(folder + "/expected.npz")
loaded = tf.saved_model.load(folder + "/model")
function = loaded.serve if kind == "export" else loaded.signatures["serving_default"]
variables = {v.shape.num_elements(): v for v in function.variables} \
    if kind != "export" else {v.shape.num_elements(): v for v in loaded.trainable_variables}
with tf.GradientTape() as tape:
    y = function(tf.constant(saved["x"]))
    y = list(y.values())[0] if isinstance(y, dict) else y
    loss = tf.reduce_sum(y ** 2)
np.testing.assert_allclose(y, saved["y"], rtol=1e-5, atol=1e-6)
gradients = tape.gradient(loss, [variables[n] for n in saved["sizes"]])
for n, gradient in zip(saved["sizes"], gradients):
    expected = saved[f"gradient_{n}"]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
assert "tfsymadj" not in sys.modules
print("agrees")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["export", "save"])
@pytest.mark.parametrize("options", [FIXED, {"rtol": 1e-4, "max_steps": 64}])
def test_saved_model_has_gradients_in_a_fresh_process(kind, options, data, tmp_path):
    model = model_of(ODELayer(network(), **options))
    x = data[0][:8]
    weights = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        y = model(x)
        loss = tf.reduce_sum(y**2)
    gradients = {int(np.prod(w.shape)): g for w, g in zip(weights, tape.gradient(loss, weights))}
    assert len(gradients) >= 4  # told apart by their sizes
    np.savez(
        tmp_path / "expected.npz",
        x=x,
        y=y,
        sizes=sorted(gradients),
        **{f"gradient_{n}": g for n, g in gradients.items()},
    )
    folder = str(tmp_path / "model")
    if kind == "export":
        model.export(folder, verbose=False)
    else:
        tf.saved_model.save(model, folder)
    result = subprocess.run(
        [sys.executable, "-c", _FRESH, str(tmp_path), kind],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    assert result.stdout.strip() == "agrees", result.stderr[-2000:]


def test_summary_shows_the_weights(capsys):
    model = model_of(ODELayer(network(), **FIXED))
    model.summary()
    # 5 * 8 + 8 + 8 * 4 + 4
    assert model.layers[0].count_params() == 84
    assert " 84 " in capsys.readouterr().out


def test_half_precision_keeps_the_state_in_float32(data):
    layer = ODELayer(
        keras.layers.Dense(4, dtype="mixed_float16"), dtype="mixed_float16", method="euler",
        num_steps=4096,
    )  # fmt: skip
    y = layer(data[0])
    assert y.dtype == tf.float16
    kernel, bias = layer.dynamics.get_weights()
    expected = tfsymadj.odeint(
        lambda t, y: y @ kernel + bias, data[0], (0.0, 1.0), method="rk4", num_steps=10
    )[-1]
    # Euler and half precision of the dynamics, not sums in half precision, which would stall
    np.testing.assert_allclose(y, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "layer, words",
    [
        (keras.layers.Dropout(0.5), "seed"),
        (keras.layers.BatchNormalization(), "variable"),
    ],
)
def test_non_reproducible_dynamics_are_refused_in_training_only(layer, words, data):
    ode = ODELayer(layer, **FIXED)
    ode(data[0], training=False)
    with pytest.raises(ValueError, match="dynamics.*" + words):
        ode(data[0], training=True)


def test_activity_regularizer_is_refused(data):
    layer = ODELayer(keras.layers.Dense(4, activity_regularizer="l2"), **FIXED)
    with pytest.raises(ValueError, match="activity_regularizer.*Received: layer"):
        layer(data[0])


def test_bad_options_are_refused_when_the_layer_is_made():
    with pytest.raises(ValueError, match="num_steps.*Received"):
        ODELayer(decay, method="rk4")
    with pytest.raises(ValueError, match="`t` must be.*Received"):
        ODELayer(decay, t=(0.0, 0.0))
    with pytest.raises(ValueError, match="`method`.*Received"):
        ODELayer(decay, method="rk5")
    with pytest.raises(TypeError, match="`dynamics`.*Received"):
        ODELayer(3)
    with pytest.raises(ValueError, match="`units`.*Received"):
        ConcatSquash(0)


def test_repr_shows_what_is_no_default():
    layer = ODELayer(keras.layers.Dense(2, name="net"), t=(0, 1, 2), name="ode", **FIXED)
    end = "name='ode', t=(0.0, 1.0, 2.0), method='rk4', num_steps=4, built="
    assert repr(layer) == f"<ODELayer of {layer.dynamics!r}: {end}False>"
    layer(np.ones([1, 2], "float32"))
    assert repr(layer) == f"<ODELayer of {layer.dynamics!r}: {end}True>"

    class Own(ODELayer):
        pass

    text = repr(Own(decay, name="own"))
    assert text.startswith("<Own of <function decay")
    assert text.endswith(": name='own', t=(0.0, 1.0), built=False>")
