"""What the gradient methods have in common that evaluate the dynamics again."""

from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.gradients.gradient import Gradient, Solved
from tfsymadj.integrate import integrate, poison


class InputGradients(NamedTuple):
    """The gradients of one solve, None where there is none.

    Attributes:
        ys: for the initial state.
        ts: for the output times, or None.
        captured: for the captured inputs of the dynamics.
        variables: for the variables of the dynamics that are read by TensorFlow itself.
    """

    ys: list
    ts: Any
    captured: list
    variables: list


class Recomputing(Gradient):
    """A forward pass that keeps a recording, and a backward pass of one's own."""

    def recording(self, problem):
        """The `Recording` of a problem, or None."""
        return None

    def backward(self, problem, recording, integral, variables, cotangents):
        """The backward pass.

        Args:
            problem: `integrate.Problem`.
            recording: of `recording`.
            integral: `integrate.Integral`, the forward pass.
            variables: variables to differentiate for beside `problem.dynamics.captured`.
            cotangents: list of tensors like `integral.ys`.

        Returns:
            `InputGradients`.
        """
        raise NotImplementedError

    def backward_evaluations(self, problem, recording, integral):
        """How many evaluations `backward` will take, int32 scalar."""
        raise NotImplementedError

    def solve(self, problem):
        recording = self.recording(problem)
        variables = problem.dynamics.variables
        snapshot = problem.dynamics.snapshot()
        integral = integrate(problem, recording)

        def backward(cotangents):
            with tf.name_scope(type(self).__name__):
                found = self.backward(problem, recording, integral, variables, cotangents)
            found = [*found.ys, found.ts, *found.captured, *found.variables]
            found = poison(found, integral.status)
            return _refuse_changes(problem.dynamics, snapshot, found) if snapshot else found

        inputs = [*problem.ys, problem.ts, *problem.dynamics.captured, *variables]
        ys = _platform.with_gradient(integral.ys, inputs, backward)
        return Solved(
            ys,
            integral.status,
            integral.time,
            integral.num_steps,
            integral.num_accepted,
            integral.num_evaluations,
            self.backward_evaluations(problem, recording, integral),
        )


def _refuse_changes(dynamics, snapshot, gradients):
    """The gradients, if another evaluation is one of the same function; NaN under XLA."""
    unchanged = dynamics.unchanged(snapshot)
    message = (
        "Variables were assigned between a solve and its gradient, whose `dynamics` read them "
        "inside of a SavedModel or a concrete function: the gradient would be that of other "
        "values. Compute the gradient before the assignment, or use the Python function itself. "
        f"Received: variables {', '.join(v.name for v in dynamics.unseen)}"
    )
    with tf.control_dependencies([tf.debugging.Assert(unchanged, [message])]):
        nan = tf.where(unchanged, 0.0, float("nan"))
        return [None if g is None else g + tf.cast(nan, g.dtype) for g in gradients]


def accumulator(x):
    """Zeros in which gradients of `x` are summed: never in half precision."""
    dtype = tf.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype
    return tf.zeros(x.shape if x.shape.is_fully_defined() else tf.shape(x), dtype)
