"""Naive back-propagation through the solver's loop."""

import tensorflow as tf

from tfsymadj.gradients.gradient import Gradient, Solved
from tfsymadj.integrate import integrate, poison


class Backprop(Gradient):
    """Differentiates every operation of the solver: exact, at the memory of all N s evaluations.

    It takes no evaluations in the backward pass and is the yardstick of the other methods.

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=tfsymadj.Backprop())
    """

    def solve(self, problem):
        result = integrate(problem)
        return Solved(
            _fail_gradients(result.ys, result.status, problem),
            result.status,
            result.time,
            result.num_steps,
            result.num_accepted,
            result.num_evaluations,
            tf.zeros([], tf.int32),
        )


def _fail_gradients(ys, status, problem):
    """`ys`; if the solve failed, every gradient that passes through them becomes NaN."""

    @tf.custom_gradient
    def guard(ys, inputs):
        def backward(*cotangents):
            zeros = [tf.zeros_like(x) for x in inputs]
            return poison(cotangents, status), poison(zeros, status)

        return [tf.identity(y) for y in ys], backward

    return guard(ys, [*problem.ys, problem.ts, *problem.dynamics.captured])
