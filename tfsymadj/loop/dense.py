"""The solution at all times: the states and slopes of every step, for an interpolant."""

import tensorflow as tf

from tfsymadj.arithmetic import entry, inner
from tfsymadj.checkpoints import buffers
from tfsymadj.loop.outputs import StepCotangents, StepOutputs


class DenseOutputs(StepOutputs):
    """What `StepOutputs` are, and the slopes of all steps; their times are differentiable, too.

    Args:
        method: `Method` with a continuous extension.
        max_steps: int, or int32 scalar.
        start: the time at which the solve begins, float64.
    """

    interpolates = True

    def __init__(self, method, max_steps, start):
        super().__init__(max_steps, start)
        self._num_slopes = method.dense.shape[0]
        #: How many states are held.
        self.num_states = self._rows * (self._num_slopes + 1)

    def ahead(self, held, accepted, end, direction):
        """Whether the extension of a step is wanted: that of each one that is taken."""
        return accepted

    def _slopes(self, ys):
        return [tf.stack([y] * self._num_slopes) for y in ys]

    def reserve(self, ys0):
        rows = [
            buffers.set_row(buffers.reserve_rows(self._rows, x), 0, tf.zeros_like(x))
            for x in self._slopes(ys0)
        ]
        return [*super().reserve(ys0), *rows]

    def write(self, rows, taken):
        count = len(taken.ys) + 1
        # Those of an attempt that is rejected are overwritten by the next one, or read by nobody.
        new = [tf.stack([slope[i] for slope in taken.slopes]) for i in range(count - 1)]
        slopes = [buffers.set_row(r, taken.number, x) for r, x in zip(rows[count:], new)]
        return [*super().write(rows[:count], taken), *slopes]

    def read(self, rows, ys0, last):
        """The states, slopes and times; none of them is of a step that was not taken."""
        count = len(ys0) + 1
        states, times = self._read(rows[:count], last)
        slopes = [
            buffers.stack_rows(r, x, self._static) for r, x in zip(rows[count:], self._slopes(ys0))
        ]
        return [*states, *slopes, times], slopes, tf.stop_gradient(times)

    def last_cotangents(self, cotangents, accepted):
        return super().last_cotangents(cotangents[: len(cotangents) // 2], accepted)

    def add_cotangents(self, adjoints, cotangents, grid, n, accepted):
        cotangents = cotangents[: len(cotangents) // 2]
        return super().add_cotangents(adjoints, cotangents, grid, n, accepted)

    def within(self, grid, accepted, cotangents, rates):
        """What is inside of steps, see `InterpolatedOutputs.within`."""
        return _Rows(grid, accepted, cotangents, rates)

    def num_extended(self, grid, accepted, steps):
        """How many of the first `steps` steps need the rows of the extension."""
        return tf.minimum(steps, accepted)


class _Rows:
    """The cotangents of slopes and times, and the slopes."""

    rates: list = []

    def __init__(self, grid, accepted, cotangents, slopes):
        count = len(cotangents) // 2
        self._cotangents, self._times = cotangents[count:-1], cotangents[-1]
        self._grid, self._accepted, self._slopes = grid, accepted, slopes

    def wanted(self, n):
        """Whether there is something inside of step n."""
        return tf.constant(True)

    def of_step(self, n):
        """`StepCotangents` of step n; of none for n = -1."""
        k, proper = tf.maximum(n, 0), n >= 0

        def row(x):
            return tf.where(proper, entry(x, k), tf.zeros([], x.dtype))

        slopes = [row(x) for x in self._cotangents]
        # Those that `Method.adjoint` gets are proportional to the step's size, these are not.
        step = -inner(slopes, [entry(x, k) for x in self._slopes]) / self._grid.size(k)
        # The states count as ends of steps.
        return StepCotangents(slopes, [tf.zeros_like(x[0]) for x in slopes], row(self._times), step)

    @property
    def last_time(self):
        """The cotangent of the time after the last step, which is repeated."""
        repeated = tf.range(tf.size(self._times)) >= self._accepted
        return tf.reduce_sum(tf.where(repeated, self._times, tf.zeros_like(self._times)))
