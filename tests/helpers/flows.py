"""Fields, points and densities for flows."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp


class Field(tf.Module):
    """A small tanh network with a condition that may be left out."""

    def __init__(self, size=3, dtype=tf.float64, seed=0):
        super().__init__()
        random = np.random.default_rng(seed)
        self.w0 = tf.Variable(random.normal(size=[size + 1, 8]) / 2, dtype=dtype)
        self.w1 = tf.Variable(random.normal(size=[8, size]) / 2, dtype=dtype)

    def __call__(self, t, y, shift=0.0):
        x = tf.concat([y, t * tf.ones_like(y[..., :1])], -1)
        return tf.tanh(x @ self.w0) @ self.w1 + shift * tf.sin(y)


def points(*shape, dtype=tf.float64, seed=1):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def normal(size=3, dtype=tf.float64):
    return tfp.distributions.MultivariateNormalDiag(tf.zeros(size, dtype), tf.ones(size, dtype))


MATRIX = points(3, 3, seed=5)


def conditioned(t, y, *args):
    shift = sum(tf.nest.flatten(args)) if args else 0.0
    return tf.sin(y @ MATRIX + shift + t)


class Weighted(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(MATRIX)

    def __call__(self, t, y, shift=0.0):
        return tf.sin(y @ self.w + shift)
