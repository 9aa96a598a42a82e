"""The format of what the forward pass keeps, and of the stage values that a backward pass holds.

Only those parts of the state are kept that the dynamics depend on. Whoever writes rows or reads
them does it by the classes of this module.
"""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.checkpoints import buffers
from tfsymadj.checkpoints.recording import Recording


class Kept(NamedTuple):
    """Dense buffers, one for each part of the state that is kept; empty lists where there is none.

    Attributes:
        states: `[rows + 1, ...]`: rows as `Recording.row` says, and one more than needed: where to
            write what is not kept.
        stages: `[ring, s, ...]`: the stage values of the last steps, those of step n at n modulo
            ring.
    """

    states: list
    stages: list


class Store:
    """Writes what a `Recording` asks for, in the forward loop.

    Args:
        recording: `Recording`.
        num_stages: how many stage values a step has.
    """

    def __init__(self, recording: Recording, num_stages: int):
        self._recording = recording
        self._num_stages = num_stages

    def empty(self, like: list) -> Kept:
        """What the loop begins with, for the parts of the state to be kept."""
        recording, s = self._recording, self._num_stages
        return Kept(
            [buffers.dense_rows(recording.rows + 1, y) for y in like]
            if recording.keeps_states
            else [],
            [buffers.dense_rows(recording.ring, tf.stack([y] * s)) for y in like]
            if recording.keeps_stages
            else [],
        )

    def with_state(self, kept: Kept, n: tf.Tensor, ys: list, is_new: tf.Tensor) -> Kept:
        """`kept` with the state before the step n, which is a variable of the loop.

        Args:
            kept: `Kept`.
            n: number of the step, int32 scalar.
            ys: list of tensors.
            is_new: whether this is the first attempt of the step.
        """
        if not kept.states:
            return kept
        recording = self._recording
        new = tf.logical_and(is_new, tf.equal(n % recording.stride, 0))
        row = tf.where(new, recording.row(n // recording.stride), recording.rows)
        return kept._replace(states=[buffers.write_row(b, row, y) for b, y in zip(kept.states, ys)])

    def with_stages(self, kept: Kept, n: tf.Tensor, stages: list) -> Kept:
        """`kept` with the stage values of step n, a list for each part of the state."""
        if not kept.stages:
            return kept
        # A step that is rejected leaves its values where those of the next one will be.
        row = n % self._recording.ring
        return kept._replace(
            stages=[
                buffers.for_branches(buffers.write_row, b, row, tf.stack(x))
                for b, x in zip(kept.stages, stages)
            ]
        )


class RingOfStages:
    """The stage values of `ring` steps in the buffers of `Kept.stages`."""

    def __init__(self, ring):
        self._ring = ring

    def set(self, rows, n, stages):
        """`rows` with the stage values of step n."""
        values = [tf.stack(x) for x in zip(*stages)]
        row = n % self._ring
        return [buffers.for_branches(buffers.replace_row, r, row, x) for r, x in zip(rows, values)]

    def of_step(self, rows, n, like):
        """Callable from i to the stage value i of step n."""
        row = n % self._ring
        return lambda i: [tf.ensure_shape(r[row, i], y.shape) for r, y in zip(rows, like)]


class StageLists:
    """The stage values of a segment's steps but the last one, in tensor lists."""

    def __init__(self, stride, num_stages):
        self._stride, self._num_stages = stride, num_stages

    def reserve(self, like):
        """The rows."""
        stride, s = self._stride, self._num_stages
        # At least one: a stride that is known at run time only may turn out to be one.
        most = (stride - 1) * s if isinstance(stride, int) else tf.maximum((stride - 1) * s, 1)
        return [buffers.set_row(buffers.reserve_rows(most, y), 0, y) for y in like]

    def set(self, rows, n, stages):
        """`rows` with the stage values of step n."""
        first = self._first_row(n)
        for i, stage in enumerate(stages):
            rows = [buffers.set_row(r, first + i, y) for r, y in zip(rows, stage)]
        return rows

    def of_step(self, rows, n, like):
        """Callable from i to the stage value i of step n."""
        first = self._first_row(n)
        return lambda i: [buffers.get_row(r, first + i, y) for r, y in zip(rows, like)]

    def _first_row(self, n):
        return n % self._stride * self._num_stages
