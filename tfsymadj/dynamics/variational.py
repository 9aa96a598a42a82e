"""Dynamics beside their derivative along directions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Tangents(NamedTuple):
    """Directions of a derivative: lists of tensors, in the order of what they belong to.

    Attributes:
        ys: of the state.
        args: of some of the arguments.
        variables: of some variables.
        times: of the output times, one tensor; none if these stay where they are.
    """

    ys: list
    args: list
    variables: list
    times: list


class Along(NamedTuple):
    """What is known of directions when they are traced; hashable.

    Attributes:
        args: the positions of those arguments that have a tangent.
        several: whether each tangent has a first axis of directions.
    """

    args: tuple
    several: bool


class Directions(NamedTuple):
    """Directions in which a solution is differentiated.

    Attributes:
        along: `Along`.
        tangents: `Tangents`.
        variables: list of variables, those that have a tangent.
    """

    along: Along
    tangents: Tangents
    variables: Any


class Variational:
    """Dynamics and their derivative along directions, as dynamics of a flat list.

        dy/dt = f,   d v/dt = (df/dy) v + (df/dp) v_p + (df/dt) v_t + r f

    for a state of y, of v and, where times move, of a clock (v_t, r): how fast the time moves, and
    how fast a step is stretched, relative to its size. A step of a Runge-Kutta method for this
    system is the derivative of the step for the dynamics. The derivative is the transpose of the
    transpose that a tape gives: one evaluation of the dynamics for all directions.

    Args:
        function: `(t, ys, args) -> dys` over lists of tensors and the nest of arguments.
        size: the number of tensors of y.
        args: nest of arguments.
        variables: callable that returns the variables that have a tangent.
        tangents: `Tangents`.
        along: `Along`; None: of no argument, along one direction.
    """

    def __init__(
        self,
        function: Callable,
        size: int,
        args: tuple,
        variables: Callable,
        tangents: Tangents,
        along: Along | None,
    ):
        self._function, self._size, self._args = function, size, args
        self._variables, self._tangents = variables, tangents
        self._along = along or Along((), several=False)

    def __call__(self, t, zs):
        n = self._size
        ys, vs, clock = zs[:n], zs[n : 2 * n], zs[2 * n :]
        # Tensors of its own: others that are watched outside would be counted twice.
        args = [tf.identity(x) for x in tf.nest.flatten(self._args)]
        ys, time = [tf.identity(y) for y in ys], [tf.identity(t)] if clock else []
        watched = [args[i] for i in self._along.args]
        sources = [*ys, *watched, *self._variables(), *time]
        zeros = [tf.zeros_like(y) for y in ys]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as outer:
            outer.watch(zeros)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(sources)
                given = tf.nest.pack_sequence_as(self._args, args)
                values = self._function(time[0] if time else t, ys, given)
            found = inner.gradient(values, sources, output_gradients=zeros)
            pulled = [None if g is None else tf.convert_to_tensor(g) for g in found]
        connected = [i for i, g in enumerate(pulled) if g is not None]

        def push(directions):
            """The derivative of the values along one direction."""
            vs, *others, clock = directions
            flat = [*vs, *tf.nest.flatten(others), *(c[0] for c in clock)]
            slopes = [tf.zeros_like(y) for y in ys]
            if connected:
                slopes = outer.gradient(
                    [pulled[i] for i in connected],
                    zeros,
                    output_gradients=[tf.cast(flat[i], pulled[i].dtype) for i in connected],
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
            for c in clock:
                slopes = [s + tf.cast(c[1], k.dtype) * k for s, k in zip(slopes, values)]
            return slopes

        directions = (vs, self._tangents.args, self._tangents.variables, clock)
        slopes = tf.vectorized_map(push, directions) if self._along.several else push(directions)
        slopes = [tf.ensure_shape(s, v.shape) for s, v in zip(slopes, vs)]
        ticks = [tf.stack([c[..., 1], tf.zeros_like(c[..., 1])], -1) for c in clock]
        return [*values, *slopes, *ticks]
