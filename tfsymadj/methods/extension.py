"""States inside of a step, from its slopes and a continuous extension."""

import numpy as np
import tensorflow as tf


class Extension:
    """The solution inside of steps of a method.

    Args:
        dense: `Method.dense`, or a tensor of it.
    """

    def __init__(self, dense):
        self._dense = dense
        self.num_slopes = dense.shape[0]

    def weights(self, theta, powers="value"):
        """The polynomials b_i at theta, a vector, or their derivatives: `[times, slopes]`.

        Args:
            theta: float64 vector.
            powers: `"value"`, or `"rate"` for the derivatives.
        """
        degrees = np.arange(1, self._dense.shape[1] + 1)
        values = [tf.ones_like(theta)]
        for _ in degrees:  # not by `**`, whose second derivatives are NaN at zero
            values.append(values[-1] * theta)
        if powers == "value":
            columns = [values[k] for k in degrees]
        else:
            columns = [k * values[k - 1] for k in degrees]
        return tf.matmul(tf.stack(columns, axis=1), self._dense, transpose_b=True)

    def combined(self, weights, stacked):
        """`[times, slopes]` times `[slopes, ...]`."""
        shape = tf.shape(stacked)
        flat = tf.reshape(stacked, [self.num_slopes, -1])
        product = tf.matmul(tf.cast(weights, flat.dtype), flat)
        product = tf.reshape(product, tf.concat([tf.shape(weights)[:1], shape[1:]], 0))
        return tf.ensure_shape(product, [weights.shape[0], *stacked.shape[1:]])

    def lane_weights(self, theta, powers="value"):
        """`weights` for theta `[times, lanes]`: `[times, lanes, slopes]`."""
        found = self.weights(tf.reshape(theta, [-1]), powers)
        return tf.reshape(found, tf.concat([tf.shape(theta), tf.shape(found)[1:]], 0))

    def lane_combined(self, weights, slopes):
        """`[times, lanes, slopes]` times slopes of the lanes, a list of tensors `[lanes, ...]`."""
        rank, total = slopes[0].shape.rank, None
        for w, slope in zip(tf.unstack(tf.cast(weights, slopes[0].dtype), len(slopes), -1), slopes):
            w = tf.reshape(w, tf.concat([tf.shape(w), [1] * (rank - 1)], 0))
            total = w * slope if total is None else total - (-w) * slope
        return total

    def states(self, h, ys, slopes, theta):
        """The states at theta, a vector: list of tensors `[times, ...]`.

        Args:
            h: the step, or one for each lane.
            ys: the state before the step.
            slopes: of the method's `Step`.
            theta: float64 vector, or with lanes a matrix with a column for each.
        """
        if theta.shape.rank == 2:
            weights = h[:, tf.newaxis] * self.lane_weights(theta)
            return [
                y + self.lane_combined(weights, [slope[i] for slope in slopes])
                for i, y in enumerate(ys)
            ]
        weights = h * self.weights(theta)
        return [
            y + self.combined(weights, tf.stack([slope[i] for slope in slopes]))
            for i, y in enumerate(ys)
        ]
