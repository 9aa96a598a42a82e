"""What a solve returns."""

import enum
from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.methods.extension import Extension


class Status(enum.IntEnum):
    """How a solve ended; `Solution.status` holds the value as an int32 tensor.

    Anything but `SUCCESS` means that the outputs which were not reached, and every gradient, are
    NaN.
    """

    def __str__(self):
        return self.name.lower()

    SUCCESS = 0
    MAX_STEPS_REACHED = 1
    STEP_UNDERFLOW = 2
    NON_FINITE_STATE = 3
    NON_FINITE_DYNAMICS = 4
    TIMES_NOT_MONOTONIC = 5
    NON_FINITE_EVENT = 6
    NEWTON_FAILED = 7
    EXAMPLES_MIXED = 8
    INCONSISTENT_STATE = 9
    EVENT_UNCERTAIN = 10


#: What happened, and what to change: completed by the time at which it happened.
MESSAGES = {
    Status.MAX_STEPS_REACHED: (
        "The solve took `max_steps` steps without reaching the last entry of `t`. Increase "
        "`max_steps`, loosen `rtol` and `atol`, or shorten the interval; a stiff problem (most "
        "steps are in `stats.num_stiff`) needs too many with any explicit method: choose an "
        "implicit one, such as 'kvaerno5'."
    ),
    Status.STEP_UNDERFLOW: (
        "The step size became too small: either below `min_step`, or so small that t + h == t. "
        "The solution may have a singularity here, or the problem is stiff; loosen `rtol` and "
        "`atol`, or end the interval earlier."
    ),
    Status.NON_FINITE_STATE: (
        "The state `y` became infinite or NaN, or `y0` was. Check `y0`; the solution may blow up "
        "here, so use smaller steps or end the interval earlier."
    ),
    Status.NON_FINITE_DYNAMICS: (
        "The dynamics returned an infinite or NaN value for a finite state. Check the dynamics, "
        "their weights and `args` at this time."
    ),
    Status.TIMES_NOT_MONOTONIC: (
        "The entries of `t` must be finite and strictly increasing or strictly decreasing, and "
        "those of `jumps` finite."
    ),
    Status.NON_FINITE_EVENT: (
        "The function of an `Event` returned NaN. Make it finite wherever the solution may come, "
        "and a little beyond."
    ),
    Status.NEWTON_FAILED: (
        "Newton's iteration did not solve the equations of an implicit method's stages, not with "
        "smaller steps either if they are adaptive. Use smaller steps or a larger "
        "`max_iterations` of `Newton`. The first axis of states that have more than one counts as "
        "examples that don't depend on each other: if they do, use "
        "`newton=tfsymadj.Newton(jacobian='whole')`."
    ),
    Status.EXAMPLES_MIXED: (
        "The dynamics of an example depend on which others it is solved beside. With `lanes` each "
        "tensor of `args` with as many rows as `y0` belongs to the examples: give one that they "
        "share another shape, such as (1, n), or read it from outside; and use no statistics of "
        "the batch."
    ),
    Status.INCONSISTENT_STATE: (
        "With a singular `mass`, `y0` must solve the equations without a derivative, at `t[0]`: "
        "solve them for the components that they determine, by `tfsymadj.steady_state` say. If "
        "they determine none uniquely, the index is greater than one: differentiate them."
    ),
    Status.EVENT_UNCERTAIN: (
        "The function of an `Event` changes its sign on the continuous extension of a step, not "
        "by real steps to this time: the steps are too long for it. Increase `num_steps`, tighten "
        "`rtol` and `atol`, or set `max_step`."
    ),
}


class Stats(NamedTuple):
    """Counts of one solve, int32 scalars; with `batch_axis` vectors, one number for each example.

    Attributes:
        num_steps: steps attempted, `num_accepted + num_rejected`.
        num_accepted: steps taken.
        num_rejected: steps that the error estimate refused.
        num_evaluations: evaluations of the dynamics in the forward pass.
        num_backward_evaluations: evaluations that one gradient takes at most, as planned from the
            accepted steps, the stages and the checkpoints (a taped evaluation counts once); -1 for
            an adaptive continuous adjoint, which can't be planned.
        num_states: how many states are held for the gradient at most at any time, those of steps
            and of stages together, as planned; the activations of a stage count as one. 0 where
            none are (`"backprop"`, `"baseline"` and the continuous adjoint); always a scalar.
        num_stiff: steps taken of at least 0.8 times the length that is stable, by the test of
            DOPRI5 (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, appendix).
            If most of them were so long, an implicit method will do with fewer. -1 where that
            can't be told: only adaptive solves with `"dopri5"`, `"tsit5"`, `"dop853"` and explicit
            tableaus whose last two stages are both at the end of the step tell.
    """

    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_rejected: tf.Tensor
    num_evaluations: tf.Tensor
    num_backward_evaluations: tf.Tensor
    num_states: tf.Tensor
    num_stiff: tf.Tensor


