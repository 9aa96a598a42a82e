"""The steps that were taken, and the way back from them to the times that they were made of."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.checkpoints import buffers
from tfsymadj.steps.controller import Proposal


class Grid(NamedTuple):
    """The accepted steps, one row each: float64 tensors of shape `(max_steps,)`.

    Attributes:
        t: time before the step.
        h: the step.
        interval: index m of the interval, from `stops[m]` to `stops[m + 1]`.
        hits_end: 1 if the step ends at `stops[m + 1]`, else 0.
        time_fraction: see `steps.Proposal`.
        step_fraction: likewise.
    """

    t: tf.Tensor
    h: tf.Tensor
    interval: tf.Tensor
    hits_end: tf.Tensor
    time_fraction: tf.Tensor
    step_fraction: tf.Tensor

    def interval_of(self, n):
        """The interval of step n, int32."""
        return tf.cast(self.interval[n], tf.int32)

    def to_stops(self, gradient, n, start, step):
        """Adds the gradients of step n to that of the stops.

        Args:
            gradient: float64 vector, one entry for each stop.
            n: number of the step, int32 scalar.
            start: gradient for the time before the step at fixed h.
            step: gradient for h.
        """
        a, b = self.time_fraction[n], self.step_fraction[n]
        to_start = (1.0 - a) * start - b * step
        to_end = a * start + b * step
        m, count = self.interval_of(n), tf.size(gradient)
        return (
            gradient
            + to_start * tf.one_hot(m, count, dtype=tf.float64)
            + to_end * tf.one_hot(m + 1, count, dtype=tf.float64)
        )


#: A tensor list of rows in the order of the fields: one write a step, not six.
_LIKE = (len(Grid._fields),)


def reserve(max_steps):
    """The rows for the loop to write to."""
    return buffers.reserve_rows(max_steps, tf.zeros(_LIKE, tf.float64))


def write(rows, n, t, interval, proposal: Proposal):
    """`rows` with step n, from time `t`; one that is rejected is overwritten by the next."""
    row = Grid(
        t=t,
        h=proposal.step,
        interval=tf.cast(interval, tf.float64),
        hits_end=tf.cast(proposal.hits_end, tf.float64),
        time_fraction=proposal.time_fraction,
        step_fraction=proposal.step_fraction,
    )
    return buffers.set_row(rows, n, tf.stack(list(row)))


def read(rows) -> Grid:
    """The `Grid` of the rows."""
    return Grid(*tf.unstack(buffers.stack_rows(rows, tf.zeros(_LIKE, tf.float64)), axis=1))
