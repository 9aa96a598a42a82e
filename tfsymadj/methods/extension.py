"""States inside of a step, from its slopes and a continuous extension."""

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import in_double


def _beside_rows(x, y):
    """A matrix `[times, lanes]` as a factor for `[times, lanes, ...]`."""
    x = tf.reshape(x, tf.concat([tf.shape(x), [1] * (y.shape.rank - 2)], 0))
    return tf.cast(x, y.dtype)


class Extension:
    """The solution inside of steps of a method.

    Args:
        dense: `Method.dense`, or a tensor of it.
    """

    def __init__(self, dense):
        self._dense = dense
        self.num_slopes, self.num_powers = dense.shape

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

    def lane_terms(self, slopes):
        """What the powers of theta are multiplied by, for a slope of each lane.

        So that a state takes one product a power; in double precision, since the coefficients of
        powers cancel where those of slopes do not.

        Args:
            slopes: list of tensors `[lanes, ...]`.

        Returns:
            A float64 or complex128 tensor `[powers, lanes, ...]`, from the first power on.
        """
        return self._product(tf.stack(slopes), transpose=True)

    def lane_slopes(self, h, sums):
        """The transpose of `lane_terms`, times h: `[slopes, lanes, ...]`.

        Args:
            h: the step of each lane.
            sums: tensor `[powers, lanes, ...]`, of `lane_sums` from the first power on.
        """
        return self._product(sums * _beside_rows(h[tf.newaxis], sums), transpose=False)

    def _product(self, stacked, transpose):
        shape = tf.shape(stacked)
        flat = in_double(tf.reshape(stacked, [stacked.shape[0], -1]))
        product = tf.matmul(tf.cast(self._dense, flat.dtype), flat, transpose_a=transpose)
        rows = self._dense.shape[1 if transpose else 0]
        product = tf.reshape(product, tf.concat([[rows], shape[1:]], 0))
        return tf.ensure_shape(product, [rows, *stacked.shape[1:]])

    def lane_values(self, theta, terms, powers="value"):
        """The polynomials at theta `[times, lanes]`, or their derivatives: `[times, lanes, ...]`.

        Args:
            theta: float64 matrix.
            terms: of `lane_terms`.
            powers: as for `weights`.
        """
        theta = _beside_rows(theta, terms)
        value, terms = powers == "value", tf.unstack(terms)
        if not value:
            terms = [tf.cast(k, x.dtype) * x for k, x in enumerate(terms, 1)]
        total = tf.zeros_like(theta)
        for x in reversed(terms):
            total = total * theta + x
        return total * theta if value else total

    def lane_states(self, h, y, theta, terms):
        """The states at theta `[times, lanes]`, for a step of each lane from `y`."""
        values = self.lane_values(theta, terms * _beside_rows(h[tf.newaxis], terms))
        return y + tf.cast(values, y.dtype)

    def lane_sums(self, theta, mask, rows):
        """Sums over times of `rows`, `[times, lanes, ...]`, times the powers of theta.

        Args:
            theta: float64 matrix `[times, lanes]`.
            mask: of the rows that count.
            rows: tensor.

        Returns:
            A float64 or complex128 tensor `[1 + powers, lanes, ...]`, from the power zero on.
        """
        rows = in_double(rows)
        theta = _beside_rows(theta, rows)
        # Others get a factor of zero: what is not finite among them is in the adjoint already.
        rows *= _beside_rows(mask, rows)
        sums = [tf.reduce_sum(rows, 0)]
        for _ in range(self.num_powers):
            rows *= theta
            sums.append(tf.reduce_sum(rows, 0))
        return tf.stack(sums)

    def no_sums(self, y):
        """Zeros like what `lane_sums` returns for rows like `y`."""
        return tf.stack([tf.zeros_like(in_double(y))] * (1 + self.num_powers))

    def states(self, h, ys, slopes, theta):
        """The states at theta, a vector: list of tensors `[times, ...]`.

        Args:
            h: the step, or one for each lane.
            ys: the state before the step.
            slopes: of the method's `Step`.
            theta: float64 vector, or with lanes a matrix with a column for each.
        """
        if theta.shape.rank == 2:
            terms = [self.lane_terms(x) for x in zip(*slopes)]
            return [self.lane_states(h, y, theta, x) for y, x in zip(ys, terms)]
        weights = h * self.weights(theta)
        return [
            y + self.combined(weights, tf.stack([slope[i] for slope in slopes]))
            for i, y in enumerate(ys)
        ]
