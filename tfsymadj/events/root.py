"""From the step that an event was found in to its time and state, and their derivatives."""

import dataclasses
import functools
from typing import NamedTuple

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.arithmetic import EPSILON, accumulator, entry, epsilon, quotient
from tfsymadj.dynamics.closing import Sources, apart
from tfsymadj.events.search import NARROW, Guess, Search
from tfsymadj.loop.failures import first_failure, is_success, nan_where
from tfsymadj.methods.extension import Extension
from tfsymadj.solution import Occurrence, Status
from tfsymadj.steps import ConstantSteps
from tfsymadj.xla import repeated

#: Steps of the search on the continuous extension, of which one in three halves the bracket.
_MOST_STEPS = 160

#: Newton steps on real steps, with a slope of a few digits: each one gains as many.
_CORRECTIONS = 3


def with_event(problem, outcome, gradient):
    """The outcome with the outputs up to the event, and the `Occurrence`.

    The root is looked for on the continuous extension of the step, and from there on by real steps
    of the method, so that the event's state is of the method's order: inside of a long step of a
    stiff problem the extension says little. The time of the root is corrected by

        t <- t - g(t, y(t)) / D,

    with D the slope of g between two such steps. These corrections are differentiated with D held
    constant: their limit is the root whatever D is, and what is wrong with its derivatives, the
    first and the second alike, is multiplied by 1 - (dg/dt) / D. An event that no real step leads
    to is none: the status is `Status.EVENT_UNCERTAIN`.

    Args:
        problem: `Problem` with a watch.
        outcome: its `Outcome`.
        gradient: the `Gradient` that the steps to the event are differentiated by.
    """
    mark, watch = outcome.mark, problem.watch
    last = _Last(problem, mark, gradient)
    guess = _on_extension(last, problem, mark)
    index = guess.index
    root = Search(problem, mark, last.dynamics.apart, guess).run()
    fine = tf.logical_or(root.certain, tf.logical_not(mark.found))
    status = first_failure(outcome.status, fine, Status.EVENT_UNCERTAIN)
    outcome = outcome._replace(status=status)
    t, ys, smooth = _corrected(last, watch, root.t, index, root.slope)
    part = None if problem.between is None else last.outputs(t)
    # Where there is no event a cotangent of zero has to stay one.
    rough = tf.logical_and(mark.found, tf.logical_not(smooth))
    t, *ys = _without_derivative(rough, [t, *ys])
    lost = tf.logical_not(tf.logical_and(mark.found, is_success(outcome.status)))
    occurrence = Occurrence(
        index=tf.where(lost, -1, index),
        t=t + nan_where(lost, t.dtype, t.shape.rank),
        y=[y + nan_where(lost, y.dtype, y.shape.rank) for y in ys],
    )
    return _completed(problem, _counted(problem, outcome, root.num_steps), t, ys, part), occurrence


class _Last:
    """Steps from the mark to about the event."""

    def __init__(self, problem, mark, gradient):
        self._problem, self.mark, self._gradient = problem, mark, gradient
        self.dynamics = problem.intervals.of(problem.dynamics, mark.interval)
        self._method = problem.method.without_error()

    def step_to(self, end):
        """The state at a time near the event, by the step and its symplectic partner."""
        dynamics, mark = self.dynamics, self.mark
        inputs = Sources(mark.ys, dynamics.captured, dynamics.variables, [mark.t, end])

        def step():
            return self._method.step(dynamics, mark.t, end - mark.t, mark.ys).ys

        backward = functools.partial(self._backward, inputs)
        return _platform.with_gradient(apart(step, mark.ys), tf.nest.flatten(inputs), backward)

    def _backward(self, inputs, cotangents):
        t, end = inputs.times
        step = self._method.step(self.dynamics, t, end - t, inputs.ys)
        stages = [tf.stack(x) for x in zip(*step.stages)]
        zeros = tf.nest.map_structure(accumulator, inputs._replace(times=[]))
        found = self._method.adjoint(
            self.dynamics,
            t,
            end - t,
            lambda i: [tf.gather(x, i) for x in stages],
            cotangents,
            zeros._replace(ys=cotangents),
            with_time=True,
        )
        start, size = found.times
        found = found._replace(times=[start - size, size])
        return [tf.cast(g, x.dtype) for g, x in zip(*map(tf.nest.flatten, (found, inputs)))]

    def outputs(self, end):
        """The outputs before the event, by the step's extension."""
        t, times = self.mark.t, self._problem.output_times
        first, last = tf.minimum(t, end), tf.maximum(t, end)
        part = dataclasses.replace(
            self._problem,
            dynamics=self.dynamics,
            ys=self.mark.ys,
            stops=tf.stack([t, end]),
            between=tf.concat([[t], tf.clip_by_value(times, first, last), [end]], 0),
            controller=ConstantSteps(1).for_method(self._problem.method),
            max_steps=1,
            known_length=not self._problem.lanes,
            last=None,
            first_step=None,
            max_step=None,
            with_time=True,
            switches=None,
            valid=tf.constant(True),
            watch=None,
        )
        return [y[1:-1] for y in self._gradient.solve(part).ys]


