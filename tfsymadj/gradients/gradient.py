"""The interface of a gradient method."""

from typing import NamedTuple

import tensorflow as tf


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


class Gradient:
    """A way to differentiate a solve. Subclasses are immutable and hashable."""

    def _config(self):
        return ()

    def __eq__(self, other):
        return type(self) is type(other) and self._config() == other._config()

    def __hash__(self):
        return hash((type(self), self._config()))

    def solve(self, problem):
        """Solves `problem` (`integrate.Problem`) differentiably; returns `Solved`."""
        raise NotImplementedError
