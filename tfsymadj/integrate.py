"""The forward loop: one `tf.while_loop` for fixed and adaptive steps and for every gradient."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj import buffers
from tfsymadj.controllers import Controller
from tfsymadj.dynamics.closing import ClosedDynamics
from tfsymadj.runge_kutta import rk_step, two_sum
from tfsymadj.solution import Status
from tfsymadj.tableaus import ButcherTableau

_EPSILON = float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True)
class Problem:
    """An initial value problem, checked, over lists of tensors.

    Attributes:
        dynamics: the closed dynamics.
        ys: the initial state.
        ts: float64 tensor of the output times.
        tableau: the method; without an error estimate unless the controller is adaptive.
        controller: bound to the method.
        max_steps: bound of the steps tried: an int, or an int32 scalar where the sizes of buffers
            need not be known at compile time.
        known_length: whether exactly `max_steps` steps are taken.
        first_step: float64 scalar or None for an automatic one.
        min_step: float.
        with_time: whether `ts` may need a gradient.
    """

    dynamics: ClosedDynamics
    ys: list
    ts: tf.Tensor
    tableau: ButcherTableau
    controller: Controller
    max_steps: Any
    known_length: bool
    first_step: Any
    min_step: float
    with_time: bool

    @property
    def num_times(self):
        """The number of output times, int where it is known."""
        return tf.size(self.ts) if self.ts.shape[0] is None else self.ts.shape[0]


class Grid(NamedTuple):
    """The accepted steps, one row each. float64 tensors of shape `(max_steps,)` or ints.

    Attributes:
        t: time before the step.
        h: the step.
        interval: index m of the output interval, from `ts[m]` to `ts[m + 1]`.
        hits_end: 1 if the step ends at `ts[m + 1]`, else 0.
        time_fraction: see `controllers.Proposal`.
        step_fraction: likewise.
    """

    t: tf.Tensor
    h: tf.Tensor
    interval: tf.Tensor
    hits_end: tf.Tensor
    time_fraction: tf.Tensor
    step_fraction: tf.Tensor


class Integral(NamedTuple):
    """What the loop returns.

    Attributes:
        ys: the states at the output times, stacked; NaN from where the solve failed.
        status: int32 scalar.
        time: the time at which the solve ended, float64.
        num_steps: attempted steps, int32.
        num_accepted: accepted steps.
        num_evaluations: evaluations of the dynamics.
        grid: `Grid`, or None without a recording.
        checkpoints: list of tensors `[rows, ...]` of the live parts of the state (see
            `ClosedDynamics`), or None likewise.
        stages: list of tensors `[ring, s, ...]`, or None: the stage values of the last steps,
            those of step n at n modulo ring.
    """

    ys: list
    status: tf.Tensor
    time: tf.Tensor
    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_evaluations: tf.Tensor
    grid: Grid | None = None
    checkpoints: list | None = None
    stages: list | None = None


class _Carry(NamedTuple):
    """The loop's variables; lists are empty where something is not needed."""

    attempts: tf.Tensor
    accepted: tf.Tensor
    interval: tf.Tensor
    t: tf.Tensor
    ys: list
    lows: list  # of `ys`, lost by rounding: see `runge_kutta.two_sum`
    first: list  # the dynamics at (t, ys), with a FSAL method
    control: Any
    status: tf.Tensor
    reached: tf.Tensor  # the last interval entered and the time, while all was well
    time: tf.Tensor
    moved: tf.Tensor  # whether the last step was accepted: `ys` is new
    outputs: list  # tensor lists
    grid: list  # of one tensor list
    checkpoints: list  # dense buffers
    stages: list  # likewise


