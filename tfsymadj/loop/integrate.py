"""The forward loop: one `tf.while_loop` for fixed and adaptive steps and for every gradient."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import add, compensated_sum, select
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.checkpoints.store import Kept, Store
from tfsymadj.loop import grid
from tfsymadj.loop.failures import finite, first_failure, is_success, monotonic
from tfsymadj.loop.outputs import Reached, Taken, outputs_of
from tfsymadj.loop.problem import Outcome, Problem, Record
from tfsymadj.solution import Stats, Status
from tfsymadj.steps.first_step import automatic_first_step, given_first_step


def integrate(problem: Problem, recording: Recording | None = None) -> Outcome:
    """Solves the problem, and keeps what `recording` says."""
    loop = _Loop(problem, recording)
    initial, evaluations = loop.start()
    (carry,) = tf.while_loop(
        loop.unfinished,
        loop.attempt,
        (initial,),
        parallel_iterations=1,
        maximum_iterations=problem.static_max_steps,
        name="integrate",
    )
    return loop.finish(carry, evaluations)


class _Carry(NamedTuple):
    """The loop's variables; lists are empty where something is not needed."""

    attempts: tf.Tensor
    accepted: tf.Tensor
    evaluations: list  # of one number, with a method whose steps count them
    interval: tf.Tensor
    t: tf.Tensor
    ys: list
    lows: list  # of `ys`, lost by rounding: see `arithmetic.compensated_sum`
    first: list  # the dynamics at (t, ys), with a FSAL method
    control: Any
    status: tf.Tensor
    reached: tf.Tensor  # the last interval entered and the time, while all was well
    time: tf.Tensor
    moved: tf.Tensor  # whether the last step was accepted: `ys` is new
    outputs: list  # see `outputs`
    grid: list  # of one tensor list
    kept: Kept


class _Trial(NamedTuple):
    """A step that was tried, and what it would lead to."""

    proposal: Any
    step: Any
    ys: list
    lows: list
    extended: Any  # the step with the slopes for outputs inside


class _Verdict(NamedTuple):
    """What becomes of a trial."""

    accepted: tf.Tensor
    control: Any
    status: tf.Tensor


