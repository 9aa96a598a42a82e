"""The backward sweep over the recorded steps, last step first."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj import buffers
from tfsymadj.gradients.recomputing import InputGradients, accumulator
from tfsymadj.runge_kutta import after, rk_step, rk_step_adjoint, rk_step_vjp, two_sum


class _Adjoint(NamedTuple):
    """What the backward loops carry."""

    totals: list  # lambda, the gradients of the captured inputs, those of the variables
    lows: list  # of `totals`: see `runge_kutta.two_sum`
    ts: list  # of one tensor, or empty


class _KeptStages:
    """The stage values of `ring` steps in dense buffers, written in the forward pass first."""

    def __init__(self, ring):
        self._ring = ring

    def set(self, rows, n, stages):
        """`rows` with the stage values of step n."""
        values = [tf.stack(x) for x in zip(*stages)]
        row = n % self._ring
        return [buffers.for_branches(buffers.replace_row, r, row, x) for r, x in zip(rows, values)]

    def of_step(self, rows, n, like):
        """Callable from i to the stage value i of step n."""
        row = n % self._ring
        return lambda i: [tf.ensure_shape(r[row, i], y.shape) for r, y in zip(rows, like)]


class _StageLists:
    """The stage values of a segment's steps but the last one in tensor lists."""

    def __init__(self, stride, stages):
        self._stride, self._stages = stride, stages

    def reserve(self, like):
        """The rows."""
        stride, s = self._stride, self._stages
        # At least one: a stride that is known at run time only may turn out to be one.
        most = (stride - 1) * s if isinstance(stride, int) else tf.maximum((stride - 1) * s, 1)
        return [buffers.set_row(buffers.reserve_rows(most, y), 0, y) for y in like]

    def set(self, rows, n, stages):
        """`rows` with the stage values of step n."""
        first = self._first_row(n)
        for i, stage in enumerate(stages):
            rows = [buffers.set_row(r, first + i, y) for r, y in zip(rows, stage)]
        return rows

    def of_step(self, rows, n, like):
        """Callable from i to the stage value i of step n."""
        first = self._first_row(n)
        return lambda i: [buffers.get_row(r, first + i, y) for r, y in zip(rows, like)]

    def _first_row(self, n):
        return n % self._stride * self._stages


