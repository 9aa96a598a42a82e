"""The size of an adaptive solve's first step."""

import tensorflow as tf

from tfsymadj.arithmetic import EPSILON, beside
from tfsymadj.methods.method import Dynamics
from tfsymadj.steps.controller import Controller


def automatic_first_step(
    dynamics: Dynamics,
    controller: Controller,
    order: int,
    ts: tf.Tensor,
    ys: list,
    slopes: list,
    measured: int | None = None,
) -> tf.Tensor:
    """The size of the first step, after Hairer, Norsett and Wanner, Solving ODEs I, section II.4.

    One more evaluation of the dynamics, at an explicit Euler step.

    Args:
        dynamics: `(t, ys) -> dys`.
        controller: `Controller`, for its norm.
        order: of the method.
        ts: float64 tensor of the times.
        ys: the initial state.
        slopes: the dynamics at `(ts[0], ys)`.
        measured: how many tensors of the state, the first ones, count; None: all.

    Returns:
        Positive float64 scalar, or one for each lane.
    """
    magnitudes = [tf.abs(y) for y in ys]
    length = tf.abs(ts[-1] - ts[0])
    least = tf.maximum(10.0 * EPSILON * tf.abs(ts[0]), 1e-20 * length)

    def norm(xs):
        # Squares overflow where a tolerance is far below an entry.
        norm = controller.scaled_norm(xs[:measured], magnitudes[:measured])
        return tf.minimum(norm, 1e100)

    size, slope = norm(ys), norm(slopes)
    small = tf.logical_or(size < 1e-5, slope < 1e-5)
    trial = tf.where(small, tf.constant(1e-6, tf.float64), 0.01 * size / tf.maximum(slope, 1e-5))
    trial = tf.minimum(tf.maximum(trial, least), length)
    h = tf.sign(ts[-1] - ts[0]) * trial
    euler = [y + beside(tf.cast(h, y.dtype), y) * k for y, k in zip(ys, slopes)]
    ahead = dynamics(ts[0] + h, euler)
    bend = norm([b - a for a, b in zip(slopes, ahead)]) / trial
    largest = tf.maximum(slope, bend)
    step = tf.where(
        largest <= 1e-15,
        tf.maximum(tf.constant(1e-6, tf.float64), trial * 1e-3),
        (0.01 / tf.maximum(largest, 1e-15)) ** (1.0 / (order + 1.0)),
    )
    step = tf.minimum(100.0 * trial, step)
    step = tf.where(tf.math.is_finite(step), step, trial)
    return tf.stop_gradient(tf.maximum(step, least))


def given_first_step(first_step: float | tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """A first step that was asked for, but not less than what moves the time."""
    return tf.maximum(tf.convert_to_tensor(first_step, tf.float64), EPSILON * tf.abs(start))