def _corrected(last, watch, t, index, slope):
    """The event's time and state, and whether there is one that has a derivative."""
    smooth = tf.logical_and(tf.math.is_finite(slope), tf.not_equal(slope, 0.0))
    smooth = tf.logical_and(smooth, last.mark.found)
    slope = tf.where(smooth, slope, tf.ones_like(slope))
    most = tf.abs(slope * last.mark.h)

    def correct(n, found):
        t, _, smooth = found
        ys, wanted = last.step_to(t), n < _CORRECTIONS
        value = entry(watch.values(t, ys), index)
        near = tf.abs(tf.stop_gradient(value)) <= most
        smooth = tf.logical_and(smooth, tf.logical_or(near, tf.logical_not(wanted)))
        value = tf.where(
            tf.logical_and(wanted, tf.math.is_finite(value)), value, tf.zeros_like(value)
        )
        # A product, so that a cotangent of NaN gets to what the function depends on.
        return t - value * tf.where(smooth, 1.0 / slope, tf.zeros_like(slope)), ys, smooth

    # One more pass, for the state.
    return repeated(_CORRECTIONS + 1, correct, (t, last.mark.ys, smooth), "corrections")


class _Bracket(NamedTuple):
    """Times with values of other signs, a vector each."""

    a: tf.Tensor
    b: tf.Tensor
    at_a: tf.Tensor
    at_b: tf.Tensor


def _on_extension(last, problem, mark):
    """The earliest root in the bracket; constants."""
    watch, method = problem.watch, problem.method
    t, h, ys = mark.t, mark.h, [tf.stop_gradient(y) for y in mark.ys]
    t = tf.stop_gradient(t)
    step = method.step(last.dynamics.apart, t, h, ys)
    slopes = method.extended(last.dynamics.apart, t, h, ys, step, tf.constant(True)).slopes
    extension, count = Extension(method.dense), len(watch.functions)
    eps = max(epsilon(y.dtype.real_dtype) for y in ys)

    def values(thetas):
        inside = extension.states(h, ys, slopes, thetas)
        states = [[x[e] for x in inside] for e in range(count)]
        times = t + thetas * h
        found = [f(times[e], states[e])[0] for e, f in enumerate(watch.functions)]
        return tf.stack(found)

    # Fractions of the step: times may be coarse. Slices, since graph mode's optimizer takes stacks
    # of copies of each part of `tf.unstack` for one and the same.
    begin, end = (quotient(mark.bracket[..., i] - t, h) for i in (0, 1))
    crossed = tf.transpose(mark.crossed)
    a, b = tf.stack([begin] * count), tf.stack([end] * count)
    starts = values(a)
    bracket = _Bracket(a, b, starts, values(b))
    proper = tf.logical_and(crossed, tf.not_equal(bracket.at_a, 0.0))

    def unfinished(n, bracket):
        open_ = tf.logical_and(proper, tf.not_equal(bracket.at_b, 0.0))
        return tf.reduce_any(tf.logical_and(open_, tf.abs(bracket.b - bracket.a) > NARROW))

    def narrower(n, bracket):
        a, b, at_a, at_b = bracket
        # Regula falsi with halved values (Illinois), and a bisection after each two of them.
        difference = at_b - at_a
        safe = tf.where(tf.equal(difference, 0.0), tf.ones_like(difference), difference)
        fraction = tf.clip_by_value(-at_a / safe, 1e-3, 1.0 - 1e-3)
        fraction = tf.where(tf.equal(n % 3, 2), half, fraction)
        x = a + fraction * (b - a)
        at_x = values(x)
        left = tf.equal(tf.sign(at_x), tf.sign(at_a))  # the root is beyond x
        return n + 1, _Bracket(
            tf.where(left, x, a),
            tf.where(left, b, x),
            tf.where(left, at_x, 0.5 * at_a),
            tf.where(left, 0.5 * at_b, at_x),
        )

    half = tf.constant(0.5, tf.float64)
    _, bracket = tf.while_loop(
        unfinished,
        narrower,
        (tf.zeros([], tf.int32), bracket),
        parallel_iterations=1,
        maximum_iterations=_MOST_STEPS,
        name="root",
    )
    ahead = tf.where(crossed, bracket.b, end + 1.0)
    index = tf.argmin(ahead, 0, output_type=tf.int32)
    root = entry(bracket.b, index)
    before, after = entry(tf.sign(starts), index), entry(tf.sign(bracket.at_b), index)
    noise = _noise(t, h, ys, step.ys, problem.lanes)
    guess = Guess(
        theta=root,
        index=index,
        # Where a bracket begins at the root of the start.
        before=tf.where(tf.equal(before, 0.0), -after, before),
        bracket=(begin, end),
        slope=_slope(lambda x: entry(values(tf.stack([x] * count)), index), root, eps, noise),
        end=entry(watch.values(t + h, step.ys), index),
        noise=noise,
    )
    return tf.nest.map_structure(tf.stop_gradient, guess)


