"""The backward sweep over the recorded steps, last step first."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import (
    accumulator,
    add,
    add_terms,
    after,
    compensated_sum,
    inner,
    only_where,
    quotient,
    select,
)
from tfsymadj.checkpoints.store import Activations, LaneRing, Lists, Ring
from tfsymadj.dynamics.closing import LiveDynamics, Sources
from tfsymadj.loop.failures import is_success
from tfsymadj.loop.grid import to_stops
from tfsymadj.xla import repeated, static_int


class _Adjoint(NamedTuple):
    """What the backward loops carry."""

    totals: Sources  # lambda, the gradients of what the dynamics read, and of the stops
    lows: Sources  # of `totals`, but for the stops: see `arithmetic.compensated_sum`
    inside: list  # `StepCotangents` of the next step, where outputs lie inside of steps


class Sweep:
    """The symplectic adjoint over the accepted steps of one solve, segment by segment.

    Args:
        problem: `Problem`.
        recording: `Recording`.
        outcome: `Outcome` of the forward pass.
        cotangents: list of tensors like `outcome.states`.
    """

    def __init__(self, problem, recording, outcome, cotangents):
        self._problem = problem
        self._dynamics = problem.dynamics
        self._live = [problem.ys[i] for i in problem.dynamics.live]
        # The FSAL row and the error estimate are of no use to the derivative.
        self._method = problem.method.without_error()
        self._outputs = problem.outputs()
        self._intervals = problem.intervals
        self._recording, self._halves = recording, recording.halves
        record = outcome.record
        self._grid, self._kept, self._rest = record.grid, record.kept, record.rest
        self._accepted = static_int(outcome.stats.num_accepted)
        self._written = static_int(outcome.num_written)
        #: The number of steps of each lane; there are as many as of the longest.
        self._counts = self._accepted
        if problem.lanes:
            fine = is_success(outcome.status)
            self._counts = tf.where(fine, self._accepted, 0)
            self._written = tf.reduce_max(tf.where(fine, self._written, 0))
            self._accepted = tf.reduce_max(self._counts)
        count = len(outcome.ys)
        self._cotangents, self._of_mark = cotangents[:count], cotangents[count:]
        self._mark = outcome.mark
        self._within = None  # what is inside of steps
        if self._outputs.interpolates:
            self._end, self._end_time = record.end, record.time
            self._within = self._outputs.within(
                self._grid, self._counts, self._cotangents, record.rates
            )

    def run(self):
        """The gradients, `Sources`."""
        problem, dynamics = self._problem, self._dynamics
        last = self._outputs.last_cotangents(self._cotangents, self._counts)
        sums = Sources(last, dynamics.captured, dynamics.variables, [])
        stops = [tf.zeros_like(problem.stops)] if problem.with_time else []
        state = _Adjoint(
            totals=tf.nest.map_structure(accumulator, sums)._replace(ys=last, times=stops),
            lows=tf.nest.map_structure(accumulator, sums),
            inside=[],
        )
        if self._outputs.interpolates and not self._method.extends:
            state = self._from_the_end(state)
        totals = self.over_steps(state).totals

        def in_dtype_of(inputs, gradients):
            return [tf.cast(g, x.dtype) for g, x in zip(gradients, inputs)]

        return Sources(
            self._with_mark(0, [a + g[0] for a, g in zip(totals.ys, self._cotangents)]),
            in_dtype_of(dynamics.captured, totals.captured),
            in_dtype_of(dynamics.variables, totals.variables),
            self._times(totals) if problem.with_time else [],
        )

    def over_steps(self, state):
        """The adjoint over all steps, by what the recording has of them."""
        problem, recording = self._problem, self._recording
        first = recording.num_not_kept(self._accepted, self._written)
        kept = self._accepted - first
        together = (
            recording.keeps_steps
            and recording.keeps_states
            and recording.restores_rows
            and not (self._single or problem.lanes or isinstance(first, int))
        )
        if recording.keeps_steps and not together:
            values, rows = self._kept_values()
            with _ready(state):
                state = self._adjoint_steps(first, kept, values, rows, state)
        if recording.keeps_states:
            with _ready(state):
                state = self._segments(first, state, kept if together else None)
        return state

    def _kept_values(self):
        """The values of the last steps, and where they are."""
        ring, rows = self._recording.ring, self._kept.steps
        if self._halves is not None:
            return Activations(self._halves, ring, self._method.stages), rows
        return LaneRing(ring, self._or_at_rest) if self._problem.lanes else Ring(ring), rows

    def _times(self, totals):
        """The gradients for the times of all kinds."""
        (stops,) = totals.times
        if self._within is None:
            return [stops]
        if self._within.last_time is not None:
            last = self._problem.num_stops - 1
            stops += self._within.last_time * tf.one_hot(last, last + 1, dtype=tf.float64)
        return [stops, *self._within.rates]

    def _segments(self, steps, state, kept=None):
        """The adjoint over the first `steps`, segment by segment: recompute the values, then it.

        Args:
            steps: int, or int32 scalar.
            state: `_Adjoint`.
            kept: of how many steps after these the values are in the ring, and the adjoint is still
                to be taken: by the same code, of which there is a great deal. None: it was.
        """
        recording = self._recording
        stride, like = recording.stride, self._live
        # One place for all segments: what an earlier segment left is overwritten.
        if self._single:
            values, rows = None, []
        elif recording.keeps_steps and not self._problem.lanes:
            values, rows = self._kept_values()
            if self._halves is not None:
                rows = values.reserve() if kept is None else values.opened(rows)
        else:
            values = Lists(stride, recording.num_values(self._method.stages))
            rows = values.reserve(after(state.totals.ys, [tf.zeros_like(x) for x in like]))

        states = self._kept.states
        if self._problem.lanes:
            states = [
                tf.reshape(s, tf.concat([[-1], tf.shape(y)], 0)) for s, y in zip(states, like)
            ]

        def advance(begin, end, ys):
            return self._advance(begin * stride, end * stride, ys)

        def segment(q, length, variables):
            held, rows, state = variables
            begin, again = q * stride, length
            if kept is not None:  # those in the ring have their turn first
                own, begin = tf.equal(q, count), tf.minimum(begin, steps)
                length, again = tf.where(own, kept, length), tf.where(own, 0, length)
                q = tf.minimum(q, tf.maximum(count - 1, 0))
            ys, held = recording.restore(q, held, states, like, advance)
            ys = self._or_at_rest(begin, ys)
            if self._single:
                return held, rows, self._adjoint_from_state(begin, ys, state)
            if kept is not None and recording.tapes_steps:
                ys = select(own, values.of_step(rows, begin, like)(0), ys)
            rows = self._recompute(begin, again, ys, values, rows)
            return held, rows, self._adjoint_steps(begin, length, values, rows, state)

        written = self._counts if self._problem.lanes else self._written
        variables = recording.held(states, -(-written // stride)), rows, state
        if isinstance(steps, int) and isinstance(stride, int):
            # The shorter one by itself, so that XLA knows the length of all loops.
            count, rest = divmod(steps, stride)
            if rest:
                variables = segment(count, rest, variables)
        else:
            count = -(-steps // stride)
        more = int(kept is not None)

        def body(i, variables):
            q = count - 1 + more - i
            length = stride if isinstance(count, int) else tf.minimum(stride, steps - q * stride)
            return segment(q, length, variables)

        bound = _segment_bound(self._problem, recording)
        _, _, state = repeated(
            count + more,
            body,
            variables,
            "segments",
            bound=bound if bound is None else bound + more,
            overlap=2,  # the next segment's steps beside this one's adjoint
        )
        return state

    @property
    def _single(self):
        """Whether segments are known to be of one step."""
        return _static(self._recording.stride) == 1

    def _or_at_rest(self, n, ys):
        """The state before step n, of lanes that have none the one at which they rest."""
        if self._rest is None:
            return ys
        return select(n < self._counts, ys, self._rest.ys)

    def _whole(self, ys):
        """The state with these live parts; the dynamics don't depend on the others."""
        return LiveDynamics(self._dynamics, self._problem.ys).whole(ys)

    def _dynamics_of(self, n):
        if self._problem.switches is None:
            return self._dynamics
        return self._intervals.of(self._dynamics, self._grid.interval_of(n))

    def _live_slopes(self, n):
        """The dynamics of the live parts of the state, where step n is."""
        return LiveDynamics(self._dynamics_of(n), self._problem.ys)

    def _step(self, n, ys):
        """A step of the live parts of the state."""
        return self._method.step(self._live_slopes(n), self._grid.start(n), self._grid.size(n), ys)

    def _stages(self, n, ys):
        """The step, and its stage values, those for outputs inside of it included, or their
        activations.
        """
        if self._halves is not None:
            activations = []
            recorded = self._halves.recorded(self._dynamics, activations)
            dynamics = LiveDynamics(recorded, self._problem.ys)
            step = self._method.step(dynamics, self._grid.start(n), self._grid.size(n), ys)
            return step, activations
        step = self._step(n, ys)
        if self._method.extends and self._within is not None:
            step = self._method.extended(
                self._live_slopes(n), self._grid.start(n), self._grid.size(n), ys, step,
                self._wanted(n), last=False,
            )  # fmt: skip
        return step, step.stages

    def _wanted(self, n):
        """Whether step n has to have the rows of the continuous extension."""
        return self._within.wanted(n)

    def _advance(self, begin, end, ys):
        """The state before the step `end`, from the one before the step `begin`."""
        lanes = self._problem.lanes

        def advance(n, ys):
            new = self._step(n, ys).ys
            if not lanes:
                return n + 1, new
            moves = n < end
            return n + tf.cast(moves, tf.int32), select(moves, new, ys)

        _, ys = tf.while_loop(
            lambda n, ys: tf.reduce_any(n < end) if lanes else n < end,
            advance,
            (begin, ys),
            parallel_iterations=1,
            maximum_iterations=self._problem.static_max_steps,
            name="advance",
        )
        return ys

    def _recompute(self, begin, count, ys, values, rows):
        """`rows` with the values of `count` steps from the state `ys` on."""
        bound = _static(self._recording.stride)
        if self._recording.tapes_steps:  # the state after the last step is not needed

            def state_after(i, variables):
                ys, rows = variables
                ys = self._or_at_rest(begin + i + 1, self._step(begin + i, ys).ys)
                return ys, values.set(rows, begin + i + 1, [ys])

            variables = ys, values.set(rows, begin, [ys])
            return repeated(count - 1, state_after, variables, "recompute", bound)[1]

        def stages_of(i, variables):
            ys, rows = variables
            step, of_stages = self._stages(begin + i, ys)
            rows = values.set(rows, begin + i, of_stages)
            return self._or_at_rest(begin + i + 1, step.ys), rows

        return repeated(count, stages_of, (ys, rows), "recompute", bound)[1]

    def _adjoint_steps(self, begin, count, values, rows, state):
        """The adjoint over `count` steps from `begin` on, last first."""

        def body(i, state):
            n = begin + count - 1 - i
            return self._adjoint_step(n, values.of_step(rows, n, self._live), state)

        bound, overlap = _static(self._recording.stride), 1 + self._recording.tapes_steps
        return repeated(count, body, state, "adjoint", bound, overlap)

    def _adjoint_from_state(self, n, ys, state):
        """The adjoint over the step n, from the state before it, whose values are used at once."""
        if self._recording.tapes_steps:
            return self._adjoint_step(n, lambda _: ys, state)
        _, of_stages = self._stages(n, ys)
        if self._halves is not None:
            return self._adjoint_step(n, of_stages.__getitem__, state)
        stages = [tf.stack(x) for x in zip(*of_stages)]
        return self._adjoint_step(n, lambda i: [tf.gather(x, i) for x in stages], state)

    def _adjoint_step(self, n, value, state):
        """The adjoint over the step n, from its values: `value(i)`, their live parts."""
        if self._halves is not None:
            return self._differentiate(n, self._replayed, value, state)
        if self._recording.tapes_steps:
            return self._differentiate(n, self._method.vjp, self._whole(value(0)), state)
        return self._differentiate(n, self._method.adjoint, lambda i: self._whole(value(i)), state)

    def _replayed(self, dynamics, t, h, value, adjoints, sums, with_time, slopes=None):
        """`Method.adjoint` from activations: `value(i)`."""

        def vjp(i, cotangents):
            return self._halves.vjp(dynamics, value(i), cotangents)

        return self._method.replayed(vjp, h, adjoints, sums, with_time, slopes)

    def _differentiate(self, n, rule, start, state):
        """The step n by `Method.adjoint` from its stages, or by `Method.vjp` from the state."""
        grid, problem, totals = self._grid, self._problem, state.totals
        adjoints = self._outputs.add_cotangents(
            totals.ys, self._cotangents, grid, n, self._accepted
        )
        adjoints = self._with_mark(n + 1, adjoints)
        here, slopes, before, jumps = None, [], [], None  # not every method need know of slopes
        if state.inside:
            here, before = state.inside[0], [self._inside(n - 1)]
            jumps, shared = self._begins_with_jump(n), before[0].last
            if jumps is not None:
                shared = only_where(tf.logical_not(jumps), shared)
            if problem.lanes:
                shared = only_where(n < self._counts, shared)
            slopes = [here.of_stages(shared)]
        elif self._outputs.interpolates:
            here = self._inside(n)
            slopes = [here.of_rows(self._wanted(n))]
        sums = rule(
            self._dynamics_of(n), grid.start(n), grid.size(n), start, adjoints, state.lows,
            problem.with_time, *slopes,
        )  # fmt: skip
        times, sums = sums.times, sums._replace(times=[])
        if here is not None:
            sums = sums._replace(ys=add(sums.ys, here.ys))
            if problem.with_time:
                time, size, *products = times
                times = [time + here.start, size + here.step]
                for b, product in zip(before, products):
                    # The last slope of the step before is this one's first, but goes with its size.
                    earlier = b.step + quotient(product, grid.size(tf.maximum(n - 1, 0)))
                    before = [b._replace(step=earlier)]
            if jumps is not None:
                ys = start(0) if callable(start) else start
                before, sums = self._last_slope(jumps, n - 1, grid.start(n), ys, before, sums)
        return self._before(state, n, adjoints, sums._replace(times=times), before)

    def _before(self, state, n, adjoints, sums, inside):
        """`_Adjoint` before step n, from that after it and from what its adjoint returned."""
        totals = state.totals._replace(ys=adjoints, times=[])
        totals, lows = compensated_sum(totals, sums._replace(times=[]))
        stops = [to_stops(self._grid, g, n, *sums.times) for g in state.totals.times]
        return _Adjoint(totals._replace(times=stops), lows, inside)

    def _inside(self, n):
        """`StepCotangents` of step n; of none for n = -1."""
        return self._within.of_step(n)

    def _with_mark(self, n, adjoints):
        """The adjoint before step n, with the cotangent of the mark if that is where it is."""
        if self._mark is None:
            return adjoints
        here = tf.equal(self._mark.number, n)
        if self._problem.lanes:
            return add(adjoints, only_where(here, self._of_mark))
        return [
            a + tf.where(here, g, tf.zeros([], g.dtype)) for a, g in zip(adjoints, self._of_mark)
        ]

    def _begins_with_jump(self, n):
        """Whether the last slope of the step before n is not the first one of n; None: never."""
        if self._problem.switches is None:
            return None
        arrived = self._grid.arrives(tf.maximum(n - 1, 0))
        at_switch = self._intervals.begins_with_jump(self._grid.interval_of(n))
        jumps = tf.logical_and(n > 0, tf.logical_and(arrived, at_switch))
        return tf.logical_and(jumps, n < self._counts) if self._problem.lanes else jumps

    def _from_the_end(self, state):
        """The state before the last step, whose last slope no other step has as its first."""
        n, t, ys = self._counts - 1, self._end_time, self._end
        before = self._inside(n)
        if self._problem.lanes:
            t = tf.where(n >= 0, t, self._rest.t)
            ys = select(n >= 0, ys, self._whole(self._rest.ys))
        (inside,), lows = self._last_slope(n >= 0, n, t, ys, [before], state.lows)
        if self._problem.lanes:
            # Each lane's last step has its turn when it comes.
            more = inside.start - before.start, inside.step - before.step
            self._within = self._within.with_end(*more)
            inside = self._inside(self._accepted - 1)
        totals, lows = compensated_sum(state.totals._replace(times=[]), lows)
        return _Adjoint(totals._replace(times=state.totals.times), lows, [inside])

    def _last_slope(self, wanted, n, t, ys, inside, sums):
        """The part of the last slope of step n, where it is evaluated by itself, if `wanted`.

        Args:
            wanted: bool scalar, or one for each lane.
            n: int32 scalar, likewise.
            t: the time after the step.
            ys: the state then.
            inside: list of the `StepCotangents` of step n.
            sums: `Sources`, to which the gradients are added.

        Returns:
            `(inside, sums)`.
        """
        (here,), with_time, lanes = inside, self._problem.with_time, self._problem.lanes
        n, last = tf.maximum(n, 0), here.last
        if lanes:
            last, wanted = only_where(wanted, last), tf.reduce_any(wanted)

        def evaluate(_, sums, start, step):
            found, slopes = self._dynamics_of(n).vjp(t, ys, last, with_values=with_time)
            if with_time:
                (dt,) = found.times
                dt = tf.zeros_like(t) if dt is None else dt
                product = quotient(inner(last, slopes, lanes), self._grid.size(n))
                start, step = start + dt, step + dt + product
            return tf.constant(False), add_terms(sums, found._replace(times=[])), start, step

        # A loop of one pass at most, into which the caller's tapes don't see: see
        # `ClosedDynamics.apart`.
        _, sums, start, step = tf.while_loop(
            lambda pending, *_: pending,
            evaluate,
            (wanted, sums, here.start, here.step),
            maximum_iterations=1,
            name="last_slope",
        )
        return [here._replace(start=start, step=step)], sums


