"""The root of an event's function, by real steps of the method."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import entry, epsilon, quotient

#: After so many steps every third one halves the bracket.
_SECANT_STEPS = 8

#: So many steps at most.
_MOST_STEPS = 100

#: To this part of the step roots are found on the extension, and jumps by real steps.
NARROW = 1e-10


class Guess(NamedTuple):
    """A root on the continuous extension. Times are fractions of the step.

    Attributes:
        theta: its time.
        index: of the function whose it is.
        before: the function's sign before it.
        bracket: two times, the root between them.
        slope: the function's; zero where it jumps.
        end: the function's value at the end of the step.
        noise: by how much the roundings of time and state move it, about.
    """

    theta: tf.Tensor
    index: tf.Tensor
    before: tf.Tensor
    bracket: tuple
    slope: tf.Tensor
    end: tf.Tensor
    noise: tf.Tensor


class Root(NamedTuple):
    """A root that real steps lead to.

    Attributes:
        t: its time.
        slope: of the function by time; zero where it jumps.
        certain: whether the function changes its sign there.
        num_steps: that were taken.
    """

    t: tf.Tensor
    slope: tf.Tensor
    certain: tf.Tensor
    num_steps: tf.Tensor


class _State(NamedTuple):
    """Of the search.

    Attributes:
        number: of the steps so far; it begins at 2 where the bracket is known.
        a, b: times, the root between them.
        at_a, at_b: the function there.
        has_a, has_b: whether their signs are those before and after the root.
        x: the next time.
        slope: of the function.
        last: the last time, and the function there.
    """

    number: tf.Tensor
    a: tf.Tensor
    b: tf.Tensor
    at_a: tf.Tensor
    at_b: tf.Tensor
    has_a: tf.Tensor
    has_b: tf.Tensor
    x: tf.Tensor
    slope: tf.Tensor
    last: tuple


class Search:
    """Secant steps from a guess, each of them a small distance beyond the root at least, so that
    the bracket closes; where that does not help it is halved.

    The bracket is the whole step where the function has other signs at its ends. Else the guess's
    bracket is tried, then the guess, and the middle between it and the end that is missing.

    Args:
        problem: `Problem` with a watch.
        mark: `Mark`.
        dynamics: of the step.
        guess: `Guess`.
    """

    def __init__(self, problem, mark, dynamics, guess):
        self._watch, self._method, self._dynamics = problem.watch, problem.method, dynamics
        self._t, self._h = tf.stop_gradient(mark.t), mark.h
        self._ys = [tf.stop_gradient(y) for y in mark.ys]
        self._found, self._guess = mark.found, guess
        self._jumps = tf.equal(guess.slope, 0.0)
        # Of a difference: neither curvature nor rounding leaves its slope less than a few digits.
        least = max(epsilon(y.dtype.real_dtype) for y in mark.ys) ** 0.4
        self._least = tf.maximum(tf.minimum(2.0**12 * guess.noise, 2e-4), least)
        # A root may be where the bracket ends.
        below, above = guess.bracket
        self._bracket = (
            tf.maximum(below - self._least, tf.zeros_like(below)),
            tf.minimum(above + self._least, tf.ones_like(above)),
        )
        narrow = tf.constant(NARROW, tf.float64)
        self._width = tf.where(self._jumps, narrow, 2.0 * self._least)

    def run(self):
        """The `Root`; constants."""
        first = self._start()
        (last,) = tf.while_loop(
            lambda s: tf.reduce_any(self._active(s)),
            lambda s: (self._narrower(s),),
            (first,),
            parallel_iterations=1,
            maximum_iterations=_MOST_STEPS,
            name="real_root",
        )
        certain = tf.logical_and(last.has_a, last.has_b)
        certain = tf.logical_and(certain, last.b - last.a <= self._width)
        rise = last.at_b - last.at_a
        rises = tf.equal(tf.sign(rise), -self._guess.before)
        proper = tf.logical_and(rises, tf.logical_not(self._jumps))
        rise = tf.where(proper, rise, tf.ones_like(rise))
        width = last.b - last.a
        theta = tf.where(proper, last.a - width * last.at_a / rise, last.b)
        slope = tf.where(proper, rise / width, self._guess.slope)
        root = Root(
            self._t + theta * self._h,
            quotient(slope, self._h),
            certain,
            last.number - first.number,
        )
        return tf.nest.map_structure(tf.stop_gradient, root)

    def _value(self, theta):
        h = theta * self._h
        ys = self._method.step(self._dynamics, self._t, h, self._ys).ys
        return entry(self._watch.values(self._t + h, ys), self._guess.index)

    def _is_before(self, value):
        return tf.equal(tf.sign(value), self._guess.before)

    def _is_after(self, value):
        return tf.logical_and(tf.math.is_finite(value), tf.logical_not(self._is_before(value)))

    def _start(self):
        guess, zero = self._guess, tf.zeros_like(self._guess.theta)
        at_start = entry(self._watch.values(self._t, self._ys), guess.index)
        has_a, has_b = self._is_before(at_start), self._is_after(guess.end)
        known = tf.logical_and(has_a, has_b)
        return _State(
            number=tf.where(known, 2, 0),
            a=zero,
            b=tf.ones_like(zero),
            at_a=at_start,
            at_b=guess.end,
            has_a=has_a,
            has_b=has_b,
            x=tf.where(known, guess.theta, self._bracket[0]),
            slope=guess.slope,
            last=(zero, at_start),
        )

    def _active(self, s):
        known = tf.logical_and(s.has_a, s.has_b)
        going = tf.where(known, s.b - s.a > self._width, s.number < 4)
        return tf.logical_and(self._found, going)

    def _narrower(self, s):
        """The state after another step, where there is one to be taken."""
        value, number = self._value(s.x), s.number + 1
        inside = tf.logical_and(s.a <= s.x, s.x <= s.b)
        # The first two times are there for one end each.
        is_a = tf.logical_and(inside, tf.not_equal(number, 2))
        is_b = tf.logical_and(inside, tf.not_equal(number, 1))
        is_a = tf.logical_and(is_a, self._is_before(value))
        is_b = tf.logical_and(is_b, self._is_after(value))
        moved, changed = s.x - s.last[0], value - s.last[1]
        better = tf.logical_and(tf.abs(moved) > 0.5 * self._least, tf.not_equal(changed, 0.0))
        slope = changed / tf.where(better, moved, tf.ones_like(moved))
        new = _State(
            number=number,
            a=tf.where(is_a, s.x, s.a),
            b=tf.where(is_b, s.x, s.b),
            at_a=tf.where(is_a, value, s.at_a),
            at_b=tf.where(is_b, value, s.at_b),
            has_a=tf.logical_or(s.has_a, is_a),
            has_b=tf.logical_or(s.has_b, is_b),
            x=s.x,
            slope=tf.where(better, slope, s.slope),
            last=(s.x, value),
        )
        new, going = new._replace(x=self._next(new)), self._active(s)
        return tf.nest.map_structure(lambda x, y: tf.where(going, x, y), new, s)

    def _next(self, s):
        """The time of the next step."""
        guess, (x, value) = self._guess, s.last
        secant = x - value / tf.where(tf.equal(s.slope, 0.0), tf.ones_like(x), s.slope)
        secant = tf.where(
            self._is_before(value),
            tf.maximum(secant, x + self._least),
            tf.minimum(secant, x - self._least),
        )
        inside = tf.logical_and(s.a < secant, secant < s.b)
        proper = tf.logical_and(inside, tf.equal(tf.sign(s.slope), -guess.before))
        halving = tf.logical_and(s.number > _SECANT_STEPS, tf.equal(s.number % 3, 0))
        halving = tf.logical_or(self._jumps, halving)
        theta = tf.where(tf.logical_and(proper, tf.logical_not(halving)), secant, 0.5 * (s.a + s.b))
        known = tf.logical_and(s.has_a, s.has_b)
        below, above = self._bracket
        middle = 0.5 * (guess.theta + tf.where(s.has_a, above, below))
        theta = tf.where(tf.logical_or(known, s.number > 3), theta, middle)
        theta = tf.where(tf.equal(s.number, 2), guess.theta, theta)
        return tf.where(tf.equal(s.number, 1), above, theta)
