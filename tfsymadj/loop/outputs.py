"""The states that a solve returns: written by the loop, read by the backward sweep."""

import tensorflow as tf

from tfsymadj.checkpoints import buffers
from tfsymadj.loop.failures import nan_where


class StopOutputs:
    """The states at the stops, each one the end of a step.

    Args:
        num_stops: int, or int32 scalar.
    """

    def __init__(self, num_stops):
        self._num_stops = num_stops
        self._static = num_stops if isinstance(num_stops, int) else None
        # The loop carries the last state anyway.
        self._only_end = self._static == 2

    def reserve(self, ys0):
        """The rows for the loop to write to."""
        if self._only_end:
            return []
        return [buffers.set_row(buffers.reserve_rows(self._num_stops, y), 0, y) for y in ys0]

    def write(self, rows, interval, ends):
        """`rows` with the end of a step; overwritten by the later steps of the same interval."""
        return [buffers.set_row(r, interval + 1, y) for r, y in zip(rows, ends)]

    def read(self, rows, ys0, ys, failed, reached):
        """The stacked states.

        Args:
            rows: what was written.
            ys0: the initial state.
            ys: the last state.
            failed: whether the solve failed.
            reached: the last stop before that.
        """
        if self._only_end:
            outputs = [tf.stack([y0, y]) for y0, y in zip(ys0, ys)]
        else:
            outputs = [buffers.stack_rows(r, y, self._static) for r, y in zip(rows, ys0)]
        lost = tf.logical_and(failed, tf.range(self._num_stops) > reached)
        return [y + nan_where(lost, y.dtype, y.shape.rank) for y in outputs]

    def last_cotangents(self, cotangents):
        """The adjoint that the backward sweep begins with."""
        return [g[-1] if self._only_end else tf.zeros_like(g[0]) for g in cotangents]

    def add_cotangents(self, adjoints, cotangents, interval, hits_end):
        """The adjoint after a step, with the cotangent of the output that it may end at."""
        if self._only_end:
            return adjoints
        ends = tf.not_equal(hits_end, 0)
        return [
            a + tf.where(ends, g[interval + 1], tf.zeros([], g.dtype))
            for a, g in zip(adjoints, cotangents)
        ]
