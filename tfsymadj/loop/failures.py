"""What can go wrong in a solve, and how it spreads: never as a number."""

import tensorflow as tf

from tfsymadj.solution import Status


def first_failure(status, fine, failure):
    """The status, or `failure` if there was none before and something is not fine."""
    now = tf.logical_and(is_success(status), tf.logical_not(fine))
    return tf.where(now, failure if tf.is_tensor(failure) else int(failure), status)


def is_success(status):
    """Whether nothing has failed so far."""
    return tf.equal(status, int(Status.SUCCESS))


def poison(xs, status):
    """A nest of tensors and None, with NaN in place of all numbers if the solve failed."""
    failed = tf.logical_not(is_success(status))
    poisoned = [
        None if x is None else x + nan_where(failed, x.dtype, 0) for x in tf.nest.flatten(xs)
    ]
    return tf.nest.pack_sequence_as(xs, poisoned)


def nan_where(condition, dtype, rank):
    """NaN where a scalar or vector holds, else 0, to be added along the first axis."""
    # Not as a constant, which `tf.debugging.enable_check_numerics` would find.
    value = tf.cast(tf.where(condition, -1.0, 0.0), dtype.real_dtype)
    value = tf.cast(tf.sqrt(value), dtype)
    return value if rank == 0 else tf.reshape(value, [-1] + [1] * (rank - 1))


def monotonic(ts):
    """Whether times are finite, and strictly increasing or strictly decreasing."""
    steps = ts[1:] - ts[:-1]
    one_way = tf.logical_or(tf.reduce_all(steps > 0), tf.reduce_all(steps < 0))
    return tf.logical_and(one_way, tf.reduce_all(tf.math.is_finite(ts)))


def finite(xs):
    """Whether all numbers of a list of tensors are finite."""
    fine = tf.constant(True)
    for x in xs:
        # The magnitude is finite exactly if both parts of a complex number are.
        x = tf.abs(x) if x.dtype.is_complex else x
        fine = tf.logical_and(fine, tf.reduce_all(tf.math.is_finite(x)))
    return fine
