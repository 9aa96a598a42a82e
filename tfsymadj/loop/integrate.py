"""The forward loop: one `tf.while_loop` for fixed and adaptive steps and for every gradient."""

import functools
from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import add, compensated_sum, entry, epsilon, select
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.checkpoints.store import Kept, Store
from tfsymadj.dynamics.closing import apart
from tfsymadj.dynamics.mass import Rates, of_slopes
from tfsymadj.loop.failures import finite, first_failure, is_success, monotonic
from tfsymadj.loop.grid import Rest, Writer
from tfsymadj.loop.outputs import Reached, Taken
from tfsymadj.loop.problem import Outcome, Problem, Record
from tfsymadj.loop.watch import Lookout, Mark
from tfsymadj.solution import Stats, Status
from tfsymadj.steps.first_step import automatic_first_step, given_first_step
from tfsymadj.xla import compiled


def integrate(problem: Problem, recording: Recording | None = None) -> Outcome:
    """Solves the problem, and keeps what `recording` says."""
    loop = Loop(problem, recording)
    outcome = compiled(loop.run, problem.jit_compile)
    # An output of the loop that had a gradient would make TensorFlow keep all of the loop.
    outcome = outcome._replace(time=tf.stop_gradient(outcome.time))
    if loop.takes_all:
        stats = outcome.stats._replace(num_accepted=tf.constant(problem.max_steps))
        outcome = outcome._replace(stats=stats)
    return outcome


class _Carry(NamedTuple):
    """The loop's variables; lists are empty where something is not needed."""

    attempts: tf.Tensor
    accepted: tf.Tensor
    evaluations: list  # of one number, with a method whose steps count them
    stiff: list  # of the number of stiff steps, with a method that tells
    interval: tf.Tensor
    t: tf.Tensor
    ys: list
    lows: list  # of `ys`, lost by rounding: see `arithmetic.compensated_sum`
    first: list  # the dynamics at (t, ys), with a FSAL method
    held: list  # their activations, where these are kept
    control: Any
    status: tf.Tensor
    reached: tf.Tensor  # the last interval entered and the time, while all was well
    time: tf.Tensor
    moved: tf.Tensor  # whether the last step was accepted: `ys` is new
    outputs: list  # see `outputs`
    grid: list  # of one tensor, or tensor list
    kept: Kept
    rest: list  # of one `Rest`, of lanes
    seen: list  # of one `Seen`, where events are looked for


class _Trial(NamedTuple):
    """A step that was tried, and what it would lead to."""

    interval: tuple  # the times that it is between
    proposal: Any
    start: list  # the state that the step begins with
    step: Any
    ys: list
    lows: list
    extended: Any  # the step with the slopes for outputs inside
    activations: list  # of each evaluation, where they are kept


class _Verdict(NamedTuple):
    """What becomes of a trial."""

    accepted: tf.Tensor
    control: Any
    status: tf.Tensor


