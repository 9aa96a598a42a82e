"""Keras' dtype policies: half precision in the dynamics only."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.modes import run, slow

from tfsymadj.layers import ConcatSquash, ConcatTime, ODELayer, TimeSequential

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
#: Distance from one to the next number.
EPSILON = {"mixed_float16": 2.0**-10, "mixed_bfloat16": 2.0**-7}


@pytest.fixture(params=EPSILON)
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def network():
    return ConcatTime(
        keras.Sequential([keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(4)])
    )


def squashed():
    return TimeSequential([ConcatSquash(16, "tanh"), ConcatSquash(4)])


def gradients(layer, mode, scale=1.0):
    x = tf.constant(X)
    layer(x)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.cast(layer(x), tf.float32) ** 2) * scale
        return tape.gradient(value, [x, *(v.value for v in layer.trainable_variables)])

    return [g.numpy() / scale for g in run(compute, mode)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "dynamics, mode",
    [
        slow(network, "eager"),
        slow(network, "graph"),
        slow(network, "xla"),
        slow(squashed, "eager"),
        (squashed, "graph"),
        slow(squashed, "xla"),
    ],
)
def test_gradients_within_the_precision_of_the_dynamics(policy, dynamics, mode):
    layer = ODELayer(dynamics(), method="rk4", num_steps=8)
    found = gradients(layer, mode)
    assert layer(X).dtype == layer.compute_dtype != "float32"
    assert {v.dtype for v in layer.variables} == {"float32"}
    assert {g.dtype.name for g in found} == {"float32"}
    weights = layer.get_weights()
    keras.config.set_dtype_policy("float32")
    layer = ODELayer(dynamics(), method="rk4", num_steps=8)
    layer(X)
    layer.set_weights(weights)
    # A few roundings a step, here and there, whose average over the batch does not grow.
    for a, b in zip(found, gradients(layer, "graph")):
        assert np.linalg.norm(a - b) < 4 * EPSILON[policy] * np.linalg.norm(b)


def _arguments(function):
    return function.signature.input_arg, function.signature.output_arg


def test_sums_are_in_single_precision(policy):
    """What the loops carry: the state, the adjoint, the gradients' sums, and times in double."""
    layer = ODELayer(network(), method="rk4", num_steps=8)
    x = tf.constant(X)
    layer(x)

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(layer(x))
        return tape.gradient(value, [v.value for v in layer.trainable_variables])

    graph = compute.get_concrete_function().graph
    loops = [op for op in graph.get_operations() if op.type in ("While", "StatelessWhile")]
    assert len(loops) >= 2
    bodies = {f.signature.name: f for f in graph.as_graph_def().library.function}
    carried = set()
    for loop in loops:
        body = bodies[loop.get_attr("body").name]
        names = [(x.name, body.ret[y.name]) for x, y in zip(*_arguments(body))]
        # What is only read, such as the activations, is as the dynamics have left it.
        carried |= {x.dtype for x, (before, after) in zip(loop.inputs, names) if before != after}
    assert {tf.float32, tf.float64} <= carried
    assert not carried & {tf.float16, tf.bfloat16}


@pytest.mark.slow
def test_loss_scaling():
    """Cotangents that vanish in half precision come through if the loss is scaled."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = ODELayer(network(), method="rk4", num_steps=8)
        expected = gradients(layer, "graph")
        # Far above float16's largest number once it is scaled, below its smallest unscaled.
        for scale in (1e-9, 2.0**10):
            found = gradients(layer, "graph", scale)
            assert all(np.all(np.isfinite(g)) for g in found)
        for a, b in zip(found, expected):
            assert np.linalg.norm(a - b) < 2.0**-8 * np.linalg.norm(b)
        model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(1, dtype="float32")])
        model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
        history = model.fit(X, np.sum(X**2, 1), epochs=20, batch_size=16, verbose=0).history
        assert type(model.optimizer).__name__ == "LossScaleOptimizer"
        assert history["loss"][-1] < 0.6 * history["loss"][0]
    finally:
        keras.config.set_dtype_policy("float32")


def test_double_precision():
    keras.config.set_dtype_policy("float64")
    try:
        layer = ODELayer(network(), rtol=1e-10, atol=1e-10)
        y = layer(X.astype("float64"))
        back = ODELayer(layer.dynamics, t=(1.0, 0.0), rtol=1e-10, atol=1e-10)(y)
        assert y.dtype == tf.float64
        np.testing.assert_allclose(back, X, atol=1e-8)
    finally:
        keras.config.set_dtype_policy("float32")


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16.0).astype("float32"), labels[order]


def accuracy_on_digits(policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        dynamics = ConcatTime(keras.layers.Dense(64, "tanh"))
        model = keras.Sequential(
            [
                keras.Input((64,)),
                ODELayer(dynamics, method="rk4", num_steps=4),
                keras.layers.Dense(10, "softmax", dtype="float32"),
            ]
        )
        model.compile(
            keras.optimizers.Adam(0.003), "sparse_categorical_crossentropy",
            metrics=["accuracy"], jit_compile=False,
        )  # fmt: skip
        x, y = digits()
        model.fit(x[:1347], y[:1347], batch_size=64, epochs=30, verbose=0)
        return model.evaluate(x[1347:], y[1347:], verbose=0)[1]
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
def test_digits_are_read_as_well_in_half_precision():
    single = accuracy_on_digits("float32")
    assert single > 0.96
    for name in EPSILON:
        assert accuracy_on_digits(name) > single - 0.005, name
