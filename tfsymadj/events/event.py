"""What an event is, and its function as the solver calls it."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.dynamics import calling


class Event:
    """Where a function of time and state changes its sign.

    Args:
        function: callable `(t, y, *args) -> scalar`, called like the dynamics; its roots are
            looked for. With `batch_axis` it returns a number for each example, `(batch,)`. What it
            closes over, variables too, is differentiated. A function that jumps, such as one made
            of booleans, or has a kink at its root, is found, but has no derivative: NaN.
        direction: 1: from negative to positive as the solve goes on, -1: the other way, 0: both.
        terminal: whether the solve ends there.
        args: nest of tensors; a tuple or list is passed as positional arguments.

    Raises:
        TypeError, ValueError: for arguments that don't fit.

    Example:

    >>> import tensorflow as tf, tfsymadj
    >>> ground = tfsymadj.Event(lambda t, y: y[0], direction=-1)
    >>> fall = lambda t, y: tf.stack([y[1], -9.81])
    >>> solution = tfsymadj.solve(fall, [1.0, 0.0], [0.0, 2.0], event=ground)
    >>> abs(float(solution.event.t) - (2.0 / 9.81) ** 0.5) < 1e-5
    True
    """

    #: Its sign is looked at so many times in a step.
    samples = 8

    def __init__(
        self, function: Callable, direction: int = 0, terminal: bool = True, args: Any = ()
    ):
        if not callable(function):
            raise TypeError(f"`function` of an `Event` must be callable. Received: {function!r}")
        if isinstance(direction, bool) or direction not in (-1, 0, 1):
            raise ValueError(f"`direction` must be -1, 0 or 1. Received: {direction!r}")
        if not isinstance(terminal, bool):
            raise TypeError(f"`terminal` must be True or False. Received: {terminal!r}")
        self.function, self.direction, self.terminal = function, int(direction), terminal
        self.args = args

    def __repr__(self):
        return (
            f"Event({self.function!r}, direction={self.direction}, terminal={self.terminal}, "
            f"args={self.args!r})"
        )


def as_function(function, like, args, lanes=0):
    """`(t, ys) -> [value]` over lists of tensors; the value is a float64 scalar, or with lanes a
    vector with one for each example.

    Args:
        function: callable that returns the function of an event.
        like: the nest of the state.
        args: tuple of further arguments.
        lanes: 1 with lanes.
    """
    likes = tf.nest.flatten(like)
    state = _platform.CallState()

    def evaluate(t, ys):
        given = [tf.cast(y, x.dtype) for y, x in zip(ys, likes)]
        y = tf.nest.pack_sequence_as(like, given)
        with state.entered():
            value = calling.call(function(), tf.cast(t, likes[0].dtype.real_dtype), y, args, False)
        try:
            value = tf.convert_to_tensor(value)
            real = value.dtype.is_floating
        except (TypeError, ValueError):
            real = False
        shape = ys[0].shape[:lanes]
        if not real or not value.shape.is_compatible_with(shape):
            what = "vector with a number for each example" if lanes else "scalar"
            raise ValueError(
                f"The function of an `Event` must return a real {what}, whose sign changes. "
                f"Received: {value!r}"
            )
        return [tf.ensure_shape(tf.cast(value, tf.float64), shape)]

    return evaluate
