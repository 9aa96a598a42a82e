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
_registry = ops.gradient_registry._registry


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
        # That of `tf.gather` has none but the rows that were gathered.
        dense = [tf.convert_to_tensor(g) for g in cotangents[:count]]
        return [None] * count + list(backward(dense))

    # The operation's gradient is found by name: also where the operation itself is gone, in a
    # SavedModel that is being written.
    name = f"tfsymadj_{next(_numbers)}"
    tf.RegisterGradient(name)(lambda _, *cotangents: gradients(*cotangents))
    _keep(graph, name)
    everything = [*outputs, *inputs]
    with graph.gradient_override_map({"IdentityN": name}):
        results = tf.identity_n(everything)
    record.record_operation("tfsymadj", results, everything, gradients)
    return results[:count]


def gradients(values, sources, cotangents):
    """Gradients of tensors of the current graph for tensors of it or of graphs around it.

    Not by a tape: around a loop that the caller's tapes see, too, TensorFlow puts a function for
    second derivatives, in which XLA does not know the loop's bounds.

    Returns:
        A list of tensors, and of None where there is no connection.
    """
    graph = tf.compat.v1.get_default_graph()
    inside = [graph.capture(x) for x in sources]
    found = tf.gradients(values, inside, cotangents)
    return [None if g is None else tf.convert_to_tensor(g) for g in found]


def _keep(graph, name):
    """Moves a gradient function from the registry to its graph."""
    entry = _registry[name]
    _kept(graph)[name] = entry["type"]
    reference = weakref.ref(graph)
    _registry[name] = entry | {"type": lambda *args: _kept(reference())[name](*args)}
    weakref.finalize(graph, _registry.pop, name, None).atexit = False


def _kept(graph):
    """The gradient functions that a graph keeps; the graphs around it will keep theirs, too."""
    outer = graph
    while outer is not None and not hasattr(outer, "_tfsymadj_gradients"):
        outer._tfsymadj_gradients = {}
        outer = getattr(outer, "outer_graph", None)
    return graph._tfsymadj_gradients


def keep_newest(graph):
    """Moves the gradient function that was registered last to a graph with solves in it.

    Or other custom gradients, such as the one of the optimizer's reduction over replicas, would
    keep the graph of a solve for ever.
    """
    name = next(reversed(_registry))
    if hasattr(graph, "_tfsymadj_gradients") and name.startswith("CustomGradient-"):
        _keep(graph, name)
