"""Looks for sign changes of functions of the solution, inside of the steps that are taken."""

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import (
    EPSILON,
    add,
    beside,
    entry,
    epsilon,
    in_double,
    inner,
    select,
    weighted_sum,
)
from tfsymadj.methods.extension import Extension

#: A root that is met before the state has moved by so many roundings is that of the start.
_DEPARTURE = 1000.0

#: And one that is met before the time has: a root was found to a few of them.
_TIMES_DEPARTURE = 64.0 * EPSILON


class Mark(NamedTuple):
    """The step that an event was found in; the last step that was taken while there is none.

    With lanes each of these is one for each lane, along the first axis.

    Attributes:
        found: whether there is an event.
        stopped: whether it ends the solve; the step is not taken then.
        crossed: bool vector, which functions changed their sign, all between the same two times.
        bracket: these times, float64 vector of two entries.
        number: the number of steps before it.
        interval: index of the stop before it.
        t: the time before it.
        h: its size.
        fraction: `Proposal.time_fraction`.
        ys: the state before it.
    """

    found: tf.Tensor
    stopped: tf.Tensor
    crossed: tf.Tensor
    bracket: tf.Tensor
    number: tf.Tensor
    interval: tf.Tensor
    t: tf.Tensor
    h: tf.Tensor
    fraction: tf.Tensor
    ys: list


class Seen(NamedTuple):
    """What the loop carries of its watch.

    Attributes:
        signs: float64 vector, the functions' signs at the last time; 0 where one has not left its
            root yet. With lanes there is a second axis of them.
        valid: whether no function was NaN.
        most: the next step is no longer than this.
        departure: for so long a root at the start has not been left.
        mark: `Mark`.
    """

    signs: tf.Tensor
    valid: tf.Tensor
    most: tf.Tensor
    departure: tf.Tensor
    mark: Mark


@dataclasses.dataclass(frozen=True)
class Watch:
    """Functions whose roots are looked for.

    Attributes:
        functions: list of closed functions `(t, ys) -> [value]`, float64 scalars or vectors.
        directions: for each 1, -1 or 0: the sign after the root, 0 for any.
        terminal: for each whether its root ends the solve.
        samples: signs are looked at so many times in a step, one of them its end.
    """

    functions: list
    directions: list
    terminal: list
    samples: int = 8

    def values(self, t, ys):
        """Of all functions, float64 vector; with lanes a row for each function."""
        return tf.stack([function(t, ys)[0] for function in self.functions])


