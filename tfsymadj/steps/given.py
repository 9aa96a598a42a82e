"""Steps that do not depend on the solution."""

import math

import numpy as np
import tensorflow as tf

from tfsymadj.arithmetic import EPSILON
from tfsymadj.config import is_int, is_real
from tfsymadj.steps.controller import Controller, Proposal


class ConstantSteps(Controller):
    """Equal steps between two consecutive output times.

    Args:
        num_steps: number of steps between two entries of `t`.
        step_size: upper bound of the steps' size; each interval is divided into
            ceil(length / step_size) equal steps. Exactly one of the two is given.

    Raises:
        ValueError: if none or both are given, or one is not positive.

    Example:

    >>> import tfsymadj
    >>> steps = tfsymadj.ConstantSteps(num_steps=10)
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], method="rk4", controller=steps)
    """

    INPUTS = ("_step_size",)

    def __init__(self, num_steps: int | None = None, step_size: float | None = None):
        if (num_steps is None) == (step_size is None):
            raise ValueError(
                "Exactly one of `num_steps` and `step_size` must be given. "
                f"Received: num_steps={num_steps!r}, step_size={step_size!r}"
            )
        if num_steps is not None and not (is_int(num_steps, 1) and num_steps < 2**31 - 1):
            raise ValueError(f"`num_steps` must be a positive int32. Received: {num_steps!r}")
        if step_size is not None and not (is_real(step_size) and 0 < step_size < math.inf):
            raise ValueError(
                f"`step_size` must be a positive, finite number. Received: {step_size!r}"
            )
        self._num_steps = None if num_steps is None else int(num_steps)
        self._step_size = None if step_size is None else float(step_size)

    def get_config(self):
        return {"num_steps": self._num_steps, "step_size": self._step_size}

    def _count(self, length):
        """Steps of intervals of the given signed lengths, int32."""
        if self._num_steps is not None:
            return tf.fill(tf.shape(length), self._num_steps)
        # 10 steps of 0.1 make 1.0: a quotient that is whole but for rounding is whole.
        quotient = tf.abs(length) / self._step_size
        count = tf.math.ceil(quotient * (1.0 - 4.0 * EPSILON))
        return tf.cast(tf.clip_by_value(count, 1.0, 2.0**30), tf.int32)

    def num_steps(self, ts):
        if self._num_steps is not None and ts.shape[0] is not None:
            return (ts.shape[0] - 1) * self._num_steps

        def largest(lengths):  # of all lanes
            return tf.reduce_max(tf.reduce_sum(self._count(lengths), 0))

        static = tf.get_static_value(ts)
        if static is not None:
            with tf.init_scope():
                return int(largest(tf.constant(np.diff(static, axis=0))))
        return largest(ts[1:] - ts[:-1])

    def table(self, times):
        cls = type(self)
        if (cls.propose, cls.adapt) != (ConstantSteps.propose, ConstantSteps.adapt):
            return None  # the steps of a subclass are its own
        with tf.init_scope():
            counts = self._count(tf.constant(np.diff(times))).numpy()
        ends = [np.linspace(a, b, n + 1)[1:] for a, b, n in zip(times, times[1:], counts)]
        steps = [np.full(n, (b - a) / n) for a, b, n in zip(times, times[1:], counts)]
        hits_end = [np.arange(n) == n - 1 for n in counts]
        return np.concatenate(ends), np.concatenate(steps), np.concatenate(hits_end)

    def per_example(self):
        return self

    def initial_state(self, first_step):
        return tf.zeros([], tf.int32)

    def propose(self, state, t, start, end):
        count = self._count(end - start)
        hits_end = state + 1 >= count
        n, j = tf.cast(count, tf.float64), tf.cast(state, tf.float64)
        step = (end - start) / n
        after = tf.where(hits_end, end, start + (j + 1.0) * step)
        return Proposal(step, after, hits_end, j / n, 1.0 / n)

    def adapt(self, state, proposal, error):
        return tf.constant(True), tf.where(proposal.hits_end, 0, state + 1)


class TabulatedSteps(Controller):
    """Steps that are known beforehand, as constants of the graph; times have no gradient.

    Args:
        ends: the times after the steps.
        steps: the signed steps.
        hits_end: whether a step ends at an output time.
    """

    def __init__(self, ends, steps, hits_end):
        self._ends, self._steps, self._hits_end = ends, steps, hits_end

    def get_config(self):
        return {"ends": self._ends, "steps": self._steps, "hits_end": self._hits_end}

    def num_steps(self, ts):
        return len(self._steps)

    def initial_state(self, first_step):
        return tf.zeros([], tf.int32)

    def propose(self, state, t, start, end):
        step, after = (tf.gather(tf.constant(x, t.dtype), state) for x in (self._steps, self._ends))
        zero = tf.zeros([], t.dtype)
        return Proposal(step, after, tf.gather(tf.constant(self._hits_end), state), zero, zero)

    def adapt(self, state, proposal, error):
        return tf.constant(True), state + 1
