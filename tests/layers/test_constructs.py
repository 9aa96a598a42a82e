"""ODELayer inside of whatever Keras and TensorFlow put around a layer.

Each construct is differentiated twice, by the symplectic adjoint and by back-propagation, float64.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import relative_error
from helpers.modes import XLA_SLOW, run, slow

import tfsymadj
from tfsymadj.layers import ConcatTime, ODELayer, RescaledTime

FLOAT64 = 1e-12
OPTIONS = dict(method="heun", num_steps=3, dtype="float64")
FEW_MODES = (slow("eager"), *XLA_SLOW[1:])


def dense(units=3, seed=0):
    initializer = keras.initializers.RandomNormal(0.0, 0.7, seed=seed)
    return keras.layers.Dense(units, "tanh", dtype="float64", kernel_initializer=initializer)


def ode(gradient="symplectic_adjoint", seed=0, **options):
    return ODELayer(dense(seed=seed), gradient=gradient, **(OPTIONS | options))


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def check(make, x, mode, tolerance=FLOAT64):
    """Compares two gradient methods in one construct.

    Args:
        make: `gradient -> (layers, function of x)`.
        x: tensor.
        mode: one of `helpers.modes.MODES`.
        tolerance: of the relative error.
    """
    results = []
    for gradient in ("symplectic_adjoint", "backprop"):
        layers, function = make(gradient)

        def compute(layers=layers, function=function):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x)
                value = tf.reduce_sum(y * tf.cos(y))
            weights = [v.value for layer in layers for v in layer.trainable_variables]
            return [y, *tape.gradient(value, [x, *weights])]

        function(x)  # makes the weights
        # TensorFlow can't compile the gradient of a loop inside of a branch.
        plain = mode == "xla" and gradient == "backprop"
        results.append(run(compute, "graph" if plain else mode))
    actual, expected = results
    assert len(actual) > 3
    for a, b in zip(actual, expected):
        assert a is not None
        assert relative_error(a, b) < tolerance


def in_map_fn(gradient):
    layer = ode(gradient)
    return [layer], lambda x: tf.map_fn(lambda y: layer(y[tf.newaxis])[0], x)


def in_while_loop(gradient):
    layer = ode(gradient)

    def repeat(x):
        _, y = tf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, layer(y)), (0, x), maximum_iterations=3
        )
        return y

    return [layer], repeat


def in_cond(gradient):
    layer = ode(gradient)
    return [layer], lambda x: tf.cond(tf.reduce_sum(x) < 1e3, lambda: layer(x), lambda: x)


def in_time_distributed(gradient):
    layer = ode(gradient)
    distributed = keras.layers.TimeDistributed(layer, dtype="float64")
    return [layer], lambda x: distributed(tf.stack([x, 2.0 * x], 1))


def adaptive_in_time_distributed(gradient):
    layer = ODELayer(
        dense(), method="bosh3", rtol=1e-2, max_steps=20, gradient=gradient, dtype="float64"
    )
    distributed = keras.layers.TimeDistributed(layer, dtype="float64")
    return [layer], lambda x: distributed(tf.stack([x, 2.0 * x], 1))


def in_vectorized_map(gradient):
    layer = ode(gradient, on_failure="status")
    return [layer], lambda x: tf.vectorized_map(lambda y: layer(y[tf.newaxis])[0], x)


def twice(gradient):
    """Shared by two places, one behind the other, and beside another layer."""
    layer, other = ode(gradient), ode(gradient, seed=1)
    return [layer, other], lambda x: layer(layer(x)) + other(x) * layer(-x)


class Relaxation(keras.Layer):
    """Dynamics that solve a differential equation of their own."""

    def __init__(self, gradient):
        super().__init__(dtype="float64")
        self.inner = ode(gradient, t=(0.0, 0.5))

    def call(self, y):
        return self.inner(y) - 2.0 * y


def nested(gradient):
    layer = ODELayer(Relaxation(gradient), gradient=gradient, **OPTIONS)
    return [layer], layer


@pytest.mark.parametrize("mode", FEW_MODES)
@pytest.mark.parametrize(
    "construct",
    [
        in_map_fn,
        slow(in_while_loop),
        slow(in_cond),
        slow(in_time_distributed),
        slow(adaptive_in_time_distributed),
        slow(twice),  # see `test_persistent_tape_and_two_solves`
        slow(nested),  # a solve inside of dynamics: gradients/test_control_flow.py
    ],
)
def test_gradients(construct, mode):
    check(construct, normal(2, 3), mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_vectorized_map(mode):
    check(in_vectorized_map, normal(2, 3), mode)


@pytest.mark.slow
def test_vectorized_map_under_xla():
    """The solution only: TensorFlow can't compile the gradient of any loop in there."""
    _, function = in_vectorized_map("symplectic_adjoint")
    x = normal(2, 3)
    with tfsymadj.no_gradient():
        actual = tf.function(function, jit_compile=True)(x)
    np.testing.assert_allclose(actual, function(x), rtol=1e-12)


