"""The states that a solve returns where each example has times and steps of its own.

Outputs have the shape `[outputs, lanes, ...]`. Those from the last time of a lane on are its last
state, so that rows of times of different lengths are filled up by repeating the last one.
"""

import tensorflow as tf

from tfsymadj.arithmetic import add, entry, inner, only_where, quotient, select_rows
from tfsymadj.checkpoints import buffers
from tfsymadj.loop.failures import nan_where
from tfsymadj.loop.outputs import InterpolatedOutputs, StepCotangents, StopOutputs, Within

#: Outputs inside of steps are computed so many at a time in each lane, more if there are very many
#: of them (then it takes about so many times), but not more than so many numbers.
_BLOCK, _BLOCKS, _BLOCK_NUMBERS = 8, 16, 2**16


def _read(rows, like, count):
    """The first rows of `buffers.lane_rows`, `[count, lanes, ...]`."""
    found = tf.reshape(rows, tf.concat([[count + 1], tf.shape(like)], 0))[:count]
    return tf.ensure_shape(found, [count if isinstance(count, int) else None, *like.shape])


def _first_rows(rows, new, ys0, spare):
    """Rows with the first one of the lanes where `new` holds; `spare` is one that nobody reads."""
    row = tf.where(new, 0, spare)
    return [
        buffers.for_branches(buffers.write_row, r, buffers.lane_row(row, y), y)
        for r, y in zip(rows, ys0)
    ]


def _finished(outputs, ends, last, reached):
    """Outputs with the last state of each lane from its last time on, and NaN from `reached` on in
    lanes that have ended short of it.

    Args:
        outputs: list of tensors `[count, lanes, ...]`.
        ends: the number of each lane's last output, or of all.
        last: `Reached`.
        reached: the number of outputs that each lane has reached.
    """
    numbers = tf.range(tf.shape(outputs[0])[0])[:, tf.newaxis]
    inside = tf.logical_and(numbers < ends, tf.logical_not(_lost(numbers, last, reached)))
    inside = tf.broadcast_to(inside, tf.shape(outputs[0])[:2])
    found = []
    for x, y in zip(outputs, last.ys):
        # All that is lost comes after what is not, so that one value serves both.
        y = tf.broadcast_to(y + nan_where(last.short, y.dtype, y.shape.rank), tf.shape(x))
        rows = tf.concat([[tf.size(inside)], tf.shape(x)[2:]], 0)
        mask = tf.reshape(inside, [-1])
        y = select_rows(mask, tf.reshape(x, rows), tf.reshape(y, rows))
        found.append(tf.ensure_shape(tf.reshape(y, tf.shape(x)), x.shape))
    return found


def _lost(numbers, last, reached):
    return tf.logical_and(last.short, numbers >= reached)


def _sum_from(cotangents, first):
    """Sums of the cotangents of each lane from an output of its own on."""
    found = []
    for g in cotangents:
        later = tf.range(tf.shape(g)[0])[:, tf.newaxis] >= first
        later = tf.reshape(later, tf.concat([tf.shape(later), [1] * (g.shape.rank - 2)], 0))
        found.append(tf.reduce_sum(tf.where(later, g, tf.zeros([], g.dtype)), 0))
    return found


def _poisoned(outputs, last, reached):
    """Outputs that are NaN where lanes have ended short of them, from `reached` on."""
    lost = _lost(tf.range(tf.shape(outputs[0])[0])[:, tf.newaxis], last, reached)
    return [y + nan_where(lost, y.dtype, y.shape.rank) for y in outputs]


class LaneStopOutputs(StopOutputs):
    """The states at the stops, each one the end of a step of its lane."""

    def reserve(self, ys0):
        if self._only_end:
            return []
        rows = [buffers.lane_rows(self._num_stops + 1, y) for y in ys0]
        return [
            buffers.for_branches(buffers.write_row, r, buffers.lane_row(0, y), y)
            for r, y in zip(rows, ys0)
        ]

    def again(self, rows, new, ys0):
        """What the loop carries where lanes begin with other examples."""
        return _first_rows(rows, new, ys0, self._num_stops)

    def write(self, rows, taken):
        return [
            buffers.for_branches(buffers.write_row, r, buffers.lane_row(taken.interval + 1, y), y)
            for r, y in zip(rows, taken.ends)
        ]

    def read(self, rows, ys0, last):
        if self._only_end:
            outputs = [tf.stack([y0, y]) for y0, y in zip(ys0, last.ys)]
        else:
            outputs = [_read(r, y, self._num_stops) for r, y in zip(rows, ys0)]
            if self._last is not None:
                return _finished(outputs, self._last, last, last.stop + 1), [], None
        return _poisoned(outputs, last, last.stop + 1), [], None

    def last_cotangents(self, cotangents, accepted):
        if self._only_end:
            return [g[-1] for g in cotangents]
        if self._last is None:
            return [tf.zeros_like(g[0]) for g in cotangents]
        return _sum_from(cotangents, self._last + 1)

    def add_cotangents(self, adjoints, cotangents, grid, n, accepted):
        if self._only_end:
            return adjoints
        ends, m = grid.arrives(n), grid.interval_of(n)
        return add(adjoints, only_where(ends, [entry(g, m + 1) for g in cotangents]))


