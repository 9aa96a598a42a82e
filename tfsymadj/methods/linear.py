"""Small linear systems, many at a time: by operations that XLA has kernels for."""

import tensorflow as tf

from tfsymadj.xla import repeated


def inverse_of(matrices: tf.Tensor) -> tf.Tensor:
    """The inverses of real matrices, by Gauss-Jordan elimination with partial pivoting.

    Those of singular matrices are not finite; `tf.linalg.inv` would raise.

    Args:
        matrices: tensor `[systems, n, n]`, n static.
    """
    n = matrices.shape[-1]
    if n == 1:
        return 1.0 / matrices
    identity = tf.eye(n, dtype=matrices.dtype)
    rows = tf.range(n)

    def eliminate(k, pair):
        here = tf.equal(rows, k)
        column = tf.gather(pair, k, axis=2)
        candidates = tf.where(rows >= k, tf.abs(column), -tf.ones_like(column))
        pivot = tf.argmax(candidates, 1, output_type=tf.int32)
        order = tf.where(here, pivot[:, tf.newaxis], rows)
        order = tf.where(tf.equal(rows, pivot[:, tf.newaxis]), k, order)
        # Where the pivot is the row itself, that comes last and is the same.
        pair = tf.gather(pair, order, batch_dims=1)
        column = tf.gather(pair, k, axis=2)
        first = tf.gather(pair, k, axis=1) / tf.gather(column, k, axis=1)[:, tf.newaxis]
        others = pair - column[:, :, tf.newaxis] * first[:, tf.newaxis, :]
        return tf.where(here[:, tf.newaxis], first[:, tf.newaxis, :], others)

    pair = tf.concat([matrices, identity - tf.zeros_like(matrices)], 2)
    pair = tf.ensure_shape(pair, [matrices.shape[0], n, 2 * n])
    pair = repeated(n, eliminate, pair, "elimination")
    return tf.ensure_shape(pair[:, :, n:], matrices.shape)