@keras.saving.register_keras_serializable(package="tests")
class ODERNNCell(keras.Layer):
    """Rubanova, Chen, Duvenaud (arXiv:1907.03907): the state evolves over the gap before an input.

    The gap is the last feature of the input, one for each example.
    """

    def __init__(self, units, solver, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units
        self.solver = solver
        dtype = kwargs.get("dtype")
        dynamics = ConcatTime(keras.layers.Dense(units, "tanh", dtype=dtype), dtype=dtype)
        self.evolve = ODELayer(RescaledTime(dynamics, dtype=dtype), dtype=dtype, **solver)
        self.update = keras.layers.GRUCell(units, dtype=dtype)

    def build(self, shape):
        self.update.build((*shape[:-1], shape[-1] - 1))
        self.evolve(tf.zeros([1, self.units], self.dtype), args=tf.zeros([1], self.dtype))

    def call(self, inputs, states):
        y = self.evolve(states[0], args=inputs[:, -1])
        return self.update(inputs[:, :-1], [y])

    def get_config(self):
        return {**super().get_config(), "units": self.units, "solver": self.solver}


def recurrent(gradient, **options):
    solver = dict(method="heun", num_steps=2, gradient=gradient)
    keras.utils.set_random_seed(0)
    return keras.layers.RNN(ODERNNCell(3, solver, dtype="float64"), dtype="float64", **options)


def in_rnn(gradient):
    layer = recurrent(gradient, return_sequences=True)
    return [layer], layer


@pytest.mark.slow
@pytest.mark.parametrize("mode", FEW_MODES)
def test_ode_rnn(mode):
    x = tf.concat([normal(2, 4, 2), tf.abs(normal(2, 4, 1, seed=1))], -1)
    check(in_rnn, x, mode)


def test_ode_rnn_of_padded_sequences():
    """Each sequence gives what it gives alone, without its padding."""
    layer = recurrent("symplectic_adjoint")
    x = tf.concat([normal(2, 5, 2), tf.abs(normal(2, 5, 1, seed=1))], -1)
    mask = tf.constant([[True, True, True, False, False], [True] * 5])
    together = layer(x, mask=mask)
    np.testing.assert_allclose(together[0], layer(x[:1, :3])[0], rtol=1e-12)
    np.testing.assert_allclose(together[1], layer(x[1:])[0], rtol=1e-12)


def test_masks_are_handed_on():
    inputs = keras.Input((None, 3))
    masked = keras.layers.Masking()(inputs)
    y = ode(dtype="float32")(masked)
    outputs = keras.layers.GlobalAveragePooling1D()(y)
    model = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    x[0, 2:] = 0.0
    np.testing.assert_allclose(model(x)[0], model(x[:1, :2])[0], rtol=1e-5)
    assert ode(dtype="float32", return_sequences=True).compute_mask(None, True) is None


def test_dataset_map():
    layer = ode()
    x = normal(6, 3)
    expected = layer(x)
    batches = tf.data.Dataset.from_tensor_slices(x).batch(4).map(layer, num_parallel_calls=2)
    np.testing.assert_allclose(np.concatenate(list(batches.as_numpy_iterator())), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [slow("eager"), "graph"])
def test_persistent_tape_and_two_solves(mode):
    layer, other, x = ode(), ode(seed=1), normal(2, 3)
    weights = [layer.dynamics, other.dynamics]
    layer(x), other(x)
    weights = [v.value for dynamics in weights for v in dynamics.trainable_variables]

    def compute(persistent):
        with tf.GradientTape(persistent=persistent) as tape:
            first, second = tf.reduce_sum(layer(x) ** 2), tf.reduce_sum(other(2.0 * x) ** 3)
            value = first * second
        if not persistent:
            return tape.gradient(value, weights)
        a = tape.gradient(first, weights[:2])
        b = tape.gradient(second, weights[2:])
        assert tape.gradient(first, weights[2]) is None
        return [second * g for g in a] + [first * g for g in b]

    actual, expected = (run(lambda p=p: compute(p), mode) for p in (True, False))
    for a, b in zip(actual, expected):
        assert relative_error(a, b) < FLOAT64


@pytest.mark.parametrize("mode", FEW_MODES)
def test_jacobian(mode):
    """Of a linear system it is the method's stability polynomial of the matrix."""
    layer = ODELayer(keras.layers.Dense(3, dtype="float64"), on_failure="status", **OPTIONS)
    x = normal(3)
    layer(x[tf.newaxis])

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x[tf.newaxis])[0]
        return tape.jacobian(y, x)

    z = layer.dynamics.kernel.numpy().T / 3
    step = np.eye(3) + z + z @ z / 2
    assert relative_error(run(compute, mode), step @ step @ step) < FLOAT64