class LaneInterpolatedOutputs(InterpolatedOutputs):
    """The states at given times of each lane, by the method's continuous extension."""

    def __init__(self, method, times, ys, with_rates, last=None):
        super().__init__(method, times, ys, with_rates, last)
        self._like = times[0]
        self.ends = self._count - 1 if last is None else last
        largest = max((y.shape.num_elements() or _BLOCK_NUMBERS // 8) for y in ys)
        block = max((self._static or 0) // _BLOCKS, min(self._static or 1, _BLOCK))
        self._block = max(1, min(block, _BLOCK_NUMBERS // max(largest, 1)))
        self._bound = None if self._static is None else -(-self._static // self._block)

    def reserve(self, ys0):
        """The number of outputs reached, and rows of states, and of their derivatives."""
        like = [*ys0, *ys0] if self._with_rates else ys0
        rows = [buffers.lane_rows(self._count + 1, y) for y in like]
        first = [
            buffers.for_branches(buffers.write_row, r, buffers.lane_row(0, y), y)
            for r, y in zip(rows, ys0)
        ]
        return [tf.ones_like(self._like, tf.int32), [*first, *rows[len(ys0) :]]]

    def again(self, held, new, ys0):
        """See `LaneStopOutputs`."""
        m, rows = held
        first = _first_rows(rows, new, ys0, self._count)
        return [tf.where(new, 1, m), [*first, *rows[len(ys0) :]]]

    def _time(self, m):
        return entry(self._times, tf.minimum(m, self._count - 1))

    def ahead(self, held, accepted, end, direction):
        """Whether outputs are yet to be written inside of a step, of each lane."""
        m = held[0]
        ahead = tf.logical_and(accepted, m < self.ends)
        return tf.logical_and(ahead, (self._time(m) - end) * direction <= 0.0)

    def _block_of(self, first):
        """Numbers of outputs from those of each lane on, `[block, lanes]`, and their times."""
        ids = first + tf.range(self._block)[:, tf.newaxis]
        clipped = tf.minimum(ids, self._count - 1)
        return ids, clipped, entry(self._times, clipped)

    def write(self, held, taken):
        t, h, end = taken.t, taken.proposal.step, taken.proposal.end
        direction = tf.sign(h)
        terms = [self._extension.lane_terms(x) for x in zip(*taken.slopes)]

        def unfinished(m, *_):
            return tf.reduce_any(self.ahead([m], taken.accepted, end, direction))

        def one_block(m, rows):
            ids, _, times = self._block_of(m)
            mask = tf.logical_and(taken.accepted, ids < self.ends)
            mask = tf.logical_and(mask, (times - end) * direction <= 0.0)
            theta = quotient(times - t, h)
            theta = tf.where(mask, theta, tf.zeros_like(theta))
            row = tf.where(mask, ids, self._count)
            new = [self._extension.lane_states(h, y, theta, x) for y, x in zip(taken.ys, terms)]
            if self._with_rates:
                rates = [self._extension.lane_values(theta, x, "rate") for x in terms]
                new += [tf.cast(x, y.dtype) for x, y in zip(rates, taken.ys)]
            rows = [
                buffers.for_branches(buffers.write_row, r, *_flat(row, x))
                for r, x in zip(rows, new)
            ]
            return m + tf.reduce_sum(tf.cast(mask, tf.int32), 0), rows

        return list(
            tf.while_loop(
                unfinished,
                one_block,
                held,
                parallel_iterations=1,
                maximum_iterations=self._bound,
                name="outputs",
            )
        )

    def read(self, held, ys0, last):
        m, rows = held
        size = len(ys0)
        stacked = [_read(r, y, self._count) for r, y in zip(rows, [*ys0, *ys0])]
        # The last output of a lane counts as reached when the lane has ended.
        return _finished(stacked[:size], self.ends, last, m), stacked[size:], None

    def last_cotangents(self, cotangents, accepted):
        if self._last is None:
            return [g[-1] for g in cotangents]
        return _sum_from(cotangents, tf.maximum(self.ends, 1))  # the first one is the start

    def rates(self, cotangents, rates):
        """Gradients for the output times, but the first and the last, float64 `[count, lanes]`."""
        total = tf.zeros_like(self._times)
        for g, x in zip(cotangents, rates):
            total += inner([g], [x], lanes=2)
        ids = tf.range(self._count)[:, tf.newaxis]
        interior = tf.logical_and(ids > 0, ids < self.ends)
        return tf.where(interior, total, tf.zeros_like(total))

    def firsts(self, ts):
        """For a time of each lane the first output after it."""
        direction = tf.sign(self._times[-1] - self._times[0])
        later = self._times * direction > ts * direction
        # Times that are repeated come after the last one.
        passed = tf.reduce_sum(tf.cast(tf.logical_not(later), tf.int32), 0)
        return tf.minimum(tf.maximum(passed, 1), self.ends)

    def within(self, grid, accepted, cotangents, rates):
        return _LaneWithin(self, grid, accepted, cotangents, self.rates(cotangents, rates))

    def num_extended(self, grid, accepted, steps):
        """At most so many of the first `steps` steps have outputs inside."""
        return tf.minimum(accepted, steps)

    def cotangents_of(self, t, h, begin, end, cotangents, rates):
        extension = self._extension

        def one_block(m, sums, start, step):
            ids, clipped, times = self._block_of(m)
            mask = ids < end
            theta = quotient(times - t, h)
            theta = tf.where(mask, theta, tf.zeros_like(theta))
            rows = [entry(g, clipped) for g in cotangents]
            sums = [s + extension.lane_sums(theta, mask, x) for s, x in zip(sums, rows)]
            rate = entry(rates, clipped)
            rate = tf.where(mask, rate, tf.zeros_like(rate))
            start -= tf.reduce_sum(rate, 0)
            step -= tf.reduce_sum(theta * rate, 0)
            return m + self._block, sums, start, step

        nothing = [extension.no_sums(g[0]) for g in cotangents]
        _, sums, start, step = tf.while_loop(
            lambda m, *_: tf.reduce_any(m < end),
            one_block,
            (begin, nothing, tf.zeros_like(t), tf.zeros_like(t)),
            parallel_iterations=1,
            maximum_iterations=self._bound,
            name="outputs",
        )
        slopes = [extension.lane_slopes(h, s[1:]) for s in sums]
        return StepCotangents(
            [tf.cast(x, g.dtype) for x, g in zip(slopes, cotangents)],
            [tf.cast(s[0], g.dtype) for s, g in zip(sums, cotangents)],
            start,
            step,
        )


def _flat(row, values):
    """Rows of `[block, lanes]`, and what is written there, with one axis in place of two."""
    lanes = tf.shape(row)[1]
    index = tf.reshape(row * lanes + tf.range(lanes), [-1])
    flat = tf.reshape(values, tf.concat([[-1], tf.shape(values)[2:]], 0))
    size = None if None in row.shape else row.shape.num_elements()
    return index, tf.ensure_shape(flat, [size, *values.shape[2:]])


class _LaneWithin(Within):
    """The cotangents of `LaneInterpolatedOutputs`, step by step.

    The last slope of a lane's last step is evaluated by itself, see `Sweep`: what that gives the
    step's start and size is told by `with_end`.
    """

    def __init__(self, outputs, grid, accepted, cotangents, rates, end=None):
        super().__init__(outputs, grid, accepted, cotangents, rates)
        self._end = end

    def with_end(self, start, step):
        """The same with more for the start and the size of the last step of each lane."""
        return _LaneWithin(
            self._outputs, self._grid, self._accepted, self._cotangents, self._rates, (start, step)
        )

    def wanted(self, n):
        """Whether some lane has something inside of step n."""
        return tf.reduce_any(super().wanted(n))

    def _span(self, n):
        active = tf.logical_and(n >= 0, n < self._accepted)
        begin = self._outputs.firsts(self._grid.start(tf.maximum(n, 0)))
        following = self._outputs.firsts(self._grid.start(tf.maximum(n + 1, 0)))
        end = tf.where(n < self._accepted - 1, following, self._outputs.ends)
        return begin, tf.where(active, end, begin)

    def of_step(self, n):
        """`StepCotangents` of step n, a number or one for each lane; of none for n = -1."""
        begin, end = self._span(n)
        k = tf.maximum(n, 0)
        found = self._outputs.cotangents_of(
            self._grid.start(k), self._grid.size(k), begin, end, self._cotangents, self._rates
        )
        if self._end is None:
            return found
        last = tf.equal(n, self._accepted - 1)
        start, step = (tf.where(last, x, tf.zeros_like(x)) for x in self._end)
        return found._replace(start=found.start + start, step=found.step + step)
