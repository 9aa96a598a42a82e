"""Naive back-propagation through the solver's loop."""

import dataclasses

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.gradients.gradient import Gradient
from tfsymadj.loop.failures import poison
from tfsymadj.loop.integrate import integrate


class Backprop(Gradient):
    """Differentiates every operation of the solver: exact, at the memory of all N s evaluations.

    It takes no evaluations in the backward pass and is the yardstick of the other methods.

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=tfsymadj.Backprop())
    """

    def solve(self, problem):
        # Tapes around the solve know these by other handles than those inside of the dynamics.
        for v in problem.dynamics.variables:
            _platform.accessed(v)
        outcome = integrate(dataclasses.replace(problem, dynamics=problem.dynamics.apart))
        return outcome.with_states(_fail_gradients(outcome.states, outcome.status, problem))


def _fail_gradients(ys, status, problem):
    """`ys`; if the solve failed, every gradient that passes through them becomes NaN."""
    inputs = [*problem.ys, *problem.all_times, *problem.dynamics.captured]

    def backward(cotangents):
        return poison([*cotangents, *(tf.zeros_like(x) for x in inputs)], status)

    return _platform.with_gradient([tf.identity(y) for y in ys], [*ys, *inputs], backward)
