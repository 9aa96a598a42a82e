"""Custom gradients that live as long as the graph they belong to.

`tf.custom_gradient` in a graph enters its gradient function into a registry that is never emptied,
and with it the graph and all that was traced into it: megabytes for every solve.
"""

import itertools
import weakref

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import ops

_numbers = itertools.count()


def with_gradient(outputs, inputs, backward):
    """Outputs that were computed from inputs in the current graph, with a gradient of one's own.

    Args:
        outputs: list of tensors.
        inputs: list of tensors, and of variables: these for their values.
        backward: callable from a list of cotangents to the list of gradients for `inputs`.

    Returns:
        The outputs, a list.
    """
    inputs = [tf.convert_to_tensor(x) for x in inputs]
    graph = tf.compat.v1.get_default_graph()
    count = len(outputs)

    def gradients(*cotangents):
        return [None] * count + list(backward(list(cotangents[:count])))

    # The operation's gradient is found by name: also where the operation itself is gone, in a
    # SavedModel that is being written.
    name = f"tfsymadj_{next(_numbers)}"
    if not hasattr(graph, "_tfsymadj_gradients"):
        graph._tfsymadj_gradients = {}
    graph._tfsymadj_gradients[name] = gradients
    reference = weakref.ref(graph)

    def registered(_, *cotangents):
        return reference()._tfsymadj_gradients[name](*cotangents)

    tf.RegisterGradient(name)(registered)
    weakref.finalize(graph, ops.gradient_registry._registry.pop, name, None).atexit = False
    everything = [*outputs, *inputs]
    with graph.gradient_override_map({"IdentityN": name}):
        results = tf.identity_n(everything)
    record.record_operation("tfsymadj", results, everything, gradients)
    return results[:count]
