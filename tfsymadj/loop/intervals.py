"""The intervals between stops, and times at which the dynamics may jump among them."""

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import EPSILON, entry, epsilon

#: Beyond all times, but no infinity, which `enable_check_numerics` would find.
_HUGE = 1e300


@dataclasses.dataclass(frozen=True)
class Switches:
    """Which of the stops are times at which the dynamics may jump.

    Attributes:
        at: bool vector, one entry for each stop.
        times: float64 vector, the times of the jumps; a stop may come a little after its jump.
        dtype: the real dtype in which the dynamics get the time.
    """

    at: tf.Tensor
    times: tf.Tensor
    dtype: tf.DType


class Side(NamedTuple):
    """The times between two jumps, as far as the dynamics can tell them from these.

    Attributes:
        direction: of time, 1 or -1, float64.
        first: lower bound of `direction * t`.
        last: upper bound.
    """

    direction: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor

    def clamp(self, t):
        """`t` on this side, as far as its value goes; its derivative is that of `t`."""
        # The bound that comes last counts where they cross: between a jump and its stop.
        inside = tf.minimum(tf.maximum(t * self.direction, self.first), self.last)
        inside = inside * self.direction
        return tf.stop_gradient(inside) + (t - tf.stop_gradient(t))


class Intervals:
    """The intervals from a stop to the next one; those of length zero are left out.

    Args:
        stops: float64 vector, or matrix with a column for each lane.
        switches: `Switches`, or None; without them no two stops are equal.
    """

    def __init__(self, stops, switches):
        self._switches = switches
        self.first = tf.zeros([], tf.int32)
        if switches is None:
            return
        self._count = count = tf.shape(stops)[0] - 1
        proper = tf.not_equal(stops[1:], stops[:-1])
        numbers = tf.zeros_like(proper, tf.int32)
        numbers += tf.reshape(tf.range(count), [-1, *[1] * (stops.shape.rank - 1)])
        # The proper ones in order, then as many entries `count` as are needed.
        order = tf.sort(tf.where(proper, numbers, count), axis=0)
        self._order = tf.concat([order, count * tf.ones_like(order[:1])], 0)
        self._passed = tf.cumsum(tf.cast(proper, tf.int32))
        self.first = self._order[0]
        self._set_bounds(stops, switches)

    def _set_bounds(self, stops, switches):
        eps, tiny = epsilon(switches.dtype), _smallest(switches.dtype)
        self._direction = tf.sign(stops[-1] - stops[0])
        ahead = switches.times * self._direction
        gap = tf.maximum(2.0 * eps * tf.abs(ahead), 4.0 * tiny)
        huge = tf.constant(_HUGE, tf.float64)
        self._firsts = tf.where(switches.at, ahead + gap, -huge)
        self._lasts = tf.where(switches.at, ahead - gap, huge)

    def _within(self, m):
        """The interval m; the last one for lanes that are done."""
        return m if m.shape.rank == 0 else tf.minimum(m, self._count - 1)

    def following(self, m):
        """The interval after m; the number of intervals after the last one."""
        if self._switches is None:
            return m + 1
        return entry(self._order, entry(self._passed, self._within(m)))

    def of(self, dynamics, m):
        """The dynamics in the interval m."""
        if self._switches is None:
            return dynamics
        m = self._within(m)
        return dynamics.on(Side(self._direction, entry(self._firsts, m), entry(self._lasts, m + 1)))

    def begins_with_jump(self, m):
        """Whether the dynamics may jump where the interval m begins, also for m at the end."""
        return entry(self._switches.at, m)


