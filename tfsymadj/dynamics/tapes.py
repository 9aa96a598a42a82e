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
    number, has_derivative = len(ys), True
    specs = [tf.TensorSpec(y.shape, y.dtype) for y in ys]

    def derivative(t, *tensors):
        nonlocal has_derivative
        states, cotangents = list(tensors[:number]), list(tensors[number:])
        sources = dynamics.sources(states, [t])
        with dynamics.substituted():
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                values = dynamics(t, states)
            try:
                found = tape.gradient(values, sources, output_gradients=cotangents)
            except Exception:  # of any kind: it is raised again where the gradient is wanted
                has_derivative = False
                return []
        return [x for x in tf.nest.flatten(found) if x is not None]

    traced = tf.function(derivative, autograph=False)
    graph = traced.get_concrete_function(dynamics.time, *specs, *specs).graph
    if not has_derivative:
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
