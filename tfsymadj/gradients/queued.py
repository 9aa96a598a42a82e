"""Gradients of a solve whose examples wait for lanes."""

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.arithmetic import accumulator, add_terms
from tfsymadj.dynamics.closing import Sources
from tfsymadj.gradients.gradient import Gradient
from tfsymadj.gradients.recomputing import Recomputing
from tfsymadj.loop.queue import integrate_queue, num_examples, taken
from tfsymadj.xla import compiled, repeated


class Queued(Gradient):
    """Solves a queue of examples, and each again when its gradient is wanted.

    In the backward pass the examples come in the order of their numbers of steps, as many at a time
    as there are lanes: nobody waits long for the others, and no more is kept than for one solve of
    so many examples.

    Args:
        gradient: the `Gradient` of these solves.
    """

    def __init__(self, gradient: Gradient):
        self._gradient = gradient

    def get_config(self):
        return {"gradient": self._gradient}

    def solve(self, problem):
        outcome = integrate_queue(problem)

        def backward(cotangents):
            with tf.name_scope(type(self).__name__):
                found = compiled(
                    lambda: self._backward(problem, outcome, cotangents), problem.jit_compile
                )
            times = found.times or [None] * len(problem.all_times)
            return tf.nest.flatten(found._replace(times=times))

        dynamics = problem.dynamics
        inputs = Sources(
            problem.ys, [x for x, _ in _captured(problem)], dynamics.variables, problem.all_times
        )
        states = _platform.with_gradient(outcome.states, tf.nest.flatten(inputs), backward)
        stats = outcome.stats._replace(
            num_backward_evaluations=self._planned(problem, outcome),
            num_states=tf.zeros([], tf.int32),
        )
        return outcome.with_states(states)._replace(stats=stats)

    def _planned(self, problem, outcome):
        """The evaluations of the examples' gradients: those of another solve come first."""
        again = outcome.stats.num_evaluations
        if not isinstance(self._gradient, Recomputing):
            return again
        some = taken(problem, tf.zeros([problem.queue.width], tf.int32))
        recording = self._gradient.recording(some)
        return again + self._gradient.backward_evaluations(problem, recording, outcome)

    def _backward(self, problem, outcome, cotangents):
        width, count = problem.queue.width, num_examples(problem)
        order = tf.argsort(outcome.stats.num_steps, direction="DESCENDING", stable=True)
        captured = _captured(problem)
        times = [tf.transpose(x) for x in problem.times]
        handles = [tf.convert_to_tensor(v) for v in problem.dynamics.variables]
        whole = Sources(problem.ys, [x for x, _ in captured], handles, times)
        of_each = Sources(
            [True] * len(problem.ys), [own for _, own in captured], [False] * len(handles),
            [True] * len(times),
        )  # fmt: skip

        def one_share(i, sums):
            numbers = i * width + tf.range(width)
            examples = tf.gather(order, tf.minimum(numbers, count - 1))
            found = self._share(problem, examples, numbers < count, cotangents)
            rows = examples[:, tf.newaxis]
            flat = [
                _added(total, rows if own else None, x)
                for total, own, x in zip(*map(tf.nest.flatten, (sums, of_each, found)), strict=True)
            ]
            return tf.nest.pack_sequence_as(sums, flat)

        zeros = tf.nest.map_structure(accumulator, whole)
        found = repeated(-(-count // width), one_share, zeros, "shares")
        found = tf.nest.map_structure(lambda g, x: tf.cast(g, x.dtype), found, whole)
        return found._replace(times=[tf.transpose(x) for x in found.times])

    def _share(self, problem, examples, counts, cotangents):
        """The `Sources` of some of the examples, as far as they count."""
        here = taken(problem, examples)
        dynamics = here.dynamics
        sources = dynamics.sources(here.ys, here.times)
        own = []
        for g in cotangents:
            g = tf.gather(g, examples, axis=1)
            mask = tf.reshape(counts, [1, -1, *[1] * (g.shape.rank - 2)])
            own.append(tf.where(mask, g, tf.zeros_like(g)))
        with dynamics.substituted():
            outputs = self._gradient.solve(here).states
            found = _platform.gradients(outputs, tf.nest.flatten(sources), own)
        found = tf.nest.pack_sequence_as(sources, found)
        return found._replace(times=[None if x is None else tf.transpose(x) for x in found.times])


def _captured(problem):
    """What the dynamics capture, and whether it has a row for each example."""
    queue = problem.queue
    whole = {id(x): tf.convert_to_tensor(y) for x, y in zip(queue.of_lanes, queue.args)}
    return [(whole.get(id(x), x), id(x) in whole) for x in problem.dynamics.captured]


def _added(total, rows, x):
    """A sum with more for all of it, or for some rows of it."""
    if x is None:
        return total
    if rows is None:
        return add_terms([total], [x])[0]
    return tf.tensor_scatter_nd_add(total, rows, tf.cast(x, total.dtype))
