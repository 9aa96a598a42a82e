"""Stateless random numbers, and their seeds.

XLA has other ways to turn random bits into floating-point numbers than TensorFlow, so that the same
seed gives other numbers there once it is not a constant. Bits and integers are the same; from them
the numbers are made here, as TensorFlow does it.
"""

import math

import tensorflow as tf


def as_seed_pair(seed):
    """The seed as an int64 tensor of two entries.

    Args:
        seed: integer, or pair of integers; also as a tensor.

    Raises:
        ValueError, TypeError: if it is anything else.
    """
    if seed is None:
        raise TypeError("`seed` must be an integer or a pair of integers. Received: None")
    seed = tf.convert_to_tensor(seed, dtype_hint=tf.int64)
    if not seed.dtype.is_integer:
        raise TypeError(f"`seed` must be integer. Received: {seed.dtype.name}")
    if seed.shape.rank == 0:
        seed = tf.stack([seed, tf.zeros_like(seed)])
    if seed.shape != [2]:
        raise ValueError(f"`seed` must have the shape () or (2,). Received: shape {seed.shape}")
    return tf.cast(seed, tf.int64)


def uniform(shape, seed, dtype):
    """Numbers in [0, 1), multiples of epsilon, of float32 or float64.

    The arguments are those of `tf.random.stateless_uniform`.
    """
    if dtype == tf.float64:
        bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint64, alg="philox")
        low = tf.bitwise.bitwise_and(bits, tf.constant(2**20 - 1, tf.uint64))
        high = tf.bitwise.right_shift(bits, tf.constant(32, tf.uint64))
        return (_to_float(low, tf.int64) * 2.0**32 + _to_float(high, tf.int64)) * 2.0**-52
    bits = tf.random.stateless_uniform(shape, seed, None, None, tf.uint32, alg="philox")
    mantissa = tf.bitwise.bitwise_and(bits, tf.constant(2**23 - 1, tf.uint32))
    return _to_float(mantissa, tf.int32) * 2.0**-23


def normal(shape, seed, dtype):
    """Standard normal numbers, by the method of Box and Muller."""
    draw = dtype if dtype == tf.float64 else tf.float32
    size = tf.reduce_prod(shape)
    pairs = tf.reshape(uniform([2 * ((size + 1) // 2)], seed, draw), [-1, 2])
    radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(pairs[:, 0], 1e-7)))
    angle = 2.0 * math.pi * pairs[:, 1]
    numbers = tf.stack([radius * tf.sin(angle), radius * tf.cos(angle)], axis=1)
    return tf.cast(tf.reshape(tf.reshape(numbers, [-1])[:size], shape), dtype)


def _to_float(bits, integer):
    # By way of signed integers, whose conversion every device knows.
    return tf.cast(tf.cast(bits, integer), tf.float32 if integer == tf.int32 else tf.float64)