class Occurrence(NamedTuple):
    """The event that a solve met: the one that ended it, else the first one.

    With `batch_axis` there is one for each example.

    Attributes:
        index: int32 scalar, the number of the `Event`; -1 if there was none.
        t: its time, float64 scalar; NaN if there was none.
        y: the state then, the nest of `y0`; likewise.
    """

    index: tf.Tensor
    t: tf.Tensor
    y: Any


class Interpolant(NamedTuple):
    """The solution at any time between the first and the last entry of `t`; callable.

    It holds the states and slopes of all steps, of as many as the solve might have tried.

    Attributes:
        t: times before the steps, float64; the time after the last one is repeated.
        y: the states then: the nest of `y0`, each tensor with a further first axis.
        slopes: the dynamics at the stages of the steps: likewise, with a second axis of stages.
        table: coefficients of theta, theta^2, ... for each stage.
    """

    t: tf.Tensor
    y: Any
    slopes: Any
    table: tf.Tensor

    def __call__(self, times: Any) -> Any:
        """The states at some times, differentiable for these as for all that the solve was.

        Args:
            times: tensor of any shape; outside of the solve the states are NaN.

        Returns:
            The nest of `y0`, each tensor with the axes of `times` before its own.
        """
        times = tf.cast(tf.convert_to_tensor(times), tf.float64)
        shape, at = tf.shape(times), tf.reshape(times, [-1])
        # Of a solve that took no step there is nothing but its start.
        direction = 1.0 - 2.0 * tf.cast(self.t[-1] < self.t[0], tf.float64)
        ahead, known = tf.stop_gradient(at) * direction, tf.stop_gradient(self.t) * direction
        n = tf.maximum(tf.searchsorted(known, ahead) - 1, 0)
        outside = tf.logical_not(tf.logical_and(ahead >= known[0], ahead <= known[-1]))
        start = tf.gather(self.t, n)
        h = tf.gather(self.t, tf.minimum(n + 1, tf.size(self.t) - 1)) - start
        # Where nothing is to be evaluated nothing may become NaN but the value.
        proper = tf.logical_and(tf.not_equal(h, 0.0), tf.logical_not(outside))
        theta = tf.where(proper, at - start, 0.0) / tf.where(proper, h, 1.0)
        weights = h[:, tf.newaxis] * Extension(self.table).weights(theta)
        lost = tf.sqrt(tf.where(outside, -1.0, 0.0))  # no constant that is NaN

        def states(y, slopes):
            rows = tf.gather(slopes, n)
            flat = tf.reshape(rows, [tf.shape(rows)[0], tf.shape(rows)[1], -1])
            moved = tf.einsum("qs,qsx->qx", tf.cast(weights, y.dtype), flat)
            moved += tf.cast(lost, y.dtype)[:, tf.newaxis]
            values = tf.gather(y, n) + tf.reshape(moved, tf.shape(tf.gather(y, n)))
            values = tf.reshape(values, tf.concat([shape, tf.shape(y)[1:]], 0))
            return tf.ensure_shape(values, [*times.shape, *y.shape[1:]])

        return tf.nest.map_structure(states, self.y, self.slopes)


class Solution(NamedTuple):
    """The solution of an initial value problem.

    Attributes:
        t: the times, float64, of the shape of `t`.
        y: the states at these times: the nest of `y0`, each tensor with a leading axis `len(t)`.
        status: a value of `Status`, int32 scalar; with `batch_axis` a vector.
        stats: `Stats`.
        event: `Occurrence`; `()`, which holds no tensors, without an `event` to look for.
        interpolant: `Interpolant`; `()` unless `dense`.
        success: whether the solve reached the last time, boolean, of the shape of `status`.
    """

    t: tf.Tensor
    y: Any
    status: tf.Tensor
    stats: Stats
    event: Occurrence | tuple[()] = ()
    interpolant: Interpolant | tuple[()] = ()

    @property
    def success(self) -> tf.Tensor:
        return tf.equal(self.status, int(Status.SUCCESS))

    def __repr__(self):
        states = tf.nest.map_structure(lambda y: f"{y.dtype.name} {y.shape}", self.y)
        states = states if isinstance(states, str) else repr(states).replace("'", "")
        if not tf.executing_eagerly() or tf.is_symbolic_tensor(self.status):
            return f"<Solution: y: {states}>"
        if self.status.shape.rank:
            done, most = int(tf.reduce_sum(tf.cast(self.success, tf.int32))), self.stats.num_steps
            return (
                f"<Solution: {done} of {tf.size(self.status)} examples a success, y: {states}, "
                f"up to {int(tf.reduce_max(most))} steps>"
            )
        stats = Stats(*(int(n) for n in self.stats))
        return (
            f"<Solution: {Status(int(self.status))}, t from {float(self.t[0]):g} to "
            f"{float(self.t[-1]):g}, y: {states}, {stats.num_accepted} steps and "
            f"{stats.num_rejected} rejected, {stats.num_evaluations} evaluations>"
        )
