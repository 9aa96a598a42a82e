"""Parts of a solve as functions of their own, which XLA compiles whoever calls."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsymadj import _platform


def compiled(function: Callable[[], Any], jit_compile: bool | None) -> Any:
    """The results of a function, computed by a `tf.function` of their own.

    What XLA has compiled can't hand out the lists of tensors by which TensorFlow differentiates
    loops. So a derivative of it, of whatever order, is such a function as well, that begins with
    the same computation once more.

    Args:
        function: callable without arguments that returns a nest of tensors and of None, made of
            tensors of the current graph.
        jit_compile: as for `tf.function`; None: there is no function of their own.
    """
    if jit_compile is None:
        return function()
    traced = tf.function(function, autograph=False, jit_compile=jit_compile)
    concrete = traced.get_concrete_function()
    with _platform.recording(False):  # or TensorFlow would derive its own gradient at once
        results = concrete()
    flat = tf.nest.flatten(results)
    numbers = [i for i, x in enumerate(flat) if _has_derivative(x)]
    tensors = [x for x, _ in concrete.graph.captures if _has_derivative(x)]
    variables = [v for v in concrete.graph.variables if v.trainable]
    sources = [*tensors, *map(_platform.handle, variables)]

    def backward(cotangents):
        def vjp():
            again = tf.nest.flatten(function())
            return _platform.gradients([again[i] for i in numbers], sources, cotangents)

        return compiled(vjp, jit_compile)

    inputs = [*tensors, *variables]
    found = _platform.with_gradient([flat[i] for i in numbers], inputs, backward)
    for i, x in zip(numbers, found):
        flat[i] = x
    return tf.nest.pack_sequence_as(results, flat)


def _has_derivative(x):
    return x is not None and (x.dtype.is_floating or x.dtype.is_complex)