class Lookout:
    """A `Watch` over one solve.

    Args:
        watch: `Watch`.
        stops: float64 vector.
        method: `Method` with a continuous extension.
        adaptive: whether a step may be tried again with another size.
    """

    def __init__(self, watch, stops, method, adaptive):
        self._watch, self._adaptive = watch, adaptive
        self._start, self._span = stops[0], stops[-1] - stops[0]
        self._direction = tf.sign(self._span)
        self._dense, self._lanes = method.dense, self._start.shape.rank

    def start(self, ys, slopes):
        """`Seen` before the first step, from the first slopes."""
        eps = max(epsilon(y.dtype.real_dtype) for y in ys)
        departure = self._ahead(eps, ys, slopes)
        # The sign when a root at the start has been left.
        h = self._direction * departure
        ahead = [y + beside(tf.cast(h, y.dtype), y) * k for y, k in zip(ys, slopes)]
        values = self._watch.values(self._start + h, ahead)
        no = tf.zeros_like(self._start, tf.bool)
        mark = Mark(
            found=no,
            stopped=no,
            crossed=tf.zeros_like(tf.transpose(values), tf.bool),
            bracket=tf.stack([self._start, self._start], -1),
            number=tf.zeros_like(self._start, tf.int32),
            interval=tf.zeros_like(self._start, tf.int32),
            t=self._start,
            h=self._span,
            fraction=tf.zeros_like(self._start),
            ys=list(ys),
        )
        return Seen(tf.sign(values), self._valid(values), tf.abs(self._span), departure, mark)

    def _ahead(self, eps, ys, slopes):
        """A time in which no root but the start's is met on the line along the first slopes: of so
        many roundings, and the state changes by no more of them; but no less than times tell apart.
        """
        scale = tf.abs(self._start) + tf.abs(self._span)
        size, speed = (
            tf.sqrt(inner(double, double, self._lanes))
            for double in ([in_double(x) for x in xs] for xs in (ys, slopes))
        )
        # A state of zero has no roundings, but times have.
        least = _TIMES_DEPARTURE * scale
        longest = tf.where(size > 0.0, _DEPARTURE * eps * scale, least)
        most = _DEPARTURE * eps * size
        fast = tf.logical_and(size > 0.0, longest * speed > most)
        found = tf.where(fast, most / tf.where(fast, speed, tf.ones_like(speed)), longest)
        return tf.maximum(found, least)

    def _valid(self, values):
        axes = list(range(values.shape.rank - self._lanes))
        return tf.logical_not(tf.reduce_any(tf.math.is_nan(values), axes))

    def _of_each(self, values):
        """Values of the functions, to be compared with theirs."""
        return tf.reshape(tf.constant(values), [-1, *[1] * self._lanes])

    def _inside(self, h, ys, slopes, thetas):
        """The states inside of a step, a list."""
        if not self._lanes:
            inside = Extension(self._dense).states(h, ys, slopes, tf.constant(thetas))
            return [[x[k] for x in inside] for k in range(len(thetas))]
        powers = thetas[:, np.newaxis] ** np.arange(1, self._dense.shape[1] + 1)
        rows = powers @ np.transpose(self._dense)
        return [add(ys, weighted_sum(h, row, slopes, ys)) for row in rows]

    def look(self, seen, accepted, number, interval, t, ys, trial):
        """`Seen` after a step that was tried, and whether the step is taken.

        Args:
            seen: `Seen`.
            accepted: whether the step is accurate enough.
            number: of the steps before it.
            interval: index of the stop before it.
            t: the time before it.
            ys: the state before it.
            trial: its `proposal`, `extended` step and the state `ys` after it.
        """
        h, before = trial.proposal.step, seen.mark
        values, times = self._sampled(t, ys, trial)
        signs = [seen.signs]
        for s, value in zip(times[1:], tf.unstack(values)):
            early = tf.abs(s - self._start) < seen.departure
            signs.append(tf.where(early, signs[-1], tf.sign(value)))
        signs, times = tf.stack(signs), self._departed(tf.stack(times), seen.departure)
        crossed, earlier = self._crossed(signs[:-1], signs[1:]), tf.logical_not(before.found)
        ending = tf.logical_and(crossed, self._of_each(self._watch.terminal))
        ends = tf.reduce_any(ending, [0, 1])
        crossed = tf.where(ends, ending, crossed)
        some, some_at_all = tf.reduce_any(crossed, 1), tf.reduce_any(crossed, [0, 1])
        first = tf.argmax(tf.cast(some, tf.int32), 0, output_type=tf.int32)
        most = tf.abs(self._span)
        if self._adaptive:
            relevant = tf.logical_and(some_at_all, tf.logical_or(ends, earlier))
            doubtful, theta = self._doubtful(signs, crossed, first)
            doubtful = tf.logical_and(tf.logical_and(accepted, relevant), doubtful)
            most = tf.where(doubtful, theta * tf.abs(h), most)
            most = tf.where(accepted, most, seen.most)
            accepted = tf.logical_and(accepted, tf.logical_not(doubtful))
        stopped = tf.logical_and(accepted, ends)
        found = tf.logical_and(accepted, tf.logical_and(some_at_all, earlier))
        found = tf.logical_or(stopped, found)
        mark = Mark(
            found=tf.logical_or(found, before.found),
            stopped=stopped,
            crossed=entry(self._lanes_first(crossed), first),
            bracket=tf.stack([entry(times, n) for n in (first, first + 1)], -1),
            number=number,
            interval=interval,
            t=t,
            h=h,
            fraction=trial.proposal.time_fraction + tf.zeros_like(t),
            ys=ys,
        )
        new = tf.logical_or(found, tf.logical_and(accepted, earlier))
        flat = select(new, tf.nest.flatten(mark), tf.nest.flatten(before))
        # What comes after the end of the solve is nothing.
        numbers = np.arange(self._watch.samples).reshape([-1, 1, *[1] * self._lanes])
        beyond = tf.logical_and(stopped, numbers > first)
        valid = self._valid(tf.where(beyond, tf.zeros_like(values), values))
        fine = tf.logical_or(valid, tf.logical_not(accepted))
        after = Seen(
            tf.where(accepted, signs[-1], seen.signs),
            tf.logical_and(seen.valid, fine),
            most,
            seen.departure,
            tf.nest.pack_sequence_as(mark, flat),
        )
        return after, tf.logical_and(accepted, tf.logical_not(stopped))

    def _sampled(self, t, ys, trial):
        """The functions' values inside of a step and at its end, and all times of it."""
        h, end, samples = trial.proposal.step, trial.proposal.end, self._watch.samples
        thetas = np.arange(1, samples) / samples
        states = self._inside(h, ys, trial.extended.slopes, thetas)
        times = [t, *(t + theta * h for theta in thetas), end]
        values = [self._watch.values(s, y) for s, y in zip(times[1:], [*states, trial.ys])]
        return tf.stack(values), times

    def _doubtful(self, signs, crossed, first):
        """Whether the first crossing is one that the step's ends don't confirm, and the first part
        of the step after which a function has another sign than at its start.

        Signs inside of the step are those of its extension, which in long steps of a stiff problem
        says little. A step that ends where the sign has changed on it shows whether it does.
        """
        reference = tf.where(tf.equal(signs[0], 0.0), signs[1], signs[0])
        before = tf.transpose(entry(self._lanes_first(signs), first))
        unconfirmed = tf.logical_or(tf.equal(signs[-1], before), tf.not_equal(before, reference))
        at_first = entry(self._lanes_first(crossed), first)
        doubtful = tf.logical_and(at_first, tf.transpose(unconfirmed))
        other = tf.cast(tf.not_equal(signs[1:], reference), tf.int32)
        theta = (tf.cast(tf.argmax(other, 0), tf.float64) + 1.0) / self._watch.samples
        theta = tf.where(doubtful, tf.transpose(theta), tf.ones([], tf.float64))
        return tf.reduce_any(doubtful, -1), tf.reduce_min(theta, -1)

    def _crossed(self, before, after):
        """Where a function that was not zero has another sign, and one that is asked for."""
        directions = tf.cast(self._of_each(self._watch.directions), tf.float64)
        changed = tf.logical_and(tf.not_equal(before, 0.0), tf.not_equal(before, after))
        changed = tf.logical_and(changed, tf.logical_not(tf.math.is_nan(after)))
        any_way = tf.equal(directions, 0.0)
        return tf.logical_and(changed, tf.logical_or(any_way, tf.equal(directions, -before)))

    def _lanes_first(self, crossed):
        return tf.transpose(crossed, [0, 2, 1]) if self._lanes else crossed

    def _departed(self, times, departure):
        """The times, but none before the root of the start has been left."""
        least = self._start * self._direction + departure
        return tf.maximum(times * self._direction, least) * self._direction