class Sweep:
    """The symplectic adjoint over the accepted steps of one solve, segment by segment.

    Args:
        problem: `integrate.Problem`.
        recording: `Recording`.
        integral: `integrate.Integral`.
        variables: variables to differentiate for beside `problem.dynamics.captured`.
        cotangents: list of tensors like `integral.ys`.
    """

    def __init__(self, problem, recording, integral, variables, cotangents):
        self._problem = problem
        self._dynamics = problem.dynamics
        self._live = [problem.ys[i] for i in problem.dynamics.live]
        # The FSAL row and the error estimate are of no use to the derivative.
        self._tableau = problem.tableau.without_error()
        self._recording = recording
        self._checkpoints = integral.checkpoints
        self._kept = integral.stages
        self._accepted = integral.num_accepted
        self._grid = integral.grid
        self._variables = variables
        self._cotangents = cotangents
        self._only_end = problem.ts.shape[0] == 2

    def run(self):
        """`InputGradients`."""
        problem, cotangents = self._problem, self._cotangents
        targets = [*self._dynamics.captured, *self._variables]
        last = [g[-1] if self._only_end else tf.zeros_like(g[0]) for g in cotangents]
        state = _Adjoint(
            totals=[*last, *(accumulator(x) for x in targets)],
            lows=[accumulator(x) for x in (*last, *targets)],
            ts=[tf.zeros([problem.num_times], tf.float64)] if problem.with_time else [],
        )
        first = self._recording.num_recomputed(self._accepted)
        if self._recording.keeps_stages:
            stages = _KeptStages(self._recording.ring)
            state = self._adjoint_steps(first, self._accepted, stages, self._kept, state)
        if self._recording.keeps_states:
            state = self._segments(first, state)
        n, m = len(cotangents), len(cotangents) + len(self._dynamics.captured)
        gradients = [tf.cast(g, x.dtype) for g, x in zip(state.totals[n:], targets)]
        return InputGradients(
            [a + g[0] for a, g in zip(state.totals, cotangents)],
            state.ts[0] if problem.with_time else None,
            gradients[: m - n],
            gradients[m - n :],
        )

    def _segments(self, steps, state):
        """The adjoint over the first `steps`, segment by segment: recompute the stages, then it."""
        recording = self._recording
        stride, s, like = recording.stride, self._tableau.stages, self._live
        single = isinstance(stride, int) and stride == 1  # segments of one step
        # No segment is recomputed, and no memory set aside for it, before the cotangents are
        # there: or the solves of a model would all be at it at once.
        cotangents = state.totals[: len(self._cotangents)]
        with tf.control_dependencies(cotangents):
            count = tf.identity(-(-steps // stride))
        # One place for all segments: what an earlier segment left is overwritten.
        if single:
            stages, rows = None, []
        elif recording.keeps_stages:
            stages, rows = _KeptStages(recording.ring), self._kept
        else:
            stages = _StageLists(stride, s)
            rows = stages.reserve(after(cotangents, [tf.zeros_like(y) for y in like]))

        def advance(begin, end, ys):
            return self._advance(begin * stride, end * stride, ys)

        def body(q, held, rows, state):
            begin = q * stride
            last = tf.minimum(begin + stride, steps) - 1
            ys, held = recording.restore(q, held, self._checkpoints, like, advance)
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
            (count - 1, recording.held(self._checkpoints, total), rows, state),
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
        return rk_step(self._live_slopes, self._tableau, self._grid.t[n], self._grid.h[n], ys)

    def _advance(self, begin, end, ys):
        """The state before the step `end`, from the one before the step `begin`."""
        _, ys = tf.while_loop(
            lambda n, ys: n < end,
            lambda n, ys: (n + 1, self._step(n, ys).ys),
            (begin, ys),
            parallel_iterations=1,
            maximum_iterations=_static(self._problem.max_steps),
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
        return self._differentiate(n, rk_step_adjoint, lambda i: self._whole(stage(i)), state)

    def _differentiate(self, n, rule, start, state):
        """The step n by `rk_step_adjoint` from its stages, or by `rk_step_vjp` from the state."""
        grid, problem = self._grid, self._problem
        m = tf.cast(grid.interval[n], tf.int32)
        size = len(self._cotangents)
        adjoints = state.totals[:size]
        if not self._only_end:
            # The solution that this step ends at is an output.
            ends = tf.not_equal(grid.hits_end[n], 0)
            adjoints = [
                a + tf.where(ends, g[m + 1], tf.zeros([], g.dtype))
                for a, g in zip(adjoints, self._cotangents)
            ]
        step = rule(
            self._dynamics, self._tableau, grid.t[n], grid.h[n], start, adjoints, state.lows,
            self._variables, problem.with_time,
        )  # fmt: skip
        totals, lows = two_sum([*adjoints, *state.totals[size:]], step.sums)
        ts = state.ts
        if problem.with_time:
            # t_n and h as functions of the interval's ends: see `controllers.Proposal`.
            a, b = grid.time_fraction[n], grid.step_fraction[n]
            to_start = (1.0 - a) * step.start - b * step.step
            to_end = a * step.start + b * step.step
            count = problem.num_times
            ts = [
                ts[0]
                + to_start * tf.one_hot(m, count, dtype=tf.float64)
                + to_end * tf.one_hot(m + 1, count, dtype=tf.float64)
            ]
        return _Adjoint(totals, lows, ts)


def _static(n):
    return n if isinstance(n, int) else None


def _segment_bound(problem, recording):
    n, stride = problem.max_steps, recording.stride
    return -(-n // stride) if isinstance(n, int) and isinstance(stride, int) else None


class TapeSweep(Sweep):
    """Back-propagation through one step at a time: all stages under one tape."""

    def _adjoint_from_state(self, n, ys, state):
        return self._differentiate(n, rk_step_vjp, self._whole(ys), state)
