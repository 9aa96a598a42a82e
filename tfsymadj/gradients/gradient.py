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
    """A way to differentiate a solve. Subclasses are immutable, and equal if their configs are."""

    def get_config(self):
        """The constructor's arguments, a dict of hashable values."""
        return {}

    @classmethod
    def from_config(cls, config):
        """The object of a config."""
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), *self.get_config().items()))

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def solve(self, problem):
        """Solves `problem` (`integrate.Problem`) differentiably; returns `Solved`."""
        raise NotImplementedError