def _noise(t, h, ys, ends, lanes):
    """By how much of the step the roundings of time and state move a root, about."""
    found = EPSILON * tf.abs(quotient(t, h))
    for y, end in zip(ys, ends):
        axes = list(range(1 if lanes else 0, y.shape.rank))
        size, change = (tf.cast(tf.reduce_max(tf.abs(x), axes), tf.float64) for x in (y, end - y))
        rest = change <= 0.0  # or there are no entries
        part = epsilon(y.dtype.real_dtype) * size / tf.where(rest, tf.ones_like(change), change)
        found = tf.maximum(found, tf.where(rest, tf.zeros_like(part), part))
    return found


def _slope(value, root, eps, noise):
    """Of a function along the extension, by a difference; zero where the function jumps or has a
    kink.

    Args:
        value: the function of a fraction of the step.
        root: its root.
        eps: of the state's dtype.
        noise: see `Guess`.
    """

    def sides(distance):
        before, after = (value(root + d) / distance for d in (-distance, distance))
        return -before, after

    def agree(wide, narrow):
        wide, narrow = tf.add(*wide), tf.add(*narrow)
        return tf.abs(narrow - wide) <= 0.5 * tf.abs(narrow)

    # So near to the root that a smooth function is straight, within the noise of rounding.
    nearest = 4.0 * eps**0.4
    near = tf.maximum(tf.minimum(2.0**14 * noise, 1e-3), nearest)
    found, (before, after) = sides(1e-3), sides(near)
    steady = agree(sides(1e-2), found)
    if nearest < 1e-4:  # a steep function has one slope only there
        closer = sides(near / 8.0)
        found, steady = closer, tf.logical_or(steady, agree((before, after), closer))
    bend = eps**0.2 * near / nearest  # so much may a smooth function bend
    straight = tf.abs(after - before) <= bend * tf.abs(after + before)
    slope = 0.5 * tf.add(*found)
    return tf.where(tf.logical_and(steady, straight), slope, tf.zeros_like(slope))


def _without_derivative(condition, xs):
    """The tensors; what is differentiated through them becomes NaN where the condition holds."""

    def backward(cotangents):
        return [g + nan_where(condition, g.dtype, g.shape.rank) for g in cotangents]

    return _platform.with_gradient([tf.identity(x) for x in xs], xs, backward)


def _counted(problem, outcome, num_steps):
    """The outcome with the evaluations that it takes to find the event."""
    method, stats = problem.method, outcome.stats
    steps = num_steps + _CORRECTIONS + 2 + (problem.between is not None)
    backward = (_CORRECTIONS + 1) * (method.stages + method.without_error().adjoint_evaluations)
    return outcome._replace(
        stats=stats._replace(
            num_evaluations=stats.num_evaluations + steps * method.stages + 1,
            num_backward_evaluations=stats.num_backward_evaluations + backward,
        )
    )


def _completed(problem, outcome, t, ys, part):
    """The outcome with the outputs between the last step and the event that ended the solve."""
    mark, stats = outcome.mark, outcome.stats
    stopped = tf.logical_and(mark.stopped, is_success(outcome.status))
    stats = stats._replace(
        num_accepted=stats.num_accepted + tf.cast(stopped, tf.int32),
        num_rejected=stats.num_rejected - tf.cast(stopped, tf.int32),
    )
    if problem.every_step:
        beyond = tf.range(tf.size(outcome.times)) > outcome.stats.num_accepted
        rows, times = ys, tf.where(tf.logical_and(stopped, beyond), t, outcome.times)
    else:
        direction, ends = tf.sign(mark.h), problem.output_times
        # An output at the root is one, whatever rounding has made of it.
        near = 4.0 * EPSILON * (tf.abs(t) + tf.abs(mark.h))
        beyond = tf.logical_and((ends - mark.t) * direction > 0.0, (ends - t) * direction <= near)
        rows = ys if part is None else part
        times = outcome.times
    new = tf.logical_and(stopped, beyond)
    merged = [tf.where(_beside(new, y.shape.rank), x, y) for x, y in zip(rows, outcome.ys)]
    return outcome._replace(ys=merged, stats=stats, times=times)


def _beside(mask, rank):
    """A mask of outputs, or of outputs and lanes, to select entries of this rank."""
    return tf.reshape(mask, tf.concat([tf.shape(mask), [1] * (rank - mask.shape.rank)], 0))
