"""How long the next step is, and whether the last one is accepted.

A controller never sees the dynamics and keeps its state in a tuple of tensors that the loop
carries. Step sizes are constants for the derivative: gradients are those of the steps that were
taken.
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfsymadj.config import Configured
from tfsymadj.methods.method import Method

#: A step may be longer by this factor: a remainder of rounding errors is not worth one of its own.
REMAINDER = 1.0 + 1e-10


def moved(t: tf.Tensor, end: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """The step from `t` to `end`, a sum that was rounded: so steps add up to the whole interval.

    `step` itself where that leads nowhere.
    """
    return tf.where(tf.equal(end, t), step, end - t)


class Proposal(NamedTuple):
    """The next step inside of an output interval from `start` to `end`.

    Attributes:
        step: h, float64 scalar with the sign of the direction.
        end: the time after the step, exactly the interval's end if `hits_end`.
        hits_end: whether the step ends at the interval's end.
        time_fraction: derivative of the time before the step for the interval's end; for its
            start the derivative is one minus this.
        step_fraction: derivative of h for the interval's end, and minus that for its start.
    """

    step: tf.Tensor
    end: tf.Tensor
    hits_end: tf.Tensor
    time_fraction: tf.Tensor
    step_fraction: tf.Tensor

    def at_most(self, t: tf.Tensor, max_step: tf.Tensor) -> "Proposal":
        """The proposal from time `t`, cut to a size that it must not exceed."""
        cut = tf.sign(self.step) * max_step
        long = tf.abs(self.step) > max_step * REMAINDER
        # Where rounding leads to the same end, no step would be left to end there.
        long = tf.logical_and(long, tf.not_equal(t + cut, self.end))
        step, end = tf.where(long, cut, self.step), tf.where(long, t + cut, self.end)
        return Proposal(
            tf.where(long, moved(t, end, cut), step),
            end,
            tf.logical_and(self.hits_end, tf.logical_not(long)),
            self.time_fraction,
            tf.where(long, tf.zeros_like(self.step_fraction), self.step_fraction),
        )


class Controller(Configured):
    """What the loop asks of a controller; derive your own from this class.

    `initial_state`, `propose` and `adapt` are needed, for an adaptive one `error_norm` too, and
    `get_config` if the constructor takes arguments.

    Attributes:
        adaptive: whether the controller needs an error estimate.
    """

    adaptive: bool = False

    def for_method(self, method: Method) -> "Controller":
        """The controller for a `Method`; called once before the solve."""
        return self

    def per_example(self) -> "Controller":
        """The controller for steps of each example's own: times, steps, errors and the state are
        vectors then, with one entry for each.
        """
        raise ValueError(
            "`controller` must have a method `per_example` for a solve with `batch_axis`: it "
            f"returns a controller of vectors. Received: {self!r}"
        )

    def num_steps(self, ts: tf.Tensor) -> int | tf.Tensor | None:
        """The number of steps for the times `ts`, int or int32 scalar; None if it is not known."""
        return None

    def table(self, times: np.ndarray) -> tuple | None:
        """All steps for times that are numbers, `(ends, steps, hits_end)`: NumPy arrays of the
        times after the steps, the signed steps, and whether they end at an entry of `times`.

        None if they are not known beforehand.
        """
        return None

    def initial_state(self, first_step: tf.Tensor | None) -> Any:
        """The loop's first state, a nest of tensors.

        Args:
            first_step: float64 scalar, positive; None unless `adaptive`.
        """
        raise NotImplementedError

    def propose(self, state: Any, t: tf.Tensor, start: tf.Tensor, end: tf.Tensor) -> Proposal:
        """The next `Proposal` from time `t` in the interval from `start` to `end`."""
        raise NotImplementedError

    def adapt(self, state: Any, proposal: Proposal, error: tf.Tensor | None) -> tuple:
        """After a step was tried.

        Args:
            state: the controller's state.
            proposal: the `Proposal` that was tried.
            error: norm of the error estimate, float64 scalar, 1 at the tolerance; infinite after
                a step that was not finite. None unless `adaptive`.

        Returns:
            `(accepted, state)`.
        """
        raise NotImplementedError

    def restarted(self, state: Any) -> Any:
        """The state after a jump of the dynamics, about which earlier errors say nothing."""
        return state

    def error_norm(self, errors: list, ys: list, ends: list) -> tf.Tensor:
        """Norm of an error estimate relative to the tolerances, float64 scalar.

        Args:
            errors: the estimate, list of tensors like the state.
            ys: the state before the step.
            ends: the state after it.
        """
        raise NotImplementedError

    def scaled_norm(self, xs: list, magnitudes: list) -> tf.Tensor:
        """`error_norm` of tensors like the state, at states of these magnitudes: how the automatic
        first step measures the state and its slope.
        """
        states = [tf.cast(m, x.dtype) for x, m in zip(xs, magnitudes)]
        return self.error_norm(xs, states, states)
