"""How much a tape of the dynamics holds."""

import math

import tensorflow as tf

#: What a size counts as that is not known before the solve runs: a batch of many examples.
UNKNOWN = 256


def num_bytes(x):
    """The bytes of a tensor, or of as many numbers as its shape tells; None without a rank."""
    if x.shape.rank is None or x.dtype in (tf.variant, tf.resource):
        return None
    return math.prod(UNKNOWN if n is None else n for n in x.shape) * x.dtype.size


def tape_bytes(dynamics, ys):
    """The bytes that a tape of one evaluation holds; None where that can't be told.

    They are those of the tensors which the derivative needs of the evaluation and which depend on
    the time or the state.

    Args:
        dynamics: `ClosedDynamics`.
        ys: list of tensors, the state; for its shapes and dtypes.
    """
    number = len(ys)
    specs = [tf.TensorSpec(y.shape, y.dtype) for y in ys]

    def derivative(t, *tensors):
        found, _ = dynamics.vjp(t, list(tensors[:number]), list(tensors[number:]))
        return [x for x in tf.nest.flatten(found) if x is not None]

    traced = tf.function(derivative, autograph=False)
    try:
        graph = traced.get_concrete_function(tf.TensorSpec([], tf.float64), *specs, *specs).graph
    except Exception:  # of any kind: it is raised again where the gradient is wanted
        return None
    evaluated = _reached(graph.inputs[: number + 1], _users)
    later = _reached(graph.inputs[number + 1 : 2 * number + 1], _users)
    later &= _reached(graph.outputs, lambda op: [x.op for x in op.inputs])
    held = {
        id(x): num_bytes(x)
        for op in later
        for x in op.inputs
        if x.op in evaluated and x.op not in later
    }
    return None if None in held.values() else sum(held.values())


def _users(op):
    return [user for x in op.outputs for user in x.consumers()]


def _reached(tensors, following):
    """The operations from those of some tensors on."""
    found, waiting = set(), [x.op for x in tensors]
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += following(op)
    return found
