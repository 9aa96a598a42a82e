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
    arXiv:2102.09750).

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient="baseline")
    """

    def backward(self, problem, recording, integral, variables, cotangents):
        captured = problem.dynamics.captured
        size, targets = len(problem.ys), [*captured, *variables]

        def repeat(_, ys, ts, *__):
            here = dataclasses.replace(problem, ys=ys, ts=ts)
            sources = [*ys, *targets, *([ts] if problem.with_time else [])]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                outputs = integrate(here).ys
            found = tape.gradient(
                outputs, sources, cotangents, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            found = [
                tf.ensure_shape(tf.convert_to_tensor(g), x.shape) for g, x in zip(found, sources)
            ]
            dts = found.pop() if problem.with_time else tf.zeros_like(ts)
            return tf.constant(False), found[:size], dts, found[size:]

        # A loop of one pass: it starts when the cotangents are there, or all solves of a model
        # would be repeated at once, and XLA gives what is inside memory of other solves.
        _, dys, dts, others = tf.while_loop(
            lambda pending, *_: pending,
            repeat,
            (
                tf.constant(True),
                after([g[-1] for g in cotangents], problem.ys),
                problem.ts,
                [tf.zeros_like(tf.convert_to_tensor(x)) for x in targets],
            ),
            maximum_iterations=1,
            name="repeat",
        )
        return InputGradients(
            dys,
            dts if problem.with_time else None,
            others[: len(captured)],
            others[len(captured) :],
        )

    def backward_evaluations(self, problem, recording, integral):
        return integral.num_evaluations
