"""The states that a solve returns: written by the loop, read by the backward sweep."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import entry, inner, select_rows
from tfsymadj.checkpoints import buffers
from tfsymadj.loop.failures import nan_where
from tfsymadj.methods.extension import Extension
from tfsymadj.methods.method import SlopeCotangents

#: Outputs inside of steps are computed so many at a time, more if there are very many of them (then
#: it takes about so many times), but not more than so many numbers.
_BLOCK, _BLOCKS, _BLOCK_NUMBERS = 16, 16, 2**16


class Taken(NamedTuple):
    """A step that was tried.

    Attributes:
        accepted: whether it was taken.
        number: of the steps taken before it.
        interval: index of the stop before it.
        t: time before it.
        ys: the state before it.
        proposal: `Proposal`.
        slopes: of the method's `Step`.
        end: the time after it.
        ends: the state after it.
    """

    accepted: tf.Tensor
    number: tf.Tensor
    interval: tf.Tensor
    t: tf.Tensor
    ys: list
    proposal: Any
    slopes: list
    end: tf.Tensor
    ends: list


class Reached(NamedTuple):
    """Where the loop ended.

    Attributes:
        short: whether the solve ended before the last stop, by a failure or an event.
        stop: the last stop before that.
        accepted: the number of steps taken.
        ys: the last state.
        t: its time.
        time: the time until which all was well.
    """

    short: tf.Tensor
    stop: tf.Tensor
    accepted: tf.Tensor
    ys: list
    t: tf.Tensor
    time: tf.Tensor


class StepCotangents(NamedTuple):
    """What the outputs inside of a step add to its adjoint.

    Attributes:
        slopes: list of tensors `[slopes, ...]`: h sum_q b_i(theta_q) g_q.
        ys: the sum of their cotangents, of the state before the step.
        start: gradient for the time before the step, through theta.
        step: likewise for its size.
    """

    slopes: list
    ys: list
    start: tf.Tensor
    step: tf.Tensor

    def of_stages(self, first):
        """`SlopeCotangents`, beside the cotangents of the first slope as a last one."""
        return SlopeCotangents([x[:-1] for x in self.slopes], first)

    def of_rows(self, wanted):
        """`SlopeCotangents` of a method that has an extension."""
        return SlopeCotangents(self.slopes, None, wanted)

    @property
    def last(self):
        """The cotangents of the last slope."""
        return [x[-1] for x in self.slopes]


class StopOutputs:
    """The states at the stops, each one the end of a step.

    Args:
        num_stops: int, or int32 scalar.
        last: see `Problem`.
    """

    #: Whether outputs lie inside of steps.
    interpolates = False

    def __init__(self, num_stops, last=None):
        self._num_stops, self._last = num_stops, last
        self._static = num_stops if isinstance(num_stops, int) else None
        # The loop carries the last state anyway.
        self._only_end = self._static == 2

    def reserve(self, ys0):
        """What the loop carries of them, a list."""
        if self._only_end:
            return []
        return [buffers.set_row(buffers.reserve_rows(self._num_stops, y), 0, y) for y in ys0]

    def write(self, rows, taken):
        """`rows` with the end of a step; overwritten by the later steps of the same interval."""
        interval, ends = taken.interval, taken.ends
        return [buffers.set_row(r, interval + 1, y) for r, y in zip(rows, ends)]

    def read(self, rows, ys0, last):
        """The stacked states; their derivatives and their times, if they are wanted.

        Args:
            rows: what was written.
            ys0: the initial state.
            last: `Reached`.
        """
        if self._only_end:
            outputs = [tf.stack([y0, y]) for y0, y in zip(ys0, last.ys)]
        else:
            outputs = [buffers.stack_rows(r, y, self._static) for r, y in zip(rows, ys0)]
        lost = tf.logical_and(last.short, tf.range(self._num_stops) > last.stop)
        return [y + nan_where(lost, y.dtype, y.shape.rank) for y in outputs], [], None

    def last_cotangents(self, cotangents, accepted):
        """The adjoint that the backward sweep begins with, after so many steps."""
        return [g[-1] if self._only_end else tf.zeros_like(g[0]) for g in cotangents]

    def add_cotangents(self, adjoints, cotangents, grid, n, accepted):
        """The adjoint after step n, with the cotangent of the output that it may end at."""
        if self._only_end:
            return adjoints
        ends, m = grid.arrives(n), grid.interval_of(n)
        return [
            a + tf.where(ends, entry(g, m + 1), tf.zeros([], g.dtype))
            for a, g in zip(adjoints, cotangents)
        ]


class StepOutputs:
    """The states after all steps, as many as may be tried; after the last one it is repeated.

    Args:
        max_steps: int, or int32 scalar.
        start: the time at which the solve begins, float64.
    """

    interpolates = False

    def __init__(self, max_steps, start):
        self._rows = max_steps + 1
        self._static = self._rows if isinstance(max_steps, int) else None
        self._start = start

    def reserve(self, ys0):
        first = [*ys0, self._start]
        return [buffers.set_row(buffers.reserve_rows(self._rows, y), 0, y) for y in first]

    def write(self, rows, taken):
        # After an attempt that was rejected it is the state before, overwritten by the next one.
        values = [*taken.ends, taken.end]
        return [buffers.set_row(r, taken.number + 1, y) for r, y in zip(rows, values)]

    def read(self, rows, ys0, last):
        states, times = self._read(rows, last)
        return states, [], tf.stop_gradient(times)

    def _read(self, rows, last):
        later = tf.range(self._rows) > last.accepted
        *states, times = [
            tf.where(_beside(later, y.shape.rank), y, buffers.stack_rows(r, y, self._static))
            for r, y in zip(rows, [*last.ys, last.t])
        ]
        # Equal steps go on after a failure.
        beyond = tf.abs(times - self._start) > tf.abs(last.time - self._start)
        lost = tf.logical_and(last.short, tf.logical_or(later, beyond))
        states = [y + nan_where(lost, y.dtype, y.shape.rank) for y in states]
        return states, times

    def last_cotangents(self, cotangents, accepted):
        repeated = tf.range(self._rows) >= accepted
        return [
            tf.reduce_sum(
                tf.where(_beside(repeated, g.shape.rank - 1), g, tf.zeros([], g.dtype)), 0
            )
            for g in cotangents
        ]

    def add_cotangents(self, adjoints, cotangents, grid, n, accepted):
        inside = n + 1 < accepted  # the last step's is there already
        return [
            a + tf.where(inside, entry(g, n + 1), tf.zeros([], g.dtype))
            for a, g in zip(adjoints, cotangents)
        ]


def _beside(mask, rank):
    """A mask of rows, to select rows whose entries have this rank."""
    return tf.reshape(mask, [-1, *[1] * rank])


def _full_blocks(count, block):
    """A block's size, somewhat smaller where `count` outputs then fill all blocks: no part of them
    has to be cut off, which is a copy.
    """
    return next((b for b in range(block, block // 2, -1) if count % b == 0), block)


class InterpolatedOutputs:
    """The states at given times, by the method's continuous extension; stops are first and last.

    Args:
        method: `Method` with a continuous extension.
        times: float64 vector, the first and the last one stops.
        ys: the state, for its shapes.
        with_rates: whether the solution's derivatives at these times are wanted, for a gradient for
            the times.
        last: see `Problem`.
    """

    interpolates = True

    def __init__(self, method, times, ys, with_rates, last=None):
        self._extension = Extension(method.dense)
        self._times, self._last = times, last
        self._count = tf.shape(times)[0] if times.shape[0] is None else times.shape[0]
        self._with_rates = with_rates
        largest = max((y.shape.num_elements() or _BLOCK_NUMBERS // 8) for y in ys)
        self._static = self._count if isinstance(self._count, int) else None
        block = max(_BLOCK, (self._static or 0) // _BLOCKS)
        block = max(1, min(block, _BLOCK_NUMBERS // max(largest, 1)))
        self._block = _full_blocks(self._static or 0, block)
        self._num_blocks = -(-self._count // self._block)
        # A step visits each block at most once, and the last one of the step before again.
        self._bound = None if self._static is None else self._num_blocks + 1

    def _empty_block(self, y):
        block = tf.zeros(tf.concat([[self._block], tf.shape(y)], 0), y.dtype)
        return tf.ensure_shape(block, [self._block, *y.shape])

    def _with_row(self, block, row, y):
        """A block with the state `y` in one of its rows."""
        here = tf.equal(tf.range(self._block), row)
        return select_rows(here, tf.broadcast_to(y, tf.shape(block)), block)

    def reserve(self, ys0):
        """The number of outputs reached, the block that is not full yet, and lists of blocks."""
        blocks = [self._with_row(self._empty_block(y), 0, y) for y in ys0]
        blocks += [self._empty_block(y) for y in ys0] * self._with_rates
        lists = [buffers.set_row(buffers.reserve_rows(self._num_blocks, x), 0, x) for x in blocks]
        return [tf.ones([], tf.int32), blocks, lists]

    def ahead(self, held, accepted, end, direction):
        """Whether outputs are yet to be written inside of a step, a boolean scalar."""
        m, last = held[0], self._count - 1
        ahead = tf.logical_and(accepted, m < last)
        return tf.logical_and(ahead, (self._times[tf.minimum(m, last)] - end) * direction <= 0.0)

    def write(self, held, taken):
        """`held` with the outputs inside of a step that was accepted."""
        t, h, end = taken.t, taken.proposal.step, taken.proposal.end
        direction, block, last = tf.sign(h), self._block, self._count - 1
        slopes = [tf.stack(x) for x in zip(*taken.slopes)]

        def unfinished(m, *_):
            return self.ahead([m], taken.accepted, end, direction)

        def one_block(m, blocks, lists):
            q = m // block
            ids = q * block + tf.range(block)
            times = tf.gather(self._times, tf.minimum(ids, last))
            mask = tf.logical_and(ids >= m, ids < last)
            mask = tf.logical_and(mask, (times - end) * direction <= 0.0)
            theta = tf.where(mask, (times - t) / h, tf.zeros_like(times))
            new = []
            for powers in ("value", "rate")[: 1 + self._with_rates]:
                weights = self._extension.weights(theta, powers)
                weights = h * weights if powers == "value" else weights
                for y, stacked in zip(taken.ys, slopes):
                    x = self._extension.combined(weights, stacked)
                    new.append(y + x if powers == "value" else x)
            # What a full block leaves behind is overwritten in the next one, or belongs to outputs
            # that are not reached.
            new = [select_rows(mask, x, y) for x, y in zip(new, blocks)]
            lists = [buffers.set_row(r, q, x) for r, x in zip(lists, new)]
            return m + tf.reduce_sum(tf.cast(mask, tf.int32)), new, lists

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
        m, blocks, lists = held
        size, count = len(ys0), self._count
        # The last output is the last state; with its block, all before it in the block are there.
        q, row = (count - 1) // self._block, (count - 1) % self._block
        ends = [self._with_row(x, row, y) for x, y in zip(blocks, last.ys)]
        lists = [*(buffers.set_row(r, q, x) for r, x in zip(lists, ends)), *lists[size:]]
        stacked = []
        for r, y in zip(lists, [*ys0, *ys0]):
            x = buffers.stack_rows(r, self._empty_block(y))
            x = tf.reshape(x, tf.concat([[-1], tf.shape(y)], 0))[:count]
            stacked.append(tf.ensure_shape(x, [self._static, *y.shape]))
        lost = tf.logical_and(last.short, tf.range(count) >= m)
        outputs = [y + nan_where(lost, y.dtype, y.shape.rank) for y in stacked[:size]]
        return outputs, stacked[size:], None

    def last_cotangents(self, cotangents, accepted):
        return [g[-1] for g in cotangents]

    def add_cotangents(self, adjoints, cotangents, grid, n, accepted):
        return adjoints

    def rates(self, cotangents, rates):
        """Gradients for the output times, but the first and the last, float64 `[count]`."""
        total = tf.zeros([self._count], tf.float64)
        for g, x in zip(cotangents, rates):
            total += inner([g], [x], lanes=1)
        ids = tf.range(self._count)
        interior = tf.logical_and(ids > 0, ids < self._count - 1)
        return tf.where(interior, total, tf.zeros_like(total))

    @property
    def last(self):
        """The number of the last output, which is a step's end."""
        return self._count - 1

    def firsts(self, ts):
        """For each of several times the first output after it."""
        direction = tf.sign(self._times[-1] - self._times[0])
        count = tf.searchsorted(self._times * direction, ts * direction, side="right")
        return tf.clip_by_value(count, 1, self.last)

    def within(self, grid, accepted, cotangents, rates):
        """What is inside of steps, for a backward pass.

        Args:
            grid: `Grid`.
            accepted: the number of steps.
            cotangents: list of tensors.
            rates: the derivatives of the solution at the outputs.
        """
        return Within(self, grid, accepted, cotangents, self.rates(cotangents, rates))

    def num_extended(self, grid, accepted, steps):
        """How many of the first `steps` steps have outputs inside, int32."""
        begins, numbers = self.firsts(grid.t), tf.range(tf.size(grid.t))
        ends = tf.where(numbers < accepted - 1, tf.roll(begins, -1, 0), self.last)
        inside = tf.logical_and(begins < ends, numbers < tf.minimum(steps, accepted))
        return tf.reduce_sum(tf.cast(inside, tf.int32))

    def cotangents_of(self, t, h, begin, end, cotangents, rates):
        """`StepCotangents` of the outputs from `begin` to before `end`, which lie in one step.

        Args:
            t: time before the step.
            h: the step.
            begin: int32 scalar.
            end: likewise.
            cotangents: list of tensors `[count, ...]`.
            rates: of `rates`.
        """
        slopes, like = self._extension.num_slopes, [g[0] for g in cotangents]

        def one_block(m, found):
            ids = m + tf.range(self._block)
            mask = ids < end
            ids = tf.minimum(ids, self._count - 1)
            theta = (tf.gather(self._times, ids) - t) / h
            theta = tf.where(mask, theta, tf.zeros_like(theta))
            # One more row adds the cotangents up. Those of later steps get a weight of zero: what
            # is not finite among them is in the adjoint already.
            rows = h * self._extension.weights(theta, "value")
            rows = tf.concat([rows, tf.ones([self._block, 1], tf.float64)], 1)
            rows = tf.transpose(tf.where(mask[:, tf.newaxis], rows, tf.zeros_like(rows)))
            sums, totals = [], []
            for g, s, total in zip(cotangents, found.slopes, found.ys):
                flat = tf.reshape(tf.gather(g, ids), [self._block, -1])
                product = tf.matmul(tf.cast(rows, g.dtype), flat)
                sums.append(s + tf.reshape(product[:-1], tf.shape(s)))
                totals.append(total + tf.reshape(product[-1], tf.shape(total)))
            rate = tf.where(mask, tf.gather(rates, ids), tf.zeros([], tf.float64))
            start = found.start - tf.reduce_sum(rate)
            step = found.step - tf.reduce_sum(theta * rate)
            return m + self._block, StepCotangents(sums, totals, start, step)

        nothing = StepCotangents(
            [tf.zeros_like(tf.stack([g] * slopes)) for g in like],
            [tf.zeros_like(g) for g in like],
            tf.zeros([], tf.float64),
            tf.zeros([], tf.float64),
        )
        _, found = tf.while_loop(
            lambda m, _: m < end,
            one_block,
            (begin, nothing),
            parallel_iterations=1,
            maximum_iterations=self._bound,
            name="outputs",
        )
        return found


class Within:
    """The cotangents of `InterpolatedOutputs`, step by step."""

    last_time = None

    def __init__(self, outputs, grid, accepted, cotangents, rates):
        self._outputs, self._grid, self._cotangents = outputs, grid, cotangents
        self._accepted, self._rates = accepted, rates

    @property
    def rates(self):
        """Gradients for the times of outputs inside of steps, a list of one vector."""
        return [self._rates]

    def wanted(self, n):
        """Whether there is something inside of step n."""
        begin, end = self._span(n)
        return begin < end

    def _span(self, n):
        # One step at a time: XLA compares each of the times with each of the outputs.
        last = tf.maximum(self._accepted - 1, 0)
        pair = tf.gather(self._grid.t, tf.minimum(tf.stack([n, n + 1]), last))
        begin, end = tf.unstack(self._outputs.firsts(pair))
        return begin, tf.where(n < last, end, self._outputs.last)

    def of_step(self, n):
        """`StepCotangents` of step n; of none for n = -1."""
        k = tf.maximum(n, 0)
        begin, end = self._span(k)
        end = tf.where(n < 0, begin, end)
        return self._outputs.cotangents_of(
            self._grid.start(k), self._grid.size(k), begin, end, self._cotangents, self._rates
        )