class _Loop:
    """Start, try, judge, advance, finish."""

    def __init__(self, problem, recording):
        self._problem = problem
        self._adaptive = problem.controller.adaptive
        self._outputs = outputs_of(problem, problem.with_time and recording is not None)
        self._recording = recording
        self._live = [] if recording is None else problem.dynamics.live
        self._store = Store(recording or Recording(stride=1, rows=0), problem.method.stages)

    def start(self):
        """The loop's first variables, and the number of evaluations that they took."""
        problem, ys, start = self._problem, self._problem.ys, self._problem.stops[0]
        fine = monotonic(problem.output_times)  # from the first to the last of the stops
        status = tf.where(fine, int(Status.SUCCESS), int(Status.TIMES_NOT_MONOTONIC))
        status = first_failure(status, finite(ys), Status.NON_FINITE_STATE)
        slopes, first_step, status, evaluations = self._first(status)
        recorded = self._recording is not None
        carry = _Carry(
            attempts=tf.zeros([], tf.int32),
            accepted=tf.zeros([], tf.int32),
            evaluations=[] if problem.method.evaluations is not None else [tf.zeros([], tf.int32)],
            interval=tf.zeros([], tf.int32),
            t=start,
            ys=list(ys),
            lows=[tf.zeros_like(y) for y in ys],
            first=slopes,
            control=problem.controller.initial_state(first_step),
            status=status,
            reached=tf.zeros([], tf.int32),
            time=start,
            moved=tf.constant(True),
            outputs=self._outputs.reserve(ys),
            grid=[grid.reserve(problem.max_steps)] if recorded else [],
            kept=self._store.empty([ys[i] for i in self._live]) if recorded else Kept([], []),
        )
        return carry, evaluations

    def _first(self, status):
        """The first slopes and the first step's size, as far as they are needed."""
        if not self._adaptive:
            return [], None, status, 0
        problem, evaluations, slopes = self._problem, 0, []
        if problem.method.fsal or problem.first_step is None:
            # Outside of the loop, where the caller's tapes would see into it.
            apart = getattr(problem.dynamics, "apart", problem.dynamics)
            slopes = apart(problem.stops[0], problem.ys)
            evaluations += 1
            status = first_failure(status, finite(slopes), Status.NON_FINITE_DYNAMICS)
        if problem.first_step is None:
            first_step = automatic_first_step(
                problem.dynamics, problem.controller, problem.method.order, problem.stops,
                problem.ys, slopes,
            )  # fmt: skip
            evaluations += 1
        else:
            first_step = given_first_step(problem.first_step, problem.stops[0])
        return slopes if problem.method.fsal else [], first_step, status, evaluations

    def unfinished(self, c):
        """Whether there is another step to be tried."""
        problem = self._problem
        bounded = c.attempts < problem.max_steps
        if problem.known_length:
            # However the solve goes: so the loop's counters don't depend on the state, and
            # `tf.vectorized_map` can tell.
            return bounded
        ongoing = is_success(c.status)
        return tf.logical_and(bounded, tf.logical_and(ongoing, c.interval < problem.num_stops - 1))

    def attempt(self, c):
        """One step: the loop's body."""
        kept = self._store.with_state(c.kept, c.accepted, [c.ys[i] for i in self._live], c.moved)
        trial = self._try(c)
        verdict = self._judge(c, trial)
        if self._outputs.interpolates and self._problem.method.extends:
            trial, verdict = self._extend(c, trial, verdict)
        return (self._advance(c, trial, verdict, kept),)

    def _interval(self, c):
        stops = self._problem.stops
        return stops[c.interval], stops[c.interval + 1]

    def _try(self, c):
        problem = self._problem
        proposal = problem.controller.propose(c.control, c.t, *self._interval(c))
        if problem.max_step is not None:
            proposal = proposal.at_most(c.t, problem.max_step)
        step = problem.method.step(problem.dynamics, c.t, proposal.step, c.ys, c.first or None)
        ys, lows = compensated_sum(c.ys, add(c.lows, step.increments))
        return _Trial(proposal, step, ys, lows, extended=step)

    def _judge(self, c, trial):
        proposal, step, fine = trial.proposal, trial.step, finite(trial.ys)
        if self._adaptive:
            return self._judge_error(c, trial, fine)
        accepted, control = self._problem.controller.adapt(c.control, proposal, None)
        reason = tf.where(
            finite(step.increments),
            int(Status.NON_FINITE_STATE),
            int(Status.NON_FINITE_DYNAMICS),
        )
        return _Verdict(accepted, control, first_failure(c.status, fine, reason))

    def _judge_error(self, c, trial, fine):
        controller, proposal = self._problem.controller, trial.proposal
        norm = tf.stop_gradient(controller.error_norm(trial.step.errors, c.ys, trial.ys))
        fine = tf.logical_and(fine, tf.math.is_finite(norm))
        # Or infinity: not as a constant, which `enable_check_numerics` would find.
        one = tf.ones([], tf.float64)
        norm = tf.where(fine, norm, one) / tf.cast(fine, tf.float64)
        accepted, control = controller.adapt(c.control, proposal, norm)
        accepted = tf.logical_and(accepted, fine)
        again = controller.propose(control, c.t, *self._interval(c)).step
        small = tf.logical_or(tf.equal(c.t + again, c.t), tf.abs(again) < self._problem.min_step)
        stays = tf.equal(proposal.end, c.t)
        accepted = tf.logical_and(accepted, tf.logical_not(stays))
        stuck = tf.logical_or(stays, tf.logical_and(small, tf.logical_not(accepted)))
        reason = tf.where(fine, int(Status.STEP_UNDERFLOW), int(Status.NON_FINITE_DYNAMICS))
        return _Verdict(accepted, control, tf.where(stuck, reason, c.status))

    def _extend(self, c, trial, verdict):
        """What outputs inside of a step take, if it is accepted and there are any."""
        problem, h, end = self._problem, trial.proposal.step, trial.proposal.end
        wanted = self._outputs.ahead(c.outputs, verdict.accepted, end, tf.sign(h))
        step = problem.method.extended(problem.dynamics, c.t, h, c.ys, trial.step, wanted)
        fine = finite(tf.nest.flatten(step.slopes[len(trial.step.slopes) :]))
        verdict = verdict._replace(
            accepted=tf.logical_and(verdict.accepted, fine),
            status=first_failure(verdict.status, fine, Status.NON_FINITE_DYNAMICS),
        )
        return trial._replace(extended=step), verdict

    def _advance(self, c, trial, verdict, kept):
        proposal, step, ys, lows, extended = trial
        accepted, control, status = verdict
        if tf.get_static_value(accepted) is not True:  # else nothing is ever rejected
            ys, lows = select(accepted, ys, c.ys), select(accepted, lows, c.lows)
        t = tf.where(accepted, proposal.end, c.t)
        interval = c.interval + tf.cast(tf.logical_and(accepted, proposal.hits_end), tf.int32)
        well = is_success(status)
        stages = [[stage[i] for stage in extended.stages] for i in self._live]
        slopes = extended.slopes
        return _Carry(
            attempts=c.attempts + 1,
            accepted=c.accepted + tf.cast(accepted, tf.int32),
            evaluations=[n + extended.evaluations for n in c.evaluations],
            interval=interval,
            t=t,
            ys=ys,
            lows=lows,
            first=select(accepted, step.slopes[-1], c.first) if c.first else [],
            control=control,
            status=status,
            reached=tf.where(well, interval, c.reached),
            time=tf.where(well, t, c.time),
            moved=accepted,
            outputs=self._outputs.write(
                c.outputs,
                Taken(accepted, c.accepted, c.interval, c.t, c.ys, proposal, slopes, t, ys),
            ),
            grid=[grid.write(rows, c.accepted, c.t, c.interval, proposal) for rows in c.grid],
            kept=self._store.with_stages(kept, c.accepted, stages),
        )

    def finish(self, c, evaluations):
        """`Outcome` of the loop's last variables."""
        problem = self._problem
        arrived = tf.equal(c.interval, problem.num_stops - 1)
        status = first_failure(c.status, arrived, Status.MAX_STEPS_REACHED)
        failed = tf.logical_not(is_success(status))
        each = problem.method.evaluations
        counted = c.evaluations[0] if each is None else c.attempts * each
        last = Reached(failed, c.reached, c.accepted, c.ys, c.t, c.time)
        outputs, rates, times = self._outputs.read(c.outputs, problem.ys, last)
        kept = None
        if self._recording is not None:
            kept = Record(grid.read(c.grid[0]), c.kept, rates)
        return Outcome(
            ys=outputs,
            status=status,
            # An output of the loop that had a gradient would make TensorFlow keep all of the loop.
            time=tf.stop_gradient(c.time),
            stats=Stats(
                num_steps=c.attempts,
                num_accepted=c.accepted,
                num_rejected=c.attempts - c.accepted,
                num_evaluations=counted + evaluations,
                num_backward_evaluations=tf.zeros([], tf.int32),
            ),
            record=kept,
            times=times,
        )
