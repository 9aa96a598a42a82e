"""Layers of controlled differential equations: series in, states out."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, relative_error
from helpers.modes import partly_slow, run, slow

from tfsymadj import controls
from tfsymadj.layers import CDELayer, ControlledDynamics

INTERPOLATIONS = ("hermite", "linear", "rectilinear")
FIXED = dict(method="rk4", num_steps=1)
HIDDEN = 4
NAN = np.float32("nan")


def series(batch=3, n=7, channels=2, missing=0.3, seed=0):
    random = np.random.default_rng(seed)
    x = np.cumsum(random.normal(size=(batch, n, channels)), 1).astype("float32")
    x[random.random(x.shape) < missing] = NAN
    return x, np.sort(random.uniform(0.0, 4.0, (batch, n)), 1).astype("float32")


def layer_of(interpolation="hermite", channels=2, seed=1, **options):
    keras.utils.set_random_seed(seed)
    dtype = options.get("dtype")
    dense = [
        keras.layers.Dense(8, "tanh", dtype=dtype),
        keras.layers.Dense(HIDDEN * (channels + 1), "tanh", dtype=dtype),
    ]
    network = keras.Sequential(dense)
    initial = keras.layers.Dense(HIDDEN, dtype=dtype)
    return CDELayer(network, initial, interpolation=interpolation, **(FIXED | options))


def test_controlled_dynamics_are_a_matrix_times_a_slope():
    x, t = series()
    dense = keras.layers.Dense(HIDDEN * 2)
    dynamics, z = ControlledDynamics(dense), tf.random.stateless_normal((3, HIDDEN), (0, 1))
    matrix = tf.reshape(dense(z), (3, HIDDEN, 2))
    each, time = controls.linear(t, x), tf.constant([0.5, 1.5, 2.5])
    expected = tf.einsum("bhc,bc->bh", matrix, each.derivative(time))
    np.testing.assert_allclose(dynamics(time, z, each), expected, rtol=1e-5)
    one = controls.hermite([0.0, 1.0, 2.0], tf.constant([[0.0, 1.0], [2.0, 3.0], [1.0, 1.0]]))
    expected = tf.einsum("bhc,c->bh", matrix, one.derivative(0.5))
    np.testing.assert_allclose(dynamics(tf.constant(0.5), z, one), expected, rtol=1e-5)


@pytest.mark.parametrize("interpolation", partly_slow(INTERPOLATIONS, "linear"))
def test_a_constant_matrix_adds_up_the_path(interpolation):
    """z(t) = z(t0) + A (X(t) - X(t0)), whatever is missing; the times are the first channel."""
    x, t = series()
    matrix = np.random.default_rng(1).normal(size=(HIDDEN, 3)).astype("float32")
    constant = keras.layers.Dense(
        matrix.size, kernel_initializer="zeros", bias_initializer=lambda *_, **__: matrix.ravel()
    )
    initial = keras.layers.Dense(HIDDEN, kernel_initializer="ones")
    layer = CDELayer(constant, initial, interpolation=interpolation, return_sequences=True, **FIXED)
    make = controls.steps if interpolation == "rectilinear" else controls.linear
    path = tf.concat([t[..., None], tf.transpose(make(t, x)(t.T), [1, 0, 2])], -1)
    first = tf.reduce_sum(path[:, :1], -1, keepdims=True)
    expected = first + (path - path[:, :1]) @ matrix.T
    np.testing.assert_allclose(layer(x, t=t), expected, atol=2e-5)


@pytest.mark.parametrize("interpolation", partly_slow(INTERPOLATIONS, "linear", "rectilinear"))
def test_rows_that_are_masked_change_nothing(interpolation):
    x, t = series()
    layer = layer_of(interpolation, return_sequences=True)
    expected = layer(x, t=t)
    junk, late = np.full((3, 2, 2), 7.0, "float32"), np.full((3, 2), 9.0, "float32")
    mask = np.ones((3, 7), bool)
    for before in (True, False):

        def padded(rows, more, before=before):
            return np.concatenate([more, rows] if before else [rows, more], 1)

        found = layer(padded(x, junk), t=padded(t, late), mask=padded(mask, np.zeros((3, 2), bool)))
        real = found[:, 2:] if before else found[:, :7]
        np.testing.assert_allclose(real, expected, atol=1e-5)
        np.testing.assert_allclose(found[:, -1], expected[:, -1], atol=1e-5)


@pytest.mark.parametrize("each", [False, slow(True)])
@pytest.mark.parametrize("interpolation", partly_slow(INTERPOLATIONS, "hermite"))
def test_rows_may_have_the_same_time(interpolation, each):
    x, layer = tf.constant(series(1, 4, missing=0.0)[0]), layer_of(interpolation)
    t = tf.constant([0.0, 1.0, 1.0, 2.0])
    near = tf.constant([0.0, 1.0, 1.00001, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = layer(x, t=t[tf.newaxis] if each else t)
    rows = tf.reduce_sum(tf.abs(tape.gradient(z, x)), [0, 2])
    assert np.all(np.isfinite(rows)) and np.all(rows > 1e-4)
    np.testing.assert_allclose(z, layer(x, t=near), rtol=1e-3, atol=1e-5)


def test_states_of_online_predictions_know_nothing_of_later_rows():
    x, t = series()
    layer = layer_of("rectilinear", return_sequences=True)
    before, (x[:, 4:], t[:, 4:]) = layer(x, t=t), (5.0, 9.0)
    after = layer(x, t=t)
    np.testing.assert_array_equal(after[:, :4], before[:, :4])
    assert np.all(np.any(after[:, 4:] != before[:, 4:], -1))


def gradients(mode, gradient, interpolation, **options):
    x, t = series()
    options = {"method": "heun", **options}
    layer = layer_of(interpolation, dtype="float64", gradient=gradient, **options)
    x, t = tf.constant(x, tf.float64), tf.constant(t, tf.float64)
    layer.build(x.shape)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch([x, t])
            loss = tf.reduce_sum(tf.cos(layer(x, t=t)))
        return tape.gradient(loss, [x, t, *[v.value for v in layer.trainable_variables]])

    return dict(enumerate(g.numpy() for g in run(compute, mode)))


LANES = dict(batch_axis=0, method="dopri5", num_steps=None, rtol=1e-3, atol=1e-3, max_steps=40)


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("options", [{}, slow(LANES)], ids=["equal", "own"])
@pytest.mark.parametrize("interpolation", partly_slow(INTERPOLATIONS, "hermite", "rectilinear"))
def test_gradients_are_those_of_back_propagation(interpolation, options, mode):
    found = gradients(mode, "symplectic_adjoint", interpolation, **options)
    expected = gradients("graph", "backprop", interpolation, **options)
    # Adaptive steps compiled by XLA are others by rounding errors.
    assert relative_error(found, expected) < (1e-9 if options and mode == "xla" else FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_adaptive_steps_and_those_of_each_example_agree_with_many_small_ones(interpolation):
    x, t = series()
    tight = dict(method="dopri5", num_steps=None, rtol=1e-9, atol=1e-9, dtype="float64")
    expected = layer_of(interpolation, num_steps=64, dtype="float64")(x, t=t)
    for options in (tight, tight | dict(batch_axis=0), tight | dict(return_sequences=True)):
        found = layer_of(interpolation, **options)(x, t=t)
        found = found[:, -1] if "return_sequences" in options else found
        np.testing.assert_allclose(found, expected, atol=1e-5)


def model_of(mask=False, **options):
    x, t = keras.Input((None, 2)), keras.Input((None,))
    inner = keras.layers.Masking(-1.0)(x) if mask else x
    states = layer_of(**options)(inner, t=t)
    return keras.Model([x, t], keras.layers.Dense(1)(states))


def test_saving(tmp_path):
    x, t = series()
    model = model_of(interpolation="linear")
    assert model.output_shape == (None, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded([x, t]), model([x, t]), rtol=1e-6)
    config = model.layers[-2].get_config()
    assert config["interpolation"] == "linear" and config["method"] == "rk4"
    assert CDELayer.from_config(config).get_config()["interpolation"] == "linear"


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_training(policy, jit_compile, sequences):
    x, t = series(batch=16, n=9)
    keras.config.set_dtype_policy(policy)
    try:
        model = model_of(return_sequences=sequences, mask=True, rtol=1e-2, atol=1e-2, max_steps=64,
                         method="dopri5", num_steps=None)  # fmt: skip
        x[:8, 6:] = -1.0
        y = np.nansum(x, (1, 2))[:, None] if not sequences else np.nansum(x, 2, keepdims=True)
        model.compile(keras.optimizers.Adam(0.02), "mse", jit_compile=jit_compile)
        losses = model.fit([x, t], y, epochs=8, batch_size=8, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_masks_of_keras_reach_the_layer_and_its_output():
    x, t = series(missing=0.0)
    x[0, 5:] = -1.0
    model = model_of(mask=True)
    alone = model([x[:1, :5], t[:1, :5]])
    np.testing.assert_allclose(model([x, t])[:1], alone, atol=1e-6)
    layer = layer_of(return_sequences=True)
    masked = layer(keras.layers.Masking(-1.0)(x))
    np.testing.assert_array_equal(masked._keras_mask, np.any(x != -1.0, -1))
    assert layer_of().compute_mask(None, masked._keras_mask) is None


@pytest.mark.slow
def test_export(tmp_path):
    x, t = series()
    model = model_of()
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(served.serve([x, t]), model([x, t]), rtol=1e-5)


def test_wrong_arguments():
    dense = keras.layers.Dense
    with pytest.raises(ValueError, match="`interpolation` must be one of.*Received: 'cubic'"):
        CDELayer(dense(3), dense(3), interpolation="cubic")
    with pytest.raises(ValueError, match="`jumps` are the rows.*Received: "):
        CDELayer(dense(3), dense(3), jumps=[1.0])
    with pytest.raises(TypeError, match="`initial` must be a Keras layer.*Received: "):
        CDELayer(dense(3), None)
    with pytest.raises(TypeError, match="`network` must be a Keras layer.*Received: "):
        CDELayer(None, dense(3))
    with pytest.raises(ValueError, match="`network` must return a matrix.*4 \\* 3.*Received: "):
        CDELayer(dense(8), dense(4), **FIXED)(np.ones((2, 5, 2), "float32"))
    with pytest.raises(ValueError, match="`x` must be of shape.*Received: "):
        CDELayer(dense(8), dense(4), **FIXED)(np.ones((2, 5), "float32"))
