"""What Keras users take for granted: losses, names of inputs, shapes, subclasses, summaries."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfsymadj
from tfsymadj.layers import ODELayer

FEW = dict(method="rk4", num_steps=2)
JIT = pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])


def x_and_y(size=2, batch=4):
    x = np.random.default_rng(0).normal(size=(batch, size)).astype("float32")
    return x, 0.5 * x


# Losses


class Encoder(keras.Model):
    """Adds losses of its own before the solve, whose dynamics reach all of the model."""

    def __init__(self, inside=None, **enc):
        super().__init__()
        self.enc = keras.layers.Dense(2, kernel_initializer="ones", **enc)
        self.field = keras.layers.Dense(2, kernel_initializer="zeros")
        self.inside = inside

    def call(self, x):
        z = self.enc(x)
        self.add_loss(tf.reduce_mean(z**2))
        return tfsymadj.odeint(self.dynamics, z, [0.0, 1.0], **FEW)[-1]

    def dynamics(self, t, y):
        if self.inside == "add_loss":
            self.add_loss(tf.reduce_sum(y))
        return self.enc(y) if self.inside == "regularizer" else self.field(y)


def test_losses_of_before_the_solve_stay():
    model = Encoder(activity_regularizer=keras.regularizers.L2(0.5))
    for x in (np.ones((2, 2), "float32"), np.full((2, 2), 2.0, "float32")):
        model(x)
        expected = np.mean((2 * x) ** 2), 0.5 * np.sum((2 * x) ** 2) / len(x)
        np.testing.assert_allclose(model.losses, expected, rtol=1e-6)


@JIT
def test_losses_of_before_the_solve_are_trained(jit):
    x, _ = x_and_y()
    model = Encoder(activity_regularizer=keras.regularizers.L2(0.5))
    model.compile("sgd", jit_compile=jit)
    before = model.predict(x, verbose=0)  # the field is zero: what the encoder says
    history = model.fit(x, epochs=2, verbose=0, batch_size=4).history["loss"]
    expected = np.mean(before**2) + 0.5 * np.sum(before**2) / len(x)
    np.testing.assert_allclose(history[0], expected, rtol=1e-5)
    assert history[1] < history[0]


@pytest.mark.parametrize("inside", ["add_loss", "regularizer"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_losses_of_the_dynamics_are_refused_and_taken_back(inside, graph):
    model = Encoder(inside, activity_regularizer=keras.regularizers.L2(0.5))
    call = tf.function(model, autograph=False) if graph else model
    with pytest.raises(ValueError, match="must not add losses.*Received: layer"):
        call(np.ones((2, 2), "float32"))
    model.inside = None
    model(np.ones((2, 2), "float32"))
    assert len(model.losses) == 2


def test_losses_of_the_dynamics_where_its_layer_had_some_before():
    """The layer starts a call of its own in the solve, which forgets those of before."""
    layer = keras.layers.Dense(2, activity_regularizer="l2")
    layer(np.ones((1, 2), "float32"))
    with pytest.raises(ValueError, match="must not add losses"):
        tfsymadj.odeint(lambda t, y: layer(y), tf.ones([1, 2]), [0.0, 1.0], **FEW)


def test_regularizers_of_weights_are_no_losses_of_a_call():
    layer = ODELayer(keras.layers.Dense(2, kernel_regularizer="l2"), **FEW)
    layer(np.ones((1, 2), "float32"))
    assert len(layer.losses) == 1
