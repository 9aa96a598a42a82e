"""Layers that take the time."""

import keras
import numpy as np
import tensorflow as tf

from tfsymadj.layers import ConcatSquash, ConcatTime


def test_concat_time_on_images():
    layer = ConcatTime(keras.layers.Conv2D(3, 3, padding="same"))
    y = layer(tf.constant(2.0), tf.ones([2, 5, 5, 3]))
    assert y.shape == (2, 5, 5, 3)
    assert layer.layer.kernel.shape == (3, 3, 4, 3)


def test_concat_squash_formula():
    layer = ConcatSquash(3, "tanh")
    t, y = tf.constant(0.7), tf.constant(np.random.default_rng(0).normal(size=(4, 2)), tf.float32)
    value = layer(t, y)
    kernel, bias, gate_kernel, gate_bias, shift_kernel = layer.get_weights()
    gate = 1 / (1 + np.exp(-(0.7 * gate_kernel[0] + gate_bias)))
    expected = np.tanh((y.numpy() @ kernel + bias) * gate + 0.7 * shift_kernel[0])
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