def integrate(problem, recording=None):
    """Solves the problem.

    Args:
        problem: `Problem`.
        recording: `Recording` or None.

    Returns:
        `Integral`.
    """
    dynamics, tableau, controller = problem.dynamics, problem.tableau, problem.controller
    ys0, ts, num_times = problem.ys, problem.ts, problem.num_times
    adaptive = controller.adaptive
    s = tableau.stages
    only_end = isinstance(num_times, int) and num_times == 2
    live = dynamics.live if recording is not None else []
    keeps_states = recording is not None and recording.keeps_states
    keeps_stages = recording is not None and recording.keeps_stages

    def write_state(c):
        """Writes what the step before this one arrived at, which is a loop variable by now."""
        new = tf.logical_and(c.moved, tf.equal(c.accepted % recording.stride, 0))
        row = tf.where(new, recording.row(c.accepted // recording.stride), recording.rows)
        return [buffers.write_row(b, row, c.ys[i]) for b, i in zip(c.checkpoints, live)]

    def write_stages(c, stages):
        # A step that is rejected leaves its values where those of the next one will be.
        row = c.accepted % recording.ring
        values = [tf.stack([stage[i] for stage in stages]) for i in live]
        return [
            buffers.for_branches(buffers.write_row, b, row, x) for b, x in zip(c.stages, values)
        ]

    status = tf.where(_monotonic(ts), int(Status.SUCCESS), int(Status.TIMES_NOT_MONOTONIC))
    status = _first_failure(status, _finite(ys0), Status.NON_FINITE_STATE)
    first, first_step, evaluations = [], None, 0
    if adaptive:
        slopes = None
        if tableau.fsal or problem.first_step is None:
            slopes = dynamics(ts[0], ys0)
            evaluations += 1
            status = _first_failure(status, _finite(slopes), Status.NON_FINITE_DYNAMICS)
        if problem.first_step is None:
            first_step = _automatic_first_step(problem, slopes)
            evaluations += 1
        else:
            # Less would leave the time where it is.
            first_step = tf.maximum(
                tf.convert_to_tensor(problem.first_step, tf.float64), _EPSILON * tf.abs(ts[0])
            )
        first = slopes if tableau.fsal else []

    carry = _Carry(
        attempts=tf.zeros([], tf.int32),
        accepted=tf.zeros([], tf.int32),
        interval=tf.zeros([], tf.int32),
        t=ts[0],
        ys=list(ys0),
        lows=[tf.zeros_like(y) for y in ys0],
        first=first,
        control=controller.initial_state(first_step),
        status=status,
        reached=tf.zeros([], tf.int32),
        time=ts[0],
        moved=tf.constant(True),
        outputs=[]
        if only_end
        else [buffers.set_row(buffers.reserve_rows(num_times, y), 0, y) for y in ys0],
        grid=[buffers.reserve_rows(problem.max_steps, tf.zeros([6], tf.float64))]
        if recording is not None
        else [],
        # One row more than needed: where to write what is not kept.
        checkpoints=[buffers.dense_rows(recording.rows + 1, ys0[i]) for i in live]
        if keeps_states
        else [],
        stages=[buffers.dense_rows(recording.ring, tf.stack([ys0[i]] * s)) for i in live]
        if keeps_stages
        else [],
    )

    def unfinished(c):
        bounded = c.attempts < problem.max_steps
        if problem.known_length:
            # However the solve goes: so the loop's counters don't depend on the state, and
            # `tf.vectorized_map` can tell.
            return bounded
        ongoing = tf.equal(c.status, int(Status.SUCCESS))
        return tf.logical_and(bounded, tf.logical_and(ongoing, c.interval < num_times - 1))

    def attempt(c):
        start, end = ts[c.interval], ts[c.interval + 1]
        proposal = controller.propose(c.control, c.t, start, end)

        checkpoints = write_state(c) if c.checkpoints else []
        step = rk_step(dynamics, tableau, c.t, proposal.step, c.ys, c.first or None)
        ends, lows = two_sum(c.ys, [e + d for e, d in zip(c.lows, step.increments)])
        finite = _finite(ends)
        if adaptive:
            norm = tf.stop_gradient(controller.error_norm(step.errors, c.ys, ends))
            finite = tf.logical_and(finite, tf.math.is_finite(norm))
            # Or infinity: not as a constant, which `enable_check_numerics` would find.
            one = tf.ones([], tf.float64)
            norm = tf.where(finite, norm, one) / tf.cast(finite, tf.float64)
            accepted, control = controller.adapt(c.control, proposal, norm)
            accepted = tf.logical_and(accepted, finite)
            after = controller.propose(control, c.t, start, end).step
            small = tf.logical_or(tf.equal(c.t + after, c.t), tf.abs(after) < problem.min_step)
            stays = tf.equal(proposal.end, c.t)
            accepted = tf.logical_and(accepted, tf.logical_not(stays))
            stuck = tf.logical_or(stays, tf.logical_and(small, tf.logical_not(accepted)))
            reason = tf.where(finite, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE_DYNAMICS))
            status = tf.where(stuck, reason, c.status)
        else:
            accepted, control = controller.adapt(c.control, proposal, None)
            reason = tf.where(
                _finite(step.increments),
                int(Status.NON_FINITE_STATE),
                int(Status.NON_FINITE_DYNAMICS),
            )
            status = _first_failure(c.status, finite, reason)

        if adaptive:
            ends, lows = _select(accepted, ends, c.ys), _select(accepted, lows, c.lows)
        end = tf.where(accepted, proposal.end, c.t)
        interval = c.interval + tf.cast(tf.logical_and(accepted, proposal.hits_end), tf.int32)
        well = tf.equal(status, int(Status.SUCCESS))
        grid = c.grid
        if grid:
            entry = [
                c.t, proposal.step, tf.cast(c.interval, tf.float64),
                tf.cast(proposal.hits_end, tf.float64),
                proposal.time_fraction, proposal.step_fraction,
            ]  # fmt: skip
            grid = [buffers.set_row(grid[0], c.accepted, tf.stack(entry))]
        return (
            _Carry(
                attempts=c.attempts + 1,
                accepted=c.accepted + tf.cast(accepted, tf.int32),
                interval=interval,
                t=end,
                ys=ends,
                lows=lows,
                first=_select(accepted, step.last, c.first) if c.first else [],
                control=control,
                status=status,
                reached=tf.where(well, interval, c.reached),
                time=tf.where(well, end, c.time),
                moved=accepted,
                # Overwritten by the later steps of the same interval.
                outputs=[buffers.set_row(o, c.interval + 1, y) for o, y in zip(c.outputs, ends)],
                grid=grid,
                checkpoints=checkpoints,
                stages=write_stages(c, step.stages[:s]) if keeps_stages else [],
            ),
        )

    static_bound = problem.max_steps if isinstance(problem.max_steps, int) else None
    (carry,) = tf.while_loop(
        unfinished,
        attempt,
        (carry,),
        parallel_iterations=1,
        maximum_iterations=static_bound,
        name="integrate",
    )

    arrived = tf.equal(carry.interval, num_times - 1)
    status = _first_failure(carry.status, arrived, Status.MAX_STEPS_REACHED)
    if only_end:
        outputs = [tf.stack([y0, y]) for y0, y in zip(ys0, carry.ys)]
    else:
        static = num_times if isinstance(num_times, int) else None
        outputs = [buffers.stack_rows(o, y, static) for o, y in zip(carry.outputs, ys0)]
    failed = tf.not_equal(status, int(Status.SUCCESS))
    lost = tf.logical_and(failed, tf.range(num_times) > carry.reached)
    outputs = [y + _nan_where(lost, y.dtype, y.shape.rank) for y in outputs]

    grid = None
    if recording is not None:
        entries = buffers.stack_rows(carry.grid[0], tf.zeros([6], tf.float64))
        grid = Grid(*tf.unstack(entries, axis=1))
    return Integral(
        outputs,
        status,
        # An output of the loop that had a gradient would make TensorFlow keep all of the loop.
        tf.stop_gradient(carry.time),
        carry.attempts,
        carry.accepted,
        carry.attempts * s + evaluations,
        grid,
        carry.checkpoints,
        carry.stages,
    )


def poison(xs, status):
    """`xs`, or NaN if the solve failed."""
    failed = tf.not_equal(status, int(Status.SUCCESS))
    return [None if x is None else x + _nan_where(failed, x.dtype, 0) for x in xs]


def _nan_where(condition, dtype, rank):
    """NaN where a scalar or vector holds, else 0, to be added along the first axis."""
    # Not as a constant, which `tf.debugging.enable_check_numerics` would find.
    value = tf.cast(tf.where(condition, -1.0, 0.0), dtype.real_dtype)
    value = tf.cast(tf.sqrt(value), dtype)
    return value if rank == 0 else tf.reshape(value, [-1] + [1] * (rank - 1))


def _first_failure(status, fine, failure):
    now = tf.logical_and(tf.equal(status, int(Status.SUCCESS)), tf.logical_not(fine))
    return tf.where(now, failure if tf.is_tensor(failure) else int(failure), status)


def _monotonic(ts):
    steps = ts[1:] - ts[:-1]
    one_way = tf.logical_or(tf.reduce_all(steps > 0), tf.reduce_all(steps < 0))
    return tf.logical_and(one_way, tf.reduce_all(tf.math.is_finite(ts)))


def _finite(xs):
    fine = tf.constant(True)
    for x in xs:
        # The magnitude is finite exactly if both parts of a complex number are.
        x = tf.abs(x) if x.dtype.is_complex else x
        fine = tf.logical_and(fine, tf.reduce_all(tf.math.is_finite(x)))
    return fine


def _select(condition, xs, ys):
    return [tf.where(condition, x, y) for x, y in zip(xs, ys)]


def _automatic_first_step(problem, slopes):
    """The first step after Hairer, Norsett and Wanner, Solving ODEs I, section II.4.

    One more evaluation of the dynamics, at an explicit Euler step.
    """
    controller, ys, ts = problem.controller, problem.ys, problem.ts
    magnitudes = [tf.abs(y) for y in ys]
    length = tf.abs(ts[-1] - ts[0])
    least = tf.maximum(10.0 * _EPSILON * tf.abs(ts[0]), 1e-20 * length)

    def norm(xs):
        # Squares overflow where a tolerance is far below an entry.
        return tf.minimum(controller.scaled_norm(xs, magnitudes), 1e100)

    size, slope = norm(ys), norm(slopes)
    small = tf.logical_or(size < 1e-5, slope < 1e-5)
    trial = tf.where(small, tf.constant(1e-6, tf.float64), 0.01 * size / tf.maximum(slope, 1e-5))
    trial = tf.minimum(tf.maximum(trial, least), length)
    h = tf.sign(ts[-1] - ts[0]) * trial
    euler = [y + tf.cast(h, y.dtype) * k for y, k in zip(ys, slopes)]
    ahead = problem.dynamics(ts[0] + h, euler)
    bend = norm([b - a for a, b in zip(slopes, ahead)]) / trial
    largest = tf.maximum(slope, bend)
    order = problem.tableau.order
    step = tf.where(
        largest <= 1e-15,
        tf.maximum(tf.constant(1e-6, tf.float64), trial * 1e-3),
        (0.01 / tf.maximum(largest, 1e-15)) ** (1.0 / (order + 1.0)),
    )
    step = tf.minimum(100.0 * trial, step)
    step = tf.where(tf.math.is_finite(step), step, trial)
    return tf.stop_gradient(tf.maximum(step, least))