def with_jumps(times, jumps, every, dtype):
    """Stops that are times at which the dynamics may jump, beside those of a solve.

    Jumps before the first and after the last of the times count for nothing. One at the first is
    a side for evaluations, but has no derivative, as an earlier one. One at a time between these,
    where a step ends anyway, comes right after it, so that the derivatives of the two can be told
    apart. Jumps that are equal share theirs.

    Args:
        times: float64 vector, the output times, or matrix with a column for each lane.
        jumps: float64 vector, or matrix with a row for each lane.
        every: whether there is a stop at each of the times, or only at the first and the last.
        dtype: the real dtype in which the dynamics get the time.

    Returns:
        `(stops, switches, positions)`: a sorted float64 vector, `Switches`, and the indices of the
        times among the stops, or None unless `every`; each with a column for each lane.
    """
    jumps = _shared(jumps)
    if times.shape.rank == 2:
        times = tf.transpose(times)
        if jumps.shape.rank == 1:
            jumps = tf.broadcast_to(jumps, [tf.shape(times)[0], tf.size(jumps)])
    direction = tf.stop_gradient(tf.sign(times[..., -1:] - times[..., :1]))
    first, last = times[..., :1], times[..., -1:]
    before, beyond = (jumps - first) * direction < 0.0, (jumps - last) * direction > 0.0
    if times.shape.rank == 2:  # a lane that goes nowhere meets none
        beyond = tf.logical_or(beyond, tf.equal(direction, 0.0))
    outside = tf.logical_or(before, beyond)
    shifted = jumps
    if every:
        count = tf.shape(times)[-1]
        found = tf.searchsorted(times * direction, jumps * direction)
        inside = tf.logical_and(found > 0, found < count - 1)
        nearest = _at(times, tf.minimum(found, count - 1))
        meets = tf.logical_and(inside, tf.equal(nearest, jumps))
        gap = 4.0 * EPSILON * tf.maximum(tf.abs(jumps), tf.abs(last - first))
        shifted = jumps + tf.stop_gradient(tf.where(meets, direction * gap, tf.zeros_like(gap)))
    ends = times if every else tf.concat([first, last], -1)

    begun = (jumps - first) * direction <= 0.0

    def beside_times(x):
        return tf.concat([ends, tf.where(begun, first, tf.where(beyond, last, x))], -1)

    # Times come before the jumps they are equal to.
    stops = beside_times(shifted)
    order = tf.argsort(stops * direction, stable=True)
    stops, own = _at(stops, order), tf.stop_gradient(_at(beside_times(jumps), order))
    huge = tf.constant(_HUGE, tf.float64)
    # One more, where there may be none.
    proper = tf.sort(tf.where(outside, huge, jumps * direction))
    proper = tf.concat([proper, huge * tf.ones_like(first)], -1)
    ahead = own * direction
    found = tf.searchsorted(proper, ahead)
    at = tf.equal(_at(proper, found), ahead)
    positions = tf.searchsorted(stops * direction, times * direction) if every else None
    if times.shape.rank == 2:
        stops, at, own = (tf.transpose(x) for x in (stops, at, own))
        positions = None if positions is None else tf.transpose(positions)
    return stops, Switches(at, own, dtype), positions


def _at(xs, indices):
    """The entries of a vector, or of each row of a matrix."""
    return tf.gather(xs, indices, axis=-1, batch_dims=xs.shape.rank - 1)


def _shared(jumps):
    """The jumps; those that are equal share their derivatives.

    There is nothing between them by which the dynamics could tell whose a change is.
    """
    times, count = tf.stop_gradient(jumps), tf.shape(jumps)[-1]
    ordered = tf.sort(times)
    groups = tf.minimum(tf.searchsorted(ordered, times), count - 1)  # also where there is NaN
    sizes = tf.searchsorted(ordered, times, side="right") - groups
    moves = (jumps - times) / tf.cast(tf.maximum(sizes, 1), tf.float64)
    if jumps.shape.rank == 1:
        return times + tf.gather(tf.math.unsorted_segment_sum(moves, groups, count), groups)
    same = tf.cast(tf.equal(groups[:, :, tf.newaxis], groups[:, tf.newaxis, :]), tf.float64)
    return times + tf.linalg.matvec(same, moves)


def _smallest(dtype):
    """The smallest normal number, of which bfloat16 has float32's."""
    return float(np.finfo(np.float32 if dtype == tf.bfloat16 else dtype.as_numpy_dtype).tiny)
