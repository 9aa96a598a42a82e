"""What the gradient methods have in common that evaluate the dynamics again."""

import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf

from tfsymadj.gradients.gradient import Gradient, Solved
from tfsymadj.integrate import integrate, poison


class InputGradients(NamedTuple):
    """The gradients of one solve, None where there is none.

    Attributes:
        ys: for the initial state.
        ts: for the output times, or None.
        captured: for the captured inputs of the dynamics.
        variables: for the variables that TensorFlow asks for.
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
        size = len(problem.ys)
        captured = problem.dynamics.captured
        results = []

        @tf.custom_gradient
        def run(*inputs):
            # `captured` is listed so that its gradients are asked for; the dynamics hold the
            # tensors themselves.
            here = dataclasses.replace(problem, ys=list(inputs[:size]), ts=inputs[size])
            integral = integrate(here, recording)
            results[:] = [integral]

            def backward(*cotangents, variables=()):
                variables = list(variables or ())
                with tf.name_scope(type(self).__name__):
                    gradients = self.backward(here, recording, integral, variables, cotangents)
                found = [*gradients.ys, gradients.ts, *gradients.captured]
                found = poison(found, integral.status)
                if not variables:
                    return found
                return found, poison(gradients.variables, integral.status)

            return tuple(integral.ys), backward

        ys = run(*problem.ys, problem.ts, *captured)
        (integral,) = results
        return Solved(
            list(ys),
            integral.status,
            integral.time,
            integral.num_steps,
            integral.num_accepted,
            integral.num_evaluations,
            self.backward_evaluations(problem, recording, integral),
        )


def accumulator(x):
    """Zeros in which gradients of `x` are summed: never in half precision."""
    dtype = tf.float32 if x.dtype in (tf.float16, tf.bfloat16) else x.dtype
    return tf.zeros(x.shape if x.shape.is_fully_defined() else tf.shape(x), dtype)