def _ready(state):
    """Within this nothing is computed, and no memory set aside, before the adjoint is there: or the
    solves of a model would all be at it at once, and a solve at several segments.
    """
    return tf.control_dependencies(state.totals.ys)


def _static(n):
    return n if isinstance(n, int) else None


def _segment_bound(problem, recording):
    n, stride = problem.max_steps, recording.stride
    return -(-n // stride) if isinstance(n, int) and isinstance(stride, int) else None


def extended_steps(problem, outcome, steps):
    """How many of the first `steps` steps need the rows of the continuous extension, int32."""
    accepted = outcome.stats.num_accepted
    grid = outcome.record and outcome.record.grid  # none of examples that wait for lanes
    return problem.outputs().num_extended(grid, accepted, steps)


def planned_evaluations(problem, recording, outcome):
    """How many evaluations a sweep takes at most, int32 scalar; a taped one counts once."""
    method, accepted = problem.method.without_error(), outcome.stats.num_accepted
    again = recording.num_recomputed(accepted, outcome.num_written)
    advanced = recording.num_advanced(accepted)
    each = method.without_interpolant()
    if method.iterates:  # as many as the equations will ask for
        return tf.constant(-1)
    taped = each.evaluations if recording.tapes_steps else each.adjoint_evaluations
    if recording.halves is not None:  # what is kept are the evaluations
        return (again + advanced) * each.evaluations + int(problem.interpolates)
    planned = accepted * tf.constant(taped) + (again + advanced) * each.evaluations
    if method.extends:  # the further rows and the last slope, but for the last one's value
        further = method.stages - each.stages
        planned += further * extended_steps(problem, outcome, accepted)
        if not recording.tapes_steps:
            planned += (further - 1) * extended_steps(problem, outcome, again)
    elif problem.interpolates:  # all stages may count, and the last step's end
        planned += accepted * (method.stages - taped) + 1
    return planned
