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


def split_lost(cotangents, status, counts):
    """The cotangents of lanes, zeros for those that failed, and which of these had others.

    One that failed has no gradient; but nothing is lost where none was asked for.

    Args:
        cotangents: list of tensors, the first `counts` of shape `[outputs, lanes, ...]`, the others
            `[lanes, ...]`.
        status: int32 vector.
        counts: int.
    """
    failed = tf.logical_not(is_success(status))
    lost, kept = tf.zeros_like(failed), []
    for i, g in enumerate(cotangents):
        lane = 1 if i < counts else 0
        axes = [a for a in range(g.shape.rank) if a != lane]
        lost = tf.logical_or(lost, tf.reduce_any(tf.not_equal(g, tf.zeros_like(g)), axes))
        shape = tf.concat([tf.shape(failed), [1] * (g.shape.rank - lane - 1)], 0)
        kept.append(tf.where(tf.reshape(failed, shape), tf.zeros_like(g), g))
    return kept, tf.logical_and(failed, lost)


def poison_lanes(found, lost):
    """Gradients, `Sources`: NaN for lanes that lost theirs, and for what all lanes share."""
    shared = tf.reduce_any(lost)

    def whole(x):
        return None if x is None else x + nan_where(shared, x.dtype, 0)

    return found._replace(
        ys=[y + nan_where(lost, y.dtype, y.shape.rank) for y in found.ys],
        captured=[whole(x) for x in found.captured],
        variables=[whole(x) for x in found.variables],
        times=[x + nan_where(lost, x.dtype, 1) for x in found.times],
    )


def nan_where(condition, dtype, rank):
    """NaN where a tensor of booleans holds, else 0, to be added along the first axes."""
    # Not as a constant, which `tf.debugging.enable_check_numerics` would find.
    value = tf.cast(tf.where(condition, -1.0, 0.0), dtype.real_dtype)
    value = tf.cast(tf.sqrt(value), dtype)
    more = max(rank - condition.shape.rank, 0)
    return tf.reshape(value, tf.concat([tf.shape(value), [1] * more], 0)) if more else value


def monotonic(ts):
    """Whether times are finite, and strictly increasing or strictly decreasing; with a column for
    each lane, whether those of a lane are, up to its last time, which may be repeated.
    """
    steps = ts[1:] - ts[:-1]
    if ts.shape.rank == 2:
        ended = tf.equal(ts[:-1], ts[-1])
        up = tf.reduce_all(tf.logical_or(steps > 0, tf.logical_and(ended, tf.equal(steps, 0))), 0)
        down = tf.reduce_all(tf.logical_or(steps < 0, tf.logical_and(ended, tf.equal(steps, 0))), 0)
        return tf.logical_and(tf.logical_or(up, down), tf.reduce_all(tf.math.is_finite(ts), 0))
    one_way = tf.logical_or(tf.reduce_all(steps > 0), tf.reduce_all(steps < 0))
    return tf.logical_and(one_way, tf.reduce_all(tf.math.is_finite(ts)))


def finite(xs, lanes=0):
    """Whether all numbers of a list of tensors are finite.

    Args:
        lanes: 1 for an answer per lane.
    """
    fine = tf.constant(True)
    for x in xs:
        # The magnitude is finite exactly if both parts of a complex number are.
        x = tf.abs(x) if x.dtype.is_complex else x
        axes = list(range(1, x.shape.rank)) if lanes else None
        fine = tf.logical_and(fine, tf.reduce_all(tf.math.is_finite(x), axes))
    return fine
