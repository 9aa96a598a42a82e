"""The format of what the forward pass keeps, and of what a backward pass holds of a segment.

Only those parts of the state are kept that the dynamics depend on. Whoever writes rows or reads
them does it by the classes of this module.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import entry
from tfsymadj.checkpoints import buffers
from tfsymadj.checkpoints.recording import Recording


class Kept(NamedTuple):
    """Dense buffers, one for each part of the state that is kept; empty lists where there is none.

    Attributes:
        states: `[rows + 1, ...]`: rows as `Recording.row` says, and one more than needed: where to
            write what is not kept.
        steps: `[ring, values, ...]`: what the adjoint of the last steps needs, that of step n at n
            modulo ring: see `Recording`.
    """

    states: list
    steps: list


class Store:
    """Writes what a `Recording` asks for, in the forward loop.

    Args:
        recording: `Recording`.
        num_stages: how many stage values a step has.
        lanes: 1 where the first axis of the state are lanes, which write to rows of their own; the
            buffers have one axis of all rows and lanes then, and the ring a row more than needed.
    """

    def __init__(self, recording: Recording, num_stages: int, lanes: int = 0):
        self._recording, self._lanes = recording, lanes
        self._num_values = recording.num_values(num_stages)
        if recording.halves is not None:
            self._activations = Activations(recording.halves, recording.ring, num_stages)

    def _stacked(self, values):
        return tf.stack(values, axis=self._lanes)

    def _row(self, row, like):
        return buffers.lane_row(row, like) if self._lanes else row

    def empty(self, like: list) -> Kept:
        """What the loop begins with, for the parts of the state to be kept."""
        recording = self._recording
        if recording.dtype is not None:
            like = [buffers.in_dtype(y, recording.dtype) for y in like]
        rows = buffers.lane_rows if self._lanes else buffers.dense_rows
        return Kept(
            [rows(recording.rows + 1, y) for y in like] if recording.keeps_states else [],
            self._empty_steps(like, rows),
        )

    def _empty_steps(self, like, rows):
        recording, count = self._recording, self._num_values
        if not recording.keeps_steps:
            return []
        if recording.halves is not None:
            return self._activations.reserve()
        return [rows(recording.ring + self._lanes, self._stacked([y] * count)) for y in like]

    def with_state(
        self, kept: Kept, n: tf.Tensor, ys: list, is_new: tf.Tensor, running: Any = True
    ) -> Kept:
        """`kept` with the state before the step n, which is a variable of the loop.

        Args:
            kept: `Kept`.
            n: number of the step, int32 scalar, or vector with lanes.
            ys: list of tensors.
            is_new: whether this is the first attempt of the step.
            running: whether there is a step; of lanes only.
        """
        recording = self._recording
        if kept.states:
            new = tf.logical_and(is_new, tf.equal(n % recording.stride, 0))
            if self._lanes:
                new = tf.logical_and(new, running)
            row = tf.where(new, recording.row(n // recording.stride), recording.rows)
            states = [buffers.write_row(b, self._row(row, y), y) for b, y in zip(kept.states, ys)]
            kept = kept._replace(states=states)
        if kept.steps and recording.tapes_steps:
            row = self._ring_row(n, running)
            steps = [
                buffers.write_row(b, self._row(row, y), self._stacked([y]))
                for b, y in zip(kept.steps, ys)
            ]
            kept = kept._replace(steps=steps)
        return kept

    def _ring_row(self, n, running):
        row = n % self._recording.ring
        return tf.where(running, row, self._recording.ring) if self._lanes else row

    def with_stages(self, kept: Kept, n: tf.Tensor, stages: list, running: Any = True) -> Kept:
        """`kept` with the stage values of step n, a list for each part of the state; or with the
        activations of its stages, a list for each stage.
        """
        if not kept.steps or self._recording.tapes_steps:
            return kept
        # A step that is rejected leaves its values where those of the next one will be.
        if self._recording.halves is not None:
            return kept._replace(steps=self._activations.set(kept.steps, n, stages))
        row, steps = self._ring_row(n, running), []
        for b, x in zip(kept.steps, stages):
            values = self._stacked(x)
            steps.append(buffers.for_branches(buffers.write_row, b, self._row(row, values), values))
        return kept._replace(steps=steps)

    def closed(self, kept: Kept) -> Kept:
        """`kept` after the loop, in dense buffers only."""
        if not kept.steps or self._recording.halves is None:
            return kept
        return kept._replace(steps=self._activations.closed(kept.steps))


class Ring:
    """The values of `ring` steps in the buffers of `Kept.steps`."""

    def __init__(self, ring):
        self._ring = ring

    def set(self, rows, n, values):
        """`rows` with the values of step n, lists of tensors."""
        values = [tf.stack(x) for x in zip(*values)]
        row = n % self._ring
        return [buffers.for_branches(buffers.replace_row, r, row, x) for r, x in zip(rows, values)]

    def of_step(self, rows, n, like):
        """Callable from i to the value i of step n."""
        row, found = n % self._ring, []
        for r, y in zip(rows, like):
            values = tf.reshape(r, tf.concat([[-1], tf.shape(r)[2:]], 0))
            found.append((values, row * tf.shape(r)[1], y))
        return lambda i: [
            buffers.as_before(entry(values, first + i), y) for values, first, y in found
        ]


class LaneRing:
    """What `Ring` is for lanes, to be read only.

    Args:
        ring: see `Recording`.
        resting: `(n, ys) -> ys`, that has another state where a lane has no step n.
    """

    def __init__(self, ring, resting):
        self._ring, self._resting = ring, resting

    def of_step(self, rows, n, like):
        row = n % self._ring

        def value(i):
            found = []
            for r, y in zip(rows, like):
                r = tf.reshape(r, tf.concat([[-1], tf.shape(y)[:1], tf.shape(r)[1:]], 0))
                found.append(buffers.as_before(tf.gather(entry(r, row), i, axis=1), y))
            return self._resting(n, found)

        return value


class Lists:
    """The values of a segment's steps, in tensor lists."""

    def __init__(self, stride, num_values):
        self._stride, self._num_values = stride, num_values

    def reserve(self, like):
        """The rows."""
        count = self._stride * self._num_values
        return [buffers.set_row(buffers.reserve_rows(count, y), 0, y) for y in like]

    def set(self, rows, n, values):
        """`rows` with the values of step n, lists of tensors."""
        first = self._first_row(n)
        for i, value in enumerate(values):
            rows = [buffers.set_row(r, first + i, y) for r, y in zip(rows, value)]
        return rows

    def of_step(self, rows, n, like):
        """Callable from i to the value i of step n."""
        first = self._first_row(n)
        return lambda i: [buffers.get_row(r, first + i, y) for r, y in zip(rows, like)]

    def _first_row(self, n):
        return n % self._stride * self._num_values


