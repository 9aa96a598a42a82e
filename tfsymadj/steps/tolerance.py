"""Norms of errors relative to the tolerances."""

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import epsilon

#: What is divided by is not less: a number of float32 whose inverse is one, too.
TINY = 1e-37


def scaled_norm(xs, magnitudes, rtol, atol, may_lack_scale, lanes=0):
    """Root mean square of x / (atol + rtol magnitude) over all tensors, float64 scalar.

    Args:
        xs: list of tensors.
        magnitudes: likewise, real.
        rtol: relative tolerance, for all or per tensor.
        atol: absolute tolerance, likewise.
        may_lack_scale: whether entries may be zero without an absolute tolerance: these have no
            scale and don't count.
        lanes: 1 for a norm per lane, a vector.
    """
    total, count = tf.zeros([], tf.float64), tf.zeros([], tf.float64)
    for i, (x, magnitude) in enumerate(zip(xs, magnitudes)):
        relative, absolute = (tolerance_of(v, i, len(xs)) for v in (rtol, atol))
        relative = tf.cast(attainable(relative, magnitude.dtype), magnitude.dtype)
        if not tf.is_tensor(absolute):  # by itself TensorFlow would round it to float32
            absolute = np.asarray(absolute, np.float64)
        absolute = tf.cast(absolute, magnitude.dtype)
        scale = absolute + relative * magnitude
        ratio = tf.abs(x) / tf.maximum(scale, tf.cast(TINY, scale.dtype))
        if may_lack_scale:
            counts = tf.logical_or(magnitude > 0.0, absolute > 0.0)
            ratio = tf.where(counts, ratio, tf.zeros_like(ratio))
        axes = list(range(1, x.shape.rank)) if lanes else None
        total = total + tf.cast(tf.reduce_sum(ratio * ratio, axes), tf.float64)
        size = tf.reduce_prod(tf.shape(x)[1:]) if lanes else tf.size(x)
        count = count + tf.cast(size, tf.float64)
    return tf.sqrt(total / tf.maximum(count, 1.0))


def holds_zero(atol):
    """Whether some entry of an absolute tolerance is zero."""
    return any(np.any(np.equal(leaf, 0)) for leaf in tf.nest.flatten(atol))


def attainable(rtol, dtype):
    """A relative tolerance that rounding errors don't exceed; zero stays zero."""
    least = epsilon(dtype)
    if tf.is_tensor(rtol):
        below = tf.logical_and(rtol > 0.0, rtol < least)
        return tf.where(below, tf.cast(least, rtol.dtype), rtol)
    return np.where((np.asarray(rtol) > 0) & (np.asarray(rtol) < least), least, rtol)


def tolerance_of(tolerance, i, n):
    """The part of a tolerance that belongs to the i-th of n tensors."""
    if not tf.nest.is_nested(tolerance):
        return tolerance
    leaves = tf.nest.flatten(tolerance)
    if len(leaves) == n:
        return leaves[i]
    if n == 1:
        return np.asarray(tolerance)
    raise ValueError(
        "`rtol` and `atol` must be scalars, arrays, or nests with one entry for each tensor of "
        f"`y0`, {n} here. Received: {tolerance!r}"
    )
