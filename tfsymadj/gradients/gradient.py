"""The interface of a gradient method."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.config import Configured


class Solved(NamedTuple):
    """What a gradient method returns to `solve`.

    Attributes:
        ys: the states at the output times, differentiable.
        status: int32 scalar.
        time: the time at which the solve ended.
        num_steps: attempted steps.
        num_accepted: accepted steps.
        num_evaluations: evaluations of the forward pass.
        num_backward_evaluations: evaluations that one gradient will take.
    """

    ys: list
    status: tf.Tensor
    time: tf.Tensor
    num_steps: tf.Tensor
    num_accepted: tf.Tensor
    num_evaluations: tf.Tensor
    num_backward_evaluations: tf.Tensor


class Gradient(Configured):
    """A way to differentiate a solve; derive your own from this class.

    `solve` is needed, and `get_config` if the constructor takes arguments.
    """

    def solve(self, problem):
        """Solves `problem` (`integrate.Problem`) differentiably; returns `Solved`."""
        raise NotImplementedError
