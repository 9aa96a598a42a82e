"""The baseline of the checkpointing schemes: only the initial state is kept."""

import dataclasses

import tensorflow as tf

from tfsymadj.gradients.recomputing import InputGradients, Recomputing
from tfsymadj.integrate import integrate
from tfsymadj.runge_kutta import after


class SolveCheckpoint(Recomputing):
    """Keeps the initial state; the whole solve is repeated under one tape and back-propagated.

    Exact. Of several solves in a row only one at a time needs the memory of back-propagation, that
    of all N s uses of the network (the baseline scheme of Matsubara, Miyatake and Yaguchi,
    arXiv:2102.09750). Under XLA, which plans the memory of all of them at once, they add up.

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient="baseline")
    """

    def backward(self, problem, recording, integral, variables, cotangents):
        captured = problem.dynamics.captured
        times = [problem.ts] if problem.with_time else []
        # Not before the cotangents are there, or all solves of a model would be repeated at once.
        problem = dataclasses.replace(problem, ys=after(cotangents, problem.ys))
        sources = [*problem.ys, *captured, *variables, *times]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            ys = integrate(problem).ys
        gradients = tape.gradient(
            ys, sources, cotangents, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        n, m = len(problem.ys), len(problem.ys) + len(captured)
        return InputGradients(
            gradients[:n],
            gradients.pop() if times else None,
            gradients[n:m],
            gradients[m : m + len(variables)],
        )

    def backward_evaluations(self, problem, recording, integral):
        return integral.num_evaluations