class Activations:
    """The activations of the stages of some steps, in tensor lists.

    Those of one shape and dtype have one list, each of them a row: they are not copied when they
    are put there, nor by XLA, which copies what is stacked first.

    Args:
        halves: `Halves`.
        stride: of how many steps at a time.
        num_stages: int.
    """

    def __init__(self, halves, stride, num_stages):
        self._stride, self._num_stages = stride, num_stages
        self._like = halves.zeros()
        groups = {}  # the numbers of those that are alike
        for i, x in enumerate(self._like):
            groups.setdefault((tuple(x.shape), x.dtype), []).append(i)
        self._groups = list(groups.values())

    def _sizes(self):
        """How many rows each list has, and what a row is like."""
        for group in self._groups:
            yield self._stride * self._num_stages * len(group), self._like[group[0]]

    def reserve(self):
        """The lists."""
        return [buffers.reserve_rows(count, x) for count, x in self._sizes()]

    def closed(self, rows):
        """The lists as dense tensors, which may leave a compiled function."""
        sizes = zip(rows, self._sizes())
        return [buffers.stack_rows(r, x, count) for r, (count, x) in sizes]

    def opened(self, dense):
        """The lists again."""
        return [
            tf.raw_ops.TensorListFromTensor(tensor=x, element_shape=tf.shape(x)[1:]) for x in dense
        ]

    def set(self, rows, n, stages):
        """The lists with the activations of step n, a list of tensors for each stage."""
        new = []
        for r, group in zip(rows, self._groups):
            first = self._first_row(n, group)
            for i, activations in enumerate(stages):
                for j, k in enumerate(group):
                    r = buffers.set_row(r, first + (i * len(group) + j), activations[k])
            new.append(r)
        return new

    def of_step(self, rows, n, like):
        """Callable from i to the activations of stage i of step n, of lists or dense tensors."""
        firsts = [self._first_row(n, group) for group in self._groups]

        def value(i):
            found = [None] * len(self._like)
            for r, first, group in zip(rows, firsts, self._groups):
                for j, k in enumerate(group):
                    row = first + (i * len(group) + j)
                    if r.dtype == tf.variant:
                        found[k] = buffers.get_row(r, row, self._like[k])
                    else:
                        found[k] = tf.ensure_shape(entry(r, row), self._like[k].shape)
            return found

        return value

    def _first_row(self, n, group):
        return n % self._stride * (self._num_stages * len(group))
