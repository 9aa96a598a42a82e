"""Mass matrices: dynamics M dy/dt = f(t, y), where M may be singular."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Weighed:
    """The function f of M dy/dt = f(t, y), over lists of tensors.

    Args:
        function: f, `(t, ys) -> dys`.
        mass: `Mass`.
    """

    def __init__(self, function, mass):
        self._function, self.mass = function, mass

    def __call__(self, t, ys, *args):
        return self._function(t, ys, *args)

    def everything(self, t, ys):
        """What depends on all that a step depends on."""
        return [k + x for k, x in zip(self(t, ys), self.mass(t, ys))]


class Mass:
    """The product M y, a function `(t, ys) -> ys` like dynamics.

    Args:
        matrices: for each tensor of the state a matrix that acts on its last axis, or None for
            the identity.
    """

    def __init__(self, matrices):
        self.matrices = matrices

    def __call__(self, t, ys, *args):
        return [y if m is None else product(m, y) for m, y in zip(self.matrices, ys)]

    def split(self):
        """Its `SplitMatrix`s, or None for the identity; constants for the derivative."""
        return [None if m is None else _split(tf.stop_gradient(m)) for m in self.matrices]


class SplitMatrix(NamedTuple):
    """A mass matrix, and what it leaves of f.

    Attributes:
        leveled: D M, with a diagonal matrix D that makes the rows alike in size.
        algebraic: P D, with the projection P to the left null space of D M: P D f(t, y) = 0 are the
            equations without a derivative.
        rates: the pseudoinverse of D M, times D: it makes of f as much of dy/dt as f determines.
    """

    leveled: tf.Tensor
    algebraic: tf.Tensor
    rates: tf.Tensor


def product(matrix, y):
    """M y over the last axis."""
    rows = tf.matmul(
        tf.reshape(y, [-1, matrix.shape[-1]]), tf.cast(matrix, y.dtype), transpose_b=True
    )
    return tf.ensure_shape(tf.reshape(rows, tf.shape(y)), y.shape)


class Rates:
    """dy/dt, as far as f determines it, as dynamics.

    Args:
        dynamics: f, `(t, ys) -> dys`.
        parts: `Mass.split`.
    """

    def __init__(self, dynamics, parts):
        self._dynamics, self._parts = dynamics, parts

    def __call__(self, t, ys):
        return of_slopes(self._parts, self._dynamics(t, ys))


def of_slopes(parts, slopes):
    """dy/dt from f: see `Rates`."""
    return [k if part is None else product(part.rates, k) for part, k in zip(parts, slopes)]


def _split(matrix):
    rounding = matrix.shape[-1] * np.finfo(matrix.dtype.as_numpy_dtype).eps
    matrix = tf.cast(matrix, tf.float64)
    largest = tf.reduce_max(tf.abs(matrix), 1)
    scale = 1.0 / tf.where(largest > 0.0, largest, tf.ones_like(largest))
    leveled = scale[:, tf.newaxis] * matrix
    values, left, right = tf.linalg.svd(leveled)
    null = values <= rounding * tf.reduce_max(values)
    inverse = tf.where(
        null, tf.zeros_like(values), 1.0 / tf.where(null, tf.ones_like(values), values)
    )
    projection = tf.matmul(left * tf.cast(null, left.dtype), left, transpose_b=True)
    pseudoinverse = tf.matmul(right * inverse, left, transpose_b=True)
    return SplitMatrix(leveled, projection * scale, pseudoinverse * scale)
