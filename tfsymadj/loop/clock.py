"""Steps whose times move: the derivative for the output times, going forward."""

from typing import NamedTuple

import tensorflow as tf

from tfsymadj.arithmetic import entry


class Clock(NamedTuple):
    """How the times of a solve move, beside a state of `dynamics.variational.Variational`.

    Attributes:
        size: the number of tensors of y; so many of its derivative follow, and the clock.
        stops: how fast the stops move, float64 `[stops, ...]`, with an axis of directions or none.
        between: likewise the outputs between them, or None.
    """

    size: int
    stops: tf.Tensor
    between: tf.Tensor | None = None

    def set(self, ys: list, first: list, interval: tf.Tensor, proposal) -> tuple:
        """The state and the first slopes of a step, with the clock as it goes in this one.

        Args:
            ys: the state before the step.
            first: the dynamics there, with the clock as it was; or an empty list.
            interval: which stop the step comes after.
            proposal: `Proposal`.

        Returns:
            `(ys, first)`.
        """
        n, (*others, before) = self.size, ys
        start, end = entry(self.stops, interval), entry(self.stops, interval + 1)
        a, b = proposal.time_fraction, proposal.step_fraction
        rate = b / proposal.step * (end - start)
        now = tf.stack([(1.0 - a) * start + a * end, rate], -1)
        if first:
            change = rate - before[..., 1]
            slopes = [s + _product(change, k) for s, k in zip(first[n:], first[:n])]
            first = [*first[:n], *slopes, tf.stack([rate, tf.zeros_like(rate)], -1)]
        return [*others, now], first

    def of_outputs(self, ys: list, rates: list) -> list:
        """Outputs with the derivatives at times that move.

        Args:
            ys: the outputs, stacked.
            rates: the derivatives for the time of those that lie inside of steps, the first and
                the last one excluded; or an empty list.
        """
        if self.between is None or not rates:
            return ys
        n, numbers = self.size, tf.range(tf.shape(self.between)[0])
        interior = tf.logical_and(numbers > 0, numbers < tf.size(numbers) - 1)
        # The clock has moved with the steps.
        ahead = self.between - ys[-1][..., 0]
        changes = []
        for rate in rates[:n]:
            mask = tf.reshape(interior, [-1, *[1] * (rate.shape.rank - 1)])
            rate = tf.where(mask, rate, tf.zeros_like(rate))
            changes.append(_product(ahead, rate, shared=1))
        moved = [v + x for v, x in zip(ys[n : 2 * n], changes)]
        return [*ys[:n], *moved, ys[-1]]


def _product(numbers, x, shared=0):
    """Of numbers, with or without an axis of directions, and a tensor: an outer product.

    Args:
        shared: how many first axes both have in common.
    """
    head, rank = tf.shape(numbers), x.shape.rank
    numbers = tf.reshape(numbers, tf.concat([head, [1] * (rank - shared)], 0))
    if numbers.shape.rank > rank:
        x = tf.expand_dims(x, shared)
    return tf.cast(numbers, x.dtype) * x
