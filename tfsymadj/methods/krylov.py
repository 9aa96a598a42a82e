"""Large linear systems, by products with their matrices alone."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

#: Directions that are held at a time, and how often there may be so many of them.
_DIRECTIONS, _CYCLES = 40, 25


class _Basis(NamedTuple):
    count: tf.Tensor
    rest: tf.Tensor  # of the right hand side
    basis: tf.Tensor  # orthonormal: products of the basis before it, without what was there
    triangle: tf.Tensor  # the products' coefficients
    parts: tf.Tensor  # of the right hand side


def gmres(product, b, tolerance):
    """The solution of `product(x) = b`, with a residual of `tolerance` times |b|; else NaN.

    Walker, Zhou, A simpler GMRES, Numerical Linear Algebra with Applications 1 (1994), 571-581:
    the products are made orthonormal, so that the residual is known at each step.

    Args:
        product: callable, linear, from vectors to vectors.
        b: vectors `[systems, size]`, size static.
        tolerance: float.
    """
    enough = tolerance * tf.norm(b, axis=1)

    def unfinished(rest):
        return tf.norm(rest, axis=1) > enough

    def cycle(count, x, rest):
        more, rest = _cycle(product, rest, unfinished)
        return count + 1, x + more, rest

    _, x, rest = tf.while_loop(
        lambda count, x, rest: tf.reduce_any(unfinished(rest)),
        cycle,
        (tf.zeros([], tf.int32), tf.zeros_like(b), b),
        parallel_iterations=1,
        maximum_iterations=_CYCLES,
        name="gmres",
    )
    # Not as a constant: see `failures.nan_where`.
    lost = tf.sqrt(tf.cast(tf.where(unfinished(rest), -1.0, 0.0), b.dtype))
    return x + lost[:, tf.newaxis]


def _cycle(product, b, unfinished):
    """Directions from `b` on: what they make of the solution, and what is left of `b`."""
    systems, size = tf.shape(b)[0], b.shape[1]
    count = min(size, _DIRECTIONS)
    tiny = float(np.finfo(b.dtype.as_numpy_dtype).tiny) ** 0.5
    first = b / (tf.norm(b, axis=1, keepdims=True) + tiny)

    def body(c):
        here = tf.one_hot(c.count, count, dtype=b.dtype)
        last = tf.gather(c.basis, tf.maximum(c.count - 1, 0), axis=1)
        new, coefficients = product(tf.where(c.count > 0, last, first)), tf.zeros_like(c.parts)
        for _ in range(2):  # the second time for what rounding has left
            more = tf.linalg.matvec(c.basis, new)
            new -= tf.linalg.matvec(c.basis, more, transpose_a=True)
            coefficients += more
        norm = tf.norm(new, axis=1, keepdims=True)
        goes_on = unfinished(c.rest)[:, tf.newaxis]
        new = tf.where(goes_on, new / norm, tf.zeros_like(new))
        column = tf.where(goes_on, coefficients + norm * here, here - tf.zeros_like(c.parts))
        part = tf.reduce_sum(new * c.rest, 1, keepdims=True)
        return (
            _Basis(
                count=c.count + 1,
                rest=c.rest - part * new,
                basis=tf.where(here[:, tf.newaxis] > 0, new[:, tf.newaxis], c.basis),
                triangle=tf.where(here > 0, column[:, :, tf.newaxis], c.triangle),
                parts=c.parts + part * here,
            ),
        )

    start = _Basis(
        count=tf.zeros([], tf.int32),
        rest=b,
        basis=tf.zeros([systems, count, size], b.dtype),
        triangle=tf.eye(count, batch_shape=[systems], dtype=b.dtype),
        parts=tf.zeros([systems, count], b.dtype),
    )
    shapes = start._replace(
        basis=tf.ensure_shape(start.basis, [b.shape[0], count, size]),
        triangle=tf.ensure_shape(start.triangle, [b.shape[0], count, count]),
        parts=tf.ensure_shape(start.parts, [b.shape[0], count]),
    )
    (c,) = tf.while_loop(
        lambda c: tf.reduce_any(unfinished(c.rest)),
        body,
        (shapes,),
        parallel_iterations=1,
        maximum_iterations=count,
        name="directions",
    )
    weights = tf.linalg.triangular_solve(c.triangle, c.parts[:, :, tf.newaxis], lower=False)
    weights = tf.squeeze(weights, 2)
    found = weights[:, :1] * first
    found += tf.linalg.matvec(c.basis[:, :-1], weights[:, 1:], transpose_a=True)
    return found, b - product(found)
