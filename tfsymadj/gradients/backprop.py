"""Naive back-propagation through the solver's loop."""

import dataclasses

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.dynamics.closing import Sources
from tfsymadj.gradients.gradient import Gradient
from tfsymadj.loop.failures import poison, poison_lanes, split_lost
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
    groups = [problem.ys, problem.dynamics.captured, [], problem.all_times]
    inputs = tf.nest.flatten(groups)

    def backward(cotangents):
        if problem.lanes:
            kept, lost = split_lost(cotangents, status, len(problem.ys))
            zeros = Sources(*([tf.zeros_like(x) for x in group] for group in groups))
            return [*kept, *tf.nest.flatten(poison_lanes(zeros, lost))]
        return poison([*cotangents, *(tf.zeros_like(x) for x in inputs)], status)

    return _platform.with_gradient([tf.identity(y) for y in ys], [*ys, *inputs], backward)