class Loop:
    """Start, try, judge, advance, finish.

    Attributes:
        takes_all: whether it is known, after the trace, that all of `max_steps` steps are taken.
    """

    def __init__(self, problem, recording):
        self._problem = problem
        self._lanes = problem.lanes
        self.takes_all = False
        self._adaptive = problem.controller.adaptive
        self._intervals = problem.intervals
        # Else it is a matter of the attempts.
        self._counts = problem.method.evaluations is None or problem.switches is not None
        with_rates = problem.with_time and recording is not None
        self._outputs = problem.outputs(with_rates or problem.clock is not None)
        self._lookout = None
        if problem.watch is not None:
            self._lookout = Lookout(problem.watch, problem.stops, problem.method, self._adaptive)
        self._recording = recording
        self._live = [] if recording is None else problem.dynamics.live
        self._halves = None if recording is None else recording.halves
        self._store = Store(
            recording or Recording(stride=1, rows=0), problem.method.stages, problem.lanes
        )
        of_stops = not self._outputs.interpolates and problem.stops.shape[0] != 2
        full = problem.with_time or problem.switches is not None or of_stops
        self._grid = Writer(problem.max_steps, problem.stops[0], full)
        if recording is not None and problem.lanes:
            problem.refuse_grid(self._grid.num_fields)

    def run(self):
        """The `Outcome`."""
        initial, evaluations = self.start()
        return self.finish(self._repeated(self.unfinished, initial), evaluations)

    def go_on(self, carry, worthwhile):
        """The variables of lanes after more attempts.

        Args:
            carry: those before.
            worthwhile: callable that says whether to try another step, of the lanes that have one.
        """
        return self._repeated(lambda c: worthwhile(self.running(c)), carry)

    def _repeated(self, unfinished, carry):
        (carry,) = tf.while_loop(
            unfinished,
            self.attempt,
            (carry,),
            parallel_iterations=1,
            maximum_iterations=self._problem.static_max_steps,
            name="integrate",
        )
        return carry

    @property
    def last_stop(self):
        """See `Problem`."""
        return self._problem.last_stop

    def start(self, outputs=None, new=None):
        """The loop's first variables, and the number of evaluations that they took.

        Args:
            outputs: those of other examples, to be written over in the lanes where `new` holds.
            new: boolean vector.
        """
        problem, ys, start = self._problem, self._problem.ys, self._problem.stops[0]
        fine = problem.valid
        if fine is None:  # from the first to the last of the stops
            fine = monotonic(problem.output_times)
        status = tf.where(fine, int(Status.SUCCESS), int(Status.TIMES_NOT_MONOTONIC))
        status = first_failure(status, finite(ys, self._lanes), Status.NON_FINITE_STATE)
        slopes, held, first_step, status, evaluations = self._first(status)
        seen = [] if self._lookout is None else [self._lookout.start(ys, slopes)]
        recorded, live = self._recording is not None, [ys[i] for i in self._live]
        none = tf.zeros_like(start, tf.int32)  # of each lane
        control = problem.controller.initial_state(first_step)
        if self._lanes:
            control = tf.nest.map_structure(
                lambda x: x if x.shape.rank else tf.fill(tf.shape(start), x), control
            )
        carry = _Carry(
            attempts=none,
            accepted=none,
            evaluations=[none] if self._counts else [],
            stiff=[none] if problem.method.tells_stiffness else [],
            interval=none + self._intervals.first,
            t=start,
            ys=list(ys),
            lows=[tf.zeros_like(y) for y in ys],
            first=slopes if problem.method.fsal else [],
            held=held if problem.method.fsal else [],
            control=control,
            status=status,
            reached=none,
            time=start,
            moved=tf.ones_like(start, tf.bool),
            outputs=(
                self._outputs.reserve(ys) if new is None else self._outputs.again(outputs, new, ys)
            ),
            grid=[self._grid.reserve()] if recorded else [],
            kept=self._store.empty(live) if recorded else Kept([], []),
            rest=[Rest(start, live)] if recorded and self._lanes else [],
            seen=seen,
        )
        return carry, evaluations

    def _first(self, status):
        """The first slopes, their activations and the first step's size, as far as they are
        needed.
        """
        problem, evaluations, slopes, held, first_step = self._problem, 0, [], [], None
        if problem.method.iterates:
            dynamics = self._intervals.of(problem.dynamics, self._intervals.first)
            suits = problem.method.suits(dynamics, problem.stops[0], problem.ys)
            status = first_failure(status, suits, Status.NEWTON_FAILED)
        automatic = self._adaptive and problem.first_step is None
        if problem.method.fsal or automatic or self._lookout is not None:
            dynamics = self._intervals.of(problem.dynamics, self._intervals.first)
            slopes, held = self._first_slopes(dynamics)
            evaluations += 1
            fine = finite(slopes, self._lanes)
            status = first_failure(status, fine, Status.NON_FINITE_DYNAMICS)
            rates = slopes
            if getattr(dynamics, "mass", None) is not None:
                parts = dynamics.mass.split_mass()
                status = self._consistent(dynamics, slopes, parts, status)
                dynamics, rates = Rates(dynamics, parts), of_slopes(parts, slopes)
        if automatic:
            first_step = automatic_first_step(
                dynamics,
                problem.controller,
                problem.method.order,
                problem.stops,
                problem.ys,
                rates,
                problem.measured,
            )
            evaluations += 1
        elif self._adaptive:
            first_step = given_first_step(problem.first_step, problem.stops[0])
        return slopes, held, first_step, status, evaluations

    def _first_slopes(self, dynamics):
        """The dynamics at the start, and their activations where they are needed."""
        # Outside of the loop, where the caller's tapes would see into it.
        t, ys = self._problem.stops[0], self._problem.ys
        if self._halves is None or not self._problem.method.fsal:
            return getattr(dynamics, "apart", dynamics)(t, ys), []

        def evaluate():
            slopes, held = self._halves.evaluate(t, ys)
            return [*slopes, *held]

        found = apart(evaluate, [*ys, *self._halves.zeros()])
        return found[: len(ys)], found[len(ys) :]

    def _consistent(self, dynamics, slopes, parts, status):
        """The status, unless the state at the start does not solve the algebraic equations."""
        problem, ys = self._problem, self._problem.ys
        missing = problem.method.correction(dynamics, problem.stops[0], ys, slopes, parts)
        if self._adaptive:
            fine = problem.controller.scaled_norm(missing, [tf.abs(y) for y in ys]) <= 1.0
        else:
            near = max(epsilon(y.dtype.real_dtype) for y in ys) ** 0.5
            fine = _largest(missing, self._lanes) <= near * _largest(ys, self._lanes)
        fine = tf.logical_and(fine, finite(missing, self._lanes))  # a maximum may pass over NaN
        return first_failure(status, fine, Status.INCONSISTENT_STATE)

    def unfinished(self, c):
        """Whether there is another step to be tried."""
        problem = self._problem
        if problem.known_length and problem.static_max_steps is not None:
            return True  # see `xla.repeated`
        bounded = c.attempts < problem.max_steps
        if problem.known_length:
            # However the solve goes: so the loop's counters don't depend on the state, and
            # `tf.vectorized_map` can tell.
            return bounded
        running = self.running(c)
        return tf.reduce_any(running) if self._lanes else running

    def running(self, c):
        """Whether there is another step to be tried, in each lane."""
        bounded, ongoing = c.attempts < self._problem.max_steps, is_success(c.status)
        for seen in c.seen:
            ongoing = tf.logical_and(ongoing, tf.logical_not(seen.mark.stopped))
        return tf.logical_and(
            bounded, tf.logical_and(ongoing, c.interval < self._problem.last_stop)
        )

    def attempt(self, c):
        """One step: the loop's body."""
        running = self.running(c) if self._lanes else None
        live = [c.ys[i] for i in self._live]
        kept = self._store.with_state(c.kept, c.accepted, live, c.moved, running)
        trial = self._try(c, running)
        verdict = self._judge(c, trial)
        if self._lanes:
            verdict = self._only_of(running, c, verdict)
        if self._outputs.interpolates and self._problem.method.extends:
            trial, verdict = self._extend(c, trial, verdict)
        verdict, seen = self._watched(c, trial, verdict)
        return (self._advance(c, trial, verdict, kept, seen, running),)

    def _interval(self, c):
        stops, m = self._problem.stops, c.interval
        if self._lanes:  # those that are done are in none
            m = tf.minimum(m, self._problem.num_stops - 2)
        return entry(stops, m), entry(stops, m + 1)

    def _only_of(self, running, c, verdict):
        """The verdict for lanes that there was a step of; those that are done stay as they are."""
        accepted = tf.logical_and(running, verdict.accepted)
        return _Verdict(
            # One that fails stays at its last finite state.
            tf.logical_and(accepted, is_success(verdict.status)),
            tf.nest.map_structure(
                lambda x, y: select(running, [x], [y])[0], verdict.control, c.control
            ),
            tf.where(running, verdict.status, c.status),
        )

    def _try(self, c, running):
        problem, interval = self._problem, self._interval(c)
        proposal = problem.controller.propose(c.control, c.t, *interval)
        if problem.max_step is not None:
            proposal = proposal.at_most(c.t, problem.max_step)
        if self._adaptive:
            for seen in c.seen:
                proposal = proposal.at_most(c.t, seen.most)
        if self._lanes:
            step = tf.where(running, proposal.step, tf.zeros_like(proposal.step))
            proposal = proposal._replace(step=step)
        dynamics, activations = self._intervals.of(problem.dynamics, c.interval), []
        if self._halves is not None:
            activations += [c.held] if c.held else []
            dynamics = self._halves.recorded(dynamics, activations)
        start, first = c.ys, c.first
        if problem.clock is not None:
            start, first = problem.clock.set(start, first, c.interval, proposal)
        step = problem.method.step(dynamics, c.t, proposal.step, start, first or None)
        ys, lows = compensated_sum(start, add(c.lows, step.increments))
        return _Trial(interval, proposal, start, step, ys, lows, step, activations)

    def _judge(self, c, trial):
        proposal, step, fine = trial.proposal, trial.step, finite(trial.ys, self._lanes)
        if self._adaptive:
            return self._judge_error(c, trial, fine)
        accepted, control = self._problem.controller.adapt(c.control, proposal, None)
        reason = tf.where(
            finite(step.increments, self._lanes),
            int(Status.NON_FINITE_STATE),
            int(Status.NON_FINITE_DYNAMICS),
        )
        fine, reason = _solved(step, fine, reason, self._lanes)
        return _Verdict(accepted, control, first_failure(c.status, fine, reason))

    def _judge_error(self, c, trial, fine):
        controller, proposal = self._problem.controller, trial.proposal
        measured = [x[: self._problem.measured] for x in (trial.step.errors, c.ys, trial.ys)]
        norm = tf.stop_gradient(controller.error_norm(*measured))
        if norm.shape.rank != self._lanes:
            raise ValueError(
                "`controller` must have an `error_norm` that returns one number for each example "
                f"with `batch_axis`, else one for all. Received: shape {norm.shape} of {controller}"
            )
        fine = tf.logical_and(fine, tf.math.is_finite(norm))
        failure = int(Status.NON_FINITE_DYNAMICS)
        fine, failure = _solved(trial.step, fine, failure, self._lanes)
        # Or infinity: not as a constant, which `enable_check_numerics` would find.
        one = tf.ones([], tf.float64)
        norm = tf.where(fine, norm, one) / tf.cast(fine, tf.float64)
        accepted, control = controller.adapt(c.control, proposal, norm)
        accepted = tf.logical_and(accepted, fine)
        again = controller.propose(control, c.t, *trial.interval).step
        small = tf.logical_or(tf.equal(c.t + again, c.t), tf.abs(again) < self._problem.min_step)
        stays = tf.equal(proposal.end, c.t)
        accepted = tf.logical_and(accepted, tf.logical_not(stays))
        stuck = tf.logical_or(stays, tf.logical_and(small, tf.logical_not(accepted)))
        reason = tf.where(fine, int(Status.STEP_UNDERFLOW), failure)
        return _Verdict(accepted, control, tf.where(stuck, reason, c.status))

    def _extend(self, c, trial, verdict):
        """What outputs inside of a step take, if it is accepted and there are any."""
        problem, h, end = self._problem, trial.proposal.step, trial.proposal.end
        dynamics = self._intervals.of(problem.dynamics, c.interval)
        wanted = self._outputs.ahead(c.outputs, verdict.accepted, end, tf.sign(h))
        if self._lookout is not None:
            wanted = verdict.accepted
        of_any = tf.reduce_any(wanted) if self._lanes else wanted
        step = problem.method.extended(dynamics, c.t, h, trial.start, trial.step, of_any)
        fine = finite(tf.nest.flatten(step.slopes[len(trial.step.slopes) :]), self._lanes)
        if self._lanes:
            fine = tf.logical_or(fine, tf.logical_not(wanted))
            counted = tf.where(wanted, step.evaluations, trial.step.evaluations)
            step = step._replace(evaluations=counted)
        verdict = verdict._replace(
            accepted=tf.logical_and(verdict.accepted, fine),
            status=first_failure(verdict.status, fine, Status.NON_FINITE_DYNAMICS),
        )
        return trial._replace(extended=step), verdict

    def _watched(self, c, trial, verdict):
        """The verdict after a look at the events, and what was seen."""
        if self._lookout is None:
            return verdict, []
        (seen,), accepted = c.seen, verdict.accepted
        seen, taken = self._lookout.look(seen, accepted, c.accepted, c.interval, c.t, c.ys, trial)
        # The controller learns nothing from a step that is tried again for an event's sake.
        again = tf.logical_and(accepted, tf.logical_not(tf.logical_or(taken, seen.mark.stopped)))
        control = tf.nest.map_structure(
            lambda old, new: select(again, [old], [new])[0], c.control, verdict.control
        )
        verdict = _Verdict(
            taken, control, first_failure(verdict.status, seen.valid, Status.NON_FINITE_EVENT)
        )
        return verdict, [seen]

    def _advance(self, c, trial, verdict, kept, seen, running):
        _, proposal, start, step, ys, lows, extended, activations = trial
        accepted, control, status = verdict
        method = self._problem.method
        if tf.get_static_value(accepted):  # nothing is ever rejected
            problem = self._problem
            self.takes_all = problem.known_length and problem.static_max_steps is not None
        else:
            ys, lows = select(accepted, ys, c.ys), select(accepted, lows, c.lows)
        t = tf.where(accepted, proposal.end, c.t)
        arrives = tf.logical_and(accepted, proposal.hits_end)
        interval = tf.where(arrives, self._intervals.following(c.interval), c.interval)
        well = is_success(status)
        first = select(accepted, step.slopes[-1], c.first) if c.first else []
        held = select(accepted, activations[-1], c.held) if c.held else []
        evaluations = extended.evaluations
        if self._problem.switches is not None:
            control, first, more = self._after_jump(arrives, interval, t, ys, control, first)
            evaluations = evaluations + more
        if self._halves is None:
            stages = [[stage[i] for stage in extended.stages] for i in self._live]
        else:
            stages = activations[: method.stages]
        tried, rest = 1, []
        if self._lanes:
            tried = tf.cast(running, tf.int32)
            evaluations *= tried
            rest = [
                Rest(
                    tf.where(accepted, c.t, r.t),
                    select(accepted, [c.ys[i] for i in self._live], r.ys),
                )
                for r in c.rest
            ]
        return _Carry(
            attempts=c.attempts + tried,
            accepted=c.accepted + _ones(accepted),
            evaluations=[n + evaluations for n in c.evaluations],
            stiff=[
                n + _ones(accepted, method.is_stiff(proposal.step, step, self._problem.measured))
                for n in c.stiff
            ],
            interval=interval,
            t=t,
            ys=ys,
            lows=lows,
            first=first,
            held=held,
            control=control,
            status=status,
            reached=tf.where(well, interval, c.reached),
            time=tf.where(well, t, c.time),
            moved=accepted,
            outputs=self._outputs.write(
                c.outputs,
                Taken(
                    accepted, c.accepted, c.interval, c.t, start, proposal, extended.slopes, t, ys
                ),
            ),
            grid=[self._grid.write(rows, c.accepted, c.t, c.interval, proposal) for rows in c.grid],
            kept=self._store.with_stages(kept, c.accepted, stages, running),
            rest=rest,
            seen=seen,
        )

    def _after_jump(self, arrives, interval, t, ys, control, first):
        """The controller's state and the first slope where the dynamics may have jumped, and the
        number of evaluations that this took.
        """
        problem = self._problem
        jumps = tf.logical_and(arrives, self._intervals.begins_with_jump(interval))
        restarted = problem.controller.restarted(control)
        control = tf.nest.map_structure(lambda a, b: tf.where(jumps, a, b), restarted, control)
        # There is none after the last stop.
        jumps = tf.logical_and(jumps, interval < problem.num_stops - 1)
        if not first:
            return control, first, 0

        def evaluate():
            return self._intervals.of(problem.dynamics, interval)(t, ys)

        if self._lanes:
            new = tf.cond(tf.reduce_any(jumps), evaluate, lambda: first)
            return control, select(jumps, new, first), tf.cast(jumps, tf.int32)
        return control, tf.cond(jumps, evaluate, lambda: first), tf.cast(jumps, tf.int32)

    def finish(self, c, evaluations):
        """`Outcome` of the loop's last variables."""
        problem = self._problem
        ended = tf.equal(c.interval, problem.last_stop)
        mark = None
        if c.seen:
            mark = self._mark(c.seen[0].mark)
            ended = tf.logical_or(ended, mark.stopped)
        status = first_failure(c.status, ended, Status.MAX_STEPS_REACHED)
        short = tf.logical_not(is_success(status))
        if mark is not None:
            short = tf.logical_or(short, mark.stopped)
        counted = c.evaluations[0] if self._counts else c.attempts * problem.method.evaluations
        last = Reached(short, c.reached, c.accepted, c.ys, c.t, c.time)
        outputs, rates, times = self._outputs.read(c.outputs, problem.ys, last)
        if problem.clock is not None:
            outputs = problem.clock.of_outputs(outputs, rates)
        kept = None
        if self._recording is not None:
            kept = self._record(c, status, rates)
        return Outcome(
            ys=outputs,
            status=status,
            time=c.time,
            stats=Stats(
                num_steps=c.attempts,
                num_accepted=c.accepted,
                num_rejected=c.attempts - c.accepted,
                num_evaluations=counted + evaluations,
                num_backward_evaluations=tf.zeros([], tf.int32),
                num_states=tf.zeros([], tf.int32),
                num_stiff=c.stiff[0] if c.stiff else -tf.ones_like(c.attempts),
            ),
            record=kept,
            times=times,
            mark=mark,
        )

    def _record(self, c, status, rates):
        accepted, rest = c.accepted, None
        if self._lanes:
            # One that failed has no step in a backward pass, and rests where one does that did not.
            fine = is_success(status)
            one_more = tf.pad(tf.cast(fine, tf.int32), [[0, 1]])  # there may be none at all
            other = tf.argmax(one_more, output_type=tf.int32)
            accepted = tf.where(fine, accepted, 0)
            rest = tf.nest.map_structure(
                lambda x: select(fine, [x], [tf.gather(x, other + tf.zeros_like(accepted))])[0],
                c.rest[0],
            )
        kept = self._store.closed(c.kept)
        return Record(self._grid.read(c.grid[0], accepted, rest), kept, rates, c.ys, c.t, rest)

    def _mark(self, mark: Mark):
        """The mark, with the derivative of its time for the stops."""
        # What is not held constant would be differentiated through the whole loop.
        constants = tf.nest.map_structure(tf.stop_gradient, mark._replace(ys=[]))
        start, end = self._interval(constants)
        moves = (1.0 - constants.fraction) * start + constants.fraction * end
        t = constants.t + (moves - tf.stop_gradient(moves))
        return constants._replace(t=t, ys=mark.ys)


def _ones(*conditions):
    """int32, 1 where all of the conditions hold."""
    return tf.cast(functools.reduce(tf.logical_and, conditions), tf.int32)


def _largest(xs, lanes):
    """The largest magnitude in a list of tensors, float64, or one for each lane."""
    found = [tf.reduce_max(tf.abs(x), list(range(1, x.shape.rank)) if lanes else None) for x in xs]
    return tf.reduce_max(tf.stack([tf.cast(x, tf.float64) for x in found]), 0)


def _solved(step, fine, reason, lanes):
    """Whether a step is fine and its equations are solved, and the reason if not."""
    if step.converged is None:
        return fine, reason
    solved = step.converged if lanes else tf.reduce_all(step.converged)
    lost = tf.logical_and(finite(step.increments, lanes), tf.logical_not(solved))
    return tf.logical_and(fine, solved), tf.where(lost, int(Status.NEWTON_FAILED), reason)
