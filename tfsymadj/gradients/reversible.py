"""Back-propagation without checkpoints, through steps that are taken back.

McCallum, Foster: Efficient, Accurate and Stable Gradients for Neural ODEs, arXiv:2410.11648.
"""

import dataclasses

import tensorflow as tf

from tfsymadj.arithmetic import compensated_sum, epsilon
from tfsymadj.checkpoints.memory import tapes_steps
from tfsymadj.checkpoints.recording import Recording
from tfsymadj.config import is_real
from tfsymadj.gradients.recomputing import Recomputing
from tfsymadj.gradients.sweep import Sweep
from tfsymadj.loop.failures import is_success, nan_where
from tfsymadj.methods.coupled import Coupled
from tfsymadj.steps.first_step import automatic_first_step
from tfsymadj.xla import repeated


class Reversible(Recomputing):
    """Takes steps that have an inverse, and in the backward pass takes them back.

    The solve is another one than with all other gradients: any explicit method with the increments
    psi_h becomes a scheme over two copies y and z of the state, both y0 at first,

        y_{n+1} = c y_n + (1 - c) z_n + psi_h(t_n, z_n),
        z_{n+1} = z_n - psi_{-h}(t_{n+1}, y_{n+1}),

    of the same order, at twice the evaluations; the outputs are y. Its inverse is explicit as well,
    so no state is kept, however many steps there are: two states, and 48 bytes a step for its time
    and size (McCallum and Foster, arXiv:2410.11648, definition 1).

    Exact for this scheme, up to the rounding errors of the way back. They grow by 1 / c a step, and
    as fast as solutions approach each other forward in time: on the way back these diverge. The
    initial state that the backward pass arrives at is compared with `y0`; where half of the digits
    are lost, the gradient raises `tf.errors.InvalidArgumentError`, or is NaN under XLA, which drops
    assertions.

    Steps are equal, or adaptive with the error estimate of psi_h(t_n, z_n), and end at each output
    time. Not with implicit methods, those of drifts and kicks, `event`, `dense` and `batch_axis`.

    Args:
        coupling: c, greater than zero, one at most: the closer to one, the longer solves can be
            taken back, and the sooner the scheme is unstable.

    Raises:
        ValueError: if `coupling` is not such a number.

    Example:

    >>> import tfsymadj
    >>> gradient = tfsymadj.Reversible(coupling=0.99)
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=gradient)
    """

    discretises = True

    def __init__(self, coupling: float = 0.999):
        if not (is_real(coupling) and 0.0 < coupling <= 1.0):
            raise ValueError(
                "`coupling` must be a number greater than zero, one at most. "
                f"Received: {coupling!r}"
            )
        self.coupling = float(coupling)

    def get_config(self):
        return {"coupling": self.coupling}

    def solve(self, problem):
        outcome = super().solve(self.discretised(problem))
        if problem.controller.adaptive and problem.first_step is None:
            more = outcome.stats.num_evaluations + 2  # for the first step's size
            outcome = outcome._replace(stats=outcome.stats._replace(num_evaluations=more))
        return outcome._replace(ys=outcome.ys[: len(problem.ys)])

    def discretised(self, problem):
        self._check(problem)
        method = Coupled(problem.method.without_interpolant(), self.coupling)
        ys, first_step = problem.ys, problem.first_step
        if problem.controller.adaptive and first_step is None:
            intervals = problem.intervals
            dynamics = intervals.of(problem.dynamics, intervals.first).apart
            slopes = dynamics(problem.stops[0], ys)
            first_step = automatic_first_step(
                dynamics, problem.controller, method.order, problem.stops, ys, slopes
            )
        return dataclasses.replace(
            problem,
            method=method,
            ys=[*ys, *(tf.identity(y) for y in ys)],
            first_step=first_step,
            measured=len(ys),
        )

    def _check(self, problem):
        method = problem.method
        if method.iterates or method.splits:
            raise ValueError(
                "`gradient='reversible'` needs `method`, an explicit Runge-Kutta one. Use another "
                f"`gradient`. Received: the method {method.name!r} and {self!r}"
            )
        refused = {
            "outputs='interpolate'": problem.between is not None,
            "dense": problem.dense,
            "event": problem.watch is not None,
            "tangents": problem.measured is not None,
        }
        for name, given in refused.items():
            if given:
                raise ValueError(
                    f"`{name}` can't be given together with `gradient='reversible'`. Use another "
                    f"`gradient`. Received: {self!r}"
                )

    def recording(self, problem):
        base = problem.method.without_error().base
        ys = problem.ys[: len(problem.ys) // 2]
        single = dataclasses.replace(problem, method=base, ys=ys)
        return _Nothing(stride=1, rows=0, tapes_steps=tapes_steps(single))

    def backward(self, problem, recording, outcome, cotangents):
        sweep = _ReversedSweep(problem, recording, outcome, cotangents)
        found = sweep.run()
        return _refuse_lost(found, problem, outcome, sweep.start)

    def backward_evaluations(self, problem, recording, outcome):
        method = problem.method.without_error()
        each = method.evaluations
        if not recording.tapes_steps:
            each += method.adjoint_evaluations
        return outcome.stats.num_accepted * tf.constant(each)


class _Nothing(Recording):
    """No states: the backward pass has the last one."""

    def num_states(self, num_stages):
        return 2 if self.tapes_steps else 2 + num_stages // 2


class _ReversedSweep(Sweep):
    """The adjoint over steps that are taken back.

    Attributes:
        start: the state that the way back has arrived at.
    """

    def __init__(self, problem, recording, outcome, cotangents):
        super().__init__(problem, recording, outcome, cotangents)
        self.start = outcome.record.end

    def over_steps(self, state):
        method, problem, grid = self._method, self._problem, self._grid

        def body(i, variables):
            ys, lows, state = variables
            n = self._accepted - 1 - i
            adjoints = self._outputs.add_cotangents(
                state.totals.ys, self._cotangents, grid, n, self._accepted
            )
            increments, sums = method.reversed(
                self._dynamics_of(n), grid.start(n), grid.size(n), ys, adjoints, state.lows,
                problem.with_time, self._recording.tapes_steps,
            )  # fmt: skip
            ys, lows = compensated_sum(ys, [x + low for x, low in zip(increments, lows)])
            return ys, lows, self._before(state, n, adjoints, sums, [])

        self.start, _, state = repeated(
            self._accepted,
            body,
            (self.start, [tf.zeros_like(y) for y in self.start], state),
            "reversed",
            bound=problem.static_max_steps,
        )
        return state


def _refuse_lost(found, problem, outcome, start):
    """The gradients, if the way back has arrived where the solve began; else an error, or NaN."""
    arrived = tf.logical_not(is_success(outcome.status))  # they are NaN then
    fine = tf.constant(True)
    for y, x, outputs in zip(problem.ys, start, outcome.ys):
        allowed = epsilon(y.dtype.real_dtype) ** 0.5 * tf.reduce_max(tf.abs(outputs))
        fine = tf.logical_and(fine, tf.reduce_max(tf.abs(x - y)) <= allowed)
    arrived = tf.logical_or(arrived, fine)
    message = (
        "The steps of a solve with `gradient='reversible'` can't be taken back: rounding errors "
        "have grown to more than half of the digits. Use another `gradient`, such as "
        "'symplectic_adjoint', or a state of more digits, fewer steps or `Reversible(coupling=c)` "
        "closer to one."
    )
    with tf.control_dependencies([tf.debugging.Assert(arrived, [message])]):
        lost = tf.logical_not(arrived)
        return tf.nest.map_structure(lambda x: x + nan_where(lost, x.dtype, 0), found)