def backward_loops(function):
    """Whether a traced function has the loops of a backward pass."""
    definition = function.graph.as_graph_def()
    names = [node.name for node in definition.node]
    names += [node.name for f in definition.library.function for node in f.node_def]
    return any("SymplecticAdjoint" in name and name.endswith("adjoint") for name in names)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_dynamics_cost_nothing(frozen):
    layer, head, x = ode(), keras.layers.Dense(1, dtype="float64"), normal(2, 3)
    model = keras.Sequential([layer, head])
    model(x)
    layer.trainable = not frozen
    weights = [v.value for v in [*layer.dynamics.variables, *head.variables]]

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(model(x))
        return tape.gradient(value, weights)

    traced = compute.get_concrete_function()
    assert backward_loops(traced) is not frozen
    found = compute()
    assert [g is None for g in found] == [frozen, frozen, False, False]


class TrainStep(keras.Model):
    """A model with a training step of its own, which penalizes the path beside the loss."""

    def __init__(self):
        super().__init__()
        self.ode = ODELayer(
            ConcatTime(keras.layers.Dense(2)), t=(0.0, 0.5, 1.0), return_sequences=True,
            method="rk4", num_steps=2,
        )  # fmt: skip

    def call(self, x):
        return self.ode(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            path = self(x, training=True)
            loss = tf.reduce_mean((path[:, -1] - y) ** 2)
            loss += 1e-4 * tf.reduce_mean((path[:, 1] - path[:, 0]) ** 2)
        weights = [v.value for v in self.trainable_variables]
        self.optimizer.apply(tape.gradient(loss, weights), self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.metrics}


@pytest.mark.parametrize("jit", [False, slow(True)])
def test_custom_train_step(jit):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    y = x @ np.array([[0.0, 1.0], [-1.0, 0.0]], "float32")
    model = TrainStep()
    model.compile(keras.optimizers.Adam(0.1), jit_compile=jit)
    history = model.fit(x, y, batch_size=16, epochs=25, verbose=0)
    # From the scale of the data to that of the penalty: a rotation is a linear flow.
    assert history.history["loss"][-1] < 0.02 < history.history["loss"][0]


# Times as data


def test_times_as_an_input_of_the_model():
    layer = ode(t=(0.0, 9.0), return_sequences=True)
    y0 = keras.Input((3,), dtype="float64")
    t = keras.Input(batch_shape=(None,), dtype="float64")
    model = keras.Model([y0, t], layer(y0, t=t))
    x = normal(2, 3)
    for times in ([0.0, 0.5], [0.0, 0.5, 1.0], [1.0, 0.0]):
        expected = tfsymadj.odeint(layer.dynamics, x, times, method="heun", num_steps=3)
        y = model([x, tf.constant(times, tf.float64)])
        np.testing.assert_allclose(y, tf.transpose(expected, [1, 0, 2]), rtol=1e-12)


class LearnedEnd(keras.Model):
    """Decay at a known rate for a time that is learned."""

    def __init__(self):
        super().__init__()
        self.end = self.add_weight(shape=(), initializer="ones", name="end")
        self.ode = ODELayer(_decay, rtol=1e-5, atol=1e-7)

    def call(self, x):
        return self.ode(x, t=self.end * tf.constant([0.0, 1.0]))


def _decay(t, y):
    return -y


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_learnable_end_time(jit):
    x = np.ones((4, 1), "float32")
    model = LearnedEnd()
    model.compile(keras.optimizers.SGD(3.0), "mse", jit_compile=jit)
    model.fit(x, 0.2 * x, epochs=60, verbose=0)
    assert abs(float(model.end) - np.log(5.0)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("mode", FEW_MODES)
def test_times_of_each_example(mode):
    dynamics = ConcatTime(keras.layers.Dense(3, "tanh", dtype="float64"), dtype="float64")
    rescaled = RescaledTime(dynamics, dtype="float64")
    layer = ODELayer(rescaled, **OPTIONS)
    x, start, duration = normal(4, 3), normal(4, seed=1), normal(4, seed=2)
    duration = duration * [1.0, 0.0, -1.0, 1.0]
    sources = [x, start, duration]
    layer(x, args=(duration, start))
    weights = [v.value for v in dynamics.trainable_variables]

    def together():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y = layer(x, args=(duration, start))
            value = tf.reduce_sum(y**3)
        return [y, *tape.gradient(value, [*sources, *weights])]

    def one_by_one():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            rows = []
            for i in (0, 2, 3):
                times = tf.stack([start[i], start[i] + duration[i]])
                y = tfsymadj.odeint(dynamics, x[i : i + 1], times, method="heun", num_steps=3)
                rows.append(y[-1])
            y = tf.concat([rows[0], x[1:2], *rows[1:]], 0)
            value = tf.reduce_sum(y**3)
        return [y, *tape.gradient(value, [*sources, *weights])]

    actual, expected = run(together, mode), run(one_by_one, "graph")
    np.testing.assert_array_equal(actual[0][1], x[1])  # no time, no change
    for i, (a, b) in enumerate(zip(actual, expected)):
        a, b = np.array(a), np.array(b)
        if i == 3:  # where the duration is zero, there is nothing to compare with but f
            field = dynamics(tf.reshape(start[1], [1, 1]), x[1:2])
            np.testing.assert_allclose(a[1], np.sum(3 * x[1] ** 2 * field[0]), rtol=1e-12)
            b[1] = a[1]
        assert relative_error(a, b) < FLOAT64, i


def test_rescaled_time_of_images_and_nests():
    x = tf.ones([2, 4, 4, 1])
    dynamics = ConcatTime(keras.layers.Conv2D(1, 3, padding="same"))
    layer = ODELayer(RescaledTime(dynamics), method="rk4", num_steps=2)
    y = layer(x, args=tf.constant([0.5, 0.0]))
    assert y.shape == x.shape
    np.testing.assert_array_equal(y[1], x[1])

    def rotation(t, y):
        return {"q": y["p"], "p": -y["q"]}

    layer = ODELayer(RescaledTime(rotation), rtol=1e-6, atol=1e-8)
    angles = tf.constant([0.5, 2.0])
    y = layer({"q": tf.ones([2, 1]), "p": tf.zeros([2, 1])}, args=angles)
    np.testing.assert_allclose(y["q"][:, 0], tf.cos(angles), atol=1e-5)
