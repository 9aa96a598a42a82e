"""What the dynamics capture, and which parts of the state they depend on."""

import keras
import tensorflow as tf
from helpers.gradients import FLOAT64, relative_error
from helpers.problems import loss

import tfsymadj
from tfsymadj.dynamics.calling import as_function
from tfsymadj.dynamics.closing import close

SHORT = dict(method="rk4", num_steps=3)


def test_frozen_layer_is_not_differentiated():
    y0 = tf.ones([4, 3], tf.float64)
    model = keras.Sequential(
        [
            keras.layers.Dense(8, activation="tanh", dtype="float64"),
            keras.layers.Dense(3, dtype="float64"),
        ]
    )
    model.build((None, 3))
    first, last = model.layers

    def captured():
        function = as_function(lambda: model, y0, (), True)
        dynamics = []
        tf.function(lambda: dynamics.append(close(function, [y0], owner=model)))()
        return len(dynamics[0].captured)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(y0)
            value = loss(tfsymadj.odeint(model, y0, [0.0, 1.0], **SHORT))
        return tape.gradient(value, [y0, *(w.value for w in last.weights)])

    expected = compute()
    assert captured() == 4
    first.trainable = False
    assert captured() == 2
    for a, b in zip(compute(), expected):
        assert relative_error(a, b) < FLOAT64


def test_live_parts():
    ys = [tf.constant([1.0]), tf.constant([2.0]), tf.constant([3.0])]
    with tf.Graph().as_default():
        ys = [tf.constant(y.numpy()) for y in ys]
        closed = close(
            lambda t, ys: [
                ys[1],
                2.0 * ys[1],
                tf.cond(ys[0][0] > 0.0, lambda: ys[1], lambda: ys[0]),
            ],
            ys,
        )
    assert closed.live == [0, 1]


def test_what_is_stopped_is_not_differentiated():
    """Neither inside of the dynamics nor before: a table of millions of rows costs nothing then."""
    y0, names = tf.ones([2], tf.float64), ("whole", "stopped", "outside", "partly")
    inputs = [tf.constant([0.1 * i, 0.2], tf.float64) for i in range(1, 5)]
    found = []

    def dynamics(t, y, whole, stopped, outside, partly):
        rest = tf.stop_gradient(tf.cos(stopped * partly))
        return -whole * y + rest + outside + tf.sin(partly)

    @tf.function
    def captured(inputs):
        args = dict(zip(names, inputs))
        args["outside"] = tf.cast(tf.stop_gradient(inputs[2]), tf.float64)
        function = as_function(lambda: dynamics, y0, tuple(args.values()), False)
        closed = close(function, [y0])
        found.append([name for name, x in args.items() if any(x is c for c in closed.captured)])
        with tf.GradientTape() as tape:
            tape.watch([y0, *inputs])
            y = tfsymadj.odeint(dynamics, y0, [0.0, 1.0], args=tuple(args.values()), **SHORT)[-1]
        return tape.gradient(y, [y0, *inputs])

    gradients = captured(inputs)
    assert found == [["whole", "partly"]]
    assert [g is None for g in gradients] == [False, False, True, True, False]

    @tf.function
    def by_backprop(inputs):
        with tf.GradientTape() as tape:
            tape.watch([y0, *inputs])
            y = tfsymadj.odeint(
                dynamics, y0, [0.0, 1.0], args=tuple(inputs), gradient="backprop", **SHORT
            )[-1]
        return tape.gradient(y, [y0, inputs[0], inputs[3]])

    for a, b in zip([gradients[i] for i in (0, 1, 4)], by_backprop(inputs)):
        assert relative_error(a, b) < FLOAT64
