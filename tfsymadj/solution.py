"""What a solve returns."""

import enum
from typing import Any, NamedTuple

import tensorflow as tf


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


#: What happened, and what to change: completed by the time at which it happened.
MESSAGES = {
    Status.MAX_STEPS_REACHED: (
        "The solve took `max_steps` steps without reaching the last entry of `t`. Increase "
        "`max_steps`, loosen `rtol` and `atol`, or shorten the interval; a stiff problem needs "
        "too many steps with any explicit method."
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
        "The entries of `t` must be finite and strictly increasing or strictly decreasing, and those "
        "of `jumps` finite."
    ),
    Status.NON_FINITE_EVENT: (
        "The function of an `Event` returned NaN. Make it finite wherever the solution may come, and "
        "a little beyond."
    ),
}


class Stats(NamedTuple):
    """Counts of one solve, int32 scalars.

    Attributes:
        num_steps: steps attempted, `num_accepted + num_rejected`.
        num_accepted: steps taken.
        num_rejected: steps that the error estimate refused.
        num_evaluations: evaluations of the dynamics in the forward pass.
        num_backward_evaluations: evaluations that one gradient takes at most, as planned from the
            accepted steps, the stages and the checkpoints (a taped evaluation counts once); -1 for
            an adaptive continuous adjoint, which can't be planned.
    """

    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_rejected: tf.Tensor
    num_evaluations: tf.Tensor
    num_backward_evaluations: tf.Tensor


class Occurrence(NamedTuple):
    """The event that a solve met: the one that ended it, else the first one.

    Attributes:
        index: int32 scalar, the number of the `Event`; -1 if there was none.
        t: its time, float64 scalar; NaN if there was none.
        y: the state then, the nest of `y0`; likewise.
    """

    index: tf.Tensor
    t: tf.Tensor
    y: Any


class Solution(NamedTuple):
    """The solution of an initial value problem.

    Attributes:
        t: the times, shape `(len(t),)`, float64.
        y: the states at these times: the nest of `y0`, each tensor with a leading axis `len(t)`.
        status: int32 scalar, a value of `Status`.
        stats: `Stats`.
        event: `Occurrence`; `()`, which holds no tensors, without an `event` to look for.
        success: whether the solve reached the last time, a boolean scalar.
    """

    t: tf.Tensor
    y: Any
    status: tf.Tensor
    stats: Stats
    event: Occurrence | tuple[()] = ()

    @property
    def success(self) -> tf.Tensor:
        return tf.equal(self.status, int(Status.SUCCESS))

    def __repr__(self):
        states = tf.nest.map_structure(lambda y: f"{y.dtype.name} {y.shape}", self.y)
        states = states if isinstance(states, str) else repr(states).replace("'", "")
        if not tf.executing_eagerly() or tf.is_symbolic_tensor(self.status):
            return f"<Solution: y: {states}>"
        stats = Stats(*(int(n) for n in self.stats))
        return (
            f"<Solution: {Status(int(self.status))}, t from {float(self.t[0]):g} to "
            f"{float(self.t[-1]):g}, y: {states}, {stats.num_accepted} steps and "
            f"{stats.num_rejected} rejected, {stats.num_evaluations} evaluations>"
        )
