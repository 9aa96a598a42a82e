"""Seeds of stateless random numbers."""

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
