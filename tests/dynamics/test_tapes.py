"""How much a tape of the dynamics holds."""

import pytest
import tensorflow as tf

import tfsymadj
from tfsymadj.dynamics.closing import close
from tfsymadj.dynamics.tapes import UNKNOWN, num_bytes, tape_bytes

W = tf.constant([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], tf.float64)


def tape(function, *shape, dtype=tf.float64):
    """Of dynamics of one tensor."""
    found = []

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype)])
    def trace(y):
        found.append(tape_bytes(close(lambda t, ys: [function(ys[0])], [y]), [y]))
        return y

    trace.get_concrete_function()
    return found[-1]


@pytest.mark.parametrize("batch", [5, None])
def test_bytes(batch):
    """The derivative of tanh needs its value, that of a product both of its factors."""
    size = UNKNOWN if batch is None else batch
    assert tape(lambda y: 2.0 * y, batch, 2) == 0
    assert tape(tf.tanh, batch, 2) == size * 2 * 8
    assert tape(lambda y: tf.tanh(y @ W) @ tf.transpose(W), batch, 2) == size * (2 + 3) * 8


def test_calls_of_functions():
    inner = tf.function(lambda y: tf.tanh(tf.tanh(y @ W) @ tf.transpose(W)))
    assert tape(inner, 5, 2) >= (5 * 3 + 5 * 2) * 8


def test_loops():
    def loop(y):
        return tf.while_loop(lambda y: tf.reduce_sum(y) > 1.0, lambda y: tf.sin(y), (y,))[0]

    assert tape(loop, 5, 2) is None


@pytest.mark.parametrize("jit_compile", [None, True])
def test_without_a_derivative(jit_compile):
    """Is no reason not to solve."""

    @tf.custom_gradient
    def negative(y):
        def backward(_):
            raise RuntimeError("no derivative")

        return -y, backward

    options = dict(num_steps=2, jit_compile=jit_compile)
    y0 = tf.constant([1.0])
    assert float(tfsymadj.odeint(lambda t, y: negative(y), y0, [0.0, 1.0], **options)[-1, 0]) < 0.4
    with pytest.raises(RuntimeError, match="no derivative"), tf.GradientTape() as tape:
        tape.watch(y0)
        y = tfsymadj.odeint(lambda t, y: negative(y), y0, [0.0, 1.0], **options)
        tape.gradient(y, y0)


def test_no_rank():
    assert num_bytes(tf.TensorSpec(None, tf.float32)) is None
    assert num_bytes(tf.TensorSpec([2], tf.variant)) is None
    assert num_bytes(tf.TensorSpec([None, 3], tf.float32)) == UNKNOWN * 3 * 4
