"""Checkpointing within a budget of states: what to keep, and how to get back what was not kept.

Positions are counted in segments of `stride` steps, the unit whose values are held at a time. With
c states in store, and if no segment may be advanced more than r times, at most binom(c + r, c)
segments can be reversed; the schedules built on this number are Griewank's and Walther's (Algorithm
799: revolve, ACM TOMS 26, 2000). Where the number of steps is not known before the solve, states
are replaced on the way so that reversing what is known by then takes the fewest advances (online
checkpointing; Stumm and Walther, SIAM J. Sci. Comput. 32, 2010).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import entry
from tfsymadj.checkpoints import buffers
from tfsymadj.checkpoints.recording import Recording

_LARGE = 2**30


def budget_recording(problem, budget, keeps_last, tapes_steps=False, halves=None, values=None):
    """The `Recording` that holds at most `budget` states at any time.

    Of the possible lengths of a segment it takes the one with the fewest evaluations.

    Args:
        problem: `Problem`.
        budget: int.
        keeps_last: whether the last segment's values are kept where not all are.
        tapes_steps: see `Recording`.
        halves: likewise.
        values: how many states what the adjoint needs of a step counts as, where it is no states.

    Raises:
        ValueError: if the budget is below s + 4.
    """
    n, s = problem.max_steps, problem.method.stages
    if budget < s + 4:
        raise ValueError(
            f"`checkpoints` must be at least s + 4 = {s + 4} for the method "
            f"{problem.method.name!r} of s = {s} stages. Received: {budget}"
        )
    values = values or (1 if tapes_steps else s)
    of_steps = dict(tapes_steps=tapes_steps, halves=halves)
    if not isinstance(n, int):
        stride = budget // (2 * values)
        slots = budget - stride * values
        kept = _positions(-(-n // stride), slots)
        return _Budget(stride, slots, kept=kept, **of_steps)
    _, stride, slots, ring = cheapest_plan(n, budget, values, keeps_last)
    segments = -(-n // stride)
    if ring == n:
        return Recording(stride, rows=0, ring=ring, **of_steps)
    if segments <= slots:
        return Recording(stride, segments, ring, **of_steps)
    if problem.known_length:
        with tf.init_scope():
            positions = _positions(tf.constant(segments), slots).numpy()
        rows = np.full([segments], slots, np.int32)
        rows[positions[positions < segments]] = np.arange(slots)[positions < segments]
    else:
        rows = online_rows(segments, slots)
    kind = _LaneBudget if problem.lanes else _Budget
    return kind(stride, slots, ring, kept=rows, **of_steps)


class Plan(NamedTuple):
    """A plan of checkpoints.

    Attributes:
        cost: how many steps more are computed again than in a plan that does so with each one once.
        stride: see `Recording`.
        slots: how many states are held besides the values of `stride` steps.
        ring: see `Recording`.
    """

    cost: int
    stride: int
    slots: int
    ring: int


@functools.lru_cache(maxsize=256)
def cheapest_plan(n, budget, values, keeps_last):
    """The `Plan` of least cost for n steps, of so many values each."""
    if n * values <= budget:
        return Plan(-n, n, 0, n)
    plans = []
    for stride in range(1, min((budget - 1) // values, n) + 1):
        segments, slots = -(-n // stride), budget - stride * values
        ring = stride if keeps_last else 0
        again = 0 if segments <= slots else num_advanced_again(segments, slots)
        plans.append(Plan(stride * again - ring, stride, slots, ring))
    return min(plans, key=lambda plan: plan.cost)


@functools.lru_cache(maxsize=2**16)
def num_advances(length, slots):
    """The fewest advances that reverse `length` segments from the first of `slots` states.

    r length - binom(c + r, c + 1) for c slots and the least r with binom(c + r, c) >= length.
    """
    if slots == 1:
        return length * (length - 1) // 2
    r, reach = 0, 1
    while reach < length:
        r += 1
        reach = reach * (slots + r) // r
    return r * length - math.comb(slots + r, slots + 1)


def num_advanced_again(length, slots):
    """The fewest advances after a forward pass that keeps `slots` states and runs to the end.

    Unlike the sweep that `num_advances` begins with, it does not stop before the last segment: as
    if there was one segment more.
    """
    return num_advances(length + 1, slots) - length


@functools.lru_cache(maxsize=16)
def _binomials(slots, length):
    """`table[c, r + 1] = binom(c + r, c)`, and 0 for r = -1; c from 0 to `slots`.

    r goes as far as two slots need it for `length` segments; one slot is a case of its own.
    """
    table = np.ones([slots + 1, min(math.isqrt(2 * length) + 2, 256)], np.int64)
    for c in range(1, slots + 1):
        table[c] = np.minimum(np.cumsum(table[c - 1]), _LARGE)
    return np.pad(table, [(0, 0), (1, 0)]).astype(np.int32)


def _split(length, slots, table):
    """How far to advance before the next state is stored: a part that is optimal, int32.

    For scalars, or vectors of the same length.
    """
    reach = tf.gather(table, slots) < tf.expand_dims(length, -1)
    column = tf.reduce_sum(tf.cast(reach, tf.int32), -1)  # that of r
    most, below = (tf.gather_nd(table, tf.stack([c, column - 1], -1)) for c in (slots, slots - 1))
    part = tf.minimum(most, length - below)
    part = tf.where(slots < 2, length - 1, part)
    return tf.clip_by_value(part, 1, length - 1)


def _positions(segments, slots):
    """The segments whose first states are kept if their number is known, int32 `[slots]`.

    Not less than `segments` where nothing is left to keep.
    """
    length = tf.get_static_value(segments)
    table = tf.constant(_binomials(slots, _LARGE if length is None else int(length) + 1))
    positions = [tf.zeros([], tf.int32)]
    for used in range(1, slots):
        left = segments + 1 - positions[-1]  # see `num_advanced_again`
        part = _split(tf.maximum(left, 2), tf.constant(slots + 1 - used), table)
        positions.append(tf.where(left > 1, positions[-1] + part, segments))
    return tf.stack(positions)


@functools.lru_cache(maxsize=16)
def online_rows(segments, slots):
    """The row of the first state of each segment, `slots` where it is not kept.

    When all slots are in use, that state is given up (the new one included) which leaves the
    cheapest reversal of the segments up to here.
    """
    rows = np.full([segments], slots, np.int32)
    rows[:slots] = np.arange(slots)
    order, positions = list(range(slots)), list(range(slots))
    for q in range(slots, segments):
        gaps = np.diff([*positions, q]).tolist()
        # The i-th state has `slots - i` slots, one more after an earlier state was given up.
        costs = [num_advances(gap, slots - i) for i, gap in enumerate(gaps)]
        fewest, given_up = sum(costs[:-1]) + num_advances(gaps[-1] + 1, 1), None
        moved = [num_advances(gap, slots - i + 1) for i, gap in enumerate(gaps)]
        before, after = 0, sum(moved[1:])
        for j in range(1, slots):
            after -= moved[j]
            joined = num_advances(gaps[j - 1] + gaps[j], slots - j + 1)
            if before + joined + after < fewest:
                fewest, given_up = before + joined + after, j
            before += costs[j - 1]
        if given_up is not None:
            rows[q] = order.pop(given_up)
            order.append(rows[q])
            del positions[given_up]
            positions.append(q)
    return rows


@dataclasses.dataclass(frozen=True)
class _Budget(Recording):
    """A stack of states: the backward pass refills from below what it has used up above.

    Attributes:
        kept: the row of each segment's first state (NumPy), or, if the number of segments is not
            known at trace time, the segments kept (int32 tensor).
    """

    kept: Any = None

    def row(self, segment):
        if tf.is_tensor(self.kept):
            found = tf.equal(self.kept, segment)
            return tf.where(tf.reduce_any(found), tf.argmax(found, output_type=tf.int32), self.rows)
        return tf.gather(tf.constant(self.kept), segment)

    def _stack(self, num_segments):
        """The rows in the order of their positions, and these; those not in use come last."""
        if tf.is_tensor(self.kept):
            return tf.range(self.rows), tf.where(self.kept < num_segments, self.kept, _LARGE)
        segments = tf.range(len(self.kept))
        rows = tf.where(segments < num_segments, tf.constant(self.kept), self.rows)
        latest = tf.math.unsorted_segment_max(segments, rows, self.rows + 1)[: self.rows]
        positions = tf.where(latest < 0, _LARGE, latest)
        order = tf.argsort(positions)
        return order, tf.gather(positions, order)

    def _table(self):
        length = _LARGE if tf.is_tensor(self.kept) else len(self.kept)
        return tf.constant(_binomials(self.rows + 1, length))

    def held(self, checkpoints, num_segments):
        order, positions = self._stack(num_segments)
        depth = tf.reduce_sum(tf.cast(positions < _LARGE, tf.int32)) - 1
        return list(checkpoints), order, positions, depth

    def restore(self, segment, held, checkpoints, like, advance):
        slots, order, positions, depth = held
        table = self._table()
        # The state of the segment after this one has had its turn.
        depth = depth - tf.cast(entry(positions, depth) > segment, tf.int32)
        ys = [buffers.as_before(entry(c, entry(order, depth)), y) for c, y in zip(slots, like)]

        def body(position, ys, slots, positions, depth):
            push = position > entry(positions, depth)
            depth = depth + tf.cast(push, tf.int32)
            positions = tf.where(tf.equal(tf.range(self.rows), depth), position, positions)
            row = tf.where(push, entry(order, depth), self.rows)
            slots = [buffers.replace_row(c, row, y) for c, y in zip(slots, ys)]
            end = position + _split(segment + 1 - position, self.rows - depth, table)
            return end, advance(position, end, ys), slots, positions, depth

        _, ys, slots, positions, depth = tf.while_loop(
            lambda position, *_: position < segment,
            body,
            (entry(positions, depth), ys, slots, positions, depth),
            parallel_iterations=1,
            # Each iteration but the first takes another slot; from the last one it arrives.
            maximum_iterations=self.rows + 1,
            name="restore",
        )
        return ys, (slots, order, positions, depth)

    def num_advanced(self, num_accepted):
        num_segments = -(-num_accepted // self.stride)
        _, positions = self._stack(num_segments)
        # With a ring the last segment's values are kept.
        end = num_segments - 1 if self.keeps_steps else num_segments
        # A stack for each lane has an axis of lanes before its own.
        after = tf.concat([positions[..., 1:], _LARGE * tf.ones_like(positions[..., :1])], -1)
        gaps = tf.maximum(tf.minimum(after, tf.expand_dims(end, -1)) - positions, 0)
        # `num_advances` of each gap.
        slots, table = tf.range(self.rows, 0, -1), self._table()
        reach = tf.gather(table, slots)
        column = tf.reduce_sum(tf.cast(reach < gaps[..., tf.newaxis], tf.int32), axis=-1)
        one_more = tf.broadcast_to(slots + 1, tf.shape(column))
        above = tf.gather_nd(table, tf.stack([one_more, tf.maximum(column - 1, 0)], axis=-1))
        many = (column - 1) * gaps - above
        counts = tf.where(slots < 2, gaps * (gaps - 1) // 2, many)
        return self.stride * tf.reduce_sum(tf.where(gaps < 2, 0, counts), -1)


@dataclasses.dataclass(frozen=True)
class _LaneBudget(_Budget):
    """A stack of states for each lane, each of which has a number of segments of its own.

    They go back in step with each other: a lane waits until its last segment is the one that all
    have come to.
    """

    def _stack(self, num_segments):
        latest = np.full([len(self.kept) + 1, self.rows + 1], _LARGE, np.int32)
        for q, row in enumerate(self.kept):
            latest[q + 1] = latest[q]
            latest[q + 1, row] = q
        positions = tf.gather(tf.constant(latest[:, :-1]), num_segments)
        return tf.argsort(positions), tf.sort(positions)

    def held(self, checkpoints, num_segments):
        order, positions = self._stack(num_segments)
        depth = tf.reduce_sum(tf.cast(positions < _LARGE, tf.int32), -1) - 1
        flat = [tf.reshape(c, tf.concat([[-1], tf.shape(c)[2:]], 0)) for c in checkpoints]
        return flat, order, positions, tf.maximum(depth, 0), num_segments

    def restore(self, segment, held, checkpoints, like, advance):
        slots, order, positions, depth, count = held
        table = self._table()

        def top(stack, depth):
            return tf.gather(stack, depth, batch_dims=1)

        waits = segment >= count
        used = tf.logical_and(top(positions, depth) > segment, tf.logical_not(waits))
        depth = depth - tf.cast(used, tf.int32)
        ys = [
            buffers.as_before(tf.gather(c, buffers.lane_row(top(order, depth), y)), y)
            for c, y in zip(slots, like)
        ]

        def body(position, ys, slots, positions, depth):
            advances = position < segment
            push = tf.logical_and(advances, position > top(positions, depth))
            depth = depth + tf.cast(push, tf.int32)
            new = tf.logical_and(tf.range(self.rows) == depth[:, tf.newaxis], push[:, tf.newaxis])
            positions = tf.where(new, position[:, tf.newaxis], positions)
            row = tf.where(push, top(order, depth), self.rows)
            slots = [buffers.replace_row(c, buffers.lane_row(row, y), y) for c, y in zip(slots, ys)]
            left = tf.maximum(segment + 1 - position, 2)
            end = position + _split(left, self.rows - depth, table)
            end = tf.where(advances, end, position)
            return end, advance(position, end, ys), slots, positions, depth

        _, ys, slots, positions, depth = tf.while_loop(
            lambda position, *_: tf.reduce_any(position < segment),
            body,
            (tf.where(waits, segment, top(positions, depth)), ys, slots, positions, depth),
            parallel_iterations=1,
            maximum_iterations=self.rows + 1,
            name="restore",
        )
        return ys, (slots, order, positions, depth, count)
