"""No gradient: for inference and for runtimes that know nothing of TensorFlow's."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.gradients.gradient import Gradient
from tfsymadj.loop.failures import is_success
from tfsymadj.loop.integrate import integrate
from tfsymadj.loop.problem import Outcome
from tfsymadj.solution import Stats
from tfsymadj.steps.given import TabulatedSteps

#: Up to so many output intervals get a loop of their own.
_MAX_LOOPS = 32


class NoGradient(Gradient):
    """Keeps nothing for a backward pass.

    To differentiate the solve raises `tf.errors.InvalidArgumentError` where the gradient is
    computed; under XLA, which drops assertions, the gradient is NaN.

    Where the steps are known when the solve is traced (`num_steps` or `step_size`, and times that
    are numbers), they become tables of float32 constants, so that a model of float32 states
    consists of float32 operations and converts to TFLite and ONNX; with at most 33 output times,
    since these know no lists of tensors whose sizes are not static. See `no_gradient`.

    Args:
        like: the gradient in whose scheme to solve, if that is not the method's own: `Reversible`.

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient=tfsymadj.NoGradient())
    """

    def __init__(self, like: Gradient | None = None):
        self.like = like

    def get_config(self):
        return {} if self.like is None else {"like": self.like}

    @property
    def discretises(self):
        return self.like is not None

    def solve(self, problem):
        if self.like is None:
            return self._solve(problem)
        outcome = self._solve(self.like.discretised(problem))
        return outcome._replace(ys=outcome.ys[: len(problem.ys)])

    def _solve(self, problem):
        first, *others = _parts(problem)
        outcome = integrate(first)
        for part in others:
            part = dataclasses.replace(part, ys=[y[-1] for y in outcome.ys])
            outcome = _joined(outcome, integrate(part))
        message = (
            "This solve was made without a gradient, by `NoGradient` or inside of `no_gradient()`. "
            "Choose another `gradient`, or make the function outside of the context."
        )
        states = without_gradient(outcome.states, outcome.states, message)
        outcome = outcome.with_states(states)
        return outcome._replace(time=tf.cast(outcome.time, tf.float64))


def without_gradient(ys, inputs, message):
    """Tensors whose gradient for the inputs raises an error with this message; NaN under XLA."""

    def backward(_):
        # Not an exception, nor `tf.raw_ops.PreventGradient`: a SavedModel holds this function, and
        # other runtimes don't know that operation.
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return [tf.fill(tf.shape(x), tf.cast(float("nan"), x.dtype)) for x in inputs]

    return _platform.with_gradient([tf.identity(y) for y in ys], inputs, backward)


def _parts(problem):
    """The problem with tables of its steps, cut at the output times; if they are known."""
    times, controller = tf.get_static_value(problem.stops), problem.controller
    single = all(y.dtype.real_dtype == tf.float32 for y in problem.ys)
    plain = single and not problem.lanes
    plain = plain and problem.switches is None and problem.watch is None
    if times is None or not plain or controller.table(times) is None:
        return [problem]
    count = len(times) - 1
    cuts = [times[m : m + 2] for m in range(count)] if count <= _MAX_LOOPS else [times]
    return [
        dataclasses.replace(
            problem,
            stops=tf.constant(cut, tf.float32),
            controller=TabulatedSteps(*controller.table(cut)),
            max_steps=len(controller.table(cut)[0]),
            known_length=True,
        )
        for cut in cuts
    ]


def _joined(first, second):
    """The `Outcome` of two solves one after the other."""
    well = is_success(first.status)
    return Outcome(
        ys=[tf.concat([a, b[1:]], 0) for a, b in zip(first.ys, second.ys)],
        status=tf.where(well, second.status, first.status),
        time=tf.where(well, second.time, first.time),
        stats=Stats(*(tf.maximum(a + b, -1) for a, b in zip(first.stats, second.stats))),
    )


class _Active(threading.local):
    value = False


_active = _Active()


def gradient_is_wanted() -> bool:
    """Whether this thread is outside of `no_gradient`."""
    return not _active.value


@contextlib.contextmanager
def no_gradient() -> Iterator[None]:
    """A context in which every solve that is called or traced has the gradient `NoGradient`.

    What is traced inside stays so: a model exported inside has no gradient, keeps no checkpoints
    and converts to TFLite and ONNX, if its steps are fixed.

    Example:

    >>> import keras, tensorflow as tf, tfsymadj
    >>> layer = tfsymadj.ODELayer(keras.layers.Dense(2), method="rk4", num_steps=10)
    >>> model = keras.Sequential([keras.Input((2,)), layer])
    >>> with tfsymadj.no_gradient():
    ...     signature = tf.TensorSpec([1, 2])
    ...     function = tf.function(model).get_concrete_function(signature)
    ...     converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    >>> len(converter.convert()) > 0
    True
    """
    before, _active.value = _active.value, True
    try:
        yield
    finally:
        _active.value = before
