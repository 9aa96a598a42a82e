"""The backward sweep over the recorded steps, last step first."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import accumulator, after, compensated_sum
from tfsymadj.checkpoints.store import RingOfStages, StageLists
from tfsymadj.dynamics.closing import Sources
from tfsymadj.loop.outputs import StopOutputs


class _Adjoint(NamedTuple):
    """What the backward loops carry."""

    totals: Sources  # lambda, the gradients of what the dynamics read, and of the stops
    lows: Sources  # of `totals`, but for the stops: see `arithmetic.compensated_sum`


class Sweep:
    """The symplectic adjoint over the accepted steps of one solve, segment by segment.

    Args:
        problem: `Problem`.
        recording: `Recording`.
        outcome: `Outcome` of the forward pass.
        cotangents: list of tensors like `outcome.ys`.
    """

    def __init__(self, problem, recording, outcome, cotangents):
        self._problem = problem
        self._dynamics = problem.dynamics
        self._live = [problem.ys[i] for i in problem.dynamics.live]
        # The FSAL row and the error estimate are of no use to the derivative.
        self._method = problem.method.without_error()
        self._outputs = StopOutputs(problem.num_stops)
        self._recording = recording
        self._grid, self._kept = outcome.record
        self._accepted = outcome.stats.num_accepted
        self._cotangents = cotangents

    def run(self):
        """The gradients, `Sources`."""
        problem, dynamics = self._problem, self._dynamics
        last = self._outputs.last_cotangents(self._cotangents)
        sums = Sources(last, dynamics.captured, dynamics.variables, [])
        stops = [tf.zeros([problem.num_stops], tf.float64) for _ in problem.times]
        state = _Adjoint(
            totals=tf.nest.map_structure(accumulator, sums)._replace(ys=last, times=stops),
            lows=tf.nest.map_structure(accumulator, sums),
        )
        first = self._recording.num_recomputed(self._accepted)
        if self._recording.keeps_stages:
            stages = RingOfStages(self._recording.ring)
            state = self._adjoint_steps(first, self._accepted, stages, self._kept.stages, state)
        if self._recording.keeps_states:
            state = self._segments(first, state)
        totals = state.totals

        def in_dtype_of(inputs, gradients):
            return [tf.cast(g, x.dtype) for g, x in zip(gradients, inputs)]

        return Sources(
            [a + g[0] for a, g in zip(totals.ys, self._cotangents)],
            in_dtype_of(dynamics.captured, totals.captured),
            in_dtype_of(dynamics.variables, totals.variables),
            totals.times,
        )

    def _segments(self, steps, state):
        """The adjoint over the first `steps`, segment by segment: recompute the stages, then it."""
        recording = self._recording
        stride, s, like = recording.stride, self._method.stages, self._live
        single = isinstance(stride, int) and stride == 1  # segments of one step
        # No segment is recomputed, and no memory set aside for it, before the cotangents are
        # there: or the solves of a model would all be at it at once.
        cotangents = state.totals.ys
        with tf.control_dependencies(cotangents):
            count = tf.identity(-(-steps // stride))
        # One place for all segments: what an earlier segment left is overwritten.
        if single:
            stages, rows = None, []
        elif recording.keeps_stages:
            stages, rows = RingOfStages(recording.ring), self._kept.stages
        else:
            stages = StageLists(stride, s)
            rows = stages.reserve(after(cotangents, [tf.zeros_like(y) for y in like]))

        def advance(begin, end, ys):
            return self._advance(begin * stride, end * stride, ys)

        def body(q, held, rows, state):
            begin = q * stride
            last = tf.minimum(begin + stride, steps) - 1
            ys, held = recording.restore(q, held, self._kept.states, like, advance)
            if not single:
                ys, rows = self._recompute(begin, last, ys, stages, rows)
            # The last step's stages are used at once, and the state after it is not needed, so
            # that its last evaluation is not made.
            state = self._adjoint_from_state(last, ys, state)
            if not single:
                state = self._adjoint_steps(begin, last, stages, rows, state)
            return q - 1, held, rows, state

        total = -(-self._accepted // stride)
        _, _, _, state = tf.while_loop(
            lambda q, held, rows, state: q >= 0,
            body,
            (count - 1, recording.held(self._kept.states, total), rows, state),
            parallel_iterations=2,  # the next segment's stages beside this one's adjoint
            maximum_iterations=_segment_bound(self._problem, recording),
            name="segments",
        )
        return state

    def _whole(self, ys):
        """The state with these live parts; the dynamics don't depend on the others."""
        live = dict(zip(self._dynamics.live, ys))
        return [live.get(i, tf.zeros_like(y)) for i, y in enumerate(self._problem.ys)]

    def _live_slopes(self, t, ys):
        slopes = self._dynamics(t, self._whole(ys))
        return [slopes[i] for i in self._dynamics.live]

    def _step(self, n, ys):
        """A step of the live parts of the state."""
        return self._method.step(self._live_slopes, self._grid.t[n], self._grid.h[n], ys)

    def _advance(self, begin, end, ys):
        """The state before the step `end`, from the one before the step `begin`."""
        _, ys = tf.while_loop(
            lambda n, ys: n < end,
            lambda n, ys: (n + 1, self._step(n, ys).ys),
            (begin, ys),
            parallel_iterations=1,
            maximum_iterations=self._problem.static_max_steps,
            name="advance",
        )
        return ys

    def _recompute(self, begin, end, ys, stages, rows):
        """The state before the step `end`; `rows` get the stage values of the steps before it."""

        def body(n, ys, rows):
            step = self._step(n, ys)
            return n + 1, step.ys, stages.set(rows, n, step.stages)

        _, ys, rows = tf.while_loop(
            lambda n, ys, rows: n < end,
            body,
            (begin, ys, rows),
            parallel_iterations=1,
            maximum_iterations=_static(self._recording.stride),
            name="recompute",
        )
        return ys, rows

    def _adjoint_steps(self, begin, end, stages, rows, state):
        """The adjoint over the steps from `begin` to before `end`, last first."""

        def body(n, state):
            stage = stages.of_step(rows, n, self._live)
            return n - 1, self._adjoint_step(n, stage, state)

        _, state = tf.while_loop(
            lambda n, state: n >= begin,
            body,
            (end - 1, state),
            parallel_iterations=1,
            maximum_iterations=_static(self._recording.stride),
            name="adjoint",
        )
        return state

    def _adjoint_from_state(self, n, ys, state):
        """The adjoint over the step n, from the state before it."""
        stages = [tf.stack(x) for x in zip(*self._step(n, ys).stages)]
        return self._adjoint_step(n, lambda i: [tf.gather(x, i) for x in stages], state)

    def _adjoint_step(self, n, stage, state):
        """The adjoint over the step n, from its stage values: `stage(i)`, their live parts."""
        return self._differentiate(n, self._method.adjoint, lambda i: self._whole(stage(i)), state)

    def _differentiate(self, n, rule, start, state):
        """The step n by `Method.adjoint` from its stages, or by `Method.vjp` from the state."""
        grid, problem, totals = self._grid, self._problem, state.totals
        adjoints = self._outputs.add_cotangents(
            totals.ys, self._cotangents, grid.interval_of(n), grid.hits_end[n]
        )
        sums = rule(
            self._dynamics, grid.t[n], grid.h[n], start, adjoints, state.lows, problem.with_time
        )
        totals, lows = compensated_sum(
            totals._replace(ys=adjoints, times=[]), sums._replace(times=[])
        )
        stops = [grid.to_stops(g, n, *sums.times) for g in state.totals.times]
        return _Adjoint(totals._replace(times=stops), lows)


def _static(n):
    return n if isinstance(n, int) else None


def _segment_bound(problem, recording):
    n, stride = problem.max_steps, recording.stride
    return -(-n // stride) if isinstance(n, int) and isinstance(stride, int) else None


class TapeSweep(Sweep):
    """Back-propagation through one step at a time: all stages under one tape."""

    def _adjoint_from_state(self, n, ys, state):
        return self._differentiate(n, self._method.vjp, self._whole(ys), state)
