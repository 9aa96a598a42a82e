"""What is for XLA: functions of their own that it compiles, and loops whose length it knows."""

import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfsymadj import _platform


class _Around(threading.local):
    """Whether what is being traced is part of a function that XLA compiles."""

    is_compiled = False


_around = _Around()


def compiled(function: Callable[[], Any], jit_compile: bool | None) -> Any:
    """The results of a function, computed by a `tf.function` of their own.

    What XLA has compiled can't hand out the lists of tensors by which TensorFlow differentiates
    loops. So a derivative of it, of whatever order, is such a function as well, that begins with
    the same computation once more.

    Args:
        function: callable without arguments that returns a nest of tensors and of None, made of
            tensors of the current graph.
        jit_compile: as for `tf.function`; None: there is no function of their own, nor is there in
            another one that XLA compiles.
    """
    if jit_compile is None or _around.is_compiled:
        return function()

    def inside():
        before, _around.is_compiled = _around.is_compiled, jit_compile
        try:
            return function()
        finally:
            _around.is_compiled = before

    traced = tf.function(inside, autograph=False, jit_compile=jit_compile)
    concrete = traced.get_concrete_function()
    with _platform.recording(False):  # or TensorFlow would derive its own gradient at once
        results = concrete()
    flat = tf.nest.flatten(results)
    numbers = [i for i, x in enumerate(flat) if _has_derivative(x)]
    tensors = [x for x, _ in concrete.graph.captures if _has_derivative(x)]
    # Those that are read by their handles: the values of others are among the tensors. In a loop or
    # a branch TensorFlow refuses a handle that its own pass forward has not captured.
    captured = {id(x) for x, _ in concrete.graph.captures}
    variables = [
        v for v in concrete.graph.variables if v.trainable and id(_platform.handle(v)) in captured
    ]
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


def repeated(
    count: Any,
    body: Callable,
    variables: Any,
    name: str,
    bound: int | None = None,
    overlap: int = 1,
) -> Any:
    """A loop of a number of passes; one that XLA knows the length of, if it is an int.

    XLA finds the length in a condition that is one comparison. TensorFlow joins the one with
    `maximum_iterations`, which it needs for the loop's derivative, to the loop's own by "and", so
    that the loop's own must not be one.

    Args:
        count: int, or int32 scalar.
        body: callable `(i, variables) -> variables` for the passes i from 0 on.
        variables: nest of tensors.
        name: of the operation.
        bound: of `count`, where that is a tensor.
        overlap: how many passes may be under way at a time.

    Returns:
        The variables after the last pass.
    """
    known = isinstance(count, int)
    _, variables = tf.while_loop(
        (lambda *_: True) if known else (lambda i, _: i < count),
        lambda i, variables: (i + 1, body(i, variables)),
        (0, variables),
        parallel_iterations=overlap,
        maximum_iterations=count if known else bound,
        name=name,
    )
    return variables


def static_int(x: Any) -> Any:
    """An int where an int32 scalar is a constant of the graph, else the scalar."""
    value = tf.get_static_value(x) if tf.is_tensor(x) else x
    return x if value is None else int(value)


def _has_derivative(x):
    return x is not None and (x.dtype.is_floating or x.dtype.is_complex)
