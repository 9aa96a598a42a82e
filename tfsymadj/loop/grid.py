"""The steps that were taken, and the way back from them to the times that they were made of."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import entry
from tfsymadj.checkpoints import buffers
from tfsymadj.steps.controller import Proposal


class Rest(NamedTuple):
    """Where lanes that have no step are evaluated all the same: before their last one.

    Attributes:
        t: float64 vector.
        ys: those parts of the state that the dynamics depend on.
    """

    t: tf.Tensor
    ys: list


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

    def start(self, n):
        """The time before step n."""
        return entry(self.t, n)

    def size(self, n):
        """The step n."""
        return entry(self.h, n)

    def interval_of(self, n):
        """The interval of step n, int32."""
        return tf.cast(entry(self.interval, n), tf.int32)

    def arrives(self, n):
        """Whether step n ends at a stop."""
        return tf.not_equal(entry(self.hits_end, n), 0.0)

    def fractions(self, n):
        """`time_fraction` and `step_fraction` of step n."""
        return entry(self.time_fraction, n), entry(self.step_fraction, n)


class LaneGrid(NamedTuple):
    """The accepted steps of lanes; where a lane has no step n its step is zero.

    The number of a step may be one for each lane.

    Attributes:
        rows: `[rows, lanes, fields]`, in the order of the fields of `Grid`, the last four of which
            may be left out.
        accepted: the number of steps of each lane, int32 vector.
        rest: `Rest`.
    """

    rows: tf.Tensor
    accepted: tf.Tensor
    rest: Rest

    @classmethod
    def of(cls, rows, accepted, rest):
        """That of rows of all lanes, `[rows * lanes, fields]`."""
        rows = tf.reshape(rows, [-1, tf.size(accepted), rows.shape[-1]])
        return cls(tf.ensure_shape(rows, [None, accepted.shape[0], rows.shape[-1]]), accepted, rest)

    def _field(self, n, i, otherwise=None):
        active, found = n < self.accepted, entry(self.rows, n)[:, i]
        return tf.where(active, found, tf.zeros_like(found) if otherwise is None else otherwise)

    def start(self, n):
        return self._field(n, 0, self.rest.t)

    def size(self, n):
        return self._field(n, 1)

    def interval_of(self, n):
        return tf.cast(self._field(n, 2), tf.int32)

    def arrives(self, n):
        return tf.not_equal(self._field(n, 3), 0.0)

    def fractions(self, n):
        return self._field(n, 4), self._field(n, 5)


def to_stops(grid, gradient, n, start, step):
    """Adds the gradients of step n to that of the stops.

    Args:
        grid: `Grid` or `LaneGrid`.
        gradient: float64, one entry for each stop, or one row for each with a number for each lane.
        n: number of the step, int32 scalar.
        start: gradient for the time before the step at fixed h.
        step: gradient for h.
    """
    a, b = grid.fractions(n)
    to_start = (1.0 - a) * start - b * step
    to_end = a * start + b * step
    m, count = grid.interval_of(n), tf.shape(gradient)[0]
    return (
        gradient
        + to_start * tf.one_hot(m, count, axis=0, dtype=tf.float64)
        + to_end * tf.one_hot(m + 1, count, axis=0, dtype=tf.float64)
    )


_NUM_FIELDS = len(Grid._fields)


class Writer:
    """Writes the accepted steps, in the forward loop.

    One write a step, not one for each field.

    Args:
        max_steps: int, or int32 scalar.
        like: a time, for its shape: scalar, or one for each lane.
        full: whether it is of interest between which stops a step of a lane is.

    Attributes:
        num_fields: how many numbers are written for each step.
    """

    def __init__(self, max_steps, like, full=True):
        self._max_steps, self._like = max_steps, like
        self._lanes = like.shape.rank
        self.num_fields = 2 if self._lanes and not full else _NUM_FIELDS

    def reserve(self):
        """The rows for the loop to write to."""
        if not self._lanes:
            return buffers.reserve_rows(self._max_steps, tf.zeros([_NUM_FIELDS], tf.float64))
        # One row more, for lanes that are done.
        row = tf.stack([self._like] * self.num_fields, 1)
        return buffers.lane_rows(self._max_steps + 1, row, zeros=False)

    def write(self, rows, n, t, interval, proposal: Proposal):
        """`rows` with step n, from time `t`; one that is rejected is overwritten by the next."""
        row = Grid(
            t=t,
            h=proposal.step,
            interval=tf.cast(interval, tf.float64),
            hits_end=tf.cast(proposal.hits_end, tf.float64),
            time_fraction=proposal.time_fraction,
            step_fraction=proposal.step_fraction,
        )
        if not self._lanes:
            return buffers.set_row(rows, n, tf.stack(list(row)))
        fields = [tf.broadcast_to(x, tf.shape(t)) for x in row[: self.num_fields]]
        index = buffers.lane_row(n, self._like)
        return buffers.write_row(rows, index, tf.stack(fields, 1))

    def read(self, rows, accepted, rest):
        """The `Grid` of the rows, or `LaneGrid`."""
        if self._lanes:
            return LaneGrid.of(rows, accepted, rest)
        like = tf.zeros([_NUM_FIELDS], tf.float64)
        return Grid(*tf.unstack(buffers.stack_rows(rows, like), axis=1))
