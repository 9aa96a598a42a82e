"""The baseline of the checkpointing schemes: only the initial state is kept."""

import dataclasses

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.arithmetic import after
from tfsymadj.dynamics.closing import Sources
from tfsymadj.gradients.recomputing import Recomputing
from tfsymadj.loop.integrate import integrate


class SolveCheckpoint(Recomputing):
    """Keeps the initial state; the whole solve is repeated under one tape and back-propagated.

    Exact. Of several solves in a row only one at a time needs the memory of back-propagation, that
    of all N s uses of the network (the baseline scheme of Matsubara, Miyatake and Yaguchi,
    arXiv:2102.09750).

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient="baseline")
    """

    def backward(self, problem, recording, outcome, cotangents):
        dynamics = problem.dynamics

        def repeat(_, ys, times, *__):
            here = dataclasses.replace(problem, ys=ys).at_times(times)
            sources = dynamics.sources(ys, here.times)
            with dynamics.substituted():
                outputs = integrate(here).states
                found = _platform.gradients(outputs, tf.nest.flatten(sources), cotangents)
            found = tf.nest.pack_sequence_as(sources, found)
            inputs = sources._replace(variables=dynamics.variables)
            found = tf.nest.map_structure(_gradient_of, found, inputs)
            dts = found.times or [tf.zeros_like(x) for x in times]
            return tf.constant(False), found.ys, dts, found.captured, found.variables

        # A loop of one pass: it starts when the cotangents are there, or all solves of a model
        # would be repeated at once, and XLA gives what is inside memory of other solves.
        _, dys, dts, captured, variables = tf.while_loop(
            lambda pending, *_: pending,
            repeat,
            (
                tf.constant(True),
                after([g[-1] for g in cotangents[: len(problem.ys)]], problem.ys),
                problem.all_times,
                [tf.zeros_like(x) for x in dynamics.captured],
                [tf.zeros_like(tf.convert_to_tensor(x)) for x in dynamics.variables],
            ),
            maximum_iterations=1,
            name="repeat",
        )
        return Sources(dys, captured, variables, dts if problem.with_time else [])

    def backward_evaluations(self, problem, recording, outcome):
        return outcome.stats.num_evaluations


def _gradient_of(gradient, x):
    if gradient is None:
        return tf.zeros_like(tf.convert_to_tensor(x))
    return tf.ensure_shape(tf.convert_to_tensor(gradient), x.shape)
